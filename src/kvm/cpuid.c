/*
 * The CPU that the guest sees. `common` is the model of the software backend; what this KVM cannot do is taken from the
 * model (kvm_fit_model), never shown and then refused. `host` is what KVM has, with the topology of the machine.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kvm_vm.h"
#include "vmm/error.h"
#include "vmm/log.h"

#define ENTRIES_MAX 256

/* Where each word of the model stands in CPUID; the register is 0 EAX … 3 EDX. */
static const struct {
	uint32_t leaf, reg;
	const char *name;
	uint32_t ours; /* bits that mean the machine or a fact about it, not what KVM can do */
} words[CPU_WORD_COUNT] = {
	[CPU_WORD_1_ECX] = { 1, 2, "1.ECX", 1u << 31 | 1u << 21 | 1u << 24 },
	[CPU_WORD_1_EDX] = { 1, 3, "1.EDX", 1u << 28 },
	[CPU_WORD_7_EBX] = { 7, 1, "7.EBX", 1u << 6 | 1u << 13 },
	[CPU_WORD_7_ECX] = { 7, 2, "7.ECX", 0 },
	[CPU_WORD_7_EDX] = { 7, 3, "7.EDX", 0 },
	[CPU_WORD_EXT1_ECX] = { 0x80000001, 2, "80000001.ECX", 1u << 1 },
	[CPU_WORD_EXT1_EDX] = { 0x80000001, 3, "80000001.EDX", 0 },
	[CPU_WORD_EXT8_EBX] = { 0x80000008, 1, "80000008.EBX", 0 },
	[CPU_WORD_EXT21_EAX] = { 0x80000021, 0, "80000021.EAX", 0 },
	[CPU_WORD_EXT21_ECX] = { 0x80000021, 2, "80000021.ECX", 0 },
};

static const struct kvm_cpuid_entry2 *find(const struct kvm_cpuid2 *set, uint32_t leaf, uint32_t subleaf)
{
	for (unsigned i = 0; i < set->nent; i++) {
		const struct kvm_cpuid_entry2 *e = &set->entries[i];

		if (e->function == leaf && (!(e->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) || e->index == subleaf))
			return e;
	}
	return NULL;
}

static uint32_t reg_of(const struct kvm_cpuid_entry2 *e, uint32_t reg)
{
	return !e ? 0 : reg == 0 ? e->eax : reg == 1 ? e->ebx : reg == 2 ? e->ecx : e->edx;
}

/* Without XSAVE no AVX, without AVX nothing that is encoded as it is (as in cpu/model.c). */
static void drop_dependents(uint32_t *f)
{
	if (!(f[CPU_WORD_1_ECX] >> 26 & 1))
		f[CPU_WORD_1_ECX] &= ~(1u << 28);
	if (!(f[CPU_WORD_1_ECX] >> 28 & 1)) {
		f[CPU_WORD_1_ECX] &= ~(1u << 12 | 1u << 28 | 1u << 29);
		f[CPU_WORD_7_EBX] &= ~(1u << 3 | 1u << 5 | 1u << 8);
	}
	if (!(f[CPU_WORD_1_ECX] >> 17 & 1)) /* PCID */
		f[CPU_WORD_7_EBX] &= ~(1u << 10);
}

void kvm_fit_model(struct kvm_vm *vm, struct cpu_model *model)
{
	const struct kvm_cpuid_entry2 *e;

	for (unsigned i = 0; i < CPU_WORD_COUNT; i++) {
		uint32_t can = reg_of(find(vm->supported, words[i].leaf, 0), words[i].reg) | words[i].ours;
		uint32_t lost = model->host_features[i] & ~can;

		if (lost)
			log_message(LOG_INFO, "KVM here lacks CPUID bits %#x of %s of the CPU model", lost, words[i].name);
		model->host_features[i] &= can;
	}
	drop_dependents(model->host_features);
	e = find(vm->supported, 0x80000008, 0);
	if (e && (e->eax & 0xff) >= 36 && (e->eax & 0xff) < model->phys_bits)
		model->phys_bits = e->eax & 0xff;
	model->lapic_tick_ns = vm->lapic_tick_ns;
	vm->model = *model;
}

static void add(struct kvm_cpuid2 *set, const struct cpu_model *model, uint32_t leaf, uint32_t subleaf, bool indexed)
{
	struct kvm_cpuid_entry2 *e = &set->entries[set->nent];
	uint32_t r[4];

	if (set->nent == ENTRIES_MAX)
		return;
	cpu_cpuid(model, NULL, leaf, subleaf, r);
	*e = (struct kvm_cpuid_entry2){ .function = leaf, .index = subleaf, .flags = indexed ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0,
		.eax = r[0], .ebx = r[1], .ecx = r[2], .edx = r[3] };
	set->nent++;
}

