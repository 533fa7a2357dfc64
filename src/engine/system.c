/*
 * System instructions (SDM vol. 3, 2.8; vol. 2): control registers, flags, interrupts by software, CPUID, time, port
 * I/O, cache and TLB maintenance; and the table that finds all of them.
 */
#include "engine/decode.h"
#include "engine/shadow.h"
#include "engine/system.h"
#include "engine/vme.h"

/* --- control registers --- */

#define CR0_KNOWN (CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG)

static uint64_t address_mask(const struct engine *e)
{
	unsigned bits = e->block->model.phys_bits;

	return (1ull << (bits >= 32 && bits <= 52 ? bits : 40)) - 1;
}

/*
 * The four page directory pointers of PAE paging are registers, loaded with CR3 (SDM vol. 3, 4.4.1): later changes in memory
 * do not count. #GP, and nothing changed, if one has reserved bits set.
 */
static void load_pdptes(struct engine *e, uint64_t cr3)
{
	uint64_t pdpte[4];

	for (unsigned n = 0; n < 4; n++) {
		uint64_t offset = ram_offset(e, (cr3 & 0xffffffe0ull) + n * 8, NULL);

		pdpte[n] = offset == ~0ull ? 0 : host_load((uint64_t)(uintptr_t)e->ram + offset, 8);
		if ((pdpte[n] & PTE_P) && (pdpte[n] & (~address_mask(e) | 0x1e6ull)))
			engine_raise_error(e, EXC_GP, 0);
	}
	memcpy(e->cpu->pdpte, pdpte, sizeof(pdpte));
}

/* PAE paging outside of long mode. */
static bool uses_pdptes(uint64_t cr0, uint64_t cr4, uint64_t efer)
{
	return (cr0 & CR0_PG) && (cr4 & CR4_PAE) && !(efer & EFER_LME);
}

void system_set_cr0(struct engine *e, uint64_t value)
{
	struct cpu_state *cpu = e->cpu;
	uint64_t changed;

	if ((value >> 32) || ((value & CR0_PG) && !(value & CR0_PE)) || ((value & CR0_NW) && !(value & CR0_CD)))
		engine_raise_error(e, EXC_GP, 0);
	value = (value & CR0_KNOWN) | CR0_ET;
	changed = value ^ cpu->cr0;
	if ((changed & CR0_PG) && (value & CR0_PG)) {
		if (cpu->efer & EFER_LME) {
			if (!(cpu->cr4 & CR4_PAE) || (cpu->seg[SEG_CS].ar & SEG_AR_L))
				engine_raise_error(e, EXC_GP, 0);
			cpu->efer |= EFER_LMA;
		}
	} else if (changed & CR0_PG) {
		if (e->mode == MODE_64 || (cpu->cr4 & CR4_PCIDE))
			engine_raise_error(e, EXC_GP, 0);
		cpu->efer &= ~EFER_LMA;
	}
	if ((changed & (CR0_PG | CR0_CD | CR0_NW)) && uses_pdptes(value, cpu->cr4, cpu->efer))
		load_pdptes(e, cpu->cr3);
	cpu->cr0 = value;
	if (changed & (CR0_PG | CR0_WP | CR0_PE))
		mmu_flush_all(e);
	engine_update_mode(e);
}

void system_set_cr3(struct engine *e, uint64_t value)
{
	struct cpu_state *cpu = e->cpu;
	bool keep = false;

	if (is_long_mode(e)) {
		if (cpu->cr4 & CR4_PCIDE) {
			keep = (value & CR3_NOFLUSH) != 0;
			value &= ~CR3_NOFLUSH;
		}
		if (value & ~address_mask(e))
			engine_raise_error(e, EXC_GP, 0);
	} else if (uses_pdptes(cpu->cr0, cpu->cr4, cpu->efer)) {
		load_pdptes(e, value);
	}
	cpu->cr3 = value;
	mmu_set_root(e, keep);
	e->leave_block = true;
}

