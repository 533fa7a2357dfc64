/*
 * A writer of JSON for --stats and `vmm info --json`. Calls nest as the document does; commas, indentation and
 * escapes are the writer's business. A write error is remembered and reported once, by json_finish().
 *
 *	struct json_writer w;
 *	json_init(&w, file);
 *	json_begin_object(&w);
 *	json_key(&w, "exits");
 *	json_u64(&w, 42);
 *	json_end_object(&w);
 *	int rc = json_finish(&w);
 */
#ifndef VMM_STATS_H
#define VMM_STATS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define JSON_DEPTH_MAX 64

struct json_writer {
	FILE *file;		    /* not owned */
	unsigned depth;		    /* open objects and arrays */
	uint64_t has_member;	    /* bit d: the container at depth d has a member already */
	bool after_key;		    /* the next value belongs to a key on this line */
};

void json_init(struct json_writer *w, FILE *file);

void json_begin_object(struct json_writer *w);
void json_end_object(struct json_writer *w);
void json_begin_array(struct json_writer *w);
void json_end_array(struct json_writer *w);
/* The name of the next value; inside an object only. */
void json_key(struct json_writer *w, const char *key);

/* Values. json_string takes UTF-8 (NULL gives null); bytes that are not UTF-8 become U+FFFD. Not finite: null. */
void json_string(struct json_writer *w, const char *text);
void json_u64(struct json_writer *w, uint64_t value);
void json_i64(struct json_writer *w, int64_t value);
void json_double(struct json_writer *w, double value);
void json_bool(struct json_writer *w, bool value);
void json_null(struct json_writer *w);

/* Shorthand for a key and its value. */
void json_member_string(struct json_writer *w, const char *key, const char *text);
void json_member_u64(struct json_writer *w, const char *key, uint64_t value);
void json_member_bool(struct json_writer *w, const char *key, bool value);

/* Ends the document with a newline and flushes. 0, or -EIO if any write failed. Does not close the file. */
int json_finish(struct json_writer *w);

#endif
