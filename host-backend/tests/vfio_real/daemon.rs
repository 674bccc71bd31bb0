// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The daemon as a whole on real devices: its command line, vhost-user, rings, and the interrupts of a function.

use crate::common::{Daemon, EVENTS, Vm, allocate_of, get_messages, page, sources};
use crate::owner::{Owner, Writer, borrowed, eventfds, fired, quiet};
use crate::qemu::Qemu;
use crate::{NOBODY, edus, hand_in, host_interrupts, igb, prepare_igb, vectors_are_gone, xhci};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;
use vhost_device_irq::device::Pair;
use vhost_device_irq::vfio::Data;
use virtio_irq_proto::{IrqType, PciAddress};
use vmm_sys_util::eventfd::EventFd;

const OK: u8 = 0;
const BUSY: u8 = 11;
const NOT_READY: u8 = 14;

const INTX: u8 = 0;
const MSI: u8 = 1;
const MSIX: u8 = 2;

const FREE: u8 = 17;
const MASK: u8 = 18;
const UNMASK: u8 = 19;

/// The daemon, and a guest whose event buffers are all with it.
struct Machine {
    daemon: Daemon,
    vm: Vm,
}

/// One that the guest was told of.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    Interrupt(u8),
    Revoked(u8),
}

use Event::{Interrupt, Revoked};

/// The daemon's program, where the machine has it, which is not where it was built.
fn program() -> Command {
    let built = env!("CARGO_BIN_EXE_vhost-device-irq").to_owned();
    Command::new(std::env::var("VHOST_DEVICE_IRQ").unwrap_or(built))
}

fn start(function: PciAddress, source: &str) -> Daemon {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("irq.sock");
    let mut command = program();
    command.arg("--socket-path").arg(&socket).stdin(Stdio::null());
    command.args(["--device", &format!("{function},guest=00:06.0,vfio={source}")]);
    let daemon = Daemon::spawn(command, directory, socket);
    daemon.wait_for_line("waiting for a frontend");
    daemon
}

fn own() -> String {
    format!("pid:{}", std::process::id())
}

impl Machine {
    fn start(function: PciAddress, source: &str) -> Self {
        let daemon = start(function, source);
        let vm = Vm::connect(&daemon.socket);
        let mut machine = Self { daemon, vm };
        machine.offer_events();
        machine
    }

    fn reconnect(self) -> Self {
        let Self { daemon, vm } = self;
        drop(vm);
        daemon.wait_for_line("the frontend left");
        let vm = Vm::connect(&daemon.socket);
        let mut machine = Self { daemon, vm };
        machine.offer_events();
        machine
    }

    /// Buffers of one event each, in the order of their numbers.
    fn offer_events(&mut self) {
        let table = self.vm.rings[EVENTS].descriptors();
        for number in 0..16 {
            self.vm.descriptor(table, number, (page(20 + u64::from(number)), 16, 2, 0));
        }
        self.vm.submit(EVENTS, &(0..16).collect::<Vec<_>>());
    }

    /// Waits for the next event, and gives its buffer back.
    #[track_caller]
    fn event(&mut self) -> Event {
        let used = self.vm.wait_used(EVENTS);
        self.read_event(used)
    }

    /// The next event, if the guest was told of one. A request is answered after all that fired before it was told.
    #[track_caller]
    fn event_told(&mut self) -> Option<Event> {
        assert_eq!(self.status(&get_messages(9, MSI, 0, 1), 32), 4, "there is no function 9");
        let used = self.vm.take_used(EVENTS)?;
        Some(self.read_event(used))
    }

    #[track_caller]
    fn read_event(&mut self, (head, length): (u16, u32)) -> Event {
        assert_eq!(length, 16);
        let record = self.vm.read(page(20 + u64::from(head)), 16);
        self.vm.submit(EVENTS, &[head]);
        assert_eq!(record[2..4], [0, 0], "the function");
        match record[0] {
            1 => Interrupt(record[4]),
            3 => Revoked(record[4]),
            _ => panic!("{record:?}"),
        }
    }

