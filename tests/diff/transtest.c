/*
 * The differential test of the translator: random programs (transgen.h) are run by two engines, the interpreter and the translator, each
 * with RAM of its own, at both privileges. Each program runs several times, with other registers and pointers each time; after every
 * run the whole CPU state and all memory that a program can reach are compared.
 *
 *   transtest [--count N] [--seed S] [--first N] [--length L] [--runs R] [--lockstep] [--keep-going]
 *
 * A difference is made small: gadgets are replaced by NOPs as long as the engines still differ. A program ends in HLT, in an
 * exception (its handler is HLT) or by its limit, and then counts for nothing.
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
#include "transgen.h"
#include "vmm/error.h"

#define RAM_SIZE 0x800000u
#define GPA_TABLES 0x1000u
#define GPA_SYSTEM 0x60000u
#define GPA_TABLE 0x70000u
#define GPA_CODE 0x80000u
#define GPA_DATA 0x100000u
#define GPA_LARGE 0x400000u
#define GPA_MMIO 0xe0000000u
#define DATA_PAGES 12u
#define TABLES_MAX_PAGES 80u

#define SYSTEM 0xffffffff90000000ull
#define SYSCALL_ENTRY (SYSTEM + 0x800)
#define HANDLERS (SYSTEM + 0x1000)
#define IDT (SYSTEM + 0x2000)
#define TSS (SYSTEM + 0x3000)
#define STACK_TOP (SYSTEM + 0x6000)

#define LIMIT 3000u /* instructions of a run until it ends or is resumed */
#define RESUMES 24u
#define ALARM_US 60
#define ALARMS_MAX 30000u

struct side {
	const char *name;
	struct vcpu_block *block;
	struct vm_shared *shared;
	struct engine *engine;
	uint8_t *ram;
	uint64_t mmio; /* what was accessed, hashed */
	enum vcpu_exit_kind kind;
};

struct tester {
	struct side sides[2]; /* interpreter, translator */
	unsigned table_pages;
	struct program program;
	struct start start;
	unsigned runs;
	volatile unsigned alarms; /* of this run */
};

static struct tester *current;

/* --- the engines' environment --- */

static uint64_t env_access(void *ctx, unsigned space, uint64_t addr, unsigned size, bool is_write, uint64_t value)
{
	struct side *side = ctx;

	side->mmio = (side->mmio ^ (addr + size * 3 + is_write * 5 + space * 7 + value * 11)) * 0x9e3779b97f4a7c15ull;
	return (addr + side->mmio) * 0xbf58476d1ce4e5b9ull;
}

static uint64_t env_exit(void *ctx, enum vcpu_exit_kind kind)
{
	(void)ctx;
	(void)kind;
	return 0;
}

