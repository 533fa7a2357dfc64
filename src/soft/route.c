/*
 * What the rest of the machine posts to vcpus: interrupt messages, by the routing of the SDM (vol. 3, 11.6.2), the PIC's
 * line, and word that guest code was overwritten. A post sets bits in the vcpu block and wakes the vcpu if it sleeps; it
 * never waits. The local APIC registers that routing needs are read while their vcpu runs: as on hardware, a message that
 * races with a change of LDR goes by the old or the new value.
 */
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "soft_vm.h"
#include "vmm/mem.h"


enum { MODE_FIXED = 0, MODE_LOWEST = 1, MODE_NMI = 4, MODE_INIT = 5, MODE_STARTUP = 6 };

void soft_post_event(struct soft_vcpu *v, uint32_t bits)
{
	atomic_fetch_or(&v->block->events, bits);
	if (atomic_load(&v->block->sleeping))
		syscall(SYS_futex, &v->block->events, FUTEX_WAKE, 1, NULL, NULL, 0);
}

/* One register of a local APIC that its owner may be writing. */
static uint32_t peek(const uint32_t *field)
{
	return *(const volatile uint32_t *)field;
}

static bool matches(const struct soft_vcpu *v, uint32_t dest, bool logical)
{
	const struct lapic_state *l = &v->block->lapic;
	uint64_t base = *(const volatile uint64_t *)&l->apic_base;
	bool x2apic = base & APIC_BASE_X2APIC;
	uint32_t ldr = peek(&l->ldr);

	if (!(base & APIC_BASE_ENABLE))
		return false;
	if (dest == 0xffffffffu)
		return true;
	if (!logical) /* 0xff: broadcast of messages with 8 bits; there is no vcpu 255 */
		return dest == 0xff || dest == v->index;
	if (x2apic)
		return dest >> 16 == ldr >> 16 && (dest & ldr & 0xffff);
	ldr >>= 24;
	if (peek(&l->dfr) >> 28 == 0xf)
		return dest & ldr & 0xff;
	return (dest >> 4 & 0xf) == (ldr >> 4) && (dest & ldr & 0xf);
}

static void deliver_one(struct soft_vcpu *v, uint8_t mode, uint8_t vector, bool level)
{
	struct vcpu_block *b = v->block;
	uint64_t bit = 1ull << (vector % 64);

	switch (mode) {
	case MODE_FIXED:
	case MODE_LOWEST:
		if (vector < 16)
			return;
		if (level)
			atomic_fetch_or(&b->posted_tmr[vector / 64], bit);
		atomic_fetch_or(&b->posted_irr[vector / 64], bit);
		soft_post_event(v, VCPU_EVENT_IRR);
		break;
	case MODE_NMI:
		soft_post_event(v, VCPU_EVENT_NMI);
		break;
	case MODE_INIT:
		soft_post_event(v, VCPU_EVENT_INIT);
		break;
	case MODE_STARTUP:
		atomic_store(&b->sipi_vector, vector);
		soft_post_event(v, VCPU_EVENT_SIPI);
		break;
	}
}

/* Lowest priority: in turn among those that match. */
static void deliver_lowest(struct soft_vm *vm, uint32_t dest, bool logical, uint8_t vector, bool level)
{
	unsigned count = vm->vcpu_count, start;

	pthread_mutex_lock(&vm->lock);
	start = vm->next_lowest++;
	pthread_mutex_unlock(&vm->lock);
	for (unsigned i = 0; i < count; i++) {
		struct soft_vcpu *v = vm->vcpus[(start + i) % count];

		if (v && matches(v, dest, logical)) {
			deliver_one(v, MODE_FIXED, vector, level);
			return;
		}
	}
}

void soft_deliver(struct soft_vm *vm, uint32_t dest, bool logical, uint8_t delivery_mode, uint8_t vector, bool level)
{
	if (delivery_mode == MODE_LOWEST && vm->vcpu_count > 1) {
		deliver_lowest(vm, dest, logical, vector, level);
		return;
	}
	for (unsigned i = 0; i < vm->vcpu_count; i++) {
		struct soft_vcpu *v = vm->vcpus[i];

		if (v && matches(v, dest, logical))
			deliver_one(v, delivery_mode, vector, level);
	}
}

