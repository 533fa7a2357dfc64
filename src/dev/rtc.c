/*
 * MC146818A real-time clock (Motorola data sheet) with the PC's CMOS RAM.
 *
 *   0x00 seconds  0x02 minutes  0x04 hours   (0x01, 0x03, 0x05: their alarms; 0xc0 and above: any)
 *   0x06 weekday  0x07 day  0x08 month  0x09 year  0x32 century
 *   A  7 UIP | 6:4 divider | 3:0 rate        B  7 SET | 6 PIE | 5 AIE | 4 UIE | 3 SQWE | 2 binary | 1 24h | 0 DSE
 *   C  7 IRQF | 6 PF | 5 AF | 4 UF           D  7 VRT
 *
 * The time is the clock plus an offset and is put into the registers when they are read. While SET is on the
 * registers stand still and may be written; clearing SET makes a new offset of them. The flags of C are brought up to
 * date when somebody looks; the host timer runs only for an interrupt that is enabled and not already pending, since
 * a second event changes nothing before C is read.
 */
#include "vmm/dev_rtc.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ports.h"
#include "vmm/error.h"
#include "vmm/event.h"

#define NS 1000000000ull
#define DAY 86400
#define UIP_NS 244141
#define RTC_TICK_HZ 32768

enum { SECONDS = 0, MINUTES = 2, HOURS = 4, WEEKDAY = 6, MDAY = 7, MONTH = 8, YEAR = 9, CENTURY = 0x32 };
enum { REG_A = 10, REG_B, REG_C, REG_D };
enum { B_SET = 0x80, B_PIE = 0x40, B_AIE = 0x20, B_UIE = 0x10, B_BINARY = 4, B_24H = 2 };
enum { C_IRQF = 0x80, C_PF = 0x40, C_AF = 0x20, C_UF = 0x10 };

struct rtc_state {
	uint8_t cmos[128]; /* C holds the flags without IRQF */
	uint8_t index;
	bool nmi_masked, connected;
	uint64_t epoch_ns;	 /* time of day − event_now(), modulo 2^64 */
	uint64_t seen_second;	 /* second of the day count up to which UF and AF are right */
	uint64_t periodic_start; /* event_now() */
	uint64_t periodic_seen;	 /* periods since then up to which PF is right */
};

struct rtc {
	/* Set at create. */
	struct bus *bus;
	struct event_timer *timer;
	struct irq_line irq8;
	/* Device lock. */
	struct rtc_state state;
};

static uint8_t encode(const struct rtc_state *s, unsigned value)
{
	return (uint8_t)(s->cmos[REG_B] & B_BINARY ? value : value / 10 % 10 << 4 | value % 10);
}

static unsigned decode(const struct rtc_state *s, uint8_t value)
{
	return s->cmos[REG_B] & B_BINARY ? value : (value >> 4) * 10u + (value & 15);
}

static unsigned decode_hour(const struct rtc_state *s, uint8_t value)
{
	unsigned hour;

	if (s->cmos[REG_B] & B_24H)
		return decode(s, value);
	hour = decode(s, value & 0x7f) % 12;
	return value & 0x80 ? hour + 12 : hour;
}

static uint8_t encode_hour(const struct rtc_state *s, unsigned hour)
{
	if (s->cmos[REG_B] & B_24H)
		return encode(s, hour);
	return (uint8_t)(encode(s, hour % 12 ? hour % 12 : 12) | (hour >= 12 ? 0x80 : 0));
}

static uint64_t now_ns(const struct rtc_state *s)
{
	return event_now() + s->epoch_ns;
}

/* Puts the time of day into the registers. */
static void time_to_registers(struct rtc_state *s)
{
	time_t seconds = (time_t)(now_ns(s) / NS);
	struct tm tm;

	if (s->cmos[REG_B] & B_SET)
		return;
	memset(&tm, 0, sizeof(tm));
	gmtime_r(&seconds, &tm);
	s->cmos[SECONDS] = encode(s, (unsigned)tm.tm_sec);
	s->cmos[MINUTES] = encode(s, (unsigned)tm.tm_min);
	s->cmos[HOURS] = encode_hour(s, (unsigned)tm.tm_hour);
	s->cmos[WEEKDAY] = encode(s, (unsigned)tm.tm_wday + 1);
	s->cmos[MDAY] = encode(s, (unsigned)tm.tm_mday);
	s->cmos[MONTH] = encode(s, (unsigned)tm.tm_mon + 1);
	s->cmos[YEAR] = encode(s, (unsigned)(tm.tm_year % 100));
	s->cmos[CENTURY] = encode(s, (unsigned)((tm.tm_year + 1900) / 100));
}

