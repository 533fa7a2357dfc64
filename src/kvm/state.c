/*
 * The architectural state of a vcpu, to and from struct cpu_state. Both directions are made for a vcpu between two
 * instructions (vcpu.c). What KVM holds that is not a register:
 *
 *   interrupt injected   accepted, not delivered   → cpu_state.event (a software interrupt: executed again instead)
 *   exception injected   likewise                  → cpu_state.event (INT3, INTO: executed again instead)
 *   exception pending    raised, payload aside     → cpu_state.event and CR2, or pending_dr6 for #DB
 *   NMI injected         accepted, not delivered   → cpu_state.event
 *   vector from the PIC  given, not accepted       → cpu_state.event (its INTA cycle is over: it cannot be taken back)
 *   triple fault pending                           → CPU_SHUTDOWN
 *
 * Order of restoring: special registers (they carry EFER and CR4, on which others depend), XCR0, XSAVE, MSRs, the TSC
 * offset, general registers, events, debug registers, activity. The APIC base stays as it is: lapic.c sets it.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <x86intrin.h>

#include "kvm_vm.h"

#ifndef KVM_VCPU_TSC_CTRL
#define KVM_VCPU_TSC_CTRL 0
#define KVM_VCPU_TSC_OFFSET 0
#endif

#define XSAVE_BV 512
#define XSAVE_KVM_SIZE 4096

int kvm_fail(struct kvm_vcpu *v, const char *what)
{
	int rc = -errno;

	if (!v->failed)
		snprintf(v->failure, sizeof(v->failure), "KVM refuses %s: %s", what, strerror(errno));
	v->failed = true;
	return rc ? rc : -EIO;
}

/* --- MSRs --- */

/* Those that are plain storage on both sides. */
static uint64_t *msr_field(struct cpu_state *s, unsigned n, uint32_t *index)
{
	static const uint32_t fixed[11] = { 0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f };
	const struct {
		uint32_t index;
		uint64_t *field;
	} plain[] = {
		{ MSR_STAR, &s->star }, { MSR_LSTAR, &s->lstar }, { MSR_CSTAR, &s->cstar }, { MSR_SFMASK, &s->sfmask },
		{ MSR_KERNEL_GS_BASE, &s->kernel_gs_base }, { MSR_SYSENTER_CS, &s->sysenter_cs },
		{ MSR_SYSENTER_ESP, &s->sysenter_esp }, { MSR_SYSENTER_EIP, &s->sysenter_eip }, { MSR_PAT, &s->pat },
		{ MSR_TSC_AUX, &s->tsc_aux }, { MSR_TSC_ADJUST, &s->tsc_adjust }, { MSR_MISC_ENABLE, &s->misc_enable },
		{ MSR_SPEC_CTRL, &s->spec_ctrl }, { MSR_PV_WALL_CLOCK, &s->pv_wall_clock },
		{ MSR_PV_SYSTEM_TIME, &s->pv_system_time }, { MSR_MTRR_DEF_TYPE, &s->mtrr_def_type },
	};
	const unsigned count = sizeof(plain) / sizeof(plain[0]);

	if (n < count) {
		*index = plain[n].index;
		return plain[n].field;
	}
	n -= count;
	if (n < 11) {
		*index = fixed[n];
		return &s->mtrr_fixed[n];
	}
	n -= 11;
	if (n < 16) {
		*index = MSR_MTRR_PHYSBASE0 + n;
		return &s->mtrr_var[n];
	}
	return NULL;
}

/*
 * All in one call; where KVM does not know one it stops there, and the rest is tried again. What it does not know stays as it
 * is when reading, and must be zero or without a function (the model does not offer it) when writing.
 */
static void get_msrs(struct kvm_vcpu *v, struct cpu_state *s)
{
	union msr_space list;
	unsigned first = 0, count;

	for (;;) {
		int got;

		memset(&list, 0, sizeof(list));
		for (count = 0; msr_field(s, first + count, &list.head.entries[count].index); count++)
			;
		list.head.nmsrs = count;
		if (!count)
			return;
		got = kvm_ioctl_ptr(v->fd, KVM_GET_MSRS, &list.head);
		for (int i = 0; i < got; i++)
			*msr_field(s, first + (unsigned)i, &list.head.entries[i].index) = list.head.entries[i].data;
		first += (got < 0 ? 0 : (unsigned)got) + 1;
		if (got == (int)count)
			return;
	}
}

