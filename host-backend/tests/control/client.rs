// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A daemon with a control socket, and clients of it.

use crate::common::{Daemon, LONG, program};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

pub(crate) fn control_socket(daemon: &Daemon) -> PathBuf {
    daemon.directory.path().join("ctl.sock")
}

pub(crate) fn start(arguments: &[&str]) -> Daemon {
    let directory = TempDir::new().unwrap();
    start_in(directory, arguments)
}

pub(crate) fn start_in(directory: TempDir, arguments: &[&str]) -> Daemon {
    start_program(program(), directory, arguments)
}

pub(crate) fn start_program(mut command: Command, directory: TempDir, arguments: &[&str]) -> Daemon {
    let socket = directory.path().join("irq.sock");
    command.arg("--socket-path").arg(&socket).stdin(Stdio::null());
    command.arg("--control-socket").arg(directory.path().join("ctl.sock")).args(arguments);
    let daemon = Daemon::spawn(command, directory, socket);
    daemon.wait_for_line("waiting for a frontend");
    daemon
}

pub(crate) struct Client(pub(crate) BufReader<UnixStream>);

impl Client {
    pub(crate) fn connect(daemon: &Daemon) -> Self {
        let stream = UnixStream::connect(control_socket(daemon)).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        Self(BufReader::new(stream))
    }

    /// A client that was greeted.
    pub(crate) fn greeted(daemon: &Daemon) -> Self {
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

    pub(crate) fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    #[track_caller]
    pub(crate) fn next(&mut self) -> Value {
        let mut line = String::new();
        assert_ne!(self.0.read_line(&mut line).unwrap(), 0, "the daemon closed the connection");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    #[track_caller]
    pub(crate) fn ask(&mut self, request: Value) -> Value {
        self.send(&format!("{request}\n"));
        self.next()
    }

    #[track_caller]
    pub(crate) fn status(&mut self) -> Value {
        let answer = self.ask(json!({ "v": 1, "id": "s", "cmd": "status", "window_ms": 0 }));
        assert_eq!(answer["id"], "s");
        answer["ok"]["status"].clone()
    }

    /// What comes until the daemon closes the connection, which it has to.
    pub(crate) fn rest(&mut self) -> String {
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
pub(crate) fn code(answer: &Value) -> &str {
    answer["error"]["code"].as_str().unwrap_or_else(|| panic!("{answer} is no refusal"))
}

pub(crate) fn ctl(socket: &Path, arguments: &[&str]) -> Output {
    program().arg("ctl").arg("--socket").arg(socket).args(arguments).output().unwrap()
}

#[track_caller]
pub(crate) fn printed(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[track_caller]
pub(crate) fn refused(output: &Output, code: i32) -> String {
    let message = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert_eq!(message.lines().count(), 1, "one error is one line: {message}");
    message
}
