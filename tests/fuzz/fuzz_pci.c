/*
 * Configuration cycles and register accesses of a machine with a virtio-rng device, as the input says.
 * Input: records of 1 byte kind, 1 byte size, 4 bytes address, 4 bytes value.
 */
#include <stdlib.h>

#include "vmm/bus.h"
#include "vmm/bytes.h"
#include "vmm/log.h"
#include "vmm/mem.h"
#include "vmm/pci.h"
#include "vmm/virtio.h"
#include "vmm/virtio_pci.h"
#include "fuzz.h"

static void one_access(struct bus *bus, struct byte_reader *r)
{
	uint8_t kind = bytes_get8(r);
	unsigned size = 1u << (bytes_get8(r) & 3);
	uint64_t addr = bytes_get32(r), value = bytes_get32(r) * 0x100000001ull;

	if (kind & 0x80) { /* what only firmware writes: shadow RAM's registers, and the RAM behind the ROM */
		if (kind & 0x40)
			bus_access(bus, BUS_MMIO, 0xc0000 + (addr & 0x3ffff), size, kind & 1, &value);
		else
			bus_access(bus, BUS_MMIO, GPA_ECAM + 0x60 + (addr & 0x3f), size, true, &value);
		return;
	}
	switch (kind >> 1 & 3) {
	case 0: bus_access(bus, BUS_PIO, 0xcf8 + (addr & 7), size > 4 ? 4 : size, kind & 1, &value); break;
	case 1: bus_access(bus, BUS_MMIO, GPA_ECAM + (addr & 0xffff), size, kind & 1, &value); break;
	case 2: bus_access(bus, BUS_MMIO, GPA_PCI_HOLE + (addr & 0xffff), size, kind & 1, &value); break;
	case 3: bus_access(bus, BUS_MMIO, addr, size, kind & 1, &value); break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	static const uint8_t irqs[4] = {16, 17, 18, 19};
	struct byte_reader r = {.data = data, .size = size};
	struct irq_line lines[4] = {0};
	struct virtio_device *dev;
	struct virtio_pci *vpci;
	struct guest_mem *mem;
	struct pci_bus *pci;
	struct bus *bus;

	log_set_level(LOG_ERROR);
	if (mem_create(1 << 20, &mem, NULL) || bus_create(&lock, &bus, NULL) ||
		pci_bus_create(bus, lines, (struct msi_sink){0}, NULL, NULL, &pci, NULL) ||
		virtio_rng_create(mem, &dev, NULL) || virtio_pci_create(pci, 0, NULL, dev, &vpci, NULL))
		abort();
	pci_bus_assign(pci, irqs, NULL);
	if (pci_host_set_shadow(pci, mem, 0, 0x20000))
		abort();
	while (r.pos < size)
		one_access(bus, &r);
	pci_bus_reset(pci);
	pci_bus_destroy(pci);
	bus_destroy(bus);
	mem_destroy(mem);
	return 0;
}
