// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Finding the entry of a PCI function in the device's list.

use crate::Progress;
use core::fmt;
use core::num::NonZeroU16;
use virtio_irq_proto::{Function, FunctionId, ListFunctions, PciAddress, PciIds, ReplyError, wire};

/// Number of functions that one request of a search asks for.
pub const LIST_PAGE: NonZeroU16 = NonZeroU16::new(8).unwrap();

/// The PCI function that a guest looks for, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its address.
    pub address: PciAddress,
    /// What it is.
    pub ids: PciIds,
    /// Whether no other function of the guest has the same ids. Where the host does not know guest addresses, only
    /// then can the ids stand for the function (IRQ-DRV-05).
    pub ids_are_unique: bool,
}

/// A search for one function: pages through the list until the function is found or the list ends.
#[derive(Clone, Copy, Debug)]
pub struct Find {
    target: Target,
    start: u16,
    by_ids: Option<Function>,
    ambiguous: bool,
}

/// Why a search found nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FindError {
    /// No entry fits: this device knows nothing of that function.
    NoMatch,
    /// Entries or functions of the guest have the same ids and no guest address tells them apart.
    Ambiguous,
    /// The entry with the function's guest address describes another model: the operator gave a wrong address.
    OtherModel(FunctionId),
    /// The device's answer was not a list.
    Reply(ReplyError),
}

impl Find {
    /// A search that has asked nothing yet.
    pub fn new(target: Target) -> Self {
        Self { target, start: 0, by_ids: None, ambiguous: false }
    }

    /// The request to send next.
    pub fn request(&self) -> ListFunctions {
        ListFunctions { start: FunctionId(self.start), count: LIST_PAGE }
    }

    /// Takes the reply to [`Find::request`].
    ///
    /// # Errors
    /// The search is over without a function.
    pub fn reply(&mut self, used: &[u8]) -> Result<Progress<Function>, FindError> {
        let list = self.request().parse_reply(used).map_err(FindError::Reply)?;
        for raw in list.functions {
            if let Some(function) = self.consider(raw)? {
                return Ok(Progress::Done(function));
            }
        }
        if list.remaining == 0 {
            return self.finish().map(Progress::Done);
        }
        // A page that says there is more holds at least one function, and not the one with the greatest id.
        let next = list.functions.last().and_then(|last| last.id.get().checked_add(1));
        self.start = next.ok_or(FindError::Reply(ReplyError::Malformed))?;
        Ok(Progress::Again)
    }

    fn consider(&mut self, raw: &wire::Function) -> Result<Option<Function>, FindError> {
        let function = Function::from(*raw);
        let same_model = function.ids == self.target.ids;
        match function.guest_address {
            Some(address) if address == self.target.address => {
                if same_model {
                    Ok(Some(function))
                } else {
                    Err(FindError::OtherModel(function.id))
                }
            }
            Some(_) => Ok(None),
            None => {
                if same_model {
                    self.ambiguous |= self.by_ids.is_some();
                    self.by_ids = Some(function);
                }
                Ok(None)
            }
        }
    }

    fn finish(&self) -> Result<Function, FindError> {
        match self.by_ids {
            None => Err(FindError::NoMatch),
            Some(_) if self.ambiguous || !self.target.ids_are_unique => Err(FindError::Ambiguous),
            Some(function) => Ok(function),
        }
    }
}

