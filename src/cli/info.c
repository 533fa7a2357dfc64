/*
 * `vmm info`: what this host offers, found out by asking it (opening, calling, reading), not by guessing from names.
 */
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vmm/cli.h"
#include "vmm/kvm_host.h"
#include "vmm/stats.h"

#define HWCAP2_FSGSBASE_BIT (1u << 1)

struct host_info {
	char kernel[200], cpu[64];
	struct kvm_host_info kvm;
	bool bmi2, fsgsbase, avx2, invariant_tsc, hypervisor;
	bool memfd, io_uring;
	char userfaultfd[96];
	unsigned long long huge_pages, huge_page_kib, max_map_count, ram_kib;
	char thp[80];
	unsigned long long limit_as, limit_memlock, limit_nofile, limit_nproc; /* ~0: none */
	char backend_reason[300];
};

/* First line of a small file, without the newline; false if it cannot be read. */
static bool line_read(const char *path, char *text, size_t size)
{
	FILE *file = fopen(path, "re");
	bool ok;

	text[0] = 0;
	if (!file)
		return false;
	ok = fgets(text, (int)size, file) != NULL;
	fclose(file);
	text[strcspn(text, "\n")] = 0;
	return ok;
}

static unsigned long long number_read(const char *path)
{
	char text[64];
	unsigned long long value = 0;

	if (line_read(path, text, sizeof(text)))
		sscanf(text, "%llu", &value);
	return value;
}

/* A field of /proc/meminfo. */
static unsigned long long meminfo(const char *name)
{
	FILE *file = fopen("/proc/meminfo", "re");
	unsigned long long value = 0, v;
	char line[128], key[64];

	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "%63[^:]: %llu", key, &v) == 2 && !strcmp(key, name))
			value = v;
	if (file)
		fclose(file);
	return value;
}

static void kvm_detect(struct host_info *info)
{
	kvm_host_probe(&info->kvm);
	kvm_host_reason(&info->kvm, info->backend_reason, sizeof(info->backend_reason));
}

static void cpu_detect(struct host_info *info)
{
	unsigned a, b, c, d, brand[12] = {0};

	if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
		info->avx2 = b >> 5 & 1;
		info->bmi2 = b >> 8 & 1;
	}
	if (__get_cpuid(1, &a, &b, &c, &d))
		info->hypervisor = c >> 31;
	if (__get_cpuid(0x80000007, &a, &b, &c, &d))
		info->invariant_tsc = d >> 8 & 1;
	for (unsigned i = 0; i < 3; i++)
		__get_cpuid(0x80000002 + i, &brand[4 * i], &brand[4 * i + 1], &brand[4 * i + 2], &brand[4 * i + 3]);
	memcpy(info->cpu, brand, sizeof(brand));
	info->cpu[48] = 0;
	/* The kernel says so only if user space may execute them. */
	info->fsgsbase = getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE_BIT;
}

static void calls_detect(struct host_info *info)
{
	struct uffdio_api api = {.api = UFFD_API};
	unsigned char params[256] = {0}; /* struct io_uring_params is 120 bytes */
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);

	if (fd < 0)
		snprintf(info->userfaultfd, sizeof(info->userfaultfd), "refused: %s", strerror(errno));
	else if (ioctl(fd, UFFDIO_API, &api))
		snprintf(info->userfaultfd, sizeof(info->userfaultfd), "no usable API: %s", strerror(errno));
	else
		snprintf(info->userfaultfd, sizeof(info->userfaultfd), "works%s",
			api.features & UFFD_FEATURE_PAGEFAULT_FLAG_WP ? ", with write protection" : "");
	if (fd >= 0)
		close(fd);
	fd = memfd_create("vmm-info", MFD_CLOEXEC);
	info->memfd = fd >= 0;
	if (fd >= 0)
		close(fd);
	fd = (int)syscall(SYS_io_uring_setup, 2, params);
	info->io_uring = fd >= 0;
	if (fd >= 0)
		close(fd);
}

static unsigned long long limit_of(int resource)
{
	struct rlimit limit;

	if (getrlimit(resource, &limit) || limit.rlim_cur == RLIM_INFINITY)
		return ~0ull;
	return limit.rlim_cur;
}

static void host_detect(struct host_info *info)
{
	memset(info, 0, sizeof(*info));
	line_read("/proc/sys/kernel/osrelease", info->kernel, sizeof(info->kernel));
	kvm_detect(info);
	cpu_detect(info);
	calls_detect(info);
	line_read("/sys/kernel/mm/transparent_hugepage/shmem_enabled", info->thp, sizeof(info->thp));
	info->huge_pages = meminfo("HugePages_Free");
	info->huge_page_kib = meminfo("Hugepagesize");
	info->ram_kib = meminfo("MemAvailable");
	info->max_map_count = number_read("/proc/sys/vm/max_map_count");
	info->limit_as = limit_of(RLIMIT_AS);
	info->limit_memlock = limit_of(RLIMIT_MEMLOCK);
	info->limit_nofile = limit_of(RLIMIT_NOFILE);
	info->limit_nproc = limit_of(RLIMIT_NPROC);
}

