/*
 * What a figure is worth. Samples of one launch resemble each other; launches of the same thing differ, by the host's
 * other work, by its neighbours and by chance, and two runs differ at least as much. So a figure's spread is made of
 * whole launches:
 *
 *	y(l)	the logarithm of the median of launch l's samples of a work (or, for a ratio, the same less that of the
 *		base's launches just before and just after l, which what drifts touches alike)
 *	apart	how far the y of two launches of one work are from each other: the 95th percentile over all pairs of
 *		launches of all works that a column did in a part
 *	spread	of a figure: apart of its column or of all guests of the part, its own launches' interval, or how
 *		much the host's speed varied during the run (meter.c): what is most
 *
 * A work was often launched only twice or so, and its own two launches may agree by chance; a hundred works' pairs do
 * not. Yet all works of one launch share its luck, which is why a column's own pairs alone are not trusted. A figure
 * half of whose own pairs are further apart than that is unstable, and nothing is claimed of it. No constant is
 * assumed: on a quiet host the spread is small because launches agree.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench_internal.h"

#define APART_QUANTILE 0.95

/* The medians of a cell's launches, in the order of the launches. */
struct series {
	unsigned count;
	unsigned launch[BENCH_LAUNCH_MAX];
	double value[BENCH_LAUNCH_MAX];
};

static void series_make(const struct bench_cell *cell, struct series *series)
{
	double values[BENCH_SAMPLE_MAX];

	series->count = 0;
	for (unsigned i = 0; i < cell->count && series->count < BENCH_LAUNCH_MAX;) {
		unsigned launch = cell->samples[i].launch, n = 0;

		for (; i < cell->count && cell->samples[i].launch == launch; i++)
			values[n++] = cell->samples[i].value;
		series->launch[series->count] = launch;
		series->value[series->count++] = bench_median(values, n);
	}
}

/* Logarithms; false if one is of nothing, as cycles can be. */
static bool series_log(struct series *series)
{
	for (unsigned i = 0; i < series->count; i++) {
		if (!(series->value[i] > 0))
			return false;
		series->value[i] = log(series->value[i]);
	}
	return series->count > 0;
}

/* Takes off each launch the mean of the base's nearest ones before and after it. */
static void series_relate(struct series *series, const struct series *base)
{
	for (unsigned i = 0; i < series->count; i++) {
		double sum = 0;
		unsigned n = 0;

		for (unsigned j = 0; j < base->count; j++) {
			bool before = base->launch[j] <= series->launch[i];
			bool next_before = j + 1 < base->count && base->launch[j + 1] <= series->launch[i];
			bool first_after = !before && (!j || base->launch[j - 1] <= series->launch[i]);

			if ((before && !next_before) || first_after) {
				sum += base->value[j];
				n++;
			}
		}
		series->value[i] -= n ? sum / n : 0;
	}
}

/* The logarithms of a cell, or of its ratio to base's if base >= 0. False if there are none. */
static bool logs_make(
	const struct bench_result *r, unsigned work, unsigned column, int base, struct series *series)
{
	struct series other;

	if (r->cells[work][column].state != BENCH_OK)
		return false;
	series_make(&r->cells[work][column], series);
	if (!series_log(series))
		return false;
	if (base < 0)
		return true;
	if ((int)column == base || r->cells[work][base].state != BENCH_OK)
		return false;
	series_make(&r->cells[work][base], &other);
	if (!series_log(&other))
		return false;
	series_relate(series, &other);
	return true;
}

struct pair {
	double apart, weight;
};
struct pairs {
	unsigned count, size;
	struct pair *pairs;
};

static int value_compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static int pair_compare(const void *a, const void *b)
{
	double x = ((const struct pair *)a)->apart, y = ((const struct pair *)b)->apart;

	return (x > y) - (x < y);
}

/* All pairs of one work, which together weigh 1. */
static void pairs_add(struct pairs *pairs, const struct series *series)
{
	unsigned n = series->count * (series->count - 1) / 2;
	struct pair *grown;

	if (series->count < 2)
		return;
	if (pairs->count + n > pairs->size) {
		grown = realloc(pairs->pairs, (pairs->count + n) * 2 * sizeof(*grown));
		if (!grown)
			return;
		pairs->pairs = grown;
		pairs->size = (pairs->count + n) * 2;
	}
	for (unsigned i = 0; i < series->count; i++)
		for (unsigned j = 0; j < i; j++)
			pairs->pairs[pairs->count++] =
				(struct pair){fabs(series->value[i] - series->value[j]), 1.0 / n};
}

#define UNKNOWN -1.0 /* no work was launched twice */

static double pairs_quantile(struct pairs *pairs)
{
	double all = 0, sum = 0;

	if (!pairs->count)
		return UNKNOWN;
	qsort(pairs->pairs, pairs->count, sizeof(*pairs->pairs), pair_compare);
	for (unsigned i = 0; i < pairs->count; i++)
		all += pairs->pairs[i].weight;
	for (unsigned i = 0; i < pairs->count; i++) {
		sum += pairs->pairs[i].weight;
		if (sum >= APART_QUANTILE * all)
			return pairs->pairs[i].apart;
	}
	return pairs->pairs[pairs->count - 1].apart;
}

/* Of one column in a part, or of all guests' (column < 0): what a process does says little of what guests do.
 */
static double apart_of(const struct bench_result *r, unsigned part, int column, bool ratio)
{
	struct pairs pairs = {0};
	struct series series;
	double apart;

	for (unsigned w = 0; w < r->work_count; w++)
		for (unsigned c = 0; c < r->column_count; c++)
			if (r->works[w].part == part &&
				(column < 0 ? r->columns[c].kind != BENCH_NATIVE : (int)c == column) &&
				logs_make(
					r, w, c, ratio ? bench_baseline(r, r->works[w].group) : -1, &series))
				pairs_add(&pairs, &series);
	apart = pairs_quantile(&pairs);
	free(pairs.pairs);
	return apart;
}

