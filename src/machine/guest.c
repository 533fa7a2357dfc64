/*
 * The disks that firmware is to start from: examined before anything else is made, so that an image that cannot boot
 * is a sentence now and not "No bootable device" on some console. What GUEST is, is kept for the person.
 */
#include <string.h>

#include "machine_internal.h"
#include "vmm/error.h"
#include "vmm/host_image.h"

static bool is_uefi(const struct machine *m)
{
	return m->config->firmware && !strcmp(m->config->firmware, "uefi");
}

/* Firmware that is a file: of whatever kind. */
static bool is_own_firmware(const struct machine *m)
{
	return m->config->firmware && strcmp(m->config->firmware, "bios") && !is_uefi(m);
}

bool machine_guest_is_cd(const struct machine *m, const struct host_image *image)
{
	if (image->kind != HOST_IMAGE_ISO)
		return false;
	if (!m->firmware || is_own_firmware(m))
		return image->optical || image->uefi;
	return is_uefi(m) ? image->uefi : image->optical;
}

/* Would firmware of the kind chosen find something to start there? Of firmware that is a file we know nothing. */
static int guest_check(const struct machine *m, const char *path, const struct host_image *image, bool cd, struct error *err)
{
	if (is_own_firmware(m))
		return host_image_check_format(path, image, err);
	return host_image_check_bootable(path, image, is_uefi(m), cd, err);
}

int machine_guest_examine(struct machine *m, struct error *err)
{
	const struct machine_config *config = m->config;
	const char *first = config->guest ? config->guest : config->disk_count ? config->disks[0].path : NULL;
	struct host_image image;
	int rc;

	if (!first)
		return 0;
	rc = host_image_examine(first, &image, err);
	if (!rc) {
		memcpy(m->guest_description, image.description, sizeof(m->guest_description));
		rc = guest_check(m, first, &image, config->guest ? machine_guest_is_cd(m, &image) : config->disks[0].cd, err);
	}
	/* Another disk may be the one to start from, unless GUEST was named and is no whole raw disk. */
	for (unsigned i = config->guest ? 0 : 1; rc && i < config->disk_count; i++) {
		struct host_image other;

		if (image.kind == HOST_IMAGE_FOREIGN || image.missing || host_image_examine(config->disks[i].path, &other, NULL))
			break;
		if (!guest_check(m, config->disks[i].path, &other, config->disks[i].cd, NULL))
			rc = 0;
	}
	return rc;
}

const char *machine_guest_description(const struct machine *m)
{
	return m->guest_description;
}
