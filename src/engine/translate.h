/*
 * The translator's inside (docs/translator.md). All of it lies below 2 GiB, so that emitted code reaches it
 * by absolute addresses.
 *
 *   translate.c       decoded blocks → host code: registers, exits, the fault map
 *   translate_region.c  which blocks are translated together, status flags, in how many versions
 *   translate_hot.c   which code is hot, so that it becomes a region
 *   translate_facts.c what is known of addresses: which slot a register leads to
 *   translate_mem.c   how an operand's address is formed, checked and reached
 *   translate_soft.c  operands that faults have made dear: by the software TLB
 *   translate_insn.c  which instructions are copied, which have code of their own; the rest is interpreted
 *   translate_string.c  string instructions
 *   translate_system.c  privileged instructions that have code of their own
 *   translate_iret.c  IRET
 *   translate_32.c    32-bit code: what is different there
 *   translate_run.c   entering and leaving host code, chaining, the jump cache, faults
 *   translate_jump.c  branches that leave the page: emitted code; jump_cache.c: what it finds, and how long that is true
 *   jump_find.c       a branch's target, found without leaving
 *   code_cache.c      memory for code and tables; links
 *   code_forget.c     dropping blocks, and the oldest code when there is no room
 *
 * Registers while translated code runs:
 *
 *   RAX…R9, R12…R15   the guest's
 *   RSP               the guest's + hot.rsp_delta: always in a region of the shadow or in its guards
 *   R10, R11          scratch; the guest's are in cpu_state.gpr
 *   status flags      the guest's; DF is 0; IF and the others are in cpu_state.rflags
 *   XMM, YMM, MXCSR   the guest's if hot.fp_gate lets them in, else nobody's
 *
 * In 32-bit code RSP is the guest's as it is, and R8…R15 are not (translate_32.c).
 */
#ifndef ENGINE_TRANSLATE_H
#define ENGINE_TRANSLATE_H

#include "engine/blocks.h"
#include "engine/reencode.h"
#include "engine/shadow.h"

#define S1 R10
#define S2 R11
#define SCRATCH(reg) (1u << (reg))

static inline bool is_scratch(int reg)
{
	return reg == S1 || reg == S2;
}

#define POLL_SIZE (8u << 20)	    /* the page that is read, and what event bits lead to */
#define POLL_LOAD_SIZE 8	    /* bytes of the instruction by which a poll faults */
#define PROBE_SIZE (4u << 20)  /* the page in the middle can be read: 512 slots of a page each on both sides */
#define FAR_CALL (16 << 20) /* bytes from which on a direct call may leave the canonical addresses: no code is nearer to their ends */
#define GATE_CLOSED (POLL_SIZE / 2) /* in it: never readable, and no event bit leads there */
#define X87_CLOSED (GATE_CLOSED + 4096)
#define CODE_SIZE (36u << 20)
#define STUBS_AT (CODE_SIZE - (9u << 20)) /* from here on: what blocks do seldom, apart from what they do always */
#define TB_MAX (7u << 15)
#define TB_BITS 19
#define SITE_MAX (7u << 16)
#define MAP_MAX (7u << 19) /* bytes; like those before it for as many blocks as there is code: 96 of it, 39 of stubs, two sites and 16 each */
#define JUMPS 65536u
#define PAGES 65536u	    /* code pages, in all lives of the translations that are remembered */
#define REGION_ALIGN 64u
#define TB_SIZE_MIN 5 /* host bytes of one block at least */
#define THUNK_SIZE 64u /* host bytes of an entry of the jump cache */
#define SECONDS 4096u  /* thunks behind others */
#define HEAT 8
#define STRING_RUN (1u << 17) /* elements of a repeated string instruction between two looks at events; a power of 2 */
#define SAMPLES 8192u	    /* blocks, hashed, in which the samples have been */
#define SAMPLES_HOT 2	    /* of SAMPLES_LATELY, before it is looked at what runs there */
#define SAMPLES_LATELY 1024u
#define WATCH 256u	    /* blocks that are interpreted then */
#define WARM_SHARE 16	    /* of the head's times in there, what others of the region must have had */
#define HOT_LEAST 4	    /* of the head */
#define STRANGE 10000	    /* indirect calls that a region's head does not know, before they are looked at */
#define HOT_TRIES 24	    /* how often a region is made of a block */
#define DRIFT_MAX (1 << 30) /* bytes that a base register may be stepped while its delta is held */
#define CODE_MAX 131072u    /* host bytes of one translation at most */
#define SITES_MAX 1024u	    /* its ways out */
#define MAPS_MAX 16384u	    /* and its part of the fault map, in bytes */
#define FAR_TURNS 16u
#define SPACES 32	    /* of users, whose jumps are remembered */
#define SPACE_PAGES 4096u   /* hashed, to which they lead: three quarters at most, if they shall outlive a flush */
#define SEEN_MANY 0xffff
#define SOFT_SITES 1024u
#define SOFT_FAULTS 6 /* of an instruction, before it reaches memory by the software TLB */
#define DISP_NEAR (1 << 20) /* a displacement beyond is taken for the address of an array */

