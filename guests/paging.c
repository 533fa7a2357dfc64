/*
 * Paging in 64-bit mode (SDM vol. 3, ch. 4): page sizes, permissions, error codes, accessed and dirty bits, reserved
 * bits, and what INVLPG, INVPCID, CR3 and CR4 writes must, and must not, make visible.
 *
 * The window under test is PML4 entry 1 (0x8000000000): PDPT, PD and PT map it; `area` holds what it shows. Where a
 * stale translation is allowed but not required (the TLB may drop an entry at any time) both results pass.
 */
#include "guest.h"

#define P 1ul
#define RW 2ul
#define US 4ul
#define ACC 0x20ul
#define DIRTY 0x40ul
#define PS 0x80ul
#define G 0x100ul
#define NX (1ul << 63)
#define WINDOW 0x8000000000ul

#define E_P 1
#define E_W 2
#define E_U 4
#define E_RSVD 8
#define E_I 16

#define CR4_PGE 0x80ul
#define CR4_PCIDE 0x20000ul
#define CR4_SMEP 0x100000ul
#define CR4_SMAP 0x200000ul

static volatile uint64_t tables[4][512] __attribute__((aligned(4096)));
static volatile uint64_t area[4][512] __attribute__((aligned(4096)));
extern volatile uint64_t boot_pml4[512];
#define PDPT tables[0]
#define PD tables[1]
#define PT tables[2]
#define PML4B tables[3]

extern char user_read[], user_write[], ret_code[], user_call[];
asm("user_read: mov (%rdi), %rax; int $0x80\n"
    "user_write: movq $7, (%rdi); int $0x80\n"
    "user_call: call *%rdi; int $0x80\n"
    "ret_code: ret\n");

static void invlpg(word address)
{
	asm volatile("invlpg (%0)" : : "r"(address) : "memory");
}

static void flush(void)
{
	set_cr3(get_cr3());
}

static uint64_t peek(word address)
{
	return *(volatile uint64_t *)address;
}

static void poke(word address, uint64_t v)
{
	*(volatile uint64_t *)address = v;
}

static word phys(volatile void *p)
{
	return (word)p;
}

/* The window's page i shows area[i]. */
static void window_reset(void)
{
	boot_pml4[1] = phys(PDPT) | P | RW | US;
	for (unsigned i = 0; i < 512; i++)
		PDPT[i] = PD[i] = PT[i] = 0;
	PDPT[0] = phys(PD) | P | RW | US;
	PD[0] = phys(PT) | P | RW | US;
	for (unsigned i = 0; i < 4; i++) {
		PT[i] = phys(area[i]) | P | RW | US;
		area[i][0] = 100 + i;
	}
	flush();
}

static void sizes(void)
{
	window_reset();
	CHECK(peek(WINDOW) == 100 && peek(WINDOW + 0x3000) == 103);
	poke(WINDOW + 0x1008, 42);
	CHECK(area[1][1] == 42);
	/* 2 MiB and 1 GiB pages over the first GiB: area is seen through them. */
	PD[1] = (phys(area) & ~0x1ffffful) | P | RW | PS;
	CHECK(peek(WINDOW + 0x200000 + (phys(area[2]) & 0x1fffff)) == 102);
	if (cpuid(0x80000001, 0).edx & 1 << 26) {
		PDPT[1] = P | RW | PS;
		CHECK(peek(WINDOW + 0x40000000 + phys(area[3])) == 103);
		poke(WINDOW + 0x40000000 + phys(area[3]), 55);
		CHECK(area[3][0] == 55 && (PDPT[1] & (ACC | DIRTY)) == (ACC | DIRTY));
	}
	/* An access across two pages that are far apart. */
	PT[0] = phys(area[3]) | P | RW;
	PT[1] = phys(area[0]) | P | RW;
	flush();
	*(volatile uint64_t *)(WINDOW + 0xffc) = 0x1122334455667788;
	CHECK(*(volatile uint32_t *)((word)area[3] + 0xffc) == 0x55667788 && *(volatile uint32_t *)area[0] == 0x11223344);
	CHECK(*(volatile uint64_t *)(WINDOW + 0xffc) == 0x1122334455667788);
	say("paging: sizes ok");
}

