/*
 * Everything that a vcpu holds stays what it is over hundreds of exits: x87, MMX, SSE and AVX registers with their control
 * words, an x87 exception that waits, debug registers, MSRs, interrupts that wait or are in service, a blocked NMI, TF and
 * the interrupt shadows right at an exit. Cheap for a backend that leaves all that alone; the proof for one that takes the
 * state out and puts it into another at any exit (SDM vol. 1, ch. 8, 10, 13; vol. 3, 6.8, 11.8, 17.3).
 */
#include "guest.h"

#define ROUNDS 200
#define PORT 0x61 /* a read leaves the guest under every backend */

#define SPURIOUS 0xf0
#define ESR 0x280
#define ICR 0x300
#define LVT_TIMER 0x320
#define TIMER_INITIAL 0x380
#define TIMER_CURRENT 0x390
#define TIMER_DIVIDE 0x3e0
#define TPR 0x80
#define ISR 0x100
#define IRR 0x200
#define ICR_SELF 0x40000u
#define ICR_NMI 0x400u

static bool has_avx;
static struct {
	uint8_t x87[8][10];
	uint8_t vector[16][32];
	uint16_t fcw, fsw;
	uint32_t mxcsr;
} __attribute__((aligned(32))) want, got;

static void leave(void)
{
	(void)inb(PORT);
}

static uint32_t noise(void)
{
	static uint32_t x = 12345;

	x = x * 1664525u + 1013904223u;
	return x >> 8;
}

#define EACH16(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)

static void vectors_load(void)
{
#define LOAD(n) asm volatile("movups %0, %%xmm" #n : : "m"(want.vector[n]));
#define LOAD_AVX(n) asm volatile("vmovups %0, %%ymm" #n : : "m"(want.vector[n]));
	if (has_avx) {
		EACH16(LOAD_AVX)
	} else {
		EACH16(LOAD)
	}
}

static void vectors_store(void)
{
#define STORE(n) asm volatile("movups %%xmm" #n ", %0" : "=m"(got.vector[n]));
#define STORE_AVX(n) asm volatile("vmovups %%ymm" #n ", %0" : "=m"(got.vector[n]));
	if (has_avx) {
		EACH16(STORE_AVX)
	} else {
		EACH16(STORE)
	}
}

static bool same(const void *a, const void *b, size_t n)
{
	const uint8_t *x = a, *y = b;

	while (n--)
		if (*x++ != *y++)
			return false;
	return true;
}

static void fill(void *p, size_t n)
{
	uint8_t *b = p;

	while (n--)
		*b++ = (uint8_t)noise();
}

/* Full x87 and vector registers, all control words other than after reset. */
static void floating_point(void)
{
	static const uint16_t fcws[] = { 0x37f, 0x27f, 0xf7f, 0x07f };
	static const uint32_t mxcsrs[] = { 0x1f80, 0x3f80, 0xffc0, 0x9f9f };

	for (unsigned round = 0; round < ROUNDS; round++) {
		fill(want.vector, sizeof(want.vector));
		want.fcw = fcws[round % 4];
		want.mxcsr = mxcsrs[noise() % 4];
		asm volatile("fninit\n\tfldcw %0\n\tldmxcsr %1" : : "m"(want.fcw), "m"(want.mxcsr));
		for (unsigned i = 0; i < round % 9; i++) {
			uint32_t v = noise();

			asm volatile("fildl %0" : : "m"(v));
		}
		asm volatile("fnstsw %0" : "=m"(want.fsw));
		vectors_load();
		leave();
		vectors_store();
		asm volatile("fnstcw %0\n\tfnstsw %1\n\tstmxcsr %2" : "=m"(got.fcw), "=m"(got.fsw), "=m"(got.mxcsr));
		for (unsigned i = 0; i < 16; i++)
			CHECK(same(want.vector[i], got.vector[i], has_avx ? 32 : 16));
		CHECK(want.fcw == got.fcw && want.fsw == got.fsw && want.mxcsr == got.mxcsr);
	}
	say("state: control words and vectors ok");
}

