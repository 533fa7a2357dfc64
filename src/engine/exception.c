/*
 * Delivery of exceptions and interrupts (SDM vol. 3, chapter 6): real-mode vectors, gates of legacy protected mode, with
 * V86 and task gates, and long mode with IST.
 *
 * Everything is checked and written to the new stack before the first register changes, so a fault inside leaves the
 * interrupted state for whatever is delivered instead.
 */
#include "engine/segment.h"

void new_stack_push(struct engine *e, struct new_stack *s, unsigned size, uint64_t value)
{
	uint64_t offset = s->sp - size, gva;

	if (!s->ss) {
		if (!is_canonical(offset))
			engine_raise_error(e, EXC_SS, e->delivering);
		gva = offset;
	} else {
		bool big = (s->ss->ar & SEG_AR_DB) != 0;
		uint64_t top = big ? 0xffffffffull : 0xffffull, last;
		bool down = (e->cpu->cr0 & CR0_PE) && (s->ss->ar & 0xc) == 4;

		offset &= top;
		last = offset + size - 1;
		if (down ? offset <= s->ss->limit || last > top : last > s->ss->limit)
			selector_fault(e, EXC_SS, s->error);
		gva = (uint32_t)(s->ss->base + offset);
	}
	linear_write(e, gva, size, value, ACCESS_WRITE | s->access);
	s->sp = offset;
}

void stack_from_tss(struct engine *e, unsigned cpl, struct cpu_segment *ss, uint64_t *sp, struct descriptor *d)
{
	const struct cpu_segment *tr = &e->cpu->tr;
	bool wide = (tr->ar & 8) != 0;
	unsigned offset = wide ? 4 + cpl * 8 : 2 + cpl * 4, size = wide ? 4 : 2;
	uint16_t selector;

	if (offset + size + 1 > tr->limit)
		selector_fault(e, EXC_TS, tr->selector);
	*sp = linear_read(e, (uint32_t)(tr->base + offset), size, ACCESS_SYSTEM);
	selector = (uint16_t)linear_read(e, (uint32_t)(tr->base + offset + size), 2, ACCESS_SYSTEM);
	if (!(selector & ~3u))
		engine_raise_error(e, EXC_TS, e->delivering);
	if (!descriptor_read(e, selector, d) || (selector & 3u) != cpl || desc_dpl(d) != cpl || !desc_is_writable_data(d))
		selector_fault(e, EXC_TS, selector);
	if (!(d->hi & DESC_P))
		selector_fault(e, EXC_SS, selector);
	descriptor_touch(e, d);
	segment_set(ss, selector, d);
}

uint64_t stack_from_tss64(struct engine *e, unsigned which)
{
	const struct cpu_segment *tr = &e->cpu->tr;
	/* RSP0..2 at 4, 12, 20; IST1..7 at 36, 44, … */
	unsigned offset = which < 3 ? 4 + which * 8 : 36 + (which - 4) * 8;

	if (offset + 7 > tr->limit)
		selector_fault(e, EXC_TS, tr->selector);
	return linear_read(e, tr->base + offset, 8, ACCESS_SYSTEM);
}

void stack_pointer_set(struct engine *e, uint64_t value)
{
	uint64_t *rsp = &e->cpu->gpr[GPR_RSP];

	if (e->mode == MODE_64)
		*rsp = value;
	else if (e->cpu->seg[SEG_SS].ar & SEG_AR_DB)
		*rsp = (uint32_t)value;
	else
		*rsp = (*rsp & ~0xffffull) | (uint16_t)value;
}

static void deliver_real(struct engine *e, uint8_t vector)
{
	struct cpu_state *cpu = e->cpu;
	struct new_stack s = { .ss = &cpu->seg[SEG_SS], .sp = cpu->gpr[GPR_RSP] };
	uint32_t entry;

	if (vector * 4u + 3 > cpu->idtr.limit)
		engine_raise_error(e, EXC_GP, vector * 8u + 2);
	entry = (uint32_t)linear_read(e, (uint32_t)(cpu->idtr.base + vector * 4u), 4, ACCESS_SYSTEM);
	new_stack_push(e, &s, 2, cpu->rflags & 0xffff);
	new_stack_push(e, &s, 2, cpu->seg[SEG_CS].selector);
	new_stack_push(e, &s, 2, cpu->gpr[GPR_RIP]);
	stack_pointer_set(e, s.sp);
	cpu->rflags &= ~(FLAG_IF | FLAG_TF | FLAG_AC | FLAG_RF);
	segment_set_paragraph(e, SEG_CS, (uint16_t)(entry >> 16));
	cpu->gpr[GPR_RIP] = entry & 0xffff;
	engine_update_mode(e);
}

