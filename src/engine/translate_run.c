/*
 * Running translated code: the fixed code that enters and leaves it, the step of the main loop that decides
 * what runs, and the repair of faults.
 *
 * Code is left in one of two ways. By an exit: it stores its site's number and jumps to the fixed code, which
 * writes the registers back. Or by a signal: the handler copies the registers from its context and returns to
 * the fixed code's tail. Either way enter() returns, and leave_code() makes the architectural state of it:
 * then nothing is in flight, and the main loop goes on as after any block.
 */
#include <signal.h>
#include <stdio.h>
#include <ucontext.h>

#include "engine/lockstep.h"
#include "engine/native.h"
#include "engine/operand.h"
#include "engine/translate.h"

#define FP_WARM 64
#define XSTATE_VECTOR 6u /* SSE, AVX */
#define XSTATE_X87 1u
#define X87_MASKS 0x3fu /* of FCW */

/* --- fixed code --- */

static const int moved[] = {RCX, RDX, RBX, RBP, RSI, RDI, R8, R9, R12, R13, R14, R15};
static const int saved[] = {RBX, RBP, R12, R13, R14, R15};
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define MOVED_32 6u /* of them, in 32-bit code */

/* XRSTOR or XSAVE (0F AE /digit, REX.W) of what is to be loaded, or is: destroys RAX, RDX. */
static void emit_xstate(struct emit *m, struct engine *e, int digit)
{
	emit8(m, 0x8b); /* mov fp_mask, %eax; xor %edx, %edx */
	emit_modrm_mem(m, RAX, mem_abs(&e->translator->hot.fp_mask));
	emit_bytes(m, "\x31\xd2", 2);
	emit_bytes(m, "\x48\x0f\xae", 3);
	emit_modrm_mem(m, digit, mem_abs(e->cpu->xsave));
}

/* Skips what follows unless the vector state is loaded: the result is to be patched. Destroys flags. */
static uint8_t *emit_if_loaded(struct emit *m, struct hot *h)
{
	emit8(m, 0x80); /* cmpb $0, fp_loaded */
	emit_modrm_mem(m, 7, mem_abs(&h->fp_loaded));
	emit8(m, 0);
	return emit_jcc(m, 4);
}

static void emit_enter(struct emit *m, struct engine *e, bool mode32)
{
	struct hot *h = &e->translator->hot;
	uint8_t *skip;

	for (unsigned n = 0; n < COUNT(saved); n++)
		emit_push(m, saved[n]);
	emit_store(m, RSP, mem_abs(&h->c_rsp));
	skip = emit_if_loaded(m, h);
	emit_xstate(m, e, 5);
	emit_patch(skip, m->p);
	emit_load(m, RAX, mem_abs(&h->flags));
	emit_flags_from_ax(m);
	for (unsigned n = 0; n < (mode32 ? MOVED_32 : COUNT(moved)); n++)
		emit_load(m, moved[n], mem_abs(&e->cpu->gpr[moved[n]]));
	if (mode32)
		tx32_emit_registers(m, e);
	emit_load(m, RAX, mem_abs(&e->cpu->gpr[RAX]));
	emit_load(m, S1, mem_abs(&h->scratch[0]));
	emit_load(m, S2, mem_abs(&h->scratch[1]));
	emit_load(m, RSP, mem_abs(&h->rsp_host));
	emit_group5(m, GROUP5_JMP, mem_abs(&h->enter_pc));
}

static void emit_leave(struct emit *m, struct engine *e, bool mode32)
{
	struct hot *h = &e->translator->hot;

	for (unsigned n = 0; n < (mode32 ? MOVED_32 : COUNT(moved)); n++)
		emit_store(m, moved[n], mem_abs(&e->cpu->gpr[moved[n]]));
	emit_store(m, RAX, mem_abs(&e->cpu->gpr[RAX]));
	emit_store(m, S1, mem_abs(&h->scratch[0]));
	emit_store(m, S2, mem_abs(&h->scratch[1]));
	emit_store(m, RSP, mem_abs(&h->rsp_host));
	emit_flags_to_ax(m);
	emit_store(m, RAX, mem_abs(&h->flags));
}

