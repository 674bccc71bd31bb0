// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From requests down to ioctls: what a guest asks for when the kernel fails at any point of it.
//!
//! Everything is real above the ioctls, and the registers are files. For each ioctl in turn that a sequence of requests makes the
//! kernel refuses that one: what was begun is undone, a source that the guest holds goes on or is revoked aloud, and the next
//! request works.

use super::interrupts::{Devices, VfioInterrupts};
use super::tests::tree_at;
use super::{Description, HostError, HostFunction, Interrupts, LinuxFunction};
use crate::bridge::Bridge;
use crate::device::{Assigned, Pair, Quota};
use crate::vfio::kernel::{FUNCTION, Fake};
use crate::vfio::{Claim, ClaimError, Host};
use std::collections::BTreeMap;
use std::num::NonZeroU16;
use virtio_irq_proto::{
    Allocate, Delivery, Event, FunctionFlags, FunctionId, IrqType, Layout, ResetFunction, SourceId,
    SourceList, SourceRange, SourceRequest, Status, VectorRange,
};
use zerocopy::IntoBytes;

const ID: FunctionId = FunctionId(7);
const ROOM: usize = 4096;

/// Descriptors of the one device.
#[derive(Debug)]
struct Same(Fake);

impl Devices for Same {
    type Device = Fake;

    fn claim(&self) -> Result<Claim<Fake>, ClaimError> {
        Ok(Claim { device: self.0.clone(), owner: None })
    }
}

#[derive(Debug)]
struct OnFake {
    function: LinuxFunction,
    interrupts: VfioInterrupts<Same>,
}

impl HostFunction for OnFake {
    fn name(&self) -> &str {
        self.function.name()
    }

    fn describe(&self) -> Description {
        self.function.describe()
    }

    fn read_messages(&self, vectors: VectorRange) -> Result<Vec<Pair>, HostError> {
        self.function.read_messages(vectors)
    }

    fn interrupts(&self) -> Option<&dyn Interrupts> {
        Some(&self.interrupts)
    }
}

/// A guest, and the sources that it holds with their vectors, until they are revoked.
struct Guest {
    kernel: Fake,
    bridge: Bridge,
    held: BTreeMap<u32, Option<u16>>,
}

impl Guest {
    fn new() -> Self {
        let kernel = Fake::new(1, 32, 5);
        let tree = tree_at(&kernel.root().join("sys"), FUNCTION);
        tree.fill_table(&[0, 1, 2, 3, 4]);
        let function = tree.open().unwrap();
        kernel.show(move |enabled| {
            tree.hide_msi();
            tree.show_msix(matches!(enabled, Some((IrqType::Msix, _))));
            if let Some((IrqType::Msi, count)) = enabled {
                tree.show_msi(count.ilog2() as u8);
            }
        });
        let host = Host::at(kernel.root());
        let registers = function.registers.clone();
        let interrupts = VfioInterrupts::new(Same(kernel.clone()), host, FUNCTION, registers);
        let flags = FunctionFlags::NATIVE.with(FunctionFlags::EVENT, true);
        let assigned = Assigned { function: function.describe().function(ID, flags), refused: false };
        let host: Box<dyn HostFunction> = Box::new(OnFake { function, interrupts });
        let bridge = Bridge::new(vec![(assigned, host)], Quota { guest: 16, function: 16 }).unwrap();
        bridge.device().negotiated(3);
        Self { kernel, bridge, held: BTreeMap::new() }
    }

    fn ask(&self, request: &[u8]) -> (Status, Vec<u8>) {
        let reply = self.bridge.answer(request, ROOM).bytes().to_vec();
        (Status::from_wire(u16::from_le_bytes([reply[0], reply[1]])).unwrap(), reply)
    }

    fn allocate(&mut self, irq_type: IrqType, first: u16, count: u16) -> Status {
        let request = Allocate {
            function: ID,
            irq_type,
            layout: Layout::Any,
            least: NonZeroU16::new(count).unwrap(),
            most: NonZeroU16::new(count).unwrap(),
            first,
            delivery: Delivery::Event,
        };
        let (status, reply) = self.ask(request.to_wire().as_bytes());
        if status == Status::Ok {
            let sources = SourceList::parse(&reply).unwrap().sources;
            self.held.extend(sources.iter().map(|source| (source.id.get(), Some(source.vector.get()))));
        }
        status
    }

    fn vectors(&self) -> impl Iterator<Item = u16> {
        self.held.values().flatten().copied()
    }

    fn ids(&self) -> Vec<u32> {
        self.held.keys().copied().collect()
    }

    fn change(&self, request: SourceRequest, id: u32) -> Status {
        let one = SourceRange::new(id, 1).unwrap();
        self.ask(request.to_wire(one).as_bytes()).0
    }

    fn free(&mut self, id: u32) -> Status {
        let status = self.change(SourceRequest::Free, id);
        if status == Status::Ok {
            self.held.remove(&id);
        }
        status
    }