/*
 * Only what differs: to write an address of the paravirtual clock again makes KVM write to guest memory. Where KVM refuses one
 * the rest is tried again.
 */
static void set_msrs(struct kvm_vcpu *v, const struct cpu_state *state)
{
	struct cpu_state wanted = *state, now = *state;
	union msr_space list;
	unsigned count = 0;

	memset(&list, 0, sizeof(list));
	get_msrs(v, &now);
	for (unsigned n = 0; n < KVM_MSR_MAX; n++) {
		const uint64_t *field = msr_field(&wanted, n, &list.head.entries[count].index);

		if (!field)
			break;
		if (*field != *msr_field(&now, n, &list.head.entries[count].index))
			list.head.entries[count++].data = *field;
	}
	for (unsigned first = 0; first < count;) {
		int done;

		list.head.nmsrs = count - first;
		done = kvm_ioctl_ptr(v->fd, KVM_SET_MSRS, &list.head);
		done = done < 0 ? 0 : done;
		first += (unsigned)done + 1;
		if (first < count)
			memmove(list.head.entries, list.head.entries + done + 1,
				(count - first) * sizeof(list.head.entries[0]));
	}
}

/* --- the TSC: guest = host + offset --- */

static bool tsc_attr(struct kvm_vcpu *v, unsigned long request, uint64_t *offset)
{
	struct kvm_device_attr attr = { .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uintptr_t)offset };

	return kvm_ioctl_ptr(v->fd, request, &attr) == 0;
}

static void get_tsc(struct kvm_vcpu *v, struct cpu_state *s)
{
	uint64_t now = 0;

	if (tsc_attr(v, KVM_GET_DEVICE_ATTR, &s->tsc_offset))
		return;
	/* Linux before 5.16: as near as two readings come. */
	if (kvm_msr(v->fd, KVM_GET_MSRS, MSR_TSC, &now))
		s->tsc_offset = now - __rdtsc();
}

static void set_tsc(struct kvm_vcpu *v, const struct cpu_state *s)
{
	uint64_t now, offset = s->tsc_offset;

	if (tsc_attr(v, KVM_SET_DEVICE_ATTR, &offset))
		return;
	now = __rdtsc() + offset;
	kvm_msr(v->fd, KVM_SET_MSRS, MSR_TSC, &now);
}

/* --- segments and special registers --- */

static void get_segment(struct cpu_segment *to, const struct kvm_segment *from)
{
	memset(to, 0, sizeof(*to));
	to->selector = from->selector;
	to->base = from->base;
	to->limit = from->limit;
	to->ar = (from->type & 15u) | (from->s & 1u) << 4 | (from->dpl & 3u) << SEG_AR_DPL_SHIFT | (from->present & 1u) << 7 |
		(from->avl & 1u) << 12 | (from->l & 1u) << 13 | (from->db & 1u) << 14 | (from->g & 1u) << 15 |
		(from->unusable & 1u) << 16;
}

static void set_segment(struct kvm_segment *to, const struct cpu_segment *from)
{
	uint32_t ar = from->ar;

	memset(to, 0, sizeof(*to));
	to->selector = from->selector;
	to->base = from->base;
	to->limit = from->limit;
	to->type = ar & 15;
	to->s = ar >> 4 & 1;
	to->dpl = ar >> SEG_AR_DPL_SHIFT & 3;
	to->avl = ar >> 12 & 1;
	to->l = ar >> 13 & 1;
	to->db = ar >> 14 & 1;
	to->g = ar >> 15 & 1;
	to->unusable = ar >> 16 & 1;
	to->present = !to->unusable && (ar & SEG_AR_P);
}

