/* The program: vmm, or the inside of a vcpu process (`vmm --vcpu-process`), which is the same binary. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "vmm/cli.h"
#include "vmm/engine.h"
#include "vmm/error.h"
#include "vmm/log.h"

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
	case CLI_CMD_INFO: return cli_info(request.json);
	case CLI_CMD_BENCH:
	case CLI_CMD_BENCH_COMPARE:
	case CLI_CMD_BENCH_SHOW: return cli_bench(&request);
	case CLI_CMD_VERSION: puts("vmm " VMM_VERSION); return CLI_OK;
	case CLI_CMD_HELP: fputs(cli_help_text(request.help_topic), stdout); return CLI_OK;
	}
	return CLI_USAGE;
}
