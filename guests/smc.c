/*
 * Code that changes: the next instruction of the same block, an instruction across a page border, another mapping of the
 * same page, a page's code replaced as a whole, and by string instructions (SDM vol. 3, 8.1.3, 11.6: the same linear
 * address needs no more than the jump; through another one a serializing instruction must come between).
 */
#include "guest.h"

#define WINDOW 0x8000000000ul

extern volatile uint64_t boot_pml4[512];
static volatile uint64_t tables[3][512] __attribute__((aligned(4096)));
static uint8_t code[3][4096] __attribute__((aligned(4096)));
typedef int (*function)(void);

static void serialize(void)
{
	cpuid(0, 0);
}

/* mov $value, %eax; ret */
static void put_function(volatile uint8_t *p, uint32_t value)
{
	p[0] = 0xb8;
	for (unsigned i = 0; i < 4; i++)
		p[1 + i] = value >> 8 * i;
	p[5] = 0xc3;
}

static int call(volatile void *p)
{
	return ((function)(word)p)();
}

static void next_instruction(void)
{
	for (unsigned i = 1; i < 50; i++) {
		unsigned v;

		/* The store changes the immediate of the very next instruction. */
		asm volatile("movl %1, 1f + 1\n1: movl $0x55555555, %%eax\n mov %%eax, %0" : "=r"(v) : "r"(i) : "ax", "memory");
		CHECK(v == i);
	}
	for (unsigned i = 0; i < 50; i++) {
		unsigned v;

		/* INC, DEC in turn: the opcode itself, two instructions ahead. */
		asm volatile("movb %b1, 1f + 1\n mov $10, %%eax\n nop\n1: .byte 0xff, 0xc0\n mov %%eax, %0"
			     : "=r"(v) : "q"(i & 1 ? 0xc8 : 0xc0) : "ax", "memory");
		CHECK(v == (i & 1 ? 9 : 11));
	}
	say("smc: next instruction ok");
}

static void whole_functions(void)
{
	volatile uint8_t *across = &code[0][4096 - 3];

	for (unsigned i = 0; i < 200; i++) {
		put_function(code[0], i);
		CHECK(call(code[0]) == (int)i);
	}
	for (unsigned i = 0; i < 100; i++) {
		put_function(across, i * 0x01010101); /* half of the instruction on the next page */
		CHECK(call(across) == (int)(i * 0x01010101));
		code[1][1] = 0x5a; /* the last byte of the immediate alone */
		CHECK(call(across) == (int)((i * 0x010101) | 0x5a000000));
	}
	/* By REP MOVSB and by a locked exchange. */
	uint8_t image[6] = {0xb8, 1, 2, 3, 4, 0xc3};
	void *to = code[0] + 64, *from = image;
	word n = sizeof(image);
	put_function(code[0] + 64, 7);
	CHECK(call(code[0] + 64) == 7);
	asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
	CHECK(call(code[0] + 64) == 0x04030201);
	uint32_t v = 99;
	asm volatile("lock; xchg %0, %1" : "+r"(v), "+m"(*(volatile uint32_t *)(code[0] + 65)) : : "memory");
	CHECK(v == 0x04030201 && call(code[0] + 64) == 99);
	say("smc: functions ok");
}

