// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guests that keep to no rules, against the daemon. After each offense the next request works, and the daemon has the
//! threads, descriptors and mappings that it had before.

use std::num::NonZeroU16;
use vhost::vhost_user::message::FrontendReq;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use virtio_irq_proto::wire::{FunctionListHead, MessageListHead};
use virtio_irq_proto::{
    EVENT_QUEUE, FunctionId, GetMessages, IrqType, ListFunctions, MessageList, REQUEST_QUEUE, Status,
    VectorRange,
};
use virtio_irq_tests::guest::{DATA, Desc, FEATURES, INDIRECT, NEXT, RAM, RAM_SIZE, REPLY, Ram, WRITE, ring};
use virtio_irq_tests::link::Region;
use virtio_irq_tests::{Daemon, Guest};
use zerocopy::{FromBytes, IntoBytes};

const OUTSIDE: u64 = RAM + RAM_SIZE;

fn daemon() -> Daemon {
    Daemon::start(&["--device", "sim:wcn6855", "--device", "sim:igb"])
}

fn list() -> Vec<u8> {
    let list = ListFunctions { start: FunctionId(0), count: NonZeroU16::new(2).unwrap() };
    list.to_wire().as_bytes().to_vec()
}

fn get(first: u16, count: u16) -> Vec<u8> {
    let vectors = VectorRange { irq_type: IrqType::Msi, first, count: NonZeroU16::new(count).unwrap() };
    GetMessages { function: FunctionId(0), vectors }.to_wire().as_bytes().to_vec()
}

/// An ordinary request is answered as ever.
fn works(guest: &mut Guest, after: &str) {
    let reply = guest.ask(&list(), 80);
    let (head, functions) = FunctionListHead::read_from_prefix(&reply).unwrap();
    assert_eq!((head.head.status.get(), head.count.get(), functions.len()), (0, 2, 64), "after {after}");
    let reply = guest.ask(&get(30, 2), 64);
    let data: Vec<_> =
        MessageList::parse(&reply).unwrap().messages.iter().map(|message| message.data.get()).collect();
    assert_eq!(data, [30, 31], "after {after}");
}

#[test]
fn chains_that_no_driver_may_make_come_back_untouched() {
    let daemon = daemon();
    let mut guest = Guest::boot(daemon.socket()).unwrap();
    works(&mut guest, "nothing");
    let vitals = daemon.vitals();
    let request = Desc::readable(DATA, 16);
    let reply = Desc::writable(REPLY, 80);
    let huge = |desc| Desc { len: u32::MAX, ..desc };
    let cases: &[(&str, &[Desc])] = &[
        ("no room for a reply", &[request]),
        ("room for 7 bytes", &[request, Desc::writable(REPLY, 7)]),
        ("room for 7 bytes in parts", &[request, Desc::writable(REPLY, 3), Desc::writable(REPLY + 3, 4)]),
        ("a request behind the reply", &[reply, request]),
        ("a request around the reply", &[request, reply, request]),
        ("a request outside of memory", &[Desc::readable(OUTSIDE, 16), reply]),
        ("a request that leaves memory", &[Desc::readable(OUTSIDE - 15, 16), reply]),
        ("a request at the end of the address space", &[Desc::readable(u64::MAX - 15, 16), reply]),
        ("a request beyond the address space", &[Desc::readable(u64::MAX - 7, 16), reply]),
        ("a reply outside of memory", &[request, Desc::writable(OUTSIDE, 80)]),
        ("a reply that leaves memory", &[request, Desc::writable(OUTSIDE - 79, 80)]),
        ("a reply at address 0", &[request, Desc::writable(0, 80)]),
        ("a reply of 4 GiB", &[request, huge(reply)]),
        ("a request of 4 GiB", &[huge(request), reply]),
        ("more than 4 GiB in all", &[huge(request), huge(request), huge(reply), huge(reply)]),
        ("an indirect table of nothing", &[Desc { flags: INDIRECT, ..Desc::readable(DATA, 0) }]),
        ("an indirect table of a half", &[Desc { flags: INDIRECT, ..Desc::readable(DATA, 24) }]),
        ("an indirect table outside", &[Desc { flags: INDIRECT, ..Desc::readable(OUTSIDE, 32) }]),
        ("an indirect table that goes on", &[Desc { flags: INDIRECT, ..Desc::readable(DATA, 32) }, reply]),
    ];
    for (name, descs) in cases {
        guest.lay_out(&list(), 80);
        guest.chain(REQUEST_QUEUE, descs);
        assert_eq!(guest.used(REQUEST_QUEUE), (0, 0), "{name}");
        assert!(guest.written(80, 0).is_empty());
        works(&mut guest, name);
    }
    daemon.comes_back_to(vitals);
}

