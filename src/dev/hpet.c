/*
 * High precision event timer (IA-PC HPET specification 1.0a). The main counter is computed from the clock.
 *
 *   0x000 capabilities  63:32 period in fs | 31:16 vendor | 15 legacy | 13 64-bit | 12:8 last timer | 7:0 revision
 *   0x010 configuration 1 legacy replacement | 0 enable
 *   0x020 interrupt status, write 1 to clear (level-triggered timers)
 *   0x0f0 main counter
 *   0x100 + 0x20·n  timer configuration:
 *         63:32 routes | 15 FSB_CAP | 14 FSB_EN | 13:9 route | 8 32-bit | 6 VAL_SET | 5 64-bit cap | 4 periodic cap |
 *         3 periodic | 2 enable | 1 level
 *   0x108 + 0x20·n  comparator      0x110 + 0x20·n  FSB: 63:32 address, 31:0 data
 *
 * A match is due at the time when the counter equals the comparator, computed from the counter's start: no drift. A
 * periodic comparator that is late moves on past the counter in one step and interrupts once. Matches closer together than
 * MIN_INTERVAL_NS are merged.
 */
#include "vmm/dev_hpet.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#include "vmm/dev_pit.h"
#include "vmm/dev_rtc.h"
#include "vmm/error.h"
#include "vmm/event.h"

#define TIMERS 3
#define TICK_NS (HPET_PERIOD_FS / 1000000)
#define MIN_INTERVAL_NS 20000
#define FAR_TICKS (1ull << 58) /* a match further away than this never happens */

enum { CFG_ENABLE = 1, CFG_LEGACY = 2 };
enum {
	T_LEVEL = 1 << 1,
	T_ENABLE = 1 << 2,
	T_PERIODIC = 1 << 3,
	T_PERIODIC_CAP = 1 << 4,
	T_SIZE_CAP = 1 << 5,
	T_VAL_SET = 1 << 6,
	T_32BIT = 1 << 8,
	T_FSB_ENABLE = 1 << 14,
	T_FSB_CAP = 1 << 15,
};
#define T_WRITABLE (T_LEVEL | T_ENABLE | T_PERIODIC | T_VAL_SET | T_32BIT | 0x3e00)

struct hpet_timer_state {
	uint64_t config, comparator, period, fsb;
};

struct hpet_state {
	uint64_t config, status;
	uint64_t counter;  /* while disabled: the value; while enabled: the value at start_ns */
	uint64_t start_ns; /* event_now() */
	struct hpet_timer_state timers[TIMERS];
};

struct hpet_timer {
	struct hpet *hpet;
	struct event_timer *event;
	const struct irq_line *asserted; /* the line that a level interrupt drives, or NULL */
};

struct hpet {
	/* Set at create. */
	struct bus *bus;
	struct hpet_wiring wiring;
	/* Device lock. */
	struct hpet_timer timers[TIMERS];
	struct hpet_state state;
};

static bool enabled(const struct hpet *hpet)
{
	return hpet->state.config & CFG_ENABLE;
}

static uint64_t counter_value(const struct hpet_state *s)
{
	return s->config & CFG_ENABLE ? s->counter + (event_now() - s->start_ns) / TICK_NS : s->counter;
}

/*
 * A guest that measures a clock by this counter compares pairs of readings, and throws them away when a reading took
 * long; so who runs the guest may answer by itself.
 */
static void publish_counter(const struct hpet *hpet)
{
	const struct hpet_state *s = &hpet->state;
	struct bus_answer answer = { .space = BUS_MMIO, .sizes = 4 | 8, .addr = HPET_BASE + 0xf0, .start_ns = s->start_ns,
		.base = s->counter, .num = enabled(hpet), .den = TICK_NS };

	answer_publish(&hpet->wiring.answers, &answer);
	answer.sizes = 4;
	answer.addr += 4;
	answer.shift = 32;
	answer_publish(&hpet->wiring.answers, &answer);
}

static uint64_t timer_mask(const struct hpet_timer_state *t)
{
	return t->config & T_32BIT ? UINT32_MAX : UINT64_MAX;
}

static const struct irq_line *timer_line(const struct hpet *hpet, unsigned n)
{
	if ((hpet->state.config & CFG_LEGACY) && n < 2)
		return n ? &hpet->wiring.irq8 : &hpet->wiring.irq0;
	return &hpet->wiring.gsi[(hpet->state.timers[n].config >> 9 & 31) % 24];
}

static bool timer_is_level(const struct hpet *hpet, unsigned n)
{
	const struct hpet_timer_state *t = &hpet->state.timers[n];

	return (t->config & T_LEVEL) && !(t->config & T_FSB_ENABLE);
}

