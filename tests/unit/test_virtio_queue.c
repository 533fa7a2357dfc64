/* Hostile virtqueues: each way to lie costs the device a reset and nothing else. Also negotiation and notification. */
#include <errno.h>
#include <unistd.h>

#include "fake_driver.h"
#include "run_suite.h"

/* A device that returns each chain at once and remembers what it saw. */
struct echo {
	struct virtio_device dev;
	struct virtio_chain chain;
	unsigned chains;
};

static void echo_notify(struct virtio_device *dev, unsigned queue)
{
	struct echo *echo = (struct echo *)dev;
	struct virtqueue *vq = &dev->queues[queue];

	virtqueue_set_notify(vq, true);
	while (virtqueue_pop(vq, &echo->chain) > 0) {
		echo->chains++;
		virtqueue_push(vq, echo->chain.head, echo->chain.in_bytes);
	}
	virtqueue_interrupt(vq);
}

static void echo_destroy(struct virtio_device *dev)
{
	free(dev);
}

static const struct virtio_device_ops echo_ops = {.queue_notify = echo_notify, .destroy = echo_destroy};

static struct echo *echo_start(struct machine *m, uint64_t features)
{
	struct echo *echo = calloc(1, sizeof(*echo));

	machine_start(m);
	echo->dev.name = "echo";
	echo->dev.id = VIRTIO_ID_CONSOLE;
	echo->dev.ops = &echo_ops;
	echo->dev.mem = m->mem;
	echo->dev.features = VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX;
	echo->dev.queue_count = 2;
	echo->dev.queue_size = VIRTQUEUE_SIZE_MAX;
	driver_attach(m, &echo->dev, false);
	driver_start(m, features, 2);
	return echo;
}

static void expect_broken(struct machine *m, struct echo *echo)
{
	unsigned before = echo->chains;
	uint16_t used = driver_used(m, 0);

	driver_kick(m, 0);
	ck_assert_uint_eq(driver_status(m), 0x4f);
	ck_assert_uint_eq(echo->chains, before);
	driver_kick(m, 0);
	ck_assert_uint_eq(driver_used(m, 0), used);
	driver_start(m, VIRTIO_F_INDIRECT_DESC, 2); /* a reset mends it */
	driver_desc(m, 0, 0, 0x20000, 16, 0, 0);
	driver_add(m, 0, 0);
	driver_kick(m, 0);
	ck_assert_uint_eq(driver_status(m), 0x0f);
	ck_assert_uint_eq(echo->chains, before + 1);
}

START_TEST(good_chains)
{
	struct machine m;
	struct echo *echo = echo_start(&m, VIRTIO_F_INDIRECT_DESC);

	driver_desc(&m, 0, 0, 0x20000, 100, DESC_F_NEXT, 9);
	driver_desc(&m, 0, 9, 0x20801, 3, DESC_F_NEXT, 5);
	driver_desc(&m, 0, 5, 0x21000, 0, DESC_F_NEXT, 6); /* empty: passed over */
	driver_desc(&m, 0, 6, 0x22000, 50, DESC_F_WRITE, 0);
	driver_add(&m, 0, 0);
	driver_kick(&m, 0);
	ck_assert_uint_eq(echo->chains, 1);
	ck_assert_uint_eq(echo->chain.out_count, 2);
	ck_assert_uint_eq(echo->chain.in_count, 1);
	ck_assert_uint_eq(echo->chain.out_bytes, 103);
	ck_assert_uint_eq(driver_used_length(&m, 0, 0), 50);
	machine_end(&m);
}
END_TEST

