/*
 * The loaders on images made here: what a good one leaves in RAM and registers, and for each lying header a negative
 * code and a sentence. Kernels of the host in /boot, if any, must load too.
 */
#include <asm/bootparam.h>

#include <check.h>
#include <errno.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "run_suite.h"
#include "boot/loader.h"
#include "vmm/boot.h"
#include "vmm/bytes.h"
#include "vmm/cpu.h"
#include "vmm/mem.h"

#define MIB (1ull << 20)
#define IMAGE_SIZE 0x4000u
#define RAM_SIZE (64 * MIB)

static uint8_t image[IMAGE_SIZE];
static char path[40], initrd_path[40];
static struct guest_mem *mem;
static struct cpu_state cpu;
static struct boot_result result;
static struct error err;

static void write_file(char *name, const void *data, size_t n)
{
	int fd;

	strcpy(name, "/tmp/vmm-boot-XXXXXX");
	fd = mkstemp(name);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(write(fd, data, n), (ssize_t)n);
	close(fd);
}

static void setup(void)
{
	memset(image, 0, sizeof(image));
	memset(&err, 0, sizeof(err));
	path[0] = initrd_path[0] = 0;
	ck_assert_int_eq(mem_create(RAM_SIZE, &mem, &err), 0);
}

static void teardown(void)
{
	mem_destroy(mem);
	if (path[0])
		unlink(path);
	if (initrd_path[0])
		unlink(initrd_path);
}

/* Identifies and loads the first n bytes of `image`. The identification's error counts too. */
static int load_n(size_t n, const char *append, uint64_t initrd_size)
{
	struct boot_request request = { .kernel = path, .append = append, .cpus = 1 };

	write_file(path, image, n);
	if (initrd_size) {
		write_file(initrd_path, "initrd!", 7);
		ck_assert_int_eq(truncate(initrd_path, (off_t)initrd_size), 0);
		request.initrd = initrd_path;
	}
	request.kind = boot_identify(path, &err);
	if (request.kind == BOOT_INVALID)
		return err.code;
	ck_assert_int_ne(request.kind, BOOT_FIRMWARE);
	return boot_load(&request, mem, &cpu, &result, &err);
}

static int load(void)
{
	return load_n(sizeof(image), NULL, 0);
}

static uint64_t guest(uint64_t gpa, unsigned size)
{
	uint64_t v = 0;

	ck_assert_int_eq(mem_read(mem, gpa, &v, size), 0);
	return v;
}

static void put(uint64_t at, unsigned size, uint64_t v)
{
	bytes_store(image + at, size, v);
}

/* --- builders --- */

/* Two setup sectors, then code: 0x1000 bytes at file offset 0x600, marked by its offset. */
static void make_bzimage(void)
{
	image[0x1f1] = 2;
	put(0x1f4, 4, (IMAGE_SIZE - 0x600) / 16);
	put(0x1fe, 2, 0xaa55);
	put(0x200, 2, 0x6aeb);
	memcpy(image + 0x202, "HdrS", 4);
	put(0x206, 2, 0x20f);
	image[0x211] = LOADED_HIGH;
	put(0x214, 4, 0x100000);
	put(0x22c, 4, 0x7fffffff); /* initrd_addr_max */
	put(0x230, 4, 0x200000);   /* alignment */
	image[0x234] = 1;
	put(0x236, 2, XLF_KERNEL_64);
	put(0x238, 4, 255); /* cmdline_size */
	put(0x258, 8, 0x1000000);
	put(0x260, 4, 0x800000);
	put(0x600 + 0x200, 4, 0x12345678);
}

enum { PHDR0 = 64, PHDR1 = 64 + 56, SEGMENT = 0x1000, NOTES = 0x3000 };

