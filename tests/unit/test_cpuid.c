/* The CPU model: nothing that the host's instructions cannot do, and leaves that agree with each other. */
#include <check.h>
#include <cpuid.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "run_suite.h"
#include "vmm/cpu.h"
#include "vmm/cpu_lapic.h"
#include "vmm/error.h"

static struct cpu_model model;

static void setup(void)
{
	struct error err;

	ck_assert_int_eq(cpu_model_create("common", 1, &model, &err), 0);
}

static void leaf(uint32_t number, uint32_t sub, uint32_t out[4])
{
	cpu_cpuid(&model, NULL, number, sub, out);
}

static void host(uint32_t number, uint32_t sub, uint32_t out[4])
{
	__cpuid_count(number, sub, out[0], out[1], out[2], out[3]);
}

START_TEST(specs)
{
	struct cpu_model m;
	struct error err;
	uint32_t r[4];

	ck_assert_int_eq(cpu_model_create("host", 1, &m, &err), -EINVAL);
	ck_assert_int_eq(cpu_model_create("common,+smap", 1, &m, &err), 0);
	cpu_cpuid(&m, NULL, 7, 0, r);
	ck_assert(r[1] >> 20 & 1);
	ck_assert(cpu_cr4_allowed(&m) & CR4_SMAP);
	leaf(7, 0, r);
	ck_assert(!(r[1] >> 20 & 1));
	ck_assert(!(cpu_cr4_allowed(&model) & CR4_SMAP));
}
END_TEST

/* What is not emulated must be in the host. */
START_TEST(nothing_beyond_host)
{
	uint32_t g[4], h[4];

	leaf(1, 0, g);
	host(1, 0, h);
	ck_assert_uint_eq(g[0], h[0]);
	ck_assert_uint_eq(g[2] & ~h[2] & ~(1u << 17 | 1u << 21 | 1u << 24 | 1u << 31), 0);
	ck_assert_uint_eq(g[3] & ~h[3] & 0x07888101u, 0);
	leaf(7, 0, g);
	host(7, 0, h);
	ck_assert_uint_eq(g[1] & ~h[1] & ~(1u << 0 | 1u << 1 | 1u << 7 | 1u << 10), 0);
	leaf(0x80000001, 0, g);
	host(0x80000001, 0, h);
	ck_assert_uint_eq(g[2] & ~h[2], 0);
	leaf(0, 0, g);
	host(0, 0, h);
	ck_assert_uint_eq(g[1], h[1]);
	ck_assert_uint_eq(g[2], h[2]);
	ck_assert_uint_eq(g[3], h[3]);
}
END_TEST

START_TEST(not_offered)
{
	uint32_t r[4];

	leaf(1, 0, r);
	ck_assert_uint_eq(r[2] & (1u << 3 | 1u << 5 | 1u << 15), 0); /* MONITOR, VMX, PDCM */
	ck_assert_uint_eq(r[2] & 1u << 27, 0);			      /* OSXSAVE, without state */
	leaf(7, 0, r);
	ck_assert_uint_eq(r[1] & (1u << 4 | 1u << 11 | 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31), 0); /* HLE, RTM, AVX-512 */
	ck_assert_uint_eq(r[2] & (1u << 3 | 1u << 4 | 1u << 7 | 1u << 16 | 1u << 22), 0); /* PKU, OSPKE, CET, LA57, RDPID */
	leaf(0xa, 0, r);
	ck_assert_uint_eq(r[0] | r[1] | r[2] | r[3], 0);
	leaf(0x80000001, 0, r);
	ck_assert_uint_eq(r[2] & 1u << 2, 0); /* SVM */
	leaf(0x1234, 0, r);
	ck_assert_uint_eq(r[0] | r[1] | r[2] | r[3], 0);
}
END_TEST

START_TEST(xsave_leaf)
{
	struct cpu_state *state = aligned_alloc(64, (sizeof(*state) + 63) & ~63ul);
	uint32_t r[4], area[4];

	cpu_reset(state, true);
	leaf(0xd, 0, r);
	ck_assert_uint_eq(r[0], cpu_xcr0_allowed(&model));
	ck_assert_uint_eq(r[2], r[0] & 4 ? CPU_XSAVE_SIZE : 576);
	ck_assert_uint_eq(r[3], 0);
	cpu_cpuid(&model, state, 0xd, 0, r);
	ck_assert_uint_eq(r[1], 576);
	if (cpu_xcr0_allowed(&model) & XCR0_AVX) {
		state->xcr0 = 7;
		cpu_cpuid(&model, state, 0xd, 0, r);
		ck_assert_uint_eq(r[1], CPU_XSAVE_SIZE);
		leaf(0xd, 2, area);
		ck_assert_uint_eq(area[0] + area[1], CPU_XSAVE_SIZE);
	}
	leaf(0xd, 1, r);
	ck_assert_uint_eq(r[0], 0); /* no XSAVEOPT, XSAVEC, XSAVES */
	state->cr4 |= CR4_OSXSAVE;
	cpu_cpuid(&model, state, 1, 0, r);
	ck_assert(r[2] >> 27 & 1);
	free(state);
}
END_TEST

