/*
 * 32-bit code: compatibility mode and protected mode, in flat segments. The host runs it as 64-bit code, so what has another encoding
 * or meaning there is rewritten; the rest is copied with two prefixes before a memory operand:
 *
 *   67   the address has 32 bits: it wraps at 4 GiB, as the guest's does
 *   65   GS: the host's GS base is the delta of slot 0, in which the 4 GiB lie
 *
 * so no operand needs a check, and the stack pointer is a register like others. All eight registers are the guest's, their upper halves
 * are 0 (code with others is interpreted until they are), and R8…R15, which this code can't name, are ours:
 *
 *   R8, R9     the deltas of FS and GS: slot 0's, or poison if the segment is not a writable one of 4 GiB
 *   R12, R13   the bases of FS and GS
 *   R10, R11   scratch
 *
 * Isolation: an address is 32 bits wide and is added to the base of a region. What lies across 4 GiB faults, as nothing is mapped behind
 * (shadow_is_low()).
 *
 * Segments are looked at when code is entered (tx32_ready()); whatever changes them is interpreted.
 */
#include "engine/host.h"
#include "engine/native.h"
#include "engine/translate.h"

#define FS_DELTA R8
#define GS_DELTA R9
#define FS_BASE R12
#define GS_BASE R13
#define TOP_PAGE 0xfffff000u

static const uint8_t same_registers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/* --- when --- */

/*
 * The guest's stack pointer is the host's: the host must not take it for an address in the signal stack, which lies in the program. So
 * the program must not lie in the first 4 GiB.
 */
bool tx32_possible(void)
{
	return host_has_fsgsbase() && (uintptr_t)same_registers >> 32;
}

/* Writable data that begins anywhere and has 4 GiB. */
static bool is_wide(const struct cpu_segment *s)
{
	return s->limit == 0xffffffffu && (s->ar & (SEG_AR_UNUSABLE | 0xe)) == 2;
}

bool tx32_ready(const struct engine *e)
{
	const struct cpu_state *c = e->cpu;
	const struct cpu_segment *cs = &c->seg[SEG_CS];
	uint64_t high = 0;

	if (e->mode != MODE_32 || !e->stack32 || !(c->cr0 & CR0_PE) || (e->cpl != 0 && e->cpl != 3) || !e->translator->has_gs)
		return false;
	if (cs->base || cs->limit != 0xffffffffu || c->gpr[GPR_RIP] >= TOP_PAGE)
		return false;
	for (unsigned n = 0; n < 4; n++) {
		const struct cpu_segment *s = &c->seg[n == 0 ? SEG_ES : n == 1 ? SEG_SS : SEG_DS];

		if (s->base || !is_wide(s))
			return false;
	}
	for (unsigned n = 0; n < 8; n++)
		high |= c->gpr[n];
	return !(high >> 32) && shadow_is_low(e);
}

void tx32_prepare(struct engine *e, unsigned view)
{
	struct hot *h = &e->translator->hot;
	const struct cpu_segment *fs = &e->cpu->seg[SEG_FS];

	h->flat_delta = e->deltas->delta[view][0];
	for (unsigned n = 0; n < 2; n++) {
		h->wide_base[n] = (uint32_t)fs[n].base;
		h->wide_delta[n] = is_wide(&fs[n]) ? h->flat_delta : h->poison;
	}
}

void tx32_emit_registers(struct emit *m, struct engine *e)
{
	struct hot *h = &e->translator->hot;

	emit_load(m, S1, mem_abs(&h->flat_delta));
	emit_bytes(m, "\xf3\x49\x0f\xae\xda", 5); /* wrgsbase %r10 */
	emit_load(m, FS_DELTA, mem_abs(&h->wide_delta[0]));
	emit_load(m, GS_DELTA, mem_abs(&h->wide_delta[1]));
	emit_load(m, FS_BASE, mem_abs(&h->wide_base[0]));
	emit_load(m, GS_BASE, mem_abs(&h->wide_base[1]));
}

/* --- operands --- */

