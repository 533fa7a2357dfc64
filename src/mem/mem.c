/*
 * Guest RAM in one memfd, mapped once, linearly, into the VMM. The mapping is MEM_ROM_RESERVE bytes longer than RAM, so
 * that adding a ROM grows the file and leaves every hva as it was.
 *
 *   gpa  0      640K 768K            low_end          4G
 *        |RAM    |    |RAM             |               |RAM ... |
 *   file |0      |hole|                |               (low_end …)  |ROM ...|
 *
 * Invariants: the ranges are sorted, disjoint and inside the file, and no two that touch could be one; the legacy VGA
 * hole has file offsets of its own that nothing touches, so that offset = gpa holds below low_end. Guest memory changes under our hands while vcpus run:
 * callers copy first and check the copy.
 */
#include "vmm/mem.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vmm/error.h"

#define PAGE_BYTES 4096ull
#define A20_LINE (1ull << 20)
#define HUGE_BYTES (2ull << 20)
#define RAM_MIN (1ull << 20)
#define RAM_MAX (GPA_PCI_MMIO64 - (GPA_HIGH_RAM - GPA_LOW_RAM_SPLIT)) /* RAM ends below the 64-bit BARs */

static unsigned range_count(const struct ram_layout *layout)
{
	unsigned n = 0;

	while (n < RAM_RANGE_MAX && layout->ranges[n].size)
		n++;
	return n;
}

static uint64_t low_size(uint64_t size)
{
	return size <= GPA_LOW_RAM_END ? size : GPA_LOW_RAM_SPLIT;
}

static void layout_init(struct ram_layout *layout, uint64_t size)
{
	uint64_t low = low_size(size);

	layout->file_size = size;
	layout->ranges[0] = (struct ram_range){.gpa = 0, .size = GPA_VGA_HOLE, .offset = 0};
	layout->ranges[1] = (struct ram_range){
		.gpa = GPA_VGA_HOLE_END, .size = low - GPA_VGA_HOLE_END, .offset = GPA_VGA_HOLE_END};
	if (size > low)
		layout->ranges[2] = (struct ram_range){.gpa = GPA_HIGH_RAM, .size = size - low, .offset = low};
}

int mem_create(uint64_t size, struct guest_mem **out, struct error *err)
{
	return mem_create_huge(size, false, out, err);
}

/* A field of /proc/meminfo in bytes; ~0: cannot be read. */
static uint64_t meminfo(const char *name)
{
	FILE *file = fopen("/proc/meminfo", "re");
	unsigned long long kib;
	uint64_t value = ~0ull;
	char line[128], key[64];

	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "%63[^:]: %llu", key, &kib) == 2 && !strcmp(key, name))
			value = kib;
	if (file)
		fclose(file);
	return value;
}

/* Huge pages are reserved when the memory is mapped: too few are told at once. */
static int check_huge(uint64_t size, struct error *err)
{
	uint64_t pages = meminfo("HugePages_Free"), wanted = size / HUGE_BYTES;

	if (size % HUGE_BYTES)
		return error_set(err, -EINVAL, "With huge pages guest memory is a multiple of 2 MiB");
	if (pages < wanted)
		return error_set(err, -ENOMEM, "The host has %llu free huge pages of 2 MiB and the guest needs %llu; "
			"sysctl vm.nr_hugepages makes more", (unsigned long long)pages, (unsigned long long)wanted);
	return 0;
}

int mem_prealloc(struct guest_mem *mem, struct error *err)
{
	uint64_t available = meminfo("MemAvailable");

	if (mem->page_size == PAGE_BYTES && available != ~0ull && available * 1024 < mem->size)
		return error_set(err, -ENOMEM, "The host has %llu MiB of memory available and --prealloc wants %llu MiB",
			(unsigned long long)(available >> 10), (unsigned long long)(mem->size >> 20));
	if (fallocate(mem->fd, 0, 0, (off_t)mem->size))
		return error_set(err, -errno, "The host does not give %llu MiB of memory: %m",
			(unsigned long long)(mem->size >> 20));
	/* The page tables, too; a host that cannot do that (Linux before 5.14) fills them as the guest goes. */
	madvise(mem->base, mem->size, MADV_POPULATE_WRITE);
	return 0;
}

