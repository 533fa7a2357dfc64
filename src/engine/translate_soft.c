/*
 * Operands by the software TLB. A slot costs nothing where its page is mapped, and a signal and some system calls where it is not: some
 * 10,000 cycles for MMIO, more for a page that comes and goes. An instruction whose accesses fault often is translated again so that it looks its
 * page up in the interpreter's TLB (engine_state.h) and goes by the process' own mapping of RAM; a page that is not there is the interpreter's
 * business, which fills the TLB, does MMIO, sets A and D, sees writes to code, and raises.
 *
 *   gva      → S1, kept in hot.tlb_gva
 *   entry    = array of the privilege + (gva bits 21:12) × 32
 *   tag      == page of the last byte?       a crossing access is another page's than its index: a miss
 *   S1       = gva, S2 = the entry's delta
 *
 * Tags are those of the interpreter's fast paths, with their rules for permission, SMAP, D, decoded code and flushes; whatever flushes is interpreted,
 * so that translated code finds the array as the last instruction of the interpreter has left it. With SMAP, code of the supervisor always uses the array that has no
 * user pages.
 *
 * Which instructions: those with soft_after faults, more after each time that it did not pay. They are judged after each SOFT_RUN executions, by cycles:
 *
 *   demoted if   the look-ups cost more than a fault for each miss would have cost,
 *                or a greater part of the time goes into them than went into faults,
 *                or most misses are of pages that had been found before: more pages than the TLB has room for
 *
 * But if the slots have no room either (shadow_is_crowded()), each fault would push out a mapping that is wanted again, so then a miss is all
 * that an access can have: after a few faults it goes by the TLB, and only the first of these rules counts.
 */
#include <x86intrin.h>

#include "engine/translate.h"

#define SOFT_RUN 8192
#define LEVEL_NEVER 8
#define LEVEL_MAX 7
#define LEVEL_CROWDED 3
/* Cycles: of a slot's fault, of a miss, of a look-up. */
#define COST_FAULT 20000u
#define COST_MISS 350u
#define COST_LOOKUP 8u

/* --- sites --- */

static unsigned site_hash(uint64_t at)
{
	return (unsigned)((at * 0x9e3779b97f4a7c15ull) >> 54);
}

static struct soft_site *site_find(struct translator *t, uint64_t at)
{
	unsigned n = site_hash(at);

	for (unsigned way = 0; way < 2; way++)
		if (t->soft[n ^ way].at == at)
			return &t->soft[n ^ way];
	return NULL;
}

struct soft_site *soft_find(struct translator *t, uint64_t at)
{
	struct soft_site *s = site_find(t, at);

	return s && s->soft ? s : NULL;
}

/* The older of the two that are no soft ones; NULL: both are. */
static struct soft_site *site_take(struct translator *t, uint64_t at)
{
	struct soft_site *best = NULL;

	for (unsigned way = 0; way < 2; way++) {
		struct soft_site *s = &t->soft[site_hash(at) ^ way];

		if (!s->soft && (!best || s->since < best->since))
			best = s;
	}
	if (best)
		*best = (struct soft_site){.at = at, .since = __rdtsc()};
	return best;
}

void soft_reset(struct translator *t)
{
	for (unsigned n = 0; n < SOFT_SITES; n++)
		t->soft[n] = (struct soft_site){.at = SOFT_NONE};
	memset(t->soft_pages, 0, sizeof(t->soft_pages));
}

void soft_forget(struct translator *t, unsigned part)
{
	for (unsigned n = 0; n < SOFT_SITES; n++)
		if (t->soft[n].soft && t->soft[n].part == part)
			t->soft[n] = (struct soft_site){.at = SOFT_NONE};
}

/* --- code --- */

/* S1 = gva, S2 = the delta of its page. Leaves if the page is not known. */
static void emit_lookup(struct tx *x, unsigned size, bool is_write)
{
	struct hot *h = &x->t->hot;
	int32_t tag = is_write ? offsetof(struct tlb_entry, write) : offsetof(struct tlb_entry, read);
	uint32_t site = tx_site(x, SITE_SOFT, x->insn[x->n].offset, 0);
	uint8_t *hit, *judge;

	_Static_assert(sizeof(struct tlb_entry) == 32, "scaled by 8 and by 4");
	emit_store(&x->m, S1, mem_abs(&h->tlb_gva));
	emit_pext(&x->m, S2, S1, mem_abs(&h->tlb_index));
	emit_lea(&x->m, S2, (struct emit_mem){NO_REG, S2, 3, 0});
	emit_load(&x->m, S1, mem_abs(&h->tlb_of[x->view]));
	emit_lea(&x->m, S2, (struct emit_mem){S1, S2, 2, 0});
	emit_load(&x->m, S1, mem_abs(&h->tlb_gva));
	emit_lea(&x->m, S1, mem_base(S1, (int32_t)size - 1));
	if (!x->insn[x->n].flags_live) {
		emit_bytes(&x->m, "\x49\x81\xe2\x00\xf0\xff\xff", 7); /* and $~0xfff, %r10 */
		emit_op_mem(&x->m, 0x3b, S1, mem_base(S2, tag));
		tx_stub(x, emit_jcc(&x->m, 5), STUB_SITE, site);
	} else {
		emit_pext(&x->m, S1, S1, mem_abs(&h->tlb_page));
		emit_pdep(&x->m, S1, S1, mem_abs(&h->tlb_page));
		emit_store(&x->m, RCX, mem_abs(&h->save));
		judge = emit_count_down(&x->m, &x->soft->left);
		emit_load(&x->m, RCX, mem_base(S2, tag));
		emit_not(&x->m, RCX);
		emit_lea(&x->m, RCX, (struct emit_mem){RCX, S1, 0, 1});
		hit = emit_jrcxz(&x->m);
		emit_patch8(judge, x->m.p);
		emit_load(&x->m, RCX, mem_abs(&h->save));
		tx_stub(x, emit_jmp(&x->m), STUB_SITE, site);
		emit_patch8(hit, x->m.p);
		emit_load(&x->m, RCX, mem_abs(&h->save));
	}
	emit_load(&x->m, S2, mem_base(S2, offsetof(struct tlb_entry, delta)));
	emit_load(&x->m, S1, mem_abs(&h->tlb_gva));
}

