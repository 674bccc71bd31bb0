// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can go wrong around a scenario, as opposed to in it.

use std::io;
use std::path::{Path, PathBuf};
use virtio_irq_lab_agent::Failure;

/// Why the lab could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This machine lacks something that the lab needs.
    #[error("{missing}\n  remedy: {remedy}")]
    Missing {
        /// What is missing.
        missing: String,
        /// What to do or type.
        remedy: String,
    },
    /// A file operation outside of the emulated machines failed.
    #[error("{path}: {source}")]
    File {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// A program outside of the emulated machines failed.
    #[error("{what} failed ({how}); its output ends:\n{tail}\n  whole output: {log}")]
    Program {
        /// What it was run for.
        what: String,
        /// How it ended.
        how: String,
        /// The last lines that it wrote.
        tail: String,
        /// Where all of its output is.
        log: PathBuf,
    },
    /// An operation inside of a machine failed.
    #[error("{machine}: {failure}")]
    Operation {
        /// The machine.
        machine: String,
        /// The agent's answer.
        failure: Failure,
    },
    /// A machine did not do something in time.
    #[error("{machine}: {what} took more than {seconds} s; see {log}")]
    Late {
        /// The machine.
        machine: String,
        /// What was waited for.
        what: String,
        /// How long.
        seconds: u64,
        /// Where to look.
        log: PathBuf,
    },
    /// A machine is gone.
    #[error("{machine} is gone ({why}); see {log}")]
    Gone {
        /// The machine.
        machine: String,
        /// What is known about the reason.
        why: String,
        /// Where to look.
        log: PathBuf,
    },
    /// Something is not as the lab expects it.
    #[error("{0}")]
    Unexpected(String),
}

impl Error {
    /// The errno of an operation that failed inside of a machine.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Operation { failure, .. } => failure.errno,
            _ => None,
        }
    }
}

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Names the file in an I/O error.
pub(crate) trait At<T> {
    fn at(self, path: impl AsRef<Path>) -> Result<T>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| Error::File { path: path.as_ref().to_owned(), source })
    }
}
