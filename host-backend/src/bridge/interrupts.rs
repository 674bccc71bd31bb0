// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From eventfds to the device core: which sources fired, and which fire too often to be watched.
//!
//! Several threads may do this at the same time.

use super::Bridge;
use crate::deliveries::{BATCH, Room, Signals};
use crate::device::Watch;
use std::io;
use std::sync::PoisonError;
use std::time::Instant;
use tracing::warn;

impl Bridge {
    /// Tells the device core which sources fired since the last call. Returns whether there may be more.
    pub fn collect(&self) -> bool {
        if self.deliveries.count() == 0 {
            return false;
        }
        let mut room = Room::new();
        self.tell(self.deliveries.take(&mut room)).unwrap_or(false)
    }

    /// Waits until a source fires, or until the [alarm](crate::deliveries::Deliveries::alarm), and tells the device core.
    /// Returns whether it could.
    pub(crate) fn wait_and_collect(&self) -> bool {
        let mut room = Room::new();
        self.tell(self.deliveries.wait(&mut room)).is_some()
    }

    /// Returns whether there may be more signals; `None` if it could not look.
    fn tell(&self, signals: io::Result<Signals<'_>>) -> Option<bool> {
        let signals = match signals {
            Ok(signals) if signals.is_empty() => return Some(false),
            Ok(signals) => signals,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Some(true),
            Err(error) => {
                self.complaints.run(|| warn!("cannot look for interrupts: {error}"));
                return None;
            }
        };
        let _watching = self.watching.lock().unwrap_or_else(PoisonError::into_inner);
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
        Some(signals.is_full())
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