/* A page that code runs in. Emitted code holds its address. */
struct code_page {
	uint64_t base; /* gva */
	uint64_t host; /* where the shadow has it */
	uint64_t life; /* of the translation; 0: the record is free */
	uint64_t memfd_page; /* which it is, once that has been noted; 0 until then */
	uint64_t key_neg;    /* −(base + the life's salt): what returns to the page are compared with */
};

/*
 * Where returns go, by bits 15:3 of the RSP that they leave: what the call that was made there has left, its landing and the record of its
 * page. Calls write one place further, since they have pushed.
 */
#define RETURNS 8192u
struct return_table {
	uint64_t host[RETURNS + 1];
	uint64_t page[RETURNS + 1];
};

/* What emitted code reads and writes. */
struct hot {
	struct code_page *code;	       /* the page that runs */
	uint64_t rsp_delta, rsp_neg;   /* and its negative */
	uint64_t rsp_key, rsp_key_neg; /* guest RSP >> 39; its negative */
	uint64_t high_mask;	       /* bits 63:39, for PEXT */
	uint64_t seg_host[2];	       /* FS, GS base + the delta of its slot */
	uint64_t salt[SHADOW_VIEWS * 2]; /* of the jump cache's keys; 32-bit code's behind */
	uint64_t target;	       /* of the indirect jump under way */
	uint64_t under;		       /* what the call under way has overwritten by its push */
	uint64_t save;		       /* RCX, while the jump cache is looked up; RAX, while flags are kept */
	uint64_t string_si, string_di; /* deltas in RSI and RDI while a string instruction runs */
	uint64_t string_rest; /* of its repetitions, those that are not in RCX */
	uint64_t string_mask; /* bits of a count that has more of them than are done without a look at events */
	uint64_t mode_changed; /* CS and SS are another privilege's since the engine has last looked */
	uint64_t exit_site;
	uint64_t far_turn; /* far links that may still fail until one is set anew */
	uint64_t scratch[2]; /* R10, R11 at a fault */
	uint64_t rsp_host;
	uint64_t c_rsp;
	uint64_t flags; /* ax form of operand.h */
	uint64_t enter_pc;
	uint64_t find; /* translator_find() */
	uint64_t slot_mask;						  /* bits 47:39, for PEXT */
	uint64_t probe_mask;						  /* and 11:0 */
	/* The software TLB: its index is bits 21:12, its tags are bits 63:12. */
	uint64_t tlb_index, tlb_page;
	uint64_t tlb_of[SHADOW_VIEWS]; /* the array of each privilege */
	uint64_t tlb_gva;	       /* what is looked up, or was last; 0: it was none */
	uint64_t mask_if, mask_no_if, mask_virtual, mask_ax, mask_status; /* translate_system.c */
	/* 32-bit code. */
	uint64_t flat_delta;		    /* of slot 0 */
	uint64_t wide_base[2], wide_delta[2]; /* of FS, GS: the base; slot 0's delta or poison */
	uint64_t poison;
	uint64_t mask_carry; /* bit 32 */
	uint64_t iret_frame[5]; /* translate_iret.c */
	uint64_t bit_mask[2]; /* of a bit's number in 32 and 64 bits */
	uint64_t leave_now;  /* where the fixed code leaves for the code that runs */
	uint64_t fp_gate;   /* an address that can be read if fp_loaded, else one that can't */
	uint64_t fp_loaded; /* the guest's vector state is in the host's registers */
	uint64_t x87_gate;  /* likewise, if the x87 state is there too */
	uint64_t fp_mask;   /* the components that are */
	/* The jump cache (jump_cache.c): by the low bits of RIP + salt, a thunk or the way out. */
	uint64_t jumps[JUMPS];
	struct code_page pages[PAGES]; /* hashed */
	uint64_t return_mask; /* bits 15:3, for PEXT */
	struct return_table returns[SHADOW_VIEWS];
};

enum site_kind {
	SITE_CHAIN,  /* direct, in the page: `offset`; the branch can be patched */
	SITE_RETURN, /* the same, from a landing, which begins `undo` bytes before `patch`. In a region it may have no branch, and no exit */
	SITE_FAR,    /* direct, out of the page; else as SITE_TARGET. `patch` is the branch of its far link */
	SITE_INTERP, /* the interpreter does the instruction at `offset` */
	SITE_TARGET, /* the guest goes to hot.target; `offset` is the branch, `undo` what it has moved RSP by
		      */
	SITE_STRANGE, /* the same of an indirect call of a region that has often led to none of the places that it is compared with */
	SITE_MISS,   /* the operand of the instruction at `offset` lies in another slot than was foreseen */
	SITE_HOT,    /* the block has run often: it is at its start */
	SITE_SOFT,   /* as SITE_INTERP: the software TLB does not know the page, or the strategy is to be judged */
};

/* A way out of a block. */
struct site {
	uint32_t stub; /* where it leads when not chained; SITE_FAR: its target, from the page's start */
	uint32_t tb : TB_BITS;
	int32_t undo : 12;
	uint32_t chained : 1;
	uint64_t patch : 27; /* offset of the branch's displacement in the cache */
	uint64_t offset : 13; /* in the page, or, of an instruction that crosses pages, shortly behind it */
	uint64_t next : 20; /* among those chained to the same block: index + 1 */
	uint64_t kind : 4;
};
_Static_assert(sizeof(struct site) == 16 && TB_MAX <= 1u << TB_BITS && SITE_MAX < 1u << 20 && CODE_SIZE <= 1u << 27, "they fit");
#define PATCH_MASK ((1u << 27) - 1)
#define UNDO_MAX 2000

