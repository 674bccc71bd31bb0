// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Stages and how long they took, on standard error: a moving line on a terminal, plain lines elsewhere.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

const TICK: Duration = Duration::from_millis(120);

/// One stage of work; dropped unfinished, it shows as failed.
#[derive(Debug)]
pub struct Stage {
    name: String,
    start: Instant,
    bar: Option<ProgressBar>,
    over: bool,
}

impl Stage {
    /// Announces a stage.
    #[must_use]
    pub fn begin(name: impl Into<String>) -> Self {
        let name = name.into();
        let bar = stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("  {spinner:.cyan} {msg} {elapsed:.dim}");
            let bar = ProgressBar::new_spinner().with_message(name.clone());
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(TICK);
            bar
        });
        if bar.is_none() {
            eprintln!("  … {name}");
        }
        Self { name, start: Instant::now(), bar, over: false }
    }

    /// Says what the stage is about right now; seen on a terminal only.
    pub fn detail(&self, detail: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}: {detail}", self.name));
        }
    }

    /// Prints a line above the stage.
    pub fn line(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| println!("{line}")),
            None => println!("{line}"),
        }
    }

    /// The stage is done.
    pub fn done(mut self) {
        self.close(true);
    }

    fn close(&mut self, good: bool) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let seconds = self.start.elapsed().as_secs_f32();
        let mark = match (good, stderr().is_terminal()) {
            (true, true) => "\x1b[32m✓\x1b[0m",
            (false, true) => "\x1b[31m✗\x1b[0m",
            (true, false) => "✓",
            (false, false) => "✗",
        };
        eprintln!("  {mark} {} ({seconds:.1} s)", self.name);
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.close(false);
    }
}
