/*
 * Guest RAM in one memfd, mapped once, linearly, into the VMM. The mapping is ROM_RESERVE bytes longer than RAM, so
 * that adding a ROM grows the file and leaves every hva as it was.
 *
 *   gpa  0      640K 768K            low_end  3G      4G
 *        |RAM    |    |RAM             |       |       |RAM ... |
 *   file |0      |hole|                |               (low_end: gpa − 1 GiB)  |ROM ...|
 *
 * Invariants: the ranges are sorted, disjoint and inside the file; the legacy VGA hole has file offsets of its own
 * that nothing touches, so that offset = gpa holds below 3 GiB. Guest memory changes under our hands while vcpus run:
 * callers copy first and check the copy.
 */
#include "vmm/mem.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vmm/error.h"

#define PAGE_BYTES 4096ull
#define ROM_RESERVE (64ull << 20)
#define RAM_MIN (1ull << 20)
#define RAM_MAX (GPA_PCI_MMIO64 - (GPA_HIGH_RAM - GPA_PCI_HOLE)) /* RAM ends below the 64-bit BARs */

static void insert_range(struct ram_layout *layout, unsigned count, struct ram_range range)
{
	unsigned i = count;

	while (i > 0 && layout->ranges[i - 1].gpa > range.gpa) {
		layout->ranges[i] = layout->ranges[i - 1];
		i--;
	}
	layout->ranges[i] = range;
}

static unsigned range_count(const struct ram_layout *layout)
{
	unsigned n = 0;

	while (n < RAM_RANGE_MAX && layout->ranges[n].size)
		n++;
	return n;
}

static void layout_init(struct ram_layout *layout, uint64_t size)
{
	uint64_t low = size < GPA_PCI_HOLE ? size : GPA_PCI_HOLE;

	layout->file_size = size;
	layout->ranges[0] = (struct ram_range){.gpa = 0, .size = GPA_VGA_HOLE, .offset = 0};
	layout->ranges[1] = (struct ram_range){
		.gpa = GPA_VGA_HOLE_END, .size = low - GPA_VGA_HOLE_END, .offset = GPA_VGA_HOLE_END};
	if (size > low)
		layout->ranges[2] = (struct ram_range){.gpa = GPA_HIGH_RAM, .size = size - low, .offset = low};
}

int mem_create(uint64_t size, struct guest_mem **out, struct error *err)
{
	struct guest_mem *mem;
	void *base;
	int rc;

	*out = NULL;
	if (size % PAGE_BYTES || size < RAM_MIN)
		return error_set(err, -EINVAL, "Guest memory must be a multiple of 4 KiB, and 1 MiB at least");
	if (size > RAM_MAX)
		return error_set(err, -EINVAL, "Guest memory of %llu MiB does not fit below the PCI window; the most is %llu MiB",
			(unsigned long long)(size >> 20), RAM_MAX >> 20);
	mem = calloc(1, sizeof(*mem));
	if (!mem)
		return error_set(err, -ENOMEM, "Not enough memory for the machine");
	mem->size = mem->file_size = size;
	layout_init(&mem->layout, size);
	mem->fd = memfd_create("guest-ram", MFD_CLOEXEC);
	if (mem->fd < 0) {
		rc = error_set(err, -errno, "Cannot create guest memory: %m");
		free(mem);
		return rc;
	}
	base = MAP_FAILED;
	if (!ftruncate(mem->fd, size))
		base = mmap(NULL, size + ROM_RESERVE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, mem->fd, 0);
	if (base == MAP_FAILED) {
		rc = error_set(err, -errno, "Cannot map %llu MiB of guest memory: %m; a smaller --memory may fit",
			(unsigned long long)(size >> 20));
		close(mem->fd);
		free(mem);
		return rc;
	}
	/* A core dump of the VMM has no use for the guest's memory. */
	madvise(base, size + ROM_RESERVE, MADV_DONTDUMP);
	mem->base = base;
	*out = mem;
	return 0;
}

void mem_destroy(struct guest_mem *mem)
{
	if (!mem)
		return;
	munmap(mem->base, mem->size + ROM_RESERVE);
	close(mem->fd);
	free(mem);
}

