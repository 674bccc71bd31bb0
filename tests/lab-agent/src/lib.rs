// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the lab's runner and the agent in a machine say to each other.
//!
//! The agent is process 1 of every emulated machine. It decides nothing: it reads and writes files, loads modules, starts
//! processes and reports what the kernel logs, and a scenario outside puts that together. Both directions are JSON, one
//! message a line, over a virtio-serial port named [`PORT`].

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

mod bytes;

pub use bytes::Bytes;

/// Name of the virtio-serial port that the agent serves.
pub const PORT: &str = "virtio-irq.lab";

/// Directory in which a machine's initramfs carries what the scenario needs, and where it is found after
/// [`Operation::EnterTree`] as well.
pub const PAYLOAD: &str = "/lab";

/// One wish of the runner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the runner and repeated in the answer. Requests are served concurrently, so answers come in any order.
    pub id: u64,
    /// What to do.
    pub operation: Operation,
}

/// What the agent can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Reads a whole file. Answer: [`Answer::Content`].
    Read {
        /// Absolute path.
        path: String,
    },
    /// Writes `data` with one `write(2)`, as sysfs attributes want it, without creating or truncating the file.
    Write {
        /// Absolute path.
        path: String,
        /// What to write.
        data: String,
    },
    /// Lists a directory, sorted. Answer: [`Answer::Names`].
    List {
        /// Absolute path.
        path: String,
    },
    /// Reads a symbolic link. Answer: [`Answer::Names`] with one entry.
    Link {
        /// Absolute path.
        path: String,
    },
    /// Reads 32-bit registers of a PCI function, by mapping its BAR. Answer: [`Answer::Words`].
    Load {
        /// sysfs `resourceN` of a BAR in memory.
        path: String,
        /// Offset of the first in bytes, a multiple of 4.
        offset: usize,
        /// How many.
        count: usize,
    },
    /// Writes a 32-bit register of a PCI function, by mapping its BAR.
    Store {
        /// sysfs `resourceN` of a BAR in memory.
        path: String,
        /// Offset in bytes, a multiple of 4.
        offset: usize,
        /// What to write.
        value: u32,
    },
    /// Writes bytes into a file that has an offset for each, such as a function's configuration space.
    WriteAt {
        /// Absolute path.
        path: String,
        /// Where, in bytes.
        offset: u64,
        /// What to write.
        data: Bytes,
    },
    /// Connects to a Unix stream socket and keeps the connection open until the machine ends.
    Connect {
        /// Absolute path of the socket.
        path: String,
    },
    /// Loads a kernel module that the initramfs carries. A module that is already there is no error.
    LoadModule {
        /// File name without directory and suffix; dashes and underscores as the file has them.
        name: String,
        /// Parameters, as on `insmod`'s command line.
        parameters: String,
    },
    /// Unloads a kernel module; fails with `EWOULDBLOCK` while it is in use.
    UnloadModule {
        /// The module's name, with underscores.
        name: String,
    },
    /// Mounts the 9p export `tag` read-only, with memory-backed `/run`, `/tmp` and `/var/tmp`, and makes it the root.
    EnterTree {
        /// 9p mount tag.
        tag: String,
    },
    /// Starts a process; its output comes as [`Message::Output`]. Answer: [`Answer::Process`].
    Spawn {
        /// What the runner calls it; its output bears this name.
        name: String,
        /// Program and arguments.
        argv: Vec<String>,
    },
    /// Sends a signal to a process that [`Operation::Spawn`] started.
    Signal {
        /// Process id.
        process: u32,
        /// Signal number.
        signal: i32,
    },
    /// Waits for a process that [`Operation::Spawn`] started. Answer: [`Answer::Ended`], or [`Answer::Running`] when the time
    /// is over.
    Wait {
        /// Process id.
        process: u32,
        /// How long to wait at most.
        milliseconds: u64,
    },
    /// Runs a short program to its end. Answer: [`Answer::Ran`].
    Run {
        /// Program and arguments.
        argv: Vec<String>,
    },
    /// Sends the machine to sleep and answers when it is awake again, or refused. It neither hears nor says anything meanwhile, and
    /// what is sent to it then can get lost.
    Sleep {
        /// One of `/sys/power/state`.
        state: String,
    },
    /// Switches the machine off. There is no answer.
    PowerOff,
    /// Restarts the machine. There is no answer; the next thing heard is [`Message::Hello`].
    Reboot,
}

/// What the agent says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// The machine is up and its agent ready. Comes once for each start of the machine.
    Hello {
        /// The kernel's boot id: differs from start to start.
        boot_id: String,
        /// The kernel's release.
        kernel: String,
        /// Milliseconds since the kernel started.
        uptime: u64,
    },
    /// The answer to a request.
    Reply {
        /// The request's id.
        id: u64,
        /// The result.
        outcome: Result<Answer, Failure>,
    },
    /// What the kernel has logged since the message before.
    Kernel {
        /// The lines, each beginning with its time stamp.
        lines: Vec<String>,
    },
    /// One line that a process wrote.
    Output {
        /// The name that the process got when it was started.
        name: String,
        /// True for standard error, false for standard output.
        error: bool,
        /// The line.
        line: String,
    },
}

/// A successful result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is done, and there is nothing to tell.
    Done,
    /// A file's content.
    Content(Bytes),
    /// Registers.
    Words(Vec<u32>),
    /// Names.
    Names(Vec<String>),
    /// The id of a process.
    Process(u32),
    /// The process still runs.
    Running,
    /// The process ended.
    Ended(End),
    /// A short program ran.
    Ran {
        /// How it ended.
        end: End,
        /// What it wrote to standard output.
        output: String,
        /// What it wrote to standard error.
        error: String,
    },
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// A failed operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The operation in words.
    pub what: String,
    /// The error number, where the operating system gave one.
    pub errno: Option<i32>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.errno {
            Some(errno) => write!(f, "{}: {}", self.what, std::io::Error::from_raw_os_error(errno)),
            None => f.write_str(&self.what),
        }
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_one_line() {
        let request =
            Request { id: 7, operation: Operation::Write { path: "/sys/x".into(), data: "a\nb".into() } };
        let line = serde_json::to_string(&request).unwrap();
        assert_eq!(line, r#"{"id":7,"operation":{"write":{"path":"/sys/x","data":"a\nb"}}}"#);
        assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request);
    }

    #[test]
    fn a_failure_keeps_its_errno() {
        let reply = Message::Reply {
            id: 3,
            outcome: Err(Failure { what: "read /sys/y".into(), errno: Some(nix::libc::EAGAIN) }),
        };
        let line = serde_json::to_string(&reply).unwrap();
        assert_eq!(serde_json::from_str::<Message>(&line).unwrap(), reply);
        assert!(line.contains(r#""errno":11"#));
    }
}
