/* What the bare-metal files of the nano guest share; see nano_guest.c. */
#ifndef NANO_GUEST_H
#define NANO_GUEST_H

#include "guest.h"
#include "nano.h"

/* Handlers (nano_asm.S) count here; a row compares the count with its number of operations. */
extern volatile uint64_t nano_count;
/* The counter when the timer handler was entered last. */
extern volatile uint64_t nano_when;

void nano_syscall_entry(void);
void nano_skip2(void);       /* an exception without error code: returns behind a 2-byte instruction */
void nano_skip2_error(void); /* the same with error code */
void nano_irq_handler(void); /* counts, takes the time, EOI */

/* Ring-3 loops: RDI operations; they store their cycles and leave by INT 0x80. */
extern char nano_user_syscall[], nano_user_fault[];
extern volatile uint64_t nano_user_cycles, nano_user_target;

/* The second processor's way up: copied to AP_BASE, and what it finds there. */
#define AP_BASE 0x10000u
extern char nano_ap_begin[], nano_ap_end[], nano_ap_gdt[], nano_ap_idt[];
void nano_ap_main(void);

/*
 * The window: PML4 entry 1. At WINDOW_4K, 512 pages of 4 KiB; at WINDOW_2M, WALK_2M_PAGES large pages. Space A maps the
 * frames from FRAMES_A, space B (a second PML4, the same but for the small pages) those from FRAMES_B. Each frame
 * begins with its tag. The last page is not there.
 */
#define WINDOW_4K 0x8000000000ul
#define WINDOW_2M 0x8040000000ul
#define FRAMES_A (32ul << 20)
#define FRAMES_B (34ul << 20)
#define FRAMES_2M (64ul << 20)
#define TAG_A 0xa000u
#define TAG_B 0xb000u
#define PAGE_PTE 500u  /* whose entry the ptemod rows change */
#define PAGE_USE 490u  /* the first of eight that the CR3 rows read */
#define PAGE_HOLE 511u
extern volatile uint64_t nano_pt_a[512];
extern uint64_t nano_cr3_a, nano_cr3_b;
void nano_window_init(void);

static inline uint64_t page_at(unsigned page)
{
	return WINDOW_4K + page * 4096ul;
}

#endif
