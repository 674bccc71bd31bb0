// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control socket of a real daemon: what it tells, what it does, and what it does not let clients do to it.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test program: what fails here fails the test")]

mod common;

use common::*;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// ALLOCATE is refused for want of room.
const NO_SPACE: [u8; 8] = [12, 0, 0, 0, 0, 0, 0, 0];
const FUNCTION_GONE: [u8; 8] = [9, 0, 0, 0, 0, 0, 0, 0];

fn control_socket(daemon: &Daemon) -> PathBuf {
    daemon.directory.path().join("ctl.sock")
}

fn start(arguments: &[&str]) -> Daemon {
    let directory = TempDir::new().unwrap();
    start_in(directory, arguments)
}

fn start_in(directory: TempDir, arguments: &[&str]) -> Daemon {
    start_program(program(), directory, arguments)
}

fn start_program(mut command: Command, directory: TempDir, arguments: &[&str]) -> Daemon {
    let socket = directory.path().join("irq.sock");
    command.arg("--socket-path").arg(&socket).stdin(Stdio::null());
    command.arg("--control-socket").arg(directory.path().join("ctl.sock")).args(arguments);
    let daemon = Daemon::spawn(command, directory, socket);
    daemon.wait_for_line("waiting for a frontend");
    daemon
}

struct Client(BufReader<UnixStream>);

impl Client {
    fn connect(daemon: &Daemon) -> Self {
        let stream = UnixStream::connect(control_socket(daemon)).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        Self(BufReader::new(stream))
    }

    /// A client that was greeted.
    fn greeted(daemon: &Daemon) -> Self {
        let mut client = Self::connect(daemon);
        client.send("\n");
        let hello = client.next();
        assert_eq!(
            (&hello["v"], &hello["hello"]["daemon"]),
            (&json!(1), &json!("vhost-device-irq")),
            "{hello}"
        );
        client
    }

    fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    #[track_caller]
    fn next(&mut self) -> Value {
        let mut line = String::new();
        assert_ne!(self.0.read_line(&mut line).unwrap(), 0, "the daemon closed the connection");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    #[track_caller]
    fn ask(&mut self, request: Value) -> Value {
        self.send(&format!("{request}\n"));
        self.next()
    }

    #[track_caller]
    fn status(&mut self) -> Value {
        let answer = self.ask(json!({ "v": 1, "id": "s", "cmd": "status", "window_ms": 0 }));
        assert_eq!(answer["id"], "s");
        answer["ok"]["status"].clone()
    }

    /// What comes until the daemon closes the connection, which it has to.
    fn rest(&mut self) -> String {
        let mut rest = String::new();
        match self.0.read_to_string(&mut rest) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => panic!("the daemon does not close the connection: {error}"),
        }
        rest
    }
}

#[track_caller]
fn code(answer: &Value) -> &str {
    answer["error"]["code"].as_str().unwrap_or_else(|| panic!("{answer} is no refusal"))
}

fn ctl(socket: &Path, arguments: &[&str]) -> Output {
    program().arg("ctl").arg("--socket").arg(socket).args(arguments).output().unwrap()
}

