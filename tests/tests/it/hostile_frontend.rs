// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frontends that keep to no rules, against the daemon. Whatever one does, the next one is served, and the daemon has
//! the threads, descriptors and mappings that it had before.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use vhost::vhost_user::message::FrontendReq;
use virtio_irq_proto::{EVENT_QUEUE, REQUEST_QUEUE};
use virtio_irq_tests::guest::{DATA, Desc, FEATURES, REPLY, Ram};
use virtio_irq_tests::link::{self, NEED_REPLY, Region, VERSION, pair};
use virtio_irq_tests::{Daemon, Guest, Link};
use vmm_sys_util::eventfd::EventFd;

const LIST: [u8; 16] = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0];

/// A daemon, and what it holds when nobody is connected.
struct Victim {
    daemon: Daemon,
    vitals: virtio_irq_tests::vitals::Vitals,
}

impl Victim {
    fn new() -> Self {
        let daemon = Daemon::start(&["--device", "sim:edu"]);
        let mut victim = Self { vitals: daemon.vitals(), daemon };
        let served = victim.serves_the_next("the start");
        victim.vitals = victim.daemon.vitals();
        drop(served);
        victim
    }

    fn link(&self) -> Link {
        Link::connect(self.daemon.socket()).unwrap()
    }

    /// A link that is past the negotiation.
    fn negotiated(&self) -> Link {
        let mut link = self.link();
        link.negotiate(FEATURES).unwrap();
        link
    }

    /// The next frontend, which stays until it is dropped.
    fn serves_the_next(&self, after: &str) -> Guest {
        eprintln!("after {after}");
        let mut guest =
            Guest::boot(self.daemon.socket()).unwrap_or_else(|error| panic!("after {after}: {error}"));
        assert_eq!(guest.ask(&LIST, 48).len(), 48, "after {after}");
        guest
    }

    /// The next frontend is served as the first was, and nothing is left of those before it.
    fn is_unharmed(&self, after: &str) {
        let _served = self.serves_the_next(after);
        self.daemon.comes_back_to(self.vitals);
    }
}

#[test]
fn frontends_that_leave_at_any_step_leave_nothing_behind() {
    let victim = Victim::new();
    let ram = Ram::new();
    let (kick, call) = (EventFd::new(0).unwrap(), EventFd::new(0).unwrap());
    let at = ram.user(virtio_irq_tests::guest::RAM);
    type Step<'a> = Box<dyn Fn(&mut Link) + 'a>;
    let steps: Vec<Step<'_>> = vec![
        Box::new(|link| _ = link.ask_number(FrontendReq::GET_FEATURES).unwrap()),
        Box::new(|link| link.negotiate(FEATURES).unwrap()),
        Box::new(|link| link.memory(&[ram.region()]).unwrap()),
        Box::new(|link| link.vring(FrontendReq::SET_VRING_NUM, 0, 16).unwrap()),
        Box::new(|link| link.vring(FrontendReq::SET_VRING_BASE, 0, 0).unwrap()),
        Box::new(|link| link.vring_address(0, at, at + 0x4000, at + 0x5000).unwrap()),
        Box::new(|link| link.vring_fd(FrontendReq::SET_VRING_KICK, 0, &kick).unwrap()),
        Box::new(|link| link.vring_fd(FrontendReq::SET_VRING_CALL, 0, &call).unwrap()),
        Box::new(|link| link.vring(FrontendReq::SET_VRING_ENABLE, 0, 1).unwrap()),
        Box::new(|_| kick.write(1).unwrap()),
        Box::new(|link| link.vring(FrontendReq::SET_VRING_ENABLE, 0, 0).unwrap()),
        Box::new(|link| _ = link.vring_base(0).unwrap()),
    ];
    for last in 0..=steps.len() {
        let mut link = victim.link();
        steps[..last].iter().for_each(|step| step(&mut link));
        drop(link);
        victim.is_unharmed(&format!("step {last}"));
    }
}

#[test]
fn messages_cut_off_anywhere_do_no_harm() {
    let victim = Victim::new();
    let payload = FEATURES.to_ne_bytes();
    let header = Link::header(FrontendReq::SET_FEATURES as u32, VERSION, 8);
    let message = [&header[..], &payload].concat();
    for length in 0..message.len() {
        let mut link = victim.link();
        link.send(&message[..length], &[]).unwrap();
        link.finish().unwrap();
        link.wait_closed().unwrap();
    }
    victim.is_unharmed("half messages");
}

