/*
 * The person's end of COM1.
 *
 * Input: a terminal is put into raw mode and Ctrl-A is the escape (x ends, h helps, Ctrl-A sends one); from a pipe, a
 * file or /dev/null the bytes go through as they are, and the end of the file is no end of the guest. Bytes that
 * the serial port has no room for wait here, and nothing more is read until it is ready.
 *
 * Output: descriptors that we share with others (standard output) are not made non-blocking, since that would show in
 * the others; so each write is preceded by a poll and is small. What cannot be written yet waits in a ring; if
 * that is full, the newest bytes are dropped, as on a real line without handshake.
 *
 * Device lock held everywhere but in open and close.
 */
#include "terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include "vmm/error.h"
#include "vmm/event.h"
#include "vmm/log.h"

#define OUT_SIZE (1u << 20)
#define IN_SIZE 4096
#define WRITE_MAX 1024 /* a terminal or pipe that poll() calls writable takes this without blocking */
#define CLOSE_WAIT_MS 1000
#define ESCAPE 1 /* Ctrl-A */

struct terminal {
	/* Set at open. */
	struct machine *machine;
	struct event_loop *loop;
	int in_fd, out_fd; /* −1: none */
	bool own_fd;	   /* in_fd and out_fd are ours to close */
	bool pty;
	bool is_terminal; /* standard input is one: raw mode, escape */
	bool stderr_terminal;
	struct termios saved;

	/* Device lock. */
	bool raw;
	struct event_source *in_source, *out_source;
	bool in_polled; /* in_fd cannot be watched (a regular file): it is always readable */
	bool in_eof, escape;
	uint8_t in[IN_SIZE];
	size_t in_pos, in_count;
	uint8_t *out; /* ring */
	size_t out_pos, out_count;
};

static void raw_begin(struct terminal *t)
{
	struct termios raw = t->saved;

	if (!t->is_terminal || t->raw)
		return;
	cfmakeraw(&raw);
	raw.c_cc[VMIN] = 1;
	raw.c_cc[VTIME] = 0;
	if (!tcsetattr(STDIN_FILENO, TCSADRAIN, &raw)) {
		t->raw = true;
		log_set_raw(t->stderr_terminal);
	}
}

static void raw_end(struct terminal *t)
{
	if (!t->raw)
		return;
	tcsetattr(STDIN_FILENO, TCSADRAIN, &t->saved);
	t->raw = false;
	log_set_raw(0);
}

/* Writes what can be written now; true if all of it went. */
static bool out_flush(struct terminal *t, int timeout_ms)
{
	while (t->out_count) {
		struct pollfd ready = {.fd = t->out_fd, .events = POLLOUT};
		size_t chunk = OUT_SIZE - t->out_pos;
		ssize_t n;

		if (poll(&ready, 1, timeout_ms) <= 0)
			return false;
		if (chunk > t->out_count)
			chunk = t->out_count;
		if (chunk > WRITE_MAX)
			chunk = WRITE_MAX;
		n = write(t->out_fd, t->out + t->out_pos, chunk);
		if (n < 0 && (errno == EINTR || errno == EAGAIN)) {
			if (errno == EAGAIN && !timeout_ms)
				return false;
			continue;
		}
		if (n <= 0) { /* nobody reads any more: there is no one to tell */
			t->out_count = 0;
			return true;
		}
		t->out_pos = (t->out_pos + (size_t)n) % OUT_SIZE;
		t->out_count -= (size_t)n;
	}
	return true;
}

static void on_writable(void *ctx, int fd, uint32_t events)
{
	struct terminal *t = ctx;

	if (out_flush(t, 0)) {
		event_unwatch(t->out_source);
		t->out_source = NULL;
	}
}

static void on_output(void *ctx, const uint8_t *data, size_t length)
{
	struct terminal *t = ctx;

	if (t->out_fd < 0)
		return;
	while (length && t->out_count < OUT_SIZE) {
		size_t at = (t->out_pos + t->out_count) % OUT_SIZE;
		size_t chunk = at >= t->out_pos ? OUT_SIZE - at : t->out_pos - at;

		if (chunk > OUT_SIZE - t->out_count)
			chunk = OUT_SIZE - t->out_count;
		if (chunk > length)
			chunk = length;
		memcpy(t->out + at, data, chunk);
		t->out_count += chunk;
		data += chunk;
		length -= chunk;
	}
	if (!t->out_source && !out_flush(t, 0))
		t->out_source = event_watch(t->loop, t->out_fd, EPOLLOUT, on_writable, t);
}

static void say(struct terminal *t, const char *text)
{
	on_output(t, (const uint8_t *)text, strlen(text));
}

/* Takes the escapes out of what was typed, in place. */
static size_t escapes_filter(struct terminal *t, uint8_t *data, size_t length)
{
	size_t kept = 0;

	for (size_t i = 0; i < length; i++) {
		uint8_t c = data[i];

		if (!t->escape) {
			if (c == ESCAPE)
				t->escape = true;
			else
				data[kept++] = c;
			continue;
		}
		t->escape = false;
		switch (c) {
		case ESCAPE: data[kept++] = ESCAPE; break;
		case 'x':
		case 'X':
			machine_stop(t->machine, MACHINE_USER_STOP, 0, "Ended by Ctrl-A x.");
			break;
		case 'h':
		case 'H':
		case '?':
			say(t, "\r\nCtrl-A x  end the guest at once\r\nCtrl-A h  this help\r\n"
			       "Ctrl-A Ctrl-A  send a Ctrl-A to the guest\r\n");
			break;
		default: break;
		}
	}
	return kept;
}

