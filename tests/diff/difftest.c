/*
 * The differential tester of the software CPU: random user-mode instructions are run by the host CPU and by the engine
 * from the same registers and memory, and everything that they leave is compared: general registers, all flags (undefined
 * ones too: the engine has the host compute them), x87, SSE and AVX state, memory, and the exception if there was one.
 *
 *   difftest [--count N] [--seed S] [--length L] [--class all|integer|vector|x87|branch] [--bits 64|32] [--keep-going]
 *
 * The host's run begins and ends in signal handlers: SIGUSR1's return loads the registers of the test, INT3 after the code
 * (or the fault) ends it. With --bits 32 it also loads a 32-bit code segment, which Linux has for every process, and the
 * code runs in compatibility mode. The guest's page tables show the same bytes at the same addresses:
 *
 *   0x10000000  data, 16 KiB, read and write     0x20000000  code, 1 MiB, read     0x30000000  supervisor: IDT, TSS, stack
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

#include "difftest.h"
#include "machine.h"
#include "vmm/error.h"

/* Of Linux; the guest's are like them. */
#define SELECTOR_CODE32 0x23
#define SELECTOR_DATA 0x2b
#define SELECTOR_CODE64 0x33

#define STEPS_MAX 200 /* of a test with branches; it has fewer */

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
	if (t->bits == 32)
		uc->uc_mcontext.gregs[REG_CSGSFS] = (uc->uc_mcontext.gregs[REG_CSGSFS] & ~0xffffll) | SELECTOR_CODE32;
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

static bool find_hidden(struct tester *t)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	char line[512], flags[5];
	unsigned long from, to;

	while (maps && fgets(line, sizeof(line), maps)) {
		if (sscanf(line, "%lx-%lx %4s", &from, &to, flags) != 3 || from >> 32 || from == DATA || from == CODE)
			continue;
		if (t->hidden_count == HIDDEN_MAX)
			return false;
		t->hidden[t->hidden_count++] = (struct hidden){ (void *)from, to - from, (flags[0] == 'r' ? PROT_READ : 0) |
			(flags[1] == 'w' ? PROT_WRITE : 0) | (flags[2] == 'x' ? PROT_EXEC : 0) };
	}
	return maps && !fclose(maps);
}

static void hide(struct tester *t, bool on)
{
	for (unsigned n = 0; n < t->hidden_count; n++)
		if (mprotect(t->hidden[n].at, t->hidden[n].size, on ? PROT_NONE : t->hidden[n].prot))
			abort();
}

static void run_host(struct tester *t)
{
	memcpy((void *)DATA, t->test.data, DATA_SIZE);
	memcpy(t->host_code + (t->test.rip - CODE), t->test.code, t->test.length);
	t->host_code[t->test.rip - CODE + t->test.length] = 0xcc;
	hide(t, true);
	raise(SIGUSR1);
	__asm__ volatile("push $0x202; popf" : : : "cc", "memory"); /* NT and ID survive a signal's return */
	hide(t, false);
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
		tables[512 * pt + ((gva + at) >> 12 & 511)] = (gpa + at) | flags | PTE_P | PTE_A | PTE_D;
	}
}

