/* The two engines of host_disk: io_uring and threads. */
#ifndef VMM_HOST_DISK_INTERNAL_H
#define VMM_HOST_DISK_INTERNAL_H

#include <pthread.h>

#include "vmm/host_disk.h"

struct error;
struct event_loop;
struct event_source;
struct worker_pool;

/* An engine carries out single transfers: request->rest, request->transferred. host_disk_transferred() takes its answers. */
struct disk_engine_ops {
	const char *name;
	/* Starts what is left of a request. 0 or -errno (then it has not been started). */
	int (*start)(void *engine, struct host_disk_request *request);
	void (*kick)(void *engine);
	/* Handles completions; if wait is set, blocks until there is one. */
	void (*reap)(void *engine, bool wait);
	void (*destroy)(void *engine);
};

struct host_disk {
	/* Set at create. */
	const struct disk_engine_ops *ops;
	void *engine;
	struct event_loop *loop;
	struct event_source *source; /* watches the engine's eventfd */
	int fd, event_fd;
	uint64_t size;
	bool readonly;
	/* Device lock. */
	unsigned in_flight;
	struct host_disk_request *failed; /* could not be started; reported from the loop */
};

/* Result of one transfer: bytes or -errno. Completes or restarts the request. */
void host_disk_transferred(struct host_disk *disk, struct host_disk_request *request, ssize_t result);
/* The vector and the number of elements that are left. */
unsigned host_disk_rest(const struct host_disk_request *request, struct iovec **iov);

/* host_disk_open() with the choice of engine, for tests. */
int host_disk_open_engine(struct event_loop *loop, struct worker_pool *pool, const char *path, bool readonly,
	bool may_uring, struct host_disk **disk, struct error *err);

/* -errno if the host has no io_uring for us. */
int disk_uring_create(struct host_disk *disk);
int disk_threads_create(struct host_disk *disk, struct worker_pool *pool);

#endif
