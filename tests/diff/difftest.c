/*
 * The differential tester of the software CPU: random user-mode instructions are run by the host CPU and by the engine
 * from the same registers and memory, and everything that they leave is compared: general registers, all flags (undefined
 * ones too: the engine has the host compute them), x87, SSE and AVX state, memory, and the exception if there was one.
 *
 *   difftest [--count N] [--seed S] [--length L] [--class all|integer|vector|x87] [--keep-going]
 *
 * The host's run begins and ends in signal handlers: SIGUSR1's return loads the registers of the test, INT3 after the code
 * (or the fault) ends it. The guest's page tables show the same bytes at the same addresses:
 *
 *   0x10000000  data, 16 KiB, read and write     0x20000000  code, 1 MiB     0x30000000  supervisor: IDT, TSS, stack
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <Zydis/Zydis.h>

#include "engine/engine_state.h"
#include "random_insn.h"
#include "vmm/error.h"

#define DATA 0x10000000ull
#define DATA_SIZE 0x4000u
#define CODE 0x20000000ull
#define CODE_SIZE 0x100000u
#define SYSTEM 0x30000000ull
#define HANDLERS (SYSTEM + 0x1000)
#define IDT (SYSTEM + 0x2000)
#define TSS (SYSTEM + 0x3000)
#define STACK_TOP (SYSTEM + 0x5000)

#define RAM_SIZE 0x400000u
#define GPA_TABLES 0x1000u
#define GPA_DATA 0x10000u
#define GPA_SYSTEM 0x20000u
#define GPA_CODE 0x100000u

#define XSAVE_BV 512
#define MAX_LENGTH 16

struct outcome {
	uint64_t gpr[16], rip, rflags, cr2;
	int vector; /* −1: reached the end */
	uint8_t xsave[CPU_XSAVE_SIZE];
	uint8_t data[DATA_SIZE];
};

struct test {
	uint8_t code[MAX_LENGTH * 15];
	unsigned length, count;
	bool loose_cr2; /* known: FLDENV and FRSTOR look at their operand's end first on some CPUs; the page counts */
	uint64_t gpr[16], rflags, rip;
	uint8_t xsave[CPU_XSAVE_SIZE];
	uint8_t data[DATA_SIZE];
};

/* One run of the program; the signal handlers reach it through `current`. */
struct tester {
	struct insn_source source;
	struct vcpu_block *block;
	struct vm_shared *shared;
	struct engine *engine;
	uint8_t *ram;
	uint64_t code_at;
	struct test test;
	struct outcome host, guest;
	/* The host's run. */
	greg_t saved_regs[NGREG];
	uint8_t saved_fp[4096];
	unsigned saved_fp_size;
	volatile int running;
};

static struct tester *current;

/* --- the host's run --- */

static const int greg_of[16] = { REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8, REG_R9,
	REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15 };

static unsigned fp_size(const ucontext_t *uc)
{
	uint32_t extended;

	/* sw_reserved: magic, extended size, features, xstate size (the kernel's struct _fpx_sw_bytes) */
	memcpy(&extended, (const uint8_t *)uc->uc_mcontext.fpregs + 464 + 16, sizeof(extended));
	return extended < 832 ? 512 : extended > sizeof(current->saved_fp) ? sizeof(current->saved_fp) : extended;
}

static void enter_host_test(int sig, siginfo_t *info, void *context)
{
	struct tester *t = current;
	ucontext_t *uc = context;
	uint8_t *fp = (uint8_t *)uc->uc_mcontext.fpregs;

	memcpy(t->saved_regs, uc->uc_mcontext.gregs, sizeof(t->saved_regs));
	t->saved_fp_size = fp_size(uc);
	memcpy(t->saved_fp, fp, t->saved_fp_size);
	for (unsigned n = 0; n < 16; n++)
		uc->uc_mcontext.gregs[greg_of[n]] = (greg_t)t->test.gpr[n];
	uc->uc_mcontext.gregs[REG_RIP] = (greg_t)t->test.rip;
	uc->uc_mcontext.gregs[REG_EFL] = (greg_t)t->test.rflags;
	memcpy(fp, t->test.xsave, 464);
	memcpy(fp + XSAVE_BV, t->test.xsave + XSAVE_BV, 8);
	memcpy(fp + 576, t->test.xsave + 576, 256);
	t->running = 1;
}

