/* The 82093AA's successor with an EOI register. Messages leave through the apic_sink. */
#ifndef IRQCHIP_IOAPIC_H
#define IRQCHIP_IOAPIC_H

#include <stdbool.h>
#include <stdint.h>

#include "vmm/irqchip.h"

struct ioapic_state {
	uint64_t redirect[IOAPIC_PINS];
	uint32_t lines; /* pin levels */
	uint8_t select; /* IOREGSEL */
	uint8_t id;
	uint64_t level_vectors[4]; /* as last told to the vcpus */
};

void ioapic_reset(struct ioapic_state *ioapic, const struct apic_sink *sink);
void ioapic_set_line(struct ioapic_state *ioapic, const struct apic_sink *sink, unsigned pin, bool level);
void ioapic_eoi(struct ioapic_state *ioapic, const struct apic_sink *sink, uint8_t vector);
uint32_t ioapic_read(const struct ioapic_state *ioapic, uint64_t offset);
void ioapic_write(struct ioapic_state *ioapic, const struct apic_sink *sink, uint64_t offset, uint32_t value);

#endif
