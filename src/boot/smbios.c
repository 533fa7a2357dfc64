/*
 * The structures, each a formatted part and its strings (DSP0134, 6.1):
 *
 *   0 type | 1 length of the formatted part | 2 handle | 4 … fields | strings, each with a zero | a zero more
 *
 *   100h system   300h chassis   400h… processors   1000h memory   1100h… modules   1300h… address ranges   2000h boot status
 */
#include "vmm/boot_smbios.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/bytes.h"

#define FIXED_MAX 64u
#define HANDLE_MEMORY 0x1000
#define HANDLE_MODULE 0x1100
#define UNKNOWN 2
#define OTHER 1
#define MODULE_MAX (16ull << 30)

struct builder {
	uint8_t *data;
	size_t size, room;
	size_t largest;
	unsigned count;
	int failed;
};

struct structure {
	uint8_t fixed[FIXED_MAX];
	uint8_t length;
	char strings[128];
	size_t strings_size;
	uint8_t string_count;
};

static struct structure begin(uint8_t type, uint8_t length, uint16_t handle)
{
	struct structure s = {.length = length};

	s.fixed[0] = type;
	s.fixed[1] = length;
	bytes_store(s.fixed + 2, 2, handle);
	return s;
}

/* The number by which the field refers to it. */
static void put_string(struct structure *s, unsigned field, const char *text)
{
	size_t n = strlen(text) + 1;

	if (s->strings_size + n > sizeof(s->strings))
		return;
	memcpy(s->strings + s->strings_size, text, n);
	s->strings_size += n;
	s->fixed[field] = ++s->string_count;
}

static void put(struct structure *s, unsigned field, unsigned size, uint64_t value)
{
	bytes_store(s->fixed + field, size, value);
}

static void end(struct builder *b, const struct structure *s)
{
	size_t strings = s->strings_size ? s->strings_size + 1 : 2, n = s->length + strings;

	if (b->size + n > b->room) {
		size_t room = (b->room + n) * 2;
		uint8_t *data = realloc(b->data, room);

		if (!data) {
			b->failed = 1;
			return;
		}
		b->data = data;
		b->room = room;
	}
	memcpy(b->data + b->size, s->fixed, s->length);
	memset(b->data + b->size + s->length, 0, strings);
	memcpy(b->data + b->size + s->length, s->strings, s->strings_size);
	b->size += n;
	b->count++;
	if (n > b->largest)
		b->largest = n;
}

/* 7.2 */
static void add_system(struct builder *b)
{
	struct structure s = begin(1, 27, 0x100);

	put_string(&s, 4, "vmm");
	put_string(&s, 5, "Virtual machine");
	put_string(&s, 6, VMM_VERSION);
	put(&s, 24, 1, 6); /* woken by the power switch */
	end(b, &s);
}

/* 7.4 */
static void add_chassis(struct builder *b)
{
	struct structure s = begin(3, 22, 0x300);

	put_string(&s, 4, "vmm");
	put(&s, 5, 1, OTHER);
	put(&s, 9, 1, 3); /* boot-up, power supply, thermal: safe */
	put(&s, 10, 1, 3);
	put(&s, 11, 1, 3);
	put(&s, 12, 1, UNKNOWN);
	end(b, &s);
}

/* 7.5 */
static void add_processor(struct builder *b, unsigned n)
{
	struct structure s = begin(4, 42, (uint16_t)(0x400 + n));

	put_string(&s, 4, "CPU");
	put(&s, 5, 1, 3);    /* central processor */
	put(&s, 6, 1, 0xfe); /* family: see family 2 */
	put_string(&s, 7, "vmm");
	put_string(&s, 16, "common");
	put(&s, 24, 1, 0x41); /* socket populated, enabled */
	put(&s, 25, 1, OTHER);
	put(&s, 26, 2, 0xffff); /* no cache is described */
	put(&s, 28, 2, 0xffff);
	put(&s, 30, 2, 0xffff);
	put(&s, 35, 1, 1); /* cores, enabled, threads */
	put(&s, 36, 1, 1);
	put(&s, 37, 1, 1);
	put(&s, 38, 2, 0x4); /* 64-bit */
	put(&s, 40, 2, OTHER);
	end(b, &s);
}

