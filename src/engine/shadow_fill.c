/*
 * The shadow's faults: an access of translated code found nothing mapped, or not as it needs it. Walks the guest's tables, keeps a
 * record of those on the way, and maps the page: as the tables say, as the memfd has it, read-only where there is decoded code.
 *
 * The walk changes nothing that the guest can see. A page without A, or without D for a write, is left to the interpreter, which sets
 * them; the next fault finds them set. Another vcpu may change the tables while this runs: a translation that was read before the
 * change is one that a TLB could hold, and the record remembers what was read, so the flush which must follow the change finds it.
 */
#include <sys/mman.h>

#include "engine/shadow_internal.h"

/* Neighbours of the page that faulted, in each direction, if they are one mapping with it. */
#define AROUND_SMALL 32u
#define AROUND_LARGE 511u
/* Further runs of small pages that a fill maps when fills go up the addresses. */
#define AHEAD_MAX 16u

struct fill {
	uint64_t gva;
	bool is_write;
	uint64_t entry[5]; /* by level, 4 … leaf */
	unsigned level;	   /* of the leaf */
	bool user, writable; /* by all levels */
	bool dirty;	     /* the leaf's D */
	uint64_t offset;     /* of the page in the memfd */
	bool readonly;	     /* RAM that is not written */
};

static unsigned table_index(uint64_t gva, unsigned level)
{
	return (unsigned)(gva >> (12 + (level - 1) * 9)) & 511;
}

/* --- walking --- */

static bool walk(struct engine *e, struct fill *f)
{
	struct shadow *s = e->shadow;
	uint64_t table = s->root, v, low;
	unsigned layout = s->layout;

	f->user = f->writable = true;
	for (unsigned level = layout == LAYOUT_WIDE ? 4 : 3;; level--) {
		v = table_entry(e, layout, table, table_index(f->gva, level));
		layout = child_layout(layout, table_index(f->gva, level));
		f->entry[level] = v;
		if ((v & (PTE_P | PTE_A)) != (PTE_P | PTE_A) || (v & s->reserved))
			return false;
		f->user = f->user && (v & PTE_U);
		f->writable = f->writable && (v & PTE_W);
		f->level = level;
		if (level == 1 || (v & PTE_PS))
			break;
		table = ram_offset(e, v & PTE_FRAME, NULL);
		if (table == ~0ull)
			return false;
	}
	low = level_span(f->level) - 1;
	if (f->level == 4 || (f->level > 1 && (v & low & ~0x1fffull)))
		return false;
	f->dirty = (v & PTE_D) != 0;
	f->offset = ram_offset(e, leaf_frame(v, f->level) | (f->gva & low & ~0xfffull), &f->readonly);
	return f->offset != ~0ull;
}

/* What the interpreter must do: faults, A and D bits, MMIO, decoded code, the other privilege's pages. */
static bool is_mappable(struct engine *e, const struct fill *f)
{
	if (e->cpl == 3 ? !f->user : f->user && e->shadow->smap)
		return false;
	return !f->is_write || (f->writable && f->dirty && !f->readonly && !engine_page_has_code(e, f->offset >> 12));
}

/* --- mapping --- */

static bool map(struct engine *e, uint64_t hva, uint64_t size, uint64_t offset, bool writable)
{
	int prot = writable ? PROT_READ | PROT_WRITE : PROT_READ;

	e->stats->shadow_mmaps++;
	e->stats->shadow_pages += size >> 12;
	return mmap((void *)(uintptr_t)hva, size, prot, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, e->shadow->ram_fd, (off_t)offset) !=
		MAP_FAILED;
}

/*
 * A read of one page makes the host map the 16 that share 64 KiB with it, if they exist; for less than MAP_POPULATE, which goes
 * page by page. Not for large pages: what is not touched may not exist.
 */
static void touch(uint64_t hva, uint64_t size)
{
	for (uint64_t at = hva; at < hva + size; at = (at | 0xffff) + 1) {
		uint8_t byte;

		__asm__ volatile("movb (%1), %0" : "=q"(byte) : "r"(at));
	}
}

