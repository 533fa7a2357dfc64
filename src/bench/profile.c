/* The counters of --stats: those of every vcpu, summed over the launches of a part on a column. */
#include <stdlib.h>
#include <string.h>

#include "bench_internal.h"
#include "json_read.h"

static void counter_add(struct bench_profile *profile, const char *kind, const char *name, uint64_t value)
{
	char full[sizeof(profile->counters[0].name)];
	unsigned i;

	snprintf(full, sizeof(full), "%.8s.%.36s", kind, name);
	for (i = 0; i < profile->count && strcmp(profile->counters[i].name, full); i++)
		;
	if (i == BENCH_COUNTER_MAX)
		return;
	if (i == profile->count) {
		memcpy(profile->counters[i].name, full, sizeof(full));
		profile->counters[i].value = 0;
		profile->count++;
	}
	profile->counters[i].value += value;
}

static char *file_read(const char *path, size_t *size)
{
	enum { SIZE_MAX_READ = 1 << 20 };
	FILE *file = fopen(path, "re");
	char *text = file ? malloc(SIZE_MAX_READ) : NULL;

	*size = text ? fread(text, 1, SIZE_MAX_READ, file) : 0;
	if (file)
		fclose(file);
	return text;
}

void bench_profile_add(struct bench_profile *profile, const char *path)
{
	static const char *const kinds[] = {"exits", "engine", "kvm"};
	size_t size;
	char *text = file_read(path, &size);
	struct json_value *root = text ? json_parse(text, size) : NULL;
	const struct json_value *vcpus = json_get(root, "vcpus");

	if (vcpus && vcpus->kind == JSON_ARRAY) {
		profile->launches++;
		profile->seconds += json_number(json_get(root, "seconds"), 0);
		for (const struct json_value *vcpu = vcpus->first; vcpu; vcpu = vcpu->next)
			for (unsigned k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
				const struct json_value *table = json_get(vcpu, kinds[k]);

				for (const struct json_value *v = table ? table->first : NULL; v; v = v->next)
					if (v->key && v->kind == JSON_NUMBER)
						counter_add(profile, kinds[k], v->key, json_integer(v));
			}
	}
	json_free(root);
	free(text);
}

uint64_t bench_profile_sum(const struct bench_result *r, unsigned column, const char *name)
{
	uint64_t sum = 0;

	for (unsigned part = 0; part < BENCH_PARTS; part++)
		for (unsigned i = 0; i < r->profiles[part][column].count; i++)
			if (!strcmp(r->profiles[part][column].counters[i].name, name))
				sum += r->profiles[part][column].counters[i].value;
	return sum;
}
