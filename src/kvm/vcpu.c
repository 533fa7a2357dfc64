/*
 * A vcpu: entering the guest, and what each exit of KVM means to the machine.
 *
 * An access that KVM reports is finished by the next KVM_RUN. So the vcpu is between two instructions only when KVM_RUN has
 * come back with -EINTR; that alone is reported as VCPU_EXIT_KICKED, and only then may the state be taken.
 *
 * Kicks: who kicks sets `kicked`, then run->immediate_exit, then sends the signal. The thread clears immediate_exit, then
 * looks at `kicked`. A signal that comes before KVM_RUN is caught by immediate_exit, one inside of it ends it; a stale
 * immediate_exit costs one empty entry.
 *
 * The PIC's INTR (vcpu 0): KVM takes a vector when the guest can be interrupted, and tells when that becomes so.
 */
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kvm_vm.h"
#include "vmm/error.h"

#define KICK_SIGNAL SIGRTMIN
/* KVM_COALESCED_MMIO_MAX, whose PAGE_SIZE only the kernel has. */
#define COALESCED_MAX ((4096 - sizeof(struct kvm_coalesced_mmio_ring)) / sizeof(struct kvm_coalesced_mmio))

/* --- kicks --- */

void kvm_poke(struct kvm_vcpu *v)
{
	if (!v->has_thread || pthread_equal(v->thread, pthread_self()))
		return;
	__atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	pthread_kill(v->thread, KICK_SIGNAL);
}

static void ops_kick(void *self)
{
	struct kvm_vcpu *v = self;

	atomic_store(&v->kicked, true);
	__atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	if (atomic_load(&v->away))
		v->helper_ops->kick(v->helper);
	kvm_poke(v);
}

/* On the vcpu's thread; vcpu_start() makes a new one each time. */
static void adopt_thread(struct kvm_vcpu *v)
{
	sigset_t set;

	if (v->has_thread && pthread_equal(v->thread, pthread_self()))
		return;
	sigemptyset(&set);
	sigaddset(&set, KICK_SIGNAL);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	v->thread = pthread_self();
	atomic_store(&v->has_thread, true);
	kvm_partial_start(v);
	kvm_move_start(v);
}

/* --- exits --- */

__attribute__((format(printf, 2, 3))) static void fail(struct vcpu_exit *x, const char *format, ...)
{
	va_list args;

	memset(x, 0, sizeof(*x));
	x->kind = VCPU_EXIT_ERROR;
	va_start(args, format);
	vsnprintf(x->text, sizeof(x->text), format, args);
	va_end(args);
}

static void plain_exit(struct vcpu_exit *x, enum vcpu_exit_kind kind)
{
	memset(x, 0, offsetof(struct vcpu_exit, text));
	x->kind = kind;
	x->text[0] = 0;
}

static uint8_t *pio_data(struct kvm_vcpu *v)
{
	return (uint8_t *)v->run + v->run->io.data_offset + (size_t)v->element * v->run->io.size;
}

/* The next element of IN, OUT, INS or OUTS. */
static void pio_exit(struct kvm_vcpu *v, struct vcpu_exit *x)
{
	plain_exit(x, VCPU_EXIT_PIO);
	x->is_write = v->run->io.direction == KVM_EXIT_IO_OUT;
	x->size = v->run->io.size;
	x->addr = v->run->io.port;
	if (x->is_write)
		memcpy(&x->data, pio_data(v), x->size);
	v->expect = EXPECT_PIO;
}

/* MMIO of 1, 2, 4 or 8 bytes as it is; other lengths (an access across a page) bytewise. */
static void mmio_exit(struct kvm_vcpu *v, struct vcpu_exit *x)
{
	bool whole = v->elements == 1;

	plain_exit(x, VCPU_EXIT_MMIO);
	x->is_write = v->run->mmio.is_write;
	x->size = whole ? (uint8_t)v->run->mmio.len : 1;
	x->addr = v->run->mmio.phys_addr + v->element;
	if (x->is_write)
		memcpy(&x->data, v->run->mmio.data + v->element, x->size);
	v->expect = EXPECT_MMIO;
}

