/*
 * 8042 keyboard controller (IBM PC/AT Technical Reference, 1-38 on) with a keyboard that answers commands and a
 * mouse port that answers like an empty one.
 *
 *   status 0x64  parity timeout aux-data inhibit cmd/data sys IBF OBF      (7..0)
 *   command byte  0 xlate aux-off kbd-off 0 sys aux-int kbd-int            (7..0)
 *
 * The keyboard's bytes wait in a queue and move to the output register when it is empty; the controller's own answers
 * go to the output register at once. IRQ 1 follows the output register and falls between two bytes.
 */
#include "vmm/dev_i8042.h"

#include <errno.h>
#include <stdlib.h>

#include "vmm/error.h"

#define QUEUE_SIZE 32

enum { STATUS_OBF = 1, STATUS_SYS = 4, STATUS_COMMAND = 8, STATUS_UNLOCKED = 0x10, STATUS_AUX = 0x20, STATUS_TIMEOUT = 0x40 };
enum { CTR_KBD_INT = 1, CTR_AUX_INT = 2, CTR_SYS = 4, CTR_KBD_OFF = 0x10, CTR_AUX_OFF = 0x20, CTR_XLATE = 0x40 };
enum { OUT_RUN = 1, OUT_A20 = 2 };

struct i8042_state {
	uint8_t status;	      /* AUX, TIMEOUT and COMMAND; OBF with output */
	uint8_t ctr, outport; /* command byte; output port bits 1:0 */
	uint8_t output;
	uint8_t command; /* controller command that waits for its data byte, or 0 */
	uint8_t ram[32];
	/* The keyboard. */
	uint8_t queue[QUEUE_SIZE], queue_head, queue_count;
	uint8_t kbd_command; /* keyboard command that waits for its data byte, or 0 */
	uint8_t scancode_set, leds, rate;
	bool scanning, release_prefix; /* F0 seen: the next translated code is a release */
};

struct i8042 {
	/* Set at create. */
	struct bus *bus;
	struct irq_line irq1, irq12;
	struct i8042_host host;
	/* Device lock. */
	struct i8042_state state;
};

/* Scan code set 2 to set 1, as the controller's firmware translates. */
static const uint8_t set1_of[128] = {
	0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29, 0x59,
	0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03, 0x5b,
	0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06, 0x5d,
	0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5f,
	0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c, 0x61,
	0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63, 0x76,
	0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f, 0x6f,
	0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54,
};

static void output_set(struct i8042 *kbd, uint8_t value, uint8_t flags)
{
	struct i8042_state *s = &kbd->state;
	bool aux = flags & STATUS_AUX;

	s->output = value;
	s->status = (uint8_t)((s->status & STATUS_COMMAND) | STATUS_OBF | flags);
	irq_line_set(&kbd->irq1, !aux && (s->ctr & CTR_KBD_INT));
	irq_line_set(&kbd->irq12, aux && (s->ctr & CTR_AUX_INT));
}

/* Moves the keyboard's next byte to an empty output register. */
static void output_fill(struct i8042 *kbd)
{
	struct i8042_state *s = &kbd->state;

	while (s->queue_count && !(s->status & STATUS_OBF) && !(s->ctr & CTR_KBD_OFF)) {
		uint8_t code = s->queue[s->queue_head];

		s->queue_head = (s->queue_head + 1) % QUEUE_SIZE;
		s->queue_count--;
		if (s->ctr & CTR_XLATE) {
			if (code == 0xf0) {
				s->release_prefix = true;
				continue;
			}
			if (code < 0x80)
				code = set1_of[code];
			else if (code == 0x83)
				code = 0x41;
			else if (code == 0x84)
				code = 0x54;
			if (s->release_prefix)
				code |= 0x80;
			s->release_prefix = false;
		}
		output_set(kbd, code, 0);
	}
}

static uint8_t output_take(struct i8042 *kbd)
{
	struct i8042_state *s = &kbd->state;
	uint8_t value = s->output;

	s->status &= ~(STATUS_OBF | STATUS_AUX | STATUS_TIMEOUT);
	irq_line_set(&kbd->irq1, false);
	irq_line_set(&kbd->irq12, false);
	output_fill(kbd);
	return value;
}

static void queue_put(struct i8042_state *s, uint8_t code)
{
	if (s->queue_count < QUEUE_SIZE)
		s->queue[(s->queue_head + s->queue_count++) % QUEUE_SIZE] = code;
}

static void keyboard_defaults(struct i8042_state *s)
{
	s->scancode_set = 2;
	s->rate = 0x2b;
	s->kbd_command = 0;
}

