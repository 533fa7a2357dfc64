/* bzImage setup headers. */
#include "boot_input.h"
#include "fuzz.h"
#include "vmm/bytes.h"

#define SEED_SIZE 0x2000u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	boot_input_run(data, size, BOOT_BZIMAGE);
	return 0;
}

/* 0: entered in long mode, 1: older, in protected mode. */
size_t fuzz_seed(unsigned kind, uint8_t *data, size_t size)
{
	if (kind > 1 || size < SEED_SIZE)
		return 0;
	memset(data, 0, SEED_SIZE);
	data[0x1f1] = 2;
	bytes_store(data + 0x1f4, 4, (SEED_SIZE - 0x600) / 16);
	bytes_store(data + 0x1fe, 2, 0xaa55);
	bytes_store(data + 0x200, 2, 0x6aeb);
	memcpy(data + 0x202, "HdrS", 4);
	bytes_store(data + 0x206, 2, kind ? 0x209 : 0x20f);
	data[0x211] = 1;
	bytes_store(data + 0x22c, 4, 0x7fffffff);
	bytes_store(data + 0x230, 4, 0x100000);
	data[0x234] = 1;
	bytes_store(data + 0x236, 2, 1);
	bytes_store(data + 0x238, 4, 255);
	bytes_store(data + 0x258, 8, 0x1000000);
	bytes_store(data + 0x260, 4, 0x400000);
	return SEED_SIZE;
}
