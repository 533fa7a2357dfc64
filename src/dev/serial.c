/*
 * 16550A UART (National PC16550D data sheet). The transmitter is infinitely fast: a byte written is a byte sent, so
 * THRE and TEMT are always set. The receiver is as fast as the guest: serial_input() fills the FIFO and no more,
 * so nothing is lost. The PC's wiring is kept: OUT2 gates the interrupt.
 *
 *   offset  DLAB=0 read / write    DLAB=1
 *   0       RBR / THR              DLL
 *   1       IER                    DLM
 *   2       IIR / FCR
 *   3 LCR   4 MCR   5 LSR   6 MSR   7 SCR
 *
 * Invariants: at the end of each access the line equals what irq_identify() says; a published line status is what a read
 * would give, and reading would change nothing; so a guest that polls LSR before each byte need not leave for that. It holds
 * while bytes to send are on their way here too: outside of loopback they change nothing in LSR.
 */
#include "vmm/dev_serial.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#include "ports.h"
#include "vmm/error.h"
#include "vmm/event.h"

#define FIFO_SIZE 16
#define PORTS 8
#define BIT_NS (1000000000ull / 115200) /* at divisor 1 */

enum { IER_RDA = 1, IER_THRE = 2, IER_LINE = 4, IER_MODEM = 8 };
enum { IIR_MODEM = 0x00, IIR_NONE = 0x01, IIR_THRE = 0x02, IIR_RDA = 0x04, IIR_LINE = 0x06, IIR_TIMEOUT = 0x0c };
enum { FCR_ENABLE = 1, FCR_CLEAR_RX = 2 };
enum { LCR_DLAB = 0x80 };
enum { MCR_DTR = 1, MCR_RTS = 2, MCR_OUT1 = 4, MCR_OUT2 = 8, MCR_LOOP = 0x10 };
enum { LSR_DR = 1, LSR_OE = 2, LSR_BI = 0x10, LSR_THRE = 0x20, LSR_TEMT = 0x40, LSR_FIFO_ERROR = 0x80 };
enum { MSR_CTS = 0x10, MSR_DSR = 0x20, MSR_RI = 0x40, MSR_DCD = 0x80 };

struct serial_state {
	uint8_t ier, fcr, lcr, mcr, scr;
	uint8_t lsr_errors; /* OE, BI until LSR is read */
	uint8_t msr;	    /* lines in 7:4, deltas in 3:0 */
	uint16_t divisor;
	bool thre_pending;    /* the THRE interrupt waits for an IIR read or a THR write */
	bool timeout_pending; /* the character timeout waits for an RBR read */
	uint8_t fifo[FIFO_SIZE];
	bool fifo_break[FIFO_SIZE];
	uint8_t fifo_head, fifo_count;
	uint8_t last_rbr;
};

struct serial {
	/* Set at create. */
	struct bus *bus;
	struct event_timer *timeout;
	struct irq_line irq;
	struct serial_host host;
	uint16_t port;
	/* Device lock. */
	struct serial_state state;
	bool want_ready; /* serial_input() took less than all */
	bool published;	 /* the answer below is out */
	uint8_t published_lsr;
};

static bool fifo_enabled(const struct serial_state *s)
{
	return s->fcr & FCR_ENABLE;
}

static unsigned fifo_capacity(const struct serial_state *s)
{
	return fifo_enabled(s) ? FIFO_SIZE : 1;
}

static unsigned fifo_trigger(const struct serial_state *s)
{
	static const uint8_t levels[4] = { 1, 4, 8, 14 };

	return fifo_enabled(s) ? levels[s->fcr >> 6] : 1;
}

/* The interrupt of the highest priority, as in IIR. */
static uint8_t irq_identify(const struct serial_state *s)
{
	if ((s->ier & IER_LINE) && s->lsr_errors)
		return IIR_LINE;
	if ((s->ier & IER_RDA) && s->fifo_count >= fifo_trigger(s))
		return IIR_RDA;
	if ((s->ier & IER_RDA) && s->timeout_pending)
		return IIR_TIMEOUT;
	if ((s->ier & IER_THRE) && s->thre_pending)
		return IIR_THRE;
	if ((s->ier & IER_MODEM) && (s->msr & 0x0f))
		return IIR_MODEM;
	return IIR_NONE;
}

static uint8_t lsr_value(const struct serial_state *s)
{
	uint8_t value = LSR_THRE | LSR_TEMT | s->lsr_errors;

	if (s->fifo_count)
		value |= LSR_DR;
	for (unsigned i = 0; fifo_enabled(s) && i < s->fifo_count; i++)
		if (s->fifo_break[(s->fifo_head + i) % FIFO_SIZE])
			value |= LSR_FIFO_ERROR;
	if (fifo_enabled(s) && (s->lsr_errors & LSR_BI))
		value |= LSR_FIFO_ERROR;
	return value;
}