/* Where an operand is: in the flat 4 GiB (the prefixes are needed), or by a whole host address. */
struct place {
	struct emit_mem memory;
	bool flat;
};

static void emit_flat(struct tx *x)
{
	emit_bytes(&x->m, "\x65\x67", 2);
}

/* A one-byte opcode with a 32-bit register and memory. */
static void emit_op32(struct tx *x, unsigned opcode, int reg, const struct place *at)
{
	unsigned rex = rex_bits(reg, at->memory);

	if (at->flat)
		emit_flat(x);
	if (rex)
		emit8(&x->m, 0x40 | rex);
	emit8(&x->m, opcode);
	emit_modrm_mem(&x->m, reg, at->memory);
}

static void emit_load32(struct tx *x, int reg, const struct place *at)
{
	emit_op32(x, 0x8b, reg, at);
}

static void emit_store32(struct tx *x, int reg, const struct place *at)
{
	emit_op32(x, 0x89, reg, at);
}

static struct place flat_at(int base, int32_t disp)
{
	return (struct place){mem_base(base, disp), true};
}

/* The offset in S1 and size − 1 bytes behind it do not wrap, or the interpreter does the instruction. */
static void check_wrap(struct tx *x, const struct tx_insn *i, unsigned size)
{
	if (size < 2)
		return;
	if (!i->flags_live) {
		emit_cmp_imm(&x->m, S1, 1u - size);
		tx_stub(x, emit_jcc(&x->m, 3), STUB_SITE, tx_site(x, SITE_INTERP, i->offset, 0));
		return;
	}
	/* Bit 32 of the sum leads out of the page that polls read. */
	emit_lea(&x->m, S2, mem_base(S1, (int32_t)size - 1));
	emit_pext(&x->m, S2, S2, mem_abs(&x->t->hot.mask_carry));
	emit_rorx_reg(&x->m, S2, S2, 13);
	emit_load8(&x->m, S2, mem_base(S2, (int32_t)(uintptr_t)x->t->poll));
}

/* FS or GS: the base is added, and the sum wraps. S1 holds the address. */
static bool wide_operand(struct tx *x, const struct tx_insn *i, const ZydisDecodedOperand *op, struct place *out)
{
	bool gs = op->mem.segment == ZYDIS_REGISTER_GS;
	struct emit_mem at = tx_address_of(op);
	unsigned size = op->size / 8;

	if (size < 1 || size > 64)
		return false;
	if (at.base == NO_REG && at.index == NO_REG) {
		if ((uint64_t)(uint32_t)at.disp + size - 1 > 0xffffffffu)
			return false;
		emit_lea32(&x->m, S1, mem_base(gs ? GS_BASE : FS_BASE, at.disp));
	} else {
		emit_lea32(&x->m, S1, at);
		check_wrap(x, i, size);
		emit_lea32(&x->m, S1, (struct emit_mem){S1, gs ? GS_BASE : FS_BASE, 0, 0});
	}
	*out = (struct place){{S1, gs ? GS_DELTA : FS_DELTA, 0, 0}, false};
	return true;
}

/* May use both scratch registers; S1 is busy until the access if the operand is not flat. */
static bool operand(struct tx *x, const struct tx_insn *i, const ZydisDecodedOperand *op, struct place *out)
{
	if (i->d.insn.address_width != 32 || op->mem.type != ZYDIS_MEMOP_TYPE_MEM)
		return false;
	switch (op->mem.segment) {
	case ZYDIS_REGISTER_DS:
	case ZYDIS_REGISTER_ES:
	case ZYDIS_REGISTER_SS:
		*out = (struct place){tx_address_of(op), true};
		return true;
	case ZYDIS_REGISTER_FS:
	case ZYDIS_REGISTER_GS:
		return wide_operand(x, i, op, out);
	default:
		return false;
	}
}

/* --- copying --- */

