/* Calls getppid() the given number of times: what a kprobe test counts. */
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	long count = argc > 1 ? atol(argv[1]) : 1;

	while (count-- > 0)
		if (syscall(SYS_getppid) < 0)
			return 1;
	return 0;
}
