/*
 * The 32-bit hardware task switch (SDM vol. 3, 7.3). 16-bit TSSs are refused with #TS: nothing of the last thirty years has
 * used one. Faults while the new task's segments load are raised in the context of the new task, as documented.
 */
#include "engine/segment.h"

/* Offsets in a 32-bit TSS (SDM vol. 3, figure 7-2). */
enum { TSS_LINK = 0, TSS_CR3 = 28, TSS_EIP = 32, TSS_EFLAGS = 36, TSS_EAX = 40, TSS_ES = 72, TSS_LDT = 96, TSS_TRAP = 100,
	TSS_MIN_LIMIT = 103 };

static void read_new_tss(struct engine *e, uint16_t selector, enum task_reason why, struct descriptor *d)
{
	bool back = why == TASK_IRET;
	uint8_t vector = back ? EXC_TS : EXC_GP;
	unsigned type;

	if ((selector & 4) || !(selector & ~3u) || !descriptor_read(e, selector, d) || (d->hi & DESC_S))
		selector_fault(e, vector, selector);
	type = desc_type(d);
	if (type == SYS_TSS16 || type == SYS_TSS16_BUSY)
		selector_fault(e, EXC_TS, selector);
	if (type != (back ? SYS_TSS_BUSY : SYS_TSS))
		selector_fault(e, vector, selector);
	if (!(d->hi & DESC_P))
		selector_fault(e, EXC_NP, selector);
}

static void save_old_task(struct engine *e, uint32_t flags)
{
	struct cpu_state *cpu = e->cpu;
	uint32_t base = (uint32_t)cpu->tr.base;

	linear_write(e, base + TSS_EIP, 4, cpu->gpr[GPR_RIP], ACCESS_WRITE | ACCESS_SYSTEM);
	linear_write(e, base + TSS_EFLAGS, 4, flags, ACCESS_WRITE | ACCESS_SYSTEM);
	for (unsigned n = 0; n < 8; n++)
		linear_write(e, base + TSS_EAX + n * 4, 4, cpu->gpr[n], ACCESS_WRITE | ACCESS_SYSTEM);
	for (unsigned n = 0; n < SEG_COUNT; n++)
		linear_write(e, base + TSS_ES + n * 4, 2, cpu->seg[n].selector, ACCESS_WRITE | ACCESS_SYSTEM);
}

static void load_task_segments(struct engine *e, const uint16_t *selectors)
{
	struct cpu_state *cpu = e->cpu;
	static const uint8_t data[] = { SEG_DS, SEG_ES, SEG_FS, SEG_GS };
	struct descriptor d;

	if (cpu->rflags & FLAG_VM) {
		for (unsigned n = 0; n < SEG_COUNT; n++)
			segment_set_paragraph(e, n, selectors[n]);
		engine_update_mode(e);
		return;
	}
	/* CPL is that of the new CS. SS is checked against it. */
	segment_set_null(&cpu->seg[SEG_SS], selectors[SEG_SS], selectors[SEG_CS] & 3);
	engine_update_mode(e);
	if (!(selectors[SEG_CS] & ~3u) || !descriptor_read(e, selectors[SEG_CS], &d) || !desc_is_code(&d) ||
		(desc_is_conforming(&d) ? desc_dpl(&d) > e->cpl : desc_dpl(&d) != e->cpl))
		selector_fault(e, EXC_TS, selectors[SEG_CS]);
	if (!(d.hi & DESC_P))
		selector_fault(e, EXC_NP, selectors[SEG_CS]);
	descriptor_touch(e, &d);
	segment_set(&cpu->seg[SEG_CS], selectors[SEG_CS], &d);
	if (!(selectors[SEG_SS] & ~3u) || !descriptor_read(e, selectors[SEG_SS], &d) || !desc_is_writable_data(&d) ||
		desc_dpl(&d) != e->cpl || (selectors[SEG_SS] & 3u) != e->cpl)
		selector_fault(e, EXC_TS, selectors[SEG_SS]);
	if (!(d.hi & DESC_P))
		selector_fault(e, EXC_SS, selectors[SEG_SS]);
	descriptor_touch(e, &d);
	segment_set(&cpu->seg[SEG_SS], selectors[SEG_SS], &d);
	engine_update_mode(e);
	for (unsigned n = 0; n < 4; n++)
		segment_load(e, data[n], selectors[data[n]]);
}

