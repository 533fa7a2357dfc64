/* Selection, calibration and output of the nano rows; see nano.h. No library functions: it is also bare metal. */
#include "nano.h"

#define SAMPLE_CYCLES 400000u /* a sample's length, roughly: short beside a time slice of the host */
#define OPERATIONS_MAX (1ull << 24)
#define REPEAT_MAX 1000u

struct plan {
	const char *bench; /* in the command line, ended by a blank or zero; NULL: all */
	uint64_t repeat, cycles;
};

static const char *wrong;

void nano_wrong(const char *why)
{
	wrong = why;
}

static void print_number(uint64_t v)
{
	char digits[21], *at = digits + 20;

	for (*at = 0; v >= 10; v /= 10)
		*--at = (char)('0' + v % 10);
	*--at = (char)('0' + v);
	nano_print(at);
}

static void print_hex16(uint64_t v)
{
	char digits[17];

	for (unsigned i = 0; i < 16; i++)
		digits[i] = "0123456789abcdef"[v >> (60 - 4 * i) & 15];
	digits[16] = 0;
	nano_print(digits);
}

/* cycles / n with two decimals, rounded. */
static void print_ratio(int64_t cycles, uint64_t n)
{
	uint64_t size = (uint64_t)(cycles < 0 ? -cycles : cycles), hundredths = (size % n * 100 + n / 2) / n + size / n * 100;
	char fraction[4] = {'.', (char)('0' + hundredths / 10 % 10), (char)('0' + hundredths % 10), 0};

	if (cycles < 0 && hundredths)
		nano_print("-");
	print_number(hundredths / 100);
	nano_print(fraction);
}

/* FNV-1a. */
static uint64_t name_hash(const char *name)
{
	uint64_t hash = 0xcbf29ce484222325ull;

	while (*name)
		hash = (hash ^ (uint8_t)*name++) * 0x100000001b3ull;
	return hash;
}

static bool ends_word(char c)
{
	return !c || c == ' ' || c == '\n' || c == '\t';
}

/* Does the comma-separated list contain the name? */
static bool listed(const char *list, const char *name)
{
	while (!ends_word(*list)) {
		const char *want = name;

		while (*want && *list == *want)
			list++, want++;
		if (!*want && (ends_word(*list) || *list == ','))
			return true;
		while (!ends_word(*list) && *list++ != ',')
			;
	}
	return false;
}

/* The value if the word begins with the key, else NULL. */
static const char *word_value(const char *word, const char *key)
{
	while (*key && *word == *key)
		word++, key++;
	return *key ? NULL : word;
}

static uint64_t number(const char *text, uint64_t low, uint64_t high)
{
	uint64_t v = 0;

	while (*text >= '0' && *text <= '9' && v < high)
		v = v * 10 + (uint64_t)(*text++ - '0');
	return v < low ? low : v > high ? high : v;
}

static struct plan parse(const char *words)
{
	struct plan plan = {NULL, 9, SAMPLE_CYCLES};
	const char *value;

	for (const char *at = words; *at;) {
		if ((value = word_value(at, "bench=")))
			plan.bench = listed(value, "all") ? NULL : value;
		else if ((value = word_value(at, "repeat=")))
			plan.repeat = number(value, 1, REPEAT_MAX);
		else if ((value = word_value(at, "cycles=")))
			plan.cycles = number(value, 1000, 100000000000);
		while (!ends_word(*at))
			at++;
		while (*at && ends_word(*at))
			at++;
	}
	return plan;
}

static void print_line(const char *kind, const char *name, const char *why)
{
	nano_print(kind);
	nano_print(" name=");
	nano_print(name);
	nano_print(" why=");
	nano_print(why);
	nano_print("\n");
}

static uint64_t empty_loop(uint64_t n)
{
	uint64_t best = ~0ull;

	for (unsigned i = 0; i < 3; i++) {
		uint64_t cycles = NANO_LOOP(n, "");

		best = cycles < best ? cycles : best;
	}
	return best;
}

static void print_sample(const struct nano_row *row, uint64_t n, int64_t cycles)
{
	nano_print("BENCH name=");
	nano_print(row->name);
	nano_print(" unit=cycles n=");
	print_number(n);
	nano_print(" value=");
	print_ratio(cycles, n);
	nano_print(" check=");
	print_hex16(name_hash(row->name));
	nano_print("\n");
}

/* The number of operations that fill a sample. Twice long enough, since once may be the host's doing. */
static uint64_t calibrate(const struct nano_row *row, uint64_t wanted)
{
	uint64_t n = 1, cycles, again;

	while (n < OPERATIONS_MAX && !wrong) {
		cycles = row->run(n);
		if (cycles >= wanted) {
			again = row->run(n);
			if (again >= wanted)
				break;
			cycles = again;
		}
		n = cycles < wanted / 8 ? n * 4 : n * 2;
	}
	return n;
}

static bool run_row(const struct nano_row *row, const struct plan *plan)
{
	const char *why = row->missing ? row->missing() : NULL;
	uint64_t n, cycles, empty;

	if (why) {
		print_line("BENCH-SKIP", row->name, why);
		return true;
	}
	wrong = NULL;
	n = calibrate(row, plan->cycles);
	empty = row->raw ? 0 : empty_loop(n);
	for (uint64_t i = 0; i < plan->repeat && !wrong; i++) {
		cycles = row->run(n);
		if (!wrong)
			print_sample(row, n, (int64_t)(cycles - empty));
	}
	if (row->finish)
		row->finish();
	if (wrong)
		print_line("BENCH-FAIL", row->name, wrong);
	return !wrong;
}

/* The reader of our output compares this clock with its own: one that is slow would make all else look fast. */
static void print_clock(void)
{
	nano_print("BENCH-CLOCK unit=cycles value=");
	print_number(nano_ticks());
	nano_print("\n");
}

int nano_run(const char *words, const struct nano_row *const *tables)
{
	struct plan plan = parse(words);
	bool good = true;

	nano_print("BENCH-BEGIN\n");
	print_clock();
	for (; *tables; tables++)
		for (const struct nano_row *row = *tables; row->name; row++)
			if (!plan.bench || listed(plan.bench, row->name))
				good &= run_row(row, &plan);
	print_clock();
	nano_print(good ? "BENCH-END ok\n" : "BENCH-END failed\n");
	return good ? 0 : 1;
}
