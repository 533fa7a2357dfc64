/*
 * Power-up and INIT state of a processor and its local APIC (SDM vol. 3, tables 10-1 and section 11.4.7), and the
 * text form of the registers for crash reports.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "vmm/cpu.h"
#include "vmm/cpu_lapic.h"
#include "vmm/cpu_layout.h"

#define AR_CODE (SEG_AR_P | SEG_AR_S | 0xbu)
#define AR_DATA (SEG_AR_P | SEG_AR_S | 0x3u)
#define AR_LDT (SEG_AR_P | 0x2u)
#define AR_TSS_BUSY (SEG_AR_P | 0xbu)

#define XSAVE_FCW 0
#define XSAVE_MXCSR 24
#define XSAVE_MXCSR_MASK 28
#define XSAVE_BV 512

/* What both kinds of reset do. */
static void reset_common(struct cpu_state *state)
{
	memset(state->gpr, 0, sizeof(state->gpr));
	state->gpr[GPR_RIP] = 0xfff0;
	state->gpr[GPR_RDX] = 0x600; /* family 6 */
	state->rflags = FLAG_FIXED;
	for (unsigned i = 0; i < SEG_COUNT; i++)
		state->seg[i] = (struct cpu_segment){ .ar = AR_DATA, .limit = 0xffff };
	state->seg[SEG_CS] = (struct cpu_segment){
		.selector = 0xf000, .base = 0xffff0000, .ar = AR_CODE, .limit = 0xffff
	};
	state->ldtr = (struct cpu_segment){ .ar = AR_LDT, .limit = 0xffff };
	state->tr = (struct cpu_segment){ .ar = AR_TSS_BUSY, .limit = 0xffff };
	state->gdtr = state->idtr = (struct cpu_table){ .limit = 0xffff };
	state->cr2 = state->cr3 = state->cr4 = 0;
	memset(state->pdpte, 0, sizeof(state->pdpte));
	state->efer = 0;
	memset(state->dr, 0, sizeof(state->dr));
	state->dr6 = DR6_FIXED;
	state->dr7 = DR7_FIXED;
	state->shadow_sti = state->shadow_mov_ss = 0;
	state->nmi_blocked = state->nmi_pending = 0;
	state->pending_dr6 = 0;
	state->pv_wall_clock = state->pv_system_time = 0;
}

void cpu_reset(struct cpu_state *state, bool bootstrap)
{
	uint16_t fcw = 0x40;
	uint32_t mxcsr = 0x1f80, mxcsr_mask = 0xffff;
	uint64_t components = XCR0_X87 | XCR0_SSE | XCR0_AVX;

	memset(state, 0, sizeof(*state));
	reset_common(state);
	state->cr0 = CR0_CD | CR0_NW | CR0_ET;
	state->xcr0 = XCR0_X87;
	state->pat = 0x0007040600070406ull;
	state->misc_enable = 1u | 1u << 11 | 1u << 12; /* fast strings; no BTS, no PEBS */
	memcpy(state->xsave + XSAVE_FCW, &fcw, sizeof(fcw));
	memcpy(state->xsave + XSAVE_MXCSR, &mxcsr, sizeof(mxcsr));
	memcpy(state->xsave + XSAVE_MXCSR_MASK, &mxcsr_mask, sizeof(mxcsr_mask));
	memcpy(state->xsave + XSAVE_BV, &components, sizeof(components));
	state->activity = bootstrap ? CPU_RUNNING : CPU_WAIT_SIPI;
}

void cpu_init(struct cpu_state *state)
{
	reset_common(state);
	state->cr0 = (state->cr0 & (CR0_CD | CR0_NW)) | CR0_ET;
	state->activity = CPU_WAIT_SIPI;
}

void cpu_lapic_reset(struct lapic_state *lapic, uint32_t id, bool bootstrap)
{
	memset(lapic, 0, sizeof(*lapic));
	lapic->apic_base = GPA_LAPIC | 1u << 11 | (bootstrap ? 1u << 8 : 0);
	lapic->id = id;
	lapic->dfr = 0xffffffff;
	lapic->spurious = 0xff;
	for (unsigned i = 0; i < LVT_COUNT; i++)
		lapic->lvt[i] = 1u << 16;
	if (bootstrap)
		lapic->lvt[LVT_LINT0] = 7u << 8;
}

static const char *const gpr_names[16] = { "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8 ", "R9 ", "R10",
					   "R11", "R12", "R13", "R14", "R15" };
static const char *const seg_names[SEG_COUNT] = { "ES", "CS", "SS", "DS", "FS", "GS" };
static const char *const activities[] = { "running", "halted", "waiting for SIPI", "shut down" };

/* Where the next line goes. */
struct text {
	char *data;
	unsigned size, length;
};

__attribute__((format(printf, 2, 3))) static void put(struct text *t, const char *format, ...)
{
	va_list args;
	int n;

	if (t->length + 1 >= t->size)
		return;
	va_start(args, format);
	n = vsnprintf(t->data + t->length, t->size - t->length, format, args);
	va_end(args);
	if (n > 0)
		t->length = (unsigned)n < t->size - t->length ? t->length + (unsigned)n : t->size - 1;
}

static void put_segment(struct text *t, const char *name, const struct cpu_segment *s)
{
	put(t, "%-4s %04x base %016" PRIx64 " limit %08x access %05x\n", name, s->selector, s->base, s->limit, s->ar);
}

static const char *mode_name(const struct cpu_state *s)
{
	if (!(s->cr0 & CR0_PE))
		return "real mode";
	if (s->rflags & FLAG_VM)
		return "virtual-8086 mode";
	if (s->efer & EFER_LMA)
		return s->seg[SEG_CS].ar & SEG_AR_L ? "64-bit mode" : "compatibility mode";
	return s->seg[SEG_CS].ar & SEG_AR_DB ? "32-bit protected mode" : "16-bit protected mode";
}

int cpu_format(const struct cpu_state *s, char *text, unsigned size)
{
	struct text t = { text, size, 0 };

	if (!size)
		return 0;
	text[0] = 0;
	put(&t, "RIP %016" PRIx64 " RFLAGS %016" PRIx64 " CPL %u, %s, %s\n", s->gpr[GPR_RIP], s->rflags,
		s->seg[SEG_SS].ar >> SEG_AR_DPL_SHIFT & 3, mode_name(s), activities[s->activity & 3]);
	for (unsigned i = 0; i < 16; i++)
		put(&t, "%s %016" PRIx64 "%s", gpr_names[i], s->gpr[i], i % 4 == 3 ? "\n" : " ");
	for (unsigned i = 0; i < SEG_COUNT; i++)
		put_segment(&t, seg_names[i], &s->seg[i]);
	put_segment(&t, "LDTR", &s->ldtr);
	put_segment(&t, "TR", &s->tr);
	put(&t, "GDTR base %016" PRIx64 " limit %04x, IDTR base %016" PRIx64 " limit %04x\n", s->gdtr.base, s->gdtr.limit,
		s->idtr.base, s->idtr.limit);
	put(&t, "CR0 %016" PRIx64 " CR2 %016" PRIx64 " CR3 %016" PRIx64 " CR4 %016" PRIx64 "\n", s->cr0, s->cr2, s->cr3,
		s->cr4);
	put(&t, "EFER %016" PRIx64 " XCR0 %016" PRIx64 " DR6 %016" PRIx64 " DR7 %016" PRIx64 "\n", s->efer, s->xcr0, s->dr6,
		s->dr7);
	return (int)t.length;
}
