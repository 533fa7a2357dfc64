/*
 * The argument parser: argv → struct cli_request, without I/O, allocation or globals, so that a fuzzer can drive it.
 * Every refusal is one sentence that names the option and says what would have been right.
 */
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/bytes.h"
#include "vmm/cli.h"
#include "vmm/error.h"
#include "vmm/log.h"

#define MEMORY_DEFAULT (512ull << 20)
#define MEMORY_MIN (1ull << 20)
#define MEMORY_MAX (64ull << 30)

struct choice {
	const char *name;
	int value;
};

static int choice_find(const struct choice *choices, const char *text, int *value)
{
	for (; choices->name; choices++) {
		if (!strcmp(choices->name, text)) {
			*value = choices->value;
			return 0;
		}
	}
	return -EINVAL;
}

static const struct choice backends[] = {{"auto", MACHINE_BACKEND_AUTO}, {"soft", MACHINE_BACKEND_SOFT},
	{"kvm", MACHINE_BACKEND_KVM}, {NULL, 0}};
static const struct choice engines[] = {{"auto", MACHINE_ENGINE_AUTO}, {"interp", MACHINE_ENGINE_INTERP},
	{"translate", MACHINE_ENGINE_TRANSLATE}, {"slots", MACHINE_ENGINE_SLOTS},
	{"lockstep", MACHINE_ENGINE_LOCKSTEP}, {NULL, 0}};
static const struct choice shadows[] = {{"unsync", MACHINE_SHADOW_UNSYNC}, {"vtlb", MACHINE_SHADOW_VTLB}, {NULL, 0}};
static const struct choice reboots[] = {{"reset", MACHINE_REBOOT_RESET}, {"exit", MACHINE_REBOOT_EXIT}, {NULL, 0}};
static const struct choice switches[] = {{"off", false}, {"on", true}, {NULL, 0}};
static const struct choice triple_faults[] = {{"auto", MACHINE_TRIPLE_AUTO}, {"reset", MACHINE_TRIPLE_RESET},
	{"stop", MACHINE_TRIPLE_STOP}, {NULL, 0}};
static const struct choice log_levels[] = {{"error", LOG_ERROR}, {"warning", LOG_WARNING}, {"info", LOG_INFO},
	{"debug", LOG_DEBUG}, {NULL, 0}};

/* Copies the text up to the next comma into dst and steps past the comma; NULL at the end of the list. */
static int list_next(const char **rest, char *dst, size_t size)
{
	const char *end = strchrnul(*rest, ',');
	size_t length = (size_t)(end - *rest);

	if (length >= size)
		return -ENAMETOOLONG;
	memcpy(dst, *rest, length);
	dst[length] = 0;
	*rest = *end ? end + 1 : NULL;
	return 0;
}

/* A decimal number of digits only, within [min, max]. */
static int number_parse(const char *text, unsigned long min, unsigned long max, unsigned long *value)
{
	char *end;

	if (*text < '0' || *text > '9')
		return -EINVAL;
	errno = 0;
	*value = strtoul(text, &end, 10);
	if (errno || *end || *value < min || *value > max)
		return -EINVAL;
	return 0;
}

/* The disk that comes next, empty; it counts once it is whole. NULL: there is no room. */
static struct machine_disk *disk_next(struct machine_config *config, struct error *err)
{
	if (config->disk_count == MACHINE_DISK_MAX) {
		error_set(err, -EINVAL, "--disk and --cdrom may be given at most %d times together.", MACHINE_DISK_MAX);
		return NULL;
	}
	return memset(&config->disks[config->disk_count], 0, sizeof(config->disks[0]));
}

