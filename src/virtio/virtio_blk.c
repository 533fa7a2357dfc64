/*
 * virtio-blk, virtio 1.2 §5.2: one queue, requests in any number at once, each of them a host_disk request.
 *
 *   request: | type 4 | reserved 4 | sector 8 | data … | status 1 |   header readable, status the last writable byte
 *
 * Invariants: at most queue-size requests are in flight whatever the guest does with its ring; a completion that
 * comes after a reset frees its request and touches nothing of the guest; without VIRTIO_BLK_F_FLUSH a write is
 * complete only when it is on stable storage (§5.2.6.2).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/bytes.h"
#include "vmm/error.h"
#include "vmm/host_disk.h"
#include "vmm/mem.h"
#include "vmm/virtio.h"

#define BLK_F_SEG_MAX (1ull << 2)
#define BLK_F_RO (1ull << 5)
#define BLK_F_BLK_SIZE (1ull << 6)
#define BLK_F_FLUSH (1ull << 9)

enum blk_type { BLK_IN = 0, BLK_OUT = 1, BLK_FLUSH = 4, BLK_GET_ID = 8 };
enum blk_status { BLK_OK = 0, BLK_IOERR = 1, BLK_UNSUPP = 2 };

#define BLK_HEADER_SIZE 16
#define BLK_ID_SIZE 20
#define BLK_CONFIG_SIZE 36
#define SECTOR_SIZE 512

struct virtio_blk {
	struct virtio_device dev; /* first */
	/* Set at create. */
	struct host_disk *disk;
	uint64_t size; /* bytes */
	char serial[BLK_ID_SIZE];
	uint8_t config[BLK_CONFIG_SIZE];
	/* Device lock. */
	unsigned in_flight;
	bool destroying;
	struct virtio_chain chain; /* the one being parsed */
};

struct blk_request {
	struct host_disk_request io;
	struct virtio_blk *blk;
	uint32_t generation;
	uint16_t head;
	struct virtio_segment status; /* one byte */
	uint32_t data_written;	      /* bytes that a successful request writes, without the status */
	bool then_flush;
	unsigned count;
	struct iovec *iov;
	uint64_t *gpas; /* of each iov, reported after a read */
};

static void blk_serve(struct virtio_blk *blk);

/* The last writable byte of a chain. */
static struct virtio_segment status_segment(const struct virtio_chain *chain)
{
	struct virtio_segment last = chain->segments[chain->out_count + chain->in_count - 1];

	return (struct virtio_segment){(uint8_t *)last.hva + last.length - 1, last.gpa + last.length - 1, 1};
}

static void finish(struct virtio_blk *blk, uint16_t head, const struct virtio_segment *status, uint32_t written,
	enum blk_status code)
{
	struct virtqueue *vq = &blk->dev.queues[0];

	if (!virtio_running(&blk->dev))
		return;
	*(uint8_t *)status->hva = code;
	mem_mark_written(blk->dev.mem, status->gpa, 1);
	virtqueue_push(vq, head, written + 1);
	virtqueue_interrupt(vq);
}

static void request_free(struct blk_request *request)
{
	struct virtio_blk *blk = request->blk;

	free(request->iov);
	free(request->gpas);
	free(request);
	if (!--blk->in_flight)
		virtio_reset_complete(&blk->dev);
}

static void request_done(struct host_disk_request *io, int result)
{
	struct blk_request *request = (struct blk_request *)io;
	struct virtio_blk *blk = request->blk;
	bool was_full = blk->in_flight >= blk->dev.queue_size;

	if (request->generation == blk->dev.state.generation) {
		if (!result && request->then_flush) {
			request->then_flush = false;
			io->op = HOST_DISK_FLUSH;
			host_disk_submit(blk->disk, io);
			host_disk_kick(blk->disk);
			return;
		}
		for (unsigned i = 0; io->op == HOST_DISK_READ && i < request->count; i++)
			mem_mark_written(blk->dev.mem, request->gpas[i], request->iov[i].iov_len);
		finish(blk, request->head, &request->status, result ? 0 : request->data_written,
			result ? BLK_IOERR : BLK_OK);
	}
	request_free(request);
	if (was_full && !blk->destroying)
		blk_serve(blk);
}

static struct blk_request *request_create(struct virtio_blk *blk, enum host_disk_op op, unsigned segments)
{
	struct blk_request *request = calloc(1, sizeof(*request));

	if (!request)
		return NULL;
	request->iov = calloc(segments + 1, sizeof(*request->iov));
	request->gpas = calloc(segments + 1, sizeof(*request->gpas));
	if (!request->iov || !request->gpas) {
		free(request->iov);
		free(request->gpas);
		free(request);
		return NULL;
	}
	request->blk = blk;
	request->generation = blk->dev.state.generation;
	request->head = blk->chain.head;
	request->status = status_segment(&blk->chain);
	request->io.op = op;
	request->io.done = request_done;
	return request;
}

static void request_start(struct virtio_blk *blk, struct blk_request *request)
{
	request->io.iov = request->iov;
	request->io.iov_count = request->count;
	blk->in_flight++;
	host_disk_submit(blk->disk, &request->io);
}

/* Returns BLK_OK if the request has been started. */
static enum blk_status start_transfer(struct virtio_blk *blk, bool is_write, uint64_t sector)
{
	const struct virtio_chain *chain = &blk->chain;
	uint64_t length = is_write ? chain->out_bytes - BLK_HEADER_SIZE : chain->in_bytes - 1;
	struct blk_request *request;

