// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests that change which sources there are or what they do, and what their replies do to the table.

use crate::{Allocation, NotHeld, Slot, Sources};
use virtio_irq_proto::{
    FunctionId, ReplyError, Source, SourceId, SourceRange, SourceRequest, Status, read_done,
};

/// A request whose reply changes which sources there are, or what they do.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// ALLOCATE
    Allocate(Allocation),
    /// FREE, MASK or UNMASK
    Sources(SourceRequest, SourceRange),
    /// RESET_FUNCTION
    ResetFunction(FunctionId),
}

/// Something that a reply brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A source, held from now on.
    Given(Source),
    /// This function is gone, since the device gave away the id of a source of it: its FUNCTION_GONE is on the way.
    /// None of its sources is held any more.
    Gone(FunctionId),
    /// The source fired while it was masked, and is not masked any more: its client is to be told.
    Fired(SourceId),
}

impl<S: AsRef<[Slot]> + AsMut<[Slot]>> Sources<S> {
    /// A request is about to be sent. What still comes of sources that it frees is ignored.
    ///
    /// # Errors
    /// It is about sources that the driver does not hold, and not to be sent. Nothing changed.
    pub fn begin(&mut self, change: &Change) -> Result<(), NotHeld> {
        match change {
            Change::Sources(SourceRequest::Free, sources) => self.leave(*sources),
            Change::Sources(_, sources) => self.require(*sources),
            Change::Allocate(_) | Change::ResetFunction(_) => Ok(()),
        }
    }

    /// A request for which [`Sources::begin`] was called could not be sent.
    pub fn give_up(&mut self, change: &Change) {
        if let Change::Sources(SourceRequest::Free, sources) = change {
            self.stay(*sources);
        }
    }

