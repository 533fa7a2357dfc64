/* The harness: its statistics, its reading of hostile output, its files, and that nothing outlives a launch. */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "run_suite.h"
#include "bench/bench_internal.h"
#include "bench/json_read.h"
#include "vmm/cli.h"
#include "vmm/error.h"

static struct bench_cell cell_of(const double *values, unsigned count, unsigned per_launch)
{
	struct bench_cell cell = {.state = BENCH_OK, .count = count};

	for (unsigned i = 0; i < count; i++)
		cell.samples[i] = (struct bench_sample){values[i], 10, i / per_launch};
	return cell;
}
#define CELL(per_launch, ...)                                                                                \
	cell_of((const double[]){__VA_ARGS__}, sizeof((const double[]){__VA_ARGS__}) / sizeof(double),       \
		per_launch)
#define NEAR(a, b) ck_assert_double_eq_tol(a, b, 1e-9)

START_TEST(medians)
{
	NEAR(bench_median((const double[]){5, 1, 3}, 3), 3);
	NEAR(bench_median((const double[]){4, 1, 3, 2}, 4), 2.5);
	NEAR(bench_median((const double[]){7}, 1), 7);
	NEAR(bench_median(NULL, 0), 0);
	NEAR(bench_quantile((const double[]){0, 10, 20, 30, 40}, 5, 0.25), 10);
	NEAR(bench_quantile((const double[]){0, 10}, 2, 0.1), 1);
	NEAR(bench_geomean((const double[]){1, 100}, 2), 10);
	NEAR(bench_geomean((const double[]){1, 0}, 2), 0);
}
END_TEST

START_TEST(one_outlier_moves_no_median)
{
	struct bench_cell cell = CELL(5, 10, 10, 10, 10, 5000);

	NEAR(bench_quartiles(&cell).value, 10);
	NEAR(bench_quartiles(&cell).high, 10);
	NEAR(bench_spread(&cell).high, 5000);
}
END_TEST

static struct bench_result result, loaded;

/* Two columns, native and tcg, with the bases of micro's ratios native; works WORKS of them. */
#define WORKS 20
static void result_begin(void)
{
	memset(&result, 0, sizeof(result));
	result.column_count = 2;
	strcpy(result.columns[0].id, "native");
	strcpy(result.columns[1].id, "tcg");
	result.columns[1].kind = BENCH_QEMU;
	result.columns[0].present = result.columns[1].present = true;
	result.work_count = WORKS;
	for (unsigned w = 0; w < WORKS; w++) {
		result.works[w] = (struct bench_work){
			.group = BENCH_MICRO, .unit = BENCH_NS, .part = BENCH_PART_LINUX};
		snprintf(result.works[w].id, sizeof(result.works[w].id), "w%u", w);
		result.cells[w][0] = CELL(3, 10, 10, 10, 10, 10, 10);
		result.cells[w][1] = CELL(3, 20, 20, 20, 20, 20, 20);
	}
	result.launch_count = 8;
}

/* Puts the launches of a cell where they belong among all. */
static void launches_set(struct bench_cell *cell, unsigned first, unsigned step)
{
	for (unsigned i = 0; i < cell->count; i++)
		cell->samples[i].launch = first + step * cell->samples[i].launch;
}

START_TEST(quiet_host)
{
	struct bench_figure time, ratio;

	result_begin();
	bench_usual_find(&result);
	time = bench_figure(&result, 0, 1, -1);
	ratio = bench_figure(&result, 0, 1, 0);
	NEAR(time.value, 20);
	NEAR(time.spread, 1);
	NEAR(ratio.value, 2);
	NEAR(ratio.low, 2);
	NEAR(ratio.high, 2);
	ck_assert(time.known && !time.unstable && !ratio.unstable);
	ck_assert_uint_eq(time.launches, 2);
	/* Nothing of the base's own, of another state, or without a base. */
	NEAR(bench_figure(&result, 0, 0, 0).value, 0);
	result.cells[0][0].state = BENCH_FAILED;
	NEAR(bench_figure(&result, 0, 0, -1).value, 0);
	NEAR(bench_figure(&result, 0, 1, 0).value, 0);
}
END_TEST

/* Against printed tables: two-sided, 0.1 %. */
START_TEST(students)
{
	ck_assert_double_eq_tol(bench_student(6), 5.959, 0.13);
	ck_assert_double_eq_tol(bench_student(10), 4.587, 0.02);
	ck_assert_double_eq_tol(bench_student(30), 3.646, 0.01);
	ck_assert_double_eq_tol(bench_student(1e6), 3.2905, 0.001);
}
END_TEST

