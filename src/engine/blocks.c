/*
 * The decoded-block cache. A block is a run of instructions within one page of RAM, keyed by its offset in the memfd and
 * the decoding mode, so that processes share the blocks of a shared page. In front of the hash stands a small direct-mapped
 * table by linear address, valid as long as no translation has changed (engine.block_key).
 *
 * Keeping it true to memory: a page's bit in vm_shared.code_pages is set, and its write tags are dropped, before its
 * bytes are read; from then on writes by this vcpu take the slow path, which calls engine_invalidate_range(). Other vcpus
 * are told through vm_shared.code_news, which they read between blocks; the VMM tells of device writes through the
 * invalidate ring. Dropped blocks keep their memory until there is no more; then those that have no translation are dropped
 * too, and the others move together. Only the instructions decoded last are there: the translated code of a block and the translator do without,
 * and who needs them decodes again (blocks_insns()).
 * Both happen between blocks, never under an executing one.
 */
#include "engine/blocks.h"
#include "engine/translate.h"

#include <errno.h>
#include <sched.h>
#include <sys/mman.h>

#define BLOCKS_MAX (3u << 17)
#define SEEN_MAX (3u << 19)
#define HASH_SIZE (1u << BLOCK_HASH_BITS)
#define INSN_BYTES 15

