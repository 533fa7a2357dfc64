/*
 * Intel 8254 (data sheet 231164) as wired in a PC: channel 0 is IRQ 0, channel 1 was memory refresh, channel 2 is
 * gated by port 0x61 and feeds the speaker.
 *
 *   0x43  SC1 SC0 RW1 RW0 M2 M1 M0 BCD     SC=3: read-back  1 1 /COUNT /STATUS CNT2 CNT1 CNT0 0
 *   0x61  7:6 zero | 5 OUT2 | 4 refresh toggle | 3:2 kept | 1 speaker | 0 GATE2
 *
 * Counters do not run: values and outputs are computed from the clock when asked. Only channel 0 has a timer, for the
 * rising edges of its output. Edge k is due at start + k periods, so nothing drifts; edges that the host was too late
 * for are dropped, so nothing storms, and an interval below MIN_INTERVAL_NS delivers a subset of its edges.
 */
#include "vmm/dev_pit.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>

#include "ports.h"
#include "vmm/error.h"
#include "vmm/event.h"

#define NS 1000000000ull
#define MIN_INTERVAL_NS 50000
#define REFRESH_NS 15085

enum { RW_LATCH = 0, RW_LOW = 1, RW_HIGH = 2, RW_BOTH = 3 };

struct pit_channel {
	uint64_t start_ns; /* when counting began or went on */
	uint64_t held;	   /* ticks counted before start_ns */
	uint32_t count;	   /* reload value, 1..65536 */
	uint16_t latch;
	uint8_t status, write_low;
	uint8_t mode, rw;
	bool bcd, gate;
	bool loaded;  /* a count was written since the control word */
	bool started; /* modes 1 and 5: the gate has triggered */
	bool latched, status_latched;
	bool read_high, write_high; /* RW_BOTH: the high byte is next */
};

struct pit_state {
	struct pit_channel channels[3];
	uint8_t port61; /* bits 3:0 */
	bool connected;
};

struct pit {
	/* Set at create. */
	struct bus *bus;
	struct event_timer *timer;
	struct irq_line irq0;
	/* Device lock. */
	struct pit_state state;
};

static bool channel_counts(const struct pit_channel *c)
{
	if (!c->loaded)
		return false;
	return c->mode == 1 || c->mode == 5 ? c->started : c->gate;
}

static uint64_t channel_ticks(const struct pit_channel *c, uint64_t now)
{
	return c->held + (channel_counts(c) ? muldiv64(now - c->start_ns, PIT_HZ, NS) : 0);
}

static uint16_t channel_value(const struct pit_channel *c, uint64_t now)
{
	uint64_t ticks = channel_ticks(c, now), value;
	unsigned modulus = c->bcd ? 10000 : 65536;

	if (c->mode == 2)
		value = c->count - ticks % c->count;
	else if (c->mode == 3)
		value = c->count - ticks * 2 % c->count;
	else
		value = c->count + modulus - ticks % modulus;
	value %= modulus;
	if (c->bcd)
		value = value / 1000 << 12 | value / 100 % 10 << 8 | value / 10 % 10 << 4 | value % 10;
	return (uint16_t)value;
}

static bool channel_out(const struct pit_channel *c, uint64_t now)
{
	uint64_t ticks = channel_ticks(c, now);

	if (!c->loaded)
		return c->mode != 0;
	switch (c->mode) {
	case 0:
		return ticks >= c->count;
	case 1:
		return !c->started || ticks >= c->count;
	case 2:
		return !c->gate || ticks % c->count != c->count - 1;
	case 3:
		return !c->gate || ticks % c->count < (c->count + 1) / 2;
	default:
		return !channel_counts(c) || ticks != c->count;
	}
}

/* Arms the timer for channel 0's next rising edge. */
static void arm_timer(struct pit *pit, uint64_t now)
{
	struct pit_channel *c = &pit->state.channels[0];
	uint64_t ticks = channel_ticks(c, now), edge, step;

	event_timer_cancel(pit->timer);
	if (!channel_counts(c) || !pit->state.connected)
		return;
	if (c->mode == 2 || c->mode == 3) {
		step = (MIN_INTERVAL_NS * PIT_HZ / NS + c->count - 1) / c->count;
		edge = (ticks / c->count + (step ? step : 1)) * c->count;
	} else {
		edge = c->count + (c->mode >= 4);
		if (ticks >= edge)
			return;
	}
	event_timer_arm(pit->timer, c->start_ns + muldiv64_up(edge - c->held, NS, PIT_HZ));
}

static void on_timer(void *ctx)
{
	struct pit *pit = ctx;

	irq_line_set(&pit->irq0, false);
	irq_line_set(&pit->irq0, true);
	arm_timer(pit, event_now());
}

static void update_irq(struct pit *pit, uint64_t now)
{
	irq_line_set(&pit->irq0, pit->state.connected && channel_out(&pit->state.channels[0], now));
	arm_timer(pit, now);
}

static void channel_load(struct pit_channel *c, uint32_t value, uint64_t now)
{
	if (c->bcd) {
		value = (value >> 12 & 15) * 1000 + (value >> 8 & 15) * 100 + (value >> 4 & 15) * 10 + (value & 15);
		c->count = value ? value : 10000;
	} else {
		c->count = value ? value : 65536;
	}
	if ((c->mode == 2 || c->mode == 3) && c->count < 2)
		c->count = 2;
	c->loaded = true;
	c->started = false;
	c->held = 0;
	c->start_ns = now;
}

static void channel_set_gate(struct pit_channel *c, bool gate, uint64_t now)
{
	bool rises = gate && !c->gate;

	if (gate == c->gate)
		return;
	if (!gate && (c->mode == 0 || c->mode == 4))
		c->held = channel_ticks(c, now);
	c->gate = gate;
	if (!rises)
		return;
	c->start_ns = now;
	if (c->mode != 0 && c->mode != 4)
		c->held = 0;
	c->started = true;
}

