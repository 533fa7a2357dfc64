/* virtio-net with an endpoint of our own (both directions, backpressure, checksums), and libslirp: DHCP, forwarding. */
#include <arpa/inet.h>
#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fake_driver.h"
#include "run_suite.h"
#include "vmm/host_net.h"

#define F_CSUM 1
#define F_MRG (1ull << 15)
#define RX 0
#define TX 1
#define TX_HEADER 0x60000
#define TX_DATA 0x61000
#define RX_DATA 0x80000
#define RX_ROOM 0x800

struct fake_endpoint {
	struct net_endpoint endpoint;
	uint8_t last[2048];
	size_t last_length;
	unsigned sent, ready;
};

static void fake_send(struct net_endpoint *endpoint, const struct iovec *iov, unsigned count)
{
	struct fake_endpoint *fake = (struct fake_endpoint *)endpoint;

	fake->last_length = 0;
	for (unsigned i = 0; i < count && fake->last_length + iov[i].iov_len <= sizeof(fake->last); i++) {
		memcpy(fake->last + fake->last_length, iov[i].iov_base, iov[i].iov_len);
		fake->last_length += iov[i].iov_len;
	}
	fake->sent++;
}

static void fake_ready(struct net_endpoint *endpoint)
{
	((struct fake_endpoint *)endpoint)->ready++;
}

static void fake_destroy(struct net_endpoint *endpoint)
{
	free(endpoint);
}

static const struct net_endpoint_ops fake_ops = {fake_send, fake_ready, fake_destroy};

static void net_start(struct machine *m, struct net_endpoint *endpoint, uint64_t features)
{
	static const uint8_t mac[6] = {0x52, 0x54, 0, 1, 2, 3};
	struct virtio_device *dev;
	struct error err = {0};

	ck_assert_int_eq(virtio_net_create(m->mem, endpoint, mac, &dev, &err), 0);
	driver_attach(m, dev, true);
	driver_start(m, features, 2);
}

static struct fake_endpoint *fake_start(struct machine *m, uint64_t features)
{
	struct fake_endpoint *fake = calloc(1, sizeof(*fake));

	fake->endpoint.ops = &fake_ops;
	machine_start(m);
	net_start(m, &fake->endpoint, features);
	return fake;
}

static void rx_buffers(struct machine *m, unsigned first, unsigned count, uint32_t room)
{
	for (unsigned i = first; i < first + count; i++) {
		driver_desc(m, RX, i, RX_DATA + i * RX_ROOM, room, DESC_F_WRITE, 0);
		driver_add(m, RX, i);
	}
}

static void tx_frame(struct machine *m, const uint8_t *header, const void *frame, uint32_t length)
{
	static const uint8_t none[12];

	mem_write(m->mem, TX_HEADER, header ? header : none, 12);
	mem_write(m->mem, TX_DATA, frame, length);
	driver_desc(m, TX, 0, TX_HEADER, 12, DESC_F_NEXT, 1);
	driver_desc(m, TX, 1, TX_DATA, length, 0, 0);
	driver_add(m, TX, 0);
	driver_kick(m, TX);
	driver_wait(m, TX, m->avail[TX]);
}

static bool host_frame(struct machine *m, struct fake_endpoint *fake, const void *frame, size_t length)
{
	bool taken;

	pthread_mutex_lock(&m->lock);
	taken = fake->endpoint.receive(fake->endpoint.receive_ctx, frame, length);
	pthread_mutex_unlock(&m->lock);
	return taken;
}

START_TEST(transmit)
{
	struct machine m;
	struct fake_endpoint *fake = fake_start(&m, F_CSUM);
	uint8_t frame[64], header[12] = {1};

	for (unsigned i = 0; i < sizeof(frame); i++)
		frame[i] = i;
	ck_assert_uint_eq(mmio_read(&m, m.registers + 0x2000, 4), 0x01005452);
	ck_assert_uint_eq(mmio_read(&m, m.registers + 0x2006, 2), 1);
	tx_frame(&m, NULL, frame, sizeof(frame));
	ck_assert_uint_eq(fake->last_length, sizeof(frame));
	ck_assert_mem_eq(fake->last, frame, sizeof(frame));
	/* Checksum from 34 on, stored at 34 + 16: 0x2223 + 0x2425 + … without the zeroed field. */
	frame[50] = frame[51] = 0;
	header[6] = 34;
	header[8] = 16;
	tx_frame(&m, header, frame, sizeof(frame));
	{
		uint32_t sum = 0;

		for (unsigned i = 34; i < 64; i += 2)
			sum += fake->last[i] << 8 | fake->last[i + 1];
		sum = (sum & 0xffff) + (sum >> 16);
		ck_assert_uint_eq(sum, 0xffff);
	}
	/* Checksum fields outside the frame are ignored. */
	header[6] = 63;
	header[8] = 0xff;
	tx_frame(&m, header, frame, sizeof(frame));
	ck_assert_mem_eq(fake->last, frame, sizeof(frame));
	/* Only a header, or less: dropped, not fatal. */
	driver_desc(&m, TX, 5, TX_HEADER, 7, 0, 0);
	driver_add(&m, TX, 5);
	driver_kick(&m, TX);
	driver_wait(&m, TX, m.avail[TX]);
	ck_assert_uint_eq(fake->sent, 3);
	ck_assert_uint_eq(driver_status(&m), 0x0f);
	machine_end(&m);
}
END_TEST