void task_switch(struct engine *e, uint16_t tss, enum task_reason why, bool has_error, uint32_t error)
{
	struct cpu_state *cpu = e->cpu;
	struct descriptor d, old;
	struct cpu_segment tr;
	uint16_t old_selector = cpu->tr.selector, selectors[SEG_COUNT], ldt;
	uint32_t flags = (uint32_t)cpu->rflags, new_flags, base, gpr[8], rip, cr3, trap;

	read_new_tss(e, tss, why, &d);
	segment_set(&tr, tss, &d);
	if (tr.limit < TSS_MIN_LIMIT)
		selector_fault(e, EXC_TS, tss);
	base = (uint32_t)tr.base;
	if (why == TASK_IRET)
		flags &= ~(uint32_t)FLAG_NT;
	/* All reads of the new TSS first: they may fault in the old task. */
	cr3 = (uint32_t)linear_read(e, base + TSS_CR3, 4, ACCESS_SYSTEM);
	rip = (uint32_t)linear_read(e, base + TSS_EIP, 4, ACCESS_SYSTEM);
	new_flags = (uint32_t)linear_read(e, base + TSS_EFLAGS, 4, ACCESS_SYSTEM);
	for (unsigned n = 0; n < 8; n++)
		gpr[n] = (uint32_t)linear_read(e, base + TSS_EAX + n * 4, 4, ACCESS_SYSTEM);
	for (unsigned n = 0; n < SEG_COUNT; n++)
		selectors[n] = (uint16_t)linear_read(e, base + TSS_ES + n * 4, 2, ACCESS_SYSTEM);
	ldt = (uint16_t)linear_read(e, base + TSS_LDT, 2, ACCESS_SYSTEM);
	trap = (uint32_t)linear_read(e, base + TSS_TRAP, 2, ACCESS_SYSTEM) & 1;
	save_old_task(e, flags);
	if (why == TASK_CALL || why == TASK_INT)
		linear_write(e, base + TSS_LINK, 2, old_selector, ACCESS_WRITE | ACCESS_SYSTEM);
	if ((why == TASK_JMP || why == TASK_IRET) && descriptor_read(e, old_selector, &old))
		descriptor_set_type_bits(e, &old, 0, 2);
	if (why != TASK_IRET)
		descriptor_set_type_bits(e, &d, 2, 0);

	/* The switch is committed: from here faults belong to the new task. */
	tr.ar |= 2;
	cpu->tr = tr;
	cpu->cr0 |= CR0_TS;
	if (cpu->cr0 & CR0_PG)
		system_set_cr3(e, cr3);
	for (unsigned n = 0; n < 8; n++)
		cpu->gpr[n] = gpr[n];
	cpu->gpr[GPR_RIP] = rip;
	e->insn_rip = rip;
	cpu->rflags = (new_flags & 0x3f7fd5) | FLAG_FIXED | (why == TASK_CALL || why == TASK_INT ? FLAG_NT : 0);
	cpu->dr7 &= ~0x155ull;
	for (unsigned n = 0; n < SEG_COUNT; n++)
		cpu->seg[n].selector = selectors[n];
	segment_set_null(&cpu->ldtr, ldt, 0);
	if (ldt & ~3u) {
		if ((ldt & 4) || !descriptor_read(e, ldt, &d) || (d.hi & DESC_S) || desc_type(&d) != SYS_LDT || !(d.hi & DESC_P))
			selector_fault(e, EXC_TS, ldt);
		segment_set(&cpu->ldtr, ldt, &d);
	}
	load_task_segments(e, selectors);
	if (has_error)
		stack_push(e, 4, error);
	if (trap)
		cpu->pending_dr6 |= DR6_BT;
	engine_update_mode(e);
}