/* Level lines follow status and enable; routing may have changed since the line was driven. */
static void update_line(struct hpet *hpet, unsigned n)
{
	struct hpet_timer *timer = &hpet->timers[n];
	const struct irq_line *line = NULL;

	if (timer_is_level(hpet, n) && enabled(hpet) && (hpet->state.status & 1u << n) &&
		(hpet->state.timers[n].config & T_ENABLE))
		line = timer_line(hpet, n);
	if (line == timer->asserted)
		return;
	if (timer->asserted)
		irq_line_set(timer->asserted, false);
	timer->asserted = line;
	if (line)
		irq_line_set(line, true);
}

static void interrupt(struct hpet *hpet, unsigned n)
{
	struct hpet_timer_state *t = &hpet->state.timers[n];

	if (timer_is_level(hpet, n)) {
		hpet->state.status |= 1u << n;
		update_line(hpet, n);
	} else if (!(t->config & T_ENABLE)) {
		return;
	} else if (t->config & T_FSB_ENABLE) {
		msi_send(&hpet->wiring.msi, t->fsb >> 32, (uint32_t)t->fsb);
	} else {
		irq_line_set(timer_line(hpet, n), true);
		irq_line_set(timer_line(hpet, n), false);
	}
}

/* Arms for the next match, not before earliest_ns; with 0 a match at this very tick counts too. */
static void arm(struct hpet *hpet, unsigned n, uint64_t earliest_ns)
{
	const struct hpet_state *s = &hpet->state;
	const struct hpet_timer_state *t = &s->timers[n];
	uint64_t now = counter_value(s), distance, deadline;

	/* Nobody sees a match of an edge timer whose interrupt is off. */
	if (!enabled(hpet) || !(t->config & T_ENABLE)) {
		event_timer_cancel(hpet->timers[n].event);
		return;
	}
	distance = (t->comparator - now) & timer_mask(t);
	if (distance == 0 && earliest_ns)
		distance = timer_mask(t);
	if (distance >= FAR_TICKS) {
		event_timer_cancel(hpet->timers[n].event);
		return;
	}
	deadline = s->start_ns + (now - s->counter + distance) * TICK_NS;
	event_timer_arm(hpet->timers[n].event, deadline > earliest_ns ? deadline : earliest_ns);
}

static void on_match(void *ctx)
{
	struct hpet_timer *timer = ctx;
	struct hpet *hpet = timer->hpet;
	unsigned n = (unsigned)(timer - hpet->timers);
	struct hpet_timer_state *t = &hpet->state.timers[n];
	uint64_t mask = timer_mask(t), late;

	if ((t->config & T_PERIODIC) && t->period) {
		late = (counter_value(&hpet->state) - t->comparator) & mask;
		t->comparator = (t->comparator + (late / t->period + 1) * t->period) & mask;
	}
	interrupt(hpet, n);
	arm(hpet, n, event_now() + MIN_INTERVAL_NS);
}

static uint64_t register_read(const struct hpet *hpet, unsigned offset)
{
	const struct hpet_state *s = &hpet->state;
	unsigned n = (offset - 0x100) / 0x20;

	switch (offset) {
	case 0x000:
		return (uint64_t)HPET_PERIOD_FS << 32 | HPET_ID;
	case 0x010:
		return s->config;
	case 0x020:
		return s->status;
	case 0x0f0:
		return counter_value(s);
	}
	if (offset < 0x100 || n >= TIMERS)
		return 0;
	switch (offset & 0x1f) {
	case 0x00:
		return s->timers[n].config;
	case 0x08:
		return s->timers[n].comparator;
	case 0x10:
		return s->timers[n].fsb;
	default:
		return 0;
	}
}

static void set_legacy(struct hpet *hpet, bool on)
{
	if (hpet->wiring.pit)
		pit_connect_irq(hpet->wiring.pit, !on);
	if (hpet->wiring.rtc)
		rtc_connect_irq(hpet->wiring.rtc, !on);
}

static void write_config(struct hpet *hpet, uint64_t value)
{
	struct hpet_state *s = &hpet->state;
	uint64_t changed = s->config ^ value;

	if (changed & CFG_ENABLE) {
		s->counter = counter_value(s);
		s->start_ns = event_now();
	}
	s->config = value & (CFG_ENABLE | CFG_LEGACY);
	publish_counter(hpet);
	if (changed & CFG_LEGACY)
		set_legacy(hpet, value & CFG_LEGACY);
	for (unsigned n = 0; n < TIMERS; n++) {
		update_line(hpet, n);
		if (changed & CFG_ENABLE)
			arm(hpet, n, 0);
	}
}

