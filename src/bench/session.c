/*
 * The run itself: rounds of launches, one of each column and part in turn, so that whatever drifts on the host drifts for all. A
 * launch counts only as a whole: its guest must have begun, written every sample that was asked for and nothing that
 * is none, ended, and its clock must have gone as fast as the host's. If not, the first work without its samples is
 * blamed, and the launch is repeated without it; a guest that cannot be trusted at all fails everything that it ran. Only
 * a launch that was killed because its time was over keeps the works that it had finished.
 * Last, the answers of the columns are compared: a wrong one is a failure, however fast.
 */
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "session.h"
#include "vmm/error.h"

const char session_late[] = "There was no time for it, or not enough.";

#define ATTEMPTS_MAX 4
#define CLOCK_TOLERANCE 0.1

void bench_note(struct bench_result *result, const char *format, ...)
{
	const unsigned max = sizeof(result->notes) / sizeof(result->notes[0]);
	va_list args;

	if (result->note_count == max)
		return;
	va_start(args, format);
	vsnprintf(result->notes[result->note_count++], sizeof(result->notes[0]), format, args);
	va_end(args);
}

double session_remaining(const struct session *s)
{
	uint64_t now = bench_now();

	if (s->deadline == ~0ull)
		return INFINITY;
	return now < s->deadline ? (double)(s->deadline - now) / 1e9 : 0;
}

static double elapsed(const struct session *s)
{
	return (double)(bench_now() - s->start) / 1e9;
}

static void cell_fail(struct bench_cell *cell, const char *why)
{
	cell->state = BENCH_FAILED;
	cell->count = 0;
	snprintf(cell->why, sizeof(cell->why), "%s", why);
}

static bool boot_measured(const struct bench_work *work)
{
	return !strcmp(work->id, "boot");
}

/* What the next launch asks for: the works of the part that have not failed and were not skipped here. */
static void expect(struct session *s, enum bench_part part, unsigned column, const bool *left_out)
{
	bench_output_init(&s->output, part == BENCH_PART_ROOT ? 1 : bench_part_bare(part) ? s->bare_repeat : s->repeat);
	for (unsigned w = 0; w < s->result->work_count; w++) {
		const struct bench_cell *cell = &s->result->cells[w][column];

		if (s->result->works[w].part == part && !boot_measured(&s->result->works[w]) && !left_out[w] &&
			(cell->state == BENCH_EMPTY || cell->state == BENCH_OK))
			bench_output_expect(&s->output, &s->result->works[w]);
	}
}

/* Natively nothing is translated, and a short time of warming up does. */
#define WARM_NATIVE_SHARE 10

static void words_build(const struct session *s, enum bench_part part, unsigned column, char *text, size_t size)
{
	bool native = s->result->columns[column].kind == BENCH_NATIVE;

	size_t at = (size_t)snprintf(text, size, "bench=%s", s->output.count ? "" : "none");

	for (unsigned i = 0; i < s->output.count && at < size; i++)
		at += (size_t)snprintf(text + at, size - at, "%s%s", i ? "," : "", s->output.items[i].id);
	if (at < size)
		at += (size_t)snprintf(text + at, size - at, " repeat=%u %s=%s", s->output.wanted,
			bench_part_bare(part) ? "cycles" : "scale", bench_part_bare(part) ? s->cycles : s->scale);
	if (at < size && (part == BENCH_PART_LINUX || part == BENCH_PART_LINUX_SMP))
		snprintf(text + at, size - at, " warm=%u", native ? s->warm / WARM_NATIVE_SHARE : s->warm);
}

static void on_line(void *ctx, const char *line, uint64_t now)
{
	bench_output_line(ctx, line, now);
}

/* Did the command end as it should after a whole run? The nano guest ends by the debug-exit port: an odd status. */
static bool status_good(const struct bench_column *column, enum bench_part part, int status)
{
	if (!WIFEXITED(status))
		return false;
	return !WEXITSTATUS(status) ||
	       (bench_part_bare(part) && column->kind != BENCH_NATIVE && (WEXITSTATUS(status) & 1));
}

static void status_text(int status, char *text, size_t size)
{
	if (WIFSIGNALED(status))
		snprintf(text, size, "it was ended by the signal %s", strsignal(WTERMSIG(status)));
	else
		snprintf(text, size, "it ended with status %d", WEXITSTATUS(status));
}

