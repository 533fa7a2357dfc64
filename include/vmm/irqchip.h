/*
 * The interrupt controllers outside the CPU: a pair of 8259A PICs, an IOAPIC, and the translation of MSI writes.
 * Shared by both backends; the local APIC is the backend's own, so everything that must reach one leaves through
 * the apic_sink given at creation.
 *
 * Inputs: 0–15 are the ISA interrupts, wired to the PICs and to the IOAPIC pin of the same number, save IRQ 0,
 * which is IOAPIC pin 2 (the ACPI tables must say so by an interrupt source override), and 2, the cascade, which is
 * wired to nothing. 16–23 are IOAPIC pins alone.
 *
 * Unless said otherwise: device lock held.
 */
#ifndef VMM_IRQCHIP_H
#define VMM_IRQCHIP_H

#include <stdbool.h>
#include <stdint.h>

#include "vmm/bus.h"

#define IOAPIC_BASE 0xfec00000u
#define IOAPIC_SIZE 0x1000u
#define IOAPIC_PINS 24
#define IOAPIC_VERSION 0x20 /* has the EOI register at 0x40 */

/* Delivery modes (SDM vol. 3, 11.5.1). */
enum apic_delivery {
	APIC_FIXED = 0,
	APIC_LOWEST = 1,
	APIC_SMI = 2,
	APIC_NMI = 4,
	APIC_INIT = 5,
	APIC_STARTUP = 6,
	APIC_EXTINT = 7,
};

struct apic_message {
	uint32_t dest;	       /* APIC ID, or logical destination; 8 bits, 0xff = all */
	bool logical;	       /* destination mode */
	uint8_t delivery_mode; /* enum apic_delivery */
	uint8_t vector;
	bool level; /* trigger mode; the EOI of a level-triggered vector must come to irqchip_eoi() */
	bool assert; /* always true: de-assertions end here */
};

struct apic_sink {
	/* Delivers to the local APICs that match. From the device lock, or (MSI) from any thread: must do its own locking. */
	void (*deliver)(void *ctx, const struct apic_message *msg);
	/* The PIC's INTR output, wired to LINT0 of vcpu 0. Called on changes only. */
	void (*extint)(void *ctx, bool level);
	/* The vectors now programmed as level-triggered; bit v of the 256: a vcpu must report the EOI of these. On changes. */
	void (*eoi_vectors)(void *ctx, const uint64_t bitmap[4]);
	void *ctx;
};

struct irqchip;
struct error;

/* Registers PIC (0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1) and IOAPIC on the bus. *sink is copied. Destroy before the bus. */
int irqchip_create(struct bus *bus, const struct apic_sink *sink, struct irqchip **chip, struct error *err);
void irqchip_destroy(struct irqchip *chip);
/* Power-on state; the levels of the lines stay as their devices drive them. */
void irqchip_reset(struct irqchip *chip);

/*
 * A new source on an input (0–23). Sources of one input are wired-OR, so devices may share it. At most 32 sources for
 * each input; beyond that, or for an input that does not exist, the line goes nowhere.
 */
struct irq_line irqchip_line(struct irqchip *chip, unsigned input);

/* MSI: any thread, no lock needed. */
struct msi_sink irqchip_msi(struct irqchip *chip);

/* The INTA cycle of a vcpu that accepts ExtINT: acknowledges and returns the vector (a spurious one if INTR went away). */
int irqchip_intack(struct irqchip *chip);
/* A local APIC broadcast the EOI of a level-triggered vector. */
void irqchip_eoi(struct irqchip *chip, uint8_t vector);

#endif
