/*
 * Branches from page to page, in many address spaces by turns: direct ones forward and back, conditional and not, two to each target,
 * by user code of 64 and 32 bits and by the kernel. What a translator knows of where such a branch leads is true of one address space
 * only: it must be learnt anew in the next one, and in half of them the same bytes of the first page lead to another second page.
 * tests/guests/counters counts what that took.
 */
#include "guest.h"

#define P 1ul
#define RW 2ul
#define US 4ul
#define ACC 0x20ul
#define DIRTY 0x40ul
#define WINDOW 0x40000000ul /* two pages of code, in all address spaces */
#define SPACES 64u /* more than a translator remembers */
#define CR4_PCIDE 0x20000ul
#define ROUNDS 4096u
#define MIXED_ROUNDS 64u /* where each second space has another second page */

static volatile uint64_t pml4s[SPACES][512] __attribute__((aligned(4096)));
static volatile uint64_t tables[2][3][512] __attribute__((aligned(4096)));
extern volatile uint64_t boot_pdpt[512];
static volatile word result;

/*
 * EDI rounds, EAX gets the sum of what the second page has added. Each of its two branches back is taken in each second round,
 * and so are the first page's two branches forward. The bytes mean the same as 32-bit code.
 */
extern char links_page[], links_second[], links_other[];
asm(".balign 4096\n"
    "links_page: mov %edi, %ebx; xor %eax, %eax\n"
    "1: test $1, %bl; jnz links_second; jmp links_second\n"
    ".balign 4096\n"
    "links_second: add $3, %eax; .byte 0xff, 0xcb; jz 2f; test $2, %bl; jnz 1b; jmp 1b\n"
    "2: int $0x80; ret\n"
    ".balign 4096\n" /* runs at the place of the one before */
    "links_other: add $5, %eax; .byte 0xff, 0xcb; jz 2f; test $2, %bl; jnz 1b + 4096; jmp 1b + 4096\n"
    "2: int $0x80; ret\n"
    ".balign 4096\n");

static bool keep_result(struct frame *frame)
{
	if (frame->vector != V_USER_EXIT)
		return false;
	result = frame->ax;
	return frame->cs == SEL_KERNEL_CODE;
}

static void make_spaces(void)
{
	for (unsigned n = 0; n < 2; n++) {
		for (unsigned i = 0; i < 4; i++)
			tables[n][0][i] = boot_pdpt[i];
		tables[n][0][1] = (word)tables[n][1] | P | RW | US;
		tables[n][1][0] = (word)tables[n][2] | P | RW | US;
		tables[n][2][0] = (word)links_page | P | US | ACC;
		tables[n][2][1] = (word)(n ? links_other : links_second) | P | US | ACC;
	}
}

static void run_user_64(unsigned rounds)
{
	CHECK(user_run((void *)WINDOW, 0, rounds) == V_USER_EXIT);
}

static void run_user_32(unsigned rounds)
{
	asm volatile("mov %0, %%ds; mov %0, %%es" : : "r"(SEL_USER_DATA)); /* else they become null, and the code is interpreted */
	CHECK(user_run_in(SEL_USER_CODE32, (void *)WINDOW, 0, rounds) == V_USER_EXIT);
}

static void run_kernel(unsigned rounds)
{
	asm volatile("call *%1" : "+D"(rounds) : "r"(WINDOW) : "rax", "rbx", "memory", "cc");
}

/* `mixed`: each second space has the other second page. */
static void visit(void (*run)(unsigned), unsigned rounds, bool mixed)
{
	word boot = get_cr3();

	for (unsigned n = 0; n < SPACES; n++)
		pml4s[n][0] = (word)tables[mixed ? n & 1 : 0][0] | P | RW | US;
	for (unsigned n = 0; n < SPACES; n++) {
		set_cr3((word)pml4s[n]);
		run(rounds);
		CHECK(result == rounds * (mixed && n & 1 ? 5u : 3u));
	}
	set_cr3(boot);
}

/*
 * Few address spaces, each time with another PCID, as kernels do that have more processes than PCIDs. The second page changes between the turns,
 * and no translation of the PCID that comes then is left: CR3 is written without bit 63.
 */
static void visit_pcids(void (*run)(unsigned), unsigned rounds, bool changing)
{
	word boot = get_cr3();

	if (!(cpuid(1, 0).ecx & 1 << 17))
		return;
	set_cr4(get_cr4() | CR4_PCIDE);
	for (unsigned n = 0; n < 5 * 7 * 8; n++) {
		bool other = changing && n / 5 & 1;

		tables[0][2][1] = (word)(other ? links_other : links_second) | P | US | ACC;
		set_cr3((word)pml4s[n % 5] | (1 + n % 7));
		run(rounds);
		CHECK(result == rounds * (other ? 5u : 3u));
	}
	set_cr3(boot);
	set_cr4(get_cr4() & ~CR4_PCIDE);
	tables[0][2][1] = (word)links_second | P | US | ACC;
}

int guest_main(void)
{
	trap_hook = keep_result;
	make_spaces();
	visit(run_user_64, ROUNDS, false);
	visit(run_user_64, MIXED_ROUNDS, true);
	say("links: user ok");
	visit(run_user_32, ROUNDS, false);
	visit(run_user_32, MIXED_ROUNDS, true);
	say("links: 32-bit ok");
	visit(run_kernel, ROUNDS, false);
	visit(run_kernel, MIXED_ROUNDS, true);
	say("links: kernel ok");
	for (unsigned n = 0; n < SPACES; n++)
		pml4s[n][0] = (word)tables[0][0] | P | RW | US;
	visit_pcids(run_user_64, ROUNDS / 8, false);
	visit_pcids(run_user_64, MIXED_ROUNDS, true);
	visit_pcids(run_user_32, MIXED_ROUNDS, true);
	visit_pcids(run_kernel, MIXED_ROUNDS, true);
	say("links: PCIDs ok, where there are some");
	return 0;
}
