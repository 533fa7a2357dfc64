/*
 * What is known of the addresses in hot code, so that an address that has been checked once needs no second check. A fact says that the
 * sum of a base and a scaled index register lies in a slot, or within `drift` bytes of it:
 *
 *   check       cmp; jne, or a probing load: the sum is in the slot, drift 0; a miss leaves the code, and the operand is looked up in
 *               the next translation
 *   access      sum + disp was reached without a fault, so it is in the slot's region: drift |disp|
 *   step        add, sub, inc or dec of a constant: drift grows by it (scaled); any other write ends the fact
 *   joint       where two ways meet, the facts that both have, with the greater drift
 *
 * Isolation invariant: drift stays below DRIFT_MAX, a displacement below 2 GiB, a small index scaled below 32 GiB; the guards are 48 GiB.
 * A loop that steps a register without an access through it loses the fact, since the drift of a version's entry is bounded.
 *
 * The delta of a fact's slot is loaded into S2 (S1 if that is taken) and stays there as long as nobody else needs the register.
 */
#include "engine/translate.h"

#define ENTRY_DRIFT (4 * (int64_t)DISP_NEAR)

void facts_clear(struct tx_facts *f)
{
	f->count = 0;
	f->small = 0;
	f->delta[0] = f->delta[1] = NO_SLOT;
	f->gated = false;
}

static int find_fact(const struct tx_facts *f, int base, int index, unsigned scale)
{
	for (unsigned n = 0; n < f->count; n++)
		if (f->fact[n].base == base && f->fact[n].index == index &&
			(index == NO_REG || f->fact[n].scale == scale))
			return (int)n;
	return -1;
}

static bool is_known(const struct tx_facts *have, const struct tx_fact *need)
{
	int n = find_fact(have, need->base, need->index, need->scale);

	return n >= 0 && have->fact[n].slot == need->slot && have->fact[n].drift <= need->drift;
}

bool facts_imply(const struct tx_facts *have, const struct tx_facts *need)
{
	for (unsigned n = 0; n < need->count; n++)
		if (!is_known(have, &need->fact[n]))
			return false;
	for (unsigned s = 0; s < 2; s++)
		if (need->delta[s] != NO_SLOT && need->delta[s] != have->delta[s])
			return false;
	return !(need->small & ~have->small) && (have->gated || !need->gated);
}

bool facts_imply_more(const struct tx_facts *have, const struct tx_facts *need)
{
	for (unsigned n = 0; n < have->count; n++)
		if (!is_known(need, &have->fact[n]))
			return true;
	return have->gated && !need->gated;
}

static void remove_fact(struct tx_facts *f, unsigned n)
{
	f->fact[n] = f->fact[--f->count];
}

void facts_meet(struct tx_facts *f, const struct tx_facts *other)
{
	for (unsigned n = f->count; n-- > 0;) {
		int m = find_fact(other, f->fact[n].base, f->fact[n].index, f->fact[n].scale);

		if (m < 0 || other->fact[m].slot != f->fact[n].slot)
			remove_fact(f, n);
		else if (other->fact[m].drift > f->fact[n].drift)
			f->fact[n].drift = other->fact[m].drift;
	}
	for (unsigned s = 0; s < 2; s++)
		if (f->delta[s] != other->delta[s])
			f->delta[s] = NO_SLOT;
	f->small &= other->small;
	f->gated = f->gated && other->gated;
}

void facts_widen(struct tx_facts *f)
{
	for (unsigned n = 0; n < f->count; n++)
		if (f->fact[n].drift < ENTRY_DRIFT)
			f->fact[n].drift = ENTRY_DRIFT;
}

/* --- operands --- */

static int new_fact(struct tx *x, int base, int index, unsigned scale, unsigned slot)
{
	struct tx_facts *f = &x->facts;

	if (f->count == TX_FACTS) {
		memmove(&f->fact[0], &f->fact[1], (TX_FACTS - 1) * sizeof(f->fact[0]));
		f->count--;
	}
	f->fact[f->count] = (struct tx_fact){(int8_t)base, (int8_t)index, (uint8_t)scale, (uint16_t)slot, 0};
	return f->count++;
}

/* The host's register that holds the guest's: one of those at home has been loaded into `at`. */
static int host_of(int reg, int at)
{
	return is_scratch(reg) ? at : reg;
}

/*
 * The sum is compared with the slot that was seen; a miss leaves the code. Where the flags are live, a load does it, which can be read for
 * this slot only. Destroys the scratch register that is not `at`.
 */
