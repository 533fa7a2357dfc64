/*
 * The differential test of the translator for 32-bit code: random programs (transgen32.h) are run by two engines, the interpreter and the
 * translator, in compatibility mode, without paging, with 32-bit paging and with PAE paging, at both privileges; with FS and GS of
 * all kinds, and DS and ES that are not flat for a while. After every run the CPU state and memory are compared.
 *
 *   transtest32 [--count N] [--seed S] [--first N] [--length L] [--runs R] [--lockstep] [--keep-going]
 *
 * A difference is made small: gadgets become NOPs as long as the engines still differ. A program ends in HLT, in an exception (its handler
 * is HLT; then it goes on behind) or by its limit, and then counts for nothing.
 */
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>

#include "engine/native.h"
#include "engine/translate.h"
#include "transgen32.h"
#include "vmm/error.h"

#define TABLES 0x1000u
#define HANDLERS (SYSTEM32 + 0x1000)
#define IDT (SYSTEM32 + 0x2000)
#define TSS (SYSTEM32 + 0x3000)
#define STACK_TOP (SYSTEM32 + 0x6000)
#define LIMIT 3000u
#define RESUMES 24u
#define ALARM_US 60
#define ALARMS_MAX 30000u
#define ACCESSES_MAX 20000u /* to what is no RAM: without paging a repeated instruction may go on for 4 GiB */

struct side {
	struct vcpu_block *block;
	struct vm_shared *shared;
	struct engine *engine;
	uint8_t *ram;
	uint64_t mmio;
	unsigned accesses;
	enum vcpu_exit_kind kind;
};

struct tester {
	struct side sides[2]; /* interpreter, translator */
	unsigned table_pages;
	struct program32 program;
	struct start32 start;
	unsigned runs;
	volatile unsigned alarms;
};

static struct tester *current;

/* --- the engines' environment --- */

static uint64_t env_access(void *ctx, unsigned space, uint64_t addr, unsigned size, bool is_write, uint64_t value)
{
	struct side *side = ctx;

	if (++side->accesses > ACCESSES_MAX)
		atomic_fetch_or(&side->block->events, VCPU_EVENT_EXIT);
	/* Code may be fetched from there too, as often as an engine likes; and a frame has flags that are forgiven. */
	if (addr - (uint32_t)side->block->cpu.gpr[GPR_RSP] + 256 < 512)
		value = 0;
	if (is_write)
		side->mmio = (side->mmio ^ (addr + size * 3 + space * 7 + value * 11)) * 0x9e3779b97f4a7c15ull;
	return (addr + 1) * 0xbf58476d1ce4e5b9ull;
}

static uint64_t env_exit(void *ctx, enum vcpu_exit_kind kind)
{
	(void)ctx;
	(void)kind;
	return 0;
}

static void env_wait(void *ctx, uint64_t deadline_ns)
{
	struct side *side = ctx;

	(void)deadline_ns;
	atomic_fetch_or(&side->block->events, VCPU_EVENT_EXIT);
}

static void no_timer(void *ctx, uint64_t deadline_ns)
{
	(void)ctx;
	(void)deadline_ns;
}

static void on_fault(int sig, siginfo_t *info, void *context)
{
	for (unsigned n = 0; n < 2; n++) {
		struct engine *e = current->sides[n].engine;

		if (e && (translator_signal(e, sig, info, context) || native_signal(e, sig, info, context)))
			return;
	}
	signal(sig, SIG_DFL);
}

static void on_alarm(int sig)
{
	(void)sig;
	atomic_fetch_or(&current->sides[1].block->events,
		++current->alarms > ALARMS_MAX ? VCPU_EVENT_EXIT | VCPU_EVENT_TIMER : VCPU_EVENT_TIMER);
}

