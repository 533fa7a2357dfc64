/*
 * The register states in which a directly booted kernel begins. Selectors are Linux's (__BOOT_CS 0x10,
 * __BOOT_DS 0x18); multiboot and PVH leave them open. The MTRRs are left as a BIOS would: on, write-back, the
 * VGA range uncached (Linux takes disabled MTRRs as a sign that PAT cannot be used either).
 */
#include <string.h>

#include "loader.h"

#define SELECTOR_CODE 0x10
#define SELECTOR_DATA 0x18

/* Descriptors (SDM vol. 3, 3.4.5), accessed, limit 4 GiB: 32-bit code, 64-bit code, data. */
#define DESCRIPTOR_CODE32 0x00cf9b000000ffffull
#define DESCRIPTOR_CODE64 0x00af9b000000ffffull
#define DESCRIPTOR_DATA 0x00cf93000000ffffull

#define MTRR_ENABLE 0xc00ull /* fixed and variable ranges */
#define MTRR_WB 6ull

static void enter_flat(struct boot_context *c, uint64_t code_descriptor, uint32_t code_ar, uint64_t entry)
{
	const uint64_t gdt[4] = { 0, 0, code_descriptor, DESCRIPTOR_DATA };
	struct cpu_state *s = c->bsp;

	mem_write(c->mem, LOW_GDT, gdt, sizeof(gdt));
	s->gdtr.base = LOW_GDT;
	s->gdtr.limit = sizeof(gdt) - 1;
	s->idtr.base = 0;
	s->idtr.limit = 0;
	for (unsigned i = 0; i < SEG_COUNT; i++)
		s->seg[i] = (struct cpu_segment){
			.selector = SELECTOR_DATA,
			.ar = SEG_AR_G | SEG_AR_DB | SEG_AR_P | SEG_AR_S | 3,
			.limit = 0xffffffff,
		};
	s->seg[SEG_CS].selector = SELECTOR_CODE;
	s->seg[SEG_CS].ar = SEG_AR_G | SEG_AR_P | SEG_AR_S | 0xb | code_ar;
	s->tr = (struct cpu_segment){ .ar = SEG_AR_P | 0xb, .limit = 0x67 };
	s->ldtr = (struct cpu_segment){ .ar = SEG_AR_P | 2 };

	s->cr0 = CR0_PE | CR0_ET;
	s->rflags = FLAG_FIXED;
	memset(s->gpr, 0, sizeof(s->gpr));
	s->gpr[GPR_RSP] = LOW_STACK_TOP;
	s->gpr[GPR_RIP] = entry;
	s->mtrr_def_type = MTRR_ENABLE | MTRR_WB;
	for (unsigned i = 0; i < 11; i++)
		s->mtrr_fixed[i] = i == 2 /* 0xA0000 */ ? 0 : MTRR_WB * 0x0101010101010101ull;
	c->result->entry = entry;
}

void enter_protected(struct boot_context *c, uint64_t entry)
{
	enter_flat(c, DESCRIPTOR_CODE32, SEG_AR_DB, entry);
}

/* Four page directories of 2 MiB pages map the first 4 GiB to themselves. */
static void write_identity_map(struct guest_mem *mem)
{
	const uint64_t flags = PTE_P | PTE_W;
	uint64_t table[512] = { LOW_PAGES + 0x1000 + flags };

	mem_write(mem, LOW_PAGES, table, sizeof(table));
	for (unsigned i = 0; i < 4; i++)
		table[i] = (LOW_PAGES + 0x2000 + i * 0x1000ull) | flags;
	mem_write(mem, LOW_PAGES + 0x1000, table, sizeof(table));
	for (unsigned directory = 0; directory < 4; directory++) {
		for (unsigned i = 0; i < 512; i++)
			table[i] = (uint64_t)(directory * 512 + i) << 21 | flags | PTE_PS;
		mem_write(mem, LOW_PAGES + 0x2000 + directory * 0x1000ull, table, sizeof(table));
	}
}

void enter_long(struct boot_context *c, uint64_t entry)
{
	enter_flat(c, DESCRIPTOR_CODE64, SEG_AR_L, entry);
	write_identity_map(c->mem);
	c->bsp->cr3 = LOW_PAGES;
	c->bsp->cr4 = CR4_PAE;
	c->bsp->efer = EFER_LME | EFER_LMA;
	c->bsp->cr0 |= CR0_PG;
}
