/*
 * What the files of the harness share. The flow of one run:
 *
 *	column.c  what can be compared here          works.c   what can be measured
 *	     └──────────────┬───────────────────────────┘
 *	session.c  rounds of launches: spawn.c runs one, output.c reads what it printed; host.c watches the host's noise
 *	     │
 *	struct bench_result ── save.c/load.c (JSON), table.c (terminal), html.c (page), compare.c (two of them)
 *
 * Everything that a guest prints is hostile: it is bounded, parsed strictly, and compared with what was asked for.
 */
#ifndef BENCH_INTERNAL_H
#define BENCH_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "vmm/bench.h"

#define BENCH_WORK_MAX 80
#define BENCH_COLUMN_MAX 12
#define BENCH_SAMPLE_MAX 512
#define BENCH_LAUNCH_MAX 512
#define BENCH_COUNTER_MAX 192
#define BENCH_NAME_MAX 32
#define BENCH_TEXT_MAX 320
#define BENCH_COMMAND_MAX 1200
#define BENCH_ARG_MAX 48

enum bench_group { BENCH_NANO, BENCH_MICRO, BENCH_MACRO, BENCH_GROUPS };
enum bench_unit { BENCH_CYCLES, BENCH_NS, BENCH_SECONDS, BENCH_UNITS };
/*
 * A launch runs one part: the bare-metal guest, the same with two vcpus, the Linux guest with the static binary, the
 * same with two vcpus, the Debian root image.
 */
enum bench_part {
	BENCH_PART_NANO,
	BENCH_PART_SMP,
	BENCH_PART_LINUX,
	BENCH_PART_LINUX_SMP,
	BENCH_PART_ROOT,
	BENCH_PARTS
};
static inline bool bench_part_bare(enum bench_part part)
{
	return part == BENCH_PART_NANO || part == BENCH_PART_SMP;
}
/* What a work keeps busy: user mode, the kernel, the way out of the guest. Works of a kind vary alike. */
enum bench_kind { BENCH_USER, BENCH_SYSTEM, BENCH_DEVICE, BENCH_KINDS };
enum bench_state { BENCH_EMPTY, BENCH_OK, BENCH_FAILED, BENCH_SKIPPED, BENCH_STATES };

extern const char *const bench_group_names[BENCH_GROUPS];
extern const char *const bench_unit_names[BENCH_UNITS];
extern const char *const bench_part_names[BENCH_PARTS];
extern const char *const bench_state_names[BENCH_STATES];

struct bench_work {
	char id[BENCH_NAME_MAX];
	enum bench_group group;
	enum bench_unit unit;
	enum bench_part part;
	char text[120]; /* what one iteration is */
	bool ring3;	/* nano: a native process may do it too */
	bool heavy;	/* takes long to prepare: not with --quick, unless it is asked for by name */
};

enum bench_column_kind { BENCH_NATIVE, BENCH_VMM, BENCH_QEMU, BENCH_COLUMN_KINDS };
extern const char *const bench_kind_names[BENCH_COLUMN_KINDS];

struct bench_column {
	char id[BENCH_NAME_MAX];
	char label[64];
	enum bench_column_kind kind;
	char options[4][40]; /* how this column differs: --engine=… or -accel …; empty: unused */
	bool present;
	char why[BENCH_TEXT_MAX]; /* if it is not present: one sentence */
	char version[160];
};

struct bench_sample {
	double value; /* in the work's unit: of one iteration, or of all n where the unit is s */
	uint64_t n;   /* iterations */
	unsigned launch;
};

struct bench_cell {
	enum bench_state state;
	char why[BENCH_TEXT_MAX];
	bool has_check;
	uint64_t check; /* of the answer; comparable between cells whose samples have the same n */
	unsigned count;
	struct bench_sample samples[BENCH_SAMPLE_MAX];
};

