// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the device says unasked, through real rings. The host is simulated and does what the test wants.

use std::num::NonZeroU16;
use std::time::Duration;
use vhost_device_irq::host::sim::SimFunction;
use virtio_irq_proto::{
    EVENT_QUEUE, Event, FunctionId, GetMessages, IrqType, Message, PciIds, Status, VectorRange, wire,
};
use virtio_irq_tests::guest::{DATA, Desc, FEATURES, INDIRECT, NEXT, RAM, RAM_SIZE, REPLY};
use virtio_irq_tests::{Guest, PATIENCE, Served};
use virtio_irq_userspace::Driver;
use zerocopy::{FromBytes, IntoBytes};

fn function(index: u16) -> SimFunction {
    SimFunction::new("sim", PciIds::default(), 32, 8, index)
}

fn range(irq_type: IrqType, first: u16, count: u16) -> VectorRange {
    VectorRange { irq_type, first, count: NonZeroU16::new(count).unwrap() }
}

fn messages(driver: &mut Driver, function: u16, vectors: VectorRange) -> Vec<Message> {
    driver.messages(FunctionId(function), vectors).unwrap()
}

#[test]
fn a_function_that_leaves_is_reported_once() {
    let hosts = [function(0), function(1)];
    let served = Served::start(&hosts);
    let mut driver = served.connect().unwrap();
    hosts[1].remove();
    for _ in 0..3 {
        let gone = driver.messages(FunctionId(1), range(IrqType::Msi, 2, 1)).unwrap_err();
        assert_eq!(gone.status(), Some(Status::FunctionGone));
    }
    assert_eq!(driver.events(PATIENCE).unwrap(), [Event::FunctionGone { function: FunctionId(1) }]);
    assert_eq!(driver.events(Duration::from_millis(20)).unwrap(), []);
    let ids: Vec<_> = driver.functions().unwrap().iter().map(|function| function.id.0).collect();
    assert_eq!(ids, [0], "a function that is gone is not listed");
    assert_eq!(messages(&mut driver, 0, range(IrqType::Msi, 2, 1))[0].data, 2);
}

#[test]
fn a_message_that_moved_has_another_generation_and_the_rest_of_the_block_is_reported() {
    let hosts = [function(0)];
    let served = Served::start(&hosts);
    let mut driver = served.connect().unwrap();
    let before = messages(&mut driver, 0, range(IrqType::Msi, 3, 4));
    hosts[0].move_messages();
    let after = messages(&mut driver, 0, range(IrqType::Msi, 5, 1))[0];
    assert_ne!(after.address, before[2].address);
    assert_ne!(after.generation, before[2].generation);
    let mut reported = Vec::new();
    for vector in [3, 4, 6] {
        let covers = |event: &Event| match event {
            Event::MessageChanged { function: FunctionId(0), vectors } => {
                vectors.irq_type == IrqType::Msi
                    && (u32::from(vectors.first)..vectors.end()).contains(&vector)
            }
            _ => false,
        };
        // Ranges can come one after the other.
        while !reported.iter().any(covers) {
            let more = driver.events(PATIENCE).unwrap();
            assert!(!more.is_empty(), "MSI {vector} in {reported:?}");
            reported.extend(more);
        }
    }
    assert_eq!(messages(&mut driver, 0, range(IrqType::Msi, 5, 1))[0], after, "it did not move again");
}

#[test]
fn disabled_vectors_are_refused_and_their_generation_outlives_that() {
    let hosts = [function(0)];
    let served = Served::start(&hosts);
    let mut driver = served.connect().unwrap();
    let vectors = range(IrqType::Msix, 1, 2);
    let before = messages(&mut driver, 0, vectors);
    hosts[0].enable(2);
    assert_eq!(driver.messages(FunctionId(0), vectors).unwrap_err().status(), Some(Status::NotEnabled));
    hosts[0].enable(8);
    assert_eq!(messages(&mut driver, 0, vectors), before);
    hosts[0].enable(0);
    hosts[0].move_messages();
    hosts[0].enable(8);
    let moved = messages(&mut driver, 0, vectors);
    assert!(moved.iter().zip(&before).all(|(now, then)| now.generation != then.generation), "{moved:?}");
}

#[test]
fn a_host_that_fails_once_is_asked_again() {
    let hosts = [function(0)];
    let served = Served::start(&hosts);
    let mut driver = served.connect().unwrap();
    hosts[0].fail(1);
    let vectors = range(IrqType::Msi, 0, 32);
    assert_eq!(driver.messages(FunctionId(0), vectors).unwrap_err().status(), Some(Status::HostError));
    assert_eq!(messages(&mut driver, 0, vectors).len(), 32);
}

/// Asks for a message of a function that has left, so that its FUNCTION_GONE is pending.
fn lose(guest: &mut Guest, function: u16) {
    let request = GetMessages { function: FunctionId(function), vectors: range(IrqType::Msi, 0, 1) };
    let reply = guest.ask(request.to_wire().as_bytes(), 64);
    assert_eq!(reply, Status::FunctionGone.to_head().as_bytes());
}

fn gone(function: u16) -> wire::Event {
    Event::FunctionGone { function: FunctionId(function) }.to_wire()
}

