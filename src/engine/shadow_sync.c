/*
 * The shadow's records of guest tables, and what a flush does with them: compare each used entry with what the guest's
 * memory says now, and unmap where a translation that the CPU may still use has become one that it may not.
 *
 * Only entries that are used matter, so a table page that was freed and now holds anything else costs nothing but the unmapping.
 * Unmaps are gathered while the walk goes up the addresses: two that have nothing mapped between them are one munmap.
 */
#include <sys/mman.h>

#include "engine/shadow_internal.h"

/*
 * munmap and mprotect may need to split a VMA, which the host may refuse. Unmapping a whole region splits none. Should even that
 * fail, there must be no way into it any more.
 */
static void slot_lose(struct engine *e, unsigned slot)
{
	struct shadow *s = e->shadow;

	s->slots[slot].lost = s->lost = true;
	if (munmap((void *)(uintptr_t)region_base(slot), SLOT_SIZE))
		s->broken = true;
}

void slot_unmap(struct engine *e, unsigned slot, uint64_t offset, uint64_t size)
{
	e->stats->shadow_munmaps++;
	if (munmap((void *)(uintptr_t)(region_base(slot) + offset), size))
		slot_lose(e, slot);
}

static void slot_make_readonly(struct engine *e, unsigned slot, uint64_t offset, uint64_t size)
{
	e->stats->shadow_mmaps++;
	if (mprotect((void *)(uintptr_t)(region_base(slot) + offset), size, PROT_READ))
		slot_lose(e, slot);
}

void shadow_settle(struct engine *e)
{
	struct shadow *s = e->shadow;

	if (engine_likely(!s->lost))
		return;
	s->lost = false;
	for (unsigned n = 0; n < REGIONS; n++) {
		if (s->slots[n].lost && s->slots[n].key)
			slot_clear(e, n);
		s->slots[n].lost = false;
	}
	if (s->broken)
		slots_detach(s);
}

/* --- records --- */

unsigned table_take(struct shadow *s, unsigned slot, unsigned level, unsigned layout, uint64_t offset, uint64_t base)
{
	unsigned id = s->first_free;
	struct shadow_table *t = &s->tables[id];

	if (!id)
		return 0;
	s->first_free = t->next_free;
	t->offset = offset;
	t->base = base;
	for (unsigned n = 0; n < 8; n++)
		t->used[n] = t->inner[n] = t->writable[n] = 0;
	t->runs = 0;
	t->level = (uint8_t)level;
	t->slot = (uint8_t)slot;
	t->layout = (uint8_t)layout;
	t->nonglobal = false;
	t->live = true;
	return id;
}

void table_drop(struct shadow *s, unsigned id)
{
	struct shadow_table *t = &s->tables[id];

	if (t->level > 1) {
		for (unsigned n = 0; n < 8; n++) {
			for (uint64_t bits = t->used[n]; bits; bits &= bits - 1) {
				unsigned i = n * 64 + (unsigned)__builtin_ctzll(bits);

				if (bit_test(t->inner, i))
					table_drop(s, s->child[id][i]);
				else
					large_remove(s, leaf_frame(s->snapshot[id][i], t->level) | t->level, id, i);
			}
		}
	}
	s->slots[t->slot].vmas -= t->runs;
	s->vmas -= t->runs;
	t->live = false;
	t->next_free = s->first_free;
	s->first_free = (uint16_t)id;
}

static bool is_leaf(const struct shadow_table *t, unsigned i)
{
	return bit_test(t->used, i) && !bit_test(t->inner, i);
}

/* Leaves i and i + 1 are one VMA of the host. */
static bool is_joined(const struct shadow *s, unsigned id, unsigned i)
{
	const struct shadow_table *t = &s->tables[id];

	return is_leaf(t, i) && is_leaf(t, i + 1) && bit_test(t->writable, i) == bit_test(t->writable, i + 1) &&
		leaf_frame(s->snapshot[id][i], t->level) + level_span(t->level) == leaf_frame(s->snapshot[id][i + 1], t->level);
}

static int runs_around(const struct shadow *s, unsigned id, unsigned i)
{
	return is_leaf(&s->tables[id], i) - (i > 0 && is_joined(s, id, i - 1)) - (i < 511 && is_joined(s, id, i));
}

static void add_runs(struct shadow *s, unsigned id, int runs)
{
	struct shadow_table *t = &s->tables[id];

	t->runs += (uint32_t)runs;
	s->slots[t->slot].vmas += (uint32_t)runs;
	s->vmas += (uint32_t)runs;
}

