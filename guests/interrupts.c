/*
 * Interrupts: the 8259 pair with the 8254, the local APIC's timer and IPIs, the I/O APIC, priorities, NMI, the shadows of
 * STI and MOV SS, and HLT (SDM vol. 3, ch. 6 and 11; 82093AA and 8254 data sheets).
 */
#include "guest.h"

#define ICR_SELF 0x40000u
#define ICR_NMI 0x400u
#define LVT_MASKED 0x10000u
#define LVT_PERIODIC 0x20000u
#define LVT_DEADLINE 0x40000u
#define IOAPIC 0xfec00000ul

extern void sti_shadow(void), sti_sti(void), ss_shadow(void), sti_cli(void), sti_hlt(void), popf_if(void);
extern char sti_shadow_at[], sti_sti_at[], ss_shadow_at[], sti_hlt_at[], popf_if_at[];

static volatile word hook_ip, nmi_count, nmi_nested;

/* Waits, halted, until `vector` has come n times. */
static void wait_for(unsigned vector, unsigned n)
{
	cli();
	while (irq_count[vector] < n)
		halt();
}

static void open_window(void)
{
	asm volatile("sti; nop; nop; cli" : : : "memory");
}

/* Some milliseconds of the PIT's channel 2, by its output bit in port 0x61. */
static void delay_ms(unsigned ms)
{
	for (; ms; ms--) {
		outb(0x61, (inb(0x61) & ~2) | 1);
		outb(0x43, 0xb0); /* channel 2, both bytes, mode 0 */
		outb(0x42, 1193 & 0xff);
		outb(0x42, 1193 >> 8);
		while (!(inb(0x61) & 0x20))
			;
	}
}

static void pit_program(unsigned mode, unsigned count)
{
	outb(0x43, 0x30 | mode << 1);
	outb(0x40, count & 0xff);
	outb(0x40, count >> 8);
}

static void pic_and_pit(void)
{
	pic_init();
	irq_clear();
	irq_eoi = EOI_PIC;
	pit_program(2, 1193); /* about 1 kHz */
	outb(0x21, 0xfe);
	wait_for(0x20, 5);
	outb(0x21, 0xff);
	delay_ms(3);
	/* One is latched while it is masked: it comes when the mask goes, and IRR shows it. */
	outb(0x20, 0x0a);
	for (unsigned i = 0; i < 1000 && !(inb(0x20) & 1); i++)
		delay_ms(1);
	CHECK(inb(0x20) & 1);
	irq_clear();
	irq_eoi = EOI_NONE;
	outb(0x21, 0xfe);
	open_window();
	CHECK(irq_count[0x20] == 1);
	outb(0x20, 0x0b); /* in service until EOI, and nothing of the same level comes */
	CHECK(inb(0x20) == 1);
	delay_ms(3);
	open_window();
	CHECK(irq_count[0x20] == 1); /* the same interrupt, still in service */
	outb(0x20, 0x20);
	CHECK(inb(0x20) == 0);
	outb(0x21, 0xff);
	outb(0x43, 0x30);
	pic_init(); /* forgets what is latched of the periodic count, now that it has ended */
	irq_clear();
	pit_program(0, 1193); /* one shot */
	irq_eoi = EOI_PIC;
	outb(0x21, 0xfe);
	for (unsigned i = 0; i < 1000 && !irq_count[0x20]; i++) {
		delay_ms(1);
		open_window();
	}
	delay_ms(5);
	open_window();
	CHECK(irq_count[0x20] == 1);
	outb(0x21, 0xff);
	say("interrupts: PIC and PIT ok");
}

/*
 * With automatic EOI the second of two interrupts asks for the processor as soon as the first has been acknowledged, and nothing
 * that a hypervisor would see happens between.
 */
