/*
 * The ACPI tables; see boot_acpi.h. Everything is appended to one buffer; a table's pointers are written as
 * offsets into it and recorded as linker-loader commands, which acpi_install() executes for a direct boot and
 * SeaBIOS executes for a firmware boot. So there is one list of what depends on the address, and both ways
 * test it.
 *
 * A linker-loader command has 128 bytes; file names have 56 with their terminating zero:
 *
 *   0  command   4         60            116   120
 *   1  allocate  file      align, zone
 *   2  pointer   dst file  src file      offset size
 *   3  checksum  file      offset, start, length
 */
#include "vmm/boot_acpi.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "acpi_dsdt.h"
#include "acpi_ports.h"
#include "aml.h"
#include "vmm/bytes.h"
#include "vmm/mem.h"

#define FILE_TABLES "etc/acpi/tables"
#define FILE_RSDP "etc/acpi/rsdp"
#define FILE_NAME_SIZE 56u
#define COMMAND_SIZE 128u
#define HEADER_SIZE 36u
#define TABLE_ALIGN 64u /* of the blob: a FACS must have it (5.2.10) */

enum loader_command { LOADER_ALLOCATE = 1, LOADER_POINTER = 2, LOADER_CHECKSUM = 3 };
enum loader_zone { ZONE_HIGH = 1, ZONE_FSEG = 2 };

struct builder {
	struct aml blob;   /* etc/acpi/tables */
	struct aml rsdp;   /* etc/acpi/rsdp */
	struct aml loader; /* etc/table-loader */
};

static void put_file_name(uint8_t *at, const char *name)
{
	memcpy(at, name, strlen(name) + 1);
}

static void loader_allocate(struct builder *b, const char *file, uint32_t align, enum loader_zone zone)
{
	uint8_t c[COMMAND_SIZE] = { LOADER_ALLOCATE };

	put_file_name(c + 4, file);
	bytes_store(c + 60, 4, align);
	c[64] = (uint8_t)zone;
	aml_bytes(&b->loader, c, sizeof(c));
}

/* The size bytes at offset of file hold an offset into the tables' blob, to become an address. */
static void loader_pointer(struct builder *b, const char *file, size_t offset, uint8_t size)
{
	uint8_t c[COMMAND_SIZE] = { LOADER_POINTER };

	put_file_name(c + 4, file);
	put_file_name(c + 60, FILE_TABLES);
	bytes_store(c + 116, 4, offset);
	c[120] = size;
	aml_bytes(&b->loader, c, sizeof(c));
}

/* The byte at offset makes the bytes [start, start+length) sum to zero. */
static void loader_checksum(struct builder *b, const char *file, size_t offset, size_t start, size_t length)
{
	uint8_t c[COMMAND_SIZE] = { LOADER_CHECKSUM };

	put_file_name(c + 4, file);
	bytes_store(c + 60, 4, offset);
	bytes_store(c + 64, 4, start);
	bytes_store(c + 68, 4, length);
	aml_bytes(&b->loader, c, sizeof(c));
}

/* 5.2.6: the header that every table but RSDP and FACS begins with. Length and sum come with table_end(). */
static size_t table_begin(struct builder *b, const char *signature, uint8_t revision)
{
	struct aml *a = &b->blob;
	size_t start;

	aml_align(a, 16);
	start = a->size;
	aml_bytes(a, signature, 4);
	aml_dword(a, 0); /* length */
	aml_byte(a, revision);
	aml_byte(a, 0); /* checksum */
	aml_bytes(a, "VMM   ", 6);
	aml_bytes(a, "VMMACPI ", 8);
	aml_dword(a, 1);
	aml_bytes(a, "VMM ", 4);
	aml_dword(a, 1);
	return start;
}

static void table_end(struct builder *b, size_t start)
{
	if (b->blob.failed)
		return;
	bytes_store(b->blob.data + start + 4, 4, b->blob.size - start);
	loader_checksum(b, FILE_TABLES, start + 9, start, b->blob.size - start);
}

/* Appends a pointer to the offset `target` of the blob. */
static void put_pointer(struct builder *b, size_t target, uint8_t size)
{
	loader_pointer(b, FILE_TABLES, b->blob.size, size);
	if (size == 8)
		aml_qword(&b->blob, target);
	else
		aml_dword(&b->blob, (uint32_t)target);
}

/* 5.2.3.2: generic address structure. access: 1 byte, 2 word, 3 dword. */
static void put_gas_io(struct aml *a, uint16_t port, uint8_t bits, uint8_t access)
{
	aml_byte(a, port ? 1 : 0);
	aml_byte(a, bits);
	aml_byte(a, 0);
	aml_byte(a, access);
	aml_qword(a, port);
}

