// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What C can ask for, without pointers: each is a loop around an operation of the driver core.

use crate::abi::REPLY_SIZE;
use crate::errno::Errno;
use core::num::NonZeroU16;
use virtio_irq_driver::{Block, Device, Fetch, Find, FindError, LIST_PAGE, Progress, Target};
use virtio_irq_proto::{FunctionId, IrqType, ListFunctions, Message, VectorRange, wire};
use zerocopy::IntoBytes;

/// Greatest number of messages that fit a reply buffer.
#[allow(clippy::cast_possible_truncation, reason = "the assertion below says that it does not")]
const MAX_VECTORS: NonZeroU16 =
    NonZeroU16::new((REPLY_SIZE / size_of::<wire::Message>() - 1) as u16).unwrap();

// Both reply heads have 16 bytes, as one message has.
const _: () = assert!(REPLY_SIZE >= 16 + size_of::<wire::Function>() * LIST_PAGE.get() as usize);
const _: () = assert!(REPLY_SIZE / size_of::<wire::Message>() <= u16::MAX as usize);

/// Sends requests and waits for their replies.
pub(crate) trait Exchange {
    /// Sends `request` with room for a reply of `reply_size` bytes.
    fn exchange(&mut self, request: &[u8], reply_size: usize) -> Result<&[u8], Errno>;
}

/// Why there is no function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FindFailure {
    /// The exchange failed.
    Exchange(Errno),
    /// The search did.
    Find(FindError),
}

/// The id of the function that is `target`.
pub(crate) fn find(exchange: &mut impl Exchange, target: Target) -> Result<FunctionId, FindFailure> {
    let mut find = Find::new(target);
    loop {
        let request: ListFunctions = find.request();
        let used = exchange
            .exchange(request.to_wire().as_bytes(), request.reply_size())
            .map_err(FindFailure::Exchange)?;
        if let Progress::Done(function) = find.reply(used).map_err(FindFailure::Find)? {
            return Ok(function.id);
        }
    }
}

/// The range that C names with plain numbers.
pub(crate) fn vectors(irq_type: u32, first: u32, count: u32) -> Result<VectorRange, Errno> {
    let irq_type = u8::try_from(irq_type).ok().and_then(IrqType::from_wire).ok_or(Errno::EINVAL)?;
    let first = u16::try_from(first).map_err(|_| Errno::ERANGE)?;
    let count = u16::try_from(count).map_err(|_| Errno::ERANGE)?;
    VectorRange::of_messages(irq_type, first, count).map_err(|_| Errno::EINVAL)
}

/// Gives `sink` the message of each vector, in order.
pub(crate) fn fetch(
    exchange: &mut impl Exchange,
    device: Device,
    function: FunctionId,
    vectors: VectorRange,
    mut sink: impl FnMut(Message),
) -> Result<(), Errno> {
    let device = device.with_vectors_at_most(MAX_VECTORS);
    let mut fetch = Fetch::new(&device, function, vectors);
    loop {
        let request = fetch.request();
        let used = exchange.exchange(request.to_wire().as_bytes(), request.reply_size())?;
        if fetch.reply(used, &mut sink)? == Progress::Done(()) {
            return Ok(());
        }
    }
}

