/*
 * The canonical state of one virtual CPU, for all modes and both backends: plain data that a snapshot can save.
 * Numbers and layouts are the SDM's (vol. 3, chapters 2, 3 and 18) unless said otherwise.
 */
#ifndef VMM_CPU_H
#define VMM_CPU_H

#include <stdbool.h>
#include <stdint.h>

#include "vmm/cpu_bits.h"

enum cpu_gpr {
	GPR_RAX, GPR_RCX, GPR_RDX, GPR_RBX, GPR_RSP, GPR_RBP, GPR_RSI, GPR_RDI,
	GPR_R8, GPR_R9, GPR_R10, GPR_R11, GPR_R12, GPR_R13, GPR_R14, GPR_R15,
	GPR_ZERO, /* always 0, so that an effective address is a plain sum of two registers and a displacement */
	GPR_RIP,  /* the instruction pointer */
	GPR_COUNT
};

enum cpu_seg { SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS, SEG_COUNT };

/*
 * A segment register with its hidden part. `ar` has the layout of the VMX access-rights field:
 *
 *   16 unusable | 15 G | 14 D/B | 13 L | 12 AVL | 11..8 0 | 7 P | 6..5 DPL | 4 S | 3..0 type
 */
struct cpu_segment {
	uint16_t selector;
	uint16_t reserved;
	uint32_t ar;
	uint32_t limit; /* bytes, granularity applied */
	uint32_t reserved2;
	uint64_t base;
};

struct cpu_table {
	uint64_t base;
	uint16_t limit;
	uint16_t reserved[3];
};

enum cpu_activity { CPU_RUNNING, CPU_HALTED, CPU_WAIT_SIPI, CPU_SHUTDOWN };

enum cpu_event { CPU_EVENT_NONE, CPU_EVENT_INTERRUPT, CPU_EVENT_NMI, CPU_EVENT_EXCEPTION };

/* XSAVE standard format: legacy area 512, header 64, AVX state 256. */
#define CPU_XSAVE_SIZE 832

struct cpu_state {
	uint64_t gpr[GPR_COUNT];
	uint64_t rflags; /* bit 1 always set */
	struct cpu_segment seg[SEG_COUNT];
	struct cpu_segment ldtr, tr;
	struct cpu_table gdtr, idtr;
	uint64_t cr0, cr2, cr3, cr4;
	uint64_t pdpte[4]; /* PAE paging: what the last load of CR3 found (SDM vol. 3, 4.4.1) */
	uint64_t efer, xcr0;
	uint64_t dr[4], dr6, dr7;

	/* MSRs that are plain storage; those of the local APIC are in struct lapic_state. */
	uint64_t star, lstar, cstar, sfmask, kernel_gs_base;
	uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
	uint64_t pat, tsc_aux, tsc_adjust, misc_enable, spec_ctrl;
	uint64_t tsc_offset; /* guest TSC = host TSC + tsc_offset */
	uint64_t pv_wall_clock, pv_system_time; /* guest addresses; bit 0 of the second: enabled */
	uint64_t mtrr_def_type, mtrr_fixed[11], mtrr_var[16];

	/* What is not a register. */
	uint8_t activity;	  /* enum cpu_activity */
	uint8_t shadow_sti;	  /* interrupts are held until the next instruction ends */
	uint8_t shadow_mov_ss;	  /* interrupts and debug traps likewise */
	uint8_t nmi_blocked;	  /* until IRET */
	uint8_t nmi_pending;
	/* An event that has been accepted and is to be delivered before anything else; the software CPU never leaves one. */
	uint8_t event; /* enum cpu_event */
	uint8_t event_vector, event_has_error;
	uint32_t event_error;
	uint32_t reserved;
	uint64_t pending_dr6;	  /* debug traps to deliver after the current instruction */

	uint8_t xsave[CPU_XSAVE_SIZE] __attribute__((aligned(64)));
};

/* Sets *state to the power-up state (SDM vol. 3, table 10-1): the bootstrap processor runs at F000:FFF0, others wait. */
void cpu_reset(struct cpu_state *state, bool bootstrap);
/*
 * INIT: as reset, but what the SDM says survives (x87/SSE state, XCR0, most MSRs, CR0.CD/NW) does. Leaves the vcpu
 * in CPU_WAIT_SIPI; for the bootstrap processor (IA32_APIC_BASE.BSP) the caller sets CPU_RUNNING.
 */
