/*
 * The engine's inside: one struct engine per vcpu, the decoded instruction, and the calls by which the engine's
 * files reach each other.
 *
 *   exec.c       the main loop, decoded-block cache, interrupt and single-step windows
 *   decode.c     bytes → struct insn (Zydis), the one place that knows the decoder
 *   integer.c    data movement and arithmetic; branch.c near control flow; string.c MOVS…SCAS, INS, OUTS
 *   native.c     x87, MMX, SSE, AVX, BMI: runs the instruction itself on bounced operands
 *   mmu.c        guest page walk, software TLB, loads and stores; access.c segmentation, page-crossing, MMIO
 *   exception.c  delivery through the IDT/IVT;  segment.c descriptor loads, far transfers, IRET, task switch
 *   system.c     control and debug registers, MSRs, CPUID, SYSCALL, …, port I/O instructions
 *   lapic.c      the local APIC;  process.c  the vcpu process: fds, futexes, seccomp, timer
 *
 * Invariants:
 *  - A handler that faults does so before it has changed any architectural register (memory may have been written
 *    by an earlier element of a REP). RIP is already past the instruction while its handler runs; raising a fault puts it back.
 *  - engine_raise() and everything that can fault leave by longjmp to the main loop: handlers own no resources.
 *  - Flags in cpu->rflags are always exact (no lazy flags). GPR_ZERO is 0.
 */
#ifndef ENGINE_STATE_H
#define ENGINE_STATE_H

#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmm/engine.h"

struct engine;
struct insn;
typedef void (*insn_fn)(struct engine *e, const struct insn *i);

/* The decoded form of one instruction; a block is an array of these. */
struct insn {
	insn_fn fn;
	uint8_t length;	  /* bytes */
	uint8_t opsize;	  /* operand size in bytes: 1, 2, 4, 8 */
	uint8_t addrsize; /* 2, 4, 8 */
	uint8_t stacksize;/* 2, 4, 8: width of implicit stack operations' RSP use (4/2 decided by SS.B at run time if legacy) */
	uint8_t reg;	  /* ModRM.reg operand: 0..15; byte registers AH..BH are 4..7 with INSN_HIGH_REG */
	uint8_t rm;	  /* ModRM.rm when it is a register, likewise with INSN_HIGH_RM */
	uint8_t base, index; /* enum cpu_gpr incl. GPR_ZERO and GPR_RIP */
	uint8_t scale;	  /* shift: 0..3 */
	uint8_t seg;	  /* enum cpu_seg of the memory operand */
	uint8_t cc;	  /* condition code, or another small operand (register number for CR/DR moves, opcode group) */
	uint8_t reserved;
	uint16_t mnemonic;/* ZydisMnemonic */
	uint16_t flags;	  /* INSN_… */
	int64_t disp;
	uint64_t imm;	  /* sign-extended to 64 bits as the instruction does; branches: relative displacement */
	const void *native; /* native.c's thunk, or NULL */
};
#define INSN_MEM (1u << 0)	/* ModRM names memory (or a moffs) */
#define INSN_LOCK (1u << 1)
#define INSN_REP (1u << 2)	/* F3 */
#define INSN_REPNE (1u << 3)	/* F2 */
#define INSN_HIGH_REG (1u << 4)
#define INSN_HIGH_RM (1u << 5)
#define INSN_ENDS_BLOCK (1u << 6) /* control transfer, or changes modes/translation: look up again afterwards */
#define INSN_OPSIZE_PREFIX (1u << 7)
#define INSN_WIDE_DEST (1u << 8) /* free for the owner of the mnemonic */
#define INSN_ONCE (1u << 9)	 /* what becomes of it does not depend on its bytes alone: it is not remembered */

/* Execution mode: part of a block's key. */
enum engine_mode { MODE_16, MODE_32, MODE_64 };

/* An access, for the walk: bits. */
#define ACCESS_READ 0u
#define ACCESS_WRITE 1u
#define ACCESS_EXEC 2u
#define ACCESS_SYSTEM 4u /* implicit supervisor access (descriptor tables, TSS): CPL does not count */

