/*
 * Integer arithmetic and logic: ADD … CMP, TEST, INC, DEC, NEG, NOT, XADD, CMPXCHG, XCHG. One handler for each operation,
 * operand form and size, made by macros; the host executes the operation itself, so that result and flags are exact.
 *
 * Read-modify-write: insn_rmw() gives the host address and has checked the write; a LOCK prefix becomes the host's.
 * Where it gives none (page crossing, MMIO), load, compute, store, under the machine's split lock if LOCKed.
 */
#include "engine/decode.h"
#include "engine/operand.h"

#define CARRY_IN "btl $0, %[f]\n\t"
#define NO_CARRY ""

#define ALU_ASM(lock, pre, op, dst, dcon, src)                                                                     \
	__asm__ volatile(pre lock op " %[s], %[d]\n\t" FLAGS_OUT                                                   \
		: [d] dcon(dst), "=a"(ax)                                                                          \
		: [s] "r"(src), [f] "m"(*(const uint32_t *)&c->rflags)                                             \
		: "cc", "memory")

/* Destination ModRM.rm or ModRM.reg, a register. */
#define ALU_REG(name, op, pre, T, n)                                                                               \
	static void name##_rr##n(struct engine *e, const struct insn *i)                                           \
	{                                                                                                          \
		struct cpu_state *c = e->cpu;                                                                      \
		T d = (T)rm_get(e, i, n), s = (T)reg_get(e, i, n);                                                 \
		uint32_t ax;                                                                                       \
		ALU_ASM("", pre, op, d, "+r", s);                                                                  \
		rm_set(e, i, n, d);                                                                                \
		flags_set(c, ax);                                                                                  \
	}                                                                                                          \
	static void name##_rr2##n(struct engine *e, const struct insn *i)                                          \
	{                                                                                                          \
		struct cpu_state *c = e->cpu;                                                                      \
		T d = (T)reg_get(e, i, n), s = (T)rm_get(e, i, n);                                                 \
		uint32_t ax;                                                                                       \
		ALU_ASM("", pre, op, d, "+r", s);                                                                  \
		reg_set(e, i, n, d);                                                                               \
		flags_set(c, ax);                                                                                  \
	}                                                                                                          \
	static void name##_rm##n(struct engine *e, const struct insn *i)                                           \
	{                                                                                                          \
		struct cpu_state *c = e->cpu;                                                                      \
		T s = (T)insn_load(e, i, n), d = (T)reg_get(e, i, n);                                              \
		uint32_t ax;                                                                                       \
		ALU_ASM("", pre, op, d, "+r", s);                                                                  \
		reg_set(e, i, n, d);                                                                               \
		flags_set(c, ax);                                                                                  \
	}                                                                                                          \
	static void name##_ri##n(struct engine *e, const struct insn *i)                                           \
	{                                                                                                          \
		struct cpu_state *c = e->cpu;                                                                      \
		T d = (T)rm_get(e, i, n), s = (T)i->imm;                                                           \
		uint32_t ax;                                                                                       \
		ALU_ASM("", pre, op, d, "+r", s);                                                                  \
		rm_set(e, i, n, d);                                                                                \
		flags_set(c, ax);                                                                                  \
	}

/* Destination memory. */
#define ALU_MEM(name, op, pre, T, n, form, lock, source)                                                           \
	static void name##_##form##n(struct engine *e, const struct insn *i)                                       \
	{                                                                                                          \
		struct cpu_state *c = e->cpu;                                                                      \
		T *p = insn_rmw(e, i, n);                                                                          \
		T s = (T)(source);                                                                                 \
		uint32_t ax;                                                                                       \
		if (engine_likely(p != NULL)) {                                                                    \
			ALU_ASM(lock, pre, op, *p, "+m", s);                                                       \
		} else {                                                                                           \
			T d;                                                                                       \
			if (i->flags & INSN_LOCK)                                                                  \
				split_lock_take(e);                                                                \
			d = (T)insn_load(e, i, n);                                                                 \
			ALU_ASM("", pre, op, d, "+r", s);                                                          \
			insn_store(e, i, n, d);                                                                    \
			if (i->flags & INSN_LOCK)                                                                  \
				split_lock_release(e);                                                             \
		}                                                                                                  \
		flags_set(c, ax);                                                                                  \
	}

