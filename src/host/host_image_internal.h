/* What the parts of the image probe share. */
#ifndef HOST_IMAGE_INTERNAL_H
#define HOST_IMAGE_INTERNAL_H

#include <stddef.h>

#include "vmm/host_image.h"

struct image_probe {
	int fd;
	uint64_t size;
	int error; /* the first -errno of a read that should have worked */
	struct host_image *image;
	size_t used; /* of image->description */
};

/* All n bytes at an offset, or false: past the end, or (see error) unreadable. buffer is zeroed then. */
bool probe_read(struct image_probe *p, uint64_t offset, void *buffer, size_t n);
/* Appends to the description; what does not fit is dropped. */
void probe_say(struct image_probe *p, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Notes that the tables speak of a byte `end` − 1. */
void probe_promise(struct image_probe *p, uint64_t end);

/*
 * The file system (or swap, LVM, LUKS) that begins at an offset, by its magic numbers; NULL if none is known. A
 * static string.
 */
const char *probe_filesystem(struct image_probe *p, uint64_t offset);

/* Each describes the disk if it has that structure and says whether it did. */
bool probe_gpt(struct image_probe *p);
bool probe_mbr(struct image_probe *p);
bool probe_iso(struct image_probe *p);

/* Is there code in sector 0? It must end with 55h AAh and not begin with zeroes (SeaBIOS starts what has the former). */
bool probe_boot_code(struct image_probe *p);

#endif