static void emit_leave_tail(struct emit *m, struct engine *e)
{
	struct hot *h = &e->translator->hot;
	uint8_t *skip;

	emit_load(m, RSP, mem_abs(&h->c_rsp));
	skip = emit_if_loaded(m, h);
	emit_xstate(m, e, 4);
	emit_bytes(m, "\xc5\xf8\x77", 3); /* vzeroupper */
	emit_patch(skip, m->p);
	for (unsigned n = COUNT(saved); n-- > 0;)
		emit_pop(m, saved[n]);
	emit8(m, 0xc3);
}

/* Asks C where the way out that hot.exit_site names leads, and goes there. */
static void emit_find(struct emit *m, struct engine *e)
{
	static const int kept[] = {RCX, RDX, RSI, RDI, R8, R9};
	struct hot *h = &e->translator->hot;

	emit_store(m, RSP, mem_abs(&h->rsp_host));
	emit_load(m, RSP, mem_abs(&h->c_rsp));
	emit_push(m, RAX);
	emit_flags_to_ax(m);
	emit_push(m, RAX);
	for (unsigned n = 0; n < COUNT(kept); n++)
		emit_push(m, kept[n]);
	emit_lea(m, RSP, mem_base(RSP, -8)); /* calls are made with RSP aligned: emit_enter() has left it 8 bytes off */
	emit8(m, 0xb8 | RDI); /* mov $e, %edi */
	emit32(m, (uint32_t)(uintptr_t)e);
	emit_group5(m, GROUP5_CALL, mem_abs(&h->find));
	emit_store(m, RAX, mem_abs(&h->enter_pc));
	emit_lea(m, RSP, mem_base(RSP, 8));
	for (unsigned n = COUNT(kept); n-- > 0;)
		emit_pop(m, kept[n]);
	emit_pop(m, RAX);
	emit_flags_from_ax(m);
	emit_pop(m, RAX);
	emit_load(m, RSP, mem_abs(&h->rsp_host));
	emit_group5(m, GROUP5_JMP, mem_abs(&h->enter_pc));
}

void translator_emit_fixed(struct engine *e)
{
	struct translator *t = e->translator;
	struct emit m = {t->write};

	t->enter = (uint32_t)(m.p - t->write);
	emit_enter(&m, e, false);
	t->enter32 = (uint32_t)(m.p - t->write);
	emit_enter(&m, e, true);
	t->leave_site[false] = (uint32_t)(m.p - t->write);
	emit_store_low(&m, S2, mem_abs(&t->hot.exit_site));
	t->leave = (uint32_t)(m.p - t->write);
	emit_leave(&m, e, false);
	t->leave_fault = (uint32_t)(m.p - t->write);
	emit_leave_tail(&m, e);
	t->find_site = (uint32_t)(m.p - t->write);
	emit_store_low(&m, S2, mem_abs(&t->hot.exit_site));
	t->find = (uint32_t)(m.p - t->write);
	t->hot.find = (uint64_t)(uintptr_t)translator_find;
	emit_find(&m, e);
	t->leave_site[true] = (uint32_t)(m.p - t->write);
	emit_store_low(&m, S2, mem_abs(&t->hot.exit_site));
	t->leave32 = (uint32_t)(m.p - t->write);
	emit_leave(&m, e, true);
	emit_patch(emit_jmp(&m), t->write + t->leave_fault);
	for (unsigned view = 0; view < SHADOW_VIEWS; view++)
		tx_emit_return_miss(&m, t, view);
	for (unsigned salt = 0; salt < SHADOW_VIEWS * 2; salt++) {
		t->far[salt] = (uint32_t)(m.p - t->write);
		tx_emit_far(&m, t, salt);
	}
	t->fixed = (uint32_t)(m.p - t->write);
	t->thunks = (t->fixed + THUNK_SIZE - 1) & ~(THUNK_SIZE - 1);
	t->first = t->thunks + (JUMPS + SECONDS) * THUNK_SIZE;
}

/* --- entering and leaving --- */

static unsigned slot_of(uint64_t gva)
{
	return (unsigned)(gva >> 39) & 511;
}

/* SSE and AVX instructions raise neither #UD nor #NM (SDM vol. 3, 13.1, 14.3). */
static bool vector_usable(const struct engine *e)
{
	const struct cpu_state *c = e->cpu;

	return !(c->cr0 & (CR0_TS | CR0_EM)) &&
	       (c->cr4 & (CR4_OSFXSR | CR4_OSXSAVE)) == (CR4_OSFXSR | CR4_OSXSAVE) && c->xcr0 == 7;
}

