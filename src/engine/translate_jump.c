/*
 * Branches that leave the page, as emitted code. What they look up, and how long it is true: jump_cache.c. The status flags
 * may be live at any branch, so that all comparisons are made with LEA and JRCXZ.
 */
#include <assert.h>

#include "engine/translate.h"

/* The target's key is in S1, the target in hot.target. Destroys S2. */
static void look_up_key(struct emit *m, struct hot *h)
{
	emit_bytes(m, "\x45\x0f\xb7\xda", 4); /* movzwl %r10w, %r11d */
	emit_group5(m, GROUP5_JMP, mem_table(&h->jumps[0], S2));
}

/* S1 = the key of the target in S1. Destroys S2. */
static void add_salt(struct emit *m, struct hot *h, unsigned salt)
{
	emit_load(m, S2, mem_abs(&h->salt[salt]));
	emit_lea(m, S1, (struct emit_mem){S1, S2, 0, 0});
}

/* The target is in S1 and in hot.target. Destroys S2. */
static void look_up_target(struct emit *m, struct hot *h, unsigned salt)
{
	add_salt(m, h, salt);
	look_up_key(m, h);
}

/* Whose keys the jump cache has for the code. */
static unsigned salt_of(const struct tx *x)
{
	return x->view + (x->mode32 ? SHADOW_VIEWS : 0);
}

static void jump_by_cache(struct tx *x, int offset, int undo, bool polls)
{
	struct hot *h = &x->t->hot;

	if (polls) {
		tx_map(x, 0, MAP_TARGET);
		tx_poll(x, S2);
	}
	emit_store_imm(&x->m, &h->exit_site, tx_site(x, SITE_TARGET, offset, undo));
	look_up_target(&x->m, h, salt_of(x));
}

void tx_jump(struct tx *x, int offset, int undo, bool polls)
{
	emit_store(&x->m, S1, mem_abs(&x->t->hot.target));
	jump_by_cache(x, offset, undo, polls);
}

void tx_jump_stored(struct tx *x, int offset, int undo, bool polls)
{
	emit_load(&x->m, S1, mem_abs(&x->t->hot.target));
	jump_by_cache(x, offset, undo, polls);
}

/* --- direct --- */

/*
 *	mov  %rcx, %r10
 *	mov  hot.code, %ecx
 *	lea  -from(%rcx), %ecx	from: the record of the page that it was found from; 0, and never equal, until then
 *	jrcxz hit
 *	mov  $site, %r11d
 *	jmp  fixed code
 * hit:	mov  %r10, %rcx
 *	movl $to, hot.code
 *	jmp  target
 */
void tx_jump_far(struct tx *x, int offset, int32_t target, int undo)
{
	struct emit *m = &x->m;
	struct site *s;
	uint8_t *hit, *from, *branch;
	uint32_t id = tx_site(x, SITE_FAR, offset, undo);

	tx_clobber(x, SCRATCH(S1) | SCRATCH(S2));
	emit_move(m, S1, RCX);
	emit8(m, 0x8b);
	emit_modrm_mem(m, RCX, mem_abs(&x->t->hot.code));
	emit_bytes(m, "\x8d\x89", 2);
	from = m->p;
	emit32(m, 0);
	hit = emit_jrcxz(m);
	emit_imm32(m, S2, id);
	emit_patch(emit_jmp(m), x->t->write + x->t->far[salt_of(x)]);
	emit_patch8(hit, m->p);
	emit_move(m, RCX, S1);
	emit_store_imm(m, &x->t->hot.code, 0); /* its upper half is 0 */
	branch = emit_jmp(m);
	assert(branch - from == FAR_FROM && m->p - 4 == branch);
	s = &x->t->sites[id];
	s->patch = (uint32_t)(branch - x->t->write) & PATCH_MASK;
	s->stub = (uint32_t)target;
}

