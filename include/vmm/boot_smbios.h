/*
 * SMBIOS tables (DMTF DSP0134, 2.8): what the machine says of itself to `dmidecode` and to installers. Built here, put
 * into memory by the firmware, which adds the structure that describes itself (type 0).
 */
#ifndef VMM_BOOT_SMBIOS_H
#define VMM_BOOT_SMBIOS_H

#include <stddef.h>
#include <stdint.h>

#include "vmm/error.h"

#define SMBIOS_ANCHOR_SIZE 31

struct smbios_tables {
	uint8_t anchor[SMBIOS_ANCHOR_SIZE]; /* etc/smbios/smbios-anchor: address and sums are the firmware's to fill in */
	uint8_t *tables;		    /* etc/smbios/smbios-tables; owned, free() */
	size_t size;
};

/* For a machine of `cpus` processors, ram_low bytes of RAM below 4 GiB and ram_high above. 0 or -ENOMEM. */
int smbios_build(unsigned cpus, uint64_t ram_low, uint64_t ram_high, struct smbios_tables *tables, struct error *err);

#endif
