/*
 * The KVM backend on the host's own /dev/kvm: state that is set is state that is got, the local APIC likewise, exits, kicks
 * without lost wake-ups, the PIC's vector. Where there is no KVM that can be opened, one sentence and nothing else. A partial KVM
 * (kvm_pvm) runs the few instructions of these tests by interpretation, which is slow and good enough.
 */
#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "run_suite.h"
#include "kvm/kvm_vm.h"
#include "vmm/error.h"
#include "vmm/mem.h"

#define RAM (4ull << 20)
#define CODE 0x1000

static struct guest_mem *mem;
static struct kvm_vm *vm;
static struct cpu_model model;
static struct error err;

static void setup(void)
{
	const struct kvm_config config = { .cpus = 2 };
	struct kvm_config with_mem = config;

	ck_assert_int_eq(mem_create(RAM, &mem, &err), 0);
	with_mem.mem = mem;
	ck_assert_msg(kvm_vm_create(&with_mem, &vm, &err) == 0, "%s", err.message);
	ck_assert_msg(cpu_model_create_at("common", 2, kvm_tsc_khz(vm), &model, &err) == 0, "%s", err.message);
	kvm_fit_model(vm, &model);
}

static void teardown(void)
{
	kvm_vm_destroy(vm);
	mem_destroy(mem);
}

static struct kvm_vcpu *vcpu_new(unsigned index)
{
	struct cpu_model own = model;
	void *self;

	own.apic_id = index;
	ck_assert_msg(kvm_vcpu_create(vm, index, &own, &self, &err) == 0, "%s", err.message);
	return self;
}

/* Real mode at CODE. */
static void start_at_code(struct kvm_vcpu *v, const void *code, size_t size)
{
	struct lapic_state lapic;
	struct cpu_state s;

	ck_assert_int_eq(mem_write(mem, CODE, code, size), 0);
	cpu_reset(&s, true);
	s.seg[SEG_CS].selector = 0;
	s.seg[SEG_CS].base = 0;
	s.gpr[GPR_RIP] = CODE;
	s.gpr[GPR_RSP] = 0x8000;
	cpu_lapic_reset(&lapic, v->index, v->index == 0);
	kvm_lapic_set(v, &lapic);
	kvm_state_set(v, &s);
	ck_assert_msg(!v->failed, "%s", v->failure);
}

static void run_until(struct kvm_vcpu *v, struct vcpu_exit *x, enum vcpu_exit_kind kind)
{
	do
		ck_assert_int_eq(kvm_vcpu_ops.run(v, x), 0);
	while (x->kind == VCPU_EXIT_NONE);
	ck_assert_msg(x->kind == kind, "exit %u, not %u: %s", x->kind, kind, x->text);
}

static void long_mode(struct cpu_state *s)
{
	cpu_reset(s, true);
	for (unsigned i = 0; i < 16; i++)
		s->gpr[i] = 0x1111111111111111ull * i + 1;
	s->gpr[GPR_RIP] = 0xffffffff81000000ull;
	s->rflags = FLAG_FIXED | FLAG_IF | FLAG_CF | FLAG_ID;
	s->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
	s->cr2 = 0x123456789000;
	s->cr3 = 0x3000;
	s->cr4 = CR4_PAE | CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT;
	s->efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
	s->seg[SEG_CS] = (struct cpu_segment){ .selector = 0x10, .ar = 0xa09b, .limit = 0xffffffff };
	s->seg[SEG_SS] = (struct cpu_segment){ .selector = 0x18, .ar = 0xc093, .limit = 0xffffffff };
	s->seg[SEG_FS].base = 0x7f0012345000;
	s->seg[SEG_GS].base = 0xffff888000000000ull;
	s->gdtr = (struct cpu_table){ .base = 0xfffffe0000001000ull, .limit = 127 };
	s->idtr = (struct cpu_table){ .base = 0xfffffe0000000000ull, .limit = 4095 };
	s->star = 0x0023001000000000ull;
	s->lstar = 0xffffffff81800000ull;
	s->sfmask = 0x47700;
	s->kernel_gs_base = 0x1000;
	s->sysenter_cs = 0x10;
	s->tsc_offset = 0 - 12345678901ull;
	for (unsigned i = 0; i < 16; i++)
		memset(s->xsave + 160 + 16 * i, (int)(0x40 + i), 16);
}

