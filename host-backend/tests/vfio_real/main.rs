// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupts of real VFIO devices, on a machine that has some to spare.
//!
//! It wants to be root on a machine with an IOMMU that remaps interrupts, the VFIO modules loaded, QEMU installed, and
//! these functions, which QEMU emulates: two `edu`, a `nec-usb-xhci,msi=on,msix=off,intrs=16` and an `igb`. It binds them
//! to vfio-pci. Run it with `--ignored --test-threads 1`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../common/mod.rs"]
mod common;
mod daemon;
mod owner;
mod qemu;

use owner::{Device, Owner, Writer, borrowed, eventfds, fired, functions, quiet, sysfs};
use qemu::Qemu;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::BTreeSet;
use std::fs;
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use vhost_device_irq::device::Pair;
use vhost_device_irq::host::linux::{LinuxFunction, Sysfs};
use vhost_device_irq::host::{HostError, HostFunction};
use vhost_device_irq::vfio::{
    ClaimError, Data, DeviceSource, DeviceSupply, Host, InterruptError, Interrupts, Lost, NotYet, SupplyError,
};
use virtio_irq_proto::{IrqType, PciAddress, VectorRange};

/// A user without privileges.
const NOBODY: u32 = 65534;

fn edus() -> [PciAddress; 2] {
    functions(0x1234, 0x11e8).try_into().unwrap()
}

fn xhci() -> PciAddress {
    functions(0x1033, 0x0194)[0]
}

fn igb() -> PciAddress {
    functions(0x8086, 0x10c9)[0]
}

/// Entries of the igb's MSI-X table, which begins BAR 3, as `lspci` shows.
fn igb_table(interrupts: &Interrupts, first: usize, count: usize) -> std::io::Result<Vec<Pair>> {
    let mut words = vec![0; 4 * count];
    interrupts.device().read_bar(3, 16 * first as u64, &mut words)?;
    let pair =
        |entry: &[u32]| Pair { address: u64::from(entry[1]) << 32 | u64::from(entry[0]), data: entry[2] };
    Ok(words.chunks(4).map(pair).collect())
}

fn messages(function: PciAddress, irq_type: IrqType, count: u16) -> Result<Vec<Pair>, HostError> {
    let range = VectorRange::of_messages(irq_type, 0, count).unwrap();
    LinuxFunction::open(&Sysfs::here(), function, Some(Arc::new(own_supply(function))))
        .unwrap()
        .read_messages(range)
}

fn supply(source: &str, function: PciAddress) -> DeviceSupply {
    source.parse::<DeviceSource>().unwrap().open(&Host::here(), function).unwrap()
}

fn own_supply(function: PciAddress) -> DeviceSupply {
    supply(&format!("pid:{}", std::process::id()), function)
}

fn interrupts(function: PciAddress) -> Interrupts {
    Interrupts::new(own_supply(function).claim().unwrap().device, &Host::here(), function)
}

/// Lines of the host's interrupts that name the function.
fn host_interrupts(function: PciAddress) -> Vec<String> {
    let text = fs::read_to_string("/proc/interrupts").unwrap();
    let lines = text.lines().filter(|line| line.contains(&format!("({function})")));
    lines.map(|line| line.split_whitespace().last().unwrap().to_owned()).collect()
}

fn vectors_are_gone(function: PciAddress) {
    assert_eq!(host_interrupts(function), [""; 0]);
    // Newer kernels leave the directory.
    if let Ok(mut entries) = fs::read_dir(sysfs(function, "msi_irqs")) {
        assert!(entries.next().is_none());
    }
}

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn ends(owner: &OwnedFd) -> bool {
    let wait = Timespec { tv_sec: 10, tv_nsec: 0 };
    poll(&mut [PollFd::new(owner, PollFlags::IN)], Some(&wait)).unwrap() == 1
}

