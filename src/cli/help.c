/* The texts of `vmm help`. */
#include <string.h>

#include "vmm/cli.h"

static const char overview[] =
	"vmm runs an unmodified x86-64 operating system as an ordinary process.\n"
	"\n"
	"  vmm run [options] GUEST     run a virtual machine\n"
	"  vmm info [--json]           what this host offers, and which backend auto would choose\n"
	"  vmm bench [options]         measure what the ways of running a guest cost here\n"
	"  vmm version                 the version\n"
	"  vmm help [COMMAND]          this text, or more about a command\n"
	"\n"
	"While a guest has the terminal, Ctrl-A x ends it and Ctrl-A h shows the other keys.\n";

static const char run[] =
	"vmm run [options] GUEST\n"
	"\n"
	"GUEST is told by its content: a disk image, a bzImage, or an ELF file (multiboot, PVH, vmlinux).\n"
	"It may be left out when --kernel, --firmware, --disk or --cdrom says what to run.\n"
	"\n"
	"  --backend=auto|soft|kvm    who executes the guest (auto: kvm where it is good, else soft)\n"
	"  --engine=auto|interp|slots|translate|lockstep\n"
	"                             how the software backend executes (auto: translate, where the host has BMI2)\n"
	"  --shadow=unsync|vtlb       what the translator's shadow drops at a flush: what has changed, or all (unsync)\n"
	"  --cpus N                   virtual processors (1)\n"
	"  --cpu common[,+smap]|host  the processor that the guest sees\n"
	"  --pin CPU[-CPU],...        processors of the host for the vcpus\n"
	"  --memory SIZE              guest RAM, such as 512M or 4G (512M)\n"
	"  --hugepages                guest RAM of the host's huge pages\n"
	"  --prealloc                 take all of guest RAM at the start\n"
	"  --kernel FILE              bzImage or ELF kernel\n"
	"  --initrd FILE              initial RAM disk for the kernel\n"
	"  --append STRING            the kernel's command line\n"
	"  --firmware bios|uefi|FILE  the firmware that starts a disk: SeaBIOS, OVMF, or an image of yours (bios)\n"
	"  --firmware-vars FILE       keep UEFI's variables there; made from the template if it does not exist\n"
	"  --firmware-log FILE        what the firmware writes to its debug console\n"
	"  --boot-order diskN,...     which disks the firmware tries, and in which order; GUEST is disk0\n"
	"  --boot-menu SECONDS        let the firmware wait for a key that opens its boot menu (0)\n"
	"  --disk PATH[,ro][,serial=S]\n"
	"                             a raw disk image on virtio-blk; repeatable\n"
	"  --cdrom PATH               an image of a CD or DVD in a drive on virtio-scsi; repeatable\n"
	"  --net user[,hostfwd=tcp:HOSTADDR:PORT-:GUESTPORT] | tap[,ifname=NAME] | none\n"
	"                             a virtio-net card; repeatable (none)\n"
	"  --console stdio|file:PATH|pty|none\n"
	"                             where the first serial port goes (stdio)\n"
	"  --on-reboot=reset|exit     what a guest's reboot does (reset)\n"
	"  --test-device=on|off       QEMU's test device for bare-metal test suites (off)\n"
	"  --on-triple-fault=auto|reset|stop\n"
	"                             a PC resets then; auto does so with firmware, and stops with a report without\n"
	"  --stats FILE               write counters as JSON when the guest ends\n"
	"  --trace EVENTS[:FILE]      show device accesses: pio, mmio or all\n"
	"  --move EVERY,LENGTH        with kvm, to test it: after about EVERY exits, execute LENGTH instructions in software\n"
	"  --log=error|warning|info|debug\n"
	"                             how much vmm itself says on stderr (warning)\n"
	"\n"
	"Keys: Ctrl-A x ends the guest, Ctrl-A h helps, Ctrl-A Ctrl-A sends a Ctrl-A.\n"
	"\n"
	"Exit status: 0 the guest powered off, or rebooted with --on-reboot=exit; odd, (v << 1) | 1: it wrote v to\n"
	"the debug-exit port 0xf4; 2 bad usage; 4 a file or resource of the host is missing or bad; 6 the guest\n"
	"crashed (triple fault); 8 internal error; 10 not in this version; 130 ended by Ctrl-A x or a signal.\n";

static const char info[] =
	"vmm info [--json]\n"
	"\n"
	"Shows whether /dev/kvm works and which memory virtualisation is underneath, the processor features that vmm\n"
	"uses, userfaultfd, huge pages, the limits that matter, and what --backend=auto would choose and why.\n";

static const char bench[] =
	"vmm bench [options]\n"
	"vmm bench compare BEFORE.json AFTER.json\n"
	"vmm bench show FILE.json [--html FILE]\n"
	"\n"
	"Runs the same work natively, under each engine of vmm and under QEMU, in turn, and shows medians, spreads and\n"
	"ratios. What is absent is skipped with a sentence; what crashes, hangs or answers wrongly has failed.\n"
	"\n"
	"  --quick                    within 60 seconds, as many rounds as fit\n"
	"  --full                     large amounts of work, many rounds, also compile, fio and iperf3\n"
	"  --group nano,micro,macro   which groups (all): bare metal; a program in a Linux guest; whole tasks\n"
	"  --only NAME,...            which works, of those that --list names\n"
	"  --columns ID,...           which columns, of those that --list names\n"
	"  --list                     name columns and works, and measure nothing\n"
	"  --json FILE                write the result, with commands, versions and raw samples\n"
	"  --html FILE                write it as a page with charts, for a browser or for print\n"
	"  --kernel FILE              the Linux kernel of the guests (one that scripts/fetch-kernels has fetched)\n"
	"  --root FILE                the root image that bench/make-root has made, for --full\n"
	"  --guests FOLDER            where nano.elf, nano and micro are (beside the program)\n"
	"  --rounds N                 launches of each column (5; with --quick at most 3, with --full 7)\n"
	"  --busy-io N                beside the work each Linux guest reads 4 KiB from a disk N times a second, by fio\n"
	"  --limit SECONDS            how long a launch may take (300; with --quick 45, with --full 1800)\n"
	"\n"
	"compare says what changed from one result to another and whether it is above the noise of both.\n"
	"show prints a result again.\n"
	"\n"
	"Exit status: 0; 12 something that was measured failed; 2 bad usage; 4 a file or resource of the host is missing\n"
	"or bad; 130 ended by a signal.\n";

static const char version[] = "vmm version\n\nShows the version.\n";
static const char help[] = "vmm help [COMMAND]\n\nShows the commands, or one command's options.\n";

const char *cli_help_text(const char *topic)
{
	static const struct {
		const char *topic, *text;
	} texts[] = {{"run", run}, {"info", info}, {"bench", bench}, {"version", version}, {"help", help}};

	if (!topic)
		return overview;
	for (unsigned i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
		if (!strcmp(texts[i].topic, topic))
			return texts[i].text;
	return NULL;
}
