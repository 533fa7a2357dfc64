/* Serial output, debug exit, traps and user mode for the guests; see guest.h. */
#include "guest.h"

#define COM1 0x3f8
#define DEBUG_EXIT 0xf4

volatile struct trap last;
volatile word trap_resume, attempt_ip;
bool (*volatile trap_hook)(struct frame *frame);
volatile unsigned irq_count[256], irq_logged;
volatile uint8_t irq_log[64];
volatile enum irq_eoi irq_eoi;
struct tss tss;
uint8_t user_stack[4096] __attribute__((aligned(4096)));
static uint8_t kernel_stack[8192] __attribute__((aligned(16)));
static uint8_t fault_stack[4096] __attribute__((aligned(16)));
static volatile bool user_active;
extern uint32_t boot_magic, boot_info;
static bool told_tcg, told_kvm, told_shadow, told_bochs;

#ifdef __x86_64__
static struct { uint64_t low, high; } idt[256] __attribute__((aligned(16)));
#else
static uint64_t idt[256] __attribute__((aligned(16)));
#endif

void lib_init(void);
/* The compiler may call these for struct copies. */
void *memset(void *dst, int c, size_t n);
void *memcpy(void *dst, const void *src, size_t n);

void *memset(void *dst, int c, size_t n)
{
	void *p = dst;

	asm volatile("rep stosb" : "+D"(p), "+c"(n) : "a"(c) : "memory");
	return dst;
}

void *memcpy(void *dst, const void *src, size_t n)
{
	void *p = dst;

	asm volatile("rep movsb" : "+D"(p), "+S"(src), "+c"(n) : : "memory");
	return dst;
}

static void print_char(char c)
{
	for (unsigned i = 0; i < 100000 && !(inb(COM1 + 5) & 0x20); i++)
		;
	outb(COM1, c);
}

void print(const char *text)
{
	while (*text)
		print_char(*text++);
}

void print_hex(uint64_t value)
{
	int shift = 60;

	print("0x");
	while (shift && !(value >> shift & 15))
		shift -= 4;
	for (; shift >= 0; shift -= 4)
		print_char("0123456789abcdef"[value >> shift & 15]);
}

void print_dec(unsigned value)
{
	if (value >= 10)
		print_dec(value / 10);
	print_char('0' + value % 10);
}

void say(const char *line)
{
	print(line);
	print_char('\n');
}

void guest_exit(int code)
{
	/* Let the transmitter empty itself: TEMT. */
	for (unsigned i = 0; i < 100000 && !(inb(COM1 + 5) & 0x40); i++)
		;
	outb(DEBUG_EXIT, code);
	for (;;)
		asm volatile("cli; hlt");
}

static void print_last(void)
{
	print("last trap: vector ");
	print_hex(last.vector);
	print(" error ");
	print_hex(last.error);
	print(" ip ");
	print_hex(last.ip);
	print(" attempted ");
	print_hex(attempt_ip);
	print(" cs ");
	print_hex(last.cs);
	print(" flags ");
	print_hex(last.flags);
	print(" cr2 ");
	print_hex(last.cr2);
	print(" sp ");
	print_hex(last.sp);
	say("");
}

void check_failed(unsigned number, const char *text, int line)
{
	print("FAILED check ");
	print_dec(number);
	print(" at line ");
	print_dec(line);
	print(": ");
	say(text);
	print_last();
	guest_exit(number < 127 ? number : 127);
}

void trap_clear(void)
{
	last.vector = V_NONE;
	last.error = last.ip = last.flags = last.cr2 = 0;
	last.count = 0;
}

void irq_clear(void)
{
	for (unsigned i = 0; i < 256; i++)
		irq_count[i] = 0;
	irq_logged = 0;
}

static void irq_handle(unsigned vector)
{
	irq_count[vector]++;
	if (irq_logged < sizeof(irq_log))
		irq_log[irq_logged++] = vector;
	if (irq_eoi == EOI_PIC) {
		if (vector >= 0x28)
			outb(0xa0, 0x20);
		outb(0x20, 0x20);
	} else if (irq_eoi == EOI_LAPIC && vector != 0xff) {
		lapic_write(0xb0, 0);
	}
}

extern char halt_here[], halt_behind[];
asm(".text\n.globl halt\nhalt: sti\nhalt_here: hlt\nhalt_behind: cli\nret\n");

/* No interrupt comes between STI and HLT, or HLT would wait for another. */
static void check_halt(struct frame *frame)
{
	if (frame->ip != (word)halt_here || frame->vector < 0x20)
		return;
	if (!under_bochs() && (!under_tcg() || !under_kvm())) {
		say("FAILED: an interrupt between STI and HLT");
		guest_exit(125);
	}
	frame->ip = (word)halt_behind;
}

void trap_handle(struct frame *frame)
{
	bool from_user = frame->cs & 3;

	check_halt(frame);
	if (trap_hook && trap_hook(frame))
		return;
	if (frame->vector >= 0x20 && frame->vector != V_USER_EXIT) {
		irq_handle(frame->vector);
		return;
	}
	last.vector = frame->vector;
	last.error = frame->error;
	last.ip = frame->ip;
	last.cs = frame->cs;
	last.flags = frame->flags;
	last.cr2 = get_cr2();
	last.count++;
	if (BITS64 || from_user) {
		last.sp = frame->sp;
		last.ss = frame->ss;
	} else {
		last.sp = (word)&frame->sp;
	}
	if (from_user && user_active) {
		user_active = false;
		user_leave();
	}
	if (!trap_resume) {
		say("FAILED: unexpected exception");
		print_last();
		guest_exit(126);
	}
	frame->ip = trap_resume;
	frame->flags &= ~(word)EFLAGS_TF;
}

