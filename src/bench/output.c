/*
 * What a guest printed, read as hostile. The lines are
 *
 *	BENCH-BEGIN
 *	BENCH-CLOCK unit=cycles|ns value=N
 *	BENCH name=ID unit=cycles|ns|s n=N value=DECIMAL check=HEX
 *	BENCH-SKIP name=ID why=SENTENCE
 *	BENCH-FAIL name=ID why=SENTENCE		(that work went wrong) or BENCH-FAIL SENTENCE (all did)
 *	BENCH-END ok | failed
 *
 * and everything that does not start with BENCH is noise. A line that starts so and is none of these, a result that was
 * not asked for, a value that is no number or takes no time, and anything after the end are kept as the first thing
 * wrong; the session then believes nothing of that launch. Only cycles, from which an empty loop has been taken off, may
 * be a little below zero.
 */
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "bench_internal.h"

#define BELOW_ZERO_MAX 1000.0 /* cycles */

void bench_output_init(struct bench_output *out, unsigned wanted)
{
	memset(out, 0, sizeof(*out));
	out->wanted = wanted;
}

void bench_output_expect(struct bench_output *out, const struct bench_work *work)
{
	struct bench_item *item = &out->items[out->count++];

	memset(item, 0, sizeof(*item));
	snprintf(item->id, sizeof(item->id), "%s", work->id);
	item->unit = work->unit;
	item->wanted = work->unit == BENCH_SECONDS ? 1 : out->wanted;
}

__attribute__((format(printf, 2, 3))) static void bad_line(struct bench_output *out, const char *format, ...)
{
	va_list args;

	if (out->bad[0])
		return;
	va_start(args, format);
	vsnprintf(out->bad, sizeof(out->bad), format, args);
	va_end(args);
}

/* The text of key= in line, up to the next blank (or the end of the line if it is the last field). */
static bool field(const char *line, const char *key, bool last, char *value, size_t size)
{
	size_t length = strlen(key);

	for (const char *at = strchr(line, ' '); at; at = strchr(at, ' ')) {
		at++;
		if (!strncmp(at, key, length) && at[length] == '=') {
			const char *text = at + length + 1;
			size_t n = last ? strlen(text) : strcspn(text, " ");

			if (!n || (n >= size && !last))
				return false;
			n = n < size ? n : size - 1;
			memcpy(value, text, n);
			value[n] = 0;
			return true;
		}
	}
	return false;
}

static bool parse_u64(const char *text, int base, uint64_t *value)
{
	char *end;

	if (!isxdigit((unsigned char)*text))
		return false;
	errno = 0;
	*value = strtoull(text, &end, base);
	return !errno && !*end;
}

/* Digits with at most one point and perhaps a minus: no exponent, "inf" or hexadecimal. */
static bool parse_decimal(const char *text, double *value)
{
	bool negative = *text == '-';

	text += negative;
	if (strspn(text, "0123456789.") != strlen(text) || !strpbrk(text, "0123456789") ||
		strchr(text, '.') != strrchr(text, '.'))
		return false;
	*value = negative ? -strtod(text, NULL) : strtod(text, NULL);
	return isfinite(*value);
}

static struct bench_item *item_find(struct bench_output *out, const char *line)
{
	char id[BENCH_NAME_MAX];

	if (!field(line, "name", false, id, sizeof(id))) {
		bad_line(out, "it wrote a result without a name: \"%.120s\"", line);
		return NULL;
	}
	for (unsigned i = 0; i < out->count; i++)
		if (!strcmp(out->items[i].id, id))
			return &out->items[i];
	bad_line(out, "it wrote a result that nobody asked for: \"%s\"", id);
	return NULL;
}

