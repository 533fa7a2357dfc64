/*
 * How translated code ends: one block's, because its bytes have changed or better code has come; that of the oldest part of the cache, because
 * there is no room; all of it. Always between blocks, while no translated code runs.
 *
 * The memory and all tables of translations are divided into PARTS, which are filled one after the other, round and round; the one that is to be
 * filled next is emptied. So most code stays when the cache is full, and nothing is ever moved:
 *
 *	code      fixed, thunks │ 0 ....... │ 1 ....... │ 2 ..↑      │ 3 ....... │ 4 …
 *	stubs                   │ 0 ....    │ 1 .....   │ 2 .↑       │ 3 ....    │ 4 …
 *	tbs, sites, fault map   │ 0 ......  │ 1 ....... │ 2 ...↑     │ 3 ......  │ 4 …
 *	                                                  filled now   the oldest
 *
 * What leads to code, and what becomes of it when the code goes:
 *
 *   block.tb, crossing.tb    0; the block keeps what is known of it, and is translated again when it is interpreted next
 *   chained sites, far links their stub again; sites that go are taken out of the lists of those that they lead to
 *   thunks, landings         dropped code stays where it is, and its first bytes become the way out: they miss. Of a part that goes they are looked
 *                            up, since its memory will be other code
 *   hot.exit_site, .target   a way that was not gone to its end is forgotten
 */
#include "engine/translate.h"

/* --- one --- */

/* What calls have left may still lead to landings of the code: they become the way to the jump cache. */
static void drop_landings(struct translator *t, uint32_t id)
{
	for (uint32_t n = t->tbs[id].site; n < t->tbs[id + 1].site; n++) {
		const struct site *s = &t->sites[n];
		struct emit m = {t->write + s->patch - s->undo};

		if (s->kind == SITE_RETURN)
			emit_patch(emit_jmp(&m), t->write + t->return_miss[t->tbs[id].view]);
	}
}

/* Jumps into a region that goes: their blocks are without code until they run again. */
static void drop_entries(struct engine *e, uint32_t region)
{
	struct translator *t = e->translator;

	for (uint32_t n = region + 1; t->tbs[n].entry; n++) {
		struct block *b = &e->blocks->blocks[t->tbs[n].block];

		if (t->tbs[n].dead)
			continue;
		if (b->tb[t->tbs[n].view] == n + 1)
			b->tb[t->tbs[n].view] = 0;
		translator_drop_code(e, n);
	}
}

/* Jump cache entries may still lead to the code: it becomes the way out, as a miss of the jump. */
void translator_drop_code(struct engine *e, uint32_t id)
{
	struct translator *t = e->translator;
	struct tb *tb = &t->tbs[id];
	struct emit m = {t->write + tb->code};

	emit_patch(emit_jmp(&m), t->write + (tb->mode32 ? t->leave32 : t->leave));

	for (uint32_t s = tb->incoming; s; s = t->sites[s - 1].next)
		site_unchain(t, s - 1);
	tb->incoming = 0;
	if (!tb->dead && !tb->entry) {
		drop_landings(t, id);
		drop_entries(e, id);
	}
	tb->dead = true;
}

void translator_drop_block(struct engine *e, struct block *b)
{
	for (unsigned view = 0; view < SHADOW_VIEWS; view++) {
		if (!b->tb[view])
			continue;
		translator_drop_code(e, b->tb[view] - 1);
		b->tb[view] = 0;
	}
}

void translator_move_block(struct engine *e, const struct block *b, uint32_t index, uint32_t seen)
{
	struct translator *t = e->translator;

	memmove(&t->seen[seen], &t->seen[b->seen], b->count * sizeof(*t->seen));
	for (unsigned view = 0; view < SHADOW_VIEWS; view++)
		if (b->tb[view])
			t->tbs[b->tb[view] - 1].block = index;
}

/* --- a part --- */

struct code_part translator_part_begin(const struct translator *t, unsigned part)
{
	uint32_t code = (STUBS_AT - t->first) / PARTS & ~(REGION_ALIGN - 1);

