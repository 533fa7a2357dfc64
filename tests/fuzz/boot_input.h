/* One input of a loader's fuzz target: a file in memory, loaded into a small guest. */
#ifndef TESTS_FUZZ_BOOT_INPUT_H
#define TESTS_FUZZ_BOOT_INPUT_H

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vmm/boot.h"
#include "vmm/cpu.h"
#include "vmm/mem.h"

#define FUZZ_RAM (32ull << 20)

/*
 * Identifies the input, loads it as what it is and as `kind` too. Whatever happens, a failure has a sentence and a success
 * an entry in RAM.
 */
static inline void boot_input_run(const uint8_t *data, size_t size, enum boot_kind kind)
{
	struct boot_request request = { .append = "console=ttyS0", .cpus = 2 };
	enum boot_kind kinds[2];
	char path[40];
	struct error err = { 0 };
	int fd = memfd_create("fuzz", MFD_CLOEXEC);

	if (fd < 0 || (size && write(fd, data, size) != (ssize_t)size))
		abort();
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	request.kernel = request.initrd = path;
	kinds[0] = boot_identify(path, &err);
	kinds[1] = kind;
	assert(kinds[0] != BOOT_INVALID || err.message[0]);
	for (unsigned i = 0; i < 2; i++) {
		struct guest_mem *mem;
		struct cpu_state cpu;
		struct boot_result result;
		int code;

		if (kinds[i] == BOOT_INVALID || kinds[i] == BOOT_FIRMWARE || (i && kinds[1] == kinds[0]))
			continue;
		memset(&err, 0, sizeof(err));
		request.kind = kinds[i];
		if (mem_create(FUZZ_RAM, &mem, &err) < 0)
			abort();
		code = boot_load(&request, mem, &cpu, &result, &err);
		assert(code == 0 || (code < 0 && err.code == code && err.message[0]));
		assert(code < 0 || mem_ptr(mem, result.entry, 1, false));
		mem_destroy(mem);
	}
	close(fd);
}

#endif
