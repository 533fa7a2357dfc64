/*
 * The host's end of a network card: something that takes Ethernet frames and gives Ethernet frames. Device lock held
 * in all calls.
 */
#ifndef VMM_HOST_NET_H
#define VMM_HOST_NET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct error;
struct event_loop;
struct net_endpoint;

#define NET_FRAME_MAX 65550 /* largest frame, without FCS */

struct net_endpoint_ops {
	/* Sends one frame; it is copied or dropped. */
	void (*send)(struct net_endpoint *endpoint, const struct iovec *iov, unsigned count);
	/* The card, which had refused a frame, has room again. */
	void (*receive_ready)(struct net_endpoint *endpoint);
	void (*destroy)(struct net_endpoint *endpoint);
};

struct net_endpoint {
	const struct net_endpoint_ops *ops;
	bool checksums_valid; /* every frame that it delivers has good checksums: the guest need not look */
	/* Set by the card: takes one frame; false if there is no room now (it then calls receive_ready later). */
	bool (*receive)(void *ctx, const uint8_t *frame, size_t length);
	void *receive_ctx;
};

static inline void net_endpoint_set_receive(struct net_endpoint *endpoint,
	bool (*receive)(void *ctx, const uint8_t *frame, size_t length), void *ctx)
{
	endpoint->receive = receive;
	endpoint->receive_ctx = ctx;
}

struct host_hostfwd {
	uint8_t is_udp;
	uint8_t host_addr[4]; /* 0.0.0.0: all addresses */
	uint8_t guest_addr[4]; /* 0.0.0.0: the guest's DHCP address */
	uint16_t host_port, guest_port;
};

/* Parses "tcp:HOSTADDR:PORT-GUESTADDR:GUESTPORT"; both addresses may be empty. udp works too. 0 or -EINVAL. */
int host_slirp_parse_hostfwd(const char *text, struct host_hostfwd *fwd, struct error *err);

/*
 * User-mode NAT by libslirp: guest network 10.0.2.0/24, gateway and host 10.0.2.2, DNS 10.0.2.3, DHCP from 10.0.2.15.
 * -EADDRINUSE if a forwarded port is taken.
 */
int host_slirp_create(struct event_loop *loop, const struct host_hostfwd *fwds, unsigned fwd_count,
	struct net_endpoint **endpoint, struct error *err);

/* A tap interface; ifname NULL or "" lets the kernel name it. Needs CAP_NET_ADMIN or a tap that the user owns. */
int host_tap_create(struct event_loop *loop, const char *ifname, struct net_endpoint **endpoint, struct error *err);

#endif
