/* Disk images: partition tables, El Torito, file systems' magic numbers. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fuzz.h"
#include "vmm/bytes.h"
#include "vmm/error.h"
#include "vmm/host_image.h"

#define SEED_SIZE 0xc000u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct host_image image;
	int fd = memfd_create("fuzz", MFD_CLOEXEC);

	if (fd < 0 || (size && write(fd, data, size) != (ssize_t)size))
		abort();
	/* A memory file can always be read; the description is printable and never empty. */
	if (host_image_probe(fd, size, &image))
		abort();
	assert(image.description[0] && memchr(image.description, 0, sizeof(image.description)));
	for (const char *c = image.description; *c; c++)
		assert(*c >= ' ' && *c < 0x7f);
	for (unsigned n = 0; n < 4; n++) {
		bool uefi = n & 1, cd = n & 2;
		struct error err = {0};
		int rc = host_image_check_bootable("x.img", &image, uefi, cd, &err);

		assert(!rc == !err.message[0]);
		assert(rc || (uefi ? image.uefi : cd ? image.optical : image.bios));
	}
	close(fd);
	return 0;
}

static void put(uint8_t *at, const char *text)
{
	memcpy(at, text, strlen(text));
}

/* 0: MBR with an ext4 partition, 1: GPT with three, 2: ISO 9660 with El Torito for both, 3: a bare FAT. */
size_t fuzz_seed(unsigned kind, uint8_t *data, size_t size)
{
	if (kind > 3 || size < SEED_SIZE)
		return 0;
	memset(data, 0, SEED_SIZE);
	data[0] = 0xeb;
	bytes_store(data + 510, 2, 0xaa55);
	if (kind == 0 || kind == 1) {
		data[446] = kind ? 0 : 0x80;
		data[450] = kind ? 0xee : 0x83;
		bytes_store(data + 454, 4, kind ? 1 : 8);
		bytes_store(data + 458, 4, 80);
		bytes_store(data + 8 * 512 + 1024 + 56, 2, 0xef53);
		bytes_store(data + 8 * 512 + 1024 + 96, 4, 0x40);
	}
	if (kind == 1) {
		put(data + 512, "EFI PART");
		bytes_store(data + 512 + 72, 8, 2);
		bytes_store(data + 512 + 80, 4, 8);
		bytes_store(data + 512 + 84, 4, 128);
		for (unsigned i = 0; i < 3; i++) {
			uint8_t *entry = data + 1024 + 128 * i;

			memcpy(entry, i ? "\x28\x73\x2a\xc1\x1f\xf8\xd2\x11\xba\x4b\x00\xa0\xc9\x3e\xc9\x3b" : "Hah!IdontNeedEFI", 16);
			bytes_store(entry + 32, 8, 8);
			bytes_store(entry + 40, 8, 15);
		}
	}
	if (kind == 2) {
		uint8_t *d = data + 16 * 2048;

		put(d + 1, "CD001");
		d[0] = 1;
		put(d + 40, "VOLUME");
		bytes_store(d + 80, 4, 24);
		bytes_store(d + 128, 2, 2048);
		put(d + 2049, "CD001");
		put(d + 2048 + 7, "EL TORITO SPECIFICATION");
		bytes_store(d + 2048 + 71, 4, 18);
		d = data + 18 * 2048;
		d[0] = 1;
		bytes_store(d + 30, 2, 0xaa55);
		d[32] = d[96] = 0x88;
		d[64] = 0x91;
		d[65] = 0xef;
		d[66] = 1;
	}
	if (kind == 3)
		put(data + 54, "FAT12   ");
	return SEED_SIZE;
}
