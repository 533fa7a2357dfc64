/* Serial port, keyboard controller, fw_cfg and debug ports, through the bus. */
#include <errno.h>
#include <string.h>

#include "device_bench.h"
#include "fake_clock.h"
#include "run_suite.h"
#include "vmm/dev_debug.h"
#include "vmm/dev_fw_cfg.h"
#include "vmm/dev_i8042.h"
#include "vmm/dev_serial.h"
#include "vmm/mem.h"

#define COM SERIAL_COM1

static struct bench_line lines[3];
static struct serial *serial;
static struct i8042 *kbd;
static struct fw_cfg *fw;
static struct guest_mem *mem;
static struct debug_ports *ports;
static char sent[256];
static size_t sent_size;
static unsigned ready_calls, resets, exits;
static bool a20;
static uint32_t exit_value;

static void on_output(void *ctx, const uint8_t *data, size_t length)
{
	ck_assert_uint_le(sent_size + length, sizeof(sent));
	memcpy(sent + sent_size, data, length);
	sent_size += length;
}

static void on_ready(void *ctx)
{
	ready_calls++;
}

static void on_reset(void *ctx)
{
	resets++;
}

static void on_a20(void *ctx, bool open)
{
	a20 = open;
}

static void on_exit_port(void *ctx, uint32_t value)
{
	exits++;
	exit_value = value;
}

static void setup(void)
{
	struct serial_host serial_host = { on_output, on_ready, NULL, { answers_publish, &bench_answers } };
	struct i8042_host kbd_host = { .reset = on_reset, .a20 = on_a20 };
	struct debug_host debug_host = { on_exit_port, on_output, NULL };

	bench_start();
	memset(lines, 0, sizeof(lines));
	sent_size = 0;
	ready_calls = resets = exits = 0;
	ck_assert_int_eq(mem_create(16 << 20, &mem, NULL), 0);
	ck_assert_int_eq(
		serial_create(bench_bus, NULL, COM, bench_line_wire(lines, 0), &serial_host, "com1", &serial, NULL), 0);
	ck_assert_int_eq(i8042_create(bench_bus, bench_line_wire(lines, 1), bench_line_wire(lines, 2), &kbd_host, &kbd,
				 NULL), 0);
	ck_assert_int_eq(fw_cfg_create(bench_bus, mem, &fw, NULL), 0);
	ck_assert_int_eq(debug_ports_create(bench_bus, &debug_host, &ports, NULL), 0);
}

static void teardown(void)
{
	debug_ports_destroy(ports);
	fw_cfg_destroy(fw);
	i8042_destroy(kbd);
	serial_destroy(serial);
	mem_destroy(mem);
	bench_stop();
}

START_TEST(serial_transmits)
{
	outb(COM + 4, 0x0b);
	outb(COM + 2, 0x01);
	ck_assert_uint_eq(inb(COM + 2), 0xc1);
	ck_assert_uint_eq(inb(COM + 5), 0x60);
	outb(COM + 1, 0x02);
	ck_assert(lines[0].level);
	ck_assert_uint_eq(inb(COM + 2), 0xc2);
	ck_assert_msg(!lines[0].level, "reading IIR takes the THRE interrupt");
	outb(COM, 'h');
	ck_assert(lines[0].level);
	outb(COM, 'i');
	ck_assert_uint_eq(lines[0].rises, 3);
	ck_assert_uint_eq(sent_size, 2);
	ck_assert(!memcmp(sent, "hi", 2));
	outb(COM + 4, 0x03);
	ck_assert_msg(!lines[0].level, "OUT2 gates the interrupt");
	outb(COM + 3, 0x80);
	outb(COM, 0x01);
	ck_assert_uint_eq(sent_size, 2);
	ck_assert_uint_eq(inb(COM), 0x01);
}
END_TEST

