/*
 * The PCI transport, virtio 1.2 §4.1, without the legacy interface. The guest finds the register blocks through vendor
 * capabilities (§4.1.4) and can also reach them through configuration space (§4.1.4.9), which firmware uses.
 *
 *   vendor capability: | 0 id | 1 next | 2 length | 3 type | 4 bar | 5 id, padding | 8 offset | 12 length | …
 *
 * A notification never runs the queue on the vcpu that made it: the bus write signals the queue's eventfd, as an
 * ioeventfd would, and the event loop serves the queue.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "vmm/bytes.h"
#include "vmm/error.h"
#include "vmm/event.h"
#include "vmm/pci.h"
#include "vmm/virtio.h"
#include "vmm/virtio_pci.h"

#define VENDOR_VIRTIO 0x1af4
#define DEVICE_BASE 0x1040
#define REGISTER_BAR 4
#define REGISTER_BAR_SIZE 0x4000
#define MSIX_BAR 1

enum block { BLOCK_COMMON, BLOCK_ISR, BLOCK_DEVICE, BLOCK_NOTIFY }; /* offset >> 12 in the BAR */
enum cap_type { CAP_COMMON = 1, CAP_NOTIFY = 2, CAP_ISR = 3, CAP_DEVICE = 4, CAP_PCI_CFG = 5 };
#define NOTIFY_MULTIPLIER 4

/* Common configuration, §4.1.4.3. */
enum {
	COMMON_DEVICE_FEATURE_SELECT = 0x00,
	COMMON_DEVICE_FEATURE = 0x04,
	COMMON_DRIVER_FEATURE_SELECT = 0x08,
	COMMON_DRIVER_FEATURE = 0x0c,
	COMMON_CONFIG_VECTOR = 0x10,
	COMMON_NUM_QUEUES = 0x12,
	COMMON_STATUS = 0x14,
	COMMON_GENERATION = 0x15,
	COMMON_QUEUE_SELECT = 0x16,
	COMMON_QUEUE_SIZE = 0x18,
	COMMON_QUEUE_VECTOR = 0x1a,
	COMMON_QUEUE_ENABLE = 0x1c,
	COMMON_QUEUE_NOTIFY_OFF = 0x1e,
	COMMON_QUEUE_DESC = 0x20,
	COMMON_QUEUE_DRIVER = 0x28,
	COMMON_QUEUE_DEVICE = 0x30,
};

struct notifier {
	struct virtio_pci *vpci;
	unsigned queue;
	int fd;
	struct event_source *source;
};

struct virtio_pci {
	struct pci_device pci;
	struct virtio_device *dev;
	struct notifier notifiers[VIRTIO_QUEUES_MAX];
	void (*notify_changed)(void *ctx);
	void *notify_changed_ctx;
	unsigned window_cap; /* the PCI configuration access capability */
};

/* ---- interrupts ---- */

static void interrupt(struct virtio_pci *vpci, uint16_t vector, uint8_t isr)
{
	if (pci_msix_enabled(&vpci->pci)) {
		if (vector != VIRTIO_NO_VECTOR)
			pci_msix_send(&vpci->pci, vector);
		return;
	}
	vpci->dev->state.isr |= isr;
	pci_intx_set(&vpci->pci, true);
}

static void queue_interrupt(void *transport, unsigned queue)
{
	struct virtio_pci *vpci = transport;

	interrupt(vpci, vpci->dev->queues[queue].state.vector, 1);
}

static void config_interrupt(void *transport)
{
	struct virtio_pci *vpci = transport;

	interrupt(vpci, vpci->dev->state.config_vector, 2);
}

static void signal_eventfd(int fd)
{
	uint64_t one = 1;

	/* Fails only if the counter is full, and then the queue is about to be served anyway. */
	if (write(fd, &one, sizeof(one)) < 0)
		return;
}

