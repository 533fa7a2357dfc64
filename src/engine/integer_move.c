/*
 * Data movement between general registers, memory and immediates: MOV, MOVZX, MOVSX, MOVBE, LEA, CMOVcc, SETcc, BSWAP,
 * XLAT. Control, debug and segment registers are elsewhere. No flags change here.
 */
#include "engine/decode.h"
#include "engine/operand.h"

#define MOVE(n)                                                                                                    \
	static void mov_rr##n(struct engine *e, const struct insn *i) { rm_set(e, i, n, reg_get(e, i, n)); }       \
	static void mov_rr2##n(struct engine *e, const struct insn *i) { reg_set(e, i, n, rm_get(e, i, n)); }      \
	static void mov_rm##n(struct engine *e, const struct insn *i) { reg_set(e, i, n, insn_load(e, i, n)); }    \
	static void mov_mr##n(struct engine *e, const struct insn *i) { insn_store(e, i, n, reg_get(e, i, n)); }   \
	static void mov_ri##n(struct engine *e, const struct insn *i) { rm_set(e, i, n, i->imm); }                 \
	static void mov_mi##n(struct engine *e, const struct insn *i) { insn_store(e, i, n, i->imm); }             \
	static void bswap_##n(struct engine *e, const struct insn *i)                                              \
	{                                                                                                          \
		uint64_t v = rm_get(e, i, n);                                                                      \
		rm_set(e, i, n, n == 8 ? __builtin_bswap64(v) : n == 4 ? __builtin_bswap32((uint32_t)v) : 0);      \
	}                                                                                                          \
	static void movbe_load##n(struct engine *e, const struct insn *i)                                          \
	{                                                                                                          \
		uint64_t v = insn_load(e, i, n);                                                                   \
		reg_set(e, i, n, __builtin_bswap64(v) >> (64 - 8 * n));                                            \
	}                                                                                                          \
	static void movbe_store##n(struct engine *e, const struct insn *i)                                         \
	{                                                                                                          \
		insn_store(e, i, n, __builtin_bswap64(reg_get(e, i, n)) >> (64 - 8 * n));                          \
	}                                                                                                          \
	static void lea_##n(struct engine *e, const struct insn *i) { reg_set(e, i, n, insn_offset(e, i)); }

MOVE(1)
MOVE(2)
MOVE(4)
MOVE(8)

static void lea_64(struct engine *e, const struct insn *i)
{
	uint64_t *g = e->cpu->gpr;

	g[i->reg] = g[i->base] + (g[i->index] << i->scale) + (uint64_t)i->disp;
}

#define SIZES(f) { f##1, f##2, f##4, f##8 }
enum move_form { MOVE_RR, MOVE_RR2, MOVE_RM, MOVE_MR, MOVE_RI, MOVE_MI, MOVE_COUNT };
static const insn_fn mov_table[MOVE_COUNT][4] = {
	[MOVE_RR] = SIZES(mov_rr), [MOVE_RR2] = SIZES(mov_rr2), [MOVE_RM] = SIZES(mov_rm),
	[MOVE_MR] = SIZES(mov_mr), [MOVE_RI] = SIZES(mov_ri), [MOVE_MI] = SIZES(mov_mi),
};
static const insn_fn bswap_table[4] = SIZES(bswap_), lea_table[4] = SIZES(lea_);
static const insn_fn movbe_table[2][4] = { SIZES(movbe_store), SIZES(movbe_load) };