/* Makes the registers the time of day, `fraction` of a second later. */
static void registers_to_time(struct rtc_state *s, uint64_t fraction_ns)
{
	struct tm tm = {
		.tm_sec = (int)decode(s, s->cmos[SECONDS]),
		.tm_min = (int)decode(s, s->cmos[MINUTES]),
		.tm_hour = (int)decode_hour(s, s->cmos[HOURS]),
		.tm_mday = (int)decode(s, s->cmos[MDAY]),
		.tm_mon = (int)decode(s, s->cmos[MONTH]) - 1,
		.tm_year = (int)(decode(s, s->cmos[CENTURY]) * 100 + decode(s, s->cmos[YEAR])) - 1900,
	};
	time_t seconds;

	/* The clock begins in 1970; a century register that the guest never set means this one. */
	if (tm.tm_year < 70)
		tm.tm_year = 100 + tm.tm_year % 100 + (tm.tm_year % 100 < 0 ? 100 : 0);
	seconds = timegm(&tm);
	/* Nanoseconds since 1970 end in 2554. */
	if (seconds < 0 || seconds > (time_t)1 << 34)
		seconds = 0;
	s->epoch_ns = (uint64_t)seconds * NS + fraction_ns - event_now();
	s->seen_second = (uint64_t)seconds;
}

/* The period of the periodic interrupt in ticks of 32,768 Hz; 0: off. */
static unsigned periodic_ticks(const struct rtc_state *s)
{
	unsigned rate = s->cmos[REG_A] & 15;

	if (!rate)
		return 0;
	return 1u << ((rate <= 2 ? rate + 7 : rate) - 1);
}

/* The first second after `after` at which the alarm matches. */
static uint64_t next_alarm(const struct rtc_state *s, uint64_t after)
{
	uint8_t second = s->cmos[SECONDS + 1], minute = s->cmos[MINUTES + 1], hour = s->cmos[HOURS + 1];
	uint64_t t = after + 1;

	/* Each step skips to the next candidate: at most 24 + 60 + 60 of them for an alarm that exists. */
	for (unsigned i = 0; i < 256; i++) {
		if (hour < 0xc0 && t / 3600 % 24 != decode_hour(s, hour))
			t = (t / 3600 + 1) * 3600;
		else if (minute < 0xc0 && t / 60 % 60 != decode(s, minute))
			t = (t / 60 + 1) * 60;
		else if (second < 0xc0 && t % 60 != decode(s, second))
			t++;
		else
			return t;
	}
	return UINT64_MAX;
}

static void update_flags(struct rtc_state *s)
{
	uint64_t second = now_ns(s) / NS, periods;
	unsigned ticks = periodic_ticks(s);

	if (!(s->cmos[REG_B] & B_SET) && second != s->seen_second) {
		if (second > s->seen_second) {
			s->cmos[REG_C] |= C_UF;
			if (next_alarm(s, s->seen_second) <= second)
				s->cmos[REG_C] |= C_AF;
		}
		s->seen_second = second;
	}
	if (!ticks)
		return;
	periods = muldiv64(event_now() - s->periodic_start, RTC_TICK_HZ, NS) / ticks;
	if (periods != s->periodic_seen)
		s->cmos[REG_C] |= C_PF;
	s->periodic_seen = periods;
}

static bool irq_pending(const struct rtc_state *s)
{
	return s->cmos[REG_B] & s->cmos[REG_C] & (B_PIE | B_AIE | B_UIE);
}

