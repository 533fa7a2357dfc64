/*
 * Raw disk images. A request may take several transfers (the kernel may do less than it was asked for); a read that
 * meets the end of the file, because someone has shrunk it under us, is an I/O error. Invariant: every submitted
 * request is reported exactly once, from the event loop's thread and never from within host_disk_submit().
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmm/error.h"
#include "vmm/event.h"
#include "vmm/host_disk.h"
#include "vmm/host_image.h"
#include "vmm/log.h"
#include "host_disk_internal.h"

static int image_lock(int fd, bool readonly)
{
	struct flock lock = {.l_type = readonly ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET};

	if (!fcntl(fd, F_OFD_SETLK, &lock))
		return 0;
	/* A file system without locks is no reason to refuse its images. */
	return errno == EAGAIN || errno == EACCES ? -EBUSY : 0;
}

static int image_size(int fd, const char *path, uint64_t *size, struct error *err)
{
	struct stat st;

	if (fstat(fd, &st))
		return error_set(err, -errno, "cannot examine disk image %s: %s", path, strerror(errno));
	if (S_ISREG(st.st_mode))
		*size = st.st_size;
	else if (!S_ISBLK(st.st_mode))
		return error_set(err, -EINVAL, "%s is neither a regular file nor a block device", path);
	else if (ioctl(fd, BLKGETSIZE64, size))
		return error_set(err, -errno, "cannot learn the size of block device %s: %s", path, strerror(errno));
	if (!*size)
		return error_set(err, -EINVAL, "disk image %s is empty", path);
	if (*size % 512)
		return error_set(err, -EINVAL, "the size of disk image %s, %llu bytes, is not a multiple of 512", path,
			(unsigned long long)*size);
	return 0;
}

/* Served as a raw disk, an image of another format would be damaged by the guest's first write. */
static int image_format(int fd, const char *path, uint64_t size, struct error *err)
{
	struct host_image image;
	int ret = host_image_probe(fd, size, &image);

	if (ret)
		return error_set(err, ret, "cannot read disk image %s: %s", path, strerror(-ret));
	log_message(LOG_INFO, "disk image %s: %s", path, image.description);
	return host_image_check_format(path, &image, err);
}

