/*
 * Loading a guest: tells a file's kind by its content, puts it with everything that it expects to find (command
 * line, initrd, memory map, ACPI tables, page tables) into guest RAM and sets the bootstrap processor's registers as
 * the boot protocol wants them. The files are untrusted: every header field is checked before it is used, and
 * each thing that is wrong with one is one sentence in struct error. docs/boot.md has the memory map.
 *
 * All functions are called while no vcpu runs, from any one thread. They keep nothing: no static state, no open files.
 */
#ifndef VMM_BOOT_H
#define VMM_BOOT_H

#include <stdint.h>

#include "vmm/error.h"

struct guest_mem;
struct cpu_state;

enum boot_kind {
	BOOT_INVALID,	/* cannot be read, or cannot be booted: see the error */
	BOOT_BZIMAGE,	/* Linux bzImage, boot protocol 2.06 or later */
	BOOT_MULTIBOOT, /* ELF or a.out-kludge image with a multiboot 1 header */
	BOOT_PVH,	/* ELF with a XEN_ELFNOTE_PHYS32_ENTRY note */
	BOOT_VMLINUX,	/* 64-bit x86 ELF without such a note, entered by the 64-bit Linux protocol */
	BOOT_FIRMWARE,	/* anything else is a disk image: it is booted through the firmware */
};

/* What kind of guest the file is. BOOT_INVALID: err says why (unreadable, empty, an ELF file of another machine, …). */
enum boot_kind boot_identify(const char *path, struct error *err);

/* "bzImage", "multiboot", …; a static string. */
const char *boot_kind_name(enum boot_kind kind);

#define BOOT_FIRMWARE_DEFAULT "/usr/share/seabios/bios-256k.bin"
#define BOOT_FIRMWARE_UEFI "/usr/share/OVMF/OVMF_CODE_4M.fd"

struct boot_request {
	enum boot_kind kind;  /* of `kernel`; BOOT_FIRMWARE: start the firmware, the disk is the machine's business */
	const char *kernel;   /* path; unused for BOOT_FIRMWARE */
	const char *initrd;   /* path or NULL; multiboot: the first module */
	const char *append;   /* command line or NULL */
	const char *firmware; /* path or NULL for the default; BOOT_FIRMWARE only */
	unsigned cpus;	      /* for the ACPI tables; 1 … ACPI_CPUS_MAX, APIC ids 0 … cpus − 1 */
};

/* What went where, for messages and the debugger. Zero where it does not apply. */
struct boot_result {
	const char *protocol; /* "64-bit Linux", "32-bit Linux", "multiboot 1", "PVH", "firmware"; static */
	uint64_t entry;	      /* linear address of the first instruction */
	uint64_t kernel_gpa, kernel_size;
	uint64_t initrd_gpa, initrd_size;
	uint64_t cmdline_gpa, params_gpa; /* params: zero page, multiboot information or PVH start info */
	uint64_t rsdp_gpa;		  /* ACPI root pointer; 0 for firmware, which gets the tables by fw_cfg */
};

/*
 * Loads the guest and sets *bsp (reset first; every field that the protocol does not name keeps its reset value).
 * RAM must be fresh (zero). Returns 0 or -errno (-ENOEXEC: damaged or unsupported image, -EINVAL: inconsistent
 * request or lying header, -E2BIG: does not fit into RAM, else of open/read) with a sentence in err.
 */
int boot_load(const struct boot_request *request, struct guest_mem *mem, struct cpu_state *bsp,
	struct boot_result *result, struct error *err);

/* The guest-physical memory map as the BIOS interface INT 15h/E820h, boot_params and fw_cfg's "etc/e820" give it. */
enum { BOOT_E820_RAM = 1, BOOT_E820_RESERVED = 2, BOOT_E820_ACPI = 3 };
struct boot_e820 {
	uint64_t gpa, size;
	uint32_t type;
} __attribute__((packed));
#define BOOT_E820_MAX 12

/*
 * Fills the map and returns the number of entries, in ascending order. `firmware`: for SeaBIOS and OVMF, which reserve
 * the low megabyte and the ECAM themselves: RAM only. entries has room for BOOT_E820_MAX.
 */
unsigned boot_e820_build(const struct guest_mem *mem, int firmware, struct boot_e820 *entries);

#endif
