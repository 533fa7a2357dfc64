/*
 * The flash's commands (Intel 28F320J3 data sheet, table 4; QEMU's cfi.pflash01 is what firmware is tested with):
 *
 *   FF array   70 status   50 clear status   90 identifier   98 CFI query
 *   10, 40 program: the next write's bytes      20 erase, 60 lock: the next write is D0 or 01, any other is an error
 *
 *   status  7 ready | 5 erase error | 4 program error
 *
 * Programming and erasing take no time. A byte is programmed by clearing bits; erasing sets a block's bits.
 *
 * Invariants: in array mode the layout shows the bytes, read-only, its writes come here; in any other mode it shows
 * nothing there. What a command changed is reported when the mode is left, so that a burst of bytes is one report.
 */
#include "vmm/dev_flash.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/bytes.h"
#include "vmm/error.h"
#include "vmm/mem.h"

enum mode { MODE_ARRAY, MODE_STATUS, MODE_ID, MODE_CFI, MODE_PROGRAM, MODE_ERASE, MODE_LOCK };
enum { STATUS_READY = 0x80, STATUS_ERASE_ERROR = 0x20, STATUS_PROGRAM_ERROR = 0x10 };

struct flash_state {
	uint8_t mode; /* enum mode */
	uint8_t status;
	uint64_t dirty_start, dirty_end; /* changed and not yet reported; empty: both 0 */
};

struct flash {
	/* Set at create. */
	struct bus *bus;
	struct guest_mem *mem;
	struct flash_host host;
	uint64_t gpa, size, offset; /* of the bytes in the memfd */
	/* Device lock. */
	struct flash_state state;
};

static uint8_t *content(struct flash *f)
{
	return f->mem->base + f->offset;
}

static int show(struct flash *f, bool array)
{
	const struct mem_mapping map = {.gpa = f->gpa, .size = f->size, .offset = f->offset,
		.access = array ? MEM_ROM_EXIT : MEM_NONE};

	return mem_map(f->mem, &map, 1);
}

static void report(struct flash *f)
{
	struct flash_state *s = &f->state;

	if (s->dirty_end && f->host.changed)
		f->host.changed(f->host.ctx, s->dirty_start, content(f) + s->dirty_start, s->dirty_end - s->dirty_start);
	s->dirty_start = s->dirty_end = 0;
}

static void enter(struct flash *f, enum mode mode)
{
	if (mode == MODE_ARRAY)
		report(f);
	f->state.mode = mode;
	show(f, mode == MODE_ARRAY);
}

static void mark_dirty(struct flash *f, uint64_t offset, uint64_t length)
{
	struct flash_state *s = &f->state;

	if (!s->dirty_end || offset < s->dirty_start)
		s->dirty_start = offset;
	if (offset + length > s->dirty_end)
		s->dirty_end = offset + length;
}

static void program(struct flash *f, uint64_t offset, unsigned size, uint64_t value)
{
	uint8_t bytes[8];

	bytes_store(bytes, sizeof(bytes), value);
	for (unsigned i = 0; i < size; i++)
		bytes[i] &= content(f)[offset + i];
	mem_store(f->mem, f->offset + offset, bytes, size);
	mark_dirty(f, offset, size);
	f->state.status |= STATUS_READY;
}

static void erase(struct flash *f, uint64_t offset)
{
	uint8_t ones[FLASH_BLOCK];
	uint64_t block = offset & ~(uint64_t)(FLASH_BLOCK - 1);

	memset(ones, 0xff, sizeof(ones));
	mem_store(f->mem, f->offset + block, ones, sizeof(ones));
	mark_dirty(f, block, sizeof(ones));
	f->state.status |= STATUS_READY;
}

/* A device of one die: 2^n bytes, one region of equal blocks, no buffered writes. */
static uint8_t cfi_byte(const struct flash *f, uint64_t offset)
{
	static const uint8_t head[] = {'Q', 'R', 'Y', 0x01, 0x00, 0x31, 0x00, 0, 0, 0, 0, 0x45, 0x55, 0, 0, 7, 0, 10, 0, 4, 0, 4, 0};
	uint32_t blocks = (uint32_t)(f->size / FLASH_BLOCK) - 1;

	offset &= 0xff;
	if (offset >= 0x10 && offset < 0x10 + sizeof(head))
		return head[offset - 0x10];
	switch (offset) {
	case 0x27: return (uint8_t)(64 - __builtin_clzll(f->size - 1)); /* log2 of the size, rounded up */
	case 0x2c: return 1;
	case 0x2d: return (uint8_t)blocks;
	case 0x2e: return (uint8_t)(blocks >> 8);
	case 0x2f: return FLASH_BLOCK / 256 & 0xff;
	case 0x30: return FLASH_BLOCK / 256 >> 8;
	case 0x31: return 'P';
	case 0x32: return 'R';
	case 0x33: return 'I';
	case 0x34: return '1';
	case 0x35: return '0';
	default: return 0;
	}
}