static void stack_of_x87(void)
{
	for (unsigned round = 0; round < ROUNDS; round++) {
		uint64_t sum = 0, read = 0;

		asm volatile("fninit");
		for (unsigned i = 0; i < 8; i++) {
			uint64_t v = (uint64_t)noise() << 20 | noise();

			sum = sum * 3 + v;
			asm volatile("fildll %0" : : "m"(v));
			if (noise() % 3 == 0)
				leave();
		}
		leave();
		for (unsigned i = 0; i < 8; i++)
			asm volatile("fincstp");
		uint64_t values[8];
		for (unsigned i = 8; i--;) {
			asm volatile("fistpll %0" : "=m"(values[i]));
			if (noise() % 5 == 0)
				leave();
		}
		for (unsigned i = 0; i < 8; i++)
			read = read * 3 + values[i];
		CHECK(sum == read);
		/* MMX: the same registers by another name, all tags valid. */
		asm volatile("movq %0, %%mm5" : : "m"(sum));
		leave();
		asm volatile("movq %%mm5, %0\n\temms" : "=m"(read));
		CHECK(sum == read);
	}
	say("state: x87 stack and MMX ok");
}

/* An unmasked x87 exception is reported by the next waiting instruction: it waits over an exit. */
static void waiting_exception(void)
{
	const uint16_t unmask_zero = 0x37b;

	set_cr0(get_cr0() | 0x20); /* NE */
	for (unsigned round = 0; round < ROUNDS / 4; round++) {
		asm volatile("fninit\n\tfldcw %0\n\tfld1\n\tfldz\n\tfdivrp %%st, %%st(1)" : : "m"(unmask_zero));
		leave();
		CHECK(ATTEMPT("fwait") == V_MF);
		asm volatile("fninit");
		leave();
		CHECK(ATTEMPT("fwait") == V_NONE);
	}
	say("state: waiting exception ok");
}

static void registers(void)
{
	static const uint32_t msrs[] = { MSR_STAR, MSR_LSTAR, MSR_CSTAR, MSR_KERNEL_GS_BASE, MSR_FS_BASE, 0x175, 0x176 };
	uint64_t values[7], pat = 0x0007040600070406ull, fmask = 0;

	for (unsigned round = 0; round < ROUNDS; round++) {
		word debug[4], page = noise(), ldt;

		/* The stack and entry of SYSENTER have 32 bits: KVM keeps no more of them for an AMD processor. */
		for (unsigned i = 0; i < 7; i++)
			wrmsr(msrs[i], values[i] = (uint64_t)noise() << (i & 1 || i > 4 ? 8 : 22));
		pat ^= 0x100;
		wrmsr(0x277, pat);
		wrmsr(MSR_FMASK, fmask = noise());
		wrmsr(MSR_SYSENTER_CS, noise() & 0xfff8);
		for (unsigned i = 0; i < 4; i++)
			debug[i] = (word)noise() << 4;
		set_dr0(debug[0]);
		set_dr1(debug[1]);
		set_dr2(debug[2]);
		set_dr3(debug[3]);
		set_cr2(page);
		asm volatile("mov %0, %%fs" : : "r"(0));
		wrmsr(MSR_FS_BASE, values[4]);
		leave();
		for (unsigned i = 0; i < 7; i++)
			CHECK(rdmsr(msrs[i]) == values[i]);
		CHECK(rdmsr(0x277) == pat && rdmsr(MSR_FMASK) == fmask);
		CHECK(get_dr0() == debug[0] && get_dr1() == debug[1] && get_dr2() == debug[2] && get_dr3() == debug[3]);
		CHECK(get_cr2() == page);
		asm volatile("sldt %0" : "=r"(ldt));
		CHECK((uint16_t)ldt == 0);
	}
	wrmsr(0x277, 0x0007040600070406ull);
	say("state: MSRs and debug registers ok");
}

static void time(void)
{
	uint64_t before = rdtsc(), start = before;

	for (unsigned round = 0; round < ROUNDS; round++) {
		uint64_t now;

		leave();
		now = rdtsc();
		CHECK(now > before);
		before = now;
	}
	CHECK(before - start < 1ull << 40);
	say("state: TSC ok");
}

static void self(uint32_t command)
{
	lapic_write(ICR, command | ICR_SELF);
	while (lapic_read(ICR) & 0x1000)
		;
}

static bool bit(unsigned base, unsigned vector)
{
	return lapic_read(base + vector / 32 * 16) >> (vector % 32) & 1;
}

static volatile unsigned nested_order[4], nested_count;

