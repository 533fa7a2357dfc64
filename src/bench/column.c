/*
 * The columns: every way of running that exists here, found by trying. An engine or a shadow policy that this vmm does not have
 * (exit status 10 or 2, see vmm(1)) or a peer that is not installed is a column that is not present, with a sentence. When it
 * comes, its column appears. What a KVM column's memory
 * virtualisation is called comes from `vmm info`, which detects it.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench_internal.h"
#include "json_read.h"

static const struct candidate {
	const char *id, *label;
	enum bench_column_kind kind;
	bool needs_kvm;
	const char *options[3];
} candidates[] = {
	{"native", "Native", BENCH_NATIVE, false, {NULL}},
	{"interp", "vmm (interpreter)", BENCH_VMM, false, {"--backend=soft", "--engine=interp"}},
	{"translate", "vmm (translator, unsync)", BENCH_VMM, false,
		{"--backend=soft", "--engine=translate", "--shadow=unsync"}},
	{"translate-vtlb", "vmm (translator, vtlb)", BENCH_VMM, false,
		{"--backend=soft", "--engine=translate", "--shadow=vtlb"}},
	{"translate-trace", "vmm (translator, trace)", BENCH_VMM, false,
		{"--backend=soft", "--engine=translate", "--shadow=trace"}},
	{"kvm", "vmm (KVM)", BENCH_VMM, true, {"--backend=kvm"}},
	{"tcg", "QEMU (TCG)", BENCH_QEMU, false, {"tcg", "max"}},
	{"qemu-kvm", "QEMU (KVM)", BENCH_QEMU, true, {"kvm", "host"}},
};

#define NOTHING "bench=none repeat=1"

/* What `vmm info` detects. True if KVM works. */
static bool kvm_describe(struct bench_host *host, const char *self)
{
	char *text = bench_output_of((const char *const[]){self, "info", "--json", NULL});
	struct json_value *root = text ? json_parse(text, strlen(text)) : NULL;
	const struct json_value *kvm = json_get(root, "kvm");
	bool works = json_true(json_get(kvm, "works"));

	snprintf(host->kvm, sizeof(host->kvm), "%.190s", json_text(json_get(kvm, "state"), "unknown"));
	snprintf(host->memory_virt, sizeof(host->memory_virt), "%.110s",
		json_text(json_get(kvm, "memory_virtualisation"), "unknown"));
	json_free(root);
	free(text);
	return works;
}

/*
 * Does this vmm take these options? Its status 2 says that it has never heard of them, 10 that they are for later
 * (vmm(1)); it then prints one sentence.
 */
static bool engine_exists(struct bench_column *column, const struct bench_paths *paths)
{
	struct bench_child child = {.limit = 10};
	char text[BENCH_COMMAND_MAX];
	int status;

	if (bench_column_command(column, BENCH_PART_NANO, paths, NOTHING, child.argv, text, sizeof(text)) ||
		bench_spawn(&child)) {
		snprintf(column->why, sizeof(column->why), "The program itself cannot be started.");
		return false;
	}
	status = WIFEXITED(child.status) ? WEXITSTATUS(child.status) : -1;
	if (status != 2 && status != 10)
		return true;
	snprintf(column->why, sizeof(column->why), "%.300s",
		strncmp(child.tail, "vmm: ", 5) ? child.tail : child.tail + 5);
	return false;
}

static void on_line(void *ctx, const char *line, uint64_t now)
{
	*(bool *)ctx |= !strcmp(line, "BENCH-END ok");
}

/* Does QEMU run the bare-metal guest at all? With some hosts' KVM it does not. Without the guest, yes is assumed. */
static bool peer_works(struct bench_column *column, const struct bench_paths *paths)
{
	bool ended = false;
	struct bench_child child = {.limit = 5, .line = on_line, .ctx = &ended};
	char text[BENCH_COMMAND_MAX];

	if (!paths->nano[0])
		return true;
	if (!bench_column_command(column, BENCH_PART_NANO, paths, NOTHING, child.argv, text, sizeof(text)) &&
		!bench_spawn(&child) && ended)
		return true;
	snprintf(column->why, sizeof(column->why), "It does not run a guest here: %.250s",
		child.timed_out ? "nothing came within 5 s." : child.tail);
	return false;
}

