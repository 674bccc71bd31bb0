// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A front end that shares no code with this project, written from the specification, meets the daemon.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use virtio_irq_proto::SourceId;
use virtio_irq_tests::Daemon;

const CLIENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/interop/first_contact.py");
const ANNEX: &str = include_str!("../../../spec/annex-vhost-user.md");

/// The line after which the client waits for an interrupt of its second source.
const WAITS: &str = "7. The function writes the second message";

/// What the client prints when it meets the daemon.
fn session() -> String {
    let daemon = Daemon::start(&["--device", "sim:wcn6855,guest=00:06.0", "--device", "sim:igb"]);
    // Its eventfds and memory end with it, so a client that hangs ends when the daemon does.
    let mut client = Command::new("timeout")
        .args(["20", "python3"])
        .arg(Path::new(CLIENT))
        .arg(daemon.socket())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("timeout(1) can be started");
    let output = client.stdout.take().expect("standard output is a pipe");
    let mut seen = String::new();
    for line in BufReader::new(output).lines() {
        let line = line.unwrap();
        seen += &line;
        seen.push('\n');
        if line == WAITS {
            daemon.triggers().fire(SourceId(1));
        }
    }
    let status = client.wait().unwrap();
    assert!(status.success(), "the client needs python3 (3.10 or later) and ends with {status}:\n{seen}");
    seen
}

#[test]
fn a_client_written_from_the_text_works_and_the_session_in_the_text_is_what_happens() {
    let (_, rest) = ANNEX.split_once("\n```text\n").expect("the annex has a session");
    let (recorded, _) = rest.split_once("\n```\n").expect("the session ends");
    let happened = session();
    assert_eq!(
        recorded,
        happened.trim(),
        "to record it anew, replace the block in the annex by:\n{happened}"
    );
}