/* Three vectors: the highest in service with an exit inside, one above the TPR waits, one under it is held. */
static bool in_service(struct frame *frame)
{
	if (frame->vector < 0x40 || frame->vector > 0x7f)
		return false;
	leave();
	if (nested_count < 4)
		nested_order[nested_count++] = (unsigned)frame->vector;
	CHECK(bit(ISR, (unsigned)frame->vector));
	leave();
	lapic_write(0xb0, 0);
	return true;
}

static void interrupts_wait(void)
{
	trap_hook = in_service;
	for (unsigned round = 0; round < ROUNDS / 2; round++) {
		nested_count = 0;
		lapic_write(TPR, 0x50);
		self(0x61);
		self(0x45);
		leave();
		self(0x72);
		leave();
		CHECK(bit(IRR, 0x61) && bit(IRR, 0x45) && bit(IRR, 0x72) && !nested_count);
		asm volatile("sti\n\tnop\n\tnop\n\tcli" : : : "memory");
		CHECK(nested_count == 2 && nested_order[0] == 0x72 && nested_order[1] == 0x61);
		leave();
		CHECK(bit(IRR, 0x45) && !bit(IRR, 0x61) && !bit(ISR, 0x72));
		lapic_write(TPR, 0);
		leave();
		asm volatile("sti\n\tnop\n\tnop\n\tcli" : : : "memory");
		CHECK(nested_count == 3 && nested_order[2] == 0x45);
		CHECK(lapic_read(TPR) == 0 && !bit(IRR, 0x45));
	}
	trap_hook = NULL;
	say("state: waiting interrupts ok");
}

static volatile word shadow_ip;

static bool note_ip(struct frame *frame)
{
	if (frame->vector != 0x50)
		return false;
	shadow_ip = frame->ip;
	lapic_write(0xb0, 0);
	return true;
}

/*
 * STI holds the interrupt until the instruction behind it, which leaves the guest, is done. (TCG as a host forgets the shadow when
 * an interrupt of its own comes right behind STI.)
 */
static void shadows(void)
{
	extern char at_read[], after_read[];
	bool trusted = !(under_kvm() && under_tcg());

	trap_hook = note_ip;
	for (unsigned round = 0; round < ROUNDS / 2; round++) {
		shadow_ip = 0;
		self(0x50);
		asm volatile("mov %0, %%edx\n\tsti\nat_read:\tinb %%dx, %%al\nafter_read:\tnop\n\tcli" : : "i"(PORT) : "eax", "edx", "memory");
		CHECK(shadow_ip == (word)after_read || (!trusted && shadow_ip == (word)at_read));
	}
	trap_hook = NULL;
	say("state: interrupt shadow ok");
}

static volatile unsigned nmi_count, nmi_depth, nmi_deepest;

static bool on_nmi(struct frame *frame)
{
	if (frame->vector != V_NMI)
		return false;
	if (++nmi_depth > nmi_deepest)
		nmi_deepest = nmi_depth;
	if (++nmi_count % 2) {
		leave();
		self(ICR_NMI); /* waits: NMIs are blocked until IRET */
		leave();
		leave();
	}
	nmi_depth--;
	return true;
}

static void blocked_nmi(void)
{
	trap_hook = on_nmi;
	for (unsigned round = 1; round <= ROUNDS / 4; round++) {
		self(ICR_NMI);
		leave();
		leave();
		/* Bochs 2.7 goes on blocking what it blocked before VM entry: it comes late if another CPU has done the IRET. */
		for (unsigned i = 0; under_bochs() && nmi_count < 2 * round && i < 1000; i++)
			leave();
		CHECK(nmi_count == 2 * round && nmi_deepest == 1);
	}
	trap_hook = NULL;
	say("state: blocked NMI ok");
}

static volatile unsigned step_count;
static volatile word step_last;

static bool on_step(struct frame *frame)
{
	if (frame->vector != V_DB)
		return false;
	step_count++;
	step_last = frame->ip;
	if (step_count % 3 == 0)
		leave();
	return true;
}

