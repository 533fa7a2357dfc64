/*
 * The interpreter's main loop: finds the decoded block at RIP, runs its instructions, and between blocks looks after
 * everything that may interrupt a guest: events from outside, interrupts, single steps, breakpoints, faults.
 *
 * Invariants:
 *  - run() keeps nothing in locals across a fault: engine_raise() jumps to engine_run(), which re-arms the jump.
 *  - Between blocks the architectural state is exact and complete in block->cpu.
 *  - Whatever needs a look after every instruction (TF, RF, shadows, DR7) makes blocks one instruction long.
 */
#include "engine/access.h"
#include "engine/blocks.h"
#include "engine/lockstep.h"
#include "engine/shadow.h"
#include "engine/translate.h"

#include <errno.h>
#include <stdio.h>
#include <sys/mman.h>

/* --- raising --- */

static void leave_by_fault(struct engine *e) __attribute__((noreturn));
static void leave_by_fault(struct engine *e)
{
	if (e->split_held)
		split_lock_release(e);
	siglongjmp(e->fault_jump, 1);
}

void engine_raise(struct engine *e, uint8_t vector)
{
	e->fault_vector = vector;
	e->fault_has_error = false;
	e->fault_error = 0;
	leave_by_fault(e);
}

void engine_raise_error(struct engine *e, uint8_t vector, uint32_t error)
{
	e->fault_vector = vector;
	e->fault_has_error = true;
	e->fault_error = error;
	leave_by_fault(e);
}

void engine_raise_page(struct engine *e, uint64_t gva, uint32_t error)
{
	e->fault_vector = EXC_PF;
	e->fault_has_error = true;
	e->fault_error = error;
	e->fault_address = gva;
	leave_by_fault(e);
}

void engine_restart_insn(struct engine *e)
{
	e->restart = true;
	leave_by_fault(e);
}

/* --- modes --- */

void engine_update_mode(struct engine *e)
{
	const struct cpu_state *cpu = e->cpu;
	bool v86 = (cpu->rflags & FLAG_VM) != 0;

	if ((cpu->efer & EFER_LMA) && (cpu->seg[SEG_CS].ar & SEG_AR_L))
		e->mode = MODE_64;
	else
		e->mode = (cpu->seg[SEG_CS].ar & SEG_AR_DB) && !v86 ? MODE_32 : MODE_16;
	if (!(cpu->cr0 & CR0_PE))
		e->cpl = 0;
	else
		e->cpl = v86 ? 3 : (cpu->seg[SEG_SS].ar & SEG_AR_DPL) >> SEG_AR_DPL_SHIFT;
	e->stack32 = (cpu->seg[SEG_SS].ar & SEG_AR_DB) != 0;
	e->flat = e->mode == MODE_64;
	e->flat_code = e->flat || (e->mode == MODE_32 && cpu->seg[SEG_CS].base == 0 && cpu->seg[SEG_CS].limit == 0xffffffffu);
	e->watch = (cpu->dr7 & 0xff) != 0;
	e->align_check = e->cpl == 3 && (cpu->cr0 & CR0_AM) && (cpu->rflags & FLAG_AC);
	e->tlb = e->tlb_data[e->watch || e->align_check ? TLB_NONE : mmu_array(e, ACCESS_READ)];
	e->block_key = e->generation << 8 | (e->cpl == 3) << 2 | e->mode;
	e->leave_block = true;
}

void engine_forget_blocks(struct engine *e)
{
	e->generation++;
	e->large_code = 0;
	e->block_key = e->generation << 8 | (e->block_key & 0xff);
}

void engine_forget_translations(struct engine *e)
{
	engine_forget_blocks(e);
	if (e->translator)
		translator_forget(e, true, true);
}

void engine_forget_nonglobal(struct engine *e)
{
	engine_forget_blocks(e);
	if (e->translator)
		translator_forget(e, true, e->translator->nonglobal_jumps);
}

void engine_state_changed(struct engine *e)
{
	e->cpu->gpr[GPR_ZERO] = 0;
	e->cpu->rflags |= FLAG_FIXED;
	mmu_flush_all(e);
	engine_invalidate_all(e);
	engine_update_mode(e);
	pvclock_update(e);
	e->attention = true;
}

