/*
 * The translator's memory: code in a memfd mapped twice, writable and executable, never both; tables of
 * blocks, exits and the fault map (code_forget.c).
 *
 * Everything that emitted code addresses absolutely lies below 2 GiB (MAP_32BIT).
 */
#include <errno.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include "engine/translate.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1 */
#endif
#define HUGE_PAGE (2u << 20)

static void *take_low(size_t size, int prot)
{
	void *p = mmap(NULL, size, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_32BIT, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

/* The code, below 2 GiB, where large pages can show it. NULL: no room. */
static void *map_aligned(int fd)
{
	uint8_t *room = take_low(CODE_SIZE + HUGE_PAGE, PROT_NONE), *at;
	void *p;

	if (!room)
		return NULL;
	at = (uint8_t *)(((uintptr_t)room + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
	p = mmap(at, CODE_SIZE, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED, fd, 0);
	if (at > room)
		munmap(room, (size_t)(at - room));
	munmap(at + CODE_SIZE, (size_t)(room + HUGE_PAGE - at));
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
	execute = map_aligned(fd);
	close(fd);
	t->write = write == MAP_FAILED ? NULL : write;
	t->execute = execute;
	return t->write && t->execute ? 0 : -ENOMEM;
}

static void enlarge_pages(struct translator *t, uint32_t *huge, uint32_t used, uint32_t end)
{
	for (; *huge < used + CODE_MAX && *huge < end; *huge += HUGE_PAGE) {
		*(volatile uint8_t *)(t->write + *huge) = t->write[*huge]; /* of nothing none is made */
		madvise(t->execute + *huge, HUGE_PAGE, MADV_COLLAPSE);
	}
}

void translator_enlarge_pages(struct translator *t)
{
	enlarge_pages(t, &t->huge, translator_part(t)->code, STUBS_AT);
	enlarge_pages(t, &t->huge_stubs, translator_part(t)->stubs, CODE_SIZE);
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
	t->heats = take_low(TB_MAX * sizeof(*t->heats), PROT_READ | PROT_WRITE);
	t->sites = take_low(SITE_MAX * sizeof(*t->sites), PROT_READ | PROT_WRITE);
	t->map = take_low(MAP_MAX, PROT_READ | PROT_WRITE);
	if (!t->poll || !t->probe || !t->tbs || !t->heats || !t->sites || !t->map || mprotect(t->poll, 4096, PROT_READ) ||
		mprotect(t->probe + PROBE_SIZE / 2, 4096, PROT_READ))
		return -ENOMEM;
	t->pool = take_low(sizeof(*t->pool), PROT_READ | PROT_WRITE);
	t->seen = take_low(e->blocks->seen_max * sizeof(*t->seen), PROT_READ | PROT_WRITE);
	if (!t->pool || !t->seen)
		return -ENOMEM;
	error = take_code(t);
	if (error)
		return error;
	e->blocks->ring = INSN_RING_FEW;
	t->heat = HEAT;
	if (getrandom(&t->secret, sizeof(t->secret), 0) != sizeof(t->secret))
		return -EIO;
	t->huge_stubs = STUBS_AT;
	t->hot.far_turn = FAR_TURNS;
	t->soft_after = SOFT_FAULTS;
	t->watch = WATCH;
	t->hot.string_mask = -(uint64_t)STRING_RUN;
	t->part_tbs = TB_MAX / PARTS;
	t->hot.tlb_index = 0x3ffull << 12;
	t->hot.tlb_page = ~0xfffull;
	t->hot.tlb_of[SHADOW_USER] = (uint64_t)(uintptr_t)e->tlb_data[TLB_USER];
	t->hot.slot_mask = 0x1ffull << 39;
	t->hot.probe_mask = t->hot.slot_mask | 0xfff;
	t->hot.return_mask = (uint64_t)(RETURNS - 1) << 3;
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
	release(t->heats, TB_MAX * sizeof(*t->heats));
	release(t->sites, SITE_MAX * sizeof(*t->sites));
	release(t->map, MAP_MAX);
	release(t->pool, sizeof(*t->pool));
	release(t->seen, e->blocks->seen_max * sizeof(*t->seen));
	release(t->write, CODE_SIZE);
	release(t->execute, CODE_SIZE);
	munmap(t, sizeof(*t));
	e->translator = NULL;
}

/* --- links --- */

/*
 * Blocks are often translated in the order in which they run. So a JMP to what follows it becomes a NOP, and a Jcc to what follows the JMP
 * behind it trades places with that: flat code has more taken branches than the host's branch predictor has room for.
 *
 *	jcc  next			jncc far
 *	jmp  far		→	nop
 * next:	...			next:	...
 */
#define NOP_OPCODE 0x0f

void site_lead(struct translator *t, const struct site *s, uint32_t code)
{
	static const uint8_t nop[] = {NOP_OPCODE, 0x1f, 0x44, 0x00, 0x00};
	uint8_t *displacement = t->write + s->patch;
	bool is_jmp = displacement[-1] == JMP_OPCODE || displacement[-1] == NOP_OPCODE;

	if (is_jmp && code == s->patch + 4u) {
		memcpy(displacement - 1, nop, sizeof(nop));
		return;
	}
	if (is_jmp)
		displacement[-1] = JMP_OPCODE;
	emit_patch(displacement, t->write + code);
}

bool site_leads(const struct translator *t, const struct site *s, uint32_t code)
{
	const uint8_t *displacement = t->write + s->patch;

	return displacement[-1] == NOP_OPCODE ? code == s->patch + 4u : emit_leads(displacement, t->write + code);
}

/* The site is a Jcc that is to lead behind the JMP of the next site, which follows it: that becomes the branch of this one. */
static void trade_places(struct translator *t, uint32_t id, uint32_t code)
{
	struct site *s = &t->sites[id], *behind = s + 1;
	uint8_t *displacement = t->write + s->patch;
	int32_t elsewhere;

	if (code != s->patch + 9u || displacement[4] != JMP_OPCODE || (displacement[-1] & 0xf0) != 0x80 || id + 1 >= t->tbs[s->tb + 1].site ||
		behind->kind != SITE_CHAIN || behind->patch != s->patch + 5u)
		return;
	memcpy(&elsewhere, displacement + 5, sizeof(elsewhere));
	displacement[-1] ^= 1;
	emit_patch(displacement, displacement + 9 + elsewhere);
	behind->patch = s->patch;
	s->patch = behind->patch + 5;
}

void site_unchain(struct translator *t, uint32_t id)
{
	struct site *s = &t->sites[id];

	if (!s->chained)
		return;
	s->chained = false;
	if (t->tbs[s->tb].dead)
		return;
	if (s->kind == SITE_FAR)
		site_forget_far(t, s);
	else
		site_lead(t, s, s->stub);
}

void site_chain(struct engine *e, uint32_t id, const struct block *b, uint32_t tb)
{
	struct translator *t = e->translator;
	struct site *s = &t->sites[id];
	const struct tb *from = &t->tbs[s->tb];
	const struct block *source = &e->blocks->blocks[from->block & ~TB_CROSSING];

	if ((s->kind != SITE_CHAIN && s->kind != SITE_RETURN) || s->chained)
		return;
	if ((from->block & TB_CROSSING) || ((source->key ^ b->key) & 3) || source->key == BLOCK_DEAD || from->view != t->tbs[tb].view ||
		source->tb[from->view] != s->tb + 1u)
		return;
	if ((source->key >> 14 << 12) + (uint64_t)s->offset != b->key >> 2)
		return;
	s->chained = true;
	s->next = t->tbs[tb].incoming;
	t->tbs[tb].incoming = id + 1;
	trade_places(t, id, t->tbs[tb].code);
	site_lead(t, s, t->tbs[tb].code);
}
