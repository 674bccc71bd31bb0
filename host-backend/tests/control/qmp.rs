// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A daemon that asks a VMM who does not answer as QEMU does. The guest is served all the while.

use crate::client::{Client, control_socket, ctl, printed, start_in};
use crate::common::{Daemon, LONG, Vm, wait_for_exit};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const GREETING: &[u8] = b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n";

/// A daemon with one simulated function, which asks at a socket where `qmp` listens once.
fn asks(qmp: impl FnOnce(UnixStream) + Send + 'static) -> (Daemon, JoinHandle<()>) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("qmp.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        qmp(stream);
        // Whoever comes again, with the next start of a driver, meets silence.
        while let Ok((stream, _)) = listener.accept() {
            if BufReader::new(stream).read_line(&mut String::new()).is_err() {
                break;
            }
        }
    });
    let daemon = start_in(directory, &["--device", "sim:wcn6855", "--qmp", path.to_str().unwrap()]);
    (daemon, server)
}

/// Waits until the daemon has found out that something is wrong, with a guest being served.
#[track_caller]
fn problem(daemon: &Daemon) -> String {
    let mut vm = Vm::connect(&daemon.socket);
    let mut client = Client::greeted(daemon);
    let deadline = Instant::now() + LONG;
    loop {
        vm.expect_service();
        let vmm = client.status()["vmm"].clone();
        assert!(vmm["qmp"].as_str().unwrap().ends_with("qmp.sock"), "{vmm}");
        if let Some(problem) = vmm["problems"][0].as_str() {
            assert_eq!(vmm["process"], serde_json::Value::Null);
            return problem.to_owned();
        }
        assert!(Instant::now() < deadline, "nothing is found out: {vmm}");
    }
}

#[test]
fn one_that_lies_is_told_apart_and_the_guest_is_served() {
    let (daemon, _) = asks(|mut stream| stream.write_all(b"{\"hello\": \"\\u001b[2J\"}\n").unwrap());
    let problem = problem(&daemon);
    assert!(problem.contains("is no QMP socket of QEMU: it says"), "{problem}");
    assert!(!problem.contains('\u{1b}'), "{problem}");
    daemon.stop();
}

#[test]
fn one_that_closes_is_told_and_the_guest_is_served() {
    let (daemon, _) = asks(|mut stream| stream.write_all(GREETING).unwrap());
    let problem = problem(&daemon);
    assert!(problem.contains("QMP serves one client at a time, end the other one"), "{problem}");
    let status = printed(&ctl(&control_socket(&daemon), &["status"]));
    assert!(status.contains("no VMM is known by "), "{status}");
    assert!(status.contains("end the other one"), "{status}");
    daemon.stop();
}

#[test]
fn one_that_stalls_keeps_neither_the_guest_nor_the_end_waiting() {
    let (said, heard) = std::sync::mpsc::channel();
    let (mut daemon, _) = asks(move |mut stream| {
        stream.write_all(GREETING).unwrap();
        let mut requests = BufReader::new(stream);
        requests.read_line(&mut String::new()).unwrap();
        said.send(()).unwrap();
        // It says nothing to that, until the daemon leaves.
        match requests.read_line(&mut String::new()) {
            Ok(count) => assert_eq!(count, 0),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    });
    let mut vm = Vm::connect(&daemon.socket);
    heard.recv_timeout(LONG).unwrap();
    let start = Instant::now();
    vm.expect_service();
    Client::greeted(&daemon).status();
    // A frontend's end and the next one's beginning.
    drop(vm);
    daemon.wait_for_line("the frontend left");
    Vm::connect(&daemon.socket).expect_service();
    daemon.signal(rustix::process::Signal::TERM);
    assert_eq!(wait_for_exit(&mut daemon.child).code(), Some(0));
    // QEMU may take longer to answer.
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}

#[test]
fn one_that_is_not_there_is_told() {
    let directory = TempDir::new().unwrap();
    let daemon = start_in(directory, &["--qmp", "/nonexistent/qmp.sock"]);
    let mut vm = Vm::connect(&daemon.socket);
    let line = daemon.wait_for_line("cannot connect to QEMU");
    assert!(line.ends_with("start it with -qmp unix:/nonexistent/qmp.sock,server=on,wait=off"), "{line}");
    assert_eq!(vm.ask(&crate::common::list_functions(0, 9), 16 + 9 * 32)[8], 0, "it has no function");
    daemon.stop();
}
