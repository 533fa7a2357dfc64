/*
 * The device by which bare-metal test suites check a machine from inside (QEMU's pc-testdev, hw/misc/pc-testdev.c): a
 * port and a page of MMIO that keep what is written, and a port for each interrupt line. There only on request.
 * Device lock held for every call.
 *
 *   port e0..e3       a register of 32 bits, by bytes        2000..2017   writes set the level of input 0 to 23
 *   port e4..e7       takes writes and does nothing          ff000000     64 KiB of memory behind MMIO
 */
#ifndef VMM_DEV_TESTDEV_H
#define VMM_DEV_TESTDEV_H

#include "vmm/bus.h"

#define TESTDEV_LINES 24

struct error;
struct testdev;

/* lines: TESTDEV_LINES of them, copied. */
int testdev_create(struct bus *bus, const struct irq_line *lines, struct testdev **dev, struct error *err);
void testdev_destroy(struct testdev *dev);

#endif