void system_set_cr4(struct engine *e, uint64_t value)
{
	struct cpu_state *cpu = e->cpu;
	uint64_t changed = value ^ cpu->cr4;

	if (value & ~cpu_cr4_allowed(&e->block->model))
		engine_raise_error(e, EXC_GP, 0);
	if (is_long_mode(e) && !(value & CR4_PAE))
		engine_raise_error(e, EXC_GP, 0);
	if ((changed & CR4_PCIDE) && (value & CR4_PCIDE) && (!is_long_mode(e) || (cpu->cr3 & CR3_PCID)))
		engine_raise_error(e, EXC_GP, 0);
	if ((changed & (CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP)) && uses_pdptes(cpu->cr0, value, cpu->efer))
		load_pdptes(e, cpu->cr3);
	cpu->cr4 = value;
	if (changed & (CR4_PSE | CR4_PAE | CR4_PGE | CR4_PCIDE | CR4_SMEP | CR4_SMAP))
		mmu_flush_all(e);
	/* Translated code has RDTSC and the like inline or not. */
	if (changed & (CR4_TSD | CR4_FSGSBASE))
		engine_invalidate_all(e);
	engine_update_mode(e);
}

static void op_mov_from_cr(struct engine *e, const struct insn *i)
{
	const struct cpu_state *cpu = e->cpu;
	uint64_t value;

	e->stats->emul_cr_read++;
	if (i->cc != 0 && i->cc != 2 && i->cc != 3 && i->cc != 4 && i->cc != 8)
		engine_raise(e, EXC_UD);
	require_cpl0(e);
	value = i->cc == 0 ? cpu->cr0 : i->cc == 2 ? cpu->cr2 : i->cc == 3 ? cpu->cr3 : i->cc == 4 ? cpu->cr4 : lapic_get_tpr(e);
	e->cpu->gpr[i->rm] = e->mode == MODE_64 ? value : (uint32_t)value;
}

static void op_mov_to_cr(struct engine *e, const struct insn *i)
{
	uint64_t value = e->mode == MODE_64 ? e->cpu->gpr[i->rm] : (uint32_t)e->cpu->gpr[i->rm];

	if (i->cc == 3)
		e->stats->emul_cr3_write++;
	else
		e->stats->emul_cr_write++;
	if (i->cc != 0 && i->cc != 2 && i->cc != 3 && i->cc != 4 && i->cc != 8)
		engine_raise(e, EXC_UD);
	require_cpl0(e);
	switch (i->cc) {
	case 0:
		system_set_cr0(e, value);
		break;
	case 2:
		e->cpu->cr2 = value;
		break;
	case 3:
		system_set_cr3(e, value);
		break;
	case 4:
		system_set_cr4(e, value);
		break;
	default:
		if (value >> 4)
			engine_raise_error(e, EXC_GP, 0);
		lapic_set_tpr(e, value);
		e->attention = true;
		e->leave_block = true;
	}
}

static void op_clts(struct engine *e, const struct insn *i)
{
	e->stats->emul_cr_write++;
	require_cpl0(e);
	e->cpu->cr0 &= ~CR0_TS;
	e->leave_block = true;
}

static void op_lmsw(struct engine *e, const struct insn *i)
{
	uint16_t value;

	e->stats->emul_cr_write++;
	require_cpl0(e);
	value = i->flags & INSN_MEM ? (uint16_t)insn_load(e, i, 2) : (uint16_t)e->cpu->gpr[i->rm];
	/* PE can be set but not cleared. */
	system_set_cr0(e, (e->cpu->cr0 & ~0xeull) | (value & 0xf));
}

static void op_smsw(struct engine *e, const struct insn *i)
{
	e->stats->emul_descriptor++;
	if (e->cpl && (e->cpu->cr4 & CR4_UMIP))
		engine_raise_error(e, EXC_GP, 0);
	if (i->flags & INSN_MEM)
		insn_store(e, i, 2, e->cpu->cr0 & 0xffff);
	else
		gpr_set(e, i->rm, i->opsize, e->cpu->cr0);
}

