/* The JSON writer (RFC 8259): tab indentation, one member a line. Misuse of the nesting is our own bug: assert. */
#include "vmm/stats.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

void json_init(struct json_writer *w, FILE *file)
{
	memset(w, 0, sizeof(*w));
	w->file = file;
}

static void new_line(struct json_writer *w)
{
	fputc('\n', w->file);
	for (unsigned i = 0; i < w->depth; i++)
		fputc('\t', w->file);
}

/* What stands before a member: nothing after a key, else a comma if it is not the first, and a new line. */
static void begin_value(struct json_writer *w)
{
	uint64_t bit = 1ull << w->depth;

	if (w->after_key) {
		w->after_key = false;
		return;
	}
	if (w->has_member & bit)
		fputc(',', w->file);
	w->has_member |= bit;
	if (w->depth)
		new_line(w);
}

static void begin_container(struct json_writer *w, char c)
{
	begin_value(w);
	fputc(c, w->file);
	w->depth++;
	assert(w->depth < JSON_DEPTH_MAX);
	w->has_member &= ~(1ull << w->depth);
}

static void end_container(struct json_writer *w, char c)
{
	bool empty = !(w->has_member & 1ull << w->depth);

	assert(w->depth && !w->after_key);
	w->depth--;
	if (!empty)
		new_line(w);
	fputc(c, w->file);
}

void json_begin_object(struct json_writer *w)
{
	begin_container(w, '{');
}

void json_end_object(struct json_writer *w)
{
	end_container(w, '}');
}

void json_begin_array(struct json_writer *w)
{
	begin_container(w, '[');
}

void json_end_array(struct json_writer *w)
{
	end_container(w, ']');
}

/* Length of the well-formed UTF-8 sequence at s (Unicode, table 3-7), or 0. s ends with a NUL. */
static unsigned utf8_length(const unsigned char *s)
{
	unsigned n = *s < 0x80 ? 1 : *s < 0xc2 ? 0 : *s < 0xe0 ? 2 : *s < 0xf0 ? 3 : *s < 0xf5 ? 4 : 0;

	for (unsigned i = 1; i < n; i++)
		if ((s[i] & 0xc0) != 0x80)
			return 0;
	if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) || (s[0] == 0xf0 && s[1] < 0x90) ||
		(s[0] == 0xf4 && s[1] > 0x8f))
		return 0;
	return n;
}

static void put_quoted(FILE *file, const char *text)
{
	const unsigned char *s = (const unsigned char *)text;

	fputc('"', file);
	while (*s) {
		unsigned n = utf8_length(s);

		if (!n) {
			fputs("\xef\xbf\xbd", file);
			n = 1;
		} else if (*s == '"' || *s == '\\') {
			fprintf(file, "\\%c", *s);
		} else if (*s == '\n') {
			fputs("\\n", file);
		} else if (*s < 0x20 || *s == 0x7f) {
			fprintf(file, "\\u%04x", *s);
		} else {
			fwrite(s, 1, n, file);
		}
		s += n;
	}
	fputc('"', file);
}

void json_key(struct json_writer *w, const char *key)
{
	assert(w->depth && !w->after_key);
	begin_value(w);
	put_quoted(w->file, key);
	fputs(": ", w->file);
	w->after_key = true;
}

void json_string(struct json_writer *w, const char *text)
{
	if (!text) {
		json_null(w);
		return;
	}
	begin_value(w);
	put_quoted(w->file, text);
}

void json_u64(struct json_writer *w, uint64_t value)
{
	begin_value(w);
	fprintf(w->file, "%" PRIu64, value);
}

void json_i64(struct json_writer *w, int64_t value)
{
	begin_value(w);
	fprintf(w->file, "%" PRId64, value);
}

void json_double(struct json_writer *w, double value)
{
	if (!isfinite(value)) {
		json_null(w);
		return;
	}
	begin_value(w);
	fprintf(w->file, "%.9g", value);
}

void json_bool(struct json_writer *w, bool value)
{
	begin_value(w);
	fputs(value ? "true" : "false", w->file);
}

void json_null(struct json_writer *w)
{
	begin_value(w);
	fputs("null", w->file);
}

void json_member_string(struct json_writer *w, const char *key, const char *text)
{
	json_key(w, key);
	json_string(w, text);
}

void json_member_u64(struct json_writer *w, const char *key, uint64_t value)
{
	json_key(w, key);
	json_u64(w, value);
}

void json_member_bool(struct json_writer *w, const char *key, bool value)
{
	json_key(w, key);
	json_bool(w, value);
}

int json_finish(struct json_writer *w)
{
	assert(!w->depth && !w->after_key);
	fputc('\n', w->file);
	if (fflush(w->file) || ferror(w->file))
		return -EIO;
	return 0;
}
