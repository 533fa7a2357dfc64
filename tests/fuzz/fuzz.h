/* What a fuzz target gives: the entry point that libFuzzer calls, and a seed for the driver that needs no libFuzzer. */
#ifndef TESTS_FUZZ_H
#define TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Writes a well-formed input of at most `size` bytes and returns its length: what the driver mutates. Kinds count from
 * 0; returns 0 for the first kind that does not exist. Optional. */
size_t fuzz_seed(unsigned kind, uint8_t *data, size_t size) __attribute__((weak));

#endif
