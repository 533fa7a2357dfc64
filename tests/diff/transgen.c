/* Random programs for the translator's differential test: see transgen.h. */
#include <string.h>

#include "transgen.h"

const struct window windows[] = {
	{ LOW_WINDOW, 8, true, "wwwwrndw" },
	{ 0x557fffffc000ull, 8, true, "wwwwwwwr" }, /* across slots 0xaa and 0xab */
	{ 0x2a0000010000ull, 8, true, "waxwdrnw" },
	{ 0x7fffffffc000ull, 4, true, "wdww" }, /* up to the canonical edge */
	{ USER_CODE + NEAR_WINDOW, 8, true, "wwwrwnwd" },
	{ 0, 2, true, "wr" }, /* what follows the last page */
	{ 0xffff800000000000ull, 4, false, "wwdr" },
	{ 0xffff888012345000ull, 8, false, "wwmwrndw" },
	{ KERNEL_CODE + NEAR_WINDOW, 8, false, "wwwrwnwd" },
	{ 0xffffc87fffffe000ull, 4, false, "wwww" }, /* across two slots */
	{ HIGH_WINDOW - 0x3000, 4, false, "wwww" },
	{ 0xffff888040000000ull, 512, false, "L" }, /* a large page */
};
const unsigned window_count = sizeof(windows) / sizeof(windows[0]);

static unsigned new_entry(struct program *p, struct table_entry e)
{
	if (p->entries == TABLE_ENTRIES)
		p->entries = TABLE_ENTRIES / 2;
	p->table[p->entries] = e;
	return p->entries++;
}

/* mov table[entry], reg: absolute, or relative to RIP. */
static void load_entry(struct gadget *g, struct insn_source *s, unsigned reg, unsigned entry)
{
	put8(g, 0x48 | (reg >= 8 ? 4 : 0));
	put8(g, 0x8b);
	if (pick(s, 2)) {
		put8(g, 4 | (reg & 7) << 3);
		put8(g, 0x25);
		put32(g, (uint32_t)USER_TABLE + entry * 8);
	} else {
		put8(g, 5 | (reg & 7) << 3);
		put_fix(g, FIX_TABLE, entry * 8, 0);
	}
}

/* --- instructions with operands --- */

static int gpr_id(ZydisRegister reg)
{
	ZydisRegisterClass class = ZydisRegisterGetClass(reg);

	return class == ZYDIS_REGCLASS_GPR64 || class == ZYDIS_REGCLASS_GPR32 ? ZydisRegisterGetId(reg) : -1;
}

/* Gives the operand's registers values by loads before it, or changes its displacement. */
static void aim(struct program *p, struct gadget *g, struct insn_source *s, uint8_t *b, const ZydisDecodedInstruction *z,
	const ZydisDecodedOperand *op)
{
	int base = gpr_id(op->mem.base), index = gpr_id(op->mem.index);
	struct table_entry e = { .kind = ENTRY_POINTER, .disp = op->mem.disp.value, .index = -1, .scale = op->mem.scale };
	int32_t disp = (int32_t)op->mem.disp.value;

	e.segment = op->mem.segment == ZYDIS_REGISTER_FS ? SEG_FS : op->mem.segment == ZYDIS_REGISTER_GS ? SEG_GS : 0;
	e.low = z->address_width == 32;
	if (z->raw.disp.size == 32 && (base >= 0 || e.segment) && pick(s, 100) < 85) {
		disp = (int32_t)pick(s, 4096) - 2048;
		memcpy(b + z->raw.disp.offset, &disp, 4);
		e.disp = disp;
	}
	if (op->mem.base == ZYDIS_REGISTER_RIP)
		return;
	if (base < 0 && index < 0) {
		if (z->raw.disp.size == 32 && !e.segment) {
			disp = (int32_t)(LOW_WINDOW + 8 + pick(s, 0x1ff0));
			if (!p->user && pick(s, 2))
				disp = (int32_t)(pick(s, 2) ? KERNEL_CODE + NEAR_WINDOW + pick(s, 0x3000) :
					HIGH_WINDOW - 0x3000 + pick(s, 0x4000));
			memcpy(b + z->raw.disp.offset, &disp, 4);
		}
		return;
	}
	if (index >= 0 && index != base && base >= 0) {
		if (pick(s, 100) < 90)
			e.index = (int)new_entry(p, (struct table_entry){ .kind = pick(s, 8) ? ENTRY_SMALL : ENTRY_RANDOM, .index = -1 });
		if (e.index >= 0)
			load_entry(g, s, (unsigned)index, (unsigned)e.index);
	} else if (index >= 0) {
		e.kind = base == index ? ENTRY_BOTH_POINTER : ENTRY_INDEX_POINTER;
		base = index;
	}
	if (base != GPR_RSP)
		load_entry(g, s, (unsigned)base, new_entry(p, e));
}