/* --- delivery, with what becomes of faults inside of it --- */

static const char *exception_name(unsigned vector)
{
	static const char *const names[] = { "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "coprocessor",
		"#TS", "#NP", "#SS", "#GP", "#PF", "15", "#MF", "#AC", "#MC", "#XM" };

	return vector < sizeof(names) / sizeof(names[0]) ? names[vector] : "interrupt";
}

static void note_first_fault(struct engine *e, uint8_t vector, bool has_error, uint32_t error)
{
	const struct cpu_state *cpu = e->cpu;

	e->first_fault.vector = vector;
	e->first_fault.cpl = e->cpl;
	e->first_fault.has_error = has_error;
	e->first_fault.cs = cpu->seg[SEG_CS].selector;
	e->first_fault.error = error;
	e->first_fault.rip = cpu->gpr[GPR_RIP];
	e->first_fault.cr2 = cpu->cr2;
}

static void report_triple_fault(struct engine *e)
{
	char code[32] = "", address[48] = "";

	if (e->first_fault.has_error)
		snprintf(code, sizeof(code), " with error code %#x", e->first_fault.error);
	if (e->first_fault.vector == EXC_PF)
		snprintf(address, sizeof(address), " (CR2 %#llx)", (unsigned long long)e->first_fault.cr2);
	snprintf(e->block->exit.text, sizeof(e->block->exit.text),
		"triple fault: the first cause was %s (vector %u)%s%s at %#x:%#llx, CPL %u; "
		"the last was %s (vector %u) with error code %#x, CR2 %#llx",
		exception_name(e->first_fault.vector), e->first_fault.vector, code, address, e->first_fault.cs,
		(unsigned long long)e->first_fault.rip, e->first_fault.cpl, exception_name(e->fault_vector), e->fault_vector,
		e->fault_error, (unsigned long long)e->cpu->cr2);
}

static void count_exception(struct engine *e, uint8_t vector)
{
	switch (vector) {
	case EXC_PF:
		e->stats->faults_page++;
		break;
	case EXC_GP:
		e->stats->faults_gp++;
		break;
	case EXC_UD:
		e->stats->faults_ud++;
		break;
	case EXC_NM:
		e->stats->faults_nm++;
		break;
	case EXC_DB:
		e->stats->faults_debug++;
		break;
	default:
		e->stats->faults_other++;
	}
}

static bool is_contributory(uint8_t vector)
{
	return vector == EXC_DE || (vector >= EXC_TS && vector <= EXC_GP);
}

/*
 * Delivers; faults met on the way are delivered instead, or become #DF (SDM vol. 3, table 6-5). False: triple fault.
 * fault_jump must be armed again afterwards.
 */
static bool deliver(struct engine *e, uint8_t vector, enum delivery how, bool has_error, uint32_t error)
{
	/* In *e, not in locals: they change between setjmp and longjmp. */
	e->deliver_vector = vector;
	e->deliver_how = how;
	e->deliver_has_error = has_error;
	e->deliver_error = error;
	e->deliver_depth = 0;
	e->disarmed = true;
	e->stepping = false;
	if (sigsetjmp(e->fault_jump, 0)) {
		uint8_t second = e->fault_vector;
		bool first_fault = e->deliver_how == DELIVER_FAULT;

		if (second == EXC_PF)
			e->cpu->cr2 = e->fault_address;
		count_exception(e, second);
		if (first_fault && e->deliver_vector == EXC_DF) {
			if (is_contributory(second) || second == EXC_PF)
				goto shutdown;
		} else if (first_fault && ((is_contributory(e->deliver_vector) && is_contributory(second)) ||
			(e->deliver_vector == EXC_PF && (is_contributory(second) || second == EXC_PF)))) {
			e->fault_vector = EXC_DF;
			e->fault_has_error = true;
			e->fault_error = 0;
		}
		if (++e->deliver_depth > 8)
			goto shutdown;
		if (e->deliver_how != DELIVER_FAULT)
			note_first_fault(e, second, e->fault_has_error, e->fault_error);
		e->deliver_vector = e->fault_vector;
		e->deliver_how = DELIVER_FAULT;
		e->deliver_has_error = e->fault_has_error;
		e->deliver_error = e->fault_error;
	} else if (how == DELIVER_FAULT) {
		if (vector == EXC_PF)
			e->cpu->cr2 = e->fault_address;
		count_exception(e, vector);
		note_first_fault(e, vector, has_error, error);
	}
	if (e->deliver_vector == EXC_PF)
		e->page_fault_rip = e->cpu->gpr[GPR_RIP];
	e->delivering = true;
	exception_deliver(e, e->deliver_vector, e->deliver_how, e->deliver_has_error, e->deliver_error);
	e->delivering = false;
	e->cpu->shadow_sti = e->cpu->shadow_mov_ss = 0;
	e->cpu->pending_dr6 = 0;
	if (e->deliver_vector == EXC_DB && (e->cpu->dr7 & DR7_GD))
		e->cpu->dr7 &= ~DR7_GD;
	if (e->cpu->activity == CPU_HALTED)
		e->cpu->activity = CPU_RUNNING;
	return true;
shutdown:
	e->delivering = false;
	e->cpu->activity = CPU_SHUTDOWN;
	report_triple_fault(e);
	return false;
}

