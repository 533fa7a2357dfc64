/*
 * IRETQ from 64-bit code at CPL 0, one instruction that is executed often (a translator gives that code of its own), with whatever may
 * come in between: flags, stacks, null SS, interrupts that have been held back, NMIs; to programs of 64 and 32 bits, with the data
 * segments that these may and may not keep; and everything that makes it fault (SDM vol. 2, IRET; vol. 3, 5.8, 6.14, 6.15, 17.3.1.1).
 */
#include "guest.h"

#define ROUNDS 40u
#define EFLAGS_PF 0x4u
#define EFLAGS_AF 0x10u
#define EFLAGS_SF 0x80u
#define EFLAGS_IOPL 0x3000u
#define EFLAGS_ID 0x200000u
#define STATUS (EFLAGS_CF | EFLAGS_PF | EFLAGS_AF | EFLAGS_ZF | EFLAGS_SF | EFLAGS_OF)
#define SHOWN (STATUS | EFLAGS_IF | EFLAGS_DF | EFLAGS_IOPL | EFLAGS_NT | EFLAGS_AC | EFLAGS_ID)
#define CR0_AM 0x40000ul
#define HELD_VECTOR 0x60
#define ACCESSED (1ull << 40)
#define PRESENT (1ull << 47)

struct image {
	word ip, cs, flags, sp, ss;
};
/* Room below: a fault's frame would be there if it were not for IST. */
static struct {
	word below[64];
	struct image image;
} at __attribute__((aligned(4096)));

extern char iret_at[], iret_back[], iret_back_second[], iret_fault[], user_int[], user_misaligned[], user_ac[], user32_int[], user_ac_entry[];
void iret_go(const struct image *image, word flags);
extern volatile word seen_sp, seen_ss, seen_flags;
asm(".data; .balign 8\n"
    "seen_sp: .quad 0\nseen_ss: .quad 0\nseen_flags: .quad 0\nsaved_sp: .quad 0\n"
    ".globl seen_sp, seen_ss, seen_flags\n"
    ".text\n"
    "iret_go: push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
    "mov %rsp, saved_sp; push %rsi; popfq; mov %rdi, %rsp\n"
    "iret_at: iretq\n"
    "iret_back: mov %rsp, seen_sp\n"
    "iret_back_second: mov saved_sp, %rsp; pushfq; popq seen_flags; mov %ss, seen_ss\n"
    "iret_fault: mov saved_sp, %rsp; push $2; popfq\n"
    "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret\n"
    "user_int: int $0x80\n"
    "user_misaligned: mov 1(%rsp), %rax; int $0x80\n"
    /* With AC and without: two rounds of SYSCALL, whose entry leaves AC alone. */
    "user_ac: syscall; mov 1(%rsp), %rax; int $0x80\n"
    "user_ac_entry: sysretq\n"
    ".code32\nuser32_int: int $0x80\n.code64\n");

static struct {
	word ip, cs, flags, sp, ss, ds, es, fs, gs;
	unsigned vector, count;
} program;
static unsigned held_count, nmi_count, step_count;
static word held_ip, held_flags, held_cs, step_ip, nmi_ip[2];
static bool nmi_again;

static void see_program(const struct frame *frame)
{
	program.vector = (unsigned)frame->vector;
	program.count++;
	program.ip = frame->ip;
	program.cs = frame->cs;
	program.flags = frame->flags;
	program.sp = frame->sp;
	program.ss = frame->ss;
	asm volatile("mov %%ds, %0; mov %%es, %1; mov %%fs, %2; mov %%gs, %3"
		     : "=r"(program.ds), "=r"(program.es), "=r"(program.fs), "=r"(program.gs));
}

static bool hook(struct frame *frame)
{
	if (frame->vector == HELD_VECTOR) {
		held_count++;
		held_ip = frame->ip;
		held_cs = frame->cs;
		held_flags = frame->flags;
		return false;
	}
	if (frame->vector == V_NMI) {
		nmi_ip[nmi_count++ & 1] = frame->ip;
		if (nmi_again)
			lapic_write(0x300, 0x40400);
		nmi_again = false;
		return true;
	}
	if (frame->vector == V_DB) {
		step_count++;
		step_ip = frame->ip;
		frame->flags &= ~(word)EFLAGS_TF;
		return true;
	}
	if (frame->vector == V_SS)
		frame->ss = 0; /* the one that it had may be present no more */
	if ((frame->cs & 3) == 3) {
		see_program(frame);
		frame->ip = (word)iret_fault;
		frame->cs = SEL_KERNEL_CODE;
		frame->ss = 0;
		frame->flags = 2;
		return true;
	}
	return false;
}

