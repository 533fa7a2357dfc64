/*
 * Native execution: an x87, MMX, SSE or AVX instruction of the guest is re-encoded once, with its memory operand replaced
 * by [RDI] and its general registers by RAX (ModRM.rm), RDX (ModRM.reg) and RCX, and then called with the guest's own
 * x87/SSE/AVX state loaded. So its result, flags and exceptions are the host's.
 *
 *   native.c         the handler: checks, operands, faults
 *   native_code.c    the re-encoder, the arena of thunks, and the assembly that calls them
 *   native_move.c    frequent vector moves without the host's vector unit
 *   native_special.c what only C can do right: gathers, masked moves, MXCSR
 *
 * A thunk lives as long as the arena; equal instructions share one.
 */
#ifndef ENGINE_NATIVE_H
#define ENGINE_NATIVE_H

#include "engine/decode.h"
#include "engine/operand.h"

#define NATIVE_NONE 0xff
enum native_slot { SLOT_RM, SLOT_REG, SLOT_CX, SLOT_COUNT }; /* RAX, RDX, RCX */

/* What must be checked before. */
#define NATIVE_X87 (1u << 0)
#define NATIVE_MMX (1u << 1)
#define NATIVE_SSE (1u << 2)
#define NATIVE_AVX (1u << 3)
#define NATIVE_WAITS (1u << 4)	/* takes a pending x87 exception */
#define NATIVE_FWAIT (1u << 5)	/* CR0.MP decides about TS */
#define NATIVE_READS (1u << 6)	/* the memory operand */
#define NATIVE_WRITES (1u << 7)
#define NATIVE_ALIGNED (1u << 8) /* #GP if the operand is not aligned to its size */
#define NATIVE_FLAGS (1u << 9)	/* writes the status flags */
#define NATIVE_ENV (1u << 10)	/* FNSTENV, FNSAVE: the image's pointers are rewritten */
#define NATIVE_LOAD_ENV (1u << 11)

/* One kind of instruction: all that a thunk depends on. Compared and hashed as bytes: no padding. */
struct native_op {
	uint8_t bytes[16];	   /* the thunk: the instruction and RET */
	uint8_t gpr[SLOT_COUNT];   /* guest register in the slot, NATIVE_NONE */
	uint8_t gpr_write;	   /* bit per slot */
	uint16_t memory;	   /* bytes of the memory operand, 0 none */
	uint16_t flags;		   /* NATIVE_… */
	uint8_t state;		   /* XCR0 components that it touches */
	uint8_t vector[4];	   /* native_special.c: vector registers of the operands */
	uint8_t element, count, index_size; /* and the shape of what it moves */
	uint32_t code;		   /* offset in the arena */
	uint32_t next;		   /* hash chain: index + 1 */
};

enum native_how { NATIVE_CALL, NATIVE_CALL_VECTOR, NATIVE_CALL_SSE };

/* What the assembly loads and stores. Offsets are used in native_code.c. */
struct native_frame {
	uint64_t slot[SLOT_COUNT]; /* 0, 8, 16 */
	void *memory;		   /* 24 */
	const void *code;	   /* 32 */
	void *xsave;		   /* 40 */
	uint64_t state;		   /* 48 */
	uint64_t flags;		   /* 56: ax form of operand.h, in and out */
	uint64_t signal;	   /* 64: the signal that ended it, 0 */
	uint64_t code_low, code_high; /* set at create: the arena */
	uint64_t si_code;
	enum native_how how;	   /* which of the calls runs */
};

#define NATIVE_OPS_MAX (1u << 15)
#define NATIVE_HASH_SIZE (1u << 15)
#define NATIVE_SLOT 16

struct native_state {
	struct native_frame frame;
	uint8_t bounce[512] __attribute__((aligned(64)));
	uint64_t host_state;   /* components that the host has */
	uint32_t isa;	       /* NATIVE_ISA_… that the CPU model offers */
	uint8_t *write;	       /* arena, writable */
	const uint8_t *execute;/* the same, executable */
	uint32_t op_count;
	uint32_t hash[NATIVE_HASH_SIZE];
	struct native_op ops[NATIVE_OPS_MAX];
};

/* XSAVE area, standard format (SDM vol. 1, 13.4). */
#define XSAVE_FSW 2
#define XSAVE_FOP 6
#define XSAVE_FIP 8
#define XSAVE_FDP 16
#define XSAVE_MXCSR 24
#define XSAVE_XMM 160
#define XSAVE_BV 512
#define XSAVE_YMMH 576

/* Fills in *op and returns its stored twin, or NULL if the arena is full. */
const struct native_op *native_intern(struct native_state *n, const struct native_op *op);
void native_reset(struct native_state *n);
/* Writes the thunk into op->bytes. False: not possible. */
bool native_encode(const struct insn *i, const struct decoded *d, const uint8_t *bytes, struct native_op *op);
/* The assembly: runs frame->code. */
void native_call(struct native_frame *frame);
/* Likewise if state is SSE and AVX and the host has both. */
void native_call_vector(struct native_frame *frame);
void native_call_sse(struct native_frame *frame);

/* Makes the XSAVE image explicit: components in their initial state are written out. */
void native_materialize(struct cpu_state *c);
/* #UD, #NM as the operation's class demands; #MF if it waits. */
void native_check(struct engine *e, uint16_t flags);
uint16_t native_class(const struct decoded *d);

insn_fn native_special_handler(struct engine *e, struct insn *i, const struct decoded *d);
insn_fn native_move_handler(struct engine *e, struct insn *i, const struct decoded *d);

static inline uint8_t *xmm_low(struct cpu_state *c, unsigned n)
{
	return c->xsave + XSAVE_XMM + 16 * n;
}

static inline uint8_t *ymm_high(struct cpu_state *c, unsigned n)
{
	return c->xsave + XSAVE_YMMH + 16 * n;
}

#endif