#define SAME(field) ck_assert_msg(!memcmp(&a.field, &b.field, sizeof(a.field)), #field " differs")

START_TEST(state_round_trip)
{
	static struct cpu_state a, b;
	struct kvm_vcpu *v = vcpu_new(0);

	long_mode(&a);
	ck_assert_msg(kvm_state_set(v, &a) == 0, "%s", v->failure);
	ck_assert_msg(kvm_state_get(v, &b) == 0, "%s", v->failure);
	SAME(gpr);
	SAME(rflags);
	SAME(cr0);
	SAME(cr2);
	SAME(cr3);
	SAME(cr4);
	SAME(efer);
	SAME(gdtr);
	SAME(idtr);
	SAME(star);
	SAME(lstar);
	SAME(sfmask);
	SAME(kernel_gs_base);
	SAME(sysenter_cs);
	SAME(pat);
	SAME(event);
	SAME(activity);
	ck_assert_uint_eq(a.seg[SEG_CS].ar, b.seg[SEG_CS].ar);
	ck_assert_uint_eq(a.seg[SEG_FS].base, b.seg[SEG_FS].base);
	ck_assert_uint_eq(a.seg[SEG_GS].base, b.seg[SEG_GS].base);
	ck_assert(!memcmp(a.xsave + 160, b.xsave + 160, 256));
	kvm_vcpu_ops.destroy(v);
}
END_TEST

START_TEST(tsc_offset_is_exact)
{
	static struct cpu_state a, b;
	struct kvm_vcpu *v = vcpu_new(0);

	long_mode(&a);
	kvm_state_set(v, &a);
	kvm_state_get(v, &b);
	/* Linux before 5.16 can only be asked for the time: a millisecond's ticks. */
	ck_assert_uint_lt(a.tsc_offset - b.tsc_offset + 5000000, 10000000);
	kvm_vcpu_ops.destroy(v);
}
END_TEST

START_TEST(events_round_trip)
{
	static struct cpu_state a, b;
	struct kvm_vcpu *v = vcpu_new(0);

	long_mode(&a);
	a.event = CPU_EVENT_INTERRUPT;
	a.event_vector = 0x51;
	a.nmi_blocked = 1;
	ck_assert_msg(kvm_state_set(v, &a) == 0, "%s", v->failure);
	kvm_state_get(v, &b);
	SAME(event);
	SAME(event_vector);
	SAME(nmi_blocked);

	a.event = CPU_EVENT_EXCEPTION;
	a.event_vector = EXC_PF;
	a.event_has_error = 1;
	a.event_error = 7;
	a.nmi_blocked = 0;
	ck_assert_msg(kvm_state_set(v, &a) == 0, "%s", v->failure);
	kvm_state_get(v, &b);
	SAME(event);
	SAME(event_vector);
	SAME(event_has_error);
	SAME(event_error);

	a.event = CPU_EVENT_NONE;
	a.activity = CPU_HALTED;
	ck_assert_msg(kvm_state_set(v, &a) == 0, "%s", v->failure);
	kvm_state_get(v, &b);
	ck_assert_uint_eq(b.event, CPU_EVENT_NONE);
	SAME(activity);
	kvm_vcpu_ops.destroy(v);
}
END_TEST

