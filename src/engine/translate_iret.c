/*
 * IRETQ from 64-bit code at CPL 0 to 64-bit code at CPL 0 or 3, as an operating system returns from its exceptions and interrupts. Two
 * ways are foreseen: back into the kernel, to the code segment that it was translated in, and to programs, to the segments to which SYSRET
 * leads. What their descriptors were then is part of the code; those that the guest has now are read each time, as by the interpreter, and
 * must be the same. It also goes there if anything else is not as usual:
 *
 *   NT, an NMI is blocked            RFLAGS differ in more than status flags, IF and RF, or have AC
 *   RIP is not canonical             another selector, descriptor, or the table's limit
 *   to CPL 3: ES, DS, FS or GS would have to be made null
 *   an event, or an interrupt that may have been held back: a poll that finds one costs a signal, and behind an interrupt C has always to look
 *
 * Behind a page fault it goes there, too: the instruction that has faulted would fault again in translated code, whose memory does not have the
 * page yet, by a signal and a fill, which are dearer than an exit.
 *
 * All of the frame and of the descriptors is read before anything changes. The status flags are dead here: IRET writes them all.
 *
 * RF of the frame counts for whoever interrupts before the next instruction. Nobody does, and no breakpoint is armed, so it is left out.
 */
#include <assert.h>

#include "engine/segment.h"
#include "engine/translate.h"

#define NULL_SEGMENT ((uint64_t)SEG_AR_UNUSABLE << 32) /* selector and access rights */
#define CODE_TYPE (DESC_P | DESC_S | DESC_CODE | 1u << 8)
#define DATA_TYPE (DESC_P | DESC_S | DESC_RW | 1u << 8)
#define FAILS 48u

struct place {
	uint16_t selector;
	uint64_t raw; /* the descriptor, with its accessed bit */
	struct cpu_segment segment;
};

struct way {
	bool possible;
	unsigned view;
	struct place cs, ss;
};

struct iret {
	struct tx *x;
	const struct tx_insn *i;
	uint8_t *fail[FAILS]; /* branches to the interpreter */
	unsigned fails;
};

/* --- what is foreseen --- */

static bool is_foreseen_type(uint32_t hi, bool is_code, unsigned cpl)
{
	uint32_t fixed = is_code ? 0xfd00u | DESC_L | DESC_DB : 0xfb00u; /* P, DPL, S, type: but for R of code and E of data */

	return (hi & fixed) == ((is_code ? CODE_TYPE | DESC_L : DATA_TYPE) | cpl << 13);
}

/* The descriptor that the guest has now, if it is of the right type, else as they usually are. */
static void place_find(struct engine *e, struct place *p, uint16_t selector, bool is_code, unsigned cpl)
{
	uint64_t gpa = mmu_translate(e, e->cpu->gdtr.base + (selector & ~7u));
	uint64_t at = gpa == ~0ull || (gpa & 0xfff) > 4088 ? ~0ull : ram_offset(e, gpa, NULL);
	struct descriptor d;

	p->selector = selector;
	p->raw = at == ~0ull ? 0 : host_load((uint64_t)(uintptr_t)e->ram + at, 8);
	if (!is_foreseen_type((uint32_t)(p->raw >> 32), is_code, cpl))
		p->raw = (is_code ? 0x00af9b000000ffffull : 0x00cf93000000ffffull) | (uint64_t)cpl << 45;
	d = (struct descriptor){ .lo = (uint32_t)p->raw, .hi = (uint32_t)(p->raw >> 32) };
	segment_set(&p->segment, selector, &d);
}

static void way_find(struct engine *e, struct way *w, unsigned view, uint16_t cs, uint16_t ss)
{
	unsigned cpl = view == SHADOW_USER ? 3 : 0;

	w->view = view;
	w->possible = (cs & ~3u) && (ss & ~3u) && !((cs | ss) & 4) && (cs & 3u) == cpl && (ss & 3u) == cpl;
	if (!w->possible)
		return;
	place_find(e, &w->cs, cs, true, cpl);
	place_find(e, &w->ss, ss, false, cpl);
}

/* --- pieces --- */

static void fail_if(struct iret *r, unsigned cc)
{
	assert(r->fails < FAILS);
	r->fail[r->fails++] = emit_jcc(&r->x->m, cc);
}

#define CC_B 2u
#define CC_E 4u
#define CC_NE 5u

static const uint64_t *frame_word(const struct iret *r, unsigned n)
{
	return &r->x->t->hot.iret_frame[n];
}

static void load_word(struct iret *r, int reg, unsigned n)
{
	emit_load(&r->x->m, reg, mem_abs(frame_word(r, n)));
}

