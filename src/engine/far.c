/*
 * Far transfers: JMP, CALL, RET and IRET in all modes (SDM vol. 3, 5.8 and 7.3; vol. 2, the instructions' own pages).
 * As in exception.c, all checks and memory accesses come before the first register changes.
 */
#include "engine/segment.h"
#include "engine/vme.h"
#include "engine/decode.h"

static uint32_t descriptor_limit(const struct descriptor *d)
{
	struct cpu_segment s;

	segment_set(&s, 0, d);
	return s.limit;
}

/* The target's offset fits its code segment: canonical for 64-bit code, else within the limit. */
static void check_target(struct engine *e, const struct descriptor *d, uint64_t rip)
{
	if (is_long_mode(e) && (d->hi & DESC_L)) {
		if (!is_canonical(rip))
			engine_raise_error(e, EXC_GP, 0);
	} else if (rip > descriptor_limit(d)) {
		engine_raise_error(e, EXC_GP, 0);
	}
}

static void check_code_width(struct engine *e, uint16_t selector, const struct descriptor *d)
{
	if (is_long_mode(e) && (d->hi & (DESC_L | DESC_DB)) == (DESC_L | DESC_DB))
		selector_fault(e, EXC_GP, selector);
}

static void enter_code(struct engine *e, uint16_t selector, struct descriptor *d, unsigned cpl, uint64_t rip)
{
	descriptor_touch(e, d);
	segment_set(&e->cpu->seg[SEG_CS], (uint16_t)((selector & ~3u) | cpl), d);
	e->cpu->gpr[GPR_RIP] = rip;
	engine_update_mode(e);
}

static void read_target(struct engine *e, const struct insn *i, uint16_t *selector, uint64_t *offset)
{
	uint8_t bytes[10];

	*offset = 0;
	if (!(i->flags & INSN_MEM)) {
		*offset = i->opsize == 2 ? (uint16_t)i->imm : (uint32_t)i->imm;
		*selector = (uint16_t)i->disp;
		return;
	}
	linear_read_bytes(e, insn_linear(e, i, i->opsize + 2, ACCESS_READ), bytes, i->opsize + 2, ACCESS_READ);
	memcpy(offset, bytes, i->opsize);
	memcpy(selector, bytes + i->opsize, 2);
}

struct call_gate {
	uint64_t offset;
	uint16_t selector;
	uint8_t params, size; /* size: of a pushed element */
};

static void read_call_gate(struct engine *e, uint16_t selector, const struct descriptor *d, struct call_gate *g)
{
	if (desc_dpl(d) < e->cpl || desc_dpl(d) < (selector & 3u))
		selector_fault(e, EXC_GP, selector);
	if (!(d->hi & DESC_P))
		selector_fault(e, EXC_NP, selector);
	g->selector = (uint16_t)(d->lo >> 16);
	g->offset = (d->lo & 0xffff) | (d->hi & 0xffff0000);
	g->params = d->hi & 31;
	g->size = desc_type(d) == SYS_CALL ? 4 : 2;
	if (g->size == 2)
		g->offset &= 0xffff;
	if (is_long_mode(e)) {
		g->offset |= (uint64_t)descriptor_read_high(e, selector, d) << 32;
		g->size = 8;
		g->params = 0;
	}
}

static void read_gate_target(struct engine *e, const struct call_gate *g, struct descriptor *d)
{
	if (!(g->selector & ~3u))
		engine_raise_error(e, EXC_GP, 0);
	if (!descriptor_read(e, g->selector, d) || !desc_is_code(d) || desc_dpl(d) > e->cpl)
		selector_fault(e, EXC_GP, g->selector);
	if (is_long_mode(e) && (d->hi & (DESC_L | DESC_DB)) != DESC_L)
		selector_fault(e, EXC_GP, g->selector);
	if (!(d->hi & DESC_P))
		selector_fault(e, EXC_NP, g->selector);
}

static void read_direct_target(struct engine *e, uint16_t selector, const struct descriptor *d)
{
	if (desc_is_conforming(d) ? desc_dpl(d) > e->cpl : (selector & 3u) > e->cpl || desc_dpl(d) != e->cpl)
		selector_fault(e, EXC_GP, selector);
	if (!(d->hi & DESC_P))
		selector_fault(e, EXC_NP, selector);
	check_code_width(e, selector, d);
}

/* TSS descriptors and task gates as far targets. */
static void far_task(struct engine *e, uint16_t selector, const struct descriptor *d, enum task_reason why)
{
	if (is_long_mode(e) || desc_dpl(d) < e->cpl || desc_dpl(d) < (selector & 3u))
		selector_fault(e, EXC_GP, selector);
	if (!(d->hi & DESC_P))
		selector_fault(e, EXC_NP, selector);
	task_switch(e, desc_type(d) == SYS_TASK_GATE ? (uint16_t)(d->lo >> 16) : selector, why, false, 0);
}

