/* Delivery and return: frames, stacks, privilege, double and triple faults, single steps, shadows, exact counts. */
#include <check.h>
#include <time.h>

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

START_TEST(fault_frame)
{
	fixture_run(&f, "\x90\x0f\x0b", 3, 0); /* nop; ud2 */
	ck_assert_int_eq(fixture_vector(&f), EXC_UD);
	ck_assert_uint_eq(fixture_frame(&f, 0), FIXTURE_CODE + 1);
	ck_assert_uint_eq(fixture_frame(&f, 1), FIXTURE_SEL_CODE64);
	ck_assert_uint_eq(fixture_frame(&f, 2), FLAG_FIXED | FLAG_RF);
	ck_assert_uint_eq(fixture_frame(&f, 3), FIXTURE_STACK);
	ck_assert_uint_eq(fixture_frame(&f, 4), FIXTURE_SEL_DATA);
}
END_TEST

START_TEST(frame_is_aligned)
{
	f.cpu->gpr[GPR_RSP] = FIXTURE_STACK - 3;
	fixture_run(&f, "\x0f\x0b", 2, 0);
	ck_assert_uint_eq(f.cpu->gpr[GPR_RSP] + 8, ((FIXTURE_STACK - 3) & ~15u) - 40);
	ck_assert_uint_eq(fixture_frame(&f, 3), FIXTURE_STACK - 3);
}
END_TEST

START_TEST(user_to_supervisor)
{
	fixture_user(&f);
	fixture_run(&f, "\xfa", 1, 0); /* cli */
	ck_assert_int_eq(fixture_vector(&f), EXC_GP);
	ck_assert_uint_eq(f.engine->cpl, 0);
	ck_assert_uint_eq(f.cpu->seg[SEG_SS].selector, 0);
	ck_assert_uint_eq(f.cpu->gpr[GPR_RSP] + 8, 0x28000 - 48);
	ck_assert_uint_eq(fixture_frame(&f, 0), 0);
	ck_assert_uint_eq(fixture_frame(&f, 2), FIXTURE_SEL_UCODE64);
	ck_assert_uint_eq(fixture_frame(&f, 5), FIXTURE_SEL_UDATA);
}
END_TEST

START_TEST(ist_and_software_interrupt)
{
	fixture_gate64(&f, 0x42, 14, 0, 1);
	fixture_run(&f, "\xcd\x42", 2, 0);
	ck_assert_int_eq(fixture_vector(&f), 0x42);
	ck_assert_uint_eq(f.cpu->gpr[GPR_RSP] + 8, 0x29000 - 40);
	ck_assert_uint_eq(fixture_frame(&f, 0), FIXTURE_CODE + 2);
}
END_TEST

START_TEST(software_interrupt_checks_dpl)
{
	fixture_gate64(&f, 0x42, 14, 0, 0);
	fixture_user(&f);
	fixture_run(&f, "\xcd\x42", 2, 0);
	ck_assert_int_eq(fixture_vector(&f), EXC_GP);
	ck_assert_uint_eq(fixture_frame(&f, 0), 0x42 * 8 + 2);
	ck_assert_uint_eq(fixture_frame(&f, 1), FIXTURE_CODE);
}
END_TEST

START_TEST(double_fault)
{
	/* #UD's gate is absent: #NP in delivery of a benign one is delivered itself; #GP's absent too: #DF. */
	fixture_gate64(&f, EXC_GP, 14, 0, 0);
	f.ram[FIXTURE_IDT + EXC_GP * 16 + 5] &= 0x7f;
	fixture_run(&f, "\x48\xb8\x00\x00\x00\x00\x00\x00\x00\x80\x8b\x00", 12, 0); /* non-canonical load */
	ck_assert_int_eq(fixture_vector(&f), EXC_DF);
	ck_assert_uint_eq(fixture_frame(&f, 0), 0);
}
END_TEST

START_TEST(external_bit)
{
	f.ram[FIXTURE_IDT + EXC_UD * 16 + 5] &= 0x7f;
	fixture_run(&f, "\x0f\x0b", 2, 0);
	ck_assert_int_eq(fixture_vector(&f), EXC_NP);
	ck_assert_uint_eq(fixture_frame(&f, 0), EXC_UD * 8 + 2 + 1);
}
END_TEST

START_TEST(triple_fault)
{
	f.cpu->idtr.limit = 0;
	ck_assert_int_eq(fixture_run(&f, "\x0f\x0b", 2, 0), VCPU_EXIT_SHUTDOWN);
	ck_assert_ptr_nonnull(strstr(f.block->exit.text, "#UD"));
}
END_TEST

