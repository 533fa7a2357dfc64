/*
 * The bus: configuration cycles (mechanism 1; ECAM's window is in pci_host.c), BAR decoding, reset, and the address assignment that firmware
 * would do. Invariant: a BAR is on the bus exactly if memory decoding is on, its address is not 0, does not wrap, and
 * no other region was in its way at the last change; so overlapping BARs are harmless, the first one wins.
 *
 * PCI Local Bus 3.0 §3.2.2.3.2 (mechanism 1), §6.2.5.1 (BARs).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/bytes.h"
#include "vmm/error.h"
#include "vmm/mem.h"
#include "pci_internal.h"

#define CONFIG_PORT 0xcf8
#define RESET_PORT 0xcf9
#define RESET_CPU 0x04

static struct pci_device *device_at(struct pci_bus *pci, unsigned bdf)
{
	if (bdf >> 8 || bdf & 7)
		return NULL;
	return pci->devices[bdf >> 3 & 31];
}

uint32_t pci_config_read(struct pci_bus *pci, unsigned bdf, unsigned offset, unsigned size)
{
	struct pci_device *dev = device_at(pci, bdf);
	uint32_t ones = size == 4 ? ~0u : (1u << size * 8) - 1;

	if (!dev || (size != 1 && size != 2 && size != 4) || offset & (size - 1) || offset >= PCI_CONFIG_BYTES)
		return ones;
	if (dev->ops && dev->ops->config_reading)
		dev->ops->config_reading(dev, offset, size);
	return bytes_load(dev->state.config + offset, size);
}

static bool touches(unsigned offset, unsigned size, unsigned start, unsigned end)
{
	return offset < end && offset + size > start;
}

void pci_config_write(struct pci_bus *pci, unsigned bdf, unsigned offset, unsigned size, uint32_t value)
{
	struct pci_device *dev = device_at(pci, bdf);

	if (!dev || (size != 1 && size != 2 && size != 4) || offset & (size - 1) || offset >= PCI_CONFIG_BYTES)
		return;
	for (unsigned i = 0; i < size; i++) {
		uint8_t mask = dev->write_mask[offset + i];
		uint8_t *byte = &dev->state.config[offset + i];

		*byte = (*byte & ~mask) | ((value >> i * 8) & mask);
	}
	if (touches(offset, size, PCI_COMMAND, PCI_COMMAND + 2)) {
		pci_intx_update(dev);
		pci_msix_update(dev);
		pci_update_bars(pci);
	} else if (touches(offset, size, PCI_BAR0, PCI_BAR0 + 4 * PCI_BARS)) {
		pci_update_bars(pci);
	}
	if (dev->msix_cap && touches(offset, size, dev->msix_cap + 2, dev->msix_cap + 4)) {
		pci_msix_update(dev);
		pci_intx_update(dev);
	}
	if (dev->ops && dev->ops->config_written)
		dev->ops->config_written(dev, offset, size);
}

static uint64_t bar_address(const struct pci_device *dev, unsigned index)
{
	const struct pci_bar *bar = &dev->bars[index];

	return bytes_load(dev->state.config + PCI_BAR0 + 4 * index, bar->is_64bit ? 8 : 4) & ~(bar->size - 1);
}

static uint64_t bar_wanted(const struct pci_device *dev, unsigned index)
{
	const struct pci_bar *bar = &dev->bars[index];
	uint64_t base;

	if (!bar->size || !(dev->state.config[PCI_COMMAND] & PCI_COMMAND_MEMORY))
		return 0;
	base = bar_address(dev, index);
	return base + bar->size - 1 < base ? 0 : base;
}

static void map_wanted(struct pci_bus *pci, struct pci_device *dev, unsigned index)
{
	struct pci_bar *bar = &dev->bars[index];
	uint64_t base = bar_wanted(dev, index);

	if (!base || bar->mapped || bus_add(pci->bus, BUS_MMIO, base, bar->size, bar->ops, bar->ctx, dev->name))
		return;
	bar->mapped = true;
	bar->mapped_at = base;
	if (dev->ops && dev->ops->bar_changed)
		dev->ops->bar_changed(dev, index);
}

static void unmap_unwanted(struct pci_bus *pci, struct pci_device *dev, unsigned index)
{
	struct pci_bar *bar = &dev->bars[index];

	if (!bar->mapped || bar_wanted(dev, index) == bar->mapped_at)
		return;
	bus_remove(pci->bus, BUS_MMIO, bar->mapped_at);
	bar->mapped = false;
	if (dev->ops && dev->ops->bar_changed)
		dev->ops->bar_changed(dev, index);
}

void pci_update_bars(struct pci_bus *pci)
{
	for (unsigned slot = 0; slot < PCI_SLOTS; slot++)
		for (unsigned bar = 0; pci->devices[slot] && bar < PCI_BARS; bar++)
			unmap_unwanted(pci, pci->devices[slot], bar);
	for (unsigned slot = 0; slot < PCI_SLOTS; slot++)
		for (unsigned bar = 0; pci->devices[slot] && bar < PCI_BARS; bar++)
			map_wanted(pci, pci->devices[slot], bar);
}

uint64_t pci_bar_address(const struct pci_device *dev, unsigned bar)
{
	return bar < PCI_BARS && dev->bars[bar].mapped ? dev->bars[bar].mapped_at : 0;
}

/* ---- ports 0xcf8..0xcff ---- */