/* --- events --- */

static void take_invalidations(struct engine *e)
{
	struct vcpu_block *b = e->block;

	if (atomic_exchange(&b->invalidate_all, 0)) {
		atomic_store(&b->invalidate_tail, atomic_load(&b->invalidate_head));
		engine_invalidate_all(e);
		return;
	}
	for (uint32_t tail = atomic_load(&b->invalidate_tail); tail != atomic_load(&b->invalidate_head); tail++) {
		engine_invalidate_page(e, atomic_load(&b->invalidate_page[tail % INVALIDATE_RING_SIZE]));
		atomic_store(&b->invalidate_tail, tail + 1);
	}
}

static void take_init(struct engine *e)
{
	cpu_init(e->cpu);
	lapic_reset(e);
	e->cpu->activity = e->block->lapic.apic_base & 0x100 ? CPU_RUNNING : CPU_WAIT_SIPI;
	mmu_flush_all(e);
	engine_update_mode(e);
}

static void take_sipi(struct engine *e)
{
	struct cpu_segment *cs = &e->cpu->seg[SEG_CS];
	uint32_t vector = atomic_load(&e->block->sipi_vector) & 0xff;

	if (e->cpu->activity != CPU_WAIT_SIPI)
		return;
	cs->selector = (uint16_t)(vector << 8);
	cs->base = (uint64_t)vector << 12;
	e->cpu->gpr[GPR_RIP] = 0;
	e->cpu->activity = CPU_RUNNING;
	engine_update_mode(e);
}

/* True: come back to the VMM. */
static bool take_events(struct engine *e)
{
	uint32_t events = atomic_exchange(&e->block->events, 0);

	if (events & VCPU_EVENT_LAYOUT) {
		if (e->lockstep)
			lockstep_layout_changed(e);
		shadow_layout_changed(e);
		mmu_flush_all(e);
	}
	if (events & VCPU_EVENT_INVALIDATE)
		take_invalidations(e);
	if (events & VCPU_EVENT_SAMPLE)
		translator_watch(e);
	if (events & VCPU_EVENT_INIT)
		take_init(e);
	if (events & VCPU_EVENT_SIPI)
		take_sipi(e);
	if (events & VCPU_EVENT_NMI)
		e->cpu->nmi_pending = 1;
	if (events & (VCPU_EVENT_IRR | VCPU_EVENT_EXTINT | VCPU_EVENT_TIMER))
		lapic_poll(e, events);
	e->attention = true;
	return (events & VCPU_EVENT_EXIT) != 0;
}

