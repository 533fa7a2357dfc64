/*
 * The A20 gate: while it is shut, address bit 20 is 0 for everything that the processor does, data, code, strings and page tables,
 * in every mode (IBM PC/AT Technical Reference, 1-43; SDM vol. 3, 22.2.1.2 of earlier editions); `modes` does the same in real mode.
 */
#include "guest.h"
#include "a20.h"

extern char a20_start[], a20_end[];
extern void run_a20(unsigned way);

void *memcpy(void *dst, const void *src, size_t n);
void *memset(void *dst, int c, size_t n);

#define AT(gpa) (*(volatile uint32_t *)(word)(gpa))

static uint32_t result(unsigned r)
{
	return AT(RESULTS + r);
}

static void put_tables(void)
{
	volatile uint64_t *t = (volatile uint64_t *)TABLES;

	memset((void *)TABLES, 0, 3 * 4096);
	t[0] = TABLES + 0x1003;
	t[512] = TABLES + 0x2003;
	for (unsigned i = 0; i < 64; i++)
		t[1024 + i] = i * 0x200000ul | 0x83;
}

static void try(unsigned way)
{
	memcpy((void *)TRAMPOLINE, a20_start, a20_end - a20_start);
	memset((void *)RESULTS, 0, 0x100);
	put_tables();
	AT(PROBE) = 0x10;
	AT(PROBE + 4) = 0x20;
	AT(PROBE + 0x100) = 0x30;
	AT(PROBE + 2 * MIB) = 0x40;
	AT(PROBE + 3 * MIB) = 0x50;
	AT(0x600008) = 0x60;
	AT(0x700008) = 0x70;
	run_a20(way);
	CHECK(result(R_OPEN) == AT(PROBE + MIB) && AT(PROBE + MIB) != 0x10);
	CHECK(result(R_SHUT) == 0x10);
	CHECK_NOT_KVM(result(R_THIRD) == 0x40);
	CHECK(AT(PROBE + 4) == 0x5a5a5a5a);
	CHECK(result(R_CODE) == 0x12345678);
	CHECK(result(R_STRING) == 0x30);
	CHECK(result(R_TABLES) == 0x10);
	CHECK_NOT_KVM(result(R_PAGED) == 0x60);
	CHECK(!(result(R_PORT92) & 2) && !(result(R_OUTPORT) & 2));
	CHECK(result(R_AGAIN) == result(R_OPEN));
	CHECK(result(R_PORT92_AGAIN) & 2);
}

int guest_main(void)
{
	static const char *const ways[] = {"port 92", "output port", "commands"};

	CHECK(inb(0x92) & 2);
	for (unsigned way = 0; way < 3; way++) {
		try(way);
		print("a20: ");
		say(ways[way]);
	}
	return 0;
}