static void channel_latch(struct pit_channel *c, uint64_t now)
{
	if (c->latched)
		return;
	c->latched = true;
	c->latch = channel_value(c, now);
}

static void write_control(struct pit *pit, uint8_t value, uint64_t now)
{
	struct pit_channel *c;

	if (value >> 6 == 3) {
		for (unsigned i = 0; i < 3; i++) {
			c = &pit->state.channels[i];
			if (!(value & 2u << i))
				continue;
			if (!(value & 0x20))
				channel_latch(c, now);
			if (!(value & 0x10) && !c->status_latched) {
				c->status_latched = true;
				c->status = (uint8_t)(channel_out(c, now) << 7 | !c->loaded << 6 | c->rw << 4 |
					c->mode << 1 | c->bcd);
			}
		}
		return;
	}
	c = &pit->state.channels[value >> 6];
	if ((value >> 4 & 3) == RW_LATCH) {
		channel_latch(c, now);
		return;
	}
	c->held = 0;
	c->rw = value >> 4 & 3;
	c->mode = value >> 1 & 7;
	if (c->mode > 5)
		c->mode &= 3;
	c->bcd = value & 1;
	c->loaded = c->started = false;
	c->latched = c->status_latched = false;
	c->read_high = c->write_high = false;
	if (c == &pit->state.channels[0])
		update_irq(pit, now);
}

static void write_count(struct pit *pit, unsigned index, uint8_t value, uint64_t now)
{
	struct pit_channel *c = &pit->state.channels[index];

	if (c->rw == RW_BOTH && !c->write_high) {
		c->write_low = value;
		c->write_high = true;
		return;
	}
	c->write_high = false;
	channel_load(c, c->rw == RW_LOW ? value : (uint32_t)value << 8 | (c->rw == RW_BOTH ? c->write_low : 0), now);
	if (!index)
		update_irq(pit, now);
}

static uint8_t read_count(struct pit_channel *c, uint64_t now)
{
	uint16_t value;
	bool high = c->rw == RW_HIGH;

	if (c->status_latched) {
		c->status_latched = false;
		return c->status;
	}
	value = c->latched ? c->latch : channel_value(c, now);
	if (c->rw == RW_BOTH) {
		high = c->read_high;
		c->read_high = !c->read_high;
	}
	if (c->rw != RW_BOTH || high)
		c->latched = false;
	return (uint8_t)(high ? value >> 8 : value);
}

static uint8_t pit_read(void *dev, unsigned offset)
{
	struct pit *pit = dev;

	return offset < 3 ? read_count(&pit->state.channels[offset], event_now()) : 0xff;
}

static void pit_write(void *dev, unsigned offset, uint8_t value)
{
	if (offset == 3)
		write_control(dev, value, event_now());
	else
		write_count(dev, offset, value, event_now());
}

static uint64_t port_read(void *dev, uint64_t offset, unsigned size)
{
	return ports_read(dev, offset, size, pit_read);
}

static void port_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	ports_write(dev, offset, size, value, pit_write);
}

static uint64_t port61_read(void *dev, uint64_t offset, unsigned size)
{
	struct pit *pit = dev;
	uint64_t now = event_now();

	return pit->state.port61 | (now / REFRESH_NS & 1) << 4 |
		(unsigned)channel_out(&pit->state.channels[2], now) << 5;
}

static void port61_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct pit *pit = dev;

	pit->state.port61 = value & 0x0f;
	channel_set_gate(&pit->state.channels[2], value & 1, event_now());
}

static const struct bus_ops pit_ops = { port_read, port_write };
static const struct bus_ops port61_ops = { port61_read, port61_write };

int pit_create(struct bus *bus, struct event_loop *loop, struct irq_line irq0, struct pit **out, struct error *err)
{
	struct pit *pit = calloc(1, sizeof(*pit));
	int rc = -ENOMEM;

	if (!pit)
		return error_set(err, -ENOMEM, "no memory for the interval timer");
	pit->bus = bus;
	pit->irq0 = irq0;
	pit->timer = event_timer_create(loop, on_timer, pit);
	if (!pit->timer)
		goto fail;
	rc = bus_add(bus, BUS_PIO, 0x40, 4, &pit_ops, pit, "pit");
	if (rc)
		goto fail_timer;
	rc = bus_add(bus, BUS_PIO, 0x61, 1, &port61_ops, pit, "port 61");
	if (rc)
		goto fail_bus;
	pit_reset(pit);
	*out = pit;
	return 0;
fail_bus:
	bus_remove(bus, BUS_PIO, 0x40);
fail_timer:
	event_timer_destroy(pit->timer);
fail:
	free(pit);
	return error_set(err, rc, "cannot place the interval timer");
}

void pit_destroy(struct pit *pit)
{
	if (!pit)
		return;
	bus_remove(pit->bus, BUS_PIO, 0x40);
	bus_remove(pit->bus, BUS_PIO, 0x61);
	event_timer_destroy(pit->timer);
	free(pit);
}

void pit_reset(struct pit *pit)
{
	pit->state = (struct pit_state){ .connected = true };
	for (unsigned i = 0; i < 3; i++)
		pit->state.channels[i] = (struct pit_channel){ .count = 65536, .rw = RW_BOTH, .gate = i < 2 };
	update_irq(pit, event_now());
}

void pit_connect_irq(struct pit *pit, bool connected)
{
	if (connected == pit->state.connected)
		return;
	pit->state.connected = connected;
	update_irq(pit, event_now());
}