/* How many subleaves of a leaf the model has; 0: it has no subleaves. */
static unsigned subleaves(uint32_t leaf)
{
	switch (leaf) {
	case 4: return 5;
	case 7: return 1;
	case 0xb: return 3;
	case 0xd: return 3;
	default: return 0;
	}
}

static void add_range(struct kvm_cpuid2 *set, const struct cpu_model *model, uint32_t first)
{
	uint32_t r[4];

	cpu_cpuid(model, NULL, first, 0, r);
	for (uint32_t leaf = first; leaf <= r[0]; leaf++) {
		unsigned count = subleaves(leaf);

		for (unsigned i = 0; i < (count ? count : 1); i++)
			add(set, model, leaf, i, count != 0);
	}
}

static void add_hypervisor(struct kvm_cpuid2 *set, const struct cpu_model *model)
{
	add(set, model, 0x40000000, 0, false);
	add(set, model, 0x40000010, 0, false);
	add(set, model, 0x40000100, 0, false);
	add(set, model, 0x40000101, 0, false);
}

/* All of KVM's, with the numbers and counts of this machine's processors put in. */
static void add_host(struct kvm_vcpu *v, struct kvm_cpuid2 *set)
{
	const struct kvm_cpuid2 *from = v->vm->supported;

	for (unsigned i = 0; i < from->nent && set->nent < ENTRIES_MAX; i++) {
		struct kvm_cpuid_entry2 e = from->entries[i];
		uint32_t ours[4];

		cpu_cpuid(&v->model, NULL, e.function, e.index, ours);
		switch (e.function) {
		case 1:
			e.ebx = (e.ebx & 0xff00) | (ours[1] & ~0xff00u);
			e.ecx |= 1u << 31 | 1u << 24 | 1u << 21;
			e.edx = (e.edx & ~(1u << 28)) | (ours[3] & 1u << 28);
			break;
		case 4:
		case 0xb:
		case 0x1f:
		case 0x8000001d:
		case 0x8000001e:
			continue;
		case 0x80000001:
			e.ecx = (e.ecx & ~(1u << 22 | 1u << 1)) | (ours[2] & 1u << 1); /* no TOPOEXT: its leaves are not there */
			break;
		case 0x80000008:
			e.ecx = (e.ecx & ~0xf0ffu) | (ours[2] & 0xf0ff);
			break;
		case 0x80000002:
		case 0x80000003:
		case 0x80000004:
			e.eax = ours[0], e.ebx = ours[1], e.ecx = ours[2], e.edx = ours[3];
			break;
		default:
			if (e.function >= 0x40000000u && e.function < 0x80000000u)
				continue;
		}
		set->entries[set->nent++] = e;
	}
	for (unsigned i = 0; i < subleaves(4); i++)
		add(set, &v->model, 4, i, true);
	for (unsigned i = 0; i < subleaves(0xb); i++)
		add(set, &v->model, 0xb, i, true);
	if (!find(set, 0x15, 0))
		add(set, &v->model, 0x15, 0, false);
}

/* IA32_ARCH_CAPABILITIES: of what the model says, what is true of this processor. */
static void set_arch_capabilities(struct kvm_vcpu *v)
{
	uint64_t value = 0;

	if (!v->vm->config.host_cpu && !cpu_model_has(&v->model, CPU_FEATURE_ARCH_CAPABILITIES))
		return;
	if (!kvm_msr(v->vm->kvm_fd, KVM_GET_MSRS, MSR_ARCH_CAPABILITIES, &value))
		return;
	if (!v->vm->config.host_cpu)
		value &= cpu_arch_capabilities(&v->model);
	kvm_msr(v->fd, KVM_SET_MSRS, MSR_ARCH_CAPABILITIES, &value);
}

int kvm_set_cpuid(struct kvm_vcpu *v, struct error *err)
{
	struct kvm_cpuid2 *set = calloc(1, sizeof(*set) + ENTRIES_MAX * sizeof(set->entries[0]));
	int rc;

	if (!set)
		return error_set(err, -ENOMEM, "The host is out of memory.");
	if (v->vm->config.host_cpu) {
		add_host(v, set);
	} else {
		add_range(set, &v->model, 0);
		add_range(set, &v->model, 0x80000000u);
	}
	add_hypervisor(set, &v->model);
	rc = kvm_ioctl_ptr(v->fd, KVM_SET_CPUID2, set);
	free(set);
	if (rc)
		return error_set(err, rc, "KVM refuses the CPU model: %s.", strerror(-rc));
	set_arch_capabilities(v);
	return 0;
}
