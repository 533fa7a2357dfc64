/*
 * Guest memory in the host's MMU: the shadow page tables of translated code are this process's own page tables.
 *
 * A guest's linear address space is 512 slots of 512 GiB, one for each PML4 entry. A slot in use owns a region of the host's
 * address space with guard zones on both sides, and guest pages are mapped into it from the RAM memfd with the permissions that the guest's tables
 * give. Where a slot lies is a delta: hva = gva + delta.
 *
 *   host address space of the vcpu process
 *   0        1 TiB                                              ~77 TiB     85 TiB         128 TiB
 *   | our own | guard | region 0 | guard | region 1 | guard | … |           | program | … libraries |
 *    low 2 GiB: block, engine, code
 *
 * What translated code may rely on:
 *  - shadow_delta[view][gva bits 47:39] always leads to a region (or to a reserved one without mappings), so gva + delta either
 *    is guest memory that the access may touch, or faults, or is not canonical. It never is memory of ours.
 *  - A mapped page is RAM; present with A set, writable only if D is set, the guest's tables permit writing (whatever CR0.WP says), it is not read-only
 *    RAM and holds no decoded code. Never executable.
 *  - Without 4-level paging slot 0 alone has memory, in its first 4 GiB.
 *  - Everything else faults, and is then filled (shadow_fill) or interpreted: MMIO, not present, a debug breakpoint, a page of the
 *    wrong privilege for the view.
 */
#ifndef ENGINE_SHADOW_H
#define ENGINE_SHADOW_H

#include "engine/engine_state.h"

/* Which accesses: a slot whose pages are supervisor's has no delta in the user view. */
enum shadow_view { SHADOW_SUPERVISOR, SHADOW_USER, SHADOW_VIEWS };

struct shadow_deltas {
	uint64_t delta[SHADOW_VIEWS][512];
	/* Counts of changes of any delta, and of those of the upper half: who has stored one elsewhere looks here. */
	uint64_t changes, upper_changes;
	uint64_t user_sum; /* of all deltas of the user's view: tells whether they are as they were */
};

/* Policies (docs/shadow.md). */
enum shadow_policy { SHADOW_UNSYNC, SHADOW_VTLB };

/*
 * Takes the address space and all tables; afterwards nothing is allocated. deltas: memory of the caller (translated code addresses it
 * absolutely), filled in here and kept true. ram_fd: the memfd behind e->ram. 0 or −errno (the engine then
 * goes on without translator).
 */
int shadow_create(struct engine *e, int ram_fd, enum shadow_policy policy, struct shadow_deltas *deltas);
void shadow_destroy(struct engine *e);

/*
 * An access of translated code at gva faulted. Walks the guest's tables (sets no A or D bit, raises nothing) and maps the page, and neighbours where that is
 * cheap. True: the page is mapped for that access now, run it again. False: the interpreter must do it.
 */
bool shadow_fill(struct engine *e, uint64_t gva, bool is_write);

/*
 * The present address space has lately needed more mappings than the host has for us: what is mapped now pushes out what will be wanted
 * again. Its accesses had better do without mappings for a while.
 */
bool shadow_is_crowded(const struct engine *e);

/* The guest address behind a host address in a region or its guards, as the slot's present owner sees it; ~0: not in a region. */
uint64_t shadow_gva(const struct engine *e, uint64_t hva);

/*
 * Nothing can be mapped right behind the first 4 GiB of the address space, so that what crosses that line faults. True until the next
 * fill of such an address.
 */
bool shadow_is_low(const struct engine *e);

/* The delta of what has no memory. */
uint64_t shadow_poison(void);

/* CR3 was written; keep: with bit 63 set, so that what the TLB has of its PCID stays valid. */
void shadow_set_root(struct engine *e, bool keep);
/* INVPCID of another PCID than the current one. */
void shadow_flush_pcid(struct engine *e);
/* The twins of mmu_flush_*(), called by them. Changes of CR0.PG, CR4, EFER.NXE and LMA are flushes of everything. */
void shadow_flush_page(struct engine *e, uint64_t gva);
void shadow_flush_nonglobal(struct engine *e);
void shadow_flush_all(struct engine *e);
/* Guest-physical addresses lead elsewhere: nothing that was mapped stays. */
void shadow_layout_changed(struct engine *e);
/* The memfd page gets decoded code: no mapping of it stays writable. */
void shadow_protect_code(struct engine *e, uint64_t page);
/* … has none any more (its bit in code_pages is clear): it may be mapped writable at the next fill. Lazy; may do nothing. */
void shadow_release_code(struct engine *e, uint64_t page);

#endif
