/*
 * The ways into and out of the kernel: SYSCALL/SYSRET in 64-bit and compatibility mode, SYSENTER/SYSEXIT, SWAPGS,
 * FSGSBASE, UMIP (SDM vol. 2, the instructions' pages; vol. 3, 5.8.7, 5.8.8). AMD processors have no SYSENTER in long mode.
 */
#include "guest.h"

#define CR4_UMIP 0x800ul
#define CR4_FSGSBASE 0x10000ul
#define CR4_TSD 4ul

extern char user_syscall[], user_syscall_at[], user_syscall_back[], user_privileged[], user_end[];
extern char user_sgdt[], user_sidt[], user_sldt[], user_str[], user_smsw[], user_rdfsbase[], user_swapgs[], user_rdtsc[];
extern char user_sysenter[], user_sysenter_at[], user_wrfsbase[], user_fs_load[];
extern char entry64[], entry32[], entry_sysenter[], compat_syscall[], compat_syscall_back[], user_sysexit_back[];
extern volatile word seen_cx, seen_r11, seen_flags, seen_cs, seen_ss, seen_sp, seen_entry, out_flags, out_rcx;
asm(".data; .balign 8\n"
    ".globl seen_cx, seen_r11, seen_flags, seen_cs, seen_ss, seen_sp, seen_entry, out_flags, out_rcx\n"
    "seen_cx: .quad 0\nseen_r11: .quad 0\nseen_flags: .quad 0\nseen_cs: .quad 0\nseen_ss: .quad 0\nseen_sp: .quad 0\nseen_entry: .quad 0\n"
    "out_flags: .quad 0\nout_rcx: .quad 0\n"
    "entry_stack: .skip 512\nentry_stack_top:\n"
    ".text\n"
    "user_syscall: xor %ecx, %ecx; xor %r11d, %r11d; stc\nuser_syscall_at: syscall\n"
    "user_syscall_back: pushfq; popq out_flags; mov %rcx, out_rcx; int $0x80\n"
    "entry64: movl $64, seen_entry; jmp entry_common\n"
    "entry32: movl $32, seen_entry\n"
    "entry_common: mov %rsp, seen_sp; mov $entry_stack_top, %esp\n"
    "mov %rcx, seen_cx; mov %r11, seen_r11; pushfq; popq seen_flags; mov %cs, seen_cs; mov %ss, seen_ss\n"
    "mov seen_sp, %rsp; cmpl $32, seen_entry; je 1f; sysretq\n1: sysretl\n"
    ".code32\ncompat_syscall: syscall\ncompat_syscall_back: int $0x80\n.code64\n"
    "user_sysenter: mov %rsp, %rcx; lea user_sysexit_back, %rdx\nuser_sysenter_at: sysenter\n"
    "user_sysexit_back: int $0x80\n"
    "entry_sysenter: mov %cs, seen_cs; mov %ss, seen_ss; mov %rsp, seen_sp; pushfq; popq seen_flags; .byte 0x48; sysexit\n"
    "user_sgdt: sgdt -32(%rsp); int $0x80\n"
    "user_sidt: sidt -32(%rsp); int $0x80\n"
    "user_sldt: sldt %eax; int $0x80\n"
    "user_str: str %eax; int $0x80\n"
    "user_smsw: smsw %eax; int $0x80\n"
    "user_rdfsbase: rdfsbase %rax; int $0x80\n"
    "user_wrfsbase: wrfsbase %rdi; mov %fs:0, %rax; mov %rax, out_rcx; int $0x80\n"
    "user_swapgs: swapgs; int $0x80\n"
    "user_rdtsc: rdtsc; int $0x80\n");

static void syscall64(void)
{
	CHECK(ATTEMPT("syscall") == V_UD); /* EFER.SCE is off */
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) | 1);
	wrmsr(MSR_STAR, 0x0023000800000000ull);
	wrmsr(MSR_LSTAR, (word)entry64);
	wrmsr(MSR_CSTAR, (word)entry32);
	wrmsr(MSR_FMASK, EFLAGS_IF | EFLAGS_CF | EFLAGS_DF);
	CHECK_REAL(ATTEMPT_AFTER("mov $0xc0000082, %%ecx; xor %%eax, %%eax; mov $0x80000000, %%edx", "wrmsr") == V_GP); /* not canonical */
	CHECK(rdmsr(MSR_LSTAR) == (word)entry64);
	CHECK(user_run(user_syscall, EFLAGS_IF | EFLAGS_DF, 0) == V_USER_EXIT);
	CHECK(seen_entry == 64 && seen_cx == (word)user_syscall_back);
	CHECK(seen_cs == SEL_KERNEL_CODE && seen_ss == SEL_KERNEL_DATA);
	CHECK((seen_r11 & (EFLAGS_IF | EFLAGS_DF | EFLAGS_CF)) == (EFLAGS_IF | EFLAGS_DF | EFLAGS_CF) && !(seen_r11 & EFLAGS_RF));
	CHECK(!(seen_flags & (EFLAGS_IF | EFLAGS_DF | EFLAGS_CF)));
	CHECK(last.cs == SEL_USER_CODE64 && last.ss == SEL_USER_DATA);
	CHECK((out_flags & (EFLAGS_IF | EFLAGS_DF | EFLAGS_CF)) == (EFLAGS_IF | EFLAGS_DF | EFLAGS_CF));
	CHECK(out_rcx == (word)user_syscall_back);
	say("syscall: SYSCALL ok");
	/* From compatibility mode: CSTAR on AMD, #UD on Intel. */
	unsigned vector = user_run_in(SEL_USER_CODE32, compat_syscall, 0, 0);
	CHECK(vector == V_UD || (vector == V_USER_EXIT && seen_entry == 32 && seen_cx == (word)compat_syscall_back &&
					last.cs == SEL_USER_CODE32));
	say("syscall: compatibility mode ok");
}