static struct image usual(void)
{
	return (struct image){(word)iret_back, SEL_KERNEL_CODE, 2, (word)&at, SEL_KERNEL_DATA};
}

static struct image to_user(const char *code)
{
	return (struct image){(word)code, SEL_USER_CODE64, 2, (word)user_stack + 2048, SEL_USER_DATA};
}

static void go(struct image image, word flags)
{
	trap_clear();
	seen_sp = seen_ss = seen_flags = 1;
	at.image = image;
	trap_resume = (word)iret_fault;
	iret_go(&at.image, flags);
	trap_resume = 0;
}

/* It arrives in the kernel, with all that the frame says. */
static bool arrives(struct image image)
{
	go(image, 2);
	return last.vector == V_NONE && seen_sp == image.sp && seen_ss == image.ss && !((seen_flags ^ image.flags) & SHOWN & ~EFLAGS_IF);
}

static bool faults_now(struct image image, word flags, unsigned vector, word error)
{
	go(image, flags);
	return last.vector == vector && last.error == error && last.ip == (word)iret_at && last.sp == (word)&at.image && seen_sp == 1;
}

static bool faults(struct image image, unsigned vector, word error)
{
	return faults_now(image, 2, vector, error);
}

static bool reaches(struct image image)
{
	go(image, 2);
	return last.vector == V_NONE && program.vector == V_USER_EXIT && program.sp == image.sp && program.ss == image.ss && program.cs == image.cs;
}

static void to_kernel(unsigned round)
{
	static const word flags[] = {STATUS, EFLAGS_CF, EFLAGS_OF | EFLAGS_ZF, EFLAGS_SF | EFLAGS_AF, EFLAGS_PF, EFLAGS_ID, EFLAGS_AC, EFLAGS_DF,
		EFLAGS_IOPL, EFLAGS_NT, EFLAGS_RF, EFLAGS_RF | EFLAGS_CF, EFLAGS_IF};
	static const word stacks[] = {0x123456789abcdef0, 0xffff800000000008, 0x7ffffffffff9, 0, ~0ul, 0x8000000000};
	struct image i = usual();

	CHECK(arrives(i));
	i.ss = 0;
	CHECK(arrives(i));
	for (unsigned n = 0; n < sizeof(flags) / sizeof(flags[0]); n++) {
		i = usual();
		i.flags |= flags[n] ^ (round & 1 ? EFLAGS_CF : 0);
		CHECK(arrives(i));
	}
	for (unsigned n = 0; n < sizeof(stacks) / sizeof(stacks[0]); n++) {
		i = usual();
		i.sp = stacks[n];
		CHECK_NOT_BOCHS(arrives(i));
	}
	i = usual();
	i.cs |= 0xabcd0000;
	i.ss |= 0x12340000;
	go(i, 2);
	CHECK(last.vector == V_NONE && seen_ss == SEL_KERNEL_DATA);
}

static void in_kernel_faults(void)
{
	static const struct { uint16_t cs, ss; uint8_t vector, error; } wrong[] = {
		{0, SEL_KERNEL_DATA, V_GP, 0}, {3, SEL_KERNEL_DATA, V_GP, 0}, {SEL_KERNEL_DATA, SEL_KERNEL_DATA, V_GP, SEL_KERNEL_DATA},
		{SEL_KERNEL_CODE | 3, SEL_KERNEL_DATA, V_GP, SEL_KERNEL_CODE}, {SEL_KERNEL_CODE | 4, SEL_KERNEL_DATA, V_GP, SEL_KERNEL_CODE | 4},
		{SEL_USER_CODE64 & ~3, SEL_KERNEL_DATA, V_GP, SEL_USER_CODE64 & ~3}, {SEL_KERNEL_CODE, SEL_USER_DATA, V_GP, SEL_USER_DATA & ~3},
		{SEL_KERNEL_CODE, SEL_KERNEL_DATA | 3, V_GP, SEL_KERNEL_DATA}, {SEL_KERNEL_CODE, 3, V_GP, 0},
		{SEL_KERNEL_CODE, SEL_KERNEL_CODE, V_GP, SEL_KERNEL_CODE}, {SEL_USER_CODE64, SEL_KERNEL_DATA, V_GP, SEL_KERNEL_DATA},
		{SEL_USER_CODE64, 0, V_GP, 0}, {SEL_USER_CODE64, 3, V_GP, 0}, {SEL_USER_CODE64, SEL_USER_CODE64, V_GP, SEL_USER_CODE64 & ~3},
	};
	struct image i;

	for (unsigned n = 0; n < sizeof(wrong) / sizeof(wrong[0]); n++) {
		i = usual();
		i.cs = wrong[n].cs;
		i.ss = wrong[n].ss;
		if (!(under_tcg() && wrong[n].ss == 3)) /* TCG takes a null SS of any RPL */
			CHECK(faults(i, wrong[n].vector, wrong[n].error));
	}
	i = usual();
	i.cs = 0xf000;
	CHECK(faults(i, V_GP, 0xf000));
	i = usual();
	i.ip = 0x800000000000;
	CHECK_REAL(faults(i, V_GP, 0));
	i = to_user((const char *)0xffff7fffffffffff);
	CHECK_REAL(faults(i, V_GP, 0));
	CHECK(faults_now(usual(), 2 | EFLAGS_NT, V_GP, 0));
	CHECK(last.flags & EFLAGS_NT);
	i = usual();
	i.flags |= EFLAGS_NT;
	CHECK(faults_now(i, 2 | EFLAGS_NT, V_GP, 0));
	trap_clear();
	trap_resume = (word)iret_fault;
	iret_go((struct image *)0x7f0000000ff0, 2);
	CHECK(last.vector == V_PF && last.cr2 == 0x7f0000000ff0 && last.ip == (word)iret_at);
	trap_resume = 0;
}

