/*
 * `vmm run`: machine, terminal and signals put together, and the end translated into a status and a sentence.
 *
 * Signals that end us are blocked before any thread starts and come through a signalfd in the event loop, so that
 * every way out goes through terminal_close().
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "terminal.h"
#include "vmm/cli.h"
#include "vmm/error.h"
#include "vmm/event.h"
#include "vmm/log.h"

struct run {
	struct machine *machine;
	struct terminal *terminal;
	int signal_fd;
	struct event_source *signal_source;
};

static void on_signal(void *ctx, int fd, uint32_t events)
{
	struct run *run = ctx;
	struct signalfd_siginfo info;

	if (read(fd, &info, sizeof(info)) != (ssize_t)sizeof(info))
		return;
	if (info.ssi_signo == SIGTSTP) {
		terminal_suspend(run->terminal);
		raise(SIGSTOP);
		terminal_resume(run->terminal);
		return;
	}
	machine_stop(run->machine, MACHINE_USER_STOP, 0, "Ended by the signal %s.", strsignal((int)info.ssi_signo));
}

static int signals_open(struct run *run, struct error *err)
{
	static const int ours[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP};
	sigset_t set;

	sigemptyset(&set);
	for (unsigned i = 0; i < sizeof(ours) / sizeof(ours[0]); i++)
		sigaddset(&set, ours[i]);
	run->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	/* A write to a closed pipe is an error code; the terminal may be ours to restore from the background. */
	sigaddset(&set, SIGPIPE);
	sigaddset(&set, SIGTTOU);
	if (run->signal_fd < 0 || pthread_sigmask(SIG_BLOCK, &set, NULL))
		return error_set(err, -errno, "Signals cannot be watched: %s.", strerror(errno));
	return 0;
}

/* Descriptors 0 to 2 exist from now on, so that no file of ours becomes standard output. */
static void standard_fds_open(void)
{
	int fd = open("/dev/null", O_RDWR);

	while (fd >= 0 && fd <= 2)
		fd = open("/dev/null", O_RDWR);
	if (fd > 2)
		close(fd);
}

static int status_of(const struct machine_result *result)
{
	switch (result->reason) {
	case MACHINE_POWEROFF:
	case MACHINE_REBOOTED: return CLI_OK;
	case MACHINE_DEBUG_EXIT: return result->status;
	case MACHINE_GUEST_CRASH: return CLI_GUEST_CRASH;
	case MACHINE_USER_STOP: return CLI_STOPPED;
	case MACHINE_RUNNING:
	case MACHINE_INTERNAL_ERROR: break;
	}
	return CLI_INTERNAL;
}

static int status_of_error(int rc)
{
	return rc == -ENOTSUP ? CLI_UNSUPPORTED : CLI_HOST;
}

static void print_error(const struct error *err, int rc)
{
	size_t length = strlen(err->message);

	if (!length)
		fprintf(stderr, "vmm: %s.\n", strerror(-rc));
	else
		fprintf(stderr, "vmm: %s%s\n", err->message, err->message[length - 1] == '.' ? "" : ".");
}

static int stats_write(const struct run *run, const struct cli_request *request, const struct machine_result *result)
{
	struct error err = {0};
	int rc;

	if (!request->config.stats_path)
		return CLI_OK;
	rc = machine_write_stats(run->machine, result, request->config.stats_path, &err);
	if (rc)
		print_error(&err, rc);
	return rc ? CLI_HOST : CLI_OK;
}

/* A bad path is reported now and not after hours of the guest. */
static int stats_check(const struct cli_request *request, struct error *err)
{
	const char *path = request->config.stats_path;
	int fd = path ? open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOCTTY, 0666) : -1;

	if (path && fd < 0)
		return error_set(err, -errno, "%.300s cannot be written: %s.", path, strerror(errno));
	if (fd >= 0)
		close(fd);
	return 0;
}

int cli_run(const struct cli_request *request)
{
	struct run run = {.signal_fd = -1};
	static struct machine_result result; /* large */
	struct error err = {0};
	int rc, status;

	standard_fds_open();
	rc = signals_open(&run, &err);
	if (!rc)
		rc = stats_check(request, &err);
	if (!rc)
		rc = machine_create(&request->config, &run.machine, &err);
	if (!rc && request->config.guest && machine_guest_description(run.machine)[0] && request->log_level >= LOG_WARNING)
		fprintf(stderr, "vmm: %s: %s.\n", request->config.guest, machine_guest_description(run.machine));
	if (!rc)
		rc = terminal_open(run.machine, &request->config, &run.terminal, &err);
	if (!rc && machine_backend_line(run.machine)[0]) /* the terminal may be raw by now */
		fprintf(stderr, "vmm: %s%s\n", machine_backend_line(run.machine), isatty(STDERR_FILENO) ? "\r" : "");
	if (!rc) {
		run.signal_source = event_watch(machine_loop(run.machine), run.signal_fd, EPOLLIN, on_signal, &run);
		rc = run.signal_source ? 0 : error_set(&err, -ENOMEM, "The host is out of memory.");
	}
	if (!rc)
		rc = machine_run(run.machine, &result, &err);
	terminal_close(run.terminal);
	if (rc) {
		print_error(&err, rc);
		status = status_of_error(rc);
	} else {
		status = status_of(&result);
		if (result.sentence[0])
			fprintf(stderr, "vmm: %s\n", result.sentence);
		if (result.details[0])
			fputs(result.details, stderr);
		rc = stats_write(&run, request, &result);
		if (rc && !status)
			status = rc;
	}
	if (run.signal_source)
		event_unwatch(run.signal_source);
	machine_destroy(run.machine);
	if (run.signal_fd >= 0)
		close(run.signal_fd);
	return status;
}
