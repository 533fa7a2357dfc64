/*
 * The local APIC in the kernel, to and from struct lapic_state. KVM's form is the register page: 32 bits at each multiple
 * of 16, by xAPIC offset in either mode; the ID in bits 31:24, LDR by mode. The remaining count of the timer stands in the
 * current-count register and runs on from there when it is set; a TSC deadline is an MSR.
 */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "kvm_vm.h"

#define BASE_X2APIC (1u << 10)
#define TIMER_MODE (3u << 17)
#define TIMER_TSC_DEADLINE (2u << 17)

enum {
	REG_ID = 0x20, REG_TPR = 0x80, REG_LDR = 0xd0, REG_DFR = 0xe0, REG_SVR = 0xf0, REG_ISR = 0x100, REG_TMR = 0x180,
	REG_IRR = 0x200, REG_ESR = 0x280, REG_ICR = 0x300, REG_ICR_HIGH = 0x310, REG_LVT_TIMER = 0x320, REG_INITIAL = 0x380,
	REG_CURRENT = 0x390, REG_DIVIDE = 0x3e0
};

static uint32_t get(const struct kvm_lapic_state *k, unsigned offset)
{
	uint32_t value;

	memcpy(&value, k->regs + offset, sizeof(value));
	return value;
}

static void put(struct kvm_lapic_state *k, unsigned offset, uint32_t value)
{
	memcpy(k->regs + offset, &value, sizeof(value));
}

static void get_bits(const struct kvm_lapic_state *k, unsigned offset, uint64_t bits[4])
{
	for (unsigned i = 0; i < 4; i++)
		bits[i] = get(k, offset + 32 * i) | (uint64_t)get(k, offset + 32 * i + 16) << 32;
}

