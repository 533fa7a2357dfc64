/*
 * Moves, for tests (--move EVERY,LENGTH): at random points a vcpu's state goes from KVM to the software CPU, which runs a random
 * number of instructions, and comes back. A guest that reaches the same end so proves that the state is carried over whole.
 *
 * Half of the points are drawn by exits, half by time, so that code that never leaves the guest is met, too. Where a move may
 * begin the vcpu is *settled*: KVM_RUN with a signal pending finishes the access of the last exit, puts expired timers into the
 * IRR and comes back before the guest has run.
 *
 * While the state is in transit nobody may change it: with several vcpus the others are kept out of KVM_RUN, or an IPI of theirs
 * that arrives between reading and writing the local APIC would be lost. Messages for a vcpu that is away arrive in the kernel's
 * local APIC and bring it back, as HLT does.
 *
 * With KVM's shadow paging the others stay out until the state is back: the software CPU writes to page tables that KVM shadows,
 * and KVM, which does not see that, forgets its shadows only then.
 *
 * Lock order: move_lock, then run_lock, then the VM's lock.
 */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "kvm_vm.h"

#define KICK_SIGNAL SIGRTMIN
#define POINT_NS 100000u  /* a point drawn by time: on average so much for each of EVERY exits */
#define AGAIN_NS 1000000l /* a signal that comes between two entries is missed: it comes again */
#define SETTLE_TRIES 8
#define ENDED_US 20
#define TIMER_MODE (3u << 17) /* of the local APIC's timer: one-shot is 0 */

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

/* xorshift64* */
static uint64_t draw(struct kvm_vcpu *v)
{
	v->random ^= v->random >> 12;
	v->random ^= v->random << 25;
	v->random ^= v->random >> 27;
	return v->random * 0x2545f4914f6cdd1dull >> 16;
}

static void draw_point(struct kvm_vcpu *v)
{
	uint64_t r = draw(v), every = v->vm->config.move_every;
	struct itimerspec when = { { 0, 0 }, { 0, 0 } };

	v->move_at = 0;
	v->move_countdown = 0;
	if (r & 1 || !v->has_move_timer) {
		v->move_countdown = 1 + (r >> 1) % (2 * every);
	} else {
		uint64_t delay = 1000 + (r >> 1) % (2 * every * POINT_NS);

		v->move_at = now_ns() + delay;
		when.it_value.tv_sec = (time_t)(delay / 1000000000u);
		when.it_value.tv_nsec = (long)(delay % 1000000000u);
		when.it_interval.tv_nsec = AGAIN_NS;
	}
	if (v->has_move_timer)
		timer_settime(v->move_timer, 0, &when, NULL);
}

void kvm_move_start(struct kvm_vcpu *v)
{
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = KICK_SIGNAL };

	if (!v->vm->config.move_every)
		return;
	kvm_move_stop(v);
	event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
	v->has_move_timer = !timer_create(CLOCK_MONOTONIC, &event, &v->move_timer);
	draw_point(v);
}

void kvm_move_stop(struct kvm_vcpu *v)
{
	if (v->has_move_timer)
		timer_delete(v->move_timer);
	v->has_move_timer = false;
}

static bool is_due(struct kvm_vcpu *v)
{
	if (v->move_at)
		return now_ns() >= v->move_at;
	return !v->move_countdown || !--v->move_countdown;
}

/* --- keeping the others out of KVM_RUN --- */

static bool has_others(const struct kvm_vcpu *v)
{
	return v->vm->config.cpus > 1;
}

void kvm_run_begin(struct kvm_vcpu *v)
{
	struct kvm_vm *vm = v->vm;

	if (!vm->config.move_every || !has_others(v))
		return;
	while (atomic_load(&vm->moving) || pthread_rwlock_tryrdlock(&vm->run_lock)) {
		/* The machine may wait for this vcpu before it lets the one that moves go on: KVM_RUN only finishes an access. */
		if (atomic_load(&v->kicked)) {
			__atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
			return;
		}
		sched_yield();
	}
	v->in_run_lock = true;
}

void kvm_run_end(struct kvm_vcpu *v)
{
	if (v->in_run_lock)
		pthread_rwlock_unlock(&v->vm->run_lock);
	v->in_run_lock = false;
}

static void push_others_out(struct kvm_vcpu *v)
{
	struct kvm_vm *vm = v->vm;

	atomic_store(&vm->moving, true);
	while (pthread_rwlock_trywrlock(&vm->run_lock)) {
		for (unsigned i = 0; i < vm->vcpu_count; i++)
			if (vm->vcpus[i] && vm->vcpus[i] != v)
				kvm_poke(vm->vcpus[i]);
		usleep(50);
	}
}

static bool transit_try(struct kvm_vcpu *v)
{
	if (!has_others(v))
		return true;
	if (pthread_mutex_trylock(&v->vm->move_lock))
		return false;
	push_others_out(v);
	return true;
}

void kvm_transit_begin(struct kvm_vcpu *v)
{
	if (!v->vm->config.move_every || !has_others(v) || v->keeps_others_out)
		return;
	pthread_mutex_lock(&v->vm->move_lock);
	push_others_out(v);
}

