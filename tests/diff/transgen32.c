/* Random 32-bit programs: see transgen32.h. */
#include <string.h>

#include "transgen32.h"

const struct window32 windows32[] = {
	{ 0x10000000, 8, true, "wwwwrndw" },
	{ 0xbfffd000, 3, true, "wwr" },
	{ 0x10400000, 4, true, "waxw" },
	{ 0xfffff000, 1, true, "w" }, /* the last page */
	{ 0xc0000000, 4, false, "wwdr" },
	{ 0xc1234000, 8, false, "wwmwrndw" },
	{ 0xffffc000, 3, false, "www" },
	{ 0xd0000000, 512, false, "L" }, /* a large page */
};
const unsigned window32_count = sizeof(windows32) / sizeof(windows32[0]);

static unsigned new_entry(struct program32 *p, struct entry32 e)
{
	if (p->entries == ENTRIES32)
		p->entries = ENTRIES32 / 2;
	p->table[p->entries] = e;
	return p->entries++;
}

/* mov table[entry], reg */
static void load_entry(struct gadget *g, unsigned reg, unsigned entry)
{
	if (reg == GPR_RAX && (entry & 1)) {
		put8(g, 0xa1);
	} else {
		put8(g, 0x8b);
		put8(g, 5 | reg << 3);
	}
	put32(g, TABLE32 + entry * 4);
}

static unsigned pointer_entry(struct program32 *p)
{
	return new_entry(p, (struct entry32){ .kind = ENTRY32_POINTER, .index = -1, .scale = 1 });
}

/* --- values --- */

static uint32_t random_pointer(const struct program32 *p, struct insn_source *s)
{
	const struct window32 *w = &windows32[pick(s, p->user && pick(s, 20) ? 4 : window32_count)];
	uint32_t base = w->gva, offset;
	unsigned pages = w->pages > 16 ? 16 : w->pages;

	if (p->paging == PAGING_NONE || pick(s, 4) == 0) {
		base = pick(s, 12) ? DATA32 : pick(s, 2) ? MMIO32 : LARGE32 * 2 - 0x1000;
		pages = DATA32_PAGES - 4;
	}
	offset = pick(s, pages) * 4096;
	switch (pick(s, 8)) {
	case 0:
		return base + offset + 4096 - pick(s, 33);
	case 1:
		return base + offset - pick(s, 33);
	case 2:
		return base + offset + pick(s, 4096);
	case 3:
		return pick(s, 8) ? base + offset + (pick(s, 4096) & ~31u) : (uint32_t)next_random(s);
	case 4:
		return pick(s, 10) ? base + (pick(s, 4096) & ~3u) : -pick(s, 33);
	default:
		return base + (pick(s, pages > 1 ? 2 * 4096 : 4096) & ~(pick(s, 2) ? 31u : 3u));
	}
}

static uint32_t stack_pointer(const struct program32 *p, struct insn_source *s)
{
	if (pick(s, 40) == 0)
		return (uint32_t)next_random(s);
	if (p->paging != PAGING_NONE && pick(s, 2)) {
		const struct window32 *w = &windows32[pick(s, p->user ? 3 : 5)];

		return w->gva + 0x1000 + (pick(s, 4) ? pick(s, 64) * 4 : (unsigned)-4 * pick(s, 4));
	}
	return DATA32 + 0x1000 * (1 + pick(s, 6)) + (pick(s, 4) ? pick(s, 64) * 4 : (unsigned)-4 * pick(s, 4));
}

static uint32_t segment_base(uint16_t selector)
{
	return selector == SEL_BASED || selector == SEL_LIMITED ? BASE_BASED : selector == SEL_NEGATIVE ? BASE_NEGATIVE : 0;
}