/* src bytes, destination bytes */
#define EXTEND(s, n, S)                                                                                            \
	static void movzx_r##s##n(struct engine *e, const struct insn *i)                                          \
	{                                                                                                          \
		gpr_set(e->cpu, i->reg, n, rm_get(e, i, s));                                                       \
	}                                                                                                          \
	static void movzx_m##s##n(struct engine *e, const struct insn *i)                                          \
	{                                                                                                          \
		gpr_set(e->cpu, i->reg, n, insn_load(e, i, s));                                                    \
	}                                                                                                          \
	static void movsx_r##s##n(struct engine *e, const struct insn *i)                                          \
	{                                                                                                          \
		gpr_set(e->cpu, i->reg, n, (uint64_t)(int64_t)(S)rm_get(e, i, s));                                 \
	}                                                                                                          \
	static void movsx_m##s##n(struct engine *e, const struct insn *i)                                          \
	{                                                                                                          \
		gpr_set(e->cpu, i->reg, n, (uint64_t)(int64_t)(S)insn_load(e, i, s));                              \
	}
EXTEND(1, 2, int8_t)
EXTEND(1, 4, int8_t)
EXTEND(1, 8, int8_t)
EXTEND(2, 2, int16_t)
EXTEND(2, 4, int16_t)
EXTEND(2, 8, int16_t)
EXTEND(4, 2, int32_t)
EXTEND(4, 4, int32_t)
EXTEND(4, 8, int32_t)

#define EXTENDS(f) { { NULL, f##12, f##14, f##18 }, { NULL, f##22, f##24, f##28 }, { NULL, f##42, f##44, f##48 } }
/* [signed][memory][source][destination] */
static const insn_fn extend_table[2][2][3][4] = {
	{ EXTENDS(movzx_r), EXTENDS(movzx_m) },
	{ EXTENDS(movsx_r), EXTENDS(movsx_m) },
};

static insn_fn extend_handler(bool is_signed, const struct insn *i, const struct decoded *d)
{
	unsigned source = size_index(d->op[1].size / 8), dest = size_index(d->op[0].size / 8);

	if (source > 2)
		return NULL;
	return extend_table[is_signed][!!(i->flags & INSN_MEM)][source][dest];
}

/* A 32-bit destination is zero-extended even if the condition is false; a memory source is read in any case. */
#define CONDITIONAL(k)                                                                                             \
	static void cmov_r2_##k(struct engine *e, const struct insn *i)                                            \
	{                                                                                                          \
		if (condition(e->cpu->rflags, k))                                                                  \
			gpr_set(e->cpu, i->reg, 2, gpr_get(e->cpu, i->rm, 2));                                     \
	}                                                                                                          \
	static void cmov_r4_##k(struct engine *e, const struct insn *i)                                            \
	{                                                                                                          \
		struct cpu_state *c = e->cpu;                                                                      \
		c->gpr[i->reg] = (uint32_t)(condition(c->rflags, k) ? c->gpr[i->rm] : c->gpr[i->reg]);             \
	}                                                                                                          \
	static void cmov_r8_##k(struct engine *e, const struct insn *i)                                            \
	{                                                                                                          \
		struct cpu_state *c = e->cpu;                                                                      \
		c->gpr[i->reg] = condition(c->rflags, k) ? c->gpr[i->rm] : c->gpr[i->reg];                         \
	}                                                                                                          \
	static void cmov_m2_##k(struct engine *e, const struct insn *i)                                            \
	{                                                                                                          \
		uint64_t v = insn_load(e, i, 2);                                                                   \
		if (condition(e->cpu->rflags, k))                                                                  \
			gpr_set(e->cpu, i->reg, 2, v);                                                             \
	}                                                                                                          \
	static void cmov_m4_##k(struct engine *e, const struct insn *i)                                            \
	{                                                                                                          \
		struct cpu_state *c = e->cpu;                                                                      \
		uint64_t v = insn_load(e, i, 4);                                                                   \
		c->gpr[i->reg] = (uint32_t)(condition(c->rflags, k) ? v : c->gpr[i->reg]);                         \
	}                                                                                                          \
	static void cmov_m8_##k(struct engine *e, const struct insn *i)                                            \
	{                                                                                                          \
		struct cpu_state *c = e->cpu;                                                                      \
		uint64_t v = insn_load(e, i, 8);                                                                   \
		c->gpr[i->reg] = condition(c->rflags, k) ? v : c->gpr[i->reg];                                     \
	}                                                                                                          \
	static void set_r_##k(struct engine *e, const struct insn *i)                                              \
	{                                                                                                          \
		rm_set(e, i, 1, condition(e->cpu->rflags, k));                                                     \
	}                                                                                                          \
	static void set_m_##k(struct engine *e, const struct insn *i)                                              \
	{                                                                                                          \
		insn_store(e, i, 1, condition(e->cpu->rflags, k));                                                 \
	}
