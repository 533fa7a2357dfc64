/*
 * The differential test of the translator for 32-bit code: random programs (transgen32.h) by two engines (engines.h), in compatibility
 * mode, without paging, with 32-bit paging and with PAE paging, at both privileges; with FS and GS of all kinds, and DS and ES that are
 * not flat for a while.
 *
 *   transtest32 [--count N] [--seed S] [--first N] [--length L] [--runs R] [--lockstep] [--keep-going]
 */
#include <stdio.h>
#include <string.h>

#include "engine/translate.h"
#include "engines.h"
#include "machine.h"
#include "transgen32.h"

#define TABLES 0x1000u
#define HANDLERS (SYSTEM32 + 0x1000)
#define IDT (SYSTEM32 + 0x2000)
#define TSS (SYSTEM32 + 0x3000)
#define STACK_TOP (SYSTEM32 + 0x6000)
#define ACCESSES_MAX 20000u /* to what is no RAM: without paging a repeated instruction may go on for 4 GiB */

struct test32 {
	struct tester tester;
	struct program32 program;
	struct start32 start;
};

static struct test32 *test32(struct tester *t)
{
	return (struct test32 *)t;
}

static uint64_t access_mmio(void *ctx, unsigned space, uint64_t addr, unsigned size, bool is_write, uint64_t value)
{
	struct side *side = ctx;

	if (++side->accesses > ACCESSES_MAX)
		atomic_fetch_or(&side->block->events, VCPU_EVENT_EXIT);
	/* Code may be fetched from there too, as often as an engine likes; and a frame has flags that are forgiven. */
	if ((uint32_t)(addr - side->block->cpu.gpr[GPR_RSP] + 256) < 512)
		value = 0;
	if (is_write)
		side->mmio = (side->mmio ^ (addr + size * 3 + space * 7 + value * 11)) * 0x9e3779b97f4a7c15ull;
	return (addr + 1) * 0xbf58476d1ce4e5b9ull;
}

/* --- the guest --- */

static bool is_wide(enum paging32 paging)
{
	return paging != PAGING_32;
}

/* The entry of gva at the level; with the tables above it. */
static void map_page(struct tester *t, struct side *side, uint32_t gva, unsigned level, uint64_t value)
{
	bool wide = is_wide(test32(t)->program.paging);
	unsigned bits = wide ? 9 : 10, top = test32(t)->program.paging == PAGING_COMPAT ? 4 : wide ? 3 : 2;
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

static void map_range(struct tester *t, struct side *side, uint32_t gpa, unsigned pages, bool user)
{
	for (unsigned n = 0; n < pages; n++)
		map_page(t, side, gpa + n * 4096, 1, page_entry('w', user, gpa + n * 4096ull, MMIO32));
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
			map_page(t, side, w->gva, 2, page_entry('w', w->user, LARGE32, MMIO32) | PTE_PS | global);
			continue;
		}
		for (unsigned page = 0; page < w->pages; page++)
			map_page(t, side, w->gva + page * 4096, 1,
				page_entry(w->types[page], w->user, DATA32 + (n * 5 + page) % DATA32_PAGES * 4096ull, MMIO32) | global);
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
	t->table_pages = 1;
	memset(side->ram, 0, CODE32);
	fill_system(side, test32(t)->program.paging == PAGING_COMPAT);
	if (test32(t)->program.paging != PAGING_NONE)
		map_all(t, side);
	fill_random(side->ram + DATA32, DATA32_PAGES * 4096, seed);
	program32_place(&test32(t)->program, side->ram);
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

	machine_reset(c, TABLES, SYSTEM32);
	if (p->paging == PAGING_NONE)
		c->cr0 &= ~CR0_PG;
	c->cr4 = (c->cr4 & ~CR4_PAE) | cr4[p->paging];
	memcpy(c->pdpte, side->ram + TABLES, sizeof(c->pdpte));
	set_flat(c, p->user);
	if (p->paging != PAGING_COMPAT) {
		c->efer = EFER_NXE;
		c->idtr.limit = 32 * 8 - 1;
	}
}

static void first_state(struct side *side)
{
	const struct program32 none = { .paging = PAGING_NONE };

	set_machine_state(side, &none);
}

static void begin(struct tester *t, uint64_t number)
{
	for (unsigned n = 0; n < 2; n++) {
		fill_guest(t, &t->sides[n], number);
		set_machine_state(&t->sides[n], &test32(t)->program);
		engine_state_changed(t->sides[n].engine);
	}
}

