/* The software backend's own structures. */
#ifndef SOFT_VM_H
#define SOFT_VM_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "vmm/bus.h"
#include "vmm/soft.h"

struct event_loop;
struct event_source;
struct soft_vcpu;

struct soft_vm {
	/* Set at create. */
	struct guest_mem *mem;
	struct event_loop *loop;
	char *program;
	int shared_fd;
	struct vm_shared *shared;
	uint64_t shared_size;

	/* Set before the vcpus run; read by any thread. */
	struct soft_vcpu *_Atomic vcpus[VCPU_MAX];
	_Atomic unsigned vcpu_count; /* highest index + 1 */

	/* Under lock. */
	pthread_mutex_t lock; /* innermost: nothing is called with it held */
	int notify_fds[NOTIFY_MAX];
	unsigned notify_count;
	struct bus_answer answers[ANSWER_MAX]; /* as published; the guest's side of it is not trusted */
	unsigned answer_count;
	uint32_t answer_sequence[ANSWER_MAX];
	struct ram_layout layout; /* the machine's, for vcpu threads, which do not hold the device lock */
	unsigned next_lowest; /* round robin of lowest-priority delivery */
};

struct soft_vcpu {
	/* Set at create. */
	struct soft_vm *vm;
	unsigned index;
	struct vcpu_block *block;
	int block_fd;
	pid_t pid;
	int pidfd;
	struct event_source *source;
	unsigned spin;

	_Atomic bool layout_stale; /* the block has another layout than the machine */

	/* Vcpu thread. */
	bool running;	       /* the turn is the engine's, or was: its exit has not been taken yet */
	uint64_t spurious;

	/* Under death_lock; gone is also read without. */
	pthread_mutex_t death_lock;
	_Atomic bool gone;  /* the process is dead and reaped */
	_Atomic bool killed_turn; /* … and it was its turn: there is no exit to take */
	char obituary[256];
};

/* route.c: posting and waking. */
void soft_post_event(struct soft_vcpu *v, uint32_t bits);
void soft_mem_written(void *ctx, uint64_t gpa, uint64_t length);
void soft_layout_changed(void *ctx);

/* process.c: the life of a vcpu process. */
int soft_process_start(struct soft_vcpu *v, struct error *err);
/* Reaps it if it is dead, writes the obituary and wakes who waits. Any thread. */
void soft_process_check(struct soft_vcpu *v);
void soft_process_kill(struct soft_vcpu *v);

#endif
