/* 8254 interval timer (ports 0x40–0x43) and system control port B (0x61). Device lock held for every call. */
#ifndef VMM_DEV_PIT_H
#define VMM_DEV_PIT_H

#include <stdbool.h>

#include "vmm/bus.h"

struct event_loop;
struct error;
struct pit;

#define PIT_HZ 1193182u

/* irq0: channel 0's output. Destroy before the bus and the loop. */
int pit_create(struct bus *bus, struct event_loop *loop, struct irq_line irq0, struct pit **pit, struct error *err);
void pit_destroy(struct pit *pit);
void pit_reset(struct pit *pit);

/* Disconnects channel 0 from IRQ 0 (HPET legacy replacement) or connects it again. */
void pit_connect_irq(struct pit *pit, bool connected);

#endif