/* The second byte of a keyboard command. */
static void keyboard_argument(struct i8042_state *s, uint8_t value)
{
	uint8_t command = s->kbd_command;

	s->kbd_command = 0;
	queue_put(s, 0xfa);
	switch (command) {
	case 0xed:
		s->leds = value & 7;
		break;
	case 0xf0:
		if (!value)
			queue_put(s, s->scancode_set);
		else if (value <= 3)
			s->scancode_set = value;
		break;
	case 0xf3:
		s->rate = value;
		break;
	}
}

static void keyboard_write(struct i8042 *kbd, uint8_t value)
{
	struct i8042_state *s = &kbd->state;

	if (s->kbd_command && value < 0xed) {
		keyboard_argument(s, value);
		output_fill(kbd);
		return;
	}
	s->kbd_command = 0;
	switch (value) {
	case 0xed: /* LEDs */
	case 0xf0: /* scan code set */
	case 0xf3: /* typematic rate */
		s->kbd_command = value;
		queue_put(s, 0xfa);
		break;
	case 0xee: /* echo */
		queue_put(s, 0xee);
		break;
	case 0xf2: /* identify */
		queue_put(s, 0xfa);
		queue_put(s, 0xab);
		queue_put(s, 0x83);
		break;
	case 0xf4:
	case 0xf5: /* defaults and stop */
	case 0xf6: /* defaults */
		if (value != 0xf4)
			keyboard_defaults(s);
		s->scanning = value != 0xf5;
		queue_put(s, 0xfa);
		break;
	case 0xfe: /* resend: nothing was lost */
		queue_put(s, s->output);
		break;
	case 0xff: /* reset and self test */
		s->queue_count = 0;
		keyboard_defaults(s);
		s->scanning = true;
		queue_put(s, 0xfa);
		queue_put(s, 0xaa);
		break;
	default:
		queue_put(s, value >= 0xf7 ? 0xfa : 0xfe);
		break;
	}
	output_fill(kbd);
}

static void outport_write(struct i8042 *kbd, uint8_t value)
{
	struct i8042_state *s = &kbd->state;

	s->outport = (value & OUT_A20) | OUT_RUN;
	if (kbd->host.a20)
		kbd->host.a20(kbd->host.ctx, value & OUT_A20);
	if (!(value & OUT_RUN) && kbd->host.reset)
		kbd->host.reset(kbd->host.ctx);
}

static void ctr_write(struct i8042 *kbd, uint8_t value)
{
	struct i8042_state *s = &kbd->state;

	s->ctr = value;
	if (s->status & STATUS_OBF)
		output_set(kbd, s->output, s->status & (STATUS_AUX | STATUS_TIMEOUT));
	output_fill(kbd);
}

static void controller_command(struct i8042 *kbd, uint8_t value)
{
	struct i8042_state *s = &kbd->state;

	s->command = 0;
	s->status |= STATUS_COMMAND;
	if (value >= 0xf0) { /* pulse the output port's low bits */
		if (!(value & OUT_RUN))
			outport_write(kbd, s->outport & ~OUT_RUN);
		return;
	}
	if (value >= 0x20 && value <= 0x3f) {
		output_set(kbd, value == 0x20 ? s->ctr : s->ram[value & 0x1f], 0);
		return;
	}
	switch (value) {
	case 0x60 ... 0x7f: /* write RAM */
	case 0xd1:	    /* write output port */
	case 0xd2:	    /* write output register, as from the keyboard */
	case 0xd3:	    /* the same, as from the mouse */
	case 0xd4:	    /* write to the mouse */
		s->command = value;
		break;
	case 0xa7:
		ctr_write(kbd, s->ctr | CTR_AUX_OFF);
		break;
	case 0xa8:
		ctr_write(kbd, s->ctr & ~CTR_AUX_OFF);
		break;
	case 0xa9: /* test the mouse's lines: clock stuck low, nothing there */
		output_set(kbd, 0x01, 0);
		break;
	case 0xaa:
		s->ctr |= CTR_SYS;
		output_set(kbd, 0x55, 0);
		break;
	case 0xab:
		output_set(kbd, 0x00, 0);
		break;
	case 0xad:
		ctr_write(kbd, s->ctr | CTR_KBD_OFF);
		break;
	case 0xae:
		ctr_write(kbd, s->ctr & ~CTR_KBD_OFF);
		break;
	case 0xc0: /* input port: not locked, no manufacturing jumper */
		output_set(kbd, 0xa0, 0);
		break;
	case 0xd0:
		output_set(kbd, s->outport | (s->status & STATUS_OBF ? 0x10 : 0), 0);
		break;
	case 0xdd:
		outport_write(kbd, s->outport & ~OUT_A20);
		break;
	case 0xdf:
		outport_write(kbd, s->outport | OUT_A20);
		break;
	}
}

