/*
 * The shadow's inside (docs/shadow.md).
 *
 *   shadow.c        create, destroy, the hooks;  shadow_slots.c  regions, deltas, roots, eviction
 *   shadow_fill.c   walk and map;                shadow_sync.c   records of the guest's tables, compared at flushes
 *   shadow_code.c   which mappings a memfd page is writable through;  shadow_table.c  the formats of the guest's tables
 *
 * A slot has a tree of records, one for each guest table page that a fill has walked: where the table lies, its content
 * as it was when it was last looked at, which entries are in use. The tree says exactly what is mapped in the slot's region:
 *
 *   slot → record of the PDPT → records of PDs → records of PTs
 *            leaf 1 GiB           leaf 2 MiB       leaf 4 KiB: used, writable as it is mapped
 *
 * Invariants:
 *  - Nothing is mapped in a region without a used leaf that says so. The other way about the host may lack a mapping
 *    (a large page that is not all RAM); then the access faults and is interpreted.
 *  - snapshot[i] of a used entry is the entry that its mapping was made from; that of an unused one means nothing.
 *  - Nothing here allocates or uses vector registers (the guest's live there); no libc call but mmap, munmap, mprotect.
 */
#ifndef SHADOW_INTERNAL_H
#define SHADOW_INTERNAL_H

#include "engine/access.h"
#include "engine/shadow.h"

#define SLOT_SIZE (1ull << 39)
#define REGION_GUARD (48ull << 30)
#define REGION_STRIDE (SLOT_SIZE + REGION_GUARD)
#if defined(__SANITIZE_ADDRESS__)
#define ARENA_BASE 0x200000000000ull /* above the sanitizer's shadow */
#define REGIONS 64
#else
#define ARENA_BASE 0x010000000000ull
#define REGIONS 126
#endif
#define POISON_REGION REGIONS
#define ARENA_SIZE ((REGIONS + 1) * REGION_STRIDE + REGION_GUARD)

#define TABLES_MAX 4096u /* number 0 is none */
#define LARGE_MAX 32768u
#define LARGE_BUCKETS 4096u
/* Of vm.max_map_count's 65,530: what is left is for the process, and for a fill that takes more than it was expected to. */
#define VMAS_MAX 45000u

#define LEAF_LAZY 0x8000u
#define SPLITS_MAX 512 /* VMAs that guarded pages may cost a fill; large pages that would need more become lazy */

#define OWNER_NONE 0u
#define OWNER_MANY ~0u

struct shadow_table {
	uint64_t offset;      /* of the guest's table page, in the memfd */
	uint64_t base;	      /* of what it maps, from the slot's start */
	uint64_t used[8];     /* entries that lead to a record or are mapped */
	uint64_t inner[8];    /* … of those: lead to a record, child[] says which; else a leaf */
	uint64_t writable[8]; /* … leaves that are mapped writable */
	uint32_t runs; /* of mappings, at most: what the leaves cost in VMAs */
	uint16_t next_free;
	uint8_t level; /* 3: PDPT, 2: PD, 1: PT */
	uint8_t slot;
	uint8_t layout; /* enum table_layout */
	bool nonglobal; /* some leaf below is not global */
	bool live;
};

/*
 * How a record's 512 entries come from the guest's table. 32-bit paging has tables of 1,024 entries of 4 bytes: a page directory is four
 * records, a page table two, and the half of a 4 MiB page is a large page of 2 MiB. So all that is above the entries knows one format only.
 */
enum table_layout {
	LAYOUT_WIDE,  /* as it is: 8 bytes each */
	LAYOUT_FLAT,  /* no paging: each maps its GiB to itself */
	LAYOUT_PDPTE, /* the four registers of PAE paging */
	LAYOUT_TOP32, /* the quarters of the page directory */
	LAYOUT_PD32,  /* … the first, and three more */
	LAYOUT_PT32 = LAYOUT_PD32 + 4, /* half a page table, and the other one */
};

enum slot_type { SLOT_EMPTY, SLOT_SUPERVISOR, SLOT_USER };

/* Slot n owns region n. */
/* Of fills that go up the addresses: a copy has two. */
#define SHADOW_STREAMS 4u

