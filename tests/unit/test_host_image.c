/* Disk images told by their bytes: tables, El Torito, file systems, foreign formats, what is truncated or not bootable. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "run_suite.h"
#include "vmm/bytes.h"
#include "vmm/error.h"
#include "vmm/host_image.h"

#define DISK_SIZE (1u << 20)

static uint8_t *disk;
static uint64_t disk_size;
static struct host_image image;
static struct error err;

static void setup(void)
{
	disk = calloc(1, DISK_SIZE);
	ck_assert_ptr_nonnull(disk);
	disk_size = DISK_SIZE;
}

static void teardown(void)
{
	free(disk);
}

static void probe(void)
{
	int fd = memfd_create("image", MFD_CLOEXEC);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(write(fd, disk, disk_size), (ssize_t)disk_size);
	ck_assert_int_eq(host_image_probe(fd, disk_size, &image), 0);
	close(fd);
	memset(&err, 0, sizeof(err));
}

static bool bootable_so(bool uefi, bool cd)
{
	int rc = host_image_check_bootable("guest.img", &image, uefi, cd, &err);

	ck_assert(!rc == !err.message[0]);
	return !rc;
}

static bool bootable(bool uefi)
{
	return bootable_so(uefi, false);
}

static void boot_sector(void)
{
	disk[0] = 0xeb;
	disk[1] = 0x63;
	bytes_store(disk + 510, 2, 0xaa55);
}

static void mbr_entry(unsigned n, bool active, uint8_t type, uint32_t first, uint32_t count)
{
	uint8_t *entry = disk + 446 + 16 * n;

	entry[0] = active ? 0x80 : 0;
	entry[4] = type;
	bytes_store(entry + 8, 4, first);
	bytes_store(entry + 12, 4, count);
	bytes_store(disk + 510, 2, 0xaa55);
}

static void ext4_at(uint64_t sector)
{
	bytes_store(disk + sector * 512 + 1024 + 56, 2, 0xef53);
	bytes_store(disk + sector * 512 + 1024 + 92, 4, 4);
	bytes_store(disk + sector * 512 + 1024 + 96, 4, 0x40);
}

START_TEST(mbr)
{
	boot_sector();
	mbr_entry(0, true, 0x83, 64, 512);
	ext4_at(64);
	probe();
	ck_assert_str_eq(image.description, "raw disk, MBR, bootable partition 1 (ext4)");
	ck_assert(bootable(false));
	ck_assert(!bootable(true));
	ck_assert_ptr_nonnull(strstr(err.message, "boots by a BIOS only"));

	mbr_entry(0, false, 0x83, 64, 512);
	mbr_entry(2, false, 0x82, 1024, 16);
	probe();
	ck_assert_str_eq(image.description,
		"raw disk, MBR, partition 1 (ext4), partition 3 (swap), none marked bootable");

	memset(disk, 0, 8);
	probe();
	ck_assert_ptr_nonnull(strstr(image.description, "no boot code"));
	ck_assert(!bootable(false));
	ck_assert_ptr_nonnull(strstr(err.message, "no boot code"));
}
END_TEST

START_TEST(mbr_truncated)
{
	boot_sector();
	mbr_entry(0, true, 0x83, 64, DISK_SIZE / 512 - 64);
	probe();
	ck_assert(bootable(false));
	mbr_entry(0, true, 0x83, 64, DISK_SIZE / 512 - 63);
	probe();
	ck_assert_uint_eq(image.missing, 512);
	ck_assert(!bootable(false));
	ck_assert_ptr_nonnull(strstr(err.message, "truncated"));
	/* The largest numbers that fit. */
	mbr_entry(0, true, 0x83, UINT32_MAX, UINT32_MAX);
	probe();
	ck_assert(!bootable(false));
}
END_TEST

/* A boot sector that ends as an MBR does but whose entries are code. */
START_TEST(lone_boot_sector)
{
	boot_sector();
	memset(disk + 446, 0x5a, 64);
	probe();
	ck_assert_int_eq(image.kind, HOST_IMAGE_SECTOR);
	ck_assert(bootable(false));
	memcpy(disk + 54, "FAT16   ", 8);
	probe();
	ck_assert_int_eq(image.kind, HOST_IMAGE_FILESYSTEM);
	ck_assert_str_eq(image.description, "raw disk, FAT from its first sector on, with a boot sector");
	ck_assert(bootable(false));
}
END_TEST

static void gpt_entry(unsigned n, const char *type, uint64_t first, uint64_t last)
{
	uint8_t *entry = disk + 1024 + 128 * n;

	memcpy(entry, type, 16);
	bytes_store(entry + 32, 8, first);
	bytes_store(entry + 40, 8, last);
}

