/*
 * Medians, spreads and ratios. A ratio's interval comes from the bootstrap (Efron, 1979): both sets of samples are drawn
 * anew with replacement, and the 2.5th and 97.5th percentile of the ratios of their medians are its ends. Samples of one
 * launch resemble each other more than samples of two, so where there are several launches the interval also covers
 * the ratios of their medians.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench_internal.h"

#define RESAMPLES 2000

static int compare_doubles(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* values is sorted. Linear interpolation between the neighbours. */
static double sorted_quantile(const double *values, unsigned count, double q)
{
	double at = q * (double)(count - 1);
	unsigned below = (unsigned)at;

	if (below + 1 >= count)
		return values[count - 1];
	return values[below] + (at - (double)below) * (values[below + 1] - values[below]);
}

double bench_quantile(const double *values, unsigned count, double q)
{
	double *copy, result;

	if (!count)
		return 0;
	copy = malloc(count * sizeof(*copy));
	if (!copy)
		return values[0];
	memcpy(copy, values, count * sizeof(*copy));
	qsort(copy, count, sizeof(*copy), compare_doubles);
	result = sorted_quantile(copy, count, q);
	free(copy);
	return result;
}

double bench_median(const double *values, unsigned count)
{
	return bench_quantile(values, count, 0.5);
}

static unsigned values_of(const struct bench_cell *cell, double *values)
{
	for (unsigned i = 0; i < cell->count; i++)
		values[i] = cell->samples[i].value;
	return cell->count;
}

/* The lowest and the highest of the medians of single launches. */
static void launches_range(const struct bench_cell *cell, double *low, double *high)
{
	double values[BENCH_SAMPLE_MAX];

	*low = *high = 0;
	for (unsigned i = 0; i < cell->count; i++) {
		unsigned n = 0;
		double median;

		if (i && cell->samples[i].launch == cell->samples[i - 1].launch)
			continue;
		for (unsigned j = i; j < cell->count && cell->samples[j].launch == cell->samples[i].launch; j++)
			values[n++] = cell->samples[j].value;
		median = bench_median(values, n);
		if (!i || median < *low)
			*low = median;
		if (!i || median > *high)
			*high = median;
	}
}

static uint64_t random_next(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static double resampled_median(const double *values, unsigned count, uint64_t *seed)
{
	double drawn[BENCH_SAMPLE_MAX];

	for (unsigned i = 0; i < count; i++)
		drawn[i] = values[random_next(seed) % count];
	qsort(drawn, count, sizeof(*drawn), compare_doubles);
	return sorted_quantile(drawn, count, 0.5);
}

struct bench_interval bench_ratio(const struct bench_cell *a, const struct bench_cell *b, double noise)
{
	double x[BENCH_SAMPLE_MAX], y[BENCH_SAMPLE_MAX], a_low, a_high, b_low, b_high, *ratios;
	struct bench_interval result = {0};
	unsigned m = values_of(a, x), n = values_of(b, y);
	uint64_t seed = 0x9e3779b97f4a7c15;
	double base;

	base = bench_median(y, n);
	result.value = bench_median(x, m) / base;
	if (!m || !n || base <= 0 || result.value <= 0)
		return (struct bench_interval){0};
	result.low = result.high = result.value;
	launches_range(a, &a_low, &a_high);
	launches_range(b, &b_low, &b_high);
	if (a_low > 0 && b_low > 0) {
		result.low = a_low / b_high;
		result.high = a_high / b_low;
	}
	ratios = malloc(RESAMPLES * sizeof(*ratios));
	if (ratios) {
		unsigned drawn = 0;

		for (unsigned i = 0; i < RESAMPLES; i++) {
			double over = resampled_median(x, m, &seed), under = resampled_median(y, n, &seed);

			if (over > 0 && under > 0)
				ratios[drawn++] = over / under;
		}
		qsort(ratios, drawn, sizeof(*ratios), compare_doubles);
		if (drawn) {
			result.low = fmin(result.low, sorted_quantile(ratios, drawn, 0.025));
			result.high = fmax(result.high, sorted_quantile(ratios, drawn, 0.975));
		}
		free(ratios);
	}
	result.low /= 1 + noise;
	result.high *= 1 + noise;
	return result;
}

struct bench_interval bench_spread(const struct bench_cell *cell)
{
	double values[BENCH_SAMPLE_MAX];
	unsigned n = values_of(cell, values);
	struct bench_interval result;

	result.value = bench_median(values, n);
	result.low = bench_quantile(values, n, 0);
	result.high = bench_quantile(values, n, 1);
	return result;
}

struct bench_interval bench_quartiles(const struct bench_cell *cell)
{
	double values[BENCH_SAMPLE_MAX];
	unsigned n = values_of(cell, values);

	return (struct bench_interval){
		bench_median(values, n), bench_quantile(values, n, 0.25), bench_quantile(values, n, 0.75)};
}

double bench_geomean(const double *values, unsigned count)
{
	double sum = 0;

	for (unsigned i = 0; i < count; i++) {
		if (!(values[i] > 0))
			return 0;
		sum += log(values[i]);
	}
	return count ? exp(sum / count) : 0;
}
