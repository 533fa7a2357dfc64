/*
 * Privileged and sensitive instructions that are frequent enough for code of their own. They work on the virtual state
 * in the vcpu block: the guest's IF and its kin are bits of cpu_state.rflags, which no host flag mirrors.
 *
 *   rflags   | … | ID 21 | AC 18 | RF VM | NT 14 | IOPL 13:12 | OF | DF | IF 9 | TF 8 | SF ZF 0 AF 0 PF 1 CF |
 *
 * OF and the low byte are stale there while translated code runs. Where the host's flags must survive, bits are taken out and put
 * in by PEXT and PDEP.
 */
#include "engine/translate.h"

/* Of RFLAGS: what PUSHF shows besides the status flags, and what POPF at CPL 0 may not change without the interpreter. */
#define VIRTUAL_FLAGS 0x247700u
#define POPF_CAREFUL (VIRTUAL_FLAGS & ~(uint32_t)FLAG_IF)

void translator_set_masks(struct translator *t)
{
	t->hot.mask_if = FLAG_IF;
	t->hot.mask_no_if = ~(uint64_t)FLAG_IF;
	t->hot.mask_virtual = VIRTUAL_FLAGS;
	t->hot.mask_ax = 0x010000ff; /* ax of SETO, LAHF, rotated right by 8: OF 24, the rest 7:0 */
	t->hot.mask_status = 0x8ff;
}

static struct emit_mem rflags(struct tx *x)
{
	return mem_abs(&x->e->cpu->rflags);
}

/* dst = the bits of src under the mask, each in its place; no flags. */
static void keep_bits(struct tx *x, int reg, const uint64_t *mask)
{
	emit_pext(&x->m, reg, reg, mem_abs(mask));
	emit_pdep(&x->m, reg, reg, mem_abs(mask));
}

static void store_byte(struct tx *x, const void *address, unsigned value)
{
	emit8(&x->m, 0xc6);
	emit_modrm_mem(&x->m, 0, mem_abs(address));
	emit8(&x->m, value);
}

/* An interrupt may have been held back: as tx_poll(), for what waits inside of the engine. */
static void poll_attention(struct tx *x, int offset)
{
	tx_clobber(x, SCRATCH(S1));
	tx_map(x, offset, true);
	emit_load(&x->m, S1, rflags(x));
	emit_pext(&x->m, S1, S1, mem_abs(&x->t->hot.mask_if));
	emit_pext(&x->m, S1, S1, mem_abs(&x->e->attention)); /* IF and attention */
	emit_rorx_reg(&x->m, S1, S1, 20);
	emit_load8(&x->m, S1, mem_base(S1, (int32_t)(uintptr_t)x->t->poll));
	tx_poll(x, S1);
}

static bool cli(struct tx *x)
{
	tx_clobber(x, SCRATCH(S1));
	emit_load(&x->m, S1, rflags(x));
	keep_bits(x, S1, &x->t->hot.mask_no_if);
	emit_store(&x->m, S1, rflags(x));
	return true;
}

/*
 * STI's shadow lets one more instruction run. If nothing waits, nobody can tell; but HLT behind it must find the
 * shadow, or an interrupt that comes just now would be taken before the processor sleeps.
 */
static bool sti(struct tx *x, const struct tx_insn *i)
{
	if (i->next >= 4096 || i->bytes[i->d.insn.length] == 0xf4)
		return false;
	tx_clobber(x, SCRATCH(S1));
	emit_load(&x->m, S1, rflags(x));
	keep_bits(x, S1, &x->t->hot.mask_no_if);
	emit_lea(&x->m, S1, mem_base(S1, FLAG_IF));
	emit_store(&x->m, S1, rflags(x));
	store_byte(x, &x->e->cpu->shadow_sti, 1);
	poll_attention(x, i->next);
	store_byte(x, &x->e->cpu->shadow_sti, 0);
	return true;
}

static bool pushf(struct tx *x, const struct tx_insn *i)
{
	struct hot *h = &x->t->hot;

	if (i->d.insn.operand_width != 64)
		return false;
	tx_clobber(x, SCRATCH(S1) | SCRATCH(S2));
	emit_store(&x->m, RAX, mem_abs(&h->save));
	emit_bytes(&x->m, "\x0f\x90\xc0\x9f\x0f\xb7\xc0", 7); /* seto %al; lahf; movzwl %ax, %eax */
	emit_rorx_reg(&x->m, S1, RAX, 8);
	emit_load(&x->m, RAX, mem_abs(&h->save));
	emit_pext(&x->m, S1, S1, mem_abs(&h->mask_ax));
	emit_pdep(&x->m, S1, S1, mem_abs(&h->mask_status));
	emit_load(&x->m, S2, rflags(x));
	keep_bits(x, S2, &h->mask_virtual);
	emit_lea(&x->m, S1, (struct emit_mem){ S1, S2, 0, 0 });
	emit_push(&x->m, S1);
	return true;
}