void cpu_init(struct cpu_state *state);

/* Writes registers in the form of a crash report, a newline after each line, into text. Truncates; returns length. */
int cpu_format(const struct cpu_state *state, char *text, unsigned size);

/* --- the CPU that the guest sees --- */

struct cpu_model {
	/* Set at create from --cpu; the same for all vcpus. */
	uint32_t apic_id;    /* of this vcpu */
	uint32_t cpu_count;
	uint32_t features;   /* CPU_MODEL_… */
	uint32_t lapic_tick_ns; /* of the local APIC timer, before its divider */
	uint64_t tsc_khz;    /* of the host TSC, measured or from CPUID */
	uint64_t clock_tsc;  /* the host TSC at create: the zero of the paravirtual clock */
	uint32_t host_vendor[3]; /* EBX, EDX, ECX of leaf 0 */
	uint32_t host_signature; /* leaf 1 EAX */
	uint32_t phys_bits;
	uint32_t brand[12];
	uint32_t host_features[16]; /* the words of enum cpu_feature as the guest sees them; see cpu/model.c */
};
#define CPU_MODEL_SMAP (1u << 0)

/* The clock of the local APIC timer, before its divider; CPUID calls it the crystal. (A KVM that cannot do so has another.) */
#define CPU_LAPIC_HZ 25000000u
#define CPU_LAPIC_TICK_NS (1000000000u / CPU_LAPIC_HZ)

/* The words of cpu_model.host_features. */
enum cpu_feature_word {
	CPU_WORD_1_ECX, CPU_WORD_1_EDX, CPU_WORD_7_EBX, CPU_WORD_7_ECX, CPU_WORD_7_EDX, CPU_WORD_EXT1_ECX, CPU_WORD_EXT1_EDX,
	CPU_WORD_EXT8_EBX, CPU_WORD_EXT21_EAX, CPU_WORD_EXT21_ECX, CPU_WORD_COUNT
};
#define CPU_FEATURE(word, bit) ((word) * 32 + (bit))
/* The features that an engine or a device model asks for. */
enum cpu_feature {
	CPU_FEATURE_SSE3 = CPU_FEATURE(CPU_WORD_1_ECX, 0),
	CPU_FEATURE_PCLMUL = CPU_FEATURE(CPU_WORD_1_ECX, 1),
	CPU_FEATURE_SSSE3 = CPU_FEATURE(CPU_WORD_1_ECX, 9),
	CPU_FEATURE_FMA = CPU_FEATURE(CPU_WORD_1_ECX, 12),
	CPU_FEATURE_CX16 = CPU_FEATURE(CPU_WORD_1_ECX, 13),
	CPU_FEATURE_PCID = CPU_FEATURE(CPU_WORD_1_ECX, 17),
	CPU_FEATURE_SSE41 = CPU_FEATURE(CPU_WORD_1_ECX, 19),
	CPU_FEATURE_SSE42 = CPU_FEATURE(CPU_WORD_1_ECX, 20),
	CPU_FEATURE_X2APIC = CPU_FEATURE(CPU_WORD_1_ECX, 21),
	CPU_FEATURE_MOVBE = CPU_FEATURE(CPU_WORD_1_ECX, 22),
	CPU_FEATURE_POPCNT = CPU_FEATURE(CPU_WORD_1_ECX, 23),
	CPU_FEATURE_AES = CPU_FEATURE(CPU_WORD_1_ECX, 25),
	CPU_FEATURE_XSAVE = CPU_FEATURE(CPU_WORD_1_ECX, 26),
	CPU_FEATURE_AVX = CPU_FEATURE(CPU_WORD_1_ECX, 28),
	CPU_FEATURE_F16C = CPU_FEATURE(CPU_WORD_1_ECX, 29),
	CPU_FEATURE_RDRAND = CPU_FEATURE(CPU_WORD_1_ECX, 30),
	CPU_FEATURE_FSGSBASE = CPU_FEATURE(CPU_WORD_7_EBX, 0),
	CPU_FEATURE_BMI1 = CPU_FEATURE(CPU_WORD_7_EBX, 3),
	CPU_FEATURE_AVX2 = CPU_FEATURE(CPU_WORD_7_EBX, 5),
	CPU_FEATURE_SMEP = CPU_FEATURE(CPU_WORD_7_EBX, 7),
	CPU_FEATURE_BMI2 = CPU_FEATURE(CPU_WORD_7_EBX, 8),
	CPU_FEATURE_INVPCID = CPU_FEATURE(CPU_WORD_7_EBX, 10),
	CPU_FEATURE_RDSEED = CPU_FEATURE(CPU_WORD_7_EBX, 18),
	CPU_FEATURE_ADX = CPU_FEATURE(CPU_WORD_7_EBX, 19),
	CPU_FEATURE_SMAP = CPU_FEATURE(CPU_WORD_7_EBX, 20),
	CPU_FEATURE_CLFLUSHOPT = CPU_FEATURE(CPU_WORD_7_EBX, 23),
	CPU_FEATURE_SHA = CPU_FEATURE(CPU_WORD_7_EBX, 29),
	CPU_FEATURE_UMIP = CPU_FEATURE(CPU_WORD_7_ECX, 2),
	CPU_FEATURE_SPEC_CTRL = CPU_FEATURE(CPU_WORD_7_EDX, 26), /* SPEC_CTRL and PRED_CMD MSRs (Intel) */
	CPU_FEATURE_ARCH_CAPABILITIES = CPU_FEATURE(CPU_WORD_7_EDX, 29),
	CPU_FEATURE_LZCNT = CPU_FEATURE(CPU_WORD_EXT1_ECX, 5),
	CPU_FEATURE_PREFETCHW = CPU_FEATURE(CPU_WORD_EXT1_ECX, 8),
	CPU_FEATURE_AUTOIBRS = CPU_FEATURE(CPU_WORD_EXT21_EAX, 8), /* EFER bit 21 may be set (AMD) */
};

