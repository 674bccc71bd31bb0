// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device core with a host that answers whatever it likes, while the VMM, the operator and the hardware act between
//! the steps of a request.
//!
//! Whatever happens, a reply is one to its request, nothing goes beyond a quota, no event is of something that the driver
//! does not have, and what the host has enabled and attached is exactly what the driver's sources need.

use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;
use std::time::Instant;
use vhost_device_irq::device::{Assigned, Detach, Device, Failure, Lost, Pair, Quota, SourceState, Step};
use virtio_irq_proto::{
    Allocate, Delivery, Event, F_EVENT, F_NATIVE, Function, FunctionFlags, FunctionId, GetMessages, IrqType,
    Layout, Request, ResetFunction, SourceId, SourceRange, SourceRequest, Status, VectorRange,
};
use zerocopy::IntoBytes;

const QUOTA: Quota = Quota { guest: 12, function: 8 };
const FEATURES: u64 = 1 << F_NATIVE | 1 << F_EVENT;

fn assigned(id: FunctionId) -> Assigned {
    let function = Function {
        id,
        flags: FunctionFlags::NATIVE.with(FunctionFlags::EVENT, true),
        intx_count: 1,
        msi_count: 16,
        msix_count: 24,
        ..Function::default()
    };
    Assigned { function, refused: false }
}

/// What the host says to a call.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Good,
    /// Of another number, or with messages that form no block.
    Odd(u16),
    Fails(Failure),
}

/// What happens meanwhile.
#[derive(Clone, Copy, Debug)]
enum Incident {
    Fire(u32),
    /// The VMM took the function's interrupts.
    Take(u16),
    Gone(u16),
    Reset,
    Stop,
    Drain(bool),
    Remove(u16),
    Add,
    TakeEvents(usize),
}

#[derive(Clone, Debug)]
struct Turn {
    request: Vec<u8>,
    /// For each step: what happens before the host answers, and the answer.
    steps: Vec<(Vec<Incident>, Answer)>,
}

/// What the host has of one function.
#[derive(Debug, Default, PartialEq, Eq)]
struct Held {
    enabled: Option<IrqType>,
    attached: BTreeSet<u16>,
}

struct World {
    device: Device,
    host: BTreeMap<FunctionId, Held>,
    /// The sources that the driver knows of: those of requests that were answered.
    told: BTreeSet<SourceId>,
}

impl World {
    fn new() -> Self {
        let functions = [2, 5].map(|id| assigned(FunctionId(id)));
        let mut device = Device::new(functions.to_vec(), QUOTA).unwrap();
        device.negotiated(FEATURES);
        Self { device, host: BTreeMap::new(), told: BTreeSet::new() }
    }

    fn sources(&self) -> Vec<SourceState> {
        self.device.snapshot().sources
    }

    fn release(&mut self, detaches: &[Detach]) {
        for Detach { function, vectors, last, .. } in detaches {
            let held = self.host.entry(*function).or_default();
            for (vector, _) in vectors {
                held.attached.remove(vector);
            }
            if *last {
                *held = Held::default();
            }
        }
    }

    /// The host side releases what ended by itself: before it is asked for more of the function, and before the driver
    /// is told.
    fn collect(&mut self) {
        let lost = self.device.take_lost();
        self.release_lost(lost);
    }

    fn release_lost(&mut self, lost: Lost) {
        let told = self.device.next_events(usize::MAX);
        for event in told.iter().map(|event| Event::parse(event).unwrap()) {
            let early = lost.detaches().iter().flat_map(|detach| &detach.vectors).find(
                |(_, source)| matches!(event, Event::SourceRevoked { source: revoked, .. } if revoked == *source),
            );
            assert_eq!(early, None, "the host has not its own back");
        }
        self.release(lost.detaches());
        self.device.lost_released(lost);
    }

    fn happens(&mut self, incident: Incident) {
        match incident {
            Incident::Fire(source) => {
                let _ = self.device.fired(SourceId(source), Instant::now());
            }
            Incident::Take(function) => {
                self.device.revoked(FunctionId(function));
                self.collect();
            }
            Incident::Gone(function) => {
                self.device.function_gone(FunctionId(function));
                self.collect();
            }
            Incident::Reset => {
                let held = self.device.reset();
                self.release(&held);
                assert_eq!(self.sources(), []);
                assert!(!self.device.has_events(), "a reset forgets");
            }
            Incident::Stop => {
                let lost = self.device.stopped();
                self.release_lost(lost);
            }
            Incident::Drain(draining) => self.device.drain(draining),
            Incident::Remove(function) => {
                let held = self.device.remove_function(FunctionId(function));
                self.release(&held.unwrap_or_default());
            }
            Incident::Add => {
                if let Some(id) = self.device.unused_id() {
                    self.device.add_function(assigned(id)).unwrap();
                }
            }
            Incident::TakeEvents(room) => self.take_events(room),
        }
    }

