/*
 * The handler of natively executed instructions: which of them the guest's CPU has, the checks before, the operands, and
 * the faults that the host's execution brings. See native.h.
 *
 * Invariants: everything that may fault is checked before the thunk runs, so that a thunk's effects are final. Only
 * encodings of the ISA sets listed here ever run natively, and they touch nothing but their operands.
 */
#include <signal.h>
#include <string.h>

#include "engine/native.h"

#define ISA_PCLMULQDQ (1u << 0)
#define ISA_FMA (1u << 1)
#define ISA_AES (1u << 2)
#define ISA_AVX (1u << 3)
#define ISA_F16C (1u << 4)
#define ISA_AVX2 (1u << 5)
#define ISA_SHA (1u << 6)
#define ISA_GFNI (1u << 7)
#define ISA_VAES (1u << 8)
#define ISA_VPCLMULQDQ (1u << 9)

/* The features that an ISA set needs: 0 always there, ~0 never. */
static uint32_t isa_needs(const struct decoded *d)
{
	switch (d->insn.meta.isa_set) {
	case ZYDIS_ISA_SET_X87:
	case ZYDIS_ISA_SET_FCMOV:
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
	case ZYDIS_ISA_SET_PPRO:
		return 0;
	case ZYDIS_ISA_SET_AVX:
		return ISA_AVX;
	case ZYDIS_ISA_SET_AVX2:
	case ZYDIS_ISA_SET_AVX2GATHER:
		return ISA_AVX2;
	case ZYDIS_ISA_SET_AVXAES:
		return ISA_AVX | ISA_AES;
	case ZYDIS_ISA_SET_AVX_GFNI:
		return ISA_AVX | ISA_GFNI;
	case ZYDIS_ISA_SET_AES:
		return ISA_AES;
	case ZYDIS_ISA_SET_FMA:
		return ISA_FMA;
	case ZYDIS_ISA_SET_F16C:
		return ISA_F16C;
	case ZYDIS_ISA_SET_GFNI:
		return ISA_GFNI;
	case ZYDIS_ISA_SET_PCLMULQDQ:
		return ISA_PCLMULQDQ | (d->insn.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX ? ISA_AVX : 0);
	case ZYDIS_ISA_SET_SHA:
		return ISA_SHA;
	case ZYDIS_ISA_SET_VAES:
		return ISA_VAES;
	case ZYDIS_ISA_SET_VPCLMULQDQ:
		return ISA_VPCLMULQDQ;
	default:
		return ~0u;
	}
}

static bool is_vector_register(const ZydisDecodedOperand *op, ZydisRegisterClass class)
{
	return op->type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(op->reg.value) == class;
}

/* SSE and AVX instructions know MMX and x87 forms only by their operands. */
uint16_t native_class(const struct decoded *d)
{
	bool mmx = false, xmm = false;

	if (d->insn.meta.category == ZYDIS_CATEGORY_X87_ALU || d->insn.meta.category == ZYDIS_CATEGORY_FCMOV ||
		d->insn.meta.isa_set == ZYDIS_ISA_SET_X87 || d->insn.meta.isa_set == ZYDIS_ISA_SET_SSE3X87 ||
		(d->insn.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && d->insn.opcode >= 0xd8 && d->insn.opcode <= 0xdf))
		return NATIVE_X87;
	if (d->insn.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX)
		return NATIVE_AVX;
	for (unsigned k = 0; k < d->insn.operand_count; k++) {
		mmx |= is_vector_register(&d->op[k], ZYDIS_REGCLASS_MMX);
		xmm |= is_vector_register(&d->op[k], ZYDIS_REGCLASS_XMM);
	}
	if (d->insn.mnemonic == ZYDIS_MNEMONIC_EMMS)
		mmx = true;
	return (mmx ? NATIVE_MMX : 0) | (xmm || !mmx ? NATIVE_SSE : 0);
}

