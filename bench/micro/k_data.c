/* Compute kernels on data structures: a sort with a callback, a hash table of 4 MiB. */
#include "micro.h"

/* k-sort: one iteration copies 2048 records and sorts them by a quicksort that compares through a function pointer. */
#define RECORDS 2048u

struct record {
	uint32_t key, place;
};

struct sort {
	struct record input[RECORDS], work[RECORDS];
};

typedef int compare_fn(const struct record *a, const struct record *b);

static int by_key(const struct record *a, const struct record *b)
{
	if (a->key != b->key)
		return a->key < b->key ? -1 : 1;
	return a->place < b->place ? -1 : a->place > b->place;
}

static int by_low_bits(const struct record *a, const struct record *b)
{
	uint32_t x = a->key & 0xffff, y = b->key & 0xffff;

	return x < y ? -1 : x > y ? 1 : by_key(a, b);
}

static void swap(struct record *a, struct record *b)
{
	struct record c = *a;

	*a = *b;
	*b = c;
}

static void insertion_sort(struct record *r, unsigned count, compare_fn *compare)
{
	for (unsigned i = 1; i < count; i++)
		for (unsigned k = i; k && compare(&r[k - 1], &r[k]) > 0; k--)
			swap(&r[k - 1], &r[k]);
}

/* The pivot is the median of three; the smaller side by recursion, the larger by going round. */
static void quick_sort(struct record *r, unsigned count, compare_fn *compare)
{
	while (count > 12) {
		unsigned low = 0, high = count - 1;
		struct record pivot;

		if (compare(&r[0], &r[count / 2]) > 0)
			swap(&r[0], &r[count / 2]);
		if (compare(&r[count / 2], &r[count - 1]) > 0)
			swap(&r[count / 2], &r[count - 1]);
		if (compare(&r[0], &r[count / 2]) > 0)
			swap(&r[0], &r[count / 2]);
		pivot = r[count / 2];
		for (;;) {
			while (compare(&r[low], &pivot) < 0)
				low++;
			while (compare(&pivot, &r[high]) < 0)
				high--;
			if (low >= high)
				break;
			swap(&r[low++], &r[high--]);
		}
		if (high + 1 < count - (high + 1)) {
			quick_sort(r, high + 1, compare);
			r += high + 1;
			count -= high + 1;
		} else {
			quick_sort(r + high + 1, count - (high + 1), compare);
			count = high + 1;
		}
	}
	insertion_sort(r, count, compare);
}

static void *sort_open(uint64_t n)
{
	struct sort *s = micro_alloc(sizeof(*s));
	uint64_t seed = 0x0badcafe12345678ull;

	for (unsigned i = 0; i < RECORDS; i++)
		s->input[i] = (struct record){(uint32_t)random_next(&seed), i};
	return s;
}

static uint64_t sort_run(void *ctx, uint64_t n)
{
	struct sort *s = ctx;
	uint64_t check = 11;

	for (uint64_t i = 0; i < n; i++) {
		compare_fn *compare = i & 1 ? by_low_bits : by_key;
		unsigned ordered = 0;

		for (unsigned k = 0; k < RECORDS; k++)
			s->work[k] = s->input[k];
		quick_sort(s->work, RECORDS, compare);
		for (unsigned k = 1; k < RECORDS; k++)
			ordered += compare(&s->work[k - 1], &s->work[k]) < 0;
		check = check_mix(check, (uint64_t)s->work[i % RECORDS].place << 32 | ordered);
		s->input[i % RECORDS].key = s->input[i % RECORDS].key * 69069 + 1;
	}
	return check;
}

static void sort_close(void *ctx)
{
	micro_free(ctx, sizeof(struct sort));
}

/*
 * k-hash: one iteration is one operation on an open-addressing table of 2^18 slots of 16 bytes (4 MiB), about half
 * full: insert or add to, look up, and every eighth time take away (with the gap closed behind it).
 */
#define HASH_BITS 18u
#define HASH_SLOTS (1u << HASH_BITS)
#define HASH_KEYS (HASH_SLOTS * 5 / 8)

struct slot {
	uint64_t key, value; /* key 0: free */
};

static unsigned slot_of(uint64_t key)
{
	return (unsigned)(key * 0x9e3779b97f4a7c15ull >> (64 - HASH_BITS));
}

static struct slot *hash_find(struct slot *table, uint64_t key)
{
	unsigned at = slot_of(key);

	while (table[at].key && table[at].key != key)
		at = (at + 1) % HASH_SLOTS;
	return &table[at];
}

static void hash_remove(struct slot *table, struct slot *gone)
{
	unsigned hole = (unsigned)(gone - table), at = hole;

	for (;;) {
		table[hole].key = 0;
		do {
			at = (at + 1) % HASH_SLOTS;
			if (!table[at].key)
				return;
			/* It may move into the hole unless its own place lies behind the hole. */
		} while ((at - slot_of(table[at].key)) % HASH_SLOTS < (at - hole) % HASH_SLOTS);
		table[hole] = table[at];
		hole = at;
	}
}

static void *hash_open(uint64_t n)
{
	struct slot *table = micro_alloc(HASH_SLOTS * sizeof(*table));
	uint64_t seed = 0x600df00d12345678ull;

	for (unsigned i = 0; i < HASH_SLOTS / 2; i++) {
		uint64_t key = random_next(&seed) % HASH_KEYS + 1;
		struct slot *slot = hash_find(table, key);

		slot->key = key;
		slot->value += i;
	}
	return table;
}

static uint64_t hash_run(void *ctx, uint64_t n)
{
	struct slot *table = ctx;
	uint64_t seed = 0x0123456776543210ull, check = 12, found = 0;

	for (uint64_t i = 0; i < n; i++) {
		uint64_t random = random_next(&seed), key = random % HASH_KEYS + 1;
		struct slot *slot = hash_find(table, key);

		if (!slot->key) {
			slot->key = key;
			slot->value = i;
		} else if (random >> 61 == 0) {
			hash_remove(table, slot);
		} else {
			found += slot->value++;
		}
	}
	for (unsigned i = 0; i < HASH_SLOTS; i += 1021)
		check = check_mix(check, table[i].key + table[i].value);
	return check_mix(check, found);
}

static void hash_close(void *ctx)
{
	micro_free(ctx, HASH_SLOTS * sizeof(struct slot));
}

const struct workload data_kernels[] = {
	{.name = "k-sort", .n = 300, .open = sort_open, .run = sort_run, .close = sort_close},
	{.name = "k-hash", .n = 3000000, .open = hash_open, .run = hash_run, .close = hash_close},
	{0},
};