static const char *yes(bool value)
{
	return value ? "yes" : "no";
}

static const char *limit_text(unsigned long long value, char *text, size_t size)
{
	if (value == ~0ull)
		return "none";
	snprintf(text, size, "%llu", value);
	return text;
}

static void print_text(const struct host_info *info)
{
	char a[32], b[32], c[32], d[32];

	printf("Host\n");
	printf("  kernel               %s\n", info->kernel);
	printf("  processor            %s%s\n", info->cpu, info->hypervisor ? " (itself a virtual machine)" : "");
	printf("  available memory     %llu MiB\n", info->ram_kib / 1024);
	printf("KVM\n");
	printf("  /dev/kvm             %s\n", info->kvm.state);
	printf("  module               %s\n", info->kvm.module[0] ? info->kvm.module : "none that can be seen");
	printf("  memory virtualised   %s\n", info->kvm.memory);
	printf("Processor features\n");
	printf("  BMI2 %s, FSGSBASE %s, AVX2 %s, invariant TSC %s\n", yes(info->bmi2), yes(info->fsgsbase), yes(info->avx2),
		yes(info->invariant_tsc));
	printf("Kernel features\n");
	printf("  memfd                %s\n", yes(info->memfd));
	printf("  io_uring             %s%s\n", yes(info->io_uring), info->io_uring ? "" : " (disks use threads)");
	printf("  userfaultfd          %s\n", info->userfaultfd);
	printf("  huge pages           %llu free of %llu KiB; transparent for shared memory: %s\n", info->huge_pages,
		info->huge_page_kib, info->thp[0] ? info->thp : "unknown");
	printf("Limits\n");
	printf("  vm.max_map_count     %llu\n", info->max_map_count);
	printf("  address space        %s\n", limit_text(info->limit_as, a, sizeof(a)));
	printf("  locked memory        %s\n", limit_text(info->limit_memlock, b, sizeof(b)));
	printf("  open files           %s\n", limit_text(info->limit_nofile, c, sizeof(c)));
	printf("  processes            %s\n", limit_text(info->limit_nproc, d, sizeof(d)));
	printf("--backend=auto chooses %s: %s.\n", info->kvm.able ? "kvm" : "soft", info->backend_reason);
}

static void json_limit(struct json_writer *w, const char *key, unsigned long long value)
{
	json_key(w, key);
	if (value == ~0ull)
		json_null(w);
	else
		json_u64(w, value);
}

static int print_json(const struct host_info *info)
{
	struct json_writer w;

	json_init(&w, stdout);
	json_begin_object(&w);
	json_member_string(&w, "version", VMM_VERSION);
	json_member_string(&w, "kernel", info->kernel);
	json_member_string(&w, "processor", info->cpu);
	json_member_bool(&w, "hypervisor", info->hypervisor);
	json_member_u64(&w, "available_memory", info->ram_kib * 1024);
	json_key(&w, "kvm");
	json_begin_object(&w);
	json_member_bool(&w, "works", info->kvm.works);
	json_member_bool(&w, "able", info->kvm.able);
	json_member_string(&w, "state", info->kvm.state);
	json_member_string(&w, "module", info->kvm.module);
	json_member_string(&w, "memory_virtualisation", info->kvm.memory);
	json_member_string(&w, "missing", info->kvm.missing);
	json_end_object(&w);
	json_key(&w, "cpu");
	json_begin_object(&w);
	json_member_bool(&w, "bmi2", info->bmi2);
	json_member_bool(&w, "fsgsbase", info->fsgsbase);
	json_member_bool(&w, "avx2", info->avx2);
	json_member_bool(&w, "invariant_tsc", info->invariant_tsc);
	json_end_object(&w);
	json_member_bool(&w, "memfd", info->memfd);
	json_member_bool(&w, "io_uring", info->io_uring);
	json_member_string(&w, "userfaultfd", info->userfaultfd);
	json_key(&w, "huge_pages");
	json_begin_object(&w);
	json_member_u64(&w, "free", info->huge_pages);
	json_member_u64(&w, "size", info->huge_page_kib * 1024);
	json_member_string(&w, "transparent_shmem", info->thp);
	json_end_object(&w);
	json_key(&w, "limits");
	json_begin_object(&w);
	json_member_u64(&w, "max_map_count", info->max_map_count);
	json_limit(&w, "address_space", info->limit_as);
	json_limit(&w, "locked_memory", info->limit_memlock);
	json_limit(&w, "open_files", info->limit_nofile);
	json_limit(&w, "processes", info->limit_nproc);
	json_end_object(&w);
	json_key(&w, "auto");
	json_begin_object(&w);
	json_member_string(&w, "backend", info->kvm.able ? "kvm" : "soft");
	if (!info->kvm.able)
		json_member_string(&w, "engine", "interp");
	json_member_string(&w, "reason", info->backend_reason);
	json_end_object(&w);
	json_end_object(&w);
	return json_finish(&w);
}

int cli_info(bool json)
{
	struct host_info info;

	host_detect(&info);
	if (json)
		return print_json(&info) ? CLI_HOST : CLI_OK;
	print_text(&info);
	return fflush(stdout) ? CLI_HOST : CLI_OK;
}
