/*
 * Segment registers and descriptor tables: loads with their checks (SDM vol. 3, 5.6–5.12; vol. 2, MOV, LLDT, LTR, LAR, …).
 * Far transfers are in far.c.
 *
 * The accessed bit of a descriptor is set in memory before the register is loaded, as hardware does, atomically.
 */
#include "engine/decode.h"
#include "engine/system.h"

void selector_fault(struct engine *e, uint8_t vector, uint16_t selector)
{
	engine_raise_error(e, vector, (selector & 0xfffcu) | e->delivering);
}

static bool table_address(struct engine *e, uint16_t selector, unsigned size, uint64_t *gva)
{
	uint64_t base = e->cpu->gdtr.base;
	uint32_t limit = e->cpu->gdtr.limit;

	if (selector & 4) {
		if (e->cpu->ldtr.ar & SEG_AR_UNUSABLE)
			return false;
		base = e->cpu->ldtr.base;
		limit = e->cpu->ldtr.limit;
	}
	if ((selector & ~7u) + size - 1 > limit)
		return false;
	*gva = base + (selector & ~7u);
	if (!is_long_mode(e))
		*gva = (uint32_t)*gva;
	return true;
}

bool descriptor_read(struct engine *e, uint16_t selector, struct descriptor *d)
{
	uint64_t value;

	if (!table_address(e, selector, 8, &d->gva))
		return false;
	value = linear_read(e, d->gva, 8, ACCESS_SYSTEM);
	d->lo = (uint32_t)value;
	d->hi = (uint32_t)(value >> 32);
	return true;
}

uint32_t descriptor_read_high(struct engine *e, uint16_t selector, const struct descriptor *d)
{
	uint64_t gva;

	if (!table_address(e, selector, 16, &gva))
		selector_fault(e, EXC_GP, selector);
	return (uint32_t)linear_read(e, d->gva + 8, 4, ACCESS_SYSTEM);
}

void descriptor_set_type_bits(struct engine *e, const struct descriptor *d, uint8_t set, uint8_t clear)
{
	uint64_t gpa = 0;
	uint8_t *p = mmu_resolve(e, d->gva + 5, 1, ACCESS_WRITE | ACCESS_SYSTEM,
		mmu_array(e, ACCESS_WRITE | ACCESS_SYSTEM), &gpa);

	if (!p) {
		physical_write(e, gpa, 1, (physical_read(e, gpa, 1) | set) & (uint8_t)~clear);
		return;
	}
	if (set)
		__atomic_fetch_or(p, set, __ATOMIC_SEQ_CST);
	if (clear)
		__atomic_fetch_and(p, (uint8_t)~clear, __ATOMIC_SEQ_CST);
}

void descriptor_touch(struct engine *e, struct descriptor *d)
{
	if (d->hi & 0x100)
		return;
	descriptor_set_type_bits(e, d, 1, 0);
	d->hi |= 0x100;
}

void segment_set(struct cpu_segment *s, uint16_t selector, const struct descriptor *d)
{
	s->selector = selector;
	s->base = d->lo >> 16 | (d->hi & 0xff) << 16 | (d->hi & 0xff000000);
	s->limit = (d->lo & 0xffff) | (d->hi & 0xf0000);
	if (d->hi & (1u << 23))
		s->limit = s->limit << 12 | 0xfff;
	s->ar = d->hi >> 8 & 0xf0ff;
}

void segment_set_null(struct cpu_segment *s, uint16_t selector, unsigned dpl)
{
	s->selector = selector;
	s->base = 0;
	s->limit = 0;
	s->ar = SEG_AR_UNUSABLE | dpl << SEG_AR_DPL_SHIFT;
}

void segment_set_paragraph(struct engine *e, unsigned seg, uint16_t selector)
{
	struct cpu_segment *s = &e->cpu->seg[seg];

	s->selector = selector;
	s->base = (uint64_t)selector << 4;
	if (e->cpu->rflags & FLAG_VM) {
		s->limit = 0xffff;
		s->ar = 0xf3;
	} else if (s->ar & SEG_AR_UNUSABLE) {
		s->limit = 0xffff;
		s->ar = 0x93;
	}
}