static void publish_lsr(struct serial *serial)
{
	const struct serial_state *s = &serial->state;
	bool constant = !s->lsr_errors && !(s->mcr & MCR_LOOP);
	struct bus_answer answer = { .space = BUS_PIO, .sizes = constant, .addr = serial->port + 5u, .base = lsr_value(s), .den = 1 };

	if (constant == serial->published && (!constant || answer.base == serial->published_lsr))
		return;
	serial->published = constant;
	serial->published_lsr = (uint8_t)answer.base;
	answer_publish(&serial->host.answers, &answer);
}

/* After every change of state. */
static void update(struct serial *serial)
{
	const struct serial_state *s = &serial->state;
	bool gate = (s->mcr & (MCR_OUT2 | MCR_LOOP)) == MCR_OUT2;

	irq_line_set(&serial->irq, gate && irq_identify(s) != IIR_NONE);
	publish_lsr(serial);
}

/* Four character times without a byte in or out raise the character timeout if bytes are left below the trigger. */
static void timeout_restart(struct serial *serial)
{
	struct serial_state *s = &serial->state;
	uint64_t bits = 4 * (1 + 5 + (s->lcr & 3) + (s->lcr >> 3 & 1) + 1);
	uint64_t delay = bits * (s->divisor ? s->divisor : 1) * BIT_NS;

	s->timeout_pending = false;
	if (!fifo_enabled(s) || !s->fifo_count || s->fifo_count >= fifo_trigger(s)) {
		event_timer_cancel(serial->timeout);
		return;
	}
	event_timer_arm(serial->timeout, event_now() + (delay < 10000000 ? delay : 10000000));
}

static void on_timeout(void *ctx)
{
	struct serial *serial = ctx;

	if (serial->state.fifo_count)
		serial->state.timeout_pending = true;
	update(serial);
}

static void fifo_clear(struct serial *serial)
{
	serial->state.fifo_count = 0;
	serial->state.lsr_errors &= ~LSR_BI;
	timeout_restart(serial);
}

/* The break flag of a byte shows in LSR when the byte comes to the top. */
static void fifo_show_top(struct serial_state *s)
{
	if (s->fifo_count && s->fifo_break[s->fifo_head]) {
		s->fifo_break[s->fifo_head] = false;
		s->lsr_errors |= LSR_BI;
	}
}

static void receive(struct serial_state *s, uint8_t byte, bool is_break)
{
	unsigned slot;

	if (s->fifo_count >= fifo_capacity(s)) {
		s->lsr_errors |= LSR_OE;
		if (fifo_enabled(s))
			return;
		s->fifo_count = 0;
	}
	slot = (s->fifo_head + s->fifo_count++) % FIFO_SIZE;
	s->fifo[slot] = byte;
	s->fifo_break[slot] = is_break;
	fifo_show_top(s);
}

static void call_ready(struct serial *serial)
{
	if (!serial->want_ready || serial->state.fifo_count || (serial->state.mcr & MCR_LOOP))
		return;
	serial->want_ready = false;
	if (serial->host.ready)
		serial->host.ready(serial->host.ctx);
}

size_t serial_input(struct serial *serial, const uint8_t *data, size_t length)
{
	struct serial_state *s = &serial->state;
	size_t taken = 0;

	if (!(s->mcr & MCR_LOOP))
		while (taken < length && s->fifo_count < fifo_capacity(s))
			receive(s, data[taken++], false);
	if (taken < length)
		serial->want_ready = true;
	if (taken) {
		timeout_restart(serial);
		update(serial);
	}
	return taken;
}

void serial_input_break(struct serial *serial)
{
	if (serial->state.mcr & MCR_LOOP)
		return;
	receive(&serial->state, 0, true);
	timeout_restart(serial);
	update(serial);
}

static void transmit(struct serial *serial, uint8_t byte)
{
	struct serial_state *s = &serial->state;

	/* The line falls while the holding register is full, so that each byte makes an edge. */
	s->thre_pending = false;
	update(serial);
	if (s->mcr & MCR_LOOP) {
		receive(s, byte, false);
		timeout_restart(serial);
	} else if (serial->host.output) {
		serial->host.output(serial->host.ctx, &byte, 1);
	}
	s->thre_pending = true;
}

/* Modem lines follow MCR in loopback; else a terminal is connected and ready. A change sets the delta bits. */
static void modem_update(struct serial_state *s)
{
	uint8_t lines = MSR_CTS | MSR_DSR | MSR_DCD, changed;

	if (s->mcr & MCR_LOOP)
		lines = (s->mcr & MCR_RTS ? MSR_CTS : 0) | (s->mcr & MCR_DTR ? MSR_DSR : 0) |
			(s->mcr & MCR_OUT1 ? MSR_RI : 0) | (s->mcr & MCR_OUT2 ? MSR_DCD : 0);
	changed = (lines ^ s->msr) & 0xf0;
	if (!(s->msr & MSR_RI) || (lines & MSR_RI))
		changed &= ~MSR_RI; /* TERI: the trailing edge alone */
	s->msr = lines | (s->msr & 0x0f) | changed >> 4;
}