/* A far link: bytes from the branch's displacement back to the record of the target's page, and to that of the branch's own, negated. */
#define FAR_PAGE 5u
#define FAR_FROM 32u

#define TB_CROSSING 0x80000000u
#define TB_NONE UINT32_MAX

/* A translated block. */
struct tb {
	uint32_t block;	     /* index in block_cache, or TB_CROSSING + that of a crossing */
	uint32_t code, stubs; /* in the cache; where the next block's begin they end */
	uint32_t map;	     /* its part of the fault map, likewise */
	uint32_t site;	     /* its first one, likewise */
	uint32_t incoming;   /* site index + 1 */
	uint8_t view;
	bool mode32 : 1;
	bool region : 1;
	bool dead : 1; /* its first bytes are an exit now; its sites are not patched any more */
	bool entry : 1; /* a jump into the region that comes before: it goes with that */
};

/*
 * Places in all that belongs to translations: their code, stubs, struct tb, sites and fault map. Each has what lies before the next one's; behind the
 * last one of a part stands a struct tb that is none (code_forget.c).
 */
#define PARTS 8u
struct code_part {
	uint32_t code, stubs, tb, site, map;
};

/*
 * From host code to guest instruction: valid up to the next entry. In memory each is two numbers of 7 bits in a byte, all but the
 * last byte with bit 7 set; as a rule a byte each:
 *
 *	host code since the entry before        bytes
 *	bits 2:0 kind, 3 sign, 4… offset since the entry before
 */
enum map_kind {
	MAP_INSN,   /* of the instruction */
	MAP_POLL,   /* between instructions: nothing of `offset` has happened yet */
	MAP_STRING, /* RSI and RDI have their deltas added; it may have made some steps */
	MAP_TARGET, /* as MAP_POLL, but the guest is at hot.target */
	MAP_RETURN, /* as MAP_POLL, but at what S1 holds */
	MAP_RUN,    /* as MAP_POLL, but RSI and RDI have their deltas added */
};
struct map_entry {
	uint32_t host; /* offset from the block's code; from its stubs, + MAP_STUBS */
	int32_t offset; /* of the instruction in the page */
	enum map_kind kind;
};
#define MAP_ENTRY_MAX 10u /* bytes */
#define MAP_STUBS CODE_MAX

/* An instruction of guest code that has faulted often (translate_soft.c). */
struct soft_site {
	uint64_t at;	 /* its offset in the memfd; SOFT_NONE: free */
	uint64_t since;	 /* host TSC at the first of the faults, or when it was last judged */
	uint64_t cost;	 /* of 65,536 cycles, those lost to faults when it was promoted */
	int32_t left;	 /* executions until it is judged: code counts down */
	uint32_t faults; /* since `since` */
	uint32_t misses; /* likewise; of those: `again` of pages that had been found, with no flush between */
	uint32_t again;
	uint8_t level;	 /* how often it was demoted, more or less */
	uint8_t stray;	 /* faults in spite of the software TLB */
	uint8_t part;	 /* where its last code is */
	bool soft, writes;
};
#define SOFT_NONE ~0ull

/* Where an indirect call has been seen to lead within its page. */
#define CALLS 256u
#define TARGETS_INSIDE 5
struct indirect_call {
	uint64_t at; /* its offset in the memfd + 1 */
	unsigned count;
	int target[TARGETS_INSIDE]; /* offsets in the page */
};
#define SOFT_PAGES 4096u

/*
 * A time in which no translation of the pages that jumps lead to has changed and all slots are where they were. After a flush of a
 * user's the tables are asked whether these pages are what they were.
 */
struct life {
	uint64_t id;
	uint64_t salt[2]; /* of the jump cache's keys; 32-bit code's behind */
};

struct user_space {
	uint64_t cr3; /* with the PCID, the last one that it had */
	uint64_t sum; /* shadow_deltas.user_sum */
	struct life life;
	bool live;
	bool flushed; /* its pages are to be compared before it is used */
	bool full;    /* there are pages that were not noted */
	unsigned count;
	struct space_page {
		uint64_t gva; /* bit 0: used */
		uint64_t code_page; /* its number in the memfd */
	} pages[SPACE_PAGES];
};

/* A thunk: its key, and the page that it leads to (NULL: it has not been written yet). */
struct thunk {
	uint64_t key;
	const struct code_page *page;
	uint32_t second; /* index + 1 of the one that is asked if this is not the jump's */
};