/* Descriptors that change under way. */
static void descriptors(void)
{
	struct { uint16_t limit; uint64_t base; } __attribute__((packed)) table, small;
	volatile uint64_t *code = &gdt[SEL_USER_CODE64 / 8], *data = &gdt[SEL_USER_DATA / 8], *stack = &gdt[SEL_KERNEL_DATA / 8];

	*code &= ~ACCESSED;
	CHECK_REAL(reaches(to_user(user_int)) && (*code & ACCESSED));
	*data &= ~ACCESSED;
	CHECK_REAL(reaches(to_user(user_int)) && (*data & ACCESSED));
	*stack &= ~ACCESSED;
	CHECK_REAL(arrives(usual()) && (*stack & ACCESSED));
	*code &= ~PRESENT;
	CHECK(faults(to_user(user_int), V_NP, SEL_USER_CODE64 & ~3));
	*code |= PRESENT;
	*data &= ~PRESENT;
	CHECK_REAL(faults(to_user(user_int), V_SS, SEL_USER_DATA & ~3));
	*data |= PRESENT;
	*stack &= ~PRESENT;
	CHECK_REAL(faults(usual(), V_SS, SEL_KERNEL_DATA));
	*stack |= PRESENT;
	asm volatile("sgdt %0" : "=m"(table));
	small = table;
	small.limit = SEL_USER_CODE64 & ~7;
	asm volatile("lgdt %0" : : "m"(small));
	CHECK(faults(to_user(user_int), V_GP, SEL_USER_CODE64 & ~3));
	asm volatile("lgdt %0" : : "m"(table));
	CHECK(reaches(to_user(user_int)));
}

static void set_data(uint16_t ds, uint16_t es, uint16_t fs, uint16_t gs)
{
	asm volatile("mov %0, %%ds; mov %1, %%es; mov %2, %%fs; mov %3, %%gs" : : "r"(ds), "r"(es), "r"(fs), "r"(gs));
}

static void to_programs(unsigned round)
{
	struct image i = to_user(user_int);

	i.flags = 2 | STATUS | (round & 1 ? EFLAGS_ID : 0);
	set_data(0, 0, 0, 0);
	CHECK(reaches(i) && program.ip == (word)user_int + 2 && !((program.flags ^ i.flags) & SHOWN));
	CHECK(program.ds == 0 && program.es == 0 && program.fs == 0 && program.gs == 0);
	set_data(SEL_USER_DATA, SEL_USER_DATA, SEL_USER_DATA, 0);
	CHECK(reaches(i) && program.ds == SEL_USER_DATA && program.es == SEL_USER_DATA && program.fs == SEL_USER_DATA && program.gs == 0);
	set_data(SEL_KERNEL_DATA, SEL_USER_DATA, SEL_KERNEL_DATA, 0);
	CHECK(reaches(i) && program.ds == 0 && program.es == SEL_USER_DATA && program.fs == 0 && program.gs == 0);
	set_data(SEL_USER_DATA, 0, 0, SEL_KERNEL_DATA);
	CHECK(reaches(i) && program.ds == SEL_USER_DATA && program.gs == 0);
	set_data(0, 0, 0, 0);
	i.sp = 0x123456789abcdef0;
	CHECK_NOT_BOCHS(reaches(i));
	i = to_user(user32_int);
	i.cs = SEL_USER_CODE32;
	CHECK(reaches(i) && program.cs == SEL_USER_CODE32);
}

