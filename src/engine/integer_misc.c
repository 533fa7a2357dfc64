/*
 * Sign extensions (CBW, CWD), decimal adjustment, flag instructions, no-operations, hints, fences, random numbers, BOUND,
 * and the undefined-instruction opcodes.
 */
#include "engine/decode.h"
#include "engine/operand.h"

static void op_nop(struct engine *e, const struct insn *i)
{
}

static void op_pause(struct engine *e, const struct insn *i)
{
	__asm__ volatile("pause");
}

static void op_mfence(struct engine *e, const struct insn *i)
{
	__asm__ volatile("mfence" : : : "memory");
}

static void op_lfence(struct engine *e, const struct insn *i)
{
	__asm__ volatile("lfence" : : : "memory");
}

static void op_sfence(struct engine *e, const struct insn *i)
{
	__asm__ volatile("sfence" : : : "memory");
}

/* Memory is coherent: only the faults of a load remain. */
static void op_clflush(struct engine *e, const struct insn *i)
{
	insn_load(e, i, 1);
}

static void op_cbw(struct engine *e, const struct insn *i)
{
	uint64_t *rax = &e->cpu->gpr[GPR_RAX];

	gpr_set(e->cpu, GPR_RAX, 2, (uint64_t)(int64_t)(int8_t)*rax);
}

static void op_cwde(struct engine *e, const struct insn *i)
{
	gpr_set(e->cpu, GPR_RAX, 4, (uint64_t)(int64_t)(int16_t)e->cpu->gpr[GPR_RAX]);
}

static void op_cdqe(struct engine *e, const struct insn *i)
{
	gpr_set(e->cpu, GPR_RAX, 8, (uint64_t)(int64_t)(int32_t)e->cpu->gpr[GPR_RAX]);
}

static void op_cwd(struct engine *e, const struct insn *i)
{
	gpr_set(e->cpu, GPR_RDX, 2, (uint64_t)((int64_t)(int16_t)e->cpu->gpr[GPR_RAX] >> 63));
}

static void op_cdq(struct engine *e, const struct insn *i)
{
	gpr_set(e->cpu, GPR_RDX, 4, (uint64_t)((int64_t)(int32_t)e->cpu->gpr[GPR_RAX] >> 63));
}

static void op_cqo(struct engine *e, const struct insn *i)
{
	gpr_set(e->cpu, GPR_RDX, 8, (uint64_t)((int64_t)e->cpu->gpr[GPR_RAX] >> 63));
}

static void op_lahf(struct engine *e, const struct insn *i)
{
	((uint8_t *)&e->cpu->gpr[GPR_RAX])[1] = (uint8_t)((e->cpu->rflags & 0xd5) | FLAG_FIXED);
}

static void op_sahf(struct engine *e, const struct insn *i)
{
	uint64_t mask = FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF;

	e->cpu->rflags = (e->cpu->rflags & ~mask) | (e->cpu->gpr[GPR_RAX] >> 8 & mask);
}

static void op_clc(struct engine *e, const struct insn *i)
{
	e->cpu->rflags &= ~FLAG_CF;
}

static void op_stc(struct engine *e, const struct insn *i)
{
	e->cpu->rflags |= FLAG_CF;
}

static void op_cmc(struct engine *e, const struct insn *i)
{
	e->cpu->rflags ^= FLAG_CF;
}

static void op_cld(struct engine *e, const struct insn *i)
{
	e->cpu->rflags &= ~FLAG_DF;
}

static void op_std(struct engine *e, const struct insn *i)
{
	e->cpu->rflags |= FLAG_DF;
}

static void op_salc(struct engine *e, const struct insn *i)
{
	*(uint8_t *)&e->cpu->gpr[GPR_RAX] = e->cpu->rflags & FLAG_CF ? 0xff : 0;
}

/* --- decimal adjustment (SDM vol. 2): not in 64-bit mode, so not the host's --- */

static void set_flags_of_byte(struct cpu_state *c, uint8_t v)
{
	uint32_t ax;

	__asm__("testb %[v], %[v]\n\t" FLAGS_OUT : "=a"(ax) : [v] "r"(v) : "cc");
	flags_merge(c, ax, FLAG_SF | FLAG_ZF | FLAG_PF);
}

