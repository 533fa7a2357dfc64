/*
 * A NOR flash for firmware's variables: one device of Intel's command set (CFI, JEDEC 137; commands 0001h), eight bits
 * wide, in blocks of 4 KiB. Reads in array mode come from the memory layout without an exit; while a command waits or a
 * status is shown, the range is not memory and all accesses come here. Device lock held for every call.
 */
#ifndef VMM_DEV_FLASH_H
#define VMM_DEV_FLASH_H

#include <stdint.h>

#include "vmm/bus.h"

struct error;
struct flash;
struct guest_mem;

#define FLASH_BLOCK 4096u

struct flash_host {
	/* The bytes [offset, offset + length) are other than before; data is what they are now. May be NULL. */
	void (*changed)(void *ctx, uint64_t offset, const uint8_t *data, uint64_t length);
	void *ctx;
};

/* Puts the flash at gpa. Its content is copied from data; size is a multiple of FLASH_BLOCK. Destroy before bus and memory. */
int flash_create(struct bus *bus, struct guest_mem *mem, uint64_t gpa, const void *data, uint64_t size,
	const struct flash_host *host, struct flash **flash, struct error *err);
void flash_destroy(struct flash *flash);
/* Array mode again; the content stays. */
void flash_reset(struct flash *flash);

#endif
