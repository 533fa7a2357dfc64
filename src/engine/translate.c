/*
 * From a decoded block to host code. The block is looked at twice: backwards, to learn before which
 * instructions the status flags are dead (a check may then use CMP), and forwards, to emit.
 *
 * Apart from the code stand its stubs: look-ups for predictions that failed, polls of backward branches, and one
 * exit for each way out (a site). A site of a direct branch is patched to the target's code when that exists.
 *
 * Precise state: the fault map says which guest instruction host code belongs to. The emitted code of an
 * instruction changes no guest register before its last access that may fault, so a fault is repaired by
 * interpreting it from the start.
 */
#include <assert.h>

#include "engine/translate.h"

/* --- exits --- */

uint32_t tx_site(struct tx *x, enum site_kind kind, int offset, int undo)
{
	struct translator *t = x->t;
	uint32_t id = translator_part(t)->site;

	if (id == t->limit.site) {
		x->failed = true;
		return 0;
	}
	translator_part(t)->site++;
	assert(offset >= 0 && offset < 0x2000 && undo >= -UNDO_MAX && undo <= UNDO_MAX);
	t->sites[id] = (struct site){.kind = kind & 15, .offset = (unsigned)offset & 0x1fff, .undo = undo, .tb = x->tb & ((1u << TB_BITS) - 1)};
	return id;
}

void tx_stub(struct tx *x, uint8_t *from, enum stub_kind kind, uint32_t site)
{
	if (x->stub_count == TX_STUBS) {
		x->failed = true;
		return;
	}
	x->pool->stubs[x->stub_count++] = (struct tx_stub){.from = from, .kind = kind, .site = site};
}

static void put_number(struct translator *t, uint32_t n)
{
	uint32_t *used = &translator_part(t)->map;

	for (; n > 127; n >>= 7)
		t->map[(*used)++] = (uint8_t)(n | 128);
	t->map[(*used)++] = (uint8_t)n;
}

void tx_map(struct tx *x, int offset, enum map_kind kind)
{
	uint32_t host = (uint32_t)(x->m.p - x->start) + x->start_host;
	int step = kind == MAP_TARGET || kind == MAP_RETURN ? 0 : offset - x->mapped.offset;

	if (translator_part(x->t)->map + MAP_ENTRY_MAX > x->t->limit.map) {
		x->failed = true;
		return;
	}
	put_number(x->t, host - x->mapped.host);
	put_number(x->t, (unsigned)(step < 0 ? -step : step) << 4 | (step < 0 ? 8 : 0) | kind);
	x->mapped.host = host;
	x->mapped.offset += step;
}

static uint32_t get_number(const uint8_t **p)
{
	uint32_t n = 0;
	unsigned shift = 0;

	for (; **p & 128; shift += 7)
		n |= (uint32_t)(*(*p)++ & 127) << shift;
	return n | (uint32_t)*(*p)++ << shift;
}

void map_next(const uint8_t **p, struct map_entry *m)
{
	uint32_t n;

	m->host += get_number(p);
	n = get_number(p);
	m->offset += n & 8 ? -(int32_t)(n >> 4) : (int32_t)(n >> 4);
	m->kind = n & 7;
}

void tx_clobber(struct tx *x, unsigned scratch)
{
	for (int s = 0; s < 2; s++) {
		if (scratch & SCRATCH(S1 + s)) {
			x->holds[s] = -1;
			x->facts.delta[s] = NO_SLOT;
			if (x->sum == S1 + s)
				x->sum = -1;
		}
	}
}

/* Leaves to the interpreter before the instruction. */
static void leave_interp(struct tx *x, int offset)
{
	if (x->soft)
		emit_store_imm64(&x->m, &x->t->hot.tlb_gva, 0);
	tx_stub(x, emit_jmp(&x->m), STUB_SITE, tx_site(x, x->soft ? SITE_SOFT : SITE_INTERP, offset, 0));
	x->ended = true;
}

void tx_poll(struct tx *x, int scratch)
{
	const uint8_t *load;

	tx_clobber(x, SCRATCH(scratch));
	emit_rorx(&x->m, scratch, mem_abs((void *)&x->e->block->events), 20);
	load = x->m.p;
	emit_load8(&x->m, scratch, mem_base(scratch, (int32_t)(uintptr_t)x->t->poll));
	assert(x->m.p - load == POLL_LOAD_SIZE);
}

/* The instruction at `offset` lies across the page's end: no branch can be patched to its code, which depends on two pages. */
static bool is_crossing(struct tx *x, int offset)
{
	struct insn i;

	return x->page != SOFT_NONE && offset > 4096 - 15 && offset < 4096 &&
	       !decode_insn(x->e, x->mode32 ? MODE_32 : MODE_64, x->e->ram + x->page + offset, 4096 - (unsigned)offset, &i);
}