/* Gives KVM the answer to the exit before. True: *x is the next part of the same access. */
static bool finish_exit(struct kvm_vcpu *v, struct vcpu_exit *x)
{
	enum kvm_expect expect = v->expect;

	v->expect = EXPECT_NOTHING;
	switch (expect) {
	case EXPECT_NOTHING:
		return false;
	case EXPECT_PIO:
		if (!x->is_write)
			memcpy(pio_data(v), &x->data, x->size);
		if (++v->element >= v->elements)
			return false;
		pio_exit(v, x);
		return true;
	case EXPECT_MMIO:
		if (!x->is_write)
			memcpy(v->run->mmio.data + v->element, &x->data, x->size);
		if (++v->element >= v->elements)
			return false;
		mmio_exit(v, x);
		return true;
	case EXPECT_INTACK: {
		struct kvm_interrupt irq = { .irq = (uint32_t)x->data & 0xff };

		v->extint_vector = kvm_ioctl_ptr(v->fd, KVM_INTERRUPT, &irq) ? -1 : (int)irq.irq;
		return false;
	}
	}
	return false;
}

/*
 * A vector from the PIC, if it has one and the guest can take it. True: *x asks for it. While one is on its way the next waits
 * for the window, too: with automatic EOI nothing else would tell of it.
 */
static bool want_extint(struct kvm_vcpu *v, struct vcpu_exit *x)
{
	struct kvm_run *run = v->run;

	run->request_interrupt_window = 0;
	if (v->index || !atomic_load(&v->vm->extint))
		return false;
	if (v->extint_vector >= 0 || !run->ready_for_interrupt_injection) {
		run->request_interrupt_window = 1;
		return false;
	}
	plain_exit(x, VCPU_EXIT_INTACK);
	v->expect = EXPECT_INTACK;
	return true;
}

/* One write that KVM kept back. Such ports exist with a single vcpu only. */
static bool take_coalesced(struct kvm_vcpu *v, struct vcpu_exit *x)
{
	struct kvm_coalesced_mmio_ring *ring;
	struct kvm_coalesced_mmio *entry;

	if (!v->vm->coalesced_page)
		return false;
	ring = (void *)((uint8_t *)v->run + (size_t)v->vm->coalesced_page * 4096);
	if (ring->first == __atomic_load_n(&ring->last, __ATOMIC_ACQUIRE))
		return false;
	entry = &ring->coalesced_mmio[ring->first];
	plain_exit(x, entry->pio ? VCPU_EXIT_PIO : VCPU_EXIT_MMIO);
	x->is_write = 1;
	x->size = entry->len <= 4 ? (uint8_t)entry->len : 4;
	x->addr = entry->phys_addr;
	memcpy(&x->data, entry->data, x->size);
	__atomic_store_n(&ring->first, (ring->first + 1) % COALESCED_MAX, __ATOMIC_RELEASE);
	return true;
}

/* MSRs that KVM does not know: as the model has them on the software CPU, else #GP. */
static void answer_msr(struct kvm_vcpu *v, bool is_write)
{
	struct kvm_run *run = v->run;

	v->stats.msr_exits++;
	run->msr.error = is_write ? !cpu_msr_ignored(&v->model, run->msr.index)
				  : !cpu_msr_constant(&v->model, run->msr.index, (uint64_t *)&run->msr.data);
}

static const char *internal_name(uint32_t suberror)
{
	switch (suberror) {
	case KVM_INTERNAL_ERROR_EMULATION: return "an instruction that it cannot emulate";
	case KVM_INTERNAL_ERROR_SIMUL_EX: return "an exception during the delivery of another";
	case KVM_INTERNAL_ERROR_DELIVERY_EV: return "an exit during the delivery of an event";
	case KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON: return "an unexpected exit reason";
	default: return "unknown";
	}
}

static void describe_internal(struct kvm_vcpu *v, struct vcpu_exit *x)
{
	const struct kvm_run *run = v->run;
	unsigned count = run->internal.ndata < 4 ? run->internal.ndata : 4;

	fail(x, "KVM stopped with an internal error (%u, %s)", run->internal.suberror, internal_name(run->internal.suberror));
	for (unsigned i = 0; i < count; i++) {
		size_t length = strlen(x->text);

		snprintf(x->text + length, sizeof(x->text) - length, "%s%#llx", i ? ", " : ": ",
			(unsigned long long)run->internal.data[i]);
	}
}