/* The host's speed at one moment: what fixed pieces of work took (meter.c). */
enum bench_speed_kind { BENCH_CHAIN, BENCH_WIDE, BENCH_MEMORY, BENCH_KERNEL, BENCH_SPEEDS };
extern const char *const bench_speed_names[BENCH_SPEEDS];
struct bench_speed {
	double ns[BENCH_SPEEDS]; /* of the processor's time; medians of BENCH_BATCH */
	double busy;		 /* share of the time in which others had the processor, 0 to 1 */
};
#define BENCH_BATCH 5

struct bench_launch {
	unsigned column, round;
	enum bench_part part;
	double start, seconds; /* since the start of the run; how long it took */
	double clock_ratio;    /* the guest's clock over the host's; 0: not known */
	struct bench_speed speed; /* of the host just before it */
	bool ok;
	char why[BENCH_TEXT_MAX];
	char command[BENCH_COMMAND_MAX];
};

/* Counters of --stats, summed over the launches of a part on a column. */
struct bench_counter {
	char name[48]; /* exits.pio, engine.tlb_fills, … */
	uint64_t value;
};
struct bench_profile {
	unsigned launches, count;
	double seconds;
	struct bench_counter counters[BENCH_COUNTER_MAX];
};

struct bench_host {
	char kernel[160], cpu[96], kvm[200], memory_virt[120];
	bool hypervisor;
	unsigned cpus;
	uint64_t memory; /* bytes available */
	double tsc_hz;
	double load_start, load_end;
};

/* The host's speed over the whole run. */
struct bench_noise {
	unsigned stops; /* how often it was measured */
	double median_ns[BENCH_SPEEDS], low_ns[BENCH_SPEEDS], high_ns[BENCH_SPEEDS]; /* 5th and 95th percentile */
	double busy;								     /* mean */
};

struct bench_result {
	char version[32], commit[64], date[40], command[BENCH_COMMAND_MAX], pace[16], guest_kernel[200];
	struct bench_host host;
	struct bench_noise noise;
	double seconds;
	unsigned work_count, column_count, launch_count, note_count;
	struct bench_work works[BENCH_WORK_MAX];
	struct bench_column columns[BENCH_COLUMN_MAX];
	struct bench_cell cells[BENCH_WORK_MAX][BENCH_COLUMN_MAX];
	struct bench_launch launches[BENCH_LAUNCH_MAX];
	struct bench_profile profiles[BENCH_PARTS][BENCH_COLUMN_MAX];
	/* The usual deviation of launches, as a logarithm: of times, of ratios to the base; guests, native; below 0: not known (figure.c). */
	double usual[2][BENCH_PARTS][2][BENCH_KINDS];
	char notes[16][BENCH_TEXT_MAX]; /* what was skipped and why */
};

/* works.c */
extern const struct bench_work bench_works[];
extern const unsigned bench_works_count;
/* The work called id among count, or -1. */
int bench_work_find(const struct bench_work *works, unsigned count, const char *id);
enum bench_kind bench_work_kind(const char *id);

/* stats.c. Medians and percentiles sort a copy; count may be 0 (then 0). */
double bench_quantile(const double *values, unsigned count, double q);
double bench_median(const double *values, unsigned count);
struct bench_interval {
	double value, low, high;
};
/* The median of a cell with the interval from its lowest to its highest sample, or that between its quartiles. */
struct bench_interval bench_spread(const struct bench_cell *cell);
struct bench_interval bench_quartiles(const struct bench_cell *cell);
/* The next of a series of numbers that is the same in every run; state is not 0. */
uint64_t bench_random(uint64_t *state);
/* The geometric mean; 0 if count is 0 or a value is not positive. */
double bench_geomean(const double *values, unsigned count);

