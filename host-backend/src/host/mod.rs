// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host side: what the platform knows about the functions that are assigned to the guest.

pub mod linux;
pub mod sim;

use crate::device::{Failure, Pair};
use std::{fmt, io};
use virtio_irq_proto::{PciIds, VectorRange};

/// One PCI function of the host.
pub trait HostFunction: fmt::Debug + Send + Sync {
    /// How the operator named it, for logs.
    fn name(&self) -> &str;

    /// What was found out about it when it was opened.
    fn describe(&self) -> Description;

    /// The pairs that the host programmed for these vectors, as they are now: one per vector, in their order.
    /// The function has all of the vectors.
    ///
    /// # Errors
    /// [`HostError::NotEnabled`] if any of the vectors is not enabled.
    fn read_messages(&self, vectors: VectorRange) -> Result<Vec<Pair>, HostError>;
}

/// What a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    /// Its model.
    pub ids: PciIds,
    /// Number of INTx pins, 0 or 1.
    pub intx_count: u16,
    /// Number of vectors of its MSI capability, 0 to 32.
    pub msi_count: u16,
    /// Number of entries of its MSI-X table, 0 to 2048.
    pub msix_count: u16,
    /// Whether the platform lets the function raise no interrupts but its own, and keeps messages in place while
    /// their vectors are enabled.
    pub isolation: Isolation,
}

/// Whether the platform checks the interrupt messages of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// It does: interrupt remapping on x86, an ITS on arm64.
    Isolated,
    /// It does not, for this reason. A guest that learns one message of the function can have the function write
    /// any other.
    Missing(&'static str),
}

/// Why a function has no messages to tell.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// At least one of the vectors is not enabled.
    #[error("a vector is not enabled")]
    NotEnabled,
    /// The function left the host.
    #[error("the function is gone")]
    Gone,
    /// The platform failed.
    #[error("cannot {operation}: {source}")]
    Failed {
        /// What was being done, as it continues "cannot".
        operation: &'static str,
        /// What the platform said.
        source: io::Error,
    },
}

impl HostError {
    pub(crate) fn failed(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Failed { operation, source }
    }

    /// What the device core is told of it.
    pub fn failure(&self) -> Failure {
        match self {
            Self::NotEnabled => Failure::NotEnabled,
            Self::Gone => Failure::Gone,
            Self::Failed { .. } => Failure::Failed,
        }
    }
}
