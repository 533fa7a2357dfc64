/*
 * Multiboot 1 (Multiboot Specification 0.6.96): a 32-bit kernel that is entered in protected mode with EAX =
 * the loader's magic and EBX = the information structure. The header is within the first 8192 bytes,
 * 4-aligned:
 *
 *   0 magic  4 flags  8 checksum  [flag 16: 12 header_addr  16 load_addr  20 load_end  24 bss_end  28 entry]
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "loader.h"
#include "vmm/bytes.h"

#define HEADER_MAGIC 0x1badb002u
#define LOADER_MAGIC 0x2badb002u
#define HEADER_AREA 8192u
#define FLAG_ALIGN (1u << 0)
#define FLAG_MEMORY (1u << 1)
#define FLAG_VIDEO (1u << 2) /* a wish that we need not grant */
#define FLAG_ADDRESSES (1u << 16)
#define FLAGS_REQUIRED 0xffffu

/* At LOW_MULTIBOOT: information, list of modules, the loader's name; the memory map ends below LOW_CMDLINE. */
#define MULTIBOOT_INFO LOW_MULTIBOOT
#define MULTIBOOT_MODULES (LOW_MULTIBOOT + 0x80)
#define MULTIBOOT_LOADER_NAME (LOW_MULTIBOOT + 0xc0)
#define MULTIBOOT_MEMMAP (LOW_MULTIBOOT + 0x100)
#define INFO_SIZE 116u
#define INFO_MEMORY (1u << 0)
#define INFO_CMDLINE (1u << 2)
#define INFO_MODULES (1u << 3)
#define INFO_MEMMAP (1u << 6)
#define INFO_LOADER (1u << 9)

int multiboot_find(const uint8_t *head, uint64_t size)
{
	if (size > HEADER_AREA)
		size = HEADER_AREA;
	for (uint64_t at = 0; at + 12 <= size; at += 4) {
		uint32_t magic = (uint32_t)bytes_load(head + at, 4), flags =
			(uint32_t)bytes_load(head + at + 4, 4);

		if (magic == HEADER_MAGIC && magic + flags + (uint32_t)bytes_load(head + at + 8, 4) == 0)
			return (int)at;
	}
	return -1;
}

/* The image says itself what goes where: one range of the file, then zeroes to bss_end. */
static int load_by_addresses(struct boot_context *c, const uint8_t *head, uint64_t header, uint64_t *entry)
{
	uint64_t header_gpa = bytes_load(head + header + 12, 4), load = bytes_load(head + header + 16, 4);
	uint64_t load_end = bytes_load(head + header + 20, 4), bss_end = bytes_load(head + header + 24, 4);
	uint64_t offset, size;
	int code;

	*entry = bytes_load(head + header + 28, 4);
	if (load > header_gpa || header_gpa - load > header)
		return error_set(c->err, -EINVAL,
			"%s: the multiboot header's load address 0x%llx lies before the file",
			c->image.path, (unsigned long long)load);
	offset = header - (header_gpa - load);
	size = load_end ? load_end - load : c->image.size - offset;
	if (load_end && (load_end < load || size > c->image.size - offset))
		return error_set(c->err, -EINVAL, "%s: the multiboot header's load range ends past the file",
			c->image.path);
	if (bss_end && bss_end < load + size)
		return error_set(c->err, -EINVAL, "%s: the multiboot header's bss ends before it begins",
			c->image.path);
	c->result->kernel_gpa = load;
	c->result->kernel_size = bss_end ? bss_end - load : size;
	if (*entry < load || *entry - load >= size)
		return error_set(c->err, -EINVAL, "%s: the entry 0x%llx lies outside what is loaded",
			c->image.path, (unsigned long long)*entry);
	code = check_load_range(c, "the image", load, c->result->kernel_size);
	if (code < 0)
		return code;
	return image_read_guest(&c->image, offset, c->mem, load, size, c->err);
}

/* Entries are {size of the rest, base, length, type}. */
static uint32_t write_memory_map(struct boot_context *c)
{
	struct boot_e820 map[BOOT_E820_MAX];
	unsigned n = boot_e820_build(c->mem, 0, map);
	uint8_t bytes[BOOT_E820_MAX * 24];
	struct byte_writer w = { .data = bytes, .size = sizeof(bytes) };

	for (unsigned i = 0; i < n; i++) {
		bytes_put32(&w, 20);
		bytes_put64(&w, map[i].gpa);
		bytes_put64(&w, map[i].size);
		bytes_put32(&w, map[i].type);
	}
	mem_write(c->mem, MULTIBOOT_MEMMAP, bytes, w.pos);
	return (uint32_t)w.pos;
}

