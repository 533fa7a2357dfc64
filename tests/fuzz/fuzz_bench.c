/*
 * What a benchmark guest prints, and a result file: the first byte chooses. Whatever the lines are, only samples that are
 * numbers of works that were asked for are kept; whatever the file is, counts stay within the arrays.
 */
#include "fuzz.h"

#include "bench/bench_internal.h"
#include "vmm/error.h"

#include <assert.h>
#include <math.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void output(const uint8_t *data, size_t size)
{
	static struct bench_output out;
	char line[BENCH_LINE_MAX];
	uint64_t now = 0;

	bench_output_init(&out, 2);
	bench_output_expect(&out, &bench_works[0]);
	bench_output_expect(&out, &bench_works[bench_work_find(bench_works, bench_works_count, "getppid")]);
	while (size) {
		const uint8_t *end = memchr(data, '\n', size);
		size_t length = end ? (size_t)(end - data) : size, kept = length;

		kept = kept < sizeof(line) ? kept : sizeof(line) - 1;
		memcpy(line, data, kept);
		line[kept] = 0;
		bench_output_line(&out, line, now += 1000000000);
		length += end != NULL;
		data += length;
		size -= length;
	}
	assert(out.count == 2);
	for (unsigned i = 0; i < out.count; i++) {
		assert(out.items[i].count <= BENCH_SAMPLE_MAX);
		for (unsigned s = 0; s < out.items[i].count; s++)
			assert(isfinite(out.items[i].samples[s].value) && out.items[i].samples[s].n);
	}
	assert(bench_output_culprit(&out) < 2);
	assert(!isnan(bench_output_clock(&out, 2e9)));
}

/* Whatever the numbers are: a figure lies between its bounds, and the page can be written. */
static void figures(const struct bench_result *result)
{
	struct error err = {0};
	char text[BENCH_TEXT_MAX];

	for (unsigned w = 0; w < result->work_count; w++)
		for (unsigned c = 0; c < result->column_count; c++)
			for (int base = -1; base < (int)result->column_count; base++) {
				struct bench_figure figure = bench_figure(result, w, c, base);

				assert(isfinite(figure.value) && figure.low <= figure.value &&
					figure.value <= figure.high);
				if (base < 0)
					bench_unstable_text(result, w, c, text, sizeof(text));
			}
	assert(!bench_html_write(result, "/dev/null", &err));
}

static void file(const uint8_t *data, size_t size)
{
	static struct bench_result result;
	struct error err = {0};
	char path[40];
	int fd = memfd_create("result", 0);

	if (fd < 0)
		return;
	if (write(fd, data, size) == (ssize_t)size) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		if (bench_load(&result, path, &err))
			assert(err.message[0]);
		else {
			assert(result.work_count <= BENCH_WORK_MAX && result.column_count <= BENCH_COLUMN_MAX &&
				result.launch_count <= BENCH_LAUNCH_MAX);
			figures(&result);
		}
	}
	close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!size)
		return 0;
	if (data[0] & 1)
		output(data + 1, size - 1);
	else
		file(data + 1, size - 1);
	return 0;
}

size_t fuzz_seed(unsigned kind, uint8_t *data, size_t size)
{
	static const char *const seeds[] = {
		"1BENCH-BEGIN\nBENCH-CLOCK unit=ns value=5\nBENCH name=getppid unit=ns n=10 value=1.5 check=ab\n"
		"BENCH-SKIP name=callret why=no\nBENCH-FAIL name=getppid why=x\nBENCH-CLOCK unit=ns value=900000000\n"
		"BENCH-END ok\n",
		"1BENCH-BEGIN\nBENCH-CLOCK unit=cycles value=5\nBENCH name=callret unit=cycles n=9 value=-0.5 check=0\n"
		"BENCH-CLOCK unit=cycles value=99999999999\nBENCH-END failed\n",
		"0{\"format\": \"vmm-bench\", \"format_version\": 2, \"columns\": [{\"id\": \"native\", \"kind\": \"native\", "
		"\"present\": true}], \"works\": [{\"id\": \"getppid\", \"group\": \"micro\", \"unit\": \"ns\", \"results\": "
		"[{\"column\": \"native\", \"state\": \"ok\", \"check\": \"5\", \"samples\": [{\"value\": 2.5, \"n\": 3, "
		"\"launch\": 0}]}]}], \"launches\": [{\"column\": \"native\", \"ok\": true}], \"profiles\": [{\"part\": "
		"\"linux\", \"column\": \"native\", \"counters\": {\"exits.pio\": 7}}], \"notes\": [\"a\\u00e9\"]}",
		"0{\"format\":\"vmm-bench\",\"format_version\":2,\"noise\":{\"stops\":3,\"busy\":0.1,\"wide\":{\"median_ns\":3,"
		"\"low_ns\":2,\"high_ns\":4}},\"columns\":[{\"id\":\"native\",\"kind\":\"native\",\"present\":true},{\"id\":\"tcg\","
		"\"kind\":\"qemu\",\"present\":true}],\"works\":[{\"id\":\"a\",\"group\":\"micro\",\"unit\":\"ns\",\"part\":\"linux\","
		"\"results\":[{\"column\":\"native\",\"state\":\"ok\",\"samples\":[{\"value\":1,\"n\":3,\"launch\":0},{\"value\":2,"
		"\"n\":3,\"launch\":2}]},{\"column\":\"tcg\",\"state\":\"ok\",\"samples\":[{\"value\":5,\"n\":3,\"launch\":1},"
		"{\"value\":6,\"n\":3,\"launch\":3}]}]}],\"launches\":[{\"column\":\"native\",\"speed\":{\"wide\":3}},{\"column\":"
		"\"tcg\",\"speed\":{\"wide\":4}},{\"column\":\"native\"},{\"column\":\"tcg\"}]}",
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
