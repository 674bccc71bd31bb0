// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bytes written out by hand, for those who read a hex dump.
#![cfg(test)]

use std::num::NonZeroU16;
use virtio_irq_proto::wire::{FunctionListHead, MessageListHead, SourceListHead};
use virtio_irq_proto::{
    Allocate, Config, Delivery, Event, Function, FunctionFlags, FunctionId, GetMessages, IrqType, Layout,
    ListFunctions, MAGIC, Message, PciAddress, PciIds, ResetFunction, Source, SourceId, SourceRange,
    SourceRequest, Status, VectorRange,
};
use zerocopy::IntoBytes;

fn vectors(irq_type: IrqType, first: u16, count: u16) -> VectorRange {
    VectorRange { irq_type, first, count: NonZeroU16::new(count).unwrap() }
}

#[test]
fn the_magic_spells_virq() {
    assert_eq!(MAGIC.to_le_bytes(), *b"VIRQ");
    assert_eq!(MAGIC, 0x5152_4956);
}

#[test]
fn a_configuration_space_begins_with_magic_and_version() {
    let config = Config { max_sources: 0x0a0b_0c0d, max_vectors: 0x0140 };
    assert_eq!(config.to_wire().as_bytes(), b"VIRQ\x01\x00\x00\x00\x0d\x0c\x0b\x0a\x40\x01\x00\x00");
}

#[test]
fn list_functions_carries_start_and_count() {
    let request = ListFunctions { start: FunctionId(0x0304), count: NonZeroU16::new(0x0102).unwrap() };
    assert_eq!(request.to_wire().as_bytes(), [1, 0, 0, 0, 0, 0, 0, 0, 4, 3, 2, 1, 0, 0, 0, 0]);
    assert_eq!(request.reply_size(), 16 + 32 * 0x102);
}

#[test]
fn get_messages_carries_function_type_and_range() {
    let request =
        GetMessages { function: FunctionId(0x0102), vectors: vectors(IrqType::Msix, 0x0304, 0x0506) };
    assert_eq!(request.to_wire().as_bytes(), [2, 0, 0, 0, 0, 0, 0, 0, 2, 1, 2, 0, 4, 3, 6, 5]);
    assert_eq!(request.reply_size(), 16 + 16 * 0x506);
}

#[test]
fn allocate_carries_what_is_wanted_and_how() {
    let request = Allocate {
        function: FunctionId(0x0102),
        irq_type: IrqType::Msix,
        layout: Layout::Contiguous,
        least: NonZeroU16::new(0x0304).unwrap(),
        most: NonZeroU16::new(0x0506).unwrap(),
        first: 0x0708,
        delivery: Delivery::Event,
    };
    #[rustfmt::skip]
    let expected = [
        16, 0, 0, 0, 0, 0, 0, 0, 2, 1, 2, 1, 4, 3, 6, 5,
        8, 7, 1, 0, 0, 0, 0, 0,
    ];
    assert_eq!(request.to_wire().as_bytes(), expected);
    assert_eq!(request.reply_size(), 16 + 24 * 0x506);
}

#[test]
fn the_requests_for_sources_carry_a_range() {
    let range = SourceRange::new(0x0102_0304, 0x0506).unwrap();
    for (request, kind) in [(SourceRequest::Free, 17), (SourceRequest::Mask, 18), (SourceRequest::Unmask, 19)]
    {
        let bytes = [kind, 0, 0, 0, 0, 0, 0, 0, 4, 3, 2, 1, 6, 5, 0, 0];
        assert_eq!(request.to_wire(range).as_bytes(), bytes);
    }
}

