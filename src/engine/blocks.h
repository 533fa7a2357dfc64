/* The decoded-block cache (blocks.c), as the main loop uses it. */
#ifndef ENGINE_BLOCKS_H
#define ENGINE_BLOCKS_H

#include "engine/access.h"

struct block {
	uint64_t key;	       /* offset in the memfd << 2 | mode; BLOCK_DEAD once dropped */
	uint32_t insns;	       /* where they were decoded to, counted from the beginning of time; 0: they are not there. blocks_insns() */
	uint32_t next_in_hash; /* index + 1, 0 ends */
	uint32_t next_in_page;
	uint32_t seen;	       /* index of what the translator has seen of the first instruction's operand */
	uint32_t tb[2];	       /* translated, by enum shadow_view: index + 1 */
	uint16_t heat;	       /* how often it was interpreted, saturating; BLOCK_HEAT_NEVER: begins with what is not translated */
	uint16_t bytes;
	uint8_t count;	       /* instructions */
	uint8_t hot;	       /* how often it was translated together with what follows it */
	bool warm;	       /* it has run often when a block of its page was hot */
};
#define BLOCK_INSNS 32u /* at most */
#define BLOCK_HEAT_NEVER 0xffff
#define BLOCK_DEAD ~0ull

/* How many of the instructions decoded last are there: when all are interpreted, and when there is a translator. Powers of 2. */
#define INSN_RING_MAX (1u << 18)
#define INSN_RING_FEW (1u << 16)

#define JUMP_BITS 12
struct jump_entry {
	uint64_t linear;
	uint64_t key; /* engine.block_key when it was entered */
	struct block *block;
};

struct block_page {
	uint32_t first;	 /* block index + 1 */
	uint16_t writes;   /* beside the code, since it was decoded */
	uint16_t patience; /* how many times that has cost it its blocks */
	uint64_t chunks; /* bit n: bytes 64n..64n+63 were decoded */
};

/* A decoded instruction that crosses pages: good as long as its bytes are the same, which is checked at each use. */
#define CROSSING_COUNT 256
struct crossing {
	uint64_t linear;
	uint8_t mode, length; /* length 0: empty */
	uint8_t bytes[15];
	struct insn insn;
	/* For the translator: the memfd pages it lies in, ~0 if one is not RAM; its code while the pages are watched. */
	uint64_t page[2];
	uint32_t tb[2]; /* by view: index + 1 */
	uint16_t heat;
};

struct block_cache {
	struct crossing crossings[CROSSING_COUNT];
	struct jump_entry jump[1 << JUMP_BITS];
	struct block *blocks;
	struct insn *insns; /* a ring of so many: */
	uint32_t ring;
	uint32_t *hash;
	struct block_page *pages;
	uint64_t page_count;
	uint32_t blocks_used, insns_used, seen_used, seen_max;
	uint32_t news_seen; /* of vm_shared.code_head */
	struct block single; /* an instruction that may not be cached */
	struct insn single_insn;
	struct insn found; /* by blocks_insn() */
	struct crossing *single_crossing; /* whose instruction single_insn is; NULL: nobody's */
};

#define BLOCK_HASH_BITS 18
static inline unsigned block_hash(uint64_t key)
{
	return (unsigned)((key * 0x9e3779b97f4a7c15ull) >> (64 - BLOCK_HASH_BITS));
}

/* The block with this key if it is decoded, else NULL. */
static inline struct block *blocks_cached(struct engine *e, uint64_t key)
{
	const struct block_cache *c = e->blocks;

	for (uint32_t id = c->hash[block_hash(key)]; id; id = c->blocks[id - 1].next_in_hash)
		if (c->blocks[id - 1].key == key)
			return &c->blocks[id - 1];
	return NULL;
}

int blocks_create(struct engine *e);
/*
 * The next decoded instruction at the offset in the memfd, of a block behind *at (0: from the first one), and its index for what the
 * translator has seen; NULL: there is no more. Good until the next call.
 */
const struct insn *blocks_insn(struct engine *e, uint64_t offset, uint32_t *at, uint32_t *seen);
/*
 * The block's bytes are not those that it was decoded from: another vcpu writes to them, and its news have not come yet. Its page's blocks
 * go, and the main loop goes on at RIP.
 */
void blocks_disagree(struct engine *e, const struct block *b) __attribute__((noreturn));
const struct insn *blocks_decode_again(struct engine *e, struct block *b);
static inline bool blocks_has_insns(const struct block_cache *c, const struct block *b)
{
	/* What has been decoded in vain may have overwritten the next ones. */
	return b->insns && c->insns_used - b->insns <= c->ring - BLOCK_INSNS;
}
/* The block's instructions; those of others may be gone or have moved. Between blocks, in the main loop. */
static inline const struct insn *blocks_insns(struct engine *e, struct block *b)
{
	return engine_likely(blocks_has_insns(e->blocks, b)) ? &e->blocks->insns[b->insns & (e->blocks->ring - 1)] : blocks_decode_again(e, b);
}
/* From now on writes to the bytes of the instruction drop its code. False: they have changed already. */
bool blocks_watch_crossing(struct engine *e, struct crossing *x);
void blocks_destroy(struct engine *e);
/* The slow way: through the TLB and the hash, or decodes. Faults as an instruction fetch. */
struct block *blocks_lookup(struct engine *e, uint64_t linear);

/* Entries of one page lie in 64 neighbours, so that INVLPG can drop them. */
static inline unsigned jump_page(uint64_t linear)
{
	return (unsigned)((linear >> 12) ^ (linear >> 18)) & 63;
}

static inline unsigned jump_index(uint64_t linear)
{
	return jump_page(linear) << 6 | (((unsigned)linear ^ (unsigned)(linear >> 6)) & 63);
}

static inline struct block *blocks_find(struct engine *e)
{
	uint64_t linear = e->cpu->gpr[GPR_RIP];
	const struct jump_entry *j = &e->blocks->jump[jump_index(linear)];

	if (engine_likely(e->flat_code && j->linear == linear && j->key == e->block_key))
		return j->block;
	return blocks_lookup(e, linear);
}

/* Other vcpus have written to code or decoded new code. */
static inline bool blocks_news(const struct engine *e)
{
	return atomic_load_explicit(&e->shared->code_head, memory_order_relaxed) != e->blocks->news_seen;
}
void blocks_take_news(struct engine *e);

#endif
