// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The sources that a driver holds, and what an event means to it.
//!
//! Replies and events come through two queues that are not ordered against each other. What follows from that is
//! decided here, for the kernel and for userspace alike: which events are those of a source, and when a driver has to
//! look at a queue before it goes on.

use crate::{Allocation, Effect};
use core::fmt;
use core::num::NonZeroU16;
use virtio_irq_proto::{Event, FunctionId, IrqType, ReplyError, SourceId, SourceRange, VectorRange};

/// Room for one source in the table of [`Sources`]. A default one is free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot(Option<Held>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    function: FunctionId,
    /// INTx: the device masks it when it delivers an interrupt (IRQ-DEV-57).
    level: bool,
    masked: bool,
    /// An interrupt came while masked: it was on its way when the device masked the source.
    kept: bool,
    revoked: bool,
    /// A request that frees it is with the device.
    leaving: bool,
}

/// The table of a driver's sources, by their ids: as many [`Slot`]s as the device's `max_sources`, in memory of the
/// driver's choice.
#[derive(Clone, Debug)]
pub struct Sources<S> {
    slots: S,
    stale: bool,
}

/// What an event means to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// The source fired: its client is to be told. An INTx source is masked from now on and wants to be unmasked when
    /// the client is done (IRQ-DRV-43).
    Fired(SourceId),
    /// The source ended on the host: its client is to be told, and the source to be freed (IRQ-DRV-41).
    Revoked(SourceId),
    /// Messages that were told before are not good any more (IRQ-DRV-13).
    Changed(FunctionId, VectorRange),
    /// The function is gone, and none of its sources is held any more (IRQ-DRV-29).
    Gone(FunctionId),
    /// What it means can depend on a reply that the device has returned and the driver has not processed: it may give the
    /// source that this event is about, or give sources of a function that is gone. Process all replies that the device
    /// has returned, then take the event with [`Sources::event_after_replies`] (IRQ-DRV-39).
    AfterReplies,
    /// Nothing to do now: the source is masked, which keeps an interrupt until it is unmasked; it is being freed; or
    /// the driver holds none of this id and function (IRQ-DRV-40).
    Nothing,
}

/// The driver does not hold all of these sources, or is freeing some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotHeld(pub SourceRange);

impl<S: AsRef<[Slot]> + AsMut<[Slot]>> Sources<S> {
    /// A table without sources.
    pub fn new(mut slots: S) -> Self {
        slots.as_mut().fill(Slot::default());
        Self { slots, stale: false }
    }

    /// Forgets everything, as the device does at a reset (IRQ-DRV-17).
    pub fn reset(&mut self) {
        self.slots.as_mut().fill(Slot::default());
        self.stale = false;
    }

    /// Whether the event buffers that the device has returned so far must be processed before the next ALLOCATE is
    /// sent. They can hold records of sources that are freed, whose ids the device can give out again (IRQ-DRV-38).
    ///
    /// [`Sources::drained`] says that this was done. No ALLOCATE is to be sent either while a request that frees
    /// sources is with the device: what it frees is not known to be free before its reply.
    pub fn must_drain(&self) -> bool {
        self.stale
    }

    /// Every event buffer that the device had returned when this driver last freed something was
    /// processed.
    pub fn drained(&mut self) {
        self.stale = false;
    }

