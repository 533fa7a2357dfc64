/*
 * From bytes to struct insn: the one place that runs the decoder (Zydis). It knows the encodings; which of them exist on
 * the guest's CPU is decided by the owners of the handlers (nobody answers: #UD) and by the decoder modes set here.
 *
 * Invariant: the result depends on the mode, the bytes and the CPU model only, never on registers, so that it may be cached.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "engine/decode.h"

#define INSN_MAX 15

bool decode_is_amd(const struct engine *e)
{
	uint32_t vendor = e->block->model.host_vendor[0];

	return vendor == 0x68747541u || vendor == 0x6f677948u; /* "Auth"enticAMD, "Hygo"nGenuine */
}

bool decode_ignores_w(const ZydisDecodedInstruction *z)
{
	if (z->machine_mode == ZYDIS_MACHINE_MODE_LONG_64)
		return false;
	switch (z->mnemonic) {
	case ZYDIS_MNEMONIC_VCVTSI2SD:
	case ZYDIS_MNEMONIC_VCVTSI2SS:
	case ZYDIS_MNEMONIC_VCVTSD2SI:
	case ZYDIS_MNEMONIC_VCVTSS2SI:
	case ZYDIS_MNEMONIC_VCVTTSD2SI:
	case ZYDIS_MNEMONIC_VCVTTSS2SI:
	case ZYDIS_MNEMONIC_VMOVD:
	case ZYDIS_MNEMONIC_VPINSRD:
	case ZYDIS_MNEMONIC_VPEXTRD: return true;
	default: return false;
	}
}

static void op_too_long(struct engine *e, const struct insn *i)
{
	engine_raise_error(e, EXC_GP, 0);
}

void op_undefined(struct engine *e, const struct insn *i)
{
	engine_raise(e, EXC_UD);
}

int decode_gpr(ZydisRegister reg, bool *high)
{
	int id;

	*high = false;
	if (reg >= ZYDIS_REGISTER_AL && reg <= ZYDIS_REGISTER_R15B) {
		/* Zydis counts AL CL DL BL AH CH DH BH SPL BPL SIL DIL R8B.. */
		if (reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH) {
			*high = true;
			return (int)(reg - ZYDIS_REGISTER_AH) + 4;
		}
		if (reg <= ZYDIS_REGISTER_BL)
			return (int)(reg - ZYDIS_REGISTER_AL);
		return (int)(reg - ZYDIS_REGISTER_SPL) + 4;
	}
	switch (ZydisRegisterGetClass(reg)) {
	case ZYDIS_REGCLASS_GPR16:
	case ZYDIS_REGCLASS_GPR32:
	case ZYDIS_REGCLASS_GPR64:
		id = ZydisRegisterGetId(reg);
		return id >= 0 && id < 16 ? id : -1;
	default:
		return -1;
	}
}

static uint8_t address_register(ZydisRegister reg)
{
	bool high;
	int id;

	if (reg == ZYDIS_REGISTER_NONE)
		return GPR_ZERO;
	if (reg == ZYDIS_REGISTER_RIP || reg == ZYDIS_REGISTER_EIP)
		return GPR_RIP;
	id = decode_gpr(reg, &high);
	return id < 0 ? GPR_ZERO : (uint8_t)id; /* vector index of a gather: native.c reads the Zydis view */
}

static uint8_t address_segment(ZydisRegister reg)
{
	if (reg >= ZYDIS_REGISTER_ES && reg <= ZYDIS_REGISTER_GS)
		return (uint8_t)(reg - ZYDIS_REGISTER_ES); /* same order as enum cpu_seg */
	return SEG_DS;
}

static void fill_memory(struct insn *i, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *op)
{
	static const uint8_t shift[9] = { [1] = 0, [2] = 1, [4] = 2, [8] = 3 };

	i->base = address_register(op->mem.base);
	i->index = address_register(op->mem.index);
	i->scale = op->mem.scale <= 8 ? shift[op->mem.scale] : 0;
	i->disp = op->mem.disp.has_displacement ? op->mem.disp.value : 0;
	i->seg = address_segment(op->mem.segment);
	/* ModRM.mod 0 with SIB.base 5 is no base whatever REX.B says; the decoder sees R13D with 32-bit addresses. */
	if (z->raw.sib.offset && z->raw.modrm.mod == 0 && z->raw.sib.base == 5 && op->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM) {
		i->base = GPR_ZERO;
		i->disp = z->raw.disp.value;
	}
}

