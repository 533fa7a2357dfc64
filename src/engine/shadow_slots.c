/*
 * The shadow's slots: which PML4 entry owns which region of the host's address space, the deltas that translated code
 * uses, and what happens at a CR3 write: the entries that lead elsewhere than before are attached anew, and every slot
 * that was not attached is compared with the guest's tables before code can reach it.
 */
#include <sys/mman.h>
#include <x86intrin.h>

#include "engine/shadow_internal.h"

/* Ticks of the TSC. To fill all mappings takes about a second, so that is what it costs to find out that it is crowded still. */
#define CROWDED_FIRST (1ull << 34)
#define CROWDED_MAX (1ull << 38)

/* --- deltas --- */

static void delta_set(struct shadow *s, enum shadow_view view, unsigned g, unsigned region)
{
	uint64_t delta = region_base(region) - slot_gva(s, g), *old;

	if (s->layout != LAYOUT_WIDE)
		g = 0;
	old = &s->deltas->delta[view][g];
	if (*old == delta)
		return;
	if (view == SHADOW_USER)
		s->deltas->user_sum += (delta - *old) * (0x9e3779b97f4a7c15ull * (2 * g + 1));
	*old = delta;
	s->deltas->changes++;
	if (g >= 256)
		s->deltas->upper_changes++;
}

static void delta_update(struct shadow *s, unsigned g)
{
	unsigned supervisor = POISON_REGION, user = POISON_REGION;

	if (s->layout != LAYOUT_WIDE) {
		delta_set(s, g ? SHADOW_SUPERVISOR : SHADOW_USER, g, s->attached[g] ? s->attached[g] - 1u : POISON_REGION);
		return;
	}
	if (s->attached[g]) {
		unsigned slot = s->attached[g] - 1u;

		if (s->slots[slot].type == SLOT_SUPERVISOR) {
			supervisor = slot;
		} else if (s->slots[slot].type == SLOT_USER) {
			user = slot;
			/* Who may look at user pages now depends on EFLAGS.AC: interpreted. */
			if (!s->smap)
				supervisor = slot;
		}
	}
	delta_set(s, SHADOW_SUPERVISOR, g, supervisor);
	delta_set(s, SHADOW_USER, g, user);
}

static void slot_detach(struct shadow *s, unsigned g, bool fresh)
{
	struct shadow_slot *p = &s->slots[s->attached[g] - 1];

	p->attached = false;
	p->fresh = fresh;
	p->pcid = s->pcid;
	s->attached[g] = 0;
	delta_update(s, g);
}

static struct root_hint *hint_of(struct shadow *s)
{
	return &s->hints[(s->root >> 12) * 0x9e3779b97f4a7c15ull >> 58];
}

static void slot_attach(struct shadow *s, unsigned g, unsigned slot)
{
	struct root_hint *hint = hint_of(s);

	s->slots[slot].attached = true;
	s->slots[slot].stamp = ++s->clock;
	s->attached[g] = (uint8_t)(slot + 1);
	s->groups |= 1ull << g / 8;
	if (hint->root == s->root)
		hint->groups |= 1ull << g / 8;
	delta_update(s, g);
}

void slots_detach(struct shadow *s)
{
	for (unsigned g = 0; g < 512; g++)
		if (s->attached[g])
			slot_detach(s, g, false);
}

void slot_set_type(struct engine *e, unsigned slot, enum slot_type type)
{
	e->shadow->slots[slot].type = (uint8_t)type;
	e->shadow->slots[slot].misses = 0;
	if (e->shadow->slots[slot].attached)
		delta_update(e->shadow, e->shadow->slots[slot].g);
}

/* --- regions --- */

static void drop_records(struct shadow *s, unsigned slot)
{
	if (s->slots[slot].root)
		table_drop(s, s->slots[slot].root);
	s->slots[slot].root = 0;
	s->slots[slot].nonglobal = s->slots[slot].global = false;
}

void slot_clear(struct engine *e, unsigned slot)
{
	struct shadow *s = e->shadow;
	struct shadow_table *root = &s->tables[s->slots[slot].root];
	uint64_t offset = root->offset;
	unsigned layout = root->layout;

	drop_records(s, slot);
	slot_unmap(e, slot, 0, SLOT_SIZE);
	/* What was just freed is there to be taken. */
	s->slots[slot].root = (uint16_t)table_take(s, slot, 3, layout, offset, 0);
}

static unsigned key_hash(uint64_t key, unsigned g)
{
	return (unsigned)(((key >> 12) + g) & 255);
}

