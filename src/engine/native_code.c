/*
 * Thunks: how a guest instruction is re-encoded for the host, where the code is kept, and how it is called. The arena is
 * one memfd mapped twice, writable and executable, never both.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "engine/native.h"

#define ARENA_SIZE ((size_t)NATIVE_OPS_MAX * NATIVE_SLOT)

/* The frame in RBX: operands and flags into their registers, the thunk, and back. */
#define RUN_THUNK \
	"mov 24(%rbx), %rdi\n\t" \
	"mov 56(%rbx), %rax\n\t" \
	"addb $127, %al\n\t" \
	"sahf\n\t" \
	"mov (%rbx), %rax\n\t" \
	"mov 8(%rbx), %rdx\n\t" \
	"mov 16(%rbx), %rcx\n\t" \
	"call *32(%rbx)\n\t" \
	"mov %rax, (%rbx)\n\t" \
	"seto %al\n\t" \
	"lahf\n\t" \
	"movzwl %ax, %eax\n\t" \
	"mov %rax, 56(%rbx)\n\t" \
	"mov %rdx, 8(%rbx)\n\t" \
	"mov %rcx, 16(%rbx)\n"

/*
 * native_call(frame in RDI). Between XRSTOR and XSAVE nothing but the thunk runs. native_stop is where the signal
 * handler goes on when the thunk has faulted. Afterwards the x87, MXCSR and AVX state is what C expects.
 */
__asm__(".text\n"
	".globl native_call\n"
	".type native_call, @function\n"
	"native_call:\n\t"
	"push %rbx\n\tpush %rbp\n\tpush %r12\n\tpush %r13\n\tpush %r14\n\tpush %r15\n\tsub $24, %rsp\n\t"
	"stmxcsr 8(%rsp)\n\t"
	"fnstcw 12(%rsp)\n\t"
	"mov %rdi, %rbx\n\t"
	"mov 40(%rbx), %rcx\n\t"
	"mov 48(%rbx), %eax\n\t"
	"xor %edx, %edx\n\t"
	"xrstor64 (%rcx)\n\t"
	RUN_THUNK
	".globl native_stop\n"
	".hidden native_stop\n"
	"native_stop:\n\t"
	"mov 40(%rbx), %rcx\n\t"
	"mov 48(%rbx), %eax\n\t"
	"xor %edx, %edx\n\t"
	"xsave64 (%rcx)\n\t"
	"testb $1, 48(%rbx)\n\t"
	"jz 1f\n\t"
	"fninit\n\t"
	"fldcw 12(%rsp)\n"
	"1:\n\t"
	"testb $4, 48(%rbx)\n\t"
	"jz 2f\n\t"
	"vzeroupper\n"
	"2:\n\t"
	"ldmxcsr 8(%rsp)\n\t"
	"add $24, %rsp\n\tpop %r15\n\tpop %r14\n\tpop %r13\n\tpop %r12\n\tpop %rbp\n\tpop %rbx\n\t"
	"ret\n\t"
	".size native_call, . - native_call\n");

/* The guest's MXCSR, unless it is there already. */
#define LOAD_MXCSR \
	"stmxcsr 8(%rsp)\n\t" \
	"mov 24(%rbp), %eax\n\t" \
	"cmp %eax, 8(%rsp)\n\t" \
	"je 1f\n\t" \
	"ldmxcsr 24(%rbp)\n" \
	"1:\n\t"

/*
 * The same for what needs SSE and AVX state alone: moving the registers one by one costs a tenth of XRSTOR and XSAVE.
 * The guest's MXCSR stays loaded, since LDMXCSR is slow and the engine's C does no arithmetic that it could disturb:
 * native_leave() takes it back. Registers n at 160 + 16n (low) and 576 + 16n (high), MXCSR at 24 of the image in RBP.
 */
