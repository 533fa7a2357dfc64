/*
 * A region: a hot block and the blocks of its page to which direct branches lead from it, translated together. Inside of it the facts
 * about addresses (translate_facts.c), the vector gate and the deltas in the scratch registers are carried along branches, and it is
 * known which status flags are dead.
 *
 * A block is emitted once for each set of facts with which it is reached, three times at most:
 *
 *      head ──► A ──► B ──┐          head has been entered from outside: nothing is known. On the way back to it from B
 *               ▲         │          its operands have been checked, so the branch leads to a second version of head, and
 *               └─ head' ◄┘          A' … follow. So checks that don't change in a loop leave it.
 *
 * A version that is not emitted yet can still be weakened to what all branches to it know; that is how the two arms of an IF meet. The
 * last version that a block may have knows nothing.
 *
 * A region goes on behind its calls, and in the functions of the page that they call. A return compares its address with those of the
 * region's calls that may have led to it; if one fits, it is a branch like others. So a recursion stays inside. An indirect call compares
 * its target with those that it has had lately: before a region with such calls is made, some blocks are interpreted and noted.
 *
 * Regions are entered at their head, with nothing known, and at the landings behind their calls, likewise. All of it lies in one page, and
 * writes to code drop all blocks of the page, so the head's block stands for all.
 */
#include "engine/translate.h"

int region_find(const struct tx *x, int offset)
{
	if (!x->region)
		return -1;
	for (unsigned n = 0; n < x->blocks; n++)
		if (x->pool->block[n].offset == offset)
			return (int)n;
	return -1;
}

/* --- which blocks --- */

static void add_block(struct tx *x, const uint8_t *page, int64_t offset, bool calls)
{
	struct block *b;
	uint64_t at;
	unsigned insns = x->insns;

	if (offset < 0 || offset >= 4096 || x->blocks == (calls ? REGION_BLOCKS : REGION_LOOP_BLOCKS) || region_find(x, (int)offset) >= 0)
		return;
	at = (uint64_t)(page - x->e->ram) + (uint64_t)offset;
	b = blocks_cached(x->e, at << 2 | (x->pool->block[0].b->key & 3));
	if (!b || !b->warm || insns + b->count > (calls ? REGION_INSNS : REGION_LOOP_INSNS))
		return;
	if (!tx_decode(x, &x->pool->block[x->blocks], b, page + offset, (int)offset)) {
		x->insns = insns;
		return;
	}
	x->pool->block[x->blocks].seen = x->t->seen + b->seen;
	x->blocks++;
}

static ZydisInstructionCategory category_of(const struct tx_block *t)
{
	return t->insn[t->count - 1].d.insn.meta.category;
}

/* Where direct branches of the block lead, not calls: these go on behind them, if `calls`. −1: none. */
static void find_successors(const struct tx_block *t, bool calls, int64_t to[2])
{
	const struct tx_insn *last = &t->insn[t->count - 1];
	const ZydisDecodedOperand *op = &last->d.op[0];
	bool relative = op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && op->imm.is_relative;

	to[0] = to[1] = -1;
	switch (last->d.insn.meta.category) {
	case ZYDIS_CATEGORY_UNCOND_BR:
		if (relative)
			to[0] = last->next + op->imm.value.s;
		return;
	case ZYDIS_CATEGORY_COND_BR:
		to[0] = last->next;
		if (relative)
			to[1] = last->next + op->imm.value.s;
		return;
	case ZYDIS_CATEGORY_CALL:
		to[0] = calls ? last->next : -1;
		return;
	case ZYDIS_CATEGORY_RET:
	case ZYDIS_CATEGORY_INTERRUPT:
	case ZYDIS_CATEGORY_SYSCALL:
	case ZYDIS_CATEGORY_SYSRET:
		return;
	default:
		to[0] = last->next;
	}
}