static uint32_t entry_value(struct start32 *st, const struct program32 *p, struct insn_source *s, const struct entry32 *e)
{
	uint32_t target;

	switch (e->kind) {
	case ENTRY32_RANDOM:
		return (uint32_t)next_random(s);
	case ENTRY32_SMALL:
		return pick(s, 512) - 256;
	case ENTRY32_LABEL:
		target = e->gadget + pick(s, 3);
		if (pick(s, 60) == 0)
			return (uint32_t)next_random(s);
		return CODE32 + p->gadget[target < p->count ? target : p->count - 1].at;
	case ENTRY32_COUNTER:
		return 1 + pick(s, 5);
	case ENTRY32_STACK:
		return stack_pointer(p, s);
	default:
		break;
	}
	target = random_pointer(p, s) - e->disp;
	if (e->segment)
		target -= segment_base(e->segment == SEG_FS ? st->fs : st->gs);
	return e->index >= 0 ? target - st->table[e->index] * e->scale : target;
}

static uint16_t random_selector(const struct program32 *p, struct insn_source *s)
{
	static const uint16_t some[] = { SEL_BASED, SEL_BASED, SEL_NEGATIVE, SEL_BASED, SEL_LIMITED, 0, SEL_READONLY, SEL_DOWN };
	unsigned n = pick(s, 10);

	return n < 8 ? some[n] : p->user ? SEL_USER_DATA : SEL_DATA;
}

void start32_make(struct start32 *st, const struct program32 *p, struct insn_source *s)
{
	memset(st, 0, sizeof(*st));
	st->fs = random_selector(p, s);
	st->gs = random_selector(p, s);
	for (unsigned n = 0; n < 16; n++) {
		st->gpr[n] = pick(s, 3) ? random_pointer(p, s) : (uint32_t)(next_random(s) >> pick(s, 32));
		/* What 64-bit code has left in the upper halves. */
		if (p->paging == PAGING_COMPAT && (n >= 8 || pick(s, 100) == 0))
			st->gpr[n] |= next_random(s) << 32;
	}
	st->gpr[GPR_RSP] = stack_pointer(p, s);
	st->rflags = (next_random(s) & FLAGS_STATUS) | FLAG_FIXED | (pick(s, 2) ? FLAG_IF : 0) | (pick(s, 20) ? 0 : FLAG_DF);
	for (unsigned n = 0; n < p->entries; n++)
		st->table[n] = entry_value(st, p, s, &p->table[n]);
}

/* --- gadgets --- */

static int gpr_id(ZydisRegister reg)
{
	ZydisRegisterClass class = ZydisRegisterGetClass(reg);

	return class == ZYDIS_REGCLASS_GPR32 || class == ZYDIS_REGCLASS_GPR16 ? ZydisRegisterGetId(reg) : -1;
}

static void aim(struct program32 *p, struct gadget *g, struct insn_source *s, uint8_t *b, const ZydisDecodedInstruction *z,
	const ZydisDecodedOperand *op)
{
	int base = gpr_id(op->mem.base), index = gpr_id(op->mem.index);
	struct entry32 e = { .kind = ENTRY32_POINTER, .disp = (uint32_t)op->mem.disp.value, .index = -1, .scale = op->mem.scale };

	e.segment = op->mem.segment == ZYDIS_REGISTER_FS ? SEG_FS : op->mem.segment == ZYDIS_REGISTER_GS ? SEG_GS : 0;
	if (z->raw.disp.size == 32) {
		int32_t disp = (int32_t)pick(s, 4096) - 2048;

		if (base < 0 && index < 0)
			disp = e.segment ? (int32_t)(pick(s, 3) ? pick(s, 0x3000) : -pick(s, 64)) : (int32_t)random_pointer(p, s);
		memcpy(b + z->raw.disp.offset, &disp, 4);
		e.disp = (uint32_t)disp;
	}
	if (base < 0 && index >= 0) {
		base = index;
		index = -1;
		if (op->mem.scale > 1)
			return;
	}
	if (index >= 0 && index != base) {
		e.index = (int)new_entry(p, (struct entry32){ .kind = pick(s, 8) ? ENTRY32_SMALL : ENTRY32_RANDOM, .index = -1 });
		load_entry(g, (unsigned)index, (unsigned)e.index);
	}
	if (base >= 0 && base != GPR_RSP)
		load_entry(g, (unsigned)base, new_entry(p, e));
}

