/*
 * Split virtqueues, virtio 1.2 §2.7. Everything in the three rings belongs to the guest and may change at any time:
 * each field is read exactly once, checked, and used from the copy. Invariants: a chain has at most
 * VIRTQUEUE_SIZE_MAX descriptors, so that a loop ends; every segment lies in guest RAM; after virtio_break() no
 * ring is touched until the device is reset and the queue enabled again.
 *
 *   descriptor: | 0 addr (8) | 8 len (4) | 12 flags (2) | 14 next (2) |
 *   available:  | 0 flags | 2 idx | 4 ring[size] (2 each) | used_event |
 *   used:       | 0 flags | 2 idx | 4 ring[size] (id 4, len 4) | avail_event |
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "vmm/mem.h"
#include "vmm/virtio.h"

#define DESC_NEXT 1
#define DESC_WRITE 2
#define DESC_INDIRECT 4
#define AVAIL_NO_INTERRUPT 1
#define USED_NO_NOTIFY 1

struct descriptor {
	uint64_t addr;
	uint32_t length;
	uint16_t flags, next;
};

static uint16_t ring_load(const uint8_t *p)
{
	return __atomic_load_n((const uint16_t *)p, __ATOMIC_ACQUIRE);
}

static void ring_store(uint8_t *p, uint16_t value)
{
	__atomic_store_n((uint16_t *)p, value, __ATOMIC_RELEASE);
}

static uint8_t *used_event(struct virtqueue *vq)
{
	return vq->avail_hva + 4 + 2 * vq->state.size;
}

static unsigned avail_event_offset(const struct virtqueue *vq)
{
	return 4 + 8 * vq->state.size;
}

void virtqueue_enable(struct virtqueue *vq)
{
	struct virtqueue_state *s = &vq->state;
	struct guest_mem *mem = vq->dev->mem;

	if (s->enabled || vq->dev->state.reset_pending)
		return;
	if (!s->size || s->size > vq->dev->queue_size || s->size & (s->size - 1)) {
		virtio_break(vq->dev, "a queue's size is not a power of two");
		return;
	}
	if (s->desc & 15 || s->driver & 1 || s->device & 3) {
		virtio_break(vq->dev, "a queue is not aligned");
		return;
	}
	vq->desc_hva = mem_ptr(mem, s->desc, 16ull * s->size, false);
	vq->avail_hva = mem_ptr(mem, s->driver, 6 + 2ull * s->size, false);
	vq->used_hva = mem_ptr(mem, s->device, 6 + 8ull * s->size, true);
	if (!vq->desc_hva || !vq->avail_hva || !vq->used_hva) {
		virtio_break(vq->dev, "a queue is not in RAM");
		return;
	}
	s->avail_next = s->used_next = s->signalled_used = 0;
	s->signalled_valid = 0;
	s->enabled = 1;
}

static bool queue_usable(const struct virtqueue *vq)
{
	return vq->state.enabled && virtio_running(vq->dev);
}

uint16_t virtqueue_available(struct virtqueue *vq)
{
	return queue_usable(vq) ? ring_load(vq->avail_hva + 2) - vq->state.avail_next : 0;
}

bool virtqueue_empty(struct virtqueue *vq)
{
	return !virtqueue_available(vq);
}

void virtqueue_set_notify(struct virtqueue *vq, bool wanted)
{
	unsigned at = 0;

	if (!queue_usable(vq))
		return;
	if (virtio_has(vq->dev, VIRTIO_F_EVENT_IDX)) {
		if (!wanted)
			return; /* the event index stays behind, which is enough */
		at = avail_event_offset(vq);
		ring_store(vq->used_hva + at, ring_load(vq->avail_hva + 2));
	} else {
		ring_store(vq->used_hva, wanted ? 0 : USED_NO_NOTIFY);
	}
	mem_mark_written(vq->dev->mem, vq->state.device + at, 2);
	/* The guest adds a buffer and looks at the event index; we publish that index and look for buffers. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static struct descriptor descriptor_load(const uint8_t *p)
{
	struct descriptor d;
	const volatile uint8_t *from = p;
	uint8_t raw[16];

	/* An indirect table need not be aligned, so byte by byte; each is read once. */
	if (!((uintptr_t)p & 7)) {
		uint64_t low = __atomic_load_n((const uint64_t *)p, __ATOMIC_RELAXED);
		uint64_t high = __atomic_load_n((const uint64_t *)(p + 8), __ATOMIC_RELAXED);

		memcpy(raw, &low, 8);
		memcpy(raw + 8, &high, 8);
	} else {
		for (unsigned i = 0; i < 16; i++)
			raw[i] = from[i];
	}
	memcpy(&d.addr, raw, 8);
	memcpy(&d.length, raw + 8, 4);
	memcpy(&d.flags, raw + 12, 2);
	memcpy(&d.next, raw + 14, 2);
	return d;
}