/* Two launches that agree by chance do not make a figure much better than the others; many do. */
START_TEST(spread_is_borrowed)
{
	struct bench_figure lucky, other, once;

	result_begin();
	for (unsigned w = 1; w < WORKS; w++)
		result.cells[w][1] = CELL(3, 20, 20, 20, 22, 22, 22);
	bench_usual_find(&result);
	lucky = bench_figure(&result, 0, 1, -1);
	other = bench_figure(&result, 1, 1, -1);
	NEAR(lucky.value, 20);
	NEAR(lucky.own, 1);
	ck_assert(lucky.spread > 1.3 && lucky.spread < other.spread);
	result.cells[0][1] = CELL(1, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20);
	bench_usual_find(&result);
	ck_assert_double_lt(bench_figure(&result, 0, 1, -1).spread, 1.07);
	/* Also by a column that was launched once, from another guest. */
	result.columns[2] = result.columns[1];
	result.column_count = 3;
	for (unsigned w = 0; w < WORKS; w++)
		result.cells[w][2] = CELL(3, 20, 20, 20);
	bench_usual_find(&result);
	once = bench_figure(&result, 0, 2, -1);
	ck_assert(once.known && !once.unstable && once.spread > other.spread);
	/* But not from the native program, which is no guest, */
	result.columns[1].kind = BENCH_NATIVE;
	bench_usual_find(&result);
	ck_assert(!bench_figure(&result, 0, 2, -1).known);
}
END_TEST

/* Works of another kind do not count while there are some of its own. */
START_TEST(spread_of_a_kind)
{
	ck_assert_int_eq(bench_work_kind("k-sort"), BENCH_USER);
	ck_assert_int_eq(bench_work_kind("latency-4m"), BENCH_USER);
	ck_assert_int_eq(bench_work_kind("rdtsc"), BENCH_USER);
	ck_assert_int_eq(bench_work_kind("in"), BENCH_DEVICE);
	ck_assert_int_eq(bench_work_kind("invlpg"), BENCH_SYSTEM);
	ck_assert_int_eq(bench_work_kind("getppid"), BENCH_SYSTEM);
	result_begin();
	for (unsigned w = 0; w < WORKS / 2; w++) {
		snprintf(result.works[w].id, sizeof(result.works[w].id), "k-%u", w);
		result.cells[w + WORKS / 2][1] = CELL(3, 20, 20, 20, 40, 40, 40);
	}
	bench_usual_find(&result);
	NEAR(bench_figure(&result, 0, 1, -1).spread, 1);
	ck_assert_double_gt(bench_figure(&result, WORKS - 1, 1, -1).spread, 2);
}
END_TEST

/* A steady work's spread is its own, and is where the median of another run is. */
START_TEST(spread_holds)
{
	uint64_t random = 12345;
	unsigned outside = 0, all = 0;
	double widest = 0;

	result_begin();
	for (unsigned run = 0; run < 60; run++) {
		struct bench_figure figures[2][WORKS];

		for (unsigned side = 0; side < 2; side++) {
			for (unsigned w = 0; w < WORKS; w++) {
				double values[8], deviation = w % 2 ? 0.2 : 0.02;

				for (unsigned l = 0; l < 8; l++) {
					double sum = 0; /* about normal */

					for (unsigned i = 0; i < 12; i++)
						sum += (double)(bench_random(&random) >> 11) / (double)(1ull << 53);
					values[l] = 20 * exp(deviation * (sum - 6));
				}
				result.cells[w][1] = cell_of(values, 8, 1);
			}
			bench_usual_find(&result);
			for (unsigned w = 0; w < WORKS; w++)
				figures[side][w] = bench_figure(&result, w, 1, -1);
		}
		for (unsigned w = 0; w < WORKS; w++, all++) {
			const struct bench_figure *a = &figures[0][w], *b = &figures[1][w];

			outside += fabs(log(a->value / b->value)) > hypot(log(a->spread), log(b->spread));
			widest = w % 2 ? widest : fmax(widest, a->spread);
		}
	}
	ck_assert_msg(outside <= 6, "%u of %u", outside, all); /* 1.2 are to be expected, and 6 are one case in 500 */
	ck_assert_double_lt(widest, 1.35);
}
END_TEST

/* Launches that differ are not hidden by samples that agree within each. */
START_TEST(unstable_figure)
{
	struct bench_figure figure;
	char text[BENCH_TEXT_MAX];

	result_begin();
	result.cells[3][1] = CELL(3, 20, 20, 20, 60, 60, 60);
	result.launches[0].speed = (struct bench_speed){{1, 1, 1, 1}, 0.5};
	result.launches[1].speed = (struct bench_speed){{1, 2, 1, 1}, 0.1};
	bench_usual_find(&result);
	figure = bench_figure(&result, 3, 1, -1);
	ck_assert(figure.unstable && figure.low <= 20 && figure.high >= 60);
	NEAR(figure.own, 3);
	ck_assert(!bench_figure(&result, 4, 1, -1).unstable);
	bench_unstable_text(&result, 3, 1, text, sizeof(text));
	ck_assert_msg(strstr(text, "×3.00") && strstr(text, "30 %") && strstr(text, "(wide) varied by ×2.00"), "%s", text);
	/* A result from elsewhere may name launches that it does not have. */
	launches_set(&result.cells[3][1], 4000000000u, 1);
	bench_unstable_text(&result, 3, 1, text, sizeof(text));
	ck_assert_ptr_null(strstr(text, "around"));
}
END_TEST