int mem_add_rom(struct guest_mem *mem, uint64_t gpa, const void *data, uint64_t size, struct error *err)
{
	uint64_t rounded = (size + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1);
	uint64_t offset = (mem->file_size + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1);
	unsigned count = range_count(&mem->layout);

	if (!size || gpa % PAGE_BYTES || size > ROM_RESERVE || gpa + rounded < gpa)
		return error_set(err, -EINVAL, "A ROM must begin on a page and have between 1 byte and 64 MiB");
	if (offset + rounded > mem->size + ROM_RESERVE || count == RAM_RANGE_MAX)
		return error_set(err, -ENOSPC, "Too many ROMs");
	for (unsigned i = 0; i < count; i++) {
		const struct ram_range *r = &mem->layout.ranges[i];

		if (gpa < r->gpa + r->size && r->gpa < gpa + rounded)
			return error_set(err, -EEXIST, "The ROM at 0x%llx overlaps other memory", (unsigned long long)gpa);
	}
	if (ftruncate(mem->fd, offset + rounded))
		return error_set(err, -errno, "Cannot grow guest memory for a ROM: %m");
	memcpy(mem->base + offset, data, size);
	mem->file_size = mem->layout.file_size = offset + rounded;
	insert_range(&mem->layout, count, (struct ram_range){.gpa = gpa, .size = rounded, .offset = offset, .readonly = 1});
	return 0;
}

uint64_t mem_low_end(const struct guest_mem *mem)
{
	return mem->size < GPA_PCI_HOLE ? mem->size : GPA_PCI_HOLE;
}

uint64_t mem_high_size(const struct guest_mem *mem)
{
	return mem->size - mem_low_end(mem);
}

/* The range that holds gpa and may be used so, or NULL. */
static const struct ram_range *range_find(const struct guest_mem *mem, uint64_t gpa, bool writable)
{
	for (unsigned i = 0; i < RAM_RANGE_MAX && mem->layout.ranges[i].size; i++) {
		const struct ram_range *r = &mem->layout.ranges[i];

		if (gpa - r->gpa < r->size)
			return writable && r->readonly ? NULL : r;
	}
	return NULL;
}

void *mem_ptr(struct guest_mem *mem, uint64_t gpa, uint64_t length, bool writable)
{
	const struct ram_range *r = range_find(mem, gpa, writable);

	if (!r || length > r->size - (gpa - r->gpa))
		return NULL;
	return mem->base + r->offset + (gpa - r->gpa);
}

void mem_mark_written(struct guest_mem *mem, uint64_t gpa, uint64_t length)
{
	if (mem->written && length)
		mem->written(mem->written_ctx, gpa, length);
}

/* Are all of [gpa, gpa+length) RAM? Touching ranges (RAM and a ROM behind it) count as one. */
static bool all_ram(const struct guest_mem *mem, uint64_t gpa, uint64_t length, bool writable)
{
	while (length) {
		const struct ram_range *r = range_find(mem, gpa, writable);
		uint64_t room;

		if (!r)
			return false;
		room = r->size - (gpa - r->gpa);
		if (length <= room)
			return true;
		gpa += room;
		length -= room;
	}
	return true;
}

/* The bytes at gpa that are contiguous in the mapping, at most *length; all_ram() has said yes. */
static uint8_t *next_piece(struct guest_mem *mem, uint64_t gpa, uint64_t length, uint64_t *piece)
{
	const struct ram_range *r = range_find(mem, gpa, false);
	uint64_t room = r->size - (gpa - r->gpa);

	*piece = length < room ? length : room;
	return mem->base + r->offset + (gpa - r->gpa);
}

int mem_read(struct guest_mem *mem, uint64_t gpa, void *dst, uint64_t length)
{
	uint8_t *to = dst;
	uint64_t piece;

	if (!all_ram(mem, gpa, length, false))
		return -EFAULT;
	for (; length; gpa += piece, to += piece, length -= piece) {
		const uint8_t *from = next_piece(mem, gpa, length, &piece);

		memcpy(to, from, piece);
	}
	return 0;
}

int mem_write(struct guest_mem *mem, uint64_t gpa, const void *src, uint64_t length)
{
	const uint8_t *from = src;
	uint64_t piece;

	if (!all_ram(mem, gpa, length, true))
		return -EFAULT;
	for (; length; gpa += piece, from += piece, length -= piece) {
		uint8_t *to = next_piece(mem, gpa, length, &piece);

		memcpy(to, from, piece);
		mem_mark_written(mem, gpa, piece);
	}
	return 0;
}

int mem_zero(struct guest_mem *mem, uint64_t gpa, uint64_t length)
{
	uint64_t piece;

	if (!all_ram(mem, gpa, length, true))
		return -EFAULT;
	for (; length; gpa += piece, length -= piece) {
		uint8_t *to = next_piece(mem, gpa, length, &piece);

		memset(to, 0, piece);
		mem_mark_written(mem, gpa, piece);
	}
	return 0;
}
