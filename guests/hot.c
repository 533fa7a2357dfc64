/*
 * Loops that run for a while, so that a translator finds them by looking where the guest is from time to time, while they run:
 * a branch back over memory, a call and an indirect call in a loop. Each pass has the same result.
 * tests/guests/counters looks whether anything was found.
 */
#include "guest.h"

#define CYCLES 700000000ull /* a fifth of a second and more, for each */
#define COUNT 512

static uint32_t data[COUNT];

static __attribute__((noinline)) uint32_t mix(uint32_t x)
{
	return x * 2654435761u ^ x >> 15;
}

static __attribute__((noinline)) uint32_t step(uint32_t x)
{
	return x + 12345;
}

static __attribute__((noinline)) uint32_t sum(void)
{
	uint32_t total = 0;

	for (unsigned n = 0; n < COUNT; n++)
		if (data[n] & 1)
			total += data[n] ^ n;
		else
			data[n] += 0;
	return total;
}

static __attribute__((noinline)) uint32_t call(void)
{
	uint32_t total = 0;

	for (unsigned n = 0; n < COUNT; n++)
		total = mix(total + data[n]);
	return total;
}

static __attribute__((noinline)) uint32_t call_indirect(void)
{
	static uint32_t (*volatile const functions[2])(uint32_t) = {mix, step};
	uint32_t total = 0;

	for (unsigned n = 0; n < COUNT; n++)
		total = functions[data[n] & 1](total + n);
	return total;
}

static void run(const char *done, uint32_t (*pass)(void))
{
	uint64_t end = rdtsc() + CYCLES;
	uint32_t first = pass();

	do {
		for (unsigned n = 0; n < 16; n++)
			CHECK(pass() == first);
	} while (rdtsc() < end);
	say(done);
}

int guest_main(void)
{
	uint32_t x = 1;

	for (unsigned n = 0; n < COUNT; n++)
		data[n] = x = mix(x + n);
	run("hot: a loop ok", sum);
	run("hot: calls ok", call);
	run("hot: indirect calls ok", call_indirect);
	return 0;
}
