/*
 * How translated code reaches guest memory. The guest's linear address lies in one of 512 slots; where the
 * shadow has a slot is its delta (shadow.h). An operand needs a delta that belongs to the slot which the
 * access really hits:
 *
 *   predicted   the slot that the profile saw is compared with the address, off the access' path; a miss
 * looks up the table looked up   bits 47:39 index the table; touches no flags, right for every address held
 * a scratch register still holds the delta for this base register; the guards catch what leaves the slot
 *   known       RSP, FS and GS bases, RIP: checked when they were set
 *   soft        not by a slot at all: the page is looked up in the interpreter's TLB (translate_soft.c)
 *
 * Isolation invariant: between the check of an address and the access there is nothing but adding a
 * displacement of 32 bits and steps of the base register that are accounted in tx.drift; both together stay
 * far below the guards' 48 GiB.
 */
#include "engine/translate.h"

static struct emit_mem gpr_home(struct tx *x, int reg)
{
	return mem_abs(&x->e->cpu->gpr[reg]);
}

/* What the Zydis operand says; −1 for no register; GPR_RIP. */
static int address_reg(ZydisRegister reg)
{
	bool high;

	if (reg == ZYDIS_REGISTER_NONE)
		return NO_REG;
	if (reg == ZYDIS_REGISTER_RIP)
		return GPR_RIP;
	return decode_gpr(reg, &high);
}

static unsigned scale_shift(const ZydisDecodedOperand *op)
{
	return op->mem.index == ZYDIS_REGISTER_NONE
		       ? 0
		       : (unsigned)__builtin_ctz(op->mem.scale ? op->mem.scale : 1);
}

struct emit_mem tx_address_of(const ZydisDecodedOperand *op)
{
	return (struct emit_mem){address_reg(op->mem.base), address_reg(op->mem.index), scale_shift(op),
		op->mem.disp.has_displacement ? (int32_t)op->mem.disp.value : 0};
}

static int segment_index(const ZydisDecodedOperand *op)
{
	return op->mem.segment == ZYDIS_REGISTER_FS ? 0 : op->mem.segment == ZYDIS_REGISTER_GS ? 1 : -1;
}

static struct emit_mem delta_of(struct tx *x, unsigned slot)
{
	return mem_abs(&x->e->deltas->delta[x->view][slot]);
}

void tx_look_up(struct tx *x, int dst, int src)
{
	emit_pext(&x->m, dst, src, mem_abs(&x->t->hot.slot_mask));
	emit_load(&x->m, dst, mem_table(x->e->deltas->delta[x->view], dst));
}

void tx_find_delta(struct tx *x, int dst, int src, uint32_t flags_live)
{
	unsigned seen = x->seen ? x->seen[x->n] : 0;
	uint8_t *miss;
	struct tx_stub *stub;

	if (flags_live || !seen || seen == SEEN_MANY || x->stub_count + 4 > TX_STUBS || dst == src) {
		tx_look_up(x, dst, src);
		return;
	}
	seen--;
	emit_move(&x->m, dst, src);
	emit_shr(&x->m, dst, 39);
	/* Sign bits and slot: 25 bits. */
	emit_cmp_imm(&x->m, dst, seen >= 256 ? 0x1fffe00u + seen : seen);
	miss = emit_jcc(&x->m, 5);
	emit_load(&x->m, dst, delta_of(x, seen));
	tx_stub(x, miss, STUB_LOOKUP, 0);
	stub = &x->pool->stubs[x->stub_count - 1];
	stub->back = x->m.p;
	stub->src = src;
	stub->dst = dst;
}

void tx_code_base(struct tx *x, int to)
{
	emit_load_low(&x->m, to, mem_abs(&x->t->hot.code));
	emit_load(&x->m, to, mem_base(to, offsetof(struct code_page, base)));
}

void tx_code_host(struct tx *x, int to)
{
	emit_load_low(&x->m, to, mem_abs(&x->t->hot.code));
	emit_load(&x->m, to, mem_base(to, offsetof(struct code_page, host)));
}

void tx_get_rsp(struct tx *x, int to, int32_t disp)
{
	tx_clobber(x, SCRATCH(to));
	emit_load(&x->m, to, mem_abs(&x->t->hot.rsp_neg));
	emit_lea(&x->m, to, (struct emit_mem){RSP, to, 0, disp});
}

