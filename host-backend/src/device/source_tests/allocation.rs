// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which sources there are to be had.

use super::*;

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
