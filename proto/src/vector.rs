// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Vectors and their messages.

use crate::{Status, wire};
use core::num::NonZeroU16;

/// Kind of interrupt of a PCI function. The values are those of the wire and of VFIO's interrupt indexes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum IrqType {
    /// The pin. It has no message.
    Intx = 0,
    /// The MSI capability.
    Msi = 1,
    /// The MSI-X table.
    Msix = 2,
}

impl IrqType {
    /// The type with this number on the wire.
    pub const fn from_wire(raw: u8) -> Option<Self> {
        match raw {
            0 => Some(Self::Intx),
            1 => Some(Self::Msi),
            2 => Some(Self::Msix),
            _ => None,
        }
    }

    /// The number on the wire.
    pub const fn to_wire(self) -> u8 {
        self as u8
    }
}

/// A non-empty range of vectors of one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VectorRange {
    /// Kind of interrupt.
    pub irq_type: IrqType,
    /// First vector.
    pub first: u16,
    /// Number of vectors.
    pub count: NonZeroU16,
}

impl VectorRange {
    /// A range of vectors that have messages: `count` is not 0 and the type is not INTx.
    ///
    /// # Errors
    /// [`Status::Invalid`]. Whether the function has these vectors is for the device to say.
    pub fn of_messages(irq_type: IrqType, first: u16, count: u16) -> Result<Self, Status> {
        match (irq_type, NonZeroU16::new(count)) {
            (IrqType::Msi | IrqType::Msix, Some(count)) => Ok(Self { irq_type, first, count }),
            _ => Err(Status::Invalid),
        }
    }

    /// One past the last vector. It cannot overflow: both parts have 16 bits.
    pub fn end(self) -> u32 {
        u32::from(self.first).saturating_add(u32::from(self.count.get()))
    }

    /// Number of vectors.
    pub fn len(self) -> usize {
        usize::from(self.count.get())
    }

    /// Never: a range holds at least one vector.
    pub const fn is_empty(self) -> bool {
        false
    }
}

/// The pair that makes the platform raise one vector. Opaque to the guest (IRQ-DRV-09).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Message {
    /// Where the function writes: an address on its bus, which an IOMMU may translate.
    pub address: u64,
    /// What it writes, as 32 little-endian bits.
    pub data: u32,
    /// Tells messages of one vector apart between two device resets: it differs from the last one told whenever address or data
    /// do (IRQ-DEV-31, IRQ-DEV-32). Not a count.
    pub generation: u32,
}

impl Message {
    /// The message as it lies in a reply.
    pub fn to_wire(self) -> wire::Message {
        wire::Message {
            address: self.address.into(),
            data: self.data.into(),
            generation: self.generation.into(),
        }
    }
}

impl From<wire::Message> for Message {
    fn from(raw: wire::Message) -> Self {
        Self { address: raw.address.get(), data: raw.data.get(), generation: raw.generation.get() }
    }
}
