// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests about sources at their bounds, one past them and far beyond, and event rings that are wrong or go away while
//! sources fire, against the daemon. After each of them sources are allocated, fire and are freed as ever, and the daemon has
//! the threads, descriptors and mappings that it had before.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use vhost::vhost_user::message::FrontendReq;
use virtio_irq_proto::{EVENT_QUEUE, F_EVENT, REQUEST_QUEUE, SourceId, Status};
use virtio_irq_tests::guest::{DATA, Desc, FEATURES, INDIRECT, NEXT, RAM, RAM_SIZE};
use virtio_irq_tests::link::Region;
use virtio_irq_tests::{Daemon, Guest, Triggers};

const OUTSIDE: u64 = RAM + RAM_SIZE;

/// Where event buffers are, a page each.
const BUFFERS: u64 = DATA + 0x8_0000;

/// As many as a ring holds.
const BUFFER_COUNT: u16 = 16;

const INTX: u8 = 0;
const MSI: u8 = 1;
const MSIX: u8 = 2;

const ALLOCATE: u8 = 16;
const FREE: u8 = 17;
const MASK: u8 = 18;
const UNMASK: u8 = 19;
const RESET: u8 = 20;

const INTERRUPT: u8 = 1;

/// Function 0 has 32 MSI vectors, function 7 one and 10 of MSI-X. At most 20 sources of one function, 24 in all.
fn daemon() -> Daemon {
    let quota = ["--max-sources", "24", "--max-sources-per-function", "20"];
    Daemon::start(&[&["--device", "sim:wcn6855", "--device", "sim:igb,id=7"][..], &quota].concat())
}

fn head(kind: u8) -> [u8; 8] {
    [kind, 0, 0, 0, 0, 0, 0, 0]
}

#[derive(Clone, Copy)]
struct Allocate {
    function: u16,
    irq_type: u8,
    layout: u8,
    least: u16,
    most: u16,
    first: u16,
    delivery: u8,
}

/// From one to `most` sources of function 0.
const SOME: Allocate =
    Allocate { function: 0, irq_type: MSI, layout: 0, least: 1, most: 1, first: 0, delivery: 1 };

impl Allocate {
    fn bytes(self) -> Vec<u8> {
        let mut bytes = head(ALLOCATE).to_vec();
        bytes.extend(self.function.to_le_bytes());
        bytes.extend([self.irq_type, self.layout]);
        for field in [self.least, self.most, self.first] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend([self.delivery, 0, 0, 0, 0, 0]);
        bytes
    }
}

/// The longest reply to an ALLOCATE of so many.
fn room(most: u16) -> u32 {
    16 + 24 * u32::from(most)
}

fn range(kind: u8, first: u32, count: u16) -> Vec<u8> {
    let mut bytes = head(kind).to_vec();
    bytes.extend(first.to_le_bytes());
    bytes.extend(count.to_le_bytes());
    bytes.extend([0, 0]);
    bytes
}

fn reset_function(function: u16) -> Vec<u8> {
    let mut bytes = head(RESET).to_vec();
    bytes.extend(function.to_le_bytes());
    bytes.extend([0; 6]);
    bytes
}

/// A guest that holds sources 0 to 3, which are vectors 0 to 3 of function 0.
struct Machine {
    daemon: Daemon,
    guest: Guest,
}

impl Machine {
    fn new() -> Self {
        let daemon = daemon();
        let guest = Guest::boot_with(daemon.socket(), FEATURES | 1 << F_EVENT).unwrap();
        let mut machine = Self { daemon, guest };
        machine.offer();
        assert_eq!(
            machine.allocate(Allocate { least: 4, most: 4, ..SOME }),
            [(0, 0), (1, 1), (2, 2), (3, 3)]
        );
        machine
    }

    /// Gives every event buffer to the device.
    fn offer(&mut self) {
        for number in 0..BUFFER_COUNT {
            self.guest.descriptor(EVENT_QUEUE, number, Desc::writable(buffer(number.into()), 16));
            self.guest.publish(EVENT_QUEUE, number);
        }
        self.guest.kick(EVENT_QUEUE);
    }

    #[track_caller]
    fn status(&mut self, request: &[u8], room: u32) -> Status {
        let reply = self.guest.ask(request, room);
        let status = Status::from_wire(u16::from_le_bytes([reply[0], reply[1]])).unwrap();
        if status != Status::Ok {
            assert_eq!(reply.len(), 8);
        }
        status
    }