static void catch_signals(void)
{
	static const int faults[] = { SIGTRAP, SIGSEGV, SIGBUS, SIGFPE, SIGILL };
	static uint8_t stack_bytes[65536];
	struct sigaction action = { .sa_flags = SA_SIGINFO | SA_ONSTACK };
	stack_t stack = { .ss_sp = stack_bytes, .ss_size = sizeof(stack_bytes) };

	sigaltstack(&stack, NULL);
	sigfillset(&action.sa_mask);
	action.sa_sigaction = on_fault;
	for (unsigned n = 0; n < sizeof(faults) / sizeof(faults[0]); n++)
		sigaction(faults[n], &action, NULL);
	action.sa_flags = SA_ONSTACK | SA_RESTART;
	action.sa_handler = on_alarm;
	sigaction(SIGALRM, &action, NULL);
}

/* --- the guest --- */

static bool is_wide(enum paging32 paging)
{
	return paging != PAGING_32;
}

/* The entry of gva at the level; with the tables above it. */
static void map_page(struct tester *t, struct side *side, uint32_t gva, unsigned level, uint64_t value)
{
	bool wide = is_wide(t->program.paging);
	unsigned bits = wide ? 9 : 10, top = t->program.paging == PAGING_COMPAT ? 4 : wide ? 3 : 2;
	uint64_t table = TABLES;

	for (unsigned l = top;; l--) {
		uint64_t index = (uint64_t)gva >> (12 + (l - 1) * bits) & ((1u << bits) - 1);
		uint8_t *at = side->ram + table + index * (wide ? 8 : 4);
		uint64_t entry = 0;

		if (l == level) {
			memcpy(at, &value, wide ? 8 : 4);
			return;
		}
		memcpy(&entry, at, wide ? 8 : 4);
		if (!entry) {
			entry = TABLES + t->table_pages++ * 4096ull;
			entry |= top == 3 && l == 3 ? PTE_P : PTE_P | PTE_W | PTE_U | PTE_A;
			memcpy(at, &entry, wide ? 8 : 4);
		}
		table = entry & 0xfffff000;
	}
}

static uint64_t page_entry(char type, bool user, uint64_t gpa)
{
	uint64_t entry = gpa | PTE_P | PTE_W | PTE_A | PTE_D | (user ? PTE_U : 0);

	switch (type) {
	case 'r':
		return entry & ~PTE_W;
	case 'n':
		return entry & ~PTE_P;
	case 'd':
		return entry & ~PTE_D;
	case 'a':
		return entry & ~(PTE_A | PTE_D);
	case 'x':
		return entry ^ PTE_U;
	case 'm':
		return (entry & 0xfff) | MMIO32;
	default:
		return entry;
	}
}

static void map_range(struct tester *t, struct side *side, uint32_t gpa, unsigned pages, bool user)
{
	for (unsigned n = 0; n < pages; n++)
		map_page(t, side, gpa + n * 4096, 1, page_entry('w', user, gpa + n * 4096ull));
}

static void map_all(struct tester *t, struct side *side)
{
	map_range(t, side, SYSTEM32, 6, false);
	map_range(t, side, TABLE32, 1, true);
	map_range(t, side, CODE32, CODE_PAGES, true);
	map_range(t, side, DATA32, DATA32_PAGES, true);
	map_range(t, side, RAM32_SIZE - 0x1000, 1, true);
	for (unsigned n = 0; n < window32_count; n++) {
		const struct window32 *w = &windows32[n];
		uint64_t global = n & 1 ? PTE_G : 0;

		if (w->types[0] == 'L') {
			map_page(t, side, w->gva, 2, page_entry('w', w->user, LARGE32) | PTE_PS | global);
			continue;
		}
		for (unsigned page = 0; page < w->pages; page++)
			map_page(t, side, w->gva + page * 4096, 1,
				page_entry(w->types[page], w->user, DATA32 + (n * 5 + page) % DATA32_PAGES * 4096ull) | global);
	}
}

static void put_descriptor(uint8_t *gdt, unsigned selector, uint32_t base, uint32_t limit, unsigned access, unsigned flags)
{
	uint64_t d = (limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)access << 40 |
		(uint64_t)(limit >> 16 & 15) << 48 | (uint64_t)flags << 52 | (uint64_t)(base >> 24) << 56;

	memcpy(gdt + (selector & ~7u), &d, 8);
}