static void write_timer(struct hpet *hpet, unsigned n, unsigned reg, uint64_t value)
{
	struct hpet_timer_state *t = &hpet->state.timers[n];
	uint64_t writable = T_WRITABLE | (t->config & T_FSB_CAP ? T_FSB_ENABLE : 0);

	switch (reg) {
	case 0x00:
		t->config = (t->config & ~writable) | (value & writable);
		if (t->config & T_32BIT) {
			t->comparator = (uint32_t)t->comparator;
			t->period = (uint32_t)t->period;
		}
		update_line(hpet, n);
		break;
	case 0x08:
		value &= timer_mask(t);
		if (!(t->config & T_PERIODIC) || (t->config & T_VAL_SET))
			t->comparator = value;
		if (t->config & T_PERIODIC)
			t->period = value;
		t->config &= ~(uint64_t)T_VAL_SET;
		break;
	case 0x10:
		t->fsb = value;
		return;
	default:
		return;
	}
	arm(hpet, n, 0);
}

static void register_write(struct hpet *hpet, unsigned offset, uint64_t value)
{
	struct hpet_state *s = &hpet->state;
	unsigned n = (offset - 0x100) / 0x20;

	switch (offset) {
	case 0x010:
		write_config(hpet, value);
		return;
	case 0x020:
		s->status &= ~value;
		for (unsigned i = 0; i < TIMERS; i++)
			update_line(hpet, i);
		return;
	case 0x0f0:
		s->counter = value;
		s->start_ns = event_now();
		publish_counter(hpet);
		for (unsigned i = 0; i < TIMERS; i++)
			arm(hpet, i, 0);
		return;
	}
	if (offset >= 0x100 && n < TIMERS)
		write_timer(hpet, n, offset & 0x1f, value);
}

static uint64_t hpet_read(void *dev, uint64_t offset, unsigned size)
{
	uint64_t value = register_read(dev, (unsigned)offset & ~7u);

	return value >> 8 * (offset & 7);
}

static void hpet_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct hpet *hpet = dev;
	unsigned reg = (unsigned)offset & ~7u;
	uint64_t old;

	/* Whole registers or their halves (1.0a, 2.3.1); nothing else is defined. */
	if (size == 8 && !(offset & 7)) {
		register_write(hpet, reg, value);
		return;
	}
	if (size != 4 || (offset & 3))
		return;
	/* The untouched half of a write-1-to-clear register must stay as it is. */
	old = reg == 0x020 ? 0 : register_read(hpet, reg);
	/* A half of a periodic comparator extends what the last write gave, not the running value. */
	if (reg >= 0x108 && (reg & 0x1f) == 0x08 && reg < 0x100 + TIMERS * 0x20 &&
		(hpet->state.timers[(reg - 0x100) / 0x20].config & T_PERIODIC))
		old = hpet->state.timers[(reg - 0x100) / 0x20].period;
	if (offset & 4)
		register_write(hpet, reg, (uint32_t)old | value << 32);
	else
		register_write(hpet, reg, (old & ~0xffffffffull) | (uint32_t)value);
}

static const struct bus_ops hpet_ops = { hpet_read, hpet_write };

static void free_timers(struct hpet *hpet)
{
	for (unsigned n = 0; n < TIMERS; n++)
		if (hpet->timers[n].event)
			event_timer_destroy(hpet->timers[n].event);
}

int hpet_create(struct bus *bus, struct event_loop *loop, const struct hpet_wiring *wiring, struct hpet **out,
	struct error *err)
{
	struct hpet *hpet = calloc(1, sizeof(*hpet));
	int rc = -ENOMEM;

	if (!hpet)
		return error_set(err, -ENOMEM, "no memory for the HPET");
	hpet->bus = bus;
	hpet->wiring = *wiring;
	for (unsigned n = 0; n < TIMERS; n++) {
		hpet->timers[n].hpet = hpet;
		hpet->timers[n].event = event_timer_create(loop, on_match, &hpet->timers[n]);
		if (!hpet->timers[n].event)
			goto fail;
	}
	rc = bus_add(bus, BUS_MMIO, HPET_BASE, HPET_SIZE, &hpet_ops, hpet, "hpet");
	if (rc)
		goto fail;
	hpet_reset(hpet);
	*out = hpet;
	return 0;
fail:
	free_timers(hpet);
	free(hpet);
	return error_set(err, rc, "cannot place the HPET");
}

void hpet_destroy(struct hpet *hpet)
{
	if (!hpet)
		return;
	bus_remove(hpet->bus, BUS_MMIO, HPET_BASE);
	free_timers(hpet);
	free(hpet);
}

void hpet_reset(struct hpet *hpet)
{
	bool legacy = hpet->state.config & CFG_LEGACY;
	uint64_t fsb = hpet->wiring.msi.send ? T_FSB_CAP : 0;

	hpet->state = (struct hpet_state){ 0 };
	for (unsigned n = 0; n < TIMERS; n++) {
		struct hpet_timer_state *t = &hpet->state.timers[n];

		t->config = (uint64_t)HPET_ROUTES << 32 | fsb | T_SIZE_CAP | T_PERIODIC_CAP;
		t->comparator = UINT64_MAX;
		update_line(hpet, n);
		event_timer_cancel(hpet->timers[n].event);
	}
	publish_counter(hpet);
	if (legacy)
		set_legacy(hpet, false);
}
