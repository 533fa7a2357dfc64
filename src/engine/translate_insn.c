/*
 * What becomes of each instruction. Only mnemonics that are listed here are copied (their operands
 * rewritten); those with effects on RSP, RIP or implicit memory have code of their own; the interpreter does
 * the rest. So an instruction that nobody has thought of can't do harm.
 */
#include "engine/native.h"
#include "engine/translate.h"

#define RSP_STEP_MAX 65536

/* clang-format off */
static bool is_copied_mnemonic(ZydisMnemonic mnemonic)
{
	switch (mnemonic) {
	case ZYDIS_MNEMONIC_MOV: case ZYDIS_MNEMONIC_MOVZX: case ZYDIS_MNEMONIC_MOVSX: case ZYDIS_MNEMONIC_MOVSXD:
	case ZYDIS_MNEMONIC_MOVBE: case ZYDIS_MNEMONIC_MOVNTI: case ZYDIS_MNEMONIC_BSWAP:
	case ZYDIS_MNEMONIC_ADD: case ZYDIS_MNEMONIC_OR: case ZYDIS_MNEMONIC_ADC: case ZYDIS_MNEMONIC_SBB:
	case ZYDIS_MNEMONIC_AND: case ZYDIS_MNEMONIC_SUB: case ZYDIS_MNEMONIC_XOR: case ZYDIS_MNEMONIC_CMP:
	case ZYDIS_MNEMONIC_TEST: case ZYDIS_MNEMONIC_INC: case ZYDIS_MNEMONIC_DEC: case ZYDIS_MNEMONIC_NEG:
	case ZYDIS_MNEMONIC_NOT: case ZYDIS_MNEMONIC_ADCX: case ZYDIS_MNEMONIC_ADOX:
	case ZYDIS_MNEMONIC_SHL: case ZYDIS_MNEMONIC_SHR: case ZYDIS_MNEMONIC_SAR: case ZYDIS_MNEMONIC_ROL:
	case ZYDIS_MNEMONIC_ROR: case ZYDIS_MNEMONIC_RCL: case ZYDIS_MNEMONIC_RCR: case ZYDIS_MNEMONIC_SHLD:
	case ZYDIS_MNEMONIC_SHRD: case ZYDIS_MNEMONIC_IMUL: case ZYDIS_MNEMONIC_MUL: case ZYDIS_MNEMONIC_DIV:
	case ZYDIS_MNEMONIC_IDIV: case ZYDIS_MNEMONIC_CBW: case ZYDIS_MNEMONIC_CWDE: case ZYDIS_MNEMONIC_CDQE:
	case ZYDIS_MNEMONIC_CWD: case ZYDIS_MNEMONIC_CDQ: case ZYDIS_MNEMONIC_CQO:
	case ZYDIS_MNEMONIC_XCHG: case ZYDIS_MNEMONIC_CMPXCHG: case ZYDIS_MNEMONIC_XADD:
	case ZYDIS_MNEMONIC_CMPXCHG8B: case ZYDIS_MNEMONIC_CMPXCHG16B:
	case ZYDIS_MNEMONIC_BT: case ZYDIS_MNEMONIC_BTS: case ZYDIS_MNEMONIC_BTR: case ZYDIS_MNEMONIC_BTC:
	case ZYDIS_MNEMONIC_BSF: case ZYDIS_MNEMONIC_BSR: case ZYDIS_MNEMONIC_TZCNT: case ZYDIS_MNEMONIC_LZCNT:
	case ZYDIS_MNEMONIC_POPCNT: case ZYDIS_MNEMONIC_ANDN: case ZYDIS_MNEMONIC_BEXTR: case ZYDIS_MNEMONIC_BLSI:
	case ZYDIS_MNEMONIC_BLSR: case ZYDIS_MNEMONIC_BLSMSK: case ZYDIS_MNEMONIC_BZHI: case ZYDIS_MNEMONIC_PDEP:
	case ZYDIS_MNEMONIC_PEXT: case ZYDIS_MNEMONIC_RORX: case ZYDIS_MNEMONIC_SARX: case ZYDIS_MNEMONIC_SHLX:
	case ZYDIS_MNEMONIC_SHRX: case ZYDIS_MNEMONIC_MULX: case ZYDIS_MNEMONIC_CRC32:
	case ZYDIS_MNEMONIC_LAHF: case ZYDIS_MNEMONIC_SAHF: case ZYDIS_MNEMONIC_CLC: case ZYDIS_MNEMONIC_STC:
	case ZYDIS_MNEMONIC_CMC: case ZYDIS_MNEMONIC_LFENCE: case ZYDIS_MNEMONIC_MFENCE: case ZYDIS_MNEMONIC_SFENCE:
	case ZYDIS_MNEMONIC_PAUSE:
		return true;
	default:
		return mnemonic >= ZYDIS_MNEMONIC_SETB && mnemonic <= ZYDIS_MNEMONIC_SETZ && mnemonic != ZYDIS_MNEMONIC_SETSSBSY;
	}
}
/* clang-format on */

