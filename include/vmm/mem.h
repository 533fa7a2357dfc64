/*
 * Guest RAM: one memfd, shared with the vcpu processes, allocated lazily. The guest-physical map:
 *
 *   0          .. 0xA0000        RAM
 *   0xA0000    .. 0xC0000        hole (legacy VGA, nobody home)
 *   0xC0000    .. low_end        RAM; low_end = size, or 2 GiB if more than 2.75 GiB are wanted: the chip set that
 *                                firmware knows has its ECAM at 0xB0000000
 *   low_end    .. 4 GiB          ECAM, BARs, IOAPIC, HPET, LAPIC, firmware
 *   4 GiB      .. 4 GiB + rest   RAM
 *
 * Offset in the memfd = gpa below low_end, gpa − 4 GiB + low_end above 4 GiB; ROM follows the RAM. All access from the
 * VMM process goes through these functions, which check bounds and report writes to whoever caches guest bytes
 * (decoded code, dirty logs). DMA never reaches MMIO: an address that is not RAM fails.
 *
 * The layout may change while vcpus run (shadow RAM, flash), under the device lock, by mem_map(). Backends follow:
 * layout_changed() is called after each change.
 */
#ifndef VMM_MEM_H
#define VMM_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "vmm/cpu_layout.h"

struct error;

#define MEM_ROM_RESERVE (64ull << 20) /* bytes of ROM and flash at most */

/*
 * What a backend does for the dirty log. start() begins to note which pages its vcpus write; collect() sets the bits of those
 * written since the last call (one bit for each 4 KiB page of the memfd) and begins anew. Device lock held.
 */
struct mem_dirty_source {
	int (*start)(void *ctx);
	void (*collect)(void *ctx, uint64_t *bitmap);
	void (*stop)(void *ctx);
	void *ctx;
};

struct guest_mem {
	/* Set at create. */
	int fd;		/* the memfd; owned */
	uint8_t *base;	/* hva of the linear mapping of the whole memfd */
	uint64_t size;	/* bytes of RAM */
	uint64_t file_size; /* bytes of RAM and ROM: the memfd's size */
	uint64_t page_size; /* of the memfd: 4 KiB, or 2 MiB */
	struct ram_layout layout;
	/* Called after every write by the VMM (DMA, loaders). May be NULL. Any thread. */
	void (*written)(void *ctx, uint64_t gpa, uint64_t length);
	void *written_ctx;
	/*
	 * Called after each change of `layout`, device lock held, by a vcpu thread in an access of its vcpu or while vcpus
	 * are stopped. That vcpu sees the new layout at its next instruction, others soon. May be NULL.
	 */
	void (*layout_changed)(void *ctx);
	void *layout_ctx;
	struct mem_dirty_source dirty_source; /* start NULL: the backend cannot */
	_Atomic uint64_t *_Atomic dirty;      /* pages written by the VMM while the dirty log runs; NULL: it does not */
	bool hidden_written; /* mem_store() has written bytes that were not in the layout, since the last layout_changed() */
};

/* Creates `size` bytes of RAM (a multiple of 4 KiB, 1 MiB at least). */
int mem_create(uint64_t size, struct guest_mem **mem, struct error *err);
/* As above, of the host's huge pages (2 MiB) if asked for: size is a multiple of these. -ENOMEM: there are too few. */
int mem_create_huge(uint64_t size, bool huge, struct guest_mem **mem, struct error *err);
/* Takes all of RAM from the host now. -ENOMEM where it has not so much: nothing is taken. Before vcpus start. */
int mem_prealloc(struct guest_mem *mem, struct error *err);
void mem_destroy(struct guest_mem *mem);

/* Adds a read-only range (firmware) at gpa, page aligned, filled from data. Before vcpus start. */
int mem_add_rom(struct guest_mem *mem, uint64_t gpa, const void *data, uint64_t size, struct error *err);

/*
 * Bytes for a ROM or a flash in the memfd, filled from data: *offset is a multiple of 4 KiB. Nothing shows them until
 * mem_map() does. Before vcpus start.
 */
int mem_reserve(struct guest_mem *mem, const void *data, uint64_t size, uint64_t *offset, struct error *err);

enum mem_access {
	MEM_NONE,	/* no memory: accesses go to the bus */
	MEM_RAM,	/* read and written */
	MEM_ROM,	/* read; writes are dropped */
	MEM_ROM_EXIT,	/* read; writes go to the bus */
};

/* What the guest finds at [gpa, gpa + size): bytes from `offset` of the memfd on. All multiples of 4 KiB. */
struct mem_mapping {
	uint64_t gpa, size, offset;
	enum mem_access access;
};

/*
 * Changes the layout as the list says, in its order, and calls layout_changed() once if anything is different.
 * -ENOSPC (too many pieces) and -EINVAL (bytes that do not exist) leave all as it was. Device lock held.
 */
int mem_map(struct guest_mem *mem, const struct mem_mapping *list, unsigned count);

/*
 * The A20 gate: shut, vcpus reach gpa & ~1 MiB instead of gpa, in all modes and for RAM and MMIO alike; what the VMM itself
 * accesses (DMA) does not pass it. Calls layout_changed() if that is a change. Device lock held.
 */
void mem_set_a20(struct guest_mem *mem, bool open);

/*
 * Writes bytes of the memfd at `offset`, whether the guest can see them at the moment or not: RAM behind a ROM, a flash that
 * answers otherwise. The range lies in the file. Device lock held.
 */
void mem_store(struct guest_mem *mem, uint64_t offset, const void *src, uint64_t length);

/*
 * The dirty log: which pages of the memfd were written, by vcpus, DMA and loaders. bitmap has a bit for each 4 KiB of file_size;
 * collect adds to it what was written since the last call. A page may be reported that was not written. One user at a time;
 * device lock held. -ENOTSUP: this backend has none (the software backend in this version).
 */
int mem_dirty_start(struct guest_mem *mem, struct error *err);
void mem_dirty_collect(struct guest_mem *mem, uint64_t *bitmap);
void mem_dirty_stop(struct guest_mem *mem);

/* End of RAM below the PCI hole, and bytes of RAM above 4 GiB. */
uint64_t mem_low_end(const struct guest_mem *mem);
uint64_t mem_high_size(const struct guest_mem *mem);

/* hva of [gpa, gpa+length) if all of it lies in one RAM range (ROM too if !writable), else NULL. After writing
 * through it the caller reports with mem_mark_written(). */
void *mem_ptr(struct guest_mem *mem, uint64_t gpa, uint64_t length, bool writable);
void mem_mark_written(struct guest_mem *mem, uint64_t gpa, uint64_t length);

/* Copies; 0, or -EFAULT with nothing transferred if any byte is not RAM. */
int mem_read(struct guest_mem *mem, uint64_t gpa, void *dst, uint64_t length);
int mem_write(struct guest_mem *mem, uint64_t gpa, const void *src, uint64_t length);
int mem_zero(struct guest_mem *mem, uint64_t gpa, uint64_t length);

#endif
