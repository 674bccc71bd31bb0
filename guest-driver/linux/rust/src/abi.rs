// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Structures that C and Rust share, as `rust_core.h` declares them.

use crate::table::Table;
use core::fmt;
use virtio_irq_driver::{Device, ProbeError, Slot, Target, Verdict};
use virtio_irq_proto::{Config, Event, F_EVENT, FunctionId, Message, PciAddress, PciIds, Request, Source};

const HEADER: &[u8] = include_bytes!("../../rust_core.h");

/// Length in bytes of the longest reply that C has a buffer for.
pub(crate) const REPLY_SIZE: usize = defined(b"#define RS_SIZE_REPLY ");

const _: () = assert!(size_of::<RawDevice>() == defined(b"#define RS_SIZE_DEVICE "));
const _: () = assert!(size_of::<RawTarget>() == defined(b"#define RS_SIZE_TARGET "));
const _: () = assert!(size_of::<RawEvent>() == defined(b"#define RS_SIZE_EVENT "));
const _: () = assert!(Event::SIZE == defined(b"#define RS_SIZE_RECORD "));
const _: () = assert!(size_of::<RawMsg>() == defined(b"#define RS_SIZE_MSG "));
const _: () = assert!(size_of::<RawWanted>() == defined(b"#define RS_SIZE_WANTED "));
const _: () = assert!(size_of::<RawSource>() == defined(b"#define RS_SIZE_SOURCE "));
// These two are Rust's own, and other compilers may lay them out otherwise.
const _: () = assert!(
    size_of::<Slot>() <= defined(b"#define RS_SIZE_SLOT ") && align_of::<Slot>() <= align_of::<u64>()
);
const _: () = assert!(
    size_of::<Table>() <= defined(b"#define RS_SIZE_TABLE ") && align_of::<Table>() <= align_of::<u64>()
);
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

    /// Whether both sides have agreed on event delivery.
    pub(crate) fn has_events(&self) -> bool {
        self.features & 1 << F_EVENT != 0
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RawEvent {
    pub(crate) kind: u32,
    irq_type: u32,
    pub(crate) source: u32,
    function: u16,
    first: u16,
    count: u16,
    reserved: u16,
}

impl RawEvent {
    /// The event, and what it means.
    pub(crate) fn new(event: Event, verdict: Verdict) -> Self {
        let kind = match verdict {
            Verdict::Changed(..) => 0,
            Verdict::Gone(_) => 1,
            Verdict::Revoked(_) => 2,
            Verdict::Fired(_) => 3,
            Verdict::AfterReplies => 4,
            Verdict::Nothing => 5,
        };
        let about = |function: FunctionId| Self { kind, function: function.0, ..Self::default() };
        match event {
            Event::MessageChanged { function, vectors } => Self {
                irq_type: vectors.irq_type.to_wire().into(),
                first: vectors.first,
                count: vectors.count.get(),
                ..about(function)
            },
            Event::FunctionGone { function } => about(function),
            Event::SourceRevoked { function, source } | Event::Interrupt { function, source } => {
                Self { source: source.0, ..about(function) }
            }
        }
    }
}

/// `struct rs_wanted`
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct RawWanted {
    pub(crate) irq_type: u32,
    pub(crate) flags: u32,
    pub(crate) first: u32,
    pub(crate) least: u32,
    pub(crate) most: u32,
    pub(crate) function: u16,
    pub(crate) reserved: u16,
}

/// `VIRTIO_IRQ_CONTIGUOUS`
pub(crate) const CONTIGUOUS: u32 = 1;

/// `struct rs_source`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RawSource {
    pub(crate) msg: RawMsg,
    pub(crate) id: u32,
    pub(crate) vector: u16,
    reserved: u16,
}

impl From<Source> for RawSource {
    fn from(source: Source) -> Self {
        Self { msg: source.message.into(), id: source.id.0, vector: source.vector, reserved: 0 }
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
    use virtio_irq_proto::{IrqType, SourceId, VectorRange};

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
        let header = include_str!("../../rust_core.h");
        assert!(header.contains("\tRS_EVENT_FIRED = VIRTIO_IRQ_EVENT_SOURCE_REVOKED + 1,"));
        assert!(header.contains("\tRS_EVENT_AFTER_REPLIES,\n\tRS_EVENT_NOTHING,\n"));
        let vectors = VectorRange::of_messages(IrqType::Msix, 3, 2).unwrap();
        let function = FunctionId(7);
        let changed =
            RawEvent::new(Event::MessageChanged { function, vectors }, Verdict::Changed(function, vectors));
        let expected =
            RawEvent { kind: 0, irq_type: 2, source: 0, function: 7, first: 3, count: 2, reserved: 0 };
        assert_eq!(changed, expected);
        let gone = RawEvent::new(Event::FunctionGone { function }, Verdict::Gone(function));
        assert_eq!((gone.kind, gone.function), (1, 7));
        let (function, source) = (FunctionId(5), SourceId(0x1_0007));
        let revoked = Event::SourceRevoked { function, source };
        let interrupt = Event::Interrupt { function, source };
        for (event, verdict, kind) in [
            (revoked, Verdict::Revoked(source), 2),
            (interrupt, Verdict::Fired(source), 3),
            (interrupt, Verdict::AfterReplies, 4),
            (revoked, Verdict::Nothing, 5),
        ] {
            let raw = RawEvent::new(event, verdict);
            assert_eq!((raw.kind, raw.function, raw.source), (kind, 5, 0x1_0007));
        }
    }

    #[test]
    fn the_flag_of_a_block_is_that_of_the_header() {
        let header = include_str!("../../include/linux/virtio_irq.h");
        assert!(header.contains("#define VIRTIO_IRQ_CONTIGUOUS BIT(0)"));
        assert_eq!(CONTIGUOUS, 1 << 0);
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
