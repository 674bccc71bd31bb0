// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sources: what a driver may do with them, and what becomes of them.

use super::*;
use std::num::NonZeroU16;
use std::time::Duration;
use virtio_irq_proto::{
    Allocate, Delivery, Event, Function, IrqType, Layout, PciIds, ReplyError, ResetFunction, SourceList,
    SourceRange, SourceRequest,
};
use zerocopy::IntoBytes;

const ROOM: usize = 1 << 20;
const FIRST: FunctionId = FunctionId(3);
const SECOND: FunctionId = FunctionId(8);

fn function(id: FunctionId, msi_count: u16, msix_count: u16) -> Assigned {
    let function = Function {
        id,
        flags: FunctionFlags::NATIVE.with(FunctionFlags::EVENT, true),
        guest_address: None,
        ids: PciIds::default(),
        intx_count: 1,
        msi_count,
        msix_count,
    };
    Assigned { function, refused: false }
}

/// A device, and a host that does as it is told.
struct Bench {
    device: Device,
    /// Number of leading vectors that the host can enable.
    available: u16,
    /// What each call is to fail with, by the order of the calls.
    failures: Vec<Option<Failure>>,
    /// What the host was told.
    log: Vec<String>,
    contiguous: bool,
}

impl Bench {
    fn new(quota: Quota) -> Self {
        let functions = vec![function(FIRST, 16, 64), function(SECOND, 1, 0)];
        let mut device = Device::new(functions, quota).unwrap();
        device.negotiated(u64::MAX);
        Self { device, available: u16::MAX, failures: Vec::new(), log: Vec::new(), contiguous: true }
    }

    fn roomy() -> Self {
        Self::new(Quota { guest: 32, function: 32 })
    }

    fn fails(&mut self) -> Option<Failure> {
        if self.failures.is_empty() { None } else { self.failures.remove(0) }
    }

    fn request(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut step = self.device.request(bytes, ROOM);
        loop {
            step = match step {
                Step::Done(reply) => return reply.bytes().to_vec(),
                Step::Enable(call) => {
                    self.log.push(format!(
                        "enable {} {:?} ..{}",
                        call.function(),
                        call.irq_type(),
                        call.end()
                    ));
                    let result = self.fails().map_or(Ok(self.available), Err);
                    self.device.enabled(call, result)
                }
                Step::Attach(call) => {
                    let vectors: Vec<_> = call.vectors().iter().map(|(vector, _)| *vector).collect();
                    self.log.push(format!("attach {} {vectors:?}", call.function()));
                    let step = u32::from(!self.contiguous);
                    let pair = |vector: &u16| Pair { address: 0xfee0_0418, data: u32::from(*vector) << step };
                    let result = self.fails().map_or(Ok(vectors.iter().map(pair).collect()), Err);
                    self.device.attached(call, result)
                }
                Step::Release(call) => {
                    self.note(call.detach());
                    self.device.released(call)
                }
                Step::UnmaskPin(call) => {
                    self.log.push(format!("unmask pin {}", call.function()));
                    let result = self.fails().map_or(Ok(()), Err);
                    self.device.pin_unmasked(call, result)
                }
                Step::ReadMessages(call) => {
                    let pairs = vec![Pair { address: 0xfee0_0418, data: 0 }; call.vectors().len()];
                    self.device.messages_read(call, Ok(pairs))
                }
            }
        }
    }

    fn note(&mut self, detach: &Detach) {
        let vectors: Vec<_> = detach.vectors.iter().map(|(vector, _)| *vector).collect();
        let last = if detach.last { ", disable" } else { "" };
        self.log.push(format!("detach {} {vectors:?}{last}", detach.function));
    }

    /// What the host is to release unasked.
    fn lost(&mut self) -> Vec<String> {
        self.log.clear();
        for detach in self.device.take_lost() {
            self.note(&detach);
        }
        std::mem::take(&mut self.log)
    }

    /// Ids and vectors of what was allocated.
    fn allocate(&mut self, request: Allocate) -> Result<Vec<(u32, u16)>, ReplyError> {
        let reply = self.request(request.to_wire().as_bytes());
        let list: SourceList<'_> = request.parse_reply(&reply)?;
        Ok(list.sources.iter().map(|source| (source.id.get(), source.vector.get())).collect())
    }

    fn act(&mut self, request: SourceRequest, first: u32, count: u16) -> Result<(), ReplyError> {
        let range = SourceRange::new(first, count).unwrap();
        let reply = self.request(request.to_wire(range).as_bytes());
        request.parse_reply(&reply)
    }

    fn fire(&mut self, source: u32) {
        assert_eq!(self.device.fired(SourceId(source), Instant::now()), Watch::On);
    }

