/*
 * virtio-scsi, virtio 1.2 §5.6, with one drive behind it (scsi_cd.h): a control queue, an event queue that never has any, and
 * one request queue.
 *
 *   request:  | lun 8 | id 8 | attribute 1 | priority 1 | crn 1 | cdb … |     then data for the drive, which takes none
 *   response: | sense length 4 | residual 4 | qualifier 2 | status 1 | response 1 | sense … |     then data of the drive
 *   lun:      1 | target | 0 or 40h, LUN 13:8 | LUN 7:0 | 0 0 0 0
 *
 * Invariants: at most queue-size reads are in flight whatever the guest does with its rings; a completion that comes after a
 * reset frees its request and touches nothing of the guest. Sizes of CDB and sense are the driver's choice, within bounds.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "scsi_cd.h"
#include "vmm/bytes.h"
#include "vmm/error.h"
#include "vmm/host_disk.h"
#include "vmm/mem.h"
#include "vmm/virtio.h"

enum { QUEUE_CONTROL, QUEUE_EVENT, QUEUE_REQUEST, QUEUES };
enum scsi_response { RESPONSE_OK = 0, RESPONSE_OVERRUN = 1, RESPONSE_BAD_TARGET = 3, RESPONSE_FAILURE = 9 };
enum { CONTROL_TMF = 0, CONTROL_AN_QUERY = 1, CONTROL_AN_SUBSCRIBE = 2 };
enum { TMF_LAST = 7, FUNCTION_COMPLETE = 0, FUNCTION_REJECTED = 11, FUNCTION_INCORRECT_LUN = 12 };

#define REQUEST_HEADER 19u
#define RESPONSE_HEADER 12u
#define CDB_DEFAULT 32u
#define SENSE_DEFAULT 96u
#define SIZE_CHOICE_MAX 255u
#define TMF_SIZE 24u /* type 4, subtype 4, lun 8, id 8 */
#define AN_SIZE 16u  /* type 4, lun 8, events 4 */

/* The configuration, §5.6.4. */
enum { CONFIG_NUM_QUEUES = 0, CONFIG_SEG_MAX = 4, CONFIG_MAX_SECTORS = 8, CONFIG_CMD_PER_LUN = 12, CONFIG_EVENT_SIZE = 16,
	CONFIG_SENSE_SIZE = 20, CONFIG_CDB_SIZE = 24, CONFIG_SIZE = 36 };

struct virtio_scsi {
	struct virtio_device dev; /* first */
	/* Set at create. */
	struct host_disk *disk;
	/* Device lock. */
	struct scsi_cd cd;
	uint8_t config[CONFIG_SIZE];
	unsigned in_flight;
	bool draining; /* no new requests are taken */
	struct virtio_chain chain;	   /* the request being parsed */
	struct virtio_chain control_chain; /* of the control queue, whose work may complete requests */
};

/* A read off the disc. */
struct scsi_request {
	struct host_disk_request io;
	struct virtio_scsi *scsi;
	uint32_t generation;
	uint16_t head;
	uint64_t room; /* for data */
	unsigned in_count, count;
	struct virtio_segment *in; /* the chain's writable part, for the response */
	struct iovec *iov;
	uint64_t *gpas; /* of each iov, reported after the read */
};

static void request_serve(struct virtio_scsi *scsi);

static unsigned sense_size(const struct virtio_scsi *scsi)
{
	return (unsigned)bytes_load(scsi->config + CONFIG_SENSE_SIZE, 4);
}

static unsigned cdb_size(const struct virtio_scsi *scsi)
{
	return (unsigned)bytes_load(scsi->config + CONFIG_CDB_SIZE, 4);
}

/* Is it the drive's? */
static bool lun_known(const uint8_t lun[8])
{
	static const uint8_t rest[4];

	return lun[0] == 1 && !lun[1] && !(lun[2] & ~0x40) && !lun[3] && !memcmp(lun + 4, rest, sizeof(rest));
}

/* ---- responses ---- */

/*
 * The chain goes back with `data` bytes after the response; `residual` bytes were expected and not moved. answer may be NULL: the
 * command has not come to the drive.
 */
