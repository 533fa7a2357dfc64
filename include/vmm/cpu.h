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

/* XSAVE standard format: legacy area 512, header 64, AVX state 256. */
#define CPU_XSAVE_SIZE 832

struct cpu_state {
	uint64_t gpr[GPR_COUNT];
	uint64_t rflags; /* bit 1 always set */
	struct cpu_segment seg[SEG_COUNT];
	struct cpu_segment ldtr, tr;
	struct cpu_table gdtr, idtr;
	uint64_t cr0, cr2, cr3, cr4;
	uint64_t efer, xcr0;
	uint64_t dr[4], dr6, dr7;

	/* MSRs that are plain storage; those of the local APIC are in struct lapic_state. */
	uint64_t star, lstar, cstar, sfmask, kernel_gs_base;
	uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
	uint64_t pat, tsc_aux, tsc_adjust, misc_enable, spec_ctrl;
	uint64_t tsc_offset; /* guest TSC = host TSC + tsc_offset */
	uint64_t mtrr_def_type, mtrr_fixed[11], mtrr_var[16];

	/* What is not a register. */
	uint8_t activity;	  /* enum cpu_activity */
	uint8_t shadow_sti;	  /* interrupts are held until the next instruction ends */
	uint8_t shadow_mov_ss;	  /* interrupts and debug traps likewise */
	uint8_t nmi_blocked;	  /* until IRET */
	uint8_t nmi_pending;
	uint8_t reserved[3];
	uint64_t pending_dr6;	  /* debug traps to deliver after the current instruction */

	uint8_t xsave[CPU_XSAVE_SIZE] __attribute__((aligned(64)));
};

/* Sets *state to the power-up state (SDM vol. 3, table 10-1): the bootstrap processor runs at F000:FFF0, others wait. */
void cpu_reset(struct cpu_state *state, bool bootstrap);
/* INIT: as reset, but what the SDM says survives (x87/SSE state, most MSRs, CR0.CD/NW) does. */
void cpu_init(struct cpu_state *state);

/* Writes registers in the form of a crash report, a newline after each line, into text. Truncates; returns length. */
int cpu_format(const struct cpu_state *state, char *text, unsigned size);

/* --- the CPU that the guest sees --- */

struct cpu_model {
	/* Set at create from --cpu; the same for all vcpus. */
	uint32_t apic_id;    /* of this vcpu */
	uint32_t cpu_count;
	uint32_t features;   /* CPU_MODEL_… */
	uint32_t reserved;
	uint64_t tsc_khz;    /* of the host TSC, measured or from CPUID */
	uint32_t host_vendor[3]; /* EBX, EDX, ECX of leaf 0 */
	uint32_t host_signature; /* leaf 1 EAX */
	uint32_t phys_bits;
	uint32_t brand[12];
	uint32_t host_features[16]; /* leaf words that `common` masks; see cpu/cpuid.c */
};
#define CPU_MODEL_SMAP (1u << 0)

struct error;
/* Parses the argument of --cpu ("common", "common,+smap") and reads the host. 0, -EINVAL or -ENOTSUP. */
int cpu_model_create(const char *spec, unsigned cpu_count, struct cpu_model *model, struct error *err);
/* CPUID as the guest sees it; state gives the dynamic bits (OSXSAVE, APIC enable), may be NULL. Any thread. */
void cpu_cpuid(const struct cpu_model *model, const struct cpu_state *state, uint32_t leaf, uint32_t subleaf,
	uint32_t out[4]);
/* Bits of CR4 and XCR0 that the model lets a guest set; others fault. */
uint64_t cpu_cr4_allowed(const struct cpu_model *model);

#endif