/* Delivers one interrupt if the state lets one in. False: triple fault. */
static bool take_interrupt(struct engine *e)
{
	struct cpu_state *cpu = e->cpu;
	int vector;

	if (cpu->nmi_pending && !cpu->nmi_blocked) {
		cpu->nmi_pending = 0;
		cpu->nmi_blocked = 1;
		e->stats->interrupts_nmi++;
		return deliver(e, EXC_NMI, DELIVER_INTERRUPT, false, 0);
	}
	if (!(cpu->rflags & FLAG_IF))
		return true;
	if (lapic_extint_pending(e)) {
		vector = (int)(e->env.exit(e->env.ctx, VCPU_EXIT_INTACK) & 0xff);
		e->stats->interrupts_extint++;
		return deliver(e, (uint8_t)vector, DELIVER_INTERRUPT, false, 0);
	}
	vector = lapic_pending(e);
	if (vector < 0) {
		e->attention = cpu->nmi_pending != 0;
		return true;
	}
	lapic_accept(e, (uint8_t)vector);
	e->stats->interrupts_apic++;
	return deliver(e, (uint8_t)vector, DELIVER_INTERRUPT, false, 0);
}

/* --- debug traps and single steps --- */

/* Traps that the last instruction has earned. False: triple fault. */
static bool take_debug_traps(struct engine *e)
{
	struct cpu_state *cpu = e->cpu;

	if (e->stepping) {
		e->stepping = false;
		if (!cpu->shadow_mov_ss) /* a load of SS has no single-step trap of its own; data breakpoints are held back */
			cpu->pending_dr6 |= DR6_BS;
	}
	if (!cpu->pending_dr6 || cpu->shadow_mov_ss)
		return true;
	cpu->dr6 = (cpu->dr6 & ~0xfull) | DR6_FIXED | cpu->pending_dr6;
	cpu->pending_dr6 = 0;
	e->stats->faults_debug++;
	return deliver(e, EXC_DB, DELIVER_INTERRUPT, false, 0);
}

static void check_code_breakpoints(struct engine *e)
{
	struct cpu_state *cpu = e->cpu;
	uint64_t rip = e->mode == MODE_64 ? cpu->gpr[GPR_RIP] : (uint32_t)(cpu->seg[SEG_CS].base + cpu->gpr[GPR_RIP]);
	uint64_t hits = 0;

	for (unsigned n = 0; n < 4; n++) {
		if (!(cpu->dr7 >> n * 2 & 3) || (cpu->dr7 >> (16 + n * 4) & 15) != 0)
			continue;
		if (cpu->dr[n] == rip)
			hits |= 1ull << n;
	}
	if (hits) {
		e->insn_rip = cpu->gpr[GPR_RIP];
		cpu->dr6 = (cpu->dr6 & ~0xfull) | DR6_FIXED | hits;
		engine_raise(e, EXC_DB);
	}
}

/* --- the loop --- */

/* What makes the loop look twice before a block. */
static inline bool needs_care(const struct engine *e)
{
	const struct cpu_state *cpu = e->cpu;

	return (cpu->rflags & (FLAG_TF | FLAG_RF)) || engine_events_pending(e) || e->watch ||
		(e->attention && ((cpu->rflags & FLAG_IF) || cpu->nmi_pending)) ||
		(cpu->activity | cpu->shadow_sti | cpu->shadow_mov_ss) || cpu->pending_dr6 || e->stepping ||
		blocks_news(e);
}

static enum vcpu_exit_kind idle(struct engine *e, bool *again)
{
	struct cpu_state *cpu = e->cpu;

	*again = true;
	if (cpu->activity == CPU_SHUTDOWN)
		return e->failed ? VCPU_EXIT_ERROR : VCPU_EXIT_SHUTDOWN;
	if (e->retire_limit && e->block->leave_idle && cpu->activity == CPU_HALTED && !engine_events_pending(e)) {
		e->retired += !e->retired; /* 0 would mean: no limit */
		e->retire_limit = e->retired;
	}
	if (e->retire_limit && e->retired >= e->retire_limit) {
		*again = false;
		return VCPU_EXIT_NONE;
	}
	if (!engine_events_pending(e)) {
		uint64_t deadline = cpu->activity == CPU_HALTED ? lapic_next_deadline(e) : 0;

		e->env.wait(e->env.ctx, deadline);
		if (deadline) {
			lapic_poll(e, VCPU_EVENT_TIMER);
			e->attention = true;
		}
	}
	return VCPU_EXIT_NONE;
}

/*
 * Everything between two instructions. *limit: how many instructions may run before the next look. *again: nothing to
 * run yet, call once more. Any answer but NONE leaves engine_run(). Calls deliver(), so the caller re-arms.
 */
