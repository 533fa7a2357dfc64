/*
 * The command line: a pure parser from argv to struct cli_request, the exit statuses, and the entry points of the
 * commands. cli_parse() does no I/O and allocates nothing, so it can be fuzzed.
 *
 * Exit statuses. A guest that writes v to the debug-exit port ends vmm with (v << 1) | 1, always odd; so every
 * status of our own is even, and neither can be taken for the other.
 */
#ifndef VMM_CLI_H
#define VMM_CLI_H

#include "vmm/bench.h"
#include "vmm/machine.h"

enum cli_status {
	CLI_OK = 0,	       /* powered off, or rebooted with --on-reboot=exit */
	CLI_USAGE = 2,	       /* the command line is wrong */
	CLI_HOST = 4,	       /* a file, port or other resource of the host is missing, bad or refused */
	CLI_GUEST_CRASH = 6,   /* triple fault */
	CLI_INTERNAL = 8,      /* a vcpu process died, or a bug of ours */
	CLI_UNSUPPORTED = 10,  /* documented, but this version cannot do it yet */
	CLI_BENCH_FAILED = 12, /* vmm bench: something that was measured failed */
	CLI_STOPPED = 130,     /* ended from outside: Ctrl-A x, SIGINT, SIGTERM, SIGHUP */
};

enum cli_command { CLI_CMD_HELP, CLI_CMD_RUN, CLI_CMD_INFO, CLI_CMD_VERSION, CLI_CMD_BENCH, CLI_CMD_BENCH_COMPARE, CLI_CMD_BENCH_SHOW };

struct cli_request {
	enum cli_command command;
	const char *help_topic; /* CLI_CMD_HELP: "run", "info", … or NULL */
	bool json;		/* CLI_CMD_INFO */
	int log_level;		/* enum log_level */
	struct machine_config config;
	struct bench_config bench;    /* CLI_CMD_BENCH…; html also for show */
	const char *bench_files[2];   /* compare: two, show: one */
};

struct error;

/*
 * Fills *request. 0, -EINVAL (bad usage) or -ENOTSUP (known, but not in this version), with a sentence in *err.
 * The request keeps pointers into argv.
 */
int cli_parse(int argc, char *const *argv, struct cli_request *request, struct error *err);

/* The part of cli_parse() for `vmm bench …`. */
int cli_bench_parse(int argc, char *const *argv, struct cli_request *request, struct error *err);

/* The text of `vmm help TOPIC` (NULL: the overview), or NULL if there is none. */
const char *cli_help_text(const char *topic);

/* The commands. Each returns the exit status. */
int cli_run(const struct cli_request *request);
int cli_info(bool json);
int cli_bench(const struct cli_request *request);

#endif