static bool make_writable(struct engine *e, uint64_t hva, uint64_t size)
{
	e->stats->shadow_mmaps++;
	return mprotect((void *)(uintptr_t)hva, size, PROT_READ | PROT_WRITE) == 0;
}

/* The number of pages from `page` on, at most max, that are all guarded or all not. */
static uint64_t guarded_run(const struct shadow *s, uint64_t page, uint64_t max, bool *guarded)
{
	uint64_t n = 1;

	*guarded = bit_test(s->guarded, (unsigned)page);
	while (n < max) {
		uint64_t at = page + n;

		if (!(at & 63) && max - n >= 64 && s->guarded[at / 64] == (*guarded ? ~0ull : 0)) {
			n += 64;
			continue;
		}
		if (bit_test(s->guarded, (unsigned)at) != *guarded)
			break;
		n++;
	}
	return n;
}

/* The part of [gpa, gpa + size) that RAM range r covers. False: none. */
static bool clip(const struct ram_range *r, uint64_t gpa, uint64_t size, uint64_t *start, uint64_t *end)
{
	*start = r->gpa > gpa ? r->gpa : gpa;
	*end = r->gpa + r->size;
	if (*end > gpa + size)
		*end = gpa + size;
	return *start < *end;
}

/* Large pages [gpa, gpa + size) at hva: what of them is RAM. Code pages in it read-only. */
static bool map_large(struct engine *e, uint64_t hva, uint64_t gpa, uint64_t size, bool writable)
{
	for (unsigned n = 0; n < RAM_RANGE_MAX && e->block->ram.ranges[n].size; n++) {
		const struct ram_range *r = &e->block->ram.ranges[n];
		uint64_t start, end;

		if (!clip(r, gpa, size, &start, &end))
			continue;
		while (start < end) {
			uint64_t offset = r->offset + (start - r->gpa), pages = (end - start) >> 12;
			bool guarded = false;

			if (writable && !r->readonly)
				pages = guarded_run(e->shadow, offset >> 12, pages, &guarded);
			if (!map(e, hva + (start - gpa), pages << 12, offset, writable && !r->readonly && !guarded))
				return false;
			start += pages << 12;
		}
	}
	return true;
}

static void guard_code(struct engine *e, uint64_t gpa, uint64_t size)
{
	for (unsigned n = 0; n < RAM_RANGE_MAX && e->block->ram.ranges[n].size; n++) {
		const struct ram_range *r = &e->block->ram.ranges[n];
		uint64_t start, end;

		if (clip(r, gpa, size, &start, &end))
			code_guard(e, (r->offset + (start - r->gpa)) >> 12, (end - start) >> 12);
	}
}

/* VMAs beyond the first that a writable large leaf at gpa takes, at most. */
static int count_splits(struct engine *e, uint64_t gpa, uint64_t size)
{
	int count = -1;

	for (unsigned n = 0; n < RAM_RANGE_MAX && e->block->ram.ranges[n].size; n++) {
		const struct ram_range *r = &e->block->ram.ranges[n];
		uint64_t start, end;

		if (!clip(r, gpa, size, &start, &end))
			continue;
		count++;
		while (start < end && !r->readonly) {
			bool guarded;
			uint64_t pages = guarded_run(e->shadow, (r->offset + (start - r->gpa)) >> 12, (end - start) >> 12, &guarded);

			if (guarded)
				count += 2 * (int)pages;
			start += pages << 12;
		}
	}
	return count < 0 ? 0 : count;
}

/*
 * The guest's text may be tens of thousands of guarded pages, and to cut a direct map at each of them, again whenever it is mapped, would cost more
 * than all the rest and push out everything else. Then a large leaf is mapped read-only as a whole, and where it is written, as here, the page becomes
 * writable with those around it in its 2 MiB that are not guarded.
 */