/* One segment of 0x1000 bytes and 0x2000 in memory at 1 MiB, one PT_NOTE with a PVH entry. */
static void make_elf64(bool pvh)
{
	memcpy(image, "\177ELF\2\1\1", 7);
	put(16, 2, 2);
	put(18, 2, 62);
	put(20, 4, 1);
	put(24, 8, 0xffffffff80100010);
	put(32, 8, PHDR0);
	put(52, 2, 64);
	put(54, 2, 56);
	put(56, 2, pvh ? 2 : 1);
	put(PHDR0, 4, 1);
	put(PHDR0 + 4, 4, 5);
	put(PHDR0 + 8, 8, SEGMENT);
	put(PHDR0 + 16, 8, 0xffffffff80100000);
	put(PHDR0 + 24, 8, MIB);
	put(PHDR0 + 32, 8, 0x1000);
	put(PHDR0 + 40, 8, 0x2000);
	put(SEGMENT + 0x10, 4, 0x12345678);
	if (!pvh)
		return;
	put(PHDR1, 4, 4);
	put(PHDR1 + 8, 8, NOTES);
	put(PHDR1 + 32, 8, 0x30);
	put(NOTES, 4, 4); /* a note of another type first */
	put(NOTES + 4, 4, 4);
	put(NOTES + 8, 4, 6);
	memcpy(image + NOTES + 12, "Xen", 4);
	put(NOTES + 20, 4, 4);
	put(NOTES + 24, 4, 4);
	put(NOTES + 28, 4, 18);
	memcpy(image + NOTES + 32, "Xen", 4);
	put(NOTES + 36, 4, MIB + 0x40);
}

static void put_multiboot(uint64_t at, uint32_t flags)
{
	put(at, 4, 0x1badb002);
	put(at + 4, 4, flags);
	put(at + 8, 4, (uint32_t)-(0x1badb002 + flags));
}

static void make_elf32_multiboot(void)
{
	memcpy(image, "\177ELF\1\1\1", 7);
	put(16, 2, 2);
	put(18, 2, 3);
	put(20, 4, 1);
	put(24, 4, MIB + 0x20);
	put(28, 4, 52);
	put(40, 2, 52);
	put(42, 2, 32);
	put(44, 2, 1);
	put(52, 4, 1);
	put(56, 4, SEGMENT);
	put(60, 4, MIB);
	put(64, 4, MIB);
	put(68, 4, 0x1000);
	put(72, 4, 0x1000);
	put_multiboot(SEGMENT, 3);
}

/* Loads file bytes 0x80.. to 2 MiB. */
static void make_multiboot_addresses(void)
{
	put_multiboot(0x100, 1u << 16);
	put(0x10c, 4, 2 * MIB + 0x80);
	put(0x110, 4, 2 * MIB);
	put(0x114, 4, 2 * MIB + 0x1000);
	put(0x118, 4, 2 * MIB + 0x3000);
	put(0x11c, 4, 2 * MIB + 0x200);
	put(0x80 + 0x200, 4, 0x12345678);
}

/* --- good images --- */

static void check_flat_state(bool is_long)
{
	ck_assert_uint_eq(cpu.rflags, 2);
	ck_assert_uint_eq(cpu.cr0 & CR0_PE, CR0_PE);
	ck_assert_uint_eq(!!(cpu.cr0 & CR0_PG), is_long);
	ck_assert_uint_eq(!!(cpu.efer & EFER_LMA), is_long);
	ck_assert_uint_eq(!!(cpu.seg[SEG_CS].ar & SEG_AR_L), is_long);
	ck_assert_uint_eq(!!(cpu.seg[SEG_CS].ar & SEG_AR_DB), !is_long);
	ck_assert_uint_eq(cpu.seg[SEG_CS].selector, 0x10);
	ck_assert_uint_eq(cpu.seg[SEG_DS].selector, 0x18);
	ck_assert_uint_eq(cpu.seg[SEG_SS].limit, 0xffffffff);
	ck_assert_uint_eq(cpu.gpr[GPR_RIP], result.entry);
	ck_assert_int_eq(memcmp(mem_ptr(mem, result.rsdp_gpa, 8, false), "RSD PTR ", 8), 0);
}

START_TEST(test_bzimage)
{
	make_bzimage();
	ck_assert_msg(load_n(IMAGE_SIZE, "console=ttyS0", 5000) == 0, "%s", err.message);
	check_flat_state(true);
	ck_assert_uint_eq(result.entry, 0x1000200);
	ck_assert_uint_eq(guest(result.entry, 4), 0x12345678);
	ck_assert_uint_eq(cpu.gpr[GPR_RSI], result.params_gpa);
	ck_assert_str_eq(mem_ptr(mem, guest(result.params_gpa + 0x228, 4), 64, false), "console=ttyS0");
	ck_assert_uint_eq(guest(result.params_gpa + 0x70, 8), result.rsdp_gpa);
	ck_assert_uint_eq(guest(result.params_gpa + 0x218, 4), result.initrd_gpa);
	ck_assert_uint_eq(guest(result.params_gpa + 0x21c, 4), 5000);
	ck_assert_uint_eq(guest(result.params_gpa + 0x210, 1), 0xff);
	ck_assert_uint_eq(guest(result.params_gpa + 0x202, 4), 0x53726448);
	ck_assert_uint_ge(result.initrd_gpa, 0x1000000 + 0x800000);
	ck_assert_uint_le(result.initrd_gpa + 5000, RAM_SIZE);
	ck_assert_uint_eq(result.initrd_gpa % 4096, 0);
	ck_assert_int_eq(memcmp(mem_ptr(mem, result.initrd_gpa, 7, false), "initrd!", 7), 0);
}
END_TEST

