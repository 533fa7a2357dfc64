/* virtio-rng, virtio 1.2 §5.4: fills the guest's buffers from the host's getrandom(). */
#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

#include "vmm/error.h"
#include "vmm/virtio.h"

#define RNG_REQUEST_MAX 4096

struct virtio_rng {
	struct virtio_device dev; /* first */
	struct virtio_chain chain;
	uint8_t buffer[RNG_REQUEST_MAX];
};

static void rng_notify(struct virtio_device *dev, unsigned queue)
{
	struct virtio_rng *rng = (struct virtio_rng *)dev;
	struct virtqueue *vq = &dev->queues[queue];
	unsigned served = 0;

	virtqueue_set_notify(vq, true);
	while (served < dev->queue_size && virtqueue_pop(vq, &rng->chain) > 0) {
		size_t wanted = rng->chain.in_bytes < RNG_REQUEST_MAX ? rng->chain.in_bytes : RNG_REQUEST_MAX;
		ssize_t got = getrandom(rng->buffer, wanted, GRND_NONBLOCK);

		got = virtio_chain_write(dev, &rng->chain, 0, rng->buffer, got < 0 ? 0 : got);
		virtqueue_push(vq, rng->chain.head, got);
		virtqueue_set_notify(vq, true);
		served++;
	}
	virtqueue_interrupt(vq);
	if (served == dev->queue_size)
		virtqueue_renotify(vq);
}

static void rng_destroy(struct virtio_device *dev)
{
	free(dev);
}

static const struct virtio_device_ops rng_ops = {.queue_notify = rng_notify, .destroy = rng_destroy};

int virtio_rng_create(struct guest_mem *mem, struct virtio_device **out, struct error *err)
{
	struct virtio_rng *rng = calloc(1, sizeof(*rng));

	if (!rng)
		return error_set(err, -ENOMEM, "no memory for the entropy device");
	rng->dev.name = "virtio-rng";
	rng->dev.id = VIRTIO_ID_RNG;
	rng->dev.pci_class = 0x00ff00;
	rng->dev.ops = &rng_ops;
	rng->dev.mem = mem;
	rng->dev.features = VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX;
	rng->dev.queue_count = 1;
	rng->dev.queue_size = 8;
	virtio_reset(&rng->dev);
	*out = &rng->dev;
	return 0;
}