static void fill_register(struct insn *i, const ZydisDecodedOperand *op, bool *have_rm, bool *have_reg)
{
	ZydisRegister reg = op->reg.value;
	ZydisRegisterClass class = ZydisRegisterGetClass(reg);
	bool high;
	int id = decode_gpr(reg, &high);

	if (class == ZYDIS_REGCLASS_SEGMENT) {
		if (op->visibility != ZYDIS_OPERAND_VISIBILITY_HIDDEN) /* LDS and its like: reg is the general register */
			i->reg = address_segment(reg);
		return;
	}
	if (class == ZYDIS_REGCLASS_CONTROL || class == ZYDIS_REGCLASS_DEBUG) {
		i->cc = (uint8_t)ZydisRegisterGetId(reg);
		return;
	}
	if (id < 0)
		return;
	switch (op->encoding) {
	case ZYDIS_OPERAND_ENCODING_MODRM_REG:
		*have_reg = true;
		i->reg = (uint8_t)id;
		i->flags |= high ? INSN_HIGH_REG : 0;
		break;
	case ZYDIS_OPERAND_ENCODING_NDSNDD:
		i->cc = (uint8_t)id;
		break;
	case ZYDIS_OPERAND_ENCODING_MODRM_RM:
	case ZYDIS_OPERAND_ENCODING_OPCODE:
		i->rm = (uint8_t)id;
		i->flags |= high ? INSN_HIGH_RM : 0;
		*have_rm = true;
		break;
	default:
		if (op->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN)
			break;
		if (*have_reg)
			break; /* the count of SHLD */
		if ((i->flags & INSN_MEM) || *have_rm) {
			i->reg = (uint8_t)id;
			i->flags |= high ? INSN_HIGH_REG : 0;
		} else {
			i->rm = (uint8_t)id;
			i->flags |= high ? INSN_HIGH_RM : 0;
			*have_rm = true;
		}
	}
}

static bool is_string(ZydisInstructionCategory category)
{
	return category == ZYDIS_CATEGORY_STRINGOP || category == ZYDIS_CATEGORY_IOSTRINGOP;
}

static void fill_operands(struct insn *i, const struct decoded *d)
{
	bool have_rm = false, have_reg = false, have_imm = false;
	unsigned n = d->insn.operand_count;

	for (unsigned k = 0; k < n; k++) {
		const ZydisDecodedOperand *op = &d->op[k];

		if (op->type != ZYDIS_OPERAND_TYPE_MEMORY)
			continue;
		if (is_string((ZydisInstructionCategory)d->insn.meta.category)) {
			/* The source wins: it is the one that an override applies to. */
			if (!(i->flags & INSN_MEM) || op->mem.base == ZYDIS_REGISTER_SI ||
				op->mem.base == ZYDIS_REGISTER_ESI || op->mem.base == ZYDIS_REGISTER_RSI)
				fill_memory(i, &d->insn, op);
			i->flags |= INSN_MEM;
		} else if (op->encoding != ZYDIS_OPERAND_ENCODING_NONE && !(i->flags & INSN_MEM)) {
			fill_memory(i, &d->insn, op);
			i->flags |= INSN_MEM;
		} else if (!(i->flags & INSN_MEM) && op->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN &&
			op->mem.base != ZYDIS_REGISTER_RSP && op->mem.base != ZYDIS_REGISTER_ESP &&
			op->mem.base != ZYDIS_REGISTER_SP) {
			fill_memory(i, &d->insn, op); /* XLAT, MASKMOVQ: only the segment is looked at */
		}
	}
	for (unsigned k = 0; k < n; k++) {
		const ZydisDecodedOperand *op = &d->op[k];

		if (op->type == ZYDIS_OPERAND_TYPE_REGISTER) {
			fill_register(i, op, &have_rm, &have_reg);
		} else if (op->type == ZYDIS_OPERAND_TYPE_POINTER) {
			i->imm = op->ptr.offset;
			i->disp = op->ptr.segment;
		} else if (op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
			if (have_imm)
				i->cc = (uint8_t)op->imm.value.u;
			else
				i->imm = op->imm.is_signed ? (uint64_t)op->imm.value.s : op->imm.value.u;
			have_imm = true;
		}
	}
}