#[test]
#[ignore = "needs root and VFIO devices"]
fn one_msi_of_edu_arrives_and_is_given_back() {
    let [edu, _] = edus();
    let owner = Owner::of(&[edu]).unwrap();
    let device = owner.device(0, edu).unwrap();
    let mut interrupts = interrupts(edu);
    let info = interrupts.info(IrqType::Msi).unwrap();
    assert_eq!((info.count, info.resizable), (1, false));
    assert_eq!(interrupts.active().unwrap(), None);
    assert_eq!(interrupts.enable(IrqType::Msi, 1, 32).unwrap(), 1);
    assert_eq!(interrupts.active().unwrap(), Some(IrqType::Msi));
    let before = messages(edu, IrqType::Msi, 1).unwrap();
    let events = eventfds(1);
    interrupts.arm(0, &borrowed(&events)).unwrap();
    assert_eq!(messages(edu, IrqType::Msi, 1).unwrap(), before, "arming moved the message");
    assert_eq!(host_interrupts(edu), [format!("vfio-msi[0]({edu})")]);
    for _ in 0..3 {
        device.write32(0x60, 1);
        assert_eq!(fired(&events), [(0, 1)]);
        device.write32(0x64, 1);
    }
    interrupts.raise(0).unwrap();
    assert_eq!(fired(&events), [(0, 1)]);
    interrupts.still_ours().unwrap();
    interrupts.disarm(0..1).unwrap();
    device.write32(0x60, 1);
    assert!(quiet(&events));
    device.write32(0x64, 1);
    interrupts.release().unwrap();
    vectors_are_gone(edu);
}

#[test]
#[ignore = "needs root and VFIO devices"]
fn devices_of_one_model_are_told_apart() {
    let functions = edus();
    let owner = Owner::of(&functions).unwrap();
    // In the other order, so that descriptor numbers do not help.
    let devices: [Device; 2] =
        [owner.device(1, functions[1]).unwrap(), owner.device(0, functions[0]).unwrap()];
    for (function, device) in [(functions[0], &devices[1]), (functions[1], &devices[0])] {
        let mut interrupts = interrupts(function);
        let events = eventfds(1);
        interrupts.enable(IrqType::Msi, 1, 1).unwrap();
        interrupts.arm(0, &borrowed(&events)).unwrap();
        assert_eq!(host_interrupts(function).len(), 1);
        device.write32(0x60, 1);
        assert_eq!(fired(&events), [(0, 1)]);
        device.write32(0x64, 1);
    }
    // Only one of them open: the other one is not found, whatever else looks like it.
    let [second, first] = devices;
    drop(second);
    let error = own_supply(functions[1]).claim().unwrap_err();
    assert!(matches!(error, ClaimError::NotYet(NotYet::NotOpen { .. })), "{error}");
    own_supply(functions[0]).claim().unwrap();
    drop(first);
}

#[test]
#[ignore = "needs root and VFIO devices"]
fn intx_is_taken_from_the_owner_and_stays_masked_until_unmasked() {
    let [edu, _] = edus();
    let owner = Owner::of(&[edu]).unwrap();
    let device = owner.device(0, edu).unwrap();
    let (theirs, ours) = (eventfds(1), eventfds(1));
    device.set_irqs(IrqType::Intx, 0, Data::Eventfds(&[Some(borrowed(&theirs)[0])])).unwrap();
    let mut interrupts = interrupts(edu);
    assert_eq!(interrupts.active().unwrap(), Some(IrqType::Intx));
    interrupts.enable_intx(borrowed(&ours)[0]).unwrap();
    assert_eq!(host_interrupts(edu), [format!("vfio-intx({edu})")]);
    device.write32(0x60, 1);
    assert_eq!(fired(&ours), [(0, 1)]);
    assert!(quiet(&ours), "level, yet not masked");
    // Still asserted.
    interrupts.unmask_intx().unwrap();
    assert_eq!(fired(&ours), [(0, 1)]);
    device.write32(0x64, 1);
    interrupts.unmask_intx().unwrap();
    assert!(quiet(&ours));
    interrupts.still_ours().unwrap();
    interrupts.release().unwrap();
    assert!(quiet(&theirs));
    // MSI while the owner has INTx.
    device.set_irqs(IrqType::Intx, 0, Data::Eventfds(&[Some(borrowed(&theirs)[0])])).unwrap();
    interrupts.enable(IrqType::Msi, 1, 1).unwrap();
    interrupts.arm(0, &borrowed(&ours)).unwrap();
    device.write32(0x60, 1);
    assert_eq!(fired(&ours), [(0, 1)]);
    assert!(quiet(&theirs));
    device.write32(0x64, 1);
}

