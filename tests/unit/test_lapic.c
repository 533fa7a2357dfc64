/* The local APIC alone: an engine with nothing but a block, and an environment that records. */
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "run_suite.h"
#include "engine/engine_state.h"

static struct {
	uint64_t tsc;
	enum vcpu_exit_kind exit;
	uint64_t deadline;
	unsigned exits;
} env;
static struct engine *e;

/* Instead of system.c's. */
uint64_t engine_guest_tsc(struct engine *engine)
{
	return env.tsc;
}

static uint64_t fake_exit(void *ctx, enum vcpu_exit_kind kind)
{
	env.exit = kind;
	env.exits++;
	return 0;
}

static void fake_set_timer(void *ctx, uint64_t deadline_ns)
{
	env.deadline = deadline_ns;
}

static void setup(void)
{
	memset(&env, 0, sizeof(env));
	e = calloc(1, sizeof(*e));
	e->block = aligned_alloc(64, (sizeof(struct vcpu_block) + 63) & ~63ul);
	memset(e->block, 0, sizeof(*e->block));
	e->cpu = &e->block->cpu;
	e->shared = calloc(1, sizeof(*e->shared));
	e->stats = &e->block->stats;
	e->block->model.cpu_count = 1;
	e->block->model.tsc_khz = 2000000;
	e->block->model.phys_bits = 40;
	e->env.exit = fake_exit;
	e->env.set_timer = fake_set_timer;
	cpu_lapic_reset(&e->block->lapic, 0, true);
}

static void teardown(void)
{
	free(e->shared);
	free(e->block);
	free(e);
}

static void enable(void)
{
	lapic_write(e, 0xf0, 0x1ff);
}

static void self_ipi(uint32_t vector)
{
	lapic_write(e, 0x300, 1u << 18 | vector);
}

static void enter_x2apic(void)
{
	ck_assert(lapic_set_base(e, e->block->lapic.apic_base | 1u << 10));
}

static void sleep_ms(long ms)
{
	struct timespec nap = { 0, ms * 1000000 };

	nanosleep(&nap, NULL);
}

START_TEST(priorities)
{
	enable();
	ck_assert_int_eq(lapic_pending(e), -1);
	self_ipi(0x41);
	self_ipi(0x62);
	ck_assert_int_eq(lapic_pending(e), 0x62);
	lapic_accept(e, 0x62);
	ck_assert_int_eq(lapic_pending(e), -1); /* 0x41 is of a lower class than what is in service */
	self_ipi(0x6f);
	ck_assert_int_eq(lapic_pending(e), -1); /* same class */
	self_ipi(0x70);
	ck_assert_int_eq(lapic_pending(e), 0x70);
	lapic_accept(e, 0x70);
	ck_assert_uint_eq(lapic_read(e, 0xa0), 0x70);
	lapic_write(e, 0xb0, 0); /* EOI of 0x70 */
	ck_assert_uint_eq(lapic_read(e, 0xa0), 0x60);
	lapic_write(e, 0xb0, 0);
	ck_assert_int_eq(lapic_pending(e), 0x6f);
	lapic_set_tpr(e, 6);
	ck_assert_int_eq(lapic_pending(e), -1);
	ck_assert_uint_eq(lapic_read(e, 0x80), 0x60);
	lapic_set_tpr(e, 5);
	ck_assert_int_eq(lapic_pending(e), 0x6f);
}
END_TEST

START_TEST(posted_and_eoi)
{
	enable();
	atomic_store(&e->block->posted_irr[1], 1ull << (0x55 - 64));
	atomic_store(&e->block->posted_tmr[1], 1ull << (0x55 - 64));
	lapic_poll(e, VCPU_EVENT_IRR);
	ck_assert_int_eq(lapic_pending(e), 0x55);
	ck_assert_uint_eq(lapic_read(e, 0x1a0), 1u << (0x55 - 64));
	ck_assert(e->attention);
	lapic_accept(e, 0x55);
	atomic_store(&e->shared->eoi_exit[1], 1ull << (0x55 - 64));
	lapic_write(e, 0xb0, 0);
	ck_assert_int_eq(env.exit, VCPU_EXIT_EOI);
	ck_assert_uint_eq(e->block->exit.data, 0x55);
	lapic_write(e, 0xb0, 0); /* nothing in service: nothing happens */
	ck_assert_uint_eq(env.exits, 1);
}
END_TEST

START_TEST(errors)
{
	enable();
	lapic_write(e, 0x370, 0xfe);
	self_ipi(5);
	ck_assert_int_eq(lapic_pending(e), 0xfe);
	ck_assert_uint_eq(lapic_read(e, 0x280), 0); /* latched by a write only */
	lapic_write(e, 0x280, 0);
	ck_assert_uint_eq(lapic_read(e, 0x280), 1u << 5);
	lapic_read(e, 0x3d0);
	lapic_write(e, 0x280, 0);
	ck_assert_uint_eq(lapic_read(e, 0x280), 1u << 7);
	lapic_write(e, 0x280, 0);
	ck_assert_uint_eq(lapic_read(e, 0x280), 0);
}
END_TEST