static void write_info(struct boot_context *c)
{
	uint8_t info[INFO_SIZE] = { 0 };
	uint64_t low_end = mem_low_end(c->mem);
	uint32_t flags = INFO_MEMORY | INFO_CMDLINE | INFO_MEMMAP | INFO_LOADER;

	bytes_store(info + 4, 4, LOW_EBDA >> 10);
	bytes_store(info + 8, 4, (low_end - GPA_1M) >> 10);
	bytes_store(info + 16, 4, c->result->cmdline_gpa);
	if (c->result->initrd_size) {
		uint8_t module[16] = { 0 };

		flags |= INFO_MODULES;
		bytes_store(module, 4, c->result->initrd_gpa);
		bytes_store(module + 4, 4, c->result->initrd_gpa + c->result->initrd_size);
		bytes_store(module + 8, 4, MULTIBOOT_LOADER_NAME + 4); /* an empty string */
		mem_write(c->mem, MULTIBOOT_MODULES, module, sizeof(module));
		bytes_store(info + 20, 4, 1);
		bytes_store(info + 24, 4, MULTIBOOT_MODULES);
	}
	bytes_store(info + 44, 4, write_memory_map(c));
	bytes_store(info + 48, 4, MULTIBOOT_MEMMAP);
	mem_write(c->mem, MULTIBOOT_LOADER_NAME, "vmm\0", 5);
	bytes_store(info + 64, 4, MULTIBOOT_LOADER_NAME);
	bytes_store(info, 4, flags);
	mem_write(c->mem, MULTIBOOT_INFO, info, sizeof(info));
	c->result->params_gpa = MULTIBOOT_INFO;
}

/* The command line begins with the kernel's name, as GRUB and others pass it. */
static int load_named_cmdline(struct boot_context *c)
{
	const char *slash = strrchr(c->image.path, '/');
	char prefix[256];

	snprintf(prefix, sizeof(prefix), "%s ", slash ? slash + 1 : c->image.path);
	return load_cmdline(c, prefix, LOW_CMDLINE_SIZE);
}

static int load_image(struct boot_context *c, uint64_t *entry)
{
	uint8_t head[HEADER_AREA + 32] = { 0 };
	uint64_t n = c->image.size < HEADER_AREA ? c->image.size : HEADER_AREA;
	int header, code = image_read(&c->image, 0, head, n, c->err);
	uint32_t flags;

	if (code < 0)
		return code;
	header = multiboot_find(head, n);
	if (header < 0)
		return error_set(c->err, -ENOEXEC, "%s has no multiboot header in its first 8 KiB",
			c->image.path);
	flags = (uint32_t)bytes_load(head + header + 4, 4);
	if (flags & FLAGS_REQUIRED & ~(FLAG_ALIGN | FLAG_MEMORY | FLAG_VIDEO))
		return error_set(c->err, -ENOEXEC, "%s requires multiboot features 0x%x that are not known",
			c->image.path, flags & FLAGS_REQUIRED);
	if (flags & FLAG_ADDRESSES)
		return load_by_addresses(c, head, (uint64_t)header, entry);
	return elf_load_segments(c, entry);
}

int multiboot_load(struct boot_context *c)
{
	uint64_t entry;
	int code = load_image(c, &entry);

	if (code == 0 && (entry >= GPA_4G || c->result->kernel_gpa + c->result->kernel_size > GPA_4G))
		return error_set(c->err, -EINVAL, "%s: a multiboot kernel must lie below 4 GiB",
			c->image.path);
	if (code == 0)
		code = load_named_cmdline(c);
	if (code == 0)
		code = load_initrd(c, c->result->kernel_gpa + c->result->kernel_size, GPA_4G, INITRD_BOTTOM);
	if (code == 0)
		code = load_acpi(c);
	if (code < 0)
		return code;
	write_info(c);
	enter_protected(c, entry);
	c->bsp->gpr[GPR_RAX] = LOADER_MAGIC;
	c->bsp->gpr[GPR_RBX] = MULTIBOOT_INFO;
	c->result->protocol = "multiboot 1";
	return 0;
}