    /// Takes the reply to a request. Replies have to be given in the order in which the device returned them, also those
    /// that nobody waits for any more.
    ///
    /// # Errors
    /// Those of the request. [`ReplyError::Malformed`] of ALLOCATE also for an id that the driver holds already or has no
    /// room for: then the device can hold sources for this driver that it does not know of. Reset the function, or
    /// the device (IRQ-DRV-44).
    pub fn replied(
        &mut self,
        change: &Change,
        used: &[u8],
        mut effect: impl FnMut(Effect),
    ) -> Result<(), ReplyError> {
        match change {
            Change::Allocate(allocation) => self.allocated(allocation, used, effect),
            Change::Sources(request, sources) => {
                let result = request.parse_reply(used);
                let fired = |source| effect(Effect::Fired(source));
                match (request, result) {
                    (SourceRequest::Free, Ok(())) => self.freed(*sources),
                    (SourceRequest::Free, Err(_)) => self.stay(*sources),
                    (SourceRequest::Mask, Ok(())) => self.masked(*sources),
                    (SourceRequest::Unmask, Ok(())) => self.unmasked(*sources, fired),
                    (SourceRequest::Unmask, Err(ReplyError::Refused(Status::NoSource)))
                    | (SourceRequest::Mask, Err(_)) => {}
                    (SourceRequest::Unmask, Err(_)) => self.unmasked_but_pins(*sources, fired),
                }
                result
            }
            Change::ResetFunction(function) => {
                read_done(used)?;
                self.freed_function(*function);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_irq_proto::{Event, IrqType, wire};
    use zerocopy::IntoBytes;
    extern crate std;
    use std::vec::Vec;

    const FREE: SourceRequest = SourceRequest::Free;
    const MASK: SourceRequest = SourceRequest::Mask;
    const UNMASK: SourceRequest = SourceRequest::Unmask;

    /// A table that holds MSI 3 and 4 of function 6 and the pin of function 7, which is source 5.
    fn table() -> Sources<[Slot; 9]> {
        let mut table = Sources::new([Slot::default(); 9]);
        for (function, irq_type, ids) in [(6, IrqType::Msi, &[3, 4][..]), (7, IrqType::Intx, &[5])] {
            let given = crate::sources::tests::give(&mut table, function, irq_type, ids).unwrap();
            assert_eq!(given.len(), ids.len());
        }
        table
    }

    fn range(first: u32, count: u16) -> SourceRange {
        SourceRange::new(first, count).unwrap()
    }

    fn reply(
        table: &mut Sources<[Slot; 9]>,
        request: SourceRequest,
        sources: SourceRange,
        status: Status,
    ) -> (Result<(), ReplyError>, Vec<Effect>) {
        let mut effects = Vec::new();
        let change = Change::Sources(request, sources);
        let result = table.replied(&change, status.to_head().as_bytes(), |effect| effects.push(effect));
        (result, effects)
    }

    fn fire(table: &mut Sources<[Slot; 9]>, function: u16, source: u32) -> crate::Verdict {
        table.event_after_replies(Event::Interrupt {
            function: FunctionId(function),
            source: SourceId(source),
        })
    }

    #[test]
    fn what_was_kept_comes_with_the_reply_to_unmask() {
        let mut table = table();
        assert_eq!(reply(&mut table, MASK, range(3, 3), Status::Ok), (Ok(()), Vec::new()));
        assert!(table.is_masked(SourceId(4)));
        assert_eq!(fire(&mut table, 6, 4), crate::Verdict::Nothing);
        let unmasked = reply(&mut table, UNMASK, range(3, 3), Status::Ok);
        assert_eq!(unmasked, (Ok(()), [Effect::Fired(SourceId(4))].into()));
        assert!(!table.is_masked(SourceId(4)));
    }

    #[test]
    fn a_refusal_leaves_masks_as_they_were_except_that_only_pins_are_not_armed() {
        let mut table = table();
        let refused = |status| (Err(ReplyError::Refused(status)), Vec::new());
        assert_eq!(reply(&mut table, MASK, range(3, 3), Status::NoSource), refused(Status::NoSource));
        assert!(!table.is_masked(SourceId(3)));
        assert_eq!(reply(&mut table, MASK, range(3, 3), Status::Ok), (Ok(()), Vec::new()));
        assert_eq!(reply(&mut table, UNMASK, range(3, 3), Status::NoSource), refused(Status::NoSource));
        assert!(table.is_masked(SourceId(3)));
        assert_eq!(reply(&mut table, UNMASK, range(3, 3), Status::HostError), refused(Status::HostError));
        assert_eq!([3, 4, 5].map(|id| table.is_masked(SourceId(id))), [false, false, true]);
    }

    #[test]
    fn what_could_not_be_freed_is_listened_to_again() {
        let mut table = table();
        let free = Change::Sources(FREE, range(3, 2));
        table.begin(&free).unwrap();
        assert_eq!(table.begin(&free), Err(NotHeld(range(3, 2))));
        assert_eq!(fire(&mut table, 6, 3), crate::Verdict::Nothing);
        table.give_up(&free);
        assert_eq!(fire(&mut table, 6, 3), crate::Verdict::Fired(SourceId(3)));
        table.begin(&free).unwrap();
        let refused = Err(ReplyError::Refused(Status::NoSource));
        assert_eq!(reply(&mut table, FREE, range(3, 2), Status::NoSource).0, refused);
        assert_eq!(fire(&mut table, 6, 3), crate::Verdict::Fired(SourceId(3)));
        table.begin(&free).unwrap();
        assert_eq!(reply(&mut table, FREE, range(3, 2), Status::Ok).0, Ok(()));
        assert_eq!(table.iter().count(), 1);
        assert!(table.must_drain());
    }

    #[test]
    fn a_function_is_reset_only_with_a_reply_that_says_so() {
        let mut table = table();
        let reset = Change::ResetFunction(FunctionId(6));
        table.begin(&reset).unwrap();
        let not_ready = Status::NotReady.to_head();
        assert!(table.replied(&reset, not_ready.as_bytes(), |_| {}).is_err());
        assert_eq!(table.iter().count(), 3);
        let done = wire::ReplyHead::default();
        assert_eq!(table.replied(&reset, done.as_bytes(), |_| {}), Ok(()));
        assert_eq!(table.iter().collect::<Vec<_>>(), [(SourceId(5), FunctionId(7))]);
    }
}