static bool random_insn(struct program *p, struct gadget *g, struct insn_source *s)
{
	uint8_t b[48];
	ZydisDecoder decoder;
	ZydisDecodedInstruction z;
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
	unsigned prefix = 0, n, loads = 0;
	int last_base = -1;

	s->class = pick(s, 8) == 0 ? CLASS_X87 : pick(s, 3) ? CLASS_INTEGER : CLASS_VECTOR;
	s->segments = true;
	if (pick(s, 12) == 0)
		b[prefix++] = 0x64 + (uint8_t)pick(s, 2);
	n = prefix + random_bytes(s, b + prefix);
	/* More of the forms with memory than chance gives. */
	if (pick(s, 3) && (b[n + 1] >> 6) == 3)
		b[n + 1] &= pick(s, 2) ? 0x7f : 0xbf;
	ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
	if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, b, 15, &z, ops)) || !insn_allowed(s, &z, ops))
		return false;
	if (z.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE)) {
		put8(g, 0xb9);
		put32(g, pick(s, 40));
	}
	for (unsigned k = 0; k < z.operand_count; k++) {
		struct table_entry e = { .kind = ENTRY_POINTER, .index = -1, .scale = 1, .low = z.address_width == 32 };

		if (ops[k].type != ZYDIS_OPERAND_TYPE_MEMORY)
			continue;
		if (ops[k].visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN) {
			if (gpr_id(ops[k].mem.base) != GPR_RSP && gpr_id(ops[k].mem.base) >= 0 && loads++ < 2)
				load_entry(g, s, (unsigned)gpr_id(ops[k].mem.base), new_entry(p, e));
		} else if (pick(s, 100) < 75) {
			aim(p, g, s, b, &z, &ops[k]);
			last_base = gpr_id(ops[k].mem.base);
		}
	}
	put(g, b, z.length);
	if (z.raw.disp.size == 32 && z.raw.modrm.mod == 0 && z.raw.modrm.rm == 5) {
		g->length -= z.length - z.raw.disp.offset;
		put_fix(g, FIX_WINDOW, 8 + pick(s, 0x4ff0), z.length - z.raw.disp.offset - 4u);
		put(g, b + z.raw.disp.offset + 4, z.length - z.raw.disp.offset - 4u);
	}
	/* Once more at the same base, a little further: what was checked is held. */
	if (last_base >= 0 && last_base != GPR_RSP && z.raw.sib.offset == 0 && pick(s, 3) == 0) {
		unsigned reg = pick(s, 16), base = (unsigned)last_base;

		if ((base & 7) == 4)
			return true;
		if (pick(s, 2)) {
			put8(g, 0x48 | (base >= 8));
			put8(g, 0x83);
			put8(g, 0xc0 | (base & 7) | (pick(s, 2) ? 0x28 : 0));
			put8(g, pick(s, 256));
		}
		put8(g, 0x48 | (base >= 8) | (reg == GPR_RSP ? 0 : reg >= 8) << 2);
		put8(g, pick(s, 2) ? 0x8b : 0x89);
		put8(g, 0x40 | (reg == GPR_RSP ? 0 : reg & 7) << 3 | (base & 7));
		put8(g, pick(s, 256));
	}
	return true;
}

