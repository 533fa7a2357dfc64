/*
 * fw_cfg device (QEMU's docs/specs/fw_cfg.rst). Ports, from 0x510:
 *
 *   0   16-bit selector (write)      1   8-bit data (read)      4..11  DMA address, big endian, high half first;
 *                                                               a write of the low half starts the transfer
 *   descriptor in RAM, big endian:  control 32 | length 32 | address 64
 *   control: 31:16 key | 4 write | 3 select | 2 skip | 1 read | 0 error
 *
 * Invariants: transfers touch RAM only; a descriptor that lies about length or address gets the error bit and
 * transfers nothing; one descriptor costs the device lock no more than its item's size and MAX_PADDING.
 */
#include "vmm/dev_fw_cfg.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "ports.h"
#include "vmm/bytes.h"
#include "vmm/error.h"
#include "vmm/mem.h"

#define BASE 0x510
#define SIZE 12
#define FIRST_FILE 0x20
#define MAX_FILES 0x60
#define MAX_ITEMS (FIRST_FILE + MAX_FILES)
#define NAME_SIZE 56
#define NO_ITEM 0xffff
#define MAX_PADDING (1u << 20) /* zeroes read past the end of an item by one descriptor */

enum { DMA_ERROR = 1, DMA_READ = 2, DMA_SKIP = 4, DMA_SELECT = 8, DMA_WRITE = 16 };

struct item {
	uint8_t *data;
	size_t size;
	bool present, writable;
	char name[NAME_SIZE]; /* files */
};

struct fw_cfg_state {
	uint16_t key; /* NO_ITEM: none of ours */
	uint32_t offset;
	uint64_t dma_address;
};

struct fw_cfg {
	/* Set at create. */
	struct bus *bus;
	struct guest_mem *mem;
	/* Filled before vcpus run; the keys are the indices. */
	struct item items[MAX_ITEMS];
	unsigned files;
	void (*on_select)(void *ctx, const char *name);
	void *on_select_ctx;
	/* Device lock. */
	struct fw_cfg_state state;
};

static void put_be(uint8_t *p, unsigned size, uint64_t value)
{
	while (size--) {
		p[size] = (uint8_t)value;
		value >>= 8;
	}
}

static struct item *selected(struct fw_cfg *fw)
{
	uint16_t key = fw->state.key;

	return key < MAX_ITEMS && fw->items[key].present ? &fw->items[key] : NULL;
}

static size_t left_in_item(struct fw_cfg *fw)
{
	const struct item *item = selected(fw);

	return item && item->size > fw->state.offset ? item->size - fw->state.offset : 0;
}

static void select_key(struct fw_cfg *fw, uint16_t key)
{
	/* Bits 15 and 14 are the architecture's own and the old write channel; neither has items here. */
	fw->state.key = key < MAX_ITEMS ? key : NO_ITEM;
	fw->state.offset = 0;
	if (fw->on_select && key >= FIRST_FILE && selected(fw))
		fw->on_select(fw->on_select_ctx, selected(fw)->name);
}

/* Moves on, and stays at the end of 32 bits rather than wrapping into the item again. */
static void advance(struct fw_cfg *fw, uint32_t length)
{
	uint32_t room = UINT32_MAX - fw->state.offset;

	fw->state.offset += length < room ? length : room;
}

static uint8_t read_byte(struct fw_cfg *fw)
{
	uint8_t value = left_in_item(fw) ? selected(fw)->data[fw->state.offset] : 0;

	advance(fw, 1);
	return value;
}

static bool dma_to_guest(struct fw_cfg *fw, uint64_t gpa, uint32_t length)
{
	size_t left = left_in_item(fw), n = length < left ? length : left;

	if (length - n > MAX_PADDING || !mem_ptr(fw->mem, gpa, length, true))
		return false;
	if (n && mem_write(fw->mem, gpa, selected(fw)->data + fw->state.offset, n))
		return false;
	return length == n || !mem_zero(fw->mem, gpa + n, length - n);
}

