/*
 * The page: one file without a script, a font or a picture from elsewhere, so that it can be mailed, kept and printed. It says what
 * was run, on what, and how noisy that was, before it says who won.
 */
#include "html.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "paper.h"
#include "vmm/error.h"

static const char *const group_titles[BENCH_GROUPS] = {
	"Nano: single events on bare metal", "Micro: one program in a Linux guest", "Macro: whole tasks"};
static const char *const group_texts[BENCH_GROUPS] = {
	("A bare-metal guest does one thing again and again and counts cycles of the time-stamp counter; an "
	 "empty loop is "
	 "taken off. † marks what Adams and Agesen measured in 2006, whose nanobenchmarks these follow."),
	("The same static binary runs natively and as the init of the same Linux kernel in every guest; its "
	 "answers are compared by checksum. Each work is done for some time before it is measured: this is the steady "
	 "state, without the first translation of the code."),
	"From the start of the process to the first line of init; forkwait in the same guests as above, warm too; the others "
	"are whole tasks, one after the other in a freshly booted guest, the translation of their code included."};

static void fact(FILE *file, const char *name, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void fact(FILE *file, const char *name, const char *format, ...)
{
	char text[400];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	fprintf(file, "<div><b>%s</b>", name);
	html_text(file, text);
	fprintf(file, "</div>\n");
}

#define UNSTEADY 0.05 /* the share of the time from which on a host that others use gets a warning */

static void head(FILE *file, const struct bench_result *r)
{
	char noise[BENCH_TEXT_MAX];
	double worst = 1;

	fprintf(file, "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
		"<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>vmm bench, ");
	html_text(file, r->date);
	fprintf(file,
		"</title>\n<style>\n%s</style>\n</head>\n<body>\n<h1>What each way of running a guest "
		"costs</h1>\n<p class=\"soft\">",
		html_style);
	html_text(file, r->command[0] ? r->command : "vmm bench");
	fprintf(file, "</p>\n<div class=\"facts\">\n");
	fact(file, "When", "%s, %.0f s, pace %s", r->date, r->seconds, r->pace);
	fact(file, "vmm", "version %s, commit %s", r->version, r->commit);
	fact(file, "Processor", "%s, %u processors%s", r->host.cpu, r->host.cpus,
		r->host.hypervisor ? ", itself a virtual machine" : "");
	fact(file, "Host kernel", "%s", r->host.kernel);
	fact(file, "KVM", "%s; memory: %s", r->host.kvm, r->host.memory_virt);
	fact(file, "Guest kernel", "%s", r->guest_kernel[0] ? r->guest_kernel : "none");
	fact(file, "Load average", "%.2f at the start, %.2f at the end", r->host.load_start, r->host.load_end);
	fprintf(file, "</div>\n<p class=\"soft\">");
	bench_noise_text(&r->noise, noise, sizeof(noise));
	html_text(file, noise);
	fprintf(file, ".</p>\n");
	for (unsigned kind = 0; kind < BENCH_SPEEDS; kind++)
		worst = fmax(worst, bench_noise_factor(&r->noise, kind));
	if (r->noise.busy > UNSTEADY || worst > 1 + 4 * UNSTEADY)
		fprintf(file, "<p class=\"warn\">The host was not steady: other work, or neighbours of this virtual "
			      "machine, took their part, so figures are no better than their spread.</p>\n");
}

static void cell(FILE *file, const struct bench_result *r, unsigned w, unsigned c)
{
	struct bench_figure figure = bench_figure(r, w, c, -1);
	char text[24], spread[24];

	switch (r->cells[w][c].state) {
	case BENCH_FAILED: fprintf(file, "<td class=\"bad\">failed</td>"); return;
	case BENCH_OK: break;
	default: fprintf(file, "<td class=\"none\">–</td>"); return;
	}
	bench_value_text(figure.value, r->works[w].unit, text, sizeof(text));
	bench_spread_text(&figure, spread, sizeof(spread));
	if (figure.value > 0)
		fprintf(file, "<td%s>%s <small>%s</small></td>", figure.unstable ? " class=\"shaky\"" : "", text,
			spread);
	else
		fprintf(file, "<td>about 0</td>");
}

static void table(FILE *file, const struct bench_result *r, enum bench_group group)
{
	fprintf(file,
		"<p class=\"soft\">Medians%s with their spread: within it lies the median of another "
		"run in 999 of 1,000 cases, as much as this work's launches differed (and those of works like it, where "
		"there were few). ! is unstable: its launches differ far more than those of works like it. ? was launched "
		"once, and nothing is known of its spread.</p>\n<div class=\"scroll\"><table>\n"
		"<thead><tr><th>work</th><th class=\"t what\">one iteration is</th>",
		group == BENCH_NANO ? " in cycles" : "");
	for (unsigned c = 0; c < r->column_count; c++)
		if (bench_cell_shown(r, group, c)) {
			fprintf(file, "<th>");
			html_text(file, r->columns[c].label);
			fprintf(file, "</th>");
		}
	fprintf(file, "</tr></thead>\n<tbody>\n");
	for (unsigned w = 0; w < r->work_count; w++) {
		if (r->works[w].group != group)
			continue;
		fprintf(file, "<tr><td>");
		html_text(file, r->works[w].id);
		fprintf(file, "%s</td><td class=\"t what\">", bench_paper_find(r->works[w].id) ? "&nbsp;†" : "");
		html_text(file, r->works[w].text);
		for (unsigned c = 0; r->works[w].unit == BENCH_SECONDS && c < r->column_count; c++)
			if (r->cells[w][c].count && r->cells[w][c].samples[0].n > 1) {
				fprintf(file, " (%llu)", (unsigned long long)r->cells[w][c].samples[0].n);
				break;
			}
		fprintf(file, "</td>");
		for (unsigned c = 0; c < r->column_count; c++)
			if (bench_cell_shown(r, group, c))
				cell(file, r, w, c);
		fprintf(file, "</tr>\n");
	}
	fprintf(file, "</tbody></table></div>\n");
}

static void groups(FILE *file, const struct bench_result *r)
{
	for (unsigned group = 0; group < BENCH_GROUPS; group++) {
		bool any = false;

		for (unsigned c = 0; c < r->column_count; c++)
			any |= bench_cell_shown(r, (enum bench_group)group, c);
		if (!any)
			continue;
		fprintf(file, "<h2 id=\"%s\">%s</h2>\n<p>%s</p>\n", bench_group_names[group],
			group_titles[group], group_texts[group]);
		html_chart(file, r, (enum bench_group)group);
		table(file, r, (enum bench_group)group);
		html_paper(file, r, (enum bench_group)group);
	}
}

/* The reasons of a state, each once, with the works that it concerns. */
static void reasons(FILE *file, const struct bench_result *r, enum bench_state state)
{
	for (unsigned c = 0; c < r->column_count; c++)
		for (unsigned w = 0; w < r->work_count; w++) {
			const struct bench_cell *at = &r->cells[w][c];
			bool earlier = false;

			for (unsigned v = 0; v < w; v++)
				earlier |=
					r->cells[v][c].state == state && !strcmp(r->cells[v][c].why, at->why);
			if (at->state != state || earlier)
				continue;
			fprintf(file, "<li><b>%s</b>, ", state == BENCH_FAILED ? "failed" : "skipped");
			html_text(file, r->columns[c].label);
			fprintf(file, ": ");
			for (unsigned v = w, n = 0; v < r->work_count; v++)
				if (r->cells[v][c].state == state && !strcmp(r->cells[v][c].why, at->why)) {
					fprintf(file, "%s", n++ ? ", " : "");
					html_text(file, r->works[v].id);
				}
			fprintf(file, ". <span class=\"soft\">");
			html_text(file, at->why);
			fprintf(file, "</span></li>\n");
		}
}

/* Figures that the run itself says are not to be relied upon. */
static void unstable(FILE *file, const struct bench_result *r)
{
	for (unsigned c = 0; c < r->column_count; c++)
		for (unsigned w = 0; w < r->work_count; w++) {
			char text[BENCH_TEXT_MAX];

			if (!bench_figure(r, w, c, -1).unstable)
				continue;
			bench_unstable_text(r, w, c, text, sizeof(text));
			fprintf(file, "<li>Unstable: ");
			html_text(file, r->works[w].id);
			fprintf(file, ", ");
			html_text(file, r->columns[c].label);
			fprintf(file, ": <span class=\"soft\">");
			html_text(file, text);
			fprintf(file, ".</span></li>\n");
		}
}

static void missing(FILE *file, const struct bench_result *r)
{
	fprintf(file, "<h2 id=\"missing\">What is not shown or not certain, and why</h2>\n<ul>\n");
	reasons(file, r, BENCH_FAILED);
	for (unsigned c = 0; c < r->column_count; c++)
		if (!r->columns[c].present) {
			fprintf(file, "<li>Not compared: ");
			html_text(file, r->columns[c].label);
			fprintf(file, ". <span class=\"soft\">");
			html_text(file, r->columns[c].why);
			fprintf(file, "</span></li>\n");
		}
	reasons(file, r, BENCH_SKIPPED);
	unstable(file, r);
	for (unsigned n = 0; n < r->note_count; n++) {
		fprintf(file, "<li>");
		html_text(file, r->notes[n]);
		fprintf(file, "</li>\n");
	}
	fprintf(file, "</ul>\n");
}

static void methods(FILE *file, const struct bench_result *r)
{
	fprintf(file, "<h2 id=\"method\">How it was measured</h2>\n<p>The columns run in turn, one launch of "
		      "each in a round, each guest between two native launches; a ratio is of neighbours, so that what "
		      "drifts on the host drifts for both. The spreads come from how much launches of the same "
		      "work differed in this run. Each work of a Linux guest was first done for some time without being "
		      "measured (<code>warm=</code>, in ms), so that what is shown is the steady state: what it costs to translate "
		      "a guest's code for the first time is in the boot and in the whole tasks. A launch counts only if its guest wrote every "
		      "sample that was asked for, "
		      "ended properly and kept a clock that went like the host's; answers are compared "
		      "between columns. Raw samples are in the "
		      "JSON file.</p>\n<div class=\"scroll\"><table><thead><tr><th>column</th><th "
		      "class=\"t\">version</th>"
		      "<th class=\"t\">first command of each part</th></tr></thead><tbody>\n");
	for (unsigned c = 0; c < r->column_count; c++) {
		bool seen[BENCH_PARTS] = {false};

		if (!r->columns[c].present)
			continue;
		fprintf(file, "<tr><td>");
		html_text(file, r->columns[c].label);
		fprintf(file, "</td><td class=\"t\">");
		html_text(file, r->columns[c].version);
		fprintf(file, "</td><td class=\"t\">");
		for (unsigned i = 0; i < r->launch_count; i++) {
			const struct bench_launch *launch = &r->launches[i];

			if (launch->column != c || seen[launch->part])
				continue;
			seen[launch->part] = true;
			fprintf(file, "<code>");
			html_text(file, launch->command);
			fprintf(file, "</code><br>");
		}
		fprintf(file, "</td></tr>\n");
	}
	fprintf(file, "</tbody></table></div>\n");
}

static void launches(FILE *file, const struct bench_result *r)
{
	fprintf(file,
		"<details><summary>All %u launches</summary><div "
		"class=\"scroll\"><table><thead><tr><th>at</th><th class=\"t\">column</th>"
		"<th class=\"t\">part</th><th>round</th><th>took</th><th>guest's clock</th><th "
		"class=\"t\">result</th></tr></thead><tbody>\n",
		r->launch_count);
	for (unsigned i = 0; i < r->launch_count; i++) {
		const struct bench_launch *launch = &r->launches[i];

		fprintf(file, "<tr><td>%.1f s</td><td class=\"t\">", launch->start);
		html_text(file, r->columns[launch->column].id);
		fprintf(file, "</td><td class=\"t\">%s</td><td>%u</td><td>%.2f s</td>",
			bench_part_names[launch->part], launch->round + 1, launch->seconds);
		if (launch->clock_ratio > 0)
			fprintf(file, "<td>×%.3f</td>", launch->clock_ratio);
		else
			fprintf(file, "<td class=\"none\">too short to tell</td>");
		fprintf(file, "<td class=\"t\">");
		html_text(file, launch->ok ? "whole" : launch->why);
		fprintf(file, "</td></tr>\n");
	}
	fprintf(file, "</tbody></table></div></details>\n");
}

int bench_html_write(const struct bench_result *r, const char *path, struct error *err)
{
	FILE *file = fopen(path, "we");
	int rc;

	if (!file)
		return error_set(err, -errno, "%.300s cannot be written: %s.", path, strerror(errno));
	head(file, r);
	groups(file, r);
	html_profiles(file, r);
	missing(file, r);
	methods(file, r);
	launches(file, r);
	fprintf(file, "</body>\n</html>\n");
	rc = ferror(file) ? -EIO : 0;
	if (fclose(file) && !rc)
		rc = -EIO;
	return rc ? error_set(err, rc, "%.300s could not be written completely.", path) : 0;
}
