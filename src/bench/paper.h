/* What Adams and Agesen measured in 2006, to stand beside this run's figures. */
#ifndef BENCH_PAPER_H
#define BENCH_PAPER_H

#include <stdbool.h>

enum bench_paper_kind { BENCH_PAPER_NONE, BENCH_PAPER_PRINTED, BENCH_PAPER_DERIVED, BENCH_PAPER_RELATIVE };
enum bench_paper_column { BENCH_PAPER_NATIVE, BENCH_PAPER_SOFTWARE, BENCH_PAPER_HARDWARE, BENCH_PAPER_COLUMNS };

struct bench_paper_figure {
	double value; /* cycles, or seconds for all iterations; RELATIVE: more than native */
	enum bench_paper_kind kind;
};
struct bench_paper_row {
	const char *id;
	unsigned n; /* iterations */
	struct bench_paper_figure figures[BENCH_PAPER_COLUMNS];
	const char *note; /* what the text says where a figure is not printed there */
};
extern const struct bench_paper_row bench_paper[];
extern const unsigned bench_paper_count;

/* The row of a work, or NULL. */
const struct bench_paper_row *bench_paper_find(const char *id);
/* A figure over the paper's own native one; 0 if one of them is no number. */
double bench_paper_ratio(const struct bench_paper_row *row, enum bench_paper_column column);

#endif
