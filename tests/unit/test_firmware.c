/*
 * What firmware finds: shadow RAM behind the host bridge's registers, an ECAM that moves, the flash with its commands, fw_cfg
 * files that are made when they are asked for, SMBIOS structures. Accesses as a guest makes them: memory where the layout has
 * some, the bus elsewhere.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "device_bench.h"
#include "run_suite.h"
#include "vmm/boot_smbios.h"
#include "vmm/dev_flash.h"
#include "vmm/dev_fw_cfg.h"
#include "vmm/mem.h"
#include "vmm/pci.h"

#define MIB (1ull << 20)
#define ROM_SIZE 0x20000ull
#define PAM(n) (0x90 + (n))

static struct guest_mem *mem;
static struct pci_bus *pci;
static uint64_t rom_offset;

static uint8_t guest_read(uint64_t gpa)
{
	const uint8_t *hva = mem_ptr(mem, gpa, 1, false);

	return hva ? *hva : (uint8_t)bench_read(BUS_MMIO, gpa, 1);
}

/* As engines and KVM do: RAM is written, writes to a ROM are dropped unless its range sends them to the bus. */
static void guest_write(uint64_t gpa, uint8_t value)
{
	uint8_t *hva = mem_ptr(mem, gpa, 1, true);

	if (hva)
		*hva = value;
	for (unsigned i = 0; !hva && i < RAM_RANGE_MAX && mem->layout.ranges[i].size; i++) {
		const struct ram_range *r = &mem->layout.ranges[i];

		if (gpa - r->gpa < r->size && !r->write_exit)
			return;
	}
	if (!hva)
		bench_write(BUS_MMIO, gpa, 1, value);
}

static void setup(void)
{
	static const struct irq_line lines[4];
	static uint8_t rom[ROM_SIZE];

	bench_start();
	ck_assert_int_eq(mem_create(4 * MIB, &mem, NULL), 0);
	ck_assert_int_eq(pci_bus_create(bench_bus, lines, (struct msi_sink){0}, NULL, NULL, &pci, NULL), 0);
	memset(rom, 'r', sizeof(rom));
	ck_assert_int_eq(mem_reserve(mem, rom, sizeof(rom), &rom_offset, NULL), 0);
}

static void teardown(void)
{
	pci_bus_destroy(pci);
	mem_destroy(mem);
	bench_stop();
}

START_TEST(shadow_ram)
{
	static const uint64_t places[] = {0xc0000, 0xc7fff, 0xdc000, 0xe0000, 0xebfff, 0xec000, 0xf0000, 0xfffff};

	ck_assert_int_eq(pci_host_set_shadow(pci, mem, rom_offset, ROM_SIZE), 0);
	for (unsigned access = 0; access < 4; access++) {
		for (unsigned i = 0; i < 8; i++) {
			bool rom = places[i] >= 0xe0000, reads_ram = access & 1, writes_ram = access & 2;
			uint8_t before, after;

			/* A known byte in RAM, then the access that is tried. */
			pci_config_write(pci, 0, PAM(0), 4, 0x33333330);
			pci_config_write(pci, 0, PAM(4), 2, 0x3333);
			pci_config_write(pci, 0, PAM(6), 1, 0x33);
			guest_write(places[i], 'a');
			pci_config_write(pci, 0, PAM(0), 4, access * 0x11111110u);
			pci_config_write(pci, 0, PAM(4), 2, access * 0x1111u);
			pci_config_write(pci, 0, PAM(6), 1, access * 0x11u);
			before = guest_read(places[i]);
			guest_write(places[i], 'b');
			after = guest_read(places[i]);
			pci_config_write(pci, 0, PAM(0), 4, 0x33333330);
			pci_config_write(pci, 0, PAM(4), 2, 0x3333);
			pci_config_write(pci, 0, PAM(6), 1, 0x33);
			ck_assert_uint_eq(guest_read(places[i]), writes_ram ? 'b' : 'a');
			ck_assert_uint_eq(before, reads_ram ? 'a' : rom ? 'r' : 0xff);
			ck_assert_uint_eq(after, reads_ram ? (writes_ram ? 'b' : 'a') : rom ? 'r' : 0xff);
		}
	}
	/* The ROM itself is as it was; a reset shows it again. */
	for (unsigned i = 0; i < ROM_SIZE; i++)
		if (mem->base[rom_offset + i] != 'r')
			ck_abort_msg("byte %u of the ROM has been written", i);
	pci_bus_reset(pci);
	ck_assert_uint_eq(guest_read(0xfffff), 'r');
	ck_assert_uint_eq(guest_read(0xc0000), 0xff);
	ck_assert_uint_eq(guest_read(0x100000), 0);
}
END_TEST