unsigned user_run_in(unsigned cs, const void *code, word flags, word arg)
{
	struct user_frame frame = {
		.ip = (word)code, .cs = cs, .flags = flags | 2, .sp = (word)user_stack + sizeof(user_stack) - 64,
		.ss = SEL_USER_DATA, .arg = arg, .ax = arg,
	};

	trap_clear();
	user_active = true;
	user_enter(&frame);
	return last.vector;
}

unsigned user_run(const void *code, word flags, word arg)
{
	return user_run_in(BITS64 ? SEL_USER_CODE64 : SEL_USER_CODE32, code, flags, arg);
}

/* type_dpl: bits 15:8 of the gate, e.g. 0x8e interrupt gate, 0xee the same with DPL 3, 0x8f trap gate. */
void idt_set(unsigned vector, word handler, unsigned selector, unsigned type_dpl, unsigned ist)
{
	uint64_t low = (handler & 0xffff) | (uint64_t)selector << 16 | (uint64_t)ist << 32 | (uint64_t)type_dpl << 40 |
		       (uint64_t)(handler >> 16 & 0xffff) << 48;
#ifdef __x86_64__
	idt[vector].low = low;
	idt[vector].high = handler >> 32;
#else
	idt[vector] = low;
#endif
}

void gdt_set(unsigned selector, uint32_t base, uint32_t limit, unsigned access, unsigned flags)
{
	gdt[selector >> 3] = (limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)access << 40 |
			     (uint64_t)(limit >> 16 & 0xf) << 48 | (uint64_t)flags << 52 | (uint64_t)(base >> 24) << 56;
}

/* The command line that the loader has left: PVH's start info or multiboot's. */
static const char *command_line(void)
{
	const uint32_t *info = (const uint32_t *)(word)boot_info;

	if (boot_magic == 0x2badb002)
		return info[0] & 4 ? (const char *)(word)info[4] : "";
	return info && info[0] == 0x336ec578 && info[6] ? (const char *)(word)info[6] : "";
}

static bool is_told(const char *wanted)
{
	const char *text = command_line();

	while (*text) {
		const char *a = text, *b = wanted;

		while (*b && *a == *b)
			a++, b++;
		if (!*b && (!*a || *a == ' '))
			return true;
		while (*text && *text++ != ' ')
			;
	}
	return false;
}

/* Early: some guests write over the loader's strings. */
static void find_surroundings(void)
{
	struct cpuid r = cpuid(0x40000000, 0);

	told_tcg = is_told("tcg") || (r.ebx == 0x54474354 && r.ecx == 0x43544743); /* "TCGTCGTC" */
	told_kvm = is_told("kvm");
	told_shadow = is_told("shadow");
	told_bochs = is_told("bochs");
}

bool under_tcg(void)
{
	return told_tcg;
}

bool under_kvm(void)
{
	return told_kvm;
}

bool under_shadow(void)
{
	return told_shadow;
}

bool under_bochs(void)
{
	return told_bochs;
}

void lib_init(void)
{
	struct __attribute__((packed)) { uint16_t limit; word base; } pointer = {sizeof(idt) - 1, (word)idt};

	outb(COM1 + 1, 0);
	outb(COM1 + 3, 0x80);
	outb(COM1, 1);
	outb(COM1 + 1, 0);
	outb(COM1 + 3, 3);
	outb(COM1 + 2, 7);
	for (unsigned i = 0; i < 256; i++) {
		bool user_may = i == V_BP || i == V_OF || i == V_USER_EXIT;

		idt_set(i, (word)trap_stubs + 16 * i, SEL_KERNEL_CODE, user_may ? 0xee : 0x8e,
			BITS64 && i == V_DF ? 1 : 0);
	}
	asm volatile("lidt %0" : : "m"(pointer));
#ifdef __x86_64__
	tss.rsp[0] = (uint64_t)kernel_stack + sizeof(kernel_stack);
	tss.ist[0] = (uint64_t)fault_stack + sizeof(fault_stack);
#else
	tss.ss0 = SEL_KERNEL_DATA;
	tss.esp0 = (word)kernel_stack + sizeof(kernel_stack);
	(void)fault_stack;
#endif
	tss.iomap = sizeof(tss); /* beyond the limit: user mode has no port */
	gdt_set(SEL_TSS, (uint32_t)(word)&tss, sizeof(tss) - 1, 0x89, 0);
	asm volatile("ltr %w0; lldt %w1" : : "r"(SEL_TSS), "r"(0));
	pic_mask_all();
	trap_clear();
	find_surroundings();
}

void pic_mask_all(void)
{
	outb(0x21, 0xff);
	outb(0xa1, 0xff);
}

void pic_init(void)
{
	outb(0x20, 0x11);
	outb(0xa0, 0x11);
	outb(0x21, 0x20);
	outb(0xa1, 0x28);
	outb(0x21, 4);
	outb(0xa1, 2);
	outb(0x21, 1);
	outb(0xa1, 1);
	pic_mask_all();
}

void lapic_enable(void)
{
	lapic_write(0xf0, 0x1ff);
	for (unsigned reg = 0x320; reg <= 0x370; reg += 0x10)
		lapic_write(reg, 0x10000);
	lapic_write(0x80, 0);
}

