/*
 * The vcpu process: what the engine, a plain library, needs of a system around it. It maps the three memfds, gives up
 * every right that it does not need, and then runs the guest by turns with the VMM (vmm/vcpu_block.h).
 *
 * The process: a copy of the VMM's binary, started afresh, so that its address space holds nothing of the VMM. It dies with
 * the VMM (PR_SET_PDEATHSIG). After setup it allocates nothing and may make a dozen system calls (seccomp). One thread;
 * signals (the APIC timer, faults) run on an alternate stack and do nothing but set event bits or report the end.
 *
 * Sleeping: `events` is a futex. The engine sets `sleeping`, then sleeps only while events is 0; a poster sets its bit,
 * then wakes if it sees `sleeping`. Both orders are sequentially consistent, so no wake-up is lost.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>
#include <x86intrin.h>

#include "engine_state.h"
#include "sandbox.h"
#include "translate.h"

#define TIMER_SIGNAL SIGRTMIN
#define SAMPLE_SIGNAL (SIGRTMIN + 1)
/* Of this thread's processor time. The kernel looks at it at its own ticks, so it comes every 4 ms, as a rule, and costs a signal only. */
#define SAMPLE_NS 2000000
#define ALT_STACK_SIZE 65536
/* Some 40 µs: an answer usually comes sooner than a futex could wake us. */
#define REPLY_SPIN 2000
/* Some 2 µs, in which the other side tells that it has been woken on another CPU. */
#define SAME_CPU_SPIN 100

/* Exit statuses, for the VMM's report. */
enum { STATUS_USAGE = 2, STATUS_SETUP = 3, STATUS_FAULT = 4 };

struct vcpu_process {
	struct vcpu_block *block;
	struct vm_shared *shared;
	uint8_t *ram;
	struct engine *engine;
	timer_t timer;
	volatile uint64_t armed_ns; /* of the POSIX timer; 0 none; cleared by its handler */
	timer_t sampler;
	unsigned spin;
};

/* Signal handlers of faults get no argument: the one process-wide pointer. Set once, before they are installed. */
static struct vcpu_process *fault_process;

static long futex(_Atomic uint32_t *word, int op, uint32_t value, const struct timespec *timeout)
{
	return syscall(SYS_futex, word, op, value, timeout, NULL, FUTEX_BITSET_MATCH_ANY);
}

/* --- turns --- */

static void give_turn(struct vcpu_block *b)
{
	uint32_t old = atomic_exchange(&b->turn, TURN_VMM);

	if (old & TURN_SLEEPER)
		futex(&b->turn, FUTEX_WAKE, 1, NULL);
}

static void wait_turn(struct vcpu_process *p)
{
	struct vcpu_block *b = p->block;
	uint32_t cpu = (uint32_t)sched_getcpu();

	atomic_store_explicit(&b->engine_cpu, cpu, memory_order_relaxed);
	for (unsigned i = 0; i < p->spin; i++) {
		if ((atomic_load_explicit(&b->turn, memory_order_acquire) & ~TURN_SLEEPER) == TURN_ENGINE)
			return;
		if (i >= SAME_CPU_SPIN && atomic_load_explicit(&b->vmm_cpu, memory_order_relaxed) == cpu)
			break;
		_mm_pause();
	}
	for (;;) {
		uint32_t turn = atomic_load(&b->turn);

		if ((turn & ~TURN_SLEEPER) == TURN_ENGINE)
			return;
		if (!(turn & TURN_SLEEPER) && !atomic_compare_exchange_strong(&b->turn, &turn, turn | TURN_SLEEPER))
			continue;
		futex(&b->turn, FUTEX_WAIT, TURN_VMM | TURN_SLEEPER, NULL);
	}
}

static uint64_t exit_to_vmm(void *ctx, enum vcpu_exit_kind kind)
{
	struct vcpu_process *p = ctx;

	p->block->exit.kind = kind;
	p->block->stats.exits[kind]++;
	give_turn(p->block);
	wait_turn(p);
	/* The next instruction may be another now. */
	if (atomic_load_explicit(&p->block->events, memory_order_relaxed) & (VCPU_EVENT_LAYOUT | VCPU_EVENT_EXIT))
		p->engine->leave_block = true;
	return p->block->reply.data;
}

/* --- accesses that need no answer --- */

