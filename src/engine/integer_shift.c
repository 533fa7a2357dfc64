/*
 * Shifts, rotates, multiplication and division. The guest's flags are loaded before the host's operation, so that what
 * it leaves alone (a count of 0, flags of rotates, undefined ones) comes out as on the host.
 */
#include "engine/decode.h"
#include "engine/operand.h"

#define SHIFT_ASM(op, dst, dcon)                                                                                   \
	__asm__ volatile(FLAGS_IN op " %%cl, %[d]\n\t" FLAGS_OUT                                                   \
		: [d] dcon(dst), "+a"(ax)                                                                          \
		: "c"(count)                                                                                       \
		: "cc", "memory")

#define SHIFT_FORM(name, op, T, n, form, counted)                                                                  \
	static void name##_r##form##n(struct engine *e, const struct insn *i)                                      \
	{                                                                                                          \
		T d = (T)rm_get(e, i, n);                                                                          \
		uint8_t count = (uint8_t)(counted);                                                                \
		uint32_t ax = flags_pack(e->cpu);                                                                  \
		SHIFT_ASM(op, d, "+r");                                                                            \
		rm_set(e, i, n, d);                                                                                \
		flags_set(e->cpu, ax);                                                                             \
	}                                                                                                          \
	static void name##_m##form##n(struct engine *e, const struct insn *i)                                      \
	{                                                                                                          \
		T *p = insn_rmw(e, i, n);                                                                          \
		uint8_t count = (uint8_t)(counted);                                                                \
		uint32_t ax = flags_pack(e->cpu);                                                                  \
		if (engine_likely(p != NULL)) {                                                                    \
			SHIFT_ASM(op, *p, "+m");                                                                   \
		} else {                                                                                           \
			T d = (T)insn_load(e, i, n);                                                               \
			SHIFT_ASM(op, d, "+r");                                                                    \
			insn_store(e, i, n, d);                                                                    \
		}                                                                                                  \
		flags_set(e->cpu, ax);                                                                             \
	}

/*
 * A shift by 1 has an OF of its own, which a shift by CL = 1 gives too: two forms are enough. The count is i->imm or CL.
 */
#define SHIFT_ONE(name, op, T, n)                                                                                  \
	SHIFT_FORM(name, op, T, n, i, i->imm)                                                                      \
	SHIFT_FORM(name, op, T, n, c, e->cpu->gpr[GPR_RCX])