#define TLB_SIZE 1024
#define TLB_NO_TAG ~0ull
/* By who accesses. SMAP: supervisor that may not touch user pages now. NONE: never tagged (data breakpoints, #AC). */
enum tlb_array { TLB_SUPERVISOR, TLB_USER, TLB_SMAP, TLB_NONE, TLB_ARRAYS };
/*
 * One direct-mapped TLB entry, indexed by gva bits 21:12, one array for each enum tlb_array. A tag
 * is the gva's page (bits 63:12) or TLB_NO_TAG where the fast path may not be taken: no permission, MMIO, D bit
 * not yet set, a page with decoded code (writes), data breakpoints armed.
 */
struct tlb_entry {
	uint64_t read, write, exec;
	uintptr_t delta; /* hva = gva + delta */
};

struct block_cache; /* exec.c */
struct decode_state; /* decode.h */
struct native_state; /* native.c */
struct shadow; /* shadow.c */
struct shadow_deltas; /* shadow.h */
struct lockstep;
struct overlay;

struct engine {
	/* Set at create. */
	struct vcpu_block *block;
	struct cpu_state *cpu; /* &block->cpu */
	struct vm_shared *shared;
	struct engine_stats *stats; /* &block->stats */
	uint8_t *ram;	       /* hva of the RAM memfd */
	struct engine_env env;
	struct decode_state *decode;
	struct block_cache *blocks;
	struct native_state *native;
	struct shadow *shadow;	       /* NULL: no translator */
	struct shadow_deltas *deltas;
	bool through_shadow;	       /* VCPU_ENGINE_SLOTS */
	uint64_t shadow_unmapped;
	struct translator *translator; /* translate.h; NULL: all is interpreted */
	struct lockstep *lockstep;     /* lockstep.h; NULL: nothing is compared */
	struct overlay *overlay;       /* overlay.h; NULL: RAM is written */
	bool failed;		       /* the engine's own failure: exit.text says what */

	/* Engine thread only. */
	struct tlb_entry *tlb;	   /* the array in use: tlb_data[enum tlb_array] */
	struct tlb_entry tlb_data[TLB_ARRAYS][TLB_SIZE];
	uint64_t tlb_used[TLB_ARRAYS][TLB_SIZE / 64];	/* entries with any tag of a non-global page */
	uint64_t tlb_global[TLB_ARRAYS][TLB_SIZE / 64]; /* … of a global page */
	uint64_t tlb_large[TLB_ARRAYS][TLB_SIZE / 64];	/* of either: part of a 2 MiB, 4 MiB or 1 GiB page */
	const struct insn *current; /* the instruction that runs */
	uint64_t insn_rip;	   /* its address (RIP, not linear) */
	enum engine_mode mode;	   /* by engine_update_mode() */
	uint8_t cpl;
	bool stack32;		   /* SS.B */
	bool flat;		   /* 64-bit mode: no limits */
	bool flat_code;		   /* RIP is a linear address: 64-bit mode, or a 32-bit code segment of 4 GiB at 0 */
	bool watch;		   /* DR7 arms data or I/O breakpoints, or instruction ones: slow paths */
	uint64_t attention;	   /* 1: an interrupt may be deliverable, look at the local APIC when IF allows; else 0 */
	bool stepping;		   /* the current instruction began with TF: #DB after it (cleared by INT n, deliveries) */
	bool delivering;	   /* inside exception_deliver() of something external or a fault: error codes get EXT */
	bool restart;		   /* engine_restart_insn() */
	bool align_check;	   /* CR0.AM, AC, CPL 3 */
	bool split_held;	   /* shared->split_lock is ours; a fault gives it back */
	uint64_t block_key;	   /* mode, privilege, TLB generation: validates jump cache entries */
	uint64_t generation;
	uint64_t large_code;	   /* code was fetched from a large page in this GiB (hashed by gva bits 35:30) since `generation` */
	const struct insn *run_first; /* first instruction of the run that is not yet in `retired` */
	/* What deliver() is delivering: survives the longjmp of a fault inside. */
	uint8_t deliver_vector, deliver_how, deliver_depth;
	bool deliver_has_error;
	bool disarmed;		   /* deliver() has taken fault_jump for itself */
	uint32_t deliver_error;
	uint64_t retired;	   /* instructions, since create */
	uint64_t retire_limit;
	bool leave_block;	   /* set by a handler: decoded code or the mode may have changed, look up again */
	sigjmp_buf fault_jump;	   /* engine_raise() lands here */
	uint8_t fault_vector;
	bool fault_has_error;
	uint32_t fault_error;
	uint64_t fault_address;    /* #PF */
	uint64_t page_fault_rip;   /* of the last one that was delivered */
	struct {
		uint8_t vector, cpl;
		bool has_error;
		uint16_t cs;
		uint32_t error;
		uint64_t rip, cr2;
	} first_fault;		   /* for the crash report: the first of the exceptions that became a triple fault */
};