    /// Takes the reply to an allocation. What it gives is held from now on and told to `sink`, in the order of the
    /// vectors. Of several allocations the replies have to be given in the order in which the device returned them.
    ///
    /// # Errors
    /// Those of [`Allocation::reply`]; [`ReplyError::Malformed`] also for an id that the driver holds already. After a
    /// malformed reply the device can hold sources for this driver that it does not know of: reset the function, or the
    /// device (IRQ-DRV-44).
    pub(crate) fn allocated(
        &mut self,
        allocation: &Allocation,
        used: &[u8],
        mut sink: impl FnMut(Effect),
    ) -> Result<(), ReplyError> {
        let request = allocation.request();
        let mut fits = true;
        allocation.reply(used, |source| {
            fits &= match self.slots.as_ref().get(index(source.id)) {
                Some(Slot(Some(held))) => held.function != request.function,
                Some(Slot(None)) => true,
                None => false,
            };
        })?;
        if !fits {
            return Err(ReplyError::Malformed);
        }
        allocation.reply(used, |source| {
            let former = self.held(source.id).map(|held| held.function);
            if let Some(function) = former {
                self.end(function);
                sink(Effect::Gone(function));
            }
            if let Some(slot) = self.slots.as_mut().get_mut(index(source.id)) {
                slot.0 = Some(Held {
                    function: request.function,
                    level: request.irq_type == IrqType::Intx,
                    masked: false,
                    kept: false,
                    revoked: false,
                    leaving: false,
                });
            }
            sink(Effect::Given(source));
        })
    }

    /// What an event means. Events have to be given in the order in which the device returned them.
    pub fn event(&mut self, event: Event) -> Verdict {
        match event {
            Event::FunctionGone { .. } => Verdict::AfterReplies,
            Event::Interrupt { function, source } | Event::SourceRevoked { function, source }
                if self.may_come(function, source) =>
            {
                Verdict::AfterReplies
            }
            _ => self.event_after_replies(event),
        }
    }

    /// What an event means to a driver that has processed all replies that the device has returned by now. It never
    /// answers [`Verdict::AfterReplies`].
    pub fn event_after_replies(&mut self, event: Event) -> Verdict {
        match event {
            Event::Interrupt { function, source } => match self.listened(function, source) {
                None => Verdict::Nothing,
                Some(held) if held.revoked => Verdict::Nothing,
                Some(held) if held.masked => {
                    held.kept = true;
                    Verdict::Nothing
                }
                Some(held) => {
                    held.masked = held.level;
                    Verdict::Fired(source)
                }
            },
            Event::SourceRevoked { function, source } => match self.listened(function, source) {
                None => Verdict::Nothing,
                Some(held) if held.revoked => Verdict::Nothing,
                Some(held) => {
                    held.revoked = true;
                    held.kept = false;
                    Verdict::Revoked(source)
                }
            },
            Event::MessageChanged { function, vectors } => Verdict::Changed(function, vectors),
            Event::FunctionGone { function } => {
                self.end(function);
                Verdict::Gone(function)
            }
        }
    }

    /// The device masked these sources: what still comes of them is kept.
    pub fn masked(&mut self, sources: SourceRange) {
        self.each(sources, |_, held| held.masked = true);
    }

    /// The device unmasked these sources: `fired` gets those with an interrupt that was kept, whose clients are to be
    /// told now.
    pub fn unmasked(&mut self, sources: SourceRange, mut fired: impl FnMut(SourceId)) {
        self.each(sources, |source, held| {
            held.masked = false;
            if core::mem::take(&mut held.kept) {
                held.masked = held.level;
                fired(source);
            }
        });
    }

    /// The device refused to unmask these sources, with another status than `NO_SOURCE`: that concerns pins, and the
    /// others are unmasked (IRQ-DEV-71). As [`Sources::unmasked`] for these.
    pub(crate) fn unmasked_but_pins(&mut self, sources: SourceRange, mut fired: impl FnMut(SourceId)) {
        self.each(sources, |source, held| {
            held.masked &= held.level;
            if !held.masked && core::mem::take(&mut held.kept) {
                fired(source);
            }
        });
    }

    /// A request that frees these sources is about to be sent: what still comes of them is ignored.
    ///
    /// # Errors
    /// The request is not to be sent. Nothing changed.
    pub(crate) fn leave(&mut self, sources: SourceRange) -> Result<(), NotHeld> {
        self.require(sources)?;
        self.each(sources, |_, held| held.leaving = true);
        Ok(())
    }

    /// The device refused to free these sources.
    pub(crate) fn stay(&mut self, sources: SourceRange) {
        self.each(sources, |_, held| held.leaving = false);
    }

