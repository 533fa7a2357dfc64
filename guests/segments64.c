/*
 * Segmentation in IA-32e mode: what is left of it in 64-bit mode, far transfers between 64-bit and compatibility mode, 64-bit
 * call gates, IRET, the interrupt stack table and stack alignment (SDM vol. 3, 5.8.3.1, 6.14).
 */
#include <string.h>

#include "guest.h"

#define SEL_A 0x90
#define SEL_GATE 0xa0 /* two entries */

extern char user_es[], user_gate[], gate64_target[], user_compat[], user_gs_limit[], compat_add[], user_compat_target[], user_lar[];
extern volatile word gate_cs, gate_ss, gate_sp, gate_return_sp, compat_result, user_result;
asm(".data; .balign 8\n"
    ".globl gate_cs, gate_ss, gate_sp, gate_return_sp, compat_result, user_result\n"
    "gate_cs: .quad 0\ngate_ss: .quad 0\ngate_sp: .quad 0\ngate_return_sp: .quad 0\ncompat_result: .quad 0\nuser_result: .quad 0\n"
    "gate_pointer: .long 0; .word 0xa3\n"
    "compat_pointer: .long compat_add; .word 0x18\n"
    "user_compat_pointer: .long user_compat_target; .word 0x23\n"
    "user_back_pointer: .long user_compat_back; .word 0x33\n"
    ".text\n"
    "user_gate: lcall *gate_pointer; int $0x80\n"
    "gate64_target: mov %cs, gate_cs; mov %ss, gate_ss; mov %rsp, gate_sp; mov 16(%rsp), %rax; mov %rax, gate_return_sp; lretq\n"
    /* Kernel code that runs in compatibility mode and returns by LRET. */
    ".code32\ncompat_add: mov $0xffffffff, %eax; inc %eax; sete %cl; movzx %cl, %ecx; mov %ecx, compat_result; lret\n"
    "user_compat_target: mov $0x2b, %ecx; mov %ecx, %ds; mov $0x12345678, %ecx; push %ecx; pop %edx; mov %edx, user_result; mov %esp, user_result + 4; ljmp *user_back_pointer\n"
    ".code64\n"
    "user_compat: ljmp *user_compat_pointer\nuser_compat_back: int $0x80\n"
    "user_es: mov %es, %ecx; mov %rcx, user_result; int $0x80\n"
    "user_lar: mov $0x10, %ecx; lar %ecx, %eax; setz %al; movzx %al, %eax; mov %rax, user_result; int $0x80\n");

