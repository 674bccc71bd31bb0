// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Fetching messages, and seeing whether they form a block.

use crate::{Device, Progress};
use core::fmt;
use core::num::NonZeroU16;
use virtio_irq_proto::{FunctionId, GetMessages, Message, ReplyError, VectorRange};

/// A fetch of the messages of a range of vectors, in as many requests as the device's limit asks for.
#[derive(Clone, Copy, Debug)]
pub struct Fetch {
    function: FunctionId,
    /// What is still to be fetched.
    rest: VectorRange,
    max_vectors: NonZeroU16,
}

impl Fetch {
    /// A fetch that has asked nothing yet.
    pub fn new(device: &Device, function: FunctionId, vectors: VectorRange) -> Self {
        // `Device::probe` accepts no device with a lower limit than 32.
        let max_vectors = NonZeroU16::new(device.max_vectors()).unwrap_or(NonZeroU16::MIN);
        Self { function, rest: vectors, max_vectors }
    }

    /// The request to send next.
    pub fn request(&self) -> GetMessages {
        let count = self.rest.count.min(self.max_vectors);
        GetMessages { function: self.function, vectors: VectorRange { count, ..self.rest } }
    }

    /// Takes the reply to [`Fetch::request`] and gives each message to `sink`, in the order of the vectors.
    ///
    /// # Errors
    /// The fetch is over. What `sink` got before belongs to vectors that were fetched in earlier requests.
    pub fn reply(&mut self, used: &[u8], mut sink: impl FnMut(Message)) -> Result<Progress<()>, ReplyError> {
        let request = self.request();
        let asked = request.vectors;
        let list = request.parse_reply(used)?;
        list.messages.iter().for_each(|raw| sink(Message::from(*raw)));
        let left = self.rest.count.get().saturating_sub(asked.count.get());
        match (NonZeroU16::new(left), self.rest.first.checked_add(asked.count.get())) {
            (None, _) => Ok(Progress::Done(())),
            (Some(count), Some(first)) => {
                self.rest = VectorRange { first, count, ..self.rest };
                Ok(Progress::Again)
            }
            // The device answered for vectors that cannot exist.
            (Some(_), None) => Err(ReplyError::Malformed),
        }
    }
}

/// Messages of consecutive vectors that a device can derive from the first one: the same address, and the data of
/// vector `n` is that of the first plus `n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// The address of all of them.
    pub address: u64,
    /// The data of the first.
    pub data: u32,
    /// The generation of the first.
    pub generation: u32,
}

/// The messages do not form a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotContiguous;

impl Block {
    /// The block that these messages form.
    ///
    /// # Errors
    /// There is none: no message at all, another address, or data that does not count up.
    pub fn of(messages: &[Message]) -> Result<Self, NotContiguous> {
        let first = messages.first().ok_or(NotContiguous)?;
        let mut expected = Some(first.data);
        for message in messages {
            if message.address != first.address || Some(message.data) != expected {
                return Err(NotContiguous);
            }
            expected = message.data.checked_add(1);
        }
        Ok(Self { address: first.address, data: first.data, generation: first.generation })
    }
}

impl fmt::Display for NotContiguous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the messages do not form a block of one address and data that counts up")
    }
}

impl core::error::Error for NotContiguous {}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_irq_proto::{IrqType, Status, wire};
    use zerocopy::IntoBytes;
    extern crate std;
    use std::vec::Vec;

    fn device(max_vectors: u8) -> Device {
        let mut config = *b"VIRQ\x01\x00\0\0\0\0\0\0\0\0\0\0";
        config[12] = max_vectors;
        Device::probe(&config, 1).unwrap()
    }

    fn message(vector: u16) -> Message {
        Message { address: 0xfee0_0578, data: u32::from(vector), generation: 3 }
    }

    fn reply(vectors: impl Iterator<Item = u16>) -> Vec<u8> {
        let messages: Vec<_> = vectors.map(|v| message(v).to_wire()).collect();
        let head = wire::MessageListHead {
            count: u16::try_from(messages.len()).unwrap().into(),
            ..Default::default()
        };
        [head.as_bytes(), messages.as_bytes()].concat()
    }

    #[test]
    fn a_range_beyond_the_limit_is_fetched_in_pieces() {
        let range = VectorRange::of_messages(IrqType::Msix, 5, 70).unwrap();
        let mut fetch = Fetch::new(&device(32), FunctionId(4), range);
        let mut got = Vec::new();
        for (first, count) in [(5, 32), (37, 32), (69, 6)] {
            let asked = fetch.request();
            assert_eq!(asked.function, FunctionId(4));
            assert_eq!((asked.vectors.first, asked.vectors.count.get()), (first, count));
            let progress = fetch.reply(&reply(first..first + count), |m| got.push(m)).unwrap();
            assert_eq!(progress == Progress::Done(()), first == 69);
        }
        assert_eq!(got, (5..75).map(message).collect::<Vec<_>>());
    }

    #[test]
    fn a_reply_of_another_length_is_refused() {
        let range = VectorRange::of_messages(IrqType::Msi, 2, 4).unwrap();
        let mut fetch = Fetch::new(&device(32), FunctionId(4), range);
        let mut refused = |used: &[u8]| fetch.reply(used, |_| panic!("no message may come out"));
        assert_eq!(refused(&reply(2..5)), Err(ReplyError::Malformed));
        assert_eq!(refused(&reply(2..7)), Err(ReplyError::Malformed));
        assert_eq!(refused(&reply(2..6)[..79]), Err(ReplyError::Malformed));
        assert_eq!(refused(&[]), Err(ReplyError::Malformed));
        assert_eq!(
            refused(Status::NotEnabled.to_head().as_bytes()),
            Err(ReplyError::Refused(Status::NotEnabled))
        );
        assert_eq!(refused(&[0x99, 0, 0, 0, 0, 0, 0, 0]), Err(ReplyError::UnknownStatus(0x99)));
    }

    #[test]
    fn vectors_that_cannot_exist_end_the_fetch() {
        let range = VectorRange::of_messages(IrqType::Msix, u16::MAX - 31, 64).unwrap();
        let mut fetch = Fetch::new(&device(32), FunctionId(0), range);
        assert_eq!(fetch.reply(&reply(0..32), |_| ()), Err(ReplyError::Malformed));
    }

    #[test]
    fn a_block_counts_up_from_its_first_message() {
        let block: Vec<_> = (8..24).map(message).collect();
        assert_eq!(Block::of(&block), Ok(Block { address: 0xfee0_0578, data: 8, generation: 3 }));
        assert_eq!(Block::of(&block[..1]), Ok(Block { address: 0xfee0_0578, data: 8, generation: 3 }));
        assert_eq!(Block::of(&[]), Err(NotContiguous));
        assert_eq!(Block::of(&[message(8), message(10)]), Err(NotContiguous));
        let elsewhere = Message { address: 0xfee0_0598, ..message(9) };
        assert_eq!(Block::of(&[message(8), elsewhere]), Err(NotContiguous));
        let last = Message { data: u32::MAX, ..message(0) };
        assert_eq!(Block::of(&[last, Message { data: 0, ..last }]), Err(NotContiguous));
    }
}
