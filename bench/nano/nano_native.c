/*
 * The native twin of the nano guest: the rows that ring 3 can run, for the column "native". Its `syscall` is getppid,
 * so it also has what the kernel does at its entry and exit.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "nano.h"

#define HUGE_SIZE (2ul << 20)

void nano_print(const char *text)
{
	fputs(text, stdout);
}

/* Are `kilobytes` of the mapping at `address` huge pages? */
static bool is_huge(const void *address, unsigned long kilobytes)
{
	FILE *maps = fopen("/proc/self/smaps", "r");
	unsigned long low, high, huge;
	bool inside = false, result = false;
	char line[512];

	while (maps && fgets(line, sizeof(line), maps)) {
		if (sscanf(line, "%lx-%lx ", &low, &high) == 2)
			inside = low <= (unsigned long)address && (unsigned long)address < high;
		else if (inside && sscanf(line, "AnonHugePages: %lu", &huge) == 1)
			result = huge >= kilobytes;
	}
	if (maps)
		fclose(maps);
	return result;
}

void *nano_walk_area(bool large, unsigned pages, const char **why)
{
	size_t page = large ? HUGE_SIZE : 4096, size = (pages * WALK_STEP(page) + page - 1) / page * page;
	char *area = mmap(NULL, size + HUGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (area == MAP_FAILED) {
		*why = "there is not enough memory";
		return NULL;
	}
	area += -(unsigned long)area & (HUGE_SIZE - 1);
	madvise(area, size, large ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	for (size_t at = 0; at < size; at += 4096)
		*(volatile char *)(area + at) = 0;
	if (large && !is_huge(area, size >> 10))
		*why = "the kernel gives no huge pages";
	return area;
}

static uint64_t run_syscall(uint64_t n)
{
	volatile uint64_t now = 0;
	uint64_t parent = (uint64_t)getppid(), cycles;

	cycles = NANO_LOOP(n, "mov $110, %%eax\n\tsyscall\n\tmov %%rax, %[now]", [now] "m"(now));
	if (now != parent)
		nano_wrong("getppid changed its mind");
	return cycles;
}

static const struct nano_row native_rows[] = {
	{.name = "syscall", .run = run_syscall},
	{0},
};

int main(int argc, char **argv)
{
	static const struct nano_row *const tables[] = {native_rows, nano_user_rows, NULL};
	char words[1024] = "nano";
	size_t length = strlen(words);

	for (int i = 1; i < argc; i++) {
		int added = snprintf(words + length, sizeof(words) - length, " %s", argv[i]);

		if (added < 0 || (size_t)added >= sizeof(words) - length) {
			fprintf(stderr, "nano: too many arguments\n");
			return 2;
		}
		length += (size_t)added;
	}
	return nano_run(words, tables);
}