/* S1 = the key of the far link's target, and hot.target and hot.exit_site are set; the site is in S2, RCX in S1. */
static void find_far_key(struct emit *m, struct translator *t, unsigned salt)
{
	struct hot *h = &t->hot;
	const int32_t target = (int32_t)(uintptr_t)t->sites + (int32_t)offsetof(struct site, stub);

	emit_move(m, RCX, S1);
	emit_store_low(m, S2, mem_abs(&h->exit_site));
	_Static_assert(sizeof(struct site) == 16, "a site's place is 2 × 8 times its number");
	emit_lea(m, S2, (struct emit_mem){S2, S2, 0, 0});
	emit_op_mem(m, 0x63, S1, (struct emit_mem){NO_REG, S2, 3, target}); /* movslq */
	emit_load_low(m, S2, mem_abs(&h->code));
	emit_load(m, S2, mem_base(S2, offsetof(struct code_page, base)));
	if (salt < SHADOW_VIEWS)
		emit_lea(m, S1, (struct emit_mem){S1, S2, 0, 0});
	else
		emit_lea32(m, S1, (struct emit_mem){S1, S2, 0, 0});
	emit_store(m, S1, mem_abs(&h->target));
	add_salt(m, h, salt);
}

/* Each FAR_TURNS-th time C is asked although the jump cache may know: links of processes that have ended become those of this one. */
void tx_emit_far(struct emit *m, struct translator *t, unsigned salt)
{
	struct hot *h = &t->hot;
	uint8_t *turn;

	turn = emit_count_down(m, &h->far_turn);
	find_far_key(m, t, salt);
	look_up_key(m, h);
	emit_patch8(turn, m->p);
	find_far_key(m, t, salt);
	emit_patch(emit_jmp(m), t->write + t->find);
}

/* --- calls and returns --- */

/* S2 = the page's address. */
static void load_base(struct tx *x)
{
	emit_load_low(&x->m, S2, mem_abs(&x->t->hot.code));
	emit_load(&x->m, S2, mem_base(S2, offsetof(struct code_page, base)));
}

void tx_keep_under(struct tx *x)
{
	tx_clobber(x, SCRATCH(S2));
	emit_load(&x->m, S2, mem_base(RSP, -8));
	emit_store(&x->m, S2, mem_abs(&x->t->hot.under));
}

/* Pushes the address of `next`. S2 = the record of the page. */
static void push_next(struct tx *x, int next)
{
	struct emit *m = &x->m;

	tx_clobber(x, SCRATCH(S1) | SCRATCH(S2));
	emit_load_low(m, S2, mem_abs(&x->t->hot.code));
	emit_load(m, S1, mem_base(S2, offsetof(struct code_page, base)));
	emit_lea(m, S1, mem_base(S1, next));
	emit_push(m, S1);
}

/* The record of the page is in S2, what is returned to has been pushed. S1 = where the table's entry is for the RSP before that, less one. */
static uint8_t *leave_return(struct tx *x)
{
	struct emit *m = &x->m;
	struct hot *h = &x->t->hot;
	struct return_table *r = &h->returns[x->view];
	uint8_t *left;

	emit_pext(m, S1, RSP, mem_abs(&h->return_mask));
	emit8(m, 0x4a); /* movq $imm32, table(, S1, 8) */
	emit8(m, 0xc7);
	emit_modrm_mem(m, 0, mem_table(&r->host[1], S1));
	left = m->p;
	emit32(m, 0);
	emit_store(m, S2, mem_table(&r->page[1], S1));
	return left;
}

/* What follows must be a block of this page. */
static bool can_land(int next)
{
	return next <= 4096 - 15;
}

uint8_t *tx_push_return(struct tx *x, int next, int64_t target)
{
	push_next(x, next);
	return can_land(next) && !region_has_call(x, target, next) ? leave_return(x) : NULL;
}