/* What is wrong with a launch as a sentence, or an empty text. Fills launch->clock_ratio. */
static void judge(struct session *s, const struct bench_child *child, struct bench_launch *launch)
{
	const struct bench_output *out = &s->output;
	int said = (int)strlen(child->tail);
	char end[96], *why = launch->why;
	size_t size = sizeof(launch->why);

	launch->clock_ratio = bench_output_clock(out, s->result->host.tsc_hz);
	status_text(child->status, end, sizeof(end));
	said -= said && child->tail[said - 1] == '.';
	said = said < 160 ? said : 160;
	why[0] = 0;
	if (child->interrupted)
		snprintf(why, size, "It was interrupted.");
	else if (child->timed_out)
		snprintf(why, size, "It was killed after %.0f s%s%s.", child->limit,
			out->ended ? ", having written its last line" : "",
			out->begun || out->ended ? "" : ", before it had begun");
	else if (child->flooded)
		snprintf(why, size, "It was killed after %u MiB of output.", BENCH_OUTPUT_MAX >> 20);
	else if (out->bad[0])
		snprintf(why, size, "Its output is not to be trusted: %.280s.", out->bad);
	else if (!out->ended)
		snprintf(why, size, "It did not come to its end; %s%s%.*s.", end,
			said ? ", saying: " : "", said, child->tail);
	else if (!status_good(&s->result->columns[launch->column], launch->part, child->status))
		snprintf(why, size, "It wrote its last line, but %s%s%.*s.", end,
			said ? ", saying: " : "", said, child->tail);
	else if (bench_output_culprit(out) >= 0)
		snprintf(why, size, "It ended without all samples of %s.",
			out->items[bench_output_culprit(out)].id);
	else if (launch->clock_ratio > 0 && fabs(launch->clock_ratio - 1) > CLOCK_TOLERANCE)
		snprintf(why, size, "The guest's clock went %.2f times as fast as the host's.",
			launch->clock_ratio);
	launch->ok = !why[0];
}

static void merge_item(struct bench_cell *cell, const struct bench_item *item, unsigned launch)
{
	if (item->bad) {
		cell_fail(cell, item->why);
		return;
	}
	if (item->skipped) {
		if (cell->state == BENCH_EMPTY) {
			cell->state = BENCH_SKIPPED;
			snprintf(cell->why, sizeof(cell->why), "%s", item->why);
		}
		return;
	}
	if (cell->has_check && cell->check != item->check && cell->samples[0].n == item->samples[0].n) {
		cell_fail(cell, "Two launches gave different answers.");
		return;
	}
	cell->state = BENCH_OK;
	cell->has_check = true;
	cell->check = item->check;
	for (unsigned i = 0; i < item->count && cell->count < BENCH_SAMPLE_MAX; i++) {
		cell->samples[cell->count] = item->samples[i];
		cell->samples[cell->count++].launch = launch;
	}
}

/* Everything of a whole launch; of one whose time was over what was finished. */
static void merge(
	struct session *s, const struct bench_launch *launch, unsigned index, const struct bench_child *child)
{
	struct bench_result *r = s->result;
	int boot = bench_work_find(r->works, r->work_count, "boot");

	for (unsigned i = 0; i < s->output.count; i++) {
		int w = bench_work_find(r->works, r->work_count, s->output.items[i].id);

		if (bench_item_complete(&s->output.items[i]))
			merge_item(&r->cells[w][launch->column], &s->output.items[i], index);
	}
	if (boot >= 0 && launch->part == BENCH_PART_LINUX && r->columns[launch->column].kind != BENCH_NATIVE) {
		struct bench_cell *cell = &r->cells[boot][launch->column];

		if (cell->count < BENCH_SAMPLE_MAX) {
			cell->state = BENCH_OK;
			cell->samples[cell->count++] = (struct bench_sample){
				(double)(s->output.begun_ns - child->started) / 1e9, 1, index};
		}
	}
}

/* A part that a column could not run: nothing of it counts but what had been finished in this turn. */
static void part_fail(
	struct session *s, enum bench_part part, unsigned column, const char *why, const bool *finished)
{
	for (unsigned w = 0; w < s->result->work_count; w++) {
		struct bench_cell *cell = &s->result->cells[w][column];

		if (s->result->works[w].part == part && cell->state != BENCH_SKIPPED &&
			cell->state != BENCH_FAILED && !finished[w])
			cell_fail(cell, why);
	}
}