struct gate {
	uint64_t offset;
	uint16_t selector;
	uint8_t type, dpl, ist;
};

static void gate_fault(struct engine *e, uint8_t exception, uint8_t vector) __attribute__((noreturn));
static void gate_fault(struct engine *e, uint8_t exception, uint8_t vector)
{
	engine_raise_error(e, exception, vector * 8u + 2 + e->delivering);
}

static void read_gate(struct engine *e, uint8_t vector, enum delivery how, struct gate *g)
{
	const struct cpu_table *idtr = &e->cpu->idtr;
	bool wide = is_long_mode(e);
	uint64_t low, high = 0;
	unsigned size = wide ? 16 : 8;
	bool valid;

	if (vector * size + size - 1 > idtr->limit)
		gate_fault(e, EXC_GP, vector);
	if (wide) {
		low = linear_read(e, idtr->base + vector * 16u, 8, ACCESS_SYSTEM);
		high = linear_read(e, idtr->base + vector * 16u + 8, 8, ACCESS_SYSTEM);
	} else {
		low = linear_read(e, (uint32_t)(idtr->base + vector * 8u), 8, ACCESS_SYSTEM);
	}
	g->selector = (uint16_t)(low >> 16);
	g->offset = (low & 0xffff) | (low >> 48) << 16 | high << 32;
	g->type = low >> 40 & 31;
	g->dpl = low >> 45 & 3;
	g->ist = wide ? low >> 32 & 7 : 0;
	valid = g->type == SYS_INT || g->type == SYS_TRAP ||
		(!wide && (g->type == SYS_INT16 || g->type == SYS_TRAP16 || g->type == SYS_TASK_GATE));
	if (!valid)
		gate_fault(e, EXC_GP, vector);
	if (how == DELIVER_SOFTWARE && g->dpl < e->cpl)
		gate_fault(e, EXC_GP, vector);
	if (!(low >> 47 & 1))
		gate_fault(e, EXC_NP, vector);
	if (g->type == SYS_INT16 || g->type == SYS_TRAP16)
		g->offset &= 0xffff;
}

/* The handler's code segment; returns the new CPL. */
static unsigned read_handler_segment(struct engine *e, const struct gate *g, struct descriptor *d)
{
	if (!(g->selector & ~3u))
		engine_raise_error(e, EXC_GP, e->delivering);
	if (!descriptor_read(e, g->selector, d) || !desc_is_code(d) || desc_dpl(d) > e->cpl)
		selector_fault(e, EXC_GP, g->selector);
	if (is_long_mode(e) && (d->hi & (DESC_L | DESC_DB)) != DESC_L)
		selector_fault(e, EXC_GP, g->selector);
	if (!(d->hi & DESC_P))
		selector_fault(e, EXC_NP, g->selector);
	return desc_is_conforming(d) ? e->cpl : desc_dpl(d);
}

static uint64_t flags_image(const struct engine *e, uint8_t vector, enum delivery how)
{
	uint64_t image = e->cpu->rflags;

	if (how == DELIVER_FAULT && vector != EXC_DB)
		image |= FLAG_RF;
	return image;
}

static void enter_handler(struct engine *e, const struct gate *g, struct descriptor *d, unsigned cpl)
{
	struct cpu_state *cpu = e->cpu;

	segment_set(&cpu->seg[SEG_CS], (uint16_t)((g->selector & ~3u) | cpl), d);
	cpu->gpr[GPR_RIP] = g->offset;
	cpu->rflags &= ~(FLAG_TF | FLAG_NT | FLAG_RF | FLAG_VM);
	if (g->type == SYS_INT || g->type == SYS_INT16)
		cpu->rflags &= ~FLAG_IF;
}

