/* What KVM is on this host. The modules' parameters tell which memory virtualisation is really underneath. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kvm_vm.h"
#include "vmm/kvm_host.h"

/* Without these there is no backend. In the order of their age: the first one that is missing dates the kernel. */
static const struct {
	unsigned cap;
	const char *name;
} needed[] = {
	{ KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY" }, { KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID" },
	{ KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE" }, { KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS" },
	{ KVM_CAP_DEBUGREGS, "KVM_CAP_DEBUGREGS" }, { KVM_CAP_XSAVE, "KVM_CAP_XSAVE" }, { KVM_CAP_XCRS, "KVM_CAP_XCRS" },
	{ KVM_CAP_IRQFD, "KVM_CAP_IRQFD" }, { KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD" },
	{ KVM_CAP_SIGNAL_MSI, "KVM_CAP_SIGNAL_MSI" }, { KVM_CAP_SPLIT_IRQCHIP, "KVM_CAP_SPLIT_IRQCHIP" },
	{ KVM_CAP_IOEVENTFD_ANY_LENGTH, "KVM_CAP_IOEVENTFD_ANY_LENGTH" }, { KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT" },
};

static bool flag_on(const char *path)
{
	FILE *file = fopen(path, "re");
	int c = file ? fgetc(file) : EOF;

	if (file)
		fclose(file);
	return c == 'Y' || c == 'y' || c == '1';
}

bool kvm_host_shadows(void)
{
	if (!access("/sys/module/kvm_pvm", F_OK))
		return true;
	if (!access("/sys/module/kvm_intel/parameters/ept", F_OK))
		return !flag_on("/sys/module/kvm_intel/parameters/ept");
	return !access("/sys/module/kvm_amd/parameters/npt", F_OK) && !flag_on("/sys/module/kvm_amd/parameters/npt");
}

static void detect_module(struct kvm_host_info *info)
{
	const char *module = "", *memory = info->works ? "unknown (no module parameters are visible)" : "none";

	if (!access("/sys/module/kvm_pvm", F_OK)) {
		module = "kvm_pvm";
		memory = "kvm_pvm (shadow paging, no hardware virtualisation)";
		info->pvm = true;
	} else if (!access("/sys/module/kvm_intel", F_OK)) {
		module = "kvm_intel";
		memory = flag_on("/sys/module/kvm_intel/parameters/ept") ? "Intel EPT" : "KVM's shadow paging (kvm_intel, ept=0)";
	} else if (!access("/sys/module/kvm_amd", F_OK)) {
		module = "kvm_amd";
		memory = flag_on("/sys/module/kvm_amd/parameters/npt") ? "AMD NPT" : "KVM's shadow paging (kvm_amd, npt=0)";
	}
	snprintf(info->module, sizeof(info->module), "%s", module);
	snprintf(info->memory, sizeof(info->memory), "%s", memory);
}

/* The group that may open the device, by name where it has one. */
static void explain_permission(struct kvm_host_info *info)
{
	struct stat st;
	struct group group, *found = NULL;
	char buffer[1024];

	if (stat("/dev/kvm", &st) || !(st.st_mode & S_IWGRP) || getgrgid_r(st.st_gid, &group, buffer, sizeof(buffer), &found) ||
		!found)
		snprintf(info->state, sizeof(info->state), "no permission to open /dev/kvm");
	else
		snprintf(info->state, sizeof(info->state),
			"no permission to open /dev/kvm; membership of the group %.40s gives it (usermod -aG %.40s USER, then a new login)",
			group.gr_name, group.gr_name);
}

static void explain_open(struct kvm_host_info *info)
{
	switch (info->error) {
	case ENOENT:
		snprintf(info->state, sizeof(info->state), "there is no /dev/kvm");
		break;
	case ENODEV:
	case ENXIO:
		snprintf(info->state, sizeof(info->state), "no module of KVM is behind /dev/kvm (kvm_intel or kvm_amd)");
		break;
	case EACCES:
	case EPERM:
		explain_permission(info);
		break;
	default:
		snprintf(info->state, sizeof(info->state), "/dev/kvm cannot be opened: %s", strerror(info->error));
	}
}

void kvm_host_missing(int vm, char *text, size_t size)
{
	text[0] = 0;
	for (unsigned i = 0; i < sizeof(needed) / sizeof(needed[0]); i++) {
		size_t length = strlen(text);

		if (ioctl(vm, KVM_CHECK_EXTENSION, needed[i].cap) <= 0)
			snprintf(text + length, size - length, "%s%s", length ? ", " : "", needed[i].name);
	}
}

static void probe_vm(struct kvm_host_info *info, int fd)
{
	int vm;

	info->api = ioctl(fd, KVM_GET_API_VERSION, 0);
	if (info->api != KVM_API_VERSION) {
		snprintf(info->state, sizeof(info->state), "/dev/kvm has API version %d, not %d", info->api, KVM_API_VERSION);
		return;
	}
	vm = ioctl(fd, KVM_CREATE_VM, 0);
	if (vm < 0) {
		info->error = errno;
		snprintf(info->state, sizeof(info->state), "/dev/kvm opens, but no VM can be created: %s", strerror(errno));
		return;
	}
	info->works = true;
	kvm_host_missing(vm, info->missing, sizeof(info->missing));
	close(vm);
	if (info->missing[0])
		snprintf(info->state, sizeof(info->state), "works, but lacks %.150s", info->missing);
	else
		snprintf(info->state, sizeof(info->state), "works, API version %d", info->api);
}

void kvm_host_probe(struct kvm_host_info *info)
{
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	memset(info, 0, sizeof(*info));
	if (fd < 0) {
		info->error = errno;
		explain_open(info);
	} else {
		probe_vm(info, fd);
		close(fd);
	}
	detect_module(info);
	info->able = info->works && !info->pvm && !info->missing[0];
}

void kvm_host_reason(const struct kvm_host_info *info, char *text, size_t size)
{
	if (info->able)
		snprintf(text, size, "KVM works here, memory is virtualised by %s", info->memory);
	else if (info->works && info->pvm)
		snprintf(text, size, "KVM here is kvm_pvm, which has no help of the processor and runs an unmodified kernel badly");
	else if (info->works)
		snprintf(text, size, "KVM here is too old: it lacks %s", info->missing);
	else
		snprintf(text, size, "%s, and the software backend needs nothing of it", info->state);
}
