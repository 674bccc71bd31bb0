// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Against a kernel that is made of a few maps and directories, and fails where it is told to. Its rules are those of
//! drivers/vfio/pci/vfio_pci_intrs.c, as far as they matter here.

use super::*;
use std::cell::RefCell;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::rc::Rc;
use vmm_sys_util::eventfd::EventFd;

const FUNCTION: PciAddress = PciAddress { segment: 0, bus: 2, devfn: 0x18 };
const NAME: &str = "0000:02:03.0";
const FIRST_IRQ: u32 = 40;
const INTX_IRQ: u32 = 17;

/// The eventfd that stands for the VMM's own.
const VMM: i32 = 1_000_000;

struct Kernel {
    root: tempfile::TempDir,
    proc: &'static str,
    counts: [u32; 3],
    /// What the host has left.
    available: u32,
    resizable: bool,
    enabled: Option<IrqType>,
    allocated: u32,
    triggers: BTreeMap<u32, i32>,
    masked: bool,
    raised: Vec<i32>,
    /// The first eventfd that MSI vector 0 got alone after it was enabled.
    parking: Option<i32>,
    /// MSI vector 0 lost its handler while others went on.
    lost_message: bool,
    /// Ioctls until one fails.
    fail_after: Option<u32>,
    /// As the kernel does when it cannot set up one of several vectors.
    clear_and_fail_after: Option<u32>,
    calls: u32,
}

#[derive(Clone)]
struct Fake(Rc<RefCell<Kernel>>);

impl Fake {
    fn new(intx: u32, msi: u32, msix: u32) -> Self {
        let root = tempfile::tempdir().unwrap();
        let function = root.path().join("sys/bus/pci/devices").join(NAME);
        fs::create_dir_all(&function).unwrap();
        fs::create_dir_all(root.path().join("proc/irq")).unwrap();
        fs::write(function.join("irq"), format!("{INTX_IRQ}\n")).unwrap();
        Self(Rc::new(RefCell::new(Kernel {
            root,
            proc: "proc",
            counts: [intx, msi, msix],
            available: u32::MAX,
            resizable: false,
            enabled: None,
            allocated: 0,
            triggers: BTreeMap::new(),
            masked: false,
            raised: Vec::new(),
            parking: None,
            lost_message: false,
            fail_after: None,
            clear_and_fail_after: None,
            calls: 0,
        })))
    }

    fn interrupts(&self) -> Interrupts<Self> {
        Interrupts::new(self.clone(), &Host::at(self.0.borrow().root.path()), FUNCTION)
    }

    fn enabled(&self) -> Option<IrqType> {
        self.0.borrow().enabled
    }

    /// Vectors with their eventfds, but for the one of MSI vector 0 that nobody reads.
    fn triggers(&self) -> Vec<(u32, i32)> {
        let kernel = self.0.borrow();
        assert!(!kernel.lost_message);
        let mut triggers = kernel.triggers.clone();
        if kernel.parking.is_some() && triggers.get(&0) == kernel.parking.as_ref() {
            triggers.remove(&0);
        }
        triggers.into_iter().collect()
    }

    /// What the VMM does with its own descriptor of the device.
    fn vmm_sets(&self, irq_type: IrqType, first: u32, count: u32) {
        let mut kernel = self.0.borrow_mut();
        if kernel.enabled.is_none() {
            kernel.enable(irq_type, first + count);
        }
        assert_eq!(kernel.enabled, Some(irq_type));
        for vector in first..first + count {
            kernel.set_vector(vector, Some(VMM));
        }
    }

    fn vmm_disables(&self) {
        self.0.borrow_mut().disable();
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
        for vector in 0..count {
            let directory = self.handler(vector).parent().unwrap().to_owned();
            fs::create_dir_all(&directory).unwrap();
            fs::create_dir_all(self.msi_irqs()).unwrap();
            fs::write(self.msi_irqs().join(directory.file_name().unwrap()), "msi\n").unwrap();
        }
    }

    fn set_vector(&mut self, vector: u32, fd: Option<i32>) {
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
            (SetAction::Mask | SetAction::Unmask, IrqType::Intx) => {
                self.masked = set.action == SetAction::Mask;
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
            self.lost_message |= (set.irq_type, vector) == (IrqType::Msi, 0)
                && fd.is_none()
                && self.triggers.range(1..).next().is_some();
        }
        Ok(0)
    }
}

