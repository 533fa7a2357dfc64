/*
 * Rows about paging: page table entries written in tables that are in use, INVLPG, CR3 with and without PCID, and walks
 * through translations that were flushed just before. The rows named -use also read through what they changed, since an
 * engine may put the work off until then.
 */
#include "nano_guest.h"

#define P_RW_US_A_D 0x67ul
#define CR4_PCIDE 0x20000ul
#define CR3_NOFLUSH (1ul << 63)
#define CPUID_PCID (1u << 17)

static uint64_t peek(uint64_t address)
{
	return *(volatile uint64_t *)address;
}

/* The entry alternates between two frames; it ends at the first one's after an even n. */
#define PTEMOD(n, rest) \
	NANO_LOOP_AFTER("mov %[b], %%rax\n\tmov %[a], %%r8", n, "mov %%rax, (%[pte])\n\txchg %%rax, %%r8" rest, \
		[a] "r"((FRAMES_A + PAGE_PTE * 4096) | P_RW_US_A_D), [b] "r"((FRAMES_B + PAGE_PTE * 4096) | P_RW_US_A_D), \
		[pte] "r"(&nano_pt_a[PAGE_PTE]), [page] "r"(page_at(PAGE_PTE)))

static uint64_t ptemod_begin(void)
{
	nano_pt_a[PAGE_PTE] = (FRAMES_A + PAGE_PTE * 4096) | P_RW_US_A_D;
	asm volatile("invlpg (%0)" : : "r"(page_at(PAGE_PTE)) : "memory");
	return peek(page_at(PAGE_PTE));
}

static void ptemod_end(uint64_t n)
{
	asm volatile("invlpg (%0)" : : "r"(page_at(PAGE_PTE)) : "memory");
	if (peek(page_at(PAGE_PTE)) != (n & 1 ? TAG_B : TAG_A) + PAGE_PTE)
		nano_wrong("the page shows another frame");
}

static uint64_t run_ptemod(uint64_t n)
{
	uint64_t cycles;

	ptemod_begin();
	cycles = PTEMOD(n, "");
	ptemod_end(n);
	return cycles;
}

static uint64_t run_ptemod_invlpg(uint64_t n)
{
	uint64_t cycles;

	ptemod_begin();
	cycles = PTEMOD(n, "\n\tinvlpg (%[page])");
	ptemod_end(n);
	return cycles;
}

static uint64_t run_ptemod_use(uint64_t n)
{
	uint64_t cycles;

	ptemod_begin();
	nano_count = 0;
	cycles = PTEMOD(n, "\n\tinvlpg (%[page])\n\tmov (%[page]), %%rcx\n\tadd %%rcx, nano_count");
	ptemod_end(n);
	if (nano_count != (n / 2) * (TAG_A + PAGE_PTE) + (n - n / 2) * (TAG_B + PAGE_PTE))
		nano_wrong("a read came from the old frame");
	return cycles;
}

static uint64_t run_invlpg(uint64_t n)
{
	ptemod_begin();
	return NANO_LOOP(n, "invlpg (%[page])", [page] "r"(page_at(PAGE_PTE)));
}

static uint64_t run_invlpg_use(uint64_t n)
{
	ptemod_begin();
	return NANO_LOOP(n, "invlpg (%[page])\n\tmov (%[page]), %%rcx", [page] "r"(page_at(PAGE_PTE)));
}

#define SWITCH "mov %%rax, %%cr3\n\txchg %%rax, %%r8"
#define USE(page) "mov " page "(%[use]), %%rcx\n\tadd %%rcx, %%r11\n\t"
#define USE_ALL \
	"\n\t" USE("0") USE("0x1000") USE("0x2000") USE("0x3000") USE("0x4000") USE("0x5000") USE("0x6000") USE("0x7000")

/* Between two values of CR3, the first being a's; leaves the sum of what was read in nano_count. */
static uint64_t run_switch(uint64_t n, uint64_t a, uint64_t b, bool use)
{
	uint64_t cycles;

	set_cr3(b & ~CR3_NOFLUSH);
	set_cr3(a & ~CR3_NOFLUSH);
	if (use)
		cycles = NANO_LOOP_AFTER("mov %[b], %%rax\n\tmov %[a], %%r8\n\txor %%r11d, %%r11d", n,
			SWITCH USE_ALL "mov %%r11, nano_count", [a] "r"(a), [b] "r"(b), [use] "r"(page_at(PAGE_USE)));
	else
		cycles = NANO_LOOP_AFTER("mov %[b], %%rax\n\tmov %[a], %%r8", n, SWITCH, [a] "r"(a), [b] "r"(b));
	if ((get_cr3() & ~0xffful) != (n & 1 ? nano_cr3_b : nano_cr3_a))
		nano_wrong("CR3 is not the last value written");
	if (peek(page_at(PAGE_USE)) != (n & 1 ? TAG_B : TAG_A) + PAGE_USE)
		nano_wrong("a page shows the other space's frame");
	set_cr3(nano_cr3_a);
	return cycles;
}

