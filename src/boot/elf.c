/*
 * ELF kernels, read with libelf, which checks the tables' own bounds; what the entries say is checked here:
 * each segment against the file, against guest RAM and against the address arithmetic.
 *
 * PVH (Xen's x86/HVM direct boot ABI): a note gives a 32-bit physical entry, entered in protected mode with
 * EBX = struct hvm_start_info. It is preferred to the 64-bit Linux entry of a vmlinux, which has no setup
 * header to trust.
 */
#include <errno.h>
#include <gelf.h>
#include <libelf.h>
#include <stdlib.h>
#include <string.h>

#undef PF_W /* a segment flag there, a page fault bit in ours */

#include "loader.h"
#include "vmm/bytes.h"

#define PHDR_MAX 256u
#define NOTES_MAX (1u << 20)
#define NOTE_PHYS32_ENTRY 18u

#define PVH_MAGIC 0x336ec578u
#define PVH_INFO_SIZE 56u
#define PVH_CMDLINE_MAX 2047u

static int elf_open(const struct boot_image *image, Elf **elf, size_t *phnum, struct error *err)
{
	*elf = NULL;
	if (elf_version(EV_CURRENT) != EV_NONE)
		*elf = elf_begin(image->fd, ELF_C_READ, NULL);
	if (!*elf || elf_kind(*elf) != ELF_K_ELF || elf_getphdrnum(*elf, phnum) < 0) {
		const char *why = elf_errmsg(-1);

		error_set(err, -ENOEXEC, "%s is a damaged ELF file: %s", image->path,
			why ? why : "unknown format");
	} else if (!*phnum || *phnum > PHDR_MAX) {
		error_set(err, -ENOEXEC, "%s is an ELF file with %zu program headers; 1 to %u are expected",
			image->path, *phnum, PHDR_MAX);
	} else {
		return 0;
	}
	elf_end(*elf);
	*elf = NULL;
	return -ENOEXEC;
}

int elf_check(const struct boot_image *image, bool *is_64, struct error *err)
{
	Elf *elf;
	GElf_Ehdr ehdr;
	size_t phnum;
	int code = elf_open(image, &elf, &phnum, err);

	if (code < 0)
		return code;
	if (!gelf_getehdr(elf, &ehdr))
		code = error_set(err, -ENOEXEC, "%s is a damaged ELF file: no header", image->path);
	else if (ehdr.e_ident[EI_DATA] != ELFDATA2LSB ||
		 (ehdr.e_machine != EM_X86_64 && ehdr.e_machine != EM_386))
		code = error_set(err, -ENOEXEC, "%s is an ELF file for another machine (%u), not x86",
			image->path, ehdr.e_machine);
	else if (ehdr.e_type != ET_EXEC && ehdr.e_type != ET_DYN)
		code = error_set(err, -ENOEXEC, "%s is an ELF file of type %u, not an executable",
			image->path, ehdr.e_type);
	else
		*is_64 = ehdr.e_machine == EM_X86_64 && gelf_getclass(elf) == ELFCLASS64;
	elf_end(elf);
	return code;
}

/* Notes are {namesz, descsz, type, name, desc}, name and desc padded to 4. 1 if found. */
static int scan_notes(const uint8_t *notes, uint64_t size, uint64_t *entry)
{
	uint64_t at = 0;

	while (size - at >= 12) {
		uint64_t name_size = bytes_load(notes + at, 4), desc_size = bytes_load(notes + at + 4, 4);
		uint64_t type = bytes_load(notes + at + 8, 4);
		uint64_t name = at + 12, desc = name + ((name_size + 3) & ~3ull);
		uint64_t next = desc + ((desc_size + 3) & ~3ull);

		if (desc > size || desc_size > size - desc)
			return -EINVAL;
		if (type == NOTE_PHYS32_ENTRY && name_size == 4 && memcmp(notes + name, "Xen", 4) == 0 &&
			(desc_size == 4 || desc_size == 8)) {
			*entry = bytes_load(notes + desc, (unsigned)desc_size);
			return 1;
		}
		if (next > size)
			break;
		at = next;
	}
	return 0;
}

static int read_notes(const struct boot_image *image, const GElf_Phdr *phdr, uint64_t *entry,
	struct error *err)
{
	uint8_t *notes;
	int code;