static void respond(struct virtio_scsi *scsi, uint16_t head, const struct virtio_segment *in, unsigned in_count,
	const struct scsi_answer *answer, uint64_t data, uint64_t residual, enum scsi_response code)
{
	struct virtqueue *vq = &scsi->dev.queues[QUEUE_REQUEST];
	uint8_t response[RESPONSE_HEADER] = {0};
	unsigned sense = answer ? answer->sense_length : 0;

	if (sense > sense_size(scsi))
		sense = sense_size(scsi);
	bytes_store(response, 4, sense);
	bytes_store(response + 4, 4, residual < UINT32_MAX ? residual : UINT32_MAX);
	response[10] = answer ? (uint8_t)answer->status : 0;
	response[11] = (uint8_t)code;
	virtio_segments_write(&scsi->dev, in, in_count, 0, response, sizeof(response));
	if (sense)
		virtio_segments_write(&scsi->dev, in, in_count, RESPONSE_HEADER, answer->sense, sense);
	virtqueue_push(vq, head, (uint32_t)(RESPONSE_HEADER + sense_size(scsi) + data));
	virtqueue_interrupt(vq);
}

static void respond_chain(struct virtio_scsi *scsi, const struct scsi_answer *answer, uint64_t data, uint64_t residual,
	enum scsi_response code)
{
	const struct virtio_chain *chain = &scsi->chain;

	respond(scsi, chain->head, chain->segments + chain->out_count, chain->in_count, answer, data, residual, code);
}

/* ---- reads ---- */

static void request_free(struct scsi_request *request)
{
	free(request->in);
	free(request->iov);
	free(request->gpas);
	free(request);
}

static void request_done(struct host_disk_request *io, int result)
{
	struct scsi_request *request = (struct scsi_request *)io;
	struct virtio_scsi *scsi = request->scsi;
	bool was_full = scsi->in_flight >= scsi->dev.queue_size;
	struct scsi_answer answer = {.status = SCSI_GOOD};

	if (request->generation == scsi->dev.state.generation && virtio_running(&scsi->dev)) {
		for (unsigned i = 0; i < request->count; i++)
			mem_mark_written(scsi->dev.mem, request->gpas[i], request->iov[i].iov_len);
		if (result)
			scsi_cd_read_failed(&answer);
		respond(scsi, request->head, request->in, request->in_count, &answer, result ? 0 : io->length,
			request->room - (result ? 0 : io->length), RESPONSE_OK);
	}
	request_free(request);
	if (!--scsi->in_flight)
		virtio_reset_complete(&scsi->dev);
	if (was_full && !scsi->draining)
		request_serve(scsi);
}

static struct scsi_request *request_create(struct virtio_scsi *scsi)
{
	const struct virtio_chain *chain = &scsi->chain;
	struct scsi_request *request = calloc(1, sizeof(*request));

	if (!request)
		return NULL;
	request->in_count = chain->in_count;
	request->in = calloc(chain->in_count, sizeof(*request->in));
	request->iov = calloc(chain->in_count, sizeof(*request->iov));
	request->gpas = calloc(chain->in_count, sizeof(*request->gpas));
	if (!request->in || !request->iov || !request->gpas) {
		request_free(request);
		return NULL;
	}
	memcpy(request->in, chain->segments + chain->out_count, chain->in_count * sizeof(*request->in));
	request->scsi = scsi;
	request->generation = scsi->dev.state.generation;
	request->head = chain->head;
	request->io.op = HOST_DISK_READ;
	request->io.done = request_done;
	return request;
}

static void start_read(struct virtio_scsi *scsi, const struct scsi_answer *answer, uint64_t room)
{
	uint64_t length = (uint64_t)answer->blocks * SCSI_CD_BLOCK;
	struct scsi_request *request;

	if (length > room) {
		respond_chain(scsi, answer, 0, 0, RESPONSE_OVERRUN);
		return;
	}
	request = request_create(scsi);
	if (!request) {
		respond_chain(scsi, NULL, 0, room, RESPONSE_FAILURE);
		return;
	}
	request->count = virtio_segments_cut(request->in, request->in_count, RESPONSE_HEADER + sense_size(scsi), length,
		request->iov, request->gpas);
	request->room = room;
	request->io.offset = answer->lba * SCSI_CD_BLOCK;
	request->io.length = length;
	request->io.iov = request->iov;
	request->io.iov_count = request->count;
	scsi->in_flight++;
	host_disk_submit(scsi->disk, &request->io);
}

/* ---- the request queue ---- */

