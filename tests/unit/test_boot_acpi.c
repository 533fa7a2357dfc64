/*
 * The ACPI tables: every sum is right once installed, every pointer leads to a table, the numbers are those of the
 * devices, and the reference disassembler (if it is here) takes the AML without complaint.
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "run_suite.h"
#include "boot/acpi_ports.h"
#include "boot/aml.h"
#include "vmm/boot_acpi.h"
#include "vmm/bytes.h"
#include "vmm/dev_acpi_pm.h"
#include "vmm/mem.h"

#define BASE 0xe0000ull
#define END 0x100000ull

static struct guest_mem *mem;
static uint64_t rsdp;

static void install(unsigned cpus)
{
	struct acpi_config config = { .cpus = cpus };
	struct acpi_tables tables;

	ck_assert_int_eq(mem_create(2 << 20, &mem, NULL), 0);
	ck_assert_int_eq(acpi_tables_build(&config, &tables, NULL), 0);
	ck_assert_int_eq(tables.loader_size % 128, 0);
	ck_assert_int_eq(acpi_install(&tables, mem, BASE, END, &rsdp, NULL), 0);
	acpi_tables_free(&tables);
}

static const uint8_t *at(uint64_t gpa, uint64_t size)
{
	const uint8_t *p = mem_ptr(mem, gpa, size, false);

	ck_assert_ptr_nonnull(p);
	ck_assert_uint_ge(gpa, BASE);
	ck_assert_uint_le(gpa + size, END);
	return p;
}

static uint8_t sum(const uint8_t *p, size_t n)
{
	uint8_t s = 0;

	while (n--)
		s += *p++;
	return s;
}

/* A table by its signature, through RSDP and XSDT; checks every sum on the way. */
static const uint8_t *find(const char *signature, uint32_t *length)
{
	const uint8_t *root = at(rsdp, 36), *xsdt, *found = NULL;
	uint64_t gpa = bytes_load(root + 24, 8);
	uint32_t n;

	ck_assert_int_eq(memcmp(root, "RSD PTR ", 8), 0);
	ck_assert_int_eq(root[15], 2);
	ck_assert_int_eq(sum(root, 20), 0);
	ck_assert_int_eq(sum(root, 36), 0);
	xsdt = at(gpa, 36);
	n = (uint32_t)bytes_load(xsdt + 4, 4);
	ck_assert_int_eq(memcmp(xsdt, "XSDT", 4), 0);
	ck_assert_int_eq(sum(at(gpa, n), n), 0);
	for (uint32_t i = 36; i < n; i += 8) {
		uint64_t table = bytes_load(xsdt + i, 8);
		uint32_t size = (uint32_t)bytes_load(at(table, 36) + 4, 4);

		ck_assert_int_eq(sum(at(table, size), size), 0);
		if (memcmp(at(table, 36), signature, 4) == 0) {
			found = at(table, size);
			*length = size;
		}
	}
	return found;
}

START_TEST(test_tables_are_linked)
{
	static const char *const names[] = { "FACP", "APIC", "MCFG", "HPET" };
	const uint8_t *fadt, *dsdt, *facs;
	uint32_t n;

	install(2);
	for (unsigned i = 0; i < 4; i++)
		ck_assert_ptr_nonnull(find(names[i], &n));
	fadt = find("FACP", &n);
	ck_assert_uint_eq(n, 276);
	ck_assert_uint_eq(bytes_load(fadt + 40, 4), bytes_load(fadt + 140, 8));
	dsdt = at(bytes_load(fadt + 40, 4), 36);
	ck_assert_int_eq(memcmp(dsdt, "DSDT", 4), 0);
	n = (uint32_t)bytes_load(dsdt + 4, 4);
	ck_assert_int_eq(sum(at(bytes_load(fadt + 40, 4), n), n), 0);
	facs = at(bytes_load(fadt + 36, 4), 64);
	ck_assert_int_eq(memcmp(facs, "FACS", 4), 0);
	ck_assert_uint_eq(bytes_load(fadt + 36, 4) % 64, 0);
	/* The old root as well. */
	ck_assert_int_eq(memcmp(at(bytes_load(at(rsdp, 36) + 16, 4), 36), "RSDT", 4), 0);
	mem_destroy(mem);
}
END_TEST

START_TEST(test_ports_are_the_devices)
{
	const uint8_t *fadt;
	uint32_t n;

	install(1);
	fadt = find("FACP", &n);
	ck_assert_uint_eq(bytes_load(fadt + 46, 2), ACPI_SCI_IRQ);
	ck_assert_uint_eq(bytes_load(fadt + 48, 4), ACPI_SMI_CMD);
	ck_assert_uint_eq(fadt[52], ACPI_SMI_ENABLE);
	ck_assert_uint_eq(fadt[53], ACPI_SMI_DISABLE);
	ck_assert_uint_eq(bytes_load(fadt + 56, 4), ACPI_PM1A_EVT);
	ck_assert_uint_eq(bytes_load(fadt + 64, 4), ACPI_PM1A_CNT);
	ck_assert_uint_eq(bytes_load(fadt + 76, 4), ACPI_PM_TMR);
	ck_assert_uint_eq(bytes_load(fadt + 80, 4), ACPI_GPE0);
	ck_assert_uint_eq(fadt[92], ACPI_GPE0_LEN);
	ck_assert_uint_eq(bytes_load(fadt + 120, 8), ACPI_RESET_REG);
	ck_assert_uint_eq(fadt[128], ACPI_RESET_VALUE);
	ck_assert_uint_eq(bytes_load(fadt + 152, 8), ACPI_PM1A_EVT);
	ck_assert_uint_eq(bytes_load(fadt + 176, 8), ACPI_PM1A_CNT);
	ck_assert_uint_eq(bytes_load(fadt + 212, 8), ACPI_PM_TMR);
	ck_assert_uint_eq(bytes_load(fadt + 224, 8), ACPI_GPE0);
	ck_assert_uint_eq(SLP_TYP_S5, ACPI_SLP_TYP_S5);
	ck_assert_uint_eq(PORT_PM_SIZE, ACPI_PM_SIZE);
	mem_destroy(mem);
}
END_TEST

