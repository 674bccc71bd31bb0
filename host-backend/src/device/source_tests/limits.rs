// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sources that fire too often.

use super::*;

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