static enum vcpu_exit_kind take_care(struct engine *e, unsigned *limit, bool *again)
{
	struct cpu_state *cpu = e->cpu;
	bool held;

	*again = false;
	blocks_take_news(e);
	if (e->stepping || cpu->pending_dr6) {
		bool pending = !cpu->shadow_mov_ss;

		if (!take_debug_traps(e))
			return VCPU_EXIT_SHUTDOWN;
		*again = pending;
		if (pending)
			return VCPU_EXIT_NONE;
	}
	if (engine_events_pending(e) && take_events(e))
		return VCPU_EXIT_KICKED;
	held = cpu->shadow_sti || cpu->shadow_mov_ss;
	if (e->attention && !held && cpu->activity <= CPU_HALTED) {
		e->disarmed = false;
		if (!take_interrupt(e))
			return VCPU_EXIT_SHUTDOWN;
		if (e->disarmed) {
			*again = true;
			return VCPU_EXIT_NONE;
		}
	}
	if (cpu->activity != CPU_RUNNING)
		return idle(e, again);
	if (held || e->watch || (cpu->rflags & (FLAG_TF | FLAG_RF)))
		*limit = 1;
	return VCPU_EXIT_NONE;
}

/* Runs count instructions of a block, or until one changes what the rest depends on. */
static inline void run_insns(struct engine *e, const struct insn *first, unsigned count)
{
	struct cpu_state *cpu = e->cpu;
	const struct insn *i = first, *end = first + count;
	uint64_t mask = e->mode == MODE_64 ? ~0ull : 0xffffffffull;

	e->run_first = first;
	e->leave_block = false;
	do {
		uint64_t rip = cpu->gpr[GPR_RIP];

		e->current = i;
		e->insn_rip = rip;
		cpu->gpr[GPR_RIP] = (rip + i->length) & mask;
		i->fn(e, i);
		i++;
	} while (i < end && engine_likely(!e->leave_block));
	e->retired += (uint64_t)(i - first);
	e->run_first = NULL;
}

/* One instruction under the eyes of TF, RF, shadows and breakpoints. */
static void run_carefully(struct engine *e, const struct insn *i)
{
	struct cpu_state *cpu = e->cpu;

	if (e->watch && !(cpu->rflags & FLAG_RF))
		check_code_breakpoints(e);
	e->stepping = (cpu->rflags & FLAG_TF) != 0;
	cpu->rflags &= ~FLAG_RF;
	cpu->shadow_sti = cpu->shadow_mov_ss = 0;
	run_insns(e, i, 1);
}

static enum vcpu_exit_kind run(struct engine *e)
{
	for (;;) {
		unsigned limit = ~0u;
		struct block *b;

		if (engine_unlikely(needs_care(e))) {
			bool again;
			enum vcpu_exit_kind kind = take_care(e, &limit, &again);

			if (kind != VCPU_EXIT_NONE)
				return kind;
			if (again)
				return VCPU_EXIT_KINDS; /* deliver() has disarmed the jump */
		}
		if (e->retire_limit) {
			uint64_t left = e->retire_limit - e->retired;

			if ((int64_t)left <= 0)
				return VCPU_EXIT_NONE;
			if (left < limit)
				limit = (unsigned)left;
		}
		b = blocks_find(e);
		if (engine_unlikely(limit == 1)) {
			run_carefully(e, blocks_insns(e, b));
			continue;
		}
		if (e->translator && !e->retire_limit) {
			enum translator_did did = translator_step(e, b);

			if (did == DID_RUN)
				continue;
			if (did == DID_LEAVE_ONE)
				limit = 1;
		}
		run_insns(e, blocks_insns(e, b), b->count < limit ? b->count : limit);
	}
}

/* After a longjmp from the middle of an instruction. False: triple fault. */
static bool recover(struct engine *e)
{
	if (e->run_first) {
		e->retired += (uint64_t)(e->current - e->run_first);
		e->run_first = NULL;
	}
	e->cpu->gpr[GPR_RIP] = e->insn_rip;
	if (e->restart) {
		e->restart = false;
		if (e->watch)
			e->cpu->rflags |= FLAG_RF;
		return true;
	}
	return deliver(e, e->fault_vector, DELIVER_FAULT, e->fault_has_error, e->fault_error);
}

