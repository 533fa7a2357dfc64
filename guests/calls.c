/*
 * Calls, returns and jumps from page to page, often enough that whoever remembers where they lead does: returns that are not
 * where the call left them, more calls than anyone counts, and pages that are others when control comes back to them.
 */
#include "guest.h"

#define WINDOW 0x8000000000ul
#define OTHER (WINDOW + 0x200000)
#define TIMES 4000u

extern volatile uint64_t boot_pml4[512];
static volatile uint64_t tables[2][512] __attribute__((aligned(4096)));
static volatile uint64_t leaves[2][512] __attribute__((aligned(4096)));
static volatile uint8_t code[4][4096] __attribute__((aligned(4096)));
typedef int (*function)(void);

extern int call_aside(void), call_far_up(void), call_through(function f), call_chain(unsigned depth), call_skewed(void);

asm(".text; .balign 4096\n"
    /* The callee returns behind the instruction that follows the call. */
    "call_aside: call 1f\n mov $1, %eax\n ret\n 2: mov $2, %eax\n ret\n"
    "1: lea 2b(%rip), %rax\n mov %rax, (%rsp)\n ret\n"
    /* The innermost of three returns to the outermost's caller. */
    "call_far_up: call 1f\n mov $1, %eax\n ret\n"
    "1: call 2f\n mov $3, %eax\n ret\n"
    "2: call 3f\n mov $4, %eax\n ret\n"
    "3: lea 24(%rsp), %rsp\n mov $5, %eax\n ret\n"
    /* An indirect call by a return, as kernels do. */
    "call_through: sub $8, %rsp\n call 1f\n add $8, %rsp\n add $1, %eax\n ret\n"
    "1: call 2f\n ud2\n 2: mov %rdi, (%rsp)\n ret\n"
    "call_chain: xor %eax, %eax\n test %edi, %edi\n jz 1f\n sub $1, %edi\n call call_chain\n add $1, %eax\n 1: ret\n"
    /* Stacks that are not aligned, and returns that take arguments along. */
    "call_skewed: push %rbp\n mov %rsp, %rbp\n xor %eax, %eax\n sub $12, %rsp\n call 1f\n sub $1, %rsp\n call 1f\n"
    "sub $4, %rsp\n push $7\n call 2f\n add $1, %rsp\n call 1f\n mov %rbp, %rsp\n pop %rbp\n ret\n"
    "1: add $1, %eax\n push $0\n push $0\n call 3f\n ret\n"
    "2: add 8(%rsp), %eax\n ret $8\n"
    "3: ret $16\n");

/*
 * kinds[i] says which function of the table is called in the i-th turn, by either of two loops; CF and ZF go in and out. What a call gives
 * is in model(). All but the last function are in the loops' page.
 */
extern uint64_t call_kinds(const function *table, const uint8_t *kinds, word count);
extern uint64_t call_kinds_by_register(const function *table, const uint8_t *kinds, word count);
extern int kind_0(void), kind_1(void), kind_2(void), kind_3(void), kind_4(void), kind_5(void), kind_6(void);

asm(".macro kinds_loop name, how:vararg\n"
    "\\name: push %rbx\n push %r12\n push %r13\n mov %rdx, %r13\n xor %ebx, %ebx\n xor %r12d, %r12d\n"
    "1: movzbl (%rsi,%rbx), %eax\n imul $7, %ebx, %edx\n cmp $100, %dl\n mov (%rdi,%rax,8), %r8\n call *\\how\n"
    "lea 100(%r12), %r12\n adc $0, %r12\n inc %rbx\n cmp %r13, %rbx\n jne 1b\n"
    "mov %r12, %rax\n pop %r13\n pop %r12\n pop %rbx\n ret\n .endm\n"
    ".text; .balign 4096\n"
    "kind_0: adc $1, %r12\n ret\n"
    "kind_1: setz %cl\n movzbl %cl, %ecx\n lea (%r12,%rcx,2), %r12\n ret\n"
    "kinds_loop call_kinds, (%rdi,%rax,8)\n"
    "kinds_loop call_kinds_by_register, %r8\n"
    "kind_2: call *(%rdi)\n lea 5(%r12), %r12\n ret\n"
    "kind_3: addq $5, (%rsp)\n ret\n" /* behind the first instruction */
    "kind_4: pop %rcx\n jmp *%rcx\n"
    "kind_5: stc\n ret\n"
    ".balign 4096\n kind_6: cmc\n ret\n");

static uint64_t model(const uint8_t *kinds, unsigned count)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < count; i++) {
		bool carry = (uint8_t)(i * 7) < 100, zero = (uint8_t)(i * 7) == 100;

		switch (kinds[i]) {
		case 0: sum += 101 + carry; break;
		case 1: sum += 100 + 2 * zero + carry; break;
		case 2: sum += 106 + carry; break;
		case 3: break;
		case 4: sum += 100 + carry; break;
		case 5: sum += 101; break;
		default: sum += 100 + !carry; break;
		}
	}
	return sum;
}

static void map(volatile uint64_t *leaf, unsigned page)
{
	*leaf = (word)code[page] | 7;
}

static void flush(word gva)
{
	asm volatile("invlpg (%0)" : : "r"(gva) : "memory");
}

static int call(word gva)
{
	return ((function)gva)();
}

static volatile uint8_t *put32(volatile uint8_t *p, uint32_t value)
{
	for (unsigned i = 0; i < 4; i++)
		*p++ = value >> 8 * i;
	return p;
}

/* mov $value, %eax; ret */
static void put_value(volatile uint8_t *p, uint32_t value)
{
	*p++ = 0xb8;
	*put32(p, value) = 0xc3;
}

