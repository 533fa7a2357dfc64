/* Rows about the processor: system calls, exceptions, returns, control and model-specific registers, hypercalls. */
#include "nano_guest.h"

#define EFER_SCE 1u
#define FLAGS_MASK (EFLAGS_TF | EFLAGS_IF | EFLAGS_DF | EFLAGS_AC)

/* Runs a ring-3 loop of n operations that each count once in a handler. */
static uint64_t run_user(const char *code, uint64_t n)
{
	nano_count = 0;
	if (user_run(code, 0, n) != V_USER_EXIT)
		nano_wrong("ring 3 ended with an exception");
	else if (nano_count != n)
		nano_wrong("the handler did not run once for each");
	return nano_user_cycles;
}

static const char *missing_syscall(void)
{
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_SCE);
	/* SYSCALL: CS 08, SS 10. SYSRET: CS 30, SS 28, with RPL 3 (SDM vol. 3, 5.8.8). */
	wrmsr(MSR_STAR, (uint64_t)0x23 << 48 | (uint64_t)SEL_KERNEL_CODE << 32);
	wrmsr(MSR_LSTAR, (uint64_t)nano_syscall_entry);
	wrmsr(MSR_FMASK, FLAGS_MASK);
	return NULL;
}

static uint64_t run_syscall(uint64_t n)
{
	return run_user(nano_user_syscall, n);
}

static void set_handler(unsigned vector, void (*handler)(void))
{
	idt_set(vector, (word)handler, SEL_KERNEL_CODE, 0x8e, 0);
}

static void restore_handler(unsigned vector)
{
	idt_set(vector, (word)trap_stubs + 16 * vector, SEL_KERNEL_CODE, 0x8e, 0);
}

static const char *missing_pgfault(void)
{
	nano_user_target = page_at(PAGE_HOLE);
	set_handler(V_PF, nano_skip2_error);
	return NULL;
}

static uint64_t run_pgfault(uint64_t n)
{
	uint64_t cycles = run_user(nano_user_fault, n);

	if (get_cr2() != nano_user_target)
		nano_wrong("CR2 is not the address");
	return cycles;
}

static void finish_pgfault(void) { restore_handler(V_PF); }

static const char *missing_divzero(void)
{
	set_handler(V_DE, nano_skip2);
	return NULL;
}

static uint64_t run_divzero(uint64_t n)
{
	uint64_t cycles;

	nano_count = 0;
	cycles = NANO_LOOP(n, "xor %%ecx, %%ecx\n\tdiv %%ecx");
	if (nano_count != n)
		nano_wrong("not every division trapped");
	return cycles;
}

static void finish_divzero(void) { restore_handler(V_DE); }

static uint64_t run_iret(uint64_t n)
{
	return NANO_LOOP(n, "mov %%rsp, %%rax\n\tlea 2f(%%rip), %%rcx\n\tpush $0x10\n\tpush %%rax\n\tpushf\n\tpush $0x08\n\t"
		"push %%rcx\n\tiretq\n2:");
}

static uint64_t run_cr8wr(uint64_t n)
{
	return NANO_LOOP(n, "mov %[zero], %%cr8", [zero] "r"(0ul));
}

static uint64_t run_rdmsr(uint64_t n)
{
	return NANO_LOOP(n, "mov %[msr], %%ecx\n\trdmsr", [msr] "i"(MSR_APIC_BASE));
}

static uint64_t run_wrmsr(uint64_t n)
{
	return NANO_LOOP(n, "mov %[msr], %%ecx\n\txor %%eax, %%eax\n\txor %%edx, %%edx\n\twrmsr", [msr] "i"(MSR_KERNEL_GS_BASE));
}

static bool is_amd(void)
{
	uint32_t vendor = cpuid(0, 0).ebx;

	return vendor == 0x68747541 || vendor == 0x6f677948; /* "Auth", "Hygo" */
}

/* Function 1 of KVM's interface (which others answer too) does nothing or is refused with a code in RAX. */
static const char *missing_hypercall(void)
{
	unsigned vector = is_amd() ? ATTEMPT_AFTER("mov $1, %%eax\n\t", "vmmcall", "r"(0)) :
		ATTEMPT_AFTER("mov $1, %%eax\n\t", "vmcall", "r"(0));

	return vector == V_NONE ? NULL : "no hypervisor answers a hypercall";
}

static uint64_t run_hypercall(uint64_t n)
{
	return is_amd() ? NANO_LOOP(n, "mov $1, %%eax\n\tvmmcall") : NANO_LOOP(n, "mov $1, %%eax\n\tvmcall");
}

const struct nano_row nano_cpu_rows[] = {
	{.name = "syscall", .missing = missing_syscall, .run = run_syscall},
	{.name = "pgfault", .missing = missing_pgfault, .run = run_pgfault, .finish = finish_pgfault},
	{.name = "divzero", .missing = missing_divzero, .run = run_divzero, .finish = finish_divzero},
	{.name = "iret", .run = run_iret},
	{.name = "cr8wr", .run = run_cr8wr},
	{.name = "rdmsr", .run = run_rdmsr},
	{.name = "wrmsr", .run = run_wrmsr},
	{0},
};

/* Comes last of all, since there are hypervisors that never answer. */
const struct nano_row nano_hypercall_rows[] = {
	{.name = "hypercall", .missing = missing_hypercall, .run = run_hypercall},
	{0},
};
