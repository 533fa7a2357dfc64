/*
 * Where the differential testers take random user-mode instructions from: bytes that are likely to be an instruction, and the
 * judgement whether one may be tested: no control flow, nothing of the system's, nothing that differs between two runs by nature.
 */
#ifndef TESTS_RANDOM_INSN_H
#define TESTS_RANDOM_INSN_H

#include <stdbool.h>
#include <stdint.h>

#include <Zydis/Zydis.h>

enum insn_class { CLASS_ALL, CLASS_INTEGER, CLASS_VECTOR, CLASS_X87, CLASS_BRANCH };

struct insn_source {
	uint64_t random[2];
	enum insn_class class;
	bool legacy;   /* for 16- and 32-bit code: no REX, and what VEX looks like there */
	bool segments; /* operands may be FS's and GS's */
};

/* Each test can be made again from the seed and its number. */
void insn_source_seed(struct insn_source *s, uint64_t seed, uint64_t number);
uint64_t next_random(struct insn_source *s);
/* 0 … n − 1. */
unsigned pick(struct insn_source *s, unsigned n);
/* Fills at least 24 bytes of b; returns where the opcode's last byte is about to stand. */
unsigned random_bytes(struct insn_source *s, uint8_t *b);
bool insn_allowed(const struct insn_source *s, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops);

#endif
