#!/bin/sh
# Inside the guest of tests/linux/run: a second and a third disk, the NAT's way in, and a tap interface if the host
# could give one (vmm.tap=1).
failed=0
check() { # WHAT COMMAND…
	what=$1
	shift
	"$@" || { failed=1; echo "not ok $what"; }
}
same() { [ "$1" = "$2" ] || { echo "\"$1\" is not \"$2\""; return 1; }; }

check "serial number" same "$(cat /sys/block/vdb/serial)" second-disk
check "20 bytes of serial number" same "$(cat /sys/block/vdc/serial)" 12345678901234567890
check "read-only" same "$(cat /sys/block/vdb/ro) $(cat /sys/block/vdc/ro)" "1 0"
check "content" same "$(head -c 15 /dev/vdb)" "this is the 2nd"
check "size" same "$(cat /sys/block/vdc/size)" 8193
(echo x >/dev/vdb) 2>/dev/null && { failed=1; echo "not ok a read-only disk takes a write"; }
dd if=/dev/urandom of=/tmp/pattern bs=512 count=8193 2>/dev/null
dd if=/tmp/pattern of=/dev/vdc bs=4096 2>/dev/null
sync
echo 3 >/proc/sys/vm/drop_caches
check "written and read back" cmp /tmp/pattern /dev/vdc

ifconfig lo 127.0.0.1 up
ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
echo "devices: listening"
# A connection that the host has given up may come first, so: until the host says that it has our answer.
tries=0
until grep -q "has the answer" /tmp/got 2>/dev/null || [ $tries = 20 ]; do
	timeout 20 nc -l -p 80 -e sh -c 'read -r line; echo "$line" >/tmp/got; echo "from inside"'
	tries=$((tries + 1))
done
check "a connection from the host" same "$(cat /tmp/got)" "the host has the answer"
if grep -q 'vmm\.tap=1' /proc/cmdline; then
	ifconfig eth1 192.168.77.2 netmask 255.255.255.0 up
	check "ping over the tap" ping -c 3 -W 5 192.168.77.1
fi
exit $failed