void soft_ipi(struct soft_vm *vm, unsigned from, uint32_t dest, uint32_t icr_low)
{
	uint8_t mode = icr_low >> 8 & 7, vector = icr_low & 0xff;
	unsigned shorthand = icr_low >> 18 & 3;
	bool level = icr_low >> 15 & 1;

	if (mode == MODE_INIT && level && !(icr_low >> 14 & 1))
		return; /* INIT level de-assert: a relic */
	if (shorthand == 0) {
		/* An xAPIC's 8-bit broadcast in logical mode is no broadcast in x2APIC's form, and vice versa. */
		soft_deliver(vm, dest, icr_low >> 11 & 1, mode, vector, level && mode <= MODE_LOWEST);
		return;
	}
	for (unsigned i = 0; i < vm->vcpu_count; i++) {
		struct soft_vcpu *v = vm->vcpus[i];

		if (v && (shorthand == 1 ? i == from : shorthand == 2 || i != from))
			deliver_one(v, mode == MODE_LOWEST ? MODE_FIXED : mode, vector, level && mode <= MODE_LOWEST);
	}
}

void soft_set_extint(struct soft_vm *vm, bool level)
{
	struct soft_vcpu *v = vm->vcpus[0];

	if (!v)
		return;
	atomic_store(&v->block->extint_level, level);
	if (level)
		soft_post_event(v, VCPU_EVENT_EXTINT);
}

/* Tells each vcpu that RAM page `page` was written under decoded code. Nobody is woken: who sleeps looks before it runs. */
static void invalidate_page(struct soft_vm *vm, uint64_t page)
{
	pthread_mutex_lock(&vm->lock);
	for (unsigned i = 0; i < vm->vcpu_count; i++) {
		struct soft_vcpu *v = vm->vcpus[i];
		struct vcpu_block *b;
		uint32_t head;

		if (!v)
			continue;
		b = v->block;
		head = atomic_load_explicit(&b->invalidate_head, memory_order_relaxed);
		if (head - atomic_load(&b->invalidate_tail) >= INVALIDATE_RING_SIZE) {
			atomic_store(&b->invalidate_all, 1);
		} else {
			atomic_store_explicit(&b->invalidate_page[head % INVALIDATE_RING_SIZE], page, memory_order_relaxed);
			atomic_store(&b->invalidate_head, head + 1);
		}
		atomic_fetch_or(&b->events, VCPU_EVENT_INVALIDATE);
	}
	pthread_mutex_unlock(&vm->lock);
}

/*
 * A vcpu takes the new layout when it is next entered: one whose access has made the change at once, the others are asked
 * to come out.
 */
void soft_layout_changed(void *ctx)
{
	struct soft_vm *vm = ctx;

	pthread_mutex_lock(&vm->lock);
	vm->layout = vm->mem->layout;
	pthread_mutex_unlock(&vm->lock);
	for (unsigned i = 0; i < vm->vcpu_count; i++) {
		struct soft_vcpu *v = vm->vcpus[i];

		if (!v)
			continue;
		if (vm->mem->hidden_written) {
			/* Blocks decoded of pages that nobody saw when they were written. */
			atomic_store(&v->block->invalidate_all, 1);
			atomic_fetch_or(&v->block->events, VCPU_EVENT_INVALIDATE);
		}
		atomic_store(&v->layout_stale, true);
		if (vm->vcpu_count > 1)
			soft_post_event(v, VCPU_EVENT_EXIT);
	}
}

/*
 * After a write by the VMM. An engine sets the page's bit, then reads the bytes that it decodes; here the bytes are
 * written, then the bit is read: the fence makes sure that one of both sees the other.
 */
void soft_mem_written(void *ctx, uint64_t gpa, uint64_t length)
{
	struct soft_vm *vm = ctx;
	const struct ram_layout *layout = &vm->mem->layout;

	if (!length)
		return;
	atomic_thread_fence(memory_order_seq_cst);
	for (unsigned i = 0; i < RAM_RANGE_MAX && layout->ranges[i].size; i++) {
		const struct ram_range *r = &layout->ranges[i];
		uint64_t from = gpa > r->gpa ? gpa - r->gpa : 0;
		uint64_t to = gpa + length > r->gpa ? gpa + length - r->gpa : 0;

		if (to > r->size)
			to = r->size;
		if (from >= to)
			continue;
		for (uint64_t page = (r->offset + from) >> 12; page <= (r->offset + to - 1) >> 12; page++)
			if (atomic_load_explicit(&vm->shared->code_pages[page / 64], memory_order_relaxed) >> (page % 64) & 1)
				invalidate_page(vm, page);
	}
}
