/*
 * User programs inside the guest: what a virtual CPU most easily gets wrong as a Linux process sees it. Built
 * static, as a 64-bit and as a 32-bit program; prints "ok NAME" or "not ok NAME: why" for each test and exits with
 * the number of failures. Runs natively as well, where it must pass.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#if defined(__x86_64__)
#define UC_PC REG_RIP
#define UC_FLAGS REG_EFL
#define USER_PC(r) ((r).rip)
#define USER_FLAGS(r) ((r).eflags)
#else
#define UC_PC REG_EIP
#define UC_FLAGS REG_EFL
#define USER_PC(r) ((unsigned long)(r).eip)
#define USER_FLAGS(r) ((r).eflags)
#endif
#define TF 0x100

static char why[200];
#define REQUIRE(cond, ...) \
	do { \
		if (!(cond)) { \
			snprintf(why, sizeof why, __VA_ARGS__); \
			return 0; \
		} \
	} while (0)

static volatile sig_atomic_t signal_count, last_signal, last_code;
static volatile unsigned long last_pc, last_addr;
static sigjmp_buf jump_back;

static void note_signal(int sig, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;

	signal_count++;
	last_signal = sig;
	last_code = info->si_code;
	last_addr = (unsigned long)info->si_addr;
	last_pc = (unsigned long)uc->uc_mcontext.gregs[UC_PC];
}

static void note_and_jump(int sig, siginfo_t *info, void *context)
{
	note_signal(sig, info, context);
	siglongjmp(jump_back, 1);
}

static void handle(int sig, void (*fn)(int, siginfo_t *, void *))
{
	struct sigaction action = { .sa_sigaction = fn, .sa_flags = SA_SIGINFO };

	sigaction(sig, &action, NULL);
	signal_count = 0;
}

static int test_signals(void)
{
	handle(SIGUSR1, note_signal);
	for (int i = 0; i < 1000; i++)
		raise(SIGUSR1);
	REQUIRE(signal_count == 1000, "%d of 1000 signals", (int)signal_count);

	handle(SIGALRM, note_signal);
	struct itimerval timer = { .it_interval = { 0, 2000 }, .it_value = { 0, 2000 } };
	struct itimerval off = { 0 };
	volatile unsigned long work = 1;

	setitimer(ITIMER_REAL, &timer, NULL);
	while (signal_count < 20)
		work = work * 3 + 1;
	setitimer(ITIMER_REAL, &off, NULL);
	return 1;
}

static int test_faults(void)
{
	volatile int zero = 0, result = 0;
	char *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	handle(SIGFPE, note_and_jump);
	if (!sigsetjmp(jump_back, 1))
		result = 1234 / zero;
	REQUIRE(last_signal == SIGFPE && last_code == FPE_INTDIV, "division: signal %d code %d", (int)last_signal,
		(int)last_code);

	handle(SIGSEGV, note_and_jump);
	if (!sigsetjmp(jump_back, 1))
		*(volatile char *)(page + 17) = 1;
	REQUIRE(signal_count == 1 && last_addr == (unsigned long)page + 17 && last_code == SEGV_ACCERR,
		"write to a read-only page: address %lx code %d", last_addr, (int)last_code);
	munmap(page, 4096);
	if (!sigsetjmp(jump_back, 1))
		result = *(volatile char *)page;
	REQUIRE(signal_count == 2 && last_code == SEGV_MAPERR, "read of an unmapped page: code %d", (int)last_code);

	handle(SIGILL, note_and_jump);
	if (!sigsetjmp(jump_back, 1))
		__asm__ volatile("ud2");
	REQUIRE(signal_count == 1, "ud2 gave no SIGILL");

	handle(SIGSEGV, note_and_jump);
	if (!sigsetjmp(jump_back, 1))
		__asm__ volatile("hlt");
	REQUIRE(signal_count == 1, "hlt in user mode gave no SIGSEGV");
	if (!sigsetjmp(jump_back, 1))
		__asm__ volatile("cli");
	REQUIRE(signal_count == 2, "cli in user mode gave no SIGSEGV");
	(void)result;
	return 1;
}

static int test_int3(void)
{
	handle(SIGTRAP, note_signal);
	for (int i = 0; i < 1000; i++)
		__asm__ volatile("int3");
	REQUIRE(signal_count == 1000, "%d of 1000 breakpoints", (int)signal_count);
	return 1;
}

/* TF set by POPF: one trap after each of the following instructions, the first not before the instruction after POPF. */
static unsigned long trap_pcs[64];

