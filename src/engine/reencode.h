/* Re-encoding a guest instruction with other registers and another memory operand. */
#ifndef ENGINE_REENCODE_H
#define ENGINE_REENCODE_H

#include "engine/decode.h"
#include "engine/emit.h"

/*
 * True if the encoding is one that reencode() can write: legacy, VEX; no 3DNow!, XOP, EVEX. high: the
 * instruction has AH..BH, which exclude REX: registers above 7 can't be put in then.
 */
bool reencode_possible(const struct decoded *d, bool high, const struct emit_mem *memory);

/*
 * Emits the instruction at `bytes`. memory: the new operand where ModRM names memory, else ignored. map: what
 * becomes of general registers (16 entries), in ModRM.reg, ModRM.rm, the opcode byte and VEX.vvvv. Prefixes
 * that choose a segment or an address size are dropped.
 */
void reencode(struct emit *m, const struct decoded *d, const uint8_t *bytes, const struct emit_mem *memory,
	const uint8_t *map);

#endif