struct shadow_slot {
	uint64_t key;	/* slot_key() of its PML4 entry; 0: free */
	uint64_t stamp; /* of its last fill or attachment */
	uint32_t vmas;	/* at most */
	uint16_t g;	/* PML4 index */
	uint16_t root;	/* record of the PDPT */
	struct shadow_stream {
		uint64_t end;	/* where its last small fill ended: an offset in the slot */
		uint8_t streak; /* how many fills in a row began there */
	} streams[SHADOW_STREAMS];
	uint8_t stream; /* the one begun last */
	uint8_t next;	 /* in the chain of its key's hash: slot number + 1 */
	uint16_t misses; /* faults on pages of the other type since the last fill */
	uint8_t type;
	bool attached;
	bool lost; /* all of it is unmapped, and the records do not know */
	bool nonglobal, global; /* it has such leaves */
	/* Detached: since then nothing has been flushed that the TLB entries of this PCID would not have survived. */
	bool fresh;
	uint16_t pcid;
};

/* Which eighths of a PML4's 64 had entries in use when it was looked through. Only a hint: what is not attached is poison until its first fault. */
struct root_hint {
	uint64_t root, groups;
};
#define ROOT_HINTS 64 /* hint_of() hashes to 6 bits */

/* What root_update() follows: CR3 written with its bit 63 set, or without; a flush that kept globals; one of everything. */
enum root_reason { ROOT_KEEP, ROOT_LOAD, ROOT_FLUSH, ROOT_FLUSH_GLOBALS };

struct large_node {
	uint64_t key; /* gpa | level */
	uint32_t next;
	uint16_t table, index;
};

struct shadow {
	/* Set at create. */
	int ram_fd;
	enum shadow_policy policy;
	struct shadow_deltas *deltas;
	uint64_t reserved_bits; /* of table entries, with NXE set */
	int splits_max;		/* SPLITS_MAX; tests set less */
	uint64_t page_count;
	uint32_t *owner; /* by memfd page: which PT leaf it may be mapped writable by: table << 9 | index, NONE or MANY */

	uint64_t *guarded; /* bit per memfd page: read-only in all large leaves, writable or not; every page with code is */

	/* Engine thread. */
	bool served; /* translations can be followed: no paging, 32-bit, PAE, or 4-level with a root in RAM */
	/*
	 * Of the slots' roots: LAYOUT_WIDE: 4-level paging. Else all is in the first 4 GiB, which have two slots: index 0 is the user's
	 * view, 1 the supervisor's, with the pages of both.
	 */
	uint8_t layout;
	bool smap, nxe;
	uint64_t reserved; /* bits of table entries, as they are now */
	uint16_t pcid;
	uint64_t root;	/* memfd offset of the PML4 */
	uint64_t clock;
	uint32_t vmas;
	bool lost;   /* some slot is */
	bool broken; /* something could not be unmapped: nothing is attached ever again */
	unsigned pinned; /* slot number + 1 that may not be evicted */
	/* Ticks of the TSC: when the present address space last needed more than there is, and for how long that is believed of it. */
	uint64_t crowded_since, crowded_for;
	uint16_t first_free;
	uint32_t first_free_node;
	uint8_t attached[512] __attribute__((aligned(8))); /* slot number + 1 */
	uint8_t keys[256]; /* first slot whose key has this hash, + 1 */
	uint64_t groups;   /* by PML4 index / 8: some of them may be attached */
	struct root_hint hints[ROOT_HINTS];
	struct shadow_slot slots[REGIONS];
	uint32_t buckets[LARGE_BUCKETS];
	struct large_node nodes[LARGE_MAX]; /* 0 is none */
	struct shadow_table tables[TABLES_MAX];
	/* Inner: record. Large leaf: VMAs that guarded pages in it cost; LEAF_LAZY: mapped read-only, and then by parts writable (open_run()). */
	uint16_t child[TABLES_MAX][512];
	uint64_t snapshot[TABLES_MAX][512];
};

static inline bool bit_test(const uint64_t *map, unsigned n)
{
	return map[n / 64] >> (n % 64) & 1;
}

static inline void bit_set(uint64_t *map, unsigned n)
{
	map[n / 64] |= 1ull << (n % 64);
}

static inline void bit_clear(uint64_t *map, unsigned n)
{
	map[n / 64] &= ~(1ull << (n % 64));
}

static inline uint64_t region_base(unsigned slot)
{
	return ARENA_BASE + REGION_GUARD + slot * REGION_STRIDE;
}

static inline uint64_t slot_gva(const struct shadow *s, unsigned g)
{
	if (s->layout != LAYOUT_WIDE)
		return 0;
	return (uint64_t)((int64_t)((uint64_t)g << 55) >> 16);
}