/* --- TLB and caches --- */

static void op_invlpg(struct engine *e, const struct insn *i)
{
	uint64_t gva;

	e->stats->emul_invlpg++;
	require_cpl0(e);
	gva = insn_offset(e, i);
	if (e->mode == MODE_64)
		gva += i->seg >= SEG_FS ? e->cpu->seg[i->seg].base : 0;
	else
		gva = (uint32_t)(gva + e->cpu->seg[i->seg].base);
	if (is_canonical(gva))
		mmu_flush_page(e, gva);
	e->leave_block = true;
}

static void op_invpcid(struct engine *e, const struct insn *i)
{
	uint64_t type = e->mode == MODE_64 ? e->cpu->gpr[i->reg] : (uint32_t)e->cpu->gpr[i->reg], d[2];

	e->stats->emul_invlpg++;
	if (!cpu_model_has(&e->block->model, CPU_FEATURE_INVPCID))
		engine_raise(e, EXC_UD);
	require_cpl0(e);
	linear_read_bytes(e, insn_linear(e, i, 16, ACCESS_READ), d, 16, ACCESS_READ);
	if (type > 3 || (d[0] >> 12) || (type < 2 && d[0] && !(e->cpu->cr4 & CR4_PCIDE)) || (type == 0 && !is_canonical(d[1])))
		engine_raise_error(e, EXC_GP, 0);
	/* The TLB has the current PCID's translations only: for another one there is nothing to drop. */
	if (type == 2)
		mmu_flush_all(e);
	else if (type == 3)
		mmu_flush_nonglobal(e);
	else if (d[0] == (e->cpu->cr3 & (e->cpu->cr4 & CR4_PCIDE ? CR3_PCID : 0)))
		type == 0 ? mmu_flush_page(e, d[1]) : mmu_flush_nonglobal(e);
	else
		mmu_flush_other_pcid(e);
	e->leave_block = true;
}

static void op_wbinvd(struct engine *e, const struct insn *i)
{
	require_cpl0(e);
}

static void op_nop(struct engine *e, const struct insn *i)
{
}

static void op_fence(struct engine *e, const struct insn *i)
{
	atomic_thread_fence(memory_order_seq_cst);
}

static void op_clflush(struct engine *e, const struct insn *i)
{
	uint64_t gva = insn_linear(e, i, 1, ACCESS_READ), gpa = 0;

	mmu_resolve(e, gva, 1, ACCESS_READ, mmu_array(e, ACCESS_READ), &gpa);
}

/* --- flags --- */

static unsigned iopl(const struct engine *e)
{
	return (unsigned)((e->cpu->rflags & FLAG_IOPL) >> FLAG_IOPL_SHIFT);
}

static void op_cli(struct engine *e, const struct insn *i)
{
	e->stats->emul_cli_sti++;
	if ((e->cpu->cr0 & CR0_PE) && e->cpl > iopl(e)) {
		if (!vme_takes_if(e))
			engine_raise_error(e, EXC_GP, 0);
		e->cpu->rflags &= ~FLAG_VIF;
		return;
	}
	e->cpu->rflags &= ~FLAG_IF;
}

static void op_sti(struct engine *e, const struct insn *i)
{
	e->stats->emul_cli_sti++;
	if ((e->cpu->cr0 & CR0_PE) && e->cpl > iopl(e)) {
		if (!vme_takes_if(e))
			engine_raise_error(e, EXC_GP, 0);
		vme_sti(e);
		return;
	}
	if (!(e->cpu->rflags & FLAG_IF)) {
		e->cpu->rflags |= FLAG_IF;
		e->cpu->shadow_sti = 1;
		e->leave_block = true;
	}
}