/* What VEX encodings mean otherwise in 64-bit code: numbers above 7, 64-bit general registers. */
static bool vex_differs(const struct tx_insn *i)
{
	const ZydisDecodedInstruction *z = &i->d.insn;
	const uint8_t *v = i->bytes + z->raw.vex.offset;
	bool high;

	if (z->encoding != ZYDIS_INSTRUCTION_ENCODING_VEX)
		return false;
	if (z->raw.vex.W && decode_ignores_w(z))
		return true;
	for (unsigned n = 0; n < z->operand_count; n++) {
		const ZydisDecodedOperand *op = &i->d.op[n];

		if (op->encoding == ZYDIS_OPERAND_ENCODING_IS4)
			return true;
		if (op->type == ZYDIS_OPERAND_TYPE_REGISTER && decode_gpr(op->reg.value, &high) >= 0 && z->raw.vex.W)
			return true;
	}
	return v[0] == 0xc4 && (!(v[1] & 0x20) || !(v[2] & 0x40));
}

static bool copy(struct tx *x, struct tx_insn *i)
{
	struct place at = {{NO_REG, NO_REG, 0, 0}, false};

	if (i->d.insn.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && i->d.insn.opcode == 0x82)
		return false;
	for (unsigned n = 0; n < i->d.insn.operand_count; n++)
		if (i->d.op[n].type == ZYDIS_OPERAND_TYPE_MEMORY && (int)n != i->memory)
			return false;
	if (vex_differs(i))
		return false;
	if (i->memory >= 0 && !operand(x, i, &i->d.op[i->memory], &at))
		return false;
	if (!reencode_possible(&i->d, i->high, i->memory >= 0 ? &at.memory : NULL))
		return false;
	if (at.flat)
		emit_flat(x);
	reencode(&x->m, &i->d, i->bytes, &at.memory, same_registers);
	return true;
}

/* 40…4F are REX prefixes there. */
static bool step(struct tx *x, struct tx_insn *i)
{
	unsigned opcode = i->d.insn.opcode;

	if (i->d.insn.opcode_map != ZYDIS_OPCODE_MAP_DEFAULT || (opcode & 0xf0) != 0x40)
		return copy(x, i);
	if (i->d.insn.operand_width == 16)
		emit8(&x->m, 0x66);
	emit8(&x->m, 0xff);
	emit8(&x->m, 0xc0 | (opcode & 15));
	return true;
}

/* A bit offset in a register reaches 256 MiB to either side: the guards catch it. */
static bool bit_test(struct tx *x, struct tx_insn *i)
{
	if (i->memory >= 0 && i->d.op[1].type == ZYDIS_OPERAND_TYPE_REGISTER &&
		(i->d.op[0].mem.segment == ZYDIS_REGISTER_FS || i->d.op[0].mem.segment == ZYDIS_REGISTER_GS))
		return false;
	return copy(x, i);
}

static bool load_address(struct tx *x, struct tx_insn *i)
{
	struct emit_mem at = tx_address_of(&i->d.op[1]);

	if (i->d.insn.address_width != 32)
		return false;
	reencode(&x->m, &i->d, i->bytes, &at, same_registers);
	return true;
}

/* A0…A3: the address is in the instruction, of 64 bits there. They become 8A, 8B, 88, 89. */
static bool move_absolute(struct tx *x, struct tx_insn *i)
{
	static const uint8_t as[4] = {0x8a, 0x8b, 0x88, 0x89};
	unsigned opcode = i->d.insn.opcode;
	const ZydisDecodedOperand *op = &i->d.op[opcode & 2 ? 0 : 1];
	struct place at;

	if (i->d.insn.opcode_map != ZYDIS_OPCODE_MAP_DEFAULT || (opcode & 0xfc) != 0xa0 || i->d.insn.address_width != 32 ||
		op->type != ZYDIS_OPERAND_TYPE_MEMORY || !operand(x, i, op, &at))
		return false;
	if (i->d.insn.operand_width == 16)
		emit8(&x->m, 0x66);
	emit_op32(x, as[opcode & 3], RAX, &at);
	return true;
}

