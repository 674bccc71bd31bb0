// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From eventfds to the device core: which sources fired, and which fire too often to be watched.
//!
//! One thread at a time does this: whoever tells the driver of what fired. A second one could have taken a signal, and not
//! told the core of it yet, while the first has it told: one that stands for it already (IRQ-DEV-79).

use super::Bridge;
use crate::deliveries::{BATCH, Room, Signals};
use crate::device::Watch;
use std::io;
use std::sync::{MutexGuard, PoisonError};
use std::time::Instant;
use tracing::warn;

impl Bridge {
    /// Tells the device core which sources fired until now, all of them.
    pub fn collect(&self) {
        let mut room = Room::new();
        // With more sources than there is room for, those that go on firing could keep this from its end.
        for _ in 0..=self.deliveries.count() / BATCH {
            let watching = self.watching();
            match self.deliveries.take(&mut room) {
                Ok(signals) if signals.is_empty() => break,
                Ok(signals) => {
                    self.fired(signals, &watching);
                }
                Err(error) => {
                    self.cannot_look(&error);
                    break;
                }
            }
        }
    }

    /// Waits until a source fires and tells the device core which did, or until somebody
    /// [rings](crate::deliveries::Deliveries::ring). Returns whether there are events to tell.
    pub(crate) fn wait(&self) -> bool {
        let mut room = Room::new();
        match self.deliveries.wait(&mut room) {
            Ok(signals) => self.fired(signals, &self.watching()),
            Err(error) => {
                self.cannot_look(&error);
                false
            }
        }
    }

    fn cannot_look(&self, error: &io::Error) {
        if error.kind() != io::ErrorKind::Interrupted {
            self.complaints.run(|| warn!("cannot look for interrupts: {error}"));
        }
    }

    fn watching(&self) -> MutexGuard<'_, ()> {
        self.watching.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fired(&self, signals: Signals<'_>, _watching: &MutexGuard<'_, ()>) -> bool {
        let mut paused = Vec::new();
        let has_events = {
            let mut device = self.device();
            // A look at the clock costs as much as all the rest of this.
            let now = if device.is_rate_limited() { Instant::now() } else { self.began };
            self.deliveries.give(signals, |signal| {
                if device.fired(signal.source, now) == Watch::Paused {
                    paused.push(signal);
                }
            });
            device.has_events()
        };
        for signal in &paused {
            if let Err(error) = self.deliveries.pause(*signal) {
                self.complaints.run(|| warn!("cannot hold source {} back: {error}", signal.source));
            }
        }
        if !paused.is_empty() {
            self.set_alarm();
        }
        has_events
    }

    /// Watches sources again that fired too often and may fire again. Bounded: what is left is for the next alarm.
    pub(super) fn resume(&self) {
        let _watching = self.watching();
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
