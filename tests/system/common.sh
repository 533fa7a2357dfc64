# Sourced by the scripts of this folder. The first argument is the vmm to test.
set -u
vmm=$(realpath "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
failures=0

bad() {
	echo "FAILED: $*"
	failures=$((failures + 1))
}

# expect STATUS PATTERN ARGUMENTS…: the status, exactly one line on stderr, and the pattern in it.
expect() {
	local want=$1 pattern=$2 status=0 lines
	shift 2
	timeout 20 "$vmm" "$@" </dev/null >out 2>err || status=$?
	lines=$(wc -l <err)
	[ "$status" = "$want" ] || bad "vmm $*: status $status, not $want"
	[ "$lines" = 1 ] || { bad "vmm $*: $lines lines on stderr, not one sentence"; cat err; }
	grep -qE -- "$pattern" err || { bad "vmm $*: nothing about /$pattern/ in:"; cat err; }
	grep -qE '^vmm: .*\.$' err || { bad "vmm $*: not a sentence:"; cat err; }
}

finish() {
	[ "$failures" = 0 ] && echo "all as expected"
	exit $((failures != 0))
}

# Little-endian bytes: le SIZE VALUE.
le() {
	local i v=$2
	for ((i = 0; i < $1; i++)); do
		printf "\\x$(printf %02x $((v & 255)))"
		v=$((v >> 8))
	done
}
