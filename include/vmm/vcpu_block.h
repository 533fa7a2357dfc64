/*
 * What a software vcpu's process and the VMM share, and nothing else but guest RAM: the vcpu block (one per vcpu)
 * and vm_shared (one per machine). Offsets and indices only, no pointers. Both are memfds.
 *
 * Hand-over: `turn` says whose the block is. The VMM fills in `reply`, sets TURN_ENGINE and wakes the futex; the
 * engine runs the guest, fills in `exit`, sets TURN_VMM and wakes. Everything not marked "any time" belongs to
 * the side whose turn it is. The engine trusts the VMM; the VMM checks everything that it reads here.
 *
 * File descriptors of a vcpu process: 3 RAM, 4 vcpu block, 5 vm_shared, 6.. notify eventfds in slot order.
 */
#ifndef VMM_VCPU_BLOCK_H
#define VMM_VCPU_BLOCK_H

#include <stdatomic.h>
#include <stdint.h>

#include "vmm/cpu.h"
#include "vmm/cpu_layout.h"
#include "vmm/cpu_lapic.h"
#include "vmm/cpu_stats.h"

#define VCPU_FD_RAM 3
#define VCPU_FD_BLOCK 4
#define VCPU_FD_SHARED 5
#define VCPU_FD_NOTIFY 6

#define VCPU_BLOCK_MAGIC 0x766d6d31u
#define VCPU_MAX 64
#define NOTIFY_MAX 64
#define POSTED_RING_SIZE 256
#define INVALIDATE_RING_SIZE 256
#define CODE_NEWS_SIZE 512

enum vcpu_turn { TURN_VMM, TURN_ENGINE };
/* Or'ed into turn by the side that waits and has gone to sleep on the futex: the giver must wake it. */
#define TURN_SLEEPER 0x100u

/* Why the engine came back. */
enum vcpu_exit_kind {
	VCPU_EXIT_NONE,	     /* vcpu_block.limit instructions have been executed */
	VCPU_EXIT_PIO,	     /* reply.data answers a read */
	VCPU_EXIT_MMIO,	     /* likewise */
	VCPU_EXIT_INTACK,    /* ExtINT accepted: reply.data is the PIC's vector */
	VCPU_EXIT_EOI,	     /* EOI of a vector in vm_shared.eoi_exit; exit.data is the vector */
	VCPU_EXIT_IPI,	     /* exit.addr = destination (32-bit), exit.data = ICR low word: for other vcpus */
	VCPU_EXIT_KICKED,    /* VCPU_EVENT_EXIT was posted */
	VCPU_EXIT_SHUTDOWN,  /* triple fault; exit.text says the first cause */
	VCPU_EXIT_ERROR,     /* the engine's own failure; exit.text */
	VCPU_EXIT_DIED,	     /* never from the engine: the VMM found the process dead; exit.text */
	VCPU_EXIT_DEBUG,     /* never from the engine: a step or breakpoint of set_debug(); addr: gva of the instruction, data: DR6 */
	VCPU_EXIT_KINDS
};

struct vcpu_exit {
	uint32_t kind; /* enum vcpu_exit_kind */
	uint8_t is_write;
	uint8_t size; /* 1, 2, 4, 8 */
	uint16_t reserved;
	uint64_t addr; /* port or gpa */
	uint64_t data; /* written value */
	char text[512];
};

/* Bits of vcpu_block.events, set by anyone at any time, cleared by the engine. */
#define VCPU_EVENT_IRR (1u << 0)	/* posted_irr has bits */
#define VCPU_EVENT_EXTINT (1u << 1)	/* extint_level changed */
#define VCPU_EVENT_NMI (1u << 2)
#define VCPU_EVENT_INIT (1u << 3)
#define VCPU_EVENT_SIPI (1u << 4)	/* sipi_vector */
#define VCPU_EVENT_EXIT (1u << 5)	/* come back with VCPU_EXIT_KICKED */
#define VCPU_EVENT_INVALIDATE (1u << 6) /* invalidate ring has entries: RAM was written under decoded code */
#define VCPU_EVENT_LAYOUT (1u << 8)	/* `ram` is another than before */
#define VCPU_EVENT_TIMER (1u << 7)	/* set inside the vcpu process by its timer signal */
#define VCPU_EVENT_SAMPLE (1u << 9)	/* likewise: translated code is hot */

/*
 * A posted write: needs no answer, delivered in order before any other exit of this vcpu, and soon: the engine wakes
 * the VMM (TURN_SLEEPER) for the first one in an empty ring, but goes on with the guest.
 */
struct posted_write {
	uint32_t space; /* enum bus_space */
	uint32_t size;
	uint64_t addr, data;
};

