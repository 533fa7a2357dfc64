/*
 * Where jumps lead from page to page, as long as no translation of an address has changed. Three ways to know, all
 * compared without touching flags:
 *
 *   far links      a direct branch knows the page that runs (hot.code) from which its target has been found before
 *   landings       a call leaves where its return goes, in a table by RSP; the landing compares the return's key and its own
 *   jump cache     a table by the low bits of RIP + salt, to a thunk that compares all of it
 *
 * What they know belongs to a life of the translations: an address space's for users, the whole for the supervisor. A page of code
 * has one record (struct code_page) in each life, so that a far link proves both by comparing its address; a life's salts are
 * those of the keys of the jump cache and of returns. Dropped code has no landings any more.
 *
 *   hot.code ──► record {base, host, life, key}      table of returns, by bits 15:3 of RSP: {landing, record of its page}
 *
 * Spaces are remembered by where their tables are, so that a switch between few processes loses nothing. A kernel that has more processes
 * than PCIDs gives each another one whenever it comes back: the pages are compared then, as after a flush.
 */
#include <assert.h>
#include <errno.h>
#include <sys/mman.h>

#include "engine/translate.h"

static uint64_t mix(uint64_t x)
{
	x ^= x >> 31;
	x *= 0x9e3779b97f4a7c15ull;
	return x ^ x >> 29;
}

static void begin_life(struct translator *t, enum shadow_view view, struct life *life)
{
	uint64_t generation = ++t->generation[view] << 2 | (uint64_t)view << 1;

	life->id = generation;
	life->salt[0] = mix(mix(generation ^ t->secret) + t->secret);
	life->salt[1] = mix(mix((generation | 1) ^ t->secret) + t->secret);
}

static void enter_life(struct translator *t, enum shadow_view view, const struct life *life)
{
	t->life[view] = life->id;
	t->hot.salt[view] = life->salt[0];
	t->hot.salt[SHADOW_VIEWS + view] = life->salt[1];
}

void translator_forget(struct engine *e, bool user, bool supervisor)
{
	struct translator *t = e->translator;
	struct life life;

	supervisor |= user && t->low_supervisor; /* its pages would not be noted any more */
	if (user) {
		for (unsigned n = 0; n < SPACES; n++)
			t->spaces[n].live = false;
		t->space_stale = true;
		memset(t->jump_pages[0], 0, sizeof(t->jump_pages[0]));
	}
	if (supervisor) {
		t->nonglobal_jumps = t->low_supervisor = false;
		e->stats->jumps_forgotten++;
		begin_life(t, SHADOW_SUPERVISOR, &life);
		enter_life(t, SHADOW_SUPERVISOR, &life);
	}
	if (user && supervisor)
		memset(t->jump_pages[1], 0, sizeof(t->jump_pages[1]));
}

static void flush_space(struct user_space *s)
{
	s->flushed = true;
	if (s->full)
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
	struct mmu_near near = {.region = ~0ull};

	if (!s->flushed)
		return true;
	for (unsigned n = 0; n < SPACE_PAGES; n++)
		if (s->pages[n].gva && mmu_user_code(e, s->pages[n].gva, &near) != s->pages[n].code_page)
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
		if (!s->live || (s->cr3 ^ cr3) & ~CR3_PCID || s->sum != sum)
			continue;
		if (s->cr3 != cr3)
			flush_space(s);
		s->cr3 = cr3;
		if (s->live && (s->live = is_as_it_was(e, s))) {
			t->space = n;
			enter_life(t, SHADOW_USER, &s->life);
			return;
		}
	}
	t->space = (t->space + 1) % SPACES;
	s = &t->spaces[t->space];
	s->cr3 = cr3;
	s->sum = sum;
	s->live = true;
	s->flushed = s->full = false;
	if (s->count)
		memset(s->pages, 0, sizeof(s->pages));
	s->count = 0;
	begin_life(t, SHADOW_USER, &s->life);
	enter_life(t, SHADOW_USER, &s->life);
	e->stats->spaces_new++;
}

/* --- pages --- */

/* The record, or the free one that it would get. */
static struct code_page *page_slot(struct translator *t, unsigned view, uint64_t gva, uint64_t host)
{
	uint64_t base = gva & ~0xfffull, life = t->life[view];
	unsigned index = (unsigned)(mix(base ^ life << 20) >> 32) & (PAGES - 1);
	struct code_page *p;