    /// The device freed these sources: they are not held any more.
    pub(crate) fn freed(&mut self, sources: SourceRange) {
        for id in ids(sources) {
            if let Some(slot) = self.slots.as_mut().get_mut(index(id)) {
                *slot = Slot::default();
            }
        }
        self.stale = true;
    }

    /// The device freed all sources of a function: none of them is held any more.
    pub(crate) fn freed_function(&mut self, function: FunctionId) {
        self.end(function);
        self.stale = true;
    }

    /// Whether the driver holds all of these sources and is freeing none of them.
    ///
    /// # Errors
    /// It does not: no request about them is to be sent.
    pub fn require(&self, sources: SourceRange) -> Result<(), NotHeld> {
        let all = ids(sources).all(|id| self.held(id).is_some_and(|held| !held.leaving));
        // Ids end with the table, and a range can go beyond them.
        let end = u64::try_from(self.slots.as_ref().len()).unwrap_or(u64::MAX);
        if all && sources.end() <= end { Ok(()) } else { Err(NotHeld(sources)) }
    }

    /// Whether the device masks the source, as far as replies and events so far say.
    pub fn is_masked(&self, source: SourceId) -> bool {
        self.held(source).is_some_and(|held| held.masked)
    }

    /// Whether the host has taken the source back.
    pub fn is_revoked(&self, source: SourceId) -> bool {
        self.held(source).is_some_and(|held| held.revoked)
    }

    /// Whose source this is, if the driver holds it.
    pub fn function_of(&self, source: SourceId) -> Option<FunctionId> {
        self.held(source).map(|held| held.function)
    }

    /// The sources that the driver holds, in ascending order of their ids, each with its function.
    pub fn iter(&self) -> impl Iterator<Item = (SourceId, FunctionId)> + '_ {
        (0..)
            .map(SourceId)
            .zip(self.slots.as_ref())
            .filter_map(|(id, slot)| slot.0.map(|held| (id, held.function)))
    }

    fn held(&self, id: SourceId) -> Option<&Held> {
        self.slots.as_ref().get(index(id)).and_then(|slot| slot.0.as_ref())
    }

    /// Whether a reply can give this source that the driver has not seen. A source of this id of another function says
    /// nothing: that one can be gone, and the id given out again.
    fn may_come(&self, function: FunctionId, id: SourceId) -> bool {
        let slot = self.slots.as_ref().get(index(id));
        slot.is_some_and(|slot| slot.0.is_none_or(|held| held.function != function))
    }

    /// The source that an event of `function` names, if it is one that the driver listens to.
    fn listened(&mut self, function: FunctionId, id: SourceId) -> Option<&mut Held> {
        let held = self.slots.as_mut().get_mut(index(id))?.0.as_mut()?;
        (held.function == function && !held.leaving).then_some(held)
    }

    fn each(&mut self, sources: SourceRange, mut with: impl FnMut(SourceId, &mut Held)) {
        for id in ids(sources) {
            if let Some(Slot(Some(held))) = self.slots.as_mut().get_mut(index(id)) {
                with(id, held);
            }
        }
    }

    fn end(&mut self, function: FunctionId) {
        for slot in self.slots.as_mut() {
            if slot.0.is_some_and(|held| held.function == function) {
                *slot = Slot::default();
            }
        }
    }
}

/// The ranges that these sources form, for requests: ids are to ascend.
pub fn ranges(sources: impl IntoIterator<Item = SourceId>) -> impl Iterator<Item = SourceRange> {
    let mut sources = sources.into_iter().peekable();
    core::iter::from_fn(move || {
        let first = sources.next()?;
        let mut count = NonZeroU16::MIN;
        while let Some(longer) = count.checked_add(1) {
            let next = first.0.checked_add(u32::from(count.get()));
            if sources.next_if(|id| Some(id.0) == next).is_none() {
                break;
            }
            count = longer;
        }
        Some(SourceRange { first, count })
    })
}

