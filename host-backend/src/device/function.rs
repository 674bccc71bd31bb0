// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The functions of the guest, and what it was told about them.

use super::sources::Vectors;
use super::{DuplicateId, Pair};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry as MapEntry;
use std::num::NonZeroU16;
use std::ops::Bound;
use virtio_irq_proto::{
    Function, FunctionFlags, FunctionId, IrqType, Message, PciAddress, Status, VectorRange,
};

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
    pub(super) gone: bool,
    /// The operator took it away: nothing will ask for it again once the ids can change.
    detached: bool,
    pub(super) told: BTreeMap<(IrqType, u16), Message>,
    /// The MSI-X vector after which [`Functions::next_to_look_at`] goes on.
    inspected: u16,
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
    /// Each costs the host a mapping of the table.
    const INSPECTED_AT_ONCE: usize = 16;

    pub(super) fn new(assigned: Vec<Assigned>) -> Result<Self, DuplicateId> {
        let mut entries = BTreeMap::new();
        for assigned in assigned {
            let id = assigned.function.id;
            if entries.insert(id, Entry::new(assigned)).is_some() {
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

    /// Every function with what is known about it, in ascending order of their ids.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// One more function, whose id was never another one's since the last reset (IRQ-DEV-20).
    pub(super) fn add(&mut self, assigned: Assigned) -> Result<(), DuplicateId> {
        let id = assigned.function.id;
        match self.entries.entry(id) {
            MapEntry::Occupied(_) => Err(DuplicateId(id)),
            MapEntry::Vacant(place) => {
                place.insert(Entry::new(assigned));
                Ok(())
            }
        }
    }

    /// The lowest id that no function had since the last reset.
    pub(super) fn unused_id(&self) -> Option<FunctionId> {
        (0..=u16::MAX).map(FunctionId).find(|id| !self.entries.contains_key(id))
    }

    /// The operator took the function away. Whether it was still there.
    pub(super) fn detach(&mut self, id: FunctionId) -> bool {
        let there = self.mark_gone(id);
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.detached = true;
        }
        there
    }

    /// The guest sees the function there. Whether there is one.
    pub(super) fn place(&mut self, id: FunctionId, guest: Option<PciAddress>) -> bool {
        let entry = self.entries.get_mut(&id).filter(|entry| !entry.gone);
        entry.map(|entry| entry.assigned.function.guest_address = guest).is_some()
    }

    /// Whether this is news.
    pub(super) fn mark_gone(&mut self, id: FunctionId) -> bool {
        self.entries.get_mut(&id).is_some_and(|entry| {
            entry.told.clear();
            !std::mem::replace(&mut entry.gone, true)
        })
    }

    /// The device was reset: ids can change, and nothing was told.
    pub(super) fn reset(&mut self) {
        self.entries.retain(|_, entry| !entry.detached);
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

    /// The functions that have messages told which the host can move at any time.
    pub(super) fn unstable(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().filter(|entry| !entry.gone && entry.is_unstable() && !entry.told.is_empty())
    }

    /// Vectors whose messages were told and can have moved. `sources` is the type of the sources that the function has, if
    /// it has any: the other types are not enabled then.
    pub(super) fn next_to_look_at(&mut self, id: FunctionId, sources: Option<IrqType>) -> Vec<VectorRange> {
        let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.is_unstable()) else {
            return Vec::new();
        };
        let mut vectors = Vec::new();
        // Those of a function with MSI sources are looked at for another reason already.
        if sources.is_none() {
            let first = entry.told.keys().find(|(irq_type, _)| *irq_type == IrqType::Msi);
            vectors.extend(first.map(|(_, vector)| (IrqType::Msi, *vector)));
        }
        if sources != Some(IrqType::Msi) {
            let after = (IrqType::Msix, entry.inspected);
            let behind = entry.told.range((Bound::Excluded(after), Bound::Unbounded));
            let before = entry.told.range((IrqType::Msix, 0)..=after);
            let some = behind.chain(before).map(|(vector, _)| *vector).take(Self::INSPECTED_AT_ONCE);
            vectors.extend(some);
        }
        if let Some((IrqType::Msix, vector)) = vectors.last() {
            entry.inspected = *vector;
        }
        let one = |(irq_type, vector)| VectorRange::of_messages(irq_type, vector, 1).ok();
        vectors.into_iter().filter_map(one).collect()
    }

    /// Forgets the messages, told earlier, that these pairs, which the vectors have now, show to be wrong.
    pub(super) fn forget_moved(
        &mut self,
        id: FunctionId,
        vectors: VectorRange,
        pairs: &[Pair],
        in_use: impl Fn(u16) -> bool,
    ) -> Option<VectorRange> {
        let pair = pairs.first()?;
        let irq_type = vectors.irq_type;
        let entry = self.entries.get_mut(&id)?;
        if irq_type == IrqType::Msi {
            return entry.forget_stale(irq_type, vectors.first, *pair, in_use);
        }
        let moved = |told: &Message| told.address != pair.address || told.data != pair.data;
        let key = (irq_type, vectors.first);
        entry.told.get(&key).is_some_and(moved).then(|| entry.told.remove(&key))?;
        VectorRange::of_messages(irq_type, vectors.first, 1).ok()
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
    fn new(assigned: Assigned) -> Self {
        Self { assigned, gone: false, detached: false, told: BTreeMap::new(), inspected: 0 }
    }

    fn is_unstable(&self) -> bool {
        !self.assigned.function.flags.contains(FunctionFlags::STABLE)
    }

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
