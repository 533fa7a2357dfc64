/*
 * A KVM that cannot do all: kvm_pvm runs the guest in ring 3 of address spaces of its own, without help from the processor. That
 * suits a 64-bit kernel in the upper half; other code it interprets, slowly and not always rightly (INT n in ring 3 of a small
 * guest arrives as #GP or #UD). And a kernel that does not know of it makes it interpret a lot, too.
 *
 * So code that does not suit runs on the software CPU, by stints; and while KVM runs, it is looked at a hundred times a second:
 * if it has interpreted more than a few instructions since (KVM counts them), a stint of the software CPU follows.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "kvm_vm.h"

#define TICK_NS 10000000l
#define INTERPRETED_MOST 500 /* in a tick */
#define STINT_LEAST 2000000  /* instructions; twice as many each time that KVM is found interpreting again */
#define STINT_MOST 64000000

bool kvm_partial_suits(const struct kvm_vcpu *v, const struct cpu_state *s)
{
	return !v->vm->partial || s->activity == CPU_WAIT_SIPI ||
		(s->activity == CPU_HALTED && v->vm->config.cpus > 1) || /* sleeps in the kernel, see assist.c */
		((s->efer & EFER_LMA) && (s->cr0 & CR0_PG) && s->idtr.base >> 63);
}

/* In the middle of a system call kvm_pvm shows the kernel's CS with the user's SS: CPL is CS.RPL (SDM vol. 3, 5.5). */
void kvm_partial_mend(const struct kvm_vcpu *v, struct cpu_state *s)
{
	struct cpu_segment *ss = &s->seg[SEG_SS];

	if (v->vm->partial && (s->efer & EFER_LMA))
		ss->ar = (ss->ar & ~SEG_AR_DPL) | (s->seg[SEG_CS].selector & 3u) << SEG_AR_DPL_SHIFT;
}

/* Where in the file of binary statistics the counter stands; −1: nowhere. */
static off_t find_counter(int fd, const char *name)
{
	struct kvm_stats_header header;
	struct kvm_stats_desc *desc;
	off_t found = -1;
	size_t size;

	if (pread(fd, &header, sizeof(header), 0) != (ssize_t)sizeof(header) || header.name_size > 256)
		return -1;
	size = sizeof(*desc) + header.name_size;
	desc = malloc(size);
	for (unsigned i = 0; desc && i < header.num_desc && found < 0; i++) {
		if (pread(fd, desc, size, (off_t)(header.desc_offset + i * size)) != (ssize_t)size)
			break;
		if (!strncmp(desc->name, name, header.name_size))
			found = (off_t)header.data_offset + desc->offset;
	}
	free(desc);
	return found;
}

void kvm_partial_start(struct kvm_vcpu *v)
{
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN };
	const struct itimerspec when = { .it_value.tv_nsec = TICK_NS, .it_interval.tv_nsec = TICK_NS };

	if (!v->vm->partial)
		return;
	v->stint = STINT_LEAST;
	if (!v->has_stats) {
		v->stats_fd = kvm_ioctl(v->fd, KVM_GET_STATS_FD, 0);
		v->stats_offset = v->stats_fd < 0 ? -1 : find_counter(v->stats_fd, "insn_emulation");
		v->has_stats = true;
	}
	if (v->has_timer)
		timer_delete(v->timer);
	event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
	v->has_timer = !timer_create(CLOCK_MONOTONIC, &event, &v->timer);
	if (v->has_timer)
		timer_settime(v->timer, 0, &when, NULL);
}

void kvm_partial_stop(struct kvm_vcpu *v)
{
	if (v->has_timer)
		timer_delete(v->timer);
	if (v->has_stats && v->stats_fd >= 0)
		close(v->stats_fd);
}

bool kvm_partial_is_slow(struct kvm_vcpu *v)
{
	uint64_t count, before = v->interpreted;

	if (!v->has_stats || v->stats_offset < 0 || pread(v->stats_fd, &count, sizeof(count), v->stats_offset) != sizeof(count))
		return false;
	v->interpreted = count;
	if (count - before > INTERPRETED_MOST) {
		v->stint = v->stint < STINT_MOST ? v->stint * 2 : STINT_MOST;
		return true;
	}
	v->stint = STINT_LEAST;
	return false;
}
