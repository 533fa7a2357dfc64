/*
 * Entering and leaving a vcpu process: the VMM's side of the hand-over in vmm/vcpu_block.h.
 *
 * run() gives the turn and waits. While it waits it also takes posted writes out of the ring and returns each as an
 * ordinary PIO write exit: the engine keeps running the guest meanwhile, so the next run() just goes on waiting. When
 * the turn comes back the ring is emptied first, then the exit is returned: so all writes of a vcpu arrive in order.
 * Consequence for the caller: only after KICKED (or a final exit) does the guest stand still.
 *
 * Everything in the block is hostile: an exit is copied once, then checked.
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
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include "soft_vm.h"
#include "vmm/bus.h"
#include "vmm/error.h"
#include "vmm/event.h"
#include "vmm/mem.h"

#define TURN_SPIN 500 /* some 5 µs: guests that poll a register come back at once */
#define DEATH_CHECK_NS 500000000l

static bool engine_has_turn(struct vcpu_block *b)
{
	return (atomic_load_explicit(&b->turn, memory_order_acquire) & ~TURN_SLEEPER) == TURN_ENGINE;
}

static void give_turn(struct vcpu_block *b)
{
	uint32_t old = atomic_exchange(&b->turn, TURN_ENGINE);

	if (old & TURN_SLEEPER)
		syscall(SYS_futex, &b->turn, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void exit_fail(struct vcpu_exit *x, enum vcpu_exit_kind kind, const char *text)
{
	memset(x, 0, sizeof(*x));
	x->kind = kind;
	snprintf(x->text, sizeof(x->text), "%s", text);
}

/* Takes one posted write. A ring that makes no sense is emptied. */
static bool take_posted(struct soft_vcpu *v, struct vcpu_exit *x)
{
	struct vcpu_block *b = v->block;
	uint32_t tail = atomic_load_explicit(&b->posted_tail, memory_order_relaxed);

	while (tail != atomic_load(&b->posted_head)) {
		struct posted_write w = b->posted[tail % POSTED_RING_SIZE];

		if (atomic_load(&b->posted_head) - tail > POSTED_RING_SIZE) {
			atomic_store(&b->posted_tail, atomic_load(&b->posted_head));
			return false;
		}
		atomic_store(&b->posted_tail, ++tail);
		if (w.space != BUS_PIO || w.addr > 0xffff || (w.size != 1 && w.size != 2 && w.size != 4)) {
			v->spurious++;
			continue;
		}
		memset(x, 0, offsetof(struct vcpu_exit, text));
		x->text[0] = 0;
		x->kind = VCPU_EXIT_PIO;
		x->is_write = 1;
		x->size = (uint8_t)w.size;
		x->addr = w.addr;
		x->data = w.data;
		return true;
	}
	return false;
}

/* True when the turn has come back, false when there is a posted write to take. */
static bool wait_turn(struct soft_vcpu *v)
{
	const struct timespec limit = { 0, DEATH_CHECK_NS };
	struct vcpu_block *b = v->block;
	uint32_t cpu = (uint32_t)sched_getcpu();
	unsigned spin = atomic_load_explicit(&b->engine_cpu, memory_order_relaxed) == cpu ? 0 : v->spin;

	for (;;) {
		uint32_t turn = atomic_load(&b->turn);

		if (turn != TURN_ENGINE && turn != (TURN_ENGINE | TURN_SLEEPER))
			return true;
		if (atomic_load(&b->posted_head) != atomic_load_explicit(&b->posted_tail, memory_order_relaxed))
			return false;
		if (spin) {
			spin--;
			_mm_pause();
			continue;
		}
		if (!(turn & TURN_SLEEPER)) {
			/* Look at the ring once more after the bit is set: the engine looks in the other order. */
			atomic_compare_exchange_strong(&b->turn, &turn, turn | TURN_SLEEPER);
			continue;
		}
		if (syscall(SYS_futex, &b->turn, FUTEX_WAIT, turn, &limit, NULL, 0) < 0 && errno == ETIMEDOUT)
			soft_process_check(v);
		atomic_store_explicit(&b->vmm_cpu, (uint32_t)sched_getcpu(), memory_order_relaxed);
	}
}

static bool exit_is_valid(const struct vcpu_exit *x)
{
	switch (x->kind) {
	case VCPU_EXIT_PIO:
		return x->addr <= 0xffff && (x->size == 1 || x->size == 2 || x->size == 4);
	case VCPU_EXIT_MMIO:
		return x->size == 1 || x->size == 2 || x->size == 4 || x->size == 8;
	case VCPU_EXIT_EOI:
		return x->data <= 0xff;
	case VCPU_EXIT_IPI:
		return x->data <= 0xffffffffu && x->addr <= 0xffffffffu;
	case VCPU_EXIT_NONE:
	case VCPU_EXIT_INTACK:
	case VCPU_EXIT_KICKED:
	case VCPU_EXIT_SHUTDOWN:
	case VCPU_EXIT_ERROR:
		return true;
	}
	return false;
}

static void take_layout(struct soft_vcpu *v)
{
	pthread_mutex_lock(&v->vm->lock);
	v->block->ram = v->vm->layout;
	pthread_mutex_unlock(&v->vm->lock);
	atomic_fetch_or(&v->block->events, VCPU_EVENT_LAYOUT);
}

static int soft_run(void *self, struct vcpu_exit *x)
{
	struct soft_vcpu *v = self;

	if (!v->running) {
		v->block->reply.data = x->data;
		if (atomic_load_explicit(&v->layout_stale, memory_order_relaxed) && atomic_exchange(&v->layout_stale, false))
			take_layout(v);
		if (!v->gone)
			give_turn(v->block);
		if (v->gone) { /* also when it died between the two lines above: the checker may have missed our turn */
			exit_fail(x, VCPU_EXIT_DIED, v->obituary);
			return 0;
		}
		v->running = true;
	}
	if (!wait_turn(v) && take_posted(v, x))
		return 0;
	while (engine_has_turn(v->block)) /* a nonsensical ring has been emptied */
		if (!wait_turn(v) && take_posted(v, x))
			return 0;
	if (take_posted(v, x))
		return 0;
	v->running = false;
	if (v->killed_turn) {
		exit_fail(x, VCPU_EXIT_DIED, v->obituary);
		return 0;
	}
	memcpy(x, &v->block->exit, sizeof(*x));
	x->text[sizeof(x->text) - 1] = 0;
	if (!exit_is_valid(x))
		exit_fail(x, VCPU_EXIT_ERROR, "the vcpu process answered with an exit that does not exist");
	return 0;
}

static void soft_kick(void *self)
{
	soft_post_event(self, VCPU_EVENT_EXIT);
}

/* The vcpu process does not answer, say because it was stopped: run() will see that it is gone. */
static void soft_abandon(void *self)
{
	struct soft_vcpu *v = self;

	pthread_mutex_lock(&v->death_lock);
	if (v->pid && !v->gone)
		kill(v->pid, SIGKILL);
	pthread_mutex_unlock(&v->death_lock);
}

static void soft_get_state(void *self, struct cpu_state *state)
{
	struct soft_vcpu *v = self;
	struct vcpu_block *b = v->block;

	memcpy(state, &b->cpu, sizeof(*state));
	if (!engine_has_turn(b) && atomic_fetch_and(&b->events, ~VCPU_EVENT_NMI) & VCPU_EVENT_NMI) /* posted, not taken */
		state->nmi_pending = b->cpu.nmi_pending = 1;
}

static void soft_set_state(void *self, const struct cpu_state *state)
{
	struct soft_vcpu *v = self;

	memcpy(&v->block->cpu, state, sizeof(*state));
}

/* What is posted but not taken belongs to the state, too. */
static void soft_get_lapic(void *self, struct lapic_state *lapic)
{
	struct soft_vcpu *v = self;
	struct vcpu_block *b = v->block;

	memcpy(lapic, &b->lapic, sizeof(*lapic));
	for (unsigned i = 0; i < 4; i++) {
		uint64_t irr = atomic_exchange(&b->posted_irr[i], 0);
		uint64_t tmr = atomic_fetch_and(&b->posted_tmr[i], ~irr) & irr;

		lapic->irr[i] |= irr;
		lapic->tmr[i] = (lapic->tmr[i] & ~irr) | tmr;
	}
	memcpy(&b->lapic, lapic, sizeof(*lapic));
}

static void soft_set_lapic(void *self, const struct lapic_state *lapic)
{
	struct soft_vcpu *v = self;

	memcpy(&v->block->lapic, lapic, sizeof(*lapic));
	for (unsigned i = 0; i < 4; i++) {
		atomic_store(&v->block->posted_irr[i], 0);
		atomic_store(&v->block->posted_tmr[i], 0);
	}
	/* Looks at its timer. */
	atomic_fetch_or(&v->block->events, VCPU_EVENT_TIMER);
}

static void soft_set_limit(void *self, uint64_t instructions, bool leave_idle)
{
	struct soft_vcpu *v = self;

	v->block->limit = instructions;
	v->block->leave_idle = leave_idle;
}

static void soft_vcpu_destroy(void *self)
{
	struct soft_vcpu *v = self;

	if (v->vm->vcpus[v->index] == v)
		v->vm->vcpus[v->index] = NULL;
	if (v->source)
		event_unwatch(v->source);
	soft_process_kill(v);
	if (v->pidfd >= 0)
		close(v->pidfd);
	if (v->block)
		munmap(v->block, sizeof(*v->block));
	if (v->block_fd >= 0)
		close(v->block_fd);
	pthread_mutex_destroy(&v->death_lock);
	free(v);
}

/* A memfd that its other owner cannot shrink under us. */
static int create_block(struct soft_vcpu *v)
{
	v->block_fd = memfd_create("vmm-vcpu-block", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (v->block_fd < 0 || ftruncate(v->block_fd, (sizeof(*v->block) + 4095) & ~4095ul) ||
		fcntl(v->block_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		return -errno;
	v->block = mmap(NULL, sizeof(*v->block), PROT_READ | PROT_WRITE, MAP_SHARED, v->block_fd, 0);
	if (v->block == MAP_FAILED) {
		v->block = NULL;
		return -errno;
	}
	return 0;
}

int soft_vcpu_create(struct soft_vm *vm, unsigned index, const struct cpu_model *model, enum vcpu_engine engine,
	enum vcpu_shadow shadow, uint32_t trace, void **self, struct error *err)
{
	struct soft_vcpu *v;
	int rc;

	if (index >= VCPU_MAX)
		return error_set(err, -EINVAL, "the software backend has at most %d vcpus", VCPU_MAX);
	v = calloc(1, sizeof(*v));
	if (!v)
		return error_set(err, -ENOMEM, "out of memory");
	v->vm = vm;
	v->index = index;
	v->block_fd = v->pidfd = -1;
	v->spin = sysconf(_SC_NPROCESSORS_ONLN) > 1 ? TURN_SPIN : 0;
	pthread_mutex_init(&v->death_lock, NULL);
	rc = create_block(v);
	if (rc) {
		error_set(err, rc, "cannot create the memory of vcpu %u: %s", index, strerror(-rc));
		goto fail;
	}
	v->block->magic = VCPU_BLOCK_MAGIC;
	v->block->index = index;
	v->block->model = *model;
	v->block->model.apic_id = index;
	v->block->ram = vm->mem->layout;
	v->block->ram.file_size = vm->mem->file_size;
	v->block->engine = engine;
	v->block->shadow = shadow;
	v->block->trace = trace;
	cpu_reset(&v->block->cpu, index == 0);
	cpu_lapic_reset(&v->block->lapic, index, index == 0);
	if (vm->shared->cpu_count < model->cpu_count)
		vm->shared->cpu_count = model->cpu_count;
	rc = soft_process_start(v, err);
	if (rc)
		goto fail;
	vm->vcpus[index] = v;
	if (vm->vcpu_count <= index)
		vm->vcpu_count = index + 1;
	*self = v;
	return 0;
fail:
	soft_vcpu_destroy(v);
	return rc;
}

const struct vcpu_backend soft_vcpu_ops = {
	.name = "soft",
	.run = soft_run,
	.kick = soft_kick,
	.get_state = soft_get_state,
	.set_state = soft_set_state,
	.destroy = soft_vcpu_destroy,
	.abandon = soft_abandon,
	.get_lapic = soft_get_lapic,
	.set_lapic = soft_set_lapic,
	.set_limit = soft_set_limit,
};