static void fill_system(struct side *side, bool long_mode)
{
	uint8_t *system = side->ram + SYSTEM32;
	uint64_t stack = STACK_TOP;

	put_descriptor(system, SEL_CODE, 0, 0xfffff, 0x9b, 0xc);
	put_descriptor(system, SEL_DATA, 0, 0xfffff, 0x93, 0xc);
	put_descriptor(system, SEL_USER_CODE, 0, 0xfffff, 0xfb, 0xc);
	put_descriptor(system, SEL_USER_DATA, 0, 0xfffff, 0xf3, 0xc);
	put_descriptor(system, SEL_BASED, BASE_BASED, 0xfffff, 0xf3, 0xc);
	put_descriptor(system, SEL_LIMITED, BASE_BASED, 0x2fff, 0xf3, 0x4);
	put_descriptor(system, SEL_READONLY, 0, 0xfffff, 0xf1, 0xc);
	put_descriptor(system, SEL_DOWN, 0, 0x100, 0xf7, 0xc);
	put_descriptor(system, SEL_NEGATIVE, BASE_NEGATIVE, 0xfffff, 0xf3, 0xc);
	put_descriptor(system, SEL_TSS, TSS, 0x67, 0x8b, 0);
	put_descriptor(system, SEL_CODE64, 0, 0xfffff, 0x9b, 0xa);
	for (unsigned v = 0; v < 32; v++) {
		uint64_t target = HANDLERS + v * 16;
		uint64_t gate[2] = { (target & 0xffff) | (uint64_t)(long_mode ? SEL_CODE64 : SEL_CODE) << 16 |
			(long_mode ? 0xee01ull : 0xee00ull) << 32 | (target >> 16 & 0xffff) << 48, 0 };

		memcpy(system + (IDT - SYSTEM32) + v * (long_mode ? 16 : 8), gate, long_mode ? 16 : 8);
		system[HANDLERS - SYSTEM32 + v * 16] = 0xf4;
	}
	if (long_mode) {
		memcpy(system + (TSS - SYSTEM32) + 4, &stack, 8);
		memcpy(system + (TSS - SYSTEM32) + 0x24, &stack, 8);
	} else {
		memcpy(system + (TSS - SYSTEM32) + 4, &(uint32_t[]){ STACK_TOP, SEL_DATA }, 8);
	}
}

static void fill_guest(struct tester *t, struct side *side, uint64_t seed)
{
	struct insn_source s = { 0 };

	t->table_pages = 1;
	memset(side->ram, 0, CODE32);
	fill_system(side, t->program.paging == PAGING_COMPAT);
	if (t->program.paging != PAGING_NONE)
		map_all(t, side);
	insn_source_seed(&s, seed, 7);
	for (unsigned k = 0; k < DATA32_PAGES * 4096; k += 8) {
		uint64_t v = next_random(&s);

		memcpy(side->ram + DATA32 + k, &v, 8);
	}
	program32_place(&t->program, side->ram);
}

static void set_segment(struct cpu_segment *s, uint16_t selector, uint32_t base, uint32_t limit, uint32_t ar)
{
	memset(s, 0, sizeof(*s));
	s->selector = selector;
	s->base = base;
	s->limit = limit;
	s->ar = ar;
}

static void set_based(struct cpu_segment *s, uint16_t selector)
{
	switch (selector) {
	case SEL_BASED:
		set_segment(s, selector, BASE_BASED, 0xffffffff, 0xc0f3);
		break;
	case SEL_NEGATIVE:
		set_segment(s, selector, BASE_NEGATIVE, 0xffffffff, 0xc0f3);
		break;
	case SEL_LIMITED:
		set_segment(s, selector, BASE_BASED, 0x2fff, 0x40f3);
		break;
	case SEL_READONLY:
		set_segment(s, selector, 0, 0xffffffff, 0xc0f1);
		break;
	case SEL_DOWN:
		set_segment(s, selector, 0, 0x100fff, 0xc0f7);
		break;
	case 0:
		set_segment(s, 0, 0, 0, SEG_AR_UNUSABLE);
		break;
	default:
		set_segment(s, selector, 0, 0xffffffff, selector == SEL_DATA ? 0xc093 : 0xc0f3);
	}
}

