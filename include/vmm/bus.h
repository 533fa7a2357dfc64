/*
 * The I/O funnel: every PIO and MMIO access of every backend comes through bus_access(). Also the two small
 * interfaces by which a device reaches the interrupt controllers: a line and a message.
 */
#ifndef VMM_BUS_H
#define VMM_BUS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct error;
struct bus;

enum bus_space { BUS_PIO, BUS_MMIO };

/* A device's registers. offset is relative to the region; size is 1, 2, 4 or 8 (PIO: 1, 2, 4). Device lock held. */
struct bus_ops {
	uint64_t (*read)(void *dev, uint64_t offset, unsigned size);
	void (*write)(void *dev, uint64_t offset, unsigned size, uint64_t value);
};

/* device_lock is taken around each device access; owned by the caller, and outlives the bus. */
int bus_create(pthread_mutex_t *device_lock, struct bus **bus, struct error *err);
void bus_destroy(struct bus *bus);

/* Adds a region; -EEXIST if it overlaps another. name is kept by pointer (static). Device lock held, or before vcpus run. */
int bus_add(struct bus *bus, enum bus_space space, uint64_t base, uint64_t size, const struct bus_ops *ops, void *dev,
	const char *name);
/* Removes the region that begins at base (a PCI BAR moves); no-op if none does. Device lock held. */
void bus_remove(struct bus *bus, enum bus_space space, uint64_t base);

/*
 * One access by a vcpu thread, device lock NOT held. Nobody home: reads give all ones, writes are dropped. An
 * access that crosses the end of a region is split into bytes.
 */
void bus_access(struct bus *bus, enum bus_space space, uint64_t addr, unsigned size, bool is_write, uint64_t *value);

/* Access counters for --stats: total number by space and direction, and those that nobody answered. */
struct bus_stats {
	uint64_t pio_reads, pio_writes, mmio_reads, mmio_writes, unclaimed;
};
const struct bus_stats *bus_stats(const struct bus *bus);
/* Called for each access if set (tracing). */
void bus_set_observer(struct bus *bus,
	void (*fn)(void *ctx, enum bus_space space, const char *region, uint64_t addr, unsigned size, bool is_write,
		uint64_t value),
	void *ctx);

/* A level on a wire to an interrupt controller input. Copyable by value. */
struct irq_line {
	void (*set)(void *ctx, unsigned input, bool level);
	void *ctx;
	unsigned input;
};
static inline void irq_line_set(const struct irq_line *line, bool level)
{
	if (line->set)
		line->set(line->ctx, line->input, level);
}

/* Message signalled interrupts: a write of data to addr (SDM vol. 3, 11.11). Any thread. */
struct msi_sink {
	void (*send)(void *ctx, uint64_t addr, uint32_t data);
	void *ctx;
};
static inline void msi_send(const struct msi_sink *sink, uint64_t addr, uint32_t data)
{
	if (sink->send)
		sink->send(sink->ctx, addr, data);
}

/*
 * A register whose reads have no side effect and give a value that only time changes, so that whoever runs the guest
 * may answer them without asking the device: free-running counters, and status bits that stay as they are for a while.
 * Accesses of other sizes, those that overlap it and all writes come to the bus as ever.
 *
 *   value = (base + (CLOCK_MONOTONIC ns − start_ns) · num / den) >> shift, cut to the size of the access
 */
struct bus_answer {
	enum bus_space space;
	unsigned sizes; /* accesses of these sizes at addr, or'ed (1 | 2 | 4 | 8); 0: ask the device again */
	uint64_t addr;
	uint64_t start_ns, base;
	uint32_t num, den; /* num 0: constant; den not 0 */
	unsigned shift;	   /* below 64 */
};
/* Where a device says so. Device lock held. The device still answers on the bus: publishing is an offer. */
struct answer_sink {
	void (*publish)(void *ctx, const struct bus_answer *answer);
	void *ctx;
};
static inline void answer_publish(const struct answer_sink *sink, const struct bus_answer *answer)
{
	if (sink->publish)
		sink->publish(sink->ctx, answer);
}

#endif
