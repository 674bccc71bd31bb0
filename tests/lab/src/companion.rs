// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Programs beside an emulated machine's QEMU: what the machine has besides what QEMU can emulate.

use crate::error::{At, Error, Result};
use crate::program::bound;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// A program that only opens a socket may take this long, on a machine that has other things to do too.
const READY: Duration = Duration::from_secs(30);

/// A program of the tree, or of this machine. Dropped, it is killed.
#[derive(Debug)]
pub struct Companion {
    child: Child,
    name: String,
    log: PathBuf,
    output: Arc<Output>,
}

/// What it wrote.
#[derive(Debug, Default)]
struct Output {
    text: Mutex<Text>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Text {
    lines: Vec<String>,
    ended: bool,
}

impl Companion {
    /// Starts `argv` in the tree and waits until it writes a line with `ready` in it to its standard error, which goes to
    /// `log`.
    pub(crate) fn start(tree: &Path, argv: &[&str], ready: &str, log: &Path) -> Result<Self> {
        let mut command = bound("chroot");
        command.arg(tree).args(argv);
        let name = argv.first().copied().unwrap_or_default();
        Self::begin(name, command, ready, log)
    }

    /// As [`Companion::start`], but with a program of this machine, run in `directory`, that reads what [`Companion::tell`] says.
    pub(crate) fn start_here(directory: &Path, argv: &[&str], ready: &str, log: &Path) -> Result<Self> {
        let (name, arguments) = argv.split_first().ok_or_else(|| Error::Unexpected("no program".into()))?;
        let mut command = bound(name);
        command.args(arguments).current_dir(directory).stdin(Stdio::piped());
        Self::begin(name, command, ready, log)
    }

    fn begin(name: &str, mut command: Command, ready: &str, log: &Path) -> Result<Self> {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().at("setpriv")?;
        let output = Arc::new(Output::default());
        let file = File::create(log).at(log)?;
        if let Some(pipe) = child.stderr.take() {
            let output = Arc::clone(&output);
            std::thread::spawn(move || output.copy(pipe, &file));
        }
        let companion = Self { child, name: name.to_owned(), log: log.to_owned(), output };
        companion.line(0, ready, READY)?;
        Ok(companion)
    }

    /// Says a line to it, and returns the next that it writes.
    ///
    /// # Errors
    ///
    /// If it does not answer, or ended.
    pub(crate) fn tell(&self, line: &str) -> Result<String> {
        let mark = self.mark();
        let mut input =
            self.child.stdin.as_ref().ok_or_else(|| Error::Unexpected(format!("{} is deaf", self.name)))?;
        input.write_all(format!("{line}\n").as_bytes()).at("standard input of a companion")?;
        self.line(mark, "", READY)
    }

    /// How many lines it has written so far: a mark for [`Companion::line`].
    #[must_use]
    pub fn mark(&self) -> usize {
        self.output.text.lock().unwrap_or_else(PoisonError::into_inner).lines.len()
    }

    /// Waits until it has written a line with `text` in it after `mark`, and returns that line.
    ///
    /// # Errors
    ///
    /// If it takes longer than `limit`, or the program ended.
    pub fn line(&self, mark: usize, text: &str, limit: Duration) -> Result<String> {
        let waits = |written: &mut Text| !written.ended && written.find(mark, text).is_none();
        let guard = self.output.text.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.output.changed.wait_timeout_while(guard, limit, waits);
        let (written, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        match written.find(mark, text) {
            Some(line) => Ok(line),
            None if timeout.timed_out() => Err(Error::Late {
                machine: self.name.clone(),
                what: format!("to write {text:?}"),
                seconds: limit.as_secs(),
                log: self.log.clone(),
            }),
            None => Err(Error::Gone {
                machine: self.name.clone(),
                why: "it closed its output".into(),
                log: self.log.clone(),
            }),
        }
    }

    /// Where all that it writes is.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }
}

impl Drop for Companion {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _: std::io::Result<()> = self.child.kill();
        let _: std::io::Result<std::process::ExitStatus> = self.child.wait();
    }
}

impl Output {
    /// Until the program closes its output. That must be read to the end, or the program would stand still one day.
    fn copy(&self, pipe: ChildStderr, mut log: &File) {
        for line in BufReader::new(pipe).lines().map_while(std::io::Result::ok) {
            // Whoever misses it in the log sees that something is missing.
            let _: std::io::Result<()> = writeln!(log, "{line}");
            self.change(|text| text.lines.push(line));
        }
        self.change(|text| text.ended = true);
    }

    fn change(&self, change: impl FnOnce(&mut Text)) {
        change(&mut self.text.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }
}

impl Text {
    fn find(&self, mark: usize, text: &str) -> Option<String> {
        self.lines.iter().skip(mark).find(|line| line.contains(text)).cloned()
    }
}
