/* The command line: what is taken, what is refused and with which sentence, and nothing kept from a refusal. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "run_suite.h"
#include "vmm/cli.h"
#include "vmm/error.h"
#include "vmm/log.h"

static struct cli_request request;
static struct error err;

static int parse(const char *const *args)
{
	char *argv[32] = {(char *)"vmm"};
	int argc = 1;

	for (; args[argc - 1]; argc++)
		argv[argc] = (char *)args[argc - 1];
	memset(&err, 0, sizeof(err));
	return cli_parse(argc, argv, &request, &err);
}
#define PARSE(...) parse((const char *const[]){__VA_ARGS__, NULL})

START_TEST(commands)
{
	ck_assert_int_eq(parse((const char *const[]){NULL}), 0);
	ck_assert_int_eq(request.command, CLI_CMD_HELP);
	ck_assert_ptr_null(request.help_topic);
	ck_assert_int_eq(PARSE("version"), 0);
	ck_assert_int_eq(request.command, CLI_CMD_VERSION);
	ck_assert_int_eq(PARSE("info", "--json"), 0);
	ck_assert(request.command == CLI_CMD_INFO && request.json);
	ck_assert_int_eq(PARSE("help", "run"), 0);
	ck_assert_str_eq(request.help_topic, "run");
	ck_assert_int_eq(PARSE("run", "--help"), 0);
	ck_assert_int_eq(request.command, CLI_CMD_HELP);
	ck_assert_int_eq(PARSE("help", "nonsense"), -EINVAL);
	ck_assert_int_eq(PARSE("info", "--xml"), -EINVAL);
	ck_assert_int_eq(PARSE("fly"), -EINVAL);
}
END_TEST

START_TEST(defaults)
{
	ck_assert_int_eq(PARSE("run", "disk.img"), 0);
	ck_assert_str_eq(request.config.guest, "disk.img");
	ck_assert_uint_eq(request.config.memory, 512u << 20);
	ck_assert_uint_eq(request.config.cpus, 1);
	ck_assert_int_eq(request.config.backend, MACHINE_BACKEND_AUTO);
	ck_assert_int_eq(request.config.console, MACHINE_CONSOLE_STDIO);
	ck_assert_int_eq(request.config.on_reboot, MACHINE_REBOOT_RESET);
	ck_assert_uint_eq(request.config.net_count, 0);
	ck_assert_int_eq(request.log_level, LOG_WARNING);
}
END_TEST

START_TEST(values_with_equals_or_space)
{
	ck_assert_int_eq(PARSE("run", "--memory=1.5G", "--kernel", "bz", "--append", "a=b --c", "--initrd=rd"), 0);
	ck_assert_uint_eq(request.config.memory, 3ull << 29);
	ck_assert_str_eq(request.config.kernel, "bz");
	ck_assert_str_eq(request.config.append, "a=b --c");
	ck_assert_str_eq(request.config.initrd, "rd");
	ck_assert_int_eq(PARSE("run", "--", "--strange-name"), 0);
	ck_assert_str_eq(request.config.guest, "--strange-name");
	ck_assert_int_eq(PARSE("run", "--kernel"), -EINVAL);
	ck_assert_ptr_nonnull(strstr(err.message, "--kernel needs a value"));
	ck_assert_int_eq(PARSE("run", "a", "b"), -EINVAL);
	ck_assert_int_eq(PARSE("run", "-m", "a"), -EINVAL);
	ck_assert_int_eq(PARSE("run", "--memoryy=1G", "a"), -EINVAL);
	ck_assert_int_eq(PARSE("run"), -EINVAL);
}
END_TEST

START_TEST(memory)
{
	static const char *const bad[] = {"0", "1", "-1", "4K", "1T", "100000000000G", "512MM", "", "x", "1048577"};

	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		ck_assert_msg(PARSE("run", "--memory", bad[i], "a") == -EINVAL, "--memory %s is taken", bad[i]);
		ck_assert_ptr_nonnull(strstr(err.message, "--memory"));
	}
	ck_assert_int_eq(PARSE("run", "--memory", "64G", "a"), 0);
	ck_assert_uint_eq(request.config.memory, 64ull << 30);
}
END_TEST

START_TEST(disks)
{
	ck_assert_int_eq(PARSE("run", "--disk", "a.img,ro,serial=S1", "--disk=b.img"), 0);
	ck_assert_uint_eq(request.config.disk_count, 2);
	ck_assert_str_eq(request.config.disks[0].path, "a.img");
	ck_assert(request.config.disks[0].readonly);
	ck_assert_str_eq(request.config.disks[0].serial, "S1");
	ck_assert(!request.config.disks[1].readonly);
	ck_assert_int_eq(PARSE("run", "--disk", ""), -EINVAL);
	ck_assert_int_eq(PARSE("run", "--disk", "a,rw"), -EINVAL);
	ck_assert_int_eq(PARSE("run", "--disk", "a,serial="), -EINVAL);
	ck_assert_int_eq(PARSE("run", "--disk", "a,serial=123456789012345678901"), -EINVAL);
	ck_assert_int_eq(PARSE("run", "--disk", "a,serial=12345678901234567890"), 0);
}
END_TEST

START_TEST(nets)
{
	const struct machine_hostfwd *fwd = request.config.nets[0].hostfwd;

	ck_assert_int_eq(PARSE("run", "--net", "user,hostfwd=tcp::8080-:80,hostfwd=tcp:127.0.0.2:1-:65535", "a"), 0);
	ck_assert_uint_eq(request.config.nets[0].hostfwd_count, 2);
	ck_assert_str_eq(fwd[0].host_addr, "127.0.0.1");
	ck_assert_uint_eq(fwd[0].host_port, 8080);
	ck_assert_uint_eq(fwd[0].guest_port, 80);
	ck_assert_str_eq(fwd[1].host_addr, "127.0.0.2");
	ck_assert_uint_eq(fwd[1].guest_port, 65535);
	ck_assert_int_eq(PARSE("run", "--net", "tap,ifname=tap0", "--net=user", "a"), 0);
	ck_assert_int_eq(request.config.nets[0].kind, MACHINE_NET_TAP);
	ck_assert_str_eq(request.config.nets[0].ifname, "tap0");
	ck_assert_int_eq(PARSE("run", "--net=none", "a"), 0);
	ck_assert_int_eq(PARSE("run", "--net=none", "--net=user", "a"), -EINVAL);
	ck_assert_int_eq(PARSE("run", "--net=user", "--net=none", "a"), -EINVAL);
	ck_assert_int_eq(PARSE("run", "--net=bridge", "a"), -EINVAL);
	ck_assert_int_eq(PARSE("run", "--net=user,ifname=x", "a"), -EINVAL);
	ck_assert_int_eq(PARSE("run", "--net=tap,ifname=12345678901234567", "a"), -EINVAL);
}
END_TEST

START_TEST(bad_hostfwd)
{
	static const char *const bad[] = {"user,hostfwd=", "user,hostfwd=udp::1-:1", "user,hostfwd=tcp:1-:1",
		"user,hostfwd=tcp::0-:1", "user,hostfwd=tcp::1-:0", "user,hostfwd=tcp::65536-:1", "user,hostfwd=tcp::1-1",
		"user,hostfwd=tcp:localhost:1-:1", "user,hostfwd=tcp:1.2.3:1-:1", "user,hostfwd=tcp:1.2.3.256:1-:1",
		"user,hostfwd=tcp:1.2.3.4.5:1-:1", "user,hostfwd=tcp::+1-:1", "user,hostfwd=tcp:: 1-:1"};

	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		ck_assert_msg(PARSE("run", "--net", bad[i], "a") == -EINVAL, "--net %s is taken", bad[i]);
}
END_TEST

START_TEST(others)
{
	ck_assert_int_eq(PARSE("run", "--console=file:out", "--on-reboot", "exit", "--stats=s", "--trace=pio,mmio:t",
		"--cpu=common,+smap", "--log=debug", "--test-device=on", "a"), 0);
	ck_assert(request.config.test_device);
	ck_assert_int_eq(request.config.console, MACHINE_CONSOLE_FILE);
	ck_assert_str_eq(request.config.console_path, "out");
	ck_assert_int_eq(request.config.on_reboot, MACHINE_REBOOT_EXIT);
	ck_assert_uint_eq(request.config.trace, MACHINE_TRACE_PIO | MACHINE_TRACE_MMIO);
	ck_assert_str_eq(request.config.trace_path, "t");
	ck_assert(request.config.smap);
	ck_assert_int_eq(request.log_level, LOG_DEBUG);
	ck_assert_int_eq(PARSE("run", "--console=file:", "a"), -EINVAL);
	ck_assert_int_eq(PARSE("run", "--console=vga", "a"), -EINVAL);
	ck_assert_int_eq(PARSE("run", "--trace=everything", "a"), -EINVAL);
	ck_assert_int_eq(PARSE("run", "--trace=pio:", "a"), -EINVAL);
	ck_assert_int_eq(PARSE("run", "--test-device=maybe", "a"), -EINVAL);
	ck_assert_int_eq(PARSE("run", "--cpu=486", "a"), -EINVAL);
	ck_assert_int_eq(PARSE("run", "--backend=xen", "a"), -EINVAL);
	ck_assert_int_eq(PARSE("run", "--cpus=0", "a"), -EINVAL);
	ck_assert_int_eq(PARSE("run", "--cpus=many", "a"), -EINVAL);
}
END_TEST

START_TEST(not_yet)
{
	ck_assert_int_eq(PARSE("run", "--backend=soft", "--cpus=2", "a"), -ENOTSUP);
	ck_assert_int_eq(PARSE("run", "--cpu=host", "a"), 0);
	ck_assert(request.config.cpu_host);
}
END_TEST

START_TEST(statuses_of_ours_are_even)
{
	ck_assert(!((CLI_USAGE | CLI_HOST | CLI_GUEST_CRASH | CLI_INTERNAL | CLI_UNSUPPORTED | CLI_STOPPED) & 1));
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("cli");
	TCase *tc = tcase_create("cli");

	tcase_add_test(tc, commands);
	tcase_add_test(tc, defaults);
	tcase_add_test(tc, values_with_equals_or_space);
	tcase_add_test(tc, memory);
	tcase_add_test(tc, disks);
	tcase_add_test(tc, nets);
	tcase_add_test(tc, bad_hostfwd);
	tcase_add_test(tc, others);
	tcase_add_test(tc, not_yet);
	tcase_add_test(tc, statuses_of_ours_are_even);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
