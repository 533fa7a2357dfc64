/* Telling disk images apart; vmm/host_image.h has the contract. The structures are in the files beside this one. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "host_image_internal.h"
#include "vmm/bytes.h"
#include "vmm/error.h"

/* Formats that are not raw disks. A negative offset counts from the end. */
struct foreign {
	const char *name;
	int32_t offset;
	uint8_t size;
	const char *bytes;
	const char *convert;
};

#define QEMU_IMG(format) "qemu-img convert -f " format " -O raw"

static const struct foreign foreigns[] = {
	{"qcow2 image", 0, 8, "QFI\xfb\0\0\0\2", QEMU_IMG("qcow2")},
	{"qcow2 image", 0, 8, "QFI\xfb\0\0\0\3", QEMU_IMG("qcow2")},
	{"qcow image", 0, 8, "QFI\xfb\0\0\0\1", QEMU_IMG("qcow")},
	{"QED image", 0, 4, "QED\0", QEMU_IMG("qed")},
	{"VMDK image", 0, 4, "KDMV", QEMU_IMG("vmdk")},
	{"VMDK image", 0, 4, "COWD", QEMU_IMG("vmdk")},
	{"VMDK descriptor", 0, 21, "# Disk DescriptorFile", QEMU_IMG("vmdk")},
	{"VHDX image", 0, 8, "vhdxfile", QEMU_IMG("vhdx")},
	{"VHD image", 0, 8, "conectix", QEMU_IMG("vpc")},
	{"VHD image", -512, 8, "conectix", QEMU_IMG("vpc")},
	{"VDI image", 0x40, 4, "\x7f\x10\xda\xbe", QEMU_IMG("vdi")},
	{"Parallels image", 0, 16, "WithoutFreeSpace", QEMU_IMG("parallels")},
	{"Parallels image", 0, 16, "WithouFreSpacExt", QEMU_IMG("parallels")},
	{"DMG image", -512, 4, "koly", QEMU_IMG("dmg")},
	{"file packed by gzip", 0, 3, "\x1f\x8b\x08", "gzip -dc"},
	{"file packed by xz", 0, 6, "\xfd" "7zXZ\0", "xz -dc"},
	{"file packed by zstd", 0, 4, "\x28\xb5\x2f\xfd", "zstd -dc"},
	{"file packed by bzip2", 0, 3, "BZh", "bzip2 -dc"},
	{"zip archive", 0, 4, "PK\3\4", ""},
	{"tar archive", 257, 5, "ustar", ""},
};

bool probe_read(struct image_probe *p, uint64_t offset, void *buffer, size_t n)
{
	size_t done = 0;

	memset(buffer, 0, n);
	if (offset > p->size || n > p->size - offset)
		return false;
	while (done < n) {
		ssize_t got = pread(p->fd, (uint8_t *)buffer + done, n - done, (off_t)(offset + done));

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0) {
			if (!p->error)
				p->error = got ? -errno : -EIO;
			memset(buffer, 0, n);
			return false;
		}
		done += (size_t)got;
	}
	return true;
}

void probe_say(struct image_probe *p, const char *format, ...)
{
	size_t room = sizeof(p->image->description) - p->used;
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(p->image->description + p->used, room, format, args);
	va_end(args);
	if (n > 0)
		p->used += (size_t)n < room ? (size_t)n : room - 1;
}

void probe_promise(struct image_probe *p, uint64_t end)
{
	if (end > p->size && end - p->size > p->image->missing)
		p->image->missing = end - p->size;
}

static bool probe_foreign(struct image_probe *p)
{
	uint8_t found[24];

	for (unsigned i = 0; i < sizeof(foreigns) / sizeof(foreigns[0]); i++) {
		const struct foreign *f = &foreigns[i];

		if (f->offset < 0 && p->size < (uint64_t)-f->offset)
			continue;
		if (!probe_read(p, f->offset < 0 ? p->size - (uint64_t)-f->offset : (uint64_t)f->offset, found, f->size) ||
			memcmp(found, f->bytes, f->size))
			continue;
		p->image->kind = HOST_IMAGE_FOREIGN;
		snprintf(p->image->foreign, sizeof(p->image->foreign), "%s", f->name);
		snprintf(p->image->convert, sizeof(p->image->convert), "%s", f->convert);
		probe_say(p, "%s", f->name);
		return true;
	}
	return false;
}

