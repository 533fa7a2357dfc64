/*
 * Makes the tests of difftest.c: random bytes that decode to something which the CPU model offers and which two runs of it
 * must agree on, with operands aimed at the data window.
 */
#include <stdlib.h>
#include <string.h>

#include "difftest.h"

/* The decimal instructions do not exist in 64-bit mode, where the engine lives: it computes them, and only what is defined. */
static uint32_t undefined_flags(ZydisMnemonic mnemonic)
{
	switch (mnemonic) {
	case ZYDIS_MNEMONIC_AAA:
	case ZYDIS_MNEMONIC_AAS: return FLAG_OF | FLAG_SF | FLAG_ZF | FLAG_PF;
	case ZYDIS_MNEMONIC_AAD:
	case ZYDIS_MNEMONIC_AAM: return FLAG_OF | FLAG_AF | FLAG_CF;
	case ZYDIS_MNEMONIC_DAA:
	case ZYDIS_MNEMONIC_DAS: return FLAG_OF;
	default: return 0;
	}
}

static int gpr_id(ZydisRegister reg)
{
	ZydisRegisterClass class = ZydisRegisterGetClass(reg);
	int id;

	if (class != ZYDIS_REGCLASS_GPR64 && class != ZYDIS_REGCLASS_GPR32)
		return -1;
	id = ZydisRegisterGetId(reg);
	return id;
}

/* Sets registers, or the displacement, so that a memory operand lies in the data window. */
static void aim_memory(struct tester *t, uint8_t *bytes, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *op,
	uint64_t end)
{
	uint64_t target = DATA + 0x800 + pick(&t->source, DATA_SIZE - 0x1000);
	int base = gpr_id(op->mem.base), index = gpr_id(op->mem.index);
	uint64_t sum = (uint64_t)op->mem.disp.value;

	if (!pick(&t->source, 12))
		target = DATA + 0x1000 * (uint64_t)(1 + pick(&t->source, 3)) - 1 - pick(&t->source, 40); /* across pages */
	else if (!pick(&t->source, 24))
		target = pick(&t->source, 2) ? DATA + DATA_SIZE - 1 - pick(&t->source, 40) : DATA - pick(&t->source, 40); /* or into nothing */
	else if (pick(&t->source, 4))
		target &= ~31ull;
	if (index >= 0 && index != base) {
		if (index != GPR_RSP && z->meta.category != ZYDIS_CATEGORY_AVX2GATHER)
			t->test.gpr[index] = pick(&t->source, 64);
		sum += t->test.gpr[index] * op->mem.scale;
	}
	if (base >= 0 && base != index) {
		t->test.gpr[base] = target - sum;
	} else if (base >= 0) {
		t->test.gpr[base] = (target - sum) / (1 + op->mem.scale);
	} else if (z->raw.disp.size == 32) {
		int32_t disp = (int32_t)(target - (op->mem.base == ZYDIS_REGISTER_RIP ? end : 0) -
			(index >= 0 ? t->test.gpr[index] * op->mem.scale : 0));

		memcpy(bytes + z->raw.disp.offset, &disp, 4);
	}
}

static void random_fp(struct tester *t)
{
	uint8_t *x = t->test.xsave;
	uint64_t bv = 7;
	uint32_t mxcsr = 0x1f80;

	for (unsigned k = 0; k < 832; k += 8) {
		uint64_t v = next_random(&t->source);

		memcpy(x + k, &v, 8);
	}
	memset(x, 0, 32);
	memset(x + 416, 0, 96);
	memset(x + 512, 0, 64);
	memcpy(x + XSAVE_BV, &bv, 8);
	x[0] = 0x7f;
	x[1] = pick(&t->source, 2) ? 3 : (uint8_t)pick(&t->source, 16);
	if (pick(&t->source, 10) == 0)
		x[0] &= (uint8_t)(0xc0 | next_random(&t->source));
	x[4] = pick(&t->source, 3) ? 0xff : (uint8_t)next_random(&t->source);
	x[3] = (uint8_t)(pick(&t->source, 8) << 3);
	if (pick(&t->source, 3) == 0)
		mxcsr = 0x1f80 | (uint32_t)(pick(&t->source, 4) << 13) | (pick(&t->source, 4) == 0 ? 0x8040 : 0);
	if (pick(&t->source, 10) == 0)
		mxcsr &= ~(uint32_t)(pick(&t->source, 64) << 7);
	memcpy(x + 24, &mxcsr, 4);
	/* Half of the numbers are reasonable ones. */
	for (unsigned r = 0; r < 8; r++) {
		memset(x + 32 + 16 * r + 10, 0, 6);
		if (pick(&t->source, 2)) {
			double v = (double)(int64_t)next_random(&t->source) / (double)(1ull << pick(&t->source, 63));
			long double wide = v;

			memcpy(x + 32 + 16 * r, &wide, 10);
		}
	}
	for (unsigned r = 0; r < 16; r++) {
		double v[2] = { (double)(int32_t)next_random(&t->source) / 16, (double)pick(&t->source, 1000) };
		float f[4] = { (float)v[0], (float)v[1], 1.5f, -2.0f };

		if (pick(&t->source, 3) == 0)
			memcpy(x + 160 + 16 * r, v, 16);
		else if (pick(&t->source, 3) == 0)
			memcpy(x + 160 + 16 * r, f, 16);
	}
}

