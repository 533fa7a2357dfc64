/*
 * The formats of the guest's tables. The shadow's records have 512 entries of the 4-level format (SDM vol. 3, table 4-20); what the guest
 * has without 4-level paging is shown as such:
 *
 *   no paging   | PDPT: GiB n → GiB n, large, everything allowed                                    |
 *   PAE         | PDPT: registers | PD, PT as they are                                              |
 *   32-bit      | PDPT: quarters of the page directory | PD: each entry twice | PT: half of a table |
 *
 *   a page directory entry of 32-bit paging, with PS (4 MiB, SDM vol. 3, table 4-4):
 *   | 31..22 frame 31:22 | 21 0 | 20..13 frame 39:32 | 12 PAT | 11..9 | G PS D A PCD PWT U W P |
 *   without it: | 31..12 page table | … | A PCD PWT U W P |; so is a page table entry, with PAT in bit 7, D and G
 */
#include "engine/shadow_internal.h"

#define ALLOWED (PTE_P | PTE_W | PTE_U | PTE_A)
#define PD32_RESERVED (1u << 21)

static uint64_t directory_entry(const struct engine *e, uint64_t offset, unsigned quarter, unsigned i)
{
	const uint32_t *at = (const uint32_t *)(e->ram + offset) + quarter * 256 + i / 2;
	uint32_t v = __atomic_load_n(at, __ATOMIC_ACQUIRE);

	if (!(v & PTE_PS))
		return v;
	if (!(e->cpu->cr4 & CR4_PSE))
		return v & ~(uint32_t)PTE_PS;
	if (v & PD32_RESERVED)
		return 0;
	return (v & 0xffc01fffu) | (uint64_t)(v >> 13 & 0xff) << 32 | (uint64_t)(i & 1) << 21;
}

uint64_t table_entry(const struct engine *e, unsigned layout, uint64_t offset, unsigned i)
{
	const uint32_t *half;

	if (engine_likely(layout == LAYOUT_WIDE))
		return entry_load(e, offset + i * 8);
	if (layout >= LAYOUT_PT32) {
		half = (const uint32_t *)(e->ram + offset) + (layout - LAYOUT_PT32) * 512;
		/* Bit 7 is PAT; in a table's entry nobody looks at it. */
		return __atomic_load_n(&half[i], __ATOMIC_ACQUIRE) & ~(uint32_t)PTE_PS;
	}
	if (layout >= LAYOUT_PD32)
		return directory_entry(e, offset, layout - LAYOUT_PD32, i);
	if (i > 3)
		return 0;
	if (layout == LAYOUT_FLAT)
		return (uint64_t)i << 30 | ALLOWED | PTE_PS | PTE_D;
	if (layout == LAYOUT_TOP32)
		return (e->cpu->cr3 & 0xfffff000u) | ALLOWED;
	return e->cpu->pdpte[i] & PTE_P ? (e->cpu->pdpte[i] & PTE_FRAME) | ALLOWED : 0;
}
