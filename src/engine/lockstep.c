/*
 * Lock step (docs/translator.md): the interpreter checks the translator, block by block, in the same process.
 *
 *   before   a second engine, an interpreter, starts from the CPU state and runs the block's instructions. Its stores go to copies of
 *            pages (overlay.h): RAM stays as it is. What it needs of the outside (ports, MMIO, the local APIC) ends its run.
 *   run      the translated block runs for real. Nothing is chained, so it comes back after one block at most; what is not
 *            deterministic in a block is left to the interpreter (RDTSC) or happens between blocks (interrupts).
 *   after    all registers, and every byte that the interpreter has changed, must be the same.
 *
 * Translated code may stop inside of a block: at a fault, at an instruction that is not translated. Then the interpreter
 * runs once more, just so far; status flags are not compared there, as a check may have used them where they are dead.
 *
 * Devices write to RAM at any time: what differs is computed once more from RAM as it is now, and counts only if it still
 * differs. A block that writes to more than OVERLAY_PAGES pages, or has a longer string instruction than ELEMENTS_MAX, is not compared. The guest's tables are read without setting
 * accessed and dirty bits: a TLB would not set them again.
 */
#include "engine/lockstep.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/native.h"
#include "engine/overlay.h"
#include "engine/translate.h"

#define INSNS_MAX 32u
/* Of a repeated string instruction: element by element a longer one would take longer than the guest's timer lets it. */
#define ELEMENTS_MAX 16384u

struct lockstep {
	struct engine *reference;
	struct vcpu_block *block; /* its own */
	struct vm_shared *shared;
	size_t shared_size;
	struct overlay overlay;
	/* The run under way. */
	struct cpu_state before;
	const struct insn *insns;
	unsigned count;
	volatile unsigned done; /* instructions that the reference has finished */
	bool vector;		/* some instruction may touch the vector state */
	uint64_t flushes;	/* of the checked engine's translations, as seen */
};

/* --- the reference's world --- */

static uint64_t no_access(void *ctx, unsigned space, uint64_t addr, unsigned size, bool is_write, uint64_t value)
{
	struct lockstep *l = ctx;

	(void)space, (void)addr, (void)size, (void)is_write, (void)value;
	engine_restart_insn(l->reference);
}

static uint64_t no_exit(void *ctx, enum vcpu_exit_kind kind)
{
	struct lockstep *l = ctx;

	(void)kind;
	engine_restart_insn(l->reference);
}

static void no_wait(void *ctx, uint64_t deadline_ns)
{
	(void)ctx, (void)deadline_ns;
}

uint8_t *overlay_at(struct engine *e, uint64_t offset, bool is_write)
{
	struct overlay *o = e->overlay;
	uint64_t page = offset >> 12;

	for (unsigned n = 0; n < o->count; n++)
		if (o->page[n] == page)
			return o->now[n] + (offset & 0xfff);
	if (!is_write)
		return e->ram + offset;
	if (o->count == OVERLAY_PAGES) {
		o->full = true;
		engine_restart_insn(e);
	}
	memcpy(o->before[o->count], e->ram + (page << 12), 4096);
	memcpy(o->now[o->count], o->before[o->count], 4096);
	o->page[o->count++] = page;
	return o->now[o->count - 1] + (offset & 0xfff);
}

static void forget_entries(struct overlay *o)
{
	for (unsigned n = 0; n < o->entries; n++)
		o->entry[n]->read = o->entry[n]->write = o->entry[n]->exec = TLB_NO_TAG;
	o->entries = 0;
}

void overlay_note(struct engine *e, struct tlb_entry *t)
{
	struct overlay *o = e->overlay;

	if (o->entries == OVERLAY_ENTRIES)
		forget_entries(o);
	o->entry[o->entries++] = t;
}