#[test]
fn chains_that_lead_nowhere_come_back_untouched() {
    let daemon = daemon();
    let mut guest = Guest::boot(daemon.socket()).unwrap();
    let to = |next: u16, desc: Desc| Desc { next, flags: desc.flags | NEXT, ..desc };
    let request = Desc::readable(DATA, 16);
    let reply = Desc::writable(REPLY, 80);
    let cases: &[(&str, &[Desc])] = &[
        ("a loop of one", &[to(0, request)]),
        ("a loop of one that is writable", &[to(0, reply)]),
        ("a loop of two", &[to(1, request), to(0, reply)]),
        ("a loop behind a good start", &[to(1, request), to(2, reply), to(1, reply)]),
        ("an index outside of the table", &[to(16, request)]),
        ("the greatest index", &[to(u16::MAX, request)]),
    ];
    for (name, descs) in cases {
        guest.lay_out(&list(), 80);
        for (index, desc) in (0..).zip(*descs) {
            guest.descriptor(REQUEST_QUEUE, index, *desc);
        }
        guest.publish(REQUEST_QUEUE, 0);
        guest.kick(REQUEST_QUEUE);
        assert_eq!(guest.used(REQUEST_QUEUE), (0, 0), "{name}");
        assert!(guest.written(80, 0).is_empty());
        works(&mut guest, name);
    }
}

#[test]
fn indirect_tables_are_followed_only_by_the_rules() {
    const TABLE: u64 = DATA + 0x1000;
    let daemon = daemon();
    let mut guest = Guest::boot(daemon.socket()).unwrap();
    let to = |next: u16, desc: Desc| Desc { next, flags: desc.flags | NEXT, ..desc };
    let request = Desc::readable(DATA, 16);
    let reply = Desc::writable(REPLY, 80);
    let nested = Desc { flags: INDIRECT, ..Desc::readable(TABLE, 32) };
    let cases: &[(&str, &[Desc], bool)] = &[
        ("as it should be", &[to(1, request), reply], true),
        ("out of order", &[to(2, request), request, reply], true),
        ("writable itself", &[to(1, request), reply], true),
        ("a loop", &[to(1, request), to(0, reply)], false),
        ("an index outside of the table", &[to(2, request), reply], false),
        ("a table in a table", &[to(1, request), nested], false),
        ("a request behind the reply", &[to(1, reply), request], false),
        ("outside of memory", &[to(1, request), Desc::writable(OUTSIDE, 80)], false),
    ];
    for (name, descs, good) in cases {
        guest.lay_out(&list(), 80);
        let table: Vec<_> = descs.iter().flat_map(|desc| desc.bytes()).collect();
        guest.ram.write(TABLE, &table);
        let length = u32::try_from(table.len()).unwrap();
        // Whether the table's own descriptor is writable means nothing.
        let flags = if *name == "writable itself" { INDIRECT | WRITE } else { INDIRECT };
        guest.chain(REQUEST_QUEUE, &[Desc { flags, ..Desc::readable(TABLE, length) }]);
        let used = if *good { 80 } else { 0 };
        assert_eq!(guest.used(REQUEST_QUEUE), (0, used), "{name}");
        assert_eq!(guest.written(80, used).len(), used as usize);
        works(&mut guest, name);
    }
}

/// What is written then is not defined; that the chain comes back is.
#[test]
fn an_indirect_descriptor_without_the_feature_comes_back_once() {
    let daemon = daemon();
    let features = FEATURES & !(1 << VIRTIO_RING_F_INDIRECT_DESC);
    let mut guest = Guest::boot_with(daemon.socket(), features).unwrap();
    guest.lay_out(&list(), 80);
    let table = [Desc { next: 1, flags: NEXT, ..Desc::readable(DATA, 16) }, Desc::writable(REPLY, 80)];
    guest.ram.write(DATA + 0x1000, &table.map(Desc::bytes).concat());
    guest.chain(REQUEST_QUEUE, &[Desc { flags: INDIRECT, ..Desc::readable(DATA + 0x1000, 32) }]);
    assert_eq!(guest.used(REQUEST_QUEUE).0, 0);
    assert_eq!(guest.poll_used(REQUEST_QUEUE), None);
    works(&mut guest, "an indirect descriptor");
}

