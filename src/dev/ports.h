/* Splits wide port accesses of byte-wide devices into bytes, as the ISA bus does, lowest address first. */
#ifndef DEV_PORTS_H
#define DEV_PORTS_H

#include <stdint.h>

static inline uint64_t ports_read(void *dev, uint64_t offset, unsigned size, uint8_t (*read)(void *, unsigned))
{
	uint64_t value = 0;

	for (unsigned i = 0; i < size; i++)
		value |= (uint64_t)read(dev, (unsigned)offset + i) << 8 * i;
	return value;
}

static inline void ports_write(void *dev, uint64_t offset, unsigned size, uint64_t value,
	void (*write)(void *, unsigned, uint8_t))
{
	for (unsigned i = 0; i < size; i++)
		write(dev, (unsigned)offset + i, (uint8_t)(value >> 8 * i));
}

/* a·b/c without overflow of the product. c must not be 0 and the result must fit. */
static inline uint64_t muldiv64(uint64_t a, uint64_t b, uint64_t c)
{
	return (uint64_t)((unsigned __int128)a * b / c);
}

/* The same, rounded up. */
static inline uint64_t muldiv64_up(uint64_t a, uint64_t b, uint64_t c)
{
	return (uint64_t)(((unsigned __int128)a * b + c - 1) / c);
}

#endif
