/*
 * I/O: widths and unclaimed ports, string I/O with its addressing and its faults, user mode's I/O permissions, CMOS,
 * the PIT's and the PCI bridge's registers, and MMIO of the LAPIC, the I/O APIC and the HPET by every kind of instruction.
 */
#include "guest.h"

#define IOAPIC 0xfec00000ul
#define HPET 0xfed00000ul

extern char user_in[], user_in_at[], user_out_dx[], user_cli_iopl[];
asm("user_in: in $0x61, %al\nuser_in_at: int $0x80\n"
    "user_out_dx: mov %edi, %edx; inw %dx, %ax; int $0x80\n"
    "user_cli_iopl: cli; sti; cli; int $0x80\n");

static void ports(void)
{
	CHECK(inb(0x5f3) == 0xff && inw(0x5f2) == 0xffff && inl(0x5f0) == 0xffffffff); /* nobody home */
	outl(0x5f0, 0);
	/* IN leaves the rest of RAX alone, except for 32 bits, which clear the upper half. */
	word v;
	asm volatile("mov $-1, %%rax; mov $0x61, %%edx; inb %%dx, %%al; mov %%rax, %0" : "=r"(v) : : "ax", "dx");
	CHECK(v >> 8 == 0xffffffffffffff);
	asm volatile("mov $-1, %%rax; mov $0x5f0, %%edx; inl %%dx, %%eax; mov %%rax, %0" : "=r"(v) : : "ax", "dx");
	CHECK(v == 0xffffffff);
	/* A word write to two byte ports: COM1's scratch register (0x3ff) by itself. */
	outb(0x3ff, 0x5a);
	CHECK(inb(0x3ff) == 0x5a);
	/* PCI configuration mechanism 1: only a 32-bit access hits the address register. */
	outl(0xcf8, 0x80000000);
	CHECK(inl(0xcf8) == 0x80000000);
	CHECK((inl(0xcfc) & 0xffff) == inw(0xcfc) && inw(0xcfe) == inl(0xcfc) >> 16 && inw(0xcfc) != 0xffff);
	outl(0xcf8, 0);
	say("io: ports ok");
}

static void strings(void)
{
	static uint8_t buffer[32];
	void *p = buffer;
	word n = 4;

	outb(0x3ff, 0x11);
	asm volatile("rep insb" : "+D"(p), "+c"(n) : "d"(0x3ff) : "memory");
	CHECK(n == 0 && p == buffer + 4 && buffer[0] == 0x11 && buffer[3] == 0x11 && buffer[4] == 0);
	for (unsigned i = 0; i < 8; i++)
		buffer[i] = i + 1;
	p = buffer;
	n = 8;
	asm volatile("rep outsb" : "+S"(p), "+c"(n) : "d"(0x3ff) : "memory");
	CHECK(n == 0 && p == buffer + 8 && inb(0x3ff) == 8);
	/* Downwards. */
	p = buffer + 7;
	n = 3;
	asm volatile("std; rep outsb; cld" : "+S"(p), "+c"(n) : "d"(0x3ff) : "memory");
	CHECK(p == buffer + 4 && inb(0x3ff) == 6);
	p = buffer;
	asm volatile("insl" : "+D"(p) : "d"(0x5f0) : "memory");
	CHECK(p == buffer + 4 && buffer[3] == 0xff && buffer[4] == 5);
	n = 0;
	p = (void *)0x8000000000000000;
	asm volatile("rep insb" : "+D"(p), "+c"(n) : "d"(0x3ff) : "memory"); /* nothing to do: nothing faults */
	/* A fault in the middle of INS: the bytes before are there, the registers say so. */
	word at = 0xfffffffe;
	n = 5;
	trap_clear();
	asm volatile("movq $1f, trap_resume; movq $0f, attempt_ip\n0: rep outsb\n1: movq $0, trap_resume"
		     : "+S"(at), "+c"(n) : "d"(0x5f3) : "memory");
	CHECK(FAULTED(V_PF, 0) && at == 0x100000000 && n == 3 && last.cr2 == 0x100000000);
	say("io: strings ok");
}

static void permissions(void)
{
	CHECK(user_run(user_in, 0, 0) == V_GP && last.error == 0 && last.ip == (word)user_in);
	CHECK(user_run(user_in, 0x3000, 0) == V_USER_EXIT);	   /* IOPL 3 */
	CHECK(user_run(user_cli_iopl, 0x3000, 0) == V_USER_EXIT);
	CHECK(user_run(user_cli_iopl, 0x2000, 0) == V_GP);
	/* The permission bitmap: a clear bit for each byte of the access. */
	tss.iomap = offsetof(struct tss, bitmap);
	for (unsigned i = 0; i < sizeof(tss.bitmap); i++)
		tss.bitmap[i] = 0xff;
	CHECK(user_run(user_in, 0, 0) == V_GP);
	tss.bitmap[0x61 / 8] &= ~(1 << 0x61 % 8);
	/* TCG wants an available TSS behind TR, KVM gives it a busy one when the state has been elsewhere. */
	bool trusted = !(under_kvm() && under_tcg());
	CHECK(!trusted || user_run(user_in, 0, 0) == V_USER_EXIT);
	tss.bitmap[0x5f7 / 8] &= ~(1 << 0x5f7 % 8);
	CHECK(user_run(user_out_dx, 0, 0x5f7) == V_GP); /* its second byte is not allowed */
	tss.bitmap[0x5f8 / 8] &= ~(1 << 0x5f8 % 8);
	CHECK(!trusted || user_run(user_out_dx, 0, 0x5f7) == V_USER_EXIT);
	tss.iomap = sizeof(tss);
	CHECK(user_run(user_in, 0, 0) == V_GP);
	say("io: permissions ok");
}