static int disk_parse(const char *text, struct machine_config *config, struct error *err)
{
	const char *rest = text;
	struct machine_disk *disk = disk_next(config, err);
	char item[64];

	if (!disk)
		return -EINVAL;
	if (list_next(&rest, disk->path, sizeof(disk->path)))
		return error_set(err, -EINVAL, "The path given to --disk is longer than %d bytes.", MACHINE_PATH_MAX - 1);
	if (!disk->path[0])
		return error_set(err, -EINVAL, "--disk needs a path: --disk PATH[,ro][,serial=S].");
	while (rest) {
		if (list_next(&rest, item, sizeof(item)))
			return error_set(err, -EINVAL, "--disk has an option that is too long; it takes ro and serial=S.");
		if (!strcmp(item, "ro")) {
			disk->readonly = true;
		} else if (!strncmp(item, "serial=", 7)) {
			if (!item[7] || strlen(item + 7) >= sizeof(disk->serial))
				return error_set(err, -EINVAL, "A disk's serial number has 1 to 20 characters.");
			memcpy(disk->serial, item + 7, strlen(item + 7) + 1);
		} else {
			return error_set(err, -EINVAL, "--disk does not know \"%s\"; it takes ro and serial=S.", item);
		}
	}
	config->disk_count++;
	return 0;
}

/* A disc in a drive of its own; commas are part of the path. */
static int cdrom_parse(const char *text, struct machine_config *config, struct error *err)
{
	struct machine_disk *disk = disk_next(config, err);

	if (!disk)
		return -EINVAL;
	if (!*text)
		return error_set(err, -EINVAL, "--cdrom needs a path: --cdrom PATH.");
	if (strlen(text) >= sizeof(disk->path))
		return error_set(err, -EINVAL, "The path given to --cdrom is longer than %d bytes.", MACHINE_PATH_MAX - 1);
	memcpy(disk->path, text, strlen(text) + 1);
	disk->cd = disk->readonly = true;
	config->disk_count++;
	return 0;
}

/* An IPv4 address in four decimal numbers. */
static bool ipv4_valid(const char *text)
{
	unsigned parts = 0;

	for (;;) {
		unsigned value = 0, digits = 0;

		while (*text >= '0' && *text <= '9' && digits < 4) {
			value = value * 10 + (unsigned)(*text++ - '0');
			digits++;
		}
		if (!digits || digits > 3 || value > 255)
			return false;
		parts++;
		if (!*text)
			return parts == 4;
		if (*text++ != '.' || parts == 4)
			return false;
	}
}

/* tcp:HOSTADDR:PORT-:GUESTPORT, where HOSTADDR may be empty (127.0.0.1). */
static int hostfwd_parse(const char *text, struct machine_net *net, struct error *err)
{
	struct machine_hostfwd *fwd;
	char copy[96];
	char *addr, *port, *guest;
	unsigned long value;

	if (net->hostfwd_count == MACHINE_HOSTFWD_MAX)
		return error_set(err, -EINVAL, "One --net takes at most %d hostfwd.", MACHINE_HOSTFWD_MAX);
	fwd = &net->hostfwd[net->hostfwd_count];
	memset(fwd, 0, sizeof(*fwd));
	if (strlen(text) >= sizeof(copy) || strncmp(text, "tcp:", 4))
		goto bad;
	memcpy(copy, text, strlen(text) + 1);
	addr = copy + 4;
	port = strchr(addr, ':');
	if (!port)
		goto bad;
	*port++ = 0;
	guest = strstr(port, "-:");
	if (!guest)
		goto bad;
	*guest = 0;
	guest += 2;
	if (*addr && !ipv4_valid(addr))
		return error_set(err, -EINVAL, "hostfwd needs an IPv4 address such as 127.0.0.1, not \"%s\".", addr);
	snprintf(fwd->host_addr, sizeof(fwd->host_addr), "%.39s", *addr ? addr : "127.0.0.1");
	if (number_parse(port, 1, 65535, &value))
		goto bad;
	fwd->host_port = (uint16_t)value;
	if (number_parse(guest, 1, 65535, &value))
		goto bad;
	fwd->guest_port = (uint16_t)value;
	net->hostfwd_count++;
	return 0;
bad:
	return error_set(err, -EINVAL, "hostfwd is written tcp:HOSTADDR:PORT-:GUESTPORT, with ports from 1 to 65535.");
}