/* Where the block's call leads, −1: it has none, or not a direct one. */
static int64_t find_call(const struct tx_block *t)
{
	const struct tx_insn *last = &t->insn[t->count - 1];
	const ZydisDecodedOperand *op = &last->d.op[0];

	if (category_of(t) != ZYDIS_CATEGORY_CALL || op->type != ZYDIS_OPERAND_TYPE_IMMEDIATE || !op->imm.is_relative)
		return -1;
	return last->next + op->imm.value.s;
}

/* It ends with an indirect call. Indirect jumps of more than a few targets are foreseen better by the host. */
static bool is_indirect(const struct tx_block *t)
{
	const struct tx_insn *last = &t->insn[t->count - 1];

	return category_of(t) == ZYDIS_CATEGORY_CALL && last->d.op[0].type != ZYDIS_OPERAND_TYPE_IMMEDIATE && tx_is_plain_branch(last);
}

static struct indirect_call *find_call_site(struct translator *t, uint64_t at)
{
	struct indirect_call *c = &t->calls[at * 0x9e3779b97f4a7c15ull >> 56];

	_Static_assert(CALLS == 256, "8 bits");
	if (c->at != at + 1)
		*c = (struct indirect_call){.at = at + 1};
	return c;
}

bool region_learn_target(struct translator *t, uint64_t at, int target)
{
	struct indirect_call *c = find_call_site(t, at);

	for (unsigned n = 0; n < c->count; n++)
		if (c->target[n] == target)
			return false;
	if (c->count == TARGETS_INSIDE)
		return false;
	c->target[c->count++] = target;
	return true;
}

/* Adds the places in the page to which the block's indirect call has led while the head was watched, most often first. */
static void find_targets(struct tx *x, struct tx_block *t)
{
	struct translator *tr = x->t;
	uint64_t at = (t->b->key >> 14 << 12) + (uint64_t)t->insn[t->count - 1].offset, id = block_id(t->b->key, x->view);
	const struct indirect_call *call;
	struct {
		int offset;
		unsigned count;
	} seen[16];
	unsigned count = 0;

	t->targets = 0;
	if (!is_indirect(t))
		return;
	for (unsigned n = 0; n + 1 < tr->seen_blocks; n++) {
		uint64_t to = tr->seen_block[n + 1];
		unsigned k = 0;

		if (tr->seen_block[n] != id || (to ^ id) >> 15 || ((to ^ id) & 7))
			continue;
		while (k < count && seen[k].offset != (int)(to >> 3 & 4095))
			k++;
		if (k == 16)
			continue;
		if (k == count) {
			seen[k].offset = (int)(to >> 3 & 4095);
			seen[k].count = 0;
			count++;
		}
		seen[k].count++;
	}
	for (unsigned n = 0; n < TARGETS_INSIDE && n < count; n++) {
		unsigned best = 0;

		for (unsigned k = 1; k < count; k++)
			if (seen[k].count > seen[best].count)
				best = k;
		region_learn_target(tr, at, seen[best].offset);
		seen[best].count = 0;
	}
	call = find_call_site(tr, at);
	t->targets = call->count;
	memcpy(t->target, call->target, sizeof(t->target));
}

/* Loops first, then what they call. */
void region_collect(struct tx *x, const uint8_t *page)
{
	for (int calls = 0; calls <= x->calls; calls++) {
		for (unsigned n = 0; n < x->blocks; n++) {
			struct tx_block *t = &x->pool->block[n];
			int64_t to[2];

			find_successors(t, calls, to);
			add_block(x, page, to[0], calls);
			add_block(x, page, to[1], calls);
			if (!calls)
				continue;
			add_block(x, page, find_call(t), true);
			find_targets(x, t);
			for (unsigned k = 0; k < t->targets; k++)
				add_block(x, page, t->target[k], true);
		}
	}
}

/* --- calls --- */

static int find_inside(const struct tx *x, int64_t offset)
{
	return offset < 0 || offset >= 4096 ? -1 : region_find(x, (int)offset);
}

static unsigned targets_of(const struct tx *x, const struct tx_block *t, unsigned to[TARGETS_INSIDE])
{
	unsigned count = 0;

	for (unsigned n = 0; n < t->targets; n++) {
		int block = region_find(x, t->target[n]);

		if (block >= 0)
			to[count++] = (unsigned)block;
	}
	return count;
}