START_TEST(lapic_round_trip)
{
	struct lapic_state a, b;
	struct kvm_vcpu *v = vcpu_new(1);

	cpu_lapic_reset(&a, 1, false);
	a.spurious = 0x1ff;
	a.tpr = 0x20;
	a.lvt[LVT_TIMER] = 0x40; /* one shot */
	a.lvt[LVT_LINT1] = 4u << 8;
	a.timer_divide = 0xb;
	a.isr[1] = 1ull << 3;
	a.irr[2] = 1ull << 5;
	ck_assert_msg(kvm_lapic_set(v, &a) == 0, "%s", v->failure);
	ck_assert_msg(kvm_lapic_get(v, &b) == 0, "%s", v->failure);
	ck_assert_uint_eq(b.apic_base, a.apic_base);
	ck_assert_uint_eq(b.id, 1);
	SAME(spurious);
	SAME(tpr);
	SAME(lvt);
	SAME(timer_divide);
	SAME(isr);
	SAME(irr);

	/* x2APIC and back: KVM knows the steps of hardware only. */
	a.apic_base |= 1u << 10;
	a.ldr = 1u << 1;
	ck_assert_msg(kvm_lapic_set(v, &a) == 0, "%s", v->failure);
	kvm_lapic_get(v, &b);
	ck_assert_uint_eq(b.apic_base, a.apic_base);
	ck_assert_uint_eq(b.ldr, 2);
	a.apic_base &= ~(uint64_t)(1u << 10);
	ck_assert_msg(kvm_lapic_set(v, &a) == 0, "%s", v->failure);
	kvm_lapic_get(v, &b);
	ck_assert_uint_eq(b.apic_base, a.apic_base);
	kvm_vcpu_ops.destroy(v);
}
END_TEST

START_TEST(messages_arrive)
{
	struct lapic_state lapic;
	struct kvm_vcpu *v = vcpu_new(0);

	cpu_lapic_reset(&lapic, 0, true);
	lapic.spurious = 0x1ff;
	kvm_lapic_set(v, &lapic);
	kvm_deliver(vm, 0, false, 0, 0x61, false);
	kvm_lapic_get(v, &lapic);
	/* Posted interrupts of the processor's are merged at the next entry only. */
	ck_assert(lapic.irr[1] >> (0x61 - 64) & 1);
	kvm_vcpu_ops.destroy(v);
}
END_TEST

START_TEST(port_exits)
{
	/* in al,0x42; inc al; out 0x43,al; hlt */
	static const uint8_t code[] = { 0xe4, 0x42, 0xfe, 0xc0, 0xe6, 0x43, 0xf4 };
	struct kvm_vcpu *v = vcpu_new(0);
	struct vcpu_exit x = { 0 };

	start_at_code(v, code, sizeof(code));
	run_until(v, &x, VCPU_EXIT_PIO);
	ck_assert_uint_eq(x.addr, 0x42);
	ck_assert(!x.is_write);
	x.data = 0x11;
	run_until(v, &x, VCPU_EXIT_PIO);
	ck_assert_uint_eq(x.addr, 0x43);
	ck_assert(x.is_write);
	ck_assert_uint_eq(x.data, 0x12);
	kvm_vcpu_ops.destroy(v);
}
END_TEST

START_TEST(access_ends_before_kick)
{
	/* in al,0x42; hlt: a kick that is there already must not lose the answer. */
	static const uint8_t code[] = { 0xe4, 0x42, 0xf4 };
	static struct cpu_state s;
	struct kvm_vcpu *v = vcpu_new(0);
	struct vcpu_exit x = { 0 };

	start_at_code(v, code, sizeof(code));
	run_until(v, &x, VCPU_EXIT_PIO);
	x.data = 0x99;
	kvm_vcpu_ops.kick(v);
	run_until(v, &x, VCPU_EXIT_KICKED);
	kvm_vcpu_ops.get_state(v, &s);
	ck_assert_uint_eq(s.gpr[GPR_RAX] & 0xff, 0x99);
	ck_assert_uint_eq(s.gpr[GPR_RIP], CODE + 2);
	kvm_vcpu_ops.destroy(v);
}
END_TEST

static void *kick_later(void *v)
{
	usleep(1000);
	kvm_vcpu_ops.kick(v);
	return NULL;
}

