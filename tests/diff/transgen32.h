/*
 * Random 32-bit programs for the differential test of the translator, and where they run: see transtest32.c. A program is a row of gadgets
 * (gadget.h); what varies between two runs of it comes from the registers and from a table in guest memory.
 *
 *   linear addresses, equal to physical ones below 8 MiB
 *   60000 GDT, IDT, TSS, handlers, stack of exceptions | 70000 the table | 80000 code | 100000 data
 *   with paging also: windows onto the data, with all kinds of rights
 */
#ifndef TESTS_TRANSGEN32_H
#define TESTS_TRANSGEN32_H

#include "engine/engine_state.h"
#include "gadget.h"
#include "random_insn.h"

#define SYSTEM32 0x60000u
#define TABLE32 0x70000u
#define CODE32 0x80000u
#define DATA32 0x100000u
#define DATA32_PAGES 12u
#define LARGE32 0x400000u
#define RAM32_SIZE 0x800000u
#define MMIO32 0xe0000000u

#define ENTRIES32 256u

enum paging32 { PAGING_COMPAT, PAGING_NONE, PAGING_32, PAGING_PAE, PAGING_KINDS };

/* Selectors in the GDT. */
enum { SEL_CODE = 8, SEL_DATA = 0x10, SEL_USER_CODE = 0x1b, SEL_USER_DATA = 0x23, SEL_BASED = 0x2b, SEL_LIMITED = 0x33,
	SEL_READONLY = 0x3b, SEL_TSS = 0x40, SEL_CODE64 = 0x50, SEL_DOWN = 0x5b, SEL_NEGATIVE = 0x63 };
#define BASE_BASED 0x00100040u
#define BASE_NEGATIVE 0xfff00ff0u

enum entry32_kind { ENTRY32_RANDOM, ENTRY32_SMALL, ENTRY32_POINTER, ENTRY32_LABEL, ENTRY32_COUNTER, ENTRY32_STACK };

struct entry32 {
	enum entry32_kind kind;
	uint32_t disp;
	int index; /* entry of the index register, −1 none */
	unsigned scale;
	unsigned gadget; /* ENTRY32_LABEL */
	int segment;	 /* SEG_FS, SEG_GS, 0 */
};

struct program32 {
	enum paging32 paging;
	bool user;
	unsigned count, entries, start;
	struct gadget gadget[GADGETS_MAX];
	struct entry32 table[ENTRIES32];
};

struct start32 {
	uint64_t gpr[16], rflags;
	uint16_t fs, gs; /* selectors */
	uint32_t table[ENTRIES32];
};

struct window32 {
	uint32_t gva;
	unsigned pages;
	bool user;
	const char *types; /* as in transgen.h */
};
extern const struct window32 windows32[];
extern const unsigned window32_count;

void program32_make(struct program32 *p, struct insn_source *s, unsigned count);
/* Writes it into RAM. */
void program32_place(struct program32 *p, uint8_t *ram);
void program32_print(const struct program32 *p, const uint8_t *ram);
void start32_make(struct start32 *st, const struct program32 *p, struct insn_source *s);

#endif
