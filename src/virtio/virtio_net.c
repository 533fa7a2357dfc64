/*
 * virtio-net, virtio 1.2 §5.1: one queue pair, mergeable receive buffers, checksum offload. The frame behind the
 * header is copied once in each direction, so that the guest cannot change it while the host looks at it.
 *
 *   header: | flags 1 | gso_type 1 | hdr_len 2 | gso_size 2 | csum_start 2 | csum_offset 2 | num_buffers 2 |
 *
 * A frame for which the guest has no buffer is refused; the endpoint keeps it (and may drop others) until
 * receive_ready() is called, when the guest has added buffers.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/bytes.h"
#include "vmm/error.h"
#include "vmm/host_net.h"
#include "vmm/virtio.h"

#define NET_F_CSUM (1ull << 0)
#define NET_F_GUEST_CSUM (1ull << 1)
#define NET_F_MAC (1ull << 5)
#define NET_F_MRG_RXBUF (1ull << 15)
#define NET_F_STATUS (1ull << 16)

#define NET_S_LINK_UP 1
#define NET_HEADER_SIZE 12
#define NET_HDR_F_NEEDS_CSUM 1
#define NET_HDR_F_DATA_VALID 2
#define NET_CONFIG_SIZE 12
#define QUEUE_RX 0
#define QUEUE_TX 1

struct virtio_net {
	struct virtio_device dev; /* first */
	/* Set at create. */
	struct net_endpoint *endpoint;
	uint8_t config[NET_CONFIG_SIZE];
	/* Device lock. */
	bool refused; /* the endpoint waits for receive_ready() */
	struct virtio_chain rx_chain, tx_chain;
	uint8_t frame[NET_FRAME_MAX];
};

/* ---- to the guest ---- */

enum rx_result { RX_DONE, RX_DROPPED, RX_NO_ROOM };

static enum rx_result rx_place(struct virtio_net *net, const uint8_t *frame, size_t length)
{
	struct virtqueue *vq = &net->dev.queues[QUEUE_RX];
	bool mergeable = virtio_has(&net->dev, NET_F_MRG_RXBUF);
	uint8_t header[NET_HEADER_SIZE] = {0};
	struct virtio_segment count_field = {0};
	size_t done = 0;
	unsigned used = 0;

	if (net->endpoint->checksums_valid && virtio_has(&net->dev, NET_F_GUEST_CSUM))
		header[0] = NET_HDR_F_DATA_VALID;
	while (done < length || !used) {
		size_t skip = used ? 0 : NET_HEADER_SIZE, n;
		int ret = used && !mergeable ? 0 : virtqueue_pop(vq, &net->rx_chain);

		if (ret <= 0) {
			virtqueue_unpop(vq, ret < 0 ? 0 : used);
			return ret < 0 || (used && !mergeable) || used >= vq->state.size ? RX_DROPPED : RX_NO_ROOM;
		}
		if (net->rx_chain.in_bytes < NET_HEADER_SIZE) {
			virtio_break(&net->dev, "a receive buffer is too small for the header");
			return RX_DROPPED;
		}
		if (!used) {
			virtio_chain_write(&net->dev, &net->rx_chain, 0, header, sizeof(header));
			count_field = net->rx_chain.segments[net->rx_chain.out_count];
		}
		n = virtio_chain_write(&net->dev, &net->rx_chain, skip, frame + done, length - done);
		done += n;
		virtqueue_fill(vq, used++, net->rx_chain.head, skip + n);
	}
	/* num_buffers: in one piece for any driver that there is; else a driver that splits it gets 1. */
	bytes_store(header + 10, 2, used);
	if (count_field.length >= NET_HEADER_SIZE)
		memcpy((uint8_t *)count_field.hva + 10, header + 10, 2);
	virtqueue_publish(vq, used);
	virtqueue_interrupt(vq);
	return RX_DONE;
}

static bool net_receive(void *ctx, const uint8_t *frame, size_t length)
{
	struct virtio_net *net = ctx;
	struct virtqueue *vq = &net->dev.queues[QUEUE_RX];

	if (!virtio_running(&net->dev) || !vq->state.enabled || length > NET_FRAME_MAX)
		return true; /* nobody listens: the frame is lost, as on a wire */
	/* The guest may be adding buffers at this moment; but it may not keep us here. */
	for (unsigned tries = 0; tries < 8; tries++) {
		uint16_t seen = virtqueue_available(vq);

		if (rx_place(net, frame, length) != RX_NO_ROOM)
			return true;
		virtqueue_set_notify(vq, true);
		if (virtqueue_available(vq) == seen)
			break;
	}
	net->refused = true;
	return false;
}

/* ---- from the guest ---- */