/* x87 instructions that do not take a pending exception first (SDM vol. 1, 8.3.11, 8.6). */
static bool is_nowait(ZydisMnemonic m)
{
	switch (m) {
	case ZYDIS_MNEMONIC_FNINIT:
	case ZYDIS_MNEMONIC_FNCLEX:
	case ZYDIS_MNEMONIC_FNSTCW:
	case ZYDIS_MNEMONIC_FNSTSW:
	case ZYDIS_MNEMONIC_FNSTENV:
	case ZYDIS_MNEMONIC_FNSAVE:
	case ZYDIS_MNEMONIC_FENI8087_NOP:
	case ZYDIS_MNEMONIC_FDISI8087_NOP:
	case ZYDIS_MNEMONIC_FSETPM287_NOP:
		return true;
	default:
		return false;
	}
}

static bool needs_alignment(const struct decoded *d, unsigned size)
{
	switch (d->insn.mnemonic) {
	case ZYDIS_MNEMONIC_MOVNTDQA:
	case ZYDIS_MNEMONIC_MOVNTDQ:
	case ZYDIS_MNEMONIC_MOVNTPS:
	case ZYDIS_MNEMONIC_MOVNTPD:
	case ZYDIS_MNEMONIC_VMOVAPS:
	case ZYDIS_MNEMONIC_VMOVAPD:
	case ZYDIS_MNEMONIC_VMOVDQA:
	case ZYDIS_MNEMONIC_VMOVNTDQA:
	case ZYDIS_MNEMONIC_VMOVNTDQ:
	case ZYDIS_MNEMONIC_VMOVNTPS:
	case ZYDIS_MNEMONIC_VMOVNTPD:
		return true;
	case ZYDIS_MNEMONIC_MOVUPS:
	case ZYDIS_MNEMONIC_MOVUPD:
	case ZYDIS_MNEMONIC_MOVDQU:
	case ZYDIS_MNEMONIC_LDDQU:
	case ZYDIS_MNEMONIC_PCMPESTRI:
	case ZYDIS_MNEMONIC_PCMPESTRM:
	case ZYDIS_MNEMONIC_PCMPISTRI:
	case ZYDIS_MNEMONIC_PCMPISTRM:
		return false;
	default:
		/* SHA: some CPUs check, some do not. The host's does what it does. */
		return d->insn.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && size == 16 &&
			d->insn.meta.isa_set != ZYDIS_ISA_SET_SHA;
	}
}

static void set_initial_x87(struct cpu_state *c)
{
	uint16_t fcw = 0x37f;

	memset(c->xsave, 0, XSAVE_MXCSR);
	memset(c->xsave + 32, 0, 128);
	memcpy(c->xsave, &fcw, sizeof(fcw));
}

void native_materialize(struct cpu_state *c)
{
	uint64_t bv;

	memcpy(&bv, c->xsave + XSAVE_BV, sizeof(bv));
	if (engine_likely(bv == (XCR0_X87 | XCR0_SSE | XCR0_AVX)))
		return;
	if (!(bv & XCR0_X87))
		set_initial_x87(c);
	if (!(bv & XCR0_SSE))
		memset(c->xsave + XSAVE_XMM, 0, 256);
	if (!(bv & XCR0_AVX))
		memset(c->xsave + XSAVE_YMMH, 0, 256);
	bv = XCR0_X87 | XCR0_SSE | XCR0_AVX;
	memcpy(c->xsave + XSAVE_BV, &bv, sizeof(bv));
	memset(c->xsave + XSAVE_BV + 8, 0, 56);
}

static void check_x87(struct engine *e, uint16_t flags)
{
	const struct cpu_state *c = e->cpu;
	uint64_t trap = flags & NATIVE_FWAIT ? CR0_TS | CR0_MP : CR0_TS;

	if ((flags & NATIVE_X87) && (((c->cr0 & trap) == trap) || (!(flags & NATIVE_FWAIT) && (c->cr0 & CR0_EM))))
		engine_raise(e, EXC_NM);
	/* Without CR0.NE the exception would be the PIC's IRQ 13, which nobody has wired: it is ignored. */
	if ((flags & NATIVE_WAITS) && (c->xsave[XSAVE_FSW] & 0x80) && (c->cr0 & CR0_NE))
		engine_raise(e, EXC_MF);
}

