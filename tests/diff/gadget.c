/* Gadgets of random programs: see gadget.h. */
#include <stdio.h>
#include <string.h>

#include "gadget.h"

void put(struct gadget *g, const void *bytes, unsigned size)
{
	memcpy(g->bytes + g->length, bytes, size);
	g->length += size;
}

void put8(struct gadget *g, unsigned byte)
{
	g->bytes[g->length++] = (uint8_t)byte;
}

void put32(struct gadget *g, uint32_t value)
{
	put(g, &value, 4);
}

void put_fix(struct gadget *g, enum fix_kind kind, unsigned target, unsigned after)
{
	unsigned size = kind == FIX_LABEL8 ? 1 : 4;

	g->fix[g->fixes].kind = kind;
	g->fix[g->fixes].at = g->length;
	g->fix[g->fixes].end = g->length + size + after;
	g->fix[g->fixes++].target = target;
	put(g, &(uint32_t){ 0 }, size);
}

unsigned gadget_ahead(struct insn_source *s, unsigned n, unsigned count)
{
	unsigned to = n + 1 + pick(s, 4);

	return to < count ? to : count - 1;
}

void gadgets_place(struct gadget *row, unsigned count, unsigned start, uint8_t *code, fix_value value, const void *program)
{
	unsigned at = start;

	memset(code, 0xcc, CODE_PAGES * 4096);
	for (unsigned n = 0; n < count; n++) {
		struct gadget *g = &row[n];
		unsigned next = ((at + 4096) & ~0xfffu) + (n * 64 & 0xfff);

		if (g->gap && next + 5000 < CODE_PAGES * 4096) {
			uint32_t distance = next - (at + 5);

			code[at] = 0xe9;
			memcpy(code + at + 1, &distance, 4);
			at = next;
		}
		g->at = at;
		at += g->length;
	}
	for (unsigned n = 0; n < count; n++) {
		const struct gadget *g = &row[n];

		memcpy(code + g->at, g->bytes, g->length);
		for (unsigned k = 0; k < g->fixes; k++) {
			uint32_t v = value(program, g, k);

			if (g->fix[k].kind == FIX_LABEL8)
				code[g->at + g->fix[k].at] = (int32_t)v < 128 && (int32_t)v >= -128 ? (uint8_t)v : 0;
			else
				memcpy(code + g->at + g->fix[k].at, &v, 4);
		}
		if (g->dropped)
			memset(code + g->at, 0x90, g->length);
	}
}

void gadgets_print(const struct gadget *row, unsigned count, const uint8_t *code, ZydisMachineMode mode, uint64_t base)
{
	ZydisDisassembledInstruction d;

	for (unsigned n = 0; n < count; n++) {
		const struct gadget *g = &row[n];

		for (unsigned at = 0; !g->dropped && at < g->length; at += d.info.length) {
			const uint8_t *bytes = code + g->at + at;

			printf("  %2u %#llx ", n, (unsigned long long)(base + g->at + at));
			if (!ZYAN_SUCCESS(ZydisDisassembleIntel(mode, base + g->at + at, bytes, g->length - at, &d))) {
				printf("??\n");
				break;
			}
			for (unsigned k = 0; k < d.info.length; k++)
				printf("%02x", bytes[k]);
			printf("  %s\n", d.text);
		}
	}
}
