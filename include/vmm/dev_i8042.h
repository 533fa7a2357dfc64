/*
 * 8042 keyboard controller (0x60, 0x64) with a minimal keyboard, no mouse, and system control port A (0x92). Device
 * lock held for every call. Either controller moves the A20 gate.
 */
#ifndef VMM_DEV_I8042_H
#define VMM_DEV_I8042_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmm/bus.h"

struct error;
struct i8042;

struct i8042_host {
	/* The guest pulses the reset line. Inside a port write: latch it and return. */
	void (*reset)(void *ctx);
	/* The A20 gate opens or shuts; also at a reset, which opens it. May be NULL. */
	void (*a20)(void *ctx, bool open);
	void *ctx;
};

int i8042_create(struct bus *bus, struct irq_line irq1, struct irq_line irq12, const struct i8042_host *host,
	struct i8042 **kbd, struct error *err);
void i8042_destroy(struct i8042 *kbd);
void i8042_reset(struct i8042 *kbd);

/* Bytes of scan code set 2, as a keyboard sends them; all or nothing: false if its buffer is full. */
bool i8042_key(struct i8042 *kbd, const uint8_t *scancodes, size_t length);

#endif