struct translator {
	struct hot hot;
	/* Set at create. */
	uint8_t *write;	  /* the code, writable */
	uint8_t *execute; /* the same, executable */
	uint8_t *poll;	  /* hva of the page that polls read; what follows it faults */
	uint8_t *probe;
	uint32_t enter, leave, leave_fault, find; /* offsets of the fixed code */
	uint32_t enter32, leave32;
	uint32_t leave_site[2], find_site; /* the same with the site's number in S2; 64- and 32-bit code */
	uint32_t far[SHADOW_VIEWS * 2];	   /* of far links that don't fit */
	bool has_gs; /* the host lets programs write their GS base: 32-bit code can be translated */
	uint32_t return_miss[SHADOW_VIEWS], return_miss_save[SHADOW_VIEWS]; /* the latter with RCX in hot.save */
	uint32_t fixed;				  /* end of it */
	uint32_t thunks, first;			  /* of the jump cache; and of the blocks' code */
	unsigned heat; /* interpretations before a block is translated, HEAT; tests set 1 */
	unsigned hot_after; /* 0; tests: entries before a block is watched, instead of samples */
	unsigned soft_after; /* SOFT_FAULTS; tests set less, or much more */
	unsigned watch; /* WATCH; tests set less */
	unsigned part_tbs; /* translations in a part of the code at most, + 1: TB_MAX / PARTS; tests set few */
	/* While running. */
	struct code_part parts[PARTS], limit; /* where the next translation's begin; the limit is that of the part that is filled */
	unsigned part;		   /* the one that is filled */
	uint32_t huge, huge_stubs; /* code up to here is in large pages, if the host has them */
	uint32_t chain_from;  /* site + 1: the way by which the last block was left */
	bool jump_from;	      /* it was left by SITE_TARGET */
	bool low_supervisor;  /* it has supervisor targets in the lower half */
	bool nonglobal_jumps; /* the jump cache has supervisor targets that a CR3 write may change */
	bool interp_next;     /* the next instruction is the interpreter's */
	bool faulted;
	bool code32; /* the code that runs is 32-bit code */
	unsigned fp_warm;  /* entries that still load the vector state in advance */
	unsigned x87_warm; /* and the x87 state with it */
	uint64_t fault_hva;
	uint64_t fault_pc;
	bool fault_write;
	int fault_signal;
	uint64_t changes, upper_changes; /* of the deltas, as seen */
	struct user_space spaces[SPACES];
	unsigned space; /* the one that runs */
	bool space_stale;
	uint64_t generation[SHADOW_VIEWS];
	uint64_t life[SHADOW_VIEWS]; /* whose records are used */
	uint32_t pages_used;
	uint64_t secret; /* no guest can foresee a salt */
	/* A bit by hashed page, of the lower and the upper half: the jump cache may have targets in it. */
	uint64_t jump_pages[2][1024];
	struct tb *tbs;
	int32_t *heats; /* by translation: of a region indirect calls to strange targets, of a block, if hot_after, entries that are left */
	struct site *sites;
	uint8_t *map;
	/* By decoded instruction: slot + 1 of its operand; 0 unknown, SEEN_MANY. */
	uint16_t *seen;
	struct tx_pool *pool; /* of the translation under way */
	struct thunk thunk[JUMPS + SECONDS]; /* the first ones, then those behind others */
	uint32_t seconds_used;
	struct soft_site soft[SOFT_SITES];
	uint32_t soft_pages[SOFT_PAGES]; /* hashed: what has been missed */
	/* translate_hot.c */
	struct sample {
		uint64_t block; /* block_id() */
		uint32_t since; /* the number of the first one */
		int32_t count;
	} samples[SAMPLES];   /* hashed */
	uint32_t sampled;     /* all of them */
	uint64_t last_sample[2];
	uint64_t watched;     /* block_id() of the one that is hot */
	unsigned watching;    /* how many blocks are still to be interpreted and noted */
	unsigned seen_blocks; /* those that have been */
	uint64_t seen_block[WATCH];
	struct indirect_call calls[CALLS]; /* hashed */
};

/* The part that is filled. */
static inline struct code_part *translator_part(struct translator *t)
{
	return &t->parts[t->part];
}

/* --- code_cache.c --- */
/* After the shadow; without one there is no translator. 0 or −errno: the engine interprets. */
int translator_create(struct engine *e);
void translator_destroy(struct engine *e);
/* Memory for the next code: flat code of many pages is slow for want of TLB entries. The host may not do it. */
void translator_enlarge_pages(struct translator *t);
/* Lets `site`, a branch to b, go to its code `tb` directly, if it may, or to its stub again. */
void site_chain(struct engine *e, uint32_t site, const struct block *b, uint32_t tb);
void site_unchain(struct translator *t, uint32_t site);
/* Its branch leads to the code at the offset. */
void site_lead(struct translator *t, const struct site *s, uint32_t code);
bool site_leads(const struct translator *t, const struct site *s, uint32_t code);

/* --- code_forget.c --- */
/* Forgets all code. */
void translator_reset(struct engine *e);
/* Forgets the oldest part of it; what is translated from now on goes there. */
void translator_next_part(struct engine *e);
/* Where part n begins, and the one before it ends. */
struct code_part translator_part_begin(const struct translator *t, unsigned n);
/* The block's bytes have changed or its memory is about to be reused: nothing leads to its code any more. */
void translator_drop_block(struct engine *e, struct block *b);
void translator_drop_code(struct engine *e, uint32_t tb);
/* The block will be the one of this index, and what has been seen of its operands at this place, which is not behind its old one. */
void translator_move_block(struct engine *e, const struct block *b, uint32_t index, uint32_t seen);

