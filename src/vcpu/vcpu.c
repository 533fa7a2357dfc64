/*
 * The run loop: enter the guest, come back with an exit, serve it, enter again. It is the same for every backend, and
 * it is where the guest's accesses go into the I/O funnel (vmm/bus.h).
 *
 * A thread ends in two ways: vcpu_stop() sets `stopping` and kicks, and the loop leaves at the VCPU_EXIT_KICKED that
 * follows (not earlier: a backend may return writes while the guest still runs); or the guest cannot go on, which
 * host->stopped() learns from this thread.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "vmm/bus.h"
#include "vmm/error.h"
#include "vmm/vcpu.h"

#define STOP_SECONDS 5 /* an engine looks for a kick thousands of times a second */

struct vcpu {
	/* Set at create. */
	unsigned index;
	const struct vcpu_backend *ops;
	void *self;
	struct vcpu_host host;

	/* Owner of start/stop. */
	int host_cpu; /* −1: any */
	pthread_t thread;
	bool started;

	_Atomic bool stopping;

	/* Vcpu thread; others read counts at any time. */
	struct vcpu_exit exit;
	uint64_t counts[VCPU_EXIT_KINDS];
};

static void report_stop(struct vcpu *v)
{
	struct cpu_state *state = aligned_alloc(64, (sizeof(*state) + 63) & ~63ul);

	if (state)
		v->ops->get_state(v->self, state);
	v->host.stopped(v->host.ctx, v->index, &v->exit, state);
	free(state);
}

/* False: the vcpu cannot go on. */
static bool serve_exit(struct vcpu *v)
{
	struct vcpu_exit *x = &v->exit;

	switch (x->kind) {
	case VCPU_EXIT_PIO:
	case VCPU_EXIT_MMIO:
		bus_access(v->host.bus, x->kind == VCPU_EXIT_PIO ? BUS_PIO : BUS_MMIO, x->addr, x->size, x->is_write, &x->data);
		return true;
	case VCPU_EXIT_INTACK:
		x->data = (uint64_t)v->host.intack(v->host.ctx) & 0xff;
		return true;
	case VCPU_EXIT_EOI:
		v->host.eoi(v->host.ctx, (uint8_t)x->data);
		return true;
	case VCPU_EXIT_IPI:
		v->host.ipi(v->host.ctx, v->index, (uint32_t)x->addr, (uint32_t)x->data);
		return true;
	case VCPU_EXIT_NONE:
	case VCPU_EXIT_DEBUG: /* nobody listens yet */
	case VCPU_EXIT_KICKED:
		return true;
	default:
		report_stop(v);
		return false;
	}
}

static void *vcpu_thread(void *arg)
{
	struct vcpu *v = arg;

	for (;;) {
		int rc = v->ops->run(v->self, &v->exit);

		if (rc && v->exit.kind != VCPU_EXIT_DIED)
			v->exit.kind = VCPU_EXIT_ERROR;
		if (v->exit.kind < VCPU_EXIT_KINDS)
			v->counts[v->exit.kind]++;
		if (!serve_exit(v))
			break;
		if (v->exit.kind == VCPU_EXIT_KICKED && atomic_load(&v->stopping))
			break;
	}
	return NULL;
}

int vcpu_create(unsigned index, const struct vcpu_backend *ops, void *self, const struct vcpu_host *host, struct vcpu **vcpu,
	struct error *err)
{
	struct vcpu *v = calloc(1, sizeof(*v));

	if (!v)
		return error_set(err, -ENOMEM, "out of memory");
	v->index = index;
	v->ops = ops;
	v->self = self;
	v->host = *host;
	v->host_cpu = -1;
	*vcpu = v;
	return 0;
}

int vcpu_pin(struct vcpu *v, unsigned host_cpu, struct error *err)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	if (sched_getaffinity(0, sizeof(set), &set) || host_cpu >= CPU_SETSIZE || !CPU_ISSET(host_cpu, &set))
		return error_set(err, -EINVAL, "This process may not run on processor %u of the host (--pin).", host_cpu);
	v->host_cpu = (int)host_cpu;
	return 0;
}

int vcpu_start(struct vcpu *v, struct error *err)
{
	char name[16];
	sigset_t all, old;
	cpu_set_t set;
	int rc;

	if (v->started)
		return 0;
	atomic_store(&v->stopping, false);
	/* Signals are the main thread's. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	rc = pthread_create(&v->thread, NULL, vcpu_thread, v);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (rc)
		return error_set(err, -rc, "cannot start the thread of vcpu %u: %s", v->index, strerror(rc));
	snprintf(name, sizeof(name), "vcpu%u", v->index % 1000);
	pthread_setname_np(v->thread, name);
	if (v->host_cpu >= 0) {
		CPU_ZERO(&set);
		CPU_SET((unsigned)v->host_cpu, &set);
		pthread_setaffinity_np(v->thread, sizeof(set), &set);
	}
	v->started = true;
	return 0;
}

void vcpu_request_stop(struct vcpu *v)
{
	atomic_store(&v->stopping, true);
	v->ops->kick(v->self);
}

void vcpu_stop(struct vcpu *v)
{
	struct timespec limit;

	if (!v->started)
		return;
	vcpu_request_stop(v);
	if (v->ops->abandon) {
		clock_gettime(CLOCK_MONOTONIC, &limit);
		limit.tv_sec += STOP_SECONDS;
		if (!pthread_clockjoin_np(v->thread, NULL, CLOCK_MONOTONIC, &limit)) {
			v->started = false;
			return;
		}
		v->ops->abandon(v->self);
	}
	pthread_join(v->thread, NULL);
	v->started = false;
}

void vcpu_destroy(struct vcpu *v)
{
	if (!v)
		return;
	vcpu_stop(v);
	v->ops->destroy(v->self);
	free(v);
}

void vcpu_get_state(struct vcpu *v, struct cpu_state *state)
{
	v->ops->get_state(v->self, state);
}

void vcpu_set_state(struct vcpu *v, const struct cpu_state *state)
{
	v->ops->set_state(v->self, state);
}

const uint64_t *vcpu_exit_counts(const struct vcpu *v)
{
	return v->counts;
}