static void random_registers(struct tester *t)
{
	for (unsigned n = 0; n < 16; n++) {
		switch (pick(&t->source, 4)) {
		case 0:
			t->test.gpr[n] = next_random(&t->source);
			break;
		case 1:
			t->test.gpr[n] = next_random(&t->source) >> pick(&t->source, 64);
			break;
		case 2:
			t->test.gpr[n] = (uint64_t)(int64_t)((int)pick(&t->source, 512) - 256);
			break;
		default:
			t->test.gpr[n] = DATA + DATA_SIZE / 2 + pick(&t->source, 256) * 8;
		}
	}
	t->test.gpr[GPR_RSP] = DATA + DATA_SIZE / 2 + pick(&t->source, 64) * 8;
	t->test.gpr[GPR_RSI] = DATA + DATA_SIZE / 2 + pick(&t->source, 256) * 8;
	t->test.gpr[GPR_RDI] = DATA + DATA_SIZE / 2 + pick(&t->source, 256) * 8;
	t->test.gpr[GPR_RBP] = DATA + DATA_SIZE / 2 + pick(&t->source, 256) * 8;
	t->test.rflags = (next_random(&t->source) & (FLAGS_STATUS | FLAG_DF)) | FLAG_FIXED | FLAG_IF;
}

static bool append_insn(struct tester *t, const ZydisDecoder *decoder, bool alone)
{
	uint8_t b[40];
	ZydisDecodedInstruction z;
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];

	random_bytes(&t->source, b);
	/* Addresses without a register are of no use unless their displacement can be set. */
	if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(decoder, b, 15, &z, ops)) || !insn_allowed(&t->source, &z, ops))
		return false;
	/* What is undefined may not go into the next instruction. */
	t->test.undefined = undefined_flags(z.mnemonic);
	if (t->test.undefined && !alone)
		return false;
	for (unsigned k = 0; k < z.operand_count; k++) {
		bool hidden = ops[k].visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN;

		if (ops[k].type == ZYDIS_OPERAND_TYPE_MEMORY && !hidden && pick(&t->source, 50))
			aim_memory(t, b, &z, &ops[k], t->test.rip + t->test.length + z.length);
		/* A register that counts: repeats stay short, bit offsets near. */
		if (z.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE))
			t->test.gpr[GPR_RCX] = pick(&t->source, 40);
		if (z.meta.category == ZYDIS_CATEGORY_BITBYTE && k == 1 && ops[1].type == ZYDIS_OPERAND_TYPE_REGISTER &&
			ops[0].type == ZYDIS_OPERAND_TYPE_MEMORY && gpr_id(ops[1].reg.value) >= 0 &&
			gpr_id(ops[1].reg.value) != gpr_id(ops[0].mem.base))
			t->test.gpr[gpr_id(ops[1].reg.value)] = (uint64_t)(int64_t)((int)pick(&t->source, 8192) - 4096);
	}
	if (z.mnemonic == ZYDIS_MNEMONIC_FLDENV || z.mnemonic == ZYDIS_MNEMONIC_FRSTOR)
		t->test.loose_cr2 = true;
	if (z.mnemonic == ZYDIS_MNEMONIC_LDMXCSR || z.mnemonic == ZYDIS_MNEMONIC_VLDMXCSR)
		t->test.loads_mxcsr = true;
	if (z.mnemonic == ZYDIS_MNEMONIC_XLAT)
		t->test.gpr[GPR_RBX] = DATA + 0x1000;
	memcpy(t->test.code + t->test.length, b, z.length);
	t->test.length += z.length;
	t->test.count++;
	return true;
}

void test_make(struct tester *t, const ZydisDecoder *decoder, unsigned length)
{
	if (t->code_at + 512 > CODE + CODE_SIZE) {
		t->code_at = CODE;
		engine_state_changed(t->engine);
	}
	t->test.rip = t->code_at;
	t->test.length = t->test.count = 0;
	t->test.loose_cr2 = t->test.loads_mxcsr = t->test.open_ended = false;
	t->test.branch_count = 0;
	random_registers(t);
	random_fp(t);
	for (unsigned k = 0; k < DATA_SIZE; k += 8) {
		uint64_t v = next_random(&t->source);

		memcpy(t->test.data + k, &v, 8);
	}
	for (unsigned k = 0; k < length; k++) {
		t->test.starts[k] = (uint8_t)t->test.length;
		if (t->source.class == CLASS_BRANCH && pick(&t->source, 2))
			test_append_branch(t);
		else
			while (!append_insn(t, decoder, length == 1))
				;
	}
	t->test.starts[length] = (uint8_t)t->test.length;
	test_close_branches(t);
	if (t->bits == 32)
		for (unsigned n = 0; n < 16; n++)
			t->test.gpr[n] = n < 8 ? (uint32_t)t->test.gpr[n] : 0;
	t->code_at += t->test.length + 16;
}
