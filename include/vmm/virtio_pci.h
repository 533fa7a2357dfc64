/*
 * Virtio over PCI (virtio 1.2 §4.1), modern only. BAR 1 holds MSI-X, BAR 4 (64-bit, 16 KiB) the registers:
 *
 *   0x0000 common configuration   0x1000 ISR   0x2000 device configuration   0x3000 + 4 × queue: notification
 *
 * A queue notification arrives as a bus write, or over an eventfd that whoever runs the guest signals instead of
 * making the bus access (an ioeventfd, or its twin in the software backend). Both do the same.
 */
#ifndef VMM_VIRTIO_PCI_H
#define VMM_VIRTIO_PCI_H

#include <stdint.h>

struct error;
struct event_loop;
struct pci_bus;
struct virtio_device;
struct virtio_pci;

struct virtio_notify {
	uint64_t gpa;	/* any write of 1, 2 or 4 bytes here notifies; 0 while the BAR is not decoded */
	unsigned queue;
	int eventfd;	/* owned by the device */
};

/* Puts dev (owned from now on, also by pci_bus_destroy()) on the bus; slot 0: the first free one. */
int virtio_pci_create(struct pci_bus *pci, unsigned slot, struct event_loop *loop, struct virtio_device *dev,
	struct virtio_pci **vpci, struct error *err);

/* The notification addresses at the moment. Returns their number (at most max). */
int virtio_pci_notify_list(struct virtio_pci *vpci, struct virtio_notify *out, int max);
/* fn(ctx) is called, device lock held, whenever the list may have changed. One listener. */
void virtio_pci_set_notify_changed(struct virtio_pci *vpci, void (*fn)(void *ctx), void *ctx);
struct virtio_device *virtio_pci_device(struct virtio_pci *vpci);
/* Its device number on bus 0. */
unsigned virtio_pci_slot(const struct virtio_pci *vpci);

#endif
