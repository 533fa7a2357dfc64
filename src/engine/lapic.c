/*
 * The local APIC (SDM vol. 3, chapter 11), xAPIC and x2APIC, inside the vcpu process: EOI, TPR, self-IPIs and the timer
 * never leave it. Devices and other vcpus reach it through the posted words of the vcpu block, which lapic_poll() merges.
 *
 * Registers are kept by their xAPIC offset / 16, which is also the x2APIC MSR number minus 0x800:
 *
 *   02 ID  03 version  08 TPR  0a PPR  0b EOI  0d LDR  0e DFR  0f SVR  10–17 ISR  18–1f TMR  20–27 IRR  28 ESR
 *   2f CMCI (not offered)  30–31 ICR  32 timer  33 thermal  34 performance  35 LINT0  36 LINT1  37 error
 *   38 initial count  39 current count  3e divide  3f self-IPI (x2APIC)
 *
 * Invariants: timer_start_ns is 0 unless the count-down runs; bits in irr imply that the APIC is enabled by software
 * when they were set; whatever may make an interrupt deliverable sets e->attention.
 */
#include <string.h>
#include <time.h>

#include "engine_state.h"

#define BASE_BSP (1ull << 8)

#define SVR_ENABLE (1u << 8)
#define SVR_NO_BROADCAST (1u << 12) /* SDM vol. 3, 11.8.5 */

#define LVT_VECTOR 0xffu
#define LVT_MODE (7u << 8)
#define LVT_POLARITY (1u << 13)
#define LVT_LEVEL (1u << 15)
#define LVT_MASKED (1u << 16)
#define LVT_TIMER_MODE (3u << 17)
#define TIMER_ONE_SHOT (0u << 17)
#define TIMER_PERIODIC (1u << 17)
#define TIMER_TSC_DEADLINE (2u << 17)

enum { MODE_FIXED = 0, MODE_LOWEST = 1, MODE_SMI = 2, MODE_NMI = 4, MODE_INIT = 5, MODE_STARTUP = 6, MODE_EXTINT = 7 };

#define ESR_SEND_ACCEPT (1u << 2)
#define ESR_SEND_ILLEGAL (1u << 5)
#define ESR_RECEIVE_ILLEGAL (1u << 6)
#define ESR_REGISTER_ILLEGAL (1u << 7)

#define ICR_LOGICAL (1u << 11)
#define ICR_ASSERT (1u << 14)
#define ICR_LEVEL (1u << 15)
#define ICR_SHORTHAND (3u << 18)
#define ICR_SELF (1u << 18)
#define ICR_ALL (2u << 18)
#define ICR_OTHERS (3u << 18)
#define ICR_VALID 0x000ccfffu /* vector, mode, destination mode, level, trigger, shorthand */

#define VERSION 0x01050014u /* 6 LVT entries, integrated APIC, EOIs can be kept from the IOAPIC; as KVM has it */

enum reg {
	REG_ID = 0x02, REG_VERSION = 0x03, REG_TPR = 0x08, REG_APR = 0x09, REG_PPR = 0x0a, REG_EOI = 0x0b, REG_RRD = 0x0c,
	REG_LDR = 0x0d, REG_DFR = 0x0e, REG_SVR = 0x0f, REG_ISR = 0x10, REG_TMR = 0x18, REG_IRR = 0x20, REG_ESR = 0x28,
	REG_ICR = 0x30, REG_ICR_HIGH = 0x31, REG_LVT_TIMER = 0x32, REG_LVT_ERROR = 0x37, REG_TIMER_INITIAL = 0x38,
	REG_TIMER_CURRENT = 0x39, REG_TIMER_DIVIDE = 0x3e, REG_SELF_IPI = 0x3f, REG_END = 0x40
};

static struct lapic_state *state_of(struct engine *e)
{
	return &e->block->lapic;
}

static bool is_enabled(const struct lapic_state *l)
{
	return l->apic_base & APIC_BASE_ENABLE;
}