    /// Ids and vectors of the sources.
    #[track_caller]
    fn allocate(&mut self, request: Allocate) -> Vec<(u32, u16)> {
        let reply = self.guest.ask(&request.bytes(), room(request.most));
        assert_eq!(reply[..2], [0, 0], "ALLOCATE");
        let source = |bytes: &[u8]| {
            let id = u32::from_le_bytes(bytes[..4].try_into().unwrap());
            (id, u16::from_le_bytes(bytes[4..6].try_into().unwrap()))
        };
        reply[16..].chunks(24).map(source).collect()
    }

    /// The next event, whose buffer goes back to the device: type and source.
    #[track_caller]
    fn event(&mut self) -> (u8, u32) {
        let (number, length) = self.guest.used(EVENT_QUEUE);
        assert_eq!(length, 16);
        let record = self.guest.ram.read(buffer(number), 16);
        self.guest.publish(EVENT_QUEUE, u16::try_from(number).unwrap());
        self.guest.kick(EVENT_QUEUE);
        (record[0], u32::from_le_bytes(record[4..8].try_into().unwrap()))
    }

    /// Each of these fires, and is told once.
    #[track_caller]
    fn fires(&mut self, sources: &[u32]) {
        self.fire(&self.daemon.triggers(), sources);
    }

    #[track_caller]
    fn fire(&mut self, triggers: &Triggers, sources: &[u32]) {
        for source in sources {
            triggers.fire(SourceId(*source));
            assert_eq!(self.event(), (INTERRUPT, *source));
        }
    }

    /// What the guest held before is as it was, and it can have more.
    #[track_caller]
    fn is_well(&mut self, after: &str) {
        let more =
            self.allocate(Allocate { function: 7, irq_type: MSIX, least: 2, most: 2, first: 5, ..SOME });
        assert_eq!(more, [(4, 5), (5, 6)], "after {after}");
        self.fires(&[0, 3, 5, 1]);
        assert_eq!(self.status(&range(FREE, 4, 2), 8), Status::Ok, "after {after}");
        assert_eq!(self.guest.poll_used(EVENT_QUEUE), None, "after {after}");
    }
}

fn buffer(number: u32) -> u64 {
    BUFFERS + 0x1000 * u64::from(number)
}

