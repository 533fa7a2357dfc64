/*
 * Memory as instructions see it: segmentation (SDM vol. 3, 5.3–5.6; 64-bit: vol. 1, 3.3.7.1), accesses that cross
 * pages, MMIO, alignment checks, and the stack. These are the slow paths behind access.h.
 *
 * Every function here faults before it has changed anything. A store that crosses pages checks both before it writes.
 */
#include "engine/access.h"
#include "engine/overlay.h"

#include <sched.h>

/* --- physical --- */

static bool is_lapic(const struct engine *e, uint64_t gpa)
{
	uint64_t base = e->block->lapic.apic_base;

	return (base & 0xc00) == 0x800 && ((base ^ gpa) & PTE_FRAME) == 0;
}

/* gpa is in a read-only range. */
static bool write_exits(const struct engine *e, uint64_t gpa)
{
	for (const struct ram_range *r = e->block->ram.ranges;; r++)
		if (gpa - r->gpa < r->size)
			return r->write_exit;
}

uint64_t physical_read(struct engine *e, uint64_t gpa, unsigned size)
{
	uint64_t offset = ram_offset(e, gpa, NULL);
	uint64_t mask = size >= 8 ? ~0ull : (1ull << size * 8) - 1;

	gpa &= ~e->block->ram.lines_off;
	if (offset != ~0ull)
		return host_load((uint64_t)(uintptr_t)ram_at(e, offset, false), size);
	if (e->overlay)
		engine_restart_insn(e);
	e->stats->emul_mmio++;
	if (is_lapic(e, gpa)) {
		unsigned shift = gpa & 3;

		e->stats->emul_lapic++;
		/* Registers are the first four bytes of each sixteen. */
		if (gpa & 0xc)
			return 0;
		return ((uint64_t)lapic_read(e, gpa & 0xff0) >> shift * 8) & mask;
	}
	return e->env.access(e->env.ctx, 1, gpa, size, false, 0) & mask;
}

void physical_write(struct engine *e, uint64_t gpa, unsigned size, uint64_t value)
{
	bool readonly = false;
	uint64_t offset = ram_offset(e, gpa, &readonly);
	uint64_t mask = size >= 8 ? ~0ull : (1ull << size * 8) - 1;

	gpa &= ~e->block->ram.lines_off;
	if (offset != ~0ull) {
		if (readonly && write_exits(e, gpa)) {
			e->stats->emul_mmio++;
			e->env.access(e->env.ctx, 1, gpa, size, true, value & mask);
			return;
		}
		if (readonly)
			return;
		if (engine_page_has_code(e, offset >> 12))
			engine_invalidate_range(e, offset, size);
		host_store((uint64_t)(uintptr_t)ram_at(e, offset, true), size, value);
		return;
	}
	if (e->overlay)
		engine_restart_insn(e);
	e->stats->emul_mmio++;
	if (is_lapic(e, gpa)) {
		e->stats->emul_lapic++;
		if (!(gpa & 0xf))
			lapic_write(e, gpa & 0xff0, (uint32_t)(value & mask));
		e->attention = true;
		return;
	}
	e->env.access(e->env.ctx, 1, gpa, size, true, value & mask);
}

/* --- linear --- */

static uint64_t linear_wrap(const struct engine *e, uint64_t gva)
{
	return (e->cpu->efer & EFER_LMA) ? gva : (uint32_t)gva;
}

static inline void check_alignment(struct engine *e, uint64_t gva, unsigned size, unsigned access)
{
	if (engine_unlikely(e->align_check) && !(access & ACCESS_SYSTEM) && (gva & (size - 1)))
		engine_raise_error(e, EXC_AC, 0);
}

uint64_t linear_read_slow(struct engine *e, uint64_t gva, unsigned size, unsigned access)
{
	enum tlb_array array = mmu_array(e, access);
	unsigned first = 4096 - (gva & 0xfff);
	uint64_t gpa = 0, value = 0;
	uint8_t *hva;

	check_alignment(e, gva, size, access);
	if (first < size) {
		linear_read_bytes(e, gva, &value, size, access);
		return value;
	}
	hva = mmu_resolve(e, gva, size, access, array, &gpa);
	value = hva ? host_load((uint64_t)(uintptr_t)hva, size) : physical_read(e, gpa, size);
	if (engine_unlikely(e->watch) && !(access & ACCESS_SYSTEM))
		watch_check(e, gva, size, false);
	return value;
}

void linear_write_slow(struct engine *e, uint64_t gva, unsigned size, uint64_t value, unsigned access)
{
	enum tlb_array array;
	unsigned first = 4096 - (gva & 0xfff);
	uint64_t gpa = 0;
	uint8_t *hva;

	access |= ACCESS_WRITE;
	array = mmu_array(e, access);
	check_alignment(e, gva, size, access);
	if (first < size) {
		linear_write_bytes(e, gva, &value, size, access);
		return;
	}
	hva = mmu_resolve(e, gva, size, access, array, &gpa);
	if (hva)
		host_store((uint64_t)(uintptr_t)hva, size, value);
	else
		physical_write(e, gpa, size, value);
	if (engine_unlikely(e->watch) && !(access & ACCESS_SYSTEM))
		watch_check(e, gva, size, true);
}

