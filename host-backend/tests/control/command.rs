// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vhost-device-irq ctl`.

use crate::client::{control_socket, ctl, printed, refused, start};
use crate::common::{Vm, get_messages, program};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use tempfile::TempDir;

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

#[track_caller]
fn refused_usage(arguments: &[&str]) {
    let output = ctl(Path::new("/nonexistent"), arguments);
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
}