#[test]
fn allocations_at_their_bounds_and_beyond() {
    let mut machine = Machine::new();
    let vitals = machine.daemon.vitals();
    let max = u16::MAX;
    let igb = Allocate { function: 7, irq_type: MSIX, ..SOME };
    use Status::{BufferTooSmall, Busy, Invalid, NoFunction, NoSpace, NoVector, Ok};
    let cases = [
        ("the last vector", Allocate { first: 31, ..SOME }, room(1), Ok),
        ("two from the last vector on", Allocate { first: 31, least: 2, most: 2, ..SOME }, room(2), NoVector),
        ("one or two from the last one on", Allocate { first: 31, most: 2, ..SOME }, room(2), Ok),
        ("one past the last vector", Allocate { first: 32, ..SOME }, room(1), NoVector),
        ("the greatest vector", Allocate { first: max, ..SOME }, room(1), NoVector),
        (
            "a range that wraps",
            Allocate { first: max, least: 2048, most: 2048, ..SOME },
            room(2048),
            NoVector,
        ),
        ("the last entry of MSI-X", Allocate { first: 9, ..igb }, room(1), Ok),
        ("one past the table", Allocate { first: 10, ..igb }, room(1), NoVector),
        ("the whole table", Allocate { least: 10, most: 10, ..igb }, room(10), Ok),
        ("a table and one", Allocate { least: 11, most: 11, ..igb }, room(11), NoVector),
        ("MSI-X where there is none", Allocate { irq_type: MSIX, ..SOME }, room(1), NoVector),
        ("the pin", Allocate { irq_type: INTX, ..igb }, room(1), Ok),
        ("a second pin", Allocate { irq_type: INTX, first: 1, ..igb }, room(1), NoVector),
        ("two pins", Allocate { irq_type: INTX, least: 2, most: 2, ..igb }, room(2), NoVector),
        ("another type", Allocate { irq_type: INTX, ..SOME }, room(1), Busy),
        ("least 0", Allocate { least: 0, ..SOME }, room(1), Invalid),
        ("most 0", Allocate { least: 0, most: 0, ..SOME }, room(1), Invalid),
        ("most less than least", Allocate { least: 3, most: 2, ..SOME }, room(3), Invalid),
        ("the greatest least", Allocate { least: max, most: max - 1, ..SOME }, 8, Invalid),
        ("as many as max_vectors", Allocate { most: 2048, ..igb }, room(2048), Ok),
        ("more than max_vectors", Allocate { most: 2049, ..igb }, room(2049), Invalid),
        ("the greatest most", Allocate { most: max, ..igb }, 8, Invalid),
        ("a type past the last", Allocate { irq_type: 3, ..SOME }, room(1), Invalid),
        ("the greatest type", Allocate { irq_type: 255, ..SOME }, room(1), Invalid),
        ("a layout past the last", Allocate { layout: 2, ..SOME }, room(1), Invalid),
        ("the greatest layout", Allocate { layout: 255, ..SOME }, room(1), Invalid),
        ("delivery 0", Allocate { delivery: 0, ..SOME }, room(1), Invalid),
        ("a delivery past the last", Allocate { delivery: 2, ..SOME }, 8, Invalid),
        ("a byte too little room", SOME, room(1) - 1, BufferTooSmall),
        ("room for the least only", Allocate { most: 9, ..SOME }, room(9) - 1, BufferTooSmall),
        ("room for a head only", Allocate { most: 2048, ..SOME }, 8, BufferTooSmall),
        ("no room for what no function has", Allocate { function: 3, ..SOME }, room(1) - 1, BufferTooSmall),
        ("nobody's function", Allocate { function: 1, ..SOME }, room(1), NoFunction),
        ("the greatest function", Allocate { function: max, ..SOME }, room(1), NoFunction),
        ("nobody's function, too far", Allocate { function: 1, first: max, ..SOME }, room(1), NoFunction),
        // It holds 4 of 20, and of 24 in all.
        ("all that a function may have", Allocate { least: 16, most: 16, ..SOME }, room(16), Ok),
        ("one more than it may have", Allocate { least: 17, most: 17, ..SOME }, room(17), NoSpace),
        ("a block of one more", Allocate { layout: 1, least: 17, most: 32, ..SOME }, room(32), NoSpace),
        ("as many as it may have", Allocate { layout: 1, most: 32, ..SOME }, room(32), Ok),
    ];
    for (name, request, room, status) in cases {
        if status == Ok {
            let given = machine.allocate(request);
            let [count, least, most] = [given.len(), request.least.into(), request.most.into()];
            assert!((least..=most).contains(&count), "{name}: {count}");
            assert!(given.iter().zip(4..).all(|((id, _), free)| *id == free), "{name}: {given:?}");
            assert!(given.iter().all(|(_, vector)| *vector >= request.first), "{name}: {given:?}");
            assert_eq!(machine.status(&range(FREE, 4, count as u16), 8), Ok, "{name}");
        } else {
            assert_eq!(machine.status(&request.bytes(), room), status, "{name}");
        }
        machine.is_well(name);
    }
    for at in (2..8).chain(19..24) {
        let mut bytes = SOME.bytes();
        bytes[at] = 1;
        assert_eq!(machine.status(&bytes, room(1)), Invalid, "reserved byte {at}");
    }
    for length in [8, 16, 23] {
        assert_eq!(machine.status(&SOME.bytes()[..length], room(1)), Invalid, "{length} bytes");
    }
    assert_eq!(machine.status(&[SOME.bytes(), vec![0]].concat(), room(1)), Invalid, "25 bytes");
    assert_eq!(machine.guest.ask(&SOME.bytes(), 7), [0; 0]);
    machine.is_well("requests of every length");
    machine.daemon.comes_back_to(vitals);
}

#[test]
fn the_quota_of_the_guest_is_shared_by_its_functions() {
    let mut machine = Machine::new();
    let vitals = machine.daemon.vitals();
    let igb = Allocate { function: 7, irq_type: MSIX, ..SOME };
    let least = |least, request| Allocate { least, most: least, ..request };
    assert_eq!(machine.allocate(Allocate { most: 32, ..SOME }).len(), 16, "20 of the function");
    assert_eq!(machine.status(&SOME.bytes(), room(1)), Status::NoSpace);
    assert_eq!(machine.status(&least(5, igb).bytes(), room(5)), Status::NoSpace);
    assert_eq!(machine.allocate(Allocate { most: 10, ..igb }).len(), 4, "24 of the guest");
    assert_eq!(machine.status(&igb.bytes(), room(1)), Status::NoSpace);
    // What is given back can be had by either.
    assert_eq!(machine.status(&range(FREE, 7, 2), 8), Status::Ok);
    assert_eq!(machine.allocate(least(2, igb)), [(7, 4), (8, 5)]);
    machine.fires(&[8, 0, 23]);
    assert_eq!(machine.status(&range(FREE, 4, 20), 8), Status::Ok);
    machine.is_well("a full house");
    machine.daemon.comes_back_to(vitals);
}

