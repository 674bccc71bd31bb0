// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is written is read back as it was, and no bytes make a reader panic.
#![cfg(test)]

mod common;

use common::emit;
use proptest::collection::vec;
use proptest::prelude::*;
use std::num::NonZeroU16;
use virtio_irq_proto::wire::{self, FunctionListHead, MessageListHead, SourceListHead};
use virtio_irq_proto::{
    Allocate, Config, Delivery, Event, Function, FunctionFlags, FunctionId, FunctionList, GetMessages,
    IrqType, Layout, ListFunctions, Message, MessageList, PciAddress, PciIds, ReplyError, Request,
    ResetFunction, Source, SourceId, SourceList, SourceRange, Status, VectorRange, read_done, read_head,
};
use zerocopy::{FromBytes, IntoBytes};

prop_compose! {
    fn vectors()(msix: bool, first: u16, count in 1..=u16::MAX) -> VectorRange {
        let irq_type = if msix { IrqType::Msix } else { IrqType::Msi };
        VectorRange { irq_type, first, count: NonZeroU16::new(count).unwrap() }
    }
}

prop_compose! {
    fn config()(max_sources: u32, max_vectors in 32..=u16::MAX) -> Config {
        Config { max_sources, max_vectors }
    }
}

prop_compose! {
    fn allocate()(
        function: u16,
        irq_type in 0..3_u8,
        contiguous: bool,
        counts in (1..=u16::MAX, 1..=u16::MAX),
        first: u16,
    ) -> Allocate {
        Allocate {
            function: FunctionId(function),
            irq_type: IrqType::from_wire(irq_type).unwrap(),
            layout: if contiguous { Layout::Contiguous } else { Layout::Any },
            least: NonZeroU16::new(counts.0.min(counts.1)).unwrap(),
            most: NonZeroU16::new(counts.0.max(counts.1)).unwrap(),
            first,
            delivery: Delivery::Event,
        }
    }
}

prop_compose! {
    fn source_range()(first: u32, count in 1..=u16::MAX) -> SourceRange {
        SourceRange::new(first, count).unwrap()
    }
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        allocate().prop_map(Request::Allocate),
        source_range().prop_map(Request::Free),
        source_range().prop_map(Request::Mask),
        source_range().prop_map(Request::Unmask),
        any::<u16>().prop_map(|id| Request::ResetFunction(ResetFunction { function: FunctionId(id) })),
        (any::<u16>(), 1..=u16::MAX).prop_map(|(start, count)| Request::ListFunctions(ListFunctions {
            start: FunctionId(start),
            count: NonZeroU16::new(count).unwrap(),
        })),
        (any::<u16>(), vectors()).prop_map(|(function, vectors)| Request::GetMessages(GetMessages {
            function: FunctionId(function),
            vectors,
        })),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (any::<u16>(), vectors())
            .prop_map(|(id, vectors)| Event::MessageChanged { function: FunctionId(id), vectors }),
        any::<u16>().prop_map(|id| Event::FunctionGone { function: FunctionId(id) }),
        any::<(u16, u32)>()
            .prop_map(|(id, source)| Event::Interrupt { function: FunctionId(id), source: SourceId(source) }),
        any::<(u16, u32)>().prop_map(|(id, source)| Event::SourceRevoked {
            function: FunctionId(id),
            source: SourceId(source),
        }),
    ]
}

prop_compose! {
    fn function()(
        id: u16,
        bits: u16,
        address in any::<Option<u32>>(),
        ids in any::<(u16, u16, u16, u16, u32)>(),
        counts in any::<(u16, u16, u16)>(),
    ) -> Function {
        // The flag follows the address.
        let others = FunctionFlags::from_bits(bits & !FunctionFlags::GUEST_ADDRESS.bits());
        let (vendor, device, subsystem_vendor, subsystem_device, class_revision) = ids;
        let (intx_count, msi_count, msix_count) = counts;
        Function {
            id: FunctionId(id),
            flags: others.with(FunctionFlags::GUEST_ADDRESS, address.is_some()),
            guest_address: address.map(PciAddress::from_wire),
            ids: PciIds { vendor, device, subsystem_vendor, subsystem_device, class_revision },
            intx_count,
            msi_count,
            msix_count,
        }
    }
}

prop_compose! {
    fn message()(address: u64, data: u32, generation: u32) -> Message {
        Message { address, data, generation }
    }
}

