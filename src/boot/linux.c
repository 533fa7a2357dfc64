/*
 * Linux by its own boot protocol (the kernel's Documentation/arch/x86/boot.rst): bzImage, and the zero page
 * for an uncompressed vmlinux.
 *
 * A bzImage is a real-mode part of setup_sects + 1 sectors, which is not run, and the protected-mode part,
 * which is put at the address it prefers. The setup header at 0x1f1 of the first part goes into the zero
 * page. Kernels with XLF_KERNEL_64 are entered in long mode 0x200 past the start, older ones in protected
 * mode at the start.
 */
#include <asm/bootparam.h>

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "loader.h"

#define SECTOR 512u
#define HEADER_OFFSET 0x1f1u
#define PROTOCOL_MIN 0x206u /* the first with cmdline_size */
#define PROTOCOL_PREFERRED 0x20au
#define PROTOCOL_64 0x20cu
#define PROTOCOL_PAYLOAD 0x208u
#define LOADER_UNKNOWN 0xff
#define ENTRY_64 0x200u
#define VMLINUX_CMDLINE_MAX 2047u

/* Where the protected-mode part is in the file, and where it goes. */
struct bzimage {
	struct setup_header hdr;
	uint64_t offset, size; /* in the file */
	uint64_t gpa, span;    /* in RAM: what the kernel needs before it has read the memory map */
	bool is_64;
};

static int bzimage_read_header(struct boot_context *c, struct bzimage *b)
{
	uint8_t head[0x290] = { 0 };
	uint64_t length;
	int code = image_read(&c->image, 0, head, sizeof(head), c->err);

	if (code < 0)
		return code;
	/* The jump over the header at 0x200 tells its end: newer kernels have fields that we do not know. */
	length = 0x202u + head[0x201] - HEADER_OFFSET;
	if (length > sizeof(b->hdr))
		length = sizeof(b->hdr);
	memset(&b->hdr, 0, sizeof(b->hdr));
	memcpy(&b->hdr, head + HEADER_OFFSET, length);
	if (b->hdr.boot_flag != 0xaa55 || memcmp(&b->hdr.header, "HdrS", 4) != 0)
		return error_set(c->err, -ENOEXEC, "%s is not a bzImage: it has no setup header",
			c->image.path);
	if (b->hdr.version < PROTOCOL_MIN)
		return error_set(c->err, -ENOEXEC,
			"%s speaks Linux boot protocol %u.%02u; 2.06 or later is needed",
			c->image.path, b->hdr.version >> 8, b->hdr.version & 0xff);
	if (!(b->hdr.loadflags & LOADED_HIGH))
		return error_set(c->err, -ENOEXEC, "%s is a zImage for low memory, which is not supported",
			c->image.path);
	return 0;
}

static int bzimage_check_sizes(struct boot_context *c, struct bzimage *b)
{
	const char *path = c->image.path;
	uint64_t payload;

	b->offset = ((b->hdr.setup_sects ? b->hdr.setup_sects : 4) + 1u) * SECTOR;
	/* syssize counts paragraphs; the last one may be begun only (memtest86+). */
	if (c->image.size <= b->offset + ENTRY_64 ||
		(c->image.size - b->offset + 15) / 16 < b->hdr.syssize)
		return error_set(c->err, -ENOEXEC,
			"%s is truncated: its header announces %llu bytes, it has %llu", path,
			(unsigned long long)(b->offset + (uint64_t)b->hdr.syssize * 16),
			(unsigned long long)c->image.size);
	b->size = c->image.size - b->offset;
	payload = (uint64_t)b->hdr.payload_offset + b->hdr.payload_length;
	if (b->hdr.version >= PROTOCOL_PAYLOAD && payload > b->size)
		return error_set(c->err, -ENOEXEC, "%s is damaged: its compressed kernel ends past the file",
			path);
	return 0;
}

static int bzimage_place(struct boot_context *c, struct bzimage *b)
{
	const char *path = c->image.path;
	uint64_t align = b->hdr.kernel_alignment, low_end = mem_low_end(c->mem);

	b->is_64 = b->hdr.version >= PROTOCOL_64 && (b->hdr.xloadflags & XLF_KERNEL_64);
	b->gpa = GPA_1M;
	b->span = b->size;
	if (b->hdr.version >= PROTOCOL_PREFERRED) {
		b->gpa = b->hdr.pref_address;
		if (b->hdr.init_size > b->span)
			b->span = b->hdr.init_size;
	}
	if (b->hdr.relocatable_kernel && (align < 0x1000 || (align & (align - 1)) || b->gpa & (align - 1)))
		return error_set(c->err, -ENOEXEC,
			"%s is damaged: alignment 0x%llx does not suit address 0x%llx", path,
			(unsigned long long)align, (unsigned long long)b->gpa);
	if (b->gpa < GPA_1M || b->gpa >= GPA_4G)
		return error_set(c->err, -ENOEXEC, "%s is damaged: it wants to be loaded at 0x%llx", path,
			(unsigned long long)b->gpa);
	if (b->gpa > low_end || b->span > low_end - b->gpa)
		return error_set(c->err, -E2BIG, "%s needs %llu MiB of memory to start, the guest has %llu",
			path, (unsigned long long)((b->gpa + b->span + 0xfffff) >> 20),
			(unsigned long long)(c->mem->size >> 20));
	return 0;
}

