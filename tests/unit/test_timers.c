/* PIT, RTC, HPET and the ACPI PM timer, on a clock moved by hand. */
#include "device_bench.h"
#include "fake_clock.h"
#include "run_suite.h"
#include "vmm/dev_acpi_pm.h"
#include "vmm/dev_hpet.h"
#include "vmm/dev_pit.h"
#include "vmm/dev_rtc.h"

#define MS 1000000ull
#define SEC 1000000000ull

enum { LINE_PIT, LINE_RTC, LINE_SCI, LINE_HPET0, LINE_HPET8, LINE_GSI, LINES = LINE_GSI + 24 };

static struct bench_line lines[LINES];
static struct pit *pit;
static struct rtc *rtc;
static struct hpet *hpet;
static struct acpi_pm *pm;
static unsigned poweroffs, msis;
static uint64_t msi_addr;
static uint32_t msi_data;

static void on_poweroff(void *ctx)
{
	poweroffs++;
}

static void on_msi(void *ctx, uint64_t addr, uint32_t data)
{
	msis++;
	msi_addr = addr;
	msi_data = data;
}

static void setup(void)
{
	struct hpet_wiring wiring = { .msi = { on_msi, NULL }, .answers = { answers_publish, &bench_answers } };
	struct acpi_pm_host host = { on_poweroff, NULL, { answers_publish, &bench_answers } };

	bench_start();
	for (unsigned i = 0; i < LINES; i++)
		lines[i] = (struct bench_line){ 0 };
	poweroffs = msis = 0;
	ck_assert_int_eq(pit_create(bench_bus, NULL, bench_line_wire(lines, LINE_PIT), &pit, NULL), 0);
	ck_assert_int_eq(
		rtc_create(bench_bus, NULL, bench_line_wire(lines, LINE_RTC), 512ull << 20, 1ull << 30, &rtc, NULL), 0);
	ck_assert_int_eq(acpi_pm_create(bench_bus, NULL, bench_line_wire(lines, LINE_SCI), &host, &pm, NULL), 0);
	for (unsigned i = 0; i < 24; i++)
		wiring.gsi[i] = bench_line_wire(lines, LINE_GSI + i);
	wiring.irq0 = bench_line_wire(lines, LINE_HPET0);
	wiring.irq8 = bench_line_wire(lines, LINE_HPET8);
	wiring.pit = pit;
	wiring.rtc = rtc;
	ck_assert_int_eq(hpet_create(bench_bus, NULL, &wiring, &hpet, NULL), 0);
}

static void teardown(void)
{
	hpet_destroy(hpet);
	acpi_pm_destroy(pm);
	rtc_destroy(rtc);
	pit_destroy(pit);
	bench_stop();
}

static uint16_t pit_count(unsigned channel)
{
	uint16_t low = inb((uint16_t)(0x40 + channel));

	return (uint16_t)(low | inb((uint16_t)(0x40 + channel)) << 8);
}

START_TEST(pit_periodic_does_not_drift)
{
	unsigned before;

	outb(0x43, 0x34);
	outb(0x40, 11932 & 0xff);
	outb(0x40, 11932 >> 8);
	before = lines[LINE_PIT].rises;
	fake_clock_advance(100 * SEC);
	/* 100 s · 1193182 Hz / 11932 */
	ck_assert_uint_eq(lines[LINE_PIT].rises - before, 9999);
	/* A late host gets one interrupt, not a storm. */
	before = lines[LINE_PIT].rises;
	fake_clock_jump(5 * SEC);
	ck_assert_uint_eq(lines[LINE_PIT].rises - before, 1);
}
END_TEST

START_TEST(pit_counts_down)
{
	outb(0x43, 0x34);
	outb(0x40, 0x10);
	outb(0x40, 0x27); /* 10000 */
	fake_clock_advance(1 * MS);
	outb(0x43, 0x00);
	fake_clock_advance(1 * MS);
	ck_assert_uint_eq(pit_count(0), 10000 - 1193);
	ck_assert_uint_eq(pit_count(0), 10000 - 2386);
	outb(0x43, 0xc2); /* read back count and status of channel 0 */
	ck_assert_uint_eq(inb(0x40), 0xb4);
	ck_assert_uint_eq(pit_count(0), 10000 - 2386);
	/* BCD */
	outb(0x43, 0x35);
	outb(0x40, 0x00);
	outb(0x40, 0x50);
	fake_clock_advance(1 * MS);
	ck_assert_uint_eq(pit_count(0), 0x3807);
}
END_TEST

