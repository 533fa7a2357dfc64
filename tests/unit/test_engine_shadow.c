/*
 * The shadow: what translated code reaches through the deltas is what the guest's tables say, at every point where the
 * architecture says that it must be; and nothing else.
 */
#include <check.h>
#include <setjmp.h>
#include <signal.h>

#include "run_suite.h"
#include "engine/shadow_internal.h"
#include "engine_fixture.h"

#define STAMP 0xff0 /* each page of RAM holds its number here; no table below uses this entry */
#define PAGES (FIXTURE_RAM / 4096)
#if defined(__SANITIZE_ADDRESS__)
#define MAY_HOARD false /* the sanitizer does not live without mappings of its own */
#else
#define MAY_HOARD true
#endif

static struct fixture f;
static struct shadow_deltas deltas;
static sigjmp_buf probe_jump;

static void on_segv(int sig)
{
	siglongjmp(probe_jump, 1);
}

static void stamp_all(void)
{
	for (unsigned n = 0; n < PAGES; n++)
		fixture_put64(&f, n * 4096ull + STAMP, n);
}

static void assert_stamps(void)
{
	for (unsigned n = 0; n < PAGES; n++)
		ck_assert_uint_eq(fixture_get64(&f, n * 4096ull + STAMP), n);
}

static void open_policy(enum shadow_policy policy)
{
	struct sigaction action = { .sa_handler = on_segv, .sa_flags = SA_NODEFER };

	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	fixture_open(&f);
	stamp_all();
	for (unsigned n = 0; n < 512; n++) /* A and D */
		fixture_put64(&f, FIXTURE_PML4 + 0x3000 + n * 8, n * 0x1000ull | 0x67);
	fixture_put64(&f, FIXTURE_PML4, (FIXTURE_PML4 + 0x1000) | 0x27);
	fixture_put64(&f, FIXTURE_PML4 + 0x1000, (FIXTURE_PML4 + 0x2000) | 0x27);
	fixture_put64(&f, FIXTURE_PML4 + 0x2000, (FIXTURE_PML4 + 0x3000) | 0x27);
	fixture_put64(&f, FIXTURE_PML4 + 0x2008, 0x200000 | 0xe7);
	ck_assert_int_eq(shadow_create(f.engine, f.ram_fd, policy, &deltas), 0);
	ck_assert_ptr_nonnull(f.engine->shadow);
}

static void open_unsync(void)
{
	open_policy(SHADOW_UNSYNC);
}

static void close_all(void)
{
	fixture_close(&f);
	signal(SIGSEGV, SIG_DFL);
	signal(SIGBUS, SIG_DFL);
}

/* The stamp behind gva in a view, −1 if the access faults. A write puts back what a read has found. */
static int64_t probe(enum shadow_view view, uint64_t gva, bool is_write)
{
	uint64_t hva = (gva & ~0xfffull) + STAMP + deltas.delta[view][(gva >> 39) & 511], value;

	if (sigsetjmp(probe_jump, 1))
		return -1;
	__asm__ volatile("mov (%1), %0" : "=r"(value) : "r"(hva) : "memory");
	if (is_write)
		__asm__ volatile("mov %0, (%1)" : : "r"(value), "r"(hva) : "memory");
	return (int64_t)value;
}

static bool fill(enum shadow_view view, uint64_t gva, bool is_write)
{
	f.engine->cpl = view == SHADOW_USER ? 3 : 0;
	return shadow_fill(f.engine, gva, is_write);
}

