/* The namespace of the machine as AML: what acpi.c puts behind the DSDT's header. */
#ifndef BOOT_ACPI_DSDT_H
#define BOOT_ACPI_DSDT_H

struct aml;

void acpi_dsdt_write(struct aml *a, unsigned cpus);

#endif
