/* The CD-ROM drive's command set, and virtio-scsi around it through the PCI transport with a fake driver in guest memory. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fake_driver.h"
#include "run_suite.h"
#include "vmm/host_disk.h"
#include "host/host_disk_internal.h"
#include "virtio/scsi_cd.h"

#define REQUEST 0x30000
#define RESPONSE 0x31000
#define DATA 0x40000
#define BLOCKS 64
#define CONTROL 0
#define REQUESTS 2

/* ---- the drive ---- */

static struct scsi_answer command(struct scsi_cd *cd, const char *bytes, size_t size)
{
	uint8_t cdb[SCSI_CDB_MAX] = {0};
	struct scsi_answer a;

	memcpy(cdb, bytes, size);
	scsi_cd_execute(cd, cdb, &a);
	return a;
}
#define COMMAND(cd, bytes) command(cd, bytes, sizeof(bytes) - 1)

static unsigned sense_of(const struct scsi_answer *a)
{
	ck_assert_int_eq(a->status == SCSI_CHECK_CONDITION, a->sense_length == SCSI_SENSE_SIZE);
	return a->sense_length ? (unsigned)(a->sense[2] << 16 | a->sense[12] << 8 | a->sense[13]) : 0;
}

START_TEST(what_it_says)
{
	struct scsi_cd cd = {.blocks = 0x12345};
	struct scsi_answer a = COMMAND(&cd, "\x12\0\0\0\xff");

	ck_assert_uint_eq(a.length, 36);
	ck_assert_uint_eq(a.data[0], 5);
	ck_assert_uint_eq(a.data[1], 0x80);
	a = COMMAND(&cd, "\x12\0\0\0\x05");
	ck_assert_uint_eq(a.length, 5);
	a = COMMAND(&cd, "\x12\1\0\0\xff");
	ck_assert_uint_eq(a.length, 5);
	a = COMMAND(&cd, "\x12\1\x83\0\xff");
	ck_assert_uint_eq(sense_of(&a), 0x052400);
	a = COMMAND(&cd, "\x25");
	ck_assert_mem_eq(a.data, "\x00\x01\x23\x44\x00\x00\x08\x00", 8);
	a = COMMAND(&cd, "\xa0\0\0\0\0\0\0\0\0\xff");
	ck_assert_uint_eq(a.length, 16);
	ck_assert_uint_eq(a.data[3], 8);
	a = COMMAND(&cd, "\x43\0\0\0\0\0\0\0\xff");
	ck_assert_mem_eq(a.data, "\x00\x12\x01\x01\x00\x14\x01\x00\x00\x00\x00\x00\x00\x14\xaa\x00\x00\x01\x23\x45", 20);
	a = COMMAND(&cd, "\x43\2\0\0\0\0\xaa\0\xff"); /* 16:36:15, which is 0x12345 blocks and two seconds */
	ck_assert_mem_eq(a.data, "\x00\x0a\x01\x01\x00\x14\xaa\x00\x00\x10\x24\x0f", 12);
	a = COMMAND(&cd, "\x46\0\0\0\0\0\0\0\xff");
	ck_assert_uint_eq(a.length, 64);
	ck_assert_uint_eq(a.data[3], 60);
	ck_assert_uint_eq(a.data[7], 8); /* a CD */
	cd.blocks = 2000000;
	a = COMMAND(&cd, "\x46\0\0\0\0\0\0\0\xff");
	ck_assert_uint_eq(a.data[7], 0x10);
	a = COMMAND(&cd, "\x46\2\0\x10\0\0\0\0\xff");
	ck_assert_mem_eq(a.data + 4, "\0\0\0\x10\0\x10\1\x08\0\0\x08\0\0\1", 14);
	a = COMMAND(&cd, "\x5a\0\x2a\0\0\0\0\0\xff");
	ck_assert_uint_eq(a.length, 28);
	ck_assert_uint_eq(a.data[8], 0x2a);
	a = COMMAND(&cd, "\x1a\0\x3f\0\xff");
	ck_assert_uint_eq(a.length, 32);
	ck_assert_uint_eq(a.data[0], 31);
	a = COMMAND(&cd, "\x2a\0\0\0\0\0\0\0\1"); /* nothing is written */
	ck_assert_uint_eq(sense_of(&a), 0x052000);
}
END_TEST