void leaf_add_splits(struct shadow *s, unsigned id, unsigned i, int vmas)
{
	uint16_t *child = &s->child[id][i];
	int before = *child & ~LEAF_LAZY, max = s->tables[id].level == 2 ? 1024 : LEAF_LAZY - 1, now = before + vmas;

	now = now < 0 ? 0 : now > max ? max : now;
	*child = (uint16_t)((*child & LEAF_LAZY) | (unsigned)now);
	add_runs(s, id, now - before);
}

bool leaf_set(struct engine *e, unsigned id, unsigned i, uint64_t entry, bool writable)
{
	struct shadow *s = e->shadow;
	struct shadow_table *t = &s->tables[id];
	int before = runs_around(s, id, i);

	if (t->level > 1 && !bit_test(t->used, i)) {
		if (!large_add(s, leaf_frame(entry, t->level) | t->level, id, i))
			return false;
		s->child[id][i] = 0;
	}
	s->snapshot[id][i] = entry;
	bit_set(t->used, i);
	bit_clear(t->inner, i);
	if (writable)
		bit_set(t->writable, i);
	else
		bit_clear(t->writable, i);
	add_runs(s, id, runs_around(s, id, i) - before);
	return true;
}

void leaf_clear(struct engine *e, unsigned id, unsigned i)
{
	struct shadow *s = e->shadow;
	struct shadow_table *t = &s->tables[id];
	int before = runs_around(s, id, i);

	if (t->level > 1) {
		large_remove(s, leaf_frame(s->snapshot[id][i], t->level) | t->level, id, i);
		leaf_add_splits(s, id, i, -(int)(s->child[id][i] & ~LEAF_LAZY));
	}
	bit_clear(t->used, i);
	bit_clear(t->writable, i);
	add_runs(s, id, runs_around(s, id, i) - before);
}

/* --- comparing --- */

/*
 * What is to be done with [start, end) of the slot, and has not been yet: GONE, nothing in it is used any more; READONLY, all of it is used
 * and must not be written.
 */
enum sweep_kind { SWEEP_NOTHING, SWEEP_GONE, SWEEP_READONLY };

struct sweep {
	unsigned slot;
	bool globals;
	enum sweep_kind kind;
	uint64_t start, end;
};

static void sweep_kept(struct engine *e, struct sweep *w)
{
	if (w->kind == SWEEP_GONE)
		slot_unmap(e, w->slot, w->start, w->end - w->start);
	else if (w->kind == SWEEP_READONLY)
		slot_make_readonly(e, w->slot, w->start, w->end - w->start);
	w->kind = SWEEP_NOTHING;
}

static void sweep_add(struct engine *e, struct sweep *w, enum sweep_kind kind, uint64_t offset, uint64_t size)
{
	if (w->kind != kind || (kind == SWEEP_READONLY && w->end != offset)) {
		sweep_kept(e, w);
		w->kind = kind;
		w->start = offset;
	}
	w->end = offset + size;
}

static bool leaf_changed(uint64_t entry, uint64_t old, unsigned level)
{
	uint64_t frame = level > 1 ? (PTE_FRAME & ~0x1000ull) | PTE_PS : PTE_FRAME; /* bit 12 is PAT there, bit 7 here */

	return ((entry ^ old) & (frame | PTE_P | PTE_U)) || !(entry & PTE_A);
}

static bool may_write(uint64_t entry)
{
	return (entry & (PTE_W | PTE_D)) == (PTE_W | PTE_D);
}

/* Worth a look at all 64: more than 8 are used. */
static bool is_dense(uint64_t bits)
{
	for (unsigned n = 0; n < 8; n++)
		bits &= bits - 1;
	return bits != 0;
}

/* 64 entries are, to the bit, what they were. */
static bool is_same_group(const uint64_t *now, const uint64_t *old)
{
	uint64_t d = 0;

	for (unsigned n = 0; n < 64; n += 8)
		d |= (now[n] ^ old[n]) | (now[n + 1] ^ old[n + 1]) | (now[n + 2] ^ old[n + 2]) | (now[n + 3] ^ old[n + 3]) |
			(now[n + 4] ^ old[n + 4]) | (now[n + 5] ^ old[n + 5]) | (now[n + 6] ^ old[n + 6]) | (now[n + 7] ^ old[n + 7]);
	return d == 0;
}