static bool port_target(struct pci_bus *pci, uint64_t offset, unsigned *bdf, unsigned *reg)
{
	uint32_t address = pci->state.config_address;

	if (!(address >> 31))
		return false;
	*bdf = address >> 8 & 0xffff;
	*reg = (address & 0xfc) + (offset & 3);
	return true;
}

static uint64_t port_read(void *opaque, uint64_t offset, unsigned size)
{
	struct pci_bus *pci = opaque;
	unsigned bdf, reg;

	if (offset == 0 && size == 4)
		return pci->state.config_address;
	if (offset == RESET_PORT - CONFIG_PORT && size == 1)
		return pci->state.reset_control;
	if (offset >= 4 && port_target(pci, offset, &bdf, &reg))
		return pci_config_read(pci, bdf, reg, size);
	return ~0ull;
}

static void port_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	struct pci_bus *pci = opaque;
	unsigned bdf, reg;

	if (offset == 0 && size == 4) {
		pci->state.config_address = value & 0x80fffffc;
	} else if (offset == RESET_PORT - CONFIG_PORT && size == 1) {
		pci->state.reset_control = value & 0x0a; /* the trigger, bit 2, does not stick */
		if (value & RESET_CPU && pci->reset)
			pci->reset(pci->reset_ctx);
	} else if (offset >= 4 && port_target(pci, offset, &bdf, &reg)) {
		pci_config_write(pci, bdf, reg, size, value);
	}
}

static const struct bus_ops port_ops = {port_read, port_write};

/* ---- life ---- */

int pci_bus_create(struct bus *bus, const struct irq_line lines[4], struct msi_sink msi, void (*reset)(void *ctx),
	void *reset_ctx, struct pci_bus **out, struct error *err)
{
	struct pci_bus *pci = calloc(1, sizeof(*pci));
	int ret;

	if (!pci)
		return error_set(err, -ENOMEM, "no memory for the PCI bus");
	pci->bus = bus;
	memcpy(pci->lines, lines, sizeof(pci->lines));
	pci->msi = msi;
	pci->reset = reset;
	pci->reset_ctx = reset_ctx;
	ret = bus_add(bus, BUS_PIO, CONFIG_PORT, 8, &port_ops, pci, "pci-config");
	if (ret)
		goto fail;
	pci_host_init(pci);
	pci_host_update_ecam(pci);
	if (!pci->ecam) {
		bus_remove(bus, BUS_PIO, CONFIG_PORT);
		ret = -EEXIST;
		goto fail;
	}
	*out = pci;
	return 0;
fail:
	free(pci);
	return error_set(err, ret, "the PCI configuration window overlaps another device");
}

void pci_bus_destroy(struct pci_bus *pci)
{
	if (!pci)
		return;
	for (unsigned slot = 1; slot < PCI_SLOTS; slot++) {
		struct pci_device *dev = pci->devices[slot];

		if (!dev)
			continue;
		dev->state.config[PCI_COMMAND] = 0;
		for (unsigned bar = 0; bar < PCI_BARS; bar++)
			unmap_unwanted(pci, dev, bar);
		pci->devices[slot] = NULL;
		if (dev->ops && dev->ops->destroy)
			dev->ops->destroy(dev);
	}
	bus_remove(pci->bus, BUS_PIO, CONFIG_PORT);
	pci_host_destroy(pci);
	free(pci);
}

