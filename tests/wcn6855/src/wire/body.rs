// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The fixed parts of messages, exactly as they lie in the stream.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

macro_rules! structures {
    ($($(#[$doc:meta])* $name:ident = $size:literal { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
        #[repr(C)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }
        const _: () = assert!(size_of::<$name>() == $size);
    )*};
}

structures! {
    /// The fixed part of a version message.
    Version = 4 {
        /// Must be [`MAJOR`](super::MAJOR).
        major: U16,
        /// The lower one of both sides counts.
        minor: U16,
    }
    /// The client made memory accessible to the device.
    DmaMap = 32 {
        /// Length of this structure.
        argsz: U32,
        /// Readable, writable.
        flags: U32,
        /// Where in the descriptor that came along.
        offset: U64,
        /// The device's address.
        address: U64,
        /// Length in bytes.
        size: U64,
    }
    /// The client took memory away.
    DmaUnmap = 24 {
        /// Length of this structure.
        argsz: U32,
        /// Bit 1: everything.
        flags: U32,
        /// The device's address.
        address: U64,
        /// Length in bytes.
        size: U64,
    }
    /// What the device is.
    DeviceInfo = 16 {
        /// Length of this structure.
        argsz: U32,
        /// Bit 0: can be reset; bit 1: is a PCI device.
        flags: U32,
        /// Number of regions.
        regions: U32,
        /// Number of kinds of interrupts.
        irqs: U32,
    }
    /// What a region is.
    RegionInfo = 32 {
        /// Length of this structure.
        argsz: U32,
        /// Bit 0: readable; bit 1: writable.
        flags: U32,
        /// Which one.
        index: U32,
        /// Where capabilities follow, or 0.
        cap_offset: U32,
        /// Length in bytes; 0 if there is no such region.
        size: U64,
        /// Where it is in the device's descriptor, which does not exist here.
        offset: U64,
    }
    /// What a kind of interrupts is.
    IrqInfo = 16 {
        /// Length of this structure.
        argsz: U32,
        /// Bit 0: by eventfd; bits 1, 2: maskable, automatically; bit 3: all or none.
        flags: U32,
        /// Which one.
        index: U32,
        /// Number of vectors.
        count: U32,
    }
    /// The fixed part of what sets interrupts up.
    SetIrqs = 20 {
        /// Length of this structure and its data.
        argsz: U32,
        /// Bits 0 to 2: kind of data; bits 3 to 5: action.
        flags: U32,
        /// Kind of interrupts.
        index: U32,
        /// First vector.
        start: U32,
        /// Number of vectors.
        count: U32,
    }
    /// The fixed part of an access to a region.
    Access = 16 {
        /// First byte.
        offset: U64,
        /// Which region.
        region: U32,
        /// Number of bytes.
        count: U32,
    }
    /// The fixed part of an access to the client's memory. QEMU's older versions had a 32-bit count here.
    DmaAccess = 16 {
        /// The device's address.
        address: U64,
        /// Number of bytes.
        count: U64,
    }
}

/// The bits of [`SetIrqs::flags`] that say what data follows.
pub(super) const IRQ_DATA_MASK: u32 = 7;
const IRQ_DATA_NONE: u32 = 1;
pub(super) const IRQ_DATA_BOOL: u32 = 2;
pub(super) const IRQ_DATA_EVENTFD: u32 = 4;

impl SetIrqs {
    /// Whether kind of data and action are each exactly one of those that exist.
    #[must_use]
    pub fn is_defined(&self) -> bool {
        let flags = self.flags.get();
        let data = matches!(flags & IRQ_DATA_MASK, IRQ_DATA_NONE | IRQ_DATA_BOOL | IRQ_DATA_EVENTFD);
        data && matches!(flags & !IRQ_DATA_MASK, 0x8 | 0x10 | 0x20)
    }
}
