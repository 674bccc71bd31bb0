// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VFIO's ioctls, as far as they are needed here. Structures and numbers are those of include/uapi/linux/vfio.h.

use libc::c_ulong;
use rustix::fs::{FileType, fstat};
use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_TYPE, vfio_device_info, vfio_irq_info, vfio_irq_set, vfio_region_info,
};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ptr};
use vmm_sys_util::ioctl_io_nr;

ioctl_io_nr!(VFIO_GROUP_GET_DEVICE_FD, VFIO_TYPE as u32, VFIO_BASE + 6);
ioctl_io_nr!(VFIO_DEVICE_GET_INFO, VFIO_TYPE as u32, VFIO_BASE + 7);
ioctl_io_nr!(VFIO_DEVICE_GET_REGION_INFO, VFIO_TYPE as u32, VFIO_BASE + 8);
ioctl_io_nr!(VFIO_DEVICE_GET_IRQ_INFO, VFIO_TYPE as u32, VFIO_BASE + 9);
ioctl_io_nr!(VFIO_DEVICE_SET_IRQS, VFIO_TYPE as u32, VFIO_BASE + 10);

/// The numbers of all that are used here.
pub(crate) fn ioctls() -> [c_ulong; 5] {
    [
        VFIO_GROUP_GET_DEVICE_FD(),
        VFIO_DEVICE_GET_INFO(),
        VFIO_DEVICE_GET_REGION_INFO(),
        VFIO_DEVICE_GET_IRQ_INFO(),
        VFIO_DEVICE_SET_IRQS(),
    ]
}

/// A file that is VFIO's, of a device.
///
/// Descriptors come from other processes here, and an ioctl number means something else to every driver. So nothing
/// is asked of a descriptor before the kernel said what it is.
#[derive(Debug)]
pub(crate) struct DeviceFile(File);

/// A file that is VFIO's, of a group.
#[derive(Debug)]
pub(crate) struct GroupFile(File);

impl From<DeviceFile> for OwnedFd {
    fn from(device: DeviceFile) -> Self {
        device.0.into()
    }
}

impl DeviceFile {
    /// Takes over a descriptor if it is a VFIO device, opened through its group or as a character device.
    ///
    /// # Errors
    /// What it is instead.
    pub(crate) fn new(fd: OwnedFd) -> Result<Self, String> {
        let kind = kind_of(fd.as_fd())?;
        if kind == "anon_inode:[vfio-device]" || character_device_class(fd.as_fd(), &kind) == "vfio-dev" {
            Ok(Self(File::from(fd)))
        } else {
            Err(kind)
        }
    }

    /// For plain reading and mapping.
    pub(crate) fn file(&self) -> &File {
        &self.0
    }

