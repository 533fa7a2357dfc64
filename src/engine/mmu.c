/*
 * The guest's page tables (SDM vol. 3, chapter 4) and the software TLB over them: none, 32-bit, PAE and 4-level
 * paging. Accessed and dirty bits are set by compare-and-swap on the guest's own tables, since other vcpus and the
 * guest itself change them at any time.
 *
 * The TLB holds 4 KiB translations only; parts of larger guest pages are marked so that INVLPG finds them all. PCIDs
 * are not kept apart: a CR3 write drops everything that is not global, which the architecture permits.
 */
#include "engine/access.h"
#include "engine/overlay.h"
#include "engine/shadow.h"
#include "engine/translate.h"

struct walk {
	uint64_t gpa;
	bool writable, user, nx, global, dirty, large;
};

struct walk_step {
	uint64_t offset; /* of the entry, in the memfd */
	uint64_t value;
	bool wide; /* 8 bytes */
	bool readonly; /* in a ROM, where accessed and dirty bits cannot be set */
};

uint64_t ram_offset(const struct engine *e, uint64_t gpa, bool *readonly)
{
	gpa &= ~e->block->ram.lines_off;
	for (unsigned n = 0; n < RAM_RANGE_MAX; n++) {
		const struct ram_range *r = &e->block->ram.ranges[n];

		if (r->size == 0)
			break;
		if (gpa - r->gpa < r->size) {
			if (readonly)
				*readonly = r->readonly != 0;
			return r->offset + (gpa - r->gpa);
		}
	}
	return ~0ull;
}

static uint64_t physical_mask(const struct engine *e)
{
	unsigned bits = e->block->model.phys_bits;

	if (bits < 32 || bits > 52)
		bits = 40;
	return (1ull << bits) - 1;
}

/* Reads the table entry at gpa; entries outside of RAM are not present. */
static void read_entry(struct engine *e, uint64_t gpa, bool wide, struct walk_step *step)
{
	step->readonly = false;
	step->offset = ram_offset(e, gpa, &step->readonly);
	step->wide = wide;
	if (step->offset == ~0ull)
		step->value = 0;
	else
		step->value = host_load((uint64_t)(uintptr_t)ram_at(e, step->offset, false), wide ? 8 : 4);
}

/* False: somebody else changed the entry, walk again. */
static bool set_bits(struct engine *e, const struct walk_step *step, uint64_t bits)
{
	void *p = e->ram + step->offset;

	if ((step->value & bits) == bits || step->readonly || engine_unlikely(e->overlay != NULL))
		return true;
	if (engine_unlikely(engine_page_has_code(e, step->offset >> 12)))
		engine_invalidate_range(e, step->offset, step->wide ? 8 : 4);
	if (step->wide) {
		uint64_t old = step->value;

		return __atomic_compare_exchange_n((uint64_t *)p, &old, old | bits, false, __ATOMIC_SEQ_CST,
			__ATOMIC_SEQ_CST);
	}
	uint32_t old = (uint32_t)step->value;

	return __atomic_compare_exchange_n((uint32_t *)p, &old, old | (uint32_t)bits, false, __ATOMIC_SEQ_CST,
		__ATOMIC_SEQ_CST);
}