#[test]
#[ignore = "needs root and VFIO devices"]
fn sixteen_contiguous_messages_fire_each_their_own() {
    let ([edu, _], xhci) = (edus(), xhci());
    let writer = Writer::new(edu);
    let owner = Owner::of(&[xhci]).unwrap();
    let _device = owner.device(0, xhci).unwrap();
    let mut interrupts = interrupts(xhci);
    assert_eq!(interrupts.enable(IrqType::Msi, 16, 32).unwrap(), 16);
    let pairs = messages(xhci, IrqType::Msi, 16).unwrap();
    let events = eventfds(16);
    for (vector, event) in (0..).zip(borrowed(&events)) {
        interrupts.arm(vector, &[event]).unwrap();
    }
    interrupts.still_ours().unwrap();
    for (vector, pair) in pairs.iter().enumerate() {
        assert_eq!(*pair, Pair { data: pairs[0].data + vector as u32, ..pairs[0] });
        writer.write(pair.address, pair.data);
        assert_eq!(fired(&events), [(vector, 1)]);
    }
    // A part is given back and taken again; the rest keeps going, and no message moves.
    interrupts.disarm(5..9).unwrap();
    assert_eq!(host_interrupts(xhci).len(), 12);
    writer.write(pairs[6].address, pairs[6].data);
    assert!(quiet(&events));
    interrupts.disarm(0..1).unwrap();
    assert_eq!(messages(xhci, IrqType::Msi, 16).unwrap(), pairs);
    interrupts.arm(0, &borrowed(&events[..1])).unwrap();
    writer.write(pairs[0].address, pairs[0].data);
    assert_eq!(fired(&events), [(0, 1)]);
    writer.write(pairs[9].address, pairs[9].data);
    assert_eq!(fired(&events), [(9, 1)]);
    let others = eventfds(4);
    interrupts.arm(5, &borrowed(&others)).unwrap();
    interrupts.still_ours().unwrap();
    assert_eq!(messages(xhci, IrqType::Msi, 16).unwrap(), pairs);
    writer.write(pairs[6].address, pairs[6].data);
    assert_eq!(fired(&others), [(1, 1)]);
    assert!(quiet(&events));
    drop(interrupts);
    vectors_are_gone(xhci);
}

/// Lets the igb raise its vectors by EICS.
fn prepare_igb(device: &Device) {
    for (register, value) in [(0x1514, 0x8000_0011), (0x152c, 0x3ff), (0x1530, 0), (0x1524, 0x3ff)] {
        device.write32(register, value);
    }
}

