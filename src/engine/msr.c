/*
 * RDMSR and WRMSR (SDM vol. 4). What carries state is here or in the local APIC; what an operating system touches for a
 * vendor's sake is answered by cpu_msr_constant()/cpu_msr_ignored(); everything else is #GP.
 */
#include "engine/system.h"

uint64_t engine_guest_tsc(struct engine *e)
{
	return __builtin_ia32_rdtsc() + e->cpu->tsc_offset;
}

static uint64_t *plain_msr(struct engine *e, uint32_t msr)
{
	struct cpu_state *cpu = e->cpu;

	switch (msr) {
	case MSR_SYSENTER_CS:
		return &cpu->sysenter_cs;
	case MSR_SYSENTER_ESP:
		return &cpu->sysenter_esp;
	case MSR_SYSENTER_EIP:
		return &cpu->sysenter_eip;
	case MSR_STAR:
		return &cpu->star;
	case MSR_LSTAR:
		return &cpu->lstar;
	case MSR_CSTAR:
		return &cpu->cstar;
	case MSR_SFMASK:
		return &cpu->sfmask;
	case MSR_FS_BASE:
		return &cpu->seg[SEG_FS].base;
	case MSR_GS_BASE:
		return &cpu->seg[SEG_GS].base;
	case MSR_KERNEL_GS_BASE:
		return &cpu->kernel_gs_base;
	case MSR_TSC_AUX:
		return &cpu->tsc_aux;
	case MSR_MISC_ENABLE:
		return &cpu->misc_enable;
	case MSR_SPEC_CTRL:
		return &cpu->spec_ctrl;
	case MSR_PAT:
		return &cpu->pat;
	case MSR_PV_WALL_CLOCK:
		return &cpu->pv_wall_clock;
	case MSR_PV_SYSTEM_TIME:
		return &cpu->pv_system_time;
	case MSR_MTRR_DEF_TYPE:
		return &cpu->mtrr_def_type;
	case 0x250:
		return &cpu->mtrr_fixed[0];
	case 0x258:
	case 0x259:
		return &cpu->mtrr_fixed[1 + msr - 0x258];
	default:
		if (msr >= 0x268 && msr <= 0x26f)
			return &cpu->mtrr_fixed[3 + msr - 0x268];
		if (msr >= MSR_MTRR_PHYSBASE0 && msr < MSR_MTRR_PHYSBASE0 + 16)
			return &cpu->mtrr_var[msr - MSR_MTRR_PHYSBASE0];
		return NULL;
	}
}

static bool is_lapic_msr(uint32_t msr)
{
	return msr == MSR_TSC_DEADLINE || (msr >= MSR_X2APIC && msr < MSR_X2APIC + 0x100);
}

/* SPEC_CTRL and PRED_CMD are there with their bits of leaf 7 only, and the model gives those to Intel alone. */
static bool is_absent(const struct engine *e, uint32_t msr)
{
	return (msr == MSR_SPEC_CTRL || msr == MSR_PRED_CMD) && cpu_model_is_amd(&e->block->model);
}

static bool msr_read(struct engine *e, uint32_t msr, uint64_t *value)
{
	const uint64_t *plain = plain_msr(e, msr);

	if (is_absent(e, msr))
		return false;
	if (plain) {
		*value = *plain;
		return true;
	}
	if (is_lapic_msr(msr))
		return lapic_msr_read(e, msr, value);
	switch (msr) {
	case MSR_TSC:
		*value = engine_guest_tsc(e);
		return true;
	case MSR_TSC_ADJUST:
		*value = e->cpu->tsc_adjust;
		return true;
	case MSR_APIC_BASE:
		*value = e->block->lapic.apic_base;
		return true;
	case MSR_EFER:
		*value = e->cpu->efer;
		return true;
	case MSR_MTRRCAP:
		*value = 0x508; /* 8 variable ranges, fixed ranges, WC */
		return true;
	case MSR_ARCH_CAPABILITIES:
		if (cpu_model_has(&e->block->model, CPU_FEATURE_ARCH_CAPABILITIES)) {
			*value = cpu_arch_capabilities(&e->block->model);
			return true;
		}
		return false;
	default:
		return cpu_msr_constant(&e->block->model, msr, value);
	}
}

