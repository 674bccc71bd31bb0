// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The table of sources, in memory of C's and under C's lock: what replies and events do to it.
//!
//! Nothing here waits or allocates, so that C can call it in hard irq.

use crate::abi::RawEvent;
use crate::errno::Errno;
use virtio_irq_driver::{Allocation, Change, Device, Effect, Slot, Sources, events};
use virtio_irq_proto::{FunctionId, ReplyError, Request, SourceId, SourceRange, SourceRequest, read_head};

/// `struct rs_table`
pub struct Table {
    sources: Sources<&'static mut [Slot]>,
}

/// What C does when something happens to sources.
pub(crate) trait Clients {
    /// A source fired.
    fn fired(&mut self, source: SourceId);
    /// All sources of a function have ended.
    fn ended(&mut self, function: FunctionId);
}

impl Table {
    /// A table without sources.
    pub(crate) fn new(slots: &'static mut [Slot]) -> Self {
        Self { sources: Sources::new(slots) }
    }

    /// Forgets everything.
    pub(crate) fn reset(&mut self) {
        self.sources.reset();
    }

    /// Takes the reply to a request of any kind. What an allocation gives counts as masked until C listens to it.
    ///
    /// # Errors
    /// `EBADMSG`: the device gave sources, and nobody knows which (IRQ-DRV-33, IRQ-DRV-44). What any other reply means is
    /// said by whoever waits for it.
    pub(crate) fn replied(
        &mut self,
        device: Device,
        request: &[u8],
        used: &[u8],
        clients: &mut impl Clients,
    ) -> Result<(), Errno> {
        let Some(change) = change(&device, request) else { return Ok(()) };
        let result = self.sources.replied(&change, used, |effect| match effect {
            Effect::Given(_) => {}
            Effect::Gone(function) => clients.ended(function),
            Effect::Fired(source) => clients.fired(source),
        });
        match (change, result) {
            (Change::Allocate(allocation), Ok(())) => {
                // It was understood just now.
                let _ = allocation.reply(used, |source| self.sources.masked(SourceRange::one(source.id)));
                Ok(())
            }
            (Change::Allocate(_), Err(ReplyError::Malformed)) if read_head(used).is_ok() => {
                Err(Errno::EBADMSG)
            }
            _ => Ok(()),
        }
    }

    /// Event number `index` of a buffer, and what it means.
    pub(crate) fn event(&mut self, used: &[u8], index: usize, after_replies: bool) -> Option<RawEvent> {
        let event = events(used).nth(index)?;
        let verdict =
            if after_replies { self.sources.event_after_replies(event) } else { self.sources.event(event) };
        Some(RawEvent::new(event, verdict))
    }

    /// Whether event buffers have to be looked through before the next allocation, and that this is done.
    pub(crate) fn must_drain(&self) -> bool {
        self.sources.must_drain()
    }

    /// All event buffers that the device has returned were looked through.
    pub(crate) fn drained(&mut self) {
        self.sources.drained();
    }

    /// A request to free the source is about to be sent.
    ///
    /// # Errors
    /// `ENOENT`: it is not held.
    pub(crate) fn leave(&mut self, source: u32) -> Result<(), Errno> {
        let free = Change::Sources(SourceRequest::Free, SourceRange::one(SourceId(source)));
        self.sources.begin(&free).map_err(|_| Errno::ENOENT)
    }

    /// Whether a source is what the function was given.
    ///
    /// # Errors
    /// `ENODEV`: the function is gone; `EBUSY`: the host has taken the source back.
    pub(crate) fn check(&self, source: u32, function: u16) -> Result<(), Errno> {
        let source = SourceId(source);
        match self.sources.function_of(source) {
            Some(of) if of == FunctionId(function) && self.sources.is_revoked(source) => Err(Errno::EBUSY),
            Some(of) if of == FunctionId(function) => Ok(()),
            _ => Err(Errno::ENODEV),
        }
    }