static int net_parse(const char *text, struct machine_config *config, struct error *err)
{
	const char *rest = text;
	struct machine_net *net;
	char item[128];
	int rc;

	if (list_next(&rest, item, sizeof(item)))
		return error_set(err, -EINVAL, "--net is user, tap or none.");
	if (!strcmp(item, "none")) {
		if (rest || config->net_count)
			return error_set(err, -EINVAL, "--net none stands alone.");
		config->net_none = true;
		return 0;
	}
	if (config->net_none)
		return error_set(err, -EINVAL, "--net none stands alone.");
	if (config->net_count == MACHINE_NET_MAX)
		return error_set(err, -EINVAL, "--net may be given at most %d times.", MACHINE_NET_MAX);
	net = &config->nets[config->net_count];
	memset(net, 0, sizeof(*net));
	if (!strcmp(item, "user"))
		net->kind = MACHINE_NET_USER;
	else if (!strcmp(item, "tap"))
		net->kind = MACHINE_NET_TAP;
	else
		return error_set(err, -EINVAL, "--net is user, tap or none, not \"%s\".", item);
	while (rest) {
		if (list_next(&rest, item, sizeof(item)))
			return error_set(err, -EINVAL, "--net has an option that is too long.");
		if (net->kind == MACHINE_NET_USER && !strncmp(item, "hostfwd=", 8)) {
			rc = hostfwd_parse(item + 8, net, err);
			if (rc)
				return rc;
		} else if (net->kind == MACHINE_NET_TAP && !strncmp(item, "ifname=", 7)) {
			if (!item[7] || strlen(item + 7) >= sizeof(net->ifname))
				return error_set(err, -EINVAL, "A network interface name has 1 to 15 characters.");
			memcpy(net->ifname, item + 7, strlen(item + 7) + 1);
		} else {
			return error_set(err, -EINVAL, "--net %s does not know \"%s\".",
				net->kind == MACHINE_NET_USER ? "user" : "tap", item);
		}
	}
	config->net_count++;
	return 0;
}

static int console_parse(const char *text, struct machine_config *config, struct error *err)
{
	if (!strcmp(text, "stdio"))
		config->console = MACHINE_CONSOLE_STDIO;
	else if (!strcmp(text, "pty"))
		config->console = MACHINE_CONSOLE_PTY;
	else if (!strcmp(text, "none"))
		config->console = MACHINE_CONSOLE_NONE;
	else if (!strncmp(text, "file:", 5) && text[5]) {
		config->console = MACHINE_CONSOLE_FILE;
		config->console_path = text + 5;
	} else
		return error_set(err, -EINVAL, "--console is stdio, file:PATH, pty or none.");
	return 0;
}

static int memory_parse(const char *text, struct machine_config *config, struct error *err)
{
	uint64_t size;

	if (size_parse(text, &size))
		return error_set(err, -EINVAL, "--memory needs a size such as 512M or 4G, not \"%.60s\".", text);
	if (size < MEMORY_MIN || size > MEMORY_MAX)
		return error_set(err, -EINVAL, "--memory must be between 1M and 64G.");
	if (size & 0xfff)
		return error_set(err, -EINVAL, "--memory must be a multiple of 4K.");
	config->memory = size;
	return 0;
}

static int cpus_parse(const char *text, struct machine_config *config, struct error *err)
{
	unsigned long value;

	if (number_parse(text, 1, MACHINE_CPU_MAX, &value))
		return error_set(err, -EINVAL, "--cpus must be a number from 1 to %d.", MACHINE_CPU_MAX);
	config->cpus = (unsigned)value;
	return 0;
}