static void ascii_adjust(struct engine *e, bool subtract)
{
	struct cpu_state *c = e->cpu;
	uint16_t ax = (uint16_t)c->gpr[GPR_RAX];
	bool adjust = (ax & 15) > 9 || (c->rflags & FLAG_AF);

	if (adjust)
		ax = subtract ? (uint16_t)(ax - 0x106) : (uint16_t)(ax + 0x106);
	ax &= 0xff0f;
	*(uint16_t *)&c->gpr[GPR_RAX] = ax;
	set_flags_of_byte(c, (uint8_t)ax);
	c->rflags &= ~(FLAG_AF | FLAG_CF | FLAG_OF);
	if (adjust)
		c->rflags |= FLAG_AF | FLAG_CF;
}

static void op_aaa(struct engine *e, const struct insn *i)
{
	ascii_adjust(e, false);
}

static void op_aas(struct engine *e, const struct insn *i)
{
	ascii_adjust(e, true);
}

static void op_aad(struct engine *e, const struct insn *i)
{
	struct cpu_state *c = e->cpu;
	uint16_t ax = (uint16_t)c->gpr[GPR_RAX];
	uint8_t al = (uint8_t)((ax & 0xff) + (ax >> 8) * (uint8_t)i->imm);

	*(uint16_t *)&c->gpr[GPR_RAX] = al;
	c->rflags &= ~(FLAG_AF | FLAG_CF | FLAG_OF);
	set_flags_of_byte(c, al);
}

static void op_aam(struct engine *e, const struct insn *i)
{
	struct cpu_state *c = e->cpu;
	uint8_t al = (uint8_t)c->gpr[GPR_RAX], base = (uint8_t)i->imm;

	if (base == 0)
		engine_raise(e, EXC_DE);
	*(uint16_t *)&c->gpr[GPR_RAX] = (uint16_t)((al / base) << 8 | al % base);
	c->rflags &= ~(FLAG_AF | FLAG_CF | FLAG_OF);
	set_flags_of_byte(c, al % base);
}

static void decimal_adjust(struct engine *e, bool subtract)
{
	struct cpu_state *c = e->cpu;
	uint8_t al = (uint8_t)c->gpr[GPR_RAX], v = al;
	bool carry = c->rflags & FLAG_CF, af = (al & 15) > 9 || (c->rflags & FLAG_AF), cf = al > 0x99 || carry;

	/* The low digit's own carry counts too, but cannot happen unless the second condition holds or DAS borrows. */
	if (af) {
		if (subtract && al < 6)
			cf = true;
		v = subtract ? (uint8_t)(v - 6) : (uint8_t)(v + 6);
	}
	if (al > 0x99 || carry)
		v = subtract ? (uint8_t)(v - 0x60) : (uint8_t)(v + 0x60);
	*(uint8_t *)&c->gpr[GPR_RAX] = v;
	c->rflags &= ~(FLAG_AF | FLAG_CF | FLAG_OF);
	set_flags_of_byte(c, v);
	c->rflags |= (af ? FLAG_AF : 0) | (cf ? FLAG_CF : 0);
}

static void op_daa(struct engine *e, const struct insn *i)
{
	decimal_adjust(e, false);
}

static void op_das(struct engine *e, const struct insn *i)
{
	decimal_adjust(e, true);
}

/* --- random numbers: CF says success, the other status flags are cleared --- */

static void random_number(struct engine *e, const struct insn *i, bool seed)
{
	uint64_t v = 0;
	uint8_t ok = 0;

	for (unsigned tries = 0; tries < 10 && !ok; tries++) {
		if (seed)
			__asm__ volatile("rdseed %[v]\n\tsetc %[ok]" : [v] "=r"(v), [ok] "=q"(ok) : : "cc");
		else
			__asm__ volatile("rdrand %[v]\n\tsetc %[ok]" : [v] "=r"(v), [ok] "=q"(ok) : : "cc");
	}
	gpr_set(e->cpu, i->rm, i->opsize, ok ? v : 0);
	e->cpu->rflags = (e->cpu->rflags & ~FLAGS_STATUS) | (ok ? FLAG_CF : 0);
}

