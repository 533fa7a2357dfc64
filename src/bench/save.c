/* The result as JSON: docs/bench-json.md describes every member. */
#include <errno.h>
#include <string.h>

#include "bench_internal.h"
#include "vmm/error.h"
#include "vmm/stats.h"

static void member_double(struct json_writer *w, const char *key, double value)
{
	json_key(w, key);
	json_double(w, value);
}

static void save_host(struct json_writer *w, const struct bench_result *r)
{
	const struct bench_host *host = &r->host;
	const struct bench_noise *noise = &r->noise;

	json_key(w, "host");
	json_begin_object(w);
	json_member_string(w, "kernel", host->kernel);
	json_member_string(w, "cpu", host->cpu);
	json_member_u64(w, "cpus", host->cpus);
	json_member_bool(w, "hypervisor", host->hypervisor);
	json_member_u64(w, "memory", host->memory);
	member_double(w, "tsc_hz", host->tsc_hz);
	json_member_string(w, "kvm", host->kvm);
	json_member_string(w, "memory_virtualisation", host->memory_virt);
	member_double(w, "load_start", host->load_start);
	member_double(w, "load_end", host->load_end);
	json_end_object(w);
	json_key(w, "noise");
	json_begin_object(w);
	json_member_u64(w, "stops", noise->stops);
	member_double(w, "busy", noise->busy);
	for (unsigned kind = 0; kind < BENCH_SPEEDS; kind++) {
		json_key(w, bench_speed_names[kind]);
		json_begin_object(w);
		member_double(w, "median_ns", noise->median_ns[kind]);
		member_double(w, "low_ns", noise->low_ns[kind]);
		member_double(w, "high_ns", noise->high_ns[kind]);
		json_end_object(w);
	}
	json_end_object(w);
}

static void save_columns(struct json_writer *w, const struct bench_result *r)
{
	json_key(w, "columns");
	json_begin_array(w);
	for (unsigned c = 0; c < r->column_count; c++) {
		const struct bench_column *column = &r->columns[c];

		json_begin_object(w);
		json_member_string(w, "id", column->id);
		json_member_string(w, "label", column->label);
		json_member_string(w, "kind", bench_kind_names[column->kind]);
		json_member_bool(w, "present", column->present);
		json_member_string(w, "why", column->why);
		json_member_string(w, "version", column->version);
		json_end_object(w);
	}
	json_end_array(w);
}

static void save_cell(struct json_writer *w, const struct bench_cell *cell, const char *column)
{
	struct bench_interval spread = bench_spread(cell);
	char check[20];

	json_begin_object(w);
	json_member_string(w, "column", column);
	json_member_string(w, "state", bench_state_names[cell->state]);
	json_member_string(w, "why", cell->why);
	if (cell->state == BENCH_OK) {
		member_double(w, "median", spread.value);
		member_double(w, "low", spread.low);
		member_double(w, "high", spread.high);
	}
	if (cell->state == BENCH_OK && cell->has_check) {
		snprintf(check, sizeof(check), "%llx", (unsigned long long)cell->check);
		json_member_string(w, "check", check);
	}
	json_key(w, "samples");
	json_begin_array(w);
	for (unsigned i = 0; i < cell->count; i++) {
		json_begin_object(w);
		member_double(w, "value", cell->samples[i].value);
		json_member_u64(w, "n", cell->samples[i].n);
		json_member_u64(w, "launch", cell->samples[i].launch);
		json_end_object(w);
	}
	json_end_array(w);
	json_end_object(w);
}

