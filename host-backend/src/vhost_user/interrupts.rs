// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The thread that interrupts take.
//!
//! The library's worker could wait for them as well, but only by way of an epoll instance in its own; and it would find
//! them one request later than they came.

use super::{Progress, Session};
use crate::bridge::Bridge;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Whose turn it is: a request's, from its first look to its reply, or that of events.
///
/// It keeps the order of the two queues where there is one: a source that fires while the reply to its ALLOCATE is still
/// to be written waits (IRQ-DEV-66). Who waits is next, so neither side can keep the other from its turn.
#[derive(Debug, Default)]
pub(super) struct Turn {
    next: Mutex<()>,
    now: Mutex<()>,
}

impl Turn {
    pub(super) fn take(&self) -> MutexGuard<'_, ()> {
        let _next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// Starts the thread.
    pub(super) fn start_interrupts(session: &Arc<Self>) -> io::Result<()> {
        let name = "interrupts".to_owned();
        let deliverer = Arc::clone(session);
        let thread = thread::Builder::new().name(name).spawn(move || deliverer.deliver_interrupts())?;
        *session.interrupts.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    /// Ends the thread, and waits for it: no ring is touched from there any more.
    pub(super) fn end_interrupts(&self) {
        let thread = self.interrupts.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.ending.store(true, Ordering::Release);
        self.bridge.deliveries().alarm();
        // It does not panic, and nobody would be there to hear of it.
        drop(thread.map(thread::JoinHandle::join));
        self.bridge.deliveries().silence();
    }

    fn deliver_interrupts(&self) {
        while self.bridge.wait() && !self.ending.load(Ordering::Acquire) {
            // There is no source before the first request, with which the rings come.
            let Some([_, events]) = self.rings.get() else {
                // But an earlier frontend's may still be signalled. Left in place it would end every wait at once.
                self.bridge.collect_stale_too();
                continue;
            };
            if self.deliver_events(events, Bridge::collect_stale_too) == Progress::More {
                self.wake_again();
            }
        }
    }
}
