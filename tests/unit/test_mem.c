/* Guest RAM: the map, its edges, ROM, and that a refused transfer moves nothing. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/error.h"
#include "vmm/mem.h"

#define MIB (1ull << 20)
#define GIB (1ull << 30)

START_TEST(bad_sizes)
{
	struct guest_mem *mem;
	struct error err = {0};

	ck_assert_int_eq(mem_create(0, &mem, &err), -EINVAL);
	ck_assert_int_eq(mem_create(MIB + 1, &mem, &err), -EINVAL);
	ck_assert_int_eq(mem_create(1ull << 50, &mem, &err), -EINVAL);
	ck_assert(err.message[0] != 0);
	ck_assert_ptr_null(mem);
}
END_TEST

START_TEST(edges)
{
	struct guest_mem *mem;
	uint8_t buffer[8192];
	uint64_t v = 0x1122334455667788;

	ck_assert_int_eq(mem_create(16 * MIB, &mem, NULL), 0);
	ck_assert_uint_eq(mem_low_end(mem), 16 * MIB);
	ck_assert_uint_eq(mem_high_size(mem), 0);
	ck_assert_int_eq(mem_write(mem, 16 * MIB - 8, &v, 8), 0);
	ck_assert_int_eq(mem_write(mem, 16 * MIB - 7, &v, 8), -EFAULT);
	ck_assert_int_eq(mem_write(mem, 0x9fffc, &v, 8), -EFAULT);
	ck_assert_int_eq(mem_read(mem, 0x9fffc, &v, 4), 0);
	ck_assert_uint_eq(v, 0x1122334400000000); /* the refused write moved nothing */
	ck_assert_int_eq(mem_read(mem, 0xa0000, &v, 1), -EFAULT);
	ck_assert_int_eq(mem_read(mem, UINT64_MAX - 3, &v, 8), -EFAULT);
	ck_assert_int_eq(mem_read(mem, 0, buffer, UINT64_MAX), -EFAULT);
	ck_assert_ptr_null(mem_ptr(mem, 16 * MIB - 4, 5, false));
	ck_assert_ptr_null(mem_ptr(mem, 4096, UINT64_MAX, false));
	ck_assert_ptr_eq(mem_ptr(mem, 4096, 4096, true), mem->base + 4096);
	mem_destroy(mem);
}
END_TEST

START_TEST(around_the_hole)
{
	struct guest_mem *mem;
	uint32_t v = 42;

	ck_assert_int_eq(mem_create(5 * GIB, &mem, NULL), 0);
	ck_assert_uint_eq(mem_low_end(mem), 3 * GIB);
	ck_assert_uint_eq(mem_high_size(mem), 2 * GIB);
	ck_assert_int_eq(mem_write(mem, 3 * GIB, &v, 4), -EFAULT);
	ck_assert_int_eq(mem_write(mem, 4 * GIB, &v, 4), 0);
	ck_assert_uint_eq(mem->base[3 * GIB], 42);
	ck_assert_int_eq(mem_zero(mem, 6 * GIB - 4096, 4096), 0);
	ck_assert_int_eq(mem_zero(mem, 6 * GIB - 4096, 4097), -EFAULT);
	mem_destroy(mem);
}
END_TEST

static uint64_t written_gpa, written_length;

static void note_write(void *ctx, uint64_t gpa, uint64_t length)
{
	written_gpa = gpa;
	written_length += length;
}

START_TEST(rom_and_reports)
{
	struct guest_mem *mem;
	struct error err = {0};
	char rom[5000];
	char back[5000];
	uint8_t *base;

	memset(rom, 'r', sizeof(rom));
	ck_assert_int_eq(mem_create(4 * MIB, &mem, NULL), 0);
	base = mem->base;
	ck_assert_int_eq(mem_add_rom(mem, 0xffffe000, rom, sizeof(rom), &err), 0);
	ck_assert_int_eq(mem_add_rom(mem, 0xfffff000, rom, 10, &err), -EEXIST);
	ck_assert_int_eq(mem_add_rom(mem, MIB, rom, 10, &err), -EEXIST);
	ck_assert_int_eq(mem_add_rom(mem, 4 * MIB, rom, 10, &err), 0); /* directly behind RAM */
	ck_assert_ptr_eq(mem->base, base);
	ck_assert_uint_eq(mem->file_size, 4 * MIB + 3 * 4096);
	ck_assert_int_eq(mem_read(mem, 0xffffe000, back, sizeof(back)), 0);
	ck_assert_mem_eq(rom, back, sizeof(rom));
	ck_assert_int_eq(mem_write(mem, 0xffffe000, rom, 1), -EFAULT);
	ck_assert_ptr_null(mem_ptr(mem, 0xffffe000, 1, true));
	ck_assert_ptr_nonnull(mem_ptr(mem, 0xffffe000, 1, false));
	ck_assert_int_eq(mem_read(mem, 4 * MIB - 1, back, 2), 0);
	ck_assert_int_eq(back[1], 'r');
	ck_assert_int_eq(mem_write(mem, 4 * MIB - 1, back, 2), -EFAULT);

	mem->written = note_write;
	ck_assert_int_eq(mem_write(mem, 0x5000, rom, 10), 0);
	ck_assert_uint_eq(written_gpa, 0x5000);
	ck_assert_uint_eq(written_length, 10);
	for (int i = 1; i < RAM_RANGE_MAX; i++)
		ck_assert(!mem->layout.ranges[i].size || mem->layout.ranges[i].gpa > mem->layout.ranges[i - 1].gpa);
	mem_destroy(mem);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("mem");
	TCase *tcase = tcase_create("mem");
	SRunner *runner;
	int failed;

	tcase_add_test(tcase, bad_sizes);
	tcase_add_test(tcase, edges);
	tcase_add_test(tcase, around_the_hole);
	tcase_add_test(tcase, rom_and_reports);
	suite_add_tcase(suite, tcase);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