static void materialize(uint8_t *x)
{
	uint64_t bv;

	memcpy(&bv, x + XSAVE_BV, 8);
	if (!(bv & 1)) {
		memset(x, 0, 24);
		memset(x + 32, 0, 128);
		x[0] = 0x7f;
		x[1] = 3;
	}
	if (!(bv & 2))
		memset(x + 160, 0, 256);
	if (!(bv & 4))
		memset(x + 576, 0, 256);
}

static void leave_host_test(int sig, siginfo_t *info, void *context)
{
	struct tester *t = current;
	ucontext_t *uc = context;
	greg_t *regs = uc->uc_mcontext.gregs;
	uint8_t *fp = (uint8_t *)uc->uc_mcontext.fpregs;

	if (!t->running) {
		if (native_signal(t->engine, sig, info, context))
			return;
		signal(sig, SIG_DFL);
		return;
	}
	t->running = 0;
	for (unsigned n = 0; n < 16; n++)
		t->host.gpr[n] = (uint64_t)regs[greg_of[n]];
	t->host.rip = (uint64_t)regs[REG_RIP];
	t->host.rflags = (uint64_t)regs[REG_EFL];
	t->host.vector = (int)regs[REG_TRAPNO];
	t->host.cr2 = (uint64_t)regs[REG_CR2];
	if (t->host.vector == EXC_BP) {
		t->host.vector = -1;
		t->host.rip--;
	}
	memcpy(t->host.xsave, fp, 512);
	memcpy(t->host.xsave + XSAVE_BV, fp + XSAVE_BV, 320);
	memcpy(regs, t->saved_regs, sizeof(t->saved_regs));
	memcpy(fp, t->saved_fp, t->saved_fp_size);
}

static void run_host(struct tester *t)
{
	memcpy((void *)DATA, t->test.data, DATA_SIZE);
	memcpy((void *)t->test.rip, t->test.code, t->test.length);
	*(uint8_t *)(t->test.rip + t->test.length) = 0xcc;
	raise(SIGUSR1);
	memcpy(t->host.data, (void *)DATA, DATA_SIZE);
	materialize(t->host.xsave);
}

/* --- the engine's run --- */

static uint64_t env_access(void *ctx, unsigned space, uint64_t addr, unsigned size, bool is_write, uint64_t value)
{
	return ~0ull;
}

static uint64_t env_exit(void *ctx, enum vcpu_exit_kind kind)
{
	return 0;
}

static void env_wait(void *ctx, uint64_t deadline_ns)
{
}

static void map_pages(struct tester *t, uint64_t gva, uint64_t gpa, uint64_t size, uint64_t flags)
{
	uint64_t *tables = (uint64_t *)(t->ram + GPA_TABLES);

	for (uint64_t at = 0; at < size; at += 4096) {
		/* PML4, PDPT, one PD; a PT for each 2 MiB that is used: 0x80 + n for PD index 0x80, 0x100, 0x180. */
		uint64_t pd = (gva + at) >> 21 & 511, pt = 3 + pd / 0x80;

		tables[512 * 2 + pd] = (GPA_TABLES + pt * 4096) | PTE_P | PTE_W | PTE_U;
		tables[512 * pt + ((gva + at) >> 12 & 511)] = (gpa + at) | flags | PTE_P | PTE_W | PTE_A | PTE_D;
	}
}

