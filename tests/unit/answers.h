/* The answers that a device has published (vmm/bus.h), kept as whoever runs a guest would keep them, for tests to ask. */
#ifndef TESTS_ANSWERS_H
#define TESTS_ANSWERS_H

#include <assert.h>

#include "vmm/bus.h"

#define ANSWERS_MAX 8

struct answers {
	struct bus_answer list[ANSWERS_MAX];
	unsigned count, used;
};

static inline void answers_publish(void *ctx, const struct bus_answer *answer)
{
	struct answers *a = ctx;
	unsigned i = 0;

	while (i < a->count && (a->list[i].space != answer->space || a->list[i].addr != answer->addr))
		i++;
	assert(i < ANSWERS_MAX && answer->den && answer->shift < 64);
	a->list[i] = *answer;
	a->count += i == a->count;
}

/* Reads as an engine would at time now_ns. False: nobody answers, the bus must be asked. */
static inline bool answers_read(const struct answers *a, enum bus_space space, uint64_t addr, unsigned size, uint64_t now_ns,
	uint64_t *value)
{
	for (unsigned i = 0; i < a->count; i++) {
		const struct bus_answer *s = &a->list[i];
		uint64_t passed = (uint64_t)((unsigned __int128)(now_ns - s->start_ns) * s->num / s->den);

		if (s->space != space || s->addr != addr || !(s->sizes & size))
			continue;
		*value = (s->base + passed) >> s->shift;
		if (size < 8)
			*value &= (1ull << 8 * size) - 1;
		return true;
	}
	return false;
}

#endif
