/* PIC priorities and EOI, IOAPIC triggers, MSI translation: through the bus, as a guest does it. */
#include "device_bench.h"
#include "run_suite.h"
#include "vmm/irqchip.h"

static struct irqchip *chip;
static struct apic_message last;
static unsigned delivered;
static bool intr;
static uint64_t level_vectors[4];

static void on_deliver(void *ctx, const struct apic_message *msg)
{
	last = *msg;
	delivered++;
}

static void on_extint(void *ctx, bool level)
{
	ck_assert(level != intr);
	intr = level;
}

static void on_eoi_vectors(void *ctx, const uint64_t bitmap[4])
{
	for (int i = 0; i < 4; i++)
		level_vectors[i] = bitmap[i];
}

static void init_pics(uint8_t icw4_master)
{
	const uint8_t icws[] = { 0x11, 0x20, 0x04, icw4_master };

	for (int i = 0; i < 4; i++)
		outb(i ? 0x21 : 0x20, icws[i]);
	outb(0xa0, 0x11);
	outb(0xa1, 0x28);
	outb(0xa1, 0x02);
	outb(0xa1, 0x01);
	outb(0x21, 0x00);
	outb(0xa1, 0x00);
}

static void setup(void)
{
	struct apic_sink sink = { on_deliver, on_extint, on_eoi_vectors, NULL };

	bench_start();
	intr = false;
	delivered = 0;
	ck_assert_int_eq(irqchip_create(bench_bus, &sink, &chip, NULL), 0);
	init_pics(0x01);
}

static void teardown(void)
{
	irqchip_destroy(chip);
	bench_stop();
}

static void pulse(unsigned input)
{
	struct irq_line line = irqchip_line(chip, input);

	irq_line_set(&line, true);
	irq_line_set(&line, false);
}

static uint32_t ioapic_get(unsigned reg)
{
	bench_write(BUS_MMIO, IOAPIC_BASE, 4, reg);
	return (uint32_t)bench_read(BUS_MMIO, IOAPIC_BASE + 0x10, 4);
}

static void ioapic_put(unsigned reg, uint32_t value)
{
	bench_write(BUS_MMIO, IOAPIC_BASE, 4, reg);
	bench_write(BUS_MMIO, IOAPIC_BASE + 0x10, 4, value);
}

START_TEST(pic_serves_by_priority)
{
	pulse(4);
	ck_assert(intr);
	pulse(1);
	ck_assert_int_eq(irqchip_intack(chip), 0x21);
	ck_assert_msg(!intr, "IRQ 4 must wait for IRQ 1's EOI");
	outb(0x20, 0x20);
	ck_assert(intr);
	ck_assert_int_eq(irqchip_intack(chip), 0x24);
	pulse(1);
	ck_assert_msg(intr, "IRQ 1 preempts IRQ 4");
	outb(0x20, 0x0b);
	ck_assert_int_eq(inb(0x20), 0x10);
	ck_assert_int_eq(irqchip_intack(chip), 0x21);
	outb(0x20, 0x64); /* specific EOI of 4 */
	ck_assert_int_eq(inb(0x20), 0x02);
	outb(0x20, 0x20);
	ck_assert_int_eq(inb(0x20), 0x00);
}
END_TEST

START_TEST(pic_cascades)
{
	pulse(12);
	pulse(8);
	ck_assert_int_eq(irqchip_intack(chip), 0x28);
	ck_assert(!intr);
	outb(0xa0, 0x20);
	outb(0x20, 0x20);
	ck_assert(intr);
	ck_assert_int_eq(irqchip_intack(chip), 0x2c);
	outb(0xa0, 0x20);
	outb(0x20, 0x20);
	ck_assert(!intr);
}
END_TEST

START_TEST(pic_spurious_sets_no_isr)
{
	pulse(3);
	ck_assert(intr);
	outb(0x21, 0x08);
	ck_assert(!intr);
	ck_assert_int_eq(irqchip_intack(chip), 0x27);
	outb(0x20, 0x0b);
	ck_assert_int_eq(inb(0x20), 0);
	outb(0x21, 0x00);
	ck_assert_msg(intr, "a masked edge stays pending");
}
END_TEST

START_TEST(pic_level_follows_line)
{
	struct irq_line line = irqchip_line(chip, 11), other = irqchip_line(chip, 11);

	bench_write(BUS_PIO, 0x4d0, 2, 0x0e00 | 0x07);
	ck_assert_uint_eq(bench_read(BUS_PIO, 0x4d0, 2), 0x0e00);
	irq_line_set(&line, true);
	irq_line_set(&other, true);
	ck_assert_int_eq(irqchip_intack(chip), 0x2b);
	outb(0xa0, 0x20);
	outb(0x20, 0x20);
	ck_assert_msg(intr, "still asserted");
	irq_line_set(&line, false);
	ck_assert_msg(intr, "the other source still asserts");
	irq_line_set(&other, false);
	ck_assert(!intr);
}
END_TEST

START_TEST(pic_auto_eoi_poll_and_special_mask)
{
	init_pics(0x03);
	pulse(5);
	ck_assert_int_eq(irqchip_intack(chip), 0x25);
	outb(0x20, 0x0b);
	ck_assert_int_eq(inb(0x20), 0);
	init_pics(0x01);
	outb(0x20, 0x0c);
	ck_assert_int_eq(inb(0x20), 0x00);
	pulse(5);
	outb(0x20, 0x0c);
	ck_assert_int_eq(inb(0x20), 0x85);
	pulse(6);
	ck_assert(!intr);
	outb(0x21, 0x20);
	outb(0x20, 0x68); /* special mask: a masked service blocks nothing */
	ck_assert(intr);
	ck_assert_int_eq(irqchip_intack(chip), 0x26);
}
END_TEST

