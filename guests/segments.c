/*
 * Segmentation in legacy 32-bit protected mode, without paging: limits, expand-down, types, LAR/LSL/VERR/VERW, the
 * system registers' stores, call gates, privilege changes through the TSS, BOUND and INTO (SDM vol. 3, ch. 5 and 6).
 * QEMU's TCG checks no limits: CHECK_REAL marks what fails there.
 */
#include "guest.h"

#define A_DATA 0x93 /* present, DPL 0, data, writable */
#define SEL_A 0x90
#define SEL_B 0x98
#define SEL_GATE 0xa0
#define SEL_CONFORMING 0xa8

static uint8_t memory[256] __attribute__((aligned(16)));
extern char user_lcall[], user_bound[], user_into[], user_limit[], user_conforming[], gate_target[], conforming_target[];
extern char user_load_ss[], user_load_ds0[], user_ss_limit[], user_far_down[];
extern volatile word gate_cs, gate_ss, gate_arg0, gate_arg1, gate_old_esp, gate_esp, conforming_cs;
asm(".data; .balign 4; .globl gate_cs, gate_ss, gate_arg0, gate_arg1, gate_old_esp, gate_esp, conforming_cs\n"
    "gate_cs: .long 0\ngate_ss: .long 0\ngate_arg0: .long 0\ngate_arg1: .long 0\ngate_old_esp: .long 0\ngate_esp: .long 0\nconforming_cs: .long 0\n"
    ".text\n"
    "user_lcall: push $0x22; push $0x11; lcall $0xa3, $0; int $0x80\n"
    "gate_target: mov %cs, %ss:gate_cs; mov %ss, %ss:gate_ss; mov %esp, %ss:gate_esp\n"
    "mov 8(%esp), %eax; mov %eax, %ss:gate_arg0; mov 12(%esp), %eax; mov %eax, %ss:gate_arg1; mov 16(%esp), %eax; mov %eax, %ss:gate_old_esp\n"
    "lret $8\n"
    "user_bound: mov $5, %ecx; bound %ecx, user_bounds; mov $6, %ecx\nuser_bound_at: bound %ecx, user_bounds; int $0x80\n"
    "user_into: mov $0x7fffffff, %ecx; add $0, %ecx; into; add $1, %ecx; into\nuser_into_after: int $0x80\n"
    "user_conforming: lcall $0xab, $conforming_target; int $0x80\n"
    "conforming_target: mov %cs, %eax; mov %eax, conforming_cs; lret\n"
    "user_load_ds0: mov $0x10, %ecx; mov %cx, %ds; int $0x80\n"
    "user_load_ss: mov $0x10, %ecx; mov %cx, %ss; int $0x80\n"
    "user_far_down: lcall $0x08, $0; int $0x80\n"
    ".data\nuser_bounds: .long 1, 5\n.text\n");
extern char user_bound_at[], user_into_after[];

