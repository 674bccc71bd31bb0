// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Child processes: their start, their output, their end.

use crate::failure;
use crate::port::Port;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;
use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use virtio_irq_lab_agent::{Answer, End, Failure, Message};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The children of process 1. One thread reaps them all, so that a stranger's orphan cannot take the place of the child
/// that somebody waits for.
pub(crate) struct Processes {
    port: Port,
    table: Arc<(Mutex<Table>, Condvar)>,
}

/// `None` while a process runs.
type Table = HashMap<u32, Option<End>>;

impl Processes {
    pub(crate) fn new(port: Port) -> Self {
        let table = Arc::new((Mutex::new(Table::new()), Condvar::new()));
        let reaped = Arc::clone(&table);
        std::thread::spawn(move || reap(&reaped));
        Self { port, table }
    }

    /// Starts a process whose output goes to the runner line by line.
    pub(crate) fn spawn(&self, name: &str, argv: &[String]) -> Result<Answer, Failure> {
        let mut child = self.start(argv)?;
        let process = child.id();
        if let Some(output) = child.stdout.take() {
            self.forward(name, false, output);
        }
        if let Some(error) = child.stderr.take() {
            self.forward(name, true, error);
        }
        Ok(Answer::Process(process))
    }

    /// Runs a process to its end and collects its output.
    pub(crate) fn run(&self, argv: &[String]) -> Result<Answer, Failure> {
        let mut child = self.start(argv)?;
        let output = collect(child.stdout.take());
        let error = collect(child.stderr.take());
        let text = |thread: JoinHandle<String>| thread.join().unwrap_or_default();
        let (output, error) = (text(output), text(error));
        let end = self.ended(child.id(), None)?.ok_or(unknown(child.id()))?;
        Ok(Answer::Ran { end, output, error })
    }

    pub(crate) fn signal(&self, process: u32, signal: i32) -> Result<Answer, Failure> {
        let what = format!("send signal {signal} to process {process}");
        let table = self.table();
        // Not a process that ended: its number may be somebody else's by now.
        if table.get(&process) != Some(&None) {
            return Err(Failure { what, errno: Some(Errno::ESRCH as i32) });
        }
        let send = || {
            kill(Pid::from_raw(i32::try_from(process).map_err(|_| Errno::ESRCH)?), Signal::try_from(signal)?)
        };
        send().map_err(|errno| Failure { what, errno: Some(errno as i32) })?;
        Ok(Answer::Done)
    }

    pub(crate) fn wait(&self, process: u32, milliseconds: u64) -> Result<Answer, Failure> {
        let end = self.ended(process, Some(Duration::from_millis(milliseconds)))?;
        Ok(end.map_or(Answer::Running, Answer::Ended))
    }

    fn start(&self, argv: &[String]) -> Result<Child, Failure> {
        let (program, arguments) =
            argv.split_first().ok_or_else(|| Failure { what: "start nothing".to_owned(), errno: None })?;
        // Held over the start: the reaper must find the child in the table.
        let mut table = self.table();
        let child = Command::new(program)
            .args(arguments)
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", "/root")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| failure(&format!("start {program}"), &error))?;
        table.insert(child.id(), None);
        self.table.1.notify_all();
        Ok(child)
    }

    /// Waits until `process` has ended, or for `limit`.
    fn ended(&self, process: u32, limit: Option<Duration>) -> Result<Option<End>, Failure> {
        let table = self.table();
        if !table.contains_key(&process) {
            return Err(unknown(process));
        }
        let running = |table: &mut Table| table.get(&process) == Some(&None);
        let table = match limit {
            Some(limit) => {
                let waited = self.table.1.wait_timeout_while(table, limit, running);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
            None => self.table.1.wait_while(table, running).unwrap_or_else(PoisonError::into_inner),
        };
        Ok(table.get(&process).copied().flatten())
    }

    fn forward(&self, name: &str, error: bool, from: impl Read + Send + 'static) {
        let port = self.port.clone();
        let name = name.to_owned();
        std::thread::spawn(move || {
            let mut from = BufReader::new(from);
            let mut line = Vec::new();
            while matches!(from.read_until(b'\n', &mut line), Ok(1..)) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                port.say(&Message::Output { name: name.clone(), error, line: text });
                line.clear();
            }
        });
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn collect(from: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut from) = from {
            let _: io::Result<usize> = from.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn unknown(process: u32) -> Failure {
    Failure { what: format!("process {process} was not started here"), errno: Some(Errno::ECHILD as i32) }
}

/// Waits for every child there is, and sleeps while there is none.
fn reap(table: &(Mutex<Table>, Condvar)) {
    loop {
        let none_runs = |table: &mut Table| !table.values().any(Option::is_none);
        let guard = table.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(table.1.wait_while(guard, none_runs).unwrap_or_else(PoisonError::into_inner));
        let (pid, end) = match wait() {
            Ok(WaitStatus::Exited(pid, code)) => (pid, End::Code(code)),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, End::Signal(signal as i32)),
            Ok(_) | Err(_) => continue,
        };
        let mut guard = table.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = u32::try_from(pid.as_raw()).ok().and_then(|pid| guard.get_mut(&pid)) {
            *entry = Some(end);
            table.1.notify_all();
        }
    }
}