static void pic_two_at_once(void)
{
	outb(0x20, 0x11);
	outb(0x21, 0x20);
	outb(0x21, 4);
	outb(0x21, 3);
	outb(0x21, 0xff);
	irq_clear();
	irq_eoi = EOI_NONE;
	outb(0x2fc, 8); /* COM2: its interrupt reaches the PIC, as IRQ 3 … */
	outb(0x2f9, 2); /* … and says that it can send */
	pit_program(0, 1193);
	outb(0x20, 0x0a);
	for (unsigned i = 0; i < 1000 && (inb(0x20) & 9) != 9; i++)
		delay_ms(1);
	CHECK((inb(0x20) & 9) == 9);
	outb(0x21, 0xf6);
	sti();
	for (unsigned i = 0; i < 100000000 && irq_logged < 2; i++)
		asm volatile("pause");
	cli();
	CHECK(irq_logged == 2 && irq_log[0] == 0x20 && irq_log[1] == 0x23);
	outb(0x2f9, 0);
	outb(0x2fc, 0);
	pic_init();
	say("interrupts: two of the PIC ok");
}

/* Loops until *count is n: by returns alone, by calls alone, by indirect jumps. Whatever runs them must look for interrupts on the way. */
extern void loop_by_returns(volatile unsigned *count, unsigned n), loop_by_calls(volatile unsigned *count, unsigned n),
	loop_by_jumps(volatile unsigned *count, unsigned n);

asm(".text; .balign 64\n"
    "loop_by_returns: cmp %esi, (%rdi)\n jae 1f\n lea loop_by_returns(%rip), %rax\n push %rax\n ret\n 1: ret\n"
    "2: lea 8(%rsp), %rsp\n loop_by_calls: cmp %esi, (%rdi)\n jae 1f\n call 2b\n 1: ret\n"
    "loop_by_jumps: cmp %esi, (%rdi)\n jae 1f\n lea 3f(%rip), %rax\n jmp *%rax\n 3: nop\n jmp loop_by_jumps\n 1: ret\n");

static void loops(void)
{
	static void (*const loop[])(volatile unsigned *, unsigned) = {loop_by_returns, loop_by_calls, loop_by_jumps};

	irq_clear();
	irq_eoi = EOI_LAPIC;
	lapic_write(0x320, LVT_PERIODIC | 0x53);
	lapic_write(0x380, 60000);
	asm volatile("sti" : : : "memory");
	for (unsigned i = 0; i < 6; i++)
		loop[i % 3](&irq_count[0x53], 4 * (i + 1));
	cli();
	lapic_write(0x320, LVT_MASKED | 0x53);
	lapic_write(0x380, 0);
	open_window();
	say("interrupts: loops ok");
}

/* EDI times, counted in EAX, as 32-bit code. The instruction that counts down is the branch: it may not be begun twice, whichever way it goes. */
extern char count_near[], count_far[];
asm(".code32\n"
    "count_near: mov %edi, %ecx; xor %eax, %eax\n"
    "1: inc %eax; loop 1b; int $0x80\n"
    ".balign 4096; .skip 4096 - 5\n"
    "count_far: mov %edi, %ecx; xor %eax, %eax\n"
    "2: inc %eax\n" /* the last byte of its page */
    "loop 2b; int $0x80\n"
    ".code64\n");

static volatile uint32_t counted;

static bool keep_count(struct frame *frame)
{
	if (frame->vector == V_USER_EXIT)
		counted = (uint32_t)frame->ax;
	return false;
}

static void counted_loops(void)
{
	static char *const code[] = {count_near, count_far};
	const uint32_t times = 100000;

	irq_eoi = EOI_LAPIC;
	trap_hook = keep_count;
	lapic_write(0x320, LVT_PERIODIC | 0x54);
	lapic_write(0x380, 60000);
	for (unsigned i = 0; i < 2; i++) {
		irq_clear();
		while (irq_count[0x54] < 8) {
			asm volatile("mov %0, %%ds; mov %0, %%es" : : "r"(SEL_USER_DATA));
			CHECK(user_run_in(SEL_USER_CODE32, code[i], EFLAGS_IF, times) == V_USER_EXIT);
			CHECK(counted == times);
		}
	}
	trap_hook = NULL;
	lapic_write(0x320, LVT_MASKED | 0x54);
	lapic_write(0x380, 0);
	open_window();
	say("interrupts: counted loops ok");
}

