// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Structures that C and Rust share, as `rust_core.h` declares them.

use core::fmt;
use virtio_irq_driver::{Device, ProbeError, Target};
use virtio_irq_proto::{Config, Event, Message, PciAddress, PciIds, Request};

const HEADER: &[u8] = include_bytes!("../../rust_core.h");

/// Length in bytes of the longest reply that C has a buffer for.
pub(crate) const REPLY_SIZE: usize = defined(b"#define RS_SIZE_REPLY ");

const _: () = assert!(size_of::<RawDevice>() == defined(b"#define RS_SIZE_DEVICE "));
const _: () = assert!(size_of::<RawTarget>() == defined(b"#define RS_SIZE_TARGET "));
const _: () = assert!(size_of::<RawEvent>() == defined(b"#define RS_SIZE_EVENT "));
const _: () = assert!(size_of::<RawMsg>() == defined(b"#define RS_SIZE_MSG "));
const _: () = assert!(size_of::<Text>() == defined(b"#define RS_SIZE_TEXT "));
const _: () = assert!(Request::MAX_SIZE == defined(b"#define RS_SIZE_REQUEST "));
const _: () = assert!(Config::SIZE == defined(b"#define RS_SIZE_CONFIG "));

/// The decimal number after `definition` in the header. Evaluated by the compiler: a definition that is missing
/// ends the build.
#[allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic,
    reason = "iterators are not const, and a panic here is a compile error"
)]
const fn defined(definition: &[u8]) -> usize {
    let mut at = 0;
    while at + definition.len() < HEADER.len() {
        let mut matched = 0;
        while matched < definition.len() && HEADER[at + matched] == definition[matched] {
            matched += 1;
        }
        if matched == definition.len() {
            let (mut digit, mut value) = (at + matched, 0);
            assert!(HEADER[digit].is_ascii_digit());
            while HEADER[digit].is_ascii_digit() {
                value = value * 10 + (HEADER[digit] - b'0') as usize;
                digit += 1;
            }
            return value;
        }
        at += 1;
    }
    panic!("rust_core.h does not define this")
}

/// `struct rs_device`
#[repr(C)]
pub struct RawDevice {
    features: u64,
    config: [u8; Config::SIZE],
}

impl RawDevice {
    /// What the driver core makes of it.
    pub(crate) fn probe(&self) -> Result<Device, ProbeError> {
        Device::probe(&self.config, self.features)
    }
}

/// `struct rs_target`
#[repr(C)]
pub struct RawTarget {
    class_revision: u32,
    segment: u16,
    vendor: u16,
    device: u16,
    subsystem_vendor: u16,
    subsystem_device: u16,
    bus: u8,
    devfn: u8,
    ids_are_unique: u8,
    reserved: [u8; 3],
}

impl From<&RawTarget> for Target {
    fn from(raw: &RawTarget) -> Self {
        Self {
            address: PciAddress { segment: raw.segment, bus: raw.bus, devfn: raw.devfn },
            ids: PciIds {
                vendor: raw.vendor,
                device: raw.device,
                subsystem_vendor: raw.subsystem_vendor,
                subsystem_device: raw.subsystem_device,
                class_revision: raw.class_revision,
            },
            ids_are_unique: raw.ids_are_unique != 0,
        }
    }
}

/// `struct virtio_irq_msg`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RawMsg {
    address: u64,
    data: u32,
    generation: u32,
}

impl From<Message> for RawMsg {
    fn from(message: Message) -> Self {
        Self { address: message.address, data: message.data, generation: message.generation }
    }
}

/// `struct rs_event`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RawEvent {
    kind: u32,
    irq_type: u32,
    function: u16,
    first: u16,
    count: u16,
    reserved: u16,
}

impl RawEvent {
    /// The event, unless it is one of sources: this driver has none.
    pub(crate) fn of(event: Event) -> Option<Self> {
        match event {
            Event::MessageChanged { function, vectors } => Some(Self {
                kind: 0,
                irq_type: vectors.irq_type.to_wire().into(),
                function: function.0,
                first: vectors.first,
                count: vectors.count.get(),
                reserved: 0,
            }),
            Event::FunctionGone { function } => {
                Some(Self { kind: 1, irq_type: 0, function: function.0, first: 0, count: 0, reserved: 0 })
            }
            Event::Interrupt { .. } | Event::SourceRevoked { .. } => None,
        }
    }
}

