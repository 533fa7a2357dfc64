/*
 * Which code is hot, and so becomes a region (translate_region.c). Code that is not hot pays nothing for the question: nothing in it counts.
 *
 * A signal comes some 250 times in a second that the guest runs (process.c). Its handler finds whose code the host was in. A block in which
 * it has been seen twice lately, or once just after others of its page, is looked at: an event brings the guest out, the next blocks are
 * interpreted and noted, and that tells all that a region needs:
 *
 *	… C A B C A B D A B C …		A, B, C run most often. The page's blocks that run nearly as often as the one most often seen are
 *	    ▲   │▲   │ ▲		warm: they may be part of a region. The head is one that a branch back leads to.
 *	    └───┘└───┘ │
 *
 * If the block comes by too seldom in there to be part of a loop, it is left alone for a while.
 *
 * The handler may read all tables: the signal has interrupted the guest, not the engine, if the host was in a block's code.
 */
#include "engine/translate.h"

/* Samples that a block is spared after it has been looked at. */
#define SPARED 16

uint32_t translator_find_tb(const struct translator *t, uint64_t offset)
{
	bool stubs = offset >= STUBS_AT;
	unsigned part = 0;
	uint32_t low, high;

	while (part < PARTS && offset >= (stubs ? translator_part_begin(t, part + 1).stubs : translator_part_begin(t, part + 1).code))
		part++;
	if (part == PARTS || offset < t->first || offset >= (stubs ? t->parts[part].stubs : t->parts[part].code))
		return TB_NONE;
	low = translator_part_begin(t, part).tb;
	high = t->parts[part].tb;
	while (low < high) {
		uint32_t middle = (low + high) / 2;

		if ((stubs ? t->tbs[middle].stubs : t->tbs[middle].code) <= offset)
			low = middle + 1;
		else
			high = middle;
	}
	return low - 1;
}

/* --- samples --- */

/* The block_id() of a translation that is no region's; 0: there is none. */
static uint64_t find_id(const struct engine *e, uint32_t tb)
{
	const struct tb *of = &e->translator->tbs[tb];
	uint64_t key;

	if ((of->block & TB_CROSSING) || of->region || of->entry || of->dead)
		return 0;
	key = e->blocks->blocks[of->block].key;
	return key == BLOCK_DEAD ? 0 : block_id(key, of->view);
}

/* In one page, of one mode and privilege. */
static bool is_near(uint64_t a, uint64_t b)
{
	return !((a ^ b) >> 15) && !((a ^ b) & 7);
}

void translator_sample(struct engine *e, uint64_t pc)
{
	struct translator *t = e->translator;
	uint64_t offset = pc - (uint64_t)(uintptr_t)t->execute, id;
	struct sample *s;
	uint32_t tb;
	bool near;

	if (e->lockstep || t->watching)
		return;
	tb = translator_find_tb(t, offset);
	if (tb == TB_NONE)
		return;
	t->sampled++;
	id = find_id(e, tb);
	if (!id)
		return;
	s = &t->samples[id * 0x9e3779b97f4a7c15ull >> 51];
	_Static_assert(SAMPLES == 1 << 13, "13 bits");
	if (s->block != id || t->sampled - s->since > SAMPLES_LATELY)
		*s = (struct sample){.block = id, .since = t->sampled};
	near = is_near(id, t->last_sample[0]) || is_near(id, t->last_sample[1]);
	t->last_sample[1] = t->last_sample[0];
	t->last_sample[0] = id;
	if (++s->count < SAMPLES_HOT && !(near && s->count > 0))
		return;
	e->stats->watches++;
	s->count = -SPARED;
	t->watched = id;
	atomic_fetch_or(&e->block->events, VCPU_EVENT_SAMPLE);
}

void hot_count(struct engine *e, uint32_t tb)
{
	struct translator *t = e->translator;
	uint64_t id = find_id(e, tb);

	t->heats[tb] = INT32_MAX;
	if (!id || t->watching)
		return;
	t->watched = id;
	translator_watch(e);
}

/* --- what runs there --- */