static void random_insn(struct program32 *p, struct gadget *g, struct insn_source *s)
{
	uint8_t b[48];
	ZydisDecoder decoder;
	ZydisDecodedInstruction z;
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
	unsigned prefix = 0, n, loads = 0;

	s->class = pick(s, 6) == 0 ? CLASS_X87 : pick(s, 3) ? CLASS_INTEGER : CLASS_VECTOR;
	s->segments = s->legacy = true;
	if (pick(s, 8) == 0)
		b[prefix++] = (uint8_t)"\x64\x65\x64\x65\x64\x65\x26\x2e\x36\x3e"[pick(s, 10)];
	n = prefix + random_bytes(s, b + prefix);
	if (pick(s, 3) && (b[n + 1] >> 6) == 3)
		b[n + 1] &= pick(s, 2) ? 0x7f : 0xbf;
	ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
	if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, b, 15, &z, ops)) || !insn_allowed(s, &z, ops))
		return;
	if (z.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE)) {
		put8(g, 0xb9);
		put32(g, pick(s, 40));
	}
	for (unsigned k = 0; k < z.operand_count; k++) {
		if (ops[k].type != ZYDIS_OPERAND_TYPE_MEMORY || z.address_width != 32)
			continue;
		if (ops[k].visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN) {
			if (gpr_id(ops[k].mem.base) != GPR_RSP && gpr_id(ops[k].mem.base) >= 0 && loads++ < 2)
				load_entry(g, (unsigned)gpr_id(ops[k].mem.base), pointer_entry(p));
		} else if (pick(s, 100) < 85) {
			aim(p, g, s, b, &z, &ops[k]);
		}
	}
	put(g, b, z.length);
}

static void stack_gadget(struct program32 *p, struct gadget *g, struct insn_source *s)
{
	unsigned reg = pick(s, 8);

	switch (pick(s, 18)) {
	case 0:
	case 1:
	case 2:
	case 3:
	case 4:
		put8(g, (pick(s, 2) ? 0x50 : 0x58) | reg);
		break;
	case 5:
		put8(g, 0x68);
		put32(g, (uint32_t)next_random(s));
		break;
	case 6:
		put8(g, 0x6a);
		put8(g, pick(s, 256));
		break;
	case 7:
		load_entry(g, GPR_RAX, pointer_entry(p));
		put(g, pick(s, 2) ? "\xff\x30" : "\x8f\x00", 2);
		break;
	case 8: /* push, pop disp(%esp) */
		put(g, pick(s, 2) ? "\xff\x74\x24" : "\x8f\x44\x24", 3);
		put8(g, pick(s, 256));
		break;
	case 9:
		put8(g, pick(s, 2) ? 0x60 : 0x61);
		break;
	case 10:
		put(g, "\x89\xe5", 2);
		break;
	case 11:
		if (pick(s, 2))
			load_entry(g, GPR_RBP, new_entry(p, (struct entry32){ .kind = ENTRY32_STACK, .index = -1 }));
		put8(g, 0xc9);
		break;
	case 12:
		put(g, pick(s, 3) ? "\xc8\x20\x00\x00" : "\xc8\x10\x00\x02", 4);
		break;
	case 13:
		load_entry(g, GPR_RSP, new_entry(p, (struct entry32){ .kind = ENTRY32_STACK, .index = -1 }));
		break;
	case 14:
		put(g, pick(s, 2) ? "\x83\xe4\xf0" : "\x8d\x64\x24", 3);
		if (g->bytes[0] == 0x8d)
			put8(g, pick(s, 256));
		break;
	case 15:
		put(g, pick(s, 2) ? "\x83\xc4" : "\x83\xec", 2);
		put8(g, pick(s, 256) & 0xfc);
		break;
	case 16: /* push segment registers; mov segment, reg */
		if (pick(s, 2)) {
			put(g, &"\x06\x0e\x16\x1e"[pick(s, 4)], 1);
			break;
		}
		put8(g, 0x8c);
		put8(g, 0xc0 | pick(s, 6) << 3 | reg);
		break;
	default:
		put8(g, pick(s, 2) ? 0x8b : 0x89);
		put8(g, 0x44 | reg << 3);
		put8(g, 0x24);
		put8(g, pick(s, 256));
	}
}