static bool column_check(struct bench_column *column, const struct candidate *c,
	const struct bench_host *host, const struct bench_paths *paths, bool kvm)
{
	const char *absent = NULL;

	if (c->kind == BENCH_QEMU && !paths->qemu[0])
		absent = "qemu-system-x86_64 is not installed.";
	else if (c->kind == BENCH_NATIVE && !paths->micro[0] && !paths->nano_native[0])
		absent = "The programs to run natively are not there; build them or give --guests.";
	if (absent) {
		snprintf(column->why, sizeof(column->why), "%s", absent);
		return false;
	}
	if (c->needs_kvm && !kvm) {
		snprintf(column->why, sizeof(column->why), "KVM does not work here: %.199s.", host->kvm);
		return false;
	}
	switch (c->kind) {
	case BENCH_VMM: return engine_exists(column, paths);
	case BENCH_QEMU: return peer_works(column, paths);
	default: return true;
	}
}

static void versions_find(struct bench_result *result, const struct bench_paths *paths)
{
	char *qemu = paths->qemu[0] ? bench_output_of((const char *const[]){paths->qemu, "--version", NULL})
				    : NULL;
	char texts[BENCH_COLUMN_KINDS][sizeof(result->columns[0].version)];

	if (qemu)
		qemu[strcspn(qemu, "\n")] = 0;
	snprintf(texts[BENCH_VMM], sizeof(texts[0]), "vmm %.31s, commit %.63s", result->version,
		result->commit);
	snprintf(texts[BENCH_QEMU], sizeof(texts[0]), "%.150s", qemu ? qemu : "");
	snprintf(texts[BENCH_NATIVE], sizeof(texts[0]), "%.150s", result->host.kernel);
	for (unsigned i = 0; i < result->column_count; i++)
		memcpy(result->columns[i].version, texts[result->columns[i].kind], sizeof(texts[0]));
	free(qemu);
}

void bench_columns_detect(struct bench_result *result, const struct bench_paths *paths, const char *chosen)
{
	const struct bench_host *host = &result->host;
	bool kvm = kvm_describe(&result->host, paths->self);

	for (unsigned i = 0; i < sizeof(candidates) / sizeof(candidates[0]); i++) {
		const struct candidate *c = &candidates[i];
		struct bench_column column = {.kind = c->kind};

		if (!bench_listed(chosen, c->id))
			continue;
		snprintf(column.id, sizeof(column.id), "%s", c->id);
		for (unsigned o = 0; o < 3 && c->options[o]; o++)
			snprintf(column.options[o], sizeof(column.options[o]), "%s", c->options[o]);
		snprintf(column.label, sizeof(column.label), "%s", c->label);
		if (c->needs_kvm && kvm) /* with the kind of memory virtualisation: "(KVM, EPT)" */
			snprintf(column.label, sizeof(column.label), "%.*s, %.*s)",
				(int)strcspn(c->label, ")"), c->label, (int)strcspn(host->memory_virt, " ("),
				host->memory_virt);
		column.present = column_check(&column, c, host, paths, kvm);
		result->columns[result->column_count++] = column;
	}
	versions_find(result, paths);
}

struct builder {
	const char **argv;
	unsigned argc;
	char *text;
	size_t size, at;
	bool full;
};

static void add(struct builder *b, const char *arg)
{
	if (b->argc + 1 < BENCH_ARG_MAX)
		b->argv[b->argc++] = arg;
	else
		b->full = true;
	b->argv[b->argc] = NULL;
}

/* A string of two parts, kept in the builder's text. */
static void add_joined(struct builder *b, const char *first, const char *second)
{
	size_t length = strlen(first) + strlen(second) + 1;

	if (b->at + length > b->size) {
		b->full = true;
		return;
	}
	snprintf(b->text + b->at, length, "%s%s", first, second);
	add(b, b->text + b->at);
	b->at += length;
}

/* The guest has the root image: for a whole task, or since something is to do I/O beside the work. */
static bool has_root(enum bench_part part, const struct bench_paths *paths)
{
	return part == BENCH_PART_ROOT || (paths->busy_io && !bench_part_bare(part));
}

/* micro comes on a disk of its own then. */
static bool has_disk(enum bench_part part, const struct bench_paths *paths)
{
	return part != BENCH_PART_ROOT && has_root(part, paths);
}

