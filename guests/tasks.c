/*
 * Hardware task switches and virtual-8086 mode, in legacy 32-bit protected mode (SDM vol. 3, ch. 7 and 20): CALL and JMP to
 * a TSS, IRET with NT, task gates, #TS, and V86 code with its IOPL-sensitive instructions and INT.
 */
#include "guest.h"

#define SEL_TASK 0x90
#define SEL_TASK_GATE 0x98
#define SEL_RING1_CODE 0xa0
#define SEL_CALL_GATE 0xa8
#define SEL_RING1_DATA 0xb0
#define EFLAGS_VM 0x20000u
#define V86_SEGMENT 0x2000 /* the code is at 0x20000 */

void *memcpy(void *dst, const void *src, size_t n);

static struct tss task;
static uint8_t task_stack[4096] __attribute__((aligned(16)));
extern char task_entry[], call_ring1[], ring1_entry[], v86_start[], v86_end[], v86_cli[], v86_int[], v86_vector[], v86_fault[];
extern volatile word task_runs, task_seen_tr, task_seen_flags;
asm(".data; .balign 4\n"
    ".globl task_runs, task_seen_tr, task_seen_flags\n"
    "task_runs: .long 0\ntask_seen_tr: .long 0\ntask_seen_flags: .long 0\n"
    ".text\n"
    /* A task that counts its turns: each IRET leaves EIP behind it, so that the next turn goes on there. */
    "task_entry: incl task_runs; str %eax; mov %eax, task_seen_tr; pushf; popl task_seen_flags; add $7, %ebx; iret; jmp task_entry\n"
    "call_ring1: lcall $0xab, $0; int $0x80\n"
    "ring1_entry: lret\n"
    ".code16\n"
    "v86_start: mov $0x2100, %ax; mov %ax, %ds; movw $0x1234, 4; mov %cs, %bx; mov %ss, %cx\n"
    "v86_cli: cli; sti\n"
    "v86_int: int $0x80\n"
    "v86_vector: int $0x21\n"
    "v86_fault: mov 0xffff, %ax\n"
    "v86_end:\n.code32\n");

static void task_init(struct tss *t, void *entry)
{
	memcpy(t, &tss, 104);
	t->eip = (word)entry;
	t->esp = (word)task_stack + sizeof(task_stack);
	t->eflags = 2;
	t->cs = SEL_KERNEL_CODE;
	t->ss = t->ds = t->es = t->fs = t->gs = SEL_KERNEL_DATA;
	t->ldt = 0;
	t->ebx = 1;
	t->trap = 0;
	t->iomap = 104;
	gdt_set(SEL_TASK, (word)t, 103, 0x89, 0);
}

static unsigned type_of(unsigned selector)
{
	return ((volatile uint64_t *)gdt)[selector / 8] >> 40 & 0xf;
}

static word task_register(void)
{
	word v;

	asm volatile("str %0" : "=r"(v));
	return v & 0xffff;
}

static void switches(void)
{
	word marker = 0x600d;

	task_init(&task, task_entry);
	asm volatile("lcall $0x90, $0" : "+b"(marker) : : "memory", "cc");
	CHECK(task_runs == 1 && (task_seen_tr & 0xffff) == SEL_TASK);
	CHECK(marker == 0x600d); /* our registers came back */
	CHECK(task.ebx == 8);	 /* and the task's are kept in its TSS */
	CHECK(task.link == SEL_TSS);
	CHECK((task_seen_flags & EFLAGS_NT) && !(get_flags() & EFLAGS_NT)); /* a nested task has NT, its caller not */
	CHECK(task_register() == SEL_TSS && type_of(SEL_TASK) == 9 && type_of(SEL_TSS) == 0xb);
	CHECK(get_cr0() & 8); /* each switch sets TS */
	asm volatile("clts");
	asm volatile("lcall $0x90, $0" : : : "memory", "cc");
	CHECK(task_runs == 2 && task.ebx == 15);
	/* Through a task gate. */
	gdt[SEL_TASK_GATE / 8] = (uint64_t)SEL_TASK << 16 | 0x85ull << 40;
	asm volatile("lcall $0x98, $0" : : : "memory", "cc");
	CHECK(task_runs == 3);
	/* An interrupt by a task gate of the IDT. */
	idt_set(0x90, 0, SEL_TASK, 0x85, 0);
	asm volatile("int $0x90" : : : "memory", "cc");
	CHECK(task_runs == 4 && task_register() == SEL_TSS);
	asm volatile("clts");
	say("tasks: switches ok");
	/* A busy task cannot be called; one that is not present, #NP. */
	CHECK(ATTEMPT("lcall $0x38, $0") == V_GP && FAULTED(V_GP, SEL_TSS));
	gdt_set(SEL_TASK, (word)&task, 103, 0x09, 0);
	CHECK(ATTEMPT("lcall $0x90, $0") == V_NP && FAULTED(V_NP, SEL_TASK));
	gdt_set(SEL_TASK, (word)&task, 102, 0x89, 0); /* too short */
	CHECK(ATTEMPT("lcall $0x90, $0") == V_TS && last.error == SEL_TASK);
	/* IRET with NT to a TSS that is no task. */
	tss.link = SEL_KERNEL_DATA;
	trap_clear();
	asm volatile("movl $1f, trap_resume; movl $0f, attempt_ip; pushfl; orl $0x4000, (%%esp); popfl\n0: iretl\n"
		     "1: pushfl; andl $~0x4000, (%%esp); popfl; movl $0, trap_resume" : : : "memory", "cc");
	CHECK(last.vector == V_TS && last.error == SEL_KERNEL_DATA && last.ip == attempt_ip);
	say("tasks: faults ok");
}

