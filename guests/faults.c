/*
 * Exceptions: which vector, error code, saved RIP and CR2 each cause gives; double faults; and which of two causes
 * wins (SDM vol. 3, 6.9 and 6.15). QEMU's TCG has no #AC, no #XM, no #SS for RBP, accepts reserved bits in
 * control registers and MSRs, and numbers IDT errors by 16: CHECK_REAL marks what fails there; the SDM decides.
 */
#include "guest.h"

#define NON_CANONICAL 0x8000000000000000ul
#define UNMAPPED 0x140000000ul /* beyond the 4 GiB that are mapped */

#define EDGE 0x7fff90000000ul /* the canonical addresses end less than 2 GiB behind */

extern volatile uint64_t boot_pml4[512];
extern char user_ac[], user_cli[], user_hlt[], user_bad_jump[], user_in[], user_int3[], user_int13[], user_popf_if[];
asm(".globl user_ac, user_cli, user_hlt, user_bad_jump, user_in, user_int3, user_int13, user_popf_if\n"
    "user_ac: mov (%rdi), %eax; int $0x80\n"
    "user_cli: cli; int $0x80\n"
    "user_hlt: hlt; int $0x80\n"
    "user_bad_jump: jmp *%rdi\n"
    "user_in: in $0x60, %al; int $0x80\n"
    "user_int3: int3\n"
    "user_int13: int $13\n"
    "user_popf_if: push $2; popf; int $0x80\n");

/*
 * Calls to where nothing can be, by register, by memory and directly. They fault before they push, also after they have led, from another
 * address, to where nothing is.
 */
extern char edge_page[], edge_calls[];
asm(".balign 4096\n"
    "edge_page: call *%rdi\n .balign 16\n push %rdi; call *(%rsp)\n .balign 16\n .byte 0xe8; .long 0x7ffffff0\n"
    ".balign 4096\n");

static void calls_to_nowhere(void)
{
	static volatile uint64_t tables[3][512] __attribute__((aligned(4096)));

	tables[2][0] = (word)edge_page | 7;
	tables[1][EDGE >> 21 & 511] = (word)tables[2] | 7;
	tables[0][EDGE >> 30 & 511] = tables[0][(EDGE >> 30 & 511) - 4] = (word)tables[1] | 7;
	boot_pml4[EDGE >> 39] = (word)tables[0] | 7;
	for (unsigned i = 0; i < 60; i++)
		CHECK(user_run((void *)(EDGE - (4ul << 30) + i % 3 * 16), 0, UNMAPPED) == V_PF);
	for (unsigned i = 0; i < 60; i++) {
		unsigned kind = i % 3, pushed = kind == 1 ? 8 : 0;
		word call = EDGE + kind * 16 + (kind == 1);
		volatile word *below = (word *)(user_stack + sizeof(user_stack) - 64 - pushed) - 1;

		*below = 0x5a5a0000 + i;
		CHECK_REAL(user_run((void *)(EDGE + kind * 16), 0, i % 2 ? 0x800000000000ul : 0xffff7ffffffffffful) == V_GP && last.error == 0);
		/* The APM leaves it open whether the call faults or, behind it, its target's fetch. */
		CHECK_REAL(last.ip != call || *below == 0x5a5a0000 + i);
	}
	boot_pml4[EDGE >> 39] = 0;
	set_cr3(get_cr3());
	say("faults: calls to nowhere ok");
}

