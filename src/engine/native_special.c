/*
 * Vector instructions that must not run on the host as they are: gathers and masked moves touch only selected elements,
 * each at an address of its own; LDMXCSR must not bring reserved bits. They work on the XSAVE image.
 */
#include <string.h>

#include "engine/native.h"

/* struct insn as these handlers use it: the decoder leaves cc and reserved to us, the rest is in native_op.vector. */

static void op_ldmxcsr(struct engine *e, const struct insn *i)
{
	uint32_t v;

	native_check(e, i->cc ? NATIVE_AVX : NATIVE_SSE);
	v = (uint32_t)insn_load(e, i, 4);
	if (v & 0xffff0000u)
		engine_raise_error(e, EXC_GP, 0);
	memcpy(e->cpu->xsave + XSAVE_MXCSR, &v, 4);
}

static void op_stmxcsr(struct engine *e, const struct insn *i)
{
	uint32_t v;

	native_check(e, i->cc ? NATIVE_AVX : NATIVE_SSE);
	memcpy(&v, e->cpu->xsave + XSAVE_MXCSR, 4);
	insn_store(e, i, 4, v);
}

static void vector_get(struct cpu_state *c, unsigned n, uint8_t v[32])
{
	memcpy(v, xmm_low(c, n), 16);
	memcpy(v + 16, ymm_high(c, n), 16);
}

static void vector_set(struct cpu_state *c, unsigned n, const uint8_t v[32])
{
	memcpy(xmm_low(c, n), v, 16);
	memcpy(ymm_high(c, n), v + 16, 16);
}

static uint64_t element_linear(struct engine *e, const struct insn *i, uint64_t offset, unsigned size, unsigned access)
{
	offset = i->addrsize == 8 ? offset : i->addrsize == 4 ? (uint32_t)offset : (uint16_t)offset;
	return segment_linear(e, i->seg, offset, size, access);
}

/* VMASKMOVPS/PD, VPMASKMOVD/Q: vector[0] data, vector[1] mask. */
static void op_masked_load(struct engine *e, const struct insn *i)
{
	const struct native_op *op = i->native;
	uint8_t mask[32], v[32] = { 0 };

	native_check(e, NATIVE_AVX);
	native_materialize(e->cpu);
	vector_get(e->cpu, op->vector[1], mask);
	for (unsigned k = 0; k < op->count; k++) {
		uint64_t x, at = insn_offset(e, i) + k * op->element;

		if (!(mask[(k + 1) * op->element - 1] & 0x80))
			continue;
		x = linear_load(e, element_linear(e, i, at, op->element, ACCESS_READ), op->element);
		memcpy(v + k * op->element, &x, op->element);
	}
	vector_set(e->cpu, op->vector[0], v);
}

static void op_masked_store(struct engine *e, const struct insn *i)
{
	const struct native_op *op = i->native;
	uint8_t mask[32], v[32];

	native_check(e, NATIVE_AVX);
	native_materialize(e->cpu);
	vector_get(e->cpu, op->vector[1], mask);
	vector_get(e->cpu, op->vector[0], v);
	for (unsigned pass = 0; pass < 2; pass++) {
		for (unsigned k = 0; k < op->count; k++) {
			uint64_t x = 0, gva, at = insn_offset(e, i) + k * op->element;

			if (!(mask[(k + 1) * op->element - 1] & 0x80))
				continue;
			gva = element_linear(e, i, at, op->element, ACCESS_WRITE);
			memcpy(&x, v + k * op->element, op->element);
			if (pass == 0)
				linear_rmw(e, gva, op->element); /* faults before the first store */
			else
				linear_store(e, gva, op->element, x);
		}
	}
}

/* The image holds ST(0)..ST(7), MM0..MM7 are the registers that TOP counts from (SDM vol. 1, 10.5.1.1 and 9.2.2). */
static unsigned x87_top(const struct cpu_state *c)
{
	return c->xsave[XSAVE_FSW + 1] >> 3 & 7;
}

static const uint8_t *mm(const struct cpu_state *c, unsigned n)
{
	return c->xsave + 32 + 16 * ((n - x87_top(c)) & 7);
}

/* As every MMX instruction: all tags valid, TOP 0. */
static void enter_mmx(struct cpu_state *c)
{
	uint8_t rotated[8][16];

	for (unsigned n = 0; n < 8; n++)
		memcpy(rotated[n], mm(c, n), 16);
	memcpy(c->xsave + 32, rotated, sizeof(rotated));
	c->xsave[XSAVE_FSW + 1] &= (uint8_t)~0x38;
	c->xsave[4] = 0xff;
}

/*
 * AMD's processors want all of the operand to be writable, whatever the mask (the SDM leaves it open): tried on one of
 * family 19h. The fault names the operand's first byte in the page.
 */
