/*
 * The VM: /dev/kvm and what it must offer, RAM as memory slots over the machine's memfd, and what the machine tells the
 * in-kernel local APICs.
 *
 * The irqchip is split: local APICs in the kernel, PIC, IOAPIC and PIT ours. An interrupt message is a KVM_SIGNAL_MSI.
 * KVM reports the EOI of a vector if its routing table has a level-triggered MSI with that vector on one of the pins that
 * belong to a user-space IOAPIC; so the table holds one such entry, to everybody, for each level-triggered vector, and
 * nothing is ever sent through it.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kvm_vm.h"
#include "vmm/error.h"
#include "vmm/log.h"
#include "vmm/mem.h"

#ifndef KVM_CAP_X86_APIC_BUS_CYCLES_NS
#define KVM_CAP_X86_APIC_BUS_CYCLES_NS 237
#endif

#define TSS_ADDR 0xfeffd000u	 /* three pages that VT-x without "unrestricted guest" needs */
#define IDENTITY_ADDR 0xfeffc000u /* and one more */
#define IOAPIC_ROUTES 24
#define CPUID_ENTRIES 256

int kvm_ioctl(int fd, unsigned long request, unsigned long argument)
{
	int rc;

	do
		rc = ioctl(fd, request, argument);
	while (rc < 0 && errno == EINTR && request != KVM_RUN);
	return rc < 0 ? -errno : rc;
}

bool kvm_msr(int fd, unsigned long request, uint32_t index, uint64_t *value)
{
	union msr_space list;

	memset(&list, 0, sizeof(list));
	list.head.nmsrs = 1;
	list.head.entries[0].index = index;
	list.head.entries[0].data = *value;
	if (kvm_ioctl_ptr(fd, request, &list.head) != 1)
		return false;
	*value = list.head.entries[0].data;
	return true;
}

static void on_kick(int sig)
{
}

/* The signal that makes a vcpu thread leave KVM_RUN: its handler has nothing to do. */
static int install_kick(struct error *err)
{
	struct sigaction action = { .sa_handler = on_kick };

	if (sigaction(SIGRTMIN, &action, NULL))
		return error_set(err, -errno, "The signal that stops vcpus cannot be set up: %s.", strerror(errno));
	return 0;
}

