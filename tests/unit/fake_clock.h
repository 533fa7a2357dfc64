/*
 * A clock that a test moves by hand. Defines the timer half of vmm/event.h, so that a device linked against it sees
 * exact times; include it in one file of a program that uses no other part of the event loop.
 */
#ifndef TESTS_FAKE_CLOCK_H
#define TESTS_FAKE_CLOCK_H

#include <stdlib.h>

#include "vmm/event.h"

#define FAKE_TIMERS 64

struct event_timer {
	event_fn fn;
	void *ctx;
	uint64_t deadline;
	bool armed, used;
};

static struct event_timer fake_timers[FAKE_TIMERS];
static uint64_t fake_now = 1000000000000ull;
static uint64_t fake_fired;

uint64_t event_now(void)
{
	return fake_now;
}

struct event_timer *event_timer_create(struct event_loop *loop, event_fn fn, void *ctx)
{
	for (unsigned i = 0; i < FAKE_TIMERS; i++)
		if (!fake_timers[i].used) {
			fake_timers[i] = (struct event_timer){ .fn = fn, .ctx = ctx, .used = true };
			return &fake_timers[i];
		}
	return NULL;
}

void event_timer_arm(struct event_timer *timer, uint64_t deadline_ns)
{
	timer->deadline = deadline_ns;
	timer->armed = true;
}

void event_timer_cancel(struct event_timer *timer)
{
	timer->armed = false;
}

void event_timer_destroy(struct event_timer *timer)
{
	*timer = (struct event_timer){ 0 };
}

/* Moves the clock to `target`, firing what falls due in order and at its time; at most `limit` timers. */
static inline void fake_clock_to(uint64_t target, unsigned limit)
{
	while (limit--) {
		struct event_timer *first = NULL;

		for (unsigned i = 0; i < FAKE_TIMERS; i++)
			if (fake_timers[i].armed && fake_timers[i].deadline <= target &&
				(!first || fake_timers[i].deadline < first->deadline))
				first = &fake_timers[i];
		if (!first)
			break;
		if (first->deadline > fake_now)
			fake_now = first->deadline;
		first->armed = false;
		fake_fired++;
		first->fn(first->ctx);
	}
	if (target > fake_now)
		fake_now = target;
}

static inline void fake_clock_advance(uint64_t ns)
{
	fake_clock_to(fake_now + ns, 10000000);
}

/* A late host: the clock jumps, then what is due fires. */
static inline void fake_clock_jump(uint64_t ns)
{
	fake_now += ns;
	fake_clock_to(fake_now, 1000);
}

#endif
