// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Allocating sources.

use crate::Device;
use virtio_irq_proto::{Allocate, ReplyError, Source};

/// An allocation of sources: one request, all or nothing between its least and its most.
#[derive(Clone, Copy, Debug)]
pub struct Allocation {
    request: Allocate,
    max_sources: u32,
}

impl Allocation {
    /// An allocation that has asked nothing yet. `request.most` is cut to what one request may name.
    pub fn new(device: &Device, mut request: Allocate) -> Self {
        let most = core::num::NonZeroU16::new(device.max_vectors()).unwrap_or(request.least);
        request.most = request.most.min(most).max(request.least);
        Self { request, max_sources: device.max_sources() }
    }

    /// The request to send.
    pub fn request(&self) -> Allocate {
        self.request
    }

    /// Takes the reply and gives each source to `sink`, in the order of the vectors.
    ///
    /// # Errors
    /// Nothing was allocated. [`ReplyError::Malformed`] also for an id that is no index below `max_sources`: then the
    /// device did allocate, and only a device reset gives that back.
    pub fn reply(&self, used: &[u8], sink: impl FnMut(Source)) -> Result<(), ReplyError> {
        let list = self.request.parse_reply(used)?;
        if list.sources.iter().any(|source| source.id.get() >= self.max_sources) {
            return Err(ReplyError::Malformed);
        }
        list.sources.iter().copied().map(Source::from).for_each(sink);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::num::NonZeroU16;
    use virtio_irq_proto::{Delivery, FunctionId, IrqType, Layout, Message, SourceId, wire};
    use zerocopy::IntoBytes;
    extern crate std;
    use std::vec::Vec;

    fn device() -> Device {
        Device::probe(b"VIRQ\x01\x00\0\0\x09\0\0\0\x40\0\0\0", 3).unwrap()
    }

    fn request(least: u16, most: u16) -> Allocate {
        Allocate {
            function: FunctionId(4),
            irq_type: IrqType::Msi,
            layout: Layout::Any,
            least: NonZeroU16::new(least).unwrap(),
            most: NonZeroU16::new(most).unwrap(),
            first: 5,
            delivery: Delivery::Event,
        }
    }

    fn source(id: u32, vector: u16) -> Source {
        let message = Message { address: 0xfee0_0418, data: u32::from(vector), generation: 1 };
        Source { id: SourceId(id), vector, message }
    }

    fn reply(sources: &[Source]) -> Vec<u8> {
        let head = wire::SourceListHead {
            count: u16::try_from(sources.len()).unwrap().into(),
            ..Default::default()
        };
        let raw: Vec<_> = sources.iter().map(|source| source.to_wire()).collect();
        [head.as_bytes(), raw.as_bytes()].concat()
    }

    fn taken(least: u16, most: u16, sources: &[Source]) -> Result<Vec<Source>, ReplyError> {
        let mut got = Vec::new();
        Allocation::new(&device(), request(least, most)).reply(&reply(sources), |source| got.push(source))?;
        Ok(got)
    }

    #[test]
    fn what_was_given_comes_out_in_order() {
        let given = [source(0, 5), source(8, 7)];
        assert_eq!(taken(1, 3, &given), Ok(given.to_vec()));
    }

    #[test]
    fn a_request_names_no_more_than_the_device_takes() {
        let asked = Allocation::new(&device(), request(2, 100)).request();
        assert_eq!((asked.least.get(), asked.most.get()), (2, 64));
    }

    #[test]
    fn sources_that_cannot_be_are_refused() {
        let malformed = Err(ReplyError::Malformed);
        assert_eq!(taken(1, 3, &[source(9, 5)]), malformed, "an id beyond the limit");
        assert_eq!(taken(1, 3, &[source(1, 4)]), malformed, "a vector below the first");
        assert_eq!(taken(1, 3, &[source(1, 6), source(2, 6)]), malformed, "a vector twice");
        assert_eq!(taken(1, 3, &[source(1, 6), source(1, 7)]), malformed, "an id twice");
        assert_eq!(taken(1, 1, &[source(1, 6), source(2, 7)]), malformed, "too many");
        assert_eq!(taken(2, 3, &[source(1, 6)]), malformed, "too few");
        assert_eq!(taken(1, 3, &[]), malformed, "none");
    }
}
