/*
 * Partition tables and El Torito.
 *
 *	MBR, sector 0:   0 code … 440 | signature | 446: 4 × { active, CHS, type, CHS, first LBA, sectors } | 510: 55 AA
 *	GPT, sector 1:   "EFI PART", 72: LBA of the entries, 80: their number, 84: their size (UEFI 2.10, 5.3.2)
 *	                 entry: 0 type GUID, 32 first LBA, 40 last LBA (5.3.3)
 *	ISO 9660:        volume descriptors from sector 16 of 2,048 bytes: 0 type, 1 "CD001"; primary (1): 40 name,
 *	                 80 number of blocks, 128 block size; boot record (0): 7 "EL TORITO SPECIFICATION", 71 catalogue
 *	El Torito:       catalogue of 32-byte entries: validation (1, platform), default (88h if bootable), then sections:
 *	                 90h or 91h, platform, number of entries
 */
#include <string.h>

#include "host_image_internal.h"
#include "vmm/bytes.h"

#define SECTOR 512u
#define SHOWN_MAX 4u /* partitions in the description */
#define GPT_ENTRIES_MAX 256u
#define ISO_SECTOR 2048u
#define ISO_DESCRIPTORS_MAX 32u
/* Blocks after the last file that a volume counts and a copy of the disc may lack: the gap before its end. */
#define ISO_PADDING 150u
#define CATALOGUE_ENTRIES (ISO_SECTOR / 32)

static const struct {
	uint8_t type;
	const char *name;
} mbr_types[] = {{0x05, "extended"}, {0x0f, "extended"}, {0x85, "extended"}, {0xef, "EFI system"}, {0x82, "swap"},
	{0x8e, "LVM"}};

/* Type GUIDs as they stand on the disk. */
static const uint8_t gpt_esp[16] = {0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e,
	0xc9, 0x3b};
static const uint8_t gpt_bios[16] = {'H', 'a', 'h', '!', 'I', 'd', 'o', 'n', 't', 'N', 'e', 'e', 'd', 'E', 'F', 'I'};

bool probe_boot_code(struct image_probe *p)
{
	static const uint8_t nothing[8];
	uint8_t sector[SECTOR];

	return probe_read(p, 0, sector, sizeof(sector)) && bytes_load(sector + 510, 2) == 0xaa55 &&
		memcmp(sector, nothing, sizeof(nothing));
}

static const char *mbr_content(struct image_probe *p, uint8_t type, uint64_t offset)
{
	const char *name = NULL;

	for (unsigned i = 0; i < sizeof(mbr_types) / sizeof(mbr_types[0]); i++)
		if (mbr_types[i].type == type)
			name = mbr_types[i].name;
	if (!name)
		name = probe_filesystem(p, offset);
	return name ? name : "unknown content";
}

/* A sector with 55h AAh is an MBR only if its four entries make sense; else it is some boot sector. */
static bool mbr_valid(const uint8_t *sector)
{
	unsigned used = 0;

	if (bytes_load(sector + 510, 2) != 0xaa55)
		return false;
	for (unsigned i = 0; i < 4; i++) {
		const uint8_t *entry = sector + 446 + 16 * i;

		if (entry[0] & 0x7f)
			return false;
		if (!entry[4])
			continue;
		if (!bytes_load(entry + 12, 4))
			return false;
		used++;
	}
	return used;
}

bool probe_mbr(struct image_probe *p)
{
	uint8_t sector[SECTOR];
	unsigned shown = 0, active = 0;

	if (!probe_read(p, 0, sector, sizeof(sector)) || !mbr_valid(sector))
		return false;
	p->image->kind = HOST_IMAGE_MBR;
	p->image->bios = probe_boot_code(p);
	probe_say(p, "raw disk, MBR");
	for (unsigned i = 0; i < 4; i++) {
		const uint8_t *entry = sector + 446 + 16 * i;
		uint64_t first = bytes_load(entry + 8, 4), count = bytes_load(entry + 12, 4);
		const char *what = entry[0] ? "bootable partition" : "partition";

		if (!entry[4])
			continue;
		probe_say(p, ", %s %u (%s)", what, i + 1, mbr_content(p, entry[4], first * SECTOR));
		probe_promise(p, (first + count) * SECTOR);
		p->image->uefi |= entry[4] == 0xef;
		active += entry[0] != 0;
		shown++;
	}
	if (!p->image->bios)
		probe_say(p, ", no boot code");
	else if (shown && !active)
		probe_say(p, ", %s marked bootable", shown == 1 ? "not" : "none");
	return true;
}

/* One used entry, the `shown`-th: false for one that makes no sense. */
static bool gpt_entry(struct image_probe *p, const uint8_t *entry, unsigned number, unsigned shown)
{
	uint64_t first = bytes_load(entry + 32, 8), last = bytes_load(entry + 40, 8);
	const char *content;

	if (last < first || last >= UINT64_MAX / SECTOR - 1)
		return false;
	probe_promise(p, (last + 1) * SECTOR);
	if (!memcmp(entry, gpt_esp, sizeof(gpt_esp)))
		p->image->uefi = true;
	if (shown >= SHOWN_MAX)
		return true;
	content = probe_filesystem(p, first * SECTOR);
	if (!memcmp(entry, gpt_bios, sizeof(gpt_bios)))
		probe_say(p, ", BIOS boot partition %u", number);
	else if (!memcmp(entry, gpt_esp, sizeof(gpt_esp)))
		probe_say(p, ", EFI system partition %u (%s)", number, content ? content : "no file system");
	else
		probe_say(p, ", partition %u (%s)", number, content ? content : "unknown content");
	return true;
}