void kvm_transit_end(struct kvm_vcpu *v)
{
	struct kvm_vm *vm = v->vm;

	if (!vm->config.move_every || !has_others(v))
		return;
	v->keeps_others_out = false;
	pthread_rwlock_unlock(&vm->run_lock);
	atomic_store(&vm->moving, false);
	pthread_mutex_unlock(&vm->move_lock);
}

/* --- settling --- */

/* KVM_RUN with the signal pending for it alone. */
static int run_signalled(struct kvm_vcpu *v)
{
	const struct timespec now = { 0, 0 };
	const uint64_t all_but_kick = ~(1ull << (KICK_SIGNAL - 1));
	union {
		struct kvm_signal_mask head;
		uint8_t space[sizeof(struct kvm_signal_mask) + sizeof(all_but_kick)];
	} mask = { .head = { .len = sizeof(all_but_kick) } };
	sigset_t kick, old;
	int rc;

	memcpy(mask.head.sigset, &all_but_kick, sizeof(all_but_kick));
	sigemptyset(&kick);
	sigaddset(&kick, KICK_SIGNAL);
	pthread_sigmask(SIG_BLOCK, &kick, &old);
	kvm_ioctl_ptr(v->fd, KVM_SET_SIGNAL_MASK, &mask);
	pthread_kill(pthread_self(), KICK_SIGNAL);
	rc = kvm_ioctl(v->fd, KVM_RUN, 0);
	kvm_ioctl(v->fd, KVM_SET_SIGNAL_MASK, 0);
	while (sigtimedwait(&kick, NULL, &now) > 0)
		;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return rc;
}

/* A one-shot count that has come to its end: it says nothing of its interrupt. */
static bool has_ended(const struct lapic_state *l)
{
	return l->timer_initial && !l->timer_start_ns && !(l->lvt[LVT_TIMER] & TIMER_MODE);
}

/*
 * The count has ended, but KVM may not know yet: its own timer comes late, or is VT-x's preemption timer, which counts in the
 * guest only. The first has come when a later one has, that of usleep(); as for the second, KVM takes another for a vcpu that
 * halts and sees at once that it has ended. So it halts for a moment, unless an interrupt is about to wake it. As settle().
 */
static int raise_ended(struct kvm_vcpu *v)
{
	struct kvm_mp_state halted = { .mp_state = KVM_MP_STATE_HALTED }, was, after;
	bool runs, still = true;
	int rc;

	usleep(ENDED_US);
	if (kvm_ioctl_ptr(v->fd, KVM_GET_MP_STATE, &was))
		return -EAGAIN;
	runs = was.mp_state == KVM_MP_STATE_RUNNABLE;
	if (runs && kvm_ioctl_ptr(v->fd, KVM_SET_MP_STATE, &halted))
		return -EAGAIN;
	rc = run_signalled(v);
	if (runs && !kvm_ioctl_ptr(v->fd, KVM_GET_MP_STATE, &after)) {
		still = after.mp_state == KVM_MP_STATE_HALTED; /* else an interrupt or INIT has come */
		if (still)
			kvm_ioctl_ptr(v->fd, KVM_SET_MP_STATE, &was);
	}
	if (rc >= 0)
		return 1;
	return rc != -EINTR || v->run->immediate_exit || !still ? -EAGAIN : 0;
}

/*
 * The timer must have stood, or still run, both before and after KVM_RUN. 0: settled; 1: KVM has come back with another exit;
 * -EAGAIN: not now.
 */
static int settle(struct kvm_vcpu *v)
{
	struct lapic_state before, after;

	for (unsigned i = 0; i < SETTLE_TRIES; i++) {
		int rc;

		if (kvm_lapic_get(v, &before))
			return -EAGAIN;
		rc = run_signalled(v);
		if (rc >= 0)
			return 1;
		if (rc != -EINTR || v->run->immediate_exit)
			return -EAGAIN;
		if (kvm_lapic_get(v, &after))
			return -EAGAIN;
		if (!before.timer_start_ns == !after.timer_start_ns) {
			v->settled = after;
			return has_ended(&after) ? raise_ended(v) : 0;
		}
	}
	return -EAGAIN;
}

enum kvm_move kvm_move_try(struct kvm_vcpu *v)
{
	struct kvm_vm *vm = v->vm;
	uint64_t length;
	int rc;

	if (!vm->config.move_every || atomic_load(&v->kicked) || v->run->immediate_exit || !is_due(v))
		return MOVE_NONE;
	length = 2 + draw(v) % (2 * (uint64_t)vm->config.move_length);
	if (kvm_assist_prepare(v))
		return MOVE_NONE;
	if (!transit_try(v))
		return MOVE_NONE;
	rc = settle(v);
	v->is_settled = !rc;
	if (!rc)
		rc = kvm_assist_begin(v, length) ? -EAGAIN : 0;
	v->is_settled = false;
	v->keeps_others_out = !rc && vm->shadows && has_others(v);
	if (!v->keeps_others_out)
		kvm_transit_end(v);
	if (rc == 1)
		return MOVE_EXIT;
	if (rc)
		return MOVE_NONE;
	v->stats.moves++;
	draw_point(v);
	return MOVE_BEGUN;
}
