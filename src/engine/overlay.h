/*
 * An engine's private view of RAM, for lock step (lockstep.c): what it writes goes to copies of pages, and everything else is
 * read from RAM. Nothing that such an engine does is seen by the guest.
 */
#ifndef ENGINE_OVERLAY_H
#define ENGINE_OVERLAY_H

#include "engine/engine_state.h"

#define OVERLAY_PAGES 64u
#define OVERLAY_ENTRIES 256u

struct overlay {
	unsigned count;
	bool full; /* a page more was wanted */
	uint64_t page[OVERLAY_PAGES]; /* number in the memfd */
	unsigned entries; /* TLB entries that lead to copies */
	struct tlb_entry *entry[OVERLAY_ENTRIES];
	uint8_t before[OVERLAY_PAGES][4096] __attribute__((aligned(4096)));
	uint8_t now[OVERLAY_PAGES][4096] __attribute__((aligned(4096)));
};

/* The byte at the memfd offset; a page that is written is copied first. Without room for a copy the instruction ends (engine_restart_insn). */
uint8_t *overlay_at(struct engine *e, uint64_t offset, bool is_write);

/* The TLB entry leads to a copy, or may do so: it is forgotten with it. */
void overlay_note(struct engine *e, struct tlb_entry *t);

/* The hva of a memfd offset as the engine sees it. */
static inline uint8_t *ram_at(struct engine *e, uint64_t offset, bool is_write)
{
	return __builtin_expect(!e->overlay, 1) ? e->ram + offset : overlay_at(e, offset, is_write);
}

#endif
