/*
 * Debug ports. 0xf4 takes 1-, 2- and 4-byte writes and reads as zero; 0x80 keeps the last POST code; 0x402 reads as
 * 0xe9, by which firmware recognises the debug console, and 0xe9 is the older port for the same.
 */
#include "vmm/dev_debug.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#include "vmm/error.h"

#define POST_PORT 0x80
#define CONSOLE_PORT 0x402
#define CONSOLE_OLD_PORT 0xe9

struct debug_ports_state {
	uint8_t post;
};

struct debug_ports {
	struct bus *bus;
	struct debug_host host;
	struct debug_ports_state state;
};

static uint64_t post_read(void *dev, uint64_t offset, unsigned size)
{
	const struct debug_ports *ports = dev;

	return ports->state.post;
}

static void post_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct debug_ports *ports = dev;

	ports->state.post = (uint8_t)value;
}

static uint64_t exit_read(void *dev, uint64_t offset, unsigned size)
{
	return 0;
}

static void exit_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct debug_ports *ports = dev;

	if (!offset)
		ports->host.exit(ports->host.ctx, (uint32_t)value);
}

static uint64_t console_read(void *dev, uint64_t offset, unsigned size)
{
	return 0xe9;
}

static void console_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct debug_ports *ports = dev;
	uint8_t byte = (uint8_t)value;

	ports->host.console(ports->host.ctx, &byte, 1);
}

static const struct bus_ops post_ops = { post_read, post_write };
static const struct bus_ops exit_ops = { exit_read, exit_write };
static const struct bus_ops console_ops = { console_read, console_write };

static const struct {
	uint16_t port, size;
	const struct bus_ops *ops;
	const char *name;
} regions[] = {
	{ POST_PORT, 1, &post_ops, "post code" },
	{ DEBUG_EXIT_PORT, 4, &exit_ops, "debug exit" },
	{ CONSOLE_PORT, 1, &console_ops, "debug console" },
	{ CONSOLE_OLD_PORT, 1, &console_ops, "debug console" },
};
#define REGIONS (sizeof(regions) / sizeof(regions[0]))

static bool wanted(const struct debug_ports *ports, unsigned i)
{
	if (regions[i].ops == &exit_ops)
		return ports->host.exit;
	return regions[i].ops != &console_ops || ports->host.console;
}

int debug_ports_create(struct bus *bus, const struct debug_host *host, struct debug_ports **out, struct error *err)
{
	struct debug_ports *ports = calloc(1, sizeof(*ports));
	int rc = 0;

	if (!ports)
		return error_set(err, -ENOMEM, "no memory for the debug ports");
	ports->bus = bus;
	ports->host = *host;
	for (unsigned i = 0; i < REGIONS; i++) {
		if (wanted(ports, i))
			rc = bus_add(bus, BUS_PIO, regions[i].port, regions[i].size, regions[i].ops, ports,
				regions[i].name);
		if (!rc)
			continue;
		while (i--)
			if (wanted(ports, i))
				bus_remove(bus, BUS_PIO, regions[i].port);
		free(ports);
		return error_set(err, rc, "cannot place the debug ports");
	}
	*out = ports;
	return 0;
}

void debug_ports_destroy(struct debug_ports *ports)
{
	if (!ports)
		return;
	for (unsigned i = 0; i < REGIONS; i++)
		if (wanted(ports, i))
			bus_remove(ports->bus, BUS_PIO, regions[i].port);
	free(ports);
}

uint8_t debug_ports_post_code(const struct debug_ports *ports)
{
	return ports->state.post;
}