/* Where the order of our segments is found in KVM's structures, old and new. */
#define FOR_SEGMENTS(X) X(SEG_ES, es) X(SEG_CS, cs) X(SEG_SS, ss) X(SEG_DS, ds) X(SEG_FS, fs) X(SEG_GS, gs)

#define GET_SPECIAL(s, k) \
	do { \
		FOR_SEGMENTS(GET_ONE) \
		get_segment(&(s)->ldtr, &(k)->ldt); \
		get_segment(&(s)->tr, &(k)->tr); \
		(s)->gdtr = (struct cpu_table){ .base = (k)->gdt.base, .limit = (k)->gdt.limit }; \
		(s)->idtr = (struct cpu_table){ .base = (k)->idt.base, .limit = (k)->idt.limit }; \
		(s)->cr0 = (k)->cr0; \
		(s)->cr2 = (k)->cr2; \
		(s)->cr3 = (k)->cr3; \
		(s)->cr4 = (k)->cr4; \
		(s)->efer = (k)->efer; \
	} while (0)
#define GET_ONE(number, name) get_segment(&s->seg[number], &k->name);

#define SET_SPECIAL(k, s) \
	do { \
		FOR_SEGMENTS(SET_ONE) \
		set_segment(&(k)->ldt, &(s)->ldtr); \
		set_segment(&(k)->tr, &(s)->tr); \
		(k)->gdt.base = (s)->gdtr.base; \
		(k)->gdt.limit = (s)->gdtr.limit; \
		(k)->idt.base = (s)->idtr.base; \
		(k)->idt.limit = (s)->idtr.limit; \
		(k)->cr0 = (s)->cr0; \
		(k)->cr2 = (s)->cr2; \
		(k)->cr3 = (s)->cr3; \
		(k)->cr4 = (s)->cr4; \
		(k)->efer = (s)->efer; \
	} while (0)
#define SET_ONE(number, name) set_segment(&k->name, &s->seg[number]);

static bool is_pae(const struct cpu_state *s)
{
	return (s->cr0 & CR0_PG) && (s->cr4 & CR4_PAE) && !(s->efer & EFER_LMA);
}

static int get_special(struct kvm_vcpu *v, struct cpu_state *s)
{
	if (v->vm->has_sregs2) {
		struct kvm_sregs2 sregs, *k = &sregs;

		if (kvm_ioctl_ptr(v->fd, KVM_GET_SREGS2, k) < 0)
			return kvm_fail(v, "to give the special registers");
		GET_SPECIAL(s, k);
		if (k->flags & KVM_SREGS2_FLAGS_PDPTRS_VALID)
			memcpy(s->pdpte, k->pdptrs, sizeof(s->pdpte));
	} else {
		struct kvm_sregs sregs, *k = &sregs;

		if (kvm_ioctl_ptr(v->fd, KVM_GET_SREGS, k) < 0)
			return kvm_fail(v, "to give the special registers");
		GET_SPECIAL(s, k);
	}
	return 0;
}

/* CR8 and the APIC base stay: they belong to the local APIC. */
static int set_special(struct kvm_vcpu *v, const struct cpu_state *s)
{
	if (v->vm->has_sregs2) {
		struct kvm_sregs2 sregs, *k = &sregs;

		if (kvm_ioctl_ptr(v->fd, KVM_GET_SREGS2, k) < 0)
			return kvm_fail(v, "to give the special registers");
		SET_SPECIAL(k, s);
		k->flags = is_pae(s) ? KVM_SREGS2_FLAGS_PDPTRS_VALID : 0;
		if (k->flags)
			memcpy(k->pdptrs, s->pdpte, sizeof(k->pdptrs));
		if (kvm_ioctl_ptr(v->fd, KVM_SET_SREGS2, k) < 0)
			return kvm_fail(v, "the special registers (segments, control registers, EFER)");
	} else {
		struct kvm_sregs sregs, *k = &sregs;

		if (kvm_ioctl_ptr(v->fd, KVM_GET_SREGS, k) < 0)
			return kvm_fail(v, "to give the special registers");
		SET_SPECIAL(k, s);
		memset(k->interrupt_bitmap, 0, sizeof(k->interrupt_bitmap));
		if (kvm_ioctl_ptr(v->fd, KVM_SET_SREGS, k) < 0)
			return kvm_fail(v, "the special registers (segments, control registers, EFER)");
	}
	return 0;
}