/* A long string instruction is interrupted between two elements, and goes on: RCX, RSI and RDI say how far it has come. */
#define LONG (16ul << 20)
#define LONG_AT 0x4000000ul
extern void store_long(void *to, uint64_t value, word count), move_long(void *to, const void *from, word count);
extern char store_long_at[], move_long_at[];
asm("store_long: mov %rsi, %rax; mov %rdx, %rcx\n"
    "store_long_at: rep stosq; ret\n"
    "move_long: mov %rdx, %rcx\n"
    "move_long_at: rep movsb; ret\n");

static volatile word string_ip, string_done, string_count;
static volatile unsigned inside;

static bool string_hook(struct frame *frame)
{
	if (frame->vector == 0x55 && frame->ip == string_ip && frame->cx && frame->cx < string_count) {
		inside++;
		CHECK(frame->di == string_done + (string_count - frame->cx) * (string_ip == (word)store_long_at ? 8 : 1));
	}
	return false;
}

static void long_strings(void)
{
	volatile uint64_t *to = (void *)LONG_AT, *from = (void *)(LONG_AT + LONG);

	irq_clear();
	irq_eoi = EOI_LAPIC;
	trap_hook = string_hook;
	string_done = LONG_AT;
	for (unsigned move = 0; move < 2; move++) {
		inside = 0;
		string_ip = (word)(move ? move_long_at : store_long_at);
		string_count = move ? LONG : LONG / 8;
		lapic_write(0x320, LVT_PERIODIC | 0x55);
		lapic_write(0x380, 20000);
		/* The first turns, short ones and two long ones, are not interrupted: the code is known and the memory has been touched then. */
		for (uint64_t turn = 0; turn < 1000 && inside < 3; turn++) {
			word bytes = turn < 30 ? 64 : LONG;

			from[bytes / 8 - 1] = turn;
			if (turn >= 32)
				sti();
			if (move)
				move_long((void *)to, (const void *)from, bytes);
			else
				store_long((void *)to, turn, bytes / 8);
			cli();
			CHECK(to[bytes / 8 - 1] == turn);
		}
		lapic_write(0x320, LVT_MASKED | 0x55);
		lapic_write(0x380, 0);
		open_window();
		CHECK(inside >= 3);
	}
	trap_hook = NULL;
	say("interrupts: long strings ok");
}

static void self_ipi(unsigned vector)
{
	lapic_write(0x310, 0);
	lapic_write(0x300, ICR_SELF | vector);
}

static void lapic_timer(void)
{
	uint32_t first, second;

	irq_clear();
	irq_eoi = EOI_LAPIC;
	lapic_write(0x3e0, 3); /* divide by 16 */
	lapic_write(0x320, 0x50);
	lapic_write(0x380, 20000);
	wait_for(0x50, 1);
	CHECK(lapic_read(0x390) == 0);
	delay_ms(5);
	open_window();
	CHECK(irq_count[0x50] == 1);
	lapic_write(0x320, LVT_PERIODIC | 0x51);
	lapic_write(0x380, 20000);
	wait_for(0x51, 4);
	lapic_write(0x320, LVT_MASKED | LVT_PERIODIC | 0x51);
	open_window();
	irq_clear();
	first = second = lapic_read(0x390);
	for (unsigned i = 0; i < 20 && first == second; i++) {
		delay_ms(1);
		second = lapic_read(0x390);
	}
	CHECK(first <= 20000 && second <= 20000 && first != second); /* counts on, masked */
	lapic_write(0x380, 0);
	CHECK(lapic_read(0x390) == 0);
	open_window();
	CHECK(irq_count[0x51] == 0);
	say("interrupts: LAPIC timer ok");
	if (!(cpuid(1, 0).ecx & 1 << 24))
		return;
	lapic_write(0x320, LVT_DEADLINE | 0x52);
	uint64_t deadline = rdtsc() + 3000000;
	wrmsr(MSR_TSC_DEADLINE, deadline);
	CHECK(rdmsr(MSR_TSC_DEADLINE) == deadline || rdtsc() >= deadline);
	wait_for(0x52, 1);
	CHECK(rdtsc() >= deadline);
	CHECK(rdmsr(MSR_TSC_DEADLINE) == 0);
	wrmsr(MSR_TSC_DEADLINE, 1); /* long past: at once */
	open_window();
	wait_for(0x52, 2);
	wrmsr(MSR_TSC_DEADLINE, rdtsc() + (1ull << 40));
	wrmsr(MSR_TSC_DEADLINE, 0); /* disarms */
	open_window();
	CHECK(irq_count[0x52] == 2);
	lapic_write(0x320, LVT_MASKED);
}