static void limits(void)
{
	gdt_set(SEL_A, (word)memory, 0xf, A_DATA, 4); /* 16 bytes */
	CHECK(ATTEMPT("mov %w0, %%fs", "r"(SEL_A)) == V_NONE);
	memory[15] = 0x5a;
	CHECK(ATTEMPT("movb %%fs:15, %%al") == V_NONE);
	CHECK_REAL(ATTEMPT("movb %%fs:16, %%al") == V_GP && FAULTED(V_GP, 0));
	CHECK_REAL(ATTEMPT("movl %%fs:13, %%eax") == V_GP && FAULTED(V_GP, 0));
	CHECK(ATTEMPT("movl %%fs:12, %%eax") == V_NONE);
	CHECK_REAL(ATTEMPT("movl $1, %%fs:0xfffffffe") == V_GP);
	CHECK_REAL(ATTEMPT("movb $1, %%fs:16") == V_GP && memory[16] == 0);
	/* Expand-down: offsets above the limit are the valid ones. */
	gdt_set(SEL_A, (word)memory - 0x1000, 0xfff, A_DATA | 4, 4);
	CHECK(ATTEMPT("mov %w0, %%fs", "r"(SEL_A)) == V_NONE);
	CHECK(ATTEMPT("movb %%fs:0x1000, %%al") == V_NONE);
	CHECK_REAL(ATTEMPT("movb %%fs:0xfff, %%al") == V_GP);
	CHECK_REAL(ATTEMPT("movw %%fs:0xfff, %%ax") == V_GP);
	/* Granularity, and a segment that wraps around 4 GiB. */
	gdt_set(SEL_A, 0xfffff000, 0x101, A_DATA, 0xc);
	CHECK(ATTEMPT("mov %w0, %%fs", "r"(SEL_A)) == V_NONE);
	*(volatile uint32_t *)0x5000 = 0x1234;
	word v;
	asm volatile("mov %%fs:0x6000, %0" : "=r"(v));
	CHECK(v == 0x1234);
	CHECK_REAL(ATTEMPT("movb %%fs:0x102000, %%al") == V_GP);
	/* Types. */
	gdt_set(SEL_A, 0, 0xfffff, 0x91, 0xc); /* read-only */
	CHECK(ATTEMPT("mov %w0, %%fs", "r"(SEL_A)) == V_NONE);
	CHECK(ATTEMPT("movb %%fs:0x5000, %%al") == V_NONE);
	CHECK_REAL(ATTEMPT("movb $1, %%fs:0x5000") == V_GP && FAULTED(V_GP, 0));
	CHECK(ATTEMPT("mov %w0, %%ss", "r"(SEL_A)) == V_GP && FAULTED(V_GP, SEL_A));
	CHECK_REAL(ATTEMPT("movb $1, %%cs:0x5000") == V_GP);
	gdt_set(SEL_A, 0, 0xfffff, 0x99, 0xc); /* execute only */
	CHECK(ATTEMPT("mov %w0, %%fs", "r"(SEL_A)) == V_GP && FAULTED(V_GP, SEL_A));
	/* The null selector loads, and faults when it is used. */
	CHECK(ATTEMPT("mov %w0, %%fs", "r"(0)) == V_NONE);
	CHECK_REAL(ATTEMPT("movb %%fs:0x5000, %%al") == V_GP && FAULTED(V_GP, 0));
	CHECK(ATTEMPT("mov %w0, %%ss", "r"(0)) == V_GP && FAULTED(V_GP, 0));
	/* The accessed bit is set by the load. */
	gdt_set(SEL_A, 0, 0xfffff, 0x92, 0xc);
	CHECK(ATTEMPT("mov %w0, %%fs", "r"(SEL_A)) == V_NONE && (((volatile uint64_t *)gdt)[SEL_A / 8] >> 40 & 1));
	/* A jump beyond the code segment's limit. */
	gdt_set(SEL_B, 0, 0x200, 0x9b, 0xc); /* 2 MiB and 4 KiB */
	trap_clear();
	asm volatile("movl $1f, trap_resume; movl $0f, attempt_ip\n0: ljmp $0x98, $0x300000\n1: movl $0, trap_resume" : : : "memory");
	CHECK(FAULTED(V_GP, 0));
	say("segments: limits and types ok");
}

static void stores(void)
{
	struct __attribute__((packed)) { uint16_t limit; uint32_t base; } p;
	word v;
	uint16_t s;

	asm volatile("sgdt %0" : "=m"(p));
	CHECK(p.limit == 32 * 8 - 1 && p.base == (word)gdt);
	asm volatile("sidt %0" : "=m"(p));
	CHECK(p.limit == 256 * 8 - 1);
	asm volatile("str %0" : "=r"(v));
	CHECK((uint16_t)v == SEL_TSS);
	asm volatile("str %0" : "=m"(s));
	CHECK(s == SEL_TSS);
	asm volatile("sldt %0" : "=r"(v));
	CHECK(v == 0);
	asm volatile("smsw %0" : "=r"(v));
	CHECK((v & 0xffff) == (get_cr0() & 0xffff));
	asm volatile("lmsw %w0" : : "r"(get_cr0() | 8));
	CHECK(get_cr0() & 8);
	asm volatile("clts; lmsw %w0" : : "r"(0)); /* LMSW cannot clear PE */
	CHECK(get_cr0() & 1);
	CHECK((((volatile uint64_t *)gdt)[SEL_TSS / 8] >> 40 & 0xf) == 0xb); /* LTR made it busy */
	say("segments: stores ok");
}

#define QUERY(insn, selector, out) \
	({ uint8_t z; asm volatile(insn " %2, %0; setz %1" : "+r"(out), "=q"(z) : "r"((word)(selector)) : "cc"); z; })
#define VERIFY(insn, selector) \
	({ uint8_t z; asm volatile(insn " %w1; setz %0" : "=q"(z) : "r"(selector) : "cc"); z; })