static bool has_x87_state(const struct engine *e)
{
	uint64_t bv;

	memcpy(&bv, e->cpu->xsave + XSAVE_BV, sizeof(bv));
	return bv & XSTATE_X87;
}

/* x87 instructions will neither fault nor leave an exception pending. */
static bool x87_usable(const struct engine *e)
{
	const uint8_t *x = e->cpu->xsave;

	return vector_usable(e) && (!has_x87_state(e) || ((x[0] & X87_MASKS) == X87_MASKS && !(x[XSAVE_FSW] & 0x80)));
}

/* Nothing is lost by loading and saving it: the pointers are 0. */
static bool x87_forgettable(const struct engine *e)
{
	uint64_t p[3] = {0};

	memcpy(p, e->cpu->xsave + XSAVE_FOP, 2);
	memcpy(p + 1, e->cpu->xsave + XSAVE_FIP, 16);
	return x87_usable(e) && (!has_x87_state(e) || !(p[0] | p[1] | p[2]));
}

/* The components of the XSAVE image that code shall find loaded. */
static void set_loaded(struct engine *e, unsigned mask)
{
	struct translator *t = e->translator;
	uint64_t open = (uint64_t)(uintptr_t)t->poll;

	t->hot.fp_loaded = mask != 0;
	t->hot.fp_mask = mask;
	t->hot.fp_gate = open + (mask ? 0 : GATE_CLOSED);
	t->hot.x87_gate = open + (mask & XSTATE_X87 ? 0 : X87_CLOSED);
}

/* What code has asked for lately is loaded before it asks. */
static unsigned warm_state(struct engine *e)
{
	struct translator *t = e->translator;
	unsigned mask = t->fp_warm && vector_usable(e) ? XSTATE_VECTOR : 0;

	t->fp_warm -= t->fp_warm != 0;
	if (!t->x87_warm)
		return mask;
	t->x87_warm--;
	return x87_forgettable(e) ? XSTATE_VECTOR | XSTATE_X87 : mask;
}

/* Code runs in the page of the record, which the block's is: jumps and returns may lead there from now on. */
static void note_page(struct engine *e, uint32_t tb, unsigned view, struct code_page *page)
{
	struct translator *t = e->translator;
	uint32_t index = t->tbs[tb].block;
	bool crosses = index & TB_CROSSING;
	const struct crossing *x;

	/* A supervisor's global translations outlive CR3. */
	if (view == SHADOW_SUPERVISOR &&
		(!mmu_is_global_code(e, page->base) || (crosses && !mmu_is_global_code(e, page->base + 4096))))
		t->nonglobal_jumps = true;
	if (!crosses) {
		translator_note_page(t, view, page, e->blocks->blocks[index].key >> 14);
		return;
	}
	x = &e->blocks->crossings[index & ~TB_CROSSING];
	translator_note_page(t, view, page, x->page[0]);
	page = translator_page(t, view, page->base + 4096, page->host + 4096);
	translator_note_page(t, view, page, x->page[1]);
}

/* What the code of tb relies on; the page is that of RIP when it is entered at the start of a block. */
static void prepare(struct engine *e, uint32_t tb, unsigned view, bool start)
{
	struct translator *t = e->translator;
	struct hot *h = &t->hot;
	const struct cpu_state *c = e->cpu;
	const uint64_t *delta = e->deltas->delta[view];
	uint64_t rsp = c->gpr[GPR_RSP], page;

	/* The jump cache keeps code pages' places. */
	if (t->upper_changes != e->deltas->upper_changes ||
		(t->nonglobal_jumps && t->changes != e->deltas->changes)) {
		t->upper_changes = e->deltas->upper_changes;
		translator_forget(e, false, true);
	}
	t->code32 = e->mode == MODE_32;
	h->leave_now = (uint64_t)(uintptr_t)t->execute + (t->code32 ? t->leave32 : t->leave);
	if (t->code32)
		tx32_prepare(e, view);
	translator_settle(e);
	t->changes = e->deltas->changes;
	page = start ? c->gpr[GPR_RIP] & ~0xfffull : h->code->base;
	h->code = translator_page(t, view, page, page + delta[slot_of(page)]);
	if (!h->code->memfd_page)
		note_page(e, tb, view, h->code);
	/* AC may change without C, so with SMAP it is taken for clear. */
	h->tlb_of[SHADOW_SUPERVISOR] = (uint64_t)(uintptr_t)e->tlb_data[c->cr4 & CR4_SMAP ? TLB_SMAP : TLB_SUPERVISOR];
	h->rsp_delta = t->code32 ? 0 : delta[slot_of(rsp)];
	h->rsp_neg = -h->rsp_delta;
	h->rsp_key = rsp >> 39;
	h->rsp_key_neg = -h->rsp_key;
	h->rsp_host = rsp + h->rsp_delta;
	for (unsigned n = 0; n < 2; n++) {
		uint64_t base = c->seg[SEG_FS + n].base;

		h->seg_host[n] = base + delta[slot_of(base)];
	}
	h->flags = flags_pack(c);
}