/* A host that becomes twice as slow in the middle: times say so, ratios of neighbours do not. */
START_TEST(ratio_of_neighbours)
{
	struct bench_figure ratio;

	result_begin();
	for (unsigned w = 0; w < WORKS; w++) {
		result.cells[w][0] = CELL(1, 10, 10, 20, 20); /* launches 0, 2, 4, 6 */
		launches_set(&result.cells[w][0], 0, 2);
		result.cells[w][1] = CELL(1, 30, 60); /* launches 1, 5 */
		launches_set(&result.cells[w][1], 1, 4);
	}
	bench_usual_find(&result);
	ck_assert_double_gt(bench_figure(&result, 0, 1, -1).spread, 2);
	ratio = bench_figure(&result, 0, 1, 0);
	NEAR(ratio.value, 3);
	NEAR(ratio.spread, 1);
	/* In the middle of the change the base is between the two: the geometric mean. */
	launches_set(&result.cells[0][1], 2, 0);
	result.cells[0][1] = CELL(1, 30);
	launches_set(&result.cells[0][1], 3, 1);
	NEAR(bench_figure(&result, 0, 1, 0).value, 30 / sqrt(200));
}
END_TEST

/* Cycles about zero: no ratio, and no logarithm of what is not positive. */
START_TEST(about_zero)
{
	struct bench_figure figure;

	result_begin();
	result.cells[0][0] = CELL(3, -0.2, 0.1, -0.1);
	result.cells[0][1] = CELL(3, 5, 5, 5);
	bench_usual_find(&result);
	NEAR(bench_figure(&result, 0, 1, 0).value, 0);
	figure = bench_figure(&result, 0, 0, -1);
	NEAR(figure.value, -0.1);
	NEAR(figure.low, -0.2);
	NEAR(figure.high, 0.1);
	NEAR(figure.spread, 0);
}
END_TEST

/* One launch of everything: there is nothing to say what the next one would be. */
START_TEST(launched_once)
{
	struct bench_figure figure;
	char text[24];

	result_begin();
	for (unsigned w = 0; w < WORKS; w++) {
		result.cells[w][0] = CELL(3, 10, 10, 10);
		result.cells[w][1] = CELL(3, 20, 20, 20, 24, 24);
		launches_set(&result.cells[w][1], 0, 0);
	}
	bench_usual_find(&result);
	figure = bench_figure(&result, 0, 1, -1);
	ck_assert(!figure.known);
	NEAR(figure.spread, 1.2);
	bench_spread_text(&figure, text, sizeof(text));
	ck_assert_str_eq(text, "±20%?");
	figure.spread = 1;
	bench_spread_text(&figure, text, sizeof(text));
	ck_assert_str_eq(text, "?");
	figure.spread = 2.44;
	figure.known = figure.unstable = true;
	bench_spread_text(&figure, text, sizeof(text));
	ck_assert_str_eq(text, "×÷2.4!");
}
END_TEST

START_TEST(metering)
{
	static struct bench_meter meter;
	struct bench_noise noise;
	struct bench_speed speed;

	for (unsigned i = 0; i < 3; i++)
		bench_meter_run(&meter, &speed);
	bench_meter_read(&meter, &noise);
	bench_meter_drop(&meter);
	ck_assert_uint_eq(noise.stops, 3);
	ck_assert(noise.busy >= 0 && noise.busy < 1);
	for (unsigned kind = 0; kind < BENCH_SPEEDS; kind++) {
		ck_assert_msg(noise.low_ns[kind] > 1000, "%s", bench_speed_names[kind]);
		ck_assert(noise.low_ns[kind] <= noise.median_ns[kind] && noise.median_ns[kind] <= noise.high_ns[kind]);
		ck_assert(bench_noise_factor(&noise, kind) >= 1);
	}
}
END_TEST

static char *file_text(const char *name)
{
	static char text[1 << 18];
	FILE *file = fopen(name, "r");

	text[fread(text, 1, sizeof(text) - 1, file)] = 0;
	fclose(file);
	return text;
}

static char path[64];

static void path_make(void)
{
	int fd;

	strcpy(path, "/tmp/vmm-test-XXXXXX");
	fd = mkstemp(path);
	ck_assert_int_ge(fd, 0);
	close(fd);
}

/* What compare prints of result, then of result with every time of every column times factor and the host's speed times host. */
static const char *compared(double all, double tcg, double host)
{
	char before[64], after[64], printed[64];
	struct error err = {0};
	int keep = dup(1);

	path_make();
	strcpy(before, path);
	path_make();
	strcpy(after, path);
	path_make();
	strcpy(printed, path);
	for (unsigned kind = 0; kind < BENCH_SPEEDS; kind++)
		result.noise.low_ns[kind] = result.noise.median_ns[kind] = result.noise.high_ns[kind] = 100;
	ck_assert_int_eq(bench_save(&result, before, &err), 0);
	for (unsigned w = 0; w < result.work_count; w++)
		for (unsigned c = 0; c < 2; c++)
			for (unsigned i = 0; i < result.cells[w][c].count; i++)
				result.cells[w][c].samples[i].value *= c ? all * tcg : all;
	result.noise.low_ns[BENCH_WIDE] = result.noise.median_ns[BENCH_WIDE] = result.noise.high_ns[BENCH_WIDE] =
		100 * host;
	ck_assert_int_eq(bench_save(&result, after, &err), 0);
	fflush(stdout);
	ck_assert_ptr_nonnull(freopen(printed, "w", stdout));
	ck_assert_int_eq(bench_compare(before, after, &err), 0);
	fflush(stdout);
	dup2(keep, 1);
	close(keep);
	unlink(before);
	unlink(after);
	return file_text(printed);
}