/* Where a failed check leads: to the interpreter, or to code that follows RSP into its new slot. */
static void rsp_miss(struct tx *x, uint8_t *from, bool may_switch, unsigned *stub)
{
	if (may_switch)
		tx_stub(x, from, STUB_RSP, 0);
	else
		tx_stub(x, from, STUB_SITE, tx_site(x, SITE_INTERP, x->insn[x->n].offset, 0));
	*stub = x->stub_count - 1;
}

void tx_check_rsp(struct tx *x, uint32_t flags_live, bool may_switch)
{
	struct hot *h = &x->t->hot;
	unsigned stub;
	uint8_t *skip;

	tx_clobber(x, SCRATCH(S1) | SCRATCH(S2));
	if (!flags_live) {
		emit_move(&x->m, S2, S1);
		emit_shr(&x->m, S2, 39);
		emit_cmp_mem(&x->m, S2, mem_abs(&h->rsp_key));
		rsp_miss(x, emit_jcc(&x->m, 5), may_switch, &stub);
	} else {
		emit_store(&x->m, RCX, mem_abs(&h->save));
		emit_pext(&x->m, S2, S1, mem_abs(&h->high_mask));
		emit_load(&x->m, RCX, mem_abs(&h->rsp_key_neg));
		emit_lea(&x->m, RCX, (struct emit_mem){RCX, S2, 0, 0});
		skip = emit_jrcxz(&x->m);
		emit_load(&x->m, RCX, mem_abs(&h->save));
		rsp_miss(x, emit_jmp(&x->m), may_switch, &stub);
		emit_patch8(skip, x->m.p);
		emit_load(&x->m, RCX, mem_abs(&h->save));
	}
	x->pool->stubs[stub].back = x->m.p;
	emit_load(&x->m, S2, mem_abs(&h->rsp_delta));
}

static void emit_negative(struct tx *x, int reg, const uint64_t *to)
{
	emit_not(&x->m, reg);
	emit_lea(&x->m, reg, mem_base(reg, 1));
	emit_store(&x->m, reg, mem_abs(to));
}

void tx_switch_rsp(struct tx *x)
{
	struct hot *h = &x->t->hot;

	tx_look_up(x, S2, S1);
	emit_store(&x->m, S2, mem_abs(&h->rsp_delta));
	emit_negative(x, S2, &h->rsp_neg);
	emit_pext(&x->m, S2, S1, mem_abs(&h->high_mask));
	emit_store(&x->m, S2, mem_abs(&h->rsp_key));
	emit_negative(x, S2, &h->rsp_key_neg);
}

/* A register of an address in a host register; those at home are loaded into `into`. */
static int address_host(struct tx *x, int reg, int into)
{
	if (reg == NO_REG)
		return NO_REG;
	if (reg == RSP) {
		tx_get_rsp(x, into, 0);
		return into;
	}
	if (is_scratch(reg)) {
		tx_clobber(x, SCRATCH(into));
		emit_load(&x->m, into, gpr_home(x, reg));
		return into;
	}
	return reg;
}

void tx_effective(struct tx *x, const ZydisDecodedOperand *op, int to, int other)
{
	int base = address_reg(op->mem.base), index = address_reg(op->mem.index), seg = segment_index(op);
	int32_t disp = op->mem.disp.has_displacement ? (int32_t)op->mem.disp.value : 0;

	tx_clobber(x, SCRATCH(to) | SCRATCH(other));
	if (base == GPR_RIP) {
		tx_code_base(x, to);
		emit_lea(&x->m, to, mem_base(to, x->insn[x->n].next + disp));
	} else {
		base = address_host(x, base, to);
		index = address_host(x, index, other);
		emit_lea(&x->m, to, (struct emit_mem){base, index, scale_shift(op), disp});
	}
	if (seg >= 0) {
		emit_load(&x->m, other, mem_abs(&x->e->cpu->seg[seg ? SEG_GS : SEG_FS].base));
		emit_lea(&x->m, to, (struct emit_mem){to, other, 0, 0});
	}
}

