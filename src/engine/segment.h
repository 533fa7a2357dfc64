/* Descriptors and what the segment files share: segment.c, far.c, exception.c, taskswitch.c. */
#ifndef ENGINE_SEGMENT_H
#define ENGINE_SEGMENT_H

#include "engine/access.h"

/*
 * A descriptor (SDM vol. 3, 3.4.5), as read.
 *
 *   hi: 31..24 base 31:24 | 23 G | 22 D/B | 21 L | 20 AVL | 19..16 limit | 15 P | 14..13 DPL | 12 S | 11..8 type | 7..0 base 23:16
 *   lo: 31..16 base 15:0 | 15..0 limit
 */
struct descriptor {
	uint32_t lo, hi;
	uint64_t gva;
};
#define DESC_P (1u << 15)
#define DESC_S (1u << 12)
#define DESC_CODE (1u << 11)	   /* with S */
#define DESC_CONFORMING (1u << 10) /* with CODE */
#define DESC_RW (1u << 9)	   /* writable data, readable code */
#define DESC_L (1u << 21)
#define DESC_DB (1u << 22)

/* System descriptor types. */
enum { SYS_TSS16 = 1, SYS_LDT = 2, SYS_TSS16_BUSY = 3, SYS_CALL16 = 4, SYS_TASK_GATE = 5, SYS_INT16 = 6, SYS_TRAP16 = 7,
	SYS_TSS = 9, SYS_TSS_BUSY = 11, SYS_CALL = 12, SYS_INT = 14, SYS_TRAP = 15 };

static inline unsigned desc_dpl(const struct descriptor *d)
{
	return d->hi >> 13 & 3;
}
static inline unsigned desc_type(const struct descriptor *d)
{
	return d->hi >> 8 & 15;
}
static inline bool desc_is_code(const struct descriptor *d)
{
	return (d->hi & (DESC_S | DESC_CODE)) == (DESC_S | DESC_CODE);
}
static inline bool desc_is_conforming(const struct descriptor *d)
{
	return (d->hi & DESC_CONFORMING) != 0;
}
static inline bool desc_is_writable_data(const struct descriptor *d)
{
	return (d->hi & (DESC_S | DESC_CODE | DESC_RW)) == (DESC_S | DESC_RW);
}
static inline bool is_long_mode(const struct engine *e)
{
	return (e->cpu->efer & EFER_LMA) != 0;
}
/* Real-address or virtual-8086 mode: selectors are paragraphs. */
static inline bool is_real_or_v86(const struct engine *e)
{
	return !(e->cpu->cr0 & CR0_PE) || (e->cpu->rflags & FLAG_VM);
}
static inline void gpr_set(struct engine *e, unsigned reg, unsigned size, uint64_t value)
{
	uint64_t *r = &e->cpu->gpr[reg];

	if (size == 2)
		*r = (*r & ~0xffffull) | (uint16_t)value;
	else
		*r = size == 4 ? (uint32_t)value : value;
}

/* Raises vector with a selector error code; the EXT bit is set while something is being delivered. */
void selector_fault(struct engine *e, uint8_t vector, uint16_t selector) __attribute__((noreturn));
/* Reads the descriptor of a selector; false if it lies outside of its table. */
bool descriptor_read(struct engine *e, uint16_t selector, struct descriptor *d);
/* The upper half of a 16-byte system descriptor in long mode: base 63:32. */
uint32_t descriptor_read_high(struct engine *e, uint16_t selector, const struct descriptor *d);
/* ORs bits into the type byte in memory, atomically. */
void descriptor_set_type_bits(struct engine *e, const struct descriptor *d, uint8_t set, uint8_t clear);
/* Fills in the hidden part. */
void segment_set(struct cpu_segment *s, uint16_t selector, const struct descriptor *d);
void segment_set_null(struct cpu_segment *s, uint16_t selector, unsigned dpl);
/* Real mode: base alone; V86: all of it. */
void segment_set_paragraph(struct engine *e, unsigned seg, uint16_t selector);
/* Marks accessed if it is not. */
void descriptor_touch(struct engine *e, struct descriptor *d);
/* Segments that a less privileged level may not keep become null (SDM: RET, IRET). */
void segment_drop_privileged(struct engine *e, unsigned cpl);
/* Puts a stack pointer value for the (already loaded) SS and mode. */
void stack_pointer_set(struct engine *e, uint64_t value);

/* SS:ESP of a privilege level from the TSS (legacy protected mode); checked: #TS, #SS. */
void stack_from_tss(struct engine *e, unsigned cpl, struct cpu_segment *ss, uint64_t *sp, struct descriptor *d);
/* RSPn (0..2) or ISTn (as 3 + n, n from 1) of a 64-bit TSS. */
uint64_t stack_from_tss64(struct engine *e, unsigned which);

/* A stack that is being built before it becomes the current one. */
struct new_stack {
	const struct cpu_segment *ss; /* NULL: 64-bit, flat */
	uint64_t sp;
	uint16_t error;		      /* selector of #SS */
	unsigned access;	      /* ACCESS_SYSTEM for CPL 0..2 */
};
void new_stack_push(struct engine *e, struct new_stack *s, unsigned size, uint64_t value);

enum task_reason { TASK_JMP, TASK_CALL, TASK_INT, TASK_IRET };
/* tss: selector of the new task's TSS. RIP in cpu is what is saved. error: pushed on the new stack if has_error. */
void task_switch(struct engine *e, uint16_t tss, enum task_reason why, bool has_error, uint32_t error);

/* far.c */
void op_far_jump(struct engine *e, const struct insn *i);
void op_far_call(struct engine *e, const struct insn *i);
void op_far_return(struct engine *e, const struct insn *i);
void op_iret(struct engine *e, const struct insn *i);

#endif