/* Sets the line, and the timer for the next interrupt if none is pending. Flags are up to date. */
static void update(struct rtc *rtc)
{
	struct rtc_state *s = &rtc->state;
	uint8_t b = s->cmos[REG_B];
	uint64_t deadline = UINT64_MAX, at;
	unsigned ticks = periodic_ticks(s);

	irq_line_set(&rtc->irq8, s->connected && irq_pending(s));
	if (!irq_pending(s) && s->connected) {
		if ((b & B_PIE) && ticks)
			deadline = s->periodic_start + muldiv64_up((s->periodic_seen + 1) * ticks, NS, RTC_TICK_HZ);
		if ((b & (B_UIE | B_AIE)) && !(b & B_SET)) {
			at = b & B_UIE ? s->seen_second + 1 : next_alarm(s, s->seen_second);
			if (at != UINT64_MAX && at * NS - s->epoch_ns < deadline)
				deadline = at * NS - s->epoch_ns;
		}
	}
	if (deadline == UINT64_MAX)
		event_timer_cancel(rtc->timer);
	else
		event_timer_arm(rtc->timer, deadline);
}

static void on_timer(void *ctx)
{
	struct rtc *rtc = ctx;

	update_flags(&rtc->state);
	update(rtc);
}

static uint8_t read_cmos(struct rtc *rtc)
{
	struct rtc_state *s = &rtc->state;
	uint8_t value;

	switch (s->index) {
	case SECONDS:
	case MINUTES:
	case HOURS:
	case WEEKDAY ... YEAR:
	case CENTURY:
		time_to_registers(s);
		break;
	case REG_A:
		value = s->cmos[REG_A];
		if (!(s->cmos[REG_B] & B_SET) && now_ns(s) % NS >= NS - UIP_NS)
			value |= 0x80;
		return value;
	case REG_C:
		update_flags(s);
		value = s->cmos[REG_C] | (irq_pending(s) ? C_IRQF : 0);
		s->cmos[REG_C] = 0;
		update(rtc);
		return value;
	case REG_D:
		return 0x80;
	}
	return s->cmos[s->index];
}

static void write_a(struct rtc_state *s, uint8_t value)
{
	unsigned before = periodic_ticks(s);

	s->cmos[REG_A] = value & 0x7f;
	if (periodic_ticks(s) == before)
		return;
	s->periodic_start = event_now();
	s->periodic_seen = 0;
}

static void write_b(struct rtc_state *s, uint8_t value)
{
	uint8_t changed = value ^ s->cmos[REG_B];

	time_to_registers(s); /* in the old format, and before SET stops them */
	if (!(changed & B_SET) || (value & B_SET)) {
		s->cmos[REG_B] = value;
	} else {
		s->cmos[REG_B] = value & ~B_SET;
		/* A divider that was held in reset ticks half a second after its release. */
		registers_to_time(s, (s->cmos[REG_A] & 0x60) == 0x60 ? NS / 2 : 0);
	}
	if (value & B_SET)
		s->cmos[REG_B] &= ~B_UIE;
}

static void write_time(struct rtc_state *s, uint8_t value)
{
	uint64_t fraction = now_ns(s) % NS;

	time_to_registers(s);
	s->cmos[s->index] = value;
	if (!(s->cmos[REG_B] & B_SET))
		registers_to_time(s, fraction);
}

static void write_cmos(struct rtc *rtc, uint8_t value)
{
	struct rtc_state *s = &rtc->state;

	update_flags(s);
	switch (s->index) {
	case SECONDS:
	case MINUTES:
	case HOURS:
	case WEEKDAY ... YEAR:
	case CENTURY:
		write_time(s, value);
		break;
	case REG_A:
		write_a(s, value);
		break;
	case REG_B:
		write_b(s, value);
		break;
	case REG_C:
	case REG_D:
		return;
	default:
		s->cmos[s->index] = value;
		break;
	}
	if (s->index <= REG_B || s->index == CENTURY)
		update(rtc);
}

static uint8_t rtc_read(void *dev, unsigned offset)
{
	struct rtc *rtc = dev;

	return offset ? read_cmos(rtc) : 0xff;
}

static void rtc_write(void *dev, unsigned offset, uint8_t value)
{
	struct rtc *rtc = dev;

	if (offset) {
		write_cmos(rtc, value);
		return;
	}
	rtc->state.index = value & 0x7f;
	rtc->state.nmi_masked = value & 0x80;
}

static uint64_t port_read(void *dev, uint64_t offset, unsigned size)
{
	return ports_read(dev, offset, size, rtc_read);
}

