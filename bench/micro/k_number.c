/* Compute kernels on numbers: matrices of integers and of doubles, and the n-body problem. */
#include <math.h>
#include <string.h>

#include "micro.h"

/* k-matrix: one iteration is C = A·B + C of 64-bit integers, 64 by 64, inner loop down a column of B. */
#define INT_SIDE 64u

struct int_matrices {
	uint64_t a[INT_SIDE][INT_SIDE], b[INT_SIDE][INT_SIDE], c[INT_SIDE][INT_SIDE];
};

static void *matrix_open(uint64_t n)
{
	struct int_matrices *m = micro_alloc(sizeof(*m));
	uint64_t seed = 0x0123456789abcdefull;

	for (unsigned i = 0; i < INT_SIDE; i++)
		for (unsigned j = 0; j < INT_SIDE; j++) {
			m->a[i][j] = random_next(&seed) >> 40;
			m->b[i][j] = random_next(&seed) >> 40;
		}
	return m;
}

static uint64_t matrix_run(void *ctx, uint64_t n)
{
	struct int_matrices *m = ctx;
	uint64_t check = 3;

	for (uint64_t round = 0; round < n; round++) {
		for (unsigned i = 0; i < INT_SIDE; i++)
			for (unsigned j = 0; j < INT_SIDE; j++) {
				uint64_t sum = m->c[i][j];

				for (unsigned k = 0; k < INT_SIDE; k++)
					sum += m->a[i][k] * m->b[k][j];
				m->c[i][j] = sum;
			}
		check = check_mix(check, m->c[round % INT_SIDE][round / INT_SIDE % INT_SIDE]);
	}
	return check;
}

static void matrix_close(void *ctx)
{
	micro_free(ctx, sizeof(struct int_matrices));
}

/* k-matrix-fp: the same of doubles, 96 by 96, inner loop along the rows of B and C. */
#define FP_SIDE 96u

struct fp_matrices {
	double a[FP_SIDE][FP_SIDE], b[FP_SIDE][FP_SIDE], c[FP_SIDE][FP_SIDE];
};

static uint64_t double_bits(double value)
{
	uint64_t bits;

	memcpy(&bits, &value, sizeof(bits));
	return bits;
}

static void *matrix_fp_open(uint64_t n)
{
	struct fp_matrices *m = micro_alloc(sizeof(*m));
	uint64_t seed = 0x3141592653589793ull;

	for (unsigned i = 0; i < FP_SIDE; i++)
		for (unsigned j = 0; j < FP_SIDE; j++) {
			m->a[i][j] = (double)(random_next(&seed) >> 44) / 1048576.0 / FP_SIDE;
			m->b[i][j] = (double)(random_next(&seed) >> 44) / 1048576.0;
		}
	return m;
}

static uint64_t matrix_fp_run(void *ctx, uint64_t n)
{
	struct fp_matrices *m = ctx;
	uint64_t check = 4;

	for (uint64_t round = 0; round < n; round++) {
		for (unsigned i = 0; i < FP_SIDE; i++)
			for (unsigned k = 0; k < FP_SIDE; k++) {
				double factor = m->a[i][k];

				for (unsigned j = 0; j < FP_SIDE; j++)
					m->c[i][j] += factor * m->b[k][j];
			}
		check = check_mix(check, double_bits(m->c[round % FP_SIDE][round / FP_SIDE % FP_SIDE]));
	}
	return check;
}

static void matrix_fp_close(void *ctx)
{
	micro_free(ctx, sizeof(struct fp_matrices));
}

/* k-nbody: one iteration is a step of five bodies that attract each other (scalar doubles, square roots, divisions). */
#define BODIES 5u

struct body {
	double place[3], speed[3], mass;
};

static void *nbody_open(uint64_t n)
{
	struct body *bodies = micro_alloc(BODIES * sizeof(*bodies));

	for (unsigned i = 0; i < BODIES; i++) {
		bodies[i].mass = i ? 0.03 / i : 40.0;
		for (unsigned axis = 0; axis < 3; axis++) {
			bodies[i].place[axis] = i ? 5.0 * i + 1.25 * axis : 0.0;
			bodies[i].speed[axis] = i ? (axis + 1.0) / (i + 1.0) - 1.0 : 0.0;
		}
	}
	return bodies;
}

static void attract(struct body *one, struct body *two, double step)
{
	double delta[3], squared = 0, pull;

	for (unsigned axis = 0; axis < 3; axis++) {
		delta[axis] = one->place[axis] - two->place[axis];
		squared += delta[axis] * delta[axis];
	}
	pull = step / (squared * sqrt(squared));
	for (unsigned axis = 0; axis < 3; axis++) {
		one->speed[axis] -= delta[axis] * two->mass * pull;
		two->speed[axis] += delta[axis] * one->mass * pull;
	}
}

static uint64_t nbody_run(void *ctx, uint64_t n)
{
	struct body *bodies = ctx;
	uint64_t check = 5;

	for (uint64_t round = 0; round < n; round++) {
		for (unsigned i = 0; i < BODIES; i++)
			for (unsigned j = i + 1; j < BODIES; j++)
				attract(&bodies[i], &bodies[j], 0.001);
		for (unsigned i = 0; i < BODIES; i++)
			for (unsigned axis = 0; axis < 3; axis++)
				bodies[i].place[axis] += 0.001 * bodies[i].speed[axis];
	}
	for (unsigned i = 0; i < BODIES; i++)
		for (unsigned axis = 0; axis < 3; axis++)
			check = check_mix(check, double_bits(bodies[i].place[axis]));
	return check;
}

static void nbody_close(void *ctx)
{
	micro_free(ctx, BODIES * sizeof(struct body));
}

const struct workload number_kernels[] = {
	{.name = "k-matrix", .n = 160, .open = matrix_open, .run = matrix_run, .close = matrix_close},
	{.name = "k-matrix-fp", .n = 80, .open = matrix_fp_open, .run = matrix_fp_run, .close = matrix_fp_close},
	{.name = "k-nbody", .n = 350000, .open = nbody_open, .run = nbody_run, .close = nbody_close},
	{0},
};