static void save_works(struct json_writer *w, const struct bench_result *r)
{
	json_key(w, "works");
	json_begin_array(w);
	for (unsigned i = 0; i < r->work_count; i++) {
		const struct bench_work *work = &r->works[i];

		json_begin_object(w);
		json_member_string(w, "id", work->id);
		json_member_string(w, "group", bench_group_names[work->group]);
		json_member_string(w, "unit", bench_unit_names[work->unit]);
		json_member_string(w, "part", bench_part_names[work->part]);
		json_member_string(w, "text", work->text);
		json_key(w, "results");
		json_begin_array(w);
		for (unsigned c = 0; c < r->column_count; c++)
			if (r->cells[i][c].state != BENCH_EMPTY)
				save_cell(w, &r->cells[i][c], r->columns[c].id);
		json_end_array(w);
		json_end_object(w);
	}
	json_end_array(w);
}

static void save_launches(struct json_writer *w, const struct bench_result *r)
{
	json_key(w, "launches");
	json_begin_array(w);
	for (unsigned i = 0; i < r->launch_count; i++) {
		const struct bench_launch *launch = &r->launches[i];

		json_begin_object(w);
		json_member_string(w, "column", r->columns[launch->column].id);
		json_member_string(w, "part", bench_part_names[launch->part]);
		json_member_u64(w, "round", launch->round);
		member_double(w, "start", launch->start);
		member_double(w, "seconds", launch->seconds);
		member_double(w, "clock_ratio", launch->clock_ratio);
		json_key(w, "speed");
		json_begin_object(w);
		for (unsigned kind = 0; kind < BENCH_SPEEDS; kind++)
			member_double(w, bench_speed_names[kind], launch->speed.ns[kind]);
		member_double(w, "busy", launch->speed.busy);
		json_end_object(w);
		json_member_bool(w, "ok", launch->ok);
		json_member_string(w, "why", launch->why);
		json_member_string(w, "command", launch->command);
		json_end_object(w);
	}
	json_end_array(w);
}

static void save_profiles(struct json_writer *w, const struct bench_result *r)
{
	json_key(w, "profiles");
	json_begin_array(w);
	for (unsigned part = 0; part < BENCH_PARTS; part++)
		for (unsigned c = 0; c < r->column_count; c++) {
			const struct bench_profile *profile = &r->profiles[part][c];

			if (!profile->launches)
				continue;
			json_begin_object(w);
			json_member_string(w, "part", bench_part_names[part]);
			json_member_string(w, "column", r->columns[c].id);
			json_member_u64(w, "launches", profile->launches);
			member_double(w, "seconds", profile->seconds);
			json_key(w, "counters");
			json_begin_object(w);
			for (unsigned i = 0; i < profile->count; i++)
				json_member_u64(w, profile->counters[i].name, profile->counters[i].value);
			json_end_object(w);
			json_end_object(w);
		}
	json_end_array(w);
}

int bench_save(const struct bench_result *r, const char *path, struct error *err)
{
	FILE *file = fopen(path, "we");
	struct json_writer w;
	int rc;

	if (!file)
		return error_set(err, -errno, "%.300s cannot be written: %s.", path, strerror(errno));
	json_init(&w, file);
	json_begin_object(&w);
	json_member_string(&w, "format", "vmm-bench");
	json_member_u64(&w, "format_version", 2);
	json_member_string(&w, "version", r->version);
	json_member_string(&w, "commit", r->commit);
	json_member_string(&w, "date", r->date);
	json_member_string(&w, "command", r->command);
	json_member_string(&w, "pace", r->pace);
	json_member_string(&w, "guest_kernel", r->guest_kernel);
	member_double(&w, "seconds", r->seconds);
	save_host(&w, r);
	json_key(&w, "notes");
	json_begin_array(&w);
	for (unsigned i = 0; i < r->note_count; i++)
		json_string(&w, r->notes[i]);
	json_end_array(&w);
	save_columns(&w, r);
	save_works(&w, r);
	save_launches(&w, r);
	save_profiles(&w, r);
	json_end_object(&w);
	rc = json_finish(&w);
	if (fclose(file) && !rc)
		rc = -EIO;
	return rc ? error_set(err, rc, "%.300s could not be written completely.", path) : 0;
}
