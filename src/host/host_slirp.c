/*
 * User-mode NAT: libslirp between the guest's Ethernet frames and the host's sockets, without privilege.
 *
 * libslirp wants its own poll() set, which changes at every turn. It becomes an epoll set inside the event loop's:
 * before each wait the wanted events are brought in line with it, after the wait poll() tells libslirp what is ready.
 * Frames that the guest has no room for wait in a short queue; when that is full they are dropped, which TCP survives.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <libslirp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "vmm/error.h"
#include "vmm/event.h"
#include "vmm/host_net.h"
#include "vmm/log.h"

#define BACKLOG_MAX 256

struct backlog_frame {
	struct backlog_frame *next;
	size_t length;
	uint8_t data[];
};

struct watched_fd {
	int fd;
	uint32_t events;
	bool wanted;
};

struct host_slirp {
	struct net_endpoint endpoint; /* first */
	struct event_loop *loop;
	Slirp *slirp;
	int epoll_fd;
	struct event_source *source;
	/* Device lock. */
	struct pollfd *polls; /* this turn's set */
	unsigned poll_count, poll_room;
	struct watched_fd *watched; /* what the epoll set holds */
	unsigned watched_count, watched_room;
	struct backlog_frame *backlog, **backlog_end;
	unsigned backlog_count;
};

/* ---- frames ---- */

static ssize_t slirp_send_packet(const void *data, size_t length, void *opaque)
{
	struct host_slirp *host = opaque;
	struct backlog_frame *frame;

	if (!host->backlog && host->endpoint.receive && host->endpoint.receive(host->endpoint.receive_ctx, data, length))
		return length;
	if (!host->endpoint.receive || host->backlog_count >= BACKLOG_MAX)
		return length;
	frame = malloc(sizeof(*frame) + length);
	if (!frame)
		return length;
	frame->next = NULL;
	frame->length = length;
	memcpy(frame->data, data, length);
	*host->backlog_end = frame;
	host->backlog_end = &frame->next;
	host->backlog_count++;
	return length;
}

static void endpoint_receive_ready(struct net_endpoint *endpoint)
{
	struct host_slirp *host = (struct host_slirp *)endpoint;

	while (host->backlog) {
		struct backlog_frame *frame = host->backlog;

		if (endpoint->receive && !endpoint->receive(endpoint->receive_ctx, frame->data, frame->length))
			return;
		host->backlog = frame->next;
		if (!host->backlog)
			host->backlog_end = &host->backlog;
		host->backlog_count--;
		free(frame);
	}
}

static void endpoint_send(struct net_endpoint *endpoint, const struct iovec *iov, unsigned count)
{
	struct host_slirp *host = (struct host_slirp *)endpoint;
	uint8_t *frame;
	size_t length = 0, at = 0;

	if (count == 1) {
		slirp_input(host->slirp, iov->iov_base, iov->iov_len);
		return;
	}
	for (unsigned i = 0; i < count; i++)
		length += iov[i].iov_len;
	frame = length && length <= NET_FRAME_MAX ? malloc(length) : NULL;
	if (!frame)
		return;
	for (unsigned i = 0; i < count; at += iov[i++].iov_len)
		memcpy(frame + at, iov[i].iov_base, iov[i].iov_len);
	slirp_input(host->slirp, frame, length);
	free(frame);
}

/* ---- the poll set ---- */

static struct watched_fd *watched_find(struct host_slirp *host, int fd)
{
	for (unsigned i = 0; i < host->watched_count; i++)
		if (host->watched[i].fd == fd)
			return &host->watched[i];
	return NULL;
}

static void watched_remove(struct host_slirp *host, struct watched_fd *watched)
{
	epoll_ctl(host->epoll_fd, EPOLL_CTL_DEL, watched->fd, NULL);
	*watched = host->watched[--host->watched_count];
}

/* Grows an array; false if there is no memory. */
static bool room_for(void **array, unsigned *room, unsigned count, size_t element)
{
	unsigned wanted = *room ? 2 * *room : 32;
	void *grown;

	if (count < *room)
		return true;
	grown = realloc(*array, wanted * element);
	if (!grown)
		return false;
	*array = grown;
	*room = wanted;
	return true;
}

