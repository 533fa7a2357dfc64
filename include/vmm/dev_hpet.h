/* HPET (IA-PC HPET specification 1.0a): 3 comparators, 64-bit counter at 100 MHz. Device lock held for every call. */
#ifndef VMM_DEV_HPET_H
#define VMM_DEV_HPET_H

#include "vmm/bus.h"

struct event_loop;
struct error;
struct hpet;
struct pit;
struct rtc;

#define HPET_BASE 0xfed00000u
#define HPET_SIZE 0x400u
#define HPET_PERIOD_FS 10000000u	   /* femtoseconds in a tick */
#define HPET_ID 0x8086a201u		   /* low half of the capability register, for the ACPI table */
#define HPET_ROUTES 0x00f00000u		   /* IOAPIC pins that a comparator may use */

struct hpet_wiring {
	struct irq_line gsi[24];   /* used: those in HPET_ROUTES */
	struct irq_line irq0, irq8; /* for legacy replacement: sources of their own */
	struct msi_sink msi;	   /* FSB delivery; without send the comparators do not offer it */
	struct pit *pit;	   /* disconnected during legacy replacement; may be NULL */
	struct rtc *rtc;
	struct answer_sink answers; /* offered the main counter */
};

/* *wiring is copied. Destroy before pit, rtc, the bus and the loop. */
int hpet_create(struct bus *bus, struct event_loop *loop, const struct hpet_wiring *wiring, struct hpet **hpet,
	struct error *err);
void hpet_destroy(struct hpet *hpet);
void hpet_reset(struct hpet *hpet);

#endif
