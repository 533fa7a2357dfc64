/*
 * The machine state that all differential tests begin with: long mode with paging, and one block of system tables:
 *
 *   +0 GDT, the TSS's descriptor at SELECTOR_TSS | +1000 handlers, 16 bytes apart | +2000 IDT | +3000 TSS | behind it the stack
 */
#ifndef TESTS_MACHINE_H
#define TESTS_MACHINE_H

#include "engine/engine_state.h"

#define SELECTOR_TSS 0x40

/* Reset, then as above; segment registers are left as reset leaves them. */
void machine_reset(struct cpu_state *c, uint64_t cr3, uint64_t system);
void set_segment(struct cpu_segment *s, uint16_t selector, uint64_t base, uint32_t limit, uint32_t ar);

#endif
