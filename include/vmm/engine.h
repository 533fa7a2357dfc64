/*
 * The engine: the software CPU. A plain library over a vcpu block and RAM; engine_main() is the program of a vcpu
 * process. Makes no allocation while the guest runs.
 */
#ifndef VMM_ENGINE_H
#define VMM_ENGINE_H

#include "vmm/vcpu_block.h"

struct engine;

/* How an engine reaches what is outside of its vcpu; called on the engine's thread. */
struct engine_env {
	/* PIO (space 0) or MMIO (space 1): the return value answers a read. */
	uint64_t (*access)(void *ctx, unsigned space, uint64_t addr, unsigned size, bool is_write, uint64_t value);
	/* Any other exit (INTACK, EOI, IPI, KICKED): fills in block->exit before; returns block->reply.data. */
	uint64_t (*exit)(void *ctx, enum vcpu_exit_kind kind);
	/* HLT: sleeps until block->events is nonzero or the deadline (CLOCK_MONOTONIC ns, 0: none) has passed. */
	void (*wait)(void *ctx, uint64_t deadline_ns);
	/* The next APIC timer deadline changed: set VCPU_EVENT_TIMER at that time. 0: none. */
	void (*set_timer)(void *ctx, uint64_t deadline_ns);
	void *ctx;
	int ram_fd; /* the memfd behind ram, for the shadow (docs/shadow.md); −1: none */
};

/* ram is the hva of the whole RAM memfd. All memory is taken here. 0 or -ENOMEM. */
int engine_create(struct vcpu_block *block, struct vm_shared *shared, uint8_t *ram, const struct engine_env *env,
	struct engine **engine);
void engine_destroy(struct engine *engine);

/*
 * Runs guest instructions until VCPU_EVENT_EXIT, shutdown or (max_instructions != 0) that many instructions.
 * Returns VCPU_EXIT_KICKED, VCPU_EXIT_SHUTDOWN, VCPU_EXIT_ERROR (block->exit.text set) or VCPU_EXIT_NONE (count used up).
 */
enum vcpu_exit_kind engine_run(struct engine *engine, uint64_t max_instructions);

/* block->cpu, lapic or RAM were changed from outside: drop everything derived (TLB, decoded code, modes). */
void engine_state_changed(struct engine *engine);

/* The program of a vcpu process (`vmm --vcpu-process`): never returns to the caller's other work; exit status. */
int engine_main(int argc, char **argv);

#endif