impl Ioctl for Fake {
    fn irq_info(&self, irq_type: IrqType) -> io::Result<IrqInfo> {
        let mut kernel = self.0.borrow_mut();
        kernel.count_call()?;
        Ok(IrqInfo { count: kernel.counts[irq_type as usize], resizable: kernel.resizable })
    }

    fn set_irqs(&self, set: &IrqSet<'_>) -> io::Result<u32> {
        let mut kernel = self.0.borrow_mut();
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

fn eventfds(count: usize) -> Vec<EventFd> {
    (0..count).map(|_| EventFd::new(0).unwrap()).collect()
}

fn borrowed(events: &[EventFd]) -> Vec<BorrowedFd<'_>> {
    events.iter().map(crate::sys::borrow).collect()
}

#[test]
fn a_block_is_enabled_bare_and_vectors_are_armed_in_it() {
    let kernel = Fake::new(0, 8, 0);
    let mut interrupts = kernel.interrupts();
    assert_eq!(interrupts.enable(IrqType::Msi, 2, 8).unwrap(), 8);
    assert_eq!(interrupts.enabled(), Some((IrqType::Msi, 8)));
    assert_eq!(kernel.triggers(), []);
    let events = eventfds(3);
    interrupts.arm(5, &borrowed(&events)).unwrap();
    let [a, b, c] = [0, 1, 2].map(|index: usize| events[index].as_raw_fd());
    assert_eq!(kernel.triggers(), [(5, a), (6, b), (7, c)]);
    interrupts.still_ours().unwrap();
    interrupts.disarm(6..7).unwrap();
    assert_eq!(kernel.triggers(), [(5, a), (7, c)]);
    interrupts.arm(7, &borrowed(&events[..1])).unwrap();
    assert_eq!(kernel.triggers(), [(5, a), (7, a)]);
    interrupts.still_ours().unwrap();
    interrupts.raise(7).unwrap();
    assert_eq!(kernel.0.borrow().raised, [a]);
    interrupts.release().unwrap();
    assert_eq!((kernel.enabled(), kernel.triggers()), (None, vec![]));
    assert!(matches!(interrupts.arm(0, &borrowed(&events)), Err(InterruptError::NotEnabled { .. })));
}

#[test]
fn msi_keeps_its_message_whatever_becomes_of_vector_0() {
    let kernel = Fake::new(0, 8, 0);
    let mut interrupts = kernel.interrupts();
    let events = eventfds(8);
    interrupts.enable(IrqType::Msi, 8, 8).unwrap();
    interrupts.arm(0, &borrowed(&events)).unwrap();
    interrupts.disarm(0..3).unwrap();
    assert_eq!(kernel.triggers().iter().map(|(vector, _)| *vector).collect::<Vec<_>>(), [3, 4, 5, 6, 7]);
    interrupts.still_ours().unwrap();
    interrupts.disarm(0..1).unwrap();
    interrupts.arm(0, &borrowed(&events[..1])).unwrap();
    assert_eq!(kernel.triggers()[0], (0, events[0].as_raw_fd()));
    // The kernel clears the range when it fails in the middle of it.
    let calls = kernel.0.borrow().calls;
    kernel.0.borrow_mut().clear_and_fail_after = Some(calls + 1);
    interrupts.arm(0, &borrowed(&events[..2])).unwrap_err();
    assert_eq!(kernel.triggers().len(), 5);
    interrupts.still_ours().unwrap();
    assert_eq!(kernel.0.borrow().triggers.len(), 6);
    interrupts.release().unwrap();
    assert_eq!((kernel.enabled(), kernel.triggers()), (None, vec![]));
}

#[test]
fn vectors_beyond_the_block_are_refused_before_the_kernel_is_asked() {
    let kernel = Fake::new(0, 8, 0);
    let mut interrupts = kernel.interrupts();
    interrupts.enable(IrqType::Msi, 4, 4).unwrap();
    let calls = kernel.0.borrow().calls;
    let events = eventfds(2);
    for first in [3, 4, 7, u16::MAX - 1, u16::MAX] {
        let error = interrupts.arm(first, &borrowed(&events)).unwrap_err();
        assert!(matches!(error, InterruptError::NoVector { present: 4, .. }), "{first}: {error}");
    }
    assert!(matches!(interrupts.raise(4), Err(InterruptError::NoVector { .. })));
    assert_eq!(kernel.0.borrow().calls, calls);
    interrupts.arm(2, &borrowed(&events)).unwrap();
}

#[test]
fn fewer_vectors_are_taken_down_to_the_least() {
    let kernel = Fake::new(0, 32, 0);
    kernel.0.borrow_mut().available = 4;
    let mut interrupts = kernel.interrupts();
    let error = interrupts.enable(IrqType::Msi, 5, 32).unwrap_err();
    assert!(matches!(error, InterruptError::TooFew { wanted: 5, available: 4, .. }), "{error}");
    assert_eq!(
        error.to_string(),
        "the host has 4 MSI vectors left for PCI function 0000:02:03.0, 5 are needed"
    );
    assert_eq!((kernel.enabled(), interrupts.enabled()), (None, None));
    assert_eq!(interrupts.enable(IrqType::Msi, 4, 32).unwrap(), 4);
    let error = kernel.interrupts().enable(IrqType::Msix, 1, 1).unwrap_err();
    assert!(matches!(error, InterruptError::NoVector { present: 0, .. }), "{error}");
}

#[test]
fn a_kernel_that_offers_no_fewer_ends_the_attempt() {
    let kernel = Fake::new(0, 4, 0);
    kernel.0.borrow_mut().available = 4;
    let mut interrupts = kernel.interrupts();
    assert_eq!(interrupts.enable(IrqType::Msi, 1, 4).unwrap(), 4);
    interrupts.release().unwrap();
    // As many as were asked for, yet not enabled: there is no sense in asking the same again.
    struct Stubborn;
    impl Ioctl for Stubborn {
        fn irq_info(&self, _: IrqType) -> io::Result<IrqInfo> {
            Ok(IrqInfo { count: 4, resizable: false })
        }
        fn set_irqs(&self, set: &IrqSet<'_>) -> io::Result<u32> {
            match set.data {
                Data::Eventfds(fds) => Ok(u32::try_from(fds.len()).unwrap()),
                _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
            }
        }
    }
    let mut interrupts = Interrupts::new(Stubborn, &Host::at("/nonexistent"), FUNCTION);
    assert!(matches!(interrupts.enable(IrqType::Msi, 1, 4), Err(InterruptError::TooFew { .. })));
}

#[test]
fn the_vmms_intx_makes_room_and_its_msi_does_not() {
    let kernel = Fake::new(1, 4, 0);
    let mut interrupts = kernel.interrupts();
    kernel.vmm_sets(IrqType::Intx, 0, 1);
    assert_eq!(interrupts.active().unwrap(), Some(IrqType::Intx));
    interrupts.enable(IrqType::Msi, 4, 4).unwrap();
    assert_eq!(interrupts.active().unwrap(), Some(IrqType::Msi));
    interrupts.release().unwrap();
    kernel.vmm_sets(IrqType::Msi, 0, 2);
    let error = interrupts.enable(IrqType::Msi, 4, 4).unwrap_err();
    assert!(matches!(error, InterruptError::InUse { irq_type: IrqType::Msi, .. }), "{error}");
    assert_eq!(kernel.triggers(), [(0, VMM), (1, VMM)]);
    drop(interrupts);
    assert_eq!(kernel.triggers(), [(0, VMM), (1, VMM)]);
}

#[test]
fn intx_that_cannot_be_used_stays_with_the_vmm() {
    let kernel = Fake::new(1, 4, 0);
    kernel.vmm_sets(IrqType::Intx, 0, 1);
    let mut interrupts = kernel.interrupts();
    assert!(matches!(interrupts.enable(IrqType::Msi, 5, 8), Err(InterruptError::NoVector { .. })));
    assert_eq!(kernel.triggers(), [(0, VMM)]);
}

#[test]
fn intx_is_ours_until_it_is_released() {
    let kernel = Fake::new(1, 4, 0);
    kernel.vmm_sets(IrqType::Intx, 0, 1);
    let mut interrupts = kernel.interrupts();
    assert!(matches!(interrupts.unmask_intx(), Err(InterruptError::NotEnabled { .. })));
    let events = eventfds(1);
    interrupts.enable_intx(borrowed(&events)[0]).unwrap();
    assert_eq!(kernel.triggers(), [(0, events[0].as_raw_fd())]);
    interrupts.mask_intx().unwrap();
    assert!(kernel.0.borrow().masked);
    interrupts.unmask_intx().unwrap();
    assert!(!kernel.0.borrow().masked);
    interrupts.still_ours().unwrap();
    let error = interrupts.enable(IrqType::Msi, 1, 1).unwrap_err();
    assert!(matches!(error, InterruptError::InUse { irq_type: IrqType::Intx, .. }), "{error}");
    // The VMM sets its own up again, as QEMU does when it resets the function.
    kernel.vmm_disables();
    kernel.vmm_sets(IrqType::Intx, 0, 1);
    assert!(matches!(interrupts.still_ours(), Err(Lost::Replaced(vectors)) if vectors == [0]));
    interrupts.release().unwrap();
    assert_eq!(kernel.triggers(), [(0, VMM)]);
}

#[test]
fn a_vmm_that_disables_the_type_is_noticed_and_left_alone() {
    let kernel = Fake::new(0, 4, 0);
    let mut interrupts = kernel.interrupts();
    let events = eventfds(2);
    interrupts.enable(IrqType::Msi, 4, 4).unwrap();
    interrupts.arm(1, &borrowed(&events)).unwrap();
    kernel.vmm_disables();
    assert!(matches!(interrupts.still_ours(), Err(Lost::Disabled)));
    // None of these may enable it again, which is what the ioctl would do.
    assert!(matches!(interrupts.arm(1, &borrowed(&events)), Err(InterruptError::NotEnabled { .. })));
    interrupts.disarm(0..4).unwrap();
    assert_eq!(kernel.enabled(), None);
    interrupts.release().unwrap();
    assert_eq!(kernel.enabled(), None);
    interrupts.enable(IrqType::Msi, 4, 4).unwrap();
}

#[test]
fn vectors_that_the_vmm_took_stay_with_it() {
    for irq_type in [IrqType::Msi, IrqType::Msix] {
        let kernel = Fake::new(0, 16, 16);
        let mut interrupts = kernel.interrupts();
        let events = eventfds(12);
        interrupts.enable(irq_type, 16, 16).unwrap();
        interrupts.arm(3, &borrowed(&events)).unwrap();
        interrupts.still_ours().unwrap();
        kernel.vmm_sets(irq_type, 2, 3);
        assert!(matches!(interrupts.still_ours(), Err(Lost::Replaced(vectors)) if vectors == [3, 4]));
        for first in [2, 4] {
            let error = interrupts.arm(first, &borrowed(&events[..1])).unwrap_err();
            assert!(matches!(error, InterruptError::InUse { .. }), "{error}");
        }
        interrupts.release().unwrap();
        assert!(!kernel.0.borrow().lost_message);
        assert_eq!(kernel.enabled(), Some(irq_type));
        assert_eq!(kernel.triggers(), [(2, VMM), (3, VMM), (4, VMM)]);
    }
}

#[test]
fn a_vmm_that_takes_a_block_without_armed_vectors_keeps_it() {
    let kernel = Fake::new(0, 0, 8);
    let mut interrupts = kernel.interrupts();
    interrupts.enable(IrqType::Msix, 8, 8).unwrap();
    kernel.vmm_sets(IrqType::Msix, 6, 1);
    drop(interrupts);
    assert_eq!(kernel.triggers(), [(6, VMM)]);
}

#[test]
fn arming_that_fails_half_way_leaves_none_of_the_vectors_armed() {
    let kernel = Fake::new(0, 8, 0);
    let mut interrupts = kernel.interrupts();
    let events = eventfds(4);
    interrupts.enable(IrqType::Msi, 8, 8).unwrap();
    interrupts.arm(1, &borrowed(&events[..1])).unwrap();
    interrupts.arm(2, &borrowed(&events[1..3])).unwrap();
    // The state is asked for, then the eventfds are set.
    let calls = kernel.0.borrow().calls;
    kernel.0.borrow_mut().fail_after = Some(calls + 1);
    let error = interrupts.arm(2, &borrowed(&events[2..])).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert_eq!(
        error.to_string(),
        "cannot set up MSI vectors 2 to 3 of PCI function 0000:02:03.0: Input/output error (os error 5)"
    );
    assert_eq!(kernel.triggers(), [(1, events[0].as_raw_fd())]);
    interrupts.still_ours().unwrap();
    interrupts.arm(2, &borrowed(&events[2..])).unwrap();
}

#[test]
fn vectors_are_disarmed_although_others_cannot_be() {
    let kernel = Fake::new(0, 0, 16);
    let mut interrupts = kernel.interrupts();
    let events = eventfds(2);
    interrupts.enable(IrqType::Msix, 16, 16).unwrap();
    for first in [1, 5, 9] {
        interrupts.arm(first, &borrowed(&events)).unwrap();
    }
    // The state is asked for, then the first run is disarmed.
    let calls = kernel.0.borrow().calls;
    kernel.0.borrow_mut().fail_after = Some(calls + 1);
    let error = interrupts.disarm(0..16).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert_eq!(kernel.triggers().iter().map(|(vector, _)| *vector).collect::<Vec<_>>(), [1, 2]);
    interrupts.disarm(0..16).unwrap();
    assert_eq!(kernel.triggers(), []);
}

#[test]
fn whatever_fails_nothing_stays_behind() {
    let run = |interrupts: &mut Interrupts<Fake>| -> Result<(), InterruptError> {
        let events = eventfds(6);
        interrupts.enable(IrqType::Msix, 4, 16)?;
        interrupts.arm(1, &borrowed(&events))?;
        interrupts.disarm(2..4)?;
        interrupts.arm(3, &borrowed(&events[..2]))?;
        interrupts.still_ours().map_err(|lost| match lost {
            Lost::Unknown(error) => error,
            lost => panic!("{lost}"),
        })?;
        interrupts.release()
    };
    let mut failures = 0;
    loop {
        let kernel = Fake::new(1, 0, 16);
        kernel.vmm_sets(IrqType::Intx, 0, 1);
        kernel.0.borrow_mut().fail_after = Some(failures);
        let mut interrupts = kernel.interrupts();
        let result = run(&mut interrupts);
        drop(interrupts);
        let enabled = kernel.enabled();
        assert!(enabled != Some(IrqType::Msix), "call {failures} of {result:?}");
        assert!(kernel.triggers().iter().all(|(_, fd)| *fd == VMM), "call {failures}");
        // The next request works.
        kernel.0.borrow_mut().fail_after = None;
        run(&mut kernel.interrupts()).unwrap();
        assert_eq!((kernel.enabled(), kernel.triggers()), (None, vec![]));
        let Err(error) = result else { break };
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "call {failures}: {error}");
        failures += 1;
    }
    assert!(failures > 8, "only {failures} calls");
}

