/* What is known of an instruction's bytes from before is what the decoder says of them: this program's own code, changed and not, in all modes. */
#include <check.h>

#include "run_suite.h"
#include "engine/decode.h"
#include "engine_fixture.h"

extern const uint8_t __executable_start[], etext[];

static struct fixture f;
static uint64_t seed = 1;

static void setup(void)
{
	fixture_open(&f);
}

static void teardown(void)
{
	fixture_close(&f);
}

static unsigned next_random(void)
{
	seed = seed * 6364136223846793005ull + 1442695040888963407ull;
	return (unsigned)(seed >> 33);
}

static size_t code_size(void)
{
	return (size_t)((uintptr_t)etext - (uintptr_t)__executable_start) - MEMO_BYTES;
}

/* Its length. Fewer bytes than MEMO_BYTES are always decoded. */
static unsigned check(enum engine_mode mode, const uint8_t *code)
{
	struct engine *e = f.engine;
	struct insn known, fresh, both;
	struct decoded view, d;
	unsigned length = decode_insn(e, mode, code, 15, &fresh);
	uint64_t first;

	memcpy(&first, code, sizeof(first));
	if (decode_insn(e, mode, code, MEMO_BYTES, &known) != length || memcmp(&known, &fresh, sizeof(known)))
		ck_abort_msg("%#llx is not known as it is decoded", (unsigned long long)first);
	if (decode_both(e, mode, code, MEMO_BYTES, &both, &view) != length || memcmp(&both, &fresh, sizeof(both)))
		ck_abort_msg("%#llx is not known with its view", (unsigned long long)first);
	if (ZYAN_SUCCESS(ZydisDecoderDecodeFull(&e->decode->decoder[mode], code, 15, &d.insn, d.op)) && memcmp(&view, &d, sizeof(d)))
		ck_abort_msg("%#llx has another view", (unsigned long long)first);
	return length;
}

START_TEST(own_code)
{
	unsigned count = 0;

	/* Twice: the second time much is known. */
	for (unsigned turn = 0; turn < 2; turn++)
		for (size_t at = 0; at < code_size() && count < 400000; count++)
			at += check((enum engine_mode)_i, __executable_start + at);
	ck_assert_uint_gt(count, 50000);
}
END_TEST

START_TEST(changed_code)
{
	for (unsigned n = 0; n < 20000; n++) {
		uint8_t code[MEMO_BYTES];
		unsigned length;

		memcpy(code, __executable_start + next_random() % code_size(), sizeof(code));
		length = check((enum engine_mode)_i, code);
		for (unsigned k = 0; k < 8; k++) {
			code[next_random() % length] = (uint8_t)(next_random() & 1 ? next_random() : next_random() & 0x87);
			check((enum engine_mode)_i, code);
		}
	}
}
END_TEST

START_TEST(any_code)
{
	static const uint8_t prefixes[] = {0x66, 0x67, 0xf2, 0xf3, 0x48, 0x41, 0x4f, 0x0f, 0xc5, 0xc4, 0x65, 0x2e, 0xf0, 0x62};

	for (unsigned n = 0; n < 100000; n++) {
		uint8_t code[MEMO_BYTES];
		unsigned at = 0;

		for (unsigned k = 0; k < MEMO_BYTES; k++)
			code[k] = (uint8_t)next_random();
		while (at < 4 && (next_random() & 1))
			code[at++] = prefixes[next_random() % sizeof(prefixes)];
		check((enum engine_mode)_i, code);
		for (unsigned k = 0; k < 3; k++) {
			code[at + 2 + next_random() % 8] = (uint8_t)next_random();
			check((enum engine_mode)_i, code);
		}
	}
}
END_TEST

/* It is known, with another number each time. */
START_TEST(numbers)
{
	uint8_t load[MEMO_BYTES] = {0x48, 0x8b, 0x83}, call[MEMO_BYTES] = {0xe8}, branch[MEMO_BYTES] = {0x75};
	struct insn i;
	struct decoded d;

	for (unsigned n = 0; n < 4; n++) {
		load[6] = call[4] = branch[1] = (uint8_t)(0xfe + n);
		ck_assert_uint_eq(check(MODE_64, load), 7);
		ck_assert_uint_eq(check(MODE_64, call), 5);
		ck_assert_uint_eq(check(MODE_64, branch), 2);
		ck_assert(memo_find(f.engine->decode, MODE_64, load, &i) && memo_find_view(f.engine->decode, MODE_64, load, &d));
		ck_assert_int_eq(i.disp, (int32_t)((uint32_t)load[6] << 24));
		ck_assert_int_eq(d.op[1].mem.disp.value, i.disp);
		ck_assert(memo_find(f.engine->decode, MODE_64, call, &i) && memo_find_view(f.engine->decode, MODE_64, branch, &d));
		ck_assert(!memo_find(f.engine->decode, MODE_32, load, &i));
	}
	load[6] = 0x12;
	ck_assert(memo_find(f.engine->decode, MODE_64, load, &i));
	decode_forget(f.engine);
	ck_assert(!memo_find(f.engine->decode, MODE_64, load, &i));
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("decode_memo");
	TCase *tcase = tcase_create("decode_memo");

	tcase_add_checked_fixture(tcase, setup, teardown);
	tcase_set_timeout(tcase, 120);
	tcase_add_loop_test(tcase, own_code, MODE_16, MODE_64 + 1);
	tcase_add_loop_test(tcase, changed_code, MODE_16, MODE_64 + 1);
	tcase_add_loop_test(tcase, any_code, MODE_16, MODE_64 + 1);
	tcase_add_test(tcase, numbers);
	suite_add_tcase(suite, tcase);
	return run_suite(suite);
}
