/*
 * Virtio 1.2 devices, independent of the transport: the status machine (§2.1), feature negotiation (§2.2) and split
 * virtqueues (§2.7) with indirect descriptors and event index.
 *
 * A queue is hostile input. Every address must be guest RAM, chains are no longer than the queue, an index that jumps
 * further than the queue is long is an error. An error breaks the device (DEVICE_NEEDS_RESET) and nothing else.
 * A reset with requests in flight stays visible in device_status (it does not read 0) until the last of them is
 * done, so that no host I/O writes to memory that the guest has taken back. All with the device lock held.
 */
#ifndef VMM_VIRTIO_H
#define VMM_VIRTIO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct error;
struct guest_mem;
struct event_loop;
struct virtio_device;

#define VIRTIO_QUEUES_MAX 8
#define VIRTQUEUE_SIZE_MAX 256

enum virtio_id { VIRTIO_ID_NET = 1, VIRTIO_ID_BLOCK = 2, VIRTIO_ID_CONSOLE = 3, VIRTIO_ID_RNG = 4, VIRTIO_ID_SCSI = 8 };

/* device_status, §2.1. */
#define VIRTIO_STATUS_ACKNOWLEDGE 0x01
#define VIRTIO_STATUS_DRIVER 0x02
#define VIRTIO_STATUS_DRIVER_OK 0x04
#define VIRTIO_STATUS_FEATURES_OK 0x08
#define VIRTIO_STATUS_NEEDS_RESET 0x40
#define VIRTIO_STATUS_FAILED 0x80

/* Reserved feature bits, §6. */
#define VIRTIO_F_INDIRECT_DESC (1ull << 28)
#define VIRTIO_F_EVENT_IDX (1ull << 29)
#define VIRTIO_F_VERSION_1 (1ull << 32)

#define VIRTIO_NO_VECTOR 0xffff

struct virtqueue_state {
	uint64_t desc, driver, device; /* gpa of descriptor table, available ring, used ring */
	uint16_t size;
	uint16_t vector; /* MSI-X vector or VIRTIO_NO_VECTOR */
	uint16_t avail_next; /* free-running index of the next available entry to take */
	uint16_t used_next;
	uint16_t signalled_used; /* used_next at the last interrupt, for the event index */
	uint8_t enabled;
	uint8_t signalled_valid;
};

struct virtqueue {
	struct virtqueue_state state;
	struct virtio_device *dev;
	unsigned index;
	/* hva of the three rings while enabled. */
	uint8_t *desc_hva, *avail_hva, *used_hva;
};

/* One buffer of a chain. */
struct virtio_segment {
	void *hva;
	uint64_t gpa;
	uint32_t length;
};

/* A descriptor chain: first the segments that the device reads, then those that it writes. */
struct virtio_chain {
	uint16_t head;
	unsigned out_count, in_count;
	uint64_t out_bytes, in_bytes;
	struct virtio_segment segments[VIRTQUEUE_SIZE_MAX]; /* out first, in after it */
};

/* Each but queue_notify may be NULL. */
struct virtio_device_ops {
	/* The guest says that queue has work. Only when DRIVER_OK and the queue is enabled. */
	void (*queue_notify)(struct virtio_device *dev, unsigned queue);
	/* Forget everything. False if requests are in flight: virtio_reset_complete() is called by the device later. */
	bool (*reset)(struct virtio_device *dev);
	/* Waits until no request is in flight (machine reset, snapshot); may block. */
	void (*drain)(struct virtio_device *dev);
	/* DRIVER_OK has been set. */
	void (*driver_ok)(struct virtio_device *dev);
	/* The guest wrote config space (after the bytes were offered; they are not stored by themselves). */
	void (*config_written)(struct virtio_device *dev, unsigned offset, unsigned size, uint64_t value);
	/* Frees the device. Waits for I/O in flight. */
	void (*destroy)(struct virtio_device *dev);
};

/* How a device interrupts the guest. */
struct virtio_transport_ops {
	void (*queue_interrupt)(void *transport, unsigned queue);
	void (*config_interrupt)(void *transport);
	/* queue_notify again from the event loop, so that a guest that never stops adding buffers cannot hold it. */
	void (*queue_renotify)(void *transport, unsigned queue);
};

struct virtio_state {
	uint64_t driver_features;
	uint32_t feature_select, driver_feature_select;
	uint16_t queue_select;
	uint16_t config_vector;
	uint8_t status;
	uint8_t reset_pending; /* in-flight requests outlive a reset */
	uint8_t config_generation;
	uint8_t isr; /* bit 0 queue, bit 1 configuration */
	uint32_t generation; /* counts resets */
};

struct virtio_device {
	struct virtio_state state;
	struct virtqueue queues[VIRTIO_QUEUES_MAX];
	/* Set at create. */
	const char *name;
	enum virtio_id id;
	uint32_t pci_class; /* 24 bits */
	const struct virtio_device_ops *ops;
	struct guest_mem *mem;
	uint64_t features; /* offered */
	unsigned queue_count;
	uint16_t queue_size;	/* maximum and default */
	uint8_t *config;	/* device configuration space, owned by the device */
	unsigned config_size;
	/* Set by the transport. */
	const struct virtio_transport_ops *transport_ops;
	void *transport;
	bool dma_off; /* the device may not reach memory; virtio_set_dma() */
};