START_TEST(lies)
{
	struct machine m;
	struct echo *echo = echo_start(&m, VIRTIO_F_INDIRECT_DESC);

	/* A loop. */
	driver_desc(&m, 0, 0, 0x20000, 16, DESC_F_NEXT, 1);
	driver_desc(&m, 0, 1, 0x20000, 16, DESC_F_NEXT, 0);
	driver_add(&m, 0, 0);
	expect_broken(&m, echo);
	/* Indices out of range. */
	driver_add(&m, 0, RING_SIZE);
	expect_broken(&m, echo);
	driver_desc(&m, 0, 1, 0x20000, 16, DESC_F_NEXT, 0xffff);
	driver_add(&m, 0, 1);
	expect_broken(&m, echo);
	/* Addresses: beyond RAM, across its end, wrapping, the VGA hole, MMIO. */
	driver_desc(&m, 0, 1, 0x1000000, 16, 0, 0);
	driver_add(&m, 0, 1);
	expect_broken(&m, echo);
	driver_desc(&m, 0, 1, 0xfffff8, 16, 0, 0);
	driver_add(&m, 0, 1);
	expect_broken(&m, echo);
	driver_desc(&m, 0, 1, ~0ull - 3, 16, 0, 0);
	driver_add(&m, 0, 1);
	expect_broken(&m, echo);
	driver_desc(&m, 0, 1, 0x1000, 0xffffffff, DESC_F_WRITE, 0);
	driver_add(&m, 0, 1);
	expect_broken(&m, echo);
	driver_desc(&m, 0, 1, 0x9fff8, 16, 0, 0);
	driver_add(&m, 0, 1);
	expect_broken(&m, echo);
	driver_desc(&m, 0, 1, m.registers, 16, DESC_F_WRITE, 0);
	driver_add(&m, 0, 1);
	expect_broken(&m, echo);
	/* Readable after writable. */
	driver_desc(&m, 0, 1, 0x20000, 16, DESC_F_WRITE | DESC_F_NEXT, 2);
	driver_desc(&m, 0, 2, 0x20000, 16, 0, 0);
	driver_add(&m, 0, 1);
	expect_broken(&m, echo);
	/* The available index jumps. */
	driver_avail_index(&m, 0, m.avail[0] + RING_SIZE + 1);
	expect_broken(&m, echo);
	driver_avail_index(&m, 0, m.avail[0] - 1);
	expect_broken(&m, echo);
	machine_end(&m);
}
END_TEST

START_TEST(indirect_lies)
{
	struct machine m;
	struct echo *echo = echo_start(&m, VIRTIO_F_INDIRECT_DESC);
	uint64_t table = 0x30000;

	/* Nested. */
	guest_desc(&m, table, 0, table, 16, DESC_F_INDIRECT, 0);
	driver_desc(&m, 0, 1, table, 16, DESC_F_INDIRECT, 0);
	driver_add(&m, 0, 1);
	expect_broken(&m, echo);
	/* With NEXT, empty, not a multiple of 16, not in RAM. */
	driver_desc(&m, 0, 1, table, 16, DESC_F_INDIRECT | DESC_F_NEXT, 2);
	driver_add(&m, 0, 1);
	expect_broken(&m, echo);
	driver_desc(&m, 0, 1, table, 0, DESC_F_INDIRECT, 0);
	driver_add(&m, 0, 1);
	expect_broken(&m, echo);
	driver_desc(&m, 0, 1, table, 17, DESC_F_INDIRECT, 0);
	driver_add(&m, 0, 1);
	expect_broken(&m, echo);
	driver_desc(&m, 0, 1, 0xfffff0, 32, DESC_F_INDIRECT, 0);
	driver_add(&m, 0, 1);
	expect_broken(&m, echo);
	/* Its chain leaves the table, and loops. */
	guest_desc(&m, table, 0, 0x20000, 16, DESC_F_NEXT, 1);
	driver_desc(&m, 0, 1, table, 16, DESC_F_INDIRECT, 0);
	driver_add(&m, 0, 1);
	expect_broken(&m, echo);
	guest_desc(&m, table, 0, 0x20000, 16, DESC_F_NEXT, 0);
	driver_desc(&m, 0, 1, table, 16, DESC_F_INDIRECT, 0);
	driver_add(&m, 0, 1);
	expect_broken(&m, echo);
	/* Not negotiated. */
	driver_start(&m, 0, 2);
	guest_desc(&m, table, 0, 0x20000, 16, 0, 0);
	driver_desc(&m, 0, 1, table, 16, DESC_F_INDIRECT, 0);
	driver_add(&m, 0, 1);
	expect_broken(&m, echo);
	machine_end(&m);
}
END_TEST