static bool ends_block(const ZydisDecodedInstruction *z)
{
	switch (z->meta.category) {
	case ZYDIS_CATEGORY_CALL:
	case ZYDIS_CATEGORY_COND_BR:
	case ZYDIS_CATEGORY_UNCOND_BR:
	case ZYDIS_CATEGORY_RET:
	case ZYDIS_CATEGORY_INTERRUPT:
	case ZYDIS_CATEGORY_SYSCALL:
	case ZYDIS_CATEGORY_SYSRET:
		return true;
	default:
		break;
	}
	switch (z->mnemonic) {
	case ZYDIS_MNEMONIC_IRET:
	case ZYDIS_MNEMONIC_IRETD:
	case ZYDIS_MNEMONIC_IRETQ:
	case ZYDIS_MNEMONIC_STI:
	case ZYDIS_MNEMONIC_POPF:
	case ZYDIS_MNEMONIC_POPFD:
	case ZYDIS_MNEMONIC_POPFQ:
	case ZYDIS_MNEMONIC_LMSW:
	case ZYDIS_MNEMONIC_CLTS:
	case ZYDIS_MNEMONIC_WRMSR:
	case ZYDIS_MNEMONIC_INVLPG:
	case ZYDIS_MNEMONIC_INVPCID:
	case ZYDIS_MNEMONIC_HLT:
	case ZYDIS_MNEMONIC_XSETBV:
	case ZYDIS_MNEMONIC_STAC:
	case ZYDIS_MNEMONIC_CLAC:
	case ZYDIS_MNEMONIC_LSS:
	case ZYDIS_MNEMONIC_UD0:
	case ZYDIS_MNEMONIC_UD1:
	case ZYDIS_MNEMONIC_UD2:
	case ZYDIS_MNEMONIC_RSM:
		return true;
	default:
		return false;
	}
}

/* MOV to CR or DR, and loads of SS: known by the destination. */
static bool writes_special(const struct decoded *d)
{
	const ZydisDecodedOperand *op = &d->op[0];
	ZydisRegisterClass class;

	if (d->insn.operand_count == 0 || op->type != ZYDIS_OPERAND_TYPE_REGISTER)
		return false;
	class = ZydisRegisterGetClass(op->reg.value);
	if (class == ZYDIS_REGCLASS_CONTROL || class == ZYDIS_REGCLASS_DEBUG)
		return true;
	return op->reg.value == ZYDIS_REGISTER_SS &&
		(d->insn.mnemonic == ZYDIS_MNEMONIC_MOV || d->insn.mnemonic == ZYDIS_MNEMONIC_POP);
}

static void init_decoder(const struct engine *e, enum engine_mode mode, ZydisDecoder *decoder)
{
	static const struct {
		ZydisMachineMode machine;
		ZydisStackWidth stack;
	} modes[] = {
		[MODE_16] = { ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16 },
		[MODE_32] = { ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32 },
		[MODE_64] = { ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64 },
	};

	ZydisDecoderInit(decoder, modes[mode].machine, modes[mode].stack);
	ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_AMD_BRANCHES, decode_is_amd(e));
	/* Absent features whose encodings are NOPs on a CPU without them. */
	ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
	ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_CET, ZYAN_FALSE);
	ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_CLDEMOTE, ZYAN_FALSE);
	ZydisDecoderEnableMode(decoder, ZYDIS_DECODER_MODE_WBNOINVD, ZYAN_FALSE);
}