static uint8_t cmos(uint8_t reg)
{
	outb(0x70, reg);
	return inb(0x71);
}

static void real_time_clock(void)
{
	unsigned month, status_b = cmos(0x0b);

	CHECK(cmos(0x0d) & 0x80); /* valid RAM and time */
	while (cmos(0x0a) & 0x80)
		;
	month = cmos(8);
	if (!(status_b & 4))
		month = (month >> 4) * 10 + (month & 15);
	CHECK(month >= 1 && month <= 12);
	say("io: CMOS ok");
}

static void memory_mapped(void)
{
	uint32_t version = lapic_read(0x30), v;
	uint64_t wide;

	CHECK((version & 0xff) >= 0x10 && (version & 0xff) <= 0x1f && (version >> 16 & 0xff) >= 3);
	CHECK(lapic_read(0x20) >> 24 == cpuid(1, 0).ebx >> 24);
	lapic_write(0xf0, 0x1ff);
	CHECK((lapic_read(0xf0) & 0x1ff) == 0x1ff);
	/* Different instructions on a register: TPR. */
	word tpr = LAPIC + 0x80;
	asm volatile("movl $0x20, (%1); orl $0x10, (%1); addl $0x40, (%1); mov (%1), %0" : "=r"(v) : "r"(tpr) : "memory");
	CHECK(v == 0x70); /* the low half is not asked for: KVM on SVM keeps CR8's bits only */
	asm volatile("andl $0x30, (%1); xor %0, %0; xchg %0, (%1)" : "=&r"(v) : "r"(tpr) : "memory");
	CHECK(v == 0x30 && lapic_read(0x80) == 0);
	asm volatile("mov $0x40, %%eax; xor %%edx, %%edx; mov %%eax, (%1); cmpl $0x40, (%1); sete %%dl; testl $0x40, (%1); setnz %%dh\n"
		     "movl $0, (%1); movzx %%dx, %0" : "=r"(v) : "r"(tpr) : "ax", "dx", "memory");
	CHECK(v == 0x101);
	uint32_t copy[2] = {0, 0};
	void *from = (void *)(LAPIC + 0x30), *to = copy;
	asm volatile("movsl" : "+S"(from), "+D"(to) : : "memory");
	CHECK(copy[0] == version && from == (void *)(LAPIC + 0x34));
	/* I/O APIC */
	*(volatile uint32_t *)IOAPIC = 1;
	v = *(volatile uint32_t *)(IOAPIC + 0x10);
	CHECK((v >> 16 & 0xff) >= 23 && (v & 0xff) >= 0x11);
	/* HPET: 64-bit and 32-bit reads; the counter runs when enabled. */
	uint64_t caps = *(volatile uint64_t *)HPET;
	CHECK((uint32_t)caps == *(volatile uint32_t *)HPET && caps >> 32 == *(volatile uint32_t *)(HPET + 4));
	asm volatile("push (%1); pop %0" : "=r"(wide) : "r"(HPET) : "memory");
	CHECK(wide == caps);
	CHECK(caps >> 32 > 0 && caps >> 32 <= 100000000); /* femtoseconds per tick: at most 100 ns */
	*(volatile uint64_t *)(HPET + 0x10) |= 1;
	uint64_t first = *(volatile uint64_t *)(HPET + 0xf0), second = first;
	for (unsigned i = 0; i < 1000000 && second == first; i++)
		second = *(volatile uint64_t *)(HPET + 0xf0);
	CHECK(second > first);
	*(volatile uint64_t *)(HPET + 0x10) &= ~1ul;
	say("io: MMIO ok");
}

static void x2apic(void)
{
	if (!(cpuid(1, 0).ecx & 1 << 21)) {
		say("io: no x2APIC");
		return;
	}
	uint64_t base = rdmsr(MSR_APIC_BASE);
	uint32_t version = lapic_read(0x30), id = lapic_read(0x20) >> 24;
	wrmsr(MSR_APIC_BASE, base | 0x400);
	CHECK((uint32_t)rdmsr(0x803) == version && rdmsr(0x802) == id);
	wrmsr(0x808, 0x20);
	CHECK(rdmsr(0x808) == 0x20 && get_cr8() == 2);
	CHECK_NOT_KVM(ATTEMPT_AFTER("mov $0x808, %%ecx; xor %%edx, %%edx; mov $0x100, %%eax", "wrmsr") == V_GP); /* reserved bits */
	CHECK(ATTEMPT_AFTER("mov $0x803, %%ecx; xor %%edx, %%edx; xor %%eax, %%eax", "wrmsr") == V_GP);  /* read-only */
	CHECK(ATTEMPT_AFTER("mov $0x80b, %%ecx", "rdmsr") == V_GP);					     /* EOI: write-only */
	irq_eoi = EOI_NONE;
	irq_clear();
	set_cr8(0);
	wrmsr(0x83f, 0x77); /* SELF IPI */
	asm volatile("sti; nop; nop; cli");
	CHECK(irq_count[0x77] == 1);
	wrmsr(0x80b, 0);
	CHECK(ATTEMPT_AFTER("mov $0x1b, %%ecx; xor %%edx, %%edx; mov $0xfee00900, %%eax", "wrmsr") == V_GP); /* back only by way of off */
	say("io: x2APIC ok");
}

int guest_main(void)
{
	ports();
	strings();
	permissions();
	real_time_clock();
	memory_mapped();
	x2apic();
	return 0;
}
