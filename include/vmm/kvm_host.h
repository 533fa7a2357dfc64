/* What KVM is on this host: asked of /dev/kvm and its modules, never assumed. */
#ifndef VMM_KVM_HOST_H
#define VMM_KVM_HOST_H

#include <stdbool.h>
#include <stddef.h>

struct kvm_host_info {
	bool works;	     /* a VM can be created */
	bool able;	     /* … and an unmodified kernel runs well in it: not kvm_pvm, nothing needed is missing */
	bool pvm;
	int error;	     /* why it does not work: errno of open() or of the failing call; 0 */
	int api;	     /* KVM_GET_API_VERSION */
	char module[32];     /* kvm_intel, kvm_amd, kvm_pvm; empty: cannot be seen */
	char state[200];     /* of /dev/kvm, for a person: "works, API version 12", or why not and what to do */
	char memory[120];    /* the memory virtualisation really underneath: "Intel EPT", … */
	char missing[200];   /* capabilities that this program needs and KVM has not, by name; empty: none */
};

void kvm_host_probe(struct kvm_host_info *info);
/* The guest's page tables are shadowed by KVM, which must see each write to them. */
bool kvm_host_shadows(void);

/* Why --backend=auto takes KVM (if info->able) or does not: part of a sentence, into text. */
void kvm_host_reason(const struct kvm_host_info *info, char *text, size_t size);

#endif
