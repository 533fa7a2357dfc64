/*
 * The charts: rows of HTML, each with one small SVG whose horizontal places are percentages and whose vertical ones are
 * pixels. So bars grow with the page while text and strokes keep their size, on any screen and on paper.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "html.h"

#define BAR 11	     /* pixels */
#define BAR_STEP 14
#define PLOT_WIDTH 84.0 /* percent; the rest is for the figure behind the longest bar */

void html_text(FILE *file, const char *text)
{
	for (; *text; text++) {
		switch (*text) {
		case '<': fputs("&lt;", file); break;
		case '>': fputs("&gt;", file); break;
		case '&': fputs("&amp;", file); break;
		case '"': fputs("&quot;", file); break;
		case '\'': fputs("&#39;", file); break;
		default: fputc(*text, file); break;
		}
	}
}

/* A column keeps its colour from page to page, whichever others there are. */
static unsigned colour_of(const struct bench_result *r, unsigned column)
{
	static const char *const ids[] = {"native", "interp", "translate", "translate-trace", "translate-unsync",
		"translate-vtlb", "kvm", "tcg", "qemu-kvm"};

	for (unsigned i = 0; i < sizeof(ids) / sizeof(ids[0]); i++)
		if (!strcmp(r->columns[column].id, ids[i]))
			return i;
	return column % 9;
}

/* A logarithmic axis from low to high. */
struct axis {
	double low, high;
};

static double place(const struct axis *axis, double value)
{
	value = fmin(fmax(value, axis->low), axis->high);
	return log(value / axis->low) / log(axis->high / axis->low) * PLOT_WIDTH;
}

/* Around everything in values, 1 included, with room at both ends. */
static struct axis axis_around(double low, double high)
{
	struct axis axis = {fmin(low, 1), fmax(high, 1)};
	double decades = log10(axis.high / axis.low);

	if (decades < 0.6) {
		axis.low /= 1.6;
		axis.high *= 1.6;
	}
	axis.low /= pow(10, decades * 0.02);
	axis.high *= pow(10, decades * 0.02);
	return axis;
}

/* Decades, and 2 and 5 between them if there are few. */
static unsigned ticks(const struct axis *axis, double *values, unsigned max)
{
	bool fine = log10(axis->high / axis->low) < 2;
	unsigned n = 0;

	for (int decade = -6; decade <= 9; decade++)
		for (int step = 0; step < 3; step++) {
			static const double steps[] = {1, 2, 5};
			double value = pow(10, decade) * steps[step];

			if ((step && !fine) || value < axis->low || value > axis->high || n == max)
				continue;
			values[n++] = value;
		}
	return n;
}

static void grid(FILE *file, const struct axis *axis, unsigned height)
{
	double at[24];
	unsigned n = ticks(axis, at, 24);

	for (unsigned i = 0; i < n; i++)
		fprintf(file, "<line class=\"%s\" x1=\"%.2f%%\" x2=\"%.2f%%\" y1=\"0\" y2=\"%u\"/>",
			fabs(at[i] - 1) < 1e-9 ? "one" : "grid", place(axis, at[i]), place(axis, at[i]),
			height);
}

/* prefix stands before each label: "×" for ratios, nothing for counts. */
static void axis_row(FILE *file, const struct axis *axis, const char *prefix)
{
	double at[24];
	unsigned n = ticks(axis, at, 24);

	fprintf(file,
		"<div class=\"row axis\"><div class=\"lab\"></div><svg height=\"18\" aria-hidden=\"true\">");
	for (unsigned i = 0; i < n; i++) {
		double value = at[i];

		fprintf(file, "<text class=\"soft\" x=\"%.2f%%\" y=\"12\" text-anchor=\"middle\">%s",
			place(axis, value), prefix);
		if (value >= 1e6)
			fprintf(file, "%g M</text>", value / 1e6);
		else if (value >= 1e3)
			fprintf(file, "%g k</text>", value / 1e3);
		else
			fprintf(file, "%g</text>", value);
	}
	fprintf(file, "</svg></div>\n");
}

static bool in_chart(const struct bench_result *r, enum bench_group group, unsigned column, int base)
{
	if ((int)column == base)
		return false;
	for (unsigned w = 0; w < r->work_count; w++)
		if (r->works[w].group == group &&
			(r->cells[w][column].state == BENCH_OK ||
				r->cells[w][column].state == BENCH_FAILED) &&
			r->cells[w][base].state == BENCH_OK)
			return true;
	return false;
}

