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

/*
 * The decoder's answer for the guest's CPU, at most 15 bytes looked at. Whether the guest has the instruction is another
 * question: decode_insn().
 */
ZyanStatus decode_view(const struct engine *e, enum engine_mode mode, const uint8_t *bytes, unsigned size,
	struct decoded *d);

/* Outside of 64-bit mode VEX.W does not widen a general operand (SDM vol. 2, 2.3.5.5): the instruction is one that has such. */
bool decode_ignores_w(const ZydisDecodedInstruction *z);

/* 0..15 of a general register of any width (AH..BH give 4..7 and *high), or -1. */
int decode_gpr(ZydisRegister reg, bool *high);

#endif
