/*
 * The differential test of the translator for 64-bit code: random programs (transgen.h) at both privileges, by two engines (engines.h).
 *
 *   transtest [--count N] [--seed S] [--first N] [--length L] [--runs R] [--lockstep] [--keep-going]
 */
#include <stdio.h>
#include <string.h>

#include "engine/translate.h"
#include "engines.h"
#include "machine.h"
#include "transgen.h"

#define RAM_SIZE 0x800000u
#define GPA_TABLES 0x1000u
#define GPA_SYSTEM 0x60000u
#define GPA_TABLE 0x70000u
#define GPA_CODE 0x80000u
#define GPA_DATA 0x100000u
#define GPA_LARGE 0x400000u
#define LARGE_SIZE 0x200000u
#define GPA_MMIO 0xe0000000u
#define DATA_PAGES 12u
#define TABLES_MAX_PAGES 80u

#define SYSTEM 0xffffffff90000000ull
#define SYSCALL_ENTRY (SYSTEM + 0x800)
#define HANDLERS (SYSTEM + 0x1000)
#define IDT (SYSTEM + 0x2000)
#define TSS (SYSTEM + 0x3000)
#define STACK_TOP (SYSTEM + 0x6000)

struct test64 {
	struct tester tester;
	struct program program;
	struct start start;
};

static struct test64 *test64(struct tester *t)
{
	return (struct test64 *)t;
}

