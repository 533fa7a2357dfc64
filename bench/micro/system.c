/*
 * What a program asks of the kernel: system calls, page faults, processes, signals, switches. Everything that can
 * move between processors is pinned to the first one, so that one vcpu and many give comparable figures.
 */
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "micro.h"

#define PAGE 4096u

static void pin(unsigned cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	sched_setaffinity(0, sizeof(set), &set);
}

static void unpin(void)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	for (unsigned i = 0; i < CPU_SETSIZE; i++)
		CPU_SET(i, &set);
	sched_setaffinity(0, sizeof(set), &set);
}

static uint64_t run_getppid(void *ctx, uint64_t n)
{
	long parent = syscall(SYS_getppid);
	uint64_t same = 0;

	for (uint64_t i = 0; i < n; i++)
		same += syscall(SYS_getppid) == parent;
	return check_mix(1, same);
}

static uint64_t run_gettimeofday(void *ctx, uint64_t n)
{
	struct timeval before = {0}, now;
	uint64_t forward = 0;

	for (uint64_t i = 0; i < n; i++) {
		gettimeofday(&now, NULL);
		forward += now.tv_sec > before.tv_sec || (now.tv_sec == before.tv_sec && now.tv_usec >= before.tv_usec);
		before = now;
	}
	return check_mix(2, forward);
}

static char *map_pages(uint64_t pages)
{
	char *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		micro_fail("mmap failed");
	return memory;
}

static uint64_t run_page_touch_one(void *ctx, uint64_t n)
{
	uint64_t zeroes = 0;

	for (uint64_t i = 0; i < n; i++) {
		volatile char *memory = map_pages(1);

		zeroes += memory[i % PAGE] == 0;
		memory[i % PAGE] = 1;
		munmap((void *)memory, PAGE);
	}
	return check_mix(3, zeroes);
}

/* The same without system calls for each page: 4 MiB at a time, each page of it written once. */
#define TOUCH_PAGES 1024u
static uint64_t run_page_touch(void *ctx, uint64_t n)
{
	uint64_t sum = 0;

	for (uint64_t done = 0; done < n; done += TOUCH_PAGES) {
		uint64_t pages = n - done < TOUCH_PAGES ? n - done : TOUCH_PAGES;
		volatile char *memory = map_pages(pages);

		for (unsigned page = 0; page < pages; page++) {
			memory[page * PAGE + page] = (char)page;
			sum += (unsigned char)memory[page * PAGE + page] + (unsigned char)memory[page * PAGE + page + 1];
		}
		munmap((void *)memory, pages * PAGE);
	}
	return check_mix(4, sum);
}

static uint64_t run_mmap(void *ctx, uint64_t n)
{
	uint64_t good = 0;

	for (uint64_t i = 0; i < n; i++)
		good += !munmap(map_pages(16), 16 * PAGE);
	return check_mix(5, good);
}

static uint64_t wait_for(pid_t child)
{
	int status;

	if (child < 0)
		micro_fail("fork failed");
	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			micro_fail("waitpid failed");
	return WIFEXITED(status) ? (uint64_t)WEXITSTATUS(status) : 1000;
}

static uint64_t run_fork_wait(void *ctx, uint64_t n)
{
	uint64_t check = 6;

	for (uint64_t i = 0; i < n; i++) {
		pid_t child = fork();

		if (!child)
			_exit((int)(i & 0x7f));
		check = check_mix(check, wait_for(child));
	}
	return check;
}

static uint64_t run_fork_exec(void *ctx, uint64_t n)
{
	uint64_t sum = 0;

	for (uint64_t i = 0; i < n; i++) {
		pid_t child = fork();

		if (!child) {
			execl("/proc/self/exe", "micro", "--exit", (char *)NULL);
			_exit(3);
		}
		sum += wait_for(child) + 1;
	}
	return check_mix(7, sum);
}