static void strange_returns(void)
{
	for (unsigned i = 0; i < TIMES; i++) {
		CHECK(call_aside() == 2);
		CHECK(call_far_up() == 5);
		CHECK(call_through(call_aside) == 3);
		CHECK(call_skewed() == 10);
	}
	say("calls: strange returns ok");
}

static void deep(void)
{
	for (unsigned i = 0; i < 40; i++) {
		CHECK(call_chain(300) == 300);
		CHECK(call_chain(3500) == 3500);
	}
	say("calls: deep ok");
}

static void indirect(void)
{
	static const function table[] = {kind_0, kind_1, kind_2, kind_3, kind_4, kind_5, kind_6};
	static uint8_t kinds[2 * TIMES];
	uint64_t seed = 0x9e3779b97f4a7c15ul;

	for (unsigned turn = 0; turn < 8; turn++) {
		/* One for long, then all of them; in another order; with one that is called for the first time. */
		for (unsigned i = 0; i < 2 * TIMES; i++) {
			seed = seed * 6364136223846793005ul + 1442695040888963407ul;
			kinds[i] = turn == 0 && i < TIMES * 3 / 2 ? 0 : (seed >> 40) % (turn < 4 ? 6 : 7);
		}
		CHECK(call_kinds(table, kinds, 2 * TIMES) == model(kinds, 2 * TIMES));
		CHECK(turn == 0 || call_kinds_by_register(table, kinds, 2 * TIMES) == model(kinds, 2 * TIMES));
	}
	say("calls: indirect ok");
}

static unsigned shown;

/* Called from the window: the page that it returns to is another one. */
static void turn_page(void)
{
	shown ^= 1;
	map(&leaves[0][0], shown);
	flush(WINDOW);
}

static void pages_under_a_call(void)
{
	for (unsigned n = 0; n < 2; n++) {
		volatile uint8_t *p = code[n];

		/* push %rbx; movabs $turn_page, %rax; call *%rax; mov $n, %eax; pop %rbx; ret */
		*p++ = 0x53;
		*p++ = 0x48;
		*p++ = 0xb8;
		p = put32(p, (uint32_t)(word)turn_page);
		p = put32(p, (uint32_t)((word)turn_page >> 32));
		*p++ = 0xff;
		*p++ = 0xd0;
		*p++ = 0xb8;
		p = put32(p, 100 + n);
		*p++ = 0x5b;
		*p++ = 0xc3;
	}
	map(&leaves[0][0], shown);
	flush(WINDOW);
	for (unsigned i = 0; i < TIMES; i++) {
		unsigned before = shown;

		CHECK(call(WINDOW) == (int)(100 + (before ^ 1)));
	}
	say("calls: pages under a call ok");
}

static void pages_before_a_jump(void)
{
	/* jmp to the next page's start; the next page is one of two. */
	code[0][16] = 0xe9;
	put32(&code[0][17], 4096 - 21);
	put_value(code[2], 2);
	put_value(code[3], 3);
	map(&leaves[0][0], 0);
	flush(WINDOW);
	for (unsigned i = 0; i < TIMES; i++) {
		/* Sometimes long enough to be learnt. */
		unsigned page = 2 + (i / (i < TIMES / 2 ? 1 : 100)) % 2;

		map(&leaves[0][1], page);
		flush(WINDOW + 4096);
		CHECK(call(WINDOW + 16) == (int)page);
	}
	/* The same page at two addresses, and what follows it there. */
	map(&leaves[0][1], 2);
	map(&leaves[1][0], 0);
	map(&leaves[1][1], 3);
	flush(WINDOW + 4096);
	flush(OTHER);
	flush(OTHER + 4096);
	for (unsigned i = 0; i < TIMES; i++) {
		CHECK(call(WINDOW + 16) == 2);
		CHECK(call(OTHER + 16) == 3);
	}
	say("calls: pages before a jump ok");
}

static unsigned calls;

/* Called from the innermost of calls: what they return to becomes another instruction, now and then. */
static void change_code(void)
{
	if (++calls % 64 == 0)
		code[0][14] ^= 3;
}

static void code_under_calls(void)
{
	/* test %edi, %edi; jz 1f; sub $1, %edi; call .; add $1, %eax; ret */
	static const uint8_t start[] = {0x85, 0xff, 0x74, 0x0c, 0x83, 0xef, 1, 0xe8, 0xf4, 0xff, 0xff, 0xff, 0x83, 0xc0, 1, 0xc3};
	volatile uint8_t *p = code[0];

	for (unsigned n = 0; n < sizeof(start); n++)
		*p++ = start[n];
	/* 1: push %rbx; movabs $change_code, %rax; call *%rax; xor %eax, %eax; pop %rbx; ret */
	*p++ = 0x53;
	*p++ = 0x48;
	*p++ = 0xb8;
	p = put32(p, (uint32_t)(word)change_code);
	p = put32(p, (uint32_t)((word)change_code >> 32));
	*p++ = 0xff;
	*p++ = 0xd0;
	*p++ = 0x31;
	*p++ = 0xc0;
	*p++ = 0x5b;
	*p++ = 0xc3;
	for (unsigned i = 0; i < TIMES; i++) {
		unsigned depth = 1 + i % 20;
		int got = ((int (*)(unsigned))(word)code[0])(depth);

		CHECK(got == (int)(depth * code[0][14]));
	}
	say("calls: code under calls ok");
}

int guest_main(void)
{
	boot_pml4[1] = (word)tables[0] | 7;
	tables[0][0] = (word)tables[1] | 7;
	tables[1][0] = (word)leaves[0] | 7;
	tables[1][1] = (word)leaves[1] | 7;
	set_cr3(get_cr3());
	strange_returns();
	deep();
	indirect();
	pages_under_a_call();
	pages_before_a_jump();
	code_under_calls();
	return 0;
}
