/* The run loop over a backend that plays back a list of exits. */
#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "run_suite.h"
#include "vmm/bus.h"
#include "vmm/error.h"
#include "vmm/vcpu.h"

static struct vcpu_exit script[16];
static unsigned script_length, step;
static _Atomic bool kicked;
static _Atomic unsigned stopped_kind;
static uint64_t answers[16];
static unsigned eoi_vector, ipi_dest, destroyed;

static int fake_run(void *self, struct vcpu_exit *x)
{
	if (step > 0 && step <= script_length)
		answers[step - 1] = x->data;
	if (step < script_length) {
		*x = script[step++];
		return 0;
	}
	step = script_length + 1;
	while (!atomic_load(&kicked))
		usleep(100);
	atomic_store(&kicked, false);
	memset(x, 0, sizeof(*x));
	x->kind = VCPU_EXIT_KICKED;
	return 0;
}

static void fake_kick(void *self)
{
	atomic_store(&kicked, true);
}

static void fake_get(void *self, struct cpu_state *state)
{
	memset(state, 0, sizeof(*state));
	state->gpr[GPR_RIP] = 0x1234;
}

static void fake_set(void *self, const struct cpu_state *state)
{
}

static void fake_destroy(void *self)
{
	destroyed++;
}

static const struct vcpu_backend ops = { .name = "fake", .run = fake_run, .kick = fake_kick, .get_state = fake_get,
	.set_state = fake_set, .destroy = fake_destroy };

static int intack(void *ctx)
{
	return 0x28;
}

static void eoi(void *ctx, uint8_t vector)
{
	eoi_vector = vector;
}

static void ipi(void *ctx, unsigned from, uint32_t dest, uint32_t icr_low)
{
	ipi_dest = dest;
}

static void stopped(void *ctx, unsigned index, const struct vcpu_exit *exit, const struct cpu_state *state)
{
	ck_assert_uint_eq(state->gpr[GPR_RIP], 0x1234);
	atomic_store(&stopped_kind, exit->kind);
}

static uint64_t reg_read(void *dev, uint64_t offset, unsigned size)
{
	return 0x55;
}

static void reg_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	*(uint64_t *)dev = value;
}

static const struct bus_ops reg_ops = { reg_read, reg_write };
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

START_TEST(serves_exits)
{
	struct error err = { 0 };
	struct vcpu_host host = { NULL, intack, eoi, ipi, stopped, NULL };
	uint64_t written = 0;
	struct vcpu *v;

	ck_assert_int_eq(bus_create(&lock, &host.bus, &err), 0);
	ck_assert_int_eq(bus_add(host.bus, BUS_PIO, 0x60, 1, &reg_ops, &written, "reg"), 0);
	script[0] = (struct vcpu_exit){ .kind = VCPU_EXIT_PIO, .addr = 0x60, .size = 1 };
	script[1] = (struct vcpu_exit){ .kind = VCPU_EXIT_PIO, .addr = 0x60, .size = 1, .is_write = 1, .data = 7 };
	script[2] = (struct vcpu_exit){ .kind = VCPU_EXIT_INTACK };
	script[3] = (struct vcpu_exit){ .kind = VCPU_EXIT_EOI, .data = 0x44 };
	script[4] = (struct vcpu_exit){ .kind = VCPU_EXIT_IPI, .addr = 3, .data = 0x99 };
	script_length = 5;
	ck_assert_int_eq(vcpu_create(0, &ops, NULL, &host, &v, &err), 0);
	ck_assert_int_eq(vcpu_start(v, &err), 0);
	vcpu_stop(v);
	ck_assert_uint_eq(answers[0], 0x55);
	ck_assert_uint_eq(written, 7);
	ck_assert_uint_eq(answers[2], 0x28);
	ck_assert_uint_eq(eoi_vector, 0x44);
	ck_assert_uint_eq(ipi_dest, 3);
	ck_assert_uint_eq(vcpu_exit_counts(v)[VCPU_EXIT_PIO], 2);
	ck_assert_uint_eq(vcpu_exit_counts(v)[VCPU_EXIT_KICKED], 1);
	ck_assert_int_eq(vcpu_start(v, &err), 0); /* again */
	vcpu_destroy(v);
	ck_assert_uint_eq(destroyed, 1);
	bus_destroy(host.bus);
}
END_TEST

START_TEST(reports_the_end)
{
	struct error err = { 0 };
	struct vcpu_host host = { NULL, intack, eoi, ipi, stopped, NULL };
	struct vcpu *v;

	script[0] = (struct vcpu_exit){ .kind = VCPU_EXIT_SHUTDOWN };
	script_length = 1;
	ck_assert_int_eq(vcpu_create(0, &ops, NULL, &host, &v, &err), 0);
	ck_assert_int_eq(vcpu_start(v, &err), 0);
	vcpu_stop(v);
	ck_assert_uint_eq(atomic_load(&stopped_kind), VCPU_EXIT_SHUTDOWN);
	vcpu_destroy(v);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("vcpu");
	TCase *c = tcase_create("vcpu");

	tcase_add_test(c, serves_exits);
	tcase_add_test(c, reports_the_end);
	suite_add_tcase(s, c);
	return run_suite(s);
}