/* movzwl: a selector of the frame; to S1 or S2 */
static void load_selector(struct iret *r, int reg, unsigned n)
{
	struct emit *m = &r->x->m;

	emit_bytes(m, "\x44\x0f\xb7", 3);
	emit_modrm_mem(m, reg, mem_abs(frame_word(r, n)));
}

static void test_imm(struct emit *m, int reg, uint32_t imm)
{
	emit8(m, 0x41); /* test $imm, %r10d or %r11d */
	emit8(m, 0xf7);
	emit8(m, 0xc0 | (unsigned)(reg & 7));
	emit32(m, imm);
}

/* The descriptor is the one foreseen; the table's place is in S1. Destroys S2. */
static void check_descriptor(struct iret *r, const struct place *p)
{
	struct emit *m = &r->x->m;

	emit_imm64(m, S2, p->raw);
	emit_op_mem(m, 0x3b, S2, mem_base(S1, p->selector & ~7));
	fail_if(r, CC_NE);
}

/* S1 = where the table is; both descriptors lie within its limit. */
static void find_table(struct iret *r, const struct way *w)
{
	struct tx *x = r->x;
	const struct cpu_table *gdtr = &x->e->cpu->gdtr;
	uint16_t high = w->cs.selector > w->ss.selector ? w->cs.selector : w->ss.selector;

	emit_bytes(&x->m, "\x66\x81", 2); /* cmpw $imm, limit */
	emit_modrm_mem(&x->m, 7, mem_abs(&gdtr->limit));
	emit8(&x->m, (high | 7) & 0xff);
	emit8(&x->m, high >> 8);
	fail_if(r, CC_B);
	emit_load(&x->m, S1, mem_abs(&gdtr->base));
	tx_look_up(x, S2, S1);
	emit_lea(&x->m, S1, (struct emit_mem){S1, S2, 0, 0});
}

/* A program may keep them: null ones, and those of DPL 3. */
static void check_data_segments(struct iret *r)
{
	static const uint8_t segs[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};
	struct emit *m = &r->x->m;

	emit_imm64(m, S2, NULL_SEGMENT);
	for (unsigned n = 0; n < 4; n++) {
		const struct cpu_segment *s = &r->x->e->cpu->seg[segs[n]];
		uint8_t *null;

		emit_op_mem(m, 0x3b, S2, mem_abs(s));
		null = emit_jcc(m, CC_E);
		emit_load_low(m, S1, mem_abs(&s->ar));
		emit_bytes(m, "\x41\x81\xe2", 3); /* and $imm, %r10d */
		emit32(m, SEG_AR_UNUSABLE | SEG_AR_DPL);
		emit_cmp_imm(m, S1, SEG_AR_DPL);
		fail_if(r, CC_NE);
		emit_patch(null, m->p);
	}
}

/* All is checked, CS and SS are set. RFLAGS, RSP and RIP are the frame's. */
static void go_back(struct iret *r, unsigned view)
{
	struct tx *x = r->x;
	struct emit *m = &x->m;
	struct hot *h = &x->t->hot;

	tx_count(x, &x->e->stats->emul_iret);
	load_word(r, S1, 2);
	/* In lock step the interpreter's state has RF, too. */
	tx_store_virtual(x, x->e->lockstep ? (uint32_t)FLAG_RF : 0);
	load_word(r, S1, 3);
	tx_enter_view(x, view);
	load_word(r, S1, 0);
	emit_store(m, S1, mem_abs(&h->target));
	load_word(r, S1, 2);
	tx_load_status(x);
	tx_jump_stored(x, r->i->offset, 0, false);
	x->view = SHADOW_SUPERVISOR;
}

static void to_program(struct iret *r, const struct way *w)
{
	struct tx *x = r->x;

	find_table(r, w);
	check_descriptor(r, &w->cs);
	check_descriptor(r, &w->ss);
	load_selector(r, S2, 4);
	emit_cmp_imm(&x->m, S2, w->ss.selector);
	fail_if(r, CC_NE);
	check_data_segments(r);
	tx_store_segment(x, SEG_CS, &w->cs.segment);
	tx_store_segment(x, SEG_SS, &w->ss.segment);
	go_back(r, w->view);
}

