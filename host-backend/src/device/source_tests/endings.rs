// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sources that are freed, lost, taken back, or end before they are given.

use super::*;

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
    assert_eq!(bench.lost(), ["detach 3 [0, 1], disable"]);
    assert_eq!(
        bench.events(8),
        [
            Event::SourceRevoked { function: FIRST, source: SourceId(0) },
            Event::SourceRevoked { function: FIRST, source: SourceId(1) },
            Event::Interrupt { function: SECOND, source: SourceId(2) },
        ]
    );
    for request in [SourceRequest::Mask, SourceRequest::Unmask] {
        bench.act(request, 0, 2).unwrap();
    }
    bench.act(SourceRequest::Free, 0, 2).unwrap();
    assert_eq!(bench.log, [""; 0], "the host has nothing to take back any more");
    assert_eq!(bench.lost(), [""; 0]);
    assert_eq!(bench.allocate(some(FIRST, IrqType::Msix, 1, 1)).unwrap(), [(0, 0)]);
}

/// A driver that was told enables the function's interrupts natively, which the host must not undo.
#[test]
fn a_loss_is_told_when_the_host_has_back_what_it_lent_and_no_interrupt_waits_for_that() {
    let mut bench = Bench::roomy();
    bench.allocate(some(FIRST, IrqType::Msix, 1, 1)).unwrap();
    bench.allocate(some(SECOND, IrqType::Msi, 1, 1)).unwrap();
    let interrupt = Event::Interrupt { function: SECOND, source: SourceId(1) };
    bench.device.revoked(FIRST);
    assert!(!bench.device.has_events(), "the host was not even asked");
    let first = bench.device.take_lost();
    bench.fire(1);
    assert_eq!(bench.events(8), [interrupt]);
    // Another thread has the queues stopped meanwhile.
    let second = bench.device.stopped();
    bench.release(second);
    assert!(!bench.device.has_events());
    bench.release(first);
    let revoked = |function, id| Event::SourceRevoked { function, source: SourceId(id) };
    assert_eq!(bench.events(8), [revoked(FIRST, 0), revoked(SECOND, 1)]);
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
    let lost = bench.device.stopped();
    assert_eq!(bench.release(lost), ["detach 3 [0, 1], disable", "detach 8 [0], disable"]);
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
    let lost = bench.device.stopped();
    assert_eq!(bench.release(lost).len(), 1);
    assert_eq!(bench.device.reset(), [], "the host has everything back");
    assert!(!bench.device.has_events());
    assert_eq!(bench.allocate(some(FIRST, IrqType::Msix, 1, 1)).unwrap(), [(0, 0)]);
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
