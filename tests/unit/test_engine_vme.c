/* VIF in place of IF: CLI, STI, PUSHF, POPF, IRET and INT n of virtual-8086 code, CLI and STI of user code under CR4.PVI. */
#include <check.h>

#include "engine_fixture.h"
#include "run_suite.h"

#define V86_STACK 0x2000u /* SS:SP = 1000h:2000h */

static struct fixture f;

/* Virtual-8086 mode without paging, code at FIXTURE_CODE by CS = 1000h. Faults go to 32-bit handlers at CPL 0. */
static void again(void)
{
	struct cpu_state *cpu;

	fixture_close(&f);
	fixture_open(&f);
	cpu = f.cpu;
	cpu->cr0 = CR0_PE | CR0_ET | CR0_NE;
	cpu->cr4 = CR4_VME;
	cpu->efer = 0;
	for (unsigned n = 0; n < 32; n++) {
		uint64_t offset = FIXTURE_HANDLERS + n * 16;

		fixture_put64(&f, FIXTURE_IDT + n * 8, (offset & 0xffff) | FIXTURE_SEL_CODE32 << 16 |
			0xee00ull << 32 | (offset >> 16) << 48);
	}
	memset(f.ram + FIXTURE_TSS, 0, 0x200);
	memcpy(f.ram + FIXTURE_TSS + 4, &(uint32_t){0x28000}, 4);
	memcpy(f.ram + FIXTURE_TSS + 8, &(uint16_t){FIXTURE_SEL_DATA}, 2);
	memcpy(f.ram + FIXTURE_TSS + 102, &(uint16_t){0x68 + 32}, 2);
	memset(f.ram + FIXTURE_TSS + 0x68, 0xff, 0x80);
	fixture_set_segment(&cpu->tr, FIXTURE_SEL_TSS, 0x8b, FIXTURE_TSS, 0xff);
	for (unsigned n = 0; n < SEG_COUNT; n++)
		fixture_set_segment(&cpu->seg[n], 0x1000, 0xf3, 0x10000, 0xffff);
	cpu->rflags = FLAG_FIXED | FLAG_VM;
	cpu->gpr[GPR_RSP] = V86_STACK;
}

static void setup(void)
{
	fixture_open(&f);
	again();
}

static void teardown(void)
{
	fixture_close(&f);
}

/* Runs v86 code; the HLT behind it is a #GP, whose handler halts. Returns the IP that faulted. */
static unsigned run(const void *code, unsigned size)
{
	memcpy(f.ram + FIXTURE_CODE, code, size);
	f.ram[FIXTURE_CODE + size] = 0xf4;
	f.cpu->gpr[GPR_RIP] = 0;
	f.cpu->activity = CPU_RUNNING;
	engine_state_changed(f.engine);
	engine_run(f.engine, 100);
	ck_assert_int_eq(fixture_vector(&f), EXC_GP);
	return *(uint32_t *)(void *)(f.ram + f.cpu->gpr[GPR_RSP] + 8); /* vector, error code, EIP */
}
static uint32_t pushed_flags(void)
{
	return *(uint32_t *)(void *)(f.ram + f.cpu->gpr[GPR_RSP] + 16);
}
static uint16_t v86_word(unsigned sp)
{
	return *(uint16_t *)(void *)(f.ram + 0x10000 + sp);
}

START_TEST(cli_and_sti)
{
	ck_assert_uint_eq(run("\xfb", 1), 1); /* sti */
	ck_assert_uint_eq(pushed_flags() & (FLAG_VIF | FLAG_IF), FLAG_VIF);
	again();
	f.cpu->rflags |= FLAG_VIF | FLAG_IF;
	ck_assert_uint_eq(run("\xfa", 1), 1); /* cli */
	ck_assert_uint_eq(pushed_flags() & (FLAG_VIF | FLAG_IF), FLAG_IF);
	again();
	f.cpu->rflags |= FLAG_VIP;
	ck_assert_uint_eq(run("\x90\xfb", 2), 1); /* sti with an interrupt that waits */
	again();
	f.cpu->cr4 = 0;
	ck_assert_uint_eq(run("\x90\xfa", 2), 1);
	again();
	f.cpu->rflags |= FLAG_IOPL;
	f.cpu->cr4 = 0;
	ck_assert_uint_eq(run("\xfb", 1), 1);
	ck_assert_uint_eq(pushed_flags() & (FLAG_VIF | FLAG_IF), FLAG_IF);
}
END_TEST