START_TEST(serial_receives)
{
	uint8_t data[40];

	for (unsigned i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)i;
	outb(COM + 4, 0x08);
	outb(COM + 1, 0x05);
	ck_assert_uint_eq(serial_input(serial, data, 3), 1); /* no FIFO */
	ck_assert_uint_eq(inb(COM + 2), 0x04);
	ck_assert_uint_eq(inb(COM), 0);
	ck_assert_uint_eq(ready_calls, 1);
	ck_assert(!lines[0].level);
	outb(COM + 2, 0x81); /* trigger at 8 */
	ck_assert_uint_eq(serial_input(serial, data, 3), 3);
	ck_assert(!lines[0].level);
	fake_clock_advance(20000000);
	ck_assert(lines[0].level);
	ck_assert_uint_eq(inb(COM + 2), 0xcc);
	for (unsigned i = 0; i < 3; i++)
		ck_assert_uint_eq(inb(COM), i);
	ck_assert_uint_eq(inb(COM + 2), 0xc1);
	ck_assert_uint_eq(serial_input(serial, data, 40), 16);
	ck_assert_uint_eq(inb(COM + 2), 0xc4);
	for (unsigned i = 0; i < 9; i++)
		ck_assert_uint_eq(inb(COM), i);
	ck_assert_msg(!lines[0].level, "below the trigger");
	ck_assert_uint_eq(ready_calls, 1);
	for (unsigned i = 9; i < 16; i++)
		ck_assert_uint_eq(inb(COM), i);
	ck_assert_uint_eq(ready_calls, 2);
	ck_assert_uint_eq(inb(COM + 5), 0x60);
	serial_input_break(serial);
	ck_assert_uint_eq(inb(COM + 2), 0xc6);
	ck_assert_uint_eq(inb(COM + 5), 0xf1);
	ck_assert_uint_eq(inb(COM + 5), 0x61);
}
END_TEST

START_TEST(serial_loops_back)
{
	outb(COM + 4, 0x1a); /* RTS, OUT2 */
	ck_assert_uint_eq(inb(COM + 6) & 0xf0, 0x90);
	ck_assert_uint_eq(inb(COM + 6) & 0x0f, 0x00);
	outb(COM, 'x');
	ck_assert_uint_eq(sent_size, 0);
	ck_assert_uint_eq(inb(COM + 5), 0x61);
	outb(COM, 'y');
	ck_assert_uint_eq(inb(COM + 5), 0x63); /* overrun */
	ck_assert_uint_eq(inb(COM), 'y');
	ck_assert_uint_eq(serial_input(serial, (const uint8_t *)"a", 1), 0);
	outb(COM + 4, 0x08);
	ck_assert_uint_eq(ready_calls, 1);
	ck_assert_uint_eq(inb(COM + 6) & 0xf0, 0xb0);
}
END_TEST

/* serial_receives and serial_loops_back compare each status with what was published; here: when one is. */
START_TEST(serial_publishes_status)
{
	unsigned used = bench_answers.used;

	ck_assert_uint_eq(inb(COM + 5), 0x60);
	ck_assert_uint_eq(bench_answers.used, ++used);
	ck_assert_uint_eq(serial_input(serial, (const uint8_t *)"a", 1), 1);
	ck_assert_uint_eq(inb(COM + 5), 0x61);
	ck_assert_uint_eq(bench_answers.used, ++used);
	serial_input_break(serial);
	ck_assert_uint_eq(inb(COM + 5) & 0x12, 0x12);
	ck_assert_msg(bench_answers.used == used, "reading takes the error bits");
	ck_assert_uint_eq(inb(COM + 5), 0x61);
	ck_assert_uint_eq(bench_answers.used, ++used);
	inb(COM);
	ck_assert_uint_eq(inb(COM + 5), 0x60);
	ck_assert_uint_eq(bench_answers.used, ++used);
	outb(COM + 4, 0x10);
	inb(COM + 5);
	ck_assert_msg(bench_answers.used == used, "in loopback a byte sent changes the status");
	serial_reset(serial);
	ck_assert_uint_eq(inb(COM + 5), 0x60);
	ck_assert_uint_eq(bench_answers.used, ++used);
}
END_TEST

static uint8_t kbd_ask(uint8_t command)
{
	outb(0x64, command);
	ck_assert(inb(0x64) & 1);
	return inb(0x60);
}

