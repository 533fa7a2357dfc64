/*
 * Selects and times the workloads: micro [bench=NAME,…|all] [repeat=N] [scale=DECIMAL] [warm=MS] [--list]
 * `bench` also takes the groups system, memory and kernels. As process 1 it first mounts what the workloads need and
 * at the end powers the machine off; the kernel hands it what stands behind "--" on its command line.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "micro.h"

#define SCALE_ONE 1000000u
#define REPEAT_MAX 1000u
#define WARM_MAX 60000u

struct options {
	const char *bench;
	unsigned repeat;
	uint64_t scale; /* millionths */
	unsigned warm; /* milliseconds */
};

static const struct group {
	const char *name;
	const struct workload *rows;
} groups[] = {
	{"system", system_workloads}, {"memory", memory_workloads}, {"kernels", pointer_kernels},
	{"kernels", number_kernels}, {"kernels", byte_kernels}, {"kernels", branch_kernels}, {"kernels", data_kernels},
};
#define GROUP_COUNT (sizeof(groups) / sizeof(groups[0]))

static void finish(int status) __attribute__((noreturn));
static void finish(int status)
{
	fflush(stdout);
	if (getpid() == 1) {
		sync();
		reboot(RB_POWER_OFF);
	}
	exit(status);
}

void micro_fail(const char *what)
{
	printf("BENCH-FAIL %s\nBENCH-END failed\n", what);
	finish(1);
}

void *micro_alloc(size_t size)
{
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		micro_fail("no memory");
	madvise(memory, size, MADV_NOHUGEPAGE);
	for (size_t i = 0; i < size; i += 4096)
		*(volatile char *)(memory + i) = 0;
	return memory;
}

void micro_free(void *memory, size_t size)
{
	munmap(memory, size);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t sample(const struct workload *w, uint64_t n, uint64_t *check)
{
	void *ctx = w->open ? w->open(n) : NULL;
	uint64_t start = now_ns(), ns;

	*check = w->run(ctx, n);
	ns = now_ns() - start;
	if (w->check)
		*check = w->check(ctx);
	if (w->close)
		w->close(ctx);
	return ns;
}

/*
 * What runs for the first time costs more: pages are mapped, a translator translates, and again what it finds to be used much.
 * Short samples, until that is past.
 */
static void warm_up(const struct workload *w, uint64_t n, unsigned ms)
{
	uint64_t start = now_ns(), check;

	while (now_ns() - start < ms * UINT64_C(1000000))
		sample(w, n / 20 ? n / 20 : 1, &check);
}

static void run(const struct workload *w, const struct options *o)
{
	uint64_t n = w->n * o->scale / SCALE_ONE, check;
	const char *why = w->missing ? w->missing() : NULL;

	if (why) {
		printf("BENCH-SKIP name=%s why=%s\n", w->name, why);
		return;
	}
	if (!n)
		n = 1;
	warm_up(w, n, o->warm);
	for (unsigned i = 0; i < (w->total ? 1 : o->repeat); i++) {
		uint64_t ns = sample(w, n, &check);

		if (w->total)
			printf("BENCH name=%s unit=s n=%" PRIu64 " value=%.6f check=%016" PRIx64 "\n", w->name, n,
				(double)ns / 1e9, check);
		else
			printf("BENCH name=%s unit=ns n=%" PRIu64 " value=%.3f check=%016" PRIx64 "\n", w->name, n,
				(double)ns / (double)n, check);
		fflush(stdout);
	}
}

/* The reader of our output compares this clock with its own: one that is slow would make all else look fast. */
static void print_clock(void)
{
	printf("BENCH-CLOCK unit=ns value=%" PRIu64 "\n", now_ns());
	fflush(stdout);
}

/* Is `name` one of the comma-separated words? */
static bool listed(const char *list, const char *name)
{
	size_t length = strlen(name);

	for (const char *word = list; word; word = strchr(word, ',') ? strchr(word, ',') + 1 : NULL)
		if (strcspn(word, ",") == length && !memcmp(word, name, length))
			return true;
	return false;
}

static bool known(const char *name)
{
	if (!strcmp(name, "all"))
		return true;
	for (size_t i = 0; i < GROUP_COUNT; i++) {
		if (!strcmp(name, groups[i].name))
			return true;
		for (const struct workload *w = groups[i].rows; w->name; w++)
			if (!strcmp(name, w->name))
				return true;
	}
	return false;
}

static void parse(int argc, char **argv, struct options *o)
{
	for (int i = 1; i < argc; i++) {
		const char *value = strchr(argv[i], '=');

		value = value ? value + 1 : "";
		if (!strncmp(argv[i], "bench=", 6)) {
			o->bench = value;
		} else if (!strncmp(argv[i], "repeat=", 7)) {
			o->repeat = (unsigned)strtoul(value, NULL, 10);
			if (o->repeat < 1 || o->repeat > REPEAT_MAX)
				micro_fail("repeat= wants 1 to 1000");
		} else if (!strncmp(argv[i], "scale=", 6)) {
			double scale = strtod(value, NULL);

			if (!(scale >= 1e-6 && scale <= 1000))
				micro_fail("scale= wants a number from 0.000001 to 1000");
			o->scale = (uint64_t)(scale * SCALE_ONE + 0.5);
		} else if (!strncmp(argv[i], "warm=", 5)) {
			o->warm = (unsigned)strtoul(value, NULL, 10);
			if (o->warm > WARM_MAX)
				micro_fail("warm= wants 0 to 60000 milliseconds");
		} else if (!strcmp(argv[i], "--list")) {
			for (size_t g = 0; g < GROUP_COUNT; g++)
				for (const struct workload *w = groups[g].rows; w->name; w++)
					puts(w->name);
			finish(0);
		} else if (getpid() != 1) {
			micro_fail("usage: micro [bench=NAME,...] [repeat=N] [scale=X] [warm=MS] [--list]");
		}
	}
}

/* Process 1 has no files open if the archive holds no /dev/console. */
static void become_init(void)
{
	static const char *const places[][2] = {
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"},
	};
	int fd;

	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		mkdir(places[i][1], 0755);
		mount(places[i][0], places[i][1], places[i][0], 0, NULL);
	}
	fd = open("/dev/console", O_RDWR);
	for (int i = 0; fd >= 0 && i < 3; i++)
		dup2(fd, i);
}

int main(int argc, char **argv)
{
	struct options o = {.bench = "all", .repeat = 5, .scale = SCALE_ONE, .warm = 50};
	char word[64];

	if (argc == 2 && !strcmp(argv[1], "--exit"))
		return 0;
	if (getpid() == 1)
		become_init();
	parse(argc, argv, &o);
	puts("BENCH-BEGIN");
	print_clock();
	for (const char *at = o.bench; *at;) {
		size_t length = strcspn(at, ",");

		snprintf(word, sizeof(word), "%.*s", (int)length, at);
		if (!known(word))
			printf("BENCH-SKIP name=%s why=there is no such workload\n", word);
		at += length + (at[length] == ',');
	}
	for (size_t g = 0; g < GROUP_COUNT; g++)
		for (const struct workload *w = groups[g].rows; w->name; w++)
			if (listed(o.bench, "all") || listed(o.bench, groups[g].name) || listed(o.bench, w->name)) {
				run(w, &o);
				print_clock();
			}
	printf("BENCH-END ok\n");
	finish(0);
}