static bool open_run(struct engine *e, const struct fill *f, unsigned id, unsigned i)
{
	struct shadow_table *t = &e->shadow->tables[id];
	uint64_t span = level_span(t->level), in_leaf = f->gva & (span - 1) & ~0xfffull, start, end;
	uint64_t gpa = leaf_frame(f->entry[f->level], t->level) + in_leaf, page = f->offset >> 12, first = page, last = page;

	for (unsigned n = 0; n < RAM_RANGE_MAX && e->block->ram.ranges[n].size; n++) {
		const struct ram_range *r = &e->block->ram.ranges[n];
		uint64_t low, high;

		if (gpa - r->gpa >= r->size || !clip(r, gpa & ~0x1fffffull, 0x200000, &start, &end))
			continue;
		low = page - ((gpa - start) >> 12);
		high = page + ((end - gpa) >> 12) - 1;
		while (first > low && !bit_test(e->shadow->guarded, (unsigned)first - 1))
			first--;
		while (last < high && !bit_test(e->shadow->guarded, (unsigned)last + 1))
			last++;
		break;
	}
	leaf_add_splits(e->shadow, id, i, 2);
	if (make_writable(e, region_base(t->slot) + t->base + i * span + in_leaf - ((page - first) << 12), (last - first + 1) << 12))
		return true;
	slot_clear(e, t->slot);
	return false;
}

static void note_owner(struct shadow *s, uint64_t page, unsigned id, unsigned i)
{
	uint32_t me = id << 9 | i, other = s->owner[page];

	if (other == me || other == OWNER_MANY)
		return;
	/* An old owner may have let go meanwhile; then it does not count. */
	if (other != OWNER_NONE && s->tables[other >> 9].live && s->tables[other >> 9].level == 1 &&
		bit_test(s->tables[other >> 9].writable, other & 511))
		me = OWNER_MANY;
	s->owner[page] = me;
}

/* --- leaves --- */

/* A PTE for this page may be mapped writable. */
static bool is_writable(struct engine *e, const struct fill *f, uint64_t entry, uint64_t offset, bool readonly)
{
	return f->writable && (entry & PTE_D) && !readonly && !engine_page_has_code(e, offset >> 12);
}

/* Entry i of the leaf's table may be mapped together with the page that faulted, `distance` entries from it. */
static bool joins(struct engine *e, const struct fill *f, unsigned id, unsigned i, int64_t distance, bool writable)
{
	struct shadow *s = e->shadow;
	struct shadow_table *t = &s->tables[id];
	uint64_t entry = table_entry(e, t->layout, t->offset, i), leaf = f->entry[f->level], span = level_span(f->level), offset;
	uint64_t alike = PTE_P | PTE_A | PTE_U | PTE_W | (f->level > 1 ? PTE_PS | PTE_D : 0);
	uint64_t zero = s->reserved | (f->level > 1 ? (span - 1) & ~0x1fffull : 0);
	bool readonly = false;

	if (bit_test(t->used, i) || ((entry ^ leaf) & alike) || (entry & zero) ||
		leaf_frame(entry, f->level) != leaf_frame(leaf, f->level) + (uint64_t)distance * span)
		return false;
	if (f->level > 1)
		return true;
	offset = ram_offset(e, leaf_frame(entry, 1), &readonly);
	return offset == f->offset + (uint64_t)distance * 4096 && writable == is_writable(e, f, entry, offset, readonly);
}

/*
 * The entry that a leaf's mapping was made from: joins() has read it before. Should another vcpu have written it since, what counts of
 * it must be as it was then, or the next comparison misses the change.
 */
static uint64_t as_mapped(struct engine *e, const struct fill *f, unsigned id, unsigned i, uint64_t distance)
{
	uint64_t counts = PTE_FRAME | PTE_P | PTE_A | PTE_U | PTE_W | PTE_PS, leaf = f->entry[f->level];
	uint64_t entry = table_entry(e, e->shadow->tables[id].layout, e->shadow->tables[id].offset, i);

	return (entry & ~counts) | (leaf & counts & ~PTE_FRAME) | (leaf_frame(leaf, f->level) + distance * level_span(f->level));
}

