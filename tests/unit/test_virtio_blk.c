/* Each test runs with threads and with io_uring (where the host has it). virtio-blk through the PCI transport with a fake driver in guest memory; reset with I/O in flight; host_disk's errors. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fake_driver.h"
#include "run_suite.h"
#include "vmm/host_disk.h"
#include "host/host_disk_internal.h"

#define HEADER 0x30000
#define STATUS 0x30100
#define DATA 0x40000
#define SECTORS 256
#define F_FLUSH (1ull << 9)

struct disk_machine {
	struct machine m;
	struct worker_pool *pool;
	char path[64];
};

static void image_make(char *path, size_t room, off_t size)
{
	uint8_t sector[512];
	int fd;

	snprintf(path, room, "/tmp/vmm-disk-XXXXXX");
	fd = mkstemp(path);
	ck_assert_int_ge(fd, 0);
	for (off_t at = 0; at + 512 <= size && at < SECTORS * 512; at += 512) {
		memset(sector, at / 512, sizeof(sector));
		ck_assert_int_eq(pwrite(fd, sector, 512, at), 512);
	}
	ck_assert_int_eq(ftruncate(fd, size), 0);
	close(fd);
}

static void disk_start(struct disk_machine *d, bool readonly, bool may_uring)
{
	struct host_disk *disk;
	struct virtio_device *dev;
	struct error err = {0};

	machine_start(&d->m);
	ck_assert_int_eq(worker_pool_create(d->m.loop, 2, &d->pool, &err), 0);
	image_make(d->path, sizeof(d->path), SECTORS * 512);
	ck_assert_int_eq(host_disk_open_engine(d->m.loop, d->pool, d->path, readonly, may_uring, &disk, &err), 0);
	ck_assert_int_eq(virtio_blk_create(d->m.mem, disk, "serial-42", &dev, &err), 0);
	driver_attach(&d->m, dev, true);
	driver_start(&d->m, F_FLUSH | VIRTIO_F_INDIRECT_DESC, 1);
}

static void disk_end(struct disk_machine *d)
{
	pci_bus_destroy(d->m.pci);
	worker_pool_destroy(d->pool);
	bus_destroy(d->m.bus);
	event_loop_destroy(d->m.loop);
	mem_destroy(d->m.mem);
	unlink(d->path);
}

static void header_write(struct machine *m, unsigned n, uint32_t type, uint64_t sector)
{
	uint8_t header[16];

	bytes_store(header, 8, type);
	bytes_store(header + 8, 8, sector);
	mem_write(m->mem, HEADER + 16 * n, header, 16);
	mem_write(m->mem, STATUS + n, "\xaa", 1);
}

/* Request n uses descriptors 3n.. and adds itself; data flags say who writes the data. */
static void request_add(struct machine *m, unsigned n, uint32_t type, uint64_t sector, uint64_t data, uint32_t length,
	uint16_t data_flags)
{
	header_write(m, n, type, sector);
	driver_desc(m, 0, 3 * n, HEADER + 16 * n, 16, DESC_F_NEXT, length ? 3 * n + 1 : 3 * n + 2);
	driver_desc(m, 0, 3 * n + 1, data, length, DESC_F_NEXT | data_flags, 3 * n + 2);
	driver_desc(m, 0, 3 * n + 2, STATUS + n, 1, DESC_F_WRITE, 0);
	driver_add(m, 0, 3 * n);
}

static uint8_t request_status(struct machine *m, unsigned n)
{
	uint8_t status;

	mem_read(m->mem, STATUS + n, &status, 1);
	return status;
}

static uint8_t guest_byte(struct machine *m, uint64_t gpa)
{
	return *(uint8_t *)mem_ptr(m->mem, gpa, 1, false);
}

