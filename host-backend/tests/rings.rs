// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest can put into its rings, against the daemon over vhost-user. After each, the next request works.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test program: what fails here fails the test")]

mod common;

use common::*;
use vhost::VhostBackend;

const INVALID: [u8; 8] = [2, 0, 0, 0, 0, 0, 0, 0];

fn daemon_and_vm() -> (Daemon, Vm) {
    let daemon = Daemon::start(&["sim:wcn6855,guest=00:06.0"]);
    let vm = Vm::connect(&daemon.socket);
    (daemon, vm)
}

/// Puts descriptors into the request queue's table, submits the chain that begins at 0, and returns its used length.
/// Then sees to it that the device still answers.
#[track_caller]
fn chain(vm: &mut Vm, descriptors: &[Descriptor]) -> u32 {
    let table = vm.rings[REQUESTS].descriptors();
    for (number, descriptor) in descriptors.iter().enumerate() {
        vm.descriptor(table, number as u16, *descriptor);
    }
    vm.submit(REQUESTS, &[0]);
    let (head, length) = vm.wait_used(REQUESTS);
    assert_eq!(head, 0);
    vm.expect_service();
    length
}

#[test]
fn functions_are_listed_and_messages_told() {
    let (daemon, mut vm) = daemon_and_vm();
    let reply = vm.ask(&list_functions(0, 4), 16 + 4 * 32);
    assert_eq!(reply.len(), 48);
    assert_eq!(reply[8..12], [1, 0, 0, 0]);
    assert_eq!(reply[16..32], [0, 0, 0x1f, 0, 0x30, 0, 0, 0, 0xcb, 0x17, 0x03, 0x11, 0xcb, 0x17, 8, 1]);
    let reply = vm.ask(&get_messages(0, 1, 14, 2), 16 + 2 * 16);
    assert_eq!(reply[16..32], [0x78, 0x05, 0xe0, 0xfe, 0, 0, 0, 0, 14, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(reply[32..48], [0x78, 0x05, 0xe0, 0xfe, 0, 0, 0, 0, 15, 0, 0, 0, 1, 0, 0, 0]);
    daemon.stop();
}

#[test]
fn the_configuration_space_is_read_only() {
    use vhost::vhost_user::VhostUserFrontend;
    use vhost::vhost_user::message::VhostUserConfigFlags;
    let (daemon, mut vm) = daemon_and_vm();
    let expected = [b'V', b'I', b'R', b'Q', 1, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0];
    let flags = VhostUserConfigFlags::empty();
    for _ in 0..2 {
        assert_eq!(vm.frontend.get_config(0, 16, flags, &[0; 16]).unwrap().1, expected);
        vm.frontend.set_config(4, flags, &[9; 4]).unwrap();
    }
    assert_eq!(vm.frontend.get_config(12, 2, flags, &[0; 2]).unwrap().1, [0, 8]);
    assert_eq!(vm.frontend.get_config(14, 6, flags, &[0; 6]).unwrap().1, [0; 6]);
    vm.expect_service();
    daemon.stop();
}

#[test]
fn chains_that_break_the_rules_are_given_back_untouched() {
    let (daemon, mut vm) = daemon_and_vm();
    let outside = BASE + MEMORY as u64;
    vm.write(page(0), &get_messages(0, 1, 5, 1));
    let request = (page(0), 16, NEXT, 1);
    let cases: [(&str, &[Descriptor]); 14] = [
        ("a loop of one", &[(page(0), 16, NEXT, 0)]),
        ("a loop of two", &[request, (page(1), 64, NEXT | WRITE, 0)]),
        ("a successor beyond the table", &[(page(0), 16, NEXT, SIZE)]),
        (
            "a writable buffer whose successor is beyond the table",
            &[request, (page(1), 64, NEXT | WRITE, SIZE)],
        ),
        ("a writable buffer that follows itself", &[request, (page(1), 64, NEXT | WRITE, 1)]),
        ("readable after writable", &[request, (page(1), 64, NEXT | WRITE, 2), (page(2), 16, 0, 0)]),
        ("readable outside of memory", &[(outside, 16, NEXT, 1), (page(1), 64, WRITE, 0)]),
        ("writable outside of memory", &[request, (0x1000, 64, WRITE, 0)]),
        ("writable across the end of memory", &[request, (outside - 8, 64, WRITE, 0)]),
        ("an address that wraps around", &[request, (u64::MAX - 7, 64, WRITE, 0)]),
        ("the greatest length", &[request, (page(1), u32::MAX, WRITE, 0)]),
        (
            "lengths whose sum wraps around",
            &[request, (page(1), u32::MAX, NEXT | WRITE, 2), (page(2), 64, WRITE, 0)],
        ),
        ("an indirect table outside of memory", &[(outside, 32, INDIRECT, 0)]),
        ("an indirect table of half a descriptor", &[(page(3), 24, INDIRECT, 0)]),
    ];
    for (name, descriptors) in cases {
        vm.write(page(1), &[0xee; 64]);
        assert_eq!(chain(&mut vm, descriptors), 0, "{name}");
        // expect_service used the page since; the rest of it was left alone.
        assert_eq!(vm.read(page(1) + 32, 32), [0xee; 32], "{name}");
    }
    daemon.stop();
}

#[test]
fn chains_without_room_for_a_head_are_given_back_untouched() {
    let (daemon, mut vm) = daemon_and_vm();
    vm.write(page(0), &get_messages(0, 1, 5, 1));
    let request = (page(0), 16, NEXT, 1);
    let cases: [&[Descriptor]; 5] = [
        &[(page(0), 16, 0, 0)],
        &[(page(0), 0, 0, 0)],
        &[(page(1), 7, WRITE, 0)],
        &[request, (page(1), 7, WRITE, 0)],
        &[request, (page(1), 4, NEXT | WRITE, 2), (page(2), 3, WRITE, 0)],
    ];
    for descriptors in cases {
        assert_eq!(chain(&mut vm, descriptors), 0, "{descriptors:?}");
    }
    daemon.stop();
}

#[test]
fn requests_of_the_wrong_size_are_invalid() {
    let (daemon, mut vm) = daemon_and_vm();
    for length in [0, 7, 8, 15, 17, 4096] {
        let mut request = get_messages(0, 1, 5, 1);
        request.resize(length, 0);
        assert_eq!(vm.ask(&request, 64), INVALID, "{length} bytes");
        vm.expect_service();
    }
    daemon.stop();
}

#[test]
fn a_chain_may_be_cut_anywhere() {
    let (daemon, mut vm) = daemon_and_vm();
    vm.write(page(0), &get_messages(0, 1, 5, 1));
    vm.write(page(1), &[0xee; 64]);
    let used = chain(
        &mut vm,
        &[
            (page(0), 3, NEXT, 1),
            (page(0) + 3, 0, NEXT, 3),
            (page(8) + 20, 12, WRITE, 0),
            (page(0) + 3, 13, NEXT, 4),
            (page(8), 5, NEXT | WRITE, 6),
            (0, 0, 0, 0),
            (page(8) + 5, 15, NEXT | WRITE, 2),
        ],
    );
    assert_eq!(used, 32);
    assert_eq!(vm.read(page(8), 20)[8..], [1, 0, 0, 0, 0, 0, 0, 0, 0x78, 0x05, 0xe0, 0xfe]);
    daemon.stop();
}

#[test]
fn an_indirect_table_is_followed_once() {
    let (daemon, mut vm) = daemon_and_vm();
    vm.write(page(0), &get_messages(0, 1, 5, 1));
    vm.descriptor(page(3), 0, (page(0), 16, NEXT, 2));
    vm.descriptor(page(3), 2, (page(8), 64, WRITE, 0));
    assert_eq!(chain(&mut vm, &[(page(3), 48, INDIRECT, 0)]), 32);

    vm.descriptor(page(3), 2, (page(8), 64, WRITE, 0));
    vm.descriptor(page(4), 0, (page(3), 48, INDIRECT, 0));
    assert_eq!(chain(&mut vm, &[(page(4), 16, INDIRECT, 0)]), 0, "nested");

    vm.descriptor(page(3), 2, (page(8), 64, WRITE | NEXT, 0));
    assert_eq!(chain(&mut vm, &[(page(3), 48, INDIRECT, 0)]), 0, "looped");
    assert_eq!(chain(&mut vm, &[(page(3), 0, INDIRECT, 0)]), 0, "empty");
    daemon.stop();
}

#[test]
fn a_chain_longer_than_the_ring_is_given_back_untouched() {
    let (daemon, mut vm) = daemon_and_vm();
    // An indirect table may be longer than the ring; the chain in it may not.
    let build = |vm: &Vm, length: u16| {
        for number in 0..length {
            let next = if number + 1 < length { NEXT } else { 0 };
            vm.descriptor(page(3), number, (page(8) + 64 * u64::from(number), 8, WRITE | next, number + 1));
        }
    };
    build(&vm, SIZE + 1);
    assert_eq!(chain(&mut vm, &[(page(3), 16 * (u32::from(SIZE) + 1), INDIRECT, 0)]), 0);
    build(&vm, SIZE);
    // As long as the ring is fine: no readable part, so INVALID.
    assert_eq!(chain(&mut vm, &[(page(3), 16 * u32::from(SIZE), INDIRECT, 0)]), 8);
    daemon.stop();
}

#[test]
fn a_ring_full_of_chains_is_given_back_in_order() {
    let (daemon, mut vm) = daemon_and_vm();
    let table = vm.rings[REQUESTS].descriptors();
    vm.write(page(0), &list_functions(0, 1));
    for round in 0..40u16 {
        let heads: Vec<u16> = (0..SIZE).map(|number| (number * 5 + round) % SIZE).collect();
        for head in &heads {
            // Without a readable part: INVALID, in 8 bytes.
            vm.descriptor(table, *head, (page(8) + 64 * u64::from(*head), 8 + u32::from(*head), WRITE, 0));
        }
        vm.submit(REQUESTS, &heads);
        for head in heads {
            assert_eq!(vm.wait_used(REQUESTS), (head, 8));
        }
    }
    vm.expect_service();
    daemon.stop();
}

/// Breaks the request ring with `fault`, and sees that it is left alone until it is set up again.
fn broken_until_set_up_again(fault: impl FnOnce(&mut Vm)) {
    let (daemon, mut vm) = daemon_and_vm();
    vm.expect_service();
    fault(&mut vm);
    daemon.wait_for_line("left alone until it is set up again");
    assert_eq!(vm.take_used(REQUESTS), None);
    vm.stop_ring(REQUESTS);
    vm.start_ring(REQUESTS);
    vm.expect_service();
    daemon.stop();
}

#[test]
fn an_available_index_beyond_the_ring_breaks_it() {
    broken_until_set_up_again(|vm| {
        vm.set_available(REQUESTS, 1 + SIZE + 1);
        vm.kick(REQUESTS);
    });
}

#[test]
fn a_head_beyond_the_table_breaks_the_ring() {
    broken_until_set_up_again(|vm| vm.submit(REQUESTS, &[SIZE]));
    broken_until_set_up_again(|vm| vm.submit(REQUESTS, &[0xffff]));
}

#[test]
fn a_ring_that_is_set_up_wrong_is_left_alone_and_the_connection_stays() {
    let (daemon, mut vm) = daemon_and_vm();
    let (table, available, used) = {
        let ring = &vm.rings[REQUESTS];
        (ring.descriptors(), ring.available(), ring.used())
    };
    let end = BASE + MEMORY as u64;
    let cases = [
        ("a size that is no power of two", 3, table, available, used),
        ("an available ring inside the table", SIZE, table, table + 2, used),
        ("an available ring across the end of memory", SIZE, table, end - 2, used),
        ("a used ring across the end of memory", SIZE, table, available, end - 4),
    ];
    for (name, size, table, available, used) in cases {
        vm.stop_ring(REQUESTS);
        vm.set_up(REQUESTS, size, table, available, used);
        vm.kick(REQUESTS);
        // An answer to the next message means that the connection stands.
        vm.stop_ring(REQUESTS);
        vm.start_ring(REQUESTS);
        assert_eq!(vm.take_used(REQUESTS), None, "{name}");
        vm.expect_service();
    }
    daemon.stop();
}

#[test]
fn a_disabled_ring_is_not_touched_and_catches_up_when_enabled() {
    let (daemon, mut vm) = daemon_and_vm();
    vm.enable(REQUESTS, false);
    // The answer to a message means that the one before it was handled.
    vm.frontend.get_features().unwrap();
    let table = vm.rings[REQUESTS].descriptors();
    vm.write(page(0), &list_functions(0, 1));
    vm.descriptor(table, 2, (page(0), 16, NEXT, 5));
    vm.descriptor(table, 5, (page(1), 48, WRITE, 0));
    vm.submit(REQUESTS, &[2]);
    assert_eq!(vm.take_used(REQUESTS), None);
    assert_eq!(vm.rings[REQUESTS].kick.read().unwrap(), 1, "nobody took the kick");
    // Enabling is enough: no kick is needed for what came before.
    vm.enable(REQUESTS, true);
    assert_eq!(vm.wait_used(REQUESTS), (2, 48));
    daemon.stop();
}

/// The next used element, of which no notification tells.
#[track_caller]
fn look_for_used(vm: &mut Vm) -> (u16, u32) {
    let start = std::time::Instant::now();
    loop {
        if let Some(used) = vm.take_used(REQUESTS) {
            return used;
        }
        assert!(start.elapsed() < LONG, "no chain is given back");
        std::thread::yield_now();
    }
}

#[test]
fn notifications_are_suppressed_as_the_driver_asks() {
    let daemon = Daemon::start(&["sim:wcn6855"]);
    let mut vm = Vm::prepare(&daemon.socket, u64::MAX);
    assert_ne!(vm.features & EVENT_IDX, 0);
    vm.start_rings();
    let table = vm.rings[REQUESTS].descriptors();
    for number in 0..4 {
        vm.descriptor(table, number, (page(8), 8, WRITE, 0));
    }
    // used_event: notify after the chain with this index, not before.
    let used_event = vm.rings[REQUESTS].available() + 4 + 2 * u64::from(SIZE);
    vm.frontend.get_features().unwrap();
    vm.write(used_event, &2u16.to_le_bytes());
    for head in [0, 1] {
        vm.submit(REQUESTS, &[head]);
        assert_eq!(look_for_used(&mut vm), (head, 8));
        // Disabling waits until the worker is done with the ring.
        vm.enable(REQUESTS, false);
        vm.frontend.get_features().unwrap();
        assert!(!readable(&vm.call(REQUESTS), std::time::Duration::ZERO), "chain {head}");
        vm.enable(REQUESTS, true);
    }
    vm.submit(REQUESTS, &[2]);
    assert!(readable(&vm.call(REQUESTS), LONG));
    assert_eq!(vm.take_used(REQUESTS), Some((2, 8)));
    // The device tells up to where it has seen the ring.
    let avail_event = vm.rings[REQUESTS].used() + 4 + 8 * u64::from(SIZE);
    assert_eq!(vm.read(avail_event, 2), [3, 0]);
    daemon.stop();
}

#[test]
fn notifications_are_suppressed_by_the_flag_of_a_driver_without_event_idx() {
    let (daemon, mut vm) = daemon_and_vm();
    assert_eq!(vm.features & EVENT_IDX, 0);
    let table = vm.rings[REQUESTS].descriptors();
    for number in 0..2 {
        vm.descriptor(table, number, (page(8), 8, WRITE, 0));
    }
    vm.frontend.get_features().unwrap();
    let flags = vm.rings[REQUESTS].available();
    vm.write(flags, &[1, 0]);
    vm.submit(REQUESTS, &[0]);
    assert_eq!(look_for_used(&mut vm), (0, 8));
    // Disabling waits until the worker is done with the ring.
    vm.enable(REQUESTS, false);
    vm.frontend.get_features().unwrap();
    assert!(!readable(&vm.call(REQUESTS), std::time::Duration::ZERO));
    vm.write(flags, &[0, 0]);
    vm.submit(REQUESTS, &[1]);
    vm.enable(REQUESTS, true);
    assert!(readable(&vm.call(REQUESTS), LONG));
    assert_eq!(vm.take_used(REQUESTS), Some((1, 8)));
    daemon.stop();
}

#[test]
fn one_kick_is_enough_for_more_chains_than_one_wakeup_completes() {
    let (daemon, mut vm) = daemon_and_vm();
    const LONG_RING: u16 = 512;
    vm.stop_ring(REQUESTS);
    let ring = &vm.rings[REQUESTS];
    let (table, available, used) = (ring.descriptors(), ring.available(), ring.used());
    for number in 0..LONG_RING {
        vm.descriptor(table, number, (page(8) + 8 * u64::from(number), 8, WRITE, 0));
        vm.write(available + 4 + 2 * u64::from(number), &number.to_le_bytes());
    }
    vm.set_up(REQUESTS, LONG_RING, table, available, used);
    vm.set_available(REQUESTS, LONG_RING);
    vm.kick(REQUESTS);
    loop {
        let back = u16::from_le_bytes(vm.read(used + 2, 2).try_into().unwrap());
        if back == LONG_RING {
            break;
        }
        assert!(readable(&vm.call(REQUESTS), LONG), "{back} chains are back");
        let _ = vm.rings[REQUESTS].call.read();
    }
    for number in 0..LONG_RING {
        let element = vm.read(used + 4 + 8 * u64::from(number), 8);
        assert_eq!(element, [&u32::from(number).to_le_bytes()[..], &[8, 0, 0, 0]].concat());
    }
    daemon.stop();
}

#[test]
fn a_ring_that_is_refilled_forever_keeps_nobody_from_leaving() {
    let daemon = Daemon::start(&["sim:wcn6855"]);
    let mut vm = Vm::connect(&daemon.socket);
    let table = vm.rings[REQUESTS].descriptors();
    vm.descriptor(table, 0, (page(8), 8, WRITE, 0));
    vm.submit(REQUESTS, &[0]);
    vm.wait_used(REQUESTS);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Keeps the ring full from another thread, faster than the daemon empties it.
        scope.spawn(|| {
            let mut index = 1u16;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let used = u16::from_le_bytes(vm.read(vm.rings[REQUESTS].used() + 2, 2).try_into().unwrap());
                index = if index.wrapping_sub(used) < SIZE { index.wrapping_add(1) } else { index };
                vm.set_available(REQUESTS, index);
                vm.kick(REQUESTS);
            }
        });
        daemon.stop();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