static void set_flat(struct cpu_state *c, bool user)
{
	for (unsigned s = SEG_ES; s <= SEG_DS; s++)
		set_segment(&c->seg[s], user ? SEL_USER_DATA : SEL_DATA, 0, 0xffffffff, user ? 0xc0f3 : 0xc093);
	set_segment(&c->seg[SEG_CS], user ? SEL_USER_CODE : SEL_CODE, 0, 0xffffffff, user ? 0xc0fb : 0xc09b);
}

static void set_machine_state(struct side *side, const struct program32 *p)
{
	static const uint64_t cr4[] = { [PAGING_COMPAT] = CR4_PAE | CR4_PGE, [PAGING_32] = CR4_PSE | CR4_PGE,
		[PAGING_PAE] = CR4_PAE | CR4_PGE };
	struct cpu_state *c = &side->block->cpu;

	cpu_reset(c, true);
	c->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | (p->paging == PAGING_NONE ? 0 : CR0_PG);
	c->cr3 = TABLES;
	c->cr4 = cr4[p->paging] | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
	c->efer = EFER_NXE | (p->paging == PAGING_COMPAT ? EFER_LME | EFER_LMA : 0);
	c->xcr0 = 7;
	memcpy(c->pdpte, side->ram + TABLES, sizeof(c->pdpte));
	set_flat(c, p->user);
	set_segment(&c->tr, SEL_TSS, TSS, 0x67, 0x8b);
	c->gdtr = (struct cpu_table){ .base = SYSTEM32, .limit = 0x7f };
	c->idtr = (struct cpu_table){ .base = IDT, .limit = 32 * (p->paging == PAGING_COMPAT ? 16 : 8) - 1 };
}

static void random_vectors(struct cpu_state *c, struct insn_source *s)
{
	uint32_t mxcsr = pick(s, 8) ? 0x1f80 : 0x1f80 & ~(pick(s, 64) << 7);

	for (unsigned k = 0; k < 256; k += 8) {
		uint64_t v = next_random(s), high = next_random(s);

		memcpy(c->xsave + XSAVE_XMM + k, &v, 8);
		memcpy(c->xsave + XSAVE_YMMH + k, &high, 8);
	}
	c->xsave[XSAVE_BV] = 7;
	c->xsave[0] = 0x7f;
	c->xsave[1] = 3;
	memcpy(c->xsave + XSAVE_MXCSR, &mxcsr, 4);
	/* x87: all masked or not, some registers in use, some numbers and some nonsense in them. */
	if (pick(s, 6) == 0)
		c->xsave[0] = 0x40 | (uint8_t)pick(s, 64);
	c->xsave[1] = (uint8_t)(3 | pick(s, 4) << 2);
	c->xsave[3] = (uint8_t)(pick(s, 8) << 3);
	c->xsave[4] = (uint8_t)next_random(s);
	for (unsigned n = 0; n < 8; n++) {
		uint64_t significand = next_random(s) | 1ull << 63;
		uint16_t exponent = (uint16_t)(pick(s, 4) ? 0x3fff + pick(s, 40) - 20 : next_random(s));

		memcpy(c->xsave + 32 + n * 16, &significand, 8);
		memcpy(c->xsave + 40 + n * 16, &exponent, 2);
	}
	if (pick(s, 30) == 0)
		c->cr0 |= CR0_TS;
}

