/*
 * The system call filter of a vcpu process: even code that broke every check of the engine holds guest memory, doorbells
 * and a clock, and nothing else. Apart from process.c because libseccomp's header brings elf.h, whose PF_W is not ours.
 */
#include <errno.h>
#include <seccomp.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sandbox.h"

#define FIRST_DOORBELL 6 /* VCPU_FD_NOTIFY of vmm/vcpu_block.h */

int sandbox_enter(void)
{
#if defined(__SANITIZE_ADDRESS__)
	return 0; /* the sanitizer's run time makes calls of its own */
#else
	static const int allowed[] = { SCMP_SYS(futex), SCMP_SYS(timer_settime), SCMP_SYS(clock_gettime),
		SCMP_SYS(clock_nanosleep), SCMP_SYS(rt_sigreturn), SCMP_SYS(rt_sigprocmask), SCMP_SYS(restart_syscall), SCMP_SYS(exit),
		SCMP_SYS(exit_group), SCMP_SYS(madvise), SCMP_SYS(munmap), SCMP_SYS(gettid), SCMP_SYS(getpid), SCMP_SYS(tgkill) };
	static const int mapping[] = { SCMP_SYS(mmap), SCMP_SYS(mprotect) };
	struct scmp_arg_cmp not_executable = { .arg = 2, .op = SCMP_CMP_MASKED_EQ, .datum_a = PROT_EXEC, .datum_b = 0 };
	/* Doorbells and stderr; not the memfds. */
	struct scmp_arg_cmp doorbell = { .arg = 0, .op = SCMP_CMP_GE, .datum_a = FIRST_DOORBELL };
	struct scmp_arg_cmp standard_error = { .arg = 0, .op = SCMP_CMP_EQ, .datum_a = STDERR_FILENO };
	scmp_filter_ctx filter = seccomp_init(SCMP_ACT_TRAP);
	int rc = 0;

	if (!filter)
		return -ENOMEM;
	/* The shadow's mappings; nothing becomes executable. */
	for (unsigned i = 0; !rc && i < sizeof(mapping) / sizeof(mapping[0]); i++)
		rc = seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, mapping[i], 1, &not_executable);
	for (unsigned i = 0; !rc && i < sizeof(allowed) / sizeof(allowed[0]); i++)
		rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, allowed[i], 0);
	if (!rc)
		rc = seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, SCMP_SYS(write), 1, &doorbell);
	if (!rc)
		rc = seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, SCMP_SYS(write), 1, &standard_error);
	if (!rc)
		rc = seccomp_load(filter);
	seccomp_release(filter);
	return rc;
#endif
}