    /// The source's message, from whoever writes it, is its interrupt.
    #[track_caller]
    fn delivers(&mut self, writer: &Writer, (source, _, pair): &(u8, u8, Pair)) {
        writer.write(pair.address, pair.data);
        assert_eq!(self.event(), Interrupt(*source));
    }

    /// The guest is told of the end of each of these sources.
    #[track_caller]
    fn loses(&mut self, sources: Range<u8>) {
        for source in sources {
            assert_eq!(self.event(), Revoked(source));
        }
    }

    /// The guest is told of the end of each of `others`, and of that of `freed` only if the daemon happened to look before they
    /// were freed: it does five times a second.
    #[track_caller]
    fn loses_beside(&mut self, freed: Range<u8>, others: Range<u8>) {
        let mut told = Vec::new();
        while others.clone().any(|source| !told.contains(&Revoked(source))) {
            told.push(self.event());
        }
        while let Some(event) = self.event_told() {
            told.push(event);
        }
        let lost = |event: &Event| match event {
            Revoked(source) => freed.contains(source) || others.contains(source),
            Interrupt(_) => false,
        };
        assert!(told.iter().all(lost), "{told:?}");
    }

    /// Nothing fires.
    #[track_caller]
    fn silent(&mut self) {
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert_eq!(self.event_told(), None);
    }

    #[track_caller]
    fn status(&mut self, request: &[u8], room: u32) -> u8 {
        self.vm.ask(request, room)[0]
    }

    /// Exactly `count` sources, and the messages that they have.
    #[track_caller]
    fn allocate(&mut self, irq_type: u8, first: u16, count: u16) -> Vec<(u8, u8, Pair)> {
        let room = 16 + 24 * u32::from(count);
        let reply = self.vm.ask(&allocate_of(0, irq_type, first, count), room);
        assert_eq!(reply[0], OK, "ALLOCATE");
        let sources = reply[16..].chunks(24).map(|source| {
            let word = |at: usize| u32::from_le_bytes(source[at..at + 4].try_into().unwrap());
            let address = u64::from(word(8)) | u64::from(word(12)) << 32;
            (source[0], source[4], Pair { address, data: word(16) })
        });
        sources.collect()
    }
}

#[test]
#[ignore = "needs root and VFIO devices"]
fn the_daemon_delivers_sixteen_sources_of_xhci() {
    let ([edu, _], xhci) = (edus(), xhci());
    let writer = Writer::new(edu);
    let owner = Owner::of(&[xhci]).unwrap();
    let _device = owner.device(0, xhci).unwrap();
    let mut machine = Machine::start(xhci, &own());
    let sources_of = machine.allocate(MSI, 0, 16);
    let base = sources_of[0].2;
    for (number, source) in sources_of.iter().enumerate() {
        let pair = Pair { data: base.data + number as u32, ..base };
        assert_eq!(*source, (number as u8, number as u8, pair));
        machine.delivers(&writer, source);
    }
    let fire = |source: u8| writer.write(base.address, base.data + u32::from(source));
    assert_eq!(machine.status(&sources(MASK, 3, 2), 8), OK);
    fire(3);
    fire(9);
    assert_eq!(machine.event(), Interrupt(9));
    machine.silent();
    assert_eq!(machine.status(&sources(UNMASK, 3, 2), 8), OK);
    assert_eq!(machine.event(), Interrupt(3));
    // A part is given back and taken again, for the same ids and vectors; nothing moves.
    assert_eq!(machine.status(&sources(FREE, 5, 4), 8), OK);
    assert_eq!(host_interrupts(xhci).len(), 12);
    fire(6);
    machine.silent();
    assert_eq!(machine.allocate(MSI, 0, 4), sources_of[5..9]);
    fire(6);
    assert_eq!(machine.event(), Interrupt(6));
    assert_eq!(machine.status(&sources(FREE, 0, 16), 8), OK);
    vectors_are_gone(xhci);
    // A frontend that leaves takes all of its sources along.
    machine.allocate(MSI, 0, 16);
    let mut machine = machine.reconnect();
    vectors_are_gone(xhci);
    let source = machine.allocate(MSI, 2, 1)[0];
    machine.delivers(&writer, &source);
    machine.daemon.stop();
    vectors_are_gone(xhci);
}