static void prepare(struct tester *t, struct side *side, struct insn_source source)
{
	struct cpu_state *c = &side->block->cpu;
	uint64_t cr0 = c->cr0;

	set_machine_state(side, &t->program);
	/* The last run may have turned paging off. */
	if ((cr0 ^ c->cr0) & (CR0_PG | CR0_WP))
		engine_state_changed(side->engine);
	memcpy(c->gpr, t->start.gpr, sizeof(t->start.gpr));
	c->gpr[GPR_RIP] = CODE32 + t->program.start;
	c->rflags = t->start.rflags;
	set_based(&c->seg[SEG_FS], t->start.fs);
	set_based(&c->seg[SEG_GS], t->start.gs);
	random_vectors(c, &source);
	memcpy(side->ram + TABLE32, t->start.table, t->program.entries * 4);
	side->mmio = 1;
	side->accesses = 0;
	atomic_store(&side->block->events, 0);
	engine_update_mode(side->engine);
}

/* --- comparing --- */

static unsigned compare_bytes(const char *what, const uint8_t *a, const uint8_t *b, size_t size, bool print)
{
	unsigned different = 0;

	if (!memcmp(a, b, size))
		return 0;
	for (size_t k = 0; k < size; k++) {
		if (a[k] == b[k])
			continue;
		if (print && different < 24)
			printf("  %s[%#zx]: interpreter %02x translator %02x\n", what, k, a[k], b[k]);
		different++;
	}
	return different;
}

static bool same(struct tester *t, bool whole, bool print)
{
	static const char *const names[18] = { "eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi", "r8", "r9", "r10", "r11", "r12",
		"r13", "r14", "r15", "zero", "eip" };
	struct side *a = &t->sides[0], *b = &t->sides[1];
	struct cpu_state *c = &a->block->cpu, *d = &b->block->cpu;
	unsigned bad = a->kind != b->kind || a->mmio != b->mmio;

	native_materialize(c);
	native_materialize(d);
	if (print && bad)
		printf("  end %u, %u; MMIO %#llx, %#llx\n", a->kind, b->kind, (unsigned long long)a->mmio, (unsigned long long)b->mmio);
	for (unsigned n = 0; n < GPR_COUNT; n++) {
		if (c->gpr[n] == d->gpr[n])
			continue;
		bad++;
		if (print)
			printf("  %-6s interpreter %#llx translator %#llx\n", names[n], (unsigned long long)c->gpr[n],
				(unsigned long long)d->gpr[n]);
	}
	if (print && c->rflags != d->rflags)
		printf("  flags  interpreter %#llx translator %#llx\n", (unsigned long long)c->rflags, (unsigned long long)d->rflags);
	bad += compare_bytes("state", (uint8_t *)&c->rflags, (uint8_t *)&d->rflags,
		offsetof(struct cpu_state, xsave) - offsetof(struct cpu_state, rflags), print);
	/* But for MXCSR_MASK. */
	bad += compare_bytes("xsave", c->xsave, d->xsave, 28, print);
	bad += compare_bytes("vectors", c->xsave + 32, d->xsave + 32, 512 - 32, print);
	bad += compare_bytes("ymm high", c->xsave + XSAVE_YMMH, d->xsave + XSAVE_YMMH, 256, print);
	if (whole)
		bad += compare_bytes("RAM", a->ram, b->ram, RAM32_SIZE, print);
	else
		bad += compare_bytes("RAM", a->ram, b->ram, DATA32 + DATA32_PAGES * 4096, print);
	return bad == 0;
}

/* The frame of the exception that a side has stopped in; NULL: none to be found. EIP, CS, EFLAGS and, where it has them, ESP, SS. */
struct frame {
	struct side *side;
	uint32_t at;
	unsigned size; /* of an element */
};

/* Byte k of element n; NULL: not in RAM. */
static uint8_t *frame_byte(const struct frame *f, unsigned n, unsigned k)
{
	uint64_t gpa = mmu_translate(f->side->engine, f->at + n * f->size + k);

	return gpa < RAM32_SIZE ? f->side->ram + gpa : NULL;
}