static void fill_guest(struct tester *t)
{
	uint64_t *tables = (uint64_t *)(t->ram + GPA_TABLES), rsp0 = STACK_TOP;
	uint8_t *system = t->ram + GPA_SYSTEM;

	tables[0] = (GPA_TABLES + 4096) | PTE_P | PTE_W | PTE_U;
	tables[512] = (GPA_TABLES + 8192) | PTE_P | PTE_W | PTE_U;
	map_pages(t, DATA, GPA_DATA, DATA_SIZE, PTE_U);
	map_pages(t, CODE, GPA_CODE, CODE_SIZE, PTE_U);
	map_pages(t, SYSTEM, GPA_SYSTEM, 0x6000, 0);
	for (unsigned v = 0; v < 32; v++) {
		uint64_t target = HANDLERS + v * 16;
		uint64_t gate[2] = { (target & 0xffff) | 8ull << 16 | 0xee00ull << 32 | (target >> 16 & 0xffff) << 48,
			target >> 32 };

		memcpy(system + (IDT - SYSTEM) + v * 16, gate, 16);
		memcpy(system + (HANDLERS - SYSTEM) + v * 16, "\xeb\xfe", 2);
	}
	memcpy(system + (TSS - SYSTEM) + 4, &rsp0, 8);
	/* The GDT at SYSTEM: 8 code, 16 data, both DPL 0. */
	memcpy(system + 8, &(uint64_t){ 0x00209b0000000000ull }, 8);
	memcpy(system + 16, &(uint64_t){ 0x00cf93000000ffffull }, 8);
}

static void set_segment(struct cpu_segment *s, uint16_t selector, uint32_t ar)
{
	memset(s, 0, sizeof(*s));
	s->selector = selector;
	s->ar = ar;
	s->limit = 0xffffffff;
}

static void set_machine_state(struct cpu_state *c)
{
	cpu_reset(c, true);
	c->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
	c->cr3 = GPA_TABLES;
	c->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
	c->efer = EFER_LME | EFER_LMA | EFER_SCE | EFER_NXE;
	c->xcr0 = 7;
	for (unsigned s = 0; s < SEG_COUNT; s++)
		set_segment(&c->seg[s], 0x2b, 0xc0f3);
	set_segment(&c->seg[SEG_CS], 0x33, 0xa0fb);
	set_segment(&c->tr, 0x40, 0x8b);
	c->tr.base = TSS;
	c->tr.limit = 0x67;
	c->gdtr = (struct cpu_table){ .base = SYSTEM, .limit = 0x7f };
	c->idtr = (struct cpu_table){ .base = IDT, .limit = 32 * 16 - 1 };
}

static void take_guest_fault(struct tester *t, int vector)
{
	static const uint32_t with_error = 1u << EXC_DF | 1u << EXC_TS | 1u << EXC_NP | 1u << EXC_SS | 1u << EXC_GP |
		1u << EXC_PF | 1u << EXC_AC;
	uint64_t frame[6];
	unsigned skip = with_error >> vector & 1;

	memcpy(frame, t->ram + GPA_SYSTEM + (STACK_TOP - SYSTEM) - 8 * (5 + skip), 8 * (5 + skip));
	t->guest.vector = vector;
	t->guest.rip = frame[skip];
	t->guest.rflags = frame[skip + 2];
	t->guest.gpr[GPR_RSP] = frame[skip + 3];
	set_machine_state(&t->block->cpu);
	engine_state_changed(t->engine);
}

static void run_guest(struct tester *t)
{
	struct cpu_state *c = &t->block->cpu;
	uint64_t rip;

	memcpy(t->ram + GPA_DATA, t->test.data, DATA_SIZE);
	memcpy(t->ram + GPA_CODE + (t->test.rip - CODE), t->test.code, t->test.length);
	t->ram[GPA_CODE + (t->test.rip - CODE) + t->test.length] = 0xcc;
	memcpy(c->gpr, t->test.gpr, sizeof(t->test.gpr));
	c->gpr[GPR_RIP] = t->test.rip;
	c->rflags = t->test.rflags;
	memcpy(c->xsave, t->test.xsave, sizeof(c->xsave));
	c->cr2 = 0;
	engine_run(t->engine, t->test.count);
	memcpy(t->guest.gpr, c->gpr, sizeof(t->guest.gpr));
	memcpy(t->guest.xsave, c->xsave, sizeof(c->xsave));
	materialize(t->guest.xsave);
	t->guest.rflags = c->rflags;
	t->guest.rip = rip = c->gpr[GPR_RIP];
	t->guest.cr2 = c->cr2;
	t->guest.vector = -1;
	if (rip >= HANDLERS && rip < HANDLERS + 32 * 16)
		take_guest_fault(t, (int)(rip - HANDLERS) / 16);
	memcpy(t->guest.data, t->ram + GPA_DATA, DATA_SIZE);
}

