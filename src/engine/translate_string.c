/*
 * String instructions, repeated or not. They run as they are, with RSI and RDI moved by their slots' deltas: a run that leaves its slot
 * meets the guards. DF is 0 while translated code runs.
 *
 * A repeated one does STRING_RUN elements at most, then events are looked at. The status flags may be live, so the count is compared by
 * PEXT and JRCXZ; one that is small enough, as nearly all are, goes straight on:
 *
 * again:  mov  %rcx, %r10
 *         pext hot.string_mask, %rcx, %rcx
 *         jrcxz last
 *         lea  -run(%r10), %r11
 *         mov  %r11, hot.string_rest
 *         mov  $run, %ecx
 *         rep …			the guest's RCX is this one + hot.string_rest
 *         jcc  end		SCAS and CMPS, if what was compared ends them
 *         mov  hot.string_rest, %rcx
 *         movq $0, hot.string_rest
 *         (events)
 *         jmp  again
 * last:   mov  %r10, %rcx
 *         rep …
 * end:                            SCAS and CMPS: RCX += hot.string_rest, which becomes 0
 */
#include "engine/translate.h"

/* The prefix F2 or F3, or 0. */
static unsigned repeat_prefix(const ZydisDecodedInstruction *z)
{
	unsigned repeat = 0;

	for (unsigned n = 0; n < z->raw.prefix_count; n++)
		if (z->raw.prefixes[n].value == 0xf2 || z->raw.prefixes[n].value == 0xf3)
			repeat = z->raw.prefixes[n].value;
	return repeat;
}

static bool compares(ZydisMnemonic mnemonic)
{
	switch (mnemonic) {
	case ZYDIS_MNEMONIC_SCASB:
	case ZYDIS_MNEMONIC_SCASW:
	case ZYDIS_MNEMONIC_SCASD:
	case ZYDIS_MNEMONIC_CMPSB:
	case ZYDIS_MNEMONIC_CMPSW:
	case ZYDIS_MNEMONIC_CMPSD:
		return true;
	default:
		return false;
	}
}

static void run_bytes(struct tx *x, const struct tx_insn *i, const uint8_t *bytes, unsigned count)
{
	tx_map(x, i->offset, MAP_STRING);
	for (unsigned n = 0; n < count; n++)
		emit8(&x->m, bytes[n]);
}

/* A branch back to what has been emitted. */
static void jump_back(struct emit *m, const uint8_t *to)
{
	emit_patch(emit_jmp(m), to);
}

void tx_run_string(struct tx *x, const struct tx_insn *i, const uint8_t *bytes, unsigned count)
{
	struct emit *m = &x->m;
	struct hot *h = &x->t->hot;
	uint32_t run = (uint32_t)-h->string_mask;
	unsigned repeat = repeat_prefix(&i->d.insn);
	bool ends = compares(i->d.insn.mnemonic);
	uint8_t *again, *last, *end = NULL;

	tx_clobber(x, SCRATCH(S1) | SCRATCH(S2));
	if (!repeat) {
		run_bytes(x, i, bytes, count);
		tx_map(x, i->next, MAP_POLL);
		return;
	}
	again = m->p;
	emit_move(m, S1, RCX);
	emit_pext(m, RCX, RCX, mem_abs(&h->string_mask));
	last = emit_jrcxz(m);
	emit_lea(m, S2, mem_base(S1, -(int32_t)run));
	emit_store(m, S2, mem_abs(&h->string_rest));
	emit_imm32(m, RCX, run);
	run_bytes(x, i, bytes, count);
	tx_map(x, i->offset, MAP_RUN);
	if (ends)
		end = emit_jcc(m, repeat == 0xf3 ? 5 : 4);
	emit_load(m, RCX, mem_abs(&h->string_rest));
	emit_store_imm64(m, &h->string_rest, 0);
	tx_poll(x, S2);
	jump_back(m, again);
	emit_patch8(last, m->p);
	emit_move(m, RCX, S1);
	run_bytes(x, i, bytes, count);
	tx_map(x, i->next, MAP_POLL);
	if (!end)
		return;
	emit_patch(end, m->p);
	emit_load(m, S2, mem_abs(&h->string_rest));
	emit_lea(m, RCX, (struct emit_mem){RCX, S2, 0, 0});
	emit_store_imm64(m, &h->string_rest, 0);
}

/* *out = the delta of the address in reg, which is moved by it. */
static void bias(struct tx *x, int reg, uint64_t *out)
{
	tx_look_up(x, S1, reg);
	emit_store(&x->m, S1, mem_abs(out));
	emit_lea(&x->m, reg, (struct emit_mem){reg, S1, 0, 0});
}

static void unbias(struct tx *x, int reg, const uint64_t *delta)
{
	emit_load(&x->m, S1, mem_abs(delta));
	emit_not(&x->m, S1);
	emit_lea(&x->m, reg, (struct emit_mem){reg, S1, 0, 1});
}

bool tx_string(struct tx *x, const struct tx_insn *i, bool has_source)
{
	struct hot *h = &x->t->hot;

	if (x->soft || i->d.insn.address_width != 64 ||
		(i->d.insn.attributes & (ZYDIS_ATTRIB_HAS_SEGMENT_FS | ZYDIS_ATTRIB_HAS_SEGMENT_GS)))
		return false;
	tx_clobber(x, SCRATCH(S1));
	bias(x, RDI, &h->string_di);
	if (has_source)
		bias(x, RSI, &h->string_si);
	else
		emit_store_imm64(&x->m, &h->string_si, 0);
	tx_run_string(x, i, i->bytes, i->d.insn.length);
	unbias(x, RDI, &h->string_di);
	if (has_source)
		unbias(x, RSI, &h->string_si);
	return true;
}