    /// Takes what waits, `room` events at a time.
    fn events(&mut self, room: usize) -> Vec<Event> {
        let mut all = Vec::new();
        while self.device.has_events() {
            let some = self.device.next_events(room);
            all.extend(some.iter().map(|raw| Event::parse(raw).unwrap()));
            self.device.events_taken(some.len());
        }
        all
    }

    fn interrupts(&mut self) -> Vec<u32> {
        let source = |event| match event {
            Event::Interrupt { source, .. } => source.0,
            other => panic!("{other:?}"),
        };
        self.events(2).into_iter().map(source).collect()
    }
}

fn some(function: FunctionId, irq_type: IrqType, least: u16, most: u16) -> Allocate {
    Allocate {
        function,
        irq_type,
        layout: Layout::Any,
        least: NonZeroU16::new(least).unwrap(),
        most: NonZeroU16::new(most).unwrap(),
        first: 0,
        delivery: Delivery::Event,
    }
}

fn refused<T>(status: Status) -> Result<T, ReplyError> {
    Err(ReplyError::Refused(status))
}

#[test]
fn an_allocation_gives_the_lowest_free_vectors_and_ids() {
    let mut bench = Bench::roomy();
    let msix = |least, most| some(FIRST, IrqType::Msix, least, most);
    assert_eq!(bench.allocate(msix(3, 3)).unwrap(), [(0, 0), (1, 1), (2, 2)]);
    assert_eq!(bench.allocate(Allocate { first: 9, ..msix(1, 2) }).unwrap(), [(3, 9), (4, 10)]);
    bench.act(SourceRequest::Free, 1, 1).unwrap();
    assert_eq!(bench.allocate(msix(1, 2)).unwrap(), [(1, 1), (5, 3)]);
    let seen = bench.log.join("; ");
    assert_eq!(
        seen,
        "enable 3 Msix ..3; attach 3 [0, 1, 2]; enable 3 Msix ..11; attach 3 [9, 10]; detach 3 [1]; \
         enable 3 Msix ..2; attach 3 [1, 3]"
    );
}

#[test]
fn a_contiguous_block_skips_what_is_taken() {
    let mut bench = Bench::roomy();
    let msi = |least, most| some(FIRST, IrqType::Msi, least, most);
    bench.allocate(msi(3, 3)).unwrap();
    bench.act(SourceRequest::Free, 0, 2).unwrap();
    let block = Allocate { layout: Layout::Contiguous, ..msi(4, 4) };
    assert_eq!(bench.allocate(block).unwrap(), [(0, 3), (1, 4), (3, 5), (4, 6)]);
    let least_two = Allocate { layout: Layout::Contiguous, ..msi(2, 16) };
    let rest: Vec<_> = bench.allocate(least_two).unwrap().into_iter().map(|(_, vector)| vector).collect();
    assert_eq!(rest, [7, 8, 9, 10, 11, 12, 13, 14, 15]);
}

#[test]
fn messages_that_do_not_count_up_are_no_block() {
    let mut bench = Bench::roomy();
    bench.contiguous = false;
    let block = Allocate { layout: Layout::Contiguous, ..some(FIRST, IrqType::Msix, 2, 2) };
    assert_eq!(bench.allocate(block), refused(Status::NotContiguous));
    assert_eq!(bench.log.last().unwrap(), "detach 3 [0, 1], disable");
    assert_eq!(bench.device.reset(), []);
}

#[test]
fn what_the_host_has_and_the_quota_bound_an_allocation() {
    let mut bench = Bench::new(Quota { guest: 6, function: 5 });
    bench.available = 4;
    let msix = |least, most| some(FIRST, IrqType::Msix, least, most);
    assert_eq!(bench.allocate(msix(5, 5)), refused(Status::NoSpace));
    assert_eq!(bench.log, ["enable 3 Msix ..5", "detach 3 [], disable"]);
    assert_eq!(bench.allocate(msix(2, 9)).unwrap().len(), 4);
    bench.available = 64;
    assert_eq!(bench.allocate(msix(2, 2)), refused(Status::NoSpace));
    assert_eq!(bench.allocate(msix(1, 2)).unwrap(), [(4, 4)]);
    assert_eq!(bench.allocate(some(SECOND, IrqType::Msi, 1, 1)).unwrap(), [(5, 0)]);
    assert_eq!(bench.allocate(some(SECOND, IrqType::Msi, 1, 1)), refused(Status::NoSpace));
}

#[test]
fn a_request_that_cannot_be_is_refused_before_the_host_is_asked() {
    let mut bench = Bench::roomy();
    assert_eq!(bench.allocate(some(FunctionId(4), IrqType::Msi, 1, 1)), refused(Status::NoFunction));
    assert_eq!(bench.allocate(some(FIRST, IrqType::Msi, 17, 17)), refused(Status::NoVector));
    let beyond = Allocate { first: u16::MAX, ..some(FIRST, IrqType::Msix, 1, 1) };
    assert_eq!(bench.allocate(beyond), refused(Status::NoVector));
    assert_eq!(bench.allocate(some(FIRST, IrqType::Msix, 1, 2049)), refused(Status::Invalid));
    assert_eq!(bench.log, [""; 0]);
    bench.device.negotiated(0);
    assert_eq!(bench.allocate(some(FIRST, IrqType::Msi, 1, 1)), refused(Status::Unsupported));
}

