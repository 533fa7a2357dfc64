/*
 * Writing x86-64 machine code. Only what the translator emits by itself; guest instructions are re-encoded in
 * reencode.c. Registers are numbered as the hardware does (0 RAX … 15 R15).
 *
 * Absolute addresses are below 2 GiB and encoded as a SIB byte without base and index (disp32,
 * sign-extended), so that emitted code needs no register for the engine's own data.
 */
#ifndef ENGINE_EMIT_H
#define ENGINE_EMIT_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 };
#define NO_REG -1

/* A memory operand: disp + base + index << scale; without both registers: the absolute address disp. */
struct emit_mem {
	int base, index;
	unsigned scale;
	int32_t disp;
};

struct emit {
	uint8_t *p; /* where the next byte goes, in the writable mapping */
};

static inline void emit8(struct emit *m, unsigned byte)
{
	*m->p++ = (uint8_t)byte;
}

static inline void emit32(struct emit *m, uint32_t value)
{
	memcpy(m->p, &value, 4);
	m->p += 4;
}

static inline void emit_bytes(struct emit *m, const char *bytes, unsigned size)
{
	memcpy(m->p, bytes, size);
	m->p += size;
}

static inline struct emit_mem mem_abs(const volatile void *address)
{
	return (struct emit_mem){NO_REG, NO_REG, 0, (int32_t)(uintptr_t)address};
}

static inline struct emit_mem mem_table(const volatile void *table, int index)
{
	return (struct emit_mem){NO_REG, index, 3, (int32_t)(uintptr_t)table};
}

static inline struct emit_mem mem_base(int base, int32_t disp)
{
	return (struct emit_mem){base, NO_REG, 0, disp};
}

/* ModRM, SIB and displacement; reg's low three bits. */
static inline void emit_modrm_mem(struct emit *m, int reg, struct emit_mem a)
{
	unsigned field = (unsigned)(reg & 7) << 3;
	unsigned index = a.index == NO_REG ? 4 : (unsigned)a.index & 7;

	if (a.base == NO_REG) {
		emit8(m, field | 4);
		emit8(m, a.scale << 6 | index << 3 | 5);
		emit32(m, (uint32_t)a.disp);
		return;
	}
	bool sib = a.index != NO_REG || (a.base & 7) == 4;
	unsigned mod = a.disp == 0 && (a.base & 7) != 5 ? 0 : a.disp == (int8_t)a.disp ? 1 : 2;

	emit8(m, mod << 6 | field | (sib ? 4u : (unsigned)a.base & 7));
	if (sib)
		emit8(m, a.scale << 6 | index << 3 | ((unsigned)a.base & 7));
	if (mod == 1)
		emit8(m, (uint8_t)a.disp);
	else if (mod == 2)
		emit32(m, (uint32_t)a.disp);
}

static inline unsigned rex_bits(int reg, struct emit_mem a)
{
	return (reg >= 8 ? 4u : 0) | (a.index >= 8 ? 2u : 0) | (a.base >= 8 ? 1u : 0);
}

/* A one-byte opcode with a 64-bit register and memory. */
static inline void emit_op_mem(struct emit *m, unsigned opcode, int reg, struct emit_mem a)
{
	emit8(m, 0x48 | rex_bits(reg, a));
	emit8(m, opcode);
	emit_modrm_mem(m, reg, a);
}

/* The same of 32 bits: a register that is written is zero-extended. */
static inline void emit_op_mem32(struct emit *m, unsigned opcode, int reg, struct emit_mem a)
{
	unsigned rex = rex_bits(reg, a);

	if (rex)
		emit8(m, 0x40 | rex);
	emit8(m, opcode);
	emit_modrm_mem(m, reg, a);
}

static inline void emit_load(struct emit *m, int reg, struct emit_mem a)
{
	emit_op_mem(m, 0x8b, reg, a);
}

static inline void emit_store(struct emit *m, int reg, struct emit_mem a)
{
	emit_op_mem(m, 0x89, reg, a);
}

/* 32 bits, zero-extended */
static inline void emit_load_low(struct emit *m, int reg, struct emit_mem a)
{
	emit_op_mem32(m, 0x8b, reg, a);
}

/* The lower half of reg. */
static inline void emit_store_low(struct emit *m, int reg, struct emit_mem a)
{
	emit_op_mem32(m, 0x89, reg, a);
}

static inline void emit_lea(struct emit *m, int reg, struct emit_mem a)
{
	emit_op_mem(m, 0x8d, reg, a);
}

/* reg = the address, cut to 32 bits */
static inline void emit_lea32(struct emit *m, int reg, struct emit_mem a)
{
	emit_op_mem32(m, 0x8d, reg, a);
}