static void deliver_long(struct engine *e, uint8_t vector, enum delivery how, bool has_error, uint32_t error)
{
	struct cpu_state *cpu = e->cpu;
	struct descriptor d;
	struct gate g;
	uint64_t frame[6], rsp = cpu->gpr[GPR_RSP];
	unsigned cpl, count = 0;

	read_gate(e, vector, how, &g);
	cpl = read_handler_segment(e, &g, &d);
	if (!is_canonical(g.offset))
		engine_raise_error(e, EXC_GP, e->delivering);
	if (g.ist)
		rsp = stack_from_tss64(e, 3u + g.ist);
	else if (cpl != e->cpl)
		rsp = stack_from_tss64(e, cpl);
	rsp &= ~0xfull;
	if (has_error)
		frame[count++] = error;
	frame[count++] = cpu->gpr[GPR_RIP];
	frame[count++] = cpu->seg[SEG_CS].selector;
	frame[count++] = flags_image(e, vector, how);
	frame[count++] = cpu->gpr[GPR_RSP];
	frame[count++] = cpu->seg[SEG_SS].selector;
	rsp -= count * 8;
	if (!is_canonical(rsp) || !is_canonical(rsp + count * 8 - 1))
		engine_raise_error(e, EXC_SS, e->delivering);
	linear_write_bytes(e, rsp, frame, count * 8, ACCESS_WRITE | (cpl == 3 ? 0 : ACCESS_SYSTEM));
	descriptor_touch(e, &d);

	if (cpl != e->cpl)
		segment_set_null(&cpu->seg[SEG_SS], (uint16_t)cpl, cpl);
	cpu->gpr[GPR_RSP] = rsp;
	enter_handler(e, &g, &d, cpl);
	engine_update_mode(e);
}

static void deliver_protected(struct engine *e, uint8_t vector, enum delivery how, bool has_error, uint32_t error)
{
	static const uint8_t order[] = { SEG_GS, SEG_FS, SEG_DS, SEG_ES };
	struct cpu_state *cpu = e->cpu;
	bool v86 = (cpu->rflags & FLAG_VM) != 0;
	struct descriptor d, ss_d;
	struct cpu_segment ss = cpu->seg[SEG_SS];
	struct new_stack s = { .ss = &ss, .sp = cpu->gpr[GPR_RSP] };
	struct gate g;
	unsigned cpl, size;

	read_gate(e, vector, how, &g);
	if (g.type == SYS_TASK_GATE) {
		task_switch(e, g.selector, TASK_INT, has_error, error);
		return;
	}
	size = g.type >= SYS_INT ? 4 : 2;
	cpl = read_handler_segment(e, &g, &d);
	if (v86 && cpl != 0)
		selector_fault(e, EXC_GP, g.selector);
	s.access = cpl == 3 ? 0 : ACCESS_SYSTEM;
	if (cpl != e->cpl) {
		stack_from_tss(e, cpl, &ss, &s.sp, &ss_d);
		s.error = ss.selector;
		if (v86)
			for (unsigned n = 0; n < 4; n++)
				new_stack_push(e, &s, size, cpu->seg[order[n]].selector);
		new_stack_push(e, &s, size, cpu->seg[SEG_SS].selector);
		new_stack_push(e, &s, size, cpu->gpr[GPR_RSP]);
	}
	new_stack_push(e, &s, size, flags_image(e, vector, how));
	new_stack_push(e, &s, size, cpu->seg[SEG_CS].selector);
	new_stack_push(e, &s, size, cpu->gpr[GPR_RIP]);
	if (has_error)
		new_stack_push(e, &s, size, error);
	if (g.offset > (((d.lo & 0xffff) | (d.hi & 0xf0000)) << (d.hi >> 23 & 1 ? 12 : 0) | (d.hi >> 23 & 1 ? 0xfff : 0)))
		engine_raise_error(e, EXC_GP, e->delivering);
	descriptor_touch(e, &d);

	if (v86)
		for (unsigned n = 0; n < 4; n++)
			segment_set_null(&cpu->seg[order[n]], 0, 0);
	cpu->seg[SEG_SS] = ss;
	enter_handler(e, &g, &d, cpl);
	engine_update_mode(e);
	stack_pointer_set(e, s.sp);
}

void exception_deliver(struct engine *e, uint8_t vector, enum delivery how, bool has_error, uint32_t error)
{
	if (how == DELIVER_SOFTWARE) {
		e->stats->interrupts_software++;
		e->stepping = false;
	}
	if (!(e->cpu->cr0 & CR0_PE))
		deliver_real(e, vector);
	else if (is_long_mode(e))
		deliver_long(e, vector, how, has_error, error);
	else
		deliver_protected(e, vector, how, has_error, error);
}