/* What made KVM come back. True: *x is for the machine; false: enter again. */
static bool take_exit(struct kvm_vcpu *v, struct vcpu_exit *x)
{
	struct kvm_run *run = v->run;

	v->element = 0;
	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		v->elements = run->io.count;
		pio_exit(v, x);
		return true;
	case KVM_EXIT_MMIO:
		v->elements = run->mmio.len & (run->mmio.len - 1) ? run->mmio.len : 1;
		mmio_exit(v, x);
		return true;
	case KVM_EXIT_IOAPIC_EOI:
		plain_exit(x, VCPU_EXIT_EOI);
		x->data = run->eoi.vector;
		return true;
	case KVM_EXIT_IRQ_WINDOW_OPEN:
		v->stats.irq_windows++;
		return false;
	case KVM_EXIT_X86_RDMSR:
	case KVM_EXIT_X86_WRMSR:
		answer_msr(v, run->exit_reason == KVM_EXIT_X86_WRMSR);
		return false;
	case KVM_EXIT_SHUTDOWN:
		plain_exit(x, VCPU_EXIT_SHUTDOWN);
		snprintf(x->text, sizeof(x->text), "triple fault (KVM does not tell the first cause)");
		return true;
	case KVM_EXIT_INTERNAL_ERROR:
		if (run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION && v->vm->config.helper &&
			!kvm_assist_begin(v, 1)) {
			v->stats.assists++;
			return false;
		}
		describe_internal(v, x);
		return true;
	case KVM_EXIT_FAIL_ENTRY:
		fail(x, "the processor refuses to enter the guest (hardware reason %#llx)",
			(unsigned long long)run->fail_entry.hardware_entry_failure_reason);
		return true;
	case KVM_EXIT_DEBUG:
		v->stats.debug_exits++;
		plain_exit(x, VCPU_EXIT_DEBUG);
		x->addr = run->debug.arch.pc;
		x->data = run->debug.arch.dr6;
		return true;
	case KVM_EXIT_DIRTY_RING_FULL:
		v->stats.dirty_ring_full++;
		kvm_dirty_take_rings(v->vm);
		return false;
	case KVM_EXIT_HLT:
	case KVM_EXIT_INTR:
	case KVM_EXIT_SET_TPR:
		return false;
	default:
		fail(x, "KVM came back with an exit that is not known here (%u)", run->exit_reason);
		return true;
	}
}