/* Follows the tables. Returns −1 and fills in *w and the steps, or the P/RSVD part of the error code. */
static int walk_tables(struct engine *e, uint64_t gva, struct walk *w, struct walk_step *steps, unsigned *count)
{
	const struct cpu_state *cpu = e->cpu;
	uint64_t reserved = ~physical_mask(e) & 0x000fffffffffffffull;
	bool wide = (cpu->cr4 & CR4_PAE) != 0;
	bool long_mode = (cpu->efer & EFER_LMA) != 0;
	unsigned bits = wide ? 9 : 10;
	unsigned level = long_mode ? 4 : wide ? 3 : 2;
	uint64_t table = long_mode ? cpu->cr3 & PTE_FRAME : cpu->cr3 & 0xfffff000ull;

	w->writable = w->user = true;
	w->nx = w->global = w->large = false;
	*count = 0;
	if (!(cpu->efer & EFER_NXE))
		reserved |= PTE_NX;
	for (;; level--) {
		unsigned shift = 12 + (level - 1) * bits;
		uint64_t index = (gva >> shift) & ((1u << bits) - 1);
		struct walk_step *step = &steps[*count];
		uint64_t v;

		if (wide && !long_mode && level == 3) {
			/* Registers, checked when they were loaded; no permissions, no A bit (SDM vol. 3, 4.4.1). */
			v = cpu->pdpte[index & 3];
			if (!(v & PTE_P))
				return 0;
			table = v & PTE_FRAME;
			continue;
		}
		read_entry(e, table + index * (wide ? 8 : 4), wide, step);
		v = step->value;
		if (!(v & PTE_P))
			return 0;
		(*count)++;
		if (wide && (v & (reserved | (long_mode ? 0 : 0x7ff0000000000000ull))))
			return PF_RSVD | PF_P;
		w->writable = w->writable && (v & PTE_W);
		w->user = w->user && (v & PTE_U);
		w->nx = w->nx || (wide && (v & PTE_NX));
		if (level > 1 && (v & PTE_PS)) {
			uint64_t low = (1ull << shift) - 1, frame;

			if (level == 4)
				return PF_RSVD | PF_P;
			if (wide) {
				if (v & low & ~0x1fffull)
					return PF_RSVD | PF_P;
				frame = v & PTE_FRAME & ~low;
			} else {
				if (!(cpu->cr4 & CR4_PSE))
					goto descend;
				if (v & (1u << 21))
					return PF_RSVD | PF_P;
				frame = (v & 0xffc00000u) | ((v >> 13 & 0xff) << 32); /* PSE-36 */
			}
			w->gpa = frame | (gva & low);
			w->large = true;
			break;
		}
		if (level == 1) {
			w->gpa = (v & (wide ? PTE_FRAME : 0xfffff000ull)) | (gva & 0xfff);
			break;
		}
descend:
		table = v & (wide ? PTE_FRAME : 0xfffff000ull);
	}
	w->dirty = (steps[*count - 1].value & PTE_D) != 0;
	w->global = (steps[*count - 1].value & PTE_G) && (cpu->cr4 & CR4_PGE);
	return -1;
}

static bool may_access(const struct engine *e, const struct walk *w, unsigned access, enum tlb_array array)
{
	uint64_t cr0 = e->cpu->cr0;

	if (array == TLB_USER) {
		if (!w->user)
			return false;
		return (access & ACCESS_EXEC) ? !w->nx : (access & ACCESS_WRITE) ? w->writable : true;
	}
	if (access & ACCESS_EXEC)
		return !w->nx && !(w->user && (e->cpu->cr4 & CR4_SMEP));
	if (w->user && array == TLB_SMAP)
		return false;
	return !(access & ACCESS_WRITE) || w->writable || !(cr0 & CR0_WP);
}

/* −1, or the error code of the page fault. */
static int mmu_walk(struct engine *e, uint64_t gva, unsigned access, enum tlb_array array, struct walk *w)
{
	struct walk_step steps[4];
	unsigned count;
	int error;

	if (!(e->cpu->cr0 & CR0_PG)) {
		*w = (struct walk){ .gpa = (uint32_t)gva, .writable = true, .user = true, .dirty = true };
		return -1;
	}
again:
	error = walk_tables(e, gva, w, steps, &count);
	if (error < 0 && !may_access(e, w, access, array))
		error = PF_P;
	if (error >= 0) {
		if (access & ACCESS_WRITE)
			error |= PF_W;
		if (array == TLB_USER)
			error |= PF_U;
		if ((access & ACCESS_EXEC) && ((e->cpu->cr4 & CR4_SMEP) ||
				((e->cpu->cr4 & CR4_PAE) && (e->cpu->efer & EFER_NXE))))
			error |= PF_I;
		return error;
	}
	for (unsigned n = 0; n < count; n++) {
		uint64_t bits = PTE_A;

		if (n == count - 1 && (access & ACCESS_WRITE)) {
			bits |= PTE_D;
			w->dirty = true;
		}
		if (engine_unlikely(!set_bits(e, &steps[n], bits)))
			goto again;
	}
	return -1;
}

