#include "bench_internal.h"
int bench_html_write(const struct bench_result *result, const char *path, struct error *err)
{
	return 0;
}
