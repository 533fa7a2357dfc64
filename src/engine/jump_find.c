/*
 * Ways out of translated code that lead to translated code: a branch that nobody has chained yet, a jump that the jump cache does not have.
 * The fixed code calls this in the middle of the guest's run, in place of leaving for the main loop; a process that has just been started
 * comes by here for each of its branches. What needs more than looking up is left to the main loop.
 *
 * The guest's vector registers are live: compiled without vector code, and nothing of libc is called.
 */
#include "engine/translate.h"

/* The code of the block at the offset in the memfd's page: tb index + 1, *b; 0: the main loop has to do with it. */
static uint32_t find_code(struct engine *e, unsigned view, uint64_t page, unsigned offset, struct block **b)
{
	*b = blocks_cached(e, (page << 12 | offset) << 2 | (e->translator->code32 ? MODE_32 : MODE_64));
	return *b ? (*b)->tb[view] : 0;
}

static uint32_t find_chain(struct engine *e, unsigned view, uint32_t site)
{
	struct translator *t = e->translator;
	const struct site *s = &t->sites[site];
	uint32_t index = t->tbs[s->tb].block, tb;
	const struct block *source = &e->blocks->blocks[index & ~TB_CROSSING];
	struct block *b;

	if ((index & TB_CROSSING) || source->key == BLOCK_DEAD || s->offset > 4095)
		return 0;
	tb = find_code(e, view, source->key >> 14, (unsigned)s->offset, &b);
	if (tb) {
		e->stats->found_chain++;
		site_chain(e, site, b, tb - 1);
	}
	return tb;
}

static uint32_t find_jump(struct engine *e, unsigned view, uint32_t site)
{
	struct translator *t = e->translator;
	uint64_t target = t->hot.target, base = target & ~0xfffull;
	struct code_page *page = translator_find_page(t, view, base, base + e->deltas->delta[view][target >> 39 & 511]);
	struct block *b;
	uint32_t tb;

	if (!page || !page->memfd_page)
		return 0;
	tb = find_code(e, view, page->memfd_page, target & 0xfff, &b);
	if (tb) {
		e->stats->found_target++;
		translator_remember(e, view, page, target, tb - 1);
		site_link_far(e, site, view, page, tb - 1);
		t->hot.code = page;
	}
	return tb;
}

uint64_t translator_find(struct engine *e)
{
	struct translator *t = e->translator;
	uint32_t site = (uint32_t)t->hot.exit_site, tb = 0;
	/* Code may have changed the privilege since it was entered. */
	unsigned view = (e->cpu->seg[SEG_SS].ar & SEG_AR_DPL) == SEG_AR_DPL ? SHADOW_USER : SHADOW_SUPERVISOR;

	if (!t->hot.far_turn)
		t->hot.far_turn = FAR_TURNS;
	if (!e->lockstep) {
		switch (t->sites[site].kind) {
		case SITE_CHAIN:
		case SITE_RETURN:
			tb = find_chain(e, view, site);
			break;
		case SITE_TARGET:
		case SITE_FAR:
			tb = find_jump(e, view, site);
			break;
		default:
			break;
		}
	}
	return tb ? (uint64_t)(uintptr_t)t->execute + t->tbs[tb - 1].code : t->hot.leave_now;
}