/* Bits 63:48 repeat bit 47 (SDM vol. 1, 3.3.7.1). */
static inline bool is_canonical(uint64_t gva)
{
	return (uint64_t)((int64_t)(gva << 16) >> 16) == gva;
}

/* --- exec.c --- */
/* Raises a fault at the current instruction. Does not return. */
void engine_raise(struct engine *e, uint8_t vector) __attribute__((noreturn));
void engine_raise_error(struct engine *e, uint8_t vector, uint32_t error) __attribute__((noreturn));
void engine_raise_page(struct engine *e, uint64_t gva, uint32_t error) __attribute__((noreturn));
/* Recomputes mode, cpl, stack32, flat, watch and the TLB in use from cpu state; sets leave_block. */
void engine_update_mode(struct engine *e);
/* Bytes [offset, offset + size) of the memfd will be written: drops decoded blocks of their page if they hold code. */
void engine_invalidate_range(struct engine *e, uint64_t offset, unsigned size);
/* True if the memfd page holds decoded code of some vcpu. */
bool engine_page_has_code(struct engine *e, uint64_t page);
/* Translations changed: forget what was derived from virtual addresses, all or those of one page. */
void engine_forget_translations(struct engine *e);
void engine_forget_nonglobal(struct engine *e);
/* Blocks were dropped: what leads to them by virtual address is forgotten. */
void engine_forget_blocks(struct engine *e);
void engine_forget_page(struct engine *e, uint64_t gva);
/* RAM page (number in the memfd) was or will be written: drops decoded blocks on it. */
void engine_invalidate_page(struct engine *e, uint64_t page);
void engine_invalidate_all(struct engine *e);
/* Something that interrupts the guest may be pending. */
static inline bool engine_events_pending(const struct engine *e)
{
	return atomic_load_explicit(&e->block->events, memory_order_relaxed) != 0;
}
/* Retires nothing and runs the current instruction again (an interrupted REP): RIP back to insn_rip, leaves by longjmp. */
void engine_restart_insn(struct engine *e) __attribute__((noreturn));

/* --- decode.c --- */
/* Takes e->decode; -ENOMEM. destroy copes with what create did not do. */
int decode_create(struct engine *e);
void decode_destroy(struct engine *e);
/* insn.native is good no more. */
void decode_forget(struct engine *e);
/* Decodes at most 15 bytes. Returns the length; 0: too few bytes (need another page); illegal encodings give an insn that raises #UD. */
unsigned decode_insn(struct engine *e, enum engine_mode mode, const uint8_t *bytes, unsigned size, struct insn *out);

/* Each file that owns instructions answers with the handler for a decoded one, or NULL. Specialise freely by size and operands. */
struct decoded; /* decode.h: the Zydis view that the tables below may look at */
insn_fn integer_handler(const struct insn *i, const struct decoded *d);
insn_fn branch_handler(const struct insn *i, const struct decoded *d);
insn_fn string_handler(const struct insn *i, const struct decoded *d);
insn_fn segment_handler(const struct insn *i, const struct decoded *d);
insn_fn system_handler(const struct insn *i, const struct decoded *d);
/* Last in the row: everything that the CPU model offers and nobody else handles; fills in i->native. NULL: #UD. */
insn_fn native_handler(struct engine *e, struct insn *i, const struct decoded *d, const uint8_t *bytes);
/* Takes e->native; -ENOMEM. destroy copes with what create did not do. */
int native_create(struct engine *e);
void native_destroy(struct engine *e);
/* Before the engine returns to code that does floating point. */
void native_leave(struct engine *e);
void op_undefined(struct engine *e, const struct insn *i); /* #UD */