static bool is_cmov(const ZydisDecodedInstruction *z)
{
	return z->opcode_map == ZYDIS_OPCODE_MAP_0F && (z->opcode & 0xf0) == 0x40 &&
	       z->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY;
}

bool tx_is_copied(const ZydisDecodedInstruction *z)
{
	return is_cmov(z) || is_copied_mnemonic(z->mnemonic);
}

bool tx_is_nothing(ZydisMnemonic mnemonic)
{
	switch (mnemonic) {
	case ZYDIS_MNEMONIC_NOP:
	case ZYDIS_MNEMONIC_ENDBR64:
	case ZYDIS_MNEMONIC_PREFETCHT0:
	case ZYDIS_MNEMONIC_PREFETCHT1:
	case ZYDIS_MNEMONIC_PREFETCHT2:
	case ZYDIS_MNEMONIC_PREFETCHNTA:
	case ZYDIS_MNEMONIC_PREFETCHW:
	case ZYDIS_MNEMONIC_PREFETCH:
		return true;
	default:
		return false;
	}
}

/* Processors leave the flags that are undefined after these as they were. */
static bool keeps_undefined_flags(ZydisMnemonic mnemonic)
{
	switch (mnemonic) {
	case ZYDIS_MNEMONIC_MUL:
	case ZYDIS_MNEMONIC_IMUL:
	case ZYDIS_MNEMONIC_DIV:
	case ZYDIS_MNEMONIC_IDIV:
	case ZYDIS_MNEMONIC_BT:
	case ZYDIS_MNEMONIC_BTS:
	case ZYDIS_MNEMONIC_BTR:
	case ZYDIS_MNEMONIC_BTC:
	case ZYDIS_MNEMONIC_BSF:
	case ZYDIS_MNEMONIC_BSR:
	case ZYDIS_MNEMONIC_TZCNT:
	case ZYDIS_MNEMONIC_LZCNT:
		return true;
	default:
		return false;
	}
}

/* Saves the flags somewhere, or leaves for code that looks at them. */
static bool shows_flags(const ZydisDecodedInstruction *z)
{
	switch (z->meta.category) {
	case ZYDIS_CATEGORY_INTERRUPT:
	case ZYDIS_CATEGORY_SYSCALL:
	case ZYDIS_CATEGORY_SYSRET:
	case ZYDIS_CATEGORY_SYSTEM:
		return true;
	default:
		return false;
	}
}

/* The status flags that an instruction surely writes: not those of a shift whose count may be 0. */
static uint32_t surely_written(const struct decoded *d, uint32_t written)
{
	const ZydisDecodedOperand *count = &d->op[1];

	switch (d->insn.mnemonic) {
	case ZYDIS_MNEMONIC_RCL:
	case ZYDIS_MNEMONIC_RCR:
		return 0;
	case ZYDIS_MNEMONIC_SHLD:
	case ZYDIS_MNEMONIC_SHRD:
		count = &d->op[2];
		/* fall through */
	case ZYDIS_MNEMONIC_SHL:
	case ZYDIS_MNEMONIC_SHR:
	case ZYDIS_MNEMONIC_SAR:
	case ZYDIS_MNEMONIC_ROL:
	case ZYDIS_MNEMONIC_ROR:
		if (count->type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
			return 0;
		return count->imm.value.u & (d->insn.operand_width == 64 ? 63 : 31) ? written : 0;
	default:
		return d->insn.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE |
						    ZYDIS_ATTRIB_HAS_REPNE) &&
				       d->insn.meta.category == ZYDIS_CATEGORY_STRINGOP
			       ? 0
			       : written;
	}
}

/* BSF and BSR of 0 leave the destination as it was. */
static bool may_leave_result(ZydisMnemonic mnemonic)
{
	return mnemonic == ZYDIS_MNEMONIC_BSF || mnemonic == ZYDIS_MNEMONIC_BSR;
}

