/* The program: vmm, or the inside of a vcpu process (`vmm --vcpu-process`), which is the same binary. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "vmm/cli.h"
#include "vmm/engine.h"
#include "vmm/error.h"
#include "vmm/log.h"

/* A full disk or a closed pipe behind standard output is a failure of ours too. */
static int output_finish(void)
{
	if (!fflush(stdout) && !ferror(stdout))
		return CLI_OK;
	fprintf(stderr, "vmm: Standard output cannot be written: %s.\n", strerror(errno));
	return CLI_HOST;
}

int main(int argc, char **argv)
{
	static struct cli_request request; /* large */
	struct error err = {0};
	int rc;

	if (argc > 1 && !strcmp(argv[1], "--vcpu-process"))
		return engine_main(argc, argv);
	rc = cli_parse(argc, argv, &request, &err);
	if (rc) {
		fprintf(stderr, "vmm: %s\n", err.message);
		return rc == -ENOTSUP ? CLI_UNSUPPORTED : CLI_USAGE;
	}
	log_set_level((enum log_level)request.log_level);
	switch (request.command) {
	case CLI_CMD_RUN: return cli_run(&request);
	case CLI_CMD_INFO: rc = cli_info(request.json); return output_finish() ? CLI_HOST : rc;
	case CLI_CMD_BENCH:
	case CLI_CMD_BENCH_COMPARE:
	case CLI_CMD_BENCH_SHOW: return cli_bench(&request);
	case CLI_CMD_VERSION: puts("vmm " VMM_VERSION); return output_finish();
	case CLI_CMD_HELP: fputs(cli_help_text(request.help_topic), stdout); return output_finish();
	}
	return CLI_USAGE;
}
