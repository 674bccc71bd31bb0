// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupts, masks and pins.

use super::*;

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
