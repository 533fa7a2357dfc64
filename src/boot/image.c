/*
 * Reading guest files. They are read with pread(), never mapped: a file that shrinks while we read it is an
 * error here, not a SIGBUS.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "loader.h"

int image_open(struct boot_image *image, const char *path, const char *what, struct error *err)
{
	struct stat st;
	off_t end;
	int code;

	*image = (struct boot_image){ .fd = -1, .path = path };
	if (!path || !path[0])
		return error_set(err, -EINVAL, "no %s file is given", what);
	image->fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	if (image->fd < 0) {
		code = -errno;
		return error_set(err, code, "cannot open the %s %s: %s", what, path, strerror(-code));
	}
	if (fstat(image->fd, &st) < 0)
		st.st_mode = 0;
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
		image_close(image);
		return error_set(err, -EINVAL, "the %s %s is %s, not a file", what, path,
			S_ISDIR(st.st_mode) ? "a directory" : "a special file");
	}
	end = lseek(image->fd, 0, SEEK_END);
	if (end <= 0) {
		image_close(image);
		return error_set(err, -ENOEXEC, "the %s %s is empty", what, path);
	}
	image->size = (uint64_t)end;
	return 0;
}

void image_close(struct boot_image *image)
{
	if (image->fd >= 0)
		close(image->fd);
	image->fd = -1;
}

int image_read(const struct boot_image *image, uint64_t offset, void *dst, uint64_t n, struct error *err)
{
	uint8_t *at = dst;

	if (offset > image->size || n > image->size - offset)
		return error_set(err, -ENOEXEC, "%s is truncated: it ends at byte %llu, before %llu",
			image->path, (unsigned long long)image->size, (unsigned long long)(offset + n));
	while (n) {
		ssize_t got = pread(image->fd, at, n, (off_t)offset);
		int code = got < 0 ? -errno : -EIO;

		if (code == -EINTR)
			continue;
		if (got <= 0)
			return error_set(err, code, "cannot read %s: %s", image->path,
				got ? strerror(-code) : "it became shorter");
		at += got;
		offset += (uint64_t)got;
		n -= (uint64_t)got;
	}
	return 0;
}

int image_read_guest(const struct boot_image *image, uint64_t offset, struct guest_mem *mem, uint64_t gpa,
	uint64_t n, struct error *err)
{
	void *dst;
	int code;

	if (!n)
		return 0;
	dst = mem_ptr(mem, gpa, n, true);
	if (!dst)
		return error_set(err, -EINVAL, "%s does not fit into guest memory at 0x%llx", image->path,
			(unsigned long long)gpa);
	code = image_read(image, offset, dst, n, err);
	mem_mark_written(mem, gpa, n);
	return code;
}