/* Segment, control and debug registers. */
static bool move_special(struct tx *x, struct tx_insn *i, const struct insn *decoded)
{
	struct cpu_state *c = x->e->cpu;
	const void *from[5] = {&c->cr0, NULL, &c->cr2, &c->cr3, &c->cr4};
	ZydisRegister src = i->d.op[1].reg.value;

	if (i->d.op[0].type != ZYDIS_OPERAND_TYPE_REGISTER || i->d.op[1].type != ZYDIS_OPERAND_TYPE_REGISTER)
		return false;
	switch (ZydisRegisterGetClass(src)) {
	case ZYDIS_REGCLASS_SEGMENT:
		if (i->d.insn.operand_width != 32)
			return false;
		emit8(&x->m, 0x0f); /* movzwl */
		emit8(&x->m, 0xb7);
		emit_modrm_mem(&x->m, decoded->rm, mem_abs(&c->seg[decoded->reg].selector));
		return true;
	case ZYDIS_REGCLASS_CONTROL:
		if (x->view != SHADOW_SUPERVISOR || decoded->cc > 4 || !from[decoded->cc])
			return false;
		emit_load32(x, decoded->rm, &(struct place){mem_abs(from[decoded->cc]), false});
		return true;
	default:
		return false;
	}
}

static bool move(struct tx *x, struct tx_insn *i, const struct insn *decoded)
{
	bool high;

	for (unsigned n = 0; n < 2; n++) {
		const ZydisDecodedOperand *op = &i->d.op[n];

		if (op->type == ZYDIS_OPERAND_TYPE_REGISTER && decode_gpr(op->reg.value, &high) < 0)
			return move_special(x, i, decoded);
		if (op->type == ZYDIS_OPERAND_TYPE_MEMORY && op->encoding != ZYDIS_OPERAND_ENCODING_MODRM_RM)
			return move_absolute(x, i);
	}
	return copy(x, i);
}

/* --- the stack --- */

static void move_stack(struct tx *x, int32_t by)
{
	emit_lea32(&x->m, RSP, mem_base(RSP, by));
}

static void push_register(struct tx *x, int reg)
{
	struct place at = flat_at(RSP, -4);

	emit_store32(x, reg, &at);
	move_stack(x, -4);
}

static bool push(struct tx *x, struct tx_insn *i, const struct insn *decoded)
{
	const ZydisDecodedOperand *op = &i->d.op[0];
	struct place at;
	bool high;
	int reg;

	if (i->d.insn.operand_width != 32)
		return false;
	if (op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
		emit_op32(x, 0xc7, 0, &(struct place){mem_base(RSP, -4), true});
		emit32(&x->m, (uint32_t)op->imm.value.s);
		move_stack(x, -4);
		return true;
	}
	if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) {
		if (i->memory != 0 || !operand(x, i, op, &at))
			return false;
		emit_load32(x, S1, &at);
		push_register(x, S1);
		return true;
	}
	reg = decode_gpr(op->reg.value, &high);
	if (reg < 0) {
		emit8(&x->m, 0x44); /* movzwl selector, %r10d */
		emit8(&x->m, 0x0f);
		emit8(&x->m, 0xb7);
		emit_modrm_mem(&x->m, S1, mem_abs(&x->e->cpu->seg[decoded->reg].selector));
		reg = S1;
	}
	push_register(x, reg);
	return true;
}

static bool pop(struct tx *x, struct tx_insn *i)
{
	const ZydisDecodedOperand *op = &i->d.op[0];
	struct place top = flat_at(RSP, 0), at;
	bool high;
	int reg;

	if (i->d.insn.operand_width != 32)
		return false;
	if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) {
		if (i->memory != 0 || !operand(x, i, op, &at) || !at.flat)
			return false;
		/* The address is that after the pop. */
		if (at.memory.base == RSP)
			at.memory.disp += 4;
		emit_load32(x, S1, &top);
		emit_store32(x, S1, &at);
		move_stack(x, 4);
		return true;
	}
	reg = decode_gpr(op->reg.value, &high);
	if (reg < 0)
		return false;
	emit_load32(x, reg, &top);
	if (reg != RSP)
		move_stack(x, 4);
	return true;
}