static void priorities(void)
{
	irq_clear();
	irq_eoi = EOI_LAPIC;
	self_ipi(0x60);
	self_ipi(0x90);
	self_ipi(0x71);
	self_ipi(0x90); /* merges with the pending one */
	CHECK(lapic_read(0x200 + 0x10 * (0x90 / 32)) == 1u << (0x90 % 32)); /* IRR */
	open_window();
	open_window();
	open_window();
	CHECK(irq_logged == 3 && irq_log[0] == 0x90 && irq_log[1] == 0x71 && irq_log[2] == 0x60);
	/* TPR holds back its class and the classes below; CR8 is TPR[7:4]. */
	irq_clear();
	lapic_write(0x80, 0x70);
	CHECK(get_cr8() == 7 && lapic_read(0xa0) == 0x70);
	self_ipi(0x7f);
	open_window();
	CHECK(irq_logged == 0);
	self_ipi(0x81);
	open_window();
	CHECK(irq_logged == 1 && irq_log[0] == 0x81);
	set_cr8(6); /* lowering it lets the waiting one in */
	open_window();
	CHECK(irq_logged == 2 && irq_log[1] == 0x7f && lapic_read(0x80) == 0x60);
	set_cr8(15);
	self_ipi(0xf0);
	open_window();
	CHECK(irq_logged == 2);
	set_cr8(0);
	open_window();
	CHECK(irq_logged == 3);
	/* In service: the same class waits for the EOI, a higher one does not. */
	irq_clear();
	irq_eoi = EOI_NONE;
	self_ipi(0x62);
	open_window();
	CHECK(irq_logged == 1 && lapic_read(0x100 + 0x10 * (0x62 / 32)) == 1u << (0x62 % 32) && lapic_read(0xa0) == 0x60);
	self_ipi(0x6f);
	open_window();
	CHECK(irq_logged == 1);
	self_ipi(0x75);
	open_window();
	CHECK(irq_logged == 2 && irq_log[1] == 0x75);
	lapic_write(0xb0, 0);
	open_window();
	CHECK(irq_logged == 2);
	lapic_write(0xb0, 0);
	open_window();
	CHECK(irq_logged == 3 && irq_log[2] == 0x6f);
	lapic_write(0xb0, 0);
	say("interrupts: priorities ok");
}

static bool ip_hook(struct frame *frame)
{
	if (frame->vector == V_NMI) {
		nmi_count++;
		if (nmi_count == 1) {
			/* A second NMI waits until IRET. */
			lapic_write(0x300, ICR_SELF | ICR_NMI);
			for (volatile int i = 0; i < 100; i++)
				;
			nmi_nested = nmi_count;
		}
		return true;
	}
	if (frame->vector < 0x20 || frame->vector == V_USER_EXIT)
		return false;
	hook_ip = frame->ip;
	return false;
}