static int check_sum(struct tx *x, int base, int index, unsigned scale, int at)
{
	unsigned slot = x->seen[x->n] - 1u;
	const int free = at == S1 ? S2 : S1, from = host_of(base, at);

	tx_clobber(x, SCRATCH(free));
	if (index != NO_REG)
		emit_lea(&x->m, free, (struct emit_mem){from, host_of(index, at), scale, 0});
	if (x->insn[x->n].flags_live) {
		emit_pext(&x->m, free, index == NO_REG ? from : free, mem_abs(&x->t->hot.probe_mask));
		emit_load8(&x->m, free, mem_base(free, (int32_t)((uintptr_t)x->t->probe + PROBE_SIZE / 2 - (slot << 12))));
		return new_fact(x, base, index, scale, slot);
	}
	if (index == NO_REG)
		emit_move(&x->m, free, from);
	emit_shr(&x->m, free, 39);
	/* Sign bits and slot: 25 bits. */
	emit_cmp_imm(&x->m, free, slot >= 256 ? 0x1fffe00u + slot : slot);
	tx_stub(x, emit_jcc(&x->m, 5), STUB_SITE, tx_site(x, SITE_MISS, x->insn[x->n].offset, 0));
	return new_fact(x, base, index, scale, slot);
}

/* A scratch register with the slot's delta, not one of `taken`. */
static int get_delta(struct tx *x, unsigned slot, unsigned taken)
{
	int reg = taken & SCRATCH(S2) ? S1 : S2;

	for (int s = 0; s < 2; s++)
		if (x->facts.delta[s] == (int)slot && !(taken & SCRATCH(S1 + s)))
			return S1 + s;
	tx_clobber(x, SCRATCH(reg));
	emit_load(&x->m, reg, mem_abs(&x->e->deltas->delta[x->view][slot]));
	x->facts.delta[reg - S1] = (int16_t)slot;
	return reg;
}

static bool is_small(const struct tx *x, int reg)
{
	return x->facts.small >> reg & 1;
}

static bool may_access_nothing(const struct tx_insn *i)
{
	switch (i->d.insn.mnemonic) {
	case ZYDIS_MNEMONIC_VMASKMOVPS:
	case ZYDIS_MNEMONIC_VMASKMOVPD:
	case ZYDIS_MNEMONIC_VPMASKMOVD:
	case ZYDIS_MNEMONIC_VPMASKMOVQ:
		return true;
	default:
		return false;
	}
}

/* The slot is that of the base's fact. The access will prove the sum too, so that the index may be stepped. */
static int indexed_by_base(struct tx *x, int n, int index, unsigned scale, int *fact)
{
	unsigned slot = x->facts.fact[n].slot;

	if (!may_access_nothing(&x->insn[x->n]))
		*fact = new_fact(x, x->facts.fact[n].base, index, scale, slot);
	return (int)slot;
}

/* The slot of base + (index << scale), or NO_SLOT; *fact: by which. `at` as for check_sum(). */
static int find_slot(struct tx *x, int base, int index, unsigned scale, int32_t disp, int at, int *fact)
{
	bool far = disp >= DISP_NEAR || disp <= -DISP_NEAR, small_index = index == NO_REG || is_small(x, index);
	unsigned seen = x->seen ? x->seen[x->n] : 0;

	*fact = -1;
	/* A displacement that is an address, of an array with a small index. */
	if ((base == NO_REG || (far && is_small(x, base))) && small_index)
		return disp < 0 ? 511 : 0;
	if (base == NO_REG || far)
		return NO_SLOT;
	*fact = find_fact(&x->facts, base, index, scale);
	if (*fact >= 0)
		return x->facts.fact[*fact].slot;
	if (index != NO_REG && small_index) {
		int n = find_fact(&x->facts, base, NO_REG, 0);

		if (n < 0 && seen && seen != SEEN_MANY)
			n = check_sum(x, base, NO_REG, 0, at);
		if (n >= 0)
			return indexed_by_base(x, n, index, scale, fact);
	}
	if (!seen || seen == SEEN_MANY)
		return NO_SLOT;
	*fact = check_sum(x, base, index, scale, at);
	return (int)seen - 1;
}