/* diskN,diskM,…: numbers in the order of the command line, GUEST first. */
static int boot_order_parse(const char *text, struct machine_config *config, struct error *err)
{
	const char *rest = text;
	unsigned long value;
	char item[16];

	config->boot_order_count = 0;
	while (rest) {
		if (list_next(&rest, item, sizeof(item)) || strncmp(item, "disk", 4) || number_parse(item + 4, 0, MACHINE_DISK_MAX, &value))
			return error_set(err, -EINVAL, "--boot-order takes disks by their numbers, such as disk1,disk0; GUEST is disk0.");
		for (unsigned i = 0; i < config->boot_order_count; i++)
			if (config->boot_order[i] == value)
				return error_set(err, -EINVAL, "--boot-order names disk%lu twice.", value);
		config->boot_order[config->boot_order_count++] = (uint8_t)value;
	}
	return 0;
}

static int boot_menu_parse(const char *text, struct machine_config *config, struct error *err)
{
	unsigned long value;

	if (number_parse(text, 0, 60, &value))
		return error_set(err, -EINVAL, "--boot-menu is the number of seconds to wait for a key, from 0 to 60.");
	config->boot_menu = (unsigned)value;
	return 0;
}

static int cpu_parse(const char *text, struct machine_config *config, struct error *err)
{
	const char *rest = text;
	char item[32];

	config->cpu_host = !strcmp(text, "host");
	if (config->cpu_host)
		return 0;
	if (list_next(&rest, item, sizeof(item)) || strcmp(item, "common"))
		return error_set(err, -EINVAL, "--cpu is common, with the option +smap, or host.");
	while (rest) {
		if (list_next(&rest, item, sizeof(item)))
			item[0] = 0;
		if (!strcmp(item, "+smap"))
			config->smap = true;
		else if (!strcmp(item, "-smap"))
			config->smap = false;
		else
			return error_set(err, -EINVAL, "--cpu common takes +smap and nothing else.");
	}
	return 0;
}

/* CPU[-CPU],...: vcpu n runs on the n-th, from the start again when there are more vcpus. */
static int pin_parse(const char *text, struct machine_config *config, struct error *err)
{
	const char *rest = text;
	char item[16], *dash;
	unsigned long first, last;

	config->pin_count = 0;
	while (rest) {
		if (list_next(&rest, item, sizeof(item)))
			goto bad;
		dash = strchr(item, '-');
		if (dash)
			*dash = 0;
		if (number_parse(item, 0, 4095, &first))
			goto bad;
		last = first;
		if (dash && number_parse(dash + 1, first, 4095, &last))
			goto bad;
		for (unsigned long cpu = first; cpu <= last && config->pin_count < MACHINE_CPU_MAX; cpu++)
			config->pin[config->pin_count++] = (uint16_t)cpu;
	}
	return 0;
bad:
	return error_set(err, -EINVAL, "--pin takes numbers of the host's processors, such as 0,2-3.");
}

static int move_parse(const char *text, struct machine_config *config, struct error *err)
{
	const char *rest = text;
	unsigned long every, length;
	char item[16];

	if (list_next(&rest, item, sizeof(item)) || !rest || number_parse(item, 1, 1000000000, &every) ||
		number_parse(rest, 1, 1000000000, &length))
		return error_set(err, -EINVAL, "--move takes two numbers: after how many exits, for how many instructions.");
	config->move_every = (unsigned)every;
	config->move_length = (unsigned)length;
	return 0;
}

