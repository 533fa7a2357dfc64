/*
 * Control flow for the differential tester: jumps, calls, returns and loops to an instruction further on (never back: each
 * test ends), some to addresses where nothing is, and PUSHF and POPF, also with TF.
 */
#include <string.h>

#include "difftest.h"

static void put(struct tester *t, const void *bytes, unsigned size)
{
	memcpy(t->test.code + t->test.length, bytes, size);
	t->test.length += size;
}

static void put8(struct tester *t, unsigned byte)
{
	uint8_t b = (uint8_t)byte;

	put(t, &b, 1);
}

/* A field to be filled in when it is known where the instructions are. */
static void put_target(struct tester *t, unsigned size, bool relative)
{
	struct test *test = &t->test;

	test->branches[test->branch_count++] = (struct branch){ .at = (uint8_t)test->length, .size = (uint8_t)size,
		.relative = relative, .slot = (uint8_t)test->count };
	put(t, "\0\0\0", size);
}

/* As relative: the size of the displacement, with the opcode of each. */
static void put_relative(struct tester *t, unsigned opcode8, unsigned opcode32)
{
	if (opcode8 && (!opcode32 || pick(&t->source, 2))) {
		put8(t, opcode8);
		put_target(t, 1, true);
		return;
	}
	if (opcode32 > 0xff)
		put8(t, opcode32 >> 8);
	put8(t, opcode32);
	put_target(t, 4, true);
}

/* mov reg,target; jmp or call reg. One in 16 leads nowhere. */
static void put_indirect(struct tester *t)
{
	unsigned reg = pick(&t->source, 8), operation = pick(&t->source, 2) ? 0xd0 : 0xe0;
	uint64_t wild = next_random(&t->source) >> pick(&t->source, 64);

	if (reg == GPR_RSP)
		reg = GPR_RAX;
	if (t->bits == 64 && !pick(&t->source, 16)) {
		put8(t, 0x48);
		put8(t, 0xb8 + reg);
		put(t, &wild, 8);
	} else {
		put8(t, 0xb8 + reg);
		put_target(t, 4, false);
	}
	put8(t, 0xff);
	put8(t, operation + reg);
}

/* push target, and something that takes it from the stack: RET, RET 16, CALL [rsp], JMP [rsp]. */
static void put_by_stack(struct tester *t)
{
	static const char *const takers[] = { "\xc3", "\xc2\x10\x00", "\xff\x14\x24", "\xff\x24\x24" };
	const char *taker = takers[pick(&t->source, 4)];

	put8(t, 0x68);
	put_target(t, 4, false);
	put(t, taker, taker[0] == '\xc3' ? 1 : 3);
}

/* push flags; popf. Not AC: the signal handlers of the host's run would inherit it. */
static void put_popf(struct tester *t)
{
	uint32_t flags = (uint32_t)next_random(&t->source) & ~(uint32_t)(FLAG_AC | FLAG_TF);

	if (!pick(&t->source, 6))
		flags |= FLAG_TF;
	put8(t, 0x68);
	put(t, &flags, 4);
	put8(t, 0x9d);
}

void test_append_branch(struct tester *t)
{
	unsigned condition = pick(&t->source, 16);

	t->test.count++;
	t->test.open_ended = true;
	switch (pick(&t->source, 9)) {
	case 0:
	case 1:
	case 2: put_relative(t, 0x70 + condition, 0x0f80 + condition); break;
	case 3: put_relative(t, 0xe0 + pick(&t->source, 4), 0); break; /* LOOPNE, LOOPE, LOOP, JRCXZ */
	case 4: pick(&t->source, 2) ? put_relative(t, 0xeb, 0xe9) : put_relative(t, 0, 0xe8); break;
	case 5: put_indirect(t); break;
	case 6: put_by_stack(t); break;
	case 7: put_popf(t); break;
	case 8: put8(t, 0x9c); break;
	}
}

void test_close_branches(struct tester *t)
{
	struct test *test = &t->test;

	for (unsigned k = 0; k < test->branch_count; k++) {
		const struct branch *b = &test->branches[k];
		unsigned slot = b->slot + pick(&t->source, test->count - b->slot + 1), end = b->at + b->size;
		uint32_t value;

		while (b->size == 1 && test->starts[slot] - end > 127)
			slot--;
		value = b->relative ? test->starts[slot] - end : (uint32_t)test->rip + test->starts[slot];
		memcpy(test->code + b->at, &value, b->size);
	}
}
