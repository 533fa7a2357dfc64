/*
 * The test device. Its memory is an array behind MMIO, not RAM: an instruction whose operand lies there is executed
 * by exits, which is what its users want to see done right. Invariant: offset + size stays inside the region
 * (bus_access() splits what crosses its end).
 */
#include "vmm/dev_testdev.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/bytes.h"
#include "vmm/error.h"

#define REGISTER_PORT 0xe0
#define FLUSH_PORT 0xe4
#define LINE_PORT 0x2000
#define MEMORY_GPA 0xff000000u
#define MEMORY_SIZE 0x10000u

struct testdev {
	/* Set at create. */
	struct bus *bus;
	struct irq_line lines[TESTDEV_LINES];
	/* Device lock. */
	uint8_t port[4];
	uint8_t memory[MEMORY_SIZE];
};

static uint64_t port_read(void *opaque, uint64_t offset, unsigned size)
{
	const struct testdev *dev = opaque;

	return bytes_load(dev->port + offset, size);
}

static void port_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	struct testdev *dev = opaque;

	bytes_store(dev->port + offset, size, value);
}

static uint64_t nothing_read(void *opaque, uint64_t offset, unsigned size)
{
	return 0;
}

static void nothing_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
}

static void line_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	const struct testdev *dev = opaque;

	irq_line_set(&dev->lines[offset], value & 0xff);
}

static uint64_t memory_read(void *opaque, uint64_t offset, unsigned size)
{
	const struct testdev *dev = opaque;

	return bytes_load(dev->memory + offset, size);
}

static void memory_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	struct testdev *dev = opaque;

	bytes_store(dev->memory + offset, size, value);
}

static const struct bus_ops port_ops = { port_read, port_write };
static const struct bus_ops flush_ops = { nothing_read, nothing_write };
static const struct bus_ops line_ops = { nothing_read, line_write };
static const struct bus_ops memory_ops = { memory_read, memory_write };

static const struct {
	enum bus_space space;
	uint32_t base, size;
	const struct bus_ops *ops;
} regions[] = {
	{ BUS_PIO, REGISTER_PORT, 4, &port_ops },
	{ BUS_PIO, FLUSH_PORT, 4, &flush_ops },
	{ BUS_PIO, LINE_PORT, TESTDEV_LINES, &line_ops },
	{ BUS_MMIO, MEMORY_GPA, MEMORY_SIZE, &memory_ops },
};
#define REGIONS (sizeof(regions) / sizeof(regions[0]))

static void remove_regions(struct testdev *dev, unsigned count)
{
	while (count--)
		bus_remove(dev->bus, regions[count].space, regions[count].base);
}

int testdev_create(struct bus *bus, const struct irq_line *lines, struct testdev **out, struct error *err)
{
	struct testdev *dev = calloc(1, sizeof(*dev));

	if (!dev)
		return error_set(err, -ENOMEM, "no memory for the test device");
	dev->bus = bus;
	memcpy(dev->lines, lines, sizeof(dev->lines));
	for (unsigned i = 0; i < REGIONS; i++) {
		int rc = bus_add(bus, regions[i].space, regions[i].base, regions[i].size, regions[i].ops, dev,
			"test device");

		if (!rc)
			continue;
		remove_regions(dev, i);
		free(dev);
		return error_set(err, rc, "cannot place the test device");
	}
	*out = dev;
	return 0;
}

void testdev_destroy(struct testdev *dev)
{
	if (!dev)
		return;
	remove_regions(dev, REGIONS);
	free(dev);
}