static void queue_renotify(void *transport, unsigned queue)
{
	struct virtio_pci *vpci = transport;

	if (vpci->notifiers[queue].fd >= 0)
		signal_eventfd(vpci->notifiers[queue].fd);
}

static const struct virtio_transport_ops transport_ops = {queue_interrupt, config_interrupt, queue_renotify};

/* ---- common configuration ---- */

static struct virtqueue *selected_queue(struct virtio_device *dev)
{
	return dev->state.queue_select < dev->queue_count ? &dev->queues[dev->state.queue_select] : NULL;
}

static uint64_t queue_read(struct virtqueue *vq, unsigned offset)
{
	if (!vq)
		return 0;
	switch (offset) {
	case COMMON_QUEUE_SIZE: return vq->state.size;
	case COMMON_QUEUE_VECTOR: return vq->state.vector;
	case COMMON_QUEUE_ENABLE: return vq->state.enabled;
	case COMMON_QUEUE_NOTIFY_OFF: return vq->index;
	case COMMON_QUEUE_DESC: return vq->state.desc;
	case COMMON_QUEUE_DESC + 4: return vq->state.desc >> 32;
	case COMMON_QUEUE_DRIVER: return vq->state.driver;
	case COMMON_QUEUE_DRIVER + 4: return vq->state.driver >> 32;
	case COMMON_QUEUE_DEVICE: return vq->state.device;
	case COMMON_QUEUE_DEVICE + 4: return vq->state.device >> 32;
	default: return 0;
	}
}

static uint64_t common_read(struct virtio_pci *vpci, unsigned offset)
{
	struct virtio_device *dev = vpci->dev;

	switch (offset) {
	case COMMON_DEVICE_FEATURE_SELECT: return dev->state.feature_select;
	case COMMON_DEVICE_FEATURE:
		return dev->state.feature_select < 2 ? dev->features >> 32 * dev->state.feature_select : 0;
	case COMMON_DRIVER_FEATURE_SELECT: return dev->state.driver_feature_select;
	case COMMON_DRIVER_FEATURE:
		return dev->state.driver_feature_select < 2
			       ? dev->state.driver_features >> 32 * dev->state.driver_feature_select
			       : 0;
	case COMMON_CONFIG_VECTOR: return dev->state.config_vector;
	case COMMON_NUM_QUEUES: return dev->queue_count;
	case COMMON_STATUS: return virtio_get_status(dev);
	case COMMON_GENERATION: return dev->state.config_generation;
	case COMMON_QUEUE_SELECT: return dev->state.queue_select;
	default: return queue_read(selected_queue(dev), offset);
	}
}

static uint16_t valid_vector(struct virtio_pci *vpci, uint16_t vector)
{
	return vector < vpci->pci.msix_vectors ? vector : VIRTIO_NO_VECTOR;
}

static void set_half(uint64_t *value, unsigned high, uint32_t half)
{
	if (high)
		*value = (*value & 0xffffffff) | (uint64_t)half << 32;
	else
		*value = (*value & ~0xffffffffull) | half;
}

static void queue_write(struct virtio_pci *vpci, struct virtqueue *vq, unsigned offset, uint32_t value)
{
	if (!vq)
		return;
	if (offset == COMMON_QUEUE_VECTOR) {
		vq->state.vector = valid_vector(vpci, value);
		return;
	}
	if (vq->state.enabled)
		return;
	switch (offset) {
	case COMMON_QUEUE_SIZE: vq->state.size = value; break;
	case COMMON_QUEUE_ENABLE:
		if (value == 1)
			virtqueue_enable(vq);
		break;
	case COMMON_QUEUE_DESC:
	case COMMON_QUEUE_DESC + 4: set_half(&vq->state.desc, offset & 4, value); break;
	case COMMON_QUEUE_DRIVER:
	case COMMON_QUEUE_DRIVER + 4: set_half(&vq->state.driver, offset & 4, value); break;
	case COMMON_QUEUE_DEVICE:
	case COMMON_QUEUE_DEVICE + 4: set_half(&vq->state.device, offset & 4, value); break;
	}
}

