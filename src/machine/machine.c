/*
 * A machine's life: assembly in plain visible order, the run with its resets, the end.
 *
 * Threads: machine_run() is the event loop; each vcpu has a thread of its own. Whoever finds a reason to end latches it
 * with machine_stop(); the first one stays. A reset is carried out by machine_run() between two runs of the loop, with
 * all vcpus stopped and the device lock free (a vcpu thread may need it in order to stop).
 *
 * Locks: device_lock, then result_lock.
 */
#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "machine_internal.h"
#include "vmm/bus.h"
#include "vmm/dev_serial.h"
#include "vmm/error.h"
#include "vmm/event.h"
#include "vmm/irqchip.h"
#include "vmm/kvm.h"
#include "vmm/log.h"
#include "vmm/mem.h"
#include "vmm/soft.h"
#include "vmm/vcpu.h"

#define WORKERS 2

static int host_intack(void *ctx)
{
	struct machine *m = ctx;
	int vector;

	pthread_mutex_lock(&m->device_lock);
	vector = irqchip_intack(m->irqchip);
	pthread_mutex_unlock(&m->device_lock);
	return vector;
}

static void host_eoi(void *ctx, uint8_t vector)
{
	struct machine *m = ctx;

	pthread_mutex_lock(&m->device_lock);
	irqchip_eoi(m->irqchip, vector);
	pthread_mutex_unlock(&m->device_lock);
}

static void host_ipi(void *ctx, unsigned from, uint32_t dest, uint32_t icr_low)
{
	struct machine *m = ctx;

	if (m->kvm)
		kvm_ipi(m->kvm, from, dest, icr_low);
	else
		soft_ipi(m->soft, from, dest, icr_low);
}

static bool triple_fault_resets(const struct machine *m)
{
	if (m->config->on_triple_fault == MACHINE_TRIPLE_AUTO)
		return m->firmware;
	return m->config->on_triple_fault == MACHINE_TRIPLE_RESET;
}

/* A PC's processor stops, and the board resets the machine. Some guests reboot so; it may be a crash as well. */
static void triple_fault_reset(struct machine *m, unsigned index, const char *cause)
{
	log_message(LOG_WARNING, "A triple fault on vcpu %u resets the machine: %.300s.", index, cause);
	if (m->config->on_reboot == MACHINE_REBOOT_EXIT) {
		machine_stop(m, MACHINE_REBOOTED, 0, "%s", "");
		return;
	}
	atomic_store(&m->reset_wanted, true);
	event_loop_stop(m->loop);
}

static void host_stopped(void *ctx, unsigned index, const struct vcpu_exit *exit, const struct cpu_state *state)
{
	struct machine *m = ctx;
	char registers[2400] = "", cause[sizeof(exit->text) + 1];

	memcpy(cause, exit->text, sizeof(exit->text));
	cause[sizeof(exit->text)] = 0;
	if (exit->kind == VCPU_EXIT_SHUTDOWN && triple_fault_resets(m)) {
		triple_fault_reset(m, index, cause[0] ? cause : "no cause known");
		return;
	}
	if (state)
		cpu_format(state, registers, sizeof(registers));
	pthread_mutex_lock(&m->result_lock);
	if (m->result.reason == MACHINE_RUNNING)
		snprintf(m->result.details, sizeof(m->result.details), "%s", registers);
	pthread_mutex_unlock(&m->result_lock);
	if (exit->kind == VCPU_EXIT_SHUTDOWN)
		machine_stop(m, MACHINE_GUEST_CRASH, 0, "The guest crashed on vcpu %u: %.300s.", index,
			cause[0] ? cause : "triple fault");
	else if (exit->kind == VCPU_EXIT_DIED)
		machine_stop(m, MACHINE_INTERNAL_ERROR, 0, "The process of vcpu %u died: %.300s.", index, cause);
	else
		machine_stop(m, MACHINE_INTERNAL_ERROR, 0, "%s vcpu %u cannot go on: %.300s.",
			m->kvm ? "KVM's" : "The software CPU of", index, cause);
}

void machine_stop(struct machine *m, enum machine_reason reason, int status, const char *format, ...)
{
	va_list args;

	pthread_mutex_lock(&m->result_lock);
	if (m->result.reason == MACHINE_RUNNING) {
		m->result.reason = reason;
		m->result.status = status;
		va_start(args, format);
		vsnprintf(m->result.sentence, sizeof(m->result.sentence), format, args);
		va_end(args);
	}
	pthread_mutex_unlock(&m->result_lock);
	event_loop_stop(m->loop);
}