void translator_watch(struct engine *e)
{
	struct translator *t = e->translator;

	if (!t || t->watching)
		return;
	t->watching = t->watch;
	t->seen_blocks = 0;
}

/* A block among those noted. */
struct noted {
	uint64_t id;
	unsigned count;
	bool back; /* reached from behind it in its page */
};

struct tally {
	struct noted block[WATCH];
	unsigned count;
	uint16_t hash[WATCH * 2]; /* index + 1 */
};

static struct noted *tally_find(struct tally *y, uint64_t id)
{
	for (unsigned at = (unsigned)(id * 0x9e3779b97f4a7c15ull >> 40) % (WATCH * 2);; at = (at + 1) % (WATCH * 2)) {
		if (!y->hash[at]) {
			y->block[y->count] = (struct noted){.id = id};
			y->hash[at] = (uint16_t)++y->count;
		}
		if (y->block[y->hash[at] - 1u].id == id)
			return &y->block[y->hash[at] - 1u];
	}
}

static void tally(const struct translator *t, struct tally *y)
{
	memset(y->hash, 0, sizeof(y->hash));
	y->count = 0;
	for (unsigned n = 0; n < t->seen_blocks; n++) {
		uint64_t id = t->seen_block[n], before = t->seen_block[n ? n - 1 : 0];
		struct noted *b = tally_find(y, id);

		b->count++;
		b->back |= n && is_near(id, before) && id <= before;
	}
}

static struct block *block_of(struct engine *e, uint64_t id)
{
	return blocks_cached(e, id >> 1);
}

/* Nothing has been made of it yet. */
static bool is_new(struct engine *e, uint64_t id)
{
	const struct block *b = block_of(e, id);
	uint32_t tb = b ? b->tb[id & 1] : 0;

	return b && !b->hot && !(tb && e->translator->tbs[tb - 1].entry);
}

/* The block of the page with which a region should begin; NULL: with none. */
static const struct noted *choose_head(struct engine *e, struct tally *y)
{
	const struct translator *t = e->translator;
	const struct noted *watched = tally_find(y, t->watched), *head = NULL;
	unsigned least = HOT_LEAST * t->watch / WATCH, most = 0;

	if (watched->count < least)
		return NULL;
	for (unsigned n = 0; n < y->count; n++)
		if (is_near(y->block[n].id, t->watched) && y->block[n].count > most && is_new(e, y->block[n].id))
			most = y->block[n].count;
	for (unsigned n = 0; n < y->count; n++) {
		const struct noted *b = &y->block[n];

		if (is_near(b->id, t->watched) && b->count && b->count >= most - most / 8 && is_new(e, b->id) &&
			(!head || (b->back && !head->back)))
			head = b;
	}
	return head;
}

static void end_watch(struct engine *e)
{
	struct tally y;
	const struct noted *head;

	tally(e->translator, &y);
	head = choose_head(e, &y);
	if (!head)
		return;
	for (unsigned n = 0; n < y.count; n++) {
		struct block *b = is_near(y.block[n].id, head->id) ? block_of(e, y.block[n].id) : NULL;

		if (b && y.block[n].count * WARM_SHARE >= head->count)
			b->warm = true;
	}
	hot_translate(e, block_of(e, head->id), head->id & 1);
}

enum translator_did hot_watch(struct engine *e, struct block *b, unsigned view)
{
	struct translator *t = e->translator;

	t->chain_from = 0;
	if (!--t->watching) {
		end_watch(e);
		return DID_RUN;
	}
	t->seen_block[t->seen_blocks++] = block_id(b->key, view);
	if (!(e->flat || tx32_ready(e)))
		return DID_NOTHING;
	translator_profile(e, b);
	return DID_RUN;
}

uint32_t hot_translate(struct engine *e, struct block *b, unsigned view)
{
	uint32_t tb;

	if (b->hot == HOT_TRIES) {
		/* Its operands are never where they were. */
		if (!b->tb[view])
			b->hot = 0;
		return b->tb[view];
	}
	tb = translate_block(e, b, view, true);
	if (!tb)
		return b->tb[view];
	b->hot++;
	if (b->tb[view])
		translator_drop_code(e, b->tb[view] - 1);
	return b->tb[view] = tb;
}
