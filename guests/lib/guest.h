/*
 * The small library under every bare-metal guest: serial output, debug exit, traps, user mode, the local APIC.
 * Each guest tests one behaviour of the machine against the manuals; it prints a line for each group of checks and ends
 * with guest_exit(0), or with the number of the check that failed. Built with general registers only.
 */
#ifndef GUEST_H
#define GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef unsigned long word; /* 64 or 32 bits */

#ifdef __x86_64__
#define W "q"
#define BITS64 1
#else
#define W "l"
#define BITS64 0
#endif

enum selector {
	SEL_KERNEL_CODE = 0x08, SEL_KERNEL_DATA = 0x10, SEL_KERNEL_CODE32 = 0x18,
	SEL_USER_CODE32 = 0x23, SEL_USER_DATA = 0x2b, SEL_USER_CODE64 = 0x33,
	SEL_TSS = 0x38, SEL_CODE16 = 0x48, SEL_DATA16 = 0x50, SEL_SYSENTER = 0x60, SEL_FREE = 0x90,
};

enum vector { V_DE, V_DB, V_NMI, V_BP, V_OF, V_BR, V_UD, V_NM, V_DF, V_TS = 10, V_NP, V_SS, V_GP, V_PF, V_MF = 16, V_AC, V_MC, V_XM };
#define V_NONE 0xffff
#define V_USER_EXIT 0x80 /* INT 0x80 ends user_run() */

#define EFLAGS_CF 0x1u
#define EFLAGS_ZF 0x40u
#define EFLAGS_TF 0x100u
#define EFLAGS_IF 0x200u
#define EFLAGS_DF 0x400u
#define EFLAGS_OF 0x800u
#define EFLAGS_NT 0x4000u
#define EFLAGS_RF 0x10000u
#define EFLAGS_AC 0x40000u

struct frame {
#ifdef __x86_64__
	word r15, r14, r13, r12, r11, r10, r9, r8, di, si, bp, bx, dx, cx, ax;
#else
	word es, ds, di, si, bp, unused_sp, bx, dx, cx, ax;
#endif
	word vector, error, ip, cs, flags;
	word sp, ss; /* 32-bit: only if the privilege level changed */
};

/* The last exception. vector is V_NONE if there was none since trap_clear(). */
struct trap {
	unsigned vector;
	word error, ip, cs, flags, sp, ss, cr2;
	unsigned count;
};
extern volatile struct trap last;
extern volatile word trap_resume;  /* where to go on after an exception in the kernel; 0: it is unexpected */
extern volatile word attempt_ip;   /* the address of the instruction under ATTEMPT */
/* If set, sees each exception and interrupt first; true: handled, return with IRET. */
extern bool (*volatile trap_hook)(struct frame *frame);
void trap_clear(void);
void trap_handle(struct frame *frame);

/*
 * Runs one instruction that may fault; yields its vector or V_NONE. A fault resumes behind it. `setup` runs before.
 * Operands are inputs; ax, cx, dx, the flags and memory are clobbered.
 */
#define ATTEMPT_AFTER(setup, insn, ...) \
	({ \
		trap_clear(); \
		asm volatile("mov" W " $1f, trap_resume\n\tmov" W " $0f, attempt_ip\n\t" setup "\n0:\t" insn \
			     "\n1:\tmov" W " $0, trap_resume" : : __VA_ARGS__ : "ax", "cx", "dx", "memory", "cc"); \
		last.vector; \
	})
#define ATTEMPT(insn, ...) ATTEMPT_AFTER("", insn, __VA_ARGS__)
/* Did the last exception have this vector, error code and the attempted instruction's address? */
#define FAULTED(v, e) (last.vector == (v) && last.error == (word)(e) && last.ip == attempt_ip)

/* Interrupts (vectors 0x20 and up without a hook): counted and logged; then EOI as irq_eoi says. */
extern volatile unsigned irq_count[256];
extern volatile uint8_t irq_log[64];
extern volatile unsigned irq_logged;
enum irq_eoi { EOI_NONE, EOI_PIC, EOI_LAPIC };
extern volatile enum irq_eoi irq_eoi;
void irq_clear(void);
/*
 * STI, HLT, CLI, to be called with IF clear. Where a KVM runs on QEMU's TCG, which forgets STI's shadow when an interrupt of
 * the host comes right behind it (and on Bochs), an interrupt that so came before HLT goes on behind it.
 */
void halt(void);

void idt_set(unsigned vector, word handler, unsigned selector, unsigned type_dpl, unsigned ist);
extern uint64_t gdt[32];
void gdt_set(unsigned selector, uint32_t base, uint32_t limit20, unsigned access, unsigned flags4);
#ifdef __x86_64__
struct tss {
	uint32_t reserved0;
	uint64_t rsp[3], reserved1, ist[7], reserved2;
	uint16_t reserved3, iomap;
	uint8_t bitmap[8193];
} __attribute__((packed));
#else
struct tss {
	uint32_t link, esp0, ss0, esp1, ss1, esp2, ss2, cr3, eip, eflags, eax, ecx, edx, ebx, esp, ebp, esi, edi;
	uint32_t es, cs, ss, ds, fs, gs, ldt;
	uint16_t trap, iomap;
	uint8_t bitmap[8193];
} __attribute__((packed));
#endif
extern struct tss tss;
extern char trap_stubs[];

/* User mode: runs from ip with flags until any exception or INT 0x80; `last` then says which. `ax` and `arg` arrive
 * in the accumulator and (64-bit) RDI. The stack is a page of its own. */