/* Takes the mappings that the host allows a process, but for about `left`: splitting one then fails. Returns the area. */
#define HOARD_SIZE (1ull << 30)
static void *hoard_mappings(unsigned left)
{
	char *area = mmap(NULL, HOARD_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	unsigned count = 0;

	ck_assert_ptr_ne(area, MAP_FAILED);
	while (count < HOARD_SIZE / 8192 && !mprotect(area + count * 8192ull, 4096, PROT_READ))
		count++;
	if (left)
		mprotect(area + (count - left) * 8192ull, left * 4096ull, PROT_NONE);
	return area;
}

static void check_maps(void);

/* --- one thing at a time --- */

START_TEST(test_first_touch)
{
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x30000, false), -1);
	ck_assert(fill(SHADOW_SUPERVISOR, 0x30000, false));
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x30000, false), 0x30);
	ck_assert_int_eq(probe(SHADOW_USER, 0x30000, true), 0x30);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x38000, true), 0x38); /* a neighbour */
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x230000, false), -1);
	ck_assert(fill(SHADOW_SUPERVISOR, 0x230000, true));
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x3ff000, true), 0x3ff);
	ck_assert_uint_eq(shadow_gva(f.engine, 0x12345 + deltas.delta[SHADOW_USER][0]), 0x12345);
	ck_assert_uint_eq(shadow_gva(f.engine, (uintptr_t)&f), ~0ull);
	ck_assert_uint_eq(shadow_gva(f.engine, deltas.delta[SHADOW_USER][77] + (77ull << 39)), ~0ull);
	ck_assert(!fill(SHADOW_SUPERVISOR, 1ull << 39, false));
	ck_assert(!fill(SHADOW_SUPERVISOR, 1ull << 47, false));
}
END_TEST

START_TEST(test_accessed_and_dirty_first)
{
	fixture_put64(&f, fixture_pte(0x30000), 0x30007);
	ck_assert(!fill(SHADOW_SUPERVISOR, 0x30000, false));
	fixture_put64(&f, fixture_pte(0x30000), 0x30027);
	ck_assert(!fill(SHADOW_SUPERVISOR, 0x30000, true));
	ck_assert(fill(SHADOW_SUPERVISOR, 0x30000, false));
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x30000, false), 0x30);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x30000, true), -1);
	fixture_put64(&f, fixture_pte(0x30000), 0x30067);
	ck_assert(fill(SHADOW_SUPERVISOR, 0x30000, true));
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x30000, true), 0x30);
	/* Bits taken back become felt at the flush. */
	fixture_put64(&f, fixture_pte(0x30000), 0x30027);
	mmu_flush_page(f.engine, 0x30000);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x30000, true), -1);
}
END_TEST

START_TEST(test_invlpg)
{
	ck_assert(fill(SHADOW_SUPERVISOR, 0x30000, true));
	fixture_put64(&f, fixture_pte(0x30000), 0x77067);
	mmu_flush_page(f.engine, 0x31000);
	mmu_flush_page(f.engine, 0x30000);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x30000, false), -1);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x31000, true), 0x31);
	ck_assert(fill(SHADOW_SUPERVISOR, 0x30000, true));
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x30000, true), 0x77);
	/* A large page goes as a whole. */
	ck_assert(fill(SHADOW_SUPERVISOR, 0x200000, true));
	fixture_put64(&f, FIXTURE_PML4 + 0x2008, 0);
	mmu_flush_page(f.engine, 0x3ff000);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x200000, false), -1);
	/* Read-only. */
	fixture_put64(&f, fixture_pte(0x32000), 0x32065);
	mmu_flush_page(f.engine, 0x32000);
	ck_assert(!fill(SHADOW_SUPERVISOR, 0x32000, true));
	ck_assert(fill(SHADOW_SUPERVISOR, 0x32000, false));
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x32000, false), 0x32);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x32000, true), -1);
}
END_TEST

START_TEST(test_globals_outlive_cr3)
{
	f.engine->cpu->cr4 |= CR4_PGE;
	fixture_put64(&f, fixture_pte(0x30000), 0x30167);
	ck_assert(fill(SHADOW_SUPERVISOR, 0x30000, true));
	ck_assert(fill(SHADOW_SUPERVISOR, 0x31000, true));
	fixture_put64(&f, fixture_pte(0x30000), 0);
	fixture_put64(&f, fixture_pte(0x31000), 0);
	system_set_cr3(f.engine, FIXTURE_PML4);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x31000, false), -1);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x30000, false), 0x30);
	mmu_flush_all(f.engine);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x30000, false), -1);
}
END_TEST

