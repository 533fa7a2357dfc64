/* Guest page tables: who may do what, error codes, accessed and dirty bits, TLB invalidation, code that changes. */
#include <check.h>

#include "engine_fixture.h"
#include "run_suite.h"

static struct fixture f;

static void setup(void)
{
	fixture_open(&f);
}

static void teardown(void)
{
	fixture_close(&f);
}

/* mov [FIXTURE_DATA],eax / mov eax,[FIXTURE_DATA] / jmp FIXTURE_DATA (a HLT is there for CPL 0) */
static const uint8_t store[] = { 0x89, 0x04, 0x25, 0, 0, 3, 0 };
static const uint8_t load[] = { 0x8b, 0x04, 0x25, 0, 0, 3, 0 };
static const uint8_t jump[] = { 0xb8, 0, 0, 3, 0, 0xff, 0xe0 };

enum { LOAD, STORE, FETCH };

static bool is_allowed(bool user, unsigned access, uint64_t pte, bool wp, bool smep)
{
	if (!(pte & PTE_P) || (user && !(pte & PTE_U)))
		return false;
	if (access == STORE)
		return (pte & PTE_W) || (!user && !wp);
	if (access == FETCH)
		return !(pte & PTE_NX) && !(!user && smep && (pte & PTE_U));
	return true;
}

START_TEST(permission_matrix)
{
	for (unsigned n = 0; n < 2 * 3 * 16 * 4; n++) {
		bool user = n & 1, wp = n & 2, smep = n & 4;
		unsigned access = n / 8 % 3, bits = n / 24 % 16;
		uint64_t pte = FIXTURE_DATA | (bits & 1 ? PTE_P : 0) | (bits & 2 ? PTE_W : 0) | (bits & 4 ? PTE_U : 0) |
			(bits & 8 ? PTE_NX : 0);
		const uint8_t *code = access == LOAD ? load : access == STORE ? store : jump;
		bool allowed = is_allowed(user, access, pte, wp, smep), present = pte & PTE_P;
		/* Supervisor code must not lie in user pages with SMEP. */
		uint64_t code_bits = user ? 7 : 3;

		teardown();
		setup();
		fixture_put64(&f, fixture_pte(FIXTURE_CODE), FIXTURE_CODE | code_bits);
		fixture_put64(&f, fixture_pte(FIXTURE_HANDLERS), FIXTURE_HANDLERS | 3);
		fixture_put64(&f, fixture_pte(FIXTURE_DATA), pte);
		if (user)
			fixture_user(&f);
		f.cpu->cr0 = (f.cpu->cr0 & ~CR0_WP) | (wp ? CR0_WP : 0);
		f.cpu->cr4 |= smep ? CR4_SMEP : 0;
		f.cpu->gpr[GPR_RAX] = 0x5a5a5a5a;
		memset(f.ram + FIXTURE_DATA, 0xf4, 16);
		fixture_run(&f, code, 7, 0);
		if (allowed) {
			/* The HLT after it (#GP at CPL 3). */
			ck_assert_int_eq(fixture_vector(&f), user ? EXC_GP : -1);
			ck_assert(fixture_get64(&f, fixture_pte(FIXTURE_DATA)) & PTE_A);
			ck_assert_int_eq(!!(fixture_get64(&f, fixture_pte(FIXTURE_DATA)) & PTE_D), access == STORE);
		} else {
			ck_assert_int_eq(fixture_vector(&f), EXC_PF);
			ck_assert_uint_eq(f.cpu->cr2, FIXTURE_DATA);
			ck_assert_uint_eq(fixture_frame(&f, 0), (present ? PF_P : 0) | (access == STORE ? PF_W : 0) |
				(user ? PF_U : 0) | (access == FETCH ? PF_I : 0));
		}
	}
}
END_TEST

START_TEST(reserved_bit)
{
	fixture_put64(&f, fixture_pte(FIXTURE_DATA), FIXTURE_DATA | 7 | 1ull << 51);
	fixture_run(&f, load, sizeof(load), 0);
	ck_assert_int_eq(fixture_vector(&f), EXC_PF);
	ck_assert_uint_eq(fixture_frame(&f, 0), PF_P | PF_RSVD);
}
END_TEST

/* 32-bit code at CPL 0 with PAE paging: the fixture's page directory below four registers, the first of them loaded. */
static void use_pae(uint64_t pdpt, uint64_t first)
{
	fixture_put64(&f, pdpt, first);
	f.cpu->pdpte[0] = first;
	f.cpu->cr3 = pdpt;
	f.cpu->efer = EFER_NXE;
	fixture_set_segment(&f.cpu->seg[SEG_CS], FIXTURE_SEL_CODE32, 0xc09b, 0, ~0u);
}

#define PDPT (FIXTURE_PML4 + 0x4000)
#define PDPTE ((FIXTURE_PML4 + 0x2000) | PTE_P)

START_TEST(pdptes_are_registers)
{
	/* mov dword [PDPT],0; invlpg [data]; mov eax,[data]; then mov ecx,cr3; mov cr3,ecx */
	static const uint8_t code[] = { 0xc7, 5, 0, 0x40, 0x10, 0, 0, 0, 0, 0, 0x0f, 1, 0x3d, 0, 0, 3, 0, 0xa1, 0, 0, 3, 0,
		0x90, 0x0f, 0x20, 0xd9, 0x0f, 0x22, 0xd9 };

	fixture_put64(&f, FIXTURE_DATA, 0x1234);
	use_pae(PDPT, PDPTE);
	ck_assert_int_ne(fixture_run(&f, code, 22, 0), VCPU_EXIT_SHUTDOWN);
	ck_assert_uint_eq(f.cpu->gpr[GPR_RAX], 0x1234);
	use_pae(PDPT, PDPTE);
	ck_assert_int_eq(fixture_run(&f, code, sizeof(code), 0), VCPU_EXIT_SHUTDOWN);
	ck_assert_uint_eq(f.cpu->pdpte[0], 0);
}
END_TEST

