// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Listing every function.

use virtio_irq_driver::{LIST_PAGE, Progress};
use virtio_irq_proto::{Function, FunctionId, ListFunctions, ReplyError};

/// A listing of all functions: pages through the list until it ends.
#[derive(Clone, Debug)]
pub(crate) struct List {
    start: u16,
    functions: Vec<Function>,
}

impl List {
    pub(crate) fn new() -> Self {
        Self { start: 0, functions: Vec::new() }
    }

    pub(crate) fn request(&self) -> ListFunctions {
        ListFunctions { start: FunctionId(self.start), count: LIST_PAGE }
    }

    /// Takes the reply to [`List::request`].
    pub(crate) fn reply(&mut self, used: &[u8]) -> Result<Progress<Vec<Function>>, ReplyError> {
        let list = self.request().parse_reply(used)?;
        self.functions.extend(list.functions.iter().map(|raw| Function::from(*raw)));
        if list.remaining == 0 {
            return Ok(Progress::Done(std::mem::take(&mut self.functions)));
        }
        // A page that says there is more holds at least one function, and not the one with the greatest id.
        let last = list.functions.last().ok_or(ReplyError::Malformed)?.id.get();
        self.start = last.checked_add(1).ok_or(ReplyError::Malformed)?;
        Ok(Progress::Again)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_irq_proto::{Status, wire};
    use zerocopy::IntoBytes;

    fn page(ids: &[u16], remaining: u16) -> Vec<u8> {
        let count = u16::try_from(ids.len()).unwrap();
        let head =
            wire::FunctionListHead { count: count.into(), remaining: remaining.into(), ..Default::default() };
        let functions: Vec<_> =
            ids.iter().map(|id| wire::Function { id: (*id).into(), ..Default::default() }).collect();
        [head.as_bytes(), functions.as_bytes()].concat()
    }

    #[test]
    fn pages_are_joined_and_each_begins_after_the_last_id() {
        let mut list = List::new();
        assert_eq!(list.reply(&page(&[3, 4, 90], 1)), Ok(Progress::Again));
        assert_eq!(list.request().start, FunctionId(91));
        let Ok(Progress::Done(all)) = list.reply(&page(&[65_535], 0)) else { panic!("the list ended") };
        assert_eq!(all.iter().map(|function| function.id.0).collect::<Vec<_>>(), [3, 4, 90, 65_535]);
    }

    #[test]
    fn a_list_that_goes_nowhere_ends() {
        let malformed = Err(ReplyError::Malformed);
        assert_eq!(List::new().reply(&page(&[], 1)), malformed);
        assert_eq!(List::new().reply(&page(&[65_535], 1)), malformed);
        assert_eq!(List::new().reply(&page(&[1, 2, 3, 4, 5, 6, 7, 8, 9], 0)), malformed);
        let mut list = List::new();
        assert_eq!(list.reply(&page(&[7], 1)), Ok(Progress::Again));
        assert_eq!(list.reply(&page(&[7], 0)), malformed);
        let refused = Err(ReplyError::Refused(Status::HostError));
        assert_eq!(list.reply(Status::HostError.to_head().as_bytes()), refused);
    }
}