struct error;
/* Parses the argument of --cpu ("common", "common,+smap") and reads the host. 0, -EINVAL or -ENOTSUP. */
int cpu_model_create(const char *spec, unsigned cpu_count, struct cpu_model *model, struct error *err);
/* As above with a TSC frequency that is known (0: to be measured, which takes 20 ms). */
int cpu_model_create_at(const char *spec, unsigned cpu_count, uint64_t tsc_khz, struct cpu_model *model, struct error *err);
/* CPUID as the guest sees it; state gives the dynamic bits (OSXSAVE, APIC enable), may be NULL. Any thread. */
void cpu_cpuid(const struct cpu_model *model, const struct cpu_state *state, uint32_t leaf, uint32_t subleaf,
	uint32_t out[4]);
static inline bool cpu_model_has(const struct cpu_model *model, enum cpu_feature feature)
{
	return model->host_features[feature / 32] >> (feature % 32) & 1;
}
/* The vendor is AMD or Hygon: their rules for SYSCALL/SYSENTER, null selectors and such apply. */
bool cpu_model_is_amd(const struct cpu_model *model);
/* Bits of CR4, XCR0 and EFER that the model lets a guest set; others fault. */
uint64_t cpu_cr4_allowed(const struct cpu_model *model);
uint64_t cpu_xcr0_allowed(const struct cpu_model *model);
uint64_t cpu_efer_allowed(const struct cpu_model *model);
/* IA32_ARCH_CAPABILITIES, to be offered if CPU_FEATURE_ARCH_CAPABILITIES. */
uint64_t cpu_arch_capabilities(const struct cpu_model *model);
/*
 * MSRs that an operating system reads or writes for a vendor's sake and that carry no state here (machine check,
 * microcode revision, AMD's HWCR and SYSCFG, …): the last resort of RDMSR and WRMSR. False: the access is #GP.
 */
bool cpu_msr_constant(const struct cpu_model *model, uint32_t msr, uint64_t *value);
bool cpu_msr_ignored(const struct cpu_model *model, uint32_t msr);

#endif