START_TEST(reserved_bits_of_pdptes)
{
	/* mov cr3,ecx: #GP, which the 64-bit IDT takes to some handler */
	static const uint8_t code[] = { 0x0f, 0x22, 0xd9 };

	use_pae(PDPT, PDPTE);
	fixture_put64(&f, PDPT + 0x800, PDPTE | PTE_W);
	f.cpu->gpr[GPR_RCX] = PDPT + 0x800;
	fixture_run(&f, code, sizeof(code), 0);
	ck_assert_int_ge(fixture_vector(&f), 0);
	ck_assert_uint_eq(f.cpu->cr3, PDPT);
	ck_assert_uint_eq(f.cpu->pdpte[0], PDPTE);
}
END_TEST

START_TEST(stale_until_invlpg)
{
	/* mov eax,[data]; mov qword [pte],0; mov eax,[data]; invlpg [data]; mov eax,[data] */
	uint8_t code[64];
	uint32_t pte = (uint32_t)fixture_pte(FIXTURE_DATA);
	unsigned n = 0;

	memcpy(code, load, 7);
	n = 7;
	memcpy(code + n, "\x48\xc7\x04\x25", 4);
	memcpy(code + n + 4, &pte, 4);
	memset(code + n + 8, 0, 4);
	n += 12;
	memcpy(code + n, load, 7);
	n += 7;
	memcpy(code + n, "\x0f\x01\x3c\x25\x00\x00\x03\x00", 8);
	n += 8;
	memcpy(code + n, load, 7);
	fixture_run(&f, code, n + 7, 0);
	ck_assert_int_eq(fixture_vector(&f), EXC_PF);
	ck_assert_uint_eq(fixture_frame(&f, 1), FIXTURE_CODE + n);
}
END_TEST

START_TEST(crossing_store_is_all_or_nothing)
{
	/* mov [0x30ffc],rax with the second page absent */
	static const uint8_t code[] = { 0x48, 0x89, 0x04, 0x25, 0xfc, 0x0f, 3, 0 };

	fixture_put64(&f, fixture_pte(FIXTURE_DATA + 0x1000), 0);
	f.cpu->gpr[GPR_RAX] = ~0ull;
	fixture_run(&f, code, sizeof(code), 0);
	ck_assert_int_eq(fixture_vector(&f), EXC_PF);
	ck_assert_uint_eq(f.cpu->cr2, FIXTURE_DATA + 0x1000);
	ck_assert_uint_eq(fixture_get64(&f, FIXTURE_DATA + 0xff8), 0);
}
END_TEST

START_TEST(next_instruction_is_rewritten)
{
	/* mov byte [rip],0x40-ish: turns "inc ecx" (ff c1) into "dec ecx" (ff c9): c6 05 disp32 imm8; ff c1 */
	static const uint8_t code[] = { 0xc6, 0x05, 1, 0, 0, 0, 0xc9, 0xff, 0xc1 };

	f.cpu->gpr[GPR_RCX] = 5;
	fixture_run(&f, code, sizeof(code), 0);
	ck_assert_uint_eq(f.cpu->gpr[GPR_RCX], 4);
}
END_TEST

START_TEST(instruction_crosses_pages)
{
	/* mov eax,0x12345678 whose last bytes are on another, not adjacent frame */
	uint8_t *page = f.ram + 0x12000;

	memcpy(f.ram + 0x11ffd, "\xb8\x78\x56", 3);
	memcpy(f.ram + 0x50000, "\x34\x12\xf4", 3);
	page[0] = 0xcc;
	fixture_put64(&f, fixture_pte(0x12000), 0x50000 | 7);
	fixture_run(&f, "\xb8\xfd\x1f\x01\x00\xff\xe0", 7, 0);
	ck_assert_uint_eq(f.cpu->gpr[GPR_RAX], 0x12345678);
}
END_TEST

START_TEST(mmio_and_lapic)
{
	/* mov eax,[0x1ff000] mapped to MMIO */
	static const uint8_t code[] = { 0x8b, 0x04, 0x25, 0x10, 0xf0, 0x1f, 0 };

	fixture_put64(&f, fixture_pte(0x1ff000), 0xfed00000 | 7);
	fixture_run(&f, code, sizeof(code), 0);
	ck_assert_uint_eq(f.accesses, 1);
	ck_assert_uint_eq(f.last_addr, 0xfed00010);
	ck_assert_uint_eq(f.last_size, 4);
	ck_assert_uint_eq(f.cpu->gpr[GPR_RAX], 0x55667788);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("engine_mmu");
	TCase *c = tcase_create("mmu");

	tcase_add_checked_fixture(c, setup, teardown);
	tcase_set_timeout(c, 60);
	tcase_add_test(c, permission_matrix);
	tcase_add_test(c, reserved_bit);
	tcase_add_test(c, pdptes_are_registers);
	tcase_add_test(c, reserved_bits_of_pdptes);
	tcase_add_test(c, stale_until_invlpg);
	tcase_add_test(c, crossing_store_is_all_or_nothing);
	tcase_add_test(c, next_instruction_is_rewritten);
	tcase_add_test(c, instruction_crosses_pages);
	tcase_add_test(c, mmio_and_lapic);
	suite_add_tcase(s, c);
	return run_suite(s);
}
