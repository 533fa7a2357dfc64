/*
 * Runs a fuzz target without libFuzzer: `target FILE…` replays files, `target --random N SEED` runs N inputs, the
 * same for the same seed: a quarter are noise, the others are the target's seeds with a few bytes, words or lengths changed.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"

#define INPUT_MAX 65536u

static uint64_t random_next(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static void mutate(uint8_t *data, size_t size, uint64_t *random)
{
	static const uint64_t interesting[] = { 0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x10000, 0x7fffffff, 0x80000000,
		0xffffffff, 0x100000000, 0x7fffffffffffffff, 0xffffffffffffffff };
	unsigned changes = 1 + random_next(random) % 4;

	while (changes--) {
		uint64_t r = random_next(random), v = random_next(random);
		unsigned width = 1u << (r & 3);
		/* Headers are at the front: half of all changes go there. */
		size_t span = r & 0x100 && size > 1024 ? 1024 : size, at = (r >> 16) % span;

		if (r & 4)
			v = interesting[v % (sizeof(interesting) / sizeof(interesting[0]))];
		if (at + width <= size)
			memcpy(data + at, &v, width);
	}
}

static size_t make_input(uint8_t *data, unsigned seeds, uint64_t *random)
{
	uint64_t r = random_next(random);
	size_t size = 0;

	if (seeds && r % 4)
		size = fuzz_seed((unsigned)((r >> 8) % seeds), data, INPUT_MAX);
	if (!size) {
		size = (r >> 32) % 2048;
		for (size_t i = 0; i < size; i++)
			data[i] = (uint8_t)random_next(random);
		return size;
	}
	mutate(data, size, random);
	if ((r >> 4) % 8 == 0)
		size = 1 + random_next(random) % size;
	return size;
}

static void run(const uint8_t *data, size_t size)
{
	uint8_t *exact = malloc(size ? size : 1); /* so that a sanitizer sees the first byte past the end */

	if (!exact)
		exit(2);
	memcpy(exact, data, size);
	LLVMFuzzerTestOneInput(exact, size);
	free(exact);
}

static int run_file(const char *path)
{
	static uint8_t data[1 << 24];
	FILE *f = fopen(path, "rb");
	size_t size;

	if (!f) {
		perror(path);
		return 1;
	}
	size = fread(data, 1, sizeof(data), f);
	fclose(f);
	run(data, size);
	return 0;
}

int main(int argc, char **argv)
{
	uint8_t *data;
	uint64_t random;
	unsigned seeds = 0;
	long n;

	if (argc != 4 || strcmp(argv[1], "--random")) {
		int bad = 0;

		for (int i = 1; i < argc; i++)
			bad |= run_file(argv[i]);
		return bad;
	}
	n = strtol(argv[2], NULL, 0);
	random = strtoull(argv[3], NULL, 0) * 0x9e3779b97f4a7c15ull | 1;
	data = malloc(INPUT_MAX);
	if (!data)
		return 2;
	while (fuzz_seed && fuzz_seed(seeds, data, INPUT_MAX))
		seeds++;
	while (n-- > 0)
		run(data, make_input(data, seeds, &random));
	free(data);
	return 0;
}