static void flat(void)
{
	uint64_t system_gdt[2];
	word v = 0;
	uint8_t z;

	/* Base and limit of DS, ES, SS are ignored; those of FS and GS count for the base alone. */
	gdt_set(SEL_A, 0x1000, 0, 0x93, 0);
	CHECK(ATTEMPT("mov %w0, %%es; movb %%es:0x5000, %%al", "r"(SEL_A)) == V_NONE);
	*(volatile uint32_t *)0x6000 = 0x1234;
	asm volatile("mov %w1, %%fs; mov %%fs:0x5000, %k0" : "=r"(v) : "r"(SEL_A) : "memory");
	CHECK(v == 0x1234);
	asm volatile("mov %w0, %%es; mov %w0, %%fs" : : "r"(0));
	CHECK(ATTEMPT("mov %w0, %%ss", "r"(0)) == V_NONE); /* null SS is fine in 64-bit mode at CPL 0 */
	CHECK(ATTEMPT("mov %w0, %%ss", "r"(SEL_KERNEL_DATA)) == V_NONE);
	CHECK(ATTEMPT("movb %%ds:0, %%al; mov %w0, %%ds; movb %%ds:0, %%al; mov %w1, %%ds", "r"(0), "r"(SEL_KERNEL_DATA)) == V_NONE);
	asm volatile("lar %2, %0; setz %1" : "+r"(v), "=q"(z) : "r"((word)SEL_KERNEL_CODE) : "cc");
	CHECK(z && (v & 0xf0ff00) == 0xa09b00);
	asm volatile("lsl %2, %0; setz %1" : "+r"(v), "=q"(z) : "r"((word)SEL_TSS) : "cc");
	CHECK(z && v == sizeof(tss) - 1);
	asm volatile("lsl %2, %0; setz %1" : "+r"(v), "=q"(z) : "r"((word)SEL_KERNEL_DATA) : "cc");
	CHECK(z && v == 0xffffffff);
	CHECK(user_run(user_lar, 0, 0) == V_USER_EXIT && user_result == 0);
	/* A null selector is null whatever its RPL; a return to an outer level takes the RPL away. */
	asm volatile("mov %w1, %%es; mov %%es, %0" : "=&r"(v) : "r"(3));
	CHECK(v == 3);
	CHECK(user_run(user_es, 0, 0) == V_USER_EXIT && user_result == 0);
	/* So does a privileged selector, whose base stays. */
	gdt_set(SEL_A, 0, 0xfffff, 0x93, 0xc);
	asm volatile("mov %w0, %%gs; wrmsr" : : "r"(SEL_A), "c"(0xc0000101), "a"(0x5000), "d"(0));
	CHECK(user_run(user_es, 0, 0) == V_USER_EXIT);
	asm volatile("mov %%gs, %0" : "=r"(v));
	CHECK(v == 0);
	asm volatile("rdmsr" : "=a"(v) : "c"(0xc0000101) : "rdx");
	CHECK(v == 0x5000);
	asm volatile("mov %w0, %%gs" : : "r"(0));
	/* TSS and LDT with a base that is not canonical. */
	memcpy(system_gdt, &gdt[SEL_A / 8], sizeof(system_gdt));
	gdt[SEL_A / 8] = 0x0000820000000000 | 0xffff;
	gdt[SEL_A / 8 + 1] = 0x8000;
	CHECK_REAL(ATTEMPT("lldt %w0", "r"(SEL_A)) == V_GP && FAULTED(V_GP, SEL_A));
	gdt[SEL_A / 8 + 1] = 0x7fff;
	CHECK(ATTEMPT("lldt %w0", "r"(SEL_A)) == V_NONE);
	CHECK(ATTEMPT("lldt %w0", "r"(0)) == V_NONE);
	gdt[SEL_A / 8] = 0x0000890000000000 | 0x67;
	gdt[SEL_A / 8 + 1] = 0x8000;
	CHECK_REAL(ATTEMPT("ltr %w0", "r"(SEL_A)) == V_GP && FAULTED(V_GP, SEL_A));
	CHECK((gdt[SEL_A / 8] >> 40 & 0xff) == 0x89);
	memcpy(&gdt[SEL_A / 8], system_gdt, sizeof(system_gdt));
	struct __attribute__((packed)) { uint16_t limit; uint64_t base; } p;
	asm volatile("sgdt %0" : "=m"(p));
	CHECK(p.base == (word)gdt && p.limit == 255);
	/* A 32-bit code segment with L and D both set is refused. */
	gdt_set(SEL_A, 0, 0xfffff, 0x9b, 0xe);
	trap_clear();
	if (!under_tcg()) /* where it would come to run with both */
		asm volatile("movq $1f, trap_resume; movq $0f, attempt_ip; push $0x90; push $1f\n0: lretq\n1: movq $0, trap_resume; cmpl $13, last; jne 2f; add $16, %%rsp\n2:"
			     : : : "memory", "cc");
	CHECK_REAL(FAULTED(V_GP, SEL_A));
	say("segments64: flat segments ok");
}