static void common_write(struct virtio_pci *vpci, unsigned offset, uint32_t value)
{
	struct virtio_device *dev = vpci->dev;

	switch (offset) {
	case COMMON_DEVICE_FEATURE_SELECT: dev->state.feature_select = value; break;
	case COMMON_DRIVER_FEATURE_SELECT: dev->state.driver_feature_select = value; break;
	case COMMON_DRIVER_FEATURE:
		if (dev->state.driver_feature_select < 2 && !(dev->state.status & VIRTIO_STATUS_FEATURES_OK))
			set_half(&dev->state.driver_features, dev->state.driver_feature_select, value);
		break;
	case COMMON_CONFIG_VECTOR: dev->state.config_vector = valid_vector(vpci, value); break;
	case COMMON_STATUS:
		virtio_set_status(dev, value);
		if (!dev->state.isr)
			pci_intx_set(&vpci->pci, false);
		break;
	case COMMON_QUEUE_SELECT: dev->state.queue_select = value; break;
	default: queue_write(vpci, selected_queue(dev), offset, value);
	}
}

/* ---- the register BAR ---- */

static void notify_write(struct virtio_pci *vpci, unsigned queue)
{
	if (queue >= vpci->dev->queue_count)
		return;
	if (vpci->notifiers[queue].fd >= 0)
		signal_eventfd(vpci->notifiers[queue].fd);
	else
		virtio_notify(vpci->dev, queue);
}

static uint64_t isr_read(struct virtio_pci *vpci)
{
	uint8_t isr = vpci->dev->state.isr;

	vpci->dev->state.isr = 0;
	pci_intx_set(&vpci->pci, false);
	return isr;
}

static uint64_t bar_read(void *opaque, uint64_t offset, unsigned size)
{
	struct virtio_pci *vpci = opaque;
	unsigned at = offset & 0xfff;

	switch ((enum block)(offset >> 12)) {
	case BLOCK_COMMON:
		if (size == 8)
			return (common_read(vpci, at) & 0xffffffff) | common_read(vpci, at + 4) << 32;
		return common_read(vpci, at);
	case BLOCK_ISR: return at == 0 ? isr_read(vpci) : 0;
	case BLOCK_DEVICE: return virtio_config_read(vpci->dev, at, size);
	case BLOCK_NOTIFY: return 0;
	}
	return 0;
}

static void bar_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	struct virtio_pci *vpci = opaque;
	unsigned at = offset & 0xfff;

	switch ((enum block)(offset >> 12)) {
	case BLOCK_COMMON:
		common_write(vpci, at, value);
		if (size == 8)
			common_write(vpci, at + 4, value >> 32);
		break;
	case BLOCK_DEVICE: virtio_config_write(vpci->dev, at, size, value); break;
	case BLOCK_NOTIFY: notify_write(vpci, at / NOTIFY_MULTIPLIER); break;
	case BLOCK_ISR: break;
	}
}

static const struct bus_ops bar_ops = {bar_read, bar_write};

/* ---- the window in configuration space, §4.1.4.9 ---- */

static bool window_target(struct virtio_pci *vpci, unsigned offset, unsigned size, uint32_t *at, uint32_t *length)
{
	const uint8_t *cap = vpci->pci.state.config + vpci->window_cap;

	if (offset >= vpci->window_cap + 20 || offset + size <= vpci->window_cap + 16)
		return false;
	*at = bytes_load(cap + 8, 4);
	*length = bytes_load(cap + 12, 4);
	return cap[4] == REGISTER_BAR && (*length == 1 || *length == 2 || *length == 4) && !(*at & (*length - 1)) &&
	       *at < REGISTER_BAR_SIZE;
}