static int open_kvm(struct kvm_vm *vm, struct error *err)
{
	struct kvm_host_info info;
	char missing[200];

	vm->kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (vm->kvm_fd < 0) {
		int rc = -errno;

		kvm_host_probe(&info);
		return error_set(err, rc, "The KVM backend cannot start: %s.", info.state);
	}
	if (kvm_ioctl(vm->kvm_fd, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
		return error_set(err, -ENOTSUP, "The KVM backend cannot start: /dev/kvm has another API version than %d.",
			KVM_API_VERSION);
	vm->vm_fd = kvm_ioctl(vm->kvm_fd, KVM_CREATE_VM, 0);
	if (vm->vm_fd < 0)
		return error_set(err, vm->vm_fd, "KVM cannot create a VM: %s.", strerror(-vm->vm_fd));
	kvm_host_missing(vm->vm_fd, missing, sizeof(missing));
	if (missing[0])
		return error_set(err, -ENOTSUP, "This kernel's KVM is too old for the KVM backend: it lacks %s.", missing);
	return 0;
}

static int check(struct kvm_vm *vm, unsigned cap)
{
	int rc = kvm_ioctl(vm->vm_fd, KVM_CHECK_EXTENSION, cap);

	return rc < 0 ? 0 : rc;
}

static int enable(struct kvm_vm *vm, unsigned cap, uint64_t arg0)
{
	struct kvm_enable_cap enable_cap = { .cap = cap, .args = { arg0 } };

	return check(vm, cap) ? kvm_ioctl_ptr(vm->vm_fd, KVM_ENABLE_CAP, &enable_cap) : -ENOTSUP;
}

static int check_cpus(struct kvm_vm *vm, struct error *err)
{
	int most = check(vm, KVM_CAP_MAX_VCPUS);

	if (!most)
		most = check(vm, KVM_CAP_NR_VCPUS);
	if (most && vm->config.cpus > (unsigned)most)
		return error_set(err, -EINVAL, "This KVM runs at most %d vcpus in a machine; --cpus asks for %u.", most,
			vm->config.cpus);
	return 0;
}

static int setup_vm(struct kvm_vm *vm, struct error *err)
{
	uint64_t identity = IDENTITY_ADDR;
	int rc = check_cpus(vm, err);

	if (rc)
		return rc;
	/* Both fail where there is no such thing, and are not needed there. */
	kvm_ioctl_ptr(vm->vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &identity);
	kvm_ioctl(vm->vm_fd, KVM_SET_TSS_ADDR, TSS_ADDR);
	rc = enable(vm, KVM_CAP_SPLIT_IRQCHIP, IOAPIC_ROUTES);
	if (rc)
		return error_set(err, rc, "KVM refuses local APICs in the kernel (KVM_CAP_SPLIT_IRQCHIP): %s.", strerror(-rc));
	enable(vm, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1);
	vm->has_payload = !enable(vm, KVM_CAP_EXCEPTION_PAYLOAD, 1);
	vm->has_triple_fault = !enable(vm, KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1);
	enable(vm, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_INVAL);
	vm->lapic_tick_ns = enable(vm, KVM_CAP_X86_APIC_BUS_CYCLES_NS, CPU_LAPIC_TICK_NS) ? 1 : CPU_LAPIC_TICK_NS;
	vm->shadows = kvm_host_shadows();
	vm->partial = !access("/sys/module/kvm_pvm", F_OK) && vm->config.helper;
	kvm_dirty_setup(vm);
	vm->has_sregs2 = check(vm, KVM_CAP_SREGS2);
	vm->has_readonly = check(vm, KVM_CAP_READONLY_MEM);
	vm->xsave_size = (uint32_t)check(vm, KVM_CAP_XSAVE2);
	vm->has_xsave2 = vm->xsave_size != 0;
	vm->coalesced_page = check(vm, KVM_CAP_COALESCED_PIO) ? (unsigned)check(vm, KVM_CAP_COALESCED_MMIO) : 0;
	rc = kvm_ioctl(vm->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (rc < 0)
		return error_set(err, rc, "KVM does not say how large a vcpu's run area is: %s.", strerror(-rc));
	vm->run_size = (size_t)rc;
	return 0;
}

static int get_supported(struct kvm_vm *vm, struct error *err)
{
	int rc;

	vm->supported = calloc(1, sizeof(*vm->supported) + CPUID_ENTRIES * sizeof(struct kvm_cpuid_entry2));
	if (!vm->supported)
		return error_set(err, -ENOMEM, "The host is out of memory.");
	vm->supported->nent = CPUID_ENTRIES;
	rc = kvm_ioctl_ptr(vm->kvm_fd, KVM_GET_SUPPORTED_CPUID, vm->supported);
	return rc ? error_set(err, rc, "KVM does not tell which CPU features it has: %s.", strerror(-rc)) : 0;
}

/* --- memory --- */

int kvm_memory_set_slot(struct kvm_vm *vm, unsigned slot, const struct ram_range *range)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot,
		.flags = (range->readonly && vm->has_readonly ? KVM_MEM_READONLY : 0) |
			(vm->logging && !range->readonly && range->size ? KVM_MEM_LOG_DIRTY_PAGES : 0),
		.guest_phys_addr = range->gpa,
		.memory_size = range->size,
		.userspace_addr = (uintptr_t)vm->config.mem->base + range->offset,
	};

	return kvm_ioctl_ptr(vm->vm_fd, KVM_SET_USER_MEMORY_REGION, &region);
}

/* [start, end) of `in`, as seen at `shift` bytes above. */
static void add_part(struct ram_range *out, unsigned *count, struct ram_range r, uint64_t start, uint64_t end, uint64_t shift)
{
	uint64_t from = r.gpa > start ? r.gpa : start, to = r.gpa + r.size < end ? r.gpa + r.size : end;

	if (from >= to)
		return;
	r.offset += from - r.gpa;
	r.gpa = from + shift;
	r.size = to - from;
	out[(*count)++] = r;
}

/*
 * The layout as vcpus see it. KVM knows of no A20 gate; while it is shut, the second MiB, which is all that real mode reaches
 * with the line set, shows what the first does. The other odd MiBs stay as they are.
 */
static void ranges_seen(const struct ram_layout *layout, struct ram_range out[KVM_MEMSLOTS])
{
	const uint64_t mib = 1ull << 20;
	unsigned count = 0;

	memset(out, 0, KVM_MEMSLOTS * sizeof(*out));
	for (unsigned i = 0; i < RAM_RANGE_MAX && layout->ranges[i].size; i++) {
		if (!layout->lines_off) {
			out[count++] = layout->ranges[i];
			continue;
		}
		add_part(out, &count, layout->ranges[i], 0, mib, 0);
		add_part(out, &count, layout->ranges[i], 0, mib, mib);
		add_part(out, &count, layout->ranges[i], 2 * mib, ~0ull, 0);
	}
}

static bool is_in(const struct ram_range *range, const struct ram_range *list)
{
	for (unsigned i = 0; i < KVM_MEMSLOTS; i++)
		if (list[i].size && !memcmp(range, &list[i], sizeof(*range)))
			return true;
	return false;
}

/* Ranges that are no more go first, so that no two slots ever overlap; those that stay keep their slots. */
int kvm_memory_changed(struct kvm_vm *vm, struct error *err)
{
	struct ram_range ranges[KVM_MEMSLOTS];
	int rc = 0;

	ranges_seen(&vm->config.mem->layout, ranges);
	for (unsigned i = 0; i < KVM_MEMSLOTS && !rc; i++) {
		if (!vm->slots[i].size || is_in(&vm->slots[i], ranges))
			continue;
		vm->slots[i].size = 0;
		rc = kvm_memory_set_slot(vm, i, &vm->slots[i]);
	}
	for (unsigned i = 0, slot = 0; i < KVM_MEMSLOTS && ranges[i].size && !rc; i++) {
		if (is_in(&ranges[i], vm->slots))
			continue;
		while (vm->slots[slot].size)
			slot++;
		rc = kvm_memory_set_slot(vm, slot, &ranges[i]);
		vm->slots[slot] = ranges[i];
	}
	return rc ? error_set(err, rc, "KVM refuses the guest's memory: %s.", strerror(-rc)) : 0;
}

int kvm_memory_renew(struct kvm_vm *vm)
{
	int rc = 0;

	for (unsigned i = 0; i < KVM_MEMSLOTS && !rc; i++) {
		struct ram_range none = vm->slots[i];

		if (!none.size)
			continue;
		none.size = 0;
		rc = kvm_memory_set_slot(vm, i, &none);
		if (!rc)
			rc = kvm_memory_set_slot(vm, i, &vm->slots[i]);
	}
	return rc;
}

/* Also the helpers', whose hook was there before. */
static void layout_changed(void *ctx)
{
	struct kvm_vm *vm = ctx;
	struct error err = { 0 };

	if (vm->next_layout_changed)
		vm->next_layout_changed(vm->next_layout_ctx);
	if (kvm_memory_changed(vm, &err))
		log_message(LOG_ERROR, "%s", err.message);
}

static void hook_layout(struct kvm_vm *vm)
{
	struct guest_mem *mem = vm->config.mem;

	vm->next_layout_changed = mem->layout_changed;
	vm->next_layout_ctx = mem->layout_ctx;
	mem->layout_changed = layout_changed;
	mem->layout_ctx = vm;
}

/* --- interrupts --- */

/*
 * An MSI (SDM vol. 3, 11.11): address 31:20 0xfee | 19:12 destination | 3 redirection hint | 2 logical,
 * data 15 level | 14 assert | 10:8 delivery mode | 7:0 vector.
 */
static void signal_msi(struct kvm_vm *vm, uint32_t dest, bool logical, uint8_t mode, uint8_t vector, bool level)
{
	struct kvm_msi msi = {
		.address_lo = (uint32_t)GPA_LAPIC | (dest & 0xff) << 12 | (uint32_t)logical << 2,
		.address_hi = dest & ~0xffu,
		.data = (uint32_t)level << 15 | 1u << 14 | (uint32_t)(mode & 7) << 8 | vector,
	};

	kvm_ioctl_ptr(vm->vm_fd, KVM_SIGNAL_MSI, &msi);
}

void kvm_deliver(struct kvm_vm *vm, uint32_t dest, bool logical, uint8_t mode, uint8_t vector, bool level)
{
	struct kvm_vcpu *v = vm->vcpus[0];

	pthread_mutex_lock(&vm->lock);
	if (v && v->away && v->takes_messages) { /* it is the only one */
		vm->config.helper_deliver(vm->config.ctx, dest, logical, mode, vector, level);
	} else {
		signal_msi(vm, dest, logical, mode, vector, level);
		for (unsigned i = 0; i < vm->vcpu_count; i++)
			if (vm->vcpus[i] && vm->vcpus[i]->away)
				vm->vcpus[i]->helper_ops->kick(vm->vcpus[i]->helper);
	}
	pthread_mutex_unlock(&vm->lock);
}

/* From a helper: the kernel's local APICs do not see its writes to the ICR. Shorthands become single messages. */
void kvm_ipi(struct kvm_vm *vm, unsigned from, uint32_t dest, uint32_t icr_low)
{
	uint8_t mode = icr_low >> 8 & 7, vector = icr_low & 0xff;
	unsigned shorthand = icr_low >> 18 & 3;
	bool level = icr_low >> 15 & 1;

	if (mode == 5 && level && !(icr_low >> 14 & 1))
		return; /* INIT level de-assert: a relic */
	level = level && mode <= 1;
	if (shorthand == 0) {
		kvm_deliver(vm, dest, icr_low >> 11 & 1, mode, vector, level);
		return;
	}
	for (unsigned i = 0; i < vm->vcpu_count; i++)
		if (shorthand == 1 ? i == from : shorthand == 2 || i != from)
			kvm_deliver(vm, i, false, mode, vector, level);
}

void kvm_set_eoi_exit(struct kvm_vm *vm, const uint64_t bitmap[4])
{
	union {
		struct kvm_irq_routing head;
		uint8_t space[sizeof(struct kvm_irq_routing) + IOAPIC_ROUTES * sizeof(struct kvm_irq_routing_entry)];
	} table;
	unsigned count = 0;

	memset(&table, 0, sizeof(table));
	for (unsigned vector = 0; vector < 256 && count < IOAPIC_ROUTES; vector++) {
		if (!(bitmap[vector / 64] >> (vector % 64) & 1))
			continue;
		table.head.entries[count] = (struct kvm_irq_routing_entry){ .gsi = count, .type = KVM_IRQ_ROUTING_MSI };
		table.head.entries[count].u.msi.address_lo = (uint32_t)GPA_LAPIC | 0xffu << 12;
		table.head.entries[count].u.msi.data = 1u << 15 | 1u << 14 | vector;
		count++;
	}
	table.head.nr = count;
	kvm_ioctl_ptr(vm->vm_fd, KVM_SET_GSI_ROUTING, &table.head);
}

void kvm_set_extint(struct kvm_vm *vm, bool level)
{
	struct kvm_vcpu *v = vm->vcpus[0];

	atomic_store(&vm->extint, level);
	if (level && v)
		kvm_poke(v);
}

/* --- doorbells and ports --- */

static int ioeventfd(struct kvm_vm *vm, int fd, uint64_t gpa, uint32_t size, bool remove)
{
	struct kvm_ioeventfd event = { .addr = gpa, .len = size, .fd = fd, .flags = remove ? KVM_IOEVENTFD_FLAG_DEASSIGN : 0 };

	return kvm_ioctl_ptr(vm->vm_fd, KVM_IOEVENTFD, &event);
}

int kvm_set_notify(struct kvm_vm *vm, int eventfd, uint64_t gpa, uint32_t size)
{
	struct kvm_notify *n = vm->notify;
	int rc = 0;

	pthread_mutex_lock(&vm->lock);
	while (n < vm->notify + vm->notify_count && n->eventfd != eventfd)
		n++;
	if (n == vm->notify + KVM_NOTIFY_MAX) {
		pthread_mutex_unlock(&vm->lock);
		return -ENOSPC;
	}
	if (n == vm->notify + vm->notify_count) {
		vm->notify_count++;
		*n = (struct kvm_notify){ .eventfd = eventfd };
	}
	if (n->gpa != gpa) {
		if (n->gpa)
			ioeventfd(vm, eventfd, n->gpa, size, true);
		n->gpa = 0;
		rc = gpa ? ioeventfd(vm, eventfd, gpa, size, false) : 0;
		if (!rc)
			n->gpa = gpa;
	}
	pthread_mutex_unlock(&vm->lock);
	return rc;
}

static void register_posted(struct kvm_vm *vm, uint16_t port)
{
	struct kvm_coalesced_mmio_zone zone = { .addr = port, .size = 4, .pio = 1 };

	kvm_ioctl_ptr(vm->vm_fd, KVM_REGISTER_COALESCED_MMIO, &zone);
}

/*
 * Not before the first vcpu: with Linux 6.18 the next change of a memory slot after this takes 4 to 12 ms instead of 0.03, and
 * the last ones before the guest starts, the firmware's, are made until then.
 */
void kvm_set_posted_pio(struct kvm_vm *vm, uint16_t port)
{
	if (!vm->coalesced_page)
		return;
	if (vm->vcpu_count)
		register_posted(vm, port);
	else if (vm->posted_count < KVM_POSTED_MAX)
		vm->posted[vm->posted_count++] = port;
}

void kvm_register_posted(struct kvm_vm *vm)
{
	for (unsigned i = 0; i < vm->posted_count; i++)
		register_posted(vm, vm->posted[i]);
	vm->posted_count = 0;
}

/* --- life --- */

uint64_t kvm_tsc_khz(struct kvm_vm *vm)
{
	return vm->tsc_khz;
}

int kvm_vm_create(const struct kvm_config *config, struct kvm_vm **out, struct error *err)
{
	struct kvm_vm *vm = calloc(1, sizeof(*vm));
	int rc;

	if (!vm)
		return error_set(err, -ENOMEM, "The host is out of memory.");
	vm->config = *config;
	vm->kvm_fd = vm->vm_fd = -1;
	pthread_mutex_init(&vm->lock, NULL);
	pthread_mutex_init(&vm->move_lock, NULL);
	pthread_rwlock_init(&vm->run_lock, NULL);
	rc = install_kick(err);
	if (!rc)
		rc = open_kvm(vm, err);
	if (!rc)
		rc = setup_vm(vm, err);
	if (!rc)
		rc = get_supported(vm, err);
	if (!rc)
		rc = kvm_memory_changed(vm, err);
	if (rc) {
		kvm_vm_destroy(vm);
		return rc;
	}
	/* Of the VM where it has one, else of any vcpu: asked again when the first one is created. */
	rc = kvm_ioctl(vm->vm_fd, KVM_GET_TSC_KHZ, 0);
	vm->tsc_khz = rc > 0 ? (uint64_t)rc : 0;
	hook_layout(vm);
	kvm_dirty_offer(vm);
	*out = vm;
	return 0;
}

void kvm_vm_destroy(struct kvm_vm *vm)
{
	if (!vm)
		return;
	if (vm->config.mem->layout_ctx == vm) {
		vm->config.mem->layout_changed = vm->next_layout_changed;
		vm->config.mem->layout_ctx = vm->next_layout_ctx;
		memset(&vm->config.mem->dirty_source, 0, sizeof(vm->config.mem->dirty_source));
	}
	free(vm->gathered);
	if (vm->vm_fd >= 0)
		close(vm->vm_fd);
	if (vm->kvm_fd >= 0)
		close(vm->kvm_fd);
	free(vm->supported);
	pthread_mutex_destroy(&vm->lock);
	free(vm);
}

void kvm_vm_reset(struct kvm_vm *vm)
{
	atomic_store(&vm->extint, false);
	for (unsigned i = 0; i < vm->vcpu_count; i++) {
		struct kvm_vcpu *v = vm->vcpus[i];
		struct lapic_state lapic;

		if (!v)
			continue;
		v->expect = EXPECT_NOTHING;
		v->extint_vector = -1;
		cpu_lapic_reset(&lapic, i, i == 0);
		v->helper_lapic = lapic;
		kvm_lapic_set(v, &lapic);
	}
}

const struct kvm_stats *kvm_vcpu_stats(struct kvm_vm *vm, unsigned index)
{
	struct kvm_vcpu *v = index < VCPU_MAX ? vm->vcpus[index] : NULL;

	return v ? &v->stats : NULL;
}
