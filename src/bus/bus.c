/*
 * The I/O funnel. Each space is an array of regions sorted by base and disjoint; an access takes the device lock,
 * finds its region (the last one first, then binary search) and calls it.
 *
 * Invariant: everything here is guarded by the device lock. A device may add and remove regions while it is being
 * accessed (a BAR moves), so a region is copied out of the array before its device is called.
 */
#include "vmm/bus.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/error.h"

struct region {
	uint64_t base;
	uint64_t last; /* inclusive, so that a region may end at 2^64 */
	const struct bus_ops *ops;
	void *dev;
	const char *name;
};

struct space {
	struct region *regions;
	unsigned count, capacity;
	unsigned hint; /* index of the last hit */
};

struct bus {
	pthread_mutex_t *device_lock; /* set at create */
	struct space spaces[2];
	struct bus_stats stats;
	void (*observer)(void *ctx, enum bus_space space, const char *region, uint64_t addr, unsigned size,
		bool is_write, uint64_t value);
	void *observer_ctx;
};

int bus_create(pthread_mutex_t *device_lock, struct bus **out, struct error *err)
{
	struct bus *bus = calloc(1, sizeof(*bus));

	*out = bus;
	if (!bus)
		return error_set(err, -ENOMEM, "Not enough memory for the bus");
	bus->device_lock = device_lock;
	return 0;
}

void bus_destroy(struct bus *bus)
{
	if (!bus)
		return;
	free(bus->spaces[BUS_PIO].regions);
	free(bus->spaces[BUS_MMIO].regions);
	free(bus);
}

/* Index of the first region that ends at addr or later; count if none. */
static unsigned region_search(const struct space *s, uint64_t addr)
{
	unsigned low = 0, high = s->count;

	while (low < high) {
		unsigned mid = low + (high - low) / 2;

		if (s->regions[mid].last < addr)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

int bus_add(struct bus *bus, enum bus_space space, uint64_t base, uint64_t size, const struct bus_ops *ops, void *dev,
	const char *name)
{
	struct space *s = &bus->spaces[space];
	uint64_t last = base + size - 1;
	unsigned i;

	if (!size || last < base || (space == BUS_PIO && last > 0xffff))
		return -EINVAL;
	i = region_search(s, base);
	if (i < s->count && s->regions[i].base <= last)
		return -EEXIST;
	if (s->count == s->capacity) {
		unsigned capacity = s->capacity ? s->capacity * 2 : 16;
		struct region *grown = reallocarray(s->regions, capacity, sizeof(*grown));

		if (!grown)
			return -ENOMEM;
		s->regions = grown;
		s->capacity = capacity;
	}
	memmove(&s->regions[i + 1], &s->regions[i], (s->count - i) * sizeof(s->regions[0]));
	s->regions[i] = (struct region){.base = base, .last = last, .ops = ops, .dev = dev, .name = name};
	s->count++;
	return 0;
}

void bus_remove(struct bus *bus, enum bus_space space, uint64_t base)
{
	struct space *s = &bus->spaces[space];
	unsigned i = region_search(s, base);

	if (i == s->count || s->regions[i].base != base)
		return;
	memmove(&s->regions[i], &s->regions[i + 1], (s->count - i - 1) * sizeof(s->regions[0]));
	s->count--;
}

/* The region that holds all of the access; NULL if there is none, *partial telling whether one holds some of it. */
static const struct region *region_find(struct space *s, uint64_t addr, unsigned size, bool *partial)
{
	uint64_t last = addr + size - 1;
	unsigned i = s->hint;

	*partial = false;
	if (i >= s->count || addr < s->regions[i].base || addr > s->regions[i].last) {
		i = region_search(s, addr);
		if (i == s->count || (s->regions[i].base > last && last >= addr))
			return NULL;
	}
	if (addr < s->regions[i].base || last > s->regions[i].last || last < addr) {
		*partial = true;
		return NULL;
	}
	s->hint = i;
	return &s->regions[i];
}

static uint64_t size_mask(unsigned size)
{
	return size >= 8 ? UINT64_MAX : (1ull << (8 * size)) - 1;
}

static void access_locked(struct bus *bus, enum bus_space space, uint64_t addr, unsigned size, bool is_write,
	uint64_t *value)
{
	bool partial;
	const struct region *found = region_find(&bus->spaces[space], addr, size, &partial);
	const char *name = NULL;

	if (!found && partial && size > 1) {
		uint64_t bytes = *value;

		for (unsigned i = 0; i < size; i++) {
			uint64_t byte = bytes >> (8 * i) & 0xff;

			access_locked(bus, space, addr + i, 1, is_write, &byte);
			if (!is_write)
				bytes = (bytes & ~(0xffull << (8 * i))) | byte << (8 * i);
		}
		if (!is_write)
			*value = bytes & size_mask(size);
		return;
	}
	if (found) {
		struct region r = *found;

		name = r.name;
		if (!is_write)
			*value = r.ops->read(r.dev, addr - r.base, size) & size_mask(size);
		else
			r.ops->write(r.dev, addr - r.base, size, *value & size_mask(size));
	} else {
		bus->stats.unclaimed++;
		if (!is_write)
			*value = size_mask(size);
	}
	if (bus->observer)
		bus->observer(bus->observer_ctx, space, name, addr, size, is_write, *value & size_mask(size));
}

void bus_access(struct bus *bus, enum bus_space space, uint64_t addr, unsigned size, bool is_write, uint64_t *value)
{
	assert(size == 1 || size == 2 || size == 4 || size == 8);
	pthread_mutex_lock(bus->device_lock);
	if (space == BUS_PIO)
		*(is_write ? &bus->stats.pio_writes : &bus->stats.pio_reads) += 1;
	else
		*(is_write ? &bus->stats.mmio_writes : &bus->stats.mmio_reads) += 1;
	access_locked(bus, space, addr, size, is_write, value);
	pthread_mutex_unlock(bus->device_lock);
}

const struct bus_stats *bus_stats(const struct bus *bus)
{
	return &bus->stats;
}

void bus_set_observer(struct bus *bus,
	void (*fn)(void *ctx, enum bus_space space, const char *region, uint64_t addr, unsigned size, bool is_write,
		uint64_t value),
	void *ctx)
{
	bus->observer = fn;
	bus->observer_ctx = ctx;
}