static uint8_t read_byte(struct flash *f, uint64_t offset)
{
	switch (f->state.mode) {
	case MODE_ARRAY: return content(f)[offset];
	case MODE_ID: return (offset & 0xff) == 0 ? 0x89 : (offset & 0xff) == 1 ? 0x18 : 0;
	case MODE_CFI: return cfi_byte(f, offset);
	default: return f->state.status;
	}
}

static uint64_t flash_read(void *dev, uint64_t offset, unsigned size)
{
	uint64_t value = 0;

	for (unsigned i = 0; i < size; i++)
		value |= (uint64_t)read_byte(dev, offset + i) << 8 * i;
	return value;
}

static void command(struct flash *f, uint8_t value)
{
	switch (value) {
	case 0x10:
	case 0x40: enter(f, MODE_PROGRAM); break;
	case 0x20: enter(f, MODE_ERASE); break;
	case 0x60: enter(f, MODE_LOCK); break;
	case 0x70: enter(f, MODE_STATUS); break;
	case 0x90: enter(f, MODE_ID); break;
	case 0x98: enter(f, MODE_CFI); break;
	case 0x50:
		f->state.status = 0;
		enter(f, MODE_ARRAY);
		break;
	default: enter(f, MODE_ARRAY); break;
	}
}

static void flash_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct flash *f = dev;
	uint8_t byte = (uint8_t)value;

	switch (f->state.mode) {
	case MODE_PROGRAM:
		program(f, offset, size, value);
		enter(f, MODE_STATUS);
		break;
	case MODE_ERASE:
		if (byte == 0xd0)
			erase(f, offset);
		else
			f->state.status |= STATUS_READY | STATUS_ERASE_ERROR | STATUS_PROGRAM_ERROR;
		enter(f, MODE_STATUS);
		break;
	case MODE_LOCK: /* blocks have no locks */
		f->state.status |= byte == 0xd0 || byte == 0x01 ? STATUS_READY :
			STATUS_READY | STATUS_ERASE_ERROR | STATUS_PROGRAM_ERROR;
		enter(f, MODE_STATUS);
		break;
	default: command(f, byte); break;
	}
}

static const struct bus_ops flash_ops = {flash_read, flash_write};

int flash_create(struct bus *bus, struct guest_mem *mem, uint64_t gpa, const void *data, uint64_t size,
	const struct flash_host *host, struct flash **out, struct error *err)
{
	struct flash *f;
	int rc;

	if (!size || size % FLASH_BLOCK || gpa % FLASH_BLOCK)
		return error_set(err, -EINVAL, "A flash has a multiple of %u bytes", FLASH_BLOCK);
	f = calloc(1, sizeof(*f));
	if (!f)
		return error_set(err, -ENOMEM, "no memory for the flash");
	f->bus = bus;
	f->mem = mem;
	f->host = *host;
	f->gpa = gpa;
	f->size = size;
	f->state.status = STATUS_READY;
	rc = mem_reserve(mem, data, size, &f->offset, err);
	if (!rc) {
		rc = bus_add(bus, BUS_MMIO, gpa, size, &flash_ops, f, "flash");
		if (!rc && (rc = show(f, true)))
			bus_remove(bus, BUS_MMIO, gpa);
		if (rc)
			error_set(err, rc, "cannot place the flash");
	}
	if (rc) {
		free(f);
		return rc;
	}
	*out = f;
	return 0;
}

void flash_destroy(struct flash *f)
{
	if (!f)
		return;
	report(f);
	bus_remove(f->bus, BUS_MMIO, f->gpa);
	free(f);
}

void flash_reset(struct flash *f)
{
	enter(f, MODE_ARRAY);
	f->state.status = STATUS_READY;
}