/* all, any: of the entries that were mapped, and'ed and or'ed. */
static void note_globals(struct engine *e, const struct fill *f, const unsigned *path, uint64_t all, uint64_t any)
{
	struct shadow *s = e->shadow;

	if (any & PTE_G)
		s->slots[s->tables[path[3]].slot].global = true;
	if (all & PTE_G)
		return;
	for (unsigned level = 3; level >= f->level; level--)
		s->tables[path[level]].nonglobal = true;
	s->slots[s->tables[path[3]].slot].nonglobal = true;
}

/* Maps up to `ahead` pages behind the one at f. *end: the index behind the last page that is mapped now. */
static bool map_small(struct engine *e, const struct fill *f, const unsigned *path, unsigned ahead, unsigned *end)
{
	struct shadow *s = e->shadow;
	unsigned id = path[1], i = table_index(f->gva, 1), first = i, last = i;
	struct shadow_table *t = &s->tables[id];
	uint64_t hva, size;
	bool writable = is_writable(e, f, f->entry[1], f->offset, f->readonly);
	uint64_t all = ~0ull, any = 0;

	*end = i + 1;
	if (bit_test(t->used, i)) {
		bool same = leaf_frame(s->snapshot[id][i], 1) == leaf_frame(f->entry[1], 1);

		if (same && (!f->is_write || bit_test(t->writable, i)))
			return true;
		hva = region_base(t->slot) + t->base + i * 4096ull;
		if (!(same ? make_writable(e, hva, 4096) : map(e, hva, 4096, f->offset, writable))) {
			leaf_clear(e, id, i);
			slot_unmap(e, t->slot, t->base + i * 4096ull, 4096);
			return false;
		}
	} else {
		while (last < 511 && last - i < ahead && joins(e, f, id, last + 1, (int)(last + 1 - i), writable))
			last++;
		while (first > 0 && i - first < AROUND_SMALL && joins(e, f, id, first - 1, -(int)(i - first + 1), writable))
			first--;
		hva = region_base(t->slot) + t->base + first * 4096ull;
		size = (last - first + 1) * 4096ull;
		if (!map(e, hva, size, f->offset - (i - first) * 4096ull, writable))
			return false;
		touch(hva, size);
	}
	*end = last + 1;
	for (unsigned n = first; n <= last; n++) {
		uint64_t entry = as_mapped(e, f, id, n, (uint64_t)n - i), page = (f->offset >> 12) + n - i;

		leaf_set(e, id, n, entry, writable);
		if (writable)
			note_owner(s, page, id, n);
		all &= entry;
		any |= entry;
	}
	note_globals(e, f, path, all, any);
	return true;
}

/* f for the next page up, if that one can be mapped as it is. */
static bool next_page(struct engine *e, struct fill *f, unsigned id, unsigned i)
{
	const struct shadow *s = e->shadow;
	uint64_t entry = table_entry(e, s->tables[id].layout, s->tables[id].offset, i);

	if (bit_test(s->tables[id].used, i) || (entry & (PTE_P | PTE_A)) != (PTE_P | PTE_A) || (entry & s->reserved) ||
		((entry ^ f->entry[1]) & (PTE_U | PTE_W))) /* f->user and f->writable stay true */
		return false;
	f->gva = (f->gva & ~0x1fffffull) | (uint64_t)i << 12;
	f->is_write = false;
	f->entry[1] = entry;
	f->dirty = (entry & PTE_D) != 0;
	f->offset = ram_offset(e, leaf_frame(entry, 1), &f->readonly);
	return f->offset != ~0ull;
}

/* The stream that has come to the offset, or another one, that begins. */
static struct shadow_stream *find_stream(struct shadow_slot *p, uint64_t offset)
{
	for (unsigned n = 0; n < SHADOW_STREAMS; n++) {
		struct shadow_stream *stream = &p->streams[n];

		if (stream->end == offset) {
			stream->streak += stream->streak < AHEAD_MAX;
			return stream;
		}
	}
	p->stream = (p->stream + 1) % SHADOW_STREAMS;
	p->streams[p->stream].streak = 0;
	return &p->streams[p->stream];
}