static bool is_task_target(const struct descriptor *d)
{
	unsigned type = desc_type(d);

	return type == SYS_TASK_GATE || type == SYS_TSS || type == SYS_TSS16;
}

static bool is_call_gate(const struct engine *e, const struct descriptor *d)
{
	return desc_type(d) == SYS_CALL || (desc_type(d) == SYS_CALL16 && !is_long_mode(e));
}

void op_far_jump(struct engine *e, const struct insn *i)
{
	struct descriptor d;
	uint16_t selector;
	uint64_t offset;

	read_target(e, i, &selector, &offset);
	if (is_real_or_v86(e)) {
		if (offset > e->cpu->seg[SEG_CS].limit)
			engine_raise_error(e, EXC_GP, 0);
		segment_set_paragraph(e, SEG_CS, selector);
		e->cpu->gpr[GPR_RIP] = offset;
		engine_update_mode(e);
		return;
	}
	if (!(selector & ~3u))
		engine_raise_error(e, EXC_GP, 0);
	if (!descriptor_read(e, selector, &d))
		selector_fault(e, EXC_GP, selector);
	if (desc_is_code(&d)) {
		read_direct_target(e, selector, &d);
		check_target(e, &d, offset);
		enter_code(e, selector, &d, e->cpl, offset);
	} else if (!(d.hi & DESC_S) && is_call_gate(e, &d)) {
		struct call_gate g;

		read_call_gate(e, selector, &d, &g);
		read_gate_target(e, &g, &d);
		if (!desc_is_conforming(&d) && desc_dpl(&d) != e->cpl)
			selector_fault(e, EXC_GP, g.selector);
		check_target(e, &d, g.offset);
		enter_code(e, g.selector, &d, e->cpl, g.offset);
	} else if (!(d.hi & DESC_S) && is_task_target(&d)) {
		far_task(e, selector, &d, TASK_JMP);
	} else {
		selector_fault(e, EXC_GP, selector);
	}
}

static void push_return(struct engine *e, struct new_stack *s, unsigned size)
{
	new_stack_push(e, s, size, e->cpu->seg[SEG_CS].selector);
	new_stack_push(e, s, size, e->cpu->gpr[GPR_RIP]);
}

static void current_stack(struct engine *e, struct new_stack *s)
{
	*s = (struct new_stack){ .ss = e->mode == MODE_64 ? NULL : &e->cpu->seg[SEG_SS], .sp = e->cpu->gpr[GPR_RSP] };
}

static void call_inner(struct engine *e, const struct call_gate *g, struct descriptor *d)
{
	struct cpu_state *cpu = e->cpu;
	unsigned cpl = desc_dpl(d);
	struct cpu_segment ss;
	struct new_stack s = { .access = ACCESS_SYSTEM };
	struct descriptor ss_d;
	uint64_t params[32];

	check_target(e, d, g->offset);
	for (unsigned n = 0; n < g->params; n++)
		params[n] = stack_peek(e, n * g->size, g->size);
	if (is_long_mode(e)) {
		segment_set_null(&ss, (uint16_t)cpl, cpl);
		s.sp = stack_from_tss64(e, cpl);
	} else {
		stack_from_tss(e, cpl, &ss, &s.sp, &ss_d);
		s.ss = &ss;
		s.error = ss.selector;
	}
	new_stack_push(e, &s, g->size, cpu->seg[SEG_SS].selector);
	new_stack_push(e, &s, g->size, cpu->gpr[GPR_RSP]);
	for (unsigned n = g->params; n-- > 0;)
		new_stack_push(e, &s, g->size, params[n]);
	push_return(e, &s, g->size);
	cpu->seg[SEG_SS] = ss;
	enter_code(e, g->selector, d, cpl, g->offset);
	stack_pointer_set(e, s.sp);
}

