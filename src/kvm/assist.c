/*
 * Where KVM cannot go on, the software CPU does: the state goes to a software vcpu on the same memory, which executes as many
 * instructions as it is told, and comes back. Its accesses are served as any others of this vcpu.
 *
 * Two ways. An *assist* is one instruction that KVM could not emulate: the helper sees no pending interrupts, so it takes
 * none, and the local APIC in the kernel stays as it is unless the instruction was an access to it. What arrives
 * there meanwhile is kept. A *move* (for tests) or a *stint* (partial.c) is many instructions, with the local APIC: the kernel's
 * one is silenced, and a message that arrives there brings the state back. Nobody sleeps with the helper, since an IPI of another
 * vcpu arrives in the kernel without a word to us. But the single vcpu of a partial KVM does: messages go to its helper.
 *
 * The paravirtual clock is the kernel's: the helper does not know its address, or it would write its own line there.
 */
#include <errno.h>
#include <string.h>

#include "kvm_vm.h"
#include "vmm/error.h"

int kvm_assist_prepare(struct kvm_vcpu *v)
{
	const struct kvm_config *config = &v->vm->config;
	struct error err = { 0 };
	int rc;

	if (v->helper_ops)
		return 0;
	if (!config->helper)
		return -ENOTSUP;
	rc = config->helper(config->ctx, v->index, &v->helper_ops, &v->helper, &err);
	if (rc)
		v->helper_ops = NULL;
	return rc;
}

/* Nothing pending, no timer: what is left of the kernel's local APIC while its vcpu is away. */
static void silence(struct lapic_state *lapic)
{
	memset(lapic->irr, 0, sizeof(lapic->irr));
	lapic->timer_start_ns = 0;
	lapic->timer_initial = 0;
	lapic->tsc_deadline = 0;
}

/* Takes an NMI from the kernel's vcpu that has not been accepted. */
static bool take_nmi(struct kvm_vcpu *v)
{
	struct kvm_vcpu_events events = { 0 };

	if (kvm_ioctl_ptr(v->fd, KVM_GET_VCPU_EVENTS, &events) < 0 || !events.nmi.pending)
		return false;
	events.nmi.pending = 0;
	events.flags |= KVM_VCPUEVENT_VALID_NMI_PENDING;
	return kvm_ioctl_ptr(v->fd, KVM_SET_VCPU_EVENTS, &events) >= 0;
}

static int hand_over(struct kvm_vcpu *v, bool with_lapic)
{
	struct cpu_state state;
	struct lapic_state lapic;
	int rc = kvm_state_get(v, &state);

	if (!rc)
		rc = kvm_lapic_get(v, &lapic);
	if (rc)
		return rc;
	state.nmi_pending = take_nmi(v);
	/* A timer that has ended since then: its interrupt is not in the IRR yet, and the helper shall raise it. */
	if (v->is_settled && v->settled.timer_start_ns && !lapic.timer_start_ns)
		lapic.timer_start_ns = v->settled.timer_start_ns;
	v->helper_pv_time = state.pv_system_time;
	state.pv_system_time = 0;
	v->helper_ops->set_state(v->helper, &state);
	if (with_lapic) {
		v->helper_ops->set_lapic(v->helper, &lapic);
		silence(&lapic);
		return kvm_lapic_set(v, &lapic);
	}
	silence(&lapic);
	v->helper_lapic = lapic;
	v->helper_ops->set_lapic(v->helper, &lapic);
	return 0;
}

int kvm_assist_begin(struct kvm_vcpu *v, uint64_t instructions)
{
	bool lapic = instructions > 1, messages = lapic && v->vm->partial && v->vm->config.cpus == 1;
	int rc = kvm_assist_prepare(v);

	if (rc)
		return rc;
	v->helper_ops->set_limit(v->helper, instructions, !messages);
	pthread_mutex_lock(&v->vm->lock);
	rc = hand_over(v, lapic);
	if (!rc) {
		v->takes_messages = messages;
		v->lapic_moved = lapic;
		atomic_store(&v->away, true);
	}
	pthread_mutex_unlock(&v->vm->lock);
	return rc;
}

/* After an assist: what the instruction did to the local APIC, and what arrived at the kernel's meanwhile. */
static void merge_lapic(struct kvm_vcpu *v, const struct lapic_state *after)
{
	struct lapic_state lapic = *after, kernel;

	if (!memcmp(after, &v->helper_lapic, sizeof(*after)) || kvm_lapic_get(v, &kernel))
		return;
	for (unsigned i = 0; i < 4; i++)
		lapic.irr[i] |= kernel.irr[i];
	if (lapic.timer_initial == v->helper_lapic.timer_initial && lapic.tsc_deadline == v->helper_lapic.tsc_deadline) {
		lapic.timer_start_ns = kernel.timer_start_ns;
		lapic.timer_initial = kernel.timer_initial;
		lapic.tsc_deadline = kernel.tsc_deadline;
	}
	kvm_lapic_set(v, &lapic);
}

static void merge_moved(struct kvm_vcpu *v, struct lapic_state *lapic)
{
	struct lapic_state kernel;

	if (kvm_lapic_get(v, &kernel))
		return;
	for (unsigned i = 0; i < 4; i++) {
		lapic->irr[i] |= kernel.irr[i];
		lapic->tmr[i] = (lapic->tmr[i] & ~kernel.irr[i]) | (kernel.tmr[i] & kernel.irr[i]);
	}
	kvm_lapic_set(v, lapic);
}

/*
 * KVM's shadow paging has not seen the helper write to page tables. Not for the single instructions of a partial KVM, of which
 * there are too many; and not while another vcpu may run on the slots that go.
 */
static void renew_shadows(struct kvm_vcpu *v)
{
	struct kvm_vm *vm = v->vm;

	if (vm->shadows && (v->lapic_moved || !vm->partial) && (vm->config.cpus == 1 || vm->config.move_every) &&
		kvm_memory_renew(vm))
		kvm_fail(v, "the memory slots once more");
}

static void take_back(struct kvm_vcpu *v)
{
	struct cpu_state state;
	struct lapic_state lapic;

	kvm_transit_begin(v);
	pthread_mutex_lock(&v->vm->lock);
	renew_shadows(v);
	v->helper_ops->get_state(v->helper, &state);
	v->helper_ops->get_lapic(v->helper, &lapic);
	if (!state.pv_system_time)
		state.pv_system_time = v->helper_pv_time;
	state.nmi_pending |= take_nmi(v);
	if (!kvm_state_set(v, &state)) {
		if (v->lapic_moved)
			merge_moved(v, &lapic);
		else
			merge_lapic(v, &lapic);
	}
	v->takes_messages = false;
	atomic_store(&v->away, false);
	pthread_mutex_unlock(&v->vm->lock);
	kvm_transit_end(v);
}

bool kvm_assist_run(struct kvm_vcpu *v, struct vcpu_exit *x)
{
	int rc;

	/* A kick that came before `away` did not reach the helper. */
	if (atomic_load(&v->kicked))
		v->helper_ops->kick(v->helper);
	rc = v->helper_ops->run(v->helper, x);
	if (rc)
		x->kind = VCPU_EXIT_ERROR;
	switch (x->kind) {
	case VCPU_EXIT_NONE:
	case VCPU_EXIT_KICKED:
		take_back(v);
		return false;
	case VCPU_EXIT_SHUTDOWN:
		take_back(v);
		return true;
	default:
		return true;
	}
}
