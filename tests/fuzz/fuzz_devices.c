/*
 * Random register accesses, clock steps and host events against every legacy device and the interrupt controllers on
 * one bus, over 1 MiB of RAM. A record is 8 bytes: operation, place, and six bytes of argument. The clock is the
 * fuzzer's own, so that a run depends on its input alone, save the RTC's first time of day. A register whose answer is
 * published (vmm/bus.h) must give just that.
 */
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "../unit/answers.h"
#include "../unit/fake_clock.h"
#include "fuzz.h"
#include "vmm/bus.h"
#include "vmm/dev_acpi_pm.h"
#include "vmm/dev_debug.h"
#include "vmm/dev_fw_cfg.h"
#include "vmm/dev_hpet.h"
#include "vmm/dev_i8042.h"
#include "vmm/dev_pit.h"
#include "vmm/dev_rtc.h"
#include "vmm/dev_serial.h"
#include "vmm/irqchip.h"
#include "vmm/mem.h"

#define MAX_RECORDS 512

struct machine {
	struct bus *bus;
	struct guest_mem *mem;
	struct irqchip *chip;
	struct serial *serial;
	struct pit *pit;
	struct rtc *rtc;
	struct i8042 *kbd;
	struct hpet *hpet;
	struct acpi_pm *pm;
	struct fw_cfg *fw;
	struct debug_ports *debug;
	struct answers answers;
	bool intr;
};

static const uint16_t ports[] = { 0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x70, 0x71, 0x60,
	0x64, 0x92, 0xf4, 0x80, 0x402, 0xe9, 0x3f8, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x3fe, 0x3ff, 0x600, 0x602,
	0x604, 0x608, 0x620, 0x622, 0xb2, 0xb3, 0x510, 0x511, 0x514, 0x518 };

static void on_deliver(void *ctx, const struct apic_message *msg)
{
}

static void on_extint(void *ctx, bool level)
{
	struct machine *m = ctx;

	if (m->intr == level)
		__builtin_trap();
	m->intr = level;
}

static void on_eoi_vectors(void *ctx, const uint64_t bitmap[4])
{
}

static void on_event(void *ctx)
{
}

static void on_exit_port(void *ctx, uint32_t value)
{
}

static void on_bytes(void *ctx, const uint8_t *bytes, size_t length)
{
}

/* A host with more input than the guest wants. */
static void on_ready(void *ctx)
{
	struct machine *m = ctx;

	serial_input(m->serial, (const uint8_t *)"0123456789abcdef!", 17);
}

static void machine_start(struct machine *m, pthread_mutex_t *lock)
{
	struct apic_sink sink = { on_deliver, on_extint, on_eoi_vectors, m };
	struct i8042_host kbd_host = { .reset = on_event, .ctx = m };
	struct debug_host debug_host = { on_exit_port, on_bytes, m };
	struct answer_sink answers = { answers_publish, &m->answers };
	struct serial_host serial_host = { on_bytes, on_ready, m, answers };
	struct acpi_pm_host pm_host = { on_event, m, answers };
	struct hpet_wiring wiring = { .answers = answers };

	if (bus_create(lock, &m->bus, NULL) || mem_create(1 << 20, &m->mem, NULL) ||
		irqchip_create(m->bus, &sink, &m->chip, NULL) ||
		serial_create(m->bus, NULL, SERIAL_COM1, irqchip_line(m->chip, 4), &serial_host, "com1", &m->serial,
			NULL) ||
		pit_create(m->bus, NULL, irqchip_line(m->chip, 0), &m->pit, NULL) ||
		rtc_create(m->bus, NULL, irqchip_line(m->chip, 8), 1 << 20, 0, &m->rtc, NULL) ||
		i8042_create(m->bus, irqchip_line(m->chip, 1), irqchip_line(m->chip, 12), &kbd_host, &m->kbd, NULL) ||
		acpi_pm_create(m->bus, NULL, irqchip_line(m->chip, ACPI_SCI_IRQ), &pm_host, &m->pm, NULL) ||
		fw_cfg_create(m->bus, m->mem, &m->fw, NULL) || debug_ports_create(m->bus, &debug_host, &m->debug, NULL))
		__builtin_trap();
	for (unsigned i = 0; i < 24; i++)
		wiring.gsi[i] = irqchip_line(m->chip, i);
	wiring.irq0 = irqchip_line(m->chip, 0);
	wiring.irq8 = irqchip_line(m->chip, 8);
	wiring.msi = irqchip_msi(m->chip);
	wiring.pit = m->pit;
	wiring.rtc = m->rtc;
	if (hpet_create(m->bus, NULL, &wiring, &m->hpet, NULL) || fw_cfg_add_file(m->fw, "a", "0123456789", 10) ||
		fw_cfg_add_writable_file(m->fw, "b", "0123456789", 10))
		__builtin_trap();
}

static void machine_stop(struct machine *m)
{
	hpet_destroy(m->hpet);
	debug_ports_destroy(m->debug);
	fw_cfg_destroy(m->fw);
	acpi_pm_destroy(m->pm);
	i8042_destroy(m->kbd);
	rtc_destroy(m->rtc);
	pit_destroy(m->pit);
	serial_destroy(m->serial);
	irqchip_destroy(m->chip);
	mem_destroy(m->mem);
	bus_destroy(m->bus);
}