/* --- the other gadgets --- */

static void stack_gadget(struct program *p, struct gadget *g, struct insn_source *s)
{
	unsigned reg = pick(s, 16), kind = pick(s, 16);
	unsigned rex = reg >= 8;

	switch (kind) {
	case 0:
	case 1:
	case 2:
	case 3:
		if (rex)
			put8(g, 0x41);
		put8(g, (kind & 1 ? 0x50 : 0x58) | (reg & 7));
		break;
	case 4:
		put8(g, 0x68);
		put32(g, (uint32_t)next_random(s));
		break;
	case 5: /* push or pop memory */
		load_entry(g, s, GPR_RAX, new_entry(p, (struct table_entry){ .kind = ENTRY_POINTER, .index = -1, .scale = 1 }));
		put(g, pick(s, 2) ? "\xff\x30" : "\x8f\x00", 2);
		break;
	case 6:
		put(g, pick(s, 3) ? "\xc8\x20\x00\x00" : "\xc8\x10\x00\x02", 4); /* enter */
		break;
	case 7:
		put(g, "\x48\x89\xe5", 3); /* mov %rsp, %rbp */
		break;
	case 8:
		if (pick(s, 2))
			load_entry(g, s, GPR_RBP, new_entry(p, (struct table_entry){ .kind = ENTRY_STACK, .index = -1 }));
		put8(g, 0xc9); /* leave */
		break;
	case 9:
		load_entry(g, s, reg == GPR_RSP ? GPR_RAX : reg, new_entry(p, (struct table_entry){ .kind = ENTRY_STACK, .index = -1 }));
		reg = reg == GPR_RSP ? GPR_RAX : reg;
		put8(g, 0x48 | (reg >= 8 ? 4 : 0));
		put8(g, 0x89);
		put8(g, 0xc4 | (reg & 7) << 3); /* mov reg, %rsp */
		break;
	case 10:
		put(g, "\x48\x83\xe4\xf0", 4); /* and $-16, %rsp */
		break;
	case 11:
	case 12:
		put(g, pick(s, 2) ? "\x48\x83\xc4" : "\x48\x83\xec", 3); /* add, sub $…, %rsp */
		put8(g, pick(s, 256) & 0xf8);
		break;
	case 13:
		put(g, pick(s, 2) ? "\x48\x81\xc4" : "\x48\x81\xec", 3);
		put32(g, pick(s, 4) ? pick(s, 0x2000) : (uint32_t)next_random(s));
		break;
	case 14:
		put(g, "\x48\x8d\x64\x24", 4); /* lea disp(%rsp), %rsp */
		put8(g, pick(s, 256));
		break;
	default: /* mov disp(%rsp), reg or back */
		put8(g, 0x48 | (reg >= 8 ? 4 : 0));
		put8(g, pick(s, 2) ? 0x8b : 0x89);
		put8(g, 0x44 | (reg & 7) << 3);
		put8(g, 0x24);
		put8(g, pick(s, 256));
	}
}

