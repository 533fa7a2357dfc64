/*
 * `vmm bench`: what each way of running a guest costs. The harness starts the programs that it compares as child
 * processes (this vmm, QEMU, a native binary), in turn, reads what the guests measured from their consoles, and
 * reports medians, spreads and ratios. It links nothing of the machine: it sees vmm as a person at a shell would.
 *
 * docs/bench-json.md describes the file that bench_run() writes and bench_compare() and bench_show() read.
 */
#ifndef VMM_BENCH_H
#define VMM_BENCH_H

#include <stdbool.h>

struct error;

enum bench_pace {
	BENCH_STANDARD, /* a few minutes */
	BENCH_QUICK,	/* within 60 s, as many launches as fit */
	BENCH_FULL,	/* as long as it takes */
};

/* What to measure; a mask. */
enum bench_group_bit { BENCH_GROUP_NANO = 1, BENCH_GROUP_MICRO = 2, BENCH_GROUP_MACRO = 4, BENCH_GROUP_ALL = 7 };

/* Plain data; strings belong to the caller. NULL or 0: not given. */
struct bench_config {
	enum bench_pace pace;
	unsigned groups;     /* enum bench_group_bit mask; 0: all */
	const char *only;    /* names of works, joined by commas */
	const char *columns; /* ids of columns, joined by commas */
	const char *kernel;  /* Linux for micro and macro; NULL: one from the cache of scripts/fetch-kernels */
	const char *guests;  /* the folder with nano.elf and micro; NULL: beside the program */
	const char *root;    /* the root image of bench/make-root for compile, fio and iperf3; NULL: the one in the cache */
	unsigned rounds;     /* launches of each column and part; 0: by pace */
	unsigned busy_io;    /* reads of a disk each second that a program in each Linux guest makes beside the work; 0: none */
	unsigned limit;	     /* seconds that a launch may take; 0: by pace */
	const char *json;    /* files to write, or NULL */
	const char *html;
	bool list;	     /* print what could be measured, and measure nothing */
	int argc;	     /* the command line, for the record */
	char *const *argv;
};

/*
 * Measures, shows progress on stderr and the tables on stdout, writes the files. 0; -ECANCELED if something that was
 * measured failed (the tables say what); another -errno with a sentence if the host does not let us measure at all.
 * Blocks; one at a time in a process.
 */
int bench_run(const struct bench_config *config, struct error *err);

/* Prints what changed from one file to another and whether it is above the noise. 0 or -errno. */
int bench_compare(const char *before, const char *after, struct error *err);

/* Prints the tables of a file again, and writes its HTML page if html is not NULL. 0 or -errno. */
int bench_show(const char *path, const char *html, struct error *err);

#endif
