/*
 * The life of a vcpu process as the VMM sees it: started from this binary with only the fds that it may have, watched by
 * a pidfd, and killed at the end. Its death is noticed by the event loop, or by the vcpu thread itself, which looks twice
 * a second: so a vcpu thread never waits for a dead process, even when no loop runs.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/pidfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "soft_vm.h"
#include "vmm/error.h"
#include "vmm/event.h"
#include "vmm/mem.h"

/* Above every fd of the child's table, so that dup2() into it never overwrites a source. */
#define HIGH_FD 128

extern char **environ;

static int add_fd(posix_spawn_file_actions_t *actions, int *high, unsigned *count, int fd, int target)
{
	int copy = fcntl(fd, F_DUPFD_CLOEXEC, HIGH_FD);

	if (copy < 0)
		return -errno;
	high[(*count)++] = copy;
	return -posix_spawn_file_actions_adddup2(actions, copy, target);
}

static int spawn(struct soft_vcpu *v, posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attr)
{
	char index[16], parent[16];
	char *argv[] = { (char *)"vmm", (char *)"--vcpu-process", index, parent, NULL };
	char *const envp[] = { NULL };

	snprintf(index, sizeof(index), "%u", v->index);
	snprintf(parent, sizeof(parent), "%d", (int)getpid());
	return -posix_spawn(&v->pid, v->vm->program, actions, attr, argv, v->block->trace ? environ : envp);
}

static int set_actions(struct soft_vcpu *v, posix_spawn_file_actions_t *actions, int *high, unsigned *count)
{
	struct soft_vm *vm = v->vm;
	int rc;

	rc = -posix_spawn_file_actions_addopen(actions, 0, "/dev/null", O_RDONLY, 0);
	if (!rc)
		rc = -posix_spawn_file_actions_addopen(actions, 1, "/dev/null", O_WRONLY, 0);
	if (!rc)
		rc = add_fd(actions, high, count, vm->mem->fd, VCPU_FD_RAM);
	if (!rc)
		rc = add_fd(actions, high, count, v->block_fd, VCPU_FD_BLOCK);
	if (!rc)
		rc = add_fd(actions, high, count, vm->shared_fd, VCPU_FD_SHARED);
	for (unsigned i = 0; !rc && i < vm->notify_count; i++)
		rc = add_fd(actions, high, count, vm->notify_fds[i], VCPU_FD_NOTIFY + (int)i);
	return rc;
}

static void on_pidfd(void *ctx, int fd, uint32_t epoll_events)
{
	struct soft_vcpu *v = ctx;

	soft_process_check(v);
	if (v->gone)
		event_modify(v->source, 0);
}

int soft_process_start(struct soft_vcpu *v, struct error *err)
{
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attr;
	int high[3 + NOTIFY_MAX], rc;
	unsigned count = 0;
	sigset_t none;

	rc = -posix_spawn_file_actions_init(&actions);
	if (rc)
		return error_set(err, rc, "starting a vcpu process: %s", strerror(-rc));
	rc = -posix_spawnattr_init(&attr);
	if (!rc) {
		sigemptyset(&none);
		posix_spawnattr_setsigmask(&attr, &none);
		posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK);
		rc = set_actions(v, &actions, high, &count);
		if (!rc)
			rc = spawn(v, &actions, &attr);
		posix_spawnattr_destroy(&attr);
	}
	for (unsigned i = 0; i < count; i++)
		close(high[i]);
	posix_spawn_file_actions_destroy(&actions);
	if (rc) {
		v->pid = 0;
		return error_set(err, rc, "cannot start the vcpu process from %s: %s", v->vm->program, strerror(-rc));
	}
	v->pidfd = pidfd_open(v->pid, 0);
	if (v->pidfd < 0)
		return error_set(err, -errno, "cannot watch the vcpu process: pidfd_open: %s", strerror(errno));
	fcntl(v->pidfd, F_SETFD, FD_CLOEXEC);
	v->source = event_watch(v->vm->loop, v->pidfd, EPOLLIN, on_pidfd, v);
	if (!v->source)
		return error_set(err, -ENOMEM, "cannot watch the vcpu process: out of memory");
	return 0;
}

static void write_obituary(struct soft_vcpu *v, const siginfo_t *info)
{
	if (info->si_code == CLD_EXITED)
		snprintf(v->obituary, sizeof(v->obituary), "the process of vcpu %u (pid %d) exited with status %d", v->index,
			(int)v->pid, info->si_status);
	else
		snprintf(v->obituary, sizeof(v->obituary), "the process of vcpu %u (pid %d) was killed by signal %d (%s)",
			v->index, (int)v->pid, info->si_status, strsignal(info->si_status));
}

void soft_process_check(struct soft_vcpu *v)
{
	siginfo_t info = { 0 };

	pthread_mutex_lock(&v->death_lock);
	if (!v->gone && v->pid && waitid(P_PIDFD, (id_t)v->pidfd, &info, WEXITED | WNOHANG) == 0 && info.si_pid) {
		write_obituary(v, &info);
		/* A turn already handed over carries the last exit (the process reports its own faults so). */
		if ((atomic_load(&v->block->turn) & ~TURN_SLEEPER) != TURN_VMM)
			v->killed_turn = true;
		v->gone = true;
		atomic_exchange(&v->block->turn, TURN_VMM);
		syscall(SYS_futex, &v->block->turn, FUTEX_WAKE, 1, NULL, NULL, 0);
	}
	pthread_mutex_unlock(&v->death_lock);
}

void soft_process_kill(struct soft_vcpu *v)
{
	siginfo_t info;

	pthread_mutex_lock(&v->death_lock);
	if (v->pid && !v->gone) {
		kill(v->pid, SIGKILL);
		while (waitid(P_PID, (id_t)v->pid, &info, WEXITED) < 0 && errno == EINTR)
			;
		v->gone = true;
	}
	pthread_mutex_unlock(&v->death_lock);
}
