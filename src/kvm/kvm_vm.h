/* The KVM backend's own structures. */
#ifndef KVM_VM_H
#define KVM_VM_H

#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>
#include <time.h>

#include "vmm/bus.h"
#include "vmm/cpu_lapic.h"
#include "vmm/kvm.h"

#define KVM_NOTIFY_MAX 256
#define KVM_MSR_MAX 64
#define KVM_POSTED_MAX 8
#define KVM_MEMSLOTS (2 * RAM_RANGE_MAX)

struct kvm_vcpu;

/* A list of MSRs with its space; the structure itself ends in an array without size. */
union msr_space {
	struct kvm_msrs head;
	uint8_t space[sizeof(struct kvm_msrs) + KVM_MSR_MAX * sizeof(struct kvm_msr_entry)];
};

struct kvm_notify {
	int eventfd;
	uint64_t gpa; /* 0: not registered */
};

struct kvm_vm {
	/* Set at create. */
	struct kvm_config config;
	int kvm_fd, vm_fd;
	size_t run_size;
	bool partial; /* kvm_pvm: see partial.c */
	bool shadows; /* KVM's own shadow paging */
	bool has_sregs2, has_xsave2, has_tsc_offset, has_readonly, has_triple_fault, has_payload;
	uint32_t xsave_size;	/* of KVM_GET_XSAVE2 */
	uint32_t lapic_tick_ns; /* KVM's own, or what it was set to */
	uint64_t tsc_khz;
	struct kvm_cpuid2 *supported; /* KVM_GET_SUPPORTED_CPUID */
	struct cpu_model model;	      /* by kvm_fit_model() */
	unsigned coalesced_page;      /* of the run area, 0: none */
	uint16_t posted[KVM_POSTED_MAX]; /* ports that wait for the first vcpu */
	unsigned posted_count;
	void (*next_layout_changed)(void *ctx); /* who was told of layout changes before us */
	void *next_layout_ctx;

	/* Set before the vcpus run; read by any thread. */
	struct kvm_vcpu *_Atomic vcpus[VCPU_MAX];
	_Atomic unsigned vcpu_count; /* highest index + 1 */
	_Atomic bool extint;	     /* the PIC's INTR */

	/* move.c, with several vcpus: held for reading around KVM_RUN, for writing while a state is in transit. */
	pthread_mutex_t move_lock;
	pthread_rwlock_t run_lock;
	_Atomic bool moving; /* somebody wants it for writing */

	/* Vcpus stopped. */
	struct ram_range slots[KVM_MEMSLOTS]; /* as KVM knows them */

	/* Dirty log: device lock, but for gathered, which is under lock. */
	bool logging;
	uint32_t ring_bytes; /* of each vcpu; 0: by bitmap. Set at create */
	uint64_t *gathered;  /* pages taken out of rings; scratch space of the bitmap way */

	/* Under lock. */
	pthread_mutex_t lock; /* innermost: only ioctls and helper_deliver() are called with it held */
	struct kvm_notify notify[KVM_NOTIFY_MAX];
	unsigned notify_count;
};

/* What the exit that run() returned waits for, to be given back at the next run(). */
enum kvm_expect { EXPECT_NOTHING, EXPECT_PIO, EXPECT_MMIO, EXPECT_INTACK };

struct kvm_vcpu {
	/* Set at create. */
	struct kvm_vm *vm;
	unsigned index;
	int fd;
	struct kvm_run *run;
	struct kvm_dirty_gfn *ring; /* NULL: none; ring_next under the VM's lock */
	uint32_t ring_next;
	struct cpu_model model;
	const struct vcpu_backend *helper_ops; /* NULL: none yet */
	void *helper;

	/* Any thread. */
	_Atomic bool kicked;
	_Atomic bool away;	 /* the state is with the helper */
	_Atomic bool takes_messages; /* … and interrupt messages go there, too */
	_Atomic bool has_thread; /* thread is valid */
	pthread_t thread;

	/* Vcpu thread. */
	enum kvm_expect expect;
	unsigned element, elements; /* of a string or odd-sized access that is served in parts */
	int extint_vector;	    /* given to KVM and perhaps not delivered yet; −1 none */
	bool unsuited;		    /* the state last set is nothing for a partial KVM */
	bool failed;		    /* failure[] says what */
	char failure[256];
	uint64_t move_countdown, move_at, random; /* move.c: the next point, in exits or in CLOCK_MONOTONIC */
	bool has_move_timer;
	timer_t move_timer;
	bool held;		    /* an exit has been taken from KVM and not been returned: coalesced writes come first */
	struct lapic_state helper_lapic; /* as the helper got it */
	struct lapic_state settled; /* move.c: as it was when the vcpu was found settled */
	bool is_settled;
	uint64_t helper_pv_time;
	bool lapic_moved;	    /* a move or a stint, not an assist */
	bool in_run_lock;	    /* move.c */
	bool keeps_others_out;	    /* … from the move's beginning to its end */
	struct kvm_stats stats;
	bool has_timer, has_stats; /* partial.c */
	timer_t timer;
	int stats_fd;
	off_t stats_offset;
	uint64_t stint;	      /* instructions of the next one */
	uint64_t interpreted; /* instructions, when it was last looked at */
};

