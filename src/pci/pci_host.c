/*
 * The two devices of a chip set that firmware must know in order to come up, with the identities and the registers of
 * Intel's Q35 memory controller hub (00:00.0, data sheet 316966, 5.1) and ICH9 LPC bridge (00:1f.0, 316972, 13.1), as
 * far as SeaBIOS and OVMF look at them:
 *
 *   MCH  60h PCIEXBAR  31:26 base | 2:1 length 256, 128, 64 MiB | 0 enable        where the ECAM lies
 *        90h PAM0      5:4 F0000                                   } 1 reads come from RAM, not from ROM
 *        91h … 96h     5:4 and 1:0, 16 KiB each from C0000 on      } 2 writes go to RAM
 *   LPC  40h PMBASE, 44h ACPI_CNTL: fixed, the ACPI registers are at 600h; 60h … PIRQ routing: kept, without effect
 *
 * Shadow RAM is a matter of the memory layout: a segment shows RAM or the end of the firmware's ROM (nothing, above
 * which it has no ROM). Where reads come from ROM and writes go to RAM, or where there is nothing, writes come here.
 */
#include <assert.h>
#include <string.h>

#include "vmm/bytes.h"
#include "vmm/mem.h"
#include "pci_internal.h"

#define INTEL 0x8086
#define Q35_MCH 0x29c0
#define ICH9_LPC 0x2918

#define MCH_PCIEXBAR 0x60
#define MCH_PAM 0x90
#define MCH_PAM_COUNT 7
#define LPC_PMBASE 0x40
#define LPC_ACPI_CNTL 0x44
#define LPC_PIRQ_A 0x60
#define LPC_PIRQ_E 0x68
#define LPC_RCBA 0xf0

#define SHADOW_START 0xc0000ull
#define SHADOW_END 0x100000ull
#define SEGMENTS 13
#define PAM_READ 1
#define PAM_WRITE 2

static uint64_t segment_gpa(unsigned n)
{
	return n == SEGMENTS - 1 ? 0xf0000 : SHADOW_START + n * 0x4000ull;
}

static uint64_t segment_size(unsigned n)
{
	return n == SEGMENTS - 1 ? 0x10000 : 0x4000;
}

/* Segments in the order of their addresses; PAM0 has the last one. */
static unsigned segment_access(const struct pci_bus *pci, unsigned n)
{
	const uint8_t *pam = pci->host_bridge.state.config + MCH_PAM;

	if (n == SEGMENTS - 1)
		return pam[0] >> 4 & 3;
	return pam[1 + n / 2] >> (n % 2 * 4) & 3;
}

static struct mem_mapping segment_mapping(const struct pci_bus *pci, unsigned n)
{
	unsigned access = segment_access(pci, n);
	uint64_t gpa = segment_gpa(n), rom_start = SHADOW_END - pci->rom_size;
	struct mem_mapping map = {.gpa = gpa, .size = segment_size(n), .offset = gpa};

	if (access & PAM_READ) {
		map.access = access & PAM_WRITE ? MEM_RAM : MEM_ROM;
	} else if (gpa >= rom_start) {
		map.offset = pci->rom_offset + (gpa - rom_start);
		map.access = access & PAM_WRITE ? MEM_ROM_EXIT : MEM_ROM;
	} else {
		map.access = MEM_NONE;
	}
	return map;
}

static void shadow_update(struct pci_bus *pci)
{
	struct mem_mapping maps[SEGMENTS];
	int rc;

	if (!pci->mem)
		return;
	for (unsigned n = 0; n < SEGMENTS; n++)
		maps[n] = segment_mapping(pci, n);
	rc = mem_map(pci->mem, maps, SEGMENTS);
	assert(!rc); /* RAM_RANGE_MAX has room for them all */
	(void)rc;
}

/* Only where no memory is to be seen. */
static uint64_t shadow_read(void *ctx, uint64_t offset, unsigned size)
{
	return ~0ull;
}

static void shadow_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
	struct pci_bus *pci = ctx;
	uint8_t bytes[8];

	bytes_store(bytes, sizeof(bytes), value);
	for (unsigned i = 0; i < size; i++) {
		uint64_t gpa = SHADOW_START + offset + i;
		unsigned n = gpa >= 0xf0000 ? SEGMENTS - 1 : (unsigned)((gpa - SHADOW_START) / 0x4000);

		if (segment_access(pci, n) & PAM_WRITE)
			mem_store(pci->mem, gpa, bytes + i, 1);
	}
}

static const struct bus_ops shadow_ops = {shadow_read, shadow_write};

/* ---- ECAM: bus 27:20, device 19:15, function 14:12, register 11:0 ---- */

static uint64_t ecam_read(void *opaque, uint64_t offset, unsigned size)
{
	struct pci_bus *pci = opaque;

	if (size == 8 && !(offset & 7))
		return ecam_read(pci, offset, 4) | ecam_read(pci, offset + 4, 4) << 32;
	if (size == 8)
		return ~0ull;
	return pci_config_read(pci, offset >> 12, offset & 0xfff, size);
}

static void ecam_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	struct pci_bus *pci = opaque;

	if (size == 8 && !(offset & 7)) {
		ecam_write(pci, offset, 4, value & 0xffffffff);
		ecam_write(pci, offset + 4, 4, value >> 32);
	} else if (size != 8) {
		pci_config_write(pci, offset >> 12, offset & 0xfff, size, value);
	}
}