void native_check(struct engine *e, uint16_t flags)
{
	const struct cpu_state *c = e->cpu;

	if (flags & NATIVE_AVX) {
		if (!(c->cr4 & CR4_OSXSAVE) || (~c->xcr0 & (XCR0_SSE | XCR0_AVX)) || !(c->cr0 & CR0_PE) ||
			(c->rflags & FLAG_VM))
			engine_raise(e, EXC_UD);
	} else if (flags & (NATIVE_SSE | NATIVE_MMX)) {
		if ((c->cr0 & CR0_EM) || ((flags & NATIVE_SSE) && !(c->cr4 & CR4_OSFXSR)))
			engine_raise(e, EXC_UD);
	}
	if (!(flags & NATIVE_X87) && (c->cr0 & CR0_TS))
		engine_raise(e, EXC_NM);
	if (flags & (NATIVE_X87 | NATIVE_MMX))
		check_x87(e, flags);
}

/* The image that FNSTENV and FNSAVE wrote on the host speaks of the host: SDM vol. 1, figures 8-9 to 8-12. */
static void rewrite_environment(struct engine *e, uint8_t *image, unsigned size)
{
	const uint8_t *x = e->cpu->xsave;
	uint16_t fop;

	memcpy(&fop, x + XSAVE_FOP, 2);
	fop &= 0x7ff;
	if (size == 14 || size == 94) {
		memcpy(image + 6, x + XSAVE_FIP, 2);
		memset(image + 8, 0, 2);
		memcpy(image + 10, x + XSAVE_FDP, 2);
		memset(image + 12, 0, 2);
		return;
	}
	memcpy(image + 12, x + XSAVE_FIP, 4);
	memset(image + 16, 0, 2);
	memcpy(image + 18, &fop, 2);
	memcpy(image + 20, x + XSAVE_FDP, 4);
	memset(image + 24, 0, 4);
}

/* The address of the last x87 instruction: the guest's own if an exception is pending, else none, as AMD's CPUs do. */
static void set_x87_pointers(struct engine *e, const struct insn *i, const struct native_op *op)
{
	uint8_t *x = e->cpu->xsave;
	uint64_t fip = 0, fdp = 0;

	if (x[XSAVE_FSW] & 0x80) {
		fip = e->insn_rip;
		fdp = op->memory ? insn_offset(e, i) : 0;
	} else {
		memset(x + XSAVE_FOP, 0, 2);
	}
	memcpy(x + XSAVE_FIP, &fip, 8);
	memcpy(x + XSAVE_FDP, &fdp, 8);
}

static void raise_signal(struct engine *e, uint64_t sig)
{
	if (sig == SIGFPE)
		engine_raise(e, e->cpu->cr4 & CR4_OSXMMEXCPT ? EXC_XM : EXC_UD);
	if (sig == SIGILL)
		engine_raise(e, EXC_UD);
	engine_raise_error(e, EXC_GP, 0);
}