/* KVM_RUN failed. True: *x is for the machine. */
static bool take_error(struct kvm_vcpu *v, int rc, struct vcpu_exit *x)
{
	if (rc != -EINTR && rc != -EAGAIN) {
		fail(x, "KVM_RUN failed: %s", strerror(-rc));
		return true;
	}
	v->stats.signals++;
	__atomic_store_n(&v->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
	if (!atomic_exchange(&v->kicked, false)) {
		v->unsuited = v->unsuited || (v->vm->partial && kvm_partial_is_slow(v));
		return false;
	}
	plain_exit(x, VCPU_EXIT_KICKED);
	return true;
}

/* True: the vector given to KVM has been delivered, or stands in KVM's state as an event. */
static void note_extint(struct kvm_vcpu *v)
{
	if (v->extint_vector >= 0 && (!v->run->if_flag || v->run->ready_for_interrupt_injection))
		v->extint_vector = -1;
}

static int ops_run(void *self, struct vcpu_exit *x)
{
	struct kvm_vcpu *v = self;
	enum kvm_move move;
	int rc;

	adopt_thread(v);
	if (!atomic_load(&v->away) && finish_exit(v, x))
		return 0;
	for (;;) {
		if (atomic_load(&v->away) && kvm_assist_run(v, x))
			return 0;
		if (v->failed) {
			fail(x, "%s", v->failure);
			return 0;
		}
		if (v->unsuited && !v->kicked && !v->held && !kvm_assist_begin(v, v->stint)) {
			v->stats.stints++;
			continue;
		}
		if (!v->held) {
			if (want_extint(v, x))
				return 0;
			move = kvm_move_try(v);
			if (move == MOVE_BEGUN)
				continue;
			v->stats.entries++;
			kvm_run_begin(v);
			rc = move == MOVE_EXIT ? 0 : kvm_ioctl(v->fd, KVM_RUN, 0);
			kvm_run_end(v);
			note_extint(v);
			if (rc < 0) {
				if (take_coalesced(v, x) || take_error(v, rc, x))
					return 0;
				continue;
			}
			v->held = true;
		}
		if (take_coalesced(v, x))
			return 0;
		v->held = false;
		if (take_exit(v, x))
			return 0;
	}
}

static void ops_get_state(void *self, struct cpu_state *state)
{
	kvm_state_get(self, state);
}

static void ops_set_state(void *self, const struct cpu_state *state)
{
	kvm_state_set(self, state);
}

static void ops_get_lapic(void *self, struct lapic_state *lapic)
{
	kvm_lapic_get(self, lapic);
}

static void ops_set_lapic(void *self, const struct lapic_state *lapic)
{
	kvm_lapic_set(self, lapic);
}

/*
 * DR7 (SDM vol. 3, 18.2.4): | 2n+1 global enable of n | 16+4n+1:16+4n kind: 0 execute, 1 write, 3 access | 16+4n+3:16+4n+2 size:
 * 0 one, 1 two, 3 four, 2 eight bytes |
 */
static int ops_set_debug(void *self, const struct vcpu_debug *d)
{
	struct kvm_vcpu *v = self;
	struct kvm_guest_debug debug = { 0 };

	if (d->step || d->soft_breakpoints || d->count)
		debug.control = KVM_GUESTDBG_ENABLE;
	if (d->step)
		debug.control |= KVM_GUESTDBG_SINGLESTEP;
	if (d->soft_breakpoints)
		debug.control |= KVM_GUESTDBG_USE_SW_BP;
	if (d->count)
		debug.control |= KVM_GUESTDBG_USE_HW_BP;
	debug.arch.debugreg[7] = DR7_FIXED;
	for (unsigned i = 0; i < d->count && i < 4; i++) {
		uint64_t kind = d->points[i].kind & 3, size = d->points[i].size;
		uint64_t code = size == 8 ? 2 : size == 4 ? 3 : size == 2 ? 1 : 0;

		debug.arch.debugreg[i] = d->points[i].gva;
		debug.arch.debugreg[7] |= 2ull << 2 * i | (kind | code << 2) << (16 + 4 * i);
	}
	return kvm_ioctl_ptr(v->fd, KVM_SET_GUEST_DEBUG, &debug);
}

/* --- life --- */

static void ops_destroy(void *self)
{
	struct kvm_vcpu *v = self;

	if (v->vm->vcpus[v->index] == v)
		v->vm->vcpus[v->index] = NULL;
	kvm_partial_stop(v);
	kvm_move_stop(v);
	kvm_dirty_unmap_ring(v);
	if (v->run)
		munmap(v->run, v->vm->run_size);
	if (v->fd >= 0)
		close(v->fd);
	free(v);
}

int kvm_vcpu_create(struct kvm_vm *vm, unsigned index, const struct cpu_model *model, void **self, struct error *err)
{
	struct kvm_vcpu *v;
	int rc;

	if (index >= VCPU_MAX)
		return error_set(err, -EINVAL, "The KVM backend has at most %d vcpus.", VCPU_MAX);
	v = calloc(1, sizeof(*v));
	if (!v)
		return error_set(err, -ENOMEM, "The host is out of memory.");
	v->vm = vm;
	v->index = index;
	v->model = *model;
	v->extint_vector = -1;
	v->random = 0x9e3779b97f4a7c15ull * (index + 1);
	v->fd = kvm_ioctl(vm->vm_fd, KVM_CREATE_VCPU, index);
	if (v->fd < 0) {
		rc = error_set(err, v->fd, "KVM cannot create vcpu %u: %s.", index, strerror(-v->fd));
		free(v);
		return rc;
	}
	v->run = mmap(NULL, vm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
	if (v->run == MAP_FAILED) {
		v->run = NULL;
		rc = error_set(err, -errno, "The run area of vcpu %u cannot be mapped: %s.", index, strerror(errno));
		ops_destroy(v);
		return rc;
	}
	rc = kvm_dirty_map_ring(v);
	rc = rc ? error_set(err, rc, "The dirty ring of vcpu %u cannot be mapped: %s.", index, strerror(-rc)) : kvm_set_cpuid(v, err);
	if (rc) {
		ops_destroy(v);
		return rc;
	}
	kvm_register_posted(vm);
	vm->vcpus[index] = v;
	if (vm->vcpu_count <= index)
		vm->vcpu_count = index + 1;
	*self = v;
	return 0;
}

const struct vcpu_backend kvm_vcpu_ops = {
	.name = "kvm",
	.run = ops_run,
	.kick = ops_kick,
	.get_state = ops_get_state,
	.set_state = ops_set_state,
	.destroy = ops_destroy,
	.set_debug = ops_set_debug,
	.get_lapic = ops_get_lapic,
	.set_lapic = ops_set_lapic,
};
