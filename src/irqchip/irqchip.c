/*
 * The interrupt controllers as one part: wires each input to the PICs and the IOAPIC, puts their registers on the
 * bus, and translates MSI writes. See vmm/irqchip.h for the inputs.
 */
#include "vmm/irqchip.h"

#include <errno.h>
#include <stdlib.h>

#include "ioapic.h"
#include "pic.h"
#include "vmm/error.h"

#define SOURCES 32

struct irqchip_state {
	struct pic_pair_state pic;
	struct ioapic_state ioapic;
	uint32_t levels[IOAPIC_PINS]; /* for each input: the sources that are high */
	bool intr;		      /* the level last given to extint() */
};

struct irqchip {
	/* Set at create. */
	struct bus *bus;
	struct apic_sink sink;
	/* Set while the machine is assembled. */
	uint8_t sources[IOAPIC_PINS];
	/* Device lock. */
	struct irqchip_state state;
};

static void update_intr(struct irqchip *chip)
{
	bool intr = pic_pair_intr(&chip->state.pic);

	if (intr == chip->state.intr)
		return;
	chip->state.intr = intr;
	if (chip->sink.extint)
		chip->sink.extint(chip->sink.ctx, intr);
}

static void set_input(void *ctx, unsigned wire, bool level)
{
	struct irqchip *chip = ctx;
	unsigned input = wire & 0xff, pin = input ? input : 2;
	uint32_t *levels = &chip->state.levels[input];
	uint32_t bit = 1u << (wire >> 8);
	bool before = *levels, after;

	*levels = level ? *levels | bit : *levels & ~bit;
	after = *levels;
	if (before == after)
		return;
	if (input < 16) {
		pic_pair_set_line(&chip->state.pic, input, after);
		update_intr(chip);
	}
	ioapic_set_line(&chip->state.ioapic, &chip->sink, pin, after);
}

struct irq_line irqchip_line(struct irqchip *chip, unsigned input)
{
	if (input >= IOAPIC_PINS || input == 2 || chip->sources[input] >= SOURCES)
		return (struct irq_line){ 0 };
	return (struct irq_line){ set_input, chip, input | (unsigned)chip->sources[input]++ << 8 };
}

/*
 * MSI address (SDM vol. 3, 11.11.1): 31:20 = 0xfee, 19:12 destination, 3 redirection hint, 2 logical.
 * Data (11.11.2): 7:0 vector, 10:8 delivery mode, 14 assert, 15 level.
 */
static void send_msi(void *ctx, uint64_t addr, uint32_t data)
{
	struct irqchip *chip = ctx;
	struct apic_message msg = {
		.dest = addr >> 12 & 0xff,
		.logical = addr & 4,
		.delivery_mode = data >> 8 & 7,
		.vector = (uint8_t)data,
		.level = data & 0x8000,
		.assert = true,
	};
	/* Local APICs ignore the de-assertion of a level message. */
	bool deassert = msg.level && !(data & 0x4000);

	if (addr >> 20 == 0xfee && !deassert && chip->sink.deliver)
		chip->sink.deliver(chip->sink.ctx, &msg);
}

struct msi_sink irqchip_msi(struct irqchip *chip)
{
	return (struct msi_sink){ send_msi, chip };
}

int irqchip_intack(struct irqchip *chip)
{
	int vector = pic_pair_intack(&chip->state.pic);

	update_intr(chip);
	return vector;
}

void irqchip_eoi(struct irqchip *chip, uint8_t vector)
{
	ioapic_eoi(&chip->state.ioapic, &chip->sink, vector);
}

static uint64_t pic_port_read(struct irqchip *chip, bool slave, uint64_t offset)
{
	uint8_t value = pic_pair_read(&chip->state.pic, slave, offset & 1);

	update_intr(chip);
	return value;
}

static void pic_port_write(struct irqchip *chip, bool slave, uint64_t offset, unsigned size, uint64_t value)
{
	for (unsigned i = 0; i < size && offset + i < 2; i++)
		pic_pair_write(&chip->state.pic, slave, (offset + i) & 1, (uint8_t)(value >> 8 * i));
	update_intr(chip);
}

static uint64_t master_read(void *dev, uint64_t offset, unsigned size)
{
	return pic_port_read(dev, false, offset);
}

static void master_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	pic_port_write(dev, false, offset, size, value);
}

static uint64_t slave_read(void *dev, uint64_t offset, unsigned size)
{
	return pic_port_read(dev, true, offset);
}

static void slave_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	pic_port_write(dev, true, offset, size, value);
}

static uint64_t elcr_read(void *dev, uint64_t offset, unsigned size)
{
	struct irqchip *chip = dev;
	uint64_t both = chip->state.pic.master.elcr | chip->state.pic.slave.elcr << 8;

	return both >> 8 * (offset & 1) & (size == 1 ? 0xff : 0xffff);
}

static void elcr_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct irqchip *chip = dev;

	for (unsigned i = 0; i < size && offset + i < 2; i++)
		pic_pair_write_elcr(&chip->state.pic, offset + i, (uint8_t)(value >> 8 * i));
	update_intr(chip);
}

static uint64_t ioapic_mmio_read(void *dev, uint64_t offset, unsigned size)
{
	struct irqchip *chip = dev;

	return ioapic_read(&chip->state.ioapic, offset);
}

static void ioapic_mmio_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct irqchip *chip = dev;

	ioapic_write(&chip->state.ioapic, &chip->sink, offset, (uint32_t)value);
}

static const struct {
	enum bus_space space;
	uint64_t base, size;
	struct bus_ops ops;
	const char *name;
} regions[] = {
	{ BUS_PIO, 0x20, 2, { master_read, master_write }, "pic master" },
	{ BUS_PIO, 0xa0, 2, { slave_read, slave_write }, "pic slave" },
	{ BUS_PIO, 0x4d0, 2, { elcr_read, elcr_write }, "pic elcr" },
	{ BUS_MMIO, IOAPIC_BASE, IOAPIC_SIZE, { ioapic_mmio_read, ioapic_mmio_write }, "ioapic" },
};
#define REGIONS (sizeof(regions) / sizeof(regions[0]))

int irqchip_create(struct bus *bus, const struct apic_sink *sink, struct irqchip **out, struct error *err)
{
	struct irqchip *chip = calloc(1, sizeof(*chip));
	int rc;

	if (!chip)
		return error_set(err, -ENOMEM, "no memory for the interrupt controllers");
	chip->bus = bus;
	chip->sink = *sink;
	for (unsigned i = 0; i < REGIONS; i++) {
		rc = bus_add(bus, regions[i].space, regions[i].base, regions[i].size, &regions[i].ops, chip,
			regions[i].name);
		if (rc) {
			while (i--)
				bus_remove(bus, regions[i].space, regions[i].base);
			free(chip);
			return error_set(err, rc, "cannot place the interrupt controllers' registers");
		}
	}
	irqchip_reset(chip);
	*out = chip;
	return 0;
}

void irqchip_destroy(struct irqchip *chip)
{
	if (!chip)
		return;
	for (unsigned i = 0; i < REGIONS; i++)
		bus_remove(chip->bus, regions[i].space, regions[i].base);
	free(chip);
}

void irqchip_reset(struct irqchip *chip)
{
	pic_pair_reset(&chip->state.pic);
	ioapic_reset(&chip->state.ioapic, &chip->sink);
	update_intr(chip);
}