static void config_reading(struct pci_device *pci, unsigned offset, unsigned size)
{
	struct virtio_pci *vpci = (struct virtio_pci *)pci;
	uint32_t at, length;

	if (window_target(vpci, offset, size, &at, &length))
		bytes_store(pci->state.config + vpci->window_cap + 16, length, bar_read(vpci, at, length));
}

static void config_written(struct pci_device *pci, unsigned offset, unsigned size)
{
	struct virtio_pci *vpci = (struct virtio_pci *)pci;
	uint32_t at, length;

	if (offset < PCI_COMMAND + 2 && offset + size > PCI_COMMAND)
		virtio_set_dma(vpci->dev, pci->state.config[PCI_COMMAND] & PCI_COMMAND_MASTER);
	if (window_target(vpci, offset, size, &at, &length))
		bar_write(vpci, at, length, bytes_load(pci->state.config + vpci->window_cap + 16, length));
}

static void bar_changed(struct pci_device *pci, unsigned bar)
{
	struct virtio_pci *vpci = (struct virtio_pci *)pci;

	if (bar == REGISTER_BAR && vpci->notify_changed)
		vpci->notify_changed(vpci->notify_changed_ctx);
}

static void reset(struct pci_device *pci)
{
	struct virtio_device *dev = ((struct virtio_pci *)pci)->dev;

	virtio_reset(dev);
	dev->dma_off = true;
	/* The machine is about to fill RAM anew: nothing may still be on its way there. */
	if (dev->state.reset_pending && dev->ops->drain)
		dev->ops->drain(dev);
}

/* ---- notification by eventfd ---- */

static void notified(void *opaque, int fd, uint32_t events)
{
	struct notifier *notifier = opaque;
	uint64_t count;

	(void)events;
	if (read(fd, &count, sizeof(count)) == sizeof(count))
		virtio_notify(notifier->vpci->dev, notifier->queue);
}

static int notifiers_create(struct virtio_pci *vpci, struct event_loop *loop, struct error *err)
{
	for (unsigned queue = 0; loop && queue < vpci->dev->queue_count; queue++) {
		struct notifier *notifier = &vpci->notifiers[queue];

		notifier->vpci = vpci;
		notifier->queue = queue;
		notifier->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		if (notifier->fd < 0)
			return error_set(err, -errno, "cannot create an eventfd for %s: %s", vpci->dev->name,
				strerror(errno));
		notifier->source = event_watch(loop, notifier->fd, EPOLLIN, notified, notifier);
		if (!notifier->source)
			return error_set(err, -ENOMEM, "cannot watch an eventfd for %s", vpci->dev->name);
	}
	return 0;
}

static void notifiers_destroy(struct virtio_pci *vpci)
{
	for (unsigned queue = 0; queue < VIRTIO_QUEUES_MAX; queue++) {
		if (vpci->notifiers[queue].source)
			event_unwatch(vpci->notifiers[queue].source);
		if (vpci->notifiers[queue].fd >= 0)
			close(vpci->notifiers[queue].fd);
	}
}

int virtio_pci_notify_list(struct virtio_pci *vpci, struct virtio_notify *out, int max)
{
	uint64_t base = pci_bar_address(&vpci->pci, REGISTER_BAR);
	int count = 0;

	for (unsigned queue = 0; queue < vpci->dev->queue_count && count < max; queue++)
		if (vpci->notifiers[queue].fd >= 0)
			out[count++] = (struct virtio_notify){
				.gpa = base ? base + (BLOCK_NOTIFY << 12) + NOTIFY_MULTIPLIER * queue : 0,
				.queue = queue,
				.eventfd = vpci->notifiers[queue].fd,
			};
	return count;
}

void virtio_pci_set_notify_changed(struct virtio_pci *vpci, void (*fn)(void *ctx), void *ctx)
{
	vpci->notify_changed = fn;
	vpci->notify_changed_ctx = ctx;
}