#[test]
#[ignore = "needs root and VFIO devices"]
fn the_daemon_delivers_ten_msix_sources_of_igb() {
    let igb = igb();
    let owner = Owner::of(&[igb]).unwrap();
    let device = owner.device(0, igb).unwrap();
    let mut machine = Machine::start(igb, &own());
    let sources_of = machine.allocate(MSIX, 0, 7);
    assert_eq!(machine.allocate(MSIX, 0, 3)[0].1, 7, "the lowest free vector");
    prepare_igb(&device);
    for vector in 0..10 {
        device.write32(0x1520, 1 << vector);
        assert_eq!(machine.event(), Interrupt(vector));
    }
    let told = machine.vm.ask(&get_messages(0, MSIX, 6, 1), 32);
    let pair = sources_of[6].2;
    assert_eq!(told[16..24], pair.address.to_le_bytes());
    assert_eq!(told[24..28], pair.data.to_le_bytes());
    machine.daemon.stop();
    vectors_are_gone(igb);
}

#[test]
#[ignore = "needs root and VFIO devices"]
fn the_daemon_delivers_a_pin() {
    let [edu, _] = edus();
    let owner = Owner::of(&[edu]).unwrap();
    let device = owner.device(0, edu).unwrap();
    let theirs = eventfds(1);
    device.set_irqs(IrqType::Intx, 0, Data::Eventfds(&[Some(borrowed(&theirs)[0])])).unwrap();
    let mut machine = Machine::start(edu, &own());
    assert_eq!(machine.allocate(INTX, 0, 1), [(0, 0, Pair { address: 0, data: 0 })]);
    device.write32(0x60, 1);
    assert_eq!(machine.event(), Interrupt(0));
    machine.silent();
    assert_eq!(machine.status(&sources(UNMASK, 0, 1), 8), OK);
    assert_eq!(machine.event(), Interrupt(0), "it is asserted still");
    device.write32(0x64, 1);
    assert_eq!(machine.status(&sources(UNMASK, 0, 1), 8), OK);
    machine.silent();
    assert!(quiet(&theirs));
    machine.daemon.stop();
    vectors_are_gone(edu);
}

#[test]
#[ignore = "needs root and VFIO devices"]
fn the_daemon_waits_for_qemu_and_yields_to_its_guest() {
    let ([edu, _], xhci) = (edus(), xhci());
    let writer = Writer::new(edu);
    let mut machine = Machine::start(xhci, &format!("pidfile:{}", Qemu::pidfile("whole").display()));
    assert_eq!(machine.status(&allocate_of(0, MSI, 0, 4), 112), NOT_READY);
    let mut qemu = Qemu::start("whole", &[xhci]);
    let sources_of = machine.allocate(MSI, 0, 4);
    machine.delivers(&writer, &sources_of[2]);
    // The guest enables MSI in the function's own capability, and nobody asks the daemon for anything.
    qemu.enable_msi(6);
    machine.loses(0..4);
    // Its own vector stays.
    assert_eq!(host_interrupts(xhci), [format!("vfio-msi[0]({xhci})")]);
    assert_eq!(machine.status(&sources(FREE, 0, 4), 8), OK);
    assert_eq!(host_interrupts(xhci), [format!("vfio-msi[0]({xhci})")]);
    assert_eq!(machine.status(&allocate_of(0, MSI, 0, 4), 112), BUSY);
    qemu.disable_msi(6);
    let sources_of = machine.allocate(MSI, 0, 4);
    machine.delivers(&writer, &sources_of[3]);
    // The VMM dies, and another wants the function while the daemon's frontend is still there.
    qemu.kill();
    machine.loses(0..4);
    vectors_are_gone(xhci);
    drop(Owner::of(&[xhci]).unwrap());
    assert_eq!(machine.status(&sources(FREE, 0, 4), 8), OK);
    assert_eq!(machine.status(&allocate_of(0, MSI, 0, 4), 112), NOT_READY);
    let _qemu = Qemu::start("whole", &[xhci]);
    machine.allocate(MSI, 0, 4);
    machine.daemon.stop();
    vectors_are_gone(xhci);
}

