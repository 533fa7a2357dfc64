/*
 * Runs a command with a deadline, in a process group of its own, its standard input empty, and hands its output over line by
 * line as it comes. Nothing that it does may keep the harness waiting: at the deadline, or when it has written too
 * much, the whole group is killed; so it is when the command itself ends and leaves others behind.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "bench_internal.h"

extern char **environ;

uint64_t bench_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

void bench_command_text(const char *const *argv, char *text, size_t size)
{
	static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=+,./:@%";
	size_t at = 0;

	text[0] = 0;
	for (; *argv && at < size; argv++) {
		bool bare = **argv && strspn(*argv, plain) == strlen(*argv);
		int n = snprintf(text + at, size - at, "%s%s%s%s", at ? " " : "", bare ? "" : "'", *argv,
			bare ? "" : "'");

		at += n > 0 ? (size_t)n : 0;
	}
}

struct stream {
	int fd;
	char line[BENCH_LINE_MAX];
	size_t length, total;
	char tail
		[200]; /* the last line that is not empty; or, if there is one, the first that vmm says as its reason */
};

static void line_end(struct bench_child *child, struct stream *s, bool hand_over)
{
	s->line[s->length] = 0;
	while (s->length && (s->line[s->length - 1] == '\r' || s->line[s->length - 1] == ' '))
		s->line[--s->length] = 0;
	if (s->length && strncmp(s->tail, "vmm: ", 5))
		snprintf(s->tail, sizeof(s->tail), "%.190s", s->line);
	if (hand_over && child->line)
		child->line(child->ctx, s->line, bench_now());
	s->length = 0;
}

/* False at the end of the stream. Bytes that are not printable become '?', so that no terminal is ever driven. */
static bool stream_read(struct bench_child *child, struct stream *s, bool hand_over)
{
	char buffer[4096];
	ssize_t n = read(s->fd, buffer, sizeof(buffer));

	if (n < 0)
		return errno == EINTR || errno == EAGAIN;
	if (!n) {
		if (s->length)
			line_end(child, s, hand_over);
		return false;
	}
	s->total += (size_t)n;
	for (ssize_t i = 0; i < n; i++) {
		char c = buffer[i];

		if (c == '\n')
			line_end(child, s, hand_over);
		else if (s->length + 1 < sizeof(s->line) && (c != '\r' || s->length))
			s->line[s->length++] = (c >= ' ' && c < 127) || c == '\r' || c == '\t' ? c : '?';
	}
	return true;
}

static int start(struct bench_child *child, int out, int error, pid_t *pid)
{
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	sigset_t none;
	int rc;

	posix_spawn_file_actions_init(&actions);
	posix_spawnattr_init(&attributes);
	posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_adddup2(&actions, out, 1);
	posix_spawn_file_actions_adddup2(&actions, error, 2);
	if (child->directory)
		posix_spawn_file_actions_addchdir_np(&actions, child->directory);
	sigemptyset(&none);
	posix_spawnattr_setsigmask(&attributes, &none);
	posix_spawnattr_setpgroup(&attributes, 0);
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK);
	rc = posix_spawn(pid, child->argv[0], &actions, &attributes, (char *const *)child->argv, environ);
	posix_spawnattr_destroy(&attributes);
	posix_spawn_file_actions_destroy(&actions);
	return -rc;
}

/* Reads until both streams have ended, or the command itself has, or the time or the patience is over. */
static void follow(
	struct bench_child *child, struct stream *out, struct stream *error, int pidfd, uint64_t deadline)
{
	struct pollfd fds[4] = {{out->fd, POLLIN, 0}, {error->fd, POLLIN, 0}, {pidfd, POLLIN, 0},
		{child->interrupt ? child->interrupt : -1, POLLIN, 0}};

	while (fds[0].fd >= 0 || fds[1].fd >= 0 || fds[2].fd >= 0) {
		uint64_t now = bench_now();
		int n;

		if (now >= deadline) {
			child->timed_out = true;
			return;
		}
		if (out->total + error->total > BENCH_OUTPUT_MAX) {
			child->flooded = true;
			return;
		}
		n = poll(fds, 4, (int)((deadline - now) / 1000000) + 1);
		if (n < 0 && errno != EINTR)
			return;
		if (n <= 0)
			continue;
		if (fds[3].revents) {
			child->interrupted = true;
			return;
		}
		if (fds[0].revents && !stream_read(child, out, true))
			fds[0].fd = -1;
		if (fds[1].revents && !stream_read(child, error, false))
			fds[1].fd = -1;
		/* It has ended and nothing more is there to read: whoever it left behind is not waited for. */
		if (fds[2].revents && !(fds[0].revents | fds[1].revents))
			return;
	}
}

static void collect(void *ctx, const char *line, uint64_t now)
{
	fprintf(ctx, "%s\n", line);
}

char *bench_output_of(const char *const *argv)
{
	struct bench_child child = {.limit = 10, .line = collect};
	char *text = NULL;
	size_t size;
	FILE *file = open_memstream(&text, &size);
	int rc;

	if (!file)
		return NULL;
	child.ctx = file;
	for (unsigned i = 0; argv[i] && i + 1 < BENCH_ARG_MAX; i++)
		child.argv[i] = argv[i];
	rc = bench_spawn(&child);
	fclose(file);
	if (rc || child.status) {
		free(text);
		return NULL;
	}
	return text;
}

int bench_spawn(struct bench_child *child)
{
	struct stream out = {.fd = -1}, error = {.fd = -1};
	int o[2], e[2], pidfd, rc;
	pid_t pid;

	child->timed_out = child->flooded = child->interrupted = false;
	child->tail[0] = 0;
	if (pipe2(o, O_CLOEXEC))
		return -errno;
	if (pipe2(e, O_CLOEXEC)) {
		rc = -errno;
		close(o[0]);
		close(o[1]);
		return rc;
	}
	child->started = bench_now();
	rc = start(child, o[1], e[1], &pid);
	close(o[1]);
	close(e[1]);
	if (!rc) {
		out.fd = o[0];
		error.fd = e[0];
		pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
		follow(child, &out, &error, pidfd, child->started + (uint64_t)(child->limit * 1e9));
		kill(-pid, SIGKILL);
		while (waitpid(pid, &child->status, 0) < 0 && errno == EINTR)
			;
		if (pidfd >= 0)
			close(pidfd);
		child->seconds = (double)(bench_now() - child->started) / 1e9;
		if (error.length)
			line_end(child, &error, false);
		snprintf(child->tail, sizeof(child->tail), "%s", error.tail[0] ? error.tail : out.tail);
	}
	close(o[0]);
	close(e[0]);
	return rc;
}