#[test]
fn requests_are_judged_by_the_first_rule_that_applies() {
    let daemon = daemon();
    let mut guest = Guest::boot(daemon.socket()).unwrap();
    let with = |mut request: Vec<u8>, at: usize, byte: u8| {
        request[at] = byte;
        request
    };
    let longer = [list(), vec![0]].concat();
    let cases: &[(&str, Vec<u8>, u32, Status)] = &[
        ("half a head", vec![1, 0, 0, 0, 0, 0, 0], 80, Status::Invalid),
        ("type 0", vec![0; 16], 80, Status::Unsupported),
        ("a reserved type", with(list(), 0, 16), 8, Status::Unsupported),
        ("a head alone", list()[..8].to_vec(), 80, Status::Invalid),
        ("a byte too few", list()[..15].to_vec(), 80, Status::Invalid),
        ("a byte too many", longer, 80, Status::Invalid),
        ("64 KiB too many", [list(), vec![0; 0x1_0000 - 16]].concat(), 80, Status::Invalid),
        ("a reserved byte of the head", with(list(), 7, 1), 80, Status::Invalid),
        ("a reserved byte of the request", with(list(), 15, 1), 8, Status::Invalid),
        ("a list of none", with(list(), 10, 0), 80, Status::Invalid),
        ("no room for the longest list", list(), 79, Status::BufferTooSmall),
        ("no room for the message", get(0, 1), 31, Status::BufferTooSmall),
        ("messages of a pin", with(get(0, 1), 10, 0), 64, Status::Invalid),
        ("messages of no known type", with(get(0, 1), 10, 3), 64, Status::Invalid),
        ("more than max_vectors", get(0, 2049), 8, Status::Invalid),
        ("as many as max_vectors", get(0, 2048), 16 + 16 * 2048, Status::NoVector),
        ("nobody's function", with(get(0, 1), 8, 2), 64, Status::NoFunction),
        ("one vector too far", get(31, 2), 64, Status::NoVector),
        ("a range that wraps", get(u16::MAX, 2), 64, Status::NoVector),
    ];
    for (name, request, room, status) in cases {
        assert_eq!(guest.ask(request, *room), status.to_head().as_bytes(), "{name}");
        works(&mut guest, name);
    }
}

#[test]
fn how_bytes_are_divided_into_descriptors_means_nothing() {
    let daemon = daemon();
    let mut guest = Guest::boot(daemon.socket()).unwrap();
    guest.take_down(REQUEST_QUEUE).unwrap();
    guest.set_up(REQUEST_QUEUE, 64).unwrap();
    let whole = guest.ask(&get(3, 2), 48);
    // Byte by byte, and the reply in threes.
    guest.lay_out(&get(3, 2), 48);
    let bytes = (0..16).map(|at| Desc::readable(DATA + at, 1));
    let threes = (0..16).map(|at| Desc::writable(REPLY + 3 * at, 3));
    guest.chain(REQUEST_QUEUE, &bytes.chain(threes).collect::<Vec<_>>());
    assert_eq!(guest.used(REQUEST_QUEUE), (0, 48));
    assert_eq!(guest.written(48, 48), whole);
    // The request and its reply in the same place.
    guest.ram.write(REPLY, &get(3, 2));
    guest.chain(REQUEST_QUEUE, &[Desc::readable(REPLY, 16), Desc::writable(REPLY, 48)]);
    assert_eq!(guest.used(REQUEST_QUEUE), (0, 48));
    assert_eq!(guest.written(48, 48), whole);
    // More room than the reply needs.
    assert_eq!(guest.ask(&get(3, 2), 500), whole);
}

#[test]
fn a_full_ring_is_answered_in_one_go() {
    const SIZE: u16 = 1024;
    let daemon = daemon();
    let mut guest = Guest::boot(daemon.socket()).unwrap();
    guest.take_down(REQUEST_QUEUE).unwrap();
    guest.set_up(REQUEST_QUEUE, SIZE).unwrap();
    guest.lay_out(&list(), 80);
    for head in (0..SIZE).step_by(2) {
        guest.descriptor(
            REQUEST_QUEUE,
            head,
            Desc { flags: NEXT, next: head + 1, ..Desc::readable(DATA, 16) },
        );
        guest.descriptor(REQUEST_QUEUE, head + 1, Desc::writable(REPLY, 80));
    }
    (0..SIZE).step_by(2).for_each(|head| guest.publish(REQUEST_QUEUE, head));
    // The same chains once more: the ring has as many entries as the table.
    (0..SIZE).step_by(2).for_each(|head| guest.publish(REQUEST_QUEUE, head));
    guest.kick(REQUEST_QUEUE);
    for round in 0..SIZE {
        let expected = u32::from(round * 2 % SIZE);
        assert_eq!(guest.used(REQUEST_QUEUE), (expected, 80), "chain {round}");
    }
    assert_eq!(guest.poll_used(REQUEST_QUEUE), None);
    works(&mut guest, "a full ring");
}