static void ratio_bar(
	FILE *file, const struct axis *axis, const struct bench_figure *ratio, unsigned colour, unsigned y)
{
	double one = place(axis, 1), at = place(axis, ratio->value), low = place(axis, ratio->low),
	       high = place(axis, ratio->high);
	char text[24];

	bench_ratio_text(ratio->value, text, sizeof(text));
	fprintf(file,
		"<rect x=\"%.2f%%\" y=\"%u\" width=\"%.2f%%\" height=\"%u\" rx=\"1.5\" "
		"style=\"fill:var(--k%u)\"/>",
		fmin(one, at), y, fmax(fabs(at - one), 0.25), BAR, colour);
	fprintf(file, "<line class=\"whisker\" x1=\"%.2f%%\" x2=\"%.2f%%\" y1=\"%.1f\" y2=\"%.1f\"/>", low,
		high, y + BAR / 2.0, y + BAR / 2.0);
	fprintf(file, "<text x=\"%.2f%%\" dx=\"5\" y=\"%u\">×%s%s</text>", fmax(fmax(high, at), one),
		y + BAR - 1, text, ratio->unstable ? "&thinsp;!" : ratio->known ? "" : "&thinsp;?");
}

static void work_row(FILE *file, const struct bench_result *r, unsigned w, int base, const struct axis *axis)
{
	enum bench_group group = r->works[w].group;
	unsigned bars = 0, y = 3;

	for (unsigned c = 0; c < r->column_count; c++)
		bars += in_chart(r, group, c, base) && r->cells[w][c].state != BENCH_SKIPPED &&
			r->cells[w][c].state != BENCH_EMPTY;
	if (!bars || r->cells[w][base].state != BENCH_OK)
		return;
	fprintf(file, "<div class=\"row\"><div class=\"lab\" title=\"");
	html_text(file, r->works[w].text);
	fprintf(file, "\">");
	html_text(file, r->works[w].id);
	fprintf(file, "</div><svg height=\"%u\" role=\"img\">", bars * BAR_STEP + 4);
	grid(file, axis, bars * BAR_STEP + 4);
	for (unsigned c = 0; c < r->column_count; c++) {
		const struct bench_cell *cell = &r->cells[w][c];
		struct bench_figure ratio;

		if (!in_chart(r, group, c, base) || cell->state == BENCH_SKIPPED || cell->state == BENCH_EMPTY)
			continue;
		ratio = bench_figure(r, w, c, base);
		if (cell->state == BENCH_FAILED)
			fprintf(file, "<text class=\"bad\" x=\"%.2f%%\" dx=\"5\" y=\"%u\">failed</text>",
				place(axis, 1), y + BAR - 1);
		else if (ratio.value > 0)
			ratio_bar(file, axis, &ratio, colour_of(r, c), y);
		else
			fprintf(file,
				"<text class=\"soft\" x=\"%.2f%%\" dx=\"5\" y=\"%u\">no ratio: one of the "
				"two costs about nothing</text>",
				place(axis, 1), y + BAR - 1);
		y += BAR_STEP;
	}
	fprintf(file, "</svg></div>\n");
}

static void legend(FILE *file, const struct bench_result *r, enum bench_group group, int base)
{
	fprintf(file, "<ul class=\"legend\">");
	for (unsigned c = 0; c < r->column_count; c++) {
		if (!in_chart(r, group, c, base))
			continue;
		fprintf(file, "<li><i style=\"background:var(--k%u)\"></i>", colour_of(r, c));
		html_text(file, r->columns[c].label);
		fprintf(file, "</li>");
	}
	fprintf(file, "</ul>\n");
}

