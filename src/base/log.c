/*
 * Diagnostics on stderr. The level and the raw flag are properties of the process's stderr, not of a machine:
 * the only variables of the library with static storage. A line goes out in one write(), so that lines of several threads
 * and of the vcpu processes, which share stderr, do not mix.
 */
#include "vmm/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static _Atomic int log_level = LOG_WARNING;
static _Atomic int log_raw;

void log_set_level(enum log_level level)
{
	log_level = level;
}

void log_set_raw(int raw)
{
	log_raw = raw;
}

void log_message(enum log_level level, const char *format, ...)
{
	static const char *const names[] = {"error", "warning", "info", "debug"};
	int saved_errno = errno;
	char line[1024];
	int room = sizeof(line) - 2, length, n;
	va_list args;

	if ((int)level > log_level)
		return;
	length = snprintf(line, room, "vmm: %s: ", names[level]);
	va_start(args, format);
	n = vsnprintf(line + length, room - length, format, args);
	va_end(args);
	if (n > 0)
		length += n < room - length ? n : room - length - 1;
	if (log_raw)
		line[length++] = '\r';
	line[length++] = '\n';
	if (write(STDERR_FILENO, line, length) < 0) {
		/* Nowhere left to say so. */
	}
	errno = saved_errno;
}