#define LOAD_YMM(n)                                                                                                \
	"vmovdqa 160+16*" #n "(%rbp), %xmm" #n "\n\t"                                                              \
	"vinsertf128 $1, 576+16*" #n "(%rbp), %ymm" #n ", %ymm" #n "\n\t"
#define SAVE_YMM(n)                                                                                                \
	"vmovdqa %xmm" #n ", 160+16*" #n "(%rbp)\n\t"                                                              \
	"vextractf128 $1, %ymm" #n ", 576+16*" #n "(%rbp)\n\t"
#define EACH_YMM(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
__asm__(".text\n"
	".globl native_call_vector\n"
	".type native_call_vector, @function\n"
	"native_call_vector:\n\t"
	"push %rbx\n\tpush %rbp\n\tsub $24, %rsp\n\t"
	"mov %rdi, %rbx\n\t"
	"mov 40(%rbx), %rbp\n\t"
	EACH_YMM(LOAD_YMM)
	LOAD_MXCSR
	RUN_THUNK
	".globl native_stop_vector\n"
	".hidden native_stop_vector\n"
	"native_stop_vector:\n\t"
	"stmxcsr 24(%rbp)\n\t"
	EACH_YMM(SAVE_YMM)
	"vzeroupper\n\t"
	"add $24, %rsp\n\tpop %rbp\n\tpop %rbx\n\t"
	"ret\n\t"
	".size native_call_vector, . - native_call_vector\n");

/*
 * And for legacy SSE, which leaves the upper halves alone: they stay in the image. A legacy instruction on a register whose
 * upper half is in use costs over a hundred cycles on some CPUs.
 */
#define LOAD_XMM(n) "movdqa 160+16*" #n "(%rbp), %xmm" #n "\n\t"
#define SAVE_XMM(n) "movdqa %xmm" #n ", 160+16*" #n "(%rbp)\n\t"
__asm__(".text\n"
	".globl native_call_sse\n"
	".type native_call_sse, @function\n"
	"native_call_sse:\n\t"
	"push %rbx\n\tpush %rbp\n\tsub $24, %rsp\n\t"
	"mov %rdi, %rbx\n\t"
	"mov 40(%rbx), %rbp\n\t"
	EACH_YMM(LOAD_XMM)
	LOAD_MXCSR
	RUN_THUNK
	".globl native_stop_sse\n"
	".hidden native_stop_sse\n"
	"native_stop_sse:\n\t"
	"stmxcsr 24(%rbp)\n\t"
	EACH_YMM(SAVE_XMM)
	"add $24, %rsp\n\tpop %rbp\n\tpop %rbx\n\t"
	"ret\n\t"
	".size native_call_sse, . - native_call_sse\n");

extern const char native_stop_sse[] __attribute__((visibility("hidden")));
extern const char native_stop_vector[] __attribute__((visibility("hidden")));
extern const char native_stop[] __attribute__((visibility("hidden")));

bool native_signal(struct engine *e, int sig, void *siginfo, void *ucontext)
{
	struct native_frame *f;
	ucontext_t *uc = ucontext;
	greg_t *regs = uc->uc_mcontext.gregs;
	uint64_t rip = (uint64_t)regs[REG_RIP];

	if (!e || !e->native)
		return false;
	f = &e->native->frame;
	if (rip < f->code_low || rip >= f->code_high)
		return false;
	f->signal = (uint64_t)sig;
	f->si_code = (uint64_t)((siginfo_t *)siginfo)->si_code;
	regs[REG_RIP] = (greg_t)(uintptr_t)(f->how == NATIVE_CALL_SSE ? native_stop_sse :
		f->how == NATIVE_CALL_VECTOR ? native_stop_vector : native_stop);
	regs[REG_RSP] += 8; /* the thunk's return address */
	return true;
}

void native_leave(struct engine *e)
{
	uint32_t mxcsr = 0x1f80;

	__asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
}

/* --- the arena --- */

static uint32_t cpuid_word(struct engine *e, uint32_t leaf, unsigned word)
{
	uint32_t out[4];

	cpu_cpuid(&e->block->model, NULL, leaf, 0, out);
	return out[word];
}

