// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is looked at, and what comes of it.

use super::*;
use std::collections::BTreeSet;
use virtio_irq_proto::{Allocate, Event, Function, VectorRange};
use zerocopy::IntoBytes;

const STABLE: FunctionId = FunctionId(3);
const UNSTABLE: FunctionId = FunctionId(8);

fn device() -> Device {
    let function = |id, stable| Assigned {
        function: Function {
            id,
            flags: FunctionFlags::NATIVE.with(FunctionFlags::EVENT, true).with(FunctionFlags::STABLE, stable),
            intx_count: 1,
            msi_count: 16,
            msix_count: 64,
            ..Function::default()
        },
        refused: false,
    };
    let functions = vec![function(STABLE, true), function(UNSTABLE, false)];
    let mut device = Device::new(functions, Quota { guest: 64, function: 64 }).unwrap();
    device.negotiated(u64::MAX);
    device
}

fn pair(vector: u16) -> Pair {
    Pair { address: 0xfee0_0418, data: 0x20 + u32::from(vector) }
}

fn pairs(vectors: VectorRange) -> Vec<Pair> {
    (vectors.first..).map(pair).take(vectors.len()).collect()
}

fn vectors(irq_type: IrqType, first: u16, count: u16) -> VectorRange {
    VectorRange::of_messages(irq_type, first, count).unwrap()
}

/// The driver is told these messages of natively delivered vectors.
fn tell(device: &mut Device, function: FunctionId, vectors: VectorRange) {
    let request = GetMessages { function, vectors }.to_wire();
    let Step::ReadMessages(call) = device.request(request.as_bytes(), 1 << 16) else { panic!() };
    let Step::Done(_) = device.messages_read(call, Ok(pairs(vectors))) else { panic!() };
}

/// The driver gets sources, from vector `first` on.
fn allocate(device: &mut Device, function: FunctionId, irq_type: IrqType, first: u16, count: u16) {
    let count = std::num::NonZeroU16::new(count).unwrap();
    let request = Allocate {
        function,
        irq_type,
        layout: virtio_irq_proto::Layout::Any,
        least: count,
        most: count,
        first,
        delivery: virtio_irq_proto::Delivery::Event,
    };
    let Step::Enable(call) = device.request(request.to_wire().as_bytes(), 1 << 16) else { panic!() };
    let Step::Attach(call) = device.enabled(call, Ok(64)) else { panic!() };
    let told = call.vectors().iter().map(|(vector, _)| pair(*vector)).collect();
    let Step::Done(_) = device.attached(call, Ok(told)) else { panic!() };
}

fn events(device: &mut Device) -> Vec<Event> {
    let events = device.next_events(64);
    device.events_taken(events.len());
    events.iter().map(|event| Event::parse(event).unwrap()).collect()
}

/// The one inspection that there is.
fn only(device: &mut Device) -> Inspection {
    let mut all = device.inspections();
    assert_eq!(all.len(), 1);
    all.remove(0)
}

#[test]
fn a_device_that_told_nothing_unstable_and_has_no_sources_is_left_alone() {
    let mut device = device();
    assert!(!device.needs_inspection());
    tell(&mut device, STABLE, vectors(IrqType::Msi, 2, 3));
    assert!(!device.needs_inspection());
    assert_eq!(device.inspections(), []);
    tell(&mut device, UNSTABLE, vectors(IrqType::Msi, 2, 3));
    assert!(device.needs_inspection());
    let _ = device.reset();
    assert!(!device.needs_inspection());
    allocate(&mut device, STABLE, IrqType::Msix, 0, 1);
    assert!(device.needs_inspection());
    let _ = device.stopped();
    assert!(!device.needs_inspection());
}

#[test]
fn one_message_of_an_unstable_block_tells_that_all_of_it_moved() {
    let mut device = device();
    tell(&mut device, UNSTABLE, vectors(IrqType::Msi, 2, 3));
    let inspection = only(&mut device);
    assert_eq!(inspection.vectors(), [vectors(IrqType::Msi, 2, 1)]);
    assert!(!inspection.has_sources());
    device.inspected(&inspection, inspection.vectors()[0], Ok(vec![pair(2)]));
    assert_eq!(events(&mut device), []);
    device.inspected(&inspection, inspection.vectors()[0], Ok(vec![pair(7)]));
    let stale = vectors(IrqType::Msi, 2, 3);
    assert_eq!(events(&mut device), [Event::MessageChanged { function: UNSTABLE, vectors: stale }]);
    assert!(!device.needs_inspection(), "until the driver asks again");
}