static uint64_t access_mmio(void *ctx, unsigned space, uint64_t addr, unsigned size, bool is_write, uint64_t value)
{
	struct side *side = ctx;

	side->mmio = (side->mmio ^ (addr + size * 3 + is_write * 5 + space * 7 + value * 11)) * 0x9e3779b97f4a7c15ull;
	return (addr + side->mmio) * 0xbf58476d1ce4e5b9ull;
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

static void map_range(struct tester *t, struct side *side, uint64_t gva, uint64_t gpa, unsigned pages, bool user)
{
	for (unsigned n = 0; n < pages; n++)
		*entry_of(t, side, gva + n * 4096ull, 1) = page_entry('w', user, gpa + n * 4096ull, GPA_MMIO);
}

static void map_windows(struct tester *t, struct side *side)
{
	for (unsigned n = 0; n < window_count; n++) {
		const struct window *w = &windows[n];

		if (w->types[0] == 'L') {
			*entry_of(t, side, w->gva, 2) = page_entry('w', w->user, GPA_LARGE, GPA_MMIO) | PTE_PS;
			continue;
		}
		for (unsigned page = 0; page < w->pages; page++)
			*entry_of(t, side, w->gva + page * 4096ull, 1) = page_entry(w->types[page], w->user,
				GPA_DATA + (n * 5 + page) % DATA_PAGES * 4096ull, GPA_MMIO);
	}
}

static void fill_guest(struct tester *t, struct side *side, uint64_t seed)
{
	uint8_t *system = side->ram + GPA_SYSTEM;
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
	if (seed & 1) /* push $0x2b; push %rsp; push %r11; push $0x33; push %rcx; iretq */
		memcpy(system + (SYSCALL_ENTRY - SYSTEM), "\x6a\x2b\x54\x41\x53\x6a\x33\x51\x48\xcf", 10);
	else
		memcpy(system + (SYSCALL_ENTRY - SYSTEM), "\x48\x0f\x07", 3); /* sysretq */
	memcpy(system + (TSS - SYSTEM) + 4, &stack, 8);
	memcpy(system + (TSS - SYSTEM) + 0x24, &stack, 8);
	memcpy(system + 8, &(uint64_t){ 0x00209b0000000000ull }, 8);
	memcpy(system + 16, &(uint64_t){ 0x00cf93000000ffffull }, 8);
	memcpy(system + 0x28, &(uint64_t){ 0x00cff3000000ffffull }, 8);
	memcpy(system + 0x30, &(uint64_t){ 0x0020fb0000000000ull }, 8);
	fill_random(side->ram + GPA_DATA, DATA_PAGES * 4096, seed);
}

/* But for FS and GS, whose bases a program may have set. */
static void set_flat(struct cpu_state *c, bool user)
{
	for (unsigned s = SEG_ES; s <= SEG_DS; s++)
		set_segment(&c->seg[s], user ? 0x2b : 0x10, 0, ~0u, user ? 0xc0f3 : 0xc093);
	set_segment(&c->seg[SEG_CS], user ? 0x33 : 8, 0, ~0u, user ? 0xa0fb : 0xa09b);
}

static void set_machine_state(struct cpu_state *c, bool user)
{
	machine_reset(c, GPA_TABLES, SYSTEM);
	c->cr4 |= CR4_PGE | CR4_FSGSBASE;
	c->efer |= EFER_SCE;
	set_flat(c, user);
	set_segment(&c->seg[SEG_FS], user ? 0x2b : 0x10, 0, ~0u, user ? 0xc0f3 : 0xc093);
	set_segment(&c->seg[SEG_GS], user ? 0x2b : 0x10, 0, ~0u, user ? 0xc0f3 : 0xc093);
	c->star = 0x23ull << 48 | 8ull << 32;
	c->lstar = SYSCALL_ENTRY;
	c->sfmask = 0x40600;
}

static void first_state(struct side *side)
{
	set_machine_state(&side->block->cpu, false);
}

static void begin(struct tester *t, uint64_t number)
{
	struct program *p = &test64(t)->program;

	for (unsigned n = 0; n < 2; n++) {
		struct side *side = &t->sides[n];

		fill_guest(t, side, number);
		program_place(p, side->ram + GPA_CODE);
		memset(side->ram + GPA_LARGE, 0x5a, LARGE_SIZE);
		set_machine_state(&side->block->cpu, p->user);
		engine_state_changed(side->engine);
	}
}

static void prepare_side(struct test64 *x, struct side *side, struct insn_source source)
{
	struct cpu_state *c = &side->block->cpu;

	set_machine_state(c, x->program.user);
	memcpy(c->gpr, x->start.gpr, sizeof(x->start.gpr));
	c->gpr[GPR_RIP] = program_base(&x->program) + x->program.start;
	c->rflags = x->start.rflags;
	c->seg[SEG_FS].base = x->start.fs;
	c->seg[SEG_GS].base = x->start.gs;
	c->kernel_gs_base = x->start.fs;
	random_vectors(c, &source, false);
	memcpy(side->ram + GPA_TABLE, x->start.table, x->program.entries * 8);
	side->mmio = 1;
	atomic_store(&side->block->events, 0);
	engine_update_mode(side->engine);
}

static void prepare(struct tester *t, struct insn_source *s)
{
	struct test64 *x = test64(t);

	start_make(&x->start, &x->program, s);
	for (unsigned n = 0; n < 2; n++)
		prepare_side(x, &t->sides[n], *s);
}

/* --- comparing, and going on --- */

static const char *const gpr_names[18] = { "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11",
	"r12", "r13", "r14", "r15", "zero", "rip" };

static bool same_memory(struct tester *t, bool whole, bool print)
{
	static const struct {
		const char *name;
		uint32_t from, size;
	} ranges[] = { { "tables", GPA_TABLES, TABLES_MAX_PAGES * 4096 }, { "system", GPA_SYSTEM, 0x6000 },
		{ "table", GPA_TABLE, 4096 }, { "code", GPA_CODE, CODE_PAGES * 4096 }, { "data", GPA_DATA, DATA_PAGES * 4096 },
		{ "large", GPA_LARGE, LARGE_SIZE } };
	unsigned bad = 0;

	(void)whole;
	for (unsigned n = 0; n < sizeof(ranges) / sizeof(ranges[0]); n++)
		bad += compare_bytes(ranges[n].name, t->sides[0].ram + ranges[n].from, t->sides[1].ram + ranges[n].from,
			ranges[n].size, print);
	return bad == 0;
}

/*
 * Known and harmless: status flags that the faulting instruction, or one after it, would have written anyway may already be
 * others in the exception's frame (docs/translator.md).
 */
static void forgive_flags(struct tester *t)
{
	const uint32_t faults = 1u << EXC_DE | 1u << EXC_UD | 1u << EXC_NM | 1u << EXC_NP | 1u << EXC_SS | 1u << EXC_GP | 1u << EXC_PF |
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

static bool resume(struct tester *t)
{
	const struct program *p = &test64(t)->program;
	const uint64_t *frame = (uint64_t *)(t->sides[0].ram + GPA_SYSTEM + (STACK_TOP - SYSTEM) - 40);
	uint64_t at = frame[0] - program_base(p), rip = t->sides[0].block->cpu.gpr[GPR_RIP], rsp = frame[3], flags = frame[2];
	unsigned n;

	if (rip < HANDLERS || rip >= HANDLERS + 32 * 16 || t->sides[0].kind != VCPU_EXIT_KICKED)
		return false;
	for (n = 0; n < p->count; n++)
		if (at - p->gadget[n].at < p->gadget[n].length)
			break;
	if (n + 1 >= p->count)
		return false;
	for (unsigned k = 0; k < 2; k++) {
		set_flat(&t->sides[k].block->cpu, p->user);
		side_resume(&t->sides[k], program_base(p) + p->gadget[n + 1].at, rsp, flags);
	}
	return true;
}

static void describe(struct tester *t)
{
	const struct test64 *x = test64(t);

	printf("CPL %u: flags %#llx fs %#llx gs %#llx", x->program.user ? 3 : 0, (unsigned long long)x->start.rflags,
		(unsigned long long)x->start.fs, (unsigned long long)x->start.gs);
	for (unsigned n = 0; n < 16; n++)
		printf(" %s %#llx", gpr_names[n], (unsigned long long)x->start.gpr[n]);
	printf("\n");
}

static void make(struct tester *t, struct insn_source *s, unsigned count)
{
	program_make(&test64(t)->program, s, count);
}

static struct gadget *row(struct tester *t, unsigned *count)
{
	*count = test64(t)->program.count;
	return test64(t)->program.gadget;
}

static void print(struct tester *t)
{
	program_place(&test64(t)->program, t->sides[0].ram + GPA_CODE);
	program_print(&test64(t)->program, t->sides[0].ram + GPA_CODE);
}

static bool possible(const struct engine *e)
{
	return e->translator != NULL;
}

int main(int argc, char **argv)
{
	static const struct subject subject = { .name = "transtest", .tester_size = sizeof(struct test64), .ram_size = RAM_SIZE,
		.handlers = HANDLERS, .gpr_names = gpr_names, .access = access_mmio, .possible = possible, .first_state = first_state,
		.make = make, .row = row, .print = print, .begin = begin, .prepare = prepare, .forgive = forgive_flags,
		.same_memory = same_memory, .resume = resume, .describe = describe };

	return engines_main(&subject, argc, argv);
}