/* EVENTS[:FILE], EVENTS = pio, mmio or all, joined by commas. */
static int trace_parse(const char *text, struct machine_config *config, struct error *err)
{
	const char *colon = strchr(text, ':');
	size_t length = colon ? (size_t)(colon - text) : strlen(text);
	char events[64], item[16];
	const char *rest = events;

	if (length >= sizeof(events) || (colon && !colon[1]))
		goto bad;
	memcpy(events, text, length);
	events[length] = 0;
	while (rest) {
		if (list_next(&rest, item, sizeof(item)))
			goto bad;
		if (!strcmp(item, "pio"))
			config->trace |= MACHINE_TRACE_PIO;
		else if (!strcmp(item, "mmio"))
			config->trace |= MACHINE_TRACE_MMIO;
		else if (!strcmp(item, "all"))
			config->trace |= MACHINE_TRACE_PIO | MACHINE_TRACE_MMIO;
		else
			goto bad;
	}
	if (colon)
		config->trace_path = colon + 1;
	return 0;
bad:
	return error_set(err, -EINVAL, "--trace takes pio, mmio or all, joined by commas, and then :FILE if wanted.");
}

enum option {
	OPT_BACKEND, OPT_ENGINE, OPT_SHADOW, OPT_CPUS, OPT_CPU, OPT_MEMORY, OPT_KERNEL, OPT_INITRD, OPT_APPEND, OPT_FIRMWARE,
	OPT_FIRMWARE_VARS, OPT_FIRMWARE_LOG, OPT_BOOT_ORDER, OPT_BOOT_MENU, OPT_ON_TRIPLE_FAULT, OPT_PIN, OPT_HUGEPAGES,
	OPT_PREALLOC, OPT_MOVE, OPT_DISK, OPT_CDROM, OPT_NET, OPT_CONSOLE, OPT_ON_REBOOT, OPT_TEST_DEVICE, OPT_STATS, OPT_TRACE, OPT_LOG,
};

static const struct choice options[] = {
	{"backend", OPT_BACKEND}, {"engine", OPT_ENGINE}, {"shadow", OPT_SHADOW}, {"cpus", OPT_CPUS}, {"cpu", OPT_CPU},
	{"memory", OPT_MEMORY}, {"kernel", OPT_KERNEL}, {"initrd", OPT_INITRD}, {"append", OPT_APPEND},
	{"firmware-vars", OPT_FIRMWARE_VARS}, {"firmware-log", OPT_FIRMWARE_LOG}, {"boot-order", OPT_BOOT_ORDER},
	{"boot-menu", OPT_BOOT_MENU}, {"on-triple-fault", OPT_ON_TRIPLE_FAULT},
	{"firmware", OPT_FIRMWARE}, {"disk", OPT_DISK}, {"cdrom", OPT_CDROM}, {"net", OPT_NET}, {"console", OPT_CONSOLE},
	{"pin", OPT_PIN}, {"hugepages", OPT_HUGEPAGES}, {"prealloc", OPT_PREALLOC}, {"move", OPT_MOVE},
	{"on-reboot", OPT_ON_REBOOT}, {"test-device", OPT_TEST_DEVICE}, {"stats", OPT_STATS}, {"trace", OPT_TRACE},
	{"log", OPT_LOG}, {NULL, 0},
};

static bool is_flag(int option)
{
	return option == OPT_HUGEPAGES || option == OPT_PREALLOC;
}

static int path_set(const char **field, const char *name, const char *value, struct error *err)
{
	if (!*value)
		return error_set(err, -EINVAL, "--%s needs a file name.", name);
	if (strlen(value) >= MACHINE_PATH_MAX)
		return error_set(err, -EINVAL, "The path given to --%s is longer than %d bytes.", name, MACHINE_PATH_MAX - 1);
	*field = value;
	return 0;
}