struct vcpu_block {
	/* Set at create by the VMM. */
	uint32_t magic, index;
	struct cpu_model model;
	struct ram_layout ram; /* later changed only in the VMM's turn, with VCPU_EVENT_LAYOUT */
	uint32_t engine; /* enum vcpu_engine */
	uint32_t shadow; /* enum vcpu_shadow */
	uint32_t trace;	 /* bits of --trace the engine honours */

	/* The hand-over (any time, futex). */
	_Atomic uint32_t turn;
	/*
	 * The host CPU on which either side ran when it last had the turn: hints. Who waits spins a little before it sleeps, as an
	 * answer comes sooner than a wake-up; but not on the very CPU that the other side needs in order to answer.
	 */
	_Atomic uint32_t vmm_cpu, engine_cpu;

	/* By turn. */
	struct vcpu_exit exit;
	struct {
		uint64_t data;
	} reply;
	uint64_t limit; /* VCPU_EXIT_NONE after so many instructions; 0: none */
	uint32_t leave_idle; /* with a limit: also instead of sleeping in HLT */
	uint32_t reserved2;
	struct cpu_state cpu;
	struct lapic_state lapic; /* LDR/DFR/ID are read by the VMM at any time to route messages */

	/* Posted to the vcpu (any time, any thread of the VMM). Wake `events` as a futex if `sleeping`. */
	_Atomic uint32_t events;
	_Atomic uint32_t sleeping;
	_Atomic uint64_t posted_irr[4];	  /* edge and level vectors to merge into IRR */
	_Atomic uint64_t posted_tmr[4];	  /* set with posted_irr for level-triggered ones */
	_Atomic uint32_t extint_level;
	_Atomic uint32_t sipi_vector;
	_Atomic uint32_t invalidate_head; /* written by the VMM, under a lock of its own */
	_Atomic uint32_t invalidate_tail; /* written by the engine; a full ring is invalidate_all */
	_Atomic uint32_t invalidate_all;
	_Atomic uint64_t invalidate_page[INVALIDATE_RING_SIZE]; /* memfd page numbers */

	/* Posted by the vcpu: head by the engine, tail by the VMM. A full ring makes the engine exit instead. */
	_Atomic uint32_t posted_head, posted_tail;
	struct posted_write posted[POSTED_RING_SIZE];

	/* Counters: written by the engine, read by the VMM for --stats (any time, may be torn between counters). */
	struct engine_stats stats;
};

/* SLOTS: the interpreter, but its loads and stores go through the shadow that translated code uses; for debugging that one.
 * LOCKSTEP: the translator, each block compared with the interpreter. */
enum vcpu_engine { VCPU_ENGINE_INTERP, VCPU_ENGINE_TRANSLATE, VCPU_ENGINE_SLOTS, VCPU_ENGINE_LOCKSTEP };

/* What a flush of translations drops of the translator's shadow (docs/shadow.md): what has changed, or all. */
enum vcpu_shadow { VCPU_SHADOW_UNSYNC, VCPU_SHADOW_VTLB };

/* A doorbell: a write of `size` bytes at gpa is answered by 1 written to the eventfd in the same slot. */
struct notify_slot {
	_Atomic uint64_t gpa; /* 0: unused */
	uint32_t size;	      /* 0: any */
	uint32_t reserved;
};

/*
 * A register that the engine answers by itself (struct bus_answer). Written by the VMM at any time, read by engines: a
 * sequence lock, odd while it changes. The one part of vm_shared that a VMM writes and never reads back.
 */
struct answer_slot {
	_Atomic uint32_t sequence;
	_Atomic uint32_t space_sizes; /* space << 8 | sizes; sizes 0: unused */
	_Atomic uint64_t addr, start_ns, base;
	_Atomic uint64_t ratio; /* num << 32 | den */
	_Atomic uint64_t shift;
};
#define ANSWER_MAX 8

struct vm_shared {
	uint32_t magic, cpu_count;
	struct answer_slot answers[ANSWER_MAX];
	struct notify_slot notify[NOTIFY_MAX]; /* written by the VMM at any time */
	_Atomic uint64_t posted_pio[65536 / 64]; /* bit per port 0..65535: writes may be posted */
	_Atomic uint64_t eoi_exit[4]; /* vectors whose EOI the IOAPIC must hear */
	_Atomic uint32_t split_lock;  /* taken for locked accesses that no host instruction can do */
	uint32_t reserved;
	/*
	 * News about code pages between engines, in order: page << 1 | (1: written, drop its blocks; 0: has code now, stop
	 * writing to it directly). Appended under code_lock.
	 */
	_Atomic uint32_t code_lock, code_head;
	_Atomic uint64_t code_news[CODE_NEWS_SIZE];
	/* One bit per page of the RAM memfd: some vcpu holds decoded code of it. Set and cleared by engines, read by the VMM. */
	_Atomic uint64_t code_pages[]; /* file_size / 4096 bits */
};

#endif
