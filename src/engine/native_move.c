/*
 * Vector moves that need no vector unit: copies between the XSAVE image and memory. They are most of what compilers and
 * C libraries use SSE for, and loading and saving the host's state would cost far more than the move.
 */
#include <string.h>

#include "engine/native.h"

struct pair {
	uint64_t low, high;
};

static inline struct pair load16(struct engine *e, const struct insn *i, bool aligned)
{
	struct pair v;

	if (engine_likely(e->flat)) {
		uint64_t gva = insn_flat_linear(e, i);
		const struct tlb_entry *t = tlb_slot(e, gva);

		if (engine_likely(((gva + 15) & ~0xfffull) == t->read && (!aligned || !(gva & 15)))) {
			const volatile uint64_t *p = (const uint64_t *)(gva + t->delta);

			v.low = p[0];
			v.high = p[1];
			return v;
		}
	}
	{
		uint64_t gva;

		if (aligned && e->flat && (insn_flat_linear(e, i) & 15))
			engine_raise_error(e, EXC_GP, 0);
		gva = insn_linear(e, i, 16, ACCESS_READ);
		if (aligned && (gva & 15))
			engine_raise_error(e, EXC_GP, 0);
		linear_read_bytes(e, gva, &v, 16, ACCESS_READ);
	}
	return v;
}

static inline void store16(struct engine *e, const struct insn *i, bool aligned, struct pair v)
{
	uint64_t gva;

	if (engine_likely(e->flat)) {
		const struct tlb_entry *t;

		gva = insn_flat_linear(e, i);
		t = tlb_slot(e, gva);
		if (engine_likely(((gva + 15) & ~0xfffull) == t->write && (!aligned || !(gva & 15)))) {
			volatile uint64_t *p = (uint64_t *)(gva + t->delta);

			p[0] = v.low;
			p[1] = v.high;
			return;
		}
	}
	if (aligned && e->flat && (insn_flat_linear(e, i) & 15))
		engine_raise_error(e, EXC_GP, 0);
	gva = insn_linear(e, i, 16, ACCESS_WRITE);
	if (aligned && (gva & 15))
		engine_raise_error(e, EXC_GP, 0);
	linear_write_bytes(e, gva, &v, 16, ACCESS_WRITE);
}

static inline uint64_t *xmm(struct engine *e, unsigned n)
{
	return (uint64_t *)xmm_low(e->cpu, n);
}

static inline void begin(struct engine *e)
{
	native_check(e, NATIVE_SSE);
	native_materialize(e->cpu);
}

/* i->reg and i->rm are vector registers here. */
#define MOVE16(suffix, aligned)                                                                                    \
	static void load_##suffix(struct engine *e, const struct insn *i)                                          \
	{                                                                                                          \
		struct pair v;                                                                                     \
		begin(e);                                                                                          \
		v = load16(e, i, aligned);                                                                         \
		xmm(e, i->reg)[0] = v.low;                                                                         \
		xmm(e, i->reg)[1] = v.high;                                                                        \
	}                                                                                                          \
	static void store_##suffix(struct engine *e, const struct insn *i)                                         \
	{                                                                                                          \
		begin(e);                                                                                          \
		store16(e, i, aligned, (struct pair){ xmm(e, i->reg)[0], xmm(e, i->reg)[1] });                     \
	}
MOVE16(aligned, true)
MOVE16(unaligned, false)

static void copy_xmm(struct engine *e, const struct insn *i)
{
	begin(e);
	memmove(xmm(e, i->reg), xmm(e, i->rm), 16);
}

static void load_q(struct engine *e, const struct insn *i)
{
	uint64_t v;

	begin(e);
	v = insn_load(e, i, 8);
	xmm(e, i->reg)[0] = v;
	xmm(e, i->reg)[1] = 0;
}

static void load_d(struct engine *e, const struct insn *i)
{
	uint64_t v;

	begin(e);
	v = insn_load(e, i, 4);
	xmm(e, i->reg)[0] = v;
	xmm(e, i->reg)[1] = 0;
}

