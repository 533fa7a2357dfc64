/*
 * The namespace: processors, the PCI root bridge with its windows and interrupt routing, the legacy devices
 * that an operating system does not find by PCI, and the ranges that it must keep its hands off.
 *
 *   \_S5_                        soft off
 *   \_SB_.C000 …                 processors
 *   \_SB_.PCI0                   root bridge: bus numbers, I/O and memory windows, _PRT
 *   \_SB_.COM1 KBD_ RTC_ HPET    legacy devices
 *   \_SB_.MBRD                   ECAM and the ACPI ports, reserved
 *
 * No methods: nothing here changes while the machine runs.
 */
#include "acpi_dsdt.h"

#include <stdio.h>

#include "acpi_ports.h"
#include "aml.h"
#include "vmm/boot_acpi.h"
#include "vmm/cpu_layout.h"

/* \_S5: SLP_TYP for PM1a and PM1b (ACPI 6.4, 7.4.2). */
static void write_sleep(struct aml *a)
{
	size_t package;

	aml_name(a, "\\_S5_");
	package = aml_open_package(a, 4);
	aml_integer(a, SLP_TYP_S5);
	aml_integer(a, SLP_TYP_S5);
	aml_integer(a, 0);
	aml_integer(a, 0);
	aml_close(a, package);
}

static void write_processors(struct aml *a, unsigned cpus)
{
	for (unsigned i = 0; i < cpus; i++) {
		char name[16];
		size_t device;

		snprintf(name, sizeof(name), "C%03X", i);
		device = aml_open_device(a, name);
		aml_name(a, "_HID");
		aml_string(a, "ACPI0007");
		aml_name_integer(a, "_UID", i);
		aml_close(a, device);
	}
}

/* Device d's pin x is GSI 16 + (d + x) % 4, hardwired (source 0). */
static void write_interrupt_routing(struct aml *a)
{
	size_t table;

	aml_name(a, "_PRT");
	table = aml_open_package(a, 32 * 4);
	for (unsigned device = 0; device < 32; device++) {
		for (unsigned pin = 0; pin < 4; pin++) {
			size_t entry = aml_open_package(a, 4);

			aml_integer(a, device << 16 | 0xffff);
			aml_integer(a, pin);
			aml_integer(a, 0);
			aml_integer(a, ACPI_PCI_GSI_BASE + (device + pin) % 4);
			aml_close(a, entry);
		}
	}
	aml_close(a, table);
}

/* The second 32-bit window is where SeaBIOS puts BARs, so that a guest need not move them. */
static void write_pci(struct aml *a, const struct acpi_config *config)
{
	uint64_t second = config->ecam == GPA_ECAM ? GPA_ECAM + GPA_ECAM_SIZE : GPA_PCI_MMIO_END;
	size_t device = aml_open_device(a, "PCI0");
	size_t resources;

	aml_name_eisa_id(a, "_HID", "PNP0A08");
	aml_name_eisa_id(a, "_CID", "PNP0A03");
	aml_name_integer(a, "_UID", 0);
	aml_name_integer(a, "_SEG", 0);
	aml_name_integer(a, "_BBN", 0);
	aml_name_integer(a, "_CCA", 1);
	resources = aml_open_resources(a);
	aml_window_bus(a, 0, (uint16_t)((GPA_ECAM_SIZE >> 20) - 1));
	aml_io(a, 0xcf8, 8);
	aml_window_io(a, 0, 0xcf7);
	aml_window_io(a, 0xd00, 0xffff);
	aml_window_memory32(a, (uint32_t)GPA_PCI_HOLE, (uint32_t)(GPA_PCI_MMIO_END - 1));
	aml_window_memory32(a, (uint32_t)second, (uint32_t)(GPA_IOAPIC - 1));
	aml_window_memory64(a, config->mmio64, config->mmio64 + config->mmio64_size - 1);
	aml_close_resources(a, resources);
	write_interrupt_routing(a);
	aml_close(a, device);
}

/* A device with up to two port ranges of one length and an edge-triggered ISA interrupt. */
static void write_isa_device(struct aml *a, const char *name, const char *id, uint16_t port,
	uint16_t second_port, uint8_t length, unsigned irq)
{
	size_t device = aml_open_device(a, name);
	size_t resources;

	aml_name_eisa_id(a, "_HID", id);
	aml_name_integer(a, "_UID", 0);
	aml_name_integer(a, "_STA", 0xf);
	resources = aml_open_resources(a);
	aml_io(a, port, length);
	if (second_port)
		aml_io(a, second_port, length);
	aml_irq(a, irq);
	aml_close_resources(a, resources);
	aml_close(a, device);
}

static void write_hpet(struct aml *a)
{
	size_t device = aml_open_device(a, "HPET");
	size_t resources;

	aml_name_eisa_id(a, "_HID", "PNP0103");
	aml_name_integer(a, "_UID", 0);
	resources = aml_open_resources(a);
	aml_memory32(a, false, (uint32_t)GPA_HPET, 0x400);
	aml_close_resources(a, resources);
	aml_close(a, device);
}

static void write_motherboard(struct aml *a, const struct acpi_config *config)
{
	size_t device = aml_open_device(a, "MBRD");
	size_t resources;

	aml_name_eisa_id(a, "_HID", "PNP0C02");
	aml_name_integer(a, "_UID", 0);
	resources = aml_open_resources(a);
	aml_memory32(a, true, (uint32_t)config->ecam, (uint32_t)GPA_ECAM_SIZE);
	aml_io(a, PORT_PM1_EVENT, PORT_PM_SIZE);
	aml_close_resources(a, resources);
	aml_close(a, device);
}

void acpi_dsdt_write(struct aml *a, const struct acpi_config *config)
{
	size_t scope;

	write_sleep(a);
	scope = aml_open_scope(a, "_SB_");
	write_processors(a, config->cpus);
	write_pci(a, config);
	write_isa_device(a, "COM1", "PNP0501", 0x3f8, 0, 8, 4);
	write_isa_device(a, "KBD_", "PNP0303", 0x60, 0x64, 1, 1);
	write_isa_device(a, "RTC_", "PNP0B00", 0x70, 0, 2, 8);
	write_hpet(a);
	write_motherboard(a, config);
	aml_close(a, scope);
}
