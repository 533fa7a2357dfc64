/*
 * What can be measured. The guests know how: the bare-metal guest nano, and micro, a static Linux binary that is also the
 * native column. Micro lists its own works; those named here only get a group and an explanation. A work that a
 * guest does not know is reported as skipped by it or as failed.
 */
#include <string.h>

#include "bench_internal.h"

const char *const bench_group_names[BENCH_GROUPS] = {"nano", "micro", "macro"};
const char *const bench_unit_names[BENCH_UNITS] = {"cycles", "ns", "s"};
const char *const bench_part_names[BENCH_PARTS] = {"bare metal", "linux", "debian"};
const char *const bench_state_names[BENCH_STATES] = {"empty", "ok", "failed", "skipped"};
const char *const bench_kind_names[BENCH_COLUMN_KINDS] = {"native", "vmm", "qemu"};

#define NANO(id, text) {id, BENCH_NANO, BENCH_CYCLES, BENCH_PART_NANO, text}
#define MICRO(id, text) {id, BENCH_MICRO, BENCH_NS, BENCH_PART_LINUX, text}
#define MACRO(id, part, text) {id, BENCH_MACRO, BENCH_SECONDS, part, text}

const struct bench_work bench_works[] = {
	NANO("syscall", "SYSCALL from ring 3 and SYSRET"),
	NANO("in", "IN from a port that a device answers"),
	NANO("out", "OUT to the serial port"),
	NANO("cr8wr", "MOV to CR8"),
	NANO("callret", "CALL and RET"),
	NANO("pgfault", "page fault on a page that is not present, and IRET"),
	NANO("divzero", "division by zero, and IRET"),
	NANO("ptemod", "write to a page table entry, INVLPG, access"),
	NANO("invlpg", "INVLPG"),
	NANO("cr3", "MOV to CR3 without PCID"),
	NANO("cr3-pcid", "MOV to CR3 with PCID, without a flush"),
	NANO("cpuid", "CPUID"),
	NANO("hypercall", "VMCALL or what stands for it"),
	NANO("rdmsr", "RDMSR"),
	NANO("wrmsr", "WRMSR"),
	NANO("iret", "IRETQ to the same ring"),
	NANO("timer", "local APIC timer interrupt round trip"),
	NANO("ipi", "interrupt to another vcpu and back"),
	NANO("mmio", "read of a device register in memory"),
	NANO("walk4k-cold", "read of a 4 KiB page after a TLB flush"),
	NANO("walk4k-warm", "read of a 4 KiB page that the TLB knows"),
	NANO("walk2m-cold", "read of a 2 MiB page after a TLB flush"),
	NANO("walk2m-warm", "read of a 2 MiB page that the TLB knows"),
	MICRO("getppid", "getppid()"),
	MICRO("gettimeofday", "gettimeofday()"),
	MICRO("page-touch", "page mapped, written and unmapped, one at a time"),
	MICRO("page-touch-run", "first write to each page of a large mapping"),
	MICRO("mmap", "mmap() and munmap()"),
	MICRO("fork-wait", "fork(), exit and wait"),
	MICRO("fork-exec", "fork(), exec, exit and wait"),
	MICRO("pipe-pingpong", "two processes in turn, by two pipes"),
	MICRO("signal", "signal to oneself and its handler"),
	MICRO("futex-wake", "wake-up of a thread on another processor, by futex"),
	MACRO("boot", BENCH_PART_LINUX, "start of the process to the first line of init"),
	MACRO("forkwait", BENCH_PART_LINUX, "forks with wait, one after another"),
	MACRO("compile", BENCH_PART_ROOT, "compilation of a C program by GCC"),
	MACRO("fio", BENCH_PART_ROOT, "64 MiB of random 4 KiB reads by fio"),
	MACRO("iperf3", BENCH_PART_ROOT, "256 MiB over loopback TCP by iperf3"),
};
const unsigned bench_works_count = sizeof(bench_works) / sizeof(bench_works[0]);

int bench_work_find(const struct bench_work *works, unsigned count, const char *id)
{
	for (unsigned i = 0; i < count; i++)
		if (!strcmp(works[i].id, id))
			return (int)i;
	return -1;
}