/*
 * A return's key, its address + salt, is in S1, its place in the table in S2.
 *
 *	mov  page(,%r11,8), %r11
 *	mov  %rcx, hot.save
 *	mov  key_neg(%r11), %rcx
 *	lea  -next(%r10,%rcx), %rcx
 *	jrcxz hit
 *	jmp  miss
 * hit:	mov  hot.save, %rcx
 *	mov  %r11, hot.code
 *	jmp  target
 *
 * In a region where the flags are dead ADD and JNE do it. A miss has the key in S1.
 */
void tx_land(struct tx *x, uint8_t *left, int next)
{
	struct emit *m = &x->m;
	struct hot *h = &x->t->hot;
	int block = region_find(x, next);
	uint8_t *start, *hit;
	uint32_t id;

	if (!left)
		return;
	region_cut(x);
	start = m->p;
	emit_put32(left, (uint32_t)(uintptr_t)(x->t->execute + (start - x->t->write)));
	emit_load(m, S2, mem_table(&h->returns[x->view].page[0], S2));
	if (block >= 0 && !x->pool->block[block].live_in) {
		emit_lea(m, S1, mem_base(S1, -next));
		emit_op_mem(m, 0x03, S1, mem_base(S2, offsetof(struct code_page, key_neg)));
		tx_stub(x, emit_jcc(m, 5), STUB_LANDING, 0);
		x->pool->stubs[x->stub_count - 1].offset = next;
	} else {
		emit_store(m, RCX, mem_abs(&h->save));
		emit_load(m, RCX, mem_base(S2, offsetof(struct code_page, key_neg)));
		emit_lea(m, RCX, (struct emit_mem){RCX, S1, 0, -next});
		hit = emit_jrcxz(m);
		emit_patch(emit_jmp(m), x->t->write + x->t->return_miss_save[x->view]);
		emit_patch8(hit, m->p);
		emit_load(m, RCX, mem_abs(&h->save));
	}
	emit_store(m, S2, mem_abs(&h->code));
	id = tx_site(x, SITE_RETURN, next, 0);
	if (block >= 0) {
		x->t->sites[id].patch = (uint32_t)(start - x->t->write) & PATCH_MASK;
		facts_clear(&x->facts);
		region_go(x, (unsigned)block, NULL);
		return;
	}
	tx_stub(x, emit_jmp(m), STUB_SITE, id);
	x->t->sites[id].undo = (int)(m->p - 4 - start);
}

/*
 * The address in S1, which is in hot.target too, is compared with those of the region's blocks: base, in S2, + offset − address = 0. No flags are
 * touched. Goes on behind if it is none of them; S1 and S2 are destroyed. Whoever goes back looks for events. learns: misses are counted,
 * so that C may hear of them.
 */
static void compare_inside(struct tx *x, const unsigned *to, unsigned count, int offset, bool learns)
{
	struct emit *m = &x->m;
	uint8_t *hit[RETURNS_INSIDE], *miss, *strange;
	int last = 0;

	_Static_assert(TARGETS_INSIDE <= RETURNS_INSIDE && RETURNS_INSIDE <= 5, "within reach of JRCXZ");
	tx_clobber(x, SCRATCH(S1) | SCRATCH(S2));
	emit_not(m, S1);
	emit_lea(m, S1, (struct emit_mem){S1, S2, 0, 1});
	emit_move(m, S2, RCX);
	for (unsigned n = 0; n < count; n++) {
		int at = x->pool->block[to[n]].offset;

		emit_lea(m, RCX, mem_base(n ? RCX : S1, at - last));
		last = at;
		hit[n] = emit_jrcxz(m);
	}
	if (learns)
		strange = emit_count_down(m, &x->t->heats[x->tb]);
	emit_move(m, RCX, S2);
	miss = emit_jmp(m);
	if (learns) {
		emit_patch8(strange, m->p);
		emit_move(m, RCX, S2);
		tx_stub(x, emit_jmp(m), STUB_SITE, tx_site(x, SITE_STRANGE, offset, -8));
	}
	for (unsigned n = 0; n < count; n++) {
		int at = x->pool->block[to[n]].offset;

		emit_patch8(hit[n], m->p);
		emit_move(m, RCX, S2);
		if (at <= offset) {
			tx_map(x, at, MAP_POLL);
			tx_poll(x, S1);
		}
		region_go(x, to[n], emit_jmp(m));
	}
	emit_patch(miss, m->p);
	tx_map(x, offset, MAP_INSN);
}

