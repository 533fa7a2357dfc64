/*
 * The event loop. One epoll set holds the watched descriptors, one eventfd (posts, stop) and one timerfd (the
 * earliest timer). A round is: hooks prepare, wait, take the device lock, timers, posts, descriptors, hooks.
 *
 * Invariant: an epoll result may name a source that another thread unwatched between the wait and the lock. So an
 * unwatched source stays allocated, with fn == NULL, until the round that could hold such a result is over; only
 * the loop's thread frees it, at the end of a round.
 */
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "vmm/error.h"

#define EVENTS_PER_ROUND 64

uint64_t event_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + ts.tv_nsec;
}

/* The loop's own descriptors: data.ptr is the address of the field that holds the descriptor. */
static int add_own_fd(struct event_loop *loop, int *field)
{
	struct epoll_event ev = {.events = EPOLLIN, .data.ptr = field};

	return epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, *field, &ev);
}

int event_loop_create(pthread_mutex_t *device_lock, struct event_loop **out, struct error *err)
{
	struct event_loop *loop = calloc(1, sizeof(*loop));
	int rc;

	*out = NULL;
	if (!loop)
		return error_set(err, -ENOMEM, "Not enough memory for the event loop");
	loop->device_lock = device_lock;
	loop->timer_fd_deadline = UINT64_MAX;
	loop->post_tail = &loop->post_head;
	pthread_mutex_init(&loop->post_lock, NULL);
	loop->wake_fd = loop->timer_fd = -1;
	loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (loop->epoll_fd >= 0)
		loop->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (loop->wake_fd >= 0)
		loop->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (loop->timer_fd < 0 || add_own_fd(loop, &loop->wake_fd) || add_own_fd(loop, &loop->timer_fd)) {
		rc = error_set(err, -errno, "Cannot create the event loop's descriptors: %m");
		event_loop_destroy(loop);
		return rc;
	}
	*out = loop;
	return 0;
}

static void free_dead(struct event_loop *loop)
{
	while (loop->dead) {
		struct event_source *source = loop->dead;

		loop->dead = source->next;
		free(source);
	}
}

void event_loop_destroy(struct event_loop *loop)
{
	if (!loop)
		return;
	while (loop->sources)
		event_unwatch(loop->sources);
	free_dead(loop);
	while (loop->post_head) {
		struct event_post *post = loop->post_head;

		loop->post_head = post->next;
		free(post);
	}
	if (loop->timer_fd >= 0)
		close(loop->timer_fd);
	if (loop->wake_fd >= 0)
		close(loop->wake_fd);
	if (loop->epoll_fd >= 0)
		close(loop->epoll_fd);
	pthread_mutex_destroy(&loop->post_lock);
	free(loop);
}

static void drain(int fd)
{
	uint64_t count;

	while (read(fd, &count, sizeof(count)) < 0 && errno == EINTR)
		;
}