/* TF is set while the instruction leaves the guest: one trap for each instruction all the same. */
static void trap_flag(void)
{
	extern char step_end[];

	trap_hook = on_step;
	for (unsigned round = 0; round < ROUNDS / 4; round++) {
		step_count = 0;
		asm volatile("mov %0, %%edx\n\tpushf\n\torl $0x100, (%%rsp)\n\tpopf\n\t"
			     "inb %%dx, %%al\n\tnop\n\tinb %%dx, %%al\n\tinb %%dx, %%al\n\t"
			     "pushf\n\tandl $~0x100, (%%rsp)\n\tpopf\nstep_end:\tnop" : : "i"(PORT) : "eax", "edx", "memory", "cc");
		/* Bochs leaves a trap pending at an exit; if the exit's own is then delivered by another CPU, there is one too many. */
		CHECK((step_count == 7 || (under_bochs() && step_count > 7)) && step_last == (word)step_end);
	}
	trap_hook = NULL;
	say("state: trap flag ok");
}

/* A one-shot timer counts down over exits, fires once, and HLT ends by it. */
static void timer(void)
{
	irq_eoi = EOI_LAPIC;
	lapic_write(TIMER_DIVIDE, 0xb); /* by 1 */
	for (unsigned round = 0; round < 20; round++) {
		uint32_t before;

		irq_clear();
		lapic_write(LVT_TIMER, 0x10061);
		lapic_write(TIMER_INITIAL, 0x40000000);
		before = lapic_read(TIMER_CURRENT);
		for (unsigned i = 0; i < 5; i++) {
			uint32_t now;

			leave();
			now = lapic_read(TIMER_CURRENT);
			CHECK(now && now <= before);
			before = now;
		}
		lapic_write(LVT_TIMER, 0x61);
		lapic_write(TIMER_INITIAL, 20000);
		while (!irq_count[0x61]) {
			halt();
			leave();
		}
		leave();
		asm volatile("sti\n\tnop\n\tnop\n\tcli" : : : "memory");
		CHECK(irq_count[0x61] == 1 && !lapic_read(TIMER_CURRENT));
	}
	say("state: timer and HLT ok");
}

/* Counts that end at any moment, also while the vcpu is on its way: no interrupt is lost, and none comes twice. */
static void short_timers(void)
{
	unsigned seed = 1;

	for (unsigned round = 0; round < 100; round++) {
		irq_clear();
		seed = seed * 1103515245 + 12345;
		lapic_write(TIMER_INITIAL, 5000 + (seed >> 8) % 60000);
		for (unsigned i = 0; i < 4; i++)
			leave();
		while (!irq_count[0x61])
			halt();
		leave();
		asm volatile("sti\n\tnop\n\tnop\n\tcli" : : : "memory");
		CHECK(irq_count[0x61] == 1);
	}
	say("state: short timers ok");
}

static bool has_deadline(void)
{
	return cpuid(1, 0).ecx >> 24 & 1;
}

/* The deadline can be read back until it has passed. */
static void deadline(void)
{
	for (unsigned round = 0; has_deadline() && round < 20; round++) {
		uint64_t at = rdtsc() + (1ull << 36);

		irq_clear();
		lapic_write(LVT_TIMER, 0x40062);
		asm volatile("mfence" : : : "memory");
		wrmsr(MSR_TSC_DEADLINE, at);
		leave();
		CHECK(rdmsr(MSR_TSC_DEADLINE) == at && !irq_count[0x62]);
		wrmsr(MSR_TSC_DEADLINE, rdtsc() + 100000);
		while (!irq_count[0x62]) {
			leave();
			asm volatile("sti\n\tnop\n\tcli" : : : "memory");
		}
		CHECK(rdmsr(MSR_TSC_DEADLINE) == 0 && irq_count[0x62] == 1);
	}
	lapic_write(LVT_TIMER, 0x10000);
	say("state: TSC deadline ok, where there is one");
}

int guest_main(void)
{
	struct cpuid features = cpuid(1, 0);

	set_cr4(get_cr4() | 0x600);
	/* TCG as a host lets XSETBV pass by its KVM, which takes it back at the next exit. */
	if (features.ecx >> 26 & 1 && !(under_kvm() && under_tcg())) {
		set_cr4(get_cr4() | 0x40000);
		has_avx = features.ecx >> 28 & 1;
		asm volatile("xsetbv" : : "a"(has_avx ? 7 : 3), "c"(0), "d"(0));
	}
	pic_mask_all();
	wrmsr(MSR_APIC_BASE, 0xfee00900);
	lapic_enable();
	floating_point();
	stack_of_x87();
	waiting_exception();
	registers();
	time();
	interrupts_wait();
	shadows();
	blocked_nmi();
	trap_flag();
	timer();
	short_timers();
	deadline();
	return 0;
}
