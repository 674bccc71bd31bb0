#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# Checks the series of patches: does each apply to Debian's source of its
# kernel, please checkpatch, and build against the stock headers?
#
#	build.sh [-o DIR] [-j JOBS] [SERIES...]
#
# SERIES is a directory beside this script, such as 7.2; by default all are
# checked. Sources are unpacked and built in DIR, by default a temporary
# directory that is removed. With -o the modules stay in DIR/SERIES/modules, and
# the logs in DIR/SERIES/*.log.
#
# Needs of Debian: linux-source-SERIES, linux-headers for a kernel of that
# series, gcc, kmod, make, patch, perl, xz-utils.
#
# Exit status: 0 if every step of every series succeeded, 1 if one failed, 2 if
# something needed is not there.

set -u

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd) || exit 2
include=$(CDPATH='' cd -- "$here/../include" && pwd) || exit 2
ath=drivers/net/wireless/ath
out=
jobs=$(nproc)

complain() {
	printf '%s: %s\n' "${0##*/}" "$1" >&2
}

while getopts o:j: option; do
	case $option in
	o) out=$OPTARG ;;
	j) jobs=$OPTARG ;;
	*) sed -n 's/^#\t\(build.sh.*\)/usage: \1/p' "$0" >&2; exit 2 ;;
	esac
done
shift $((OPTIND - 1))

if [ -n "$out" ]; then
	mkdir -p "$out" || exit 2
	out=$(CDPATH='' cd -- "$out" && pwd) || exit 2
else
	out=$(mktemp -d) || exit 2
	trap 'rm -rf "$out"' EXIT
	trap 'exit 2' HUP INT TERM
fi

for tool in gcc make modinfo nm patch perl tar xz; do
	if ! command -v "$tool" >/dev/null; then
		complain "no $tool: install what Debian calls gcc kmod make patch perl xz-utils"
		exit 2
	fi
done

# step NAME LOG COMMAND...: runs a command, says how it went, and shows the
# end of its output if it failed.
step() {
	name=$1 log=$2
	shift 2
	if "$@" >"$log" 2>&1; then
		printf '%-6s %-44s ok\n' "$series" "$name"
		return 0
	fi
	printf '%-6s %-44s FAILED\n' "$series" "$name"
	tail -n 25 "$log" | sed 's/^/    /'
	failed=1
	return 1
}

unpack() {
	tar -C "$work" -xf "$source" --strip-components=1 --wildcards \
		"linux-source-$series/$ath/*" \
		"linux-source-$series/scripts/checkpatch.pl" \
		"linux-source-$series/scripts/const_structs.checkpatch" \
		"linux-source-$series/scripts/spelling.txt"
}

# What is left to do for who sends it is to sign it.
style() {
	sed 's/NAME <EMAIL>/A Name <name@example.org>/' "$1" >"$work/signed.patch" &&
	perl "$work/scripts/checkpatch.pl" --no-tree --strict --show-types \
		--max-line-length=90 "$work/signed.patch"
}

# No fuzz: a hunk that only nearly fits may have landed anywhere.
apply() {
	patch -d "$work" -p1 --fuzz=0 --forward --no-backup-if-mismatch <"$1" &&
	! find "$work/$ath" -name '*.rej' -o -name '*.orig' | grep .
}

compile() {
	make -C "$kdir" M="$work/$ath/$1" W=1 KCFLAGS="-I$include" -j "$jobs" modules
}

# Files that a patch changes must not have a warning, wherever in them.
quiet() {
	sed -n "s,^+++ b/\($ath/$1/.*\.[ch]\)\$,\1,p" "$here/$series"/*.patch |
	sort -u >"$work/changed"
	grep . "$work/changed" || return 1
	! sed 's,.*/,,' "$work/changed" |
	while read -r file; do
		grep -E "(^|/)$file:[0-9]+:.*(warning|error):" "$work/compile-$1.log"
	done | grep .
}

# virtio_irq is looked up when it is needed, and nothing else refers to it.
soft() {
	objects=$(find "$work/$ath/$1" -name '*.ko') || return 1
	printf '%s\n' "$objects"
	[ -n "$objects" ] || return 1
	for object in $objects; do
		case ,$(modinfo -F depends "$object"), in
		*,virtio_irq,*) echo "$object depends on virtio_irq"; return 1 ;;
		esac
		if nm "$object" | grep ' U virtio_irq_'; then
			return 1
		fi
	done
	for object in $objects; do
		if modinfo -F softdep "$object" | grep 'pre: virtio_irq' &&
		   nm "$object" | grep ' U __symbol_get$'; then
			mkdir -p "$work/modules" && cp $objects "$work/modules"
			return
		fi
	done
	echo "no module looks virtio_irq up"
	return 1
}

check() {
	source=/usr/src/linux-source-$series.tar.xz
	if [ ! -r "$source" ]; then
		complain "no $source: apt-get install linux-source-$series"
		return 2
	fi
	kdir=$(find /lib/modules/ -mindepth 2 -maxdepth 2 -name build \
		-path "/lib/modules/$series.*" | sort -V | tail -n 1)
	if [ ! -e "$kdir/Makefile" ]; then
		complain "no headers of a Linux $series: apt-get install linux-headers-..."
		return 2
	fi
	work=$out/$series
	rm -rf "$work" && mkdir -p "$work" || return 2
	printf '%-6s %s, %s\n' "$series" "$(tar -tf "$source" 2>/dev/null | head -n 1)" "$kdir"

	step "unpack the source" "$work/unpack.log" unpack || return 1
	for patch in "$here/$series"/*.patch; do
		number=${patch##*/} number=${number%%-*}
		step "checkpatch $number" "$work/style-$number.log" style "$patch"
		step "apply $number" "$work/apply-$number.log" apply "$patch" || return 1
	done
	for driver in ath11k ath12k; do
		step "build $driver" "$work/compile-$driver.log" compile "$driver" || continue
		step "no warning in changed files of $driver" "$work/quiet-$driver.log" quiet "$driver"
		step "$driver depends on virtio_irq only softly" "$work/soft-$driver.log" soft "$driver"
	done
	return $failed
}

[ $# -gt 0 ] || set -- $(cd "$here" && ls -d [0-9]*)
status=0
for series; do
	failed=0
	check
	code=$?
	[ "$code" -gt "$status" ] && status=$code
done
exit "$status"
