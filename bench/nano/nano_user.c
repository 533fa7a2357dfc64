/*
 * Rows that any ring may run, the same code in the guest and in the native twin: a call and return, RDTSC, CPUID, and
 * walks over warm translations.
 */
#include "nano.h"

__asm__(".text\n\t.balign 64\n\t.globl nano_empty\nnano_empty:\n\tret\n");

static uint64_t run_callret(uint64_t n)
{
	return NANO_LOOP(n, "call nano_empty");
}

static uint64_t run_rdtsc(uint64_t n)
{
	return NANO_LOOP(n, "rdtsc");
}

static uint64_t run_cpuid(uint64_t n)
{
	return NANO_LOOP(n, "xor %%eax, %%eax\n\txor %%ecx, %%ecx\n\tcpuid");
}

void nano_walk_prepare(void *area, unsigned pages, uint64_t page_size)
{
	char *at = area;

	for (unsigned i = 0; i < pages; i++, at += WALK_STEP(page_size))
		*(volatile uint64_t *)at = i + 1 < pages ? WALK_STEP(page_size) : -((uint64_t)pages - 1) * WALK_STEP(page_size);
}

uint64_t nano_walk(void *area, unsigned pages, uint64_t page_size, uint64_t loads)
{
	uint64_t at = (uint64_t)area, left = loads, start = nano_ticks(), end;

	__asm__ volatile(".balign 64\n1:\tadd (%0), %0\n\tdec %1\n\tjnz 1b" : "+r"(at), "+r"(left) : : "memory", "cc");
	end = nano_ticks();
	if (at != (uint64_t)area + loads % pages * WALK_STEP(page_size))
		nano_wrong("the walk did not end at its end");
	return end - start;
}

static void *area;

static const char *missing_4k(void)
{
	const char *why = NULL;

	area = nano_walk_area(false, WALK_4K_PAGES, &why);
	if (!why)
		nano_walk_prepare(area, WALK_4K_PAGES, 4096);
	return why;
}

static const char *missing_2m(void)
{
	const char *why = NULL;

	area = nano_walk_area(true, WALK_2M_PAGES, &why);
	if (!why)
		nano_walk_prepare(area, WALK_2M_PAGES, 2 << 20);
	return why;
}

static uint64_t run_walk_4k(uint64_t n) { return nano_walk(area, WALK_4K_PAGES, 4096, n); }
static uint64_t run_walk_2m(uint64_t n) { return nano_walk(area, WALK_2M_PAGES, 2 << 20, n); }

const struct nano_row nano_user_rows[] = {
	{.name = "callret", .run = run_callret},
	{.name = "rdtsc", .run = run_rdtsc},
	{.name = "cpuid", .run = run_cpuid},
	{.name = "walk-4k-warm", .missing = missing_4k, .run = run_walk_4k, .raw = true},
	{.name = "walk-2m-warm", .missing = missing_2m, .run = run_walk_2m, .raw = true},
	{0},
};
