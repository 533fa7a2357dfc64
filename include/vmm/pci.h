/*
 * PCI: one root bus (bus 0) with configuration mechanism 1 (ports 0xcf8/0xcfc), the memory-mapped ECAM of PCI
 * Express (GPA_ECAM, unless firmware moves it), a host bridge at 00:00.0 and an ISA bridge at 00:1f.0 with the identities
 * that firmware expects (pci_host.c). A device is a configuration space with a write mask for every
 * byte, up to six memory BARs, an optional MSI-X capability with a BAR of its own, and one INTx pin.
 *
 * Interrupt pins are swizzled as on a PC: pin p (0 = INTA) of slot s drives line (s + p) & 3.
 * Everything here is called with the device lock held, or before vcpus run.
 */
#ifndef VMM_PCI_H
#define VMM_PCI_H

#include <stdbool.h>
#include <stdint.h>

#include "vmm/bus.h"

struct error;
struct pci_bus;

#define PCI_CONFIG_BYTES 4096
#define PCI_SLOTS 32
#define PCI_LPC_SLOT 31
#define PCI_BARS 6
#define PCI_MSIX_VECTORS_MAX 64

/* Configuration space offsets, PCI 3.0 §6.1. */
enum {
	PCI_VENDOR_ID = 0x00,
	PCI_DEVICE_ID = 0x02,
	PCI_COMMAND = 0x04,
	PCI_STATUS = 0x06,
	PCI_REVISION = 0x08,
	PCI_CLASS_PROG = 0x09,
	PCI_CLASS = 0x0a, /* 16 bits: subclass, class */
	PCI_HEADER_TYPE = 0x0e,
	PCI_BAR0 = 0x10,
	PCI_SUBSYSTEM_VENDOR_ID = 0x2c,
	PCI_SUBSYSTEM_ID = 0x2e,
	PCI_CAPABILITY_LIST = 0x34,
	PCI_INTERRUPT_LINE = 0x3c,
	PCI_INTERRUPT_PIN = 0x3d,
};

#define PCI_COMMAND_MEMORY 0x0002
#define PCI_COMMAND_MASTER 0x0004
#define PCI_COMMAND_INTX_DISABLE 0x0400
#define PCI_STATUS_INTERRUPT 0x0008
#define PCI_STATUS_CAPABILITIES 0x0010

#define PCI_CAP_VENDOR 0x09
#define PCI_CAP_MSIX 0x11

struct pci_msix_entry {
	uint64_t addr;
	uint32_t data;
	uint32_t control; /* bit 0: masked */
};

/* What a snapshot saves. */
struct pci_device_state {
	uint8_t config[PCI_CONFIG_BYTES];
	struct pci_msix_entry msix[PCI_MSIX_VECTORS_MAX];
	uint64_t msix_pending; /* one bit for each vector */
	uint32_t intx_level;   /* the device asserts its pin, whatever the disable bit says */
};

struct pci_device;

/* Each may be NULL. */
struct pci_device_ops {
	/* Before bytes of configuration space are read by the guest: the device may update state.config. */
	void (*config_reading)(struct pci_device *dev, unsigned offset, unsigned size);
	/* After the guest has written configuration space (write masks applied). */
	void (*config_written)(struct pci_device *dev, unsigned offset, unsigned size);
	/* A BAR has appeared on the bus, moved or gone; see pci_bar_address(). */
	void (*bar_changed)(struct pci_device *dev, unsigned bar);
	/* Machine reset; configuration space is already back to its initial values. */
	void (*reset)(struct pci_device *dev);
	/* Frees the device (pci_bus_destroy). */
	void (*destroy)(struct pci_device *dev);
};

struct pci_bar {
	uint64_t size; /* 0: no such BAR; a power of two, 16 at least */
	const struct bus_ops *ops;
	void *ctx;
	bool is_64bit;
	bool mapped;
	uint64_t mapped_at;
};

/* Embedded in the device, zeroed, filled by pci_device_init() and the functions below, then pci_device_add(). */
struct pci_device {
	struct pci_device_state state;
	/* Set at create. */
	const char *name; /* static */
	const struct pci_device_ops *ops;
	struct pci_bus *bus;
	unsigned slot;
	uint8_t write_mask[PCI_CONFIG_BYTES];
	uint8_t initial[PCI_CONFIG_BYTES]; /* configuration space at pci_device_add(), restored by a reset */
	struct pci_bar bars[PCI_BARS];
	unsigned next_cap, last_cap;
	unsigned msix_cap; /* offset of the capability, 0 if none */
	unsigned msix_vectors;
	unsigned msix_bar;
};