static const char esp_type[] = "\x28\x73\x2a\xc1\x1f\xf8\xd2\x11\xba\x4b\x00\xa0\xc9\x3e\xc9\x3b";

static void gpt_header(void)
{
	mbr_entry(0, false, 0xee, 1, UINT32_MAX);
	memcpy(disk + 512, "EFI PART", 8);
	bytes_store(disk + 512 + 72, 8, 2);
	bytes_store(disk + 512 + 80, 4, 128);
	bytes_store(disk + 512 + 84, 4, 128);
}

START_TEST(gpt)
{
	gpt_header();
	gpt_entry(0, "Hah!IdontNeedEFI", 40, 47);
	gpt_entry(1, esp_type, 48, 63);
	gpt_entry(2, "0123456789abcdef", 64, 1023);
	memcpy(disk + 48 * 512 + 54, "FAT12   ", 8);
	ext4_at(64);
	probe();
	ck_assert_str_eq(image.description,
		"raw disk, GPT, BIOS boot partition 1, EFI system partition 2 (FAT), partition 3 (ext4)");
	ck_assert(bootable(true));
	ck_assert(!bootable(false));
	ck_assert_ptr_nonnull(strstr(err.message, "UEFI only"));
	boot_sector();
	probe();
	ck_assert(bootable(false));

	for (unsigned i = 3; i < 9; i++)
		gpt_entry(i, "0123456789abcdef", 1024 + i, 1024 + i);
	probe();
	ck_assert_ptr_nonnull(strstr(image.description, " and 5 more"));
	gpt_entry(9, "0123456789abcdef", 2000, DISK_SIZE / 512 + 9);
	probe();
	ck_assert_uint_eq(image.missing, 10 * 512);
	ck_assert(!bootable(true));
	/* Entries that run backwards or past all numbers are counted, not believed. */
	gpt_entry(9, "0123456789abcdef", 2000, UINT64_MAX);
	gpt_entry(10, "0123456789abcdef", 2000, 1999);
	probe();
	ck_assert_uint_eq(image.missing, 0);
	ck_assert_ptr_nonnull(strstr(image.description, "2 damaged entries"));
}
END_TEST

START_TEST(gpt_lying_header)
{
	static const uint64_t bad[][3] = {{0, 128, 128}, {UINT64_MAX, 128, 128}, {2, 128, 127}, {2, 128, UINT32_MAX},
		{2, UINT32_MAX, 128}, {DISK_SIZE / 512 - 1, 128, 4096}};

	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		gpt_header();
		bytes_store(disk + 512 + 72, 8, bad[i][0]);
		bytes_store(disk + 512 + 80, 4, bad[i][1]);
		bytes_store(disk + 512 + 84, 4, bad[i][2]);
		probe();
		ck_assert_int_eq(image.kind, HOST_IMAGE_GPT);
		ck_assert(!bootable(false) && !bootable(true));
	}
}
END_TEST

static void iso_volume(uint32_t blocks)
{
	uint8_t *d = disk + 16 * 2048;

	d[0] = 1;
	memcpy(d + 1, "CD001", 5);
	memset(d + 40, ' ', 32);
	memcpy(d + 40, "RESCUE\x1b[2J", 10);
	bytes_store(d + 80, 4, blocks);
	bytes_store(d + 128, 2, 2048);
}

START_TEST(iso)
{
	uint8_t *d = disk + 17 * 2048;

	iso_volume(DISK_SIZE / 2048);
	probe();
	ck_assert_str_eq(image.description, "ISO 9660 image \"RESCUE_[2J\", no boot sector");
	ck_assert(!bootable(false));
	ck_assert_ptr_nonnull(strstr(err.message, "no boot"));
	memcpy(d + 1, "CD001", 5);
	memcpy(d + 7, "EL TORITO SPECIFICATION", 23);
	bytes_store(d + 71, 4, 20);
	d = disk + 20 * 2048;
	d[0] = 1;
	bytes_store(d + 30, 2, 0xaa55);
	d[32] = 0x88;
	probe();
	ck_assert_ptr_nonnull(strstr(image.description, "El Torito for BIOS,"));
	ck_assert(!bootable(false));
	ck_assert_ptr_nonnull(strstr(err.message, "--cdrom"));
	memset(&err, 0, sizeof(err));
	ck_assert(bootable_so(false, true));
	ck_assert(!bootable_so(true, true));
	d[64] = 0x91;
	d[65] = 0xef;
	d[66] = 1;
	d[96] = 0x88;
	probe();
	ck_assert_ptr_nonnull(strstr(image.description, "BIOS and UEFI"));
	ck_assert(bootable(true));
	boot_sector();
	probe();
	ck_assert_ptr_nonnull(strstr(image.description, "boot sector"));
	ck_assert(bootable(false));
	ck_assert(bootable_so(true, true));
	iso_volume(2 * DISK_SIZE / 2048);
	probe();
	ck_assert(!bootable(false));
	ck_assert_ptr_nonnull(strstr(err.message, "truncated"));
}
END_TEST

