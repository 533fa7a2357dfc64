/*
 * Which launch is next. Every guest runs between two native launches, so that a ratio to native is one of neighbours in time; the
 * short launches of the bare-metal parts lie between the long ones of the Linux parts, and so see the host at several times.
 *
 * With a budget (--quick), a second launch of a column that is known to be quick says more than the first of one that is slow:
 * the interpreter, and columns that have failed at something, wait for the second round.
 */
#include <math.h>
#include <string.h>

#include "session.h"

static bool budget(const struct session *s)
{
	return s->deadline != ~0ull;
}

/* The native column, if it does anything of the part; -1 if not. */
static int native_column(const struct session *s, enum bench_part part)
{
	for (unsigned c = 0; c < s->result->column_count; c++)
		if (s->result->columns[c].kind == BENCH_NATIVE &&
			session_possible(s, part, &s->result->columns[c]))
			return (int)c;
	return -1;
}

/*
 * 0: nothing is known against it. 1: slow by its nature, or a second kind of a column that is there, or perhaps not able
 * to boot Linux at all, which KVM without hardware underneath may not be. 2: it has failed at something already.
 */
static unsigned doubt(const struct session *s, unsigned column)
{
	const char *id = s->result->columns[column].id;

	for (unsigned w = 0; w < s->result->work_count; w++)
		if (s->result->cells[w][column].state == BENCH_FAILED)
			return 2;
	return !strcmp(id, "interp") || !strncmp(id, "translate-", 10) || strstr(id, "kvm");
}

static bool guest_waits(const struct session *s, enum bench_part part, unsigned column)
{
	const struct bench_column *c = &s->result->columns[column];

	return c->kind != BENCH_NATIVE && session_possible(s, part, c) && s->took[part][column] <= 0;
}

double session_patience(const struct session *s, enum bench_part part)
{
	return bench_part_bare(part) ? fmin(s->limit, s->bare_limit) : s->limit;
}

/* With a budget, something is left for the guests that have not been launched yet and are as good. */
double session_limit(const struct session *s, enum bench_part part, unsigned column)
{
	double left = session_remaining(s), reserve = 0;

	for (unsigned c = 0; c < s->result->column_count; c++)
		if (c != column && guest_waits(s, part, c) && doubt(s, c) == doubt(s, column))
			reserve += bench_part_bare(part) ? 2 : 8;
	if (bench_part_bare(part) && !s->bare_round)
		reserve += 20;
	return fmin(session_patience(s, part), fmax(left - reserve, left / 4));
}

/* Is there time for another launch? As long as the last one took and its neighbours, and a bit more. */
static bool launch_fits(const struct session *s, enum bench_part part, unsigned column)
{
	double sum = s->took[part][column];
	int native = native_column(s, part);

	if (native >= 0)
		sum += 2 * s->took[part][native];
	return 1 + sum * 1.2 < session_remaining(s);
}

static bool postponed(const struct session *s, enum bench_part part, unsigned column, unsigned round)
{
	double others = 0;

	for (unsigned c = 0; c < s->result->column_count; c++)
		others += s->result->columns[c].kind == BENCH_NATIVE ? 0 : s->took[part][c];
	return budget(s) && !round && part == BENCH_PART_LINUX && s->rounds > 1 && others > 0 && doubt(s, column);
}

/* What executes a Linux guest instruction by instruction: the interpreter, and KVM that has left the nano guest to it. */
static bool slow(const struct session *s, unsigned column)
{
	return !strcmp(s->result->columns[column].id, "interp") || bench_profile_sum(s->result, column, "kvm.stints");
}

#define SLOWNESS 6 /* at least so many times as long as the quickest guest */

/* With a budget, a launch that would only be killed takes the others' time. */
static bool hopeless(const struct session *s, enum bench_part part, unsigned column)
{
	double quickest = INFINITY;

	for (unsigned c = 0; c < s->result->column_count; c++)
		if (s->result->columns[c].kind != BENCH_NATIVE && s->took[part][c] > 0)
			quickest = fmin(quickest, s->took[part][c]);
	return budget(s) && !bench_part_bare(part) && slow(s, column) && isfinite(quickest) &&
		session_limit(s, part, column) < SLOWNESS * quickest;
}

