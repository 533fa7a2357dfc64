/*
 * A device's side of the bus: building its configuration space, its MSI-X table and its interrupt pin.
 * PCI Local Bus 3.0 §6.1 (header), §6.7 (capabilities), §6.8.2 (MSI-X), §2.2.6 (INTx).
 *
 *   MSI-X table entry, 16 bytes:  | 0 address | 8 data | 12 control (bit 0: masked) |
 *   Capability: | 0 id | 1 next | 2 control: enable 15, function mask 14, size−1 10:0 | 4 table | 8 PBA |
 */
#include <assert.h>
#include <string.h>

#include "vmm/bytes.h"
#include "pci_internal.h"

#define MSIX_PBA_OFFSET 0x800
#define MSIX_ENABLE 0x8000
#define MSIX_FUNCTION_MASK 0x4000
#define MSIX_ENTRY_MASKED 1

void pci_device_init(struct pci_device *dev, const char *name, const struct pci_device_ops *ops, uint16_t vendor,
	uint16_t device, uint32_t class_code, uint8_t revision)
{
	uint8_t *config = dev->state.config;

	dev->name = name;
	dev->ops = ops;
	bytes_store(config + PCI_VENDOR_ID, 2, vendor);
	bytes_store(config + PCI_DEVICE_ID, 2, device);
	config[PCI_REVISION] = revision;
	bytes_store(config + PCI_CLASS_PROG, 1, class_code & 0xff);
	bytes_store(config + PCI_CLASS, 2, class_code >> 8);
	bytes_store(dev->write_mask + PCI_COMMAND, 2,
		PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE);
	dev->write_mask[0x0c] = 0xff; /* cache line size, without meaning */
	dev->next_cap = 0x40;
	for (unsigned i = 0; i < PCI_MSIX_VECTORS_MAX; i++)
		dev->state.msix[i].control = MSIX_ENTRY_MASKED;
}

void pci_device_set_pin(struct pci_device *dev)
{
	dev->state.config[PCI_INTERRUPT_PIN] = 1;
	dev->write_mask[PCI_INTERRUPT_LINE] = 0xff;
}

void pci_device_set_bar(struct pci_device *dev, unsigned index, uint64_t size, bool is_64bit, bool prefetchable,
	const struct bus_ops *ops, void *ctx)
{
	unsigned reg = PCI_BAR0 + 4 * index;

	assert(index + is_64bit < PCI_BARS && size >= 16 && !(size & (size - 1)));
	dev->bars[index] = (struct pci_bar){.size = size, .ops = ops, .ctx = ctx, .is_64bit = is_64bit};
	dev->state.config[reg] = (is_64bit ? 4 : 0) | (prefetchable ? 8 : 0);
	bytes_store(dev->write_mask + reg, is_64bit ? 8 : 4, ~(size - 1));
}

unsigned pci_device_add_cap(struct pci_device *dev, uint8_t id, unsigned size)
{
	unsigned offset = dev->next_cap;
	uint8_t *config = dev->state.config;

	assert(offset + size <= 256);
	config[offset] = id;
	config[offset + 1] = 0;
	config[dev->last_cap ? dev->last_cap + 1 : PCI_CAPABILITY_LIST] = offset;
	config[PCI_STATUS] |= PCI_STATUS_CAPABILITIES;
	dev->last_cap = offset;
	dev->next_cap = (offset + size + 3) & ~3u;
	return offset;
}

/* ---- MSI-X ---- */

static uint16_t msix_control(const struct pci_device *dev)
{
	return dev->msix_cap ? bytes_load(dev->state.config + dev->msix_cap + 2, 2) : 0;
}

bool pci_msix_enabled(const struct pci_device *dev)
{
	return msix_control(dev) & MSIX_ENABLE;
}

/* A message is a write to memory: one that may not be made waits as a masked one does. */
static bool vector_masked(const struct pci_device *dev, unsigned vector)
{
	return !(dev->state.config[PCI_COMMAND] & PCI_COMMAND_MASTER) || msix_control(dev) & MSIX_FUNCTION_MASK || dev->state.msix[vector].control & MSIX_ENTRY_MASKED;
}

void pci_msix_send(struct pci_device *dev, unsigned vector)
{
	if (!pci_msix_enabled(dev) || vector >= dev->msix_vectors)
		return;
	if (vector_masked(dev, vector))
		dev->state.msix_pending |= 1ull << vector;
	else
		msi_send(&dev->bus->msi, dev->state.msix[vector].addr, dev->state.msix[vector].data);
}