static void put_bits(struct kvm_lapic_state *k, unsigned offset, const uint64_t bits[4])
{
	for (unsigned i = 0; i < 4; i++) {
		put(k, offset + 32 * i, (uint32_t)bits[i]);
		put(k, offset + 32 * i + 16, (uint32_t)(bits[i] >> 32));
	}
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

/* Divide configuration: bits 3, 1, 0 are log2 − 1, 7 is 1. */
static uint64_t tick_ns(const struct kvm_vcpu *v, uint32_t divide)
{
	uint32_t code = (divide & 3) | (divide >> 1 & 4);

	return (uint64_t)v->vm->lapic_tick_ns << ((code + 1) & 7);
}

static bool is_x2apic(const struct lapic_state *l)
{
	return l->apic_base & BASE_X2APIC;
}

int kvm_lapic_get(struct kvm_vcpu *v, struct lapic_state *l)
{
	struct kvm_lapic_state k;
	uint32_t current;

	memset(l, 0, sizeof(*l));
	if (kvm_ioctl_ptr(v->fd, KVM_GET_LAPIC, &k) < 0 || !kvm_msr(v->fd, KVM_GET_MSRS, MSR_APIC_BASE, &l->apic_base))
		return kvm_fail(v, "to give the local APIC");
	l->id = v->index;
	l->ldr = get(&k, REG_LDR);
	l->dfr = get(&k, REG_DFR);
	l->tpr = get(&k, REG_TPR);
	l->spurious = get(&k, REG_SVR);
	l->esr = get(&k, REG_ESR);
	l->icr_low = get(&k, REG_ICR);
	l->icr_high = get(&k, REG_ICR_HIGH);
	l->lvt[LVT_CMCI] = 1u << 16;
	for (unsigned i = 0; i <= LVT_ERROR - LVT_TIMER; i++)
		l->lvt[LVT_TIMER + i] = get(&k, REG_LVT_TIMER + 16 * i);
	l->timer_divide = get(&k, REG_DIVIDE);
	l->timer_initial = get(&k, REG_INITIAL);
	get_bits(&k, REG_ISR, l->isr);
	get_bits(&k, REG_TMR, l->tmr);
	get_bits(&k, REG_IRR, l->irr);
	if ((l->lvt[LVT_TIMER] & TIMER_MODE) == TIMER_TSC_DEADLINE) {
		kvm_msr(v->fd, KVM_GET_MSRS, MSR_TSC_DEADLINE, &l->tsc_deadline);
		return 0;
	}
	/* Between its end and the interrupt a periodic count reads as 0. KVM has a least period: the count can be above its start. */
	current = get(&k, REG_CURRENT);
	if (current > l->timer_initial)
		current = l->timer_initial;
	if (current || (l->lvt[LVT_TIMER] & TIMER_MODE))
		l->timer_start_ns = !l->timer_initial ? 0
			: now_ns() - (uint64_t)(l->timer_initial - current) * tick_ns(v, l->timer_divide);
	return 0;
}

/* What is left of the count; a one-shot timer that should have fired fires at once. */
static uint32_t current_count(const struct kvm_vcpu *v, const struct lapic_state *l)
{
	uint64_t passed, now = now_ns();

	if (!l->timer_start_ns || !l->timer_initial)
		return 0;
	passed = now > l->timer_start_ns ? (now - l->timer_start_ns) / tick_ns(v, l->timer_divide) : 0;
	if (passed >= l->timer_initial)
		return (l->lvt[LVT_TIMER] & TIMER_MODE) ? l->timer_initial - (uint32_t)(passed % l->timer_initial) : 1;
	return l->timer_initial - (uint32_t)passed;
}

int kvm_lapic_set(struct kvm_vcpu *v, const struct lapic_state *l)
{
	bool deadline = (l->lvt[LVT_TIMER] & TIMER_MODE) == TIMER_TSC_DEADLINE;
	uint64_t base = l->apic_base, tsc = l->tsc_deadline, was = 0;
	uint32_t current;
	struct kvm_lapic_state k;

	/* KVM knows the steps of hardware only: out of x2APIC mode goes through "disabled". */
	if (kvm_msr(v->fd, KVM_GET_MSRS, MSR_APIC_BASE, &was) && was & BASE_X2APIC && !is_x2apic(l)) {
		was &= ~0xc00ull;
		kvm_msr(v->fd, KVM_SET_MSRS, MSR_APIC_BASE, &was);
	}
	if (!kvm_msr(v->fd, KVM_SET_MSRS, MSR_APIC_BASE, &base))
		return kvm_fail(v, "the local APIC's base");
	if (kvm_ioctl_ptr(v->fd, KVM_GET_LAPIC, &k) < 0)
		return kvm_fail(v, "to give the local APIC");
	put(&k, REG_ID, v->index << 24);
	put(&k, REG_LDR, l->ldr);
	put(&k, REG_DFR, l->dfr);
	put(&k, REG_TPR, l->tpr);
	put(&k, REG_SVR, l->spurious);
	put(&k, REG_ESR, l->esr);
	put(&k, REG_ICR, l->icr_low);
	put(&k, REG_ICR_HIGH, l->icr_high);
	for (unsigned i = 0; i <= LVT_ERROR - LVT_TIMER; i++)
		put(&k, REG_LVT_TIMER + 16 * i, l->lvt[LVT_TIMER + i]);
	put(&k, REG_DIVIDE, l->timer_divide);
	/* A count that has ended would fire once more if KVM knew where it began: the register reads as 0 from then on. */
	current = deadline ? 0 : current_count(v, l);
	put(&k, REG_INITIAL, current ? l->timer_initial : 0);
	put(&k, REG_CURRENT, current);
	put_bits(&k, REG_ISR, l->isr);
	put_bits(&k, REG_TMR, l->tmr);
	put_bits(&k, REG_IRR, l->irr);
	if (kvm_ioctl_ptr(v->fd, KVM_SET_LAPIC, &k) < 0)
		return kvm_fail(v, "the local APIC's registers");
	if (deadline)
		kvm_msr(v->fd, KVM_SET_MSRS, MSR_TSC_DEADLINE, &tsc);
	return 0;
}
