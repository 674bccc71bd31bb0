// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Finding out what nobody says: that a message moved, that sources lost their interrupts.

use super::{Device, Failure, Pair, Run};
use virtio_irq_proto::{FunctionId, IrqType, VectorRange};

/// What the host side is to look at, of one function.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Inspection {
    function: FunctionId,
    sources: Option<IrqType>,
    vectors: Vec<VectorRange>,
    run: Run,
}

impl Inspection {
    /// Which function.
    pub fn function(&self) -> FunctionId {
        self.function
    }

    /// Whether it has sources, so that it is to be seen whether their interrupts are still what was enabled for them;
    /// if they are not, [`Device::revoked`] is to be told.
    pub fn has_sources(&self) -> bool {
        self.sources.is_some()
    }

    /// Vectors whose messages are to be read. What comes of each reading is for [`Device::inspected`].
    pub fn vectors(&self) -> &[VectorRange] {
        &self.vectors
    }
}

impl Device {
    /// Whether there is anything that can change on the host without anybody's saying so, so that it is to be looked at
    /// now and then: sources, and messages that were told of functions whose messages are not stable.
    pub fn needs_inspection(&self) -> bool {
        self.sources.any() || self.functions.unstable().next().is_some()
    }

    /// What there is to look at now.
    pub fn inspections(&mut self) -> Vec<Inspection> {
        let mut inspections = Vec::new();
        let ids: Vec<FunctionId> = self.functions.present().map(|function| function.id).collect();
        for function in ids {
            let sources = self.sources.claimed(function);
            let mut vectors = Vec::new();
            // The guest can clear the enable bit of the MSI capability, which VFIO passes on to the hardware; and one
            // message of a block tells all of them. MSI-X has no bit that the guest could reach.
            if sources == Some(IrqType::Msi)
                && let Some(vector) = self.sources.lowest_vector(function)
            {
                vectors.extend(VectorRange::of_messages(IrqType::Msi, vector, 1));
            }
            vectors.extend(self.functions.next_to_look_at(function, sources));
            if sources.is_some() || !vectors.is_empty() {
                inspections.push(Inspection { function, sources, vectors, run: self.run });
            }
        }
        inspections
    }

    /// The host side read the messages of `vectors`, which are some of `inspection`.
    pub fn inspected(
        &mut self,
        inspection: &Inspection,
        vectors: VectorRange,
        result: Result<Vec<Pair>, Failure>,
    ) {
        let Inspection { function, sources, run, .. } = inspection;
        // What was read was for another guest, or for sources that were given back meanwhile.
        if *run != self.run {
            return;
        }
        match result {
            Ok(pairs) => {
                let held = self.sources.claimed(*function).is_some();
                let in_use = |vector| !held || self.sources.vector_is_held(*function, vector);
                if let Some(stale) = self.functions.forget_moved(*function, vectors, &pairs, in_use) {
                    self.events.message_changed(*function, stale);
                }
            }
            Err(Failure::Gone) => self.function_gone(*function),
            Err(Failure::NotEnabled) if *sources == Some(vectors.irq_type) => self.revoked(*function),
            // A native vector that is not enabled has no message that could be wrong: its driver asks again when it
            // enabled it. And what cannot be read now may be readable the next time.
            Err(_) => {}
        }
    }
}
