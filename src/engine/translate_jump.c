/*
 * Branches that leave the page, as emitted code. What they look up, and how long it is true: jump_cache.c. The status flags
 * may be live at any branch, so that all comparisons are made with LEA and JRCXZ.
 */
#include <assert.h>

#include "engine/translate.h"

/* The target is in S1 and in hot.target. Destroys S2. */
static void look_up_target(struct emit *m, struct hot *h, unsigned salt)
{
	emit_load(m, S2, mem_abs(&h->salt[salt]));
	emit_lea(m, S1, (struct emit_mem){S1, S2, 0, 0});
	emit_bytes(m, "\x45\x0f\xb7\xda", 4); /* movzwl %r10w, %r11d */
	emit_group5(m, GROUP5_JMP, mem_table(&h->jumps[0], S2));
}

void tx_jump(struct tx *x, int offset, int undo, bool polls)
{
	struct hot *h = &x->t->hot;

	emit_store(&x->m, S1, mem_abs(&h->target));
	if (polls) {
		tx_map(x, MAP_TARGET, true);
		tx_poll(x, S2);
	}
	emit_store_imm(&x->m, &h->exit_site, tx_site(x, SITE_TARGET, offset, undo));
	look_up_target(&x->m, h, x->view + (x->mode32 ? SHADOW_VIEWS : 0));
}

/* --- direct --- */

/*
 *	mov  %rcx, %r10
 *	mov  hot.code, %ecx
 *	lea  -from(%rcx), %ecx	from: the record of the page that it was found from; 0, and never equal, until then
 *	jrcxz hit
 *	mov  %r10, %rcx
 *	jmp  stub
 * hit:	mov  %r10, %rcx
 *	movq $to, hot.code
 *	jmp  target
 */
void tx_jump_far(struct tx *x, int offset, int32_t target, int undo)
{
	struct emit *m = &x->m;
	struct tx_stub *stub;
	uint8_t *hit, *from, *branch;
	uint32_t id = tx_site(x, SITE_FAR, offset, undo);

	tx_clobber(x, SCRATCH(S1));
	emit_move(m, S1, RCX);
	emit8(m, 0x8b);
	emit_modrm_mem(m, RCX, mem_abs(&x->t->hot.code));
	emit_bytes(m, "\x8d\x89", 2);
	from = m->p;
	emit32(m, 0);
	hit = emit_jrcxz(m);
	emit_move(m, RCX, S1);
	tx_stub(x, emit_jmp(m), STUB_FAR, id);
	stub = &x->pool->stubs[x->stub_count - 1];
	stub->offset = target;
	emit_patch8(hit, m->p);
	emit_move(m, RCX, S1);
	emit_store_imm64(m, &x->t->hot.code, 0);
	branch = emit_jmp(m);
	assert(branch - from == FAR_FROM && m->p - 4 == branch);
	x->t->sites[id].patch = (uint32_t)(branch - x->t->write);
}

void tx_emit_far(struct tx *x, const struct tx_stub *s)
{
	struct hot *h = &x->t->hot;

	emit_patch(s->from, x->m.p);
	tx_page_address(x, S1, s->offset);
	emit_store(&x->m, S1, mem_abs(&h->target));
	emit_store_imm(&x->m, &h->exit_site, s->site);
	look_up_target(&x->m, h, x->view + (x->mode32 ? SHADOW_VIEWS : 0));
}

/* --- calls and returns --- */

