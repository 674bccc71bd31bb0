// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The sources that the guest holds, and which of them have something to say.

mod pending;

pub use pending::Watch;

use super::limit::{RateLimit, Taken};
use super::snapshot::SourceState;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;
use virtio_irq_proto::{FunctionId, IrqType, SourceId, SourceRange, Status};

/// How many sources a guest may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Of all functions together: the `max_sources` of the configuration space.
    pub guest: u32,
    /// Of one function.
    pub function: u32,
}

/// Vectors of one function, each with the source that it is.
pub type Vectors = Vec<(u16, SourceId)>;

#[derive(Debug)]
pub(super) struct Sources {
    quota: Quota,
    /// No further source is given.
    draining: bool,
    /// Indexed by source id. Grows to the quota.
    slots: Vec<Option<Slot>>,
    used: u32,
    /// What each function has. A function has sources of one type at a time, as VFIO has interrupts.
    claims: BTreeMap<FunctionId, Claim>,
    /// Sources that fired and are not masked, each once, in the order in which they fired: this is what makes
    /// delivery fair.
    ready: VecDeque<SourceId>,
    limit: Option<RateLimit>,
    /// Sources that fire too often and are not watched until then.
    paused: BTreeSet<(Instant, SourceId)>,
    /// Sources that were lost and of which the driver does not know, each once.
    revoked: VecDeque<SourceId>,
    /// Sources that ended without a request's doing, and that the host side does not know of yet.
    lost: Vec<Detach>,
    /// How many times the host side was given such and is not done with them.
    releasing: usize,
    /// See [`Device::look_first`](super::Device::look_first).
    look_first: bool,
}

#[derive(Debug)]
struct Claim {
    irq_type: IrqType,
    vectors: BTreeMap<u16, SourceId>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    function: FunctionId,
    irq_type: IrqType,
    vector: u16,
    /// Held back by the driver. An INTx source masks itself when it fires, as the pin does under VFIO.
    masked: bool,
    /// Fired since its last event.
    pending: bool,
    /// Lost: it fires no more.
    revoked: bool,
    /// The driver is told of it: its ALLOCATE is answered. What it has to say before that waits (IRQ-DEV-66).
    given: bool,
    taken: Taken,
    /// Fires too often and is not watched until then.
    paused: Option<Instant>,
    /// Fired when it might not: it is pending, but not before it is watched again.
    late: bool,
    counts: SourceCounts,
}

/// What a source did since it was allocated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceCounts {
    /// How often it was found to have fired. Interrupts that come faster than they are looked for are one.
    pub fired: u64,
    /// Number of its INTERRUPT events in buffers of the driver.
    pub delivered: u64,
}

impl Slot {
    fn new(function: FunctionId, irq_type: IrqType, vector: u16) -> Self {
        Self {
            function,
            irq_type,
            vector,
            masked: false,
            pending: false,
            revoked: false,
            given: false,
            taken: Taken::default(),
            paused: None,
            late: false,
            counts: SourceCounts::default(),
        }
    }

    /// Whether its INTERRUPT waits for nothing but a buffer.
    fn is_ready(&self) -> bool {
        self.pending && self.given && !self.masked && !self.late
    }
}

impl Sources {
    pub(super) fn new(quota: Quota) -> Self {
        Self {
            quota,
            draining: false,
            slots: Vec::new(),
            used: 0,
            claims: BTreeMap::new(),
            ready: VecDeque::new(),
            limit: None,
            paused: BTreeSet::new(),
            revoked: VecDeque::new(),
            lost: Vec::new(),
            releasing: 0,
            look_first: false,
        }
    }

    pub(super) fn quota(&self) -> Quota {
        self.quota
    }

    pub(super) fn drain(&mut self, draining: bool) {
        self.draining = draining;
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining
    }