    pub(crate) fn into_fd(self) -> OwnedFd {
        self.0.into()
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    pub(crate) fn info(&self) -> io::Result<vfio_device_info> {
        let mut info = vfio_device_info { argsz: size_of::<vfio_device_info>() as u32, ..Default::default() };
        // SAFETY: the file is a VFIO device, so the ioctl is the one that writes at most `argsz` bytes to its argument,
        // and that is the size of the structure, which may hold any bytes.
        check(unsafe { ioctl_with_mut_ref(&self.0, VFIO_DEVICE_GET_INFO(), &mut info) })?;
        Ok(info)
    }

    pub(crate) fn region_info(&self, index: u32) -> io::Result<vfio_region_info> {
        let argsz = size_of::<vfio_region_info>() as u32;
        let mut info = vfio_region_info { argsz, index, ..Default::default() };
        // SAFETY: as in `info`. Capabilities would follow the structure only if `argsz` had room for them.
        check(unsafe { ioctl_with_mut_ref(&self.0, VFIO_DEVICE_GET_REGION_INFO(), &mut info) })?;
        Ok(info)
    }

    pub(crate) fn irq_info(&self, index: u32) -> io::Result<vfio_irq_info> {
        let argsz = size_of::<vfio_irq_info>() as u32;
        let mut info = vfio_irq_info { argsz, index, ..Default::default() };
        // SAFETY: as in `info`.
        check(unsafe { ioctl_with_mut_ref(&self.0, VFIO_DEVICE_GET_IRQ_INFO(), &mut info) })?;
        Ok(info)
    }

    /// `data` follows the head. Returns what the ioctl does: 0, or the number of vectors that could be had.
    pub(crate) fn set_irqs(
        &self,
        flags: u32,
        index: u32,
        start: u32,
        count: u32,
        data: &[u32],
    ) -> io::Result<u32> {
        let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let argsz = u32::try_from(SET_IRQS_HEAD + size_of_val(data)).map_err(too_long)?;
        let mut words = vec![argsz, flags, index, start, count];
        words.extend_from_slice(data);
        // SAFETY: the file is a VFIO device, so the ioctl is the one that reads a `vfio_irq_set` of `argsz` bytes and
        // writes nothing. `words` has those bytes, in the order of the structure's fields (asserted below) and with its
        // alignment. Numbers in it that are no descriptors are refused by the kernel.
        check(unsafe { ioctl_with_ptr(&self.0, VFIO_DEVICE_SET_IRQS(), words.as_ptr()) })
    }
}

/// The five words before the data.
const SET_IRQS_HEAD: usize = offset_of!(vfio_irq_set, data);

const _: () = assert!(
    SET_IRQS_HEAD == 20
        && offset_of!(vfio_irq_set, argsz) == 0
        && offset_of!(vfio_irq_set, flags) == 4
        && offset_of!(vfio_irq_set, index) == 8
        && offset_of!(vfio_irq_set, start) == 12
        && offset_of!(vfio_irq_set, count) == 16
        && align_of::<vfio_irq_set>() == align_of::<u32>()
);

impl GroupFile {
    /// Takes over a descriptor if it is a VFIO group.
    ///
    /// # Errors
    /// What it is instead.
    pub(crate) fn new(fd: OwnedFd) -> Result<Self, String> {
        let kind = kind_of(fd.as_fd())?;
        if character_device_class(fd.as_fd(), &kind) == "vfio" { Ok(Self(File::from(fd))) } else { Err(kind) }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Opens the group's device of this name once more.
    pub(crate) fn device(&self, name: &CStr) -> io::Result<OwnedFd> {
        // SAFETY: the file is a VFIO group, so the ioctl is the one that reads a string that a zero ends.
        let number = unsafe { ioctl_with_ptr(&self.0, VFIO_GROUP_GET_DEVICE_FD(), name.as_ptr()) };
        check(number)?;
        // SAFETY: the ioctl just returned this number as a descriptor that it opened, so it belongs to nobody else.
        Ok(unsafe { OwnedFd::from_raw_fd(number) })
    }
}

fn check(result: i32) -> io::Result<u32> {
    u32::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// The kernel's name of an open file. For files without a place in a file system it is a text that no path can be.
fn kind_of(fd: BorrowedFd<'_>) -> Result<String, String> {
    match fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())) {
        Ok(link) => Ok(link.to_string_lossy().into_owned()),
        Err(error) => Err(format!("a descriptor that /proc does not tell about ({error})")),
    }
}

/// The class in sysfs that a character device belongs to; empty for all else.
fn character_device_class(fd: BorrowedFd<'_>, kind: &str) -> String {
    // Asking about a file of any file system could wait for its server.
    if !kind.starts_with("/dev/") {
        return String::new();
    }
    let Some(stat) =
        fstat(fd).ok().filter(|s| FileType::from_raw_mode(s.st_mode) == FileType::CharacterDevice)
    else {
        return String::new();
    };
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    fs::read_link(Path::new("/sys/dev/char").join(format!("{major}:{minor}/subsystem")))
        .ok()
        .and_then(|link| Some(link.file_name()?.to_string_lossy().into_owned()))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_files_are_no_devices_and_are_named() {
        let file = tempfile::tempfile().unwrap();
        let kind = DeviceFile::new(file.into()).unwrap_err();
        assert!(kind.contains("(deleted)"), "{kind}");
        let null = File::open("/dev/null").unwrap();
        assert_eq!(DeviceFile::new(null.try_clone().unwrap().into()).unwrap_err(), "/dev/null");
        assert_eq!(GroupFile::new(null.into()).unwrap_err(), "/dev/null");
        let event = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
        let event = crate::sys::borrow(&event).try_clone_to_owned().unwrap();
        assert_eq!(DeviceFile::new(event).unwrap_err(), "anon_inode:[eventfd]");
    }
}