static void request_execute(struct virtio_scsi *scsi)
{
	struct virtio_chain *chain = &scsi->chain;
	unsigned front = RESPONSE_HEADER + sense_size(scsi);
	uint64_t room, surplus;
	uint8_t header[REQUEST_HEADER + SCSI_CDB_MAX] = {0};
	struct scsi_answer answer;
	size_t wanted = REQUEST_HEADER + (cdb_size(scsi) < SCSI_CDB_MAX ? cdb_size(scsi) : SCSI_CDB_MAX);

	if (chain->out_bytes < REQUEST_HEADER + cdb_size(scsi) || chain->in_bytes < front) {
		virtio_break(&scsi->dev, "a request has no room for its command or its response");
		return;
	}
	room = chain->in_bytes - front;
	surplus = chain->out_bytes - (REQUEST_HEADER + cdb_size(scsi));
	virtio_chain_read(chain, 0, header, wanted);
	if (!lun_known(header)) {
		respond_chain(scsi, NULL, 0, room, RESPONSE_BAD_TARGET);
		return;
	}
	if (room && surplus) { /* both ways at once has not been offered */
		respond_chain(scsi, NULL, 0, room, RESPONSE_FAILURE);
		return;
	}
	scsi_cd_execute(&scsi->cd, header + REQUEST_HEADER, &answer);
	if (answer.blocks) {
		start_read(scsi, &answer, room);
		return;
	}
	if (answer.length > room)
		answer.length = (unsigned)room;
	virtio_chain_write(&scsi->dev, chain, front, answer.data, answer.length);
	respond_chain(scsi, &answer, answer.length, room + surplus - answer.length, RESPONSE_OK);
}

static void request_serve(struct virtio_scsi *scsi)
{
	struct virtqueue *vq = &scsi->dev.queues[QUEUE_REQUEST];
	unsigned served = 0;

	if (!virtio_running(&scsi->dev) || !vq->state.enabled)
		return;
	do {
		virtqueue_set_notify(vq, false);
		while (scsi->in_flight < scsi->dev.queue_size && served < scsi->dev.queue_size &&
			virtqueue_pop(vq, &scsi->chain) > 0) {
			request_execute(scsi);
			served++;
		}
		if (scsi->in_flight >= scsi->dev.queue_size)
			break; /* a completion goes on */
		virtqueue_set_notify(vq, true);
		if (served >= scsi->dev.queue_size) {
			virtqueue_renotify(vq);
			break;
		}
	} while (!virtqueue_empty(vq));
	host_disk_kick(scsi->disk);
}

/* ---- the control queue ---- */

/*
 * Task management, §5.6.6.2. Nothing here takes long but the host's disk: what is to be aborted is waited for, and after it there
 * is no such task.
 */
static uint8_t task_manage(struct virtio_scsi *scsi, const uint8_t request[TMF_SIZE])
{
	if (!lun_known(request + 8))
		return FUNCTION_INCORRECT_LUN;
	if (bytes_load(request + 4, 4) > TMF_LAST)
		return FUNCTION_REJECTED;
	scsi->draining = true;
	host_disk_drain(scsi->disk);
	scsi->draining = false;
	virtqueue_renotify(&scsi->dev.queues[QUEUE_REQUEST]);
	return FUNCTION_COMPLETE;
}

static void control_execute(struct virtio_scsi *scsi)
{
	struct virtio_chain *chain = &scsi->control_chain;
	struct virtqueue *vq = &scsi->dev.queues[QUEUE_CONTROL];
	uint8_t request[TMF_SIZE] = {0}, response[5] = {0};
	uint32_t generation = scsi->dev.state.generation;
	size_t size = virtio_chain_read(chain, 0, request, sizeof(request)), length;
	unsigned type = size >= 4 ? (unsigned)bytes_load(request, 4) : ~0u;

	if (type == CONTROL_TMF && size >= TMF_SIZE && chain->in_bytes >= 1) {
		length = 1;
		response[0] = task_manage(scsi, request);
	} else if ((type == CONTROL_AN_QUERY || type == CONTROL_AN_SUBSCRIBE) && size >= AN_SIZE && chain->in_bytes >= 5) {
		length = 5; /* no events */
		response[4] = lun_known(request + 4) ? RESPONSE_OK : RESPONSE_BAD_TARGET;
	} else {
		virtio_break(&scsi->dev, "a control request is unknown or too short");
		return;
	}
	if (generation != scsi->dev.state.generation || !virtio_running(&scsi->dev))
		return;
	virtio_chain_write(&scsi->dev, chain, 0, response, length);
	virtqueue_push(vq, chain->head, (uint32_t)length);
	virtqueue_interrupt(vq);
}