/*
 * Each system call sends the processor an interrupt while IF is clear, and goes back in one of four ways, by the lowest bits of
 * the number of the round (EBX, counted down): 0 SYSRET, 1 STI and SYSRET in its shadow, 2 IRET, 3 SYSRET to a program with IF clear,
 * whose interrupt comes together with that of the next round. Each is taken before the program's next instruction.
 */
#define HELD_ROUNDS 8192u
#define HELD_VECTOR 0x60

extern char user_held[], user_held_back[], entry_held[], entry_held_shadow[];
asm(".data; held_stack: .skip 64\nheld_stack_top: held_sp: .quad 0\n.text\n"
    "user_held: mov %edi, %ebx\n"
    "0: mov %ebx, %eax; and $3, %eax; syscall\n"
    "user_held_back: dec %ebx; jnz 0b; int $0x80\n"
    "entry_held: mov $0xfee00300, %edx; movl $0x40060, (%rdx); or $0x200, %r11d\n"
    "cmp $1, %eax; jb 1f; je 2f; cmp $3, %eax; je 3f; mov %rsp, held_sp; mov $held_stack_top, %esp\n"
    "push $0x2b; push held_sp; push %r11; push $0x33; push %rcx; iretq\n"
    "3: and $~0x200, %r11d\n"
    "1: sysretq\n"
    "2: sti\n"
    "entry_held_shadow: sysretq\n");

static volatile unsigned held_wrong, held_next;

static bool held_hook(struct frame *frame)
{
	if (frame->vector != HELD_VECTOR)
		return false;
	/* As between STI and HLT, see halt(). */
	bool lost_shadow = frame->ip == (word)entry_held_shadow && frame->cs == SEL_KERNEL_CODE && (under_bochs() || under_tcg());
	bool right = frame->ip == (word)user_held_back && frame->cs == SEL_USER_CODE64 && frame->ss == SEL_USER_DATA;

	if ((!right && !lost_shadow) || !(frame->flags & EFLAGS_IF) || frame->bx != held_next) {
		held_wrong++;
		last.ip = frame->ip;
		last.cs = frame->cs;
		last.flags = frame->flags;
	}
	held_next = (unsigned)frame->bx - ((frame->bx & 3) ? 1 : 2);
	return false;
}

static void held_back(void)
{
	lapic_enable();
	irq_clear();
	irq_eoi = EOI_LAPIC;
	trap_hook = held_hook;
	wrmsr(MSR_LSTAR, (word)entry_held);
	held_next = HELD_ROUNDS;
	CHECK(user_run(user_held, EFLAGS_IF, HELD_ROUNDS) == V_USER_EXIT);
	CHECK(held_wrong == 0);
	CHECK(irq_count[HELD_VECTOR] == HELD_ROUNDS / 4 * 3 && held_next == 0);
	trap_hook = NULL;
	wrmsr(MSR_LSTAR, (word)entry64);
	say("syscall: interrupts held back ok");
}

static bool is_intel(void)
{
	return cpuid(0, 0).ebx == 0x756e6547;
}

static void sysenter(void)
{
	wrmsr(MSR_SYSENTER_CS, 0);
	unsigned vector = user_run(user_sysenter, 0, 0);
	if (!is_intel()) {
		CHECK(vector == V_UD && last.ip == (word)user_sysenter_at);
		say("syscall: SYSENTER ok");
		return;
	}
	CHECK(vector == V_GP && last.error == 0 && last.ip == (word)user_sysenter_at);
	wrmsr(MSR_SYSENTER_CS, SEL_SYSENTER);
	wrmsr(0x175, (word)user_stack + 2048);
	wrmsr(0x176, (word)entry_sysenter);
	CHECK(user_run(user_sysenter, EFLAGS_IF, 0) == V_USER_EXIT);
	CHECK(seen_cs == SEL_SYSENTER && seen_ss == SEL_SYSENTER + 8 && seen_sp == (word)user_stack + 2048);
	CHECK(!(seen_flags & EFLAGS_IF));
	CHECK(last.cs == SEL_SYSENTER + 32 + 3 && last.ss == SEL_SYSENTER + 40 + 3);
	say("syscall: SYSENTER ok");
}

