/* See machine.h. */
#include <string.h>

#include "machine.h"

void set_segment(struct cpu_segment *s, uint16_t selector, uint64_t base, uint32_t limit, uint32_t ar)
{
	memset(s, 0, sizeof(*s));
	s->selector = selector;
	s->base = base;
	s->limit = limit;
	s->ar = ar;
}

void machine_reset(struct cpu_state *c, uint64_t cr3, uint64_t system)
{
	cpu_reset(c, true);
	c->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
	c->cr3 = cr3;
	c->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
	c->efer = EFER_LME | EFER_LMA | EFER_NXE;
	c->xcr0 = 7;
	set_segment(&c->tr, SELECTOR_TSS, system + 0x3000, 0x67, 0x8b);
	c->gdtr = (struct cpu_table){ .base = system, .limit = 0x7f };
	c->idtr = (struct cpu_table){ .base = system + 0x2000, .limit = 32 * 16 - 1 };
}