static bool push_all(struct tx *x, const struct tx_insn *i)
{
	if (i->d.insn.operand_width != 32)
		return false;
	for (int reg = RAX; reg <= RDI; reg++) {
		struct place at = flat_at(RSP, -4 * (reg + 1));

		emit_store32(x, reg, &at);
	}
	move_stack(x, -32);
	return true;
}

/* Both ends are read first: there may be a page boundary between, and no register changes before the last fault. */
static bool pop_all(struct tx *x, const struct tx_insn *i)
{
	if (i->d.insn.operand_width != 32)
		return false;
	for (int n = 0; n < 2; n++) {
		struct place at = flat_at(RSP, n ? 28 : 0);

		emit_load32(x, S1, &at);
	}
	for (int reg = RAX; reg <= RDI; reg++) {
		struct place at = flat_at(RSP, 4 * (7 - reg));

		if (reg != RSP)
			emit_load32(x, reg, &at);
	}
	move_stack(x, 32);
	return true;
}

static bool leave(struct tx *x, const struct tx_insn *i)
{
	struct place at = flat_at(RBP, 0);

	if (i->d.insn.operand_width != 32)
		return false;
	emit_load32(x, S1, &at);
	emit_lea32(&x->m, RSP, mem_base(RBP, 4));
	emit_lea32(&x->m, RBP, mem_base(S1, 0));
	return true;
}

static bool push_flags(struct tx *x, const struct tx_insn *i)
{
	if (i->d.insn.operand_width != 32)
		return false;
	tx_compose_flags(x);
	push_register(x, S1);
	return true;
}

static bool pop_flags(struct tx *x, const struct tx_insn *i)
{
	struct place top = flat_at(RSP, 0);

	if (i->d.insn.operand_width != 32 || i->flags_live || x->view != SHADOW_SUPERVISOR)
		return false;
	emit_load32(x, S1, &top);
	tx_check_flags(x, i);
	move_stack(x, 4);
	tx_restore_flags(x, i);
	return true;
}

/* --- control flow --- */

/* S1 = where an indirect branch goes. */
static bool load_target(struct tx *x, struct tx_insn *i)
{
	const ZydisDecodedOperand *op = &i->d.op[0];
	struct place at;
	bool high;

	if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) {
		if (i->memory != 0 || !operand(x, i, op, &at))
			return false;
		emit_load32(x, S1, &at);
		return true;
	}
	if (op->type != ZYDIS_OPERAND_TYPE_REGISTER || i->d.insn.operand_width != 32)
		return false;
	emit_lea32(&x->m, S1, mem_base(decode_gpr(op->reg.value, &high), 0));
	return true;
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
	if (!load_target(x, i))
		return false;
	tx_jump(x, i->offset, 0, true);
	x->ended = true;
	return true;
}

static bool call(struct tx *x, struct tx_insn *i)
{
	int64_t target;
	bool relative = tx_relative_target(x, i, &target);

	if (!tx_is_plain_branch(i) || (!relative && !load_target(x, i)))
		return false;
	if (relative)
		tx_poll_call(x, i, target);
	tx_page_address(x, S2, i->next);
	push_register(x, S2);
	if (relative) {
		tx_go(x, i, target, 0, true);
		return true;
	}
	tx_jump(x, i->offset, 0, true);
	x->ended = true;
	return true;
}

static bool ret(struct tx *x, struct tx_insn *i)
{
	const ZydisDecodedOperand *op = &i->d.op[0];
	struct place top = flat_at(RSP, 0);
	int extra = 0;

	if (!tx_is_plain_branch(i))
		return false;
	if (op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && op->visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT)
		extra = (int)op->imm.value.u;
	emit_load32(x, S1, &top);
	move_stack(x, 4 + extra);
	tx_jump(x, i->offset, 0, true);
	x->ended = true;
	return true;
}

