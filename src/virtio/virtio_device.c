/*
 * The part of a virtio device that all transports and devices share: device status (virtio 1.2 §2.1), feature
 * negotiation (§2.2), reset, configuration space (§2.5). Invariants: driver_features are fixed once FEATURES_OK is
 * accepted; a queue runs only between DRIVER_OK and the next reset or error, while the transport lets the device reach memory.
 */
#include "vmm/bytes.h"
#include "vmm/log.h"
#include "vmm/virtio.h"

bool virtio_has(const struct virtio_device *dev, uint64_t features)
{
	return (dev->state.driver_features & features) == features;
}

bool virtio_running(const struct virtio_device *dev)
{
	return !dev->state.reset_pending && !dev->dma_off &&
	       (dev->state.status & (VIRTIO_STATUS_DRIVER_OK | VIRTIO_STATUS_NEEDS_RESET | VIRTIO_STATUS_FAILED)) ==
		       VIRTIO_STATUS_DRIVER_OK;
}

uint8_t virtio_get_status(const struct virtio_device *dev)
{
	return dev->state.status;
}

static void queues_forget(struct virtio_device *dev)
{
	for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++) {
		struct virtqueue *vq = &dev->queues[i];

		vq->state = (struct virtqueue_state){.size = dev->queue_size, .vector = VIRTIO_NO_VECTOR};
		vq->dev = dev;
		vq->index = i;
		vq->desc_hva = vq->avail_hva = vq->used_hva = NULL;
	}
}

void virtio_reset(struct virtio_device *dev)
{
	uint8_t old_status = dev->state.status;
	bool was_pending = dev->state.reset_pending;

	dev->state = (struct virtio_state){
		.config_vector = VIRTIO_NO_VECTOR,
		.config_generation = dev->state.config_generation,
		.generation = dev->state.generation + 1,
		.reset_pending = was_pending,
	};
	queues_forget(dev);
	if (!was_pending && dev->ops->reset && !dev->ops->reset(dev))
		dev->state.reset_pending = 1;
	if (dev->state.reset_pending)
		dev->state.status = old_status;
}

void virtio_reset_complete(struct virtio_device *dev)
{
	if (!dev->state.reset_pending)
		return;
	dev->state.reset_pending = 0;
	dev->state.status = 0;
}

void virtio_set_status(struct virtio_device *dev, uint8_t status)
{
	uint8_t old = dev->state.status;

	if (!status) {
		virtio_reset(dev);
		return;
	}
	if (dev->state.reset_pending)
		return;
	/* The driver cannot take back what it has said, nor what the device says. */
	status = (status & ~VIRTIO_STATUS_NEEDS_RESET) | old;
	if (status & ~old & VIRTIO_STATUS_FEATURES_OK &&
		(dev->state.driver_features & ~dev->features || !virtio_has(dev, VIRTIO_F_VERSION_1)))
		status &= ~VIRTIO_STATUS_FEATURES_OK;
	if (!(status & VIRTIO_STATUS_FEATURES_OK))
		status &= ~VIRTIO_STATUS_DRIVER_OK;
	dev->state.status = status;
	if (status & ~old & VIRTIO_STATUS_DRIVER_OK && dev->ops->driver_ok)
		dev->ops->driver_ok(dev);
}

void virtio_set_dma(struct virtio_device *dev, bool on)
{
	if (on != dev->dma_off)
		return;
	if (!on && dev->ops->drain)
		dev->ops->drain(dev);
	dev->dma_off = !on;
	for (unsigned i = 0; on && i < dev->queue_count; i++)
		if (dev->queues[i].state.enabled)
			virtqueue_renotify(&dev->queues[i]);
}

void virtio_notify(struct virtio_device *dev, unsigned queue)
{
	if (queue < dev->queue_count && virtio_running(dev) && dev->queues[queue].state.enabled)
		dev->ops->queue_notify(dev, queue);
}

void virtio_break(struct virtio_device *dev, const char *why)
{
	if (dev->state.status & VIRTIO_STATUS_NEEDS_RESET)
		return;
	log_message(LOG_WARNING, "%s: %s; the device needs a reset by the guest", dev->name, why);
	dev->state.status |= VIRTIO_STATUS_NEEDS_RESET;
	if (dev->state.status & VIRTIO_STATUS_DRIVER_OK && dev->transport_ops)
		dev->transport_ops->config_interrupt(dev->transport);
}

void virtio_config_changed(struct virtio_device *dev)
{
	dev->state.config_generation++;
	if (dev->state.status & VIRTIO_STATUS_DRIVER_OK && dev->transport_ops)
		dev->transport_ops->config_interrupt(dev->transport);
}

uint64_t virtio_config_read(const struct virtio_device *dev, unsigned offset, unsigned size)
{
	uint64_t value = 0;

	for (unsigned i = 0; i < size; i++)
		if (offset + i < dev->config_size)
			value |= (uint64_t)dev->config[offset + i] << i * 8;
	return value;
}

void virtio_config_write(struct virtio_device *dev, unsigned offset, unsigned size, uint64_t value)
{
	if (offset < dev->config_size && size <= dev->config_size - offset && dev->ops->config_written)
		dev->ops->config_written(dev, offset, size, value);
}

void virtio_device_destroy(struct virtio_device *dev)
{
	if (dev)
		dev->ops->destroy(dev);
}
