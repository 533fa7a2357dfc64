/*
 * The fast paths of guest memory access, for the handlers' files: one compare against the software TLB, else the
 * slow functions of access.c, which do everything (segments, faults, page crossing, MMIO, breakpoints).
 *
 * The compare is of the page of the access' last byte with the tag at the first byte's index. A crossing access
 * never matches (its last byte's page belongs to another index), a non-canonical one neither (never tagged).
 */
#ifndef ENGINE_ACCESS_H
#define ENGINE_ACCESS_H

#include <string.h>

#include "engine/engine_state.h"

#define engine_likely(x) __builtin_expect(!!(x), 1)
#define engine_unlikely(x) __builtin_expect(!!(x), 0)

uint64_t linear_read_slow(struct engine *e, uint64_t gva, unsigned size, unsigned access);
void linear_write_slow(struct engine *e, uint64_t gva, unsigned size, uint64_t value, unsigned access);
uint64_t insn_load_slow(struct engine *e, const struct insn *i, unsigned size);
void insn_store_slow(struct engine *e, const struct insn *i, unsigned size, uint64_t value);
/* As linear_rmw(), with the segment checks of the operand. */
void *insn_rmw_slow(struct engine *e, const struct insn *i, unsigned size);

static inline struct tlb_entry *tlb_slot(const struct engine *e, uint64_t gva)
{
	return &e->tlb[(gva >> 12) & (TLB_SIZE - 1)];
}

static inline uint64_t host_load(uint64_t hva, unsigned size)
{
	switch (size) {
	case 1:
		return *(const volatile uint8_t *)hva;
	case 2:
		return *(const volatile uint16_t *)hva;
	case 4:
		return *(const volatile uint32_t *)hva;
	default:
		return *(const volatile uint64_t *)hva;
	}
}

static inline void host_store(uint64_t hva, unsigned size, uint64_t value)
{
	switch (size) {
	case 1:
		*(volatile uint8_t *)hva = (uint8_t)value;
		break;
	case 2:
		*(volatile uint16_t *)hva = (uint16_t)value;
		break;
	case 4:
		*(volatile uint32_t *)hva = (uint32_t)value;
		break;
	default:
		*(volatile uint64_t *)hva = value;
	}
}

/* As linear_read()/linear_write() at the current privilege: explicit data accesses. */
static inline uint64_t linear_load(struct engine *e, uint64_t gva, unsigned size)
{
	const struct tlb_entry *t = tlb_slot(e, gva);

	if (engine_likely(((gva + size - 1) & ~0xfffull) == t->read))
		return host_load(gva + t->delta, size);
	return linear_read_slow(e, gva, size, ACCESS_READ);
}

static inline void linear_store(struct engine *e, uint64_t gva, unsigned size, uint64_t value)
{
	const struct tlb_entry *t = tlb_slot(e, gva);

	if (engine_likely(((gva + size - 1) & ~0xfffull) == t->write))
		host_store(gva + t->delta, size, value);
	else
		linear_write_slow(e, gva, size, value, ACCESS_WRITE);
}

/* The linear address of the memory operand, all segment checks made. access: ACCESS_READ/WRITE. */
static inline uint64_t insn_linear(struct engine *e, const struct insn *i, unsigned size, unsigned access)
{
	return segment_linear(e, i->seg, insn_offset(e, i), size, access);
}

/* In 64-bit mode: not yet checked to be canonical. */
static inline uint64_t insn_flat_linear(const struct engine *e, const struct insn *i)
{
	uint64_t gva = insn_offset(e, i);

	return i->seg >= SEG_FS ? gva + e->cpu->seg[i->seg].base : gva;
}

/* Loads the memory operand, zero-extended. */
static inline uint64_t insn_load(struct engine *e, const struct insn *i, unsigned size)
{
	if (engine_likely(e->flat)) {
		uint64_t gva = insn_flat_linear(e, i);
		const struct tlb_entry *t = tlb_slot(e, gva);

		if (engine_likely(((gva + size - 1) & ~0xfffull) == t->read))
			return host_load(gva + t->delta, size);
	}
	return insn_load_slow(e, i, size);
}

static inline void insn_store(struct engine *e, const struct insn *i, unsigned size, uint64_t value)
{
	if (engine_likely(e->flat)) {
		uint64_t gva = insn_flat_linear(e, i);
		const struct tlb_entry *t = tlb_slot(e, gva);

		if (engine_likely(((gva + size - 1) & ~0xfffull) == t->write)) {
			host_store(gva + t->delta, size, value);
			return;
		}
	}
	insn_store_slow(e, i, size, value);
}

/*
 * For read-modify-write of the memory operand: its hva if it is writable RAM in one page (the caller may use a locked
 * host instruction on it), NULL if not: then insn_load(), compute, insn_store(), inside split_lock_take/release if LOCK.
 */
static inline void *insn_rmw(struct engine *e, const struct insn *i, unsigned size)
{
	if (engine_likely(e->flat)) {
		uint64_t gva = insn_flat_linear(e, i);
		const struct tlb_entry *t = tlb_slot(e, gva);

		if (engine_likely(((gva + size - 1) & ~0xfffull) == t->write))
			return (void *)(gva + t->delta);
	}
	return insn_rmw_slow(e, i, size);
}

/*
 * The lock for what no host instruction can do atomically. Nothing between take and release may fault: after
 * insn_rmw() has returned NULL, the write has been checked.
 */
void split_lock_take(struct engine *e);
void split_lock_release(struct engine *e);

/* --- stack --- */
static inline void stack_push64(struct engine *e, uint64_t value)
{
	uint64_t rsp = e->cpu->gpr[GPR_RSP] - 8;
	const struct tlb_entry *t = tlb_slot(e, rsp);

	if (engine_likely(e->flat && ((rsp + 7) & ~0xfffull) == t->write)) {
		host_store(rsp + t->delta, 8, value);
		e->cpu->gpr[GPR_RSP] = rsp;
	} else {
		stack_push(e, 8, value);
	}
}

static inline uint64_t stack_pop64(struct engine *e)
{
	uint64_t rsp = e->cpu->gpr[GPR_RSP];
	const struct tlb_entry *t = tlb_slot(e, rsp);

	if (engine_likely(e->flat && ((rsp + 7) & ~0xfffull) == t->read)) {
		e->cpu->gpr[GPR_RSP] = rsp + 8;
		return host_load(rsp + t->delta, 8);
	}
	return stack_pop(e, 8);
}
/* The element at RSP without popping it, and the new RSP after popping `size` bytes: for instructions that may still fault. */
uint64_t stack_peek(struct engine *e, unsigned displacement, unsigned size);
void stack_move(struct engine *e, int64_t by);

/* Near branch target: canonical in 64-bit mode, within CS's limit elsewhere; #GP(0) if not. */
void branch_check(struct engine *e, uint64_t rip);

/* --- system.c: port I/O --- */
/* IOPL and the TSS's I/O bitmap. False: the caller raises #GP(0). */
bool io_allowed(struct engine *e, uint16_t port, unsigned size);
/* To the VMM, with I/O breakpoints. */
uint64_t io_read(struct engine *e, uint16_t port, unsigned size);
void io_write(struct engine *e, uint16_t port, unsigned size, uint64_t value);

#endif
