/*
 * A whole machine: what it is made of (struct machine_config), its life (create, run, stop, destroy) and how it
 * ended (struct machine_result). The one place where modules meet.
 */
#ifndef VMM_MACHINE_H
#define VMM_MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct machine;

#define MACHINE_PATH_MAX 1024
#define MACHINE_DISK_MAX 16
#define MACHINE_NET_MAX 8
#define MACHINE_HOSTFWD_MAX 16
#define MACHINE_CPU_MAX 64

enum machine_backend { MACHINE_BACKEND_AUTO, MACHINE_BACKEND_SOFT, MACHINE_BACKEND_KVM };
/* What a flush of translations drops of the translator's shadow: what has changed, or all. */
enum machine_shadow { MACHINE_SHADOW_UNSYNC, MACHINE_SHADOW_VTLB };
enum machine_engine { MACHINE_ENGINE_AUTO, MACHINE_ENGINE_INTERP, MACHINE_ENGINE_TRANSLATE, MACHINE_ENGINE_SLOTS, MACHINE_ENGINE_LOCKSTEP };
enum machine_reboot { MACHINE_REBOOT_RESET, MACHINE_REBOOT_EXIT };
enum machine_console { MACHINE_CONSOLE_STDIO, MACHINE_CONSOLE_FILE, MACHINE_CONSOLE_PTY, MACHINE_CONSOLE_NONE };
enum machine_net_kind { MACHINE_NET_USER, MACHINE_NET_TAP };

/* What --trace may show; a mask. */
enum machine_trace { MACHINE_TRACE_PIO = 1, MACHINE_TRACE_MMIO = 2 };

/* A triple fault: what the machine does by itself (direct boot: stop; firmware: reset, as on a PC), or as told. */
enum machine_triple_fault { MACHINE_TRIPLE_AUTO, MACHINE_TRIPLE_RESET, MACHINE_TRIPLE_STOP };

struct machine_disk {
	char path[MACHINE_PATH_MAX];
	char serial[21]; /* virtio-blk's 20 bytes and a terminator; empty: chosen by the machine */
	bool readonly;
	bool cd; /* in a CD drive, on virtio-scsi; read-only */
};

struct machine_hostfwd {
	char host_addr[40]; /* IPv4 address in dots; empty: 127.0.0.1 */
	uint16_t host_port, guest_port;
};

struct machine_net {
	enum machine_net_kind kind;
	char ifname[16]; /* tap */
	unsigned hostfwd_count;
	struct machine_hostfwd hostfwd[MACHINE_HOSTFWD_MAX];
};

/* Plain data; strings given by pointer belong to the caller and outlive the machine. NULL or 0: not given. */
struct machine_config {
	enum machine_backend backend;
	enum machine_engine engine;
	enum machine_shadow shadow;
	unsigned cpus;
	uint64_t memory; /* bytes, a multiple of 4 KiB */
	bool smap;	 /* --cpu common,+smap */
	bool cpu_host;	 /* --cpu host: KVM only */
	unsigned move_every, move_length; /* as in struct kvm_config; for tests */
	bool hugepages;	 /* RAM of the host's 2 MiB pages */
	bool prealloc;	 /* all of RAM is taken from the host at the start */
	unsigned pin_count; /* 0: the vcpus run where the host likes */
	uint16_t pin[MACHINE_CPU_MAX]; /* host processors for the vcpu threads, in turn */

	const char *guest; /* told by content: disk image, bzImage or ELF */
	const char *kernel, *initrd, *append;
	const char *firmware;	   /* a path, or "bios" or "uefi" for the host's own */
	const char *firmware_vars; /* file of UEFI's variables; NULL: those of the template, changes are lost */
	const char *firmware_log;  /* what firmware writes to its debug console; NULL: nothing is offered */
	unsigned boot_menu;	   /* seconds that firmware waits for a key; 0: no menu */
	unsigned boot_order_count; /* disks in the order in which firmware tries them; empty: its own order */
	uint8_t boot_order[MACHINE_DISK_MAX + 1];

	unsigned disk_count;
	struct machine_disk disks[MACHINE_DISK_MAX];
	bool net_none;
	unsigned net_count;
	struct machine_net nets[MACHINE_NET_MAX];

	enum machine_console console;
	const char *console_path;
	enum machine_reboot on_reboot;
	bool test_device; /* dev_testdev.h */
	enum machine_triple_fault on_triple_fault;
	const char *stats_path;
	unsigned trace; /* enum machine_trace mask */
	const char *trace_path; /* NULL: stderr */
};

enum machine_reason {
	MACHINE_RUNNING,	 /* no reason yet */
	MACHINE_POWEROFF,	 /* ACPI S5 */
	MACHINE_REBOOTED,	 /* the guest asked for a reset and on_reboot is exit */
	MACHINE_DEBUG_EXIT,	 /* status is (v << 1) | 1 */
	MACHINE_GUEST_CRASH,	 /* triple fault */
	MACHINE_USER_STOP,	 /* Ctrl-A x, or a signal asked us to end */
	MACHINE_INTERNAL_ERROR, /* a vcpu process died, or the engine met our own bug */
};

struct machine_result {
	enum machine_reason reason;
	int status;		/* MACHINE_DEBUG_EXIT: the exit status that the guest chose */
	char sentence[400];	/* one sentence for a person; empty for POWEROFF, REBOOTED and DEBUG_EXIT */
	char details[3000];	/* first cause and registers of a crash; several lines, may be empty */
};

/* The other end of COM1. Device lock held for both calls, which may not block. */
struct machine_console_ops {
	/* The guest wrote bytes. */
	void (*output)(void *ctx, const uint8_t *data, size_t length);
	/* There is room again after machine_console_input() took less than all. */
	void (*ready)(void *ctx);
	void *ctx;
};

/* Puts a machine together. On failure nothing remains, and err has one sentence. Main thread. */
int machine_create(const struct machine_config *config, struct machine **machine, struct error *err);
/* The disk that firmware is to start: "raw disk, MBR, bootable partition 1 (ext4)"; empty for a kernel. */
const char *machine_guest_description(const struct machine *machine);
/* Runs it until somebody stops it; the calling thread becomes the event loop. Fills *result. 0 or -errno. */
int machine_run(struct machine *machine, struct machine_result *result, struct error *err);
/* Asks for the end; the first reason stays. Any thread, and with the device lock held. */
void machine_stop(struct machine *machine, enum machine_reason reason, int status, const char *format, ...)
	__attribute__((format(printf, 4, 5)));
void machine_destroy(struct machine *machine);

/* Writes counters as JSON. After machine_run(). 0 or -errno. */
int machine_write_stats(struct machine *machine, const struct machine_result *result, const char *path, struct error *err);

/* What --backend=auto has chosen and why, one sentence; empty if it was not asked. */
const char *machine_backend_line(const struct machine *machine);

/* The event loop, for whoever feeds the console. Valid from create to destroy. */
struct event_loop *machine_loop(struct machine *machine);
/* Connects COM1's output; without it the bytes are dropped. Before machine_run(). */
void machine_console_connect(struct machine *machine, const struct machine_console_ops *ops);
/* Offers bytes typed by the person; returns how many the machine took (the rest later). Device lock held. */
size_t machine_console_input(struct machine *machine, const uint8_t *data, size_t length);

#endif