/* ISA sets beyond those that every model has. */
static uint32_t model_isa(struct engine *e)
{
	uint32_t leaf1 = cpuid_word(e, 1, 2), ebx7 = cpuid_word(e, 7, 1), ecx7 = cpuid_word(e, 7, 2), isa = 0;

	isa |= leaf1 & (1u << 1) ? 1u << 0 : 0;	 /* PCLMULQDQ */
	isa |= leaf1 & (1u << 12) ? 1u << 1 : 0; /* FMA */
	isa |= leaf1 & (1u << 25) ? 1u << 2 : 0; /* AES */
	isa |= leaf1 & (1u << 28) ? 1u << 3 : 0; /* AVX */
	isa |= leaf1 & (1u << 29) ? 1u << 4 : 0; /* F16C */
	isa |= ebx7 & (1u << 5) ? 1u << 5 : 0;	 /* AVX2 */
	isa |= ebx7 & (1u << 29) ? 1u << 6 : 0;	 /* SHA */
	isa |= ecx7 & (1u << 8) ? 1u << 7 : 0;	 /* GFNI */
	isa |= ecx7 & (1u << 9) ? 1u << 8 : 0;	 /* VAES */
	isa |= ecx7 & (1u << 10) ? 1u << 9 : 0;	 /* VPCLMULQDQ */
	return isa;
}

static uint64_t host_components(void)
{
	uint32_t low, high;

	__asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	return low & (XCR0_X87 | XCR0_SSE | XCR0_AVX);
}