#[test]
fn a_function_has_sources_of_one_type_at_a_time() {
    let mut bench = Bench::roomy();
    bench.allocate(some(FIRST, IrqType::Msi, 1, 1)).unwrap();
    assert_eq!(bench.allocate(some(FIRST, IrqType::Msix, 1, 1)), refused(Status::Busy));
    bench.act(SourceRequest::Free, 0, 1).unwrap();
    bench.allocate(some(FIRST, IrqType::Msix, 1, 1)).unwrap();
}

#[test]
fn every_failure_of_the_host_is_undone() {
    for (failure, status) in [
        (Failure::Busy, Status::Busy),
        (Failure::NotReady, Status::NotReady),
        (Failure::Failed, Status::HostError),
    ] {
        let mut bench = Bench::roomy();
        bench.failures = vec![Some(failure)];
        assert_eq!(bench.allocate(some(FIRST, IrqType::Msi, 2, 2)), refused(status));
        bench.failures = vec![None, Some(failure)];
        assert_eq!(bench.allocate(some(FIRST, IrqType::Msi, 2, 2)), refused(status));
        assert_eq!(bench.log.last().unwrap(), "detach 3 [0, 1], disable");
        assert_eq!(bench.allocate(some(FIRST, IrqType::Msi, 2, 2)).unwrap(), [(0, 0), (1, 1)]);
    }
}

#[test]
fn freeing_what_is_not_held_frees_nothing() {
    let mut bench = Bench::roomy();
    bench.allocate(some(FIRST, IrqType::Msix, 4, 4)).unwrap();
    bench.act(SourceRequest::Free, 1, 1).unwrap();
    for (first, count) in [(1, 1), (0, 2), (2, 3), (4, 1), (u32::MAX, 1), (u32::MAX, u16::MAX)] {
        for request in [SourceRequest::Free, SourceRequest::Mask, SourceRequest::Unmask] {
            assert_eq!(bench.act(request, first, count), refused(Status::NoSource), "{request:?} {first}");
        }
    }
    bench.act(SourceRequest::Free, 2, 2).unwrap();
    bench.act(SourceRequest::Free, 0, 1).unwrap();
    assert_eq!(bench.log.last().unwrap(), "detach 3 [0], disable");
}

#[test]
fn interrupts_coalesce_and_come_in_the_order_of_their_first() {
    let mut bench = Bench::roomy();
    bench.allocate(some(FIRST, IrqType::Msix, 5, 5)).unwrap();
    for source in [4, 2, 2, 4, 3] {
        bench.fire(source);
    }
    assert_eq!(bench.interrupts(), [4, 2, 3]);
    assert!(!bench.device.has_events());
    bench.fire(2);
    assert_eq!(bench.interrupts(), [2]);
}

#[test]
fn a_storming_source_does_not_starve_another() {
    let mut bench = Bench::roomy();
    bench.allocate(some(FIRST, IrqType::Msix, 2, 2)).unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        bench.fire(0);
        bench.fire(1);
        bench.fire(0);
        let one = bench.device.next_events(1);
        bench.device.events_taken(1);
        seen.push(one[0].source.get());
    }
    assert_eq!(seen, [0, 1, 0]);
}

#[test]
fn a_masked_source_that_fired_is_delivered_once_after_unmask() {
    let mut bench = Bench::roomy();
    bench.allocate(some(FIRST, IrqType::Msix, 3, 3)).unwrap();
    bench.fire(1);
    bench.act(SourceRequest::Mask, 1, 2).unwrap();
    bench.fire(1);
    bench.fire(2);
    bench.fire(0);
    assert_eq!(bench.interrupts(), [0]);
    bench.act(SourceRequest::Unmask, 0, 3).unwrap();
    bench.act(SourceRequest::Unmask, 0, 3).unwrap();
    assert_eq!(bench.interrupts(), [1, 2]);
}

#[test]
fn a_pin_masks_itself_and_is_unmasked_on_the_host() {
    let mut bench = Bench::roomy();
    bench.allocate(some(SECOND, IrqType::Intx, 1, 1)).unwrap();
    bench.fire(0);
    assert_eq!(bench.interrupts(), [0]);
    bench.log.clear();
    bench.act(SourceRequest::Unmask, 0, 1).unwrap();
    assert_eq!(bench.log, ["unmask pin 8"]);
    bench.act(SourceRequest::Unmask, 0, 1).unwrap();
    assert_eq!(bench.log.len(), 1);
}

