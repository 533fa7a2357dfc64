/*
 * Where things are. The guests are looked for beside the program (a build folder: guests/, bench/), then where
 * `cmake --install` puts them (../lib/vmm/bench), or in the one folder that --guests names. The kernel is the one given,
 * or one that scripts/fetch-kernels has put in the cache, or one of the host's own in /boot.
 */
#include <errno.h>
#include <glob.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench_internal.h"
#include "vmm/error.h"

/* path becomes the first of the folders' name that can be read (and run, if program); empty if there is none. */
static void find_in(char *path, size_t size, const char *const *folders, const char *name, bool program)
{
	for (; *folders; folders++) {
		int n = snprintf(path, size, "%s/%s", *folders, name);

		if (n > 0 && (size_t)n < size && !access(path, program ? R_OK | X_OK : R_OK))
			return;
	}
	path[0] = 0;
}

/* A path that somebody gave: what is launched may have another working directory. A symbolic link stays, as its folder is asked for others. */
static void take_path(const char *given, char *path, size_t size)
{
	char here[512];

	if (given[0] == '/' || !getcwd(here, sizeof(here)))
		snprintf(path, size, "%s", given);
	else
		snprintf(path, size, "%s/%s", here, given);
}

static void guests_find(const struct bench_config *config, struct bench_paths *paths)
{
	char self[sizeof(paths->self)], near_guests[600], near_bench[600], installed[600], given[600];
	const char *folders[4] = {NULL};
	char *slash;

	snprintf(self, sizeof(self), "%s", paths->self);
	slash = strrchr(self, '/');
	if (slash)
		*slash = 0;
	snprintf(near_guests, sizeof(near_guests), "%s/guests", self);
	snprintf(near_bench, sizeof(near_bench), "%s/bench", self);
	snprintf(installed, sizeof(installed), "%s/../lib/vmm/bench", self);
	if (config->guests) {
		take_path(config->guests, given, sizeof(given));
		folders[0] = given;
	} else {
		folders[0] = near_bench;
		folders[1] = near_guests;
		folders[2] = installed;
	}
	find_in(paths->nano, sizeof(paths->nano), folders, "nano.elf", false);
	find_in(paths->nano_native, sizeof(paths->nano_native), folders, "nano", true);
	find_in(paths->micro, sizeof(paths->micro), folders, "micro", true);
}

static void qemu_find(struct bench_paths *paths)
{
	char *copy = strdup(getenv("PATH") ? getenv("PATH") : "/usr/bin:/bin"), *rest = NULL;

	for (char *folder = copy ? strtok_r(copy, ":", &rest) : NULL; folder && !paths->qemu[0];
		folder = strtok_r(NULL, ":", &rest))
		find_in(paths->qemu, sizeof(paths->qemu), (const char *const[]){folder, NULL},
			"qemu-system-x86_64", true);
	free(copy);
}

/* The first readable file of the pattern. */
static bool glob_first(const char *pattern, char *path, size_t size)
{
	glob_t found;
	bool done = false;

	if (glob(pattern, 0, NULL, &found))
		return false;
	for (size_t i = 0; i < found.gl_pathc && !done; i++) {
		done = strlen(found.gl_pathv[i]) < size && !access(found.gl_pathv[i], R_OK);
		if (done)
			snprintf(path, size, "%s", found.gl_pathv[i]);
	}
	globfree(&found);
	return done;
}

static void cache_folder(char *text, size_t size)
{
	const char *own = getenv("VMM_CACHE"), *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");

	if (own)
		snprintf(text, size, "%.300s", own);
	else if (xdg)
		snprintf(text, size, "%.300s/vmm", xdg);
	else
		snprintf(text, size, "%.300s/.cache/vmm", home ? home : "");
}

