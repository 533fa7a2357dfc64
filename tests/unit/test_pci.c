/* PCI: configuration cycles, BAR sizing and moving, overlaps, MSI-X masking, INTx. */
#include "fake_driver.h"
#include "run_suite.h"

#define SLOT 3

struct toy {
	struct pci_device pci;
	uint32_t value;
	unsigned changes;
};

static uint64_t toy_read(void *dev, uint64_t offset, unsigned size)
{
	(void)size;
	return ((struct toy *)dev)->value + offset;
}

static void toy_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	(void)size;
	((struct toy *)dev)->value = value - offset;
}

static void toy_bar_changed(struct pci_device *dev, unsigned bar)
{
	(void)bar;
	((struct toy *)dev)->changes++;
}

static void toy_destroy(struct pci_device *dev)
{
	free(dev);
}

static const struct bus_ops toy_bus_ops = {toy_read, toy_write};
static const struct pci_device_ops toy_ops = {.bar_changed = toy_bar_changed, .destroy = toy_destroy};

static struct toy *toy_add(struct machine *m, unsigned slot, uint32_t value)
{
	struct toy *toy = calloc(1, sizeof(*toy));
	struct error err = {0};

	toy->value = value;
	pci_device_init(&toy->pci, "toy", &toy_ops, 0x1234, 0x5678, 0xff0000, 7);
	pci_device_set_pin(&toy->pci);
	pci_device_add_msix(&toy->pci, 1, 3);
	pci_device_set_bar(&toy->pci, 0, 0x1000, false, false, &toy_bus_ops, toy);
	pci_device_set_bar(&toy->pci, 2, 0x10000, true, true, &toy_bus_ops, toy);
	ck_assert_int_eq(pci_device_add(m->pci, &toy->pci, slot, &err), 0);
	return toy;
}

static uint32_t port_config(struct machine *m, unsigned slot, unsigned reg, unsigned size)
{
	uint64_t value = 0x80000000 | slot << 11 | (reg & ~3u);

	bus_access(m->bus, BUS_PIO, 0xcf8, 4, true, &value);
	value = 0;
	bus_access(m->bus, BUS_PIO, 0xcfc + (reg & 3), size, false, &value);
	return value;
}

START_TEST(config_mechanisms_agree)
{
	struct machine m;
	uint64_t value;

	machine_start(&m);
	toy_add(&m, SLOT, 0);
	ck_assert_uint_eq(port_config(&m, SLOT, 0, 4), 0x56781234);
	ck_assert_uint_eq(port_config(&m, SLOT, 2, 2), 0x5678);
	ck_assert_uint_eq(config_read(&m, SLOT, 0, 4), 0x56781234);
	ck_assert_uint_eq(port_config(&m, 0, PCI_CLASS, 2), 0x0600);
	ck_assert_uint_eq(port_config(&m, SLOT + 1, 0, 4), 0xffffffff);
	ck_assert_uint_eq(mmio_read(&m, GPA_ECAM + (1 << 20), 4), 0xffffffff);
	ck_assert_uint_eq(mmio_read(&m, GPA_ECAM + (SLOT << 15 | 1 << 12), 2), 0xffff);
	/* Identity is read-only, odd sizes are harmless. */
	config_write(&m, SLOT, 0, 4, 0);
	mmio_write(&m, GPA_ECAM + (SLOT << 15) + 1, 4, 0);
	ck_assert_uint_eq(config_read(&m, SLOT, 0, 4), 0x56781234);
	/* Reset control. */
	value = 0x02;
	bus_access(m.bus, BUS_PIO, 0xcf9, 1, true, &value);
	ck_assert_uint_eq(m.resets, 0);
	value = 0x06;
	bus_access(m.bus, BUS_PIO, 0xcf9, 1, true, &value);
	ck_assert_uint_eq(m.resets, 1);
	machine_end(&m);
}
END_TEST

