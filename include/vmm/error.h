/*
 * Errors of the first class: the host or the configuration. A function that can fail for such a reason returns
 * 0 or -errno and, if it has a better sentence than strerror(), leaves it in a struct error. Only cli/ prints.
 */
#ifndef VMM_ERROR_H
#define VMM_ERROR_H

#include <stdarg.h>

struct error {
	int code;	   /* -errno of the failure, 0 if none */
	char message[400]; /* one sentence: the cause and the way out; no newline */
};

/* Records a failure in *err (which may be NULL) and returns code, so that `return error_set(err, -EINVAL, …)` works. */
int error_set(struct error *err, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