static struct bench_launch *launch_new(struct session *s, enum bench_part part, unsigned column, unsigned round)
{
	struct bench_launch *launch;

	if (s->result->launch_count == BENCH_LAUNCH_MAX)
		return NULL;
	launch = &s->result->launches[s->result->launch_count++];
	memset(launch, 0, sizeof(*launch));
	launch->column = column;
	launch->part = part;
	launch->round = round;
	launch->start = elapsed(s);
	return launch;
}

bool session_possible(const struct session *s, enum bench_part part, const struct bench_column *column)
{
	bool native = column->kind == BENCH_NATIVE;

	if (!column->present)
		return false;
	switch (part) {
	case BENCH_PART_SMP: return !native && s->paths->nano[0];
	case BENCH_PART_NANO: return native ? s->paths->nano_native[0] : s->paths->nano[0];
	case BENCH_PART_LINUX:
	case BENCH_PART_LINUX_SMP: return s->paths->micro[0] && (native || s->paths->kernel[0]);
	default: return !native && s->paths->root[0];
	}
}

/* One launch. NULL if it could not even be tried. */
static struct bench_launch *launch_once(
	struct session *s, enum bench_part part, unsigned column, unsigned round, struct bench_child *child)
{
	char words[1024], text[BENCH_COMMAND_MAX];
	struct bench_launch *launch = launch_new(s, part, column, round);
	int rc;

	if (!launch)
		return NULL;
	words_build(s, part, column, words, sizeof(words));
	memset(child, 0, sizeof(*child));
	child->limit = session_limit(s, part, column);
	child->line = on_line;
	child->ctx = &s->output;
	child->interrupt = s->interrupt;
	child->directory = s->paths->dir;
	if (bench_column_command(
		    &s->result->columns[column], part, s->paths, words, child->argv, text, sizeof(text))) {
		snprintf(launch->why, sizeof(launch->why), "The command line would be too long.");
		return launch;
	}
	bench_command_text(child->argv, launch->command, sizeof(launch->command));
	unlink(s->paths->stats);
	bench_meter_run(&s->meter, &launch->speed);
	rc = bench_spawn(child);
	launch->seconds = child->seconds;
	if (rc)
		snprintf(launch->why, sizeof(launch->why), "It cannot be started: %s.", strerror(-rc));
	else
		judge(s, child, launch);
	return launch;
}

static void progress(const struct session *s, const struct bench_launch *launch)
{
	fprintf(stderr, "[%4.0f s] round %u: %s on %s, %.1f s%s%s\n", elapsed(s), launch->round + 1,
		bench_part_names[launch->part], s->result->columns[launch->column].id, launch->seconds,
		launch->ok ? "" : ": ", launch->why);
}

void session_skip(struct session *s, enum bench_part part, unsigned column, const char *why)
{
	for (unsigned w = 0; w < s->result->work_count; w++) {
		struct bench_cell *cell = &s->result->cells[w][column];

		if (s->result->works[w].part == part && cell->state == BENCH_EMPTY) {
			cell->state = BENCH_SKIPPED;
			snprintf(cell->why, sizeof(cell->why), "%s", why);
		}
	}
}

/* A launch whose time was over, and whose guest had given no other reason for mistrust. */
static bool salvageable(
	const struct session *s, const struct bench_child *child, const struct bench_launch *launch)
{
	return child->timed_out && s->output.begun && !s->output.bad[0] &&
		(launch->clock_ratio == 0 || fabs(launch->clock_ratio - 1) <= CLOCK_TOLERANCE);
}

