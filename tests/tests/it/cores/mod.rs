// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver core and the device core joined, without anything in between.
//!
//! Random operations run against both cores and against a model that is written from the specification. The model knows
//! what every reply has to be, so a test case fails at the first operation where the device differs from the text.

mod model;
mod operation;

use model::{Assignment, Model, ModelFunction};
use operation::{Operation, assignments, operation};
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroU16;
use vhost_device_irq::device::{Assigned, Device, Pair, Quota, Step};
use vhost_device_irq::host::HostFunction;
use vhost_device_irq::host::sim::SimFunction;
use virtio_irq_driver::{Device as Driver, Fetch, Find, Progress, Target, events};
use virtio_irq_proto::wire::{self, request_type};
use virtio_irq_proto::{
    Event, F_NATIVE, Function, FunctionFlags, FunctionId, FunctionList, GetMessages, IrqType, ListFunctions,
    Message, MessageList, PciAddress, PciIds, ReplyError, Status, VectorRange,
};
use zerocopy::IntoBytes;

struct Joined {
    device: Device,
    hosts: BTreeMap<FunctionId, SimFunction>,
    driver: Driver,
    model: Model,
}

fn ids(model: u16) -> PciIds {
    PciIds { vendor: 0x17cb, device: 0x1100 + model, class_revision: 0x0280_0001, ..PciIds::default() }
}

fn address(device: u8) -> PciAddress {
    PciAddress { segment: 0, bus: 0, devfn: device << 3 }
}

impl Joined {
    fn new(assignments: &BTreeMap<u16, Assignment>) -> Self {
        let assigned = assignments.values().map(|a| Assigned {
            function: Function {
                id: FunctionId(a.id),
                flags: FunctionFlags::default()
                    .with(FunctionFlags::NATIVE, a.native)
                    .with(FunctionFlags::ISOLATED, !a.refused),
                guest_address: a.guest_address.map(address),
                ids: ids(a.model),
                intx_count: 1,
                msi_count: a.msi_count,
                msix_count: a.msix_count,
            },
            refused: a.refused,
        });
        let mut device = Device::new(assigned.collect(), Quota { guest: 0, function: 0 }).unwrap();
        device.negotiated(1 << F_NATIVE);
        let hosts = assignments.values().map(|a| {
            (FunctionId(a.id), SimFunction::new("sim", ids(a.model), a.msi_count, a.msix_count, a.id))
        });
        let functions = assignments.values().map(|a| {
            let function = ModelFunction {
                assignment: *a,
                enabled: u16::MAX,
                failing: false,
                removed: false,
                found_gone: false,
            };
            (a.id, function)
        });
        Self {
            driver: Driver::probe(device.config().as_bytes(), 1 << F_NATIVE).unwrap(),
            device,
            hosts: hosts.collect(),
            model: Model {
                functions: functions.collect(),
                native: true,
                told: BTreeMap::new(),
                gone_events: VecDeque::new(),
                moved: BTreeSet::new(),
            },
        }
    }

    /// The device's answer, with the host's help.
    fn exchange(&mut self, request: &[u8], room: usize) -> Vec<u8> {
        let mut step = self.device.request(request, room);
        for _ in 0..4 {
            match step {
                Step::Done(reply) => {
                    assert!(reply.bytes().len() <= room, "the reply fits the room that there is");
                    return reply.bytes().to_vec();
                }
                Step::ReadMessages(call) => {
                    let result = self.hosts[&call.function()].read_messages(call.vectors());
                    step = self.device.messages_read(call, result.map_err(|error| error.failure()));
                }
                other => panic!("no source was asked for: {other:?}"),
            }
        }
        panic!("a request takes a bounded number of host calls");
    }

    /// The id of the function that an operation names: one of those there are, or one that never was.
    fn id(&self, function: usize) -> u16 {
        let known = self.model.functions.keys().nth(function % (self.model.functions.len() + 1));
        known.copied().unwrap_or(0xabcd)
    }