START_TEST(comparing)
{
	result_begin();
	ck_assert_ptr_nonnull(strstr(compared(1, 1, 1), "0 faster, 0 slower, 40 within the spread"));
	/* The same host and other times: every one counts. */
	result_begin();
	ck_assert_ptr_nonnull(strstr(compared(1.1, 1, 1), "0 faster, 40 slower, 0 within"));
	/* The host is slower by as much, as its speed says: nothing changed. */
	result_begin();
	ck_assert_msg(strstr(compared(1.29, 1, 1.3), "0 faster, 0 slower, 40 within"), "%.3000s", file_text(path));
	ck_assert_ptr_nonnull(strstr(file_text(path), "The host drifted: in the second run wide ×1.30 as long"));
	/* And behind that one column changed. */
	result_begin();
	ck_assert_ptr_nonnull(strstr(compared(1.29, 0.8, 1.3), "20 faster, 0 slower, 20 within"));
	unlink(path);
}
END_TEST

static struct bench_output out;

static void feed(const char *const *lines)
{
	static const struct bench_work works[] = {{.id = "getppid", .unit = BENCH_NS},
		{.id = "k-sort", .unit = BENCH_NS}, {.id = "callret", .unit = BENCH_CYCLES}};

	bench_output_init(&out, 2);
	for (unsigned i = 0; i < 3; i++)
		bench_output_expect(&out, &works[i]);
	for (uint64_t now = 1000; *lines; lines++, now += 1000000000)
		bench_output_line(&out, *lines, now);
}
#define FEED(...) feed((const char *const[]){__VA_ARGS__, NULL})
#define SAMPLE(name, unit, value, check) "BENCH name=" name " unit=" unit " n=100 value=" value " check=" check

START_TEST(good_output)
{
	FEED("[    0.1] a kernel speaks", "BENCH-BEGIN", "BENCH-CLOCK unit=ns value=5000000000",
		SAMPLE("getppid", "ns", "12.5", "ab"), SAMPLE("getppid", "ns", "13", "ab"),
		"BENCH-SKIP name=k-sort why=there is no sorting here", "a BENCH line it is not",
		SAMPLE("callret", "cycles", "-0.25", "0"), SAMPLE("callret", "cycles", "3", "0"),
		"BENCH-CLOCK unit=ns value=12000000000", "BENCH-END ok");
	ck_assert_str_eq(out.bad, "");
	ck_assert(out.begun && out.ended);
	ck_assert_uint_eq(out.begun_ns, 1000000000 + 1000);
	ck_assert_int_eq(bench_output_culprit(&out), -1);
	ck_assert_uint_eq(out.items[0].count, 2);
	NEAR(out.items[0].samples[1].value, 13);
	ck_assert_uint_eq(out.items[0].samples[1].n, 100);
	ck_assert_uint_eq(out.items[0].check, 0xab);
	ck_assert(out.items[1].skipped);
	ck_assert_str_eq(out.items[1].why, "there is no sorting here");
	NEAR(bench_output_clock(&out, 0), 1);
}
END_TEST

static const char *const bad_lines[] = {
	"BENCH name=getppid unit=ns n=100 value=inf check=1",
	"BENCH name=getppid unit=ns n=100 value=nan check=1",
	"BENCH name=getppid unit=ns n=100 value=1e-9 check=1",
	"BENCH name=getppid unit=ns n=100 value=0x10 check=1",
	"BENCH name=getppid unit=ns n=100 value=0 check=1",
	"BENCH name=getppid unit=ns n=100 value=-4 check=1",
	"BENCH name=getppid unit=ns n=100 value=1.2.3 check=1",
	"BENCH name=getppid unit=ns n=100 value= check=1",
	"BENCH name=getppid unit=ns n=0 value=4 check=1",
	"BENCH name=getppid unit=ns n=-1 value=4 check=1",
	"BENCH name=getppid unit=ns n=99999999999999999999999 value=4 check=1",
	"BENCH name=getppid unit=s n=1 value=4 check=1",
	"BENCH name=getppid unit=ns n=1 value=4",
	"BENCH name=getppid unit=ns n=1 value=4 check=xyz",
	"BENCH name=getppid unit=ns n=1 value=4 check=11112222333344445",
	"BENCH name=callret unit=cycles n=1 value=-100000 check=1",
	"BENCH name=unheard-of unit=ns n=1 value=4 check=1",
	"BENCH name=getppid-getppid-getppid-getppid-getppid unit=ns n=1 value=4 check=1",
	"BENCH",
	"BENCHMARK",
	"BENCH-END maybe",
	"BENCH-END failed",
	"BENCH-FAIL no memory",
	"BENCH-CLOCK unit=years value=1",
	"BENCH-CLOCK unit=ns value=",
	"BENCH-SKIP name=unheard-of why=no",
};

START_TEST(bad_output)
{
	FEED("BENCH-BEGIN", bad_lines[_i], SAMPLE("getppid", "ns", "1", "1"));
	ck_assert_msg(out.bad[0], "%s", bad_lines[_i]);
}
END_TEST