static bool popf(struct tx *x, const struct tx_insn *i)
{
	if (i->d.insn.operand_width != 64 || i->flags_live)
		return false;
	tx_clobber(x, SCRATCH(S1) | SCRATCH(S2));
	emit_load(&x->m, S1, mem_base(RSP, 0));
	emit_move(&x->m, S2, S1);
	emit_op_mem(&x->m, 0x33, S2, rflags(x));
	emit_bytes(&x->m, "\x41\xf7\xc3", 3); /* test $imm, %r11d */
	emit32(&x->m, POPF_CAREFUL);
	tx_stub(x, emit_jcc(&x->m, 5), STUB_SITE, tx_site(x, SITE_INTERP, i->offset, 0));
	emit_lea(&x->m, RSP, mem_base(RSP, 8));
	emit_move(&x->m, S2, S1);
	emit_bytes(&x->m, "\x49\x81\xe3", 3); /* and $imm, %r11 */
	emit32(&x->m, VIRTUAL_FLAGS);
	emit_bytes(&x->m, "\x49\x83\xcb\x02", 4); /* or $2, %r11 */
	emit_store(&x->m, S2, rflags(x));
	emit_store(&x->m, RAX, mem_abs(&x->t->hot.save));
	/* mov %r10d, %eax; shl $8, %eax; shr $11, %r10d; and $1, %r10d; or %r10d, %eax; add $127, %al; sahf */
	emit_bytes(&x->m, "\x44\x89\xd0\xc1\xe0\x08\x41\xc1\xea\x0b\x41\x83\xe2\x01\x44\x09\xd0\x04\x7f\x9e", 20);
	emit_load(&x->m, RAX, mem_abs(&x->t->hot.save));
	poll_attention(x, i->next);
	return true;
}

static bool swapgs(struct tx *x)
{
	struct cpu_state *c = x->e->cpu;

	tx_clobber(x, SCRATCH(S1) | SCRATCH(S2));
	emit_load(&x->m, S1, mem_abs(&c->kernel_gs_base));
	emit_load(&x->m, S2, mem_abs(&c->seg[SEG_GS].base));
	emit_store(&x->m, S1, mem_abs(&c->seg[SEG_GS].base));
	emit_store(&x->m, S2, mem_abs(&c->kernel_gs_base));
	emit_pext(&x->m, S2, S1, mem_abs(&x->t->hot.slot_mask));
	emit_load(&x->m, S2, mem_table(x->e->deltas->delta[x->view], S2));
	emit_lea(&x->m, S1, (struct emit_mem){ S1, S2, 0, 0 });
	emit_store(&x->m, S1, mem_abs(&x->t->hot.seg_host[1]));
	return true;
}

/* RAX and RDX are all 64 bits of the counter first. CR4.TSD: when it changes, all code is forgotten. */
static bool rdtsc(struct tx *x, bool with_aux)
{
	if (x->view == SHADOW_USER && (x->e->cpu->cr4 & CR4_TSD))
		return false;
	tx_clobber(x, SCRATCH(S1));
	emit_bytes(&x->m, "\x0f\x31", 2);
	emit_rorx64(&x->m, RDX, RDX, 32);
	emit_lea(&x->m, RAX, (struct emit_mem){ RAX, RDX, 0, 0 });
	emit_load(&x->m, S1, mem_abs(&x->e->cpu->tsc_offset));
	emit_lea(&x->m, RAX, (struct emit_mem){ RAX, S1, 0, 0 });
	emit_rorx64(&x->m, RDX, RAX, 32);
	emit_bytes(&x->m, "\x89\xd2\x89\xc0", 4); /* mov %edx, %edx; mov %eax, %eax */
	if (with_aux) {
		emit8(&x->m, 0x8b); /* mov tsc_aux, %ecx */
		emit_modrm_mem(&x->m, RCX, mem_abs(&x->e->cpu->tsc_aux));
	}
	return true;
}

static bool read_control(struct tx *x, const struct insn *decoded)
{
	const struct cpu_state *c = x->e->cpu;
	const uint64_t *from;
	int to = decoded->rm;

	switch (decoded->cc) {
	case 0:
		from = &c->cr0;
		break;
	case 2:
		from = &c->cr2;
		break;
	case 3:
		from = &c->cr3;
		break;
	case 4:
		from = &c->cr4;
		break;
	default:
		return false;
	}
	if (to == RSP || to == S1 || to == S2)
		return false;
	emit_load(&x->m, to, mem_abs(from));
	return true;
}

bool tx_system(struct tx *x, const struct tx_insn *i, const struct insn *decoded)
{
	bool supervisor = x->view == SHADOW_SUPERVISOR;

	switch (i->d.insn.mnemonic) {
	case ZYDIS_MNEMONIC_PUSHFQ:
		return pushf(x, i);
	case ZYDIS_MNEMONIC_RDTSC:
		return rdtsc(x, false);
	case ZYDIS_MNEMONIC_RDTSCP:
		return rdtsc(x, true);
	case ZYDIS_MNEMONIC_CLI:
		return supervisor && cli(x);
	case ZYDIS_MNEMONIC_STI:
		return supervisor && sti(x, i);
	case ZYDIS_MNEMONIC_POPFQ:
		return supervisor && popf(x, i);
	case ZYDIS_MNEMONIC_SWAPGS:
		return supervisor && swapgs(x);
	case ZYDIS_MNEMONIC_MOV:
		return supervisor && i->d.op[1].type == ZYDIS_OPERAND_TYPE_REGISTER &&
			ZydisRegisterGetClass(i->d.op[1].reg.value) == ZYDIS_REGCLASS_CONTROL && read_control(x, decoded);
	case ZYDIS_MNEMONIC_CLD:
		return true; /* DF is 0 */
	default:
		return false;
	}
}