void tx_examine(struct tx *x, struct tx_insn *i)
{
	const struct decoded *d = &i->d;
	const ZydisAccessedFlags *f = d->insn.cpu_flags;

	i->memory = -1;
	for (unsigned n = 0; n < d->insn.operand_count; n++) {
		const ZydisDecodedOperand *op = &d->op[n];

		if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) {
			if (op->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM)
				i->memory = (int)n;
		} else if (op->type == ZYDIS_OPERAND_TYPE_REGISTER) {
			bool high;
			int reg = decode_gpr(op->reg.value, &high);

			if (reg < 0)
				continue;
			if (high) {
				i->high = true;
				reg -= 4;
			}
			if (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
				i->written |= 1u << reg;
			if (op->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN)
				continue;
			i->used |= 1u << reg;
			if (op->actions != ZYDIS_OPERAND_ACTION_WRITE || op->size < 32 || may_leave_result(d->insn.mnemonic))
				i->read |= 1u << reg;
		}
	}
	if (!f)
		return;
	i->flags_read = f->tested & FLAGS_STATUS;
	i->flags_written =
		surely_written(d, (f->modified | f->set_0 | f->set_1 |
					  (keeps_undefined_flags(d->insn.mnemonic) ? 0 : f->undefined)) &
					  FLAGS_STATUS);
	if (shows_flags(&d->insn))
		i->flags_read = (uint32_t)FLAGS_STATUS;
}

/* --- pieces --- */

static struct emit_mem home(struct tx *x, int reg)
{
	return mem_abs(&x->e->cpu->gpr[reg]);
}

static uint32_t live_after(const struct tx *x)
{
	return x->n + 1 < x->count ? x->insn[x->n + 1].flags_live : x->live_out;
}

/* RSP has been stepped without an access: one keeps it near its slot, unless the next instruction is one. */
static void touch_stack(struct tx *x, const struct tx_insn *i)
{
	if (x->n + 1 < x->count) {
		switch (x->insn[x->n + 1].d.insn.mnemonic) {
		case ZYDIS_MNEMONIC_PUSH:
		case ZYDIS_MNEMONIC_POP:
		case ZYDIS_MNEMONIC_CALL:
		case ZYDIS_MNEMONIC_RET:
			return;
		default:
			break;
		}
	}
	tx_map(x, i->next, MAP_INSN);
	tx_clobber(x, SCRATCH(S1));
	emit_load(&x->m, S1, mem_base(RSP, 0));
}

/* --- instructions with an RSP operand --- */

/* Registers as they are, but for RSP. */
static const uint8_t rsp_in_s1[16] = {0, 1, 2, 3, S1, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

static bool step_rsp(struct tx *x, struct tx_insn *i)
{
	int64_t step = i->d.op[1].imm.value.s;

	if (i->d.insn.mnemonic == ZYDIS_MNEMONIC_SUB)
		step = -step;
	if (step > RSP_STEP_MAX || step < -RSP_STEP_MAX)
		return false;
	if (live_after(x) & i->flags_written) {
		tx_get_rsp(x, S1, 0);
		reencode(&x->m, &i->d, i->bytes, NULL, rsp_in_s1);
	}
	emit_lea(&x->m, RSP, mem_base(RSP, (int32_t)step));
	touch_stack(x, i);
	return true;
}

/* S1 is what RSP shall be. */
static void set_rsp(struct tx *x, uint32_t live)
{
	tx_check_rsp(x, live, true);
	emit_lea(&x->m, RSP, (struct emit_mem){S1, S2, 0, 0});
}

/* S1 = operand n, of 64 bits: memory or a register other than RSP. */
static bool load_operand(struct tx *x, const struct tx_insn *i, unsigned n)
{
	const ZydisDecodedOperand *op = &i->d.op[n];
	struct emit_mem memory;
	bool high;
	int reg;

	if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) {
		if (i->memory != (int)n || !tx_operand(x, op, 0, &memory))
			return false;
		tx_clobber(x, SCRATCH(S1));
		emit_load(&x->m, S1, memory);
		return true;
	}
	if (op->type != ZYDIS_OPERAND_TYPE_REGISTER)
		return false;
	reg = decode_gpr(op->reg.value, &high);
	if (reg < 0 || reg == RSP)
		return false;
	tx_clobber(x, SCRATCH(S1));
	if (reg == S1 || reg == S2)
		emit_load(&x->m, S1, home(x, reg));
	else
		emit_move(&x->m, S1, reg);
	return true;
}