static void store_q(struct engine *e, const struct insn *i)
{
	begin(e);
	insn_store(e, i, 8, xmm(e, i->reg)[0]);
}

static void store_d(struct engine *e, const struct insn *i)
{
	begin(e);
	insn_store(e, i, 4, xmm(e, i->reg)[0]);
}

static void store_high(struct engine *e, const struct insn *i)
{
	begin(e);
	insn_store(e, i, 8, xmm(e, i->reg)[1]);
}

static void load_high(struct engine *e, const struct insn *i)
{
	uint64_t v;

	begin(e);
	v = insn_load(e, i, 8);
	xmm(e, i->reg)[1] = v;
}

static void zero_xmm(struct engine *e, const struct insn *i)
{
	begin(e);
	xmm(e, i->reg)[0] = xmm(e, i->reg)[1] = 0;
}

static void xor_xmm(struct engine *e, const struct insn *i)
{
	begin(e);
	xmm(e, i->reg)[0] ^= xmm(e, i->rm)[0];
	xmm(e, i->reg)[1] ^= xmm(e, i->rm)[1];
}

static void punpcklqdq(struct engine *e, const struct insn *i)
{
	begin(e);
	xmm(e, i->reg)[1] = xmm(e, i->rm)[0];
}

static int xmm_id(const ZydisDecodedOperand *op)
{
	if (op->type != ZYDIS_OPERAND_TYPE_REGISTER || ZydisRegisterGetClass(op->reg.value) != ZYDIS_REGCLASS_XMM)
		return -1;
	return ZydisRegisterGetId(op->reg.value);
}

insn_fn native_move_handler(struct engine *e, struct insn *i, const struct decoded *d)
{
	bool mem = i->flags & INSN_MEM, store = d->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY;
	int first = xmm_id(&d->op[0]), second = xmm_id(&d->op[1]);

	if (d->insn.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY || d->insn.operand_count_visible != 2)
		return NULL;
	if ((store ? second : first) < 0 || (!mem && second < 0))
		return NULL;
	i->reg = (uint8_t)(store ? second : first);
	if (!mem)
		i->rm = (uint8_t)second;
	switch (d->insn.mnemonic) {
	case ZYDIS_MNEMONIC_MOVAPS:
	case ZYDIS_MNEMONIC_MOVAPD:
	case ZYDIS_MNEMONIC_MOVDQA:
		return !mem ? copy_xmm : store ? store_aligned : load_aligned;
	case ZYDIS_MNEMONIC_MOVNTPS:
	case ZYDIS_MNEMONIC_MOVNTPD:
	case ZYDIS_MNEMONIC_MOVNTDQ:
		return store_aligned;
	case ZYDIS_MNEMONIC_MOVUPS:
	case ZYDIS_MNEMONIC_MOVUPD:
	case ZYDIS_MNEMONIC_MOVDQU:
		return !mem ? copy_xmm : store ? store_unaligned : load_unaligned;
	case ZYDIS_MNEMONIC_MOVQ:
	case ZYDIS_MNEMONIC_MOVSD:
		return !mem ? NULL : store ? store_q : load_q;
	case ZYDIS_MNEMONIC_MOVD:
	case ZYDIS_MNEMONIC_MOVSS:
		return !mem ? NULL : store ? store_d : load_d;
	case ZYDIS_MNEMONIC_MOVLPS:
	case ZYDIS_MNEMONIC_MOVLPD:
		return mem && store ? store_q : NULL;
	case ZYDIS_MNEMONIC_MOVHPS:
	case ZYDIS_MNEMONIC_MOVHPD:
		return !mem ? NULL : store ? store_high : load_high;
	case ZYDIS_MNEMONIC_PXOR:
	case ZYDIS_MNEMONIC_XORPS:
	case ZYDIS_MNEMONIC_XORPD:
		return mem ? NULL : first == second ? zero_xmm : xor_xmm;
	case ZYDIS_MNEMONIC_PUNPCKLQDQ:
		return mem ? NULL : punpcklqdq;
	default:
		return NULL;
	}
}