/* One segment alone. */
START_TEST(shadow_segments)
{
	ck_assert_int_eq(pci_host_set_shadow(pci, mem, rom_offset, ROM_SIZE), 0);
	pci_config_write(pci, 0, PAM(2), 1, 0x30); /* CC000 … CFFFF */
	ck_assert_ptr_null(mem_ptr(mem, 0xcbfff, 1, true));
	ck_assert_ptr_nonnull(mem_ptr(mem, 0xcc000, 0x4000, true));
	ck_assert_ptr_null(mem_ptr(mem, 0xd0000, 1, true));
	ck_assert_uint_eq(pci_config_read(pci, 0, PAM(2), 1), 0x30);
	pci_config_write(pci, 0, PAM(0), 1, 0xff);
	ck_assert_uint_eq(pci_config_read(pci, 0, PAM(0), 1), 0x30);
}
END_TEST

/* Nobody has named firmware: the registers are there, and C0000 … FFFFF stays RAM. */
START_TEST(no_shadow)
{
	ck_assert_uint_eq(pci_config_read(pci, 0, PAM(0), 1), 0x30);
	pci_config_write(pci, 0, PAM(0), 1, 0);
	ck_assert_ptr_nonnull(mem_ptr(mem, 0xf0000, 0x10000, true));
}
END_TEST

START_TEST(ecam_moves)
{
	ck_assert_uint_eq(pci_ecam_address(pci), GPA_ECAM);
	ck_assert_uint_eq(bench_read(BUS_MMIO, GPA_ECAM + (31 << 15), 4), 0x29188086);
	pci_config_write(pci, 0, 0x60, 4, 0xb0000001);
	ck_assert_uint_eq(pci_ecam_address(pci), 0xb0000000);
	ck_assert_uint_eq(bench_read(BUS_MMIO, 0xb0000000, 4), 0x29c08086);
	ck_assert_uint_eq(bench_read(BUS_MMIO, GPA_ECAM, 4), 0xffffffff);
	/* Moved by itself, switched off, a length that does not exist, over another region, above 4 GiB. */
	bench_write(BUS_MMIO, 0xb0000060, 4, 0xc0000001);
	ck_assert_uint_eq(pci_ecam_address(pci), 0xc0000000);
	pci_config_write(pci, 0, 0x60, 4, 0xc0000000);
	ck_assert_uint_eq(pci_ecam_address(pci), 0);
	pci_config_write(pci, 0, 0x60, 4, 0xc0000007);
	ck_assert_uint_eq(pci_ecam_address(pci), 0);
	pci_config_write(pci, 0, 0x60, 4, 1);
	ck_assert_uint_eq(pci_ecam_address(pci), 0);
	ck_assert_int_eq(pci_host_set_shadow(pci, mem, rom_offset, ROM_SIZE), 0);
	pci_config_write(pci, 0, 0x64, 4, 0xffffffff);
	ck_assert_uint_eq(pci_ecam_address(pci), 0xf00000000);
	ck_assert_uint_eq(bench_read(BUS_MMIO, 0xf00000000, 4), 0x29c08086);
	pci_bus_reset(pci);
	ck_assert_uint_eq(pci_ecam_address(pci), GPA_ECAM);
	ck_assert_uint_eq(bench_read(BUS_MMIO, GPA_ECAM, 4), 0x29c08086);
}
END_TEST

/* ---- flash ---- */

#define FLASH_GPA 0xffc00000ull
#define FLASH_SIZE 0x4000ull

static uint64_t changed_offset, changed_length;
static unsigned changes;
static uint8_t changed_first;

static void flash_changed(void *ctx, uint64_t offset, const uint8_t *data, uint64_t length)
{
	changed_offset = offset;
	changed_length = length;
	changed_first = data[0];
	changes++;
}

static struct flash *flash_make(void)
{
	static const struct flash_host host = {flash_changed, NULL};
	uint8_t data[FLASH_SIZE];
	struct flash *flash;
	struct error err;

