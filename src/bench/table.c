/* The tables on the terminal: medians with their spread, ratios with their interval, what failed and what was skipped. */
#include <math.h>
#include <string.h>

#include "bench_internal.h"

/* Columns of a terminal that the text takes: UTF-8 continuation bytes take none. */
static int text_width(const char *text)
{
	int n = 0;

	for (; *text; text++)
		n += (*text & 0xc0) != 0x80;
	return n;
}

static void put_padded(FILE *file, const char *text, int width)
{
	fprintf(file, "%*s%s", width > text_width(text) ? width - text_width(text) : 0, "", text);
}

static void cell_text(const struct bench_result *r, unsigned w, unsigned c, char *text, size_t size)
{
	struct bench_figure figure = bench_figure(r, w, c, -1);
	char value[24], spread[24];

	switch (r->cells[w][c].state) {
	case BENCH_FAILED: snprintf(text, size, "FAILED"); return;
	case BENCH_SKIPPED: snprintf(text, size, "skipped"); return;
	case BENCH_EMPTY: snprintf(text, size, "-"); return;
	default: break;
	}
	bench_value_text(figure.value, r->works[w].unit, value, sizeof(value));
	bench_spread_text(&figure, spread, sizeof(spread));
	if (figure.value > 0)
		snprintf(text, size, "%s %s", value, spread);
	else
		snprintf(text, size, "about 0");
}

static void ratio_cell(const struct bench_result *r, unsigned w, unsigned c, int base, char *text, size_t size)
{
	char value[16], low[16], high[16];
	struct bench_figure ratio;

	text[0] = 0;
	if (base < 0 || (int)c == base)
		return;
	ratio = bench_figure(r, w, c, base);
	if (ratio.value <= 0)
		return;
	bench_ratio_text(ratio.value, value, sizeof(value));
	bench_ratio_text(ratio.low, low, sizeof(low));
	bench_ratio_text(ratio.high, high, sizeof(high));
	snprintf(text, size, "×%s (%s..%s)%s", value, low, high, ratio.unstable ? "!" : ratio.known ? "" : "?");
}

#define VALUE_WIDTH 16
#define RATIO_WIDTH 24

static void group_print(const struct bench_result *r, enum bench_group group, FILE *file)
{
	int base = bench_baseline(r, group);
	char text[2400];
	bool any = false;

	for (unsigned c = 0; c < r->column_count; c++)
		any |= bench_cell_shown(r, group, c);
	if (!any)
		return;
	fprintf(file, "\n%s%s%s%s\n", bench_group_names[group],
		group == BENCH_NANO ? " (cycles of the TSC)" : "", base >= 0 ? ", × is the ratio to " : "",
		base >= 0 ? r->columns[base].label : "");
	fprintf(file, "%-16s", "");
	for (unsigned c = 0; c < r->column_count; c++) {
		if (!bench_cell_shown(r, group, c))
			continue;
		put_padded(file, r->columns[c].id, VALUE_WIDTH + 1);
		if ((int)c != base && base >= 0)
			put_padded(file, "", RATIO_WIDTH + 1);
	}
	fprintf(file, "\n");
	for (unsigned w = 0; w < r->work_count; w++) {
		if (r->works[w].group != group)
			continue;
		fprintf(file, "%-16s", r->works[w].id);
		for (unsigned c = 0; c < r->column_count; c++) {
			if (!bench_cell_shown(r, group, c))
				continue;
			cell_text(r, w, c, text, sizeof(text));
			fputc(' ', file);
			put_padded(file, text, VALUE_WIDTH);
			if ((int)c == base || base < 0)
				continue;
			ratio_cell(r, w, c, base, text, sizeof(text));
			fputc(' ', file);
			put_padded(file, text, RATIO_WIDTH);
		}
		fprintf(file, "\n");
	}
	bench_sentence(r, group, text, sizeof(text));
	if (text[0])
		fprintf(file, "%s\n", text);
}

/* The same reason for many works of a column is said once. */
static void reasons_print(const struct bench_result *r, enum bench_state state, const char *title, FILE *file)
{
	bool said_title = false;

	for (unsigned c = 0; c < r->column_count; c++)
		for (unsigned w = 0; w < r->work_count; w++) {
			const struct bench_cell *cell = &r->cells[w][c];
			bool earlier = false;
			unsigned n = 0;

			for (unsigned v = 0; v < w; v++)
				earlier |= r->cells[v][c].state == state &&
					   !strcmp(r->cells[v][c].why, cell->why);
			if (cell->state != state || earlier)
				continue;
			if (!said_title)
				fprintf(file, "\n%s\n", title);
			said_title = true;
			fprintf(file, "  %s: ", r->columns[c].id);
			for (unsigned v = w; v < r->work_count; v++)
				if (r->cells[v][c].state == state && !strcmp(r->cells[v][c].why, cell->why) &&
					n++ < 6)
					fprintf(file, "%s%s", n > 1 ? ", " : "", r->works[v].id);
			if (n > 6)
				fprintf(file, " and %u more", n - 6);
			fprintf(file, ": %s\n", cell->why);
		}
}

/* Figures that the run itself says are not to be relied upon. */
static void unstable_print(const struct bench_result *r, FILE *file)
{
	unsigned n = 0;

	for (unsigned c = 0; c < r->column_count; c++)
		for (unsigned w = 0; w < r->work_count; w++) {
			char text[BENCH_TEXT_MAX];

			if (!bench_figure(r, w, c, -1).unstable)
				continue;
			if (!n++)
				fprintf(file, "\nUnstable (!), nothing can be claimed of them:\n");
			bench_unstable_text(r, w, c, text, sizeof(text));
			fprintf(file, "  %s on %s: %s.\n", r->works[w].id, r->columns[c].id, text);
		}
}

void bench_table_print(const struct bench_result *r, FILE *file)
{
	bool title = false;
	char noise[BENCH_TEXT_MAX];

	fprintf(file, "vmm bench (%s), %s, version %s, commit %s\n", r->pace, r->date, r->version, r->commit);
	fprintf(file, "Host: %s, %u processors%s, %s, load average %.2f to %.2f. KVM: %s.\n", r->host.cpu,
		r->host.cpus, r->host.hypervisor ? ", itself a virtual machine" : "", r->host.kernel,
		r->host.load_start, r->host.load_end, r->host.kvm);
	bench_noise_text(&r->noise, noise, sizeof(noise));
	fprintf(file,
		"Guest kernel: %s. %s.\n"
		"Medians with their spread: within it lies the median of another run in 999 of 1,000 cases, as much as the work's "
		"launches differed.\n× is the ratio to the base's launches just before and after. ! is unstable: see "
		"below. ? is of a spread that nothing is known of.\n",
		r->guest_kernel[0] ? r->guest_kernel : "none", noise);
	for (unsigned group = 0; group < BENCH_GROUPS; group++)
		group_print(r, (enum bench_group)group, file);
	unstable_print(r, file);
	reasons_print(r, BENCH_FAILED, "Failed:", file);
	reasons_print(r, BENCH_SKIPPED, "Skipped:", file);
	for (unsigned c = 0; c < r->column_count; c++)
		if (!r->columns[c].present) {
			fprintf(file, "%s  %s: %s\n", title ? "" : "\nNot compared:\n", r->columns[c].label,
				r->columns[c].why);
			title = true;
		}
	for (unsigned n = 0; n < r->note_count; n++)
		fprintf(file, "%s\n", r->notes[n]);
}
