// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From eventfds to the device core: which sources fired, and which fire too often to be watched.
//!
//! Several threads may do this at the same time. Taking a signal and telling the core of it are one step: one that was
//! taken and not told yet would come after an INTERRUPT that stands for it already (IRQ-DEV-54).

use super::Bridge;
use crate::deliveries::{BATCH, Room};
use crate::device::Watch;
use std::io;
use std::sync::PoisonError;
use std::time::Instant;
use tracing::warn;

impl Bridge {
    /// Tells the device core which sources fired since the last call. Returns whether there may be more.
    pub fn collect(&self) -> bool {
        self.deliveries.count() > 0 && self.collect_stale_too()
    }

    /// The same, and signals of sources that are gone: while somebody else has their eventfds open, they are watched.
    pub(crate) fn collect_stale_too(&self) -> bool {
        let mut room = Room::new();
        let _watching = self.watching.lock().unwrap_or_else(PoisonError::into_inner);
        let signals = match self.deliveries.take(&mut room) {
            Ok(signals) if signals.is_empty() => return false,
            Ok(signals) => signals,
            Err(error) => return self.cannot_look(&error),
        };
        let mut paused = Vec::new();
        {
            let (mut device, now) = (self.device(), Instant::now());
            self.deliveries.give(signals, |signal| {
                if device.fired(signal.source, now) == Watch::Paused {
                    paused.push(signal);
                }
            });
        }
        for signal in &paused {
            if let Err(error) = self.deliveries.pause(*signal) {
                self.complaints.run(|| warn!("cannot hold source {} back: {error}", signal.source));
            }
        }
        if !paused.is_empty() {
            self.set_alarm();
        }
        signals.is_full()
    }

    /// Waits until there is something to [collect](Bridge::collect_stale_too), or until the
    /// [alarm](crate::deliveries::Deliveries::alarm). Returns whether it could.
    pub(crate) fn wait(&self) -> bool {
        self.deliveries.wait().map_or_else(|error| self.cannot_look(&error), |()| true)
    }

    /// Returns whether looking again can help.
    fn cannot_look(&self, error: &io::Error) -> bool {
        let interrupted = error.kind() == io::ErrorKind::Interrupted;
        if !interrupted {
            self.complaints.run(|| warn!("cannot look for interrupts: {error}"));
        }
        interrupted
    }

    /// Watches sources again that fired too often and may fire again. Bounded: what is left is for the next alarm.
    pub(super) fn resume(&self) {
        let _watching = self.watching.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        for _ in 0..BATCH {
            let Some(source) = self.device().resumed(now) else { break };
            if let Err(error) = self.deliveries.resume(source) {
                self.complaints.run(|| warn!("cannot watch source {source}: {error}"));
            }
        }
        self.set_alarm();
    }

    fn set_alarm(&self) {
        let at = self.device().resumes_at();
        if let Err(error) = self.lookout.alarm(at) {
            self.complaints.run(|| warn!("cannot set the clock: {error}"));
        }
    }
}
