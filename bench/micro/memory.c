/*
 * Memory itself: the latency of a dependent load over growing sizes, and copies of 64 MiB by three kinds of loop. The
 * copies are written out, since the C library's choose by the processor that they find.
 */
#include <immintrin.h>

#include "micro.h"

#define LINE 64u
#define COPY_SIZE (64ull << 20)

/* A cache line that knows the next one. */
struct line {
	struct line *next;
	uint64_t number;
	char rest[LINE - 16];
};

struct chase {
	struct line *lines;
	uint64_t count;
};

/* One cycle through all lines in random order (Sattolo's shuffle of the successor numbers). */
static void *chase_open(uint64_t size)
{
	static struct chase c;
	uint64_t seed = 88172645463325252ull;

	c.count = size / LINE;
	c.lines = micro_alloc(size);
	for (uint64_t i = 0; i < c.count; i++)
		c.lines[i].number = i;
	for (uint64_t i = c.count - 1; i > 0; i--) {
		uint64_t j = random_next(&seed) % i, swap = c.lines[i].number;

		c.lines[i].number = c.lines[j].number;
		c.lines[j].number = swap;
	}
	for (uint64_t i = 0; i < c.count; i++)
		c.lines[i].next = &c.lines[c.lines[i].number];
	return &c;
}

static uint64_t chase_run(void *ctx, uint64_t n)
{
	struct chase *c = ctx;
	struct line *at = c->lines;

	for (uint64_t i = 0; i < n; i++)
		at = at->next;
	return check_mix(c->count, (uint64_t)(at - c->lines));
}

static void chase_close(void *ctx)
{
	struct chase *c = ctx;

	micro_free(c->lines, c->count * LINE);
}

#define CHASE(label, size) \
	static void *chase_open_##label(uint64_t n) { return chase_open(size); }
CHASE(16k, 16u << 10)
CHASE(64k, 64u << 10)
CHASE(256k, 256u << 10)
CHASE(1m, 1u << 20)
CHASE(4m, 4u << 20)
CHASE(16m, 16u << 20)
CHASE(64m, 64u << 20)

struct copy {
	uint8_t *from, *to;
};

static void *copy_open(uint64_t n)
{
	static struct copy c;
	uint64_t seed = 0x2545f4914f6cdd1dull;

	c.from = micro_alloc(COPY_SIZE);
	c.to = micro_alloc(COPY_SIZE);
	for (uint64_t i = 0; i < COPY_SIZE; i += 512)
		*(uint64_t *)(c.from + i + (i >> 9) % 64 * 8) = random_next(&seed);
	return &c;
}

static uint64_t copy_check(void *ctx)
{
	const struct copy *c = ctx;
	uint64_t check = 1;

	for (uint64_t i = 0; i < COPY_SIZE; i += 512)
		check = check_mix(check, *(uint64_t *)(c->to + i + (i >> 9) % 64 * 8));
	return check;
}

static void copy_close(void *ctx)
{
	struct copy *c = ctx;

	micro_free(c->from, COPY_SIZE);
	micro_free(c->to, COPY_SIZE);
}

__attribute__((noinline)) static void copy_sse(uint8_t *to, const uint8_t *from, uint64_t size)
{
	for (uint64_t i = 0; i < size; i += 64) {
		__m128i a = _mm_load_si128((const __m128i *)(from + i)), b = _mm_load_si128((const __m128i *)(from + i + 16));
		__m128i c = _mm_load_si128((const __m128i *)(from + i + 32)), d = _mm_load_si128((const __m128i *)(from + i + 48));

		_mm_store_si128((__m128i *)(to + i), a);
		_mm_store_si128((__m128i *)(to + i + 16), b);
		_mm_store_si128((__m128i *)(to + i + 32), c);
		_mm_store_si128((__m128i *)(to + i + 48), d);
	}
}

__attribute__((noinline, target("avx2"))) static void copy_avx2(uint8_t *to, const uint8_t *from, uint64_t size)
{
	for (uint64_t i = 0; i < size; i += 64) {
		__m256i a = _mm256_load_si256((const __m256i *)(from + i));
		__m256i b = _mm256_load_si256((const __m256i *)(from + i + 32));

		_mm256_store_si256((__m256i *)(to + i), a);
		_mm256_store_si256((__m256i *)(to + i + 32), b);
	}
}

__attribute__((noinline)) static void copy_rep(uint8_t *to, const uint8_t *from, uint64_t size)
{
	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
}

static uint64_t run_copy(struct copy *c, uint64_t n, void (*copy)(uint8_t *, const uint8_t *, uint64_t))
{
	for (uint64_t i = 0; i < n; i++) {
		c->from[0] = (uint8_t)i;
		copy(c->to, c->from, COPY_SIZE);
	}
	return 0;
}

static uint64_t run_copy_sse(void *ctx, uint64_t n) { return run_copy(ctx, n, copy_sse); }
static uint64_t run_copy_avx2(void *ctx, uint64_t n) { return run_copy(ctx, n, copy_avx2); }
static uint64_t run_copy_rep(void *ctx, uint64_t n) { return run_copy(ctx, n, copy_rep); }

static const char *no_avx2(void)
{
	__builtin_cpu_init();
	return __builtin_cpu_supports("avx2") ? NULL : "this processor has no AVX2";
}

#define LATENCY(label, count) \
	{.name = "latency-" #label, .n = count, .open = chase_open_##label, .run = chase_run, .close = chase_close}
#define COPY(label, function, why) \
	{.name = label, .n = 5, .missing = why, .open = copy_open, .run = function, .check = copy_check, .close = copy_close}

const struct workload memory_workloads[] = {
	LATENCY(16k, 20000000),
	LATENCY(64k, 10000000),
	LATENCY(256k, 8000000),
	LATENCY(1m, 3000000),
	LATENCY(4m, 1500000),
	LATENCY(16m, 1000000),
	LATENCY(64m, 500000),
	COPY("memcpy-sse", run_copy_sse, NULL),
	COPY("memcpy-avx2", run_copy_avx2, no_avx2),
	COPY("memcpy-rep", run_copy_rep, NULL),
	{0},
};