static void try_rings(struct machine *m, uint16_t size, uint64_t desc, uint64_t driver, uint64_t device)
{
	uint64_t r = m->registers;

	mmio_write(m, r + 0x14, 1, 0);
	mmio_write(m, r + 0x14, 1, 3);
	mmio_write(m, r + 0x08, 4, 1);
	mmio_write(m, r + 0x0c, 4, 1);
	mmio_write(m, r + 0x14, 1, 0x0b);
	mmio_write(m, r + 0x16, 2, 0);
	mmio_write(m, r + 0x18, 2, size);
	mmio_write(m, r + 0x20, 8, desc);
	mmio_write(m, r + 0x28, 8, driver);
	mmio_write(m, r + 0x30, 8, device);
	mmio_write(m, r + 0x1c, 2, 1);
	mmio_write(m, r + 0x14, 1, 0x0f);
	driver_kick(m, 0);
}

START_TEST(ring_lies)
{
	struct machine m;

	echo_start(&m, 0);
	try_rings(&m, 48, RING_DESC, RING_AVAIL, RING_USED);
	ck_assert_uint_eq(driver_status(&m), 0x4f);
	try_rings(&m, 0, RING_DESC, RING_AVAIL, RING_USED);
	ck_assert_uint_eq(driver_status(&m), 0x4f);
	try_rings(&m, 512, RING_DESC, RING_AVAIL, RING_USED);
	ck_assert_uint_eq(driver_status(&m), 0x4f);
	try_rings(&m, 64, RING_DESC + 8, RING_AVAIL, RING_USED);
	ck_assert_uint_eq(driver_status(&m), 0x4f);
	try_rings(&m, 64, RING_DESC, RING_AVAIL + 1, RING_USED);
	ck_assert_uint_eq(driver_status(&m), 0x4f);
	try_rings(&m, 64, RING_DESC, RING_AVAIL, RING_USED + 2);
	ck_assert_uint_eq(driver_status(&m), 0x4f);
	try_rings(&m, 64, ~0xfull, RING_AVAIL, RING_USED);
	ck_assert_uint_eq(driver_status(&m), 0x4f);
	try_rings(&m, 64, RING_DESC, 16 << 20, RING_USED);
	ck_assert_uint_eq(driver_status(&m), 0x4f);
	try_rings(&m, 64, RING_DESC, RING_AVAIL, m.registers);
	ck_assert_uint_eq(driver_status(&m), 0x4f);
	try_rings(&m, 64, RING_DESC, RING_AVAIL, RING_USED);
	ck_assert_uint_eq(driver_status(&m), 0x0f);
	/* Addresses and size are fixed once the queue is enabled. */
	mmio_write(&m, m.registers + 0x20, 8, ~0ull);
	mmio_write(&m, m.registers + 0x18, 2, 128);
	ck_assert_uint_eq(mmio_read(&m, m.registers + 0x20, 8), RING_DESC);
	ck_assert_uint_eq(mmio_read(&m, m.registers + 0x18, 2), 64);
	/* A queue that does not exist. */
	mmio_write(&m, m.registers + 0x16, 2, 2);
	ck_assert_uint_eq(mmio_read(&m, m.registers + 0x18, 2), 0);
	mmio_write(&m, m.registers + 0x1c, 2, 1);
	mmio_write(&m, m.registers + 0x3000 + 4 * 900, 2, 900);
	ck_assert_uint_eq(driver_status(&m), 0x0f);
	machine_end(&m);
}
END_TEST