/* E0…E3 with ECX: over a jump to what follows. */
static bool loop(struct tx *x, struct tx_insn *i)
{
	int64_t target;
	uint8_t *taken, *not_taken;
	int block;

	if (!tx_is_plain_branch(i) || !tx_relative_target(x, i, &target) || i->d.insn.address_width != 32 || i->next >= 4096)
		return false;
	tx_poll_call(x, i, target); /* behind it the instruction could not be begun again */
	emit8(&x->m, 0x67);
	emit8(&x->m, i->d.insn.opcode);
	emit8(&x->m, 0);
	taken = x->m.p - 1;
	not_taken = emit_jmp(&x->m);
	emit_patch8(taken, x->m.p);
	block = region_find(x, i->next);
	if (block >= 0)
		region_go(x, (unsigned)block, not_taken);
	else
		tx_stub(x, not_taken, STUB_SITE, tx_site(x, SITE_CHAIN, i->next, 0));
	tx_go(x, i, target, 0, true);
	return true;
}

/* --- strings --- */

/* RDI or RSI moves into the region, so that the instruction runs as it is, by 64 bits; RCX has the guest's 32. */
static void bias(struct tx *x, int reg)
{
	emit_lea(&x->m, reg, (struct emit_mem){reg, S1, 0, 0});
}

/* The register's lower half without the delta; S1 is its complement. */
static void unbias(struct tx *x, int reg)
{
	emit_lea32(&x->m, reg, (struct emit_mem){reg, S1, 0, 1});
}

static bool string(struct tx *x, struct tx_insn *i, bool has_source, bool has_destination)
{
	struct hot *h = &x->t->hot;
	uint8_t bytes[ZYDIS_MAX_INSTRUCTION_LENGTH];
	unsigned count = 0;

	if (i->d.insn.address_width != 32 || i->d.insn.meta.category != ZYDIS_CATEGORY_STRINGOP ||
		(i->d.insn.attributes & (ZYDIS_ATTRIB_HAS_SEGMENT_FS | ZYDIS_ATTRIB_HAS_SEGMENT_GS | ZYDIS_ATTRIB_HAS_SEGMENT_CS)))
		return false;
	emit_load(&x->m, S1, mem_abs(&h->flat_delta));
	emit_store_imm64(&x->m, &h->string_di, 0);
	emit_store_imm64(&x->m, &h->string_si, 0);
	if (has_destination) {
		emit_store(&x->m, S1, mem_abs(&h->string_di));
		bias(x, RDI);
	}
	if (has_source) {
		emit_store(&x->m, S1, mem_abs(&h->string_si));
		bias(x, RSI);
	}
	for (unsigned n = 0; n < i->d.insn.raw.prefix_count; n++) {
		uint8_t prefix = i->d.insn.raw.prefixes[n].value;

		if (prefix == 0x66 || prefix == 0xf2 || prefix == 0xf3)
			bytes[count++] = prefix;
	}
	bytes[count++] = i->d.insn.opcode;
	tx_run_string(x, i, bytes, count);
	emit_load(&x->m, S1, mem_abs(&h->flat_delta));
	emit_not(&x->m, S1);
	if (has_destination)
		unbias(x, RDI);
	if (has_source)
		unbias(x, RSI);
	return true;
}

/* --- x87 --- */

/* FLDCW may not unmask anything: the interpreter does that. With live flags it does all. */
static bool load_control_word(struct tx *x, struct tx_insn *i)
{
	struct place at;

	if (i->flags_live || i->memory != 0 || !operand(x, i, &i->d.op[0], &at) || !at.flat)
		return false;
	tx_pass_x87(x);
	emit_flat(x);
	emit_bytes(&x->m, "\x44\x0f\xb7", 3); /* movzwl mem, %r10d */
	emit_modrm_mem(&x->m, S1, at.memory);
	emit_bytes(&x->m, "\x41\xf7\xd2\x41\xf6\xc2\x3f", 7); /* not %r10d; test $0x3f, %r10b */
	tx_stub(x, emit_jcc(&x->m, 5), STUB_SITE, tx_site(x, SITE_INTERP, i->offset, 0));
	return copy(x, i);
}