static void op_clac_stac(struct engine *e, const struct insn *i)
{
	if (!cpu_model_has(&e->block->model, CPU_FEATURE_SMAP) || e->cpl)
		engine_raise(e, EXC_UD);
	if (i->mnemonic == ZYDIS_MNEMONIC_STAC)
		e->cpu->rflags |= FLAG_AC;
	else
		e->cpu->rflags &= ~FLAG_AC;
	engine_update_mode(e);
}

static void check_v86_iopl(struct engine *e)
{
	if ((e->cpu->rflags & FLAG_VM) && iopl(e) < 3)
		engine_raise_error(e, EXC_GP, 0);
}

static unsigned flags_size(const struct insn *i)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_PUSHFQ:
	case ZYDIS_MNEMONIC_POPFQ:
		return 8;
	case ZYDIS_MNEMONIC_PUSHFD:
	case ZYDIS_MNEMONIC_POPFD:
		return 4;
	default:
		return 2;
	}
}

static void op_pushf(struct engine *e, const struct insn *i)
{
	e->stats->emul_pushf_popf++;
	if (vme_takes_flags(e, flags_size(i))) {
		stack_push(e, 2, vme_flags_image(e));
		return;
	}
	check_v86_iopl(e);
	stack_push(e, flags_size(i), e->cpu->rflags & ~(FLAG_VM | FLAG_RF));
}

static void op_popf(struct engine *e, const struct insn *i)
{
	unsigned size = flags_size(i);
	uint64_t mask = FLAGS_STATUS | FLAG_TF | FLAG_DF | FLAG_NT, image, old = e->cpu->rflags;
	bool real = !(e->cpu->cr0 & CR0_PE);

	e->stats->emul_pushf_popf++;
	if (vme_takes_flags(e, size)) {
		image = stack_peek(e, 0, size);
		vme_check_flags(e, image);
		stack_move(e, size);
		vme_set_flags(e, image);
		return;
	}
	check_v86_iopl(e);
	image = stack_pop(e, size);
	if (size > 2)
		mask |= FLAG_AC | FLAG_ID;
	if (real || e->cpl == 0)
		mask |= FLAG_IOPL | FLAG_IF;
	else if (e->cpl <= iopl(e))
		mask |= FLAG_IF;
	if (old & FLAG_VM)
		mask = (mask | FLAG_IF) & ~FLAG_IOPL;
	e->cpu->rflags = (old & ~mask & ~FLAG_RF) | (image & mask) | FLAG_FIXED;
	if ((old ^ e->cpu->rflags) & FLAG_AC)
		engine_update_mode(e);
	else if ((old ^ e->cpu->rflags) & (FLAG_IF | FLAG_TF))
		e->leave_block = true;
}

/* --- interrupts by software --- */

static void op_int(struct engine *e, const struct insn *i)
{
	if (vme_int(e, (uint8_t)i->imm))
		return;
	check_v86_iopl(e);
	exception_deliver(e, (uint8_t)i->imm, DELIVER_SOFTWARE, false, 0);
}

static void op_int3(struct engine *e, const struct insn *i)
{
	e->stats->faults_breakpoint++;
	exception_deliver(e, EXC_BP, DELIVER_SOFTWARE, false, 0);
}

static void op_into(struct engine *e, const struct insn *i)
{
	if (e->cpu->rflags & FLAG_OF)
		exception_deliver(e, EXC_OF, DELIVER_SOFTWARE, false, 0);
}

/* One #DB, with the data breakpoints that MOV SS before it has held back: a second would come on the handler's stack. */
static void op_int1(struct engine *e, const struct insn *i)
{
	struct cpu_state *cpu = e->cpu;

	e->stepping = false;
	if (cpu->pending_dr6) {
		cpu->dr6 = (cpu->dr6 & ~0xfull) | DR6_FIXED | cpu->pending_dr6;
		cpu->pending_dr6 = 0;
	}
	e->delivering = true;
	exception_deliver(e, EXC_DB, DELIVER_ICEBP, false, 0);
	e->delivering = false;
}

