// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frontends that come and go, well and ill behaved, and a daemon that outlives them all.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test program: what fails here fails the test")]

mod common;

use common::*;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::Signal;
use std::fs;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use vmm_sys_util::eventfd::EventFd;

fn open_files(daemon: &Daemon) -> usize {
    fs::read_dir(format!("/proc/{}/fd", daemon.child.id())).unwrap().count()
}

fn threads(daemon: &Daemon) -> usize {
    fs::read_dir(format!("/proc/{}/task", daemon.child.id())).unwrap().count()
}

#[test]
fn are_served_one_after_another_without_a_trace() {
    let daemon = Daemon::start(&["sim:wcn6855"]);
    let mut first = None;
    for _ in 0..50 {
        let mut vm = Vm::connect(&daemon.socket);
        vm.expect_service();
        // The answer means that the rest of the set-up is done as well.
        vm.frontend.get_features().unwrap();
        let look = || (open_files(&daemon), threads(&daemon));
        let first = *first.get_or_insert_with(look);
        // A thread that was waited for is still seen for a moment. What stays is a leak.
        let deadline = Instant::now() + LONG;
        while look() != first {
            assert!(Instant::now() < deadline, "open files and threads: {first:?} became {:?}", look());
            std::thread::yield_now();
        }
    }
    daemon.stop();
}

#[test]
fn find_a_device_that_knows_nothing_of_their_predecessor() {
    let daemon = Daemon::start(&["sim:wcn6855"]);
    let vm = Vm::connect(&daemon.socket);
    drop(vm);
    // This one negotiates nothing of the device's own.
    let mut vm = Vm::prepare(&daemon.socket, VERSION_1 | PROTOCOL_FEATURES);
    vm.start_rings();
    assert_eq!(vm.ask(&get_messages(0, 1, 5, 1), 32), [1, 0, 0, 0, 0, 0, 0, 0]);
    daemon.stop();
}