static void accessed_and_dirty(void)
{
	window_reset();
	CHECK(!(PT[0] & (ACC | DIRTY)));
	peek(WINDOW);
	CHECK((PT[0] & (ACC | DIRTY)) == ACC && (PD[0] & ACC) && (PDPT[0] & ACC) && !(PD[0] & DIRTY));
	CHECK((boot_pml4[1] & ACC) && !(PT[1] & ACC));
	poke(WINDOW, 1); /* a translation without D is no licence to write: the walker sets it now */
	CHECK(PT[0] & DIRTY);
	poke(WINDOW + 0x1000, 1);
	CHECK((PT[1] & (ACC | DIRTY)) == (ACC | DIRTY));
	PT[1] &= ~(ACC | DIRTY);
	invlpg(WINDOW + 0x1000);
	CHECK(ATTEMPT("lock; cmpxchg %%rcx, (%0)", "r"(WINDOW + 0x1000)) == V_NONE);
	CHECK((PT[1] & (ACC | DIRTY)) == (ACC | DIRTY)); /* dirty even if the compare failed */
	PT[2] &= ~RW;
	PT[2] &= ~(ACC | DIRTY);
	invlpg(WINDOW + 0x2000);
	CHECK(ATTEMPT("movl $1, (%0)", "r"(WINDOW + 0x2000)) == V_PF && FAULTED(V_PF, E_P | E_W));
	CHECK(!(PT[2] & DIRTY)); /* a write that faults dirties nothing */
	say("paging: accessed and dirty ok");
}

static void permissions(void)
{
	window_reset();
	PT[0] &= ~RW;
	PT[1] &= ~US;
	PT[2] |= NX;
	PT[3] = 0;
	flush();
	CHECK(ATTEMPT("movl $1, (%0)", "r"(WINDOW)) == V_PF && FAULTED(V_PF, E_P | E_W) && last.cr2 == WINDOW);
	set_cr0(get_cr0() & ~0x10000ul); /* WP off: the supervisor writes where it likes */
	CHECK(ATTEMPT("movl $9, (%0)", "r"(WINDOW)) == V_NONE && area[0][0] == 9);
	CHECK(user_run(user_write, 0, WINDOW) == V_PF && last.error == (E_P | E_W | E_U)); /* users do not */
	set_cr0(get_cr0() | 0x10000);
	CHECK(ATTEMPT("movl $1, (%0)", "r"(WINDOW)) == V_PF && FAULTED(V_PF, E_P | E_W)); /* and nothing of that stays */
	CHECK(user_run(user_read, 0, WINDOW) == V_USER_EXIT);
	CHECK(user_run(user_write, 0, WINDOW) == V_PF && last.error == (E_P | E_W | E_U) && last.cr2 == WINDOW);
	CHECK(user_run(user_read, 0, WINDOW + 0x1000) == V_PF && last.error == (E_P | E_U) && last.cr2 == WINDOW + 0x1000);
	CHECK(peek(WINDOW + 0x1000) == 101);
	CHECK(user_run(user_read, 0, WINDOW + 0x3000) == V_PF && last.error == E_U);
	CHECK(user_run(user_call, 0, WINDOW + 0x2000) == V_PF && last.error == (E_P | E_U | E_I) && last.ip == WINDOW + 0x2000 &&
		last.cr2 == WINDOW + 0x2000);
	CHECK(user_run(user_call, 0, WINDOW + 0x3000) == V_PF && last.error == (E_U | E_I));
	/* Permissions are the AND of the levels. */
	window_reset();
	PD[0] &= ~US;
	flush();
	CHECK(user_run(user_read, 0, WINDOW) == V_PF && last.error == (E_P | E_U));
	PD[0] = phys(PT) | P | US;
	flush();
	CHECK(ATTEMPT("movl $1, (%0)", "r"(WINDOW)) == V_PF && FAULTED(V_PF, E_P | E_W));
	PD[0] = phys(PT) | P | RW | US;
	boot_pml4[1] |= NX;
	*(volatile uint8_t *)area[0] = 0xc3; /* RET */
	flush();
	CHECK(user_run(user_call, 0, WINDOW) == V_PF && last.error == (E_P | E_U | E_I));
	boot_pml4[1] &= ~NX;
	flush();
	CHECK(user_run(user_call, 0, WINDOW) == V_USER_EXIT);
	/* Without EFER.NXE bit 63 is reserved. */
	PT[1] |= NX;
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~0x800ull);
	flush();
	CHECK_REAL(ATTEMPT("mov (%0), %%rax", "r"(WINDOW + 0x1000)) == V_PF && FAULTED(V_PF, E_P | E_RSVD));
	/* and no fetch is marked as one */
	CHECK(user_run(user_call, 0, WINDOW + 0x3000 + 0x10000) == V_PF && last.error == E_U);
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) | 0x800);
	flush();
	say("paging: permissions ok");
}

