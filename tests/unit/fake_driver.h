/*
 * A small machine (bus, PCI, RAM, event loop) and a fake virtio driver in guest memory for the tests of the device
 * side. Everything goes through bus_access() and guest RAM, as a guest would do it.
 */
#ifndef FAKE_DRIVER_H
#define FAKE_DRIVER_H

#include <check.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/bus.h"
#include "vmm/bytes.h"
#include "vmm/error.h"
#include "vmm/event.h"
#include "vmm/log.h"
#include "vmm/mem.h"
#include "vmm/pci.h"
#include "vmm/virtio.h"
#include "vmm/virtio_pci.h"

#define RING_DESC 0x10000
#define RING_AVAIL 0x12000
#define RING_USED 0x13000
#define RING_STRIDE 0x4000
#define RING_SIZE 64
#define DESC_F_NEXT 1
#define DESC_F_WRITE 2
#define DESC_F_INDIRECT 4

struct machine {
	pthread_mutex_t lock;
	struct bus *bus;
	struct event_loop *loop;
	struct guest_mem *mem;
	struct pci_bus *pci;
	int levels[4];
	unsigned msi_count, resets;
	uint64_t msi_addr;
	uint32_t msi_data;
	uint64_t registers; /* address of the device's register BAR */
	uint16_t avail[VIRTIO_QUEUES_MAX];
};

static inline void machine_set_line(void *ctx, unsigned input, bool level)
{
	((struct machine *)ctx)->levels[input] = level;
}

static inline void machine_msi(void *ctx, uint64_t addr, uint32_t data)
{
	struct machine *m = ctx;

	m->msi_count++;
	m->msi_addr = addr;
	m->msi_data = data;
}

static inline void machine_reset_asked(void *ctx)
{
	((struct machine *)ctx)->resets++;
}

static inline void machine_start(struct machine *m)
{
	struct irq_line lines[4];
	struct error err = {0};

	memset(m, 0, sizeof(*m));
	pthread_mutex_init(&m->lock, NULL);
	for (unsigned i = 0; i < 4; i++)
		lines[i] = (struct irq_line){machine_set_line, m, i};
	ck_assert_int_eq(event_loop_create(&m->lock, &m->loop, &err), 0);
	ck_assert_int_eq(bus_create(&m->lock, &m->bus, &err), 0);
	ck_assert_int_eq(mem_create(16 << 20, &m->mem, &err), 0);
	ck_assert_int_eq(pci_bus_create(m->bus, lines, (struct msi_sink){machine_msi, m}, machine_reset_asked, m, &m->pci,
				 &err),
		0);
}

static inline void machine_end(struct machine *m)
{
	pci_bus_destroy(m->pci);
	bus_destroy(m->bus);
	event_loop_destroy(m->loop);
	mem_destroy(m->mem);
}

static inline uint64_t mmio_read(struct machine *m, uint64_t addr, unsigned size)
{
	uint64_t value = 0;

	bus_access(m->bus, BUS_MMIO, addr, size, false, &value);
	return value;
}

static inline void mmio_write(struct machine *m, uint64_t addr, unsigned size, uint64_t value)
{
	bus_access(m->bus, BUS_MMIO, addr, size, true, &value);
}

static inline uint32_t config_read(struct machine *m, unsigned slot, unsigned reg, unsigned size)
{
	return mmio_read(m, GPA_ECAM + (slot << 15) + reg, size);
}

static inline void config_write(struct machine *m, unsigned slot, unsigned reg, unsigned size, uint32_t value)
{
	mmio_write(m, GPA_ECAM + (slot << 15) + reg, size, value);
}