    /// From now on the client of the source is there.
    pub(crate) fn listen(&mut self, source: u32, clients: &mut impl Clients) {
        self.sources.unmasked(SourceRange::one(SourceId(source)), |source| clients.fired(source));
    }

    /// Whether the device masks the source.
    pub(crate) fn is_masked(&self, source: u32) -> bool {
        self.sources.is_masked(SourceId(source))
    }
}

/// What the request changes, if anything.
fn change(device: &Device, request: &[u8]) -> Option<Change> {
    Some(match Request::parse(request).ok()? {
        Request::Allocate(allocate) => Change::Allocate(Allocation::new(device, allocate)),
        Request::Free(sources) => Change::Sources(SourceRequest::Free, sources),
        Request::Mask(sources) => Change::Sources(SourceRequest::Mask, sources),
        Request::Unmask(sources) => Change::Sources(SourceRequest::Unmask, sources),
        Request::ResetFunction(reset) => Change::ResetFunction(reset.function),
        Request::ListFunctions(_) | Request::GetMessages(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::num::NonZeroU16;
    use virtio_irq_proto::{Allocate, Delivery, Event, IrqType, Layout, Message, Source, Status, wire};
    use zerocopy::IntoBytes;

    /// What C was told.
    #[derive(Default, Debug, PartialEq, Eq)]
    struct Told {
        fired: Vec<u32>,
        ended: Vec<u16>,
    }

    impl Clients for Told {
        fn fired(&mut self, source: SourceId) {
            self.fired.push(source.0);
        }

        fn ended(&mut self, function: FunctionId) {
            self.ended.push(function.0);
        }
    }

    fn device() -> Device {
        Device::probe(b"VIRQ\x01\0\0\0\x09\0\0\0\x40\0\0\0", 3).unwrap()
    }

    fn table() -> Table {
        Table::new(Box::leak(Box::new([Slot::default(); 9])))
    }

    /// The device gives these sources to a function.
    fn give(table: &mut Table, function: u16, ids: &[u32], told: &mut Told) -> Result<(), Errno> {
        let request = Allocate {
            function: FunctionId(function),
            irq_type: IrqType::Msi,
            layout: Layout::Any,
            least: NonZeroU16::MIN,
            most: NonZeroU16::new(9).unwrap(),
            first: 0,
            delivery: Delivery::Event,
        };
        let list: Vec<_> = (0..)
            .zip(ids)
            .map(|(vector, id)| Source { id: SourceId(*id), vector, message: Message::default() }.to_wire())
            .collect();
        let count = u16::try_from(ids.len()).unwrap();
        let head = wire::SourceListHead { count: count.into(), ..Default::default() };
        let reply = [head.as_bytes(), list.as_bytes()].concat();
        table.replied(device(), request.to_wire().as_bytes(), &reply, told)
    }

    fn interrupt(function: u16, source: u32) -> [u8; 16] {
        let event = Event::Interrupt { function: FunctionId(function), source: SourceId(source) };
        event.to_wire().as_bytes().try_into().unwrap()
    }

    /// Kind and source of the only event of a buffer.
    fn event(table: &mut Table, used: &[u8], after_replies: bool) -> (u32, u32) {
        let event = table.event(used, 0, after_replies).unwrap();
        assert_eq!(table.event(used, 1, after_replies), None);
        (event.kind, event.source)
    }

    const FIRED: u32 = 3;
    const AFTER_REPLIES: u32 = 4;
    const NOTHING: u32 = 5;

    #[test]
    fn what_fires_before_c_listens_is_told_when_it_does() {
        let (mut table, mut told) = (table(), Told::default());
        let record = interrupt(6, 7);
        assert_eq!(event(&mut table, &record, false).0, AFTER_REPLIES);
        give(&mut table, 6, &[3, 7], &mut told).unwrap();
        assert_eq!(event(&mut table, &record, true).0, NOTHING);
        assert_eq!((table.check(3, 6), table.check(7, 6)), (Ok(()), Ok(())));
        assert_eq!((table.check(3, 5), table.check(4, 6)), (Err(Errno::ENODEV), Err(Errno::ENODEV)));
        table.listen(3, &mut told);
        assert_eq!(told, Told::default());
        table.listen(7, &mut told);
        assert_eq!(told.fired, [7]);
        assert_eq!(event(&mut table, &record, false), (FIRED, 7));
    }

    #[test]
    fn a_function_goes_after_the_reply_that_the_device_returned_before() {
        let (mut table, mut told) = (table(), Told::default());
        let gone = Event::FunctionGone { function: FunctionId(6) }.to_wire();
        assert_eq!(event(&mut table, gone.as_bytes(), false).0, AFTER_REPLIES);
        give(&mut table, 6, &[3], &mut told).unwrap();
        assert_eq!(event(&mut table, gone.as_bytes(), true).0, 1);
        assert_eq!(table.check(3, 6), Err(Errno::ENODEV));
    }

    #[test]
    fn an_id_that_comes_again_ends_its_function() {
        let (mut table, mut told) = (table(), Told::default());
        give(&mut table, 6, &[3, 7], &mut told).unwrap();
        give(&mut table, 5, &[7, 8], &mut told).unwrap();
        assert_eq!(told, Told { fired: Vec::new(), ended: vec![6] });
        assert_eq!((table.check(3, 6), table.check(7, 5)), (Err(Errno::ENODEV), Ok(())));
    }

    #[test]
    fn a_source_that_is_revoked_before_c_listens_is_none() {
        let (mut table, mut told) = (table(), Told::default());
        give(&mut table, 6, &[3], &mut told).unwrap();
        let revoked = Event::SourceRevoked { function: FunctionId(6), source: SourceId(3) }.to_wire();
        assert_eq!(event(&mut table, revoked.as_bytes(), false), (2, 3));
        assert_eq!(table.check(3, 6), Err(Errno::EBUSY));
    }

    #[test]
    fn sources_that_cannot_be_are_told_from_a_refusal() {
        let (mut table, mut told) = (table(), Told::default());
        give(&mut table, 6, &[3], &mut told).unwrap();
        assert_eq!(give(&mut table, 6, &[2, 3], &mut told), Err(Errno::EBADMSG), "held already");
        assert_eq!(give(&mut table, 6, &[9], &mut told), Err(Errno::EBADMSG), "no room for it");
        assert_eq!(give(&mut table, 6, &[], &mut told), Err(Errno::EBADMSG), "fewer than the least");
        assert_eq!(table.check(2, 6), Err(Errno::ENODEV));
        let request = wire::Allocate { function: 6.into(), ..Default::default() };
        for reply in [&[0x99, 0, 0, 0, 0, 0, 0, 0][..], Status::NoSpace.to_head().as_bytes(), &[]] {
            assert_eq!(table.replied(device(), request.as_bytes(), reply, &mut told), Ok(()));
        }
    }

    #[test]
    fn masks_are_as_the_device_was_told() {
        let (mut table, mut told) = (table(), Told::default());
        give(&mut table, 6, &[3], &mut told).unwrap();
        table.listen(3, &mut told);
        let one = SourceRange::one(SourceId(3));
        let mut reply = |table: &mut Table, request: SourceRequest, status: Status| {
            let request = request.to_wire(one);
            table.replied(device(), request.as_bytes(), status.to_head().as_bytes(), &mut told).unwrap();
            table.is_masked(3)
        };
        assert!(!reply(&mut table, SourceRequest::Mask, Status::NoSource));
        assert!(reply(&mut table, SourceRequest::Mask, Status::Ok));
        assert_eq!(event(&mut table, &interrupt(6, 3), false).0, NOTHING);
        assert!(!reply(&mut table, SourceRequest::Unmask, Status::Ok));
        assert_eq!(table.leave(3), Ok(()));
        assert_eq!(table.leave(3), Err(Errno::ENOENT));
        assert!(!table.must_drain());
        reply(&mut table, SourceRequest::Free, Status::Ok);
        assert!(table.must_drain());
        table.drained();
        assert!(!table.must_drain());
        assert_eq!(told.fired, [3]);
    }
}
