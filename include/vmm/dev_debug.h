/*
 * Ports that exist for people: debug exit (0xf4), POST codes (0x80), and the firmware's debug console (0x402 and
 * 0xe9). Device lock held for every call.
 */
#ifndef VMM_DEV_DEBUG_H
#define VMM_DEV_DEBUG_H

#include <stddef.h>
#include <stdint.h>

#include "vmm/bus.h"

struct error;
struct debug_ports;

#define DEBUG_EXIT_PORT 0xf4

struct debug_host {
	/* The guest wrote value to port 0xf4. Inside a port write: latch and return. NULL: no such port. */
	void (*exit)(void *ctx, uint32_t value);
	/* Debug console output. NULL: no such ports (firmware then stays silent). */
	void (*console)(void *ctx, const uint8_t *data, size_t length);
	void *ctx;
};

int debug_ports_create(struct bus *bus, const struct debug_host *host, struct debug_ports **ports, struct error *err);
void debug_ports_destroy(struct debug_ports *ports);
/* The last POST code written to port 0x80. */
uint8_t debug_ports_post_code(const struct debug_ports *ports);

#endif
