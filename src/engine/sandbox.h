/* The system call filter of a vcpu process. */
#ifndef ENGINE_SANDBOX_H
#define ENGINE_SANDBOX_H

/* From here on a dozen system calls; any other one is SIGSYS. 0 or -errno. Cannot be undone. */
int sandbox_enter(void);

#endif