static void watch(struct host_slirp *host, int fd, uint32_t events)
{
	struct watched_fd *watched = watched_find(host, fd);
	struct epoll_event event = {.events = events, .data.fd = fd};

	if (watched && watched->events == events) {
		watched->wanted = true;
		return;
	}
	if (!watched) {
		if (!room_for((void **)&host->watched, &host->watched_room, host->watched_count,
			    sizeof(*host->watched)))
			return;
		watched = &host->watched[host->watched_count++];
		watched->fd = fd;
	}
	watched->events = events;
	watched->wanted = true;
	/* A number that has been closed and used again may or may not be in the set. */
	if (epoll_ctl(host->epoll_fd, EPOLL_CTL_MOD, fd, &event) && errno == ENOENT)
		epoll_ctl(host->epoll_fd, EPOLL_CTL_ADD, fd, &event);
}

static int slirp_add_poll(int fd, int events, void *opaque)
{
	struct host_slirp *host = opaque;
	struct pollfd *slot;

	if (!room_for((void **)&host->polls, &host->poll_room, host->poll_count, sizeof(*host->polls)))
		return -1;
	slot = &host->polls[host->poll_count];
	slot->fd = fd;
	slot->events = (events & SLIRP_POLL_IN ? POLLIN : 0) | (events & SLIRP_POLL_OUT ? POLLOUT : 0) |
		       (events & SLIRP_POLL_PRI ? POLLPRI : 0);
	slot->revents = 0;
	/* EPOLLIN, EPOLLPRI and EPOLLOUT have the values of their poll() namesakes. */
	watch(host, fd, (uint32_t)slot->events);
	return host->poll_count++;
}

static int slirp_get_revents(int index, void *opaque)
{
	struct host_slirp *host = opaque;
	short events = index >= 0 && (unsigned)index < host->poll_count ? host->polls[index].revents : 0;

	return (events & POLLIN ? SLIRP_POLL_IN : 0) | (events & POLLOUT ? SLIRP_POLL_OUT : 0) |
	       (events & POLLPRI ? SLIRP_POLL_PRI : 0) | (events & (POLLERR | POLLNVAL) ? SLIRP_POLL_ERR : 0) |
	       (events & POLLHUP ? SLIRP_POLL_HUP : 0);
}

static void hook_prepare(void *ctx, int *timeout_ms)
{
	struct host_slirp *host = ctx;
	uint32_t timeout = *timeout_ms < 0 ? UINT32_MAX : (uint32_t)*timeout_ms;

	host->poll_count = 0;
	for (unsigned i = 0; i < host->watched_count; i++)
		host->watched[i].wanted = false;
	slirp_pollfds_fill(host->slirp, &timeout, slirp_add_poll, host);
	for (unsigned i = host->watched_count; i-- > 0;)
		if (!host->watched[i].wanted)
			watched_remove(host, &host->watched[i]);
	if (timeout != UINT32_MAX && (*timeout_ms < 0 || timeout < (uint32_t)*timeout_ms))
		*timeout_ms = (int)timeout;
}

static void hook_dispatched(void *ctx)
{
	struct host_slirp *host = ctx;

	slirp_pollfds_poll(host->slirp, poll(host->polls, host->poll_count, 0) < 0, slirp_get_revents, host);
	host->poll_count = 0;
}

static void epoll_ready(void *ctx, int fd, uint32_t events)
{
	/* The wait is over; hook_dispatched() does the rest. */
	(void)ctx;
	(void)fd;
	(void)events;
}

/* ---- libslirp's other wishes ---- */

static void slirp_guest_error(const char *message, void *opaque)
{
	(void)opaque;
	log_message(LOG_DEBUG, "user network: %s", message);
}

static int64_t slirp_clock(void *opaque)
{
	(void)opaque;
	return (int64_t)event_now();
}

static void *slirp_timer_new(SlirpTimerCb fn, void *ctx, void *opaque)
{
	struct host_slirp *host = opaque;

	return event_timer_create(host->loop, fn, ctx);
}

static void slirp_timer_free(void *timer, void *opaque)
{
	(void)opaque;
	if (timer)
		event_timer_destroy(timer);
}

static void slirp_timer_mod(void *timer, int64_t expire_ms, void *opaque)
{
	(void)opaque;
	if (timer)
		event_timer_arm(timer, (uint64_t)expire_ms * 1000000);
}

static void slirp_register_fd(int fd, void *opaque)
{
	(void)fd;
	(void)opaque;
}