/* --- jump_cache.c --- */
/* What is known of jumps is good no more: of all, or of those whose target lies in the page. */
void translator_forget(struct engine *e, bool user, bool supervisor);
void translator_forget_page(struct engine *e, uint64_t gva);
/* CR3 has been written. keep: nothing was flushed, the jumps of this address space may be known from before. */
void translator_switch(struct engine *e, bool keep);
/* Before user jumps are remembered or code is entered: the life is that of the address space. */
void translator_settle(struct engine *e);
/* The record of the page at gva, which the shadow has at host. There must be room. */
struct code_page *translator_page(struct translator *t, unsigned view, uint64_t gva, uint64_t host);
/* The same if there is one, else NULL. */
struct code_page *translator_find_page(struct translator *t, unsigned view, uint64_t gva, uint64_t host);
bool translator_pages_full(const struct translator *t);
/* Thunks that lead to code between these offsets miss. */
void translator_forget_thunks(struct translator *t, uint32_t begin, uint32_t end);
/* Makes room: all that is known of jumps is forgotten. */
void translator_forget_pages(struct engine *e);
/* A jump is remembered that leads to the page of the record, the memfd's page `memfd_page`. */
void translator_note_page(struct translator *t, unsigned view, struct code_page *page, uint64_t memfd_page);
/* From now on jumps in the view to the address find the code, which is in the page. */
void translator_remember(struct engine *e, unsigned view, const struct code_page *page, uint64_t gva, uint32_t tb);
/* The far link leads nowhere any more. */
void site_forget_far(struct translator *t, const struct site *s);
/* The jump under way, by the site, leads to the code whenever it is run from its page as that is now; nothing if it is no far link. */
void site_link_far(struct engine *e, uint32_t site, unsigned view, const struct code_page *to, uint32_t tb);

/* --- jump_find.c --- */
/* Called by the fixed code, with the guest's registers saved and its vector registers live: where the way out hot.exit_site leads. */
uint64_t translator_find(struct engine *e);

/* --- translate_run.c --- */
/*
 * One step of the main loop at the block b, which is at RIP: runs translated code (DID_RUN: look again), or
 * profiles and translates. DID_NOTHING: the caller interprets the block; DID_LEAVE_ONE: its first instruction
 * alone.
 */
enum translator_did { DID_NOTHING, DID_RUN, DID_LEAVE_ONE };
enum translator_did translator_step(struct engine *e, struct block *b);
/* Interprets the block, noting the slots of its operands. */
void translator_profile(struct engine *e, struct block *b);
void translator_emit_fixed(struct engine *e);
/* From the signal handler. True: it was translated code, and the context has been changed to leave it. */
bool translator_signal(struct engine *e, int sig, void *siginfo, void *ucontext);

/* --- translate_hot.c --- */
/* From a signal handler that comes from time to time: where the guest was. VCPU_EVENT_SAMPLE is set if it is there often. pc: of the host. */
void translator_sample(struct engine *e, uint64_t pc);
/* The event: the next blocks are noted. */
void translator_watch(struct engine *e);
/* One of them. Afterwards a region may be made. */
enum translator_did hot_watch(struct engine *e, struct block *b, unsigned view);
/* The block runs often: it is watched from now on. For tests. */
void hot_count(struct engine *e, uint32_t tb);
/* Makes a region of the block; its tb index + 1, or that of what was there before. */
uint32_t hot_translate(struct engine *e, struct block *b, unsigned view);
/* Whose code is at the offset in the cache: its index, or TB_NONE. */
uint32_t translator_find_tb(const struct translator *t, uint64_t offset);
static inline uint64_t block_id(uint64_t key, unsigned view)
{
	return key << 1 | view;
}

/* --- translate.c --- */
/*
 * Translates a block for the current view; its tb index + 1, or 0 when not possible. hot: with the blocks that follow it in its page.
 */
uint32_t translate_block(struct engine *e, struct block *b, unsigned view, bool hot);
/* The same for one instruction that crosses pages. */
uint32_t translate_crossing(struct engine *e, const struct crossing *c, unsigned view);

/* One instruction as the translator looks at it. */
struct tx_insn {
	struct decoded d; /* all 0 for one that only raises #UD */
	struct insn insn;
	const uint8_t *bytes;
	int offset, next; /* in the page */
	uint32_t written; /* general registers, a bit each */
	uint32_t used;	  /* explicit register operands, not those of addresses */
	uint32_t read;	  /* of these, the ones whose value before it matters */
	uint32_t flags_read, flags_written;
	uint32_t flags_live; /* before it: may not be destroyed */
	int memory;	     /* index of the ModRM memory operand, −1 none */
	bool high, vector;
};

struct native_op;
enum stub_kind { STUB_SITE, STUB_LOOKUP, STUB_POLL, STUB_RSP, STUB_LANDING };
/* Code that stands apart from the block. */
struct tx_stub {
	uint8_t *from; /* displacement that leads to it */
	enum stub_kind kind;
	uint32_t site;
	const uint8_t *back; /* STUB_LOOKUP, STUB_RSP: where it returns */
	int src, dst;
	int offset; /* STUB_POLL: where it goes; STUB_LANDING: that of the landing */
};

/*
 * What is known of a sum base + (index << scale): it lies in the slot, or not more than `drift` bytes outside of it. The guards are wider
 * than DRIFT_MAX, a displacement and a small index together.
 */
struct tx_fact {
	int8_t base, index;
	uint8_t scale;
	uint16_t slot;
	int64_t drift;
};

