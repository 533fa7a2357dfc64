/*
 * The event loop: epoll, eventfd, timerfd. One loop per machine, run by one thread. Every callback runs on that
 * thread with the machine's device lock held, the lock that bus_access() also takes: so a device model is never
 * entered twice at once, whether by a vcpu, by I/O or by a timer.
 *
 * Lock order: device lock first, then any lock private to a module.
 */
#ifndef VMM_EVENT_H
#define VMM_EVENT_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct error;
struct event_loop;
struct event_source; /* a watched file descriptor */
struct event_timer;  /* a one-shot deadline on the loop's clock */
struct worker_pool;

typedef void (*event_fd_fn)(void *ctx, int fd, uint32_t epoll_events);
typedef void (*event_fn)(void *ctx);

/* Creates a loop whose callbacks hold *device_lock (owned by the caller, outlives the loop). */
int event_loop_create(pthread_mutex_t *device_lock, struct event_loop **loop, struct error *err);
void event_loop_destroy(struct event_loop *loop);

/* Runs callbacks until event_loop_stop(). The calling thread becomes the loop's thread. */
void event_loop_run(struct event_loop *loop);
/* Handles what is ready, waiting at most timeout_ms (-1: until something is). For tests. */
void event_loop_poll(struct event_loop *loop, int timeout_ms);
/* Any thread, signal handlers included. */
void event_loop_stop(struct event_loop *loop);

/* Nanoseconds of CLOCK_MONOTONIC: the clock of the timers and of every device. */
uint64_t event_now(void);

/* Watches fd (not owned) for epoll events; NULL on -ENOMEM or a bad fd. Device lock held, or before the loop runs. */
struct event_source *event_watch(struct event_loop *loop, int fd, uint32_t epoll_events, event_fd_fn fn, void *ctx);
void event_modify(struct event_source *source, uint32_t epoll_events);
/* Before fd is closed. Device lock held. Safe in any callback, the source's own too; NULL is allowed; the callback is not called again after this returns. */
void event_unwatch(struct event_source *source);

/* Creates a disarmed timer; NULL if out of memory. Device lock held for all timer calls. */
struct event_timer *event_timer_create(struct event_loop *loop, event_fn fn, void *ctx);
/* Arms for an absolute event_now() time, replacing an earlier deadline; a past time fires at once. */
void event_timer_arm(struct event_timer *timer, uint64_t deadline_ns);
void event_timer_cancel(struct event_timer *timer);
void event_timer_destroy(struct event_timer *timer);

/* Runs fn(ctx) once on the loop's thread, soon. Any thread. 0, or -ENOMEM: then it never runs. */
int event_post(struct event_loop *loop, event_fn fn, void *ctx);

/*
 * Hooks for libraries that bring their own poll() set (libslirp): before each wait, prepare(ctx, &timeout_ms) may
 * shorten the wait; after it, dispatched(ctx) runs. At most 8.
 */
int event_add_poll_hook(struct event_loop *loop, void (*prepare)(void *ctx, int *timeout_ms),
	void (*dispatched)(void *ctx), void *ctx);
/* Removes the hook with this ctx, if there is one. Device lock held, not from within a hook. */
void event_remove_poll_hook(struct event_loop *loop, void *ctx);

/* A pool of threads for blocking work. work() runs on a worker without the device lock, done() on the loop's thread. */
int worker_pool_create(struct event_loop *loop, unsigned threads, struct worker_pool **pool, struct error *err);
int worker_pool_submit(struct worker_pool *pool, void (*work)(void *ctx), void (*done)(void *ctx), void *ctx);
/* Waits for running work, then calls the outstanding done() functions on the calling thread. */
void worker_pool_destroy(struct worker_pool *pool);

#endif