#[test]
fn events_wait_for_a_buffer_and_fill_it_with_whole_records() {
    let hosts: Vec<_> = (0..5).map(function).collect();
    let served = Served::start(&hosts);
    let mut guest = Guest::boot(served.socket()).unwrap();
    hosts.iter().for_each(SimFunction::remove);
    (0..5).for_each(|id| lose(&mut guest, id));
    // Two whole records and a part of a third, in parts that cut a record.
    guest.lay_out(&[], 47);
    guest.chain(EVENT_QUEUE, &[Desc::writable(REPLY, 9), Desc::writable(REPLY + 9, 38)]);
    assert_eq!(guest.used(EVENT_QUEUE), (0, 32));
    assert_eq!(guest.written(47, 32), [gone(0), gone(1)].as_bytes());
    // A buffer that can hold more than there is comes back with what there is.
    guest.lay_out(&[], 400);
    guest.chain(EVENT_QUEUE, &[Desc::writable(REPLY, 400)]);
    assert_eq!(guest.used(EVENT_QUEUE), (0, 48));
    assert_eq!(guest.written(400, 48), [gone(2), gone(3), gone(4)].as_bytes());
}

#[test]
fn unusable_event_buffers_come_back_empty_and_the_event_is_kept() {
    let hosts = [function(0)];
    let served = Served::start(&hosts);
    let mut guest = Guest::boot(served.socket()).unwrap();
    hosts[0].remove();
    lose(&mut guest, 0);
    let outside = RAM + RAM_SIZE;
    let looped = Desc { next: 0, flags: NEXT, ..Desc::writable(REPLY, 16) };
    let cases: &[(&str, &[Desc])] = &[
        ("too small", &[Desc::writable(REPLY, 15)]),
        ("too small in parts", &[Desc::writable(REPLY, 8), Desc::writable(REPLY + 8, 7)]),
        ("read-only", &[Desc::readable(DATA, 64)]),
        ("with a readable part", &[Desc::readable(DATA, 1), Desc::writable(REPLY, 64)]),
        ("with a readable part at the end", &[Desc::writable(REPLY, 64), Desc::readable(DATA, 1)]),
        ("outside of memory", &[Desc::writable(outside - 8, 16)]),
        ("indirect without a table", &[Desc { flags: INDIRECT, ..Desc::readable(DATA, 0) }]),
    ];
    for (name, descs) in cases {
        guest.lay_out(&[0; 64], 64);
        guest.chain(EVENT_QUEUE, descs);
        assert_eq!(guest.used(EVENT_QUEUE), (0, 0), "{name}");
        assert!(guest.written(64, 0).is_empty(), "{name}");
    }
    guest.descriptor(EVENT_QUEUE, 0, looped);
    guest.publish(EVENT_QUEUE, 0);
    guest.kick(EVENT_QUEUE);
    assert_eq!(guest.used(EVENT_QUEUE), (0, 0), "looped");

    guest.chain(EVENT_QUEUE, &[Desc::writable(REPLY, 16)]);
    assert_eq!(guest.used(EVENT_QUEUE), (0, 16));
    assert_eq!(guest.ram.read(REPLY, 16), gone(0).as_bytes());
}

#[test]
fn a_reset_forgets_pending_events_and_a_new_guest_gets_none() {
    let hosts = [function(0), function(1)];
    let served = Served::start(&hosts);
    let mut guest = Guest::boot(served.socket()).unwrap();
    hosts[0].remove();
    lose(&mut guest, 0);
    guest.reset().unwrap();
    let buffer = REPLY + 0x1000;
    guest.chain(EVENT_QUEUE, &[Desc::writable(buffer, 64)]);
    hosts[1].remove();
    lose(&mut guest, 1);
    assert_eq!(guest.used(EVENT_QUEUE), (0, 16));
    assert_eq!(guest.ram.read(buffer, 16), gone(1).as_bytes());
    drop(guest);
    let mut driver = served.connect().unwrap();
    assert_eq!(driver.functions().unwrap(), []);
    assert_eq!(driver.events(Duration::from_millis(20)).unwrap(), []);
}

#[test]
fn a_broken_event_queue_does_not_stop_requests() {
    let hosts = [function(0)];
    let served = Served::start(&hosts);
    let mut guest = Guest::boot(served.socket()).unwrap();
    guest.set_available_index(EVENT_QUEUE, 17);
    guest.kick(EVENT_QUEUE);
    hosts[0].remove();
    lose(&mut guest, 0);
    let list = guest.ask(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0], 48);
    assert_eq!(wire::FunctionListHead::read_from_bytes(&list).unwrap().count.get(), 0);
    assert_eq!(guest.poll_used(EVENT_QUEUE), None);
    guest.take_down(EVENT_QUEUE).unwrap();
    guest.set_up(EVENT_QUEUE, 16).unwrap();
    guest.lay_out(&[], 16);
    guest.chain(EVENT_QUEUE, &[Desc::writable(REPLY, 16)]);
    assert_eq!(guest.used(EVENT_QUEUE), (0, 16), "the event waited");
    assert_eq!(guest.written(16, 16), gone(0).as_bytes());
}

#[test]
fn without_the_feature_there_are_no_messages() {
    let hosts = [function(0)];
    let served = Served::start(&hosts);
    let mut guest = Guest::boot_with(served.socket(), FEATURES & !1).unwrap();
    let request = GetMessages { function: FunctionId(0), vectors: range(IrqType::Msi, 0, 1) };
    assert_eq!(guest.ask(request.to_wire().as_bytes(), 64), Status::Unsupported.to_head().as_bytes());
}
