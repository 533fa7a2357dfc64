/*
 * The nano guest: multiboot or PVH, 64-bit, 128 MiB of RAM. Its command line chooses rows (nano.h); it ends through the
 * debug-exit port with 0, or with 1 after a wrong result. Interrupts are off but where a row is about them.
 */
#include "nano_guest.h"

#define MULTIBOOT_LOADER 0x2badb002u
#define PVH_MAGIC 0x336ec578u
#define P_RW_US 7ul
#define PS 0x80ul

extern uint32_t boot_magic, boot_info;
extern volatile uint64_t boot_pml4[512];

volatile uint64_t nano_count, nano_when, nano_user_cycles, nano_user_target;
volatile uint64_t nano_pt_a[512] __attribute__((aligned(4096)));
static volatile uint64_t pt_b[512] __attribute__((aligned(4096)));
static volatile uint64_t pml4_b[512] __attribute__((aligned(4096)));
static volatile uint64_t pdpt[2][512] __attribute__((aligned(4096)));
static volatile uint64_t pd[2][512] __attribute__((aligned(4096)));
static volatile uint64_t pd_large[512] __attribute__((aligned(4096)));
uint64_t nano_cr3_a, nano_cr3_b;

void nano_print(const char *text)
{
	print(text);
}

void nano_window_init(void)
{
	for (unsigned i = 0; i < 512; i++) {
		pml4_b[i] = boot_pml4[i];
		nano_pt_a[i] = i == PAGE_HOLE ? 0 : (FRAMES_A + i * 4096) | P_RW_US;
		pt_b[i] = i == PAGE_HOLE ? 0 : (FRAMES_B + i * 4096) | P_RW_US;
		*(volatile uint64_t *)(FRAMES_A + i * 4096) = TAG_A + i;
		*(volatile uint64_t *)(FRAMES_B + i * 4096) = TAG_B + i;
	}
	for (unsigned i = 0; i < 32; i++)
		pd_large[i] = (FRAMES_2M + i * (2ul << 20)) | P_RW_US | PS;
	pd[0][0] = (uint64_t)nano_pt_a | P_RW_US;
	pd[1][0] = (uint64_t)pt_b | P_RW_US;
	for (unsigned space = 0; space < 2; space++) {
		pdpt[space][0] = (uint64_t)pd[space] | P_RW_US;
		pdpt[space][1] = (uint64_t)pd_large | P_RW_US;
	}
	boot_pml4[1] = (uint64_t)pdpt[0] | P_RW_US;
	pml4_b[1] = (uint64_t)pdpt[1] | P_RW_US;
	nano_cr3_a = (uint64_t)boot_pml4;
	nano_cr3_b = (uint64_t)pml4_b;
	set_cr3(nano_cr3_a);
}

void *nano_walk_area(bool large, unsigned pages, const char **why)
{
	return (void *)(large ? WINDOW_2M : WINDOW_4K);
}

/* Multiboot 1: the flag's bit 2 says that there is a command line at 16. PVH's start information has it at 24. */
static const char *command_line(void)
{
	const uint32_t *info = (const uint32_t *)(uint64_t)boot_info;

	if (boot_magic == MULTIBOOT_LOADER && info[0] & 4)
		return (const char *)(uint64_t)info[4];
	if (boot_magic != MULTIBOOT_LOADER && boot_info && info[0] == PVH_MAGIC && info[6])
		return (const char *)(uint64_t)info[6];
	return "";
}

int guest_main(void)
{
	static const struct nano_row *const tables[] = {
		nano_user_rows, nano_cpu_rows, nano_paging_rows, nano_device_rows, nano_hypercall_rows, NULL,
	};

	nano_window_init();
	return nano_run(command_line(), tables);
}