START_TEST(pit_one_shot)
{
	outb(0x43, 0x30);
	ck_assert(!lines[LINE_PIT].level);
	outb(0x40, 0x00);
	outb(0x40, 0x10);
	fake_clock_advance(3432828); /* 4096 ticks are 3432837 ns */
	ck_assert(!lines[LINE_PIT].level);
	fake_clock_advance(10);
	ck_assert(lines[LINE_PIT].level);
	fake_clock_advance(10 * SEC);
	ck_assert_uint_eq(lines[LINE_PIT].rises, 1);
	/* mode 4: what a tickless guest uses */
	outb(0x43, 0x38);
	outb(0x40, 0x00);
	outb(0x40, 0x10);
	fake_clock_advance(4 * MS);
	ck_assert_uint_eq(lines[LINE_PIT].rises, 2);
}
END_TEST

START_TEST(pit_speaker_gate)
{
	outb(0x61, 0x00);
	outb(0x43, 0xb0);
	outb(0x42, 0xff);
	outb(0x42, 0xff);
	fake_clock_advance(100 * MS);
	ck_assert_msg(!(inb(0x61) & 0x20), "gate closed: not counting");
	outb(0x61, 0x01);
	fake_clock_advance(54 * MS);
	ck_assert(!(inb(0x61) & 0x20));
	fake_clock_advance(1 * MS);
	ck_assert(inb(0x61) & 0x20);
}
END_TEST

static uint8_t cmos(uint8_t index)
{
	outb(0x70, index);
	return inb(0x71);
}

static void cmos_write(uint8_t index, uint8_t value)
{
	outb(0x70, index);
	outb(0x71, value);
}

static void rtc_set_time(void)
{
	cmos_write(0x0b, 0x82);
	cmos_write(0x00, 0x58);
	cmos_write(0x02, 0x59);
	cmos_write(0x04, 0x23);
	cmos_write(0x07, 0x28);
	cmos_write(0x08, 0x02);
	cmos_write(0x09, 0x24);
	cmos_write(0x32, 0x20);
	cmos_write(0x0b, 0x02);
}

START_TEST(rtc_keeps_time)
{
	rtc_set_time();
	ck_assert_uint_eq(cmos(0x00), 0x58);
	fake_clock_advance(1 * SEC);
	ck_assert_uint_eq(cmos(0x00), 0x59);
	ck_assert(!(cmos(0x0a) & 0x80));
	fake_clock_advance(SEC - 100000);
	ck_assert(cmos(0x0a) & 0x80);
	fake_clock_advance(100000);
	ck_assert(!(cmos(0x0a) & 0x80));
	ck_assert_uint_eq(cmos(0x00), 0x00);
	ck_assert_uint_eq(cmos(0x04), 0x00);
	ck_assert_uint_eq(cmos(0x07), 0x29); /* a leap year */
	ck_assert_uint_eq(cmos(0x06), 5);    /* Thursday */
	fake_clock_advance(13 * 3600 * SEC);
	cmos_write(0x0b, 0x04); /* 12 hours, binary */
	ck_assert_uint_eq(cmos(0x04), 0x81);
	ck_assert_uint_eq(cmos(0x09), 24);
}
END_TEST

START_TEST(rtc_alarm_and_update)
{
	rtc_set_time();
	cmos(0x0c);
	cmos_write(0x01, 0x05);
	cmos_write(0x03, 0x00);
	cmos_write(0x05, 0xff);
	cmos_write(0x0b, 0x22);
	fake_clock_advance(6 * SEC);
	ck_assert_uint_eq(lines[LINE_RTC].rises, 0);
	fake_clock_advance(1 * SEC);
	ck_assert(lines[LINE_RTC].level);
	ck_assert_uint_eq(cmos(0x0c) & 0xb0, 0xb0);
	ck_assert(!lines[LINE_RTC].level);
	ck_assert_uint_eq(cmos(0x0c), 0x00);
	fake_clock_advance(3599 * SEC);
	ck_assert_uint_eq(lines[LINE_RTC].rises, 1);
	fake_clock_advance(1 * SEC);
	ck_assert_uint_eq(lines[LINE_RTC].rises, 2);
	cmos(0x0c);
	cmos_write(0x0b, 0x12);
	for (int i = 0; i < 3; i++) {
		fake_clock_advance(1 * SEC);
		ck_assert_uint_eq(cmos(0x0c) & 0x90, 0x90);
	}
	ck_assert_uint_eq(lines[LINE_RTC].rises, 5);
}
END_TEST

