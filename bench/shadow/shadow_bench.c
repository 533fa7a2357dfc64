/*
 * What the shadow's operations cost on this host: fills, flushes, CR3 writes (docs/shadow.md has a run). Median and least of the rounds, CPU time in ns.
 * Fills are the call alone: translated code pays a signal before it (1.2 µs where this was written).
 */
#define FIXTURE_RAM (256u << 20)

#include <time.h>

#include "engine/shadow.h"
#include "engine_fixture.h"

#define TABLES 0x1000000u /* 16 MiB: below it there is nothing of interest */
#define DATA 0x2000000u
#define ROUNDS 31
#define TABLE_PAGES 32 /* page tables of each address space: 64 MiB */

static struct fixture f;
static struct shadow_deltas deltas;

static double now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void report(const char *what, double *samples, double each)
{
	qsort(samples, ROUNDS, sizeof(*samples), compare);
	printf("%-58s %10.0f %10.0f\n", what, samples[ROUNDS / 2] / each, samples[0] / each);
}

static uint64_t pt(unsigned space, unsigned n)
{
	return TABLES + space * 0x100000 + (3 + n) * 4096ull;
}

/* Address space `space`: user pages at 0 … 64 MiB, frames in an order that merges with no neighbour, or with all. */
static void build(unsigned space, bool scattered)
{
	uint64_t base = TABLES + space * 0x100000;

	fixture_put64(&f, base, (base + 0x1000) | 0x27);
	fixture_put64(&f, base + 0x1000, (base + 0x2000) | 0x27);
	for (unsigned n = 0; n < TABLE_PAGES; n++) {
		fixture_put64(&f, base + 0x2000 + n * 8, pt(space, n) | 0x27);
		for (unsigned i = 0; i < 512; i++)
			fixture_put64(&f, pt(space, n) + i * 8, (DATA + (n * 512ull + (scattered ? i * 37 % 512 : i)) * 4096) | 0x67);
	}
	/* The kernel's direct map of it all in 2 MiB pages, global. */
	fixture_put64(&f, base + 273 * 8, (TABLES + 0xf00000) | 0x23);
	fixture_put64(&f, TABLES + 0xf00000, (TABLES + 0xf01000) | 0x23);
	for (unsigned n = 0; n < FIXTURE_RAM >> 21; n++)
		fixture_put64(&f, TABLES + 0xf01000 + n * 8, (uint64_t)n << 21 | 0x1e3);
}

static void forget(unsigned space)
{
	fixture_put64(&f, TABLES + space * 0x100000, 0);
	mmu_flush_all(f.engine);
	build(space, false);
	fixture_put64(&f, TABLES + space * 0x100000 + 0x1000, 0);
	mmu_flush_all(f.engine);
}

static void touch(unsigned tables, unsigned step)
{
	f.engine->cpl = 3;
	for (uint64_t gva = 0; gva < (uint64_t)tables << 21; gva += step * 4096ull)
		shadow_fill(f.engine, gva, true);
}

static void measure_fills(void)
{
	double small[ROUNDS], run[ROUNDS], upgrade[ROUNDS], direct[ROUNDS], start;

	for (unsigned r = 0; r < ROUNDS; r++) {
		forget(0);
		build(0, true);
		start = now_ns();
		touch(1, 1);
		small[r] = now_ns() - start;
		forget(0);
		build(0, false);
		start = now_ns();
		touch(1, 1);
		run[r] = now_ns() - start;
		for (unsigned i = 0; i < 64; i++) {
			fixture_put64(&f, pt(0, 0) + i * 64, (DATA + i * 0x8000) | 0x27);
			mmu_flush_page(f.engine, i * 0x8000);
			shadow_fill(f.engine, i * 0x8000, false);
			fixture_put64(&f, pt(0, 0) + i * 64, (DATA + i * 0x8000) | 0x67);
		}
		start = now_ns();
		for (unsigned i = 0; i < 64; i++)
			shadow_fill(f.engine, i * 0x8000, true);
		upgrade[r] = now_ns() - start;
		f.engine->cpl = 0;
		fixture_put64(&f, TABLES + 273 * 8, 0);
		mmu_flush_all(f.engine);
		fixture_put64(&f, TABLES + 273 * 8, (TABLES + 0xf00000) | 0x23);
		fixture_put64(&f, TABLES + 0xf00000, 0);
		mmu_flush_all(f.engine);
		fixture_put64(&f, TABLES + 0xf00000, (TABLES + 0xf01000) | 0x23);
		start = now_ns();
		shadow_fill(f.engine, 0xffff888000000000ull + DATA, true);
		direct[r] = now_ns() - start;
	}
	report("fill, a 4 KiB page that merges with no neighbour", small, 512);
	report("fill, contiguous 4 KiB pages, a page", run, 512);
	report("fill, read-only to writable", upgrade, 64);
	report("fill, first of a direct map of 256 MiB in 2 MiB pages", direct, 1);
}

