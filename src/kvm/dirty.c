/*
 * The dirty log of the vcpus, one interface over KVM's two ways. Bitmap: each slot has a bitmap in the kernel, fetched and cleared by
 * KVM_GET_DIRTY_LOG. Ring, where it was asked for and KVM has it: each vcpu has a ring of the pages that it wrote; the entries are taken
 * out here, or by the vcpu's thread when its ring is full, and gathered in `gathered` until somebody collects.
 *
 *   ring entry: | 0 flags: 1 dirty, 2 to be reset | 4 slot | 8 page in the slot |
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kvm_vm.h"
#include "vmm/mem.h"

#define PAGE_BYTES 4096u

/* Asks for rings before any vcpu exists; where KVM has none, the bitmap remains. */
void kvm_dirty_setup(struct kvm_vm *vm)
{
	static const uint32_t caps[] = { KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING };
	uint32_t bytes = vm->config.dirty_ring * (uint32_t)sizeof(struct kvm_dirty_gfn);

	for (unsigned i = 0; i < 2 && bytes && !vm->ring_bytes; i++) {
		struct kvm_enable_cap cap = { .cap = caps[i], .args = { bytes } };

		if (kvm_ioctl(vm->vm_fd, KVM_CHECK_EXTENSION, caps[i]) >= (int)bytes && !kvm_ioctl_ptr(vm->vm_fd, KVM_ENABLE_CAP, &cap))
			vm->ring_bytes = bytes;
	}
}

int kvm_dirty_map_ring(struct kvm_vcpu *v)
{
	if (!v->vm->ring_bytes)
		return 0;
	v->ring = mmap(NULL, v->vm->ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, KVM_DIRTY_LOG_PAGE_OFFSET * PAGE_BYTES);
	if (v->ring == MAP_FAILED) {
		v->ring = NULL;
		return -errno;
	}
	return 0;
}

void kvm_dirty_unmap_ring(struct kvm_vcpu *v)
{
	if (v->ring)
		munmap(v->ring, v->vm->ring_bytes);
}

static void set_bit(uint64_t *bitmap, uint64_t page)
{
	bitmap[page / 64] |= 1ull << page % 64;
}

/* Lock held. What was taken must be reset before the pages are noted anew. */
static unsigned take_ring(struct kvm_vcpu *v)
{
	uint32_t entries = v->vm->ring_bytes / (uint32_t)sizeof(struct kvm_dirty_gfn);
	unsigned count = 0;

	while (v->ring) {
		struct kvm_dirty_gfn *e = &v->ring[v->ring_next % entries];
		const struct ram_range *slot = &v->vm->slots[(uint16_t)e->slot % KVM_MEMSLOTS];

		if (!(__atomic_load_n(&e->flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_DIRTY))
			break;
		if (v->vm->gathered && e->offset * PAGE_BYTES < slot->size)
			set_bit(v->vm->gathered, slot->offset / PAGE_BYTES + e->offset);
		__atomic_store_n(&e->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
		v->ring_next++;
		count++;
	}
	return count;
}

void kvm_dirty_take_rings(struct kvm_vm *vm)
{
	unsigned count = 0;

	pthread_mutex_lock(&vm->lock);
	for (unsigned i = 0; i < vm->vcpu_count; i++)
		if (vm->vcpus[i])
			count += take_ring(vm->vcpus[i]);
	if (count)
		kvm_ioctl(vm->vm_fd, KVM_RESET_DIRTY_RINGS, 0);
	pthread_mutex_unlock(&vm->lock);
}

static uint64_t bitmap_bytes(const struct kvm_vm *vm)
{
	return ((vm->config.mem->size + MEM_ROM_RESERVE) / PAGE_BYTES + 63) / 64 * 8;
}

/* Flags of slots that exist may change at any time. */
static int set_logging(struct kvm_vm *vm, bool on)
{
	int rc = 0;

	vm->logging = on;
	for (unsigned i = 0; i < KVM_MEMSLOTS && !rc; i++)
		if (vm->slots[i].size && !vm->slots[i].readonly)
			rc = kvm_memory_set_slot(vm, i, &vm->slots[i]);
	return rc;
}

static int start(void *ctx)
{
	struct kvm_vm *vm = ctx;

	vm->gathered = calloc(1, bitmap_bytes(vm));
	return vm->gathered ? set_logging(vm, true) : -ENOMEM;
}

/* A slot's bits to those of the memfd. */
static void add_slot(struct kvm_vm *vm, unsigned slot, uint64_t *scratch, uint64_t *bitmap)
{
	const struct ram_range *r = &vm->slots[slot];
	struct kvm_dirty_log log = { .slot = slot, .dirty_bitmap = scratch };
	uint64_t pages = r->size / PAGE_BYTES;

	memset(scratch, 0, (pages + 63) / 64 * 8);
	if (kvm_ioctl_ptr(vm->vm_fd, KVM_GET_DIRTY_LOG, &log))
		return;
	for (uint64_t word = 0; word < (pages + 63) / 64; word++)
		for (uint64_t bits = scratch[word]; bits; bits &= bits - 1)
			set_bit(bitmap, r->offset / PAGE_BYTES + word * 64 + (unsigned)__builtin_ctzll(bits));
}

static void collect(void *ctx, uint64_t *bitmap)
{
	struct kvm_vm *vm = ctx;
	uint64_t words = (vm->config.mem->file_size / PAGE_BYTES + 63) / 64;

	if (vm->ring_bytes) {
		kvm_dirty_take_rings(vm);
		pthread_mutex_lock(&vm->lock);
		for (uint64_t i = 0; i < words; i++) {
			bitmap[i] |= vm->gathered[i];
			vm->gathered[i] = 0;
		}
		pthread_mutex_unlock(&vm->lock);
		return;
	}
	for (unsigned i = 0; i < KVM_MEMSLOTS; i++)
		if (vm->slots[i].size && !vm->slots[i].readonly)
			add_slot(vm, i, vm->gathered, bitmap);
}

static void stop(void *ctx)
{
	struct kvm_vm *vm = ctx;

	set_logging(vm, false);
	kvm_dirty_take_rings(vm);
	pthread_mutex_lock(&vm->lock);
	free(vm->gathered);
	vm->gathered = NULL;
	pthread_mutex_unlock(&vm->lock);
}

void kvm_dirty_offer(struct kvm_vm *vm)
{
	vm->config.mem->dirty_source = (struct mem_dirty_source){ start, collect, stop, vm };
}
