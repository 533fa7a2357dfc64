/* Errors, bounded bytes, sizes and the JSON writer. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "run_suite.h"
#include "vmm/bytes.h"
#include "vmm/error.h"
#include "vmm/stats.h"

START_TEST(error_keeps_code_and_sentence)
{
	struct error err = {0};

	ck_assert_int_eq(error_set(&err, -ENOENT, "No such %s", "thing"), -ENOENT);
	ck_assert_int_eq(err.code, -ENOENT);
	ck_assert_str_eq(err.message, "No such thing");
	ck_assert_int_eq(error_set(NULL, -EIO, "x"), -EIO);
}
END_TEST

START_TEST(reader_stops_at_the_end)
{
	uint8_t data[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
	struct byte_reader r = {.data = data, .size = sizeof(data)};
	uint8_t two[2] = {0xff, 0xff};

	ck_assert_uint_eq(bytes_get8(&r), 1);
	ck_assert_uint_eq(bytes_get16(&r), 0x0302);
	ck_assert_uint_eq(bytes_get32(&r), 0x07060504);
	ck_assert(!r.overflow);
	ck_assert_uint_eq(bytes_get32(&r), 0);
	ck_assert(r.overflow);
	r.overflow = false;
	bytes_get(&r, two, 2);
	ck_assert_uint_eq(two[1], 9);
	bytes_seek(&r, 10);
	ck_assert(!r.overflow);
	bytes_get(&r, two, 1);
	ck_assert(r.overflow);
	bytes_seek(&r, 11);
	ck_assert(r.overflow);
}
END_TEST

START_TEST(writer_stops_at_the_end)
{
	uint8_t data[8] = {0};
	struct byte_writer w = {.data = data, .size = 7};

	bytes_put16(&w, 0x1122);
	bytes_put32(&w, 0x33445566);
	bytes_put16(&w, 0x7788);
	ck_assert(w.overflow);
	ck_assert_uint_eq(w.pos, 6);
	ck_assert_uint_eq(bytes_load(data, 8), 0x334455661122);
	bytes_store(data + 1, 4, 0xaabbccdd);
	ck_assert_uint_eq(bytes_load(data, 8), 0x33aabbccdd22);
}
END_TEST

START_TEST(sizes)
{
	uint64_t v;

	ck_assert_int_eq(size_parse("65536", &v), 0);
	ck_assert_uint_eq(v, 65536);
	ck_assert_int_eq(size_parse("512M", &v), 0);
	ck_assert_uint_eq(v, 512ull << 20);
	ck_assert_int_eq(size_parse("1.5g", &v), 0);
	ck_assert_uint_eq(v, 3ull << 29);
	ck_assert_int_eq(size_parse("16383T", &v), 0);
	ck_assert_int_eq(size_parse("16777216T", &v), -ERANGE);
	ck_assert_int_eq(size_parse("99999999999999999999", &v), -ERANGE);
	ck_assert_int_eq(size_parse("", &v), -EINVAL);
	ck_assert_int_eq(size_parse("-1", &v), -EINVAL);
	ck_assert_int_eq(size_parse("1.5", &v), -EINVAL);
	ck_assert_int_eq(size_parse("1.G", &v), -EINVAL);
	ck_assert_int_eq(size_parse("1MB", &v), -EINVAL);
	ck_assert_int_eq(size_parse("1x", &v), -EINVAL);
}
END_TEST

START_TEST(json_document)
{
	char *text = NULL;
	size_t size;
	FILE *f = open_memstream(&text, &size);
	struct json_writer w;

	json_init(&w, f);
	json_begin_object(&w);
	json_member_string(&w, "q\"\\\n\x01", "\xc3\xa9\xff\xed\xa0\x80");
	json_key(&w, "list");
	json_begin_array(&w);
	json_u64(&w, UINT64_MAX);
	json_i64(&w, -1);
	json_begin_object(&w);
	json_end_object(&w);
	json_double(&w, 0.0 / 0.0);
	json_end_array(&w);
	json_member_bool(&w, "b", true);
	json_end_object(&w);
	ck_assert_int_eq(json_finish(&w), 0);
	fclose(f);
	ck_assert_str_eq(text, "{\n\t\"q\\\"\\\\\\n\\u0001\": \"\xc3\xa9\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\",\n"
			       "\t\"list\": [\n\t\t18446744073709551615,\n\t\t-1,\n\t\t{},\n\t\tnull\n\t],\n"
			       "\t\"b\": true\n}\n");
	free(text);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("base");
	TCase *tcase = tcase_create("base");

	tcase_add_test(tcase, error_keeps_code_and_sentence);
	tcase_add_test(tcase, reader_stops_at_the_end);
	tcase_add_test(tcase, writer_stops_at_the_end);
	tcase_add_test(tcase, sizes);
	tcase_add_test(tcase, json_document);
	suite_add_tcase(suite, tcase);
	return run_suite(suite);
}
