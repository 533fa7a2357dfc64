/* ELF files: program headers, notes, multiboot headers. */
#include "boot_input.h"
#include "fuzz.h"
#include "vmm/bytes.h"

#define SEED_SIZE 0x3000u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	boot_input_run(data, size, BOOT_MULTIBOOT);
	return 0;
}

/* 0: 64-bit with a PVH note, 1: 64-bit without, 2: 32-bit multiboot, 3: multiboot with addresses. */
size_t fuzz_seed(unsigned kind, uint8_t *data, size_t size)
{
	uint32_t flags = kind == 3 ? 0x10003 : 3;

	if (kind > 3 || size < SEED_SIZE)
		return 0;
	memset(data, 0, SEED_SIZE);
	memcpy(data, kind == 2 ? "\177ELF\1\1\1" : "\177ELF\2\1\1", 7);
	bytes_store(data + 16, 2, 2);
	bytes_store(data + 18, 2, kind == 2 ? 3 : 62);
	bytes_store(data + 20, 4, 1);
	if (kind == 2) {
		const uint32_t phdr[8] = { 1, 0x1000, 0x100000, 0x100000, 0x1000, 0x2000, 5, 0x1000 };

		bytes_store(data + 24, 4, 0x100020);
		bytes_store(data + 28, 4, 52);
		bytes_store(data + 40, 2, 52);
		bytes_store(data + 42, 2, 32);
		bytes_store(data + 44, 2, 1);
		memcpy(data + 52, phdr, sizeof(phdr));
	} else {
		const uint64_t load[7] = { 1 | 5ull << 32, 0x1000, 0x100000, 0x100000, 0x1000, 0x2000, 0x1000 };
		const uint64_t note[7] = { 4, 0x2000, 0, 0, 20, 20, 4 };
		const uint32_t pvh[5] = { 4, 4, 18, 0x006e6558, 0x100040 };

		bytes_store(data + 24, 8, 0x100010);
		bytes_store(data + 32, 8, 64);
		bytes_store(data + 52, 2, 64);
		bytes_store(data + 54, 2, 56);
		bytes_store(data + 56, 2, kind == 0 ? 2 : 1);
		memcpy(data + 64, load, sizeof(load));
		memcpy(data + 120, note, sizeof(note));
		memcpy(data + 0x2000, pvh, sizeof(pvh));
	}
	if (kind >= 2) {
		const uint32_t header[8] = { 0x1badb002, flags, -(0x1badb002 + flags), 0x100200, 0x100000, 0x101000,
			0x103000, 0x100300 };

		memcpy(data + 0x200, header, sizeof(header));
	}
	return SEED_SIZE;
}