void op_far_call(struct engine *e, const struct insn *i)
{
	struct descriptor d;
	struct new_stack s;
	uint16_t selector;
	uint64_t offset;

	read_target(e, i, &selector, &offset);
	current_stack(e, &s);
	if (is_real_or_v86(e)) {
		if (offset > e->cpu->seg[SEG_CS].limit)
			engine_raise_error(e, EXC_GP, 0);
		push_return(e, &s, i->opsize);
		stack_pointer_set(e, s.sp);
		segment_set_paragraph(e, SEG_CS, selector);
		e->cpu->gpr[GPR_RIP] = offset;
		engine_update_mode(e);
		return;
	}
	if (!(selector & ~3u))
		engine_raise_error(e, EXC_GP, 0);
	if (!descriptor_read(e, selector, &d))
		selector_fault(e, EXC_GP, selector);
	if (desc_is_code(&d)) {
		read_direct_target(e, selector, &d);
		check_target(e, &d, offset);
		push_return(e, &s, i->opsize);
		stack_pointer_set(e, s.sp);
		enter_code(e, selector, &d, e->cpl, offset);
	} else if (!(d.hi & DESC_S) && is_call_gate(e, &d)) {
		struct call_gate g;

		read_call_gate(e, selector, &d, &g);
		read_gate_target(e, &g, &d);
		if (!desc_is_conforming(&d) && desc_dpl(&d) < e->cpl) {
			call_inner(e, &g, &d);
			return;
		}
		check_target(e, &d, g.offset);
		push_return(e, &s, g.size);
		stack_pointer_set(e, s.sp);
		enter_code(e, g.selector, &d, e->cpl, g.offset);
	} else if (!(d.hi & DESC_S) && is_task_target(&d)) {
		far_task(e, selector, &d, TASK_CALL);
	} else {
		selector_fault(e, EXC_GP, selector);
	}
}

/* The code segment that RET or IRET goes back to; the new CPL is the selector's RPL. */
static void read_return_segment(struct engine *e, uint16_t selector, struct descriptor *d)
{
	unsigned rpl = selector & 3;

	if (!(selector & ~3u))
		engine_raise_error(e, EXC_GP, 0);
	if (!descriptor_read(e, selector, d) || !desc_is_code(d) || rpl < e->cpl)
		selector_fault(e, EXC_GP, selector);
	if (desc_is_conforming(d) ? desc_dpl(d) > rpl : desc_dpl(d) != rpl)
		selector_fault(e, EXC_GP, selector);
	if (!(d->hi & DESC_P))
		selector_fault(e, EXC_NP, selector);
	check_code_width(e, selector, d);
}

/* The stack segment of an outer level; a null one is allowed for 64-bit code below CPL 3. */
static void read_return_stack(struct engine *e, uint16_t selector, unsigned cpl, bool to_64, struct cpu_segment *ss)
{
	struct descriptor d;

	if (!(selector & ~3u)) {
		if (!to_64 || cpl == 3 || (selector & 3u) != cpl)
			engine_raise_error(e, EXC_GP, 0);
		segment_set_null(ss, selector, cpl);
		return;
	}
	if (!descriptor_read(e, selector, &d) || (selector & 3u) != cpl || desc_dpl(&d) != cpl || !desc_is_writable_data(&d))
		selector_fault(e, EXC_GP, selector);
	if (!(d.hi & DESC_P))
		selector_fault(e, EXC_SS, selector);
	descriptor_touch(e, &d);
	segment_set(ss, selector, &d);
}

void op_far_return(struct engine *e, const struct insn *i)
{
	unsigned size = i->opsize, extra = (unsigned)(i->imm & 0xffff), cpl;
	uint64_t rip = stack_peek(e, 0, size), rsp;
	uint16_t selector = (uint16_t)stack_peek(e, size, size), ss_selector;
	struct descriptor d;
	struct cpu_segment ss;

	if (is_real_or_v86(e)) {
		if (rip > e->cpu->seg[SEG_CS].limit)
			engine_raise_error(e, EXC_GP, 0);
		stack_move(e, 2 * size + extra);
		segment_set_paragraph(e, SEG_CS, selector);
		e->cpu->gpr[GPR_RIP] = rip;
		engine_update_mode(e);
		return;
	}
	read_return_segment(e, selector, &d);
	check_target(e, &d, rip);
	cpl = selector & 3;
	if (cpl == e->cpl) {
		stack_move(e, 2 * size + extra);
		enter_code(e, selector, &d, cpl, rip);
		return;
	}
	rsp = stack_peek(e, 2 * size + extra, size);
	ss_selector = (uint16_t)stack_peek(e, 3 * size + extra, size);
	read_return_stack(e, ss_selector, cpl, is_long_mode(e) && (d.hi & DESC_L), &ss);
	e->cpu->seg[SEG_SS] = ss;
	enter_code(e, selector, &d, cpl, rip);
	stack_pointer_set(e, rsp + extra);
	segment_drop_privileged(e, cpl);
}

/* --- IRET --- */

#define FLAGS_POPPED (FLAGS_STATUS | FLAG_TF | FLAG_DF | FLAG_NT)

static void set_flags(struct engine *e, uint64_t image, unsigned size, unsigned cpl)
{
	uint64_t mask = FLAGS_POPPED, iopl = (e->cpu->rflags & FLAG_IOPL) >> FLAG_IOPL_SHIFT;

	if (size > 2)
		mask |= FLAG_RF | FLAG_AC | FLAG_ID;
	if (cpl <= iopl)
		mask |= FLAG_IF;
	if (cpl == 0) {
		mask |= FLAG_IOPL;
		if (size > 2 && !is_real_or_v86(e))
			mask |= FLAG_VIF | FLAG_VIP;
	}
	e->cpu->rflags = (e->cpu->rflags & ~mask) | (image & mask) | FLAG_FIXED;
}