/* Alignment checks begin at CPL 3, also if AC was set before. */
static void alignment(void)
{
	struct image i = to_user(user_misaligned);
	word cr0 = get_cr0();

	CHECK(reaches(i));
	set_cr0(cr0 | CR0_AM);
	CHECK(reaches(i));
	i.flags |= EFLAGS_AC;
	go(i, 2);
	CHECK_REAL(program.vector == V_AC);
	go(i, 2 | EFLAGS_AC);
	CHECK_REAL(program.vector == V_AC && program.ip == (word)user_misaligned);
	i = to_user(user_ac);
	CHECK(reaches(i));
	i.flags |= EFLAGS_AC;
	go(i, 2);
	CHECK_REAL(program.vector == V_AC && program.ip == (word)user_ac + 2);
	set_cr0(cr0);
}

static void interrupts(unsigned round)
{
	struct image i = usual();

	held_count = 0;
	i.flags |= EFLAGS_IF | (round & 1 ? EFLAGS_RF : 0) | STATUS;
	lapic_write(0x300, 0x40000 | HELD_VECTOR);
	CHECK(held_count == 0);
	CHECK(arrives(i) && held_count == 1 && held_ip == (word)iret_back);
	CHECK_REAL(!((held_flags ^ i.flags) & (STATUS | EFLAGS_IF)));
	CHECK_NOT_KVM(under_bochs() || under_tcg() || !((held_flags ^ i.flags) & EFLAGS_RF));
	i = to_user(user_int);
	i.flags |= EFLAGS_IF;
	lapic_write(0x300, 0x40000 | HELD_VECTOR);
	held_count = 0;
	go(i, 2);
	/* The hook has ended the program at its first interrupt. */
	CHECK(held_count == 1 && held_ip == (word)user_int && held_cs == SEL_USER_CODE64);
	/* The second NMI waits for the first one's IRET. */
	nmi_count = 0;
	nmi_again = true;
	lapic_write(0x300, 0x40400);
	while (nmi_count < 2)
		asm volatile("pause");
	CHECK_NOT_KVM(nmi_count == 2);
}

static void single_step(void)
{
	struct image i = usual();

	i.flags |= EFLAGS_TF;
	step_count = 0;
	CHECK(arrives(i) && step_count == 1 && step_ip == (word)iret_back_second);
	i = to_user(user_misaligned);
	i.flags |= EFLAGS_TF;
	step_count = 0;
	CHECK(reaches(i) && step_count == 1 && step_ip == (word)user_misaligned + 5);
}

int guest_main(void)
{
	static uint8_t own[4096] __attribute__((aligned(16)));
	static const uint8_t with_stack[] = {V_NP, V_SS, V_GP, V_PF, V_DB};

	tss.ist[1] = (word)own + sizeof(own);
	for (unsigned n = 0; n < sizeof(with_stack); n++)
		idt_set(with_stack[n], (word)trap_stubs + with_stack[n] * 16ul, SEL_KERNEL_CODE, 0x8e, 2);
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) | 1);
	wrmsr(MSR_STAR, 0x0023000800000000ull);
	wrmsr(MSR_LSTAR, (word)user_ac_entry);
	wrmsr(MSR_FMASK, STATUS | EFLAGS_IF);
	lapic_enable();
	irq_eoi = EOI_LAPIC;
	trap_hook = hook;
	for (unsigned round = 0; round < ROUNDS; round++)
		to_kernel(round);
	say("iret: in the kernel ok");
	for (unsigned round = 0; round < ROUNDS; round++)
		to_programs(round);
	say("iret: to programs ok");
	for (unsigned round = 0; round < ROUNDS; round++) {
		in_kernel_faults();
		to_kernel(round);
	}
	say("iret: faults ok");
	for (unsigned round = 0; round < ROUNDS; round++)
		descriptors();
	say("iret: descriptors ok");
	for (unsigned round = 0; round < ROUNDS; round++)
		alignment();
	say("iret: alignment checks ok");
	for (unsigned round = 0; round < ROUNDS; round++)
		interrupts(round);
	say("iret: interrupts ok");
	for (unsigned round = 0; round < ROUNDS; round++)
		single_step();
	say("iret: single steps ok");
	return 0;
}