	if (is_write && host_disk_readonly(blk->disk))
		return BLK_IOERR;
	if (length % SECTOR_SIZE || sector > blk->size / SECTOR_SIZE || length > blk->size - sector * SECTOR_SIZE)
		return BLK_IOERR;
	request = request_create(blk, is_write ? HOST_DISK_WRITE : HOST_DISK_READ, chain->out_count + chain->in_count);
	if (!request)
		return BLK_IOERR;
	if (is_write)
		request->count = virtio_segments_cut(chain->segments, chain->out_count, BLK_HEADER_SIZE, length,
			request->iov, request->gpas);
	else
		request->count = virtio_segments_cut(chain->segments + chain->out_count, chain->in_count, 0, length,
			request->iov, request->gpas);
	request->io.offset = sector * SECTOR_SIZE;
	request->io.length = length;
	request->data_written = is_write ? 0 : length;
	request->then_flush = is_write && !virtio_has(&blk->dev, BLK_F_FLUSH);
	request_start(blk, request);
	return BLK_OK;
}

static enum blk_status start_flush(struct virtio_blk *blk)
{
	struct blk_request *request;

	request = request_create(blk, HOST_DISK_FLUSH, 0);
	if (!request)
		return BLK_IOERR;
	request_start(blk, request);
	return BLK_OK;
}

static void get_id(struct virtio_blk *blk)
{
	struct virtio_segment status = status_segment(&blk->chain);
	uint64_t room = blk->chain.in_bytes - 1;
	size_t length = room < BLK_ID_SIZE ? room : BLK_ID_SIZE;

	length = virtio_chain_write(&blk->dev, &blk->chain, 0, blk->serial, length);
	finish(blk, blk->chain.head, &status, length, BLK_OK);
}

static void serve_chain(struct virtio_blk *blk)
{
	struct virtio_segment status;
	enum blk_status code = BLK_UNSUPP;
	uint8_t header[BLK_HEADER_SIZE];

	if (blk->chain.out_bytes < BLK_HEADER_SIZE || !blk->chain.in_bytes) {
		virtio_break(&blk->dev, "a disk request has no room for its header or its status");
		return;
	}
	virtio_chain_read(&blk->chain, 0, header, sizeof(header));
	switch (bytes_load(header, 4)) {
	case BLK_IN: code = start_transfer(blk, false, bytes_load(header + 8, 8)); break;
	case BLK_OUT: code = start_transfer(blk, true, bytes_load(header + 8, 8)); break;
	case BLK_FLUSH: code = start_flush(blk); break;
	case BLK_GET_ID: get_id(blk); return;
	}
	if (code == BLK_OK)
		return;
	status = status_segment(&blk->chain);
	finish(blk, blk->chain.head, &status, 0, code);
}

static void blk_serve(struct virtio_blk *blk)
{
	struct virtqueue *vq = &blk->dev.queues[0];
	unsigned served = 0;

	do {
		virtqueue_set_notify(vq, false);
		while (blk->in_flight < blk->dev.queue_size && served < blk->dev.queue_size &&
			virtqueue_pop(vq, &blk->chain) > 0) {
			serve_chain(blk);
			served++;
		}
		if (blk->in_flight >= blk->dev.queue_size)
			break; /* a completion goes on */
		virtqueue_set_notify(vq, true);
		if (served >= blk->dev.queue_size) {
			virtqueue_renotify(vq);
			break;
		}
	} while (!virtqueue_empty(vq));
	host_disk_kick(blk->disk);
}

static void blk_notify(struct virtio_device *dev, unsigned queue)
{
	(void)queue;
	blk_serve((struct virtio_blk *)dev);
}

static bool blk_reset(struct virtio_device *dev)
{
	return !((struct virtio_blk *)dev)->in_flight;
}

static void blk_drain(struct virtio_device *dev)
{
	host_disk_drain(((struct virtio_blk *)dev)->disk);
}

static void blk_destroy(struct virtio_device *dev)
{
	struct virtio_blk *blk = (struct virtio_blk *)dev;

	blk->destroying = true;
	dev->transport_ops = NULL;
	dev->state.generation++;
	host_disk_close(blk->disk);
	free(blk);
}

static const struct virtio_device_ops blk_ops = {
	.queue_notify = blk_notify,
	.reset = blk_reset,
	.drain = blk_drain,
	.destroy = blk_destroy,
};

int virtio_blk_create(struct guest_mem *mem, struct host_disk *disk, const char *serial, struct virtio_device **out,
	struct error *err)
{
	struct virtio_blk *blk = calloc(1, sizeof(*blk));

	if (!blk) {
		host_disk_close(disk);
		return error_set(err, -ENOMEM, "no memory for a disk");
	}
	blk->disk = disk;
	blk->size = host_disk_size(disk);
	if (serial)
		memcpy(blk->serial, serial, strnlen(serial, BLK_ID_SIZE));
	bytes_store(blk->config, 8, blk->size / SECTOR_SIZE);
	bytes_store(blk->config + 12, 4, VIRTQUEUE_SIZE_MAX - 2); /* seg_max: a chain has header and status too */
	bytes_store(blk->config + 20, 4, SECTOR_SIZE);
	blk->dev.name = "virtio-blk";
	blk->dev.id = VIRTIO_ID_BLOCK;
	blk->dev.pci_class = 0x010000;
	blk->dev.ops = &blk_ops;
	blk->dev.mem = mem;
	blk->dev.features = VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX | BLK_F_SEG_MAX |
			    BLK_F_BLK_SIZE | BLK_F_FLUSH | (host_disk_readonly(disk) ? BLK_F_RO : 0);
	blk->dev.queue_count = 1;
	blk->dev.queue_size = VIRTQUEUE_SIZE_MAX;
	blk->dev.config = blk->config;
	blk->dev.config_size = sizeof(blk->config);
	virtio_reset(&blk->dev);
	*out = &blk->dev;
	return 0;
}
