/*
 * The micro benchmarks: one static program that runs natively and as the init of a Linux guest, so that both run the
 * same machine code. A workload is a row of one of the tables below; micro_main.c selects rows, times them and prints
 *
 *   BENCH name=NAME unit=ns n=ITERATIONS value=DECIMAL check=HEX
 *
 * once per sample: `value` is nanoseconds for one iteration (unit=s: seconds for all n). `check` depends on the row
 * and on n alone, and n on the row and on the scale alone: two engines that disagree about it disagree about the
 * result. Names are lower case with hyphens; compute kernels begin with "k-". docs/bench-workloads.md lists them.
 */
#ifndef MICRO_H
#define MICRO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct workload {
	const char *name;
	uint64_t n;        /* iterations of a sample at scale 1: about 50 ms natively */
	bool total;        /* report the seconds of the whole sample */
	const char *(*missing)(void);            /* why it cannot run here, or NULL; may be NULL */
	void *(*open)(uint64_t n);               /* untimed: makes the same input each time; may be NULL */
	uint64_t (*run)(void *ctx, uint64_t n);  /* timed; returns the checksum */
	uint64_t (*check)(void *ctx);            /* untimed: the checksum instead of run's; may be NULL */
	void (*close)(void *ctx);                /* untimed; may be NULL */
};

/* Each ends with a row without a name. */
extern const struct workload system_workloads[];
extern const struct workload memory_workloads[];
extern const struct workload pointer_kernels[];
extern const struct workload number_kernels[];
extern const struct workload byte_kernels[];
extern const struct workload branch_kernels[];
extern const struct workload data_kernels[];

/* Prints the sentence and ends the program (as init: powers off) without BENCH-END ok. */
void micro_fail(const char *what) __attribute__((noreturn));

/* Zeroed memory, every page touched, with huge pages off so that runs are alike. micro_free() wants the same size. */
void *micro_alloc(size_t size);
void micro_free(void *memory, size_t size);

/* xorshift64 (Marsaglia): the source of all input. */
static inline uint64_t random_next(uint64_t *state)
{
	uint64_t x = *state;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return *state = x;
}

/* Adds a value to a checksum; order matters. */
static inline uint64_t check_mix(uint64_t check, uint64_t value)
{
	check = (check ^ value) * 0x9e3779b97f4a7c15ull;
	return check ^ check >> 29;
}

#endif