static bool dma_from_guest(struct fw_cfg *fw, uint64_t gpa, uint32_t length)
{
	struct item *item = selected(fw);

	if (!item || !item->writable || length > left_in_item(fw))
		return false;
	return !mem_read(fw->mem, gpa, item->data + fw->state.offset, length);
}

static void dma_run(struct fw_cfg *fw)
{
	uint64_t descriptor = fw->state.dma_address, gpa;
	uint8_t raw[16], status[4] = { 0 };
	uint32_t control, length;
	bool ok = true;

	fw->state.dma_address = 0;
	if (mem_read(fw->mem, descriptor, raw, sizeof(raw)))
		return;
	control = __builtin_bswap32((uint32_t)bytes_load(raw, 4));
	length = __builtin_bswap32((uint32_t)bytes_load(raw + 4, 4));
	gpa = __builtin_bswap64(bytes_load(raw + 8, 8));
	if (control & DMA_SELECT)
		select_key(fw, (uint16_t)(control >> 16));
	if (length && (control & DMA_READ))
		ok = dma_to_guest(fw, gpa, length);
	else if (length && (control & DMA_WRITE))
		ok = dma_from_guest(fw, gpa, length);
	if (ok && (control & (DMA_READ | DMA_WRITE | DMA_SKIP)))
		advance(fw, length);
	put_be(status, 4, ok ? 0 : DMA_ERROR);
	mem_write(fw->mem, descriptor, status, sizeof(status));
}

static uint64_t fw_cfg_read(void *dev, uint64_t offset, unsigned size)
{
	static const uint8_t signature[8] = { 'Q', 'E', 'M', 'U', ' ', 'C', 'F', 'G' };
	struct fw_cfg *fw = dev;

	if (offset == 1)
		return read_byte(fw);
	if (offset >= 4 && offset + size <= 12)
		return bytes_load(signature + offset - 4, size);
	return 0;
}

static void fw_cfg_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct fw_cfg *fw = dev;

	if (offset == 0 && size == 2) {
		select_key(fw, (uint16_t)value);
	} else if (offset == 4 && size == 4) {
		fw->state.dma_address = (uint64_t)__builtin_bswap32((uint32_t)value) << 32;
	} else if (offset == 8 && size == 4) {
		fw->state.dma_address |= __builtin_bswap32((uint32_t)value);
		dma_run(fw);
	}
}

static const struct bus_ops fw_cfg_ops = { fw_cfg_read, fw_cfg_write };

static int item_set(struct item *item, const void *data, size_t size)
{
	if (size > UINT32_MAX)
		return -ENOSPC;
	item->data = malloc(size ? size : 1);
	if (!item->data)
		return -ENOMEM;
	if (size)
		memcpy(item->data, data, size);
	item->size = size;
	item->present = true;
	return 0;
}

/*
 * The directory: count 32, then for each file: size 32 | key 16 | zero 16 | name 56 bytes; all big endian.
 */
static int build_directory(struct fw_cfg *fw)
{
	struct item *directory = &fw->items[FW_CFG_FILE_DIR];
	size_t size = 4 + (size_t)fw->files * 64;
	uint8_t *data = calloc(1, size);

	if (!data)
		return -ENOMEM;
	put_be(data, 4, fw->files);
	for (unsigned i = 0; i < fw->files; i++) {
		uint8_t *entry = data + 4 + i * 64;
		const struct item *file = &fw->items[FIRST_FILE + i];

		put_be(entry, 4, file->size);
		put_be(entry + 4, 2, FIRST_FILE + i);
		memcpy(entry + 8, file->name, NAME_SIZE);
	}
	free(directory->data);
	directory->data = data;
	directory->size = size;
	directory->present = true;
	return 0;
}