int mem_create_huge(uint64_t size, bool huge, struct guest_mem **out, struct error *err)
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
	rc = huge ? check_huge(size, err) : 0;
	if (rc)
		return rc;
	mem = calloc(1, sizeof(*mem));
	if (!mem)
		return error_set(err, -ENOMEM, "Not enough memory for the machine");
	mem->page_size = huge ? HUGE_BYTES : PAGE_BYTES;
	mem->size = mem->file_size = size;
	layout_init(&mem->layout, size);
	mem->fd = memfd_create("guest-ram", MFD_CLOEXEC | (huge ? MFD_HUGETLB | MFD_HUGE_2MB : 0));
	if (mem->fd < 0) {
		rc = error_set(err, -errno, "Cannot create guest memory: %m");
		free(mem);
		return rc;
	}
	base = MAP_FAILED;
	if (!ftruncate(mem->fd, size))
		base = mmap(NULL, size + MEM_ROM_RESERVE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, mem->fd, 0);
	if (base == MAP_FAILED) {
		rc = error_set(err, -errno, "Cannot map %llu MiB of guest memory: %m; a smaller --memory may fit",
			(unsigned long long)(size >> 20));
		close(mem->fd);
		free(mem);
		return rc;
	}
	/* A core dump of the VMM has no use for the guest's memory. */
	madvise(base, size + MEM_ROM_RESERVE, MADV_DONTDUMP);
	mem->base = base;
	*out = mem;
	return 0;
}

void mem_destroy(struct guest_mem *mem)
{
	if (!mem)
		return;
	free((void *)(uintptr_t)mem->dirty);
	munmap(mem->base, mem->size + MEM_ROM_RESERVE);
	close(mem->fd);
	free(mem);
}

int mem_reserve(struct guest_mem *mem, const void *data, uint64_t size, uint64_t *offset, struct error *err)
{
	uint64_t start = (mem->file_size + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1);
	uint64_t rounded = (size + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1);

	if (!size || size > MEM_ROM_RESERVE)
		return error_set(err, -EINVAL, "A ROM must have between 1 byte and 64 MiB");
	if (start + rounded > mem->size + MEM_ROM_RESERVE)
		return error_set(err, -ENOSPC, "Too many ROMs");
	if (ftruncate(mem->fd, (off_t)((start + rounded + mem->page_size - 1) & ~(mem->page_size - 1))))
		return error_set(err, -errno, "Cannot grow guest memory for a ROM: %m");
	if (mem->page_size != PAGE_BYTES && fallocate(mem->fd, 0, (off_t)start, (off_t)rounded))
		return error_set(err, -errno, "The host has no huge page for a ROM: %m");
	memcpy(mem->base + start, data, size);
	mem->file_size = mem->layout.file_size = start + rounded;
	*offset = start;
	return 0;
}

/* Ranges are put together in gpa order, so only the last one can be prolonged. False: no room. */
static bool append_range(struct ram_layout *layout, unsigned *count, struct ram_range r)
{
	struct ram_range *last = *count ? &layout->ranges[*count - 1] : NULL;

	if (!r.size)
		return true;
	if (last && last->gpa + last->size == r.gpa && last->offset + last->size == r.offset &&
		last->readonly == r.readonly && last->write_exit == r.write_exit) {
		last->size += r.size;
		return true;
	}
	if (*count == RAM_RANGE_MAX)
		return false;
	layout->ranges[(*count)++] = r;
	return true;
}

/* The part of r within [start, end); size 0: none. */
static struct ram_range cut(struct ram_range r, uint64_t start, uint64_t end)
{
	uint64_t from = r.gpa > start ? r.gpa : start, to = r.gpa + r.size < end ? r.gpa + r.size : end;

	r.offset += from - r.gpa;
	r.gpa = from;
	r.size = from < to ? to - from : 0;
	return r;
}

/* `out` is `in` with [m->gpa, m->gpa + m->size) replaced. False: too many pieces. */
static bool layout_replace(const struct ram_layout *in, const struct mem_mapping *m, struct ram_layout *out)
{
	const struct ram_range r = {.gpa = m->gpa, .size = m->access == MEM_NONE ? 0 : m->size, .offset = m->offset,
		.readonly = m->access != MEM_RAM, .write_exit = m->access == MEM_ROM_EXIT};
	unsigned count = 0, n = range_count(in);
	bool fits = true;

	memset(out, 0, sizeof(*out));
	out->file_size = in->file_size;
	out->lines_off = in->lines_off;
	for (unsigned i = 0; i < n; i++)
		fits = fits && append_range(out, &count, cut(in->ranges[i], 0, m->gpa));
	fits = fits && append_range(out, &count, r);
	for (unsigned i = 0; i < n; i++)
		fits = fits && append_range(out, &count, cut(in->ranges[i], m->gpa + m->size, ~0ull));
	return fits;
}

static bool mapping_is_sound(const struct guest_mem *mem, const struct mem_mapping *m)
{
	if ((m->gpa | m->size | m->offset) & (PAGE_BYTES - 1) || !m->size || m->gpa + m->size < m->gpa)
		return false;
	return m->access == MEM_NONE || (m->size <= mem->file_size && m->offset <= mem->file_size - m->size);
}

static void layout_take(struct guest_mem *mem, const struct ram_layout *layout)
{
	if (!memcmp(layout, &mem->layout, sizeof(*layout)))
		return;
	mem->layout = *layout;
	if (mem->layout_changed)
		mem->layout_changed(mem->layout_ctx);
	mem->hidden_written = false;
}

