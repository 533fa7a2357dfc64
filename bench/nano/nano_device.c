/* Rows about devices and interrupts: ports, memory-mapped registers, the local APIC's timer, interrupts to another processor. */
#include "nano_guest.h"

#define PORT_POST 0x80
#define PORT_PIT 0x40
#define COM1 0x3f8
#define UART_FCR 2
#define UART_MCR 4
#define MCR_LOOP 0x10
#define IOAPIC 0xfec00000ul
#define HPET 0xfed00000ul
#define HPET_COUNTER 0xf0
#define VECTOR_TIMER 0x50
#define VECTOR_IPI 0x51
#define LVT_TIMER 0x320
#define LVT_DEADLINE 0x40000u
#define LVT_MASKED 0x10000u
#define TIMER_COUNT 0x380
#define TIMER_DIVIDE 0x3e0
#define ICR_LOW 0x300
#define ICR_HIGH 0x310
#define ICR_OTHERS_INIT 0xc4500u
#define ICR_OTHERS_START 0xc4600u
#define CPUID_DEADLINE (1u << 24)
#define PATIENCE 5000000000ull /* cycles until a lost interrupt is noticed */
#define WAKE_AHEAD 100000u     /* cycles */

static uint64_t run_in(uint64_t n)
{
	return NANO_LOOP(n, "in %[port], %%al", [port] "i"(PORT_POST));
}

static uint64_t run_in_pit(uint64_t n)
{
	return NANO_LOOP(n, "in %[port], %%al", [port] "i"(PORT_PIT));
}

static uint64_t run_out(uint64_t n)
{
	return NANO_LOOP(n, "out %%al, %[port]", [port] "i"(PORT_POST));
}

/* In loop-back mode, so that nothing is printed. */
static uint64_t run_out_serial(uint64_t n)
{
	uint8_t mcr = inb(COM1 + UART_MCR);
	uint64_t cycles;

	while (!(inb(COM1 + 5) & 0x40))
		;
	outb(COM1 + UART_MCR, mcr | MCR_LOOP);
	cycles = NANO_LOOP_AFTER("mov %[port], %%edx\n\txor %%eax, %%eax", n, "out %%al, %%dx", [port] "i"(COM1));
	inb(COM1);
	outb(COM1 + UART_MCR, mcr);
	outb(COM1 + UART_FCR, 7);
	return cycles;
}

static const char *missing_hpet(void)
{
	uint32_t id = *(volatile uint32_t *)HPET;

	return id && id != ~0u ? NULL : "there is no HPET";
}

static uint64_t run_mmio_hpet(uint64_t n)
{
	return NANO_LOOP(n, "mov (%[at]), %%eax", [at] "r"(HPET + HPET_COUNTER));
}

static const char *missing_ioapic(void)
{
	*(volatile uint32_t *)IOAPIC = 1; /* selects the version register */
	uint32_t version = *(volatile uint32_t *)(IOAPIC + 0x10);

	return version && version != ~0u ? NULL : "there is no I/O APIC";
}

static uint64_t run_mmio_ioapic(uint64_t n)
{
	return NANO_LOOP(n, "mov (%[at]), %%eax", [at] "r"(IOAPIC + 0x10));
}

static bool has_deadline;

static const char *missing_lapic(void)
{
	if (!(cpuid(1, 0).edx & 1 << 9))
		return "there is no local APIC";
	has_deadline = cpuid(1, 0).ecx & CPUID_DEADLINE;
	lapic_enable();
	idt_set(VECTOR_TIMER, (word)nano_irq_handler, SEL_KERNEL_CODE, 0x8e, 0);
	lapic_write(TIMER_DIVIDE, 0xb); /* by 1 */
	lapic_write(LVT_TIMER, (has_deadline ? LVT_DEADLINE : 0) | VECTOR_TIMER);
	asm volatile("mfence" : : : "memory"); /* SDM vol. 3, 11.5.4.1 */
	return NULL;
}

static void finish_lapic(void)
{
	lapic_write(LVT_TIMER, LVT_MASKED);
	idt_set(VECTOR_TIMER, (word)trap_stubs + 16 * VECTOR_TIMER, SEL_KERNEL_CODE, 0x8e, 0);
}

static uint64_t run_eoi(uint64_t n)
{
	return NANO_LOOP(n, "movl $0, (%[at])", [at] "r"(LAPIC + 0xb0));
}

/* Waits until the count has changed; IF is on. */
static bool await(uint64_t before, bool halt)
{
	uint64_t start = rdtsc();

	for (unsigned i = 1; nano_count == before; i++) {
		if (halt)
			asm volatile("cli\n\tcmp %0, %1\n\tjne 1f\n\tsti\n\thlt\n1:\tsti" : : "r"(before), "m"(nano_count) : "cc");
		else
			asm volatile("pause" : : : "memory");
		if (!(i & 0xfff) && rdtsc() - start > PATIENCE) {
			nano_wrong("the interrupt did not come");
			return false;
		}
	}
	return true;
}

