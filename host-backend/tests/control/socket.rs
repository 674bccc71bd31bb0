// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The socket's file, and what serves it.

use crate::client::{Client, control_socket, start, start_in};
use crate::common::{Daemon, LONG, program};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::time::Instant;
use tempfile::TempDir;

fn threads(daemon: &Daemon) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.child.id())).unwrap();
    let names = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap());
    let mut names: Vec<_> = names.map(|name| name.trim().to_owned()).collect();
    names.sort();
    names
}

/// A thread gives itself its name when it first runs, which can be after the daemon says that it is ready.
#[track_caller]
fn wait_for_threads(daemon: &Daemon, expected: &[&str]) {
    let deadline = Instant::now() + LONG;
    while threads(daemon) != expected {
        assert!(Instant::now() < deadline, "the threads are {:?}", threads(daemon));
        std::thread::yield_now();
    }
}

#[test]
fn the_socket_is_for_its_owner_and_goes_with_the_daemon() {
    let daemon = start(&["--device", "sim:edu"]);
    let socket = control_socket(&daemon);
    let file = std::fs::metadata(&socket).unwrap();
    assert!(file.file_type().is_socket());
    assert_eq!(file.mode() & 0o777, 0o600);
    wait_for_threads(&daemon, &["control", "signals", "vhost-device-ir"]);
    let mut daemon = daemon;
    daemon.signal(rustix::process::Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn without_the_option_there_is_no_thread_for_it() {
    let daemon = Daemon::start(&["sim:edu"]);
    wait_for_threads(&daemon, &["signals", "vhost-device-ir"]);
    daemon.stop();
}

#[test]
fn a_socket_that_a_killed_daemon_left_is_replaced_and_a_living_ones_is_not() {
    let mut daemon = start(&["--device", "sim:edu"]);
    let socket = control_socket(&daemon);
    let second = program()
        .args(["--device", "sim:edu", "--socket-path"])
        .arg(daemon.directory.path().join("other.sock"))
        .arg("--control-socket")
        .arg(&socket)
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    let message = String::from_utf8(second.stderr).unwrap();
    assert!(message.contains("ctl.sock is in use by a running process"), "{message}");
    daemon.child.kill().unwrap();
    daemon.wait();
    assert!(socket.exists());
    let directory = std::mem::replace(&mut daemon.directory, TempDir::new().unwrap());
    let successor = start_in(directory, &["--device", "sim:igb"]);
    assert_eq!(Client::greeted(&successor).status()["functions"]["0"]["name"], "sim:igb");
    successor.stop();
}