	for (;; index = (index + 1) & (PAGES - 1)) {
		p = &t->hot.pages[index];
		if (!p->life || (p->life == life && p->base == base && p->host == host))
			return p;
	}
}

struct code_page *translator_page(struct translator *t, unsigned view, uint64_t gva, uint64_t host)
{
	struct code_page *p = page_slot(t, view, gva, host);

	if (!p->life) {
		t->pages_used++;
		p->base = gva & ~0xfffull;
		p->host = host;
		p->life = t->life[view];
		p->memfd_page = 0;
		p->key_neg = -(p->base + t->hot.salt[view]);
	}
	return p;
}

struct code_page *translator_find_page(struct translator *t, unsigned view, uint64_t gva, uint64_t host)
{
	struct code_page *p = page_slot(t, view, gva, host);

	return p->life ? p : NULL;
}

bool translator_pages_full(const struct translator *t)
{
	return t->pages_used > PAGES / 4 * 3;
}

void translator_forget_pages(struct engine *e)
{
	struct translator *t = e->translator;

	/* They stay in the lists of those that they lead to. */
	for (unsigned n = 0; n < PARTS; n++)
		for (uint32_t id = translator_part_begin(t, n).site; id < t->parts[n].site; id++)
			if (t->sites[id].kind == SITE_FAR && t->sites[id].chained && !t->tbs[t->sites[id].tb].dead)
				site_forget_far(t, &t->sites[id]);
	memset(t->hot.pages, 0, sizeof(t->hot.pages));
	t->pages_used = 0;
	for (unsigned n = 0; n < JUMPS; n++)
		t->hot.jumps[n] = (uint64_t)(uintptr_t)t->execute + t->find;
	for (unsigned view = 0; view < SHADOW_VIEWS; view++)
		for (unsigned n = 0; n <= RETURNS; n++)
			t->hot.returns[view].host[n] = (uint64_t)(uintptr_t)t->execute + t->return_miss[view];
	memset(t->thunk, 0, sizeof(t->thunk));
	t->seconds_used = 0;
	translator_forget(e, true, true);
}

static unsigned page_hash(uint64_t gva)
{
	return (unsigned)(((gva >> 12) * 0x9e3779b97f4a7c15ull) >> 48);
}

static void note_user_page(struct user_space *s, uint64_t gva, uint64_t code_page)
{
	unsigned index = (gva >> 12) % SPACE_PAGES;

	gva = (gva & ~0xfffull) | 1;
	while (s->pages[index].gva) {
		if (s->pages[index].gva == gva && s->pages[index].code_page == code_page)
			return;
		index = (index + 1) % SPACE_PAGES;
	}
	if (s->count == SPACE_PAGES / 4 * 3) {
		s->full = true;
		return;
	}
	s->pages[index] = (struct space_page){gva, code_page};
	s->count++;
}