START_TEST(where_it_reads)
{
	struct scsi_cd cd = {.blocks = 100};
	struct scsi_answer a = COMMAND(&cd, "\x28\0\0\0\0\x63\0\0\1");

	ck_assert_uint_eq(a.lba, 99);
	ck_assert_uint_eq(a.blocks, 1);
	a = COMMAND(&cd, "\x28\0\0\0\0\x63\0\0\2");
	ck_assert_uint_eq(sense_of(&a), 0x052100);
	ck_assert_uint_eq(a.blocks, 0);
	a = COMMAND(&cd, "\x28\0\xff\xff\xff\xff\0\xff\xff");
	ck_assert_uint_eq(sense_of(&a), 0x052100);
	a = COMMAND(&cd, "\xa8\0\0\0\0\1\xff\xff\xff\xff");
	ck_assert_uint_eq(sense_of(&a), 0x052100);
	a = COMMAND(&cd, "\x28\0\0\0\0\x64\0\0\0");
	ck_assert_uint_eq(sense_of(&a), 0);
	ck_assert_uint_eq(a.blocks, 0);
	cd.blocks = 1ull << 33; /* beyond what the commands can name */
	a = COMMAND(&cd, "\x25");
	ck_assert_mem_eq(a.data, "\xff\xff\xff\xfe", 4);
}
END_TEST

START_TEST(tray)
{
	struct scsi_cd cd = {.blocks = 100};
	struct scsi_answer a;

	COMMAND(&cd, "\x1e\0\0\0\1");
	a = COMMAND(&cd, "\x1b\0\0\0\2");
	ck_assert_uint_eq(sense_of(&a), 0x055302);
	COMMAND(&cd, "\x1e\0\0\0\0");
	a = COMMAND(&cd, "\x1b\0\0\0\2");
	ck_assert_uint_eq(sense_of(&a), 0);
	a = COMMAND(&cd, "\x00");
	ck_assert_uint_eq(sense_of(&a), 0x023a02);
	a = COMMAND(&cd, "\x28\0\0\0\0\0\0\0\1");
	ck_assert_uint_eq(sense_of(&a), 0x023a02);
	a = COMMAND(&cd, "\x4a\1\0\0\x10\0\0\0\x08");
	ck_assert_mem_eq(a.data, "\0\6\4\x10\0\1\0\0", 8);
	COMMAND(&cd, "\x1b\0\0\0\3");
	a = COMMAND(&cd, "\x12\0\0\0\xff");
	ck_assert_uint_eq(sense_of(&a), 0);
	a = COMMAND(&cd, "\x00");
	ck_assert_uint_eq(sense_of(&a), 0x062800);
	a = COMMAND(&cd, "\x00");
	ck_assert_uint_eq(sense_of(&a), 0);
}
END_TEST

/* ---- the controller ---- */

struct scsi_machine {
	struct machine m;
	struct worker_pool *pool;
	char path[64];
};

static void scsi_start(struct scsi_machine *s, bool may_uring)
{
	struct error err = {0};
	struct virtio_device *dev;
	struct host_disk *disk;
	uint8_t block[SCSI_CD_BLOCK];
	int fd;

	machine_start(&s->m);
	ck_assert_int_eq(worker_pool_create(s->m.loop, 2, &s->pool, &err), 0);
	snprintf(s->path, sizeof(s->path), "/tmp/vmm-disc-XXXXXX");
	fd = mkstemp(s->path);
	ck_assert_int_ge(fd, 0);
	for (unsigned i = 0; i < BLOCKS; i++) {
		memset(block, (int)i + 1, sizeof(block));
		ck_assert_int_eq(write(fd, block, sizeof(block)), (ssize_t)sizeof(block));
	}
	close(fd);
	ck_assert_int_eq(host_disk_open_engine(s->m.loop, s->pool, s->path, true, may_uring, &disk, &err), 0);
	ck_assert_int_eq(virtio_scsi_cd_create(s->m.mem, disk, &dev, &err), 0);
	driver_attach(&s->m, dev, true);
	driver_start(&s->m, VIRTIO_F_INDIRECT_DESC, 3);
}