int mem_map(struct guest_mem *mem, const struct mem_mapping *list, unsigned count)
{
	struct ram_layout layout = mem->layout, next;

	for (unsigned i = 0; i < count; i++) {
		if (!mapping_is_sound(mem, &list[i]))
			return -EINVAL;
		if (!layout_replace(&layout, &list[i], &next))
			return -ENOSPC;
		layout = next;
	}
	layout_take(mem, &layout);
	return 0;
}

void mem_set_a20(struct guest_mem *mem, bool open)
{
	struct ram_layout layout = mem->layout;

	layout.lines_off = open ? 0 : A20_LINE;
	layout_take(mem, &layout);
}

void mem_store(struct guest_mem *mem, uint64_t offset, const void *src, uint64_t length)
{
	uint64_t seen = 0;

	assert(offset <= mem->file_size && length <= mem->file_size - offset);
	memcpy(mem->base + offset, src, length);
	for (unsigned i = 0; i < range_count(&mem->layout); i++) {
		const struct ram_range *r = &mem->layout.ranges[i];
		uint64_t from = offset > r->offset ? offset : r->offset;
		uint64_t to = offset + length < r->offset + r->size ? offset + length : r->offset + r->size;

		if (from >= to)
			continue;
		seen += to - from;
		mem_mark_written(mem, r->gpa + (from - r->offset), to - from);
	}
	if (seen < length)
		mem->hidden_written = true;
}

int mem_add_rom(struct guest_mem *mem, uint64_t gpa, const void *data, uint64_t size, struct error *err)
{
	uint64_t rounded = (size + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1);
	struct mem_mapping map = {.gpa = gpa, .size = rounded, .access = MEM_ROM};
	int rc;

	if (gpa % PAGE_BYTES || !size || size > MEM_ROM_RESERVE || gpa + rounded < gpa)
		return error_set(err, -EINVAL, "A ROM must begin on a page and have between 1 byte and 64 MiB");
	for (unsigned i = 0; i < range_count(&mem->layout); i++)
		if (cut(mem->layout.ranges[i], gpa, gpa + rounded).size)
			return error_set(err, -EEXIST, "The ROM at 0x%llx overlaps other memory", (unsigned long long)gpa);
	rc = mem_reserve(mem, data, size, &map.offset, err);
	if (!rc && mem_map(mem, &map, 1))
		rc = error_set(err, -ENOSPC, "Too many ROMs");
	return rc;
}

uint64_t mem_low_end(const struct guest_mem *mem)
{
	return low_size(mem->size);
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

static void note_dirty(struct guest_mem *mem, _Atomic uint64_t *dirty, uint64_t gpa, uint64_t length)
{
	for (unsigned i = 0; i < RAM_RANGE_MAX && mem->layout.ranges[i].size; i++) {
		struct ram_range r = cut(mem->layout.ranges[i], gpa, gpa + length);

		for (uint64_t page = r.offset / PAGE_BYTES; r.size && page <= (r.offset + r.size - 1) / PAGE_BYTES; page++)
			atomic_fetch_or(&dirty[page / 64], 1ull << page % 64);
	}
}

static uint64_t dirty_words(const struct guest_mem *mem)
{
	return ((mem->size + MEM_ROM_RESERVE) / PAGE_BYTES + 63) / 64;
}

int mem_dirty_start(struct guest_mem *mem, struct error *err)
{
	_Atomic uint64_t *dirty;
	int rc;

	if (!mem->dirty_source.start)
		return error_set(err, -ENOTSUP, "This backend has no dirty log in this version");
	dirty = calloc(dirty_words(mem), sizeof(*dirty));
	if (!dirty)
		return error_set(err, -ENOMEM, "Not enough memory for the dirty log");
	rc = mem->dirty_source.start(mem->dirty_source.ctx);
	if (rc) {
		free((void *)(uintptr_t)dirty);
		return error_set(err, rc, "The dirty log cannot be started: %s", strerror(-rc));
	}
	mem->dirty = dirty;
	return 0;
}

void mem_dirty_collect(struct guest_mem *mem, uint64_t *bitmap)
{
	uint64_t words = (mem->file_size / PAGE_BYTES + 63) / 64;

	mem->dirty_source.collect(mem->dirty_source.ctx, bitmap);
	for (uint64_t i = 0; i < words; i++)
		if (atomic_load_explicit(&mem->dirty[i], memory_order_relaxed))
			bitmap[i] |= atomic_exchange(&mem->dirty[i], 0);
}

/* All who write hold the device lock. */
void mem_dirty_stop(struct guest_mem *mem)
{
	mem->dirty_source.stop(mem->dirty_source.ctx);
	free((void *)(uintptr_t)mem->dirty);
	mem->dirty = NULL;
}

void mem_mark_written(struct guest_mem *mem, uint64_t gpa, uint64_t length)
{
	_Atomic uint64_t *dirty = mem->dirty;

	if (dirty && length)
		note_dirty(mem, dirty, gpa, length);
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