START_TEST(test_privilege)
{
	/* The first leaf decides; pages of the other kind are interpreted, until nobody asks for the old kind. */
	fixture_put64(&f, fixture_pte(0x30000), 0x30063);
	ck_assert(!fill(SHADOW_USER, 0x30000, false));
	ck_assert(fill(SHADOW_SUPERVISOR, 0x30000, false));
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x30000, false), 0x30);
	ck_assert_int_eq(probe(SHADOW_USER, 0x30000, false), -1);
	for (unsigned n = 0; n < 63; n++)
		ck_assert(!fill(SHADOW_USER, 0x40000, false));
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x30000, false), 0x30);
	ck_assert(fill(SHADOW_USER, 0x40000, false));
	ck_assert_int_eq(probe(SHADOW_USER, 0x40000, false), 0x40);
	ck_assert_int_eq(probe(SHADOW_USER, 0x30000, false), -1);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x30000, false), -1);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x40000, false), 0x40);
	/* SMAP. */
	f.engine->cpu->cr4 |= CR4_SMAP;
	mmu_flush_all(f.engine);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x40000, false), -1);
	ck_assert_int_eq(probe(SHADOW_USER, 0x40000, false), 0x40);
	ck_assert(!fill(SHADOW_SUPERVISOR, 0x40000, false));
}
END_TEST

START_TEST(test_code_pages)
{
	struct vm_shared *shared = f.shared;

	/* A small page, twice mapped; a large one. */
	fixture_put64(&f, fixture_pte(0x50000), 0x30067);
	ck_assert(fill(SHADOW_SUPERVISOR, 0x30000, true));
	ck_assert(fill(SHADOW_SUPERVISOR, 0x50000, true));
	ck_assert(fill(SHADOW_SUPERVISOR, 0x200000, true));
	shared->code_pages[0] |= 1ull << 0x30;
	mmu_protect_code(f.engine, 0x30);
	shared->code_pages[0x280 / 64] |= 1;
	mmu_protect_code(f.engine, 0x280);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x30000, false), 0x30);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x30000, true), -1);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x50000, true), -1);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x280000, false), 0x280);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x280000, true), -1);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x281000, true), 0x281);
	ck_assert(!fill(SHADOW_SUPERVISOR, 0x280000, true));
	ck_assert(!fill(SHADOW_SUPERVISOR, 0x30000, true));
	shared->code_pages[0x280 / 64] = 0;
	shared->code_pages[0] = 0;
	ck_assert(fill(SHADOW_SUPERVISOR, 0x280000, true));
	ck_assert(fill(SHADOW_SUPERVISOR, 0x30000, true));
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x280000, true), 0x280);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x30000, true), 0x30);
	/* Known before. */
	shared->code_pages[0x200 / 64] |= 2;
	mmu_protect_code(f.engine, 0x201);
	fixture_put64(&f, FIXTURE_PML4 + 0x2008, 0x200000 | 0xe5);
	mmu_flush_page(f.engine, 0x200000);
	fixture_put64(&f, FIXTURE_PML4 + 0x2008, 0x200000 | 0xe7);
	ck_assert(fill(SHADOW_SUPERVISOR, 0x200000, true));
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x200000, true), 0x200);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x201000, true), -1);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x201000, false), 0x201);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x202000, true), 0x202);
}
END_TEST

