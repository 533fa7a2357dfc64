/* Compute kernels that follow pointers: a linked list, a random chase beyond the inner caches, virtual calls. */
#include "micro.h"

/* k-list: one iteration walks a list of 4096 nodes in shuffled order, adds up keys and moves the last even one to the front. */
#define NODES 4096u

struct node {
	struct node *next;
	uint64_t key, visits, unused;
};

struct list {
	struct node *head;
	struct node nodes[NODES];
};

static void *list_open(uint64_t n)
{
	struct list *l = micro_alloc(sizeof(*l));
	uint64_t seed = 0x1234567890abcdefull;
	uint16_t order[NODES];

	for (unsigned i = 0; i < NODES; i++)
		order[i] = (uint16_t)i;
	for (unsigned i = NODES - 1; i > 0; i--) {
		unsigned j = (unsigned)(random_next(&seed) % (i + 1));
		uint16_t swap = order[i];

		order[i] = order[j];
		order[j] = swap;
	}
	l->head = &l->nodes[order[0]];
	for (unsigned i = 0; i < NODES; i++) {
		l->nodes[order[i]].key = random_next(&seed) >> 32;
		l->nodes[order[i]].next = i + 1 < NODES ? &l->nodes[order[i + 1]] : NULL;
	}
	return l;
}

static uint64_t list_run(void *ctx, uint64_t n)
{
	struct list *l = ctx;
	uint64_t check = 1;

	for (uint64_t i = 0; i < n; i++) {
		struct node **link = &l->head, **chosen = NULL;
		uint64_t sum = 0;

		for (struct node *at = l->head; at; at = at->next) {
			sum += at->key + at->visits++;
			if (!(at->key & 1))
				chosen = link;
			link = &at->next;
		}
		if (chosen && *chosen != l->head) {
			struct node *moved = *chosen;

			*chosen = moved->next;
			moved->next = l->head;
			l->head = moved;
		}
		check = check_mix(check, sum);
	}
	return check;
}

static void list_close(void *ctx)
{
	micro_free(ctx, sizeof(struct list));
}

/* k-chase: one iteration is one dependent load on a random cycle through 8 MiB of 32-bit numbers, 64 bytes apart. */
#define CHASE_LINES (1u << 17)
#define CHASE_STEP 16u

static void *chase_open(uint64_t n)
{
	uint32_t *next = micro_alloc(CHASE_LINES * CHASE_STEP * sizeof(*next));
	uint64_t seed = 0xfedcba9876543210ull;

	for (uint32_t i = 0; i < CHASE_LINES; i++)
		next[i * CHASE_STEP] = i;
	for (uint32_t i = CHASE_LINES - 1; i > 0; i--) {
		uint32_t j = (uint32_t)(random_next(&seed) % i), swap = next[i * CHASE_STEP];

		next[i * CHASE_STEP] = next[j * CHASE_STEP];
		next[j * CHASE_STEP] = swap;
	}
	return next;
}

static uint64_t chase_run(void *ctx, uint64_t n)
{
	const uint32_t *next = ctx;
	uint64_t at = 0, sum = 0;

	for (uint64_t i = 0; i < n; i++) {
		at = next[at * CHASE_STEP];
		sum += at ^ i;
	}
	return check_mix(at, sum);
}

static void chase_close(void *ctx)
{
	micro_free(ctx, CHASE_LINES * CHASE_STEP * sizeof(uint32_t));
}

/* k-virtual: one iteration calls two methods of each of 1024 objects of five kinds in random order. */
#define OBJECTS 1024u

struct shape;
struct methods {
	uint64_t (*area)(const struct shape *);
	void (*grow)(struct shape *, uint64_t);
};
struct shape {
	const struct methods *methods;
	uint64_t a, b, c;
};

static uint64_t square_area(const struct shape *s) { return s->a * s->a; }
static void square_grow(struct shape *s, uint64_t by) { s->a += by; }
static uint64_t box_area(const struct shape *s) { return s->a * s->b; }
static void box_grow(struct shape *s, uint64_t by) { s->a += by; s->b ^= by; }
static uint64_t frame_area(const struct shape *s) { return s->a * s->b - s->c * s->c; }
static void frame_grow(struct shape *s, uint64_t by) { s->c = s->c + by > s->a ? 0 : s->c + by; s->a++; }
static uint64_t step_area(const struct shape *s) { return s->a > s->b ? s->a - s->b : s->b - s->a; }
static void step_grow(struct shape *s, uint64_t by) { s->b = s->a; s->a = s->c; s->c += by; }
static uint64_t nested_area(const struct shape *s) { return box_area(s) + step_area(s); }
static void nested_grow(struct shape *s, uint64_t by) { s->c++; s[0].methods->area(s) & 1 ? box_grow(s, by) : step_grow(s, by); }

static const struct methods kinds[] = {
	{square_area, square_grow}, {box_area, box_grow}, {frame_area, frame_grow}, {step_area, step_grow},
	{nested_area, nested_grow},
};

static void *virtual_open(uint64_t n)
{
	struct shape *shapes = micro_alloc(OBJECTS * sizeof(*shapes));
	uint64_t seed = 0x9abcdef012345678ull;

	for (unsigned i = 0; i < OBJECTS; i++) {
		shapes[i].methods = &kinds[random_next(&seed) % 5];
		shapes[i].a = random_next(&seed) & 0xffff;
		shapes[i].b = random_next(&seed) & 0xffff;
		shapes[i].c = random_next(&seed) & 0xff;
	}
	return shapes;
}

static uint64_t virtual_run(void *ctx, uint64_t n)
{
	struct shape *shapes = ctx;
	uint64_t check = 2;

	for (uint64_t i = 0; i < n; i++) {
		uint64_t sum = 0;

		for (unsigned k = 0; k < OBJECTS; k++) {
			sum += shapes[k].methods->area(&shapes[k]);
			shapes[k].methods->grow(&shapes[k], sum & 7);
		}
		check = check_mix(check, sum);
	}
	return check;
}

static void virtual_close(void *ctx)
{
	micro_free(ctx, OBJECTS * sizeof(struct shape));
}

const struct workload pointer_kernels[] = {
	{.name = "k-list", .n = 4000, .open = list_open, .run = list_run, .close = list_close},
	{.name = "k-chase", .n = 500000, .open = chase_open, .run = chase_run, .close = chase_close},
	{.name = "k-virtual", .n = 5000, .open = virtual_open, .run = virtual_run, .close = virtual_close},
	{0},
};