static uint64_t run_pipe_pingpong(void *ctx, uint64_t n)
{
	int there[2], back[2];
	uint64_t value = 0;
	pid_t child;

	if (pipe(there) || pipe(back))
		micro_fail("pipe failed");
	pin(0);
	child = fork();
	if (!child) {
		for (uint64_t i = 0; i < n; i++) {
			if (read(there[0], &value, sizeof(value)) != sizeof(value))
				_exit(1);
			value = check_mix(value, i);
			if (write(back[1], &value, sizeof(value)) != sizeof(value))
				_exit(1);
		}
		_exit(0);
	}
	for (uint64_t i = 0; i < n; i++)
		if (write(there[1], &value, sizeof(value)) != sizeof(value) ||
		    read(back[0], &value, sizeof(value)) != sizeof(value))
			micro_fail("a pipe broke");
	value += wait_for(child);
	close(there[0]);
	close(there[1]);
	close(back[0]);
	close(back[1]);
	unpin();
	return value;
}

static volatile sig_atomic_t signals_seen;

static void on_signal(int number)
{
	signals_seen = signals_seen + 1;
}

static uint64_t run_signal(void *ctx, uint64_t n)
{
	struct sigaction action = {.sa_handler = on_signal}, before;
	pid_t self = getpid();
	pid_t thread = (pid_t)syscall(SYS_gettid);

	signals_seen = 0;
	sigaction(SIGUSR1, &action, &before);
	for (uint64_t i = 0; i < n; i++)
		syscall(SYS_tgkill, self, thread, SIGUSR1);
	sigaction(SIGUSR1, &before, NULL);
	return check_mix(9, (uint64_t)signals_seen);
}

/* Two threads on two processors hand a token to and fro, sleeping in between. */
struct token {
	_Atomic uint32_t turn;
	uint64_t n, sum;
};

static void token_wait(struct token *t, uint32_t wanted)
{
	uint32_t now;

	while ((now = atomic_load(&t->turn)) != wanted)
		syscall(SYS_futex, &t->turn, FUTEX_WAIT_PRIVATE, now, NULL, NULL, 0);
}

static void token_pass(struct token *t, uint32_t turn)
{
	atomic_store(&t->turn, turn);
	syscall(SYS_futex, &t->turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static void *token_thread(void *arg)
{
	struct token *t = arg;

	pin(1);
	for (uint64_t i = 0; i < t->n; i++) {
		token_wait(t, (uint32_t)(2 * i + 1));
		t->sum = check_mix(t->sum, i);
		token_pass(t, (uint32_t)(2 * i + 2));
	}
	return NULL;
}

static uint64_t run_futex_wake(void *ctx, uint64_t n)
{
	struct token t = {.n = n, .sum = 10};
	pthread_t thread;

	pin(0);
	if (pthread_create(&thread, NULL, token_thread, &t))
		micro_fail("pthread_create failed");
	for (uint64_t i = 0; i < n; i++) {
		token_pass(&t, (uint32_t)(2 * i + 1));
		token_wait(&t, (uint32_t)(2 * i + 2));
	}
	pthread_join(thread, NULL);
	unpin();
	return t.sum;
}

static const char *one_processor(void)
{
	return sysconf(_SC_NPROCESSORS_ONLN) < 2 ? "it needs two processors" : NULL;
}

const struct workload system_workloads[] = {
	{.name = "getppid", .n = 500000, .run = run_getppid},
	{.name = "gettimeofday", .n = 1000000, .run = run_gettimeofday},
	{.name = "page-touch", .n = 40960, .run = run_page_touch},
	{.name = "page-touch-one", .n = 20000, .run = run_page_touch_one},
	{.name = "mmap", .n = 50000, .run = run_mmap},
	{.name = "fork-wait", .n = 1000, .run = run_fork_wait},
	{.name = "fork-exec", .n = 200, .run = run_fork_exec},
	{.name = "pipe-pingpong", .n = 20000, .run = run_pipe_pingpong},
	{.name = "signal", .n = 50000, .run = run_signal},
	{.name = "futex-wake", .n = 5000, .missing = one_processor, .run = run_futex_wake},
	{.name = "forkwait", .n = 40000, .total = true, .run = run_fork_wait},
	{0},
};
