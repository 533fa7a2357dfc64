/*
 * PUSH, POP, PUSHA, POPA, ENTER, LEAVE. Invariant: RSP and the registers change after the last access that may fault.
 * POP to segment registers, PUSHF and POPF are elsewhere.
 */
#include "engine/decode.h"
#include "engine/operand.h"

static void push_reg8(struct engine *e, const struct insn *i)
{
	stack_push64(e, e->cpu->gpr[i->rm]);
}

static void pop_reg8(struct engine *e, const struct insn *i)
{
	e->cpu->gpr[i->rm] = stack_pop64(e);
}

static void push_reg(struct engine *e, const struct insn *i)
{
	stack_push(e, i->opsize, gpr_get(e->cpu, i->rm, i->opsize));
}

static void pop_reg(struct engine *e, const struct insn *i)
{
	uint64_t v = stack_pop(e, i->opsize);

	gpr_set(e->cpu, i->rm, i->opsize, v);
}

static void push_imm8(struct engine *e, const struct insn *i)
{
	stack_push64(e, i->imm);
}

static void push_imm(struct engine *e, const struct insn *i)
{
	stack_push(e, i->opsize, i->imm);
}

static void push_mem8(struct engine *e, const struct insn *i)
{
	stack_push64(e, insn_load(e, i, 8));
}

static void push_mem(struct engine *e, const struct insn *i)
{
	stack_push(e, i->opsize, insn_load(e, i, i->opsize));
}

static void push_segment(struct engine *e, const struct insn *i)
{
	stack_push(e, i->opsize, e->cpu->seg[i->reg].selector);
}

/* The address is computed with the RSP after the pop (SDM, POP). */
static void pop_mem(struct engine *e, const struct insn *i)
{
	uint64_t value = stack_peek(e, 0, i->opsize);
	struct insn target = *i;

	if (target.base == GPR_RSP)
		target.disp += i->opsize;
	insn_store(e, &target, i->opsize, value);
	stack_move(e, i->opsize);
}

static uint64_t stack_mask(const struct engine *e)
{
	return e->flat ? ~0ull : e->stack32 ? 0xffffffffu : 0xffffu;
}

static uint64_t stack_linear(struct engine *e, uint64_t offset, unsigned size, unsigned access)
{
	return segment_linear(e, SEG_SS, offset & stack_mask(e), size, access);
}

static void set_stack_register(struct engine *e, unsigned reg, uint64_t value)
{
	uint64_t *g = &e->cpu->gpr[reg];

	if (e->flat)
		*g = value;
	else if (e->stack32)
		*g = (uint32_t)value;
	else
		*(uint16_t *)g = (uint16_t)value;
}

static void op_pusha(struct engine *e, const struct insn *i)
{
	const uint64_t *g = e->cpu->gpr;
	unsigned n = i->opsize;
	uint64_t rsp = g[GPR_RSP];

	/* In order: a fault in the middle leaves what was stored, and RSP as it was. */
	for (unsigned k = 0; k < 8; k++)
		linear_store(e, stack_linear(e, rsp - (k + 1) * n, n, ACCESS_WRITE), n, g[k]);
	set_stack_register(e, GPR_RSP, rsp - 8 * n);
}

static void op_popa(struct engine *e, const struct insn *i)
{
	unsigned n = i->opsize;
	uint64_t rsp = e->cpu->gpr[GPR_RSP], v[8];

	for (unsigned k = 0; k < 8; k++)
		v[k] = linear_load(e, stack_linear(e, rsp + k * n, n, ACCESS_READ), n);
	for (unsigned k = 0; k < 8; k++)
		if (7 - k != GPR_RSP)
			gpr_set(e->cpu, 7 - k, n, v[k]);
	set_stack_register(e, GPR_RSP, rsp + 8 * n);
}

static void op_enter(struct engine *e, const struct insn *i)
{
	uint64_t *g = e->cpu->gpr;
	unsigned n = i->opsize, level = i->cc & 31;
	uint64_t rsp = g[GPR_RSP], rbp = g[GPR_RBP], frame;

	rsp -= n;
	linear_store(e, stack_linear(e, rsp, n, ACCESS_WRITE), n, rbp);
	frame = rsp;
	for (unsigned k = 1; k < level; k++) {
		uint64_t v = linear_load(e, stack_linear(e, rbp - k * n, n, ACCESS_READ), n);

		rsp -= n;
		linear_store(e, stack_linear(e, rsp, n, ACCESS_WRITE), n, v);
	}
	if (level) {
		rsp -= n;
		linear_store(e, stack_linear(e, rsp, n, ACCESS_WRITE), n, frame);
	}
	rsp -= (uint16_t)i->imm;
	/* The new top must be writable (SDM, ENTER). */
	linear_rmw(e, stack_linear(e, rsp, n, ACCESS_WRITE), n);
	gpr_set(e->cpu, GPR_RBP, n, e->flat || e->stack32 ? frame : (rbp & ~0xffffull) | (frame & 0xffff));
	set_stack_register(e, GPR_RSP, rsp);
}

static void op_leave(struct engine *e, const struct insn *i)
{
	unsigned n = i->opsize;
	uint64_t rbp = e->cpu->gpr[GPR_RBP];
	uint64_t v = linear_load(e, stack_linear(e, rbp, n, ACCESS_READ), n);

	set_stack_register(e, GPR_RSP, rbp + n);
	gpr_set(e->cpu, GPR_RBP, n, v);
}

static insn_fn push_handler(const struct insn *i, const struct decoded *d)
{
	bool wide = i->opsize == 8;
	bool high;

	switch (d->op[0].type) {
	case ZYDIS_OPERAND_TYPE_MEMORY:
		return wide ? push_mem8 : push_mem;
	case ZYDIS_OPERAND_TYPE_IMMEDIATE:
		return wide ? push_imm8 : push_imm;
	default:
		if (decode_gpr(d->op[0].reg.value, &high) < 0)
			return push_segment;
		return wide ? push_reg8 : push_reg;
	}
}

static insn_fn pop_handler(const struct insn *i, const struct decoded *d)
{
	bool high;

	if (d->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY)
		return pop_mem;
	if (decode_gpr(d->op[0].reg.value, &high) < 0)
		return NULL;
	return i->opsize == 8 ? pop_reg8 : pop_reg;
}

insn_fn integer_stack_handler(const struct insn *i, const struct decoded *d)
{
	switch (d->insn.mnemonic) {
	case ZYDIS_MNEMONIC_PUSH:
		return push_handler(i, d);
	case ZYDIS_MNEMONIC_POP:
		return pop_handler(i, d);
	case ZYDIS_MNEMONIC_PUSHA:
	case ZYDIS_MNEMONIC_PUSHAD:
		return op_pusha;
	case ZYDIS_MNEMONIC_POPA:
	case ZYDIS_MNEMONIC_POPAD:
		return op_popa;
	case ZYDIS_MNEMONIC_ENTER:
		return op_enter;
	case ZYDIS_MNEMONIC_LEAVE:
		return op_leave;
	default:
		return NULL;
	}
}