#define TX_FACTS 12
#define NO_SLOT -1
struct tx_facts {
	struct tx_fact fact[TX_FACTS];
	uint8_t count;
	uint16_t small;	  /* registers that hold no more than 32 bits, signed or not */
	int16_t delta[2]; /* whose slot's delta S1 and S2 hold */
	bool gated;	  /* the vector state has been asked for */
};

/* A block of a region, and the code that it has: one version for each set of facts that hold when it is reached. */
#define REGION_BLOCKS 32
#define REGION_INSNS 288
#define REGION_LOOP_BLOCKS 16 /* of them, without those behind calls */
#define REGION_LOOP_INSNS 160
#define REGION_VERSIONS 56
#define REGION_EDGES 176
#define REGION_EMIT 800 /* instructions in all versions */
#define VERSIONS_EACH 3
#define RETURNS_INSIDE 5 /* places with which a return compares its address, as TARGETS_INSIDE for indirect calls */
struct tx_block {
	const struct block *b;
	struct tx_insn *insn;
	const uint16_t *seen;
	int offset; /* in the page */
	unsigned count;
	uint32_t live_in, live_out; /* status flags */
	unsigned versions;
	int target[TARGETS_INSIDE]; /* where the indirect call at its end has been seen to lead in the page, most often first */
	unsigned targets;
};

struct tx_version {
	unsigned block;
	struct tx_facts facts; /* what must hold when it is entered */
	uint8_t *code;	       /* NULL: not emitted yet */
};

/* A branch inside of the region. */
struct tx_edge {
	uint8_t *from; /* displacement */
	unsigned version;
};

#define TX_STUBS 900
struct tx_pool {
	struct tx_insn insn[REGION_INSNS];
	struct tx_block block[REGION_BLOCKS];
	struct tx_version version[REGION_VERSIONS];
	struct tx_edge edge[REGION_EDGES];
	struct tx_stub stubs[TX_STUBS];
};

/* The translation under way. */
struct tx {
	struct engine *e;
	struct translator *t;
	struct tx_pool *pool;
	struct emit m;
	uint8_t *start;
	uint32_t start_host; /* 0, or MAP_STUBS */
	struct map_entry mapped; /* the last one */
	unsigned view;
	bool mode32;
	uint32_t tb;
	bool region; /* it is hot: facts, and blocks together */
	bool calls;  /* a region that goes on behind calls, and in what they call */
	unsigned blocks, insns, versions, edges, emitted;
	/* Blocks of the region behind which events are looked at whichever way it goes on; of these, those whose own branch does it. */
	uint32_t polled, polling;
	unsigned block; /* the one under way */
	bool returns; /* branches lead from a return to behind calls */
	unsigned stub_count;
	int fall; /* the version that the code runs into, −1: none */
	/* The block under way. */
	struct tx_insn *insn;
	const uint16_t *seen;
	unsigned count, n;
	uint32_t live_out;
	struct tx_facts facts;
	int accessed; /* the fact that the instruction's operand has proved, −1 */
	int64_t accessed_disp;
	/* In a region: the scratch register that holds the sum of a base and a scaled index, −1: none does. */
	int sum, sum_base, sum_index;
	unsigned sum_scale;
	/* Which base register's slot delta a scratch register holds; −1. */
	int holds[2];
	int64_t drift[2];
	int last;   /* the scratch register used last: 0 S1, 1 S2 */
	bool gated87; /* the x87 state has been asked for in this block */
	uint64_t page; /* offset of the code page in the memfd, SOFT_NONE: it has no one page */
	struct soft_site *soft; /* the instruction's, if its operand shall go by the software TLB */
	bool soft_done;
	bool ended, failed;
};

uint32_t tx_site(struct tx *x, enum site_kind kind, int offset, int undo);
void tx_stub(struct tx *x, uint8_t *from, enum stub_kind kind, uint32_t site);
void tx_map(struct tx *x, int offset, enum map_kind kind);
/* Reads the entry behind *m, at *p; the first one is behind one that is all 0. */
void map_next(const uint8_t **p, struct map_entry *m);
/* A patchable branch to `offset` of the page; cc −1: always. */
void tx_branch(struct tx *x, int cc, int offset);
/* Events are looked at without touching flags: any bit makes the load fault. Destroys the scratch register.
 */
void tx_poll(struct tx *x, int scratch);
/* Scratch registers have lost what they held. */
void tx_clobber(struct tx *x, unsigned scratch);

/* False: not to be translated. Does not return if the bytes are not those of which the block was made. */
bool tx_decode(struct tx *x, struct tx_block *t, const struct block *b, const uint8_t *bytes, int offset);
void tx_emit_block(struct tx *x);

/* --- translate_jump.c --- */
/* The jump cache: the target is in S1. `undo`: what the branch has moved RSP by. */
void tx_jump(struct tx *x, int offset, int undo, bool poll);
/* The same; the target is in hot.target. */
void tx_jump_stored(struct tx *x, int offset, int undo, bool poll);
/* To `target`, which counts from the page's start. Between two instructions: who polls has done it. */
void tx_jump_far(struct tx *x, int offset, int32_t target, int undo);
/*
 * A call pushes the address of `next` and leaves where its return shall go, unless it leads to a block of the region that returns there by
 * itself; `target` counts from the page's start, NO_TARGET: it is not known. The result is for tx_land(). Destroys S1 and S2.
 */
