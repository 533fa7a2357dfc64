/*
 * ACPI fixed hardware (ACPI 6.4, 4.8.3). See the header for the ports.
 *
 *   PM1_STS/PM1_EN  15 WAK | 10 RTC | 9 SLPBTN | 8 PWRBTN | 5 GBL | 4 BM | 0 TMR
 *   PM1_CNT         13 SLP_EN (reads 0) | 12:10 SLP_TYP | 2 GBL_RLS | 1 BM_RLD | 0 SCI_EN
 *
 * The PM timer is computed from the clock. TMR_STS is set when its bit 31 changes; a host timer runs for that only
 * while the guest has enabled the interrupt.
 */
#include "vmm/dev_acpi_pm.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#include "ports.h"
#include "vmm/error.h"
#include "vmm/event.h"

#define NS 1000000000ull

enum { PM1_TMR = 1 << 0, PM1_GBL = 1 << 5, PM1_PWRBTN = 1 << 8, PM1_SLPBTN = 1 << 9, PM1_RTC = 1 << 10, PM1_WAK = 1 << 15 };
#define PM1_EN_MASK (PM1_TMR | PM1_GBL | PM1_PWRBTN | PM1_SLPBTN | PM1_RTC)
#define PM1_STS_MASK (PM1_EN_MASK | PM1_WAK)
enum { CNT_SCI_EN = 1 << 0, CNT_SLP_EN = 1 << 13 };
#define CNT_MASK 0x1c03

struct acpi_pm_state {
	uint64_t timer_start_ns;
	uint64_t timer_half; /* PM timer's bits 63:31 when TMR_STS was last brought up to date */
	uint16_t status, enable, control;
	uint16_t gpe_enable;
	uint8_t apm_control, apm_status; /* 0xb2, 0xb3 */
};

struct acpi_pm {
	/* Set at create. */
	struct bus *bus;
	struct event_timer *timer;
	struct irq_line sci;
	struct acpi_pm_host host;
	/* Device lock. */
	struct acpi_pm_state state;
};

static uint64_t timer_ticks(const struct acpi_pm_state *s)
{
	return muldiv64(event_now() - s->timer_start_ns, ACPI_PM_TIMER_HZ, NS);
}

static void publish_timer(const struct acpi_pm *pm)
{
	const struct bus_answer answer = { .space = BUS_PIO, .sizes = 4, .addr = ACPI_PM_TMR,
		.start_ns = pm->state.timer_start_ns, .num = ACPI_PM_TIMER_HZ, .den = NS };

	answer_publish(&pm->host.answers, &answer);
}

static void update(struct acpi_pm *pm)
{
	struct acpi_pm_state *s = &pm->state;
	uint64_t half = timer_ticks(s) >> 31;

	if (half != s->timer_half) {
		s->timer_half = half;
		s->status |= PM1_TMR;
	}
	if ((s->enable & PM1_TMR) && !(s->status & PM1_TMR))
		event_timer_arm(pm->timer, s->timer_start_ns + muldiv64_up((half + 1) << 31, NS, ACPI_PM_TIMER_HZ));
	else
		event_timer_cancel(pm->timer);
	irq_line_set(&pm->sci, (s->control & CNT_SCI_EN) && (s->status & s->enable & PM1_EN_MASK));
}

static void on_timer(void *ctx)
{
	update(ctx);
}

static uint32_t register_read(struct acpi_pm *pm, unsigned offset)
{
	const struct acpi_pm_state *s = &pm->state;

	switch (offset + ACPI_PM_BASE) {
	case ACPI_PM1A_EVT:
		update(pm);
		return s->status | (uint32_t)s->enable << 16;
	case ACPI_PM1A_CNT:
		return s->control;
	case ACPI_PM_TMR:
		return (uint32_t)timer_ticks(s);
	case ACPI_GPE0:
		return (uint32_t)s->gpe_enable << 16;
	case ACPI_SMI_EN:
		return 1 << 5; /* APMC_EN: to firmware, system management mode is set up already */
	default:
		return 0;
	}
}

static uint64_t pm_read(void *dev, uint64_t offset, unsigned size)
{
	unsigned first = (unsigned)offset & ~3u;
	uint64_t value = register_read(dev, first);

	if ((offset & 3) + size > 4)
		value |= (uint64_t)register_read(dev, first + 4) << 32;
	return value >> 8 * (offset & 3);
}