	return (struct code_part){
		.code = t->first + part * code,
		.stubs = STUBS_AT + part * ((CODE_SIZE - STUBS_AT) / PARTS),
		.tb = part * (TB_MAX / PARTS),
		.site = part * (SITE_MAX / PARTS),
		.map = part * (MAP_MAX / PARTS),
	};
}

static bool is_of(const struct code_part *begin, const struct code_part *end, uint32_t code)
{
	return (code >= begin->code && code < end->code) || (code >= begin->stubs && code < end->stubs);
}

/* Its blocks are without code, and what leads to them leads to their stubs again. */
static void forget_blocks(struct engine *e, uint32_t begin, uint32_t end)
{
	struct translator *t = e->translator;
	struct block_cache *c = e->blocks;

	for (uint32_t n = begin; n < end; n++) {
		struct tb *tb = &t->tbs[n];
		uint32_t index = tb->block;

		for (uint32_t s = tb->incoming; s; s = t->sites[s - 1].next)
			site_unchain(t, s - 1);
		/* Whether it is still hot will be seen. */
		if (!tb->dead && tb->region)
			c->blocks[index].hot = 0;
		if (!tb->dead)
			(index & TB_CROSSING ? c->crossings[index & ~TB_CROSSING].tb : c->blocks[index].tb)[tb->view] = 0;
	}
}

/* Takes the sites of a part out of the list of those that lead to tb. */
static void forget_ways(struct translator *t, struct tb *tb, uint32_t begin, uint32_t end)
{
	uint32_t kept = 0, next;

	for (uint32_t s = tb->incoming; s; s = next) {
		next = t->sites[s - 1].next;
		if (s - 1 >= begin && s - 1 < end)
			continue;
		t->sites[s - 1].next = kept & ((1u << 20) - 1);
		kept = s;
	}
	tb->incoming = kept;
}

static void forget_landings(struct translator *t, const struct code_part *begin, const struct code_part *end)
{
	const uint64_t execute = (uint64_t)(uintptr_t)t->execute;

	for (unsigned view = 0; view < SHADOW_VIEWS; view++)
		for (unsigned n = 0; n <= RETURNS; n++)
			if (is_of(begin, end, (uint32_t)(t->hot.returns[view].host[n] - execute)))
				t->hot.returns[view].host[n] = execute + t->return_miss[view];
}

static void empty_part(struct engine *e, unsigned part)
{
	struct translator *t = e->translator;
	struct code_part begin = translator_part_begin(t, part), end = translator_part_begin(t, part + 1);
	const struct code_part *used = &t->parts[part];

	forget_blocks(e, begin.tb, used->tb);
	for (unsigned n = 0; n < PARTS; n++)
		for (uint32_t tb = translator_part_begin(t, n).tb; n != part && tb < t->parts[n].tb; tb++)
			forget_ways(t, &t->tbs[tb], begin.site, end.site);
	translator_forget_thunks(t, begin.code, end.code);
	forget_landings(t, &begin, &end);
	soft_forget(t, part);
	t->chain_from = 0;
	t->hot.target = ~0ull;
	t->parts[part] = begin;
}

static void fill_part(struct translator *t, unsigned part)
{
	t->part = part;
	t->limit = translator_part_begin(t, part + 1);
	t->limit.tb = translator_part_begin(t, part).tb + t->part_tbs;
}

void translator_next_part(struct engine *e)
{
	struct translator *t = e->translator;
	unsigned next = (t->part + 1) % PARTS;

	empty_part(e, next);
	fill_part(t, next);
	e->stats->code_parts++;
}

/* --- all --- */

void translator_reset(struct engine *e)
{
	struct translator *t = e->translator;

	for (unsigned n = 0; n < PARTS; n++) {
		struct code_part begin = translator_part_begin(t, n);

		forget_blocks(e, begin.tb, t->parts[n].tb);
		t->parts[n] = begin;
	}
	fill_part(t, 0);
	t->chain_from = 0;
	soft_reset(t);
	translator_forget_pages(e);
	e->stats->code_resets++;
}