START_TEST(bars_size_and_move)
{
	struct machine m;
	struct toy *toy;

	machine_start(&m);
	toy = toy_add(&m, SLOT, 100);
	config_write(&m, SLOT, PCI_BAR0, 4, ~0u);
	ck_assert_uint_eq(config_read(&m, SLOT, PCI_BAR0, 4), 0xfffff000);
	config_write(&m, SLOT, PCI_BAR0 + 8, 4, ~0u);
	config_write(&m, SLOT, PCI_BAR0 + 12, 4, ~0u);
	ck_assert_uint_eq(config_read(&m, SLOT, PCI_BAR0 + 8, 4), 0xffff000c);
	ck_assert_uint_eq(config_read(&m, SLOT, PCI_BAR0 + 12, 4), 0xffffffff);

	config_write(&m, SLOT, PCI_BAR0, 4, 0xc0000000);
	ck_assert_uint_eq(mmio_read(&m, 0xc0000010, 4), 0xffffffff); /* decoding is off */
	config_write(&m, SLOT, PCI_BAR0 + 8, 4, 0);
	config_write(&m, SLOT, PCI_BAR0 + 12, 4, 0x80);
	config_write(&m, SLOT, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
	ck_assert_uint_eq(mmio_read(&m, 0xc0000010, 4), 116);
	ck_assert_uint_eq(mmio_read(&m, 0x8000000020, 4), 132);
	config_write(&m, SLOT, PCI_BAR0, 4, 0xc0100000);
	ck_assert_uint_eq(mmio_read(&m, 0xc0000010, 4), 0xffffffff);
	ck_assert_uint_eq(mmio_read(&m, 0xc0100004, 4), 104);
	ck_assert_uint_eq(pci_bar_address(&toy->pci, 0), 0xc0100000);
	ck_assert_uint_ge(toy->changes, 4);
	config_write(&m, SLOT, PCI_COMMAND, 2, 0);
	ck_assert_uint_eq(mmio_read(&m, 0xc0100004, 4), 0xffffffff);
	machine_end(&m);
}
END_TEST

START_TEST(overlaps_are_harmless)
{
	struct machine m;

	machine_start(&m);
	toy_add(&m, SLOT, 100);
	toy_add(&m, SLOT + 1, 200);
	config_write(&m, SLOT, PCI_BAR0, 4, 0xc0000000);
	config_write(&m, SLOT + 1, PCI_BAR0, 4, 0xc0000000);
	config_write(&m, SLOT + 1, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
	config_write(&m, SLOT, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
	ck_assert_uint_eq(mmio_read(&m, 0xc0000000, 4), 200); /* first come, first served */
	config_write(&m, SLOT + 1, PCI_BAR0, 4, 0xc0002000);
	ck_assert_uint_eq(mmio_read(&m, 0xc0000000, 4), 100); /* the other one has its place now */
	ck_assert_uint_eq(mmio_read(&m, 0xc0002000, 4), 200);
	/* Over the ECAM window: it stays reachable, and so the BAR can be moved away. */
	config_write(&m, SLOT, PCI_BAR0, 4, GPA_ECAM);
	ck_assert_uint_eq(config_read(&m, SLOT, 0, 4), 0x56781234);
	config_write(&m, SLOT, PCI_BAR0 + 8, 4, ~0u); /* a 64-bit BAR at the end of the address space */
	config_write(&m, SLOT, PCI_BAR0 + 12, 4, ~0u);
	config_write(&m, SLOT, PCI_BAR0, 4, 0xc0004000);
	ck_assert_uint_eq(mmio_read(&m, 0xc0004000, 4), 100);
	machine_end(&m);
}
END_TEST

START_TEST(assignment_and_reset)
{
	static const uint8_t irqs[4] = {20, 21, 22, 23};
	struct machine m;
	struct toy *toy;
	struct error err = {0};

	machine_start(&m);
	toy = toy_add(&m, SLOT, 0);
	ck_assert_int_eq(pci_bus_assign(m.pci, irqs, &err), 0);
	ck_assert_uint_eq(config_read(&m, SLOT, PCI_INTERRUPT_LINE, 1), 23);
	config_write(&m, SLOT, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
	for (unsigned bar = 0; bar < 3; bar++) {
		ck_assert_uint_ge(pci_bar_address(&toy->pci, bar), GPA_PCI_HOLE);
		ck_assert_uint_lt(pci_bar_address(&toy->pci, bar), GPA_PCI_MMIO_END);
	}
	pci_intx_set(&toy->pci, true);
	ck_assert_int_eq(m.levels[3], 1);
	pci_bus_reset(m.pci);
	ck_assert_int_eq(m.levels[3], 0);
	ck_assert_uint_eq(pci_bar_address(&toy->pci, 0), 0);
	ck_assert_uint_eq(config_read(&m, SLOT, PCI_COMMAND, 2), 0);
	ck_assert_uint_eq(config_read(&m, SLOT, PCI_BAR0 + 8, 4), 0xc);
	machine_end(&m);
}
END_TEST

START_TEST(msix_masks_and_remembers)
{
	struct machine m;
	struct toy *toy;
	unsigned cap;
	uint64_t table = 0xc0000000;

	machine_start(&m);
	toy = toy_add(&m, SLOT, 0);
	cap = config_read(&m, SLOT, PCI_CAPABILITY_LIST, 1);
	ck_assert_uint_eq(config_read(&m, SLOT, cap, 1), PCI_CAP_MSIX);
	ck_assert_uint_eq(config_read(&m, SLOT, cap + 2, 2), 2); /* three vectors */
	config_write(&m, SLOT, PCI_BAR0 + 4, 4, table);
	config_write(&m, SLOT, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);

	pci_msix_send(&toy->pci, 1);
	ck_assert_uint_eq(m.msi_count, 0); /* off */
	config_write(&m, SLOT, cap + 2, 2, 0x8000);
	mmio_write(&m, table + 16, 4, 0xfee01000);
	mmio_write(&m, table + 16 + 8, 4, 0x41);
	ck_assert_uint_eq(mmio_read(&m, table + 16 + 12, 4), 1); /* masked from reset */
	pci_msix_send(&toy->pci, 1);
	ck_assert_uint_eq(m.msi_count, 0);
	ck_assert_uint_eq(mmio_read(&m, table + 0x800, 8), 2);
	mmio_write(&m, table + 16 + 12, 4, 0);
	ck_assert_uint_eq(m.msi_count, 1);
	ck_assert_uint_eq(m.msi_addr, 0xfee01000);
	ck_assert_uint_eq(m.msi_data, 0x41);
	ck_assert_uint_eq(mmio_read(&m, table + 0x800, 4), 0);
	/* Function mask, and then several sends are one message. */
	config_write(&m, SLOT, cap + 2, 2, 0xc000);
	pci_msix_send(&toy->pci, 1);
	pci_msix_send(&toy->pci, 1);
	ck_assert_uint_eq(m.msi_count, 1);
	config_write(&m, SLOT, cap + 2, 2, 0x8000);
	ck_assert_uint_eq(m.msi_count, 2);
	/* Without bus mastering messages wait, too. */
	config_write(&m, SLOT, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
	pci_msix_send(&toy->pci, 1);
	ck_assert_uint_eq(m.msi_count, 2);
	ck_assert_uint_eq(mmio_read(&m, table + 0x800, 8), 2);
	config_write(&m, SLOT, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
	ck_assert_uint_eq(m.msi_count, 3);
	ck_assert_uint_eq(mmio_read(&m, table + 0x800, 8), 0);
	/* Outside the table. */
	pci_msix_send(&toy->pci, 3);
	mmio_write(&m, table + 16 * 3, 8, ~0ull);
	ck_assert_uint_eq(mmio_read(&m, table + 16 * 3, 8), 0);
	ck_assert_uint_eq(m.msi_count, 3);
	/* The pin is silent while MSI-X is on. */
	pci_intx_set(&toy->pci, true);
	ck_assert_int_eq(m.levels[3], 0);
	config_write(&m, SLOT, cap + 2, 2, 0);
	ck_assert_int_eq(m.levels[3], 1);
	config_write(&m, SLOT, PCI_COMMAND, 2, PCI_COMMAND_INTX_DISABLE);
	ck_assert_int_eq(m.levels[3], 0);
	ck_assert_uint_eq(config_read(&m, SLOT, PCI_STATUS, 2) & PCI_STATUS_INTERRUPT, PCI_STATUS_INTERRUPT);
	machine_end(&m);
}
END_TEST

START_TEST(pins_share_a_line)
{
	struct machine m;
	struct toy *a, *b;

	machine_start(&m);
	a = toy_add(&m, 1, 0);
	b = toy_add(&m, 5, 0);
	pci_intx_set(&a->pci, true);
	pci_intx_set(&b->pci, true);
	pci_intx_set(&a->pci, false);
	ck_assert_int_eq(m.levels[1], 1);
	pci_intx_set(&b->pci, false);
	ck_assert_int_eq(m.levels[1], 0);
	machine_end(&m);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("pci");
	TCase *tc = tcase_create("pci");

	tcase_add_test(tc, config_mechanisms_agree);
	tcase_add_test(tc, bars_size_and_move);
	tcase_add_test(tc, overlaps_are_harmless);
	tcase_add_test(tc, assignment_and_reset);
	tcase_add_test(tc, msix_masks_and_remembers);
	tcase_add_test(tc, pins_share_a_line);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
