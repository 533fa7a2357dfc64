/* The bus: who answers, what happens at a region's edges, and regions that move while they are accessed. */
#include <check.h>
#include <errno.h>

#include "run_suite.h"
#include "vmm/bus.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct bus *bus;

/* Remembers its last access; reads give the offset in each byte. */
struct probe {
	uint64_t offset, value;
	unsigned size;
	int reads, writes;
	bool moves; /* a write moves the region from 0x1000 to 0x2000 */
};

static const struct bus_ops probe_ops;

static uint64_t probe_read(void *dev, uint64_t offset, unsigned size)
{
	struct probe *p = dev;

	p->offset = offset;
	p->size = size;
	p->reads++;
	return 0x0101010101010101 * (offset & 0xff);
}

static void probe_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct probe *p = dev;

	ck_assert_int_ne(pthread_mutex_trylock(&lock), 0);
	p->offset = offset;
	p->size = size;
	p->value = value;
	p->writes++;
	if (p->moves) {
		bus_remove(bus, BUS_MMIO, 0x1000);
		ck_assert_int_eq(bus_add(bus, BUS_MMIO, 0x2000, 0x100, &probe_ops, p, "moved"), 0);
	}
}

static const struct bus_ops probe_ops = {probe_read, probe_write};

static uint64_t get(enum bus_space space, uint64_t addr, unsigned size)
{
	uint64_t v = 0xdeadbeefdeadbeef;

	bus_access(bus, space, addr, size, false, &v);
	return v;
}

static void put(enum bus_space space, uint64_t addr, unsigned size, uint64_t v)
{
	bus_access(bus, space, addr, size, true, &v);
}

static void setup(void)
{
	ck_assert_int_eq(bus_create(&lock, &bus, NULL), 0);
}

static void teardown(void)
{
	bus_destroy(bus);
}

START_TEST(overlap_is_refused)
{
	struct probe p = {0};

	ck_assert_int_eq(bus_add(bus, BUS_PIO, 0x60, 1, &probe_ops, &p, "a"), 0);
	ck_assert_int_eq(bus_add(bus, BUS_PIO, 0x64, 1, &probe_ops, &p, "b"), 0);
	ck_assert_int_eq(bus_add(bus, BUS_PIO, 0x61, 3, &probe_ops, &p, "c"), 0);
	ck_assert_int_eq(bus_add(bus, BUS_PIO, 0x40, 0x100, &probe_ops, &p, "d"), -EEXIST);
	ck_assert_int_eq(bus_add(bus, BUS_PIO, 0x5f, 2, &probe_ops, &p, "e"), -EEXIST);
	ck_assert_int_eq(bus_add(bus, BUS_PIO, 0x64, 9, &probe_ops, &p, "f"), -EEXIST);
	ck_assert_int_eq(bus_add(bus, BUS_PIO, 0xffff, 2, &probe_ops, &p, "g"), -EINVAL);
	ck_assert_int_eq(bus_add(bus, BUS_MMIO, UINT64_MAX, 2, &probe_ops, &p, "g"), -EINVAL);
	ck_assert_int_eq(bus_add(bus, BUS_MMIO, UINT64_MAX - 7, 8, &probe_ops, &p, "h"), 0);
	ck_assert_uint_eq(get(BUS_MMIO, UINT64_MAX - 3, 4), 0x04040404);
}
END_TEST

START_TEST(many_regions_found)
{
	struct probe p[100] = {0};

	for (int i = 99; i >= 0; i--)
		ck_assert_int_eq(bus_add(bus, BUS_MMIO, 0x1000 * (1 + i * 7 % 100), 0x10, &probe_ops, &p[i * 7 % 100], "p"), 0);
	for (int i = 0; i < 100; i++) {
		ck_assert_uint_eq(get(BUS_MMIO, 0x1000 * (1 + i) + 4, 2), 0x0404);
		ck_assert_int_eq(p[i].reads, 1);
		ck_assert_uint_eq(get(BUS_MMIO, 0x1000 * (1 + i) + 0x10, 2), 0xffff);
	}
	ck_assert_uint_eq(bus_stats(bus)->mmio_reads, 200);
	ck_assert_uint_eq(bus_stats(bus)->unclaimed, 100);
}
END_TEST

START_TEST(edges_split_into_bytes)
{
	struct probe p = {0}, q = {0};

	ck_assert_int_eq(bus_add(bus, BUS_PIO, 0x3f8, 8, &probe_ops, &p, "p"), 0);
	ck_assert_int_eq(bus_add(bus, BUS_PIO, 0x400, 1, &probe_ops, &q, "q"), 0);
	ck_assert_uint_eq(get(BUS_PIO, 0x3fe, 4), 0xff000706);
	ck_assert_uint_eq(get(BUS_PIO, 0x3f6, 4), 0x0100ffff);
	put(BUS_PIO, 0x3ff, 2, 0xaabb);
	ck_assert_uint_eq(p.value, 0xbb);
	ck_assert_uint_eq(q.value, 0xaa);
	put(BUS_PIO, 0x3f8, 1, 0x1234);
	ck_assert_uint_eq(p.value, 0x34);
	ck_assert_uint_eq(get(BUS_PIO, 0xffff, 4), 0xffffffff);
}
END_TEST

START_TEST(a_region_moves_itself)
{
	struct probe p = {.moves = true};

	ck_assert_int_eq(bus_add(bus, BUS_MMIO, 0x1000, 0x100, &probe_ops, &p, "p"), 0);
	put(BUS_MMIO, 0x1008, 8, 0x1122334455667788);
	ck_assert_uint_eq(p.value, 0x1122334455667788);
	ck_assert_uint_eq(get(BUS_MMIO, 0x1008, 4), 0xffffffff);
	ck_assert_uint_eq(get(BUS_MMIO, 0x2008, 4), 0x08080808);
	bus_remove(bus, BUS_MMIO, 0x3000);
	bus_remove(bus, BUS_MMIO, 0x2000);
	ck_assert_uint_eq(get(BUS_MMIO, 0x2008, 1), 0xff);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("bus");
	TCase *tcase = tcase_create("bus");

	tcase_add_checked_fixture(tcase, setup, teardown);
	tcase_add_test(tcase, overlap_is_refused);
	tcase_add_test(tcase, many_regions_found);
	tcase_add_test(tcase, edges_split_into_bytes);
	tcase_add_test(tcase, a_region_moves_itself);
	suite_add_tcase(suite, tcase);
	return run_suite(suite);
}
