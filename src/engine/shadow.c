/*
 * The shadow: making and ending it, and the hooks by which the engine tells it that translations have changed. All of them do nothing
 * where there is none (the interpreter, tests without a memfd).
 */
#include <errno.h>
#include <sys/mman.h>

#include "engine/shadow_internal.h"

static void *take_memory(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static size_t owner_size(const struct shadow *s)
{
	return (s->page_count + 1) * sizeof(*s->owner);
}

static size_t guarded_size(const struct shadow *s)
{
	return (s->page_count / 64 + 1) * 8;
}

static void give_memory(struct shadow *s)
{
	if (s->owner)
		munmap(s->owner, owner_size(s));
	if (s->guarded)
		munmap(s->guarded, guarded_size(s));
	munmap(s, sizeof(*s));
}

int shadow_create(struct engine *e, int ram_fd, enum shadow_policy policy, struct shadow_deltas *deltas)
{
	unsigned phys_bits = e->block->model.phys_bits;
	struct shadow *s;
	void *arena = mmap((void *)ARENA_BASE, ARENA_SIZE, PROT_NONE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);

	if (arena == MAP_FAILED)
		return -errno;
	s = take_memory(sizeof(*s));
	if (!s) {
		munmap(arena, ARENA_SIZE);
		return -ENOMEM;
	}
	s->page_count = (e->block->ram.file_size + 4095) / 4096;
	s->owner = take_memory(owner_size(s));
	s->guarded = take_memory(guarded_size(s));
	if (!s->owner || !s->guarded) {
		give_memory(s);
		munmap(arena, ARENA_SIZE);
		return -ENOMEM;
	}
	s->ram_fd = ram_fd;
	s->policy = policy;
	s->splits_max = SPLITS_MAX;
	s->deltas = deltas;
	/* As mmu.c has it. */
	s->reserved_bits = ~((1ull << (phys_bits < 32 || phys_bits > 52 ? 40 : phys_bits)) - 1) & 0x000fffffffffffffull;
	s->root = ~0ull;
	for (unsigned n = 1; n < TABLES_MAX; n++)
		s->tables[n].next_free = n + 1 < TABLES_MAX ? (uint16_t)(n + 1) : 0;
	s->first_free = 1;
	for (unsigned n = 1; n < LARGE_MAX; n++)
		s->nodes[n].next = n + 1 < LARGE_MAX ? n + 1 : 0;
	s->first_free_node = 1;
	for (unsigned g = 0; g < 512; g++)
		for (unsigned view = 0; view < SHADOW_VIEWS; view++)
			deltas->delta[view][g] = region_base(POISON_REGION) - slot_gva(s, g);
	e->shadow = s;
	root_update(e, ROOT_FLUSH_GLOBALS);
	return 0;
}

void shadow_destroy(struct engine *e)
{
	struct shadow *s = e->shadow;

	if (!s)
		return;
	e->shadow = NULL;
	munmap((void *)ARENA_BASE, ARENA_SIZE);
	give_memory(s);
}

uint64_t shadow_gva(const struct engine *e, uint64_t hva)
{
	const struct shadow *s = e->shadow;
	uint64_t at = hva - (ARENA_BASE + REGION_GUARD / 2), slot = at / REGION_STRIDE;

	/* Half a guard on either side is a slot's own. */
	if (!s || hva < ARENA_BASE + REGION_GUARD / 2 || slot >= REGIONS || !s->slots[slot].key || !s->slots[slot].attached)
		return ~0ull;
	return hva - region_base((unsigned)slot) + slot_gva(s, s->slots[slot].g);
}

void shadow_set_root(struct engine *e, bool keep)
{
	if (e->shadow)
		root_update(e, keep ? ROOT_KEEP : ROOT_LOAD);
}

void shadow_flush_pcid(struct engine *e)
{
	if (e->shadow)
		slots_stale(e->shadow);
}

void shadow_flush_nonglobal(struct engine *e)
{
	if (e->shadow)
		root_update(e, ROOT_FLUSH);
}

void shadow_flush_all(struct engine *e)
{
	if (e->shadow)
		root_update(e, ROOT_FLUSH_GLOBALS);
}

void shadow_layout_changed(struct engine *e)
{
	if (!e->shadow)
		return;
	for (unsigned n = 0; n < REGIONS; n++)
		if (e->shadow->slots[n].key)
			slot_evict(e, n);
	/* No large leaf is mapped. What has code is guarded when one is; pages that had it no longer split them. */
	memset(e->shadow->guarded, 0, guarded_size(e->shadow));
}

void shadow_flush_page(struct engine *e, uint64_t gva)
{
	struct shadow *s = e->shadow;
	unsigned g = (unsigned)(gva >> 39) & 511, last = g;

	if (!s || !s->served)
		return;
	if (s->layout != LAYOUT_WIDE) {
		g = 0;
		last = 1;
	}
	for (; g <= last; g++) {
		if (!s->attached[g])
			continue;
		if (slot_key(e, g) != s->slots[s->attached[g] - 1].key)
			root_update(e, ROOT_FLUSH);
		else
			slot_flush_page(e, s->attached[g] - 1u, gva & (SLOT_SIZE - 1));
	}
}

uint64_t shadow_poison(void)
{
	return region_base(POISON_REGION);
}

bool shadow_is_low(const struct engine *e)
{
	const struct shadow *s = e->shadow;

	/* The PDPT's entry for what lies from 4 GiB on. */
	return s->layout != LAYOUT_WIDE || !s->attached[0] || !bit_test(s->tables[s->slots[s->attached[0] - 1].root].used, 4);
}