bool probe_gpt(struct image_probe *p)
{
	uint8_t header[SECTOR], entry[128];
	uint64_t at;
	unsigned count, size, shown = 0, odd = 0;

	if (!probe_read(p, SECTOR, header, sizeof(header)) || memcmp(header, "EFI PART", 8))
		return false;
	p->image->kind = HOST_IMAGE_GPT;
	p->image->bios = probe_boot_code(p);
	probe_say(p, "raw disk, GPT");
	at = bytes_load(header + 72, 8);
	count = (unsigned)bytes_load(header + 80, 4);
	size = (unsigned)bytes_load(header + 84, 4);
	if (size < sizeof(entry) || size > 4096 || at < 2 || at > p->size / SECTOR) {
		probe_say(p, " (damaged: its header makes no sense)");
		return true;
	}
	if (count > GPT_ENTRIES_MAX)
		count = GPT_ENTRIES_MAX;
	for (unsigned i = 0; i < count; i++) {
		static const uint8_t unused[16];

		if (!probe_read(p, at * SECTOR + (uint64_t)i * size, entry, sizeof(entry)))
			break;
		if (!memcmp(entry, unused, sizeof(unused)))
			continue;
		if (gpt_entry(p, entry, i + 1, shown))
			shown++;
		else
			odd++;
	}
	if (shown > SHOWN_MAX)
		probe_say(p, " and %u more", shown - SHOWN_MAX);
	if (!shown)
		probe_say(p, ", no partitions");
	if (odd)
		probe_say(p, ", %u damaged %s", odd, odd == 1 ? "entry" : "entries");
	return true;
}

/* What the boot catalogue offers: the default entry and those of its sections. */
static void iso_catalogue(struct image_probe *p, uint64_t sector)
{
	uint8_t catalogue[ISO_SECTOR];
	uint8_t platform;
	unsigned left = 1; /* entries of the section that we are in */

	probe_promise(p, (sector + 1) * ISO_SECTOR);
	if (!probe_read(p, sector * ISO_SECTOR, catalogue, sizeof(catalogue)) || catalogue[0] != 1 ||
		bytes_load(catalogue + 30, 2) != 0xaa55)
		return;
	platform = catalogue[1];
	for (unsigned i = 1; i < CATALOGUE_ENTRIES; i++) {
		const uint8_t *entry = catalogue + 32 * i;

		if (left) {
			if (entry[0] == 0x88 && platform == 0)
				p->image->optical = true;
			if (entry[0] == 0x88 && platform == 0xef)
				p->image->uefi = true;
			left--;
		} else if (entry[0] == 0x90 || entry[0] == 0x91) {
			platform = entry[1];
			left = (unsigned)bytes_load(entry + 2, 2);
		} else {
			return;
		}
	}
}

/* A volume's name in the d-characters of ISO 9660, 7.4; whatever else is there becomes an underscore. */
static void iso_name(const uint8_t *field, char name[33])
{
	unsigned n = 32;

	while (n && (field[n - 1] == ' ' || !field[n - 1]))
		n--;
	for (unsigned i = 0; i < n; i++)
		name[i] = field[i] > ' ' && field[i] < 0x7f && field[i] != '"' ? (char)field[i] : field[i] == ' ' ? ' ' : '_';
	name[n] = 0;
}

bool probe_iso(struct image_probe *p)
{
	uint8_t descriptor[ISO_SECTOR];
	char name[33] = "";
	bool primary = false;

	for (unsigned i = 0; i < ISO_DESCRIPTORS_MAX; i++) {
		if (!probe_read(p, (uint64_t)(16 + i) * ISO_SECTOR, descriptor, sizeof(descriptor)) ||
			memcmp(descriptor + 1, "CD001", 5) || descriptor[0] == 0xff)
			break;
		if (descriptor[0] == 1 && !primary) {
			uint64_t blocks = bytes_load(descriptor + 80, 4), size = bytes_load(descriptor + 128, 2);

			primary = true;
			iso_name(descriptor + 40, name);
			if (blocks > ISO_PADDING)
				probe_promise(p, (blocks - ISO_PADDING) * size);
		}
		if (descriptor[0] == 0 && !memcmp(descriptor + 7, "EL TORITO SPECIFICATION", 23))
			iso_catalogue(p, bytes_load(descriptor + 71, 4));
	}
	if (!primary)
		return false;
	p->image->kind = HOST_IMAGE_ISO;
	probe_say(p, "ISO 9660 image");
	if (name[0])
		probe_say(p, " \"%s\"", name);
	if (p->image->optical || p->image->uefi)
		probe_say(p, ", El Torito for %s", !p->image->uefi ? "BIOS" : p->image->optical ? "BIOS and UEFI" : "UEFI");
	p->image->bios = probe_boot_code(p); /* made to be written to a disk as well */
	probe_say(p, p->image->bios ? ", boot sector" : ", no boot sector");
	return true;
}
