/* What the host's kernel lets programs do. */
#ifndef ENGINE_HOST_H
#define ENGINE_HOST_H

#include <stdbool.h>

/* WRGSBASE and its kin may be used. */
bool host_has_fsgsbase(void);

#endif