/// Several pins in one request: what becomes of one is its own.
#[test]
fn a_pin_that_the_host_does_not_unmask_stays_masked_and_can_be_unmasked_later() {
    let mut bench = Bench::roomy();
    bench.allocate(some(FIRST, IrqType::Intx, 1, 1)).unwrap();
    bench.allocate(some(SECOND, IrqType::Intx, 1, 1)).unwrap();
    bench.fire(0);
    bench.fire(1);
    assert_eq!(bench.interrupts(), [0, 1]);
    bench.log.clear();
    bench.failures = vec![Some(Failure::Failed)];
    assert_eq!(bench.act(SourceRequest::Unmask, 0, 2), refused(Status::HostError));
    assert_eq!(bench.log, ["unmask pin 3", "unmask pin 8"]);
    bench.log.clear();
    bench.act(SourceRequest::Unmask, 0, 2).unwrap();
    assert_eq!(bench.log, ["unmask pin 3"]);
}

#[test]
fn a_pin_of_a_function_that_left_ends_no_other_function() {
    let mut bench = Bench::roomy();
    bench.allocate(some(FIRST, IrqType::Intx, 1, 1)).unwrap();
    bench.allocate(some(SECOND, IrqType::Intx, 1, 1)).unwrap();
    bench.act(SourceRequest::Mask, 0, 2).unwrap();
    bench.failures = vec![None, Some(Failure::Gone)];
    assert_eq!(bench.act(SourceRequest::Unmask, 0, 2), refused(Status::FunctionGone));
    assert_eq!(bench.events(8), [Event::FunctionGone { function: SECOND }]);
    assert_eq!(bench.lost(), ["detach 8 [0], disable"]);
    bench.act(SourceRequest::Mask, 0, 1).unwrap();
}

#[test]
fn a_pin_that_is_not_unmasked_after_a_reset_is_nobodys() {
    let mut bench = Bench::roomy();
    bench.allocate(some(FIRST, IrqType::Intx, 1, 1)).unwrap();
    bench.act(SourceRequest::Mask, 0, 1).unwrap();
    let unmask = SourceRequest::Unmask.to_wire(SourceRange::one(SourceId(0)));
    let Step::UnmaskPin(late) = bench.device.request(unmask.as_bytes(), ROOM) else { panic!() };
    assert_eq!(bench.device.reset().len(), 1);
    bench.allocate(some(FIRST, IrqType::Intx, 1, 1)).unwrap();
    let Step::Done(_) = bench.device.pin_unmasked(late, Err(Failure::Failed)) else { panic!() };
    bench.fire(0);
    assert_eq!(bench.interrupts(), [0], "the new source is not masked");
}

#[test]
fn freed_sources_say_nothing_any_more() {
    let mut bench = Bench::roomy();
    bench.allocate(some(FIRST, IrqType::Msix, 2, 2)).unwrap();
    bench.fire(0);
    bench.fire(1);
    bench.act(SourceRequest::Free, 0, 1).unwrap();
    bench.fire(0);
    assert_eq!(bench.interrupts(), [1]);
}

#[test]
fn lost_sources_are_revoked_and_can_only_be_freed() {
    let mut bench = Bench::roomy();
    bench.allocate(some(FIRST, IrqType::Msix, 2, 2)).unwrap();
    bench.allocate(some(SECOND, IrqType::Msi, 1, 1)).unwrap();
    bench.fire(1);
    bench.fire(2);
    bench.device.revoked(FIRST);
    bench.fire(0);
    assert_eq!(
        bench.events(8),
        [
            Event::SourceRevoked { function: FIRST, source: SourceId(0) },
            Event::SourceRevoked { function: FIRST, source: SourceId(1) },
            Event::Interrupt { function: SECOND, source: SourceId(2) },
        ]
    );
    assert_eq!(bench.lost(), ["detach 3 [0, 1], disable"]);
    for request in [SourceRequest::Mask, SourceRequest::Unmask] {
        bench.act(request, 0, 2).unwrap();
    }
    bench.act(SourceRequest::Free, 0, 2).unwrap();
    assert_eq!(bench.log, [""; 0], "the host has nothing to take back any more");
    assert_eq!(bench.lost(), [""; 0]);
    assert_eq!(bench.allocate(some(FIRST, IrqType::Msix, 1, 1)).unwrap(), [(0, 0)]);
}