void tx_branch(struct tx *x, int cc, int offset)
{
	int from_offset = x->insn[x->n].offset, block = region_find(x, offset);
	bool backward = offset <= from_offset;
	uint8_t *from;

	if (is_crossing(x, offset)) {
		from = cc >= 0 ? emit_jcc(&x->m, (unsigned)cc ^ 1) : NULL;
		tx_page_address(x, S1, offset);
		tx_jump(x, from_offset, 0, backward);
		if (from)
			emit_patch(from, x->m.p);
		return;
	}
	if (block >= 0) {
		if (backward && (!(x->polled >> block & 1) || (cc < 0 && (x->polling >> x->block & 1)))) {
			tx_map(x, cc >= 0 ? from_offset : offset, MAP_POLL);
			tx_poll(x, S1);
		}
		region_go(x, (unsigned)block, cc >= 0 ? emit_jcc(&x->m, (unsigned)cc) : NULL);
		return;
	}
	if (cc >= 0) {
		from = emit_jcc(&x->m, (unsigned)cc);
		if (backward || x->polled) {
			tx_stub(x, from, STUB_POLL, 0);
			x->pool->stubs[x->stub_count - 1].offset = offset;
			return;
		}
	} else {
		if (backward) {
			tx_map(x, offset, MAP_POLL);
			tx_poll(x, S1);
		}
		from = emit_jmp(&x->m);
	}
	tx_stub(x, from, STUB_SITE, tx_site(x, SITE_CHAIN, offset, 0));
}

/* --- stubs --- */

static void emit_site(struct tx *x, uint8_t *from, uint32_t id)
{
	struct translator *t = x->t;
	struct site *site = &t->sites[id];

	site->patch = (uint32_t)(from - t->write) & PATCH_MASK;
	site->stub = (uint32_t)(x->m.p - t->write);
	site_lead(t, site, site->stub);
	emit_imm32(&x->m, S2, id);
	if (site->kind == SITE_CHAIN || site->kind == SITE_RETURN)
		emit_patch(emit_jmp(&x->m), t->write + t->find_site);
	else
		emit_patch(emit_jmp(&x->m), t->write + t->leave_site[x->mode32]);
}

static void emit_stubs(struct tx *x)
{
	for (unsigned n = 0; n < x->stub_count; n++) {
		struct tx_stub s = x->pool->stubs[n];
		uint8_t *from;

		switch (s.kind) {
		case STUB_SITE:
			emit_site(x, s.from, s.site);
			break;
		case STUB_LOOKUP:
			emit_patch(s.from, x->m.p);
			tx_look_up(x, s.dst, s.src);
			emit_patch(emit_jmp(&x->m), s.back);
			break;
		case STUB_RSP:
			emit_patch(s.from, x->m.p);
			tx_switch_rsp(x);
			emit_patch(emit_jmp(&x->m), s.back);
			break;
		case STUB_POLL:
			emit_patch(s.from, x->m.p);
			tx_map(x, s.offset, MAP_POLL);
			tx_poll(x, S1);
			from = emit_jmp(&x->m);
			emit_site(x, from, tx_site(x, SITE_CHAIN, s.offset, 0));
			break;
		case STUB_LANDING:
			tx_emit_landing_miss(x, &s);
			break;
		}
	}
}

/* --- the block --- */

bool tx_decode(struct tx *x, struct tx_block *t, const struct block *b, const uint8_t *bytes, int offset)
{
	bool crossing = x->page == SOFT_NONE;
	int end = crossing ? offset + b->bytes : 4096, after = offset + b->bytes;

	*t = (struct tx_block){.b = b, .insn = x->pool->insn + x->insns, .offset = offset};
	for (unsigned n = 0; n < b->count && x->insns < REGION_INSNS; n++) {
		struct tx_insn *i = &t->insn[n];
		unsigned length;

		memset(&i->bytes, 0, sizeof(*i) - offsetof(struct tx_insn, bytes));
		i->bytes = bytes;
		i->offset = offset;
		length = decode_both(x->e, x->mode32 ? MODE_32 : MODE_64, bytes, (unsigned)(end - offset), &i->insn, &i->d);
		if (!length || (n + 1 < b->count && (i->insn.flags & INSN_ENDS_BLOCK)))
			break;
		if (i->insn.fn == op_undefined)
			memset(&i->d, 0, sizeof(i->d));
		else if (i->d.insn.length != length)
			return false; /* too long */
		bytes += length;
		offset += length;
		i->next = offset;
		tx_examine(x, i);
		t->count = n + 1;
		x->insns++;
	}
	if (t->count == b->count && offset == after)
		return true;
	if (!crossing)
		blocks_disagree(x->e, b);
	return false;
}