static void bases(void)
{
	static uint64_t data[2] = {0x1111, 0x2222};
	word v;

	wrmsr(MSR_GS_BASE, (word)&data[0]);
	wrmsr(MSR_KERNEL_GS_BASE, (word)&data[1]);
	asm volatile("mov %%gs:0, %0" : "=r"(v));
	CHECK(v == 0x1111);
	asm volatile("swapgs; mov %%gs:0, %0" : "=r"(v));
	CHECK(v == 0x2222 && rdmsr(MSR_GS_BASE) == (word)&data[1] && rdmsr(MSR_KERNEL_GS_BASE) == (word)&data[0]);
	asm volatile("swapgs");
	CHECK(user_run(user_swapgs, 0, 0) == V_GP && last.error == 0 && last.ip == (word)user_swapgs);
	/* Loading a selector loads the base; 64 bits of an MSR base survive until then. */
	wrmsr(MSR_FS_BASE, 0xffff800000000000);
	CHECK(rdmsr(MSR_FS_BASE) == 0xffff800000000000);
	asm volatile("mov %0, %%fs" : : "r"(SEL_KERNEL_DATA));
	CHECK(rdmsr(MSR_FS_BASE) == 0);
	CHECK_REAL(ATTEMPT_AFTER("mov $0xc0000100, %%ecx; xor %%eax, %%eax; mov $0x800000, %%edx", "wrmsr") == V_GP);
	CHECK(ATTEMPT("rdfsbase %%rax") == V_UD && FAULTED(V_UD, 0));
	CHECK(user_run(user_rdfsbase, 0, 0) == V_UD);
	say("syscall: SWAPGS ok");
	if (!(cpuid(7, 0).ebx & 1)) {
		say("syscall: FSGSBASE ok, where there is one");
		return;
	}
	set_cr4(get_cr4() | CR4_FSGSBASE);
	asm volatile("wrfsbase %1; rdfsbase %0" : "=r"(v) : "r"(0x123456789000ul));
	CHECK(v == 0x123456789000 && rdmsr(MSR_FS_BASE) == v);
	asm volatile("wrgsbase %1; rdgsbase %0" : "=r"(v) : "r"((word)&data[1]));
	CHECK(v == (word)&data[1]);
	asm volatile("mov $-1, %%rax; wrfsbase %%eax; rdfsbase %0" : "=r"(v) : : "ax"); /* 32 bits, zero-extended */
	CHECK(v == 0xffffffff);
	CHECK_REAL(ATTEMPT("wrfsbase %0", "r"(0x8000000000000000)) == V_GP && FAULTED(V_GP, 0));
	CHECK(user_run(user_wrfsbase, 0, (word)data) == V_USER_EXIT && out_rcx == 0x1111);
	CHECK(rdmsr(MSR_FS_BASE) == (word)data);
	set_cr4(get_cr4() & ~CR4_FSGSBASE);
	say("syscall: FSGSBASE ok, where there is one");
}

static void umip(void)
{
	static const struct { char *code; } codes[] = {{user_sgdt}, {user_sidt}, {user_sldt}, {user_str}, {user_smsw}};

	for (unsigned i = 0; i < 5; i++)
		CHECK(user_run(codes[i].code, 0, 0) == V_USER_EXIT);
	if (!(cpuid(7, 0).ecx & 4)) {
		say("syscall: UMIP ok, where there is one");
	} else {
		set_cr4(get_cr4() | CR4_UMIP);
		for (unsigned i = 0; i < 4; i++)
			CHECK(user_run(codes[i].code, 0, 0) == V_GP && last.error == 0 && last.ip == (word)codes[i].code);
		/* Where the processor has no UMIP, KVM cannot intercept SMSW. */
		CHECK_NOT_KVM(user_run(user_smsw, 0, 0) == V_GP && last.error == 0 && last.ip == (word)user_smsw);
		CHECK(ATTEMPT("smsw %%eax") == V_NONE);
		set_cr4(get_cr4() & ~CR4_UMIP);
		say("syscall: UMIP ok, where there is one");
	}
	CHECK(user_run(user_rdtsc, 0, 0) == V_USER_EXIT);
	set_cr4(get_cr4() | CR4_TSD);
	CHECK(user_run(user_rdtsc, 0, 0) == V_GP && last.ip == (word)user_rdtsc);
	CHECK(ATTEMPT("rdtsc") == V_NONE);
	set_cr4(get_cr4() & ~CR4_TSD);
	say("syscall: TSD ok");
}

int guest_main(void)
{
	syscall64();
	held_back();
	sysenter();
	bases();
	umip();
	return 0;
}
