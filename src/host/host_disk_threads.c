/*
 * The thread engine: each transfer is a job of the worker pool. Workers put finished requests in a list of our own,
 * not in the pool's done() functions, so that draining an image does not have to run the event loop.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

#include "vmm/event.h"
#include "host_disk_internal.h"

struct disk_threads {
	struct host_disk *disk;
	struct worker_pool *pool;
	pthread_mutex_t lock;
	/* Under lock. */
	pthread_cond_t finished_more;
	struct host_disk_request *finished;
};

static ssize_t transfer(struct host_disk_request *request)
{
	off_t offset = request->offset + request->transferred;
	int fd = request->disk->fd;
	struct iovec *iov;
	unsigned count;
	ssize_t ret;

	if (request->op == HOST_DISK_FLUSH) {
		ret = fdatasync(fd);
	} else {
		count = host_disk_rest(request, &iov);
		ret = request->op == HOST_DISK_READ ? preadv(fd, iov, count, offset) : pwritev(fd, iov, count, offset);
	}
	return ret < 0 ? -errno : ret;
}

static void work(void *ctx)
{
	struct host_disk_request *request = ctx;
	struct disk_threads *threads = request->disk->engine;
	int event_fd = request->disk->event_fd;
	ssize_t result = transfer(request);
	uint64_t one = 1;

	pthread_mutex_lock(&threads->lock);
	request->result = result; /* a vector of at most 2 GiB: Linux transfers no more at once */
	request->next = threads->finished;
	threads->finished = request;
	pthread_cond_signal(&threads->finished_more);
	/* Under the lock, since the image may be closed as soon as the request has been seen. */
	if (write(event_fd, &one, sizeof(one)) < 0)
		one = 0;
	pthread_mutex_unlock(&threads->lock);
}

static void work_done(void *ctx)
{
	(void)ctx; /* perhaps freed already */
}

static int threads_start(void *opaque, struct host_disk_request *request)
{
	struct disk_threads *threads = opaque;

	return worker_pool_submit(threads->pool, work, work_done, request);
}

static void threads_kick(void *opaque)
{
	(void)opaque;
}

static void threads_reap(void *opaque, bool wait)
{
	struct disk_threads *threads = opaque;
	struct host_disk_request *list;

	pthread_mutex_lock(&threads->lock);
	while (wait && !threads->finished)
		pthread_cond_wait(&threads->finished_more, &threads->lock);
	list = threads->finished;
	threads->finished = NULL;
	pthread_mutex_unlock(&threads->lock);
	while (list) {
		struct host_disk_request *request = list;

		list = request->next;
		host_disk_transferred(threads->disk, request, request->result);
	}
}

static void threads_destroy(void *opaque)
{
	struct disk_threads *threads = opaque;

	/* The last worker may still hold the lock. */
	pthread_mutex_lock(&threads->lock);
	pthread_mutex_unlock(&threads->lock);
	pthread_cond_destroy(&threads->finished_more);
	pthread_mutex_destroy(&threads->lock);
	free(threads);
}

static const struct disk_engine_ops threads_ops = {
	"threads", threads_start, threads_kick, threads_reap, threads_destroy};

int disk_threads_create(struct host_disk *disk, struct worker_pool *pool)
{
	struct disk_threads *threads;

	if (!pool)
		return -ENOSYS;
	threads = calloc(1, sizeof(*threads));
	if (!threads)
		return -ENOMEM;
	threads->disk = disk;
	threads->pool = pool;
	pthread_mutex_init(&threads->lock, NULL);
	pthread_cond_init(&threads->finished_more, NULL);
	disk->engine = threads;
	disk->ops = &threads_ops;
	return 0;
}
