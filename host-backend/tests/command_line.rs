// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the program says to its operator.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test program: what fails here fails the test")]

mod common;

use common::{program, program_with_files};
use std::process::Output;

fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().unwrap()
}

/// Runs the program, which is to refuse, and returns what it says.
#[track_caller]
fn refused(code: i32, arguments: &[&str]) -> String {
    let output = run(arguments);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert!(output.stdout.is_empty());
    message
}

#[track_caller]
fn printed(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// One sentence in one line, after the log.
#[track_caller]
fn sentence(message: &str) -> &str {
    let last = message.lines().last().unwrap();
    last.strip_prefix("vhost-device-irq: ").expect(message)
}

/// Where the program may not write: root has to do without its privileges, which it gives up before.
#[test]
fn a_directory_of_somebody_else_is_said_to_be_one() {
    let directory = tempfile::tempdir().unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(directory.path(), Some(65534), Some(65534)).unwrap();
    } else {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o555);
        std::fs::set_permissions(directory.path(), mode).unwrap();
    }
    let path = directory.path().join("irq.sock");
    let message = refused(1, &["--device", "sim:edu", "--socket-path", path.to_str().unwrap()]);
    assert!(sentence(&message).starts_with("may not create the socket"), "{message}");
    assert!(message.ends_with("choose a directory that is theirs, such as one below /run\n"), "{message}");
}

#[test]
fn capabilities_are_json_of_a_backend_program() {
    let text = printed(&["--print-capabilities"]);
    let capabilities: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(capabilities, serde_json::json!({ "type": "irq", "features": [] }));
    // QEMU's convention: the other options are ignored.
    assert_eq!(printed(&["--print-capabilities", "--fd", "9"]), text);
}

#[test]
fn qemu_args_are_those_of_the_device() {
    let lines =
        printed(&["qemu-args", "--socket-path", "/run/i q.sock", "--memory", "4G", "--format", "lines"]);
    assert_eq!(
        lines,
        "-object\nmemory-backend-memfd,id=irq-memory,size=4G,share=on\n-m\n4G\n-machine\nmemory-backend=irq-memory\n\
         -chardev\nsocket,id=irq-socket,path=/run/i q.sock\n-device\n\
         vhost-user-test-device-pci,id=irq,chardev=irq-socket,virtio-id=37,num_vqs=2,config_size=16\n"
    );
    let json =
        printed(&["qemu-args", "--socket-path", "/run/i q.sock", "--memory", "4G", "--format", "json"]);
    let json: Vec<String> = serde_json::from_str(&json).unwrap();
    assert_eq!(json, lines.lines().collect::<Vec<_>>());
    let shell = printed(&["qemu-args", "--socket-path", "/run/it's,1.sock", "--id", "virq"]);
    assert!(shell.contains(r"-chardev 'socket,id=virq-socket,path=/run/it'\''s,,1.sock' -device"), "{shell}");
}

#[test]
fn qemu_args_survive_a_shell() {
    let shell = printed(&["qemu-args", "--socket-path", "/run/it's $HOME,\"`1\\.sock"]);
    let script = format!("printf '%s\\n' {shell}");
    let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
    let echoed = String::from_utf8(output.stdout).unwrap();
    assert!(echoed.contains("path=/run/it's $HOME,,\"`1\\.sock\n"), "{echoed}");
}

#[test]
fn qemu_args_refuse_what_qemu_would() {
    for arguments in [
        &["--socket-path", "/run/irq.sock", "--memory", "lots"][..],
        &["--socket-path", "/run/irq.sock", "--memory", "0M"],
        &["--socket-path", "/run/irq.sock", "--memory", "12MG"],
        &["--socket-path", "/run/irq.sock", "--id", "a,b"],
        &["--socket-path", ""],
        &[],
    ] {
        refused(2, &[&["qemu-args"], arguments].concat());
    }
}

#[test]
fn help_teaches_by_example() {
    let help = printed(&["--help"]);
    assert!(
        help.contains("vhost-device-irq --socket-path /run/irq.sock --device 0000:02:00.0,guest=00:06.0")
    );
    assert!(help.contains("Exit codes:"));
    for option in
        ["--socket-path", "--fd", "--device", "--allow-unsafe-interrupts", "--log-level", "qemu-args"]
    {
        assert!(help.contains(option), "{option}");
    }
}

#[test]
fn a_command_line_without_sense_is_refused() {
    let socket = "/nonexistent/irq.sock";
    for arguments in [
        &[][..],
        &["--socket-path", socket],
        &["--device", "sim:edu"],
        &["--socket-path", socket, "--fd", "3", "--device", "sim:edu"],
        &["--fd", "-1", "--device", "sim:edu"],
        &["--fd", "x", "--device", "sim:edu"],
        &["--socket-path", socket, "--device", "sim:edu", "--log-level", "loud"],
        &["--socket-path", socket, "--device", "sim:edu", "extra"],
    ] {
        refused(2, arguments);
    }
}

