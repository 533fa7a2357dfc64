/*
 * What the files of the event module share. Everything in struct event_loop is guarded by the device lock, except
 * the post queue (post_lock) and what is set at create.
 */
#ifndef EVENT_INTERNAL_H
#define EVENT_INTERNAL_H

#include "vmm/event.h"

#include <stdatomic.h>

#define POLL_HOOK_MAX 8

struct event_source {
	struct event_loop *loop;
	int fd;
	uint32_t events;
	event_fd_fn fn; /* NULL once unwatched */
	void *ctx;
	struct event_source *next, **link; /* in loop->sources, or next alone in loop->dead */
};

struct event_timer {
	struct event_loop *loop;
	event_fn fn;
	void *ctx;
	uint64_t deadline;
	struct event_timer *next, **link; /* in loop->timers (sorted) or loop->firing; link is NULL when disarmed */
};

struct event_post {
	event_fn fn;
	void *ctx;
	struct event_post *next;
};

struct poll_hook {
	void (*prepare)(void *ctx, int *timeout_ms);
	void (*dispatched)(void *ctx);
	void *ctx;
};

struct event_loop {
	/* Set at create. */
	pthread_mutex_t *device_lock;
	int epoll_fd;
	int wake_fd;  /* eventfd: a post or a stop */
	int timer_fd; /* CLOCK_MONOTONIC, absolute */

	/* Device lock. */
	struct event_source *sources;
	struct event_source *dead; /* unwatched, freed when no epoll result can name them any more */
	struct event_timer *timers;
	struct event_timer *firing;
	uint64_t timer_fd_deadline; /* what timer_fd is set to; UINT64_MAX: nothing */
	struct poll_hook hooks[POLL_HOOK_MAX];
	unsigned hook_count;

	pthread_mutex_t post_lock;
	struct event_post *post_head, **post_tail; /* under post_lock */

	_Atomic bool stop;
};

/* timer.c: calls what is due. Device lock held, loop's thread. */
void event_timers_run(struct event_loop *loop);

#endif