static void key_remove(struct shadow *s, unsigned slot)
{
	uint8_t *link = &s->keys[key_hash(s->slots[slot].key, s->slots[slot].g)];

	while (*link != slot + 1)
		link = &s->slots[*link - 1].next;
	*link = s->slots[slot].next;
}

/* True: refused. */
static bool reserve(unsigned slot)
{
	return mmap((void *)(uintptr_t)region_base(slot), SLOT_SIZE, PROT_NONE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED;
}

void slot_evict(struct engine *e, unsigned slot)
{
	struct shadow *s = e->shadow;
	struct shadow_slot *p = &s->slots[slot];

	if (p->attached)
		slot_detach(s, p->g, false);
	drop_records(s, slot);
	key_remove(s, slot);
	p->key = 0;
	/* A hole would be an invitation to whatever the process maps next. At the limit of mappings the host may refuse: then make room first. */
	if (reserve(slot)) {
		slot_unmap(e, slot, 0, SLOT_SIZE);
		reserve(slot);
	}
	e->stats->shadow_evictions++;
}

/* GS base takes canonical values only, so a delta must be below 2^47: no region beyond it serves g. */
static bool region_serves(unsigned slot, unsigned g)
{
#if defined(__SANITIZE_ADDRESS__)
	return true; /* no region is low enough */
#endif
	return g < 256 || region_base(slot) + (512ull - g) * SLOT_SIZE < 1ull << 47;
}

/* Least recently used, detached ones first; of those that serve g (any: 512). −1: none. */
static int find_victim(const struct shadow *s, unsigned g)
{
	int best = -1;

	for (unsigned n = 0; n < REGIONS; n++) {
		const struct shadow_slot *p = &s->slots[n];

		if (!p->key || n + 1 == s->pinned || (g < 512 && !region_serves(n, g)))
			continue;
		if (best < 0 || p->attached < s->slots[best].attached ||
			(p->attached == s->slots[best].attached && p->stamp < s->slots[best].stamp))
			best = (int)n;
	}
	return best;
}

bool slot_evict_one(struct engine *e)
{
	int victim = find_victim(e->shadow, 512);

	if (victim < 0)
		return false;
	slot_evict(e, (unsigned)victim);
	return true;
}

static bool is_any_detached(const struct shadow *s)
{
	int victim = find_victim(s, 512);

	return victim >= 0 && !s->slots[victim].attached;
}

static void note_crowded(struct shadow *s)
{
	uint64_t now = __rdtsc(), since = now - s->crowded_since;

	if (s->crowded_for && since < CROWDED_FIRST / 16)
		return; /* the same event */
	if (s->crowded_for && since < 2 * s->crowded_for)
		s->crowded_for = s->crowded_for < CROWDED_MAX ? 2 * s->crowded_for : CROWDED_MAX;
	else
		s->crowded_for = CROWDED_FIRST;
	s->crowded_since = now;
}

bool shadow_is_crowded(const struct engine *e)
{
	const struct shadow *s = e->shadow;

	return s && s->crowded_for && __rdtsc() - s->crowded_since < s->crowded_for;
}

void slots_make_room(struct engine *e)
{
	struct shadow *s = e->shadow;
	unsigned slot = s->pinned - 1;

	while (s->vmas > VMAS_MAX && is_any_detached(s))
		slot_evict_one(e);
	if (s->vmas <= VMAS_MAX)
		return;
	note_crowded(s);
	while (s->vmas > VMAS_MAX && s->slots[slot].vmas < VMAS_MAX / 2 && slot_evict_one(e))
		;
	if (s->vmas > VMAS_MAX) {
		slot_clear(e, slot);
		e->stats->shadow_evictions++;
	}
}

/* The kernel's half from the bottom, where deltas are canonical; the users' from the top. */
static int find_free(const struct shadow *s, unsigned g)
{
	for (unsigned n = 0; n < REGIONS; n++) {
		unsigned slot = g < 256 ? REGIONS - 1 - n : n;

		if (!s->slots[slot].key && region_serves(slot, g))
			return (int)slot;
	}
	return -1;
}

static int slot_begin(struct engine *e, unsigned g, uint64_t key, uint64_t table)
{
	struct shadow *s = e->shadow;
	int slot = find_free(s, g);
	struct shadow_slot *p;

	if (slot < 0) {
		slot = find_victim(s, g);
		if (slot < 0)
			return -1;
		slot_evict(e, (unsigned)slot);
	}
	p = &s->slots[slot];
	for (;;) {
		p->root = (uint16_t)table_take(s, (unsigned)slot, 3, s->layout, table, 0);
		if (p->root)
			break;
		if (!slot_evict_one(e))
			return -1;
	}
	if (munmap((void *)(uintptr_t)region_base((unsigned)slot), SLOT_SIZE)) {
		/* This splits the reservation: no mapping left for that. */
		table_drop(s, p->root);
		p->root = 0;
		return -1;
	}
	p->key = key;
	p->g = (uint16_t)g;
	p->next = s->keys[key_hash(key, g)];
	s->keys[key_hash(key, g)] = (uint8_t)(slot + 1);
	p->vmas = 0;
	p->misses = 0;
	for (unsigned n = 0; n < SHADOW_STREAMS; n++)
		p->streams[n] = (struct shadow_stream){.end = 1};
	p->type = SLOT_EMPTY;
	p->attached = p->nonglobal = p->global = p->fresh = false;
	e->stats->shadow_attach_misses++;
	return slot;
}

static int slot_find(const struct shadow *s, unsigned g, uint64_t key)
{
	for (unsigned n = s->keys[key_hash(key, g)]; n; n = s->slots[n - 1].next)
		if (s->slots[n - 1].key == key && s->slots[n - 1].g == g)
			return (int)n - 1;
	return -1;
}

/* keep: as a CR3 write with bit 63 set leaves the TLB entries of its PCID alone. False: there is no slot for it. */
static bool attach_known(struct engine *e, unsigned g, uint64_t key, bool keep)
{
	int slot = slot_find(e->shadow, g, key);
	struct shadow_slot *p;

	if (slot < 0)
		return false;
	p = &e->shadow->slots[slot];
	/* It has missed flushes: the page of a dead process's table may be anything now. INVLPG reaches globals of all PCIDs. */
	if (!keep || !p->fresh || p->global || p->pcid != e->shadow->pcid)
		slot_sync(e, (unsigned)slot, true);
	else
		e->stats->shadow_attach_kept++;
	slot_attach(e->shadow, g, (unsigned)slot);
	e->stats->shadow_attach_hits++;
	return true;
}

/* Without 4-level paging: CR3 (what of it counts), the layout and what else leaves mean other things with. */
static uint64_t legacy_key(const struct engine *e, unsigned g)
{
	const struct shadow *s = e->shadow;
	uint64_t key = 1ull << 62 | (uint64_t)s->layout << 56 | (uint64_t)s->smap << 55;

	if (g > 1)
		return 0;
	if (s->layout == LAYOUT_PDPTE)
		return key | (e->cpu->cr3 & 0xffffffe0u);
	if (s->layout == LAYOUT_TOP32)
		return key | (uint64_t)!!(e->cpu->cr4 & CR4_PSE) << 54 | (e->cpu->cr3 & 0xfffff000u);
	return key;
}

uint64_t slot_key(const struct engine *e, unsigned g)
{
	uint64_t entry;

	if (e->shadow->layout != LAYOUT_WIDE)
		return legacy_key(e, g);
	entry = entry_load(e, e->shadow->root + g * 8);
	if ((entry & (PTE_P | PTE_A | PTE_PS)) != (PTE_P | PTE_A))
		return 0;
	return entry & (PTE_FRAME | PTE_P | PTE_W | PTE_U);
}

int slot_open(struct engine *e, unsigned g)
{
	struct shadow *s = e->shadow;
	uint64_t key = slot_key(e, g), table;
	int slot;

	if (s->attached[g]) {
		slot = s->attached[g] - 1;
		if (s->slots[slot].key == key) {
			s->slots[slot].stamp = ++s->clock;
			return slot;
		}
		slot_detach(s, g, false);
	}
	if (!key)
		return -1;
	if (attach_known(e, g, key, false))
		return s->attached[g] - 1;
	table = s->layout == LAYOUT_WIDE ? ram_offset(e, key & PTE_FRAME, NULL) : 0;
	if (table == ~0ull)
		return -1;
	slot = slot_begin(e, g, key, table);
	if (slot >= 0)
		slot_attach(s, g, (unsigned)slot);
	return slot;
}

/* --- roots --- */

void slots_stale(struct shadow *s)
{
	for (unsigned n = 0; n < REGIONS; n++)
		s->slots[n].fresh = false;
}

static void follow_registers(struct engine *e)
{
	struct shadow *s = e->shadow;
	const struct cpu_state *cpu = e->cpu;
	bool paging = (cpu->cr0 & CR0_PG) != 0, smap = paging && (cpu->cr4 & CR4_SMAP), nxe = (cpu->efer & EFER_NXE) != 0;
	unsigned layout = !paging ? LAYOUT_FLAT : (cpu->efer & EFER_LMA) ? LAYOUT_WIDE :
			(cpu->cr4 & CR4_PAE) ? LAYOUT_PDPTE : LAYOUT_TOP32;

	if (layout != s->layout) {
		slots_detach(s);
		s->layout = (uint8_t)layout;
	}
	s->served = !s->broken && !e->block->ram.lines_off; /* large pages are mapped by the layout's ranges as they are */
	s->root = s->served && layout == LAYOUT_WIDE ? ram_offset(e, cpu->cr3 & PTE_FRAME, NULL) : ~0ull;
	if (layout == LAYOUT_WIDE && s->root == ~0ull)
		s->served = false;
	/* PAE entries outside of long mode have no bits to spare (SDM vol. 3, 4.4). */
	s->reserved = s->reserved_bits | (nxe ? 0 : PTE_NX) | (layout == LAYOUT_PDPTE ? 0x7ff0000000000000ull : 0);
	if (nxe != s->nxe) {
		/* NX becomes, or is no longer, a reserved bit. */
		s->nxe = nxe;
		for (unsigned n = 0; n < REGIONS; n++)
			if (s->slots[n].key)
				slot_evict(e, n);
	}
	if (smap != s->smap) {
		s->smap = smap;
		for (unsigned g = 0; g < 512; g++)
			delta_update(s, g);
	}
}

static void load_pcid(struct engine *e, enum root_reason reason)
{
	struct shadow *s = e->shadow;

	s->pcid = e->cpu->cr4 & CR4_PCIDE ? (uint16_t)(e->cpu->cr3 & CR3_PCID) : 0;
	if (reason >= ROOT_FLUSH) {
		slots_stale(s);
	} else if (reason == ROOT_LOAD) {
		for (unsigned n = 0; n < REGIONS; n++)
			if (s->slots[n].pcid == s->pcid)
				s->slots[n].fresh = false;
	}
}

static void follow_entry(struct engine *e, unsigned g, enum root_reason reason, uint16_t old_pcid, bool globals)
{
	struct shadow *s = e->shadow;
	uint64_t key = slot_key(e, g);
	bool keep = reason == ROOT_KEEP, same_pcid = s->pcid == old_pcid;

	if (s->attached[g]) {
		unsigned slot = s->attached[g] - 1u;

		if (s->slots[slot].key == key) {
			if ((globals || s->slots[slot].nonglobal) && !(keep && same_pcid))
				slot_sync(e, slot, globals);
			return;
		}
		slot_detach(s, g, reason <= ROOT_LOAD && (keep || !same_pcid));
		s->slots[slot].pcid = old_pcid;
	}
	if (key)
		attach_known(e, g, key, keep);
}

static bool are_any_used(struct engine *e, unsigned group)
{
	const uint64_t *root = (const uint64_t *)(e->ram + e->shadow->root) + group * 8;
	uint64_t entries = 0;

	for (unsigned n = 0; n < 8; n++)
		entries |= root[n];
	return (entries & PTE_P) != 0;
}

/* Groups that must be looked at, as they are attached, or are worth it. */
static uint64_t groups_to_follow(struct engine *e)
{
	struct shadow *s = e->shadow;
	struct root_hint *hint = hint_of(s);

	if (s->layout != LAYOUT_WIDE)
		return 1;
	if (hint->root != s->root) {
		*hint = (struct root_hint){ .root = s->root };
		for (unsigned n = 0; n < 64; n++)
			if (are_any_used(e, n))
				hint->groups |= 1ull << n;
	}
	return hint->groups | s->groups;
}

void root_update(struct engine *e, enum root_reason reason)
{
	struct shadow *s = e->shadow;
	uint16_t old_pcid = s->pcid;
	bool globals = reason == ROOT_FLUSH_GLOBALS || !(e->cpu->cr4 & CR4_PGE);

	follow_registers(e);
	e->stats->shadow_syncs++;
	if (!s->served) {
		slots_detach(s);
		return;
	}
	load_pcid(e, reason);
	for (uint64_t groups = groups_to_follow(e); groups; groups &= groups - 1) {
		unsigned group = (unsigned)__builtin_ctzll(groups), attached = 0;

		for (unsigned g = group * 8; g < group * 8 + 8; g++) {
			follow_entry(e, g, reason, old_pcid, globals);
			attached |= s->attached[g];
		}
		if (!attached)
			s->groups &= ~(1ull << group);
	}
	if (s->broken)
		slots_detach(s);
}