/* HLT: the program has ended. */
static void env_wait(void *ctx, uint64_t deadline_ns)
{
	struct side *side = ctx;

	(void)deadline_ns;
	atomic_fetch_or(&side->block->events, VCPU_EVENT_EXIT);
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

/* An event that leads to nothing, so that translated code is left at its polls; and an end if the translator runs for ever. */
static void on_alarm(int sig)
{
	(void)sig;
	atomic_fetch_or(&current->sides[1].block->events,
		++current->alarms > ALARMS_MAX ? VCPU_EVENT_EXIT | VCPU_EVENT_TIMER : VCPU_EVENT_TIMER);
}

static void no_timer(void *ctx, uint64_t deadline_ns)
{
	(void)ctx;
	(void)deadline_ns;
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

static uint64_t *table_at(struct side *side, uint64_t entry)
{
	return (uint64_t *)(side->ram + (entry & 0x000ffffffffff000ull));
}

/* The entry of gva at the level, with the tables above it. */
static uint64_t *entry_of(struct tester *t, struct side *side, uint64_t gva, unsigned level)
{
	uint64_t *table = (uint64_t *)(side->ram + GPA_TABLES);

	for (unsigned l = 4; l > level; l--) {
		uint64_t *entry = &table[gva >> (12 + (l - 1) * 9) & 511];

		if (!*entry)
			*entry = (GPA_TABLES + t->table_pages++ * 4096ull) | PTE_P | PTE_W | PTE_U | PTE_A;
		table = table_at(side, *entry);
	}
	return &table[gva >> (12 + (level - 1) * 9) & 511];
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
		return (entry & 0xfff) | GPA_MMIO;
	default:
		return entry;
	}
}

static void map_range(struct tester *t, struct side *side, uint64_t gva, uint64_t gpa, unsigned pages, bool user)
{
	for (unsigned n = 0; n < pages; n++)
		*entry_of(t, side, gva + n * 4096ull, 1) = page_entry('w', user, gpa + n * 4096ull);
}

static void map_windows(struct tester *t, struct side *side)
{
	for (unsigned n = 0; n < window_count; n++) {
		const struct window *w = &windows[n];

		if (w->types[0] == 'L') {
			*entry_of(t, side, w->gva, 2) = page_entry('w', w->user, GPA_LARGE) | PTE_PS;
			continue;
		}
		for (unsigned page = 0; page < w->pages; page++)
			*entry_of(t, side, w->gva + page * 4096ull, 1) = page_entry(w->types[page], w->user,
				GPA_DATA + (n * 5 + page) % DATA_PAGES * 4096ull);
	}
}

static void fill_guest(struct tester *t, struct side *side, uint64_t seed)
{
	uint8_t *system = side->ram + GPA_SYSTEM;
	struct insn_source s = { 0 };
	uint64_t stack = STACK_TOP;

	t->table_pages = 1;
	memset(side->ram, 0, GPA_CODE);
	map_windows(t, side);
	map_range(t, side, USER_CODE, GPA_CODE, CODE_PAGES, true);
	map_range(t, side, KERNEL_CODE, GPA_CODE, CODE_PAGES, false);
	map_range(t, side, USER_TABLE, GPA_TABLE, 1, true);
	map_range(t, side, USER_CODE + NEAR_TABLE, GPA_TABLE, 1, true);
	map_range(t, side, KERNEL_CODE + NEAR_TABLE, GPA_TABLE, 1, false);
	map_range(t, side, SYSTEM, GPA_SYSTEM, 6, false);
	for (unsigned v = 0; v < 32; v++) {
		uint64_t target = HANDLERS + v * 16;
		uint64_t gate[2] = { (target & 0xffff) | 8ull << 16 | 0xee01ull << 32 | (target >> 16 & 0xffff) << 48,
			target >> 32 };

		memcpy(system + (IDT - SYSTEM) + v * 16, gate, 16);
		system[HANDLERS - SYSTEM + v * 16] = 0xf4;
	}
	memcpy(system + (SYSCALL_ENTRY - SYSTEM), "\x48\x0f\x07", 3); /* sysretq */
	memcpy(system + (TSS - SYSTEM) + 4, &stack, 8);
	memcpy(system + (TSS - SYSTEM) + 0x24, &stack, 8);
	memcpy(system + 8, &(uint64_t){ 0x00209b0000000000ull }, 8);
	memcpy(system + 16, &(uint64_t){ 0x00cf93000000ffffull }, 8);
	memcpy(system + 0x28, &(uint64_t){ 0x00cff3000000ffffull }, 8);
	memcpy(system + 0x30, &(uint64_t){ 0x0020fb0000000000ull }, 8);
	insn_source_seed(&s, seed, 7);
	for (unsigned k = 0; k < DATA_PAGES * 4096; k += 8) {
		uint64_t v = next_random(&s);

		memcpy(side->ram + GPA_DATA + k, &v, 8);
	}
}

static void set_segment(struct cpu_segment *s, uint16_t selector, uint32_t ar)
{
	memset(s, 0, sizeof(*s));
	s->selector = selector;
	s->ar = ar;
	s->limit = 0xffffffff;
}

static void set_machine_state(struct cpu_state *c, bool user)
{
	cpu_reset(c, true);
	c->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
	c->cr3 = GPA_TABLES;
	c->cr4 = CR4_PAE | CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_FSGSBASE;
	c->efer = EFER_LME | EFER_LMA | EFER_SCE | EFER_NXE;
	c->xcr0 = 7;
	for (unsigned s = 0; s < SEG_COUNT; s++)
		set_segment(&c->seg[s], user ? 0x2b : 0x10, user ? 0xc0f3 : 0xc093);
	set_segment(&c->seg[SEG_CS], user ? 0x33 : 8, user ? 0xa0fb : 0xa09b);
	set_segment(&c->tr, 0x40, 0x8b);
	c->tr.base = TSS;
	c->tr.limit = 0x67;
	c->gdtr = (struct cpu_table){ .base = SYSTEM, .limit = 0x7f };
	c->idtr = (struct cpu_table){ .base = IDT, .limit = 32 * 16 - 1 };
	c->star = 0x23ull << 48 | 8ull << 32;
	c->lstar = SYSCALL_ENTRY;
	c->sfmask = 0x40600;
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
	if (pick(s, 6) == 0)
		c->xsave[0] = 0x40 | (uint8_t)pick(s, 64);
	c->xsave[4] = (uint8_t)next_random(s);
	if (pick(s, 30) == 0)
		c->cr0 |= CR0_TS;
}

static void prepare(struct tester *t, struct side *side, struct insn_source source)
{
	struct cpu_state *c = &side->block->cpu;

	set_machine_state(c, t->program.user);
	memcpy(c->gpr, t->start.gpr, sizeof(t->start.gpr));
	c->gpr[GPR_RIP] = program_base(&t->program) + t->program.start;
	c->rflags = t->start.rflags;
	c->seg[SEG_FS].base = t->start.fs;
	c->seg[SEG_GS].base = t->start.gs;
	c->kernel_gs_base = t->start.fs;
	random_vectors(c, &source);
	memcpy(side->ram + GPA_TABLE, t->start.table, t->program.entries * 8);
	side->mmio = 1;
	atomic_store(&side->block->events, 0);
	engine_update_mode(side->engine);
}

/* --- comparing --- */

static const char *const gpr_name[18] = { "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11",
	"r12", "r13", "r14", "r15", "zero", "rip" };

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

static bool same(struct tester *t, bool print)
{
	static const struct {
		const char *name;
		uint32_t from, size;
	} ranges[] = { { "tables", GPA_TABLES, TABLES_MAX_PAGES * 4096 }, { "system", GPA_SYSTEM, 0x6000 },
		{ "table", GPA_TABLE, 4096 }, { "code", GPA_CODE, CODE_PAGES * 4096 }, { "data", GPA_DATA, DATA_PAGES * 4096 },
		{ "large", GPA_LARGE, 0x200000 } };
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
			printf("  %-6s interpreter %#llx translator %#llx\n", gpr_name[n], (unsigned long long)c->gpr[n],
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
	for (unsigned n = 0; n < sizeof(ranges) / sizeof(ranges[0]); n++)
		bad += compare_bytes(ranges[n].name, a->ram + ranges[n].from, b->ram + ranges[n].from, ranges[n].size, print);
	return bad == 0;
}

/*
 * Known and harmless: status flags that the faulting instruction, or one after it, would have written anyway may already be
 * others in the exception's frame (docs/translator.md).
 */
static void forgive_flags(struct tester *t)
{
	const uint32_t faults = 1u << EXC_DE | 1u << EXC_UD | 1u << EXC_NM | 1u << EXC_SS | 1u << EXC_GP | 1u << EXC_PF |
		1u << EXC_AC | 1u << EXC_XM | 1u << EXC_MF;
	struct cpu_state *c = &t->sides[0].block->cpu, *d = &t->sides[1].block->cpu;
	uint64_t vector = (c->gpr[GPR_RIP] - HANDLERS) / 16, *frame[2];

	if (vector >= 32 || !(faults >> vector & 1))
		return;
	for (unsigned n = 0; n < 2; n++)
		frame[n] = (uint64_t *)(t->sides[n].ram + GPA_SYSTEM + (STACK_TOP - SYSTEM) - 24);
	*frame[1] = (*frame[1] & ~FLAGS_STATUS) | (*frame[0] & FLAGS_STATUS);
	d->rflags = (d->rflags & ~FLAGS_STATUS) | (c->rflags & FLAGS_STATUS);
}

/* --- running --- */

static uint64_t seed_of_run(uint64_t seed, unsigned run)
{
	return seed * 977 + run + 1;
}

/* After an exception that both have taken alike: on with the gadget behind the one that faulted. False: that is none. */
static bool resume(struct tester *t)
{
	const struct program *p = &t->program;
	const uint64_t *frame = (uint64_t *)(t->sides[0].ram + GPA_SYSTEM + (STACK_TOP - SYSTEM) - 40);
	uint64_t at = frame[0] - program_base(p), rip = t->sides[0].block->cpu.gpr[GPR_RIP];
	unsigned n;

	if (rip < HANDLERS || rip >= HANDLERS + 32 * 16 || t->sides[0].kind != VCPU_EXIT_KICKED)
		return false;
	for (n = 0; n < p->count; n++)
		if (at - p->gadget[n].at < p->gadget[n].length)
			break;
	if (n + 1 >= p->count)
		return false;
	for (unsigned k = 0; k < 2; k++) {
		struct cpu_state *c = &t->sides[k].block->cpu;

		for (unsigned s = SEG_ES; s <= SEG_DS; s++)
			set_segment(&c->seg[s], p->user ? 0x2b : 0x10, p->user ? 0xc0f3 : 0xc093);
		set_segment(&c->seg[SEG_CS], p->user ? 0x33 : 8, p->user ? 0xa0fb : 0xa09b);
		c->gpr[GPR_RSP] = frame[3];
		c->gpr[GPR_RIP] = program_base(p) + p->gadget[n + 1].at;
		c->rflags = frame[2] & ~(FLAG_TF | FLAG_RF | FLAG_AC | FLAG_NT);
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
	printf("  in run %u at CPL %u: flags %#llx fs %#llx gs %#llx", run, t->program.user ? 3 : 0,
		(unsigned long long)t->start.rflags, (unsigned long long)t->start.fs, (unsigned long long)t->start.gs);
	for (unsigned n = 0; n < 16; n++)
		printf(" %s %#llx", gpr_name[n], (unsigned long long)t->start.gpr[n]);
	printf("\n");
	same(t, true);
}

/* True: the engines agree, or it did not end. *ended, *faults are counted up. */
static bool run_program(struct tester *t, uint64_t seed, uint64_t number, bool print, uint64_t *ended, uint64_t *faults)
{
	struct itimerval often = { .it_value.tv_usec = ALARM_US, .it_interval.tv_usec = ALARM_US }, none = { 0 };
	struct insn_source s = { 0 };

	for (unsigned n = 0; n < 2; n++) {
		fill_guest(t, &t->sides[n], number);
		program_place(&t->program, t->sides[n].ram + GPA_CODE);
		memset(t->sides[n].ram + GPA_LARGE, 0x5a, 0x200000);
		set_machine_state(&t->sides[n].block->cpu, t->program.user);
		engine_state_changed(t->sides[n].engine);
	}
	for (unsigned run = 0; run < t->runs; run++) {
		unsigned resumed = 0;

		insn_source_seed(&s, seed_of_run(seed, run), number);
		start_make(&t->start, &t->program, &s);
		for (unsigned n = 0; n < 2; n++)
			prepare(t, &t->sides[n], s);
		do {
			if (run_side(&t->sides[0], LIMIT) == VCPU_EXIT_NONE)
				return true;
			t->alarms = 0;
			setitimer(ITIMER_REAL, &often, NULL);
			run_side(&t->sides[1], 0);
			setitimer(ITIMER_REAL, &none, NULL);
			++*ended;
			*faults += t->sides[0].block->cpu.gpr[GPR_RIP] >= HANDLERS &&
				t->sides[0].block->cpu.gpr[GPR_RIP] < HANDLERS + 32 * 16;
			forgive_flags(t);
			if (!same(t, false)) {
				if (print)
					print_difference(t, run);
				return false;
			}
		} while (resumed++ < RESUMES && resume(t));
		if (t->sides[0].kind == VCPU_EXIT_SHUTDOWN)
			return true;
	}
	return true;
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
	struct error err;
	int fd = memfd_create("transtest", 0);

	side->name = kind == VCPU_ENGINE_INTERP ? "interpreter" : "translator";
	side->ram = fd < 0 || ftruncate(fd, RAM_SIZE) ? MAP_FAILED :
		mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	side->block = mmap(NULL, sizeof(*side->block), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	side->shared = calloc(1, sizeof(*side->shared) + 4096);
	if (side->ram == MAP_FAILED || side->block == MAP_FAILED || !side->shared)
		return false;
	side->block->magic = VCPU_BLOCK_MAGIC;
	side->block->engine = kind;
	side->block->ram.ranges[0].size = RAM_SIZE;
	side->block->ram.file_size = RAM_SIZE;
	side->shared->cpu_count = 1;
	if (cpu_model_create("common", 1, &side->block->model, &err))
		return false;
	set_machine_state(&side->block->cpu, false);
	env.ram_fd = fd;
	return engine_create(side->block, side->shared, side->ram, &env, &side->engine) == 0;
}

static bool test(struct tester *t, uint64_t seed, uint64_t number, unsigned length, uint64_t *ended, uint64_t *faults)
{
	struct insn_source s = { 0 };

	insn_source_seed(&s, seed, number);
	program_make(&t->program, &s, length > 2 ? 2 + pick(&s, length - 2) : length);
	if (run_program(t, seed, number, false, ended, faults))
		return true;
	/* If it depends on when events come, it may not be seen again. */
	same(t, true);
	shrink(t, seed, number);
	printf("program %llu of seed %llu:\n", (unsigned long long)number, (unsigned long long)seed);
	program_place(&t->program, t->sides[0].ram + GPA_CODE);
	program_print(&t->program, t->sides[0].ram + GPA_CODE);
	run_program(t, seed, number, true, ended, faults);
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
		!t->sides[1].engine->translator) {
		fprintf(stderr, "transtest: there is no translator here\n");
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
	const struct engine_stats *stats = t->sides[1].engine->stats;

	printf("%llu programs, seed %llu: %llu differ; %llu runs, %llu ended in an exception; %llu blocks and %llu regions translated, "
	       "entered %llu times, %llu operands in another slot, %llu given to the software TLB, which did not have the page %llu times\n",
		(unsigned long long)count, (unsigned long long)seed, (unsigned long long)failures, (unsigned long long)ended,
		(unsigned long long)faults, (unsigned long long)stats->blocks_translated,
		(unsigned long long)stats->regions_translated, (unsigned long long)stats->code_entries,
		(unsigned long long)stats->exits_miss, (unsigned long long)stats->soft_sites, (unsigned long long)stats->exits_soft);
	engine_destroy(t->sides[0].engine);
	engine_destroy(t->sides[1].engine);
	return failures ? 1 : 0;
}
