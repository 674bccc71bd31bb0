// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Looking at the device from beside the data path.

use super::Bridge;
use crate::device::Snapshot;
use std::fmt;
use std::io;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// How somebody beside the data path gets to know what is there, and has it look again.
///
/// The thread that serves the guest is the one that makes snapshots while there is a guest, so that it never waits for
/// anybody who wants one.
pub struct Observer {
    doorbell: EventFd,
    publish: Box<dyn Fn(Snapshot) + Send + Sync>,
}

impl Observer {
    /// `publish` gets each snapshot that was asked for. It runs in the data path and must not wait.
    ///
    /// # Errors
    /// The process is out of descriptors.
    pub fn new(publish: Box<dyn Fn(Snapshot) + Send + Sync>) -> io::Result<Self> {
        Ok(Self { doorbell: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?, publish })
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer").finish_non_exhaustive()
    }
}

impl Bridge {
    /// Who wants to know of the device beside the data path. To be said once, before a frontend is served.
    pub fn set_observer(&self, observer: Observer) {
        // There is one control socket.
        let _ = self.observer.set(observer);
    }

    /// What is readable when [`Bridge::show`] has something to do.
    pub(crate) fn doorbell(&self) -> Option<&EventFd> {
        self.observer.get().map(|observer| &observer.doorbell)
    }

    /// Has the thread that serves the guest call [`Bridge::show`], soon.
    pub(crate) fn ring(&self) {
        if let Some(doorbell) = self.doorbell() {
            // It fails only if the counter is full, and then the doorbell was rung already.
            let _ = doorbell.write(1);
        }
    }

    /// Publishes a snapshot.
    pub(crate) fn show(&self) {
        let Some(observer) = self.observer.get() else { return };
        let _ = observer.doorbell.read();
        let snapshot = self.device().snapshot();
        (observer.publish)(snapshot);
    }
}