static void op_bound(struct engine *e, const struct insn *i)
{
	uint64_t gva = insn_linear(e, i, i->opsize * 2u, ACCESS_READ);
	uint64_t low = linear_read(e, gva, i->opsize, ACCESS_READ);
	uint64_t high = linear_read(e, gva + i->opsize, i->opsize, ACCESS_READ), index = e->cpu->gpr[i->reg];

	if (i->opsize == 2 ? (int16_t)index < (int16_t)low || (int16_t)index > (int16_t)high :
			     (int32_t)index < (int32_t)low || (int32_t)index > (int32_t)high)
		engine_raise(e, EXC_BR);
}

static void op_hlt(struct engine *e, const struct insn *i)
{
	e->stats->emul_hlt++;
	require_cpl0(e);
	e->cpu->activity = CPU_HALTED;
	e->leave_block = true;
}

/* --- CPUID and time --- */

static void op_cpuid(struct engine *e, const struct insn *i)
{
	uint64_t *gpr = e->cpu->gpr;
	uint32_t leaf = (uint32_t)gpr[GPR_RAX], out[4];

	e->stats->emul_cpuid++;
	cpu_cpuid(&e->block->model, e->cpu, leaf, (uint32_t)gpr[GPR_RCX], out);
	if ((leaf == 1 || leaf == 0x80000001) && !(e->block->lapic.apic_base & APIC_BASE_ENABLE))
		out[3] &= ~(1u << 9); /* APIC (SDM vol. 3, 11.4.3); AMD's copy too */
	gpr[GPR_RAX] = out[0];
	gpr[GPR_RBX] = out[1];
	gpr[GPR_RCX] = out[2];
	gpr[GPR_RDX] = out[3];
}

static void op_rdtsc(struct engine *e, const struct insn *i)
{
	uint64_t *gpr = e->cpu->gpr, tsc;

	e->stats->emul_rdtsc++;
	if (e->cpl && (e->cpu->cr4 & CR4_TSD))
		engine_raise_error(e, EXC_GP, 0);
	tsc = engine_guest_tsc(e);
	gpr[GPR_RAX] = (uint32_t)tsc;
	gpr[GPR_RDX] = tsc >> 32;
	if (i->mnemonic == ZYDIS_MNEMONIC_RDTSCP)
		gpr[GPR_RCX] = (uint32_t)e->cpu->tsc_aux;
}

/* No performance counters are offered. */
static void op_rdpmc(struct engine *e, const struct insn *i)
{
	engine_raise_error(e, EXC_GP, 0);
}

/* --- port I/O --- */

bool io_allowed(struct engine *e, uint16_t port, unsigned size)
{
	const struct cpu_segment *tr = &e->cpu->tr;
	uint32_t map, offset;
	uint64_t bits;

	if (!(e->cpu->cr0 & CR0_PE) || (!(e->cpu->rflags & FLAG_VM) && e->cpl <= iopl(e)))
		return true;
	/* A 32- or 64-bit TSS with the offset of a bitmap at 102 (SDM vol. 1, 19.5.2). */
	if ((tr->ar & SEG_AR_UNUSABLE) || (tr->ar & 0xd) != 9 || tr->limit < 103)
		return false;
	map = (uint32_t)linear_read(e, tr->base + 102, 2, ACCESS_SYSTEM);
	offset = map + port / 8;
	if (offset + 1 > tr->limit)
		return false;
	bits = linear_read(e, tr->base + offset, 2, ACCESS_SYSTEM);
	return !(bits >> (port & 7) & ((1u << size) - 1));
}

uint64_t io_read(struct engine *e, uint16_t port, unsigned size)
{
	e->stats->emul_pio++;
	watch_check_io(e, port, size);
	return e->env.access(e->env.ctx, 0, port, size, false, 0);
}

void io_write(struct engine *e, uint16_t port, unsigned size, uint64_t value)
{
	e->stats->emul_pio++;
	watch_check_io(e, port, size);
	e->env.access(e->env.ctx, 0, port, size, true, size == 4 ? (uint32_t)value : size == 2 ? (uint16_t)value : (uint8_t)value);
}