#[test]
#[ignore = "needs root and VFIO devices"]
fn msix_vectors_of_igb_fire_and_their_table_is_read_through_vfio() {
    let igb = igb();
    let owner = Owner::of(&[igb]).unwrap();
    let device = owner.device(0, igb).unwrap();
    let mut interrupts = interrupts(igb);
    let info = interrupts.info(IrqType::Msix).unwrap();
    assert_eq!(info.count, 10);
    println!("MSI-X of igb: {info:?}");
    assert_eq!(interrupts.enable(IrqType::Msix, 1, 2048).unwrap(), 10);
    let events = eventfds(10);
    println!("MSI-X table before: {:x?}", igb_table(&interrupts, 0, 10));
    interrupts.arm(0, &borrowed(&events)).unwrap();
    interrupts.still_ours().unwrap();
    let pairs = igb_table(&interrupts, 0, 10).unwrap();
    println!("MSI-X table: {pairs:x?}");
    assert_eq!(pairs.iter().map(|pair| (pair.address, pair.data)).collect::<BTreeSet<_>>().len(), 10);
    assert_eq!(igb_table(&interrupts, 3, 2).unwrap(), pairs[3..5]);
    let error = igb_table(&interrupts, 1 << 20, 1).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "beyond the BAR: {error}");
    assert_eq!(messages(igb, IrqType::Msix, 10).unwrap(), pairs);
    prepare_igb(&device);
    fired(&events);
    for vector in 0..10 {
        device.write32(0x1520, 1 << vector);
        assert_eq!(fired(&events), [(vector, 1)]);
    }
    // The guest turns memory decoding off: an error, not the end of the process.
    device.command(0, 2);
    let error = igb_table(&interrupts, 0, 1).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EFAULT), "{error}");
    device.command(2, 0);
    assert_eq!(igb_table(&interrupts, 0, 10).unwrap(), pairs);
    // A reset of the function leaves the host's vectors and messages as they are.
    device.reset().unwrap();
    device.command(6, 0);
    interrupts.still_ours().unwrap();
    assert_eq!(igb_table(&interrupts, 0, 10).unwrap(), pairs);
    prepare_igb(&device);
    device.write32(0x1520, 1 << 7);
    assert_eq!(fired(&events), [(7, 1)]);
    interrupts.disarm(2..4).unwrap();
    println!("entries 2 and 3 after: {:x?}", igb_table(&interrupts, 2, 2));
    let other = eventfds(1);
    interrupts.arm(3, &borrowed(&other)).unwrap();
    assert_eq!(igb_table(&interrupts, 3, 1).unwrap(), pairs[3..4]);
    device.write32(0x1520, 1 << 3);
    assert_eq!(fired(&other), [(0, 1)]);
    assert!(quiet(&events));
    drop(interrupts);
    vectors_are_gone(igb);
}

#[test]
#[ignore = "needs root and VFIO devices"]
fn what_the_owner_takes_is_noticed_and_left_to_it() {
    let ([edu, _], xhci) = (edus(), xhci());
    let writer = Writer::new(edu);
    let owner = Owner::of(&[xhci]).unwrap();
    let device = owner.device(0, xhci).unwrap();
    let (ours, theirs) = (eventfds(16), eventfds(4));
    let mut interrupts = interrupts(xhci);
    interrupts.enable(IrqType::Msi, 16, 16).unwrap();
    interrupts.arm(0, &borrowed(&ours)).unwrap();
    let fds: Vec<_> = borrowed(&theirs).into_iter().map(Some).collect();
    device.set_irqs(IrqType::Msi, 2, Data::Eventfds(&fds)).unwrap();
    let lost = interrupts.still_ours().unwrap_err();
    assert!(matches!(&lost, Lost::Replaced(vectors) if *vectors == [2, 3, 4, 5]), "{lost}");
    let error = interrupts.arm(1, &borrowed(&ours[..2])).unwrap_err();
    assert!(matches!(error, InterruptError::InUse { .. }), "{error}");
    let pairs = messages(xhci, IrqType::Msi, 16).unwrap();
    interrupts.release().unwrap();
    // The owner's, and vector 0's, from whose message they count.
    assert_eq!(host_interrupts(xhci).len(), 5);
    assert_eq!(messages(xhci, IrqType::Msi, 16).unwrap(), pairs);
    for (vector, pair) in pairs.iter().enumerate() {
        writer.write(pair.address, pair.data);
        if (2..6).contains(&vector) {
            assert_eq!(fired(&theirs), [(vector - 2, 1)]);
        }
    }
    assert!(quiet(&ours));
    assert!(matches!(interrupts.enable(IrqType::Msi, 1, 1), Err(InterruptError::InUse { .. })));
    device.set_irqs(IrqType::Msi, 0, Data::None(0)).unwrap();
    // The type disabled under armed vectors.
    interrupts.enable(IrqType::Msi, 8, 8).unwrap();
    interrupts.arm(4, &borrowed(&ours[..2])).unwrap();
    device.set_irqs(IrqType::Msi, 0, Data::None(0)).unwrap();
    assert!(matches!(interrupts.still_ours(), Err(Lost::Disabled)));
    assert!(matches!(interrupts.arm(4, &borrowed(&ours[..2])), Err(InterruptError::NotEnabled { .. })));
    interrupts.release().unwrap();
    assert_eq!(interrupts.active().unwrap(), None);
    // Disabled and enabled again with the owner's, which only the handlers tell.
    interrupts.enable(IrqType::Msi, 8, 8).unwrap();
    interrupts.arm(1, &borrowed(&ours[..2])).unwrap();
    device.set_irqs(IrqType::Msi, 0, Data::None(0)).unwrap();
    device.set_irqs(IrqType::Msi, 0, Data::Eventfds(&fds)).unwrap();
    let lost = interrupts.still_ours().unwrap_err();
    assert!(matches!(&lost, Lost::Replaced(vectors) if *vectors == [0, 1, 2]), "{lost}");
    drop(interrupts);
    assert_eq!(host_interrupts(xhci).len(), 4);
}

