// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A process on a host.

use crate::agent::Agent;
use crate::error::{Error, Result};
use std::path::PathBuf;
use std::time::Duration;
use virtio_irq_lab_agent::{End, Operation};

/// A process on a host.
#[derive(Debug, Clone)]
pub struct Process {
    pub(crate) name: String,
    pub(crate) id: u32,
    pub(crate) agent: Agent,
}

impl Process {
    /// Its process id there.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Where its output is.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.agent.process_log(&self.name)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// If it has ended.
    pub fn signal(&self, signal: i32) -> Result<()> {
        self.agent.perform(Operation::Signal { process: self.id, signal })
    }

    /// Waits for its end, at most for `limit`; nothing if it runs still.
    ///
    /// # Errors
    ///
    /// If the host does not answer.
    pub fn wait(&self, limit: Duration) -> Result<Option<End>> {
        self.agent.wait(self.id, limit)
    }

    /// Its open descriptors and its threads.
    ///
    /// # Errors
    ///
    /// If it has ended.
    pub fn holdings(&self) -> Result<Holdings> {
        let count = |what: &str| Ok::<_, Error>(self.agent.list(&format!("/proc/{}/{what}", self.id))?.len());
        Ok(Holdings { descriptors: count("fd")?, threads: count("task")? })
    }
}

/// What a process holds of what it could leak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holdings {
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
}

impl Holdings {
    /// Whether nothing has become more.
    #[must_use]
    pub fn are_no_more_than(self, before: Self) -> bool {
        self.descriptors <= before.descriptors && self.threads <= before.threads
    }
}

impl std::fmt::Display for Holdings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} descriptors, {} threads", self.descriptors, self.threads)
    }
}
