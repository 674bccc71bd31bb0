#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# Builds the Rust driver core into one object for Kbuild: build.sh BUILD-DIR OBJECT
#
# Kbuild calls it, with these in the environment:
#	ARCH		the kernel's name of the architecture
#	CONFIG		options of the kernel that change the target
#	FLAGS		the -C and -Z flags that the kernel gives rustc
#	LD, LDFLAGS	the kernel's linker
#	RUSTC, CARGO	the toolchain; its rust-src is needed
#
# core is built with the same flags as the crate, because precompiled ones
# use SSE and lack the mitigations.
set -eu

build=$1
object=$2
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

fail() {
	echo "$0: $*" >&2
	exit 1
}

# A kernel is built with unstable flags of a stable compiler.
export RUSTC_BOOTSTRAP=1
export RUSTC CARGO

command -v "$RUSTC" >/dev/null ||
	fail "$RUSTC is missing: install rustc (Debian: apt install rustc cargo rust-src), or set RUSTC"
command -v "$CARGO" >/dev/null ||
	fail "$CARGO is missing: install cargo, or set CARGO"
core=$("$RUSTC" --print sysroot)/lib/rustlib/src/rust/library/core/src/lib.rs
[ -f "$core" ] ||
	fail "$core is missing: install the source of the standard library (Debian: apt install rust-src; rustup: rustup component add rust-src)"

# 1.85.1 is 108501
release=$("$RUSTC" -vV | sed -n 's/^release: \([0-9]*\)\.\([0-9]*\)\.\([0-9]*\).*/\1 \2 \3/p')
# shellcheck disable=SC2086 # three words
version=$(printf '%d%03d%02d' $release)
[ "$version" -ge 108500 ] || fail "$RUSTC is older than 1.85"

# Whether the kernel's configuration has an option.
config() {
	case " $CONFIG " in *" $1 "*) true ;; *) false ;; esac
}

# Kept in step with the kernel's scripts/generate_rust_target.rs.
target_x86() {
	abi=
	[ "$version" -lt 108600 ] || abi='"rustc-abi": "x86-softfloat",'
	width='"64"'
	[ "$version" -lt 109100 ] || width=64
	features='-mmx,+soft-float'
	if config MITIGATION_RETPOLINE; then
		features="$features,+retpoline-external-thunk"
		features="$features,+retpoline-indirect-branches"
		features="$features,+retpoline-indirect-calls"
	fi
	if config MITIGATION_SLS; then
		features="$features,+harden-sls-ijmp,+harden-sls-ret"
	fi
	cat <<-JSON
	{
	    "arch": "x86_64",
	    $abi
	    "data-layout": "e-m:e-p270:32:32-p271:32:32-p272:64:64-i64:64-i128:128-f80:128-n8:16:32:64-S128",
	    "features": "$features",
	    "llvm-target": "x86_64-linux-gnu",
	    "target-pointer-width": $width,
	    "emit-debug-gdb-scripts": false,
	    "frame-pointer": "may-omit",
	    "stack-probes": { "kind": "none" }
	}
	JSON
}

case $ARCH in
x86) ;;
# Another architecture needs its target description, and a test.
*) fail "no target description for the architecture $ARCH yet; there is one for x86_64" ;;
esac

# The kernel's flags, but for what belongs to a build by cargo (link-time
# optimization, panic strategy, one section per function for --gc-sections) and
# what depends on the compiler that the kernel was configured with rather than
# on this one.
flags='--cfg no_fp_fmt_parse -Zfunction-sections=y'
for flag in $FLAGS; do
	case $flag in
	-Zfunction-sections=* | -Cembed-bitcode=* | -Clto=* | -Cpanic=* | -Ccodegen-units=* | \
	-Copt-level=* | -Cdebug-assertions=* | -Coverflow-checks=* | -Cdebuginfo=* | \
	-Zbinary_dep_depinfo=* | -Zcrate-attr=* | -Zno-jump-tables | -Cjump-tables=*) ;;
	*) flags="$flags $flag" ;;
	esac
done
if [ "$version" -lt 109300 ]; then
	flags="$flags -Zno-jump-tables"
else
	flags="$flags -Cjump-tables=n"
fi
# A target description of one's own became an unstable option in 1.95, for cargo too.
custom=
if [ "$version" -ge 109500 ]; then
	flags="$flags -Zunstable-options"
	custom=-Zjson-target-spec
fi
edition=2021
[ "$version" -lt 108700 ] || edition=2024

mkdir -p "$build"
target=$build/virtio-irq-kmod.json
"target_$ARCH" >"$target.new"

# A sysroot that other flags, another compiler or another target made is stale.
{
	"$RUSTC" -vV
	echo "$flags"
	cat "$target.new"
} >"$build/stamp.new"
sysroot=$build/sysroot
lib=$sysroot/lib/rustlib/virtio-irq-kmod/lib
if ! cmp -s "$build/stamp.new" "$build/stamp"; then
	rm -rf "$sysroot" "$build/target" "$build/stamp"
	mkdir -p "$lib"
	mv "$target.new" "$target"
	# $1 crate, $2 edition, $3 source
	sysroot_crate() {
		# shellcheck disable=SC2086 # a list of flags
		"$RUSTC" $flags -Cpanic=abort -Copt-level=2 -Ccodegen-units=1 \
			-Cdebug-assertions=n -Coverflow-checks=y -Cembed-bitcode=y \
			--cap-lints=allow --crate-type=rlib --target "$target" \
			--out-dir "$lib" -L "$lib" \
			--crate-name "$1" --edition "$2" "$3"
	}
	sysroot_crate core "$edition" "$core"
	sysroot_crate compiler_builtins 2021 "$here/compiler_builtins.rs"
	mv "$build/stamp.new" "$build/stamp"
else
	rm "$target.new" "$build/stamp.new"
fi

# A tree for DKMS brings what cargo would fetch.
set --
if [ -d "$here/vendor" ]; then
	set -- --offline --config "source.crates-io.replace-with='vendored'" \
		--config "source.vendored.directory='$here/vendor'"
fi

# cargo must not see make's job server: it is not passed on.
unset MAKEFLAGS MFLAGS
# shellcheck disable=SC2086 # no option, or one
RUSTFLAGS="$flags --sysroot=$sysroot" "$CARGO" build $custom "$@" --quiet --release --locked \
	--manifest-path "$here/Cargo.toml" --target "$target" --target-dir "$build/target"

# What C calls is kept, and what that needs; the rest of core goes.
roots=$(sed -n 's/.*\(virtio_irq_rs_[a-z_]*\)(.*/-u \1/p' "$here/../rust_core.h" | grep -v _panic)
# shellcheck disable=SC2086 # lists of flags
$LD $LDFLAGS -r --gc-sections $roots -o "$object" \
	"$build/target/virtio-irq-kmod/release/libvirtio_irq_kmod.a"
