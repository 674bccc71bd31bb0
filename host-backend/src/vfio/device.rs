// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A VFIO device, and the seam between what is decided about interrupts and the ioctls that do it.

use crate::sys::{self, DeviceFile};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_IRQ_INFO_NORESIZE, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK,
    VFIO_IRQ_SET_DATA_BOOL, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, VFIO_PCI_INTX_IRQ_INDEX,
    VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
};
use virtio_irq_proto::IrqType;

/// What [`Interrupts`](super::Interrupts) asks of the kernel. A test can stand in for it and fail any call.
pub trait Ioctl {
    /// VFIO_DEVICE_GET_IRQ_INFO.
    ///
    /// # Errors
    /// The errno of the ioctl.
    fn irq_info(&self, irq_type: IrqType) -> io::Result<IrqInfo>;

    /// VFIO_DEVICE_SET_IRQS. Returns 0, or the number of vectors that could be had where that is fewer than asked for;
    /// then nothing changed.
    ///
    /// # Errors
    /// The errno of the ioctl.
    fn set_irqs(&self, set: &IrqSet<'_>) -> io::Result<u32>;
}

/// What a function has of one interrupt type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IrqInfo {
    /// Number of vectors: of the MSI capability, of the MSI-X table, of INTx pins. 0 if it has none.
    pub count: u32,
    /// Whether vectors beyond those that were enabled first can be added later. MSI never can; MSI-X can from Linux 6.5
    /// on, where the platform can.
    pub resizable: bool,
}

/// The argument of VFIO_DEVICE_SET_IRQS.
#[derive(Clone, Copy, Debug)]
pub struct IrqSet<'a> {
    /// Of which type.
    pub irq_type: IrqType,
    /// What to do.
    pub action: SetAction,
    /// The first vector.
    pub first: u32,
    /// With what, and with how many vectors.
    pub data: Data<'a>,
}

/// What SET_IRQS does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetAction {
    /// Enables, sets up and raises.
    Trigger,
    /// Lets the pin through again. Only of INTx.
    Unmask,
}

/// What SET_IRQS does it with.
#[derive(Clone, Copy, Debug)]
pub enum Data<'a> {
    /// Nothing, for so many vectors. [`SetAction::Trigger`] of none disables the type.
    None(u32),
    /// One `false`: raises nothing, but fails unless the type is enabled.
    False,
    /// An eventfd for each vector, or none for it.
    Eventfds(&'a [Option<BorrowedFd<'a>>]),
}

/// The real thing.
#[derive(Debug)]
pub struct VfioDevice {
    file: DeviceFile,
}

/// A region of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where it is in the file.
    pub offset: u64,
    /// Length in bytes, 0 if the function has no such region.
    pub size: u64,
}

fn not_pci(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("it is {what}, not a VFIO device of PCI"))
}

/// What number VFIO gives the type.
fn index(irq_type: IrqType) -> u32 {
    match irq_type {
        IrqType::Intx => VFIO_PCI_INTX_IRQ_INDEX,
        IrqType::Msi => VFIO_PCI_MSI_IRQ_INDEX,
        IrqType::Msix => VFIO_PCI_MSIX_IRQ_INDEX,
    }
}

impl From<VfioDevice> for OwnedFd {
    fn from(device: VfioDevice) -> Self {
        device.file.into()
    }
}

impl VfioDevice {
    /// Takes over the descriptor of a PCI function that is open with VFIO. Which function it is, is not looked at.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if it is something else; what the ioctl says, EINVAL if it is a character device
    /// that was not bound to an IOMMUFD yet.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        Self::from_file(DeviceFile::new(fd).map_err(|kind| not_pci(&kind))?)
    }

    pub(super) fn from_file(file: DeviceFile) -> io::Result<Self> {
        if file.info()?.flags & VFIO_DEVICE_FLAGS_PCI == 0 {
            return Err(not_pci("a VFIO device of another bus"));
        }
        Ok(Self { file })
    }

    /// Another descriptor of the same open file.
    ///
    /// # Errors
    /// The process is out of descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()? })
    }

    /// Where a region is: a BAR by its number, or one of VFIO's further indices.
    ///
    /// # Errors
    /// The errno of the ioctl.
    pub fn region(&self, index: u32) -> io::Result<Region> {
        self.file.region_info(index).map(|info| Region { offset: info.offset, size: info.size })
    }

    /// Reads 32-bit words of the memory of a BAR, `offset` bytes into it (a multiple of 4), from the device itself: this
    /// way shows the MSI-X table as the host wrote it, and works where sysfs's `resourceN` cannot be mapped because the
    /// VFIO driver claimed the BAR (CONFIG_IO_STRICT_DEVMEM).
    ///
    /// # Errors
    /// EINVAL if it is beyond the BAR or the BAR cannot be mapped, EFAULT while the guest has memory decoding off.
    pub fn read_bar(&self, bar: u8, offset: u64, words: &mut [u32]) -> io::Result<()> {
        let region = self.region(u32::from(bar))?;
        let end = offset.checked_add(size_of_val(words) as u64);
        if end.is_none_or(|end| end > region.size) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        sys::read_mapped(self.file.file(), region.offset + offset, words)
    }
}

impl AsFd for VfioDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.file().as_fd()
    }
}

impl Ioctl for VfioDevice {
    fn irq_info(&self, irq_type: IrqType) -> io::Result<IrqInfo> {
        let info = self.file.irq_info(index(irq_type))?;
        Ok(IrqInfo { count: info.count, resizable: info.flags & VFIO_IRQ_INFO_NORESIZE == 0 })
    }

    fn set_irqs(&self, set: &IrqSet<'_>) -> io::Result<u32> {
        let action = match set.action {
            SetAction::Trigger => VFIO_IRQ_SET_ACTION_TRIGGER,
            SetAction::Unmask => VFIO_IRQ_SET_ACTION_UNMASK,
        };
        let (kind, count, data) = match set.data {
            Data::None(count) => (VFIO_IRQ_SET_DATA_NONE, count, Vec::new()),
            Data::False => (VFIO_IRQ_SET_DATA_BOOL, 1, vec![0]),
            Data::Eventfds(fds) => {
                let count =
                    u32::try_from(fds.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
                // The kernel takes a negative number as "none".
                let numbers = fds.iter().map(|fd| fd.map_or(-1, |fd| fd.as_raw_fd()).cast_unsigned());
                (VFIO_IRQ_SET_DATA_EVENTFD, count, numbers.collect())
            }
        };
        self.file.set_irqs(action | kind, index(set.irq_type), set.first, count, &data)
    }
}