#[test]
fn ranges_of_sources_at_their_bounds_and_beyond() {
    let mut machine = Machine::new();
    let vitals = machine.daemon.vitals();
    for kind in [FREE, MASK, UNMASK] {
        for (first, count) in [
            (0, 5),
            (3, 2),
            (4, 1),
            (0, u16::MAX),
            (23, 1),
            (24, 1),
            (1 << 16, 1),
            (u32::MAX, 1),
            (u32::MAX, 2),
            (u32::MAX, u16::MAX),
            (u32::MAX - 65_534, u16::MAX),
        ] {
            let what = format!("{kind}: {count} from {first}");
            assert_eq!(machine.status(&range(kind, first, count), 8), Status::NoSource, "{what}");
            machine.is_well(&what);
        }
        assert_eq!(machine.status(&range(kind, 0, 0), 8), Status::Invalid);
        assert_eq!(machine.status(&range(kind, u32::MAX, 0), 8), Status::Invalid);
        for at in (2..8).chain(14..16) {
            let mut bytes = range(kind, 0, 1);
            bytes[at] = 1;
            assert_eq!(machine.status(&bytes, 8), Status::Invalid, "{kind}: reserved byte {at}");
        }
        for length in [8, 15] {
            assert_eq!(machine.status(&range(kind, 0, 1)[..length], 8), Status::Invalid);
        }
        assert_eq!(machine.status(&[range(kind, 0, 1), vec![0]].concat(), 8), Status::Invalid);
        assert_eq!(machine.guest.ask(&range(kind, 0, 1), 7), [0; 0]);
        machine.is_well("wrong ranges");
    }
    for function in [1, 6, 8, u16::MAX] {
        assert_eq!(machine.status(&reset_function(function), 8), Status::NoFunction);
    }
    for kind in [0, 15, 21, 255] {
        assert_eq!(machine.status(&[&head(kind)[..], &[0; 8]].concat(), 8), Status::Unsupported);
    }
    for at in (2..8).chain(10..16) {
        let mut bytes = reset_function(0);
        bytes[at] = 1;
        assert_eq!(machine.status(&bytes, 8), Status::Invalid, "reserved byte {at}");
    }
    assert_eq!(machine.guest.ask(&reset_function(0), 7), [0; 0]);
    // Of a function that has none, and of the one that has.
    assert_eq!(machine.status(&reset_function(7), 8), Status::Ok);
    machine.is_well("a reset of a function without sources");
    machine.daemon.comes_back_to(vitals);
    assert_eq!(machine.status(&reset_function(0), 8), Status::Ok);
    assert_eq!(machine.status(&range(FREE, 0, 1), 8), Status::NoSource);
    assert_eq!(machine.daemon.triggers().count(), 0);
}