void tx_leave_return(struct tx *x, int next)
{
	struct emit *m = &x->m;
	struct hot *h = &x->t->hot;
	const int address = S1, entry = S2;

	/* What follows must be a block of this page. */
	if (next > 4096 - 15)
		return;
	tx_clobber(x, SCRATCH(S1) | SCRATCH(S2));
	emit_load(m, entry, mem_abs(&h->returns[x->view]));
	emit_lea(m, entry, mem_base(entry, -(int)sizeof(struct return_entry)));
	emit8(m, 0x49); /* not */
	emit8(m, 0xf7);
	emit8(m, 0xd0 | (unsigned)(address & 7));
	emit_store(m, address, mem_base(entry, offsetof(struct return_entry, complement)));
	emit8(m, 0x49); /* movq $imm32 */
	emit8(m, 0xc7);
	emit_modrm_mem(m, 0, mem_base(entry, offsetof(struct return_entry, host)));
	emit32(m, 0);
	tx_stub(x, m->p - 4, STUB_SITE, tx_site(x, SITE_RETURN, next, 0));
	emit_load(m, address, mem_abs(&h->code));
	emit_store(m, address, mem_base(entry, offsetof(struct return_entry, page)));
	emit_store(m, entry, mem_abs(&h->returns[x->view]));
}

/* The entry in S2 has the return's address, RCX is in hot.save: it goes there. */
static void take_return(struct emit *m, struct hot *h, unsigned view)
{
	emit_load(m, RCX, mem_abs(&h->save));
	emit_load(m, S1, mem_base(S2, offsetof(struct return_entry, page)));
	emit_store(m, S1, mem_abs(&h->code));
	emit_lea(m, S1, mem_base(S2, sizeof(struct return_entry)));
	emit_store(m, S1, mem_abs(&h->returns[view]));
	emit_group5(m, GROUP5_JMP, mem_base(S2, offsetof(struct return_entry, host)));
}

/* RCX = 0 if the address in S1 is that of the entry. */
static void compare_return(struct emit *m, unsigned entry)
{
	emit_load(m, RCX, mem_base(S2, (int)(entry * sizeof(struct return_entry))));
	emit_lea(m, RCX, (struct emit_mem){RCX, S1, 0, 1});
}

void tx_return(struct tx *x, int offset, int undo)
{
	struct emit *m = &x->m;
	struct hot *h = &x->t->hot;
	uint8_t *hit;

	tx_clobber(x, SCRATCH(S2));
	emit_load(m, S2, mem_abs(&h->returns[x->view]));
	emit_store(m, RCX, mem_abs(&h->save));
	compare_return(m, 0);
	hit = emit_jrcxz(m);
	tx_stub(x, emit_jmp(m), STUB_RETURN_MISS, tx_site(x, SITE_TARGET, offset, undo));
	emit_patch8(hit, m->p);
	take_return(m, h, x->view);
}

void tx_emit_return_miss(struct tx *x, const struct tx_stub *s)
{
	struct hot *h = &x->t->hot;

	emit_patch(s->from, x->m.p);
	emit_load(&x->m, RCX, mem_abs(&h->save));
	emit_store(&x->m, S1, mem_abs(&h->target));
	tx_map(x, MAP_TARGET, true);
	tx_poll(x, S1);
	emit_store_imm(&x->m, &h->exit_site, s->site);
	emit_patch(emit_jmp(&x->m), x->t->write + x->t->return_miss[x->view]);
}

/* A call may have been left without its return (a retpoline's, longjmp): the entries below the top are looked at. */
void tx_emit_return_search(struct emit *m, struct translator *t, unsigned view)
{
	struct hot *h = &t->hot;
	uint8_t *hit[RETURNS_DEEP];

	emit_store(m, RCX, mem_abs(&h->save));
	emit_load(m, S1, mem_abs(&h->target));
	emit_load(m, S2, mem_abs(&h->returns[view]));
	for (unsigned n = 1; n < RETURNS_DEEP; n++) {
		compare_return(m, n);
		hit[n] = emit_jrcxz(m);
	}
	emit_load(m, RCX, mem_abs(&h->save));
	look_up_target(m, h, view);
	for (unsigned n = 1; n < RETURNS_DEEP; n++) {
		emit_patch8(hit[n], m->p);
		emit_lea(m, S2, mem_base(S2, (int)(n * sizeof(struct return_entry))));
		take_return(m, h, view);
	}
}
