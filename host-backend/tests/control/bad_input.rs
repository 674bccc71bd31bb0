// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What clients cannot do to the daemon, nor to each other.

use crate::client::{Client, code, control_socket, ctl, refused, start};
use crate::common::{Daemon, LONG, Vm, readable};
use serde_json::{Value, json};
use std::io::{ErrorKind, Write};
use std::time::{Duration, Instant};

#[test]
fn a_line_that_is_no_request_gets_an_error_and_one_that_is_no_json_ends_it() {
    let daemon = start(&["--device", "sim:edu"]);
    let mut client = Client::greeted(&daemon);
    assert_eq!(code(&client.ask(json!({"v": 1, "cmd": "reboot"}))), "unknown-command");
    let answer = client.ask(json!({"v": 7, "id": 3, "cmd": "status"}));
    assert_eq!((code(&answer), &answer["id"]), ("bad-version", &json!(3)));
    assert_eq!(client.status()["daemon"]["control_clients"], 1);
    for garbage in ["hello\n", "{\"v\":1,\"cmd\":\"status\"\n", "\u{1b}[2J\0\n", "[[[[\n"] {
        let mut client = Client::greeted(&daemon);
        client.send(garbage);
        assert_eq!(code(&client.next()), "bad-json", "{garbage:?}");
        assert_eq!(client.rest(), "");
    }
    let mut client = Client::greeted(&daemon);
    client.0.get_mut().write_all(b"\xff\xfe\n").unwrap();
    assert_eq!(code(&client.next()), "bad-json");
    assert_eq!(client.rest(), "");
    daemon.stop();
}

#[test]
fn half_a_line_is_waited_for_and_not_for_ever() {
    let daemon = start(&["--device", "sim:edu"]);
    let mut slow = Client::greeted(&daemon);
    slow.send("{\"v\":1,\"id\":1,");
    let mut other = Client::greeted(&daemon);
    other.status();
    slow.send("\"cmd\":\"log-level\"}\n{\"v\":1,");
    assert_eq!(slow.next()["ok"]["level"], "info");
    // One that leaves in the middle of a line.
    let mut leaving = Client::greeted(&daemon);
    leaving.send("{\"v\":1,");
    leaving.0.get_mut().shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(code(&leaving.next()), "bad-json");
    assert_eq!(code(&slow.next()), "too-slow");
    assert_eq!(slow.rest(), "");
    daemon.stop();
}

#[test]
fn ten_megabytes_without_a_newline_are_not_kept() {
    let daemon = start(&["--device", "sim:edu"]);
    let before = resident_kib(&daemon);
    let mut client = Client::connect(&daemon);
    let chunk = [b'x'; 1 << 16];
    let mut sent = 0;
    while sent < 10 << 20 {
        match client.0.get_mut().write(&chunk) {
            Ok(count) => sent += count,
            Err(error) => {
                assert!(
                    matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset),
                    "{error}"
                );
                break;
            }
        }
    }
    assert!(sent < 10 << 20, "the daemon took all of it");
    let line = client.rest();
    let answer: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
    assert_eq!(code(&answer), "too-long");
    let grown = resident_kib(&daemon).saturating_sub(before);
    assert!(grown < 1024, "{grown} KiB more");
    daemon.stop();
}