/* vm.c */
int kvm_memory_set_slot(struct kvm_vm *vm, unsigned slot, const struct ram_range *range);
int kvm_memory_changed(struct kvm_vm *vm, struct error *err);
/* Makes KVM forget what it has derived from guest memory: page tables have been written behind its back. No vcpu in KVM_RUN. */
int kvm_memory_renew(struct kvm_vm *vm);
/* One MSR of a vcpu, or of the system if fd is /dev/kvm's: KVM_GET_MSRS or KVM_SET_MSRS. False: KVM refuses. */
bool kvm_msr(int fd, unsigned long request, uint32_t index, uint64_t *value);
int kvm_ioctl(int fd, unsigned long request, unsigned long argument);
#define kvm_ioctl_ptr(fd, request, pointer) kvm_ioctl((fd), (request), (unsigned long)(uintptr_t)(pointer))

/* Gives KVM the ports of kvm_set_posted_pio() that have waited for a vcpu. */
void kvm_register_posted(struct kvm_vm *vm);

/* host.c: the capabilities that are needed and that this VM's KVM has not, by name. */
void kvm_host_missing(int vm, char *text, size_t size);

/* vcpu.c: makes the thread look at what has changed. Any thread. */
void kvm_poke(struct kvm_vcpu *v);

/* dirty.c */
void kvm_dirty_setup(struct kvm_vm *vm);
void kvm_dirty_offer(struct kvm_vm *vm);
int kvm_dirty_map_ring(struct kvm_vcpu *v);
void kvm_dirty_unmap_ring(struct kvm_vcpu *v);
void kvm_dirty_take_rings(struct kvm_vm *vm);

/* cpuid.c */
int kvm_set_cpuid(struct kvm_vcpu *v, struct error *err);

/* state.c: the canonical state to and from KVM. Not while KVM_RUN runs, no access half done. 0 or -errno, failure[] set. */
int kvm_state_get(struct kvm_vcpu *v, struct cpu_state *state);
int kvm_state_set(struct kvm_vcpu *v, const struct cpu_state *state);
int kvm_fail(struct kvm_vcpu *v, const char *what);

/* lapic.c */
int kvm_lapic_get(struct kvm_vcpu *v, struct lapic_state *lapic);
int kvm_lapic_set(struct kvm_vcpu *v, const struct lapic_state *lapic);

/* partial.c: nothing happens with a KVM that is whole. Vcpu thread, but for stop. */
bool kvm_partial_suits(const struct kvm_vcpu *v, const struct cpu_state *state);
void kvm_partial_mend(const struct kvm_vcpu *v, struct cpu_state *state);
void kvm_partial_start(struct kvm_vcpu *v);
void kvm_partial_stop(struct kvm_vcpu *v);
/* KVM has mostly interpreted since the last call. */
bool kvm_partial_is_slow(struct kvm_vcpu *v);

/* move.c: nothing happens without config.move_every. Vcpu thread, but for stop. */
enum kvm_move { MOVE_NONE, MOVE_BEGUN, MOVE_EXIT /* KVM_RUN has come back with an exit */ };
enum kvm_move kvm_move_try(struct kvm_vcpu *v);
void kvm_move_start(struct kvm_vcpu *v);
void kvm_move_stop(struct kvm_vcpu *v);
/* Around KVM_RUN, and around what may not meet another vcpu in it. */
void kvm_run_begin(struct kvm_vcpu *v);
void kvm_run_end(struct kvm_vcpu *v);
void kvm_transit_begin(struct kvm_vcpu *v);
void kvm_transit_end(struct kvm_vcpu *v);

/* assist.c: the helper. */
/* Sees to it that there is a helper. 0 or -errno. */
int kvm_assist_prepare(struct kvm_vcpu *v);
/* Hands the state over; run() then runs the helper until its limit. 0 or -errno. */
int kvm_assist_begin(struct kvm_vcpu *v, uint64_t instructions);
/* One run of the helper. True: *x is an exit to serve; false: the state is back with KVM. */
bool kvm_assist_run(struct kvm_vcpu *v, struct vcpu_exit *x);

#endif