START_TEST(receive_and_backpressure)
{
	struct machine m;
	struct fake_endpoint *fake = fake_start(&m, 0);
	uint8_t frame[1514], back[12 + 1514];

	memset(frame, 0x77, sizeof(frame));
	ck_assert(!host_frame(&m, fake, frame, sizeof(frame)));
	rx_buffers(&m, 0, 2, RX_ROOM);
	driver_kick(&m, RX);
	for (unsigned i = 0; i < 100 && !fake->ready; i++)
		event_loop_poll(m.loop, 10);
	ck_assert_uint_eq(fake->ready, 1);
	ck_assert(host_frame(&m, fake, frame, sizeof(frame)));
	ck_assert(host_frame(&m, fake, frame, 60));
	ck_assert(!host_frame(&m, fake, frame, 60));
	ck_assert_uint_eq(driver_used(&m, RX), 2);
	ck_assert_uint_eq(driver_used_length(&m, RX, 0), sizeof(back));
	mem_read(m.mem, RX_DATA, back, sizeof(back));
	ck_assert_uint_eq(back[10], 1);
	ck_assert_mem_eq(back + 12, frame, sizeof(frame));
	/* A buffer too small for the frame: the frame is lost, the buffer stays. */
	rx_buffers(&m, 2, 1, 100);
	ck_assert(host_frame(&m, fake, frame, sizeof(frame)));
	ck_assert(host_frame(&m, fake, frame, 60));
	ck_assert_uint_eq(driver_used(&m, RX), 3);
	/* After a reset nobody listens. */
	mmio_write(&m, m.registers + 0x14, 1, 0);
	ck_assert(host_frame(&m, fake, frame, 60));
	machine_end(&m);
}
END_TEST

START_TEST(mergeable)
{
	struct machine m;
	struct fake_endpoint *fake = fake_start(&m, F_MRG);
	uint8_t frame[1000], header[12];

	for (unsigned i = 0; i < sizeof(frame); i++)
		frame[i] = i / 4;
	rx_buffers(&m, 0, 3, 256);
	ck_assert(!host_frame(&m, fake, frame, sizeof(frame))); /* three buffers are not enough, and stay */
	ck_assert_uint_eq(driver_used(&m, RX), 0);
	rx_buffers(&m, 3, 1, 256);
	ck_assert(host_frame(&m, fake, frame, sizeof(frame)));
	ck_assert_uint_eq(driver_used(&m, RX), 4);
	ck_assert_uint_eq(driver_used_length(&m, RX, 3), 1012 - 3 * 256);
	mem_read(m.mem, RX_DATA, header, 12);
	ck_assert_uint_eq(header[10], 4);
	ck_assert_int_eq(memcmp(mem_ptr(m.mem, RX_DATA + RX_ROOM, 256, false), frame + 244, 256), 0);
	machine_end(&m);
}
END_TEST

static void dhcp_discover(uint8_t *frame, size_t length)
{
	static const uint8_t ends[] = {0x44, 0, 0x43}; /* ports 68, 67 */

	memset(frame, 0, length);
	memset(frame, 0xff, 6);
	memcpy(frame + 6, (uint8_t[]){0x52, 0x54, 0, 1, 2, 3, 8, 0}, 8);
	memcpy(frame + 14, (uint8_t[]){0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255}, 20);
	frame[16] = (length - 14) >> 8;
	frame[17] = length - 14;
	{
		uint32_t sum = 0;

		for (unsigned i = 14; i < 34; i += 2)
			sum += frame[i] << 8 | frame[i + 1];
		sum = ~((sum & 0xffff) + (sum >> 16));
		frame[24] = sum >> 8;
		frame[25] = sum;
	}
	memcpy(frame + 35, ends, sizeof(ends));
	frame[38] = (length - 34) >> 8;
	frame[39] = length - 34;
	memcpy(frame + 42, (uint8_t[]){1, 1, 6, 0, 1, 2, 3, 4}, 8);
	memcpy(frame + 42 + 28, frame + 6, 6);
	memcpy(frame + 42 + 236, (uint8_t[]){0x63, 0x82, 0x53, 0x63, 53, 1, 1, 255}, 8);
}

