// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which function an open VFIO device is.

use super::Host;
use rustix::fs::fstat;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use virtio_irq_proto::PciAddress;

/// What can be said of a VFIO device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Identity {
    /// It is the function that was asked for.
    Same,
    /// It is another one.
    Other,
    /// This kernel does not tell.
    Unknown,
}

/// Compares an open device with a function.
///
/// Newer kernels name the function in `fdinfo` (`vfio_device_show_fdinfo` in drivers/vfio/vfio_main.c; Linux 7.2 does,
/// 6.12 does not). A device that was opened as a character device has the function's number with any kernel.
pub(super) fn of(device: &impl AsFd, host: &Host, function: PciAddress) -> Identity {
    let same = |same: bool| if same { Identity::Same } else { Identity::Other };
    // Of our own descriptor, so that what is looked at is what is used.
    let path = format!("/proc/self/fdinfo/{}", device.as_fd().as_raw_fd());
    if let Some(path) = fs::read_to_string(path).ok().as_deref().and_then(syspath) {
        return match fs::canonicalize(host.function(function)) {
            Ok(wanted) => same(wanted.as_os_str() == path),
            Err(_) => Identity::Unknown,
        };
    }
    match (fstat(device), character_device(host, function)) {
        (Ok(stat), Some(number)) if stat.st_rdev != 0 => same(stat.st_rdev == number),
        _ => Identity::Unknown,
    }
}

fn syspath(fdinfo: &str) -> Option<&str> {
    fdinfo.lines().find_map(|line| line.strip_prefix("vfio-device-syspath:")).map(str::trim)
}

/// The number of the function's character device, if this kernel has them.
fn character_device(host: &Host, function: PciAddress) -> Option<u64> {
    let directory = fs::read_dir(host.function(function).join("vfio-dev")).ok()?;
    directory.flatten().find_map(|entry| device_number(&entry.path()))
}

/// The number of a character device by its directory in sysfs.
pub(super) fn device_number(directory: &Path) -> Option<u64> {
    let number = fs::read_to_string(directory.join("dev")).ok()?;
    let (major, minor) = number.trim().split_once(':')?;
    Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_function_is_found_in_fdinfo() {
        let fdinfo = "pos:\t0\nflags:\t02000002\nmnt_id:\t15\nino:\t1058\n\
                      vfio-device-syspath: /sys/devices/pci0000:00/0000:00:05.0\n";
        assert_eq!(syspath(fdinfo), Some("/sys/devices/pci0000:00/0000:00:05.0"));
        assert_eq!(syspath("pos:\t0\nflags:\t02000002\n"), None);
    }

    #[test]
    fn a_character_device_is_told_by_its_number() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::at(root.path());
        let function = PciAddress { segment: 0, bus: 2, devfn: 0x18 };
        let null = fs::File::open("/dev/null").unwrap();
        assert_eq!(of(&null, &host, function), Identity::Unknown);
        let directory = root.path().join("sys/bus/pci/devices/0000:02:03.0/vfio-dev/vfio4");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("dev"), "1:5\n").unwrap();
        assert_eq!(of(&null, &host, function), Identity::Other);
        fs::write(directory.join("dev"), "1:3\n").unwrap();
        assert_eq!(of(&null, &host, function), Identity::Same);
    }
}