/* Bytes that an entry of a table maps. */
static inline uint64_t level_span(unsigned level)
{
	return 4096ull << (level - 1) * 9;
}

static inline uint64_t leaf_frame(uint64_t entry, unsigned level)
{
	return entry & PTE_FRAME & ~(level_span(level) - 1);
}

static inline uint64_t entry_load(const struct engine *e, uint64_t offset)
{
	return __atomic_load_n((const uint64_t *)(e->ram + offset), __ATOMIC_ACQUIRE);
}

/* Entry i of the table at `offset`, as a table of 8-byte entries would have it. */
uint64_t table_entry(const struct engine *e, unsigned layout, uint64_t offset, unsigned i);
/* That of the table which entry i leads to. */
static inline unsigned child_layout(unsigned layout, unsigned i)
{
	if (layout == LAYOUT_TOP32)
		return LAYOUT_PD32 + i;
	return layout >= LAYOUT_PD32 ? LAYOUT_PT32 + (i & 1) : LAYOUT_WIDE;
}

/* --- shadow_slots.c --- */
/*
 * What a slot is known by: everything in the PML4 entry (or the registers) that translation below depends on; 0 if it leads
 * nowhere.
 */
uint64_t slot_key(const struct engine *e, unsigned g);
/* The slot of the present root's index g, attached and compared with the guest's tables; a new one if need be. −1: none to be had. */
int slot_open(struct engine *e, unsigned g);
void slot_set_type(struct engine *e, unsigned slot, enum slot_type type);
/* Unmaps and forgets everything in it. */
void slot_clear(struct engine *e, unsigned slot);
/* Gives up the least recently used slot that is not pinned. False: there is none. */
bool slot_evict_one(struct engine *e);
/* Makes room for the pinned slot: others go, detached ones first; its own content if it is the one that takes the room. */
void slots_make_room(struct engine *e);
void slot_evict(struct engine *e, unsigned slot);
/* Follows CR3, CR4 and EFER; compares with the guest's tables what may not be used any longer without. */
void root_update(struct engine *e, enum root_reason reason);
void slots_detach(struct shadow *s);
/* No detached slot may be attached again without being compared. */
void slots_stale(struct shadow *s);

/* --- shadow_sync.c --- */
/* A record for the guest table at `offset`; 0: none left. */
unsigned table_take(struct shadow *s, unsigned slot, unsigned level, unsigned layout, uint64_t offset, uint64_t base);
/* Forgets it and all below it; unmaps nothing. */
void table_drop(struct shadow *s, unsigned table);
/* An entry comes into use as a leaf, mapped now, or its mapping changes to writable. False: no node for a large leaf. */
bool leaf_set(struct engine *e, unsigned table, unsigned index, uint64_t entry, bool writable);
void leaf_clear(struct engine *e, unsigned table, unsigned index);
/* A page in a large leaf has changed its protection, or several have. The sum stays within what such a leaf can be cut into. */
void leaf_add_splits(struct shadow *s, unsigned table, unsigned index, int vmas);
/* Compares a slot with the guest's tables and unmaps what is not so any more. */
void slot_sync(struct engine *e, unsigned slot, bool globals);
void slot_flush_page(struct engine *e, unsigned slot, uint64_t offset);
/* An inner entry does not lead where it led. */
static inline bool inner_changed(uint64_t entry, uint64_t old)
{
	return ((entry ^ old) & (PTE_FRAME | PTE_P | PTE_W | PTE_U | PTE_PS)) || !(entry & PTE_A);
}
/* Unmaps a part of a slot. Its records must have been told. May lose all of the slot: shadow_settle() before anyone looks at it again. */
void slot_unmap(struct engine *e, unsigned slot, uint64_t offset, uint64_t size);
/* Forgets slots that had to be unmapped as a whole, the host being out of mappings. */
void shadow_settle(struct engine *e);

/* --- shadow_code.c --- */
/* Pages [page, page + count) that have code are guarded after this. Another vcpu's news may not have come yet. */
void code_guard(struct engine *e, uint64_t page, uint64_t count);
/* The page has code no more: writable again in all writable large leaves. */
void code_unguard(struct engine *e, uint64_t page);
bool large_add(struct shadow *s, uint64_t frame, unsigned table, unsigned index);
void large_remove(struct shadow *s, uint64_t frame, unsigned table, unsigned index);

#endif