/* Instructions that write RSP as an explicit operand. */
static bool write_rsp(struct tx *x, struct tx_insn *i)
{
	const ZydisDecodedOperand *src = &i->d.op[1];
	bool immediate = src->type == ZYDIS_OPERAND_TYPE_IMMEDIATE;

	if (i->d.insn.operand_width != 64 || i->d.op[0].type != ZYDIS_OPERAND_TYPE_REGISTER ||
		i->d.op[0].reg.value != ZYDIS_REGISTER_RSP)
		return false;
	switch (i->d.insn.mnemonic) {
	case ZYDIS_MNEMONIC_ADD:
	case ZYDIS_MNEMONIC_SUB:
		if (immediate && step_rsp(x, i))
			return true;
		/* fall through */
	case ZYDIS_MNEMONIC_AND:
		if (i->memory >= 0 || (i->used & (SCRATCH(S1) | SCRATCH(S2))))
			return false;
		tx_get_rsp(x, S1, 0);
		reencode(&x->m, &i->d, i->bytes, NULL, rsp_in_s1);
		set_rsp(x, FLAGS_STATUS & live_after(x));
		break;
	case ZYDIS_MNEMONIC_MOV:
		if (!load_operand(x, i, 1))
			return false;
		set_rsp(x, i->flags_live);
		break;
	default:
		return false;
	}
	touch_stack(x, i);
	return true;
}

/* --- copied instructions --- */

/*
 * The register operand that stands in ModRM.rm, if it is one whose value is in memory and the instruction may be given that memory
 * in its place; else −1. A write of 32 bits would have to clear the others.
 */
static int find_operand_at_home(const struct tx_insn *i)
{
	const ZydisDecodedInstruction *z = &i->d.insn;
	const ZydisDecodedOperand *rm = NULL;
	bool high;
	int reg;

	if (i->memory >= 0 || !z->raw.modrm.offset || z->raw.modrm.mod != 3 || z->mnemonic == ZYDIS_MNEMONIC_XCHG ||
		z->mnemonic == ZYDIS_MNEMONIC_BT || z->mnemonic == ZYDIS_MNEMONIC_BTS || z->mnemonic == ZYDIS_MNEMONIC_BTR ||
		z->mnemonic == ZYDIS_MNEMONIC_BTC || !tx_is_copied(z))
		return -1;
	for (unsigned n = 0; n < z->operand_count; n++)
		if (i->d.op[n].encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM)
			rm = &i->d.op[n];
	if (!rm || rm->type != ZYDIS_OPERAND_TYPE_REGISTER ||
		(rm->size == 32 && (rm->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)))
		return -1;
	reg = decode_gpr(rm->reg.value, &high);
	if (high || !is_scratch(reg))
		return -1;
	for (unsigned n = 0; n < z->operand_count; n++) {
		bool other_high;

		if (&i->d.op[n] != rm && i->d.op[n].type == ZYDIS_OPERAND_TYPE_REGISTER &&
			decode_gpr(i->d.op[n].reg.value, &other_high) == reg)
			return -1;
	}
	return reg;
}

/* Byte registers 4..7 are AH..BH where there is no REX prefix; nothing is mapped then. */
static bool copy(struct tx *x, struct tx_insn *i)
{
	uint8_t map[16];
	struct emit_mem memory = {NO_REG, NO_REG, 0, 0};
	unsigned data = 0;
	int at_home = find_operand_at_home(i);
	uint32_t written = i->written;

	if (i->written & 1u << RSP)
		return write_rsp(x, i);
	for (unsigned n = 0; n < 16; n++)
		map[n] = (uint8_t)n;
	data = i->used & (SCRATCH(S1) | SCRATCH(S2));
	if (at_home >= 0) {
		data &= ~SCRATCH(at_home);
		written &= ~SCRATCH(at_home);
	}
	if (i->used & 1u << RSP) {
		if (i->high || (data & SCRATCH(S1)) || (data && i->memory >= 0))
			return false;
		map[RSP] = S1;
		data |= SCRATCH(S1);
	}
	/* What is only written may be used for the address. */
	if (i->memory >= 0 && !tx_operand(x, &i->d.op[i->memory], data & (i->read | SCRATCH(map[RSP])), &memory))
		return false;
	if (!reencode_possible(&i->d, i->high, i->memory >= 0 ? &memory : NULL))
		return false;
	tx_clobber(x, data);
	for (int s = S1; s <= S2; s++) {
		if (!(data & SCRATCH(s)))
			continue;
		if (s == S1 && map[RSP] == S1)
			tx_get_rsp(x, S1, 0);
		else if (i->read >> s & 1)
			emit_load(&x->m, s, home(x, s));
	}
	if (at_home >= 0) {
		struct decoded d = i->d;

		d.insn.raw.modrm.mod = 0;
		memory = home(x, at_home);
		reencode(&x->m, &d, i->bytes, &memory, map);
	} else {
		reencode(&x->m, &i->d, i->bytes, &memory, map);
	}
	for (int s = S1; s <= S2; s++)
		if (written & 1u << s)
			emit_store(&x->m, s, home(x, s));
	return true;
}

