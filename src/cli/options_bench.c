/* The arguments of vmm bench, vmm bench compare and vmm bench show. Like cli_parse(), of which it is a part. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/cli.h"
#include "vmm/error.h"

static int groups_parse(const char *text, struct bench_config *config, struct error *err)
{
	static const struct {
		const char *name;
		unsigned bit;
	} names[] = {{"nano", BENCH_GROUP_NANO}, {"micro", BENCH_GROUP_MICRO}, {"macro", BENCH_GROUP_MACRO}};

	while (*text) {
		size_t n = strcspn(text, ",");
		unsigned bit = 0;

		for (unsigned i = 0; i < 3; i++)
			if (n == strlen(names[i].name) && !memcmp(text, names[i].name, n))
				bit = names[i].bit;
		if (!bit)
			return error_set(
				err, -EINVAL, "--group takes nano, micro and macro, joined by commas.");
		config->groups |= bit;
		text += n + (text[n] == ',');
	}
	return config->groups
		       ? 0
		       : error_set(err, -EINVAL, "--group takes nano, micro and macro, joined by commas.");
}

static int count_parse(const char *name, const char *text, unsigned max, unsigned *value, struct error *err)
{
	char *end;
	unsigned long n;

	errno = 0;
	n = strtoul(text, &end, 10);
	if (*text < '0' || *text > '9' || errno || *end || !n || n > max)
		return error_set(err, -EINVAL, "--%s must be a number from 1 to %u.", name, max);
	*value = (unsigned)n;
	return 0;
}

static int value_apply(const char *name, const char *value, struct bench_config *config, struct error *err)
{
	struct {
		const char *name;
		const char **field;
	} texts[] = {{"json", &config->json}, {"html", &config->html}, {"only", &config->only},
		{"columns", &config->columns}, {"kernel", &config->kernel}, {"guests", &config->guests},
		{"root", &config->root}};

	if (!strcmp(name, "group"))
		return groups_parse(value, config, err);
	if (!strcmp(name, "rounds"))
		return count_parse(name, value, 50, &config->rounds, err);
	if (!strcmp(name, "busy-io"))
		return count_parse(name, value, 1000000, &config->busy_io, err);
	if (!strcmp(name, "limit"))
		return count_parse(name, value, 86400, &config->limit, err);
	for (unsigned i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		if (strcmp(name, texts[i].name))
			continue;
		if (!*value || strlen(value) >= 400)
			return error_set(err, -EINVAL, "--%s needs a value of at most 399 bytes.", name);
		*texts[i].field = value;
		return 0;
	}
	return error_set(
		err, -EINVAL, "vmm bench does not know the option \"--%.40s\"; see vmm help bench.", name);
}

static bool flag_apply(const char *arg, struct bench_config *config)
{
	if (!strcmp(arg, "--quick"))
		config->pace = BENCH_QUICK;
	else if (!strcmp(arg, "--full"))
		config->pace = BENCH_FULL;
	else if (!strcmp(arg, "--list"))
		config->list = true;
	else
		return false;
	return true;
}

/* --NAME=VALUE or --NAME VALUE at argv[*i]. */
static int option_parse(int argc, char *const *argv, int *i, struct bench_config *config, struct error *err)
{
	const char *arg = argv[*i] + 2;
	size_t length = strcspn(arg, "=");
	const char *value = arg[length] ? arg + length + 1 : *i + 1 < argc ? argv[++*i] : NULL;
	char name[32];

	if (!length || length >= sizeof(name))
		return error_set(err, -EINVAL,
			"vmm bench does not know the option \"%.60s\"; see vmm help bench.", arg - 2);
	memcpy(name, arg, length);
	name[length] = 0;
	if (!value)
		return value_apply(name, "?", &(struct bench_config){0}, err) ? err->code :
			error_set(err, -EINVAL, "--%s needs a value; see vmm help bench.", name);
	return value_apply(name, value, config, err);
}

static int files_check(const struct cli_request *request, unsigned count, struct error *err)
{
	if (request->command == CLI_CMD_BENCH && count)
		return error_set(err, -EINVAL, "vmm bench takes options, or compare, or show; not \"%.60s\".",
			request->bench_files[0]);
	if (request->command == CLI_CMD_BENCH_COMPARE && count != 2)
		return error_set(
			err, -EINVAL, "vmm bench compare takes two files that vmm bench --json has written.");
	if (request->command == CLI_CMD_BENCH_SHOW && count != 1)
		return error_set(
			err, -EINVAL, "vmm bench show takes one file that vmm bench --json has written.");
	return 0;
}

int cli_bench_parse(int argc, char *const *argv, struct cli_request *request, struct error *err)
{
	unsigned count = 0;
	int i = 2, rc;

	request->bench.argc = argc;
	request->bench.argv = argv;
	if (argc > 2 && !strcmp(argv[2], "compare"))
		request->command = CLI_CMD_BENCH_COMPARE;
	if (argc > 2 && !strcmp(argv[2], "show"))
		request->command = CLI_CMD_BENCH_SHOW;
	for (i += request->command != CLI_CMD_BENCH; i < argc; i++) {
		if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
			request->command = CLI_CMD_HELP;
			request->help_topic = "bench";
			return 0;
		}
		if (flag_apply(argv[i], &request->bench))
			continue;
		if (argv[i][0] != '-') {
			if (count < 2)
				request->bench_files[count] = argv[i];
			count++;
			continue;
		}
		if (strncmp(argv[i], "--", 2))
			return error_set(err, -EINVAL,
				"vmm bench does not know the option \"%.60s\"; see vmm help bench.", argv[i]);
		rc = option_parse(argc, argv, &i, &request->bench, err);
		if (rc)
			return rc;
	}
	return files_check(request, count, err);
}