#[test]
fn a_function_that_is_gone_takes_its_sources_along() {
    let mut bench = Bench::roomy();
    bench.allocate(some(FIRST, IrqType::Msix, 2, 2)).unwrap();
    bench.fire(1);
    bench.failures = vec![Some(Failure::Gone)];
    assert_eq!(bench.allocate(some(FIRST, IrqType::Msix, 1, 1)), refused(Status::FunctionGone));
    assert_eq!(bench.events(8), [Event::FunctionGone { function: FIRST }]);
    assert_eq!(bench.act(SourceRequest::Free, 1, 1), refused(Status::NoSource));
    assert_eq!(bench.lost(), ["detach 3 [0, 1], disable"]);
    let reset = bench.request(ResetFunction { function: FIRST }.to_wire().as_bytes());
    assert_eq!(reset, Status::FunctionGone.to_head().as_bytes());
}

/// The transport cannot tell a pause from a reset: nothing stays on the host, and a driver that goes on is told.
#[test]
fn sources_are_given_back_when_the_queues_stop_and_a_paused_driver_is_told() {
    let mut bench = Bench::roomy();
    bench.allocate(some(FIRST, IrqType::Msix, 2, 2)).unwrap();
    bench.allocate(some(SECOND, IrqType::Msi, 1, 1)).unwrap();
    bench.fire(1);
    bench.log.clear();
    for detach in bench.device.stopped() {
        bench.note(&detach);
    }
    assert_eq!(bench.log, ["detach 3 [0, 1], disable", "detach 8 [0], disable"]);
    assert_eq!(bench.lost(), [""; 0], "the host gives up the rest with what it releases");
    let revoked = |function, id| Event::SourceRevoked { function, source: SourceId(id) };
    let events = [revoked(FIRST, 0), revoked(FIRST, 1), revoked(SECOND, 2)];
    assert_eq!(bench.events(2), events);
    assert_eq!(bench.allocate(some(FIRST, IrqType::Msix, 1, 1)).unwrap(), [(3, 0)], "ids stay taken");
    bench.act(SourceRequest::Free, 0, 4).unwrap();
}

#[test]
fn a_reset_after_the_queues_stopped_forgets_what_was_to_be_told() {
    let mut bench = Bench::roomy();
    bench.allocate(some(FIRST, IrqType::Msix, 2, 2)).unwrap();
    assert_eq!(bench.device.stopped().len(), 1);
    assert_eq!(bench.device.reset(), [], "the host has everything back");
    assert!(!bench.device.has_events());
    assert_eq!(bench.allocate(some(FIRST, IrqType::Msix, 1, 1)).unwrap(), [(0, 0)]);
}

#[test]
fn a_function_has_sources_only_where_the_device_can_allocate_them() {
    let mut plain = function(FIRST, 16, 64);
    plain.function.flags = FunctionFlags::NATIVE;
    let mut bench = Bench::roomy();
    bench.device = Device::new(vec![plain, function(SECOND, 1, 0)], Quota { guest: 8, function: 8 }).unwrap();
    bench.device.negotiated(u64::MAX);
    assert_eq!(bench.allocate(some(FIRST, IrqType::Msi, 1, 1)), refused(Status::Unsupported));
    assert_eq!(bench.allocate(some(FIRST, IrqType::Msi, 17, 17)), refused(Status::NoVector));
    let reset = bench.request(ResetFunction { function: FIRST }.to_wire().as_bytes());
    assert_eq!(reset, [0; 8], "it has no sources, and none is left");
}

#[test]
fn a_function_that_is_not_isolated_has_no_sources() {
    let refused_one = Assigned { refused: true, ..function(FIRST, 16, 64) };
    let mut bench = Bench::roomy();
    bench.device = Device::new(vec![refused_one], Quota { guest: 8, function: 8 }).unwrap();
    bench.device.negotiated(u64::MAX);
    assert_eq!(bench.allocate(some(FIRST, IrqType::Msi, 16, 16)), refused(Status::NotIsolated));
    assert_eq!(bench.allocate(some(FIRST, IrqType::Msi, 17, 17)), refused(Status::NoVector));
}

/// What is offered never changes (IRQ-DEV-06), and is offered only where it can be used.
#[test]
fn event_delivery_is_offered_with_a_quota_and_for_good() {
    let offered = |device: &Device| (device.features(), device.config().max_sources.get());
    let mut bench = Bench::roomy();
    assert_eq!(offered(&bench.device), (3, 32));
    bench.device.function_gone(FIRST);
    bench.device.function_gone(SECOND);
    assert_eq!(offered(&bench.device), (3, 32));
    for quota in [Quota { guest: 0, function: 8 }, Quota { guest: 8, function: 0 }] {
        let mut device = Device::new(vec![function(FIRST, 16, 0)], quota).unwrap();
        assert_eq!(offered(&device), (1, 0));
        let list = ListFunctions { start: FIRST, count: NonZeroU16::MIN }.to_wire();
        let Step::Done(reply) = device.request(list.as_bytes(), ROOM) else { panic!() };
        assert_eq!(reply.bytes()[18..20], [8, 0], "its flags are NATIVE alone");
    }
}