/* S2 = a register's bit number, sign-extended. */
static void load_bit_number(struct tx *x, int bit, unsigned width)
{
	bool at_home = bit == S1 || bit == S2;

	if (width == 64) {
		if (at_home)
			emit_load(&x->m, S2, home(x, bit));
		else
			emit_move(&x->m, S2, bit);
	} else if (at_home) {
		emit_op_mem(&x->m, 0x63, S2, home(x, bit)); /* movslq */
	} else {
		emit_op_reg(&x->m, 0x63, S2, bit);
	}
}

/*
 * A register's bit of memory lies anywhere (SDM vol. 2, BT): the operand of 4 or 8 bytes that holds it is
 * addressed first, then the instruction is given what remains of the bit number.
 */
static bool bit_test(struct tx *x, struct tx_insn *i)
{
	struct hot *h = &x->t->hot;
	unsigned width = i->d.insn.operand_width;
	uint8_t map[16];
	bool high;
	int bit;

	if (i->memory < 0 || i->d.op[1].type != ZYDIS_OPERAND_TYPE_REGISTER)
		return copy(x, i);
	bit = decode_gpr(i->d.op[1].reg.value, &high);
	if (width < 32 || bit == RSP || x->soft)
		return false;
	tx_effective(x, &i->d.op[0], S1, S2);
	/* The other status flags live on as a rule: none is touched. S1 += number >> 5 << 2, or >> 6 << 3, of 64 bits. */
	emit_store(&x->m, RCX, mem_abs(&h->save));
	load_bit_number(x, bit, width);
	emit_bytes(&x->m, width == 64 ? "\xb9\x06\x00\x00\x00" : "\xb9\x05\x00\x00\x00", 5); /* mov $6 or $5, %ecx */
	emit_bytes(&x->m, "\xc4\x42\xf2\xf7\xdb", 5); /* sarx %rcx, %r11, %r11 */
	emit_load(&x->m, RCX, mem_abs(&h->save));
	emit_lea(&x->m, S1, (struct emit_mem){S1, S2, width == 64 ? 3 : 2, 0});
	tx_find_delta(x, S2, S1, i->flags_live);
	emit_lea(&x->m, S1, (struct emit_mem){S1, S2, 0, 0});
	load_bit_number(x, bit, width);
	emit_pext(&x->m, S2, S2, mem_abs(width == 64 ? &h->bit_mask[1] : &h->bit_mask[0]));
	for (unsigned n = 0; n < 16; n++)
		map[n] = (uint8_t)n;
	map[bit] = S2;
	reencode(&x->m, &i->d, i->bytes, &(struct emit_mem){S1, NO_REG, 0, 0}, map);
	return true;
}

/* A LEA all of whose registers are where they are for the guest is copied. */
static bool load_address_plain(struct tx *x, struct tx_insn *i, int dst)
{
	struct emit_mem a = tx_address_of(&i->d.op[1]);
	const uint32_t others = 1u << S1 | 1u << S2 | 1u << RSP | 1u << GPR_RIP;

	if ((a.base != NO_REG && (others >> a.base & 1)) || (a.index != NO_REG && (others >> a.index & 1)) || (others >> dst & 1))
		return false;
	if (i->d.insn.operand_width == 64)
		emit_lea(&x->m, dst, a);
	else
		emit_lea32(&x->m, dst, a);
	return true;
}

