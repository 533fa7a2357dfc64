/* vmm bench: the harness called, its error printed and turned into a status. */
#include <errno.h>
#include <stdio.h>

#include "vmm/cli.h"
#include "vmm/error.h"

int cli_bench(const struct cli_request *request)
{
	struct error err = {0};
	int rc;

	switch (request->command) {
	case CLI_CMD_BENCH_COMPARE:
		rc = bench_compare(request->bench_files[0], request->bench_files[1], &err);
		break;
	case CLI_CMD_BENCH_SHOW: rc = bench_show(request->bench_files[0], request->bench.html, &err); break;
	default: rc = bench_run(&request->bench, &err); break;
	}
	if (fflush(stdout) && !rc)
		rc = error_set(&err, -EIO, "Standard output cannot be written.");
	if (rc)
		fprintf(stderr, "vmm: %s\n", err.message);
	switch (rc) {
	case 0: return CLI_OK;
	case -ECANCELED: return CLI_BENCH_FAILED;
	case -EINTR: return CLI_STOPPED;
	case -EINVAL: return CLI_USAGE;
	default: return CLI_HOST;
	}
}