static void traps_and_faults(void)
{
	extern char after_bp[], after_int3[], after_int4[];

	CHECK(ATTEMPT_AFTER("xor %%edx, %%edx; mov $1, %%eax; xor %%ecx, %%ecx", "div %%ecx") == V_DE);
	CHECK(FAULTED(V_DE, 0));
	CHECK(ATTEMPT_AFTER("mov $1, %%edx; mov $0, %%eax; mov $1, %%ecx", "div %%ecx") == V_DE);
	CHECK(FAULTED(V_DE, 0));
	CHECK(ATTEMPT_AFTER("mov $0x80000000, %%eax; cdq; mov $-1, %%ecx", "idiv %%ecx") == V_DE);
	CHECK(FAULTED(V_DE, 0));
	CHECK(ATTEMPT_AFTER("mov $0x80, %%eax; mov $-1, %%ecx", "idiv %%cl") == V_NONE); /* 128 / -1 = -128 */
	/* INT3 and INT n are traps: RIP is behind them. */
	CHECK(ATTEMPT("int3; .globl after_bp; after_bp: nop") == V_BP && last.ip == (word)after_bp && last.error == 0);
	CHECK(ATTEMPT("int $3; .globl after_int3; after_int3: nop") == V_BP && last.ip == (word)after_int3);
	CHECK(ATTEMPT("int $4; .globl after_int4; after_int4: nop") == V_OF && last.ip == (word)after_int4);
	CHECK(ATTEMPT("ud2") == V_UD && FAULTED(V_UD, 0));
	CHECK(ATTEMPT(".byte 0x0f, 0xb9, 0xc0") == V_UD && FAULTED(V_UD, 0)); /* UD1 */
	CHECK(ATTEMPT(".byte 0x06") == V_UD);		    /* PUSH ES: not in 64-bit mode */
	CHECK(ATTEMPT(".byte 0xce") == V_UD);		    /* INTO is gone */
	CHECK(ATTEMPT(".byte 0xd4, 0x0a") == V_UD);	    /* AAM is gone */
	CHECK_REAL(ATTEMPT("lea user_stack, %%rcx; .byte 0xf0, 0x8b, 0x01") == V_UD); /* LOCK MOV r, m */
	CHECK_REAL(ATTEMPT(".byte 0xf0, 0x01, 0xc0") == V_UD);   /* LOCK ADD r, r */
	CHECK_REAL(ATTEMPT(".byte 0xf0, 0x39, 0x04, 0x24") == V_UD); /* LOCK CMP m, r */
	CHECK(ATTEMPT(".byte 0x0f, 0x20, 0xc8") == V_UD);   /* MOV from CR1 */
	CHECK(ATTEMPT(".byte 0x8e, 0xc8") == V_UD);	    /* MOV to CS */
	say("faults: vectors ok");
}

static void device_not_available(void)
{
	set_cr0(get_cr0() | 8);
	CHECK(ATTEMPT("fnop") == V_NM && FAULTED(V_NM, 0));
	CHECK(ATTEMPT("fwait") == V_NM); /* TS with MP */
	asm volatile("clts");
	CHECK(!(get_cr0() & 8));
	CHECK(ATTEMPT("fnop") == V_NONE);
	set_cr0((get_cr0() & ~2ul) | 8); /* TS without MP: WAIT passes */
	CHECK(ATTEMPT("fwait") == V_NONE);
	set_cr0((get_cr0() & ~8ul) | 4); /* EM */
	CHECK(ATTEMPT("fnop") == V_NM);
	CHECK(ATTEMPT("movaps %%xmm0, %%xmm0") == V_UD);
	set_cr0((get_cr0() & ~4ul) | 2);
	set_cr4(get_cr4() & ~0x200ul); /* OSFXSR off: SSE is undefined */
	CHECK(ATTEMPT("movaps %%xmm0, %%xmm0") == V_UD);
	/* An unmasked x87 exception is reported by the next waiting instruction, with NE set as #MF. */
	asm volatile("fninit; fldcw %0; fld1; fldz; fdivrp" : : "m"((const uint16_t){0x37b}));
	CHECK(ATTEMPT("fwait") == V_MF && FAULTED(V_MF, 0));
	asm volatile("fnclex; fninit");
	/* The same for SSE is immediate: #XM, if OSXMMEXCPT. */
	set_cr4(get_cr4() | 0x600);
	asm volatile("ldmxcsr %0" : : "m"((const uint32_t){0x1d80})); /* zero-divide unmasked */
	CHECK_REAL(ATTEMPT_AFTER("mov $1, %%eax; cvtsi2ss %%eax, %%xmm0; xorps %%xmm1, %%xmm1", "divss %%xmm1, %%xmm0") == V_XM);
	CHECK_REAL(FAULTED(V_XM, 0));
	asm volatile("ldmxcsr %0" : : "m"((const uint32_t){0x1f80}));
	say("faults: floating point ok");
}