uint64_t linear_read(struct engine *e, uint64_t gva, unsigned size, unsigned access)
{
	const struct tlb_entry *t = tlb_slot(e, gva);

	if (engine_likely(!(access & ACCESS_SYSTEM) && ((gva + size - 1) & ~0xfffull) == t->read))
		return host_load(gva + t->delta, size);
	return linear_read_slow(e, gva, size, access);
}

void linear_write(struct engine *e, uint64_t gva, unsigned size, uint64_t value, unsigned access)
{
	const struct tlb_entry *t = tlb_slot(e, gva);

	if (engine_likely(!(access & ACCESS_SYSTEM) && ((gva + size - 1) & ~0xfffull) == t->write))
		host_store(gva + t->delta, size, value);
	else
		linear_write_slow(e, gva, size, value, access);
}

/* MMIO by the largest naturally aligned pieces. */
static void physical_read_bytes(struct engine *e, uint64_t gpa, uint8_t *dst, unsigned size)
{
	while (size) {
		unsigned n = 8;
		uint64_t value;

		while (n > size || (gpa & (n - 1)))
			n /= 2;
		value = physical_read(e, gpa, n);
		memcpy(dst, &value, n);
		gpa += n;
		dst += n;
		size -= n;
	}
}

static void physical_write_bytes(struct engine *e, uint64_t gpa, const uint8_t *src, unsigned size)
{
	while (size) {
		unsigned n = 8;
		uint64_t value = 0;

		while (n > size || (gpa & (n - 1)))
			n /= 2;
		memcpy(&value, src, n);
		physical_write(e, gpa, n, value);
		gpa += n;
		src += n;
		size -= n;
	}
}

#define PIECES_MAX 4
struct piece {
	uint8_t *hva;
	uint64_t gpa;
	unsigned size;
};

/* Checks all pages of an access; sizes up to three pages. */
static unsigned resolve_pieces(struct engine *e, uint64_t gva, unsigned size, unsigned access, struct piece *pieces)
{
	enum tlb_array array = mmu_array(e, access);
	unsigned count = 0;

	while (size && count < PIECES_MAX) {
		unsigned n = 4096 - (gva & 0xfff);

		if (n > size)
			n = size;
		pieces[count].gpa = 0;
		pieces[count].size = n;
		pieces[count].hva = mmu_resolve(e, gva, n, access, array, &pieces[count].gpa);
		count++;
		gva = linear_wrap(e, gva + n);
		size -= n;
	}
	return count;
}

void linear_read_bytes(struct engine *e, uint64_t gva, void *dst, unsigned size, unsigned access)
{
	struct piece pieces[PIECES_MAX];
	unsigned count = resolve_pieces(e, gva, size, access, pieces);
	uint8_t *p = dst;

	for (unsigned n = 0; n < count; n++) {
		if (pieces[n].hva)
			memcpy(p, pieces[n].hva, pieces[n].size);
		else
			physical_read_bytes(e, pieces[n].gpa, p, pieces[n].size);
		p += pieces[n].size;
	}
	if (engine_unlikely(e->watch) && !(access & ACCESS_SYSTEM))
		watch_check(e, gva, size, false);
}

void linear_write_bytes(struct engine *e, uint64_t gva, const void *src, unsigned size, unsigned access)
{
	struct piece pieces[PIECES_MAX];
	unsigned count = resolve_pieces(e, gva, size, access | ACCESS_WRITE, pieces);
	const uint8_t *p = src;

	for (unsigned n = 0; n < count; n++) {
		if (pieces[n].hva)
			memcpy(pieces[n].hva, p, pieces[n].size);
		else
			physical_write_bytes(e, pieces[n].gpa, p, pieces[n].size);
		p += pieces[n].size;
	}
	if (engine_unlikely(e->watch) && !(access & ACCESS_SYSTEM))
		watch_check(e, gva, size, true);
}

void *linear_rmw(struct engine *e, uint64_t gva, unsigned size)
{
	struct piece pieces[PIECES_MAX];
	const struct tlb_entry *t = tlb_slot(e, gva);
	unsigned count;

	if (engine_likely(((gva + size - 1) & ~0xfffull) == t->write))
		return (void *)(uintptr_t)(gva + t->delta);
	check_alignment(e, gva, size, ACCESS_WRITE);
	count = resolve_pieces(e, gva, size, ACCESS_WRITE, pieces);
	if (count != 1 || !pieces[0].hva)
		return NULL;
	if (engine_unlikely(e->watch))
		watch_check(e, gva, size, true);
	return pieces[0].hva;
}

uint8_t *linear_span(struct engine *e, uint64_t gva, unsigned access, unsigned max, unsigned *span)
{
	unsigned n = 4096 - (gva & 0xfff);
	uint64_t gpa = 0;
	uint8_t *hva;

	if (n > max)
		n = max;
	if (n == 0 || e->watch || e->align_check || e->overlay)
		return NULL;
	hva = mmu_resolve(e, gva, n, access, mmu_array(e, access), &gpa);
	*span = n;
	return hva;
}