/* Puts the device in slot 1 with BARs assigned and decoding on. */
static inline struct virtio_pci *driver_attach(struct machine *m, struct virtio_device *dev, bool use_loop)
{
	static const uint8_t irqs[4] = {16, 17, 18, 19};
	struct virtio_pci *vpci;
	struct error err = {0};

	ck_assert_int_eq(virtio_pci_create(m->pci, 1, use_loop ? m->loop : NULL, dev, &vpci, &err), 0);
	ck_assert_int_eq(pci_bus_assign(m->pci, irqs, &err), 0);
	config_write(m, 1, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
	m->registers = pci_bar_address(pci_bus_device(m->pci, 1), 4);
	ck_assert_uint_ne(m->registers, 0);
	return vpci;
}

static inline uint8_t driver_status(struct machine *m)
{
	return mmio_read(m, m->registers + 0x14, 1);
}

/* Resets, accepts `features` and starts `queues` queues. */
static inline void driver_start(struct machine *m, uint64_t features, unsigned queues)
{
	uint64_t r = m->registers;

	mmio_write(m, r + 0x14, 1, 0);
	mmio_write(m, r + 0x14, 1, 3);
	for (unsigned half = 0; half < 2; half++) {
		mmio_write(m, r + 0x08, 4, half);
		mmio_write(m, r + 0x0c, 4, (features | VIRTIO_F_VERSION_1) >> 32 * half);
	}
	mmio_write(m, r + 0x14, 1, 0x0b);
	ck_assert_uint_eq(driver_status(m), 0x0b);
	for (unsigned q = 0; q < queues; q++) {
		m->avail[q] = 0;
		mem_zero(m->mem, RING_DESC + q * RING_STRIDE, RING_STRIDE);
		mmio_write(m, r + 0x16, 2, q);
		mmio_write(m, r + 0x18, 2, RING_SIZE);
		mmio_write(m, r + 0x20, 4, RING_DESC + q * RING_STRIDE);
		mmio_write(m, r + 0x24, 4, 0);
		mmio_write(m, r + 0x28, 8, RING_AVAIL + q * RING_STRIDE);
		mmio_write(m, r + 0x30, 4, RING_USED + q * RING_STRIDE);
		mmio_write(m, r + 0x34, 4, 0);
		mmio_write(m, r + 0x1c, 2, 1);
		ck_assert_uint_eq(mmio_read(m, r + 0x1c, 2), 1);
	}
	mmio_write(m, r + 0x14, 1, 0x0f);
}

static inline void guest_desc(struct machine *m, uint64_t table, unsigned index, uint64_t addr, uint32_t length,
	uint16_t flags, uint16_t next)
{
	uint8_t raw[16];

	bytes_store(raw, 8, addr);
	bytes_store(raw + 8, 4, length);
	bytes_store(raw + 12, 2, flags);
	bytes_store(raw + 14, 2, next);
	ck_assert_int_eq(mem_write(m->mem, table + 16 * index, raw, 16), 0);
}

/* A descriptor of queue q. */
static inline void driver_desc(struct machine *m, unsigned q, unsigned index, uint64_t addr, uint32_t length,
	uint16_t flags, uint16_t next)
{
	guest_desc(m, RING_DESC + q * RING_STRIDE, index, addr, length, flags, next);
}

static inline void driver_avail_index(struct machine *m, unsigned q, uint16_t value)
{
	mem_write(m->mem, RING_AVAIL + q * RING_STRIDE + 2, &value, 2);
}

static inline void driver_add(struct machine *m, unsigned q, uint16_t head)
{
	mem_write(m->mem, RING_AVAIL + q * RING_STRIDE + 4 + 2 * (m->avail[q] % RING_SIZE), &head, 2);
	driver_avail_index(m, q, ++m->avail[q]);
}

static inline void driver_kick(struct machine *m, unsigned q)
{
	mmio_write(m, m->registers + 0x3000 + 4 * q, 2, q);
}

static inline uint16_t driver_used(struct machine *m, unsigned q)
{
	uint16_t value;

	mem_read(m->mem, RING_USED + q * RING_STRIDE + 2, &value, 2);
	return value;
}

static inline uint32_t driver_used_length(struct machine *m, unsigned q, unsigned at)
{
	uint32_t value;

	mem_read(m->mem, RING_USED + q * RING_STRIDE + 4 + 8 * (at % RING_SIZE) + 4, &value, 4);
	return value;
}

/* Runs the loop until queue q has returned `count` chains or two seconds are over. */
static inline void driver_wait(struct machine *m, unsigned q, uint16_t count)
{
	for (unsigned i = 0; i < 200 && driver_used(m, q) != count; i++)
		event_loop_poll(m->loop, 10);
	ck_assert_uint_eq(driver_used(m, q), count);
}

#endif