START_TEST(more_bad_output)
{
	FEED("BENCH-BEGIN", "BENCH-END ok", SAMPLE("getppid", "ns", "1", "1"));
	ck_assert(out.bad[0]);
	FEED("BENCH-BEGIN", "BENCH-BEGIN");
	ck_assert(out.bad[0]);
	/* One work that went wrong does not spoil the others. */
	FEED("BENCH-BEGIN", SAMPLE("getppid", "ns", "1", "1"), "BENCH-FAIL name=getppid why=the answer was 7",
		"BENCH-END failed");
	ck_assert_str_eq(out.bad, "");
	ck_assert(out.ended && out.items[0].bad);
	/* Different answers within a launch. */
	FEED("BENCH-BEGIN", SAMPLE("getppid", "ns", "1", "1"), SAMPLE("getppid", "ns", "1", "2"));
	ck_assert(out.items[0].bad);
}
END_TEST

START_TEST(culprits)
{
	FEED("BENCH-BEGIN");
	ck_assert_int_eq(bench_output_culprit(&out), 0);
	FEED("BENCH-BEGIN", SAMPLE("getppid", "ns", "1", "1"), SAMPLE("getppid", "ns", "1", "1"));
	ck_assert_int_eq(bench_output_culprit(&out), 1);
	/* The one that has begun, whatever the order. */
	FEED("BENCH-BEGIN", SAMPLE("callret", "cycles", "1", "1"));
	ck_assert_int_eq(bench_output_culprit(&out), 2);
}
END_TEST

START_TEST(slow_clock)
{
	FEED("BENCH-CLOCK unit=ns value=1000000000", "noise", "noise", "noise",
		"BENCH-CLOCK unit=ns value=3000000000");
	NEAR(bench_output_clock(&out, 0), 0.5);
	FEED("BENCH-CLOCK unit=cycles value=1000000000", "noise", "BENCH-CLOCK unit=cycles value=7000000000");
	NEAR(bench_output_clock(&out, 3e9), 1);
	FEED("BENCH-CLOCK unit=cycles value=1000000000");
	NEAR(bench_output_clock(&out, 3e9), 0);
}
END_TEST

/* Any bytes at all: nothing crashes, nothing is believed without the words. */
START_TEST(random_output)
{
	static const char *const pieces[] = {"BENCH", " name=getppid", " unit=ns", " n=", "5", " value=", "9",
		".", " check=", "f", "-END ok", "-SKIP", " why=", "=", " ", "-", "name", "\x01"};
	unsigned seed = 7;

	for (unsigned i = 0; i < 20000; i++) {
		char line[BENCH_LINE_MAX] = "";

		FEED("BENCH-BEGIN");
		for (unsigned n = (unsigned)rand_r(&seed) % 14; n; n--)
			strcat(line, pieces[(unsigned)rand_r(&seed) % (sizeof(pieces) / sizeof(pieces[0]))]);
		bench_output_line(&out, line, 5);
		if (out.items[0].count)
			ck_assert(out.items[0].samples[0].value > 0 && out.items[0].samples[0].n);
	}
}
END_TEST

static struct bench_child child;
static unsigned lines;

static void count_line(void *ctx, const char *line, uint64_t now)
{
	lines++;
	snprintf(ctx, 64, "%.60s", line);
}

static int shell(const char *script, double limit, char *last)
{
	memset(&child, 0, sizeof(child));
	child.argv[0] = "/bin/sh";
	child.argv[1] = "-c";
	child.argv[2] = script;
	child.limit = limit;
	child.line = count_line;
	child.ctx = last;
	lines = 0;
	return bench_spawn(&child);
}

START_TEST(spawning)
{
	char last[64] = "";

	ck_assert_int_eq(shell("echo one; printf 'two\\r\\n'; printf 'a\\033[2Jb'; exit 3", 10, last), 0);
	ck_assert_uint_eq(lines, 3);
	ck_assert_str_eq(last, "a?[2Jb");
	ck_assert(WIFEXITED(child.status) && WEXITSTATUS(child.status) == 3);
	shell("echo out; echo the reason >&2", 10, last);
	ck_assert_str_eq(child.tail, "the reason");
	shell("kill -SEGV $$", 10, last);
	ck_assert(WIFSIGNALED(child.status));
	child.argv[0] = "/nonexistent/program";
	ck_assert_int_eq(bench_spawn(&child), -ENOENT);
}
END_TEST

START_TEST(spawn_hang_and_flood)
{
	char last[64];

	shell("sleep 60", 0.3, last);
	ck_assert(child.timed_out && child.seconds < 5);
	/* What it leaves behind does not keep us, even with our pipe open. */
	shell("sleep 60 & echo done", 10, last);
	ck_assert(!child.timed_out && child.seconds < 5);
	/* A grandchild that will not be told is killed with the rest. */
	shell("trap '' TERM INT; (trap '' TERM INT; sleep 60) & wait", 0.3, last);
	ck_assert(child.timed_out && child.seconds < 5);
	shell("yes", 30, last);
	ck_assert(child.flooded && !child.timed_out);
}
END_TEST

