/*
 * A result read back. The file may be anybody's: what has another format is refused with a sentence, what is missing
 * reads as empty, numbers are checked for their range, and members that this version does not know are passed over.
 */
#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "bench_internal.h"
#include "json_read.h"
#include "vmm/error.h"

#define FILE_MAX (32u << 20)

static void text_load(char *to, size_t size, const struct json_value *object, const char *key)
{
	snprintf(to, size, "%s", json_text(json_get(object, key), ""));
}
#define TEXT(field, object, key) text_load(field, sizeof(field), object, key)

static double number_load(const struct json_value *object, const char *key)
{
	double value = json_number(json_get(object, key), 0);

	return isfinite(value) ? value : 0;
}

/* The index of the text among names, or otherwise. */
static unsigned choice_load(const struct json_value *object, const char *key, const char *const *names,
	unsigned count, unsigned otherwise)
{
	const char *text = json_text(json_get(object, key), "");

	for (unsigned i = 0; i < count; i++)
		if (!strcmp(names[i], text))
			return i;
	return otherwise;
}

static int column_find(const struct bench_result *r, const struct json_value *object)
{
	const char *id = json_text(json_get(object, "column"), "");

	for (unsigned c = 0; c < r->column_count; c++)
		if (!strcmp(r->columns[c].id, id))
			return (int)c;
	return -1;
}

static const struct json_value *elements(const struct json_value *object, const char *key)
{
	const struct json_value *array = json_get(object, key);

	return array && array->kind == JSON_ARRAY ? array->first : NULL;
}

static void host_load(struct bench_result *r, const struct json_value *root)
{
	const struct json_value *host = json_get(root, "host"), *noise = json_get(root, "noise");

	TEXT(r->host.kernel, host, "kernel");
	TEXT(r->host.cpu, host, "cpu");
	TEXT(r->host.kvm, host, "kvm");
	TEXT(r->host.memory_virt, host, "memory_virtualisation");
	r->host.cpus = (unsigned)json_integer(json_get(host, "cpus"));
	r->host.hypervisor = json_true(json_get(host, "hypervisor"));
	r->host.memory = json_integer(json_get(host, "memory"));
	r->host.tsc_hz = number_load(host, "tsc_hz");
	r->host.load_start = number_load(host, "load_start");
	r->host.load_end = number_load(host, "load_end");
	r->noise.stops = (unsigned)json_integer(json_get(noise, "stops"));
	r->noise.busy = fmin(fmax(0, number_load(noise, "busy")), 1);
	for (unsigned kind = 0; kind < BENCH_SPEEDS; kind++) {
		const struct json_value *speed = json_get(noise, bench_speed_names[kind]);

		r->noise.median_ns[kind] = fmax(0, number_load(speed, "median_ns"));
		r->noise.low_ns[kind] = fmax(0, number_load(speed, "low_ns"));
		r->noise.high_ns[kind] = fmax(0, number_load(speed, "high_ns"));
	}
}

static void columns_load(struct bench_result *r, const struct json_value *root)
{
	for (const struct json_value *v = elements(root, "columns"); v && r->column_count < BENCH_COLUMN_MAX;
		v = v->next) {
		struct bench_column *column = &r->columns[r->column_count++];

		TEXT(column->id, v, "id");
		TEXT(column->label, v, "label");
		TEXT(column->why, v, "why");
		TEXT(column->version, v, "version");
		column->kind = (enum bench_column_kind)choice_load(
			v, "kind", bench_kind_names, BENCH_COLUMN_KINDS, BENCH_NATIVE);
		column->present = json_true(json_get(v, "present"));
	}
}

static void cell_load(struct bench_cell *cell, const struct json_value *v)
{
	const char *check = json_text(json_get(v, "check"), NULL);

	cell->state = (enum bench_state)choice_load(v, "state", bench_state_names, BENCH_STATES, BENCH_EMPTY);
	TEXT(cell->why, v, "why");
	cell->has_check = check;
	cell->check = check ? strtoull(check, NULL, 16) : 0;
	for (const struct json_value *s = elements(v, "samples"); s && cell->count < BENCH_SAMPLE_MAX;
		s = s->next) {
		struct bench_sample sample = {number_load(s, "value"), json_integer(json_get(s, "n")),
			(unsigned)json_integer(json_get(s, "launch"))};

		if (sample.n)
			cell->samples[cell->count++] = sample;
	}
	if (cell->state == BENCH_OK && !cell->count)
		cell->state = BENCH_EMPTY;
}

static void works_load(struct bench_result *r, const struct json_value *root)
{
	for (const struct json_value *v = elements(root, "works"); v && r->work_count < BENCH_WORK_MAX;
		v = v->next) {
		unsigned w = r->work_count++;
		struct bench_work *work = &r->works[w];

		TEXT(work->id, v, "id");
		TEXT(work->text, v, "text");
		work->group = (enum bench_group)choice_load(
			v, "group", bench_group_names, BENCH_GROUPS, BENCH_MICRO);
		work->unit = (enum bench_unit)choice_load(v, "unit", bench_unit_names, BENCH_UNITS, BENCH_NS);
		work->part = (enum bench_part)choice_load(
			v, "part", bench_part_names, BENCH_PARTS, BENCH_PART_LINUX);
		for (const struct json_value *result = elements(v, "results"); result; result = result->next) {
			int c = column_find(r, result);

			if (c >= 0 && r->cells[w][c].state == BENCH_EMPTY)
				cell_load(&r->cells[w][c], result);
		}
	}
}

