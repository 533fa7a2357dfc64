/*
 * A tap interface: frames to and from the host's kernel. While the guest has no room, the one frame that it refused is
 * kept and the descriptor is not watched; the kernel's queue does the rest.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "vmm/error.h"
#include "vmm/event.h"
#include "vmm/host_net.h"
#include "vmm/log.h"

#define FRAMES_PER_TURN 64

struct host_tap {
	struct net_endpoint endpoint; /* first */
	int fd;
	struct event_source *source;
	size_t kept; /* length of the refused frame in buffer, 0 if none */
	uint8_t buffer[NET_FRAME_MAX];
};

static void tap_send(struct net_endpoint *endpoint, const struct iovec *iov, unsigned count)
{
	struct host_tap *tap = (struct host_tap *)endpoint;

	/* A full queue or a link that is down loses the frame, as a wire would. */
	if (writev(tap->fd, iov, (int)count) < 0)
		return;
}

static bool deliver(struct host_tap *tap, size_t length)
{
	return !tap->endpoint.receive ||
	       tap->endpoint.receive(tap->endpoint.receive_ctx, tap->buffer, length);
}

static void tap_readable(void *ctx, int fd, uint32_t events)
{
	struct host_tap *tap = ctx;

	if (events & EPOLLERR && !(events & EPOLLIN)) {
		event_unwatch(tap->source); /* the interface is gone */
		tap->source = NULL;
		return;
	}
	for (unsigned i = 0; i < FRAMES_PER_TURN && !tap->kept; i++) {
		ssize_t length = read(fd, tap->buffer, sizeof(tap->buffer));

		if (length <= 0)
			return;
		if (!deliver(tap, length)) {
			tap->kept = length;
			event_modify(tap->source, 0);
		}
	}
}

static void tap_receive_ready(struct net_endpoint *endpoint)
{
	struct host_tap *tap = (struct host_tap *)endpoint;

	if (!tap->kept || !deliver(tap, tap->kept))
		return;
	tap->kept = 0;
	if (tap->source)
		event_modify(tap->source, EPOLLIN);
}

static void tap_destroy(struct net_endpoint *endpoint)
{
	struct host_tap *tap = (struct host_tap *)endpoint;

	if (tap->source)
		event_unwatch(tap->source);
	if (tap->fd >= 0)
		close(tap->fd);
	free(tap);
}

static const struct net_endpoint_ops tap_ops = {tap_send, tap_receive_ready, tap_destroy};

static int tap_open(struct host_tap *tap, const char *ifname, struct error *err)
{
	struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
	const char *shown = ifname && *ifname ? ifname : "(new)";

	if (ifname && strlen(ifname) >= sizeof(request.ifr_name))
		return error_set(err, -EINVAL, "\"%s\" is too long for the name of a network interface", ifname);
	if (ifname)
		strcpy(request.ifr_name, ifname);
	tap->fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (tap->fd < 0)
		return error_set(err, -errno, "cannot open /dev/net/tun: %s; --net user needs no privilege",
			strerror(errno));
	if (!ioctl(tap->fd, TUNSETIFF, &request)) {
		log_message(LOG_INFO, "network card on the tap interface %s", request.ifr_name); /* the kernel may have named it */
		return 0;
	}
	if (errno == EPERM)
		return error_set(err, -errno,
			"no permission for tap interface %s; create one that you own with "
			"\"ip tuntap add NAME mode tap user $USER\", or use --net user",
			shown);
	if (errno == EBUSY)
		return error_set(err, -errno, "tap interface %s is in use by another process", shown);
	return error_set(err, -errno, "cannot attach to tap interface %s: %s", shown, strerror(errno));
}

int host_tap_create(struct event_loop *loop, const char *ifname, struct net_endpoint **out, struct error *err)
{
	struct host_tap *tap = calloc(1, sizeof(*tap));
	int ret;

	if (!tap)
		return error_set(err, -ENOMEM, "no memory for a tap interface");
	tap->endpoint.ops = &tap_ops;
	tap->fd = -1;
	ret = tap_open(tap, ifname, err);
	if (!ret) {
		tap->source = event_watch(loop, tap->fd, EPOLLIN, tap_readable, tap);
		if (!tap->source)
			ret = error_set(err, -ENOMEM, "cannot watch the tap interface");
	}
	if (ret) {
		tap_destroy(&tap->endpoint);
		return ret;
	}
	*out = &tap->endpoint;
	return 0;
}
