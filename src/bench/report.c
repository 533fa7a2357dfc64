/* What the table on the terminal and the page have in common: the base of the ratios, the sentences, the numbers as text. */
#include <math.h>
#include <string.h>

#include "bench_internal.h"

bool bench_cell_shown(const struct bench_result *r, enum bench_group group, unsigned column)
{
	for (unsigned w = 0; w < r->work_count; w++)
		if (r->works[w].group == group &&
			(r->cells[w][column].state == BENCH_OK || r->cells[w][column].state == BENCH_FAILED))
			return true;
	return false;
}

static unsigned measured(const struct bench_result *r, enum bench_group group, int column)
{
	unsigned n = 0;

	for (unsigned w = 0; column >= 0 && w < r->work_count; w++)
		n += r->works[w].group == group && r->cells[w][column].state == BENCH_OK;
	return n;
}

static int column_of(const struct bench_result *r, const char *id)
{
	for (unsigned c = 0; c < r->column_count; c++)
		if (!strcmp(r->columns[c].id, id))
			return (int)c;
	return -1;
}

int bench_baseline(const struct bench_result *r, enum bench_group group)
{
	int native = column_of(r, "native"), tcg = column_of(r, "tcg");
	unsigned works = 0;

	for (unsigned w = 0; w < r->work_count; w++)
		works += r->works[w].group == group;
	if (measured(r, group, native) * 2 > works)
		return native;
	if (measured(r, group, tcg))
		return tcg;
	return measured(r, group, native) ? native : -1;
}

/* Ratios of the works that both columns measured. */
static unsigned ratios(const struct bench_result *r, enum bench_group group, unsigned column, unsigned base,
	double *values, unsigned *lowest, unsigned *highest)
{
	unsigned n = 0;
	double low = INFINITY, high = 0;

	for (unsigned w = 0; w < r->work_count; w++) {
		double ratio;

		if (r->works[w].group != group)
			continue;
		ratio = bench_figure(r, w, column, (int)base).value;
		if (ratio <= 0)
			continue;
		if (ratio < low) {
			low = ratio;
			*lowest = w;
		}
		if (ratio > high) {
			high = ratio;
			*highest = w;
		}
		values[n++] = ratio;
	}
	return n;
}

void bench_sentence(const struct bench_result *r, enum bench_group group, char *text, size_t size)
{
	int base = bench_baseline(r, group);
	double values[BENCH_WORK_MAX];
	size_t at = 0;

	text[0] = 0;
	for (unsigned c = 0; base >= 0 && c < r->column_count && at < size; c++) {
		unsigned lowest = 0, highest = 0, n;
		char mean[24], low[24], high[24];

		if ((int)c == base)
			continue;
		n = ratios(r, group, c, (unsigned)base, values, &lowest, &highest);
		if (!n)
			continue;
		bench_ratio_text(bench_geomean(values, n), mean, sizeof(mean));
		bench_ratio_text(bench_quantile(values, n, 0), low, sizeof(low));
		bench_ratio_text(bench_quantile(values, n, 1), high, sizeof(high));
		if (n == 1)
			at += (size_t)snprintf(text + at, size - at,
				"%s%s takes %s times as long as %s for %s.", at ? "\n" : "",
				r->columns[c].label, mean, r->columns[base].label, r->works[lowest].id);
		else
			at += (size_t)snprintf(text + at, size - at,
				"%s%s takes %s times as long as %s over %u works (geometric mean; from %s "
				"for %s to %s for %s).",
				at ? "\n" : "", r->columns[c].label, mean, r->columns[base].label, n, low,
				r->works[lowest].id, high, r->works[highest].id);
	}
}

/* Three significant digits. */
static void three(double value, const char *suffix, char *text, size_t size)
{
	int digits = value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;

	snprintf(text, size, "%.*f%s", digits, value, suffix);
}

void bench_value_text(double value, enum bench_unit unit, char *text, size_t size)
{
	if (unit == BENCH_CYCLES) {
		if (value >= 999500)
			three(value / 1e6, " M", text, size);
		else if (value >= 9995)
			three(value / 1e3, " k", text, size);
		else if (value >= 100)
			snprintf(text, size, "%.0f", value);
		else
			snprintf(text, size, "%.1f", value);
		return;
	}
	if (unit == BENCH_NS)
		value /= 1e9;
	if (value >= 0.9995)
		three(value, " s", text, size);
	else if (value >= 0.9995e-3)
		three(value * 1e3, " ms", text, size);
	else if (value >= 0.9995e-6)
		three(value * 1e6, " µs", text, size);
	else
		three(value * 1e9, " ns", text, size);
}

void bench_ratio_text(double ratio, char *text, size_t size)
{
	three(ratio, "", text, size);
	if (ratio < 0.0005)
		snprintf(text, size, "<0.001");
	else if (ratio < 0.095)
		snprintf(text, size, "%.3f", ratio);
}

void bench_spread_text(const struct bench_figure *figure, char *text, size_t size)
{
	const char *mark = figure->unstable ? "!" : figure->known ? "" : "?";

	if (figure->spread <= 0)
		snprintf(text, size, "%s", "");
	else if (!figure->known && figure->spread <= 1) /* one sample */
		snprintf(text, size, "?");
	else if (figure->spread < 2)
		snprintf(text, size, "±%.0f%%%s", (figure->spread - 1) * 100, mark);
	else
		snprintf(text, size, "×÷%.*f%s", figure->spread < 9.95, figure->spread, mark);
}

double bench_noise_factor(const struct bench_noise *noise, unsigned kind)
{
	return noise->low_ns[kind] > 0 ? noise->high_ns[kind] / noise->low_ns[kind] : 1;
}

void bench_noise_text(const struct bench_noise *noise, char *text, size_t size)
{
	size_t at = (size_t)snprintf(text, size,
		"Others had the processor for %.0f %% of the time; the host's own speed varied by", noise->busy * 100);

	for (unsigned kind = 0; kind < BENCH_SPEEDS && at < size; kind++)
		at += (size_t)snprintf(text + at, size - at, "%s ×%.2f (%s)", kind ? "," : "",
			bench_noise_factor(noise, kind), bench_speed_names[kind]);
	if (at < size)
		snprintf(text + at, size - at, " in %u looks", noise->stops);
}