static bool has_nonflat_paging(const struct engine *e)
{
	return (e->cpu->cr0 & CR0_PG) != 0;
}

enum tlb_array mmu_array(const struct engine *e, unsigned access)
{
	bool smap = (e->cpu->cr4 & CR4_SMAP) != 0;

	if (access & ACCESS_SYSTEM)
		return smap ? TLB_SMAP : TLB_SUPERVISOR;
	if (e->cpl == 3)
		return TLB_USER;
	return smap && !(e->cpu->rflags & FLAG_AC) ? TLB_SMAP : TLB_SUPERVISOR;
}

/* The jump cache outlives a TLB entry that another page has evicted, so it has a record of its own of large pages. */
static inline uint64_t large_code_bit(uint64_t gva)
{
	return 1ull << ((gva >> 30) & 63);
}

static void fill(struct engine *e, uint64_t gva, enum tlb_array array, const struct walk *w, uint64_t offset,
	bool readonly)
{
	unsigned index = (gva >> 12) & (TLB_SIZE - 1);
	struct tlb_entry *t = &e->tlb_data[array][index];
	uint64_t page = gva & ~0xfffull, bit = 1ull << (index & 63);
	/* With paging off permissions are all open: a user array then has them too. */
	bool open = !has_nonflat_paging(e);
	bool code = engine_page_has_code(e, offset >> 12);

	e->stats->tlb_fills++;
	t->read = open || may_access(e, w, ACCESS_READ, array) ? page : TLB_NO_TAG;
	t->write = w->dirty && !readonly && !code && (open || may_access(e, w, ACCESS_WRITE, array)) ? page : TLB_NO_TAG;
	t->exec = open || may_access(e, w, ACCESS_EXEC, array) ? page : TLB_NO_TAG;
	t->delta = (uintptr_t)e->ram + (offset & ~0xfffull) - page;
	e->tlb_used[array][index / 64] |= bit;
	if (w->global)
		e->tlb_global[array][index / 64] |= bit;
	else
		e->tlb_global[array][index / 64] &= ~bit;
	if (w->large)
		e->tlb_large[array][index / 64] |= bit;
	else
		e->tlb_large[array][index / 64] &= ~bit;
	if (w->large && t->exec == page)
		e->large_code |= large_code_bit(gva);
}

static void drop(struct engine *e, unsigned array, unsigned index)
{
	struct tlb_entry *t = &e->tlb_data[array][index];

	t->read = t->write = t->exec = TLB_NO_TAG;
}

/*
 * For debugging the shadow: an entry's loads and stores go where translated code's would. Fetches do not, and have no tag
 * beside them. Whatever the shadow unmaps may be more than was flushed here, so all entries go with it.
 */
static void forget_if_unmapped(struct engine *e)
{
	uint64_t unmapped = e->stats->shadow_munmaps + e->stats->shadow_evictions;

	if (engine_likely(!e->through_shadow) || e->shadow_unmapped == unmapped)
		return;
	e->shadow_unmapped = unmapped;
	for (unsigned array = 0; array < TLB_ARRAYS; array++)
		for (unsigned n = 0; n < TLB_SIZE; n++)
			drop(e, array, n);
}

static uint8_t *redirect(struct engine *e, uint64_t gva, unsigned access, enum tlb_array array, uint8_t *hva)
{
	struct tlb_entry *t = &e->tlb_data[array][(gva >> 12) & (TLB_SIZE - 1)];
	bool user = array == TLB_USER, is_write = t->write != TLB_NO_TAG;
	uint64_t delta;

	/* A write beside code on its page goes around. */
	if (user != (e->cpl == 3) || ((access & ACCESS_WRITE) && !is_write) || !shadow_fill(e, gva, is_write))
		return hva;
	forget_if_unmapped(e);
	delta = e->deltas->delta[user ? SHADOW_USER : SHADOW_SUPERVISOR][(gva >> 39) & 511];
	t->read = gva & ~0xfffull;
	t->write = is_write ? t->read : TLB_NO_TAG;
	t->exec = TLB_NO_TAG;
	t->delta = delta;
	return (uint8_t *)(uintptr_t)(gva + delta);
}