/* The instruction has changed registers: deltas held for them are good only if it was a small constant step. */
static void account(struct tx *x, const struct tx_insn *i)
{
	for (int s = 0; s < 2; s++) {
		int base = x->holds[s];
		int64_t step = 0;

		if (base < 0 || !(i->written & 1u << base))
			continue;
		if (!tx_constant_step(i, &step))
			x->holds[s] = -1;
		x->drift[s] += step < 0 ? -step : step;
		if (x->drift[s] > DRIFT_MAX)
			x->holds[s] = -1;
	}
	if (x->sum >= 0 && (i->written & (1u << x->sum_index | (x->sum_base < 0 ? 0 : 1u << x->sum_base))))
		x->sum = -1;
	facts_account(x, i);
}

void tx_emit_block(struct tx *x)
{
	x->holds[0] = x->holds[1] = -1;
	x->drift[0] = x->drift[1] = 0;
	x->sum = -1;
	x->ended = x->gated87 = false;
	for (x->n = 0; x->n < x->count && !x->ended; x->n++) {
		struct tx_insn *i = &x->insn[x->n];
		struct tx_facts facts = x->facts;
		bool gated87 = x->gated87;
		uint8_t *before = x->m.p;
		uint32_t stubs = x->stub_count;
		struct map_entry mapped;
		uint32_t maps;

		x->accessed = -1;
		x->soft = x->page == SOFT_NONE ? NULL : soft_find(x->t, x->page + (uint64_t)i->offset);
		x->soft_done = false;
		tx_map(x, i->offset, MAP_INSN);
		mapped = x->mapped;
		maps = translator_part(x->t)->map;
		if (i->insn.fn == op_undefined || (x->mode32 && x->soft && i->memory >= 0) ||
			!(x->mode32 ? tx32_emit(x, i, &i->insn) : tx_emit(x, i, &i->insn))) {
			x->m.p = before;
			x->stub_count = stubs;
			x->facts = facts;
			x->gated87 = gated87;
			x->mapped = mapped;
			translator_part(x->t)->map = maps;
			soft_emitted(x, true);
			leave_interp(x, i->offset);
			break;
		}
		soft_emitted(x, false);
		account(x, i);
	}
	if (!x->ended) {
		const struct tx_insn *last = &x->insn[x->count - 1];
		int next = last->next;

		x->n = x->count - 1;
		/* Else what follows crosses the page: no branch can be patched to that. */
		if (next < 4096 && (x->count == BLOCK_INSNS || (last->insn.flags & INSN_ENDS_BLOCK))) {
			tx_branch(x, -1, next);
		} else {
			tx_jump_far(x, next, next, 0);
		}
	}
}

/* For tests: counts the entries of a block that is not hot yet, where its flags are dead. */
static void emit_heat(struct tx *x, const struct tb *tb)
{
	int32_t *heat = &x->t->heats[x->tb];
	const struct tx_block *head = &x->pool->block[0];

	if (x->region)
		*heat = x->t->hot_after ? (int32_t)x->t->hot_after : STRANGE;
	if (!x->t->hot_after || x->region || x->e->lockstep || (tb->block & TB_CROSSING) || head->insn[0].flags_live)
		return;
	*heat = (int32_t)x->t->hot_after;
	tx_map(x, head->offset, MAP_POLL);
	emit8(&x->m, 0xff); /* decl */
	emit_modrm_mem(&x->m, 1, mem_abs(heat));
	tx_stub(x, emit_jcc(&x->m, 8), STUB_SITE, tx_site(x, SITE_HOT, head->offset, 0));
}

/* The next translation: of the block, or crossing. */
static struct tb *begin_tb(struct translator *t, uint32_t block, unsigned view, bool mode32)
{
	const struct code_part *now = translator_part(t);
	struct tb *tb = &t->tbs[now->tb];

	*tb = (struct tb){.block = block, .code = now->code, .stubs = now->stubs, .map = now->map, .site = now->site,
		.view = (uint8_t)view, .mode32 = mode32};
	return tb;
}

/* It is there, as far as now->code and the others have come. Its id. */
static uint32_t end_tb(struct translator *t)
{
	uint32_t id = ++translator_part(t)->tb;

	begin_tb(t, TB_NONE, 0, false);
	return id;
}

