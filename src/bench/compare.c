/*
 * What changed between two results. A change counts only if it is more than both runs' spreads together (figure.c),
 * which are of whole launches. If the host itself went differently in the two runs, by what its speed was measured as
 * (meter.c), works are judged by their ratio to another column of the same
 * run: native, or QEMU's TCG for a group most of which native cannot do. Where times are judged, by how much the host's speed
 * differed between the runs is added to the spread. What one of the runs itself called unstable is not judged.
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

struct comparison {
	const struct bench_result *a, *b;
	bool drift;
	double change; /* the largest difference of the host's speeds, as a logarithm */
	unsigned faster, slower, same, unstable, other;
};

/* The host drifted if a speed's median in either run is outside of what it was in the other nearly all the
 * time. */
static void drift_find(struct comparison *x)
{
	const struct bench_noise *a = &x->a->noise, *b = &x->b->noise;

	for (unsigned kind = 0; kind < BENCH_SPEEDS; kind++) {
		if (a->median_ns[kind] <= 0 || b->median_ns[kind] <= 0)
			continue;
		x->change = fmax(x->change, fabs(log(b->median_ns[kind] / a->median_ns[kind])));
		if ((b->median_ns[kind] < a->low_ns[kind] || b->median_ns[kind] > a->high_ns[kind]) &&
			(a->median_ns[kind] < b->low_ns[kind] || a->median_ns[kind] > b->high_ns[kind])) {
			printf("%s %s ×%.2f as long", x->drift ? "," : "The host drifted: in the second run",
				bench_speed_names[kind], b->median_ns[kind] / a->median_ns[kind]);
			x->drift = true;
		}
	}
	if (x->drift)
		printf(" (see docs/bench-json.md).\nSo works are judged by their ratio to another column of "
		       "the same run (marked r), and that column by its time.\n");
	printf("×%.2f, by which the host's speed differed between the runs, is added to the spread of times.\n",
		exp(x->change));
}

/* The columns that a work is related to, if they are the same one in both results and not the one that is
 * judged. */
static bool bases_find(const struct comparison *x, unsigned v, unsigned w, const char *id, int *d, int *c)
{
	*d = bench_baseline(x->a, x->a->works[v].group);
	*c = bench_baseline(x->b, x->b->works[w].group);
	return *d >= 0 && *c >= 0 && !strcmp(x->a->columns[*d].id, x->b->columns[*c].id) &&
	       strcmp(x->b->columns[*c].id, id) != 0 && x->a->cells[v][*d].state == BENCH_OK &&
	       x->b->cells[w][*c].state == BENCH_OK;
}

#define ROUNDING 1e-9 /* of equal figures that were computed from scaled ones */

static const char *verdict(
	struct comparison *x, const struct bench_figure *a, const struct bench_figure *b, double spread)
{
	double ratio = b->value / a->value;

	if (a->unstable || b->unstable) {
		x->unstable++;
		return a->unstable && b->unstable ? "unstable in both"
		       : a->unstable		  ? "unstable in the first"
						  : "unstable in the second";
	}
	if (!a->known || !b->known) {
		x->other++;
		return "not judged: launched only once";
	}
	if (fabs(log(ratio)) <= log(spread) + ROUNDING) {
		x->same++;
		return "within the spread";
	}
	if (ratio < 1)
		x->faster++;
	else
		x->slower++;
	return ratio < 1 ? "faster" : "SLOWER";
}

static void line_print(struct comparison *x, const struct bench_work *work, const char *column,
	const struct bench_figure *a, const struct bench_figure *b, bool relative)
{
	double wider = relative ? 0 : x->change, ratio = b->value / a->value,
	       spread = exp(hypot(hypot(log(a->spread), log(b->spread)), wider));
	char before[24], after[24], value[16], low[16], high[16];

	if (relative) {
		bench_ratio_text(a->value, before, sizeof(before));
		bench_ratio_text(b->value, after, sizeof(after));
	} else {
		bench_value_text(a->value, work->unit, before, sizeof(before));
		bench_value_text(b->value, work->unit, after, sizeof(after));
	}
	bench_ratio_text(ratio, value, sizeof(value));
	bench_ratio_text(ratio / spread, low, sizeof(low));
	bench_ratio_text(ratio * spread, high, sizeof(high));
	printf("%-18s %-18s %s %10s -> %-10s ×%-6s (%s..%s) %s\n", work->id, column, relative ? "r" : " ",
		before, after, value, low, high, verdict(x, a, b, spread));
}

