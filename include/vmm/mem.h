/*
 * Guest RAM: one memfd, shared with the vcpu processes, allocated lazily. The guest-physical map:
 *
 *   0          .. 0xA0000        RAM
 *   0xA0000    .. 0xC0000        hole (legacy VGA, nobody home)
 *   0xC0000    .. low_end        RAM; low_end = min(size, 3 GiB)
 *   3 GiB      .. 4 GiB          PCI hole: BARs, ECAM, IOAPIC, HPET, LAPIC, firmware
 *   4 GiB      .. 4 GiB + rest   RAM
 *
 * Offset in the memfd = gpa below 3 GiB, gpa − 1 GiB above 4 GiB; ROM ranges follow the RAM. All access from the
 * VMM process goes through these functions, which check bounds and report writes to whoever caches guest bytes
 * (decoded code, dirty logs). DMA never reaches MMIO: an address that is not RAM fails.
 */
#ifndef VMM_MEM_H
#define VMM_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "vmm/cpu_layout.h"

struct error;

struct guest_mem {
	/* Set at create. */
	int fd;		/* the memfd; owned */
	uint8_t *base;	/* hva of the linear mapping of the whole memfd */
	uint64_t size;	/* bytes of RAM */
	uint64_t file_size; /* bytes of RAM and ROM: the memfd's size */
	struct ram_layout layout;
	/* Called after every write by the VMM (DMA, loaders). May be NULL. Any thread. */
	void (*written)(void *ctx, uint64_t gpa, uint64_t length);
	void *written_ctx;
};

/* Creates `size` bytes of RAM (a multiple of 4 KiB, 1 MiB at least). */
int mem_create(uint64_t size, struct guest_mem **mem, struct error *err);
void mem_destroy(struct guest_mem *mem);

/* Adds a read-only range (firmware) at gpa, page aligned, filled from data. Before vcpus start. */
int mem_add_rom(struct guest_mem *mem, uint64_t gpa, const void *data, uint64_t size, struct error *err);

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
