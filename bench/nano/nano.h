/*
 * The nano benchmarks: what single operations of the machine cost, in cycles of the time-stamp counter. nano_run.c
 * selects rows, finds how many operations fill a sample, subtracts an empty loop and prints one line per sample:
 *
 *   BENCH name=NAME unit=cycles n=OPERATIONS value=DECIMAL check=HEX
 *   BENCH-SKIP name=NAME why=SENTENCE      the machine does not offer it
 *   BENCH-FAIL name=NAME why=SENTENCE      it did the wrong thing; BENCH-END then says failed
 *
 * The value may be a little below zero where the operation costs less than the loop's own variation. `check` depends on
 * the name alone. Rows that ring 3 may run (nano_user.c) are also in the native twin (native_main.c); the others are
 * the bare-metal guest's. Everything here is freestanding, built with general registers only.
 */
#ifndef NANO_H
#define NANO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct nano_row {
	const char *name;
	const char *(*missing)(void);  /* why it cannot run here, or NULL; also sets up; may be NULL */
	uint64_t (*run)(uint64_t n);   /* does n operations at least, returns their cycles for exactly n */
	void (*finish)(void);          /* undoes missing(); may be NULL */
	bool raw;                      /* no loop to subtract: run() took care of it */
};

/* Each table ends with a row without a name. */
extern const struct nano_row nano_user_rows[];
extern const struct nano_row nano_cpu_rows[];
extern const struct nano_row nano_paging_rows[];
extern const struct nano_row nano_device_rows[];
extern const struct nano_row nano_hypercall_rows[];

/* A row's run() found a wrong result. The sentence is printed. */
void nano_wrong(const char *why);

/*
 * Runs the rows named in `words` (blank-separated: bench=NAME,… repeat=N cycles=N; the first word is the program and is
 * passed over) of the tables, which end with NULL. Returns 0, or 1 if a row went wrong.
 */
int nano_run(const char *words, const struct nano_row *const *tables);

/* Provided by the program: console output, and memory for the walks with `pages` pages of the size mapped one after the
 * other (NULL: there is none; *why says so). */
void nano_print(const char *text);
void *nano_walk_area(bool large, unsigned pages, const char **why);

/*
 * A walk: a circular chain of loads, each from a page of its own, at an address that the load before it told; so none
 * can begin before the one before it has ended. Within the pages the addresses move by a cache line each, or all would
 * share one set of the cache; in large pages by 4 KiB too, or all would share one set of a TLB that holds 4 KiB pieces.
 */
#define WALK_STEP(page_size) ((page_size) + 64u + ((page_size) > 4096u ? 4096u : 0))
void nano_walk_prepare(void *area, unsigned pages, uint64_t page_size);
uint64_t nano_walk(void *area, unsigned pages, uint64_t page_size, uint64_t loads);
#define WALK_4K_PAGES 480u
#define WALK_2M_PAGES 24u

static inline uint64_t nano_ticks(void)
{
	uint32_t lo, hi;

	__asm__ volatile("lfence\n\trdtsc\n\tlfence" : "=a"(lo), "=d"(hi) : : "memory");
	return (uint64_t)hi << 32 | lo;
}

/*
 * Cycles of `setup` and then n times `body`. They may change AX, BX, CX, DX, R8, R11, the flags and memory; numeric
 * labels begin with 2.
 */
#define NANO_LOOP_AFTER(setup, n, body, ...) \
	({ \
		uint64_t nano_left = (n), nano_start = nano_ticks(); \
		__asm__ volatile(setup "\n\t.balign 64\n1:\t" body "\n\tdec %[left]\n\tjnz 1b" \
			: [left] "+r"(nano_left) : __VA_ARGS__ : "rax", "rbx", "rcx", "rdx", "r8", "r11", "memory", "cc"); \
		nano_ticks() - nano_start; \
	})
#define NANO_LOOP(n, body, ...) NANO_LOOP_AFTER("", n, body, __VA_ARGS__)

#endif