/* --- general registers --- */

static int get_general(struct kvm_vcpu *v, struct cpu_state *s)
{
	struct kvm_regs r;

	if (kvm_ioctl_ptr(v->fd, KVM_GET_REGS, &r) < 0)
		return kvm_fail(v, "to give the registers");
	const uint64_t in_order[16] = { r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12,
		r.r13, r.r14, r.r15 };
	memcpy(s->gpr, in_order, sizeof(in_order));
	s->gpr[GPR_ZERO] = 0;
	s->gpr[GPR_RIP] = r.rip;
	s->rflags = r.rflags | FLAG_FIXED;
	return 0;
}

static int set_general(struct kvm_vcpu *v, const struct cpu_state *s)
{
	const uint64_t *g = s->gpr;
	struct kvm_regs r = {
		.rax = g[GPR_RAX], .rcx = g[GPR_RCX], .rdx = g[GPR_RDX], .rbx = g[GPR_RBX], .rsp = g[GPR_RSP], .rbp = g[GPR_RBP],
		.rsi = g[GPR_RSI], .rdi = g[GPR_RDI], .r8 = g[GPR_R8], .r9 = g[GPR_R9], .r10 = g[GPR_R10], .r11 = g[GPR_R11],
		.r12 = g[GPR_R12], .r13 = g[GPR_R13], .r14 = g[GPR_R14], .r15 = g[GPR_R15], .rip = g[GPR_RIP], .rflags = s->rflags,
	};

	return kvm_ioctl_ptr(v->fd, KVM_SET_REGS, &r) < 0 ? kvm_fail(v, "the registers") : 0;
}

/* --- x87, SSE, AVX --- */

static int get_vectors(struct kvm_vcpu *v, struct cpu_state *s)
{
	uint8_t area[XSAVE_KVM_SIZE] __attribute__((aligned(64)));
	struct kvm_xcrs xcrs;
	uint64_t bv;

	if (kvm_ioctl_ptr(v->fd, KVM_GET_XSAVE, area) < 0)
		return kvm_fail(v, "to give the vector registers");
	memcpy(s->xsave, area, CPU_XSAVE_SIZE);
	memcpy(&bv, s->xsave + XSAVE_BV, sizeof(bv));
	bv &= XCR0_X87 | XCR0_SSE | XCR0_AVX;
	memcpy(s->xsave + XSAVE_BV, &bv, sizeof(bv));
	memset(s->xsave + XSAVE_BV + 8, 0, 56);
	s->xcr0 = XCR0_X87;
	if (kvm_ioctl_ptr(v->fd, KVM_GET_XCRS, &xcrs) == 0)
		for (unsigned i = 0; i < xcrs.nr_xcrs; i++)
			if (xcrs.xcrs[i].xcr == 0)
				s->xcr0 = xcrs.xcrs[i].value;
	return 0;
}

static int set_vectors(struct kvm_vcpu *v, const struct cpu_state *s)
{
	uint8_t area[XSAVE_KVM_SIZE] __attribute__((aligned(64)));
	struct kvm_xcrs xcrs = { .nr_xcrs = 1, .xcrs = { { .xcr = 0, .value = s->xcr0 } } };
	uint64_t bv, offered = cpu_xcr0_allowed(&v->model);

	if (cpu_model_has(&v->model, CPU_FEATURE_XSAVE) && kvm_ioctl_ptr(v->fd, KVM_SET_XCRS, &xcrs) < 0)
		return kvm_fail(v, "XCR0");
	/* Starts from what KVM has: components beyond ours keep their values. */
	if (kvm_ioctl_ptr(v->fd, KVM_GET_XSAVE, area) < 0)
		return kvm_fail(v, "to give the vector registers");
	memcpy(area, s->xsave, XSAVE_BV);
	memcpy(area + XSAVE_BV + 64, s->xsave + XSAVE_BV + 64, CPU_XSAVE_SIZE - XSAVE_BV - 64);
	memcpy(&bv, s->xsave + XSAVE_BV, sizeof(bv));
	bv &= offered & (XCR0_X87 | XCR0_SSE | XCR0_AVX);
	memcpy(area + XSAVE_BV, &bv, sizeof(bv));
	memset(area + XSAVE_BV + 8, 0, 56);
	return kvm_ioctl_ptr(v->fd, KVM_SET_XSAVE, area) < 0 ? kvm_fail(v, "the vector registers") : 0;
}

