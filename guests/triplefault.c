/* A fault that cannot be delivered, nor the double fault after it: the processor shuts down (SDM vol. 3, 6.15, #DF). */
#include "guest.h"

int guest_main(void)
{
	struct __attribute__((packed)) { uint16_t limit; word base; } empty = {0, 0};

	say("triplefault: no IDT from here");
	asm volatile("lidt %0; ud2" : : "m"(empty));
	return 1;
}