#[test]
fn what_is_freed_is_nobodys_and_the_rest_is_as_it_was() {
    let mut machine = Machine::new();
    let vitals = machine.daemon.vitals();
    assert_eq!(machine.status(&reset_function(0), 8), Status::Ok);
    let block = Allocate { layout: 1, least: 8, most: 8, first: 2, ..SOME };
    let sources: Vec<(u32, u16)> = (0..8).zip(2..).collect();
    assert_eq!(machine.allocate(block), sources);
    let former = machine.daemon.triggers();
    // A half of a block, and then the same half, all of it, and each of the freed ones.
    assert_eq!(machine.status(&range(FREE, 2, 4), 8), Status::Ok);
    for kind in [FREE, MASK, UNMASK] {
        for (first, count) in [(2, 4), (0, 8), (2, 1), (5, 1), (1, 2), (5, 2)] {
            assert_eq!(machine.status(&range(kind, first, count), 8), Status::NoSource, "{kind}: {first}");
        }
    }
    former.fire(SourceId(3));
    machine.fire(&former, &[0, 1, 6, 7]);
    // A masked source that is freed takes its mask and what is pending along.
    assert_eq!(machine.status(&range(MASK, 6, 2), 8), Status::Ok);
    former.fire(SourceId(6));
    former.fire(SourceId(7));
    assert_eq!(machine.status(&range(FREE, 6, 1), 8), Status::Ok);
    assert_eq!(machine.status(&range(UNMASK, 6, 2), 8), Status::NoSource);
    assert_eq!(machine.status(&range(UNMASK, 6, 1), 8), Status::NoSource);
    assert_eq!(machine.guest.poll_used(EVENT_QUEUE), None);
    assert_eq!(machine.status(&range(UNMASK, 7, 1), 8), Status::Ok);
    assert_eq!(machine.event(), (INTERRUPT, 7));
    drop(former);
    // The hole is filled, lowest first; a block finds the longest run.
    let block = |first, count| Allocate { layout: 1, least: count, most: count, first, ..SOME };
    assert_eq!(machine.allocate(block(0, 3)), [(2, 4), (3, 5), (4, 6)]);
    assert_eq!(machine.allocate(Allocate { most: 2, ..SOME }), [(5, 0), (6, 1)]);
    machine.fires(&[2, 4, 5, 6]);
    assert_eq!(machine.status(&range(FREE, 4, 4), 8), Status::Ok);
    assert_eq!(machine.status(&reset_function(0), 8), Status::Ok);
    assert_eq!(machine.allocate(Allocate { least: 4, most: 4, ..SOME }), [(0, 0), (1, 1), (2, 2), (3, 3)]);
    machine.is_well("halves of blocks");
    machine.daemon.comes_back_to(vitals);
}

/// Fires sources 0 to 2 as fast as it can while `act` runs. Source 3 is silent.
fn while_firing<R>(triggers: &Triggers, act: impl FnOnce() -> R) -> R {
    /// The end of the firing, also where a claim fails: the scope waits for the thread.
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let (done, began) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                (0..3).for_each(|source| triggers.fire(SourceId(source)));
                began.store(true, Ordering::Relaxed);
            }
        });
        while !began.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        let _done = Done(&done);
        act()
    })
}

impl Machine {
    /// A request is answered while sources fire: whatever becomes of events does not hinder requests.
    #[track_caller]
    fn answers(&mut self, name: &str) {
        assert_eq!(self.status(&range(MASK, 3, 1), 8), Status::Ok, "{name}");
        assert_eq!(self.status(&range(UNMASK, 3, 1), 8), Status::Ok, "{name}");
    }

    /// The event queue is new and full of buffers: what fired is told, and nothing that did not.
    #[track_caller]
    fn catches_up(&mut self, name: &str) {
        self.guest.take_down(EVENT_QUEUE).unwrap();
        self.guest.set_up(EVENT_QUEUE, BUFFER_COUNT).unwrap();
        self.offer();
        let mut told = [self.event(), self.event(), self.event()];
        told.sort_unstable();
        assert_eq!(told, [0, 1, 2].map(|source| (INTERRUPT, source)), "{name}");
        self.is_well(name);
    }
}