/// One message of an MSI block tells of the others, also when it is a source's (IRQ-DEV-37).
#[test]
fn an_allocation_that_finds_the_block_moved_says_so_for_the_sources_there_are() {
    let mut bench = Bench::roomy();
    let at = |address, vectors: std::ops::Range<u32>| {
        Ok(vectors.map(|vector| Pair { address, data: vector }).collect())
    };
    let allocate = |bench: &mut Bench, least, pairs| {
        let request = some(FIRST, IrqType::Msi, least, least).to_wire();
        let Step::Enable(call) = bench.device.request(request.as_bytes(), ROOM) else { panic!() };
        let Step::Attach(call) = bench.device.enabled(call, Ok(16)) else { panic!() };
        let Step::Done(reply) = bench.device.attached(call, pairs) else { panic!() };
        assert_eq!(reply.bytes()[..2], [0, 0]);
    };
    allocate(&mut bench, 4, at(0x1000, 0..4));
    bench.act(SourceRequest::Free, 1, 1).unwrap();
    allocate(&mut bench, 1, at(0x1000, 1..2));
    assert!(!bench.device.has_events(), "nothing moved");
    bench.act(SourceRequest::Free, 0, 1).unwrap();
    allocate(&mut bench, 1, at(0x2000, 0..1));
    let vectors = VectorRange::of_messages(IrqType::Msi, 1, 3).unwrap();
    assert_eq!(bench.events(8), [Event::MessageChanged { function: FIRST, vectors }]);
    // Enabled anew, the block may lie anywhere; the vectors that are no sources now are nobody's.
    bench.act(SourceRequest::Free, 0, 4).unwrap();
    allocate(&mut bench, 1, at(0x3000, 0..1));
    assert!(!bench.device.has_events());
}

#[test]
fn a_reset_gives_everything_back() {
    let mut bench = Bench::roomy();
    bench.allocate(some(FIRST, IrqType::Msix, 2, 2)).unwrap();
    bench.allocate(some(SECOND, IrqType::Msi, 1, 1)).unwrap();
    bench.fire(1);
    bench.log.clear();
    for detach in bench.device.reset() {
        bench.note(&detach);
    }
    assert_eq!(bench.log, ["detach 3 [0, 1], disable", "detach 8 [0], disable"]);
    assert!(!bench.device.has_events());
    assert_eq!(bench.allocate(some(SECOND, IrqType::Msi, 1, 1)).unwrap(), [(0, 0)]);
}

#[test]
fn a_function_reset_frees_its_sources_and_no_others() {
    let mut bench = Bench::roomy();
    bench.allocate(some(FIRST, IrqType::Msix, 2, 2)).unwrap();
    bench.allocate(some(SECOND, IrqType::Msi, 1, 1)).unwrap();
    bench.log.clear();
    let reset = bench.request(ResetFunction { function: FIRST }.to_wire().as_bytes());
    assert_eq!(reset, [0; 8]);
    assert_eq!(bench.log, ["detach 3 [0, 1], disable"]);
    bench.fire(2);
    assert_eq!(bench.interrupts(), [2]);
}

#[test]
fn a_reset_in_the_middle_of_an_allocation_leaves_nothing_behind() {
    let mut bench = Bench::roomy();
    let request = some(FIRST, IrqType::Msix, 2, 2).to_wire();
    let Step::Enable(enable) = bench.device.request(request.as_bytes(), ROOM) else { panic!() };
    assert_eq!(bench.device.reset(), []);
    let Step::Release(release) = bench.device.enabled(enable, Ok(64)) else { panic!() };
    assert!(release.detach().last);
    let Step::Done(_) = bench.device.released(release) else { panic!() };

    let Step::Enable(enable) = bench.device.request(request.as_bytes(), ROOM) else { panic!() };
    let Step::Attach(attach) = bench.device.enabled(enable, Ok(64)) else { panic!() };
    assert_eq!(bench.device.reset().len(), 1);
    let pairs = vec![Pair { address: 1, data: 0 }; 2];
    let Step::Release(release) = bench.device.attached(attach, Ok(pairs)) else { panic!() };
    assert_eq!(release.detach().vectors.len(), 2);
}