static int image_open(const char *path, bool readonly, int *out, uint64_t *size, struct error *err)
{
	/* O_NONBLOCK so that a FIFO does not hold us up. */
	int fd = open(path, (readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	int ret;

	if (fd < 0 && !readonly && (errno == EACCES || errno == EROFS || errno == EPERM) && !access(path, R_OK))
		return error_set(err, -errno, "disk image %s is not writable; add \",ro\" to use it read-only", path);
	if (fd < 0)
		return error_set(err, -errno, "cannot open disk image %s: %s", path, strerror(errno));
	ret = image_size(fd, path, size, err);
	if (!ret)
		ret = image_format(fd, path, *size, err);
	if (!ret && image_lock(fd, readonly))
		ret = error_set(err, -EBUSY, "disk image %s is in use by another process%s", path,
			readonly ? ", which writes to it" : "; stop that, or add \",ro\" to both");
	if (ret)
		close(fd);
	else
		*out = fd;
	return ret;
}

static void report(struct host_disk *disk, struct host_disk_request *request, int result)
{
	free(request->rest);
	request->rest = NULL;
	disk->in_flight--;
	request->done(request, result);
}

static void report_failed(struct host_disk *disk)
{
	struct host_disk_request *list = disk->failed;

	disk->failed = NULL;
	while (list) {
		struct host_disk_request *request = list;

		list = request->next;
		report(disk, request, request->result);
	}
}

static void engine_ready(void *ctx, int fd, uint32_t events)
{
	struct host_disk *disk = ctx;
	uint64_t count;

	(void)events;
	if (read(fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		return;
	report_failed(disk);
	disk->ops->reap(disk->engine, false);
}

int host_disk_open(struct event_loop *loop, struct worker_pool *pool, const char *path, bool readonly,
	struct host_disk **out, struct error *err)
{
	return host_disk_open_engine(loop, pool, path, readonly, true, out, err);
}

int host_disk_open_engine(struct event_loop *loop, struct worker_pool *pool, const char *path, bool readonly,
	bool may_uring, struct host_disk **out, struct error *err)
{
	struct host_disk *disk = calloc(1, sizeof(*disk));
	int ret;

	if (!disk)
		return error_set(err, -ENOMEM, "no memory for disk image %s", path);
	disk->loop = loop;
	disk->readonly = readonly;
	disk->event_fd = -1;
	ret = image_open(path, readonly, &disk->fd, &disk->size, err);
	if (ret)
		goto fail;
	disk->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (disk->event_fd < 0) {
		ret = error_set(err, -errno, "cannot create an eventfd for disk image %s: %s", path, strerror(errno));
		goto fail_fd;
	}
	ret = may_uring ? disk_uring_create(disk) : -ENOSYS;
	log_message(LOG_INFO, "disk image %s: %llu bytes%s, by %s", path, (unsigned long long)disk->size,
		readonly ? ", read-only" : "", ret ? "worker threads" : "io_uring");
	if (ret)
		ret = disk_threads_create(disk, pool);
	if (ret) {
		error_set(err, ret, "no way to do asynchronous I/O on disk image %s: %s", path, strerror(-ret));
		goto fail_event;
	}
	disk->source = event_watch(loop, disk->event_fd, EPOLLIN, engine_ready, disk);
	if (!disk->source) {
		ret = error_set(err, -ENOMEM, "cannot watch the completions of disk image %s", path);
		disk->ops->destroy(disk->engine);
		goto fail_event;
	}
	*out = disk;
	return 0;
fail_event:
	close(disk->event_fd);
fail_fd:
	close(disk->fd);
fail:
	free(disk);
	return ret;
}

void host_disk_drain(struct host_disk *disk)
{
	report_failed(disk);
	disk->ops->kick(disk->engine);
	while (disk->in_flight) {
		disk->ops->reap(disk->engine, true);
		report_failed(disk);
	}
}

void host_disk_close(struct host_disk *disk)
{
	if (!disk)
		return;
	host_disk_drain(disk);
	event_unwatch(disk->source);
	disk->ops->destroy(disk->engine);
	close(disk->event_fd);
	close(disk->fd);
	free(disk);
}

uint64_t host_disk_size(const struct host_disk *disk)
{
	return disk->size;
}

bool host_disk_readonly(const struct host_disk *disk)
{
	return disk->readonly;
}

const char *host_disk_engine(const struct host_disk *disk)
{
	return disk->ops->name;
}

static void fail_later(struct host_disk *disk, struct host_disk_request *request, int result)
{
	uint64_t one = 1;

	request->result = result;
	request->next = disk->failed;
	disk->failed = request;
	if (write(disk->event_fd, &one, sizeof(one)) < 0)
		return; /* the counter is full: the loop is about to look anyway */
}

unsigned host_disk_rest(const struct host_disk_request *request, struct iovec **iov)
{
	uint64_t done = request->transferred;
	unsigned i = 0;

	while (i < request->iov_count && done >= request->iov[i].iov_len)
		done -= request->iov[i++].iov_len;
	for (unsigned j = i; j < request->iov_count; j++)
		request->rest[j] = request->iov[j];
	if (i < request->iov_count) {
		request->rest[i].iov_base = (uint8_t *)request->iov[i].iov_base + done;
		request->rest[i].iov_len = request->iov[i].iov_len - done;
	}
	*iov = request->rest + i;
	return request->iov_count - i;
}

void host_disk_submit(struct host_disk *disk, struct host_disk_request *request)
{
	int ret = 0;

	request->disk = disk;
	request->transferred = 0;
	request->next = NULL;
	request->rest = NULL;
	disk->in_flight++;
	if (request->op != HOST_DISK_FLUSH) {
		if (request->op == HOST_DISK_WRITE && disk->readonly)
			ret = -EROFS;
		else if (request->offset > disk->size || request->length > disk->size - request->offset)
			ret = -EIO;
		else if (!request->length) {
			fail_later(disk, request, 0);
			return;
		}
		request->rest = ret ? NULL : malloc(request->iov_count * sizeof(*request->rest));
		if (!ret && !request->rest)
			ret = -ENOMEM;
	}
	if (!ret)
		ret = disk->ops->start(disk->engine, request);
	if (ret)
		fail_later(disk, request, ret);
}

void host_disk_kick(struct host_disk *disk)
{
	disk->ops->kick(disk->engine);
}

void host_disk_transferred(struct host_disk *disk, struct host_disk_request *request, ssize_t result)
{
	bool again = result == -EINTR || result == -EAGAIN;

	if (request->op == HOST_DISK_FLUSH) {
		if (!again) {
			report(disk, request, result < 0 ? (int)result : 0);
			return;
		}
	} else if (result <= 0 && !again) {
		report(disk, request, result < 0 ? (int)result : -EIO);
		return;
	} else if (!again) {
		request->transferred += result;
		if (request->transferred >= request->length) {
			report(disk, request, 0);
			return;
		}
	}
	result = disk->ops->start(disk->engine, request);
	if (result)
		report(disk, request, (int)result);
	else
		disk->ops->kick(disk->engine);
}