START_TEST(read_write_flush_id)
{
	struct disk_machine d;
	struct machine *m = &d.m;
	uint8_t sector[1024], check[1024];
	int fd;

	disk_start(&d, false, _i);
	ck_assert_uint_eq(mmio_read(m, m->registers + 0x2000, 8), SECTORS);
	request_add(m, 0, 0, 7, DATA, 1024, DESC_F_WRITE);
	driver_kick(m, 0);
	driver_wait(m, 0, 1);
	ck_assert_uint_eq(request_status(m, 0), 0);
	ck_assert_uint_eq(driver_used_length(m, 0, 0), 1025);
	ck_assert_uint_eq(guest_byte(m, DATA), 7);
	ck_assert_uint_eq(guest_byte(m, DATA + 1023), 8);
	ck_assert_int_eq(m->levels[1], 1); /* INTx, since MSI-X is off */
	ck_assert_uint_eq(mmio_read(m, m->registers + 0x1000, 1), 1);
	ck_assert_int_eq(m->levels[1], 0);

	memset(sector, 0x5a, sizeof(sector));
	mem_write(m->mem, DATA, sector, sizeof(sector));
	request_add(m, 1, 1, 100, DATA, 1024, 0);
	request_add(m, 2, 4, 0, 0, 0, 0);
	request_add(m, 3, 8, 0, DATA + 0x1000, 20, DESC_F_WRITE);
	request_add(m, 4, 77, 0, 0, 0, 0);
	driver_kick(m, 0);
	driver_wait(m, 0, 5);
	ck_assert_uint_eq(request_status(m, 1), 0);
	ck_assert_uint_eq(request_status(m, 2), 0);
	ck_assert_uint_eq(request_status(m, 3), 0);
	ck_assert_uint_eq(request_status(m, 4), 2);
	mem_read(m->mem, DATA + 0x1000, check, 20);
	ck_assert_str_eq((char *)check, "serial-42");
	fd = open(d.path, O_RDONLY);
	ck_assert_int_eq(pread(fd, check, 1024, 100 * 512), 1024);
	ck_assert_mem_eq(check, sector, 1024);
	close(fd);
	disk_end(&d);
}
END_TEST

START_TEST(bad_requests_fail_alone)
{
	struct disk_machine d;
	struct machine *m = &d.m;

	disk_start(&d, false, _i);
	request_add(m, 0, 0, SECTORS, DATA, 512, DESC_F_WRITE);
	request_add(m, 1, 0, SECTORS - 1, DATA, 1024, DESC_F_WRITE);
	request_add(m, 2, 0, ~0ull, DATA, 512, DESC_F_WRITE);
	request_add(m, 3, 0, ~0ull / 512, DATA, 512, DESC_F_WRITE);
	request_add(m, 4, 0, 0, DATA, 100, DESC_F_WRITE);
	request_add(m, 5, 0, 0, DATA, 512, DESC_F_WRITE);
	driver_kick(m, 0);
	driver_wait(m, 0, 6);
	for (unsigned i = 0; i < 5; i++)
		ck_assert_uint_eq(request_status(m, i), 1);
	ck_assert_uint_eq(request_status(m, 5), 0);
	ck_assert_uint_eq(driver_status(m), 0x0f);
	/* The file shrinks: an I/O error, no crash. */
	ck_assert_int_eq(truncate(d.path, 512), 0);
	request_add(m, 6, 0, 0, DATA, 1024, DESC_F_WRITE);
	driver_kick(m, 0);
	driver_wait(m, 0, 7);
	ck_assert_uint_eq(request_status(m, 6), 1);
	/* No room for the status: the device breaks. */
	driver_desc(m, 0, 40, HEADER, 16, 0, 0);
	driver_add(m, 0, 40);
	driver_kick(m, 0);
	event_loop_poll(m->loop, 50);
	ck_assert_uint_eq(driver_status(m), 0x4f);
	/* And a reset mends it. */
	driver_start(m, 0, 1);
	request_add(m, 0, 0, 0, DATA, 512, DESC_F_WRITE);
	driver_kick(m, 0);
	driver_wait(m, 0, 1);
	ck_assert_uint_eq(request_status(m, 0), 0);
	disk_end(&d);
}
END_TEST

START_TEST(readonly_disk)
{
	struct disk_machine d;
	struct machine *m = &d.m;

	disk_start(&d, true, _i);
	mmio_write(m, m->registers, 4, 0);
	ck_assert_uint_eq(mmio_read(m, m->registers + 4, 4) & 1 << 5, 1 << 5);
	request_add(m, 0, 1, 0, DATA, 512, 0);
	request_add(m, 1, 0, 9, DATA, 512, DESC_F_WRITE);
	driver_kick(m, 0);
	driver_wait(m, 0, 2);
	ck_assert_uint_eq(request_status(m, 0), 1);
	ck_assert_uint_eq(request_status(m, 1), 0);
	ck_assert_uint_eq(guest_byte(m, DATA), 9);
	disk_end(&d);
}
END_TEST