#define ALU_ONE(name, op, pre, T, n, x)                                                                            \
	ALU_REG(name, op x, pre, T, n)                                                                             \
	ALU_MEM(name, op x, pre, T, n, mr, "", reg_get(e, i, n))                                                   \
	ALU_MEM(name, op x, pre, T, n, mi, "", i->imm)                                                             \
	ALU_MEM(name, op x, pre, T, n, lmr, "lock ", reg_get(e, i, n))                                             \
	ALU_MEM(name, op x, pre, T, n, lmi, "lock ", i->imm)

#define ALU(name, op, pre)                                                                                         \
	ALU_ONE(name, op, pre, uint8_t, 1, "b")                                                                    \
	ALU_ONE(name, op, pre, uint16_t, 2, "w")                                                                   \
	ALU_ONE(name, op, pre, uint32_t, 4, "l")                                                                   \
	ALU_ONE(name, op, pre, uint64_t, 8, "q")

ALU(add, "add", NO_CARRY)
ALU(or, "or", NO_CARRY)
ALU(adc, "adc", CARRY_IN)
ALU(sbb, "sbb", CARRY_IN)
ALU(and, "and", NO_CARRY)
ALU(sub, "sub", NO_CARRY)
ALU(xor, "xor", NO_CARRY)

/* CMP and TEST write flags only. */
#define COMPARE_FORM(name, op, T, n, form, dst, src)                                                               \
	static void name##_##form##n(struct engine *e, const struct insn *i)                                       \
	{                                                                                                          \
		struct cpu_state *c = e->cpu;                                                                      \
		T d = (T)(dst), s = (T)(src);                                                                      \
		uint32_t ax;                                                                                       \
		__asm__ volatile(op " %[s], %[d]\n\t" FLAGS_OUT                                                    \
			: "=a"(ax)                                                                                 \
			: [d] "r"(d), [s] "r"(s)                                                                   \
			: "cc");                                                                                   \
		flags_set(c, ax);                                                                                  \
	}
#define COMPARE_ONE(name, op, T, n)                                                                                \
	COMPARE_FORM(name, op, T, n, rr, rm_get(e, i, n), reg_get(e, i, n))                                        \
	COMPARE_FORM(name, op, T, n, rr2, reg_get(e, i, n), rm_get(e, i, n))                                       \
	COMPARE_FORM(name, op, T, n, rm, reg_get(e, i, n), insn_load(e, i, n))                                     \
	COMPARE_FORM(name, op, T, n, ri, rm_get(e, i, n), i->imm)                                                  \
	COMPARE_FORM(name, op, T, n, mr, insn_load(e, i, n), reg_get(e, i, n))                                     \
	COMPARE_FORM(name, op, T, n, mi, insn_load(e, i, n), i->imm)
#define COMPARE(name, op)                                                                                          \
	COMPARE_ONE(name, op "b", uint8_t, 1)                                                                      \
	COMPARE_ONE(name, op "w", uint16_t, 2)                                                                     \
	COMPARE_ONE(name, op "l", uint32_t, 4)                                                                     \
	COMPARE_ONE(name, op "q", uint64_t, 8)

COMPARE(cmp, "cmp")
COMPARE(test, "test")

enum alu_form { FORM_RR, FORM_RR2, FORM_RM, FORM_RI, FORM_MR, FORM_MI, FORM_LMR, FORM_LMI, FORM_COUNT };