/// The VMM takes the interrupts away, the function leaves, or the queues stop, while the host attaches.
#[test]
fn sources_that_end_before_they_are_given_are_not_given() {
    fn ends(end: impl FnOnce(&mut Device), status: Status, then: &[Event]) {
        let mut bench = Bench::roomy();
        let request = some(FIRST, IrqType::Msix, 2, 2).to_wire();
        let Step::Enable(enable) = bench.device.request(request.as_bytes(), ROOM) else { panic!() };
        let Step::Attach(attach) = bench.device.enabled(enable, Ok(64)) else { panic!() };
        end(&mut bench.device);
        let pairs = vec![Pair { address: 1, data: 0 }; 2];
        let Step::Release(release) = bench.device.attached(attach, Ok(pairs)) else { panic!() };
        assert_eq!(release.detach().vectors.len(), 2);
        assert!(release.detach().last);
        let Step::Done(reply) = bench.device.released(release) else { panic!() };
        assert_eq!(reply.bytes(), status.to_head().as_bytes());
        assert_eq!(bench.events(8), then);
        assert_eq!(
            bench.act(SourceRequest::Free, 0, 1),
            refused(Status::NoSource),
            "the driver never had it"
        );
    }
    ends(|device| device.revoked(FIRST), Status::HostError, &[]);
    ends(|device| drop(device.stopped()), Status::HostError, &[]);
    let gone = Event::FunctionGone { function: FIRST };
    ends(|device| device.function_gone(FIRST), Status::FunctionGone, &[gone]);
}

/// The driver would hear of what it does not know yet (IRQ-DEV-66).
#[test]
fn what_fires_while_the_host_attaches_it_is_told_once_it_is_given() {
    let mut bench = Bench::roomy();
    let request = some(FIRST, IrqType::Msix, 3, 3).to_wire();
    let Step::Enable(enable) = bench.device.request(request.as_bytes(), ROOM) else { panic!() };
    let Step::Attach(attach) = bench.device.enabled(enable, Ok(64)) else { panic!() };
    [2, 0, 2].into_iter().for_each(|source| bench.fire(source));
    assert!(!bench.device.has_events());
    assert!(!bench.device.look_first());
    let pairs = (0..3).map(|data| Pair { address: 1, data }).collect();
    let Step::Done(_) = bench.device.attached(attach, Ok(pairs)) else { panic!() };
    assert!(bench.device.look_first());
    bench.fire(2);
    assert_eq!(bench.interrupts(), [0, 2]);
}

/// What signals there are belongs to what was pending before (IRQ-DEV-79).
#[test]
fn whoever_tells_events_looks_first_where_they_waited_for_something_else() {
    let (mut bench, start) = limited();
    bench.fire(1);
    assert!(!bench.device.look_first(), "the look that found it is enough");
    bench.interrupts();
    bench.device.events_wait();
    assert!(!bench.device.look_first(), "nothing waits");
    bench.fire(2);
    bench.device.events_wait();
    assert!(bench.device.look_first());
    assert!(!bench.device.look_first(), "once");
    bench.act(SourceRequest::Mask, 0, 1).unwrap();
    assert!(!bench.device.look_first());
    bench.act(SourceRequest::Unmask, 0, 1).unwrap();
    assert!(bench.device.look_first(), "although nothing is known to have fired");
    bench.act(SourceRequest::Unmask, 0, 1).unwrap();
    assert!(!bench.device.look_first(), "it was not masked");
    assert_eq!(bench.device.fired(SourceId(1), start), Watch::Paused);
    assert!(!bench.device.look_first());
    assert_eq!(bench.device.resumed(start + 2 * HALF), Some(SourceId(1)));
    assert!(bench.device.look_first());
}

#[test]
fn an_allocation_that_is_only_half_done_when_the_queues_stop_or_the_function_leaves_fails() {
    fn fails(end: impl FnOnce(&mut Device), status: Status) {
        let mut bench = Bench::roomy();
        let request = some(FIRST, IrqType::Msix, 2, 2).to_wire();
        let Step::Enable(enable) = bench.device.request(request.as_bytes(), ROOM) else { panic!() };
        end(&mut bench.device);
        let Step::Release(release) = bench.device.enabled(enable, Ok(64)) else { panic!() };
        assert!(release.detach().last && release.detach().vectors.is_empty());
        let Step::Done(reply) = bench.device.released(release) else { panic!() };
        assert_eq!(reply.bytes(), status.to_head().as_bytes());
    }
    fails(|device| drop(device.stopped()), Status::HostError);
    fails(|device| device.function_gone(FIRST), Status::FunctionGone);
}

#[test]
fn of_equally_long_runs_the_first_is_taken() {
    let mut bench = Bench::roomy();
    bench.allocate(some(FIRST, IrqType::Msix, 12, 12)).unwrap();
    for (first, count) in [(1, 2), (4, 3), (8, 3)] {
        bench.act(SourceRequest::Free, first, count).unwrap();
    }
    bench.available = 12;
    let block = Allocate { layout: Layout::Contiguous, ..some(FIRST, IrqType::Msix, 2, 8) };
    let vectors: Vec<_> = bench.allocate(block).unwrap().into_iter().map(|(_, vector)| vector).collect();
    assert_eq!(vectors, [4, 5, 6]);
}