	changes = 0;
	memset(data, 0xf3, sizeof(data));
	ck_assert_int_eq(flash_create(bench_bus, mem, FLASH_GPA, data, FLASH_BLOCK + 1, &host, &flash, &err), -EINVAL);
	ck_assert_int_eq(flash_create(bench_bus, mem, FLASH_GPA, data, sizeof(data), &host, &flash, &err), 0);
	return flash;
}

START_TEST(flash_commands)
{
	struct flash *flash = flash_make();

	ck_assert_ptr_nonnull(mem_ptr(mem, FLASH_GPA, FLASH_SIZE, false));
	ck_assert_uint_eq(guest_read(FLASH_GPA), 0xf3);
	guest_write(FLASH_GPA, 0x70); /* the probe by which firmware tells flash from RAM and ROM */
	ck_assert_ptr_null(mem_ptr(mem, FLASH_GPA, 1, false));
	ck_assert_uint_eq(guest_read(FLASH_GPA + 5), 0x80);
	guest_write(FLASH_GPA, 0x50);
	guest_write(FLASH_GPA, 0x70);
	ck_assert_uint_eq(guest_read(FLASH_GPA), 0);
	guest_write(FLASH_GPA, 0xff);
	/* Bits go to 0 only; one report for a burst. */
	for (unsigned i = 0; i < 3; i++) {
		guest_write(FLASH_GPA + 0x1010 + i, 0x10);
		guest_write(FLASH_GPA + 0x1010 + i, 0x5f);
		ck_assert_uint_eq(guest_read(FLASH_GPA), 0x80);
	}
	ck_assert_uint_eq(changes, 0);
	guest_write(FLASH_GPA, 0xff);
	ck_assert_uint_eq(changes, 1);
	ck_assert_uint_eq(changed_offset, 0x1010);
	ck_assert_uint_eq(changed_length, 3);
	ck_assert_uint_eq(changed_first, 0x53);
	ck_assert_uint_eq(guest_read(FLASH_GPA + 0x1012), 0x53);
	ck_assert_uint_eq(guest_read(FLASH_GPA + 0x1013), 0xf3);
	/* One block is erased, and only after the confirmation. */
	guest_write(FLASH_GPA + 0x1234, 0x20);
	guest_write(FLASH_GPA + 0x1234, 0x11);
	ck_assert_uint_eq(guest_read(FLASH_GPA) & 0xb0, 0xb0);
	guest_write(FLASH_GPA + 0x1234, 0x20);
	guest_write(FLASH_GPA + 0x1234, 0xd0);
	guest_write(FLASH_GPA, 0xff);
	ck_assert_uint_eq(changes, 2);
	ck_assert_uint_eq(guest_read(FLASH_GPA + 0xfff), 0xf3);
	ck_assert_uint_eq(guest_read(FLASH_GPA + 0x1000), 0xff);
	ck_assert_uint_eq(guest_read(FLASH_GPA + 0x1fff), 0xff);
	ck_assert_uint_eq(guest_read(FLASH_GPA + 0x2000), 0xf3);
	guest_write(FLASH_GPA, 0x98);
	ck_assert_uint_eq(guest_read(FLASH_GPA + 0x10), 'Q');
	ck_assert_uint_eq(guest_read(FLASH_GPA + 0x27), 14);
	ck_assert_uint_eq(guest_read(FLASH_GPA + 0x2d), 3);
	/* A reset in the middle of a command. */
	guest_write(FLASH_GPA, 0x40);
	flash_reset(flash);
	ck_assert_uint_eq(guest_read(FLASH_GPA), 0xf3);
	flash_destroy(flash);
}
END_TEST

/* Any bytes anywhere, of every size: reads and writes stay inside, and array mode shows memory again. */
START_TEST(flash_hostile)
{
	struct flash *flash = flash_make();

	srand(5);
	for (unsigned i = 0; i < 20000; i++) {
		unsigned size = 1u << rand() % 4;
		uint64_t gpa = FLASH_GPA - 8 + (uint64_t)rand() % (FLASH_SIZE + 16);
		static const uint8_t likely[] = {0x10, 0x20, 0xd0, 0x40, 0xff, 0x70, 0x90, 0x98};
		uint8_t byte = rand() % 4 ? likely[rand() % 8] : (uint8_t)rand();

		if (rand() % 3)
			bench_write(BUS_MMIO, gpa, size, byte * 0x0101010101010101ull);
		else
			bench_read(BUS_MMIO, gpa, size);
	}
	flash_reset(flash);
	ck_assert_ptr_nonnull(mem_ptr(mem, FLASH_GPA, FLASH_SIZE, false));
	flash_destroy(flash);
}
END_TEST