static void enter(struct engine *e, uint64_t pc)
{
	struct translator *t = e->translator;
	void (*code)(void) = (void (*)(void))(uintptr_t)(t->execute + (t->code32 ? t->enter32 : t->enter));
	unsigned loaded = (unsigned)t->hot.fp_mask;

	t->hot.enter_pc = pc;
	t->faulted = false;
	e->stats->code_entries++;
	code();
	if (loaded) {
		uint64_t bv;

		/* XSAVE has written the components even where they were in their initial state. */
		memcpy(&bv, e->cpu->xsave + XSAVE_BV, sizeof(bv));
		bv |= loaded;
		memcpy(e->cpu->xsave + XSAVE_BV, &bv, sizeof(bv));
		/* The host's; the guest's are 0 as long as no exception is pending. */
		if (loaded & XSTATE_X87)
			memset(e->cpu->xsave + XSAVE_FOP, 0, XSAVE_MXCSR - XSAVE_FOP);
	}
	if (t->hot.mode_changed) {
		t->hot.mode_changed = 0;
		engine_update_mode(e);
	}
	e->cpu->gpr[GPR_RSP] = t->hot.rsp_host - t->hot.rsp_delta;
	flags_set(e->cpu, (uint32_t)t->hot.flags);
}

/* The guest instruction that host code at pc belongs to. False: nobody's. */
static bool find_map(const struct translator *t, uint64_t pc, uint32_t *tb, struct map_entry *m)
{
	uint64_t offset = pc - (uint64_t)(uintptr_t)t->execute, host;
	bool stubs = offset >= STUBS_AT;
	struct map_entry next = {0};
	const uint8_t *p, *end;

	*tb = translator_find_tb(t, offset);
	if (*tb == TB_NONE)
		return false;
	host = offset - (stubs ? t->tbs[*tb].stubs - MAP_STUBS : t->tbs[*tb].code);
	*m = next;
	p = t->map + t->tbs[*tb].map;
	end = t->map + t->tbs[*tb + 1].map;
	for (; p < end; *m = next) {
		map_next(&p, &next);
		if (next.host > host)
			break;
	}
	return true;
}

/* RIP of a point in the code, and whose it is. True: between two instructions. */
static bool find_rip(struct engine *e, uint64_t pc, uint32_t *tb, bool *string)
{
	struct translator *t = e->translator;
	struct map_entry m = {0};

	if (!find_map(t, pc, tb, &m)) {
		/* Fixed code does not fault; an address that is nobody's would be our own bug. */
		snprintf(e->block->exit.text, sizeof(e->block->exit.text),
			"translated code stopped at %#llx, which is no instruction's",
			(unsigned long long)pc);
		e->cpu->activity = CPU_SHUTDOWN;
		*string = false;
		return true;
	}
	*string = m.kind == MAP_STRING || m.kind == MAP_RUN;
	e->cpu->gpr[GPR_RIP] = m.kind == MAP_TARGET   ? t->hot.target
			       : m.kind == MAP_RETURN ? t->hot.scratch[0]
						      : t->hot.code->base + (uint64_t)(int64_t)m.offset;
	return m.kind != MAP_INSN && m.kind != MAP_STRING;
}

/* The instruction at RIP, of a region that begins with the block. */
static const struct insn *find_insn(struct engine *e, uint32_t block)
{
	uint32_t at = 0, seen;

	return blocks_insn(e, (e->blocks->blocks[block].key >> 14 << 12) | (e->cpu->gpr[GPR_RIP] & 0xfff), &at, &seen);
}

/*
 * A slot that is not in use yet: its addresses are known from the instruction alone. RIP is the
 * instruction's.
 */
