/* The commands: vmm bench, vmm bench compare, vmm bench show. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "bench_internal.h"
#include "vmm/error.h"
#include "vmm_commit.h"

static const char *const pace_names[] = {"standard", "quick", "full"};

/* Everything that names the run. */
static void result_name(
	const struct bench_config *config, const struct bench_paths *paths, struct bench_result *r)
{
	time_t now = time(NULL);
	struct tm utc;

	snprintf(r->version, sizeof(r->version), "%s", VMM_VERSION);
	snprintf(r->commit, sizeof(r->commit), "%s", VMM_COMMIT);
	gmtime_r(&now, &utc);
	strftime(r->date, sizeof(r->date), "%Y-%m-%dT%H:%M:%SZ", &utc);
	snprintf(r->pace, sizeof(r->pace), "%s", pace_names[config->pace]);
	if (config->argv)
		bench_command_text((const char *const *)config->argv, r->command, sizeof(r->command));
	if (paths->kernel[0])
		snprintf(r->guest_kernel, sizeof(r->guest_kernel), "%.190s",
			strrchr(paths->kernel, '/') ? strrchr(paths->kernel, '/') + 1 : paths->kernel);
}

static void list_print(const struct bench_result *r)
{
	printf("Columns:\n");
	for (unsigned c = 0; c < r->column_count; c++)
		printf("  %-18s %s%s%s\n", r->columns[c].id, r->columns[c].label,
			r->columns[c].present ? "" : " -- absent: ", r->columns[c].why);
	printf("Works:\n");
	for (unsigned w = 0; w < r->work_count; w++)
		printf("  %-18s %-6s %s\n", r->works[w].id, bench_group_names[r->works[w].group],
			r->works[w].text);
	for (unsigned n = 0; n < r->note_count; n++)
		printf("%s\n", r->notes[n]);
}

static bool anything_failed(const struct bench_result *r)
{
	for (unsigned w = 0; w < r->work_count; w++)
		for (unsigned c = 0; c < r->column_count; c++)
			if (r->cells[w][c].state == BENCH_FAILED)
				return true;
	return false;
}

static bool anything_present(const struct bench_result *r)
{
	for (unsigned c = 0; c < r->column_count; c++)
		if (r->columns[c].present)
			return true;
	return false;
}

/* A file that cannot be written is reported before the minutes, not after. */
static int writable_check(const char *path, struct error *err)
{
	FILE *file = path ? fopen(path, "ae") : NULL;

	if (path && !file)
		return error_set(err, -errno, "%.300s cannot be written: %s.", path, strerror(errno));
	if (file)
		fclose(file);
	return 0;
}

static int prepare(const struct bench_config *config, struct bench_paths *paths, struct bench_result *r,
	struct error *err)
{
	int rc = writable_check(config->json, err);

	if (!rc)
		rc = writable_check(config->html, err);
	if (!rc)
		rc = bench_paths_find(config, paths, err);
	if (rc)
		return rc;
	result_name(config, paths, r);
	bench_host_describe(&r->host);
	rc = bench_works_choose(config, paths, r, err);
	if (rc)
		return rc;
	bench_columns_detect(r, paths, config->columns);
	if (!r->column_count)
		return error_set(
			err, -EINVAL, "--columns names none that vmm bench knows; see vmm bench --list.");
	if (!config->list && !anything_present(r))
		return error_set(err, -ENOENT, "Nothing can be compared here: %s", r->columns[0].why);
	return 0;
}

static int report(const struct bench_config *config, const struct bench_result *r, struct error *err)
{
	int rc = 0;

	if (config->json)
		rc = bench_save(r, config->json, err);
	if (!rc && config->html)
		rc = bench_html_write(r, config->html, err);
	bench_table_print(r, stdout);
	if (!rc && anything_failed(r))
		rc = error_set(err, -ECANCELED, "Some measurements failed; the tables say which and why.");
	return rc;
}

int bench_run(const struct bench_config *config, struct error *err)
{
	struct bench_result *r = calloc(1, sizeof(*r));
	struct bench_paths *paths = calloc(1, sizeof(*paths));
	struct error unwritten = {0};
	int rc, interrupt;
	sigset_t set;

	if (!r || !paths) {
		free(r);
		free(paths);
		return error_set(err, -ENOMEM, "The host is out of memory.");
	}
	/* What runs is in process groups of its own: the terminal's Ctrl-C reaches us alone. */
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	interrupt = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	rc = prepare(config, paths, r, err);
	if (!rc && config->list)
		list_print(r);
	else if (!rc)
		rc = bench_session(config, r, paths, interrupt > 0 ? interrupt : 0, err);
	if (!rc && !config->list)
		rc = report(config, r, err);
	else if (rc == -EINTR && report(config, r, &unwritten) == 0) /* what there is */
		fprintf(stderr, "What had been measured is reported.\n");
	bench_paths_drop(paths);
	if (interrupt >= 0)
		close(interrupt);
	free(paths);
	free(r);
	return rc;
}

int bench_show(const char *path, const char *html, struct error *err)
{
	struct bench_result *r = calloc(1, sizeof(*r));
	int rc = r ? bench_load(r, path, err) : error_set(err, -ENOMEM, "The host is out of memory.");

	if (!rc) {
		if (html)
			rc = bench_html_write(r, html, err);
		bench_table_print(r, stdout);
	}
	free(r);
	return rc;
}
