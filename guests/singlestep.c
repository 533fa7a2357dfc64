/*
 * TF, debug registers and ICEBP (SDM vol. 3, 17.2 and 17.3): exactly one debug exception at each instruction boundary,
 * also behind instructions that a monitor emulates, behind IRET, POPF, SYSCALL and SYSRET, between the iterations of
 * REP, and none where MOV SS holds it back.
 */
#include "guest.h"

#define DR6_BS 0x4000ul
#define DR6_BD 0x2000ul
#define DR6_INIT 0xffff0ff0ul

#define LIST(name) extern void name(void); extern const word name##_list[];
LIST(step_popf) LIST(step_iret) LIST(step_rep) LIST(step_ss) LIST(step_sti) LIST(step_emulated) LIST(step_fault)
extern char user_step[], syscall_entry[], syscall_second[], fault_resume[];
extern const word user_step_list[], user_step_unmasked_list[];
extern int bp_code(void), bp_read(void);
extern void bp_write(void), bp_io(void), bp_ice(void);
extern char bp_code_at[], bp_written[], bp_was_read[], bp_io_done[], bp_ice_done[];
extern volatile uint32_t watched[4];
extern uint8_t rep_buffer[64];

static struct { word ip, dr6, flags, cs; } steps[64];
static volatile unsigned step_count;
static volatile word hook_dr7;

static bool on_debug(struct frame *frame)
{
	if (frame->vector == V_UD) {
		frame->ip = (word)fault_resume;
		return true;
	}
	if (frame->vector != V_DB)
		return false;
	if (step_count < 64) {
		steps[step_count].ip = frame->ip;
		steps[step_count].dr6 = get_dr6();
		steps[step_count].flags = frame->flags;
		steps[step_count].cs = frame->cs;
	}
	step_count++;
	hook_dr7 = get_dr7();
	if (steps[0].dr6 & 1)
		frame->flags |= EFLAGS_RF; /* go over the code breakpoint */
	set_dr6(DR6_INIT);
	return true;
}

/* Compares the log with a list that ends in 0; says where they part. */
static bool steps_are(const word *list)
{
	unsigned i;

	for (i = 0; list[i]; i++) {
		if (i < step_count && steps[i].ip == list[i] && steps[i].dr6 == (DR6_INIT | DR6_BS))
			continue;
		print("step ");
		print_dec(i);
		print(" of ");
		print_dec(step_count);
		print(": expected ");
		print_hex(list[i]);
		print(", got ");
		print_hex(i < step_count ? steps[i].ip : 0);
		print(" DR6 ");
		print_hex(i < step_count ? steps[i].dr6 : 0);
		say("");
		return false;
	}
	return i == step_count;
}

static bool stepped(void (*code)(void), const word *list)
{
	step_count = 0;
	code();
	return steps_are(list);
}

static void trap_flag(void)
{
	CHECK(stepped(step_popf, step_popf_list));
	CHECK(steps[0].flags & EFLAGS_TF);
	CHECK(!(steps[step_count - 1].flags & EFLAGS_TF));
	say("singlestep: POPF ok");
	CHECK(stepped(step_iret, step_iret_list));
	say("singlestep: IRET ok");
	CHECK(stepped(step_rep, step_rep_list));
	say("singlestep: REP ok");
	CHECK(stepped(step_ss, step_ss_list));
	CHECK_REAL(stepped(step_sti, step_sti_list));
	say("singlestep: shadows ok");
	asm volatile("sgdt %0" : "=m"(rep_buffer));
	CHECK_NOT_BOCHS(stepped(step_emulated, step_emulated_list));
	say("singlestep: emulated instructions ok");
	CHECK(stepped(step_fault, step_fault_list));
	say("singlestep: faults ok");
}