static bool find_frame(struct tester *t, unsigned n, struct frame *f, unsigned *vector)
{
	const uint32_t with_error = 1u << EXC_DF | 1u << EXC_TS | 1u << EXC_NP | 1u << EXC_SS | 1u << EXC_GP | 1u << EXC_PF | 1u << EXC_AC;
	struct side *side = &t->sides[n];
	uint64_t rip = side->block->cpu.gpr[GPR_RIP];

	if (rip < HANDLERS || rip >= HANDLERS + 32 * 16 || side->kind != VCPU_EXIT_KICKED)
		return false;
	*vector = (unsigned)(rip - HANDLERS) / 16;
	f->size = t->program.paging == PAGING_COMPAT ? 8 : 4;
	f->side = side;
	f->at = (uint32_t)side->block->cpu.gpr[GPR_RSP] + (with_error >> *vector & 1) * f->size;
	return frame_byte(f, 0, 0) && frame_byte(f, 2, 3);
}

static uint32_t frame_get(const struct frame *f, unsigned n)
{
	uint32_t v = 0;

	for (unsigned k = 0; k < 4; k++)
		v |= (uint32_t)*frame_byte(f, n, k) << k * 8;
	return v;
}

/* Known and harmless: status flags that the faulting instruction would have written may already be others (docs/translator.md). */
static void forgive_flags(struct tester *t)
{
	const uint32_t faults = 1u << EXC_DE | 1u << EXC_UD | 1u << EXC_NM | 1u << EXC_SS | 1u << EXC_GP | 1u << EXC_PF |
		1u << EXC_AC | 1u << EXC_XM | 1u << EXC_NP | 1u << EXC_MF;
	struct cpu_state *c = &t->sides[0].block->cpu, *d = &t->sides[1].block->cpu;
	struct frame f[2];
	unsigned vector;
	uint32_t flags;

	vector = (unsigned)(c->gpr[GPR_RIP] - HANDLERS) / 16;
	if (t->sides[0].kind != VCPU_EXIT_SHUTDOWN && (vector >= 32 || !(faults >> vector & 1)))
		return;
	d->rflags = (d->rflags & ~FLAGS_STATUS) | (c->rflags & FLAGS_STATUS);
	/* Not on a stack that is no RAM. */
	if (!find_frame(t, 0, &f[0], &vector) || !find_frame(t, 1, &f[1], &vector))
		return;
	flags = (frame_get(&f[1], 2) & ~(uint32_t)FLAGS_STATUS) | (frame_get(&f[0], 2) & (uint32_t)FLAGS_STATUS);
	for (unsigned k = 0; k < 4; k++)
		*frame_byte(&f[1], 2, k) = (uint8_t)(flags >> k * 8);
}

/* --- running --- */

static bool resume(struct tester *t)
{
	const struct program32 *p = &t->program;
	struct frame f;
	unsigned vector, n;
	uint32_t at, stack, flags;

	if (!find_frame(t, 0, &f, &vector))
		return false;
	at = frame_get(&f, 0) - CODE32;
	for (n = 0; n < p->count; n++)
		if (at - p->gadget[n].at < p->gadget[n].length)
			break;
	if (n + 1 >= p->count)
		return false;
	stack = f.size == 8 || p->user ? frame_get(&f, 3) : (uint32_t)t->sides[0].block->cpu.gpr[GPR_RSP] + 16;
	flags = frame_get(&f, 2) & ~(uint32_t)(FLAG_TF | FLAG_RF | FLAG_AC | FLAG_NT);
	for (unsigned k = 0; k < 2; k++) {
		struct cpu_state *c = &t->sides[k].block->cpu;

		set_flat(c, p->user);
		c->gpr[GPR_RSP] = stack;
		c->gpr[GPR_RIP] = CODE32 + p->gadget[n + 1].at;
		c->rflags = flags;
		c->activity = CPU_RUNNING;
		atomic_store(&t->sides[k].block->events, 0);
		engine_update_mode(t->sides[k].engine);
	}
	return true;
}

static enum vcpu_exit_kind run_side(struct side *side, uint64_t limit)
{
	side->kind = engine_run(side->engine, limit);
	return side->kind;
}