void segment_drop_privileged(struct engine *e, unsigned cpl)
{
	static const uint8_t segs[] = { SEG_ES, SEG_DS, SEG_FS, SEG_GS };

	for (unsigned n = 0; n < 4; n++) {
		struct cpu_segment *s = &e->cpu->seg[segs[n]];
		bool conforming = (s->ar & 0xc) == 0xc;

		/* The base stays: 64-bit code goes on using that of FS and GS. A null selector loses its RPL. */
		if ((s->ar & SEG_AR_UNUSABLE) || (!conforming && (s->ar & SEG_AR_DPL) >> SEG_AR_DPL_SHIFT < cpl)) {
			s->selector = 0;
			s->ar = SEG_AR_UNUSABLE;
		}
	}
}

void segment_load(struct engine *e, unsigned seg, uint16_t selector)
{
	struct cpu_segment *s = &e->cpu->seg[seg];
	struct descriptor d;
	unsigned rpl = selector & 3;

	if (is_real_or_v86(e)) {
		segment_set_paragraph(e, seg, selector);
		return;
	}
	if (!(selector & ~3u)) {
		if (seg == SEG_SS && !(e->mode == MODE_64 && e->cpl < 3 && rpl == e->cpl))
			engine_raise_error(e, EXC_GP, 0);
		segment_set_null(s, selector, seg == SEG_SS ? e->cpl : 0);
		return;
	}
	if (!descriptor_read(e, selector, &d))
		selector_fault(e, EXC_GP, selector);
	if (seg == SEG_SS) {
		if (rpl != e->cpl || !desc_is_writable_data(&d) || desc_dpl(&d) != e->cpl)
			selector_fault(e, EXC_GP, selector);
		if (!(d.hi & DESC_P))
			selector_fault(e, EXC_SS, selector);
	} else {
		if (!(d.hi & DESC_S) || (d.hi & (DESC_CODE | DESC_RW)) == DESC_CODE)
			selector_fault(e, EXC_GP, selector);
		if (!(desc_is_code(&d) && desc_is_conforming(&d)) && (rpl > desc_dpl(&d) || e->cpl > desc_dpl(&d)))
			selector_fault(e, EXC_GP, selector);
		if (!(d.hi & DESC_P))
			selector_fault(e, EXC_NP, selector);
	}
	descriptor_touch(e, &d);
	segment_set(s, selector, &d);
	if (seg == SEG_SS)
		engine_update_mode(e);
}

/* --- MOV, PUSH, POP, LDS and family --- */

static uint16_t operand16(struct engine *e, const struct insn *i)
{
	return i->flags & INSN_MEM ? (uint16_t)insn_load(e, i, 2) : (uint16_t)e->cpu->gpr[i->rm];
}

static void store_selector(struct engine *e, const struct insn *i, uint16_t value)
{
	if (i->flags & INSN_MEM)
		insn_store(e, i, 2, value);
	else
		gpr_set(e, i->rm, i->opsize, value);
}

static void op_mov_to_seg(struct engine *e, const struct insn *i)
{
	if (i->reg == SEG_CS || i->reg >= SEG_COUNT)
		engine_raise(e, EXC_UD);
	segment_load(e, i->reg, operand16(e, i));
	if (i->reg == SEG_SS) {
		e->cpu->shadow_mov_ss = 1;
		e->leave_block = true;
	}
}

static void op_mov_from_seg(struct engine *e, const struct insn *i)
{
	store_selector(e, i, e->cpu->seg[i->reg].selector);
}

static void op_push_seg(struct engine *e, const struct insn *i)
{
	stack_push(e, i->opsize, e->cpu->seg[i->reg].selector);
}

static void op_pop_seg(struct engine *e, const struct insn *i)
{
	uint16_t selector = (uint16_t)stack_peek(e, 0, i->opsize);

	segment_load(e, i->reg, selector);
	stack_move(e, i->opsize);
	if (i->reg == SEG_SS) {
		e->cpu->shadow_mov_ss = 1;
		e->leave_block = true;
	}
}