    fn free_all(&mut self) {
        let reset = ResetFunction { function: ID };
        assert_eq!(self.ask(reset.to_wire().as_bytes()).0, Status::Ok);
        self.held.clear();
    }

    /// Hears which of its sources ended.
    fn hear(&mut self) {
        for event in self.events() {
            match event {
                Event::SourceRevoked { source, .. } => *self.held.get_mut(&source.0).unwrap() = None,
                other => panic!("{other:?}"),
            }
        }
    }

    /// Each source that it holds fires and is told. `exactly`: and the host keeps no vector besides.
    #[track_caller]
    fn has_what_it_holds(&self, exactly: bool, about: &str) {
        let vectors: Vec<_> = self.kernel.triggers().iter().map(|(vector, _)| *vector).collect();
        let mut held: Vec<_> = self.vectors().map(u32::from).collect();
        held.sort_unstable();
        assert!(held.iter().all(|vector| vectors.contains(vector)), "{about}: of {held:?} are {vectors:?}");
        if exactly {
            assert_eq!(vectors, held, "{about}: vectors that the host keeps");
        }
        assert_eq!(self.bridge.deliveries().count(), held.len(), "{about}: eventfds");
        for (id, vector) in &self.held {
            let Some(vector) = vector else { continue };
            assert!(self.kernel.fire(u32::from(*vector)), "{about}: vector {vector}");
            assert_eq!(self.events(), [Event::Interrupt { function: ID, source: SourceId(*id) }], "{about}");
            // A pin masks itself.
            assert_eq!(self.change(SourceRequest::Unmask, *id), Status::Ok, "{about}");
        }
    }

    fn events(&self) -> Vec<Event> {
        self.bridge.collect();
        let mut device = self.bridge.device();
        let events = device.next_events(usize::MAX);
        device.events_taken(events.len());
        events.iter().map(|event| Event::parse(event).unwrap()).collect()
    }
}

/// A guest that allocates, unmasks, frees some, allocates more, and frees everything. Returns whether anything was refused.
fn life(guest: &mut Guest, irq_type: IrqType, about: &str) -> bool {
    let mut refused = false;
    // What could not be taken back is, with the last source or when the vector is needed again.
    let (mut failed, mut kept) = (guest.kernel.has_failed(), false);
    let mut step = |guest: &mut Guest, name: &str, status: Status| {
        assert!(matches!(status, Status::Ok | Status::HostError), "{about}, {name}: {status:?}");
        refused |= status != Status::Ok;
        guest.hear();
        kept |= name.starts_with("free") && guest.kernel.has_failed() && !failed;
        failed = guest.kernel.has_failed();
        // Looking must not be what fails.
        if failed {
            guest.has_what_it_holds(!kept, &format!("{about}, {name}"));
        }
    };
    let count = if irq_type == IrqType::Intx { 1 } else { 3 };
    let status = guest.allocate(irq_type, 0, count);
    step(guest, "allocate", status);
    if status != Status::Ok {
        let status = guest.allocate(irq_type, 0, count);
        step(guest, "allocate again", status);
        assert!(guest.vectors().eq(0..count), "{about}: not the same vectors");
    }
    for id in guest.ids() {
        let status = guest.change(SourceRequest::Unmask, id);
        step(guest, "unmask", status);
    }
    if let [_, middle, _] = guest.ids()[..] {
        let status = guest.free(middle);
        step(guest, "free", status);
        for again in ["allocate more", "allocate more again"] {
            let status = guest.allocate(irq_type, 1, 2);
            step(guest, again, status);
            if status == Status::Ok {
                break;
            }
        }
        assert!(guest.vectors().any(|vector| vector == 1), "{about}: not the vector that was freed");
    }
    for id in guest.ids() {
        let status = guest.free(id);
        step(guest, "free all", status);
    }
    refused
}

#[test]
fn whichever_ioctl_fails_the_guest_keeps_what_it_has_and_the_next_request_works() {
    for irq_type in [IrqType::Intx, IrqType::Msi, IrqType::Msix] {
        let (mut ioctl, mut refusals) = (0, 0);
        loop {
            let about = format!("{irq_type:?}, ioctl {ioctl} fails");
            let mut guest = Guest::new();
            guest.kernel.fail_at(Some(ioctl));
            refusals += usize::from(life(&mut guest, irq_type, &about));
            let failed = guest.kernel.has_failed();
            guest.kernel.fail_at(None);
            guest.free_all();
            assert_eq!((guest.kernel.enabled(), guest.kernel.triggers()), (None, vec![]), "{about}: left");
            assert_eq!(guest.bridge.deliveries().count(), 0, "{about}: eventfds are left");
            assert!(!life(&mut guest, irq_type, &about), "{about}: a request after it is refused");
            assert_eq!(guest.kernel.enabled(), None, "{about}: left in the end");
            if !failed {
                break;
            }
            ioctl += 1;
        }
        assert!(ioctl > 6 && refusals > 3, "{irq_type:?}: {ioctl} ioctls, {refusals} refused requests");
    }
}