/* --- events --- */

static void set_event(struct cpu_state *s, enum cpu_event kind, uint8_t vector)
{
	s->event = (uint8_t)kind;
	s->event_vector = vector;
}

static void get_exception(struct kvm_vcpu *v, struct cpu_state *s, const struct kvm_vcpu_events *e)
{
	bool payload = (e->flags & KVM_VCPUEVENT_VALID_PAYLOAD) && e->exception.pending && e->exception_has_payload;

	if (!e->exception.injected && !e->exception.pending)
		return;
	if (e->exception.nr == EXC_BP || e->exception.nr == EXC_OF)
		return;
	if (e->exception.nr == EXC_DB && payload) {
		s->pending_dr6 = e->exception_payload & 0xe00f;
		return;
	}
	if (e->exception.nr == EXC_PF && payload)
		s->cr2 = e->exception_payload;
	set_event(s, CPU_EVENT_EXCEPTION, e->exception.nr);
	s->event_has_error = e->exception.has_error_code;
	s->event_error = e->exception.error_code;
}

static int get_events(struct kvm_vcpu *v, struct cpu_state *s)
{
	struct kvm_vcpu_events e;
	struct kvm_mp_state mp = { .mp_state = KVM_MP_STATE_RUNNABLE };

	memset(&e, 0, sizeof(e));
	if (kvm_ioctl_ptr(v->fd, KVM_GET_VCPU_EVENTS, &e) < 0 || kvm_ioctl_ptr(v->fd, KVM_GET_MP_STATE, &mp) < 0)
		return kvm_fail(v, "to give its pending events");
	s->event = CPU_EVENT_NONE;
	s->event_vector = s->event_has_error = 0;
	s->event_error = 0;
	s->pending_dr6 = 0;
	s->shadow_sti = (e.interrupt.shadow & KVM_X86_SHADOW_INT_STI) != 0;
	s->shadow_mov_ss = (e.interrupt.shadow & KVM_X86_SHADOW_INT_MOV_SS) != 0;
	s->nmi_blocked = e.nmi.masked;
	s->nmi_pending = e.nmi.pending != 0;
	if (e.nmi.injected)
		set_event(s, CPU_EVENT_NMI, EXC_NMI);
	else if (e.interrupt.injected && !e.interrupt.soft)
		set_event(s, CPU_EVENT_INTERRUPT, e.interrupt.nr);
	else if (v->extint_vector >= 0)
		set_event(s, CPU_EVENT_INTERRUPT, (uint8_t)v->extint_vector);
	get_exception(v, s, &e);
	switch (mp.mp_state) {
	case KVM_MP_STATE_HALTED:
		s->activity = CPU_HALTED;
		break;
	case KVM_MP_STATE_UNINITIALIZED:
	case KVM_MP_STATE_INIT_RECEIVED:
		s->activity = CPU_WAIT_SIPI;
		break;
	default:
		s->activity = CPU_RUNNING;
	}
	if ((e.flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT) && e.triple_fault.pending)
		s->activity = CPU_SHUTDOWN;
	return 0;
}

