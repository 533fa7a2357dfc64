/*
 * SYSCALL, SYSRET, SYSENTER, SYSEXIT (SDM vol. 2; APM vol. 3). The vendors differ: AMD has SYSCALL in compatibility and
 * legacy mode and no SYSENTER in long mode, Intel the other way round; SYSRET checks RCX at CPL 0 on Intel only.
 *
 * TF for these is looked at when they end (e->stepping), so that a kernel can mask it by SFMASK.
 */
#include "engine/decode.h"
#include "engine/system.h"

static void set_flat(struct engine *e, unsigned seg, uint16_t selector, uint32_t ar)
{
	e->cpu->seg[seg] = (struct cpu_segment){ .selector = selector, .ar = ar, .limit = 0xffffffff };
}

/* ar: G, P, S and accessed code or data, with DPL; 64-bit code has L, other D/B. */
static void set_flat_pair(struct engine *e, uint16_t cs, uint16_t ss, unsigned dpl, bool is_64)
{
	set_flat(e, SEG_CS, cs, (is_64 ? 0xa09b : 0xc09b) | dpl << SEG_AR_DPL_SHIFT);
	set_flat(e, SEG_SS, ss, 0xc093 | dpl << SEG_AR_DPL_SHIFT);
}

static void finish(struct engine *e)
{
	e->stepping = (e->cpu->rflags & FLAG_TF) != 0;
	engine_update_mode(e);
}

void op_syscall(struct engine *e, const struct insn *i)
{
	struct cpu_state *cpu = e->cpu;
	uint16_t cs = (uint16_t)(cpu->star >> 32 & 0xfffc);

	e->stats->emul_syscall++;
	if (!(cpu->efer & EFER_SCE) || (e->mode != MODE_64 && !decode_is_amd(e)) || !(cpu->cr0 & CR0_PE))
		engine_raise(e, EXC_UD);
	if (is_long_mode(e)) {
		cpu->gpr[GPR_RCX] = cpu->gpr[GPR_RIP];
		cpu->gpr[GPR_R11] = cpu->rflags & ~FLAG_RF;
		cpu->gpr[GPR_RIP] = e->mode == MODE_64 ? cpu->lstar : cpu->cstar;
		cpu->rflags = (cpu->rflags & ~cpu->sfmask & ~(FLAG_RF | FLAG_VM)) | FLAG_FIXED;
		set_flat_pair(e, cs, (uint16_t)(cs + 8), 0, true);
	} else {
		cpu->gpr[GPR_RCX] = (uint32_t)cpu->gpr[GPR_RIP];
		cpu->gpr[GPR_RIP] = (uint32_t)cpu->star;
		cpu->rflags &= ~(FLAG_IF | FLAG_RF | FLAG_VM);
		set_flat_pair(e, cs, (uint16_t)(cs + 8), 0, false);
	}
	finish(e);
}

void op_sysret(struct engine *e, const struct insn *i)
{
	struct cpu_state *cpu = e->cpu;
	uint16_t base = (uint16_t)(cpu->star >> 48);
	struct cpu_segment ss = cpu->seg[SEG_SS];
	bool to_64 = i->opsize == 8;

	e->stats->emul_sysret++;
	if (!(cpu->efer & EFER_SCE) || (e->mode != MODE_64 && !decode_is_amd(e)))
		engine_raise(e, EXC_UD);
	if (!(cpu->cr0 & CR0_PE) || e->cpl)
		engine_raise_error(e, EXC_GP, 0);
	if (to_64 && !decode_is_amd(e) && !is_canonical(cpu->gpr[GPR_RCX]))
		engine_raise_error(e, EXC_GP, 0);
	cpu->gpr[GPR_RIP] = to_64 ? cpu->gpr[GPR_RCX] : (uint32_t)cpu->gpr[GPR_RCX];
	if (is_long_mode(e))
		cpu->rflags = (cpu->gpr[GPR_R11] & 0x3c7fd7) | FLAG_FIXED;
	else
		cpu->rflags |= FLAG_IF;
	set_flat_pair(e, (uint16_t)((base + (to_64 ? 16 : 0)) | 3), (uint16_t)((base + 8) | 3), 3, to_64);
	if (decode_is_amd(e)) { /* only the selector is set (APM vol. 3); the DPL is our CPL */
		ss.selector = cpu->seg[SEG_SS].selector;
		ss.ar |= SEG_AR_DPL;
		cpu->seg[SEG_SS] = ss;
	}
	finish(e);
}

void op_sysenter(struct engine *e, const struct insn *i)
{
	struct cpu_state *cpu = e->cpu;
	uint16_t cs = (uint16_t)(cpu->sysenter_cs & 0xfffc);
	bool is_64 = is_long_mode(e);

	e->stats->emul_syscall++;
	if (is_64 && decode_is_amd(e))
		engine_raise(e, EXC_UD);
	if (!(cpu->cr0 & CR0_PE) || !cs)
		engine_raise_error(e, EXC_GP, 0);
	cpu->rflags &= ~(FLAG_VM | FLAG_IF | FLAG_RF);
	cpu->gpr[GPR_RSP] = is_64 ? cpu->sysenter_esp : (uint32_t)cpu->sysenter_esp;
	cpu->gpr[GPR_RIP] = is_64 ? cpu->sysenter_eip : (uint32_t)cpu->sysenter_eip;
	set_flat_pair(e, cs, (uint16_t)(cs + 8), 0, is_64);
	engine_update_mode(e);
}

void op_sysexit(struct engine *e, const struct insn *i)
{
	struct cpu_state *cpu = e->cpu;
	uint16_t cs = (uint16_t)(cpu->sysenter_cs & 0xfffc);
	bool to_64 = i->opsize == 8;

	e->stats->emul_sysret++;
	if (is_long_mode(e) && decode_is_amd(e))
		engine_raise(e, EXC_UD);
	if (!(cpu->cr0 & CR0_PE) || !cs || e->cpl)
		engine_raise_error(e, EXC_GP, 0);
	if (to_64 && (!is_canonical(cpu->gpr[GPR_RDX]) || !is_canonical(cpu->gpr[GPR_RCX])))
		engine_raise_error(e, EXC_GP, 0);
	cpu->gpr[GPR_RIP] = to_64 ? cpu->gpr[GPR_RDX] : (uint32_t)cpu->gpr[GPR_RDX];
	cpu->gpr[GPR_RSP] = to_64 ? cpu->gpr[GPR_RCX] : (uint32_t)cpu->gpr[GPR_RCX];
	set_flat_pair(e, (uint16_t)((cs + (to_64 ? 32 : 16)) | 3), (uint16_t)((cs + (to_64 ? 40 : 24)) | 3), 3, to_64);
	engine_update_mode(e);
}