/*
 * Blocks of a region that has a version of them which asks for nothing: from now on their code is a jump there. So they need no region of
 * their own, which would be much the same.
 */
static void emit_entries(struct tx *x, uint32_t region)
{
	struct engine *e = x->e;
	struct translator *t = x->t;
	struct code_part *now = translator_part(t);

	for (unsigned n = 1; n < x->versions && now->tb + 1 < t->limit.tb; n++) {
		const struct tx_version *v = &x->pool->version[n];
		struct block *b = &e->blocks->blocks[x->pool->block[v->block].b - e->blocks->blocks];
		struct emit m = {t->write + now->code};

		if (b->hot || (b->tb[x->view] > region && b->tb[x->view] <= now->tb) || !region_is_entry(x, v)) /* one of these entries */
			continue;
		begin_tb(t, (uint32_t)(b - e->blocks->blocks), x->view, x->mode32)->entry = true;
		emit_patch(emit_jmp(&m), v->code);
		_Static_assert(TB_SIZE_MIN <= 5, "a jump is enough");
		now->code = (uint32_t)(m.p - t->write);
		if (b->tb[x->view])
			translator_drop_code(e, b->tb[x->view] - 1);
		b->tb[x->view] = end_tb(t);
	}
}

static bool has_room(struct translator *t)
{
	const struct code_part *now = translator_part(t), *limit = &t->limit;

	return now->tb + 1 < limit->tb && now->code + CODE_MAX <= limit->code && now->stubs + CODE_MAX <= limit->stubs &&
	       now->site + SITES_MAX <= limit->site && now->map + MAPS_MAX <= limit->map;
}

static uint32_t translate(struct engine *e, const struct block *b, uint32_t index, unsigned view,
	const uint8_t *bytes, int offset, bool hot, bool calls)
{
	bool mode32 = (b->key & 3) == MODE_32;
	struct translator *t = e->translator;
	struct code_part *now, begin;
	struct tx x;
	struct tb *tb;
	uint32_t id;

	if (!has_room(t))
		translator_next_part(e);
	translator_enlarge_pages(t);
	now = translator_part(t);
	if (hot)
		now->code = (now->code + REGION_ALIGN - 1) & ~(REGION_ALIGN - 1);
	begin = *now;
	memset(&x, 0, sizeof(x));
	x.e = e;
	x.t = t;
	x.pool = t->pool;
	x.view = view;
	x.mode32 = mode32;
	x.tb = now->tb;
	x.region = hot;
	x.calls = calls && !mode32;
	x.fall = -1;
	x.page = index & TB_CROSSING ? SOFT_NONE : b->key >> 14 << 12;
	x.start = t->write + now->code;
	x.m.p = x.start;
	tb = begin_tb(t, index, view, mode32);
	tb->region = hot;
	if (!tx_decode(&x, &x.pool->block[0], b, bytes, offset))
		return 0;
	x.blocks = 1;
	if (!(index & TB_CROSSING))
		x.pool->block[0].seen = t->seen + b->seen;
	if (hot)
		region_collect(&x, bytes - offset);
	region_find_flags(&x);
	region_find_polls(&x);
	emit_heat(&x, tb);
	region_emit(&x);
	/* What translator_drop_code() writes must fit. */
	while (x.m.p - x.start < TB_SIZE_MIN)
		emit8(&x.m, 0x90);
	now->code = (uint32_t)(x.m.p - t->write);
	x.start = x.m.p = t->write + now->stubs;
	x.start_host = MAP_STUBS;
	emit_stubs(&x);
	if (x.failed) {
		*now = begin;
		return 0;
	}
	now->stubs = (uint32_t)(x.m.p - t->write);
	id = end_tb(t);
	if (hot) {
		emit_entries(&x, id);
		e->stats->regions_translated++;
	} else {
		e->stats->blocks_translated++;
	}
	return id;
}

uint32_t translate_block(struct engine *e, struct block *b, unsigned view, bool hot)
{
	uint64_t offset = b->key >> 2;
	uint32_t tb = 0;

	for (int calls = hot; calls >= 0 && !tb; calls--)
		tb = translate(e, b, (uint32_t)(b - e->blocks->blocks), view, e->ram + offset, (int)(offset & 0xfff), hot, calls);
	return tb;
}

uint32_t translate_crossing(struct engine *e, const struct crossing *c, unsigned view)
{
	struct block b = {.key = c->mode, .count = 1, .bytes = c->length};

	return translate(e, &b, TB_CROSSING | (uint32_t)(c - e->blocks->crossings), view, c->bytes,
		(int)(c->linear & 0xfff), false, false);
}