/* figure.c */
struct bench_figure {
	double value; /* the median of all samples, or of the launches' ratios; 0: there is none */
	double low, high; /* value / spread and value * spread: where another run's is to be expected */
	double spread;	  /* a factor, 1 or more; 0 if the value is about nothing and has no logarithm */
	double own;	  /* the highest over the lowest of its own launches */
	unsigned launches;
	bool unstable; /* its own launches differ far more than those of its kind */
	bool known;    /* at least two launches of something stand behind the spread */
};
/* Fills result->usual, which the rest of figure.c needs: once, when all samples are there. */
void bench_usual_find(struct bench_result *result);
/* Student's quantile that 999 of 1,000 absolute values are below; for 6 degrees of freedom and more. */
double bench_student(double freedom);
/* A cell's time, or with base >= 0 its ratio to that column's, launch by neighbouring launch. */
struct bench_figure bench_figure(const struct bench_result *result, unsigned work, unsigned column, int base);
/* Why a cell is unstable: half a sentence with what was measured around its launches. */
void bench_unstable_text(
	const struct bench_result *result, unsigned work, unsigned column, char *text, size_t size);

/* spawn.c */
struct bench_child {
	const char *argv[BENCH_ARG_MAX]; /* ends with NULL */
	double limit;			 /* seconds until it is killed, with everything it started */
	const char *directory;		 /* to run in, or NULL */
	int interrupt;			 /* a descriptor that becomes readable when the person wants to stop; 0: none */
	/* Called for each line of standard output, without its end; now is in ns (CLOCK_MONOTONIC). */
	void (*line)(void *ctx, const char *line, uint64_t now);
	void *ctx;
	/* Filled in: */
	double seconds;
	uint64_t started; /* ns, CLOCK_MONOTONIC */
	int status;	  /* wait status */
	bool timed_out, flooded, interrupted;
	char tail[400]; /* what it said last: a line of standard error, or of standard output if that is empty */
};
#define BENCH_OUTPUT_MAX (8u << 20) /* bytes of output after which a child is killed */
#define BENCH_LINE_MAX 1024	    /* longer lines are cut */

/* Runs it to its end. 0, or -errno if it could not be started. */
int bench_spawn(struct bench_child *child);
/* argv as a shell would take it, in text, cut to size. */
void bench_command_text(const char *const *argv, char *text, size_t size);
uint64_t bench_now(void); /* ns */

/* output.c */
struct bench_item {
	char id[BENCH_NAME_MAX];
	enum bench_unit unit;
	bool skipped, bad;
	char why[BENCH_TEXT_MAX];
	bool has_check;
	uint64_t check;
	unsigned wanted, count; /* a whole task, whose unit is s, is done once */
	struct bench_sample samples[BENCH_SAMPLE_MAX];
};
struct bench_output {
	unsigned count; /* items that were asked for, in the order asked */
	struct bench_item items[BENCH_WORK_MAX];
	unsigned wanted; /* samples of each that is no whole task */
	bool begun, ended;
	uint64_t begun_ns;
	unsigned clocks;
	bool clock_cycles;
	uint64_t clock_guest[2], clock_host[2]; /* first and last; host in ns */
	char bad[BENCH_TEXT_MAX]; /* the first line that starts like a result and is none */
};
void bench_output_init(struct bench_output *out, unsigned wanted);
void bench_output_expect(struct bench_output *out, const struct bench_work *work);
/* One line of a guest's console. */
void bench_output_line(struct bench_output *out, const char *line, uint64_t now);
/*
 * The item that was being measured when the output stopped: the one with some samples but not all, else the first that
 * was asked for and has none; -1 if all are complete or skipped.
 */
int bench_output_culprit(const struct bench_output *out);
bool bench_item_complete(const struct bench_item *item);
/* The guest's clock over the host's between the first and the last BENCH-CLOCK; 0 if that cannot be told. */
double bench_output_clock(const struct bench_output *out, double tsc_hz);

/* column.c */
struct bench_paths {
	char self[512], qemu[512], nano[512], nano_native[512], micro[512], kernel[512], root[512];
	char root_initrd[512], initrd[64], stats[64];
	char disk[64];	  /* micro as a disk, if Linux guests do I/O beside the work */
	unsigned busy_io; /* so many reads each second; 0: they don't */
	char dir[40]; /* our temporary folder */
};
/* Fills the columns of the result: those that work here, and the others with the reason. */
void bench_columns_detect(struct bench_result *result, const struct bench_paths *paths, const char *chosen);
/* The command that runs a part on a column; words goes to the guest. Storage for built strings is in text. */
int bench_column_command(const struct bench_column *column, enum bench_part part, const struct bench_paths *paths,
	const char *words, const char **argv, char *text, size_t size);

