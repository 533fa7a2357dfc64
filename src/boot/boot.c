/*
 * The entrance: telling kinds apart, and what every direct boot has in common (memory map, command line,
 * initrd, ACPI tables, entry states). The protocols themselves are in linux.c, multiboot.c, elf.c and
 * firmware.c.
 */
#include "vmm/boot.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "loader.h"
#include "vmm/bytes.h"

#define HEAD_SIZE 8192u

const char *boot_kind_name(enum boot_kind kind)
{
	switch (kind) {
	case BOOT_BZIMAGE:
		return "bzImage";
	case BOOT_MULTIBOOT:
		return "multiboot";
	case BOOT_PVH:
		return "PVH";
	case BOOT_VMLINUX:
		return "vmlinux";
	case BOOT_FIRMWARE:
		return "disk image";
	case BOOT_INVALID:
		break;
	}
	return "invalid";
}

static enum boot_kind identify_elf(const struct boot_image *image, bool multiboot, struct error *err)
{
	uint64_t entry;
	bool is_64;
	int code;

	if (elf_check(image, &is_64, err) < 0)
		return BOOT_INVALID;
	if (multiboot)
		return BOOT_MULTIBOOT;
	code = elf_find_pvh(image, &entry, err);
	if (code < 0)
		return BOOT_INVALID;
	if (code > 0)
		return BOOT_PVH;
	if (is_64)
		return BOOT_VMLINUX;
	error_set(err, -ENOEXEC, "%s is a 32-bit ELF file with neither a multiboot header nor a PVH note",
		image->path);
	return BOOT_INVALID;
}

/* A multiboot header of a file that is not ELF counts only if it says itself where to load (flag 16). */
static enum boot_kind identify_image(const struct boot_image *image, struct error *err)
{
	static const uint8_t elf_magic[4] = { 0x7f, 'E', 'L', 'F' };
	uint8_t head[HEAD_SIZE] = { 0 };
	uint64_t n = image->size < sizeof(head) ? image->size : sizeof(head);
	bool boot_sector;
	int header;

	if (image_read(image, 0, head, n, err) < 0)
		return BOOT_INVALID;
	boot_sector = bytes_load(head + 510, 2) == 0xaa55;
	if (boot_sector && memcmp(head + 0x202, "HdrS", 4) == 0)
		return BOOT_BZIMAGE;
	header = multiboot_find(head, n);
	if (memcmp(head, elf_magic, sizeof(elf_magic)) == 0)
		return identify_elf(image, header >= 0, err);
	if (header >= 0 && (bytes_load(head + header + 4, 4) & 1u << 16) && !boot_sector)
		return BOOT_MULTIBOOT;
	return BOOT_FIRMWARE;
}

enum boot_kind boot_identify(const char *path, struct error *err)
{
	struct boot_image image;
	enum boot_kind kind;

	if (image_open(&image, path, "guest", err) < 0)
		return BOOT_INVALID;
	kind = identify_image(&image, err);
	image_close(&image);
	return kind;
}

unsigned boot_e820_build(const struct guest_mem *mem, int firmware, struct boot_e820 *entries)
{
	uint64_t low_end = mem_low_end(mem), high = mem_high_size(mem);
	unsigned n = 0;

	if (firmware) {
		entries[n++] = (struct boot_e820){ 0, low_end, BOOT_E820_RAM };
	} else {
		entries[n++] = (struct boot_e820){ 0, LOW_EBDA, BOOT_E820_RAM };
		entries[n++] = (struct boot_e820){ LOW_EBDA, GPA_VGA_HOLE - LOW_EBDA, BOOT_E820_RESERVED };
		entries[n++] = (struct boot_e820){ GPA_ACPI, GPA_1M - GPA_ACPI, BOOT_E820_RESERVED };
		if (low_end > GPA_1M)
			entries[n++] = (struct boot_e820){ GPA_1M, low_end - GPA_1M, BOOT_E820_RAM };
	}
	if (!firmware)
		entries[n++] = (struct boot_e820){ GPA_ECAM, GPA_ECAM_SIZE, BOOT_E820_RESERVED };
	if (high)
		entries[n++] = (struct boot_e820){ GPA_HIGH_RAM, high, BOOT_E820_RAM };
	return n;
}

