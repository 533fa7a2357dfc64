/*
 * ACPI fixed hardware (ACPI 6.4, 4.8): PM1a event and control blocks, PM timer, an empty GPE0 block and the SMI command
 * port. Device lock held for every call. The reset register that the FADT names, port 0xcf9, lies inside PCI's
 * configuration ports and is the PCI bus's.
 */
#ifndef VMM_DEV_ACPI_PM_H
#define VMM_DEV_ACPI_PM_H

#include <stdint.h>

#include "vmm/bus.h"

struct event_loop;
struct error;
struct acpi_pm;

/* The numbers that the FADT must give. */
#define ACPI_PM_BASE 0x600
#define ACPI_PM1A_EVT (ACPI_PM_BASE + 0x00) /* 4 bytes: status, enable */
#define ACPI_PM1A_CNT (ACPI_PM_BASE + 0x04) /* 2 bytes */
#define ACPI_PM_TMR (ACPI_PM_BASE + 0x08)   /* 4 bytes; 32-bit timer: TMR_VAL_EXT set */
#define ACPI_GPE0 (ACPI_PM_BASE + 0x20)	    /* 4 bytes: 2 status, 2 enable */
#define ACPI_GPE0_LEN 4
#define ACPI_SMI_EN (ACPI_PM_BASE + 0x30) /* ICH9's; read-only here */
#define ACPI_PM_SIZE 0x80
#define ACPI_SMI_CMD 0xb2
#define ACPI_SMI_ENABLE 0xf1
#define ACPI_SMI_DISABLE 0xf0
#define ACPI_SCI_IRQ 9 /* level, active high */
#define ACPI_SLP_TYP_S5 5 /* \_S5's SLP_TYPa */
#define ACPI_RESET_REG 0xcf9
#define ACPI_RESET_VALUE 0x06
#define ACPI_PM_TIMER_HZ 3579545u

struct acpi_pm_host {
	/* Inside a port write: latch and return. */
	void (*poweroff)(void *ctx); /* SLP_EN with the S5 type */
	void *ctx;
	struct answer_sink answers; /* offered the PM timer */
};

int acpi_pm_create(struct bus *bus, struct event_loop *loop, struct irq_line sci, const struct acpi_pm_host *host,
	struct acpi_pm **pm, struct error *err);
void acpi_pm_destroy(struct acpi_pm *pm);
void acpi_pm_reset(struct acpi_pm *pm);

/* Presses the power button: the guest gets an SCI if it has enabled that. */
void acpi_pm_power_button(struct acpi_pm *pm);

#endif