static int option_apply(struct cli_request *request, int option, const char *name, const char *value, struct error *err)
{
	struct machine_config *config = &request->config;
	int choice = 0;

	switch ((enum option)option) {
	case OPT_BACKEND:
		if (choice_find(backends, value, &choice))
			return error_set(err, -EINVAL, "--backend is auto, soft or kvm.");
		config->backend = (enum machine_backend)choice;
		return 0;
	case OPT_ENGINE:
		if (choice_find(engines, value, &choice))
			return error_set(err, -EINVAL, "--engine is auto, interp, slots, translate or lockstep.");
		config->engine = (enum machine_engine)choice;
		return 0;
	case OPT_SHADOW:
		if (choice_find(shadows, value, &choice))
			return error_set(err, -EINVAL, "--shadow is unsync or vtlb.");
		config->shadow = (enum machine_shadow)choice;
		return 0;
	case OPT_ON_REBOOT:
		if (choice_find(reboots, value, &choice))
			return error_set(err, -EINVAL, "--on-reboot is reset or exit.");
		config->on_reboot = (enum machine_reboot)choice;
		return 0;
	case OPT_TEST_DEVICE:
		if (choice_find(switches, value, &choice))
			return error_set(err, -EINVAL, "--test-device is on or off.");
		config->test_device = choice != 0;
		return 0;
	case OPT_ON_TRIPLE_FAULT:
		if (choice_find(triple_faults, value, &choice))
			return error_set(err, -EINVAL, "--on-triple-fault is auto, reset or stop.");
		config->on_triple_fault = (enum machine_triple_fault)choice;
		return 0;
	case OPT_LOG:
		if (choice_find(log_levels, value, &choice))
			return error_set(err, -EINVAL, "--log is error, warning, info or debug.");
		request->log_level = choice;
		return 0;
	case OPT_HUGEPAGES:
		config->hugepages = true;
		return 0;
	case OPT_PREALLOC:
		config->prealloc = true;
		return 0;
	case OPT_PIN: return pin_parse(value, config, err);
	case OPT_MOVE: return move_parse(value, config, err);
	case OPT_CPUS: return cpus_parse(value, config, err);
	case OPT_CPU: return cpu_parse(value, config, err);
	case OPT_MEMORY: return memory_parse(value, config, err);
	case OPT_DISK: return disk_parse(value, config, err);
	case OPT_CDROM: return cdrom_parse(value, config, err);
	case OPT_NET: return net_parse(value, config, err);
	case OPT_CONSOLE: return console_parse(value, config, err);
	case OPT_TRACE: return trace_parse(value, config, err);
	case OPT_KERNEL: return path_set(&config->kernel, name, value, err);
	case OPT_INITRD: return path_set(&config->initrd, name, value, err);
	case OPT_FIRMWARE: return path_set(&config->firmware, name, value, err);
	case OPT_FIRMWARE_VARS: return path_set(&config->firmware_vars, name, value, err);
	case OPT_FIRMWARE_LOG: return path_set(&config->firmware_log, name, value, err);
	case OPT_BOOT_ORDER: return boot_order_parse(value, config, err);
	case OPT_BOOT_MENU: return boot_menu_parse(value, config, err);
	case OPT_STATS: return path_set(&config->stats_path, name, value, err);
	case OPT_APPEND:
		config->append = value;
		return 0;
	}
	return -EINVAL;
}

/* What can be said about the whole once every option is known. */
static int run_check(const struct machine_config *config, struct error *err)
{
	if (!config->guest && !config->kernel && !config->firmware && !config->disk_count)
		return error_set(err, -EINVAL, "vmm run needs a guest: a disk image, a kernel (--kernel) or firmware (--firmware).");
	if (config->kernel && config->firmware)
		return error_set(err, -EINVAL, "A kernel is started directly; leave --firmware out, or --kernel.");
	if (!config->kernel && (config->firmware || !config->guest) && (config->initrd || config->append))
		return error_set(err, -EINVAL, "--initrd and --append need a kernel (--kernel).");
	if (config->kernel && (config->firmware_vars || config->firmware_log || config->boot_order_count || config->boot_menu))
		return error_set(err, -EINVAL, "A kernel is started directly; --firmware-vars, --firmware-log, --boot-order and "
			"--boot-menu are for firmware.");
	if (config->cpus > 1 && config->backend == MACHINE_BACKEND_SOFT)
		return error_set(err, -ENOTSUP, "The software backend runs one vcpu in this version; use --cpus 1.");
	return 0;
}