/* ---- fw_cfg ---- */

static struct fw_cfg *fw;
static unsigned asked;

static void on_select(void *ctx, const char *name)
{
	asked++;
	if (!strcmp(name, "etc/late"))
		ck_assert_int_eq(fw_cfg_update_file(ctx, "etc/late", "new", 3), 0);
}

START_TEST(fw_cfg_late_files)
{
	ck_assert_int_eq(fw_cfg_create(bench_bus, mem, &fw, NULL), 0);
	ck_assert_int_eq(fw_cfg_add_file(fw, "etc/late", "old", 3), 0);
	ck_assert_int_eq(fw_cfg_update_file(fw, "etc/late", "four", 4), -EINVAL);
	ck_assert_int_eq(fw_cfg_update_file(fw, "etc/none", "", 0), -ENOENT);
	fw_cfg_on_select(fw, on_select, fw);
	asked = 0;
	bench_write(BUS_PIO, 0x510, 2, FW_CFG_FILE_DIR);
	bench_write(BUS_PIO, 0x510, 2, 0x21); /* no such file */
	bench_write(BUS_PIO, 0x510, 2, 0xffff);
	ck_assert_uint_eq(asked, 0);
	bench_write(BUS_PIO, 0x510, 2, 0x20);
	ck_assert_uint_eq(asked, 1);
	ck_assert_uint_eq(bench_read(BUS_PIO, 0x511, 1), 'n');
	fw_cfg_destroy(fw);
}
END_TEST

/* ---- SMBIOS ---- */

/* Walks the structures as a guest does; counts the types. */
static unsigned walk(const struct smbios_tables *t, unsigned types[128])
{
	unsigned count = 0;
	size_t at = 0;

	memset(types, 0, 128 * sizeof(*types));
	while (at < t->size) {
		uint8_t length = t->tables[at + 1];

		ck_assert_uint_ge(length, 4);
		ck_assert_uint_lt(t->tables[at], 128);
		types[t->tables[at]]++;
		count++;
		for (at += length; t->tables[at] || t->tables[at + 1]; at++)
			ck_assert_uint_lt(at + 2, t->size);
		at += 2;
	}
	ck_assert_uint_eq(at, t->size);
	return count;
}

START_TEST(smbios)
{
	struct smbios_tables t;
	unsigned types[128], count;
	uint8_t sum = 0;

	ck_assert_int_eq(smbios_build(4, 2048 * MIB, 40960 * MIB, &t, NULL), 0);
	count = walk(&t, types);
	ck_assert_mem_eq(t.anchor, "_SM_", 4);
	for (unsigned i = 0; i < SMBIOS_ANCHOR_SIZE; i++)
		sum += t.anchor[i];
	ck_assert_uint_eq(sum, 0);
	ck_assert_uint_eq(t.anchor[22] | t.anchor[23] << 8, t.size);
	ck_assert_uint_eq(t.anchor[28] | t.anchor[29] << 8, count);
	ck_assert_uint_eq(types[0], 0);
	ck_assert_uint_eq(types[4], 4);
	ck_assert_uint_eq(types[17], 3); /* 42 GiB in modules of 16 */
	ck_assert_uint_eq(types[19], 2);
	ck_assert_uint_eq(types[127], 1);
	free(t.tables);
	ck_assert_int_eq(smbios_build(1, 64 * MIB, 0, &t, NULL), 0);
	walk(&t, types);
	ck_assert_uint_eq(types[17], 1);
	ck_assert_uint_eq(types[19], 1);
	free(t.tables);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("firmware");
	TCase *tc = tcase_create("firmware");

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, shadow_ram);
	tcase_add_test(tc, shadow_segments);
	tcase_add_test(tc, no_shadow);
	tcase_add_test(tc, ecam_moves);
	tcase_add_test(tc, flash_commands);
	tcase_add_test(tc, flash_hostile);
	tcase_add_test(tc, fw_cfg_late_files);
	tcase_add_test(tc, smbios);
	tcase_set_timeout(tc, 60);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