static void figures_print(struct comparison *x, unsigned v, unsigned w, unsigned d, unsigned c)
{
	const struct bench_work *work = &x->b->works[w];
	const char *column = x->b->columns[c].id;
	int base_a = -1, base_b = -1;
	bool relative = x->drift && bases_find(x, v, w, column, &base_a, &base_b);
	struct bench_figure a = bench_figure(x->a, v, d, relative ? base_a : -1),
			    b = bench_figure(x->b, w, c, relative ? base_b : -1);

	if (work->unit == BENCH_CYCLES && !relative && a.value < 2 && b.value < 2) {
		printf("%-18s %-18s   less than two cycles, both times\n", work->id, column);
		x->same++;
	} else if (a.value <= 0 || b.value <= 0 || a.spread <= 0 || b.spread <= 0) {
		printf("%-18s %-18s   not compared: about nothing in one of the runs\n", work->id, column);
		x->other++;
	} else {
		line_print(x, work, column, &a, &b, relative);
	}
}

static void pair_print(struct comparison *x, unsigned v, unsigned w, unsigned d, unsigned c)
{
	const struct bench_work *work = &x->b->works[w];
	const struct bench_cell *a = &x->a->cells[v][d], *b = &x->b->cells[w][c];
	const char *column = x->b->columns[c].id;

	if (a->state != BENCH_OK || b->state != BENCH_OK) {
		if (a->state != b->state) {
			printf("%-18s %-18s %s, then %s\n", work->id, column, bench_state_names[a->state],
				bench_state_names[b->state]);
			x->other++;
		}
		return;
	}
	if (work->unit == BENCH_SECONDS && a->samples[0].n != b->samples[0].n) {
		printf("%-18s %-18s not compared: %llu and %llu iterations\n", work->id, column,
			(unsigned long long)a->samples[0].n, (unsigned long long)b->samples[0].n);
		x->other++;
		return;
	}
	figures_print(x, v, w, d, c);
}

static void describe(const char *name, const char *path, const struct bench_result *r)
{
	char noise[BENCH_TEXT_MAX];

	bench_noise_text(&r->noise, noise, sizeof(noise));
	printf("%s: %s, %s, %s, commit %s. %s.\n", name, path, r->date, r->pace, r->commit, noise);
}

static void compare(const struct bench_result *a, const struct bench_result *b)
{
	struct comparison x = {.a = a, .b = b};

	if (strcmp(a->host.cpu, b->host.cpu))
		printf("The runs are from different processors (%s; %s): the ratios compare the hosts too.\n",
			a->host.cpu, b->host.cpu);
	if (strcmp(a->guest_kernel, b->guest_kernel))
		printf("The runs had different guest kernels (%s; %s).\n", a->guest_kernel, b->guest_kernel);
	if (strcmp(a->pace, b->pace))
		printf("The runs were of different pace (%s; %s): their samples are not of one length.\n",
			a->pace, b->pace);
	drift_find(&x);
	for (unsigned w = 0; w < b->work_count; w++) {
		int v = bench_work_find(a->works, a->work_count, b->works[w].id);

		for (unsigned c = 0; v >= 0 && c < b->column_count; c++) {
			int d = column_same(a, b->columns[c].id);

			if (d >= 0)
				pair_print(&x, (unsigned)v, w, (unsigned)d, c);
		}
	}
	printf("%u faster, %u slower, %u within the spread, %u unstable, %u not comparable.\n", x.faster,
		x.slower, x.same, x.unstable, x.other);
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