static void print_difference(struct tester *t, unsigned run)
{
	static const char *const paging[] = { "compatibility mode", "no paging", "32-bit paging", "PAE paging" };

	printf("  %s, run %u at CPL %u: flags %#llx fs %#x gs %#x", paging[t->program.paging], run, t->program.user ? 3 : 0,
		(unsigned long long)t->start.rflags, t->start.fs, t->start.gs);
	for (unsigned n = 0; n < 8; n++)
		printf(" r%u %#llx", n, (unsigned long long)t->start.gpr[n]);
	printf("\n");
	same(t, true, true);
}

static void make_equal(struct tester *t)
{
	memcpy(t->sides[1].ram, t->sides[0].ram, RAM32_SIZE);
}

/* True: the engines agree, or it did not end. */
static bool run_program(struct tester *t, uint64_t seed, uint64_t number, bool print, uint64_t *ended, uint64_t *faults)
{
	struct itimerval often = { .it_value.tv_usec = ALARM_US, .it_interval.tv_usec = ALARM_US }, none = { 0 };
	struct insn_source s = { 0 };
	unsigned run;

	for (unsigned n = 0; n < 2; n++) {
		fill_guest(t, &t->sides[n], number);
		set_machine_state(&t->sides[n], &t->program);
		engine_state_changed(t->sides[n].engine);
	}
	for (run = 0; run < t->runs; run++) {
		unsigned resumed = 0;

		insn_source_seed(&s, seed * 977 + run + 1, number);
		start32_make(&t->start, &t->program, &s);
		for (unsigned n = 0; n < 2; n++)
			prepare(t, &t->sides[n], s);
		do {
			if (run_side(&t->sides[0], LIMIT) == VCPU_EXIT_NONE || t->sides[0].accesses > ACCESSES_MAX) {
				make_equal(t);
				return true;
			}
			t->alarms = 0;
			setitimer(ITIMER_REAL, &often, NULL);
			run_side(&t->sides[1], 0);
			setitimer(ITIMER_REAL, &none, NULL);
			++*ended;
			*faults += t->sides[0].block->cpu.gpr[GPR_RIP] >= HANDLERS &&
				t->sides[0].block->cpu.gpr[GPR_RIP] < HANDLERS + 32 * 16;
			forgive_flags(t);
			if (!same(t, false, false))
				goto differ;
		} while (resumed++ < RESUMES && resume(t));
		if (t->sides[0].kind == VCPU_EXIT_SHUTDOWN)
			break;
	}
	if (same(t, true, false))
		return true;
differ:
	if (print)
		print_difference(t, run);
	make_equal(t);
	return false;
}

static void shrink(struct tester *t, uint64_t seed, uint64_t number)
{
	uint64_t ended = 0, faults = 0;

	for (unsigned round = 0; round < 2; round++) {
		for (unsigned n = t->program.count - 1; n-- > 0;) {
			if (t->program.gadget[n].dropped)
				continue;
			t->program.gadget[n].dropped = true;
			if (run_program(t, seed, number, false, &ended, &faults))
				t->program.gadget[n].dropped = false;
		}
	}
}

