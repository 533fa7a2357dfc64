/*
 * KVM's paravirtual clock (the MSRs and structures of Linux' Documentation/virt/kvm/x86/msr.rst, feature bits of cpuid.rst):
 * the guest names an address, and finds there how to turn its TSC into nanoseconds. A guest that knows it need not
 * measure the TSC against the PIT or the HPET, which fails or misleads when the host has something else to do.
 *
 *   time:  | 0 version | 4 - | 8 TSC at that time | 16 ns at that time | 24 multiplier | 28 shift (signed) | 29 flags |
 *          ns = ns at that time + ((TSC − TSC at that time) << shift) · multiplier >> 32
 *   wall:  | 0 version | 4 s | 8 ns |   the time of day when the clock above was 0
 *
 * The version is odd while its structure changes. All vcpus give the same line through the same point, the machine's start,
 * so that the clock is one for all (flag 0); it changes only when the guest moves its TSC. An address that is not RAM, or
 * a structure that crosses a page, is not written.
 */
#include <time.h>

#include "engine/access.h"
#include "engine/system.h"

#define ENABLE 1u
#define FLAG_STABLE 1u

static void put_words(struct engine *e, uint64_t gpa, uint32_t *words, unsigned count)
{
	bool readonly = true;

	gpa &= ~3ull;
	if (ram_offset(e, gpa, &readonly) == ~0ull || readonly || (gpa & 0xfff) + 4 * count > 0x1000)
		return;
	words[0] = ((uint32_t)physical_read(e, gpa, 4) | 1) + 1;
	physical_write(e, gpa, 4, words[0] - 1);
	for (unsigned i = 1; i < count; i++)
		physical_write(e, gpa + 4 * i, 4, words[i]);
	physical_write(e, gpa, 4, words[0]);
}

/* The multiplier with all of its 32 bits in use. */
static uint32_t multiplier(uint64_t khz, int *shift)
{
	unsigned __int128 scaled = (unsigned __int128)1000000u << 64;
	uint64_t ratio;

	scaled /= khz; /* ns per tick, 64 bits of fraction */
	*shift = 0;
	while (scaled >> 64) {
		scaled >>= 1;
		++*shift;
	}
	while (!(scaled >> 63)) {
		scaled <<= 1;
		--*shift;
	}
	ratio = (uint64_t)scaled >> 32;
	return (uint32_t)ratio;
}

void pvclock_update(struct engine *e)
{
	const struct cpu_model *model = &e->block->model;
	uint64_t then = model->clock_tsc + e->cpu->tsc_offset;
	uint32_t words[8] = { 0 };
	int shift;

	if (!(e->cpu->pv_system_time & ENABLE))
		return;
	words[2] = (uint32_t)then;
	words[3] = (uint32_t)(then >> 32);
	words[6] = multiplier(model->tsc_khz, &shift);
	words[7] = (uint8_t)shift | FLAG_STABLE << 8;
	put_words(e, e->cpu->pv_system_time & ~(uint64_t)ENABLE, words, 8);
}

void pvclock_write_wall(struct engine *e)
{
	const struct cpu_model *model = &e->block->model;
	uint64_t ticks = __builtin_ia32_rdtsc() - model->clock_tsc, start;
	uint32_t words[3];
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	start = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec -
		(uint64_t)((unsigned __int128)ticks * 1000000u / model->tsc_khz);
	words[1] = (uint32_t)(start / 1000000000u);
	words[2] = (uint32_t)(start % 1000000000u);
	put_words(e, e->cpu->pv_wall_clock, words, 3);
}
