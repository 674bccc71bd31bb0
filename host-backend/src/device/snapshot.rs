// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The state of the device as it is at one moment, for the operator.

use super::{Assigned, Device, Quota, SourceCounts};
use virtio_irq_proto::{FunctionId, IrqType, Message, SourceId};

/// What there is at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The functions, those that left among them, in ascending order of their ids.
    pub functions: Vec<FunctionState>,
    /// The sources that the driver holds, in ascending order of their ids.
    pub sources: Vec<SourceState>,
    /// What bounds them.
    pub quota: Quota,
    /// No further source is given.
    pub draining: bool,
    /// Feature bits that the device offers.
    pub features: u64,
    /// Feature bits that the driver accepted, of those.
    pub negotiated: u64,
    /// Whether an event waits for a buffer of the driver.
    pub events_pending: bool,
}

/// One function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionState {
    /// What the guest is told about it.
    pub assigned: Assigned,
    /// It left the host, or the operator took it away.
    pub gone: bool,
    /// The messages that the driver was told since the last reset, of each vector.
    pub told: Vec<((IrqType, u16), Message)>,
}

/// One source that the driver holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the words of the specification")]
pub struct SourceState {
    pub id: SourceId,
    pub function: FunctionId,
    pub irq_type: IrqType,
    pub vector: u16,
    pub masked: bool,
    pub pending: bool,
    pub revoked: bool,
    /// It fires more often than it may.
    pub held_back: bool,
    pub counts: SourceCounts,
}

impl Device {
    /// What there is now. It takes time and memory in proportion to the number of functions, of messages told and of
    /// sources.
    pub fn snapshot(&self) -> Snapshot {
        let functions = self.functions.entries().map(|entry| FunctionState {
            assigned: entry.assigned.clone(),
            gone: entry.gone,
            told: entry.told.iter().map(|(vector, message)| (*vector, *message)).collect(),
        });
        Snapshot {
            functions: functions.collect(),
            sources: self.sources.states().collect(),
            quota: self.sources.quota(),
            draining: self.sources.is_draining(),
            features: self.features,
            negotiated: self.negotiated,
            events_pending: self.has_events(),
        }
    }
}
