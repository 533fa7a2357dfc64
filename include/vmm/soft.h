/*
 * The software backend as the machine sees it: one process per vcpu, reached through its vcpu block only.
 */
#ifndef VMM_SOFT_H
#define VMM_SOFT_H

#include "vmm/vcpu.h"

struct bus_answer;
struct event_loop;
struct guest_mem;
struct soft_vm;

/*
 * Prepares vm_shared and hooks mem->written (so that DMA into decoded code is seen). program is the path of this
 * binary, started again as `program --vcpu-process`; NULL is /proc/self/exe.
 */
int soft_vm_create(struct guest_mem *mem, struct event_loop *loop, const char *program, struct soft_vm **vm, struct error *err);
/* All vcpus are destroyed before. */
void soft_vm_destroy(struct soft_vm *vm);

/*
 * Starts the process of vcpu `index` with the given model, engine and policy of its shadow; *self goes to vcpu_create() with
 * soft_vcpu_ops.
 */
int soft_vcpu_create(struct soft_vm *vm, unsigned index, const struct cpu_model *model, enum vcpu_engine engine,
	enum vcpu_shadow shadow, uint32_t trace, void **self, struct error *err);
extern const struct vcpu_backend soft_vcpu_ops;

/* An APIC message from IOAPIC, MSI or another vcpu: routed by the vcpus' LDR/DFR/ID, posted. Any thread.
 * dest as in the message (8-bit xAPIC or 32-bit x2APIC); delivery_mode and vector as in the ICR. */
void soft_deliver(struct soft_vm *vm, uint32_t dest, bool logical, uint8_t delivery_mode, uint8_t vector, bool level);
/* An IPI as VCPU_EXIT_IPI reports it (vcpu_host.ipi): dest and the low word of the ICR, shorthands included. Any thread. */
void soft_ipi(struct soft_vm *vm, unsigned from, uint32_t dest, uint32_t icr_low);
/* The PIC's INTR output, wired to LINT0 of vcpu 0. Any thread. */
void soft_set_extint(struct soft_vm *vm, bool level);
/* Vectors whose EOI must exit. Any thread. */
void soft_set_eoi_exit(struct soft_vm *vm, const uint64_t bitmap[4]);
/*
 * Answers guest writes at gpa by writing 1 to eventfd; gpa 0 removes. -ENOSPC when all slots are taken: then the
 * write arrives at the bus as any other. An eventfd must have its slot before the vcpus are created, to be inherited:
 * gpa 0 reserves one. Later calls move or disable what has a slot.
 */
int soft_set_notify(struct soft_vm *vm, int eventfd, uint64_t gpa, uint32_t size);
/*
 * Lets engines answer reads of a register by themselves, or changes what they answer (the same space, addr and shift).
 * -ENOSPC when all slots are taken: then the reads arrive at the bus as any other. Any thread.
 */
int soft_set_answer(struct soft_vm *vm, const struct bus_answer *answer);
/* Lets writes to this port be posted (no answer needed, order kept). */
void soft_set_posted_pio(struct soft_vm *vm, uint16_t port);
/* Back to power-up: LAPIC, posted interrupts, decoded code. Vcpus stopped. CPU state is set by vcpu_set_state(). */
void soft_vm_reset(struct soft_vm *vm);
/* Counters of one vcpu. */
const struct engine_stats *soft_vcpu_stats(struct soft_vm *vm, unsigned index);

#endif