static void fill_operands(struct engine *e, const struct insn *i, bool is_write)
{
	struct cpu_state *c = e->cpu;
	uint64_t rip = c->gpr[GPR_RIP], mask = e->translator->code32 ? 0xffffffffu : ~0ull;

	if (!i)
		return;
	if (i->flags & INSN_MEM) {
		c->gpr[GPR_RIP] += i->length;
		shadow_fill(e, insn_flat_linear(e, i) & mask, is_write);
		c->gpr[GPR_RIP] = rip;
	}
	if (i->mnemonic >= ZYDIS_MNEMONIC_STOSB && i->mnemonic <= ZYDIS_MNEMONIC_STOSW)
		shadow_fill(e, c->gpr[GPR_RDI], true);
	if (i->mnemonic >= ZYDIS_MNEMONIC_MOVSB && i->mnemonic <= ZYDIS_MNEMONIC_MOVSW) {
		shadow_fill(e, c->gpr[GPR_RDI], true);
		shadow_fill(e, c->gpr[GPR_RSI], false);
	}
	if (i->mnemonic == ZYDIS_MNEMONIC_IRETQ)
		shadow_fill(e, c->gdtr.base, false);
	shadow_fill(e, c->gpr[GPR_RSP], is_write);
	if (e->translator->code32)
		shadow_fill(e, (uint32_t)(c->gpr[GPR_RSP] - 4), is_write);
}

/* Vector or x87 instructions are wanted. True: go on at fault_pc, with the guest's state loaded. */
static bool open_gate(struct engine *e, bool x87, unsigned *loaded)
{
	struct translator *t = e->translator;

	e->stats->exits_vector++;
	if (!(x87 ? x87_usable(e) : vector_usable(e))) {
		t->interp_next = true;
		return false;
	}
	if (x87)
		t->x87_warm = FP_WARM;
	else
		t->fp_warm = FP_WARM;
	*loaded |= XSTATE_VECTOR | (x87 ? XSTATE_X87 : 0);
	t->hot.scratch[0] = (uint64_t)(uintptr_t)t->poll;
	return true;
}

static void drop_tb(struct engine *e, struct block *b, uint32_t tb)
{
	translator_drop_code(e, tb);
	for (unsigned view = 0; view < SHADOW_VIEWS; view++)
		if (b->tb[view] == tb + 1)
			b->tb[view] = 0;
}

/* The operand at `offset` is looked up from now on: the region is translated without foreseeing its slot. */
static void forget_slot(struct engine *e, uint32_t tb, unsigned offset)
{
	struct translator *t = e->translator;
	struct block *b = &e->blocks->blocks[t->tbs[tb].block];
	uint32_t at = 0, seen;

	if (b->key == BLOCK_DEAD)
		return;
	while (blocks_insn(e, (b->key >> 14 << 12) | offset, &at, &seen))
		t->seen[seen] = SEEN_MANY;
	drop_tb(e, b, tb);
}

/* Where the instruction at `offset` of the block's page is in the memfd; SOFT_NONE: the block is none or gone. */
static uint64_t code_offset(struct engine *e, uint32_t tb, int offset)
{
	uint32_t index = e->translator->tbs[tb].block;

	if ((index & TB_CROSSING) || e->blocks->blocks[index].key == BLOCK_DEAD)
		return SOFT_NONE;
	return (e->blocks->blocks[index].key >> 14 << 12) + (uint64_t)offset;
}

/* The strategy of an operand has changed. A region is not blamed for it. */
static void change_strategy(struct engine *e, uint32_t tb)
{
	struct block *b = &e->blocks->blocks[e->translator->tbs[tb].block];

	drop_tb(e, b, tb);
	if (b->hot > 1)
		b->hot--;
}

/* RCX, RSI and RDI are the guest's again after the host's string instruction has stopped. */
static void unbias_string(struct engine *e)
{
	struct translator *t = e->translator;
	uint64_t *gpr = e->cpu->gpr;

	gpr[GPR_RDI] -= t->hot.string_di;
	gpr[GPR_RSI] -= t->hot.string_si;
	gpr[GPR_RCX] += t->hot.string_rest;
	t->hot.string_rest = 0;
	if (t->code32) {
		gpr[GPR_RDI] = (uint32_t)gpr[GPR_RDI];
		gpr[GPR_RSI] = (uint32_t)gpr[GPR_RSI];
	}
}