/* The identity map, walked by hand at a few addresses. */
START_TEST(test_identity_map)
{
	static const uint64_t addresses[] = { 0, 0x1000200, 0x3fffffff, 0x40000000, 0xffffffff };

	make_bzimage();
	ck_assert_int_eq(load(), 0);
	for (unsigned i = 0; i < 5; i++) {
		uint64_t a = addresses[i];
		uint64_t pdpt = guest(cpu.cr3, 8), pd = guest((pdpt & ~0xfffull) + (a >> 30) * 8, 8);
		uint64_t leaf = guest((pd & ~0xfffull) + (a >> 21 & 511) * 8, 8);

		ck_assert_uint_eq(pdpt & 3, 3);
		ck_assert_uint_eq(pd & 3, 3);
		ck_assert_uint_eq(leaf, (a & ~0x1fffffull) | PTE_P | PTE_W | PTE_PS);
	}
}
END_TEST

START_TEST(test_bzimage_32)
{
	make_bzimage();
	put(0x236, 2, 0);
	ck_assert_int_eq(load(), 0);
	check_flat_state(false);
	ck_assert_uint_eq(result.entry, 0x1000000);
	ck_assert_uint_eq(cpu.gpr[GPR_RSI], result.params_gpa);
}
END_TEST

START_TEST(test_e820)
{
	struct boot_e820 map[BOOT_E820_MAX];
	uint64_t ram = 0, end = 0;
	unsigned n;

	mem_destroy(mem);
	ck_assert_int_eq(mem_create(4096 * MIB, &mem, &err), 0);
	n = boot_e820_build(mem, 0, map);
	for (unsigned i = 0; i < n; i++) {
		ck_assert_uint_ge(map[i].gpa, end);
		end = map[i].gpa + map[i].size;
		if (map[i].type != BOOT_E820_RAM)
			continue;
		ram += map[i].size;
		ck_assert_ptr_nonnull(mem_ptr(mem, map[i].gpa, map[i].size, true));
	}
	ck_assert_uint_eq(end, 6144 * MIB);
	ck_assert_uint_eq(ram, 4096 * MIB - MIB + 0x9fc00);
}
END_TEST

START_TEST(test_pvh)
{
	uint64_t info;

	make_elf64(true);
	ck_assert_msg(load_n(IMAGE_SIZE, "quiet", 100) == 0, "%s", err.message);
	check_flat_state(false);
	ck_assert_str_eq(result.protocol, "PVH");
	ck_assert_uint_eq(result.entry, MIB + 0x40);
	info = cpu.gpr[GPR_RBX];
	ck_assert_uint_eq(guest(info, 4), 0x336ec578);
	ck_assert_uint_eq(guest(info + 4, 4), 1);
	ck_assert_uint_eq(guest(info + 12, 4), 1);
	ck_assert_uint_eq(guest(guest(info + 16, 8), 8), result.initrd_gpa);
	ck_assert_uint_eq(guest(guest(info + 16, 8) + 8, 8), 100);
	ck_assert_str_eq(mem_ptr(mem, guest(info + 24, 8), 64, false), "quiet");
	ck_assert_uint_eq(guest(info + 32, 8), result.rsdp_gpa);
	ck_assert_uint_ge(guest(info + 48, 4), 4);
	ck_assert_uint_eq(guest(guest(info + 40, 8) + 8, 8), 0x9fc00);
}
END_TEST

START_TEST(test_vmlinux)
{
	make_elf64(false);
	ck_assert_msg(load_n(IMAGE_SIZE, "quiet", 0) == 0, "%s", err.message);
	check_flat_state(true);
	/* The header's entry is virtual. */
	ck_assert_uint_eq(result.entry, MIB + 0x10);
	ck_assert_uint_eq(guest(result.entry, 4), 0x12345678);
	ck_assert_uint_eq(guest(cpu.gpr[GPR_RSI] + 0x202, 4), 0x53726448);
}
END_TEST