/* --- all --- */

/* False also for what 64-bit code has not got: the interpreter does it. */
static bool emit_system(struct tx *x, struct tx_insn *i, const struct insn *decoded)
{
	switch (i->d.insn.mnemonic) {
	case ZYDIS_MNEMONIC_PUSHFD:
		return push_flags(x, i);
	case ZYDIS_MNEMONIC_POPFD:
		return pop_flags(x, i);
	case ZYDIS_MNEMONIC_CLI:
	case ZYDIS_MNEMONIC_STI:
	case ZYDIS_MNEMONIC_CLD:
	case ZYDIS_MNEMONIC_RDTSC:
	case ZYDIS_MNEMONIC_RDTSCP:
		return tx_system(x, i, decoded);
	default:
		return false;
	}
}

bool tx32_emit(struct tx *x, struct tx_insn *i, const struct insn *decoded)
{
	const struct native_op *native = decoded->native;

	if (decoded->fn == op_undefined)
		return false;
	if (native && (native->flags & (NATIVE_SSE | NATIVE_AVX)) && !(native->flags & (NATIVE_X87 | NATIVE_MMX))) {
		tx_pass_gate(x);
		return copy(x, i);
	}
	if (native && i->d.insn.mnemonic == ZYDIS_MNEMONIC_FLDCW)
		return load_control_word(x, i);
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
	case ZYDIS_MNEMONIC_LOOP:
	case ZYDIS_MNEMONIC_LOOPE:
	case ZYDIS_MNEMONIC_LOOPNE:
	case ZYDIS_MNEMONIC_JECXZ:
		return loop(x, i);
	case ZYDIS_MNEMONIC_PUSH:
		return push(x, i, decoded);
	case ZYDIS_MNEMONIC_POP:
		return pop(x, i);
	case ZYDIS_MNEMONIC_PUSHAD:
		return push_all(x, i);
	case ZYDIS_MNEMONIC_POPAD:
		return pop_all(x, i);
	case ZYDIS_MNEMONIC_LEAVE:
		return leave(x, i);
	case ZYDIS_MNEMONIC_LEA:
		return load_address(x, i);
	case ZYDIS_MNEMONIC_INC:
	case ZYDIS_MNEMONIC_DEC:
		return step(x, i);
	case ZYDIS_MNEMONIC_BT:
	case ZYDIS_MNEMONIC_BTS:
	case ZYDIS_MNEMONIC_BTR:
	case ZYDIS_MNEMONIC_BTC:
		return bit_test(x, i);
	case ZYDIS_MNEMONIC_MOV:
		return move(x, i, decoded);
	case ZYDIS_MNEMONIC_STOSB:
	case ZYDIS_MNEMONIC_STOSW:
	case ZYDIS_MNEMONIC_STOSD:
	case ZYDIS_MNEMONIC_SCASB:
	case ZYDIS_MNEMONIC_SCASW:
	case ZYDIS_MNEMONIC_SCASD:
		return string(x, i, false, true);
	case ZYDIS_MNEMONIC_LODSB:
	case ZYDIS_MNEMONIC_LODSW:
	case ZYDIS_MNEMONIC_LODSD:
		return string(x, i, true, false);
	case ZYDIS_MNEMONIC_MOVSB:
	case ZYDIS_MNEMONIC_MOVSW:
	case ZYDIS_MNEMONIC_MOVSD:
	case ZYDIS_MNEMONIC_CMPSB:
	case ZYDIS_MNEMONIC_CMPSW:
	case ZYDIS_MNEMONIC_CMPSD:
		return string(x, i, true, true);
	default:
		break;
	}
	if (tx_is_jcc(&i->d.insn))
		return tx_jump_if(x, i);
	if (tx_is_nothing(i->d.insn.mnemonic))
		return true;
	if (tx_is_copied(&i->d.insn))
		return copy(x, i);
	return emit_system(x, i, decoded);
}
