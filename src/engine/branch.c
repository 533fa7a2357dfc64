/*
 * Near control flow: JMP, CALL, RET, Jcc, LOOP, JCXZ. The target is checked before anything changes, so that #GP is
 * the branch's own. RIP is already past the instruction: it is the return address. Far transfers are in segment.c.
 */
#include "engine/decode.h"
#include "engine/operand.h"

static void jump(struct engine *e, uint64_t target)
{
	branch_check(e, target);
	e->cpu->gpr[GPR_RIP] = target;
}

/* Relative targets wrap to the operand size. */
static uint64_t relative_target(const struct engine *e, const struct insn *i)
{
	uint64_t target = e->cpu->gpr[GPR_RIP] + i->imm;

	return i->opsize == 8 ? target : i->opsize == 4 ? (uint32_t)target : (uint16_t)target;
}

static inline void jump64(struct engine *e, uint64_t target)
{
	if (engine_unlikely(!is_canonical(target)))
		engine_raise_error(e, EXC_GP, 0);
	e->cpu->gpr[GPR_RIP] = target;
}

static void jmp_rel(struct engine *e, const struct insn *i)
{
	jump(e, relative_target(e, i));
}

static void jmp_rel64(struct engine *e, const struct insn *i)
{
	jump64(e, e->cpu->gpr[GPR_RIP] + i->imm);
}

static void jmp_indirect(struct engine *e, const struct insn *i)
{
	jump(e, rm_load(e, i, i->opsize));
}

static void jmp_reg64(struct engine *e, const struct insn *i)
{
	jump64(e, e->cpu->gpr[i->rm]);
}

static void jmp_mem64(struct engine *e, const struct insn *i)
{
	jump64(e, insn_load(e, i, 8));
}

static void call(struct engine *e, const struct insn *i, uint64_t target)
{
	branch_check(e, target);
	stack_push(e, i->opsize, e->cpu->gpr[GPR_RIP]);
	e->cpu->gpr[GPR_RIP] = target;
}

/* Of a bad target and a bad stack AMD's processors report the stack. */
static void refuse_call(struct engine *e)
{
	if (decode_is_amd(e))
		linear_rmw(e, segment_linear(e, SEG_SS, e->cpu->gpr[GPR_RSP] - 8, 8, ACCESS_WRITE), 8);
	engine_raise_error(e, EXC_GP, 0);
}

static inline void call64(struct engine *e, uint64_t target)
{
	if (engine_unlikely(!is_canonical(target)))
		refuse_call(e);
	stack_push64(e, e->cpu->gpr[GPR_RIP]);
	e->cpu->gpr[GPR_RIP] = target;
}

static void call_rel(struct engine *e, const struct insn *i)
{
	call(e, i, relative_target(e, i));
}

static void call_rel64(struct engine *e, const struct insn *i)
{
	call64(e, e->cpu->gpr[GPR_RIP] + i->imm);
}

static void call_indirect(struct engine *e, const struct insn *i)
{
	call(e, i, rm_load(e, i, i->opsize));
}

static void call_reg64(struct engine *e, const struct insn *i)
{
	call64(e, e->cpu->gpr[i->rm]);
}

static void call_mem64(struct engine *e, const struct insn *i)
{
	call64(e, insn_load(e, i, 8));
}

static void ret(struct engine *e, const struct insn *i)
{
	uint64_t target = stack_peek(e, 0, i->opsize);

	branch_check(e, target);
	stack_move(e, i->opsize + (uint16_t)i->imm);
	e->cpu->gpr[GPR_RIP] = target;
}

static void ret64(struct engine *e, const struct insn *i)
{
	uint64_t *g = e->cpu->gpr;
	uint64_t rsp = g[GPR_RSP];
	uint64_t target = stack_pop64(e);

	if (engine_unlikely(!is_canonical(target))) {
		g[GPR_RSP] = rsp;
		engine_raise_error(e, EXC_GP, 0);
	}
	g[GPR_RIP] = target;
	g[GPR_RSP] = rsp + 8 + (uint16_t)i->imm;
}

#define CONDITIONAL(k)                                                                                             \
	static void jcc_##k(struct engine *e, const struct insn *i)                                                \
	{                                                                                                          \
		if (condition(e->cpu->rflags, k))                                                                  \
			jump(e, relative_target(e, i));                                                            \
	}                                                                                                          \
	static void jcc64_##k(struct engine *e, const struct insn *i)                                              \
	{                                                                                                          \
		if (condition(e->cpu->rflags, k))                                                                  \
			jump64(e, e->cpu->gpr[GPR_RIP] + i->imm);                                                  \
	}
EACH_CONDITION(CONDITIONAL)
#define ROW(k) { jcc_##k, jcc64_##k },
static const insn_fn jcc_table[16][2] = { EACH_CONDITION(ROW) };

/* LOOPNE, LOOPE, LOOP, JCXZ: opcodes E0..E3; the counter's width is the address size. */
static void loop_jcxz(struct engine *e, const struct insn *i)
{
	struct cpu_state *c = e->cpu;
	uint64_t count = gpr_get(c, GPR_RCX, i->addrsize);
	bool taken;

	if (i->cc == 3) {
		if (count == 0)
			jump(e, relative_target(e, i));
		return;
	}
	count--;
	count = i->addrsize == 8 ? count : i->addrsize == 4 ? (uint32_t)count : (uint16_t)count;
	taken = count != 0 && (i->cc == 2 || !!(c->rflags & FLAG_ZF) == (i->cc == 1));
	if (taken)
		jump(e, relative_target(e, i));
	gpr_set(c, GPR_RCX, i->addrsize, count);
}

static bool is_far(const struct decoded *d)
{
	return d->insn.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR;
}

insn_fn branch_handler(const struct insn *i, const struct decoded *d)
{
	/* The 64-bit handlers: operand size 64 exists in 64-bit mode alone. */
	bool wide = i->opsize == 8;
	bool mem = i->flags & INSN_MEM;
	bool relative = d->op[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;

	switch (d->insn.mnemonic) {
	case ZYDIS_MNEMONIC_JMP:
		if (is_far(d))
			return NULL;
		if (relative)
			return wide ? jmp_rel64 : jmp_rel;
		return wide ? mem ? jmp_mem64 : jmp_reg64 : jmp_indirect;
	case ZYDIS_MNEMONIC_CALL:
		if (is_far(d))
			return NULL;
		if (relative)
			return wide ? call_rel64 : call_rel;
		return wide ? mem ? call_mem64 : call_reg64 : call_indirect;
	case ZYDIS_MNEMONIC_RET:
		if (is_far(d))
			return NULL;
		return wide ? ret64 : ret;
	case ZYDIS_MNEMONIC_LOOP:
	case ZYDIS_MNEMONIC_LOOPE:
	case ZYDIS_MNEMONIC_LOOPNE:
	case ZYDIS_MNEMONIC_JCXZ:
	case ZYDIS_MNEMONIC_JECXZ:
	case ZYDIS_MNEMONIC_JRCXZ:
		return loop_jcxz;
	default:
		break;
	}
	if (d->insn.meta.category == ZYDIS_CATEGORY_COND_BR && relative &&
		((d->insn.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && d->insn.opcode >> 4 == 7) ||
			(d->insn.opcode_map == ZYDIS_OPCODE_MAP_0F && d->insn.opcode >> 4 == 8)))
		return jcc_table[d->insn.opcode & 15][wide];
	return NULL;
}
