// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The daemon as a process of its own.

use crate::PATIENCE;
use crate::program::{self, Profile};
use crate::triggers::Triggers;
use crate::vitals::Vitals;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::Instant;
use tempfile::TempDir;
use virtio_irq_userspace::{Driver, DriverError, Options};

/// A running `vhost-device-irq`, killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    socket: PathBuf,
    log: Receiver<String>,
    seen: Vec<String>,
    reader: Option<JoinHandle<()>>,
    /// Present until the daemon is replaced.
    directory: Option<TempDir>,
}

impl Daemon {
    /// Starts a daemon on a socket of its own, with these further arguments, and waits until it listens.
    ///
    /// # Panics
    /// It cannot be built or started, or ends at once: its log is the message.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_built(Profile::Debug, arguments)
    }

    /// [`Daemon::start`] for a build of this profile.
    ///
    /// # Panics
    /// As [`Daemon::start`].
    pub fn start_built(profile: Profile, arguments: &[&str]) -> Self {
        let program = Command::new(program::build("vhost-device-irq", "vhost-device-irq", profile));
        Self::listen(program, tempfile::tempdir().expect("a temporary directory can be made"), arguments)
    }

    /// [`Daemon::start`] by a shell that allows it this many open files, unless it asks for more.
    ///
    /// # Panics
    /// As [`Daemon::start`].
    pub fn start_with_soft_limit(files: u32, arguments: &[&str]) -> Self {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("ulimit -Sn {files} && exec \"$0\" \"$@\""));
        shell.arg(program::build("vhost-device-irq", "vhost-device-irq", Profile::Debug));
        Self::listen(shell, tempfile::tempdir().expect("a temporary directory can be made"), arguments)
    }

    /// Kills the daemon, which leaves its socket behind, and starts another one in its place.
    ///
    /// # Panics
    /// As [`Daemon::start`].
    pub fn kill_and_replace(mut self, arguments: &[&str]) -> Self {
        self.signal(Signal::KILL);
        self.child.wait().expect("the daemon is a child of this process");
        let directory = self.directory.take().expect("a daemon has its directory until it is replaced");
        assert!(self.socket.exists(), "a daemon that is killed cannot remove its socket");
        let program = Command::new(program::build("vhost-device-irq", "vhost-device-irq", Profile::Debug));
        Self::listen(program, directory, arguments)
    }

    fn listen(mut command: Command, directory: TempDir, arguments: &[&str]) -> Self {
        let socket = directory.path().join("irq.sock");
        command.arg("--socket-path").arg(&socket).args(arguments).stdin(Stdio::null());
        let mut daemon = Self::spawn(command, socket, directory);
        daemon.wait_for("waiting for a frontend");
        daemon
    }

    fn spawn(mut command: Command, socket: PathBuf, directory: TempDir) -> Self {
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("vhost-device-irq can be started");
        let stderr = child.stderr.take().expect("standard error is a pipe");
        let (sender, log) = channel();
        let reader = thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, socket, log, seen: Vec::new(), reader: Some(reader), directory: Some(directory) }
    }

    /// Path of its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A guest, connected and set up.
    ///
    /// # Errors
    /// As [`Driver::connect`].
    pub fn connect(&self) -> Result<Driver, DriverError> {
        Driver::connect(&self.socket, Options { timeout: PATIENCE, ..Options::default() })
    }

    /// What the kernel says about the process.
    ///
    /// # Panics
    /// It is gone.
    pub fn vitals(&self) -> Vitals {
        Vitals::of(self.child.id()).expect("the daemon is alive")
    }

    /// Waits until it holds what it held at an earlier look: a thread that was waited for, and what it had open, is seen for a
    /// moment longer. What stays is a leak.
    ///
    /// # Panics
    /// It goes on holding something else. Or it is gone.
    #[track_caller]
    pub fn comes_back_to(&self, before: Vitals) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.vitals();
            if now == before {
                return;
            }
            assert!(Instant::now() < deadline, "{before:?} became {now:?}");
            thread::yield_now();
        }
    }

    /// Id of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What lets the sources fire that the guest has at the moment.
    ///
    /// # Panics
    /// The process is gone, or the kernel keeps its descriptors from this one.
    pub fn triggers(&self) -> Triggers {
        Triggers::of(self.child.id()).expect("the descriptors of a child can be duplicated")
    }

    /// Waits until the log has a line with this text, and returns it. Each line is found once.
    ///
    /// # Panics
    /// The daemon ends, or nothing of that sort is logged in time.
    pub fn wait_for(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.log.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(why) => {
                    panic!("no line with {text:?} ({why}) in the daemon's log:\n{}", self.seen.join("\n"))
                }
            }
        }
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// The process is gone.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("the daemon is alive");
        if signal == Signal::STOP {
            // The signal is only on its way when kill returns: until it arrives, the daemon goes on answering.
            let stopped = waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED).expect("it is a child");
            assert!(stopped.is_some_and(|status| status.stopped()), "the daemon ended instead");
        }
    }

    /// Waits until the process ends, and returns how it did and what it has logged.
    ///
    /// # Panics
    /// It does not end in time.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + PATIENCE;
        // Standard error is closed when the process ends: that is the event to wait for.
        while let Ok(line) = self.log.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            self.seen.push(line);
        }
        let log = self.seen.join("\n");
        assert!(Instant::now() < deadline, "the daemon does not end; its log:\n{log}");
        (self.child.wait().expect("the daemon is a child of this process"), log)
    }

    /// Asks it to leave, and waits for that.
    ///
    /// # Panics
    /// As [`Daemon::wait`].
    pub fn terminate(self) -> (ExitStatus, String) {
        self.signal(Signal::TERM);
        self.wait()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only for a process that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        if thread::panicking() {
            self.seen.extend(self.log.try_iter());
            eprintln!("--- log of the daemon\n{}\n---", self.seen.join("\n"));
        }
    }
}
