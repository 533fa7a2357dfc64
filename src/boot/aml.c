/* AML encodings; see aml.h. Section numbers are those of ACPI 6.4. */
#include "aml.h"

#include <stdlib.h>
#include <string.h>

enum {
	OP_ZERO = 0x00,
	OP_ONE = 0x01,
	OP_NAME = 0x08,
	OP_BYTE = 0x0a,
	OP_WORD = 0x0b,
	OP_DWORD = 0x0c,
	OP_STRING = 0x0d,
	OP_QWORD = 0x0e,
	OP_SCOPE = 0x10,
	OP_BUFFER = 0x11,
	OP_PACKAGE = 0x12,
	OP_EXT = 0x5b,
	OP_EXT_DEVICE = 0x82,
};

static bool aml_reserve(struct aml *a, size_t n)
{
	if (a->failed)
		return false;
	if (n > a->capacity - a->size) {
		size_t capacity = (a->size + n) * 2 + 256;
		uint8_t *data = realloc(a->data, capacity);

		if (!data) {
			a->failed = true;
			return false;
		}
		a->data = data;
		a->capacity = capacity;
	}
	return true;
}

void aml_bytes(struct aml *a, const void *bytes, size_t n)
{
	if (!aml_reserve(a, n))
		return;
	memcpy(a->data + a->size, bytes, n);
	a->size += n;
}

void aml_byte(struct aml *a, uint8_t v)
{
	aml_bytes(a, &v, 1);
}

void aml_word(struct aml *a, uint16_t v)
{
	aml_bytes(a, &v, 2);
}

void aml_dword(struct aml *a, uint32_t v)
{
	aml_bytes(a, &v, 4);
}

void aml_qword(struct aml *a, uint64_t v)
{
	aml_bytes(a, &v, 8);
}

void aml_align(struct aml *a, size_t align)
{
	while (!a->failed && a->size % align)
		aml_byte(a, 0);
}

/* 20.2.2: segments are four characters; a path of one needs no prefix. We write no longer paths. */
void aml_name_string(struct aml *a, const char *name)
{
	aml_bytes(a, name, strlen(name));
}

void aml_name(struct aml *a, const char *name)
{
	aml_byte(a, OP_NAME);
	aml_name_string(a, name);
}

void aml_integer(struct aml *a, uint64_t v)
{
	if (v <= 1) {
		aml_byte(a, v ? OP_ONE : OP_ZERO);
	} else if (v <= 0xff) {
		aml_byte(a, OP_BYTE);
		aml_byte(a, (uint8_t)v);
	} else if (v <= 0xffff) {
		aml_byte(a, OP_WORD);
		aml_word(a, (uint16_t)v);
	} else if (v <= 0xffffffff) {
		aml_byte(a, OP_DWORD);
		aml_dword(a, (uint32_t)v);
	} else {
		aml_byte(a, OP_QWORD);
		aml_qword(a, v);
	}
}

void aml_string(struct aml *a, const char *text)
{
	aml_byte(a, OP_STRING);
	aml_bytes(a, text, strlen(text) + 1);
}

static unsigned hex_digit(char c)
{
	return c <= '9' ? (unsigned)(c - '0') : (unsigned)(c - 'A' + 10);
}

/*
 * 19.3.4: three letters of five bits and four hexadecimal digits, big endian.
 *
 *   31  30      26 25      21 20      16 15            0
 *   | 0 | letter 1 | letter 2 | letter 3 | four digits |
 */
void aml_eisa_id(struct aml *a, const char *id)
{
	uint32_t v = (uint32_t)(id[0] - '@') << 26 | (uint32_t)(id[1] - '@') << 21 |
		(uint32_t)(id[2] - '@') << 16;

	v |= hex_digit(id[3]) << 12 | hex_digit(id[4]) << 8 | hex_digit(id[5]) << 4 | hex_digit(id[6]);
	aml_byte(a, OP_DWORD);
	aml_dword(a, __builtin_bswap32(v));
}

void aml_name_integer(struct aml *a, const char *name, uint64_t v)
{
	aml_name(a, name);
	aml_integer(a, v);
}

void aml_name_eisa_id(struct aml *a, const char *name, const char *id)
{
	aml_name(a, name);
	aml_eisa_id(a, id);
}

size_t aml_open_scope(struct aml *a, const char *name)
{
	size_t position;

	aml_byte(a, OP_SCOPE);
	position = a->size;
	aml_name_string(a, name);
	return position;
}

size_t aml_open_device(struct aml *a, const char *name)
{
	size_t position;

	aml_byte(a, OP_EXT);
	aml_byte(a, OP_EXT_DEVICE);
	position = a->size;
	aml_name_string(a, name);
	return position;
}