static void op_load_far_pointer(struct engine *e, const struct insn *i)
{
	static const struct {
		uint16_t mnemonic;
		uint8_t seg;
	} segs[] = { { ZYDIS_MNEMONIC_LES, SEG_ES }, { ZYDIS_MNEMONIC_LDS, SEG_DS }, { ZYDIS_MNEMONIC_LSS, SEG_SS },
		{ ZYDIS_MNEMONIC_LFS, SEG_FS }, { ZYDIS_MNEMONIC_LGS, SEG_GS } };
	uint8_t bytes[10];
	uint64_t gva = insn_linear(e, i, i->opsize + 2, ACCESS_READ), offset = 0;
	uint16_t selector;

	linear_read_bytes(e, gva, bytes, i->opsize + 2, ACCESS_READ);
	memcpy(&offset, bytes, i->opsize);
	memcpy(&selector, bytes + i->opsize, 2);
	for (unsigned n = 0; n < 5; n++)
		if (segs[n].mnemonic == i->mnemonic)
			segment_load(e, segs[n].seg, selector);
	gpr_set(e, i->reg, i->opsize, offset);
}

/* --- descriptor table registers --- */

static void require_protected(struct engine *e)
{
	if (is_real_or_v86(e))
		engine_raise(e, EXC_UD);
}

static void check_umip(struct engine *e)
{
	e->stats->emul_descriptor++;
	if (e->cpl && (e->cpu->cr4 & CR4_UMIP))
		engine_raise_error(e, EXC_GP, 0);
}

static void op_load_table(struct engine *e, const struct insn *i)
{
	struct cpu_table *t = i->mnemonic == ZYDIS_MNEMONIC_LGDT ? &e->cpu->gdtr : &e->cpu->idtr;
	unsigned size = e->mode == MODE_64 ? 8 : 4;
	uint8_t bytes[10];
	uint64_t base = 0;

	e->stats->emul_descriptor++;
	require_cpl0(e);
	linear_read_bytes(e, insn_linear(e, i, size + 2, ACCESS_READ), bytes, size + 2, ACCESS_READ);
	memcpy(&base, bytes + 2, size);
	if (size == 8) {
		if (!is_canonical(base))
			engine_raise_error(e, EXC_GP, 0);
	} else if (i->opsize == 2) {
		base &= 0xffffff;
	}
	memcpy(&t->limit, bytes, 2);
	t->base = base;
}

static void op_store_table(struct engine *e, const struct insn *i)
{
	const struct cpu_table *t = i->mnemonic == ZYDIS_MNEMONIC_SGDT ? &e->cpu->gdtr : &e->cpu->idtr;
	unsigned size = e->mode == MODE_64 ? 8 : 4;
	uint8_t bytes[10];

	check_umip(e);
	memcpy(bytes, &t->limit, 2);
	memcpy(bytes + 2, &t->base, size);
	linear_write_bytes(e, insn_linear(e, i, size + 2, ACCESS_WRITE), bytes, size + 2, ACCESS_WRITE);
}

/* Bits 63:32 of the base of a 16-byte descriptor. SDM vol. 2, LLDT and LTR: #GP(selector) if the base is not canonical. */
static uint64_t system_base_high(struct engine *e, uint16_t selector, const struct descriptor *d)
{
	uint64_t high = descriptor_read_high(e, selector, d);

	if (!is_canonical(high << 32))
		selector_fault(e, EXC_GP, selector);
	return high;
}

static void op_lldt(struct engine *e, const struct insn *i)
{
	struct cpu_segment *s = &e->cpu->ldtr;
	struct descriptor d;
	uint16_t selector;
	uint64_t high = 0;

	e->stats->emul_descriptor++;
	require_protected(e);
	require_cpl0(e);
	selector = operand16(e, i);
	if (!(selector & ~3u)) {
		segment_set_null(s, selector, 0);
		return;
	}
	if ((selector & 4) || !descriptor_read(e, selector, &d) || (d.hi & DESC_S) || desc_type(&d) != SYS_LDT)
		selector_fault(e, EXC_GP, selector);
	if (!(d.hi & DESC_P))
		selector_fault(e, EXC_NP, selector);
	if (is_long_mode(e))
		high = system_base_high(e, selector, &d);
	segment_set(s, selector, &d);
	s->base |= high << 32;
}