/* More code in a large page than is worth cutting it up for: what is written becomes writable by and by. */
START_TEST(test_much_code)
{
	struct shadow *s = f.engine->shadow;
	uint64_t mmaps;

	for (unsigned page = 0x200; page < 0x400; page++)
		if (page % 3) {
			f.shared->code_pages[page / 64] |= 1ull << page % 64;
			mmu_protect_code(f.engine, page);
		}
	mmaps = f.engine->stats->shadow_mmaps;
	ck_assert(fill(SHADOW_SUPERVISOR, 0x205000, false));
	ck_assert_uint_eq(f.engine->stats->shadow_mmaps, mmaps + 1);
	ck_assert_uint_lt(s->vmas, 16);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x205000, false), 0x205);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x3ff000, false), 0x3ff);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x205000, true), -1);
	ck_assert(!fill(SHADOW_SUPERVISOR, 0x205000, true));
	ck_assert(fill(SHADOW_SUPERVISOR, 0x207000, true));
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x207000, true), 0x207);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x206000, true), -1);
	/* With the neighbours that have no code. */
	for (unsigned page = 0x300; page < 0x308; page++)
		f.shared->code_pages[page / 64] &= ~(1ull << page % 64);
	for (unsigned page = 0x300; page < 0x308; page++)
		ck_assert(fill(SHADOW_SUPERVISOR, page * 4096ull, true));
	for (unsigned page = 0x300; page < 0x308; page++)
		ck_assert_int_eq(probe(SHADOW_SUPERVISOR, page * 4096ull, true), page);
	f.shared->code_pages[0x303 / 64] |= 1ull << 0x303 % 64;
	mmu_protect_code(f.engine, 0x303);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x303000, true), -1);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x304000, true), 0x304);
	check_maps();
	shadow_layout_changed(f.engine);
	ck_assert_uint_eq(s->vmas, 0);
}
END_TEST

/* More scattered pages in one address space than there are mappings: what else is mapped stays, and it is known for a while. */
START_TEST(test_crowded)
{
	struct shadow *s = f.engine->shadow;
	uint64_t other = 1ull << 39;

	fixture_put64(&f, FIXTURE_PML4 + 8, (FIXTURE_PML4 + 0x1000) | 0x27);
	for (unsigned n = 1; n < 512; n++)
		fixture_put64(&f, FIXTURE_PML4 + 0x2000 + n * 8, (FIXTURE_PML4 + 0x3000) | 0x27);
	for (unsigned n = 0; n < 512; n++) /* backwards: no two are one mapping */
		fixture_put64(&f, FIXTURE_PML4 + 0x3000 + n * 8, (511 - n) * 0x1000ull | 0x67);
	mmu_flush_all(f.engine);
	ck_assert(fill(SHADOW_SUPERVISOR, other, false));
	for (unsigned n = 0; n < VMAS_MAX + 1000; n++) {
		ck_assert(fill(SHADOW_SUPERVISOR, n * 4096ull, false));
		if (n == VMAS_MAX - 1000)
			ck_assert(!shadow_is_crowded(f.engine));
	}
	ck_assert(shadow_is_crowded(f.engine));
	ck_assert_uint_lt(s->vmas, 2000);
	ck_assert_int_eq(f.engine->stats->shadow_evictions, 1);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, other, false), 0x1ff);
	check_maps();
}
END_TEST

START_TEST(test_canonical_kernel_deltas)
{
	/* The direct map and the kernel image. */
	static const unsigned index[] = { 273, 402, 468, 511 };

	for (unsigned n = 0; n < 4; n++) {
		uint64_t gva = 0xffff000000000000ull | (uint64_t)index[n] << 39 | 0x30000;

		fixture_put64(&f, FIXTURE_PML4 + index[n] * 8, (FIXTURE_PML4 + 0x1000) | 0x27);
		ck_assert(fill(SHADOW_SUPERVISOR, gva, true));
		ck_assert_int_eq(probe(SHADOW_SUPERVISOR, gva, true), 0x30);
#if !defined(__SANITIZE_ADDRESS__)
		ck_assert_uint_lt(deltas.delta[SHADOW_SUPERVISOR][index[n]], 1ull << 47);
#endif
		ck_assert_uint_eq(shadow_gva(f.engine, gva + deltas.delta[SHADOW_SUPERVISOR][index[n]]), gva);
	}
}
END_TEST

