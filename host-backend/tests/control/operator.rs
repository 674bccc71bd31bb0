// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What clients change.

use crate::client::{Client, code, control_socket, ctl, printed, start, start_program};
use crate::common::*;
use serde_json::json;
use std::io::Read;
use std::process::Stdio;
use tempfile::TempDir;

/// ALLOCATE is refused for want of room.
const NO_SPACE: [u8; 8] = [12, 0, 0, 0, 0, 0, 0, 0];

const FUNCTION_GONE: [u8; 8] = [9, 0, 0, 0, 0, 0, 0, 0];

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