#[test]
fn headers_of_no_message_do_no_harm() {
    let victim = Victim::new();
    let get = FrontendReq::GET_FEATURES as u32;
    let set = FrontendReq::SET_FEATURES as u32;
    for (request, flags, size) in [
        (0, VERSION, 0),
        (get, 0, 0),
        (get, 2, 0),
        (get, VERSION | link::REPLY, 0),
        (get, u32::MAX, 0),
        (get, VERSION, 1),
        (set, VERSION, u32::MAX),
        (set, VERSION, 0x1001),
        (set, VERSION, 0x7fff_ffff),
        (45, VERSION, 0),
        (1000, VERSION | NEED_REPLY, 8),
        (u32::MAX, VERSION, 0),
    ] {
        let mut link = victim.link();
        link.send(&Link::header(request, flags, size), &[]).unwrap();
        // The daemon may have closed the connection already.
        let _ = link.send(&[0x5a; 64], &[]);
        let _ = link.finish();
        link.wait_closed().unwrap();
    }
    victim.is_unharmed("odd headers");
}

/// Every request there is, and some that there are not, with any payload and number of descriptors, before and after
/// the negotiation.
#[test]
fn no_sequence_of_messages_harms_the_next_frontend() {
    let victim = Victim::new();
    let message = (
        prop_oneof![8 => 0..46_u32, 1 => any::<u32>()],
        prop_oneof![4 => Just(VERSION), 4 => Just(VERSION | NEED_REPLY), 1 => any::<u32>()],
        prop_oneof![
            2 => Just(Vec::new()),
            // Numbers that are a queue, a size, a flag or nothing, as most requests have them.
            6 => proptest::collection::vec(prop_oneof![Just(0_u32), Just(1), Just(16), Just(1 << 8), any::<u32>()], 1..13)
                .prop_map(|words| words.iter().flat_map(|word| word.to_ne_bytes()).collect()),
            2 => proptest::collection::vec(any::<u8>(), 0..80),
        ],
        0..4_usize,
    );
    let sequences = (any::<bool>(), proptest::collection::vec(message, 1..12));
    let mut runner = TestRunner::new(Config { cases: 300, failure_persistence: None, ..Config::default() });
    let event = EventFd::new(0).unwrap();
    let ram = Ram::new();
    let fds = [event.as_raw_fd(), ram.region().fd, event.as_raw_fd()];
    runner
        .run(&sequences, |(negotiated, messages)| {
            let mut link = if negotiated { victim.negotiated() } else { victim.link() };
            for (request, flags, payload, count) in messages {
                let size = u32::try_from(payload.len()).unwrap();
                let bytes = [&Link::header(request, flags, size)[..], &payload].concat();
                if link.send(&bytes, &fds[..count]).is_err() {
                    break;
                }
            }
            let _ = link.finish();
            link.wait_closed().unwrap();
            Ok(())
        })
        .unwrap();
    victim.is_unharmed("300 sequences of messages");
}

#[test]
fn memory_tables_that_make_no_sense_do_no_harm() {
    let victim = Victim::new();
    let ram = Ram::new();
    let good = ram.region();
    let (null, file) = (File::open("/dev/null").unwrap(), tempfile::tempfile().unwrap());
    let event = EventFd::new(0).unwrap();
    let tables: &[(&str, Vec<Region>)] = &[
        ("a region of nothing", vec![Region { size: 0, ..good }]),
        ("more than the file has", vec![Region { size: good.size * 2, ..good }]),
        ("an offset behind the file", vec![Region { offset: good.size, ..good }]),
        ("an offset within a page", vec![Region { offset: 1, size: 4096, ..good }]),
        ("an offset that wraps", vec![Region { offset: u64::MAX - 0xfff, ..good }]),
        ("all of the address space", vec![Region { size: u64::MAX, ..good }]),
        ("guest addresses that wrap", vec![Region { guest: u64::MAX - 0xfff, ..good }]),
        ("frontend addresses that wrap", vec![Region { user: u64::MAX - 0xfff, ..good }]),
        ("the same region twice", vec![good, good]),
        ("regions that overlap", vec![good, Region { guest: good.guest + 0x1000, ..good }]),
        ("no file at all", vec![Region { fd: null.as_raw_fd(), ..good }]),
        ("an empty file", vec![Region { fd: file.as_raw_fd(), ..good }]),
        ("an eventfd", vec![Region { fd: event.as_raw_fd(), ..good }]),
        ("more regions than fit", vec![Region { size: 0x1000, ..good }; 9]),
    ];
    for (name, table) in tables {
        let mut link = victim.negotiated();
        // Accepted, refused or cut off: all of it is well for nonsense.
        let set = link.memory(table);
        if set.is_ok() {
            let _ = link.vring(FrontendReq::SET_VRING_NUM, 0, 16);
            let _ = link.vring_address(0, good.user, good.user + 0x4000, good.user + 0x5000);
            let _ = link.vring_fd(FrontendReq::SET_VRING_KICK, 0, &event);
            let _ = link.vring(FrontendReq::SET_VRING_ENABLE, 0, 1);
            event.write(1).unwrap();
            let _ = link.vring_base(0);
        }
        drop(link);
        victim.is_unharmed(name);
    }
    // A count that is not that of the regions or of the descriptors.
    for (count, fds) in [(0, 0), (2, 1), (u32::MAX, 1), (1, 0), (1, 2)] {
        let mut link = victim.negotiated();
        let mut payload = Region::table(&[good]);
        payload[..4].copy_from_slice(&count.to_ne_bytes());
        let set = link.tell(FrontendReq::SET_MEM_TABLE, &payload, &[good.fd; 2][..fds]);
        assert!(set.is_err(), "{count} regions with {fds} descriptors");
        drop(link);
        victim.is_unharmed("a wrong count");
    }
}

