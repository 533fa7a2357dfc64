/*
 * File systems and the like by their magic numbers: offsets and values as each one's documentation on disk gives
 * them. Their makers clear the places where the others look, so the order decides little.
 */
#include <string.h>

#include "host_image_internal.h"
#include "vmm/bytes.h"

struct magic {
	const char *name;
	uint32_t offset;
	uint8_t size;
	const char *bytes;
};

static const struct magic magics[] = {
	{"LUKS", 0, 6, "LUKS\xba\xbe"},
	{"XFS", 0, 4, "XFSB"},
	{"squashfs", 0, 4, "hsqs"},
	{"NTFS", 3, 8, "NTFS    "},
	{"exFAT", 3, 8, "EXFAT   "},
	{"FAT", 54, 5, "FAT12"},
	{"FAT", 54, 5, "FAT16"},
	{"FAT", 82, 5, "FAT32"},
	{"LVM", 512, 8, "LABELONE"},
	{"swap", 4086, 10, "SWAPSPACE2"},
	{"F2FS", 1024, 4, "\x10\x20\xf5\xf2"},
	{"btrfs", 0x10040, 8, "_BHRfS_M"},
	{"ISO 9660", 0x8001, 5, "CD001"},
};

/* The superblock of ext2 and its heirs at byte 1024: s_magic at 56, s_feature_compat at 92, s_feature_incompat at 96. */
static const char *probe_ext(struct image_probe *p, uint64_t offset)
{
	uint8_t super[104];

	if (!probe_read(p, offset + 1024, super, sizeof(super)) || bytes_load(super + 56, 2) != 0xef53)
		return NULL;
	if (bytes_load(super + 96, 4) & 0x2c0) /* extents, 64-bit, flexible groups */
		return "ext4";
	return bytes_load(super + 92, 4) & 4 /* a journal */ ? "ext3" : "ext2";
}

const char *probe_filesystem(struct image_probe *p, uint64_t offset)
{
	uint8_t found[16];

	if (offset > p->size)
		return NULL;
	for (unsigned i = 0; i < sizeof(magics) / sizeof(magics[0]); i++)
		if (probe_read(p, offset + magics[i].offset, found, magics[i].size) &&
			!memcmp(found, magics[i].bytes, magics[i].size))
			return magics[i].name;
	return probe_ext(p, offset);
}