#[test]
fn reset_function_carries_a_function() {
    let request = ResetFunction { function: FunctionId(0x0102) };
    assert_eq!(request.to_wire().as_bytes(), [20, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_source_list_begins_with_its_count() {
    let head = SourceListHead { count: 0x0102.into(), ..Default::default() };
    assert_eq!(head.as_bytes(), [0, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_source_is_id_vector_message() {
    let source = Source {
        id: SourceId(0x0102_0304),
        vector: 0x0506,
        message: Message { address: 0x0000_0001_fee0_0578, data: 3, generation: 0x0708_090a },
    };
    #[rustfmt::skip]
    let expected = [
        4, 3, 2, 1, 6, 5, 0, 0,
        0x78, 0x05, 0xe0, 0xfe, 1, 0, 0, 0, 3, 0, 0, 0, 0x0a, 9, 8, 7,
    ];
    assert_eq!(source.to_wire().as_bytes(), expected);
}

#[test]
fn a_refusal_is_a_status_and_six_zeros() {
    let bytes = Status::ALL.map(|status| <[u8; 8]>::try_from(status.to_head().as_bytes()).unwrap());
    assert_eq!(bytes.map(|head| head[0]), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]);
    assert!(bytes.iter().all(|head| head[1..] == [0; 7]));
}

#[test]
fn a_function_lies_in_32_bytes() {
    let function = Function {
        id: FunctionId(0x0201),
        flags: FunctionFlags::ISOLATED.with(FunctionFlags::NATIVE, true),
        guest_address: Some(PciAddress { segment: 0x0605, bus: 0x04, devfn: 0x1f << 3 | 2 }),
        ids: PciIds {
            vendor: 0x17cb,
            device: 0x1103,
            subsystem_vendor: 0x105b,
            subsystem_device: 0xe0ce,
            class_revision: 0x0280_0001,
        },
        intx_count: 1,
        msi_count: 32,
        msix_count: 0x0800,
    };
    #[rustfmt::skip]
    let expected = [
        0x01, 0x02, 0x0b, 0x00, 0xfa, 0x04, 0x05, 0x06, 0xcb, 0x17, 0x03, 0x11, 0x5b, 0x10, 0xce, 0xe0,
        0x01, 0x00, 0x80, 0x02, 0x01, 0x00, 0x20, 0x00, 0x00, 0x08, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(function.to_wire().as_bytes(), expected);
    assert_eq!(function.guest_address.unwrap().to_string(), "0605:04:1f.2");
    let unaddressed = Function { guest_address: None, flags: FunctionFlags::GUEST_ADDRESS, ..function };
    assert_eq!(unaddressed.to_wire().as_bytes()[2..8], [0; 6]);
}

#[test]
fn a_function_list_begins_with_two_counts() {
    let head = FunctionListHead { count: 0x0102.into(), remaining: 0x0304.into(), ..Default::default() };
    assert_eq!(head.as_bytes(), [0, 0, 0, 0, 0, 0, 0, 0, 2, 1, 4, 3, 0, 0, 0, 0]);
}

#[test]
fn a_message_list_begins_with_its_count() {
    let head = MessageListHead { count: 0x0102.into(), ..Default::default() };
    assert_eq!(head.as_bytes(), [0, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_message_is_address_data_generation() {
    let message = Message { address: 0x0000_0001_fee0_0578, data: 0x0000_0003, generation: 0x0102_0304 };
    assert_eq!(message.to_wire().as_bytes(), [0x78, 0x05, 0xe0, 0xfe, 1, 0, 0, 0, 3, 0, 0, 0, 4, 3, 2, 1]);
}

#[test]
fn an_event_names_what_it_is_about() {
    let changed = Event::MessageChanged {
        function: FunctionId(0x0102),
        vectors: vectors(IrqType::Msi, 0x0304, 0x0506),
    };
    assert_eq!(changed.to_wire().as_bytes(), [2, 0, 2, 1, 0, 0, 0, 0, 4, 3, 6, 5, 1, 0, 0, 0]);
    let (function, source) = (FunctionId(0x0102), SourceId(0x0304_0506));
    let interrupt = Event::Interrupt { function, source };
    assert_eq!(interrupt.to_wire().as_bytes(), [1, 0, 2, 1, 6, 5, 4, 3, 0, 0, 0, 0, 0, 0, 0, 0]);
    let revoked = Event::SourceRevoked { function, source };
    assert_eq!(revoked.to_wire().as_bytes(), [3, 0, 2, 1, 6, 5, 4, 3, 0, 0, 0, 0, 0, 0, 0, 0]);
    let gone = Event::FunctionGone { function: FunctionId(0x0102) };
    assert_eq!(gone.to_wire().as_bytes(), [4, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn pci_addresses_are_read_as_lspci_prints_them() {
    let address = |segment, bus, devfn| Ok(PciAddress { segment, bus, devfn });
    assert_eq!("00:06.0".parse(), address(0, 0, 0x30));
    assert_eq!("12ab:fe:1f.7".parse(), address(0x12ab, 0xfe, 0xff));
    for wrong in [
        "",
        "6",
        "00:06",
        "00:20.0",
        "00:06.8",
        "100:06.0",
        "10000:00:06.0",
        "00:+6.0",
        "0:0:0:0.0",
        ":00:06.0",
        "00:06.",
        ":06.0",
    ] {
        assert!(wrong.parse::<PciAddress>().is_err(), "{wrong}");
    }
}