/* RBP-based accesses raise #SS; the register must be put back whatever happens. */
static void stack_faults(void)
{
	trap_clear();
	asm volatile("movq $1f, trap_resume; movq $0f, attempt_ip; mov %%rbp, %%rdx; mov %0, %%rbp\n"
		     "0: mov 8(%%rbp), %%eax\n1: mov %%rdx, %%rbp; movq $0, trap_resume"
		     : : "r"(NON_CANONICAL) : "ax", "dx", "memory");
	CHECK_REAL(FAULTED(V_SS, 0));
	CHECK(ATTEMPT("mov (%0), %%eax", "r"(NON_CANONICAL)) == V_GP && FAULTED(V_GP, 0));
	CHECK(ATTEMPT("mov %%ds:(%0), %%eax", "r"(0x7fffffffffffull + 1)) == V_GP);
	CHECK_REAL(ATTEMPT_AFTER("mov $0x1b, %%ecx; mov $-1, %%edx; mov $-1, %%eax", "wrmsr") == V_GP); /* reserved bits */
	CHECK_REAL(ATTEMPT_AFTER("mov $0x12345, %%ecx", "rdmsr") == V_GP && FAULTED(V_GP, 0));
	CHECK_REAL(ATTEMPT("mov %0, %%cr0", "r"(0x80000000ul)) == V_GP && FAULTED(V_GP, 0)); /* PG without PE */
	CHECK_REAL(ATTEMPT("mov %0, %%cr0", "r"(get_cr0() | 1ul << 32)) == V_GP);
	CHECK_REAL(ATTEMPT("mov %0, %%cr0", "r"(get_cr0() | 0x20000000)) == V_GP); /* NW without CD */
	CHECK_REAL(ATTEMPT("mov %0, %%cr4", "r"(get_cr4() & ~0x20ul)) == V_GP); /* PAE off in long mode */
	CHECK_REAL(ATTEMPT("mov %0, %%cr4", "r"(get_cr4() | 1ul << 31)) == V_GP);
	CHECK_REAL(ATTEMPT("mov %0, %%cr8", "r"(0x10ul)) == V_GP);
	CHECK_REAL(ATTEMPT("mov %0, %%dr7", "r"(1ul << 32)) == V_GP && FAULTED(V_GP, 0));
	CHECK(ATTEMPT("mov %w0, %%ds", "r"(0x1230)) == V_GP && FAULTED(V_GP, 0x1230)); /* beyond the GDT */
	CHECK(ATTEMPT("mov %w0, %%ds", "r"(0x14)) == V_GP && FAULTED(V_GP, 0x14));     /* in a null LDT */
	CHECK(ATTEMPT("mov %w0, %%ss", "r"(SEL_KERNEL_CODE)) == V_GP && FAULTED(V_GP, SEL_KERNEL_CODE));
	CHECK(ATTEMPT("mov %w0, %%ss", "r"(SEL_USER_DATA)) == V_GP && FAULTED(V_GP, SEL_USER_DATA & ~3));
	gdt_set(SEL_FREE, 0, 0xfffff, 0x13, 0xc); /* data, not present */
	CHECK(ATTEMPT("mov %w0, %%es", "r"(SEL_FREE)) == V_NP && FAULTED(V_NP, SEL_FREE));
	CHECK(ATTEMPT("mov %w0, %%ss", "r"(SEL_FREE)) == V_SS && FAULTED(V_SS, SEL_FREE));
	CHECK(ATTEMPT("ltr %w0", "r"(SEL_TSS)) == V_GP && FAULTED(V_GP, SEL_TSS)); /* busy */
	CHECK(ATTEMPT("int $0xf0") == V_NONE);
	idt_set(0xf0, (word)trap_stubs + 0xf00, SEL_KERNEL_CODE, 0x0e, 0); /* gate not present: EXT 0, IDT 1 */
	CHECK_REAL(ATTEMPT("int $0xf0") == V_NP && FAULTED(V_NP, 0xf0 * 8 + 2));
	idt_set(0xf0, (word)trap_stubs + 0xf00, SEL_KERNEL_DATA, 0x8e, 0); /* not a code segment */
	CHECK(ATTEMPT("int $0xf0") == V_GP && FAULTED(V_GP, SEL_KERNEL_DATA));
	idt_set(0xf0, (word)trap_stubs + 0xf00, SEL_KERNEL_CODE, 0x80, 0); /* not a gate */
	CHECK_REAL(ATTEMPT("int $0xf0") == V_GP && FAULTED(V_GP, 0xf0 * 8 + 2));
	idt_set(0xf0, (word)trap_stubs + 0xf00, SEL_KERNEL_CODE, 0x8e, 0);
	/* IRET to a selector beyond the GDT. */
	trap_clear();
	asm volatile("movq $1f, trap_resume; movq $0f, attempt_ip; mov %%rsp, %%rdx; push $0x10; push %%rdx; pushf; push $0x1230; push $1f\n"
		     "0: iretq\n1: mov %%rdx, %%rsp; movq $0, trap_resume" : : : "dx", "memory", "cc");
	CHECK(FAULTED(V_GP, 0x1230));
	say("faults: protection ok");
}