/* --- making tests --- */

static int gpr_id(ZydisRegister reg)
{
	ZydisRegisterClass class = ZydisRegisterGetClass(reg);
	int id;

	if (class != ZYDIS_REGCLASS_GPR64 && class != ZYDIS_REGCLASS_GPR32)
		return -1;
	id = ZydisRegisterGetId(reg);
	return id;
}

/* Sets registers, or the displacement, so that a memory operand lies in the data window. */
static void aim_memory(struct tester *t, uint8_t *bytes, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *op,
	uint64_t end)
{
	uint64_t target = DATA + 0x800 + pick(&t->source, DATA_SIZE - 0x1000);
	int base = gpr_id(op->mem.base), index = gpr_id(op->mem.index);
	uint64_t sum = (uint64_t)op->mem.disp.value;

	if (!pick(&t->source, 12))
		target = DATA + 0x1000 * (uint64_t)(1 + pick(&t->source, 3)) - 1 - pick(&t->source, 40); /* across pages */
	else if (!pick(&t->source, 24))
		target = pick(&t->source, 2) ? DATA + DATA_SIZE - 1 - pick(&t->source, 40) : DATA - pick(&t->source, 40); /* or into nothing */
	else if (pick(&t->source, 4))
		target &= ~31ull;
	if (index >= 0 && index != base) {
		if (index != GPR_RSP && z->meta.category != ZYDIS_CATEGORY_AVX2GATHER)
			t->test.gpr[index] = pick(&t->source, 64);
		sum += t->test.gpr[index] * op->mem.scale;
	}
	if (base >= 0 && base != index) {
		t->test.gpr[base] = target - sum;
	} else if (base >= 0) {
		t->test.gpr[base] = (target - sum) / (1 + op->mem.scale);
	} else if (z->raw.disp.size == 32) {
		int32_t disp = (int32_t)(target - (op->mem.base == ZYDIS_REGISTER_RIP ? end : 0) -
			(index >= 0 ? t->test.gpr[index] * op->mem.scale : 0));

		memcpy(bytes + z->raw.disp.offset, &disp, 4);
	}
}

static void random_fp(struct tester *t)
{
	uint8_t *x = t->test.xsave;
	uint64_t bv = 7;
	uint32_t mxcsr = 0x1f80;

	for (unsigned k = 0; k < 832; k += 8) {
		uint64_t v = next_random(&t->source);

		memcpy(x + k, &v, 8);
	}
	memset(x, 0, 32);
	memset(x + 416, 0, 96);
	memset(x + 512, 0, 64);
	memcpy(x + XSAVE_BV, &bv, 8);
	x[0] = 0x7f;
	x[1] = pick(&t->source, 2) ? 3 : (uint8_t)pick(&t->source, 16);
	if (pick(&t->source, 10) == 0)
		x[0] &= (uint8_t)(0xc0 | next_random(&t->source));
	x[4] = pick(&t->source, 3) ? 0xff : (uint8_t)next_random(&t->source);
	x[3] = (uint8_t)(pick(&t->source, 8) << 3);
	if (pick(&t->source, 3) == 0)
		mxcsr = 0x1f80 | (uint32_t)(pick(&t->source, 4) << 13) | (pick(&t->source, 4) == 0 ? 0x8040 : 0);
	if (pick(&t->source, 10) == 0)
		mxcsr &= ~(uint32_t)(pick(&t->source, 64) << 7);
	memcpy(x + 24, &mxcsr, 4);
	/* Half of the numbers are reasonable ones. */
	for (unsigned r = 0; r < 8; r++) {
		memset(x + 32 + 16 * r + 10, 0, 6);
		if (pick(&t->source, 2)) {
			double v = (double)(int64_t)next_random(&t->source) / (double)(1ull << pick(&t->source, 63));
			long double wide = v;

			memcpy(x + 32 + 16 * r, &wide, 10);
		}
	}
	for (unsigned r = 0; r < 16; r++) {
		double v[2] = { (double)(int32_t)next_random(&t->source) / 16, (double)pick(&t->source, 1000) };
		float f[4] = { (float)v[0], (float)v[1], 1.5f, -2.0f };

		if (pick(&t->source, 3) == 0)
			memcpy(x + 160 + 16 * r, v, 16);
		else if (pick(&t->source, 3) == 0)
			memcpy(x + 160 + 16 * r, f, 16);
	}
}

