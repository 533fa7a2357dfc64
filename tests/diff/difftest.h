/* What the parts of the differential tester share: the places in memory, a test, and what it left. */
#ifndef TESTS_DIFFTEST_H
#define TESTS_DIFFTEST_H

#include <signal.h>
#include <stdint.h>
#include <ucontext.h>

#include <Zydis/Zydis.h>

#include "engine/engine_state.h"
#include "random_insn.h"

#define DATA 0x10000000ull
#define DATA_SIZE 0x4000u
#define CODE 0x20000000ull
#define CODE_SIZE 0x100000u
#define SYSTEM 0x30000000ull
#define HANDLERS (SYSTEM + 0x1000)
#define IDT (SYSTEM + 0x2000)
#define TSS (SYSTEM + 0x3000)
#define STACK_TOP (SYSTEM + 0x5000)

#define RAM_SIZE 0x400000u
#define GPA_TABLES 0x1000u
#define GPA_DATA 0x10000u
#define GPA_SYSTEM 0x20000u
#define GPA_CODE 0x100000u

#define XSAVE_BV 512
#define MAX_LENGTH 16
#define HIDDEN_MAX 16

struct outcome {
	uint64_t gpr[16], rip, rflags, cr2;
	int vector; /* −1: reached the end */
	uint8_t xsave[CPU_XSAVE_SIZE];
	uint8_t data[DATA_SIZE];
};

struct branch {
	uint8_t at, size; /* of the field in the code */
	bool relative;
	uint8_t slot; /* the instruction that it leads behind */
};

struct test {
	uint8_t starts[MAX_LENGTH + 1]; /* of each instruction in the code */
	struct branch branches[MAX_LENGTH];
	unsigned branch_count;
	uint8_t code[MAX_LENGTH * 15];
	unsigned length, count;
	uint32_t undefined; /* flags that one of its instructions leaves undefined and the engine does not take from the host */
	bool open_ended; /* it branches: the guest runs until the INT3 at the end */
	bool loads_mxcsr;
	bool loose_cr2; /* known: FLDENV and FRSTOR look at their operand's end first on some CPUs; the page counts */
	uint64_t gpr[16], rflags, rip;
	uint8_t xsave[CPU_XSAVE_SIZE];
	uint8_t data[DATA_SIZE];
};

/* One run of the program; the signal handlers reach it through `current`. */
struct tester {
	struct insn_source source;
	unsigned bits; /* 64, or 32: compatibility mode */
	struct vcpu_block *block;
	struct vm_shared *shared;
	struct engine *engine;
	uint8_t *ram;
	uint64_t code_at;
	struct test test;
	struct outcome host, guest;
	/* The host's run. */
	uint8_t *host_code; /* CODE, writable */
	/* What the engine has below 4 GiB, where the host's run goes astray: hidden meanwhile. */
	struct hidden {
		void *at;
		size_t size;
		int prot;
	} hidden[HIDDEN_MAX];
	unsigned hidden_count;
	greg_t saved_regs[NGREG];
	uint8_t saved_fp[4096];
	unsigned saved_fp_size;
	volatile int running;
};

/* generate.c: a random test of `length` instructions into t->test. */
void test_make(struct tester *t, const ZydisDecoder *decoder, unsigned length);
/* branch.c: appends a branch, or PUSHF or POPF, whose target is an instruction to come: test_close_branches() sets it. */
void test_append_branch(struct tester *t);
void test_close_branches(struct tester *t);

#endif