#[test]
#[ignore = "needs root and VFIO devices"]
fn a_device_that_was_lent_to_qemu_delivers_until_qemu_ends() {
    let ([edu, _], xhci) = (edus(), xhci());
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("vfio");
    let lent = format!("cdev:{}", path.display());
    if !Path::new("/dev/iommu").exists() {
        let mut daemon = program();
        daemon.arg("--socket-path").arg(directory.path().join("irq"));
        let output = daemon.args(["--device", &format!("{xhci},vfio={lent}")]).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        println!("{message}");
        assert_eq!(output.status.code(), Some(1));
        assert!(
            message.contains("no character devices for VFIO (CONFIG_VFIO_DEVICE_CDEV and CONFIG_IOMMUFD")
        );
        return;
    }
    println!("lent as a character device, and bound to an IOMMUFD");
    let writer = Writer::new(edu);
    let mut machine = Machine::start(xhci, &lent);
    assert_eq!(machine.status(&allocate_of(0, MSI, 0, 4), 112), NOT_READY);
    let mut qemu = Qemu::borrow("lent", program(), &path);
    let sources_of = machine.allocate(MSI, 0, 4);
    for source in &sources_of {
        machine.delivers(&writer, source);
    }
    // The guest enables MSI for itself, and disables it again.
    qemu.enable_msi(6);
    machine.loses(0..4);
    assert_eq!(host_interrupts(xhci), [format!("vfio-msi[0]({xhci})")]);
    assert_eq!(machine.status(&sources(FREE, 0, 4), 8), OK);
    qemu.disable_msi(6);
    machine.allocate(MSI, 0, 4);
    // It is bound to the IOMMUFD of one VMM, and comes back when that ends.
    let mut second = program();
    second.arg("exec").arg("--vfio").arg(&path).args(["--", "true"]);
    let refused = String::from_utf8(second.output().unwrap().stderr).unwrap();
    assert!(refused.contains("another VMM has it"), "{refused}");
    qemu.kill();
    machine.loses(0..4);
    vectors_are_gone(xhci);
    assert_eq!(machine.status(&sources(FREE, 0, 4), 8), OK);
    machine.daemon.wait_for_line("was given back");
    let _qemu = Qemu::borrow("lent", program(), &path);
    let source = machine.allocate(MSI, 0, 4)[2];
    machine.delivers(&writer, &source);
    machine.daemon.stop();
    vectors_are_gone(xhci);
}

#[test]
#[ignore = "needs root and VFIO devices"]
fn the_daemon_looks_into_a_vmm_of_another_user() {
    let [edu, _] = edus();
    let owner = Owner::of(&[edu]).unwrap();
    let device = owner.device(0, edu).unwrap();
    // Two descriptors that anything inherits.
    let mut vmm = Command::new("sleep");
    vmm.arg("120").stdin(device.vfio.as_fd().try_clone_to_owned().unwrap());
    vmm.stdout(owner.groups[0].try_clone().unwrap()).uid(NOBODY);
    let mut vmm = vmm.spawn().unwrap();
    let mut machine = Machine::start(edu, &format!("pid:{}", vmm.id()));
    machine.allocate(MSI, 0, 1);
    device.write32(0x60, 1);
    assert_eq!(machine.event(), Interrupt(0));
    device.write32(0x64, 1);
    vmm.kill().unwrap();
    vmm.wait().unwrap();
    assert_eq!(machine.event(), Revoked(0));
    assert_eq!(machine.status(&sources(FREE, 0, 1), 8), OK);
    vectors_are_gone(edu);
    machine.daemon.stop();
}