START_TEST(initrd)
{
	char folder[] = "/tmp/vmm-test-XXXXXX", binary[64], archive[64], data[4096];
	FILE *file;
	size_t n;

	ck_assert_ptr_nonnull(mkdtemp(folder));
	snprintf(binary, sizeof(binary), "%s/b", folder);
	snprintf(archive, sizeof(archive), "%s/a", folder);
	ck_assert_int_eq(bench_initrd_write(archive, binary), -ENOENT);
	file = fopen(binary, "w");
	fputs("PROGRAM", file);
	fclose(file);
	ck_assert_int_eq(bench_initrd_write(archive, binary), 0);
	file = fopen(archive, "r");
	n = fread(data, 1, sizeof(data), file);
	fclose(file);
	ck_assert_uint_eq(n % 4, 0);
	ck_assert_int_eq(memcmp(data, "070701", 6), 0);
	ck_assert_ptr_nonnull(memmem(data, n, "dev/console", 12));
	ck_assert_ptr_nonnull(memmem(data, n, "PROGRAM", 7));
	ck_assert_ptr_nonnull(memmem(data, n, "TRAILER!!!", 11));
	unlink(binary);
	unlink(archive);
	rmdir(folder);
}
END_TEST

static void sample_result(void)
{
	memset(&result, 0, sizeof(result));
	strcpy(result.version, "1.2");
	strcpy(result.date, "2026-01-02T03:04:05Z");
	strcpy(result.command, "vmm bench 'a \"quoted\" word' <&>");
	result.column_count = 2;
	strcpy(result.columns[0].id, "native");
	strcpy(result.columns[0].label, "Native");
	result.columns[0].present = true;
	strcpy(result.columns[1].id, "tcg");
	strcpy(result.columns[1].label, "QEMU (TCG)");
	result.columns[1].kind = BENCH_QEMU;
	result.columns[1].present = true;
	result.work_count = 2;
	result.works[0] = bench_works[bench_work_find(bench_works, bench_works_count, "getppid")];
	result.works[1] = bench_works[bench_work_find(bench_works, bench_works_count, "fork-wait")];
	result.cells[0][0] = CELL(3, 10, 11, 12);
	result.cells[0][0].has_check = true;
	result.cells[0][0].check = 0xfeedfacecafebeef;
	result.cells[0][1] = CELL(3, 40, 41, 42);
	result.cells[1][0] = CELL(3, 100000, 110000, 120000);
	result.cells[1][1].state = BENCH_FAILED;
	strcpy(result.cells[1][1].why, "A wrong answer: <script>alert(1)</script>.");
	result.noise.stops = 7;
	result.noise.busy = 0.25;
	result.noise.median_ns[BENCH_MEMORY] = 1250.5;
	result.launches[0].speed.ns[BENCH_KERNEL] = 77;
	bench_usual_find(&result);
	result.launch_count = 1;
	result.launches[0].part = BENCH_PART_LINUX;
	result.launches[0].ok = true;
	strcpy(result.launches[0].command, "micro bench=getppid");
	result.profiles[BENCH_PART_LINUX][1].launches = 1;
	result.profiles[BENCH_PART_LINUX][1].count = 1;
	strcpy(result.profiles[BENCH_PART_LINUX][1].counters[0].name, "exits.pio");
	result.profiles[BENCH_PART_LINUX][1].counters[0].value = 12345678901234567;
}

START_TEST(save_and_load)
{
	struct error err = {0};

	sample_result();
	path_make();
	ck_assert_int_eq(bench_save(&result, path, &err), 0);
	ck_assert_int_eq(bench_load(&loaded, path, &err), 0);
	unlink(path);
	ck_assert_str_eq(loaded.command, result.command);
	ck_assert_uint_eq(loaded.work_count, 2);
	ck_assert_uint_eq(loaded.column_count, 2);
	ck_assert_int_eq(loaded.columns[1].kind, BENCH_QEMU);
	ck_assert_int_eq(loaded.works[0].group, BENCH_MICRO);
	ck_assert_uint_eq(loaded.cells[0][0].check, 0xfeedfacecafebeef);
	ck_assert_uint_eq(loaded.cells[0][1].count, 3);
	NEAR(loaded.cells[0][1].samples[2].value, 42);
	ck_assert_int_eq(loaded.cells[1][1].state, BENCH_FAILED);
	ck_assert_str_eq(loaded.cells[1][1].why, result.cells[1][1].why);
	ck_assert_uint_eq(loaded.profiles[BENCH_PART_LINUX][1].counters[0].value, 12345678901234567);
	ck_assert_uint_eq(loaded.noise.stops, 7);
	NEAR(loaded.noise.busy, 0.25);
	NEAR(loaded.noise.median_ns[BENCH_MEMORY], 1250.5);
	NEAR(loaded.launches[0].speed.ns[BENCH_KERNEL], 77);
	ck_assert_int_eq(bench_save(&result, "/nonexistent/x.json", &err), -ENOENT);
	ck_assert(strstr(err.message, "/nonexistent/x.json"));
}
END_TEST

/* The page asks for nothing from elsewhere, and what a guest said is text in it. */
START_TEST(page)
{
	struct error err = {0};
	const char *text;

	sample_result();
	path_make();
	ck_assert_int_eq(bench_html_write(&result, path, &err), 0);
	text = file_text(path);
	unlink(path);
	ck_assert_ptr_nonnull(strstr(text, "×3.73"));
	ck_assert_ptr_nonnull(strstr(text, "&lt;script&gt;"));
	ck_assert_ptr_null(strstr(text, "<script"));
	ck_assert_ptr_null(strstr(text, "http"));
	ck_assert_ptr_null(strstr(text, "src="));
	ck_assert_ptr_null(strstr(text, "url("));
	ck_assert_ptr_nonnull(strstr(text, "failed"));
	ck_assert_ptr_nonnull(strstr(text, "QEMU (TCG) takes 3.73 times as long as Native for getppid."));
	ck_assert_ptr_nonnull(strstr(text, "</html>"));
}
END_TEST

