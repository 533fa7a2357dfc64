/*
 * What can be measured. The guests know how: the bare-metal guest nano, and micro, a static Linux binary that is also the
 * native column. Micro lists its own works; those named here only get a group and an explanation. A work that a
 * guest does not know is reported as skipped by it or as failed.
 */
#include <string.h>

#include "bench_internal.h"

const char *const bench_group_names[BENCH_GROUPS] = {"nano", "micro", "macro"};
const char *const bench_unit_names[BENCH_UNITS] = {"cycles", "ns", "s"};
const char *const bench_part_names[BENCH_PARTS] = {
	"bare metal", "two vcpus", "linux", "linux with two vcpus", "debian"};
const char *const bench_state_names[BENCH_STATES] = {"empty", "ok", "failed", "skipped"};
const char *const bench_kind_names[BENCH_COLUMN_KINDS] = {"native", "vmm", "qemu"};

#define NANO(id, text) {id, BENCH_NANO, BENCH_CYCLES, BENCH_PART_NANO, text, false, false}
#define SMP(id, text) {id, BENCH_NANO, BENCH_CYCLES, BENCH_PART_SMP, text, false, false}
#define RING3(id, text) {id, BENCH_NANO, BENCH_CYCLES, BENCH_PART_NANO, text, true, false}
#define MICRO(id, text) {id, BENCH_MICRO, BENCH_NS, BENCH_PART_LINUX, text, true, false}
#define HEAVY(id, text) {id, BENCH_MICRO, BENCH_NS, BENCH_PART_LINUX, text, true, true}
#define MACRO(id, part, text) {id, BENCH_MACRO, BENCH_SECONDS, part, text, true, false}

const struct bench_work bench_works[] = {
	RING3("callret", "near call and return"),
	RING3("rdtsc", "RDTSC"),
	RING3("cpuid", "CPUID"),
	RING3("walk-4k-warm", "load of a chain over 480 pages of 4 KiB"),
	RING3("walk-2m-warm", "load of a chain over 24 pages of 2 MiB"),
	RING3("syscall", "SYSCALL from ring 3 and SYSRET; natively getppid"),
	NANO("pgfault", "page fault in ring 3 on a page that is not there, and IRET"),
	NANO("divzero", "division by zero, and IRET"),
	NANO("iret", "IRETQ to the same ring"),
	NANO("cr8wr", "MOV to CR8"),
	NANO("rdmsr", "RDMSR of APIC_BASE"),
	NANO("wrmsr", "WRMSR of KERNEL_GS_BASE"),
	NANO("ptemod", "write to an entry of a page table in use"),
	NANO("ptemod-invlpg", "the same, then INVLPG"),
	NANO("ptemod-use", "the same, then a load through it"),
	NANO("invlpg", "INVLPG of a page in use"),
	NANO("invlpg-use", "INVLPG and a load"),
	NANO("cr3", "MOV to CR3, to another space"),
	NANO("cr3-use", "the same, then loads from eight pages"),
	NANO("cr3-pcid", "MOV to CR3 with PCID, without a flush"),
	NANO("cr3-pcid-use", "the same, then loads from eight pages"),
	NANO("walk-4k-cold", "load from a 4 KiB page after a TLB flush"),
	NANO("walk-2m-cold", "load from a 2 MiB page after a TLB flush"),
	NANO("in", "IN from port 80h"),
	NANO("in-pit", "IN of the timer's counter"),
	NANO("out", "OUT to port 80h"),
	NANO("out-serial", "OUT to the serial port, looped back"),
	NANO("mmio-hpet", "read of the HPET's counter"),
	NANO("mmio-ioapic", "read of the I/O APIC"),
	NANO("lapic-eoi", "EOI of the local APIC"),
	NANO("timer", "local APIC timer interrupt round trip"),
	NANO("timer-wake", "lateness of a timer interrupt that ends HLT"),
	SMP("ipi", "interrupt to a spinning vcpu and back"),
	SMP("ipi-wake", "interrupt to a halted vcpu and back"),
	NANO("hypercall", "VMCALL or VMMCALL"),
	MICRO("getppid", "getppid()"),
	MICRO("gettimeofday", "gettimeofday()"),
	MICRO("page-touch", "first write to each page of a large mapping, and its unmapping"),
	MICRO("page-touch-one", "page mapped, written and unmapped, one at a time"),
	MICRO("mmap", "mmap() and munmap()"),
	MICRO("fork-wait", "fork(), exit and wait"),
	MICRO("fork-exec", "fork(), exec, exit and wait"),
	MICRO("pipe-pingpong", "two processes in turn, by two pipes"),
	MICRO("signal", "signal to oneself and its handler"),
	{"futex-wake", BENCH_MICRO, BENCH_NS, BENCH_PART_LINUX_SMP,
		"wake-up of a thread on another processor, by futex", true, false},
	MICRO("latency-16k", "dependent load, 16 KiB working set"),
	HEAVY("latency-64k", "dependent load, 64 KiB working set"),
	MICRO("latency-256k", "dependent load, 256 KiB working set"),
	HEAVY("latency-1m", "dependent load, 1 MiB working set"),
	HEAVY("latency-4m", "dependent load, 4 MiB working set"),
	HEAVY("latency-16m", "dependent load, 16 MiB working set"),
	HEAVY("latency-64m", "dependent load, 64 MiB working set"),
	HEAVY("memcpy-sse", "copy of a large block with SSE"),
	HEAVY("memcpy-avx2", "copy of a large block with AVX2"),
	HEAVY("memcpy-rep", "copy of a large block with REP MOVSB"),
	MACRO("boot", BENCH_PART_LINUX, "start of the process to the first line of init"),
	MACRO("forkwait", BENCH_PART_LINUX, "forks with wait, one after another"),
	MACRO("compile", BENCH_PART_ROOT, "compilation of a C program of 86,000 lines by GCC"),
	MACRO("mix", BENCH_PART_ROOT, "python3, perl, xz and git on 100 files"),
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

enum bench_kind bench_work_kind(const char *id)
{
	static const char *const user[] = {"callret", "rdtsc", "walk-4k-warm", "walk-2m-warm", "gettimeofday"};
	static const char *const device[] = {"cpuid", "in", "in-pit", "out", "out-serial", "mmio-hpet", "mmio-ioapic",
		"lapic-eoi", "timer", "timer-wake", "ipi", "ipi-wake", "hypercall", "fio"};
	static const char *const prefixes[] = {"k-", "latency-", "memcpy-"};

	for (unsigned i = 0; i < sizeof(user) / sizeof(user[0]); i++)
		if (!strcmp(user[i], id))
			return BENCH_USER;
	for (unsigned i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]); i++)
		if (!strncmp(prefixes[i], id, strlen(prefixes[i])))
			return BENCH_USER;
	for (unsigned i = 0; i < sizeof(device) / sizeof(device[0]); i++)
		if (!strcmp(device[i], id))
			return BENCH_DEVICE;
	return BENCH_SYSTEM;
}