START_TEST(test_multiboot_elf)
{
	uint64_t info;

	make_elf32_multiboot();
	ck_assert_msg(load_n(IMAGE_SIZE, "a b", 100) == 0, "%s", err.message);
	check_flat_state(false);
	ck_assert_uint_eq(result.entry, MIB + 0x20);
	ck_assert_uint_eq(cpu.gpr[GPR_RAX], 0x2badb002);
	info = cpu.gpr[GPR_RBX];
	ck_assert_uint_eq(guest(info, 4) & 0x4d, 0x4d);
	ck_assert_uint_eq(guest(info + 8, 4), (RAM_SIZE - MIB) / 1024);
	ck_assert_str_eq(strchr(mem_ptr(mem, guest(info + 16, 4), 64, false), ' '), " a b");
	ck_assert_uint_eq(guest(info + 20, 4), 1);
	ck_assert_uint_eq(guest(guest(info + 24, 4), 4), result.initrd_gpa);
	ck_assert_uint_eq(guest(guest(info + 24, 4) + 4, 4), result.initrd_gpa + 100);
	ck_assert_uint_eq(guest(info + 44, 4) % 24, 0);
	ck_assert_uint_eq(guest(guest(info + 48, 4), 4), 20);
}
END_TEST

START_TEST(test_multiboot_addresses)
{
	make_multiboot_addresses();
	ck_assert_msg(load() == 0, "%s", err.message);
	ck_assert_uint_eq(guest(result.entry, 4), 0x12345678);
	ck_assert_uint_eq(result.kernel_size, 0x3000);
}
END_TEST

START_TEST(test_firmware)
{
	static uint8_t bios[0x40000];
	struct boot_request request = { .kind = BOOT_FIRMWARE, .firmware = path, .cpus = 1 };
	uint8_t byte = 0;

	bios[sizeof(bios) - 16] = 0xea;
	write_file(path, bios, sizeof(bios));
	ck_assert_msg(boot_load(&request, mem, &cpu, &result, &err) == 0, "%s", err.message);
	ck_assert_uint_eq(cpu.seg[SEG_CS].base + cpu.gpr[GPR_RIP], 0xfffffff0);
	ck_assert_uint_eq(*(uint8_t *)mem_ptr(mem, 0xfffffff0, 1, false), 0xea);
	ck_assert_uint_eq(result.kernel_gpa, 0x100000000 - sizeof(bios));
	ck_assert_uint_eq(result.kernel_size, sizeof(bios));
	/* A reset: the ROM stays. */
	ck_assert_msg(boot_load(&request, mem, &cpu, &result, &err) == 0, "%s", err.message);
	ck_assert_int_eq(mem_read(mem, 0xfffffff0, &byte, 1), 0);
	ck_assert_uint_eq(byte, 0xea);
	ck_assert_int_eq(truncate(path, 1000), 0);
	ck_assert_int_lt(boot_load(&request, mem, &cpu, &result, &err), 0);
}
END_TEST

/* --- bad images: one field changed, and a part of the sentence --- */

struct lie {
	uint64_t at;
	unsigned size;
	uint64_t value;
	const char *says;
};

static void check_lie(const struct lie *lie)
{
	int code;

	put(lie->at, lie->size, lie->value);
	code = load();
	ck_assert_msg(code < 0, "0x%llx at 0x%llx is taken", (unsigned long long)lie->value,
		(unsigned long long)lie->at);
	ck_assert_int_eq(err.code, code);
	ck_assert_msg(strstr(err.message, lie->says) != NULL, "%s", err.message);
	ck_assert_ptr_null(strchr(err.message, '\n'));
}

static const struct lie bzimage_lies[] = {
	{ 0x206, 2, 0x205, "2.06 or later" },
	{ 0x211, 1, 0, "zImage" },
	{ 0x1f4, 4, 0xffffffff, "truncated" },
	{ 0x1f1, 1, 0xff, "truncated" },
	{ 0x24c, 4, 0xfffffff0, "ends past the file" },
	{ 0x230, 4, 0x300000, "alignment" },
	{ 0x230, 4, 0, "alignment" },
	{ 0x258, 8, 0, "wants to be loaded" },
	{ 0x258, 8, 0xffffffffffe00000, "wants to be loaded" },
	{ 0x258, 8, 0xf0000000, "MiB of memory" },
	{ 0x260, 4, 0xffffffff, "MiB of memory" },
};