unsigned virtio_pci_slot(const struct virtio_pci *vpci)
{
	return vpci->pci.slot;
}

struct virtio_device *virtio_pci_device(struct virtio_pci *vpci)
{
	return vpci->dev;
}

/* ---- life ---- */

static void destroy(struct pci_device *pci)
{
	struct virtio_pci *vpci = (struct virtio_pci *)pci;

	notifiers_destroy(vpci);
	virtio_device_destroy(vpci->dev);
	free(vpci);
}

static const struct pci_device_ops pci_ops = {config_reading, config_written, bar_changed, reset, destroy};

static unsigned add_cap(struct virtio_pci *vpci, enum cap_type type, enum block block, uint32_t length, unsigned size)
{
	unsigned offset = pci_device_add_cap(&vpci->pci, PCI_CAP_VENDOR, size);
	uint8_t *cap = vpci->pci.state.config + offset;

	cap[2] = size;
	cap[3] = type;
	cap[4] = REGISTER_BAR;
	bytes_store(cap + 8, 4, type == CAP_PCI_CFG ? 0 : (uint32_t)block << 12);
	bytes_store(cap + 12, 4, length);
	return offset;
}

static void add_caps(struct virtio_pci *vpci)
{
	unsigned notify;

	add_cap(vpci, CAP_COMMON, BLOCK_COMMON, 0x1000, 16);
	add_cap(vpci, CAP_ISR, BLOCK_ISR, 0x1000, 16);
	if (vpci->dev->config_size)
		add_cap(vpci, CAP_DEVICE, BLOCK_DEVICE, 0x1000, 16);
	notify = add_cap(vpci, CAP_NOTIFY, BLOCK_NOTIFY, 0x1000, 20);
	bytes_store(vpci->pci.state.config + notify + 16, 4, NOTIFY_MULTIPLIER);
	vpci->window_cap = add_cap(vpci, CAP_PCI_CFG, BLOCK_COMMON, 0, 20);
	vpci->pci.write_mask[vpci->window_cap + 4] = 0xff;
	memset(vpci->pci.write_mask + vpci->window_cap + 8, 0xff, 12);
}

int virtio_pci_create(struct pci_bus *bus, unsigned slot, struct event_loop *loop, struct virtio_device *dev,
	struct virtio_pci **out, struct error *err)
{
	struct virtio_pci *vpci = calloc(1, sizeof(*vpci));
	int ret;

	if (!vpci) {
		error_set(err, -ENOMEM, "no memory for %s", dev->name);
		virtio_device_destroy(dev);
		return -ENOMEM;
	}
	for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++)
		vpci->notifiers[i].fd = -1;
	vpci->dev = dev;
	pci_device_init(&vpci->pci, dev->name, &pci_ops, VENDOR_VIRTIO, DEVICE_BASE + dev->id, dev->pci_class, 1);
	bytes_store(vpci->pci.state.config + PCI_SUBSYSTEM_VENDOR_ID, 2, VENDOR_VIRTIO);
	bytes_store(vpci->pci.state.config + PCI_SUBSYSTEM_ID, 2, DEVICE_BASE + dev->id);
	pci_device_set_pin(&vpci->pci);
	add_caps(vpci);
	pci_device_add_msix(&vpci->pci, MSIX_BAR, dev->queue_count + 1);
	pci_device_set_bar(&vpci->pci, REGISTER_BAR, REGISTER_BAR_SIZE, true, true, &bar_ops, vpci);
	ret = notifiers_create(vpci, loop, err);
	if (!ret)
		ret = pci_device_add(bus, &vpci->pci, slot, err);
	if (ret) {
		destroy(&vpci->pci);
		return ret;
	}
	dev->transport_ops = &transport_ops;
	dev->transport = vpci;
	dev->dma_off = true;
	virtio_reset(dev);
	*out = vpci;
	return 0;
}