static void maskmov_probe(struct engine *e, const struct insn *i, unsigned size)
{
	uint64_t gva = element_linear(e, i, e->cpu->gpr[GPR_RDI], size, ACCESS_WRITE);
	uint64_t next = (gva | 0xfff) + 1;

	linear_rmw(e, gva, 1);
	if (next - gva < size)
		linear_rmw(e, e->mode == MODE_64 ? next : (uint32_t)next, 1);
}

/* MASKMOVDQU, MASKMOVQ: bytes to [rDI], vector[0] data, vector[1] mask. */
static void op_maskmov(struct engine *e, const struct insn *i)
{
	const struct native_op *op = i->native;
	const uint8_t *data, *mask;
	bool mmx = op->count == 8;

	native_check(e, op->flags);
	native_materialize(e->cpu);
	if (mmx)
		enter_mmx(e->cpu); /* CPUs do so even if the store then faults */
	data = mmx ? mm(e->cpu, op->vector[0]) : xmm_low(e->cpu, op->vector[0]);
	mask = mmx ? mm(e->cpu, op->vector[1]) : xmm_low(e->cpu, op->vector[1]);
	if (decode_is_amd(e))
		maskmov_probe(e, i, op->count);
	for (unsigned pass = 0; pass < 2; pass++) {
		for (unsigned k = 0; k < op->count; k++) {
			uint64_t gva;

			if (!(mask[k] & 0x80))
				continue;
			gva = element_linear(e, i, e->cpu->gpr[GPR_RDI] + k, 1, ACCESS_WRITE);
			if (pass == 0)
				linear_rmw(e, gva, 1);
			else
				linear_store(e, gva, 1, data[k]);
		}
	}
}

/* VGATHER, VPGATHER: vector[0] destination, [1] index, [2] mask. Elements done are marked in the mask before a fault. */
static void op_gather(struct engine *e, const struct insn *i)
{
	const struct native_op *op = i->native;
	uint8_t dst[32], index[32], mask[32];
	unsigned n = op->element;

	native_check(e, NATIVE_AVX);
	native_materialize(e->cpu);
	vector_get(e->cpu, op->vector[0], dst);
	vector_get(e->cpu, op->vector[1], index);
	vector_get(e->cpu, op->vector[2], mask);
	for (unsigned k = 0; k < op->count; k++) {
		uint64_t at, x;
		int64_t offset = 0;
		int32_t narrow;

		if (!(mask[(k + 1) * n - 1] & 0x80)) {
			memset(mask + k * n, 0, n);
			continue;
		}
		if (op->index_size == 8) {
			memcpy(&offset, index + k * 8, 8);
		} else {
			memcpy(&narrow, index + k * 4, 4);
			offset = narrow;
		}
		vector_set(e->cpu, op->vector[2], mask);
		at = e->cpu->gpr[i->base] + ((uint64_t)offset << i->scale) + (uint64_t)i->disp;
		x = linear_load(e, element_linear(e, i, at, n, ACCESS_READ), n);
		memcpy(dst + k * n, &x, n);
		memset(mask + k * n, 0, n);
		vector_set(e->cpu, op->vector[0], dst);
		vector_set(e->cpu, op->vector[2], mask);
	}
	memset(dst + op->count * n, 0, 32 - op->count * n);
	memset(mask, 0, 32);
	vector_set(e->cpu, op->vector[0], dst);
	vector_set(e->cpu, op->vector[2], mask);
}

static uint8_t vector_id(ZydisRegister reg)
{
	return (uint8_t)(ZydisRegisterGetId(reg) & 15);
}

/* VZEROALL, VZEROUPPER outside of 64-bit mode: eight registers. */
static void op_vzero(struct engine *e, const struct insn *i)
{
	native_check(e, NATIVE_AVX);
	native_materialize(e->cpu);
	for (unsigned n = 0; n < 8; n++) {
		memset(ymm_high(e->cpu, n), 0, 16);
		if (i->cc)
			memset(xmm_low(e->cpu, n), 0, 16);
	}
}

static insn_fn finish(struct engine *e, struct insn *i, struct native_op *op, insn_fn fn)
{
	memset(op->bytes, 0xcc, sizeof(op->bytes));
	i->native = native_intern(e->native, op);
	return i->native ? fn : NULL;
}

static insn_fn masked_move(struct engine *e, struct insn *i, const struct decoded *d, unsigned element)
{
	bool store = d->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY;
	struct native_op op;

	memset(&op, 0, sizeof(op));
	op.element = (uint8_t)element;
	op.count = (uint8_t)((d->insn.avx.vector_length == 256 ? 32 : 16) / element);
	op.vector[0] = vector_id(d->op[store ? 2 : 0].reg.value);
	op.vector[1] = vector_id(d->op[1].reg.value);
	return finish(e, i, &op, store ? op_masked_store : op_masked_load);
}