START_TEST(rtc_periodic)
{
	uint64_t fired;

	cmos(0x0c);
	cmos_write(0x0b, 0x42); /* 1024 Hz */
	for (int i = 0; i < 1024; i++) {
		fake_clock_advance(SEC / 1024 + 1);
		ck_assert_uint_eq(cmos(0x0c) & 0xc0, 0xc0);
	}
	ck_assert_uint_eq(lines[LINE_RTC].rises, 1024);
	/* Nobody reads C: one interrupt, one host timer. */
	fired = fake_fired;
	fake_clock_advance(10 * SEC);
	ck_assert_uint_eq(fake_fired - fired, 1);
}
END_TEST

START_TEST(rtc_memory_and_nmi)
{
	ck_assert_uint_eq(cmos(0x34) | cmos(0x35) << 8, (512 - 16) * 16);
	ck_assert_uint_eq(cmos(0x5b) | cmos(0x5c) << 8 | cmos(0x5d) << 16, 1024 * 16);
	ck_assert_uint_eq(cmos(0x30) | cmos(0x31) << 8, 65535);
	ck_assert(!rtc_nmi_masked(rtc));
	cmos_write(0x8f, 0x0a);
	ck_assert(rtc_nmi_masked(rtc));
	rtc_reset(rtc);
	ck_assert_uint_eq(cmos(0x0f), 0x0a);
}
END_TEST

static void hpet_put(unsigned reg, uint64_t value)
{
	bench_write(BUS_MMIO, HPET_BASE + reg, 8, value);
}

START_TEST(hpet_one_shot_and_msi)
{
	ck_assert_uint_eq(bench_read(BUS_MMIO, HPET_BASE + 4, 4), HPET_PERIOD_FS);
	hpet_put(0x10, 1);
	fake_clock_advance(1 * MS);
	ck_assert_uint_eq(bench_read(BUS_MMIO, HPET_BASE + 0xf0, 8), 100000);
	hpet_put(0x140, 0x4004); /* timer 2: FSB, enabled, edge */
	hpet_put(0x150, 0xfee0100000000042);
	hpet_put(0x148, 200000);
	fake_clock_advance(1 * MS - 10);
	ck_assert_uint_eq(msis, 0);
	fake_clock_advance(10);
	ck_assert_uint_eq(msis, 1);
	ck_assert_uint_eq(msi_addr, 0xfee01000);
	ck_assert_uint_eq(msi_data, 0x42);
	fake_clock_advance(100 * SEC);
	ck_assert_uint_eq(msis, 1);
}
END_TEST

START_TEST(hpet_legacy_periodic)
{
	unsigned rises;

	outb(0x43, 0x34);
	outb(0x40, 0x00);
	outb(0x40, 0x10);
	hpet_put(0x10, 3);
	rises = lines[LINE_PIT].rises;
	hpet_put(0x100, 0x4c | 0x100); /* periodic, value set, enabled, 32 bits */
	hpet_put(0x108, 100000);
	hpet_put(0x108, 100000);
	fake_clock_advance(1 * SEC);
	ck_assert_uint_eq(lines[LINE_HPET0].rises, 1000);
	ck_assert_msg(lines[LINE_PIT].rises == rises, "the PIT is disconnected");
	fake_clock_jump(50 * MS + 1);
	ck_assert_uint_eq(lines[LINE_HPET0].rises, 1001);
	fake_clock_advance(1 * SEC);
	ck_assert_uint_eq(lines[LINE_HPET0].rises, 2001);
	hpet_put(0x10, 1);
	fake_clock_advance(1 * SEC);
	ck_assert_uint_gt(lines[LINE_PIT].rises, rises);
}
END_TEST

START_TEST(hpet_level)
{
	hpet_put(0x120, 20 << 9 | 0x06); /* timer 1: pin 20, level */
	hpet_put(0x128, 1000);
	hpet_put(0x10, 1);
	fake_clock_advance(10000);
	ck_assert(lines[LINE_GSI + 20].level);
	ck_assert_uint_eq(bench_read(BUS_MMIO, HPET_BASE + 0x20, 4), 2);
	hpet_put(0x20, 2);
	ck_assert(!lines[LINE_GSI + 20].level);
}
END_TEST