/* --- instruction operands --- */

uint64_t insn_load_slow(struct engine *e, const struct insn *i, unsigned size)
{
	uint64_t gva = segment_linear(e, i->seg, insn_offset(e, i), size, ACCESS_READ);

	return linear_read(e, gva, size, ACCESS_READ);
}

void insn_store_slow(struct engine *e, const struct insn *i, unsigned size, uint64_t value)
{
	uint64_t gva = segment_linear(e, i->seg, insn_offset(e, i), size, ACCESS_WRITE);

	linear_write(e, gva, size, value, ACCESS_WRITE);
}

void *insn_rmw_slow(struct engine *e, const struct insn *i, unsigned size)
{
	void *hva = linear_rmw(e, segment_linear(e, i->seg, insn_offset(e, i), size, ACCESS_WRITE), size);

	if (!hva && (i->flags & INSN_LOCK))
		e->stats->emul_split_lock++;
	return hva;
}

void split_lock_take(struct engine *e)
{
	uint32_t expected = 0;

	while (!atomic_compare_exchange_weak(&e->shared->split_lock, &expected, 1)) {
		expected = 0;
		sched_yield();
	}
	e->split_held = true;
}

void split_lock_release(struct engine *e)
{
	e->split_held = false;
	atomic_store(&e->shared->split_lock, 0);
}

/* --- segments --- */

static void segment_fault(struct engine *e, unsigned seg) __attribute__((noreturn));
static void segment_fault(struct engine *e, unsigned seg)
{
	engine_raise_error(e, seg == SEG_SS ? EXC_SS : EXC_GP, 0);
}

uint64_t segment_linear(struct engine *e, unsigned seg, uint64_t offset, unsigned size, unsigned access)
{
	const struct cpu_segment *s = &e->cpu->seg[seg];
	uint64_t last = offset + size - 1;

	if (e->mode == MODE_64) {
		uint64_t gva = seg >= SEG_FS ? s->base + offset : offset;
		uint64_t end = gva + size - 1;

		if (!is_canonical(gva) || !is_canonical(end))
			segment_fault(e, seg);
		return gva;
	}
	if ((e->cpu->cr0 & CR0_PE) && !(e->cpu->rflags & FLAG_VM)) {
		unsigned type = s->ar & SEG_AR_TYPE;

		if (s->ar & SEG_AR_UNUSABLE)
			segment_fault(e, seg);
		if (type & 8) {
			/* Code: never writable, readable by bit 1. */
			if ((access & ACCESS_WRITE) || !(type & 2))
				segment_fault(e, seg);
		} else if ((access & ACCESS_WRITE) && !(type & 2)) {
			segment_fault(e, seg);
		}
		if ((type & 0xc) == 4) {
			/* Expand-down: valid above the limit. */
			uint64_t top = (s->ar & SEG_AR_DB) ? 0xffffffffull : 0xffffull;

			if (offset <= s->limit || last > top)
				segment_fault(e, seg);
			return (uint32_t)(s->base + offset);
		}
	}
	if (last > s->limit)
		segment_fault(e, seg);
	return (uint32_t)(s->base + offset);
}

void branch_check(struct engine *e, uint64_t rip)
{
	if (e->mode == MODE_64) {
		if (!is_canonical(rip))
			engine_raise_error(e, EXC_GP, 0);
	} else if (rip > e->cpu->seg[SEG_CS].limit) {
		engine_raise_error(e, EXC_GP, 0);
	}
}

/* --- stack --- */

static uint64_t stack_wrap(const struct engine *e, uint64_t sp)
{
	return e->mode == MODE_64 ? sp : e->stack32 ? (uint32_t)sp : (uint16_t)sp;
}

static void stack_set(struct engine *e, uint64_t sp)
{
	uint64_t *rsp = &e->cpu->gpr[GPR_RSP];

	if (e->mode == MODE_64)
		*rsp = sp;
	else if (e->stack32)
		*rsp = (uint32_t)sp;
	else
		*rsp = (*rsp & ~0xffffull) | (uint16_t)sp;
}

void stack_move(struct engine *e, int64_t by)
{
	stack_set(e, e->cpu->gpr[GPR_RSP] + (uint64_t)by);
}

uint64_t stack_peek(struct engine *e, unsigned displacement, unsigned size)
{
	uint64_t sp = stack_wrap(e, e->cpu->gpr[GPR_RSP] + displacement);

	return linear_read(e, segment_linear(e, SEG_SS, sp, size, ACCESS_READ), size, ACCESS_READ);
}

void stack_push(struct engine *e, unsigned size, uint64_t value)
{
	uint64_t sp = stack_wrap(e, e->cpu->gpr[GPR_RSP] - size);

	linear_write(e, segment_linear(e, SEG_SS, sp, size, ACCESS_WRITE), size, value, ACCESS_WRITE);
	stack_set(e, sp);
}

uint64_t stack_pop(struct engine *e, unsigned size)
{
	uint64_t value = stack_peek(e, 0, size);

	stack_move(e, size);
	return value;
}