static void branch_gadget(struct program *p, struct gadget *g, struct insn_source *s, unsigned n)
{
	unsigned to = gadget_ahead(s, n, p->count);
	unsigned label = new_entry(p, (struct table_entry){ .kind = ENTRY_LABEL, .gadget = n + 1 });

	switch (pick(s, 12)) {
	case 0:
	case 1:
	case 2:
		put8(g, 0x0f);
		put8(g, 0x80 | pick(s, 16));
		put_fix(g, FIX_LABEL, to, 0);
		break;
	case 3:
		put8(g, 0x70 | pick(s, 16));
		put_fix(g, FIX_LABEL8, n + 1 < p->count ? n + 1 : n, 0);
		break;
	case 4:
		put8(g, 0xe9);
		put_fix(g, FIX_LABEL, to, 0);
		break;
	case 5:
		put8(g, 0xe8); /* call */
		put_fix(g, FIX_LABEL, to, 0);
		break;
	case 6: /* push label; ret */
		put8(g, 0x68);
		put_fix(g, FIX_ABSOLUTE, to, 0);
		if (pick(s, 3))
			put8(g, 0xc3);
		else
			put(g, "\xc2\x10\x00", 3); /* ret $16 */
		break;
	case 7: /* jmp, call *table(entry) */
		p->table[label].disp = pick(s, 2);
		put8(g, 0xff);
		put8(g, (p->table[label].disp ? 2 : 4) << 3 | 4);
		put8(g, 0x25);
		put32(g, (uint32_t)USER_TABLE + label * 8);
		break;
	case 8: { /* jmp, call *reg */
		unsigned reg = pick(s, 16);

		p->table[label].disp = pick(s, 2);
		reg = reg == GPR_RSP ? GPR_R10 : reg;
		load_entry(g, s, reg, label);
		if (reg >= 8)
			put8(g, 0x41);
		put8(g, 0xff);
		put8(g, 0xc0 | (p->table[label].disp ? 2 : 4) << 3 | (reg & 7));
		break;
	}
	case 9:
	case 10: { /* dec counter; jnz back */
		unsigned counter = new_entry(p, (struct table_entry){ .kind = ENTRY_COUNTER });

		put8(g, 0x48);
		put(g, "\xff\x0c\x25", 3);
		put32(g, (uint32_t)USER_TABLE + counter * 8);
		put(g, "\x0f\x85", 2);
		put_fix(g, FIX_LABEL, n > 6 ? n - pick(s, 6) : pick(s, n + 1), 0);
		break;
	}
	default: /* loop-like: jrcxz to the next */
		put8(g, 0xe3);
		put8(g, 0);
	}
}

static void system_gadget(struct program *p, struct gadget *g, struct insn_source *s, unsigned n)
{
	unsigned reg = pick(s, 8) == GPR_RSP ? 0 : pick(s, 4);
	unsigned pointer;

	switch (pick(s, 10)) {
	case 0:
		put8(g, 0x9c); /* pushf */
		break;
	case 1: /* popf: status flags, DF, IF, AC, ID */
		put8(g, 0x68);
		put32(g, (uint32_t)next_random(s) & 0x240ed5);
		put8(g, 0x9d);
		break;
	case 2:
		put8(g, pick(s, 2) ? 0xfa : 0xfb);
		break;
	case 3: /* wrfsbase, wrgsbase */
		load_entry(g, s, reg, new_entry(p, (struct table_entry){ .kind = ENTRY_STACK, .index = -1 }));
		put(g, "\xf3\x48\x0f\xae", 4);
		put8(g, (pick(s, 2) ? 0xd0 : 0xd8) | reg);
		break;
	case 4:
		put(g, "\xf3\x48\x0f\xae", 4); /* rdfsbase, rdgsbase */
		put8(g, (pick(s, 2) ? 0xc0 : 0xc8) | reg);
		break;
	case 5: /* invlpg (%rax) */
		pointer = new_entry(p, (struct table_entry){ .kind = ENTRY_POINTER, .index = -1, .scale = 1 });
		load_entry(g, s, GPR_RAX, pointer);
		put(g, "\x0f\x01\x38", 3);
		break;
	case 6:
		put(g, "\x0f\x20\xd8\x0f\x22\xd8", 6); /* mov %cr3, %rax; mov %rax, %cr3 */
		break;
	case 7:
		if (!p->user)
			put(g, "\x0f\x01\xf8", 3); /* swapgs */
		else
			put(g, "\x0f\x05", 2); /* syscall: the handler returns */
		break;
	case 8: /* iretq to a label at the same privilege */
		if (pick(s, 2))
			load_entry(g, s, GPR_RAX, new_entry(p, (struct table_entry){ .kind = ENTRY_STACK, .index = -1 }));
		else
			put(g, "\x48\x89\xe0", 3);
		put(g, p->user ? "\x6a\x2b" : pick(s, 3) ? "\x6a\x10" : "\x6a\x00", 2);
		put8(g, 0x50); /* push %rax */
		put8(g, 0x68);
		put32(g, ((uint32_t)next_random(s) & (pick(s, 4) ? 0x10cd5 : 0x3d7ed5)) | (pick(s, 4) ? 0x202 : 0));
		put(g, p->user ? "\x6a\x33" : "\x6a\x08", 2);
		put8(g, 0x68);
		put_fix(g, FIX_ABSOLUTE, gadget_ahead(s, n, p->count), 0);
		put(g, "\x48\xcf", 2);
		break;
	default:
		put(g, "\xcc", 1); /* int3 */
	}
}