START_TEST(tsc_leaves)
{
	uint32_t r[4];
	uint64_t khz;

	leaf(0x15, 0, r);
	ck_assert_uint_eq(r[2], CPU_LAPIC_HZ);
	ck_assert_uint_le((uint64_t)r[2] / 1000 * r[1], 0xffffffffu); /* Linux multiplies in 32 bits */
	khz = (uint64_t)r[2] / 1000 * r[1] / r[0];
	ck_assert_uint_le(khz > model.tsc_khz ? khz - model.tsc_khz : model.tsc_khz - khz, model.tsc_khz / 500000 + 1);
	leaf(0x40000010, 0, r);
	ck_assert_uint_eq(r[0], model.tsc_khz);
	leaf(0x80000007, 0, r);
	ck_assert(r[3] >> 8 & 1);
	leaf(0x40000000, 0, r);
	ck_assert(!memcmp(r + 1, "vmmvmmvmmvmm", 12));
	leaf(0x40000100, 0, r);
	ck_assert(r[0] == 0x40000101 && !memcmp(r + 1, "KVMKVMKVM\0\0\0", 12));
	leaf(0x40000101, 0, r);
	ck_assert_uint_eq(r[0], 1u << 1 | 1u << 3 | 1u << 24);
	ck_assert(!(r[1] | r[2] | r[3]));
}
END_TEST

START_TEST(topology)
{
	struct cpu_model m;
	struct error err;
	uint32_t r[4];

	ck_assert_int_eq(cpu_model_create("common", 3, &m, &err), 0);
	m.apic_id = 2;
	cpu_cpuid(&m, NULL, 1, 0, r);
	ck_assert_uint_eq(r[1] >> 24, 2);
	ck_assert_uint_eq(r[1] >> 16 & 0xff, 4);
	ck_assert(r[3] >> 28 & 1);
	cpu_cpuid(&m, NULL, 0xb, 1, r);
	ck_assert_uint_eq(r[0], 2);
	ck_assert_uint_eq(r[1], 3);
	ck_assert_uint_eq(r[3], 2);
	cpu_cpuid(&m, NULL, 0xb, 2, r);
	ck_assert_uint_eq(r[2] >> 8 & 0xff, 0);
}
END_TEST

START_TEST(reset_state)
{
	struct cpu_state *s = aligned_alloc(64, (sizeof(*s) + 63) & ~63ul);
	char text[4096], tiny[10];

	cpu_reset(s, true);
	ck_assert_uint_eq(s->seg[SEG_CS].base + s->gpr[GPR_RIP], 0xfffffff0u);
	ck_assert_uint_eq(s->activity, CPU_RUNNING);
	s->cr0 |= CR0_PG | CR0_PE;
	s->cr0 &= ~CR0_NW;
	s->lstar = 5;
	cpu_init(s);
	ck_assert_uint_eq(s->cr0, CR0_CD | CR0_ET);
	ck_assert_uint_eq(s->lstar, 5);
	ck_assert_uint_eq(s->activity, CPU_WAIT_SIPI);
	ck_assert_int_eq(cpu_format(s, text, sizeof(text)), (int)strlen(text));
	ck_assert_ptr_nonnull(strstr(text, "real mode"));
	ck_assert_ptr_nonnull(strstr(text, "EFER"));
	ck_assert_int_eq(cpu_format(s, tiny, sizeof(tiny)), 9);
	free(s);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("cpuid");
	TCase *c = tcase_create("cpuid");

	tcase_add_checked_fixture(c, setup, NULL);
	tcase_add_test(c, specs);
	tcase_add_test(c, nothing_beyond_host);
	tcase_add_test(c, not_offered);
	tcase_add_test(c, xsave_leaf);
	tcase_add_test(c, tsc_leaves);
	tcase_add_test(c, topology);
	tcase_add_test(c, reset_state);
	suite_add_tcase(s, c);
	return run_suite(s);
}