/* What another backend had accepted for the guest when its state was taken. False: triple fault. */
static bool take_accepted(struct engine *e)
{
	struct cpu_state *cpu = e->cpu;
	uint8_t kind = cpu->event;

	cpu->event = CPU_EVENT_NONE;
	if (kind == CPU_EVENT_NONE)
		return true;
	if (kind == CPU_EVENT_NMI) /* VT-x blocks NMIs only with the delivery */
		cpu->nmi_blocked = 1;
	return deliver(e, cpu->event_vector, kind == CPU_EVENT_EXCEPTION ? DELIVER_FAULT : DELIVER_INTERRUPT,
		kind == CPU_EVENT_EXCEPTION && cpu->event_has_error, cpu->event_error);
}

enum vcpu_exit_kind engine_run(struct engine *e, uint64_t max_instructions)
{
	enum vcpu_exit_kind kind;

	e->retire_limit = max_instructions ? e->retired + max_instructions : 0;
	if (!take_accepted(e))
		return VCPU_EXIT_SHUTDOWN;
	do {
		if (sigsetjmp(e->fault_jump, 0))
			kind = recover(e) ? VCPU_EXIT_KINDS : VCPU_EXIT_SHUTDOWN;
		else
			kind = run(e);
		e->stats->instructions = e->retired;
	} while (kind == VCPU_EXIT_KINDS);
	native_leave(e);
	return kind;
}

/* Without a shadow (no memfd, a sanitizer's address space) there is no translator, and all is interpreted. */
static void create_shadow(struct engine *e)
{
	void *deltas;

	if (e->block->engine == VCPU_ENGINE_INTERP || e->env.ram_fd < 0)
		return;
	deltas = mmap(NULL, sizeof(*e->deltas), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	if (deltas == MAP_FAILED)
		return;
	e->deltas = deltas;
	if (!shadow_create(e, e->env.ram_fd, e->block->shadow == VCPU_SHADOW_VTLB ? SHADOW_VTLB : SHADOW_UNSYNC, e->deltas))
		e->through_shadow = e->block->engine == VCPU_ENGINE_SLOTS;
}

int engine_create(struct vcpu_block *block, struct vm_shared *shared, uint8_t *ram, const struct engine_env *env,
	struct engine **engine)
{
	/* Translated code addresses it absolutely. */
	bool translate = block->engine == VCPU_ENGINE_TRANSLATE || block->engine == VCPU_ENGINE_LOCKSTEP;
	int low = translate ? MAP_32BIT : 0, error;
	struct engine *e = mmap(NULL, sizeof(*e), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | low, -1, 0);

	if (e == MAP_FAILED)
		return -ENOMEM;
	e->block = block;
	e->cpu = &block->cpu;
	e->shared = shared;
	e->stats = &block->stats;
	e->ram = ram;
	e->env = *env;
	e->retired = block->stats.instructions;
	e->tlb = e->tlb_data[TLB_NONE];
	for (unsigned array = 0; array < TLB_ARRAYS; array++)
		for (unsigned n = 0; n < TLB_SIZE; n++)
			e->tlb_data[array][n] = (struct tlb_entry){ TLB_NO_TAG, TLB_NO_TAG, TLB_NO_TAG, 0 };
	error = decode_create(e);
	if (!error)
		error = blocks_create(e);
	if (!error)
		error = native_create(e);
	if (error) {
		engine_destroy(e);
		return error;
	}
	create_shadow(e);
	if (translate)
		translator_create(e);
	/* A comparison that silently did not happen would be worth less than none. */
	if (e->block->engine == VCPU_ENGINE_LOCKSTEP) {
		error = lockstep_create(e);
		if (error) {
			engine_destroy(e);
			return error;
		}
	}
	engine_state_changed(e);
	*engine = e;
	return 0;
}

void engine_destroy(struct engine *e)
{
	if (!e)
		return;
	lockstep_destroy(e);
	translator_destroy(e);
	shadow_destroy(e);
	if (e->deltas)
		munmap(e->deltas, sizeof(*e->deltas));
	native_destroy(e);
	blocks_destroy(e);
	decode_destroy(e);
	munmap(e, sizeof(*e));
}