START_TEST(counters)
{
	FILE *file;

	sample_result();
	memset(result.profiles, 0, sizeof(result.profiles));
	path_make();
	file = fopen(path, "w");
	fputs("{\"seconds\": 2, \"vcpus\": [{\"exits\": {\"pio\": 3}, \"kvm\": {\"stints\": 1}, \"engine\": {\"instructions\": 50}},"
	      " {\"exits\": {\"pio\": 4}, \"kvm\": {\"stints\": 2}}]}", file);
	fclose(file);
	bench_profile_add(&result.profiles[BENCH_PART_NANO][1], path);
	bench_profile_add(&result.profiles[BENCH_PART_LINUX][1], path);
	unlink(path);
	bench_profile_add(&result.profiles[BENCH_PART_LINUX][1], path); /* it is not there: nothing */
	ck_assert_uint_eq(bench_profile_sum(&result, 1, "exits.pio"), 14);
	ck_assert_uint_eq(bench_profile_sum(&result, 1, "kvm.stints"), 6);
	ck_assert_uint_eq(bench_profile_sum(&result, 1, "engine.instructions"), 100);
	ck_assert_uint_eq(bench_profile_sum(&result, 0, "exits.pio"), 0);
	ck_assert_uint_eq(result.profiles[BENCH_PART_LINUX][1].launches, 1);
}
END_TEST

START_TEST(refused_files)
{
	static const char *const texts[] = {"", "{", "[]", "{\"format\": \"other\", \"format_version\": 2}",
		"{\"format\": \"vmm-bench\", \"format_version\": 3}", "{\"format\": \"vmm-bench\"}",
		"{\"format\": \"vmm-bench\", \"format_version\": 2} x"};
	struct error err = {0};
	FILE *file;

	path_make();
	file = fopen(path, "w");
	fputs(texts[_i], file);
	fclose(file);
	ck_assert_int_eq(bench_load(&loaded, path, &err), -EINVAL);
	unlink(path);
	ck_assert_int_eq(bench_load(&loaded, path, &err), -ENOENT);
}
END_TEST

/* A damaged file is refused or read; it does not crash. */
START_TEST(damaged_files)
{
	static char text[1 << 18];
	struct error err = {0};
	unsigned seed = 3;
	size_t size;

	sample_result();
	path_make();
	bench_save(&result, path, &err);
	strcpy(text, file_text(path));
	size = strlen(text);
	for (unsigned i = 0; i < 300; i++) {
		FILE *file = fopen(path, "w");
		size_t cut = (unsigned)rand_r(&seed) % size, at = (unsigned)rand_r(&seed) % size;
		char old = text[at];

		text[at] = "{}[]\",:0-9eE\\\t"[(unsigned)rand_r(&seed) % 14];
		fwrite(text, 1, i & 1 ? cut : size, file);
		fclose(file);
		text[at] = old;
		if (!bench_load(&loaded, path, &err)) {
			ck_assert_uint_le(loaded.work_count, BENCH_WORK_MAX);
			bench_html_write(&loaded, "/dev/null", &err);
		}
	}
	unlink(path);
}
END_TEST

START_TEST(json_reading)
{
	static const char good[] = " {\"a\": [1, -2.5e3, true, false, null, \"x\\n\\u00e9\\\"\"], \"b\": {}} ";
	static const char *const bad[] = {"", "{\"a\" 1}", "[1,]", "{\"a\":1,}", "\"a", "\"\\q\"", "\"\n\"",
		"tru", "1 2", "[1", "--1", "\"\\u12\""};
	struct json_value *v = json_parse(good, strlen(good));
	char deep[200];

	ck_assert_ptr_nonnull(v);
	NEAR(json_number(json_get(v, "a")->first, 0), 1);
	NEAR(json_number(json_get(v, "a")->first->next, 0), -2500);
	ck_assert(json_true(json_get(v, "a")->first->next->next));
	ck_assert_str_eq(json_text(json_get(v, "a")->first->next->next->next->next->next, ""), "x\n\xc3\xa9\"");
	ck_assert_ptr_null(json_get(v, "c"));
	ck_assert_ptr_null(json_get(json_get(v, "a"), "b"));
	json_free(v);
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		ck_assert_msg(!json_parse(bad[i], strlen(bad[i])), "%s", bad[i]);
	memset(deep, '[', sizeof(deep));
	ck_assert_ptr_null(json_parse(deep, sizeof(deep)));
}
END_TEST

