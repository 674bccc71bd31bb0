# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# cdev.sh RELEASE SOURCE DIR: builds VFIO with character devices, and the IOMMUFD that they need, as modules of a kernel that was
# configured without either. SOURCE is the archive of its source, whose part they are built from; they are put into DIR/modules.
set -eu
release=$1 source=$2 dir=$3

rm -rf "$dir"
mkdir -p "$dir/modules"
tar -C "$dir" -xf "$source" --strip-components=1 --wildcards \
	'linux-source-*/drivers/iommu/*.h' 'linux-source-*/drivers/iommu/iommufd/*' \
	'linux-source-*/drivers/vfio/*' 'linux-source-*/lib/interval_tree.c'

# What the kernel has of these two only where IOMMUFD is configured goes into the module: the part of lib/interval_tree.c behind
# the #ifdef, and driver.c.
{
	sed -n '/^#include/p' "$dir/lib/interval_tree.c"
	sed -n '/^#ifdef CONFIG_INTERVAL_TREE_SPAN_ITER/,$p' "$dir/lib/interval_tree.c"
} >"$dir/drivers/iommu/iommufd/span.c"
echo 'iommufd-y += driver.o span.o' >>"$dir/drivers/iommu/iommufd/Makefile"

defined=
for option in IOMMUFD_MODULE IOMMUFD_DRIVER_CORE INTERVAL_TREE_SPAN_ITER VFIO_DEVICE_CDEV; do
	defined="$defined -DCONFIG_$option=1"
done
modules() {
	make -C "/usr/src/linux-headers-$release" M="$1" KCFLAGS="$defined" CONFIG_IOMMUFD=m CONFIG_IOMMUFD_DRIVER_CORE= \
		CONFIG_VFIO_DEVICE_CDEV=y CONFIG_VFIO_IOMMU_TYPE1= CONFIG_VFIO_MDEV= KBUILD_EXTRA_SYMBOLS="$2" modules
}
modules "$dir/drivers/iommu/iommufd" ''
modules "$dir/drivers/vfio" "$dir/drivers/iommu/iommufd/Module.symvers"

for module in iommu/iommufd/iommufd vfio/vfio vfio/pci/vfio-pci-core vfio/pci/vfio-pci; do
	strip --strip-debug -o "$dir/modules/${module##*/}.ko" "$dir/drivers/$module.ko"
done
rm -rf "$dir/drivers" "$dir/lib"