/*
 * Creates the bus and its host bridge and claims the ports and the ECAM window on `bus`. lines: INTA to INTD, level
 * triggered. reset(reset_ctx) is called when the guest asks for a reset through port 0xcf9.
 */
int pci_bus_create(struct bus *bus, const struct irq_line lines[4], struct msi_sink msi, void (*reset)(void *ctx),
	void *reset_ctx, struct pci_bus **pci, struct error *err);
/* Destroys all devices (ops->destroy) and the bus. */
void pci_bus_destroy(struct pci_bus *pci);
/* Machine reset: every device's configuration space and then its ops->reset. BARs lose their addresses. */
void pci_bus_reset(struct pci_bus *pci);
/*
 * Does what firmware would: gives every BAR an address in the 32-bit window (64-bit ones that do not fit go above
 * 4 GiB) and writes irq_numbers[line] to each interrupt line register. Call after the last pci_device_add() and
 * after each reset of a directly booted machine. 0, or -ENOSPC.
 */
int pci_bus_assign(struct pci_bus *pci, const uint8_t irq_numbers[4], struct error *err);
/*
 * For a machine that starts through firmware: C0000 … FFFFF shows RAM or ROM as the host bridge's PAM registers say, ROM
 * alone after each reset. The ROM's rom_size bytes at rom_offset of the memfd end at 1 MiB. Once, before vcpus run. 0 or
 * -EEXIST.
 */
struct guest_mem;
int pci_host_set_shadow(struct pci_bus *pci, struct guest_mem *mem, uint64_t rom_offset, uint64_t rom_size);
/* Where the ECAM is decoded at the moment, 0: nowhere. */
uint64_t pci_ecam_address(const struct pci_bus *pci);
/* The smallest and the largest address + 1 of the BARs above 4 GiB, if there are any; else both stay as they are. */
void pci_bars_above_4g(const struct pci_bus *pci, uint64_t *first, uint64_t *end);
/* The device at a slot of bus 0 or NULL. */
struct pci_device *pci_bus_device(struct pci_bus *pci, unsigned slot);

/* Sets up a type 0 header. class_code: class, subclass, interface in 24 bits. */
void pci_device_init(struct pci_device *dev, const char *name, const struct pci_device_ops *ops, uint16_t vendor,
	uint16_t device, uint32_t class_code, uint8_t revision);
/* Gives the device an interrupt pin (INTA). */
void pci_device_set_pin(struct pci_device *dev);
/* Declares a memory BAR; a 64-bit one takes the next index too. ops see dev = ctx and offsets from the BAR's start. */
void pci_device_set_bar(struct pci_device *dev, unsigned bar, uint64_t size, bool is_64bit, bool prefetchable,
	const struct bus_ops *ops, void *ctx);
/* Appends a capability of `size` bytes (with its 2-byte header) and returns its offset. */
unsigned pci_device_add_cap(struct pci_device *dev, uint8_t id, unsigned size);
/* Adds MSI-X with `vectors` entries; BAR `bar` (32-bit, 4 KiB) holds the table at 0 and the PBA at 0x800. */
void pci_device_add_msix(struct pci_device *dev, unsigned bar, unsigned vectors);
/* Puts the device in a slot (1..30; 0 takes the first free one). -EBUSY if taken, -ENOSPC. */
int pci_device_add(struct pci_bus *pci, struct pci_device *dev, unsigned slot, struct error *err);

/* Address of a BAR if it is decoded at the moment, else 0. */
uint64_t pci_bar_address(const struct pci_device *dev, unsigned bar);

/* True if the guest has switched MSI-X on (INTx is then not used). */
bool pci_msix_enabled(const struct pci_device *dev);
/* Sends a vector, or remembers it as pending while it or the function is masked or may not master the bus. Unknown vectors
 * are dropped. */
void pci_msix_send(struct pci_device *dev, unsigned vector);
/* Drives the device's pin. */
void pci_intx_set(struct pci_device *dev, bool level);

/* Configuration access for tests and for the ports: size 1, 2 or 4, naturally aligned; others give all ones. */
uint32_t pci_config_read(struct pci_bus *pci, unsigned bdf, unsigned offset, unsigned size);
void pci_config_write(struct pci_bus *pci, unsigned bdf, unsigned offset, unsigned size, uint32_t value);

#endif