/* False: the ring is full. */
static bool post_write(struct vcpu_block *b, unsigned space, uint64_t addr, unsigned size, uint64_t value)
{
	uint32_t head = atomic_load_explicit(&b->posted_head, memory_order_relaxed);
	uint32_t turn;

	if (head - atomic_load(&b->posted_tail) >= POSTED_RING_SIZE)
		return false;
	b->posted[head % POSTED_RING_SIZE] = (struct posted_write){ space, size, addr, value };
	atomic_store(&b->posted_head, head + 1);
	b->stats.posted_writes++;
	turn = atomic_load(&b->turn);
	if (turn & TURN_SLEEPER) {
		atomic_fetch_and(&b->turn, ~TURN_SLEEPER);
		futex(&b->turn, FUTEX_WAKE, 1, NULL);
	}
	return true;
}

static bool ring_doorbell(struct vcpu_process *p, uint64_t gpa, unsigned size)
{
	static const uint64_t one = 1;

	for (int i = 0; i < NOTIFY_MAX; i++) {
		struct notify_slot *slot = &p->shared->notify[i];

		if (atomic_load_explicit(&slot->gpa, memory_order_acquire) != gpa || (slot->size && slot->size != size))
			continue;
		if (write(VCPU_FD_NOTIFY + i, &one, sizeof(one)) != sizeof(one))
			return false;
		p->block->stats.notifies++;
		return true;
	}
	return false;
}

/* One try to read a slot as a whole. False: it is not for this access, or it changed meanwhile and the VMM is asked. */
static bool read_answer(const struct answer_slot *slot, unsigned space, uint64_t addr, unsigned size, uint64_t *value)
{
	uint32_t sequence = atomic_load_explicit(&slot->sequence, memory_order_acquire);
	uint32_t space_sizes = atomic_load_explicit(&slot->space_sizes, memory_order_relaxed);
	uint64_t start, base, ratio, shift, passed = 0;
	struct timespec now;

	if (atomic_load_explicit(&slot->addr, memory_order_relaxed) != addr || space_sizes >> 8 != space || !(space_sizes & size))
		return false;
	start = atomic_load_explicit(&slot->start_ns, memory_order_relaxed);
	base = atomic_load_explicit(&slot->base, memory_order_relaxed);
	ratio = atomic_load_explicit(&slot->ratio, memory_order_relaxed);
	shift = atomic_load_explicit(&slot->shift, memory_order_relaxed);
	atomic_thread_fence(memory_order_acquire);
	if (sequence & 1 || atomic_load_explicit(&slot->sequence, memory_order_relaxed) != sequence)
		return false;
	if (ratio >> 32) {
		clock_gettime(CLOCK_MONOTONIC, &now);
		passed = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec - start;
		passed = (uint64_t)((unsigned __int128)passed * (ratio >> 32) / (uint32_t)ratio);
	}
	*value = (base + passed) >> shift;
	return true;
}

static bool answer_read(struct vcpu_process *p, unsigned space, uint64_t addr, unsigned size, uint64_t *value)
{
	for (int i = 0; i < ANSWER_MAX; i++)
		if (read_answer(&p->shared->answers[i], space, addr, size, value)) {
			p->block->stats.answered_reads++;
			return true;
		}
	return false;
}

static uint64_t access_vmm(void *ctx, unsigned space, uint64_t addr, unsigned size, bool is_write, uint64_t value)
{
	struct vcpu_process *p = ctx;
	struct vcpu_block *b = p->block;
	uint64_t answer;

	if (!is_write && answer_read(p, space, addr, size, &answer))
		return answer;
	if (is_write && space == 1 && addr && ring_doorbell(p, addr, size))
		return 0;
	if (is_write && space == 0 &&
		atomic_load_explicit(&p->shared->posted_pio[(addr & 0xffff) / 64], memory_order_relaxed) >> (addr % 64) & 1 &&
		post_write(b, space, addr, size, value))
		return 0;
	b->exit.is_write = is_write;
	b->exit.size = (uint8_t)size;
	b->exit.addr = addr;
	b->exit.data = value;
	return exit_to_vmm(p, space == 0 ? VCPU_EXIT_PIO : VCPU_EXIT_MMIO);
}

/* --- time --- */

static void wait_event(void *ctx, uint64_t deadline_ns)
{
	struct vcpu_process *p = ctx;
	struct vcpu_block *b = p->block;
	struct timespec until = { .tv_sec = (time_t)(deadline_ns / 1000000000u), .tv_nsec = (long)(deadline_ns % 1000000000u) };

	atomic_store(&b->sleeping, 1);
	while (!atomic_load(&b->events)) {
		/* FUTEX_WAIT_BITSET takes an absolute time of CLOCK_MONOTONIC. */
		if (futex(&b->events, FUTEX_WAIT_BITSET, 0, deadline_ns ? &until : NULL) && errno == ETIMEDOUT)
			atomic_fetch_or(&b->events, VCPU_EVENT_TIMER);
	}
	atomic_store(&b->sleeping, 0);
}

