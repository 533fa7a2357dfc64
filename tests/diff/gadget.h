/*
 * The pieces that random programs for the translator's differential tests are made of, 64-bit (transgen.h) and 32-bit ones (transgen32.h):
 * a gadget is an instruction with what its operand needs, a branch, a store into code … The row of them is placed at code pages,
 * and only then are the fields filled in that depend on where things lie.
 */
#ifndef TESTS_GADGET_H
#define TESTS_GADGET_H

#include <stdbool.h>
#include <stdint.h>

#include <Zydis/Zydis.h>

#include "random_insn.h"

#define GADGETS_MAX 64u
#define GADGET_BYTES 96u
#define CODE_PAGES 16u

/* A field of 32 bits that waits for its value; FIX_LABEL8: of 8 bits, 0 if the value does not fit. */
enum fix_kind { FIX_LABEL, FIX_LABEL8, FIX_WINDOW, FIX_TABLE, FIX_PATCH, FIX_ABSOLUTE };

struct gadget {
	uint8_t bytes[GADGET_BYTES];
	unsigned length, at; /* at: offset from the code's base */
	struct {
		enum fix_kind kind;
		unsigned at, end; /* of the field; of its instruction */
		unsigned target;  /* gadget, or offset */
	} fix[8];
	unsigned fixes;
	unsigned patch_at; /* of an immediate that may be overwritten; 0 none */
	bool gap;	   /* goes to another page */
	bool dropped;	   /* while shrinking: NOPs instead */
};

void put(struct gadget *g, const void *bytes, unsigned size);
void put8(struct gadget *g, unsigned byte);
void put32(struct gadget *g, uint32_t value);
/* A field here, the last of its instruction but for `after` bytes. */
void put_fix(struct gadget *g, enum fix_kind kind, unsigned target, unsigned after);

/* One of the next few gadgets behind the nth of so many. */
unsigned gadget_ahead(struct insn_source *s, unsigned n, unsigned count);

/* The value of field `fix` of the gadget, which has been placed with all others. */
typedef uint32_t (*fix_value)(const void *program, const struct gadget *g, unsigned fix);
/* Writes the row into CODE_PAGES pages at `code`, the first gadget at offset `start`. */
void gadgets_place(struct gadget *row, unsigned count, unsigned start, uint8_t *code, fix_value value, const void *program);
/* Disassembles what gadgets_place() has written; base: its guest address. */
void gadgets_print(const struct gadget *row, unsigned count, const uint8_t *code, ZydisMachineMode mode, uint64_t base);

#endif