/* op reg, rm (64 bits). */
static inline void emit_op_reg(struct emit *m, unsigned opcode, int reg, int rm)
{
	emit8(m, 0x48 | (reg >= 8 ? 4 : 0) | (rm >= 8 ? 1 : 0));
	emit8(m, opcode);
	emit8(m, 0xc0 | (unsigned)(reg & 7) << 3 | (unsigned)(rm & 7));
}

static inline void emit_move(struct emit *m, int dst, int src)
{
	emit_op_reg(m, 0x89, src, dst);
}

/* movl $imm, (absolute) */
static inline void emit_store_imm(struct emit *m, const volatile void *address, uint32_t imm)
{
	emit8(m, 0xc7);
	emit_modrm_mem(m, 0, mem_abs(address));
	emit32(m, imm);
}

/* movq $imm, (absolute), sign-extended */
static inline void emit_store_imm64(struct emit *m, const volatile void *address, int32_t imm)
{
	emit8(m, 0x48);
	emit8(m, 0xc7);
	emit_modrm_mem(m, 0, mem_abs(address));
	emit32(m, (uint32_t)imm);
}

/* The status flags to AX, and back, as flags_pack() has them; back destroys AL. */
static inline void emit_flags_to_ax(struct emit *m)
{
	emit_bytes(m, "\x0f\x90\xc0\x9f", 4); /* seto %al; lahf */
}

static inline void emit_flags_from_ax(struct emit *m)
{
	emit_bytes(m, "\x04\x7f\x9e", 3); /* add $127, %al; sahf */
}

/* No flags. */
static inline void emit_not(struct emit *m, int reg)
{
	emit8(m, 0x48 | (reg >= 8 ? 1 : 0));
	emit8(m, 0xf7);
	emit8(m, 0xd0 | (unsigned)(reg & 7));
}

static inline void emit_imm64(struct emit *m, int reg, uint64_t imm)
{
	emit8(m, 0x48 | (reg >= 8 ? 1 : 0));
	emit8(m, 0xb8 | (unsigned)(reg & 7));
	emit32(m, (uint32_t)imm);
	emit32(m, (uint32_t)(imm >> 32));
}

/* reg = imm, zero-extended */
static inline void emit_imm32(struct emit *m, int reg, uint32_t imm)
{
	if (reg >= 8)
		emit8(m, 0x41);
	emit8(m, 0xb8 | (unsigned)(reg & 7));
	emit32(m, imm);
}

static inline void emit_shr(struct emit *m, int reg, unsigned count)
{
	emit8(m, 0x48 | (reg >= 8 ? 1 : 0));
	emit8(m, 0xc1);
	emit8(m, 0xe8 | (unsigned)(reg & 7));
	emit8(m, count);
}

/* cmpl $imm, reg */
static inline void emit_cmp_imm(struct emit *m, int reg, uint32_t imm)
{
	if (reg >= 8)
		emit8(m, 0x41);
	emit8(m, 0x81);
	emit8(m, 0xf8 | (unsigned)(reg & 7));
	emit32(m, imm);
}

/* cmpl mem, reg */
static inline void emit_cmp_mem(struct emit *m, int reg, struct emit_mem a)
{
	emit_op_mem32(m, 0x3b, reg, a);
}

/* VEX with three bytes: map 1 0F, 2 0F38, 3 0F3A; pp 0 none, 1 66, 2 F3, 3 F2. */
static inline void emit_vex(
	struct emit *m, unsigned map, unsigned pp, bool w, int reg, int vvvv, struct emit_mem a)
{
	unsigned rex = rex_bits(reg, a);

	emit8(m, 0xc4);
	emit8(m, (~rex & 7) << 5 | map);
	emit8(m, (unsigned)w << 7 | (~(unsigned)vvvv & 15) << 3 | pp);
}

/* dst = the bits of src that the mask in memory selects; no flags. */
static inline void emit_pext(struct emit *m, int dst, int src, struct emit_mem mask)
{
	emit_vex(m, 2, 2, true, dst, src, mask);
	emit8(m, 0xf5);
	emit_modrm_mem(m, dst, mask);
}

/* dst = 32 bits of memory rotated right; no flags. */
static inline void emit_rorx(struct emit *m, int dst, struct emit_mem a, unsigned count)
{
	emit_vex(m, 3, 3, false, dst, 0, a);
	emit8(m, 0xf0);
	emit_modrm_mem(m, dst, a);
	emit8(m, count);
}

