#!/bin/sh
# Inside the guest: a kprobe in the middle of a hot kernel function (int3 and out-of-line stepping, not the jump
# that optimisation would make of it), hit as often as asked. Usage: kprobe.sh HITS
hits=${1:-1000000}
t=/sys/kernel/tracing
mount -t tracefs tracefs $t 2>/dev/null
echo 0 >/proc/sys/debug/kprobes-optimization 2>/dev/null
# The entry would be traced through ftrace: take the first instruction boundary behind it.
offset=9
until echo "p:vmm_probe __x64_sys_getppid+$offset" >$t/kprobe_events 2>/dev/null; do
	offset=$((offset + 1))
	[ $offset -lt 40 ] || { echo "kprobe: no probe point"; exit 1; }
done
echo 1 >$t/events/kprobes/vmm_probe/enable || exit 1
echo 0 >$t/tracing_on
getppid-loop "$hits" || exit 1
echo 0 >$t/events/kprobes/vmm_probe/enable
set -- $(grep vmm_probe $t/kprobe_profile)
echo "kprobe hits $2 missed $3"
[ "$2" -ge "$hits" ]
