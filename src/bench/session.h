/* The run's own state, shared by session.c (launches and what they mean) and rounds.c (which one is next). */
#ifndef BENCH_SESSION_H
#define BENCH_SESSION_H

#include "bench_internal.h"

struct session {
	const struct bench_config *config;
	const struct bench_paths *paths;
	struct bench_result *result;
	int interrupt;
	uint64_t start, deadline; /* ns; deadline is ~0 without a budget */
	unsigned rounds;
	unsigned repeat, bare_repeat; /* samples of a launch: of the Linux works, of the nano works */
	bool others_done;		  /* nothing but rounds of the bare-metal parts is left */
	unsigned bare_rounds, bare_round; /* of the bare-metal parts: how many, and the next one */
	const char *scale, *cycles;	  /* the lengths of a sample: of the Linux works, of the nano works */
	unsigned warm;			  /* ms: how long a guest does each Linux work before it is measured */
	double limit, bare_limit;	  /* seconds for a launch; for one of the bare-metal guest */
	double took[BENCH_PARTS][BENCH_COLUMN_MAX];
	struct bench_meter meter;
	struct bench_output output;
};

extern const char session_late[]; /* why a launch that the budget ended has no figures */

/* session.c */
double session_remaining(const struct session *s); /* seconds of the budget; infinite without one */
bool session_possible(const struct session *s, enum bench_part part, const struct bench_column *column);
/* The launches that one turn of a column takes. -EINTR if the person wants to stop. */
int session_turn(struct session *s, enum bench_part part, unsigned column, unsigned round);
/* Marks what the column has not measured of the part as skipped. */
void session_skip(struct session *s, enum bench_part part, unsigned column, const char *why);

/* rounds.c */
int session_rounds(struct session *s); /* everything: 0 or -EINTR */
/* How long a launch of the part may take before it is to blame, and how long the next one may, for the budget too. */
double session_patience(const struct session *s, enum bench_part part);
double session_limit(const struct session *s, enum bench_part part, unsigned column);

#endif
