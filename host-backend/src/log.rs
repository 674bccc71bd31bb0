// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The daemon's log: on standard error, for people or for programs, and the latest problems in memory.

use crate::printable::Printable;
use clap::ValueEnum;
use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::io::{self, IsTerminal};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{self, Writer};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

/// How much to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// What the daemon cannot do.
    Error,
    /// And what is not as it should be.
    Warn,
    /// And what happens.
    Info,
    /// And why.
    Debug,
}

/// How to say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A sentence a line, for people
    Text,
    /// A JSON object a line, with the time and with function, operation and error number in fields of their own
    Json,
}

/// A log that was set up.
#[derive(Clone, Debug)]
pub struct Log {
    filter: reload::Handle<LevelFilter, Registry>,
    problems: Problems,
}

/// A warning or an error that was logged.
#[derive(Clone, Debug)]
pub struct Problem {
    /// When.
    pub time: SystemTime,
    /// `error` or `warn`.
    pub level: &'static str,
    /// What.
    pub message: String,
}

impl LogLevel {
    fn filter(self) -> LevelFilter {
        match self {
            Self::Error => LevelFilter::ERROR,
            Self::Warn => LevelFilter::WARN,
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
        }
    }

    /// As the command line and the control socket have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

impl Log {
    /// Sets the process's log up. A second one in the same process says nothing.
    pub fn init(level: LogLevel, format: LogFormat) -> Self {
        let (filter, handle) = reload::Layer::new(level.filter());
        let problems = Problems::default();
        let log = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_target(false);
        let log = match format {
            // Standard error's reader adds the time: the journal, or the person at the terminal.
            LogFormat::Text => log
                .with_ansi(io::stderr().is_terminal())
                .without_time()
                .fmt_fields(format::debug_fn(write_message))
                .boxed(),
            LogFormat::Json => {
                log.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
            }
        };
        // It fails only if there is a log already.
        let _ = tracing_subscriber::registry().with(filter).with(problems.clone()).with(log).try_init();
        Self { filter: handle, problems }
    }

    /// Says more or less from now on.
    ///
    /// # Errors
    /// The log is gone, which it is only when the process ends.
    pub fn set_level(&self, level: LogLevel) -> io::Result<()> {
        self.filter.reload(level.filter()).map_err(io::Error::other)
    }

    /// The present level.
    pub fn level(&self) -> LogLevel {
        let present = self.filter.clone_current();
        let is_present = |level: &LogLevel| Some(level.filter()) == present;
        LogLevel::value_variants().iter().copied().find(is_present).unwrap_or(LogLevel::Info)
    }

    /// The latest warnings and errors, oldest first.
    pub fn problems(&self) -> Vec<Problem> {
        self.problems.0.lock().map(|problems| problems.iter().cloned().collect()).unwrap_or_default()
    }
}

/// The sentence alone: the other fields have their place in it already. Whatever it quotes cannot move the cursor.
fn write_message(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    if field.name() != "message" {
        return Ok(());
    }
    write!(Printable(writer), "{value:?}")
}

/// The latest warnings and errors.
#[derive(Clone, Debug, Default)]
struct Problems(Arc<Mutex<VecDeque<Problem>>>);

impl Problems {
    const MOST: usize = 16;
}

impl<S: Subscriber> Layer<S> for Problems {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warn",
            _ => return,
        };
        let mut message = Message::default();
        event.record(&mut message);
        // Whoever has something to log does not wait for a reader. What is missed here is in the log.
        let Ok(mut problems) = self.0.try_lock() else { return };
        if problems.len() == Self::MOST {
            problems.pop_front();
        }
        problems.push_back(Problem { time: SystemTime::now(), level, message: message.0 });
    }
}

#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            // A string takes all that is written to it.
            let _ = write!(self.0, "{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::{info, warn};

    #[test]
    fn the_latest_problems_are_kept_and_nothing_else() {
        let problems = Problems::default();
        let subscriber = tracing_subscriber::registry().with(problems.clone());
        tracing::subscriber::with_default(subscriber, || {
            info!("no problem");
            for number in 0..20 {
                warn!(function = "00:05.0", "problem {number}");
            }
        });
        let kept: Vec<_> = problems.0.lock().unwrap().iter().map(|problem| problem.message.clone()).collect();
        assert_eq!(kept.len(), 16);
        assert_eq!((kept[0].as_str(), kept[15].as_str()), ("problem 4", "problem 19"));
    }
}
