/* Local APIC state (SDM vol. 3, chapter 11): what a snapshot saves of it. The model runs in the vcpu process. */
#ifndef VMM_CPU_LAPIC_H
#define VMM_CPU_LAPIC_H

#include <stdbool.h>
#include <stdint.h>

/* IA32_APIC_BASE */
#define APIC_BASE_X2APIC (1ull << 10)
#define APIC_BASE_ENABLE (1ull << 11)

enum lapic_lvt { LVT_CMCI, LVT_TIMER, LVT_THERMAL, LVT_PERF, LVT_LINT0, LVT_LINT1, LVT_ERROR, LVT_COUNT };

struct lapic_state {
	uint64_t apic_base; /* IA32_APIC_BASE: 11 enable, 10 x2APIC, 8 BSP */
	uint32_t id;	    /* x2APIC form; xAPIC shows it in 31:24 */
	uint32_t ldr, dfr;  /* xAPIC logical destination */
	uint32_t tpr;
	uint32_t spurious;
	uint32_t esr, esr_pending;
	uint32_t icr_low, icr_high;
	uint32_t lvt[LVT_COUNT];
	uint32_t timer_initial, timer_divide;
	uint64_t timer_start_ns;  /* CLOCK_MONOTONIC when the count was written */
	uint64_t tsc_deadline;	  /* guest TSC value; 0 disarmed */
	uint64_t isr[4], tmr[4], irr[4];
};

/*
 * Power-up state of the APIC of a processor. As PC firmware expects to find and leave it, LINT0 of the bootstrap
 * processor is in ExtINT mode and open ("virtual wire"), so that a kernel started without firmware gets the PIC.
 */
void cpu_lapic_reset(struct lapic_state *lapic, uint32_t id, bool bootstrap);

#endif