static bool set_efer(struct engine *e, uint64_t value)
{
	struct cpu_state *cpu = e->cpu;
	uint64_t changed;

	value = (value & ~EFER_LMA) | (cpu->efer & EFER_LMA);
	if (value & ~(cpu_efer_allowed(&e->block->model) | EFER_LMA))
		return false;
	changed = value ^ cpu->efer;
	if ((changed & EFER_LME) && (cpu->cr0 & CR0_PG))
		return false;
	cpu->efer = value;
	if (changed & EFER_NXE)
		mmu_flush_all(e);
	if (changed & EFER_SCE)
		engine_invalidate_all(e);
	engine_update_mode(e);
	return true;
}

static bool is_pat_valid(uint64_t value)
{
	for (unsigned n = 0; n < 64; n += 8) {
		unsigned type = value >> n & 0xff;

		if (type > 7 || type == 2 || type == 3)
			return false;
	}
	return true;
}

static bool is_mtrr_valid(const struct engine *e, uint32_t msr, uint64_t value)
{
	if (msr == MSR_MTRR_DEF_TYPE)
		return !(value & ~0xcffull) && (value & 0xff) <= 6;
	if (msr >= 0x250 && msr <= 0x26f) {
		for (unsigned n = 0; n < 64; n += 8)
			if ((value >> n & 0xff) > 6 || (value >> n & 0xff) == 2 || (value >> n & 0xff) == 3)
				return false;
	}
	return true;
}

static bool msr_write(struct engine *e, uint32_t msr, uint64_t value)
{
	struct cpu_state *cpu = e->cpu;
	uint64_t *plain = plain_msr(e, msr);

	if (is_absent(e, msr))
		return false;
	if (is_lapic_msr(msr)) {
		e->attention = true;
		return lapic_msr_write(e, msr, value);
	}
	switch (msr) {
	case MSR_TSC:
		value -= engine_guest_tsc(e);
		cpu->tsc_offset += value;
		cpu->tsc_adjust += value;
		pvclock_update(e);
		return true;
	case MSR_TSC_ADJUST:
		cpu->tsc_offset += value - cpu->tsc_adjust;
		cpu->tsc_adjust = value;
		pvclock_update(e);
		return true;
	case MSR_PV_WALL_CLOCK:
		cpu->pv_wall_clock = value;
		pvclock_write_wall(e);
		return true;
	case MSR_PV_SYSTEM_TIME:
		cpu->pv_system_time = value;
		pvclock_update(e);
		return true;
	case MSR_APIC_BASE:
		e->attention = true;
		return lapic_set_base(e, value);
	case MSR_EFER:
		return set_efer(e, value);
	case MSR_PRED_CMD:
		return !(value & ~1ull);
	case MSR_MTRRCAP:
	case MSR_ARCH_CAPABILITIES:
		return false;
	case MSR_FS_BASE:
	case MSR_GS_BASE:
	case MSR_KERNEL_GS_BASE:
	case MSR_LSTAR:
	case MSR_CSTAR:
	case MSR_SYSENTER_ESP:
	case MSR_SYSENTER_EIP:
		if (!is_canonical(value))
			return false;
		break;
	case MSR_SFMASK:
	case MSR_TSC_AUX:
		if (value >> 32)
			return false;
		break;
	case MSR_SYSENTER_CS:
		value = (uint32_t)value;
		break;
	case MSR_PAT:
		if (!is_pat_valid(value))
			return false;
		break;
	case MSR_SPEC_CTRL:
		if (value & ~7ull)
			return false;
		break;
	default:
		if (plain && !is_mtrr_valid(e, msr, value))
			return false;
	}
	if (!plain)
		return cpu_msr_ignored(&e->block->model, msr);
	/* SYSCALL and SYSRET are translated for these. */
	if ((msr == MSR_STAR || msr == MSR_SFMASK) && *plain != value)
		engine_invalidate_all(e);
	*plain = value;
	return true;
}

void op_rdmsr(struct engine *e, const struct insn *i)
{
	uint64_t value = 0;

	e->stats->emul_msr_read++;
	require_cpl0(e);
	if (!msr_read(e, (uint32_t)e->cpu->gpr[GPR_RCX], &value))
		engine_raise_error(e, EXC_GP, 0);
	e->cpu->gpr[GPR_RAX] = (uint32_t)value;
	e->cpu->gpr[GPR_RDX] = value >> 32;
}

void op_wrmsr(struct engine *e, const struct insn *i)
{
	const uint64_t *gpr = e->cpu->gpr;

	e->stats->emul_msr_write++;
	require_cpl0(e);
	if (!msr_write(e, (uint32_t)gpr[GPR_RCX], (uint32_t)gpr[GPR_RAX] | gpr[GPR_RDX] << 32))
		engine_raise_error(e, EXC_GP, 0);
	e->leave_block = true;
}
