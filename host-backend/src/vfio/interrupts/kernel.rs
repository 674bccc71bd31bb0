// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A kernel that is made of a few maps and directories, and fails where it is told to. Its rules are those of
//! drivers/vfio/pci/vfio_pci_intrs.c, as far as they matter here.

use super::Interrupts;
use crate::vfio::{Data, Host, Ioctl, IrqInfo, IrqSet, SetAction};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use virtio_irq_proto::{IrqType, PciAddress};

/// The function.
pub(crate) const FUNCTION: PciAddress = PciAddress { segment: 0, bus: 2, devfn: 0x18 };
/// As sysfs names it.
pub(crate) const NAME: &str = "0000:02:03.0";
const FIRST_IRQ: u32 = 40;
const INTX_IRQ: u32 = 17;

/// The eventfd that stands for the VMM's own.
pub(super) const VMM: i32 = 1_000_000;

/// The kernel's side of one function.
pub(crate) struct Kernel {
    pub(super) root: tempfile::TempDir,
    /// Where handlers are shown, below the root.
    pub(super) proc: &'static str,
    counts: [u32; 3],
    /// What the host has left.
    pub(crate) available: u32,
    resizable: bool,
    pub(crate) enabled: Option<IrqType>,
    allocated: u32,
    pub(super) triggers: BTreeMap<u32, i32>,
    /// As the kernel does, with the eventfd and not with its number.
    signals: BTreeMap<u32, OwnedFd>,
    /// Writes into the function's registers what is enabled: a type and its number of vectors.
    registers: Registers,
    pub(crate) masked: bool,
    pub(crate) raised: Vec<i32>,
    /// The first eventfd that MSI vector 0 got alone after it was enabled.
    parking: Option<i32>,
    /// MSI vector 0 lost its handler while others went on.
    pub(super) lost_message: bool,
    /// Ioctls until one fails.
    pub(crate) fail_after: Option<u32>,
    /// As the kernel does when it cannot set up one of several vectors.
    pub(crate) clear_and_fail_after: Option<u32>,
    pub(crate) calls: u32,
}

type Registers = Box<dyn FnMut(Option<(IrqType, u32)>) + Send>;

/// A descriptor of the device.
#[derive(Clone)]
pub(crate) struct Fake(Arc<Mutex<Kernel>>);

impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fake")
    }
}

impl Fake {
    /// A function with so many vectors of each type.
    pub(crate) fn new(intx: u32, msi: u32, msix: u32) -> Self {
        let root = tempfile::tempdir().unwrap();
        let function = root.path().join("sys/bus/pci/devices").join(NAME);
        fs::create_dir_all(&function).unwrap();
        fs::create_dir_all(root.path().join("proc/irq")).unwrap();
        fs::write(function.join("irq"), format!("{INTX_IRQ}\n")).unwrap();
        Self(Arc::new(Mutex::new(Kernel {
            root,
            proc: "proc",
            counts: [intx, msi, msix],
            available: u32::MAX,
            resizable: false,
            enabled: None,
            allocated: 0,
            triggers: BTreeMap::new(),
            signals: BTreeMap::new(),
            registers: Box::new(|_| ()),
            masked: false,
            raised: Vec::new(),
            parking: None,
            lost_message: false,
            fail_after: None,
            clear_and_fail_after: None,
            calls: 0,
        })))
    }

    pub(crate) fn kernel(&self) -> MutexGuard<'_, Kernel> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where its `sys` and `proc` are.
    pub(crate) fn root(&self) -> PathBuf {
        self.kernel().root.path().to_owned()
    }

    /// From now on `registers` is told what is enabled.
    pub(crate) fn show(&self, registers: impl FnMut(Option<(IrqType, u32)>) + Send + 'static) {
        self.kernel().registers = Box::new(registers);
    }

    /// Lets the ioctl fail that comes after so many others from now on; `None` for none.
    pub(crate) fn fail_at(&self, after: Option<u32>) {
        let mut kernel = self.kernel();
        kernel.fail_after = after.map(|after| kernel.calls + after);
    }

    /// Whether it did.
    pub(crate) fn has_failed(&self) -> bool {
        let kernel = self.kernel();
        kernel.fail_after.is_some_and(|at| at < kernel.calls)
    }

    /// The hardware raises a vector. Returns whether anybody is told.
    pub(crate) fn fire(&self, vector: u32) -> bool {
        let signal = self.kernel().signals.get(&vector).map(|signal| signal.try_clone().unwrap());
        signal.is_some_and(|signal| File::from(signal).write(&1_u64.to_ne_bytes()).is_ok())
    }

    pub(super) fn interrupts(&self) -> Interrupts<Self> {
        Interrupts::new(self.clone(), &Host::at(self.root()), FUNCTION)
    }

    pub(crate) fn enabled(&self) -> Option<IrqType> {
        self.kernel().enabled
    }

    /// Vectors with their eventfds, but for the one of MSI vector 0 that nobody reads.
    pub(crate) fn triggers(&self) -> Vec<(u32, i32)> {
        let kernel = self.kernel();
        assert!(!kernel.lost_message);
        let mut triggers = kernel.triggers.clone();
        if kernel.parking.is_some() && triggers.get(&0) == kernel.parking.as_ref() {
            triggers.remove(&0);
        }
        triggers.into_iter().collect()
    }