/* The kernel's command line: its own words, and those for the guest. */
static void add_command_line(struct builder *b, enum bench_part part, const struct bench_paths *paths, const char *words)
{
	char before[160] = "";

	if (!bench_part_bare(part))
		snprintf(before, sizeof(before), "console=ttyS0 quiet panic=-1%s -- ",
			has_root(part, paths) ? " root=/dev/vda ro init=/bench-init" : "");
	if (paths->busy_io && !bench_part_bare(part))
		snprintf(before + strlen(before), sizeof(before) - strlen(before), "beside=%u %s", paths->busy_io,
			has_disk(part, paths) ? "run=/dev/vdb " : "");
	add_joined(b, before, words);
}

static void native_command(
	struct builder *b, enum bench_part part, const struct bench_paths *paths, const char *words)
{
	char copy[BENCH_COMMAND_MAX / 2], *rest = copy;

	add(b, bench_part_bare(part) ? paths->nano_native : paths->micro);
	snprintf(copy, sizeof(copy), "%s", words);
	for (char *word = strtok_r(copy, " ", &rest); word; word = strtok_r(NULL, " ", &rest))
		add_joined(b, word, "");
}

static void vmm_command(struct builder *b, const struct bench_column *column, enum bench_part part,
	const struct bench_paths *paths, const char *words)
{
	add(b, paths->self);
	add(b, "run");
	for (unsigned i = 0; i < 4 && column->options[i][0]; i++)
		add(b, column->options[i]);
	add(b, "--memory");
	add(b, has_root(part, paths) ? "1G" : "512M");
	if (part == BENCH_PART_SMP || part == BENCH_PART_LINUX_SMP) {
		add(b, "--cpus");
		add(b, "2");
	}
	add(b, "--on-reboot=exit");
	add(b, "--stats");
	add(b, paths->stats);
	add(b, "--kernel");
	/* Without the guest the options are still tried, on a file that is not there. */
	add(b, !bench_part_bare(part) ? paths->kernel
		: paths->nano[0]       ? paths->nano
				       : "/nonexistent/nano.elf");
	if (!bench_part_bare(part)) {
		add(b, "--initrd");
		add(b, has_root(part, paths) ? paths->root_initrd : paths->initrd);
	}
	if (has_root(part, paths)) {
		add(b, "--disk");
		add_joined(b, paths->root, ",ro");
	}
	if (has_disk(part, paths)) {
		add(b, "--disk");
		add_joined(b, paths->disk, ",ro");
	}
	add(b, "--append");
	add_command_line(b, part, paths, words);
}

static void qemu_command(struct builder *b, const struct bench_column *column, enum bench_part part,
	const struct bench_paths *paths, const char *words)
{
	static const char *const fixed[] = {"-nodefaults", "-display", "none", "-serial", "stdio", "-monitor",
		"none", "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"};

	add(b, paths->qemu);
	add(b, "-accel");
	add(b, column->options[0]);
	add(b, "-cpu");
	add(b, column->options[1]);
	add(b, "-m");
	add(b, has_root(part, paths) ? "1024" : "512");
	if (part == BENCH_PART_SMP || part == BENCH_PART_LINUX_SMP) {
		add(b, "-smp");
		add(b, "2");
	}
	for (unsigned i = 0; i < sizeof(fixed) / sizeof(fixed[0]); i++)
		add(b, fixed[i]);
	add(b, "-kernel");
	add(b, bench_part_bare(part) ? paths->nano : paths->kernel);
	if (!bench_part_bare(part)) {
		add(b, "-initrd");
		add(b, has_root(part, paths) ? paths->root_initrd : paths->initrd);
	}
	if (has_root(part, paths)) {
		add(b, "-drive");
		add_joined(b, "format=raw,if=virtio,readonly=on,file.locking=off,file=", paths->root);
	}
	if (has_disk(part, paths)) {
		add(b, "-drive");
		add_joined(b, "format=raw,if=virtio,readonly=on,file=", paths->disk);
	}
	add(b, "-append");
	add_command_line(b, part, paths, words);
}

int bench_column_command(const struct bench_column *column, enum bench_part part,
	const struct bench_paths *paths, const char *words, const char **argv, char *text, size_t size)
{
	struct builder b = {.argv = argv, .text = text, .size = size};

	argv[0] = NULL;
	switch (column->kind) {
	case BENCH_VMM: vmm_command(&b, column, part, paths, words); break;
	case BENCH_QEMU: qemu_command(&b, column, part, paths, words); break;
	default: native_command(&b, part, paths, words); break;
	}
	return b.full ? -1 : 0;
}
