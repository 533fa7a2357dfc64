/* Counters of the software CPU: one line each, here and nowhere else. */
#ifndef VMM_CPU_STATS_H
#define VMM_CPU_STATS_H

#include <stdint.h>

/* X(name, what it counts) */
#define ENGINE_STATS(X) \
	X(instructions, "guest instructions executed (approximate: counted by block)") \
	X(blocks_decoded, "basic blocks decoded") \
	X(blocks_invalidated, "decoded blocks dropped because their bytes changed") \
	X(block_lookups, "block look-ups that went through the hash table") \
	X(tlb_fills, "software TLB fills (guest page walks)") \
	X(tlb_flushes_all, "software TLB flushes of everything") \
	X(tlb_flushes_nonglobal, "software TLB flushes that kept global pages or other PCIDs") \
	X(tlb_flushes_page, "single-page invalidations") \
	X(faults_page, "#PF injected") \
	X(faults_gp, "#GP injected") \
	X(faults_ud, "#UD injected") \
	X(faults_nm, "#NM injected") \
	X(faults_debug, "#DB injected") \
	X(faults_breakpoint, "#BP injected") \
	X(faults_other, "other exceptions injected") \
	X(interrupts_apic, "interrupts delivered from the local APIC") \
	X(interrupts_extint, "interrupts delivered from the PIC") \
	X(interrupts_nmi, "NMIs delivered") \
	X(interrupts_software, "INT n, INT3, INTO") \
	X(emul_cr_read, "MOV from CR") \
	X(emul_cr_write, "MOV to CR, LMSW, CLTS") \
	X(emul_cr3_write, "MOV to CR3") \
	X(emul_dr, "MOV to or from DR") \
	X(emul_msr_read, "RDMSR") \
	X(emul_msr_write, "WRMSR") \
	X(emul_cpuid, "CPUID") \
	X(emul_rdtsc, "RDTSC, RDTSCP") \
	X(emul_invlpg, "INVLPG, INVPCID") \
	X(emul_hlt, "HLT") \
	X(emul_cli_sti, "CLI, STI") \
	X(emul_pushf_popf, "PUSHF, POPF") \
	X(emul_iret, "IRET") \
	X(emul_syscall, "SYSCALL, SYSENTER") \
	X(emul_sysret, "SYSRET, SYSEXIT") \
	X(emul_swapgs, "SWAPGS") \
	X(emul_descriptor, "LGDT, LIDT, LLDT, LTR, SGDT, SIDT, SLDT, STR, SMSW, LAR, LSL, VERR, VERW") \
	X(emul_pio, "IN, OUT, INS, OUTS elements") \
	X(emul_mmio, "accesses to addresses that are not RAM") \
	X(emul_lapic, "of those: local APIC registers, answered inside") \
	X(emul_native, "x87, MMX, SSE and AVX instructions run natively") \
	X(emul_split_lock, "locked accesses across pages or to MMIO") \
	X(shadow_fills, "shadow: faults of translated code answered by mapping guest memory") \
	X(shadow_refusals, "shadow: faults left to the interpreter") \
	X(shadow_pages, "shadow: guest pages mapped, neighbours included") \
	X(shadow_mmaps, "shadow: mmap and mprotect calls") \
	X(shadow_munmaps, "shadow: munmap calls") \
	X(shadow_evictions, "shadow: slots given up for want of regions, tables or mappings") \
	X(shadow_syncs, "shadow: flushes that compared guest tables") \
	X(shadow_tables, "shadow: guest table pages compared") \
	X(shadow_attach_hits, "shadow: slots found again at a CR3 write") \
	X(shadow_attach_kept, "shadow: of those: not compared, as their PCID's translations were kept") \
	X(shadow_attach_misses, "shadow: slots begun empty") \
	X(answered_reads, "reads of device registers answered without an exit") \
	X(blocks_translated, "translator: blocks translated") \
	X(watches, "translator: looks at what runs where code seems hot") \
	X(regions_translated, "translator: hot blocks translated again, with what follows them") \
	X(code_resets, "translator: times that all code was forgotten") \
	X(code_parts, "translator: times that the oldest part of the code was forgotten") \
	X(code_entries, "translator: entries into translated code") \
	X(found_chain, "translator: branches chained on the way") \
	X(found_target, "translator: jump cache misses repaired on the way") \
	X(far_links, "translator: branches out of their page set to lead on from the page that runs") \
	X(exits_chain, "translator: exits to code that was not chained or not translated") \
	X(exits_interp, "translator: exits for an instruction of the interpreter") \
	X(exits_target, "translator: jump cache misses") \
	X(exits_miss, "translator: operands in another slot than was foreseen") \
	X(exits_soft, "translator: exits for an operand that the software TLB did not have, or could not") \
	X(soft_sites, "translator: instructions given to the software TLB because of their faults") \
	X(soft_ends, "translator: instructions taken from it again") \
	X(spaces_new, "translator: address spaces whose jumps are not known") \
	X(jumps_forgotten, "translator: times that the supervisor's jump cache was emptied") \
	X(exits_vector, "translator: loads of the vector state") \
	X(exits_poll, "translator: exits for an event") \
	X(exits_fill, "translator: faults repaired by a fill") \
	X(exits_fault, "translator: faults given to the interpreter") \
	X(lockstep_blocks, "lock step: runs of translated blocks compared with the interpreter") \
	X(lockstep_skipped, "lock step: runs not compared, as they wrote to too many pages") \
	X(lockstep_races, "lock step: differences that were a device's writes") \
	X(posted_writes, "writes posted without an exit") \
	X(notifies, "queue notifications by eventfd without an exit")

struct engine_stats {
#define X(name, text) uint64_t name;
	ENGINE_STATS(X)
#undef X
	uint64_t exits[16]; /* by enum vcpu_exit_kind */
};

#endif
