/* The JSON reader: recursive descent, at most DEPTH_MAX deep and VALUES_MAX values. */
#include "json_read.h"

#include <stdlib.h>
#include <string.h>

#define DEPTH_MAX 32
#define VALUES_MAX 200000

struct parser {
	const char *at, *end;
	unsigned depth, values;
};

static void blanks(struct parser *p)
{
	while (p->at < p->end && (*p->at == ' ' || *p->at == '\t' || *p->at == '\n' || *p->at == '\r'))
		p->at++;
}

static bool take(struct parser *p, char c)
{
	blanks(p);
	if (p->at >= p->end || *p->at != c)
		return false;
	p->at++;
	return true;
}

static int hex4(struct parser *p)
{
	int value = 0;

	if (p->end - p->at < 4)
		return -1;
	for (int i = 0; i < 4; i++) {
		char c = *p->at++;
		int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 :
			c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;

		if (digit < 0)
			return -1;
		value = value << 4 | digit;
	}
	return value;
}

/* UTF-8 of a code point of the basic plane; a surrogate becomes U+FFFD. */
static char *put_utf8(char *to, int c)
{
	if (c >= 0xd800 && c < 0xe000)
		c = 0xfffd;
	if (c < 0x80) {
		*to++ = (char)c;
	} else if (c < 0x800) {
		*to++ = (char)(0xc0 | c >> 6);
		*to++ = (char)(0x80 | (c & 0x3f));
	} else {
		*to++ = (char)(0xe0 | c >> 12);
		*to++ = (char)(0x80 | (c >> 6 & 0x3f));
		*to++ = (char)(0x80 | (c & 0x3f));
	}
	return to;
}

static bool escape(struct parser *p, char **to)
{
	static const char from[] = "\"\\/bfnrt", into[] = "\"\\/\b\f\n\r\t";
	const char *found;
	int c;

	if (p->at >= p->end)
		return false;
	if (*p->at == 'u') {
		p->at++;
		c = hex4(p);
		if (c <= 0)
			return false;
		*to = put_utf8(*to, c);
		return true;
	}
	found = *p->at ? strchr(from, *p->at) : NULL;
	if (!found)
		return false;
	p->at++;
	*(*to)++ = into[found - from];
	return true;
}

static char *string(struct parser *p)
{
	const char *close;
	char *text, *to;

	if (!take(p, '"'))
		return NULL;
	for (close = p->at; close < p->end && *close != '"'; close++)
		if (*close == '\\' && close + 1 < p->end)
			close++;
	if (close >= p->end)
		return NULL;
	text = to = malloc((size_t)(close - p->at) + 1); /* an escape is never longer than what it stands for */
	if (!text)
		return NULL;
	while (p->at < close) {
		char c = *p->at++;

		if ((unsigned char)c < 0x20 || (c == '\\' && !escape(p, &to))) {
			free(text);
			return NULL;
		}
		if (c != '\\')
			*to++ = c;
	}
	*to = 0;
	p->at = close + 1;
	return text;
}

static bool number(struct parser *p, struct json_value *v)
{
	char digits[64], *end;
	size_t n = 0;

	while (p->at < p->end && *p->at && strchr("+-.0123456789eE", *p->at) && n < sizeof(digits) - 1)
		digits[n++] = *p->at++;
	digits[n] = 0;
	v->number = strtod(digits, &end);
	v->text = strdup(digits);
	v->kind = JSON_NUMBER;
	return n && !*end && v->text;
}

static bool word(struct parser *p, const char *text, enum json_kind kind, struct json_value *v)
{
	size_t n = strlen(text);

	if ((size_t)(p->end - p->at) < n || memcmp(p->at, text, n))
		return false;
	p->at += n;
	v->kind = kind;
	return true;
}

static struct json_value *value(struct parser *p);

static bool members(struct parser *p, struct json_value *v, char close)
{
	struct json_value **last = &v->first;

	if (take(p, close))
		return true;
	do {
		char *key = NULL;

		if (close == '}') {
			key = string(p);
			if (!key || !take(p, ':')) {
				free(key);
				return false;
			}
		}
		*last = value(p);
		if (!*last) {
			free(key);
			return false;
		}
		(*last)->key = key;
		last = &(*last)->next;
	} while (take(p, ','));
	return take(p, close);
}

static bool value_fill(struct parser *p, struct json_value *v)
{
	blanks(p);
	if (p->at >= p->end)
		return false;
	switch (*p->at) {
	case '{':
		p->at++;
		v->kind = JSON_OBJECT;
		return members(p, v, '}');
	case '[':
		p->at++;
		v->kind = JSON_ARRAY;
		return members(p, v, ']');
	case '"':
		v->kind = JSON_STRING;
		v->text = string(p);
		return v->text;
	case 't': return word(p, "true", JSON_TRUE, v);
	case 'f': return word(p, "false", JSON_FALSE, v);
	case 'n': return word(p, "null", JSON_NULL, v);
	default: return number(p, v);
	}
}

static struct json_value *value(struct parser *p)
{
	struct json_value *v;

	if (p->depth >= DEPTH_MAX || ++p->values > VALUES_MAX)
		return NULL;
	v = calloc(1, sizeof(*v));
	if (!v)
		return NULL;
	p->depth++;
	if (!value_fill(p, v)) {
		json_free(v);
		v = NULL;
	}
	p->depth--;
	return v;
}

struct json_value *json_parse(const char *text, size_t length)
{
	struct parser p = {text, text + length, 0, 0};
	struct json_value *v = value(&p);

	blanks(&p);
	if (v && p.at != p.end) {
		json_free(v);
		v = NULL;
	}
	return v;
}

void json_free(struct json_value *v)
{
	while (v) {
		struct json_value *next = v->next;

		json_free(v->first);
		free(v->text);
		free(v->key);
		free(v);
		v = next;
	}
}

const struct json_value *json_get(const struct json_value *object, const char *key)
{
	if (object && object->kind == JSON_OBJECT)
		for (const struct json_value *v = object->first; v; v = v->next)
			if (!strcmp(v->key, key))
				return v;
	return NULL;
}

const char *json_text(const struct json_value *v, const char *otherwise)
{
	return v && v->kind == JSON_STRING ? v->text : otherwise;
}

double json_number(const struct json_value *v, double otherwise)
{
	return v && v->kind == JSON_NUMBER ? v->number : otherwise;
}

uint64_t json_integer(const struct json_value *v)
{
	return v && v->kind == JSON_NUMBER && v->text[0] != '-' ? strtoull(v->text, NULL, 10) : 0;
}

bool json_true(const struct json_value *v)
{
	return v && v->kind == JSON_TRUE;
}