static void trace_access(void *ctx, enum bus_space space, const char *region, uint64_t addr, unsigned size, bool is_write,
	uint64_t value)
{
	struct machine *m = ctx;
	bool pio = space == BUS_PIO;

	if (!(m->config->trace & (pio ? MACHINE_TRACE_PIO : MACHINE_TRACE_MMIO)))
		return;
	fprintf(m->trace_file, "%llu.%06llu %s %s %#llx size %u %s %#llx\n",
		(unsigned long long)((event_now() - m->started_ns) / 1000000000u),
		(unsigned long long)((event_now() - m->started_ns) / 1000 % 1000000u), pio ? "pio" : "mmio",
		region ? region : "-", (unsigned long long)addr, size, is_write ? "write" : "read", (unsigned long long)value);
}

static int trace_open(struct machine *m, struct error *err)
{
	if (!m->config->trace)
		return 0;
	m->trace_file = m->config->trace_path ? fopen(m->config->trace_path, "we") : stderr;
	if (!m->trace_file)
		return error_set(err, -errno, "%.300s cannot be written: %s.", m->config->trace_path, strerror(errno));
	bus_set_observer(m->bus, trace_access, m);
	return 0;
}

static int firmware_log_open(struct machine *m, struct error *err)
{
	const char *path = m->config->firmware_log;

	if (!path)
		return 0;
	m->firmware_log = fopen(path, "we");
	return m->firmware_log ? 0 : error_set(err, -errno, "%.300s cannot be written: %s.", path, strerror(errno));
}

/* KVM, if it was asked for or if it is there and good for an unmodified guest. */
static int backend_choose(struct machine *m, bool *kvm, struct error *err)
{
	const struct machine_config *config = m->config;
	struct kvm_host_info info;
	char reason[300];

	*kvm = config->backend == MACHINE_BACKEND_KVM;
	if (config->backend == MACHINE_BACKEND_AUTO) {
		kvm_host_probe(&info);
		*kvm = info.able;
		kvm_host_reason(&info, reason, sizeof(reason));
		snprintf(m->backend_line, sizeof(m->backend_line), "%s backend: %s.", info.able ? "KVM" : "Software", reason);
	}
	if (!*kvm && config->cpus != 1)
		return error_set(err, -ENOTSUP, "The software backend runs one vcpu in this version; use --cpus 1.");
	if (!*kvm && config->cpu_host)
		return error_set(err, -ENOTSUP, "--cpu host needs KVM; the software backend has --cpu common.");
	if (!*kvm && config->hugepages)
		return error_set(err, -ENOTSUP, "--hugepages needs KVM in this version.");
	return 0;
}

static enum vcpu_shadow shadow_of(enum machine_shadow shadow)
{
	return shadow == MACHINE_SHADOW_VTLB ? VCPU_SHADOW_VTLB : VCPU_SHADOW_UNSYNC;
}

enum vcpu_engine machine_engine(const struct machine *m)
{
	/* The translator needs PEXT, and pages of 4 KiB to map. The software CPU that helps KVM runs a little at a time. */
	if (m->config->hugepages)
		return VCPU_ENGINE_INTERP;
	switch (m->config->engine) {
	case MACHINE_ENGINE_AUTO:
		return m->kvm || !__builtin_cpu_supports("bmi2") ? VCPU_ENGINE_INTERP : VCPU_ENGINE_TRANSLATE;
	case MACHINE_ENGINE_TRANSLATE:
		return VCPU_ENGINE_TRANSLATE;
	case MACHINE_ENGINE_SLOTS:
		return VCPU_ENGINE_SLOTS;
	case MACHINE_ENGINE_LOCKSTEP:
		return VCPU_ENGINE_LOCKSTEP;
	default:
		return VCPU_ENGINE_INTERP;
	}
}

struct helper_request {
	struct machine *m;
	unsigned index;
	struct error *err;
	int rc;
	sem_t done;
};

static void helper_create_work(void *ctx)
{
	struct helper_request *r = ctx;
	struct machine *m = r->m;
	struct cpu_model model = m->model;

	model.apic_id = r->index;
	pthread_mutex_lock(&m->device_lock);
	r->rc = soft_vcpu_create(m->soft, r->index, &model, machine_engine(m), shadow_of(m->config->shadow),
		0, &m->helpers[r->index], r->err);
	pthread_mutex_unlock(&m->device_lock);
	sem_post(&r->done);
}

static void helper_create_done(void *ctx)
{
}

/*
 * A vcpu process dies with the thread that has started it (PR_SET_PDEATHSIG), and the vcpu thread that wants a helper ends at
 * each reset. So a worker starts it, who lives as long as the machine.
 */