static bool create_side(struct side *side, enum vcpu_engine kind)
{
	struct engine_env env = { env_access, env_exit, env_wait, no_timer, side, -1 };
	struct program32 p = { .paging = PAGING_NONE };
	struct error err;
	int fd = memfd_create("transtest32", 0);

	side->ram = fd < 0 || ftruncate(fd, RAM32_SIZE) ? MAP_FAILED :
		mmap(NULL, RAM32_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	side->block = mmap(NULL, sizeof(*side->block), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	side->shared = calloc(1, sizeof(*side->shared) + 4096);
	if (side->ram == MAP_FAILED || side->block == MAP_FAILED || !side->shared)
		return false;
	side->block->magic = VCPU_BLOCK_MAGIC;
	side->block->engine = kind;
	side->block->ram.ranges[0].size = RAM32_SIZE;
	side->block->ram.file_size = RAM32_SIZE;
	side->shared->cpu_count = 1;
	if (cpu_model_create("common", 1, &side->block->model, &err))
		return false;
	set_machine_state(side, &p);
	env.ram_fd = fd;
	return engine_create(side->block, side->shared, side->ram, &env, &side->engine) == 0;
}

static bool test(struct tester *t, uint64_t seed, uint64_t number, unsigned length, uint64_t *ended, uint64_t *faults)
{
	struct insn_source s = { 0 };

	insn_source_seed(&s, seed, number);
	program32_make(&t->program, &s, length > 2 ? 2 + pick(&s, length - 2) : length);
	if (run_program(t, seed, number, false, ended, faults))
		return true;
	shrink(t, seed, number);
	printf("program %llu of seed %llu:\n", (unsigned long long)number, (unsigned long long)seed);
	program32_place(&t->program, t->sides[0].ram);
	program32_print(&t->program, t->sides[0].ram);
	if (run_program(t, seed, number, true, ended, faults))
		printf("  not seen again: it depends on when events come\n");
	return false;
}

int main(int argc, char **argv)
{
	static const struct option options[] = { { "count", 1, NULL, 'c' }, { "seed", 1, NULL, 's' }, { "first", 1, NULL, 'f' },
		{ "length", 1, NULL, 'l' }, { "runs", 1, NULL, 'r' }, { "lockstep", 0, NULL, 'k' }, { "keep-going", 0, NULL, 'g' }, { NULL, 0, NULL, 0 } };
	struct tester *t = calloc(1, sizeof(*t));
	uint64_t count = 2000, seed = 1, first = 0, failures = 0, ended = 0, faults = 0;
	unsigned length = 24;
	enum vcpu_engine kind = VCPU_ENGINE_TRANSLATE;
	bool keep_going = false;
	const struct engine_stats *stats;

	if (!t)
		return 77;
	t->runs = 6;
	for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
		if (c == 'c')
			count = strtoull(optarg, NULL, 0);
		else if (c == 's')
			seed = strtoull(optarg, NULL, 0);
		else if (c == 'f')
			first = strtoull(optarg, NULL, 0);
		else if (c == 'l')
			length = (unsigned)atoi(optarg) > GADGETS_MAX ? GADGETS_MAX : (unsigned)atoi(optarg);
		else if (c == 'r')
			t->runs = (unsigned)atoi(optarg);
		else if (c == 'k')
			kind = VCPU_ENGINE_LOCKSTEP;
		else if (c == 'g')
			keep_going = true;
		else
			return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	current = t;
	catch_signals();
	if (!create_side(&t->sides[0], VCPU_ENGINE_INTERP) || !create_side(&t->sides[1], kind) ||
		!t->sides[1].engine->translator || !t->sides[1].engine->translator->has_gs) {
		fprintf(stderr, "transtest32: there is no translator of 32-bit code here\n");
		return 77;
	}
	t->sides[1].engine->translator->heat = 1;
	t->sides[1].engine->translator->hot_after = 2;
	for (uint64_t n = first; n < first + count; n++) {
		/* Every other program with each operand that faults given to the software TLB. */
		t->sides[1].engine->translator->soft_after = n % 2 ? 1 : ~0u >> 1;
		if (test(t, seed, n, length < 2 ? 2 : length, &ended, &faults))
			continue;
		if (++failures >= 200 || !keep_going)
			break;
	}
	stats = t->sides[1].engine->stats;
	printf("%llu programs, seed %llu: %llu differ; %llu runs, %llu ended in an exception; %llu blocks translated, entered %llu times, "
		"left %llu times for the interpreter, %llu times more for MMIO and the like\n",
		(unsigned long long)count, (unsigned long long)seed, (unsigned long long)failures, (unsigned long long)ended,
		(unsigned long long)faults, (unsigned long long)stats->blocks_translated, (unsigned long long)stats->code_entries,
		(unsigned long long)stats->exits_interp, (unsigned long long)stats->exits_soft);
	engine_destroy(t->sides[0].engine);
	engine_destroy(t->sides[1].engine);
	return failures ? 1 : 0;
}