static void fill_guest(struct tester *t)
{
	uint64_t *tables = (uint64_t *)(t->ram + GPA_TABLES), rsp0 = STACK_TOP;
	uint8_t *system = t->ram + GPA_SYSTEM;

	tables[0] = (GPA_TABLES + 4096) | PTE_P | PTE_W | PTE_U;
	tables[512] = (GPA_TABLES + 8192) | PTE_P | PTE_W | PTE_U;
	map_pages(t, DATA, GPA_DATA, DATA_SIZE, PTE_U | PTE_W);
	map_pages(t, CODE, GPA_CODE, CODE_SIZE, PTE_U);
	map_pages(t, SYSTEM, GPA_SYSTEM, 0x6000, PTE_W);
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

static void set_machine_state(struct cpu_state *c, unsigned bits)
{
	machine_reset(c, GPA_TABLES, SYSTEM);
	c->efer |= EFER_SCE;
	for (unsigned s = 0; s < SEG_COUNT; s++)
		set_segment(&c->seg[s], SELECTOR_DATA, 0, ~0u, 0xc0f3);
	if (bits == 32)
		set_segment(&c->seg[SEG_CS], SELECTOR_CODE32, 0, ~0u, 0xc0fb);
	else
		set_segment(&c->seg[SEG_CS], SELECTOR_CODE64, 0, ~0u, 0xa0fb);
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
	if (vector == EXC_BP) {
		t->guest.vector = -1;
		t->guest.rip--;
	}
	set_machine_state(&t->block->cpu, t->bits);
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
	engine_run(t->engine, t->test.open_ended ? STEPS_MAX : t->test.count);
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

/*
 * Known: of an operand that crosses the end of a 32-bit segment, some CPUs take the page fault of the first part before
 * they look at the limit.
 */
static bool is_wrap(const struct tester *t)
{
	return t->bits == 32 && t->host.vector == EXC_PF && (t->guest.vector == EXC_GP || t->guest.vector == EXC_SS) &&
		(t->test.loose_cr2 || t->host.cr2 > 0xffffff00);
}

/* Known: AMD's processors have a bit 17 in MXCSR (misaligned operands), which the CPU model does not offer. */
static bool is_other_mxcsr(const struct tester *t)
{
	return t->test.loads_mxcsr && t->guest.vector == EXC_GP && (t->host.xsave[26] & 2);
}

static bool compare(struct tester *t, bool print)
{
	const struct outcome *h = &t->host, *g = &t->guest;
	uint64_t mask = t->bits == 32 ? 0xffffffff : ~0ull;
	unsigned bad = 0;

	if (is_wrap(t) || is_other_mxcsr(t))
		return true;
#define CHECK(name, a, b) \
	if ((a) != (b)) { \
		bad++; \
		if (print) \
			printf("  %-6s host %#llx engine %#llx\n", name, (unsigned long long)(a), (unsigned long long)(b)); \
	}
	if (print)
		printf("  ended by exception %d\n", h->vector);
	CHECK("vector", (long long)h->vector, (long long)g->vector);
	CHECK("rip", h->rip, g->rip);
	for (unsigned n = 0; n < (t->bits == 32 ? 8 : 16); n++)
		CHECK(gpr_name[n], h->gpr[n] & mask, g->gpr[n] & mask);
	CHECK("flags", h->rflags & ~(uint64_t)(FLAG_RF | t->test.undefined), g->rflags & ~(uint64_t)(FLAG_RF | t->test.undefined));
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
		if (!ZYAN_SUCCESS(ZydisDisassembleIntel(t->bits == 32 ? ZYDIS_MACHINE_MODE_LONG_COMPAT_32 : ZYDIS_MACHINE_MODE_LONG_64, t->test.rip + at, t->test.code + at,
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
	int fd = memfd_create("difftest", 0), code_fd = memfd_create("difftest-code", 0);

	/* Read-only where it runs, on both sides: tests that rewrite themselves are another test's business. */
	t->host_code = code_fd < 0 || ftruncate(code_fd, CODE_SIZE) ? MAP_FAILED :
		mmap(NULL, CODE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, code_fd, 0);

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
	set_machine_state(&t->block->cpu, t->bits);
	fill_guest(t);
	if (mmap((void *)DATA, DATA_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED ||
		t->host_code == MAP_FAILED ||
		mmap((void *)CODE, CODE_SIZE, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED, code_fd, 0) == MAP_FAILED)
		return false;
	return engine_create(t->block, t->shared, t->ram, &env, &t->engine) == 0 && find_hidden(t);
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
		!strcmp(name, "x87") ? CLASS_X87 : !strcmp(name, "branch") ? CLASS_BRANCH : CLASS_ALL;
}

int main(int argc, char **argv)
{
	static const struct option options[] = { { "count", 1, NULL, 'c' }, { "seed", 1, NULL, 's' },
		{ "length", 1, NULL, 'l' }, { "class", 1, NULL, 'k' }, { "bits", 1, NULL, 'b' },
		{ "keep-going", 0, NULL, 'g' }, { NULL, 0, NULL, 0 } };
	static struct tester tester = { .bits = 64 };
	struct tester *t = &tester;
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
		else if (c == 'b')
			t->bits = atoi(optarg) == 32 ? 32 : 64;
		else if (c == 'g')
			keep_going = true;
		else
			return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	current = t;
	if (t->bits == 32)
		ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_COMPAT_32, ZYDIS_STACK_WIDTH_32);
	else
		ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
	/* Null in a 64-bit process, where they do not count. */
	__asm__ volatile("mov %0, %%ds; mov %0, %%es" : : "r"(SELECTOR_DATA));
	t->code_at = CODE;
	t->source.legacy = t->bits == 32;
	if (!create(t)) {
		fprintf(stderr, "difftest: cannot set up\n");
		return 77;
	}
	catch_signals();
	for (uint64_t n = 0; n < count; n++) {
		insn_source_seed(&t->source, seed, n);
		test_make(t, &decoder, length);
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