static const char *chain_add(struct virtqueue *vq, struct virtio_chain *chain, const struct descriptor *d)
{
	bool writes = d->flags & DESC_WRITE;
	struct virtio_segment *segment = &chain->segments[chain->out_count + chain->in_count];

	if (!d->length)
		return NULL;
	if (!writes && chain->in_count)
		return "a descriptor for the device to read follows one for it to write";
	if (d->addr + d->length < d->addr)
		return "a buffer wraps around the address space";
	segment->hva = mem_ptr(vq->dev->mem, d->addr, d->length, writes);
	if (!segment->hva)
		return "a buffer is not in RAM";
	segment->gpa = d->addr;
	segment->length = d->length;
	if (writes) {
		chain->in_count++;
		chain->in_bytes += d->length;
	} else {
		chain->out_count++;
		chain->out_bytes += d->length;
	}
	return NULL;
}

static const char *chain_walk(struct virtqueue *vq, struct virtio_chain *chain)
{
	const uint8_t *table = vq->desc_hva;
	uint32_t count = vq->state.size, index = chain->head;
	bool indirect = false;

	for (unsigned steps = 0; steps < VIRTQUEUE_SIZE_MAX;) {
		struct descriptor d;
		const char *why;

		if (index >= count)
			return "a descriptor index is out of range";
		d = descriptor_load(table + 16 * index);
		if (d.flags & DESC_INDIRECT) {
			if (!virtio_has(vq->dev, VIRTIO_F_INDIRECT_DESC) || indirect || d.flags & DESC_NEXT)
				return "an indirect descriptor stands where none may be";
			if (!d.length || d.length & 15)
				return "an indirect table has a bad length";
			table = mem_ptr(vq->dev->mem, d.addr, d.length, false);
			if (!table || d.addr + d.length < d.addr)
				return "an indirect table is not in RAM";
			count = d.length / 16;
			index = 0;
			indirect = true;
			continue;
		}
		steps++;
		why = chain_add(vq, chain, &d);
		if (why)
			return why;
		if (!(d.flags & DESC_NEXT))
			return NULL;
		index = d.next;
	}
	return "a descriptor chain loops or is too long";
}

int virtqueue_pop(struct virtqueue *vq, struct virtio_chain *chain)
{
	struct virtqueue_state *s = &vq->state;
	uint16_t available;
	const char *why;

	if (!queue_usable(vq))
		return 0;
	available = ring_load(vq->avail_hva + 2) - s->avail_next;
	if (!available)
		return 0;
	if (available > s->size) {
		virtio_break(vq->dev, "the available index jumped further than the queue is long");
		return -EPROTO;
	}
	chain->head = ring_load(vq->avail_hva + 4 + 2 * (s->avail_next & (s->size - 1)));
	chain->out_count = chain->in_count = 0;
	chain->out_bytes = chain->in_bytes = 0;
	why = chain_walk(vq, chain);
	if (why) {
		virtio_break(vq->dev, why);
		return -EPROTO;
	}
	s->avail_next++;
	return 1;
}

void virtqueue_unpop(struct virtqueue *vq, unsigned n)
{
	vq->state.avail_next -= n;
}

void virtqueue_fill(struct virtqueue *vq, unsigned at, uint16_t head, uint32_t written)
{
	uint32_t entry[2] = {head, written};
	unsigned offset;

	if (!queue_usable(vq))
		return;
	offset = 4 + 8 * ((vq->state.used_next + at) & (vq->state.size - 1));
	memcpy(vq->used_hva + offset, entry, 8);
	mem_mark_written(vq->dev->mem, vq->state.device + offset, 8);
}