static insn_fn gather(struct engine *e, struct insn *i, const struct decoded *d, unsigned element, unsigned index)
{
	unsigned bytes = d->insn.avx.vector_length == 256 ? 32 : 16;
	unsigned wider = element > index ? element : index;
	struct native_op op;

	memset(&op, 0, sizeof(op));
	op.element = (uint8_t)element;
	op.index_size = (uint8_t)index;
	op.count = (uint8_t)(bytes / wider);
	op.vector[0] = vector_id(d->op[0].reg.value);
	op.vector[1] = vector_id(d->op[1].mem.index);
	op.vector[2] = vector_id(d->op[2].reg.value);
	if (op.vector[0] == op.vector[1] || op.vector[0] == op.vector[2] || op.vector[1] == op.vector[2])
		return op_undefined;
	return finish(e, i, &op, op_gather);
}

static insn_fn maskmov(struct engine *e, struct insn *i, const struct decoded *d)
{
	struct native_op op;
	const ZydisDecodedOperand *data = NULL, *mask = NULL;

	for (unsigned k = 0; k < d->insn.operand_count; k++) {
		if (d->op[k].type != ZYDIS_OPERAND_TYPE_REGISTER)
			continue;
		if (d->op[k].encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG)
			data = &d->op[k];
		else if (d->op[k].encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM)
			mask = &d->op[k];
	}
	if (!data || !mask)
		return NULL;
	memset(&op, 0, sizeof(op));
	op.flags = native_class(d);
	if (op.flags & NATIVE_MMX)
		op.flags = NATIVE_MMX | NATIVE_WAITS;
	op.count = op.flags & NATIVE_MMX ? 8 : 16;
	op.vector[0] = vector_id(data->reg.value);
	op.vector[1] = vector_id(mask->reg.value);
	return finish(e, i, &op, op_maskmov);
}

insn_fn native_special_handler(struct engine *e, struct insn *i, const struct decoded *d)
{
	bool legacy = d->insn.machine_mode != ZYDIS_MACHINE_MODE_LONG_64;

	switch (d->insn.mnemonic) {
	case ZYDIS_MNEMONIC_VZEROALL:
	case ZYDIS_MNEMONIC_VZEROUPPER:
		i->cc = d->insn.mnemonic == ZYDIS_MNEMONIC_VZEROALL;
		return legacy ? op_vzero : NULL;
	case ZYDIS_MNEMONIC_VPINSRD: /* with W it is VPINSRQ, which AMD's processors refuse and Intel's take for VPINSRD */
		return legacy && d->insn.raw.vex.W && decode_is_amd(e) ? op_undefined : NULL;
	case ZYDIS_MNEMONIC_LDMXCSR:
	case ZYDIS_MNEMONIC_VLDMXCSR:
		i->cc = d->insn.mnemonic == ZYDIS_MNEMONIC_VLDMXCSR;
		return op_ldmxcsr;
	case ZYDIS_MNEMONIC_STMXCSR:
	case ZYDIS_MNEMONIC_VSTMXCSR:
		i->cc = d->insn.mnemonic == ZYDIS_MNEMONIC_VSTMXCSR;
		return op_stmxcsr;
	case ZYDIS_MNEMONIC_VMASKMOVPS:
	case ZYDIS_MNEMONIC_VPMASKMOVD:
		return masked_move(e, i, d, 4);
	case ZYDIS_MNEMONIC_VMASKMOVPD:
	case ZYDIS_MNEMONIC_VPMASKMOVQ:
		return masked_move(e, i, d, 8);
	case ZYDIS_MNEMONIC_VGATHERDPS:
	case ZYDIS_MNEMONIC_VPGATHERDD:
		return gather(e, i, d, 4, 4);
	case ZYDIS_MNEMONIC_VGATHERQPS:
	case ZYDIS_MNEMONIC_VPGATHERQD:
		return gather(e, i, d, 4, 8);
	case ZYDIS_MNEMONIC_VGATHERDPD:
	case ZYDIS_MNEMONIC_VPGATHERDQ:
		return gather(e, i, d, 8, 4);
	case ZYDIS_MNEMONIC_VGATHERQPD:
	case ZYDIS_MNEMONIC_VPGATHERQQ:
		return gather(e, i, d, 8, 8);
	case ZYDIS_MNEMONIC_MASKMOVDQU:
	case ZYDIS_MNEMONIC_VMASKMOVDQU:
	case ZYDIS_MNEMONIC_MASKMOVQ:
		return maskmov(e, i, d);
	default:
		return NULL;
	}
}
