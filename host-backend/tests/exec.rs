// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `exec`: what the program that it becomes is given.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test program: what fails here fails the test")]

mod common;

use common::{drain, program};
use std::fs;
use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Output};
use tempfile::TempDir;

/// A daemon that answers `exec` with this text and these descriptors.
fn lender(directory: &TempDir, name: &str) -> UnixListener {
    UnixListener::bind(directory.path().join(name)).unwrap()
}

fn lend(listener: &UnixListener, text: &str, fds: &[BorrowedFd<'_>]) -> UnixStream {
    let stream = listener.accept().unwrap().0;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(fds)));
    }
    let flags = rustix::net::SendFlags::empty();
    rustix::net::sendmsg(&stream, &[IoSlice::new(text.as_bytes())], &mut control, flags).unwrap();
    stream
}

fn exec(directory: &TempDir) -> Command {
    let mut command = program();
    command.arg("exec").current_dir(directory.path());
    command
}

fn refused(output: &Output) -> String {
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(1), &b""[..]));
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn the_program_has_the_devices_open_and_is_told_their_numbers() {
    let directory = TempDir::new().unwrap();
    let listeners = ["a", "b"].map(|name| lender(&directory, name));
    let devices = ["one", "two"].map(|name| directory.path().join(name));
    for device in &devices {
        fs::write(device, "").unwrap();
    }
    let mut command = exec(&directory);
    // It prints its arguments, and what is behind the two numbers among them; then it waits.
    let script = r#"echo "$@"; for word in "$@"; do case "$word" in vfio-pci,fd=*) n="${word#*fd=}"; readlink "/proc/self/fd/${n%%,*}"; esac; done; exec >&-; read _"#;
    command.args(["--vfio", "a,addr=06.0,rombar=0", "--vfio", "b,id=own", "--id", "wifi", "--"]);
    command.args(["sh", "-c", script, "-", "-m", "4G"]);
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut loans: Vec<_> = listeners
        .iter()
        .zip(&devices)
        .map(|(listener, device)| {
            lend(listener, "0000:02:00.0\n", &[fs::File::open(device).unwrap().as_fd()])
        })
        .collect();
    let printed = std::io::read_to_string(child.stdout.take().unwrap()).unwrap();
    let lines: Vec<_> = printed.lines().collect();
    let words: Vec<_> = lines[0].split(' ').collect();
    assert_eq!(words[..4], ["-m", "4G", "-object", "iommufd,id=wifi-iommufd"]);
    let numbered = |word: &str| word.split([',', '=']).nth(2).unwrap().parse::<u32>().unwrap();
    let [first, second] = [5, 7].map(|at| numbered(words[at]));
    assert_eq!(
        words[5],
        format!("vfio-pci,fd={first},iommufd=wifi-iommufd,id=wifi-vfio0,addr=06.0,rombar=0")
    );
    assert_eq!(words[7], format!("vfio-pci,fd={second},iommufd=wifi-iommufd,id=own"));
    assert_eq!(lines[1..], [devices[0].to_str().unwrap(), devices[1].to_str().unwrap()]);
    // The loans last as long as the program, however it ends.
    for loan in &mut loans {
        loan.set_nonblocking(true).unwrap();
        let error = std::io::Read::read(loan, &mut [0]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
        loan.set_nonblocking(false).unwrap();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    for loan in &mut loans {
        drain(loan);
    }
}

#[test]
fn without_a_device_nothing_is_started() {
    let directory = TempDir::new().unwrap();
    let output = exec(&directory).args(["--vfio", "absent", "--", "echo"]).output().unwrap();
    let message = refused(&output);
    assert!(message.contains("cannot connect to absent") && message.contains("vfio=cdev:"), "{message}");
    let null = fs::File::open("/dev/null").unwrap();
    let answers: [(&str, &[BorrowedFd<'_>], &str); 5] = [
        (
            "error: another VMM has it\u{1b}[31m\n",
            &[],
            "no VFIO device is to be had at a: another VMM has it[31m",
        ),
        ("0000:02:00.0\n", &[], "whoever listens there does not lend devices"),
        ("ok\n", &[null.as_fd()], "whoever listens there does not lend devices"),
        ("", &[], "whoever listens there does not lend devices"),
        ("0000:02:00.0\n", &[null.as_fd()], "cannot start ./nothing: No such file"),
    ];
    let listener = lender(&directory, "a");
    for (text, fds, expected) in answers {
        let mut child = exec(&directory);
        let child = child.args(["--vfio", "a", "--", "./nothing"]);
        child.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let child = child.spawn().unwrap();
        let loan = if text.is_empty() { listener.accept().unwrap().0 } else { lend(&listener, text, fds) };
        // A daemon that ends without a word.
        loan.shutdown(std::net::Shutdown::Write).unwrap();
        let message = refused(&child.wait_with_output().unwrap());
        assert!(message.contains(expected), "{message}");
        let _ = (&loan).write(&[]);
    }
}

#[test]
fn properties_that_are_not_the_operators_are_refused() {
    let directory = TempDir::new().unwrap();
    for value in
        ["", ",addr=06.0", "a,fd=7", "a,addr=06.0,iommufd=x", "a,host=02:00.0", "a,", "a,addr=1,,x=2"]
    {
        let output = exec(&directory).args(["--vfio", value, "--", "echo"]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{value:?}");
    }
}