#[test]
#[ignore = "needs root and VFIO devices"]
fn the_guests_msi_enable_bit_reaches_the_hardware_and_reads_as_not_enabled() {
    let [edu, _] = edus();
    let owner = Owner::of(&[edu]).unwrap();
    let device = owner.device(0, edu).unwrap();
    let mut interrupts = interrupts(edu);
    let events = eventfds(1);
    interrupts.enable(IrqType::Msi, 1, 1).unwrap();
    interrupts.arm(0, &borrowed(&events)).unwrap();
    // edu's MSI capability is at 0x40.
    device.write_config(0x42, 0);
    println!("after the guest wrote 0: {:?}, {:?}", messages(edu, IrqType::Msi, 1), interrupts.still_ours());
    device.write32(0x60, 1);
    assert!(quiet(&events));
    device.write32(0x64, 1);
    assert!(matches!(messages(edu, IrqType::Msi, 1), Err(HostError::NotEnabled)));
    interrupts.release().unwrap();
    interrupts.enable(IrqType::Msi, 1, 1).unwrap();
    interrupts.arm(0, &borrowed(&events)).unwrap();
    device.write32(0x60, 1);
    assert_eq!(fired(&events), [(0, 1)]);
    device.write32(0x64, 1);
}

#[test]
#[ignore = "needs root and VFIO devices"]
fn beside_qemu_the_interrupts_are_ours_until_its_guest_wants_them() {
    let ([edu, _], xhci, igb) = (edus(), xhci(), igb());
    let writer = Writer::new(edu);
    let source = supply(&format!("pidfile:{}", Qemu::pidfile("beside").display()), xhci);
    let error = source.claim().unwrap_err();
    assert!(matches!(error, ClaimError::NotYet(NotYet::PidFile { .. })), "{error}");
    let mut qemu = Qemu::start("beside", &[igb, xhci]);
    let claim = source.claim().unwrap();
    let mut interrupts = Interrupts::new(claim.device, &Host::here(), xhci);
    println!("QEMU has {:?} on", interrupts.active());
    let events = eventfds(16);
    interrupts.enable(IrqType::Msi, 16, 16).unwrap();
    interrupts.arm(0, &borrowed(&events)).unwrap();
    let pairs = messages(xhci, IrqType::Msi, 16).unwrap();
    for vector in [0, 7, 15] {
        writer.write(pairs[vector].address, pairs[vector].data);
        assert_eq!(fired(&events), [(vector, 1)]);
    }
    // Not the igb's, which the same QEMU has.
    assert_eq!(host_interrupts(xhci).len(), 16);
    // A reset of the machine, in which QEMU wants its INTx back.
    qemu.qmp("system_reset");
    qemu.write_config(0, 0x3c, 0);
    println!("after a reset of the machine: {:?}, {:?}", interrupts.still_ours(), interrupts.active());
    writer.write(pairs[7].address, pairs[7].data);
    println!("fired: {:?}", fired(&events));
    // The guest enables MSI in the function's own capability.
    qemu.enable_msi(7);
    let lost = interrupts.still_ours().unwrap_err();
    println!("after the guest enabled MSI: {lost}; {:?}", host_interrupts(xhci).len());
    assert!(matches!(lost, Lost::Replaced(_)), "{lost}");
    interrupts.release().unwrap();
    println!("after the release: {:?}, {:?}", interrupts.active(), host_interrupts(xhci));
    assert_eq!(host_interrupts(xhci), [format!("vfio-msi[0]({xhci})")]);
    let error = interrupts.enable(IrqType::Msi, 1, 16).unwrap_err();
    assert!(matches!(error, InterruptError::InUse { irq_type: IrqType::Msi, .. }), "{error}");
    // And disables it, after which QEMU has INTx on.
    qemu.disable_msi(7);
    println!("after the guest disabled MSI: {:?}", interrupts.active());
    interrupts.enable(IrqType::Msi, 16, 16).unwrap();
    interrupts.release().unwrap();
}