static void put_gas_none(struct aml *a)
{
	put_gas_io(a, 0, 0, 0);
}

/* 5.2.10: no global lock is shared with firmware and nothing wakes, so all of it is zero. */
static size_t build_facs(struct builder *b)
{
	struct aml *a = &b->blob;
	uint8_t rest[64 - 8] = { 0 };
	size_t start;

	aml_align(a, TABLE_ALIGN);
	start = a->size;
	aml_bytes(a, "FACS", 4);
	aml_dword(a, 64);
	rest[32 - 8] = 2; /* version */
	aml_bytes(a, rest, sizeof(rest));
	return start;
}

static size_t build_dsdt(struct builder *b, const struct acpi_config *config)
{
	size_t start = table_begin(b, "DSDT", 2);

	acpi_dsdt_write(&b->blob, config);
	table_end(b, start);
	return start;
}

/* The second half of the FADT: reset register, 64-bit pointers and extended blocks. */
static void put_fadt_extended(struct builder *b, size_t dsdt)
{
	struct aml *a = &b->blob;

	put_gas_io(a, PORT_RESET, 8, 1);
	aml_byte(a, RESET_VALUE);
	aml_word(a, 0);	 /* ARM */
	aml_byte(a, 4);	 /* minor version */
	aml_qword(a, 0); /* X_FIRMWARE_CTRL: the 32-bit one counts */
	put_pointer(b, dsdt, 8);
	put_gas_io(a, PORT_PM1_EVENT, 32, 2);
	put_gas_none(a);
	put_gas_io(a, PORT_PM1_CONTROL, 16, 2);
	put_gas_none(a);
	put_gas_none(a); /* PM2 control */
	put_gas_io(a, PORT_PM_TIMER, 32, 3);
	put_gas_io(a, PORT_GPE0, 32, 1);
	for (unsigned i = 0; i < 3; i++) /* GPE1, sleep control, sleep status */
		put_gas_none(a);
	aml_qword(a, 0); /* hypervisor vendor identity */
}

/*
 * 5.2.9. SMI_CMD is a port whose model sets and clears SCI_EN; there is no system management mode.
 *
 * Flags: WBINVD (0), PROC_C1 (2), SLP_BUTTON none (5), TMR_VAL_EXT 32-bit timer (8), RESET_REG_SUP (10). Bit
 * 4 clear: the power button is the fixed one in the PM1 event block.
 * IAPC_BOOT_ARCH: LEGACY_DEVICES (0), 8042 (1), VGA not present (2), no ASPM (4).
 */
static size_t build_fadt(struct builder *b, size_t facs, size_t dsdt)
{
	struct aml *a = &b->blob;
	size_t start = table_begin(b, "FACP", 6);

	put_pointer(b, facs, 4);
	put_pointer(b, dsdt, 4);
	aml_byte(a, 0);
	aml_byte(a, 4); /* preferred profile: enterprise server */
	aml_word(a, SCI_GSI);
	aml_dword(a, PORT_SMI);
	aml_byte(a, SMI_ACPI_ENABLE);
	aml_byte(a, SMI_ACPI_DISABLE);
	aml_word(a, 0); /* S4BIOS_REQ, PSTATE_CNT */
	aml_dword(a, PORT_PM1_EVENT);
	aml_dword(a, 0);
	aml_dword(a, PORT_PM1_CONTROL);
	aml_dword(a, 0);
	aml_dword(a, 0); /* PM2 control */
	aml_dword(a, PORT_PM_TIMER);
	aml_dword(a, PORT_GPE0);
	aml_dword(a, 0); /* GPE1 */
	aml_byte(a, 4);	 /* PM1 event, PM1 control, PM2 control, PM timer, GPE0, GPE1 lengths, GPE1 base */
	aml_byte(a, 2);
	aml_byte(a, 0);
	aml_byte(a, 4);
	aml_byte(a, 4);
	aml_byte(a, 0);
	aml_byte(a, 0);
	aml_byte(a, 0);	     /* CST_CNT */
	aml_word(a, 0xfff);  /* no C2 */
	aml_word(a, 0xfff);  /* no C3 */
	aml_dword(a, 0);     /* flush size and stride */
	aml_word(a, 0);	     /* duty */
	aml_byte(a, 0);	     /* day alarm */
	aml_byte(a, 0);	     /* month alarm */
	aml_byte(a, 0x32);   /* century, in CMOS */
	aml_word(a, 0x0017); /* IAPC_BOOT_ARCH */
	aml_byte(a, 0);
	aml_dword(a, 1u << 0 | 1u << 2 | 1u << 5 | 1u << 8 | 1u << 10);
	put_fadt_extended(b, dsdt);
	assert(a->failed || a->size - start == 276);
	table_end(b, start);
	return start;
}