START_TEST(software_disable)
{
	enable();
	lapic_write(e, 0x350, 0x700);
	lapic_write(e, 0x320, 0x30);
	lapic_write(e, 0xf0, 0xff);
	ck_assert_uint_eq(lapic_read(e, 0x350), 0x10700);
	ck_assert_uint_eq(lapic_read(e, 0x320), 0x10030);
	lapic_write(e, 0x350, 0x700);
	ck_assert_uint_eq(lapic_read(e, 0x350), 0x10700); /* the mask cannot be cleared now */
	self_ipi(0x40);
	ck_assert_int_eq(lapic_pending(e), -1);
}
END_TEST

START_TEST(extint)
{
	/* Virtual wire of the bootstrap processor. */
	ck_assert(!lapic_extint_pending(e));
	atomic_store(&e->block->extint_level, 1);
	ck_assert(lapic_extint_pending(e));
	enable();
	lapic_write(e, 0x350, 0x10700);
	ck_assert(!lapic_extint_pending(e));
	ck_assert(lapic_set_base(e, GPA_LAPIC | 1u << 8)); /* disabled: INTR pin */
	ck_assert(lapic_extint_pending(e));
}
END_TEST

START_TEST(timer_one_shot)
{
	enable();
	lapic_write(e, 0x320, 0x31);
	lapic_write(e, 0x3e0, 0xb);
	lapic_write(e, 0x380, CPU_LAPIC_HZ / 100); /* 10 ms */
	ck_assert_uint_ne(env.deadline, 0);
	ck_assert_uint_gt(lapic_read(e, 0x390), 0);
	lapic_poll(e, VCPU_EVENT_TIMER);
	ck_assert_int_eq(lapic_pending(e), -1);
	sleep_ms(12);
	lapic_poll(e, VCPU_EVENT_TIMER);
	ck_assert_int_eq(lapic_pending(e), 0x31);
	ck_assert_uint_eq(lapic_read(e, 0x390), 0);
	ck_assert_uint_eq(lapic_next_deadline(e), 0);
}
END_TEST

START_TEST(timer_masked_expiry_is_lost)
{
	enable();
	lapic_write(e, 0x3e0, 0xb);
	lapic_write(e, 0x320, 0x10031);
	lapic_write(e, 0x380, CPU_LAPIC_HZ / 1000);
	sleep_ms(2);
	lapic_write(e, 0x320, 0x31);
	lapic_poll(e, VCPU_EVENT_TIMER);
	ck_assert_int_eq(lapic_pending(e), -1);
}
END_TEST

START_TEST(timer_periodic)
{
	enable();
	lapic_write(e, 0x320, 1u << 17 | 0x32);
	lapic_write(e, 0x3e0, 0x3); /* by 16 */
	lapic_write(e, 0x380, CPU_LAPIC_HZ / 16 / 500); /* 2 ms */
	for (int i = 0; i < 3; i++) {
		sleep_ms(3);
		lapic_poll(e, VCPU_EVENT_TIMER);
		ck_assert_int_eq(lapic_pending(e), 0x32);
		lapic_accept(e, 0x32);
		lapic_write(e, 0xb0, 0);
		ck_assert_uint_ne(lapic_next_deadline(e), 0);
	}
	lapic_write(e, 0x380, 0);
	ck_assert_uint_eq(lapic_next_deadline(e), 0);
}
END_TEST

START_TEST(timer_tsc_deadline)
{
	uint64_t value;

	enable();
	ck_assert(lapic_msr_write(e, MSR_TSC_DEADLINE, 1000)); /* not in this mode: ignored */
	ck_assert(lapic_msr_read(e, MSR_TSC_DEADLINE, &value) && value == 0);
	lapic_write(e, 0x320, 2u << 17 | 0x33);
	env.tsc = 5000;
	ck_assert(lapic_msr_write(e, MSR_TSC_DEADLINE, 6000));
	ck_assert_uint_ne(env.deadline, 0);
	ck_assert(lapic_msr_read(e, MSR_TSC_DEADLINE, &value) && value == 6000);
	lapic_poll(e, VCPU_EVENT_TIMER);
	ck_assert_int_eq(lapic_pending(e), -1);
	env.tsc = 6000;
	lapic_poll(e, VCPU_EVENT_TIMER);
	ck_assert_int_eq(lapic_pending(e), 0x33);
	ck_assert(lapic_msr_read(e, MSR_TSC_DEADLINE, &value) && value == 0);
	lapic_accept(e, 0x33);
	lapic_write(e, 0xb0, 0);
	ck_assert(lapic_msr_write(e, MSR_TSC_DEADLINE, 1)); /* long past: at once */
	ck_assert_int_eq(lapic_pending(e), 0x33);
}
END_TEST

