/*
 * IOAPIC (Intel 82093AA data sheet, 290566; ICH9 data sheet 13.5 for version 0x20 and its EOI register).
 *
 * Redirection entry:
 *   63    56 55      17  16    15   14    13   12     11    10     8 7      0
 *  +--------+----------+----+-----+-----+----+------+-----+---------+--------+
 *  |  dest  |  zero    |mask|level| rIRR| pol|status| log.| mode    | vector |
 *  +--------+----------+----+-----+-----+----+------+-----+---------+--------+
 *
 * Invariants: while remote IRR is set, a level pin sends nothing; it is cleared by the EOI of the entry's vector, or
 * by making the entry edge-triggered. An edge on a masked pin is lost. Polarity is kept and ignored: the lines are
 * logical, active when true. Before an entry may deliver, its vector is in the set of vectors whose EOI the vcpus
 * report.
 */
#include "ioapic.h"

#include <string.h>

#define ENTRY_LOGICAL (1u << 11)
#define ENTRY_STATUS (1u << 12)
#define ENTRY_REMOTE_IRR (1u << 14)
#define ENTRY_LEVEL (1u << 15)
#define ENTRY_MASKED (1u << 16)
#define ENTRY_WRITABLE (0xff0000000001ffffull & ~(uint64_t)(ENTRY_STATUS | ENTRY_REMOTE_IRR))

enum { REG_SELECT = 0x00, REG_WINDOW = 0x10, REG_EOI = 0x40 };

static unsigned entry_mode(uint64_t entry)
{
	return entry >> 8 & 7;
}

/* Trigger mode means something for fixed and lowest-priority delivery alone. */
static bool entry_is_level(uint64_t entry)
{
	return (entry & ENTRY_LEVEL) && entry_mode(entry) <= APIC_LOWEST;
}

static void update_level_vectors(struct ioapic_state *ioapic, const struct apic_sink *sink)
{
	uint64_t set[4] = { 0 };

	for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
		uint8_t vector = (uint8_t)ioapic->redirect[pin];

		if (entry_is_level(ioapic->redirect[pin]))
			set[vector / 64] |= 1ull << vector % 64;
	}
	if (!memcmp(set, ioapic->level_vectors, sizeof(set)))
		return;
	memcpy(ioapic->level_vectors, set, sizeof(set));
	if (sink->eoi_vectors)
		sink->eoi_vectors(sink->ctx, ioapic->level_vectors);
}

static void deliver(struct ioapic_state *ioapic, const struct apic_sink *sink, unsigned pin)
{
	uint64_t entry = ioapic->redirect[pin];
	struct apic_message msg = {
		.dest = (uint32_t)(entry >> 56),
		.logical = entry & ENTRY_LOGICAL,
		.delivery_mode = (uint8_t)entry_mode(entry),
		.vector = (uint8_t)entry,
		.level = entry_is_level(entry),
		.assert = true,
	};

	if (msg.level)
		ioapic->redirect[pin] |= ENTRY_REMOTE_IRR;
	if (sink->deliver)
		sink->deliver(sink->ctx, &msg);
}

/* Sends a level pin's interrupt if its line, its mask and remote IRR allow. */
static void service_level(struct ioapic_state *ioapic, const struct apic_sink *sink, unsigned pin)
{
	uint64_t entry = ioapic->redirect[pin];

	if (entry_is_level(entry) && (ioapic->lines & 1u << pin) && !(entry & (ENTRY_MASKED | ENTRY_REMOTE_IRR)))
		deliver(ioapic, sink, pin);
}

void ioapic_reset(struct ioapic_state *ioapic, const struct apic_sink *sink)
{
	for (unsigned pin = 0; pin < IOAPIC_PINS; pin++)
		ioapic->redirect[pin] = ENTRY_MASKED;
	ioapic->select = 0;
	ioapic->id = 0;
	update_level_vectors(ioapic, sink);
}

void ioapic_set_line(struct ioapic_state *ioapic, const struct apic_sink *sink, unsigned pin, bool level)
{
	uint32_t bit = 1u << pin;
	bool rises = level && !(ioapic->lines & bit);

	ioapic->lines = level ? ioapic->lines | bit : ioapic->lines & ~bit;
	if (!rises)
		return;
	if (entry_is_level(ioapic->redirect[pin]))
		service_level(ioapic, sink, pin);
	else if (!(ioapic->redirect[pin] & ENTRY_MASKED))
		deliver(ioapic, sink, pin);
}

void ioapic_eoi(struct ioapic_state *ioapic, const struct apic_sink *sink, uint8_t vector)
{
	for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
		uint64_t entry = ioapic->redirect[pin];

		if ((uint8_t)entry != vector || !(entry & ENTRY_REMOTE_IRR))
			continue;
		ioapic->redirect[pin] &= ~(uint64_t)ENTRY_REMOTE_IRR;
		service_level(ioapic, sink, pin);
	}
}

static void write_entry(struct ioapic_state *ioapic, const struct apic_sink *sink, unsigned index, uint32_t value)
{
	unsigned pin = index / 2;
	uint64_t *entry = &ioapic->redirect[pin];
	uint64_t field = index & 1 ? ENTRY_WRITABLE >> 32 << 32 : ENTRY_WRITABLE & 0xffffffff;

	*entry = (*entry & ~field) | ((index & 1 ? (uint64_t)value << 32 : value) & field);
	if (!entry_is_level(*entry))
		*entry &= ~(uint64_t)ENTRY_REMOTE_IRR;
	update_level_vectors(ioapic, sink);
	service_level(ioapic, sink, pin);
}

static uint32_t read_register(const struct ioapic_state *ioapic)
{
	unsigned index = ioapic->select;

	switch (index) {
	case 0: /* ID */
	case 2: /* arbitration ID */
		return (uint32_t)ioapic->id << 24;
	case 1:
		return (IOAPIC_PINS - 1) << 16 | IOAPIC_VERSION;
	}
	if (index < 0x10 || index >= 0x10 + 2 * IOAPIC_PINS)
		return 0;
	return (uint32_t)(ioapic->redirect[(index - 0x10) / 2] >> (index & 1 ? 32 : 0));
}

uint32_t ioapic_read(const struct ioapic_state *ioapic, uint64_t offset)
{
	switch (offset) {
	case REG_SELECT:
		return ioapic->select;
	case REG_WINDOW:
		return read_register(ioapic);
	default:
		return 0;
	}
}

void ioapic_write(struct ioapic_state *ioapic, const struct apic_sink *sink, uint64_t offset, uint32_t value)
{
	unsigned index = ioapic->select;

	switch (offset) {
	case REG_SELECT:
		ioapic->select = (uint8_t)value;
		break;
	case REG_WINDOW:
		if (index == 0)
			ioapic->id = value >> 24 & 0x0f;
		else if (index >= 0x10 && index < 0x10 + 2 * IOAPIC_PINS)
			write_entry(ioapic, sink, index - 0x10, value);
		break;
	case REG_EOI:
		ioapic_eoi(ioapic, sink, (uint8_t)value);
		break;
	}
}