/* Frames are rarely in order, so a walk through fresh memory would fault at each page. */
static bool fill_small(struct engine *e, struct fill *f, const unsigned *path)
{
	struct shadow_table *t = &e->shadow->tables[path[1]];
	unsigned i = table_index(f->gva, 1), end, ahead;
	struct shadow_stream *stream = find_stream(&e->shadow->slots[t->slot], t->base + i * 4096ull);

	ahead = AROUND_SMALL << (stream->streak < 4 ? stream->streak : 4);
	if (!map_small(e, f, path, ahead, &end))
		return false;
	for (unsigned n = 0; n < stream->streak && end < 512 && next_page(e, f, path[1], end); n++)
		if (!map_small(e, f, path, ahead, &end))
			break;
	stream->end = t->base + end * 4096ull;
	return true;
}

static bool fill_large(struct engine *e, struct fill *f, const unsigned *path)
{
	struct shadow *s = e->shadow;
	unsigned id = path[f->level], i = table_index(f->gva, f->level), first = i, last = i;
	struct shadow_table *t = &s->tables[id];
	uint64_t span = level_span(f->level), gpa = leaf_frame(f->entry[f->level], f->level), start;
	uint64_t all = ~0ull, any = 0;
	bool writable = f->writable && f->dirty, lazy;

	if (bit_test(t->used, i) && leaf_frame(s->snapshot[id][i], f->level) == gpa) {
		if (!f->is_write)
			return true;
		/* If not lazy, it had code, and shadow_fill() has seen that it has none now. */
		if (bit_test(t->writable, i))
			return !(s->child[id][i] & LEAF_LAZY) || open_run(e, f, id, i);
	}
	if (bit_test(t->used, i)) {
		leaf_clear(e, id, i);
		slot_unmap(e, t->slot, t->base + i * span, span);
	} else {
		while (last < 511 && last - i < AROUND_LARGE && joins(e, f, id, last + 1, (int)(last + 1 - i), writable))
			last++;
		while (first > 0 && i - first < AROUND_LARGE && joins(e, f, id, first - 1, -(int)(i - first + 1), writable))
			first--;
	}
	start = gpa - (i - first) * span;
	guard_code(e, start, (last - first + 1) * span);
	if (!t->live)
		return false; /* guarding may cost a slot, this one too */
	lazy = writable && count_splits(e, start, (last - first + 1) * span) > s->splits_max;
	for (unsigned n = first; n <= last; n++) {
		uint64_t entry = as_mapped(e, f, id, n, (uint64_t)n - i);

		if (!leaf_set(e, id, n, entry, writable)) {
			if (n <= i) {
				slot_clear(e, t->slot);
				return false;
			}
			last = n - 1;
			break;
		}
		if (lazy)
			s->child[id][n] = LEAF_LAZY;
		/* Lazy and other leaves do not merge. */
		leaf_add_splits(s, id, n, !lazy ? count_splits(e, start + (n - first) * span, span) : n == first ? 2 : 0);
		all &= entry;
		any |= entry;
	}
	note_globals(e, f, path, all, any);
	if (map_large(e, region_base(t->slot) + t->base + first * span, start, (last - first + 1) * span, writable && !lazy))
		return !(lazy && f->is_write) || open_run(e, f, id, i);
	slot_clear(e, t->slot);
	return false;
}

/* --- the path --- */