static int add_file(struct fw_cfg *fw, const char *name, const void *data, size_t size, bool writable)
{
	struct item file = { .writable = writable };
	unsigned at = 0;
	int rc;

	if (strlen(name) >= NAME_SIZE || fw->files >= MAX_FILES)
		return -ENOSPC;
	for (; at < fw->files; at++) {
		rc = strcmp(name, fw->items[FIRST_FILE + at].name);
		if (rc == 0)
			return -EEXIST;
		if (rc < 0)
			break;
	}
	rc = item_set(&file, data, size);
	if (rc)
		return rc;
	memcpy(file.name, name, strlen(name) + 1);
	memmove(&fw->items[FIRST_FILE + at + 1], &fw->items[FIRST_FILE + at], (fw->files - at) * sizeof(file));
	fw->items[FIRST_FILE + at] = file;
	fw->files++;
	return build_directory(fw);
}

int fw_cfg_add_file(struct fw_cfg *fw, const char *name, const void *data, size_t size)
{
	return add_file(fw, name, data, size, false);
}

int fw_cfg_add_writable_file(struct fw_cfg *fw, const char *name, const void *data, size_t size)
{
	return add_file(fw, name, data, size, true);
}

int fw_cfg_add_bytes(struct fw_cfg *fw, uint16_t key, const void *data, size_t size)
{
	if (key >= FIRST_FILE)
		return -ENOSPC;
	if (fw->items[key].present)
		return -EEXIST;
	return item_set(&fw->items[key], data, size);
}

int fw_cfg_add_u16(struct fw_cfg *fw, uint16_t key, uint16_t value)
{
	uint8_t bytes[2];

	bytes_store(bytes, sizeof(bytes), value);
	return fw_cfg_add_bytes(fw, key, bytes, sizeof(bytes));
}

int fw_cfg_add_u32(struct fw_cfg *fw, uint16_t key, uint32_t value)
{
	uint8_t bytes[4];

	bytes_store(bytes, sizeof(bytes), value);
	return fw_cfg_add_bytes(fw, key, bytes, sizeof(bytes));
}

int fw_cfg_add_u64(struct fw_cfg *fw, uint16_t key, uint64_t value)
{
	uint8_t bytes[8];

	bytes_store(bytes, sizeof(bytes), value);
	return fw_cfg_add_bytes(fw, key, bytes, sizeof(bytes));
}

void fw_cfg_on_select(struct fw_cfg *fw, void (*fn)(void *ctx, const char *name), void *ctx)
{
	fw->on_select = fn;
	fw->on_select_ctx = ctx;
}

int fw_cfg_update_file(struct fw_cfg *fw, const char *name, const void *data, size_t size)
{
	for (unsigned i = 0; i < fw->files; i++) {
		struct item *file = &fw->items[FIRST_FILE + i];

		if (strcmp(name, file->name))
			continue;
		if (size != file->size)
			return -EINVAL;
		memcpy(file->data, data, size);
		return 0;
	}
	return -ENOENT;
}

int fw_cfg_create(struct bus *bus, struct guest_mem *mem, struct fw_cfg **out, struct error *err)
{
	struct fw_cfg *fw = calloc(1, sizeof(*fw));
	int rc = -ENOMEM;

	if (!fw)
		return error_set(err, -ENOMEM, "no memory for fw_cfg");
	fw->bus = bus;
	fw->mem = mem;
	if (fw_cfg_add_bytes(fw, FW_CFG_SIGNATURE, "QEMU", 4) || fw_cfg_add_u32(fw, FW_CFG_ID, 3) || build_directory(fw))
		goto fail;
	rc = bus_add(bus, BUS_PIO, BASE, SIZE, &fw_cfg_ops, fw, "fw_cfg");
	if (rc)
		goto fail;
	fw_cfg_reset(fw);
	*out = fw;
	return 0;
fail:
	for (unsigned i = 0; i < MAX_ITEMS; i++)
		free(fw->items[i].data);
	free(fw);
	return error_set(err, rc, "cannot set up fw_cfg");
}

void fw_cfg_destroy(struct fw_cfg *fw)
{
	if (!fw)
		return;
	bus_remove(fw->bus, BUS_PIO, BASE);
	for (unsigned i = 0; i < MAX_ITEMS; i++)
		free(fw->items[i].data);
	free(fw);
}

void fw_cfg_reset(struct fw_cfg *fw)
{
	fw->state = (struct fw_cfg_state){ 0 };
}