#define SIZES(f) { f##1, f##2, f##4, f##8 }
#define SHIFT(name, op)                                                                                            \
	SHIFT_ONE(name, op "b", uint8_t, 1)                                                                        \
	SHIFT_ONE(name, op "w", uint16_t, 2)                                                                       \
	SHIFT_ONE(name, op "l", uint32_t, 4)                                                                       \
	SHIFT_ONE(name, op "q", uint64_t, 8)                                                                       \
	static const insn_fn name##_table[2][2][4] = { { SIZES(name##_ri), SIZES(name##_mi) },                     \
						       { SIZES(name##_rc), SIZES(name##_mc) } };

SHIFT(shl, "shl")
SHIFT(shr, "shr")
SHIFT(sar, "sar")
SHIFT(rol, "rol")
SHIFT(ror, "ror")
SHIFT(rcl, "rcl")
SHIFT(rcr, "rcr")

#define DOUBLE_ASM(op, m, dst, dcon)                                                                                  \
	__asm__ volatile(FLAGS_IN op " %%cl, %" m "[s], %[d]\n\t" FLAGS_OUT                                             \
		: [d] dcon(dst), "+a"(ax)                                                                          \
		: "c"(count), [s] "r"(s)                                                                           \
		: "cc", "memory")
#define DOUBLE_ONE(name, op, T, n, m, counted)                                                                        \
	static void name##_##n(struct engine *e, const struct insn *i)                                             \
	{                                                                                                          \
		uint8_t count = (uint8_t)(counted);                                                                \
		uint64_t s = e->cpu->gpr[i->reg]; /* all of it: counts beyond 16 show the rest */ \
		T *p, d;                                                                  \
		uint32_t ax = flags_pack(e->cpu);                                                                  \
		if (!(i->flags & INSN_MEM)) {                                                                      \
			d = (T)rm_get(e, i, n);                                                                    \
			DOUBLE_ASM(op, m, d, "+r");                                                                   \
			rm_set(e, i, n, d);                                                                        \
		} else if ((p = insn_rmw(e, i, n)) != NULL) {                                                      \
			DOUBLE_ASM(op, m, *p, "+m");                                                                  \
		} else {                                                                                           \
			d = (T)insn_load(e, i, n);                                                                 \
			DOUBLE_ASM(op, m, d, "+r");                                                                   \
			insn_store(e, i, n, d);                                                                    \
		}                                                                                                  \
		flags_set(e->cpu, ax);                                                                             \
	}
#define DOUBLE(name, op, counted)                                                                                  \
	DOUBLE_ONE(name, op "w", uint16_t, 2, "w", counted)                                                             \
	DOUBLE_ONE(name, op "l", uint32_t, 4, "k", counted)                                                             \
	DOUBLE_ONE(name, op "q", uint64_t, 8, "q", counted)
DOUBLE(shldi, "shld", i->imm)
DOUBLE(shrdi, "shrd", i->imm)
DOUBLE(shldc, "shld", e->cpu->gpr[GPR_RCX])
DOUBLE(shrdc, "shrd", e->cpu->gpr[GPR_RCX])
#define DOUBLE_SIZES(f) { NULL, f##2, f##4, f##8 }
static const insn_fn double_table[2][2][4] = {
	{ DOUBLE_SIZES(shldi_), DOUBLE_SIZES(shldc_) },
	{ DOUBLE_SIZES(shrdi_), DOUBLE_SIZES(shrdc_) },
};

/* --- multiplication --- */

static void mul8(struct engine *e, const struct insn *i, bool is_signed)
{
	uint8_t s = (uint8_t)rm_load(e, i, 1);
	uint64_t *rax = &e->cpu->gpr[GPR_RAX];
	uint32_t ax = flags_pack(e->cpu);
	uint16_t a = (uint8_t)*rax, product;

	if (is_signed)
		__asm__(FLAGS_IN "mov %w[a], %%ax\n\timulb %[s]\n\tmov %%ax, %[p]\n\t" FLAGS_OUT
			: "+a"(ax), [p] "=&r"(product) : [s] "r"(s), [a] "r"(a) : "cc");
	else
		__asm__(FLAGS_IN "mov %w[a], %%ax\n\tmulb %[s]\n\tmov %%ax, %[p]\n\t" FLAGS_OUT
			: "+a"(ax), [p] "=&r"(product) : [s] "r"(s), [a] "r"(a) : "cc");
	*(uint16_t *)rax = product;
	flags_set(e->cpu, ax);
}

static void mul_b(struct engine *e, const struct insn *i)
{
	mul8(e, i, false);
}

static void imul_b(struct engine *e, const struct insn *i)
{
	mul8(e, i, true);
}

#define MULTIPLY(name, op, T, n, acc)                                                                              \
	static void name##_##n(struct engine *e, const struct insn *i)                                             \
	{                                                                                                          \
		T s = (T)rm_load(e, i, n), low = (T)e->cpu->gpr[GPR_RAX], high;                                    \
		uint64_t ax = flags_pack(e->cpu);                                                                  \
		__asm__(FLAGS_IN "mov %[l], %%" acc "\n\t" op " %[s]\n\tmov %%" acc ", %[l]\n\t" FLAGS_OUT         \
			: "+a"(ax), [l] "+&r"(low), "=&d"(high) : [s] "r"(s) : "cc");                              \
		gpr_set(e->cpu, GPR_RAX, n, low);                                                                  \
		gpr_set(e->cpu, GPR_RDX, n, high);                                                                 \
		flags_set(e->cpu, (uint32_t)ax);                                                                   \
	}
MULTIPLY(mul, "mulw", uint16_t, 2, "ax")
MULTIPLY(mul, "mull", uint32_t, 4, "eax")
MULTIPLY(mul, "mulq", uint64_t, 8, "rax")
MULTIPLY(imul, "imulw", uint16_t, 2, "ax")
MULTIPLY(imul, "imull", uint32_t, 4, "eax")
MULTIPLY(imul, "imulq", uint64_t, 8, "rax")

/* IMUL r, r/m and IMUL r, r/m, imm. */
#define MULTIPLY2(T, n, x)                                                                                         \
	static void imul2_##n(struct engine *e, const struct insn *i)                                              \
	{                                                                                                          \
		T s = (T)rm_load(e, i, n), d = (T)reg_get(e, i, n);                                                \
		uint32_t ax = flags_pack(e->cpu);                                                                  \
		__asm__(FLAGS_IN "imul" x " %[s], %[d]\n\t" FLAGS_OUT : "+a"(ax), [d] "+r"(d) : [s] "r"(s) : "cc"); \
		gpr_set(e->cpu, i->reg, n, d);                                                                     \
		flags_set(e->cpu, ax);                                                                             \
	}                                                                                                          \
	static void imul3_##n(struct engine *e, const struct insn *i)                                              \
	{                                                                                                          \
		T s = (T)i->imm, d = (T)rm_load(e, i, n);                                                          \
		uint32_t ax = flags_pack(e->cpu);                                                                  \
		__asm__(FLAGS_IN "imul" x " %[s], %[d]\n\t" FLAGS_OUT : "+a"(ax), [d] "+r"(d) : [s] "r"(s) : "cc"); \
		gpr_set(e->cpu, i->reg, n, d);                                                                     \
		flags_set(e->cpu, ax);                                                                             \
	}
MULTIPLY2(uint16_t, 2, "w")
MULTIPLY2(uint32_t, 4, "l")
MULTIPLY2(uint64_t, 8, "q")
static const insn_fn mul_table[4] = { mul_b, mul_2, mul_4, mul_8 }, imul_table[4] = { imul_b, imul_2, imul_4, imul_8 };
static const insn_fn imul2_table[4] = { NULL, imul2_2, imul2_4, imul2_8 };
static const insn_fn imul3_table[4] = { NULL, imul3_2, imul3_4, imul3_8 };

/* --- division: #DE is found before the host divides --- */

static bool idiv_overflows(unsigned __int128 dividend, uint64_t divisor, unsigned bits)
{
	bool minus = (uint64_t)(dividend >> 64) >> 63, minus_divisor = divisor >> 63;
	unsigned __int128 n = minus ? -dividend : dividend;
	uint64_t d = minus_divisor ? -divisor : divisor, limit = 1ull << (bits - 1), quotient, rest;

	if (d == 0 || (uint64_t)(n >> 64) >= d)
		return true;
	__asm__("divq %[d]" : "=a"(quotient), "=d"(rest) : [d] "r"(d), "0"((uint64_t)n), "1"((uint64_t)(n >> 64)) : "cc");
	return minus != minus_divisor ? quotient > limit : quotient >= limit;
}

static void div8(struct engine *e, const struct insn *i, bool is_signed)
{
	uint8_t s = (uint8_t)rm_load(e, i, 1);
	uint16_t a = (uint16_t)e->cpu->gpr[GPR_RAX];
	uint32_t ax = flags_pack(e->cpu);

	if (is_signed ? idiv_overflows((unsigned __int128)(__int128)(int16_t)a, (uint64_t)(int64_t)(int8_t)s, 8) :
			s == 0 || a >> 8 >= s)
		engine_raise(e, EXC_DE);
	if (is_signed)
		__asm__(FLAGS_IN "mov %[a], %%ax\n\tidivb %[s]\n\tmov %%ax, %[a]\n\t" FLAGS_OUT
			: "+a"(ax), [a] "+&r"(a) : [s] "r"(s) : "cc");
	else
		__asm__(FLAGS_IN "mov %[a], %%ax\n\tdivb %[s]\n\tmov %%ax, %[a]\n\t" FLAGS_OUT
			: "+a"(ax), [a] "+&r"(a) : [s] "r"(s) : "cc");
	*(uint16_t *)&e->cpu->gpr[GPR_RAX] = a;
	flags_set(e->cpu, ax);
}

static void div_1(struct engine *e, const struct insn *i)
{
	div8(e, i, false);
}

static void idiv_1(struct engine *e, const struct insn *i)
{
	div8(e, i, true);
}

#define DIVIDE(name, op, T, n, acc, overflow)                                                                      \
	static void name##_##n(struct engine *e, const struct insn *i)                                             \
	{                                                                                                          \
		T s = (T)rm_load(e, i, n), low = (T)e->cpu->gpr[GPR_RAX], high = (T)e->cpu->gpr[GPR_RDX];          \
		uint64_t ax = flags_pack(e->cpu);                                                                  \
		if (overflow)                                                                                      \
			engine_raise(e, EXC_DE);                                                                   \
		__asm__(FLAGS_IN "mov %[l], %%" acc "\n\t" op " %[s]\n\tmov %%" acc ", %[l]\n\t" FLAGS_OUT         \
			: "+a"(ax), [l] "+&r"(low), "+&d"(high) : [s] "r"(s) : "cc");                              \
		gpr_set(e->cpu, GPR_RAX, n, low);                                                                  \
		gpr_set(e->cpu, GPR_RDX, n, high);                                                                 \
		flags_set(e->cpu, (uint32_t)ax);                                                                   \
	}
DIVIDE(div, "divw", uint16_t, 2, "ax", high >= s)
DIVIDE(div, "divl", uint32_t, 4, "eax", high >= s)
DIVIDE(div, "divq", uint64_t, 8, "rax", high >= s)
DIVIDE(idiv, "idivw", uint16_t, 2, "ax", idiv_overflows((unsigned __int128)(__int128)(int32_t)((uint32_t)high << 16 | low),
	(uint64_t)(int64_t)(int16_t)s, 16))
DIVIDE(idiv, "idivl", uint32_t, 4, "eax", idiv_overflows((unsigned __int128)(__int128)(int64_t)((uint64_t)high << 32 | low),
	(uint64_t)(int64_t)(int32_t)s, 32))
DIVIDE(idiv, "idivq", uint64_t, 8, "rax", idiv_overflows((unsigned __int128)high << 64 | low, s, 64))
static const insn_fn div_table[4] = SIZES(div_), idiv_table[4] = SIZES(idiv_);

static insn_fn shift_handler(const insn_fn table[2][2][4], const struct insn *i, const struct decoded *d)
{
	bool by_cl = d->op[1].type == ZYDIS_OPERAND_TYPE_REGISTER;

	return table[by_cl][!!(i->flags & INSN_MEM)][size_index(i->opsize)];
}

insn_fn integer_shift_handler(const struct insn *i, const struct decoded *d)
{
	unsigned s = size_index(i->opsize);

	switch (d->insn.mnemonic) {
	case ZYDIS_MNEMONIC_SHL:
		return shift_handler(shl_table, i, d);
	case ZYDIS_MNEMONIC_SHR:
		return shift_handler(shr_table, i, d);
	case ZYDIS_MNEMONIC_SAR:
		return shift_handler(sar_table, i, d);
	case ZYDIS_MNEMONIC_ROL:
		return shift_handler(rol_table, i, d);
	case ZYDIS_MNEMONIC_ROR:
		return shift_handler(ror_table, i, d);
	case ZYDIS_MNEMONIC_RCL:
		return shift_handler(rcl_table, i, d);
	case ZYDIS_MNEMONIC_RCR:
		return shift_handler(rcr_table, i, d);
	case ZYDIS_MNEMONIC_SHLD:
	case ZYDIS_MNEMONIC_SHRD:
		return double_table[d->insn.mnemonic == ZYDIS_MNEMONIC_SHRD]
				   [d->op[2].type == ZYDIS_OPERAND_TYPE_REGISTER][s];
	case ZYDIS_MNEMONIC_MUL:
		return mul_table[s];
	case ZYDIS_MNEMONIC_IMUL:
		if (d->insn.operand_count_visible == 3)
			return imul3_table[s];
		return d->insn.operand_count_visible == 2 ? imul2_table[s] : imul_table[s];
	case ZYDIS_MNEMONIC_DIV:
		return div_table[s];
	case ZYDIS_MNEMONIC_IDIV:
		return idiv_table[s];
	default:
		return NULL;
	}
}
