/*
 * What the machine starts: tells GUEST and --kernel by content, loads a kernel directly, or prepares the firmware
 * and the fw_cfg items that it reads. Used at the first start and at each reset.
 */
#include <errno.h>
#include <string.h>

#include "machine_internal.h"
#include "vmm/boot_acpi.h"
#include "vmm/dev_fw_cfg.h"
#include "vmm/error.h"
#include "vmm/log.h"
#include "vmm/mem.h"
#include "vmm/pci.h"

/* Interrupt numbers for the PCI interrupt line registers: GSIs, since the machine is used with its IOAPIC. */
static const uint8_t pci_irqs_direct[4] = {16, 17, 18, 19};

int machine_boot_choose(struct machine *m, struct error *err)
{
	const struct machine_config *config = m->config;
	struct boot_request *boot = &m->boot;
	enum boot_kind guest_kind = BOOT_FIRMWARE;

	memset(boot, 0, sizeof(*boot));
	boot->kind = BOOT_FIRMWARE;
	boot->initrd = config->initrd;
	boot->append = config->append;
	boot->firmware = config->firmware;
	boot->cpus = config->cpus;
	if (config->guest) {
		guest_kind = boot_identify(config->guest, err);
		if (guest_kind == BOOT_INVALID)
			return err->code ? err->code : -ENOEXEC;
	}
	if (config->kernel) {
		if (guest_kind != BOOT_FIRMWARE)
			return error_set(err, -EINVAL, "Both GUEST and --kernel are kernels; give one of them.");
		boot->kind = boot_identify(config->kernel, err);
		boot->kernel = config->kernel;
		if (boot->kind == BOOT_INVALID)
			return err->code ? err->code : -ENOEXEC;
		if (boot->kind == BOOT_FIRMWARE)
			return error_set(err, -ENOEXEC, "%.300s is not a kernel: neither a bzImage nor an x86 ELF file.",
				config->kernel);
	} else if (guest_kind != BOOT_FIRMWARE) {
		boot->kind = guest_kind;
		boot->kernel = config->guest;
	}
	m->firmware = boot->kind == BOOT_FIRMWARE;
	if (!m->firmware && config->firmware)
		return error_set(err, -EINVAL, "A kernel is started directly; leave --firmware out, or the kernel.");
	if (m->firmware && (config->initrd || config->append))
		return error_set(err, -EINVAL, "--initrd and --append need a kernel (--kernel).");
	return m->firmware ? machine_guest_examine(m, err) : 0;
}

/* What SeaBIOS asks fw_cfg for. Once: the items outlive a reset. */
static int firmware_items_add(struct machine *m, struct error *err)
{
	const struct acpi_config acpi = {.cpus = m->config->cpus};
	struct boot_e820 e820[BOOT_E820_MAX];
	unsigned count = boot_e820_build(m->mem, 1, e820);
	struct acpi_tables tables;
	int rc = acpi_tables_build(&acpi, &tables, err);

	if (rc)
		return rc;
	rc = fw_cfg_add_u64(m->fw_cfg, FW_CFG_RAM_SIZE, m->mem->size);
	if (!rc)
		rc = fw_cfg_add_u16(m->fw_cfg, FW_CFG_NB_CPUS, (uint16_t)m->config->cpus);
	if (!rc)
		rc = fw_cfg_add_u16(m->fw_cfg, FW_CFG_MAX_CPUS, (uint16_t)m->config->cpus);
	if (!rc)
		rc = fw_cfg_add_u16(m->fw_cfg, FW_CFG_NOGRAPHIC, 1);
	if (!rc)
		rc = fw_cfg_add_file(m->fw_cfg, "etc/e820", e820, count * sizeof(e820[0]));
	if (!rc)
		rc = fw_cfg_add_file(m->fw_cfg, "etc/acpi/tables", tables.tables, tables.tables_size);
	if (!rc)
		rc = fw_cfg_add_file(m->fw_cfg, "etc/acpi/rsdp", tables.rsdp, tables.rsdp_size);
	if (!rc)
		rc = fw_cfg_add_file(m->fw_cfg, "etc/table-loader", tables.loader, tables.loader_size);
	acpi_tables_free(&tables);
	return rc ? error_set(err, rc, "The firmware's configuration items could not be set up.") : 0;
}

/* RAM is zero; vcpus do not run; device lock held or not needed yet. */
int machine_boot_load(struct machine *m, struct error *err)
{
	struct boot_result result;
	int rc;

	cpu_reset(&m->initial, true);
	rc = m->firmware ? 0 : pci_bus_assign(m->pci, pci_irqs_direct, err);
	if (!rc)
		rc = boot_load(&m->boot, m->mem, &m->initial, &result, err);
	if (!rc && m->firmware && !m->resets)
		rc = firmware_items_add(m, err);
	if (!rc)
		log_message(LOG_INFO, "started as %s at %#llx", result.protocol, (unsigned long long)result.entry);
	return rc;
}
