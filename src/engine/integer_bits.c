/*
 * Single bits and bit fields: BT, BTS, BTR, BTC, BSF, BSR, LZCNT, TZCNT, POPCNT, BMI1, BMI2, ADX, CRC32. With a register
 * offset and a memory operand BT and its kin reach ±2^63 bits from the operand (SDM vol. 1, 3.1.1.9): the offset is
 * folded into the displacement of a copy of the instruction.
 */
#include "engine/decode.h"
#include "engine/operand.h"

#define BIT_ASM(lock, op, dst, dcon)                                                                               \
	__asm__ volatile(FLAGS_IN lock op " %[s], %[d]\n\t" FLAGS_OUT                                              \
		: [d] dcon(dst), "+a"(ax)                                                                          \
		: [s] "r"(bit)                                                                                     \
		: "cc", "memory")

/* The instruction whose operand is the word that holds the bit. */
static inline void bit_locate(struct engine *e, const struct insn *i, unsigned n, int64_t bit, struct insn *word)
{
	*word = *i;
	word->disp += (bit >> (n == 8 ? 6 : n == 4 ? 5 : 4)) * (int64_t)n;
}

#define BIT_ONE(name, op, T, S, n, form, offset, in_memory, writes)                                                \
	static void name##_##form##n(struct engine *e, const struct insn *i)                                       \
	{                                                                                                          \
		int64_t offset_bits = (int64_t)(offset);                                                           \
		T bit = (T)offset_bits & (n * 8 - 1), d, *p;                                                       \
		uint32_t ax = flags_pack(e->cpu);                                                                  \
		bool lock = i->flags & INSN_LOCK;                                                                  \
		struct insn word;                                                                                  \
		if (!(in_memory)) {                                                                                \
			d = (T)rm_get(e, i, n);                                                                    \
			BIT_ASM("", op, d, "+r");                                                                  \
			if (writes)                                                                                \
				rm_set(e, i, n, d);                                                                \
			flags_set(e->cpu, ax);                                                                     \
			return;                                                                                    \
		}                                                                                                  \
		bit_locate(e, i, n, offset_bits, &word);                                                           \
		if (!(writes)) {                                                                                   \
			d = (T)insn_load(e, &word, n);                                                             \
			BIT_ASM("", op, d, "+r");                                                                  \
		} else if ((p = insn_rmw(e, &word, n)) != NULL) {                                                  \
			if (lock)                                                                                  \
				BIT_ASM(BIT_LOCK_##writes, op, *p, "+m");                                          \
			else                                                                                       \
				BIT_ASM("", op, *p, "+m");                                                         \
		} else {                                                                                           \
			if (lock)                                                                                  \
				split_lock_take(e);                                                                \
			d = (T)insn_load(e, &word, n);                                                             \
			BIT_ASM("", op, d, "+r");                                                                  \
			insn_store(e, &word, n, d);                                                                \
			if (lock)                                                                                  \
				split_lock_release(e);                                                             \
		}                                                                                                  \
		flags_set(e->cpu, ax);                                                                             \
	}
#define BIT_LOCK_0 ""
#define BIT_LOCK_1 "lock "
/* An immediate offset is taken modulo the operand size, a register one only if the operand is a register. */
#define BIT_SIZE(name, op, T, S, n, writes)                                                                        \
	BIT_ONE(name, op, T, S, n, rr, (S)reg_get(e, i, n), false, writes)                                         \
	BIT_ONE(name, op, T, S, n, ri, i->imm, false, writes)                                                      \
	BIT_ONE(name, op, T, S, n, mr, (S)reg_get(e, i, n), true, writes)                                          \
	BIT_ONE(name, op, T, S, n, mi, i->imm & (n * 8 - 1), true, writes)
#define BIT_SIZES(f) { NULL, f##2, f##4, f##8 }
#define BIT(name, op, writes)                                                                                      \
	BIT_SIZE(name, op "w", uint16_t, int16_t, 2, writes)                                                       \
	BIT_SIZE(name, op "l", uint32_t, int32_t, 4, writes)                                                       \
	BIT_SIZE(name, op "q", uint64_t, int64_t, 8, writes)                                                       \
	static const insn_fn name##_table[2][2][4] = { { BIT_SIZES(name##_rr), BIT_SIZES(name##_ri) },             \
						       { BIT_SIZES(name##_mr), BIT_SIZES(name##_mi) } };

BIT(bt, "bt", 0)
BIT(bts, "bts", 1)
BIT(btr, "btr", 1)
BIT(btc, "btc", 1)

/* Whole host registers, since a zero source leaves all of BSF's and BSR's destination alone on some CPUs. */
#define SCAN_ONE(name, op, n, m)                                                                                   \
	static void name##_##n(struct engine *e, const struct insn *i)                                             \
	{                                                                                                          \
		uint64_t s = rm_load(e, i, n), d = e->cpu->gpr[i->reg];                                            \
		uint32_t ax = flags_pack(e->cpu);                                                                  \
		__asm__(FLAGS_IN op " %" m "[s], %" m "[d]\n\t" FLAGS_OUT                                          \
			: [d] "+r"(d), "+a"(ax) : [s] "r"(s) : "cc");                                              \
		e->cpu->gpr[i->reg] = d;                                                                           \
		flags_set(e->cpu, ax);                                                                             \
	}
#define SCAN(name, op)                                                                                             \
	SCAN_ONE(name, op "w", 2, "w")                                                                             \
	SCAN_ONE(name, op "l", 4, "k")                                                                             \
	SCAN_ONE(name, op "q", 8, "q")                                                                             \
	static const insn_fn name##_table[4] = BIT_SIZES(name##_);
SCAN(bsf, "bsf")
SCAN(bsr, "bsr")
SCAN(lzcnt, "lzcnt")
SCAN(tzcnt, "tzcnt")
SCAN(popcnt, "popcnt")
SCAN_ONE(adcx, "adcxl", 4, "k")
SCAN_ONE(adcx, "adcxq", 8, "q")
SCAN_ONE(adox, "adoxl", 4, "k")
SCAN_ONE(adox, "adoxq", 8, "q")
static const insn_fn adcx_table[4] = { NULL, NULL, adcx_4, adcx_8 }, adox_table[4] = { NULL, NULL, adox_4, adox_8 };

/* --- BMI: VEX-encoded, 32 and 64 bits --- */

/* There is no VEX prefix in real and virtual-8086 mode (SDM vol. 2, 2.3.1), whatever the size of the code segment. */
static void vex_check(struct engine *e)
{
	if (e->mode != MODE_64 && (!(e->cpu->cr0 & CR0_PE) || (e->cpu->rflags & FLAG_VM)))
		engine_raise(e, EXC_UD);
}

/* dst = vvvv op rm, flags written: BLSI, BLSR, BLSMSK have the destination in vvvv. */
#define VEX_UNARY_ONE(name, op, T, n)                                                                              \
	static void name##_##n(struct engine *e, const struct insn *i)                                             \
	{                                                                                                          \
		T s, d;                                                                                            \
		uint32_t ax = flags_pack(e->cpu);                                                                  \
		vex_check(e);                                                                                      \
		s = (T)rm_load(e, i, n);                                                                           \
		__asm__(FLAGS_IN op " %[s], %[d]\n\t" FLAGS_OUT : [d] "=r"(d), "+a"(ax) : [s] "r"(s) : "cc");      \
		gpr_set(e->cpu, i->cc, n, d);                                                                      \
		flags_set(e->cpu, ax);                                                                             \
	}
/* AT&T order `op first, second, dst`. */
#define VEX_ONE(name, op, T, n, first, second, flags)                                                              \
	static void name##_##n(struct engine *e, const struct insn *i)                                             \
	{                                                                                                          \
		T rm, v = (T)gpr_get(e->cpu, i->cc, n), d;                                                         \
		uint32_t ax = flags_pack(e->cpu);                                                                  \
		vex_check(e);                                                                                      \
		rm = (T)rm_load(e, i, n);                                                                          \
		__asm__(FLAGS_IN op " %[" first "], %[" second "], %[d]\n\t" FLAGS_OUT                             \
			: [d] "=r"(d), "+a"(ax) : [rm] "r"(rm), [v] "r"(v) : "cc");                                \
		gpr_set(e->cpu, i->reg, n, d);                                                                     \
		if (flags)                                                                                         \
			flags_set(e->cpu, ax);                                                                     \
	}
#define VEX_SIZES(f) { NULL, NULL, f##4, f##8 }
#define VEX(name, op, first, second, flags)                                                                        \
	VEX_ONE(name, op "l", uint32_t, 4, first, second, flags)                                                   \
	VEX_ONE(name, op "q", uint64_t, 8, first, second, flags)                                                   \
	static const insn_fn name##_table[4] = VEX_SIZES(name##_);
#define VEX_UNARY(name, op)                                                                                        \
	VEX_UNARY_ONE(name, op "l", uint32_t, 4)                                                                   \
	VEX_UNARY_ONE(name, op "q", uint64_t, 8)                                                                   \
	static const insn_fn name##_table[4] = VEX_SIZES(name##_);

VEX_UNARY(blsi, "blsi")
VEX_UNARY(blsr, "blsr")
VEX_UNARY(blsmsk, "blsmsk")
VEX(andn, "andn", "rm", "v", true)
VEX(bextr, "bextr", "v", "rm", true)
VEX(bzhi, "bzhi", "v", "rm", true)
VEX(pdep, "pdep", "rm", "v", false)
VEX(pext, "pext", "rm", "v", false)
VEX(sarx, "sarx", "v", "rm", false)
VEX(shlx, "shlx", "v", "rm", false)
VEX(shrx, "shrx", "v", "rm", false)

static void mulx_4(struct engine *e, const struct insn *i)
{
	uint64_t p;

	vex_check(e);
	p = (uint64_t)(uint32_t)rm_load(e, i, 4) * (uint32_t)e->cpu->gpr[GPR_RDX];
	e->cpu->gpr[i->cc] = (uint32_t)p; /* the low half first: the high one wins if both are one register */
	e->cpu->gpr[i->reg] = p >> 32;
}

static void mulx_8(struct engine *e, const struct insn *i)
{
	unsigned __int128 p = (unsigned __int128)rm_load(e, i, 8) * e->cpu->gpr[GPR_RDX];

	e->cpu->gpr[i->cc] = (uint64_t)p;
	e->cpu->gpr[i->reg] = (uint64_t)(p >> 64);
}

static void rorx_4(struct engine *e, const struct insn *i)
{
	uint32_t v, n = i->imm & 31;

	vex_check(e);
	v = (uint32_t)rm_load(e, i, 4);
	e->cpu->gpr[i->reg] = v >> n | (n ? v << (32 - n) : 0);
}

static void rorx_8(struct engine *e, const struct insn *i)
{
	uint64_t v = rm_load(e, i, 8), n = i->imm & 63;

	e->cpu->gpr[i->reg] = v >> n | (n ? v << (64 - n) : 0);
}

#define CRC_ONE(T, n, x)                                                                                           \
	static void crc32_##n(struct engine *e, const struct insn *i)                                              \
	{                                                                                                          \
		T s = (T)rm_load(e, i, n);                                                                         \
		uint64_t d = (uint32_t)e->cpu->gpr[i->reg];                                                        \
		__asm__("crc32" x " %[s], %q[d]" : [d] "+r"(d) : [s] "r"(s));                                      \
		e->cpu->gpr[i->reg] = d;                                                                           \
	}
#define CRC_NARROW(T, n, x)                                                                                        \
	static void crc32_##n(struct engine *e, const struct insn *i)                                              \
	{                                                                                                          \
		T s = (T)rm_load(e, i, n);                                                                         \
		uint32_t d = (uint32_t)e->cpu->gpr[i->reg];                                                        \
		__asm__("crc32" x " %[s], %k[d]" : [d] "+r"(d) : [s] "r"(s));                                      \
		e->cpu->gpr[i->reg] = d;                                                                           \
	}
CRC_NARROW(uint8_t, 1, "b")
CRC_NARROW(uint16_t, 2, "w")
CRC_NARROW(uint32_t, 4, "l")
CRC_ONE(uint64_t, 8, "q")
static const insn_fn crc32_table[4] = { crc32_1, crc32_2, crc32_4, crc32_8 };

static insn_fn bit_handler(const insn_fn table[2][2][4], const struct insn *i, const struct decoded *d)
{
	bool imm = d->op[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;

	return table[!!(i->flags & INSN_MEM)][imm][size_index(i->opsize)];
}

insn_fn integer_bits_handler(const struct insn *i, const struct decoded *d)
{
	unsigned s = size_index(i->opsize);

	switch (d->insn.mnemonic) {
	case ZYDIS_MNEMONIC_BT:
		return bit_handler(bt_table, i, d);
	case ZYDIS_MNEMONIC_BTS:
		return bit_handler(bts_table, i, d);
	case ZYDIS_MNEMONIC_BTR:
		return bit_handler(btr_table, i, d);
	case ZYDIS_MNEMONIC_BTC:
		return bit_handler(btc_table, i, d);
	case ZYDIS_MNEMONIC_BSF:
		return bsf_table[s];
	case ZYDIS_MNEMONIC_BSR:
		return bsr_table[s];
	case ZYDIS_MNEMONIC_LZCNT:
		return lzcnt_table[s];
	case ZYDIS_MNEMONIC_TZCNT:
		return tzcnt_table[s];
	case ZYDIS_MNEMONIC_POPCNT:
		return popcnt_table[s];
	case ZYDIS_MNEMONIC_ADCX:
		return adcx_table[s];
	case ZYDIS_MNEMONIC_ADOX:
		return adox_table[s];
	case ZYDIS_MNEMONIC_CRC32:
		return crc32_table[size_index(d->op[1].size / 8)];
	case ZYDIS_MNEMONIC_BLSI:
		return blsi_table[s];
	case ZYDIS_MNEMONIC_BLSR:
		return blsr_table[s];
	case ZYDIS_MNEMONIC_BLSMSK:
		return blsmsk_table[s];
	case ZYDIS_MNEMONIC_ANDN:
		return andn_table[s];
	case ZYDIS_MNEMONIC_BEXTR:
		return d->insn.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX ? bextr_table[s] : NULL;
	case ZYDIS_MNEMONIC_BZHI:
		return bzhi_table[s];
	case ZYDIS_MNEMONIC_PDEP:
		return pdep_table[s];
	case ZYDIS_MNEMONIC_PEXT:
		return pext_table[s];
	case ZYDIS_MNEMONIC_SARX:
		return sarx_table[s];
	case ZYDIS_MNEMONIC_SHLX:
		return shlx_table[s];
	case ZYDIS_MNEMONIC_SHRX:
		return shrx_table[s];
	case ZYDIS_MNEMONIC_MULX:
		return s == 3 ? mulx_8 : mulx_4;
	case ZYDIS_MNEMONIC_RORX:
		return s == 3 ? rorx_8 : rorx_4;
	default:
		return NULL;
	}
}