	if (phdr->p_offset > image->size || phdr->p_filesz > image->size - phdr->p_offset ||
		phdr->p_filesz > NOTES_MAX)
		return error_set(err, -EINVAL, "%s: the notes lie past the end of the file", image->path);
	notes = malloc(phdr->p_filesz + 1);
	if (!notes)
		return error_set(err, -ENOMEM, "no memory to read the notes of %s", image->path);
	code = image_read(image, phdr->p_offset, notes, phdr->p_filesz, err);
	if (code == 0) {
		code = scan_notes(notes, phdr->p_filesz, entry);
		if (code < 0)
			error_set(err, code, "%s: a note runs past the end of its segment", image->path);
	}
	free(notes);
	return code;
}

int elf_find_pvh(const struct boot_image *image, uint64_t *entry, struct error *err)
{
	Elf *elf;
	size_t phnum;
	int code = elf_open(image, &elf, &phnum, err);

	if (code < 0)
		return code;
	for (size_t i = 0; i < phnum && code == 0; i++) {
		GElf_Phdr phdr;

		if (gelf_getphdr(elf, (int)i, &phdr) && phdr.p_type == PT_NOTE)
			code = read_notes(image, &phdr, entry, err);
	}
	elf_end(elf);
	return code;
}

static int load_segment(struct boot_context *c, const GElf_Phdr *phdr)
{
	const char *path = c->image.path;
	int code;

	if (phdr->p_filesz > phdr->p_memsz)
		return error_set(c->err, -EINVAL,
			"%s: a segment has more bytes in the file (0x%llx) than in memory (0x%llx)",
			path, (unsigned long long)phdr->p_filesz, (unsigned long long)phdr->p_memsz);
	if (phdr->p_offset > c->image.size || phdr->p_filesz > c->image.size - phdr->p_offset)
		return error_set(c->err, -EINVAL,
			"%s: a segment at file offset 0x%llx lies past the end of the file", path,
			(unsigned long long)phdr->p_offset);
	code = check_load_range(c, "a segment", phdr->p_paddr, phdr->p_memsz);
	if (code < 0)
		return code;
	return image_read_guest(&c->image, phdr->p_offset, c->mem, phdr->p_paddr, phdr->p_filesz, c->err);
}

/*
 * The extent of what has been loaded, and the search for the entry: physical addresses win over virtual ones.
 */
struct extent {
	uint64_t first, end;
	uint64_t entry, by_virtual;
	bool found, found_virtual;
};

static void extent_add(struct extent *x, const GElf_Phdr *phdr)
{
	if (phdr->p_paddr < x->first)
		x->first = phdr->p_paddr;
	if (phdr->p_paddr + phdr->p_memsz > x->end)
		x->end = phdr->p_paddr + phdr->p_memsz;
	if (x->entry >= phdr->p_paddr && x->entry - phdr->p_paddr < phdr->p_memsz) {
		x->found = true;
	} else if (x->entry >= phdr->p_vaddr && x->entry - phdr->p_vaddr < phdr->p_memsz) {
		x->found_virtual = true;
		x->by_virtual = x->entry - phdr->p_vaddr + phdr->p_paddr;
	}
}

/* Loads, and leaves in *entry (in: 0 = the header's entry) a physical address. */
static int load_all(struct boot_context *c, Elf *elf, size_t phnum, uint64_t *entry)
{
	struct extent x = { .first = UINT64_MAX, .entry = *entry };
	GElf_Ehdr ehdr;

	if (!gelf_getehdr(elf, &ehdr))
		return error_set(c->err, -ENOEXEC, "%s is a damaged ELF file: no header", c->image.path);
	if (!x.entry)
		x.entry = ehdr.e_entry;
	for (size_t i = 0; i < phnum; i++) {
		GElf_Phdr phdr;
		int code;

		if (!gelf_getphdr(elf, (int)i, &phdr) || phdr.p_type != PT_LOAD || !phdr.p_memsz)
			continue;
		code = load_segment(c, &phdr);
		if (code < 0)
			return code;
		extent_add(&x, &phdr);
	}
	if (!x.end)
		return error_set(c->err, -ENOEXEC, "%s has no segment to load", c->image.path);
	if (!x.found && !x.found_virtual)
		return error_set(c->err, -EINVAL, "%s: the entry 0x%llx lies outside what is loaded",
			c->image.path, (unsigned long long)x.entry);
	*entry = x.found ? x.entry : x.by_virtual;
	c->result->kernel_gpa = x.first;
	c->result->kernel_size = x.end - x.first;
	return 0;
}