unsigned region_targets(const struct tx *x, unsigned to[TARGETS_INSIDE])
{
	return targets_of(x, &x->pool->block[x->block], to);
}

/* The blocks to which the function leads that begins with the block, a bit each. */
static uint32_t function_of(const struct tx *x, unsigned first)
{
	uint32_t seen = 0, wanted = 1u << first;

	while (wanted) {
		unsigned n = (unsigned)__builtin_ctz(wanted);
		int64_t to[2];

		seen |= 1u << n;
		find_successors(&x->pool->block[n], true, to);
		for (unsigned k = 0; k < 2; k++) {
			int block = find_inside(x, to[k]);

			if (block >= 0)
				wanted |= 1u << block;
		}
		wanted &= ~seen;
	}
	return seen;
}

/* The blocks of the functions that the block's call may lead to. */
static uint32_t find_functions(const struct tx *x, unsigned block)
{
	const struct tx_block *t = &x->pool->block[block];
	unsigned to[TARGETS_INSIDE], count = targets_of(x, t, to);
	int callee = find_inside(x, find_call(t));
	uint32_t functions = callee < 0 ? 0 : function_of(x, (unsigned)callee);

	for (unsigned n = 0; n < count; n++)
		functions |= function_of(x, to[n]);
	return functions;
}

/* Where calls go on that the return at the end of the block may belong to, at most RETURNS_INSIDE: block indices; their number. */
static unsigned find_returns(const struct tx *x, unsigned from, unsigned to[RETURNS_INSIDE])
{
	unsigned count = 0;

	_Static_assert(REGION_BLOCKS <= 32, "a block is a bit");
	for (unsigned n = 0; n < x->blocks && count < RETURNS_INSIDE; n++) {
		int next = find_inside(x, x->pool->block[n].insn[x->pool->block[n].count - 1].next);

		if (next >= 0 && (find_functions(x, n) >> from & 1))
			to[count++] = (unsigned)next;
	}
	return count;
}

unsigned region_returns(const struct tx *x, unsigned to[RETURNS_INSIDE])
{
	return x->calls ? find_returns(x, x->block, to) : 0;
}

/* All returns of the blocks that are known may go on at `next`. */
static bool return_to(const struct tx *x, uint32_t function, int next)
{
	bool returns = false;

	for (unsigned n = 0; n < x->blocks; n++) {
		unsigned to[RETURNS_INSIDE], count;
		bool found = false;

		if (!(function >> n & 1) || category_of(&x->pool->block[n]) != ZYDIS_CATEGORY_RET)
			continue;
		count = find_returns(x, n, to);
		for (unsigned k = 0; k < count; k++)
			found |= x->pool->block[to[k]].offset == next;
		if (!found)
			return false;
		returns = true;
	}
	return returns;
}

bool region_has_call(const struct tx *x, int64_t target, int next)
{
	int callee = x->calls ? find_inside(x, target) : -1;

	return callee >= 0 && return_to(x, function_of(x, (unsigned)callee), next);
}

bool region_has_calls(const struct tx *x, int next)
{
	unsigned to[TARGETS_INSIDE], count = region_targets(x, to);

	for (unsigned n = 0; n < count; n++)
		if (!return_to(x, function_of(x, to[n]), next))
			return false;
	return count > 0;
}

/* --- status flags --- */

static uint32_t live_at(const struct tx *x, int64_t offset)
{
	int block = find_inside(x, offset);

	return block < 0 ? (uint32_t)FLAGS_STATUS : x->pool->block[block].live_in;
}

static bool find_block_flags(struct tx *x, struct tx_block *t)
{
	uint32_t live = (uint32_t)FLAGS_STATUS, before = t->live_in;
	int64_t to[2];

	find_successors(t, false, to);
	if (category_of(t) == ZYDIS_CATEGORY_CALL)
		to[0] = x->calls ? find_call(t) : -1;
	if (x->region && to[0] >= 0)
		live = live_at(x, to[0]) | (to[1] >= 0 ? live_at(x, to[1]) : to[1] == -1 ? 0 : (uint32_t)FLAGS_STATUS);
	t->live_out = live;
	for (unsigned n = t->count; n-- > 0;) {
		struct tx_insn *i = &t->insn[n];

		live = (live & ~i->flags_written) | i->flags_read;
		i->flags_live = live;
	}
	t->live_in = live;
	return live != before;
}