static void reserved_bits(void)
{
	unsigned width = cpuid(0x80000008, 0).eax & 0xff;

	window_reset();
	PT[0] |= 1ul << 51; /* above MAXPHYADDR */
	PD[1] = P | RW | PS | 0x2000; /* bits 20:13 of a large page */
	PD[2] = 1ul << 51; /* not present: nothing is reserved */
	PDPT[2] = P | RW | PS | 0x2000;
	flush();
	if (width < 52) {
		CHECK_REAL(ATTEMPT("mov (%0), %%rax", "r"(WINDOW)) == V_PF && FAULTED(V_PF, E_P | E_RSVD));
		CHECK_REAL(ATTEMPT("mov %%rax, (%0)", "r"(WINDOW)) == V_PF && FAULTED(V_PF, E_P | E_RSVD | E_W));
	}
	CHECK_REAL(ATTEMPT("mov (%0), %%rax", "r"(WINDOW + 0x200000)) == V_PF && FAULTED(V_PF, E_P | E_RSVD));
	CHECK(ATTEMPT("mov (%0), %%rax", "r"(WINDOW + 0x400000)) == V_PF && FAULTED(V_PF, 0));
	CHECK_REAL(ATTEMPT("mov (%0), %%rax", "r"(WINDOW + 0x80000000)) == V_PF && FAULTED(V_PF, E_P | E_RSVD));
	boot_pml4[1] |= PS; /* reserved in a PML4 entry */
	flush();
	CHECK_REAL(ATTEMPT("mov (%0), %%rax", "r"(WINDOW + 0x1000)) == V_PF && FAULTED(V_PF, E_P | E_RSVD));
	boot_pml4[1] &= ~PS;
	flush();
	CHECK(peek(WINDOW + 0x1000) == 101);
	say("paging: reserved bits ok");
}