/// The operator begins to drain the device while the host enables the function's interrupts.
#[test]
fn a_block_that_there_is_no_room_for_any_more_is_refused() {
    for layout in [Layout::Any, Layout::Contiguous] {
        let mut bench = Bench::roomy();
        let request = Allocate { layout, ..some(FIRST, IrqType::Msix, 1, 2) }.to_wire();
        let Step::Enable(enable) = bench.device.request(request.as_bytes(), ROOM) else { panic!() };
        bench.device.drain(true);
        let Step::Release(release) = bench.device.enabled(enable, Ok(64)) else { panic!("{layout:?}") };
        assert!(release.detach().last && release.detach().vectors.is_empty());
        let Step::Done(reply) = bench.device.released(release) else { panic!() };
        assert_eq!(reply.bytes(), Status::NoSpace.to_head().as_bytes());
    }
}

/// Two in a second, one at once.
fn limited() -> (Bench, Instant) {
    let mut bench = Bench::roomy();
    bench.device.limit_rate(RateLimit::per_second(std::num::NonZeroU32::new(2).unwrap()));
    bench.allocate(some(FIRST, IrqType::Msix, 3, 3)).unwrap();
    (bench, Instant::now())
}

const HALF: Duration = Duration::from_millis(500);

#[test]
fn a_source_that_fires_too_often_is_told_later_and_the_others_at_once() {
    let (mut bench, start) = limited();
    let fired = |bench: &mut Bench, source| bench.device.fired(SourceId(source), start);
    assert_eq!(fired(&mut bench, 1), Watch::On);
    assert_eq!(bench.interrupts(), [1]);
    assert_eq!((fired(&mut bench, 1), fired(&mut bench, 2)), (Watch::Paused, Watch::On));
    assert_eq!(bench.interrupts(), [2]);
    assert_eq!(bench.device.resumes_at(), Some(start + HALF));
    assert_eq!(bench.device.resumed(start + HALF - Duration::from_nanos(1)), None);
    assert_eq!(bench.device.resumed(start + HALF), Some(SourceId(1)));
    assert_eq!(bench.device.resumed(start + HALF), None);
    assert_eq!(bench.interrupts(), [1]);
    assert_eq!(bench.device.resumes_at(), None);
    assert_eq!(bench.device.fired(SourceId(1), start + HALF), Watch::Paused, "that one counted");
    assert_eq!(bench.device.resumed(start + 2 * HALF), Some(SourceId(1)));
    assert_eq!(bench.interrupts(), [1]);
}

#[test]
fn what_fires_while_its_event_waits_or_is_masked_counts_against_the_limit_too() {
    let (mut bench, start) = limited();
    let fired = |bench: &mut Bench, source| bench.device.fired(SourceId(source), start);
    assert_eq!((fired(&mut bench, 0), fired(&mut bench, 0)), (Watch::On, Watch::Paused));
    assert_eq!(bench.interrupts(), [0], "the first was in time");
    assert_eq!(bench.device.resumed(start + HALF), Some(SourceId(0)));
    assert_eq!(bench.interrupts(), [0; 0], "and the second was merged into it");
    bench.act(SourceRequest::Mask, 1, 1).unwrap();
    assert_eq!((fired(&mut bench, 1), fired(&mut bench, 1)), (Watch::On, Watch::Paused));
    bench.act(SourceRequest::Unmask, 1, 1).unwrap();
    assert_eq!(bench.interrupts(), [1]);
}

#[test]
fn unmasking_does_not_get_around_the_limit() {
    let (mut bench, start) = limited();
    let fired = |bench: &mut Bench, source| bench.device.fired(SourceId(source), start);
    assert_eq!(fired(&mut bench, 0), Watch::On);
    assert_eq!(bench.interrupts(), [0]);
    assert_eq!(fired(&mut bench, 0), Watch::Paused);
    bench.act(SourceRequest::Mask, 0, 1).unwrap();
    bench.act(SourceRequest::Unmask, 0, 1).unwrap();
    assert_eq!(bench.interrupts(), [0; 0]);
    bench.act(SourceRequest::Mask, 0, 1).unwrap();
    assert_eq!(bench.device.resumed(start + HALF), Some(SourceId(0)));
    assert_eq!(bench.interrupts(), [0; 0]);
    bench.act(SourceRequest::Unmask, 0, 1).unwrap();
    assert_eq!(bench.interrupts(), [0]);
}

#[test]
fn a_source_that_ends_while_it_is_held_back_leaves_nothing_behind() {
    for how in 0..3 {
        let (mut bench, start) = limited();
        for source in [0, 0, 1, 1] {
            let _ = bench.device.fired(SourceId(source), start);
        }
        bench.interrupts();
        match how {
            0 => bench.act(SourceRequest::Free, 0, 2).unwrap(),
            1 => bench.device.revoked(FIRST),
            _ => drop(bench.device.reset()),
        }
        assert_eq!(bench.device.resumes_at(), None, "{how}");
        assert_eq!(bench.device.resumed(start + 9 * HALF), None);
    }
}