static void port_in(struct engine *e, const struct insn *i, uint16_t port)
{
	unsigned size = i->opsize > 4 ? 4 : i->opsize;
	uint64_t *rax = &e->cpu->gpr[GPR_RAX], value;

	if (!io_allowed(e, port, size))
		engine_raise_error(e, EXC_GP, 0);
	value = io_read(e, port, size);
	if (size == 4)
		*rax = (uint32_t)value;
	else if (size == 2)
		*rax = (*rax & ~0xffffull) | (uint16_t)value;
	else
		*rax = (*rax & ~0xffull) | (uint8_t)value;
}

static void port_out(struct engine *e, const struct insn *i, uint16_t port)
{
	unsigned size = i->opsize > 4 ? 4 : i->opsize;

	if (!io_allowed(e, port, size))
		engine_raise_error(e, EXC_GP, 0);
	io_write(e, port, size, e->cpu->gpr[GPR_RAX]);
}

static void op_in_imm(struct engine *e, const struct insn *i)
{
	port_in(e, i, i->imm & 0xff);
}

static void op_in_dx(struct engine *e, const struct insn *i)
{
	port_in(e, i, (uint16_t)e->cpu->gpr[GPR_RDX]);
}

static void op_out_imm(struct engine *e, const struct insn *i)
{
	port_out(e, i, i->imm & 0xff);
}

static void op_out_dx(struct engine *e, const struct insn *i)
{
	port_out(e, i, (uint16_t)e->cpu->gpr[GPR_RDX]);
}

/* --- the table --- */

static ZydisRegisterClass class_of(const ZydisDecodedOperand *op)
{
	return op->type == ZYDIS_OPERAND_TYPE_REGISTER ? ZydisRegisterGetClass(op->reg.value) : ZYDIS_REGCLASS_INVALID;
}

static insn_fn mov_handler(const struct decoded *d)
{
	ZydisRegisterClass to = class_of(&d->op[0]), from = class_of(&d->op[1]);

	if (to == ZYDIS_REGCLASS_CONTROL)
		return op_mov_to_cr;
	if (from == ZYDIS_REGCLASS_CONTROL)
		return op_mov_from_cr;
	if (to == ZYDIS_REGCLASS_DEBUG)
		return op_mov_to_dr;
	return from == ZYDIS_REGCLASS_DEBUG ? op_mov_from_dr : NULL;
}