static void on_readable(void *ctx, int fd, uint32_t events);

/* Gives the guest what waits; reads more when all of it is gone. */
static void in_pump(struct terminal *t)
{
	if (t->in_fd < 0)
		return;
	for (;;) {
		ssize_t n;

		t->in_pos += machine_console_input(t->machine, t->in + t->in_pos, t->in_count - t->in_pos);
		if (t->in_pos < t->in_count) { /* ready() will come; HUP must not spin meanwhile */
			event_unwatch(t->in_source);
			t->in_source = NULL;
			return;
		}
		t->in_pos = t->in_count = 0;
		if (t->in_eof)
			return;
		if (!t->in_polled) {
			struct pollfd ready = {.fd = t->in_fd, .events = POLLIN};

			if (poll(&ready, 1, 0) <= 0 || (t->pty && (ready.revents & POLLHUP) && !(ready.revents & POLLIN)))
				break;
		}
		n = read(t->in_fd, t->in, sizeof(t->in));
		if (n < 0 && (errno == EINTR || errno == EAGAIN))
			break;
		if (n <= 0) {
			t->in_eof = true;
			event_unwatch(t->in_source);
			t->in_source = NULL;
			if (t->is_terminal)
				machine_stop(t->machine, MACHINE_USER_STOP, 0, "The terminal is gone.");
			return;
		}
		t->in_count = t->is_terminal ? escapes_filter(t, t->in, (size_t)n) : (size_t)n;
	}
	if (!t->in_source && !t->in_polled) {
		t->in_source = event_watch(t->loop, t->in_fd, EPOLLIN, on_readable, t);
		if (!t->in_source) {
			t->in_polled = true;
			in_pump(t);
		}
	}
}

static void on_readable(void *ctx, int fd, uint32_t events)
{
	in_pump(ctx);
}

static void on_ready(void *ctx)
{
	in_pump(ctx);
}

static void on_start(void *ctx)
{
	in_pump(ctx);
}

static int pty_open(struct terminal *t, struct error *err)
{
	struct termios raw;
	char name[64];
	int fd = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK), slave;

	if (fd < 0 || grantpt(fd) || unlockpt(fd) || ptsname_r(fd, name, sizeof(name))) {
		if (fd >= 0)
			close(fd);
		return error_set(err, -ENOENT, "No pseudo-terminal can be had from the host (%s).", strerror(errno));
	}
	/* Kept open, so that the guest's output is not lost to a hang-up between two readers. */
	slave = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (slave >= 0) {
		if (!tcgetattr(slave, &raw)) {
			cfmakeraw(&raw);
			tcsetattr(slave, TCSANOW, &raw);
		}
	}
	fprintf(stderr, "vmm: the guest's console is %s\n", name);
	t->in_fd = t->out_fd = fd;
	t->own_fd = true;
	t->pty = true;
	return 0;
}

int terminal_open(struct machine *machine, const struct machine_config *config, struct terminal **terminal,
	struct error *err)
{
	struct terminal *t = calloc(1, sizeof(*t));
	const struct machine_console_ops ops = {on_output, on_ready, t};
	int rc = 0;

	*terminal = NULL;
	if (!t)
		return error_set(err, -ENOMEM, "The host is out of memory.");
	t->machine = machine;
	t->loop = machine_loop(machine);
	t->in_fd = t->out_fd = -1;
	t->out = malloc(OUT_SIZE);
	if (!t->out)
		rc = error_set(err, -ENOMEM, "The host is out of memory.");
	if (rc)
		goto out;
	switch (config->console) {
	case MACHINE_CONSOLE_STDIO:
		t->in_fd = fcntl(STDIN_FILENO, F_GETFD) >= 0 ? STDIN_FILENO : -1;
		t->out_fd = fcntl(STDOUT_FILENO, F_GETFD) >= 0 ? STDOUT_FILENO : -1;
		t->is_terminal = t->in_fd >= 0 && !tcgetattr(STDIN_FILENO, &t->saved);
		t->stderr_terminal = isatty(STDERR_FILENO);
		break;
	case MACHINE_CONSOLE_FILE:
		t->out_fd = open(config->console_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY, 0666);
		t->own_fd = true;
		if (t->out_fd < 0)
			rc = error_set(err, -errno, "%.300s cannot be written: %s.", config->console_path, strerror(errno));
		break;
	case MACHINE_CONSOLE_PTY: rc = pty_open(t, err); break;
	case MACHINE_CONSOLE_NONE: break;
	}
	if (rc)
		goto out;
	machine_console_connect(machine, &ops);
	raw_begin(t);
	if (event_post(t->loop, on_start, t))
		rc = error_set(err, -ENOMEM, "The host is out of memory.");
out:
	if (rc) {
		raw_end(t);
		free(t->out);
		free(t);
		return rc;
	}
	*terminal = t;
	return 0;
}

void terminal_close(struct terminal *t)
{
	const struct machine_console_ops nobody = {0};

	if (!t)
		return;
	machine_console_connect(t->machine, &nobody);
	if (t->in_source)
		event_unwatch(t->in_source);
	if (t->out_source)
		event_unwatch(t->out_source);
	if (t->out_fd >= 0)
		out_flush(t, CLOSE_WAIT_MS);
	raw_end(t);
	if (t->own_fd && t->out_fd >= 0)
		close(t->out_fd);
	free(t->out);
	free(t);
}

void terminal_suspend(struct terminal *t)
{
	raw_end(t);
}

void terminal_resume(struct terminal *t)
{
	raw_begin(t);
}