static void note_trap(int sig, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;

	if (signal_count < 64)
		trap_pcs[signal_count] = (unsigned long)uc->uc_mcontext.gregs[UC_PC];
	note_signal(sig, info, context);
}

static int test_popf_tf(void)
{
	unsigned long first, second;

	handle(SIGTRAP, note_trap);
#if defined(__x86_64__)
	__asm__ volatile("lea -256(%%rsp), %%rsp\n\t"
			 "lea 1f(%%rip), %0\n\tlea 2f(%%rip), %1\n\t"
			 "pushfq\n\torl $0x100, (%%rsp)\n\tpopfq\n\t"
			 "nop\n1:\tnop\n2:\tpushfq\n\tandl $~0x100, (%%rsp)\n\tpopfq\n\t"
			 "lea 256(%%rsp), %%rsp"
			 : "=&r"(first), "=&r"(second) : : "memory", "cc");
#else
	__asm__ volatile("call 3f\n3:\tpop %0\n\tmov %0, %1\n\tadd $(1f - 3b), %0\n\tadd $(2f - 3b), %1\n\t"
			 "pushf\n\torl $0x100, (%%esp)\n\tpopf\n\t"
			 "nop\n1:\tnop\n2:\tpushf\n\tandl $~0x100, (%%esp)\n\tpopf"
			 : "=&r"(first), "=&r"(second) : : "memory", "cc");
#endif
	REQUIRE(signal_count == 5, "%d traps instead of 5", (int)signal_count);
	REQUIRE(trap_pcs[0] == first && trap_pcs[1] == second, "traps at %lx %lx, not at %lx %lx", trap_pcs[0],
		trap_pcs[1], first, second);
	return 1;
}

/* TF set by IRET: sigreturn with TF in the saved flags. */
static volatile int arm_tf;

static void arm_on_return(int sig, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;

	if (sig == SIGUSR2) {
		uc->uc_mcontext.gregs[UC_FLAGS] |= TF;
		return;
	}
	note_trap(sig, info, context);
	if (signal_count >= 10)
		uc->uc_mcontext.gregs[UC_FLAGS] &= ~(long)TF;
}

static int test_iret_tf(void)
{
	handle(SIGTRAP, arm_on_return);
	handle(SIGUSR2, arm_on_return);
	kill(getpid(), SIGUSR2);
	for (volatile int i = 0; i < 10; i++)
		;
	REQUIRE(signal_count == 10, "%d traps instead of 10", (int)signal_count);
	for (int i = 1; i < 10; i++)
		REQUIRE(trap_pcs[i] != trap_pcs[i - 1], "trap %d is at the same address as the one before", i);
	return 1;
}

static int test_fork(void)
{
	int shared_private = 7;

	for (int i = 0; i < 50; i++) {
		pid_t pid = fork();

		if (pid == 0) {
			shared_private = i;
			_exit(shared_private & 63);
		}
		int status;

		REQUIRE(pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == (i & 63),
			"child %d", i);
	}
	REQUIRE(shared_private == 7, "a child's write is seen by its parent");
	return 1;
}

/* Each thread keeps its own pattern in x87, SSE and AVX registers while the others run. */
static int have_avx;
static volatile int fpu_errors;