#[test]
fn entries_of_an_unstable_table_take_turns_and_move_alone() {
    let mut device = device();
    tell(&mut device, UNSTABLE, vectors(IrqType::Msix, 10, 40));
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        let inspection = only(&mut device);
        assert!(inspection.vectors().len() <= 16);
        for one in inspection.vectors() {
            seen.insert(one.first);
            let now = if one.first == 33 { pair(0) } else { pair(one.first) };
            device.inspected(&inspection, *one, Ok(vec![now]));
        }
    }
    assert_eq!(seen, (10..50).collect());
    let stale = vectors(IrqType::Msix, 33, 1);
    assert_eq!(events(&mut device), [Event::MessageChanged { function: UNSTABLE, vectors: stale }]);
}

#[test]
fn a_native_vector_that_is_not_enabled_any_more_has_not_moved() {
    let mut device = device();
    tell(&mut device, UNSTABLE, vectors(IrqType::Msi, 2, 3));
    let inspection = only(&mut device);
    for failure in [Failure::NotEnabled, Failure::Failed, Failure::NotReady] {
        device.inspected(&inspection, inspection.vectors()[0], Err(failure));
    }
    assert_eq!(events(&mut device), []);
}

#[test]
fn msi_sources_whose_enable_bit_was_cleared_are_revoked() {
    let mut device = device();
    allocate(&mut device, STABLE, IrqType::Msi, 5, 2);
    let inspection = only(&mut device);
    assert!(inspection.has_sources());
    assert_eq!(inspection.vectors(), [vectors(IrqType::Msi, 5, 1)]);
    device.inspected(&inspection, inspection.vectors()[0], Err(Failure::Failed));
    assert_eq!(events(&mut device), []);
    device.inspected(&inspection, inspection.vectors()[0], Err(Failure::NotEnabled));
    let lost = device.take_lost();
    assert_eq!(lost.detaches().len(), 1);
    device.lost_released(lost);
    let revoked = |id| Event::SourceRevoked { function: STABLE, source: SourceId(id) };
    assert_eq!(events(&mut device), [revoked(0), revoked(1)]);
}

#[test]
fn msix_sources_of_a_stable_host_have_no_messages_to_look_at() {
    let mut device = device();
    allocate(&mut device, STABLE, IrqType::Msix, 5, 2);
    allocate(&mut device, UNSTABLE, IrqType::Msix, 7, 2);
    let inspections = device.inspections();
    let looked_at: Vec<_> = inspections.iter().map(Inspection::vectors).collect();
    assert_eq!(looked_at[0], []);
    let mut first: Vec<_> = looked_at[1].iter().map(|one| one.first).collect();
    first.sort_unstable();
    assert_eq!(first, [7, 8]);
}

#[test]
fn a_message_of_a_source_that_moved_is_told() {
    let mut device = device();
    allocate(&mut device, STABLE, IrqType::Msi, 5, 2);
    let inspection = only(&mut device);
    device.inspected(&inspection, inspection.vectors()[0], Ok(vec![pair(9)]));
    let stale = vectors(IrqType::Msi, 5, 2);
    assert_eq!(events(&mut device), [Event::MessageChanged { function: STABLE, vectors: stale }]);
}

#[test]
fn a_function_that_is_found_gone_is_told_gone() {
    let mut device = device();
    allocate(&mut device, STABLE, IrqType::Msi, 5, 2);
    let inspection = only(&mut device);
    device.inspected(&inspection, inspection.vectors()[0], Err(Failure::Gone));
    assert_eq!(events(&mut device), [Event::FunctionGone { function: STABLE }]);
    let lost = device.take_lost();
    let [all] = lost.detaches() else { panic!("{lost:?}") };
    assert!(all.last && all.vectors.len() == 2);
}

#[test]
fn what_was_seen_before_a_reset_or_a_stop_means_nothing_after_it() {
    for stop in [false, true] {
        let mut device = device();
        allocate(&mut device, STABLE, IrqType::Msi, 5, 2);
        let inspection = only(&mut device);
        if stop {
            let lost = device.stopped();
            device.lost_released(lost);
        } else {
            drop(device.reset());
        }
        allocate(&mut device, STABLE, IrqType::Msi, 5, 2);
        device.events_taken(device.next_events(64).len());
        device.inspected(&inspection, inspection.vectors()[0], Err(Failure::NotEnabled));
        device.inspected(&inspection, inspection.vectors()[0], Ok(vec![pair(9)]));
        assert_eq!(events(&mut device), [], "{stop}");
    }
}