static void kernel_find(const struct bench_config *config, struct bench_paths *paths)
{
	char cache[320], pattern[400];
	size_t n;

	cache_folder(cache, sizeof(cache));
	if (config->kernel)
		take_path(config->kernel, paths->kernel, sizeof(paths->kernel));
	else {
		snprintf(pattern, sizeof(pattern), "%s/kernels/linux-image-6.1.*/boot/vmlinuz-*", cache);
		if (!glob_first(pattern, paths->kernel, sizeof(paths->kernel))) {
			snprintf(pattern, sizeof(pattern), "%s/kernels/*/boot/vmlinuz-*", cache);
			if (!glob_first(pattern, paths->kernel, sizeof(paths->kernel)))
				glob_first("/boot/vmlinuz-*", paths->kernel, sizeof(paths->kernel));
		}
	}
	if (config->root)
		take_path(config->root, paths->root, sizeof(paths->root));
	else {
		snprintf(pattern, sizeof(pattern), "%s/bench/root.img", cache);
		glob_first(pattern, paths->root, sizeof(paths->root));
	}
	/* bench/make-root writes NAME.img and NAME.initrd. */
	n = strlen(paths->root);
	if (n > 4 && !strcmp(paths->root + n - 4, ".img"))
		snprintf(paths->root_initrd, sizeof(paths->root_initrd), "%.*s.initrd", (int)(n - 4),
			paths->root);
}

/* What Linux guests need to read a disk beside the work: the root image, which has fio, and micro on a disk. */
static int make_busy(const struct bench_config *config, struct bench_paths *paths, struct error *err)
{
	int rc;

	if (!paths->root[0])
		return error_set(err, -ENOENT, "--busy-io needs the root image, which has fio: run bench/make-root.");
	if (paths->micro[0]) {
		snprintf(paths->disk, sizeof(paths->disk), "%s/disk", paths->dir);
		rc = bench_disk_write(paths->disk, paths->micro);
		if (rc)
			return error_set(err, rc, "%.60s cannot be written: %s.", paths->disk, strerror(-rc));
	}
	paths->busy_io = config->busy_io;
	return 0;
}

int bench_paths_find(const struct bench_config *config, struct bench_paths *paths, struct error *err)
{
	ssize_t n = readlink("/proc/self/exe", paths->self, sizeof(paths->self) - 1);
	const char *tmp = getenv("TMPDIR");
	int rc;

	if (n <= 0)
		return error_set(err, -EIO, "/proc is not mounted, so vmm cannot find itself.");
	guests_find(config, paths);
	qemu_find(paths);
	kernel_find(config, paths);
	if (config->kernel && access(paths->kernel, R_OK))
		return error_set(err, -errno, "%.300s cannot be read: %s.", config->kernel, strerror(errno));
	if (config->root && access(paths->root, R_OK))
		return error_set(err, -errno, "%.300s cannot be read: %s.", config->root, strerror(errno));
	snprintf(paths->dir, sizeof(paths->dir), "%.20s/vmm-bench-XXXXXX",
		tmp && strlen(tmp) <= 20 ? tmp : "/tmp");
	if (!mkdtemp(paths->dir)) {
		rc = -errno;
		paths->dir[0] = 0;
		return error_set(err, rc, "No temporary folder can be made: %s.", strerror(-rc));
	}
	snprintf(paths->stats, sizeof(paths->stats), "%s/stats.json", paths->dir);
	snprintf(paths->initrd, sizeof(paths->initrd), "%s/initrd", paths->dir);
	if (paths->micro[0]) {
		rc = bench_initrd_write(paths->initrd, paths->micro);
		if (rc)
			return error_set(err, rc, "The initial RAM disk with %.200s cannot be written: %s.",
				paths->micro, strerror(-rc));
	}
	return config->busy_io ? make_busy(config, paths, err) : 0;
}

void bench_paths_drop(const struct bench_paths *paths)
{
	if (!paths->dir[0])
		return;
	unlink(paths->stats);
	unlink(paths->initrd);
	if (paths->disk[0])
		unlink(paths->disk);
	rmdir(paths->dir);
}

