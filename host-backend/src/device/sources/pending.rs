// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which sources have something to say, and when.

use super::{Sources, index, slot_of};
use crate::device::limit::RateLimit;
use std::time::Instant;
use virtio_irq_proto::{Event, FunctionId, IrqType, SourceId};

/// What a source that fired wants of whoever watches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Watch {
    /// To be told when it fires again.
    On,
    /// Not to be told so until [`Device::resumed`](crate::device::Device::resumed) gives it: it fires more often than it may.
    Paused,
}

impl Sources {
    pub(in crate::device) fn limit(&mut self, limit: RateLimit) {
        self.limit = Some(limit);
    }

    pub(in crate::device) fn is_limited(&self) -> bool {
        self.limit.is_some()
    }

    /// A source fired. One that the driver does not hold any more fired too late, and is ignored.
    pub(in crate::device) fn fired(&mut self, id: SourceId, now: Instant) -> Watch {
        let Some(Some(slot)) = self.slots.get_mut(index(id)) else { return Watch::On };
        if slot.revoked {
            return Watch::On;
        }
        slot.counts.fired = slot.counts.fired.saturating_add(1);
        // It is limited also while it is masked or pending: each time wakes the device.
        if let Some(Err(until)) = self.limit.map(|limit| limit.take(&mut slot.taken, now)) {
            slot.late |= !slot.pending;
            slot.pending = true;
            if slot.paused.is_none() {
                slot.paused = Some(until);
                self.paused.insert((until, id));
            }
            return Watch::Paused;
        }
        if !slot.pending {
            slot.pending = true;
            if slot.is_ready() {
                self.ready.push_back(id);
            }
        }
        Watch::On
    }

    /// When the next source is to be watched again.
    pub(in crate::device) fn resumes_at(&self) -> Option<Instant> {
        self.paused.first().map(|(until, _)| *until)
    }

    /// The next source to be watched again, if it is time. What it fired meanwhile is pending.
    pub(in crate::device) fn resume(&mut self, now: Instant) -> Option<SourceId> {
        let (until, id) = *self.paused.first().filter(|(until, _)| *until <= now)?;
        self.paused.remove(&(until, id));
        if let Some(Some(slot)) = self.slots.get_mut(index(id)) {
            slot.paused = None;
            if std::mem::take(&mut slot.late) {
                // It is time, so there is room for it.
                let _ = self.limit.map(|limit| limit.take(&mut slot.taken, now));
                if slot.is_ready() {
                    self.ready.push_back(id);
                }
            }
            self.look_first = true;
        }
        Some(id)
    }

    /// Masks a source; what is pending stays so.
    pub(in crate::device) fn mask(&mut self, sources: impl Iterator<Item = SourceId>) {
        let mut hold_back = false;
        for id in sources {
            if let Some(Some(slot)) = self.slots.get_mut(index(id)) {
                slot.masked = true;
                hold_back |= slot.pending;
            }
        }
        if hold_back {
            let slots = &self.slots;
            self.ready.retain(|id| slot_of(slots, *id).is_some_and(|slot| !slot.masked));
        }
    }

    /// Unmasks sources, and makes those ready that fired meanwhile. Returns the functions whose pin has to be unmasked
    /// on the host.
    pub(in crate::device) fn unmask(&mut self, sources: impl Iterator<Item = SourceId>) -> Vec<FunctionId> {
        let mut pins = Vec::new();
        for id in sources {
            if let Some(Some(slot)) = self.slots.get_mut(index(id))
                && slot.masked
            {
                slot.masked = false;
                self.look_first = true;
                if slot.pending {
                    if slot.is_ready() {
                        self.ready.push_back(id);
                    }
                } else if slot.irq_type == IrqType::Intx && !slot.revoked {
                    pins.push(slot.function);
                }
            }
        }
        pins
    }

    /// The host did not unmask the pin of the function, which is a source. One that fired meanwhile masks itself when
    /// its event is delivered.
    pub(in crate::device) fn keep_pin_masked(&mut self, function: FunctionId) {
        let Some(claim) = self.claims.get(&function) else { return };
        for id in claim.vectors.values() {
            if let Some(Some(slot)) = self.slots.get_mut(index(*id)) {
                slot.masked |= slot.irq_type == IrqType::Intx && !slot.pending;
            }
        }
    }

    pub(in crate::device) fn look_first(&mut self) {
        self.look_first = true;
    }

    pub(in crate::device) fn take_look_first(&mut self) -> bool {
        std::mem::take(&mut self.look_first)
    }

    pub(in crate::device) fn has_events(&self) -> bool {
        !self.ready.is_empty() || self.tellable() > 0
    }

    /// At most `room` events: lost sources first, then those that fired, longest waiting first.
    pub(in crate::device) fn peek(&self, room: usize) -> impl Iterator<Item = Event> + '_ {
        let function = |id: &SourceId| slot_of(&self.slots, *id).map(|slot| slot.function);
        let lost = self.revoked.iter().take(self.tellable()).filter_map(move |id| {
            function(id).map(|function| Event::SourceRevoked { function, source: *id })
        });
        let fired = self
            .ready
            .iter()
            .filter_map(move |id| function(id).map(|function| Event::Interrupt { function, source: *id }));
        lost.chain(fired).take(room)
    }

    /// The first `count` events of [`Sources::peek`] are the driver's.
    pub(in crate::device) fn take(&mut self, count: usize) {
        let lost = count.min(self.tellable());
        self.revoked.drain(..lost);
        let fired = count.saturating_sub(lost).min(self.ready.len());
        for id in self.ready.drain(..fired) {
            if let Some(Some(slot)) = self.slots.get_mut(index(id)) {
                slot.pending = false;
                slot.masked = slot.irq_type == IrqType::Intx;
                slot.counts.delivered = slot.counts.delivered.saturating_add(1);
            }
        }
    }
}
