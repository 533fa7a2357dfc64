/*
 * Virtual-8086 mode extensions and protected-mode virtual interrupts (SDM vol. 3, 21.3.3, 21.4): with CR4.VME or CR4.PVI,
 * CLI and STI of code that may not touch IF act on VIF instead; PUSHF, POPF and IRET of 16 bits show VIF as IF, and INT n
 * goes straight to the 8086 program's own handler where the TSS's redirection map has a 0.
 */
#include "engine/segment.h"
#include "engine/vme.h"

#define TSS_IO_MAP 102

bool vme_takes_if(const struct engine *e)
{
	const struct cpu_state *cpu = e->cpu;

	return e->cpl == 3 && (cpu->cr4 & (cpu->rflags & FLAG_VM ? CR4_VME : CR4_PVI));
}

bool vme_takes_flags(const struct engine *e, unsigned size)
{
	return size == 2 && (e->cpu->rflags & FLAG_VM) && (e->cpu->cr4 & CR4_VME) && (e->cpu->rflags & FLAG_IOPL) != FLAG_IOPL;
}

void vme_sti(struct engine *e)
{
	if (e->cpu->rflags & FLAG_VIP)
		engine_raise_error(e, EXC_GP, 0);
	e->cpu->rflags |= FLAG_VIF;
}

uint64_t vme_flags_image(const struct engine *e)
{
	uint64_t flags = e->cpu->rflags;

	return (flags & ~(FLAG_VM | FLAG_RF | FLAG_IF)) | FLAG_IOPL | (flags & FLAG_VIF ? FLAG_IF : 0);
}

void vme_check_flags(struct engine *e, uint64_t image)
{
	if ((image & FLAG_TF) || ((image & FLAG_IF) && (e->cpu->rflags & FLAG_VIP)))
		engine_raise_error(e, EXC_GP, 0);
}

void vme_set_flags(struct engine *e, uint64_t image)
{
	const uint64_t mask = FLAGS_STATUS | FLAG_TF | FLAG_DF | FLAG_NT | FLAG_VIF;

	e->cpu->rflags = (e->cpu->rflags & ~(mask | FLAG_RF)) | (image & mask & ~FLAG_VIF) |
		(image & FLAG_IF ? FLAG_VIF : 0) | FLAG_FIXED;
}

/* The 32 bytes below the I/O permission map: a 0 lets the 8086 program's handler have the interrupt. */
static bool redirected(struct engine *e, uint8_t vector)
{
	const struct cpu_segment *tr = &e->cpu->tr;
	uint32_t at;

	if ((tr->ar & SEG_AR_UNUSABLE) || (tr->ar & 0xd) != 9 || tr->limit < TSS_IO_MAP + 1)
		return false;
	at = (uint32_t)linear_read(e, (uint32_t)tr->base + TSS_IO_MAP, 2, ACCESS_SYSTEM) - 32 + vector / 8;
	if (at > tr->limit)
		engine_raise_error(e, EXC_GP, 0);
	return !(linear_read(e, (uint32_t)tr->base + at, 1, ACCESS_SYSTEM) >> (vector & 7) & 1);
}

bool vme_int(struct engine *e, uint8_t vector)
{
	struct cpu_state *cpu = e->cpu;
	bool virtual_if = (cpu->rflags & FLAG_IOPL) != FLAG_IOPL;
	struct new_stack s = { .ss = &cpu->seg[SEG_SS], .sp = cpu->gpr[GPR_RSP] };
	uint64_t flags = cpu->rflags;
	uint32_t entry;

	if (!(flags & FLAG_VM) || !(cpu->cr4 & CR4_VME) || !redirected(e, vector))
		return false;
	entry = (uint32_t)linear_read(e, vector * 4u, 4, ACCESS_READ);
	new_stack_push(e, &s, 2, (virtual_if ? vme_flags_image(e) : flags) & 0xffff);
	new_stack_push(e, &s, 2, cpu->seg[SEG_CS].selector);
	new_stack_push(e, &s, 2, cpu->gpr[GPR_RIP] & 0xffff);
	stack_pointer_set(e, s.sp);
	cpu->rflags = flags & ~(FLAG_TF | FLAG_RF | (virtual_if ? FLAG_VIF : FLAG_IF));
	segment_set_paragraph(e, SEG_CS, (uint16_t)(entry >> 16));
	cpu->gpr[GPR_RIP] = entry & 0xffff;
	e->stats->interrupts_software++;
	e->stepping = false;
	e->leave_block = true;
	engine_update_mode(e);
	return true;
}
