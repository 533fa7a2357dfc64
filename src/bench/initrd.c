/*
 * An initramfs with one program in it, as /init: a cpio archive in the "newc" format (Linux,
 * Documentation/driver-api/early-userspace/buffer-format.rst), so that no tool and no privilege is needed, not even for
 * the device node of the console.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench_internal.h"

/* Names and contents are padded to four bytes. */
static void pad(FILE *file, size_t length)
{
	static const char zeros[4];

	fwrite(zeros, 1, -length & 3, file);
}

static void member(FILE *file, unsigned inode, const char *name, unsigned mode, unsigned major_number,
	unsigned minor_number, const void *data, size_t size)
{
	size_t name_size = strlen(name) + 1;

	/* magic ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check */
	fprintf(file, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", inode, mode, 0, 0, 1, 0,
		(unsigned)size, 0, 0, major_number, minor_number, (unsigned)name_size, 0);
	fwrite(name, 1, name_size, file);
	pad(file, 110 + name_size);
	if (size)
		fwrite(data, 1, size, file);
	pad(file, size);
}

static int read_all(const char *path, void **data, size_t *size)
{
	struct stat st;
	FILE *file = fopen(path, "re");

	if (!file)
		return -errno;
	if (fstat(fileno(file), &st) || st.st_size <= 0 || st.st_size > 64 << 20) {
		fclose(file);
		return -EFBIG;
	}
	*size = (size_t)st.st_size;
	*data = malloc(*size);
	if (!*data || fread(*data, 1, *size, file) != *size) {
		free(*data);
		fclose(file);
		return -EIO;
	}
	fclose(file);
	return 0;
}

/* Makes the file of the binary. 0 or -errno. */
static int convert(const char *path, const char *binary, void (*write)(FILE *file, const void *data, size_t size))
{
	void *data = NULL;
	size_t size = 0;
	FILE *file;
	int rc = read_all(binary, &data, &size);

	if (rc)
		return rc;
	file = fopen(path, "we");
	if (!file) {
		rc = -errno;
		free(data);
		return rc;
	}
	write(file, data, size);
	free(data);
	rc = ferror(file) ? -EIO : 0;
	if (fclose(file) && !rc)
		rc = -EIO;
	return rc;
}

static void write_disk(FILE *file, const void *data, size_t size)
{
	fwrite(data, 1, size, file);
	for (; size % 512; size++)
		fputc(0, file);
}

static void write_archive(FILE *file, const void *data, size_t size)
{
	static const char *const folders[] = {"dev", "proc", "sys", "tmp", "root"};
	unsigned inode = 1;

	for (unsigned i = 0; i < sizeof(folders) / sizeof(folders[0]); i++)
		member(file, inode++, folders[i], S_IFDIR | 0755, 0, 0, NULL, 0);
	member(file, inode++, "dev/console", S_IFCHR | 0600, 5, 1, NULL, 0);
	member(file, inode++, "dev/null", S_IFCHR | 0666, 1, 3, NULL, 0);
	member(file, inode++, "init", S_IFREG | 0755, 0, 0, data, size);
	member(file, 0, "TRAILER!!!", 0, 0, 0, NULL, 0);
}

int bench_disk_write(const char *path, const char *binary)
{
	return convert(path, binary, write_disk);
}

int bench_initrd_write(const char *path, const char *binary)
{
	return convert(path, binary, write_archive);
}
