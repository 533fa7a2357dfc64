/*
 * The software backend without an engine: this program, started again as a vcpu process, plays one. What it does is
 * told by the trace word of its block. Without one it is the real engine.
 */
#include <check.h>
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "run_suite.h"
#include "soft/soft_vm.h"
#include "vmm/bus.h"
#include "vmm/engine.h"
#include "vmm/error.h"
#include "vmm/event.h"
#include "vmm/mem.h"
#include "vmm/soft.h"

enum { ACT_WAIT = 1, ACT_WRITES, ACT_NONSENSE, ACT_EXIT };

/* --- the process that plays the engine --- */

static void wake(_Atomic uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void fake_wait_turn(struct vcpu_block *b)
{
	while ((atomic_load(&b->turn) & ~TURN_SLEEPER) != TURN_ENGINE)
		usleep(100);
}

static void fake_exit(struct vcpu_block *b, uint32_t kind, uint64_t addr, uint64_t data, bool is_write)
{
	b->exit.kind = kind;
	b->exit.addr = addr;
	b->exit.data = data;
	b->exit.size = 1;
	b->exit.is_write = is_write;
	if (atomic_exchange(&b->turn, TURN_VMM) & TURN_SLEEPER)
		wake(&b->turn);
	fake_wait_turn(b);
}

static void fake_post(struct vcpu_block *b, uint64_t addr, uint64_t data)
{
	uint32_t head = atomic_load(&b->posted_head);

	b->posted[head % POSTED_RING_SIZE] = (struct posted_write){ BUS_PIO, 1, addr, data };
	atomic_store(&b->posted_head, head + 1);
	if (atomic_load(&b->turn) & TURN_SLEEPER) {
		atomic_fetch_and(&b->turn, ~TURN_SLEEPER);
		wake(&b->turn);
	}
}

static int fake_engine(void)
{
	struct vcpu_block *b = mmap(NULL, sizeof(*b), PROT_READ | PROT_WRITE, MAP_SHARED, VCPU_FD_BLOCK, 0);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (b == MAP_FAILED || b->magic != VCPU_BLOCK_MAGIC)
		return 9;
	fake_wait_turn(b);
	switch (b->trace) {
	case ACT_WRITES:
		fake_post(b, 0x3f8, 'a');
		usleep(20000); /* the VMM has gone to sleep */
		fake_post(b, 0x3f8, 'b');
		fake_post(b, 0x10000, 'x'); /* no such port */
		fake_post(b, 0x3f8, 'c');
		fake_exit(b, VCPU_EXIT_PIO, 0x60, 0, false);
		fake_exit(b, VCPU_EXIT_MMIO, 0x1000, b->reply.data, true);
		break;
	case ACT_NONSENSE:
		atomic_store(&b->posted_head, 0x80000000u);
		fake_exit(b, 77, 0, 0, false);
		break;
	case ACT_EXIT:
		return 5;
	}
	for (;;) {
		if (atomic_fetch_and(&b->events, ~VCPU_EVENT_EXIT) & VCPU_EVENT_EXIT)
			fake_exit(b, VCPU_EXIT_KICKED, 0, 0, false);
		usleep(1000);
	}
}

/* --- the tests --- */

static pthread_mutex_t device_lock = PTHREAD_MUTEX_INITIALIZER;
static struct guest_mem *mem;
static struct event_loop *loop;
static struct soft_vm *vm;

static void setup(void)
{
	struct error err = { 0 };

	ck_assert_int_eq(mem_create(4 << 20, &mem, &err), 0);
	ck_assert_int_eq(event_loop_create(&device_lock, &loop, &err), 0);
	ck_assert_int_eq(soft_vm_create(mem, loop, NULL, &vm, &err), 0);
}

static void teardown(void)
{
	soft_vm_destroy(vm);
	event_loop_destroy(loop);
	mem_destroy(mem);
}

static struct soft_vcpu *create(unsigned index, uint32_t act)
{
	struct cpu_model model;
	struct error err = { 0 };
	void *self;

	ck_assert_int_eq(cpu_model_create("common", 4, &model, &err), 0);
	ck_assert_msg(soft_vcpu_create(vm, index, &model, VCPU_ENGINE_INTERP, VCPU_SHADOW_UNSYNC, act, &self, &err) == 0, "%s", err.message);
	return self;
}

START_TEST(posted_writes_in_order)
{
	struct soft_vcpu *v = create(0, ACT_WRITES);
	struct vcpu_exit x = { 0 };

	for (const char *p = "abc"; *p; p++) {
		ck_assert_int_eq(soft_vcpu_ops.run(v, &x), 0);
		ck_assert_int_eq(x.kind, VCPU_EXIT_PIO);
		ck_assert_uint_eq(x.addr, 0x3f8);
		ck_assert_int_eq((int)x.data, *p);
		ck_assert(x.is_write);
	}
	soft_vcpu_ops.run(v, &x);
	ck_assert_int_eq(x.kind, VCPU_EXIT_PIO);
	ck_assert_uint_eq(x.addr, 0x60);
	x.data = 0x5a;
	soft_vcpu_ops.run(v, &x);
	ck_assert_int_eq(x.kind, VCPU_EXIT_MMIO);
	ck_assert_uint_eq(x.data, 0x5a);
	soft_vcpu_ops.kick(v);
	soft_vcpu_ops.run(v, &x);
	ck_assert_int_eq(x.kind, VCPU_EXIT_KICKED);
	soft_vcpu_ops.destroy(v);
}
END_TEST

START_TEST(nonsense_is_refused)
{
	struct soft_vcpu *v = create(0, ACT_NONSENSE);
	struct vcpu_exit x = { 0 };

	soft_vcpu_ops.run(v, &x);
	ck_assert_int_eq(x.kind, VCPU_EXIT_ERROR);
	ck_assert_uint_ne(x.text[0], 0);
	soft_vcpu_ops.destroy(v);
}
END_TEST

static bool with_loop; /* else the vcpu thread notices by itself */

static void *kill_later(void *arg)
{
	struct soft_vcpu *v = arg;

	usleep(30000);
	kill(v->pid, SIGKILL);
	if (with_loop)
		event_loop_poll(loop, 400);
	return NULL;
}

static void run_until_killed(void)
{
	struct soft_vcpu *v = create(0, ACT_WAIT);
	struct vcpu_exit x = { 0 };
	pthread_t thread;

	pthread_create(&thread, NULL, kill_later, v);
	soft_vcpu_ops.run(v, &x);
	pthread_join(thread, NULL);
	ck_assert_int_eq(x.kind, VCPU_EXIT_DIED);
	ck_assert_ptr_nonnull(strstr(x.text, "signal 9"));
	memset(&x, 0, sizeof(x));
	soft_vcpu_ops.run(v, &x); /* again: at once */
	ck_assert_int_eq(x.kind, VCPU_EXIT_DIED);
	soft_vcpu_ops.destroy(v);
}

START_TEST(death_is_reported)
{
	with_loop = _i != 0;
	run_until_killed();
}
END_TEST

START_TEST(exit_is_reported)
{
	struct soft_vcpu *v = create(0, ACT_EXIT);
	struct vcpu_exit x = { 0 };

	soft_vcpu_ops.run(v, &x);
	ck_assert_int_eq(x.kind, VCPU_EXIT_DIED);
	ck_assert_ptr_nonnull(strstr(x.text, "status 5"));
	soft_vcpu_ops.destroy(v);
}
END_TEST

static bool got(struct soft_vcpu *v, unsigned vector)
{
	uint64_t bit = 1ull << (vector % 64);

	return atomic_fetch_and(&v->block->posted_irr[vector / 64], ~bit) & bit;
}

START_TEST(routing)
{
	struct soft_vcpu *v[3];
	unsigned hits = 0;

	for (unsigned i = 0; i < 3; i++)
		v[i] = create(i, ACT_WAIT);
	soft_deliver(vm, 1, false, 0, 0x40, false);
	ck_assert(!got(v[0], 0x40) && got(v[1], 0x40) && !got(v[2], 0x40));
	soft_deliver(vm, 0xff, false, 0, 0x41, true);
	ck_assert(got(v[0], 0x41) && got(v[1], 0x41) && got(v[2], 0x41));
	ck_assert(atomic_load(&v[0]->block->posted_tmr[1]) & 2);
	soft_deliver(vm, 1, false, 0, 15, false); /* illegal vector */
	ck_assert(!got(v[1], 15));
	/* flat, cluster, x2APIC cluster */
	v[0]->block->lapic.ldr = 1u << 24;
	v[1]->block->lapic.ldr = 2u << 24;
	v[2]->block->lapic.ldr = 4u << 24;
	soft_deliver(vm, 6, true, 0, 0x50, false);
	ck_assert(!got(v[0], 0x50) && got(v[1], 0x50) && got(v[2], 0x50));
	v[1]->block->lapic.dfr = 0x0fffffff;
	v[1]->block->lapic.ldr = 0x32u << 24;
	v[2]->block->lapic.apic_base |= 1u << 10;
	v[2]->block->lapic.ldr = 1u << 16 | 4;
	soft_deliver(vm, 0x32, true, 0, 0x51, false);
	ck_assert(got(v[1], 0x51) && !got(v[2], 0x51));
	soft_deliver(vm, 1u << 16 | 0xc, true, 0, 0x52, false);
	ck_assert(got(v[2], 0x52) && !got(v[0], 0x52));
	/* lowest priority goes to one */
	for (int n = 0; n < 6; n++) {
		soft_deliver(vm, 0xff, false, 1, 0x60, false);
		ck_assert_int_eq(got(v[0], 0x60) + 2 * got(v[1], 0x60) + 4 * got(v[2], 0x60), 1 << n % 3);
		hits++;
	}
	ck_assert_uint_eq(hits, 6);
	soft_ipi(vm, 1, 0, 3u << 18 | 0x70); /* all but self */
	ck_assert(got(v[0], 0x70) && !got(v[1], 0x70) && got(v[2], 0x70));
	soft_ipi(vm, 0, 1, 6u << 8 | 0x9a);
	ck_assert_uint_eq(atomic_load(&v[1]->block->sipi_vector), 0x9a);
	ck_assert(atomic_load(&v[1]->block->events) & VCPU_EVENT_SIPI);
	for (unsigned i = 0; i < 3; i++)
		soft_vcpu_ops.destroy(v[i]);
}
END_TEST

START_TEST(code_writes)
{
	struct soft_vcpu *v = create(0, ACT_WAIT);
	uint8_t bytes[8192] = { 0 };

	mem_write(mem, 0x5000, bytes, 16);
	ck_assert_uint_eq(atomic_load(&v->block->invalidate_head), 0);
	atomic_fetch_or(&vm->shared->code_pages[0], 1ull << 6);
	mem_write(mem, 0x5800, bytes, sizeof(bytes)); /* pages 5, 6, 7 */
	ck_assert_uint_eq(atomic_load(&v->block->invalidate_head), 1);
	ck_assert_uint_eq(atomic_load(&v->block->invalidate_page[0]), 6);
	ck_assert(atomic_load(&v->block->events) & VCPU_EVENT_INVALIDATE);
	for (int i = 0; i < INVALIDATE_RING_SIZE + 5; i++)
		mem_write(mem, 0x6000, bytes, 1);
	ck_assert_uint_eq(atomic_load(&v->block->invalidate_head), INVALIDATE_RING_SIZE);
	ck_assert_uint_eq(atomic_load(&v->block->invalidate_all), 1);
	soft_vcpu_ops.destroy(v);
}
END_TEST

START_TEST(notify_slots)
{
	int a = eventfd(0, EFD_CLOEXEC), b = eventfd(0, EFD_CLOEXEC);
	struct soft_vcpu *v;

	ck_assert_int_eq(soft_set_notify(vm, a, 0, 0), 0);
	v = create(0, ACT_WAIT);
	ck_assert_int_lt(soft_set_notify(vm, b, 0xfe000000, 2), 0); /* too late to be inherited */
	ck_assert_int_eq(soft_set_notify(vm, a, 0xfe001000, 2), 0);
	ck_assert_uint_eq(atomic_load(&vm->shared->notify[0].gpa), 0xfe001000);
	ck_assert_int_eq(soft_set_notify(vm, a, 0, 0), 0);
	ck_assert_uint_eq(atomic_load(&vm->shared->notify[0].gpa), 0);
	soft_vcpu_ops.destroy(v);
	close(a);
	close(b);
}
END_TEST

/* The real engine, in real mode: posted write, read with an answer, HLT woken by the PIC, triple fault. */
static const uint8_t guest_code[] = {
	0xb0, 'A', 0xba, 0xf8, 0x03, 0xee, /* mov al, 'A'; mov dx, 0x3f8; out dx, al */
	0xe4, 0x60, 0xe6, 0x61,		   /* in al, 0x60; out 0x61, al */
	0xfb, 0xf4, 0xe6, 0x62,		   /* sti; hlt; out 0x62, al */
	0x0f, 0x01, 0x1e, 0x00, 0x20,	   /* lidt [0x2000]: limit 0 */
	0x0f, 0x0b,			   /* ud2 */
};
static const uint8_t guest_handler[] = { 0xe6, 0x63, 0xcf }; /* out 0x63, al; iret */
static const uint8_t guest_vector[] = { 0x00, 0x11, 0, 0 };  /* 0:1100 */

static void *raise_later(void *arg)
{
	usleep(50000);
	soft_set_extint(vm, true);
	return NULL;
}

static void expect_pio(struct soft_vcpu *v, struct vcpu_exit *x, uint64_t port, bool is_write, uint64_t value)
{
	ck_assert_int_eq(soft_vcpu_ops.run(v, x), 0);
	ck_assert_msg(x->kind == VCPU_EXIT_PIO && x->addr == port, "kind %u, port %#lx: %s", x->kind, (unsigned long)x->addr,
		x->text);
	ck_assert_uint_eq(x->is_write, is_write);
	if (is_write)
		ck_assert_uint_eq(x->data, value);
}

START_TEST(real_engine)
{
	struct soft_vcpu *v;
	struct cpu_state *state = aligned_alloc(64, (sizeof(*state) + 63) & ~63ul);
	struct vcpu_exit x = { 0 };
	pthread_t thread;

	mem_write(mem, 0x1000, guest_code, sizeof(guest_code));
	mem_write(mem, 0x1100, guest_handler, sizeof(guest_handler));
	mem_write(mem, 0x28 * 4, guest_vector, sizeof(guest_vector));
	soft_set_posted_pio(vm, 0x3f8);
	v = create(0, 0);
	cpu_reset(state, true);
	state->seg[SEG_CS].selector = 0;
	state->seg[SEG_CS].base = 0;
	state->gpr[GPR_RIP] = 0x1000;
	state->gpr[GPR_RSP] = 0x3000;
	soft_vcpu_ops.set_state(v, state);
	pthread_create(&thread, NULL, raise_later, NULL);
	expect_pio(v, &x, 0x3f8, true, 'A');
	expect_pio(v, &x, 0x60, false, 0);
	x.data = 0x77;
	expect_pio(v, &x, 0x61, true, 0x77);
	ck_assert_int_eq(soft_vcpu_ops.run(v, &x), 0);
	ck_assert_msg(x.kind == VCPU_EXIT_INTACK, "kind %u: %s", x.kind, x.text);
	soft_set_extint(vm, false);
	x.data = 0x28;
	expect_pio(v, &x, 0x63, true, 0x77);
	expect_pio(v, &x, 0x62, true, 0x77);
	ck_assert_int_eq(soft_vcpu_ops.run(v, &x), 0);
	ck_assert_msg(x.kind == VCPU_EXIT_SHUTDOWN, "kind %u: %s", x.kind, x.text);
	ck_assert_ptr_nonnull(strstr(x.text, "triple fault"));
	soft_vcpu_ops.get_state(v, state);
	ck_assert_uint_eq(state->gpr[GPR_RAX] & 0xff, 0x77);
	pthread_join(thread, NULL);
	soft_vcpu_ops.destroy(v);
	free(state);
}
END_TEST

/* Real mode: in al, 0x61; out 0x62, al; in eax, 0x64; out 0x62, eax; in eax, 0x64; out 0x62, eax; in al, 0x61; hlt */
static const uint8_t answer_code[] = { 0xe4, 0x61, 0xe6, 0x62, 0x66, 0xe5, 0x64, 0x66, 0xe7, 0x62, 0x66, 0xe5, 0x64, 0x66, 0xe7,
	0x62, 0xe4, 0x61, 0xf4 };

START_TEST(answered_reads)
{
	struct bus_answer status = { .space = BUS_PIO, .sizes = 1, .addr = 0x61, .base = 0x5a, .den = 1 };
	struct bus_answer counter = { .space = BUS_PIO, .sizes = 4, .addr = 0x64, .num = 3, .den = 7, .shift = 1 };
	struct cpu_state *state = aligned_alloc(64, (sizeof(*state) + 63) & ~63ul);
	struct vcpu_exit x = { 0 };
	struct soft_vcpu *v;
	uint64_t before, after, first;

	mem_write(mem, 0x1000, answer_code, sizeof(answer_code));
	ck_assert_int_eq(soft_set_answer(vm, &status), 0);
	v = create(0, 0);
	cpu_reset(state, true);
	state->seg[SEG_CS].selector = 0;
	state->seg[SEG_CS].base = 0;
	state->gpr[GPR_RIP] = 0x1000;
	soft_vcpu_ops.set_state(v, state);
	expect_pio(v, &x, 0x62, true, 0x5a);
	counter.start_ns = event_now() - 1000000;
	counter.base = 1000;
	ck_assert_int_eq(soft_set_answer(vm, &counter), 0);
	before = event_now();
	ck_assert_int_eq(soft_vcpu_ops.run(v, &x), 0);
	after = event_now();
	ck_assert_uint_eq(x.addr, 0x62);
	first = x.data;
	ck_assert_uint_ge(first, (1000 + (before - counter.start_ns) * 3 / 7) >> 1);
	ck_assert_uint_le(first, (1000 + (after - counter.start_ns) * 3 / 7) >> 1);
	ck_assert_int_eq(soft_vcpu_ops.run(v, &x), 0);
	ck_assert_uint_eq(x.addr, 0x62);
	ck_assert_uint_ge(x.data, first);
	ck_assert_uint_eq(soft_vcpu_stats(vm, 0)->answered_reads, 3);
	status.sizes = 0;
	ck_assert_int_eq(soft_set_answer(vm, &status), 0);
	expect_pio(v, &x, 0x61, false, 0);
	for (counter.addr = 0x70; counter.addr < 0x70 + ANSWER_MAX - 2; counter.addr++)
		ck_assert_int_eq(soft_set_answer(vm, &counter), 0);
	ck_assert_int_eq(soft_set_answer(vm, &counter), -ENOSPC);
	soft_vcpu_ops.destroy(v);
	free(state);
}
END_TEST

static void fake_or_real(int argc, char **argv)
{
	struct vcpu_block *b = mmap(NULL, sizeof(*b), PROT_READ, MAP_SHARED, VCPU_FD_BLOCK, 0);

	if (b != MAP_FAILED && b->trace)
		_exit(fake_engine());
	exit(engine_main(argc, argv));
}

int main(int argc, char **argv)
{
	Suite *s = suite_create("soft");
	TCase *c = tcase_create("soft");

	if (argc > 1 && !strcmp(argv[1], "--vcpu-process"))
		fake_or_real(argc, argv);
	tcase_add_checked_fixture(c, setup, teardown);
	tcase_add_test(c, posted_writes_in_order);
	tcase_add_test(c, nonsense_is_refused);
	tcase_add_loop_test(c, death_is_reported, 0, 2);
	tcase_add_test(c, exit_is_reported);
	tcase_add_test(c, routing);
	tcase_add_test(c, code_writes);
	tcase_add_test(c, notify_slots);
	tcase_add_test(c, real_engine);
	tcase_add_test(c, answered_reads);
	tcase_set_timeout(c, 20);
	suite_add_tcase(s, c);
	return run_suite(s);
}