static void from_user_mode(void)
{
	static uint32_t pair[3];

	CHECK(user_run(user_cli, 0, 0) == V_GP && last.error == 0 && last.ip == (word)user_cli && last.cs == SEL_USER_CODE64);
	CHECK(user_run(user_hlt, 0, 0) == V_GP && last.ip == (word)user_hlt);
	CHECK(user_run(user_in, 0, 0) == V_GP && last.ip == (word)user_in && last.error == 0);
	CHECK(user_run(user_int3, 0, 0) == V_BP && last.ip == (word)user_int3 + 1); /* DPL 3 gate */
	CHECK_REAL(user_run(user_int13, 0, 0) == V_GP && last.error == 13 * 8 + 2 && last.ip == (word)user_int13);
	CHECK(user_run(user_bad_jump, 0, NON_CANONICAL) == V_GP && last.error == 0 &&
		(last.ip == (word)user_bad_jump || last.ip == NON_CANONICAL)); /* Intel: the jump; AMD: its target */;
	CHECK(user_run(user_bad_jump, 0, UNMAPPED) == V_PF && last.error == (4 | 16) && last.ip == UNMAPPED && last.cr2 == UNMAPPED);
	/* POPF below IOPL leaves IF alone, without a fault. */
	CHECK(user_run(user_popf_if, EFLAGS_IF, 0) == V_USER_EXIT && (last.flags & EFLAGS_IF));
	CHECK(user_run(user_ac, 0, (word)pair + 1) == V_USER_EXIT);
	say("faults: user mode ok");
	set_cr0(get_cr0() | 0x40000); /* AM */
	CHECK(user_run(user_ac, EFLAGS_AC, (word)pair) == V_USER_EXIT);
	CHECK_REAL(user_run(user_ac, EFLAGS_AC, (word)pair + 1) == V_AC && last.error == 0 && last.ip == (word)user_ac);
	/* A page fault comes before the alignment check (SDM vol. 3, table 6-2 lists them in one class; CPUs agree). */
	CHECK(user_run(user_ac, EFLAGS_AC, UNMAPPED) == V_PF);
	set_cr0(get_cr0() & ~0x40000ul);
	say("faults: alignment ok");
}

