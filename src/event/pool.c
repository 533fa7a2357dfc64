/*
 * The worker pool: threads for work that blocks. A finished job goes to a list, and an eventfd in the loop has its
 * done() called there. Workers block all signals, so that signals meant for the VMM's own threads never land here.
 */
#include "internal.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "vmm/error.h"

struct job {
	void (*work)(void *ctx);
	void (*done)(void *ctx);
	void *ctx;
	struct job *next;
};

struct job_list {
	struct job *head, **tail;
};

struct worker_pool {
	/* Set at create. */
	int done_fd; /* eventfd */
	struct event_source *source;
	unsigned thread_count;

	pthread_mutex_t lock;
	pthread_cond_t more;
	struct job_list queued, finished; /* under lock */
	bool stop;			  /* under lock */

	pthread_t threads[];
};

static void list_init(struct job_list *list)
{
	list->head = NULL;
	list->tail = &list->head;
}

static void list_append(struct job_list *list, struct job *job)
{
	job->next = NULL;
	*list->tail = job;
	list->tail = &job->next;
}

static struct job *list_take(struct job_list *list)
{
	struct job *job = list->head;

	if (job) {
		list->head = job->next;
		if (!list->head)
			list->tail = &list->head;
	}
	return job;
}

static void *worker_main(void *arg)
{
	struct worker_pool *pool = arg;
	uint64_t one = 1;

	pthread_mutex_lock(&pool->lock);
	for (;;) {
		struct job *job = list_take(&pool->queued);

		if (!job) {
			if (pool->stop)
				break;
			pthread_cond_wait(&pool->more, &pool->lock);
			continue;
		}
		pthread_mutex_unlock(&pool->lock);
		job->work(job->ctx);
		pthread_mutex_lock(&pool->lock);
		list_append(&pool->finished, job);
		while (write(pool->done_fd, &one, sizeof(one)) < 0 && errno == EINTR)
			;
	}
	pthread_mutex_unlock(&pool->lock);
	return NULL;
}

static void run_finished(struct worker_pool *pool)
{
	struct job_list list;
	struct job *job;

	list_init(&list);
	pthread_mutex_lock(&pool->lock);
	while ((job = list_take(&pool->finished)))
		list_append(&list, job);
	pthread_mutex_unlock(&pool->lock);
	while ((job = list_take(&list))) {
		if (job->done)
			job->done(job->ctx);
		free(job);
	}
}

static void done_ready(void *ctx, int fd, uint32_t epoll_events)
{
	uint64_t count;

	if (read(fd, &count, sizeof(count)) < 0 && errno == EINTR)
		return; /* level triggered: once more */
	run_finished(ctx);
}

static int start_threads(struct worker_pool *pool, unsigned threads)
{
	sigset_t all, old;
	int rc = 0;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	while (pool->thread_count < threads && !rc) {
		rc = pthread_create(&pool->threads[pool->thread_count], NULL, worker_main, pool);
		if (!rc)
			pool->thread_count++;
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -rc;
}

int worker_pool_create(struct event_loop *loop, unsigned threads, struct worker_pool **out, struct error *err)
{
	struct worker_pool *pool = calloc(1, sizeof(*pool) + threads * sizeof(pool->threads[0]));
	int rc;

	*out = NULL;
	if (!pool)
		return error_set(err, -ENOMEM, "Not enough memory for the worker pool");
	pthread_mutex_init(&pool->lock, NULL);
	pthread_cond_init(&pool->more, NULL);
	list_init(&pool->queued);
	list_init(&pool->finished);
	pool->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (pool->done_fd >= 0)
		pool->source = event_watch(loop, pool->done_fd, EPOLLIN, done_ready, pool);
	if (!pool->source)
		rc = -errno;
	else
		rc = start_threads(pool, threads);
	if (rc) {
		worker_pool_destroy(pool);
		return error_set(err, rc, "Cannot start %u worker threads", threads);
	}
	*out = pool;
	return 0;
}

int worker_pool_submit(struct worker_pool *pool, void (*work)(void *ctx), void (*done)(void *ctx), void *ctx)
{
	struct job *job = malloc(sizeof(*job));

	if (!job)
		return -ENOMEM;
	*job = (struct job){.work = work, .done = done, .ctx = ctx};
	pthread_mutex_lock(&pool->lock);
	list_append(&pool->queued, job);
	pthread_cond_signal(&pool->more);
	pthread_mutex_unlock(&pool->lock);
	return 0;
}

void worker_pool_destroy(struct worker_pool *pool)
{
	if (!pool)
		return;
	pthread_mutex_lock(&pool->lock);
	pool->stop = true;
	pthread_cond_broadcast(&pool->more);
	pthread_mutex_unlock(&pool->lock);
	for (unsigned i = 0; i < pool->thread_count; i++)
		pthread_join(pool->threads[i], NULL);
	event_unwatch(pool->source);
	run_finished(pool);
	if (pool->done_fd >= 0)
		close(pool->done_fd);
	pthread_cond_destroy(&pool->more);
	pthread_mutex_destroy(&pool->lock);
	free(pool);
}