#[test]
#[ignore = "needs root and VFIO devices"]
fn a_guest_that_enables_msix_takes_igb_from_us() {
    let igb = igb();
    let mut qemu = Qemu::start("msix", &[igb]);
    let claim = supply(&format!("pid:{}", qemu.pid()), igb).claim().unwrap();
    let mut interrupts = Interrupts::new(claim.device, &Host::here(), igb);
    let events = eventfds(10);
    interrupts.enable(IrqType::Msix, 10, 10).unwrap();
    interrupts.arm(0, &borrowed(&events)).unwrap();
    let at = qemu.capability(6, 0x11);
    qemu.write_config(6, at + 2, 0x8000);
    let state = interrupts.still_ours();
    println!(
        "after the guest enabled MSI-X: {state:?}, {:?}, {:?}",
        interrupts.active(),
        host_interrupts(igb)
    );
    assert!(state.is_err());
    interrupts.release().unwrap();
    println!("after the release: {:?}, {:?}", interrupts.active(), host_interrupts(igb));
}

#[test]
#[ignore = "needs root and VFIO devices"]
fn a_killed_qemu_is_noticed_and_the_next_one_served() {
    let xhci = xhci();
    let files = open_files();
    for _ in 0..2 {
        let qemu = Qemu::start("killed", &[xhci]);
        let pid = qemu.pid();
        let source = supply(&format!("pid:{pid}"), xhci);
        let claim = source.claim().unwrap();
        let owner = claim.owner.unwrap();
        let mut interrupts = Interrupts::new(claim.device, &Host::here(), xhci);
        let events = eventfds(4);
        interrupts.enable(IrqType::Msi, 4, 4).unwrap();
        interrupts.arm(0, &borrowed(&events)).unwrap();
        qemu.kill();
        assert!(ends(&owner));
        interrupts.still_ours().unwrap();
        // As long as we have it, nobody else can.
        assert_eq!(Owner::of(&[xhci]).err().and_then(|error| error.raw_os_error()), Some(libc::EBUSY));
        assert!(source.claim().unwrap_err().is_not_yet());
        drop(interrupts);
        vectors_are_gone(xhci);
    }
    assert_eq!(open_files(), files);
}

#[test]
#[ignore = "needs root and VFIO devices"]
fn a_stranger_is_told_what_it_lacks() {
    if std::env::var_os("VFIO_REAL_STRANGER").is_none() {
        let [edu, _] = edus();
        let owner = Owner::of(&[edu]).unwrap();
        let _device = owner.device(0, edu).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--ignored", "--exact", "a_stranger_is_told_what_it_lacks", "--nocapture"]);
        child.env("VFIO_REAL_STRANGER", std::process::id().to_string());
        std::os::unix::process::CommandExt::uid(&mut child, NOBODY);
        assert!(child.status().unwrap().success());
        return;
    }
    let pid = std::env::var("VFIO_REAL_STRANGER").unwrap();
    let edu = PciAddress { segment: 0, bus: 0, devfn: 5 << 3 };
    let error = supply(&format!("pid:{pid}"), edu).claim().unwrap_err();
    println!("{error}");
    assert!(matches!(error, ClaimError::Denied { .. }), "{error}");
}

