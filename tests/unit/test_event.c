/* The event loop: descriptors, unwatching inside callbacks, timers and their order, posts from threads, workers. */
#include <check.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "run_suite.h"
#include "vmm/error.h"
#include "vmm/event.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct event_loop *loop;

static void setup(void)
{
	struct error err = {0};

	ck_assert_int_eq(event_loop_create(&lock, &loop, &err), 0);
}

static void teardown(void)
{
	event_loop_destroy(loop);
}

struct pair {
	struct event_source *sources[2];
	int calls;
};

/* Whichever comes first removes both. */
static void unwatch_both(void *ctx, int fd, uint32_t events)
{
	struct pair *pair = ctx;

	ck_assert_int_ne(pthread_mutex_trylock(&lock), 0);
	pair->calls++;
	for (int i = 0; i < 2; i++)
		event_unwatch(pair->sources[i]);
}

START_TEST(unwatch_in_callback)
{
	struct pair pair = {0};
	int a[2], b[2];

	ck_assert_int_eq(pipe(a) | pipe(b), 0);
	pair.sources[0] = event_watch(loop, a[0], EPOLLIN, unwatch_both, &pair);
	pair.sources[1] = event_watch(loop, b[0], EPOLLIN, unwatch_both, &pair);
	ck_assert(write(a[1], "x", 1) == 1 && write(b[1], "x", 1) == 1);
	event_loop_poll(loop, 1000);
	event_loop_poll(loop, 0);
	ck_assert_int_eq(pair.calls, 1);
	ck_assert_ptr_null(event_watch(loop, -1, EPOLLIN, unwatch_both, &pair));
}
END_TEST

static char order[16];
static int order_length;
static struct event_timer *timers[3];

static void note(void *ctx)
{
	order[order_length++] = *(const char *)ctx;
}

static void cancel_second(void *ctx)
{
	note(ctx);
	event_timer_cancel(timers[1]);
	event_timer_arm(timers[0], 0);
}

START_TEST(timers_in_order)
{
	uint64_t now = event_now();

	for (int i = 0; i < 3; i++)
		timers[i] = event_timer_create(loop, note, (void *)&"abc"[i]);
	event_timer_arm(timers[1], now + 9000000);
	event_timer_arm(timers[0], now + 2000000);
	event_timer_arm(timers[2], now + 5000000);
	event_timer_arm(timers[1], now + 3000000);
	while (order_length < 3)
		event_loop_poll(loop, 1000);
	ck_assert_uint_ge(event_now(), now + 5000000);
	order[order_length] = 0;
	ck_assert_str_eq(order, "abc");
	for (int i = 0; i < 3; i++)
		event_timer_destroy(timers[i]);
}
END_TEST

START_TEST(timer_cancelled_by_timer)
{
	timers[0] = event_timer_create(loop, cancel_second, (void *)"a");
	timers[1] = event_timer_create(loop, note, (void *)"b");
	event_timer_arm(timers[0], 0);
	event_timer_arm(timers[1], 1);
	/* Re-arming in the past gives one call a round, not an endless round. */
	for (int i = 0; i < 3; i++)
		event_loop_poll(loop, 1000);
	ck_assert_int_eq(order_length, 3);
	event_timer_destroy(timers[0]);
	event_timer_destroy(timers[1]);
	event_loop_poll(loop, 0);
	ck_assert_int_eq(order_length, 3);
}
END_TEST

static void count_and_stop(void *ctx)
{
	if (++*(int *)ctx == 1000)
		event_loop_stop(loop);
}

static void *post_many(void *ctx)
{
	for (int i = 0; i < 1000; i++)
		event_post(loop, count_and_stop, ctx);
	return NULL;
}

START_TEST(posts_from_a_thread)
{
	pthread_t thread;
	int count = 0;

	pthread_create(&thread, NULL, post_many, &count);
	event_loop_run(loop);
	pthread_join(thread, NULL);
	event_loop_poll(loop, 0);
	ck_assert_int_eq(count, 1000);
	event_loop_stop(loop);
	event_loop_run(loop); /* a stop before the run is not lost */
}
END_TEST

static int prepared, dispatched;

static void prepare(void *ctx, int *timeout_ms)
{
	prepared++;
	*timeout_ms = 0;
}

static void after(void *ctx)
{
	dispatched++;
}

START_TEST(hooks_shorten_the_wait)
{
	ck_assert_int_eq(event_add_poll_hook(loop, prepare, after, NULL), 0);
	event_loop_poll(loop, -1);
	ck_assert_int_eq(prepared, 1);
	ck_assert_int_eq(dispatched, 1);
}
END_TEST

struct job {
	int worked, done;
};

static void work(void *ctx)
{
	struct job *job = ctx;

	job->worked++;
}

static void done(void *ctx)
{
	struct job *job = ctx;

	ck_assert_int_eq(job->worked, 1);
	job->done++;
}

START_TEST(pool_works_and_drains)
{
	struct worker_pool *pool;
	struct job jobs[100] = {0};

	ck_assert_int_eq(worker_pool_create(loop, 3, &pool, NULL), 0);
	for (int i = 0; i < 50; i++)
		ck_assert_int_eq(worker_pool_submit(pool, work, done, &jobs[i]), 0);
	while (!jobs[49].done)
		event_loop_poll(loop, 1000);
	for (int i = 50; i < 100; i++)
		ck_assert_int_eq(worker_pool_submit(pool, work, done, &jobs[i]), 0);
	worker_pool_destroy(pool);
	for (int i = 0; i < 100; i++)
		ck_assert_int_eq(jobs[i].done, 1);
	event_loop_poll(loop, 0);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("event");
	TCase *tcase = tcase_create("event");

	tcase_add_checked_fixture(tcase, setup, teardown);
	tcase_add_test(tcase, unwatch_in_callback);
	tcase_add_test(tcase, timers_in_order);
	tcase_add_test(tcase, timer_cancelled_by_timer);
	tcase_add_test(tcase, posts_from_a_thread);
	tcase_add_test(tcase, hooks_shorten_the_wait);
	tcase_add_test(tcase, pool_works_and_drains);
	suite_add_tcase(suite, tcase);
	return run_suite(suite);
}