    fn run(&mut self, operation: &Operation) {
        match operation {
            Operation::Raw(bytes, room) => self.raw(bytes, *room),
            Operation::Get { function, irq_type, first, count, room_off } => {
                let wire = wire::GetMessages {
                    head: wire::RequestHead { kind: request_type::GET_MESSAGES.into(), ..Default::default() },
                    function: self.id(*function).into(),
                    irq_type: *irq_type,
                    first: (*first).into(),
                    count: (*count).into(),
                    ..Default::default()
                };
                let room = (16 + 16 * usize::from(*count)).saturating_add_signed(isize::from(*room_off));
                self.raw(wire.as_bytes(), room);
            }
            Operation::List { start, count } => {
                let wire = wire::ListFunctions {
                    head: wire::RequestHead {
                        kind: request_type::LIST_FUNCTIONS.into(),
                        ..Default::default()
                    },
                    start: (*start).into(),
                    count: (*count).into(),
                    ..Default::default()
                };
                self.raw(wire.as_bytes(), 16 + 32 * usize::from(*count));
            }
            Operation::Fetch { function, irq_type, first, count } => {
                let range = VectorRange { irq_type: *irq_type, first: *first, count: *count };
                self.fetch(self.id(*function), range);
            }
            Operation::Find { device, model, unique } => self.find(*device, *model, *unique),
            Operation::Events(room) => self.take_events(*room),
            Operation::Negotiate(native) => {
                self.device.negotiated(u64::from(*native) << F_NATIVE);
                self.model.native = *native;
            }
            Operation::Reset => {
                assert_eq!(self.device.reset(), []);
                self.model.told.clear();
                self.model.moved.clear();
                self.model.gone_events.clear();
                assert!(!self.device.has_events(), "a reset forgets pending events");
            }
            Operation::Enable { .. } | Operation::Move(_) | Operation::Fail(_) | Operation::Remove(_) => {
                self.host(operation);
            }
        }
    }

    fn host(&mut self, operation: &Operation) {
        let (Operation::Enable { function, .. }
        | Operation::Move(function)
        | Operation::Fail(function)
        | Operation::Remove(function)) = operation
        else {
            return;
        };
        let id = self.id(*function);
        let (Some(model), Some(host)) = (self.model.functions.get_mut(&id), self.hosts.get(&FunctionId(id)))
        else {
            return;
        };
        match operation {
            Operation::Enable { count, .. } => {
                host.enable(*count);
                model.enabled = *count;
            }
            Operation::Fail(_) => {
                host.fail(1);
                model.failing = true;
            }
            Operation::Remove(_) => {
                host.remove();
                model.removed = true;
            }
            _ => {
                host.move_messages();
                self.model.moved.extend(self.model.told.keys().filter(|(of, ..)| *of == id));
            }
        }
    }

    /// Sends bytes and compares the answer with the model's.
    fn raw(&mut self, bytes: &[u8], room: usize) {
        let expected = self.model.outcome(bytes, room);
        let used = self.exchange(bytes, room);
        match expected {
            None => assert!(used.is_empty(), "{bytes:?} in {room}"),
            Some(Ok(())) => self.check_ok(bytes, &used),
            Some(Err(status)) => assert_eq!(used, status.to_head().as_bytes(), "{bytes:?} in {room}"),
        }
    }

    fn check_ok(&mut self, request: &[u8], used: &[u8]) {
        let field = |at: usize| u16::from_le_bytes([request[at], request[at + 1]]);
        if field(0) == request_type::LIST_FUNCTIONS {
            let (start, count) = (field(8), usize::from(field(10)));
            let all: Vec<_> = self.model.present().filter(|id| *id >= start).collect();
            let list = FunctionList::parse(used).unwrap();
            let listed: Vec<_> = list.functions.iter().map(|function| function.id.get()).collect();
            assert_eq!(listed, all[..count.min(all.len())]);
            assert_eq!(usize::from(list.remaining), all.len() - listed.len());
        } else {
            let irq_type = IrqType::from_wire(request[10]).unwrap();
            let list = MessageList::parse(used).unwrap();
            let messages: Vec<_> = list.messages.iter().map(|raw| Message::from(*raw)).collect();
            self.check_messages(field(8), irq_type, field(12), &messages);
        }
    }