/* --- access.c, mmu.c: memory by segment:offset and by linear address --- */
/* The offset of the memory operand, wrapped to the address size. */
static inline uint64_t insn_offset(const struct engine *e, const struct insn *i)
{
	uint64_t ea = e->cpu->gpr[i->base] + (e->cpu->gpr[i->index] << i->scale) + (uint64_t)i->disp;

	return i->addrsize == 8 ? ea : i->addrsize == 4 ? (uint32_t)ea : (uint16_t)ea;
}
/* Checks segment (limit, type, canonical: #GP or #SS) and returns the linear address. access: ACCESS_READ/WRITE. */
uint64_t segment_linear(struct engine *e, unsigned seg, uint64_t offset, unsigned size, unsigned access);
/* Loads and stores with all faults; size 1, 2, 4, 8; crossing pages and MMIO included. */
uint64_t linear_read(struct engine *e, uint64_t gva, unsigned size, unsigned access);
void linear_write(struct engine *e, uint64_t gva, unsigned size, uint64_t value, unsigned access);
/* Any size: all pages are checked before the first byte moves. */
void linear_read_bytes(struct engine *e, uint64_t gva, void *dst, unsigned size, unsigned access);
void linear_write_bytes(struct engine *e, uint64_t gva, const void *src, unsigned size, unsigned access);
/*
 * For read-modify-write: the hva of [gva, gva+size) if it is writable RAM in one page (decoded code of the page is
 * dropped first), NULL if not (crosses a page, MMIO): then read, compute, write, under shared->split_lock if LOCK.
 * Faults as a write.
 */
void *linear_rmw(struct engine *e, uint64_t gva, unsigned size);
/* The longest run of bytes at gva (up to max, within the page) that is plain RAM, for string instructions: hva, or NULL. */
uint8_t *linear_span(struct engine *e, uint64_t gva, unsigned access, unsigned max, unsigned *span);
/* Data breakpoints: called by slow paths. Matches become a #DB trap after the instruction. */
void watch_check(struct engine *e, uint64_t gva, unsigned size, bool is_write);

/*
 * Resolves [gva, gva+size), within one page, for an access as seen by `array`: the hva if it is RAM that may be touched
 * directly (for a write decoded code has been dropped), else NULL and *gpa. Faults.
 */
uint8_t *mmu_resolve(struct engine *e, uint64_t gva, unsigned size, unsigned access, enum tlb_array array, uint64_t *gpa);
/* The array that an access belongs to. */
enum tlb_array mmu_array(const struct engine *e, unsigned access);
/* Translates for a debugger or a system access without faulting; ~0 if not mapped. */
uint64_t mmu_translate(struct engine *e, uint64_t gva);
/* Instruction fetch: the gpa of the code page at gva (faults as a fetch). hva NULL when it is not RAM. */
uint64_t mmu_fetch_page(struct engine *e, uint64_t gva, const uint8_t **hva);
/* The code page at gva is known to be global, so that a CR3 write does not change it. */
bool mmu_is_global_code(struct engine *e, uint64_t gva);
/* The table of 4-KiB pages that was walked to last: its 2 MiB of addresses, its gpa. To begin with the region is ~0. */
struct mmu_near {
	uint64_t region, table;
};
/*
 * The number of the memfd page that user code at gva is fetched from, if the tables permit it and have all A bits set; else ~0.
 * What is near stays as it was while tables don't change.
 */