/* 7.17, 7.18: modules of 16 GiB at most. */
static void add_memory(struct builder *b, uint64_t ram)
{
	unsigned modules = (unsigned)((ram + MODULE_MAX - 1) / MODULE_MAX);
	struct structure s = begin(16, 23, HANDLE_MEMORY);

	put(&s, 4, 1, 3); /* system board */
	put(&s, 5, 1, 3); /* system memory */
	put(&s, 6, 1, 3); /* no error correction */
	put(&s, 7, 4, 0x80000000);
	put(&s, 11, 2, 0xfffe); /* no error information */
	put(&s, 13, 2, modules);
	put(&s, 15, 8, ram);
	end(b, &s);
	for (unsigned n = 0; n < modules; n++) {
		uint64_t left = ram - n * MODULE_MAX, size = left < MODULE_MAX ? left : MODULE_MAX;

		s = begin(17, 40, (uint16_t)(HANDLE_MODULE + n));
		put(&s, 4, 2, HANDLE_MEMORY);
		put(&s, 6, 2, 0xfffe);
		put(&s, 8, 2, 0xffff);
		put(&s, 10, 2, 0xffff);
		put(&s, 12, 2, size >> 20);
		put(&s, 14, 1, 9); /* DIMM */
		put_string(&s, 16, "DIMM");
		put(&s, 18, 1, 7); /* RAM */
		put(&s, 19, 2, OTHER);
		put_string(&s, 23, "vmm");
		end(b, &s);
	}
}

/* 7.20: KiB, or bytes in the extended fields. */
static void add_range(struct builder *b, unsigned n, uint64_t start, uint64_t size)
{
	struct structure s = begin(19, 31, (uint16_t)(0x1300 + n));
	uint64_t last = start + size - 1;

	if (!size)
		return;
	put(&s, 4, 4, last >> 10 < UINT32_MAX ? start >> 10 : UINT32_MAX);
	put(&s, 8, 4, last >> 10 < UINT32_MAX ? last >> 10 : UINT32_MAX);
	put(&s, 12, 2, HANDLE_MEMORY);
	put(&s, 14, 1, 1);
	if (last >> 10 >= UINT32_MAX) {
		put(&s, 15, 8, start);
		put(&s, 23, 8, last);
	}
	end(b, &s);
}

/* 5.2.1 */
static void write_anchor(const struct builder *b, uint8_t *a)
{
	uint8_t sum = 0;

	memset(a, 0, SMBIOS_ANCHOR_SIZE);
	memcpy(a, "_SM_", 4);
	a[5] = SMBIOS_ANCHOR_SIZE;
	a[6] = 2;
	a[7] = 8;
	bytes_store(a + 8, 2, b->largest);
	memcpy(a + 16, "_DMI_", 5);
	bytes_store(a + 22, 2, b->size);
	bytes_store(a + 28, 2, b->count);
	a[30] = 0x28;
	for (unsigned i = 16; i < SMBIOS_ANCHOR_SIZE; i++)
		sum += a[i];
	a[21] = (uint8_t)-sum;
	for (unsigned i = sum = 0; i < SMBIOS_ANCHOR_SIZE; i++)
		sum += a[i];
	a[4] = (uint8_t)-sum;
}

int smbios_build(unsigned cpus, uint64_t ram_low, uint64_t ram_high, struct smbios_tables *tables, struct error *err)
{
	struct builder b = {0};
	struct structure s;

	add_system(&b);
	add_chassis(&b);
	for (unsigned n = 0; n < cpus; n++)
		add_processor(&b, n);
	add_memory(&b, ram_low + ram_high);
	add_range(&b, 0, 0, ram_low);
	add_range(&b, 1, 1ull << 32, ram_high);
	s = begin(32, 11, 0x2000);
	end(&b, &s);
	s = begin(127, 4, 0x7f00);
	end(&b, &s);
	if (b.failed || b.size > UINT16_MAX) {
		free(b.data);
		return error_set(err, -ENOMEM, "no memory for the SMBIOS tables");
	}
	write_anchor(&b, tables->anchor);
	tables->tables = b.data;
	tables->size = b.size;
	return 0;
}
