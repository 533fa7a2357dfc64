/*
 * This run beside the paper of 2006. Cycles of a Pentium 4 and of a processor of today do not compare; what each way of running
 * a guest costs over native does, so ratios stand below the numbers.
 */
#include <string.h>

#include "html.h"
#include "paper.h"

static const char *const column_titles[BENCH_PAPER_COLUMNS] = {"native", "software VMM", "hardware VMM"};

static void own_cell(FILE *file, const struct bench_result *r, unsigned w, unsigned c, int native)
{
	const struct bench_cell *cell = &r->cells[w][c];
	double value = bench_figure(r, w, c, -1).value, ratio = 0;
	enum bench_unit unit = r->works[w].unit;
	char text[24], times[24];

	if (cell->state != BENCH_OK) {
		fprintf(file, "<td class=\"none\">%s</td>", cell->state == BENCH_FAILED ? "failed" : "–");
		return;
	}
	if (unit == BENCH_SECONDS && cell->samples[0].n)
		value /= (double)cell->samples[0].n;
	if (value < 0.05 && unit == BENCH_CYCLES)
		snprintf(text, sizeof(text), "about 0");
	else
		bench_value_text(value, unit, text, sizeof(text));
	fprintf(file, "<td>%s", text);
	if (native >= 0)
		ratio = bench_figure(r, w, c, native).value;
	if (ratio > 0) {
		bench_ratio_text(ratio, times, sizeof(times));
		fprintf(file, " <small>×%s</small>", times);
	}
	fprintf(file, "</td>");
}

static void paper_cell(FILE *file, const struct bench_paper_row *row, enum bench_paper_column column, enum bench_unit unit)
{
	const struct bench_paper_figure *figure = &row->figures[column];
	double ratio = bench_paper_ratio(row, column);
	char text[24], times[24];

	bench_value_text(figure->value / row->n, unit, text, sizeof(text));
	switch (figure->kind) {
	case BENCH_PAPER_NONE: fprintf(file, "<td class=\"p none\">no number</td>"); return;
	case BENCH_PAPER_RELATIVE:
		if (figure->value > 0)
			fprintf(file, "<td class=\"p\"><i>native + %.0f</i></td>", figure->value);
		else
			fprintf(file, "<td class=\"p\"><i>as native</i></td>");
		return;
	case BENCH_PAPER_DERIVED: fprintf(file, "<td class=\"p\"><i>≈&nbsp;%.0f</i>", figure->value / row->n); break;
	case BENCH_PAPER_PRINTED:
		if (unit == BENCH_CYCLES)
			fprintf(file, "<td class=\"p\">%.0f", figure->value);
		else
			fprintf(file, "<td class=\"p\">%s", text);
	}
	if (ratio > 0 && column != BENCH_PAPER_NATIVE) {
		bench_ratio_text(ratio, times, sizeof(times));
		fprintf(file, " <small>×%s</small>", times);
	}
	fprintf(file, "</td>");
}

static int native_column(const struct bench_result *r)
{
	for (unsigned c = 0; c < r->column_count; c++)
		if (r->columns[c].kind == BENCH_NATIVE)
			return (int)c;
	return -1;
}

static void table_head(FILE *file, const struct bench_result *r, enum bench_group group, unsigned own)
{
	fprintf(file, "<thead><tr><th></th><th class=\"c\" colspan=\"%u\">this run</th><th class=\"c p\" colspan=\"%d\">"
		      "2006: Pentium 4, 3.8 GHz</th></tr>\n<tr><th>%s</th>",
		own, BENCH_PAPER_COLUMNS, group == BENCH_NANO ? "cycles" : "one fork");
	for (unsigned c = 0; c < r->column_count; c++)
		if (bench_cell_shown(r, group, c)) {
			fprintf(file, "<th>");
			html_text(file, r->columns[c].label);
			fprintf(file, "</th>");
		}
	for (unsigned p = 0; p < BENCH_PAPER_COLUMNS; p++)
		fprintf(file, "<th class=\"p\">%s</th>", column_titles[p]);
	fprintf(file, "</tr></thead>\n<tbody>\n");
}

void html_paper(FILE *file, const struct bench_result *r, enum bench_group group)
{
	int native = native_column(r);
	unsigned own = 0, rows = 0;

	for (unsigned c = 0; c < r->column_count; c++)
		own += bench_cell_shown(r, group, c);
	for (unsigned w = 0; w < r->work_count; w++)
		rows += r->works[w].group == group && bench_paper_find(r->works[w].id);
	if (!own || !rows)
		return;
	fprintf(file, "<h3>Beside the paper of 2006</h3>\n<p class=\"soft\">On the right, what "
		      "Adams and Agesen printed in <cite>A Comparison of Software and Hardware Techniques for x86 Virtualization</cite> "
		      "(ASPLOS 2006): binary translation, and VT-x without nested paging%s. × is over native of the same run, where "
		      "that has a number. <i>Italics</i>: not printed, but said in words or computed from such words.</p>\n"
		      "<div class=\"scroll\"><table class=\"paper\">\n",
		group == BENCH_NANO ? "" : "; 40,000 forks took 6.0, 36.9 and 106.4 s there");
	table_head(file, r, group, own);
	for (unsigned w = 0; w < r->work_count; w++) {
		const struct bench_paper_row *row = bench_paper_find(r->works[w].id);

		if (!row || r->works[w].group != group)
			continue;
		fprintf(file, "<tr><td>");
		html_text(file, row->id);
		fprintf(file, "</td>");
		for (unsigned c = 0; c < r->column_count; c++)
			if (bench_cell_shown(r, group, c))
				own_cell(file, r, w, c, native);
		for (unsigned p = 0; p < BENCH_PAPER_COLUMNS; p++)
			paper_cell(file, row, (enum bench_paper_column)p, r->works[w].unit);
		fprintf(file, "</tr>\n");
	}
	fprintf(file, "</tbody></table></div>\n<p class=\"soft\">");
	for (unsigned i = 0; i < bench_paper_count; i++)
		if (group == BENCH_NANO && bench_paper[i].note[0]) {
			html_text(file, bench_paper[i].id);
			fprintf(file, ": ");
			html_text(file, bench_paper[i].note);
			fprintf(file, ". ");
		}
	if (group == BENCH_NANO)
		fprintf(file, "The paper's native is the bare machine; here it is ring 3 of the host, so what only ring 0 may do has "
			      "none, and native syscall is a whole getppid.");
	fprintf(file, "</p>\n");
}