START_TEST(test_roots)
{
	/* Two address spaces, by turns; a third one that has inherited the first one's PDPT page for something else. */
	uint64_t other = 0x180000;

	for (unsigned n = 0; n < 4; n++)
		fixture_put64(&f, other + n * 0x1000, (other + (n + 1) * 0x1000) | 0x27);
	fixture_put64(&f, other + 0x3000 + 0x30 * 8, 0x99067);
	ck_assert(fill(SHADOW_USER, 0x30000, true));
	system_set_cr3(f.engine, other);
	ck_assert_int_eq(probe(SHADOW_USER, 0x30000, false), -1);
	ck_assert(fill(SHADOW_USER, 0x30000, true));
	ck_assert_int_eq(probe(SHADOW_USER, 0x30000, true), 0x99);
	system_set_cr3(f.engine, FIXTURE_PML4);
	ck_assert_int_eq(probe(SHADOW_USER, 0x30000, true), 0x30);
	system_set_cr3(f.engine, other);
	ck_assert_int_eq(probe(SHADOW_USER, 0x30000, true), 0x99);
	ck_assert_uint_eq(f.engine->stats->shadow_attach_misses, 2);
	memset(f.ram + FIXTURE_PML4 + 0x1000, 0x5a, 0x800);
	system_set_cr3(f.engine, FIXTURE_PML4);
	ck_assert_int_eq(probe(SHADOW_USER, 0x30000, false), -1);
	ck_assert(!fill(SHADOW_USER, 0x30000, false));
}
END_TEST

START_TEST(test_pcids)
{
	uint64_t other = 0x180000;
	const struct engine_stats *stats = f.engine->stats;

	for (unsigned n = 0; n < 4; n++)
		fixture_put64(&f, other + n * 0x1000, (other + (n + 1) * 0x1000) | 0x27);
	system_set_cr4(f.engine, CR4_PAE | CR4_PGE | CR4_PCIDE);
	system_set_cr3(f.engine, FIXTURE_PML4 | 1);
	ck_assert(fill(SHADOW_USER, 0x30000, true));
	/* Kept: what changes meanwhile need not be seen … */
	system_set_cr3(f.engine, other | 2);
	fixture_put64(&f, fixture_pte(0x30000), 0);
	system_set_cr3(f.engine, FIXTURE_PML4 | 1 | CR3_NOFLUSH);
	ck_assert_int_eq(probe(SHADOW_USER, 0x30000, true), 0x30);
	ck_assert_uint_eq(stats->shadow_attach_kept, 1);
	/* … until this PCID is flushed: from elsewhere, … */
	system_set_cr3(f.engine, other | 2 | CR3_NOFLUSH);
	shadow_flush_pcid(f.engine);
	system_set_cr3(f.engine, FIXTURE_PML4 | 1 | CR3_NOFLUSH);
	ck_assert_int_eq(probe(SHADOW_USER, 0x30000, false), -1);
	/* … by a load of another root with it, … */
	ck_assert(fill(SHADOW_USER, 0x31000, true));
	system_set_cr3(f.engine, other | 2 | CR3_NOFLUSH);
	fixture_put64(&f, fixture_pte(0x31000), 0);
	system_set_cr3(f.engine, other | 1);
	system_set_cr3(f.engine, FIXTURE_PML4 | 1 | CR3_NOFLUSH);
	ck_assert_int_eq(probe(SHADOW_USER, 0x31000, false), -1);
	/* … in place, … */
	ck_assert(fill(SHADOW_USER, 0x32000, true));
	fixture_put64(&f, fixture_pte(0x32000), 0);
	system_set_cr3(f.engine, FIXTURE_PML4 | 1 | CR3_NOFLUSH);
	ck_assert_int_eq(probe(SHADOW_USER, 0x32000, false), 0x32);
	system_set_cr3(f.engine, FIXTURE_PML4 | 1);
	ck_assert_int_eq(probe(SHADOW_USER, 0x32000, false), -1);
	/* … or everything is. Under another PCID the same root has nothing to keep. */
	ck_assert(fill(SHADOW_USER, 0x33000, true));
	ck_assert(fill(SHADOW_USER, 0x34000, true));
	system_set_cr3(f.engine, other | 2 | CR3_NOFLUSH);
	fixture_put64(&f, fixture_pte(0x33000), 0);
	system_set_cr3(f.engine, FIXTURE_PML4 | 3 | CR3_NOFLUSH);
	ck_assert_int_eq(probe(SHADOW_USER, 0x33000, false), -1);
	ck_assert_int_eq(probe(SHADOW_USER, 0x34000, false), 0x34);
	system_set_cr3(f.engine, other | 2 | CR3_NOFLUSH);
	fixture_put64(&f, fixture_pte(0x34000), 0);
	mmu_flush_all(f.engine);
	system_set_cr3(f.engine, FIXTURE_PML4 | 3 | CR3_NOFLUSH);
	ck_assert_int_eq(probe(SHADOW_USER, 0x34000, false), -1);
}
END_TEST

