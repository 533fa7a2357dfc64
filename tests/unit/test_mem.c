/* Guest RAM: the map, its edges, ROM, and that a refused transfer moves nothing. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "run_suite.h"
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
	ck_assert_uint_eq(mem_low_end(mem), 2 * GIB);
	ck_assert_uint_eq(mem_high_size(mem), 3 * GIB);
	ck_assert_int_eq(mem_write(mem, 2 * GIB, &v, 4), -EFAULT);
	ck_assert_int_eq(mem_write(mem, 4 * GIB, &v, 4), 0);
	ck_assert_uint_eq(mem->base[2 * GIB], 42);
	ck_assert_int_eq(mem_zero(mem, 7 * GIB - 4096, 4096), 0);
	ck_assert_int_eq(mem_zero(mem, 7 * GIB - 4096, 4097), -EFAULT);
	mem_destroy(mem);
	ck_assert_int_eq(mem_create(GPA_LOW_RAM_END, &mem, NULL), 0);
	ck_assert_uint_eq(mem_low_end(mem), GPA_LOW_RAM_END);
	ck_assert_uint_eq(mem_high_size(mem), 0);
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

static unsigned layout_changes;

static void note_layout(void *ctx)
{
	layout_changes++;
}

START_TEST(shadow_ram)
{
	struct guest_mem *mem;
	struct error err = {0};
	struct mem_mapping map = {.gpa = 0xf0000, .size = 0x10000};
	uint8_t rom[0x10000], byte = 0;

	memset(rom, 'R', sizeof(rom));
	ck_assert_int_eq(mem_create(4 * MIB, &mem, NULL), 0);
	mem->layout_changed = note_layout;
	layout_changes = 0;
	ck_assert_int_eq(mem_reserve(mem, rom, sizeof(rom), &map.offset, &err), 0);
	ck_assert_uint_eq(map.offset, 4 * MIB);
	ck_assert_uint_eq(layout_changes, 0);
	map.access = MEM_ROM_EXIT;
	ck_assert_int_eq(mem_map(mem, &map, 1), 0);
	ck_assert_uint_eq(layout_changes, 1);
	ck_assert_int_eq(mem_map(mem, &map, 1), 0); /* nothing new */
	ck_assert_uint_eq(layout_changes, 1);
	ck_assert_int_eq(mem_read(mem, 0xfffff, &byte, 1), 0);
	ck_assert_uint_eq(byte, 'R');
	ck_assert_int_eq(mem_write(mem, 0xf0000, &byte, 1), -EFAULT);
	map.access = MEM_NONE;
	ck_assert_int_eq(mem_map(mem, &map, 1), 0);
	ck_assert_int_eq(mem_read(mem, 0xf0000, &byte, 1), -EFAULT);
	map.access = MEM_RAM;
	map.offset = map.gpa;
	ck_assert_int_eq(mem_map(mem, &map, 1), 0);
	ck_assert_uint_eq(layout_changes, 3);
	ck_assert_uint_eq(mem->layout.ranges[2].size, 0); /* in one piece again */
	map.gpa = 0xf0001;
	ck_assert_int_eq(mem_map(mem, &map, 1), -EINVAL);
	map.gpa = 0xf0000;
	map.offset = 4 * MIB + 0x1000; /* ends behind the ROM */
	ck_assert_int_eq(mem_map(mem, &map, 1), -EINVAL);
	ck_assert_uint_eq(layout_changes, 3);
	mem_destroy(mem);
}
END_TEST