START_TEST(i8042_controller)
{
	ck_assert_uint_eq(kbd_ask(0xaa), 0x55);
	ck_assert_uint_eq(kbd_ask(0xab), 0x00);
	ck_assert_uint_ne(kbd_ask(0xa9), 0x00);
	ck_assert_uint_eq(inb(0x64) & 1, 0);
	outb(0x64, 0xd3);
	outb(0x60, 0x5a);
	ck_assert_msg(!(inb(0x64) & 0x20), "no mouse: the loop answers without the AUX mark");
	inb(0x60);
	outb(0x64, 0xd1);
	outb(0x60, 0xdd);
	ck_assert(!a20);
	ck_assert_uint_eq(inb(0x92) & 2, 0);
	ck_assert_uint_eq(kbd_ask(0xd0) & 2, 0);
	outb(0x92, 0x02);
	ck_assert(a20);
	ck_assert_uint_eq(inb(0x92) & 2, 2);
	outb(0x64, 0xdd);
	ck_assert(!a20);
	outb(0x64, 0xdf);
	ck_assert(a20);
	outb(0x92, 0x00);
	ck_assert(!a20);
	i8042_reset(kbd);
	ck_assert(a20);
	ck_assert_uint_eq(kbd_ask(0xd0) & 2, 2);
	ck_assert_uint_eq(resets, 0);
	outb(0x64, 0xfe);
	ck_assert_uint_eq(resets, 1);
	outb(0x92, 0x03);
	ck_assert_uint_eq(resets, 2);
}
END_TEST

START_TEST(i8042_keyboard)
{
	outb(0x64, 0x60);
	outb(0x60, 0x41); /* interrupt, translate */
	outb(0x60, 0xff);
	ck_assert(lines[1].level);
	ck_assert_uint_eq(inb(0x60), 0xfa);
	ck_assert_uint_eq(inb(0x60), 0xaa);
	ck_assert(!lines[1].level);
	ck_assert_uint_eq(lines[1].rises, 2);
	outb(0x60, 0xf2);
	ck_assert_uint_eq(inb(0x60), 0xfa);
	ck_assert_uint_eq(inb(0x60), 0xab);
	ck_assert_uint_eq(inb(0x60), 0x41); /* 0x83, translated */
	outb(0x60, 0xed);
	outb(0x60, 0x07);
	ck_assert_uint_eq(inb(0x60), 0xfa);
	ck_assert_uint_eq(inb(0x60), 0xfa);
	ck_assert(i8042_key(kbd, (const uint8_t[]){ 0x1c, 0xf0, 0x1c }, 3));
	ck_assert_uint_eq(inb(0x60), 0x1e);
	ck_assert_uint_eq(inb(0x60), 0x9e);
	ck_assert_uint_eq(inb(0x64) & 1, 0);
	outb(0x64, 0xad);
	outb(0x60, 0xee);
	ck_assert_uint_eq(inb(0x64) & 1, 0);
	outb(0x64, 0xae);
	ck_assert_uint_eq(inb(0x60), 0xee);
}
END_TEST

static void fw_select(uint16_t key)
{
	bench_write(BUS_PIO, 0x510, 2, key);
}

static uint32_t fw_be32(void)
{
	uint32_t value = 0;

	for (int i = 0; i < 4; i++)
		value = value << 8 | inb(0x511);
	return value;
}

/* Runs a descriptor at gpa 0x1000 and returns its control word afterwards. */
static uint32_t fw_dma(uint32_t control, uint32_t length, uint64_t address)
{
	uint32_t words[4] = { __builtin_bswap32(control), __builtin_bswap32(length),
		__builtin_bswap32((uint32_t)(address >> 32)), __builtin_bswap32((uint32_t)address) };

	ck_assert_int_eq(mem_write(mem, 0x1000, words, sizeof(words)), 0);
	bench_write(BUS_PIO, 0x514, 4, 0);
	bench_write(BUS_PIO, 0x518, 4, __builtin_bswap32(0x1000));
	ck_assert_int_eq(mem_read(mem, 0x1000, words, 4), 0);
	return __builtin_bswap32(words[0]);
}

START_TEST(fw_cfg_directory)
{
	char name[56];

	ck_assert_int_eq(fw_cfg_add_file(fw, "etc/zeta", "Z", 1), 0);
	ck_assert_int_eq(fw_cfg_add_file(fw, "etc/alpha", "ALPHA", 5), 0);
	ck_assert_int_eq(fw_cfg_add_file(fw, "etc/alpha", "x", 1), -EEXIST);
	ck_assert_int_eq(fw_cfg_add_u16(fw, FW_CFG_NB_CPUS, 4), 0);
	ck_assert_int_eq(fw_cfg_add_u16(fw, FW_CFG_NB_CPUS, 4), -EEXIST);
	fw_select(FW_CFG_SIGNATURE);
	ck_assert_uint_eq(fw_be32(), 0x51454d55);
	ck_assert_uint_eq(inb(0x511), 0);
	ck_assert_uint_eq(bench_read(BUS_PIO, 0x514, 4), 0x554d4551);
	fw_select(FW_CFG_FILE_DIR);
	ck_assert_uint_eq(fw_be32(), 2);
	ck_assert_uint_eq(fw_be32(), 5);
	ck_assert_uint_eq(fw_be32(), 0x20 << 16);
	for (unsigned i = 0; i < sizeof(name); i++)
		name[i] = (char)inb(0x511);
	ck_assert_str_eq(name, "etc/alpha");
	fw_select(0x20);
	ck_assert_uint_eq(inb(0x511), 'A');
	fw_select(0xffff);
	ck_assert_uint_eq(inb(0x511), 0);
}
END_TEST