#[test]
#[ignore = "needs root and VFIO devices"]
fn what_the_vmm_took_over_stays_its_own_when_the_guest_frees_at_once() {
    let ([edu, _], xhci) = (edus(), xhci());
    let writer = Writer::new(edu);
    let owner = Owner::of(&[xhci]).unwrap();
    let device = owner.device(0, xhci).unwrap();
    let mut machine = Machine::start(xhci, &own());
    let theirs = eventfds(4);
    let fds: Vec<_> = borrowed(&theirs).into_iter().map(Some).collect();
    // Without time for the daemon to look: it looks when it must.
    for free_all in [false, true] {
        let pairs = machine.allocate(MSI, 0, 8);
        device.set_irqs(IrqType::Msi, 2, Data::Eventfds(&fds)).unwrap();
        let freed = if free_all { 8 } else { 4 };
        assert_eq!(machine.status(&sources(FREE, 0, freed.into()), 8), OK);
        assert_their_own(&writer, &pairs, &theirs);
        machine.loses_beside(0..freed, freed..8);
        if !free_all {
            assert_eq!(machine.status(&sources(FREE, 4, 4), 8), OK);
            assert_their_own(&writer, &pairs, &theirs);
        }
        device.set_irqs(IrqType::Msi, 0, Data::None(0)).unwrap();
    }
    // Everything disabled and enabled again, with fewer vectors.
    let pairs = machine.allocate(MSI, 0, 8);
    device.set_irqs(IrqType::Msi, 0, Data::None(0)).unwrap();
    device.set_irqs(IrqType::Msi, 0, Data::Eventfds(&fds)).unwrap();
    machine.loses(0..8);
    assert_eq!(machine.status(&sources(FREE, 0, 8), 8), OK);
    assert_eq!(host_interrupts(xhci).len(), 4);
    drop(pairs);
    machine.daemon.stop();
    assert_eq!(host_interrupts(xhci).len(), 4);
}

/// Vectors 2 to 5 fire the owner's eventfds.
#[track_caller]
fn assert_their_own(writer: &Writer, pairs: &[(u8, u8, Pair)], theirs: &[EventFd]) {
    for (index, (_, _, pair)) in pairs[2..6].iter().enumerate() {
        writer.write(pair.address, pair.data);
        assert_eq!(fired(theirs), [(index, 1)]);
    }
}

#[test]
#[ignore = "needs root and VFIO devices"]
fn a_guest_that_clears_the_msi_enable_bit_loses_its_sources_aloud() {
    let [edu, _] = edus();
    let owner = Owner::of(&[edu]).unwrap();
    let device = owner.device(0, edu).unwrap();
    let mut machine = Machine::start(edu, &own());
    machine.allocate(MSI, 0, 1);
    // edu's MSI capability is at 0x40.
    device.write_config(0x42, 0);
    assert_eq!(machine.event(), Revoked(0));
    vectors_are_gone(edu);
    assert_eq!(machine.status(&sources(FREE, 0, 1), 8), OK);
    machine.allocate(MSI, 0, 1);
    device.write32(0x60, 1);
    assert_eq!(machine.event(), Interrupt(0));
    device.write32(0x64, 1);
    // The owner disables the type.
    device.set_irqs(IrqType::Msi, 0, Data::None(0)).unwrap();
    assert_eq!(machine.event(), Revoked(0));
    machine.daemon.stop();
}

#[test]
#[ignore = "needs root and VFIO devices"]
fn sources_of_a_device_that_was_handed_in_end_with_the_connection() {
    let [edu, _] = edus();
    let owner = Owner::of(&[edu]).unwrap();
    let device = owner.device(0, edu).unwrap();
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("vfio.sock");
    let mut machine = Machine::start(edu, &format!("socket:{}", path.display()));
    assert_eq!(machine.status(&allocate_of(0, MSI, 0, 1), 40), NOT_READY);
    let (loan, answer) = hand_in(&path, edu, &device);
    assert_eq!(answer, "ok\n");
    machine.allocate(MSI, 0, 1);
    device.write32(0x60, 1);
    assert_eq!(machine.event(), Interrupt(0));
    device.write32(0x64, 1);
    drop(loan);
    assert_eq!(machine.event(), Revoked(0));
    vectors_are_gone(edu);
    machine.daemon.stop();
}
