/*
 * The Zydis view of one instruction: what the handler tables look at when they choose a handler. Handlers themselves
 * see struct insn alone. Where decode.c puts the operands of instructions that ModRM does not describe:
 *
 *   reg   ModRM.reg as a general or segment register; the accumulator of moffs forms; the other side of XCHG
 *   rm    ModRM.rm as a register; the register in the opcode byte; the implicit accumulator (ADD AL, imm)
 *   cc    condition code (opcode bits 3:0); VEX.vvvv; CR/DR number; second immediate of ENTER
 *   imm   immediate; branches: displacement; far pointers: offset, with the selector in disp
 *   seg   segment of the memory operand, overrides applied; strings: of the source (DS:rSI), STOS/SCAS/INS: ES
 */
#ifndef ENGINE_DECODE_H
#define ENGINE_DECODE_H

#include <Zydis/Zydis.h>

#include "engine/engine_state.h"

struct decoded {
	ZydisDecodedInstruction insn;
	ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
};

/* True if the model's CPU multiplies, branches and decodes as AMD's do where the vendors differ. */
bool decode_is_amd(const struct engine *e);

/* e->decode: the decoders, set up for the CPU model. */
struct decode_state {
	ZydisDecoder decoder[MODE_64 + 1];
	struct memo *memo; /* decode_memo.c */
};

/*
 * --- decode_memo.c: instructions that were decoded before, by their bytes ---
 *
 * `code` are MEMO_BYTES bytes, which may be more than the instruction has; *out is as decode_insn() has made it from these.
 */
#define MEMO_BYTES 16
int memo_create(struct decode_state *s);
void memo_destroy(struct decode_state *s);
void memo_forget(struct decode_state *s);
/* False: not known. */
bool memo_find(const struct decode_state *s, enum engine_mode mode, const uint8_t *code, struct insn *out);
void memo_add(struct decode_state *s, enum engine_mode mode, const uint8_t *code, const struct decoded *d, const struct insn *i);
/* The same for the view. */
bool memo_find_view(const struct decode_state *s, enum engine_mode mode, const uint8_t *code, struct decoded *d);
void memo_add_view(struct decode_state *s, enum engine_mode mode, const uint8_t *code, const struct decoded *d, const struct insn *i);

/*
 * As decode_insn(), with the view that *out was made from: that of an encoding which the guest has not got, too (op_undefined). All
 * 0 if the decoder has found none.
 */
unsigned decode_both(struct engine *e, enum engine_mode mode, const uint8_t *bytes, unsigned size, struct insn *out, struct decoded *d);

/* Outside of 64-bit mode VEX.W does not widen a general operand (SDM vol. 2, 2.3.5.5): the instruction is one that has such. */
bool decode_ignores_w(const ZydisDecodedInstruction *z);

/* 0..15 of a general register of any width (AH..BH give 4..7 and *high), or -1. */
int decode_gpr(ZydisRegister reg, bool *high);

#endif