void bench_apart_find(struct bench_result *r)
{
	for (unsigned ratio = 0; ratio < 2; ratio++)
		for (unsigned part = 0; part < BENCH_PARTS; part++) {
			double all = apart_of(r, part, -1, ratio);

			for (unsigned c = 0; c < r->column_count; c++) {
				double own = apart_of(r, part, (int)c, ratio);

				r->apart[ratio][part][c] =
					r->columns[c].kind == BENCH_NATIVE ? own : fmax(all, own);
				if (r->apart[ratio][part][c] < 0) /* no two ratios: then of times */
					r->apart[ratio][part][c] = r->apart[0][part][c];
			}
		}
}

static double pairs_median(const struct series *series)
{
	double values[BENCH_SAMPLE_MAX];
	unsigned n = 0;

	for (unsigned i = 0; i < series->count; i++)
		for (unsigned j = 0; j < i && n < BENCH_SAMPLE_MAX; j++)
			values[n++] = fabs(series->value[i] - series->value[j]);
	return bench_median(values, n);
}

/* How much the host's own speed varied, whichever way it is measured, as a logarithm. */
static double noise_of(const struct bench_result *r)
{
	double factor = 1;

	for (unsigned kind = 0; kind < BENCH_SPEEDS; kind++)
		factor = fmax(factor, bench_noise_factor(&r->noise, kind));
	return log(factor);
}

/*
 * How wide the interval is that holds the median of what launches can be, in 95 of 100 cases: from the k-th smallest to
 * the k-th largest, where fewer than k of n fair coins show heads in at most 2.5 % of cases. All of the range up to
 * eight launches; one that went wrong counts less and less the more there are.
 */
static double own_width(const struct series *series)
{
	unsigned n = series->count, k = 1;
	double sorted[BENCH_LAUNCH_MAX], term = pow(0.5, n), below = term; /* P(heads < k), k = 1 */

	memcpy(sorted, series->value, n * sizeof(*sorted));
	qsort(sorted, n, sizeof(*sorted), value_compare);
	for (unsigned next = 2; next <= n / 2; next++) {
		term *= (double)(n - next + 2) / (next - 1);
		below += term;
		if (below > (1 - APART_QUANTILE) / 2)
			break;
		k = next;
	}
	return sorted[n - k] - sorted[k - 1];
}

struct bench_figure bench_figure(const struct bench_result *r, unsigned work, unsigned column, int base)
{
	const struct bench_cell *cell = &r->cells[work][column];
	double apart = r->apart[base >= 0][r->works[work].part][column], noise = noise_of(r), low, high;
	struct bench_figure figure = {0};
	struct series series;

	if (cell->state != BENCH_OK || !cell->count)
		return figure;
	if (!logs_make(r, work, column, base, &series)) {
		struct bench_interval spread = bench_spread(cell);

		if (base < 0) { /* about nothing: no logarithm, but an interval */
			figure.value = spread.value;
			figure.low = spread.low;
			figure.high = spread.high;
		}
		return figure;
	}
	low = bench_quantile(series.value, series.count, 0);
	high = bench_quantile(series.value, series.count, 1);
	figure.launches = series.count;
	figure.own = exp(high - low);
	figure.unstable = apart >= 0 && pairs_median(&series) > apart;
	figure.spread = exp(fmax(fmax(apart, noise), own_width(&series)));
	figure.value = base < 0 ? bench_spread(cell).value : exp(bench_median(series.value, series.count));
	figure.known = apart >= 0;
	if (!figure.known && base < 0 && bench_quartiles(cell).low > 0) /* launched once: its samples must do */
		figure.spread = bench_quartiles(cell).high / bench_quartiles(cell).low;
	figure.low = figure.value / figure.spread;
	figure.high = figure.value * figure.spread;
	return figure;
}

void bench_unstable_text(
	const struct bench_result *r, unsigned work, unsigned column, char *text, size_t size)
{
	const struct bench_cell *cell = &r->cells[work][column];
	struct bench_figure figure = bench_figure(r, work, column, -1);
	double least[BENCH_SPEEDS], most[BENCH_SPEEDS] = {0}, busy = 0, worst = 1;
	unsigned kind = 0, n = 0;
	struct series series;
	int at;

	series_make(cell, &series);
	for (unsigned k = 0; k < BENCH_SPEEDS; k++)
		least[k] = INFINITY;
	for (unsigned i = 0; i < series.count; i++) {
		const struct bench_speed *speed;

		if (series.launch[i] >= r->launch_count)
			continue;
		speed = &r->launches[series.launch[i]].speed;
		busy += speed->busy;
		n++;
		for (unsigned k = 0; k < BENCH_SPEEDS; k++) {
			least[k] = fmin(least[k], speed->ns[k]);
			most[k] = fmax(most[k], speed->ns[k]);
		}
	}
	for (unsigned k = 0; k < BENCH_SPEEDS; k++)
		if (least[k] > 0 && most[k] / least[k] > worst) {
			worst = most[k] / least[k];
			kind = k;
		}
	at = snprintf(text, size, "%u launches differ by up to ×%.2f", figure.launches, figure.own);
	if (n && at > 0 && (size_t)at < size)
		snprintf(text + at, size - (size_t)at,
			"; around them others had the processor for %.0f %% of the time, and the host's "
			"speed (%s) varied by ×%.2f",
			busy / n * 100, bench_speed_names[kind], worst);
}