static void code_gadget(struct program *p, struct gadget *g, struct insn_source *s, unsigned n)
{
	unsigned target;

	if (pick(s, 2)) {
		put8(g, 0xb8 | pick(s, 4));
		g->patch_at = g->length;
		put32(g, (uint32_t)next_random(s));
		return;
	}
	target = pick(s, p->count);
	put(g, "\xc7\x05", 2); /* movl $imm, target's immediate */
	put_fix(g, FIX_PATCH, target, 4);
	put32(g, (uint32_t)next_random(s));
}

static void make_gadget(struct program *p, struct insn_source *s, unsigned n)
{
	struct gadget *g = &p->gadget[n];
	unsigned kind = pick(s, 100);

	do {
		memset(g, 0, sizeof(*g));
		if (kind < 55)
			random_insn(p, g, s);
		else if (kind < 71)
			stack_gadget(p, g, s);
		else if (kind < 88)
			branch_gadget(p, g, s, n);
		else if (kind < 93)
			system_gadget(p, g, s, n);
		else
			code_gadget(p, g, s, n);
	} while (g->length == 0);
	g->gap = n && pick(s, 30) == 0;
}

void program_make(struct program *p, struct insn_source *s, unsigned count)
{
	p->user = pick(s, 2);
	p->count = count;
	p->entries = 0;
	p->start = pick(s, 4) ? pick(s, 4096) : 4096 - pick(s, 200);
	for (unsigned n = 0; n + 1 < count; n++)
		make_gadget(p, s, n);
	memset(&p->gadget[count - 1], 0, sizeof(p->gadget[0]));
	put8(&p->gadget[count - 1], 0xf4); /* hlt */
}

/* --- placing --- */

static uint32_t fixed_value(const void *program, const struct gadget *g, unsigned n)
{
	const struct program *p = program;
	unsigned end = g->at + g->fix[n].end, target = g->fix[n].target;
	const struct gadget *to = target < p->count ? &p->gadget[target] : g;

	switch (g->fix[n].kind) {
	case FIX_WINDOW:
		return NEAR_WINDOW + target - end;
	case FIX_TABLE:
		return NEAR_TABLE + target - end;
	case FIX_ABSOLUTE:
		return (uint32_t)program_base(p) + to->at;
	case FIX_PATCH:
		return to->patch_at ? to->at + to->patch_at - end : NEAR_WINDOW + 64 - end;
	default:
		return to->at - end;
	}
}

void program_place(struct program *p, uint8_t *code)
{
	gadgets_place(p->gadget, p->count, (unsigned)p->start, code, fixed_value, p);
}

void program_print(const struct program *p, const uint8_t *code)
{
	gadgets_print(p->gadget, p->count, code, ZYDIS_MACHINE_MODE_LONG_64, program_base(p));
}