/* True: the fault is repaired, go on at fault_pc, which is in the code of *from; *loaded: with what components. */
static bool repair(struct engine *e, unsigned view, uint32_t *from, unsigned *loaded)
{
	struct translator *t = e->translator;
	uint64_t gva, changes = e->deltas->changes;
	bool string, anew = false, poll = find_rip(e, t->fault_pc, from, &string);
	uint32_t tb = *from;

	if (string)
		unbias_string(e);
	if (poll) {
		/* A branch to nowhere faults by itself: on to its exit. The event waits so long. */
		if (!is_canonical(e->cpu->gpr[GPR_RIP]) && e->cpu->activity == CPU_RUNNING) {
			t->fault_pc += POLL_LOAD_SIZE;
			return true;
		}
		e->stats->exits_poll++;
		return false;
	}
	if (t->fault_hva == (uint64_t)(uintptr_t)t->poll + GATE_CLOSED && t->fault_signal == SIGSEGV)
		return open_gate(e, false, loaded);
	if (t->fault_hva == (uint64_t)(uintptr_t)t->poll + X87_CLOSED && t->fault_signal == SIGSEGV)
		return open_gate(e, true, loaded);
	if (t->fault_signal == SIGSEGV && t->fault_hva - (uint64_t)(uintptr_t)t->probe < PROBE_SIZE) {
		e->stats->exits_miss++;
		forget_slot(e, tb, (unsigned)e->cpu->gpr[GPR_RIP] & 0xfff);
	} else if (t->fault_signal == SIGSEGV) {
		uint64_t at = code_offset(e, tb, (int)(e->cpu->gpr[GPR_RIP] & 0xfff));

		anew = at != SOFT_NONE && !t->tbs[tb].dead && soft_fault(e, at);
		gva = shadow_gva(e, t->fault_hva);
		if (gva == ~0ull) {
			uint32_t index = t->tbs[tb].block;

			if (index & TB_CROSSING)
				fill_operands(
					e, &e->blocks->crossings[index & ~TB_CROSSING].insn, t->fault_write);
			else
				fill_operands(e, find_insn(e, index), t->fault_write);
		} else if (!(t->code32 && gva >> 32) && gva + e->deltas->delta[view][slot_of(gva)] == t->fault_hva &&
			   shadow_fill(e, gva, t->fault_write)) {
			/*
			 * Not in a guard: what has left its slot by a displacement or lies across its end is
			 * interpreted.
			 */
			e->stats->exits_fill++;
			/* Scratch registers may hold deltas: good only if none has changed. */
			if (changes == e->deltas->changes && !string && !anew)
				return true;
		}
		if (anew)
			change_strategy(e, tb);
	}
	e->stats->exits_fault++;
	t->interp_next = true;
	return false;
}

/* A region's indirect call has led often to targets that it does not know, now to hot.target. */
static void learn_target(struct engine *e, const struct site *s)
{
	struct translator *t = e->translator;
	uint64_t at = code_offset(e, s->tb, s->offset);

	t->heats[s->tb] = INT32_MAX;
	if (at != SOFT_NONE && !t->tbs[s->tb].dead && t->hot.target >> 12 == t->hot.code->base >> 12 &&
		region_learn_target(t, at, (int)(t->hot.target & 0xfff)))
		change_strategy(e, s->tb);
}