static void put_override(struct aml *a, uint8_t irq, uint32_t gsi, uint16_t flags)
{
	aml_byte(a, 2);
	aml_byte(a, 10);
	aml_byte(a, 0); /* ISA */
	aml_byte(a, irq);
	aml_dword(a, gsi);
	aml_word(a, flags);
}

/* 5.2.12 */
static size_t build_madt(struct builder *b, unsigned cpus)
{
	struct aml *a = &b->blob;
	size_t start = table_begin(b, "APIC", 5);

	aml_dword(a, (uint32_t)GPA_LAPIC);
	aml_dword(a, 1); /* PCAT_COMPAT: a pair of 8259s is there too */
	for (unsigned i = 0; i < cpus; i++) {
		aml_byte(a, 0);
		aml_byte(a, 8);
		aml_byte(a, (uint8_t)i); /* UID as in the DSDT */
		aml_byte(a, (uint8_t)i); /* APIC id */
		aml_dword(a, 1);	 /* enabled */
	}
	aml_byte(a, 1);
	aml_byte(a, 12);
	aml_byte(a, 0); /* IOAPIC id */
	aml_byte(a, 0);
	aml_dword(a, (uint32_t)GPA_IOAPIC);
	aml_dword(a, 0);		       /* first GSI */
	put_override(a, 0, 2, 0);	       /* the PIT */
	put_override(a, SCI_GSI, SCI_GSI, 0xd); /* active high (01), level (11) */
	aml_byte(a, 4); /* NMI on LINT1 of every processor */
	aml_byte(a, 6);
	aml_byte(a, 0xff);
	aml_word(a, 0);
	aml_byte(a, 1);
	table_end(b, start);
	return start;
}

/* PCI Firmware Specification 3.3, 4.1.2 */
static size_t build_mcfg(struct builder *b, uint64_t ecam)
{
	struct aml *a = &b->blob;
	size_t start = table_begin(b, "MCFG", 1);

	aml_qword(a, 0);
	aml_qword(a, ecam);
	aml_word(a, 0); /* segment */
	aml_byte(a, 0);
	aml_byte(a, (uint8_t)((GPA_ECAM_SIZE >> 20) - 1));
	aml_dword(a, 0);
	table_end(b, start);
	return start;
}

/*
 * IA-PC HPET specification 1.0a, 3.2.4. Hardware id: revision 1, three comparators (12:8 = 2), 64-bit counter
 * (13), legacy replacement (15), Intel.
 */
static size_t build_hpet(struct builder *b)
{
	struct aml *a = &b->blob;
	size_t start = table_begin(b, "HPET", 1);

	aml_dword(a, 0x8086a201);
	aml_byte(a, 0);	 /* memory */
	aml_byte(a, 64); /* bits */
	aml_byte(a, 0);
	aml_byte(a, 0);
	aml_qword(a, GPA_HPET);
	aml_byte(a, 0);	   /* number */
	aml_word(a, 0x80); /* least ticks between interrupts */
	aml_byte(a, 0);
	table_end(b, start);
	return start;
}

/* RSDT (5.2.7, pointers of 4 bytes) for guests of ACPI 1.0, XSDT (5.2.8, 8 bytes) for all others. */
static size_t build_root(struct builder *b, const char *signature, uint8_t pointer_size, const size_t *tables,
	unsigned count)
{
	size_t start = table_begin(b, signature, 1);

	for (unsigned i = 0; i < count; i++)
		put_pointer(b, tables[i], pointer_size);
	table_end(b, start);
	return start;
}

/* 5.2.5.3 */
static void build_rsdp(struct builder *b, size_t rsdt, size_t xsdt)
{
	struct aml *a = &b->rsdp;

	aml_bytes(a, "RSD PTR ", 8);
	aml_byte(a, 0);
	aml_bytes(a, "VMM   ", 6);
	aml_byte(a, 2);
	loader_pointer(b, FILE_RSDP, a->size, 4);
	aml_dword(a, (uint32_t)rsdt);
	aml_dword(a, HEADER_SIZE); /* length of this structure, by chance that of a table header */
	loader_pointer(b, FILE_RSDP, a->size, 8);
	aml_qword(a, xsdt);
	aml_dword(a, 0); /* extended checksum, reserved */
	loader_checksum(b, FILE_RSDP, 8, 0, 20);
	loader_checksum(b, FILE_RSDP, 32, 0, 36);
}