/* --- one run's values --- */

static uint64_t random_pointer(const struct program *p, struct insn_source *s, bool low)
{
	const struct window *w = &windows[low ? 0 : pick(s, p->user && pick(s, 20) ? 6 : window_count)];
	uint64_t offset = (uint64_t)pick(s, w->pages) * 4096;

	switch (pick(s, 8)) {
	case 0: /* the edge of a page */
		return w->gva + offset + 4096 - pick(s, 33);
	case 1:
		return w->gva + offset - pick(s, 33);
	case 2:
		return w->gva + offset + pick(s, 4096);
	case 3:
		return pick(s, 8) ? w->gva + offset + (pick(s, 4096) & ~31u) : next_random(s);
	default: /* the first pages can be written */
		return w->gva + (pick(s, w->pages > 1 ? 2 * 4096 : 4096) & ~(pick(s, 2) ? 31u : 7u));
	}
}

static uint64_t stack_pointer(const struct program *p, struct insn_source *s)
{
	const struct window *w = &windows[pick(s, p->user ? 5 : window_count)];

	if (pick(s, 30) == 0)
		return next_random(s);
	return w->gva + (w->pages > 2 ? pick(s, 2) ? 0x1000 : 0x2000 : 0x800) + (pick(s, 4) ? pick(s, 64) * 8 : (unsigned)-8 * pick(s, 4));
}

static uint64_t entry_value(struct start *st, const struct program *p, struct insn_source *s, const struct table_entry *e)
{
	uint64_t target, index;

	switch (e->kind) {
	case ENTRY_RANDOM:
		return next_random(s);
	case ENTRY_SMALL:
		return (uint64_t)((int64_t)pick(s, 512) - 256);
	case ENTRY_LABEL: {
		unsigned n = e->gadget + pick(s, 3);

		return pick(s, 60) == 0 ? next_random(s) : program_base(p) + p->gadget[n < p->count ? n : p->count - 1].at;
	}
	case ENTRY_COUNTER:
		return 1 + pick(s, 5);
	case ENTRY_STACK:
		return stack_pointer(p, s);
	default:
		break;
	}
	target = random_pointer(p, s, e->low) - (uint64_t)e->disp;
	target -= e->segment == SEG_FS ? st->fs : e->segment == SEG_GS ? st->gs : 0;
	index = e->index >= 0 ? st->table[e->index] : 0;
	if (e->kind == ENTRY_INDEX_POINTER)
		return (uint64_t)((int64_t)target / (e->scale ? e->scale : 1));
	if (e->kind == ENTRY_BOTH_POINTER)
		return target / (1u + e->scale);
	return target - index * e->scale;
}

void start_make(struct start *st, const struct program *p, struct insn_source *s)
{
	st->fs = stack_pointer(p, s);
	st->gs = stack_pointer(p, s);
	if ((uint64_t)((int64_t)(st->fs << 16) >> 16) != st->fs)
		st->fs = LOW_WINDOW;
	if ((uint64_t)((int64_t)(st->gs << 16) >> 16) != st->gs)
		st->gs = 0;
	for (unsigned n = 0; n < 16; n++) {
		switch (pick(s, 4)) {
		case 0:
			st->gpr[n] = next_random(s) >> pick(s, 64);
			break;
		case 1:
			st->gpr[n] = (uint64_t)((int64_t)pick(s, 512) - 256);
			break;
		default:
			st->gpr[n] = random_pointer(p, s, false);
		}
	}
	st->gpr[GPR_RSP] = stack_pointer(p, s);
	st->rflags = (next_random(s) & FLAGS_STATUS) | FLAG_FIXED | (pick(s, 2) ? FLAG_IF : 0) | (pick(s, 20) ? 0 : FLAG_DF);
	for (unsigned n = 0; n < p->entries; n++)
		st->table[n] = entry_value(st, p, s, &p->table[n]);
}
