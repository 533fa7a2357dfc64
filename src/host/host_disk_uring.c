/*
 * The io_uring engine: one ring for each image, completions announced on the image's eventfd. Containers often forbid
 * io_uring; then host_disk uses threads.
 */
#include <errno.h>
#include <liburing.h>
#include <stdlib.h>

#include "host_disk_internal.h"

#define RING_ENTRIES 256

struct disk_uring {
	struct host_disk *disk;
	struct io_uring ring;
};

static int uring_start(void *opaque, struct host_disk_request *request)
{
	struct disk_uring *uring = opaque;
	struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);
	int fd = uring->disk->fd;
	struct iovec *iov;
	unsigned count;

	if (!sqe) {
		io_uring_submit(&uring->ring);
		sqe = io_uring_get_sqe(&uring->ring);
		if (!sqe)
			return -EBUSY;
	}
	if (request->op == HOST_DISK_FLUSH) {
		io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
	} else {
		uint64_t offset = request->offset + request->transferred;

		count = host_disk_rest(request, &iov);
		if (request->op == HOST_DISK_READ)
			io_uring_prep_readv(sqe, fd, iov, count, offset);
		else
			io_uring_prep_writev(sqe, fd, iov, count, offset);
	}
	io_uring_sqe_set_data(sqe, request);
	return 0;
}

static void uring_kick(void *opaque)
{
	struct disk_uring *uring = opaque;

	/* -EBUSY and -EAGAIN leave the entries queued; reaping makes room and submits again. */
	io_uring_submit(&uring->ring);
}

static void uring_reap(void *opaque, bool wait)
{
	struct disk_uring *uring = opaque;
	struct io_uring_cqe *cqe;

	if (wait) {
		io_uring_submit(&uring->ring);
		if (io_uring_wait_cqe(&uring->ring, &cqe))
			return;
	}
	while (!io_uring_peek_cqe(&uring->ring, &cqe)) {
		struct host_disk_request *request = io_uring_cqe_get_data(cqe);
		int result = cqe->res;

		io_uring_cqe_seen(&uring->ring, cqe);
		host_disk_transferred(uring->disk, request, result);
	}
	if (io_uring_sq_ready(&uring->ring))
		io_uring_submit(&uring->ring);
}

static void uring_destroy(void *opaque)
{
	struct disk_uring *uring = opaque;

	io_uring_queue_exit(&uring->ring);
	free(uring);
}

static const struct disk_engine_ops uring_ops = {"io_uring", uring_start, uring_kick, uring_reap, uring_destroy};

int disk_uring_create(struct host_disk *disk)
{
	struct disk_uring *uring = calloc(1, sizeof(*uring));
	int ret;

	if (!uring)
		return -ENOMEM;
	uring->disk = disk;
	ret = io_uring_queue_init(RING_ENTRIES, &uring->ring, 0);
	if (!ret) {
		ret = io_uring_register_eventfd(&uring->ring, disk->event_fd);
		if (ret)
			io_uring_queue_exit(&uring->ring);
	}
	if (ret) {
		free(uring);
		return ret;
	}
	disk->engine = uring;
	disk->ops = &uring_ops;
	return 0;
}
