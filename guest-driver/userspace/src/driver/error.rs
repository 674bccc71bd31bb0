// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why an operation failed.

#[cfg(doc)]
use super::Driver;
use crate::queue::QueueError;
use crate::session::SessionError;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use virtio_irq_driver::{FindError, NotContiguous, NotHeld, ProbeError};
use virtio_irq_proto::{ReplyError, Status};

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// There is nobody to talk to.
    #[error("cannot connect to {}; is vhost-device-irq running with this --socket-path?", path.display())]
    Connect {
        /// Path of the socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The vhost-user side failed. The driver is of no use any more.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The device is not one that this driver can use.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The device broke the rules of the ring, or never answered so often that the ring is full.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The device did not answer in time. The buffers stay its own until [`Driver::reset`].
    #[error("the device did not answer within {0:?}")]
    Timeout(Duration),
    /// The device refused the request, or its reply is malformed.
    #[error(transparent)]
    Reply(#[from] ReplyError),
    /// The search ended without a function.
    #[error(transparent)]
    Find(#[from] FindError),
    /// The messages do not form a block.
    #[error(transparent)]
    NotContiguous(#[from] NotContiguous),
    /// The request is about sources that this driver does not hold; it was not sent.
    #[error(transparent)]
    NotHeld(#[from] NotHeld),
    /// The request belongs to a feature that was not negotiated; it was not sent.
    #[error("the device does not offer {0}")]
    Feature(&'static str),
    /// The device returned an event buffer without a whole record.
    #[error("the device returned an event buffer without an event")]
    EmptyEvent,
}

impl DriverError {
    /// The status with which the device refused a request, where that is what happened.
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::Reply(ReplyError::Refused(status))
            | Self::Find(FindError::Reply(ReplyError::Refused(status))) => Some(*status),
            _ => None,
        }
    }
}