/* The least solution: no flag is live that nobody reads. */
void region_find_flags(struct tx *x)
{
	bool changed;

	do {
		changed = false;
		for (unsigned n = x->blocks; n-- > 0;)
			changed |= find_block_flags(x, &x->pool->block[n]);
	} while (changed);
}

/* --- events --- */

/* Whether all ways on from the block lead to a look at events, given the blocks of which that is known. */
static bool leads_to_poll(const struct tx *x, const struct tx_block *t, uint32_t known)
{
	bool conditional = category_of(t) == ZYDIS_CATEGORY_COND_BR;
	unsigned inside[TARGETS_INSIDE];
	int64_t to[2];

	/* Forward within the region nobody looks. */
	if (targets_of(x, t, inside))
		return false;
	find_successors(t, false, to);
	switch (category_of(t)) {
	case ZYDIS_CATEGORY_UNCOND_BR:
		if (to[0] < 0)
			return t->insn[t->count - 1].d.op[0].type != ZYDIS_OPERAND_TYPE_IMMEDIATE;
		break;
	case ZYDIS_CATEGORY_CALL:
		return t->insn[t->count - 1].d.op[0].type != ZYDIS_OPERAND_TYPE_IMMEDIATE;
	default:
		if (to[0] < 0)
			return false;
	}
	for (unsigned n = 0; n <= conditional; n++) {
		int block = find_inside(x, to[n]);

		/* A condition that leads out of the region looks on its way, see tx_branch(). */
		if (block < 0 ? n == 0 || to[n] < 0 || to[n] > 4096 - 15 : !(known >> block & 1))
			return false;
	}
	return true;
}

void region_find_polls(struct tx *x)
{
	uint32_t known = 0, before;

	if (!x->region)
		return;
	do {
		before = known;
		for (unsigned n = 0; n < x->blocks; n++)
			if (leads_to_poll(x, &x->pool->block[n], known))
				known |= 1u << n;
	} while (known != before);
	x->polled = known;
	for (unsigned n = 0; n < x->blocks; n++) {
		const struct tx_block *t = &x->pool->block[n];
		int64_t to[2];

		find_successors(t, false, to);
		if (category_of(t) == ZYDIS_CATEGORY_UNCOND_BR && !(known >> n & 1) && find_inside(x, to[0]) >= 0 &&
			to[0] <= t->insn[t->count - 1].offset)
			x->polling |= 1u << n;
	}
	x->polled |= x->polling;
}

/* --- versions --- */

bool region_is_ahead(const struct tx *x, int offset)
{
	int block = region_find(x, offset);

	for (unsigned n = 0; n < x->versions; n++)
		if (x->pool->version[n].block == (unsigned)block && x->pool->version[n].code)
			return false;
	return block >= 0;
}

/* A branch of the region leads back to the block. */
static bool is_loop(const struct tx *x, unsigned block)
{
	for (unsigned n = 0; n < x->blocks; n++) {
		const struct tx_block *t = &x->pool->block[n];
		int64_t to[2];

		find_successors(t, x->calls, to);
		for (unsigned k = 0; k < 2; k++)
			if (to[k] == x->pool->block[block].offset && to[k] <= t->offset)
				return true;
	}
	return false;
}

bool region_is_entry(const struct tx *x, const struct tx_version *v)
{
	struct tx_facts none;

	facts_clear(&none);
	return v->block && v->code && facts_imply(&none, &v->facts) && !is_loop(x, v->block);
}

/* The version of the block that asks for most of what holds now, or −1. */
static int find_implied(const struct tx *x, unsigned block)
{
	int best = -1;

	for (unsigned n = 0; n < x->versions; n++) {
		const struct tx_version *v = &x->pool->version[n];

		if (v->block == block && facts_imply(&x->facts, &v->facts) &&
			(best < 0 || facts_imply(&v->facts, &x->pool->version[best].facts)))
			best = (int)n;
	}
	return best;
}