/* What a launch that is not whole means. True if the turn goes on with another one. */
static bool failure_handle(struct session *s, const struct bench_child *child,
	const struct bench_launch *launch, bool *left_out, unsigned attempt)
{
	int culprit = bench_output_culprit(&s->output), w;
	bool unsupported = s->result->columns[launch->column].kind == BENCH_VMM && WIFEXITED(child->status) &&
		WEXITSTATUS(child->status) == 10 && !s->output.begun; /* vmm(1): not in this version */
	bool ours = child->timed_out && child->limit < session_patience(s, launch->part); /* not its fault: the budget of --quick */

	if (salvageable(s, child, launch)) {
		merge(s, launch, s->result->launch_count - 1, child);
		for (unsigned i = 0; i < s->output.count; i++)
			left_out[bench_work_find(
				s->result->works, s->result->work_count, s->output.items[i].id)] |=
				bench_item_complete(&s->output.items[i]);
	}
	if (unsupported) {
		session_skip(s, launch->part, launch->column,
			strncmp(child->tail, "vmm: ", 5) ? child->tail : child->tail + 5);
		return false;
	}
	if (ours) {
		session_skip(s, launch->part, launch->column, session_late);
		return false;
	}
	if (!s->output.begun || attempt + 1 == ATTEMPTS_MAX || (culprit < 0 && attempt)) {
		part_fail(s, launch->part, launch->column, launch->why, left_out);
		return false;
	}
	if (culprit < 0)
		return true; /* all samples came, and yet it is not to be trusted: once more */
	w = bench_work_find(s->result->works, s->result->work_count, s->output.items[culprit].id);
	cell_fail(&s->result->cells[w][launch->column], launch->why);
	if (session_remaining(s) < launch->seconds) {
		session_skip(s, launch->part, launch->column, session_late);
		return false;
	}
	return true;
}

/* The launches that one turn of a column takes. -EINTR if the person wants to stop. */
int session_turn(struct session *s, enum bench_part part, unsigned column, unsigned round)
{
	bool left_out[BENCH_WORK_MAX] = {false};
	int boot = bench_work_find(s->result->works, s->result->work_count, "boot");
	bool boots = part == BENCH_PART_LINUX && s->result->columns[column].kind != BENCH_NATIVE && boot >= 0 &&
		     s->result->cells[boot][column].state <= BENCH_OK;
	struct bench_child child;

	for (unsigned attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
		struct bench_launch *launch;

		expect(s, part, column, left_out);
		if (!s->output.count && (!boots || attempt))
			return 0;
		launch = launch_once(s, part, column, round, &child);
		if (!launch)
			return 0;
		progress(s, launch);
		s->took[part][column] = launch->seconds;
		if (child.interrupted)
			return -EINTR;
		if (launch->ok) {
			merge(s, launch, s->result->launch_count - 1, &child);
			bench_profile_add(&s->result->profiles[part][column], s->paths->stats);
			return 0;
		}
		if (!failure_handle(s, &child, launch, left_out, attempt))
			return 0;
	}
	return 0;
}

/* What a column cannot do by its nature. */
static void impossible_skip(struct session *s)
{
	for (unsigned c = 0; c < s->result->column_count; c++)
		for (unsigned w = 0; w < s->result->work_count; w++) {
			const struct bench_work *work = &s->result->works[w];
			struct bench_cell *cell = &s->result->cells[w][c];

			if (s->result->columns[c].kind != BENCH_NATIVE || !s->result->columns[c].present)
				continue;
			if (bench_part_bare(work->part) && !work->ring3)
				snprintf(cell->why, sizeof(cell->why), "Ring 3 may not do this.");
			else if (work->part == BENCH_PART_ROOT)
				snprintf(cell->why, sizeof(cell->why), "The root image is for guests.");
			else if (boot_measured(work))
				snprintf(cell->why, sizeof(cell->why), "A process does not boot.");
			else
				continue;
			cell->state = BENCH_SKIPPED;
		}
}

/* The column whose answers are the reference for a work: native, else the first that has one. */
static int reference(const struct bench_result *r, unsigned work)
{
	for (unsigned c = 0; c < r->column_count; c++)
		if (r->cells[work][c].state == BENCH_OK && r->cells[work][c].has_check)
			return (int)c; /* native is the first column */
	return -1;
}

