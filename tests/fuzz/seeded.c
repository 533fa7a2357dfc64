/*
 * With libFuzzer: inputs begin at the target's seeds. A fuzzer that starts from nothing seldom gets past a header's magic
 * numbers; here one mutation in 64, and every one of an empty input, is a seed instead of a change.
 */
#include "fuzz.h"

#define ONE_IN 64

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned random);

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned random)
{
	size_t seeded = 0;

	if (fuzz_seed && (size <= 1 || random % ONE_IN == 0)) {
		unsigned kind = random / ONE_IN % 8;

		while (!seeded && kind)
			seeded = fuzz_seed(kind--, data, max_size);
		if (!seeded)
			seeded = fuzz_seed(0, data, max_size);
	}
	return seeded ? seeded : LLVMFuzzerMutate(data, size, max_size);
}
