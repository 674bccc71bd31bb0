// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Events: what the device says unasked.

use crate::wire::{self, event_type};
use crate::{FunctionId, IrqType, SourceId, VectorRange};
use core::num::NonZeroU16;

/// One record of an event buffer.
///
/// A driver ignores records that [`Event::parse`] does not know (IRQ-DRV-12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A source fired, once or more often since its last event (IRQ-DEV-54). One of INTx is masked by it (IRQ-DEV-57).
    Interrupt {
        /// Whose source.
        function: FunctionId,
        /// Which source.
        source: SourceId,
    },
    /// The device lost a source: it delivers nothing any more, and keeps its id until it is freed (IRQ-DEV-73, IRQ-DRV-41).
    SourceRevoked {
        /// Whose source.
        function: FunctionId,
        /// Which source.
        source: SourceId,
    },
    /// Messages that were told before are not valid any more: fetch and program them again (IRQ-DRV-13).
    MessageChanged {
        /// Whose messages.
        function: FunctionId,
        /// Which vectors.
        vectors: VectorRange,
    },
    /// The function left the host, and its sources are freed (IRQ-DEV-75); every request for it fails from now on.
    FunctionGone {
        /// Which function.
        function: FunctionId,
    },
}

impl Event {
    /// Size of one record in bytes, and the least size of an event buffer (IRQ-DRV-15).
    pub const SIZE: usize = size_of::<wire::Event>();

    /// Reads one record; `None` for a type that is unknown or a field with a value that its definition does not have. Fields
    /// that a type does not use, and reserved bytes, are ignored (IRQ-DRV-20).
    pub fn parse(raw: &wire::Event) -> Option<Self> {
        let function = FunctionId(raw.function.get());
        let source = SourceId(raw.source.get());
        match raw.kind.get() {
            event_type::INTERRUPT => Some(Self::Interrupt { function, source }),
            event_type::SOURCE_REVOKED => Some(Self::SourceRevoked { function, source }),
            event_type::MESSAGE_CHANGED => {
                let irq_type = IrqType::from_wire(raw.irq_type)?;
                let vectors = VectorRange::of_messages(irq_type, raw.first.get(), raw.count.get()).ok()?;
                Some(Self::MessageChanged { function, vectors })
            }
            event_type::FUNCTION_GONE => Some(Self::FunctionGone { function }),
            _ => None,
        }
    }

    /// The record as it lies in a buffer.
    pub fn to_wire(self) -> wire::Event {
        match self {
            Self::Interrupt { function, source } => wire::Event {
                kind: event_type::INTERRUPT.into(),
                function: function.0.into(),
                source: source.0.into(),
                ..Default::default()
            },
            Self::SourceRevoked { function, source } => wire::Event {
                kind: event_type::SOURCE_REVOKED.into(),
                function: function.0.into(),
                source: source.0.into(),
                ..Default::default()
            },
            Self::MessageChanged { function, vectors: VectorRange { irq_type, first, count } } => {
                wire::Event {
                    kind: event_type::MESSAGE_CHANGED.into(),
                    function: function.0.into(),
                    first: first.into(),
                    count: NonZeroU16::get(count).into(),
                    irq_type: irq_type.to_wire(),
                    ..Default::default()
                }
            }
            Self::FunctionGone { function } => wire::Event {
                kind: event_type::FUNCTION_GONE.into(),
                function: function.0.into(),
                ..Default::default()
            },
        }
    }
}