static void inner_stack(void)
{
	/* A gate to level 1, whose stack in the TSS is of level 0: #TS with that selector, delivered to level 0. */
	gdt_set(SEL_RING1_CODE, 0, 0xfffff, 0xbb, 0xc);
	gdt_set(SEL_RING1_DATA, 0, 0xfffff, 0xb3, 0xc);
	gdt[SEL_CALL_GATE / 8] = ((word)ring1_entry & 0xffff) | (SEL_RING1_CODE | 1) << 16 | 0xecull << 40 |
				 (uint64_t)((word)ring1_entry >> 16) << 48;
	tss.ss1 = SEL_KERNEL_DATA;
	tss.esp1 = (word)task_stack + 2048;
	CHECK(user_run(call_ring1, 0, 0) == V_TS && last.error == SEL_KERNEL_DATA && last.cs == SEL_USER_CODE32);
	tss.ss1 = SEL_RING1_DATA | 1;
	CHECK(user_run(call_ring1, 0, 0) == V_USER_EXIT && last.cs == SEL_USER_CODE32);
	say("tasks: inner stacks ok");
}

static struct { word vector, error, ip, cs, flags, ax, bx, cx, ss, esp; } v86;
static volatile unsigned v86_count;
extern char v86_return[];

/* Records the trap out of V86 mode and goes back to the kernel where enter_v86() left. */
static bool v86_hook(struct frame *frame)
{
	if (!(frame->flags & EFLAGS_VM))
		return false;
	v86.vector = frame->vector;
	v86.error = frame->error;
	v86.ip = frame->ip;
	v86.cs = frame->cs;
	v86.flags = frame->flags;
	v86.ax = frame->ax;
	v86.bx = frame->bx;
	v86.cx = frame->cx;
	v86.esp = frame->sp;
	v86.ss = frame->ss;
	v86_count++;
	user_leave();
}

/* Like user_enter, with VM in the frame and the four data segments behind it. */
extern void enter_v86(word ip, word flags);
asm(".globl enter_v86\n"
    "enter_v86: mov 4(%esp), %eax; mov 8(%esp), %edx\n"
    "push %ebx; push %ebp; push %esi; push %edi; mov %esp, user_saved_sp\n"
    "push $0x2000; push $0x2000; push $0x2000; push $0x2000; push $0x3000; push $0x1000; push %edx; push $0x2000; push %eax\n"
    "iretl\n");

static word v86_offset(const char *label)
{
	return label - v86_start;
}

static void virtual_8086(void)
{
	memcpy((void *)(V86_SEGMENT << 4), v86_start, v86_end - v86_start);
	trap_hook = v86_hook;
	tss.iomap = sizeof(tss);
	/* IOPL 0: CLI faults. The segments before it were loaded as in real mode. */
	enter_v86(0, EFLAGS_VM | 2);
	CHECK(v86.vector == V_GP && v86.error == 0 && v86.ip == v86_offset(v86_cli) && v86.cs == V86_SEGMENT);
	CHECK((v86.flags & EFLAGS_VM) && v86.ss == 0x3000 && v86.esp == 0x1000);
	CHECK((v86.bx & 0xffff) == V86_SEGMENT && (v86.cx & 0xffff) == 0x3000);
	CHECK(*(volatile uint16_t *)0x21004 == 0x1234);
	/* IOPL 3: CLI works; INT goes through the protected-mode IDT, whose gate must have DPL 3. */
	enter_v86(0, EFLAGS_VM | 0x3002);
	CHECK(v86.vector == V_USER_EXIT && v86.ip == v86_offset(v86_vector));
	enter_v86(v86_offset(v86_vector), EFLAGS_VM | 0x3002);
	CHECK(v86.vector == V_GP && v86.error == 0x21 * 8 + 2 && v86.ip == v86_offset(v86_vector));
	/* IOPL below 3: INT faults itself, with no error code. */
	enter_v86(v86_offset(v86_int), EFLAGS_VM | 2);
	CHECK(v86.vector == V_GP && v86.error == 0 && v86.ip == v86_offset(v86_int));
	/* A word at the end of a segment of 64 KiB. */
	enter_v86(v86_offset(v86_fault), EFLAGS_VM | 0x3002);
	CHECK_REAL(v86.vector == V_GP && v86.error == 0 && v86.ip == v86_offset(v86_fault));
	CHECK(v86_count == 5);
	trap_hook = NULL;
	say("tasks: virtual-8086 mode ok");
}

int guest_main(void)
{
	/* TCG lets task switches pass by its KVM: CR3 of the TSS then becomes that of KVM's shadow page tables. */
	if (under_shadow() && under_tcg())
		say("tasks: switches ok\ntasks: faults ok");
	else
		switches();
	inner_stack();
	virtual_8086();
	return 0;
}