static void scsi_end(struct scsi_machine *s)
{
	pci_bus_destroy(s->m.pci);
	worker_pool_destroy(s->pool);
	bus_destroy(s->m.bus);
	event_loop_destroy(s->m.loop);
	mem_destroy(s->m.mem);
	unlink(s->path);
}

/* Request n: descriptors 4n …; the data in two halves if `length` is more than 2. */
static void request_add(struct machine *m, unsigned n, unsigned target, const char *cdb, size_t cdb_size, uint32_t length)
{
	uint64_t request = REQUEST + 64 * n, response = RESPONSE + 128 * n, data = DATA + 0x4000 * n;
	uint8_t header[51] = {1, (uint8_t)target, 0x40};
	uint32_t half = length > 2 ? length / 2 : length;

	memcpy(header + 19, cdb, cdb_size);
	mem_write(m->mem, request, header, sizeof(header));
	for (unsigned i = 0; i < 108; i++)
		mem_write(m->mem, response + i, "\xaa", 1);
	driver_desc(m, REQUESTS, 4 * n, request, 51, DESC_F_NEXT, 4 * n + 1);
	driver_desc(m, REQUESTS, 4 * n + 1, response, 108, DESC_F_WRITE | (length ? DESC_F_NEXT : 0), 4 * n + 2);
	driver_desc(m, REQUESTS, 4 * n + 2, data, half, DESC_F_WRITE | (half < length ? DESC_F_NEXT : 0), 4 * n + 3);
	driver_desc(m, REQUESTS, 4 * n + 3, data + half, length - half, DESC_F_WRITE, 0);
	driver_add(m, REQUESTS, 4 * n);
}
#define REQUEST_ADD(m, n, target, cdb, length) request_add(m, n, target, cdb, sizeof(cdb) - 1, length)

static uint64_t response(struct machine *m, unsigned n, unsigned at, unsigned size)
{
	return bytes_load(mem_ptr(m->mem, RESPONSE + 128 * n + at, size, false), size);
}

static uint8_t data(struct machine *m, unsigned n, unsigned at)
{
	return *(uint8_t *)mem_ptr(m->mem, DATA + 0x4000 * n + at, 1, false);
}

START_TEST(requests)
{
	struct scsi_machine s;
	struct machine *m = &s.m;

	scsi_start(&s, _i);
	ck_assert_uint_eq(mmio_read(m, m->registers + 0x2000, 4), 1);
	ck_assert_uint_eq(mmio_read(m, m->registers + 0x2014, 4), 96);
	ck_assert_uint_eq(mmio_read(m, m->registers + 0x2018, 4), 32);
	REQUEST_ADD(m, 0, 0, "\x28\0\0\0\0\3\0\0\2", 4100);
	REQUEST_ADD(m, 1, 0, "\x12\0\0\0\xff", 36);
	REQUEST_ADD(m, 2, 1, "\x12\0\0\0\xff", 36);
	REQUEST_ADD(m, 3, 0, "\x28\0\0\0\0\x3f\0\0\2", 4096);
	REQUEST_ADD(m, 4, 0, "\x28\0\0\0\0\0\0\0\2", 4095);
	REQUEST_ADD(m, 5, 0, "\x25", 4);
	REQUEST_ADD(m, 6, 0, "\x00", 0);
	driver_kick(m, REQUESTS);
	driver_wait(m, REQUESTS, 7);
	ck_assert_uint_eq(response(m, 0, 8, 4), 0); /* OK, GOOD */
	ck_assert_uint_eq(response(m, 0, 4, 4), 4); /* residual */
	ck_assert_uint_eq(data(m, 0, 0), 4);
	ck_assert_uint_eq(data(m, 0, 4095), 5);
	ck_assert_uint_eq(data(m, 0, 4096), 0);
	ck_assert_uint_eq(response(m, 1, 8, 4), 0);
	ck_assert_uint_eq(data(m, 1, 8), 'v');
	ck_assert_uint_eq(response(m, 2, 11, 1), 3); /* bad target */
	ck_assert_uint_eq(response(m, 3, 10, 2), 2); /* OK, CHECK CONDITION */
	ck_assert_uint_eq(response(m, 3, 0, 4), 18);
	ck_assert_uint_eq(response(m, 3, 12 + 2, 1), 5);
	ck_assert_uint_eq(response(m, 3, 12 + 12, 1), 0x21);
	ck_assert_uint_eq(response(m, 4, 11, 1), 1); /* overrun, nothing moved */
	ck_assert_uint_eq(data(m, 4, 0), 0);
	ck_assert_uint_eq(response(m, 5, 4, 4), 0);
	ck_assert_uint_eq(data(m, 5, 3), BLOCKS - 1);
	ck_assert_uint_eq(response(m, 6, 8, 4), 0);
	ck_assert_uint_eq(driver_status(m), 0x0f);
	/* The file shrinks: a medium error. */
	ck_assert_int_eq(truncate(s.path, SCSI_CD_BLOCK), 0);
	REQUEST_ADD(m, 7, 0, "\x28\0\0\0\0\3\0\0\1", 2048);
	driver_kick(m, REQUESTS);
	driver_wait(m, REQUESTS, 8);
	ck_assert_uint_eq(response(m, 7, 10, 2), 2);
	ck_assert_uint_eq(response(m, 7, 12 + 2, 1), 3);
	ck_assert_uint_eq(response(m, 7, 4, 4), 2048);
	/* No room for the response: the device breaks, and a reset mends it. */
	driver_desc(m, REQUESTS, 40, REQUEST, 51, DESC_F_NEXT, 41);
	driver_desc(m, REQUESTS, 41, RESPONSE, 107, DESC_F_WRITE, 0);
	driver_add(m, REQUESTS, 40);
	driver_kick(m, REQUESTS);
	event_loop_poll(m->loop, 50);
	ck_assert_uint_eq(driver_status(m), 0x4f);
	driver_start(m, 0, 3);
	REQUEST_ADD(m, 0, 0, "\x28\0\0\0\0\0\0\0\1", 2048);
	driver_kick(m, REQUESTS);
	driver_wait(m, REQUESTS, 1);
	ck_assert_uint_eq(response(m, 0, 8, 4), 0);
	scsi_end(&s);
}
END_TEST