START_TEST(negotiation)
{
	struct machine m;
	uint64_t r;

	echo_start(&m, 0);
	r = m.registers;
	mmio_write(&m, r + 0x14, 1, 0);
	mmio_write(&m, r + 0x14, 1, 0x0b); /* without VERSION_1 */
	ck_assert_uint_eq(driver_status(&m), 0x03);
	mmio_write(&m, r + 0x14, 1, 0x07);
	ck_assert_uint_eq(driver_status(&m), 0x03); /* DRIVER_OK needs FEATURES_OK */
	mmio_write(&m, r + 0x08, 4, 1);
	mmio_write(&m, r + 0x0c, 4, 3); /* more than was offered */
	mmio_write(&m, r + 0x14, 1, 0x0b);
	ck_assert_uint_eq(driver_status(&m), 0x03);
	mmio_write(&m, r + 0x0c, 4, 1);
	mmio_write(&m, r + 0x14, 1, 0x0b);
	ck_assert_uint_eq(driver_status(&m), 0x0b);
	mmio_write(&m, r + 0x0c, 4, 0); /* too late */
	ck_assert_uint_eq(mmio_read(&m, r + 0x0c, 4), 1);
	mmio_write(&m, r, 4, 7);
	ck_assert_uint_eq(mmio_read(&m, r + 4, 4), 0);
	machine_end(&m);
}
END_TEST

START_TEST(event_index)
{
	struct machine m;
	struct echo *echo = echo_start(&m, VIRTIO_F_EVENT_IDX);
	uint16_t event;

	driver_desc(&m, 0, 0, 0x20000, 16, 0, 0);
	driver_add(&m, 0, 0);
	driver_kick(&m, 0);
	ck_assert_int_eq(m.levels[1], 1); /* used_event 0: the first is announced */
	mmio_read(&m, m.registers + 0x1000, 1);
	event = 3;
	mem_write(m.mem, RING_AVAIL + 4 + 2 * RING_SIZE, &event, 2);
	for (unsigned i = 0; i < 2; i++) {
		driver_add(&m, 0, 0);
		driver_kick(&m, 0);
		ck_assert_int_eq(m.levels[1], 0);
	}
	driver_add(&m, 0, 0);
	driver_kick(&m, 0);
	ck_assert_int_eq(m.levels[1], 1);
	ck_assert_uint_eq(echo->chains, 4);
	mem_read(m.mem, RING_USED + 4 + 8 * RING_SIZE, &event, 2);
	ck_assert_uint_eq(event, 4); /* where the device wants to hear again */
	machine_end(&m);
}
END_TEST

START_TEST(config_window_and_msix)
{
	struct machine m;
	unsigned cap, window = 0, msix = 0;
	uint64_t table;

	echo_start(&m, 0);
	for (cap = config_read(&m, 1, PCI_CAPABILITY_LIST, 1); cap; cap = config_read(&m, 1, cap + 1, 1)) {
		if (config_read(&m, 1, cap, 1) == PCI_CAP_VENDOR && config_read(&m, 1, cap + 3, 1) == 5)
			window = cap;
		if (config_read(&m, 1, cap, 1) == PCI_CAP_MSIX)
			msix = cap;
	}
	ck_assert_uint_ne(window, 0);
	ck_assert_uint_ne(msix, 0);
	config_write(&m, 1, window + 4, 1, 4);
	config_write(&m, 1, window + 8, 4, 0x14);
	config_write(&m, 1, window + 12, 4, 1);
	ck_assert_uint_eq(config_read(&m, 1, window + 16, 1), 0x0f);
	config_write(&m, 1, window + 16, 1, 0);
	ck_assert_uint_eq(driver_status(&m), 0);
	config_write(&m, 1, window + 8, 4, 0x4000); /* outside */
	config_write(&m, 1, window + 16, 1, 0xff);
	config_write(&m, 1, window + 8, 4, 0xfffffffc);
	config_write(&m, 1, window + 12, 4, 4);
	config_write(&m, 1, window + 16, 4, 0xff);
	ck_assert_uint_eq(driver_status(&m), 0);

	driver_start(&m, 0, 2);
	table = pci_bar_address(pci_bus_device(m.pci, 1), 1);
	config_write(&m, 1, msix + 2, 2, 0x8000);
	mmio_write(&m, table + 16, 4, 0xfee00000);
	mmio_write(&m, table + 24, 8, 0x55);
	mmio_write(&m, m.registers + 0x16, 2, 0);
	mmio_write(&m, m.registers + 0x1a, 2, 1);
	ck_assert_uint_eq(mmio_read(&m, m.registers + 0x1a, 2), 1);
	mmio_write(&m, m.registers + 0x10, 2, 100); /* no such vector */
	ck_assert_uint_eq(mmio_read(&m, m.registers + 0x10, 2), 0xffff);
	driver_desc(&m, 0, 0, 0x20000, 16, 0, 0);
	driver_add(&m, 0, 0);
	driver_kick(&m, 0);
	ck_assert_uint_eq(m.msi_count, 1);
	ck_assert_uint_eq(m.msi_data, 0x55);
	ck_assert_int_eq(m.levels[1], 0);
	machine_end(&m);
}
END_TEST

