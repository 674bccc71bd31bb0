// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The client's end of the control socket.

use crate::control::VERSION;
use crate::printable::printable;
use crate::qmp::QmpError;
use serde_json::{Map, Value};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a daemon may take for an answer. Attaching a function opens files of the kernel; nothing takes nearly as long.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a daemon does not do what it is asked for.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum CtlError {
    #[error(
        "there is no control socket at {}: start the daemon with --control-socket {}, or say with --socket where it is",
        path.display(), path.display()
    )]
    NoSocket { path: PathBuf },
    #[error(
        "no daemon has a control socket below {DIRECTORY}: start one with --control-socket PATH, or say with --socket where \
         one is"
    )]
    NoDaemons,
    #[error("there is more than one daemon: say which with --socket {}", paths(found))]
    ManyDaemons { found: Vec<PathBuf> },
    #[error("nobody listens at {}: the daemon that made it has ended; start it again", path.display())]
    NoDaemon { path: PathBuf },
    #[error("may not connect to {}: run this as the user who started the daemon, or as root", path.display())]
    Permission { path: PathBuf },
    #[error("cannot connect to {}: {source}", path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("the connection to the daemon at {} failed: {source}", path.display())]
    Connection { path: PathBuf, source: io::Error },
    #[error("the daemon at {} closed the connection: its log may say why", path.display())]
    Closed { path: PathBuf },
    #[error(
        "the daemon at {} speaks version {version} of the protocol and this program version {VERSION}: use the \
         vhost-device-irq of the daemon", path.display()
    )]
    Version { path: PathBuf, version: u64 },
    #[error(
        "what listens at {} is no control socket of vhost-device-irq: {what}; say with --socket where it is", path.display()
    )]
    Protocol { path: PathBuf, what: String },
    #[error(transparent)]
    Qmp(#[from] QmpError),
    #[error(
        "QEMU at {} has no function assigned to its guest: start it with -device vfio-pci,host=ADDRESS", path.display()
    )]
    NothingAssigned { path: PathBuf },
    #[error("{message}")]
    Refused { code: String, message: String },
    #[error("cannot write to standard output: {0}")]
    Print(io::Error),
}

impl CtlError {
    /// 3 where the daemon refuses, 1 where it cannot be asked.
    pub fn exit_code(&self) -> u8 {
        if matches!(self, Self::Refused { .. }) { 3 } else { 1 }
    }
}

/// Where instances of the systemd unit have their control sockets, each in a directory of its name.
const DIRECTORY: &str = "/run/vhost-device-irq";
const NAME: &str = "control.sock";

/// The one control socket of this machine.
pub(super) fn find() -> Result<PathBuf, CtlError> {
    let instances = std::fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    let mut found: Vec<_> =
        instances.map(|instance| instance.path().join(NAME)).filter(|path| may_be_there(path)).collect();
    found.sort();
    match found.len() {
        0 => Err(CtlError::NoDaemons),
        1 => Ok(found.remove(0)),
        _ => Err(CtlError::ManyDaemons { found }),
    }
}

/// Only its owner sees whether it is. Others get to know that when they connect.
fn may_be_there(path: &Path) -> bool {
    path.symlink_metadata().map_or_else(|error| error.kind() == io::ErrorKind::PermissionDenied, |_| true)
}

fn paths(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    paths.join(" or ")
}

/// A connection over which one request is made.
pub(super) struct Connection {
    stream: BufReader<UnixStream>,
    path: PathBuf,
}

impl Connection {
    pub(super) fn open(path: &Path) -> Result<Self, CtlError> {
        let path = path.to_owned();
        let stream = match UnixStream::connect(&path) {
            Ok(stream) => stream,
            Err(source) => {
                return Err(match source.kind() {
                    io::ErrorKind::NotFound => CtlError::NoSocket { path },
                    io::ErrorKind::ConnectionRefused => CtlError::NoDaemon { path },
                    io::ErrorKind::PermissionDenied => CtlError::Permission { path },
                    _ => CtlError::Connect { path, source },
                });
            }
        };
        let connection = Self { stream: BufReader::new(stream), path };
        let limit = connection.stream.get_ref().set_read_timeout(Some(PATIENCE));
        limit.map_err(|source| connection.failed(source))?;
        Ok(connection)
    }

    /// Makes the request and returns what it came to.
    pub(super) fn ask(&mut self, command: &str, arguments: Value) -> Result<Value, CtlError> {
        let mut request = Map::new();
        request.insert("v".to_owned(), VERSION.into());
        request.insert("cmd".to_owned(), command.into());
        if let Value::Object(arguments) = arguments {
            request.extend(arguments);
        }
        let line = format!("{}\n", Value::Object(request));
        // A daemon that has no place left says so and closes, which makes writing fail and reading not.
        let written = self.stream.get_mut().write_all(line.as_bytes());
        let mut answer = match (self.next(), written) {
            (Ok(answer), _) => answer,
            (Err(CtlError::Closed { .. } | CtlError::Connection { .. }), Err(source)) => {
                return Err(self.failed(source));
            }
            (Err(error), _) => return Err(error),
        };
        if answer.contains_key("hello") {
            answer = self.next()?;
        }
        answer.remove("ok").ok_or_else(|| self.unexpected(&Value::Object(answer).to_string()))
    }

    /// The next line.
    pub(super) fn next(&mut self) -> Result<Map<String, Value>, CtlError> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => return Err(CtlError::Closed { path: self.path.clone() }),
            Ok(_) => {}
            Err(source) => return Err(self.failed(source)),
        }
        let mut object: Map<String, Value> =
            serde_json::from_str(&line).map_err(|error| self.unexpected(&error.to_string()))?;
        if object.get("v").and_then(Value::as_u64) != Some(VERSION) {
            return Err(match object.get("v").and_then(Value::as_u64) {
                Some(version) => CtlError::Version { path: self.path.clone(), version },
                None => self.unexpected("it does not say its version"),
            });
        }
        if let Some(mut error) = object.remove("error") {
            let mut text = |key: &str| match error.get_mut(key).map(Value::take) {
                Some(Value::String(text)) => printable(&text),
                _ => "unknown".to_owned(),
            };
            return Err(CtlError::Refused { code: text("code"), message: text("message") });
        }
        Ok(object)
    }

    /// From now on lines come when they come.
    pub(super) fn wait_forever(&self) -> Result<(), CtlError> {
        self.stream.get_ref().set_read_timeout(None).map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> CtlError {
        CtlError::Connection { path: self.path.clone(), source }
    }

    fn unexpected(&self, what: &str) -> CtlError {
        CtlError::Protocol { path: self.path.clone(), what: printable(what) }
    }
}