/* ---- for transports ---- */

/* Status write: progress, FEATURES_OK check, reset when 0. */
void virtio_set_status(struct virtio_device *dev, uint8_t status);
uint8_t virtio_get_status(const struct virtio_device *dev);
void virtio_reset(struct virtio_device *dev);
/*
 * Whether the device may reach memory (PCI: bus master enable). Off: requests in flight end as usual, which may block
 * as drain() does, then no queue is touched. On: queues are looked at again.
 */
void virtio_set_dma(struct virtio_device *dev, bool on);
/* Enables a queue if its addresses are good; else the device needs a reset. */
void virtqueue_enable(struct virtqueue *vq);
/* Guest notification of a queue; ignored unless the device runs. */
void virtio_notify(struct virtio_device *dev, unsigned queue);
uint64_t virtio_config_read(const struct virtio_device *dev, unsigned offset, unsigned size);
void virtio_config_write(struct virtio_device *dev, unsigned offset, unsigned size, uint64_t value);

/* ---- for devices ---- */

/* True if the driver has accepted all of these feature bits. */
bool virtio_has(const struct virtio_device *dev, uint64_t features);
/* True while requests may be taken. */
bool virtio_running(const struct virtio_device *dev);
/* Called by a device whose reset() returned false when its last request in flight is gone. */
void virtio_reset_complete(struct virtio_device *dev);
/* The device cannot go on: DEVICE_NEEDS_RESET and a configuration interrupt. why is logged once. */
void virtio_break(struct virtio_device *dev, const char *why);
/* Device configuration changed: new generation, configuration interrupt. */
void virtio_config_changed(struct virtio_device *dev);

/* Takes the next chain. 1: *chain is filled; 0: none; -EPROTO: the queue is broken (virtio_break() was called). */
int virtqueue_pop(struct virtqueue *vq, struct virtio_chain *chain);
/* Undoes the last n pops (none of them pushed). */
void virtqueue_unpop(struct virtqueue *vq, unsigned n);
/* True if no chain is available. */
bool virtqueue_empty(struct virtqueue *vq);
/* How many chains the guest says are available (unchecked). */
uint16_t virtqueue_available(struct virtqueue *vq);
/* Sets, by event index or flags, whether the guest should notify about buffers that it adds after those available
 * now. After wanted = true the caller looks at the queue once more. */
void virtqueue_set_notify(struct virtqueue *vq, bool wanted);
/* Returns a chain to the guest with the number of bytes written to it; no interrupt yet. */
void virtqueue_push(struct virtqueue *vq, uint16_t head, uint32_t written);
/* As push in `n` parts: fills used slot used_next + at, to be published by virtqueue_publish(vq, n). */
void virtqueue_fill(struct virtqueue *vq, unsigned at, uint16_t head, uint32_t written);
void virtqueue_publish(struct virtqueue *vq, unsigned n);
/* Interrupts the guest if it wants to hear about what was pushed since the last time. */
void virtqueue_interrupt(struct virtqueue *vq);

/* Copies between a chain's readable (out) or writable (in) part and a buffer, from a byte offset within that part;
 * returns the number of bytes copied. Copies into the chain are reported to mem. */
size_t virtio_chain_read(const struct virtio_chain *chain, size_t offset, void *dst, size_t length);
size_t virtio_chain_write(struct virtio_device *dev, const struct virtio_chain *chain, size_t offset, const void *src,
	size_t length);

/* The same into segments that were kept from a chain, while its buffers are the device's. */
size_t virtio_segments_write(struct virtio_device *dev, const struct virtio_segment *segments, unsigned count, size_t offset,
	const void *src, size_t length);
/* The host's and the guest's view of `length` bytes of segments, from byte `skip` on. Returns the number of parts, at most count. */
unsigned virtio_segments_cut(const struct virtio_segment *segments, unsigned count, uint64_t skip, uint64_t length,
	struct iovec *iov, uint64_t *gpas);

/* Asks for queue_notify to be called again soon. */
void virtqueue_renotify(struct virtqueue *vq);

/* ---- devices ---- */

struct host_disk;
struct net_endpoint;

/* A disk (§5.2). Owns `disk` from now on. serial: up to 20 bytes, may be NULL. */
int virtio_blk_create(struct guest_mem *mem, struct host_disk *disk, const char *serial, struct virtio_device **dev,
	struct error *err);
/*
 * A SCSI controller (§5.6) with one CD-ROM drive, target 0, LUN 0, and `disk` in it as the disc. Owns `disk` from now on.
 * -EINVAL: less than one block of 2,048 bytes.
 */
int virtio_scsi_cd_create(struct guest_mem *mem, struct host_disk *disk, struct virtio_device **dev, struct error *err);
/* A network card (§5.1). Owns `endpoint` from now on. */
int virtio_net_create(struct guest_mem *mem, struct net_endpoint *endpoint, const uint8_t mac[6],
	struct virtio_device **dev, struct error *err);
/* Entropy (§5.4). */
int virtio_rng_create(struct guest_mem *mem, struct virtio_device **dev, struct error *err);
/* Frees a device that no transport owns (yet). */
void virtio_device_destroy(struct virtio_device *dev);

#endif