#define NO_TARGET INT64_MIN
/* Before a call that may lead to an address that is not canonical: what its push overwrites is kept. Destroys S2. */
void tx_keep_under(struct tx *x);
uint8_t *tx_push_return(struct tx *x, int next, int64_t target);
/* An indirect call, whose target is in S1: to one of the region's blocks that it has been seen to lead to, or by the jump cache. */
void tx_call_indirect(struct tx *x, int offset, int next);
/* Behind a call: where its return arrives. */
void tx_land(struct tx *x, uint8_t *left, int next);
/* A return has taken its address to S1, and moved RSP by `undo`. */
void tx_return(struct tx *x, int offset, int undo);
/* The fixed code for a branch whose far link does not fit: the site is in S2, RCX in S1. */
void tx_emit_far(struct emit *m, struct translator *t, unsigned salt);
void tx_emit_landing_miss(struct tx *x, const struct tx_stub *s);
/* The fixed code where a return goes on that is not the landing's; its key is in S1. */
void tx_emit_return_miss(struct emit *m, struct translator *t, unsigned view);

/* --- translate_region.c --- */
/* Decodes what is translated with the head, pool.block[0]. */
void region_collect(struct tx *x, const uint8_t *page);
/* The flags that are live before each instruction. */
void region_find_flags(struct tx *x);
/* Which branches back need not look for events, since what they lead to will. */
void region_find_polls(struct tx *x);
/* Emits all versions of all blocks. */
void region_emit(struct tx *x);
/* The index of the block at `offset` of the page, or −1. */
int region_find(const struct tx *x, int offset);
/* A branch goes to the block; from NULL: the code runs into it or jumps. */
void region_go(struct tx *x, unsigned block, uint8_t *from);
/* The block is one of the region, and has no code yet. */
bool region_is_ahead(const struct tx *x, int offset);
/* The version may be entered from outside, and nobody would gain by another region that has its block as head: that of a loop. */
bool region_is_entry(const struct tx *x, const struct tx_version *v);
/* If the code was to run into a block next, it jumps there. */
void region_cut(struct tx *x);
/* The call to `target`, behind which `next` follows, is made inside of the region, and so are all returns from there that it knows. */
bool region_has_call(const struct tx *x, int64_t target, int next);
/* Where the return that ends the block under way may lead inside of the region: block indices; their number. */
unsigned region_returns(const struct tx *x, unsigned to[RETURNS_INSIDE]);
/* Where the indirect call that ends the block under way has been seen to lead, likewise. */
unsigned region_targets(const struct tx *x, unsigned to[TARGETS_INSIDE]);
/* For all of these calls that is true which region_has_call() says. */
bool region_has_calls(const struct tx *x, int next);
/* The indirect call at the offset in the memfd leads to that of its page. True: that was not known, and there is room. */
bool region_learn_target(struct translator *t, uint64_t at, int target);

/* --- translate_facts.c --- */
void facts_clear(struct tx_facts *f);
/* All of `need` is known by `have`. */
bool facts_imply(const struct tx_facts *have, const struct tx_facts *need);
/* Checks would be saved by knowing what `have` knows, against `need`. */
bool facts_imply_more(const struct tx_facts *have, const struct tx_facts *need);
/* Takes from `f` what is not known by `other`. */
void facts_meet(struct tx_facts *f, const struct tx_facts *other);
/* Room for loops that step their registers. */
void facts_widen(struct tx_facts *f);
/* As tx_operand(), by facts alone: false if they don't help. `index` may be NO_REG. */
bool facts_operand(struct tx *x, int base, int index, unsigned scale, int32_t disp, unsigned data, struct emit_mem *out);
/* The instruction has been emitted. */
void facts_account(struct tx *x, const struct tx_insn *i);
/* add, sub, inc, dec of a constant, 64 bits: by *step (its size counts); else *step is left as it is. */
bool tx_constant_step(const struct tx_insn *i, int64_t *step);

/* --- translate_mem.c --- */
/*
 * Forms the operand of the current instruction. data: scratch registers that it must leave free. False: not
 * possible.
 */
bool tx_operand(struct tx *x, const ZydisDecodedOperand *op, unsigned data, struct emit_mem *out);
/* dst = the delta of the slot of the address in src (which may be dst), from the table; no flags. */
void tx_look_up(struct tx *x, int dst, int src);
/* dst = the delta of the slot of the address in src; with dead flags by prediction. */
void tx_find_delta(struct tx *x, int dst, int src, uint32_t flags_live);
/* The operand as it stands in the instruction, without its segment; the base may be GPR_RIP. */
struct emit_mem tx_address_of(const ZydisDecodedOperand *op);
/* guest address (flat, not yet checked) of the operand → scratch register `to`; `other` may be destroyed. */
void tx_effective(struct tx *x, const ZydisDecodedOperand *op, int to, int other);
/*
 * The guest address in S1 is in RSP's slot afterwards and S2 is the slot's delta; else the interpreter does
 * the instruction, or (may_switch: RSP is set at once, nothing faults before) the slot becomes RSP's. No
 * register of the guest has changed.
 */
void tx_check_rsp(struct tx *x, uint32_t flags_live, bool may_switch);
/* Makes the slot of the address in S1 RSP's; destroys S2. */
void tx_switch_rsp(struct tx *x);
void tx_get_rsp(struct tx *x, int to, int32_t disp);
/* to = the guest's, or the host's, address of the page that runs. */
void tx_code_base(struct tx *x, int to);
void tx_code_host(struct tx *x, int to);

