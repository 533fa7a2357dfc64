/*
 * Two engines side by side, the interpreter and the translator (or lockstep, which is both again), each with RAM of its own: what the
 * differential tests of 64-bit (transtest.c) and of 32-bit code (transtest32.c) share. A test describes its guest by a struct subject;
 * engines_main() makes random programs, runs each several times on both, with other registers each time, compares the whole CPU state
 * and memory after every run, and makes a difference small: gadgets become NOPs as long as the engines still differ.
 *
 * A program ends in HLT, in an exception (its handler is HLT; then it goes on with the gadget behind the one that faulted) or by
 * its limit, and then counts for nothing.
 */
#ifndef TESTS_ENGINES_H
#define TESTS_ENGINES_H

#include "engine/engine_state.h"
#include "gadget.h"
#include "random_insn.h"

struct side {
	struct vcpu_block *block;
	struct vm_shared *shared;
	struct engine *engine;
	uint8_t *ram;
	uint64_t mmio;	   /* what was accessed, hashed */
	unsigned accesses; /* to what is no RAM */
	enum vcpu_exit_kind kind;
};

struct tester {
	struct side sides[2]; /* interpreter, translator */
	const struct subject *subject;
	unsigned table_pages;	  /* of the guest's page tables, in use */
	unsigned runs;		  /* of each program */
	uint64_t ended, faults;	  /* runs that ended; in an exception */
	volatile unsigned alarms; /* of this run */
};

/* A test's tester begins with a struct tester. */
struct subject {
	const char *name;
	size_t tester_size, ram_size;
	uint64_t handlers;     /* of 32 exceptions, 16 bytes apart */
	unsigned accesses_max; /* a run with more of them to what is no RAM does not count; 0: any number */
	bool all_ram;	       /* all RAM is compared after the last run; what a program leaves there stays for the next one */
	const char *const *gpr_names;
	uint64_t (*access)(void *side, unsigned space, uint64_t addr, unsigned size, bool is_write, uint64_t value);
	bool (*possible)(const struct engine *translator);
	void (*first_state)(struct side *side);
	/* A program of so many gadgets; its row, to make it smaller. */
	void (*make)(struct tester *t, struct insn_source *s, unsigned count);
	struct gadget *(*row)(struct tester *t, unsigned *count);
	void (*print)(struct tester *t);
	/* Memory and machine state of both for the program. */
	void (*begin)(struct tester *t, uint64_t number);
	/* One run's registers and table, the same for both. */
	void (*prepare)(struct tester *t, struct insn_source *s);
	/* Makes equal what may differ. */
	void (*forgive)(struct tester *t);
	bool (*same_memory)(struct tester *t, bool whole, bool print);
	/* After an exception that both have taken alike: on behind the gadget that faulted. False: that is none. */
	bool (*resume)(struct tester *t);
	/* Half a line about the run that differs. */
	void (*describe)(struct tester *t);
};

int engines_main(const struct subject *subject, int argc, char **argv);

/* The number of bytes that differ; a few of them are printed. */
unsigned compare_bytes(const char *what, const uint8_t *a, const uint8_t *b, size_t size, bool print);
/* A page table entry for a page of the type (a letter, transgen.h); mmio: where nothing is. */
uint64_t page_entry(char type, bool user, uint64_t gpa, uint64_t mmio);
void fill_random(uint8_t *memory, size_t size, uint64_t seed);
/* Vector registers and, with x87, its stack and control word too; now and then CR0.TS. */
void random_vectors(struct cpu_state *c, struct insn_source *s, bool x87);
/* Where a run goes on, on one side. */
void side_resume(struct side *side, uint64_t rip, uint64_t rsp, uint64_t rflags);

#endif