static int helper_create(void *ctx, unsigned index, const struct vcpu_backend **ops, void **self, struct error *err)
{
	struct machine *m = ctx;
	struct helper_request r = {.m = m, .index = index, .err = err};
	int rc;

	sem_init(&r.done, 0, 0);
	rc = worker_pool_submit(m->pool, helper_create_work, helper_create_done, &r);
	if (rc)
		return error_set(err, rc, "The host is out of memory.");
	while (sem_wait(&r.done))
		;
	sem_destroy(&r.done);
	*ops = &soft_vcpu_ops;
	*self = m->helpers[index];
	return r.rc;
}

static void helper_deliver(void *ctx, uint32_t dest, bool logical, uint8_t delivery_mode, uint8_t vector, bool level)
{
	struct machine *m = ctx;

	soft_deliver(m->soft, dest, logical, delivery_mode, vector, level);
}

static int backend_create(struct machine *m, struct error *err)
{
	const struct kvm_config config = {.mem = m->mem, .cpus = m->config->cpus, .host_cpu = m->config->cpu_host,
		.helper = helper_create, .helper_deliver = helper_deliver, .ctx = m,
		.move_every = m->config->move_every, .move_length = m->config->move_length};
	bool kvm;
	int rc = backend_choose(m, &kvm, err);

	if (!rc)
		rc = soft_vm_create(m->mem, m->loop, NULL, &m->soft, err);
	return rc || !kvm ? rc : kvm_vm_create(&config, &m->kvm, err);
}

static int vcpus_create(struct machine *m, struct error *err)
{
	const struct vcpu_host host = {
		.bus = m->bus, .intack = host_intack, .eoi = host_eoi, .ipi = host_ipi, .stopped = host_stopped, .ctx = m};
	const struct vcpu_backend *ops = m->kvm ? &kvm_vcpu_ops : &soft_vcpu_ops;
	enum vcpu_engine engine = machine_engine(m);
	int rc = cpu_model_create_at(m->config->smap ? "common,+smap" : "common", m->config->cpus,
		m->kvm ? kvm_tsc_khz(m->kvm) : 0, &m->model, err);

	if (!rc && m->kvm)
		kvm_fit_model(m->kvm, &m->model);
	for (unsigned i = 0; i < m->config->cpus && !rc; i++) {
		struct cpu_model model = m->model;
		void *self;

		model.apic_id = i;
		if (m->kvm)
			rc = kvm_vcpu_create(m->kvm, i, &model, &self, err);
		else
			rc = soft_vcpu_create(m->soft, i, &model, engine, shadow_of(m->config->shadow), 0, &self, err);
		if (rc)
			break;
		rc = vcpu_create(i, ops, self, &host, &m->vcpus[i], err);
		if (rc) {
			ops->destroy(self);
			break;
		}
		m->vcpu_count++;
		if (m->config->pin_count)
			rc = vcpu_pin(m->vcpus[i], m->config->pin[i % m->config->pin_count], err);
	}
	return rc;
}

static void vcpus_set_initial(struct machine *m)
{
	struct cpu_state waiting;

	cpu_reset(&waiting, false);
	if (m->kvm)
		kvm_vm_reset(m->kvm);
	for (unsigned i = 0; i < m->vcpu_count; i++)
		vcpu_set_state(m->vcpus[i], i ? &waiting : &m->initial);
}

int machine_create(const struct machine_config *config, struct machine **machine, struct error *err)
{
	struct machine *m = calloc(1, sizeof(*m));
	int rc;

	*machine = NULL;
	if (!m)
		return error_set(err, -ENOMEM, "The host is out of memory.");
	m->config = config;
	pthread_mutex_init(&m->device_lock, NULL);
	pthread_mutex_init(&m->result_lock, NULL);

	rc = event_loop_create(&m->device_lock, &m->loop, err);
	if (!rc)
		rc = worker_pool_create(m->loop, WORKERS, &m->pool, err);
	if (!rc)
		rc = machine_boot_choose(m, err);
	if (!rc)
		rc = firmware_log_open(m, err);
	if (!rc)
		rc = mem_create_huge(config->memory, config->hugepages, &m->mem, err);
	if (!rc && (config->prealloc || config->hugepages)) /* a huge page that is missing later would be a SIGBUS */
		rc = mem_prealloc(m->mem, err);
	if (!rc)
		rc = bus_create(&m->device_lock, &m->bus, err);
	if (!rc)
		rc = backend_create(m, err);
	if (!rc) {
		pthread_mutex_lock(&m->device_lock);
		rc = machine_devices_create(m, err);
		if (!rc)
			rc = machine_boot_load(m, err);
		pthread_mutex_unlock(&m->device_lock);
	}
	if (!rc)
		rc = trace_open(m, err);
	if (!rc)
		rc = vcpus_create(m, err);
	if (rc) {
		machine_destroy(m);
		return rc;
	}
	vcpus_set_initial(m);
	*machine = m;
	return 0;
}

