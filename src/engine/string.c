/*
 * String instructions: MOVS, STOS, LODS, SCAS, CMPS, INS, OUTS, with and without a repeat prefix.
 *
 * Registers are updated after each element, or after each chunk of a fast path, so that a fault or an interrupt finds
 * them as the architecture wants: RIP on the instruction, rCX what is left (SDM vol. 2, REP). A chunk is the run of
 * elements that is plain RAM in one page on both sides; the host's own REP instruction moves it, with the same element
 * size and therefore the same result when the operands overlap.
 */
#include "engine/decode.h"
#include "engine/operand.h"

enum repeat { REPEAT_NONE, REPEAT_E, REPEAT_NE };

static uint64_t address_wrap(const struct insn *i, uint64_t value)
{
	return i->addrsize == 8 ? value : i->addrsize == 4 ? (uint32_t)value : (uint16_t)value;
}

static uint64_t counter(const struct engine *e, const struct insn *i)
{
	return address_wrap(i, e->cpu->gpr[GPR_RCX]);
}

static void advance(struct engine *e, const struct insn *i, unsigned reg, uint64_t elements)
{
	uint64_t bytes = elements * i->opsize;
	uint64_t v = e->cpu->gpr[reg];

	v = e->cpu->rflags & FLAG_DF ? v - bytes : v + bytes;
	gpr_set(e->cpu, reg, i->addrsize, v);
}

static void count_down(struct engine *e, const struct insn *i, uint64_t elements)
{
	gpr_set(e->cpu, GPR_RCX, i->addrsize, e->cpu->gpr[GPR_RCX] - elements);
}

static uint64_t source_linear(struct engine *e, const struct insn *i)
{
	return segment_linear(e, i->seg, address_wrap(i, e->cpu->gpr[GPR_RSI]), i->opsize, ACCESS_READ);
}

static uint64_t dest_linear(struct engine *e, const struct insn *i, unsigned access)
{
	return segment_linear(e, SEG_ES, address_wrap(i, e->cpu->gpr[GPR_RDI]), i->opsize, access);
}

static bool single_step(const struct engine *e)
{
	return e->watch || (e->cpu->rflags & FLAG_TF);
}

/* Elements remain: an event, or one iteration for each instruction. True: the handler returns, RIP is on the instruction again. */
static bool interrupted(struct engine *e)
{
	if (single_step(e)) {
		e->cpu->gpr[GPR_RIP] = e->insn_rip;
		e->leave_block = true;
		return true;
	}
	if (engine_unlikely(engine_events_pending(e)))
		engine_restart_insn(e);
	return false;
}

static bool may_chunk(const struct engine *e, const struct insn *i, uint64_t count)
{
	return e->flat && i->addrsize == 8 && count > 1 && !(e->cpu->rflags & FLAG_DF) && !single_step(e);
}

static unsigned chunk_limit(const struct insn *i, uint64_t count, uint64_t gva)
{
	uint64_t room = 4096 - (gva & 4095);

	return count > room / i->opsize ? (unsigned)room : (unsigned)(count * i->opsize);
}

static void host_movs(unsigned size, uint8_t *dst, const uint8_t *src, uint64_t n)
{
	switch (size) {
	case 1:
		__asm__ volatile("rep movsb" : "+D"(dst), "+S"(src), "+c"(n) : : "memory");
		break;
	case 2:
		__asm__ volatile("rep movsw" : "+D"(dst), "+S"(src), "+c"(n) : : "memory");
		break;
	case 4:
		__asm__ volatile("rep movsl" : "+D"(dst), "+S"(src), "+c"(n) : : "memory");
		break;
	default:
		__asm__ volatile("rep movsq" : "+D"(dst), "+S"(src), "+c"(n) : : "memory");
	}
}

