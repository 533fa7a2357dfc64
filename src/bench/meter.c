/*
 * How fast the host is at this moment, measured and not assumed. Four fixed pieces of work, each well under a
 * millisecond, are timed before the first launch, before every other one and after the last:
 *
 *	chain	dependent multiplications: the clock of the processor, and nothing else
 *	wide	independent additions, loads and stores: what is left of a core that a neighbour shares
 *	memory	dependent loads, scattered over 8 MiB: caches and memory that others use too
 *	kernel	mapping, touching and unmapping pages: the host's kernel, and what is under it in a virtual machine
 *
 * A clock that holds says little: on a host with two threads to a core, or with neighbours in the last-level cache,
 * "chain" does not move while everything else takes twice as long. Each piece's time is that of the processor, without
 * what others had of it; that share is told apart, as "busy".
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "bench_internal.h"

const char *const bench_speed_names[BENCH_SPEEDS] = {"chain", "wide", "memory", "kernel"};

#define CHAIN_STEPS 300000
#define WIDE_STEPS 200000
#define MEMORY_STEPS 6000
#define MEMORY_WORDS (8u << 20 >> 2)
#define LINE_WORDS 16
#define KERNEL_PAGES 96

static double cpu_time(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static void chain_run(void)
{
	uint64_t x = 1;

	for (unsigned i = 0; i < CHAIN_STEPS; i++) {
		x = x * 6364136223846793005ull + 1442695040888963407ull;
		__asm__ volatile("" : "+r"(x));
	}
}

static void wide_run(void)
{
	uint64_t table[512] = {0}, a = 1, b = 2, c = 3, d = 4;

	for (unsigned i = 0; i < WIDE_STEPS; i++) {
		a += table[i % 512];
		b ^= a + i;
		c += table[i * 7 % 512];
		d ^= c >> 3;
		table[i * 3 % 512] = d;
		__asm__ volatile("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d) : : "memory");
	}
}

/* One cycle through all lines, in an order that no prefetcher guesses (Sattolo's shuffle of a fixed seed). */
static uint32_t *chase_make(void)
{
	const unsigned lines = MEMORY_WORDS / LINE_WORDS;
	uint32_t *words = malloc(MEMORY_WORDS * sizeof(*words));
	uint64_t seed = 88172645463325252ull;

	for (unsigned i = 0; words && i < lines; i++)
		words[i * LINE_WORDS] = i * LINE_WORDS;
	for (unsigned i = lines - 1; words && i; i--) {
		unsigned j = (unsigned)(bench_random(&seed) % i) * LINE_WORDS;
		uint32_t other = words[j];

		words[j] = words[i * LINE_WORDS];
		words[i * LINE_WORDS] = other;
	}
	return words;
}

static void memory_run(struct bench_meter *meter)
{
	for (unsigned i = 0; meter->chase && i < MEMORY_STEPS; i++)
		meter->at = meter->chase[meter->at];
}

static void kernel_run(void)
{
	const size_t size = KERNEL_PAGES * 4096;
	volatile char *pages = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (pages == MAP_FAILED)
		return;
	for (size_t at = 0; at < size; at += 4096)
		pages[at] = 1;
	munmap((void *)pages, size);
}

static void piece_run(struct bench_meter *meter, unsigned kind)
{
	switch (kind) {
	case BENCH_CHAIN:
		chain_run();
		break;
	case BENCH_WIDE:
		wide_run();
		break;
	case BENCH_MEMORY:
		memory_run(meter);
		break;
	default:
		kernel_run();
		break;
	}
}

void bench_meter_run(struct bench_meter *meter, struct bench_speed *speed)
{
	double times[BENCH_SPEEDS][BENCH_BATCH], wall = 0, cpu = 0;

	if (!meter->chase)
		meter->chase = chase_make();
	for (unsigned i = 0; i < BENCH_BATCH; i++)
		for (unsigned kind = 0; kind < BENCH_SPEEDS; kind++) {
			uint64_t began = bench_now();
			double before = cpu_time();

			piece_run(meter, kind);
			times[kind][i] = cpu_time() - before;
			cpu += times[kind][i];
			wall += (double)(bench_now() - began);
		}
	for (unsigned kind = 0; kind < BENCH_SPEEDS; kind++)
		speed->ns[kind] = bench_median(times[kind], BENCH_BATCH);
	speed->busy = wall > 0 ? fmin(fmax(0, 1 - cpu / wall), 0.99) : 0;
	if (meter->count < BENCH_STOPS_MAX)
		meter->stops[meter->count++] = *speed;
}

void bench_meter_read(const struct bench_meter *meter, struct bench_noise *noise)
{
	double values[BENCH_STOPS_MAX], sum = 0;

	memset(noise, 0, sizeof(*noise));
	noise->stops = meter->count;
	for (unsigned kind = 0; kind < BENCH_SPEEDS; kind++) {
		for (unsigned i = 0; i < meter->count; i++)
			values[i] = meter->stops[i].ns[kind];
		noise->median_ns[kind] = bench_median(values, meter->count);
		noise->low_ns[kind] = bench_quantile(values, meter->count, 0.05);
		noise->high_ns[kind] = bench_quantile(values, meter->count, 0.95);
	}
	for (unsigned i = 0; i < meter->count; i++)
		sum += meter->stops[i].busy;
	noise->busy = meter->count ? sum / meter->count : 0;
}

void bench_meter_drop(struct bench_meter *meter)
{
	free(meter->chase);
	meter->chase = NULL;
}
