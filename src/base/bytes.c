/* Bounded little-endian access to untrusted bytes; see vmm/bytes.h for the contract. */
#include "vmm/bytes.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>

uint64_t bytes_load(const void *p, unsigned size)
{
	const uint8_t *b = p;
	uint64_t v = 0;

	for (unsigned i = 0; i < size; i++)
		v |= (uint64_t)b[i] << (8 * i);
	return v;
}

void bytes_store(void *p, unsigned size, uint64_t v)
{
	uint8_t *b = p;

	for (unsigned i = 0; i < size; i++)
		b[i] = v >> (8 * i);
}

void bytes_get(struct byte_reader *r, void *dst, size_t n)
{
	if (r->pos > r->size || n > r->size - r->pos) {
		r->overflow = true;
		memset(dst, 0, n);
		return;
	}
	memcpy(dst, r->data + r->pos, n);
	r->pos += n;
}

static uint64_t reader_next(struct byte_reader *r, unsigned size)
{
	uint8_t raw[8];

	bytes_get(r, raw, size);
	return bytes_load(raw, size);
}

uint8_t bytes_get8(struct byte_reader *r)
{
	return reader_next(r, 1);
}

uint16_t bytes_get16(struct byte_reader *r)
{
	return reader_next(r, 2);
}

uint32_t bytes_get32(struct byte_reader *r)
{
	return reader_next(r, 4);
}

uint64_t bytes_get64(struct byte_reader *r)
{
	return reader_next(r, 8);
}

void bytes_seek(struct byte_reader *r, size_t pos)
{
	if (pos > r->size) {
		r->overflow = true;
		pos = r->size;
	}
	r->pos = pos;
}

void bytes_put(struct byte_writer *w, const void *src, size_t n)
{
	if (w->pos > w->size || n > w->size - w->pos) {
		w->overflow = true;
		return;
	}
	memcpy(w->data + w->pos, src, n);
	w->pos += n;
}

static void writer_next(struct byte_writer *w, unsigned size, uint64_t v)
{
	uint8_t raw[8];

	bytes_store(raw, size, v);
	bytes_put(w, raw, size);
}

void bytes_put8(struct byte_writer *w, uint8_t v)
{
	writer_next(w, 1, v);
}

void bytes_put16(struct byte_writer *w, uint16_t v)
{
	writer_next(w, 2, v);
}

void bytes_put32(struct byte_writer *w, uint32_t v)
{
	writer_next(w, 4, v);
}

void bytes_put64(struct byte_writer *w, uint64_t v)
{
	writer_next(w, 8, v);
}

/* log2 of the unit that a suffix names, or -1. */
static int suffix_shift(char c)
{
	switch (c) {
	case '\0': return 0;
	case 'k': case 'K': return 10;
	case 'm': case 'M': return 20;
	case 'g': case 'G': return 30;
	case 't': case 'T': return 40;
	default: return -1;
	}
}

int size_parse(const char *text, uint64_t *size)
{
	const char *p = text;
	uint64_t whole = 0, fraction = 0, scale = 1;
	int shift;

	if (!isdigit((unsigned char)*p))
		return -EINVAL;
	for (; isdigit((unsigned char)*p); p++)
		if (__builtin_mul_overflow(whole, 10, &whole) || __builtin_add_overflow(whole, *p - '0', &whole))
			return -ERANGE;
	if (*p == '.') {
		p++;
		if (!isdigit((unsigned char)*p))
			return -EINVAL;
		/* Six decimals: scale << 40 still fits in 64 bits. */
		for (; isdigit((unsigned char)*p); p++) {
			if (scale >= 1000000)
				continue;
			fraction = fraction * 10 + (*p - '0');
			scale *= 10;
		}
	}
	shift = suffix_shift(*p);
	if (shift < 0 || (*p && p[1]) || (scale > 1 && !shift))
		return -EINVAL;
	if (whole > UINT64_MAX >> shift)
		return -ERANGE;
	if (__builtin_add_overflow(whole << shift, (fraction << shift) / scale, size))
		return -ERANGE;
	return 0;
}