static void random_registers(struct tester *t)
{
	for (unsigned n = 0; n < 16; n++) {
		switch (pick(&t->source, 4)) {
		case 0:
			t->test.gpr[n] = next_random(&t->source);
			break;
		case 1:
			t->test.gpr[n] = next_random(&t->source) >> pick(&t->source, 64);
			break;
		case 2:
			t->test.gpr[n] = (uint64_t)(int64_t)((int)pick(&t->source, 512) - 256);
			break;
		default:
			t->test.gpr[n] = DATA + DATA_SIZE / 2 + pick(&t->source, 256) * 8;
		}
	}
	t->test.gpr[GPR_RSP] = DATA + DATA_SIZE / 2 + pick(&t->source, 64) * 8;
	t->test.gpr[GPR_RSI] = DATA + DATA_SIZE / 2 + pick(&t->source, 256) * 8;
	t->test.gpr[GPR_RDI] = DATA + DATA_SIZE / 2 + pick(&t->source, 256) * 8;
	t->test.gpr[GPR_RBP] = DATA + DATA_SIZE / 2 + pick(&t->source, 256) * 8;
	t->test.rflags = (next_random(&t->source) & (FLAGS_STATUS | FLAG_DF)) | FLAG_FIXED | FLAG_IF;
}

static bool append_insn(struct tester *t, const ZydisDecoder *decoder)
{
	uint8_t b[40];
	ZydisDecodedInstruction z;
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];

	random_bytes(&t->source, b);
	/* Addresses without a register are of no use unless their displacement can be set. */
	if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(decoder, b, 15, &z, ops)) || !insn_allowed(&t->source, &z, ops))
		return false;
	for (unsigned k = 0; k < z.operand_count; k++) {
		bool hidden = ops[k].visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN;

		if (ops[k].type == ZYDIS_OPERAND_TYPE_MEMORY && !hidden && pick(&t->source, 50))
			aim_memory(t, b, &z, &ops[k], t->test.rip + t->test.length + z.length);
		/* A register that counts: repeats stay short, bit offsets near. */
		if (z.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE))
			t->test.gpr[GPR_RCX] = pick(&t->source, 40);
		if (z.meta.category == ZYDIS_CATEGORY_BITBYTE && k == 1 && ops[1].type == ZYDIS_OPERAND_TYPE_REGISTER &&
			ops[0].type == ZYDIS_OPERAND_TYPE_MEMORY && gpr_id(ops[1].reg.value) >= 0 &&
			gpr_id(ops[1].reg.value) != gpr_id(ops[0].mem.base))
			t->test.gpr[gpr_id(ops[1].reg.value)] = (uint64_t)(int64_t)((int)pick(&t->source, 8192) - 4096);
	}
	if (z.mnemonic == ZYDIS_MNEMONIC_FLDENV || z.mnemonic == ZYDIS_MNEMONIC_FRSTOR)
		t->test.loose_cr2 = true;
	if (z.mnemonic == ZYDIS_MNEMONIC_XLAT)
		t->test.gpr[GPR_RBX] = DATA + 0x1000;
	memcpy(t->test.code + t->test.length, b, z.length);
	t->test.length += z.length;
	t->test.count++;
	return true;
}

static void make_test(struct tester *t, const ZydisDecoder *decoder, unsigned length)
{
	if (t->code_at + 512 > CODE + CODE_SIZE) {
		t->code_at = CODE;
		engine_state_changed(t->engine);
	}
	t->test.rip = t->code_at;
	t->test.length = t->test.count = 0;
	t->test.loose_cr2 = false;
	random_registers(t);
	random_fp(t);
	for (unsigned k = 0; k < DATA_SIZE; k += 8) {
		uint64_t v = next_random(&t->source);

		memcpy(t->test.data + k, &v, 8);
	}
	while (t->test.count < length)
		append_insn(t, decoder);
	t->code_at += t->test.length + 16;
}