START_TEST(chosen_sizes)
{
	struct scsi_machine s;
	struct machine *m = &s.m;
	uint64_t r;

	scsi_start(&s, false);
	r = m->registers;
	mmio_write(m, r + 0x2018, 4, 16); /* too late */
	ck_assert_uint_eq(mmio_read(m, r + 0x2018, 4), 32);
	mmio_write(m, r + 0x14, 1, 0);
	mmio_write(m, r + 0x2018, 4, 16);
	mmio_write(m, r + 0x2018, 4, 15);
	mmio_write(m, r + 0x2014, 4, 14);
	mmio_write(m, r + 0x2014, 4, 256);
	mmio_write(m, r + 0x2014, 2, 77);
	mmio_write(m, r + 0x2000, 4, 9);
	ck_assert_uint_eq(mmio_read(m, r + 0x2018, 4), 16);
	ck_assert_uint_eq(mmio_read(m, r + 0x2014, 4), 14);
	ck_assert_uint_eq(mmio_read(m, r + 0x2000, 4), 1);
	mmio_write(m, r + 0x14, 1, 0);
	ck_assert_uint_eq(mmio_read(m, r + 0x2018, 4), 32);
	ck_assert_uint_eq(mmio_read(m, r + 0x2014, 4), 96);
	scsi_end(&s);
}
END_TEST

/* A control request of `size` bytes with room for `room`; returns the answer's byte `at`. */
static uint8_t control(struct machine *m, const uint8_t *request, uint32_t size, uint32_t room, unsigned at)
{
	mem_write(m->mem, REQUEST, request, size);
	mem_write(m->mem, RESPONSE, "\xaa\xaa\xaa\xaa\xaa", 5);
	driver_desc(m, CONTROL, 0, REQUEST, size, DESC_F_NEXT, 1);
	driver_desc(m, CONTROL, 1, RESPONSE, room, DESC_F_WRITE, 0);
	driver_add(m, CONTROL, 0);
	driver_kick(m, CONTROL);
	event_loop_poll(m->loop, 10);
	return *(uint8_t *)mem_ptr(m->mem, RESPONSE + at, 1, false);
}