static void host_stos(unsigned size, uint8_t *dst, uint64_t value, uint64_t n)
{
	switch (size) {
	case 1:
		__asm__ volatile("rep stosb" : "+D"(dst), "+c"(n) : "a"(value) : "memory");
		break;
	case 2:
		__asm__ volatile("rep stosw" : "+D"(dst), "+c"(n) : "a"(value) : "memory");
		break;
	case 4:
		__asm__ volatile("rep stosl" : "+D"(dst), "+c"(n) : "a"(value) : "memory");
		break;
	default:
		__asm__ volatile("rep stosq" : "+D"(dst), "+c"(n) : "a"(value) : "memory");
	}
}

static uint64_t movs_chunk(struct engine *e, const struct insn *i, uint64_t count)
{
	uint64_t src = source_linear(e, i), dst = dest_linear(e, i, ACCESS_WRITE), n;
	unsigned limit = chunk_limit(i, count, src), limit2 = chunk_limit(i, count, dst), span;
	uint8_t *from, *to;

	limit = limit < limit2 ? limit : limit2;
	if (limit < i->opsize)
		return 0;
	from = linear_span(e, src, ACCESS_READ, limit, &span);
	if (!from || span < i->opsize)
		return 0;
	to = linear_span(e, dst, ACCESS_WRITE, span, &span);
	if (!to || span < i->opsize)
		return 0;
	n = span / i->opsize;
	host_movs(i->opsize, to, from, n);
	return n;
}

static void movs_element(struct engine *e, const struct insn *i)
{
	uint64_t v = linear_load(e, source_linear(e, i), i->opsize);

	linear_store(e, dest_linear(e, i, ACCESS_WRITE), i->opsize, v);
}

static void op_movs(struct engine *e, const struct insn *i)
{
	movs_element(e, i);
	advance(e, i, GPR_RSI, 1);
	advance(e, i, GPR_RDI, 1);
}

static void op_rep_movs(struct engine *e, const struct insn *i)
{
	uint64_t count;

	while ((count = counter(e, i)) != 0) {
		uint64_t n = may_chunk(e, i, count) ? movs_chunk(e, i, count) : 0;

		if (n == 0) {
			movs_element(e, i);
			n = 1;
		}
		advance(e, i, GPR_RSI, n);
		advance(e, i, GPR_RDI, n);
		count_down(e, i, n);
		if (n < count && interrupted(e))
			return;
	}
}

static uint64_t stos_chunk(struct engine *e, const struct insn *i, uint64_t count)
{
	uint64_t dst = dest_linear(e, i, ACCESS_WRITE), n;
	unsigned limit = chunk_limit(i, count, dst), span;
	uint8_t *to;

	if (limit < i->opsize)
		return 0;
	to = linear_span(e, dst, ACCESS_WRITE, limit, &span);
	if (!to || span < i->opsize)
		return 0;
	n = span / i->opsize;
	host_stos(i->opsize, to, e->cpu->gpr[GPR_RAX], n);
	return n;
}

static void op_stos(struct engine *e, const struct insn *i)
{
	linear_store(e, dest_linear(e, i, ACCESS_WRITE), i->opsize, e->cpu->gpr[GPR_RAX]);
	advance(e, i, GPR_RDI, 1);
}

static void op_rep_stos(struct engine *e, const struct insn *i)
{
	uint64_t count;

	while ((count = counter(e, i)) != 0) {
		uint64_t n = may_chunk(e, i, count) ? stos_chunk(e, i, count) : 0;

		if (n == 0) {
			op_stos(e, i);
			n = 1;
		} else {
			advance(e, i, GPR_RDI, n);
		}
		count_down(e, i, n);
		if (n < count && interrupted(e))
			return;
	}
}

static void op_lods(struct engine *e, const struct insn *i)
{
	uint64_t v = linear_load(e, source_linear(e, i), i->opsize);

	if (i->opsize == 1)
		*(uint8_t *)&e->cpu->gpr[GPR_RAX] = (uint8_t)v;
	else
		gpr_set(e->cpu, GPR_RAX, i->opsize, v);
	advance(e, i, GPR_RSI, 1);
}