START_TEST(file_systems)
{
	static const struct {
		const char *name;
		unsigned offset;
		const char *magic;
	} known[] = {{"XFS", 0, "XFSB"}, {"NTFS", 3, "NTFS    "}, {"swap", 4086, "SWAPSPACE2"}, {"LVM", 512, "LABELONE"},
		{"btrfs", 0x10040, "_BHRfS_M"}, {"LUKS", 0, "LUKS\xba\xbe"}, {"F2FS", 1024, "\x10\x20\xf5\xf2"}};
	char want[80];

	for (unsigned i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
		memset(disk, 0, DISK_SIZE);
		memcpy(disk + known[i].offset, known[i].magic, strlen(known[i].magic));
		probe();
		snprintf(want, sizeof(want), "raw disk, %s from its first sector on, no boot code", known[i].name);
		ck_assert_str_eq(image.description, want);
		ck_assert(!bootable(false));
	}
	memset(disk, 0, DISK_SIZE);
	ext4_at(0);
	probe();
	ck_assert_ptr_nonnull(strstr(image.description, "ext4"));
	bytes_store(disk + 1024 + 96, 4, 0);
	probe();
	ck_assert_ptr_nonnull(strstr(image.description, "ext3"));
}
END_TEST

START_TEST(foreign)
{
	static const struct {
		const char *magic;
		size_t size;
		int offset;
		const char *says;
	} known[] = {{"QFI\xfb\0\0\0\3", 8, 0, "qcow2"}, {"KDMV", 4, 0, "VMDK"},
		{"# Disk DescriptorFile\n", 22, 0, "VMDK"}, {"vhdxfile", 8, 0, "VHDX"}, {"conectix", 8, 0, "VHD"},
		{"conectix", 8, DISK_SIZE - 512, "VHD"}, {"\x7f\x10\xda\xbe", 4, 0x40, "VDI"},
		{"\xfd" "7zXZ\0", 6, 0, "xz -dc"}, {"\x1f\x8b\x08", 3, 0, "gzip -dc"}, {"PK\3\4", 4, 0, "zip"}};

	for (unsigned i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
		memset(disk, 0, DISK_SIZE);
		boot_sector();
		memcpy(disk + known[i].offset, known[i].magic, known[i].size);
		probe();
		ck_assert_int_eq(image.kind, HOST_IMAGE_FOREIGN);
		ck_assert(!bootable(false));
		ck_assert_int_lt(host_image_check_format("guest.img", &image, &err), 0);
		if (i)
			ck_assert_ptr_nonnull(strstr(err.message, known[i].says));
		else
			ck_assert_ptr_nonnull(strstr(err.message, "qemu-img convert -f qcow2 -O raw guest.img disk.raw"));
	}
}
END_TEST

START_TEST(nothing_known)
{
	const char text[] = "This is a letter and no disk at all.\n";

	probe();
	ck_assert_int_eq(image.kind, HOST_IMAGE_UNKNOWN);
	ck_assert(!bootable(false));
	ck_assert_int_eq(host_image_check_format("guest.img", &image, &err), 0);
	memcpy(disk, text, sizeof(text));
	for (disk_size = 0; disk_size < sizeof(text); disk_size++) {
		probe();
		ck_assert_int_eq(image.kind, HOST_IMAGE_UNKNOWN);
		ck_assert(!bootable(false));
		ck_assert_ptr_nonnull(strstr(err.message, "neither a kernel nor a bootable disk"));
	}
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("host_image");
	TCase *tcase = tcase_create("host_image");

	tcase_add_checked_fixture(tcase, setup, teardown);
	tcase_add_test(tcase, mbr);
	tcase_add_test(tcase, mbr_truncated);
	tcase_add_test(tcase, lone_boot_sector);
	tcase_add_test(tcase, gpt);
	tcase_add_test(tcase, gpt_lying_header);
	tcase_add_test(tcase, iso);
	tcase_add_test(tcase, file_systems);
	tcase_add_test(tcase, foreign);
	tcase_add_test(tcase, nothing_known);
	suite_add_tcase(suite, tcase);
	return run_suite(suite);
}