/* The inverse: the low bits of src where the mask has ones. */
static inline void emit_pdep(struct emit *m, int dst, int src, struct emit_mem mask)
{
	emit_vex(m, 2, 3, true, dst, src, mask);
	emit8(m, 0xf5);
	emit_modrm_mem(m, dst, mask);
}

static inline void emit_rorx_any(struct emit *m, bool wide, int dst, int src, unsigned count)
{
	emit8(m, 0xc4);
	emit8(m, (dst >= 8 ? 0 : 0x80u) | 0x40 | (src >= 8 ? 0 : 0x20u) | 3);
	emit8(m, (wide ? 0x80u : 0) | 0x7b);
	emit8(m, 0xf0);
	emit8(m, 0xc0 | (unsigned)(dst & 7) << 3 | (unsigned)(src & 7));
	emit8(m, count);
}

static inline void emit_rorx_reg(struct emit *m, int dst, int src, unsigned count)
{
	emit_rorx_any(m, false, dst, src, count);
}

static inline void emit_rorx64(struct emit *m, int dst, int src, unsigned count)
{
	emit_rorx_any(m, true, dst, src, count);
}

/* movzbl mem, reg */
static inline void emit_load8(struct emit *m, int reg, struct emit_mem a)
{
	unsigned rex = rex_bits(reg, a);

	if (rex)
		emit8(m, 0x40 | rex);
	emit8(m, 0x0f);
	emit8(m, 0xb6);
	emit_modrm_mem(m, reg, a);
}

static inline void emit_push(struct emit *m, int reg)
{
	if (reg >= 8)
		emit8(m, 0x41);
	emit8(m, 0x50 | (unsigned)(reg & 7));
}

static inline void emit_pop(struct emit *m, int reg)
{
	if (reg >= 8)
		emit8(m, 0x41);
	emit8(m, 0x58 | (unsigned)(reg & 7));
}

/* call, push or jmp through memory: FF /digit. */
static inline void emit_group5(struct emit *m, unsigned digit, struct emit_mem a)
{
	unsigned rex = rex_bits(0, a);

	if (rex)
		emit8(m, 0x40 | rex);
	emit8(m, 0xff);
	emit_modrm_mem(m, (int)digit, a);
}

#define GROUP5_CALL 2
#define GROUP5_JMP 4
#define GROUP5_PUSH 6

/* Branches with a 32-bit displacement; the result is where the displacement stands. cc: condition code. */
static inline uint8_t *emit_jcc(struct emit *m, unsigned cc)
{
	emit8(m, 0x0f);
	emit8(m, 0x80 | cc);
	emit32(m, 0);
	return m->p - 4;
}

#define JMP_OPCODE 0xe9
static inline uint8_t *emit_jmp(struct emit *m)
{
	emit8(m, JMP_OPCODE);
	emit32(m, 0);
	return m->p - 4;
}

/* Branch if RCX is 0; no flags. The result is where its 8-bit displacement stands. */
static inline uint8_t *emit_jrcxz(struct emit *m)
{
	emit8(m, 0xe3);
	emit8(m, 0);
	return m->p - 1;
}

/* RCX -= 1; branch unless it is 0 now; no flags. AMD's processors do it as fast as a conditional branch. */
static inline uint8_t *emit_loop(struct emit *m)
{
	emit8(m, 0xe2);
	emit8(m, 0);
	return m->p - 1;
}

static inline void emit_put32(uint8_t *at, uint32_t value)
{
	memcpy(at, &value, 4);
}

static inline void emit_patch8(uint8_t *displacement, const uint8_t *to)
{
	*displacement = (uint8_t)(to - (displacement + 1));
}

/* Makes a branch go to the writable address `to`. */
static inline void emit_patch(uint8_t *displacement, const uint8_t *to)
{
	int32_t value = (int32_t)(to - (displacement + 4));

	memcpy(displacement, &value, 4);
}

/* The branch goes to the writable address `to`. */
static inline const uint8_t *emit_target(const uint8_t *displacement)
{
	int32_t value;

	memcpy(&value, displacement, 4);
	return displacement + 4 + value;
}

static inline bool emit_leads(const uint8_t *displacement, const uint8_t *to)
{
	return emit_target(displacement) == to;
}

/* RCX = the counter less one, 32 bits, which is stored; branch if it is 0 now; no flags. As emit_jrcxz(). */
static inline uint8_t *emit_count_down(struct emit *m, const volatile void *counter)
{
	emit_load_low(m, RCX, mem_abs(counter));
	emit_lea32(m, RCX, mem_base(RCX, -1));
	emit_store_low(m, RCX, mem_abs(counter));
	return emit_jrcxz(m);
}

#endif
