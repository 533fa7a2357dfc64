/*
 * The ACPI tables (ACPI 6.4), from one builder for both ways to boot. The builder lays all tables out in one blob
 * with addresses relative to the blob, and lists the pointers and checksums that depend on where it ends up:
 *
 *   direct boot   acpi_install() adds the address, sums, and writes blob and RSDP below 1 MiB
 *   firmware      the blobs go into fw_cfg as "etc/acpi/tables", "etc/acpi/rsdp" and "etc/table-loader": the last
 *                 holds the same list as linker-loader commands that SeaBIOS executes
 *
 * The fixed hardware that the tables describe is that of vmm/dev_acpi_pm.h (ports 0x600 …), the interrupt controllers
 * and HPET at the addresses of vmm/cpu_layout.h.
 */
#ifndef VMM_BOOT_ACPI_H
#define VMM_BOOT_ACPI_H

#include <stddef.h>
#include <stdint.h>

#include "vmm/error.h"

struct guest_mem;

#define ACPI_CPUS_MAX 255u

/* The four PCI interrupt lines: INTx# of device d is GSI 16 + (d + x) % 4, x = 0 for INTA#; level, active low. */
#define ACPI_PCI_GSI_BASE 16u

struct acpi_config {
	unsigned cpus; /* 1 … ACPI_CPUS_MAX */
	/* Where firmware has moved things to; 0: GPA_ECAM, GPA_PCI_MMIO64 and its size. The tables' sizes do not depend on it. */
	uint64_t ecam, mmio64, mmio64_size;
};

/* All owned; free with acpi_tables_free(). Addresses in `tables` and `rsdp` are relative to the blob, sums are 0. */
struct acpi_tables {
	uint8_t *tables; /* etc/acpi/tables */
	size_t tables_size;
	uint8_t *rsdp; /* etc/acpi/rsdp */
	size_t rsdp_size;
	uint8_t *loader; /* etc/table-loader: 128-byte commands */
	size_t loader_size;
};

/* Builds the three blobs. 0, -EINVAL (number of processors) or -ENOMEM. */
int acpi_tables_build(const struct acpi_config *config, struct acpi_tables *tables, struct error *err);
void acpi_tables_free(struct acpi_tables *tables);

/*
 * Executes the loader commands here: puts the RSDP and the tables at gpa (16-byte aligned, 0xE0000 … 1 MiB so that a
 * scanning guest finds them) and makes pointers and sums right. *rsdp_gpa is the RSDP's address. 0 or -E2BIG.
 */
int acpi_install(const struct acpi_tables *tables, struct guest_mem *mem, uint64_t gpa, uint64_t gpa_end,
	uint64_t *rsdp_gpa, struct error *err);

#endif