void virtqueue_publish(struct virtqueue *vq, unsigned n)
{
	if (!queue_usable(vq))
		return;
	vq->state.used_next += n;
	ring_store(vq->used_hva + 2, vq->state.used_next);
	mem_mark_written(vq->dev->mem, vq->state.device + 2, 2);
}

void virtqueue_push(struct virtqueue *vq, uint16_t head, uint32_t written)
{
	virtqueue_fill(vq, 0, head, written);
	virtqueue_publish(vq, 1);
}

void virtqueue_interrupt(struct virtqueue *vq)
{
	struct virtqueue_state *s = &vq->state;
	uint16_t old = s->signalled_used, now = s->used_next;
	bool wanted;

	if (!queue_usable(vq) || !vq->dev->transport_ops)
		return;
	/* The guest publishes its event index and looks at the used index; we the other way round. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (virtio_has(vq->dev, VIRTIO_F_EVENT_IDX)) {
		uint16_t event = ring_load(used_event(vq));

		wanted = !s->signalled_valid || (uint16_t)(now - event - 1) < (uint16_t)(now - old);
		s->signalled_used = now;
		s->signalled_valid = 1;
	} else {
		wanted = !(ring_load(vq->avail_hva) & AVAIL_NO_INTERRUPT);
	}
	if (wanted)
		vq->dev->transport_ops->queue_interrupt(vq->dev->transport, vq->index);
}

void virtqueue_renotify(struct virtqueue *vq)
{
	if (vq->dev->transport_ops && vq->dev->transport_ops->queue_renotify)
		vq->dev->transport_ops->queue_renotify(vq->dev->transport, vq->index);
}

/* Walks segments[first, last) from byte `offset`; copies to or from buffer. */
static size_t segments_copy(struct guest_mem *mem, const struct virtio_segment *first, unsigned count, size_t offset,
	uint8_t *buffer, size_t length, bool to_guest)
{
	size_t copied = 0;

	for (unsigned i = 0; i < count && copied < length; i++) {
		size_t n;

		if (offset >= first[i].length) {
			offset -= first[i].length;
			continue;
		}
		n = first[i].length - offset;
		if (n > length - copied)
			n = length - copied;
		if (to_guest) {
			memcpy((uint8_t *)first[i].hva + offset, buffer + copied, n);
			mem_mark_written(mem, first[i].gpa + offset, n);
		} else {
			memcpy(buffer + copied, (uint8_t *)first[i].hva + offset, n);
		}
		copied += n;
		offset = 0;
	}
	return copied;
}

size_t virtio_segments_write(struct virtio_device *dev, const struct virtio_segment *segments, unsigned count, size_t offset,
	const void *src, size_t length)
{
	return segments_copy(dev->mem, segments, count, offset, (uint8_t *)src, length, true);
}

unsigned virtio_segments_cut(const struct virtio_segment *segments, unsigned count, uint64_t skip, uint64_t length,
	struct iovec *iov, uint64_t *gpas)
{
	unsigned parts = 0;

	for (unsigned i = 0; i < count && length; i++) {
		uint64_t n;

		if (skip >= segments[i].length) {
			skip -= segments[i].length;
			continue;
		}
		n = segments[i].length - skip;
		if (n > length)
			n = length;
		iov[parts] = (struct iovec){(uint8_t *)segments[i].hva + skip, n};
		gpas[parts++] = segments[i].gpa + skip;
		length -= n;
		skip = 0;
	}
	return parts;
}

size_t virtio_chain_read(const struct virtio_chain *chain, size_t offset, void *dst, size_t length)
{
	return segments_copy(NULL, chain->segments, chain->out_count, offset, dst, length, false);
}

size_t virtio_chain_write(struct virtio_device *dev, const struct virtio_chain *chain, size_t offset, const void *src,
	size_t length)
{
	return segments_copy(dev->mem, chain->segments + chain->out_count, chain->in_count, offset, (uint8_t *)src,
		length, true);
}
