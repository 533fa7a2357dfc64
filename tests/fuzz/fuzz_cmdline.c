/* Command lines: the input is cut into arguments at each zero byte or newline. */
#include "fuzz.h"
#include "vmm/cli.h"
#include "vmm/error.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#define ARGS_MAX 24
#define TEXT_MAX 4096

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct cli_request request;
	static char text[TEXT_MAX + 1];
	char *argv[ARGS_MAX + 2] = {(char *)"vmm"};
	struct error err = {0};
	int argc = 1, rc;
	size_t start = 0;

	if (size > TEXT_MAX)
		size = TEXT_MAX;
	memcpy(text, data, size);
	text[size] = 0;
	for (size_t i = 0; i <= size && argc <= ARGS_MAX; i++) {
		if (i < size && text[i] && text[i] != '\n')
			continue;
		text[i] = 0;
		argv[argc++] = text + start;
		start = i + 1;
	}
	rc = cli_parse(argc, argv, &request, &err);
	if (rc) {
		assert(rc == -EINVAL || rc == -ENOTSUP);
		assert(err.message[0]);
	} else {
		assert(request.config.disk_count <= MACHINE_DISK_MAX && request.config.net_count <= MACHINE_NET_MAX);
		assert(request.config.memory && !(request.config.memory & 0xfff));
		assert(request.command != CLI_CMD_HELP || cli_help_text(request.help_topic));
	}
	return 0;
}

size_t fuzz_seed(unsigned kind, uint8_t *data, size_t size)
{
	static const char *const seeds[] = {
		"run\n--memory=512M\n--kernel\nvmlinuz\n--append\nconsole=ttyS0\n--disk\na.img,ro,serial=x\n--cpus=1",
		"run\n--net=user,hostfwd=tcp:127.0.0.1:8080-:80\n--net\ntap,ifname=tap0\n--console=file:x\ndisk.img",
		"run\n--backend=soft\n--engine=interp\n--cpu=common,+smap\n--trace=pio,mmio:f\n--stats=s\n--on-reboot=exit\nx",
		"info\n--json",
		"help\nrun",
		"bench\n--quick\n--json=a\n--group\nnano,macro\n--rounds=3\n--only=a,b\n--columns\nnative",
		"bench\ncompare\na\nb",
	};
	size_t length;

	if (kind >= sizeof(seeds) / sizeof(seeds[0]))
		return 0;
	length = strlen(seeds[kind]);
	if (length > size)
		return 0;
	memcpy(data, seeds[kind], length);
	return length;
}