START_TEST(test_bzimage_lies)
{
	make_bzimage();
	check_lie(&bzimage_lies[_i]);
}
END_TEST

static const struct lie elf_lies[] = {
	{ PHDR0 + 8, 8, 0x100000, "past the end of the file" },
	{ PHDR0 + 8, 8, 0xffffffffffffff00, "past the end of the file" },
	{ PHDR0 + 32, 8, 0xffffffffffffffff, "more bytes in the file" },
	{ PHDR0 + 40, 8, 0xffffffffffffffff, "wraps" },
	{ PHDR0 + 40, 8, 0x10, "more bytes in the file" },
	{ PHDR0 + 40, 8, RAM_SIZE, "outside the guest's memory" },
	{ PHDR0 + 24, 8, 0xffffffffffffff00, "wraps" },
	{ PHDR0 + 24, 8, 0xd0000000, "outside the guest's memory" },
	{ PHDR0 + 24, 8, 0x1000, "low memory" },
	{ PHDR0 + 24, 8, 0x9f000, "low memory" },
	{ PHDR0 + 24, 8, 0x2000000, "outside what is loaded" },
	{ PHDR0, 4, 6, "no segment" },
	{ 56, 2, 0, "program headers" },
	{ 56, 2, 0xfff0, "ELF" },
	{ 32, 8, 0xfffffffffffffff0, "ELF" },
	{ 32, 8, IMAGE_SIZE - 8, "ELF" },
	{ 18, 2, 183, "another machine" },
	{ 16, 2, 1, "not an executable" },
	{ 5, 1, 2, "" },
	{ 4, 1, 7, "" },
	{ PHDR1 + 8, 8, 0x100000, "past the end of the file" },
	{ PHDR1 + 32, 8, 0x7fffffffffffffff, "past the end of the file" },
	{ NOTES, 4, 0xfffffffc, "runs past" },
	{ NOTES + 24, 4, 0xffffffff, "runs past" },
	{ NOTES + 36, 4, 0, "outside what is loaded" },
	{ NOTES + 36, 4, MIB + 0x2000, "outside what is loaded" },
};

START_TEST(test_elf_lies)
{
	make_elf64(true);
	check_lie(&elf_lies[_i]);
}
END_TEST

START_TEST(test_vmlinux_entry_outside)
{
	const struct lie lie = { 24, 8, 0x7fff0000, "outside what is loaded" };

	make_elf64(false);
	check_lie(&lie);
}
END_TEST

static const struct lie multiboot_lies[] = {
	{ 0x110, 4, 2 * MIB + 0x1000, "before the file" },
	{ 0x110, 4, MIB, "before the file" },
	{ 0x114, 4, MIB, "past the file" },
	{ 0x114, 4, 0x10000000, "past the file" },
	{ 0x118, 4, 2 * MIB + 4, "bss" },
	{ 0x118, 4, 0xffffffff, "outside the guest's memory" },
	{ 0x11c, 4, 0, "entry" },
};

START_TEST(test_multiboot_lies)
{
	make_multiboot_addresses();
	check_lie(&multiboot_lies[_i]);
}
END_TEST

START_TEST(test_multiboot_unknown_feature)
{
	const struct lie lie = { 0, 1, 0x7f, "features" };

	make_elf32_multiboot();
	put_multiboot(SEGMENT, 0x8003);
	check_lie(&lie);
}
END_TEST

START_TEST(test_plain_elf32)
{
	const struct lie lie = { SEGMENT, 4, 0, "neither" };

	make_elf32_multiboot();
	check_lie(&lie);
}
END_TEST

START_TEST(test_too_large)
{
	char line[300];

	make_bzimage();
	ck_assert_int_eq(load_n(IMAGE_SIZE, NULL, 60 * MIB), -E2BIG);
	ck_assert_ptr_nonnull(strstr(err.message, "too large"));
	unlink(path);
	unlink(initrd_path);
	memset(line, 'x', sizeof(line));
	line[255] = 0;
	ck_assert_int_eq(load_n(IMAGE_SIZE, line, 0), 0);
	unlink(path);
	line[255] = 'x';
	line[256] = 0;
	ck_assert_int_eq(load_n(IMAGE_SIZE, line, 0), -E2BIG);
	ck_assert_ptr_nonnull(strstr(err.message, "at most 255"));
}
END_TEST

