// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sources: vectors that the device allocated for the guest and delivers itself.

use crate::{Message, Status, wire};
use core::fmt;
use core::num::NonZeroU16;

/// Id of a source, chosen by the device: below `max_sources` of the configuration space, so that a driver can use it
/// as an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub u32);

impl fmt::Display for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A non-empty range of source ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SourceRange {
    /// First source.
    pub first: SourceId,
    /// Number of sources.
    pub count: NonZeroU16,
}

impl SourceRange {
    /// The range of one source.
    pub const fn one(source: SourceId) -> Self {
        Self { first: source, count: NonZeroU16::MIN }
    }

    /// The range of `count` sources from `first`.
    ///
    /// # Errors
    /// [`Status::Invalid`] for a `count` of 0.
    pub fn new(first: u32, count: u16) -> Result<Self, Status> {
        let count = NonZeroU16::new(count).ok_or(Status::Invalid)?;
        Ok(Self { first: SourceId(first), count })
    }

    /// One past the last id. It does not overflow: ids have 32 bits.
    pub fn end(self) -> u64 {
        u64::from(self.first.0).saturating_add(u64::from(self.count.get()))
    }
}

/// How the messages of an allocation relate to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Layout {
    /// In no way.
    Any = 0,
    /// They form a block: consecutive vectors, one address, and data that counts up by one.
    Contiguous = 1,
}

impl Layout {
    /// The layout with this number on the wire.
    pub const fn from_wire(raw: u8) -> Option<Self> {
        match raw {
            0 => Some(Self::Any),
            1 => Some(Self::Contiguous),
            _ => None,
        }
    }

    /// The number on the wire.
    pub const fn to_wire(self) -> u8 {
        self as u8
    }
}

/// How the interrupts of a source reach the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Delivery {
    /// Through the event queue.
    Event = 1,
}

impl Delivery {
    /// The kind of delivery with this number on the wire.
    pub const fn from_wire(raw: u8) -> Option<Self> {
        match raw {
            1 => Some(Self::Event),
            _ => None,
        }
    }

    /// The number on the wire.
    pub const fn to_wire(self) -> u8 {
        self as u8
    }
}

/// A source, as the device describes it in the reply to ALLOCATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its id.
    pub id: SourceId,
    /// Which vector of the function it is.
    pub vector: u16,
    /// What raises it. All zeros for INTx, which has no message.
    pub message: Message,
}

impl Source {
    /// The source as it lies in a reply.
    pub fn to_wire(self) -> wire::Source {
        wire::Source {
            id: self.id.0.into(),
            vector: self.vector.into(),
            reserved: [0; 2],
            message: self.message.to_wire(),
        }
    }
}

impl From<wire::Source> for Source {
    fn from(raw: wire::Source) -> Self {
        Self { id: SourceId(raw.id.get()), vector: raw.vector.get(), message: Message::from(raw.message) }
    }
}