#[test]
fn descriptors_that_are_no_eventfds_do_no_harm() {
    let victim = Victim::new();
    let null = File::open("/dev/null").unwrap();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let zero = File::open("/dev/zero").unwrap();
    let mut plain = tempfile::tempfile().unwrap();
    plain.write_all(&[0xff; 64]).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let (closed, peer) = std::os::unix::net::UnixStream::pair().unwrap();
    drop(peer);
    let semaphore = EventFd::new(1).unwrap();
    let all: [(&str, RawFd); 9] = [
        ("/dev/null", null.as_raw_fd()),
        ("/dev/full", full.as_raw_fd()),
        ("/dev/zero", zero.as_raw_fd()),
        ("a file", plain.as_raw_fd()),
        ("a pipe to read", reader.as_raw_fd()),
        ("a pipe to write", writer.as_raw_fd()),
        ("a socket", socket.as_raw_fd()),
        ("a closed socket", closed.as_raw_fd()),
        ("a semaphore", semaphore.as_raw_fd()),
    ];
    for (name, fd) in all {
        for request in [FrontendReq::SET_VRING_KICK, FrontendReq::SET_VRING_CALL, FrontendReq::SET_VRING_ERR]
        {
            let Ok(mut guest) = Guest::boot(victim.daemon.socket()) else {
                panic!("before {request:?} of {name}")
            };
            guest.take_down(REQUEST_QUEUE).unwrap();
            guest.set_up(REQUEST_QUEUE, 16).unwrap();
            let _ = guest.link.tell(request, &0_u64.to_ne_bytes(), &[fd]);
            let _ = guest.link.vring(FrontendReq::SET_VRING_ENABLE, 0, 1);
            guest.lay_out(&LIST, 48);
            guest.chain(REQUEST_QUEUE, &[Desc::readable(DATA, 16), Desc::writable(REPLY, 48)]);
            // An answer to a message after the kick: the daemon is alive, or closed the connection.
            let _ = guest.link.vring_base(0);
            drop(guest);
            victim.is_unharmed(&format!("{request:?} with {name}"));
        }
    }
}

/// Two queues with one kick: whoever comes second finds it consumed. And a call that is never taken back.
#[test]
fn eventfds_that_would_block_do_not_stall_the_daemon() {
    let victim = Victim::new();
    let mut guest = Guest::boot(victim.daemon.socket()).unwrap();
    let shared = EventFd::new(0).unwrap();
    for queue in [REQUEST_QUEUE, EVENT_QUEUE] {
        guest.take_down(queue).unwrap();
        guest.set_up(queue, 16).unwrap();
        guest.link.vring(FrontendReq::SET_VRING_ENABLE, queue.into(), 0).unwrap();
        guest.link.vring_fd(FrontendReq::SET_VRING_KICK, queue.into(), &shared).unwrap();
        guest.link.vring(FrontendReq::SET_VRING_ENABLE, queue.into(), 1).unwrap();
    }
    for _ in 0..100 {
        shared.write(1).unwrap();
    }
    drop(guest);
    victim.is_unharmed("a shared kick");

    let mut guest = Guest::boot(victim.daemon.socket()).unwrap();
    let call = EventFd::new(0).unwrap();
    call.write(u64::MAX - 1).unwrap();
    guest.link.vring_fd(FrontendReq::SET_VRING_CALL, 0, &call).unwrap();
    guest.lay_out(&LIST, 48);
    guest.chain(REQUEST_QUEUE, &[Desc::readable(DATA, 16), Desc::writable(REPLY, 48)]);
    assert!(guest.link.vring_base(0).is_ok());
    drop(guest);
    victim.is_unharmed("a call without room");
}