static struct acpi_config with_defaults(const struct acpi_config *config)
{
	struct acpi_config c = *config;

	if (!c.ecam || c.ecam > GPA_HIGH_RAM - GPA_ECAM_SIZE)
		c.ecam = GPA_ECAM;
	if (!c.mmio64_size) {
		c.mmio64 = GPA_PCI_MMIO64;
		c.mmio64_size = GPA_PCI_MMIO64_SIZE;
	}
	return c;
}

int acpi_tables_build(const struct acpi_config *request, struct acpi_tables *tables, struct error *err)
{
	const struct acpi_config filled = with_defaults(request), *config = &filled;
	struct builder b = { 0 };
	size_t facs, dsdt, rsdt, xsdt, list[4];

	memset(tables, 0, sizeof(*tables));
	if (config->cpus < 1 || config->cpus > ACPI_CPUS_MAX)
		return error_set(err, -EINVAL, "the ACPI tables can describe 1 to %u processors, not %u",
			ACPI_CPUS_MAX, config->cpus);

	loader_allocate(&b, FILE_TABLES, TABLE_ALIGN, ZONE_HIGH);
	loader_allocate(&b, FILE_RSDP, 16, ZONE_FSEG);
	facs = build_facs(&b);
	dsdt = build_dsdt(&b, config);
	list[0] = build_fadt(&b, facs, dsdt);
	list[1] = build_madt(&b, config->cpus);
	list[2] = build_mcfg(&b, config->ecam);
	list[3] = build_hpet(&b);
	rsdt = build_root(&b, "RSDT", 4, list, 4);
	xsdt = build_root(&b, "XSDT", 8, list, 4);
	build_rsdp(&b, rsdt, xsdt);

	*tables = (struct acpi_tables){
		.tables = b.blob.data,
		.tables_size = b.blob.size,
		.rsdp = b.rsdp.data,
		.rsdp_size = b.rsdp.size,
		.loader = b.loader.data,
		.loader_size = b.loader.size,
	};
	if (b.blob.failed || b.rsdp.failed || b.loader.failed) {
		acpi_tables_free(tables);
		return error_set(err, -ENOMEM, "no memory for the ACPI tables");
	}
	return 0;
}

void acpi_tables_free(struct acpi_tables *tables)
{
	free(tables->tables);
	free(tables->rsdp);
	free(tables->loader);
	memset(tables, 0, sizeof(*tables));
}

static void execute_checksum(uint8_t *file, uint32_t offset, uint32_t start, uint32_t length)
{
	uint8_t sum = 0;

	file[offset] = 0;
	for (uint32_t i = 0; i < length; i++)
		sum += file[start + i];
	file[offset] = (uint8_t)-sum;
}

int acpi_install(const struct acpi_tables *tables, struct guest_mem *mem, uint64_t gpa, uint64_t gpa_end,
	uint64_t *rsdp_gpa, struct error *err)
{
	uint64_t blob_gpa = (gpa + tables->rsdp_size + TABLE_ALIGN - 1) & ~(uint64_t)(TABLE_ALIGN - 1);
	uint64_t span = blob_gpa - gpa + tables->tables_size;
	uint8_t *rsdp, *blob;

	assert(gpa % 16 == 0);
	rsdp = span <= gpa_end - gpa ? mem_ptr(mem, gpa, span, true) : NULL;
	if (!rsdp)
		return error_set(err, -E2BIG,
			"the ACPI tables (%zu bytes) do not fit below 1 MiB; use fewer processors",
			tables->tables_size);
	blob = rsdp + (blob_gpa - gpa);
	memcpy(rsdp, tables->rsdp, tables->rsdp_size);
	memcpy(blob, tables->tables, tables->tables_size);

	for (size_t at = 0; at < tables->loader_size; at += COMMAND_SIZE) {
		const uint8_t *c = tables->loader + at;
		uint8_t *file = strcmp((const char *)c + 4, FILE_RSDP) == 0 ? rsdp : blob;
		uint8_t *pointer = file + bytes_load(c + 116, 4);

		if (c[0] == LOADER_POINTER)
			bytes_store(pointer, c[120], bytes_load(pointer, c[120]) + blob_gpa);
		else if (c[0] == LOADER_CHECKSUM)
			execute_checksum(file, (uint32_t)bytes_load(c + 60, 4),
				(uint32_t)bytes_load(c + 64, 4), (uint32_t)bytes_load(c + 68, 4));
	}
	mem_mark_written(mem, gpa, span);
	*rsdp_gpa = gpa;
	return 0;
}