static void launches_load(struct bench_result *r, const struct json_value *root)
{
	for (const struct json_value *v = elements(root, "launches"); v && r->launch_count < BENCH_LAUNCH_MAX;
		v = v->next) {
		struct bench_launch *launch = &r->launches[r->launch_count];
		int c = column_find(r, v);

		if (c < 0)
			continue;
		r->launch_count++;
		launch->column = (unsigned)c;
		launch->part = (enum bench_part)choice_load(
			v, "part", bench_part_names, BENCH_PARTS, BENCH_PART_LINUX);
		launch->round = (unsigned)json_integer(json_get(v, "round"));
		launch->start = number_load(v, "start");
		launch->seconds = number_load(v, "seconds");
		launch->clock_ratio = number_load(v, "clock_ratio");
		for (unsigned kind = 0; kind < BENCH_SPEEDS; kind++)
			launch->speed.ns[kind] =
				fmax(0, number_load(json_get(v, "speed"), bench_speed_names[kind]));
		launch->speed.busy = fmin(fmax(0, number_load(json_get(v, "speed"), "busy")), 1);
		launch->ok = json_true(json_get(v, "ok"));
		TEXT(launch->why, v, "why");
		TEXT(launch->command, v, "command");
	}
}

static void profiles_load(struct bench_result *r, const struct json_value *root)
{
	for (const struct json_value *v = elements(root, "profiles"); v; v = v->next) {
		unsigned part = choice_load(v, "part", bench_part_names, BENCH_PARTS, BENCH_PARTS);
		const struct json_value *counters = json_get(v, "counters");
		int c = column_find(r, v);
		struct bench_profile *profile;

		if (c < 0 || part == BENCH_PARTS)
			continue;
		profile = &r->profiles[part][c];
		profile->launches = (unsigned)json_integer(json_get(v, "launches"));
		profile->seconds = number_load(v, "seconds");
		for (const struct json_value *k = counters && counters->kind == JSON_OBJECT ? counters->first
											    : NULL;
			k && profile->count < BENCH_COUNTER_MAX; k = k->next) {
			struct bench_counter *counter = &profile->counters[profile->count++];

			snprintf(counter->name, sizeof(counter->name), "%s", k->key);
			counter->value = json_integer(k);
		}
	}
}

static char *file_read(const char *path, size_t *size, struct error *err)
{
	FILE *file = fopen(path, "re");
	char *text;

	if (!file) {
		error_set(err, -errno, "%.300s cannot be read: %s.", path, strerror(errno));
		return NULL;
	}
	text = NULL;
	*size = 0;
	for (size_t room = 1 << 16; room <= FILE_MAX; room *= 2) {
		char *grown = realloc(text, room);

		if (!grown)
			break;
		text = grown;
		*size += fread(text + *size, 1, room - *size, file);
		if (*size < room)
			break;
	}
	if (!text || ferror(file) || !feof(file)) {
		error_set(err, -EFBIG, "%.300s cannot be read whole.", path);
		free(text);
		text = NULL;
	}
	fclose(file);
	return text;
}

/* Everything but the samples, of which none count. */
static void clear(struct bench_result *r)
{
	memset(r, 0, offsetof(struct bench_result, cells));
	for (unsigned w = 0; w < BENCH_WORK_MAX; w++)
		for (unsigned c = 0; c < BENCH_COLUMN_MAX; c++)
			memset(&r->cells[w][c], 0, offsetof(struct bench_cell, samples));
	memset(r->launches, 0, sizeof(*r) - offsetof(struct bench_result, launches));
}

int bench_load(struct bench_result *r, const char *path, struct error *err)
{
	size_t size;
	char *text = file_read(path, &size, err);
	struct json_value *root;

	clear(r);
	if (!text)
		return err ? err->code : -EIO;
	root = json_parse(text, size);
	free(text);
	if (strcmp(json_text(json_get(root, "format"), ""), "vmm-bench") ||
		json_integer(json_get(root, "format_version")) != 2) {
		json_free(root);
		return error_set(err, -EINVAL,
			"%.300s is not a result of vmm bench that this version can read.", path);
	}
	TEXT(r->version, root, "version");
	TEXT(r->commit, root, "commit");
	TEXT(r->date, root, "date");
	TEXT(r->command, root, "command");
	TEXT(r->pace, root, "pace");
	TEXT(r->guest_kernel, root, "guest_kernel");
	r->seconds = number_load(root, "seconds");
	for (const struct json_value *v = elements(root, "notes"); v && r->note_count < 16; v = v->next)
		snprintf(r->notes[r->note_count++], sizeof(r->notes[0]), "%s", json_text(v, ""));
	host_load(r, root);
	columns_load(r, root);
	works_load(r, root);
	launches_load(r, root);
	profiles_load(r, root);
	bench_usual_find(r);
	json_free(root);
	return 0;
}