fn ids(sources: SourceRange) -> impl Iterator<Item = SourceId> {
    (sources.first.0..=u32::MAX).take(usize::from(sources.count.get())).map(SourceId)
}

fn index(id: SourceId) -> usize {
    usize::try_from(id.0).unwrap_or(usize::MAX)
}

impl fmt::Display for NotHeld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            SourceRange { first, count: NonZeroU16::MIN } => {
                write!(f, "source {first} is not held by this driver")
            }
            SourceRange { first, count } => {
                write!(f, "not all {count} sources from {first} on are held by this driver")
            }
        }
    }
}

impl core::error::Error for NotHeld {}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::Device;
    use virtio_irq_proto::{Allocate, Delivery, Layout, Message, Source, wire};
    use zerocopy::IntoBytes;
    extern crate std;
    use std::vec::Vec;

    fn table() -> Sources<[Slot; 9]> {
        Sources::new([Slot::default(); 9])
    }

    fn allocation(function: u16, irq_type: IrqType) -> Allocation {
        let device = Device::probe(b"VIRQ\x01\x00\0\0\x09\0\0\0\x40\0\0\0", 3).unwrap();
        let request = Allocate {
            function: FunctionId(function),
            irq_type,
            layout: Layout::Any,
            least: NonZeroU16::MIN,
            most: NonZeroU16::new(9).unwrap(),
            first: 0,
            delivery: Delivery::Event,
        };
        Allocation::new(&device, request)
    }

    /// Has the device give these sources.
    pub(crate) fn give(
        sources: &mut Sources<[Slot; 9]>,
        of: u16,
        irq_type: IrqType,
        ids: &[u32],
    ) -> Result<Vec<Effect>, ReplyError> {
        let head =
            wire::SourceListHead { count: u16::try_from(ids.len()).unwrap().into(), ..Default::default() };
        let list: Vec<_> = (0..).zip(ids).map(|(vector, id)| source(*id, vector).to_wire()).collect();
        let mut given = Vec::new();
        let reply = [head.as_bytes(), list.as_bytes()].concat();
        sources.allocated(&allocation(of, irq_type), &reply, |what| given.push(what))?;
        Ok(given)
    }

    fn source(id: u32, vector: u16) -> Source {
        Source { id: SourceId(id), vector, message: Message::default() }
    }

    fn range(first: u32, count: u16) -> SourceRange {
        SourceRange::new(first, count).unwrap()
    }

    fn fire(sources: &mut Sources<[Slot; 9]>, function: u16, source: u32) -> Verdict {
        // A verdict that waits for replies is none of an event that has come after them.
        let mut later = sources.clone();
        let event = Event::Interrupt { function: FunctionId(function), source: SourceId(source) };
        let verdict = sources.event(event);
        match later.event_after_replies(event) {
            Verdict::Nothing => {}
            same => assert_eq!(same, verdict),
        }
        verdict
    }

    #[test]
    fn an_interrupt_is_one_of_a_source_that_is_held_of_that_function() {
        let mut sources = table();
        assert_eq!(fire(&mut sources, 4, 3), Verdict::AfterReplies, "the reply may not have been seen yet");
        let given = give(&mut sources, 4, IrqType::Msi, &[3, 7]).unwrap();
        assert_eq!(given, [Effect::Given(source(3, 0)), Effect::Given(source(7, 1))]);
        assert_eq!(fire(&mut sources, 4, 3), Verdict::Fired(SourceId(3)));
        assert_eq!(fire(&mut sources, 4, 3), Verdict::Fired(SourceId(3)));
        assert_eq!(fire(&mut sources, 5, 3), Verdict::AfterReplies);
        assert_eq!(fire(&mut sources, 4, 4), Verdict::AfterReplies);
        assert_eq!(fire(&mut sources, 4, 9), Verdict::Nothing, "no reply can give this id");
        assert_eq!(fire(&mut sources, 4, u32::MAX), Verdict::Nothing);
    }

    #[test]
    fn an_interrupt_that_comes_after_mask_is_kept_for_unmask_once() {
        let mut sources = table();
        give(&mut sources, 4, IrqType::Msix, &[2, 3, 5]).unwrap();
        sources.masked(range(2, 2));
        assert_eq!(fire(&mut sources, 4, 3), Verdict::Nothing);
        assert_eq!(fire(&mut sources, 4, 3), Verdict::Nothing);
        let mut fired = Vec::new();
        sources.unmasked(range(2, 2), |source| fired.push(source.0));
        sources.unmasked(range(2, 2), |source| fired.push(source.0));
        assert_eq!(fired, [3]);
        assert_eq!(fire(&mut sources, 4, 3), Verdict::Fired(SourceId(3)));
    }

    #[test]
    fn a_pin_masks_itself() {
        let mut sources = table();
        give(&mut sources, 4, IrqType::Intx, &[2]).unwrap();
        assert_eq!(fire(&mut sources, 4, 2), Verdict::Fired(SourceId(2)));
        assert_eq!(fire(&mut sources, 4, 2), Verdict::Nothing);
        let mut fired = Vec::new();
        sources.unmasked_but_pins(range(2, 1), |source| fired.push(source.0));
        assert_eq!(fired, [0; 0], "its pin was not armed");
        sources.unmasked(range(2, 1), |source| fired.push(source.0));
        assert_eq!(fired, [2], "what came meanwhile is delivered");
        assert_eq!(fire(&mut sources, 4, 2), Verdict::Nothing, "and masked it again");
    }

    #[test]
    fn where_a_pin_was_not_armed_the_others_are_unmasked() {
        let mut sources = table();
        give(&mut sources, 4, IrqType::Intx, &[2]).unwrap();
        give(&mut sources, 5, IrqType::Msi, &[3]).unwrap();
        sources.masked(range(2, 2));
        assert_eq!(fire(&mut sources, 4, 2), Verdict::Nothing);
        assert_eq!(fire(&mut sources, 5, 3), Verdict::Nothing);
        let mut fired = Vec::new();
        sources.unmasked_but_pins(range(2, 2), |source| fired.push(source.0));
        assert_eq!(fired, [3]);
        assert_eq!(fire(&mut sources, 5, 3), Verdict::Fired(SourceId(3)));
    }

    #[test]
    fn a_revoked_source_is_told_once_and_held_until_it_is_freed() {
        let mut sources = table();
        give(&mut sources, 4, IrqType::Msi, &[1]).unwrap();
        let revoked = Event::SourceRevoked { function: FunctionId(4), source: SourceId(1) };
        assert_eq!(sources.event(revoked), Verdict::Revoked(SourceId(1)));
        assert_eq!(sources.event(revoked), Verdict::Nothing);
        assert_eq!(fire(&mut sources, 4, 1), Verdict::Nothing);
        assert_eq!(sources.function_of(SourceId(1)), Some(FunctionId(4)));
        sources.leave(range(1, 1)).unwrap();
        sources.freed(range(1, 1));
        assert_eq!(sources.function_of(SourceId(1)), None);
    }

    #[test]
    fn what_is_being_freed_is_ignored_unless_the_device_refuses() {
        let mut sources = table();
        give(&mut sources, 4, IrqType::Msi, &[0, 1, 2]).unwrap();
        sources.leave(range(1, 2)).unwrap();
        assert_eq!(fire(&mut sources, 4, 1), Verdict::Nothing);
        assert_eq!(fire(&mut sources, 4, 0), Verdict::Fired(SourceId(0)));
        sources.stay(range(1, 2));
        assert_eq!(fire(&mut sources, 4, 1), Verdict::Fired(SourceId(1)));
        assert!(!sources.must_drain());
        sources.leave(range(1, 2)).unwrap();
        sources.freed(range(1, 2));
        assert!(sources.must_drain(), "a record of them may still be in a buffer");
        assert_eq!(fire(&mut sources, 4, 1), Verdict::AfterReplies);
        sources.drained();
        assert!(!sources.must_drain());
    }

    #[test]
    fn requests_are_only_about_sources_that_are_held() {
        let mut sources = table();
        give(&mut sources, 4, IrqType::Msi, &[0, 1, 8]).unwrap();
        assert_eq!(sources.require(range(0, 2)), Ok(()));
        for (first, count) in [(0, 3), (2, 1), (8, 2), (9, 1), (u32::MAX, 1), (u32::MAX, u16::MAX)] {
            let not_held = Err(NotHeld(range(first, count)));
            assert_eq!(sources.require(range(first, count)), not_held);
            assert_eq!(sources.leave(range(first, count)), not_held);
        }
        sources.leave(range(0, 1)).unwrap();
        assert_eq!(sources.leave(range(0, 2)), Err(NotHeld(range(0, 2))), "one is being freed");
        assert_eq!(fire(&mut sources, 4, 1), Verdict::Fired(SourceId(1)), "and nothing changed");
    }

    #[test]
    fn a_function_that_is_gone_has_no_sources() {
        let mut sources = table();
        give(&mut sources, 4, IrqType::Msi, &[0, 2]).unwrap();
        give(&mut sources, 5, IrqType::Msi, &[1]).unwrap();
        let gone = Event::FunctionGone { function: FunctionId(4) };
        assert_eq!(sources.event(gone), Verdict::AfterReplies);
        // The reply was returned before the function left, and nobody has looked at it yet.
        give(&mut sources, 4, IrqType::Msi, &[3]).unwrap();
        assert_eq!(sources.event_after_replies(gone), Verdict::Gone(FunctionId(4)));
        assert_eq!(sources.iter().collect::<Vec<_>>(), [(SourceId(1), FunctionId(5))]);
    }

    #[test]
    fn an_id_that_comes_again_says_that_its_function_is_gone() {
        let mut sources = table();
        give(&mut sources, 4, IrqType::Msi, &[0, 2, 3]).unwrap();
        let given = give(&mut sources, 5, IrqType::Msi, &[2, 3]).unwrap();
        let gone = Effect::Gone(FunctionId(4));
        assert_eq!(given, [gone, Effect::Given(source(2, 0)), Effect::Given(source(3, 1))]);
        assert_eq!(fire(&mut sources, 4, 2), Verdict::AfterReplies, "a late record of the former source");
        assert_eq!(fire(&mut sources, 5, 2), Verdict::Fired(SourceId(2)));
        assert_eq!(fire(&mut sources, 4, 0), Verdict::AfterReplies);
    }

    #[test]
    fn an_id_that_the_function_has_already_is_malformed_and_gives_nothing() {
        let mut sources = table();
        give(&mut sources, 4, IrqType::Msi, &[2]).unwrap();
        assert_eq!(give(&mut sources, 4, IrqType::Msi, &[1, 2]), Err(ReplyError::Malformed));
        assert_eq!(sources.iter().count(), 1);
        assert_eq!(give(&mut sources, 4, IrqType::Msi, &[1, 9]), Err(ReplyError::Malformed));
        assert_eq!(sources.iter().count(), 1);
        sources.freed_function(FunctionId(4));
        assert_eq!((sources.iter().count(), sources.must_drain()), (0, true));
    }

    #[test]
    fn consecutive_ids_are_one_range() {
        let of = |ids: &[u32]| ranges(ids.iter().copied().map(SourceId)).collect::<Vec<_>>();
        assert_eq!(of(&[]), []);
        assert_eq!(of(&[3, 4, 5, 7, 9, 10]), [range(3, 3), range(7, 1), range(9, 2)]);
        assert_eq!(of(&[u32::MAX - 1, u32::MAX]), [range(u32::MAX - 1, 2)]);
        let many: Vec<_> = (0..65_537).collect();
        assert_eq!(of(&many), [range(0, u16::MAX), range(65_535, 2)]);
    }
}
