/*
 * Debug registers (SDM vol. 3, chapter 18). Data and I/O breakpoints are traps: a match is noted in pending_dr6 and
 * delivered by the main loop after the instruction. Instruction breakpoints are the main loop's.
 *
 *   DR7: 31..16 for each of four: LEN1:0 R/W1:0 | 13 GD | 10 one | 9..0 GE LE G3 L3 … G0 L0
 */
#include "engine/decode.h"
#include "engine/system.h"

static unsigned debug_register(struct engine *e, const struct insn *i)
{
	unsigned n = i->cc;

	if (n == 4 || n == 5) {
		if (e->cpu->cr4 & CR4_DE)
			engine_raise(e, EXC_UD);
		n += 2;
	}
	if (n > 7)
		engine_raise(e, EXC_UD);
	require_cpl0(e);
	if (e->cpu->dr7 & DR7_GD) {
		e->cpu->dr6 |= DR6_BD | DR6_FIXED;
		engine_raise(e, EXC_DB);
	}
	return n;
}

void op_mov_from_dr(struct engine *e, const struct insn *i)
{
	unsigned n = debug_register(e, i);
	uint64_t value = n < 4 ? e->cpu->dr[n] : n == 6 ? e->cpu->dr6 | DR6_FIXED : e->cpu->dr7 | DR7_FIXED;

	e->stats->emul_dr++;
	e->cpu->gpr[i->rm] = e->mode == MODE_64 ? value : (uint32_t)value;
}

void op_mov_to_dr(struct engine *e, const struct insn *i)
{
	unsigned n = debug_register(e, i);
	uint64_t value = e->mode == MODE_64 ? e->cpu->gpr[i->rm] : (uint32_t)e->cpu->gpr[i->rm];

	e->stats->emul_dr++;
	if (n >= 6 && value >> 32)
		engine_raise_error(e, EXC_GP, 0);
	if (n < 4)
		e->cpu->dr[n] = value;
	else if (n == 6)
		e->cpu->dr6 = (value & 0xe00f) | DR6_FIXED;
	else
		e->cpu->dr7 = (value & 0xffff23ff) | DR7_FIXED;
	engine_update_mode(e);
}

/* Breakpoints whose range [DRn, DRn + LEN) meets [address, address + size); kinds: bit per R/W value. */
static uint64_t matches(const struct cpu_state *cpu, uint64_t address, unsigned size, unsigned kinds)
{
	static const uint8_t lengths[] = { 1, 2, 8, 4 };
	uint64_t hits = 0;

	for (unsigned n = 0; n < 4; n++) {
		unsigned kind = cpu->dr7 >> (16 + n * 4) & 3, length = lengths[cpu->dr7 >> (18 + n * 4) & 3];
		uint64_t start = cpu->dr[n] & ~(uint64_t)(length - 1);

		if (!(cpu->dr7 >> n * 2 & 3) || !(kinds >> kind & 1))
			continue;
		if (address - start < length || start - address < size)
			hits |= 1ull << n;
	}
	return hits;
}

void watch_check(struct engine *e, uint64_t gva, unsigned size, bool is_write)
{
	e->cpu->pending_dr6 |= matches(e->cpu, gva, size, is_write ? 1u << 1 | 1u << 3 : 1u << 3);
}

void watch_check_io(struct engine *e, uint16_t port, unsigned size)
{
	if (e->watch && (e->cpu->cr4 & CR4_DE))
		e->cpu->pending_dr6 |= matches(e->cpu, port, size, 1u << 2);
}
