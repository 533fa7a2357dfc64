/* Compute kernels made of jumps: a state machine, a bytecode interpreter, recursion. */
#include "micro.h"

/*
 * k-state: one iteration runs a lexer, a switch of states over characters, over 16 KiB of invented program text: words,
 * numbers, strings with escapes, comments, operators.
 */
#define TEXT_SIZE 16384u

enum lexer { AT_SPACE, IN_WORD, IN_NUMBER, IN_HEX, IN_STRING, IN_ESCAPE, AT_SLASH, IN_COMMENT, AT_STAR, LEXER_STATES };

static void *state_open(uint64_t n)
{
	static const char *const pieces[] = {
		"while ", "x1 ", "0x1fc ", "12345 ", "\"a string \\\"of\\n words\" ", "/* a remark ** with / stars */ ", "(a + b) ",
		"return ", "{\n\t", "}\n", "; ", "a[i] = b / c; ", "value_7 ", "999 ", "!= ",
	};
	char *text = micro_alloc(TEXT_SIZE);
	uint64_t seed = 0xc0ffee123456789ull;
	unsigned at = 0;

	while (at < TEXT_SIZE)
		for (const char *p = pieces[random_next(&seed) % 15]; *p && at < TEXT_SIZE; p++)
			text[at++] = *p;
	return text;
}

static bool is_word(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static enum lexer lexer_begin(char c)
{
	if (is_word(c))
		return IN_WORD;
	if (is_digit(c))
		return IN_NUMBER;
	if (c == '"')
		return IN_STRING;
	return c == '/' ? AT_SLASH : AT_SPACE;
}

static enum lexer lexer_next(enum lexer state, char c)
{
	switch (state) {
	case IN_WORD: return is_word(c) || is_digit(c) ? IN_WORD : lexer_begin(c);
	case IN_NUMBER: return c == 'x' ? IN_HEX : is_digit(c) ? IN_NUMBER : lexer_begin(c);
	case IN_HEX: return is_digit(c) || (c >= 'a' && c <= 'f') ? IN_HEX : lexer_begin(c);
	case IN_STRING: return c == '\\' ? IN_ESCAPE : c == '"' ? AT_SPACE : IN_STRING;
	case IN_ESCAPE: return IN_STRING;
	case AT_SLASH: return c == '*' ? IN_COMMENT : lexer_begin(c);
	case IN_COMMENT: return c == '*' ? AT_STAR : IN_COMMENT;
	case AT_STAR: return c == '/' ? AT_SPACE : c == '*' ? AT_STAR : IN_COMMENT;
	default: return lexer_begin(c);
	}
}

static uint64_t state_run(void *ctx, uint64_t n)
{
	const char *text = ctx;
	uint64_t tokens[LEXER_STATES] = {0}, check = 6;

	for (uint64_t i = 0; i < n; i++) {
		enum lexer state = AT_SPACE, next;

		for (unsigned at = 0; at < TEXT_SIZE; at++) {
			next = lexer_next(state, text[at]);
			if (next != state)
				tokens[next]++;
			state = next;
		}
		check = check_mix(check, state);
	}
	for (unsigned i = 0; i < LEXER_STATES; i++)
		check = check_mix(check, tokens[i]);
	return check;
}

static void state_close(void *ctx)
{
	micro_free(ctx, TEXT_SIZE);
}

/* k-bytecode: one iteration interprets a sieve of Eratosthenes up to 2000 on a machine of eight registers. */
#define SIEVE 2000

enum opcode { OP_LOAD, OP_MOVE, OP_ADD, OP_ADDI, OP_LESS, OP_GET, OP_PUT, OP_JUMP, OP_IF, OP_UNLESS, OP_END };

struct instruction {
	uint8_t op, to, a, b;
	int32_t value;
};

/* r0 candidate, r1 multiple, r2 limit, r3 flag, r4 count, r5 one, r6 sum */
static const struct instruction sieve[] = {
	{OP_LOAD, 2, 0, 0, SIEVE}, {OP_LOAD, 5, 0, 0, 1}, {OP_LOAD, 0, 0, 0, 0},
	/* 3: clear */
	{OP_LOAD, 3, 0, 0, 0}, {OP_PUT, 3, 0, 0, 0}, {OP_ADDI, 0, 0, 0, 1}, {OP_LESS, 3, 0, 2, 0}, {OP_IF, 0, 3, 0, 3},
	{OP_LOAD, 0, 0, 0, 2}, {OP_LOAD, 4, 0, 0, 0},
	/* 10: is this one prime? */
	{OP_GET, 3, 0, 0, 0}, {OP_IF, 0, 3, 0, 19}, {OP_ADDI, 4, 4, 0, 1}, {OP_ADD, 6, 6, 0, 0}, {OP_MOVE, 1, 0, 0, 0},
	/* 15: strike out its multiples */
	{OP_PUT, 5, 1, 0, 0}, {OP_ADD, 1, 1, 0, 0}, {OP_LESS, 3, 1, 2, 0}, {OP_IF, 0, 3, 0, 15},
	/* 19: the next */
	{OP_ADDI, 0, 0, 0, 1}, {OP_LESS, 3, 0, 2, 0}, {OP_UNLESS, 0, 3, 0, 23}, {OP_JUMP, 0, 0, 0, 10},
	{OP_END, 0, 0, 0, 0},
};

static uint64_t interpret(const struct instruction *program, uint8_t *memory)
{
	uint64_t r[8] = {0};

	for (const struct instruction *pc = program;;) {
		const struct instruction *i = pc++;

		switch (i->op) {
		case OP_LOAD: r[i->to] = (uint64_t)i->value; break;
		case OP_MOVE: r[i->to] = r[i->a]; break;
		case OP_ADD: r[i->to] = r[i->a] + r[i->b]; break;
		case OP_ADDI: r[i->to] = r[i->a] + (uint64_t)i->value; break;
		case OP_LESS: r[i->to] = r[i->a] < r[i->b]; break;
		case OP_GET: r[i->to] = memory[r[i->a]]; break;
		case OP_PUT: memory[r[i->a]] = (uint8_t)r[i->to]; break;
		case OP_JUMP: pc = program + i->value; break;
		case OP_IF: pc = r[i->a] ? program + i->value : pc; break;
		case OP_UNLESS: pc = r[i->a] ? pc : program + i->value; break;
		default: return r[4] << 32 | r[6];
		}
	}
}

static uint64_t bytecode_run(void *ctx, uint64_t n)
{
	uint8_t memory[SIEVE + 8];
	uint64_t check = 7;

	for (uint64_t i = 0; i < n; i++)
		check = check_mix(check, interpret(sieve, memory));
	return check;
}

/* k-recursion: one iteration is fib(18) and Ackermann(2, 24), call by call. */
__attribute__((noinline)) static uint64_t fibonacci(uint64_t n)
{
	return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}

__attribute__((noinline)) static uint64_t ackermann(uint64_t m, uint64_t n)
{
	if (!m)
		return n + 1;
	return ackermann(m - 1, n ? ackermann(m, n - 1) : 1);
}

static uint64_t recursion_run(void *ctx, uint64_t n)
{
	uint64_t check = 8;

	for (uint64_t i = 0; i < n; i++)
		check = check_mix(check, fibonacci(18 + (i & 1)) + ackermann(2, 24 + (i & 1)));
	return check;
}

const struct workload branch_kernels[] = {
	{.name = "k-state", .n = 800, .open = state_open, .run = state_run, .close = state_close},
	{.name = "k-bytecode", .n = 400, .run = bytecode_run},
	{.name = "k-recursion", .n = 1700, .run = recursion_run},
	{0},
};
