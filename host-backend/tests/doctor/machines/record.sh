#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Prints what `vhost-device-irq doctor` reads of this machine, as a file for this directory. Usage: sh record.sh [ADDRESS...]
# As root, for what only root may see. Look through it before you give it away: it has your kernel's command line and those
# lines of its log that speak of IOMMUs, PCI functions and Wi-Fi.

text() {
	[ -r "$1" ] && [ -f "$1" ] || return 0
	echo "text ${1#/}"
	sed 's/^/|/' "$1" 2>/dev/null
	# A last line without an end would swallow what follows.
	[ -z "$(tail -c 1 "$1" 2>/dev/null | tr -d '\n')" ] || echo
}

bytes() {
	od -An -v -tx1 -N"$2" "$1" | sed 's/^ */|/'
}

hex() {
	[ -r "$1" ] || return 0
	echo "hex ${1#/}"
	bytes "$1" "$2"
}

link() {
	[ -L "$1" ] || return 0
	echo "link ${1#/} $(readlink "$1")"
}

describe() {
	device=/sys/bus/pci/devices/$1
	for name in vendor device subsystem_vendor subsystem_device class revision reset_method power_state irq enable; do
		text "$device/$name"
	done
	hex "$device/config" 256
	for name in driver iommu_group iommu; do link "$device/$name"; done
	for irq in "$device"/msi_irqs/*; do text "$irq"; done
	for vfio in "$device"/vfio-dev/*; do [ -d "$vfio" ] && echo "dir ${vfio#/}"; done
	# The device tree's, which stands at the host bridge: as the function's own, since a recording has no bridges.
	bridge=$(readlink -f "$device")
	while [ "$bridge" != / ] && [ ! -e "$bridge/of_node/msi-map" ]; do bridge=$(dirname "$bridge"); done
	if [ "$bridge" != / ]; then
		echo "hex ${device#/}/of_node/msi-map"
		bytes "$bridge/of_node/msi-map" 256
	fi
	[ -e "$device/iommu_group" ] || return 0
	group=/sys/kernel/iommu_groups/$(basename "$(readlink "$device/iommu_group")")
	for name in name type reserved_regions; do text "$group/$name"; done
	for member in "$group"/devices/*; do
		link "$member"
		[ "$(basename "$member")" = "$1" ] || link "/sys/bus/pci/devices/$(basename "$member")/driver"
	done
}

echo "# Recorded by record.sh."
[ $# -gt 0 ] || set -- $(ls /sys/bus/pci/drivers/vfio-pci 2>/dev/null | grep :)
text /proc/sys/kernel/osrelease
text /proc/cmdline
echo "text proc/cpuinfo"
grep -m 2 -e '^vendor_id' -e '^CPU implementer' /proc/cpuinfo | sed 's/^/|/'
echo "text proc/self/status"
grep CapEff /proc/self/status | sed 's/^/|/'
text /sys/hypervisor/type
text /proc/xen/capabilities
for unit in /sys/class/iommu/*; do
	[ -e "$unit" ] && echo "dir ${unit#/}"
	text "$unit/intel-iommu/ecap"
	text "$unit/amd-iommu/features"
done
for table in DMAR IVRS IORT; do
	[ -e "/sys/firmware/acpi/tables/$table" ] && echo "text sys/firmware/acpi/tables/$table"
done
find /sys/firmware/devicetree/base/ -name compatible 2>/dev/null | while read -r compatible; do
	grep -q arm,gic-v3-its "$compatible" || continue
	for property in compatible phandle status; do hex "$(dirname "$compatible")/$property" 64; done
done
for chip in /sys/kernel/irq/*/chip_name; do text "$chip"; done
for driver in vfio-pci; do [ -d "/sys/bus/pci/drivers/$driver" ] && echo "dir sys/bus/pci/drivers/$driver"; done
text /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts
text /sys/module/iommufd/parameters/allow_unsafe_interrupts
for program in usr/sbin/driverctl usr/sbin/grubby; do [ -e "/$program" ] && echo "text $program"; done
for program in /usr/bin/qemu-system-x86_64 /usr/bin/qemu-system-aarch64 /usr/libexec/qemu-kvm; do
	[ -x "$program" ] || continue
	echo "text ${program#/}"
	"$program" --version | head -1 | sed 's/^/|/'
done
for address in "$@"; do describe "$address"; done
for process in /proc/[0-9]*; do
	files=$(ls -l "$process/fd" 2>/dev/null | sed -n 's|.* \([0-9]*\) -> \(/dev/vfio/.*\)|\1 \2|p')
	[ -n "$files" ] || continue
	text "$process/comm"
	echo "$files" | while read -r number target; do echo "link ${process#/}/fd/$number $target"; done
done
# Its end is where reading would wait.
echo "text dev/kmsg"
timeout 1 cat /dev/kmsg 2>/dev/null | grep -a -e DMAR -e AMD-Vi -e IOMMU -e iommu -e remapping -e vfio -e 'No irq handler' \
	-e ath1 -e virtio_irq -e virtio-irq | sed 's/^/|/'
exit 0
