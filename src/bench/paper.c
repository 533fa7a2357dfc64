/*
 * The figures that these benchmarks follow: K. Adams, O. Agesen, "A Comparison of Software and Hardware Techniques for x86
 * Virtualization", ASPLOS 2006: a Pentium 4 672 at 3.8 GHz, VT-x without nested paging. Cycles of one operation; forkwait is
 * seconds for 40,000 forks.
 *
 * What is here are the numbers and relations that its text gives. PRINTED is a number of the text. DERIVED is ours, from a relation that the text gives in words: "fifteen times faster than
 * native" makes 3209 / 15 of native's 3209. RELATIVE says only by how much more than native it is, and native has no number.
 */
#include <string.h>

#include "paper.h"

#define PRINTED(value) {value, BENCH_PAPER_PRINTED}
#define DERIVED(value) {value, BENCH_PAPER_DERIVED}
#define RELATIVE(value) {value, BENCH_PAPER_RELATIVE}
#define NONE {0, BENCH_PAPER_NONE}

const struct bench_paper_row bench_paper[] = {
	{"syscall", 1, {NONE, RELATIVE(2000), RELATIVE(0)}, "software: about 2,000 more than native; hardware: as native"},
	{"in", 1, {PRINTED(3209), DERIVED(3209.0 / 15), PRINTED(15826)}, "software: fifteen times faster than native"},
	{"cr8wr", 1, {DERIVED(35.0 * 4), PRINTED(35), DERIVED(35.0 * 4)},
		"software: about four times faster than native; hardware: similar to native"},
	{"callret", 1, {PRINTED(11), PRINTED(51), PRINTED(11)}, ""},
	{"pgfault", 1, {PRINTED(1093), PRINTED(3927), PRINTED(11242)}, ""},
	{"divzero", 1, {PRINTED(889), PRINTED(3223), PRINTED(1014)}, ""},
	{"ptemod", 1, {PRINTED(1), PRINTED(391), PRINTED(12733)}, ""},
	{"forkwait", 40000, {PRINTED(6.0), PRINTED(36.9), PRINTED(106.4)}, ""},
};
const unsigned bench_paper_count = sizeof(bench_paper) / sizeof(bench_paper[0]);

const struct bench_paper_row *bench_paper_find(const char *id)
{
	for (unsigned i = 0; i < bench_paper_count; i++)
		if (!strcmp(bench_paper[i].id, id))
			return &bench_paper[i];
	return NULL;
}

double bench_paper_ratio(const struct bench_paper_row *row, enum bench_paper_column column)
{
	const struct bench_paper_figure *native = &row->figures[BENCH_PAPER_NATIVE], *figure = &row->figures[column];
	bool numbers = (native->kind == BENCH_PAPER_PRINTED || native->kind == BENCH_PAPER_DERIVED) &&
		(figure->kind == BENCH_PAPER_PRINTED || figure->kind == BENCH_PAPER_DERIVED);

	return numbers ? figure->value / native->value : 0;
}
