/* Random instructions: see random_insn.h. */
#include "random_insn.h"

void insn_source_seed(struct insn_source *s, uint64_t seed, uint64_t number)
{
	s->random[0] = seed * 0x9e3779b97f4a7c15ull + 1;
	s->random[1] = (number + 1) * 0xbf58476d1ce4e5b9ull;
	for (unsigned k = 0; k < 8; k++)
		next_random(s);
}

uint64_t next_random(struct insn_source *s)
{
	uint64_t a = s->random[0], b = s->random[1];

	s->random[0] = b;
	a ^= a << 23;
	s->random[1] = a ^ b ^ (a >> 17) ^ (b >> 26);
	return s->random[1] + b;
}

unsigned pick(struct insn_source *s, unsigned n)
{
	return (unsigned)(next_random(s) >> 11) % n;
}

static bool set_allowed(ZydisISASet set)
{
	switch (set) {
	case ZYDIS_ISA_SET_I86:
	case ZYDIS_ISA_SET_I186:
	case ZYDIS_ISA_SET_I386:
	case ZYDIS_ISA_SET_I486:
	case ZYDIS_ISA_SET_I486REAL:
	case ZYDIS_ISA_SET_PENTIUMREAL:
	case ZYDIS_ISA_SET_PPRO:
	case ZYDIS_ISA_SET_CMOV:
	case ZYDIS_ISA_SET_FCMOV:
	case ZYDIS_ISA_SET_CMPXCHG16B:
	case ZYDIS_ISA_SET_LONGMODE:
	case ZYDIS_ISA_SET_LAHF:
	case ZYDIS_ISA_SET_FAT_NOP:
	case ZYDIS_ISA_SET_MOVBE:
	case ZYDIS_ISA_SET_POPCNT:
	case ZYDIS_ISA_SET_LZCNT:
	case ZYDIS_ISA_SET_BMI1:
	case ZYDIS_ISA_SET_BMI2:
	case ZYDIS_ISA_SET_ADOX_ADCX:
	case ZYDIS_ISA_SET_X87:
	case ZYDIS_ISA_SET_PENTIUMMMX:
	case ZYDIS_ISA_SET_SSE:
	case ZYDIS_ISA_SET_SSE2:
	case ZYDIS_ISA_SET_SSE2MMX:
	case ZYDIS_ISA_SET_SSE3:
	case ZYDIS_ISA_SET_SSE3X87:
	case ZYDIS_ISA_SET_SSSE3:
	case ZYDIS_ISA_SET_SSSE3MMX:
	case ZYDIS_ISA_SET_SSE4:
	case ZYDIS_ISA_SET_SSE42:
	case ZYDIS_ISA_SET_SSEMXCSR:
	case ZYDIS_ISA_SET_AES:
	case ZYDIS_ISA_SET_PCLMULQDQ:
	case ZYDIS_ISA_SET_SHA:
	case ZYDIS_ISA_SET_AVX:
	case ZYDIS_ISA_SET_AVXAES:
	case ZYDIS_ISA_SET_AVX2:
	case ZYDIS_ISA_SET_AVX2GATHER:
	case ZYDIS_ISA_SET_FMA:
	case ZYDIS_ISA_SET_F16C:
		return true;
	default:
		return false;
	}
}

static bool is_vector_set(ZydisISASet set)
{
	return (set >= ZYDIS_ISA_SET_SSE && set <= ZYDIS_ISA_SET_SSSE3MMX) || set == ZYDIS_ISA_SET_AVX ||
		set == ZYDIS_ISA_SET_AVX2 || set == ZYDIS_ISA_SET_AVX2GATHER || set == ZYDIS_ISA_SET_FMA ||
		set == ZYDIS_ISA_SET_PENTIUMMMX || set == ZYDIS_ISA_SET_AES || set == ZYDIS_ISA_SET_SHA ||
		set == ZYDIS_ISA_SET_F16C || set == ZYDIS_ISA_SET_AVXAES || set == ZYDIS_ISA_SET_PCLMULQDQ;
}