/* One of the registers is at home: it is loaded into `at`, which becomes the address. */
static bool operand_at_home(struct tx *x, int base, int index, unsigned scale, int32_t disp, unsigned data, struct emit_mem *out)
{
	const int at = data & SCRATCH(S1) ? S2 : S1, reg = is_scratch(base) ? base : index;
	uint8_t *before = x->m.p;
	int slot, delta, fact;

	tx_clobber(x, SCRATCH(at));
	emit_load(&x->m, at, mem_abs(&x->e->cpu->gpr[reg]));
	slot = find_slot(x, base, index, scale, disp, at, &fact);
	if (slot == NO_SLOT) {
		x->m.p = before;
		return false;
	}
	x->accessed = fact;
	x->accessed_disp = disp;
	if (index != NO_REG) {
		emit_lea(&x->m, at, (struct emit_mem){host_of(base, at), host_of(index, at), scale, disp});
		disp = 0;
	}
	delta = get_delta(x, (unsigned)slot, SCRATCH(at));
	*out = (struct emit_mem){at, delta, 0, disp};
	if (data) {
		emit_lea(&x->m, at, *out);
		*out = mem_base(at, 0);
	}
	return true;
}

bool facts_operand(struct tx *x, int base, int index, unsigned scale, int32_t disp, unsigned data, struct emit_mem *out)
{
	int slot, delta, to, fact;

	if (!x->region || (is_scratch(base) && is_scratch(index)))
		return false;
	if (is_scratch(base) || is_scratch(index))
		return operand_at_home(x, base, index, scale, disp, data, out);
	slot = find_slot(x, base, index, scale, disp, S2, &fact);
	if (slot == NO_SLOT)
		return false;
	x->accessed = fact;
	x->accessed_disp = disp;
	if (index == NO_REG && base != NO_REG) {
		delta = get_delta(x, (unsigned)slot, data);
		*out = (struct emit_mem){base, delta, 0, disp};
		return true;
	}
	if (!data) {
		delta = get_delta(x, (unsigned)slot, 0);
		if (index != NO_REG && scale == 0 && base == NO_REG) {
			*out = (struct emit_mem){index, delta, 0, disp};
			return true;
		}
		to = delta == S2 ? S1 : S2;
		if (x->sum != to || x->sum_base != base || x->sum_index != index || x->sum_scale != scale) {
			tx_clobber(x, SCRATCH(to));
			emit_lea(&x->m, to, (struct emit_mem){base, index, scale, base == NO_REG ? disp : 0});
			if (base != NO_REG) {
				x->sum = to;
				x->sum_base = base;
				x->sum_index = index;
				x->sum_scale = scale;
			}
		}
		*out = (struct emit_mem){to, delta, 0, base == NO_REG ? 0 : disp};
		return true;
	}
	/* The other scratch register is loaded later: until then it serves too. */
	to = data & SCRATCH(S1) ? S2 : S1;
	tx_clobber(x, SCRATCH(S1) | SCRATCH(S2));
	emit_load(&x->m, to, mem_abs(&x->e->deltas->delta[x->view][slot]));
	if (base != NO_REG) {
		int other = to == S1 ? S2 : S1;

		emit_lea(&x->m, other, (struct emit_mem){base, index, scale, disp});
		emit_lea(&x->m, to, (struct emit_mem){to, other, 0, 0});
	} else if (index != NO_REG) {
		emit_lea(&x->m, to, (struct emit_mem){to, index, scale, disp});
	} else {
		emit_lea(&x->m, to, mem_base(to, disp));
	}
	*out = mem_base(to, 0);
	return true;
}

/* --- what an instruction does to the facts --- */