START_TEST(iret_to_user_and_back)
{
	/* push 0x23; push 0x21000; push 0x202; push 0x2b; push user; iretq; user: ud2 */
	static const uint8_t code[] = { 0x6a, 0x23, 0x68, 0, 0x10, 2, 0, 0x68, 2, 2, 0, 0, 0x6a, 0x2b, 0x68, 21, 0, 1, 0, 0x48, 0xcf,
		0x0f, 0x0b };

	fixture_run(&f, code, sizeof(code), 0);
	ck_assert_int_eq(fixture_vector(&f), EXC_UD);
	ck_assert_uint_eq(fixture_frame(&f, 0), FIXTURE_CODE + 21);
	ck_assert_uint_eq(fixture_frame(&f, 1), FIXTURE_SEL_UCODE64);
	ck_assert_uint_eq(fixture_frame(&f, 3), 0x21000);
	ck_assert_uint_eq(fixture_frame(&f, 4), FIXTURE_SEL_UDATA);
}
END_TEST

START_TEST(iret_without_stack_segment_faults)
{
	/* As above with SS 0 for CPL 3. */
	static const uint8_t code[] = { 0x6a, 0x00, 0x68, 0, 0x10, 2, 0, 0x68, 2, 2, 0, 0, 0x6a, 0x2b, 0x68, 21, 0, 1, 0, 0x48, 0xcf };

	fixture_run(&f, code, sizeof(code), 0);
	ck_assert_int_eq(fixture_vector(&f), EXC_GP);
	ck_assert_uint_eq(fixture_frame(&f, 1), FIXTURE_CODE + 19);
	ck_assert_uint_eq(f.engine->cpl, 0);
}
END_TEST

START_TEST(single_step)
{
	f.cpu->rflags |= FLAG_TF;
	fixture_run(&f, "\x90\x90", 2, 0);
	ck_assert_int_eq(fixture_vector(&f), EXC_DB);
	ck_assert_uint_eq(fixture_frame(&f, 0), FIXTURE_CODE + 1);
	ck_assert(f.cpu->dr6 & DR6_BS);
	ck_assert(fixture_frame(&f, 2) & FLAG_TF);
}
END_TEST

START_TEST(popf_sets_trap_after_next)
{
	/* push 0x102; popf; nop; nop */
	fixture_run(&f, "\x68\x02\x01\x00\x00\x9d\x90\x90", 8, 0);
	ck_assert_int_eq(fixture_vector(&f), EXC_DB);
	ck_assert_uint_eq(fixture_frame(&f, 0), FIXTURE_CODE + 7);
}
END_TEST

START_TEST(mov_ss_delays_trap)
{
	/* mov ss,eax; nop; nop with TF set */
	f.cpu->gpr[GPR_RAX] = FIXTURE_SEL_DATA;
	f.cpu->rflags |= FLAG_TF;
	fixture_run(&f, "\x8e\xd0\x90\x90", 4, 0);
	ck_assert_int_eq(fixture_vector(&f), EXC_DB);
	ck_assert_uint_eq(fixture_frame(&f, 0), FIXTURE_CODE + 3);
}
END_TEST

START_TEST(syscall_masks_trap)
{
	f.cpu->lstar = FIXTURE_CODE + 2;
	f.cpu->star = (uint64_t)FIXTURE_SEL_CODE64 << 32;
	f.cpu->sfmask = FLAG_TF;
	fixture_user(&f);
	f.cpu->rflags |= FLAG_TF;
	fixture_run(&f, "\x0f\x05", 2, 0);
	ck_assert_int_eq(fixture_vector(&f), -1);
	ck_assert_uint_eq(f.cpu->gpr[GPR_RCX], FIXTURE_CODE + 2);
	ck_assert(f.cpu->gpr[GPR_R11] & FLAG_TF);
	ck_assert_uint_eq(f.cpu->rflags & FLAG_TF, 0);
}
END_TEST

START_TEST(sysret_and_the_stack_segment)
{
	static const uint8_t sysretq[] = { 0x48, 0x0f, 0x07 };

	for (unsigned amd = 0; amd < 2; amd++) {
		teardown();
		setup();
		f.block->model.host_vendor[0] = amd ? 0x68747541u : 0x756e6547u;
		f.cpu->star = 0x23ull << 48;
		f.cpu->gpr[GPR_RCX] = FIXTURE_DATA;
		fixture_set_segment(&f.cpu->seg[SEG_SS], 0, SEG_AR_UNUSABLE, 0, 0);
		fixture_run(&f, sysretq, sizeof(sysretq), 1);
		ck_assert_uint_eq(f.cpu->gpr[GPR_RIP], FIXTURE_DATA);
		ck_assert_uint_eq(f.cpu->seg[SEG_SS].selector, 0x2b);
		ck_assert_uint_eq(f.cpu->seg[SEG_SS].ar, amd ? SEG_AR_UNUSABLE | SEG_AR_DPL : 0xc0f3);
	}
}
END_TEST