#[test]
fn a_device_of_another_function_is_given_back() {
    let kernel = Fake::new(0, 4, 4);
    let other = PciAddress { devfn: FUNCTION.devfn + 1, ..FUNCTION };
    let mut interrupts = Interrupts::new(kernel.clone(), &Host::at(kernel.0.borrow().root.path()), other);
    for irq_type in [IrqType::Msi, IrqType::Msix] {
        let error = interrupts.enable(irq_type, 4, 4).unwrap_err();
        assert!(matches!(error, InterruptError::OtherFunction { .. }), "{error}");
        assert_eq!((kernel.enabled(), interrupts.enabled()), (None, None));
    }
    let kernel = Fake::new(1, 0, 0);
    let root = kernel.0.borrow().root.path().to_owned();
    let host = Host::at(&root);
    fs::create_dir_all(host.function(other)).unwrap();
    fs::write(host.function(other).join("irq"), "18\n").unwrap();
    fs::create_dir_all(root.join("proc/irq/18")).unwrap();
    let mut interrupts = Interrupts::new(kernel.clone(), &host, other);
    let events = eventfds(1);
    let error = interrupts.enable_intx(borrowed(&events)[0]).unwrap_err();
    assert!(matches!(error, InterruptError::OtherFunction { .. }), "{error}");
    assert_eq!((kernel.enabled(), interrupts.enabled()), (None, None));
}

#[test]
fn without_proc_the_type_is_still_watched() {
    let kernel = Fake::new(0, 4, 0);
    let root = kernel.0.borrow().root.path().to_owned();
    fs::rename(root.join("proc"), root.join("hidden")).unwrap();
    std::os::unix::fs::symlink("nowhere", root.join("proc")).unwrap();
    kernel.0.borrow_mut().proc = "hidden";
    let mut interrupts = kernel.interrupts();
    let events = eventfds(1);
    interrupts.enable(IrqType::Msi, 4, 4).unwrap();
    interrupts.arm(3, &borrowed(&events)).unwrap();
    interrupts.still_ours().unwrap();
    kernel.vmm_disables();
    assert!(matches!(interrupts.still_ours(), Err(Lost::Disabled)));
    interrupts.disarm(3..4).unwrap();
    assert_eq!(kernel.enabled(), None);
}
