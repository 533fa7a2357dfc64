/*
 * Register operands and flags as the integer handlers use them. Flags are computed by the host CPU: the guest's operation
 * is executed and its flags are taken by SETO and LAHF,
 *
 *   ax = | SF ZF 0 AF 0 PF 1 CF | 0 0 0 0 0 0 0 OF |
 *
 * which is far cheaper than PUSHF and POPF, and exact for undefined flags too.
 */
#ifndef ENGINE_OPERAND_H
#define ENGINE_OPERAND_H

#include "engine/access.h"
#include "engine/engine_state.h"

#define FLAGS_OUT "seto %%al\n\tlahf"
/* Loads the status flags from ax in the same form. */
#define FLAGS_IN "addb $127, %%al\n\tsahf\n\t"

static inline uint32_t flags_pack(const struct cpu_state *c)
{
	return ((uint32_t)c->rflags & 0xff) << 8 | ((uint32_t)(c->rflags >> 11) & 1);
}

/* Takes the flags in `mask` from ax. */
static inline void flags_merge(struct cpu_state *c, uint32_t ax, uint64_t mask)
{
	uint64_t f = ((ax >> 8) & 0xff) | (uint64_t)(ax & 1) << 11;

	c->rflags = (c->rflags & ~mask) | (f & mask);
}

static inline void flags_set(struct cpu_state *c, uint32_t ax)
{
	flags_merge(c, ax, FLAGS_STATUS);
}

static inline uint8_t *reg8(struct cpu_state *c, unsigned n, bool high)
{
	return (uint8_t *)c->gpr + n * 8 - (high ? 31 : 0); /* AH..BH are 4..7: byte 1 of 0..3 */
}

static inline uint64_t gpr_get(const struct cpu_state *c, unsigned n, unsigned size)
{
	return size == 8 ? c->gpr[n] : size == 4 ? (uint32_t)c->gpr[n] : (uint16_t)c->gpr[n];
}

static inline void gpr_set(struct cpu_state *c, unsigned n, unsigned size, uint64_t value)
{
	if (size == 8)
		c->gpr[n] = value;
	else if (size == 4)
		c->gpr[n] = (uint32_t)value;
	else
		*(uint16_t *)&c->gpr[n] = (uint16_t)value;
}

/* The ModRM.reg operand. */
static inline uint64_t reg_get(const struct engine *e, const struct insn *i, unsigned size)
{
	if (size == 1)
		return *reg8(e->cpu, i->reg, i->flags & INSN_HIGH_REG);
	return gpr_get(e->cpu, i->reg, size);
}

static inline void reg_set(struct engine *e, const struct insn *i, unsigned size, uint64_t value)
{
	if (size == 1)
		*reg8(e->cpu, i->reg, i->flags & INSN_HIGH_REG) = (uint8_t)value;
	else
		gpr_set(e->cpu, i->reg, size, value);
}

/* The ModRM.rm operand, a register. */
static inline uint64_t rm_get(const struct engine *e, const struct insn *i, unsigned size)
{
	if (size == 1)
		return *reg8(e->cpu, i->rm, i->flags & INSN_HIGH_RM);
	return gpr_get(e->cpu, i->rm, size);
}

static inline void rm_set(struct engine *e, const struct insn *i, unsigned size, uint64_t value)
{
	if (size == 1)
		*reg8(e->cpu, i->rm, i->flags & INSN_HIGH_RM) = (uint8_t)value;
	else
		gpr_set(e->cpu, i->rm, size, value);
}

/* Register or memory, for what is not worth two handlers. */
static inline uint64_t rm_load(struct engine *e, const struct insn *i, unsigned size)
{
	return i->flags & INSN_MEM ? insn_load(e, i, size) : rm_get(e, i, size);
}

/* Condition code of Jcc, SETcc, CMOVcc (SDM vol. 1, appendix B). */
static inline bool condition(uint64_t f, unsigned cc)
{
	bool yes;

	switch (cc >> 1) {
	case 0:
		yes = f & FLAG_OF;
		break;
	case 1:
		yes = f & FLAG_CF;
		break;
	case 2:
		yes = f & FLAG_ZF;
		break;
	case 3:
		yes = f & (FLAG_CF | FLAG_ZF);
		break;
	case 4:
		yes = f & FLAG_SF;
		break;
	case 5:
		yes = f & FLAG_PF;
		break;
	case 6:
		yes = ((f >> 7) ^ (f >> 11)) & 1;
		break;
	default:
		yes = (f & FLAG_ZF) || (((f >> 7) ^ (f >> 11)) & 1);
	}
	return yes ^ (cc & 1);
}

/* 0..3 for 1, 2, 4, 8. */
static inline unsigned size_index(unsigned size)
{
	return size == 8 ? 3 : size == 4 ? 2 : size == 2 ? 1 : 0;
}

#define EACH_CONDITION(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)

struct decoded;
insn_fn integer_shift_handler(const struct insn *i, const struct decoded *d);
insn_fn integer_bits_handler(const struct insn *i, const struct decoded *d);
insn_fn integer_move_handler(const struct insn *i, const struct decoded *d);
insn_fn integer_stack_handler(const struct insn *i, const struct decoded *d);
insn_fn integer_misc_handler(const struct insn *i, const struct decoded *d);

#endif