START_TEST(test_out_of_mappings)
{
	void *hoarded;

	ck_assert(fill(SHADOW_SUPERVISOR, 0x30000, true));
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x38000, true), 0x38);
	hoarded = hoard_mappings(0);
	/* One page out of the middle cannot be unmapped: all of the slot goes. */
	fixture_put64(&f, fixture_pte(0x34000), 0);
	mmu_flush_page(f.engine, 0x34000);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x34000, false), -1);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x30000, false), -1);
	munmap(hoarded, HOARD_SIZE);
	ck_assert(fill(SHADOW_SUPERVISOR, 0x30000, true));
	ck_assert(fill(SHADOW_SUPERVISOR, 0x200000, true));
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x280000, true), 0x280);
	hoarded = hoard_mappings(0);
	/* Nor made read-only. */
	f.shared->code_pages[0x280 / 64] |= 1;
	mmu_protect_code(f.engine, 0x280);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x280000, true), -1);
	munmap(hoarded, HOARD_SIZE);
	ck_assert(fill(SHADOW_SUPERVISOR, 0x200000, true));
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x280000, true), -1);
	ck_assert_int_eq(probe(SHADOW_SUPERVISOR, 0x281000, true), 0x281);
}
END_TEST

START_TEST(test_more_slots_than_regions)
{
	/* Every PML4 entry leads to the same tables: regions run out and are given to others. */
	for (unsigned n = 0; n < 512; n++)
		fixture_put64(&f, FIXTURE_PML4 + n * 8, (FIXTURE_PML4 + 0x1000) | 0x27);
	stamp_all(); /* the PML4 has lost its own */
	fixture_put64(&f, FIXTURE_PML4 + STAMP, FIXTURE_PML4 >> 12);
	for (unsigned n = 0; n < 2000; n++) {
		unsigned g = (n * 7) % 512;
		uint64_t gva = (uint64_t)((int64_t)((uint64_t)g << 55) >> 16) + 0x30000;
		bool reachable = fill(SHADOW_SUPERVISOR, gva, true);

		/* Those next above the middle find no region with a canonical delta. */
		if (reachable)
			ck_assert_int_eq(probe(SHADOW_SUPERVISOR, gva, true), 0x30);
		else
			ck_assert(g >= 256 && (g < 262 || g == STAMP / 8));
	}
	ck_assert_uint_gt(f.engine->stats->shadow_evictions, 100);
	assert_stamps();
}
END_TEST

/* --- all at once --- */

static uint64_t random_state;

static unsigned random_below(unsigned n)
{
	random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
	return (unsigned)(random_state >> 33) % n;
}

#define POOL 0x140000 /* 3 PML4s, 4 PDPTs, 6 PDs, 8 PTs */
static const unsigned pool_first[5] = { 0, 13, 7, 3, 0 }, pool_count[5] = { 0, 8, 6, 4, 3 };
static const unsigned slots_used[] = { 0, 255, 273, 509 };

static uint64_t random_table(unsigned level)
{
	return POOL + (pool_first[level] + random_below(pool_count[level])) * 4096ull;
}

static uint64_t random_gva(void)
{
	uint64_t gva = (uint64_t)((int64_t)((uint64_t)slots_used[random_below(4)] << 55) >> 16);

	return gva | (uint64_t)random_below(2) << 30 | (uint64_t)random_below(2) << 21 | (uint64_t)random_below(8) << 12;
}