static void over_syscall(void)
{
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) | 1);
	wrmsr(MSR_STAR, 0x0020000800000000ull | 3ull << 48);
	wrmsr(MSR_LSTAR, (word)syscall_entry);
	wrmsr(MSR_FMASK, EFLAGS_TF | EFLAGS_IF);
	step_count = 0;
	CHECK(user_run(user_step, EFLAGS_TF, 0) == V_USER_EXIT);
	CHECK_NOT_BOCHS(steps_are(user_step_list));
	CHECK_NOT_BOCHS(steps[1].cs == SEL_USER_CODE64);
	wrmsr(MSR_FMASK, EFLAGS_IF);
	step_count = 0;
	CHECK(user_run(user_step, EFLAGS_TF, 0) == V_USER_EXIT);
	CHECK_REAL(under_bochs() || steps_are(user_step_unmasked_list));
	say("singlestep: SYSCALL ok");
}

#define DR7_ON(n, rw, len) (0x400ul | 2ul << (2 * (n)) | (word)(rw) << (16 + 4 * (n)) | (word)(len) << (18 + 4 * (n)))

static void breakpoints(void)
{
	step_count = 0;
	set_dr0((word)bp_code_at);
	set_dr7(DR7_ON(0, 0, 0));
	CHECK(bp_code() == 1);
	/* A fault, before the instruction; the handler sets RF to go on (SDM vol. 3, 17.3.1.1: the CPU pushes RF = 0). */
	CHECK(step_count == 1 && steps[0].ip == (word)bp_code_at && (steps[0].dr6 & 0xf) == 1 && !(steps[0].dr6 & DR6_BS));
	CHECK(!(steps[0].flags & EFLAGS_RF));
	set_dr7(0x400);
	CHECK(bp_code() == 1 && step_count == 1);
	say("singlestep: code breakpoint ok");

	step_count = 0;
	set_dr1((word)watched);
	set_dr7(DR7_ON(1, 1, 3)); /* writes, 4 bytes */
	CHECK(bp_read() == 0 && step_count == 0);
	bp_write();
	CHECK(step_count == 1 && steps[0].ip == (word)bp_written && (steps[0].dr6 & 0xf) == 2 && watched[0] == 5);
	*(volatile uint8_t *)((word)watched + 3) = 1; /* any byte of it */
	CHECK(step_count == 2);
	*(volatile uint64_t *)((word)watched - 4) = 1; /* a wider access that covers it */
	CHECK(step_count == 3);
	watched[1] = 1;
	CHECK(step_count == 3);
	step_count = 0;
	set_dr7(DR7_ON(1, 3, 3)); /* reads and writes */
	bp_read();
	CHECK(step_count == 1 && steps[0].ip == (word)bp_was_read && (steps[0].dr6 & 0xf) == 2);
	step_count = 0;
	set_dr7(DR7_ON(1, 1, 2)); /* 8 bytes */
	watched[1] = 2;
	CHECK(step_count == 1);
	set_dr7(0x400);
	say("singlestep: data breakpoints ok");

	step_count = 0;
	set_cr4(get_cr4() | 8); /* DE */
	set_dr2(0x80);
	set_dr7(DR7_ON(2, 2, 0));
	bp_io();
	CHECK_NOT_KVM(step_count == 1 && steps[0].ip == (word)bp_io_done && (steps[0].dr6 & 0xf) == 4);
	set_dr7(0x400);
	set_cr4(get_cr4() & ~8ul);
	say("singlestep: I/O breakpoint ok");
}

static void other_causes(void)
{
	step_count = 0;
	bp_ice();
	CHECK_REAL(step_count == 1 && steps[0].ip == (word)bp_ice_done && !(steps[0].dr6 & 0xf));
	step_count = 0;
	set_dr7(0x400 | 0x2000); /* GD: the next MOV DR faults, and GD is off in the handler */
	(void)get_dr0();
	CHECK_REAL(step_count == 1 && (steps[0].dr6 & DR6_BD) && !(hook_dr7 & 0x2000));
	set_dr7(0x400);
	say("singlestep: ICEBP and GD ok");
}

int guest_main(void)
{
	wrmsr(MSR_APIC_BASE, 0xfee00900);
	trap_hook = on_debug;
	set_dr7(0x400);
	set_dr6(DR6_INIT);
	trap_flag();
	over_syscall();
	breakpoints();
	other_causes();
	return 0;
}