static void count_up(void *ctx)
{
	++*(unsigned *)ctx;
}

START_TEST(notification_by_eventfd)
{
	struct machine m;
	struct virtio_device *dev;
	struct virtio_pci *vpci;
	struct virtio_notify list[4];
	struct error err = {0};
	unsigned changes = 0;
	uint64_t one = 1;

	machine_start(&m);
	ck_assert_int_eq(virtio_rng_create(m.mem, &dev, &err), 0);
	vpci = driver_attach(&m, dev, true);
	virtio_pci_set_notify_changed(vpci, count_up, &changes);
	mmio_write(&m, m.registers + 0x18, 2, 8);
	driver_start(&m, 0, 0);
	mmio_write(&m, m.registers + 0x18, 2, 8);
	mmio_write(&m, m.registers + 0x20, 8, RING_DESC);
	mmio_write(&m, m.registers + 0x28, 8, RING_AVAIL);
	mmio_write(&m, m.registers + 0x30, 8, RING_USED);
	mmio_write(&m, m.registers + 0x1c, 2, 1);
	ck_assert_int_eq(virtio_pci_notify_list(vpci, list, 4), 1);
	ck_assert_uint_eq(list[0].gpa, m.registers + 0x3000);
	driver_desc(&m, 0, 0, 0x20000, 64, DESC_F_WRITE, 0);
	driver_add(&m, 0, 0);
	ck_assert_int_eq(write(list[0].eventfd, &one, 8), 8);
	driver_wait(&m, 0, 1);
	ck_assert_uint_eq(driver_used_length(&m, 0, 0), 64);
	/* A device that may not master the bus leaves its queue alone, and finds what was added when it may. */
	config_write(&m, 1, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
	driver_add(&m, 0, 0);
	driver_kick(&m, 0);
	for (unsigned i = 0; i < 5; i++)
		event_loop_poll(m.loop, 10);
	ck_assert_uint_eq(driver_used(&m, 0), 1);
	config_write(&m, 1, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
	driver_wait(&m, 0, 2);
	config_write(&m, 1, PCI_COMMAND, 2, 0);
	ck_assert_uint_eq(changes, 1);
	ck_assert_int_eq(virtio_pci_notify_list(vpci, list, 4), 1);
	ck_assert_uint_eq(list[0].gpa, 0);
	machine_end(&m);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("virtio_queue");
	TCase *tc = tcase_create("virtio_queue");

	log_set_level(LOG_ERROR);
	tcase_add_test(tc, good_chains);
	tcase_add_test(tc, lies);
	tcase_add_test(tc, indirect_lies);
	tcase_add_test(tc, ring_lies);
	tcase_add_test(tc, negotiation);
	tcase_add_test(tc, event_index);
	tcase_add_test(tc, config_window_and_msix);
	tcase_add_test(tc, notification_by_eventfd);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
