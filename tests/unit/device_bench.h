/*
 * What device tests share: a bus with its lock, port accesses, and lines that count. Every read of a register whose answer
 * has been published is also a check of that answer.
 */
#ifndef TESTS_DEVICE_BENCH_H
#define TESTS_DEVICE_BENCH_H

#include <check.h>
#include <pthread.h>

#include "answers.h"
#include "vmm/bus.h"
#include "vmm/error.h"
#include "vmm/event.h"

static pthread_mutex_t bench_lock = PTHREAD_MUTEX_INITIALIZER;
static struct bus *bench_bus;
static struct answers bench_answers;

struct bench_line {
	bool level;
	unsigned rises;
};

static inline void bench_line_set(void *ctx, unsigned input, bool level)
{
	struct bench_line *line = (struct bench_line *)ctx + input;

	line->rises += level && !line->level;
	line->level = level;
}

static inline struct irq_line bench_line_wire(struct bench_line *lines, unsigned input)
{
	return (struct irq_line){ bench_line_set, lines, input };
}

static inline void bench_start(void)
{
	bench_answers = (struct answers){ 0 };
	ck_assert_int_eq(bus_create(&bench_lock, &bench_bus, NULL), 0);
}

static inline void bench_stop(void)
{
	bus_destroy(bench_bus);
	bench_bus = NULL;
}

static inline uint64_t bench_read(enum bus_space space, uint64_t addr, unsigned size)
{
	uint64_t value = 0, answer = 0;
	bool answered = bench_answers.count && answers_read(&bench_answers, space, addr, size, event_now(), &answer);

	bus_access(bench_bus, space, addr, size, false, &value);
	if (answered)
		ck_assert_msg(answer == value, "address 0x%llx: 0x%llx was published, the device says 0x%llx",
			(unsigned long long)addr, (unsigned long long)answer, (unsigned long long)value);
	bench_answers.used += answered;
	return value;
}

static inline void bench_write(enum bus_space space, uint64_t addr, unsigned size, uint64_t value)
{
	bus_access(bench_bus, space, addr, size, true, &value);
}

static inline uint8_t inb(uint16_t port)
{
	return (uint8_t)bench_read(BUS_PIO, port, 1);
}

static inline void outb(uint16_t port, uint8_t value)
{
	bench_write(BUS_PIO, port, 1, value);
}

#endif