bool bench_listed(const char *list, const char *id)
{
	size_t length = strlen(id);

	if (!list)
		return true;
	for (const char *word = list; *word;) {
		size_t n = strcspn(word, ",");

		if (n == length && !memcmp(word, id, n))
			return true;
		word += n + (word[n] == ',');
	}
	return false;
}

static void work_add(
	const struct bench_config *config, struct bench_result *result, const struct bench_work *work)
{
	unsigned groups = config->groups ? config->groups : BENCH_GROUP_ALL;

	if (!(groups & 1u << work->group) || !bench_listed(config->only, work->id) ||
		(config->pace == BENCH_QUICK && work->heavy && !config->only) ||
		result->work_count == BENCH_WORK_MAX ||
		bench_work_find(result->works, result->work_count, work->id) >= 0)
		return;
	result->works[result->work_count++] = *work;
}

/* What micro offers, in its own order. */
static void micro_list(
	const struct bench_config *config, const struct bench_paths *paths, struct bench_result *result)
{
	char *text = bench_output_of((const char *const[]){paths->micro, "--list", NULL}), *rest = NULL;

	if (!text)
		bench_note(result, "%.200s --list does not answer, so there are no micro works.", paths->micro);
	for (char *name = text ? strtok_r(text, "\n", &rest) : NULL; name; name = strtok_r(NULL, "\n", &rest)) {
		struct bench_work work = {.group = BENCH_MICRO, .unit = BENCH_NS, .part = BENCH_PART_LINUX};
		int known = bench_work_find(bench_works, bench_works_count, name);

		if (strlen(name) >= sizeof(work.id) ||
			strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != strlen(name))
			continue;
		snprintf(work.id, sizeof(work.id), "%s", name);
		if (!strncmp(name, "k-", 2))
			snprintf(work.text, sizeof(work.text), "compute kernel");
		work_add(config, result, known >= 0 ? &bench_works[known] : &work);
	}
	free(text);
}

/* Every word of --only must have chosen something. */
static int only_check(const struct bench_config *config, const struct bench_result *result, struct error *err)
{
	for (const char *word = config->only; word && *word;) {
		char id[BENCH_NAME_MAX];
		size_t n = strcspn(word, ",");

		snprintf(id, sizeof(id), "%.*s", (int)(n < sizeof(id) ? n : sizeof(id) - 1), word);
		if (n >= sizeof(id) || bench_work_find(result->works, result->work_count, id) < 0)
			return error_set(err, -EINVAL,
				"--only names \"%s\", which cannot be measured here; see vmm bench --list.",
				id);
		word += n + (word[n] == ',');
	}
	return 0;
}

int bench_works_choose(const struct bench_config *config, const struct bench_paths *paths,
	struct bench_result *result, struct error *err)
{
	for (unsigned i = 0; i < bench_works_count; i++)
		if (bench_part_bare(bench_works[i].part) && (paths->nano[0] || paths->nano_native[0]))
			work_add(config, result, &bench_works[i]);
	if (!paths->nano[0])
		bench_note(result,
			"The bare-metal guest nano.elf is not there, so nano is not measured in guests.");
	if (paths->micro[0])
		micro_list(config, paths, result);
	else
		bench_note(result, "The program micro is not there, so micro and macro are not measured.");
	if (paths->kernel[0] && paths->micro[0])
		work_add(config, result, &bench_works[bench_work_find(bench_works, bench_works_count, "boot")]);
	else if (!paths->kernel[0])
		bench_note(result, "There is no Linux kernel for the guests; run scripts/fetch-kernels or "
				   "give --kernel.");
	if (config->pace == BENCH_FULL && paths->root[0] && paths->kernel[0]) {
		for (unsigned i = 0; i < bench_works_count; i++)
			if (bench_works[i].part == BENCH_PART_ROOT)
				work_add(config, result, &bench_works[i]);
	} else if (config->pace == BENCH_FULL) {
		bench_note(result,
			"There is no root image for compile, fio and iperf3; bench/make-root makes one.");
	}
	return only_check(config, result, err);
}