/* Spinning with interrupts off, and asleep: each time a kick brings the thread back. */
START_TEST(kicks_are_not_lost)
{
	static const uint8_t spin[] = { 0xfa, 0xeb, 0xfe }, sleep[] = { 0xfb, 0xf4, 0xeb, 0xfd };
	struct kvm_vcpu *v = vcpu_new(0);
	struct vcpu_exit x = { 0 };
	pthread_t thread;

	for (unsigned i = 0; i < 50; i++) {
		if (i % 25 == 0)
			start_at_code(v, i ? sleep : spin, i ? sizeof(sleep) : sizeof(spin));
		ck_assert_int_eq(pthread_create(&thread, NULL, kick_later, v), 0);
		run_until(v, &x, VCPU_EXIT_KICKED);
		pthread_join(thread, NULL);
	}
	kvm_vcpu_ops.destroy(v);
}
END_TEST

START_TEST(pic_vector)
{
	/* sti; 1: jmp 1b; the handler at 0x2000: in al,0x42 */
	static const uint8_t code[] = { 0xfb, 0xeb, 0xfe }, handler[] = { 0xe4, 0x42 };
	const uint16_t gate[2] = { 0x2000, 0 };
	struct kvm_vcpu *v = vcpu_new(0);
	struct vcpu_exit x = { 0 };

	start_at_code(v, code, sizeof(code));
	mem_write(mem, 0x2000, handler, sizeof(handler));
	mem_write(mem, 4 * 0x20, gate, sizeof(gate));
	kvm_set_extint(vm, true);
	run_until(v, &x, VCPU_EXIT_INTACK);
	x.data = 0x20;
	kvm_set_extint(vm, false);
	run_until(v, &x, VCPU_EXIT_PIO);
	ck_assert_uint_eq(x.addr, 0x42);
	kvm_vcpu_ops.destroy(v);
}
END_TEST

/* Three nops and a jump, one after the other. */
START_TEST(single_steps)
{
	static const uint8_t code[] = { 0x90, 0x90, 0x90, 0xeb, 0xfe };
	const struct vcpu_debug step = { .step = true }, none = { 0 };
	struct kvm_vcpu *v = vcpu_new(0);
	struct vcpu_exit x = { 0 };

	start_at_code(v, code, sizeof(code));
	ck_assert_int_eq(kvm_vcpu_ops.set_debug(v, &step), 0);
	for (unsigned i = 1; i <= 3; i++) {
		run_until(v, &x, VCPU_EXIT_DEBUG);
		ck_assert_uint_eq(x.addr, CODE + i);
	}
	ck_assert_int_eq(kvm_vcpu_ops.set_debug(v, &none), 0);
	kvm_vcpu_ops.kick(v);
	run_until(v, &x, VCPU_EXIT_KICKED);
	kvm_vcpu_ops.destroy(v);
}
END_TEST

static void dirty_pages(void)
{
	/* mov [0x3000],al; mov [0x5000],al; out 0x43,al; again */
	static const uint8_t code[] = { 0xa2, 0x00, 0x30, 0xa2, 0x00, 0x50, 0xe6, 0x43, 0xeb, 0xf6 };
	uint64_t bitmap[(RAM + MEM_ROM_RESERVE) / 4096 / 64] = { 0 };
	struct kvm_vcpu *v = vcpu_new(0);
	struct vcpu_exit x = { 0 };

	start_at_code(v, code, sizeof(code));
	ck_assert_msg(mem_dirty_start(mem, &err) == 0, "%s", err.message);
	mem_write(mem, 0x7010, code, 1);
	for (unsigned round = 0; round < 2; round++) {
		memset(bitmap, 0, sizeof(bitmap));
		run_until(v, &x, VCPU_EXIT_PIO);
		mem_dirty_collect(mem, bitmap);
		ck_assert_uint_eq(bitmap[0] & (1 << 3 | 1 << 5), 1 << 3 | 1 << 5);
		ck_assert_uint_eq(bitmap[0] >> 7 & 1, round == 0);
		ck_assert_uint_eq(bitmap[1], 0);
	}
	memset(bitmap, 0, sizeof(bitmap));
	mem_dirty_collect(mem, bitmap);
	ck_assert_uint_eq(bitmap[0], 0);
	mem_dirty_stop(mem);
	kvm_vcpu_ops.destroy(v);
}