static int set_events(struct kvm_vcpu *v, const struct cpu_state *s)
{
	struct kvm_vcpu_events e;
	struct kvm_mp_state mp = { .mp_state = KVM_MP_STATE_RUNNABLE };

	memset(&e, 0, sizeof(e));
	e.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW;
	e.interrupt.shadow = (s->shadow_sti ? KVM_X86_SHADOW_INT_STI : 0) | (s->shadow_mov_ss ? KVM_X86_SHADOW_INT_MOV_SS : 0);
	e.nmi.masked = s->nmi_blocked;
	e.nmi.pending = s->nmi_pending;
	switch (s->event) {
	case CPU_EVENT_INTERRUPT:
		e.interrupt.injected = 1;
		e.interrupt.nr = s->event_vector;
		break;
	case CPU_EVENT_NMI:
		e.nmi.injected = 1;
		break;
	case CPU_EVENT_EXCEPTION:
		e.exception.injected = 1;
		e.exception.nr = s->event_vector;
		e.exception.has_error_code = s->event_has_error;
		e.exception.error_code = s->event_error;
		break;
	}
	if (s->pending_dr6 && v->vm->has_payload && s->event == CPU_EVENT_NONE) {
		e.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
		e.exception.pending = 1;
		e.exception.nr = EXC_DB;
		e.exception_has_payload = 1;
		e.exception_payload = s->pending_dr6;
	}
	if (v->vm->has_triple_fault) {
		e.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
		e.triple_fault.pending = s->activity == CPU_SHUTDOWN;
	}
	if (s->activity == CPU_HALTED)
		mp.mp_state = KVM_MP_STATE_HALTED;
	else if (s->activity == CPU_WAIT_SIPI)
		mp.mp_state = KVM_MP_STATE_INIT_RECEIVED;
	v->extint_vector = -1;
	if (kvm_ioctl_ptr(v->fd, KVM_SET_VCPU_EVENTS, &e) < 0)
		return kvm_fail(v, "the pending events");
	return kvm_ioctl_ptr(v->fd, KVM_SET_MP_STATE, &mp) < 0 ? kvm_fail(v, "the activity state") : 0;
}

/* --- debug registers --- */

static int get_debug(struct kvm_vcpu *v, struct cpu_state *s)
{
	struct kvm_debugregs d;

	if (kvm_ioctl_ptr(v->fd, KVM_GET_DEBUGREGS, &d) < 0)
		return kvm_fail(v, "to give the debug registers");
	memcpy(s->dr, d.db, sizeof(s->dr));
	s->dr6 = d.dr6;
	s->dr7 = d.dr7;
	return 0;
}

static int set_debug(struct kvm_vcpu *v, const struct cpu_state *s)
{
	struct kvm_debugregs d = { .dr6 = s->dr6, .dr7 = s->dr7 };

	memcpy(d.db, s->dr, sizeof(d.db));
	return kvm_ioctl_ptr(v->fd, KVM_SET_DEBUGREGS, &d) < 0 ? kvm_fail(v, "the debug registers") : 0;
}

int kvm_state_get(struct kvm_vcpu *v, struct cpu_state *s)
{
	int rc;

	memset(s, 0, sizeof(*s));
	rc = get_general(v, s);
	if (!rc)
		rc = get_special(v, s);
	if (!rc)
		rc = get_vectors(v, s);
	if (!rc)
		rc = get_debug(v, s);
	if (!rc)
		rc = get_events(v, s);
	if (rc)
		return rc;
	kvm_partial_mend(v, s);
	get_msrs(v, s);
	get_tsc(v, s);
	return 0;
}

/*
 * KVM drops the guest's translations when a control register changes. That is wanted here in any case: page tables may have been
 * written, and translations invalidated, where KVM did not see it.
 */
static int set_special_anew(struct kvm_vcpu *v, const struct cpu_state *s)
{
	struct cpu_state other = *s;
	int rc;

	other.cr4 ^= CR4_PGE;
	rc = set_special(v, &other);
	return rc ? rc : set_special(v, s);
}

int kvm_state_set(struct kvm_vcpu *v, const struct cpu_state *s)
{
	int rc = set_special_anew(v, s);

	v->unsuited = !kvm_partial_suits(v, s);
	if (!rc)
		rc = set_vectors(v, s);
	if (rc)
		return rc;
	set_msrs(v, s);
	set_tsc(v, s);
	rc = set_general(v, s);
	if (!rc)
		rc = set_events(v, s);
	return rc ? rc : set_debug(v, s);
}