int load_initrd(struct boot_context *c, uint64_t low, uint64_t high, enum initrd_place place)
{
	const uint64_t mask = 0xfff;
	struct boot_image initrd;
	uint64_t gpa, low_end = mem_low_end(c->mem);
	int code;

	if (!c->request->initrd)
		return 0;
	code = image_open(&initrd, c->request->initrd, "initrd", c->err);
	if (code < 0)
		return code;
	low = (low + mask) & ~mask;
	high = (high < low_end ? high : low_end) & ~mask;
	if (low >= high || initrd.size > high - low) {
		code = error_set(c->err, -E2BIG,
			"the initrd %s is too large: it has %llu MiB and %llu MiB are free beside the kernel; "
			"give the guest more memory",
			initrd.path, (unsigned long long)((initrd.size + 0xfffff) >> 20),
			(unsigned long long)(low < high ? (high - low) >> 20 : 0));
	} else {
		gpa = place == INITRD_TOP ? (high - initrd.size) & ~mask : low;
		code = image_read_guest(&initrd, 0, c->mem, gpa, initrd.size, c->err);
		c->result->initrd_gpa = gpa;
		c->result->initrd_size = initrd.size;
	}
	image_close(&initrd);
	return code;
}

int load_cmdline(struct boot_context *c, const char *prefix, uint64_t limit)
{
	const char *text = c->request->append ? c->request->append : "";
	uint64_t prefix_length = strlen(prefix), length = strlen(text);

	if (limit > LOW_CMDLINE_SIZE - 1)
		limit = LOW_CMDLINE_SIZE - 1;
	if (prefix_length + length > limit)
		return error_set(c->err, -E2BIG,
			"the command line has %llu characters, the kernel takes at most %llu",
			(unsigned long long)(prefix_length + length), (unsigned long long)limit);
	mem_write(c->mem, LOW_CMDLINE, prefix, prefix_length);
	mem_write(c->mem, LOW_CMDLINE + prefix_length, text, length + 1);
	c->result->cmdline_gpa = LOW_CMDLINE;
	return 0;
}

int load_acpi(struct boot_context *c)
{
	struct acpi_config config = { .cpus = c->request->cpus };
	struct acpi_tables tables;
	int code = acpi_tables_build(&config, &tables, c->err);

	if (code < 0)
		return code;
	code = acpi_install(&tables, c->mem, GPA_ACPI, GPA_1M, &c->result->rsdp_gpa, c->err);
	acpi_tables_free(&tables);
	return code;
}

int check_load_range(struct boot_context *c, const char *what, uint64_t gpa, uint64_t size)
{
	unsigned long long first = gpa, last = gpa + size - 1;

	if (size > UINT64_MAX - gpa)
		return error_set(c->err, -EINVAL, "%s: %s at 0x%llx wraps around the address space",
			c->image.path, what, first);
	if (c->request->kind == BOOT_MULTIBOOT && gpa >= LOW_MULTIBOOT_BOTTOM && gpa + size <= LOW_MULTIBOOT)
		return 0;
	if (gpa < LOW_END || (gpa < GPA_1M && gpa + size > LOW_EBDA))
		return error_set(c->err, -EINVAL,
			"%s: %s 0x%llx-0x%llx lies in low memory that the loader needs",
			c->image.path, what, first, last);
	if (!mem_ptr(c->mem, gpa, size, true))
		return error_set(c->err, -EINVAL,
			"%s: %s 0x%llx-0x%llx lies outside the guest's memory (%llu MiB)", c->image.path, what,
			first,
			last, (unsigned long long)c->mem->size >> 20);
	return 0;
}

static int load_kind(struct boot_context *c)
{
	switch (c->request->kind) {
	case BOOT_BZIMAGE:
		return linux_load_bzimage(c);
	case BOOT_MULTIBOOT:
		return multiboot_load(c);
	case BOOT_PVH:
		return elf_load_pvh(c);
	case BOOT_VMLINUX:
		return elf_load_vmlinux(c);
	case BOOT_FIRMWARE:
		return firmware_load(c);
	case BOOT_INVALID:
		break;
	}
	return error_set(c->err, -EINVAL, "there is nothing to boot");
}

int boot_load(const struct boot_request *request, struct guest_mem *mem, struct cpu_state *bsp,
	struct boot_result *result, struct error *err)
{
	struct boot_context c = { .request = request, .mem = mem, .bsp = bsp, .result = result, .err = err };
	bool firmware = request->kind == BOOT_FIRMWARE;
	const char *path = request->kernel;
	int code;

	if (firmware)
		path = request->firmware ? request->firmware : BOOT_FIRMWARE_DEFAULT;
	memset(result, 0, sizeof(*result));
	code = image_open(&c.image, path, firmware ? "firmware" : "kernel", err);
	if (code == -ENOENT && firmware && (!strcmp(path, BOOT_FIRMWARE_DEFAULT) || !strcmp(path, BOOT_FIRMWARE_UEFI)))
		return error_set(err, code, "the firmware %s is missing; Debian's package %s has it, or name another by --firmware",
			path, strcmp(path, BOOT_FIRMWARE_UEFI) ? "seabios" : "ovmf");
	if (code < 0)
		return code;
	cpu_reset(bsp, true);
	code = load_kind(&c);
	image_close(&c.image);
	return code;
}