static void op_rep_lods(struct engine *e, const struct insn *i)
{
	uint64_t count;

	while ((count = counter(e, i)) != 0) {
		op_lods(e, i);
		count_down(e, i, 1);
		if (count > 1 && interrupted(e))
			return;
	}
}

/* --- comparisons --- */

static void compare(struct engine *e, unsigned size, uint64_t a, uint64_t b)
{
	uint32_t ax;

	switch (size) {
	case 1:
		__asm__("cmpb %b[b], %b[a]\n\t" FLAGS_OUT : "=a"(ax) : [a] "r"(a), [b] "r"(b) : "cc");
		break;
	case 2:
		__asm__("cmpw %w[b], %w[a]\n\t" FLAGS_OUT : "=a"(ax) : [a] "r"(a), [b] "r"(b) : "cc");
		break;
	case 4:
		__asm__("cmpl %k[b], %k[a]\n\t" FLAGS_OUT : "=a"(ax) : [a] "r"(a), [b] "r"(b) : "cc");
		break;
	default:
		__asm__("cmpq %[b], %[a]\n\t" FLAGS_OUT : "=a"(ax) : [a] "r"(a), [b] "r"(b) : "cc");
	}
	flags_set(e->cpu, ax);
}

static void op_cmps(struct engine *e, const struct insn *i)
{
	/* The destination first: so do CPUs when both fault. */
	uint64_t b = linear_load(e, dest_linear(e, i, ACCESS_READ), i->opsize);
	uint64_t a = linear_load(e, source_linear(e, i), i->opsize);

	compare(e, i->opsize, a, b);
	advance(e, i, GPR_RSI, 1);
	advance(e, i, GPR_RDI, 1);
}

static void op_scas(struct engine *e, const struct insn *i)
{
	uint64_t b = linear_load(e, dest_linear(e, i, ACCESS_READ), i->opsize);

	compare(e, i->opsize, e->cpu->gpr[GPR_RAX], b);
	advance(e, i, GPR_RDI, 1);
}

static inline void repeat_compare(struct engine *e, const struct insn *i, insn_fn element, bool while_equal)
{
	uint64_t count;

	while ((count = counter(e, i)) != 0) {
		element(e, i);
		count_down(e, i, 1);
		if (!!(e->cpu->rflags & FLAG_ZF) != while_equal)
			return;
		if (count > 1 && interrupted(e))
			return;
	}
}

static void op_repe_cmps(struct engine *e, const struct insn *i)
{
	repeat_compare(e, i, op_cmps, true);
}

static void op_repne_cmps(struct engine *e, const struct insn *i)
{
	repeat_compare(e, i, op_cmps, false);
}

static void op_repe_scas(struct engine *e, const struct insn *i)
{
	repeat_compare(e, i, op_scas, true);
}

static void op_repne_scas(struct engine *e, const struct insn *i)
{
	repeat_compare(e, i, op_scas, false);
}

/* --- ports --- */

static void check_port(struct engine *e, const struct insn *i)
{
	if (!io_allowed(e, (uint16_t)e->cpu->gpr[GPR_RDX], i->opsize))
		engine_raise_error(e, EXC_GP, 0);
}

static void ins_element(struct engine *e, const struct insn *i)
{
	uint64_t dst = dest_linear(e, i, ACCESS_WRITE), v;

	linear_rmw(e, dst, i->opsize); /* the port is not read if the store would fault */
	v = io_read(e, (uint16_t)e->cpu->gpr[GPR_RDX], i->opsize);
	linear_store(e, dst, i->opsize, v);
	advance(e, i, GPR_RDI, 1);
}

static void outs_element(struct engine *e, const struct insn *i)
{
	uint64_t v = linear_load(e, source_linear(e, i), i->opsize);

	io_write(e, (uint16_t)e->cpu->gpr[GPR_RDX], i->opsize, v);
	advance(e, i, GPR_RSI, 1);
}