static bool load_address(struct tx *x, struct tx_insn *i)
{
	const ZydisDecodedOperand *op = &i->d.op[1];
	unsigned width = i->d.insn.operand_width;
	bool high;
	int dst = decode_gpr(i->d.op[0].reg.value, &high);
	int32_t disp = op->mem.disp.has_displacement ? (int32_t)op->mem.disp.value : 0;
	bool plain = op->mem.segment != ZYDIS_REGISTER_FS && op->mem.segment != ZYDIS_REGISTER_GS;
	ZydisDecodedOperand flat = *op;

	if (dst < 0 || width < 32 || i->d.insn.address_width != 64)
		return false;
	/* LEA knows no segments. */
	if (!plain)
		flat.mem.segment = ZYDIS_REGISTER_DS;
	if (dst == RSP) {
		if (width != 64)
			return false;
		if (op->mem.base == ZYDIS_REGISTER_RSP && op->mem.index == ZYDIS_REGISTER_NONE) {
			if (disp > RSP_STEP_MAX || disp < -RSP_STEP_MAX)
				return false;
			emit_lea(&x->m, RSP, mem_base(RSP, disp));
		} else {
			tx_effective(x, &flat, S1, S2);
			set_rsp(x, i->flags_live);
		}
		touch_stack(x, i);
		return true;
	}
	if (width == 64 && dst != S1 && dst != S2 && op->mem.index == ZYDIS_REGISTER_NONE) {
		if (op->mem.base == ZYDIS_REGISTER_RIP) {
			tx_code_base(x, dst);
			emit_lea(&x->m, dst, mem_base(dst, i->next + disp));
			return true;
		}
		if (op->mem.base == ZYDIS_REGISTER_RSP) {
			emit_load(&x->m, dst, mem_abs(&x->t->hot.rsp_neg));
			emit_lea(&x->m, dst, (struct emit_mem){RSP, dst, 0, disp});
			return true;
		}
	}
	if (load_address_plain(x, i, dst))
		return true;
	tx_effective(x, &flat, S1, S2);
	if (width == 32) {
		/* mov %r10d, dst */
		int to = dst == S1 || dst == S2 ? S1 : dst;

		emit8(&x->m, 0x44 | (to >= 8 ? 1 : 0));
		emit8(&x->m, 0x89);
		emit8(&x->m, 0xc0 | (S1 & 7) << 3 | ((unsigned)to & 7));
		if (to == dst && dst != S1)
			return true;
	} else if (dst != S1 && dst != S2) {
		emit_move(&x->m, dst, S1);
		return true;
	}
	emit_store(&x->m, S1, home(x, dst));
	return true;
}

/* --- stack --- */

static bool push(struct tx *x, struct tx_insn *i)
{
	const ZydisDecodedOperand *op = &i->d.op[0];
	bool high;
	int reg;

	if (i->d.insn.operand_width != 64)
		return false;
	if (op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
		emit8(&x->m, 0x68);
		emit32(&x->m, (uint32_t)op->imm.value.s);
		return true;
	}
	if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) {
		if (!load_operand(x, i, 0))
			return false;
		emit_push(&x->m, S1);
		return true;
	}
	reg = decode_gpr(op->reg.value, &high);
	if (reg < 0)
		return false;
	if (reg == RSP) {
		tx_get_rsp(x, S1, 0);
		emit_push(&x->m, S1);
	} else if (reg == S1 || reg == S2) {
		emit_group5(&x->m, GROUP5_PUSH, home(x, reg));
	} else {
		emit_push(&x->m, reg);
	}
	return true;
}

static bool pop(struct tx *x, struct tx_insn *i)
{
	const ZydisDecodedOperand *op = &i->d.op[0];
	bool high;
	int reg;

	if (i->d.insn.operand_width != 64 || op->type != ZYDIS_OPERAND_TYPE_REGISTER)
		return false;
	reg = decode_gpr(op->reg.value, &high);
	if (reg < 0)
		return false;
	if (reg == RSP) {
		tx_clobber(x, SCRATCH(S1));
		emit_load(&x->m, S1, mem_base(RSP, 0));
		set_rsp(x, i->flags_live);
		touch_stack(x, i);
	} else if (reg == S1 || reg == S2) {
		tx_clobber(x, SCRATCH(S1));
		emit_pop(&x->m, S1);
		emit_store(&x->m, S1, home(x, reg));
	} else {
		emit_pop(&x->m, reg);
	}
	return true;
}

static bool leave(struct tx *x, struct tx_insn *i)
{
	if (i->d.insn.operand_width != 64)
		return false;
	tx_clobber(x, SCRATCH(S1) | SCRATCH(S2));
	emit_move(&x->m, S1, RBP);
	tx_check_rsp(x, i->flags_live, false);
	emit_load(&x->m, RBP, (struct emit_mem){S1, S2, 0, 0});
	emit_lea(&x->m, RSP, (struct emit_mem){S1, S2, 0, 8});
	return true;
}

/* --- control flow --- */

void tx_page_address(struct tx *x, int to, int offset)
{
	tx_clobber(x, SCRATCH(to));
	tx_code_base(x, to);
	if (x->mode32)
		emit_lea32(&x->m, to, mem_base(to, offset));
	else
		emit_lea(&x->m, to, mem_base(to, offset));
}