START_TEST(fw_cfg_dma)
{
	uint8_t data[16];

	ck_assert_int_eq(fw_cfg_add_file(fw, "a", "0123456789", 10), 0);
	ck_assert_int_eq(fw_cfg_add_writable_file(fw, "b", "0123456789", 10), 0);
	memset(data, 0xee, sizeof(data));
	mem_write(mem, 0x2000, data, sizeof(data));
	ck_assert_uint_eq(fw_dma(0x20 << 16 | 8 | 4, 2, 0), 0);
	ck_assert_uint_eq(fw_dma(2, 12, 0x2000), 0); /* 8 of the item, 4 zeroes */
	mem_read(mem, 0x2000, data, sizeof(data));
	ck_assert(!memcmp(data, "23456789\0\0\0\0\xee\xee\xee\xee", 16));
	/* Lies. */
	ck_assert_uint_eq(fw_dma(0x20 << 16 | 8 | 2, 16, (16 << 20) - 8), 1);
	ck_assert_uint_eq(fw_dma(0x20 << 16 | 8 | 2, 16, 0xfec00000), 1);
	ck_assert_uint_eq(fw_dma(0x20 << 16 | 8 | 2, 16, UINT64_MAX - 4), 1);
	ck_assert_uint_eq(fw_dma(0x20 << 16 | 8 | 2, UINT32_MAX, 0x2000), 1);
	ck_assert_uint_eq(fw_dma(0x20 << 16 | 8 | 2, 0xa0000, 0x1), 1);
	ck_assert_uint_eq(fw_dma(0x20 << 16 | 8 | 16, 4, 0x2000), 1); /* read-only */
	ck_assert_uint_eq(fw_dma(0x21 << 16 | 8 | 16, 11, 0x2000), 1);
	mem_write(mem, 0x2000, "WXYZ", 4);
	ck_assert_uint_eq(fw_dma(0x21 << 16 | 8 | 4, UINT32_MAX, 0), 0);
	ck_assert_uint_eq(fw_dma(4, UINT32_MAX, 0), 0);
	ck_assert_msg(fw_dma(16, 1, 0x2000) == 1, "the offset must not wrap");
	ck_assert_uint_eq(fw_dma(0x21 << 16 | 8 | 16, 4, 0x2000), 0);
	fw_select(0x21);
	ck_assert_uint_eq(fw_be32(), 0x5758595a);
	/* A descriptor outside RAM changes nothing. */
	bench_write(BUS_PIO, 0x514, 4, 0xffffffff);
	bench_write(BUS_PIO, 0x518, 4, 0xffffffff);
}
END_TEST

START_TEST(debug_ports_work)
{
	bench_write(BUS_PIO, 0xf4, 4, 0x12345);
	ck_assert_uint_eq(exits, 1);
	ck_assert_uint_eq(exit_value, 0x12345);
	outb(0x80, 0x42);
	ck_assert_uint_eq(debug_ports_post_code(ports), 0x42);
	ck_assert_uint_eq(inb(0x402), 0xe9);
	outb(0x402, 'o');
	outb(0xe9, 'k');
	ck_assert(sent_size == 2 && !memcmp(sent, "ok", 2));
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("devices");
	TCase *tc = tcase_create("devices");

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, serial_transmits);
	tcase_add_test(tc, serial_receives);
	tcase_add_test(tc, serial_loops_back);
	tcase_add_test(tc, serial_publishes_status);
	tcase_add_test(tc, i8042_controller);
	tcase_add_test(tc, i8042_keyboard);
	tcase_add_test(tc, fw_cfg_directory);
	tcase_add_test(tc, fw_cfg_dma);
	tcase_add_test(tc, debug_ports_work);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