static void queries(void)
{
	word v = 0x5555;

	gdt_set(SEL_A, 0x123456, 0x3ff, 0x91, 4);
	gdt_set(SEL_B, 0, 0x10, 0x93, 0xc);
	CHECK(QUERY("lar", SEL_A, v) && (v & 0xf0ff00) == 0x409100);
	CHECK(QUERY("lsl", SEL_A, v) && v == 0x3ff);
	CHECK(QUERY("lsl", SEL_B, v) && v == 0x10fff);
	CHECK(QUERY("lsl", SEL_TSS, v) && v == sizeof(tss) - 1);
	v = 0x5555;
	CHECK(!QUERY("lar", 0, v) && v == 0x5555);
	CHECK(!QUERY("lsl", 0x1000, v) && v == 0x5555);
	gdt_set(SEL_GATE, SEL_KERNEL_CODE << 16, 0, 0x8c, 0);
	CHECK(QUERY("lar", SEL_GATE, v));
	v = 0x5555;
	CHECK(!QUERY("lsl", SEL_GATE, v) && v == 0x5555); /* a gate has no limit */
	CHECK(VERIFY("verr", SEL_A) && !VERIFY("verw", SEL_A));
	CHECK(VERIFY("verr", SEL_B) && VERIFY("verw", SEL_B));
	CHECK(VERIFY("verr", SEL_KERNEL_CODE) && !VERIFY("verw", SEL_KERNEL_CODE));
	CHECK(!VERIFY("verr", 0) && !VERIFY("verr", SEL_TSS));
	CHECK(!VERIFY("verr", SEL_A | 3)); /* RPL counts */
	CHECK(!QUERY("lar", SEL_A | 3, v));
	word rpl = 0x10;
	uint8_t z;
	asm volatile("arpl %w2, %w0; setz %1" : "+r"(rpl), "=q"(z) : "r"(0x23) : "cc");
	CHECK(rpl == 0x13 && z);
	asm volatile("arpl %w2, %w0; setz %1" : "+r"(rpl), "=q"(z) : "r"(0x21) : "cc");
	CHECK(rpl == 0x13 && !z);
	say("segments: queries ok");
}

static void privilege(void)
{
	/* A call gate with DPL 3 and two parameters. */
	gdt[SEL_GATE / 8] = ((word)gate_target & 0xffff) | SEL_KERNEL_CODE << 16 | 2ull << 32 | 0xecull << 40 |
			    (uint64_t)((word)gate_target >> 16) << 48;
	CHECK(user_run(user_lcall, 0, 0) == V_USER_EXIT);
	CHECK(gate_cs == SEL_KERNEL_CODE && gate_ss == SEL_KERNEL_DATA && gate_arg0 == 0x11 && gate_arg1 == 0x22);
	CHECK(gate_esp == tss.esp0 - 4 * 6);
	CHECK(gate_old_esp == last.sp - 8); /* LRET $8 releases the parameters on both stacks */
	CHECK(last.cs == SEL_USER_CODE32 && last.ss == SEL_USER_DATA);
	gdt[SEL_GATE / 8] &= ~(3ull << 45); /* DPL 0 */
	CHECK(user_run(user_lcall, 0, 0) == V_GP && last.error == SEL_GATE);
	gdt[SEL_GATE / 8] = (gdt[SEL_GATE / 8] | 3ull << 45) & ~(1ull << 47); /* not present */
	CHECK(user_run(user_lcall, 0, 0) == V_NP && last.error == SEL_GATE);
	say("segments: call gates ok");
	/* A conforming segment runs at the caller's level. */
	gdt_set(SEL_CONFORMING, 0, 0xfffff, 0x9f, 0xc);
	CHECK(user_run(user_conforming, 0, 0) == V_USER_EXIT && conforming_cs == (SEL_CONFORMING | 3));
	CHECK(user_run(user_far_down, 0, 0) == V_GP && last.error == SEL_KERNEL_CODE);
	CHECK(user_run(user_load_ds0, 0, 0) == V_GP && last.error == SEL_KERNEL_DATA);
	CHECK(user_run(user_load_ss, 0, 0) == V_GP && last.error == SEL_KERNEL_DATA);
	CHECK(user_run(user_bound, 0, 0) == V_BR && last.ip == (word)user_bound_at && last.error == 0);
	CHECK(user_run(user_into, 0, 0) == V_OF && last.ip == (word)user_into_after);
	say("segments: privilege ok");
}

int guest_main(void)
{
	limits();
	stores();
	queries();
	privilege();
	return 0;
}