static void check_used(uint64_t n)
{
	uint64_t in_a = 0, in_b = 0;

	for (unsigned i = 0; i < 8; i++) {
		in_a += TAG_A + PAGE_USE + i;
		in_b += TAG_B + PAGE_USE + i;
	}
	if (nano_count != (n / 2) * in_a + (n - n / 2) * in_b)
		nano_wrong("a read came from the other space");
}

static uint64_t run_cr3(uint64_t n)
{
	return run_switch(n, nano_cr3_a, nano_cr3_b, false);
}

static uint64_t run_cr3_use(uint64_t n)
{
	uint64_t cycles = run_switch(n, nano_cr3_a, nano_cr3_b, true);

	check_used(n);
	return cycles;
}

static const char *missing_pcid(void)
{
	return cpuid(1, 0).ecx & CPUID_PCID ? NULL : "the processor offers no PCID";
}

static uint64_t run_pcid(uint64_t n, bool use)
{
	uint64_t cycles;

	set_cr4(get_cr4() | CR4_PCIDE);
	cycles = run_switch(n, nano_cr3_a | 1 | CR3_NOFLUSH, nano_cr3_b | 2 | CR3_NOFLUSH, use);
	set_cr4(get_cr4() & ~CR4_PCIDE);
	return cycles;
}

static uint64_t run_cr3_pcid(uint64_t n)
{
	return run_pcid(n, false);
}

static uint64_t run_cr3_pcid_use(uint64_t n)
{
	uint64_t cycles = run_pcid(n, true);

	check_used(n);
	return cycles;
}

/* The flush itself and the reading of the counter are not part of a cold walk. */
static uint64_t run_cold(uint64_t n, uint64_t area, unsigned pages, uint64_t page_size)
{
	uint64_t cycles = 0, done = 0, overhead = ~0ul;

	for (unsigned i = 0; i < 8; i++) {
		uint64_t start = nano_ticks(), took = nano_ticks() - start;

		overhead = took < overhead ? took : overhead;
	}
	for (; done < n; done += pages) {
		set_cr3(nano_cr3_a);
		cycles += nano_walk((void *)area, pages, page_size, pages) - overhead;
	}
	return cycles * n / done;
}

static const char *missing_cold_4k(void)
{
	nano_walk_prepare((void *)WINDOW_4K, WALK_4K_PAGES, 4096);
	return NULL;
}

static const char *missing_cold_2m(void)
{
	nano_walk_prepare((void *)WINDOW_2M, WALK_2M_PAGES, 2 << 20);
	return NULL;
}

static uint64_t run_cold_4k(uint64_t n) { return run_cold(n, WINDOW_4K, WALK_4K_PAGES, 4096); }
static uint64_t run_cold_2m(uint64_t n) { return run_cold(n, WINDOW_2M, WALK_2M_PAGES, 2 << 20); }

const struct nano_row nano_paging_rows[] = {
	{.name = "ptemod", .run = run_ptemod},
	{.name = "ptemod-invlpg", .run = run_ptemod_invlpg},
	{.name = "ptemod-use", .run = run_ptemod_use},
	{.name = "invlpg", .run = run_invlpg},
	{.name = "invlpg-use", .run = run_invlpg_use},
	{.name = "cr3", .run = run_cr3},
	{.name = "cr3-use", .run = run_cr3_use},
	{.name = "cr3-pcid", .missing = missing_pcid, .run = run_cr3_pcid},
	{.name = "cr3-pcid-use", .missing = missing_pcid, .run = run_cr3_pcid_use},
	{.name = "walk-4k-cold", .missing = missing_cold_4k, .run = run_cold_4k, .raw = true},
	{.name = "walk-2m-cold", .missing = missing_cold_2m, .run = run_cold_2m, .raw = true},
	{0},
};