#[test]
fn requests_about_queues_that_are_not_there_do_no_harm() {
    let victim = Victim::new();
    for queue in [2, 3, 255, 256, 0x8000_0000, u32::MAX] {
        for request in [
            FrontendReq::SET_VRING_NUM,
            FrontendReq::SET_VRING_BASE,
            FrontendReq::SET_VRING_ENABLE,
            FrontendReq::GET_VRING_BASE,
        ] {
            let mut link = victim.negotiated();
            assert!(link.vring(request, queue, 1).is_err(), "{request:?} of queue {queue}");
        }
        let mut link = victim.negotiated();
        assert!(link.vring_address(queue, 0, 0, 0).is_err());
    }
    victim.is_unharmed("queues that are not there");
}

#[test]
fn messages_out_of_turn_do_no_harm() {
    let victim = Victim::new();
    let event = EventFd::new(0).unwrap();
    // Before any negotiation.
    for (request, payload) in [
        (FrontendReq::SET_VRING_ENABLE, pair(0, 1).to_vec()),
        (FrontendReq::GET_VRING_BASE, pair(0, 0).to_vec()),
        (FrontendReq::SET_VRING_ADDR, vec![0; 40]),
        (FrontendReq::GET_QUEUE_NUM, Vec::new()),
        (FrontendReq::GET_CONFIG, vec![0; 28]),
        (FrontendReq::RESET_OWNER, Vec::new()),
        (FrontendReq::RESET_DEVICE, Vec::new()),
        (FrontendReq::SET_STATUS, 15_u64.to_ne_bytes().to_vec()),
    ] {
        let mut link = victim.link();
        link.message(request, VERSION | NEED_REPLY, &payload, &[]).unwrap();
        link.finish().unwrap();
        link.wait_closed().unwrap();
        victim.is_unharmed(&format!("{request:?} first of all"));
    }
    // A running queue gets what only a stopped one should, again and again.
    let mut guest = Guest::boot(victim.daemon.socket()).unwrap();
    for round in 0..20 {
        let _ = guest.link.vring(FrontendReq::SET_VRING_NUM, 0, 8 << (round % 4));
        let _ = guest.link.vring(FrontendReq::SET_VRING_BASE, 0, round * 1000);
        let _ = guest.link.vring_fd(FrontendReq::SET_VRING_KICK, 0, &event);
        let _ = event.write(1);
        let _ = guest.link.vring(FrontendReq::SET_VRING_ENABLE, 0, round % 2);
    }
    drop(guest);
    victim.is_unharmed("set-up of a running queue");
}

#[test]
fn the_configuration_space_can_be_read_in_any_part_and_not_written() {
    let victim = Victim::new();
    let config = |offset: u32, size: u32| {
        let mut link = victim.negotiated();
        let head: Vec<_> = [offset, size, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let payload = [head, vec![0; size.min(256) as usize]].concat();
        link.ask(FrontendReq::GET_CONFIG, &payload).map(|reply| reply[12..].to_vec())
    };
    let whole = config(0, 16).unwrap();
    assert_eq!(whole, b"VIRQ\x01\0\0\0\0\x08\0\0\0\x08\0\0");
    assert_eq!(config(12, 2).unwrap(), whole[12..14]);
    assert_eq!(config(14, 8).unwrap(), [0; 8]);
    for (offset, size) in [(0, 0), (256, 1), (250, 16), (u32::MAX, 16), (0, 257), (0, u32::MAX)] {
        // No part of it: an error, an empty answer or zeros.
        let part = config(offset, size).unwrap_or_default();
        assert!(part.iter().all(|byte| *byte == 0) || part == whole, "{size} bytes at {offset}: {part:?}");
    }
    let mut link = victim.negotiated();
    let write = [vec![0; 4], 4_u32.to_ne_bytes().to_vec(), vec![0; 4], vec![0xff; 4]].concat();
    let _ = link.tell(FrontendReq::SET_CONFIG, &write, &[]);
    drop(link);
    assert_eq!(config(0, 16).unwrap(), whole);
    victim.is_unharmed("the configuration space");
}
