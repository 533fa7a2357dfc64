/*
 * A CD-ROM drive on virtio-scsi. First byte, bit 0: command blocks of 16 bytes, straight to the drive; else the rest is guest memory
 * from 0 on, with the rings of the control, event and request queues at its start, changed in four steps with a notification of
 * all queues after each.
 */
#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vmm/bytes.h"
#include "vmm/event.h"
#include "vmm/host_disk.h"
#include "vmm/log.h"
#include "vmm/mem.h"
#include "vmm/virtio.h"
#include "virtio/scsi_cd.h"
#include "fuzz.h"

#define RING_SIZE 16
#define QUEUE_BYTES 1024
#define BLOCKS 64

static void commands(const uint8_t *data, size_t size)
{
	struct scsi_cd cd = {.blocks = BLOCKS + (size & 1) * 1000000};

	for (; size >= SCSI_CDB_MAX; data += SCSI_CDB_MAX, size -= SCSI_CDB_MAX) {
		struct scsi_answer a;

		scsi_cd_execute(&cd, data, &a);
		assert(a.length <= SCSI_DATA_MAX && a.sense_length <= SCSI_SENSE_SIZE);
		assert(!a.blocks || (!a.length && a.lba < cd.blocks && a.blocks <= cd.blocks - a.lba));
		assert((a.status == SCSI_GOOD) == !a.sense_length);
		assert(a.status == SCSI_GOOD || (!a.length && !a.blocks && a.sense[2]));
	}
}

/* One controller for all inputs, reset for each: threads and rings of the host are dear. */
static struct virtio_device *controller(struct guest_mem *mem)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	static struct virtio_device *dev;
	struct event_loop *loop;
	struct worker_pool *pool;
	struct host_disk *disk;
	char path[40];
	int fd;

	if (!dev) {
		fd = memfd_create("disc", MFD_CLOEXEC);
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		if (fd < 0 || ftruncate(fd, BLOCKS * SCSI_CD_BLOCK) || event_loop_create(&lock, &loop, NULL) ||
			worker_pool_create(loop, 1, &pool, NULL) || host_disk_open(loop, pool, path, true, &disk, NULL) ||
			virtio_scsi_cd_create(mem, disk, &dev, NULL))
			abort();
	}
	return dev;
}

static void start(struct virtio_device *dev, uint8_t choice)
{
	dev->state.driver_features = (VIRTIO_F_VERSION_1 | (choice & 2 ? VIRTIO_F_INDIRECT_DESC : 0) |
				      (choice & 4 ? VIRTIO_F_EVENT_IDX : 0)) & dev->features;
	virtio_set_status(dev, 0x0b);
	if (choice & 8)
		virtio_config_write(dev, 20, 4, choice);
	if (choice & 16)
		virtio_config_write(dev, 24, 4, choice);
	for (unsigned q = 0; q < dev->queue_count; q++) {
		struct virtqueue_state *s = &dev->queues[q].state;

		s->size = RING_SIZE;
		s->desc = q * QUEUE_BYTES;
		s->driver = s->desc + 16 * RING_SIZE;
		s->device = s->desc + 512;
		virtqueue_enable(&dev->queues[q]);
	}
	virtio_set_status(dev, 0x0f);
}

static void rings(const uint8_t *data, size_t size, uint8_t choice)
{
	static struct guest_mem *mem;
	struct virtio_device *dev;

	if (!mem && mem_create(1 << 20, &mem, NULL))
		abort();
	mem_zero(mem, 0, 0xa0000);
	dev = controller(mem);
	start(dev, choice);
	for (unsigned part = 0; part < 4; part++) {
		size_t from = size * part / 4, to = size * (part + 1) / 4;

		mem_write(mem, from, data + from, to - from);
		for (unsigned q = 0; q < dev->queue_count; q++)
			virtio_notify(dev, q);
		if (choice & 32)
			dev->ops->drain(dev);
	}
	virtio_set_status(dev, 0);
	dev->ops->drain(dev);
	assert(!virtio_get_status(dev));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size < 2 || size > 65536)
		return 0;
	log_set_level(LOG_ERROR);
	if (data[0] & 1)
		commands(data + 1, size - 1);
	else
		rings(data + 1, size - 1, data[0]);
	return 0;
}

static void descriptor(uint8_t *at, uint64_t addr, uint32_t length, unsigned flags, unsigned next)
{
	bytes_store(at, 8, addr);
	bytes_store(at + 8, 4, length);
	bytes_store(at + 12, 2, flags);
	bytes_store(at + 14, 2, next);
}

/* 0: commands of all kinds; 1: a read of two blocks; 2: an inquiry; 3: task management. */
size_t fuzz_seed(unsigned kind, uint8_t *data, size_t size)
{
	static const uint8_t opcodes[] = {0x00, 0x03, 0x12, 0x1a, 0x1b, 0x1e, 0x25, 0x28, 0x43, 0x46, 0x4a, 0x51, 0x5a, 0xa0, 0xa8, 0xbd};
	unsigned queue = kind == 3 ? 0 : 2;
	uint8_t *ring = data + 1 + queue * QUEUE_BYTES, *buffer = data + 1 + 0x300; /* between rings, there before they are looked at */

	if (kind > 3 || size < 0x1400)
		return 0;
	memset(data, 0, 0x1400);
	if (kind == 0) {
		data[0] = 1;
		for (unsigned i = 0; i < sizeof(opcodes); i++) {
			data[1 + 16 * i] = opcodes[i];
			data[1 + 16 * i + 7] = data[1 + 16 * i + 8] = data[1 + 16 * i + 4] = 1;
		}
		return 1 + 16 * sizeof(opcodes);
	}
	descriptor(ring, 0x300, kind == 3 ? 24 : 51, 1, 1);
	descriptor(ring + 16, 0x2000, kind == 3 ? 1 : 108, kind == 3 ? 2 : 3, 2);
	descriptor(ring + 32, 0x3000, 4096, 2, 0);
	bytes_store(ring + 16 * RING_SIZE + 2, 2, 1);
	buffer[kind == 3 ? 8 : 0] = 1;
	if (kind == 3)
		return 0x1400;
	buffer[2] = 0x40;
	buffer[19] = kind == 1 ? 0x28 : 0x12;
	buffer[19 + (kind == 1 ? 8 : 4)] = kind == 1 ? 2 : 36;
	return 0x1400;
}