/* --- comparing --- */

static const char *const gpr_name[16] = { "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11",
	"r12", "r13", "r14", "r15" };

static unsigned compare_bytes(const char *what, const uint8_t *host, const uint8_t *guest, unsigned from, unsigned to,
	bool print, const uint8_t *before)
{
	unsigned different = 0;

	for (unsigned k = from; k < to; k++) {
		if (host[k] == guest[k])
			continue;
		if (print && different < 16)
			printf("  %s[%#x]: before %02x host %02x engine %02x\n", what, k, before[k], host[k], guest[k]);
		different++;
	}
	return different;
}

static bool compare(struct tester *t, bool print)
{
	const struct outcome *h = &t->host, *g = &t->guest;
	unsigned bad = 0;

#define CHECK(name, a, b) \
	if ((a) != (b)) { \
		bad++; \
		if (print) \
			printf("  %-6s host %#llx engine %#llx\n", name, (unsigned long long)(a), (unsigned long long)(b)); \
	}
	CHECK("vector", (long long)h->vector, (long long)g->vector);
	CHECK("rip", h->rip, g->rip);
	for (unsigned n = 0; n < 16; n++)
		CHECK(gpr_name[n], h->gpr[n], g->gpr[n]);
	CHECK("flags", h->rflags & ~FLAG_RF, g->rflags & ~FLAG_RF);
	if (h->vector == EXC_PF)
		CHECK("cr2", h->cr2 >> (t->test.loose_cr2 ? 12 : 0), g->cr2 >> (t->test.loose_cr2 ? 12 : 0));
	if (memcmp(h->data, g->data, DATA_SIZE))
		bad += compare_bytes("data", h->data, g->data, 0, DATA_SIZE, print, t->test.data);
	bad += compare_bytes("xsave", h->xsave, g->xsave, 0, 6, print, t->test.xsave);
	bad += compare_bytes("xsave", h->xsave, g->xsave, 24, 28, print, t->test.xsave);
	for (unsigned r = 0; r < 8; r++)
		bad += compare_bytes("st", h->xsave, g->xsave, 32 + 16 * r, 42 + 16 * r, print, t->test.xsave);
	bad += compare_bytes("xmm", h->xsave, g->xsave, 160, 416, print, t->test.xsave);
	bad += compare_bytes("ymmh", h->xsave, g->xsave, 576, 832, print, t->test.xsave);
	return bad == 0;
}

static void print_test(const struct tester *t, uint64_t number)
{
	ZydisDisassembledInstruction d;

	printf("test %llu:\n", (unsigned long long)number);
	for (unsigned at = 0; at < t->test.length; at += d.info.length) {
		if (!ZYAN_SUCCESS(ZydisDisassembleIntel(ZYDIS_MACHINE_MODE_LONG_64, t->test.rip + at, t->test.code + at,
			    t->test.length - at, &d)))
			break;
		printf("  %#llx ", (unsigned long long)(t->test.rip + at));
		for (unsigned k = 0; k < d.info.length; k++)
			printf("%02x", t->test.code[at + k]);
		printf("  %s\n", d.text);
	}
	printf("  before: flags %#llx fcw %02x%02x mxcsr %02x%02x", (unsigned long long)t->test.rflags, t->test.xsave[1],
		t->test.xsave[0], t->test.xsave[25], t->test.xsave[24]);
	for (unsigned n = 0; n < 16; n++)
		printf(" %s %#llx", gpr_name[n], (unsigned long long)t->test.gpr[n]);
	printf("\n");
}

/* --- setting up --- */

