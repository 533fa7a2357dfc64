/* 16550A UART. Device lock held for every call. Destroy before the bus and the loop. */
#ifndef VMM_DEV_SERIAL_H
#define VMM_DEV_SERIAL_H

#include <stddef.h>
#include <stdint.h>

#include "vmm/bus.h"

struct event_loop;
struct error;
struct serial;

/* The usual ports and interrupts. */
#define SERIAL_COM1 0x3f8 /* IRQ 4 */
#define SERIAL_COM2 0x2f8 /* IRQ 3 */
#define SERIAL_COM3 0x3e8 /* IRQ 4 */
#define SERIAL_COM4 0x2e8 /* IRQ 3 */

struct serial_host {
	/* Takes bytes that the guest sent. May not block; NULL drops them. */
	void (*output)(void *ctx, const uint8_t *data, size_t length);
	/* There is room again after serial_input() took less than all. May be NULL. May call serial_input(). */
	void (*ready)(void *ctx);
	void *ctx;
	struct answer_sink answers; /* offered the line status while reading it changes nothing */
};

/* name: static, for the bus. *host is copied. */
int serial_create(struct bus *bus, struct event_loop *loop, uint16_t port, struct irq_line irq,
	const struct serial_host *host, const char *name, struct serial **serial, struct error *err);
void serial_destroy(struct serial *serial);
void serial_reset(struct serial *serial);

/* Gives the guest bytes; returns how many it took (0..length). With less than all, ready() follows. */
size_t serial_input(struct serial *serial, const uint8_t *data, size_t length);
/* A break condition on the line (magic SysRq). */
void serial_input_break(struct serial *serial);

#endif