#[track_caller]
fn printed(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[track_caller]
fn refused(output: &Output, code: i32) -> String {
    let message = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert_eq!(message.lines().count(), 1, "one error is one line: {message}");
    message
}

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

#[test]
fn status_tells_what_the_guest_did() {
    let daemon = start(&["--device", "sim:wcn6855,guest=00:06.0,id=7", "--max-sources", "40"]);
    let mut client = Client::greeted(&daemon);
    let status = client.status();
    assert_eq!(status["frontend"]["state"], "none");
    assert_eq!(status["functions"]["7"]["guest"], "0000:00:06.0");
    assert_eq!(status["functions"]["7"]["messages"], json!([]));
    assert_eq!(status["limits"]["max_sources"], 40);

    let mut vm = Vm::connect(&daemon.socket);
    assert_eq!(vm.ask(&get_messages(7, 1, 5, 2), 48).len(), 48);
    assert_eq!(vm.ask(&allocate(7, 3), 88).len(), 88);
    vm.ask(&sources(18, 1, 1), 8);
    assert_eq!(vm.ask(&get_messages(9, 1, 5, 2), 48), [4, 0, 0, 0, 0, 0, 0, 0]);
    let status = client.status();
    assert_eq!(status["frontend"]["state"], "running");
    assert_eq!(status["frontend"]["negotiated"], json!(["native", "event"]));
    let requests = &status["counts"]["requests"];
    assert_eq!(
        (&requests["get-messages"], &requests["allocate"], &requests["mask"]),
        (&json!(2), &json!(1), &json!(1))
    );
    assert_eq!(status["counts"]["replies"]["no-function"], 1);
    assert_eq!(status["counts"]["replies"]["ok"], 3);
    // Vectors 0 to 2 as sources, 5 and 6 as messages of native delivery.
    let address = |first: u64, count: u64, generation: u64| json!({"type": "MSI", "first": first, "count": count, "address": "0xfee03d78", "data": format!("{first:#06x}"), "generation": generation});
    assert_eq!(status["functions"]["7"]["messages"], json!([address(0, 3, 2), address(5, 2, 1)]));
    assert_eq!(status["functions"]["7"]["sources"], 3);
    assert_eq!(
        status["sources"]["1"],
        json!({"function": 7, "type": "MSI", "vector": 1, "masked": true, "pending": false, "revoked": false, "held_back": false, "fired": 0, "delivered": 0})
    );
    drop(vm);
    daemon.wait_for_line("the frontend left");
    assert_eq!(client.status()["sources"], json!({}));
    daemon.stop();
}

#[test]
fn a_function_is_attached_and_detached_while_the_guest_runs() {
    let daemon = start(&["--device", "sim:wcn6855"]);
    let mut client = Client::greeted(&daemon);
    let mut vm = Vm::connect(&daemon.socket);
    let listed = |vm: &mut Vm| vm.ask(&list_functions(0, 9), 16 + 9 * 32)[8];
    assert_eq!(listed(&mut vm), 1);
    let answer = client.ask(json!({"v": 1, "id": 4, "cmd": "attach", "device": "sim:igb,guest=00:07.0"}));
    assert_eq!(
        (&answer["id"], &answer["ok"]["function"], &answer["ok"]["event"]),
        (&json!(4), &json!(1), &json!(true))
    );
    assert_eq!(listed(&mut vm), 2);
    assert_eq!(vm.ask(&get_messages(1, 2, 3, 1), 32).len(), 32);
    assert_eq!(vm.ask(&allocate(1, 1), 40).len(), 40);

    // A buffer waits: the guest is told at once, not when it asks the next time.
    let table = vm.rings[EVENTS].descriptors();
    vm.descriptor(table, 0, (page(20), 64, WRITE, 0));
    vm.submit(EVENTS, &[0]);
    let answer = client.ask(json!({"v": 1, "cmd": "detach", "function": "sim:igb"}));
    assert_eq!(answer["ok"], json!({"function": 1, "name": "sim:igb", "sources": 1}));
    assert_eq!(vm.wait_used(EVENTS), (0, 16));
    assert_eq!(vm.read(page(20), 4), [4, 0, 1, 0]);
    assert_eq!(listed(&mut vm), 1);
    assert_eq!(vm.ask(&get_messages(1, 2, 3, 1), 32), FUNCTION_GONE);
    assert_eq!(vm.ask(&sources(17, 0, 1), 8)[0], 10, "its source is nobody's");

    // The same hardware is another function now, and a source has the id of the old one.
    let again = |spec: &str| json!({"v": 1, "cmd": "attach", "device": spec});
    assert_eq!(code(&client.ask(again("sim:igb,id=1"))), "exists");
    assert_eq!(client.ask(again("sim:igb"))["ok"]["function"], 2);
    let reply = vm.ask(&allocate(2, 1), 40);
    assert_eq!((reply.len(), &reply[16..20]), (40, &[0, 0, 0, 0][..]));
    assert_eq!(client.status()["sources"]["0"]["function"], 2);

    // With no source left nothing but the operator wakes the daemon.
    assert_eq!(vm.ask(&sources(17, 0, 1), 8)[0], 0);
    vm.submit(EVENTS, &[0]);
    assert_eq!(listed(&mut vm), 2);
    assert_eq!(client.ask(json!({"v": 1, "cmd": "detach", "function": 2}))["ok"]["sources"], 0);
    assert_eq!(vm.wait_used(EVENTS), (0, 16));
    assert_eq!(vm.read(page(20), 4), [4, 0, 2, 0]);
    daemon.stop();
}

#[test]
fn a_daemon_without_functions_gets_them_later() {
    let daemon = start(&[]);
    let mut vm = Vm::connect(&daemon.socket);
    assert_eq!(vm.ask(&list_functions(0, 9), 16 + 9 * 32)[8], 0);
    let mut client = Client::greeted(&daemon);
    assert_eq!(client.ask(json!({"v": 1, "cmd": "attach", "device": "sim:edu"}))["ok"]["event"], true);
    assert_eq!(vm.ask(&allocate(0, 1), 40).len(), 40);
    daemon.stop();
}

#[test]
fn what_cannot_be_attached_or_detached_is_said_why() {
    let daemon = start(&["--device", "sim:edu", "--device", "sim:edu"]);
    let mut client = Client::greeted(&daemon);
    for (request, expected, text) in [
        (json!({"v": 1, "cmd": "attach", "device": "sim:toaster"}), "bad-argument", "use one of sim:edu"),
        (json!({"v": 1, "cmd": "attach", "device": "fffe:ff:1f.7"}), "cannot-open", "`lspci -D` lists"),
        (json!({"v": 1, "cmd": "attach", "device": "sim:edu,id=1"}), "exists", "choose another id="),
        (json!({"v": 1, "cmd": "detach", "function": 2}), "not-found", "`status` lists"),
        (json!({"v": 1, "cmd": "detach", "function": "0000:00:01.0"}), "not-found", "`status` lists"),
        (json!({"v": 1, "cmd": "detach", "function": "sim:edu"}), "bad-argument", "give the id"),
    ] {
        let answer = client.ask(request.clone());
        assert_eq!(code(&answer), expected, "{request}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(text), "{answer}");
    }
    assert_eq!(client.status()["functions"].as_object().unwrap().len(), 2);
    daemon.stop();
}

#[test]
fn a_function_is_not_attached_that_has_more_sources_than_open_files_allow() {
    let program = program_with_files(64, 2 * (1 + 300) + 256);
    let daemon = start_program(program, TempDir::new().unwrap(), &["--device", "sim:edu"]);
    let mut client = Client::greeted(&daemon);
    let mut attach = |vectors| {
        let device = format!("sim:vectors={vectors},type=msix");
        client.ask(json!({"v": 1, "cmd": "attach", "device": device}))
    };
    let answer = attach(301);
    assert_eq!(code(&answer), "cannot-open", "{answer}");
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("302 interrupt sources need 860 open files, and this process may have 858"));
    assert_eq!(attach(300)["ok"]["vectors"]["msix"], 300);
    let mut vm = Vm::connect(&daemon.socket);
    assert_eq!(vm.ask(&allocate_of(1, 2, 0, 300), 16 + 24 * 300).len(), 16 + 24 * 300);
    daemon.stop();
}

#[test]
fn a_drained_guest_keeps_what_it_has_and_gets_no_more() {
    let daemon = start(&["--device", "sim:wcn6855"]);
    let mut client = Client::greeted(&daemon);
    let mut vm = Vm::connect(&daemon.socket);
    assert_eq!(vm.ask(&allocate(0, 2), 64).len(), 64);
    let answer = client.ask(json!({"v": 1, "cmd": "drain"}));
    assert_eq!(answer["ok"], json!({"draining": true, "sources": 2}));
    assert_eq!(vm.ask(&allocate(0, 1), 40), NO_SPACE);
    assert_eq!(vm.ask(&get_messages(0, 1, 5, 1), 32).len(), 32);
    let mut waiting = program();
    waiting.arg("ctl").arg("--socket").arg(control_socket(&daemon)).args(["drain", "--wait"]);
    let mut waiting = waiting.stdout(Stdio::piped()).spawn().unwrap();
    let mut said = [0; 10];
    waiting.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    assert!(waiting.try_wait().unwrap().is_none(), "it waits for the sources to go");
    vm.ask(&sources(17, 0, 2), 8);
    assert_eq!(wait_for_exit(&mut waiting).code(), Some(0));
    assert_eq!(client.ask(json!({"v": 1, "cmd": "drain", "on": false}))["ok"]["sources"], 0);
    assert_eq!(vm.ask(&allocate(0, 1), 40).len(), 40);
    daemon.stop();
}

#[test]
fn the_log_level_changes_at_once() {
    let daemon = start(&["--device", "sim:edu"]);
    let socket = control_socket(&daemon);
    assert_eq!(printed(&ctl(&socket, &["log-level"])), "info\n");
    assert_eq!(printed(&ctl(&socket, &["log-level", "error"])), "error\n");
    printed(&ctl(&socket, &["attach", "sim:igb"]));
    assert_eq!(printed(&ctl(&socket, &["log-level", "info"])), "info\n");
    printed(&ctl(&socket, &["attach", "sim:wcn6855"]));
    let first = daemon.wait_for_line("function ");
    assert!(first.contains("function 2"), "what came while the level was error was not logged: {first}");
    daemon.stop();
}

#[test]
fn watching_tells_what_changes_and_how_fast() {
    let daemon = start(&["--device", "sim:wcn6855"]);
    let mut vm = Vm::connect(&daemon.socket);
    let mut client = Client::greeted(&daemon);
    assert_eq!(
        client.ask(json!({"v": 1, "id": "w", "cmd": "watch", "interval_ms": 100}))["ok"]["interval_ms"],
        100
    );
    let all = client.next();
    assert_eq!((&all["id"], &all["event"]), (&json!("w"), &json!("status")));
    assert_eq!(all["status"]["counts"]["requests"]["list-functions"], 0);
    vm.ask(&list_functions(0, 1), 48);
    let deadline = Instant::now() + LONG;
    loop {
        let delta = client.next();
        assert_eq!((&delta["id"], &delta["event"]), (&json!("w"), &json!("delta")));
        assert!(delta["patch"]["functions"].is_null(), "what did not change is not told: {delta}");
        if delta["patch"]["counts"]["requests"] == json!({"list-functions": 1}) {
            // Both are rounded to a thousandth.
            let seconds = delta["rates"]["seconds"].as_f64().unwrap();
            let told = delta["rates"]["requests"].as_f64().unwrap() * seconds;
            assert!((told - 1.0).abs() < 0.02, "{delta}");
            break;
        }
        assert!(Instant::now() < deadline, "the request is not told");
    }
    // Other requests are served in between.
    client.send("{\"v\":1,\"id\":\"l\",\"cmd\":\"log-level\"}\n");
    while client.next()["id"] != "l" {}
    daemon.stop();
}

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
    let mut asked = 0;
    let ended = loop {
        assert!(Instant::now() < deadline, "the client is not disconnected after {asked} bytes");
        match deaf.0.get_mut().write(&question) {
            Ok(count) => asked += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                // Both directions are full. Everybody else is served all the while.
                let start = Instant::now();
                vm.expect_service();
                other.status();
                assert!(start.elapsed() < Duration::from_secs(2), "others wait for it");
                readable(deaf.0.get_ref(), Duration::from_millis(100));
            }
            Err(error) => break error,
        }
    };
    assert!(matches!(ended.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{ended}");
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
fn prometheus_finds_its_page() {
    let daemon = start(&["--device", "sim:wcn6855"]);
    let mut vm = Vm::connect(&daemon.socket);
    vm.ask(&allocate(0, 2), 64);
    let get = |path: &str| {
        let mut client = Client::connect(&daemon);
        client.send(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n"));
        client.rest()
    };
    let page = get("/metrics");
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
    let (head, body) = page.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
    for line in [
        "# TYPE virtio_irq_requests counter",
        "virtio_irq_requests_total{type=\"allocate\"} 1",
        "virtio_irq_sources{function=\"0\",name=\"sim:wcn6855\"} 2",
        "virtio_irq_source_fired_total{source=\"1\",function=\"0\",type=\"MSI\",vector=\"1\"} 0",
        "virtio_irq_frontend{state=\"running\"} 1",
        "virtio_irq_max_sources 2048",
    ] {
        assert!(body.lines().any(|other| other == line), "{line} in {body}");
    }
    assert!(body.ends_with("# EOF\n"));
    assert!(get("/").starts_with("HTTP/1.1 404"));
    daemon.stop();
}

#[test]
fn people_get_tables_and_programs_get_json() {
    let daemon = start(&["--device", "sim:wcn6855,guest=00:06.0"]);
    let socket = control_socket(&daemon);
    let mut vm = Vm::connect(&daemon.socket);
    vm.ask(&get_messages(0, 1, 0, 32), 16 + 16 * 32);
    let text = printed(&ctl(&socket, &["status"]));
    assert!(!text.contains('\x1b'), "{text}");
    assert!(text.contains("frontend running, 1 so far, negotiated native event\n"), "{text}");
    assert!(text.contains(" 0   sim:wcn6855  0000:00:06.0  17cb:1103  present "), "{text}");
    assert!(text.contains(" 0         MSI 0-31  0xfee00578  0x0000  1"), "{text}");
    let json: Value = serde_json::from_str(&printed(&ctl(&socket, &["--json", "status"]))).unwrap();
    assert_eq!(json["status"]["functions"]["0"]["messages"][0]["address"], "0xfee00578");
    let watched = printed(&ctl(&socket, &["watch", "--interval", "0.1", "--count", "2"]));
    assert_eq!(watched.lines().filter(|line| line.contains("frontend running")).count(), 2, "{watched}");
    assert!(printed(&ctl(&socket, &["attach", "sim:edu"])).starts_with("function 1: sim:edu, 1 MSI"));
    assert_eq!(
        printed(&ctl(&socket, &["detach", "1"])),
        "function 1: sim:edu is the guest's no more, and 0 sources of it ended\n"
    );
    daemon.stop();
}

#[test]
fn ctl_says_what_to_do_when_it_cannot_ask() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("ctl.sock");
    let message = refused(&ctl(&socket, &["status"]), 1);
    assert!(message.contains("start the daemon with --control-socket"), "{message}");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let message = refused(&ctl(&socket, &["status"]), 1);
    assert!(message.contains("the daemon that made it has ended; start it again"), "{message}");
    let daemon = start(&["--device", "sim:edu"]);
    // Another protocol: the frontend's socket.
    let message = refused(&ctl(&daemon.socket, &["status"]), 1);
    assert!(message.contains("irq.sock"), "{message}");
    let message = refused(&ctl(&control_socket(&daemon), &["detach", "7"]), 3);
    assert_eq!(message, "vhost-device-irq: there is no function 7: `status` lists those there are\n");
    refused_usage(&["watch", "--interval", "0"]);
    refused_usage(&["log-level", "loud"]);
    daemon.stop();
}

#[test]
fn ctl_says_who_may_connect() {
    let daemon = start(&["--device", "sim:edu"]);
    let socket = control_socket(&daemon);
    let mut command = program();
    command.arg("ctl").arg("--socket").arg(&socket).arg("status");
    // Permissions do not stop root.
    if rustix::process::geteuid().is_root() {
        command.uid(65534).gid(65534);
    } else {
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o000)).unwrap();
    }
    let message = refused(&command.output().unwrap(), 1);
    assert!(message.contains("run this as the user who started the daemon, or as root"), "{message}");
    daemon.stop();
}