void pci_msix_update(struct pci_device *dev)
{
	if (!pci_msix_enabled(dev))
		return;
	for (unsigned vector = 0; vector < dev->msix_vectors; vector++)
		if (dev->state.msix_pending >> vector & 1 && !vector_masked(dev, vector)) {
			dev->state.msix_pending &= ~(1ull << vector);
			pci_msix_send(dev, vector);
		}
}

static uint32_t msix_read32(struct pci_device *dev, uint64_t offset)
{
	const struct pci_msix_entry *entry = &dev->state.msix[offset / 16 % PCI_MSIX_VECTORS_MAX];

	if (offset >= MSIX_PBA_OFFSET)
		return offset < MSIX_PBA_OFFSET + 8 ? dev->state.msix_pending >> (offset & 4) * 8 : 0;
	if (offset / 16 >= dev->msix_vectors)
		return 0;
	switch (offset & 12) {
	case 0: return entry->addr;
	case 4: return entry->addr >> 32;
	case 8: return entry->data;
	default: return entry->control;
	}
}

static void msix_write32(struct pci_device *dev, uint64_t offset, uint32_t value)
{
	struct pci_msix_entry *entry;

	if (offset / 16 >= dev->msix_vectors)
		return;
	entry = &dev->state.msix[offset / 16];
	switch (offset & 12) {
	case 0: entry->addr = (entry->addr & ~0xffffffffull) | (value & ~3u); break;
	case 4: entry->addr = (entry->addr & 0xffffffff) | (uint64_t)value << 32; break;
	case 8: entry->data = value; break;
	default:
		entry->control = value & MSIX_ENTRY_MASKED;
		pci_msix_update(dev);
	}
}

/* Aligned accesses of 4 and 8 bytes; the specification leaves the others undefined. */
static uint64_t msix_read(void *opaque, uint64_t offset, unsigned size)
{
	if (size < 4 || offset & (size - 1))
		return 0;
	return msix_read32(opaque, offset) | (size == 8 ? (uint64_t)msix_read32(opaque, offset + 4) << 32 : 0);
}

static void msix_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	if (size < 4 || offset & (size - 1))
		return;
	msix_write32(opaque, offset, value);
	if (size == 8)
		msix_write32(opaque, offset + 4, value >> 32);
}

static const struct bus_ops msix_ops = {msix_read, msix_write};

void pci_device_add_msix(struct pci_device *dev, unsigned bar, unsigned vectors)
{
	unsigned cap = pci_device_add_cap(dev, PCI_CAP_MSIX, 12);

	assert(vectors && vectors <= PCI_MSIX_VECTORS_MAX && !dev->msix_cap);
	dev->msix_cap = cap;
	dev->msix_vectors = vectors;
	dev->msix_bar = bar;
	pci_device_set_bar(dev, bar, 4096, false, false, &msix_ops, dev);
	bytes_store(dev->state.config + cap + 2, 2, vectors - 1);
	bytes_store(dev->state.config + cap + 4, 4, bar);
	bytes_store(dev->state.config + cap + 8, 4, MSIX_PBA_OFFSET | bar);
	bytes_store(dev->write_mask + cap + 2, 2, MSIX_ENABLE | MSIX_FUNCTION_MASK);
}

/* ---- INTx ---- */

static bool pin_asserted(const struct pci_device *dev)
{
	return dev->state.intx_level && !pci_msix_enabled(dev) &&
	       !(bytes_load(dev->state.config + PCI_COMMAND, 2) & PCI_COMMAND_INTX_DISABLE);
}

void pci_intx_update(struct pci_device *dev)
{
	struct pci_bus *pci = dev->bus;
	bool level = false;

	if (dev->state.intx_level)
		dev->state.config[PCI_STATUS] |= PCI_STATUS_INTERRUPT;
	else
		dev->state.config[PCI_STATUS] &= ~PCI_STATUS_INTERRUPT;
	if (!dev->state.config[PCI_INTERRUPT_PIN])
		return;
	for (unsigned slot = dev->slot & 3; slot < PCI_SLOTS; slot += 4)
		level |= pci->devices[slot] && pin_asserted(pci->devices[slot]);
	irq_line_set(&pci->lines[dev->slot & 3], level);
}

void pci_intx_set(struct pci_device *dev, bool level)
{
	if (dev->state.intx_level == level)
		return;
	dev->state.intx_level = level;
	pci_intx_update(dev);
}