START_TEST(a20_gate)
{
	struct guest_mem *mem;
	struct mem_mapping map = {.gpa = 0xf0000, .size = 0x10000, .access = MEM_NONE};
	uint8_t byte = 7;

	ck_assert_int_eq(mem_create(4 * MIB, &mem, NULL), 0);
	mem->layout_changed = note_layout;
	layout_changes = 0;
	mem_set_a20(mem, true);
	ck_assert_uint_eq(layout_changes, 0);
	mem_set_a20(mem, false);
	mem_set_a20(mem, false);
	ck_assert_uint_eq(layout_changes, 1);
	ck_assert_uint_eq(mem->layout.lines_off, MIB);
	ck_assert_int_eq(mem_map(mem, &map, 1), 0); /* keeps it */
	ck_assert_uint_eq(mem->layout.lines_off, MIB);
	ck_assert_int_eq(mem_write(mem, MIB, &byte, 1), 0); /* DMA does not pass the gate */
	ck_assert_uint_eq(mem->base[MIB], 7);
	ck_assert_uint_eq(mem->base[0], 0);
	mem_set_a20(mem, true);
	ck_assert_uint_eq(mem->layout.lines_off, 0);
	ck_assert_uint_eq(layout_changes, 3);
	mem_destroy(mem);
}
END_TEST

#define MODEL_PAGES 1024u

/* What the layout says about a page: offset page, readonly, write_exit; or nothing. */
static uint64_t page_of(const struct guest_mem *mem, uint64_t gpa)
{
	for (unsigned i = 0; i < RAM_RANGE_MAX && mem->layout.ranges[i].size; i++) {
		const struct ram_range *r = &mem->layout.ranges[i];

		if (gpa - r->gpa < r->size)
			return (r->offset + gpa - r->gpa) | r->readonly << 1 | r->write_exit;
	}
	return ~0ull;
}

/* Random changes against a table with one entry for each page; a refused one changes nothing. */
START_TEST(layout_model)
{
	struct guest_mem *mem;
	uint64_t model[MODEL_PAGES], next[MODEL_PAGES];
	unsigned refused = 0;

	srand(17);
	ck_assert_int_eq(mem_create(MODEL_PAGES * 4096, &mem, NULL), 0);
	for (unsigned page = 0; page < MODEL_PAGES; page++)
		model[page] = page_of(mem, page * 4096ull);
	for (unsigned round = 0; round < 1000; round++) {
		struct mem_mapping list[3];
		unsigned count = 1 + (unsigned)rand() % 3;
		int rc;

		memcpy(next, model, sizeof(model));
		for (unsigned i = 0; i < count; i++) {
			unsigned page = (unsigned)rand() % MODEL_PAGES, pages = 1 + (unsigned)rand() % (MODEL_PAGES - page);
			unsigned from = rand() % 3 ? page : (unsigned)rand() % (MODEL_PAGES - pages + 1);
			enum mem_access access = rand() % 4;

			if (rand() % 2 && pages > 20)
				pages = 20;
			list[i] = (struct mem_mapping){page * 4096ull, pages * 4096ull, from * 4096ull, access};
			for (unsigned n = 0; n < pages; n++)
				next[page + n] = access == MEM_NONE ? ~0ull :
					(from + n) * 4096ull | (access != MEM_RAM) << 1 | (access == MEM_ROM_EXIT);
		}
		rc = mem_map(mem, list, count);
		ck_assert(rc == 0 || rc == -ENOSPC);
		refused += rc != 0;
		if (!rc)
			memcpy(model, next, sizeof(model));
		for (unsigned page = 0; page < MODEL_PAGES; page++)
			if (page_of(mem, page * 4096ull) != model[page])
				ck_abort_msg("round %u, page %u", round, page);
		for (unsigned i = 1; i < RAM_RANGE_MAX && mem->layout.ranges[i].size; i++) {
			const struct ram_range *a = &mem->layout.ranges[i - 1], *b = a + 1;

			ck_assert_uint_le(a->gpa + a->size, b->gpa);
		}
	}
	ck_assert_uint_lt(refused, 900);
	mem_destroy(mem);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("mem");
	TCase *tcase = tcase_create("mem");

	tcase_add_test(tcase, bad_sizes);
	tcase_add_test(tcase, edges);
	tcase_add_test(tcase, around_the_hole);
	tcase_add_test(tcase, rom_and_reports);
	tcase_add_test(tcase, shadow_ram);
	tcase_add_test(tcase, a20_gate);
	tcase_add_test(tcase, layout_model);
	suite_add_tcase(suite, tcase);
	return run_suite(suite);
}
