// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The runner's end of a machine's agent.

mod shared;

use crate::error::{At, Error, Result};
use shared::{Shared, State};
use std::fs;
use std::io::{BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use virtio_irq_lab_agent::{Answer, End, Operation, Request};

/// How long an operation may take that has nothing to wait for. Generous: machines are emulated, and this machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program that is run to its end may have more to do: dpkg unpacks a thousand files, on an emulated processor.
const PROGRAM: Duration = Duration::from_secs(180);

/// A machine's agent.
#[derive(Debug, Clone)]
pub struct Agent {
    machine: String,
    shared: Arc<Shared>,
    writer: Arc<Mutex<UnixStream>>,
}

/// One start of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// The kernel's boot id.
    pub boot_id: String,
    /// The kernel's release.
    pub kernel: String,
    /// From the kernel's start until the agent was ready.
    pub took: Duration,
}

impl Agent {
    /// Speaks to the agent of `machine` over `stream`; logs go to files in `logs` whose names begin with the machine's.
    pub(crate) fn new(machine: &str, stream: UnixStream, logs: &Path) -> Result<Self> {
        let reader = stream.try_clone().at("socket of an agent")?;
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            logs: logs.to_owned(),
            machine: machine.to_owned(),
        });
        let listener = Arc::clone(&shared);
        std::thread::spawn(move || listener.listen(BufReader::new(reader)));
        Ok(Self { machine: machine.to_owned(), shared, writer: Arc::new(Mutex::new(stream)) })
    }

    /// What the machine is called.
    #[must_use]
    pub fn machine(&self) -> &str {
        &self.machine
    }

    /// The machine's kernel log.
    #[must_use]
    pub fn kernel_log(&self) -> PathBuf {
        self.shared.log("kernel")
    }

    /// The log of a process that was started under `name`.
    #[must_use]
    pub fn process_log(&self, name: &str) -> PathBuf {
        self.shared.log(name)
    }

    /// Waits until the machine has started `count` times in all, and returns all of its starts.
    ///
    /// # Errors
    ///
    /// If it takes longer than `limit`, or the machine is gone.
    pub fn started(&self, count: usize, limit: Duration) -> Result<Vec<Start>> {
        self.wait_for("start", limit, |state| (state.starts.len() >= count).then(|| state.starts.clone()))
    }

    /// Says that the machine is about to start once more. A start that was not announced is a crash.
    ///
    /// Returns how often it will have started.
    pub(crate) fn expect_start(&self) -> usize {
        let mut state = self.shared.state();
        state.planned += 1;
        state.planned
    }

    /// How often the machine has started so far.
    #[must_use]
    pub fn start_count(&self) -> usize {
        self.shared.state().starts.len()
    }

    /// Reads a file as text, without the newline at its end.
    ///
    /// # Errors
    ///
    /// [`Error::Operation`] with the errno, or that the machine does not answer; so for all operations below.
    pub fn read(&self, path: &str) -> Result<String> {
        let bytes = self.read_bytes(path)?;
        Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
    }

    /// Reads a file.
    ///
    /// # Errors
    ///
    /// As [`Agent::read`].
    pub fn read_bytes(&self, path: &str) -> Result<Vec<u8>> {
        match self.call(Operation::Read { path: path.to_owned() }, PATIENCE)? {
            Answer::Content(bytes) => Ok(bytes.0),
            answer => self.unexpected(&answer),
        }
    }

    /// Writes to a file with one `write(2)`. `limit` is for attributes that do their work before they return.
    ///
    /// # Errors
    ///
    /// As [`Agent::read`].
    pub fn write_within(&self, path: &str, data: &str, limit: Duration) -> Result<()> {
        self.call(Operation::Write { path: path.to_owned(), data: data.to_owned() }, limit).map(drop)
    }

    /// Writes to a file with one `write(2)`.
    ///
    /// # Errors
    ///
    /// As [`Agent::read`].
    pub fn write(&self, path: &str, data: &str) -> Result<()> {
        self.write_within(path, data, PATIENCE)
    }

    /// Reads `count` registers of 32 bits from byte `offset` on of a BAR, which is sysfs `resourceN` of a PCI function.
    ///
    /// # Errors
    ///
    /// As [`Agent::read`].
    pub fn load(&self, path: &str, offset: usize, count: usize) -> Result<Vec<u32>> {
        match self.call(Operation::Load { path: path.to_owned(), offset, count }, PATIENCE)? {
            Answer::Words(words) => Ok(words),
            answer => self.unexpected(&answer),
        }
    }

    /// Writes a register of 32 bits.
    ///
    /// # Errors
    ///
    /// As [`Agent::read`].
    pub fn store(&self, path: &str, offset: usize, value: u32) -> Result<()> {
        self.perform(Operation::Store { path: path.to_owned(), offset, value })
    }

    /// The sorted names in a directory.
    ///
    /// # Errors
    ///
    /// As [`Agent::read`].
    pub fn list(&self, path: &str) -> Result<Vec<String>> {
        match self.call(Operation::List { path: path.to_owned() }, PATIENCE)? {
            Answer::Names(names) => Ok(names),
            answer => self.unexpected(&answer),
        }
    }

    /// The last part of a symbolic link's target, as sysfs links want to be read.
    ///
    /// # Errors
    ///
    /// As [`Agent::read`].
    pub fn link(&self, path: &str) -> Result<String> {
        match self.call(Operation::Link { path: path.to_owned() }, PATIENCE)? {
            Answer::Names(names) => {
                let target = names.first().map(String::as_str).unwrap_or_default();
                Ok(target.rsplit('/').next().unwrap_or(target).to_owned())
            }
            answer => self.unexpected(&answer),
        }
    }

    /// Performs an operation whose answer tells nothing.
    ///
    /// # Errors
    ///
    /// As [`Agent::read`].
    pub fn perform(&self, operation: Operation) -> Result<()> {
        self.call(operation, PATIENCE).map(drop)
    }

    /// Runs a short program to its end and returns its standard output.
    ///
    /// # Errors
    ///
    /// As [`Agent::read`], and [`Error::Unexpected`] with the program's words if it fails.
    pub fn run(&self, argv: &[&str]) -> Result<String> {
        match self.judge(argv)? {
            (End::Code(0), output, _) => Ok(output),
            (end, _, error) => {
                let message = format!("{}: {}: {end}: {}", self.machine, argv.join(" "), error.trim_end());
                Err(Error::Unexpected(message))
            }
        }
    }

    /// Runs a short program to its end, good or bad: how it ended, its output and its standard error.
    ///
    /// # Errors
    ///
    /// If it does not start, or the machine is gone.
    pub fn judge(&self, argv: &[&str]) -> Result<(End, String, String)> {
        let operation = Operation::Run { argv: argv.iter().map(|&word| word.to_owned()).collect() };
        match self.call(operation, PROGRAM)? {
            Answer::Ran { end, output, error } => Ok((end, output, error)),
            answer => self.unexpected(&answer),
        }
    }

    /// Starts a process; its output goes to [`Agent::process_log`].
    ///
    /// # Errors
    ///
    /// As [`Agent::read`].
    pub fn spawn(&self, name: &str, argv: &[String]) -> Result<u32> {
        match self.call(Operation::Spawn { name: name.to_owned(), argv: argv.to_vec() }, PATIENCE)? {
            Answer::Process(process) => Ok(process),
            answer => self.unexpected(&answer),
        }
    }

    /// Waits for the end of a process, at most for `limit`; nothing if it runs still.
    ///
    /// # Errors
    ///
    /// As [`Agent::read`].
    pub fn wait(&self, process: u32, limit: Duration) -> Result<Option<End>> {
        let milliseconds = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        match self.call(Operation::Wait { process, milliseconds }, limit.saturating_add(PATIENCE))? {
            Answer::Running => Ok(None),
            Answer::Ended(end) => Ok(Some(end)),
            answer => self.unexpected(&answer),
        }
    }

    /// Sends the machine to sleep, `state` being one of `/sys/power/state`, and waits until it is awake. Nothing else may be asked
    /// of it meanwhile.
    ///
    /// # Errors
    ///
    /// As [`Agent::read`].
    pub fn sleep(&self, state: &str, limit: Duration) -> Result<()> {
        self.call(Operation::Sleep { state: state.to_owned() }, limit).map(drop)
    }

    /// Asks for something that ends the connection's other side, such as [`Operation::PowerOff`].
    ///
    /// # Errors
    ///
    /// If the machine is gone already.
    pub fn tell(&self, operation: Operation) -> Result<()> {
        self.send(operation).map(drop)
    }

    /// How many lines the kernel has logged so far: a mark for [`Agent::kernel_line`].
    #[must_use]
    pub fn kernel_mark(&self) -> usize {
        self.shared.state().kernel.len()
    }

    /// Waits until all is here that the kernel has logged up to now: what is logged comes by itself, and somewhat later.
    ///
    /// # Errors
    ///
    /// As [`Agent::read`], and as [`Agent::kernel_line`].
    pub fn catch_up_with_kernel(&self) -> Result<()> {
        let mark = self.kernel_mark();
        // Whoever asks next finds a longer log, so that no two of these are the same.
        let text = format!("lab: up to here, which was line {mark}");
        self.write("/dev/kmsg", &format!("{text}\n"))?;
        self.kernel_line(mark, &text, PATIENCE).map(drop)
    }

    /// Waits for a line in the kernel's log, after `mark`, that contains `text`.
    ///
    /// # Errors
    ///
    /// If none comes within `limit`, or the machine is gone.
    pub fn kernel_line(&self, mark: usize, text: &str, limit: Duration) -> Result<String> {
        self.wait_for(&format!("kernel log line {text:?}"), limit, |state| {
            state.kernel.iter().skip(mark).find(|line| line.contains(text)).cloned()
        })
    }

    /// The lines of the kernel's log, so far and of all starts, that contain one of `texts`.
    #[must_use]
    pub fn kernel_lines(&self, texts: &[&str]) -> Vec<String> {
        let state = self.shared.state();
        state.kernel.iter().filter(|line| texts.iter().any(|text| line.contains(text))).cloned().collect()
    }

    /// Waits for a line of a process that contains `text`.
    ///
    /// # Errors
    ///
    /// If none comes within `limit`, or the machine is gone.
    pub fn output_line(&self, name: &str, text: &str, limit: Duration) -> Result<String> {
        self.output_line_after(name, 0, text, limit)
    }

    /// As [`Agent::output_line`], passing over as many such lines as `skipped` says.
    ///
    /// # Errors
    ///
    /// As [`Agent::output_line`].
    pub fn output_line_after(
        &self,
        name: &str,
        skipped: usize,
        text: &str,
        limit: Duration,
    ) -> Result<String> {
        self.wait_for(&format!("line {text:?} of {name}"), limit, |state| {
            state.output.get(name)?.iter().filter(|line| line.contains(text)).nth(skipped).cloned()
        })
    }

    /// The lines of a process, so far, that contain one of `texts`.
    #[must_use]
    pub fn output_lines(&self, name: &str, texts: &[&str]) -> Vec<String> {
        let state = self.shared.state();
        let lines = state.output.get(name).map(Vec::as_slice).unwrap_or_default();
        lines.iter().filter(|line| texts.iter().any(|text| line.contains(text))).cloned().collect()
    }

    /// Adds `text` to the log `name` of the machine.
    pub(crate) fn note(&self, name: &str, text: &str) {
        let mut state = self.shared.state();
        self.shared.record(&mut state, name, text);
    }

    /// Says that the machine is gone, for a reason that its channel does not show.
    pub(crate) fn lost(&self, why: &str) {
        self.shared.state().gone = Some(why.to_owned());
        self.shared.changed.notify_all();
    }

    /// Takes [`Agent::lost`] back, because another machine uses the channel now, whose console is in the file `console`.
    pub(crate) fn revive(&self, console: PathBuf) {
        let mut state = self.shared.state();
        state.gone = None;
        state.console = Some(console);
    }

    fn call(&self, operation: Operation, limit: Duration) -> Result<Answer> {
        let what = format!("{operation:?}");
        let id = self.send(operation)?;
        let outcome = self.wait_for(&what, limit, |state| state.replies.remove(&id))?;
        outcome.map_err(|failure| Error::Operation { machine: self.machine.clone(), failure })
    }

    fn send(&self, operation: Operation) -> Result<u64> {
        let id = {
            let mut state = self.shared.state();
            state.next_id += 1;
            state.next_id
        };
        let mut line = serde_json::to_string(&Request { id, operation })
            .map_err(|error| Error::Unexpected(format!("a request that is not JSON: {error}")))?;
        line.push('\n');
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.write_all(line.as_bytes()).map_err(|error| self.gone(None, &error.to_string()))?;
        Ok(id)
    }

    fn wait_for<T>(
        &self,
        what: &str,
        limit: Duration,
        mut found: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T> {
        // A limit beyond the clock's range is none.
        let end = Instant::now().checked_add(limit);
        let mut state = self.shared.state();
        loop {
            if let Some(found) = found(&mut state) {
                return Ok(found);
            }
            if let Some(why) = &state.gone {
                return Err(self.gone(state.console.as_ref(), why));
            }
            let left = end.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                let what = what.to_owned();
                let (machine, log) = (self.machine.clone(), self.kernel_log());
                return Err(Error::Late { machine, what, seconds: limit.as_secs(), log });
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn gone(&self, console: Option<&PathBuf>, why: &str) -> Error {
        let log = console.cloned().unwrap_or_else(|| self.shared.log("console"));
        Error::Gone { machine: self.machine.clone(), why: why.to_owned(), log }
    }

    fn unexpected<T>(&self, answer: &Answer) -> Result<T> {
        Err(Error::Unexpected(format!("{}: the agent answered {answer:?}", self.machine)))
    }
}

/// Empties the directory of a scenario's logs.
pub(crate) fn clear_logs(logs: &Path) -> Result<()> {
    if logs.exists() {
        fs::remove_dir_all(logs).at(logs)?;
    }
    fs::create_dir_all(logs).at(logs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufRead;
    use virtio_irq_lab_agent::{Failure, Message};

    const SOON: Duration = Duration::from_secs(5);

    fn pair(logs: &Path) -> (Agent, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Agent::new("guest", ours, logs).unwrap(), theirs)
    }

    fn say(stream: &mut UnixStream, message: &Message) {
        writeln!(stream, "{}", serde_json::to_string(message).unwrap()).unwrap();
    }

    #[test]
    fn an_errno_reaches_the_caller() {
        let directory = tempfile::tempdir().unwrap();
        let (agent, mut machine) = pair(directory.path());
        let peer = std::thread::spawn(move || {
            let mut line = String::new();
            BufReader::new(machine.try_clone().unwrap()).read_line(&mut line).unwrap();
            let request: Request = serde_json::from_str(&line).unwrap();
            let outcome = Err(Failure { what: "read x".into(), errno: Some(11) });
            say(&mut machine, &Message::Reply { id: request.id, outcome });
            machine
        });
        assert_eq!(agent.read("x").unwrap_err().errno(), Some(11));
        drop(peer.join());
    }

    #[test]
    fn a_closed_channel_ends_every_wait() {
        let directory = tempfile::tempdir().unwrap();
        let (agent, machine) = pair(directory.path());
        drop(machine);
        assert!(matches!(agent.started(1, SOON), Err(Error::Gone { .. })));
    }

    #[test]
    fn a_kernel_line_is_found_after_the_mark_only() {
        let directory = tempfile::tempdir().unwrap();
        let (agent, mut machine) = pair(directory.path());
        for lines in [vec!["one".into(), "No irq handler".into()], vec!["two".into()]] {
            say(&mut machine, &Message::Kernel { lines });
        }
        agent.kernel_line(0, "two", SOON).unwrap();
        assert_eq!(agent.kernel_line(0, "No irq", SOON).unwrap(), "No irq handler");
        let late = agent.kernel_line(2, "No irq", Duration::from_millis(20));
        assert!(matches!(late, Err(Error::Late { .. })));
        assert_eq!(fs::read_to_string(agent.kernel_log()).unwrap(), "one\nNo irq handler\ntwo\n");
    }

    #[test]
    fn a_line_that_was_cut_short_is_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        let (agent, mut machine) = pair(directory.path());
        assert_eq!(agent.expect_start(), 1);
        writeln!(machine, "{{\"reply\":{{\"id").unwrap();
        say(&mut machine, &Message::Hello { boot_id: "b".into(), kernel: "k".into(), uptime: 1500 });
        assert_eq!(agent.started(1, SOON).unwrap()[0].took, Duration::from_millis(1500));
    }

    #[test]
    fn a_start_that_nobody_asked_for_is_a_crash() {
        let directory = tempfile::tempdir().unwrap();
        let (agent, mut machine) = pair(directory.path());
        let hello = Message::Hello { boot_id: "b".into(), kernel: "k".into(), uptime: 1 };
        agent.expect_start();
        say(&mut machine, &hello);
        agent.started(1, SOON).unwrap();
        say(&mut machine, &hello);
        agent.started(2, SOON).unwrap();
        assert!(agent.read("x").unwrap_err().to_string().contains("unasked"));
    }
}