/// `struct rs_text`: words for a person, cut to what fits, always with a zero byte at the end.
#[repr(C)]
pub struct Text {
    bytes: [u8; defined(b"#define RS_SIZE_TEXT ")],
}

impl Text {
    /// No words.
    pub(crate) const EMPTY: Self = Self { bytes: [0; defined(b"#define RS_SIZE_TEXT ")] };

    /// Replaces the words by what `value` prints.
    pub(crate) fn set(&mut self, value: &dyn fmt::Display) {
        *self = Self::EMPTY;
        let mut writer = Writer { room: self.bytes.split_last_mut().map_or(&mut [], |(_, room)| room) };
        // The only error is that it did not fit.
        let _ = fmt::write(&mut writer, format_args!("{value}"));
    }

    /// The words, without the zero bytes.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

struct Writer<'a> {
    room: &'a mut [u8],
}

impl fmt::Write for Writer<'_> {
    fn write_str(&mut self, words: &str) -> fmt::Result {
        let fit = words.len().min(self.room.len());
        let (now, later) = core::mem::take(&mut self.room).split_at_mut(fit);
        for (to, from) in now.iter_mut().zip(words.bytes()) {
            *to = from;
        }
        self.room = later;
        if fit == words.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_irq_proto::{FunctionId, IrqType, VectorRange};

    #[test]
    fn text_is_cut_to_its_room_and_ends_with_zero() {
        let mut text = Text::EMPTY;
        text.set(&"a reason");
        assert_eq!(text.as_bytes(), b"a reason");
        text.set(&"x".repeat(500));
        assert_eq!(text.as_bytes(), "x".repeat(159).as_bytes());
        assert_eq!(text.bytes[159], 0);
        text.set(&"short");
        assert_eq!(text.as_bytes(), b"short");
    }

    #[test]
    fn events_get_the_numbers_of_the_header() {
        let header = include_str!("../../include/linux/virtio_irq.h");
        let enumeration = header.split("enum virtio_irq_event {").nth(1).unwrap().split('}').next().unwrap();
        let names: Vec<_> = enumeration.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
        assert_eq!(
            names,
            ["VIRTIO_IRQ_EVENT_MESSAGE_CHANGED", "VIRTIO_IRQ_EVENT_GONE", "VIRTIO_IRQ_EVENT_SOURCE_REVOKED"]
        );
        let vectors = VectorRange::of_messages(IrqType::Msix, 3, 2).unwrap();
        let changed = RawEvent::of(Event::MessageChanged { function: FunctionId(7), vectors }).unwrap();
        let expected = RawEvent { kind: 0, irq_type: 2, function: 7, first: 3, count: 2, reserved: 0 };
        assert_eq!(changed, expected);
        let gone = RawEvent::of(Event::FunctionGone { function: FunctionId(9) }).unwrap();
        assert_eq!((gone.kind, gone.function), (1, 9));
    }

    #[test]
    fn a_target_keeps_its_address_and_ids() {
        let raw = RawTarget {
            class_revision: 0x0280_0001,
            segment: 2,
            vendor: 0x17cb,
            device: 0x1103,
            subsystem_vendor: 0x105b,
            subsystem_device: 0xe0ce,
            bus: 3,
            devfn: 0x31,
            ids_are_unique: 1,
            reserved: [0; 3],
        };
        let target = Target::from(&raw);
        assert_eq!(target.address.to_wire(), 0x0002_0331);
        assert_eq!((target.ids.vendor, target.ids.device), (0x17cb, 0x1103));
        assert_eq!((target.ids.subsystem_vendor, target.ids.subsystem_device), (0x105b, 0xe0ce));
        assert_eq!((target.ids.class_revision, target.ids_are_unique), (0x0280_0001, true));
    }
}
