// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The VFIO device of a function, which the VMM opened.
//!
//! It is duplicated out of the VMM with `pidfd_getfd(2)` for one reading and closed again. To keep it would keep the
//! device open after the VMM ended, and the next VMM could not open it.

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use virtio_irq_proto::{PciAddress, PciIds};

use crate::sys;

/// Which process has the function's VFIO device open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vmm {
    /// The one with this number.
    Pid(i32),
    /// The one whose number is in this file, whenever it is asked for: the VMM may start later, or anew.
    PidFile(PathBuf),
}

/// `VFIO_PCI_CONFIG_REGION_INDEX` of include/uapi/linux/vfio.h.
const CONFIG_REGION: u32 = 7;

impl Vmm {
    /// The VFIO device of a function.
    pub(super) fn device(&self, address: PciAddress, ids: &PciIds) -> io::Result<File> {
        let pid = self.pid()?;
        let process = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        let mut unnamed = Vec::new();
        for number in vfio_devices(&process)? {
            match device_address(&process, number)? {
                Some(name) if name == address.to_string() => {
                    return Ok(pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty())?.into());
                }
                Some(_) => {}
                None => unnamed.push(number),
            }
        }
        // Kernels before 6.18 do not say whose device it is. Its ids do, unless there are several of one model.
        let mut found = None;
        for number in unnamed {
            let device = File::from(pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty())?);
            if has_ids(&device, ids)? && found.replace(device).is_some() {
                return Err(io::Error::other(
                    "the VMM has several functions of this model open, and this kernel (before 6.18) does not tell \
                     them apart",
                ));
            }
        }
        found.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("process {} has not opened it", pid.as_raw_nonzero()),
            )
        })
    }

    fn pid(&self) -> io::Result<Pid> {
        let number = match self {
            Self::Pid(number) => *number,
            Self::PidFile(path) => {
                let content = fs::read_to_string(path)
                    .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
                content.trim().parse().unwrap_or(0)
            }
        };
        if number <= 0 {
            return Err(io::Error::other("there is no process number"));
        }
        Pid::from_raw(number).ok_or_else(|| io::Error::other("there is no process number"))
    }
}

/// Numbers of the descriptors that are VFIO devices.
fn vfio_devices(process: &Path) -> io::Result<Vec<RawFd>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(process.join("fd"))? {
        let entry = entry?;
        // A descriptor may be closed by now.
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let target = target.to_string_lossy().into_owned();
        if target != "anon_inode:[vfio-device]" && !target.starts_with("/dev/vfio/devices/") {
            continue;
        }
        numbers.extend(entry.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    Ok(numbers)
}

/// What the kernel says whose device a descriptor is (`vfio_device_show_fdinfo` in drivers/vfio/vfio_main.c).
fn device_address(process: &Path, number: RawFd) -> io::Result<Option<String>> {
    let info = fs::read_to_string(process.join("fdinfo").join(number.to_string()))?;
    let path = info.lines().find_map(|line| line.strip_prefix("vfio-device-syspath:"));
    Ok(path
        .and_then(|path| Path::new(path.trim()).file_name())
        .map(|name| name.to_string_lossy().into_owned()))
}

fn has_ids(device: &File, ids: &PciIds) -> io::Result<bool> {
    let region = sys::region(device.as_fd(), CONFIG_REGION)?;
    let mut header = [0; 0x30];
    device.read_exact_at(&mut header, region.offset)?;
    let word = |offset: usize| u16::from_le_bytes([header[offset], header[offset + 1]]);
    Ok((word(0x00), word(0x02)) == (ids.vendor, ids.device)
        && (word(0x2c), word(0x2e)) == (ids.subsystem_vendor, ids.subsystem_device))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: PciAddress = PciAddress { segment: 0, bus: 0x3b, devfn: 5 };

    fn refused(vmm: &Vmm) -> String {
        vmm.device(ADDRESS, &PciIds::default()).unwrap_err().to_string()
    }

    #[test]
    fn a_process_without_vfio_devices_has_not_opened_it() {
        let own = std::process::id();
        assert_eq!(refused(&Vmm::Pid(own as i32)), format!("process {own} has not opened it"));
    }

    #[test]
    fn the_number_in_a_file_is_read_when_it_is_needed() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("vm.pid");
        let vmm = Vmm::PidFile(path.clone());
        assert!(refused(&vmm).contains("vm.pid: No such file"), "{}", refused(&vmm));
        fs::write(&path, "").unwrap();
        assert_eq!(refused(&vmm), "there is no process number");
        fs::write(&path, "-5\n").unwrap();
        assert_eq!(refused(&vmm), "there is no process number");
        let own = std::process::id();
        fs::write(&path, format!("{own}\n")).unwrap();
        assert_eq!(refused(&vmm), format!("process {own} has not opened it"));
    }

    #[test]
    fn the_kernel_says_whose_device_it_is() {
        let process = tempfile::TempDir::new().unwrap();
        fs::create_dir(process.path().join("fdinfo")).unwrap();
        let info = process.path().join("fdinfo/40");
        fs::write(&info, "pos:\t0\nflags:\t02\n").unwrap();
        assert_eq!(device_address(process.path(), 40).unwrap(), None);
        fs::write(&info, "pos:\t0\nvfio-device-syspath: /sys/devices/pci0000:3a/0000:3a:00.0/0000:3b:00.5\n")
            .unwrap();
        assert_eq!(device_address(process.path(), 40).unwrap().as_deref(), Some("0000:3b:00.5"));
    }
}