/* Without native to say who is right, columns that disagree have both failed. */
static void answers_compare(struct bench_result *r)
{
	for (unsigned w = 0; w < r->work_count; w++) {
		int base = reference(r, w);
		bool blame_base = false;
		char why[BENCH_TEXT_MAX];

		for (unsigned c = 0; base >= 0 && c < r->column_count; c++) {
			struct bench_cell *cell = &r->cells[w][c], *other = &r->cells[w][base];

			if ((int)c == base || cell->state != BENCH_OK || !cell->has_check ||
				cell->samples[0].n != other->samples[0].n || cell->check == other->check)
				continue;
			snprintf(why, sizeof(why), "A wrong answer: %llx instead of %s's %llx.",
				(unsigned long long)cell->check, r->columns[base].id,
				(unsigned long long)other->check);
			cell_fail(cell, why);
			blame_base = r->columns[base].kind != BENCH_NATIVE;
		}
		if (blame_base)
			cell_fail(&r->cells[w][base], "Another column gave a different answer, and there is "
						      "no native one to say who is right.");
	}
}

/* A KVM that does not suit the guest leaves much to the software CPU: then the column's name may not say KVM alone. */
static void stints_tell(struct bench_result *r)
{
	for (unsigned c = 0; c < r->column_count; c++) {
		uint64_t stints = bench_profile_sum(r, c, "kvm.stints");
		char *end = strrchr(r->columns[c].label, ')');

		if (!stints)
			continue;
		bench_note(r,
			"%s entered KVM %llu times and let the software CPU execute %llu instructions in %llu stints: "
			"its figures are of both.",
			r->columns[c].label, (unsigned long long)bench_profile_sum(r, c, "kvm.entries"),
			(unsigned long long)bench_profile_sum(r, c, "engine.instructions"),
			(unsigned long long)stints);
		if (end)
			snprintf(end, sizeof(r->columns[c].label) - (size_t)(end - r->columns[c].label),
				", with software CPU)");
	}
}

static void pace_set(struct session *s)
{
	const struct bench_config *config = s->config;

	s->cycles = "400000"; /* short beside a time slice of the host */
	switch (config->pace) {
	case BENCH_QUICK:
		s->rounds = 5;
		s->repeat = 5;
		s->bare_repeat = 9;
		s->scale = "0.002";
		s->warm = 50;
		s->limit = 45; /* the budget usually ends a launch earlier */
		s->bare_limit = 10;
		s->deadline = s->start + 55ull * 1000000000;
		break;
	case BENCH_FULL:
		s->rounds = 7;
		s->repeat = s->bare_repeat = 5;
		s->scale = "1";
		s->warm = 500;
		s->limit = 1800;
		s->bare_limit = 120;
		s->deadline = ~0ull;
		break;
	default:
		s->rounds = 5;
		s->repeat = s->bare_repeat = 7;
		s->scale = "0.01";
		s->warm = 200;
		s->limit = 300;
		s->bare_limit = 60;
		s->deadline = ~0ull;
		break;
	}
	s->bare_rounds = s->rounds * 2;
	if (config->rounds)
		s->rounds = s->bare_rounds = config->rounds;
	if (config->limit)
		s->limit = config->limit;
}

int bench_session(const struct bench_config *config, struct bench_result *result,
	const struct bench_paths *paths, int interrupt, struct error *err)
{
	enum { FIRST_STOPS = 10, LAST_STOPS = 5 };
	struct session *s = calloc(1, sizeof(*s));
	struct bench_speed speed;
	char noise[BENCH_TEXT_MAX];
	int rc;

	if (!s)
		return error_set(err, -ENOMEM, "The host is out of memory.");
	s->config = config;
	s->paths = paths;
	s->result = result;
	s->interrupt = interrupt;
	s->start = bench_now();
	pace_set(s);
	for (unsigned i = 0; i < FIRST_STOPS; i++)
		bench_meter_run(&s->meter, &speed);
	bench_meter_read(&s->meter, &result->noise);
	bench_noise_text(&result->noise, noise, sizeof(noise));
	fprintf(stderr, "%s; load average %.2f\n", noise, result->host.load_start);
	impossible_skip(s);
	rc = session_rounds(s);
	for (unsigned i = 0; i < LAST_STOPS; i++)
		bench_meter_run(&s->meter, &speed);
	bench_meter_read(&s->meter, &result->noise);
	bench_meter_drop(&s->meter);
	result->host.load_end = bench_load_average();
	result->seconds = elapsed(s);
	if (rc)
		bench_note(result, "The run was interrupted after %.0f s.", result->seconds);
	answers_compare(result);
	stints_tell(result);
	bench_usual_find(result);
	free(s);
	return rc ? error_set(err, rc, "Interrupted.") : 0;
}
