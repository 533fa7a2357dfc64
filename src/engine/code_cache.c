/*
 * The translator's memory: code in a memfd mapped twice, writable and executable, never both; tables of
 * blocks, exits and the fault map. Nothing is freed alone: when a table is full all code is forgotten
 * (translator_reset), which happens only while no translated code runs.
 *
 * Everything that emitted code addresses absolutely lies below 2 GiB (MAP_32BIT).
 */
#include <assert.h>
#include <errno.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include "engine/translate.h"

static void *take_low(size_t size, int prot)
{
	void *p = mmap(NULL, size, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_32BIT, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static int take_code(struct translator *t)
{
	int fd = memfd_create("vmm-code", MFD_CLOEXEC), error = 0;
	void *write, *execute;

	if (fd < 0)
		return -errno;
	if (ftruncate(fd, CODE_SIZE)) {
		error = -errno;
		close(fd);
		return error;
	}
	write = mmap(NULL, CODE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	execute = mmap(NULL, CODE_SIZE, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_32BIT, fd, 0);
	close(fd);
	t->write = write == MAP_FAILED ? NULL : write;
	t->execute = execute == MAP_FAILED ? NULL : execute;
	return t->write && t->execute ? 0 : -ENOMEM;
}

int translator_create(struct engine *e)
{
	struct translator *t;
	int error;

	if (!e->shadow || (uintptr_t)e >> 31 || (uintptr_t)e->deltas >> 31 || (uintptr_t)e->block >> 31 ||
		!__builtin_cpu_supports("bmi2"))
		return -ENOTSUP;
	t = take_low(sizeof(*t), PROT_READ | PROT_WRITE);
	if (!t)
		return -ENOMEM;
	e->translator = t;
	t->poll = take_low(POLL_SIZE, PROT_NONE);
	t->probe = take_low(PROBE_SIZE, PROT_NONE);
	t->tbs = take_low(TB_MAX * sizeof(*t->tbs), PROT_READ | PROT_WRITE);
	t->sites = take_low(SITE_MAX * sizeof(*t->sites), PROT_READ | PROT_WRITE);
	t->map = take_low(MAP_MAX * sizeof(*t->map), PROT_READ | PROT_WRITE);
	if (!t->poll || !t->probe || !t->tbs || !t->sites || !t->map || mprotect(t->poll, 4096, PROT_READ) ||
		mprotect(t->probe + PROBE_SIZE / 2, 4096, PROT_READ))
		return -ENOMEM;
	t->pool = take_low(sizeof(*t->pool), PROT_READ | PROT_WRITE);
	t->seen = take_low(e->blocks->insn_max * sizeof(*t->seen), PROT_READ | PROT_WRITE);
	if (!t->pool || !t->seen)
		return -ENOMEM;
	error = take_code(t);
	if (error)
		return error;
	t->heat = HEAT;
	t->hot.code = &t->hot.entered;
	if (getrandom(&t->secret, sizeof(t->secret), 0) != sizeof(t->secret))
		return -EIO;
	t->hot_after = HOT;
	t->soft_after = SOFT_FAULTS;
	t->hot.tlb_index = 0x3ffull << 12;
	t->hot.tlb_page = ~0xfffull;
	t->hot.tlb_of[SHADOW_USER] = (uint64_t)(uintptr_t)e->tlb_data[TLB_USER];
	t->hot.slot_mask = 0x1ffull << 39;
	t->hot.probe_mask = t->hot.slot_mask | 0xfff;
	t->hot.high_mask = ~0ull << 39;
	t->hot.poison = shadow_poison();
	t->has_gs = tx32_possible();
	translator_set_masks(t);
	translator_emit_fixed(e);
	translator_reset(e);
	return 0;
}

static void release(void *p, size_t size)
{
	if (p)
		munmap(p, size);
}

void translator_destroy(struct engine *e)
{
	struct translator *t = e->translator;

	if (!t)
		return;
	release(t->poll, POLL_SIZE);
	release(t->probe, PROBE_SIZE);
	release(t->tbs, TB_MAX * sizeof(*t->tbs));
	release(t->sites, SITE_MAX * sizeof(*t->sites));
	release(t->map, MAP_MAX * sizeof(*t->map));
	release(t->pool, sizeof(*t->pool));
	release(t->seen, e->blocks->insn_max * sizeof(*t->seen));
	release(t->write, CODE_SIZE);
	release(t->execute, CODE_SIZE);
	munmap(t, sizeof(*t));
	e->translator = NULL;
}

/* --- links --- */

void site_unchain(struct translator *t, uint32_t id)
{
	struct site *s = &t->sites[id];

	if (!s->chained)
		return;
	s->chained = false;
	if (t->tbs[s->tb].dead)
		return;
	emit_patch(t->write + s->patch, t->write + s->stub);
}

void site_chain(struct translator *t, uint32_t id, uint32_t tb)
{
	struct site *s = &t->sites[id];

	if (s->kind != SITE_CHAIN || s->chained)
		return;
	s->chained = true;
	s->next = t->tbs[tb].incoming;
	t->tbs[tb].incoming = id + 1;
	emit_patch(t->write + s->patch, t->write + t->tbs[tb].code);
}

/* --- forgetting --- */

static uint64_t mix(uint64_t x)
{
	x ^= x >> 31;
	x *= 0x9e3779b97f4a7c15ull;
	return x ^ x >> 29;
}

static void new_salts(struct translator *t, enum shadow_view view, uint64_t salt[2])
{
	uint64_t generation = ++t->generation[view] << 2 | (uint64_t)view << 1;

	salt[0] = mix(mix(generation ^ t->secret) + t->secret);
	salt[1] = mix(mix((generation | 1) ^ t->secret) + t->secret);
}

static void set_salts(struct translator *t, enum shadow_view view, const uint64_t salt[2])
{
	t->hot.salt[view] = salt[0];
	t->hot.salt[SHADOW_VIEWS + view] = salt[1];
}

void translator_forget(struct engine *e, bool user, bool supervisor)
{
	struct translator *t = e->translator;
	uint64_t salt[2];

	if (user) {
		for (unsigned n = 0; n < SPACES; n++)
			t->spaces[n].live = false;
		t->space_stale = true;
		memset(t->jump_pages[0], 0, sizeof(t->jump_pages[0]));
	}
	if (supervisor) {
		t->nonglobal_jumps = false;
		e->stats->jumps_forgotten++;
		new_salts(t, SHADOW_SUPERVISOR, salt);
		set_salts(t, SHADOW_SUPERVISOR, salt);
	}
	if (user && supervisor)
		memset(t->jump_pages[1], 0, sizeof(t->jump_pages[1]));
}

static void flush_space(struct user_space *s)
{
	s->flushed = true;
	if (s->count > SPACE_PAGES)
		s->live = false;
}

void translator_switch(struct engine *e, bool keep)
{
	struct translator *t = e->translator;
	const struct cpu_state *c = e->cpu;
	uint64_t pcid = c->cr4 & CR4_PCIDE ? CR3_PCID : 0;

	for (unsigned n = 0; n < SPACES && !keep; n++)
		if (((t->spaces[n].cr3 ^ c->cr3) & pcid) == 0)
			flush_space(&t->spaces[n]);
	t->space_stale = true;
	if (t->nonglobal_jumps)
		translator_forget(e, false, true);
}

/* All pages that jumps lead to are where they were; with nothing left to do for a fetch, as setting A. */
static bool is_as_it_was(struct engine *e, struct user_space *s)
{
	if (!s->flushed)
		return true;
	for (unsigned n = 0; n < s->count; n++)
		if (mmu_user_code(e, s->page[n]) != s->code_page[n])
			return false;
	s->flushed = false;
	return true;
}

void translator_settle(struct engine *e)
{
	struct translator *t = e->translator;
	struct user_space *s = &t->spaces[t->space];
	uint64_t cr3 = e->cpu->cr3, sum = e->deltas->user_sum;

	if (engine_likely(!t->space_stale && s->sum == sum))
		return;
	t->space_stale = false;
	for (unsigned n = 0; n < SPACES; n++) {
		s = &t->spaces[n];
		if (s->live && s->cr3 == cr3 && s->sum == sum && (s->live = is_as_it_was(e, s))) {
			t->space = n;
			set_salts(t, SHADOW_USER, s->salt);
			return;
		}
	}
	t->space = (t->space + 1) % SPACES;
	s = &t->spaces[t->space];
	s->cr3 = cr3;
	s->sum = sum;
	s->live = true;
	s->flushed = false;
	s->count = 0;
	memset(s->noted, 0, sizeof(s->noted));
	new_salts(t, SHADOW_USER, s->salt);
	set_salts(t, SHADOW_USER, s->salt);
	e->stats->spaces_new++;
}

static unsigned page_hash(uint64_t gva)
{
	return (unsigned)(((gva >> 12) * 0x9e3779b97f4a7c15ull) >> 52);
}

static void note_user_page(struct user_space *s, uint64_t gva, uint64_t code_page)
{
	unsigned hash = page_hash(gva);
	uint64_t bit = 1ull << (hash % 64);

	gva &= ~0xfffull;
	if (s->noted[hash / 64] & bit)
		for (unsigned n = 0; n < s->count && n < SPACE_PAGES; n++)
			if (s->page[n] == gva && s->code_page[n] == code_page)
				return;
	s->noted[hash / 64] |= bit;
	if (s->count < SPACE_PAGES) {
		s->page[s->count] = gva;
		s->code_page[s->count] = code_page;
	}
	if (s->count <= SPACE_PAGES)
		s->count++;
}

void translator_note_page(struct translator *t, unsigned view, uint64_t gva, uint64_t code_page)
{
	unsigned hash = page_hash(gva);

	t->jump_pages[gva >> 63][hash / 64] |= 1ull << (hash % 64);
	if (view == SHADOW_USER)
		note_user_page(&t->spaces[t->space], gva, code_page);
	else
		t->low_supervisor |= !(gva >> 63);
}

void translator_forget_page(struct engine *e, uint64_t gva)
{
	struct translator *t = e->translator;
	unsigned hash = page_hash(gva);

	if (!(t->jump_pages[gva >> 63][hash / 64] >> (hash % 64) & 1))
		return;
	for (unsigned n = 0; n < SPACES; n++)
		flush_space(&t->spaces[n]);
	t->space_stale = true;
	if (gva >> 63 || t->low_supervisor)
		translator_forget(e, false, true);
}

/*
 * A thunk of the jump cache. S1 is the key of the target, RIP + salt, which is compared without touching flags; hot.target and
 * hot.exit_site are those of the jump, should this be another's thunk and have no second.
 */
static void emit_thunk(struct translator *t, const struct thunk *k, const struct code_page *page, uint32_t tb)
{
	struct emit m = {t->write + k->code};
	uint8_t *hit;

	emit_imm64(&m, S2, -k->key);
	emit_lea(&m, S2, (struct emit_mem){S1, S2, 0, 0});
	emit_move(&m, S1, RCX);
	emit_move(&m, RCX, S2);
	hit = emit_jrcxz(&m);
	emit_move(&m, RCX, S1);
	emit_imm64(&m, S1, k->key);
	emit_lea(&m, S1, (struct emit_mem){S1, S2, 0, 0});
	emit_patch(emit_jmp(&m), t->write + (k->second ? t->seconds[k->second - 1].code : t->lost));
	emit_patch8(hit, m.p);
	emit_move(&m, RCX, S1);
	emit_store_imm64(&m, &t->hot.code, (int32_t)(uintptr_t)page);
	emit_patch(emit_jmp(&m), t->write + t->tbs[tb].code);
	assert(m.p - (t->write + k->code) <= THUNK_SIZE);
}

#define THUNK_MISS 40 /* where the displacement of the jump to the second one stands */

static uint32_t take_thunk(struct translator *t)
{
	uint32_t code = (t->code_used + THUNK_SIZE - 1) & ~(THUNK_SIZE - 1);

	if (code + THUNK_SIZE > CODE_SIZE)
		return 0;
	t->code_used = code + THUNK_SIZE;
	return code;
}

/* Jumps may still have this key: its salt is one of those in use. */
static bool is_current(const struct translator *t, const struct thunk *k, const struct code_page *page)
{
	for (unsigned n = 0; n < SHADOW_VIEWS * 2; n++)
		if (((k->key - t->hot.salt[n]) & ~0xfffull) == page->base)
			return true;
	return false;
}

/* The second thunk of a first one, for the key. NULL: there is no room. */
static struct thunk *find_second(struct translator *t, unsigned index)
{
	struct thunk *k = &t->thunks[index], *second;

	if (k->second)
		return &t->seconds[k->second - 1];
	if (t->seconds_used == SECONDS)
		return NULL;
	second = &t->seconds[t->seconds_used];
	*second = (struct thunk){.code = take_thunk(t)};
	if (!second->code)
		return NULL;
	k->second = ++t->seconds_used;
	/* The jump that leads out of the first one, behind 39 bytes (emit_thunk()). */
	emit_patch(t->write + k->code + THUNK_MISS, t->write + second->code);
	return second;
}

void translator_remember(struct engine *e, unsigned view, uint64_t gva, uint64_t host, uint32_t tb)
{
	struct translator *t = e->translator;
	struct hot *h = &t->hot;
	uint64_t key = gva + h->salt[view + (t->tbs[tb].mode32 ? SHADOW_VIEWS : 0)];
	unsigned index = key & (JUMPS - 1);
	struct thunk *k = &t->thunks[index], *second;
	struct code_page *page = &h->pages[index];

	if (!k->code) {
		*k = (struct thunk){.code = take_thunk(t)};
		if (!k->code)
			return;
		h->jumps[index] = (uint64_t)(uintptr_t)t->execute + k->code;
	} else if (k->key != key && is_current(t, k, page)) {
		second = find_second(t, index);
		if (second) {
			k = second;
			page = &h->second_pages[second - t->seconds];
		}
	}
	k->key = key;
	*page = (struct code_page){gva & ~0xfffull, host};
	emit_thunk(t, k, page, tb);
}

/* Jump cache entries may still lead to the code: it becomes the way out, as a miss of the jump. */
void translator_drop_code(struct engine *e, uint32_t id)
{
	struct translator *t = e->translator;
	struct tb *tb = &t->tbs[id];
	struct emit m = {t->write + tb->code};

	emit_patch(emit_jmp(&m), t->write + (tb->mode32 ? t->leave32 : t->leave));

	for (uint32_t s = tb->incoming; s; s = t->sites[s - 1].next)
		site_unchain(t, s - 1);
	tb->incoming = 0;
	tb->dead = true;
}

void translator_drop_block(struct engine *e, struct block *b)
{
	for (unsigned view = 0; view < SHADOW_VIEWS; view++) {
		if (!b->tb[view])
			continue;
		translator_drop_code(e, b->tb[view] - 1);
		b->tb[view] = 0;
	}
}

void translator_reset(struct engine *e)
{
	struct translator *t = e->translator;
	struct block_cache *c = e->blocks;

	for (uint32_t n = 0; n < t->tb_used; n++) {
		uint32_t index = t->tbs[n].block;
		uint32_t *tb =
			index & TB_CROSSING ? c->crossings[index & ~TB_CROSSING].tb : c->blocks[index].tb;

		tb[0] = tb[1] = 0;
	}
	t->code_used = (t->fixed + 63) & ~63u;
	t->tb_used = t->map_used = 0;
	t->site_used = 0;
	t->chain_from = 0;
	soft_reset(t);
	for (unsigned n = 0; n < JUMPS; n++)
		t->hot.jumps[n] = (uint64_t)(uintptr_t)t->execute + t->lost;
	memset(t->thunks, 0, sizeof(t->thunks));
	t->seconds_used = 0;
	translator_forget(e, true, true);
	memset(t->jump_pages, 0, sizeof(t->jump_pages));
	e->stats->code_resets++;
}
