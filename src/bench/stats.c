/* Medians, quantiles and means. What they are worth, figure.c says. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench_internal.h"

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

uint64_t bench_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
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