/* Fills in what the loader owns of the header and the memory map, and writes the zero page. */
static void write_zero_page(struct boot_context *c, const struct setup_header *hdr)
{
	struct boot_params params;

	memset(&params, 0, sizeof(params));
	params.hdr = *hdr;
	params.hdr.type_of_loader = LOADER_UNKNOWN;
	params.hdr.ext_loader_type = 0;
	params.hdr.ext_loader_ver = 0;
	params.hdr.loadflags &= (uint8_t)~(QUIET_FLAG | KEEP_SEGMENTS | CAN_USE_HEAP);
	params.hdr.code32_start = (uint32_t)c->result->kernel_gpa;
	params.hdr.cmd_line_ptr = (uint32_t)c->result->cmdline_gpa;
	params.hdr.ramdisk_image = (uint32_t)c->result->initrd_gpa;
	params.hdr.ramdisk_size = (uint32_t)c->result->initrd_size;
	params.hdr.setup_data = 0;
	params.acpi_rsdp_addr = c->result->rsdp_gpa;
	_Static_assert(sizeof(struct boot_e820) == sizeof(params.e820_table[0]), "one layout of a map entry");
	params.e820_entries = (uint8_t)boot_e820_build(c->mem, 0,
		(struct boot_e820 *)(void *)((char *)&params + offsetof(struct boot_params, e820_table)));
	mem_write(c->mem, LOW_PARAMS, &params, sizeof(params));
	c->result->params_gpa = LOW_PARAMS;
}

static void enter_linux(struct boot_context *c, bool is_64, uint64_t entry)
{
	if (is_64)
		enter_long(c, entry);
	else
		enter_protected(c, entry);
	c->bsp->gpr[GPR_RSI] = LOW_PARAMS;
	c->result->protocol = is_64 ? "64-bit Linux" : "32-bit Linux";
}

int linux_load_bzimage(struct boot_context *c)
{
	struct bzimage b;
	uint64_t initrd_end;
	int code = bzimage_read_header(c, &b);

	if (code == 0)
		code = bzimage_check_sizes(c, &b);
	if (code == 0)
		code = bzimage_place(c, &b);
	if (code == 0)
		code = load_cmdline(c, "", b.hdr.cmdline_size);
	if (code == 0)
		code = image_read_guest(&c->image, b.offset, c->mem, b.gpa, b.size, c->err);
	if (code < 0)
		return code;
	c->result->kernel_gpa = b.gpa;
	c->result->kernel_size = b.span;
	initrd_end = b.hdr.initrd_addr_max ? (uint64_t)b.hdr.initrd_addr_max + 1 : 0x38000000ull;
	code = load_initrd(c, b.gpa + b.span, initrd_end, INITRD_TOP);
	if (code == 0)
		code = load_acpi(c);
	if (code < 0)
		return code;
	write_zero_page(c, &b.hdr);
	enter_linux(c, b.is_64, b.gpa + (b.is_64 ? ENTRY_64 : 0));
	return 0;
}

int linux_enter_vmlinux(struct boot_context *c, uint64_t entry)
{
	struct setup_header hdr;
	int code = load_cmdline(c, "", VMLINUX_CMDLINE_MAX);

	if (code == 0)
		code = load_initrd(c, c->result->kernel_gpa + c->result->kernel_size, GPA_4G, INITRD_TOP);
	if (code == 0)
		code = load_acpi(c);
	if (code < 0)
		return code;
	memset(&hdr, 0, sizeof(hdr));
	hdr.boot_flag = 0xaa55;
	memcpy(&hdr.header, "HdrS", 4);
	hdr.version = PROTOCOL_64;
	hdr.loadflags = LOADED_HIGH;
	hdr.kernel_alignment = 0x200000;
	hdr.cmdline_size = VMLINUX_CMDLINE_MAX;
	hdr.initrd_addr_max = 0x7fffffff;
	write_zero_page(c, &hdr);
	enter_linux(c, true, entry);
	return 0;
}