/* From arming a timer that is due at once to the return of its handler. */
static uint64_t run_timer(uint64_t n)
{
	uint64_t start = nano_ticks();

	sti();
	for (uint64_t i = 0; i < n; i++) {
		uint64_t before = nano_count;

		if (has_deadline)
			wrmsr(MSR_TSC_DEADLINE, 1);
		else
			lapic_write(TIMER_COUNT, 1);
		if (!await(before, false))
			break;
	}
	cli();
	return nano_ticks() - start;
}

static const char *missing_wake(void)
{
	const char *why = missing_lapic();

	if (why)
		return why;
	return has_deadline ? NULL : "the processor offers no TSC deadline, and nothing else tells when it was due";
}

/* How late the handler begins that ends a halt. */
static uint64_t run_timer_wake(uint64_t n)
{
	uint64_t late = 0;

	sti();
	for (uint64_t i = 0; i < n; i++) {
		uint64_t before = nano_count, due = rdtsc() + WAKE_AHEAD;

		wrmsr(MSR_TSC_DEADLINE, due);
		if (!await(before, true))
			break;
		late += nano_when - due;
	}
	cli();
	return late;
}

/* The second processor. */
static volatile uint32_t ap_online, ap_id, ap_halts;

void nano_ap_main(void)
{
	lapic_write(0xf0, 0x1ff);
	ap_id = lapic_read(0x20) >> 24;
	ap_online = 1;
	sti();
	for (;;) {
		if (ap_halts)
			asm volatile("hlt" : : : "memory");
		else
			asm volatile("pause" : : : "memory");
	}
}

/* By the PIT's channel 2 and its output bit in port 0x61. */
static void delay_ms(unsigned ms)
{
	for (; ms; ms--) {
		outb(0x61, (inb(0x61) & ~2) | 1);
		outb(0x43, 0xb0);
		outb(0x42, 1193 & 0xff);
		outb(0x42, 1193 >> 8);
		while (!(inb(0x61) & 0x20))
			;
	}
}

/* Copies the trampoline and starts all others; the first of them stays (SDM vol. 3, 9.4.4). */
static void ap_start(void)
{
	extern char gdt_pointer[];
	char *to = (char *)(uint64_t)AP_BASE;

	for (char *from = nano_ap_begin; from < nano_ap_end; from++)
		to[from - nano_ap_begin] = *from;
	for (unsigned i = 0; i < 6; i++)
		to[nano_ap_gdt - nano_ap_begin + i] = gdt_pointer[i];
	asm volatile("sidt %0" : "=m"(*(char(*)[10])nano_ap_idt));
	lapic_write(ICR_LOW, ICR_OTHERS_INIT);
	delay_ms(10);
	for (unsigned i = 0; i < 2 && !ap_online; i++) {
		lapic_write(ICR_LOW, ICR_OTHERS_START | AP_BASE >> 12);
		for (unsigned ms = 0; ms < 100 && !ap_online; ms++)
			delay_ms(1);
	}
}

static const char *missing_ipi(void)
{
	const char *why = missing_lapic();

	if (why)
		return why;
	if (!ap_online && (cpuid(1, 0).ebx >> 16 & 0xff) < 2)
		return "it needs two processors";
	if (!ap_online)
		ap_start();
	if (!ap_online)
		return "no second processor started";
	idt_set(VECTOR_IPI, (word)nano_irq_handler, SEL_KERNEL_CODE, 0x8e, 0);
	return NULL;
}

/* From sending to seeing that the other processor's handler has run. */
static uint64_t run_ipi_to(uint64_t n, bool halted)
{
	uint64_t cycles = 0;

	ap_halts = halted;
	lapic_write(ICR_HIGH, ap_id << 24);
	for (uint64_t i = 0; i < n; i++) {
		uint64_t before = nano_count, start = nano_ticks();

		lapic_write(ICR_LOW, VECTOR_IPI);
		if (!await(before, false))
			break;
		cycles += nano_ticks() - start;
		for (unsigned pause = 0; halted && pause < 2000; pause++) /* until it sleeps again */
			asm volatile("pause" : : : "memory");
	}
	ap_halts = 0;
	return cycles;
}

static uint64_t run_ipi(uint64_t n) { return run_ipi_to(n, false); }
static uint64_t run_ipi_wake(uint64_t n) { return run_ipi_to(n, true); }

const struct nano_row nano_device_rows[] = {
	{.name = "in", .run = run_in},
	{.name = "in-pit", .run = run_in_pit},
	{.name = "out", .run = run_out},
	{.name = "out-serial", .run = run_out_serial},
	{.name = "mmio-hpet", .missing = missing_hpet, .run = run_mmio_hpet},
	{.name = "mmio-ioapic", .missing = missing_ioapic, .run = run_mmio_ioapic},
	{.name = "lapic-eoi", .missing = missing_lapic, .run = run_eoi, .finish = finish_lapic},
	{.name = "timer", .missing = missing_lapic, .run = run_timer, .finish = finish_lapic},
	{.name = "timer-wake", .missing = missing_wake, .run = run_timer_wake, .finish = finish_lapic, .raw = true},
	{.name = "ipi", .missing = missing_ipi, .run = run_ipi, .finish = finish_lapic, .raw = true},
	{.name = "ipi-wake", .missing = missing_ipi, .run = run_ipi_wake, .finish = finish_lapic, .raw = true},
	{0},
};