START_TEST(texts)
{
	static const struct {
		double value;
		enum bench_unit unit;
		const char *text;
	} cases[] = {{12.34, BENCH_CYCLES, "12.3"}, {1234, BENCH_CYCLES, "1234"},
		{12345, BENCH_CYCLES, "12.3 k"}, {1234567, BENCH_CYCLES, "1.23 M"},
		{1.234, BENCH_NS, "1.23 ns"}, {999.9, BENCH_NS, "1.00 µs"}, {123456, BENCH_NS, "123 µs"},
		{0.5, BENCH_SECONDS, "500 ms"}, {27.2, BENCH_SECONDS, "27.2 s"}};

	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		char text[32];

		bench_value_text(cases[i].value, cases[i].unit, text, sizeof(text));
		ck_assert_str_eq(text, cases[i].text);
	}
}
END_TEST

static struct cli_request request;

static int parse(const char *const *args)
{
	char *argv[16] = {(char *)"vmm", (char *)"bench"};
	struct error err = {0};
	int argc = 2, rc;

	for (; args[argc - 2]; argc++)
		argv[argc] = (char *)args[argc - 2];
	argv[argc] = NULL;
	rc = cli_parse(argc, argv, &request, &err);
	ck_assert_int_eq(rc != 0, err.message[0] != 0);
	return rc;
}
#define PARSE(...) parse((const char *const[]){__VA_ARGS__, NULL})

START_TEST(command_line)
{
	ck_assert_int_eq(parse((const char *const[]){NULL}), 0);
	ck_assert_int_eq(request.command, CLI_CMD_BENCH);
	ck_assert_int_eq(PARSE("--quick", "--json", "a", "--html=b", "--group=nano,macro", "--rounds", "2"), 0);
	ck_assert_int_eq(request.bench.pace, BENCH_QUICK);
	ck_assert_str_eq(request.bench.json, "a");
	ck_assert_str_eq(request.bench.html, "b");
	ck_assert_uint_eq(request.bench.groups, BENCH_GROUP_NANO | BENCH_GROUP_MACRO);
	ck_assert_uint_eq(request.bench.rounds, 2);
	ck_assert_int_eq(PARSE("compare", "a", "b"), 0);
	ck_assert_int_eq(request.command, CLI_CMD_BENCH_COMPARE);
	ck_assert_str_eq(request.bench_files[1], "b");
	ck_assert_int_eq(PARSE("show", "a", "--html", "b"), 0);
	ck_assert_int_eq(request.command, CLI_CMD_BENCH_SHOW);
	ck_assert_int_eq(PARSE("--help"), 0);
	ck_assert_int_eq(request.command, CLI_CMD_HELP);
	ck_assert_int_eq(PARSE("compare", "a"), -EINVAL);
	ck_assert_int_eq(PARSE("compare", "a", "b", "c"), -EINVAL);
	ck_assert_int_eq(PARSE("show"), -EINVAL);
	ck_assert_int_eq(PARSE("nonsense"), -EINVAL);
	ck_assert_int_eq(PARSE("--nonsense", "a"), -EINVAL);
	ck_assert_int_eq(PARSE("--nonsense"), -EINVAL);
	ck_assert_int_eq(PARSE("--json"), -EINVAL);
	ck_assert_int_eq(PARSE("--json="), -EINVAL);
	ck_assert_int_eq(PARSE("--group=pico"), -EINVAL);
	ck_assert_int_eq(PARSE("--group="), -EINVAL);
	ck_assert_int_eq(PARSE("--rounds=0"), -EINVAL);
	ck_assert_int_eq(PARSE("--limit=soon"), -EINVAL);
	ck_assert_int_eq(PARSE("-x"), -EINVAL);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("bench");
	TCase *statistics = tcase_create("statistics"), *output = tcase_create("output"),
	      *launch = tcase_create("launch"), *files = tcase_create("files");

	tcase_add_test(statistics, medians);
	tcase_add_test(statistics, one_outlier_moves_no_median);
	tcase_add_test(statistics, quiet_host);
	tcase_add_test(statistics, spread_is_borrowed);
	tcase_add_test(statistics, unstable_figure);
	tcase_add_test(statistics, students);
	tcase_add_test(statistics, spread_of_a_kind);
	tcase_add_test(statistics, spread_holds);
	tcase_add_test(statistics, ratio_of_neighbours);
	tcase_add_test(statistics, about_zero);
	tcase_add_test(statistics, launched_once);
	tcase_add_test(statistics, metering);
	tcase_add_test(statistics, comparing);
	suite_add_tcase(suite, statistics);
	tcase_add_test(output, good_output);
	tcase_add_loop_test(output, bad_output, 0, sizeof(bad_lines) / sizeof(bad_lines[0]));
	tcase_add_test(output, more_bad_output);
	tcase_add_test(output, culprits);
	tcase_add_test(output, slow_clock);
	tcase_add_test(output, random_output);
	suite_add_tcase(suite, output);
	tcase_set_timeout(launch, 60);
	tcase_add_test(launch, spawning);
	tcase_add_test(launch, spawn_hang_and_flood);
	tcase_add_test(launch, initrd);
	suite_add_tcase(suite, launch);
	tcase_set_timeout(files, 60);
	tcase_add_test(files, save_and_load);
	tcase_add_test(files, page);
	tcase_add_test(files, counters);
	tcase_add_loop_test(files, refused_files, 0, 7);
	tcase_add_test(files, damaged_files);
	tcase_add_test(files, json_reading);
	tcase_add_test(files, texts);
	tcase_add_test(files, command_line);
	suite_add_tcase(suite, files);
	return run_suite(suite);
}