static void wake(struct event_loop *loop)
{
	uint64_t one = 1;

	/* EAGAIN means that the counter is full: the loop is awake anyway. */
	while (write(loop->wake_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

static void run_posts(struct event_loop *loop)
{
	struct event_post *list;

	pthread_mutex_lock(&loop->post_lock);
	list = loop->post_head;
	loop->post_head = NULL;
	loop->post_tail = &loop->post_head;
	pthread_mutex_unlock(&loop->post_lock);
	while (list) {
		struct event_post *post = list;

		list = post->next;
		post->fn(post->ctx);
		free(post);
	}
}

void event_loop_poll(struct event_loop *loop, int timeout_ms)
{
	struct epoll_event ready[EVENTS_PER_ROUND];
	int count;

	if (loop->hook_count) {
		pthread_mutex_lock(loop->device_lock);
		for (unsigned i = 0; i < loop->hook_count; i++)
			loop->hooks[i].prepare(loop->hooks[i].ctx, &timeout_ms);
		pthread_mutex_unlock(loop->device_lock);
	}
	count = epoll_wait(loop->epoll_fd, ready, EVENTS_PER_ROUND, timeout_ms);

	pthread_mutex_lock(loop->device_lock);
	for (int i = 0; i < count; i++) {
		if (ready[i].data.ptr == &loop->wake_fd) {
			drain(loop->wake_fd);
		} else if (ready[i].data.ptr == &loop->timer_fd) {
			drain(loop->timer_fd);
			loop->timer_fd_deadline = UINT64_MAX;
		}
	}
	event_timers_run(loop);
	run_posts(loop);
	for (int i = 0; i < count; i++) {
		struct event_source *source = ready[i].data.ptr;

		if (ready[i].data.ptr == &loop->wake_fd || ready[i].data.ptr == &loop->timer_fd)
			continue;
		if (source->fn)
			source->fn(source->ctx, source->fd, ready[i].events);
	}
	for (unsigned i = 0; i < loop->hook_count; i++)
		loop->hooks[i].dispatched(loop->hooks[i].ctx);
	free_dead(loop);
	pthread_mutex_unlock(loop->device_lock);
}

void event_loop_run(struct event_loop *loop)
{
	while (!atomic_load(&loop->stop))
		event_loop_poll(loop, -1);
	atomic_store(&loop->stop, false);
}

void event_loop_stop(struct event_loop *loop)
{
	int saved_errno = errno;

	atomic_store(&loop->stop, true);
	wake(loop);
	errno = saved_errno;
}

struct event_source *event_watch(struct event_loop *loop, int fd, uint32_t epoll_events, event_fd_fn fn, void *ctx)
{
	struct event_source *source = calloc(1, sizeof(*source));
	struct epoll_event ev = {.events = epoll_events, .data.ptr = source};

	if (!source)
		return NULL;
	source->loop = loop;
	source->fd = fd;
	source->events = epoll_events;
	source->fn = fn;
	source->ctx = ctx;
	if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &ev)) {
		free(source);
		return NULL;
	}
	source->next = loop->sources;
	source->link = &loop->sources;
	if (source->next)
		source->next->link = &source->next;
	loop->sources = source;
	return source;
}

void event_modify(struct event_source *source, uint32_t epoll_events)
{
	struct epoll_event ev = {.events = epoll_events, .data.ptr = source};

	if (source->events == epoll_events)
		return;
	source->events = epoll_events;
	epoll_ctl(source->loop->epoll_fd, EPOLL_CTL_MOD, source->fd, &ev);
}

void event_unwatch(struct event_source *source)
{
	struct event_loop *loop;

	if (!source)
		return;
	loop = source->loop;
	epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, source->fd, NULL);
	source->fn = NULL;
	*source->link = source->next;
	if (source->next)
		source->next->link = source->link;
	source->next = loop->dead;
	loop->dead = source;
}

int event_post(struct event_loop *loop, event_fn fn, void *ctx)
{
	struct event_post *post = malloc(sizeof(*post));
	bool first;

	if (!post)
		return -ENOMEM;
	post->fn = fn;
	post->ctx = ctx;
	post->next = NULL;
	pthread_mutex_lock(&loop->post_lock);
	first = !loop->post_head;
	*loop->post_tail = post;
	loop->post_tail = &post->next;
	pthread_mutex_unlock(&loop->post_lock);
	if (first)
		wake(loop);
	return 0;
}

int event_add_poll_hook(struct event_loop *loop, void (*prepare)(void *ctx, int *timeout_ms),
	void (*dispatched)(void *ctx), void *ctx)
{
	if (loop->hook_count == POLL_HOOK_MAX)
		return -ENOSPC;
	loop->hooks[loop->hook_count++] = (struct poll_hook){prepare, dispatched, ctx};
	return 0;
}

void event_remove_poll_hook(struct event_loop *loop, void *ctx)
{
	unsigned kept = 0;

	for (unsigned i = 0; i < loop->hook_count; i++)
		if (loop->hooks[i].ctx != ctx)
			loop->hooks[kept++] = loop->hooks[i];
	loop->hook_count = kept;
}