/* An exit of the code. */
static void leave_code(struct engine *e)
{
	struct translator *t = e->translator;
	struct cpu_state *c = e->cpu;
	const struct site *s = &t->sites[t->hot.exit_site];

	switch ((enum site_kind)s->kind) {
	case SITE_CHAIN:
	case SITE_RETURN:
		e->stats->exits_chain++;
		c->gpr[GPR_RIP] = t->hot.code->base + (uint64_t)(int64_t)s->offset;
		t->chain_from = (uint32_t)t->hot.exit_site + 1;
		break;
	case SITE_INTERP:
		e->stats->exits_interp++;
		c->gpr[GPR_RIP] = t->hot.code->base + (uint64_t)(int64_t)s->offset;
		t->interp_next = true;
		break;
	case SITE_STRANGE:
		learn_target(e, s);
		/* fall through */
	case SITE_TARGET:
	case SITE_FAR:
		e->stats->exits_target++;
		c->gpr[GPR_RIP] = t->hot.target;
		if (!is_canonical(t->hot.target)) {
			/* The branch itself faults: once more, by the interpreter. */
			if (s->undo < 0 && (s->kind != SITE_FAR || tx_is_far_call((int32_t)s->stub)))
				linear_store(e, c->gpr[GPR_RSP], 8, t->hot.under);
			c->gpr[GPR_RSP] -= (uint64_t)(int64_t)s->undo;
			c->gpr[GPR_RIP] = t->hot.code->base + (uint64_t)(int64_t)s->offset;
			t->interp_next = true;
			return;
		}
		t->jump_from = true;
		break;
	case SITE_MISS:
		e->stats->exits_miss++;
		c->gpr[GPR_RIP] = t->hot.code->base + (uint64_t)(int64_t)s->offset;
		forget_slot(e, s->tb, (unsigned)s->offset);
		t->interp_next = true;
		break;
	case SITE_SOFT:
		e->stats->exits_soft++;
		c->gpr[GPR_RIP] = t->hot.code->base + (uint64_t)(int64_t)s->offset;
		t->interp_next = true;
		if (code_offset(e, s->tb, s->offset) != SOFT_NONE && !t->tbs[s->tb].dead &&
			soft_left(e, code_offset(e, s->tb, s->offset)))
			change_strategy(e, s->tb);
		break;
	case SITE_HOT:
		c->gpr[GPR_RIP] = t->hot.code->base + (uint64_t)(int64_t)s->offset;
		hot_count(e, s->tb);
		break;
	}
}

static void run_code(struct engine *e, uint32_t tb, unsigned view)
{
	struct translator *t = e->translator;
	uint64_t pc = (uint64_t)(uintptr_t)t->execute + t->tbs[tb].code;
	unsigned loaded = warm_state(e);
	bool again;

	for (bool start = true;; start = false) {
		prepare(e, tb, view, start);
		set_loaded(e, loaded);
		enter(e, pc);
		view = e->cpl == 3 ? SHADOW_USER : SHADOW_SUPERVISOR;
		if (t->faulted) {
			again = repair(e, view, &tb, &loaded);
			pc = t->fault_pc;
		} else {
			again = false;
			leave_code(e);
		}
		if (!again)
			return;
	}
}

static void run_tb(struct engine *e, uint32_t tb, unsigned view, struct block *b)
{
	if (e->lockstep)
		lockstep_before(e, blocks_insns(e, b), b->count);
	run_code(e, tb, view);
	if (e->lockstep) {
		lockstep_after(e, e->translator->interp_next);
		/* Every block comes back. */
		e->translator->chain_from = 0;
		e->translator->jump_from = false;
	}
}

/* --- the step of the main loop --- */

static void remember_jump(struct engine *e, uint32_t tb, unsigned view)
{
	struct translator *t = e->translator;
	uint64_t rip = e->cpu->gpr[GPR_RIP];
	struct code_page *page;

	translator_settle(e);
	page = translator_page(t, view, rip, (rip & ~0xfffull) + e->deltas->delta[view][slot_of(rip)]);
	translator_remember(e, view, page, rip, tb);
	if (t->hot.target == rip)
		site_link_far(e, (uint32_t)t->hot.exit_site, view, page, tb);
	if (!page->memfd_page)
		note_page(e, tb, view, page);
}

static void note_slot(uint16_t *seen, unsigned now)
{
	*seen = (uint16_t)(*seen && *seen != now ? SEEN_MANY : now);
}

void translator_profile(struct engine *e, struct block *b)
{
	struct translator *t = e->translator;
	struct cpu_state *c = e->cpu;
	const struct insn *first = blocks_insns(e, b), *i = first, *end = first + b->count;
	bool is_single = b->key == BLOCK_DEAD;

	e->run_first = i;
	e->leave_block = false;
	do {
		e->current = i;
		e->insn_rip = c->gpr[GPR_RIP];
		c->gpr[GPR_RIP] += i->length;
		if (i->flags & INSN_MEM) {
			uint64_t gva = insn_flat_linear(e, i);

			if (is_canonical(gva) && !is_single)
				note_slot(&t->seen[b->seen + (i - first)], slot_of(gva) + 1);
		}
		i->fn(e, i);
		i++;
	} while (i < end && !e->leave_block);
	e->retired += (uint64_t)(i - first);
	e->run_first = NULL;
}

/* The same as translator_step() for an instruction that crosses pages. */
static enum translator_did step_crossing(
	struct engine *e, struct block *b, unsigned view, bool jump_from)
{
	struct crossing *x = e->blocks->single_crossing;