static void far_transfers(void)
{
	asm volatile("lcall *compat_pointer" : : : "ax", "cx", "memory", "cc");
	CHECK(compat_result == 1);
	CHECK(user_run(user_compat, 0, 0) == V_USER_EXIT && last.cs == SEL_USER_CODE64);
	CHECK((uint32_t)user_result == 0x12345678 && user_result >> 32 == (word)user_stack + sizeof(user_stack) - 64);
	/* A 64-bit call gate: two entries of the GDT, no parameters, null SS inside. */
	gdt[SEL_GATE / 8] = ((word)gate64_target & 0xffff) | SEL_KERNEL_CODE << 16 | 0xecull << 40 |
			    (uint64_t)((word)gate64_target >> 16 & 0xffff) << 48;
	gdt[SEL_GATE / 8 + 1] = (word)gate64_target >> 32;
	CHECK(user_run(user_gate, 0, 0) == V_USER_EXIT);
	CHECK(gate_cs == SEL_KERNEL_CODE && gate_ss == 0 && gate_sp == tss.rsp[0] - 32);
	CHECK(gate_return_sp == (word)user_stack + sizeof(user_stack) - 64 && last.sp == gate_return_sp);
	CHECK(last.cs == SEL_USER_CODE64 && last.ss == SEL_USER_DATA);
	say("segments64: far transfers ok");
}

static volatile word hook_sp, hook_frame_sp, hook_ss;

static bool stack_hook(struct frame *frame)
{
	if (frame->vector != V_BP && frame->vector != 0x90)
		return false;
	hook_sp = (word)(frame + 1);
	hook_frame_sp = frame->sp;
	hook_ss = frame->ss;
	return true;
}

static void stacks(void)
{
	static uint8_t own[1024] __attribute__((aligned(16)));
	word sp;

	trap_hook = stack_hook;
	/* The CPU aligns RSP to 16 before it pushes, and always pushes SS:RSP. */
	asm volatile("mov %%rsp, %%rdx; sub $3, %%rsp; mov %%rsp, %0; int3; mov %%rdx, %%rsp" : "=&r"(sp) : : "dx", "memory");
	CHECK(hook_frame_sp == sp && hook_sp == (sp & ~15ul));
	CHECK(hook_ss == SEL_KERNEL_DATA);
	/* An IST entry is taken whatever the level. */
	tss.ist[1] = (word)own + sizeof(own) - 5;
	idt_set(0x90, (word)trap_stubs + 0x900, SEL_KERNEL_CODE, 0x8e, 2);
	asm volatile("mov %%rsp, %0; int $0x90" : "=r"(sp) : : "memory");
	CHECK(hook_frame_sp == sp && hook_sp == (((word)own + sizeof(own) - 5) & ~15ul));
	trap_hook = NULL;
	/* IRETQ to the same level loads SS:RSP too; IRET with NT set faults. */
	asm volatile("mov %%rsp, %%rdx; push $0x10; lea -256(%%rdx), %%rcx; push %%rcx; pushfq; push $8; push $1f; iretq\n1: mov %%rsp, %0; mov %%rdx, %%rsp"
		     : "=&r"(sp) : : "cx", "dx", "memory");
	CHECK(sp % 8 == 0 && sp < hook_frame_sp);
	trap_clear();
	asm volatile("movq $1f, trap_resume; movq $0f, attempt_ip; mov %%rsp, %%rdx; push $0x10; push %%rdx; pushfq; push $8; push $1f\n"
		     "pushfq; orl $0x4000, (%%rsp); popfq\n0: iretq\n1: pushfq; andl $~0x4000, (%%rsp); popfq; mov %%rdx, %%rsp; movq $0, trap_resume"
		     : : : "dx", "memory", "cc");
	CHECK(FAULTED(V_GP, 0));
	/* IRETQ to a RIP that is not canonical. */
	trap_clear();
	asm volatile("movq $1f, trap_resume; movq $0f, attempt_ip; mov %%rsp, %%rdx; push $0x10; push %%rdx; pushfq; push $8; mov $0x800000000000, %%rcx; push %%rcx\n"
		     "0: iretq\n1: mov %%rdx, %%rsp; movq $0, trap_resume" : : : "cx", "dx", "memory", "cc");
	CHECK_REAL(FAULTED(V_GP, 0));
	say("segments64: stacks ok");
}

int guest_main(void)
{
	flat();
	far_transfers();
	stacks();
	return 0;
}
