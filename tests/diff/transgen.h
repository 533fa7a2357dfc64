/*
 * Random programs for the differential test of the translator, and the guest's address space that they run in.
 *
 * A program is a row of gadgets (gadget.h) at one or several code pages. What varies between runs of the same program comes from the registers and from a table in guest memory: pointers are
 * loaded from the table before they are used, so that code which was translated for one slot meets another.
 *
 * Windows: where pointers aim. The same few pages of RAM are seen through all of them.
 */
#ifndef TESTS_TRANSGEN_H
#define TESTS_TRANSGEN_H

#include "engine/engine_state.h"
#include "gadget.h"
#include "random_insn.h"

#define USER_CODE 0x20000000ull
#define KERNEL_CODE 0xffffffff81000000ull
#define NEAR_WINDOW 0x100000u /* windows at these offsets from the code */
#define NEAR_TABLE 0x300000u
#define LOW_WINDOW 0x10000000ull
#define HIGH_WINDOW 0xfffffffffffff000ull
#define USER_TABLE 0x30000000ull /* below 2 GiB: addressed absolutely */

#define TABLE_ENTRIES 512u

/* How a table entry is computed for each run. */
enum entry_kind { ENTRY_RANDOM, ENTRY_SMALL, ENTRY_POINTER, ENTRY_INDEX_POINTER, ENTRY_BOTH_POINTER, ENTRY_LABEL, ENTRY_COUNTER,
	ENTRY_STACK };

struct table_entry {
	enum entry_kind kind;
	int64_t disp;
	int index;	 /* the entry that the index register comes from; −1 none */
	unsigned scale;
	int segment;	 /* 0 none, SEG_FS, SEG_GS */
	bool low;	 /* the address has 32 bits */
	unsigned gadget; /* ENTRY_LABEL: the first that it may name */
};

struct program {
	bool user;
	unsigned count;
	struct gadget gadget[GADGETS_MAX];
	struct table_entry table[TABLE_ENTRIES];
	unsigned entries;
	uint64_t start; /* offset of the first gadget */
};

/* What one run begins with. */
struct start {
	uint64_t gpr[16], rflags, fs, gs;
	uint64_t table[TABLE_ENTRIES];
};

/* Makes a program of `count` gadgets. */
void program_make(struct program *p, struct insn_source *s, unsigned count);
/* Writes it into CODE_PAGES pages at `code`. */
void program_place(struct program *p, uint8_t *code);
void program_print(const struct program *p, const uint8_t *code);
/* Registers and the table of one run. */
void start_make(struct start *st, const struct program *p, struct insn_source *s);
static inline uint64_t program_base(const struct program *p)
{
	return p->user ? USER_CODE : KERNEL_CODE;
}

/* The guest's address space. */
struct window {
	uint64_t gva;
	unsigned pages;
	bool user;
	const char *types; /* a letter per page: w writable, r read-only, n not present, d without D, a without A, x of the other privilege, m MMIO */
};
extern const struct window windows[];
extern const unsigned window_count;

#endif