insn_fn system_handler(const struct insn *i, const struct decoded *d)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_MOV:
		return mov_handler(d);
	case ZYDIS_MNEMONIC_CLTS:
		return op_clts;
	case ZYDIS_MNEMONIC_LMSW:
		return op_lmsw;
	case ZYDIS_MNEMONIC_SMSW:
		return op_smsw;
	case ZYDIS_MNEMONIC_INVLPG:
		return op_invlpg;
	case ZYDIS_MNEMONIC_INVPCID:
		return op_invpcid;
	case ZYDIS_MNEMONIC_WBINVD:
	case ZYDIS_MNEMONIC_INVD:
		return op_wbinvd;
	case ZYDIS_MNEMONIC_LFENCE:
	case ZYDIS_MNEMONIC_MFENCE:
	case ZYDIS_MNEMONIC_SFENCE:
		return op_fence;
	case ZYDIS_MNEMONIC_CLFLUSH:
	case ZYDIS_MNEMONIC_CLFLUSHOPT:
	case ZYDIS_MNEMONIC_CLWB:
		return op_clflush;
	case ZYDIS_MNEMONIC_PREFETCH:
	case ZYDIS_MNEMONIC_PREFETCHNTA:
	case ZYDIS_MNEMONIC_PREFETCHT0:
	case ZYDIS_MNEMONIC_PREFETCHT1:
	case ZYDIS_MNEMONIC_PREFETCHT2:
	case ZYDIS_MNEMONIC_PREFETCHW:
	case ZYDIS_MNEMONIC_PREFETCHWT1:
	case ZYDIS_MNEMONIC_NOP:
	case ZYDIS_MNEMONIC_PAUSE:
	case ZYDIS_MNEMONIC_ENDBR32:
	case ZYDIS_MNEMONIC_ENDBR64:
		return op_nop;
	case ZYDIS_MNEMONIC_CLI:
		return op_cli;
	case ZYDIS_MNEMONIC_STI:
		return op_sti;
	case ZYDIS_MNEMONIC_CLAC:
	case ZYDIS_MNEMONIC_STAC:
		return op_clac_stac;
	case ZYDIS_MNEMONIC_PUSHF:
	case ZYDIS_MNEMONIC_PUSHFD:
	case ZYDIS_MNEMONIC_PUSHFQ:
		return op_pushf;
	case ZYDIS_MNEMONIC_POPF:
	case ZYDIS_MNEMONIC_POPFD:
	case ZYDIS_MNEMONIC_POPFQ:
		return op_popf;
	case ZYDIS_MNEMONIC_INT:
		return op_int;
	case ZYDIS_MNEMONIC_INT3:
		return op_int3;
	case ZYDIS_MNEMONIC_INTO:
		return op_into;
	case ZYDIS_MNEMONIC_INT1:
		return op_int1;
	case ZYDIS_MNEMONIC_BOUND:
		return op_bound;
	case ZYDIS_MNEMONIC_HLT:
		return op_hlt;
	case ZYDIS_MNEMONIC_CPUID:
		return op_cpuid;
	case ZYDIS_MNEMONIC_RDTSC:
	case ZYDIS_MNEMONIC_RDTSCP:
		return op_rdtsc;
	case ZYDIS_MNEMONIC_RDPMC:
		return op_rdpmc;
	case ZYDIS_MNEMONIC_RDMSR:
		return op_rdmsr;
	case ZYDIS_MNEMONIC_WRMSR:
		return op_wrmsr;
	case ZYDIS_MNEMONIC_IN:
		return d->op[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? op_in_imm : op_in_dx;
	case ZYDIS_MNEMONIC_OUT:
		return d->op[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? op_out_imm : op_out_dx;
	case ZYDIS_MNEMONIC_SYSCALL:
		return op_syscall;
	case ZYDIS_MNEMONIC_SYSRET:
		return op_sysret;
	case ZYDIS_MNEMONIC_SYSENTER:
		return op_sysenter;
	case ZYDIS_MNEMONIC_SYSEXIT:
		return op_sysexit;
	case ZYDIS_MNEMONIC_XGETBV:
		return op_xgetbv;
	case ZYDIS_MNEMONIC_XSETBV:
		return op_xsetbv;
	case ZYDIS_MNEMONIC_FXSAVE:
	case ZYDIS_MNEMONIC_FXSAVE64:
		return op_fxsave;
	case ZYDIS_MNEMONIC_FXRSTOR:
	case ZYDIS_MNEMONIC_FXRSTOR64:
		return op_fxrstor;
	case ZYDIS_MNEMONIC_XSAVE:
	case ZYDIS_MNEMONIC_XSAVE64:
		return op_xsave;
	case ZYDIS_MNEMONIC_XRSTOR:
	case ZYDIS_MNEMONIC_XRSTOR64:
		return op_xrstor;
	case ZYDIS_MNEMONIC_UD0:
	case ZYDIS_MNEMONIC_UD1:
	case ZYDIS_MNEMONIC_UD2:
	case ZYDIS_MNEMONIC_RSM:
	case ZYDIS_MNEMONIC_VMCALL:
	case ZYDIS_MNEMONIC_VMMCALL:
	case ZYDIS_MNEMONIC_MONITOR:
	case ZYDIS_MNEMONIC_MWAIT:
	case ZYDIS_MNEMONIC_MONITORX:
	case ZYDIS_MNEMONIC_MWAITX:
		return op_undefined;
	default:
		return NULL;
	}
}