static void page_faults_and_priority(void)
{
	CHECK(ATTEMPT("mov (%0), %%eax", "r"(UNMAPPED + 5)) == V_PF && FAULTED(V_PF, 0) && last.cr2 == UNMAPPED + 5);
	CHECK(ATTEMPT("movl $1, (%0)", "r"(UNMAPPED + 5)) == V_PF && FAULTED(V_PF, 2) && last.cr2 == UNMAPPED + 5);
	CHECK_REAL(ATTEMPT("incl (%0)", "r"(UNMAPPED + 8)) == V_PF && FAULTED(V_PF, 2)); /* read-modify-write: W set */
	CHECK_REAL(ATTEMPT("lock; cmpxchg %%ecx, (%0)", "r"(UNMAPPED + 8)) == V_PF && FAULTED(V_PF, 2));
	/* The first byte behind the border faults: CR2 is the page's first byte. */
	CHECK(ATTEMPT("mov (%0), %%eax", "r"(0xfffffffeul)) == V_PF && FAULTED(V_PF, 0) && last.cr2 == 0x100000000);
	/* #UD of a bad encoding wins over the operand's page fault; #GP of the address over the divide error. */
	CHECK_REAL(ATTEMPT(".byte 0xf0; mov (%0), %%eax", "r"(UNMAPPED)) == V_UD);
	CHECK(ATTEMPT_AFTER("xor %%eax, %%eax; xor %%edx, %%edx", "divl (%0)", "r"(UNMAPPED)) == V_PF);
	CHECK(ATTEMPT_AFTER("mov $1, %%eax; xor %%edx, %%edx", "divl (%0)", "r"(NON_CANONICAL)) == V_GP);
	/* An instruction longer than 15 bytes is #GP, whatever it is. */
	CHECK(ATTEMPT(".fill 15, 1, 0x66; nop") == V_GP && FAULTED(V_GP, 0));
	CHECK(ATTEMPT(".fill 14, 1, 0x66; nop") == V_NONE);
	/* A faulting string instruction keeps its progress. */
	word left, at;
	trap_clear();
	asm volatile("movq $1f, trap_resume; movq $0f, attempt_ip\n0: rep stosb\n1: movq $0, trap_resume"
		     : "=c"(left), "=D"(at) : "0"(100ul), "1"(0xfffffff0ul), "a"(0) : "memory");
	CHECK(FAULTED(V_PF, 2) && left == 84 && at == 0x100000000 && last.cr2 == 0x100000000);
	say("faults: page faults and priority ok");
}

static volatile bool double_faulted;
static volatile uint64_t double_error, double_cs;
static bool double_hook(struct frame *frame)
{
	extern char double_resume[];

	if (frame->vector != V_DF)
		return false;
	double_faulted = true;
	double_error = frame->error;
	double_cs = frame->cs;
	frame->ip = (word)double_resume;
	return true;
}

static void double_fault(void)
{
	/* #GP whose gate is not present: #NP while delivering a contributory fault makes #DF, error code 0. */
	idt_set(V_GP, (word)trap_stubs + 16 * V_GP, SEL_KERNEL_CODE, 0x0e, 0);
	trap_hook = double_hook;
	word sp;
	if (!(under_kvm() && under_tcg())) /* TCG as a host forgets the first fault when KVM injects it anew */
		asm volatile("mov %%rsp, %0; mov (%1), %%eax; .globl double_resume; double_resume:" : "=&r"(sp) : "r"(NON_CANONICAL)
			     : "ax", "memory");
	CHECK_REAL(double_faulted && double_error == 0 && double_cs == SEL_KERNEL_CODE);
	trap_hook = NULL;
	/* A benign exception with a bad gate is only the second fault: #UD's gate absent gives #NP with EXT set. */
	idt_set(V_GP, (word)trap_stubs + 16 * V_GP, SEL_KERNEL_CODE, 0x8e, 0);
	idt_set(V_UD, (word)trap_stubs + 16 * V_UD, SEL_KERNEL_CODE, 0x0e, 0);
	CHECK_REAL(ATTEMPT("ud2") == V_NP && FAULTED(V_NP, V_UD * 8 + 2 + 1));
	idt_set(V_UD, (word)trap_stubs + 16 * V_UD, SEL_KERNEL_CODE, 0x8e, 0);
	say("faults: double fault ok");
}

int guest_main(void)
{
	traps_and_faults();
	set_cr0(get_cr0() | 2); /* MP, as systems set it */
	device_not_available();
	stack_faults();
	page_faults_and_priority();
	double_fault();
	from_user_mode();
	calls_to_nowhere();
	return 0;
}
