// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Joins the device core and the host side. Knows no transport.

use crate::device::{Assigned, Device, DuplicateId, Pair, Reply, Step};
use crate::host::{HostError, HostFunction};
use crate::rate::Limited;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tracing::warn;
use virtio_irq_proto::wire;
use virtio_irq_proto::{FunctionId, IrqType, VectorRange};

/// A device with its host. Shared by everything that serves it.
#[derive(Debug)]
pub struct Bridge {
    device: Mutex<Device>,
    functions: BTreeMap<FunctionId, Box<dyn HostFunction>>,
    /// A guest decides how often the host side fails.
    complaints: Limited,
}

impl Bridge {
    /// A device with these functions, each with what the host knows about it.
    ///
    /// # Errors
    /// Two functions with one id.
    pub fn new(functions: Vec<(Assigned, Box<dyn HostFunction>)>) -> Result<Self, DuplicateId> {
        let device = Device::new(functions.iter().map(|(assigned, _)| assigned.clone()).collect())?;
        let functions = functions.into_iter().map(|(assigned, host)| (assigned.function.id, host)).collect();
        Ok(Self { device: Mutex::new(device), functions, complaints: Limited::default() })
    }

    /// The device core. Hold it briefly, and never during a call to the host.
    pub fn device(&self) -> MutexGuard<'_, Device> {
        // The core does not panic; were it to, its state is still that of whole operations.
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a request; see [`Device::request`].
    pub fn answer(&self, readable: &[u8], writable: usize) -> Reply {
        let mut step = self.device().request(readable, writable);
        loop {
            step = match step {
                Step::Done(reply) => return reply,
                Step::ReadMessages(call) => {
                    let result = self.read_messages(call.function(), call.vectors());
                    self.device().messages_read(call, result.map_err(|error| error.failure()))
                }
            }
        }
    }

    fn read_messages(&self, id: FunctionId, vectors: VectorRange) -> Result<Vec<Pair>, HostError> {
        let function = self.functions.get(&id).ok_or(HostError::Gone)?;
        let result = function.read_messages(vectors);
        if let Err(error @ (HostError::Failed { .. } | HostError::Gone)) = &result {
            let range = Range(vectors);
            self.complaints.run(|| warn!("{}, {range}: {error}", function.name()));
        }
        result
    }

    /// The configuration space.
    pub fn config(&self) -> wire::Config {
        self.device().config()
    }
}

/// A range of vectors as people say it.
struct Range(VectorRange);

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0.irq_type {
            IrqType::Intx => "INTx",
            IrqType::Msi => "MSI",
            IrqType::Msix => "MSI-X",
        };
        match (self.0.first, self.0.end().saturating_sub(1)) {
            (first, last) if u32::from(first) == last => write!(f, "{name} vector {first}"),
            (first, last) => write!(f, "{name} vectors {first} to {last}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_read_as_people_say_them() {
        let range = |irq_type, first, count| Range(VectorRange::of_messages(irq_type, first, count).unwrap());
        assert_eq!(range(IrqType::Msi, 5, 1).to_string(), "MSI vector 5");
        assert_eq!(range(IrqType::Msix, 5, 3).to_string(), "MSI-X vectors 5 to 7");
    }
}
