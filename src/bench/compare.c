/*
 * What changed between two results. A change counts only if 1 is outside the interval of the ratio of the medians, which
 * is widened by the noise of both runs; and two runs on different processors are not compared silently.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench_internal.h"
#include "vmm/error.h"

static int column_same(const struct bench_result *r, const char *id)
{
	for (unsigned c = 0; c < r->column_count; c++)
		if (!strcmp(r->columns[c].id, id))
			return (int)c;
	return -1;
}

struct tally {
	unsigned faster, slower, same, other;
};

static const char *verdict(const struct bench_interval *ratio, struct tally *tally)
{
	if (ratio->high < 1) {
		tally->faster++;
		return "faster";
	}
	if (ratio->low > 1) {
		tally->slower++;
		return "SLOWER";
	}
	tally->same++;
	return "within the noise";
}

static void pair_print(const struct bench_work *work, const char *column, const struct bench_cell *a,
	const struct bench_cell *b, double noise, struct tally *tally)
{
	char before[24], after[24], value[16], low[16], high[16];
	struct bench_interval ratio;

	if (a->state == BENCH_EMPTY && b->state == BENCH_EMPTY)
		return;
	if (a->state != BENCH_OK || b->state != BENCH_OK) {
		if (a->state != b->state) {
			printf("%-18s %-18s %s, then %s\n", work->id, column, bench_state_names[a->state],
				bench_state_names[b->state]);
			tally->other++;
		}
		return;
	}
	if (work->unit == BENCH_SECONDS && a->samples[0].n != b->samples[0].n) {
		printf("%-18s %-18s not compared: %llu and %llu iterations\n", work->id, column,
			(unsigned long long)a->samples[0].n, (unsigned long long)b->samples[0].n);
		tally->other++;
		return;
	}
	ratio = bench_ratio(b, a, noise);
	if (ratio.value <= 0)
		return;
	if (work->unit == BENCH_CYCLES && bench_spread(a).value < 2 && bench_spread(b).value < 2) {
		printf("%-18s %-18s less than two cycles, both times\n", work->id, column);
		tally->same++;
		return;
	}
	bench_value_text(bench_spread(a).value, work->unit, before, sizeof(before));
	bench_value_text(bench_spread(b).value, work->unit, after, sizeof(after));
	bench_ratio_text(ratio.value, value, sizeof(value));
	bench_ratio_text(ratio.low, low, sizeof(low));
	bench_ratio_text(ratio.high, high, sizeof(high));
	printf("%-18s %-18s %10s -> %-10s ×%-6s (%s..%s) %s\n", work->id, column, before, after, value, low,
		high, verdict(&ratio, tally));
}

static void describe(const char *name, const char *path, const struct bench_result *r)
{
	printf("%s: %s, %s, %s, commit %s, noise %.1f %%\n", name, path, r->date, r->pace, r->commit,
		r->noise.relative * 100);
}

static void compare(const struct bench_result *a, const struct bench_result *b)
{
	double noise = hypot(a->noise.relative, b->noise.relative);
	struct tally tally = {0};

	if (strcmp(a->host.cpu, b->host.cpu))
		printf("The runs are from different processors (%s; %s): the ratios compare the hosts too.\n",
			a->host.cpu, b->host.cpu);
	if (strcmp(a->guest_kernel, b->guest_kernel))
		printf("The runs had different guest kernels (%s; %s).\n", a->guest_kernel, b->guest_kernel);
	for (unsigned w = 0; w < b->work_count; w++) {
		int v = bench_work_find(a->works, a->work_count, b->works[w].id);

		for (unsigned c = 0; v >= 0 && c < b->column_count; c++) {
			int d = column_same(a, b->columns[c].id);

			if (d >= 0)
				pair_print(&b->works[w], b->columns[c].id, &a->cells[v][d], &b->cells[w][c],
					noise, &tally);
		}
	}
	printf("%u faster, %u slower, %u within the noise, %u not comparable.\n", tally.faster, tally.slower,
		tally.same, tally.other);
	if (tally.faster + tally.slower)
		printf("The intervals are 95 %% each: of %u, chance alone puts about %u outside.\n",
			tally.faster + tally.slower + tally.same, (tally.faster + tally.slower + tally.same + 10) / 20);
}

int bench_compare(const char *before, const char *after, struct error *err)
{
	struct bench_result *a = malloc(sizeof(*a)), *b = malloc(sizeof(*b));
	int rc = a && b ? 0 : error_set(err, -ENOMEM, "The host is out of memory.");

	if (!rc)
		rc = bench_load(a, before, err);
	if (!rc)
		rc = bench_load(b, after, err);
	if (!rc) {
		describe("Before", before, a);
		describe("After ", after, b);
		compare(a, b);
	}
	free(a);
	free(b);
	return rc;
}