static void op_ltr(struct engine *e, const struct insn *i)
{
	struct cpu_segment *s = &e->cpu->tr;
	struct descriptor d;
	uint16_t selector;
	uint64_t high = 0;
	unsigned type;

	e->stats->emul_descriptor++;
	require_protected(e);
	require_cpl0(e);
	selector = operand16(e, i);
	if (!(selector & ~3u))
		engine_raise_error(e, EXC_GP, 0);
	if ((selector & 4) || !descriptor_read(e, selector, &d) || (d.hi & DESC_S))
		selector_fault(e, EXC_GP, selector);
	type = desc_type(&d);
	if (type != SYS_TSS && (type != SYS_TSS16 || is_long_mode(e)))
		selector_fault(e, EXC_GP, selector);
	if (!(d.hi & DESC_P))
		selector_fault(e, EXC_NP, selector);
	if (is_long_mode(e))
		high = system_base_high(e, selector, &d);
	descriptor_set_type_bits(e, &d, 2, 0);
	d.hi |= 0x200;
	segment_set(s, selector, &d);
	s->base |= high << 32;
}

static void op_sldt(struct engine *e, const struct insn *i)
{
	require_protected(e);
	check_umip(e);
	store_selector(e, i, e->cpu->ldtr.selector);
}

static void op_str(struct engine *e, const struct insn *i)
{
	require_protected(e);
	check_umip(e);
	store_selector(e, i, e->cpu->tr.selector);
}

/* --- LAR, LSL, VERR, VERW, ARPL --- */

static void set_zf(struct engine *e, bool zf)
{
	e->cpu->rflags = (e->cpu->rflags & ~FLAG_ZF) | (zf ? FLAG_ZF : 0);
}

/* True if the descriptor exists and CPL and RPL may see it. */
static bool may_see(struct engine *e, uint16_t selector, struct descriptor *d)
{
	if (!(selector & ~3u) || !descriptor_read(e, selector, d))
		return false;
	if (desc_is_code(d) && desc_is_conforming(d))
		return true;
	return e->cpl <= desc_dpl(d) && (selector & 3u) <= desc_dpl(d);
}

static void op_lar_lsl(struct engine *e, const struct insn *i)
{
	/* Bit per system type: valid for LAR (vol. 2, table 3-54) and LSL (3-57), legacy and long mode. */
	static const uint16_t valid[2][2] = { { 0x1a3e, 0x1a04 }, { 0x0a0e, 0x0a04 } };
	bool lsl = i->mnemonic == ZYDIS_MNEMONIC_LSL;
	uint16_t selector;
	struct descriptor d;

	e->stats->emul_descriptor++;
	require_protected(e);
	selector = operand16(e, i);
	if (!may_see(e, selector, &d) || (!(d.hi & DESC_S) && !(valid[lsl][is_long_mode(e)] >> desc_type(&d) & 1))) {
		set_zf(e, false);
		return;
	}
	if (lsl) {
		struct cpu_segment s;

		segment_set(&s, selector, &d);
		gpr_set(e, i->reg, i->opsize, s.limit);
	} else {
		gpr_set(e, i->reg, i->opsize, d.hi & (i->opsize == 2 ? 0xff00u : 0x00ffff00u));
	}
	set_zf(e, true);
}

static void op_verr_verw(struct engine *e, const struct insn *i)
{
	uint16_t selector;
	struct descriptor d;
	bool ok;

	e->stats->emul_descriptor++;
	require_protected(e);
	selector = operand16(e, i);
	ok = may_see(e, selector, &d) && (d.hi & DESC_S);
	if (ok && i->mnemonic == ZYDIS_MNEMONIC_VERW)
		ok = desc_is_writable_data(&d);
	else if (ok)
		ok = !desc_is_code(&d) || (d.hi & DESC_RW);
	set_zf(e, ok);
}

static void op_arpl(struct engine *e, const struct insn *i)
{
	uint16_t dest, source = (uint16_t)e->cpu->gpr[i->reg];

	require_protected(e);
	dest = operand16(e, i);
	if ((dest & 3) < (source & 3)) {
		dest = (uint16_t)((dest & ~3u) | (source & 3));
		if (i->flags & INSN_MEM)
			insn_store(e, i, 2, dest);
		else
			gpr_set(e, i->rm, 2, dest);
		set_zf(e, true);
	} else {
		if (i->flags & INSN_MEM)
			insn_linear(e, i, 2, ACCESS_WRITE);
		set_zf(e, false);
	}
}

/* --- FS and GS bases --- */