    /// Messages are what the host has, and generations follow the rule (IRQ-DEV-31, IRQ-DEV-32).
    fn check_messages(&mut self, id: u16, irq_type: IrqType, first: u16, messages: &[Message]) {
        let count = NonZeroU16::new(u16::try_from(messages.len()).unwrap()).unwrap();
        let pairs =
            self.hosts[&FunctionId(id)].read_messages(VectorRange { irq_type, first, count }).unwrap();
        for ((vector, message), pair) in (first..).zip(messages).zip(pairs) {
            assert_eq!(Pair { address: message.address, data: message.data }, pair);
            let key = (id, irq_type, vector);
            let last = self.model.told.insert(key, *message);
            let moved = self.model.moved.remove(&key);
            if let Some(last) = last {
                let same = last.address == message.address && last.data == message.data;
                if !same {
                    assert_ne!(last.generation, message.generation, "{key:?} differs");
                } else if !moved {
                    assert_eq!(last.generation, message.generation, "{key:?} is the same");
                }
            }
        }
    }

    fn fetch(&mut self, id: u16, range: VectorRange) {
        let mut fetch = Fetch::new(&self.driver, FunctionId(id), range);
        let mut messages = Vec::new();
        for round in 0.. {
            assert!(round <= range.len() / 32, "a fetch ends");
            let request = fetch.request();
            let expected = self.model.outcome(request.to_wire().as_bytes(), request.reply_size());
            let used = self.exchange(request.to_wire().as_bytes(), request.reply_size());
            match (fetch.reply(&used, |message| messages.push(message)), expected) {
                (Ok(progress), Some(Ok(()))) => {
                    let asked = request.vectors.first;
                    let fetched = messages[usize::from(asked - range.first)..].to_vec();
                    self.check_messages(id, range.irq_type, asked, &fetched);
                    if progress == Progress::Done(()) {
                        assert_eq!(messages.len(), range.len());
                        return;
                    }
                }
                (Err(ReplyError::Refused(status)), Some(Err(expected))) => {
                    assert_eq!(status, expected);
                    return;
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn find(&mut self, device: u8, model: u16, unique: bool) {
        let target = Target { address: address(device), ids: ids(model), ids_are_unique: unique };
        let mut find = Find::new(target);
        let found = loop {
            let request = find.request();
            let used = self.exchange(request.to_wire().as_bytes(), request.reply_size());
            match find.reply(&used) {
                Ok(Progress::Again) => {}
                Ok(Progress::Done(function)) => break Ok(function.id.0),
                Err(error) => break Err(error),
            }
        };
        assert_eq!(found, self.model.find(device, model, unique));
    }

    fn take_events(&mut self, room: usize) {
        let records = self.device.next_events(room);
        assert!(records.len() <= room);
        self.device.events_taken(records.len());
        let taken: Vec<_> = events(records.as_bytes()).collect();
        assert_eq!(taken.len(), records.len(), "the driver understands every event");
        for event in taken {
            match event {
                Event::FunctionGone { function } => {
                    assert_eq!(self.model.gone_events.pop_front(), Some(function.0));
                }
                Event::MessageChanged { function, vectors } => {
                    assert!(
                        !self.model.functions[&function.0].found_gone,
                        "nothing comes after its FUNCTION_GONE"
                    );
                    let concerned = |key: &&(u16, IrqType, u16)| {
                        let (of, irq_type, vector) = **key;
                        let range = u32::from(vectors.first)..vectors.end();
                        of == function.0 && irq_type == vectors.irq_type && range.contains(&vector.into())
                    };
                    assert!(self.model.told.keys().any(|key| concerned(&key)), "a message that was told");
                }
                Event::Interrupt { .. } | Event::SourceRevoked { .. } => panic!("there are no sources"),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the guest asks and the host does, the device answers as the specification says, and what it answers is
    /// understood by the driver.
    #[test]
    fn every_answer_is_the_specifications(assignments in assignments(), operations in vec(operation(), 1..80)) {
        let mut joined = Joined::new(&assignments);
        for operation in &operations {
            joined.run(operation);
        }
        // Nothing is lost: with buffers enough, every function that was found gone has been reported, once.
        joined.take_events(usize::from(u16::MAX));
        prop_assert!(joined.model.gone_events.is_empty());
        prop_assert!(!joined.device.has_events());
    }

    /// Bytes from a broken device end every operation of the driver, and none of them panics.
    #[test]
    fn the_driver_survives_any_reply(replies in vec(vec(any::<u8>(), 0..400), 1..40), max_vectors in 32..64_u16) {
        let config = wire::Config {
            magic: virtio_irq_proto::MAGIC.into(),
            version: virtio_irq_proto::VERSION.into(),
            max_vectors: max_vectors.into(),
            ..Default::default()
        };
        let driver = Driver::probe(config.as_bytes(), 1 << F_NATIVE).unwrap();
        let target = Target { address: address(5), ids: ids(0), ids_are_unique: true };
        let mut find = Find::new(target);
        let range = VectorRange { irq_type: IrqType::Msi, first: 65_000, count: NonZeroU16::MAX };
        let mut fetch = Fetch::new(&driver, FunctionId(1), range);
        for reply in &replies {
            let ListFunctions { start, .. } = find.request();
            if find.reply(reply) == Ok(Progress::Again) {
                prop_assert!(find.request().start > start, "a search goes on, or ends");
            }
            let GetMessages { vectors, .. } = fetch.request();
            if fetch.reply(reply, |_| ()) == Ok(Progress::Again) {
                prop_assert!(fetch.request().vectors.first > vectors.first, "a fetch goes on, or ends");
            }
            prop_assert!(events(reply).count() <= reply.len() / 16);
        }
    }
}

/// A result of the host that arrives after a reset belongs to the guest before it.
#[test]
fn a_host_call_from_before_a_reset_tells_nothing() {
    let one = Assignment {
        id: 3,
        model: 0,
        guest_address: None,
        msi_count: 4,
        msix_count: 0,
        refused: false,
        native: true,
    };
    let mut joined = Joined::new(&BTreeMap::from([(3, one)]));
    let vectors = VectorRange::of_messages(IrqType::Msi, 1, 2).unwrap();
    let request = GetMessages { function: FunctionId(3), vectors };
    let Step::ReadMessages(call) = joined.device.request(request.to_wire().as_bytes(), request.reply_size())
    else {
        panic!("the host has to be asked")
    };
    assert_eq!(joined.device.reset(), []);
    let pairs = joined.hosts[&FunctionId(3)].read_messages(vectors).unwrap();
    let Step::Done(reply) = joined.device.messages_read(call, Ok(pairs)) else {
        panic!("it is the last step")
    };
    assert_eq!(reply.bytes(), Status::HostError.to_head().as_bytes());
}

/// Where one message of an MSI block is seen to have moved, the driver hears of those that it was told before.
#[test]
fn a_message_that_is_seen_to_have_moved_changes_the_block() {
    let one = Assignment {
        id: 3,
        model: 0,
        guest_address: None,
        msi_count: 32,
        msix_count: 0,
        refused: false,
        native: true,
    };
    let mut joined = Joined::new(&BTreeMap::from([(3, one)]));
    joined.fetch(3, VectorRange::of_messages(IrqType::Msi, 4, 9).unwrap());
    joined.run(&Operation::Move(0));
    joined.fetch(3, VectorRange::of_messages(IrqType::Msi, 6, 2).unwrap());
    let records = joined.device.next_events(9);
    let told = events(records.as_bytes()).collect::<Vec<_>>();
    let covered = |vector: u32| {
        told.iter().any(|event| match event {
            Event::MessageChanged { function: FunctionId(3), vectors } => {
                vectors.irq_type == IrqType::Msi
                    && (u32::from(vectors.first)..vectors.end()).contains(&vector)
            }
            _ => false,
        })
    };
    let missed: Vec<_> = [4, 5, 8, 9, 10, 11, 12].into_iter().filter(|vector| !covered(*vector)).collect();
    assert!(missed.is_empty(), "{missed:?} not in {told:?}");
    assert!(!covered(3) && !covered(13), "{told:?}");
}