START_TEST(no_vex_in_real_mode)
{
	static const uint8_t andn[] = { 0xc4, 0xe2, 0x70, 0xf2, 0xc2 };
	const uint16_t ivt[2] = { FIXTURE_HANDLERS + EXC_UD * 16, 0 };

	f.cpu->cr0 = CR0_ET;
	f.cpu->efer = 0;
	f.cpu->idtr = (struct cpu_table){ .base = 0, .limit = 0x3ff };
	memcpy(f.ram + EXC_UD * 4, ivt, sizeof(ivt));
	fixture_set_segment(&f.cpu->seg[SEG_CS], 0, 0x9b, 0, ~0u);
	fixture_set_segment(&f.cpu->seg[SEG_SS], 0, 0x93, 0, ~0u);
	f.cpu->gpr[GPR_RSP] = 0x4000;
	fixture_run(&f, andn, sizeof(andn), 0);
	ck_assert_int_eq(fixture_vector(&f), EXC_UD);
}
END_TEST

START_TEST(data_breakpoint)
{
	/* mov [FIXTURE_DATA],al; nop */
	f.cpu->dr[1] = FIXTURE_DATA;
	f.cpu->dr7 = DR7_FIXED | 1u << 2 | 1u << 20;
	fixture_run(&f, "\x88\x04\x25\x00\x00\x03\x00\x90", 8, 0);
	ck_assert_int_eq(fixture_vector(&f), EXC_DB);
	ck_assert_uint_eq(fixture_frame(&f, 0), FIXTURE_CODE + 7);
	ck_assert_uint_eq(f.cpu->dr6 & 15, 2);
}
END_TEST

START_TEST(int1_takes_held_back_breakpoint)
{
	/* mov ss,[FIXTURE_DATA]; int1: one #DB, with the watchpoint in DR6, and none behind it on the handler's stack */
	f.cpu->dr[1] = FIXTURE_DATA;
	f.cpu->dr7 = DR7_FIXED | 1u << 2 | 3u << 20;
	*(uint16_t *)(f.ram + FIXTURE_DATA) = FIXTURE_SEL_DATA;
	fixture_run(&f, "\x8e\x14\x25\x00\x00\x03\x00\xf1", 8, 0);
	ck_assert_int_eq(fixture_vector(&f), EXC_DB);
	ck_assert_uint_eq(fixture_frame(&f, 0), FIXTURE_CODE + 8);
	ck_assert_uint_eq(f.cpu->dr6 & 15, 2);
	ck_assert_uint_eq(f.cpu->pending_dr6, 0);
}
END_TEST

START_TEST(int1_after_mov_ss_has_no_step)
{
	/* mov ss,eax; int1 with TF set: neither instruction has a single-step trap */
	f.cpu->gpr[GPR_RAX] = FIXTURE_SEL_DATA;
	f.cpu->rflags |= FLAG_TF;
	fixture_run(&f, "\x8e\xd0\xf1\x90", 4, 0);
	ck_assert_int_eq(fixture_vector(&f), EXC_DB);
	ck_assert_uint_eq(fixture_frame(&f, 0), FIXTURE_CODE + 3);
	ck_assert_uint_eq(f.cpu->dr6 & DR6_BS, 0);
}
END_TEST

START_TEST(far_pointers)
{
	static const struct {
		uint8_t opcode, seg;
	} list[] = { { 0xb2, SEG_SS }, { 0xb4, SEG_FS }, { 0xb5, SEG_GS } };

	for (unsigned n = 0; n < 3; n++) {
		uint8_t code[] = { 0x0f, list[n].opcode, 0x0c, 0x25, 0, 0, 3, 0 }; /* lss/lfs/lgs ecx,[FIXTURE_DATA] */
		static const uint8_t pointer[] = { 0x78, 0x56, 0x34, 0x12, FIXTURE_SEL_DATA, 0 };
		uint64_t before[16];

		teardown();
		setup();
		memcpy(f.ram + FIXTURE_DATA, pointer, sizeof(pointer));
		memcpy(before, f.cpu->gpr, sizeof(before));
		fixture_run(&f, code, sizeof(code), 1);
		before[GPR_RCX] = 0x12345678;
		ck_assert_mem_eq(f.cpu->gpr, before, GPR_RSP * 8);
		ck_assert_uint_eq(f.cpu->gpr[GPR_RSP], FIXTURE_STACK);
		ck_assert_uint_eq(f.cpu->seg[list[n].seg].selector, FIXTURE_SEL_DATA);
	}
}
END_TEST

