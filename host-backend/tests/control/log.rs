// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The daemon's log.

use crate::common::*;
use serde_json::{Value, json};
use std::process::Stdio;
use tempfile::TempDir;

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