int decode_create(struct engine *e)
{
	void *p = mmap(NULL, sizeof(*e->decode), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return -ENOMEM;
	e->decode = p;
	for (enum engine_mode mode = MODE_16; mode <= MODE_64; mode++)
		init_decoder(e, mode, &e->decode->decoder[mode]);
	return memo_create(e->decode);
}

void decode_forget(struct engine *e)
{
	memo_forget(e->decode);
}

void decode_destroy(struct engine *e)
{
	if (!e->decode)
		return;
	memo_destroy(e->decode);
	munmap(e->decode, sizeof(*e->decode));
	e->decode = NULL;
}

static ZyanStatus decode_view(const struct engine *e, enum engine_mode mode, const uint8_t *bytes, unsigned size,
	struct decoded *d)
{
	return ZydisDecoderDecodeFull(&e->decode->decoder[mode], bytes, size < INSN_MAX ? size : INSN_MAX, &d->insn, d->op);
}

static unsigned undefined(struct insn *out, insn_fn fn)
{
	memset(out, 0, sizeof(*out));
	out->fn = fn;
	out->length = 1;
	out->base = out->index = GPR_ZERO;
	out->seg = SEG_DS;
	out->flags = INSN_ENDS_BLOCK;
	return 1;
}

static insn_fn find_handler(struct engine *e, struct insn *i, const struct decoded *d, const uint8_t *bytes)
{
	insn_fn fn = integer_handler(i, d);

	if (!fn)
		fn = branch_handler(i, d);
	if (!fn)
		fn = string_handler(i, d);
	if (!fn)
		fn = segment_handler(i, d);
	if (!fn)
		fn = system_handler(i, d);
	if (!fn)
		fn = native_handler(e, i, d, bytes);
	return fn;
}

static void fill_insn(struct engine *e, enum engine_mode mode, const uint8_t *bytes, const struct decoded *d, struct insn *out)
{
	ZydisInstructionAttributes attributes = d->insn.attributes;

	memset(out, 0, sizeof(*out));
	out->length = d->insn.length;
	out->opsize = d->insn.operand_width <= 64 ? d->insn.operand_width / 8 : 8;
	out->addrsize = d->insn.address_width / 8;
	out->stacksize = mode == MODE_64 ? 8 : mode == MODE_32 ? 4 : 2;
	out->mnemonic = (uint16_t)d->insn.mnemonic;
	out->base = out->index = GPR_ZERO;
	out->seg = SEG_DS;
	out->cc = d->insn.opcode & 15;
	if (attributes & ZYDIS_ATTRIB_HAS_LOCK)
		out->flags |= INSN_LOCK;
	if (attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE))
		out->flags |= INSN_REP;
	if (attributes & ZYDIS_ATTRIB_HAS_REPNE)
		out->flags |= INSN_REPNE;
	if (attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE)
		out->flags |= INSN_OPSIZE_PREFIX;
	if (ends_block(&d->insn) || writes_special(d))
		out->flags |= INSN_ENDS_BLOCK;
	fill_operands(out, d);
	out->fn = find_handler(e, out, d, bytes);
	if (!out->fn) {
		out->fn = op_undefined;
		out->flags |= INSN_ENDS_BLOCK;
	}
}

/* The decoder has found nothing: the length of what raises a fault, or 0. */
static unsigned fill_failure(ZyanStatus status, unsigned size, struct insn *out)
{
	if (status == ZYDIS_STATUS_NO_MORE_DATA)
		return size < INSN_MAX ? 0 : undefined(out, op_too_long);
	return undefined(out, status == ZYDIS_STATUS_INSTRUCTION_TOO_LONG ? op_too_long : op_undefined);
}

static unsigned decode_new(struct engine *e, enum engine_mode mode, const uint8_t *bytes, unsigned size, struct insn *out, struct decoded *d)
{
	ZyanStatus status = decode_view(e, mode, bytes, size, d);

	if (!ZYAN_SUCCESS(status)) {
		memset(d, 0, sizeof(*d));
		return fill_failure(status, size, out);
	}
	fill_insn(e, mode, bytes, d, out);
	if (size >= MEMO_BYTES && !(out->flags & INSN_ONCE))
		memo_add(e->decode, mode, bytes, d, out);
	return out->length;
}

unsigned decode_both(struct engine *e, enum engine_mode mode, const uint8_t *bytes, unsigned size, struct insn *out, struct decoded *d)
{
	uint8_t code[MEMO_BYTES];
	bool known;

	/* Another vcpu may write to the bytes: they are looked at once. */
	memcpy(code, bytes, size < MEMO_BYTES ? size : MEMO_BYTES);
	if (size < MEMO_BYTES)
		return decode_new(e, mode, code, size, out, d);
	known = memo_find(e->decode, mode, code, out);
	if (known && memo_find_view(e->decode, mode, code, d))
		return out->length;
	if (known ? !ZYAN_SUCCESS(decode_view(e, mode, code, size, d)) : !decode_new(e, mode, code, size, out, d))
		return 0;
	if (d->insn.length == out->length)
		memo_add_view(e->decode, mode, code, d, out);
	return out->length;
}

unsigned decode_insn(struct engine *e, enum engine_mode mode, const uint8_t *bytes, unsigned size, struct insn *out)
{
	uint8_t code[MEMO_BYTES];
	struct decoded d;

	memcpy(code, bytes, size < MEMO_BYTES ? size : MEMO_BYTES);
	return size >= MEMO_BYTES && memo_find(e->decode, mode, code, out) ? out->length : decode_new(e, mode, code, size, out, &d);
}