START_TEST(pic_rotates)
{
	pulse(3);
	ck_assert_int_eq(irqchip_intack(chip), 0x23);
	outb(0x20, 0xa0); /* rotate on non-specific EOI: 3 is now the lowest */
	pulse(3);
	pulse(4);
	ck_assert_int_eq(irqchip_intack(chip), 0x24);
}
END_TEST

START_TEST(ioapic_registers)
{
	ck_assert_uint_eq(ioapic_get(1), 0x00170020);
	ioapic_put(0, 0xff000000);
	ck_assert_uint_eq(ioapic_get(0), 0x0f000000);
	ck_assert_uint_eq(ioapic_get(0x10), 0x00010000);
	ioapic_put(0x10, 0xffffffff);
	ck_assert_uint_eq(ioapic_get(0x10), 0x0001afff);
	ioapic_put(0x11, 0xffffffff);
	ck_assert_uint_eq(ioapic_get(0x11), 0xff000000);
	ck_assert_uint_eq(ioapic_get(0x40), 0);
}
END_TEST

START_TEST(ioapic_edge)
{
	pulse(4);
	ck_assert_uint_eq(delivered, 0);
	ioapic_put(0x19, 0x03000000);
	ioapic_put(0x18, 0x00000841);
	ck_assert_msg(delivered == 0, "an edge on a masked pin is lost");
	pulse(4);
	ck_assert_uint_eq(delivered, 1);
	ck_assert(last.vector == 0x41 && last.dest == 3 && last.logical && !last.level && last.assert);
	ck_assert_uint_eq(last.delivery_mode, APIC_FIXED);
	/* IRQ 0 arrives on pin 2. */
	ioapic_put(0x14, 0x00000030);
	pulse(0);
	ck_assert_uint_eq(delivered, 2);
	ck_assert_uint_eq(last.vector, 0x30);
}
END_TEST

START_TEST(ioapic_level_again_after_eoi)
{
	struct irq_line line = irqchip_line(chip, 20);

	ioapic_put(0x10 + 40, 0x00008055);
	ck_assert_uint_eq(level_vectors[1], 1ull << (0x55 - 64));
	irq_line_set(&line, true);
	ck_assert_uint_eq(delivered, 1);
	ck_assert(last.level);
	ck_assert_uint_eq(ioapic_get(0x10 + 40), 0x0000c055);
	irq_line_set(&line, false);
	irq_line_set(&line, true);
	ck_assert_msg(delivered == 1, "nothing while remote IRR is set");
	irqchip_eoi(chip, 0x54);
	ck_assert_uint_eq(delivered, 1);
	irqchip_eoi(chip, 0x55);
	ck_assert_uint_eq(delivered, 2);
	irq_line_set(&line, false);
	irqchip_eoi(chip, 0x55);
	ck_assert_uint_eq(delivered, 2);
	ck_assert_uint_eq(ioapic_get(0x10 + 40), 0x00008055);
	/* Masked while asserted: delivered when unmasked. */
	ioapic_put(0x10 + 40, 0x00018055);
	irq_line_set(&line, true);
	ck_assert_uint_eq(delivered, 2);
	ioapic_put(0x10 + 40, 0x00008055);
	ck_assert_uint_eq(delivered, 3);
	/* The EOI register does what the broadcast does. */
	bench_write(BUS_MMIO, IOAPIC_BASE + 0x40, 4, 0x55);
	ck_assert_uint_eq(delivered, 4);
	/* Making it edge-triggered forgets remote IRR. */
	ioapic_put(0x10 + 40, 0x00010055);
	ck_assert_uint_eq(ioapic_get(0x10 + 40), 0x00010055);
	ck_assert_uint_eq(level_vectors[1], 0);
}
END_TEST

START_TEST(msi_translates)
{
	struct msi_sink msi = irqchip_msi(chip);

	msi_send(&msi, 0xfee0500c, 0x0000c161);
	ck_assert_uint_eq(delivered, 1);
	ck_assert(last.vector == 0x61 && last.dest == 5 && last.logical && last.level && last.assert);
	ck_assert_uint_eq(last.delivery_mode, APIC_LOWEST);
	msi_send(&msi, 0xfee0500c, 0x00008161);
	msi_send(&msi, 0xfed05000, 0x61);
	msi_send(&msi, 0x1fee05000, 0x61);
	ck_assert_uint_eq(delivered, 1);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("irqchip");
	TCase *tc = tcase_create("irqchip");

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, pic_serves_by_priority);
	tcase_add_test(tc, pic_cascades);
	tcase_add_test(tc, pic_spurious_sets_no_isr);
	tcase_add_test(tc, pic_level_follows_line);
	tcase_add_test(tc, pic_auto_eoi_poll_and_special_mask);
	tcase_add_test(tc, pic_rotates);
	tcase_add_test(tc, ioapic_registers);
	tcase_add_test(tc, ioapic_edge);
	tcase_add_test(tc, ioapic_level_again_after_eoi);
	tcase_add_test(tc, msi_translates);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