static void *fpu_thread(void *arg)
{
	unsigned seed = (unsigned)(uintptr_t)arg * 2654435761u;
	uint32_t pattern[8], got[8];
	double x87 = 1.0 + (double)(uintptr_t)arg;

	for (int i = 0; i < 8; i++)
		pattern[i] = seed + (unsigned)i * 40503u;
	for (int round = 0; round < 300; round++) {
		double back = 0;

		memset(got, 0, sizeof got);
		__asm__ volatile("fldl %0" : : "m"(x87));
		if (have_avx)
			__asm__ volatile("vmovdqu %0, %%ymm7" : : "m"(pattern) : "xmm7");
		else
			__asm__ volatile("movdqu %0, %%xmm7" : : "m"(pattern) : "xmm7");
		if (round % 8 == 0)
			syscall(SYS_sched_yield);
		for (volatile int spin = 0; spin < 2000; spin++)
			;
		if (have_avx)
			__asm__ volatile("vmovdqu %%ymm7, %0\n\tvzeroupper" : "=m"(got) : : "xmm7");
		else
			__asm__ volatile("movdqu %%xmm7, %0" : "=m"(got));
		__asm__ volatile("fstpl %0" : "=m"(back));
		if (back != x87 || memcmp(got, pattern, have_avx ? 32 : 16))
			__atomic_add_fetch(&fpu_errors, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

static int test_threads_fpu(void)
{
	pthread_t threads[8];

	have_avx = __builtin_cpu_supports("avx");
	for (uintptr_t i = 0; i < 8; i++)
		REQUIRE(!pthread_create(&threads[i], NULL, fpu_thread, (void *)(i + 1)), "pthread_create: %s",
			strerror(errno));
	for (int i = 0; i < 8; i++)
		pthread_join(threads[i], NULL);
	REQUIRE(fpu_errors == 0, "%d register patterns lost%s", (int)fpu_errors, have_avx ? " (AVX)" : "");
	return 1;
}

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static unsigned long guarded, atomic_count;

static void *count_thread(void *arg)
{
	for (int i = 0; i < 5000; i++) {
		pthread_mutex_lock(&mutex);
		guarded++;
		pthread_mutex_unlock(&mutex);
		__atomic_add_fetch(&atomic_count, 1, __ATOMIC_SEQ_CST);
	}
	return arg;
}

static int test_threads(void)
{
	pthread_t threads[4];

	for (int i = 0; i < 4; i++)
		REQUIRE(!pthread_create(&threads[i], NULL, count_thread, NULL), "pthread_create");
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	REQUIRE(guarded == 20000 && atomic_count == 20000, "counted %lu and %lu instead of 20000", guarded, atomic_count);
	return 1;
}

/* A tracer steps its child over a system call: every step ends at another address, and the trap is not lost. */
static int test_ptrace_step(void)
{
	pid_t pid = fork();

	if (pid == 0) {
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		raise(SIGSTOP);
		for (int i = 0; i < 20; i++)
			syscall(SYS_getppid);
		_exit(42);
	}
	int status, steps = 0;
	unsigned long last = 0;

	waitpid(pid, &status, 0);
	REQUIRE(WIFSTOPPED(status), "the child did not stop");
	for (;;) {
		REQUIRE(ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL) == 0, "PTRACE_SINGLESTEP: %s", strerror(errno));
		REQUIRE(waitpid(pid, &status, 0) == pid, "waitpid");
		if (WIFEXITED(status))
			break;
		struct user_regs_struct regs;

		REQUIRE(WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP, "stopped by signal %d", WSTOPSIG(status));
		ptrace(PTRACE_GETREGS, pid, NULL, &regs);
		if (USER_PC(regs) != last)
			steps++;
		last = USER_PC(regs);
		REQUIRE(steps < 100000, "the child never ends");
	}
	REQUIRE(WEXITSTATUS(status) == 42 && steps > 200, "exit %d after %d steps", WEXITSTATUS(status), steps);
	return 1;
}

/* A hardware watchpoint set with ptrace in the debug registers. */
static volatile int watched;

static int test_debug_registers(void)
{
	pid_t pid = fork();

	if (pid == 0) {
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		raise(SIGSTOP);
		watched = 1;
		watched = 2;
		_exit(0);
	}
	int status, hits = 0;

	waitpid(pid, &status, 0);
	if (ptrace(PTRACE_POKEUSER, pid, offsetof(struct user, u_debugreg[0]), &watched) ||
		ptrace(PTRACE_POKEUSER, pid, offsetof(struct user, u_debugreg[7]), (void *)0xd0001ul)) {
		kill(pid, SIGKILL);
		waitpid(pid, &status, 0);
		REQUIRE(0, "cannot set a debug register: %s", strerror(errno));
	}
	for (;;) {
		ptrace(PTRACE_CONT, pid, NULL, NULL);
		waitpid(pid, &status, 0);
		if (WIFEXITED(status))
			break;
		REQUIRE(WSTOPSIG(status) == SIGTRAP, "signal %d", WSTOPSIG(status));
		hits++;
	}
	REQUIRE(hits == 2, "%d hits instead of 2", hits);
	return 1;
}

/* Code that is written, run and written again. */
static int test_self_modifying(void)
{
	unsigned char *code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	REQUIRE(code != MAP_FAILED, "mmap: %s", strerror(errno));
	for (int i = 0; i < 2000; i++) {
		unsigned char bytes[] = { 0xb8, (unsigned char)i, (unsigned char)(i >> 8), 0, 0, 0xc3 };

		memcpy(code, bytes, sizeof bytes);
		__asm__ volatile("" : : : "memory");
		int got = ((int (*)(void))(uintptr_t)code)();

		REQUIRE(got == i, "round %d returned %d", i, got);
	}
	munmap(code, 4096);
	return 1;
}

static int test_exec_maps(void)
{
	FILE *pipe = popen("echo hello; sleep 0; echo world", "r");
	char text[64] = "";

	REQUIRE(pipe, "popen");
	size_t n = fread(text, 1, sizeof text - 1, pipe);

	text[n] = 0;
	REQUIRE(pclose(pipe) == 0 && !strcmp(text, "hello\nworld\n"), "shell said \"%s\"", text);
	return 1;
}

static int test_time(void)
{
	struct timespec last, now;

	clock_gettime(CLOCK_MONOTONIC, &last);
	for (int i = 0; i < 20000; i++) {
		clock_gettime(CLOCK_MONOTONIC, &now);
		REQUIRE(now.tv_sec > last.tv_sec || (now.tv_sec == last.tv_sec && now.tv_nsec >= last.tv_nsec),
			"the monotonic clock went back");
		last = now;
	}
	return 1;
}

/* Runs the tests that are named, or all. */
int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int (*run)(void);
	} tests[] = {
		{ "signals", test_signals },
		{ "faults", test_faults },
		{ "int3", test_int3 },
		{ "popf_tf", test_popf_tf },
		{ "iret_tf", test_iret_tf },
		{ "fork", test_fork },
		{ "threads", test_threads },
		{ "threads_fpu", test_threads_fpu },
		{ "ptrace_step", test_ptrace_step },
		{ "debug_registers", test_debug_registers },
		{ "self_modifying", test_self_modifying },
		{ "exec", test_exec_maps },
		{ "time", test_time },
	};
	int failed = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	for (unsigned i = 0; i < sizeof tests / sizeof tests[0]; i++) {
		int wanted = argc < 2;

		for (int n = 1; n < argc; n++)
			wanted |= !strcmp(argv[n], tests[i].name);
		if (!wanted)
			continue;
		why[0] = 0;
		int ok = tests[i].run();

		failed += !ok;
		if (ok)
			printf("ok %s%d\n", tests[i].name, (int)sizeof(long) * 8);
		else
			printf("not ok %s%d: %s\n", tests[i].name, (int)sizeof(long) * 8, why);
	}
	return failed;
}