START_TEST(indirect_request)
{
	struct disk_machine d;
	struct machine *m = &d.m;
	uint64_t table = 0x50008; /* need not be aligned to 16 */

	disk_start(&d, false, _i);
	header_write(m, 0, 0, 20);
	guest_desc(m, table, 0, HEADER, 16, DESC_F_NEXT, 1);
	for (unsigned i = 0; i < 100; i++)
		guest_desc(m, table, 1 + i, DATA + 512 * (99 - i), 512, DESC_F_NEXT | DESC_F_WRITE, 2 + i);
	guest_desc(m, table, 101, STATUS, 1, DESC_F_WRITE, 0);
	driver_desc(m, 0, 5, table, 16 * 102, DESC_F_INDIRECT, 0);
	driver_add(m, 0, 5);
	driver_kick(m, 0);
	driver_wait(m, 0, 1);
	ck_assert_uint_eq(request_status(m, 0), 0);
	ck_assert_uint_eq(guest_byte(m, DATA + 512 * 99), 20);
	ck_assert_uint_eq(guest_byte(m, DATA), 119);
	disk_end(&d);
}
END_TEST

START_TEST(reset_with_requests_in_flight)
{
	struct disk_machine d;
	struct machine *m = &d.m;

	disk_start(&d, false, _i);
	for (unsigned round = 0; round < 20; round++) {
		for (unsigned n = 0; n < 16; n++)
			request_add(m, n, 0, n, DATA + 0x1000 * n, 4096, DESC_F_WRITE);
		/* Take them without letting the loop see a completion, then reset. */
		pthread_mutex_lock(&m->lock);
		virtio_notify(virtio_pci_device((struct virtio_pci *)pci_bus_device(m->pci, 1)), 0);
		pthread_mutex_unlock(&m->lock);
		mmio_write(m, m->registers + 0x14, 1, 0);
		ck_assert_uint_ne(driver_status(m), 0); /* not over yet */
		mem_zero(m->mem, RING_USED, 0x1000);
		for (unsigned i = 0; i < 200 && driver_status(m); i++)
			event_loop_poll(m->loop, 10);
		ck_assert_uint_eq(driver_status(m), 0);
		ck_assert_uint_eq(driver_used(m, 0), 0);
		for (unsigned n = 0; n < 16; n++)
			ck_assert_uint_eq(request_status(m, n), 0xaa);
		driver_start(m, F_FLUSH, 1);
	}
	/* Taking bus mastering away waits for them: no memory is written later. */
	for (unsigned n = 0; n < 16; n++)
		request_add(m, n, 0, n, DATA + 0x1000 * n, 4096, DESC_F_WRITE);
	pthread_mutex_lock(&m->lock);
	virtio_notify(virtio_pci_device((struct virtio_pci *)pci_bus_device(m->pci, 1)), 0);
	pthread_mutex_unlock(&m->lock);
	config_write(m, 1, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
	ck_assert_uint_eq(driver_used(m, 0), 16);
	for (unsigned n = 0; n < 16; n++)
		ck_assert_uint_eq(request_status(m, n), 0);
	request_add(m, 0, 0, 0, DATA, 4096, DESC_F_WRITE);
	driver_kick(m, 0);
	event_loop_poll(m->loop, 10);
	ck_assert_uint_eq(driver_used(m, 0), 16);
	config_write(m, 1, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
	driver_wait(m, 0, 17);
	driver_start(m, F_FLUSH, 1);
	/* A machine reset waits for them. */
	for (unsigned n = 0; n < 16; n++)
		request_add(m, n, 0, n, DATA + 0x1000 * n, 4096, DESC_F_WRITE);
	pthread_mutex_lock(&m->lock);
	virtio_notify(virtio_pci_device((struct virtio_pci *)pci_bus_device(m->pci, 1)), 0);
	pci_bus_reset(m->pci);
	ck_assert_uint_eq(virtio_get_status(virtio_pci_device((struct virtio_pci *)pci_bus_device(m->pci, 1))), 0);
	ck_assert_int_eq(pci_bus_assign(m->pci, (const uint8_t[4]){16, 17, 18, 19}, NULL), 0);
	pthread_mutex_unlock(&m->lock);
	config_write(m, 1, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
	driver_start(m, F_FLUSH, 1);
	/* And destruction with requests in flight. */
	for (unsigned n = 0; n < 16; n++)
		request_add(m, n, 0, n, DATA + 0x1000 * n, 4096, DESC_F_WRITE);
	driver_kick(m, 0);
	disk_end(&d);
}
END_TEST

START_TEST(one_head_many_times)
{
	struct disk_machine d;
	struct machine *m = &d.m;

	disk_start(&d, false, _i);
	request_add(m, 0, 0, 3, DATA, 512, DESC_F_WRITE);
	for (unsigned i = 1; i < RING_SIZE; i++)
		driver_add(m, 0, 0);
	driver_kick(m, 0);
	driver_wait(m, 0, RING_SIZE);
	ck_assert_uint_eq(driver_status(m), 0x0f);
	disk_end(&d);
}
END_TEST

static int try_open(const char *path, bool readonly, struct error *err)
{
	pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	struct event_loop *loop;
	struct worker_pool *pool;
	struct host_disk *disk;
	int ret;

	memset(err, 0, sizeof(*err));
	ck_assert_int_eq(event_loop_create(&lock, &loop, err), 0);
	ck_assert_int_eq(worker_pool_create(loop, 1, &pool, err), 0);
	ret = host_disk_open(loop, pool, path, readonly, &disk, err);
	if (!ret)
		host_disk_close(disk);
	worker_pool_destroy(pool);
	event_loop_destroy(loop);
	return ret;
}

START_TEST(open_errors)
{
	struct error err;
	char path[64];
	struct disk_machine d;

	ck_assert_int_eq(try_open("/nonexistent/disk", false, &err), -ENOENT);
	ck_assert_ptr_nonnull(strstr(err.message, "/nonexistent/disk"));
	ck_assert_int_eq(try_open("/tmp", true, &err), -EINVAL);
	ck_assert_int_eq(try_open("/dev/null", false, &err), -EINVAL);
	image_make(path, sizeof(path), 0);
	ck_assert_int_eq(try_open(path, false, &err), -EINVAL);
	ck_assert_ptr_nonnull(strstr(err.message, "empty"));
	ck_assert_int_eq(truncate(path, 1000), 0);
	ck_assert_int_eq(try_open(path, false, &err), -EINVAL);
	ck_assert_ptr_nonnull(strstr(err.message, "512"));
	ck_assert_int_eq(truncate(path, 1024), 0);
	ck_assert_int_eq(try_open(path, false, &err), 0);
	if (geteuid()) {
		chmod(path, 0444);
		ck_assert_int_eq(try_open(path, false, &err), -EACCES);
		ck_assert_ptr_nonnull(strstr(err.message, ",ro"));
		ck_assert_int_eq(try_open(path, true, &err), 0);
	}
	unlink(path);
	/* Locked against a second writer, and against a reader while it is written. */
	disk_start(&d, false, _i);
	ck_assert_int_eq(try_open(d.path, false, &err), -EBUSY);
	ck_assert_int_eq(try_open(d.path, true, &err), -EBUSY);
	disk_end(&d);
	disk_start(&d, true, _i);
	ck_assert_int_eq(try_open(d.path, true, &err), 0);
	ck_assert_int_eq(try_open(d.path, false, &err), -EBUSY);
	disk_end(&d);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("virtio_blk");
	TCase *tc = tcase_create("virtio_blk");

	log_set_level(LOG_ERROR);
	tcase_set_timeout(tc, 30);
	tcase_add_loop_test(tc, read_write_flush_id, 0, 2);
	tcase_add_loop_test(tc, bad_requests_fail_alone, 0, 2);
	tcase_add_loop_test(tc, readonly_disk, 0, 2);
	tcase_add_loop_test(tc, indirect_request, 0, 2);
	tcase_add_loop_test(tc, reset_with_requests_in_flight, 0, 2);
	tcase_add_loop_test(tc, one_head_many_times, 0, 2);
	tcase_add_loop_test(tc, open_errors, 0, 2);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