static void *take_memory(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

int lockstep_create(struct engine *e)
{
	struct engine_env env = { no_access, no_exit, no_wait, no_wait, NULL, -1 };
	struct lockstep *l;
	int error;

	if (!e->translator)
		return -ENOTSUP;
	l = take_memory(sizeof(*l));
	if (!l)
		return -ENOMEM;
	e->lockstep = l;
	l->shared_size = sizeof(*l->shared) + (e->block->ram.file_size / 4096 + 63) / 64 * 8;
	l->shared = take_memory(l->shared_size);
	l->block = take_memory(sizeof(*l->block));
	if (!l->shared || !l->block)
		return -ENOMEM;
	l->shared->cpu_count = 1;
	l->block->model = e->block->model;
	l->block->ram = e->block->ram;
	l->block->engine = VCPU_ENGINE_INTERP;
	env.ctx = l;
	error = engine_create(l->block, l->shared, e->ram, &env, &l->reference);
	if (error)
		return error;
	/* Decoded instructions know the thunks of the engine that has decoded them. */
	native_destroy(l->reference);
	l->reference->native = e->native;
	l->reference->overlay = &l->overlay;
	return 0;
}

void lockstep_destroy(struct engine *e)
{
	struct lockstep *l = e->lockstep;

	if (!l)
		return;
	if (l->reference) {
		l->reference->native = NULL;
		engine_destroy(l->reference);
	}
	if (l->shared)
		munmap(l->shared, l->shared_size);
	if (l->block)
		munmap(l->block, sizeof(*l->block));
	munmap(l, sizeof(*l));
	e->lockstep = NULL;
}

/* --- the reference's run --- */

static bool is_long_string(const struct cpu_state *c, const struct insn *i)
{
	return (i->flags & INSN_REP) && c->gpr[GPR_RCX] > ELEMENTS_MAX &&
	       ((i->mnemonic >= ZYDIS_MNEMONIC_MOVSB && i->mnemonic <= ZYDIS_MNEMONIC_MOVSW) ||
		       (i->mnemonic >= ZYDIS_MNEMONIC_STOSB && i->mnemonic <= ZYDIS_MNEMONIC_STOSW));
}

/*
 * Runs `limit` instructions from the state before, fewer if one faults or branches away. rcx: how many elements the string
 * instruction behind them has moved before it stopped; 0 none.
 */
static void replay(struct lockstep *l, unsigned limit, uint64_t elements)
{
	struct engine *r = l->reference;
	struct cpu_state *c = r->cpu;
	uint64_t rcx;

	memcpy(c, &l->before, l->vector ? sizeof(*c) : offsetof(struct cpu_state, xsave));
	l->done = 0;
	forget_entries(&l->overlay);
	engine_update_mode(r);
	if (sigsetjmp(r->fault_jump, 0)) {
		c->gpr[GPR_RIP] = r->insn_rip;
		r->restart = false;
		return;
	}
	while (l->done < limit) {
		const struct insn *i = &l->insns[l->done];
		uint64_t rip = c->gpr[GPR_RIP];

		if (is_long_string(c, i)) {
			l->overlay.full = true;
			return;
		}
		r->current = i;
		r->insn_rip = rip;
		c->gpr[GPR_RIP] = rip + i->length;
		c->shadow_sti = c->shadow_mov_ss = 0;
		i->fn(r, i);
		l->done++;
		if (c->gpr[GPR_RIP] != rip + i->length)
			return;
	}
	if (elements && limit < l->count) {
		r->current = &l->insns[limit];
		r->insn_rip = c->gpr[GPR_RIP];
		rcx = c->gpr[GPR_RCX];
		c->gpr[GPR_RCX] = elements;
		r->current->fn(r, r->current);
		c->gpr[GPR_RCX] = rcx - elements;
		c->gpr[GPR_RIP] = r->insn_rip;
	}
}

static void replay_again(struct lockstep *l, unsigned limit, uint64_t elements)
{
	for (unsigned n = 0; n < l->overlay.count; n++)
		memcpy(l->overlay.now[n], l->overlay.before[n], 4096);
	replay(l, limit, elements);
}

/* What the reference has not changed is taken from RAM as it is now. */
static void refresh(struct lockstep *l, const uint8_t *ram)
{
	for (unsigned n = 0; n < l->overlay.count; n++) {
		const uint8_t *now = ram + (l->overlay.page[n] << 12);

		for (unsigned k = 0; k < 4096; k++)
			if (l->overlay.before[n][k] == l->overlay.now[n][k])
				l->overlay.before[n][k] = now[k];
	}
}

/* --- comparing --- */

struct difference {
	const char *what;
	uint64_t at, interpreter, translator;
};

static bool differs(struct difference *d, const char *what, uint64_t at, uint64_t interpreter, uint64_t translator)
{
	*d = (struct difference){ what, at, interpreter, translator };
	return interpreter != translator;
}

static bool bytes_differ(struct difference *d, const char *what, const uint8_t *a, const uint8_t *b, unsigned from, unsigned to)
{
	if (memcmp(a + from, b + from, to - from) == 0)
		return false;
	for (unsigned k = from; k < to; k++)
		if (differs(d, what, k, a[k], b[k]))
			return true;
	return false;
}

static bool memory_differs(struct lockstep *l, const uint8_t *ram, struct difference *d)
{
	for (unsigned n = 0; n < l->overlay.count; n++) {
		const uint8_t *before = l->overlay.before[n], *now = l->overlay.now[n], *real = ram + (l->overlay.page[n] << 12);

		if (memcmp(now, real, 4096) == 0)
			continue;
		for (unsigned k = 0; k < 4096; k++)
			if (now[k] != before[k] && differs(d, "memory at guest-physical page and byte", l->overlay.page[n] << 12 | k, now[k], real[k]))
				return true;
	}
	return false;
}

static bool states_differ(struct engine *e, bool status_flags, struct difference *d)
{
	static const char *const names[] = { "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11",
		"r12", "r13", "r14", "r15", "zero", "rip" };
	struct lockstep *l = e->lockstep;
	struct cpu_state *a = l->reference->cpu, *b = e->cpu;
	uint64_t mask = status_flags ? ~0ull : ~(uint64_t)FLAGS_STATUS;

	for (unsigned n = 0; n < GPR_COUNT; n++)
		if (differs(d, names[n], 0, a->gpr[n], b->gpr[n]))
			return true;
	if (differs(d, "rflags", 0, a->rflags & mask, b->rflags & mask))
		return true;
	/* STI's shadow ends sooner in translated code. */
	a->shadow_sti = b->shadow_sti;
	if (bytes_differ(d, "CPU state", (uint8_t *)a, (uint8_t *)b, offsetof(struct cpu_state, seg),
		offsetof(struct cpu_state, xsave)))
		return true;
	if (!l->vector)
		return false;
	native_materialize(a);
	native_materialize(b);
	/* An instruction that has raised SIGFPE has set MXCSR's status bits; it will do so again. */
	if (!status_flags)
		a->xsave[XSAVE_MXCSR] = (a->xsave[XSAVE_MXCSR] & 0xc0) | (b->xsave[XSAVE_MXCSR] & 0x3f);
	return bytes_differ(d, "x87 state", a->xsave, b->xsave, 0, 6) || bytes_differ(d, "MXCSR", a->xsave, b->xsave, 24, 28) ||
		bytes_differ(d, "vector state", a->xsave, b->xsave, 32, 416) ||
		bytes_differ(d, "vector state", a->xsave, b->xsave, XSAVE_YMMH, XSAVE_YMMH + 256);
}

static bool is_different(struct engine *e, unsigned done, struct difference *d)
{
	struct lockstep *l = e->lockstep;

	if (l->done != done)
		return differs(d, "instructions that could be run", 0, l->done, done);
	return states_differ(e, done == l->count, d) || memory_differs(l, e->ram, d);
}

/* --- the report --- */

static void say(const char *text, int length)
{
	if (length > 0 && write(STDERR_FILENO, text, (size_t)length) < 0)
		return;
}

static void print_state(const char *who, const struct cpu_state *c)
{
	static char text[8192];
	int length = snprintf(text, sizeof(text), "--- %s\n", who);

	say(text, length);
	length = cpu_format(c, text, sizeof(text));
	say(text, length);
}

static void print_code(const struct lockstep *l, const uint8_t *bytes)
{
	uint64_t rip = l->before.gpr[GPR_RIP];
	ZydisDisassembledInstruction d;
	char text[256];

	for (unsigned n = 0; n < l->count; n++) {
		unsigned length = l->insns[n].length;
		bool known = bytes && ZYAN_SUCCESS(ZydisDisassembleATT(ZYDIS_MACHINE_MODE_LONG_64, rip, bytes, length, &d));

		say(text, snprintf(text, sizeof(text), "  %#llx  %s\n", (unsigned long long)rip, known ? d.text : "?"));
		rip += length;
		bytes = bytes ? bytes + length : NULL;
	}
}

static void stop(struct engine *e, unsigned done, const struct difference *d)
{
	struct lockstep *l = e->lockstep;
	uint64_t rip = l->before.gpr[GPR_RIP], gpa = mmu_translate(e, rip);
	uint64_t offset = gpa == ~0ull ? gpa : ram_offset(e, gpa, NULL);
	char text[512];

	snprintf(e->block->exit.text, sizeof(e->block->exit.text),
		"lock step: the block at %#llx, CPL %u, differs after %u of %u instructions in %s (%#llx): interpreter %#llx, translator %#llx",
		(unsigned long long)rip, e->cpl, done, l->count, d->what, (unsigned long long)d->at,
		(unsigned long long)d->interpreter, (unsigned long long)d->translator);
	say(text, snprintf(text, sizeof(text), "%.500s\n", e->block->exit.text));
	print_code(l, offset == ~0ull || l->count == 1 ? NULL : e->ram + offset);
	print_state("before", &l->before);
	print_state("interpreter", l->reference->cpu);
	print_state("translator", e->cpu);
	e->failed = true;
	e->cpu->activity = CPU_SHUTDOWN;
}

/* --- before and after --- */

void lockstep_layout_changed(struct engine *e)
{
	e->lockstep->block->ram = e->block->ram; /* its TLB follows e's flush */
}

void lockstep_before(struct engine *e, const struct insn *insns, unsigned count)
{
	struct lockstep *l = e->lockstep;

	const struct engine_stats *s = e->stats;
	uint64_t flushes = s->tlb_flushes_all + s->tlb_flushes_nonglobal + s->tlb_flushes_page;

	l->vector = false;
	for (unsigned n = 0; n < count; n++)
		l->vector |= insns[n].native != NULL;
	memcpy(&l->before, e->cpu, l->vector ? sizeof(l->before) : offsetof(struct cpu_state, xsave));
	/* The reference has a TLB of its own, which is good as long as the guest's would be. */
	if (l->flushes != flushes) {
		l->flushes = flushes;
		mmu_flush_all(l->reference);
	}
	l->insns = insns;
	l->count = count < INSNS_MAX ? count : INSNS_MAX;
	l->overlay.count = 0;
	l->overlay.full = false;
	replay(l, l->count, 0);
}

/* The number of instructions before `rip`, if that is the beginning of one; else −1. */
static int instruction_at(const struct lockstep *l, uint64_t rip)
{
	uint64_t at = l->before.gpr[GPR_RIP];

	for (unsigned n = 0; n < l->count; n++) {
		if (at == rip)
			return (int)n;
		at += l->insns[n].length;
	}
	return -1;
}

static bool compare_at(struct engine *e, unsigned done, uint64_t elements, struct difference *d)
{
	struct lockstep *l = e->lockstep;

	if (done != l->count || elements)
		replay_again(l, done, elements);
	if (!is_different(e, done, d))
		return true;
	/* A device may have written meanwhile; or a page was written here and read elsewhere, through an entry that leads to RAM. */
	for (unsigned n = 0; n < 3; n++) {
		refresh(l, e->ram);
		mmu_flush_all(l->reference);
		replay_again(l, done, elements);
		if (!is_different(e, done, d)) {
			e->stats->lockstep_races++;
			return true;
		}
	}
	return false;
}

/* By the repeated string instruction at which the block has stopped; 0: it is none. */
static uint64_t elements_moved(const struct engine *e, unsigned at)
{
	struct lockstep *l = e->lockstep;

	replay_again(l, at, 0);
	if (!(l->insns[at].flags & (INSN_REP | INSN_REPNE)) || l->done != at)
		return 0;
	return l->reference->cpu->gpr[GPR_RCX] - e->cpu->gpr[GPR_RCX];
}

void lockstep_after(struct engine *e, bool stopped)
{
	struct lockstep *l = e->lockstep;
	struct cpu_state *c = e->cpu;
	int at = instruction_at(l, c->gpr[GPR_RIP]);
	struct difference d, other;
	bool fine;

	if (l->overlay.full) {
		e->stats->lockstep_skipped++;
		return;
	}
	e->stats->lockstep_blocks++;
	if (stopped && at >= 0) {
		fine = compare_at(e, (unsigned)at, elements_moved(e, (unsigned)at), &d);
	} else {
		/* The end of the block, or an event inside of it. */
		fine = compare_at(e, l->count, 0, &d);
		if (!fine && at >= 0 && compare_at(e, (unsigned)at, elements_moved(e, (unsigned)at), &other))
			fine = true;
	}
	if (!fine)
		stop(e, stopped && at >= 0 ? (unsigned)at : l->count, &d);
}