bool soft_operand(struct tx *x, const ZydisDecodedOperand *op, unsigned data, struct emit_mem *out)
{
	unsigned size = op->size / 8;

	if (!size || size > 512)
		return false;
	x->soft_done = true;
	x->soft->part = (uint8_t)x->t->part;
	x->soft->writes = op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
	if (!x->insn[x->n].flags_live) {
		emit8(&x->m, 0xff); /* decl */
		emit_modrm_mem(&x->m, 1, mem_abs(&x->soft->left));
		tx_stub(x, emit_jcc(&x->m, 8), STUB_SITE, tx_site(x, SITE_SOFT, x->insn[x->n].offset, 0));
	}
	tx_effective(x, op, S1, S2);
	emit_lookup(x, size, x->soft->writes);
	*out = (struct emit_mem){S1, S2, 0, 0};
	if (data) {
		int to = data & SCRATCH(S1) ? S2 : S1;

		emit_lea(&x->m, to, *out);
		*out = mem_base(to, 0);
	}
	return true;
}

void soft_emitted(struct tx *x, bool interpreted)
{
	struct soft_site *s = x->soft;

	if (!s || x->soft_done || interpreted)
		return;
	/* Its memory is the stack, or none: the code behind it was to blame. */
	s->soft = false;
	s->level = LEVEL_NEVER;
}

/* --- what is worth it --- */

static uint64_t share(uint64_t cost, uint64_t time)
{
	return (cost << 16) / (time | 1);
}

bool soft_fault(struct engine *e, uint64_t at)
{
	struct translator *t = e->translator;
	struct soft_site *s = site_find(t, at);
	unsigned level;

	if (!s)
		s = site_take(t, at);
	if (!s || s->level >= LEVEL_NEVER)
		return false;
	if (s->soft) {
		/* Code from before; or the fault is not the operand's. */
		if (++s->stray < 16)
			return true;
		s->soft = false;
		s->level = LEVEL_NEVER;
		return false;
	}
	if (!s->faults)
		s->since = __rdtsc();
	level = s->level;
	if (level > LEVEL_CROWDED && shadow_is_crowded(e))
		level = LEVEL_CROWDED;
	if (++s->faults < (uint64_t)t->soft_after << level)
		return false;
	s->cost = share((uint64_t)s->faults * COST_FAULT, __rdtsc() - s->since);
	s->soft = true;
	s->part = (uint8_t)t->part;
	s->since = __rdtsc();
	s->faults = s->misses = s->again = 0;
	s->left = SOFT_RUN;
	e->stats->soft_sites++;
	return true;
}

/* The page was missed before, no flush has come between, and the guest has it in RAM. */
static bool is_again(struct engine *e, uint64_t gva)
{
	const struct engine_stats *stats = e->stats;
	uint64_t flushes = stats->tlb_flushes_all + stats->tlb_flushes_nonglobal + stats->tlb_flushes_page;
	uint64_t hash = ((gva >> 12) + (flushes << 36)) * 0x9e3779b97f4a7c15ull, gpa;
	uint32_t *seen = &e->translator->soft_pages[hash >> 52];

	if (!gva)
		return false;
	if (*seen != (uint32_t)hash) {
		*seen = (uint32_t)hash;
		return false;
	}
	gpa = mmu_translate(e, gva);
	return gpa != ~0ull && ram_offset(e, gpa, NULL) != ~0ull;
}

/* More pages than the TLB has room for. */
static bool is_crowded(const struct soft_site *s)
{
	return s->again >= 64 && s->again > s->misses / 2;
}

static void note_miss(struct engine *e, struct soft_site *s, bool no_room)
{
	uint64_t gva = e->translator->hot.tlb_gva;

	s->misses++;
	if (!is_again(e, gva))
		return;
	s->again++;
	/* What is used again is worth a mapping, for when slots come back. */
	if (!no_room)
		shadow_fill(e, gva, s->writes);
}

static bool pays(const struct soft_site *s, bool no_room)
{
	uint64_t runs = (uint64_t)(SOFT_RUN - (int64_t)s->left);
	uint64_t cost = runs * COST_LOOKUP + (uint64_t)s->misses * COST_MISS;

	return cost <= (uint64_t)s->misses * COST_FAULT &&
	       (no_room || (!is_crowded(s) && share(cost, __rdtsc() - s->since) <= s->cost));
}

bool soft_left(struct engine *e, uint64_t at)
{
	struct soft_site *s = site_find(e->translator, at);
	bool no_room, unfit;

	if (!s || !s->soft)
		return true;
	no_room = shadow_is_crowded(e);
	if (s->left > 0) {
		note_miss(e, s, no_room);
		/* What is interpreted does not count by itself. */
		s->left -= 8;
	}
	unfit = !no_room && is_crowded(s);
	if (s->left > 0 && !unfit)
		return false;
	if (pays(s, no_room)) {
		s->since = __rdtsc();
		s->misses = s->again = 0;
		s->left = SOFT_RUN;
		return false;
	}
	s->level = (uint8_t)(s->level + (unfit ? 2 : 1));
	if (s->level > LEVEL_MAX)
		s->level = LEVEL_MAX;
	s->soft = false;
	s->faults = 0;
	e->stats->soft_ends++;
	return true;
}
