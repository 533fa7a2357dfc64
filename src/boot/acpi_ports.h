/*
 * The fixed hardware as the tables give it. The model is dev/'s: vmm/dev_acpi_pm.h has the same numbers under
 * its own names (boot/ may not include it; tests/unit/test_boot_acpi.c compares them).
 */
#ifndef BOOT_ACPI_PORTS_H
#define BOOT_ACPI_PORTS_H

#define PORT_PM1_EVENT 0x600u	/* 2 bytes status, 2 bytes enable */
#define PORT_PM1_CONTROL 0x604u /* 2 bytes; SLP_TYP 12:10, SLP_EN 13 */
#define PORT_PM_TIMER 0x608u	/* 4 bytes, 3.579545 MHz, 32 bits wide */
#define PORT_GPE0 0x620u	/* 2 bytes status, 2 bytes enable */
#define PORT_PM_SIZE 0x80u	/* all of the above */
#define PORT_SMI 0xb2u
#define SMI_ACPI_ENABLE 0xf1u
#define SMI_ACPI_DISABLE 0xf0u
#define PORT_RESET 0xcf9u
#define RESET_VALUE 6u
#define SLP_TYP_S5 5u
#define SCI_GSI 9u /* level, active high */

#endif