void html_chart(FILE *file, const struct bench_result *r, enum bench_group group)
{
	int base = bench_baseline(r, group);
	double low = 1, high = 1;
	struct axis axis;
	char sentence[2400], *rest = NULL;

	if (base < 0)
		return;
	for (unsigned w = 0; w < r->work_count; w++)
		for (unsigned c = 0; c < r->column_count; c++)
			if (r->works[w].group == group && (int)c != base && r->cells[w][c].state == BENCH_OK) {
				double ratio = bench_figure(r, w, c, base).value;

				low = ratio > 0 ? fmin(low, ratio) : low;
				high = fmax(high, ratio);
			}
	bench_sentence(r, group, sentence, sizeof(sentence));
	if (!sentence[0])
		return;
	axis = axis_around(low, high);
	fprintf(file, "<p class=\"finding\">");
	for (char *line = strtok_r(sentence, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		html_text(file, line);
		fprintf(file, "<br>");
	}
	fprintf(file, "</p>\n<figure>\n");
	legend(file, r, group, base);
	axis_row(file, &axis, "×");
	for (unsigned w = 0; w < r->work_count; w++)
		if (r->works[w].group == group)
			work_row(file, r, w, base, &axis);
	axis_row(file, &axis, "×");
	fprintf(file, "<figcaption>Time as a multiple of ");
	html_text(file, r->columns[base].label);
	fprintf(file,
		" in the same run, on a logarithmic axis: shorter is faster, left of ×1 is faster than that. "
		"Each launch is compared with its neighbours in time. The thin lines say where another run's median is to be "
		"expected (999 of 1,000); ! marks what is unstable, ? what was launched once.</figcaption>\n</figure>\n");
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = ((const struct bench_counter *)a)->value, y = ((const struct bench_counter *)b)->value;

	return (x < y) - (x > y);
}

#define PROFILE_ROWS 12

/* The largest counters of one kind ("exits.", "engine."), and the sentence about them. */
static void profile_kind(FILE *file, const struct bench_profile *profile, unsigned colour, const char *kind,
	const char *title)
{
	struct bench_counter sorted[BENCH_COUNTER_MAX];
	unsigned n = 0;
	double all = 0;
	struct axis axis;

	for (unsigned i = 0; i < profile->count; i++)
		if (!strncmp(profile->counters[i].name, kind, strlen(kind)) && profile->counters[i].value &&
			strcmp(profile->counters[i].name, "engine.instructions")) {
			sorted[n++] = profile->counters[i];
			all += (double)profile->counters[i].value;
		}
	if (!n)
		return;
	qsort(sorted, n, sizeof(sorted[0]), by_value);
	axis = axis_around(1, (double)sorted[0].value);
	fprintf(file, "<figure><figcaption>%s: ", title);
	html_text(file, sorted[0].name + strlen(kind));
	fprintf(file, " leads with %.0f&nbsp;%% of the %.0f counted in %.1f&nbsp;s.</figcaption>\n",
		(double)sorted[0].value / all * 100, all, profile->seconds);
	for (unsigned i = 0; i < n && i < PROFILE_ROWS; i++) {
		fprintf(file, "<div class=\"row\"><div class=\"lab\">");
		html_text(file, sorted[i].name + strlen(kind));
		fprintf(file, "</div><svg height=\"18\" role=\"img\">");
		grid(file, &axis, 18);
		fprintf(file,
			"<rect x=\"0\" y=\"3\" width=\"%.2f%%\" height=\"%u\" rx=\"1.5\" "
			"style=\"fill:var(--k%u)\"/>"
			"<text x=\"%.2f%%\" dx=\"5\" y=\"13\">%llu</text></svg></div>\n",
			fmax(0.25, place(&axis, (double)sorted[i].value)), BAR, colour,
			place(&axis, (double)sorted[i].value), (unsigned long long)sorted[i].value);
	}
	axis_row(file, &axis, "");
	fprintf(file, "</figure>\n");
}

bool html_profiles(FILE *file, const struct bench_result *r)
{
	static const char *const work[BENCH_PARTS] = {
		"the bare-metal works", "the bare-metal works with two vcpus", "the Linux works and the boot", "the Linux works with two vcpus",
		"the Debian works"};
	bool any = false;

	for (unsigned part = 0; part < BENCH_PARTS; part++)
		for (unsigned c = 0; c < r->column_count; c++) {
			const struct bench_profile *profile = &r->profiles[part][c];

			if (!profile->launches || !profile->count)
				continue;
			if (!any)
				fprintf(file, "<h2 id=\"profile\">Exits and events by kind</h2>\n<p "
					      "class=\"soft\">From <code>--stats</code>, "
					      "summed over the launches; logarithmic axes.</p>\n");
			any = true;
			fprintf(file, "<h3>");
			html_text(file, r->columns[c].label);
			fprintf(file, ", %s (%u launch%s)</h3>\n", work[part], profile->launches,
				profile->launches == 1 ? "" : "es");
			profile_kind(file, profile, colour_of(r, c), "exits.", "Exits to the VMM");
			profile_kind(file, profile, colour_of(r, c), "kvm.", "What KVM was asked for");
			profile_kind(file, profile, colour_of(r, c), "engine.", "Events inside the engine");
		}
	return any;
}