static void stale_translations(void)
{
	uint64_t v;

	window_reset();
	CHECK(peek(WINDOW) == 100);
	PT[0] = phys(area[1]) | P | RW | US;
	v = peek(WINDOW);
	CHECK(v == 100 || v == 101);
	invlpg(WINDOW + 0x123); /* any address of the page */
	CHECK(peek(WINDOW) == 101);
	PT[0] = phys(area[2]) | P | RW | US;
	flush();
	CHECK(peek(WINDOW) == 102);
	/* From not present to present, and to more rights, needs no flush. */
	CHECK(ATTEMPT("mov 0x8000(%0), %%rax", "r"(WINDOW)) == V_PF);
	PT[8] = phys(area[3]) | P;
	CHECK(peek(WINDOW + 0x8000) == 103);
	CHECK(ATTEMPT("movq $5, 0x8000(%0)", "r"(WINDOW)) == V_PF && FAULTED(V_PF, E_P | E_W));
	PT[8] |= RW;
	CHECK(ATTEMPT("movq $5, 0x8000(%0)", "r"(WINDOW)) == V_NONE && area[3][0] == 5);
	/* A fault drops what it found, so a fault is never spurious twice. INVLPG of a large page drops all of it. */
	PD[1] = (phys(area) & ~0x1ffffful) | P | RW | PS;
	word in_large = WINDOW + 0x200000 + (phys(area[2]) & 0x1fffff);
	CHECK(peek(in_large) == 102);
	PD[1] = 0;
	invlpg(WINDOW + 0x200000);
	CHECK(ATTEMPT("mov (%0), %%rax", "r"(in_large)) == V_PF && FAULTED(V_PF, 0));
	/* A table's entry changes: INVLPG of an address below it drops the paging-structure caches too. */
	for (unsigned i = 0; i < 512; i++)
		PML4B[i] = boot_pml4[i];
	PD[0] = 0;
	invlpg(WINDOW);
	CHECK(ATTEMPT("mov (%0), %%rax", "r"(WINDOW)) == V_PF && FAULTED(V_PF, 0));
	PD[0] = phys(PT) | P | RW | US;
	CHECK(peek(WINDOW) == 102);
	/* Another root. */
	PML4B[1] = 0;
	word old = get_cr3();
	set_cr3(phys(PML4B));
	CHECK(ATTEMPT("mov (%0), %%rax", "r"(WINDOW)) == V_PF && FAULTED(V_PF, 0));
	set_cr3(old);
	CHECK(peek(WINDOW) == 102);
	say("paging: invalidation ok");
}

static void global_pages(void)
{
	uint64_t v;

	window_reset();
	set_cr4(get_cr4() | CR4_PGE);
	PT[0] |= G;
	CHECK(peek(WINDOW) == 100 && peek(WINDOW + 0x1000) == 101);
	PT[0] = phys(area[2]) | P | RW | G;
	PT[1] = phys(area[3]) | P | RW;
	flush(); /* drops the second, may keep the first */
	v = peek(WINDOW);
	CHECK(v == 100 || v == 102);
	CHECK(peek(WINDOW + 0x1000) == 103);
	invlpg(WINDOW); /* takes global ones too */
	CHECK(peek(WINDOW) == 102);
	PT[0] = phys(area[1]) | P | RW | G;
	set_cr4(get_cr4() & ~CR4_PGE);
	set_cr4(get_cr4() | CR4_PGE);
	CHECK(peek(WINDOW) == 101);
	set_cr4(get_cr4() & ~CR4_PGE);
	say("paging: global pages ok");
}

static void invpcid(uint64_t type, uint64_t pcid, uint64_t address)
{
	struct { uint64_t pcid, address; } d = {pcid, address};

	asm volatile("invpcid %1, %0" : : "r"(type), "m"(d) : "memory");
}

