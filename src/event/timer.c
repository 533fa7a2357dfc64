/*
 * Timers: a list sorted by deadline (a machine has a few dozen at most) and one timerfd. The timerfd is set only
 * when the earliest deadline moves forward; when it moves back the early expiry finds nothing due and sets it again,
 * which makes the common cancel-and-rearm free of system calls.
 */
#include "internal.h"

#include <stdlib.h>
#include <sys/timerfd.h>

static void set_timer_fd(struct event_loop *loop)
{
	struct itimerspec when = {0};
	uint64_t deadline;

	if (!loop->timers || loop->timers->deadline >= loop->timer_fd_deadline)
		return;
	deadline = loop->timers->deadline;
	loop->timer_fd_deadline = deadline;
	if (!deadline)
		deadline = 1; /* zero would disarm the timerfd */
	when.it_value.tv_sec = deadline / 1000000000u;
	when.it_value.tv_nsec = deadline % 1000000000u;
	timerfd_settime(loop->timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

static void unlink_timer(struct event_timer *timer)
{
	if (!timer->link)
		return;
	*timer->link = timer->next;
	if (timer->next)
		timer->next->link = timer->link;
	timer->link = NULL;
}

struct event_timer *event_timer_create(struct event_loop *loop, event_fn fn, void *ctx)
{
	struct event_timer *timer = calloc(1, sizeof(*timer));

	if (!timer)
		return NULL;
	timer->loop = loop;
	timer->fn = fn;
	timer->ctx = ctx;
	return timer;
}

void event_timer_arm(struct event_timer *timer, uint64_t deadline_ns)
{
	struct event_timer **link = &timer->loop->timers;

	unlink_timer(timer);
	while (*link && (*link)->deadline <= deadline_ns)
		link = &(*link)->next;
	timer->deadline = deadline_ns;
	timer->next = *link;
	timer->link = link;
	if (timer->next)
		timer->next->link = &timer->next;
	*link = timer;
	set_timer_fd(timer->loop);
}

void event_timer_cancel(struct event_timer *timer)
{
	if (timer)
		unlink_timer(timer);
}

void event_timer_destroy(struct event_timer *timer)
{
	event_timer_cancel(timer);
	free(timer);
}

/*
 * The due part of the list is moved to `firing` first, so that a callback that arms itself in the past fires in the
 * next round, not in this one, and the loop's other work goes on. Cancelling and destroying work in either list.
 */
void event_timers_run(struct event_loop *loop)
{
	uint64_t now;
	struct event_timer **end = &loop->timers;

	if (loop->timers) {
		now = event_now();
		while (*end && (*end)->deadline <= now)
			end = &(*end)->next;
	}
	if (end != &loop->timers) {
		struct event_timer *rest = *end;

		*end = NULL;
		loop->firing = loop->timers;
		loop->firing->link = &loop->firing;
		loop->timers = rest;
		if (rest)
			rest->link = &loop->timers;
	}
	while (loop->firing) {
		struct event_timer *timer = loop->firing;

		unlink_timer(timer);
		timer->fn(timer->ctx);
	}
	set_timer_fd(loop);
}