static void random_entry(unsigned level, bool mixed)
{
	static const unsigned count[5] = { 0, 8, 2, 2, 0 };
	uint64_t at = random_table(level), entry = PTE_P | PTE_A | PTE_D | PTE_W | PTE_U;

	at += 8 * (level == 4 ? slots_used[random_below(4)] : random_below(count[level]));
	if (level == 1)
		entry |= random_below(PAGES) * 4096ull;
	else if (level < 4 && !random_below(4))
		entry |= PTE_PS | (level == 2 ? random_below(3) * 0x200000ull : 0);
	else
		entry |= random_table(level - 1);
	if (!random_below(6))
		entry &= ~PTE_P;
	if (!random_below(6))
		entry &= ~PTE_A;
	if (!random_below(4))
		entry &= ~PTE_D;
	if (!random_below(4))
		entry &= ~PTE_W;
	if (mixed && !random_below(8))
		entry &= ~PTE_U;
	fixture_put64(&f, at, entry);
}

struct expected {
	bool present, user, writable;
	uint64_t page;
};

static struct expected reference(uint64_t gva)
{
	struct expected x = { .user = true, .writable = true };
	uint64_t table = f.cpu->cr3, entry;

	for (unsigned level = 4;; level--) {
		unsigned shift = 12 + 9 * (level - 1);

		entry = fixture_get64(&f, table + (gva >> shift & 511) * 8);
		if ((entry & (PTE_P | PTE_A)) != (PTE_P | PTE_A))
			return x;
		x.user &= (entry & PTE_U) != 0;
		x.writable &= (entry & PTE_W) != 0;
		table = entry & 0x000ffffffffff000ull;
		if (level == 1 || (entry & PTE_PS)) {
			x.page = (table + (gva & ((1ull << shift) - 1))) >> 12;
			break;
		}
	}
	x.present = x.page < PAGES;
	x.writable &= x.present && (entry & PTE_D) && !engine_page_has_code(f.engine, x.page);
	return x;
}

static void check_gva(uint64_t gva, bool may_fill, bool mixed)
{
	enum shadow_view view = random_below(2) ? SHADOW_USER : SHADOW_SUPERVISOR;
	struct expected x = reference(gva);
	bool is_write = random_below(2), allowed = x.present && (view == SHADOW_SUPERVISOR || x.user) && (!is_write || x.writable);
	int64_t found;

	if (may_fill && random_below(2)) {
		bool filled = fill(view, gva, is_write);

		if (!mixed)
			ck_assert_int_eq(filled, allowed);
		else
			ck_assert(allowed || !filled);
		if (filled)
			ck_assert_int_eq(probe(view, gva, is_write), (int64_t)x.page);
		return;
	}
	found = probe(view, gva, is_write);
	if (found >= 0) {
		ck_assert(allowed);
		ck_assert_int_eq(found, (int64_t)x.page);
	}
}

static void flush_everything_probed(void)
{
	for (unsigned g = 0; g < 4; g++)
		for (unsigned n = 0; n < 32; n++)
			mmu_flush_page(f.engine, (uint64_t)((int64_t)((uint64_t)slots_used[g] << 55) >> 16) | (uint64_t)(n >> 4) << 30 |
				(uint64_t)(n >> 3 & 1) << 21 | (uint64_t)(n & 7) << 12);
}

static void random_code_bit(void)
{
	unsigned page = random_below(PAGES);

	if (random_below(3)) {
		f.shared->code_pages[page / 64] |= 1ull << (page & 63);
		mmu_protect_code(f.engine, page);
	} else {
		f.shared->code_pages[page / 64] = 0;
	}
}

