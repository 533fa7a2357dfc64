/*
 * What the machine starts: tells GUEST and --kernel by content, loads a kernel directly, or puts the firmware in its
 * place. Used at the first start and at each reset.
 */
#include <errno.h>
#include <string.h>

#include "machine_internal.h"
#include "vmm/error.h"
#include "vmm/log.h"
#include "vmm/pci.h"

/* Interrupt numbers for the PCI interrupt line registers: GSIs, since the machine is used with its IOAPIC. */
static const uint8_t pci_irqs_direct[4] = {16, 17, 18, 19};

/* The names of the host's own firmware, or a path. */
static const char *firmware_path(const char *name)
{
	if (name && !strcmp(name, "bios"))
		return BOOT_FIRMWARE_DEFAULT;
	return name && !strcmp(name, "uefi") ? BOOT_FIRMWARE_UEFI : name;
}

int machine_boot_choose(struct machine *m, struct error *err)
{
	const struct machine_config *config = m->config;
	struct boot_request *boot = &m->boot;
	enum boot_kind guest_kind = BOOT_FIRMWARE;

	memset(boot, 0, sizeof(*boot));
	boot->kind = BOOT_FIRMWARE;
	boot->initrd = config->initrd;
	boot->append = config->append;
	boot->firmware = firmware_path(config->firmware);
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
	if (!m->firmware && (config->firmware_vars || config->firmware_log || config->boot_order_count || config->boot_menu))
		return error_set(err, -EINVAL, "A kernel is started directly; --firmware-vars, --firmware-log, --boot-order and "
			"--boot-menu are for firmware.");
	if (m->firmware && (config->initrd || config->append))
		return error_set(err, -EINVAL, "--initrd and --append need a kernel (--kernel).");
	return m->firmware ? machine_guest_examine(m, err) : 0;
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
		rc = machine_firmware_create(m, result.kernel_gpa, result.kernel_size, err);
	if (!rc)
		log_message(LOG_INFO, "started as %s at %#llx", result.protocol, (unsigned long long)result.entry);
	return rc;
}