/* --- translate_soft.c --- */
/* The site of the instruction at the offset in the memfd if its strategy is the software TLB, else NULL. */
struct soft_site *soft_find(struct translator *t, uint64_t at);
/* As tx_operand(). */
bool soft_operand(struct tx *x, const ZydisDecodedOperand *op, unsigned data, struct emit_mem *out);
/* The instruction of x->soft has been emitted, or is left to the interpreter. */
void soft_emitted(struct tx *x, bool interpreted);
/* The instruction has faulted in translated code. True: it must be translated anew. */
bool soft_fault(struct engine *e, uint64_t at);
/* It has left by SITE_SOFT, with the address in hot.tlb_gva if it has one. True: likewise. */
bool soft_left(struct engine *e, uint64_t at);
void soft_reset(struct translator *t);
/* Code of the part is gone: those that had their last code there are free. */
void soft_forget(struct translator *t, unsigned part);

/* --- translate_insn.c --- */
void tx_examine(struct tx *x, struct tx_insn *i);
/* Emits it. False: the interpreter must do it. */
bool tx_emit(struct tx *x, struct tx_insn *i, const struct insn *decoded);

bool tx_is_copied(const ZydisDecodedInstruction *z);
bool tx_is_nothing(ZydisMnemonic mnemonic);
bool tx_is_jcc(const ZydisDecodedInstruction *z);
/* The direct call, to so many bytes from the page's start, may lead to an address that is not canonical. */
bool tx_is_far_call(int64_t target);
/* Near, and of the mode's width. */
bool tx_is_plain_branch(const struct tx_insn *i);
/* Where the branch leads, from the page's start; false: not relative, or farther than 2 GiB. */
bool tx_relative_target(const struct tx *x, const struct tx_insn *i, int64_t *target);
/* to = the guest's address `offset` of the page. */
void tx_page_address(struct tx *x, int to, int offset);
/* Goes to the target and ends the block. `undo` as for tx_jump(). */
void tx_go(struct tx *x, const struct tx_insn *i, int64_t target, int undo, bool polled);
/* Before a direct call has pushed or LOOP has counted anything: events are looked at if it leads backward out of the page. Within, tx_go() does that. */
void tx_poll_call(struct tx *x, const struct tx_insn *i, int64_t target);
bool tx_jump_if(struct tx *x, const struct tx_insn *i);
/* The vector registers are the guest's once the gate has been passed. */
void tx_pass_gate(struct tx *x);
/* An x87 instruction that may be copied behind the gate. */
bool tx_is_x87(const struct native_op *native, ZydisMnemonic mnemonic);
void tx_pass_x87(struct tx *x);

/* --- translate_string.c --- */
/* MOVS or STOS of 64-bit code, as tx_emit(). */
bool tx_string(struct tx *x, const struct tx_insn *i, bool has_source);
/* The instruction's bytes as the host shall run them, RSI and RDI being the host's. Destroys S1 and S2. */
void tx_run_string(struct tx *x, const struct tx_insn *i, const uint8_t *bytes, unsigned count);

/* --- translate_system.c --- */
void translator_set_masks(struct translator *t);
/* S1 = RFLAGS as PUSHF shows it; destroys S2. */
void tx_compose_flags(struct tx *x);
/* The flags in S1 would change more than IF and the status flags: the interpreter does it. Destroys S2 and flags. */
void tx_check_flags(struct tx *x, const struct tx_insn *i);
/* RFLAGS = S1, with interrupts looked at behind the instruction. Destroys both. */
void tx_restore_flags(struct tx *x, const struct tx_insn *i);
/* RFLAGS = what it holds of S1 besides status flags, and `also`. The result is in S2, too. Destroys flags. */
void tx_store_virtual(struct tx *x, uint32_t also);
/* The host's status flags = those in S1, which it destroys. */
void tx_load_status(struct tx *x);
/* All of a segment register. May destroy S2. */
void tx_store_segment(struct tx *x, unsigned seg, const struct cpu_segment *s);
/* CS and SS are those of the privilege: RSP, which is in S1, and the segment bases follow into its view, C is told when it comes by. No flags. */
void tx_enter_view(struct tx *x, unsigned view);
void tx_count(struct tx *x, const uint64_t *counter);
/* As tx_emit(), for privileged and sensitive instructions. */
bool tx_system(struct tx *x, const struct tx_insn *i, const struct insn *decoded);

/* --- translate_iret.c --- */
/* As tx_emit(). */
bool tx_iret(struct tx *x, const struct tx_insn *i);

/* --- translate_32.c --- */
/* The host can run 32-bit code as it is translated here. */
bool tx32_possible(void);
/* The CPU is in 32-bit code, flat, with registers of 32 bits: it may run translated. */
bool tx32_ready(const struct engine *e);
/* What code relies on besides what prepare() does for both modes. */
void tx32_prepare(struct engine *e, unsigned view);
/* Loads what it has in registers that are not the guest's. Destroys S1. */
void tx32_emit_registers(struct emit *m, struct engine *e);
/* As tx_emit(). */
bool tx32_emit(struct tx *x, struct tx_insn *i, const struct insn *decoded);

#endif