static bool is_in_page(int64_t target)
{
	return target >= 0 && target < 4096;
}

void tx_go(struct tx *x, const struct tx_insn *i, int64_t target, int undo, bool polled)
{
	if (is_in_page(target)) {
		tx_branch(x, -1, (int)target);
	} else {
		if (target <= i->offset && !polled) {
			tx_map(x, i->offset, MAP_POLL);
			tx_poll(x, S1);
		}
		tx_jump_far(x, i->offset, (int32_t)target, undo);
	}
	x->ended = true;
}

void tx_poll_call(struct tx *x, const struct tx_insn *i, int64_t target)
{
	if (is_in_page(target) || target > i->offset)
		return;
	tx_map(x, i->offset, MAP_POLL);
	tx_poll(x, S1);
	tx_map(x, i->offset, MAP_INSN);
}

bool tx_relative_target(const struct tx *x, const struct tx_insn *i, int64_t *target)
{
	const ZydisDecodedOperand *op = &i->d.op[0];

	if (op->type != ZYDIS_OPERAND_TYPE_IMMEDIATE || !op->imm.is_relative)
		return false;
	*target = i->next + op->imm.value.s;
	if (x->mode32)
		*target = (int32_t)*target;
	return *target == (int32_t)*target;
}

/* Such a direct call may lead to an address that is not canonical. */
bool tx_is_far_call(int64_t target)
{
	return target >= FAR_CALL || target <= -FAR_CALL;
}

bool tx_is_plain_branch(const struct tx_insn *i)
{
	return i->d.insn.meta.branch_type != ZYDIS_BRANCH_TYPE_FAR &&
	       !(i->d.insn.attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE);
}

static bool jump(struct tx *x, struct tx_insn *i)
{
	int64_t target;

	if (!tx_is_plain_branch(i))
		return false;
	if (tx_relative_target(x, i, &target)) {
		tx_go(x, i, target, 0, false);
		return true;
	}
	if (i->d.insn.operand_width != 64 || !load_operand(x, i, 0))
		return false;
	tx_jump(x, i->offset, 0, true);
	x->ended = true;
	return true;
}

static bool call(struct tx *x, struct tx_insn *i)
{
	int64_t target;
	uint8_t *left;

	if (!tx_is_plain_branch(i))
		return false;
	if (tx_relative_target(x, i, &target)) {
		tx_poll_call(x, i, target);
		if (tx_is_far_call(target))
			tx_keep_under(x);
		left = tx_push_return(x, i->next, target);
		tx_go(x, i, target, -8, true);
		tx_land(x, left, i->next);
		return true;
	}
	if (i->d.insn.operand_width != 64 || !load_operand(x, i, 0))
		return false;
	tx_call_indirect(x, i->offset, i->next);
	x->ended = true;
	return true;
}

static bool ret(struct tx *x, struct tx_insn *i)
{
	const ZydisDecodedOperand *op = &i->d.op[0];
	int extra = 0;

	if (!tx_is_plain_branch(i))
		return false;
	if (op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && op->visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT)
		extra = (int)op->imm.value.u;
	if (extra + 8 > UNDO_MAX)
		return false;
	tx_clobber(x, SCRATCH(S1));
	emit_pop(&x->m, S1);
	if (extra)
		emit_lea(&x->m, RSP, mem_base(RSP, extra));
	tx_return(x, i->offset, 8 + extra);
	x->ended = true;
	return true;
}

bool tx_is_jcc(const ZydisDecodedInstruction *z)
{
	return z->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY &&
	       ((z->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && (z->opcode & 0xf0) == 0x70) ||
		       (z->opcode_map == ZYDIS_OPCODE_MAP_0F && (z->opcode & 0xf0) == 0x80));
}

bool tx_jump_if(struct tx *x, const struct tx_insn *i)
{
	int64_t target;
	unsigned cc = i->d.insn.opcode & 15;
	uint8_t *skip;

	if (!tx_is_plain_branch(i) || !tx_relative_target(x, i, &target))
		return false;
	if (is_in_page(target) && region_is_ahead(x, (int)target) && region_find(x, i->next) < 0 && is_in_page(i->next)) {
		/* The way on is the one that is taken. */
		tx_branch(x, (int)cc ^ 1, i->next);
		tx_go(x, i, target, 0, false);
		return true;
	}
	if (is_in_page(target)) {
		tx_branch(x, (int)cc, (int)target);
	} else {
		skip = emit_jcc(&x->m, cc ^ 1);
		if (target <= i->offset) {
			tx_map(x, i->offset, MAP_POLL);
			tx_poll(x, S1);
		}
		tx_jump_far(x, i->offset, (int32_t)target, 0);
		emit_patch(skip, x->m.p);
	}
	tx_go(x, i, i->next, 0, false);
	return true;
}