/* The host's own account: guest memory only in regions of slots, never executable, and no more of it than is counted. */
static void check_maps(void)
{
	const struct shadow *s = f.engine->shadow;
	unsigned count[REGIONS] = { 0 };
	FILE *maps = fopen("/proc/self/maps", "r");
	char line[512];

	while (fgets(line, sizeof(line), maps)) {
		unsigned long start, end;
		char prot[8];
		unsigned slot;

		ck_assert_int_eq(sscanf(line, "%lx-%lx %4s", &start, &end, prot), 3);
		if (start < ARENA_BASE || start >= ARENA_BASE + ARENA_SIZE || !strcmp(prot, "---p"))
			continue;
		slot = (unsigned)((start - ARENA_BASE - REGION_GUARD) / REGION_STRIDE);
		ck_assert_uint_lt(slot, REGIONS);
		ck_assert(start >= region_base(slot) && end <= region_base(slot) + SLOT_SIZE);
		ck_assert_int_eq(prot[2], '-');
		ck_assert_uint_ne(s->slots[slot].key, 0);
		count[slot]++;
	}
	fclose(maps);
	for (unsigned n = 0; n < REGIONS; n++)
		ck_assert_uint_le(count[n], s->slots[n].vmas);
}

static void run_random(enum shadow_policy policy, bool mixed, bool hoard, uint64_t seed)
{
	/* More of them by hand: each is some fifty checks and system calls. */
	const char *asked = getenv("VMM_SHADOW_ROUNDS");
	unsigned rounds = asked ? (unsigned)strtoul(asked, NULL, 0) : 500;
	void *hoarded = NULL;

	random_state = seed;
	open_policy(policy);
	if (seed & 1) /* all large leaves become lazy, or many do */
		f.engine->shadow->splits_max = (int)(seed & 2) - 1;
	memset(f.ram + POOL, 0, 21 * 4096);
	stamp_all();
	for (unsigned n = 0; n < 200; n++)
		random_entry(1 + n % 4, false);
	system_set_cr3(f.engine, POOL);
	for (unsigned n = 0; n < rounds; n++) {
		if (hoard && n == rounds / 4)
			hoarded = hoard_mappings(16);
		for (unsigned k = random_below(12); k; k--)
			check_gva(random_gva(), true, mixed);
		if (!random_below(3))
			random_code_bit();
		for (unsigned k = random_below(4); k; k--)
			random_entry(1 + random_below(random_below(4) ? 2 : 4), mixed);
		switch (random_below(4)) {
		case 0:
			mmu_flush_all(f.engine);
			break;
		case 1:
			flush_everything_probed();
			break;
		default:
			system_set_cr3(f.engine, random_table(4));
		}
		for (unsigned k = 0; k < 4; k++)
			check_gva(random_gva(), false, mixed);
		if (!hoard && !(n & 31))
			check_maps();
	}
	assert_stamps();
	if (hoarded)
		munmap(hoarded, HOARD_SIZE);
	close_all();
}

START_TEST(test_random)
{
	run_random(_i & 1 ? SHADOW_VTLB : SHADOW_UNSYNC, (_i & 2) != 0, false, (uint64_t)_i + 1);
}
END_TEST

/* What cannot be mapped is refused; what cannot be unmapped alone goes with all of its slot. */
START_TEST(test_random_out_of_mappings)
{
	run_random(SHADOW_UNSYNC, true, true, 99);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("engine shadow");
	TCase *one = tcase_create("one"), *all = tcase_create("random");

	tcase_add_checked_fixture(one, open_unsync, close_all);
	tcase_set_timeout(one, 30);
	tcase_add_test(one, test_first_touch);
	tcase_add_test(one, test_accessed_and_dirty_first);
	tcase_add_test(one, test_invlpg);
	tcase_add_test(one, test_globals_outlive_cr3);
	tcase_add_test(one, test_privilege);
	tcase_add_test(one, test_code_pages);
	tcase_add_test(one, test_much_code);
	if (MAY_HOARD)
		tcase_add_test(one, test_crowded);
	tcase_add_test(one, test_canonical_kernel_deltas);
	tcase_add_test(one, test_roots);
	tcase_add_test(one, test_pcids);
	if (MAY_HOARD)
		tcase_add_test(one, test_out_of_mappings);
	tcase_add_test(one, test_more_slots_than_regions);
	tcase_set_timeout(all, 60);
	tcase_add_loop_test(all, test_random, 0, 8);
	if (MAY_HOARD)
		tcase_add_test(all, test_random_out_of_mappings);
	suite_add_tcase(suite, one);
	suite_add_tcase(suite, all);
	return run_suite(suite);
}