    fn take_events(&mut self, room: usize) {
        let sources = self.sources();
        let records = self.device.next_events(room);
        assert!(records.len() <= room);
        for record in &records {
            let (of, id, revoked) = match Event::parse(record).unwrap() {
                Event::Interrupt { function, source } => (function, source, false),
                Event::SourceRevoked { function, source } => (function, source, true),
                Event::MessageChanged { .. } | Event::FunctionGone { .. } => continue,
            };
            let source = sources.iter().find(|source| source.id == id).expect("a source that is held");
            assert_eq!((source.function, source.revoked), (of, revoked), "{source:?}");
            assert!(revoked || source.pending && !source.masked, "{source:?}");
            assert!(self.told.contains(&id), "its ALLOCATE is not answered: {source:?}");
        }
        self.device.events_taken(records.len());
    }

    fn run(&mut self, turn: &Turn) {
        let request = Request::parse(&turn.request).unwrap();
        let room = request.reply_size();
        let mut answers = turn.steps.iter().cloned();
        let mut step = self.device.request(&turn.request, room);
        for _ in 0..64 {
            if let Step::Done(reply) = &step {
                let bytes = reply.bytes().to_vec();
                self.check(&request, &bytes, room);
                self.told = self.sources().iter().map(|source| source.id).collect();
                return;
            }
            let (incidents, answer) = answers.next().unwrap_or((Vec::new(), Answer::Good));
            incidents.into_iter().for_each(|incident| self.happens(incident));
            step = self.answer(step, answer);
        }
        panic!("a request takes a bounded number of host calls");
    }

    fn answer(&mut self, step: Step, answer: Answer) -> Step {
        match step {
            Step::Done(_) => step,
            Step::ReadMessages(call) => {
                let count = call.vectors().len();
                self.device.messages_read(call, pairs(answer, count))
            }
            Step::Enable(call) => {
                let (function, irq_type) = (call.function(), call.irq_type());
                let result = match answer {
                    Answer::Fails(failure) => Err(failure),
                    Answer::Odd(count) => Ok(count),
                    Answer::Good => Ok(u16::MAX),
                };
                if result.is_ok() {
                    self.host.entry(function).or_default().enabled = Some(irq_type);
                }
                self.device.enabled(call, result)
            }
            Step::Attach(call) => {
                let result = pairs(answer, call.vectors().len());
                if result.is_ok() {
                    let held = self.host.entry(call.function()).or_default();
                    // What was released meanwhile is enabled again by this.
                    held.enabled = Some(call.irq_type());
                    held.attached.extend(call.vectors().iter().map(|(vector, _)| *vector));
                }
                self.device.attached(call, result)
            }
            Step::Release(call) => {
                self.release(std::slice::from_ref(call.detach()));
                self.device.released(call)
            }
            Step::UnmaskPin(call) => {
                let result = if let Answer::Fails(failure) = answer { Err(failure) } else { Ok(()) };
                self.device.pin_unmasked(call, result)
            }
        }
    }

    fn check(&mut self, request: &Request, reply: &[u8], room: usize) {
        assert!(reply.len() <= room, "{request:?}");
        let status = u16::from_le_bytes([reply[0], reply[1]]);
        let status = Status::from_wire(status).expect("a status of the specification");
        if status == Status::Ok {
            match request {
                Request::ListFunctions(list) => assert!(list.parse_reply(reply).is_ok()),
                Request::GetMessages(get) => assert!(get.parse_reply(reply).is_ok()),
                Request::Allocate(allocate) => assert!(allocate.parse_reply(reply).is_ok(), "{allocate:?}"),
                _ => assert_eq!(reply.len(), 8),
            }
        } else {
            assert_eq!(reply, status.to_head().as_bytes());
        }
        self.settle();
    }

    /// The host side released what it has to, and has what the sources need.
    fn settle(&mut self) {
        self.collect();
        let sources = self.sources();
        assert!(sources.len() <= QUOTA.guest as usize, "{sources:?}");
        assert!(sources.iter().all(|source| source.id.0 < QUOTA.guest));
        let mut needed: BTreeMap<FunctionId, Held> = BTreeMap::new();
        for source in sources.iter().filter(|source| !source.revoked) {
            let held = needed.entry(source.function).or_default();
            assert!(held.enabled.is_none_or(|irq_type| irq_type == source.irq_type), "one type at a time");
            held.enabled = Some(source.irq_type);
            assert!(held.attached.insert(source.vector), "a vector is two sources: {sources:?}");
        }
        assert!(needed.values().all(|held| held.attached.len() <= QUOTA.function as usize));
        self.host.retain(|_, held| *held != Held::default());
        assert_eq!(self.host, needed);
    }
}