struct user_frame {
	word ip, cs, flags, sp, ss, ax, arg;
};
void user_enter(const struct user_frame *frame);
void user_leave(void) __attribute__((noreturn));
unsigned user_run(const void *code, word flags, word arg);
unsigned user_run_in(unsigned cs, const void *code, word flags, word arg);
extern uint8_t user_stack[4096];

void print(const char *text);
void print_hex(uint64_t value);
void print_dec(unsigned value);
void say(const char *line);
void guest_exit(int code) __attribute__((noreturn));
int guest_main(void);
void check_failed(unsigned number, const char *text, int line) __attribute__((noreturn));

/*
 * Where the manuals are not kept: CHECK_REAL skips a check that QEMU's TCG is known to fail, also when a KVM runs on it that
 * runs us (then "tcg" is on the command line); CHECK_NOT_KVM one that Linux's KVM fails on any processor ("kvm"), CHECK_NOT_BOCHS one that Bochs fails ("bochs").
 */
bool under_tcg(void);
bool under_kvm(void);
bool under_shadow(void); /* a KVM without nested paging ("shadow") */
bool under_bochs(void);
#define CHECK_REAL(condition) check_at(__COUNTER__ + 1, under_tcg() || (condition), #condition, __LINE__)
#define CHECK_NOT_BOCHS(condition) check_at(__COUNTER__ + 1, under_bochs() || (condition), #condition, __LINE__)
#define CHECK_NOT_KVM(condition) check_at(__COUNTER__ + 1, under_kvm() || (condition), #condition, __LINE__)

/* Numbered by occurrence in the file, from 1. */
#define CHECK(condition) check_at(__COUNTER__ + 1, condition, #condition, __LINE__)
static inline void check_at(unsigned number, bool ok, const char *text, int line)
{
	if (!ok)
		check_failed(number, text, line);
}

static inline void outb(uint16_t port, uint8_t v) { asm volatile("outb %0, %1" : : "a"(v), "Nd"(port) : "memory"); }
static inline void outw(uint16_t port, uint16_t v) { asm volatile("outw %0, %1" : : "a"(v), "Nd"(port) : "memory"); }
static inline void outl(uint16_t port, uint32_t v) { asm volatile("outl %0, %1" : : "a"(v), "Nd"(port) : "memory"); }
static inline uint8_t inb(uint16_t port) { uint8_t v; asm volatile("inb %1, %0" : "=a"(v) : "Nd"(port) : "memory"); return v; }
static inline uint16_t inw(uint16_t port) { uint16_t v; asm volatile("inw %1, %0" : "=a"(v) : "Nd"(port) : "memory"); return v; }
static inline uint32_t inl(uint16_t port) { uint32_t v; asm volatile("inl %1, %0" : "=a"(v) : "Nd"(port) : "memory"); return v; }

#define DEFINE_REG(name) \
	static inline word get_##name(void) { word v; asm volatile("mov %%" #name ", %0" : "=r"(v) : : "memory"); return v; } \
	static inline void set_##name(word v) { asm volatile("mov %0, %%" #name : : "r"(v) : "memory"); }
DEFINE_REG(cr0)
DEFINE_REG(cr2)
DEFINE_REG(cr3)
DEFINE_REG(cr4)
DEFINE_REG(dr0)
DEFINE_REG(dr1)
DEFINE_REG(dr2)
DEFINE_REG(dr3)
DEFINE_REG(dr6)
DEFINE_REG(dr7)
#ifdef __x86_64__
DEFINE_REG(cr8)
#endif

static inline uint64_t rdmsr(uint32_t msr)
{
	uint32_t lo, hi;
	asm volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(msr));
	return (uint64_t)hi << 32 | lo;
}
static inline void wrmsr(uint32_t msr, uint64_t v)
{
	asm volatile("wrmsr" : : "c"(msr), "a"((uint32_t)v), "d"((uint32_t)(v >> 32)) : "memory");
}
static inline uint64_t rdtsc(void)
{
	uint32_t lo, hi;
	asm volatile("rdtsc" : "=a"(lo), "=d"(hi));
	return (uint64_t)hi << 32 | lo;
}
struct cpuid { uint32_t eax, ebx, ecx, edx; };
static inline struct cpuid cpuid(uint32_t leaf, uint32_t subleaf)
{
	struct cpuid r;
	asm volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx) : "a"(leaf), "c"(subleaf));
	return r;
}
static inline word get_flags(void)
{
	word v;
	asm volatile("pushf\n\tpop %0" : "=r"(v) : : "memory");
	return v;
}
static inline void sti(void) { asm volatile("sti" : : : "memory"); }
static inline void cli(void) { asm volatile("cli" : : : "memory"); }

#define MSR_APIC_BASE 0x1b
#define MSR_TSC_DEADLINE 0x6e0
#define MSR_SYSENTER_CS 0x174
#define MSR_EFER 0xc0000080
#define MSR_STAR 0xc0000081
#define MSR_LSTAR 0xc0000082
#define MSR_CSTAR 0xc0000083
#define MSR_FMASK 0xc0000084
#define MSR_FS_BASE 0xc0000100
#define MSR_GS_BASE 0xc0000101
#define MSR_KERNEL_GS_BASE 0xc0000102

/* The local APIC in xAPIC mode (SDM vol. 3, ch. 11). */
#define LAPIC 0xfee00000ul
static inline uint32_t lapic_read(unsigned reg) { return *(volatile uint32_t *)(LAPIC + reg); }
static inline void lapic_write(unsigned reg, uint32_t v) { *(volatile uint32_t *)(LAPIC + reg) = v; }
void lapic_enable(void); /* software enable, spurious vector 0xff, LVTs masked, TPR 0 */
void pic_mask_all(void);
void pic_init(void); /* vectors 0x20 and 0x28, all masked */

#endif