START_TEST(test_madt_lists_processors)
{
	const uint8_t *madt;
	uint32_t n, cpus = 0, ioapics = 0;

	install(255);
	madt = find("APIC", &n);
	for (uint32_t i = 44; i < n; i += madt[i + 1]) {
		ck_assert_uint_ge(madt[i + 1], 2);
		if (madt[i] == 0)
			ck_assert_uint_eq(madt[i + 3], cpus++);
		ioapics += madt[i] == 1;
	}
	ck_assert_uint_eq(cpus, 255);
	ck_assert_uint_eq(ioapics, 1);
	mem_destroy(mem);
}
END_TEST

START_TEST(test_limits)
{
	struct acpi_config config = { .cpus = 0 };
	struct acpi_tables tables;
	struct error err = { 0 };

	ck_assert_int_lt(acpi_tables_build(&config, &tables, &err), 0);
	config.cpus = ACPI_CPUS_MAX + 1;
	ck_assert_int_lt(acpi_tables_build(&config, &tables, &err), 0);
	ck_assert_ptr_nonnull(strstr(err.message, "255"));
	config.cpus = 1;
	ck_assert_int_eq(acpi_tables_build(&config, &tables, &err), 0);
	ck_assert_int_eq(mem_create(1 << 20, &mem, NULL), 0);
	ck_assert_int_lt(acpi_install(&tables, mem, 0xffc00, END, &rsdp, &err), 0);
	acpi_tables_free(&tables);
	mem_destroy(mem);
}
END_TEST

/* PkgLength at the borders between one, two and three bytes (ACPI 6.4, 20.2.4). */
START_TEST(test_package_length)
{
	static const struct {
		size_t inside, length_bytes;
		uint8_t bytes[3];
	} cases[] = {
		{ 62, 1, { 0x3f } },
		{ 63, 2, { 0x41, 0x04 } },
		{ 4093, 2, { 0x4f, 0xff } },
		{ 4094, 3, { 0x81, 0x00, 0x01 } },
	};

	for (unsigned i = 0; i < 4; i++) {
		struct aml a = { 0 };
		size_t position = aml_open_package(&a, 0);

		while (a.size < position + cases[i].inside)
			aml_byte(&a, 0);
		aml_close(&a, position);
		ck_assert(!a.failed);
		ck_assert_uint_eq(a.size, 1 + cases[i].length_bytes + cases[i].inside);
		ck_assert_mem_eq(a.data + 1, cases[i].bytes, cases[i].length_bytes);
		free(a.data);
	}
}
END_TEST

static void save(const char *dir, const char *name, const uint8_t *data, size_t n)
{
	char path[200];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s.dat", dir, name);
	f = fopen(path, "w");
	ck_assert_ptr_nonnull(f);
	ck_assert_uint_eq(fwrite(data, 1, n, f), n);
	fclose(f);
}

/* Disassemble every table and compile the DSDT again: no error, no warning. */
START_TEST(test_reference_tool)
{
	static const char *const names[] = { "FACP", "APIC", "MCFG", "HPET" };
	char dir[] = "/tmp/vmm-acpi-XXXXXX", command[500];
	const uint8_t *table, *fadt;
	uint32_t n;
	int status;

	if (system("command -v iasl >/dev/null 2>&1"))
		return;
	ck_assert_ptr_nonnull(mkdtemp(dir));
	install(3);
	for (unsigned i = 0; i < 4; i++) {
		table = find(names[i], &n);
		save(dir, names[i], table, n);
	}
	fadt = find("FACP", &n);
	table = at(bytes_load(fadt + 40, 4), 36);
	save(dir, "DSDT", table, bytes_load(table + 4, 4));
	snprintf(command, sizeof(command),
		"cd %s && iasl -d *.dat >out 2>&1 && iasl -tc -we DSDT.dsl >out2 2>&1 && grep -q '0 Errors, 0 Warnings' out2 && "
		"! grep -iE '(error|warning|invalid|unknown)' out *.dsl >bad",
		dir);
	status = system(command);
	if (status) {
		snprintf(command, sizeof(command), "cat %s/out %s/out2 %s/bad", dir, dir, dir);
		(void)!system(command);
	}
	snprintf(command, sizeof(command), "rm -rf %s", dir);
	(void)!system(command);
	ck_assert_int_eq(status, 0);
	mem_destroy(mem);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("boot_acpi");
	TCase *tc = tcase_create("all");

	tcase_set_timeout(tc, 60);
	tcase_add_test(tc, test_tables_are_linked);
	tcase_add_test(tc, test_ports_are_the_devices);
	tcase_add_test(tc, test_madt_lists_processors);
	tcase_add_test(tc, test_limits);
	tcase_add_test(tc, test_package_length);
	tcase_add_test(tc, test_reference_tool);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