static void shadows(void)
{
	irq_eoi = EOI_LAPIC;
	irq_clear();
	trap_hook = ip_hook;
	self_ipi(0x60);
	sti_shadow();
	CHECK(irq_count[0x60] == 1 && hook_ip == (word)sti_shadow_at);
	self_ipi(0x60);
	sti_sti();
	CHECK(irq_count[0x60] == 2 && hook_ip == (word)sti_sti_at);
	self_ipi(0x60);
	sti_cli();
	CHECK(irq_count[0x60] == 2);
	popf_if();
	CHECK(irq_count[0x60] == 3 && hook_ip == (word)popf_if_at);
	self_ipi(0x60);
	ss_shadow();
	CHECK(irq_count[0x60] == 4 && (hook_ip == (word)ss_shadow_at || hook_ip == (word)ss_shadow_at - 1));
	self_ipi(0x60);
	sti_hlt(); /* halts, then is woken at once: the interrupt is behind HLT */
	CHECK(irq_count[0x60] == 5 && hook_ip == (word)sti_hlt_at);
	say("interrupts: shadows ok");
}

static void nmi(void)
{
	nmi_count = 0;
	trap_hook = ip_hook;
	cli(); /* makes no difference to it */
	lapic_write(0x300, ICR_SELF | ICR_NMI);
	for (volatile int i = 0; i < 1000 && nmi_count < 2; i++)
		;
	CHECK(nmi_count == 2);
	CHECK(nmi_nested == 1);
	trap_hook = NULL;
	say("interrupts: NMI ok");
}

static void ioapic_write(unsigned reg, uint32_t v)
{
	*(volatile uint32_t *)IOAPIC = reg;
	*(volatile uint32_t *)(IOAPIC + 0x10) = v;
}

static uint32_t ioapic_read(unsigned reg)
{
	*(volatile uint32_t *)IOAPIC = reg;
	return *(volatile uint32_t *)(IOAPIC + 0x10);
}

static void io_apic(void)
{
	unsigned pins = (ioapic_read(1) >> 16 & 0xff) + 1;

	CHECK(pins >= 24);
	for (unsigned i = 0; i < pins; i++)
		ioapic_write(0x10 + 2 * i, 0x10000);
	irq_clear();
	irq_eoi = EOI_LAPIC;
	/* The PIT is on pin 2 (the usual override), edge, fixed, physical, to this CPU. */
	ioapic_write(0x10 + 2 * 2 + 1, lapic_read(0x20) & 0xff000000);
	ioapic_write(0x10 + 2 * 2, 0x48);
	CHECK((ioapic_read(0x10 + 2 * 2) & ~0x1000u) == 0x48);
	pit_program(2, 1193);
	wait_for(0x48, 3);
	ioapic_write(0x10 + 2 * 2, 0x10048);
	open_window();
	irq_clear();
	delay_ms(3);
	open_window();
	CHECK(irq_count[0x48] == 0);
	/* The same to a logical destination: this CPU is bit 1 of a flat cluster. */
	lapic_write(0xd0, 0x02000000);
	lapic_write(0xe0, 0xffffffff);
	ioapic_write(0x10 + 2 * 2 + 1, 0x02000000);
	ioapic_write(0x10 + 2 * 2, 0x849);
	wait_for(0x49, 2);
	ioapic_write(0x10 + 2 * 2, 0x10000);
	pit_program(0, 0);
	say("interrupts: I/O APIC ok");
}

static void virtual_wire(void)
{
	/* The PIC through LINT0 as ExtINT, with the APIC enabled. */
	irq_clear();
	irq_eoi = EOI_PIC;
	lapic_write(0x350, 0x700);
	pit_program(2, 1193);
	outb(0x21, 0xfe);
	wait_for(0x20, 3);
	outb(0x21, 0xff);
	lapic_write(0x350, LVT_MASKED);
	pit_program(0, 0);
	say("interrupts: virtual wire ok");
}

int guest_main(void)
{
	pic_and_pit();
	pic_two_at_once();
	lapic_enable();
	lapic_timer();
	loops();
	counted_loops();
	long_strings();
	priorities();
	shadows();
	nmi();
	virtual_wire();
	io_apic();
	return 0;
}