static void port_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	ports_write(dev, offset, size, value, rtc_write);
}

static const struct bus_ops rtc_ops = { port_read, port_write };

static void put16(uint8_t *cmos, uint64_t value, unsigned low, unsigned high)
{
	if (value > 0xffff)
		value = 0xffff;
	cmos[low] = (uint8_t)value;
	cmos[high] = (uint8_t)(value >> 8);
}

/* What firmware reads when it has no better source: KiB of base and extended memory, 64 KiB units above 16 MiB, 4 GiB. */
static void set_memory(uint8_t *cmos, uint64_t low, uint64_t high)
{
	put16(cmos, 640, 0x15, 0x16);
	put16(cmos, low > 1 << 20 ? (low >> 10) - 1024 : 0, 0x17, 0x18);
	put16(cmos, low > 1 << 20 ? (low >> 10) - 1024 : 0, 0x30, 0x31);
	put16(cmos, low > 16 << 20 ? (low >> 16) - 256 : 0, 0x34, 0x35);
	high >>= 16;
	if (high > 0xffffff)
		high = 0xffffff;
	cmos[0x5b] = (uint8_t)high;
	cmos[0x5c] = (uint8_t)(high >> 8);
	cmos[0x5d] = (uint8_t)(high >> 16);
}

int rtc_create(struct bus *bus, struct event_loop *loop, struct irq_line irq8, uint64_t ram_low, uint64_t ram_high,
	struct rtc **out, struct error *err)
{
	struct rtc *rtc = calloc(1, sizeof(*rtc));
	struct timespec ts;
	int rc;

	if (!rtc)
		return error_set(err, -ENOMEM, "no memory for the real-time clock");
	rtc->bus = bus;
	rtc->irq8 = irq8;
	rtc->timer = event_timer_create(loop, on_timer, rtc);
	if (!rtc->timer) {
		free(rtc);
		return error_set(err, -ENOMEM, "no memory for the real-time clock");
	}
	rc = bus_add(bus, BUS_PIO, 0x70, 2, &rtc_ops, rtc, "rtc");
	if (rc) {
		event_timer_destroy(rtc->timer);
		free(rtc);
		return error_set(err, rc, "cannot place the real-time clock");
	}
	clock_gettime(CLOCK_REALTIME, &ts);
	rtc->state.epoch_ns = (uint64_t)ts.tv_sec * NS + (uint64_t)ts.tv_nsec - event_now();
	rtc->state.cmos[REG_A] = 0x26;
	rtc->state.cmos[REG_B] = B_24H;
	rtc->state.cmos[0x14] = 0x06; /* equipment: coprocessor, pointing device */
	rtc->state.periodic_start = event_now();
	set_memory(rtc->state.cmos, ram_low, ram_high);
	rtc_reset(rtc);
	*out = rtc;
	return 0;
}

void rtc_destroy(struct rtc *rtc)
{
	if (!rtc)
		return;
	bus_remove(rtc->bus, BUS_PIO, 0x70);
	event_timer_destroy(rtc->timer);
	free(rtc);
}

void rtc_reset(struct rtc *rtc)
{
	struct rtc_state *s = &rtc->state;

	if (s->cmos[REG_B] & B_SET)
		write_b(s, s->cmos[REG_B] & ~B_SET);
	s->cmos[REG_B] &= ~(B_PIE | B_AIE | B_UIE);
	s->cmos[REG_C] = 0;
	s->index = 0;
	s->nmi_masked = false;
	s->connected = true;
	s->seen_second = now_ns(s) / NS;
	update(rtc);
}

void rtc_set_cmos(struct rtc *rtc, uint8_t index, uint8_t value)
{
	if (index > REG_D && index < sizeof(rtc->state.cmos))
		rtc->state.cmos[index] = value;
}

uint8_t rtc_get_cmos(const struct rtc *rtc, uint8_t index)
{
	return index < sizeof(rtc->state.cmos) ? rtc->state.cmos[index] : 0xff;
}

bool rtc_nmi_masked(const struct rtc *rtc)
{
	return rtc->state.nmi_masked;
}

void rtc_connect_irq(struct rtc *rtc, bool connected)
{
	rtc->state.connected = connected;
	update_flags(&rtc->state);
	update(rtc);
}
