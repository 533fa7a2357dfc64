/* --stats: the counters of a machine that has ended, as one JSON object. */
#include <errno.h>
#include <string.h>

#include "machine_internal.h"
#include "vmm/bus.h"
#include "vmm/error.h"
#include "vmm/kvm.h"
#include "vmm/soft.h"
#include "vmm/stats.h"
#include "vmm/vcpu.h"

static const char *const exit_names[VCPU_EXIT_KINDS] = {
	[VCPU_EXIT_NONE] = "none", [VCPU_EXIT_PIO] = "pio", [VCPU_EXIT_MMIO] = "mmio", [VCPU_EXIT_INTACK] = "intack",
	[VCPU_EXIT_EOI] = "eoi", [VCPU_EXIT_IPI] = "ipi", [VCPU_EXIT_KICKED] = "kicked",
	[VCPU_EXIT_SHUTDOWN] = "shutdown", [VCPU_EXIT_ERROR] = "error", [VCPU_EXIT_DIED] = "died",
	[VCPU_EXIT_DEBUG] = "debug",
};

static const char *const engine_names[] = {
	[VCPU_ENGINE_INTERP] = "interp", [VCPU_ENGINE_TRANSLATE] = "translate", [VCPU_ENGINE_SLOTS] = "slots",
	[VCPU_ENGINE_LOCKSTEP] = "lockstep",
};

static const char *reason_name(enum machine_reason reason)
{
	switch (reason) {
	case MACHINE_RUNNING: break;
	case MACHINE_POWEROFF: return "poweroff";
	case MACHINE_REBOOTED: return "reboot";
	case MACHINE_DEBUG_EXIT: return "debug-exit";
	case MACHINE_GUEST_CRASH: return "guest-crash";
	case MACHINE_USER_STOP: return "stopped";
	case MACHINE_INTERNAL_ERROR: return "internal-error";
	}
	return "none";
}

static void write_vcpu(struct machine *m, unsigned index, struct json_writer *w)
{
	const struct engine_stats *stats = soft_vcpu_stats(m->soft, index); /* KVM: of the helper, if there was one */
	const struct kvm_stats *kvm = m->kvm ? kvm_vcpu_stats(m->kvm, index) : NULL;
	const uint64_t *exits = vcpu_exit_counts(m->vcpus[index]);

	json_begin_object(w);
	json_key(w, "exits");
	json_begin_object(w);
	for (unsigned i = 1; i < VCPU_EXIT_KINDS; i++)
		json_member_u64(w, exit_names[i], exits[i]);
	json_end_object(w);
	if (kvm) {
		json_key(w, "kvm");
		json_begin_object(w);
#define X(name, text) json_member_u64(w, #name, kvm->name);
		KVM_STATS(X)
#undef X
		json_end_object(w);
	}
	if (stats) {
		json_key(w, "engine");
		json_begin_object(w);
#define X(name, text) json_member_u64(w, #name, stats->name);
		ENGINE_STATS(X)
#undef X
		json_end_object(w);
	}
	json_end_object(w);
}

int machine_write_stats(struct machine *m, const struct machine_result *result, const char *path, struct error *err)
{
	const struct bus_stats *bus = bus_stats(m->bus);
	FILE *file = fopen(path, "we");
	struct json_writer w;
	int rc;

	if (!file)
		return error_set(err, -errno, "%.300s cannot be written: %s.", path, strerror(errno));
	json_init(&w, file);
	json_begin_object(&w);
	json_member_string(&w, "version", VMM_VERSION);
	json_member_string(&w, "backend", m->kvm ? "kvm" : "soft");
	if (m->kvm) {
		struct kvm_host_info info;

		kvm_host_probe(&info);
		json_member_string(&w, "module", info.module);
		json_member_string(&w, "memory_virtualisation", info.memory);
	} else {
		json_member_string(&w, "engine", engine_names[machine_engine(m)]);
	}
	json_member_string(&w, "end", reason_name(result->reason));
	json_key(&w, "seconds");
	json_double(&w, (double)(m->ended_ns - m->started_ns) / 1e9);
	json_member_u64(&w, "resets", m->resets);
	json_key(&w, "bus");
	json_begin_object(&w);
	json_member_u64(&w, "pio_reads", bus->pio_reads);
	json_member_u64(&w, "pio_writes", bus->pio_writes);
	json_member_u64(&w, "mmio_reads", bus->mmio_reads);
	json_member_u64(&w, "mmio_writes", bus->mmio_writes);
	json_member_u64(&w, "unclaimed", bus->unclaimed);
	json_end_object(&w);
	json_key(&w, "vcpus");
	json_begin_array(&w);
	for (unsigned i = 0; i < m->vcpu_count; i++)
		write_vcpu(m, i, &w);
	json_end_array(&w);
	json_end_object(&w);
	rc = json_finish(&w);
	if (fclose(file) && !rc)
		rc = -EIO;
	return rc ? error_set(err, rc, "%.300s could not be written completely.", path) : 0;
}