EACH_CONDITION(CONDITIONAL)

#define ROW(k) { NULL, cmov_r2_##k, cmov_r4_##k, cmov_r8_##k, NULL, cmov_m2_##k, cmov_m4_##k, cmov_m8_##k, set_r_##k, set_m_##k },
static const insn_fn condition_table[16][10] = { EACH_CONDITION(ROW) };

static void op_xlat(struct engine *e, const struct insn *i)
{
	uint64_t *g = e->cpu->gpr;
	uint64_t offset = g[GPR_RBX] + (uint8_t)g[GPR_RAX], gva;

	offset = i->addrsize == 8 ? offset : i->addrsize == 4 ? (uint32_t)offset : (uint16_t)offset;
	gva = segment_linear(e, i->seg, offset, 1, ACCESS_READ);
	*(uint8_t *)&g[GPR_RAX] = (uint8_t)linear_load(e, gva, 1);
}

static insn_fn mov_handler(const struct insn *i, const struct decoded *d)
{
	unsigned s = size_index(i->opsize);
	bool imm = d->op[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
	bool high;

	for (unsigned k = 0; k < 2; k++)
		if (d->op[k].type == ZYDIS_OPERAND_TYPE_REGISTER && decode_gpr(d->op[k].reg.value, &high) < 0)
			return NULL; /* CR, DR, segment registers */
	if (i->flags & INSN_MEM) {
		if (d->op[0].type != ZYDIS_OPERAND_TYPE_MEMORY)
			return mov_table[MOVE_RM][s];
		return mov_table[imm ? MOVE_MI : MOVE_MR][s];
	}
	if (imm)
		return mov_table[MOVE_RI][s];
	return mov_table[d->op[0].encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG ? MOVE_RR2 : MOVE_RR][s];
}

insn_fn integer_move_handler(const struct insn *i, const struct decoded *d)
{
	unsigned s = size_index(i->opsize), mem = !!(i->flags & INSN_MEM);

	switch (d->insn.mnemonic) {
	case ZYDIS_MNEMONIC_MOV:
		return mov_handler(i, d);
	case ZYDIS_MNEMONIC_MOVZX:
		return extend_handler(false, i, d);
	case ZYDIS_MNEMONIC_MOVSX:
	case ZYDIS_MNEMONIC_MOVSXD:
		return extend_handler(true, i, d);
	case ZYDIS_MNEMONIC_MOVNTI:
		return mov_table[MOVE_MR][s];
	case ZYDIS_MNEMONIC_MOVBE:
		return movbe_table[d->op[0].type != ZYDIS_OPERAND_TYPE_MEMORY][s];
	case ZYDIS_MNEMONIC_LEA:
		return i->opsize == 8 && i->addrsize == 8 ? lea_64 : lea_table[s];
	case ZYDIS_MNEMONIC_BSWAP:
		return bswap_table[s];
	case ZYDIS_MNEMONIC_XLAT:
		return op_xlat;
	default:
		break;
	}
	if (d->insn.meta.category == ZYDIS_CATEGORY_CMOV && d->insn.opcode_map == ZYDIS_OPCODE_MAP_0F)
		return condition_table[d->insn.opcode & 15][mem * 4 + s];
	if (d->insn.meta.category == ZYDIS_CATEGORY_SETCC)
		return condition_table[d->insn.opcode & 15][8 + mem];
	return NULL;
}
