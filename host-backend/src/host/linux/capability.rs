// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The MSI and MSI-X capabilities of a PCI configuration space.
//!
//! Layouts and names are those of the PCI specification ("MSI Capability Structure", "MSI-X Capability Structure")
//! and of Linux's include/uapi/linux/pci_regs.h. A broken or hostile device decides what the bytes are, so nothing
//! here trusts an offset.

use std::cmp::min;

/// Size of the configuration space that holds the capability list.
pub(super) const CONFIG_SIZE: usize = 256;

/// The part that every process may read.
pub(super) const HEADER_SIZE: usize = 64;

const CAPABILITY_POINTER: usize = 0x34;
const INTERRUPT_PIN: usize = 0x3d;
const STATUS: usize = 0x06;
const STATUS_CAPABILITY_LIST: u16 = 1 << 4;
const ID_MSI: u8 = 0x05;
const ID_MSIX: u8 = 0x11;

/// A list has at most this many capabilities: each takes at least 4 of the bytes beyond the header. It ends the walk
/// of a list that loops.
const MOST_CAPABILITIES: usize = (CONFIG_SIZE - HEADER_SIZE) / 4;

/// A configuration space as it was read.
pub(super) type Snapshot = [u8; CONFIG_SIZE];

/// What a function can interrupt with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Capabilities {
    pub(super) msi: Option<MsiCapability>,
    pub(super) msix: Option<MsixCapability>,
}

/// Where the MSI capability is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MsiCapability {
    pub(super) offset: u8,
    flags: u16,
}

/// Where the MSI-X capability is, and where its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MsixCapability {
    pub(super) offset: u8,
    flags: u16,
    table: u32,
}

/// What an MSI capability says now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MsiBlock {
    /// Number of vectors that are enabled, 0 while MSI is off.
    pub(super) enabled: u16,
    pub(super) address: u64,
    /// Data of vector 0. The bits that number the vectors are 0.
    pub(super) data: u32,
}

impl Capabilities {
    /// Walks the capability list.
    pub(super) fn find(config: &Snapshot) -> Self {
        let mut found = Self::default();
        if u16_at(config, STATUS).is_none_or(|status| status & STATUS_CAPABILITY_LIST == 0) {
            return found;
        }
        let mut next = config[CAPABILITY_POINTER];
        for _ in 0..MOST_CAPABILITIES {
            let offset = next & !3;
            if usize::from(offset) < HEADER_SIZE {
                break;
            }
            let at = usize::from(offset);
            match config[at] {
                // Nothing answers there.
                0xff => break,
                ID_MSI if found.msi.is_none() => found.msi = MsiCapability::parse(config, offset),
                ID_MSIX if found.msix.is_none() => found.msix = MsixCapability::parse(config, offset),
                _ => {}
            }
            next = config[at + 1];
        }
        found
    }
}

/// Number of INTx pins.
pub(super) fn interrupt_pins(config: &Snapshot) -> u16 {
    u16::from((1..=4).contains(&config[INTERRUPT_PIN]))
}

impl MsiCapability {
    const ENABLE: u16 = 1 << 0;
    const IS_64_BIT: u16 = 1 << 7;

    fn parse(config: &Snapshot, offset: u8) -> Option<Self> {
        let msi = Self { offset, flags: u16_at(config, usize::from(offset) + 2)? };
        (usize::from(offset) + msi.size() <= CONFIG_SIZE).then_some(msi)
    }

    /// Number of vectors that the function asks for; the reserved encodings count as the greatest number there is.
    pub(super) fn vectors(self) -> u16 {
        1 << min(self.flags >> 1 & 7, 5)
    }

    pub(super) fn is_64_bit(self) -> bool {
        self.flags & Self::IS_64_BIT != 0
    }

    /// Number of bytes up to the end of the data register.
    pub(super) fn size(self) -> usize {
        if self.is_64_bit() { 14 } else { 10 }
    }

    /// Reads the registers, [`MsiCapability::size`] bytes from the capability on.
    pub(super) fn decode(self, registers: &[u8]) -> Option<MsiBlock> {
        let flags = u16_at(registers, 2)?;
        let low = u64::from(u32_at(registers, 4)?);
        let (address, data) = if self.is_64_bit() {
            (u64::from(u32_at(registers, 8)?) << 32 | low, u16_at(registers, 12)?)
        } else {
            (low, u16_at(registers, 8)?)
        };
        let vectors = 1u16 << min(flags >> 4 & 7, 5);
        let enabled = if flags & Self::ENABLE != 0 { vectors } else { 0 };
        Some(MsiBlock { enabled, address, data: u32::from(data & !(vectors - 1)) })
    }
}

impl MsixCapability {
    pub(super) const ENABLE: u16 = 1 << 15;

    fn parse(config: &Snapshot, offset: u8) -> Option<Self> {
        let at = usize::from(offset);
        Some(Self { offset, flags: u16_at(config, at + 2)?, table: u32_at(config, at + 4)? })
    }

    /// Number of entries of the table.
    pub(super) fn entries(self) -> u16 {
        (self.flags & 0x7ff) + 1
    }

    /// Number of the BAR that holds the table.
    pub(super) fn bar(self) -> u8 {
        self.table.to_le_bytes()[0] & 7
    }

    /// Where the table begins in its BAR, in bytes.
    pub(super) fn table_offset(self) -> u64 {
        u64::from(self.table & !7)
    }
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}
