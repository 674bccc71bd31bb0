// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Against the kernel of [`kernel`](super::kernel).

use super::kernel::{FUNCTION, Fake, VMM};
use super::*;
use std::fs;
use std::os::fd::AsRawFd;
use vmm_sys_util::eventfd::EventFd;

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
    assert_eq!(kernel.kernel().raised, [a]);
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
    let calls = kernel.kernel().calls;
    kernel.kernel().clear_and_fail_after = Some(calls + 1);
    interrupts.arm(0, &borrowed(&events[..2])).unwrap_err();
    assert_eq!(kernel.triggers().len(), 5);
    interrupts.still_ours().unwrap();
    assert_eq!(kernel.kernel().triggers.len(), 6);
    interrupts.release().unwrap();
    assert_eq!((kernel.enabled(), kernel.triggers()), (None, vec![]));
}

#[test]
fn vectors_beyond_the_block_are_refused_before_the_kernel_is_asked() {
    let kernel = Fake::new(0, 8, 0);
    let mut interrupts = kernel.interrupts();
    interrupts.enable(IrqType::Msi, 4, 4).unwrap();
    let calls = kernel.kernel().calls;
    let events = eventfds(2);
    for first in [3, 4, 7, u16::MAX - 1, u16::MAX] {
        let error = interrupts.arm(first, &borrowed(&events)).unwrap_err();
        assert!(matches!(error, InterruptError::NoVector { present: 4, .. }), "{first}: {error}");
    }
    assert!(matches!(interrupts.raise(4), Err(InterruptError::NoVector { .. })));
    assert_eq!(kernel.kernel().calls, calls);
    interrupts.arm(2, &borrowed(&events)).unwrap();
}

#[test]
fn fewer_vectors_are_taken_down_to_the_least() {
    let kernel = Fake::new(0, 32, 0);
    kernel.kernel().available = 4;
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
    kernel.kernel().available = 4;
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
    // As the kernel does when the pin fires.
    kernel.kernel().masked = true;
    interrupts.unmask_intx().unwrap();
    assert!(!kernel.kernel().masked);
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
        assert!(!kernel.kernel().lost_message);
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
    let calls = kernel.kernel().calls;
    kernel.kernel().fail_after = Some(calls + 1);
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
    let calls = kernel.kernel().calls;
    kernel.kernel().fail_after = Some(calls + 1);
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
        kernel.kernel().fail_after = Some(failures);
        let mut interrupts = kernel.interrupts();
        let result = run(&mut interrupts);
        drop(interrupts);
        let enabled = kernel.enabled();
        assert!(enabled != Some(IrqType::Msix), "call {failures} of {result:?}");
        assert!(kernel.triggers().iter().all(|(_, fd)| *fd == VMM), "call {failures}");
        // The next request works.
        kernel.kernel().fail_after = None;
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
    let mut interrupts = Interrupts::new(kernel.clone(), &Host::at(kernel.kernel().root.path()), other);
    for irq_type in [IrqType::Msi, IrqType::Msix] {
        let error = interrupts.enable(irq_type, 4, 4).unwrap_err();
        assert!(matches!(error, InterruptError::OtherFunction { .. }), "{error}");
        assert_eq!((kernel.enabled(), interrupts.enabled()), (None, None));
    }
    let kernel = Fake::new(1, 0, 0);
    let root = kernel.kernel().root.path().to_owned();
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
    let root = kernel.kernel().root.path().to_owned();
    fs::rename(root.join("proc"), root.join("hidden")).unwrap();
    std::os::unix::fs::symlink("nowhere", root.join("proc")).unwrap();
    kernel.kernel().proc = "hidden";
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
