/*
 * What a figure is worth. Samples of one launch resemble each other; launches of the same thing differ, by the host's
 * other work, by its neighbours and by chance, and two runs differ as launches do. So a figure's spread is made of whole
 * launches:
 *
 *	y(l)	the logarithm of the median of launch l's samples of a work (or, for a ratio, the same less that of the
 *		base's launches just before and just after l, which what drifts touches alike)
 *	own	the standard deviation of a work's y on a column
 *	usual	the median of own over all works of a kind (in user mode, in the kernel, on a device) that guests, or
 *		native programs, did in a part
 *	both	sqrt((6 usual² + (n - 1) own²) / (6 + n - 1)), n launches: its own where there are many, the usual one where there are few
 *	spread	exp(t × 1.25 both / √n): the median of another run is within it in 999 of 1,000 cases. t is Student's with
 *		6 + n - 1 degrees of freedom; 1.25 is by how much a median is less certain than a mean.
 *
 * So a steady work has a small spread whatever its neighbours in the table do, and two launches that agree by chance do not
 * make one. A page has hundreds of figures and is compared with another page: hence 999, not 95 of 100. What differed from run to run
 * but not within one is not in it; compare.c looks for that in the host's speed.
 * A figure is unstable, and nothing is claimed of it, if its spread is twofold and more and its own deviation what with the
 * usual one a single work of 1,000 shows.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench_internal.h"

#define PRIOR 6.0	 /* how many launches of its own the usual deviation of its kind weighs as much as */
#define CERTAIN_Z 3.2905 /* of the normal distribution: 999 of 1,000 within */
#define RARE_Z 3.0902	 /* 1 of 1,000 above */
#define MEDIAN_LOSS 1.2533
#define UNKNOWN -1.0 /* no work was launched twice */

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

static int value_compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

double bench_student(double freedom)
{
	const double z = CERTAIN_Z, v = freedom;

	/* The expansion of Student's quantile about the normal one; 2 % low at v = 6, less above. */
	return z + (pow(z, 3) + z) / (4 * v) + (5 * pow(z, 5) + 16 * pow(z, 3) + 3 * z) / (96 * v * v) +
	       (3 * pow(z, 7) + 19 * pow(z, 5) + 17 * pow(z, 3) - 15 * z) / (384 * v * v * v);
}

/* The factor of a variance's quantile at z over its mean, with so many degrees of freedom (Wilson and Hilferty). */
static double variance_factor(double freedom, double z)
{
	double c = 2 / (9 * freedom);

	return pow(fmax(0, 1 - c + z * sqrt(c)), 3);
}

static double deviation(const struct series *series)
{
	double mean = 0, sum = 0;

	for (unsigned i = 0; i < series->count; i++)
		mean += series->value[i] / series->count;
	for (unsigned i = 0; i < series->count; i++)
		sum += (series->value[i] - mean) * (series->value[i] - mean);
	return series->count > 1 ? sqrt(sum / (series->count - 1)) : 0;
}

/*
 * The median of the works' own deviations, each made larger by what deviations of so few launches are too small by in
 * the median; of one kind, or of all if kind is BENCH_KINDS. UNKNOWN if there is none.
 */
static double usual_of(const struct bench_result *r, unsigned part, bool native, unsigned kind, bool ratio)
{
	double values[BENCH_WORK_MAX * BENCH_COLUMN_MAX];
	struct series series;
	unsigned n = 0;

	for (unsigned w = 0; w < r->work_count; w++)
		for (unsigned c = 0; c < r->column_count; c++)
			if (r->works[w].part == part && (kind == BENCH_KINDS || bench_work_kind(r->works[w].id) == kind) &&
				(r->columns[c].kind == BENCH_NATIVE) == native &&
				logs_make(r, w, c, ratio ? bench_baseline(r, r->works[w].group) : -1, &series) &&
				series.count > 1)
				values[n++] = deviation(&series) / sqrt(variance_factor(series.count - 1, 0));
	return n ? bench_median(values, n) : UNKNOWN;
}

void bench_usual_find(struct bench_result *r)
{
	for (unsigned ratio = 0; ratio < 2; ratio++)
		for (unsigned part = 0; part < BENCH_PARTS; part++)
			for (unsigned native = 0; native < 2; native++)
				for (unsigned kind = 0; kind < BENCH_KINDS; kind++) {
					double *usual = &r->usual[ratio][part][native][kind];

					*usual = usual_of(r, part, native, kind, ratio);
					if (*usual < 0)
						*usual = usual_of(r, part, native, BENCH_KINDS, ratio);
					if (*usual < 0) /* no two ratios: then of times */
						*usual = r->usual[0][part][native][kind];
				}
}

static double usual(const struct bench_result *r, unsigned work, unsigned column, bool ratio)
{
	return r->usual[ratio][r->works[work].part][r->columns[column].kind == BENCH_NATIVE]
		       [bench_work_kind(r->works[work].id)];
}

/* The logarithm of the spread of a series' median. */
static double width_of(const struct series *series, double usual)
{
	double n = series->count, own = deviation(series), freedom = PRIOR + n - 1;
	double both = sqrt((PRIOR * usual * usual + (n - 1) * own * own) / freedom);

	return bench_student(freedom) * both * (n > 2 ? MEDIAN_LOSS : 1) / sqrt(n);
}

struct bench_figure bench_figure(const struct bench_result *r, unsigned work, unsigned column, int base)
{
	const struct bench_cell *cell = &r->cells[work][column];
	struct bench_figure figure = {0};
	struct series series;
	double most;

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
	most = usual(r, work, column, base >= 0);
	figure.known = most >= 0;
	figure.launches = series.count;
	qsort(series.value, series.count, sizeof(*series.value), value_compare);
	figure.own = exp(series.value[series.count - 1] - series.value[0]);
	figure.spread = exp(width_of(&series, fmax(0, most)));
	figure.value = base < 0 ? bench_spread(cell).value : exp(bench_median(series.value, series.count));
	if (series.count > 1)
		figure.unstable = figure.known && figure.spread > 2 &&
				  deviation(&series) > most * sqrt(variance_factor(series.count - 1, RARE_Z));
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