	if (!x || x->linear != e->cpu->gpr[GPR_RIP] || x->mode != e->mode)
		return DID_NOTHING;
	if (!x->tb[view]) {
		if (++x->heat < e->translator->heat)
			return DID_NOTHING;
		x->heat = 0;
		if (!blocks_watch_crossing(e, x))
			return DID_NOTHING;
		translator_profile(e, b);
		/* Once more: it may have changed itself. */
		if (blocks_watch_crossing(e, x))
			x->tb[view] = translate_crossing(e, x, view);
		return DID_RUN;
	}
	if (jump_from)
		remember_jump(e, x->tb[view] - 1, view);
	run_tb(e, x->tb[view] - 1, view, b);
	return DID_RUN;
}

enum translator_did translator_step(struct engine *e, struct block *b)
{
	struct translator *t = e->translator;
	unsigned view = e->cpl == 3 ? SHADOW_USER : SHADOW_SUPERVISOR;
	uint32_t chain_from = t->chain_from;
	bool jump_from = t->jump_from;
	uint32_t tb;

	t->jump_from = false;
	if (engine_unlikely(translator_pages_full(t))) {
		translator_forget_pages(e);
		jump_from = false;
	}
	if (t->interp_next) {
		t->interp_next = false;
		t->chain_from = 0;
		return DID_LEAVE_ONE;
	}
	if (engine_unlikely(t->watching))
		return hot_watch(e, b, view);
	if (!(e->flat || tx32_ready(e)) || e->align_check || (e->cpu->rflags & FLAG_DF)) {
		t->chain_from = 0;
		return DID_NOTHING;
	}
	if (b->key == BLOCK_DEAD) {
		t->chain_from = 0;
		return step_crossing(e, b, view, jump_from);
	}
	tb = b->tb[view];
	if (b->hot && !tb) {
		tb = hot_translate(e, b, view);
		chain_from = 0;
	}
	if (!tb) {
		t->chain_from = 0;
		if (b->heat == BLOCK_HEAT_NEVER)
			return DID_LEAVE_ONE;
		if (++b->heat < t->heat)
			return DID_NOTHING;
		b->heat = (uint16_t)(t->heat - 1);
		translator_profile(e, b);
		if (b->key == BLOCK_DEAD)
			return DID_RUN;
		b->tb[view] = translate_block(e, b, view, false);
		if (!b->tb[view])
			b->heat = 0;
		return DID_RUN;
	}
	if (chain_from)
		site_chain(e, chain_from - 1, b, tb - 1);
	t->chain_from = 0;
	if (jump_from)
		remember_jump(e, tb - 1, view);
	run_tb(e, tb - 1, view, b);
	return DID_RUN;
}

/* --- signals --- */

bool translator_signal(struct engine *e, int sig, void *siginfo, void *ucontext)
{
	static const int host[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
		REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
	struct translator *t = e->translator;
	const siginfo_t *info = siginfo;
	ucontext_t *uc = ucontext;
	greg_t *regs = uc->uc_mcontext.gregs;
	uint64_t pc, flags = (uint64_t)regs[REG_EFL];

	if (!t)
		return false;
	pc = (uint64_t)regs[REG_RIP] - (uint64_t)(uintptr_t)t->execute;
	if (pc < t->first || pc >= CODE_SIZE)
		return false;
	for (unsigned n = 0; n < (t->code32 ? MOVED_32 : COUNT(moved)); n++)
		e->cpu->gpr[moved[n]] = (uint64_t)regs[host[moved[n]]];
	e->cpu->gpr[RAX] = (uint64_t)regs[REG_RAX];
	t->hot.scratch[0] = (uint64_t)regs[REG_R10];
	t->hot.scratch[1] = (uint64_t)regs[REG_R11];
	t->hot.rsp_host = (uint64_t)regs[REG_RSP];
	t->hot.flags = (flags & 0xff) << 8 | ((flags >> 11) & 1);
	t->faulted = true;
	t->fault_signal = sig;
	t->fault_pc = (uint64_t)regs[REG_RIP];
	t->fault_hva = (uint64_t)(uintptr_t)info->si_addr;
	t->fault_write = (regs[REG_ERR] & 2) != 0;
	regs[REG_RIP] = (greg_t)(uintptr_t)(t->execute + t->leave_fault);
	regs[REG_EFL] = (greg_t)(flags & ~0x100400ull);
	return true;
}
