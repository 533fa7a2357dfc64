/*
 * From a page of the memfd to the mappings that could write it, for when it gets decoded code. Small pages: one word for each
 * memfd page names the PT leaf that maps it writable; the rare page with several makes it a search of all records. Large pages: a hash by
 * guest-physical address. A page with code is *guarded*: read-only in every large leaf, until a write finds that it has no code any more.
 */
#include <sys/mman.h>

#include "engine/shadow_internal.h"

static uint32_t *bucket_of(struct shadow *s, uint64_t key)
{
	return &s->buckets[(key * 0x9e3779b97f4a7c15ull) >> 52 & (LARGE_BUCKETS - 1)];
}

bool large_add(struct shadow *s, uint64_t key, unsigned table, unsigned index)
{
	uint32_t n = s->first_free_node, *bucket = bucket_of(s, key);

	if (!n)
		return false;
	s->first_free_node = s->nodes[n].next;
	s->nodes[n] = (struct large_node){ key, *bucket, (uint16_t)table, (uint16_t)index };
	*bucket = n;
	return true;
}

void large_remove(struct shadow *s, uint64_t key, unsigned table, unsigned index)
{
	uint32_t *link = bucket_of(s, key);

	for (; *link; link = &s->nodes[*link].next) {
		struct large_node *node = &s->nodes[*link];
		uint32_t n = *link;

		if (node->table != table || node->index != index || node->key != key)
			continue;
		*link = node->next;
		node->next = s->first_free_node;
		s->first_free_node = n;
		return;
	}
}

static bool set_protection(struct engine *e, uint64_t hva, bool readonly)
{
	e->stats->shadow_mmaps++;
	return mprotect((void *)(uintptr_t)hva, 4096, readonly ? PROT_READ : PROT_READ | PROT_WRITE) == 0;
}

static void protect_small(struct engine *e, unsigned id, unsigned i, uint64_t page)
{
	struct shadow *s = e->shadow;
	struct shadow_table *t = &s->tables[id];

	if (!t->live || t->level != 1 || !bit_test(t->writable, i) ||
		ram_offset(e, leaf_frame(s->snapshot[id][i], 1), NULL) >> 12 != page)
		return;
	if (set_protection(e, region_base(t->slot) + t->base + i * 4096ull, true))
		leaf_set(e, id, i, s->snapshot[id][i], false);
	else
		slot_evict(e, t->slot);
}

static void protect_all_small(struct engine *e, uint64_t page)
{
	struct shadow *s = e->shadow;

	for (unsigned id = 1; id < TABLES_MAX; id++) {
		struct shadow_table *t = &s->tables[id];

		if (!t->live || t->level != 1)
			continue;
		for (unsigned n = 0; n < 8; n++)
			for (uint64_t bits = t->writable[n]; bits; bits &= bits - 1)
				protect_small(e, id, n * 64 + (unsigned)__builtin_ctzll(bits), page);
	}
}

/* Makes the page at gpa what it must be in the large leaves of a level that contain it. */
static void set_large(struct engine *e, uint64_t gpa, unsigned level, bool readonly)
{
	struct shadow *s = e->shadow;
	uint64_t key = (gpa & ~(level_span(level) - 1)) | level;
	uint32_t next;

	for (uint32_t n = *bucket_of(s, key); n; n = next) {
		struct large_node *node = &s->nodes[n];
		struct shadow_table *t = &s->tables[node->table];
		uint64_t offset = t->base + node->index * level_span(level) + (gpa & (level_span(level) - 1));

		next = node->next;
		if (node->key != key || !bit_test(t->writable, node->index))
			continue;
		if (set_protection(e, region_base(t->slot) + offset, readonly)) {
			bool lazy = s->child[node->table][node->index] & LEAF_LAZY;

			leaf_add_splits(s, node->table, node->index, readonly || lazy ? 2 : -2);
		} else {
			/* Takes nodes out of the chain that is being followed. */
			slot_evict(e, t->slot);
			next = *bucket_of(s, key);
		}
	}
}

static void set_all_large(struct engine *e, uint64_t page, bool readonly)
{
	for (unsigned n = 0; n < RAM_RANGE_MAX && e->block->ram.ranges[n].size; n++) {
		const struct ram_range *r = &e->block->ram.ranges[n];
		uint64_t at = (page << 12) - r->offset;

		if (at >= r->size || r->readonly)
			continue;
		set_large(e, r->gpa + at, 2, readonly);
		set_large(e, r->gpa + at, 3, readonly);
	}
}

static void guard(struct engine *e, uint64_t page)
{
	if (bit_test(e->shadow->guarded, (unsigned)page))
		return;
	bit_set(e->shadow->guarded, (unsigned)page);
	set_all_large(e, page, true);
}

void code_unguard(struct engine *e, uint64_t page)
{
	if (!bit_test(e->shadow->guarded, (unsigned)page))
		return;
	bit_clear(e->shadow->guarded, (unsigned)page);
	set_all_large(e, page, false);
}

void code_guard(struct engine *e, uint64_t page, uint64_t count)
{
	for (uint64_t n = page; n < page + count; n++) {
		if (!(n & 63) && page + count - n >= 64 &&
			!(atomic_load_explicit(&e->shared->code_pages[n / 64], memory_order_relaxed) & ~e->shadow->guarded[n / 64]))
			n += 63;
		else if (engine_page_has_code(e, n))
			guard(e, n);
	}
}

void shadow_protect_code(struct engine *e, uint64_t page)
{
	struct shadow *s = e->shadow;
	uint32_t owner;

	if (!s || page >= s->page_count)
		return;
	owner = s->owner[page];
	if (owner == OWNER_MANY)
		protect_all_small(e, page);
	else if (owner != OWNER_NONE)
		protect_small(e, owner >> 9, owner & 511, page);
	s->owner[page] = OWNER_NONE;
	guard(e, page);
}

void shadow_release_code(struct engine *e, uint64_t page)
{
	/* The next write faults and finds the bit clear. */
}