static int run_parse(int argc, char *const *argv, struct cli_request *request, struct error *err)
{
	bool only_guest = false;

	for (int i = 2; i < argc; i++) {
		const char *arg = argv[i], *value;
		char name[32];
		size_t length;
		int option, rc;

		if (!only_guest && !strcmp(arg, "--")) {
			only_guest = true;
			continue;
		}
		if (only_guest || strncmp(arg, "--", 2)) {
			if (!only_guest && !strcmp(arg, "-h")) {
				request->command = CLI_CMD_HELP;
				request->help_topic = "run";
				return 0;
			}
			if (!only_guest && arg[0] == '-')
				return error_set(err, -EINVAL, "vmm run does not know the option \"%.60s\"; see vmm help run.", arg);
			if (request->config.guest)
				return error_set(err, -EINVAL, "vmm run takes one GUEST, and \"%.60s\" is a second.", arg);
			rc = path_set(&request->config.guest, "guest", arg, err);
			if (rc)
				return rc;
			continue;
		}
		length = (size_t)(strchrnul(arg, '=') - (arg + 2));
		if (length >= sizeof(name))
			return error_set(err, -EINVAL, "vmm run does not know the option \"%.60s\"; see vmm help run.", arg);
		memcpy(name, arg + 2, length);
		name[length] = 0;
		if (!strcmp(name, "help") && !arg[2 + length]) {
			request->command = CLI_CMD_HELP;
			request->help_topic = "run";
			return 0;
		}
		if (choice_find(options, name, &option))
			return error_set(err, -EINVAL, "vmm run does not know the option \"%.60s\"; see vmm help run.", arg);
		if (arg[2 + length] == '=') {
			if (is_flag(option))
				return error_set(err, -EINVAL, "--%s takes no value.", name);
			value = arg + 2 + length + 1;
		} else if (is_flag(option)) {
			value = "";
		} else {
			if (++i >= argc)
				return error_set(err, -EINVAL, "--%s needs a value; see vmm help run.", name);
			value = argv[i];
		}
		rc = option_apply(request, option, name, value, err);
		if (rc)
			return rc;
	}
	return run_check(&request->config, err);
}

int cli_parse(int argc, char *const *argv, struct cli_request *request, struct error *err)
{
	const char *command = argc > 1 ? argv[1] : "help";

	memset(request, 0, sizeof(*request));
	request->log_level = LOG_WARNING;
	request->config.cpus = 1;
	request->config.memory = MEMORY_DEFAULT;

	if (!strcmp(command, "run")) {
		request->command = CLI_CMD_RUN;
		return run_parse(argc, argv, request, err);
	}
	if (!strcmp(command, "info")) {
		request->command = CLI_CMD_INFO;
		for (int i = 2; i < argc; i++) {
			if (!strcmp(argv[i], "--json")) {
				request->json = true;
			} else if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
				request->command = CLI_CMD_HELP;
				request->help_topic = "info";
				return 0;
			} else {
				return error_set(err, -EINVAL, "vmm info takes --json and nothing else.");
			}
		}
		return 0;
	}
	if (!strcmp(command, "bench")) {
		request->command = CLI_CMD_BENCH;
		return cli_bench_parse(argc, argv, request, err);
	}
	if (!strcmp(command, "version") || !strcmp(command, "--version")) {
		request->command = CLI_CMD_VERSION;
		return argc > 2 ? error_set(err, -EINVAL, "vmm version takes no arguments.") : 0;
	}
	if (!strcmp(command, "help") || !strcmp(command, "--help") || !strcmp(command, "-h")) {
		request->command = CLI_CMD_HELP;
		request->help_topic = argc > 2 ? argv[2] : NULL;
		if (argc > 3 || !cli_help_text(request->help_topic))
			return error_set(err, -EINVAL, "vmm help knows run, info, bench, version and help.");
		return 0;
	}
	return error_set(err, -EINVAL, "vmm does not know the command \"%.60s\"; see vmm help.", command);
}