/* An address that is known to lie in its slot: a scratch register with the host's base of it. */
static bool known_operand(struct tx *x, const ZydisDecodedOperand *op, unsigned data, struct emit_mem *out)
{
	int base = address_reg(op->mem.base), index = address_reg(op->mem.index), seg = segment_index(op);
	int64_t disp = op->mem.disp.has_displacement ? op->mem.disp.value : 0;
	int free = data & SCRATCH(S2) ? S1 : S2;
	const volatile uint64_t *from;

	if (index != NO_REG)
		return false;
	if (base == RSP && seg < 0) {
		*out = mem_base(RSP, (int32_t)disp);
		return true;
	}
	if (base == GPR_RIP && seg < 0) {
		disp += x->insn[x->n].next;
		if (disp != (int32_t)disp)
			return false;
		tx_clobber(x, SCRATCH(free));
		tx_code_host(x, free);
		*out = mem_base(free, (int32_t)disp);
		return true;
	} else if (base == NO_REG && seg >= 0) {
		from = &x->t->hot.seg_host[seg];
	} else if (base == NO_REG) {
		from = &x->e->deltas->delta[x->view][disp < 0 ? 511 : 0];
	} else {
		return false;
	}
	tx_clobber(x, SCRATCH(free));
	emit_load(&x->m, free, mem_abs(from));
	*out = mem_base(free, (int32_t)disp);
	return true;
}

/* [base + disp] */
static void based_operand(struct tx *x, int base, int32_t disp, unsigned data, struct emit_mem *out)
{
	uint32_t live = x->insn[x->n].flags_live;
	int dst, src;

	if (is_scratch(base)) {
		/* From its home, into its own number; the delta goes into the other one. */
		src = base;
		dst = base == S1 ? S2 : S1;
		tx_clobber(x, SCRATCH(S1) | SCRATCH(S2));
		emit_load(&x->m, src, gpr_home(x, base));
		tx_find_delta(x, dst, src, live);
		if (!data) {
			*out = (struct emit_mem){src, dst, 0, disp};
			return;
		}
		int to = data & SCRATCH(src) ? dst : src;

		emit_lea(&x->m, to, (struct emit_mem){src, dst, 0, disp});
		*out = mem_base(to, 0);
		return;
	}
	for (int s = 0; s < 2; s++) {
		if (x->holds[s] == base && !(data & SCRATCH(S1 + s))) {
			x->last = s;
			*out = (struct emit_mem){base, S1 + s, 0, disp};
			return;
		}
	}
	if (data & SCRATCH(S1))
		dst = S2;
	else if (data & SCRATCH(S2))
		dst = S1;
	else
		dst = x->last == 0 ? S2 : S1;
	tx_clobber(x, SCRATCH(dst));
	tx_find_delta(x, dst, base, live);
	x->holds[dst - S1] = base;
	x->drift[dst - S1] = 0;
	x->last = dst - S1;
	*out = (struct emit_mem){base, dst, 0, disp};
}

bool tx_operand(struct tx *x, const ZydisDecodedOperand *op, unsigned data, struct emit_mem *out)
{
	int base = address_reg(op->mem.base), index = address_reg(op->mem.index), seg = segment_index(op);
	int32_t disp = op->mem.disp.has_displacement ? (int32_t)op->mem.disp.value : 0;

	if ((data & SCRATCH(S1)) && (data & SCRATCH(S2)))
		return false;
	if (x->soft)
		return soft_operand(x, op, data, out);
	if (known_operand(x, op, data, out))
		return true;
	if (base == GPR_RIP && seg < 0)
		return false;
	if (seg < 0 && base != RSP &&
		facts_operand(x, base, index, scale_shift(op), disp, data, out))
		return true;
	/* A far displacement is an array at a fixed address, and the register its index. */
	if (index == NO_REG && seg < 0 && disp < DISP_NEAR && disp > -DISP_NEAR) {
		based_operand(x, base, disp, data, out);
		return true;
	}
	/* Both scratch registers: the address, and its delta. */
	tx_effective(x, op, S1, S2);
	tx_find_delta(x, S2, S1, x->insn[x->n].flags_live);
	if (!data) {
		*out = (struct emit_mem){S1, S2, 0, 0};
		return true;
	}
	int to = data & SCRATCH(S1) ? S2 : S1;

	emit_lea(&x->m, to, (struct emit_mem){S1, S2, 0, 0});
	*out = mem_base(to, 0);
	return true;
}
