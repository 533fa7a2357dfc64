/*
 * A vcpu as the machine sees it: a thread that enters the guest, comes back with an exit, serves it and enters
 * again, whatever backend does the running.
 */
#ifndef VMM_VCPU_H
#define VMM_VCPU_H

#include <stdbool.h>
#include <stdint.h>

#include "vmm/cpu.h"
#include "vmm/vcpu_block.h"

struct bus;
struct error;
struct vcpu;

/* What stops the guest for a debugger, with VCPU_EXIT_DEBUG. */
struct vcpu_debug {
	bool step;	       /* after one instruction */
	bool soft_breakpoints; /* at INT3 */
	unsigned count;	       /* of points in use */
	struct {
		uint64_t gva;
		uint8_t kind; /* 0 execute, 1 write, 3 read or write */
		uint8_t size; /* 1, 2, 4, 8; 1 to execute */
	} points[4];
};

/* What a backend does for one vcpu. `self` is the backend's own per-vcpu object. */
struct vcpu_backend {
	const char *name;
	/* Runs the guest until an exit. The answer to the previous exit is in *exit: data of a read, vector of INTACK.
	 * 0, or -errno when the backend itself failed (exit->text says why). Vcpu thread. */
	int (*run)(void *self, struct vcpu_exit *exit);
	/* Makes run() come back soon with VCPU_EXIT_KICKED. Any thread. */
	void (*kick)(void *self);
	/* Architectural state; only while run() is not running. */
	void (*get_state)(void *self, struct cpu_state *state);
	void (*set_state)(void *self, const struct cpu_state *state);
	void (*destroy)(void *self);
	/* Ends the guest's execution by force: run() comes back soon with VCPU_EXIT_DIED. For a backend that does not answer
	 * a kick; NULL if that cannot be. Any thread. */
	void (*abandon)(void *self);
	/* Sets what stops the guest for a debugger; all zero: nothing. Only while run() is not running. 0 or -errno; NULL: cannot. */
	int (*set_debug)(void *self, const struct vcpu_debug *debug);
	/* The local APIC that belongs to the state; only while run() is not running. */
	void (*get_lapic)(void *self, struct lapic_state *lapic);
	void (*set_lapic)(void *self, const struct lapic_state *lapic);
	/* From the next run() on: VCPU_EXIT_NONE once so many instructions have been executed; 0: no limit. leave_idle: also where
	 * the vcpu would sleep. NULL: cannot. */
	void (*set_limit)(void *self, uint64_t instructions, bool leave_idle);
};

/* What the run loop needs of the machine. Called on the vcpu's thread, device lock not held. */
struct vcpu_host {
	struct bus *bus;
	int (*intack)(void *ctx);		/* PIC vector */
	void (*eoi)(void *ctx, uint8_t vector); /* EOI of a level-triggered vector */
	void (*ipi)(void *ctx, unsigned from, uint32_t dest, uint32_t icr_low);
	/* The guest crashed (kind VCPU_EXIT_SHUTDOWN) or the vcpu cannot go on: stop the machine. */
	void (*stopped)(void *ctx, unsigned index, const struct vcpu_exit *exit, const struct cpu_state *state);
	void *ctx;
};

/* Takes the backend's object; vcpu_destroy() destroys it. */
int vcpu_create(unsigned index, const struct vcpu_backend *ops, void *self, const struct vcpu_host *host, struct vcpu **vcpu,
	struct error *err);
/* Keeps the thread on one of the host's processors. -EINVAL: we may not run there. Before it is started. */
int vcpu_pin(struct vcpu *vcpu, unsigned host_cpu, struct error *err);
/* Starts the thread; the guest runs. */
int vcpu_start(struct vcpu *vcpu, struct error *err);
/* Asks the thread to stop, without waiting: from a device, whose access was the guest's last. vcpu_stop() follows. Any thread. */
void vcpu_request_stop(struct vcpu *vcpu);
/* Asks the thread to stop at the next exit, kicks it, and waits for it. May be started again. A backend that does not
 * answer for some seconds is abandoned. Not on the vcpu's thread. */
void vcpu_stop(struct vcpu *vcpu);
void vcpu_destroy(struct vcpu *vcpu);
void vcpu_get_state(struct vcpu *vcpu, struct cpu_state *state);
void vcpu_set_state(struct vcpu *vcpu, const struct cpu_state *state);
/* Exits so far by enum vcpu_exit_kind, VCPU_EXIT_KINDS entries. */
const uint64_t *vcpu_exit_counts(const struct vcpu *vcpu);

#endif
