/*
 * A virtqueue whose rings, descriptors and buffers are the input. First byte: features and device; the rest is copied
 * into guest memory from 0 on, the descriptor table first, then rings. The guest notifies after each quarter of the
 * input, so that rings change between two looks.
 */
#include <stdlib.h>
#include <string.h>

#include "vmm/host_net.h"
#include "vmm/log.h"
#include "vmm/mem.h"
#include "vmm/virtio.h"
#include "fuzz.h"

#define RING_SIZE 16
#define QUEUE_BYTES 1024

static void endpoint_send(struct net_endpoint *endpoint, const struct iovec *iov, unsigned count)
{
	/* Give it back at once: the receive queue is exercised too. */
	if (endpoint->receive && count)
		endpoint->receive(endpoint->receive_ctx, iov->iov_base, iov->iov_len);
}

static void endpoint_ready(struct net_endpoint *endpoint)
{
	static const uint8_t frame[3000];

	if (endpoint->receive)
		endpoint->receive(endpoint->receive_ctx, frame, sizeof(frame));
}

static void endpoint_destroy(struct net_endpoint *endpoint)
{
	free(endpoint);
}

static const struct net_endpoint_ops endpoint_ops = {endpoint_send, endpoint_ready, endpoint_destroy};

static struct virtio_device *device_create(struct guest_mem *mem, bool net)
{
	static const uint8_t mac[6] = {2, 0, 0, 0, 0, 1};
	struct virtio_device *dev = NULL;

	if (net) {
		struct net_endpoint *endpoint = calloc(1, sizeof(*endpoint));

		if (!endpoint)
			abort();
		endpoint->ops = &endpoint_ops;
		virtio_net_create(mem, endpoint, mac, &dev, NULL);
	} else {
		virtio_rng_create(mem, &dev, NULL);
	}
	if (!dev)
		abort();
	return dev;
}

static void device_start(struct virtio_device *dev, uint8_t choice)
{
	dev->state.driver_features = VIRTIO_F_VERSION_1 | (choice & 1 ? VIRTIO_F_INDIRECT_DESC : 0) |
				     (choice & 2 ? VIRTIO_F_EVENT_IDX : 0) | (choice & 4 ? 1ull << 15 : 0) |
				     (choice & 8 ? 1 : 0);
	dev->state.driver_features &= dev->features;
	virtio_set_status(dev, 0x0b);
	for (unsigned q = 0; q < dev->queue_count; q++) {
		struct virtqueue_state *s = &dev->queues[q].state;

		s->size = dev->queue_size < RING_SIZE ? dev->queue_size : RING_SIZE;
		s->desc = q * QUEUE_BYTES;
		s->driver = s->desc + 16 * RING_SIZE;
		s->device = s->desc + 512;
		virtqueue_enable(&dev->queues[q]);
	}
	virtio_set_status(dev, 0x0f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct virtio_device *dev;
	struct guest_mem *mem;
	uint8_t choice;

	if (size < 2 || size > 65536)
		return 0;
	log_set_level(LOG_ERROR);
	if (mem_create(1 << 20, &mem, NULL))
		abort();
	choice = *data++;
	size--;
	dev = device_create(mem, choice & 0x80);
	device_start(dev, choice);
	for (unsigned part = 0; part < 4; part++) {
		size_t from = size * part / 4, to = size * (part + 1) / 4;

		mem_write(mem, from, data + from, to - from);
		for (unsigned q = 0; q < dev->queue_count; q++)
			virtio_notify(dev, q);
	}
	if (choice & 0x40) {
		device_start(dev, choice);
		virtio_set_status(dev, 0);
	}
	virtio_device_destroy(dev);
	mem_destroy(mem);
	return 0;
}