uint8_t *mmu_resolve(struct engine *e, uint64_t gva, unsigned size, unsigned access, enum tlb_array array,
	uint64_t *gpa)
{
	struct tlb_entry *t = &e->tlb_data[array][(gva >> 12) & (TLB_SIZE - 1)];
	uint64_t tag = (access & ACCESS_EXEC) ? t->exec : (access & ACCESS_WRITE) ? t->write : t->read;
	struct walk w;
	uint64_t offset;
	bool readonly = false;
	int error;

	if (tag == (gva & ~0xfffull))
		return (uint8_t *)(uintptr_t)(gva + t->delta);
	if ((e->cpu->efer & EFER_LMA) && !is_canonical(gva))
		engine_raise_error(e, EXC_GP, 0);
	error = mmu_walk(e, gva, access, array, &w);
	if (error >= 0)
		engine_raise_page(e, gva, (uint32_t)error);
	*gpa = w.gpa;
	offset = ram_offset(e, w.gpa, &readonly);
	if (offset == ~0ull)
		return NULL;
	if (access & ACCESS_WRITE) {
		if (readonly)
			return NULL;
		if (engine_page_has_code(e, offset >> 12))
			engine_invalidate_range(e, offset, size);
	}
	if (engine_unlikely(e->overlay != NULL)) {
		/* Every page that is written must pass here first. */
		uint8_t *hva = ram_at(e, offset, (access & ACCESS_WRITE) != 0);

		fill(e, gva, array, &w, offset, readonly);
		t->delta = (uintptr_t)hva - gva;
		if (!(access & ACCESS_WRITE))
			t->write = TLB_NO_TAG;
		if (hva != e->ram + offset)
			overlay_note(e, t);
		return hva;
	}
	fill(e, gva, array, &w, offset, readonly);
	if (engine_unlikely(e->through_shadow) && !(access & ACCESS_EXEC))
		return redirect(e, gva, access, array, e->ram + offset);
	return e->ram + offset;
}

uint64_t mmu_translate(struct engine *e, uint64_t gva)
{
	struct walk_step steps[4];
	struct walk w;
	unsigned count;

	if (!(e->cpu->cr0 & CR0_PG))
		return (uint32_t)gva;
	return walk_tables(e, gva, &w, steps, &count) < 0 ? w.gpa : ~0ull;
}

uint64_t mmu_fetch_page(struct engine *e, uint64_t gva, const uint8_t **hva)
{
	uint64_t gpa = 0;

	*hva = mmu_resolve(e, gva, 1, ACCESS_EXEC, mmu_array(e, ACCESS_EXEC), &gpa); /* CR2 is the byte's */
	if (*hva)
		*hva -= gva & 0xfff;
	return gpa & ~0xfffull;
}

bool mmu_is_global_code(struct engine *e, uint64_t gva)
{
	enum tlb_array array = mmu_array(e, ACCESS_EXEC);
	unsigned index = (gva >> 12) & (TLB_SIZE - 1);
	struct walk_step steps[4];
	struct walk w;
	unsigned count;

	if (e->tlb_data[array][index].exec == (gva & ~0xfffull))
		return e->tlb_global[array][index / 64] >> (index % 64) & 1;
	return (e->cpu->cr0 & CR0_PG) && walk_tables(e, gva, &w, steps, &count) < 0 && w.global;
}

static uint64_t code_page(const struct engine *e, uint64_t gpa)
{
	uint64_t offset = ram_offset(e, gpa, NULL);

	return offset == ~0ull ? offset : offset >> 12;
}

uint64_t mmu_user_code(struct engine *e, uint64_t gva, struct mmu_near *near)
{
	struct walk_step steps[4];
	struct walk w;
	unsigned count;

	if (near->region == gva >> 21) {
		struct walk_step leaf;

		read_entry(e, near->table + (gva >> 12 & 511) * 8, true, &leaf);
		if ((leaf.value & (PTE_P | PTE_U | PTE_A | PTE_NX | (PTE_FRAME & ~physical_mask(e)))) != (PTE_P | PTE_U | PTE_A))
			return ~0ull;
		return code_page(e, leaf.value & PTE_FRAME);
	}
	if (!(e->cpu->cr0 & CR0_PG) || walk_tables(e, gva, &w, steps, &count) >= 0 || !w.user || w.nx)
		return ~0ull;
	for (unsigned n = 0; n < count; n++)
		if (!(steps[n].value & PTE_A))
			return ~0ull;
	if (count == 4) {
		near->region = gva >> 21;
		near->table = steps[2].value & PTE_FRAME;
	}
	return code_page(e, w.gpa);
}

