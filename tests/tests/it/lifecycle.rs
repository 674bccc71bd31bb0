// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Beginning and end of the daemon's process.

use rustix::process::Signal;
use std::os::unix::process::ExitStatusExt;
use virtio_irq_tests::guest::{DATA, Desc, REPLY};
use virtio_irq_tests::{Daemon, Guest, Link};

#[test]
fn a_signal_ends_an_idle_daemon_at_once_and_removes_the_socket() {
    for signal in [Signal::TERM, Signal::INT] {
        let daemon = Daemon::start(&["--device", "sim:edu"]);
        let socket = daemon.socket().to_owned();
        assert!(socket.exists());
        daemon.signal(signal);
        let (status, log) = daemon.wait();
        assert_eq!((status.code(), status.signal()), (Some(0), None), "{signal:?}: {log}");
        assert!(!socket.exists(), "{signal:?}");
    }
}

#[test]
fn a_signal_ends_a_daemon_in_the_middle_of_its_work() {
    // A guest that is running, with a request in flight.
    let daemon = Daemon::start(&["--device", "sim:edu"]);
    let socket = daemon.socket().to_owned();
    let mut guest = Guest::boot(&socket).unwrap();
    guest.lay_out(&[1; 16], 64);
    guest.chain(0, &[Desc::readable(DATA, 16), Desc::writable(REPLY, 64)]);
    let (status, log) = daemon.terminate();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!socket.exists());

    // A frontend that has said nothing, and one that waits behind it.
    let daemon = Daemon::start(&["--device", "sim:edu"]);
    let _silent = Link::connect(daemon.socket()).unwrap();
    let _waiting = Link::connect(daemon.socket()).unwrap();
    let (status, log) = daemon.terminate();
    assert_eq!(status.code(), Some(0), "{log}");

    // A frontend in the middle of a message.
    let daemon = Daemon::start(&["--device", "sim:edu"]);
    let link = Link::connect(daemon.socket()).unwrap();
    link.send(&Link::header(1, 1, 8)[..7], &[]).unwrap();
    let (status, log) = daemon.terminate();
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn a_daemon_that_was_killed_is_replaced_at_the_same_socket() {
    let daemon = Daemon::start(&["--device", "sim:edu"]);
    let mut driver = daemon.connect().unwrap();
    driver.functions().unwrap();
    let successor = daemon.kill_and_replace(&["--device", "sim:wcn7850"]);
    assert_eq!(successor.connect().unwrap().functions().unwrap()[0].msi_count, 32);
}