static bool create(struct tester *t)
{
	static const struct engine_env env = { env_access, env_exit, env_wait, NULL, NULL, -1 };
	struct error err;
	int fd = memfd_create("difftest", 0);

	t->ram = fd < 0 || ftruncate(fd, RAM_SIZE) ? MAP_FAILED :
		mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	t->block = aligned_alloc(4096, (sizeof(*t->block) + 4095) & ~4095ul);
	t->shared = calloc(1, sizeof(*t->shared) + 4096);
	if (t->ram == MAP_FAILED || !t->block || !t->shared)
		return false;
	memset(t->block, 0, sizeof(*t->block));
	t->block->magic = VCPU_BLOCK_MAGIC;
	t->block->ram.ranges[0].size = RAM_SIZE;
	t->block->ram.file_size = RAM_SIZE;
	t->shared->cpu_count = 1;
	if (cpu_model_create("common", 1, &t->block->model, &err))
		return false;
	set_machine_state(&t->block->cpu);
	fill_guest(t);
	if (mmap((void *)DATA, DATA_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED ||
		mmap((void *)CODE, CODE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
			-1, 0) == MAP_FAILED)
		return false;
	return engine_create(t->block, t->shared, t->ram, &env, &t->engine) == 0;
}

static void catch_signals(void)
{
	static const int faults[] = { SIGTRAP, SIGSEGV, SIGBUS, SIGFPE, SIGILL };
	struct sigaction action = { .sa_flags = SA_SIGINFO | SA_ONSTACK };
	static uint8_t stack_bytes[65536];
	stack_t stack = { .ss_sp = stack_bytes, .ss_size = sizeof(stack_bytes) };

	sigaltstack(&stack, NULL);
	sigfillset(&action.sa_mask);
	for (unsigned n = 0; n < sizeof(faults) / sizeof(faults[0]); n++)
		sigdelset(&action.sa_mask, faults[n]);
	action.sa_sigaction = leave_host_test;
	for (unsigned n = 0; n < sizeof(faults) / sizeof(faults[0]); n++)
		sigaction(faults[n], &action, NULL);
	action.sa_sigaction = enter_host_test;
	sigaction(SIGUSR1, &action, NULL);
}

static enum insn_class parse_class(const char *name)
{
	return !strcmp(name, "integer") ? CLASS_INTEGER : !strcmp(name, "vector") ? CLASS_VECTOR :
		!strcmp(name, "x87") ? CLASS_X87 : CLASS_ALL;
}

int main(int argc, char **argv)
{
	static const struct option options[] = { { "count", 1, NULL, 'c' }, { "seed", 1, NULL, 's' },
		{ "length", 1, NULL, 'l' }, { "class", 1, NULL, 'k' }, { "keep-going", 0, NULL, 'g' }, { NULL, 0, NULL, 0 } };
	struct tester *t = calloc(1, sizeof(*t));
	uint64_t count = 100000, seed = 1, failures = 0, faults = 0;
	unsigned length = 1;
	bool keep_going = false;
	ZydisDecoder decoder;

	for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
		if (c == 'c')
			count = strtoull(optarg, NULL, 0);
		else if (c == 's')
			seed = strtoull(optarg, NULL, 0);
		else if (c == 'l')
			length = (unsigned)atoi(optarg) > MAX_LENGTH ? MAX_LENGTH : (unsigned)atoi(optarg);
		else if (c == 'k')
			t->source.class = parse_class(optarg);
		else if (c == 'g')
			keep_going = true;
		else
			return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	current = t;
	t->code_at = CODE;
	ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
	if (!create(t)) {
		fprintf(stderr, "difftest: cannot set up\n");
		return 77;
	}
	catch_signals();
	for (uint64_t n = 0; n < count; n++) {
		/* Each test can be made again from the seed and its number. */
		insn_source_seed(&t->source, seed, n);
		make_test(t, &decoder, length);
		run_host(t);
		run_guest(t);
		faults += t->host.vector >= 0;
		if (compare(t, false))
			continue;
		print_test(t, n);
		compare(t, true);
		if (++failures >= 200 || !keep_going)
			break;
	}
	printf("%llu tests of %u instructions, seed %llu: %llu differ; %llu ended in an exception\n", (unsigned long long)count,
		length, (unsigned long long)seed, (unsigned long long)failures, (unsigned long long)faults);
	engine_destroy(t->engine);
	return failures ? 1 : 0;
}