static void sync_leaf(struct engine *e, struct sweep *w, unsigned id, unsigned i, uint64_t entry)
{
	struct shadow *s = e->shadow;
	struct shadow_table *t = &s->tables[id];
	uint64_t *old = &s->snapshot[id][i], offset = t->base + i * level_span(t->level);
	bool lost_write;

	if (!w->globals && (*old & PTE_G)) {
		sweep_kept(e, w);
		return;
	}
	lost_write = bit_test(t->writable, i) && !may_write(entry);
	if (s->policy == SHADOW_VTLB || leaf_changed(entry, *old, t->level) || (lost_write && t->level > 1)) {
		leaf_clear(e, id, i);
		sweep_add(e, w, SWEEP_GONE, offset, level_span(t->level));
	} else if (lost_write) {
		/* A fork does this to every page of the parent. */
		leaf_set(e, id, i, entry, false);
		sweep_add(e, w, SWEEP_READONLY, offset, 4096);
	} else {
		*old = entry;
		sweep_kept(e, w);
	}
}

static void inner_drop(struct engine *e, struct sweep *w, unsigned id, unsigned i)
{
	struct shadow *s = e->shadow;
	struct shadow_table *t = &s->tables[id];

	table_drop(s, s->child[id][i]);
	bit_clear(t->used, i);
	bit_clear(t->inner, i);
	sweep_add(e, w, SWEEP_GONE, t->base + i * level_span(t->level), level_span(t->level));
}

static void sync_table(struct engine *e, struct sweep *w, unsigned id)
{
	struct shadow *s = e->shadow;
	struct shadow_table *t = &s->tables[id];
	const uint64_t *now = (const uint64_t *)(e->ram + t->offset);
	uint64_t *old = s->snapshot[id];

	e->stats->shadow_tables++;
	for (unsigned n = 0; n < 8; n++) {
		uint64_t bits = t->used[n];

		if (t->level == 1 && t->layout == LAYOUT_WIDE && s->policy != SHADOW_VTLB && is_dense(bits)) {
			if (is_same_group(now + n * 64, old + n * 64)) {
				sweep_kept(e, w);
				continue;
			}
			for (unsigned i = n * 64; i < n * 64 + 64; i++)
				if (!bit_test(&bits, i % 64))
					old[i] = now[i];
		}
		for (; bits; bits &= bits - 1) {
			unsigned i = n * 64 + (unsigned)__builtin_ctzll(bits), child = s->child[id][i];
			uint64_t entry = table_entry(e, t->layout, t->offset, i);

			if (!bit_test(t->inner, i)) {
				sync_leaf(e, w, id, i, entry);
			} else if (inner_changed(entry, old[i])) {
				inner_drop(e, w, id, i);
			} else if (w->globals || s->tables[child].nonglobal) {
				sync_table(e, w, child);
			} else {
				sweep_kept(e, w);
			}
		}
	}
}

void slot_sync(struct engine *e, unsigned slot, bool globals)
{
	struct sweep w = { .slot = slot, .globals = globals || !(e->cpu->cr4 & CR4_PGE) };

	sync_table(e, &w, e->shadow->slots[slot].root);
	sweep_kept(e, &w);
	shadow_settle(e);
}

/*
 * INVLPG drops a translation whether it is global or not, and with it whatever the CPU knew of the tables on its way (SDM vol. 3,
 * 4.10.4.1). An operating system changes a range of PTEs and then invalidates page by page: the first one that finds a change looks
 * through the whole table, and the others find nothing to do.
 */
void slot_flush_page(struct engine *e, unsigned slot, uint64_t offset)
{
	struct shadow *s = e->shadow;
	struct sweep w = { .slot = slot, .globals = true };
	unsigned id = s->slots[slot].root;

	for (unsigned level = 3;; level--) {
		struct shadow_table *t = &s->tables[id];
		uint64_t span = level_span(level), entry;
		unsigned i = (unsigned)((offset - t->base) / span);

		if (!bit_test(t->used, i))
			return;
		entry = table_entry(e, t->layout, t->offset, i);
		if (!bit_test(t->inner, i)) {
			if (level == 1 && s->policy != SHADOW_VTLB && entry != s->snapshot[id][i])
				sync_table(e, &w, id);
			else
				sync_leaf(e, &w, id, i, entry);
			break;
		}
		if (inner_changed(entry, s->snapshot[id][i])) {
			inner_drop(e, &w, id, i);
			break;
		}
		id = s->child[id][i];
	}
	sweep_kept(e, &w);
	shadow_settle(e);
}