#[test]
fn a_device_that_makes_no_sense_is_refused_with_the_way_to_write_it() {
    for (device, expected) in [
        ("", "\"\" is no PCI address: write it as 0000:02:00.0 or 02:00.0"),
        ("2:0", "\"2:0\" is no PCI address"),
        ("00:20.0", "\"00:20.0\" is no PCI address"),
        ("00:02.8", "\"00:02.8\" is no PCI address"),
        ("0000:100:02.0", "is no PCI address"),
        ("00:02.+1", "is no PCI address"),
        ("00:02.0,guest=6", "\"6\" is no PCI address"),
        ("00:02.0,guest=00:06.0,guest=00:07.0", "guest= is given twice"),
        ("00:02.0,id=65536", "id=65536 is no number from 0 to 65535"),
        ("00:02.0,host=1", "\"host=1\" is no option of a device"),
        ("00:02.0,", "\"\" is no option of a device"),
        ("00:02.0,vectors=2", "vectors= is for sim: devices without a KIND"),
        ("00:02.0,vfio=7", "use pid:N, pidfile:PATH, socket:PATH or cdev"),
        ("00:02.0,vfio=pid:0", "vfio= is not possible: pid:0 is no process id"),
        ("00:02.0,vfio=pidfile:", "vfio= is not possible: pidfile: wants a path"),
        ("sim:edu,vfio=pid:7", "vfio= is for PCI functions"),
        ("sim:", "there is no simulated \"\": use one of sim:edu,"),
        ("sim:e1000", "there is no simulated \"e1000\""),
        ("sim:edu,type=msi", "type= is for sim: devices without a KIND"),
        ("sim:vectors=3", "vectors=3 is not possible"),
        ("sim:vectors=2049,type=msix", "vectors=2049 is not possible"),
        ("sim:vectors=0,type=msix", "vectors=0 is not possible"),
        ("sim:vectors=4,type=intx", "type=intx is not possible"),
    ] {
        let message = refused(2, &["--socket-path", "/nonexistent/irq.sock", "--device", device]);
        assert!(message.contains(expected), "{device}: {message}");
    }
}

#[test]
fn ids_and_functions_are_given_once() {
    let socket = ["--socket-path", "/nonexistent/irq.sock"];
    let message = refused(2, &[&socket[..], &["--device", "sim:edu,id=1", "--device", "sim:edu"]].concat());
    assert_eq!(sentence(&message), "two of the --device options have the id 1: give each its own id=");
}

#[test]
fn a_function_that_is_not_there_is_named() {
    let message = refused(1, &["--socket-path", "/nonexistent/irq.sock", "--device", "fffe:ff:1f.7"]);
    assert_eq!(
        sentence(&message),
        "there is no PCI function fffe:ff:1f.7 on this host: `lspci -D` lists those there are"
    );
}

#[test]
fn a_socket_that_cannot_be_created_is_named() {
    let message = refused(1, &["--socket-path", "/nonexistent/irq.sock", "--device", "sim:edu"]);
    assert!(sentence(&message).starts_with("cannot create the socket /nonexistent/irq.sock: "), "{message}");
    let long = format!("/tmp/{}", "x".repeat(200));
    let message = refused(1, &["--socket-path", &long, "--device", "sim:edu"]);
    assert!(sentence(&message).contains(&long), "{message}");
}

/// Runs the daemon with these limits of open files, soft and hard. It serves a socket that nobody is at the other end of.
fn run_with_files(limits: (u64, u64), arguments: &[&str]) -> Output {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    drop(theirs);
    let mut command = program_with_files(limits.0, limits.1);
    command.args(["--fd", "0"]).args(arguments).stdin(std::os::fd::OwnedFd::from(ours)).output().unwrap()
}

#[test]
fn as_many_sources_as_open_files_allow_or_a_refusal_that_says_how_many_are_needed() {
    let many = ["--device", "sim:vectors=2048,type=msix"];
    let output = run_with_files((64, 2048 * 2 + 256), &many);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let output = run_with_files((64, 2048 * 2 + 255), &many);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    let said = sentence(&message);
    assert!(
        said.contains("2048 interrupt sources need 4352 open files, and this process may have 4351"),
        "{said}"
    );
    let fewer = [&many[..], &["--max-sources", "900"]].concat();
    assert_eq!(run_with_files((64, 2100), &fewer).status.code(), Some(0));
    let few = ["--device", "sim:edu"];
    assert_eq!(run_with_files((64, 300), &few).status.code(), Some(0));
}