/// The first message of `vectors`, if they form a block.
///
/// Each message is compared with the one before, so that a block of any length needs no memory.
pub(crate) fn fetch_block(
    exchange: &mut impl Exchange,
    device: Device,
    function: FunctionId,
    vectors: VectorRange,
) -> Result<Message, Errno> {
    let mut base = None;
    let mut last: Option<Message> = None;
    let mut contiguous = Ok(());
    fetch(exchange, device, function, vectors, |message| {
        base.get_or_insert(message);
        if let Some(last) = last.replace(message) {
            contiguous = contiguous.and(Block::of(&[last, message]).map(|_| ()));
        }
    })?;
    contiguous?;
    base.ok_or(Errno::EPROTO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_irq_proto::{Function, FunctionFlags, PciAddress, PciIds, Request, Status};

    /// Answers requests as a device would that has these messages and one function.
    struct Host {
        messages: Vec<Message>,
        asked: Vec<(u16, u16)>,
        reply: Vec<u8>,
    }

    const IDS: PciIds =
        PciIds { vendor: 1, device: 2, subsystem_vendor: 3, subsystem_device: 4, class_revision: 5 };

    impl Host {
        fn new(data: impl Iterator<Item = u32>) -> Self {
            let messages = data.map(|data| Message { address: 0xfee0_0578, data, generation: 1 }).collect();
            Self { messages, asked: Vec::new(), reply: Vec::new() }
        }
    }

    impl Exchange for Host {
        fn exchange(&mut self, request: &[u8], reply_size: usize) -> Result<&[u8], Errno> {
            assert!(request.len() <= Request::MAX_SIZE);
            assert!(reply_size <= REPLY_SIZE);
            let request = Request::parse(request).unwrap();
            assert_eq!(reply_size, request.reply_size());
            self.reply = match request {
                Request::ListFunctions(_) => {
                    let function = Function {
                        id: FunctionId(6),
                        flags: FunctionFlags::NATIVE,
                        guest_address: None,
                        ids: IDS,
                        intx_count: 0,
                        msi_count: 32,
                        msix_count: 0,
                    };
                    let head = wire::FunctionListHead { count: 1.into(), ..Default::default() };
                    [head.as_bytes(), function.to_wire().as_bytes()].concat()
                }
                Request::GetMessages(get) => {
                    assert_eq!(get.function, FunctionId(6));
                    let (first, count) = (get.vectors.first, get.vectors.count.get());
                    self.asked.push((first, count));
                    match self.messages.get(usize::from(first)..).and_then(|m| m.get(..usize::from(count))) {
                        None => Status::NoVector.to_head().as_bytes().to_vec(),
                        Some(messages) => {
                            let raw: Vec<_> = messages.iter().map(|m| m.to_wire()).collect();
                            let head = wire::MessageListHead { count: count.into(), ..Default::default() };
                            [head.as_bytes(), raw.as_bytes()].concat()
                        }
                    }
                }
                about_sources => panic!("this driver has no sources: {about_sources:?}"),
            };
            Ok(&self.reply)
        }
    }

    fn device() -> Device {
        Device::probe(b"VIRQ\x01\x00\0\0\0\0\0\0\xff\xff\0\0", 1).unwrap()
    }

    #[test]
    fn a_function_is_found_by_its_ids() {
        let address = PciAddress { segment: 0, bus: 0, devfn: 0x30 };
        let target = Target { address, ids: IDS, ids_are_unique: true };
        assert_eq!(find(&mut Host::new(0..0), target), Ok(FunctionId(6)));
        let twin = Target { ids_are_unique: false, ..target };
        assert_eq!(find(&mut Host::new(0..0), twin), Err(FindFailure::Find(FindError::Ambiguous)));
    }

    #[test]
    fn requests_never_ask_for_more_than_the_buffer_holds() {
        let mut host = Host::new(100..2148);
        let mut got = Vec::new();
        let range = vectors(2, 5, 300).unwrap();
        fetch(&mut host, device(), FunctionId(6), range, |message| got.push(message.data)).unwrap();
        assert_eq!(host.asked, [(5, 127), (132, 127), (259, 46)]);
        assert_eq!(got, (105..405).collect::<Vec<_>>());
    }

    #[test]
    fn a_block_is_checked_across_requests() {
        let range = vectors(2, 0, 128).unwrap();
        let base = fetch_block(&mut Host::new(64..192), device(), FunctionId(6), range).unwrap();
        assert_eq!((base.address, base.data), (0xfee0_0578, 64));
        let gap = (64..191).chain([192]);
        assert_eq!(fetch_block(&mut Host::new(gap), device(), FunctionId(6), range), Err(Errno::ENOSPC));
        let beyond = vectors(2, 0, 129).unwrap();
        assert_eq!(fetch_block(&mut Host::new(64..192), device(), FunctionId(6), beyond), Err(Errno::ERANGE));
    }

    #[test]
    fn arguments_that_no_function_can_have_are_refused() {
        assert_eq!(vectors(0, 0, 1), Err(Errno::EINVAL));
        assert_eq!(vectors(3, 0, 1), Err(Errno::EINVAL));
        assert_eq!(vectors(0x101, 0, 1), Err(Errno::EINVAL));
        assert_eq!(vectors(1, 4, 0), Err(Errno::EINVAL));
        assert_eq!(vectors(1, 0x1_0000, 1), Err(Errno::ERANGE));
        assert_eq!(vectors(1, 1, 0x1_0001), Err(Errno::ERANGE));
    }

    struct Broken;

    impl Exchange for Broken {
        fn exchange(&mut self, _: &[u8], _: usize) -> Result<&[u8], Errno> {
            Err(Errno::from_return(-110))
        }
    }

    #[test]
    fn a_failed_exchange_ends_the_operation_with_its_errno() {
        let range = vectors(1, 0, 1).unwrap();
        let failed = fetch(&mut Broken, device(), FunctionId(6), range, |_| panic!("no message"));
        assert_eq!(failed, Err(Errno::from_return(-110)));
    }
}