static void process_contexts(void)
{
	bool has_invpcid = cpuid(7, 0).ebx & 1 << 10;
	word root = get_cr3();
	uint64_t v;

	if (!(cpuid(1, 0).ecx & 1 << 17)) {
		say("paging: PCID ok, where there is one");
		return;
	}
	window_reset();
	for (unsigned i = 0; i < 512; i++)
		PML4B[i] = boot_pml4[i];
	PML4B[1] = 0;
	CHECK(ATTEMPT("mov %0, %%cr3", "r"(root | 5)) == V_NONE); /* ignored bits before PCIDE */
	CHECK(ATTEMPT("mov %0, %%cr4", "r"(get_cr4() | CR4_PCIDE)) == V_GP || (get_cr3() & 0xfff) == 0); /* CR3[11:0] must be 0 */
	set_cr3(root);
	set_cr4(get_cr4() | CR4_PCIDE);
	set_cr3(root | 1);
	CHECK(peek(WINDOW) == 100);
	set_cr3(phys(PML4B) | 2);
	CHECK(ATTEMPT("mov (%0), %%rax", "r"(WINDOW)) == V_PF && FAULTED(V_PF, 0)); /* no leak between contexts */
	PT[0] = phys(area[1]) | P | RW | US;
	set_cr3(root | 1 | 1ul << 63); /* no flush: either is right */
	v = peek(WINDOW);
	CHECK(v == 100 || v == 101);
	CHECK(get_cr3() == (root | 1)); /* bit 63 is not kept */
	set_cr3(root | 1); /* flushes context 1 */
	CHECK(peek(WINDOW) == 101);
	if (has_invpcid) {
		PT[0] = phys(area[2]) | P | RW | US;
		set_cr3(root | 3);
		invpcid(0, 1, WINDOW); /* one address of another context */
		set_cr3(root | 1 | 1ul << 63);
		CHECK(peek(WINDOW) == 102);
		PT[0] = phys(area[3]) | P | RW | US;
		set_cr3(root | 3);
		invpcid(1, 1, 0); /* all of another context */
		set_cr3(root | 1 | 1ul << 63);
		CHECK(peek(WINDOW) == 103);
		PT[0] = phys(area[0]) | P | RW | US | G;
		invpcid(3, 0, 0); /* all but global */
		CHECK(peek(WINDOW) == 100);
		PT[0] = phys(area[1]) | P | RW | US;
		invpcid(2, 0, 0); /* everything */
		CHECK(peek(WINDOW) == 101);
		struct { uint64_t pcid, address; } bad = {0x1000, 0};
		CHECK(ATTEMPT("invpcid (%0), %1", "r"(&bad), "r"(0ul)) == V_GP && FAULTED(V_GP, 0));
		CHECK(ATTEMPT("invpcid (%0), %1", "r"(&bad), "r"(4ul)) == V_GP);
		bad.pcid = 1;
		bad.address = 0x8000000000000000;
		CHECK(ATTEMPT("invpcid (%0), %1", "r"(&bad), "r"(0ul)) == V_GP);
	}
	set_cr3(root);
	set_cr4(get_cr4() & ~CR4_PCIDE);
	say("paging: PCID ok, where there is one");
}

/* SMEP and SMAP: all that the kernel itself runs on must be a supervisor page first. */
static void supervisor_protection(void)
{
	extern volatile uint64_t boot_pd[4][512];
	bool smep = cpuid(7, 0).ebx & 1 << 7, smap = cpuid(7, 0).ebx & 1 << 20;
	void (*code)(void) = (void (*)(void))(WINDOW);

	window_reset();
	*(volatile uint8_t *)area[0] = 0xc3;
	code();
	for (unsigned i = 0; i < 512; i++)
		boot_pd[0][i] &= ~US;
	boot_pd[3][0xfee00000 >> 21 & 511] &= ~US;
	flush();
	if (smep) {
		set_cr4(get_cr4() | CR4_SMEP);
		trap_clear();
		asm volatile("movq $1f, trap_resume; mov %%rsp, %%rdx; call *%0\n1: mov %%rdx, %%rsp; movq $0, trap_resume"
			     : : "r"(code) : "ax", "cx", "dx", "memory", "cc");
		CHECK(last.vector == V_PF && last.error == (E_P | E_I) && last.ip == WINDOW && last.cr2 == WINDOW);
		PT[0] &= ~US;
		invlpg(WINDOW);
		code();
		PT[0] |= US;
		invlpg(WINDOW);
		set_cr4(get_cr4() & ~CR4_SMEP);
		code();
		say("paging: SMEP ok, where there is one");
	} else {
		say("paging: SMEP ok, where there is one");
	}
	if (smap) {
		set_cr4(get_cr4() | CR4_SMAP);
		CHECK(ATTEMPT("mov (%0), %%rax", "r"(WINDOW)) == V_PF && FAULTED(V_PF, E_P));
		CHECK(ATTEMPT("stac; mov (%0), %%rax; clac", "r"(WINDOW)) == V_NONE);
		CHECK(ATTEMPT("mov (%0), %%rax", "r"(WINDOW)) == V_PF && FAULTED(V_PF, E_P));
		set_cr4(get_cr4() & ~CR4_SMAP);
	}
	say("paging: SMAP ok, where there is one");
}

int guest_main(void)
{
	sizes();
	accessed_and_dirty();
	permissions();
	reserved_bits();
	stale_translations();
	global_pages();
	process_contexts();
	supervisor_protection();
	return 0;
}
