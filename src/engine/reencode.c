/*
 * Re-encoding: the guest's instruction, byte for byte, but for the registers in ModRM, SIB, REX and VEX. The
 * opcode, the mandatory prefixes, the operand size and the immediate stay.
 *
 *   legacy   | 66 F0 F2 F3 | REX 0100WRXB | opcode map | opcode | ModRM | SIB | disp | imm |
 *   VEX      | C4 | ~R ~X ~B mmmmm | W ~vvvv L pp | opcode | ModRM | SIB | disp | imm |
 */
#include "engine/reencode.h"

/* Which general register, if any, an operand encoding holds. */
static bool is_gpr(const struct decoded *d, ZydisOperandEncoding encoding)
{
	for (unsigned n = 0; n < d->insn.operand_count; n++) {
		const ZydisDecodedOperand *op = &d->op[n];
		bool high;

		if (op->type == ZYDIS_OPERAND_TYPE_REGISTER && op->encoding == encoding)
			return decode_gpr(op->reg.value, &high) >= 0;
	}
	return false;
}

bool reencode_possible(const struct decoded *d, bool high, const struct emit_mem *memory)
{
	if (d->insn.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY &&
		d->insn.encoding != ZYDIS_INSTRUCTION_ENCODING_VEX)
		return false;
	switch (d->insn.opcode_map) {
	case ZYDIS_OPCODE_MAP_DEFAULT:
	case ZYDIS_OPCODE_MAP_0F:
	case ZYDIS_OPCODE_MAP_0F38:
	case ZYDIS_OPCODE_MAP_0F3A:
		break;
	default:
		return false;
	}
	return !high || !memory || (memory->base < 8 && memory->index < 8);
}

static void emit_operands(struct emit *m, const struct decoded *d, const uint8_t *bytes, int reg, int rm,
	const struct emit_mem *memory)
{
	const ZydisDecodedInstruction *z = &d->insn;
	unsigned imm = z->length;

	if (z->raw.imm[0].size)
		imm = z->raw.imm[0].offset;
	else if (z->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX && z->raw.modrm.offset) {
		/* A register in the immediate (is4) that the decoder does not list. */
		unsigned after =
			z->raw.modrm.offset + 1u + (z->raw.sib.offset ? 1 : 0) + z->raw.disp.size / 8;

		imm = after;
	}
	if (z->raw.modrm.offset) {
		if (z->raw.modrm.mod != 3)
			emit_modrm_mem(m, reg, *memory);
		else
			emit8(m, 0xc0 | (unsigned)(reg & 7) << 3 | (unsigned)(rm & 7));
	}
	while (imm < z->length)
		emit8(m, bytes[imm++]);
}

static void emit_opcode(struct emit *m, const ZydisDecodedInstruction *z, unsigned opcode)
{
	if (z->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT)
		emit8(m, 0x0f);
	if (z->opcode_map == ZYDIS_OPCODE_MAP_0F38)
		emit8(m, 0x38);
	else if (z->opcode_map == ZYDIS_OPCODE_MAP_0F3A)
		emit8(m, 0x3a);
	emit8(m, opcode);
}

void reencode(struct emit *m, const struct decoded *d, const uint8_t *bytes, const struct emit_mem *memory,
	const uint8_t *map)
{
	const ZydisDecodedInstruction *z = &d->insn;
	bool vex = z->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;
	const uint8_t *v = bytes + z->raw.vex.offset;
	bool three = vex && v[0] == 0xc4;
	unsigned r, b, w, rex;
	int reg = z->raw.modrm.reg, rm = z->raw.modrm.rm, vvvv = 0;
	bool has_memory = z->raw.modrm.offset && z->raw.modrm.mod != 3;
	bool in_opcode = !z->raw.modrm.offset && is_gpr(d, ZYDIS_OPERAND_ENCODING_OPCODE);

	if (vex) {
		r = !(v[1] & 0x80);
		b = three ? !(v[1] & 0x20) : 0;
		w = three ? v[2] >> 7 : 0;
		vvvv = ~(three ? v[2] >> 3 : v[1] >> 3) & 15;
		if (is_gpr(d, ZYDIS_OPERAND_ENCODING_NDSNDD))
			vvvv = map[vvvv];
	} else {
		r = z->raw.rex.R;
		b = z->raw.rex.B;
		w = z->raw.rex.W;
	}
	reg |= (int)r << 3;
	rm |= (int)b << 3;
	if (in_opcode)
		rm = (z->opcode & 7) | (int)b << 3;
	/*
	 * Numbers 4..7 of byte registers without REX are AH..BH and stay: the caller maps none of them
	 * elsewhere.
	 */
	if (is_gpr(d, ZYDIS_OPERAND_ENCODING_MODRM_REG))
		reg = map[reg];
	if (in_opcode || (!has_memory && is_gpr(d, ZYDIS_OPERAND_ENCODING_MODRM_RM)))
		rm = map[rm];
	rex = (reg >= 8 ? 4u : 0) | (has_memory ? rex_bits(0, *memory) : rm >= 8 ? 1u : 0);
	if (vex) {
		unsigned mmmmm = three ? v[1] & 31 : 1, low = three ? v[2] & 7 : v[1] & 7;

		emit8(m, 0xc4);
		emit8(m, (~rex & 7) << 5 | mmmmm);
		emit8(m, w << 7 | (~(unsigned)vvvv & 15) << 3 | low);
		emit8(m, z->opcode);
	} else {
		for (unsigned n = 0; n < z->raw.prefix_count; n++) {
			uint8_t prefix = z->raw.prefixes[n].value;

			if (prefix == 0x66 || prefix == 0xf0 || prefix == 0xf2 || prefix == 0xf3)
				emit8(m, prefix);
		}
		rex |= w << 3;
		if (rex || z->raw.rex.offset || (z->attributes & ZYDIS_ATTRIB_HAS_REX))
			emit8(m, 0x40 | rex);
		emit_opcode(m, z, in_opcode ? (z->opcode & ~7u) | (unsigned)(rm & 7) : z->opcode);
	}
	emit_operands(m, d, bytes, reg, rm, memory);
}
