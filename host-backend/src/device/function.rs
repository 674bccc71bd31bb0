// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The functions of the guest, and what it was told about them.

use super::sources::Vectors;
use super::{DuplicateId, Pair};
use std::collections::BTreeMap;
use std::num::NonZeroU16;
use virtio_irq_proto::{Function, FunctionId, IrqType, Message, Status, VectorRange};

/// A function that is assigned to the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// What the guest is told about it.
    pub function: Function,
    /// The function is not isolated and the operator did not allow that: its messages are not told.
    pub refused: bool,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) assigned: Assigned,
    gone: bool,
    told: BTreeMap<(IrqType, u16), Message>,
}

#[derive(Debug)]
pub(super) struct Functions {
    entries: BTreeMap<FunctionId, Entry>,
    /// The next generation that no message carried yet. It outlives resets: a guest that was only paused, which a
    /// backend cannot tell from a reset, must not see an old generation with a new message.
    generation: u32,
}

/// Result of [`Functions::tell`] and [`Functions::tell_vectors`].
pub(super) struct Told {
    /// One per vector of the request.
    pub(super) messages: Vec<Message>,
    /// Vectors beyond the request whose messages, told earlier, are now known to be wrong.
    pub(super) stale: Option<VectorRange>,
}

impl Functions {
    pub(super) fn new(assigned: Vec<Assigned>) -> Result<Self, DuplicateId> {
        let mut entries = BTreeMap::new();
        for assigned in assigned {
            let id = assigned.function.id;
            if entries.insert(id, Entry { assigned, gone: false, told: BTreeMap::new() }).is_some() {
                return Err(DuplicateId(id));
            }
        }
        Ok(Self { entries, generation: 1 })
    }

    /// The functions that did not leave, in ascending order of their ids.
    pub(super) fn present(&self) -> impl Iterator<Item = &Function> {
        self.entries.values().filter(|entry| !entry.gone).map(|entry| &entry.assigned.function)
    }

    pub(super) fn find(&self, id: FunctionId) -> Result<&Entry, Status> {
        match self.entries.get(&id) {
            None => Err(Status::NoFunction),
            Some(entry) if entry.gone => Err(Status::FunctionGone),
            Some(entry) => Ok(entry),
        }
    }

    /// Whether this is news.
    pub(super) fn mark_gone(&mut self, id: FunctionId) -> bool {
        self.entries.get_mut(&id).is_some_and(|entry| {
            entry.told.clear();
            !std::mem::replace(&mut entry.gone, true)
        })
    }

    pub(super) fn forget_told(&mut self) {
        for entry in self.entries.values_mut() {
            entry.told.clear();
        }
    }

    /// Gives the pairs of `vectors` their generations, and remembers them as told.
    pub(super) fn tell(
        &mut self,
        id: FunctionId,
        vectors: VectorRange,
        pairs: &[Pair],
    ) -> Result<Told, Status> {
        let numbered = (vectors.first..=u16::MAX).zip(pairs.iter().copied());
        let messages = self.remember(id, vectors.irq_type, numbered)?;
        let now = pairs.first().map(|pair| (vectors.irq_type, vectors.first, *pair));
        Ok(Told { messages, stale: self.forget_stale(id, now, |_| true) })
    }

    /// As [`Functions::tell`], for vectors that became sources. Of the others only those `in_use` are of interest:
    /// vectors that were sources before have whatever message the host gave them when it enabled the type again.
    pub(super) fn tell_vectors(
        &mut self,
        id: FunctionId,
        irq_type: IrqType,
        vectors: &Vectors,
        pairs: &[Pair],
        in_use: impl Fn(u16) -> bool,
    ) -> Result<Told, Status> {
        let numbered = vectors.iter().map(|(vector, _)| *vector).zip(pairs.iter().copied());
        let messages = self.remember(id, irq_type, numbered.clone())?;
        let now = numbered.map(|(vector, pair)| (irq_type, vector, pair)).next();
        Ok(Told { messages, stale: self.forget_stale(id, now, in_use) })
    }

    fn forget_stale(
        &mut self,
        id: FunctionId,
        now: Option<(IrqType, u16, Pair)>,
        in_use: impl Fn(u16) -> bool,
    ) -> Option<VectorRange> {
        let (irq_type, vector, pair) = now?;
        self.entries.get_mut(&id)?.forget_stale(irq_type, vector, pair, in_use)
    }

    fn remember(
        &mut self,
        id: FunctionId,
        irq_type: IrqType,
        pairs: impl Iterator<Item = (u16, Pair)>,
    ) -> Result<Vec<Message>, Status> {
        let fresh = self.generation;
        let entry = match self.entries.get_mut(&id) {
            None => return Err(Status::NoFunction),
            Some(entry) if entry.gone => return Err(Status::FunctionGone),
            Some(entry) => entry,
        };
        let mut messages = Vec::with_capacity(pairs.size_hint().0);
        for (vector, pair) in pairs {
            let message = match entry.told.get(&(irq_type, vector)).copied() {
                Some(told) if told.address == pair.address && told.data == pair.data => told,
                _ => Message { address: pair.address, data: pair.data, generation: fresh },
            };
            entry.told.insert((irq_type, vector), message);
            messages.push(message);
        }
        if messages.iter().any(|message| message.generation == fresh) {
            self.generation = fresh.wrapping_add(1);
        }
        Ok(messages)
    }
}

impl Entry {
    /// The MSI capability has one address and one base for all vectors, so one message tells what every other one
    /// is now. Vectors of an MSI-X table say nothing about each other.
    fn forget_stale(
        &mut self,
        irq_type: IrqType,
        vector: u16,
        now: Pair,
        in_use: impl Fn(u16) -> bool,
    ) -> Option<VectorRange> {
        if irq_type != IrqType::Msi {
            return None;
        }
        let base = now.data.wrapping_sub(u32::from(vector));
        let mut stale: Option<(u16, u16)> = None;
        self.told.retain(|(irq_type, vector), told| {
            let expected = Pair { address: now.address, data: base.wrapping_add(u32::from(*vector)) };
            let keep = *irq_type != IrqType::Msi
                || told.address == expected.address && told.data == expected.data
                || !in_use(*vector);
            if !keep {
                stale = Some((stale.map_or(*vector, |(first, _)| first), *vector));
            }
            keep
        });
        let (first, last) = stale?;
        let count = NonZeroU16::new(last.checked_sub(first)?.checked_add(1)?)?;
        Some(VectorRange { irq_type: IrqType::Msi, first, count })
    }
}