START_TEST(cpuid_knows_the_apic)
{
	static const uint8_t cpuid[] = { 0x0f, 0xa2 };

	for (unsigned on = 0; on < 2; on++) {
		teardown();
		setup();
		f.block->lapic.apic_base = on ? APIC_BASE_ENABLE : 0;
		f.cpu->gpr[GPR_RAX] = 1;
		fixture_run(&f, cpuid, sizeof(cpuid), 1);
		ck_assert_uint_eq(f.cpu->gpr[GPR_RDX] >> 9 & 1, on);
	}
}
END_TEST

START_TEST(msrs_of_a_vendor)
{
	static const struct {
		uint32_t msr;
		bool amd;
	} list[] = { { 0x48, false }, { 0xc0010000, true }, { 0xc0010007, true } };

	for (unsigned n = 0; n < 6; n++) {
		bool amd = n & 1;

		teardown();
		setup();
		f.block->model.host_vendor[0] = amd ? 0x68747541u : 0x756e6547u;
		f.cpu->gpr[GPR_RCX] = list[n / 2].msr;
		fixture_run(&f, "\x0f\x32", 2, 0); /* rdmsr */
		ck_assert_msg(fixture_vector(&f) == (amd == list[n / 2].amd ? -1 : EXC_GP), "MSR %x, AMD %d", list[n / 2].msr, amd);
	}
}
END_TEST

START_TEST(code_breakpoint_faults_before)
{
	f.cpu->dr[0] = FIXTURE_CODE + 1;
	f.cpu->dr7 = DR7_FIXED | 1;
	fixture_run(&f, "\x90\xff\xc0", 3, 0);
	ck_assert_int_eq(fixture_vector(&f), EXC_DB);
	ck_assert_uint_eq(fixture_frame(&f, 0), FIXTURE_CODE + 1);
	ck_assert_uint_eq(f.cpu->dr6 & 15, 1);
}
END_TEST

START_TEST(nmi_waits_for_sti_shadow_of_mov_ss)
{
	f.cpu->gpr[GPR_RAX] = FIXTURE_SEL_DATA;
	f.cpu->nmi_pending = 1;
	f.cpu->shadow_mov_ss = 1;
	fixture_run(&f, "\x90\x90", 2, 0);
	ck_assert_int_eq(fixture_vector(&f), EXC_NMI);
	ck_assert_uint_eq(fixture_frame(&f, 0), FIXTURE_CODE + 1);
	ck_assert_uint_eq(f.cpu->nmi_blocked, 1);
}
END_TEST

START_TEST(count_is_exact)
{
	uint8_t code[64];

	memset(code, 0x90, sizeof(code));
	for (unsigned n = 1; n < 60; n++) {
		ck_assert_int_eq(fixture_run(&f, code, sizeof(code), n), VCPU_EXIT_NONE);
		ck_assert_uint_eq(f.cpu->gpr[GPR_RIP], FIXTURE_CODE + n);
	}
}
END_TEST

START_TEST(ports_of_user_need_a_bitmap)
{
	fixture_user(&f);
	fixture_run(&f, "\xe6\x80", 2, 0);
	ck_assert_int_eq(fixture_vector(&f), EXC_GP);
	ck_assert_uint_eq(f.accesses, 0);
	teardown();
	setup();
	f.cpu->rflags |= FLAG_IOPL;
	f.cpu->gpr[GPR_RAX] = 0x1234;
	fixture_user(&f);
	fixture_run(&f, "\xe6\x80", 2, 0);
	ck_assert_uint_eq(f.accesses, 1);
	ck_assert_uint_eq(f.last_value, 0x34);
	ck_assert_uint_eq(f.last_addr, 0x80);
}
END_TEST

static void write_msr(uint32_t msr, uint64_t value)
{
	static const uint8_t wrmsr[] = { 0x0f, 0x30 };

	f.cpu->gpr[GPR_RCX] = msr;
	f.cpu->gpr[GPR_RAX] = (uint32_t)value;
	f.cpu->gpr[GPR_RDX] = value >> 32;
	fixture_run(&f, wrmsr, sizeof(wrmsr), 10);
}