size_t aml_open_package(struct aml *a, uint8_t elements)
{
	size_t position;

	aml_byte(a, OP_PACKAGE);
	position = a->size;
	aml_byte(a, elements);
	return position;
}

/*
 * 20.2.4: the length counts its own bytes. One byte holds 6 bits; else the first byte's low nibble is the low
 * nibble of the length, its top two bits the number of bytes that follow.
 */
void aml_close(struct aml *a, size_t position)
{
	uint8_t bytes[4];
	size_t inside, n, length;

	if (a->failed)
		return;
	inside = a->size - position;
	n = inside + 1 < 0x40 ? 1 : inside + 2 < 0x1000 ? 2 : inside + 3 < 0x100000 ? 3 : 4;
	length = inside + n;
	if (n == 1) {
		bytes[0] = (uint8_t)length;
	} else {
		bytes[0] = (uint8_t)((n - 1) << 6 | (length & 0xf));
		for (size_t i = 1; i < n; i++)
			bytes[i] = (uint8_t)(length >> (4 + 8 * (i - 1)));
	}
	if (!aml_reserve(a, n))
		return;
	memmove(a->data + position + n, a->data + position, inside);
	memcpy(a->data + position, bytes, n);
	a->size += n;
}

/* A buffer's size precedes its bytes and so must be known before: written as a word, filled in at the end. */
size_t aml_open_resources(struct aml *a)
{
	size_t position;

	aml_name(a, "_CRS");
	aml_byte(a, OP_BUFFER);
	position = a->size;
	aml_byte(a, OP_WORD);
	aml_word(a, 0);
	return position;
}

void aml_close_resources(struct aml *a, size_t position)
{
	uint16_t size;

	aml_byte(a, 0x79); /* end tag; its sum of 0 means that it is not checked (6.4.2.9) */
	aml_byte(a, 0);
	if (a->failed)
		return;
	size = (uint16_t)(a->size - position - 3);
	memcpy(a->data + position + 1, &size, sizeof(size));
	aml_close(a, position);
}

/* 6.4.2.5: I/O port descriptor, 16-bit decode. */
void aml_io(struct aml *a, uint16_t port, uint8_t length)
{
	aml_byte(a, 0x47);
	aml_byte(a, 1);
	aml_word(a, port);
	aml_word(a, port);
	aml_byte(a, 1);
	aml_byte(a, length);
}

/* 6.4.2.1: IRQ descriptor without flags: edge, active high, exclusive. */
void aml_irq(struct aml *a, unsigned irq)
{
	aml_byte(a, 0x22);
	aml_word(a, (uint16_t)(1u << irq));
}

/* 6.4.3.4 */
void aml_memory32(struct aml *a, bool writable, uint32_t base, uint32_t length)
{
	aml_byte(a, 0x86);
	aml_word(a, 9);
	aml_byte(a, writable);
	aml_dword(a, base);
	aml_dword(a, length);
}

/* 6.4.3.5: address space descriptors. Flags: both ends fixed (bits 2, 3), positive decode, producer. */
static void window_head(struct aml *a, uint8_t tag, uint16_t length, uint8_t type, uint8_t type_flags)
{
	aml_byte(a, tag);
	aml_word(a, length);
	aml_byte(a, type);
	aml_byte(a, 0x0c);
	aml_byte(a, type_flags);
}

static void window_word(struct aml *a, uint8_t type, uint8_t type_flags, uint16_t first, uint16_t last)
{
	window_head(a, 0x88, 13, type, type_flags);
	aml_word(a, 0);
	aml_word(a, first);
	aml_word(a, last);
	aml_word(a, 0);
	aml_word(a, (uint16_t)(last - first + 1));
}

void aml_window_bus(struct aml *a, uint16_t first, uint16_t last)
{
	window_word(a, 2, 0, first, last);
}

void aml_window_io(struct aml *a, uint16_t first, uint16_t last)
{
	window_word(a, 1, 3 /* the whole range, ISA and not */, first, last);
}

void aml_window_memory32(struct aml *a, uint32_t first, uint32_t last)
{
	window_head(a, 0x87, 23, 0, 1 /* writable, not cacheable */);
	aml_dword(a, 0);
	aml_dword(a, first);
	aml_dword(a, last);
	aml_dword(a, 0);
	aml_dword(a, last - first + 1);
}

void aml_window_memory64(struct aml *a, uint64_t first, uint64_t last)
{
	window_head(a, 0x8a, 43, 0, 1);
	aml_qword(a, 0);
	aml_qword(a, first);
	aml_qword(a, last);
	aml_qword(a, 0);
	aml_qword(a, last - first + 1);
}
