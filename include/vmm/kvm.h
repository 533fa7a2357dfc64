/*
 * The KVM backend as the machine sees it: the same machine as under the software backend, its vcpus run by /dev/kvm.
 * docs/kvm.md says what of it is where.
 */
#ifndef VMM_KVM_H
#define VMM_KVM_H

#include "vmm/kvm_host.h"
#include "vmm/vcpu.h"

struct guest_mem;
struct kvm_vm;

struct kvm_config {
	struct guest_mem *mem;
	unsigned cpus;
	unsigned dirty_ring; /* entries of a vcpu's dirty ring, a power of two from 1024 up; 0: the dirty log is by bitmap */
	bool host_cpu; /* --cpu host: all that KVM has, instead of the model */
	/*
	 * A software vcpu on the same memory, for what KVM cannot do: called once for a vcpu, when it is needed first, on that
	 * vcpu's thread. Its ops have get_lapic, set_lapic and set_limit. The machine keeps and destroys it, after the vcpu.
	 */
	int (*helper)(void *ctx, unsigned index, const struct vcpu_backend **ops, void **self, struct error *err);
	/* A message for a vcpu whose state is with its helper. Any thread; may not call back. */
	void (*helper_deliver)(void *ctx, uint32_t dest, bool logical, uint8_t delivery_mode, uint8_t vector, bool level);
	void *ctx;
	/* For tests: on average after so many exits a vcpu moves to its helper for so many instructions. 0: never. */
	unsigned move_every, move_length;
};

/* What KVM and its helper did for a vcpu, beyond the exits of vcpu_exit_counts(). */
#define KVM_STATS(X) \
	X(entries, "calls of KVM_RUN") \
	X(assists, "instructions that KVM could not emulate, executed by the software CPU") \
	X(stints, "times that the software CPU ran code that this KVM (kvm_pvm) is not made for") \
	X(moves, "moves to the software CPU and back, for a test") \
	X(signals, "entries ended by a signal before or while the guest ran") \
	X(irq_windows, "exits because the guest may be interrupted by the PIC now") \
	X(msr_exits, "RDMSR and WRMSR that KVM does not know") \
	X(debug_exits, "guest-debug events") \
	X(dirty_ring_full, "exits because the dirty ring was full")
struct kvm_stats {
#define X(name, text) uint64_t name;
	KVM_STATS(X)
#undef X
};

/*
 * Opens /dev/kvm and creates the VM with all RAM of config->mem, and follows its layout; whoever else follows it (the
 * helpers' backend) hooks in before and out after. -ENOENT, -EACCES, -ENOTSUP (a capability is missing) …
 */
int kvm_vm_create(const struct kvm_config *config, struct kvm_vm **vm, struct error *err);
/* All vcpus are destroyed before. */
void kvm_vm_destroy(struct kvm_vm *vm);

/* The frequency of the guests' TSC in kHz as KVM knows it, 0 if it does not say. */
uint64_t kvm_tsc_khz(struct kvm_vm *vm);
/* Takes from the model what this KVM cannot do, and sets what is KVM's to say (timer clock). Before the vcpus are created. */
void kvm_fit_model(struct kvm_vm *vm, struct cpu_model *model);

/* *self goes to vcpu_create() with kvm_vcpu_ops. */
int kvm_vcpu_create(struct kvm_vm *vm, unsigned index, const struct cpu_model *model, void **self, struct error *err);
extern const struct vcpu_backend kvm_vcpu_ops;

/* As soft_deliver(), soft_set_extint(), soft_set_eoi_exit(), soft_set_notify(). */
void kvm_deliver(struct kvm_vm *vm, uint32_t dest, bool logical, uint8_t delivery_mode, uint8_t vector, bool level);
void kvm_ipi(struct kvm_vm *vm, unsigned from, uint32_t dest, uint32_t icr_low);
void kvm_set_extint(struct kvm_vm *vm, bool level);
void kvm_set_eoi_exit(struct kvm_vm *vm, const uint64_t bitmap[4]);
int kvm_set_notify(struct kvm_vm *vm, int eventfd, uint64_t gpa, uint32_t size);
/* Writes to these ports may be kept back until the next exit (coalesced). No-op where KVM cannot. */
void kvm_set_posted_pio(struct kvm_vm *vm, uint16_t port);
/* Back to power-up: local APICs, clock. Vcpus stopped. CPU state is set by vcpu_set_state(). */
void kvm_vm_reset(struct kvm_vm *vm);
const struct kvm_stats *kvm_vcpu_stats(struct kvm_vm *vm, unsigned index);

#endif
