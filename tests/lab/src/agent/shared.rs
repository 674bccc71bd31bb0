// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a machine's agent has said so far, for whoever waits for some of it.

use super::Start;
use crate::error::Result;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use virtio_irq_lab_agent::{Answer, Failure, Message};

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    pub(super) changed: Condvar,
    pub(super) logs: PathBuf,
    pub(super) machine: String,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) next_id: u64,
    pub(super) replies: HashMap<u64, Result<Answer, Failure>>,
    pub(super) starts: Vec<Start>,
    /// How many starts were asked for.
    pub(super) planned: usize,
    /// Where the machine's console is, which has a kernel's last words.
    pub(super) console: Option<PathBuf>,
    pub(super) kernel: Vec<String>,
    pub(super) output: HashMap<String, Vec<String>>,
    pub(super) files: HashMap<String, File>,
    pub(super) gone: Option<String>,
}

impl Shared {
    pub(super) fn listen(&self, mut reader: impl BufRead) {
        let mut line = String::new();
        let why = loop {
            line.clear();
            match reader.read_line(&mut line) {
                Ok(0) => break "its end of the channel closed".to_owned(),
                Ok(_) => {}
                Err(error) => break error.to_string(),
            }
            // Anything else is a line that a machine's end or restart cut short.
            if let Ok(message) = serde_json::from_str(&line) {
                self.take(message);
            }
        };
        self.state().gone = Some(why);
        self.changed.notify_all();
    }

    fn take(&self, message: Message) {
        let mut state = self.state();
        match message {
            Message::Hello { boot_id, kernel, uptime } => {
                if state.starts.len() >= state.planned {
                    state.gone = Some("it restarted unasked, as a kernel does that panics".to_owned());
                }
                state.starts.push(Start { boot_id, kernel, took: Duration::from_millis(uptime) });
            }
            Message::Reply { id, outcome } => {
                state.replies.insert(id, outcome);
            }
            Message::Kernel { lines } => {
                for line in lines {
                    self.record(&mut state, "kernel", &line);
                    state.kernel.push(line);
                }
            }
            Message::Output { name, line, .. } => {
                self.record(&mut state, &name, &line);
                state.output.entry(name).or_default().push(line);
            }
        }
        self.changed.notify_all();
    }

    /// Logs are for people: one that cannot be written must not stop a scenario.
    pub(super) fn record(&self, state: &mut State, name: &str, line: &str) {
        let file = match state.files.get_mut(name) {
            Some(file) => file,
            None => match File::create(self.log(name)) {
                Ok(file) => state.files.entry(name.to_owned()).or_insert(file),
                Err(_) => return,
            },
        };
        let _: std::io::Result<()> = writeln!(file, "{line}");
    }

    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{}-{name}.log", self.machine))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