void machine_destroy(struct machine *m)
{
	if (!m)
		return;
	for (unsigned i = 0; i < m->vcpu_count; i++)
		vcpu_destroy(m->vcpus[i]);
	for (unsigned i = 0; i < MACHINE_CPU_MAX; i++)
		if (m->helpers[i])
			soft_vcpu_ops.destroy(m->helpers[i]);
	if (m->loop) {
		pthread_mutex_lock(&m->device_lock);
		machine_devices_destroy(m);
		pthread_mutex_unlock(&m->device_lock);
	}
	if (m->kvm)
		kvm_vm_destroy(m->kvm);
	if (m->soft)
		soft_vm_destroy(m->soft);
	if (m->bus)
		bus_destroy(m->bus);
	if (m->mem)
		mem_destroy(m->mem);
	if (m->pool)
		worker_pool_destroy(m->pool);
	if (m->loop)
		event_loop_destroy(m->loop);
	if (m->firmware_log)
		fclose(m->firmware_log);
	if (m->trace_file && m->trace_file != stderr)
		fclose(m->trace_file);
	pthread_mutex_destroy(&m->result_lock);
	pthread_mutex_destroy(&m->device_lock);
	free(m);
}

/* Vcpus stopped, device lock not held. RAM goes back to zero by giving its pages back; ROM lies behind it in the file. */
static int machine_reset(struct machine *m, struct error *err)
{
	int rc = 0;

	log_message(LOG_INFO, "the guest has reset the machine: it starts anew");
	pthread_mutex_lock(&m->device_lock);
	m->resets++;
	machine_devices_reset(m);
	if (fallocate(m->mem->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)m->mem->size))
		rc = error_set(err, -errno, "Guest RAM cannot be cleared for a reset: %s.", strerror(errno));
	soft_vm_reset(m->soft);
	if (!rc && (m->config->prealloc || m->config->hugepages))
		rc = mem_prealloc(m->mem, err);
	if (!rc)
		rc = machine_boot_load(m, err);
	pthread_mutex_unlock(&m->device_lock);
	if (!rc)
		vcpus_set_initial(m);
	return rc;
}

static bool machine_ended(struct machine *m)
{
	bool ended;

	pthread_mutex_lock(&m->result_lock);
	ended = m->result.reason != MACHINE_RUNNING;
	pthread_mutex_unlock(&m->result_lock);
	return ended;
}

/* Where everybody stood at the end. Vcpus stopped. */
static void log_registers(struct machine *m)
{
	struct cpu_state state;

	for (unsigned i = 0; i < m->vcpu_count; i++) {
		vcpu_get_state(m->vcpus[i], &state);
		log_message(LOG_DEBUG, "vcpu %u at the end: RIP %#llx RFLAGS %#llx CR0 %#llx CR3 %#llx CS %#x activity %u", i,
			(unsigned long long)state.gpr[GPR_RIP], (unsigned long long)state.rflags, (unsigned long long)state.cr0,
			(unsigned long long)state.cr3, state.seg[SEG_CS].selector, state.activity);
	}
}

int machine_run(struct machine *m, struct machine_result *result, struct error *err)
{
	int rc = 0;

	m->started_ns = event_now();
	for (;;) {
		for (unsigned i = 0; i < m->vcpu_count && !rc; i++)
			rc = vcpu_start(m->vcpus[i], err);
		while (!rc && !machine_ended(m) && !atomic_load(&m->reset_wanted))
			event_loop_run(m->loop);
		for (unsigned i = 0; i < m->vcpu_count; i++)
			vcpu_stop(m->vcpus[i]);
		if (rc || machine_ended(m))
			break;
		atomic_store(&m->reset_wanted, false);
		rc = machine_reset(m, err);
		if (rc)
			break;
	}
	m->ended_ns = event_now();
	log_registers(m);
	*result = m->result;
	return rc;
}

const char *machine_backend_line(const struct machine *m)
{
	return m->backend_line;
}

struct event_loop *machine_loop(struct machine *m)
{
	return m->loop;
}

void machine_console_connect(struct machine *m, const struct machine_console_ops *ops)
{
	m->console = *ops;
}

size_t machine_console_input(struct machine *m, const uint8_t *data, size_t length)
{
	return serial_input(m->serial[0], data, length);
}