static const struct bus_ops ecam_ops = {ecam_read, ecam_write};

/* 0: switched off, or a length that does not exist. */
static uint64_t ecam_wanted(const struct pci_bus *pci, uint64_t *size)
{
	uint64_t value = bytes_load(pci->host_bridge.state.config + MCH_PCIEXBAR, 8);

	*size = GPA_ECAM_SIZE >> (value >> 1 & 3);
	return value & 1 && (value >> 1 & 3) != 3 ? value & 0xffc000000ull & ~(*size - 1) : 0;
}

/* Like a BAR: where another region is in its way, it is nowhere. */
void pci_host_update_ecam(struct pci_bus *pci)
{
	uint64_t size, base = ecam_wanted(pci, &size);

	if (base == pci->ecam && size == pci->ecam_size)
		return;
	if (pci->ecam)
		bus_remove(pci->bus, BUS_MMIO, pci->ecam);
	pci->ecam = base && !bus_add(pci->bus, BUS_MMIO, base, size, &ecam_ops, pci, "pci-ecam") ? base : 0;
	pci->ecam_size = size;
}

uint64_t pci_ecam_address(const struct pci_bus *pci)
{
	return pci->ecam;
}

/* ---- the devices ---- */

static void mch_written(struct pci_device *dev, unsigned offset, unsigned size)
{
	struct pci_bus *pci = dev->bus;

	if (offset < MCH_PAM + MCH_PAM_COUNT && offset + size > MCH_PAM)
		shadow_update(pci);
	if (offset < MCH_PCIEXBAR + 8 && offset + size > MCH_PCIEXBAR) {
		pci_host_update_ecam(pci);
		pci_update_bars(pci);
	}
}

static void mch_reset(struct pci_device *dev)
{
	shadow_update(dev->bus);
	pci_host_update_ecam(dev->bus);
}

static const struct pci_device_ops mch_ops = {.config_written = mch_written, .reset = mch_reset};

void pci_host_init(struct pci_bus *pci)
{
	struct pci_device *mch = &pci->host_bridge, *lpc = &pci->lpc_bridge;
	uint8_t *config;

	pci_device_init(mch, "host-bridge", &mch_ops, INTEL, Q35_MCH, 0x060000, 0);
	config = mch->state.config;
	bytes_store(config + MCH_PCIEXBAR, 8, GPA_ECAM | 1);
	bytes_store(mch->write_mask + MCH_PCIEXBAR, 8, 0xffc000007ull);
	config[MCH_PAM] = 0x30; /* all RAM, as a BIOS would leave it to a kernel that is started directly */
	memset(config + MCH_PAM + 1, 0x33, MCH_PAM_COUNT - 1);
	memset(mch->write_mask + MCH_PAM, 0x33, MCH_PAM_COUNT);
	mch->write_mask[MCH_PAM] = 0x30;
	mch->bus = pci;
	memcpy(mch->initial, config, PCI_CONFIG_BYTES);
	pci->devices[0] = mch;

	pci_device_init(lpc, "lpc-bridge", NULL, INTEL, ICH9_LPC, 0x060100, 2);
	config = lpc->state.config;
	config[PCI_COMMAND] = 0x07; /* I/O, memory and mastering: on for good (13.1.3) */
	lpc->write_mask[PCI_COMMAND] = lpc->write_mask[PCI_COMMAND + 1] = 0;
	bytes_store(config + LPC_PMBASE, 4, 0x600 | 1);
	config[LPC_ACPI_CNTL] = 0x80; /* enabled, SCI on IRQ 9 */
	for (unsigned i = 0; i < 4; i++) {
		config[LPC_PIRQ_A + i] = config[LPC_PIRQ_E + i] = 0x80; /* not routed to the 8259 */
		lpc->write_mask[LPC_PIRQ_A + i] = lpc->write_mask[LPC_PIRQ_E + i] = 0x8f;
	}
	bytes_store(lpc->write_mask + LPC_RCBA, 4, 0xffffc001);
	lpc->bus = pci;
	lpc->slot = PCI_LPC_SLOT;
	memcpy(lpc->initial, config, PCI_CONFIG_BYTES);
	pci->devices[PCI_LPC_SLOT] = lpc;
}

int pci_host_set_shadow(struct pci_bus *pci, struct guest_mem *mem, uint64_t rom_offset, uint64_t rom_size)
{
	struct pci_device *mch = &pci->host_bridge;
	int rc = bus_add(pci->bus, BUS_MMIO, SHADOW_START, SHADOW_END - SHADOW_START, &shadow_ops, pci, "shadow ram");

	if (rc)
		return rc;
	assert(rom_size % 0x4000 == 0 && rom_size <= SHADOW_END - SHADOW_START);
	pci->mem = mem;
	pci->rom_offset = rom_offset;
	pci->rom_size = rom_size;
	memset(mch->initial + MCH_PAM, 0, MCH_PAM_COUNT);
	memset(mch->state.config + MCH_PAM, 0, MCH_PAM_COUNT);
	shadow_update(pci);
	return 0;
}

void pci_host_destroy(struct pci_bus *pci)
{
	if (pci->mem)
		bus_remove(pci->bus, BUS_MMIO, SHADOW_START);
	if (pci->ecam)
		bus_remove(pci->bus, BUS_MMIO, pci->ecam);
}
