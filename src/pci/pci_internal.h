/* What the files of pci/ share. */
#ifndef VMM_PCI_INTERNAL_H
#define VMM_PCI_INTERNAL_H

#include "vmm/pci.h"

struct pci_bus_state {
	uint32_t config_address; /* port 0xcf8: enable bit 31, bus 23:16, device 15:11, function 10:8, register 7:2 */
	uint8_t reset_control;	 /* port 0xcf9 */
};

struct pci_bus {
	struct pci_bus_state state;
	/* Set at create. */
	struct bus *bus;
	struct irq_line lines[4];
	struct msi_sink msi;
	void (*reset)(void *ctx);
	void *reset_ctx;
	struct pci_device *devices[PCI_SLOTS];
	struct pci_device host_bridge, lpc_bridge;
	/* Shadow RAM; mem NULL: C0000 … FFFFF is plain RAM. */
	struct guest_mem *mem;
	uint64_t rom_offset, rom_size; /* what lies below 1 MiB: its end, in the memfd */
	/* Where the ECAM is on the bus, 0: nowhere. */
	uint64_t ecam, ecam_size;
};

/* pci_host.c: the host bridge and the LPC bridge are put in their slots; the ECAM where the register says. */
void pci_host_init(struct pci_bus *pci);
void pci_host_update_ecam(struct pci_bus *pci);
void pci_host_destroy(struct pci_bus *pci);

/* After a write to the MSI-X control register: sends what was pending if nothing holds it back any more. */
void pci_msix_update(struct pci_device *dev);
/* Recomputes the line that the device's pin is wired to, and its status bit. */
void pci_intx_update(struct pci_device *dev);
/* Puts BARs where the registers say. Tries again those that another region was in the way of. */
void pci_update_bars(struct pci_bus *pci);

#endif
