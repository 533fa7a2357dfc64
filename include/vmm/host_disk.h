/*
 * Disk images on the host: raw files and block devices. Requests are asynchronous: io_uring where the host allows it,
 * else the worker pool. The image is locked (open file description locks) against being written by two at once.
 */
#ifndef VMM_HOST_DISK_H
#define VMM_HOST_DISK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

struct error;
struct event_loop;
struct worker_pool;
struct host_disk;

enum host_disk_op { HOST_DISK_READ, HOST_DISK_WRITE, HOST_DISK_FLUSH };

/* Owned by the caller, untouched by him from submit to done(). */
struct host_disk_request {
	enum host_disk_op op;
	uint64_t offset;	  /* bytes */
	const struct iovec *iov;  /* lives until done() */
	unsigned iov_count;
	uint64_t length;	  /* sum of iov */
	/* On the loop's thread, device lock held; result is 0 or -errno. Never called from within submit. */
	void (*done)(struct host_disk_request *request, int result);
	/* Private to host_disk. */
	struct host_disk *disk;
	struct host_disk_request *next;
	uint64_t transferred;
	struct iovec *rest; /* copy of iov, advanced after a short transfer */
	int result;
};

/*
 * Opens an image. Sizes of zero or not a multiple of 512, an unwritable image (unless readonly) and an image that
 * another process has open for writing are errors with a clear sentence. pool serves as the fallback for io_uring.
 */
int host_disk_open(struct event_loop *loop, struct worker_pool *pool, const char *path, bool readonly,
	struct host_disk **disk, struct error *err);
/* Waits for what is in flight; the done() functions of that run on the calling thread. */
void host_disk_close(struct host_disk *disk);
/* Waits until nothing is in flight, as close does. */
void host_disk_drain(struct host_disk *disk);

uint64_t host_disk_size(const struct host_disk *disk); /* bytes */
bool host_disk_readonly(const struct host_disk *disk);
/* "io_uring" or "threads". */
const char *host_disk_engine(const struct host_disk *disk);

/* Starts a request. Device lock held. Failures are reported through done(). */
void host_disk_submit(struct host_disk *disk, struct host_disk_request *request);
/* Hands what was submitted to the host; call after a batch of submits. */
void host_disk_kick(struct host_disk *disk);

#endif