void pci_bus_reset(struct pci_bus *pci)
{
	memset(&pci->state, 0, sizeof(pci->state));
	for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
		struct pci_device *dev = pci->devices[slot];

		if (!dev)
			continue;
		memset(&dev->state, 0, sizeof(dev->state));
		memcpy(dev->state.config, dev->initial, PCI_CONFIG_BYTES);
		for (unsigned i = 0; i < PCI_MSIX_VECTORS_MAX; i++)
			dev->state.msix[i].control = 1;
		pci_intx_update(dev);
	}
	pci_update_bars(pci);
	for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
		struct pci_device *dev = pci->devices[slot];

		if (dev && dev->ops && dev->ops->reset)
			dev->ops->reset(dev);
	}
}

void pci_bars_above_4g(const struct pci_bus *pci, uint64_t *first, uint64_t *end)
{
	for (unsigned slot = 0; slot < PCI_SLOTS; slot++)
		for (unsigned n = 0; pci->devices[slot] && n < PCI_BARS; n++) {
			const struct pci_bar *bar = &pci->devices[slot]->bars[n];
			uint64_t base = bar->size && bar->is_64bit ? bar_address(pci->devices[slot], n) : 0;

			if (base < GPA_HIGH_RAM || base + bar->size < base)
				continue;
			*first = base < *first ? base : *first;
			*end = base + bar->size > *end ? base + bar->size : *end;
		}
}

struct pci_device *pci_bus_device(struct pci_bus *pci, unsigned slot)
{
	return slot < PCI_SLOTS ? pci->devices[slot] : NULL;
}

int pci_device_add(struct pci_bus *pci, struct pci_device *dev, unsigned slot, struct error *err)
{
	for (unsigned i = 1; !slot && i < PCI_SLOTS; i++)
		if (!pci->devices[i])
			slot = i;
	if (!slot)
		return error_set(err, -ENOSPC, "no free PCI slot for %s: at most %d devices fit", dev->name,
			PCI_SLOTS - 2);
	if (slot >= PCI_SLOTS || pci->devices[slot])
		return error_set(err, -EBUSY, "PCI slot %u for %s is taken", slot, dev->name);
	dev->bus = pci;
	dev->slot = slot;
	memcpy(dev->initial, dev->state.config, PCI_CONFIG_BYTES);
	pci->devices[slot] = dev;
	return 0;
}

static int assign_bar(struct pci_device *dev, unsigned index, uint64_t *low, uint64_t *high)
{
	struct pci_bar *bar = &dev->bars[index];
	uint8_t *reg = dev->state.config + PCI_BAR0 + 4 * index;
	uint64_t base = (*low + bar->size - 1) & ~(bar->size - 1);

	if (base + bar->size <= GPA_PCI_MMIO_END) {
		*low = base + bar->size;
	} else if (bar->is_64bit) {
		base = (*high + bar->size - 1) & ~(bar->size - 1);
		if (base + bar->size > GPA_PCI_MMIO64 + GPA_PCI_MMIO64_SIZE)
			return -ENOSPC;
		*high = base + bar->size;
	} else {
		return -ENOSPC;
	}
	bytes_store(reg, 4, (base & 0xffffffff) | (reg[0] & 0xf));
	if (bar->is_64bit)
		bytes_store(reg + 4, 4, base >> 32);
	return 0;
}

int pci_bus_assign(struct pci_bus *pci, const uint8_t irq_numbers[4], struct error *err)
{
	uint64_t low = GPA_PCI_HOLE, high = GPA_PCI_MMIO64;

	for (unsigned slot = 1; slot < PCI_SLOTS; slot++) {
		struct pci_device *dev = pci->devices[slot];

		if (!dev)
			continue;
		for (unsigned bar = 0; bar < PCI_BARS; bar++)
			if (dev->bars[bar].size && assign_bar(dev, bar, &low, &high))
				return error_set(err, -ENOSPC, "no address space is left for the registers of %s",
					dev->name);
		if (dev->state.config[PCI_INTERRUPT_PIN])
			dev->state.config[PCI_INTERRUPT_LINE] = irq_numbers[slot & 3];
	}
	pci_update_bars(pci);
	return 0;
}