#[test]
fn ctl_says_when_the_daemon_is_another_version() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("ctl.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let daemon = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut stream = BufReader::new(stream);
        stream.read_line(&mut String::new()).unwrap();
        stream.get_mut().write_all(b"{\"v\":2,\"hello\":{\"daemon\":\"\\u001b[2J\"}}\n").unwrap();
    });
    let message = refused(&ctl(&socket, &["status"]), 1);
    assert!(message.contains("speaks version 2 of the protocol and this program version 1: use the vhost-device-irq of the daemon"), "{message}");
    daemon.join().unwrap();
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

#[track_caller]
fn refused_usage(arguments: &[&str]) {
    let output = ctl(Path::new("/nonexistent"), arguments);
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_log_for_programs_is_json() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("irq.sock");
    let mut command = program();
    command.args(["--log-format", "json", "--device", "sim:edu", "--socket-path"]).arg(&socket);
    command.stdin(Stdio::null());
    let daemon = Daemon::spawn(command, directory, socket);
    let line = daemon.wait_for_line("waiting for a frontend");
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["level"], "INFO");
    assert!(line["timestamp"].as_str().unwrap().ends_with('Z'), "{line}");
    assert!(line["message"].as_str().unwrap().ends_with("irq.sock"), "{line}");
    daemon.stop();
    let output = program()
        .args(["--log-format", "json", "--device", "fffe:ff:1f.7", "--socket-path", "/nonexistent/irq.sock"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8(output.stderr).unwrap();
    let line: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!(line["level"], "ERROR");
    assert!(line["message"].as_str().unwrap().contains("`lspci -D` lists"), "{line}");
}

#[test]
fn one_failure_of_the_host_is_one_line_with_all_there_is_to_know() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("irq.sock");
    let mut command = program();
    command.args(["--log-format", "json", "--device", "sim:wcn6855", "--socket-path"]).arg(&socket);
    command.stdin(Stdio::null());
    let mut daemon = Daemon::spawn(command, directory, socket);
    daemon.wait_for_line("waiting for a frontend");
    let mut vm = Vm::connect(&daemon.socket);
    vm.expect_service();
    // As many descriptors as it has now, and no more.
    let open = std::fs::read_dir(format!("/proc/{}/fd", daemon.child.id())).unwrap().count() as u64;
    let limit = rustix::process::Rlimit { current: Some(open + 4), maximum: Some(open + 4) };
    rustix::process::prlimit(
        Some(rustix::process::Pid::from_child(&daemon.child)),
        rustix::process::Resource::Nofile,
        limit,
    )
    .unwrap();
    for _ in 0..20 {
        assert_eq!(vm.ask(&allocate(0, 32), 16 + 32 * 24), [8, 0, 0, 0, 0, 0, 0, 0]);
    }
    let line: Value = serde_json::from_str(&daemon.wait_for_line("eventfds")).unwrap();
    assert_eq!(
        (&line["level"], &line["function"], &line["operation"], &line["errno"]),
        (&json!("WARN"), &json!("sim:wcn6855"), &json!("make eventfds for its sources"), &json!(24))
    );
    assert_eq!(
        line["message"],
        "sim:wcn6855: cannot make eventfds for its sources: Too many open files (os error 24); raise the daemon's limit of \
         open files (LimitNOFILE=), or lower --max-sources"
    );
    vm.expect_service();
    daemon.signal(rustix::process::Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0));
    let rest: Vec<_> = daemon.lines.iter().collect();
    let lines = rest.iter().filter(|line| line.contains("eventfds")).count();
    assert_eq!(lines, 9, "of 20 failures 10 are told: {rest:?}");
}