bool tx_constant_step(const struct tx_insn *i, int64_t *step)
{
	if (i->d.insn.operand_width != 64 || i->memory >= 0)
		return false;
	switch (i->d.insn.mnemonic) {
	case ZYDIS_MNEMONIC_ADD:
	case ZYDIS_MNEMONIC_SUB:
		if (i->d.op[1].type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
			return false;
		*step = i->d.op[1].imm.value.s;
		return true;
	case ZYDIS_MNEMONIC_INC:
	case ZYDIS_MNEMONIC_DEC:
		*step = 1;
		return true;
	default:
		return false;
	}
}

/* A result of 32 bits is zero-extended, whatever the operands are. */
static bool writes_zero_extended(const struct tx_insn *i)
{
	switch (i->d.insn.mnemonic) {
	case ZYDIS_MNEMONIC_MOV:
	case ZYDIS_MNEMONIC_ADD:
	case ZYDIS_MNEMONIC_SUB:
	case ZYDIS_MNEMONIC_AND:
	case ZYDIS_MNEMONIC_OR:
	case ZYDIS_MNEMONIC_XOR:
	case ZYDIS_MNEMONIC_INC:
	case ZYDIS_MNEMONIC_DEC:
	case ZYDIS_MNEMONIC_NEG:
	case ZYDIS_MNEMONIC_NOT:
	case ZYDIS_MNEMONIC_LEA:
	case ZYDIS_MNEMONIC_SHL:
	case ZYDIS_MNEMONIC_SHR:
	case ZYDIS_MNEMONIC_SAR:
	case ZYDIS_MNEMONIC_IMUL:
	case ZYDIS_MNEMONIC_MOVSX:
	case ZYDIS_MNEMONIC_MOVSXD:
		return true;
	default:
		return false;
	}
}

/* The register that the instruction writes as its first operand holds a small number afterwards. */
static bool result_is_small(const struct tx *x, const struct tx_insn *i)
{
	const ZydisDecodedOperand *dst = &i->d.op[0], *src = &i->d.op[1];
	bool high;
	int reg;

	if (i->d.insn.operand_count_visible < 1 || dst->type != ZYDIS_OPERAND_TYPE_REGISTER ||
		!(dst->actions & ZYDIS_OPERAND_ACTION_WRITE))
		return false;
	if (i->d.insn.mnemonic == ZYDIS_MNEMONIC_MOVZX)
		return dst->size >= 32;
	if (dst->size == 32)
		return writes_zero_extended(i);
	if (dst->size != 64)
		return false;
	switch (i->d.insn.mnemonic) {
	case ZYDIS_MNEMONIC_MOVSX:
	case ZYDIS_MNEMONIC_MOVSXD:
		return true;
	case ZYDIS_MNEMONIC_AND:
		return src->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && src->imm.value.s >= 0;
	case ZYDIS_MNEMONIC_SHR:
		return src->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && (src->imm.value.u & 63) >= 32;
	case ZYDIS_MNEMONIC_MOV:
		if (src->type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
			return src->imm.value.s == (int32_t)src->imm.value.s;
		if (src->type != ZYDIS_OPERAND_TYPE_REGISTER)
			return false;
		reg = decode_gpr(src->reg.value, &high);
		return reg >= 0 && is_small(x, reg);
	default:
		return false;
	}
}

/* The registers of which the instruction writes 32 bits or more: string instructions write whole address registers. */
static uint32_t written_whole(const struct tx_insn *i)
{
	uint32_t regs = 0;

	for (unsigned n = 0; n < i->d.insn.operand_count; n++) {
		const ZydisDecodedOperand *op = &i->d.op[n];
		bool high;
		int reg;

		if (op->type != ZYDIS_OPERAND_TYPE_REGISTER || !(op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) || op->size < 32)
			continue;
		reg = decode_gpr(op->reg.value, &high);
		if (reg >= 0)
			regs |= 1u << reg;
	}
	return regs;
}

static void account_small(struct tx *x, const struct tx_insn *i)
{
	bool small = result_is_small(x, i), high;
	int reg = -1;

	x->facts.small &= (uint16_t)~written_whole(i);
	if (i->d.insn.mnemonic == ZYDIS_MNEMONIC_CDQE)
		x->facts.small |= 1u << RAX;
	if (small) {
		reg = decode_gpr(i->d.op[0].reg.value, &high);
			if (reg >= 0 && reg != RSP)
			x->facts.small |= (uint16_t)(1u << reg);
	}
}

void facts_account(struct tx *x, const struct tx_insn *i)
{
	struct tx_facts *f = &x->facts;
	int64_t step = 0;
	bool constant;

	if (!x->region)
		return;
	if (x->accessed >= 0 && !may_access_nothing(i)) {
		int64_t disp = x->accessed_disp < 0 ? -x->accessed_disp : x->accessed_disp;

		f->fact[x->accessed].drift = disp;
	}
	account_small(x, i);
	constant = tx_constant_step(i, &step);
	for (unsigned n = f->count; n-- > 0;) {
		struct tx_fact *k = &f->fact[n];
		uint32_t regs = 1u << k->base | (k->index == NO_REG ? 0 : 1u << k->index);
		int64_t moved = step < 0 ? -step : step;

		if (!(i->written & regs))
			continue;
		if (k->index != NO_REG && (i->written & 1u << k->index)) {
			moved <<= k->scale;
			if (k->base == k->index)
				moved += step < 0 ? -step : step;
		}
		k->drift += moved;
		if (!constant || k->drift > DRIFT_MAX)
			remove_fact(f, n);
	}
}