/* The mode is up to date already. An interrupt that waited for IF alone has left attention set. */
static void iret_done(struct engine *e)
{
	if (!e->cpu->nmi_blocked)
		return;
	e->cpu->nmi_blocked = 0;
	e->attention = true;
	e->leave_block = true;
}

static void iret_real(struct engine *e, unsigned size)
{
	bool v86 = (e->cpu->rflags & FLAG_VM) != 0, vme = vme_takes_flags(e, size);
	uint64_t rip, image;
	uint16_t selector;

	if (v86 && !vme && (e->cpu->rflags & FLAG_IOPL) != FLAG_IOPL)
		engine_raise_error(e, EXC_GP, 0);
	rip = stack_peek(e, 0, size);
	selector = (uint16_t)stack_peek(e, size, size);
	image = stack_peek(e, 2 * size, size);
	if (rip > e->cpu->seg[SEG_CS].limit)
		engine_raise_error(e, EXC_GP, 0);
	if (vme)
		vme_check_flags(e, image);
	stack_move(e, 3 * size);
	segment_set_paragraph(e, SEG_CS, selector);
	e->cpu->gpr[GPR_RIP] = rip;
	if (v86)
		image = (image & ~FLAG_IOPL) | FLAG_IOPL;
	if (vme)
		vme_set_flags(e, image);
	else
		set_flags(e, image, size, 0);
	engine_update_mode(e);
	iret_done(e);
}

static void iret_to_v86(struct engine *e, uint64_t rip, uint16_t selector, uint64_t image)
{
	static const uint8_t order[] = { SEG_SS, SEG_ES, SEG_DS, SEG_FS, SEG_GS };
	uint64_t words[6];

	for (unsigned n = 0; n < 6; n++)
		words[n] = stack_peek(e, 12 + n * 4, 4);
	e->cpu->rflags = (image & 0x3f7fd5) | FLAG_FIXED | FLAG_VM;
	segment_set_paragraph(e, SEG_CS, selector);
	for (unsigned n = 0; n < 5; n++)
		segment_set_paragraph(e, order[n], (uint16_t)words[n + 1]);
	e->cpu->gpr[GPR_RSP] = (uint32_t)words[0];
	e->cpu->gpr[GPR_RIP] = rip & 0xffff;
	engine_update_mode(e);
	iret_done(e);
}

static void iret_protected(struct engine *e, unsigned size)
{
	uint64_t rip = stack_peek(e, 0, size), image = stack_peek(e, 2 * size, size), rsp = 0;
	uint16_t selector = (uint16_t)stack_peek(e, size, size);
	struct cpu_segment ss = e->cpu->seg[SEG_SS];
	bool from_64 = e->mode == MODE_64, outer;
	unsigned cpl = selector & 3, old_cpl = e->cpl;
	struct descriptor d;

	if (!is_long_mode(e) && size == 4 && (image & FLAG_VM) && old_cpl == 0) {
		iret_to_v86(e, rip, selector, image);
		return;
	}
	read_return_segment(e, selector, &d);
	check_target(e, &d, rip);
	outer = cpl != old_cpl;
	if (outer || from_64) {
		uint16_t ss_selector = (uint16_t)stack_peek(e, 4 * size, size);

		rsp = stack_peek(e, 3 * size, size);
		read_return_stack(e, ss_selector, cpl, is_long_mode(e) && (d.hi & DESC_L), &ss);
	}
	descriptor_touch(e, &d);
	if (outer || from_64)
		e->cpu->seg[SEG_SS] = ss;
	else
		stack_move(e, 3 * size);
	set_flags(e, image, size, old_cpl);
	enter_code(e, selector, &d, cpl, rip);
	if (outer || from_64)
		stack_pointer_set(e, rsp);
	if (outer)
		segment_drop_privileged(e, cpl);
	iret_done(e);
}

void op_iret(struct engine *e, const struct insn *i)
{
	unsigned size = i->mnemonic == ZYDIS_MNEMONIC_IRETQ ? 8 : i->mnemonic == ZYDIS_MNEMONIC_IRETD ? 4 : 2;

	e->stats->emul_iret++;
	if (is_real_or_v86(e)) {
		iret_real(e, size);
	} else if (e->cpu->rflags & FLAG_NT) {
		uint16_t link;

		if (is_long_mode(e))
			engine_raise_error(e, EXC_GP, 0);
		link = (uint16_t)linear_read(e, (uint32_t)e->cpu->tr.base, 2, ACCESS_SYSTEM);
		task_switch(e, link, TASK_IRET, false, 0);
		iret_done(e);
	} else {
		iret_protected(e, size);
	}
}