static void measure_flushes(void)
{
	double same[ROUNDS], gone[ROUNDS], alternate[ROUNDS], all[ROUNDS], code[ROUNDS], start;

	double range[ROUNDS];

	for (unsigned r = 0; r < ROUNDS; r++) {
		forget(0);
		build(0, true);
		touch(1, 1);
		start = now_ns();
		for (unsigned i = 0; i < 512; i++)
			shadow_flush_page(f.engine, i * 4096ull);
		same[r] = now_ns() - start;
		start = now_ns();
		for (unsigned i = 0; i < 64; i++) {
			fixture_put64(&f, pt(0, 0) + i * 32, 0);
			shadow_flush_page(f.engine, i * 0x4000);
		}
		gone[r] = now_ns() - start;
		for (unsigned i = 0; i < 33; i++)
			fixture_put64(&f, pt(0, 0) + (256 + i) * 8, 0);
		start = now_ns();
		for (unsigned i = 0; i < 33; i++)
			shadow_flush_page(f.engine, (256 + i) * 4096);
		range[r] = now_ns() - start;
		forget(0);
		build(0, true);
		touch(1, 1);
		for (unsigned i = 0; i < 512; i += 2)
			fixture_put64(&f, pt(0, 0) + i * 8, 0);
		start = now_ns();
		shadow_set_root(f.engine, false);
		alternate[r] = now_ns() - start;
		forget(0);
		build(0, true);
		touch(1, 1);
		memset(f.ram + pt(0, 0), 0, 4096);
		start = now_ns();
		shadow_set_root(f.engine, false);
		all[r] = now_ns() - start;
		f.engine->cpl = 0;
		fixture_put64(&f, TABLES + 0xf00000, (TABLES + 0xf01000) | 0x23);
		shadow_fill(f.engine, 0xffff888000000000ull + DATA, true);
		start = now_ns();
		for (unsigned i = 0; i < 64; i++)
			shadow_protect_code(f.engine, (DATA >> 12) + 0x4000 + i * 2 + r * 256);
		code[r] = now_ns() - start;
	}
	report("INVLPG, nothing has changed", same, 512);
	report("INVLPG, the page is gone", gone, 64);
	report("33 INVLPGs after as many pages have gone", range, 1);
	report("CR3 write, 512 pages gone from one table: one munmap", all, 1);
	report("CR3 write, every other page gone: 256 munmaps", alternate, 1);
	report("a page in the direct map becomes code", code, 64);
}

static void measure_switches(void)
{
	static const unsigned tables[] = { 1, 8, 32 };

	for (unsigned n = 0; n < 3; n++) {
		double compared[ROUNDS], kept[ROUNDS], start;
		char what[80];

		for (unsigned space = 0; space < 2; space++) {
			build(space, false);
			system_set_cr3(f.engine, (TABLES + space * 0x100000) | (space + 1));
			touch(tables[n], 1);
			f.engine->cpl = 0;
			shadow_fill(f.engine, 0xffff888000000000ull + DATA, true);
		}
		for (unsigned r = 0; r < ROUNDS; r++) {
			start = now_ns();
			for (unsigned i = 0; i < 100; i++) {
				f.cpu->cr3 = (TABLES + (i & 1) * 0x100000) | ((i & 1) + 1);
				shadow_set_root(f.engine, false);
			}
			compared[r] = now_ns() - start;
			start = now_ns();
			for (unsigned i = 0; i < 100; i++) {
				f.cpu->cr3 = (TABLES + (i & 1) * 0x100000) | ((i & 1) + 1);
				shadow_set_root(f.engine, true);
			}
			kept[r] = now_ns() - start;
		}
		snprintf(what, sizeof(what), "CR3 write, to a space of %u page tables, compared", tables[n]);
		report(what, compared, 100);
		snprintf(what, sizeof(what), "CR3 write, to a space of %u page tables, PCID kept", tables[n]);
		report(what, kept, 100);
	}
}

int main(void)
{
	fixture_open(&f);
	build(0, false);
	build(1, false);
	memset(f.ram + DATA, 1, FIXTURE_RAM - DATA); /* no holes */
	f.cpu->cr4 |= CR4_PGE | CR4_PCIDE;
	f.cpu->cr3 = TABLES;
	if (shadow_create(f.engine, f.ram_fd, SHADOW_UNSYNC, &deltas)) {
		fprintf(stderr, "shadow: the address space cannot be taken\n");
		return 1;
	}
	measure_fills();
	measure_flushes();
	measure_switches();
	fixture_close(&f);
	return 0;
}