START_TEST(modes)
{
	uint64_t base = GPA_LAPIC | 1u << 8, v;

	ck_assert(!lapic_msr_read(e, 0x802, &v)); /* xAPIC: no MSRs */
	ck_assert(!lapic_set_base(e, base | 1u << 10));
	ck_assert(!lapic_set_base(e, base | 1u << 11 | 1));
	ck_assert(!lapic_set_base(e, base | 1u << 11 | 1ull << 40));
	ck_assert(lapic_set_base(e, base | 3u << 10));
	ck_assert(!lapic_set_base(e, base | 1u << 11)); /* back only by way of disabled */
	ck_assert(lapic_msr_read(e, 0x80d, &v) && v == 1);
	ck_assert(lapic_set_base(e, base));
	ck_assert(!lapic_set_base(e, base | 3u << 10));
	ck_assert(lapic_set_base(e, base | 1u << 11));
}
END_TEST

START_TEST(x2apic_faults)
{
	static const uint32_t read_only[] = { 0x802, 0x803, 0x80a, 0x80d, 0x810, 0x818, 0x820, 0x839 };
	static const uint32_t absent[] = { 0x800, 0x801, 0x809, 0x80c, 0x80e, 0x82f, 0x831, 0x83a };
	uint64_t v;

	enter_x2apic();
	for (unsigned i = 0; i < sizeof(read_only) / sizeof(read_only[0]); i++) {
		ck_assert(lapic_msr_read(e, read_only[i], &v));
		ck_assert(!lapic_msr_write(e, read_only[i], 0));
	}
	for (unsigned i = 0; i < sizeof(absent) / sizeof(absent[0]); i++) {
		ck_assert(!lapic_msr_read(e, absent[i], &v));
		ck_assert(!lapic_msr_write(e, absent[i], 0));
	}
	ck_assert(!lapic_msr_read(e, 0x80b, &v));
	ck_assert(!lapic_msr_read(e, 0x83f, &v));
	ck_assert(!lapic_msr_write(e, 0x80b, 1));
	ck_assert(!lapic_msr_write(e, 0x828, 1));
	ck_assert(!lapic_msr_write(e, 0x808, 0x100));
	ck_assert(!lapic_msr_write(e, 0x80f, 1ull << 32));
	ck_assert(!lapic_msr_write(e, 0x832, 1u << 20));
	ck_assert(lapic_msr_write(e, 0x80f, 0x1ff));
	ck_assert(lapic_msr_write(e, 0x83f, 0x77));
	ck_assert_int_eq(lapic_pending(e), 0x77);
}
END_TEST

START_TEST(ipis)
{
	enable();
	lapic_write(e, 0x310, 0);
	lapic_write(e, 0x300, 0x44); /* physical, to ID 0 */
	ck_assert_int_eq(lapic_pending(e), 0x44);
	lapic_write(e, 0x300, 3u << 18 | 0x99); /* all others: there are none */
	ck_assert_uint_eq(env.exits, 0);
	ck_assert_int_eq(lapic_pending(e), 0x44);
	e->block->model.cpu_count = 2;
	lapic_write(e, 0x310, 1u << 24);
	lapic_write(e, 0x300, 5u << 8 | 1u << 14);
	ck_assert_int_eq(env.exit, VCPU_EXIT_IPI);
	ck_assert_uint_eq(e->block->exit.addr, 1);
	ck_assert_uint_eq(e->block->exit.data, 5u << 8 | 1u << 14);
	lapic_write(e, 0x300, 1u << 18 | 4u << 8);
	ck_assert_uint_eq(e->cpu->nmi_pending, 1);
}
END_TEST

START_TEST(init_keeps_mode)
{
	uint64_t v;

	enter_x2apic();
	ck_assert(lapic_msr_write(e, 0x80f, 0x1ff));
	lapic_reset(e);
	ck_assert(lapic_msr_read(e, 0x80f, &v) && v == 0xff);
	ck_assert(lapic_msr_read(e, 0x80d, &v) && v == 1);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("lapic");
	TCase *c = tcase_create("lapic");

	tcase_add_checked_fixture(c, setup, teardown);
	tcase_add_test(c, priorities);
	tcase_add_test(c, posted_and_eoi);
	tcase_add_test(c, errors);
	tcase_add_test(c, software_disable);
	tcase_add_test(c, extint);
	tcase_add_test(c, timer_one_shot);
	tcase_add_test(c, timer_masked_expiry_is_lost);
	tcase_add_test(c, timer_periodic);
	tcase_add_test(c, timer_tsc_deadline);
	tcase_add_test(c, modes);
	tcase_add_test(c, x2apic_faults);
	tcase_add_test(c, ipis);
	tcase_add_test(c, init_keeps_mode);
	suite_add_tcase(s, c);
	return run_suite(s);
}