static void return_inside(struct tx *x, int offset)
{
	unsigned to[RETURNS_INSIDE], count = region_returns(x, to);

	if (!count)
		return;
	emit_store(&x->m, S1, mem_abs(&x->t->hot.target));
	load_base(x);
	x->returns = true;
	compare_inside(x, to, count, offset, false);
	x->returns = false;
	emit_load(&x->m, S1, mem_abs(&x->t->hot.target));
}

void tx_call_indirect(struct tx *x, int offset, int next)
{
	unsigned to[TARGETS_INSIDE], count = region_targets(x, to);
	struct emit *m = &x->m;
	bool inside = region_has_calls(x, next);
	uint8_t *left = NULL;

	emit_store(m, S1, mem_abs(&x->t->hot.target));
	tx_keep_under(x);
	if (inside) {
		tx_clobber(x, SCRATCH(S1) | SCRATCH(S2));
		load_base(x);
		emit_lea(m, S1, mem_base(S2, next));
		emit_push(m, S1);
	} else {
		push_next(x, next);
		if (can_land(next))
			left = leave_return(x);
		if (count)
			load_base(x);
	}
	if (count) {
		emit_load(m, S1, mem_abs(&x->t->hot.target));
		compare_inside(x, to, count, offset, count < TARGETS_INSIDE);
	}
	if (can_land(next) && inside) {
		emit_load_low(m, S2, mem_abs(&x->t->hot.code));
		left = leave_return(x);
	}
	tx_jump_stored(x, offset, -8, true);
	tx_land(x, left, next);
}

void tx_return(struct tx *x, int offset, int undo)
{
	struct emit *m = &x->m;
	struct hot *h = &x->t->hot;

	tx_clobber(x, SCRATCH(S1) | SCRATCH(S2));
	if (x->calls)
		return_inside(x, offset);
	tx_map(x, 0, MAP_RETURN);
	tx_poll(x, S2);
	emit_store_imm(m, &h->exit_site, tx_site(x, SITE_TARGET, offset, undo));
	emit_load(m, S2, mem_abs(&h->salt[x->view]));
	emit_lea(m, S1, (struct emit_mem){S1, S2, 0, 0});
	if (undo != 8)
		emit_lea(m, S2, mem_base(RSP, 8 - undo));
	emit_pext(m, S2, undo == 8 ? RSP : S2, mem_abs(&h->return_mask));
	emit_group5(m, GROUP5_JMP, mem_table(&h->returns[x->view].host[0], S2));
}

void tx_emit_return_miss(struct emit *m, struct translator *t, unsigned view)
{
	t->return_miss_save[view] = (uint32_t)(m->p - t->write);
	emit_load(m, RCX, mem_abs(&t->hot.save));
	t->return_miss[view] = (uint32_t)(m->p - t->write);
	emit_load(m, S2, mem_abs(&t->hot.salt[view]));
	emit_not(m, S2);
	emit_lea(m, S2, (struct emit_mem){S1, S2, 0, 1});
	emit_store(m, S2, mem_abs(&t->hot.target));
	look_up_key(m, &t->hot);
}

/* ADD has left the key less `offset`, plus the record's, in S1. */
void tx_emit_landing_miss(struct tx *x, const struct tx_stub *s)
{
	struct emit *m = &x->m;

	emit_patch(s->from, m->p);
	emit_load(m, S2, mem_base(S2, offsetof(struct code_page, key_neg)));
	emit_not(m, S2);
	emit_lea(m, S1, (struct emit_mem){S1, S2, 0, s->offset + 1});
	emit_patch(emit_jmp(m), x->t->write + x->t->return_miss[x->view]);
}