uint64_t mmu_user_code(struct engine *e, uint64_t gva, struct mmu_near *near);
void mmu_flush_all(struct engine *e);	     /* global pages too */
void mmu_flush_nonglobal(struct engine *e);  /* of the current PCID */
void mmu_flush_page(struct engine *e, uint64_t gva);
/* CR3 was written; keep: what is known of its PCID may stay. */
void mmu_set_root(struct engine *e, bool keep);
/* INVPCID of another PCID than the one that runs. */
void mmu_flush_other_pcid(struct engine *e);
/* A page gets decoded code: writes to it must take the slow path from now on. */
void mmu_protect_code(struct engine *e, uint64_t page);
/* memfd offset of a gpa that is RAM or ROM, ~0 otherwise. */
uint64_t ram_offset(const struct engine *e, uint64_t gpa, bool *readonly);
/* Physical access, no translation: RAM, LAPIC page or the VMM. */
uint64_t physical_read(struct engine *e, uint64_t gpa, unsigned size);
void physical_write(struct engine *e, uint64_t gpa, unsigned size, uint64_t value);

/* Stack: width by SS.B or 64-bit mode; size is that of the element. push checks before it moves RSP. */
void stack_push(struct engine *e, unsigned size, uint64_t value);
uint64_t stack_pop(struct engine *e, unsigned size);

/* --- exception.c --- */
/* Delivers a vector now; software: INT n/INT3/INTO (DPL checked, RIP after). May raise: exec.c turns it into #DF, shutdown. */
enum delivery { DELIVER_FAULT, DELIVER_INTERRUPT, DELIVER_SOFTWARE, DELIVER_ICEBP };
void exception_deliver(struct engine *e, uint8_t vector, enum delivery how, bool has_error, uint32_t error);

/* --- system.c --- */
void system_set_cr0(struct engine *e, uint64_t value);
void system_set_cr3(struct engine *e, uint64_t value);
void system_set_cr4(struct engine *e, uint64_t value);

/* --- segment.c --- */
/* MOV/POP/Lxs to a segment register in the current mode, with all checks. */
void segment_load(struct engine *e, unsigned seg, uint16_t selector);

/* --- lapic.c (engine thread only) --- */
void lapic_reset(struct engine *e);
uint32_t lapic_read(struct engine *e, uint32_t offset);		    /* xAPIC register offset 0..0xff0 */
void lapic_write(struct engine *e, uint32_t offset, uint32_t value);
/* x2APIC and APIC MSRs: false → #GP. */
bool lapic_msr_read(struct engine *e, uint32_t msr, uint64_t *value);
bool lapic_msr_write(struct engine *e, uint32_t msr, uint64_t value);
bool lapic_set_base(struct engine *e, uint64_t value);		    /* IA32_APIC_BASE */
uint64_t lapic_get_tpr(struct engine *e);			    /* CR8 */
void lapic_set_tpr(struct engine *e, uint64_t cr8);
/* Merges posted vectors and an expired timer; takes what block->events says except NMI, INIT, SIPI, EXIT, INVALIDATE. */
void lapic_poll(struct engine *e, uint32_t events);
/* The highest vector that the priorities let through, or −1. */
int lapic_pending(struct engine *e);
/* Accepts it: IRR → ISR. */
void lapic_accept(struct engine *e, uint8_t vector);
/* True if the PIC's INTR is asserted and LINT0 lets it through; the vector comes by VCPU_EXIT_INTACK. */
bool lapic_extint_pending(struct engine *e);
/* CLOCK_MONOTONIC ns of the next timer event, 0 none. */
uint64_t lapic_next_deadline(struct engine *e);

/* --- native.c: SIGSEGV, SIGBUS, SIGFPE, SIGILL or SIGTRAP inside one of its thunks; false: not its own. Signal handler. --- */
bool native_signal(struct engine *e, int sig, void *siginfo, void *ucontext);

uint64_t engine_guest_tsc(struct engine *e);

/* pvclock.c: writes the guest's structure again, if it has one: after a change of the TSC, and when a run begins. */
void pvclock_update(struct engine *e);
/* MSR_PV_WALL_CLOCK has been written. */
void pvclock_write_wall(struct engine *e);

#endif