START_TEST(task_management)
{
	struct scsi_machine s;
	struct machine *m = &s.m;
	uint8_t request[24] = {[8] = 1};

	scsi_start(&s, _i);
	/* What runs is complete when the answer is there. */
	for (unsigned n = 0; n < 12; n++)
		REQUEST_ADD(m, n, 0, "\x28\0\0\0\0\0\0\0\x04", 8192);
	pthread_mutex_lock(&m->lock);
	virtio_notify(virtio_pci_device((struct virtio_pci *)pci_bus_device(m->pci, 1)), REQUESTS);
	pthread_mutex_unlock(&m->lock);
	ck_assert_uint_eq(control(m, request, 24, 1, 0), 0);
	ck_assert_uint_eq(driver_used(m, REQUESTS), 12);
	request[4] = 9;
	ck_assert_uint_eq(control(m, request, 24, 1, 0), 11);
	request[9] = 1;
	ck_assert_uint_eq(control(m, request, 24, 1, 0), 12);
	memset(request, 0, sizeof(request));
	request[0] = 2;
	request[4] = 1;
	ck_assert_uint_eq(control(m, request, 16, 5, 4), 0);
	ck_assert_uint_eq(driver_status(m), 0x0f);
	control(m, request, 15, 5, 4);
	ck_assert_uint_eq(driver_status(m), 0x4f);
	driver_start(m, 0, 3);
	request[0] = 7;
	control(m, request, 24, 5, 4);
	ck_assert_uint_eq(driver_status(m), 0x4f);
	scsi_end(&s);
}
END_TEST

START_TEST(reset_with_reads_in_flight)
{
	struct scsi_machine s;
	struct machine *m = &s.m;

	scsi_start(&s, _i);
	for (unsigned round = 0; round < 20; round++) {
		for (unsigned n = 0; n < 12; n++)
			REQUEST_ADD(m, n, 0, "\x28\0\0\0\0\0\0\0\x04", 8192);
		pthread_mutex_lock(&m->lock);
		virtio_notify(virtio_pci_device((struct virtio_pci *)pci_bus_device(m->pci, 1)), REQUESTS);
		pthread_mutex_unlock(&m->lock);
		mmio_write(m, m->registers + 0x14, 1, 0);
		ck_assert_uint_ne(driver_status(m), 0);
		for (unsigned i = 0; i < 200 && driver_status(m); i++)
			event_loop_poll(m->loop, 10);
		ck_assert_uint_eq(driver_status(m), 0);
		ck_assert_uint_eq(driver_used(m, REQUESTS), 0);
		for (unsigned n = 0; n < 12; n++)
			ck_assert_uint_eq(response(m, n, 11, 1), 0xaa);
		driver_start(m, 0, 3);
	}
	/* And destruction. */
	for (unsigned n = 0; n < 12; n++)
		REQUEST_ADD(m, n, 0, "\x28\0\0\0\0\0\0\0\x04", 8192);
	driver_kick(m, REQUESTS);
	scsi_end(&s);
}
END_TEST

/* The same chain again and again: no more in flight than the queue is long. */
START_TEST(one_head_many_times)
{
	struct scsi_machine s;
	struct machine *m = &s.m;

	scsi_start(&s, _i);
	REQUEST_ADD(m, 0, 0, "\x28\0\0\0\0\0\0\0\x04", 8192);
	for (unsigned i = 1; i < RING_SIZE; i++)
		driver_add(m, REQUESTS, 0);
	driver_kick(m, REQUESTS);
	driver_wait(m, REQUESTS, RING_SIZE);
	ck_assert_uint_eq(driver_status(m), 0x0f);
	scsi_end(&s);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("virtio_scsi");
	TCase *tc = tcase_create("virtio_scsi");

	log_set_level(LOG_ERROR);
	tcase_set_timeout(tc, 30);
	tcase_add_test(tc, what_it_says);
	tcase_add_test(tc, where_it_reads);
	tcase_add_test(tc, tray);
	tcase_add_loop_test(tc, requests, 0, 2);
	tcase_add_test(tc, chosen_sizes);
	tcase_add_loop_test(tc, task_management, 0, 2);
	tcase_add_loop_test(tc, reset_with_reads_in_flight, 0, 2);
	tcase_add_loop_test(tc, one_head_many_times, 0, 2);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