impl fmt::Display for FindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMatch => f.write_str("the host does not list this function"),
            Self::Ambiguous => f.write_str(
                "several functions have these ids: the host must be told the guest address of each (guest=...)",
            ),
            Self::OtherModel(id) => {
                write!(f, "the host lists another model at this address (function {id}): its guest=... is wrong")
            }
            Self::Reply(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for FindError {}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_irq_proto::{FunctionFlags, Status};
    use zerocopy::IntoBytes;
    extern crate std;
    use std::vec::Vec;

    const IDS: PciIds = PciIds {
        vendor: 0x17cb,
        device: 0x1103,
        subsystem_vendor: 0x105b,
        subsystem_device: 0xe0ce,
        class_revision: 0x0280_0001,
    };
    const OTHER: PciIds = PciIds { device: 0x1104, ..IDS };

    fn at(device: u8) -> PciAddress {
        PciAddress { segment: 0, bus: 0, devfn: device << 3 }
    }

    fn target() -> Target {
        Target { address: at(6), ids: IDS, ids_are_unique: true }
    }

    fn function(id: u16, guest_address: Option<PciAddress>, ids: PciIds) -> Function {
        Function {
            id: FunctionId(id),
            flags: FunctionFlags::NATIVE,
            guest_address,
            ids,
            intx_count: 1,
            msi_count: 32,
            msix_count: 0,
        }
    }

    /// Answers as a device with `all` would.
    fn list(all: &[Function], request: ListFunctions) -> Vec<u8> {
        let from: Vec<_> = all.iter().filter(|f| f.id >= request.start).collect();
        let page: Vec<_> = from.iter().take(usize::from(request.count.get())).collect();
        page_of(&page.iter().map(|f| f.to_wire()).collect::<Vec<_>>(), from.iter().skip(page.len()).count())
    }

    fn page_of(functions: &[wire::Function], remaining: usize) -> Vec<u8> {
        let head = wire::FunctionListHead {
            count: u16::try_from(functions.len()).unwrap().into(),
            remaining: u16::try_from(remaining).unwrap().into(),
            ..Default::default()
        };
        [head.as_bytes(), functions.as_bytes()].concat()
    }

    fn search(target: Target, all: &[Function]) -> Result<FunctionId, FindError> {
        let mut find = Find::new(target);
        loop {
            if let Progress::Done(function) = find.reply(&list(all, find.request()))? {
                return Ok(function.id);
            }
        }
    }

    #[test]
    fn the_guest_address_decides() {
        let all = [function(3, Some(at(5)), IDS), function(4, None, IDS), function(9, Some(at(6)), IDS)];
        assert_eq!(search(target(), &all), Ok(FunctionId(9)));
    }

    #[test]
    fn without_an_address_the_ids_decide_if_they_are_unique() {
        let all = [function(3, None, OTHER), function(7, None, IDS)];
        assert_eq!(search(target(), &all), Ok(FunctionId(7)));
        let twins = Target { ids_are_unique: false, ..target() };
        assert_eq!(search(twins, &all), Err(FindError::Ambiguous));
        let both = [function(3, None, IDS), function(7, None, IDS)];
        assert_eq!(search(target(), &both), Err(FindError::Ambiguous));
    }

    #[test]
    fn another_model_at_the_address_is_an_error() {
        let all = [function(2, Some(at(6)), OTHER), function(3, None, IDS)];
        assert_eq!(search(target(), &all), Err(FindError::OtherModel(FunctionId(2))));
    }

    #[test]
    fn a_function_on_a_later_page_is_found() {
        let mut all: Vec<_> = (10..40).map(|id| function(id, None, OTHER)).collect();
        all.push(function(u16::MAX, None, IDS));
        assert_eq!(search(target(), &all), Ok(FunctionId(u16::MAX)));
        all.pop();
        assert_eq!(search(target(), &all), Err(FindError::NoMatch));
        assert_eq!(search(target(), &[]), Err(FindError::NoMatch));
    }

    #[test]
    fn a_list_that_goes_nowhere_ends_the_search() {
        let malformed = Err(FindError::Reply(ReplyError::Malformed));
        let mut find = Find::new(target());
        assert_eq!(find.reply(&page_of(&[], 1)), malformed);
        let last = function(u16::MAX, None, OTHER).to_wire();
        assert_eq!(find.reply(&page_of(&[last], 1)), malformed);
        let early = function(4, None, OTHER).to_wire();
        assert_eq!(find.reply(&page_of(&[early], 1)), Ok(Progress::Again));
        assert_eq!(find.reply(&page_of(&[early], 0)), malformed);
        let long: Vec<_> = (20..29).map(|id| function(id, None, OTHER).to_wire()).collect();
        assert_eq!(find.reply(&page_of(&long, 0)), malformed);
    }

    #[test]
    fn a_refused_list_ends_the_search_with_its_status() {
        let mut find = Find::new(target());
        let refused = find.reply(Status::HostError.to_head().as_bytes());
        assert_eq!(refused, Err(FindError::Reply(ReplyError::Refused(Status::HostError))));
    }
}