static void other_mapping(void)
{
	boot_pml4[1] = (word)tables[0] | 7;
	tables[0][0] = (word)tables[1] | 7;
	tables[1][0] = (word)tables[2] | 7;
	tables[2][0] = (word)code[0] | 7;
	tables[2][1] = (word)code[1] | 7;
	set_cr3(get_cr3());
	volatile uint8_t *alias = (volatile uint8_t *)WINDOW;
	for (unsigned i = 0; i < 100; i++) {
		put_function(alias, i);
		serialize();
		CHECK(call(code[0]) == (int)i);
		put_function(code[0], i + 1000);
		serialize();
		CHECK(call(alias) == (int)i + 1000);
	}
	/* The same linear address shows another page. */
	put_function(code[0], 1);
	put_function(code[1], 2);
	for (unsigned i = 0; i < 20; i++) {
		tables[2][0] = (word)code[i & 1] | 7;
		asm volatile("invlpg (%0)" : : "r"(WINDOW) : "memory");
		CHECK(call(alias) == (int)(i & 1) + 1);
	}
	/* An instruction that crosses pages, whose second page is remapped. */
	put_function(&code[0][4096 - 3], 0x11111111);
	put_function(&code[2][0], 0);
	code[2][0] = code[1][0];
	code[2][1] = 0x22;
	code[2][2] = 0xc3;
	code[1][0] = 0x11;
	code[1][1] = 0x11;
	code[1][2] = 0xc3;
	code[2][0] = 0x22;
	tables[2][0] = (word)code[0] | 7;
	asm volatile("invlpg (%0)" : : "r"(WINDOW) : "memory");
	for (unsigned i = 0; i < 20; i++) {
		tables[2][1] = (word)code[1 + (i & 1)] | 7;
		asm volatile("invlpg (%0)" : : "r"(WINDOW + 0x1000) : "memory");
		CHECK_NOT_BOCHS(call(alias + 4096 - 3) == (i & 1 ? 0x22221111 : 0x11111111));
	}
	say("smc: other mappings ok");
}

extern char user_calls[];
extern volatile word user_answer;
asm(".data; .balign 8\n.globl user_answer\nuser_answer: .quad 0\n.text\n"
    "user_calls: mov $64, %ebx\n1: call *%rdi\n dec %ebx; jnz 1b\n mov %rax, user_answer; int $0x80\n");

/* What calls of user code have learnt is good as long as the page is there: through flushes of all kinds, with A clear or set. */
static void user_mapping(void)
{
	put_function(code[0], 1);
	put_function(code[1], 2);
	for (unsigned i = 0; i < 64; i++) {
		unsigned page = i >> 2 & 1, accessed = i & 8 ? 0x20 : 0;

		tables[2][0] = (word)code[page] | 7 | accessed;
		if (i & 1)
			set_cr3(get_cr3());
		else
			asm volatile("invlpg (%0)" : : "r"(WINDOW) : "memory");
		user_answer = 0;
		CHECK(user_run(user_calls, 0, WINDOW) == V_USER_EXIT && user_answer == page + 1);
		CHECK(tables[2][0] & 0x20);
	}
	tables[2][0] = 0;
	set_cr3(get_cr3());
	CHECK(user_run(user_calls, 0, WINDOW) == V_PF && last.ip == WINDOW);
	tables[2][0] = (word)code[1] | 7;
	CHECK(user_run(user_calls, 0, WINDOW) == V_USER_EXIT && user_answer == 2);
	tables[2][0] = (word)code[1] | 3; /* the supervisor's */
	set_cr3(get_cr3());
	CHECK(user_run(user_calls, 0, WINDOW) == V_PF && last.ip == WINDOW);
	say("smc: mappings of user code ok");
}

/* A loop that rewrites itself while it runs, and data beside code that is written all the time. */
static void busy_page(void)
{
	volatile uint32_t *counter = (volatile uint32_t *)&code[0][2048];
	int sum = 0;

	put_function(code[0], 3);
	*counter = 0;
	for (unsigned i = 0; i < 20000; i++) {
		++*counter;
		sum += call(code[0]);
	}
	CHECK(sum == 60000 && *counter == 20000);
	unsigned v;
	asm volatile("xor %%eax, %%eax; mov $100, %%ecx\n1: add $1, %%eax\n incb 1b + 2\n dec %%ecx; jnz 1b\n movb $1, 1b + 2; mov %%eax, %0"
		     : "=r"(v) : : "ax", "cx", "memory");
	CHECK(v == 5050); /* 1 + 2 + … + 100; the immediate is one signed byte */
	say("smc: busy page ok");
}

int guest_main(void)
{
	next_instruction();
	whole_functions();
	other_mapping();
	user_mapping();
	busy_page();
	return 0;
}