/* The operand's host address if it is plain RAM, else the bounce buffer with what the instruction reads. */
static void *prepare_memory(struct engine *e, const struct insn *i, const struct native_op *op, uint64_t *bounced)
{
	unsigned size = op->memory, access = op->flags & NATIVE_WRITES ? ACCESS_WRITE : ACCESS_READ;
	struct native_state *n = e->native;
	uint64_t gva;
	uint8_t *p;
	unsigned span;

	/* Alignment comes before canonicality and the segment's limit, whose fault may be #SS. */
	if (op->flags & NATIVE_ALIGNED) {
		gva = e->flat ? insn_flat_linear(e, i) : e->cpu->seg[i->seg].base + insn_offset(e, i);
		if (gva & (size - 1))
			engine_raise_error(e, EXC_GP, 0);
	}
	gva = insn_linear(e, i, size, access);
	*bounced = ~0ull;
	if (access == ACCESS_WRITE) {
		p = linear_rmw(e, gva, size);
	} else {
		p = linear_span(e, gva, ACCESS_READ, size, &span);
		if (p && span < size)
			p = NULL;
	}
	if (p && !(op->flags & (NATIVE_ENV | NATIVE_LOAD_ENV)))
		return p;
	if (op->flags & NATIVE_READS)
		linear_read_bytes(e, gva, n->bounce, size, ACCESS_READ);
	if (access == ACCESS_WRITE)
		*bounced = gva;
	return n->bounce;
}

/* An x87 store that raises an unmasked exception, other than for precision, stores nothing (SDM vol. 1, 8.5). */
static bool is_store_withheld(const struct native_op *op, const uint8_t *xsave)
{
	const uint16_t both = NATIVE_X87 | NATIVE_WAITS; /* so none was pending before */

	return (op->flags & both) == both && (xsave[XSAVE_FSW] & ~xsave[0] & 0x1f);
}

static void op_native(struct engine *e, const struct insn *i)
{
	const struct native_op *op = i->native;
	struct native_state *n = e->native;
	struct native_frame *f = &n->frame;
	struct cpu_state *c = e->cpu;
	uint64_t bounced = ~0ull;

	native_check(e, op->flags);
	if (op->memory)
		f->memory = prepare_memory(e, i, op, &bounced);
	e->stats->emul_native++;
	native_materialize(c);
	for (unsigned s = 0; s < SLOT_COUNT; s++)
		f->slot[s] = op->gpr[s] == NATIVE_NONE ? 0 : c->gpr[op->gpr[s]];
	f->code = n->execute + op->code;
	f->xsave = c->xsave;
	f->state = op->state & n->host_state;
	f->flags = flags_pack(c);
	f->signal = 0;
	f->how = op->state != (XCR0_SSE | XCR0_AVX) ? NATIVE_CALL :
		!(op->flags & NATIVE_AVX) ? NATIVE_CALL_SSE : NATIVE_CALL_VECTOR;
	*(uint16_t *)(c->xsave + XSAVE_MXCSR + 2) = 0; /* reserved bits would fault in XRSTOR */
	if (op->flags & NATIVE_ENV) {
		/* Before FNSAVE forgets them. */
		uint8_t saved[24];

		memcpy(saved, c->xsave, sizeof(saved));
		native_call(f);
		if (!f->signal) {
			uint8_t now[6];

			memcpy(now, c->xsave, 6);
			memcpy(c->xsave, saved, sizeof(saved));
			rewrite_environment(e, n->bounce, op->memory);
			memcpy(c->xsave, now, 6);
		}
	} else if (f->how == NATIVE_CALL_SSE) {
		native_call_sse(f);
	} else if (f->how == NATIVE_CALL_VECTOR) {
		native_call_vector(f);
	} else {
		native_call(f);
	}
	*(uint64_t *)(c->xsave + XSAVE_BV) |= XCR0_X87 | XCR0_SSE | XCR0_AVX;
	if (engine_unlikely(f->signal != 0))
		raise_signal(e, f->signal);
	if (op->flags & NATIVE_X87)
		set_x87_pointers(e, i, op);
	if (bounced != ~0ull && !is_store_withheld(op, c->xsave))
		linear_write_bytes(e, bounced, n->bounce, op->memory, ACCESS_WRITE);
	for (unsigned s = 0; s < SLOT_COUNT; s++)
		if (op->gpr_write >> s & 1)
			c->gpr[op->gpr[s]] = f->slot[s];
	if (op->flags & NATIVE_FLAGS)
		flags_set(c, (uint32_t)f->flags);
}