static void data_write(struct i8042 *kbd, uint8_t value)
{
	struct i8042_state *s = &kbd->state;
	uint8_t command = s->command;

	s->command = 0;
	s->status &= ~STATUS_COMMAND;
	switch (command) {
	case 0:
		keyboard_write(kbd, value);
		break;
	case 0x60:
		ctr_write(kbd, value);
		break;
	case 0x61 ... 0x7f:
		s->ram[command & 0x1f] = value;
		break;
	case 0xd1:
		outport_write(kbd, value);
		break;
	case 0xd2:
	case 0xd3: /* without a mouse port the byte comes back without the AUX mark */
		output_set(kbd, value, 0);
		break;
	case 0xd4:
		output_set(kbd, 0xfe, STATUS_AUX | STATUS_TIMEOUT);
		break;
	}
}

static uint64_t data_port_read(void *dev, uint64_t offset, unsigned size)
{
	return output_take(dev);
}

static void data_port_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	data_write(dev, (uint8_t)value);
}

static uint64_t status_port_read(void *dev, uint64_t offset, unsigned size)
{
	const struct i8042_state *s = &((struct i8042 *)dev)->state;

	return s->status | STATUS_UNLOCKED | (s->ctr & CTR_SYS ? STATUS_SYS : 0);
}

static void command_port_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	controller_command(dev, (uint8_t)value);
}

/* Port 0x92: bit 1 is A20, a rising bit 0 resets. */
static uint64_t port92_read(void *dev, uint64_t offset, unsigned size)
{
	const struct i8042 *kbd = dev;

	return kbd->state.outport & OUT_A20;
}

static void port92_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct i8042 *kbd = dev;

	outport_write(kbd, (value & OUT_A20) | (value & 1 ? 0 : OUT_RUN));
}

static const struct {
	uint16_t port;
	struct bus_ops ops;
	const char *name;
} regions[] = {
	{ 0x60, { data_port_read, data_port_write }, "i8042 data" },
	{ 0x64, { status_port_read, command_port_write }, "i8042 command" },
	{ 0x92, { port92_read, port92_write }, "port 92" },
};
#define REGIONS (sizeof(regions) / sizeof(regions[0]))

int i8042_create(struct bus *bus, struct irq_line irq1, struct irq_line irq12, const struct i8042_host *host,
	struct i8042 **out, struct error *err)
{
	struct i8042 *kbd = calloc(1, sizeof(*kbd));
	int rc;

	if (!kbd)
		return error_set(err, -ENOMEM, "no memory for the keyboard controller");
	kbd->bus = bus;
	kbd->irq1 = irq1;
	kbd->irq12 = irq12;
	kbd->host = *host;
	for (unsigned i = 0; i < REGIONS; i++) {
		rc = bus_add(bus, BUS_PIO, regions[i].port, 1, &regions[i].ops, kbd, regions[i].name);
		if (!rc)
			continue;
		while (i--)
			bus_remove(bus, BUS_PIO, regions[i].port);
		free(kbd);
		return error_set(err, rc, "cannot place the keyboard controller");
	}
	kbd->state.outport = OUT_RUN | OUT_A20;
	i8042_reset(kbd);
	*out = kbd;
	return 0;
}

void i8042_destroy(struct i8042 *kbd)
{
	if (!kbd)
		return;
	for (unsigned i = 0; i < REGIONS; i++)
		bus_remove(kbd->bus, BUS_PIO, regions[i].port);
	free(kbd);
}

void i8042_reset(struct i8042 *kbd)
{
	outport_write(kbd, OUT_RUN | OUT_A20);
	kbd->state = (struct i8042_state){ .outport = OUT_RUN | OUT_A20, .ctr = CTR_KBD_INT | CTR_XLATE, .scanning = true };
	keyboard_defaults(&kbd->state);
	irq_line_set(&kbd->irq1, false);
	irq_line_set(&kbd->irq12, false);
}

bool i8042_key(struct i8042 *kbd, const uint8_t *scancodes, size_t length)
{
	struct i8042_state *s = &kbd->state;

	if (!s->scanning)
		return true;
	if (length > (size_t)(QUEUE_SIZE - s->queue_count))
		return false;
	for (size_t i = 0; i < length; i++)
		queue_put(s, scancodes[i]);
	output_fill(kbd);
	return true;
}
