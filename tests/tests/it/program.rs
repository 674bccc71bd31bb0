// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `virtio-irq-guest` as its users see it.

use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output};
use virtio_irq_proto::SourceId;
use virtio_irq_tests::Daemon;
use virtio_irq_tests::program::{Profile, build};

fn guest(socket: &Path, arguments: &[&str]) -> Output {
    let program = build("virtio-irq-userspace", "virtio-irq-guest", Profile::Debug);
    Command::new(program).arg("--socket-path").arg(socket).args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn failure(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn people_get_tables() {
    let daemon = Daemon::start(&["--device", "sim:wcn6855,guest=00:06.0", "--device", "sim:igb"]);
    let list = stdout(&guest(daemon.socket(), &["list"]));
    let expected = "\
ID  GUEST ADDRESS  PCI IDS    CLASS   INTX  MSI  MSI-X  FLAGS
0   0000:00:06.0   17cb:1103  028000  1     32   0      isolated,stable,native,event
1   -              8086:10c9  020000  1     1    10     isolated,stable,native,event
";
    assert_eq!(list, expected);
    let messages = stdout(&guest(
        daemon.socket(),
        &["messages", "--address", "00:06.0", "--first", "3", "--count", "2"],
    ));
    let expected = "\
VECTOR  ADDRESS             DATA        GENERATION
MSI 3   0x00000000fee00578  0x00000003  1
MSI 4   0x00000000fee00578  0x00000004  1
";
    assert_eq!(messages, expected);
    let block = stdout(&guest(daemon.socket(), &["block", "--function", "0", "-n", "32"]));
    assert!(block.contains("MSI 0-31  0x00000000fee00578  0x00000000"), "{block}");
}

#[test]
fn programs_get_json() {
    let daemon = Daemon::start(&["--device", "sim:wcn6855,guest=00:06.0,id=5"]);
    let parse = |arguments: &[&str]| -> Value {
        serde_json::from_str(&stdout(&guest(daemon.socket(), arguments))).unwrap()
    };
    let list = parse(&["--json", "list"]);
    assert_eq!(list[0]["id"], 5);
    assert_eq!(list[0]["guest_address"], "0000:00:06.0");
    assert_eq!(list[0]["device"], "1103");
    assert_eq!(list[0]["event"], true);
    let messages = parse(&["messages", "--json", "--ids", "17cb:1103", "--count", "2"]);
    assert_eq!(messages["function"], 5);
    let second = &messages["messages"][1];
    assert_eq!((&second["vector"], &second["data"]), (&json!(1), &json!("0x00000001")));
    let block = parse(&["block", "--json", "--count", "8"]);
    assert_eq!((&block["count"], &block["address"]), (&json!(8), &json!("0x00000000fee02d78")));
}

#[test]
fn sources_are_allocated_and_given_back() {
    let daemon = Daemon::start(&["--device", "sim:wcn6855"]);
    // What one guest was told is nothing to the next: generations go on, sources begin anew.
    for generation in 1..3 {
        let expected = format!(
            "\
SOURCE  VECTOR  ADDRESS             DATA        GENERATION
0       5       0x00000000fee00578  0x00000005  {generation}
1       6       0x00000000fee00578  0x00000006  {generation}
"
        );
        let options = ["allocate", "-n", "2", "--first", "5", "--contiguous"];
        assert_eq!(stdout(&guest(daemon.socket(), &options)), expected);
    }
    let few = ["--json", "allocate", "--type", "intx", "--count", "4", "--least", "1"];
    let json: Value = serde_json::from_str(&stdout(&guest(daemon.socket(), &few))).unwrap();
    assert_eq!(json["sources"].as_array().unwrap().len(), 1);
}

/// The lines that the program prints while it listens.
fn lines(program: &mut std::process::Child) -> impl Iterator<Item = Value> + use<> {
    let out = std::io::BufReader::new(program.stdout.take().unwrap());
    std::io::BufRead::lines(out).map(|line| serde_json::from_str(&line.unwrap()).unwrap())
}

#[test]
fn interrupts_of_sources_are_counted_while_they_come() {
    let daemon = Daemon::start(&["--device", "sim:igb"]);
    let program = build("virtio-irq-userspace", "virtio-irq-guest", Profile::Debug);
    let mut listening = Command::new(program)
        .arg("--socket-path")
        .arg(daemon.socket())
        .args(["--json", "listen", "--type", "msix", "-n", "3", "--interrupts", "3"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = lines(&mut listening);
    assert_eq!(lines.next().unwrap()["sources"][2]["source"], 2);
    let triggers = daemon.triggers();
    for (source, count) in [(1, 1), (2, 1), (1, 2)] {
        triggers.fire(SourceId(source));
        assert_eq!(lines.next().unwrap(), json!({ "event": "interrupt", "source": source, "count": count }));
    }
    assert!(listening.wait().unwrap().success());
    assert_eq!(lines.next(), None);
}

#[test]
fn failures_are_one_sentence_with_a_remedy() {
    let daemon = Daemon::start(&["--device", "sim:edu", "--device", "sim:edu"]);
    let socket = daemon.socket();
    for (arguments, text) in [
        (&["messages"][..], "several functions fit: name one with --function ID"),
        (&["messages", "--function", "7"], "no function fits; `list` shows the functions"),
        (
            &["messages", "--function", "1", "--first", "1"],
            "function 1: the function does not have these vectors; `list` shows how many it has",
        ),
    ] {
        let error = failure(&guest(socket, arguments));
        assert_eq!(
            error,
            format!(
                "virtio-irq-guest: {text}{}\n",
                if text.ends_with("ID") { "; `list` shows the functions" } else { "" }
            )
        );
    }
    for (arguments, text) in [
        (
            &["allocate", "-f", "0", "-n", "2"][..],
            "the function does not have these vectors; `list` shows how many",
        ),
        (&["allocate", "-f", "0", "-n", "2", "--least", "3"], "--least is greater than --count"),
        (&["listen", "-f", "1", "-t", "msix"], "function 1: the function does not have these vectors"),
    ] {
        let error = failure(&guest(socket, arguments));
        assert!(error.contains(text), "{error}");
    }
    let error = failure(&guest(Path::new("/nonexistent/irq.sock"), &["list"]));
    assert!(error.contains("cannot connect to /nonexistent/irq.sock"), "{error}");
    assert!(error.contains("No such file or directory"), "{error}");
    let usage = guest(socket, &["messages", "--function", "0", "--ids", "1234:11e8"]);
    assert_eq!(usage.status.code(), Some(2));
}

#[test]
fn watching_ends_when_asked_to_and_when_the_device_goes_away() {
    let daemon = Daemon::start(&["--device", "sim:edu"]);
    assert_eq!(stdout(&guest(daemon.socket(), &["watch", "--for", "0.05"])), "");
    let socket = daemon.socket().to_owned();
    let mut daemon = daemon;
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| guest(&socket, &["watch"]));
        // The first program came and went before.
        daemon.wait_for("connected");
        daemon.wait_for("connected");
        drop(daemon);
        let error = failure(&watching.join().unwrap());
        assert!(error.contains("closed") || error.contains("fails"), "{error}");
    });
}
