/* Asks the host's kernel; apart from the rest, as its headers and ours have names in common. */
#include <sys/auxv.h>

#include "engine/host.h"

#define HWCAP2_FSGSBASE 2u

bool host_has_fsgsbase(void)
{
	return (getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE) != 0;
}
