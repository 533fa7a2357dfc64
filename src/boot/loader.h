/*
 * What the loaders share: reading a file safely, the low memory that a direct boot lays out, and the register
 * states that the protocols start from. See docs/boot.md for the map.
 */
#ifndef BOOT_LOADER_H
#define BOOT_LOADER_H

#include <stdbool.h>
#include <stdint.h>

#include "vmm/boot.h"
#include "vmm/boot_acpi.h"
#include "vmm/cpu.h"
#include "vmm/mem.h"

/* Low memory of a direct boot. Images may not be loaded below LOW_END. */
#define LOW_GDT 0x500ull
#define LOW_STACK_TOP 0x7000ull /* grows down; not promised, but some guests push before they have one */
#define LOW_PARAMS 0x7000ull	/* zero page or PVH start info */
#define LOW_MEMMAP 0x8000ull	/* PVH */
#define LOW_MODULES 0x8800ull
#define LOW_PAGES 0x9000ull /* PML4, PDPT, four page directories: identity for 4 GiB */
/* Multiboot needs no page tables, and leaves what is below this to kernels that load themselves low. */
#define LOW_MULTIBOOT 0x1f000ull
#define LOW_MULTIBOOT_BOTTOM 0x7000ull
#define LOW_CMDLINE 0x20000ull
#define LOW_CMDLINE_SIZE 0x10000ull
#define LOW_END 0x30000ull
#define LOW_EBDA 0x9fc00ull /* end of conventional memory */
#define GPA_ACPI 0xe0000ull
#define GPA_1M 0x100000ull
#define GPA_4G 0x100000000ull

/* A regular file or block device opened for reading. */
struct boot_image {
	int fd;
	uint64_t size;
	const char *path;
};

struct boot_context {
	const struct boot_request *request;
	struct boot_image image; /* the kernel or firmware */
	struct guest_mem *mem;
	struct cpu_state *bsp;
	struct boot_result *result;
	struct error *err;
};

/* `what` ("kernel", "initrd") begins the sentence of an error. An empty file is one. */
int image_open(struct boot_image *image, const char *path, const char *what, struct error *err);
void image_close(struct boot_image *image);
/* All of [offset, offset+n), else an error. */
int image_read(const struct boot_image *image, uint64_t offset, void *dst, uint64_t n, struct error *err);
/* The same into guest RAM; the range must be RAM. */
int image_read_guest(const struct boot_image *image, uint64_t offset, struct guest_mem *mem, uint64_t gpa,
	uint64_t n, struct error *err);

/* Where load_initrd() looks for room. */
enum initrd_place { INITRD_TOP, INITRD_BOTTOM };
/*
 * Puts the initrd, if there is one, page aligned into [low, high), cut to low RAM, and notes it in the
 * result.
 */
int load_initrd(struct boot_context *c, uint64_t low, uint64_t high, enum initrd_place place);
/* Puts `prefix` + the command line at LOW_CMDLINE; limit excludes the terminating zero. */
int load_cmdline(struct boot_context *c, const char *prefix, uint64_t limit);
/* Builds and installs the ACPI tables and notes the RSDP in the result. */
int load_acpi(struct boot_context *c);

/*
 * Entry states: flat segments from our GDT, interrupts off. rip is set, other registers are left to the
 * caller.
 */
void enter_protected(struct boot_context *c, uint64_t entry);
void enter_long(struct boot_context *c, uint64_t entry);

/* The loaders. The image is open. */
int linux_load_bzimage(struct boot_context *c);
/* Fills and writes a zero page without a bzImage's setup header, and enters 64-bit code. */
int linux_enter_vmlinux(struct boot_context *c, uint64_t entry);
int multiboot_load(struct boot_context *c);
int elf_load_pvh(struct boot_context *c);
int elf_load_vmlinux(struct boot_context *c);
int firmware_load(struct boot_context *c);

/* Offset of a valid multiboot header in the first `size` bytes of a file, or -1. */
int multiboot_find(const uint8_t *head, uint64_t size);
/*
 * *entry = the physical entry of a XEN_ELFNOTE_PHYS32_ENTRY note. 1 if there is one, 0 if not, or an error.
 */
int elf_find_pvh(const struct boot_image *image, uint64_t *entry, struct error *err);
/* 0 if it is an executable for x86 (any class); *is_64 tells the class. */
int elf_check(const struct boot_image *image, bool *is_64, struct error *err);
/*
 * Loads all PT_LOAD segments; fills kernel_gpa and kernel_size. *entry is translated to a physical address.
 */
int elf_load_segments(struct boot_context *c, uint64_t *entry);
/* Is [gpa, gpa+size) a place for an image? If not, says so for `what`. */
int check_load_range(struct boot_context *c, const char *what, uint64_t gpa, uint64_t size);

#endif
