#include "engines.h"

#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>

#include "engine/native.h"
#include "engine/translate.h"
#include "vmm/error.h"

#define LIMIT 3000u /* instructions of a run until it ends or is resumed */
#define RESUMES 24u
#define ALARM_US 60
#define ALARMS_MAX 30000u
#define FAILURES_MAX 200u

static struct tester *current; /* for the signals */

/* --- the engines' environment --- */

static uint64_t env_access(void *ctx, unsigned space, uint64_t addr, unsigned size, bool is_write, uint64_t value)
{
	return current->subject->access(ctx, space, addr, size, is_write, value);
}

static uint64_t env_exit(void *ctx, enum vcpu_exit_kind kind)
{
	(void)ctx;
	(void)kind;
	return 0;
}

/* HLT: the program has ended. */
static void env_wait(void *ctx, uint64_t deadline_ns)
{
	struct side *side = ctx;

	(void)deadline_ns;
	atomic_fetch_or(&side->block->events, VCPU_EVENT_EXIT);
}

static void no_timer(void *ctx, uint64_t deadline_ns)
{
	(void)ctx;
	(void)deadline_ns;
}

static void on_fault(int sig, siginfo_t *info, void *context)
{
	for (unsigned n = 0; n < 2; n++) {
		struct engine *e = current->sides[n].engine;

		if (e && (translator_signal(e, sig, info, context) || native_signal(e, sig, info, context)))
			return;
	}
	signal(sig, SIG_DFL);
}

/* An event that leads to nothing, so that translated code is left at its polls; and an end if the translator runs for ever. */
static void on_alarm(int sig)
{
	(void)sig;
	atomic_fetch_or(&current->sides[1].block->events,
		++current->alarms > ALARMS_MAX ? VCPU_EVENT_EXIT | VCPU_EVENT_TIMER : VCPU_EVENT_TIMER);
}

static void catch_signals(void)
{
	static const int faults[] = { SIGTRAP, SIGSEGV, SIGBUS, SIGFPE, SIGILL };
	static uint8_t stack_bytes[65536];
	struct sigaction action = { .sa_flags = SA_SIGINFO | SA_ONSTACK };
	stack_t stack = { .ss_sp = stack_bytes, .ss_size = sizeof(stack_bytes) };

	sigaltstack(&stack, NULL);
	sigfillset(&action.sa_mask);
	action.sa_sigaction = on_fault;
	for (unsigned n = 0; n < sizeof(faults) / sizeof(faults[0]); n++)
		sigaction(faults[n], &action, NULL);
	action.sa_flags = SA_ONSTACK | SA_RESTART;
	action.sa_handler = on_alarm;
	sigaction(SIGALRM, &action, NULL);
}