static void op_ins(struct engine *e, const struct insn *i)
{
	check_port(e, i);
	ins_element(e, i);
}

static void op_outs(struct engine *e, const struct insn *i)
{
	check_port(e, i);
	outs_element(e, i);
}

static inline void repeat_port(struct engine *e, const struct insn *i, insn_fn element)
{
	uint64_t count;

	check_port(e, i);
	while ((count = counter(e, i)) != 0) {
		element(e, i);
		count_down(e, i, 1);
		if (count > 1 && interrupted(e))
			return;
	}
}

static void op_rep_ins(struct engine *e, const struct insn *i)
{
	repeat_port(e, i, ins_element);
}

static void op_rep_outs(struct engine *e, const struct insn *i)
{
	repeat_port(e, i, outs_element);
}

/* F2 repeats MOVS and its like as F3 does; the decoder reports it only where it has a meaning of its own. */
static enum repeat find_repeat(const struct decoded *d)
{
	enum repeat repeat = REPEAT_NONE;

	for (unsigned k = 0; k < d->insn.raw.prefix_count; k++) {
		if (d->insn.raw.prefixes[k].value == 0xf3)
			repeat = REPEAT_E;
		else if (d->insn.raw.prefixes[k].value == 0xf2)
			repeat = REPEAT_NE;
	}
	return repeat;
}

insn_fn string_handler(const struct insn *i, const struct decoded *d)
{
	enum repeat repeat;

	/* MOVSD and CMPSD name an SSE2 instruction too. */
	if (d->insn.opcode_map != ZYDIS_OPCODE_MAP_DEFAULT)
		return NULL;
	repeat = find_repeat(d);
	switch (d->insn.mnemonic) {
	case ZYDIS_MNEMONIC_MOVSB:
	case ZYDIS_MNEMONIC_MOVSW:
	case ZYDIS_MNEMONIC_MOVSD:
	case ZYDIS_MNEMONIC_MOVSQ:
		return repeat ? op_rep_movs : op_movs;
	case ZYDIS_MNEMONIC_STOSB:
	case ZYDIS_MNEMONIC_STOSW:
	case ZYDIS_MNEMONIC_STOSD:
	case ZYDIS_MNEMONIC_STOSQ:
		return repeat ? op_rep_stos : op_stos;
	case ZYDIS_MNEMONIC_LODSB:
	case ZYDIS_MNEMONIC_LODSW:
	case ZYDIS_MNEMONIC_LODSD:
	case ZYDIS_MNEMONIC_LODSQ:
		return repeat ? op_rep_lods : op_lods;
	case ZYDIS_MNEMONIC_CMPSB:
	case ZYDIS_MNEMONIC_CMPSW:
	case ZYDIS_MNEMONIC_CMPSD:
	case ZYDIS_MNEMONIC_CMPSQ:
		return repeat == REPEAT_E ? op_repe_cmps : repeat == REPEAT_NE ? op_repne_cmps : op_cmps;
	case ZYDIS_MNEMONIC_SCASB:
	case ZYDIS_MNEMONIC_SCASW:
	case ZYDIS_MNEMONIC_SCASD:
	case ZYDIS_MNEMONIC_SCASQ:
		return repeat == REPEAT_E ? op_repe_scas : repeat == REPEAT_NE ? op_repne_scas : op_scas;
	case ZYDIS_MNEMONIC_INSB:
	case ZYDIS_MNEMONIC_INSW:
	case ZYDIS_MNEMONIC_INSD:
		return repeat ? op_rep_ins : op_ins;
	case ZYDIS_MNEMONIC_OUTSB:
	case ZYDIS_MNEMONIC_OUTSW:
	case ZYDIS_MNEMONIC_OUTSD:
		return repeat ? op_rep_outs : op_outs;
	default:
		return NULL;
	}
}