static void prepare_side(struct test32 *x, struct side *side, struct insn_source source)
{
	struct cpu_state *c = &side->block->cpu;
	uint64_t cr0 = c->cr0;

	set_machine_state(side, &x->program);
	/* The last run may have turned paging off. */
	if ((cr0 ^ c->cr0) & (CR0_PG | CR0_WP))
		engine_state_changed(side->engine);
	memcpy(c->gpr, x->start.gpr, sizeof(x->start.gpr));
	c->gpr[GPR_RIP] = CODE32 + x->program.start;
	c->rflags = x->start.rflags;
	set_based(&c->seg[SEG_FS], x->start.fs);
	set_based(&c->seg[SEG_GS], x->start.gs);
	random_vectors(c, &source, true);
	memcpy(side->ram + TABLE32, x->start.table, x->program.entries * 4);
	side->mmio = 1;
	side->accesses = 0;
	atomic_store(&side->block->events, 0);
	engine_update_mode(side->engine);
}

static void prepare(struct tester *t, struct insn_source *s)
{
	struct test32 *x = test32(t);

	start32_make(&x->start, &x->program, s);
	for (unsigned n = 0; n < 2; n++)
		prepare_side(x, &t->sides[n], *s);
}

/* --- comparing, and going on --- */

static bool same_memory(struct tester *t, bool whole, bool print)
{
	return !compare_bytes("RAM", t->sides[0].ram, t->sides[1].ram, whole ? RAM32_SIZE : DATA32 + DATA32_PAGES * 4096, print);
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
	f->size = test32(t)->program.paging == PAGING_COMPAT ? 8 : 4;
	f->side = side;
	f->at = (uint32_t)side->block->cpu.gpr[GPR_RSP] + (with_error >> *vector & 1) * f->size;
	return frame_byte(f, 0, 0) && frame_byte(f, 2, 3);
}

/* What is left of one that could not be pushed to its end, so that the machine has shut down: EFLAGS comes first. */
static bool find_rest(struct tester *t, unsigned n, struct frame *f)
{
	struct side *side = &t->sides[n];

	if (side->kind != VCPU_EXIT_SHUTDOWN || test32(t)->program.paging == PAGING_COMPAT)
		return false;
	*f = (struct frame){ .side = side, .at = (uint32_t)side->block->cpu.gpr[GPR_RSP] - 12, .size = 4 };
	return frame_byte(f, 2, 0) && frame_byte(f, 2, 3);
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
	for (unsigned n = 0; n < 2; n++)
		if (!find_frame(t, n, &f[n], &vector) && !find_rest(t, n, &f[n]))
			return;
	flags = (frame_get(&f[1], 2) & ~(uint32_t)FLAGS_STATUS) | (frame_get(&f[0], 2) & (uint32_t)FLAGS_STATUS);
	for (unsigned k = 0; k < 4; k++)
		*frame_byte(&f[1], 2, k) = (uint8_t)(flags >> k * 8);
}

static bool resume(struct tester *t)
{
	const struct program32 *p = &test32(t)->program;
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
	flags = frame_get(&f, 2);
	for (unsigned k = 0; k < 2; k++) {
		set_flat(&t->sides[k].block->cpu, p->user);
		side_resume(&t->sides[k], CODE32 + p->gadget[n + 1].at, stack, flags);
	}
	return true;
}

static void describe(struct tester *t)
{
	static const char *const paging[] = { "compatibility mode", "no paging", "32-bit paging", "PAE paging" };
	const struct test32 *x = test32(t);

	printf("%s, CPL %u: flags %#llx fs %#x gs %#x", paging[x->program.paging], x->program.user ? 3 : 0,
		(unsigned long long)x->start.rflags, x->start.fs, x->start.gs);
	for (unsigned n = 0; n < 8; n++)
		printf(" r%u %#llx", n, (unsigned long long)x->start.gpr[n]);
	printf("\n");
}

static void make(struct tester *t, struct insn_source *s, unsigned count)
{
	program32_make(&test32(t)->program, s, count);
}

static struct gadget *row(struct tester *t, unsigned *count)
{
	*count = test32(t)->program.count;
	return test32(t)->program.gadget;
}

static void print(struct tester *t)
{
	program32_place(&test32(t)->program, t->sides[0].ram);
	program32_print(&test32(t)->program, t->sides[0].ram);
}

static bool possible(const struct engine *e)
{
	return e->translator && e->translator->has_gs;
}

int main(int argc, char **argv)
{
	static const char *const names[18] = { "eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi", "r8", "r9", "r10", "r11", "r12",
		"r13", "r14", "r15", "zero", "eip" };
	static const struct subject subject = { .name = "transtest32", .tester_size = sizeof(struct test32), .ram_size = RAM32_SIZE,
		.handlers = HANDLERS, .accesses_max = ACCESSES_MAX, .all_ram = true, .gpr_names = names, .access = access_mmio,
		.possible = possible, .first_state = first_state, .make = make, .row = row, .print = print, .begin = begin,
		.prepare = prepare, .forgive = forgive_flags, .same_memory = same_memory, .resume = resume, .describe = describe };

	return engines_main(&subject, argc, argv);
}