static void branch_gadget(struct program32 *p, struct gadget *g, struct insn_source *s, unsigned n)
{
	unsigned to = gadget_ahead(s, n, p->count), label, reg = pick(s, 8);

	switch (pick(s, 13)) {
	case 0:
	case 1:
	case 2:
		put8(g, 0x0f);
		put8(g, 0x80 | pick(s, 16));
		put_fix(g, FIX_LABEL, to, 0);
		break;
	case 3: /* jcc, loop, jecxz */
		put8(g, pick(s, 2) ? 0x70 | pick(s, 16) : 0xe0 | pick(s, 4));
		put_fix(g, FIX_LABEL8, n + 1 < p->count ? n + 1 : n, 0);
		break;
	case 4:
		put8(g, 0xe9);
		put_fix(g, FIX_LABEL, to, 0);
		break;
	case 5:
	case 6:
		put8(g, 0xe8);
		put_fix(g, FIX_LABEL, to, 0);
		break;
	case 7:
		put8(g, 0x68);
		put_fix(g, FIX_ABSOLUTE, to, 0);
		put(g, pick(s, 3) ? "\xc3\x90\x90" : "\xc2\x10\x00", 3);
		break;
	case 8: /* jmp, call *table */
	case 9: /* jmp, call *reg */
		label = new_entry(p, (struct entry32){ .kind = ENTRY32_LABEL, .gadget = n + 1, .index = -1 });
		if (pick(s, 2)) {
			put(g, pick(s, 2) ? "\xff\x15" : "\xff\x25", 2);
			put32(g, TABLE32 + label * 4);
			break;
		}
		reg = reg == GPR_RSP ? GPR_RBX : reg;
		load_entry(g, reg, label);
		put8(g, 0xff);
		put8(g, (pick(s, 2) ? 0xd0 : 0xe0) | reg);
		break;
	case 10:
	case 11:
		label = new_entry(p, (struct entry32){ .kind = ENTRY32_COUNTER, .index = -1 });
		put(g, "\xff\x0d", 2);
		put32(g, TABLE32 + label * 4);
		put(g, "\x0f\x85", 2);
		put_fix(g, FIX_LABEL, n > 6 ? n - pick(s, 6) : pick(s, n + 1), 0);
		break;
	default: /* mov $n, %ecx; loop to itself */
		put8(g, 0xb9);
		put32(g, 1 + pick(s, 6));
		put(g, "\x40\xe2\xfd", 3);
	}
}

static void load_segment(struct gadget *g, struct insn_source *s, unsigned seg, uint16_t selector)
{
	(void)s;
	put8(g, 0xb8);
	put32(g, selector);
	put8(g, 0x8e);
	put8(g, 0xc0 | seg << 3);
}