START_TEST(slirp_answers_dhcp)
{
	struct machine m;
	struct net_endpoint *endpoint;
	struct error err = {0};
	uint8_t frame[342], offer[12 + 342];

	machine_start(&m);
	ck_assert_int_eq(host_slirp_create(m.loop, NULL, 0, &endpoint, &err), 0);
	net_start(&m, endpoint, 0);
	dhcp_discover(frame, sizeof(frame));
	tx_frame(&m, NULL, frame, sizeof(frame)); /* no receive buffer yet: the offer has to wait */
	for (unsigned i = 0; i < 5; i++)
		event_loop_poll(m.loop, 10);
	rx_buffers(&m, 0, 8, RX_ROOM);
	driver_kick(&m, RX);
	for (unsigned i = 0; i < 100 && !driver_used(&m, RX); i++)
		event_loop_poll(m.loop, 10);
	ck_assert_uint_ge(driver_used(&m, RX), 1);
	mem_read(m.mem, RX_DATA, offer, sizeof(offer));
	ck_assert_uint_eq(offer[12 + 42], 2); /* BOOTREPLY */
	ck_assert_mem_eq(offer + 12 + 42 + 16, ((uint8_t[]){10, 0, 2, 15}), 4);
	machine_end(&m);
}
END_TEST

START_TEST(slirp_port_in_use)
{
	struct machine m;
	struct net_endpoint *endpoint;
	struct error err = {0};
	struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t length = sizeof(addr);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct host_hostfwd fwd = {.host_addr = {127, 0, 0, 1}, .guest_port = 80};

	ck_assert_int_eq(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	ck_assert_int_eq(listen(fd, 1), 0);
	ck_assert_int_eq(getsockname(fd, (struct sockaddr *)&addr, &length), 0);
	fwd.host_port = ntohs(addr.sin_port);
	machine_start(&m);
	ck_assert_int_eq(host_slirp_create(m.loop, &fwd, 1, &endpoint, &err), -EADDRINUSE);
	ck_assert_ptr_nonnull(strstr(err.message, "in use"));
	close(fd);
	ck_assert_int_eq(host_slirp_create(m.loop, &fwd, 1, &endpoint, &err), 0);
	/* Someone connects: the guest is asked for its address. */
	net_start(&m, endpoint, 0);
	rx_buffers(&m, 0, 8, RX_ROOM);
	driver_kick(&m, RX);
	fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	ck_assert(connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0 || errno == EINPROGRESS);
	for (unsigned i = 0; i < 100 && !driver_used(&m, RX); i++)
		event_loop_poll(m.loop, 10);
	ck_assert_uint_ge(driver_used(&m, RX), 1);
	ck_assert_uint_eq(*(uint8_t *)mem_ptr(m.mem, RX_DATA + 12 + 13, 1, false), 6); /* ARP */
	close(fd);
	machine_end(&m);
}
END_TEST

START_TEST(hostfwd_syntax)
{
	static const char *const bad[] = {"", "tcp", "tcp:", "tcp::80", "tcp::80-", "tcp::80-:", "tcp::0-:1", "tcp::65536-:1",
		"tcp::80-:80x", "tcp::80x-:80", "icmp::80-:80", "tcp:1.2.3:80-:80", "tcp:1.2.3.4:80-host:80",
		"tcp::99999999999999-:80", "tcp:111.111.111.1111111:80-:80", "tcp::-1-:80", "tcp:: 80-:80"};
	struct host_hostfwd fwd;
	struct error err = {0};

	ck_assert_int_eq(host_slirp_parse_hostfwd("tcp:127.0.0.1:8080-:80", &fwd, &err), 0);
	ck_assert_uint_eq(fwd.is_udp, 0);
	ck_assert_mem_eq(fwd.host_addr, ((uint8_t[]){127, 0, 0, 1}), 4);
	ck_assert_uint_eq(fwd.host_port, 8080);
	ck_assert_uint_eq(fwd.guest_port, 80);
	ck_assert_mem_eq(fwd.guest_addr, ((uint8_t[]){0, 0, 0, 0}), 4);
	ck_assert_int_eq(host_slirp_parse_hostfwd("udp::65535-10.0.2.15:53", &fwd, &err), 0);
	ck_assert_uint_eq(fwd.is_udp, 1);
	ck_assert_mem_eq(fwd.guest_addr, ((uint8_t[]){10, 0, 2, 15}), 4);
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		err.message[0] = 0;
		ck_assert_int_eq(host_slirp_parse_hostfwd(bad[i], &fwd, &err), -EINVAL);
		ck_assert_uint_ne(strlen(err.message), 0);
	}
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("virtio_net");
	TCase *tc = tcase_create("virtio_net");

	log_set_level(LOG_ERROR);
	tcase_set_timeout(tc, 30);
	tcase_add_test(tc, transmit);
	tcase_add_test(tc, receive_and_backpressure);
	tcase_add_test(tc, mergeable);
	tcase_add_test(tc, slirp_answers_dhcp);
	tcase_add_test(tc, slirp_port_in_use);
	tcase_add_test(tc, hostfwd_syntax);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
