/*
 * The host: what it is, and how quiet it is. The noise is measured, not assumed: a fixed chain of dependent
 * multiplications, about a millisecond a block, is timed before the first launch, before each other one and after the last.
 * Results are medians, so the noise is what medians of a few blocks in a row differ by: everything else may differ by
 * that too, whatever is being compared. A median of short blocks does not see that others take the processor in turns,
 * which longer samples suffer from: if others have a share b of the time, a sample takes up to 1 / (1 - b) times as long.
 * So b / (1 - b) is the noise, if it is more.
 */
#include <cpuid.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include "bench_internal.h"

/* The processor's brand string: CPUID leaves 0x80000002 to 0x80000004 (SDM volume 2, CPUID). */
static void cpu_name(char *text, size_t size)
{
	unsigned regs[12] = {0};
	const char *from = (const char *)regs;

	for (unsigned i = 0; i < 3; i++)
		__get_cpuid(0x80000002 + i, &regs[4 * i], &regs[4 * i + 1], &regs[4 * i + 2], &regs[4 * i + 3]);
	while (*from == ' ')
		from++;
	snprintf(text, size, "%.*s", (int)(sizeof(regs) - (size_t)(from - (const char *)regs)), from);
}

static double tsc_frequency(void)
{
	uint64_t t0 = bench_now(), c0 = __rdtsc(), t1, c1;

	do {
		t1 = bench_now();
		c1 = __rdtsc();
	} while (t1 - t0 < 50000000);
	return (double)(c1 - c0) * 1e9 / (double)(t1 - t0);
}

double bench_load_average(void)
{
	double load[1] = {0};

	return getloadavg(load, 1) == 1 ? load[0] : 0;
}

void bench_host_describe(struct bench_host *host)
{
	struct utsname name;
	unsigned a, b, c = 0, d;

	if (!uname(&name))
		snprintf(host->kernel, sizeof(host->kernel), "%.60s %.90s", name.sysname, name.release);
	cpu_name(host->cpu, sizeof(host->cpu));
	if (__get_cpuid(1, &a, &b, &c, &d))
		host->hypervisor = c >> 31;
	host->cpus = (unsigned)sysconf(_SC_NPROCESSORS_ONLN);
	host->memory = (uint64_t)sysconf(_SC_AVPHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
	host->tsc_hz = tsc_frequency();
	host->load_start = bench_load_average();
}

#define BLOCK_STEPS 1000000

static double cpu_time(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

void bench_meter_run(struct bench_meter *meter, unsigned count)
{
	uint64_t x = 1, began = bench_now();
	double cpu = cpu_time();

	for (unsigned i = 0; i < count; i++) {
		uint64_t start = bench_now();

		for (unsigned step = 0; step < BLOCK_STEPS; step++) {
			x = x * 6364136223846793005ull + 1442695040888963407ull;
			__asm__ volatile("" : "+r"(x));
		}
		if (meter->count < sizeof(meter->blocks) / sizeof(meter->blocks[0]))
			meter->blocks[meter->count++] = (double)(bench_now() - start);
	}
	meter->wall_ns += (double)(bench_now() - began);
	meter->cpu_ns += cpu_time() - cpu;
}

void bench_meter_read(const struct bench_meter *meter, struct bench_noise *noise)
{
	double medians[sizeof(meter->blocks) / sizeof(meter->blocks[0]) / BENCH_BATCH];
	unsigned batches = meter->count / BENCH_BATCH;

	for (unsigned i = 0; i < batches; i++)
		medians[i] = bench_median(meter->blocks + i * BENCH_BATCH, BENCH_BATCH);
	noise->blocks = meter->count;
	noise->median_ns = bench_median(meter->blocks, meter->count);
	noise->worst_ns = bench_quantile(meter->blocks, meter->count, 1);
	noise->low_ns = bench_quantile(medians, batches, 0.1);
	noise->high_ns = bench_quantile(medians, batches, 0.9);
	noise->busy = meter->wall_ns > 0 ? fmin(fmax(0, 1 - meter->cpu_ns / meter->wall_ns), 0.99) : 0;
	noise->relative = noise->median_ns > 0 ? (noise->high_ns - noise->low_ns) / noise->median_ns : 0;
	noise->relative = fmax(noise->relative, noise->busy / (1 - noise->busy));
}