/// Hands a descriptor in; returns the connection and the answer.
fn hand_in(path: &Path, function: PciAddress, device: &Device) -> (UnixStream, String) {
    let mut stream = UnixStream::connect(path).unwrap();
    let fds = [device.vfio.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    control.push(rustix::net::SendAncillaryMessage::ScmRights(&fds));
    let text = function.to_string();
    let flags = rustix::net::SendFlags::empty();
    rustix::net::sendmsg(&stream, &[IoSlice::new(text.as_bytes())], &mut control, flags).unwrap();
    let mut answer = [0; 256];
    let count = stream.read(&mut answer).unwrap();
    (stream, String::from_utf8_lossy(&answer[..count]).into_owned())
}

#[test]
#[ignore = "needs root and VFIO devices"]
fn a_device_that_is_handed_in_is_ours_until_the_connection_ends() {
    let functions = edus();
    let owner = Owner::of(&functions).unwrap();
    let devices = [owner.device(0, functions[0]).unwrap(), owner.device(1, functions[1]).unwrap()];
    let path = std::env::temp_dir().join("vfio-real-socket");
    let source = supply(&format!("socket:{}", path.display()), functions[1]);
    assert!(source.claim().unwrap_err().is_not_yet());
    let (_stream, answer) = hand_in(&path, functions[1], &devices[0]);
    println!("the wrong function: {answer}");
    if answer == "ok\n" {
        // This kernel does not tell.
        let device = source.claim().unwrap().device;
        let mut wrong = Interrupts::new(device, &Host::here(), functions[1]);
        let error = wrong.enable(IrqType::Msi, 1, 1).unwrap_err();
        assert!(matches!(error, InterruptError::OtherFunction { .. }), "{error}");
        vectors_are_gone(functions[0]);
    }
    let (first, answer) = hand_in(&path, functions[1], &devices[1]);
    assert_eq!(answer, "ok\n");
    let claim = source.claim().unwrap();
    let mut interrupts = Interrupts::new(claim.device, &Host::here(), functions[1]);
    let events = eventfds(1);
    interrupts.enable(IrqType::Msi, 1, 1).unwrap();
    interrupts.arm(0, &borrowed(&events)).unwrap();
    devices[1].write32(0x60, 1);
    assert_eq!(fired(&events), [(0, 1)]);
    devices[1].write32(0x64, 1);
    interrupts.release().unwrap();
    // Another one counts from now on, and the earlier loan ends.
    let (second, answer) = hand_in(&path, functions[1], &devices[1]);
    assert_eq!(answer, "ok\n");
    assert!(ends(&claim.owner.unwrap()));
    drop(first);
    let owner = source.claim().unwrap().owner.unwrap();
    drop(second);
    assert!(ends(&owner));
    assert!(source.claim().unwrap_err().is_not_yet());
}

#[test]
#[ignore = "needs root and VFIO devices"]
fn a_character_device_is_opened_or_the_kernels_lack_named() {
    let [edu, _] = edus();
    let path = std::env::temp_dir().join("vfio-real-cdev");
    let source: DeviceSource = format!("cdev:{}", path.display()).parse().unwrap();
    match source.open(&Host::here(), edu) {
        Ok(supply) => {
            let error = supply.claim().unwrap_err();
            assert!(matches!(error, ClaimError::NotYet(NotYet::NotBorrowed { .. })), "{error}");
        }
        Err(error) => {
            println!("{error}");
            assert!(matches!(error, SupplyError::NoCharacterDevices { .. }), "{error}");
        }
    }
}