    /// The sources that the driver holds, in ascending order of their ids.
    pub(super) fn states(&self) -> impl Iterator<Item = SourceState> + '_ {
        (0u32..).zip(&self.slots).filter_map(|(id, slot)| {
            let Slot { function, irq_type, vector, masked, pending, revoked, counts, paused, .. } = (*slot)?;
            Some(SourceState {
                id: SourceId(id),
                function,
                irq_type,
                vector,
                masked,
                pending,
                revoked,
                held_back: paused.is_some(),
                counts,
            })
        })
    }

    /// The type of the sources that a function has, if it has any.
    pub(super) fn claimed(&self, function: FunctionId) -> Option<IrqType> {
        self.claims.get(&function).map(|claim| claim.irq_type)
    }

    /// Number of sources that the function could still get.
    pub(super) fn room(&self, function: FunctionId) -> u32 {
        if self.draining {
            return 0;
        }
        let held = self.claims.get(&function).map_or(0, |claim| claim.vectors.len());
        let held = u32::try_from(held).unwrap_or(u32::MAX);
        self.quota.function.saturating_sub(held).min(self.quota.guest.saturating_sub(self.used))
    }

    /// Whether the driver holds any source that was not revoked.
    pub(super) fn any(&self) -> bool {
        !self.claims.is_empty()
    }

    /// The lowest vector of the function that is a source.
    pub(super) fn lowest_vector(&self, function: FunctionId) -> Option<u16> {
        self.claims.get(&function)?.vectors.keys().next().copied()
    }

    /// Vectors from `first` up to `end` that are not sources, in ascending order.
    pub(super) fn unclaimed(&self, function: FunctionId, first: u16, end: u16) -> impl Iterator<Item = u16> {
        let claim = self.claims.get(&function);
        (first..end).filter(move |vector| claim.is_none_or(|claim| !claim.vectors.contains_key(vector)))
    }

    /// Whether the vector of the function is a source.
    pub(super) fn vector_is_held(&self, function: FunctionId, vector: u16) -> bool {
        self.claims.get(&function).is_some_and(|claim| claim.vectors.contains_key(&vector))
    }

    /// Whether all of these are the driver's and none was lost.
    pub(super) fn hold(&self, vectors: &Vectors) -> bool {
        vectors.iter().all(|(_, id)| slot_of(&self.slots, *id).is_some_and(|slot| !slot.revoked))
    }

    /// Makes sources of these vectors, which are unclaimed and no more than there is room for. They say nothing until they
    /// are [given](Sources::give).
    pub(super) fn claim(&mut self, function: FunctionId, irq_type: IrqType, vectors: &[u16]) -> Vectors {
        let claim =
            self.claims.entry(function).or_insert_with(|| Claim { irq_type, vectors: BTreeMap::new() });
        let mut ids = (0..self.quota.guest).map(SourceId);
        let mut made = Vec::with_capacity(vectors.len());
        for vector in vectors {
            let slot = Slot::new(function, irq_type, *vector);
            // The lowest free ids: a driver can keep its tables short.
            let Some(id) = ids.find(|id| slot_of(&self.slots, *id).is_none()) else { break };
            let index = index(id);
            if index >= self.slots.len() {
                self.slots.resize(index.saturating_add(1), None);
            }
            if let Some(place) = self.slots.get_mut(index) {
                *place = Some(slot);
                self.used = self.used.saturating_add(1);
                claim.vectors.insert(*vector, id);
                made.push((*vector, id));
            }
        }
        made
    }

    /// The driver holds these sources from now on. What fired before comes in the order of the sources.
    pub(super) fn give(&mut self, vectors: &Vectors) {
        for (_, id) in vectors {
            if let Some(Some(slot)) = self.slots.get_mut(index(*id)) {
                slot.given = true;
                if slot.is_ready() {
                    self.ready.push_back(*id);
                    self.look_first = true;
                }
            }
        }
    }

    /// Takes sources away from the driver. Returns the vectors by function, and whether the function has none left.
    /// Revoked ones have no vector to release any more.
    pub(super) fn remove(&mut self, sources: impl Iterator<Item = SourceId>) -> Vec<Detach> {
        let mut removed: BTreeMap<FunctionId, Detach> = BTreeMap::new();
        let mut forget = false;
        for id in sources {
            let Some(slot) = self.slots.get_mut(index(id)).and_then(Option::take) else { continue };
            self.used = self.used.saturating_sub(1);
            forget |= slot.pending || slot.revoked;
            if let Some(until) = slot.paused {
                self.paused.remove(&(until, id));
            }
            if slot.revoked {
                continue;
            }
            let entry = removed.entry(slot.function).or_insert_with(|| Detach {
                function: slot.function,
                irq_type: slot.irq_type,
                vectors: Vec::new(),
                last: false,
            });
            entry.vectors.push((slot.vector, id));
            if let Some(claim) = self.claims.get_mut(&slot.function) {
                claim.vectors.remove(&slot.vector);
                if claim.vectors.is_empty() {
                    self.claims.remove(&slot.function);
                    entry.last = true;
                }
            }
        }
        if forget {
            let slots = &self.slots;
            self.ready.retain(|id| slot_of(slots, *id).is_some());
            self.revoked.retain(|id| slot_of(slots, *id).is_some());
        }
        removed.into_values().collect()
    }

    /// Takes everything away from the driver.
    pub(super) fn clear(&mut self) -> Vec<Detach> {
        let all = 0..u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        self.remove(all.map(SourceId))
    }

    /// The sources of a function, revoked ones among them.
    pub(super) fn of(&self, function: FunctionId) -> Vec<SourceId> {
        (0u32..)
            .zip(&self.slots)
            .filter(|(_, slot)| slot.is_some_and(|slot| slot.function == function))
            .map(|(id, _)| SourceId(id))
            .collect()
    }

    /// The ids of a range, if all of them are the driver's.
    pub(super) fn owned(&self, range: SourceRange) -> Result<impl Iterator<Item = SourceId> + use<>, Status> {
        let ids = (range.first.0..).take(usize::from(range.count.get())).map(SourceId);
        let whole = range.end() <= u64::try_from(self.slots.len()).unwrap_or(0);
        if whole && ids.clone().all(|id| slot_of(&self.slots, id).is_some()) {
            Ok(ids)
        } else {
            Err(Status::NoSource)
        }
    }

    /// The host took the function's interrupts away: its sources are lost, and the driver is told of each.
    pub(super) fn revoke(&mut self, function: FunctionId) {
        let Some(claim) = self.claims.remove(&function) else { return };
        let lost = self.end_claim(function, claim);
        self.lost.push(lost);
    }

    /// Takes every source away, and tells the driver of each. Returns what the host has to release.
    pub(super) fn revoke_all(&mut self) -> Lost {
        let claims = std::mem::take(&mut self.claims);
        let ended: Vec<_> =
            claims.into_iter().map(|(function, claim)| self.end_claim(function, claim)).collect();
        self.lost.extend(ended);
        self.take_lost()
    }

    fn end_claim(&mut self, function: FunctionId, claim: Claim) -> Detach {
        let irq_type = claim.irq_type;
        let vectors: Vectors = claim.vectors.into_iter().collect();
        for (_, id) in &vectors {
            if let Some(Some(slot)) = self.slots.get_mut(index(*id)) {
                slot.revoked = true;
                slot.pending = false;
                slot.late = false;
                if let Some(until) = slot.paused.take() {
                    self.paused.remove(&(until, *id));
                }
                // Of one that is not given yet the driver never hears.
                if slot.given {
                    self.revoked.push_back(*id);
                }
            }
        }
        let slots = &self.slots;
        self.ready.retain(|id| slot_of(slots, *id).is_some_and(|slot| slot.pending));
        Detach { function, irq_type, vectors, last: true }
    }

    /// The function is gone and the driver is told that instead.
    pub(super) fn drop_function(&mut self, function: FunctionId) {
        let removed = self.remove(self.of(function).into_iter());
        self.lost.extend(removed);
    }

    /// What the host side has to release of sources that ended since the last call without a request's doing.
    pub(super) fn take_lost(&mut self) -> Lost {
        let lost = Lost(std::mem::take(&mut self.lost));
        self.releasing = self.releasing.saturating_add(usize::from(!lost.0.is_empty()));
        lost
    }

    /// The host side released all that it can of these.
    pub(super) fn lost_released(&mut self, lost: &Lost) {
        self.releasing = self.releasing.saturating_sub(usize::from(!lost.0.is_empty()));
    }

    /// Sources that were lost and of which the driver can be told: the host has back what they had. A driver that is told
    /// goes on to enable the interrupts natively, or to free the sources and allocate others.
    fn tellable(&self) -> usize {
        if self.lost.is_empty() && self.releasing == 0 { self.revoked.len() } else { 0 }
    }
}

/// What the host side has to release of sources that ended without a request's doing. It goes back to
/// [`Device::lost_released`](super::Device::lost_released), before which the driver is told of no revocation.
#[derive(Debug)]
#[must_use]
pub struct Lost(Vec<Detach>);

impl Lost {
    /// What is to be released, in this order.
    pub fn detaches(&self) -> &[Detach] {
        &self.0
    }
}

/// Vectors of one function that are sources no more: the host side stops their delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Detach {
    /// Whose vectors.
    pub function: FunctionId,
    /// Of which type.
    pub irq_type: IrqType,
    /// Which vectors, each with the source that it was.
    pub vectors: Vectors,
    /// The function has no sources any more: its interrupts are to be disabled on the host.
    pub last: bool,
}

fn index(id: SourceId) -> usize {
    // usize has at least 32 bits on every host that has virtual machines.
    usize::try_from(id.0).unwrap_or(usize::MAX)
}

fn slot_of(slots: &[Option<Slot>], id: SourceId) -> Option<&Slot> {
    slots.get(index(id)).and_then(Option::as_ref)
}