/// A block of sources that begins at a vector and an id.
fn block(first: u16, id: u32, length: u16, message: Message) -> Vec<Source> {
    let source = |n: u16| Source {
        id: SourceId(id + u32::from(n)),
        vector: first + n,
        message: Message { data: message.data / 2 + u32::from(n), ..message },
    };
    (0..length).map(source).collect()
}

fn source_list(sources: &[Source]) -> Vec<u8> {
    let count = u16::try_from(sources.len()).unwrap().into();
    let head = SourceListHead { count, ..Default::default() };
    let sources: Vec<_> = sources.iter().map(|source| source.to_wire()).collect();
    [head.as_bytes(), sources.as_bytes()].concat()
}

/// A head that claims `count` elements, before bytes that need not have them.
fn with_head(status: u16, count: u16, remaining: u16, rest: &[u8]) -> Vec<u8> {
    let head = FunctionListHead {
        head: wire::ReplyHead { status: status.into(), ..Default::default() },
        count: count.into(),
        remaining: remaining.into(),
        ..Default::default()
    };
    [head.as_bytes(), rest].concat()
}

proptest! {
    #[test]
    fn a_configuration_space_is_read_back(config in config(), tail in vec(any::<u8>(), 0..8)) {
        let bytes = [config.to_wire().as_bytes(), &tail].concat();
        prop_assert_eq!(Config::parse(&bytes), Ok(config));
    }

    #[test]
    fn a_request_is_read_back(request in request()) {
        let bytes = emit(&request);
        prop_assert!(bytes.len() <= Request::MAX_SIZE);
        prop_assert_eq!(Request::parse(&bytes), Ok(request));
    }

    #[test]
    fn a_request_of_another_length_is_refused(request in request(), tail in vec(any::<u8>(), 1..32), cut in 1..=16usize) {
        let bytes = emit(&request);
        prop_assert_eq!(Request::parse(&[&bytes[..], &tail].concat()), Err(Status::Invalid));
        prop_assert_eq!(Request::parse(&bytes[..bytes.len() - cut]), Err(Status::Invalid));
    }

    #[test]
    fn only_what_is_emitted_is_accepted(
        bytes in vec(prop_oneof![any::<u8>(), 0..3_u8], 24),
        kind in prop_oneof![1..=2u8, 16..=20_u8],
        zero: bool,
    ) {
        let mut bytes = bytes;
        bytes[..2].copy_from_slice(&[kind, 0]);
        if zero {
            bytes[2..8].fill(0);
            match kind {
                1 => bytes[12..].fill(0),
                2 => bytes[11] = 0,
                16 => bytes[19..].fill(0),
                17..=19 => bytes[14..].fill(0),
                _ => bytes[10..].fill(0),
            }
        }
        if kind != 16 {
            bytes.truncate(16);
        }
        if let Ok(request) = Request::parse(&bytes) {
            prop_assert_eq!(emit(&request), bytes);
        }
    }

    #[test]
    fn an_event_is_read_back(event in event()) {
        prop_assert_eq!(Event::parse(&event.to_wire()), Some(event));
    }

    #[test]
    fn a_function_is_read_back(function in function()) {
        prop_assert_eq!(Function::from(function.to_wire()), function);
    }

    #[test]
    fn a_function_list_is_read_back(functions in vec(function(), 0..6), remaining: u16) {
        let mut functions = functions;
        functions.sort_by_key(|function| function.id);
        functions.dedup_by_key(|function| function.id);
        let room = functions.last().map_or(0, |last| u16::MAX - last.id.0);
        let wire: Vec<_> = functions.iter().map(Function::to_wire).collect();
        let count = u16::try_from(wire.len()).unwrap();
        let bytes = with_head(0, count, remaining, wire.as_bytes());
        let parsed = FunctionList::parse(&bytes);
        if remaining > room {
            prop_assert_eq!(parsed, Err(ReplyError::Malformed));
        } else {
            prop_assert_eq!(parsed, Ok(FunctionList { functions: &wire, remaining }));
        }
    }

    #[test]
    fn a_message_list_is_read_back(messages in vec(message(), 0..40)) {
        let wire: Vec<_> = messages.iter().map(|message| message.to_wire()).collect();
        let head = MessageListHead {
            count: u16::try_from(wire.len()).unwrap().into(),
            ..Default::default()
        };
        let bytes = [head.as_bytes(), wire.as_bytes()].concat();
        let list = MessageList::parse(&bytes).unwrap();
        prop_assert_eq!(list.messages.iter().map(|raw| Message::from(*raw)).collect::<Vec<_>>(), messages);
    }

    #[test]
    fn a_block_of_sources_is_read_back_and_nothing_else_is_taken_for_one(
        first in 0..u16::MAX - 40,
        id in 0..u32::MAX - 40,
        length in 1..40_u16,
        message in message(),
        at in 0..39_usize,
        change in 0..6_u8,
    ) {
        let request = |layout, first| Allocate {
            function: FunctionId(1),
            irq_type: IrqType::Msix,
            layout,
            least: NonZeroU16::MIN,
            most: NonZeroU16::new(40).unwrap(),
            first,
            delivery: Delivery::Event,
        };
        let mut sources = block(first, id, length, message);
        let bytes = source_list(&sources);
        let read = request(Layout::Contiguous, first).parse_reply(&bytes).unwrap();
        prop_assert_eq!(read.sources.iter().map(|raw| Source::from(*raw)).collect::<Vec<_>>(), sources.clone());
        prop_assert_eq!(request(Layout::Any, first + 1).parse_reply(&bytes), Err(ReplyError::Malformed));

        // What is changed in one source of several breaks the block, and for vectors and ids the order as well.
        prop_assume!(length > 1);
        let at = at % (sources.len() - 1) + 1;
        let (previous, changed) = (sources[at - 1], &mut sources[at]);
        match change {
            0 => changed.vector = previous.vector,
            1 => changed.id = previous.id,
            2 => changed.message.address = !previous.message.address,
            3 => changed.message.data = previous.message.data,
            4 => changed.message.data += 1,
            _ => sources[at..].iter_mut().for_each(|source| source.vector += 1),
        }
        let bytes = source_list(&sources);
        prop_assert_eq!(request(Layout::Contiguous, first).parse_reply(&bytes), Err(ReplyError::Malformed));
        prop_assert_eq!(request(Layout::Any, first).parse_reply(&bytes).is_ok(), change > 1);
        prop_assert_eq!(SourceList::parse(&bytes).is_ok(), change > 1);
    }

    #[test]
    fn no_more_and_no_fewer_sources_are_taken_than_were_asked_for(length in 0..9_u16, least in 1..9_u16, more in 0..3_u16) {
        let request = Allocate {
            function: FunctionId(1),
            irq_type: IrqType::Msi,
            layout: Layout::Any,
            least: NonZeroU16::new(least).unwrap(),
            most: NonZeroU16::new(least + more).unwrap(),
            first: 3,
            delivery: Delivery::Event,
        };
        let bytes = source_list(&block(3, 0, length, Message::default()));
        prop_assert_eq!(request.parse_reply(&bytes).is_ok(), (least..=least + more).contains(&length));
    }

    #[test]
    fn a_range_of_sources_ends_without_wrapping(range in source_range()) {
        prop_assert_eq!(range.end() - u64::from(range.first.0), u64::from(range.count.get()));
    }

    #[test]
    fn a_pci_address_is_read_back(raw: u32) {
        prop_assert_eq!(PciAddress::from_wire(raw).to_wire(), raw);
    }

    #[test]
    fn a_status_is_known_or_named(raw: u16) {
        let expected = match Status::from_wire(raw) {
            Some(Status::Ok) => Ok(()),
            Some(status) => { prop_assert_eq!(status.to_wire(), raw); Err(ReplyError::Refused(status)) }
            None => { prop_assert!(raw >= 15); Err(ReplyError::UnknownStatus(raw)) }
        };
        prop_assert_eq!(read_head(&with_head(raw, 0, 0, &[])), expected);
    }

    #[test]
    fn no_bytes_make_a_reader_panic(
        bytes in vec(any::<u8>(), 0..200),
        status in 0..16u16,
        count in 0..8u16,
        remaining: u16,
    ) {
        let _ = Config::parse(&bytes);
        let _ = Config::parse(&[b"VIRQ\x01\x00", &bytes[..]].concat());
        let _ = Request::parse(&bytes).map(|request| request.reply_size());
        for kind in (0..4).chain(15..22) {
            let _ = Request::parse(&[&[kind, 0, 0, 0, 0, 0, 0, 0], &bytes[..]].concat());
        }
        for record in bytes.chunks_exact(Event::SIZE) {
            let mut raw = wire::Event::read_from_bytes(record).unwrap();
            let _ = Event::parse(&raw);
            for kind in 0..6 {
                raw.kind = kind.into();
                let _ = Event::parse(&raw);
            }
        }
        for used in [&bytes[..], &with_head(status, count, remaining, &bytes)] {
            let _ = read_head(used);
            let _ = FunctionList::parse(used);
            let _ = MessageList::parse(used);
            let _ = SourceList::parse(used);
            let _ = read_done(used);
        }
    }
}
