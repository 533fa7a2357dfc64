/*
 * A reader of JSON (RFC 8259) for files that the harness itself wrote, read as if they were anybody's: depth and size are
 * bounded, and every look-up takes a missing or different value and gives the default.
 */
#ifndef BENCH_JSON_READ_H
#define BENCH_JSON_READ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum json_kind { JSON_NULL, JSON_FALSE, JSON_TRUE, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT };

struct json_value {
	enum json_kind kind;
	double number;
	char *text;		  /* JSON_STRING, or the digits of a JSON_NUMBER */
	char *key;		  /* in an object */
	struct json_value *first; /* JSON_ARRAY, JSON_OBJECT */
	struct json_value *next;  /* the sibling */
};

/* The document, or NULL if it is not JSON (or there is no memory). The caller frees it. */
struct json_value *json_parse(const char *text, size_t length);
void json_free(struct json_value *value);

/* All of these take NULL. */
const struct json_value *json_get(const struct json_value *object, const char *key);
const char *json_text(const struct json_value *value, const char *otherwise);
double json_number(const struct json_value *value, double otherwise);
uint64_t json_integer(const struct json_value *value);
bool json_true(const struct json_value *value);

#endif