static void pass(struct tx *x, bool *passed, const uint64_t *gate)
{
	if (*passed)
		return;
	*passed = true;
	tx_clobber(x, SCRATCH(S1));
	emit_load(&x->m, S1, mem_abs(gate));
	emit_load8(&x->m, S1, mem_base(S1, 0));
}

void tx_pass_gate(struct tx *x)
{
	pass(x, &x->facts.gated, &x->t->hot.fp_gate);
}

void tx_pass_x87(struct tx *x)
{
	pass(x, &x->gated87, &x->t->hot.x87_gate);
}

/*
 * Behind its gate all x87 exceptions are masked and none is pending, so that none of these faults and the pointers to the last instruction
 * are 0. What may change that, or shows the pointers, is interpreted.
 */
bool tx_is_x87(const struct native_op *native, ZydisMnemonic mnemonic)
{
	return native && (native->flags & NATIVE_X87) && !(native->flags & (NATIVE_ENV | NATIVE_LOAD_ENV | NATIVE_MMX)) &&
	       mnemonic != ZYDIS_MNEMONIC_FLDCW;
}

bool tx_emit(struct tx *x, struct tx_insn *i, const struct insn *decoded)
{
	const struct native_op *native = decoded->native;

	if (decoded->fn == op_undefined || (i->d.insn.address_width != 64 && (i->memory >= 0)))
		return false;
	if (native && (native->flags & (NATIVE_SSE | NATIVE_AVX)) &&
		!(native->flags & (NATIVE_X87 | NATIVE_MMX))) {
		if (i->written & 1u << RSP)
			return false;
		tx_pass_gate(x);
		return copy(x, i);
	}
	if (tx_is_x87(native, i->d.insn.mnemonic)) {
		tx_pass_x87(x);
		return copy(x, i);
	}
	switch (i->d.insn.mnemonic) {
	case ZYDIS_MNEMONIC_JMP:
		return jump(x, i);
	case ZYDIS_MNEMONIC_CALL:
		return call(x, i);
	case ZYDIS_MNEMONIC_RET:
		return ret(x, i);
	case ZYDIS_MNEMONIC_PUSH:
		return push(x, i);
	case ZYDIS_MNEMONIC_POP:
		return pop(x, i);
	case ZYDIS_MNEMONIC_LEAVE:
		return leave(x, i);
	case ZYDIS_MNEMONIC_LEA:
		return load_address(x, i);
	case ZYDIS_MNEMONIC_BT:
	case ZYDIS_MNEMONIC_BTS:
	case ZYDIS_MNEMONIC_BTR:
	case ZYDIS_MNEMONIC_BTC:
		return bit_test(x, i);
	case ZYDIS_MNEMONIC_STOSB:
	case ZYDIS_MNEMONIC_STOSW:
	case ZYDIS_MNEMONIC_STOSD:
	case ZYDIS_MNEMONIC_STOSQ:
		return tx_string(x, i, false);
	case ZYDIS_MNEMONIC_MOVSB:
	case ZYDIS_MNEMONIC_MOVSW:
	case ZYDIS_MNEMONIC_MOVSD:
	case ZYDIS_MNEMONIC_MOVSQ:
		return i->d.insn.meta.category == ZYDIS_CATEGORY_STRINGOP && tx_string(x, i, true);
	case ZYDIS_MNEMONIC_MOV:
		/* Segment, control and debug registers; addresses in the instruction. */
		for (unsigned n = 0; n < 2; n++) {
			const ZydisDecodedOperand *op = &i->d.op[n];
			bool high;

			if (op->type == ZYDIS_OPERAND_TYPE_REGISTER && decode_gpr(op->reg.value, &high) < 0)
				return tx_system(x, i, decoded);
			if (op->type == ZYDIS_OPERAND_TYPE_MEMORY &&
				op->encoding != ZYDIS_OPERAND_ENCODING_MODRM_RM)
				return false;
		}
		return copy(x, i);
	default:
		break;
	}
	if (tx_is_jcc(&i->d.insn))
		return tx_jump_if(x, i);
	if (tx_is_nothing(i->d.insn.mnemonic))
		return true;
	if (tx_is_copied(&i->d.insn))
		return copy(x, i);
	return tx_system(x, i, decoded);
}
