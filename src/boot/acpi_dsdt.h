/* The namespace of the machine as AML: what acpi.c puts behind the DSDT's header. */
#ifndef BOOT_ACPI_DSDT_H
#define BOOT_ACPI_DSDT_H

struct aml;
struct acpi_config;

/* config: with all its defaults filled in. */
void acpi_dsdt_write(struct aml *a, const struct acpi_config *config);

#endif