#define SIZES(f) { f##1, f##2, f##4, f##8 }
#define TABLE(name)                                                                                                \
	{ [FORM_RR] = SIZES(name##_rr), [FORM_RR2] = SIZES(name##_rr2), [FORM_RM] = SIZES(name##_rm),              \
	  [FORM_RI] = SIZES(name##_ri), [FORM_MR] = SIZES(name##_mr), [FORM_MI] = SIZES(name##_mi),                \
	  [FORM_LMR] = SIZES(name##_lmr), [FORM_LMI] = SIZES(name##_lmi) }
#define TABLE_COMPARE(name)                                                                                        \
	{ [FORM_RR] = SIZES(name##_rr), [FORM_RR2] = SIZES(name##_rr2), [FORM_RM] = SIZES(name##_rm),              \
	  [FORM_RI] = SIZES(name##_ri), [FORM_MR] = SIZES(name##_mr), [FORM_MI] = SIZES(name##_mi) }

enum alu_op { ALU_ADD, ALU_OR, ALU_ADC, ALU_SBB, ALU_AND, ALU_SUB, ALU_XOR, ALU_CMP, ALU_TEST, ALU_COUNT };
static const insn_fn alu_table[ALU_COUNT][FORM_COUNT][4] = {
	[ALU_ADD] = TABLE(add), [ALU_OR] = TABLE(or), [ALU_ADC] = TABLE(adc), [ALU_SBB] = TABLE(sbb),
	[ALU_AND] = TABLE(and), [ALU_SUB] = TABLE(sub), [ALU_XOR] = TABLE(xor), [ALU_CMP] = TABLE_COMPARE(cmp),
	[ALU_TEST] = TABLE_COMPARE(test),
};

static insn_fn alu_handler(enum alu_op op, const struct insn *i, const struct decoded *d)
{
	bool imm = d->op[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
	bool lock = i->flags & INSN_LOCK;
	enum alu_form form;

	if (i->flags & INSN_MEM) {
		if (d->op[0].type != ZYDIS_OPERAND_TYPE_MEMORY)
			form = FORM_RM;
		else if (imm)
			form = lock ? FORM_LMI : FORM_MI;
		else
			form = lock ? FORM_LMR : FORM_MR;
	} else if (imm) {
		form = FORM_RI;
	} else {
		form = d->op[0].encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG ? FORM_RR2 : FORM_RR;
	}
	return alu_table[op][form][size_index(i->opsize)];
}

/* --- one operand --- */

#define UNARY_ONE(name, op, T, n, mask)                                                                            \
	static void name##_r##n(struct engine *e, const struct insn *i)                                            \
	{                                                                                                          \
		T d = (T)rm_get(e, i, n);                                                                          \
		uint32_t ax;                                                                                       \
		__asm__ volatile(op " %[d]\n\t" FLAGS_OUT : [d] "+r"(d), "=a"(ax) : : "cc");                       \
		rm_set(e, i, n, d);                                                                                \
		flags_merge(e->cpu, ax, mask);                                                                     \
	}                                                                                                          \
	static void name##_m##n(struct engine *e, const struct insn *i)                                            \
	{                                                                                                          \
		bool lock = i->flags & INSN_LOCK;                                                                  \
		T *p = insn_rmw(e, i, n);                                                                          \
		uint32_t ax;                                                                                       \
		if (p && lock) {                                                                                   \
			__asm__ volatile("lock " op " %[d]\n\t" FLAGS_OUT                                          \
				: [d] "+m"(*p), "=a"(ax) : : "cc", "memory");                                      \
		} else if (p) {                                                                                    \
			__asm__ volatile(op " %[d]\n\t" FLAGS_OUT : [d] "+m"(*p), "=a"(ax) : : "cc", "memory");    \
		} else {                                                                                           \
			T d;                                                                                       \
			if (lock)                                                                                  \
				split_lock_take(e);                                                                \
			d = (T)insn_load(e, i, n);                                                                 \
			__asm__ volatile(op " %[d]\n\t" FLAGS_OUT : [d] "+r"(d), "=a"(ax) : : "cc");               \
			insn_store(e, i, n, d);                                                                    \
			if (lock)                                                                                  \
				split_lock_release(e);                                                             \
		}                                                                                                  \
		flags_merge(e->cpu, ax, mask);                                                                     \
	}
#define UNARY(name, op, mask)                                                                                      \
	UNARY_ONE(name, op "b", uint8_t, 1, mask)                                                                  \
	UNARY_ONE(name, op "w", uint16_t, 2, mask)                                                                 \
	UNARY_ONE(name, op "l", uint32_t, 4, mask)                                                                 \
	UNARY_ONE(name, op "q", uint64_t, 8, mask)                                                                 \
	static const insn_fn name##_table[2][4] = { SIZES(name##_r), SIZES(name##_m) };

UNARY(inc, "inc", FLAGS_STATUS & ~FLAG_CF)
UNARY(dec, "dec", FLAGS_STATUS & ~FLAG_CF)
UNARY(neg, "neg", FLAGS_STATUS)
UNARY(not, "not", 0)

/* --- exchange --- */

#define EXCHANGE_ONE(T, n, x)                                                                                      \
	static void xchg_r##n(struct engine *e, const struct insn *i)                                              \
	{                                                                                                          \
		uint64_t a = rm_get(e, i, n), b = reg_get(e, i, n);                                                \
		rm_set(e, i, n, b);                                                                                \
		reg_set(e, i, n, a);                                                                               \
	}                                                                                                          \
	static void xchg_m##n(struct engine *e, const struct insn *i)                                              \
	{                                                                                                          \
		T *p = insn_rmw(e, i, n), v = (T)reg_get(e, i, n);                                                 \
		if (engine_likely(p != NULL)) {                                                                    \
			v = __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);                                           \
		} else {                                                                                           \
			T old;                                                                                     \
			split_lock_take(e);                                                                        \
			old = (T)insn_load(e, i, n);                                                               \
			insn_store(e, i, n, v);                                                                    \
			split_lock_release(e);                                                                     \
			v = old;                                                                                   \
		}                                                                                                  \
		reg_set(e, i, n, v);                                                                               \
	}                                                                                                          \
	static void xadd_r##n(struct engine *e, const struct insn *i)                                              \
	{                                                                                                          \
		T d = (T)rm_get(e, i, n), s = (T)reg_get(e, i, n);                                                 \
		uint32_t ax;                                                                                       \
		__asm__ volatile("xadd" x " %[s], %[d]\n\t" FLAGS_OUT : [d] "+r"(d), [s] "+r"(s), "=a"(ax)         \
				 : : "cc");                                                                        \
		reg_set(e, i, n, s);                                                                               \
		rm_set(e, i, n, d);                                                                                \
		flags_set(e->cpu, ax);                                                                             \
	}                                                                                                          \
	static void xadd_m##n(struct engine *e, const struct insn *i)                                              \
	{                                                                                                          \
		T *p = insn_rmw(e, i, n), s = (T)reg_get(e, i, n);                                                 \
		uint32_t ax;                                                                                       \
		if (engine_likely(p != NULL)) {                                                                    \
			__asm__ volatile("lock xadd" x " %[s], %[d]\n\t" FLAGS_OUT                                 \
				: [d] "+m"(*p), [s] "+r"(s), "=a"(ax) : : "cc", "memory");                         \
		} else {                                                                                           \
			T d;                                                                                       \
			split_lock_take(e);                                                                        \
			d = (T)insn_load(e, i, n);                                                                 \
			__asm__ volatile("xadd" x " %[s], %[d]\n\t" FLAGS_OUT                                      \
				: [d] "+r"(d), [s] "+r"(s), "=a"(ax) : : "cc");                                    \
			insn_store(e, i, n, d);                                                                    \
			split_lock_release(e);                                                                     \
		}                                                                                                  \
		reg_set(e, i, n, s);                                                                               \
		flags_set(e->cpu, ax);                                                                             \
	}

EXCHANGE_ONE(uint8_t, 1, "b")
EXCHANGE_ONE(uint16_t, 2, "w")
EXCHANGE_ONE(uint32_t, 4, "l")
EXCHANGE_ONE(uint64_t, 8, "q")
static const insn_fn xchg_table[2][4] = { SIZES(xchg_r), SIZES(xchg_m) };
static const insn_fn xadd_table[2][4] = { SIZES(xadd_r), SIZES(xadd_m) };

/*
 * CMPXCHG on whole host registers, so that the upper halves come out as the host leaves them. With a memory operand the
 * destination is always written, as the hardware does, so that the fault is a write's.
 */
#define CMPXCHG_ASM(lock, x, m, dst, dcon)                                                                         \
	__asm__ volatile(lock "cmpxchg" x " %" m "[s], %" m "[d]\n\tmov %%rax, %[o]\n\t" FLAGS_OUT                 \
		: [d] dcon(dst), "+a"(ax), [o] "=&r"(out)                                                          \
		: [s] "r"(s)                                                                                       \
		: "cc", "memory")
#define CMPXCHG_MEM_ASM(lock, x, m, dst)                                                                           \
	__asm__ volatile(lock "cmpxchg" x " %" m "[s], %[d]\n\tmov %%rax, %[o]\n\t" FLAGS_OUT                      \
		: [d] "+m"(dst), "+a"(ax), [o] "=&r"(out)                                                          \
		: [s] "r"(s)                                                                                       \
		: "cc", "memory")
#define CMPXCHG_ONE(T, n, x, m)                                                                                    \
	static void cmpxchg_r##n(struct engine *e, const struct insn *i)                                           \
	{                                                                                                          \
		uint64_t ax = e->cpu->gpr[GPR_RAX], s = reg_get(e, i, n), out;                                     \
		uint64_t d = n == 1 ? rm_get(e, i, 1) : e->cpu->gpr[i->rm];                                        \
		CMPXCHG_ASM("", x, m, d, "+r");                                                                    \
		e->cpu->gpr[GPR_RAX] = out;                                                                        \
		/* A failed 32-bit compare leaves the destination as it was, or cleared above: as the host. */     \
		if (n == 1)                                                                                        \
			rm_set(e, i, 1, d);                                                                        \
		else if (i->rm != GPR_RAX || ((uint32_t)ax & 0x4000))                                              \
			e->cpu->gpr[i->rm] = d;                                                                    \
		flags_set(e->cpu, (uint32_t)ax);                                                                   \
	}                                                                                                          \
	static void cmpxchg_m##n(struct engine *e, const struct insn *i)                                           \
	{                                                                                                          \
		T *p = insn_rmw(e, i, n);                                                                          \
		uint64_t ax = e->cpu->gpr[GPR_RAX], s = reg_get(e, i, n), out;                                     \
		if (engine_likely(p != NULL)) {                                                                    \
			CMPXCHG_MEM_ASM("lock ", x, m, *p);                                                        \
		} else {                                                                                           \
			T d;                                                                                       \
			split_lock_take(e);                                                                        \
			d = (T)insn_load(e, i, n);                                                                 \
			CMPXCHG_MEM_ASM("", x, m, d);                                                              \
			insn_store(e, i, n, d);                                                                    \
			split_lock_release(e);                                                                     \
		}                                                                                                  \
		e->cpu->gpr[GPR_RAX] = out;                                                                        \
		flags_set(e->cpu, (uint32_t)ax);                                                                   \
	}

CMPXCHG_ONE(uint8_t, 1, "b", "b")
CMPXCHG_ONE(uint16_t, 2, "w", "w")
CMPXCHG_ONE(uint32_t, 4, "l", "k")
CMPXCHG_ONE(uint64_t, 8, "q", "q")
static const insn_fn cmpxchg_table[2][4] = { SIZES(cmpxchg_r), SIZES(cmpxchg_m) };

static void cmpxchg8b(struct engine *e, const struct insn *i)
{
	uint64_t *g = e->cpu->gpr;
	uint64_t *p = insn_rmw(e, i, 8);
	uint64_t expected = (uint32_t)g[GPR_RAX] | g[GPR_RDX] << 32;
	uint64_t desired = (uint32_t)g[GPR_RBX] | g[GPR_RCX] << 32;
	uint64_t old = expected;
	bool equal;

	if (p) {
		equal = __atomic_compare_exchange_n(p, &old, desired, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	} else {
		split_lock_take(e);
		old = insn_load(e, i, 8);
		equal = old == expected;
		insn_store(e, i, 8, equal ? desired : old);
		split_lock_release(e);
	}
	if (equal) {
		e->cpu->rflags |= FLAG_ZF;
		return;
	}
	e->cpu->rflags &= ~FLAG_ZF;
	g[GPR_RAX] = (uint32_t)old;
	g[GPR_RDX] = old >> 32;
}

static void cmpxchg16b(struct engine *e, const struct insn *i)
{
	uint64_t *g = e->cpu->gpr;
	uint64_t gva = insn_linear(e, i, 16, ACCESS_WRITE);
	uint64_t low = g[GPR_RAX], high = g[GPR_RDX], old[2];
	uint8_t equal;
	void *p;

	if (gva & 15)
		engine_raise_error(e, EXC_GP, 0);
	p = linear_rmw(e, gva, 16);
	if (p) {
		__asm__ volatile("lock cmpxchg16b %[d]\n\tsete %[z]"
			: [d] "+m"(*(uint64_t(*)[2])p), "+a"(low), "+d"(high), [z] "=q"(equal)
			: "b"(g[GPR_RBX]), "c"(g[GPR_RCX])
			: "cc", "memory");
	} else {
		split_lock_take(e);
		linear_read_bytes(e, gva, old, 16, ACCESS_READ);
		equal = old[0] == low && old[1] == high;
		low = old[0];
		high = old[1];
		if (equal) {
			old[0] = g[GPR_RBX];
			old[1] = g[GPR_RCX];
		}
		linear_write_bytes(e, gva, old, 16, ACCESS_WRITE);
		split_lock_release(e);
	}
	if (equal) {
		e->cpu->rflags |= FLAG_ZF;
		return;
	}
	e->cpu->rflags &= ~FLAG_ZF;
	g[GPR_RAX] = low;
	g[GPR_RDX] = high;
}

static insn_fn two_forms(const insn_fn table[2][4], const struct insn *i)
{
	return table[!!(i->flags & INSN_MEM)][size_index(i->opsize)];
}

static insn_fn arithmetic_handler(const struct insn *i, const struct decoded *d)
{
	switch (d->insn.mnemonic) {
	case ZYDIS_MNEMONIC_ADD:
		return alu_handler(ALU_ADD, i, d);
	case ZYDIS_MNEMONIC_OR:
		return alu_handler(ALU_OR, i, d);
	case ZYDIS_MNEMONIC_ADC:
		return alu_handler(ALU_ADC, i, d);
	case ZYDIS_MNEMONIC_SBB:
		return alu_handler(ALU_SBB, i, d);
	case ZYDIS_MNEMONIC_AND:
		return alu_handler(ALU_AND, i, d);
	case ZYDIS_MNEMONIC_SUB:
		return alu_handler(ALU_SUB, i, d);
	case ZYDIS_MNEMONIC_XOR:
		return alu_handler(ALU_XOR, i, d);
	case ZYDIS_MNEMONIC_CMP:
		return alu_handler(ALU_CMP, i, d);
	case ZYDIS_MNEMONIC_TEST:
		return alu_handler(ALU_TEST, i, d);
	case ZYDIS_MNEMONIC_INC:
		return two_forms(inc_table, i);
	case ZYDIS_MNEMONIC_DEC:
		return two_forms(dec_table, i);
	case ZYDIS_MNEMONIC_NEG:
		return two_forms(neg_table, i);
	case ZYDIS_MNEMONIC_NOT:
		return two_forms(not_table, i);
	case ZYDIS_MNEMONIC_XCHG:
		return two_forms(xchg_table, i);
	case ZYDIS_MNEMONIC_XADD:
		return two_forms(xadd_table, i);
	case ZYDIS_MNEMONIC_CMPXCHG:
		return two_forms(cmpxchg_table, i);
	case ZYDIS_MNEMONIC_CMPXCHG8B:
		return cmpxchg8b;
	case ZYDIS_MNEMONIC_CMPXCHG16B:
		return cmpxchg16b;
	default:
		return NULL;
	}
}

insn_fn integer_handler(const struct insn *i, const struct decoded *d)
{
	insn_fn fn = arithmetic_handler(i, d);

	if (!fn)
		fn = integer_move_handler(i, d);
	if (!fn)
		fn = integer_stack_handler(i, d);
	if (!fn)
		fn = integer_shift_handler(i, d);
	if (!fn)
		fn = integer_bits_handler(i, d);
	if (!fn)
		fn = integer_misc_handler(i, d);
	return fn;
}
