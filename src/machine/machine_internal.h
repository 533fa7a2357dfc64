/* The parts of a machine, in the order in which they are created; destroyed in the opposite order. */
#ifndef MACHINE_INTERNAL_H
#define MACHINE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>

#include "vmm/boot.h"
#include "vmm/cpu.h"
#include "vmm/machine.h"

struct firmware_vars;
struct host_image;

struct machine {
	/* Set at create. */
	const struct machine_config *config;
	pthread_mutex_t device_lock;
	struct event_loop *loop;
	struct worker_pool *pool;
	struct guest_mem *mem;
	struct bus *bus;
	struct kvm_vm *kvm;   /* NULL: the software backend */
	struct soft_vm *soft; /* with KVM: for the helpers */
	void *helpers[MACHINE_CPU_MAX]; /* software vcpus that help KVM; each by its vcpu's thread */
	struct irqchip *irqchip;
	struct pit *pit;
	struct rtc *rtc;
	struct hpet *hpet;
	struct i8042 *i8042;
	struct serial *serial[2];
	struct acpi_pm *acpi_pm;
	struct fw_cfg *fw_cfg;
	struct debug_ports *debug_ports;
	struct testdev *testdev; /* NULL unless asked for */
	struct flash *flash; /* NULL: none */
	struct firmware_vars *firmware_vars; /* firmware.c */
	FILE *firmware_log;
	struct pci_bus *pci;
	struct virtio_pci *virtio[MACHINE_DISK_MAX + 1 + MACHINE_NET_MAX + 1]; /* … and the entropy device */
	unsigned virtio_count;
	struct host_disk *disks[MACHINE_DISK_MAX + 1]; /* owned by their virtio devices; here to be drained */
	unsigned disk_count;
	struct vcpu *vcpus[MACHINE_CPU_MAX];
	unsigned vcpu_count;
	struct cpu_model model;
	FILE *trace_file; /* owned unless stderr */
	struct boot_request boot;
	char backend_line[400]; /* machine_backend_line() */
	bool firmware; /* booted through firmware: its ROM is in place, fw_cfg carries the tables */
	char guest_description[300]; /* of the disk that firmware is to start; else empty */
	struct cpu_state initial;

	/* Device lock. */
	struct machine_console_ops console;
	uint64_t resets;

	/* result_lock: the first reason to end. */
	pthread_mutex_t result_lock;
	struct machine_result result;

	_Atomic bool reset_wanted;
	uint64_t started_ns, ended_ns;
};

struct error;

/* devices.c: everything behind the bus. */
int machine_devices_create(struct machine *m, struct error *err);
void machine_devices_reset(struct machine *m);
void machine_devices_destroy(struct machine *m);

/* firmware.c: the ROM that boot_load() has placed gets its surroundings. Once. Destroy before bus and memory. */
int machine_firmware_create(struct machine *m, uint64_t rom_gpa, uint64_t rom_size, struct error *err);
void machine_firmware_destroy(struct machine *m);

/* load.c: the guest into RAM, m->initial for vcpu 0. At the first start and at each reset. */
int machine_boot_choose(struct machine *m, struct error *err);
int machine_boot_load(struct machine *m, struct error *err);

/* guest.c: whether firmware will find something to start; -ENOEXEC and a sentence if not. */
int machine_guest_examine(struct machine *m, struct error *err);
/* Whether GUEST is a disc for a CD drive: an ISO image that the firmware starts by El Torito. */
bool machine_guest_is_cd(const struct machine *m, const struct host_image *image);

/* The software backend's engine, what --engine=auto means decided. */
enum vcpu_engine machine_engine(const struct machine *m);

#endif
