/*
 * Firmware: a flat image, mapped read-only so that it ends at 4 GiB, where the processor's first instruction is fetched
 * (FFFFFFF0h). What of it is to be seen below 1 MiB is the host bridge's business. At a reset the ROM is still there.
 */
#include <errno.h>
#include <stdlib.h>

#include "loader.h"

#define FIRMWARE_MAX 0x1000000ull
#define RESET_VECTOR 0xfffffff0ull

int firmware_load(struct boot_context *c)
{
	uint64_t size = c->image.size;
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
	free(data);
	c->result->protocol = "firmware";
	c->result->entry = RESET_VECTOR;
	c->result->kernel_gpa = GPA_4G - size;
	c->result->kernel_size = size;
	return code;
}