fn pairs(answer: Answer, count: usize) -> Result<Vec<Pair>, Failure> {
    let block = |count| (0..count).map(|data| Pair { address: 0xfee0_0418, data }).collect();
    match answer {
        Answer::Good => Ok(block(u32::try_from(count).unwrap())),
        // An odd one has no block, an even one not as many as there are vectors.
        Answer::Odd(number) if number % 2 == 1 => {
            Ok(vec![Pair { address: u64::MAX, data: number.into() }; count])
        }
        Answer::Odd(number) => Ok(block(number.into())),
        Answer::Fails(failure) => Err(failure),
    }
}

fn function() -> impl Strategy<Value = u16> {
    prop_oneof![4 => Just(2_u16), 4 => Just(5_u16), 2 => 0..3_u16]
}

fn incident() -> impl Strategy<Value = Incident> {
    prop_oneof![
        12 => (0..QUOTA.guest).prop_map(Incident::Fire),
        2 => function().prop_map(Incident::Take),
        1 => function().prop_map(Incident::Gone),
        1 => Just(Incident::Reset),
        1 => Just(Incident::Stop),
        3 => any::<bool>().prop_map(Incident::Drain),
        1 => function().prop_map(Incident::Remove),
        1 => Just(Incident::Add),
        4 => (0..4_usize).prop_map(Incident::TakeEvents),
    ]
}

fn answer() -> impl Strategy<Value = Answer> {
    let failure = prop_oneof![
        Just(Failure::NotEnabled),
        Just(Failure::Gone),
        Just(Failure::Busy),
        Just(Failure::NotReady),
        Just(Failure::Failed),
    ];
    prop_oneof![
        6 => Just(Answer::Good),
        2 => (0..40_u16).prop_map(Answer::Odd),
        1 => failure.prop_map(Answer::Fails),
    ]
}

fn request() -> impl Strategy<Value = Vec<u8>> {
    let irq_type = prop_oneof![1 => Just(IrqType::Intx), 3 => Just(IrqType::Msi), 3 => Just(IrqType::Msix)];
    let layout = prop_oneof![Just(Layout::Any), Just(Layout::Contiguous)];
    let allocate = (function(), irq_type, layout, 1..5_u16, 0..12_u16, 0..4_u16);
    let allocate = allocate.prop_map(|(function, irq_type, layout, least, more, first)| Allocate {
        function: FunctionId(function),
        irq_type,
        layout,
        least: NonZeroU16::new(least).unwrap(),
        most: NonZeroU16::new(least + more).unwrap(),
        first,
        delivery: Delivery::Event,
    });
    let what = prop_oneof![Just(SourceRequest::Free), Just(SourceRequest::Mask), Just(SourceRequest::Unmask)];
    let messages = (function(), 0..8_u16, 1..9_u16).prop_map(|(function, first, count)| GetMessages {
        function: FunctionId(function),
        vectors: VectorRange::of_messages(IrqType::Msi, first, count).unwrap(),
    });
    prop_oneof![
        6 => allocate.prop_map(|request| request.to_wire().as_bytes().to_vec()),
        6 => (what, 0..QUOTA.guest, 1..5_u16).prop_map(|(what, first, count)| {
            what.to_wire(SourceRange::new(first, count).unwrap()).as_bytes().to_vec()
        }),
        1 => function().prop_map(|id| ResetFunction { function: FunctionId(id) }.to_wire().as_bytes().to_vec()),
        1 => messages.prop_map(|request| request.to_wire().as_bytes().to_vec()),
    ]
}

fn turn() -> impl Strategy<Value = Turn> {
    let step = (vec(incident(), 0..3), answer());
    (request(), vec(step, 0..5)).prop_map(|(request, steps)| Turn { request, steps })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_host_holds_what_the_driver_has_whatever_it_answers(turns in vec((vec(incident(), 0..3), turn()), 1..40)) {
        let mut world = World::new();
        for (incidents, turn) in &turns {
            incidents.iter().for_each(|incident| world.happens(*incident));
            world.run(turn);
        }
        world.happens(Incident::Reset);
        world.settle();
        prop_assert!(world.host.is_empty());
    }
}