static void control_serve(struct virtio_scsi *scsi)
{
	struct virtqueue *vq = &scsi->dev.queues[QUEUE_CONTROL];
	unsigned served = 0;

	virtqueue_set_notify(vq, true);
	while (served < scsi->dev.queue_size && virtqueue_pop(vq, &scsi->control_chain) > 0) {
		control_execute(scsi);
		virtqueue_set_notify(vq, true);
		served++;
	}
	if (served == scsi->dev.queue_size)
		virtqueue_renotify(vq);
}

/* ---- the device ---- */

static void scsi_notify(struct virtio_device *dev, unsigned queue)
{
	struct virtio_scsi *scsi = (struct virtio_scsi *)dev;

	if (queue == QUEUE_REQUEST)
		request_serve(scsi);
	else if (queue == QUEUE_CONTROL)
		control_serve(scsi);
}

/* The tray stays as it is. */
static bool scsi_reset(struct virtio_device *dev)
{
	struct virtio_scsi *scsi = (struct virtio_scsi *)dev;

	bytes_store(scsi->config + CONFIG_SENSE_SIZE, 4, SENSE_DEFAULT);
	bytes_store(scsi->config + CONFIG_CDB_SIZE, 4, CDB_DEFAULT);
	scsi->cd.locked = false;
	return !scsi->in_flight;
}

/* Two fields are the driver's, until it says FEATURES_OK: requests in flight know their sizes. */
static void scsi_config_written(struct virtio_device *dev, unsigned offset, unsigned size, uint64_t value)
{
	struct virtio_scsi *scsi = (struct virtio_scsi *)dev;
	bool is_sense = offset == CONFIG_SENSE_SIZE;

	if (size != 4 || (!is_sense && offset != CONFIG_CDB_SIZE) || dev->state.status & VIRTIO_STATUS_DRIVER_OK ||
		dev->state.reset_pending || value > SIZE_CHOICE_MAX || (!is_sense && value < SCSI_CDB_MAX))
		return;
	bytes_store(scsi->config + offset, 4, value);
}

static void scsi_drain(struct virtio_device *dev)
{
	host_disk_drain(((struct virtio_scsi *)dev)->disk);
}

static void scsi_destroy(struct virtio_device *dev)
{
	struct virtio_scsi *scsi = (struct virtio_scsi *)dev;

	scsi->draining = true;
	dev->transport_ops = NULL;
	dev->state.generation++;
	host_disk_close(scsi->disk);
	free(scsi);
}

static const struct virtio_device_ops scsi_ops = {
	.queue_notify = scsi_notify,
	.reset = scsi_reset,
	.drain = scsi_drain,
	.config_written = scsi_config_written,
	.destroy = scsi_destroy,
};

static void config_fill(uint8_t config[CONFIG_SIZE])
{
	bytes_store(config + CONFIG_NUM_QUEUES, 4, 1);
	bytes_store(config + CONFIG_SEG_MAX, 4, VIRTQUEUE_SIZE_MAX - 2); /* a chain has request and response, too */
	bytes_store(config + CONFIG_MAX_SECTORS, 4, 0xffff);
	bytes_store(config + CONFIG_CMD_PER_LUN, 4, VIRTQUEUE_SIZE_MAX / 2);
	bytes_store(config + CONFIG_EVENT_SIZE, 4, 16);
	/* max_channel, max_target and max_lun: 0 */
}

int virtio_scsi_cd_create(struct guest_mem *mem, struct host_disk *disk, struct virtio_device **out, struct error *err)
{
	struct virtio_scsi *scsi;

	if (host_disk_size(disk) < SCSI_CD_BLOCK) {
		host_disk_close(disk);
		return error_set(err, -EINVAL, "the image of a CD has 2,048 bytes at least");
	}
	scsi = calloc(1, sizeof(*scsi));
	if (!scsi) {
		host_disk_close(disk);
		return error_set(err, -ENOMEM, "no memory for a CD-ROM drive");
	}
	scsi->disk = disk;
	scsi->cd.blocks = host_disk_size(disk) / SCSI_CD_BLOCK;
	config_fill(scsi->config);
	scsi->dev.name = "virtio-scsi";
	scsi->dev.id = VIRTIO_ID_SCSI;
	scsi->dev.pci_class = 0x010000;
	scsi->dev.ops = &scsi_ops;
	scsi->dev.mem = mem;
	scsi->dev.features = VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX;
	scsi->dev.queue_count = QUEUES;
	scsi->dev.queue_size = VIRTQUEUE_SIZE_MAX;
	scsi->dev.config = scsi->config;
	scsi->dev.config_size = sizeof(scsi->config);
	virtio_reset(&scsi->dev);
	*out = &scsi->dev;
	return 0;
}