#[test]
fn a_ring_that_breaks_the_rules_is_left_alone_until_it_is_set_up_again() {
    let mut daemon = daemon();
    let mut guest = Guest::boot(daemon.socket()).unwrap();
    type Offense = (&'static str, fn(&mut Guest));
    let offenses: [Offense; 6] = [
        ("an index one entry too far", |guest| guest.set_available_index(REQUEST_QUEUE, 17)),
        ("an index far ahead", |guest| guest.set_available_index(REQUEST_QUEUE, 0x8000)),
        ("an index that goes back", |guest| guest.set_available_index(REQUEST_QUEUE, u16::MAX)),
        ("an entry behind the table", |guest| guest.publish(REQUEST_QUEUE, 16)),
        ("the greatest entry", |guest| guest.publish(REQUEST_QUEUE, u16::MAX)),
        ("an entry behind the table before a good one", |guest| {
            guest.publish(REQUEST_QUEUE, 16);
            guest.publish(REQUEST_QUEUE, 0);
        }),
    ];
    for (number, (name, offend)) in offenses.iter().enumerate() {
        guest.lay_out(&list(), 80);
        guest.descriptor(REQUEST_QUEUE, 0, Desc { flags: NEXT, next: 1, ..Desc::readable(DATA, 16) });
        guest.descriptor(REQUEST_QUEUE, 1, Desc::writable(REPLY, 80));
        offend(&mut guest);
        guest.kick(REQUEST_QUEUE);
        if number == 0 {
            // The log has a limit; the first offense is in it.
            daemon.wait_for("left alone");
        }
        guest.take_down(REQUEST_QUEUE).unwrap();
        assert_eq!(guest.poll_used(REQUEST_QUEUE), None, "{name}");
        assert!(guest.written(80, 0).is_empty(), "{name}");
        guest.set_up(REQUEST_QUEUE, 16).unwrap();
        works(&mut guest, name);
        guest.take_down(REQUEST_QUEUE).unwrap();
        guest.set_up(REQUEST_QUEUE, 16).unwrap();
    }
}

#[test]
fn rings_outside_of_memory_are_left_alone() {
    let daemon = daemon();
    let mut guest = Guest::boot(daemon.socket()).unwrap();
    works(&mut guest, "nothing");
    let vitals = daemon.vitals();
    let at = guest.ram.user(ring(REQUEST_QUEUE));
    let end = guest.ram.user(RAM) + RAM_SIZE;
    let [desc, avail, used] = [at, at + 0x4000, at + 0x5000];
    for (name, parts) in [
        ("descriptors at the end", [end - 16, avail, used]),
        ("available ring at the end", [desc, end - 4, used]),
        ("used ring at the end", [desc, avail, end - 8]),
        ("descriptors outside", [end, avail, used]),
        ("available ring outside", [desc, end, used]),
        ("used ring outside", [desc, avail, end + 0x1000]),
        ("everything at 0", [0, 0, 0]),
        ("everything at the end of the address space", [u64::MAX - 15; 3]),
        ("misaligned descriptors", [desc + 8, avail, used]),
        ("misaligned available ring", [desc, avail + 1, used]),
        ("misaligned used ring", [desc, avail, used + 2]),
    ] {
        guest.take_down(REQUEST_QUEUE).unwrap();
        let started = guest.start(REQUEST_QUEUE, 16, parts);
        guest.set_available_index(REQUEST_QUEUE, 1);
        guest.kick(REQUEST_QUEUE);
        // An address that the frontend has not even mapped is the frontend's fault, and costs it the connection. QEMU
        // never sends one. Where the guest is to blame, the connection stays.
        if started.is_err() {
            guest = Guest::boot(daemon.socket()).unwrap();
        } else {
            guest.take_down(REQUEST_QUEUE).unwrap();
            guest.set_up(REQUEST_QUEUE, 16).unwrap();
        }
        works(&mut guest, name);
    }
    daemon.comes_back_to(vitals);
}

#[test]
fn odd_queue_sizes_do_no_harm() {
    let daemon = daemon();
    for size in [0, 3, 12, 1000, 2048, 32768, u16::MAX] {
        // A size that no queue has may cost the connection, but nothing else.
        let mut guest = Guest::boot(daemon.socket()).unwrap();
        guest.take_down(REQUEST_QUEUE).unwrap();
        let at = guest.ram.user(ring(REQUEST_QUEUE));
        let number = guest.link.vring(FrontendReq::SET_VRING_NUM, 0, u32::from(size));
        let started = number.and_then(|()| guest.start(REQUEST_QUEUE, size, [at, at + 0x4000, at + 0x5000]));
        guest.kick(REQUEST_QUEUE);
        if started.is_ok() {
            guest.take_down(REQUEST_QUEUE).unwrap();
            guest.set_up(REQUEST_QUEUE, 16).unwrap();
            works(&mut guest, "an odd size");
        }
        drop(guest);
        works(&mut Guest::boot(daemon.socket()).unwrap(), "an odd size");
    }
}

#[test]
fn memory_that_is_replaced_or_shrinks_breaks_the_rings_in_it() {
    let mut daemon = daemon();
    let mut guest = Guest::boot(daemon.socket()).unwrap();
    works(&mut guest, "nothing");
    let vitals = daemon.vitals();
    let whole = guest.ram.region();

    // The rings are where they were, the data is not in memory any more.
    guest.link.memory(&[Region { size: DATA - RAM, ..whole }]).unwrap();
    guest.lay_out(&list(), 80);
    guest.chain(REQUEST_QUEUE, &[Desc::readable(DATA, 16), Desc::writable(REPLY, 80)]);
    assert_eq!(guest.used(REQUEST_QUEUE), (0, 0));
    assert!(guest.written(80, 0).is_empty());
    guest.link.memory(&[whole]).unwrap();
    works(&mut guest, "data that was out of memory");

    // Not even the rings are in memory.
    let other = Ram::new();
    let far = Region { guest: 0x8000_0000, ..other.region() };
    guest.link.memory(&[far]).unwrap();
    guest.lay_out(&list(), 80);
    guest.chain(REQUEST_QUEUE, &[Desc::readable(DATA, 16), Desc::writable(REPLY, 80)]);
    daemon.wait_for("left alone");
    guest.link.memory(&[whole]).unwrap();
    assert_eq!(guest.poll_used(REQUEST_QUEUE), None);
    guest.reset().unwrap();
    works(&mut guest, "rings that were out of memory");

    // Other memory in the same place: the device sees a ring of zeros, and then what the guest writes there.
    let new = Ram::new();
    guest.link.memory(&[Region { user: whole.user, ..new.region() }]).unwrap();
    guest.kick(REQUEST_QUEUE);
    guest.link.memory(&[whole]).unwrap();
    guest.reset().unwrap();
    works(&mut guest, "other memory in the same place");
    drop((other, new));
    daemon.comes_back_to(vitals);
}

#[test]
fn floods_of_kicks_are_survived_and_answered() {
    let daemon = daemon();
    let mut guest = Guest::boot(daemon.socket()).unwrap();
    for _ in 0..50_000 {
        guest.kick(REQUEST_QUEUE);
        guest.kick(EVENT_QUEUE);
    }
    works(&mut guest, "100,000 kicks");
}

#[test]
fn a_request_in_flight_at_a_reset_does_not_disturb_the_next_run() {
    let daemon = daemon();
    let mut guest = Guest::boot(daemon.socket()).unwrap();
    for _ in 0..50 {
        guest.lay_out(&list(), 80);
        guest.chain(REQUEST_QUEUE, &[Desc::readable(DATA, 16), Desc::writable(REPLY, 80)]);
        guest.reset().unwrap();
        works(&mut guest, "a reset with a request in flight");
    }
}

#[test]
fn the_head_of_a_reply_is_no_result() {
    // The smallest room that gets an answer at all: 8 bytes, for a request that needs more.
    let daemon = daemon();
    let mut guest = Guest::boot(daemon.socket()).unwrap();
    let reply = guest.ask(&get(0, 1), 8);
    assert_eq!(reply, Status::BufferTooSmall.to_head().as_bytes());
    assert!(MessageListHead::read_from_bytes(&reply).is_err());
}