/*
 * A deadline that moves later leaves the timer as it is: it fires early, lapic_poll() finds nothing expired and sets it
 * again. Operating systems move theirs all the time, and a system call for each would be felt.
 */
static void set_timer(void *ctx, uint64_t deadline_ns)
{
	struct vcpu_process *p = ctx;
	uint64_t armed = p->armed_ns;
	struct itimerspec when = { 0 };

	if (!deadline_ns || (armed && armed <= deadline_ns))
		return;
	when.it_value.tv_sec = (time_t)(deadline_ns / 1000000000u);
	when.it_value.tv_nsec = (long)(deadline_ns % 1000000000u);
	p->armed_ns = deadline_ns;
	timer_settime(p->timer, TIMER_ABSTIME, &when, NULL);
}

static void on_timer(int sig, siginfo_t *info, void *ucontext)
{
	struct vcpu_process *p = info->si_value.sival_ptr;
	int saved = errno;

	p->armed_ns = 0;
	atomic_fetch_or(&p->block->events, VCPU_EVENT_TIMER);
	errno = saved;
}

static void on_sample(int sig, siginfo_t *info, void *ucontext)
{
	struct vcpu_process *p = info->si_value.sival_ptr;
	const ucontext_t *uc = ucontext;

	translator_sample(p->engine, (uint64_t)uc->uc_mcontext.gregs[REG_RIP]);
}

/* --- faults of our own --- */

static const char *fault_name(int sig)
{
	switch (sig) {
	case SIGSEGV: return "SIGSEGV";
	case SIGBUS: return "SIGBUS";
	case SIGFPE: return "SIGFPE";
	case SIGILL: return "SIGILL";
	case SIGSYS: return "SIGSYS";
	case SIGABRT: return "SIGABRT";
	default: return "SIGTRAP";
	}
}

static void on_fault(int sig, siginfo_t *info, void *ucontext)
{
	struct vcpu_process *p = fault_process;
	struct vcpu_block *b = p->block;
	const ucontext_t *uc = ucontext;
	const struct engine *e = p->engine;

	if (sig != SIGSYS && sig != SIGABRT && e && translator_signal(p->engine, sig, info, ucontext))
		return;
	if (sig != SIGSYS && sig != SIGABRT && e && native_signal(p->engine, sig, info, ucontext))
		return;
	/* snprintf of integers takes no lock and no memory; there is nothing to lose in any case. */
	if (sig == SIGSYS)
		snprintf(b->exit.text, sizeof(b->exit.text), "the vcpu process made the system call %d, which is not allowed "
			"(host RIP %#llx)", info->si_syscall, (unsigned long long)uc->uc_mcontext.gregs[REG_RIP]);
	else
		snprintf(b->exit.text, sizeof(b->exit.text), "%s in the vcpu process at host RIP %#llx (program base %+lld), "
			"address %p, guest RIP %#llx",
			fault_name(sig), (unsigned long long)uc->uc_mcontext.gregs[REG_RIP],
			(long long)(uc->uc_mcontext.gregs[REG_RIP] - (greg_t)(uintptr_t)engine_main),
			sig == SIGABRT ? NULL : info->si_addr, (unsigned long long)(e ? e->insn_rip : 0));
	b->exit.kind = VCPU_EXIT_ERROR;
	give_turn(b);
	_exit(STATUS_FAULT);
}

/* --- setup --- */

static int setup_signals(struct vcpu_process *p, char *stack)
{
	static const int faults[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT };
	stack_t alt = { .ss_sp = stack, .ss_size = ALT_STACK_SIZE };
	struct sigaction action = { .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART };
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = TIMER_SIGNAL };
	sigset_t mask;

	fault_process = p;
	if (sigaltstack(&alt, NULL))
		return -errno;
	sigfillset(&action.sa_mask);
	action.sa_sigaction = on_timer;
	if (sigaction(TIMER_SIGNAL, &action, NULL))
		return -errno;
	action.sa_sigaction = on_sample;
	if (sigaction(SAMPLE_SIGNAL, &action, NULL))
		return -errno;
	action.sa_sigaction = on_fault;
	for (unsigned i = 0; i < sizeof(faults) / sizeof(faults[0]); i++)
		if (sigaction(faults[i], &action, NULL))
			return -errno;
	/* The terminal's signals are the VMM's business; the mask that we were started with is anybody's. */
	sigfillset(&mask);
	sigdelset(&mask, TIMER_SIGNAL);
	sigdelset(&mask, SAMPLE_SIGNAL);
	for (unsigned i = 0; i < sizeof(faults) / sizeof(faults[0]); i++)
		sigdelset(&mask, faults[i]);
	sigprocmask(SIG_SETMASK, &mask, NULL);
	event.sigev_value.sival_ptr = p;
	event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
	return timer_create(CLOCK_MONOTONIC, &event, &p->timer) ? -errno : 0;
}

