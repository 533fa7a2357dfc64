/* The shape of guest-physical memory as both the VMM and a vcpu process see it: plain data, no pointers. */
#ifndef VMM_CPU_LAYOUT_H
#define VMM_CPU_LAYOUT_H

#include <stdint.h>

#define RAM_RANGE_MAX 32

#define GPA_VGA_HOLE 0xa0000ull
#define GPA_VGA_HOLE_END 0xc0000ull
#define GPA_LOW_RAM_END 0xb0000000ull /* RAM that fits below lies there; more than that is split at GPA_LOW_RAM_SPLIT */
#define GPA_LOW_RAM_SPLIT 0x80000000ull
#define GPA_PCI_HOLE 0xc0000000ull /* 3 GiB: BARs from here */
#define GPA_PCI_MMIO_END 0xe0000000ull
#define GPA_ECAM 0xe0000000ull /* 256 buses × 1 MiB */
#define GPA_ECAM_SIZE 0x10000000ull
#define GPA_IOAPIC 0xfec00000ull
#define GPA_HPET 0xfed00000ull
#define GPA_LAPIC 0xfee00000ull
#define GPA_HIGH_RAM 0x100000000ull
#define GPA_PCI_MMIO64 0x8000000000ull /* 512 GiB: 64-bit BARs, 256 GiB of them */
#define GPA_PCI_MMIO64_SIZE 0x4000000000ull

struct ram_range {
	uint64_t gpa;	 /* first byte */
	uint64_t size;	 /* bytes; 0 ends the list */
	uint64_t offset; /* in the RAM memfd */
	uint32_t readonly;   /* writes are dropped … */
	uint32_t write_exit; /* … or, if this is set too, come to the bus as MMIO */
};

struct ram_layout {
	struct ram_range ranges[RAM_RANGE_MAX]; /* sorted by gpa, disjoint */
	uint64_t file_size;			/* bytes of the memfd */
	uint64_t lines_off; /* gpa bits that vcpus have forced to 0: bit 20 while the A20 gate is shut, else none */
};

#endif