/* Every shorter length of each image is refused or a disk image; none crashes. */
START_TEST(test_truncation)
{
	for (unsigned n = 1; n < IMAGE_SIZE; n += n < 0x700 ? 61 : 509) {
		enum boot_kind kind;

		memset(image, 0, sizeof(image));
		if (_i == 0)
			make_bzimage();
		else
			make_elf64(_i == 1);
		write_file(path, image, n);
		kind = boot_identify(path, &err);
		unlink(path);
		if (kind == BOOT_FIRMWARE || kind == BOOT_INVALID)
			continue;
		if (n < SEGMENT + 0x1000 || _i == 0)
			ck_assert_int_lt(load_n(n, NULL, 0), 0);
		unlink(path);
	}
}
END_TEST

START_TEST(test_files)
{
	struct boot_request request = { .kind = BOOT_BZIMAGE, .kernel = "/nonexistent/vmlinuz", .cpus = 1 };

	ck_assert_int_eq(boot_identify("/nonexistent/vmlinuz", &err), BOOT_INVALID);
	ck_assert_int_eq(err.code, -ENOENT);
	ck_assert_int_eq(boot_identify("/tmp", &err), BOOT_INVALID);
	ck_assert_ptr_nonnull(strstr(err.message, "directory"));
	ck_assert_int_eq(boot_identify("/dev/null", &err), BOOT_INVALID);
	write_file(path, "", 0);
	ck_assert_int_eq(boot_identify(path, &err), BOOT_INVALID);
	ck_assert_ptr_nonnull(strstr(err.message, "empty"));
	unlink(path);
	write_file(path, "hello", 5);
	ck_assert_int_eq(boot_identify(path, &err), BOOT_FIRMWARE);
	ck_assert_int_eq(boot_load(&request, mem, &cpu, &result, &err), -ENOENT);
	request.kernel = path;
	ck_assert_int_eq(boot_load(&request, mem, &cpu, &result, &err), -ENOEXEC);
	request.kernel = NULL;
	ck_assert_int_eq(boot_load(&request, mem, &cpu, &result, &err), -EINVAL);
}
END_TEST

START_TEST(test_kernels_of_the_host)
{
	struct boot_request request = { .kind = BOOT_BZIMAGE, .append = "quiet", .cpus = 1 };
	const char *pattern = getenv("VMM_TEST_KERNELS");
	glob_t files;

	if (glob(pattern ? pattern : "/boot/vmlinuz-*", 0, NULL, &files))
		return;
	mem_destroy(mem);
	ck_assert_int_eq(mem_create(512 * MIB, &mem, &err), 0);
	for (size_t i = 0; i < files.gl_pathc; i++) {
		request.kernel = files.gl_pathv[i];
		if (access(request.kernel, R_OK))
			continue;
		ck_assert_int_eq(boot_identify(request.kernel, &err), BOOT_BZIMAGE);
		ck_assert_msg(boot_load(&request, mem, &cpu, &result, &err) == 0, "%s", err.message);
		check_flat_state(true);
	}
	globfree(&files);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("boot");
	TCase *tc = tcase_create("all");

	tcase_set_timeout(tc, 60);
	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, test_bzimage);
	tcase_add_test(tc, test_identity_map);
	tcase_add_test(tc, test_bzimage_32);
	tcase_add_test(tc, test_e820);
	tcase_add_test(tc, test_pvh);
	tcase_add_test(tc, test_vmlinux);
	tcase_add_test(tc, test_multiboot_elf);
	tcase_add_test(tc, test_multiboot_addresses);
	tcase_add_test(tc, test_firmware);
	tcase_add_loop_test(tc, test_bzimage_lies, 0, sizeof(bzimage_lies) / sizeof(bzimage_lies[0]));
	tcase_add_loop_test(tc, test_elf_lies, 0, sizeof(elf_lies) / sizeof(elf_lies[0]));
	tcase_add_test(tc, test_vmlinux_entry_outside);
	tcase_add_loop_test(tc, test_multiboot_lies, 0, sizeof(multiboot_lies) / sizeof(multiboot_lies[0]));
	tcase_add_test(tc, test_multiboot_unknown_feature);
	tcase_add_test(tc, test_plain_elf32);
	tcase_add_test(tc, test_too_large);
	tcase_add_loop_test(tc, test_truncation, 0, 3);
	tcase_add_test(tc, test_files);
	tcase_add_test(tc, test_kernels_of_the_host);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