static uint8_t read_rbr(struct serial *serial)
{
	struct serial_state *s = &serial->state;

	if (!s->fifo_count)
		return s->last_rbr;
	s->last_rbr = s->fifo[s->fifo_head];
	s->fifo_head = (s->fifo_head + 1) % FIFO_SIZE;
	s->fifo_count--;
	fifo_show_top(s);
	timeout_restart(serial);
	update(serial);
	call_ready(serial);
	return s->last_rbr;
}

static uint8_t read_lsr(struct serial_state *s)
{
	uint8_t value = lsr_value(s);

	s->lsr_errors = 0;
	return value;
}

static uint8_t serial_read(void *dev, unsigned offset)
{
	struct serial *serial = dev;
	struct serial_state *s = &serial->state;
	bool dlab = s->lcr & LCR_DLAB;
	uint8_t value = 0xff;

	switch (offset) {
	case 0:
		return dlab ? (uint8_t)s->divisor : read_rbr(serial);
	case 1:
		return dlab ? (uint8_t)(s->divisor >> 8) : s->ier;
	case 2:
		value = irq_identify(s);
		if (value == IIR_THRE)
			s->thre_pending = false;
		value |= fifo_enabled(s) ? 0xc0 : 0;
		break;
	case 3:
		return s->lcr;
	case 4:
		return s->mcr;
	case 5:
		value = read_lsr(s);
		break;
	case 6:
		value = s->msr;
		s->msr &= 0xf0;
		break;
	case 7:
		return s->scr;
	}
	update(serial);
	return value;
}

static void write_fcr(struct serial *serial, uint8_t value)
{
	struct serial_state *s = &serial->state;

	if ((value ^ s->fcr) & FCR_ENABLE)
		value |= FCR_CLEAR_RX;
	s->fcr = value & (value & FCR_ENABLE ? 0xc9 : 0);
	if (value & FCR_CLEAR_RX)
		fifo_clear(serial);
	else
		timeout_restart(serial);
}

static void serial_write(void *dev, unsigned offset, uint8_t value)
{
	struct serial *serial = dev;
	struct serial_state *s = &serial->state;
	bool dlab = s->lcr & LCR_DLAB;

	switch (offset) {
	case 0:
		if (dlab)
			s->divisor = (uint16_t)((s->divisor & 0xff00) | value);
		else
			transmit(serial, value);
		break;
	case 1:
		if (dlab) {
			s->divisor = (uint16_t)((s->divisor & 0x00ff) | value << 8);
			break;
		}
		/* Enabling the THRE interrupt while the holding register is empty raises it. */
		if ((value & ~s->ier) & IER_THRE)
			s->thre_pending = true;
		s->ier = value & 0x0f;
		break;
	case 2:
		write_fcr(serial, value);
		break;
	case 3:
		s->lcr = value;
		break;
	case 4:
		s->mcr = value & 0x1f;
		modem_update(s);
		break;
	case 7:
		s->scr = value;
		break;
	}
	update(serial);
	call_ready(serial);
}

static uint64_t port_read(void *dev, uint64_t offset, unsigned size)
{
	return ports_read(dev, offset, size, serial_read);
}

static void port_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	ports_write(dev, offset, size, value, serial_write);
}

static const struct bus_ops serial_ops = { port_read, port_write };

int serial_create(struct bus *bus, struct event_loop *loop, uint16_t port, struct irq_line irq,
	const struct serial_host *host, const char *name, struct serial **out, struct error *err)
{
	struct serial *serial = calloc(1, sizeof(*serial));
	int rc;

	if (!serial)
		return error_set(err, -ENOMEM, "no memory for a serial port");
	serial->bus = bus;
	serial->irq = irq;
	serial->host = *host;
	serial->port = port;
	serial->timeout = event_timer_create(loop, on_timeout, serial);
	if (!serial->timeout) {
		free(serial);
		return error_set(err, -ENOMEM, "no memory for a serial port");
	}
	rc = bus_add(bus, BUS_PIO, port, PORTS, &serial_ops, serial, name);
	if (rc) {
		event_timer_destroy(serial->timeout);
		free(serial);
		return error_set(err, rc, "cannot place a serial port at 0x%x", port);
	}
	serial_reset(serial);
	*out = serial;
	return 0;
}

void serial_destroy(struct serial *serial)
{
	if (!serial)
		return;
	bus_remove(serial->bus, BUS_PIO, serial->port);
	event_timer_destroy(serial->timeout);
	free(serial);
}

void serial_reset(struct serial *serial)
{
	serial->state = (struct serial_state){ .divisor = 12, .msr = MSR_CTS | MSR_DSR | MSR_DCD };
	event_timer_cancel(serial->timeout);
	update(serial);
	call_ready(serial);
}