#[test]
fn wait_for_the_one_before_them() {
    let daemon = Daemon::start(&["sim:wcn6855"]);
    let mut first = Vm::connect(&daemon.socket);
    let second = UnixStream::connect(&daemon.socket).unwrap();
    // GET_FEATURES, version 1, no payload.
    (&second).write_all(&[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    first.expect_service();
    assert!(!readable(&second, std::time::Duration::ZERO));
    drop(first);
    assert!(readable(&second, LONG), "the second one is served");
    daemon.stop();
}

#[test]
fn that_send_garbage_or_leave_in_the_middle_are_disconnected() {
    let daemon = Daemon::start(&["sim:wcn6855"]);
    let header = |request: u32, flags: u32, size: u32| [request, flags, size].map(u32::to_ne_bytes).concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", vec![]),
        ("one byte", vec![1]),
        ("half a header", header(1, 1, 0)[..6].to_vec()),
        ("a header whose payload never comes", header(2, 1, 8)),
        ("half a payload", [header(2, 1, 8), vec![0; 3]].concat()),
        ("zeros", vec![0; 64]),
        ("ones", vec![0xff; 4096]),
        ("an unknown request", header(250, 1, 0)),
        ("another version", header(1, 2, 0)),
        ("a greater size than any", [header(2, 1, u32::MAX), vec![0; 8000]].concat()),
        ("a memory table without files", [header(5, 1, 40), vec![1; 40]].concat()),
        ("a ring beyond the second", [header(8, 1, 8), vec![9, 0, 0, 0, 16, 0, 0, 0]].concat()),
        ("a ring of no size", [header(8, 1, 8), vec![0; 8]].concat()),
        ("a kick without a file", [header(12, 1, 8), vec![0; 8]].concat()),
        ("features that were not offered", [header(2, 1, 8), vec![0xff; 8]].concat()),
        ("text", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
    ];
    for (name, bytes) in cases {
        let mut stream = UnixStream::connect(&daemon.socket).unwrap();
        // The daemon may have hung up before the end.
        let _ = stream.write_all(&bytes);
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        drain(&mut stream);
        drop(stream);
        let mut vm = Vm::connect(&daemon.socket);
        vm.expect_service();
        eprintln!("{name}: the next frontend is served");
    }
    daemon.stop();
}

#[test]
fn whose_ring_is_misaligned_are_disconnected() {
    let daemon = Daemon::start(&["sim:wcn6855"]);
    let vm = Vm::connect(&daemon.socket);
    let ring = &vm.rings[REQUESTS];
    let config = vhost::VringConfigData {
        queue_max_size: SIZE,
        queue_size: SIZE,
        flags: 0,
        desc_table_addr: vm.host_address(ring.descriptors()) + 8,
        used_ring_addr: vm.host_address(ring.used()),
        avail_ring_addr: vm.host_address(ring.available()),
        log_addr: None,
    };
    let _ = vm.frontend.set_vring_addr(REQUESTS, &config);
    daemon.wait_for_line("the frontend was disconnected");
    drop(vm);
    Vm::connect(&daemon.socket).expect_service();
    daemon.stop();
}

#[test]
fn that_kick_with_something_else_than_an_eventfd_cost_nothing() {
    let daemon = Daemon::start(&["sim:wcn6855"]);
    let mut vm = Vm::connect(&daemon.socket);
    // The reading end of a pipe that nobody writes to is readable forever.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(writer);
    // SAFETY: the descriptor is owned by nothing else from here on.
    let pipe = unsafe { EventFd::from_raw_fd(OwnedFd::from(reader).into_raw_fd()) };
    vm.frontend.get_vring_base(EVENTS).unwrap();
    vm.frontend.set_vring_kick(EVENTS, &pipe).unwrap();
    vm.expect_service();
    vm.expect_service();
    wait_until_asleep(&daemon);
    daemon.stop();
}

#[test]
fn that_make_their_memory_shorter_lose_it() {
    let daemon = Daemon::start(&["sim:wcn6855"]);
    let mut vm = Vm::connect(&daemon.socket);
    vm.expect_service();
    let region = vm_memory::GuestMemoryBackend::iter(&vm.memory).next().unwrap();
    let file = vm_memory::GuestMemoryRegion::file_offset(region).unwrap().file();
    // From here on the rings are beyond the end of their file, for this process as well.
    file.set_len(0).unwrap();
    vm.kick(REQUESTS);
    daemon.wait_for_line("left alone until it is set up again");
    drop(vm);
    Vm::connect(&daemon.socket).expect_service();
    daemon.stop();
}

/// The flag that keeps the daemon from waiting is theirs as well.
#[test]
fn that_have_their_calls_wait_for_ever_get_no_more_of_them() {
    let daemon = Daemon::start(&["sim:wcn6855"]);
    let mut vm = Vm::connect(&daemon.socket);
    vm.expect_service();
    let call = vm.call(REQUESTS).try_clone_to_owned().unwrap();
    let flags = fcntl_getfl(&call).unwrap();
    fcntl_setfl(&call, flags - OFlags::NONBLOCK).unwrap();
    rustix::io::write(&call, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    vm.send(&list_functions(0, 1), 48);
    let began = Instant::now();
    while vm.take_used(REQUESTS).is_none() {
        assert!(began.elapsed() < LONG, "there is no answer");
        std::thread::yield_now();
    }
    // It waits for the worker, which has the ring, and has still to call.
    vm.stop_ring(REQUESTS);
    vm.start_ring(REQUESTS);
    fcntl_setfl(&call, flags).unwrap();
    rustix::io::read(&call, &mut [0; 8]).unwrap();
    vm.expect_service();
    daemon.stop();
}

/// They can say that they agreed on what was not offered: to show memory piece by piece.
#[test]
fn that_show_more_memory_regions_than_there_are_slots_are_disconnected() {
    let daemon = Daemon::start(&["sim:wcn6855"]);
    let mut vm = Vm::prepare(&daemon.socket, !0);
    let slots = VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS | VhostUserProtocolFeatures::REPLY_ACK;
    vm.frontend.set_protocol_features(slots).unwrap();
    vm.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    let file = fs::File::from(rustix::fs::memfd_create("more", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.set_len(0x1000).unwrap();
    let refused = (1..40).find(|number| {
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: BASE + 0x1000_0000 * number,
            memory_size: 0x1000,
            userspace_addr: 0x1000_0000 * number,
            mmap_offset: 0,
            mmap_handle: file.as_raw_fd(),
        };
        vm.frontend.add_mem_region(&region).is_err()
    });
    assert_eq!(refused, Some(32), "with the region that there was, they are one too many");
    Vm::connect(&daemon.socket).expect_service();
    daemon.stop();
}

/// Waits until every thread of the daemon sleeps, and goes on doing so: one that is busy sleeps at no time.
fn wait_until_asleep(daemon: &Daemon) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut seen_asleep = 0;
    while seen_asleep < 20 {
        assert!(Instant::now() < deadline, "the daemon is busy");
        let tasks = fs::read_dir(format!("/proc/{}/task", daemon.child.id())).unwrap();
        let asleep =
            tasks.map(|task| fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default());
        let asleep = asleep.into_iter().all(|stat| stat.rsplit(") ").next().unwrap().starts_with('S'));
        seen_asleep = if asleep { seen_asleep + 1 } else { 0 };
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Number of times that any thread of the daemon was woken.
fn context_switches(daemon: &Daemon) -> u64 {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{}/task", daemon.child.id())).unwrap() {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        for line in status.lines() {
            if let Some(count) = line.strip_prefix("voluntary_ctxt_switches:") {
                sum += count.trim().parse::<u64>().unwrap();
            }
        }
    }
    sum
}

#[test]
fn a_daemon_that_nobody_asks_sleeps() {
    let daemon = Daemon::start(&["sim:wcn6855"]);
    let mut vm = Vm::connect(&daemon.socket);
    vm.expect_service();
    wait_until_asleep(&daemon);
    // Time itself is what is measured here: nothing may happen in it.
    let before = context_switches(&daemon);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(context_switches(&daemon), before, "wakeups of an idle daemon");
    daemon.stop();
}

mod a_signal {
    use super::*;

    #[track_caller]
    fn ends(mut daemon: Daemon, signal: Signal) {
        daemon.signal(signal);
        assert_eq!(daemon.wait().code(), Some(0));
        assert!(!daemon.socket.exists());
    }

    #[test]
    fn ends_a_daemon_that_waits() {
        ends(Daemon::start(&["sim:edu"]), Signal::TERM);
        ends(Daemon::start(&["sim:edu"]), Signal::INT);
    }

    #[test]
    fn ends_a_daemon_that_serves() {
        let daemon = Daemon::start(&["sim:wcn6855"]);
        let mut vm = Vm::connect(&daemon.socket);
        vm.expect_service();
        ends(daemon, Signal::TERM);
    }

    #[test]
    fn ends_a_daemon_that_is_left_waiting_in_a_message() {
        let daemon = Daemon::start(&["sim:wcn6855"]);
        let mut stream = UnixStream::connect(&daemon.socket).unwrap();
        stream.write_all(&[1, 0, 0, 0, 1]).unwrap();
        daemon.wait_for_line("a frontend connected");
        ends(daemon, Signal::INT);
    }
}

mod the_socket {
    use super::*;

    fn start_at(directory: TempDir) -> Daemon {
        let socket = directory.path().join("irq.sock");
        let mut command = program();
        command.arg("--socket-path").arg(&socket).args(["--device", "sim:wcn6855"]);
        Daemon::spawn(command, directory, socket)
    }

    #[test]
    fn is_for_its_owner_only() {
        let daemon = Daemon::start(&["sim:edu"]);
        let mode = fs::symlink_metadata(&daemon.socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        daemon.stop();
    }

    #[test]
    fn of_a_process_that_ended_is_replaced() {
        let directory = TempDir::new().unwrap();
        drop(UnixListener::bind(directory.path().join("irq.sock")).unwrap());
        let daemon = start_at(directory);
        daemon.wait_for_line("waiting for a frontend");
        Vm::connect(&daemon.socket).expect_service();
        daemon.stop();
    }

    #[test]
    fn of_a_living_process_is_not_touched() {
        let first = Daemon::start(&["sim:wcn6855"]);
        let mut command = program();
        command.arg("--socket-path").arg(&first.socket).args(["--device", "sim:edu"]);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let message = String::from_utf8(output.stderr).unwrap();
        let expected = format!(
            "vhost-device-irq: {} is in use by a running process: stop that one or choose another path",
            first.socket.display()
        );
        assert_eq!(message.lines().last(), Some(&*expected));
        Vm::connect(&first.socket).expect_service();
        first.stop();
    }

    #[test]
    fn does_not_replace_anything_else() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("irq.sock");
        fs::write(&path, "precious").unwrap();
        let mut daemon = start_at(directory);
        daemon.wait_for_line("exists and is not a socket");
        assert_eq!(daemon.wait().code(), Some(1));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn that_took_the_place_of_ours_stays() {
        let mut daemon = Daemon::start(&["sim:edu"]);
        fs::remove_file(&daemon.socket).unwrap();
        let _other = UnixListener::bind(&daemon.socket).unwrap();
        daemon.signal(Signal::TERM);
        assert_eq!(daemon.wait().code(), Some(0));
        assert!(daemon.socket.exists());
    }
}

mod an_inherited_socket {
    use super::*;

    /// The daemon with `socket` as its standard input, which is descriptor 0.
    fn start_with(socket: OwnedFd) -> Daemon {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("none");
        let mut command = program();
        command.args(["--fd", "0", "--device", "sim:wcn6855"]).stdin(Stdio::from(socket));
        Daemon::spawn(command, directory, path)
    }

    #[test]
    fn that_is_connected_serves_one_frontend() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut daemon = start_with(theirs.into());
        let mut vm = Vm::prepare_over(ours, !0);
        vm.start_rings();
        vm.expect_service();
        drop(vm);
        assert_eq!(daemon.wait().code(), Some(0));
    }

    #[test]
    fn that_is_connected_ends_on_a_signal() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let daemon = start_with(theirs.into());
        let mut vm = Vm::prepare_over(ours, !0);
        vm.start_rings();
        vm.expect_service();
        daemon.stop();
    }

    #[test]
    fn that_listens_serves_one_after_another() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("listening");
        let daemon = start_with(UnixListener::bind(&path).unwrap().into());
        for _ in 0..2 {
            Vm::connect(&path).expect_service();
        }
        daemon.stop();
        assert!(path.exists(), "it is not ours to remove");
    }

    #[test]
    fn that_is_none_is_refused() {
        for (fd, stdin) in [("0", Stdio::null()), ("99", Stdio::null())] {
            let output = program().args(["--fd", fd, "--device", "sim:edu"]).stdin(stdin).output().unwrap();
            assert_eq!(output.status.code(), Some(1));
            let message = String::from_utf8(output.stderr).unwrap();
            assert!(message.contains(&format!("--fd {fd} is not an open Unix stream socket")), "{message}");
        }
    }
}