struct pv_time {
	uint32_t version, padding;
	uint64_t tsc, ns;
	uint32_t multiplier;
	int8_t shift;
	uint8_t flags;
};

/* As Linux' pvclock_read_cycles(). */
static uint64_t pv_read(const struct pv_time *t, uint64_t tsc)
{
	uint64_t ticks = tsc - t->tsc;

	ticks = t->shift < 0 ? ticks >> -t->shift : ticks << t->shift;
	return t->ns + (uint64_t)((unsigned __int128)ticks * t->multiplier >> 32);
}

static uint64_t clock_of(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

START_TEST(paravirtual_clock)
{
	struct pv_time *t = (struct pv_time *)(f.ram + FIXTURE_DATA);
	uint32_t *wall = (uint32_t *)(f.ram + FIXTURE_DATA + 64);
	uint64_t a, b, since, tsc;
	uint32_t version;

	write_msr(MSR_PV_SYSTEM_TIME, FIXTURE_DATA | 1);
	ck_assert(t->version && !(t->version & 1) && t->flags == 1);
	a = pv_read(t, __builtin_ia32_rdtsc());
	since = clock_of(CLOCK_MONOTONIC);
	usleep(100000);
	b = pv_read(t, __builtin_ia32_rdtsc());
	since = clock_of(CLOCK_MONOTONIC) - since;
	ck_assert_uint_le(b - a > since ? b - a - since : since - (b - a), 1000000);
	ck_assert_uint_lt(b, 60 * 1000000000ull);
	/* The guest moves its TSC; the clock goes on. */
	tsc = t->tsc;
	write_msr(MSR_TSC_ADJUST, 1ull << 40);
	ck_assert_uint_eq(t->tsc - tsc, 1ull << 40);
	/* The time of day of its zero. */
	write_msr(MSR_PV_WALL_CLOCK, FIXTURE_DATA + 64);
	a = wall[1] * 1000000000ull + wall[2] + pv_read(t, __builtin_ia32_rdtsc() + (1ull << 40));
	b = clock_of(CLOCK_REALTIME);
	ck_assert_uint_le(a > b ? a - b : b - a, 100000000);
	/* Off; and addresses that do not fit. */
	write_msr(MSR_PV_SYSTEM_TIME, FIXTURE_DATA);
	version = t->version;
	write_msr(MSR_TSC_ADJUST, 0);
	ck_assert_uint_eq(t->version, version);
	write_msr(MSR_PV_SYSTEM_TIME, 0xfffffffff001);
	write_msr(MSR_PV_SYSTEM_TIME, 0x30ff1);
	ck_assert_uint_eq(fixture_get64(&f, 0x30ff0), 0);
	ck_assert_uint_eq(f.accesses, 0);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("engine_exec");
	TCase *c = tcase_create("exec");

	tcase_add_checked_fixture(c, setup, teardown);
	tcase_add_test(c, fault_frame);
	tcase_add_test(c, frame_is_aligned);
	tcase_add_test(c, user_to_supervisor);
	tcase_add_test(c, ist_and_software_interrupt);
	tcase_add_test(c, software_interrupt_checks_dpl);
	tcase_add_test(c, double_fault);
	tcase_add_test(c, external_bit);
	tcase_add_test(c, triple_fault);
	tcase_add_test(c, iret_to_user_and_back);
	tcase_add_test(c, iret_without_stack_segment_faults);
	tcase_add_test(c, single_step);
	tcase_add_test(c, popf_sets_trap_after_next);
	tcase_add_test(c, mov_ss_delays_trap);
	tcase_add_test(c, syscall_masks_trap);
	tcase_add_test(c, sysret_and_the_stack_segment);
	tcase_add_test(c, no_vex_in_real_mode);
	tcase_add_test(c, data_breakpoint);
	tcase_add_test(c, code_breakpoint_faults_before);
	tcase_add_test(c, nmi_waits_for_sti_shadow_of_mov_ss);
	tcase_add_test(c, count_is_exact);
	tcase_add_test(c, paravirtual_clock);
	tcase_add_test(c, int1_takes_held_back_breakpoint);
	tcase_add_test(c, int1_after_mov_ss_has_no_step);
	tcase_add_test(c, far_pointers);
	tcase_add_test(c, cpuid_knows_the_apic);
	tcase_add_test(c, msrs_of_a_vendor);
	tcase_add_test(c, ports_of_user_need_a_bitmap);
	suite_add_tcase(s, c);
	return run_suite(s);
}