/* initrd.c: writes an initramfs with binary as /init; binary as a disk, which has whole sectors. 0 or -errno. */
int bench_initrd_write(const char *path, const char *binary);
int bench_disk_write(const char *path, const char *binary);

/* host.c */
void bench_host_describe(struct bench_host *host);
double bench_load_average(void);

/* meter.c */
#define BENCH_STOPS_MAX (BENCH_LAUNCH_MAX + 32)
struct bench_meter {
	uint32_t *chase; /* the memory that is walked through; NULL at first */
	uint32_t at;
	unsigned count;
	struct bench_speed stops[BENCH_STOPS_MAX];
};
/* Measures the speed now, which takes some ten milliseconds, and keeps it. */
void bench_meter_run(struct bench_meter *meter, struct bench_speed *speed);
void bench_meter_read(const struct bench_meter *meter, struct bench_noise *noise);
void bench_meter_drop(struct bench_meter *meter);

/* session.c */
int bench_session(const struct bench_config *config, struct bench_result *result, const struct bench_paths *paths,
	int interrupt, struct error *err);
/* Adds a sentence to the result's notes. */
void bench_note(struct bench_result *result, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* paths.c: finds the programs, guests and images and makes the temporary folder with the initramfs. */
int bench_paths_find(const struct bench_config *config, struct bench_paths *paths, struct error *err);
void bench_paths_drop(const struct bench_paths *paths);
/* Fills result->works: what the guests offer, and config chooses. 0 or -EINVAL with a sentence. */
int bench_works_choose(const struct bench_config *config, const struct bench_paths *paths, struct bench_result *result,
	struct error *err);
/* Is id one of the words of list, which are joined by commas? Everything is in a list that is NULL. */
bool bench_listed(const char *list, const char *id);
/* Standard output of a command that ends with status 0 within 10 s, or NULL; the caller frees it. */
char *bench_output_of(const char *const *argv);

/* profile.c: adds the counters of a --stats file. */
void bench_profile_add(struct bench_profile *profile, const char *path);
/* A counter of all parts of a column. */
uint64_t bench_profile_sum(const struct bench_result *result, unsigned column, const char *name);

/* save.c, load.c */
int bench_save(const struct bench_result *result, const char *path, struct error *err);
int bench_load(struct bench_result *result, const char *path, struct error *err);

/* report.c: what tables and pages have in common. */
/* The column that a group's ratios are against: native if it measured half of the group, else TCG; -1 if neither. */
int bench_baseline(const struct bench_result *result, enum bench_group group);
/* The sentences that a group's figures support, one a line; empty if they support none. */
void bench_sentence(const struct bench_result *result, enum bench_group group, char *text, size_t size);
/* 1234567 cycles as "1.23 M", 0.00012 s as "120 µs", … */
void bench_value_text(double value, enum bench_unit unit, char *text, size_t size);
void bench_ratio_text(double ratio, char *text, size_t size);
/* A figure's spread, as "±12%", or "×÷2.4" if it is a factor of two and more; with "!" if it is unstable. */
void bench_spread_text(const struct bench_figure *figure, char *text, size_t size);
/* How steady the host was, in a sentence without its full stop. */
void bench_noise_text(const struct bench_noise *noise, char *text, size_t size);
/* How much longer the host took for a piece of work at its slowest (95th percentile) than at its fastest (5th). */
double bench_noise_factor(const struct bench_noise *noise, unsigned kind);
/* Did the column measure, or fail at, anything of the group? */
bool bench_cell_shown(const struct bench_result *result, enum bench_group group, unsigned column);

/* table.c, html.c */
void bench_table_print(const struct bench_result *result, FILE *file);
int bench_html_write(const struct bench_result *result, const char *path, struct error *err);

#endif