static bool is_x2apic(const struct lapic_state *l)
{
	return (l->apic_base & (APIC_BASE_ENABLE | APIC_BASE_X2APIC)) == (APIC_BASE_ENABLE | APIC_BASE_X2APIC);
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

/* --- vectors and priorities (SDM vol. 3, 11.8.3) --- */


static void bit_set(uint64_t map[4], unsigned v)
{
	map[v / 64] |= 1ull << (v % 64);
}

static void bit_clear(uint64_t map[4], unsigned v)
{
	map[v / 64] &= ~(1ull << (v % 64));
}

static int bit_highest(const uint64_t map[4])
{
	for (int i = 3; i >= 0; i--)
		if (map[i])
			return i * 64 + 63 - __builtin_clzll(map[i]);
	return -1;
}

static uint32_t get_ppr(const struct lapic_state *l)
{
	int in_service = bit_highest(l->isr);
	uint32_t isrv = in_service < 0 ? 0 : (uint32_t)in_service;

	return (l->tpr >> 4) >= (isrv >> 4) ? l->tpr & 0xff : isrv & 0xf0;
}

/* Errors are latched into ESR by a write of it; the error interrupt comes at once. */
static void set_error(struct engine *e, uint32_t bit)
{
	struct lapic_state *l = state_of(e);
	uint32_t lvt = l->lvt[LVT_ERROR];

	if (l->esr_pending & bit)
		return;
	l->esr_pending |= bit;
	if (!(lvt & LVT_MASKED) && (lvt & LVT_VECTOR) >= 16 && l->spurious & SVR_ENABLE) {
		bit_set(l->irr, lvt & LVT_VECTOR);
		bit_clear(l->tmr, lvt & LVT_VECTOR);
		e->attention = true;
	}
}

static void accept_fixed(struct engine *e, uint32_t vector, bool level)
{
	struct lapic_state *l = state_of(e);

	if (!(l->spurious & SVR_ENABLE))
		return;
	if (vector < 16) {
		set_error(e, ESR_RECEIVE_ILLEGAL);
		return;
	}
	bit_set(l->irr, vector);
	if (level)
		bit_set(l->tmr, vector);
	else
		bit_clear(l->tmr, vector);
	e->attention = true;
}

/* A local source fires: LINT pins, timer, error. */
static void fire_lvt(struct engine *e, enum lapic_lvt which)
{
	uint32_t lvt = state_of(e)->lvt[which];

	if (lvt & LVT_MASKED)
		return;
	switch ((lvt & LVT_MODE) >> 8) {
	case MODE_FIXED:
		accept_fixed(e, lvt & LVT_VECTOR, false);
		break;
	case MODE_NMI:
		e->cpu->nmi_pending = 1;
		e->attention = true;
		break;
	case MODE_INIT:
		atomic_fetch_or(&e->block->events, VCPU_EVENT_INIT);
		break;
	}
}

/* --- timer (SDM vol. 3, 11.5.4) --- */

static uint32_t timer_mode(const struct lapic_state *l)
{
	return l->lvt[LVT_TIMER] & LVT_TIMER_MODE;
}

/* Nanoseconds of one count. Divide configuration: bits 3, 1, 0 are log2 − 1, 7 is 1. */
static uint64_t tick_ns(struct engine *e)
{
	const struct lapic_state *l = state_of(e);
	uint32_t code = (l->timer_divide & 3) | (l->timer_divide >> 1 & 4), tick = e->block->model.lapic_tick_ns;

	return (uint64_t)(tick ? tick : CPU_LAPIC_TICK_NS) << ((code + 1) & 7);
}

static uint64_t period_ns(struct engine *e)
{
	return (uint64_t)state_of(e)->timer_initial * tick_ns(e);
}

/* Brings the count-down up to date; fires what has expired. */
static void timer_update(struct engine *e)
{
	struct lapic_state *l = state_of(e);
	uint64_t period, elapsed, now;

	if (timer_mode(l) == TIMER_TSC_DEADLINE) {
		if (l->tsc_deadline && engine_guest_tsc(e) >= l->tsc_deadline) {
			l->tsc_deadline = 0;
			fire_lvt(e, LVT_TIMER);
		}
		return;
	}
	if (!l->timer_start_ns)
		return;
	period = period_ns(e);
	now = now_ns();
	elapsed = now > l->timer_start_ns ? now - l->timer_start_ns : 0;
	if (!period || elapsed < period)
		return;
	l->timer_start_ns = timer_mode(l) == TIMER_PERIODIC ? l->timer_start_ns + elapsed / period * period : 0;
	fire_lvt(e, LVT_TIMER);
}

uint64_t lapic_next_deadline(struct engine *e)
{
	struct lapic_state *l = state_of(e);
	uint64_t tsc, ns;

	if (l->lvt[LVT_TIMER] & LVT_MASKED)
		return 0;
	if (timer_mode(l) != TIMER_TSC_DEADLINE)
		return l->timer_start_ns ? l->timer_start_ns + period_ns(e) : 0;
	if (!l->tsc_deadline)
		return 0;
	tsc = engine_guest_tsc(e);
	if (tsc >= l->tsc_deadline)
		return 1; /* long ago */
	/* 60 ppm and 100 ns late on purpose: an early signal would only have to be armed again. */
	ns = (uint64_t)((__uint128_t)(l->tsc_deadline - tsc) * 1000000u / e->block->model.tsc_khz);
	if (ns > 1ull << 62)
		return 0; /* centuries */
	return now_ns() + ns + (ns >> 14) + 100;
}

static void timer_arm(struct engine *e)
{
	e->env.set_timer(e->env.ctx, lapic_next_deadline(e));
}

static uint32_t timer_current(struct engine *e)
{
	struct lapic_state *l = state_of(e);
	uint64_t now, ticks;

	timer_update(e);
	if (!l->timer_start_ns || timer_mode(l) == TIMER_TSC_DEADLINE)
		return 0;
	now = now_ns();
	ticks = now > l->timer_start_ns ? (now - l->timer_start_ns) / tick_ns(e) : 0;
	return ticks < l->timer_initial ? l->timer_initial - (uint32_t)ticks : 0;
}

static void write_timer_lvt(struct engine *e, uint32_t value)
{
	struct lapic_state *l = state_of(e);
	uint32_t old_mode = timer_mode(l);

	timer_update(e);
	l->lvt[LVT_TIMER] = value;
	if (timer_mode(l) != old_mode && (timer_mode(l) == TIMER_TSC_DEADLINE || old_mode == TIMER_TSC_DEADLINE)) {
		l->timer_start_ns = 0;
		l->timer_initial = 0;
		l->tsc_deadline = 0;
	}
	timer_arm(e);
}

static void write_timer_initial(struct engine *e, uint32_t value)
{
	struct lapic_state *l = state_of(e);

	timer_update(e);
	if (timer_mode(l) == TIMER_TSC_DEADLINE)
		return;
	l->timer_initial = value;
	l->timer_start_ns = value ? now_ns() : 0;
	timer_arm(e);
}

/* The remaining count goes on at the new rate. */
static void write_timer_divide(struct engine *e, uint32_t value)
{
	struct lapic_state *l = state_of(e);
	uint32_t left = timer_current(e);

	l->timer_divide = value & 0xb;
	if (l->timer_start_ns)
		l->timer_start_ns = now_ns() - (uint64_t)(l->timer_initial - left) * tick_ns(e);
	timer_arm(e);
}

/* --- interprocessor interrupts (SDM vol. 3, 11.6) --- */

/* True if an unshorthanded destination means this APIC and, by its form, no other. */
static bool is_only_self(const struct engine *e, const struct lapic_state *l, uint32_t dest, uint32_t low)
{
	if (low & ICR_LOGICAL) {
		if (is_x2apic(l))
			return dest == l->ldr;
		return e->block->model.cpu_count == 1 && (dest & l->ldr >> 24) != 0;
	}
	return dest == l->id || (e->block->model.cpu_count == 1 && dest == (is_x2apic(l) ? 0xffffffffu : 0xffu));
}

static void send_self(struct engine *e, uint32_t low)
{
	switch ((low & LVT_MODE) >> 8) {
	case MODE_FIXED:
	case MODE_LOWEST:
		accept_fixed(e, low & 0xff, low & ICR_LEVEL);
		break;
	case MODE_NMI:
		e->cpu->nmi_pending = 1;
		e->attention = true;
		break;
	case MODE_INIT:
		if (!(low & ICR_LEVEL) || low & ICR_ASSERT)
			atomic_fetch_or(&e->block->events, VCPU_EVENT_INIT);
		break;
	default: /* SMI has no use here; SIPI reaches only those that wait for one */
		break;
	}
}

static void send_ipi(struct engine *e, uint32_t dest, uint32_t low)
{
	struct lapic_state *l = state_of(e);
	uint32_t mode = (low & LVT_MODE) >> 8, shorthand = low & ICR_SHORTHAND;
	struct vcpu_exit *x = &e->block->exit;

	if (mode == MODE_EXTINT || mode == 3)
		return;
	if (mode <= MODE_LOWEST && (low & 0xff) < 16) {
		set_error(e, ESR_SEND_ILLEGAL);
		return;
	}
	if (shorthand == ICR_SELF || (!shorthand && is_only_self(e, l, dest, low))) {
		send_self(e, low);
		return;
	}
	if (e->block->model.cpu_count == 1) {
		if (shorthand == ICR_ALL)
			send_self(e, low);
		else if (!shorthand && mode <= MODE_LOWEST && !is_x2apic(l))
			set_error(e, ESR_SEND_ACCEPT);
		return;
	}
	x->addr = dest;
	x->data = low;
	x->is_write = 1;
	x->size = 4;
	e->env.exit(e->env.ctx, VCPU_EXIT_IPI);
}

/* --- registers --- */

static void write_eoi(struct engine *e)
{
	struct lapic_state *l = state_of(e);
	int vector = bit_highest(l->isr);

	if (vector < 0)
		return;
	bit_clear(l->isr, (unsigned)vector);
	e->attention = true;
	if (l->spurious & SVR_NO_BROADCAST)
		return;
	if (atomic_load_explicit(&e->shared->eoi_exit[vector / 64], memory_order_relaxed) >> (vector % 64) & 1) {
		e->block->exit.data = (uint64_t)vector;
		e->block->exit.addr = 0;
		e->env.exit(e->env.ctx, VCPU_EXIT_EOI);
	}
}

static void write_spurious(struct engine *e, uint32_t value)
{
	struct lapic_state *l = state_of(e);

	l->spurious = value & 0x13ff;
	if (value & SVR_ENABLE) {
		e->attention = true;
		return;
	}
	timer_update(e);
	for (unsigned i = 0; i < LVT_COUNT; i++)
		l->lvt[i] |= LVT_MASKED;
	timer_arm(e);
}

/* Bits of each LVT entry that can be written. */
static uint32_t lvt_mask(enum lapic_lvt which)
{
	switch (which) {
	case LVT_TIMER:
		return LVT_VECTOR | LVT_MASKED | LVT_TIMER_MODE;
	case LVT_LINT0:
	case LVT_LINT1:
		return LVT_VECTOR | LVT_MODE | LVT_POLARITY | LVT_LEVEL | LVT_MASKED;
	case LVT_ERROR:
		return LVT_VECTOR | LVT_MASKED;
	default:
		return LVT_VECTOR | LVT_MODE | LVT_MASKED;
	}
}

static void write_lvt(struct engine *e, enum lapic_lvt which, uint32_t value)
{
	struct lapic_state *l = state_of(e);

	value &= lvt_mask(which);
	if (!(l->spurious & SVR_ENABLE))
		value |= LVT_MASKED;
	if (which == LVT_TIMER) {
		write_timer_lvt(e, value);
		return;
	}
	if ((value & (LVT_MODE | LVT_MASKED)) == 0 && (value & LVT_VECTOR) < 16)
		set_error(e, ESR_RECEIVE_ILLEGAL);
	l->lvt[which] = value;
	if (which == LVT_LINT0)
		e->attention = true;
}

/* False: no such register. */
static bool read_register(struct engine *e, unsigned reg, uint32_t *value)
{
	struct lapic_state *l = state_of(e);

	switch (reg) {
	case REG_ID:
		*value = is_x2apic(l) ? l->id : l->id << 24;
		return true;
	case REG_VERSION:
		*value = VERSION;
		return true;
	case REG_TPR:
		*value = l->tpr;
		return true;
	case REG_PPR:
		*value = get_ppr(l);
		return true;
	case REG_LDR:
		*value = l->ldr;
		return true;
	case REG_DFR:
		*value = l->dfr;
		return true;
	case REG_SVR:
		*value = l->spurious;
		return true;
	case REG_ISR ... REG_ISR + 7:
		*value = (uint32_t)(l->isr[(reg - REG_ISR) / 2] >> (reg % 2 * 32));
		return true;
	case REG_TMR ... REG_TMR + 7:
		*value = (uint32_t)(l->tmr[(reg - REG_TMR) / 2] >> (reg % 2 * 32));
		return true;
	case REG_IRR ... REG_IRR + 7:
		lapic_poll(e, VCPU_EVENT_IRR);
		*value = (uint32_t)(l->irr[(reg - REG_IRR) / 2] >> (reg % 2 * 32));
		return true;
	case REG_ESR:
		*value = l->esr;
		return true;
	case REG_ICR:
		*value = l->icr_low;
		return true;
	case REG_ICR_HIGH:
		*value = l->icr_high;
		return true;
	case REG_LVT_TIMER ... REG_LVT_ERROR:
		*value = l->lvt[LVT_TIMER + (reg - REG_LVT_TIMER)];
		return true;
	case REG_TIMER_INITIAL:
		*value = l->timer_initial;
		return true;
	case REG_TIMER_CURRENT:
		*value = timer_current(e);
		return true;
	case REG_TIMER_DIVIDE:
		*value = l->timer_divide;
		return true;
	}
	*value = 0;
	return false;
}

/* Registers that both forms can write. */
static bool write_register(struct engine *e, unsigned reg, uint32_t value)
{
	struct lapic_state *l = state_of(e);

	switch (reg) {
	case REG_TPR:
		l->tpr = value & 0xff;
		e->attention = true;
		return true;
	case REG_EOI:
		write_eoi(e);
		return true;
	case REG_SVR:
		write_spurious(e, value);
		return true;
	case REG_ESR:
		l->esr = l->esr_pending;
		l->esr_pending = 0;
		return true;
	case REG_LVT_TIMER ... REG_LVT_ERROR:
		write_lvt(e, LVT_TIMER + (reg - REG_LVT_TIMER), value);
		return true;
	case REG_TIMER_INITIAL:
		write_timer_initial(e, value);
		return true;
	case REG_TIMER_DIVIDE:
		write_timer_divide(e, value);
		return true;
	}
	return false;
}

uint32_t lapic_read(struct engine *e, uint32_t offset)
{
	unsigned reg = offset >> 4;
	uint32_t value = 0;

	if (offset & 15)
		return 0;
	if (reg == REG_EOI || reg == REG_RRD || reg == REG_APR)
		return 0;
	if (reg >= REG_END || !read_register(e, reg, &value))
		set_error(e, ESR_REGISTER_ILLEGAL);
	return value;
}

void lapic_write(struct engine *e, uint32_t offset, uint32_t value)
{
	struct lapic_state *l = state_of(e);
	unsigned reg = offset >> 4;

	if (offset & 15)
		return;
	switch (reg) {
	case REG_ID:
	case REG_VERSION:
	case REG_APR:
	case REG_PPR:
	case REG_RRD:
	case REG_TIMER_CURRENT:
		break; /* read-only */
	case REG_LDR:
		l->ldr = value & 0xff000000u;
		break;
	case REG_DFR:
		l->dfr = value | 0x0fffffffu;
		break;
	case REG_ICR_HIGH:
		l->icr_high = value & 0xff000000u;
		break;
	case REG_ICR:
		l->icr_low = value & ICR_VALID;
		send_ipi(e, l->icr_high >> 24, l->icr_low);
		break;
	default:
		if (reg >= REG_END || !write_register(e, reg, value))
			set_error(e, ESR_REGISTER_ILLEGAL);
	}
}

/* --- MSRs (SDM vol. 3, 11.12) --- */

static bool x2apic_read(struct engine *e, unsigned reg, uint64_t *value)
{
	struct lapic_state *l = state_of(e);
	uint32_t low;

	switch (reg) {
	case REG_EOI:
	case REG_SELF_IPI:
	case REG_DFR:
	case REG_ICR_HIGH:
		return false;
	case REG_ICR:
		*value = (uint64_t)l->icr_high << 32 | l->icr_low;
		return true;
	}
	if (!read_register(e, reg, &low))
		return false;
	*value = low;
	return true;
}

static bool x2apic_write(struct engine *e, unsigned reg, uint64_t value)
{
	struct lapic_state *l = state_of(e);
	uint32_t low = (uint32_t)value;

	if (reg == REG_ICR) {
		if (low & ~ICR_VALID & ~(1u << 12))
			return false;
		l->icr_low = low & ICR_VALID;
		l->icr_high = (uint32_t)(value >> 32);
		send_ipi(e, l->icr_high, l->icr_low);
		return true;
	}
	if (value >> 32)
		return false;
	switch (reg) {
	case REG_SELF_IPI:
		if (low & ~0xffu)
			return false;
		send_ipi(e, 0, low | ICR_SELF);
		return true;
	case REG_TPR:
		if (low & ~0xffu)
			return false;
		break;
	case REG_EOI:
	case REG_ESR:
		if (low)
			return false;
		break;
	case REG_SVR:
		if (low & ~0x13ffu)
			return false;
		break;
	case REG_TIMER_DIVIDE:
		if (low & ~0xbu)
			return false;
		break;
	case REG_LVT_TIMER ... REG_LVT_ERROR: /* bits 12 and 14 are read-only status */
		if (low & ~lvt_mask(LVT_TIMER + (reg - REG_LVT_TIMER)) & ~(1u << 12 | 1u << 14))
			return false;
		break;
	}
	return write_register(e, reg, low);
}

bool lapic_msr_read(struct engine *e, uint32_t msr, uint64_t *value)
{
	struct lapic_state *l = state_of(e);

	*value = 0;
	if (msr == MSR_APIC_BASE) {
		*value = l->apic_base;
		return true;
	}
	if (msr == MSR_TSC_DEADLINE) {
		timer_update(e);
		*value = timer_mode(l) == TIMER_TSC_DEADLINE ? l->tsc_deadline : 0;
		return true;
	}
	if (msr - MSR_X2APIC >= REG_END || !is_x2apic(l))
		return false;
	return x2apic_read(e, msr - MSR_X2APIC, value);
}

bool lapic_msr_write(struct engine *e, uint32_t msr, uint64_t value)
{
	struct lapic_state *l = state_of(e);

	if (msr == MSR_APIC_BASE)
		return lapic_set_base(e, value);
	if (msr == MSR_TSC_DEADLINE) {
		if (timer_mode(l) != TIMER_TSC_DEADLINE)
			return true;
		l->tsc_deadline = value;
		timer_update(e);
		timer_arm(e);
		return true;
	}
	if (msr - MSR_X2APIC >= REG_END || !is_x2apic(l))
		return false;
	return x2apic_write(e, msr - MSR_X2APIC, value);
}

/* Registers to their reset values; base and ID stay (SDM vol. 3, 11.4.7.1 and 11.4.7.3). */
static void reset_registers(struct engine *e)
{
	struct lapic_state *l = state_of(e);
	uint64_t base = l->apic_base;
	uint32_t id = l->id;

	cpu_lapic_reset(l, id, base & BASE_BSP);
	l->apic_base = base;
	if (is_x2apic(l))
		l->ldr = (id & ~0xfu) << 12 | 1u << (id & 0xf);
	timer_arm(e);
}

void lapic_reset(struct engine *e)
{
	reset_registers(e);
}

/* Mode changes (SDM vol. 3, figure 11-27): disabled → xAPIC → x2APIC → disabled, xAPIC → disabled. */
bool lapic_set_base(struct engine *e, uint64_t value)
{
	struct lapic_state *l = state_of(e);
	uint64_t reserved = 0x2ffull | ~((1ull << e->block->model.phys_bits) - 1);
	uint64_t modes = APIC_BASE_ENABLE | APIC_BASE_X2APIC, from = l->apic_base & modes, to = value & modes;

	if (value & reserved || to == APIC_BASE_X2APIC)
		return false;
	if (from != to && ((from == 0 && to == modes) || (from == modes && to == APIC_BASE_ENABLE)))
		return false;
	l->apic_base = value;
	if (from == to)
		return true;
	if (to == modes)
		l->ldr = (l->id & ~0xfu) << 12 | 1u << (l->id & 0xf);
	else
		reset_registers(e);
	e->attention = true;
	return true;
}

uint64_t lapic_get_tpr(struct engine *e)
{
	return state_of(e)->tpr >> 4 & 0xf;
}

void lapic_set_tpr(struct engine *e, uint64_t cr8)
{
	state_of(e)->tpr = (uint32_t)(cr8 & 0xf) << 4;
	e->attention = true;
}

/* --- what the main loop asks --- */

static void merge_posted(struct engine *e)
{
	struct lapic_state *l = state_of(e);
	struct vcpu_block *b = e->block;

	for (unsigned i = 0; i < 4; i++) {
		uint64_t irr, tmr;

		if (!atomic_load_explicit(&b->posted_irr[i], memory_order_relaxed))
			continue;
		irr = atomic_exchange(&b->posted_irr[i], 0);
		tmr = atomic_fetch_and(&b->posted_tmr[i], ~irr) & irr;
		if (!(l->spurious & SVR_ENABLE) || !is_enabled(l))
			continue;
		l->irr[i] |= irr;
		l->tmr[i] = (l->tmr[i] & ~irr) | tmr;
		e->attention = true;
	}
}

void lapic_poll(struct engine *e, uint32_t events)
{
	merge_posted(e);
	if (events & VCPU_EVENT_EXTINT) {
		uint32_t lint0 = state_of(e)->lvt[LVT_LINT0];

		if (atomic_load(&e->block->extint_level) && (lint0 & LVT_MODE) >> 8 != MODE_EXTINT)
			fire_lvt(e, LVT_LINT0);
		e->attention = true;
	}
	if (events & VCPU_EVENT_TIMER) {
		timer_update(e);
		timer_arm(e);
	}
}

int lapic_pending(struct engine *e)
{
	struct lapic_state *l = state_of(e);
	int vector;

	if (!is_enabled(l) || !(l->spurious & SVR_ENABLE))
		return -1;
	vector = bit_highest(l->irr);
	if (vector < 0 || (uint32_t)vector >> 4 <= get_ppr(l) >> 4)
		return -1;
	return vector;
}

void lapic_accept(struct engine *e, uint8_t vector)
{
	struct lapic_state *l = state_of(e);

	bit_clear(l->irr, vector);
	bit_set(l->isr, vector);
}

bool lapic_extint_pending(struct engine *e)
{
	struct lapic_state *l = state_of(e);

	if (!atomic_load_explicit(&e->block->extint_level, memory_order_relaxed))
		return false;
	if (!is_enabled(l))
		return true; /* the pins are those of an 8259 system: INTR and NMI */
	return !(l->lvt[LVT_LINT0] & LVT_MASKED) && (l->lvt[LVT_LINT0] & LVT_MODE) >> 8 == MODE_EXTINT;
}