static void put_byte(uint16_t *reg, unsigned high, uint8_t value, uint16_t mask)
{
	uint16_t field = (high ? 0xff00 : 0x00ff) & mask;

	*reg = (uint16_t)((*reg & ~field) | ((high ? value << 8 : value) & field));
}

static void register_write(void *dev, unsigned offset, uint8_t value)
{
	struct acpi_pm *pm = dev;
	struct acpi_pm_state *s = &pm->state;
	unsigned high = offset & 1;
	uint16_t wide = (uint16_t)(high ? value << 8 : value);

	switch ((offset & ~1u) + ACPI_PM_BASE) {
	case ACPI_PM1A_EVT:
		update(pm);
		s->status &= ~(wide & PM1_STS_MASK);
		break;
	case ACPI_PM1A_EVT + 2:
		put_byte(&s->enable, high, value, PM1_EN_MASK);
		break;
	case ACPI_PM1A_CNT:
		put_byte(&s->control, high, value, CNT_MASK & ~CNT_SCI_EN);
		if ((wide & CNT_SLP_EN) && (wide >> 10 & 7) == ACPI_SLP_TYP_S5 && pm->host.poweroff)
			pm->host.poweroff(pm->host.ctx);
		break;
	case ACPI_GPE0 + 2:
		put_byte(&s->gpe_enable, high, value, 0xffff);
		break;
	}
	update(pm);
}

static void pm_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	ports_write(dev, offset, size, value, register_write);
}

static uint8_t apm_read(void *dev, unsigned offset)
{
	const struct acpi_pm *pm = dev;

	return offset ? pm->state.apm_status : pm->state.apm_control;
}

/* The SMI command port: what a BIOS's SMI handler would do is done here. */
static void apm_write(void *dev, unsigned offset, uint8_t value)
{
	struct acpi_pm *pm = dev;

	if (offset) {
		pm->state.apm_status = value;
		return;
	}
	pm->state.apm_control = value;
	if (value == ACPI_SMI_ENABLE)
		pm->state.control |= CNT_SCI_EN;
	else if (value == ACPI_SMI_DISABLE)
		pm->state.control &= ~CNT_SCI_EN;
	update(pm);
}

static uint64_t apm_port_read(void *dev, uint64_t offset, unsigned size)
{
	return ports_read(dev, offset, size, apm_read);
}

static void apm_port_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	ports_write(dev, offset, size, value, apm_write);
}

static const struct bus_ops pm_ops = { pm_read, pm_write };
static const struct bus_ops apm_ops = { apm_port_read, apm_port_write };

int acpi_pm_create(struct bus *bus, struct event_loop *loop, struct irq_line sci, const struct acpi_pm_host *host,
	struct acpi_pm **out, struct error *err)
{
	struct acpi_pm *pm = calloc(1, sizeof(*pm));
	int rc = -ENOMEM;

	if (!pm)
		return error_set(err, -ENOMEM, "no memory for the ACPI registers");
	pm->bus = bus;
	pm->sci = sci;
	pm->host = *host;
	pm->timer = event_timer_create(loop, on_timer, pm);
	if (!pm->timer)
		goto fail;
	rc = bus_add(bus, BUS_PIO, ACPI_PM_BASE, ACPI_PM_SIZE, &pm_ops, pm, "acpi pm");
	if (rc)
		goto fail_timer;
	rc = bus_add(bus, BUS_PIO, ACPI_SMI_CMD, 2, &apm_ops, pm, "acpi smi command");
	if (rc)
		goto fail_bus;
	acpi_pm_reset(pm);
	*out = pm;
	return 0;
fail_bus:
	bus_remove(bus, BUS_PIO, ACPI_PM_BASE);
fail_timer:
	event_timer_destroy(pm->timer);
fail:
	free(pm);
	return error_set(err, rc, "cannot place the ACPI registers");
}

void acpi_pm_destroy(struct acpi_pm *pm)
{
	if (!pm)
		return;
	bus_remove(pm->bus, BUS_PIO, ACPI_PM_BASE);
	bus_remove(pm->bus, BUS_PIO, ACPI_SMI_CMD);
	event_timer_destroy(pm->timer);
	free(pm);
}

void acpi_pm_reset(struct acpi_pm *pm)
{
	pm->state = (struct acpi_pm_state){ .timer_start_ns = event_now() };
	publish_timer(pm);
	update(pm);
}

void acpi_pm_power_button(struct acpi_pm *pm)
{
	pm->state.status |= PM1_PWRBTN;
	update(pm);
}
