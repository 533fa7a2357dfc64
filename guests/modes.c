/* The processor's modes: checks what the trip in modes_asm.S saw. Made twice, since the second finds stale state of the first. */
#include "guest.h"
#include "modes.h"

extern char trampoline_start[], trampoline_end[];
extern volatile uint32_t pd32[1024];
extern volatile uint64_t pd_pae[512], pdpt_pae[4];
extern void run_modes(void);

void *memcpy(void *dst, const void *src, size_t n);
void *memset(void *dst, int c, size_t n);

static uint32_t result(unsigned r)
{
	return *(volatile uint32_t *)(word)(RESULTS + r);
}

static void trip(void)
{
	memcpy((void *)TRAMPOLINE, trampoline_start, trampoline_end - trampoline_start);
	memset((void *)RESULTS, 0, 0x100);
	*(volatile uint32_t *)0x600010 = 0;
	for (unsigned i = 0; i < 32; i++)
		pd32[i] = (i == 8 ? 1 : i) * 0x400000 | 0x83;
	for (unsigned i = 0; i < 512; i++)
		pd_pae[i] = i * 0x200000ul | 0x83;
	pdpt_pae[0] = pdpt_pae[1] = (word)pd_pae | 1;
	run_modes();
}

static void check(void)
{
	volatile word bottom = 0; /* the compiler knows better than to read there */

	CHECK(result(R_COMPAT_INC) == 6);
	CHECK(result(R_COMPAT_WRAP) == 0x77);
	CHECK((result(R_EFER) & 0x500) == 0x100); /* LMA goes with paging */
	CHECK(result(R_LEGACY) == 0x1234);
	CHECK(result(R_SP16) == 0x6ffe);
	CHECK(!(result(R_REAL_CR0) & 0x80000001));
	CHECK(result(R_UNREAL) == 0x600dcafe);
	CHECK(result(R_INT_SP) == 0x7000 - 6);
	CHECK(result(R_IRET_IF) & EFLAGS_IF);
	CHECK(result(R_DE_IP) == result(R_IP_EXPECT_DE));
	CHECK(result(R_UD_IP) == result(R_IP_EXPECT_UD));
	CHECK_REAL(result(R_GP_IP) == result(R_IP_EXPECT_GP)); /* TCG checks no limit here */
	CHECK_REAL(result(R_GP_SP) == 0x7000 - 6);
	CHECK(result(R_SEGMENT) == 6);
	CHECK(result(R_HMA) == *(volatile uint16_t *)0x100000);
	CHECK(result(R_HMA_SHUT) == *(volatile uint16_t *)bottom && result(R_HMA_SHUT) != result(R_HMA));
	CHECK(result(R_HMA_AGAIN) == result(R_HMA));
	CHECK(result(R_FAR_CS) == TRAMPOLINE >> 4);
	CHECK(result(R_SP_WRAP) == 0xfffe4321);
	CHECK(result(R_LOOP) == 3 && result(R_LOOP_ECX) == 0x10000);
	CHECK(result(R_PUSHF16) == 2);
	CHECK(result(R_PAGING32) == 0xabcd);
	CHECK(result(R_PAGING_PAE) == 0xbcde);
	CHECK((result(R_BACK) & 0x500) == 0x500);
}

int guest_main(void)
{
	trip();
	check();
	say("modes: first trip ok");
	trip();
	check();
	say("modes: second trip ok");
	return 0;
}