/* RFC 1071 over the frame from `start` on, stored at start + offset, as the guest asked (§5.1.6.2). */
static void complete_checksum(uint8_t *frame, size_t length, size_t start, size_t offset)
{
	uint64_t sum = 0;
	size_t i;

	if (start >= length || offset > length - start || length - start - offset < 2)
		return;
	for (i = start; i + 1 < length; i += 2)
		sum += (uint32_t)frame[i] << 8 | frame[i + 1];
	if (i < length)
		sum += (uint32_t)frame[i] << 8;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	sum = ~sum & 0xffff;
	if (!sum)
		sum = 0xffff; /* 0 means "none" to UDP, and TCP takes either zero */
	frame[start + offset] = sum >> 8;
	frame[start + offset + 1] = sum & 0xff;
}

static void tx_frame(struct virtio_net *net)
{
	const struct virtio_chain *chain = &net->tx_chain;
	uint8_t header[NET_HEADER_SIZE];
	struct iovec iov = {.iov_base = net->frame};

	if (chain->out_bytes <= NET_HEADER_SIZE || chain->out_bytes > NET_HEADER_SIZE + NET_FRAME_MAX)
		return; /* no frame at all, or longer than any: dropped */
	virtio_chain_read(chain, 0, header, sizeof(header));
	iov.iov_len = virtio_chain_read(chain, NET_HEADER_SIZE, net->frame, NET_FRAME_MAX);
	if (header[0] & NET_HDR_F_NEEDS_CSUM && virtio_has(&net->dev, NET_F_CSUM))
		complete_checksum(net->frame, iov.iov_len, bytes_load(header + 6, 2), bytes_load(header + 8, 2));
	net->endpoint->ops->send(net->endpoint, &iov, 1);
}

static void tx_serve(struct virtio_net *net)
{
	struct virtqueue *vq = &net->dev.queues[QUEUE_TX];
	unsigned served = 0;

	do {
		virtqueue_set_notify(vq, false);
		while (served < vq->state.size && virtqueue_pop(vq, &net->tx_chain) > 0) {
			uint16_t head = net->tx_chain.head;

			tx_frame(net);
			virtqueue_push(vq, head, 0);
			served++;
		}
		virtqueue_set_notify(vq, true);
		if (served >= vq->state.size) {
			virtqueue_renotify(vq);
			break;
		}
	} while (!virtqueue_empty(vq));
	virtqueue_interrupt(vq);
}

static void net_notify(struct virtio_device *dev, unsigned queue)
{
	struct virtio_net *net = (struct virtio_net *)dev;

	if (queue == QUEUE_TX) {
		tx_serve(net);
	} else if (net->refused) {
		net->refused = false;
		net->endpoint->ops->receive_ready(net->endpoint);
	}
}

static bool net_reset(struct virtio_device *dev)
{
	struct virtio_net *net = (struct virtio_net *)dev;

	if (net->refused) {
		net->refused = false;
		net->endpoint->ops->receive_ready(net->endpoint); /* what it kept is dropped now */
	}
	return true;
}

static void net_destroy(struct virtio_device *dev)
{
	struct virtio_net *net = (struct virtio_net *)dev;

	net->endpoint->receive = NULL;
	net->endpoint->ops->destroy(net->endpoint);
	free(net);
}

static const struct virtio_device_ops net_ops = {
	.queue_notify = net_notify,
	.reset = net_reset,
	.destroy = net_destroy,
};

int virtio_net_create(struct guest_mem *mem, struct net_endpoint *endpoint, const uint8_t mac[6],
	struct virtio_device **out, struct error *err)
{
	struct virtio_net *net = calloc(1, sizeof(*net));

	if (!net) {
		endpoint->ops->destroy(endpoint);
		return error_set(err, -ENOMEM, "no memory for a network card");
	}
	net->endpoint = endpoint;
	memcpy(net->config, mac, 6);
	bytes_store(net->config + 6, 2, NET_S_LINK_UP);
	bytes_store(net->config + 8, 2, 1); /* max_virtqueue_pairs */
	net->dev.name = "virtio-net";
	net->dev.id = VIRTIO_ID_NET;
	net->dev.pci_class = 0x020000;
	net->dev.ops = &net_ops;
	net->dev.mem = mem;
	net->dev.features = VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX | NET_F_CSUM | NET_F_MAC |
			    NET_F_MRG_RXBUF | NET_F_STATUS | (endpoint->checksums_valid ? NET_F_GUEST_CSUM : 0);
	net->dev.queue_count = 2;
	net->dev.queue_size = VIRTQUEUE_SIZE_MAX;
	net->dev.config = net->config;
	net->dev.config_size = sizeof(net->config);
	virtio_reset(&net->dev);
	net_endpoint_set_receive(endpoint, net_receive, net);
	*out = &net->dev;
	return 0;
}