void mmu_flush_all(struct engine *e)
{
	e->stats->tlb_flushes_all++;
	for (unsigned array = 0; array < TLB_ARRAYS; array++) {
		for (unsigned n = 0; n < TLB_SIZE / 64; n++) {
			for (uint64_t bits = e->tlb_used[array][n]; bits; bits &= bits - 1)
				drop(e, array, n * 64 + (unsigned)__builtin_ctzll(bits));
			e->tlb_used[array][n] = e->tlb_global[array][n] = e->tlb_large[array][n] = 0;
		}
	}
	engine_forget_translations(e);
	shadow_flush_all(e);
	forget_if_unmapped(e);
}

static void flush_tlb_nonglobal(struct engine *e)
{
	e->stats->tlb_flushes_nonglobal++;
	for (unsigned array = 0; array < TLB_ARRAYS; array++) {
		for (unsigned n = 0; n < TLB_SIZE / 64; n++) {
			uint64_t global = e->tlb_global[array][n];

			for (uint64_t bits = e->tlb_used[array][n] & ~global; bits; bits &= bits - 1)
				drop(e, array, n * 64 + (unsigned)__builtin_ctzll(bits));
			e->tlb_used[array][n] &= global;
			e->tlb_large[array][n] &= global;
		}
	}
}

void mmu_flush_nonglobal(struct engine *e)
{
	flush_tlb_nonglobal(e);
	engine_forget_nonglobal(e);
	shadow_flush_nonglobal(e);
	forget_if_unmapped(e);
}

void mmu_set_root(struct engine *e, bool keep)
{
	flush_tlb_nonglobal(e);
	engine_forget_blocks(e);
	if (e->translator)
		translator_switch(e, keep);
	shadow_set_root(e, keep);
	forget_if_unmapped(e);
}

/* The TLB has translations of the PCID that runs only; of others, the shadow knows slots and the translator jumps. */
void mmu_flush_other_pcid(struct engine *e)
{
	shadow_flush_pcid(e);
	if (e->translator)
		translator_forget(e, true, false);
}

void mmu_flush_page(struct engine *e, uint64_t gva)
{
	unsigned index = (gva >> 12) & (TLB_SIZE - 1);

	e->stats->tlb_flushes_page++;
	for (unsigned array = 0; array < TLB_ARRAYS; array++) {
		drop(e, array, index);
		for (unsigned n = 0; n < TLB_SIZE / 64; n++) {
			for (uint64_t bits = e->tlb_large[array][n]; bits; bits &= bits - 1) {
				unsigned k = n * 64 + (unsigned)__builtin_ctzll(bits);
				struct tlb_entry *t = &e->tlb_data[array][k];
				uint64_t page = t->read & t->write & t->exec;

				if (page == TLB_NO_TAG || (page >> 30) != (gva >> 30))
					continue;
				drop(e, array, k);
			}
		}
	}
	if (e->large_code & large_code_bit(gva))
		engine_forget_translations(e);
	else
		engine_forget_page(e, gva);
	shadow_flush_page(e, gva);
	forget_if_unmapped(e);
}

void mmu_protect_code(struct engine *e, uint64_t page)
{
	uintptr_t hva = (uintptr_t)e->ram + (page << 12);

	for (unsigned array = 0; array < TLB_ARRAYS; array++) {
		for (unsigned n = 0; n < TLB_SIZE / 64; n++) {
			for (uint64_t bits = e->tlb_used[array][n]; bits; bits &= bits - 1) {
				struct tlb_entry *t = &e->tlb_data[array][n * 64 + (unsigned)__builtin_ctzll(bits)];

				if (t->write != TLB_NO_TAG && (e->through_shadow || t->write + t->delta == hva))
					t->write = TLB_NO_TAG;
			}
		}
	}
	shadow_protect_code(e, page);
	forget_if_unmapped(e);
}
