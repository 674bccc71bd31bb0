// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A VMM in miniature: opens functions through their groups, maps a page for their DMA and sets interrupts up for itself.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr;
use vfio_bindings::bindings::vfio::*;
use vhost_device_irq::vfio::{Data, Ioctl, IrqSet, SetAction, VfioDevice};
use virtio_irq_proto::{IrqType, PciAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::ioctl::{ioctl, ioctl_with_ptr, ioctl_with_ref, ioctl_with_val};
use vmm_sys_util::ioctl_io_nr;

ioctl_io_nr!(VFIO_SET_IOMMU, VFIO_TYPE as u32, VFIO_BASE + 2);
ioctl_io_nr!(VFIO_GROUP_SET_CONTAINER, VFIO_TYPE as u32, VFIO_BASE + 4);
ioctl_io_nr!(VFIO_GROUP_GET_DEVICE_FD, VFIO_TYPE as u32, VFIO_BASE + 6);
ioctl_io_nr!(VFIO_DEVICE_RESET, VFIO_TYPE as u32, VFIO_BASE + 11);
ioctl_io_nr!(VFIO_IOMMU_MAP_DMA, VFIO_TYPE as u32, VFIO_BASE + 13);

const SYSFS: &str = "/sys/bus/pci/devices";

pub(crate) fn sysfs(address: PciAddress, file: &str) -> String {
    format!("{SYSFS}/{address}/{file}")
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The functions with these ids, bound to vfio-pci.
pub(crate) fn functions(vendor: u16, device: u16) -> Vec<PciAddress> {
    let mut names: Vec<String> =
        fs::read_dir(SYSFS).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let hex = |name: &str, file: &str| {
        let text = fs::read_to_string(format!("{SYSFS}/{name}/{file}")).unwrap();
        u16::from_str_radix(text.trim().trim_start_matches("0x"), 16).unwrap()
    };
    names.retain(|name| hex(name, "vendor") == vendor && hex(name, "device") == device);
    assert!(!names.is_empty(), "the machine has no {vendor:04x}:{device:04x}");
    names.iter().map(|name| bind(name)).collect()
}

fn bind(name: &str) -> PciAddress {
    let path = format!("{SYSFS}/{name}");
    let driver = fs::read_link(format!("{path}/driver")).ok();
    if driver.is_none_or(|driver| !driver.ends_with("vfio-pci")) {
        fs::write(format!("{path}/driver_override"), "vfio-pci").unwrap();
        let _ = fs::write(format!("{path}/driver/unbind"), name);
        fs::write("/sys/bus/pci/drivers_probe", name).unwrap();
    }
    assert!(fs::read_link(format!("{path}/driver")).unwrap().ends_with("vfio-pci"));
    name.parse().unwrap()
}

/// A container with the functions' groups.
pub(crate) struct Owner {
    pub(crate) container: File,
    pub(crate) groups: Vec<File>,
}

impl Owner {
    pub(crate) fn of(functions: &[PciAddress]) -> io::Result<Self> {
        let open = |path: &str| File::options().read(true).write(true).open(path);
        let container = open("/dev/vfio/vfio")?;
        let mut groups = Vec::new();
        for function in functions {
            let link = fs::read_link(sysfs(*function, "iommu_group"))?;
            let group = open(&format!("/dev/vfio/{}", link.file_name().unwrap().display()))?;
            let fd = container.as_raw_fd();
            // SAFETY: the ioctl reads one integer.
            check(unsafe { ioctl_with_ref(&group, VFIO_GROUP_SET_CONTAINER(), &fd) })?;
            groups.push(group);
        }
        // SAFETY: the ioctl takes a number.
        check(unsafe { ioctl_with_val(&container, VFIO_SET_IOMMU(), VFIO_TYPE1v2_IOMMU.into()) })?;
        Ok(Self { container, groups })
    }

    pub(crate) fn device(&self, index: usize, function: PciAddress) -> io::Result<Device> {
        let name = CString::new(function.to_string()).unwrap();
        // SAFETY: the ioctl reads a string that a zero ends, and returns a descriptor that it opened.
        let fd = unsafe {
            let number = ioctl_with_ptr(&self.groups[index], VFIO_GROUP_GET_DEVICE_FD(), name.as_ptr());
            OwnedFd::from_raw_fd(check(number)?)
        };
        let device = Device { vfio: VfioDevice::new(fd)? };
        device.command(6, 0);
        Ok(device)
    }

    /// A page of memory that the functions find at this address.
    pub(crate) fn map(&self, iova: u64) -> *mut u32 {
        // SAFETY: a new mapping touches nothing that the program uses.
        let page = unsafe {
            libc::mmap(
                ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(page, libc::MAP_FAILED);
        let map = vfio_iommu_type1_dma_map {
            argsz: size_of::<vfio_iommu_type1_dma_map>() as u32,
            flags: VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
            vaddr: page as u64,
            iova,
            size: 4096,
        };
        // SAFETY: the ioctl reads the structure; the page stays mapped for the life of the process.
        check(unsafe { ioctl_with_ref(&self.container, VFIO_IOMMU_MAP_DMA(), &map) }).unwrap();
        page.cast()
    }
}

/// A function that is open.
pub(crate) struct Device {
    pub(crate) vfio: VfioDevice,
}

impl Device {
    fn file(&self) -> File {
        self.vfio.as_fd().try_clone_to_owned().unwrap().into()
    }

    /// Sets and clears bits of the command register.
    pub(crate) fn command(&self, set: u16, clear: u16) {
        let config = self.vfio.region(VFIO_PCI_CONFIG_REGION_INDEX).unwrap().offset;
        let mut command = [0; 2];
        self.file().read_exact_at(&mut command, config + 4).unwrap();
        let value = (u16::from_le_bytes(command) | set) & !clear;
        self.file().write_all_at(&value.to_le_bytes(), config + 4).unwrap();
    }

    pub(crate) fn write_config(&self, offset: u64, value: u16) {
        let config = self.vfio.region(VFIO_PCI_CONFIG_REGION_INDEX).unwrap().offset;
        self.file().write_all_at(&value.to_le_bytes(), config + offset).unwrap();
    }

    pub(crate) fn write32(&self, offset: u64, value: u32) {
        let region = self.vfio.region(0).unwrap();
        self.file().write_all_at(&value.to_le_bytes(), region.offset + offset).unwrap();
    }

    pub(crate) fn read32(&self, offset: u64) -> u32 {
        let region = self.vfio.region(0).unwrap();
        let mut bytes = [0; 4];
        self.file().read_exact_at(&mut bytes, region.offset + offset).unwrap();
        u32::from_le_bytes(bytes)
    }

    pub(crate) fn reset(&self) -> io::Result<()> {
        // SAFETY: the ioctl takes nothing.
        check(unsafe { ioctl(&self.file(), VFIO_DEVICE_RESET()) }).map(drop)
    }

    /// What a VMM does.
    pub(crate) fn set_irqs(&self, irq_type: IrqType, first: u32, data: Data<'_>) -> io::Result<u32> {
        self.vfio.set_irqs(&IrqSet { irq_type, action: SetAction::Trigger, first, data })
    }
}

/// The edu device as what its DMA engine makes of it: something that writes any word to any address.
pub(crate) struct Writer {
    device: Device,
    page: *mut u32,
    _owner: Owner,
}

impl Writer {
    const PAGE: u64 = 0x10_0000;
    const BUFFER: u64 = 0x4_0000;

    pub(crate) fn new(edu: PciAddress) -> Self {
        let owner = Owner::of(&[edu]).unwrap();
        let device = owner.device(0, edu).unwrap();
        let page = owner.map(Self::PAGE);
        Self { device, page, _owner: owner }
    }

    pub(crate) fn write(&self, address: u64, word: u32) {
        // SAFETY: the page is mapped, and only the device uses it beside this.
        unsafe { self.page.write_volatile(word) };
        self.dma(Self::PAGE, Self::BUFFER, 0);
        self.dma(Self::BUFFER, address, 2);
    }

    fn dma(&self, from: u64, to: u64, direction: u32) {
        for (register, value) in [(0x80, from), (0x88, to), (0x90, 4)] {
            self.device.write32(register, value as u32);
            self.device.write32(register + 4, (value >> 32) as u32);
        }
        self.device.write32(0x98, direction | 1);
        while self.device.read32(0x98) & 1 != 0 {
            std::thread::yield_now();
        }
    }
}

pub(crate) fn eventfds(count: usize) -> Vec<EventFd> {
    (0..count).map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect()
}

pub(crate) fn borrowed(events: &[EventFd]) -> Vec<BorrowedFd<'_>> {
    // SAFETY: the eventfds live as long as the result.
    events.iter().map(|event| unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }).collect()
}

/// Waits for one of the eventfds and returns which were signalled, and how often. Empty after ten seconds without any.
pub(crate) fn fired(events: &[EventFd]) -> Vec<(usize, u64)> {
    let mut fds: Vec<libc::pollfd> = events
        .iter()
        .map(|event| libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    // SAFETY: the array is as long as is said.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, 10_000) };
    (0..events.len()).filter_map(|index| Some((index, events[index].read().ok()?))).collect()
}

/// As [`fired`], where nothing is expected: an interrupt that took any longer would be missed.
pub(crate) fn quiet(events: &[EventFd]) -> bool {
    std::thread::sleep(std::time::Duration::from_millis(300));
    events.iter().all(|event| event.read().is_err())
}