static void slirp_unregister_fd(int fd, void *opaque)
{
	struct host_slirp *host = opaque;
	struct watched_fd *watched = watched_find(host, fd);

	if (watched)
		watched_remove(host, watched);
}

static void slirp_notify(void *opaque)
{
	(void)opaque; /* the loop fills the set anew at every turn, and guest frames arrive on the loop */
}

static const SlirpCb slirp_callbacks = {
	.send_packet = slirp_send_packet,
	.guest_error = slirp_guest_error,
	.clock_get_ns = slirp_clock,
	.timer_new = slirp_timer_new,
	.timer_free = slirp_timer_free,
	.timer_mod = slirp_timer_mod,
	.register_poll_fd = slirp_register_fd,
	.unregister_poll_fd = slirp_unregister_fd,
	.notify = slirp_notify,
};

/* ---- life ---- */

static void endpoint_destroy(struct net_endpoint *endpoint)
{
	struct host_slirp *host = (struct host_slirp *)endpoint;

	endpoint->receive = NULL;
	endpoint_receive_ready(endpoint); /* drops the backlog */
	if (host->slirp)
		slirp_cleanup(host->slirp);
	if (host->source)
		event_unwatch(host->source);
	if (host->epoll_fd >= 0)
		close(host->epoll_fd);
	free(host->polls);
	free(host->watched);
	event_remove_poll_hook(host->loop, host);
	free(host);
}

static const struct net_endpoint_ops endpoint_ops = {endpoint_send, endpoint_receive_ready, endpoint_destroy};

static int add_forward(struct host_slirp *host, const struct host_hostfwd *fwd, struct error *err)
{
	struct in_addr host_addr, guest_addr;
	char text[INET_ADDRSTRLEN];
	int error;

	memcpy(&host_addr, fwd->host_addr, 4);
	memcpy(&guest_addr, fwd->guest_addr, 4);
	errno = 0;
	if (!slirp_add_hostfwd(host->slirp, fwd->is_udp, host_addr, fwd->host_port, guest_addr, fwd->guest_port))
		return 0;
	error = errno ? errno : EADDRINUSE;
	inet_ntop(AF_INET, &host_addr, text, sizeof(text));
	if (error == EADDRINUSE)
		return error_set(err, -error, "cannot forward %s port %u of %s: the port is in use; choose another",
			fwd->is_udp ? "UDP" : "TCP", fwd->host_port, text);
	return error_set(err, -error, "cannot forward %s port %u of %s: %s", fwd->is_udp ? "UDP" : "TCP",
		fwd->host_port, text, strerror(error));
}

int host_slirp_create(struct event_loop *loop, const struct host_hostfwd *fwds, unsigned fwd_count,
	struct net_endpoint **out, struct error *err)
{
	struct host_slirp *host = calloc(1, sizeof(*host));
	SlirpConfig config = {
		.version = 1,
		.in_enabled = true,
		.vnetwork.s_addr = inet_addr("10.0.2.0"),
		.vnetmask.s_addr = inet_addr("255.255.255.0"),
		.vhost.s_addr = inet_addr("10.0.2.2"),
		.vdhcp_start.s_addr = inet_addr("10.0.2.15"),
		.vnameserver.s_addr = inet_addr("10.0.2.3"),
	};
	int ret = 0;

	if (!host)
		return error_set(err, -ENOMEM, "no memory for the user network");
	host->endpoint.ops = &endpoint_ops;
	host->endpoint.checksums_valid = true; /* libslirp terminates the connections itself */
	host->loop = loop;
	host->backlog_end = &host->backlog;
	host->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (host->epoll_fd >= 0)
		host->source = event_watch(loop, host->epoll_fd, EPOLLIN, epoll_ready, host);
	if (host->source)
		host->slirp = slirp_new(&config, &slirp_callbacks, host);
	if (!host->slirp)
		ret = error_set(err, -ENOMEM, "cannot set up the user network");
	for (unsigned i = 0; !ret && i < fwd_count; i++)
		ret = add_forward(host, &fwds[i], err);
	if (!ret) {
		ret = event_add_poll_hook(loop, hook_prepare, hook_dispatched, host);
		if (ret)
			error_set(err, ret, "too many user networks");
	}
	if (ret) {
		endpoint_destroy(&host->endpoint);
		return ret;
	}
	*out = &host->endpoint;
	return 0;
}