static void op_fsgsbase(struct engine *e, const struct insn *i)
{
	bool gs = i->mnemonic == ZYDIS_MNEMONIC_RDGSBASE || i->mnemonic == ZYDIS_MNEMONIC_WRGSBASE;
	uint64_t *base = &e->cpu->seg[gs ? SEG_GS : SEG_FS].base;

	if (e->mode != MODE_64 || !(e->cpu->cr4 & CR4_FSGSBASE))
		engine_raise(e, EXC_UD);
	if (i->mnemonic == ZYDIS_MNEMONIC_RDGSBASE || i->mnemonic == ZYDIS_MNEMONIC_RDFSBASE) {
		gpr_set(e, i->rm, i->opsize, *base);
	} else {
		uint64_t value = i->opsize == 8 ? e->cpu->gpr[i->rm] : (uint32_t)e->cpu->gpr[i->rm];

		if (!is_canonical(value))
			engine_raise_error(e, EXC_GP, 0);
		*base = value;
	}
}

static void op_swapgs(struct engine *e, const struct insn *i)
{
	uint64_t base = e->cpu->seg[SEG_GS].base;

	e->stats->emul_swapgs++;
	if (e->mode != MODE_64)
		engine_raise(e, EXC_UD);
	require_cpl0(e);
	e->cpu->seg[SEG_GS].base = e->cpu->kernel_gs_base;
	e->cpu->kernel_gs_base = base;
}

static bool is_segment(const ZydisDecodedOperand *op)
{
	return op->type == ZYDIS_OPERAND_TYPE_REGISTER &&
		ZydisRegisterGetClass(op->reg.value) == ZYDIS_REGCLASS_SEGMENT;
}

insn_fn segment_handler(const struct insn *i, const struct decoded *d)
{
	bool far = d->insn.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR;

	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_MOV:
		return is_segment(&d->op[0]) ? op_mov_to_seg : is_segment(&d->op[1]) ? op_mov_from_seg : NULL;
	case ZYDIS_MNEMONIC_PUSH:
		return is_segment(&d->op[0]) ? op_push_seg : NULL;
	case ZYDIS_MNEMONIC_POP:
		return is_segment(&d->op[0]) ? op_pop_seg : NULL;
	case ZYDIS_MNEMONIC_LES:
	case ZYDIS_MNEMONIC_LDS:
	case ZYDIS_MNEMONIC_LSS:
	case ZYDIS_MNEMONIC_LFS:
	case ZYDIS_MNEMONIC_LGS:
		return op_load_far_pointer;
	case ZYDIS_MNEMONIC_JMP:
		return far ? op_far_jump : NULL;
	case ZYDIS_MNEMONIC_CALL:
		return far ? op_far_call : NULL;
	case ZYDIS_MNEMONIC_RET:
		return far ? op_far_return : NULL;
	case ZYDIS_MNEMONIC_IRET:
	case ZYDIS_MNEMONIC_IRETD:
	case ZYDIS_MNEMONIC_IRETQ:
		return op_iret;
	case ZYDIS_MNEMONIC_LGDT:
	case ZYDIS_MNEMONIC_LIDT:
		return op_load_table;
	case ZYDIS_MNEMONIC_SGDT:
	case ZYDIS_MNEMONIC_SIDT:
		return op_store_table;
	case ZYDIS_MNEMONIC_LLDT:
		return op_lldt;
	case ZYDIS_MNEMONIC_LTR:
		return op_ltr;
	case ZYDIS_MNEMONIC_SLDT:
		return op_sldt;
	case ZYDIS_MNEMONIC_STR:
		return op_str;
	case ZYDIS_MNEMONIC_LAR:
	case ZYDIS_MNEMONIC_LSL:
		return op_lar_lsl;
	case ZYDIS_MNEMONIC_VERR:
	case ZYDIS_MNEMONIC_VERW:
		return op_verr_verw;
	case ZYDIS_MNEMONIC_ARPL:
		return op_arpl;
	case ZYDIS_MNEMONIC_RDFSBASE:
	case ZYDIS_MNEMONIC_RDGSBASE:
	case ZYDIS_MNEMONIC_WRFSBASE:
	case ZYDIS_MNEMONIC_WRGSBASE:
		return op_fsgsbase;
	case ZYDIS_MNEMONIC_SWAPGS:
		return op_swapgs;
	default:
		return NULL;
	}
}