static void *take_memory(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

int blocks_create(struct engine *e)
{
	struct block_cache *c = take_memory(sizeof(*c));

	if (!c)
		return -ENOMEM;
	e->blocks = c;
	c->page_count = (e->block->ram.file_size + 4095) / 4096;
	c->blocks = take_memory(BLOCKS_MAX * sizeof(*c->blocks));
	c->insns = take_memory(INSN_RING_MAX * sizeof(*c->insns));
	c->hash = take_memory(HASH_SIZE * sizeof(*c->hash));
	c->pages = take_memory((c->page_count + 1) * sizeof(*c->pages));
	c->seen_max = SEEN_MAX;
	c->ring = INSN_RING_MAX;
	c->insns_used = 1;
	c->news_seen = atomic_load(&e->shared->code_head);
	if (!c->blocks || !c->insns || !c->hash || !c->pages)
		return -ENOMEM;
	c->single.key = BLOCK_DEAD;
	c->single.count = 1;
	return 0;
}

void blocks_destroy(struct engine *e)
{
	struct block_cache *c = e->blocks;

	if (!c)
		return;
	if (c->blocks)
		munmap(c->blocks, BLOCKS_MAX * sizeof(*c->blocks));
	if (c->insns)
		munmap(c->insns, INSN_RING_MAX * sizeof(*c->insns));
	if (c->hash)
		munmap(c->hash, HASH_SIZE * sizeof(*c->hash));
	if (c->pages)
		munmap(c->pages, (c->page_count + 1) * sizeof(*c->pages));
	munmap(c, sizeof(*c));
	e->blocks = NULL;
}

/* --- what vcpus tell each other --- */

static _Atomic uint64_t *code_word(struct engine *e, uint64_t page)
{
	return &e->shared->code_pages[page / 64];
}

bool engine_page_has_code(struct engine *e, uint64_t page)
{
	return atomic_load_explicit(code_word(e, page), memory_order_relaxed) >> (page & 63) & 1;
}

static void publish(struct engine *e, uint64_t page, bool written)
{
	struct vm_shared *s = e->shared;
	uint32_t expected = 0, head;

	if (s->cpu_count < 2)
		return;
	while (!atomic_compare_exchange_weak(&s->code_lock, &expected, 1)) {
		expected = 0;
		sched_yield();
	}
	head = atomic_load(&s->code_head);
	atomic_store(&s->code_news[head % CODE_NEWS_SIZE], page << 1 | written);
	atomic_store(&s->code_head, head + 1);
	if (e->blocks->news_seen == head)
		e->blocks->news_seen = head + 1;
	atomic_store(&s->code_lock, 0);
}

void blocks_take_news(struct engine *e)
{
	struct vm_shared *s = e->shared;
	uint32_t head = atomic_load(&s->code_head), seen = e->blocks->news_seen;

	if (head == seen)
		return;
	if (head - seen <= CODE_NEWS_SIZE / 2) {
		for (; seen != head; seen++) {
			uint64_t news = atomic_load(&s->code_news[seen % CODE_NEWS_SIZE]);

			if (news & 1)
				engine_invalidate_page(e, news >> 1);
			else
				mmu_protect_code(e, news >> 1);
		}
		/* Not overtaken while reading? */
		if (atomic_load(&s->code_head) - e->blocks->news_seen <= CODE_NEWS_SIZE) {
			e->blocks->news_seen = head;
			return;
		}
	}
	e->blocks->news_seen = head;
	engine_invalidate_all(e);
	mmu_flush_all(e);
}

/* --- dropping --- */

static void unhash(struct block_cache *c, struct block *b)
{
	uint32_t *link = &c->hash[block_hash(b->key)];
	uint32_t id = (uint32_t)(b - c->blocks) + 1;

	while (*link && *link != id)
		link = &c->blocks[*link - 1].next_in_hash;
	if (*link)
		*link = b->next_in_hash;
}

static void drop_crossing(struct engine *e, struct crossing *x)
{
	for (unsigned view = 0; view < 2; view++) {
		if (x->tb[view])
			translator_drop_code(e, x->tb[view] - 1);
		x->tb[view] = 0;
	}
	x->heat = 0;
}

void engine_invalidate_page(struct engine *e, uint64_t page)
{
	struct block_cache *c = e->blocks;
	struct block_page *p;

	if (page >= c->page_count)
		return;
	p = &c->pages[page];
	if (e->translator && p->chunks)
		for (unsigned n = 0; n < CROSSING_COUNT; n++)
			if (c->crossings[n].page[0] == page || c->crossings[n].page[1] == page)
				drop_crossing(e, &c->crossings[n]);
	if (!p->first) {
		p->chunks = 0;
		return;
	}
	for (uint32_t id = p->first; id; id = c->blocks[id - 1].next_in_page) {
		struct block *b = &c->blocks[id - 1];

		unhash(c, b);
		if (e->translator)
			translator_drop_block(e, b);
		b->key = BLOCK_DEAD;
		e->stats->blocks_invalidated++;
	}
	p->first = 0;
	p->chunks = 0;
	engine_forget_blocks(e);
	e->leave_block = true;
}

/*
 * Alone on the machine, a write beside the code of a page costs no decoded code. But each is slow, and the page may be one that was
 * code and is data now: after some writes its blocks go. A page that is decoded again has more patience.
 */
static bool may_stay(struct block_page *p, uint64_t chunks)
{
	if (!p->chunks || (p->chunks & chunks))
		return false;
	if (++p->writes < 8u << p->patience)
		return true;
	p->writes = 0;
	if (p->patience < 12)
		p->patience++;
	return false;
}

void engine_invalidate_range(struct engine *e, uint64_t offset, unsigned size)
{
	struct block_cache *c = e->blocks;
	uint64_t page = offset >> 12, chunks;
	unsigned first = (offset & 0xfff) / 64, last = ((offset & 0xfff) + size - 1) / 64;

	if (page >= c->page_count)
		return;
	if (last > 63)
		last = 63;
	chunks = (~0ull << first) & (~0ull >> (63 - last));
	if (e->shared->cpu_count < 2 && may_stay(&c->pages[page], chunks))
		return;
	atomic_fetch_and(code_word(e, page), ~(1ull << (page & 63)));
	engine_invalidate_page(e, page);
	publish(e, page, true);
}

void engine_invalidate_all(struct engine *e)
{
	struct block_cache *c = e->blocks;

	if (e->translator)
		translator_reset(e);
	for (uint32_t n = 0; n < c->blocks_used; n++) {
		struct block *b = &c->blocks[n];

		if (b->key == BLOCK_DEAD)
			continue;
		c->hash[block_hash(b->key)] = 0;
		c->pages[b->key >> 14].first = 0;
		c->pages[b->key >> 14].chunks = 0;
		b->key = BLOCK_DEAD;
		e->stats->blocks_invalidated++;
	}
	for (unsigned n = 0; n < CROSSING_COUNT; n++)
		c->crossings[n].length = 0;
	engine_forget_blocks(e);
	e->leave_block = true;
}

void engine_forget_page(struct engine *e, uint64_t gva)
{
	struct jump_entry *j = &e->blocks->jump[jump_page(gva) << 6];

	if (e->translator)
		translator_forget_page(e, gva);
	for (unsigned n = 0; n < 64; n++)
		j[n].key = 0;
}

/* --- finding and decoding --- */

static void mark_code(struct engine *e, uint64_t page)
{
	uint64_t bit = 1ull << (page & 63);

	if (!(atomic_fetch_or(code_word(e, page), bit) & bit)) {
		mmu_protect_code(e, page);
		publish(e, page, false);
	}
}

const struct insn *blocks_insn(struct engine *e, uint64_t offset, uint32_t *at, uint32_t *seen)
{
	struct block_cache *c = e->blocks;
	uint32_t id = *at ? c->blocks[*at - 1].next_in_page : c->pages[offset >> 12].first;

	for (; id; id = c->blocks[id - 1].next_in_page) {
		const struct block *b = &c->blocks[id - 1];
		uint64_t insn = b->key >> 2;

		if (offset < insn || offset >= insn + b->bytes)
			continue;
		for (unsigned n = 0; n < b->count && insn <= offset; n++) {
			bool has = blocks_has_insns(c, b);
			const struct insn *i = has ? &c->insns[(b->insns & (c->ring - 1)) + n] : &c->found;

			if (!has && !decode_insn(e, b->key & 3, e->ram + insn, (unsigned)(4096 - (insn & 0xfff)), &c->found))
				break;
			if (insn == offset) {
				*at = id;
				*seen = b->seen + n;
				return i;
			}
			insn += i->length;
		}
	}
	return NULL;
}

/* Instructions of the page at `offset` of the memfd, up to the end of a block or `most`: how many, in how many bytes. */
static unsigned decode_run(struct engine *e, enum engine_mode mode, uint64_t offset, unsigned most, struct insn *insns,
	unsigned *bytes)
{
	unsigned left = 4096 - (offset & 0xfff), count = 0;

	*bytes = 0;
	while (count < most && *bytes < left) {
		unsigned length = decode_insn(e, mode, e->ram + offset + *bytes, left - *bytes, &insns[count]);

		if (length == 0)
			break;
		*bytes += length;
		if (insns[count++].flags & INSN_ENDS_BLOCK)
			break;
	}
	return count;
}

/* Room for a block's instructions, which lie one behind the other. */
static struct insn *reserve(struct block_cache *c)
{
	uint32_t at = c->insns_used & (c->ring - 1);

	if (at + BLOCK_INSNS > c->ring)
		c->insns_used += c->ring - at;
	if (c->insns_used > UINT32_MAX - c->ring) {
		for (uint32_t n = 0; n < c->blocks_used; n++)
			c->blocks[n].insns = 0;
		c->insns_used = 1;
	}
	return &c->insns[c->insns_used & (c->ring - 1)];
}

void blocks_disagree(struct engine *e, const struct block *b)
{
	engine_invalidate_page(e, b->key >> 14);
	e->insn_rip = e->cpu->gpr[GPR_RIP];
	e->current = NULL;
	engine_restart_insn(e);
}

const struct insn *blocks_decode_again(struct engine *e, struct block *b)
{
	struct block_cache *c = e->blocks;
	struct insn *insns;
	unsigned bytes;

	if (b == &c->single)
		return &c->single_insn;
	insns = reserve(c);
	if (decode_run(e, b->key & 3, b->key >> 2, b->count, insns, &bytes) != b->count || bytes != b->bytes)
		blocks_disagree(e, b);
	b->insns = c->insns_used;
	c->insns_used += b->count;
	return insns;
}

static void link_block(struct block_cache *c, struct block *b)
{
	uint32_t id = (uint32_t)(b - c->blocks) + 1, *link = &c->hash[block_hash(b->key)];

	b->next_in_hash = *link;
	*link = id;
	b->next_in_page = c->pages[b->key >> 14].first;
	c->pages[b->key >> 14].first = id;
}

/* Drops the blocks that have no translation; the others move down. c->pages[].chunks may have bits too many then. */
static void compact(struct engine *e)
{
	struct block_cache *c = e->blocks;
	uint32_t used = 0, seen = 0;

	memset(c->hash, 0, HASH_SIZE * sizeof(*c->hash));
	for (uint32_t n = 0; n < c->blocks_used; n++)
		if (c->blocks[n].key != BLOCK_DEAD)
			c->pages[c->blocks[n].key >> 14].first = 0;
	for (uint32_t n = 0; n < c->blocks_used; n++) {
		struct block *b = &c->blocks[n];

		if (b->key == BLOCK_DEAD || !(b->tb[0] || b->tb[1])) {
			e->stats->blocks_invalidated += b->key != BLOCK_DEAD;
			continue;
		}
		translator_move_block(e, b, used, seen);
		b->seen = seen;
		seen += b->count;
		c->blocks[used] = *b;
		link_block(c, &c->blocks[used++]);
	}
	c->blocks_used = used;
	c->seen_used = seen;
	engine_forget_blocks(e);
	e->leave_block = true;
}

static void make_room(struct engine *e)
{
	struct block_cache *c = e->blocks;

	if (e->translator)
		compact(e);
	if (c->blocks_used > BLOCKS_MAX / 4 * 3 || c->seen_used > SEEN_MAX / 4 * 3 || !e->translator) {
		engine_invalidate_all(e);
		c->blocks_used = c->seen_used = 0;
	}
}

static struct block *decode_block(struct engine *e, uint64_t offset)
{
	struct block_cache *c = e->blocks;
	uint64_t page = offset >> 12;
	struct block *b;
	unsigned count, bytes;

	if (c->blocks_used == BLOCKS_MAX || c->seen_used + BLOCK_INSNS > SEEN_MAX)
		make_room(e);
	mark_code(e, page);
	b = &c->blocks[c->blocks_used];
	count = decode_run(e, e->mode, offset, BLOCK_INSNS, reserve(c), &bytes);
	if (count == 0)
		return NULL;
	b->insns = c->insns_used;
	b->seen = c->seen_used;
	if (e->translator)
		memset(&e->translator->seen[b->seen], 0, count * sizeof(*e->translator->seen));
	c->blocks_used++;
	c->insns_used += count;
	c->seen_used += count;
	e->stats->blocks_decoded++;
	b->key = offset << 2 | e->mode;
	b->tb[0] = b->tb[1] = 0;
	b->heat = 0;
	b->hot = 0;
	b->warm = false;
	b->count = (uint8_t)count;
	b->bytes = (uint16_t)bytes;
	link_block(c, b);
	for (unsigned n = (offset & 0xfff) / 64; n <= ((offset & 0xfff) + bytes - 1) / 64; n++)
		c->pages[page].chunks |= 1ull << n;
	return b;
}

/* An instruction that crosses pages or is not in RAM: its bytes are fetched and compared each time. */
static struct block *decode_single(struct engine *e, uint64_t linear)
{
	struct block_cache *c = e->blocks;
	uint8_t bytes[INSN_BYTES + 1];
	unsigned left = 4096 - (linear & 0xfff), have = 0;
	unsigned want = left < INSN_BYTES ? left : INSN_BYTES, known;
	struct crossing *x = &c->crossings[(linear >> 12) % CROSSING_COUNT];
	uint64_t pages[2] = { ~0ull, ~0ull };

	for (;;) {
		uint64_t at = linear + have, gpa;
		const uint8_t *hva;

		if (e->mode != MODE_64)
			at = (uint32_t)at;
		gpa = mmu_fetch_page(e, at, &hva);
		if (hva)
			pages[have >= left] = (uint64_t)(hva - e->ram) >> 12;
		for (; have < want; have++, at++)
			bytes[have] = hva ? hva[at & 0xfff] : (uint8_t)physical_read(e, (gpa & ~0xfffull) | (at & 0xfff), 1);
		known = x->length < have ? x->length : have;
		if (x->length && x->linear == linear && x->mode == e->mode && !memcmp(x->bytes, bytes, known)) {
			if (x->length <= have) {
				c->single_insn = x->insn;
				break;
			}
		} else if (decode_insn(e, e->mode, bytes, have, &c->single_insn)) {
			drop_crossing(e, x);
			*x = (struct crossing){ .linear = linear, .mode = e->mode, .length = c->single_insn.length,
				.insn = c->single_insn };
			memcpy(x->bytes, bytes, x->length);
			break;
		}
		if (have == INSN_BYTES)
			engine_raise_error(e, EXC_GP, 0);
		want = INSN_BYTES;
	}
	if (x->page[0] != pages[0] || x->page[1] != pages[1]) {
		drop_crossing(e, x);
		x->page[0] = pages[0];
		x->page[1] = pages[1];
	}
	c->single.bytes = c->single_insn.length;
	c->single.count = 1;
	c->single_crossing = x;
	return &c->single;
}

bool blocks_watch_crossing(struct engine *e, struct crossing *x)
{
	struct block_cache *c = e->blocks;
	unsigned left = 4096 - (x->linear & 0xfff), last = (x->length - left - 1) / 64;

	if (x->page[0] == ~0ull || x->page[1] == ~0ull || x->length <= left)
		return false;
	mark_code(e, x->page[0]);
	mark_code(e, x->page[1]);
	c->pages[x->page[0]].chunks |= 1ull << 63;
	c->pages[x->page[1]].chunks |= ~0ull >> (63 - last);
	return !memcmp(e->ram + (x->page[0] << 12) + 4096 - left, x->bytes, left) &&
		!memcmp(e->ram + (x->page[1] << 12), x->bytes + left, x->length - left);
}

/* Outside of 64-bit mode: the part of a block that lies within CS's limit; #GP if not even one instruction does. */
static struct block *limit_block(struct engine *e, struct block *b, uint64_t rip)
{
	struct block_cache *c = e->blocks;
	uint32_t limit = e->cpu->seg[SEG_CS].limit;

	if (engine_likely(rip + b->bytes - 1 <= limit))
		return b;
	c->single_insn = *blocks_insns(e, b);
	if (rip + c->single_insn.length - 1 > limit)
		engine_raise_error(e, EXC_GP, 0);
	c->single.bytes = c->single_insn.length;
	c->single_crossing = NULL;
	return &c->single;
}

struct block *blocks_lookup(struct engine *e, uint64_t linear)
{
	struct block_cache *c = e->blocks;
	struct block *b;
	struct tlb_entry *t;
	uint64_t rip = linear, key, offset;

	e->insn_rip = rip;
	e->current = NULL;
	e->stats->block_lookups++;
	if (!e->flat_code)
		linear = (uint32_t)(e->cpu->seg[SEG_CS].base + rip);
	t = &e->tlb_data[mmu_array(e, ACCESS_EXEC)][(linear >> 12) & (TLB_SIZE - 1)];
	if (engine_likely(t->exec == (linear & ~0xfffull))) {
		offset = linear + t->delta - (uintptr_t)e->ram;
	} else {
		const uint8_t *hva;

		mmu_fetch_page(e, linear, &hva);
		if (!hva)
			return decode_single(e, linear);
		offset = (uint64_t)(hva - e->ram) + (linear & 0xfff);
	}
	key = offset << 2 | e->mode;
	b = blocks_cached(e, key);
	if (!b)
		b = decode_block(e, offset);
	if (!b)
		b = decode_single(e, linear);
	else if (e->flat_code)
		c->jump[jump_index(linear)] = (struct jump_entry){ linear, e->block_key, b };
	return e->flat_code ? b : limit_block(e, b, rip);
}