    /// What the VMM does with its own descriptor of the device.
    pub(super) fn vmm_sets(&self, irq_type: IrqType, first: u32, count: u32) {
        let mut kernel = self.kernel();
        if kernel.enabled.is_none() {
            kernel.enable(irq_type, first + count);
        }
        assert_eq!(kernel.enabled, Some(irq_type));
        for vector in first..first + count {
            kernel.set_vector(vector, Some(VMM));
        }
    }

    pub(super) fn vmm_disables(&self) {
        self.kernel().disable();
    }
}

impl Kernel {
    fn handler(&self, vector: u32) -> PathBuf {
        let (number, name) = match self.enabled {
            Some(IrqType::Intx) => (INTX_IRQ, format!("vfio-intx({NAME})")),
            Some(IrqType::Msi) => (FIRST_IRQ + vector, format!("vfio-msi[{vector}]({NAME})")),
            // MSI-X numbers need not be in a row.
            _ => (FIRST_IRQ + vector + (vector / 4) * 3, format!("vfio-msix[{vector}]({NAME})")),
        };
        self.root.path().join(self.proc).join("irq").join(number.to_string()).join(name)
    }

    fn msi_irqs(&self) -> PathBuf {
        self.root.path().join("sys/bus/pci/devices").join(NAME).join("msi_irqs")
    }

    fn enable(&mut self, irq_type: IrqType, count: u32) {
        self.enabled = Some(irq_type);
        self.allocated = count;
        (self.registers)(Some((irq_type, count)));
        for vector in 0..count {
            let directory = self.handler(vector).parent().unwrap().to_owned();
            fs::create_dir_all(&directory).unwrap();
            fs::create_dir_all(self.msi_irqs()).unwrap();
            fs::write(self.msi_irqs().join(directory.file_name().unwrap()), "msi\n").unwrap();
        }
    }

    fn set_vector(&mut self, vector: u32, fd: Option<i32>) {
        self.signals.remove(&vector);
        let handler = self.handler(vector);
        if self.triggers.remove(&vector).is_some() {
            fs::remove_dir(&handler).unwrap();
        }
        if let Some(fd) = fd {
            fs::create_dir_all(&handler).unwrap();
            self.triggers.insert(vector, fd);
        }
    }

    fn disable(&mut self) {
        for vector in 0..self.allocated {
            self.set_vector(vector, None);
        }
        let _ = fs::remove_dir_all(self.msi_irqs());
        self.enabled = None;
        self.allocated = 0;
        (self.registers)(None);
        self.parking = None;
    }

    fn set_irqs(&mut self, set: &IrqSet<'_>) -> Result<u32, i32> {
        let present = self.counts[set.irq_type as usize];
        let (count, fds) = match set.data {
            Data::None(count) => (count, None),
            Data::False => (1, None),
            Data::Eventfds(fds) => (u32::try_from(fds.len()).unwrap(), Some(fds)),
        };
        if set.first >= present || set.first + count > present {
            return Err(libc::EINVAL);
        }
        match (set.action, set.irq_type) {
            (SetAction::Trigger, _) => {}
            (_, IrqType::Msi | IrqType::Msix) => return Err(libc::ENOTTY),
            _ if self.enabled != Some(IrqType::Intx) || count != 1 => return Err(libc::EINVAL),
            (SetAction::Unmask, IrqType::Intx) => {
                self.masked = false;
                return Ok(0);
            }
        }
        let Some(fds) = fds else {
            if self.enabled != Some(set.irq_type) {
                return Err(libc::EINVAL);
            }
            match set.data {
                Data::None(0) => self.disable(),
                Data::None(_) => self.raised.extend(self.triggers.get(&set.first)),
                _ => {}
            }
            return Ok(0);
        };
        match self.enabled {
            Some(irq_type) if irq_type != set.irq_type => return Err(libc::EINVAL),
            Some(_) => {}
            None if set.first + count > self.available => return Ok(self.available),
            None => self.enable(set.irq_type, set.first + count),
        }
        if self.parking.is_none() && set.irq_type == IrqType::Msi && set.first == 0 {
            self.parking = fds[0].map(|fd| fd.as_raw_fd());
        }
        for (vector, fd) in (set.first..).zip(fds) {
            if fd.is_some() && vector >= self.allocated {
                return Err(libc::EINVAL);
            }
            self.set_vector(vector, fd.map(|fd| fd.as_raw_fd()));
            self.signals.extend(fd.map(|fd| (vector, fd.try_clone_to_owned().unwrap())));
            self.lost_message |= (set.irq_type, vector) == (IrqType::Msi, 0)
                && fd.is_none()
                && self.triggers.range(1..).next().is_some();
        }
        Ok(0)
    }
}

impl Ioctl for Fake {
    fn irq_info(&self, irq_type: IrqType) -> io::Result<IrqInfo> {
        let mut kernel = self.kernel();
        kernel.count_call()?;
        Ok(IrqInfo { count: kernel.counts[irq_type as usize], resizable: kernel.resizable })
    }

    fn set_irqs(&self, set: &IrqSet<'_>) -> io::Result<u32> {
        let mut kernel = self.kernel();
        if kernel.clear_and_fail_after == Some(kernel.calls) {
            let Data::Eventfds(fds) = set.data else { panic!("{set:?}") };
            (set.first..).zip(fds).for_each(|(vector, _)| kernel.set_vector(vector, None));
            kernel.clear_and_fail_after = None;
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        kernel.count_call()?;
        kernel.set_irqs(set).map_err(io::Error::from_raw_os_error)
    }
}

impl Kernel {
    fn count_call(&mut self) -> io::Result<()> {
        let call = self.calls;
        self.calls += 1;
        if self.fail_after == Some(call) { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }
}