static void op_rdrand(struct engine *e, const struct insn *i)
{
	random_number(e, i, false);
}

static void op_rdseed(struct engine *e, const struct insn *i)
{
	random_number(e, i, true);
}

static void op_bound(struct engine *e, const struct insn *i)
{
	unsigned n = i->opsize;
	struct insn upper = *i;
	int64_t v, low, high;

	upper.disp += n;
	low = (int64_t)insn_load(e, i, n);
	high = (int64_t)insn_load(e, &upper, n);
	v = (int64_t)reg_get(e, i, n);
	if (n == 2)
		v = (int16_t)v, low = (int16_t)low, high = (int16_t)high;
	else
		v = (int32_t)v, low = (int32_t)low, high = (int32_t)high;
	if (v < low || v > high)
		engine_raise(e, EXC_BR);
}

static insn_fn flag_handler(const struct decoded *d)
{
	switch (d->insn.mnemonic) {
	case ZYDIS_MNEMONIC_LAHF:
		return op_lahf;
	case ZYDIS_MNEMONIC_SAHF:
		return op_sahf;
	case ZYDIS_MNEMONIC_CLC:
		return op_clc;
	case ZYDIS_MNEMONIC_STC:
		return op_stc;
	case ZYDIS_MNEMONIC_CMC:
		return op_cmc;
	case ZYDIS_MNEMONIC_CLD:
		return op_cld;
	case ZYDIS_MNEMONIC_STD:
		return op_std;
	case ZYDIS_MNEMONIC_SALC:
		return op_salc;
	case ZYDIS_MNEMONIC_AAA:
		return op_aaa;
	case ZYDIS_MNEMONIC_AAS:
		return op_aas;
	case ZYDIS_MNEMONIC_AAD:
		return op_aad;
	case ZYDIS_MNEMONIC_AAM:
		return op_aam;
	case ZYDIS_MNEMONIC_DAA:
		return op_daa;
	case ZYDIS_MNEMONIC_DAS:
		return op_das;
	default:
		return NULL;
	}
}

insn_fn integer_misc_handler(const struct insn *i, const struct decoded *d)
{
	switch (d->insn.mnemonic) {
	case ZYDIS_MNEMONIC_NOP:
		return op_nop;
	case ZYDIS_MNEMONIC_PREFETCH:
	case ZYDIS_MNEMONIC_PREFETCHNTA:
	case ZYDIS_MNEMONIC_PREFETCHT0:
	case ZYDIS_MNEMONIC_PREFETCHT1:
	case ZYDIS_MNEMONIC_PREFETCHT2:
	case ZYDIS_MNEMONIC_PREFETCHW:
	case ZYDIS_MNEMONIC_PREFETCHWT1:
		return op_nop;
	case ZYDIS_MNEMONIC_PAUSE:
		return op_pause;
	case ZYDIS_MNEMONIC_MFENCE:
		return op_mfence;
	case ZYDIS_MNEMONIC_LFENCE:
		return op_lfence;
	case ZYDIS_MNEMONIC_SFENCE:
		return op_sfence;
	case ZYDIS_MNEMONIC_CLFLUSH:
	case ZYDIS_MNEMONIC_CLFLUSHOPT:
	case ZYDIS_MNEMONIC_CLWB:
		return op_clflush;
	case ZYDIS_MNEMONIC_CBW:
		return op_cbw;
	case ZYDIS_MNEMONIC_CWDE:
		return op_cwde;
	case ZYDIS_MNEMONIC_CDQE:
		return op_cdqe;
	case ZYDIS_MNEMONIC_CWD:
		return op_cwd;
	case ZYDIS_MNEMONIC_CDQ:
		return op_cdq;
	case ZYDIS_MNEMONIC_CQO:
		return op_cqo;
	case ZYDIS_MNEMONIC_RDRAND:
		return op_rdrand;
	case ZYDIS_MNEMONIC_RDSEED:
		return op_rdseed;
	case ZYDIS_MNEMONIC_BOUND:
		return op_bound;
	case ZYDIS_MNEMONIC_UD0:
	case ZYDIS_MNEMONIC_UD1:
	case ZYDIS_MNEMONIC_UD2:
		return op_undefined;
	default:
		return flag_handler(d);
	}
}
