/*
 * Bounded access to untrusted bytes, little endian. A reader or writer that is asked to go past its end sets
 * `overflow` and yields zeroes or drops the bytes; the caller checks once at the end.
 */
#ifndef VMM_BYTES_H
#define VMM_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct byte_reader {
	const uint8_t *data;
	size_t size, pos;
	bool overflow;
};

struct byte_writer {
	uint8_t *data;
	size_t size, pos;
	bool overflow;
};

uint8_t bytes_get8(struct byte_reader *r);
uint16_t bytes_get16(struct byte_reader *r);
uint32_t bytes_get32(struct byte_reader *r);
uint64_t bytes_get64(struct byte_reader *r);
/* Copies n bytes out, or zero-fills dst and sets overflow. */
void bytes_get(struct byte_reader *r, void *dst, size_t n);
/* Moves to an absolute position; past the end sets overflow. */
void bytes_seek(struct byte_reader *r, size_t pos);

void bytes_put8(struct byte_writer *w, uint8_t v);
void bytes_put16(struct byte_writer *w, uint16_t v);
void bytes_put32(struct byte_writer *w, uint32_t v);
void bytes_put64(struct byte_writer *w, uint64_t v);
void bytes_put(struct byte_writer *w, const void *src, size_t n);

/* Unaligned little-endian loads and stores of size 1, 2, 4 or 8 at p. */
uint64_t bytes_load(const void *p, unsigned size);
void bytes_store(void *p, unsigned size, uint64_t v);

/* Parses "512M", "4G", "1.5G", "65536" (suffixes k/K, M, G, T, binary). 0 or -EINVAL/-ERANGE. */
int size_parse(const char *text, uint64_t *size);

#endif