static void result_line(struct bench_output *out, const char *line)
{
	struct bench_item *item = item_find(out, line);
	char unit[16], n[24], value[48], check[24];
	struct bench_sample sample = {0};
	uint64_t hash;

	if (!item)
		return;
	if (!field(line, "unit", false, unit, sizeof(unit)) || !field(line, "n", false, n, sizeof(n)) ||
		!field(line, "value", false, value, sizeof(value)) ||
		!field(line, "check", false, check, sizeof(check)) || !parse_u64(n, 10, &sample.n) ||
		!parse_decimal(value, &sample.value) || !parse_u64(check, 16, &hash)) {
		bad_line(out, "it wrote a result that cannot be read: \"%.120s\"", line);
		return;
	}
	if (strcmp(unit, bench_unit_names[item->unit])) {
		bad_line(out, "it gave %s in %s instead of %s", item->id, unit, bench_unit_names[item->unit]);
		return;
	}
	if (!sample.n || sample.value < (item->unit == BENCH_CYCLES ? -BELOW_ZERO_MAX : 0) ||
		(sample.value <= 0 && item->unit != BENCH_CYCLES)) {
		bad_line(out, "it claims that %s takes no time", item->id);
		return;
	}
	if (item->has_check && item->check != hash) {
		item->bad = true;
		snprintf(item->why, sizeof(item->why),
			"Two samples of one launch gave different answers: %llx and %llx.",
			(unsigned long long)item->check, (unsigned long long)hash);
	}
	item->has_check = true;
	item->check = hash;
	if (item->count < BENCH_SAMPLE_MAX)
		item->samples[item->count++] = sample;
}

/* BENCH-SKIP or BENCH-FAIL of one item. */
static void reason_line(struct bench_output *out, const char *line, bool failed)
{
	struct bench_item *item = item_find(out, line);

	if (!item)
		return;
	if (failed)
		item->bad = true;
	else
		item->skipped = true;
	if (!field(line, "why", true, item->why, sizeof(item->why)))
		snprintf(item->why, sizeof(item->why), "The guest does not say why.");
}

static void clock_line(struct bench_output *out, const char *line, uint64_t now)
{
	char unit[16], value[24];
	unsigned slot = out->clocks ? 1 : 0;

	if (!field(line, "unit", false, unit, sizeof(unit)) ||
		!field(line, "value", false, value, sizeof(value)) ||
		!parse_u64(value, 10, &out->clock_guest[slot]) ||
		(strcmp(unit, "cycles") && strcmp(unit, "ns"))) {
		bad_line(out, "it wrote a clock that cannot be read: \"%.120s\"", line);
		return;
	}
	out->clock_cycles = !strcmp(unit, "cycles");
	out->clock_host[slot] = now;
	out->clocks++;
}

static bool any_bad(const struct bench_output *out)
{
	for (unsigned i = 0; i < out->count; i++)
		if (out->items[i].bad)
			return true;
	return false;
}

void bench_output_line(struct bench_output *out, const char *line, uint64_t now)
{
	if (strncmp(line, "BENCH", 5))
		return;
	if (!out->begun && strcmp(line, "BENCH-BEGIN")) {
		out->begun = true;
		out->begun_ns = now;
	}
	if (out->ended)
		bad_line(out, "it went on after its end: \"%.120s\"", line);
	else if (!strcmp(line, "BENCH-BEGIN")) {
		if (out->begun)
			bad_line(out, "it began a second time");
		out->begun = true;
		out->begun_ns = now;
	} else if (!strncmp(line, "BENCH-CLOCK ", 12))
		clock_line(out, line, now);
	else if (!strncmp(line, "BENCH ", 6))
		result_line(out, line);
	else if (!strncmp(line, "BENCH-SKIP ", 11))
		reason_line(out, line, false);
	else if (!strncmp(line, "BENCH-FAIL name=", 16))
		reason_line(out, line, true);
	else if (!strncmp(line, "BENCH-FAIL ", 11))
		bad_line(out, "it says: %.200s", line + 11);
	else if (!strcmp(line, "BENCH-END ok") || (!strcmp(line, "BENCH-END failed") && any_bad(out)))
		out->ended = true;
	else
		bad_line(out, "it wrote \"%.120s\"", line);
}

bool bench_item_complete(const struct bench_item *item)
{
	return item->skipped || item->bad || item->count >= item->wanted;
}

int bench_output_culprit(const struct bench_output *out)
{
	int first = -1;

	for (unsigned i = 0; i < out->count; i++) {
		if (bench_item_complete(&out->items[i]))
			continue;
		if (out->items[i].count)
			return (int)i;
		if (first < 0)
			first = (int)i;
	}
	return first;
}

double bench_output_clock(const struct bench_output *out, double tsc_hz)
{
	double host, guest;

	if (out->clocks < 2 || (out->clock_cycles && tsc_hz <= 0))
		return 0;
	host = (double)(int64_t)(out->clock_host[1] - out->clock_host[0]);
	guest = (double)(int64_t)(out->clock_guest[1] - out->clock_guest[0]);
	if (out->clock_cycles)
		guest = guest / tsc_hz * 1e9;
	return host >= 3e8 ? guest / host : 0; /* shorter: the console's delay counts too much */
}