/* Control flow, the system's business, and what differs between two runs by nature. */
static bool category_allowed(const ZydisDecodedInstruction *z)
{
	if (z->meta.branch_type != ZYDIS_BRANCH_TYPE_NONE)
		return false;
	switch (z->meta.category) {
	case ZYDIS_CATEGORY_CALL:
	case ZYDIS_CATEGORY_RET:
	case ZYDIS_CATEGORY_COND_BR:
	case ZYDIS_CATEGORY_UNCOND_BR:
	case ZYDIS_CATEGORY_INTERRUPT:
	case ZYDIS_CATEGORY_SYSCALL:
	case ZYDIS_CATEGORY_SYSRET:
	case ZYDIS_CATEGORY_SYSTEM:
	case ZYDIS_CATEGORY_IO:
	case ZYDIS_CATEGORY_IOSTRINGOP:
	case ZYDIS_CATEGORY_SEGOP:
	case ZYDIS_CATEGORY_XSAVE:
	case ZYDIS_CATEGORY_XSAVEOPT:
		return false;
	default:
		break;
	}
	switch (z->mnemonic) {
	case ZYDIS_MNEMONIC_POPF:
	case ZYDIS_MNEMONIC_POPFD:
	case ZYDIS_MNEMONIC_POPFQ:
	case ZYDIS_MNEMONIC_HLT:
	case ZYDIS_MNEMONIC_CLI:
	case ZYDIS_MNEMONIC_STI:
	case ZYDIS_MNEMONIC_CPUID:
	case ZYDIS_MNEMONIC_RDTSC:
	case ZYDIS_MNEMONIC_SGDT:
	case ZYDIS_MNEMONIC_SIDT:
	case ZYDIS_MNEMONIC_FNSTENV: /* the pointers are the host's */
	case ZYDIS_MNEMONIC_FNSAVE:
	case ZYDIS_MNEMONIC_FXSAVE:
	case ZYDIS_MNEMONIC_FXSAVE64:
		return false;
	default:
		return true;
	}
}

static bool class_allows(const struct insn_source *s, ZydisISASet set)
{
	switch (s->class) {
	case CLASS_INTEGER:
	case CLASS_BRANCH:
		return !is_vector_set(set) && set != ZYDIS_ISA_SET_X87;
	case CLASS_VECTOR:
		return is_vector_set(set);
	case CLASS_X87:
		return set == ZYDIS_ISA_SET_X87 || set == ZYDIS_ISA_SET_FCMOV || set == ZYDIS_ISA_SET_SSE3X87;
	default:
		return true;
	}
}

bool insn_allowed(const struct insn_source *s, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops)
{
	ZydisISASet set = (ZydisISASet)z->meta.isa_set;

	if (!set_allowed(set) || !category_allowed(z) || !class_allows(s, set))
		return false;
	for (unsigned k = 0; k < z->operand_count; k++) {
		ZydisRegisterClass class = ZYDIS_REGCLASS_INVALID;

		if (ops[k].type == ZYDIS_OPERAND_TYPE_REGISTER)
			class = ZydisRegisterGetClass(ops[k].reg.value);
		if (class == ZYDIS_REGCLASS_SEGMENT || class == ZYDIS_REGCLASS_CONTROL || class == ZYDIS_REGCLASS_DEBUG)
			if (ops[k].reg.value != ZYDIS_REGISTER_CR0)
				return false;
		if (ops[k].type == ZYDIS_OPERAND_TYPE_MEMORY && !s->segments &&
			(ops[k].mem.segment == ZYDIS_REGISTER_FS || ops[k].mem.segment == ZYDIS_REGISTER_GS))
			return false;
	}
	return true;
}

unsigned random_bytes(struct insn_source *s, uint8_t *b)
{
	unsigned n = 0, map = pick(s, 100);
	bool x87 = s->class == CLASS_X87 || (s->class == CLASS_ALL && pick(s, 100) < 8);

	for (unsigned k = 0; k < 24; k++)
		b[k] = (uint8_t)next_random(s);
	if (s->class == CLASS_VECTOR && map < 38)
		map = 38 + pick(s, 62);
	if ((s->class == CLASS_INTEGER || s->class == CLASS_BRANCH) && map >= 85)
		map = pick(s, 85);
	if (map < 85) {
		if (pick(s, 100) < 5)
			b[n++] = 0xf0;
		if (pick(s, 100) < 3)
			b[n++] = 0x67;
		if (pick(s, 100) < 25)
			b[n++] = 0x66;
		if (pick(s, 100) < 20)
			b[n++] = 0xf2 + (uint8_t)pick(s, 2);
		if (!s->legacy && pick(s, 100) < 55)
			b[n++] = 0x40 | (uint8_t)pick(s, 16);
	}
	if (x87) {
		b[n++] = 0xd8 + (uint8_t)pick(s, 8);
	} else if (map >= 85) {
		b[n++] = 0xc4 + (uint8_t)pick(s, 2);
		if (b[0] == 0xc4)
			b[n] = (b[n] & 0xe0) | (uint8_t)(1 + pick(s, 3));
		if (s->legacy)
			b[n] |= 0xc0; /* else it is LDS or LES */
	} else if (map >= 38) {
		b[n++] = 0x0f;
		if (map >= 80)
			b[n++] = 0x3a;
		else if (map >= 70)
			b[n++] = 0x38;
	}
	return n;
}