/* A version of the block that may be reached with the facts that hold now, or −1 if there is no room. */
static int find_version(struct tx *x, unsigned block)
{
	struct tx_block *t = &x->pool->block[block];
	struct tx_facts facts = x->facts;
	struct tx_version *v;
	/* The head's loop may begin anywhere. */
	bool back = t->offset <= x->pool->block[x->block].offset || block == 0 || x->returns;
	bool room = t->versions + 1 < VERSIONS_EACH && x->versions < REGION_VERSIONS / 2 && x->emitted < REGION_EMIT / 2;
	int implied = find_implied(x, block);

	facts_widen(&facts);
	/* A way back with more than is asked for: a loop should not ask for it again and again. */
	if (implied >= 0 && !(back && room && facts_imply_more(&facts, &x->pool->version[implied].facts)))
		return implied;
	for (unsigned n = 0; n < x->versions && implied < 0; n++) {
		v = &x->pool->version[n];
		if (v->block == block && !v->code) {
			facts_meet(&v->facts, &facts);
			return (int)n;
		}
	}
	if (x->versions == REGION_VERSIONS) {
		x->failed = true;
		return -1;
	}
	if (++t->versions >= VERSIONS_EACH)
		facts_clear(&facts);
	v = &x->pool->version[x->versions];
	*v = (struct tx_version){.block = block, .facts = facts};
	return (int)x->versions++;
}

/* The next one to emit: the first in the page. */
static int first_pending(const struct tx *x)
{
	int best = -1;

	for (unsigned n = 0; n < x->versions; n++) {
		const struct tx_version *v = &x->pool->version[n];

		if (!v->code && (best < 0 || x->pool->block[v->block].offset <
						     x->pool->block[x->pool->version[best].block].offset))
			best = (int)n;
	}
	return best;
}

void region_go(struct tx *x, unsigned block, uint8_t *from)
{
	int version = find_version(x, block);

	if (version < 0)
		return;
	if (!from) {
		if (!x->pool->version[version].code && first_pending(x) == version) {
			x->fall = version;
			return;
		}
		from = emit_jmp(&x->m);
	}
	if (x->edges == REGION_EDGES) {
		x->failed = true;
		return;
	}
	x->pool->edge[x->edges++] = (struct tx_edge){from, (unsigned)version};
}

void region_cut(struct tx *x)
{
	if (x->fall < 0)
		return;
	if (x->edges == REGION_EDGES)
		x->failed = true;
	else
		x->pool->edge[x->edges++] = (struct tx_edge){emit_jmp(&x->m), (unsigned)x->fall};
	x->fall = -1;
}

static void emit_version(struct tx *x, unsigned version)
{
	struct tx_version *v = &x->pool->version[version];
	const struct tx_block *t = &x->pool->block[v->block];

	v->code = x->m.p;
	x->fall = -1;
	x->block = v->block;
	x->insn = t->insn;
	x->seen = t->seen;
	x->count = t->count;
	x->live_out = t->live_out;
	x->facts = v->facts;
	x->emitted += t->count;
	tx_emit_block(x);
}

void region_emit(struct tx *x)
{
	int next = 0;

	x->pool->version[0] = (struct tx_version){.block = 0};
	facts_clear(&x->pool->version[0].facts);
	x->pool->block[0].versions = x->versions = 1;
	while (next >= 0 && !x->failed) {
		emit_version(x, (unsigned)next);
		if (x->emitted > REGION_EMIT || x->stub_count + 64 > TX_STUBS || x->m.p - x->start > (int)CODE_MAX / 2)
			x->failed = true;
		next = x->fall >= 0 ? x->fall : first_pending(x);
	}
	if (x->failed)
		return;
	for (unsigned n = 0; n < x->edges; n++)
		emit_patch(x->pool->edge[n].from, x->pool->version[x->pool->edge[n].version].code);
}