/* The arena is full: everything decoded goes, and this instruction is decoded anew. */
static void op_arena_full(struct engine *e, const struct insn *i)
{
	if (e->overlay)
		engine_restart_insn(e);
	native_reset(e->native);
	decode_forget(e);
	engine_invalidate_all(e);
	engine_restart_insn(e);
}

static void op_fwait(struct engine *e, const struct insn *i)
{
	native_check(e, NATIVE_X87 | NATIVE_FWAIT | NATIVE_WAITS);
}

static uint8_t components(const struct decoded *d, uint16_t class)
{
	uint8_t state = class & (NATIVE_X87 | NATIVE_MMX) ? XCR0_X87 : 0;

	/* CVTPS2PI and its kin round by MXCSR. */
	if ((class & (NATIVE_SSE | NATIVE_AVX)) || d->insn.meta.category == ZYDIS_CATEGORY_CONVERT)
		state |= XCR0_SSE | XCR0_AVX;
	return state;
}

static void describe_memory(const struct insn *i, const struct decoded *d, struct native_op *op)
{
	for (unsigned k = 0; k < d->insn.operand_count; k++) {
		const ZydisDecodedOperand *o = &d->op[k];

		if (o->type != ZYDIS_OPERAND_TYPE_MEMORY || o->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN)
			continue;
		op->memory = o->size / 8;
		if (o->actions & ZYDIS_OPERAND_ACTION_MASK_READ)
			op->flags |= NATIVE_READS;
		if (o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
			op->flags |= NATIVE_WRITES;
		if (needs_alignment(d, op->memory))
			op->flags |= NATIVE_ALIGNED;
	}
}

static uint16_t special_flags(const struct decoded *d, uint16_t class)
{
	const ZydisAccessedFlags *f = d->insn.cpu_flags;
	uint16_t flags = class;

	if (f && ((f->modified | f->set_0 | f->set_1 | f->undefined) & FLAGS_STATUS))
		flags |= NATIVE_FLAGS;
	if (class & NATIVE_X87 ? !is_nowait(d->insn.mnemonic) : !!(class & NATIVE_MMX))
		flags |= NATIVE_WAITS;
	if (d->insn.mnemonic == ZYDIS_MNEMONIC_FNSTENV || d->insn.mnemonic == ZYDIS_MNEMONIC_FNSAVE)
		flags |= NATIVE_ENV;
	if (d->insn.mnemonic == ZYDIS_MNEMONIC_FLDENV || d->insn.mnemonic == ZYDIS_MNEMONIC_FRSTOR)
		flags |= NATIVE_LOAD_ENV;
	return flags;
}

insn_fn native_handler(struct engine *e, struct insn *i, const struct decoded *d, const uint8_t *bytes)
{
	struct native_op op;
	uint32_t needs = isa_needs(d);
	uint16_t class;
	insn_fn fn;

	if (d->insn.mnemonic == ZYDIS_MNEMONIC_FWAIT)
		return op_fwait;
	if (needs & ~e->native->isa)
		return NULL;
	class = native_class(d);
	/* General-register instructions that nobody has claimed are not ours. */
	if (d->insn.meta.isa_set == ZYDIS_ISA_SET_PPRO && !(class & NATIVE_X87))
		return NULL;
	fn = native_special_handler(e, i, d);
	if (fn)
		return fn;
	memset(&op, 0, sizeof(op));
	op.flags = special_flags(d, class);
	describe_memory(i, d, &op);
	op.state = components(d, class);
	if (op.memory > sizeof(e->native->bounce) || !native_encode(i, d, bytes, &op))
		return NULL;
	if ((i->flags & INSN_MEM) && !op.memory)
		return NULL;
	i->native = native_intern(e->native, &op);
	if (!i->native) {
		i->flags |= INSN_ENDS_BLOCK | INSN_ONCE;
		return op_arena_full;
	}
	fn = native_move_handler(e, i, d);
	return fn ? fn : op_native;
}
