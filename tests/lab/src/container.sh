# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Makes the tree the root of this process' namespaces, with everything that is written kept in memory, and becomes systemd.
# Arguments: the tree, a directory to mount at, the abstract socket of systemd's notifications, and a directory of devices; a
# container has but a few of them. What belongs to the machine outside is read-only.
set -e
mount -t tmpfs tmpfs "$2"
mkdir "$2/changes" "$2/work" "$2/root"
mount -t overlay -o "lowerdir=$1,upperdir=$2/changes,workdir=$2/work" overlay "$2/root"
cd "$2/root"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs sysfs sys
mount -o remount,bind,ro sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
if [ "$4" ]; then
	mount --rbind "$4" dev
else
	mount -t tmpfs -o mode=755 tmpfs dev
	for node in null zero full random urandom tty; do
		touch "dev/$node"
		mount --bind "/dev/$node" "dev/$node"
	done
fi
mount --move . /
exec chroot . env -i container=lab "NOTIFY_SOCKET=@$3" PATH=/usr/sbin:/usr/bin:/sbin:/bin \
	/lib/systemd/systemd --unit=basic.target --log-target=console --show-status=no