int elf_load_segments(struct boot_context *c, uint64_t *entry)
{
	Elf *elf;
	size_t phnum;
	bool is_64;
	int code = elf_check(&c->image, &is_64, c->err);

	if (code == 0)
		code = elf_open(&c->image, &elf, &phnum, c->err);
	if (code < 0)
		return code;
	*entry = 0;
	code = load_all(c, elf, phnum, entry);
	elf_end(elf);
	return code;
}

/*
 *   struct hvm_start_info        memory map entry      module
 *    0 magic     4 version        0 address             0 address
 *    8 flags    12 modules        8 size                8 size
 *   16 module list               16 type               16 command line
 *   24 command line              20 reserved           24 reserved
 *   32 RSDP
 *   40 memory map
 *   48 entries  52 reserved
 */
static void write_start_info(struct boot_context *c)
{
	struct boot_e820 map[BOOT_E820_MAX];
	unsigned n = boot_e820_build(c->mem, 0, map);
	uint8_t bytes[BOOT_E820_MAX * 24 + PVH_INFO_SIZE];
	struct byte_writer w = { .data = bytes, .size = sizeof(bytes) };
	bool module = c->result->initrd_size != 0;

	bytes_put32(&w, PVH_MAGIC);
	bytes_put32(&w, 1);
	bytes_put32(&w, 0);
	bytes_put32(&w, module);
	bytes_put64(&w, module ? LOW_MODULES : 0);
	bytes_put64(&w, c->result->cmdline_gpa);
	bytes_put64(&w, c->result->rsdp_gpa);
	bytes_put64(&w, LOW_MEMMAP);
	bytes_put32(&w, n);
	bytes_put32(&w, 0);
	mem_write(c->mem, LOW_PARAMS, bytes, w.pos);
	c->result->params_gpa = LOW_PARAMS;

	w.pos = 0;
	for (unsigned i = 0; i < n; i++) {
		bytes_put64(&w, map[i].gpa);
		bytes_put64(&w, map[i].size);
		bytes_put32(&w, map[i].type);
		bytes_put32(&w, 0);
	}
	mem_write(c->mem, LOW_MEMMAP, bytes, w.pos);
	if (module) {
		const uint64_t entry[4] = { c->result->initrd_gpa, c->result->initrd_size, 0, 0 };

		mem_write(c->mem, LOW_MODULES, entry, sizeof(entry));
	}
}

int elf_load_pvh(struct boot_context *c)
{
	uint64_t entry, header_entry = 0, first;
	int code = elf_find_pvh(&c->image, &entry, c->err);

	if (code == 0)
		return error_set(c->err, -ENOEXEC, "%s has no PVH entry note", c->image.path);
	if (code > 0)
		code = elf_load_segments(c, &header_entry);
	if (code < 0)
		return code;
	first = c->result->kernel_gpa;
	if (entry < first || entry - first >= c->result->kernel_size || entry >= GPA_4G)
		return error_set(c->err, -EINVAL, "%s: the PVH entry 0x%llx lies outside what is loaded",
			c->image.path, (unsigned long long)entry);
	code = load_cmdline(c, "", PVH_CMDLINE_MAX);
	if (code == 0)
		code = load_initrd(c, first + c->result->kernel_size, GPA_4G, INITRD_TOP);
	if (code == 0)
		code = load_acpi(c);
	if (code < 0)
		return code;
	write_start_info(c);
	enter_protected(c, entry);
	c->bsp->gpr[GPR_RBX] = LOW_PARAMS;
	c->result->protocol = "PVH";
	return 0;
}

int elf_load_vmlinux(struct boot_context *c)
{
	uint64_t entry;
	bool is_64;
	int code = elf_check(&c->image, &is_64, c->err);

	if (code == 0 && !is_64)
		code = error_set(c->err, -ENOEXEC, "%s is not a 64-bit kernel", c->image.path);
	if (code == 0)
		code = elf_load_segments(c, &entry);
	if (code == 0 && entry >= GPA_4G)
		code = error_set(c->err, -EINVAL, "%s: the entry 0x%llx lies above 4 GiB", c->image.path,
			(unsigned long long)entry);
	return code < 0 ? code : linux_enter_vmlinux(c, entry);
}