#[test]
fn event_rings_that_are_wrong_or_go_away_while_sources_fire_lose_nothing() {
    let mut machine = Machine::new();
    let triggers = machine.daemon.triggers();
    let vitals = machine.daemon.vitals();
    let whole = machine.guest.ram.region();
    let looped = |desc: Desc| Desc { next: 0, flags: desc.flags | NEXT, ..desc };
    let useless = [
        Desc::writable(buffer(0), 15),
        Desc::writable(buffer(0), 0),
        Desc::readable(buffer(0), 64),
        Desc::writable(OUTSIDE - 15, 16),
        Desc::writable(u64::MAX - 7, 16),
        looped(Desc::writable(buffer(0), 16)),
        Desc { next: 99, ..looped(Desc::writable(buffer(0), 16)) },
        Desc { flags: INDIRECT, ..Desc::readable(buffer(0), 0) },
        Desc { flags: INDIRECT, ..Desc::readable(OUTSIDE, 16) },
    ];
    type Offense<'a> = (&'a str, &'a dyn Fn(&mut Machine));
    let offenses: [Offense<'_>; 9] = [
        ("a ring that is never filled", &|machine| {
            machine.guest.take_down(EVENT_QUEUE).unwrap();
            machine.guest.set_up(EVENT_QUEUE, BUFFER_COUNT).unwrap();
        }),
        ("buffers that take nothing", &|machine| {
            machine.guest.take_down(EVENT_QUEUE).unwrap();
            machine.guest.set_up(EVENT_QUEUE, BUFFER_COUNT).unwrap();
            for _ in 0..20 {
                for desc in useless {
                    machine.guest.descriptor(EVENT_QUEUE, 0, desc);
                    machine.guest.publish(EVENT_QUEUE, 0);
                    machine.guest.kick(EVENT_QUEUE);
                    assert_eq!(machine.guest.used(EVENT_QUEUE), (0, 0), "{desc:?}");
                }
            }
        }),
        ("a ring that is disabled", &|machine| {
            machine.guest.link.vring(FrontendReq::SET_VRING_ENABLE, EVENT_QUEUE.into(), 0).unwrap();
        }),
        ("a ring that is enabled and disabled", &|machine| {
            for round in 0..200 {
                let on = round % 2;
                machine.guest.link.vring(FrontendReq::SET_VRING_ENABLE, EVENT_QUEUE.into(), on).unwrap();
            }
        }),
        ("a ring that is taken down", &|machine| {
            machine.guest.take_down(EVENT_QUEUE).unwrap();
        }),
        ("an index too far", &|machine| {
            machine.guest.set_available_index(EVENT_QUEUE, 0x4000);
            machine.guest.kick(EVENT_QUEUE);
        }),
        ("an entry behind the table", &|machine| {
            machine.guest.publish(EVENT_QUEUE, 16);
            machine.guest.kick(EVENT_QUEUE);
        }),
        ("buffers that leave memory", &|machine| {
            machine.guest.link.memory(&[Region { size: BUFFERS - RAM, ..whole }]).unwrap();
            machine.answers("buffers that left memory");
            machine.guest.link.memory(&[whole]).unwrap();
        }),
        ("no ring, no call, nothing", &|machine| {
            for queue in [REQUEST_QUEUE, EVENT_QUEUE] {
                machine.guest.link.vring(FrontendReq::SET_VRING_ENABLE, queue.into(), 0).unwrap();
            }
            machine.guest.link.vring(FrontendReq::SET_VRING_ENABLE, REQUEST_QUEUE.into(), 1).unwrap();
        }),
    ];
    for (name, offend) in offenses {
        machine.guest.take_down(EVENT_QUEUE).unwrap();
        machine.guest.set_up(EVENT_QUEUE, BUFFER_COUNT).unwrap();
        machine.offer();
        while_firing(&triggers, || {
            offend(&mut machine);
            machine.answers(name);
        });
        machine.guest.take_down(EVENT_QUEUE).unwrap();
        // What was told before counts as told; so they fire once more, and are told once whatever was pending.
        (0..3).for_each(|source| triggers.fire(SourceId(source)));
        machine.catches_up(name);
    }
    machine.daemon.comes_back_to(vitals);
}

#[test]
fn memory_that_is_taken_away_while_sources_fire_loses_nothing_but_the_rings() {
    let mut machine = Machine::new();
    let triggers = machine.daemon.triggers();
    let whole = machine.guest.ram.region();
    let vitals = machine.daemon.vitals();
    for _ in 0..5 {
        while_firing(&triggers, || {
            let far = Region { guest: 0x8000_0000, ..whole };
            machine.guest.link.memory(&[far]).unwrap();
            machine.guest.kick(EVENT_QUEUE);
            // An answer comes when the message is done with.
            machine.guest.link.memory(&[whole]).unwrap();
        });
        machine.guest.take_down(EVENT_QUEUE).unwrap();
        (0..3).for_each(|source| triggers.fire(SourceId(source)));
        machine.catches_up("memory that was away");
    }
    machine.daemon.comes_back_to(vitals);
}

#[test]
fn a_reset_while_sources_fire_leaves_the_next_driver_nothing() {
    let mut machine = Machine::new();
    let vitals = machine.daemon.vitals();
    for _ in 0..20 {
        let triggers = machine.daemon.triggers();
        while_firing(&triggers, || machine.guest.reset().unwrap());
        assert_eq!(machine.status(&range(FREE, 0, 1), 8), Status::NoSource);
        machine.offer();
        (0..4).for_each(|source| triggers.fire(SourceId(source)));
        assert_eq!(machine.allocate(Allocate { least: 4, most: 4, ..SOME }).len(), 4);
        assert_eq!(machine.guest.used_within(EVENT_QUEUE, Duration::from_millis(5)), None);
        machine.is_well("a reset");
    }
    machine.daemon.comes_back_to(vitals);
}