START_TEST(pushf_and_popf)
{
	f.cpu->rflags |= FLAG_VIF | FLAG_CF;
	ck_assert_uint_eq(run("\x9c", 1), 1);
	ck_assert_uint_eq(v86_word(V86_STACK - 2), FLAG_FIXED | FLAG_CF | FLAG_IF | FLAG_IOPL);
	again();
	f.cpu->rflags |= FLAG_IF;
	ck_assert_uint_eq(run("\x9c", 1), 1);
	ck_assert_uint_eq(v86_word(V86_STACK - 2), FLAG_FIXED | FLAG_IOPL);
	again();
	ck_assert_uint_eq(run("\x66\x9c", 2), 0); /* 32 bits fault */
	again();
	ck_assert_uint_eq(run("\x68\x01\x32\x9d", 4), 4); /* push IOPL, IF, CF; popf */
	ck_assert_uint_eq(pushed_flags() & (FLAG_VIF | FLAG_IF | FLAG_IOPL | FLAG_CF), FLAG_VIF | FLAG_CF);
	again();
	ck_assert_uint_eq(run("\x68\x00\x01\x9d", 4), 3); /* TF */
	again();
	f.cpu->rflags |= FLAG_VIP;
	ck_assert_uint_eq(run("\x68\x00\x02\x9d", 4), 3); /* IF while an interrupt waits */
	ck_assert_uint_eq(*(uint16_t *)(void *)(f.ram + f.cpu->gpr[GPR_RSP] + 20), V86_STACK - 2);
}
END_TEST

START_TEST(interrupts_and_iret)
{
	const uint32_t entry = 0x10000000 | 0x100; /* 1000h:0100h */

	memcpy(f.ram + 0x21 * 4, &entry, 4);
	f.ram[FIXTURE_TSS + 0x68 + 4] = 0xfd; /* INT 21h goes to the program */
	memcpy(f.ram + FIXTURE_CODE + 0x100, "\x9c\x5b\xcf", 3); /* pushf; pop %bx; iret */
	f.cpu->rflags |= FLAG_VIF;
	ck_assert_uint_eq(run("\xcd\x21", 2), 2);
	ck_assert_uint_eq(v86_word(V86_STACK - 2), FLAG_FIXED | FLAG_IF | FLAG_IOPL);
	ck_assert_uint_eq(v86_word(V86_STACK - 4), 0x1000);
	ck_assert_uint_eq(v86_word(V86_STACK - 6), 2);
	ck_assert_uint_eq(f.cpu->gpr[GPR_RBX] & 0xffff, FLAG_FIXED | FLAG_IOPL);
	ck_assert_uint_eq(pushed_flags() & (FLAG_VIF | FLAG_IF), FLAG_VIF);
	again();
	ck_assert_uint_eq(run("\x90\xcd\x21", 3), 1); /* the map's bit is set, IOPL is 0 */
	again();
	f.ram[FIXTURE_TSS + 0x68 + 4] = 0xfd;
	memcpy(f.ram + 0x21 * 4, &entry, 4);
	f.cpu->rflags |= FLAG_IOPL | FLAG_IF;
	memcpy(f.ram + FIXTURE_CODE + 0x100, "\x9c\x5b\xf4", 3); /* pushf; pop %bx; hlt */
	ck_assert_uint_eq(run("\xcd\x21", 2), 0x102);
	ck_assert_uint_eq(f.cpu->gpr[GPR_RBX] & 0xffff, FLAG_FIXED | FLAG_IOPL); /* IF itself is cleared */
	again();
	f.cpu->cr4 = 0;
	f.ram[FIXTURE_TSS + 0x68 + 4] = 0xfd;
	ck_assert_uint_eq(run("\x90\xcd\x21", 3), 1);
}
END_TEST

START_TEST(protected_virtual_interrupts)
{
	f.cpu->cr4 = CR4_PVI;
	f.cpu->rflags = FLAG_FIXED;
	fixture_set_segment(&f.cpu->seg[SEG_CS], 0x1b, 0xc0fb, 0x10000, ~0u);
	for (unsigned n = 0; n < SEG_COUNT; n++)
		if (n != SEG_CS)
			fixture_set_segment(&f.cpu->seg[n], FIXTURE_SEL_UDATA, 0xc0f3, 0x10000, ~0u);
	ck_assert_uint_eq(run("\xfb", 1), 1);
	ck_assert_uint_eq(pushed_flags() & (FLAG_VIF | FLAG_IF), FLAG_VIF);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("engine_vme");
	TCase *tcase = tcase_create("engine_vme");

	tcase_add_checked_fixture(tcase, setup, teardown);
	tcase_add_test(tcase, cli_and_sti);
	tcase_add_test(tcase, pushf_and_popf);
	tcase_add_test(tcase, interrupts_and_iret);
	tcase_add_test(tcase, protected_virtual_interrupts);
	suite_add_tcase(suite, tcase);
	return run_suite(suite);
}