int native_create(struct engine *e)
{
	struct native_state *n = mmap(NULL, sizeof(*n), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		-1, 0);
	void *write, *execute;
	int fd;

	if (n == MAP_FAILED)
		return -ENOMEM;
	e->native = n;
	fd = memfd_create("vmm-native", MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, (off_t)ARENA_SIZE) < 0) {
		if (fd >= 0)
			close(fd);
		return -ENOMEM;
	}
	write = mmap(NULL, ARENA_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	execute = mmap(NULL, ARENA_SIZE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
	close(fd);
	n->write = write == MAP_FAILED ? NULL : write;
	n->execute = execute == MAP_FAILED ? NULL : execute;
	if (!n->write || !n->execute)
		return -ENOMEM;
	n->host_state = host_components();
	n->isa = model_isa(e);
	n->frame.code_low = (uint64_t)n->execute;
	n->frame.code_high = n->frame.code_low + ARENA_SIZE;
	return 0;
}

void native_destroy(struct engine *e)
{
	struct native_state *n = e->native;

	if (!n)
		return;
	if (n->write)
		munmap(n->write, ARENA_SIZE);
	if (n->execute)
		munmap((void *)(uintptr_t)n->execute, ARENA_SIZE);
	munmap(n, sizeof(*n));
	e->native = NULL;
}

void native_reset(struct native_state *n)
{
	n->op_count = 0;
	memset(n->hash, 0, sizeof(n->hash));
}

const struct native_op *native_intern(struct native_state *n, const struct native_op *op)
{
	const size_t compared = offsetof(struct native_op, code);
	const uint8_t *p = (const uint8_t *)op;
	uint64_t h = 0xcbf29ce484222325ull;
	struct native_op *new;
	uint32_t *slot;

	for (size_t k = 0; k < compared; k++)
		h = (h ^ p[k]) * 0x100000001b3ull;
	slot = &n->hash[(h ^ h >> 32) & (NATIVE_HASH_SIZE - 1)];
	for (uint32_t id = *slot; id; id = n->ops[id - 1].next)
		if (!memcmp(&n->ops[id - 1], op, compared))
			return &n->ops[id - 1];
	if (n->op_count == NATIVE_OPS_MAX)
		return NULL;
	new = &n->ops[n->op_count];
	*new = *op;
	new->code = n->op_count * NATIVE_SLOT;
	memcpy(n->write + new->code, op->bytes, sizeof(op->bytes));
	new->next = *slot;
	*slot = ++n->op_count;
	return new;
}

/* --- re-encoding --- */

#define THUNK_RM 0  /* RAX */
#define THUNK_REG 2 /* RDX */
#define THUNK_MEMORY 7 /* [RDI] */

static const ZydisDecodedOperand *find_gpr(const struct decoded *d, ZydisOperandEncoding encoding)
{
	bool high;

	for (unsigned k = 0; k < d->insn.operand_count; k++)
		if (d->op[k].type == ZYDIS_OPERAND_TYPE_REGISTER && d->op[k].encoding == encoding &&
			decode_gpr(d->op[k].reg.value, &high) >= 0)
			return &d->op[k];
	return NULL;
}

static void bind(struct native_op *op, enum native_slot slot, const ZydisDecodedOperand *o)
{
	bool high;

	op->gpr[slot] = (uint8_t)decode_gpr(o->reg.value, &high);
	if (o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
		op->gpr_write |= (uint8_t)(1u << slot);
}

static void bind_registers(const struct decoded *d, struct native_op *op)
{
	const ZydisDecodedOperand *o;

	memset(op->gpr, NATIVE_NONE, sizeof(op->gpr));
	if ((o = find_gpr(d, ZYDIS_OPERAND_ENCODING_MODRM_REG)))
		bind(op, SLOT_REG, o);
	if ((o = find_gpr(d, ZYDIS_OPERAND_ENCODING_MODRM_RM)))
		bind(op, SLOT_RM, o);
	for (unsigned k = 0; k < d->insn.operand_count; k++) {
		bool high;
		int id;

		o = &d->op[k];
		if (o->type != ZYDIS_OPERAND_TYPE_REGISTER || o->encoding != ZYDIS_OPERAND_ENCODING_NONE)
			continue;
		id = decode_gpr(o->reg.value, &high);
		if (id == GPR_RAX)
			bind(op, SLOT_RM, o);
		else if (id == GPR_RDX)
			bind(op, SLOT_REG, o);
		else if (id == GPR_RCX)
			bind(op, SLOT_CX, o);
	}
}

/* The VEX prefix: fields of registers that were replaced are neutral, those that 32-bit mode ignores too. */
static unsigned encode_vex(const struct decoded *d, bool memory, bool gpr_reg, bool gpr_rm, uint8_t *out)
{
	const ZydisDecodedInstruction *z = &d->insn;
	bool legacy = z->machine_mode != ZYDIS_MACHINE_MODE_LONG_64;
	/* Stored inverted in the prefix. */
	unsigned r = !legacy && z->raw.vex.R == 0 && !gpr_reg, x = 0;
	unsigned b = !legacy && z->raw.vex.B == 0 && !memory && !gpr_rm;
	unsigned vvvv = z->raw.vex.vvvv & 15;

	/* Zydis reports the raw, inverted bits. */
	if (legacy)
		vvvv |= 8;
	if (!memory && !legacy)
		x = z->raw.vex.X == 0;
	out[0] = 0xc4;
	out[1] = (uint8_t)((!r) << 7 | (!x) << 6 | (!b) << 5 | z->raw.vex.m_mmmm);
	out[2] = (uint8_t)((z->raw.vex.W && !decode_ignores_w(z)) << 7 | vvvv << 3 | z->raw.vex.L << 2 | z->raw.vex.pp);
	return 3;
}

static unsigned encode_legacy(const struct decoded *d, bool memory, bool gpr_reg, bool gpr_rm, uint8_t *out)
{
	const ZydisDecodedInstruction *z = &d->insn;
	unsigned n = 0;
	uint8_t rex = 0, repeat = 0;
	bool x87 = z->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT, opsize = false;

	for (unsigned k = 0; k < z->raw.prefix_count && !x87; k++) {
		uint8_t prefix = z->raw.prefixes[k].value;

		if (z->raw.prefixes[k].type == ZYDIS_PREFIX_TYPE_IGNORED)
			continue;
		if (prefix == 0x66)
			opsize = true;
		else if (prefix == 0xf2 || prefix == 0xf3)
			repeat = prefix;
	}
	if (opsize)
		out[n++] = 0x66;
	if (repeat)
		out[n++] = repeat;
	if (x87 && z->operand_width == 16 && (z->mnemonic == ZYDIS_MNEMONIC_FNSTENV || z->mnemonic == ZYDIS_MNEMONIC_FLDENV ||
		z->mnemonic == ZYDIS_MNEMONIC_FNSAVE || z->mnemonic == ZYDIS_MNEMONIC_FRSTOR))
		out[n++] = 0x66;
	if (z->attributes & ZYDIS_ATTRIB_HAS_REX) {
		rex = 0x40 | (uint8_t)(z->raw.rex.W << 3);
		if (!gpr_reg)
			rex |= (uint8_t)(z->raw.rex.R << 2);
		if (!memory && !gpr_rm)
			rex |= z->raw.rex.B;
		if (rex != 0x40)
			out[n++] = rex;
	}
	switch (z->opcode_map) {
	case ZYDIS_OPCODE_MAP_DEFAULT:
		break;
	case ZYDIS_OPCODE_MAP_0F:
		out[n++] = 0x0f;
		break;
	case ZYDIS_OPCODE_MAP_0F38:
		out[n++] = 0x0f;
		out[n++] = 0x38;
		break;
	case ZYDIS_OPCODE_MAP_0F3A:
		out[n++] = 0x0f;
		out[n++] = 0x3a;
		break;
	default:
		return 0;
	}
	return n;
}

bool native_encode(const struct insn *i, const struct decoded *d, const uint8_t *bytes, struct native_op *op)
{
	const ZydisDecodedInstruction *z = &d->insn;
	bool memory = i->flags & INSN_MEM;
	bool gpr_reg = find_gpr(d, ZYDIS_OPERAND_ENCODING_MODRM_REG) != NULL;
	bool gpr_rm = find_gpr(d, ZYDIS_OPERAND_ENCODING_MODRM_RM) != NULL;
	uint8_t out[24];
	unsigned n;

	if (z->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX)
		n = encode_vex(d, memory, gpr_reg, gpr_rm, out);
	else if (z->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY)
		n = encode_legacy(d, memory, gpr_reg, gpr_rm, out);
	else
		return false;
	if (n == 0 && z->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT)
		return false;
	out[n++] = z->opcode;
	if (z->attributes & ZYDIS_ATTRIB_HAS_MODRM) {
		uint8_t modrm = bytes[z->raw.modrm.offset];

		if (gpr_reg)
			modrm = (uint8_t)((modrm & ~0x38) | THUNK_REG << 3);
		if (memory)
			modrm = (uint8_t)((modrm & 0x38) | THUNK_MEMORY);
		else if (gpr_rm)
			modrm = (uint8_t)((modrm & ~7) | THUNK_RM);
		out[n++] = modrm;
	}
	for (unsigned k = 0; k < 2; k++)
		for (unsigned b = 0; b < z->raw.imm[k].size / 8u; b++)
			out[n++] = bytes[z->raw.imm[k].offset + b];
	/* A register in an immediate (VBLENDVPS): eight of them outside of 64-bit mode. */
	if (z->machine_mode != ZYDIS_MACHINE_MODE_LONG_64)
		for (unsigned k = 0; k < z->operand_count; k++)
			if (d->op[k].encoding == ZYDIS_OPERAND_ENCODING_IS4)
				out[n - 1] &= 0x7f;
	if (n + 1 > sizeof(op->bytes))
		return false;
	out[n++] = 0xc3;
	memset(op->bytes, 0xcc, sizeof(op->bytes));
	memcpy(op->bytes, out, n);
	bind_registers(d, op);
	return true;
}