fn resident_kib(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn a_client_that_never_reads_is_disconnected_and_keeps_nobody_waiting() {
    let daemon = start(&["--device", "sim:wcn6855"]);
    let mut vm = Vm::connect(&daemon.socket);
    let mut deaf = Client::greeted(&daemon);
    let mut other = Client::greeted(&daemon);
    deaf.0.get_mut().set_nonblocking(true).unwrap();
    // More questions than their answers find room for.
    let question = b"{\"v\":1,\"cmd\":\"status\",\"window_ms\":0}\n".repeat(100);
    let deadline = Instant::now() + LONG;
    let (mut asked, mut served_meanwhile) = (0, false);
    let ended = loop {
        assert!(Instant::now() < deadline, "the client is not disconnected after {asked} bytes");
        match deaf.0.get_mut().write(&question) {
            Ok(count) => asked += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                // Everybody else is served all the while, also when both directions are full: it is not told any more then, and
                // not disconnected yet.
                let told = || rustix::io::ioctl_fionread(deaf.0.get_ref()).unwrap();
                let before = told();
                vm.expect_service();
                let clients = other.status()["daemon"]["control_clients"].clone();
                served_meanwhile |= clients == 2 && told() == before;
                readable(deaf.0.get_ref(), Duration::from_millis(100));
            }
            Err(error) => break error,
        }
    };
    assert!(matches!(ended.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{ended}");
    assert!(served_meanwhile, "others wait for it");
    while other.status()["daemon"]["control_clients"] != 1 {
        assert!(Instant::now() < deadline, "its place stays taken");
    }
    daemon.stop();
}

#[test]
fn a_hundred_clients_are_served_and_the_one_too_many_is_told() {
    let daemon = start(&["--device", "sim:wcn6855"]);
    let mut vm = Vm::connect(&daemon.socket);
    let mut clients: Vec<_> = (0..128).map(|_| Client::greeted(&daemon)).collect();
    for client in &mut clients {
        client.send("{\"v\":1,\"cmd\":\"watch\",\"interval_ms\":100}\n");
    }
    let mut extra = Client::connect(&daemon);
    assert_eq!(code(&extra.next()), "too-many-clients");
    assert_eq!(extra.rest(), "");
    let message = refused(&ctl(&control_socket(&daemon), &["status"]), 3);
    assert!(message.contains("128 clients are connected"), "{message}");
    for _ in 0..100 {
        vm.expect_service();
    }
    for client in &mut clients {
        assert_eq!(client.next()["ok"]["interval_ms"], 100);
        assert_eq!(client.next()["event"], "status");
        assert_eq!(client.next()["event"], "delta");
    }
    drop(clients.split_off(1));
    let client = &mut clients[0];
    client.send("{\"v\":1,\"id\":\"n\",\"cmd\":\"status\",\"window_ms\":0}\n");
    let deadline = Instant::now() + LONG;
    loop {
        let answer = client.next();
        if answer["id"] == "n" {
            if answer["ok"]["status"]["daemon"]["control_clients"] == 1 {
                break;
            }
            client.send("{\"v\":1,\"id\":\"n\",\"cmd\":\"status\",\"window_ms\":0}\n");
        }
        assert!(Instant::now() < deadline, "the places of those who left stay taken");
    }
    daemon.stop();
}

#[test]
fn a_thousand_clients_that_come_and_go_change_nothing() {
    let daemon = start(&["--device", "sim:wcn6855"]);
    let mut vm = Vm::connect(&daemon.socket);
    let mut other = Client::greeted(&daemon);
    let sockets = || {
        let links = std::fs::read_dir(format!("/proc/{}/fd", daemon.child.id())).unwrap();
        let targets = links.filter_map(|link| std::fs::read_link(link.unwrap().path()).ok());
        targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
    };
    vm.expect_service();
    let before = sockets();
    for round in 0..1000 {
        let mut client = Client::connect(&daemon);
        // Some say something first, and nobody waits for an answer.
        let said: &[u8] =
            [&b""[..], b"{\"v\":1,\"cmd\":\"watch\"}\n", b"GET /metrics HTTP/1.1\r\n", b"\xff"][round % 4];
        // One too many is turned away before it says anything.
        let _ = client.0.get_mut().write_all(said);
        if round % 100 == 0 {
            vm.expect_service();
        }
    }
    let deadline = Instant::now() + LONG;
    while other.status()["daemon"]["control_clients"] != 1 || sockets() > before {
        assert!(Instant::now() < deadline, "{before} sockets became {}", sockets());
    }
    vm.expect_service();
    daemon.stop();
}

#[test]
fn clients_cost_nothing_while_nobody_asks() {
    let daemon = start(&["--device", "sim:edu"]);
    let _clients: Vec<_> = (0..10).map(|_| Client::greeted(&daemon)).collect();
    let switches = || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.child.id())).unwrap();
        let count = |task: std::io::Result<std::fs::DirEntry>| -> u64 {
            let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
            line.trim().parse().unwrap()
        };
        tasks.map(count).sum::<u64>()
    };
    // Awaits the daemon going to sleep: two looks in a row that see the same.
    let deadline = Instant::now() + LONG;
    let mut before = switches();
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let now = switches();
        if now == before {
            break;
        }
        assert!(Instant::now() < deadline, "the daemon does not go to sleep");
        before = now;
    }
    daemon.stop();
}

#[test]
fn what_a_client_sends_never_reaches_a_terminal_raw() {
    let daemon = start(&["--device", "sim:edu", "--log-level", "debug"]);
    let socket = control_socket(&daemon);
    let evil = "\u{1b}[2J\u{202e}\u{7}";
    for arguments in [["attach", evil], ["detach", evil]] {
        let output = ctl(&socket, &arguments);
        assert!(matches!(output.status.code(), Some(2 | 3)), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!said.contains(['\u{1b}', '\u{202e}', '\u{7}']), "{said:?}");
        assert!(said.contains("[2J"), "{said:?}");
    }
    daemon.stop();
}
