/* The parts of the page. Everything that comes from a result goes through html_text(). */
#ifndef BENCH_HTML_H
#define BENCH_HTML_H

#include <stdio.h>

#include "bench_internal.h"

/* The page's style sheet: screen wide and narrow, light and dark, and print. */
extern const char html_style[];

/* Text with the characters that HTML gives a meaning replaced. */
void html_text(FILE *file, const char *text);

/* A group's ratios as bars on a log axis, with legend, whiskers and the sentence that they support. */
void html_chart(FILE *file, const struct bench_result *result, enum bench_group group);
/* The group's works that the paper of 2006 has too, with its figures beside them; nothing if there are none. */
void html_paper(FILE *file, const struct bench_result *result, enum bench_group group);
/* What the engines did in each part, by kind, from --stats. Returns false if no column has counters. */
bool html_profiles(FILE *file, const struct bench_result *result);

#endif
