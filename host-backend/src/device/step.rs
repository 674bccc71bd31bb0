// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a request comes to: an answer, or a call to the host side first.

#[cfg(doc)]
use super::Device;
use super::{Attach, Enable, Release, Reply, Run, UnmaskPin};
use virtio_irq_proto::{FunctionId, VectorRange};

/// What [`Device::request`] comes to.
#[derive(Debug)]
#[must_use]
pub enum Step {
    /// The request is answered.
    Done(Reply),
    /// The host has to read messages; hand the result to [`Device::messages_read`].
    ReadMessages(ReadMessages),
    /// The host has to enable a type of interrupts; hand the result to [`Device::enabled`].
    Enable(Enable),
    /// The host has to attach vectors; hand the result to [`Device::attached`].
    Attach(Attach),
    /// The host has to release vectors; say so to [`Device::released`].
    Release(Release),
    /// The host has to unmask a pin; hand the result to [`Device::pin_unmasked`].
    UnmaskPin(UnmaskPin),
}

/// A call to the host side: read the messages of these vectors as they are programmed now.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct ReadMessages {
    pub(super) function: FunctionId,
    pub(super) vectors: VectorRange,
    pub(super) run: Run,
}

impl ReadMessages {
    /// Whose messages.
    pub fn function(&self) -> FunctionId {
        self.function
    }

    /// Which vectors. The function has all of them.
    pub fn vectors(&self) -> VectorRange {
        self.vectors
    }
}

/// A pair that the host programmed for one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Where the function writes.
    pub address: u64,
    /// What it writes.
    pub data: u32,
}

/// Why the host side did not do what it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// At least one of the vectors is not enabled.
    NotEnabled,
    /// The function left the host.
    Gone,
    /// The function's interrupts are in use by the guest's own capability.
    Busy,
    /// The VMM did not hand over the function yet.
    NotReady,
    /// Anything else. The host side reports what it was; the guest only learns that it happened.
    Failed,
}
