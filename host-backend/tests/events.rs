// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Events and host faults over vhost-user. The daemon's library runs in this process, so that a test can move
//! messages and take functions away.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test program: what fails here fails the test")]

mod common;

use common::*;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use vhost_device_irq::bridge::Bridge;
use vhost_device_irq::device::{Assigned, Quota, RateLimit};
use vhost_device_irq::host::sim::{KINDS, SimFunction};
use vhost_device_irq::host::{Description, HostFunction};
use vhost_device_irq::serve::{Stop, Transport, serve};
use virtio_irq_proto::{FunctionFlags, FunctionId};

const QUOTA: Quota = Quota { guest: 40, function: 32 };

const OK: [u8; 2] = [0, 0];
const NOT_ENABLED: [u8; 8] = [6, 0, 0, 0, 0, 0, 0, 0];
const HOST_ERROR: [u8; 8] = [8, 0, 0, 0, 0, 0, 0, 0];
const FUNCTION_GONE: [u8; 8] = [9, 0, 0, 0, 0, 0, 0, 0];
const NO_SOURCE: [u8; 8] = [10, 0, 0, 0, 0, 0, 0, 0];
const GONE_0: [u8; 16] = [4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const GONE_7: [u8; 16] = [4, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A device that serves functions 0 and 7, both with 32 MSI vectors.
struct Host {
    functions: [SimFunction; 2],
    bridge: Arc<Bridge>,
    stop: Stop,
    thread: Option<JoinHandle<std::io::Result<()>>>,
    socket: PathBuf,
    _directory: TempDir,
}

fn assigned(id: u16, what: Description) -> Assigned {
    let flags = FunctionFlags::NATIVE.with(FunctionFlags::EVENT, true);
    Assigned { function: what.function(FunctionId(id), flags), refused: false }
}

impl Host {
    fn start() -> Self {
        Self::with_limit(None)
    }

    /// With a greatest number of interrupts in a second.
    fn with_limit(limit: Option<u32>) -> Self {
        let functions = [0, 7].map(|id| SimFunction::new("wifi", KINDS[1].ids, 32, 0, id));
        let served = functions.iter().zip([0, 7]).map(|(function, id)| {
            let host: Box<dyn HostFunction> = Box::new(function.clone());
            (assigned(id, function.describe()), host)
        });
        let bridge = Arc::new(Bridge::new(served.collect(), QUOTA).unwrap());
        if let Some(count) = limit.and_then(NonZeroU32::new) {
            bridge.limit_rate(RateLimit::per_second(count));
        }
        let directory = TempDir::new().unwrap();
        let socket = directory.path().join("irq.sock");
        let transport = Transport::bind(&socket).unwrap();
        let stop = Stop::new().unwrap();
        let (until, served) = (stop.clone(), Arc::clone(&bridge));
        let thread = std::thread::spawn(move || serve(&served, transport, &until));
        Self { functions, bridge, stop, thread: Some(thread), socket, _directory: directory }
    }

    fn stop(mut self) {
        self.stop.request();
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

/// Makes writable event buffers available: descriptor n of `lengths[n]` bytes in page 20 + n.
fn offer(vm: &mut Vm, lengths: &[u32]) {
    let table = vm.rings[EVENTS].descriptors();
    let heads: Vec<u16> = (0..lengths.len() as u16).collect();
    for (number, length) in heads.iter().zip(lengths) {
        vm.write(page(20 + u64::from(*number)), &[0xee; 64]);
        vm.descriptor(table, *number, (page(20 + u64::from(*number)), *length, WRITE, 0));
    }
    vm.submit(EVENTS, &heads);
}

fn buffer(vm: &Vm, number: u64) -> Vec<u8> {
    vm.read(page(20 + number), 64)
}

/// Removes a function, and lets the device find out.
#[track_caller]
fn remove(host: &Host, vm: &mut Vm, index: usize) {
    host.functions[index].remove();
    assert_eq!(vm.ask(&get_messages([0, 7][index], 1, 5, 1), 32), FUNCTION_GONE);
}

#[test]
fn a_function_that_leaves_is_told_in_a_buffer_that_waits() {
    let host = Host::start();
    let mut vm = Vm::connect(&host.socket);
    offer(&mut vm, &[64, 64]);
    remove(&host, &mut vm, 1);
    assert_eq!(vm.wait_used(EVENTS), (0, 16));
    assert_eq!(buffer(&vm, 0), [&GONE_7[..], &[0xee; 48]].concat());
    remove(&host, &mut vm, 0);
    assert_eq!(vm.wait_used(EVENTS), (1, 16));
    assert_eq!(buffer(&vm, 1)[..16], GONE_0);
    host.stop();
}

#[test]
fn a_function_that_is_taken_away_is_told_in_a_buffer_that_waits() {
    let host = Host::start();
    // Whoever tells is woken for it, with or without a frontend, and with or without an operator's socket.
    assert!(!readable(host.bridge.deliveries(), Duration::ZERO));
    assert_eq!(host.bridge.detach_function(FunctionId(0)), Ok(0));
    assert!(readable(host.bridge.deliveries(), LONG));
    let mut vm = Vm::connect(&host.socket);
    offer(&mut vm, &[16, 16]);
    assert_eq!(vm.wait_used(EVENTS), (0, 16));
    assert_eq!(buffer(&vm, 0)[..16], GONE_0);
    assert_eq!(host.bridge.detach_function(FunctionId(7)), Ok(0));
    assert_eq!(vm.wait_used(EVENTS), (1, 16));
    assert_eq!(buffer(&vm, 1)[..16], GONE_7);
    host.stop();
}

#[test]
fn events_wait_for_a_buffer_and_share_one() {
    let host = Host::start();
    let mut vm = Vm::connect(&host.socket);
    remove(&host, &mut vm, 1);
    remove(&host, &mut vm, 0);
    assert_eq!(vm.take_used(EVENTS), None);
    offer(&mut vm, &[40]);
    assert_eq!(vm.wait_used(EVENTS), (0, 32));
    assert_eq!(buffer(&vm, 0), [&GONE_7[..], &GONE_0, &[0xee; 32]].concat());
    host.stop();
}

#[test]
fn an_event_survives_buffers_that_cannot_take_it() {
    let host = Host::start();
    let mut vm = Vm::connect(&host.socket);
    remove(&host, &mut vm, 0);
    let table = vm.rings[EVENTS].descriptors();
    vm.descriptor(table, 0, (page(20), 15, WRITE, 0));
    vm.descriptor(table, 1, (page(21), 64, 0, 0));
    vm.descriptor(table, 2, (page(22), 16, NEXT, 3));
    vm.descriptor(table, 3, (page(23), 64, WRITE, 0));
    vm.descriptor(table, 4, (page(24), 64, WRITE | NEXT, 4));
    vm.descriptor(table, 5, (0x1000, 64, WRITE, 0));
    vm.descriptor(table, 6, (page(26), 0, WRITE, 0));
    vm.descriptor(table, 7, (page(27), 5, WRITE | NEXT, 8));
    vm.descriptor(table, 8, (page(28), 11, WRITE, 0));
    vm.submit(EVENTS, &[0, 1, 2, 4, 5, 6, 7]);
    for head in [0, 1, 2, 4, 5, 6] {
        assert_eq!(vm.wait_used(EVENTS), (head, 0));
    }
    assert_eq!(vm.wait_used(EVENTS), (7, 16));
    assert_eq!([&buffer(&vm, 7)[..5], &buffer(&vm, 8)[..11]].concat(), GONE_0);
    host.stop();
}

#[test]
fn buffers_stay_the_devices_while_there_is_nothing_to_say() {
    let host = Host::start();
    let mut vm = Vm::connect(&host.socket);
    offer(&mut vm, &[0, 15, 64]);
    for _ in 0..3 {
        vm.expect_service();
    }
    assert_eq!(vm.take_used(EVENTS), None);
    host.stop();
}

#[test]
fn a_block_that_moved_is_told_for_the_vectors_that_were_not_asked_for() {
    let host = Host::start();
    let mut vm = Vm::connect(&host.socket);
    offer(&mut vm, &[16]);
    vm.ask(&get_messages(7, 1, 3, 10), 16 + 160);
    host.functions[1].move_messages();
    let reply = vm.ask(&get_messages(7, 1, 3, 2), 16 + 32);
    assert_eq!(reply[28..32], [2, 0, 0, 0], "another message, another generation");
    assert_eq!(vm.wait_used(EVENTS), (0, 16));
    assert_eq!(buffer(&vm, 0)[..16], [2, 0, 7, 0, 0, 0, 0, 0, 5, 0, 8, 0, 1, 0, 0, 0]);
    host.stop();
}

#[test]
fn a_broken_event_ring_does_not_hinder_requests() {
    let host = Host::start();
    let mut vm = Vm::connect(&host.socket);
    vm.set_available(EVENTS, SIZE + 1);
    remove(&host, &mut vm, 1);
    vm.kick(EVENTS);
    vm.expect_service();
    vm.stop_ring(EVENTS);
    vm.start_ring(EVENTS);
    offer(&mut vm, &[16]);
    assert_eq!(vm.wait_used(EVENTS), (0, 16));
    assert_eq!(buffer(&vm, 0)[..16], GONE_7);
    host.stop();
}

#[test]
fn a_reset_forgets_events_but_not_that_the_function_left() {
    let host = Host::start();
    let mut vm = Vm::connect(&host.socket);
    remove(&host, &mut vm, 1);
    vm.stop_ring(REQUESTS);
    vm.start_ring(REQUESTS);
    offer(&mut vm, &[16]);
    assert_eq!(vm.ask(&get_messages(7, 1, 5, 1), 32), FUNCTION_GONE);
    assert_eq!(vm.take_used(EVENTS), None);
    let list = vm.ask(&list_functions(0, 9), 16 + 9 * 32);
    assert_eq!(list[8..12], [1, 0, 0, 0]);
    host.stop();
}

#[test]
fn a_fault_of_the_host_passes() {
    let host = Host::start();
    let mut vm = Vm::connect(&host.socket);
    host.functions[1].fail(2);
    assert_eq!(vm.ask(&get_messages(7, 1, 5, 1), 32), HOST_ERROR);
    assert_eq!(vm.ask(&get_messages(7, 1, 5, 1), 32), HOST_ERROR);
    assert_eq!(vm.ask(&get_messages(7, 1, 5, 1), 32)[..2], OK);
    host.stop();
}

#[test]
fn a_range_is_told_whole_or_not_at_all() {
    let host = Host::start();
    let mut vm = Vm::connect(&host.socket);
    host.functions[1].enable(8);
    assert_eq!(vm.ask(&get_messages(7, 1, 5, 3), 64)[..2], OK);
    assert_eq!(vm.ask(&get_messages(7, 1, 5, 4), 80), NOT_ENABLED);
    assert_eq!(vm.ask(&get_messages(7, 1, 8, 1), 32), NOT_ENABLED);
    host.stop();
}

fn interrupt(function: u8, source: u8) -> [u8; 16] {
    [1, 0, function, 0, source, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
}

fn revoked(function: u8, source: u8) -> [u8; 16] {
    [3, 0, function, 0, source, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
}

#[test]
fn a_source_that_fires_is_told_and_one_that_is_masked_is_told_later() {
    let host = Host::start();
    let mut vm = Vm::connect(&host.socket);
    assert_eq!(vm.ask(&allocate(7, 3), 16 + 3 * 24)[..10], [0, 0, 0, 0, 0, 0, 0, 0, 3, 0]);
    assert_eq!(host.functions[1].attached(), [0, 1, 2]);
    assert_eq!(vm.ask(&sources(18, 1, 1), 8), [0; 8]);
    offer(&mut vm, &[16, 64]);
    assert!(host.functions[1].fire(1) && host.functions[1].fire(2));
    assert_eq!(vm.wait_used(EVENTS), (0, 16));
    assert_eq!(buffer(&vm, 0)[..16], interrupt(7, 2));
    assert_eq!(vm.ask(&sources(19, 1, 2), 8), [0; 8]);
    assert_eq!(vm.wait_used(EVENTS), (1, 16));
    assert_eq!(buffer(&vm, 1)[..16], interrupt(7, 1));
    assert_eq!(vm.ask(&sources(17, 0, 3), 8), [0; 8]);
    assert_eq!((host.functions[1].attached(), host.functions[1].enabled_for_sources()), (vec![], None));
    host.stop();
}

/// A device that found no buffer asks to be notified of one; when it is, what it had to tell can be masked.
#[test]
fn a_buffer_that_came_while_there_was_nothing_to_tell_is_remembered() {
    let host = Host::start();
    let mut vm = Vm::connect(&host.socket);
    assert_eq!(vm.ask(&allocate(7, 1), 64)[..2], OK);
    offer(&mut vm, &[16]);
    assert!(host.functions[1].fire(0));
    assert_eq!(vm.wait_used(EVENTS), (0, 16));
    assert!(host.functions[1].fire(0));
    // The flag of the used ring by which it wants none.
    let (flags, began) = (vm.rings[EVENTS].used(), Instant::now());
    while vm.read(flags, 2) != [0, 0] {
        assert!(began.elapsed() < LONG, "it wants no notification");
        std::thread::yield_now();
    }
    assert_eq!(vm.ask(&sources(18, 0, 1), 8), [0; 8]);
    vm.submit(EVENTS, &[0]);
    vm.expect_service();
    assert_eq!(vm.take_used(EVENTS), None);
    assert_eq!(vm.ask(&sources(19, 0, 1), 8), [0; 8]);
    assert_eq!(vm.wait_used(EVENTS), (0, 16));
    host.stop();
}

/// The two queues have different threads (IRQ-DEV-66).
#[test]
fn a_source_that_fires_at_once_is_told_after_the_reply_that_gives_it() {
    let host = Host::start();
    let mut vm = Vm::connect(&host.socket);
    offer(&mut vm, &[64]);
    let (function, called) = (host.functions[1].clone(), vm.call(EVENTS).try_clone_to_owned().unwrap());
    let too_early = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&too_early);
    host.functions[1].when_attached(Arc::new(move || {
        assert!(function.fire(0));
        seen.store(readable(&called, Duration::from_millis(50)), Ordering::Relaxed);
    }));
    assert_eq!(vm.ask(&allocate(7, 1), 64)[..2], OK);
    assert_eq!(vm.wait_used(EVENTS), (0, 16));
    assert_eq!(buffer(&vm, 0)[..16], interrupt(7, 0));
    assert!(!too_early.load(Ordering::Relaxed));
    host.stop();
}

/// Has the guest allocate a source of function 7, for which the host takes its time until told to go on.
fn keep_allocating(host: &Host, vm: &mut Vm) -> Sender<()> {
    let (called, was_called) = channel();
    let (go_on, goes_on) = channel();
    let goes_on = Mutex::new(goes_on);
    host.functions[1].when_attached(Arc::new(move || {
        called.send(()).unwrap();
        goes_on.lock().unwrap().recv().unwrap();
    }));
    vm.send(&allocate(7, 1), 64);
    was_called.recv_timeout(LONG).unwrap();
    go_on
}

/// A VMM that is stopped, or a kernel that takes its time, is none of the other functions' business.
#[test]
fn events_do_not_wait_for_what_the_host_does_for_a_request() {
    let host = Host::start();
    let mut vm = Vm::connect(&host.socket);
    offer(&mut vm, &[16]);
    assert_eq!(vm.ask(&allocate(0, 2), 64)[..2], OK);
    let go_on = keep_allocating(&host, &mut vm);
    assert!(host.functions[1].fire(0), "what it allocates fires already");
    for vector in [1, 0, 0, 1, 0, 1, 1, 0u8] {
        assert!(host.functions[0].fire(vector.into()));
        assert_eq!(vm.wait_used(EVENTS), (0, 16));
        assert_eq!(buffer(&vm, 0)[..16], interrupt(0, vector));
        // Two that find no buffer, until there are some again.
        (0..2).for_each(|vector| assert!(host.functions[0].fire(vector)));
        vm.write(page(20), &[0; 16]);
        for _ in 0..2 {
            vm.submit(EVENTS, &[0]);
            assert_eq!(vm.wait_used(EVENTS), (0, 16));
        }
        vm.submit(EVENTS, &[0]);
    }
    assert_eq!(vm.take_used(REQUESTS), None, "the host is not done");
    go_on.send(()).unwrap();
    assert_eq!(vm.reply(64)[..2], OK);
    assert_eq!(vm.wait_used(EVENTS), (0, 16));
    assert_eq!(buffer(&vm, 0)[..16], interrupt(7, 2));
    host.stop();
}

/// A frontend shows other memory whenever it likes, and makes that from before shorter.
#[test]
fn memory_that_is_taken_away_during_a_request_is_lost_to_the_frontend_only() {
    let host = Host::start();
    let mut vm = Vm::connect(&host.socket);
    let go_on = keep_allocating(&host, &mut vm);
    let earlier = vm.show_other_memory();
    earlier.set_len(0).unwrap();
    go_on.send(()).unwrap();
    vm.stop_ring(REQUESTS);
    vm.start_ring(REQUESTS);
    vm.expect_service();
    host.stop();
}

/// The machine is paused: the driver does not notice, except that its sources ended.
#[test]
fn a_pause_keeps_what_waits_to_be_told_and_ends_sources_aloud() {
    let host = Host::start();
    let mut vm = Vm::connect(&host.socket);
    let before = vm.ask(&get_messages(7, 1, 5, 1), 32);
    assert_eq!(vm.ask(&allocate(7, 2), 64)[..2], OK);
    remove(&host, &mut vm, 0);
    let bases = vm.pause();
    assert_eq!(bases, [3, 0]);
    assert_eq!((host.functions[1].attached(), host.functions[1].enabled_for_sources()), (vec![], None));
    vm.go_on(bases);
    offer(&mut vm, &[64]);
    assert_eq!(vm.wait_used(EVENTS), (0, 48));
    assert_eq!(buffer(&vm, 0)[..48], [GONE_0, revoked(7, 0), revoked(7, 1)].concat());
    assert_eq!(vm.ask(&get_messages(7, 1, 5, 1), 32), before, "the same generation");
    assert_eq!(vm.ask(&sources(17, 0, 2), 8), [0; 8]);
    assert_eq!(vm.ask(&allocate(7, 2), 64)[..2], OK);
    host.stop();
}

#[test]
fn a_reset_gives_sources_back_at_once_and_the_next_driver_hears_nothing_of_them() {
    let host = Host::start();
    let mut vm = Vm::connect(&host.socket);
    assert_eq!(vm.ask(&allocate(7, 2), 64)[..2], OK);
    vm.stop_ring(REQUESTS);
    vm.stop_ring(EVENTS);
    assert_eq!((host.functions[1].attached(), host.functions[1].enabled_for_sources()), (vec![], None));
    // The event queue first: nothing is told before it is known who is there.
    vm.start_ring(EVENTS);
    offer(&mut vm, &[64]);
    vm.start_ring(REQUESTS);
    assert_eq!(vm.ask(&sources(17, 0, 1), 8), NO_SOURCE);
    assert_eq!(vm.take_used(EVENTS), None);
    host.stop();
}

/// A driver can have made a multiple of 65,536 requests; its event queue tells that it is not new.
#[test]
fn a_request_queue_that_wrapped_around_is_no_new_driver_while_the_event_queue_goes_on() {
    let host = Host::start();
    let mut vm = Vm::connect_at(&host.socket, u16::MAX - 1);
    offer(&mut vm, &[16]);
    remove(&host, &mut vm, 0);
    assert_eq!(vm.wait_used(EVENTS), (0, 16));
    remove(&host, &mut vm, 1);
    let bases = vm.pause();
    assert_eq!(bases, [0, 1]);
    vm.go_on(bases);
    offer(&mut vm, &[16]);
    assert_eq!(vm.wait_used(EVENTS), (0, 16));
    assert_eq!(buffer(&vm, 0)[..16], GONE_7);
    host.stop();
}

#[test]
fn what_is_kept_for_a_source_goes_with_it_however_it_ends() {
    let function = SimFunction::new("wifi", KINDS[1].ids, 32, 0, 7);
    let host: Box<dyn HostFunction> = Box::new(function.clone());
    let bridge = Bridge::new(vec![(assigned(7, function.describe()), host)], QUOTA).unwrap();
    bridge.device().negotiated(3);
    let open = || bridge.deliveries().count();
    let ask = |request: &[u8]| bridge.answer(request, 1 << 16).bytes().to_vec();
    assert_eq!(ask(&allocate(7, 30))[..2], OK);
    assert_eq!(open(), 30);
    assert_eq!(ask(&sources(17, 3, 5)), [0; 8]);
    assert_eq!(open(), 25);
    bridge.stop();
    assert_eq!(open(), 0);
    bridge.reset();
    assert_eq!(ask(&allocate(7, 4))[..2], OK);
    bridge.device().revoked(FunctionId(7));
    bridge.look_after();
    assert_eq!(open(), 0);
    assert_eq!(ask(&sources(17, 0, 4)), [0; 8]);
    assert_eq!(ask(&allocate(7, 4))[..2], OK);
    function.remove();
    assert_eq!(ask(&get_messages(7, 1, 0, 1)), FUNCTION_GONE);
    assert_eq!(open(), 0);
}

/// Nobody asks for anything: the device finds out by itself.
#[test]
fn sources_that_lose_their_interrupts_end_aloud() {
    let host = Host::start();
    let mut vm = Vm::connect(&host.socket);
    offer(&mut vm, &[16, 16, 16, 16]);
    assert_eq!(vm.ask(&allocate(7, 1), 64)[..2], OK);
    host.functions[1].take_away();
    assert_eq!(vm.wait_used(EVENTS), (0, 16));
    assert_eq!(buffer(&vm, 0)[..16], revoked(7, 0));
    assert_eq!(vm.ask(&sources(17, 0, 1), 8), [0; 8]);
    // The enable bit of the function's own capability.
    assert_eq!(vm.ask(&allocate(7, 1), 64)[..2], OK);
    host.functions[1].enable(0);
    assert_eq!(vm.wait_used(EVENTS), (1, 16));
    assert_eq!(buffer(&vm, 1)[..16], revoked(7, 0));
    assert_eq!((host.functions[1].attached(), host.functions[1].enabled_for_sources()), (vec![], None));
    assert_eq!(vm.ask(&sources(17, 0, 1), 8), [0; 8]);
    // The VMM ends.
    host.functions[1].enable(32);
    let (owner, vmm) = std::io::pipe().unwrap();
    host.functions[1].owned_by(owner.into());
    assert_eq!(vm.ask(&allocate(7, 1), 64)[..2], OK);
    assert_eq!(vm.ask(&allocate(0, 1), 64)[..2], OK);
    drop(vmm);
    assert_eq!(vm.wait_used(EVENTS), (2, 16));
    assert_eq!(buffer(&vm, 2)[..16], revoked(7, 0));
    assert!(host.functions[0].fire(0), "the other function's are well");
    assert_eq!(vm.wait_used(EVENTS), (3, 16));
    assert_eq!(buffer(&vm, 3)[..16], interrupt(0, 1));
    host.stop();
}

#[test]
fn a_message_that_moved_is_told_unasked() {
    let host = Host::start();
    let mut vm = Vm::connect(&host.socket);
    offer(&mut vm, &[16, 16]);
    vm.ask(&get_messages(7, 1, 3, 10), 16 + 160);
    host.functions[1].move_messages();
    assert_eq!(vm.wait_used(EVENTS), (0, 16));
    assert_eq!(buffer(&vm, 0)[..16], [2, 0, 7, 0, 0, 0, 0, 0, 3, 0, 10, 0, 1, 0, 0, 0]);
    host.functions[1].remove();
    assert_eq!(vm.ask(&get_messages(7, 1, 3, 1), 32), FUNCTION_GONE);
    host.stop();
}

#[test]
fn a_storm_is_held_to_its_limit_and_holds_nobody_else_up() {
    const PER_SECOND: u32 = 50;
    let host = Host::with_limit(Some(PER_SECOND));
    let mut vm = Vm::connect(&host.socket);
    assert_eq!(vm.ask(&allocate(7, 1), 64)[..2], OK);
    assert_eq!(vm.ask(&allocate(0, 1), 64)[..2], OK);
    offer(&mut vm, &[16; 16]);
    let over = AtomicBool::new(false);
    let (began, mut storms) = (Instant::now(), 0);
    let next = |vm: &mut Vm| {
        let (head, _) = vm.wait_used(EVENTS);
        let event = buffer(vm, head.into());
        vm.submit(EVENTS, &[head]);
        event[4]
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The test may fail meanwhile, and is waiting for this then.
            while !over.load(Ordering::Relaxed) && began.elapsed() < 2 * LONG {
                host.functions[1].fire(0);
                std::thread::yield_now();
            }
        });
        // Each of them comes, however little of the machine is left for this test; and of the storm what it may.
        for round in 0.. {
            host.functions[0].fire(0);
            while next(&mut vm) == 0 {
                storms += 1;
            }
            if round >= 15 && storms >= 5 {
                break;
            }
            assert!(began.elapsed() < LONG, "{storms} of the storm came");
            std::thread::sleep(Duration::from_millis(30));
        }
        over.store(true, Ordering::Relaxed);
    });
    let most = 5 + (PER_SECOND as f32 * began.elapsed().as_secs_f32()) as u32 + 1;
    assert!(storms <= most, "{storms} of at most {most}");
    // What fired when it might not is told when it may.
    for _ in 0..2 {
        for _ in 0..20 {
            host.functions[1].fire(0);
        }
        assert_eq!(next(&mut vm), 0);
    }
    host.stop();
}
