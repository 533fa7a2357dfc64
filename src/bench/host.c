/* The host: what it is. How quiet it is, meter.c measures. */
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