void translator_note_page(struct translator *t, unsigned view, struct code_page *page, uint64_t memfd_page)
{
	uint64_t gva = page->base;
	unsigned hash = page_hash(gva);

	if (page->memfd_page)
		return;
	page->memfd_page = memfd_page;
	t->jump_pages[gva >> 63][hash / 64] |= 1ull << (hash % 64);
	if (view == SHADOW_USER)
		note_user_page(&t->spaces[t->space], gva, memfd_page);
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

/* --- what is found once --- */

#define THUNK_HIT 38 /* where the displacement of the jump to the code stands */

/* Writable. */
static uint8_t *thunk_at(const struct translator *t, unsigned index)
{
	return t->write + t->thunks + index * THUNK_SIZE;
}

/*
 * S1 is the key of the target, RIP + salt, which is compared without touching flags; hot.target and hot.exit_site are those of the
 * jump, should this be another's thunk and have no second.
 */
static void emit_thunk(struct translator *t, unsigned index, uint32_t tb)
{
	const struct thunk *k = &t->thunk[index];
	struct emit m = {thunk_at(t, index)};
	uint8_t *miss, *hit;

	emit_imm64(&m, S2, 1 - k->key);
	emit_lea(&m, S2, (struct emit_mem){S1, S2, 0, 0});
	emit_move(&m, S1, RCX);
	emit_move(&m, RCX, S2);
	miss = emit_loop(&m);
	emit_move(&m, RCX, S1);
	emit_store_imm64(&m, &t->hot.code, (int32_t)(uintptr_t)k->page);
	hit = emit_jmp(&m);
	assert(hit - thunk_at(t, index) == THUNK_HIT);
	emit_patch(hit, t->write + t->tbs[tb].code);
	emit_patch8(miss, m.p);
	emit_move(&m, RCX, S1);
	emit_imm64(&m, S1, k->key - 1);
	emit_lea(&m, S1, (struct emit_mem){S1, S2, 0, 0});
	emit_patch(emit_jmp(&m), k->second ? thunk_at(t, k->second - 1) : t->write + t->find);
	assert(m.p - thunk_at(t, index) <= THUNK_SIZE);
}

#define THUNK_MISS 60 /* where the displacement of the jump to the second one stands */

/* As a miss, with the registers that one has; hot.code is the target's page already. */
void translator_forget_thunks(struct translator *t, uint32_t begin, uint32_t end)
{
	for (unsigned n = 0; n < JUMPS + SECONDS; n++) {
		uint8_t *hit = thunk_at(t, n) + THUNK_HIT;

		if (t->thunk[n].page && emit_target(hit) >= t->write + begin && emit_target(hit) < t->write + end)
			emit_patch(hit, t->write + t->find);
	}
}

/* The second thunk of a first one; the first one if there is no room. */
static unsigned find_second(struct translator *t, unsigned index)
{
	struct thunk *k = &t->thunk[index];

	if (k->second)
		return k->second - 1;
	if (t->seconds_used == SECONDS)
		return index;
	k->second = JUMPS + ++t->seconds_used;
	emit_patch(thunk_at(t, index) + THUNK_MISS, thunk_at(t, k->second - 1));
	return k->second - 1;
}

void translator_remember(struct engine *e, unsigned view, const struct code_page *page, uint64_t gva, uint32_t tb)
{
	struct translator *t = e->translator;
	uint64_t key = gva + t->hot.salt[view + (t->tbs[tb].mode32 ? SHADOW_VIEWS : 0)];
	unsigned index = key & (JUMPS - 1);
	struct thunk *k = &t->thunk[index];

	if (k->page == page && k->key == key &&
		emit_leads(thunk_at(t, index) + THUNK_HIT, t->write + t->tbs[tb].code))
		return;
	if (!k->page)
		t->hot.jumps[index] = (uint64_t)(uintptr_t)t->execute + t->thunks + index * THUNK_SIZE;
	else if (k->key != key && (k->page->life == t->life[SHADOW_USER] || k->page->life == t->life[SHADOW_SUPERVISOR]))
		index = find_second(t, index); /* jumps may still have that key */
	k = &t->thunk[index];
	k->key = key;
	k->page = page;
	emit_thunk(t, index, tb);
}

void site_forget_far(struct translator *t, const struct site *s)
{
	emit_put32(t->write + s->patch - FAR_FROM, 0);
}

void site_link_far(struct engine *e, uint32_t id, unsigned view, const struct code_page *to, uint32_t tb)
{
	struct translator *t = e->translator;
	struct site *s = &t->sites[id];
	const struct code_page *page = t->hot.code;
	const struct tb *from = &t->tbs[s->tb];
	uint8_t *at = t->write + s->patch;

	if (s->kind != SITE_FAR || from->dead || from->view != view || from->mode32 != t->tbs[tb].mode32 || page->life != to->life ||
		page == to) /* a thunk has led to code that was gone */
		return;
	if (s->chained && !site_leads(t, s, t->tbs[tb].code))
		return; /* the same bytes lead elsewhere in another address space: the jump cache does */
	if (!s->chained) {
		s->next = t->tbs[tb].incoming;
		t->tbs[tb].incoming = id + 1;
		s->chained = true;
	}
	site_lead(t, s, t->tbs[tb].code);
	emit_put32(at - FAR_PAGE, (uint32_t)(uintptr_t)to);
	emit_put32(at - FAR_FROM, -(uint32_t)(uintptr_t)page);
	e->stats->far_links++;
}