/* No table: a file system from the first sector on, or a lone boot sector. */
static void probe_bare(struct image_probe *p)
{
	const char *filesystem = probe_filesystem(p, 0);

	p->image->bios = probe_boot_code(p);
	if (filesystem) {
		p->image->kind = HOST_IMAGE_FILESYSTEM;
		probe_say(p, "raw disk, %s from its first sector on, %s", filesystem,
			p->image->bios ? "with a boot sector" : "no boot code");
	} else if (p->image->bios) {
		p->image->kind = HOST_IMAGE_SECTOR;
		probe_say(p, "raw disk, boot sector without partitions");
	} else {
		probe_say(p, "raw disk without a partition table, boot code or a known file system");
	}
}

int host_image_probe(int fd, uint64_t size, struct host_image *image)
{
	struct image_probe p = {.fd = fd, .size = size, .image = image};
	const char *filesystem;

	memset(image, 0, sizeof(*image));
	if (!probe_foreign(&p) && !probe_iso(&p) && !probe_gpt(&p)) {
		/* A file system's own boot sector ends as an MBR does and has anything where that has its entries. */
		filesystem = probe_filesystem(&p, 0);
		if ((filesystem && strcmp(filesystem, "LVM")) || !probe_mbr(&p))
			probe_bare(&p);
	}
	return p.error;
}

int host_image_examine(const char *path, struct host_image *image, struct error *err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY), rc;
	struct stat st;
	off_t size;

	if (fd < 0)
		return error_set(err, -errno, "cannot open disk image %.300s: %s", path, strerror(errno));
	size = fstat(fd, &st) || (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) ? -1 : lseek(fd, 0, SEEK_END);
	if (size < 0) {
		close(fd);
		return error_set(err, -EINVAL, "%.300s is neither a regular file nor a block device", path);
	}
	rc = host_image_probe(fd, (uint64_t)size, image);
	close(fd);
	return rc ? error_set(err, rc, "cannot read disk image %.300s: %s", path, strerror(-rc)) : 0;
}

int host_image_check_format(const char *path, const struct host_image *image, struct error *err)
{
	if (image->kind != HOST_IMAGE_FOREIGN)
		return 0;
	if (!strncmp(image->convert, "qemu-img", 8))
		return error_set(err, -ENOEXEC, "%.120s is a %s, and vmm reads raw disks only; make one: %s %.80s disk.raw",
			path, image->foreign, image->convert, path);
	if (image->convert[0])
		return error_set(err, -ENOEXEC, "%.120s is a %s, and vmm reads raw disks only; unpack it: %s %.80s >disk.raw",
			path, image->foreign, image->convert, path);
	return error_set(err, -ENOEXEC, "%.200s is a %s, not a disk; unpack it first", path, image->foreign);
}

int host_image_check_bootable(const char *path, const struct host_image *image, bool uefi, bool cd, struct error *err)
{
	int rc = host_image_check_format(path, image, err);

	if (rc)
		return rc;
	if (image->missing)
		return error_set(err, -ENOEXEC, "%.120s is truncated: it lacks the last %llu bytes of what its tables name (%.120s)",
			path, (unsigned long long)image->missing, image->description);
	if (image->kind == HOST_IMAGE_UNKNOWN)
		return error_set(err, -ENOEXEC,
			"%.200s is neither a kernel nor a bootable disk: there is no partition table, boot code or known "
			"file system in it", path);
	if (uefi ? image->uefi : cd ? image->optical : image->bios)
		return 0;
	if (cd && image->kind != HOST_IMAGE_ISO)
		return error_set(err, -ENOEXEC, "%.120s is no CD that boots (%.120s); give it as GUEST or with --disk", path,
			image->description);
	if (!cd && image->optical && !uefi)
		return error_set(err, -ENOEXEC, "%.120s boots from a CD drive only (%.120s); give it with --cdrom", path,
			image->description);
	if (image->uefi)
		return error_set(err, -ENOEXEC, "%.120s boots by UEFI only (%.120s); add --firmware=uefi",
			path, image->description);
	if (image->bios)
		return error_set(err, -ENOEXEC, "%.120s boots by a BIOS only (%.120s); leave --firmware out", path,
			image->description);
	return error_set(err, -ENOEXEC, "%.120s has no boot code (%.120s); boot a kernel beside it: --kernel FILE --disk %.60s",
		path, image->description, path);
}
