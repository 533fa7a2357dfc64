/*
 * Firmware: a flat BIOS image, mapped read-only so that it ends at 4 GiB, where the processor's first
 * instruction is fetched (FFFFFFF0h). Its last 256 KiB are also copied below 1 MiB: SeaBIOS runs there and
 * writes to itself. A chip set would show ROM until it is told to show RAM, and SeaBIOS would copy itself;
 * our host bridge has no registers for that, so RAM it is, with all of the image. A reset loads again: RAM,
 * with the copy, has been cleared, the ROM is there.
 */
#include <errno.h>
#include <stdlib.h>

#include "loader.h"

#define FIRMWARE_MAX 0x1000000ull
#define SHADOW_SIZE 0x40000ull
#define RESET_VECTOR 0xfffffff0ull

int firmware_load(struct boot_context *c)
{
	uint64_t size = c->image.size, shadow = size < SHADOW_SIZE ? size : SHADOW_SIZE;
	uint8_t *data;
	int code;

	if (size % 0x1000 || size > FIRMWARE_MAX)
		return error_set(c->err, -EINVAL,
			"the firmware %s has %llu bytes; a multiple of 4 KiB, at most 16 MiB, is expected",
			c->image.path, (unsigned long long)size);
	data = malloc(size);
	if (!data)
		return error_set(c->err, -ENOMEM, "no memory to read the firmware %s", c->image.path);
	code = image_read(&c->image, 0, data, size, c->err);
	if (code == 0 && !mem_ptr(c->mem, GPA_4G - size, size, false))
		code = mem_add_rom(c->mem, GPA_4G - size, data, size, c->err);
	if (code == 0 && mem_write(c->mem, GPA_1M - shadow, data + size - shadow, shadow) < 0)
		code = error_set(c->err, -EINVAL, "the firmware needs 1 MiB of memory at least");
	free(data);
	c->result->protocol = "firmware";
	c->result->entry = RESET_VECTOR;
	c->result->kernel_gpa = GPA_4G - size;
	c->result->kernel_size = size;
	return code;
}