static bool side_create(struct tester *t, struct side *side, enum vcpu_engine kind)
{
	struct engine_env env = { env_access, env_exit, env_wait, no_timer, side, -1 };
	size_t ram_size = t->subject->ram_size;
	struct error err;
	int fd = memfd_create(t->subject->name, 0);

	side->ram = fd < 0 || ftruncate(fd, (off_t)ram_size) ? MAP_FAILED :
		mmap(NULL, ram_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	side->block = mmap(NULL, sizeof(*side->block), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	side->shared = calloc(1, sizeof(*side->shared) + 4096);
	if (side->ram == MAP_FAILED || side->block == MAP_FAILED || !side->shared)
		return false;
	side->block->magic = VCPU_BLOCK_MAGIC;
	side->block->engine = kind;
	side->block->ram.ranges[0].size = ram_size;
	side->block->ram.file_size = ram_size;
	side->shared->cpu_count = 1;
	if (cpu_model_create("common", 1, &side->block->model, &err))
		return false;
	t->subject->first_state(side);
	env.ram_fd = fd;
	return engine_create(side->block, side->shared, side->ram, &env, &side->engine) == 0;
}

/* --- the guest --- */

uint64_t page_entry(char type, bool user, uint64_t gpa, uint64_t mmio)
{
	uint64_t entry = gpa | PTE_P | PTE_W | PTE_A | PTE_D | (user ? PTE_U : 0);

	switch (type) {
	case 'r':
		return entry & ~PTE_W;
	case 'n':
		return entry & ~PTE_P;
	case 'd':
		return entry & ~PTE_D;
	case 'a':
		return entry & ~(PTE_A | PTE_D);
	case 'x':
		return entry ^ PTE_U;
	case 'm':
		return (entry & 0xfff) | mmio;
	default:
		return entry;
	}
}

void fill_random(uint8_t *memory, size_t size, uint64_t seed)
{
	struct insn_source s = { 0 };

	insn_source_seed(&s, seed, 7);
	for (size_t k = 0; k < size; k += 8) {
		uint64_t v = next_random(&s);

		memcpy(memory + k, &v, 8);
	}
}

/* All masked or not, some registers in use, some numbers and some nonsense in them. */
static void random_x87(struct cpu_state *c, struct insn_source *s)
{
	c->xsave[1] = (uint8_t)(3 | pick(s, 4) << 2);
	c->xsave[3] = (uint8_t)(pick(s, 8) << 3);
	c->xsave[4] = (uint8_t)next_random(s);
	for (unsigned n = 0; n < 8; n++) {
		uint64_t significand = next_random(s) | 1ull << 63;
		uint16_t exponent = (uint16_t)(pick(s, 4) ? 0x3fff + pick(s, 40) - 20 : next_random(s));

		memcpy(c->xsave + 32 + n * 16, &significand, 8);
		memcpy(c->xsave + 40 + n * 16, &exponent, 2);
	}
}

void random_vectors(struct cpu_state *c, struct insn_source *s, bool x87)
{
	uint32_t mxcsr = pick(s, 8) ? 0x1f80 : 0x1f80 & ~(pick(s, 64) << 7);

	for (unsigned k = 0; k < 256; k += 8) {
		uint64_t v = next_random(s), high = next_random(s);

		memcpy(c->xsave + XSAVE_XMM + k, &v, 8);
		memcpy(c->xsave + XSAVE_YMMH + k, &high, 8);
	}
	c->xsave[XSAVE_BV] = 7;
	c->xsave[0] = 0x7f;
	c->xsave[1] = 3;
	memcpy(c->xsave + XSAVE_MXCSR, &mxcsr, 4);
	if (pick(s, 6) == 0)
		c->xsave[0] = 0x40 | (uint8_t)pick(s, 64);
	if (x87)
		random_x87(c, s);
	else
		c->xsave[4] = (uint8_t)next_random(s);
	if (pick(s, 30) == 0)
		c->cr0 |= CR0_TS;
}

void side_resume(struct side *side, uint64_t rip, uint64_t rsp, uint64_t rflags)
{
	struct cpu_state *c = &side->block->cpu;

	c->gpr[GPR_RSP] = rsp;
	c->gpr[GPR_RIP] = rip;
	c->rflags = rflags & ~(FLAG_TF | FLAG_RF | FLAG_AC | FLAG_NT);
	c->activity = CPU_RUNNING;
	atomic_store(&side->block->events, 0);
	engine_update_mode(side->engine);
}

/* --- comparing --- */

unsigned compare_bytes(const char *what, const uint8_t *a, const uint8_t *b, size_t size, bool print)
{
	unsigned different = 0;

	if (!memcmp(a, b, size))
		return 0;
	for (size_t k = 0; k < size; k++) {
		if (a[k] == b[k])
			continue;
		if (print && different < 24)
			printf("  %s[%#zx]: interpreter %02x translator %02x\n", what, k, a[k], b[k]);
		different++;
	}
	return different;
}

static bool same_state(struct tester *t, bool print)
{
	struct side *a = &t->sides[0], *b = &t->sides[1];
	struct cpu_state *c = &a->block->cpu, *d = &b->block->cpu;
	unsigned bad = a->kind != b->kind || a->mmio != b->mmio;

	native_materialize(c);
	native_materialize(d);
	if (print && bad)
		printf("  end %u, %u; MMIO %#llx, %#llx\n", a->kind, b->kind, (unsigned long long)a->mmio, (unsigned long long)b->mmio);
	for (unsigned n = 0; n < GPR_COUNT; n++) {
		if (c->gpr[n] == d->gpr[n])
			continue;
		bad++;
		if (print)
			printf("  %-6s interpreter %#llx translator %#llx\n", t->subject->gpr_names[n], (unsigned long long)c->gpr[n],
				(unsigned long long)d->gpr[n]);
	}
	if (print && c->rflags != d->rflags)
		printf("  flags  interpreter %#llx translator %#llx\n", (unsigned long long)c->rflags, (unsigned long long)d->rflags);
	bad += compare_bytes("state", (uint8_t *)&c->rflags, (uint8_t *)&d->rflags,
		offsetof(struct cpu_state, xsave) - offsetof(struct cpu_state, rflags), print);
	/* But for MXCSR_MASK. */
	bad += compare_bytes("xsave", c->xsave, d->xsave, 28, print);
	bad += compare_bytes("vectors", c->xsave + 32, d->xsave + 32, 512 - 32, print);
	bad += compare_bytes("ymm high", c->xsave + XSAVE_YMMH, d->xsave + XSAVE_YMMH, 256, print);
	return bad == 0;
}

static bool same(struct tester *t, bool whole, bool print)
{
	bool state = same_state(t, print);

	return t->subject->same_memory(t, whole, print) && state;
}

/* --- running --- */

static bool in_handlers(const struct tester *t)
{
	return t->sides[0].block->cpu.gpr[GPR_RIP] - t->subject->handlers < 32 * 16;
}

/* Both, until the interpreter has ended, or its limit: then false. */
static bool run_both(struct tester *t)
{
	struct itimerval often = { .it_value.tv_usec = ALARM_US, .it_interval.tv_usec = ALARM_US }, none = { 0 };
	struct side *a = &t->sides[0], *b = &t->sides[1];

	a->kind = engine_run(a->engine, LIMIT);
	if (a->kind == VCPU_EXIT_NONE || (t->subject->accesses_max && a->accesses > t->subject->accesses_max))
		return false;
	t->alarms = 0;
	setitimer(ITIMER_REAL, &often, NULL);
	b->kind = engine_run(b->engine, 0);
	setitimer(ITIMER_REAL, &none, NULL);
	t->ended++;
	t->faults += in_handlers(t);
	return true;
}

static void ram_equalize(struct tester *t)
{
	if (t->subject->all_ram)
		memcpy(t->sides[1].ram, t->sides[0].ram, t->subject->ram_size);
}

static bool differ(struct tester *t, unsigned run, bool print)
{
	if (print) {
		printf("  run %u, ", run);
		t->subject->describe(t);
		same(t, t->subject->all_ram, true);
	}
	ram_equalize(t);
	return false;
}

/* True: the engines agree, or it did not end. */
static bool run_program(struct tester *t, uint64_t seed, uint64_t number, bool print)
{
	const struct subject *subject = t->subject;
	struct insn_source s = { 0 };
	unsigned run;

	subject->begin(t, number);
	for (run = 0; run < t->runs && (!run || t->sides[0].kind != VCPU_EXIT_SHUTDOWN); run++) {
		unsigned resumed = 0;

		insn_source_seed(&s, seed * 977 + run + 1, number);
		subject->prepare(t, &s);
		do {
			if (!run_both(t)) {
				ram_equalize(t);
				return true;
			}
			subject->forgive(t);
			if (!same(t, false, false))
				return differ(t, run, print);
		} while (resumed++ < RESUMES && subject->resume(t));
	}
	return !subject->all_ram || same(t, true, false) || differ(t, run, print);
}

static void shrink(struct tester *t, uint64_t seed, uint64_t number)
{
	uint64_t ended = t->ended, faults = t->faults;
	unsigned count;
	struct gadget *row = t->subject->row(t, &count);

	for (unsigned round = 0; round < 2; round++) {
		for (unsigned n = count - 1; n-- > 0;) {
			if (row[n].dropped)
				continue;
			row[n].dropped = true;
			if (run_program(t, seed, number, false))
				row[n].dropped = false;
		}
	}
	t->ended = ended;
	t->faults = faults;
}

static bool test(struct tester *t, uint64_t seed, uint64_t number, unsigned length)
{
	struct insn_source s = { 0 };

	insn_source_seed(&s, seed, number);
	t->subject->make(t, &s, length > 2 ? 2 + pick(&s, length - 2) : length);
	if (run_program(t, seed, number, false))
		return true;
	same(t, false, true);
	shrink(t, seed, number);
	printf("program %llu of seed %llu:\n", (unsigned long long)number, (unsigned long long)seed);
	t->subject->print(t);
	if (run_program(t, seed, number, true))
		printf("  not seen again: it depends on when events come\n");
	return false;
}

struct options {
	uint64_t count, seed, first;
	unsigned length, runs;
	enum vcpu_engine engine;
	bool keep_going;
};

static bool options_read(struct options *o, int argc, char **argv)
{
	static const struct option options[] = { { "count", 1, NULL, 'c' }, { "seed", 1, NULL, 's' }, { "first", 1, NULL, 'f' },
		{ "length", 1, NULL, 'l' }, { "runs", 1, NULL, 'r' }, { "lockstep", 0, NULL, 'k' }, { "keep-going", 0, NULL, 'g' },
		{ NULL, 0, NULL, 0 } };

	for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
		unsigned long long value = optarg ? strtoull(optarg, NULL, 0) : 0;

		switch (c) {
		case 'c': o->count = value; break;
		case 's': o->seed = value; break;
		case 'f': o->first = value; break;
		case 'l': o->length = value < 2 ? 2 : value > GADGETS_MAX ? GADGETS_MAX : (unsigned)value; break;
		case 'r': o->runs = (unsigned)value; break;
		case 'k': o->engine = VCPU_ENGINE_LOCKSTEP; break;
		case 'g': o->keep_going = true; break;
		default: return false;
		}
	}
	return true;
}

static void summary(const struct tester *t, const struct options *o, uint64_t failures)
{
	const struct engine_stats *stats = t->sides[1].engine->stats;

	printf("%llu programs, seed %llu: %llu differ; %llu runs, %llu ended in an exception; %llu blocks and %llu regions translated, "
	       "entered %llu times, left %llu times for the interpreter, %llu operands in another slot, %llu given to the software TLB, "
	       "which did not have the page %llu times; the oldest code was forgotten %llu times\n",
		(unsigned long long)o->count, (unsigned long long)o->seed, (unsigned long long)failures, (unsigned long long)t->ended,
		(unsigned long long)t->faults, (unsigned long long)stats->blocks_translated,
		(unsigned long long)stats->regions_translated, (unsigned long long)stats->code_entries,
		(unsigned long long)stats->exits_interp, (unsigned long long)stats->exits_miss,
		(unsigned long long)stats->soft_sites, (unsigned long long)stats->exits_soft, (unsigned long long)stats->code_parts);
}

int engines_main(const struct subject *subject, int argc, char **argv)
{
	struct options o = { .count = 2000, .seed = 1, .length = 24, .runs = 6, .engine = VCPU_ENGINE_TRANSLATE };
	struct tester *t = calloc(1, subject->tester_size);
	struct translator *translator;
	uint64_t failures = 0;

	if (!t)
		return 77;
	if (!options_read(&o, argc, argv))
		return 2;
	t->subject = subject;
	t->runs = o.runs;
	setvbuf(stdout, NULL, _IOLBF, 0);
	current = t;
	catch_signals();
	if (!side_create(t, &t->sides[0], VCPU_ENGINE_INTERP) || !side_create(t, &t->sides[1], o.engine) ||
		!subject->possible(t->sides[1].engine)) {
		fprintf(stderr, "%s: there is no translator of such code here\n", subject->name);
		return 77;
	}
	translator = t->sides[1].engine->translator;
	translator->heat = 1;
	translator->hot_after = 2;
	translator->watch = 5;
	translator->hot.string_mask = -4ull;
	for (uint64_t n = o.first; n < o.first + o.count; n++) {
		/* Every other program with each operand that faults given to the software TLB. */
		translator->soft_after = n % 2 ? 1 : ~0u >> 1;
		/* Half of them with so little room for code that it is forgotten while they run. */
		translator->part_tbs = n / 2 % 2 ? 2 + (unsigned)(n / 4 % 16) : TB_MAX / PARTS;
		if (!test(t, o.seed, n, o.length) && (++failures >= FAILURES_MAX || !o.keep_going))
			break;
	}
	summary(t, &o, failures);
	engine_destroy(t->sides[0].engine);
	engine_destroy(t->sides[1].engine);
	return failures ? 1 : 0;
}