/* Records from the PDPT's down to that of the leaf's table, in path[level]. False: out of records. */
static bool open_path(struct engine *e, const struct fill *f, unsigned slot, unsigned *path)
{
	struct shadow *s = e->shadow;

	path[3] = s->slots[slot].root;
	for (unsigned level = 3; level > f->level; level--) {
		unsigned id = path[level], i = table_index(f->gva, level), child;
		struct shadow_table *t = &s->tables[id];
		uint64_t span = level_span(level), base = t->base + i * span;

		if (bit_test(t->used, i)) {
			if (bit_test(t->inner, i) && !inner_changed(f->entry[level], s->snapshot[id][i])) {
				path[level - 1] = s->child[id][i];
				continue;
			}
			/* The guest has put other tables here and not flushed yet. */
			if (bit_test(t->inner, i)) {
				table_drop(s, s->child[id][i]);
				bit_clear(t->used, i);
				bit_clear(t->inner, i);
			} else {
				leaf_clear(e, id, i);
			}
			slot_unmap(e, slot, base, span);
		}
		for (;;) {
			child = table_take(s, slot, level - 1, child_layout(t->layout, i),
				ram_offset(e, f->entry[level] & PTE_FRAME, NULL), base);
			if (child)
				break;
			if (!slot_evict_one(e))
				return false;
		}
		s->snapshot[id][i] = f->entry[level];
		s->child[id][i] = (uint16_t)child;
		bit_set(t->used, i);
		bit_set(t->inner, i);
		path[level - 1] = child;
	}
	if (f->level > 1 && bit_test(s->tables[path[f->level]].inner, table_index(f->gva, f->level))) {
		struct shadow_table *t = &s->tables[path[f->level]];
		unsigned i = table_index(f->gva, f->level);

		table_drop(s, s->child[path[f->level]][i]);
		bit_clear(t->used, i);
		bit_clear(t->inner, i);
		slot_unmap(e, slot, t->base + i * level_span(f->level), level_span(f->level));
	}
	return true;
}

/* A slot holds pages of one privilege. That of the first one; it changes when nobody asks for the old one any more. */
static bool fits_type(struct engine *e, const struct fill *f, unsigned slot)
{
	struct shadow_slot *p = &e->shadow->slots[slot];
	enum slot_type type = f->user ? SLOT_USER : SLOT_SUPERVISOR;

	/* A view has a slot of its own: what is_mappable() lets in. */
	if (e->shadow->layout != LAYOUT_WIDE)
		type = p->g ? SLOT_SUPERVISOR : SLOT_USER;
	if (p->type == type) {
		p->misses = 0;
		return true;
	}
	if (p->type != SLOT_EMPTY) {
		if (++p->misses < 64)
			return false;
		slot_clear(e, slot);
	}
	slot_set_type(e, slot, type);
	return true;
}

static bool fill(struct engine *e, struct fill *f)
{
	struct shadow *s = e->shadow;
	unsigned path[4];
	int slot = slot_open(e, s->layout == LAYOUT_WIDE ? table_index(f->gva, 4) : e->cpl != 3);

	if (slot < 0)
		return false;
	s->pinned = (unsigned)slot + 1;
	if (!fits_type(e, f, (unsigned)slot))
		return false;
	if (s->vmas > VMAS_MAX)
		slots_make_room(e);
	if (!open_path(e, f, (unsigned)slot, path)) {
		slot_clear(e, (unsigned)slot);
		return false;
	}
	return f->level > 1 ? fill_large(e, f, path) : fill_small(e, f, path);
}

bool shadow_fill(struct engine *e, uint64_t gva, bool is_write)
{
	struct shadow *s = e->shadow;
	struct fill f = { .gva = gva, .is_write = is_write };
	bool done;

	if (!s || !s->served || s->broken || !is_canonical(gva) || (s->layout != LAYOUT_WIDE && gva >> 32))
		return false;
	done = walk(e, &f) && is_mappable(e, &f);
	if (done && is_write && f.level > 1)
		code_unguard(e, f.offset >> 12);
	done = done && fill(e, &f);
	s->pinned = 0;
	if (engine_unlikely(s->lost)) {
		shadow_settle(e);
		done = false;
	}
	if (done)
		e->stats->shadow_fills++;
	else
		e->stats->shadow_refusals++;
	return done;
}
