/*
 * Privileged and sensitive instructions that are frequent enough for code of their own. They work on the
 * virtual state in the vcpu block: the guest's IF and its kin are bits of cpu_state.rflags, which no host
 * flag mirrors.
 *
 *   rflags  | … | ID 21 | VIP VIF | AC 18 | VM RF | NT 14 | IOPL 13:12 | OF | DF | IF 9 | TF 8 | SF ZF 0 AF 0 PF 1 CF |
 *
 * OF and the low byte are stale there while translated code runs. Where the host's flags must survive, bits
 * are taken out and put in by PEXT and PDEP.
 */
#include "engine/translate.h"

/*
 * Of RFLAGS: what PUSHF shows besides the status flags, and what POPF at CPL 0 may not change without the
 * interpreter.
 */
#define VIRTUAL_FLAGS 0x3c7700u
#define POPF_CAREFUL (VIRTUAL_FLAGS & ~(uint32_t)FLAG_IF)

void translator_set_masks(struct translator *t)
{
	t->hot.mask_if = FLAG_IF;
	t->hot.mask_no_if = ~(uint64_t)FLAG_IF;
	t->hot.mask_virtual = VIRTUAL_FLAGS;
	t->hot.mask_ax = 0x010000ff; /* ax of SETO, LAHF, rotated right by 8: OF 24, the rest 7:0 */
	t->hot.mask_status = 0x8ff;
	t->hot.mask_carry = 1ull << 32;
	t->hot.bit_mask[0] = 31;
	t->hot.bit_mask[1] = 63;
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
static void poll_attention(struct tx *x, int offset, enum map_kind kind)
{
	tx_clobber(x, SCRATCH(S1));
	tx_map(x, offset, kind);
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
 * STI's shadow lets one more instruction run. If nothing waits, nobody can tell; but HLT behind it must find
 * the shadow, or an interrupt that comes just now would be taken before the processor sleeps.
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
	poll_attention(x, i->next, MAP_POLL);
	store_byte(x, &x->e->cpu->shadow_sti, 0);
	return true;
}

void tx_compose_flags(struct tx *x)
{
	struct hot *h = &x->t->hot;

	tx_clobber(x, SCRATCH(S1) | SCRATCH(S2));
	emit_store(&x->m, RAX, mem_abs(&h->save));
	emit_bytes(&x->m, "\x0f\x90\xc0\x9f\x0f\xb7\xc0", 7); /* seto %al; lahf; movzwl %ax, %eax */
	emit_rorx_reg(&x->m, S1, RAX, 8);
	emit_load(&x->m, RAX, mem_abs(&h->save));
	emit_pext(&x->m, S1, S1, mem_abs(&h->mask_ax));
	emit_pdep(&x->m, S1, S1, mem_abs(&h->mask_status));
	emit_load(&x->m, S2, rflags(x));
	keep_bits(x, S2, &h->mask_virtual);
	emit_lea(&x->m, S1, (struct emit_mem){S1, S2, 0, 0});
}

void tx_load_status(struct tx *x)
{
	emit_store(&x->m, RAX, mem_abs(&x->t->hot.save));
	/* mov %r10d, %eax; shl $8, %eax; shr $11, %r10d; and $1, %r10d; or %r10d, %eax; add $127, %al; sahf
	 */
	emit_bytes(&x->m, "\x44\x89\xd0\xc1\xe0\x08\x41\xc1\xea\x0b\x41\x83\xe2\x01\x44\x09\xd0\x04\x7f\x9e",
		20);
	emit_load(&x->m, RAX, mem_abs(&x->t->hot.save));
}

static void store_flags(struct tx *x, uint32_t mask)
{
	emit_move(&x->m, S2, S1);
	emit_bytes(&x->m, "\x49\x81\xe3", 3); /* and $imm, %r11 */
	emit32(&x->m, mask);
	emit_bytes(&x->m, "\x49\x83\xcb\x02", 4); /* or $2, %r11 */
	emit_store(&x->m, S2, rflags(x));
}

void tx_store_virtual(struct tx *x, uint32_t also)
{
	store_flags(x, VIRTUAL_FLAGS | also);
}

void tx_check_flags(struct tx *x, const struct tx_insn *i)
{
	emit_move(&x->m, S2, S1);
	emit_op_mem(&x->m, 0x33, S2, rflags(x));
	emit_bytes(&x->m, "\x41\xf7\xc3", 3); /* test $imm, %r11d */
	emit32(&x->m, POPF_CAREFUL);
	tx_stub(x, emit_jcc(&x->m, 5), STUB_SITE, tx_site(x, SITE_INTERP, i->offset, 0));
}

void tx_restore_flags(struct tx *x, const struct tx_insn *i)
{
	tx_store_virtual(x, 0);
	tx_load_status(x);
	poll_attention(x, i->next, MAP_POLL);
}

static bool pushf(struct tx *x, const struct tx_insn *i)
{
	if (i->d.insn.operand_width != 64)
		return false;
	tx_compose_flags(x);
	emit_push(&x->m, S1);
	return true;
}

static bool popf(struct tx *x, const struct tx_insn *i)
{
	if (i->d.insn.operand_width != 64 || i->flags_live)
		return false;
	tx_clobber(x, SCRATCH(S1) | SCRATCH(S2));
	emit_load(&x->m, S1, mem_base(RSP, 0));
	tx_check_flags(x, i);
	emit_lea(&x->m, RSP, mem_base(RSP, 8));
	tx_restore_flags(x, i);
	return true;
}

/* hot.seg_host of FS (0) or GS (1) for the base in S1; destroys both. */
static void follow_segment(struct tx *x, unsigned n)
{
	tx_look_up(x, S2, S1);
	emit_lea(&x->m, S1, (struct emit_mem){S1, S2, 0, 0});
	emit_store(&x->m, S1, mem_abs(&x->t->hot.seg_host[n]));
}

static bool swapgs(struct tx *x)
{
	struct cpu_state *c = x->e->cpu;

	tx_clobber(x, SCRATCH(S1) | SCRATCH(S2));
	emit_load(&x->m, S1, mem_abs(&c->kernel_gs_base));
	emit_load(&x->m, S2, mem_abs(&c->seg[SEG_GS].base));
	emit_store(&x->m, S1, mem_abs(&c->seg[SEG_GS].base));
	emit_store(&x->m, S2, mem_abs(&c->kernel_gs_base));
	follow_segment(x, 1);
	return true;
}

/* --- SYSCALL and SYSRET --- */

void tx_store_segment(struct tx *x, unsigned seg, const struct cpu_segment *s)
{
	const uint64_t words[3] = {s->selector | (uint64_t)s->ar << 32, s->limit, s->base};

	_Static_assert(sizeof(*s) == sizeof(words) && offsetof(struct cpu_segment, ar) == 4 && offsetof(struct cpu_segment, limit) == 8 &&
			       offsetof(struct cpu_segment, base) == 16, "three words");
	for (unsigned n = 0; n < 3; n++) {
		uint64_t *to = (uint64_t *)&x->e->cpu->seg[seg] + n;

		if (words[n] >> 31) {
			emit_imm64(&x->m, S2, words[n]);
			emit_store(&x->m, S2, mem_abs(to));
		} else {
			emit_store_imm64(&x->m, to, (int32_t)words[n]);
		}
	}
}

/* As 64-bit code has them. */
static void store_flat(struct tx *x, unsigned seg, uint16_t selector, uint32_t ar)
{
	tx_store_segment(x, seg, &(struct cpu_segment){.selector = selector, .ar = ar, .limit = 0xffffffff});
}

void tx_enter_view(struct tx *x, unsigned view)
{
	struct cpu_state *c = x->e->cpu;

	bool other = view != x->view;

	emit_store_imm64(&x->m, &x->t->hot.mode_changed, 1);
	x->view = view;
	tx_switch_rsp(x);
	emit_load(&x->m, S2, mem_abs(&x->t->hot.rsp_delta));
	emit_lea(&x->m, RSP, (struct emit_mem){S1, S2, 0, 0});
	for (unsigned n = 0; other && n < 2; n++) {
		emit_load(&x->m, S1, mem_abs(&c->seg[SEG_FS + n].base));
		follow_segment(x, n);
	}
}

static void change_view(struct tx *x, unsigned view)
{
	tx_get_rsp(x, S1, 0);
	tx_enter_view(x, view);
}

void tx_count(struct tx *x, const uint64_t *counter)
{
	emit_bytes(&x->m, "\x48\xff", 2); /* incq */
	emit_modrm_mem(&x->m, 0, mem_abs(counter));
}

/* STAR, SFMASK and EFER are the translation's; when they change all code is forgotten. */
static bool call_system(struct tx *x, const struct tx_insn *i)
{
	const struct cpu_state *c = x->e->cpu;
	uint16_t cs = (uint16_t)(c->star >> 32 & 0xfffc);

	if (!(c->efer & EFER_SCE) || (c->sfmask & FLAGS_STATUS) != FLAGS_STATUS)
		return false;
	tx_compose_flags(x);
	emit_store(&x->m, S1, mem_abs(&c->gpr[GPR_R11]));
	store_flags(x, VIRTUAL_FLAGS & ~(uint32_t)c->sfmask);
	tx_count(x, &x->e->stats->emul_syscall);
	tx_code_base(x, RCX);
	emit_lea(&x->m, RCX, mem_base(RCX, i->next));
	store_flat(x, SEG_CS, cs, 0xa09b);
	store_flat(x, SEG_SS, (uint16_t)(cs + 8), 0xc093);
	change_view(x, SHADOW_SUPERVISOR);
	emit_bytes(&x->m, "\x45\x31\xd2\x41\x80\xc2\x01",
		7); /* xor %r10d, %r10d; add $1, %r10b: all status flags 0 */
	emit_load(&x->m, S1, mem_abs(&c->lstar));
	tx_jump(x, i->offset, 0, true);
	x->view = SHADOW_USER;
	x->ended = true;
	return true;
}

static bool return_from_system(struct tx *x, const struct tx_insn *i)
{
	const struct cpu_state *c = x->e->cpu;
	uint16_t base = (uint16_t)(c->star >> 48);

	if (!(c->efer & EFER_SCE) || i->d.insn.operand_width != 64)
		return false;
	tx_clobber(x, SCRATCH(S1) | SCRATCH(S2));
	/* The status flags are R11's in any case. */
	emit_move(&x->m, S1, RCX);
	emit_shr(&x->m, S1, 47);
	tx_stub(x, emit_jcc(&x->m, 5), STUB_SITE, tx_site(x, SITE_INTERP, i->offset, 0));
	emit_load(&x->m, S1, mem_abs(&c->gpr[GPR_R11]));
	tx_check_flags(x, i);
	/* Alignment checks begin at CPL 3 (SDM vol. 3, 6.15). */
	emit_bytes(&x->m, "\x41\xf7\xc2", 3); /* test $imm, %r10d */
	emit32(&x->m, FLAG_AC);
	tx_stub(x, emit_jcc(&x->m, 5), STUB_SITE, tx_site(x, SITE_INTERP, i->offset, 0));
	tx_store_virtual(x, 0);
	tx_count(x, &x->e->stats->emul_sysret);
	store_flat(x, SEG_CS, (uint16_t)((base + 16) | 3), 0xa09b | 3 << SEG_AR_DPL_SHIFT);
	if (decode_is_amd(x->e)) {
		/* Only the selector is loaded (APM vol. 3); the DPL is our CPL: movw, orl. */
		emit_bytes(&x->m, "\x66\xc7", 2);
		emit_modrm_mem(&x->m, 0, mem_abs(&c->seg[SEG_SS].selector));
		emit8(&x->m, (uint8_t)((base + 8) | 3));
		emit8(&x->m, (uint8_t)((base + 8) >> 8));
		emit8(&x->m, 0x81);
		emit_modrm_mem(&x->m, 1, mem_abs(&c->seg[SEG_SS].ar));
		emit32(&x->m, SEG_AR_DPL);
	} else {
		store_flat(x, SEG_SS, (uint16_t)((base + 8) | 3), 0xc093 | 3 << SEG_AR_DPL_SHIFT);
	}
	change_view(x, SHADOW_USER);
	emit_store(&x->m, RCX, mem_abs(&x->t->hot.target));
	emit_load(&x->m, S1, mem_abs(&c->gpr[GPR_R11]));
	tx_load_status(x);
	poll_attention(x, 0, MAP_TARGET);
	emit_move(&x->m, S1, RCX);
	tx_jump(x, i->offset, 0, false);
	x->view = SHADOW_SUPERVISOR;
	x->ended = true;
	return true;
}

/* RAX and RDX are all 64 bits of the counter first. CR4.TSD: when it changes, all code is forgotten. */
static bool rdtsc(struct tx *x, bool with_aux)
{
	/* Two runs would read two times. */
	if (x->e->lockstep || (x->view == SHADOW_USER && (x->e->cpu->cr4 & CR4_TSD)))
		return false;
	tx_clobber(x, SCRATCH(S1));
	emit_bytes(&x->m, "\x0f\x31", 2);
	emit_rorx64(&x->m, RDX, RDX, 32);
	emit_lea(&x->m, RAX, (struct emit_mem){RAX, RDX, 0, 0});
	emit_load(&x->m, S1, mem_abs(&x->e->cpu->tsc_offset));
	emit_lea(&x->m, RAX, (struct emit_mem){RAX, S1, 0, 0});
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

static bool is_plain_register(int reg)
{
	return reg != RSP && reg != S1 && reg != S2;
}

/* A selector: a register of 16 bits keeps its upper part, a larger one is zero-extended. */
static bool read_segment(struct tx *x, const struct tx_insn *i, const struct insn *decoded)
{
	if (i->d.op[0].type != ZYDIS_OPERAND_TYPE_REGISTER || i->d.op[0].size < 32 || !is_plain_register(decoded->rm))
		return false;
	if (decoded->rm >= 8)
		emit8(&x->m, 0x44);
	emit_bytes(&x->m, "\x0f\xb7", 2); /* movzwl */
	emit_modrm_mem(&x->m, decoded->rm, mem_abs(&x->e->cpu->seg[decoded->reg].selector));
	return true;
}

/* Whether CR4 has the bit is looked at here: when that changes all code is forgotten. */
static bool read_base(struct tx *x, const struct tx_insn *i, const struct insn *decoded, unsigned n)
{
	if (!(x->e->cpu->cr4 & CR4_FSGSBASE) || decoded->opsize != 8 || !is_plain_register(decoded->rm))
		return false;
	emit_load(&x->m, decoded->rm, mem_abs(&x->e->cpu->seg[SEG_FS + n].base));
	return true;
}

/* An address that is not canonical is the interpreter's to refuse. No flags. */
static bool write_base(struct tx *x, const struct tx_insn *i, const struct insn *decoded, unsigned n)
{
	struct hot *h = &x->t->hot;
	uint8_t *canonical;

	if (!(x->e->cpu->cr4 & CR4_FSGSBASE) || decoded->opsize != 8 || !is_plain_register(decoded->rm))
		return false;
	tx_clobber(x, SCRATCH(S1) | SCRATCH(S2));
	emit_store(&x->m, RCX, mem_abs(&h->save));
	emit_move(&x->m, S2, decoded->rm);
	/* mov $16, %ecx; shlx %rcx, %r11, %r10; sarx %rcx, %r10, %r10; mov %r10, %rcx; not %rcx */
	emit_bytes(&x->m, "\xb9\x10\x00\x00\x00\xc4\x42\xf1\xf7\xd3\xc4\x42\xf2\xf7\xd2\x4c\x89\xd1\x48\xf7\xd1", 21);
	emit_lea(&x->m, RCX, (struct emit_mem){RCX, S2, 0, 1});
	canonical = emit_jrcxz(&x->m);
	emit_load(&x->m, RCX, mem_abs(&h->save));
	tx_stub(x, emit_jmp(&x->m), STUB_SITE, tx_site(x, SITE_INTERP, i->offset, 0));
	emit_patch8(canonical, x->m.p);
	emit_load(&x->m, RCX, mem_abs(&h->save));
	emit_store(&x->m, S1, mem_abs(&x->e->cpu->seg[SEG_FS + n].base));
	follow_segment(x, n);
	return true;
}

static bool is_of_class(const ZydisDecodedOperand *op, ZydisRegisterClass class)
{
	return op->type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(op->reg.value) == class;
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
	case ZYDIS_MNEMONIC_SYSCALL:
		return !supervisor && call_system(x, i);
	case ZYDIS_MNEMONIC_SYSRET:
		return supervisor && return_from_system(x, i);
	case ZYDIS_MNEMONIC_IRETQ:
		return supervisor && tx_iret(x, i);
	case ZYDIS_MNEMONIC_MOV:
		if (is_of_class(&i->d.op[1], ZYDIS_REGCLASS_SEGMENT))
			return read_segment(x, i, decoded);
		return supervisor && is_of_class(&i->d.op[1], ZYDIS_REGCLASS_CONTROL) && read_control(x, decoded);
	case ZYDIS_MNEMONIC_RDFSBASE:
		return read_base(x, i, decoded, 0);
	case ZYDIS_MNEMONIC_RDGSBASE:
		return read_base(x, i, decoded, 1);
	case ZYDIS_MNEMONIC_WRFSBASE:
		return write_base(x, i, decoded, 0);
	case ZYDIS_MNEMONIC_WRGSBASE:
		return write_base(x, i, decoded, 1);
	case ZYDIS_MNEMONIC_CLD:
		return true; /* DF is 0 */
	default:
		return false;
	}
}