START_TEST(dirty_by_bitmap)
{
	dirty_pages();
}
END_TEST

START_TEST(dirty_by_ring)
{
	const struct kvm_config config = { .mem = mem, .cpus = 1, .dirty_ring = 1024 };

	kvm_vm_destroy(vm);
	ck_assert_msg(kvm_vm_create(&config, &vm, &err) == 0, "%s", err.message);
	dirty_pages();
}
END_TEST

START_TEST(doorbells)
{
	/* mov byte [0x0], al with DS base at 0xd0000000: an ioeventfd answers; then out 0x43,al */
	static const uint8_t code[] = { 0xa2, 0x00, 0x00, 0xe6, 0x43 };
	static struct cpu_state s;
	struct kvm_vcpu *v = vcpu_new(0);
	struct vcpu_exit x = { 0 };
	uint64_t count = 0;
	int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(kvm_set_notify(vm, fd, 0xd0000000, 0), 0);
	start_at_code(v, code, sizeof(code));
	kvm_state_get(v, &s);
	s.seg[SEG_DS].base = 0xd0000000;
	kvm_state_set(v, &s);
	run_until(v, &x, VCPU_EXIT_PIO);
	ck_assert_uint_eq(x.addr, 0x43);
	ck_assert_int_eq(read(fd, &count, sizeof(count)), sizeof(count));
	ck_assert_uint_eq(count, 1);
	ck_assert_int_eq(kvm_set_notify(vm, fd, 0, 0), 0);
	kvm_vcpu_ops.destroy(v);
	close(fd);
}
END_TEST

START_TEST(model_is_what_kvm_can)
{
	struct cpu_model fitted;

	ck_assert_int_eq(cpu_model_create_at("common", 1, 1000000, &fitted, &err), 0);
	kvm_fit_model(vm, &fitted);
	for (unsigned i = 0; i < CPU_WORD_COUNT; i++)
		ck_assert_uint_eq(fitted.host_features[i] & ~model.host_features[i] & ~(1u << 28), 0);
	ck_assert(cpu_model_has(&fitted, CPU_FEATURE_X2APIC));
}
END_TEST

START_TEST(too_many_vcpus)
{
	const struct kvm_config config = { .mem = mem, .cpus = 1000000 };
	struct kvm_vm *none = NULL;

	ck_assert_int_eq(kvm_vm_create(&config, &none, &err), -EINVAL);
	ck_assert_ptr_nonnull(strstr(err.message, "--cpus"));
}
END_TEST

int main(void)
{
	struct kvm_host_info info;
	Suite *suite = suite_create("kvm");
	TCase *tc = tcase_create("kvm");

	kvm_host_probe(&info);
	if (!info.works || info.missing[0]) {
		printf("Not tested: %s.\n", info.state);
		return 0;
	}
	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 60);
	tcase_add_test(tc, state_round_trip);
	if (!info.pvm) /* its guests read the host's TSC as it is */
		tcase_add_test(tc, tsc_offset_is_exact);
	tcase_add_test(tc, events_round_trip);
	tcase_add_test(tc, lapic_round_trip);
	tcase_add_test(tc, messages_arrive);
	tcase_add_test(tc, port_exits);
	tcase_add_test(tc, access_ends_before_kick);
	tcase_add_test(tc, kicks_are_not_lost);
	tcase_add_test(tc, pic_vector);
	tcase_add_test(tc, single_steps);
	tcase_add_test(tc, dirty_by_bitmap);
	tcase_add_test(tc, dirty_by_ring);
	tcase_add_test(tc, doorbells);
	tcase_add_test(tc, model_is_what_kvm_can);
	tcase_add_test(tc, too_many_vcpus);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