/* Lets the translator know from time to time what runs. */
static int start_samples(struct vcpu_process *p)
{
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SAMPLE_SIGNAL, .sigev_value.sival_ptr = p };
	struct itimerspec when = { .it_interval.tv_nsec = SAMPLE_NS, .it_value.tv_nsec = SAMPLE_NS };

	if (!p->engine->translator || p->engine->lockstep)
		return 0;
	event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
	return timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &p->sampler) || timer_settime(p->sampler, 0, &when, NULL) ? -errno : 0;
}

static void *map_fd(int fd, uint64_t size, int flags)
{
	struct stat st;
	void *p;

	if (fstat(fd, &st) || (size && (uint64_t)st.st_size < size))
		return NULL;
	p = mmap(NULL, size ? size : (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE | flags, fd, 0);
	return p == MAP_FAILED ? NULL : p;
}

static int map_all(struct vcpu_process *p)
{
	uint64_t pages;

	p->block = map_fd(VCPU_FD_BLOCK, sizeof(*p->block), MAP_32BIT);
	if (!p->block || p->block->magic != VCPU_BLOCK_MAGIC)
		return -EINVAL;
	pages = p->block->ram.file_size / 4096;
	p->shared = map_fd(VCPU_FD_SHARED, sizeof(*p->shared) + (pages + 63) / 64 * 8, 0);
	if (!p->shared || p->shared->magic != VCPU_BLOCK_MAGIC)
		return -EINVAL;
	p->ram = map_fd(VCPU_FD_RAM, p->block->ram.file_size, 0);
	if (!p->ram)
		return -EINVAL;
	return 0;
}

/* The highest fd that the VMM has passed is a notify fd; those above it are not ours. */
static void close_others(void)
{
	close_range(VCPU_FD_NOTIFY + NOTIFY_MAX, ~0u, 0);
}

static void run_turns(struct vcpu_process *p)
{
	for (;;) {
		enum vcpu_exit_kind kind;

		wait_turn(p);
		/* Between two runs anything may have been set from outside. */
		engine_state_changed(p->engine);
		kind = engine_run(p->engine, p->block->limit);
		p->block->exit.kind = kind;
		p->block->stats.exits[kind]++;
		give_turn(p->block);
	}
}

static int setup_failed(const char *what, int rc)
{
	fprintf(stderr, "vmm: vcpu process: %s: %s\n", what, strerror(-rc));
	return STATUS_SETUP;
}

int engine_main(int argc, char **argv)
{
	static struct vcpu_process process; /* outlives the stack frame for the signal handlers */
	static char alt_stack[ALT_STACK_SIZE] __attribute__((aligned(64)));
	struct vcpu_process *p = &process;
	struct engine_env env = { access_vmm, exit_to_vmm, wait_event, set_timer, p, VCPU_FD_RAM };
	char name[16];
	int rc;

	/* program --vcpu-process INDEX PARENT_PID */
	if (argc < 4) {
		fprintf(stderr, "vmm: --vcpu-process is internal: the software backend starts its processes with it\n");
		return STATUS_USAGE;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != (pid_t)atol(argv[3]))
		return STATUS_SETUP; /* died before the line above */
	snprintf(name, sizeof(name), "vmm-vcpu%u", (unsigned)atoi(argv[2]) % 1000);
	prctl(PR_SET_NAME, name);
	close_others();
	rc = map_all(p);
	if (rc)
		return setup_failed("the memfds that were passed are not as expected", rc);
	if (!p->block->trace)
		prctl(PR_SET_DUMPABLE, 0);
	p->spin = sysconf(_SC_NPROCESSORS_ONLN) > 1 ? REPLY_SPIN : 0;
	rc = engine_create(p->block, p->shared, p->ram, &env, &p->engine);
	if (rc)
		return setup_failed("creating the engine", rc);
	if (p->block->engine == VCPU_ENGINE_TRANSLATE && !p->engine->translator)
		fprintf(stderr, "vmm: The translator needs a processor with BMI2 and 72 TiB of free address space; interpreting instead.\n");
	rc = setup_signals(p, alt_stack);
	if (!rc)
		rc = start_samples(p);
	if (rc)
		return setup_failed("signals and timer", rc);
	rc = sandbox_enter();
	if (rc)
		return setup_failed("seccomp filter", rc);
	run_turns(p);
	return 0;
}
