/*
 * What all software vcpus of a machine share: vm_shared (doorbells, ports whose writes may be posted, vectors whose EOI
 * must be heard, which pages hold decoded code) and the list of vcpus.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "soft_vm.h"
#include "vmm/error.h"
#include "vmm/mem.h"

static int create_shared(struct soft_vm *vm)
{
	uint64_t words = (vm->mem->file_size + MEM_ROM_RESERVE) / 4096 / 64 + 1;

	vm->shared_size = (sizeof(*vm->shared) + words * 8 + 4095) & ~4095ull;
	vm->shared_fd = memfd_create("vmm-shared", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (vm->shared_fd < 0 || ftruncate(vm->shared_fd, (off_t)vm->shared_size) ||
		fcntl(vm->shared_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		return -errno;
	vm->shared = mmap(NULL, vm->shared_size, PROT_READ | PROT_WRITE, MAP_SHARED, vm->shared_fd, 0);
	if (vm->shared == MAP_FAILED) {
		vm->shared = NULL;
		return -errno;
	}
	vm->shared->magic = VCPU_BLOCK_MAGIC;
	return 0;
}

int soft_vm_create(struct guest_mem *mem, struct event_loop *loop, const char *program, struct soft_vm **out, struct error *err)
{
	struct soft_vm *vm = calloc(1, sizeof(*vm));
	int rc = -ENOMEM;

	if (!vm)
		return error_set(err, -ENOMEM, "out of memory");
	vm->mem = mem;
	vm->loop = loop;
	vm->shared_fd = -1;
	pthread_mutex_init(&vm->lock, NULL);
	vm->program = strdup(program ? program : "/proc/self/exe");
	if (vm->program)
		rc = create_shared(vm);
	if (rc) {
		soft_vm_destroy(vm);
		return error_set(err, rc, "cannot create the memory shared by the vcpus: %s", strerror(-rc));
	}
	mem->written_ctx = vm;
	mem->written = soft_mem_written;
	mem->layout_ctx = vm;
	mem->layout_changed = soft_layout_changed;
	*out = vm;
	return 0;
}

void soft_vm_destroy(struct soft_vm *vm)
{
	if (!vm)
		return;
	if (vm->mem->written_ctx == vm) {
		vm->mem->written = NULL;
		vm->mem->written_ctx = NULL;
		vm->mem->layout_changed = NULL;
		vm->mem->layout_ctx = NULL;
	}
	if (vm->shared)
		munmap(vm->shared, vm->shared_size);
	if (vm->shared_fd >= 0)
		close(vm->shared_fd);
	pthread_mutex_destroy(&vm->lock);
	free(vm->program);
	free(vm);
}

void soft_set_eoi_exit(struct soft_vm *vm, const uint64_t bitmap[4])
{
	for (unsigned i = 0; i < 4; i++)
		atomic_store(&vm->shared->eoi_exit[i], bitmap[i]);
}

int soft_set_notify(struct soft_vm *vm, int eventfd, uint64_t gpa, uint32_t size)
{
	struct notify_slot *slot;
	unsigned i;
	int rc = -ENOSPC;

	pthread_mutex_lock(&vm->lock);
	for (i = 0; i < vm->notify_count && vm->notify_fds[i] != eventfd; i++)
		;
	if (i == vm->notify_count && i < NOTIFY_MAX && !vm->vcpu_count) {
		vm->notify_fds[i] = eventfd;
		vm->notify_count++;
	}
	if (i < vm->notify_count) {
		slot = &vm->shared->notify[i];
		atomic_store(&slot->gpa, 0); /* never the new address with the old size */
		slot->size = size;
		atomic_store(&slot->gpa, gpa);
		rc = 0;
	}
	pthread_mutex_unlock(&vm->lock);
	return rc;
}

static void publish_answer(struct answer_slot *slot, uint32_t *sequence, const struct bus_answer *a)
{
	atomic_store_explicit(&slot->sequence, ++*sequence, memory_order_relaxed);
	atomic_thread_fence(memory_order_release);
	atomic_store_explicit(&slot->space_sizes, (uint32_t)a->space << 8 | a->sizes, memory_order_relaxed);
	atomic_store_explicit(&slot->addr, a->addr, memory_order_relaxed);
	atomic_store_explicit(&slot->start_ns, a->start_ns, memory_order_relaxed);
	atomic_store_explicit(&slot->base, a->base, memory_order_relaxed);
	atomic_store_explicit(&slot->ratio, (uint64_t)a->num << 32 | a->den, memory_order_relaxed);
	atomic_store_explicit(&slot->shift, a->shift, memory_order_relaxed);
	atomic_store_explicit(&slot->sequence, ++*sequence, memory_order_release);
}

int soft_set_answer(struct soft_vm *vm, const struct bus_answer *a)
{
	unsigned i;
	int rc = -ENOSPC;

	pthread_mutex_lock(&vm->lock);
	for (i = 0; i < vm->answer_count && (vm->answers[i].space != a->space || vm->answers[i].addr != a->addr ||
						    vm->answers[i].shift != a->shift); i++)
		;
	if (i < ANSWER_MAX) {
		vm->answers[i] = *a;
		if (i == vm->answer_count)
			vm->answer_count++;
		publish_answer(&vm->shared->answers[i], &vm->answer_sequence[i], a);
		rc = 0;
	}
	pthread_mutex_unlock(&vm->lock);
	return rc;
}

void soft_set_posted_pio(struct soft_vm *vm, uint16_t port)
{
	atomic_fetch_or(&vm->shared->posted_pio[port / 64], 1ull << (port % 64));
}

/*
 * All blocks are about to go, so no page has code; marks that stayed from life to life would leave large pages in more and more
 * pieces, until the host's limit of mappings has the shadow drop everything again and again.
 */
static void forget_code(struct soft_vm *vm)
{
	for (uint64_t n = 0; n < (vm->mem->file_size / 4096 + 63) / 64; n++)
		atomic_store_explicit(&vm->shared->code_pages[n], 0, memory_order_relaxed);
}

void soft_vm_reset(struct soft_vm *vm)
{
	forget_code(vm);
	for (unsigned i = 0; i < vm->vcpu_count; i++) {
		struct soft_vcpu *v = vm->vcpus[i];
		struct vcpu_block *b;

		if (!v)
			continue;
		b = v->block;
		cpu_lapic_reset(&b->lapic, i, i == 0);
		for (unsigned n = 0; n < 4; n++) {
			atomic_store(&b->posted_irr[n], 0);
			atomic_store(&b->posted_tmr[n], 0);
		}
		atomic_store(&b->extint_level, 0);
		atomic_store(&b->sipi_vector, 0);
		atomic_store(&b->invalidate_all, 1);
		atomic_store(&b->events, VCPU_EVENT_INVALIDATE | VCPU_EVENT_LAYOUT);
	}
}

const struct engine_stats *soft_vcpu_stats(struct soft_vm *vm, unsigned index)
{
	struct soft_vcpu *v = index < VCPU_MAX ? vm->vcpus[index] : NULL;

	return v ? &v->block->stats : NULL;
}