static void system_gadget(struct program32 *p, struct gadget *g, struct insn_source *s, unsigned n)
{
	switch (pick(s, 11)) {
	case 0:
		put8(g, 0x9c);
		break;
	case 1:
		put8(g, 0x68);
		put32(g, (uint32_t)next_random(s) & 0x240ed5);
		put8(g, 0x9d);
		break;
	case 2:
		put8(g, pick(s, 2) ? 0xfa : 0xfb);
		break;
	case 3:
	case 4:
		load_segment(g, s, 4 + pick(s, 2), random_selector(p, s));
		break;
	case 5: /* DS or ES is something else for a while */
		load_segment(g, s, pick(s, 2) ? SEG_DS : SEG_ES, random_selector(p, s));
		break;
	case 6:
		load_segment(g, s, SEG_DS, p->user ? SEL_USER_DATA : SEL_DATA);
		load_segment(g, s, SEG_ES, p->user ? SEL_USER_DATA : SEL_DATA);
		break;
	case 7:
		load_entry(g, GPR_RAX, pointer_entry(p));
		put(g, "\x0f\x01\x38", 3); /* invlpg */
		break;
	case 8:
		put(g, "\x0f\x20\xd8\x0f\x22\xd8", 6); /* mov %cr3, %eax and back */
		break;
	case 9: /* iretd to a label at the same privilege */
		put8(g, 0x68);
		put32(g, ((uint32_t)next_random(s) & 0xcd5) | 0x202);
		put8(g, 0x6a);
		put8(g, p->user ? SEL_USER_CODE : SEL_CODE);
		put8(g, 0x68);
		put_fix(g, FIX_ABSOLUTE, gadget_ahead(s, n, p->count), 0);
		put8(g, 0xcf);
		break;
	default:
		put8(g, pick(s, 2) ? 0xcc : 0xce);
	}
}

static void code_gadget(struct program32 *p, struct gadget *g, struct insn_source *s)
{
	if (pick(s, 2)) {
		put8(g, 0xb8 | pick(s, 4));
		g->patch_at = g->length;
		put32(g, (uint32_t)next_random(s));
		return;
	}
	put(g, "\xc7\x05", 2);
	put_fix(g, FIX_PATCH, pick(s, p->count), 4);
	put32(g, (uint32_t)next_random(s));
}

static void make_gadget(struct program32 *p, struct insn_source *s, unsigned n)
{
	struct gadget *g = &p->gadget[n];
	unsigned kind = pick(s, 100);

	do {
		memset(g, 0, sizeof(*g));
		if (kind < 55)
			random_insn(p, g, s);
		else if (kind < 71)
			stack_gadget(p, g, s);
		else if (kind < 87)
			branch_gadget(p, g, s, n);
		else if (kind < 93)
			system_gadget(p, g, s, n);
		else
			code_gadget(p, g, s);
	} while (g->length == 0);
	g->gap = n && pick(s, 30) == 0;
}

void program32_make(struct program32 *p, struct insn_source *s, unsigned count)
{
	p->paging = pick(s, PAGING_KINDS);
	p->user = pick(s, 2);
	p->count = count;
	p->entries = 0;
	p->start = pick(s, 4) ? pick(s, 4096) : 4096 - pick(s, 200);
	for (unsigned n = 0; n + 1 < count; n++)
		make_gadget(p, s, n);
	memset(&p->gadget[count - 1], 0, sizeof(p->gadget[0]));
	put8(&p->gadget[count - 1], 0xf4);
}

/* --- placing --- */

static uint32_t fixed_value(const void *program, const struct gadget *g, unsigned n)
{
	const struct program32 *p = program;
	unsigned target = g->fix[n].target;
	const struct gadget *to = target < p->count ? &p->gadget[target] : g;

	switch (g->fix[n].kind) {
	case FIX_ABSOLUTE:
		return CODE32 + to->at;
	case FIX_PATCH:
		return to->patch_at ? CODE32 + to->at + to->patch_at : DATA32;
	default:
		return to->at - (g->at + g->fix[n].end);
	}
}

void program32_place(struct program32 *p, uint8_t *ram)
{
	gadgets_place(p->gadget, p->count, p->start, ram + CODE32, fixed_value, p);
}

void program32_print(const struct program32 *p, const uint8_t *ram)
{
	gadgets_print(p->gadget, p->count, ram + CODE32, ZYDIS_MACHINE_MODE_LEGACY_32, CODE32);
}
