// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The one VFIO call that is needed so far. It only asks: the device belongs to the VMM.

use std::io;
use std::os::fd::BorrowedFd;
use vfio_bindings::bindings::vfio::{VFIO_BASE, VFIO_TYPE, vfio_region_info};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_io_nr;

ioctl_io_nr!(VFIO_DEVICE_GET_REGION_INFO, VFIO_TYPE as u32, VFIO_BASE + 8);

/// Where a region lies in the file of a VFIO device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    /// First byte, for `mmap` and `pread`.
    pub(crate) offset: u64,
    /// Length in bytes, 0 where there is none.
    pub(crate) size: u64,
}

/// Asks for a region by its index.
pub(crate) fn region(device: BorrowedFd<'_>, index: u32) -> io::Result<Region> {
    let argsz = size_of::<vfio_region_info>() as u32;
    let mut info = vfio_region_info { argsz, index, ..Default::default() };
    // SAFETY: the ioctl writes at most `argsz` bytes to its argument, which has that size and is ours. On a descriptor
    // of another kind the number means nothing and the call fails.
    match unsafe { ioctl_with_mut_ref(&device, VFIO_DEVICE_GET_REGION_INFO(), &mut info) } {
        0 => Ok(Region { offset: info.offset, size: info.size }),
        _ => Err(io::Error::last_os_error()),
    }
}