static void machine_reset(struct machine *m)
{
	serial_reset(m->serial);
	pit_reset(m->pit);
	rtc_reset(m->rtc);
	i8042_reset(m->kbd);
	hpet_reset(m->hpet);
	acpi_pm_reset(m->pm);
	fw_cfg_reset(m->fw);
	irqchip_reset(m->chip);
}

static void access_checked(struct machine *m, enum bus_space space, uint64_t addr, unsigned size, bool is_write, uint64_t value)
{
	uint64_t answer;
	bool answered = !is_write && answers_read(&m->answers, space, addr, size, fake_now, &answer);

	bus_access(m->bus, space, addr, size, is_write, &value);
	if (answered && answer != value)
		__builtin_trap();
}

static void step(struct machine *m, const uint8_t record[8])
{
	static const uint64_t bases[] = { IOAPIC_BASE, HPET_BASE, HPET_BASE + 0x100, IOAPIC_BASE + 0x10 };
	uint8_t where = record[1];
	unsigned width = 1u << (record[0] >> 6);
	bool is_write = record[0] & 0x20;
	uint64_t value = 0;

	memcpy(&value, record + 2, 6);
	switch (record[0] & 15) {
	case 0 ... 7:
		access_checked(m, BUS_PIO, ports[where % (sizeof(ports) / sizeof(ports[0]))], width > 4 ? 4 : width,
			is_write, value);
		break;
	case 8:
	case 9:
		value |= value << 48;
		access_checked(m, BUS_MMIO, bases[where >> 6] + (where & 0x3f) * 4, width, is_write, value);
		break;
	case 10:
		fake_clock_to(fake_now + (value & 0xffffff), 200);
		break;
	case 11:
		fake_clock_to(fake_now + value % 100000000000000ull, 50);
		break;
	case 12:
		if (m->intr)
			irqchip_intack(m->chip);
		irqchip_eoi(m->chip, where);
		break;
	case 13:
		serial_input(m->serial, record + 2, where % 7);
		if (where & 0x80)
			serial_input_break(m->serial);
		break;
	case 14:
		i8042_key(m->kbd, record + 2, where % 7);
		if (where & 0x80)
			acpi_pm_power_button(m->pm);
		break;
	case 15:
		mem_write(m->mem, (uint64_t)where * 4, record + 2, 6);
		if (where == 0xff)
			machine_reset(m);
		break;
	}
}

/* What firmware and a kernel do first: PICs, PIT, IOAPIC, HPET, serial interrupts, an RTC interrupt, a DMA descriptor. */
size_t fuzz_seed(unsigned kind, uint8_t *data, size_t size)
{
	static const uint8_t records[][8] = {
		{ 0x20, 0, 0x11 }, { 0x20, 1, 0x20 }, { 0x20, 1, 0x04 }, { 0x20, 1, 0x01 }, { 0x20, 1, 0x00 },
		{ 0x20, 9, 0x34 }, { 0x20, 6, 0x00 }, { 0x20, 6, 0x10 }, { 10, 0, 0, 0, 0x40 }, { 12, 0x20 },
		{ 0xa8, 0x00, 0x14 }, { 0xa8, 0xc0, 0x30 }, { 0xa8, 0x00, 0x38 }, { 0xa8, 0xc0, 0x55, 0x80 },
		{ 0x20, 24, 0x08 }, { 0x20, 22, 0x81 }, { 0x20, 21, 0x0f }, { 13, 6, 'a', 'b' }, { 0x00, 20 }, { 0x00, 22 },
		{ 0xe8, 0x44, 0x03 }, { 0xe8, 0x80, 0x4c, 0x01 }, { 0xe8, 0x82, 0x00, 0x01 }, { 10, 0, 0, 0, 0x40 },
		{ 0x20, 11, 0x0b }, { 0x20, 12, 0x72 }, { 11, 0, 0, 0xca, 0x9a, 0x3b }, { 0x20, 11, 0x0c }, { 0x00, 12 },
		{ 0x20, 34, 0xf1 }, { 0x60, 29, 0x01, 0x03 }, { 14, 0x83, 0x1c, 0xf0, 0x1c },
		{ 15, 0, 0, 0x21, 0, 0x1a, 0, 0 }, { 15, 1, 0, 0, 0, 10 }, { 15, 2, 0, 0, 0, 0, 0, 0 }, { 15, 3, 0, 0, 0x10, 0 },
		{ 0xa0, 38 }, { 0xa0, 39 }, { 15, 0xff },
	};

	if (kind > 0 || size < sizeof(records))
		return 0;
	memcpy(data, records, sizeof(records));
	return sizeof(records);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	struct machine m = { 0 };

	fake_now = 1000000000000ull;
	machine_start(&m, &lock);
	for (unsigned i = 0; i < MAX_RECORDS && size >= 8; i++, data += 8, size -= 8)
		step(&m, data);
	machine_stop(&m);
	pthread_mutex_destroy(&lock);
	return 0;
}