static int turn_try(struct session *s, enum bench_part part, unsigned column, unsigned round)
{
	if (session_remaining(s) >= 1)
		return session_turn(s, part, column, round);
	session_skip(s, part, column, session_late);
	return 0;
}

static int bare_run(struct session *s);

static int part_run(struct session *s, enum bench_part part, unsigned round)
{
	int native = native_column(s, part), rc = 0;
	unsigned doubts[BENCH_COLUMN_MAX];
	bool guests = false;

	for (unsigned c = 0; c < s->result->column_count; c++)
		doubts[c] = doubt(s, c);
	for (unsigned last = 0; last <= 2; last++)
		for (unsigned c = 0; c < s->result->column_count && !rc; c++) {
			if ((int)c == native || !session_possible(s, part, &s->result->columns[c]) ||
				doubts[c] != last || (round && !launch_fits(s, part, c)) ||
				postponed(s, part, c, round))
				continue;
			if (hopeless(s, part, c)) {
				session_skip(s, part, c, session_late);
				continue;
			}
			guests = true;
			if (native >= 0)
				rc = turn_try(s, part, (unsigned)native, round);
			if (!rc)
				rc = turn_try(s, part, c, round);
			if (!rc && !bench_part_bare(part))
				rc = bare_run(s);
		}
	if (native >= 0 && !rc && (guests || !round || launch_fits(s, part, (unsigned)native)))
		rc = turn_try(s, part, (unsigned)native, round);
	return rc;
}

/*
 * A round of the bare-metal parts, if there is still one to be run and time for it: for the first two as long as they
 * take, for those between the launches of other parts no more than a tenth of what is left.
 */
static int bare_run(struct session *s)
{
	double took = 0, share = s->bare_round < 2 || s->others_done ? 1.2 : 10;
	int rc = 0;

	for (unsigned part = 0; part < BENCH_PARTS; part++)
		for (unsigned c = 0; bench_part_bare((enum bench_part)part) && c < s->result->column_count; c++)
			took += s->result->columns[c].kind == BENCH_NATIVE
					? s->took[part][c] * s->result->column_count
					: s->took[part][c];
	if (s->bare_round == s->bare_rounds || (s->bare_round && session_remaining(s) < 1 + share * took))
		return 0;
	for (unsigned part = 0; part < BENCH_PARTS && !rc; part++)
		if (bench_part_bare((enum bench_part)part))
			rc = part_run(s, (enum bench_part)part, s->bare_round);
	s->bare_round++;
	return rc;
}

/* With a budget, the guests with two vcpus, which have little to do, boot once, when the others have twice. */
static bool part_due(const struct session *s, enum bench_part part, unsigned round)
{
	return !bench_part_bare(part) &&
	       (part != BENCH_PART_LINUX_SMP || !budget(s) || round == (s->rounds > 1 ? 1 : 0));
}

int session_rounds(struct session *s)
{
	int rc = bare_run(s);

	if (!rc) /* twice, so that there is a difference to tell, however long the rest takes */
		rc = bare_run(s);
	for (unsigned round = 0; round < s->rounds && !rc; round++) {
		for (unsigned part = 0; part < BENCH_PARTS && !rc; part++)
			if (part_due(s, (enum bench_part)part, round))
				rc = part_run(s, (enum bench_part)part, round);
		if (!rc)
			rc = bare_run(s);
	}
	s->others_done = true;
	while (!rc && s->bare_round < s->bare_rounds) {
		unsigned before = s->bare_round;

		rc = bare_run(s);
		if (s->bare_round == before)
			break;
	}
	for (unsigned c = 0; c < s->result->column_count && !rc; c++)
		for (unsigned part = 0; part < BENCH_PARTS; part++)
			if (session_possible(s, (enum bench_part)part, &s->result->columns[c]))
				session_skip(s, (enum bench_part)part, c, session_late);
	return rc;
}