/* SS is null in what an exception of a program has interrupted (SDM vol. 3, 7.14.4). */
static void to_kernel(struct iret *r, const struct way *w)
{
	struct tx *x = r->x;
	struct cpu_segment null;
	uint8_t *usual, *set;

	find_table(r, w);
	check_descriptor(r, &w->cs);
	load_selector(r, S2, 4);
	emit_cmp_imm(&x->m, S2, w->ss.selector);
	usual = emit_jcc(&x->m, CC_E);
	emit_cmp_imm(&x->m, S2, 0);
	fail_if(r, CC_NE);
	segment_set_null(&null, 0, 0);
	tx_store_segment(x, SEG_SS, &null);
	set = emit_jmp(&x->m);
	emit_patch(usual, x->m.p);
	check_descriptor(r, &w->ss);
	tx_store_segment(x, SEG_SS, &w->ss.segment);
	emit_patch(set, x->m.p);
	tx_store_segment(x, SEG_CS, &w->cs.segment);
	go_back(r, w->view);
}

/* Its low byte. */
static void fail_unless_zero(struct iret *r, const void *at)
{
	struct emit *m = &r->x->m;

	emit8(m, 0x80); /* cmpb $0, … */
	emit_modrm_mem(m, 7, mem_abs(at));
	emit8(m, 0);
	fail_if(r, CC_NE);
}

static void check_frame(struct iret *r)
{
	struct tx *x = r->x;
	struct emit *m = &x->m;
	uint8_t *masked;

	for (unsigned n = 0; n < 5; n++) {
		emit_load(m, S1, mem_base(RSP, (int)n * 8));
		emit_store(m, S1, mem_abs(frame_word(r, n)));
	}
	fail_unless_zero(r, &x->e->cpu->nmi_blocked);
	emit8(m, 0x83); /* cmpl $0, events */
	emit_modrm_mem(m, 7, mem_abs(&x->e->block->events));
	emit8(m, 0);
	fail_if(r, CC_NE);
	load_word(r, S1, 2);
	tx_check_flags(x, r->i);
	test_imm(m, S1, FLAG_NT | FLAG_AC);
	fail_if(r, CC_NE);
	test_imm(m, S1, FLAG_IF);
	masked = emit_jcc(m, CC_E);
	fail_unless_zero(r, &x->e->attention);
	emit_patch(masked, m->p);
	load_word(r, S1, 0);
	emit_op_mem(m, 0x3b, S1, mem_abs(&x->e->page_fault_rip));
	fail_if(r, CC_E);
	emit_move(m, S2, S1);
	emit_bytes(m, "\x49\xc1\xe3\x10\x49\xc1\xfb\x10", 8); /* shl $16, %r11; sar $16, %r11 */
	emit_op_reg(m, 0x3b, S1, S2);
	fail_if(r, CC_NE);
}

/* STAR is the translation's, as for SYSRET; CS and SS of the kernel are those that it has now, if it runs now. */
bool tx_iret(struct tx *x, const struct tx_insn *i)
{
	const struct cpu_state *c = x->e->cpu;
	uint16_t user = (uint16_t)(c->star >> 48), kernel = c->seg[SEG_CS].selector, stack = c->seg[SEG_SS].selector;
	struct way ways[SHADOW_VIEWS];
	struct iret r = {.x = x, .i = i};
	uint8_t *to_user = NULL;

	if (i->d.insn.operand_width != 64 || i->flags_live)
		return false;
	if (x->e->cpl) {
		kernel = (uint16_t)(c->star >> 32 & 0xfffc);
		stack = 0;
	}
	way_find(x->e, &ways[SHADOW_SUPERVISOR], SHADOW_SUPERVISOR, kernel, stack ? stack : (uint16_t)(kernel + 8));
	way_find(x->e, &ways[SHADOW_USER], SHADOW_USER, user ? (uint16_t)((user + 16) | 3) : 0, (uint16_t)((user + 8) | 3));
	if (!ways[SHADOW_SUPERVISOR].possible)
		return false;
	tx_clobber(x, SCRATCH(S1) | SCRATCH(S2));
	check_frame(&r);
	load_selector(&r, S1, 1);
	if (ways[SHADOW_USER].possible) {
		emit_cmp_imm(&x->m, S1, ways[SHADOW_USER].cs.selector);
		to_user = emit_jcc(&x->m, CC_E);
	}
	emit_cmp_imm(&x->m, S1, kernel);
	fail_if(&r, CC_NE);
	to_kernel(&r, &ways[SHADOW_SUPERVISOR]);
	if (to_user) {
		emit_patch(to_user, x->m.p);
		to_program(&r, &ways[SHADOW_USER]);
	}
	for (unsigned n = 0; n < r.fails; n++)
		emit_patch(r.fail[n], x->m.p);
	tx_stub(x, emit_jmp(&x->m), STUB_SITE, tx_site(x, SITE_INTERP, i->offset, 0));
	x->ended = true;
	return true;
}