/* bench_read() compares each value with what was published. */
START_TEST(hpet_publishes_counter)
{
	unsigned used = 0;

	ck_assert_uint_eq(bench_read(BUS_MMIO, HPET_BASE + 0xf0, 8), 0);
	fake_clock_advance(1 * MS + 3);
	ck_assert_uint_eq(bench_read(BUS_MMIO, HPET_BASE + 0xf0, 8), 0);
	hpet_put(0xf0, 0xfffffff0);
	hpet_put(0x10, 1);
	for (used = 2; used < 50; used += 4) {
		fake_clock_advance(used * 7 + 3);
		bench_read(BUS_MMIO, HPET_BASE + 0xf0, 8);
		bench_read(BUS_MMIO, HPET_BASE + 0xf0, 4);
		bench_read(BUS_MMIO, HPET_BASE + 0xf4, 4);
		bench_read(BUS_MMIO, HPET_BASE + 0xf2, 2);
		if (used == 22)
			hpet_put(0xf0, 0xfffffffffffffff0);
		if (used == 30)
			hpet_put(0x10, 0);
		if (used == 38)
			hpet_put(0x10, 1);
		bench_read(BUS_MMIO, HPET_BASE + 0xf0, 8);
	}
	ck_assert_uint_eq(bench_answers.used, used);
	hpet_reset(hpet);
	ck_assert_uint_eq(bench_read(BUS_MMIO, HPET_BASE + 0xf0, 8), 0);
	ck_assert_uint_eq(bench_answers.used, used + 1);
}
END_TEST

START_TEST(acpi_timer_and_sleep)
{
	uint32_t start = (uint32_t)bench_read(BUS_PIO, ACPI_PM_TMR, 4);

	fake_clock_advance(1 * SEC);
	ck_assert_uint_eq((uint32_t)bench_read(BUS_PIO, ACPI_PM_TMR, 4) - start, ACPI_PM_TIMER_HZ);
	ck_assert_uint_eq(bench_answers.used, 2);
	/* bit 31 changes after 600 s */
	fake_clock_advance(600 * SEC);
	ck_assert_uint_eq(bench_read(BUS_PIO, ACPI_PM1A_EVT, 2), 1);
	bench_write(BUS_PIO, ACPI_PM1A_EVT, 2, 1);
	ck_assert_uint_eq(bench_read(BUS_PIO, ACPI_PM1A_EVT, 2), 0);
	bench_write(BUS_PIO, ACPI_PM1A_EVT + 2, 2, 1);
	fake_clock_advance(600 * SEC);
	ck_assert_msg(!lines[LINE_SCI].level, "SCI_EN is off");
	outb(ACPI_SMI_CMD, ACPI_SMI_ENABLE);
	ck_assert_uint_eq(bench_read(BUS_PIO, ACPI_PM1A_CNT, 2), 1);
	ck_assert(lines[LINE_SCI].level);
	bench_write(BUS_PIO, ACPI_PM1A_EVT, 2, 1);
	ck_assert(!lines[LINE_SCI].level);
	fake_clock_advance(600 * SEC);
	ck_assert(lines[LINE_SCI].level);
	bench_write(BUS_PIO, ACPI_PM1A_EVT, 2, 1);
	bench_write(BUS_PIO, ACPI_PM1A_EVT + 2, 2, 0x100);
	acpi_pm_power_button(pm);
	ck_assert(lines[LINE_SCI].level);
	bench_write(BUS_PIO, ACPI_PM1A_CNT, 2, 0x2000 | 3 << 10 | 1);
	ck_assert_uint_eq(poweroffs, 0);
	bench_write(BUS_PIO, ACPI_PM1A_CNT, 2, 0x2000 | ACPI_SLP_TYP_S5 << 10 | 1);
	ck_assert_uint_eq(poweroffs, 1);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("timers");
	TCase *tc = tcase_create("timers");

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, pit_periodic_does_not_drift);
	tcase_add_test(tc, pit_counts_down);
	tcase_add_test(tc, pit_one_shot);
	tcase_add_test(tc, pit_speaker_gate);
	tcase_add_test(tc, rtc_keeps_time);
	tcase_add_test(tc, rtc_alarm_and_update);
	tcase_add_test(tc, rtc_periodic);
	tcase_add_test(tc, rtc_memory_and_nmi);
	tcase_add_test(tc, hpet_one_shot_and_msi);
	tcase_add_test(tc, hpet_legacy_periodic);
	tcase_add_test(tc, hpet_level);
	tcase_add_test(tc, hpet_publishes_counter);
	tcase_add_test(tc, acpi_timer_and_sleep);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
