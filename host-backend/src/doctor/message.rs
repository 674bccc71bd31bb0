// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a message means to the hardware that gets it.

use super::machine::IommuKind;
use crate::device::Pair;
use crate::host::linux::Platform;
use std::fmt;

/// A message, as the platform takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// VT-d looks the interrupt up in its remapping table.
    Remappable { index: u32 },
    /// The interrupt itself: a processor and a vector. Nothing checks it, or VT-d blocks it.
    Compatibility { destination: u8, vector: u8 },
    /// AMD-Vi looks the interrupt up in the function's own remapping table.
    AmdIndex { index: u16 },
    /// An ITS looks the event up in the function's own table.
    ItsEvent { doorbell: u64, event: u32 },
    /// Not what is known of this platform.
    Unknown,
}

/// The addresses that x86 takes for interrupts.
const X86_INTERRUPTS: std::ops::RangeInclusive<u64> = 0xfee0_0000..=0xfeef_ffff;

impl Meaning {
    /// Decodes by the rules of the platform: the VT-d specification's "Interrupt Requests in Remappable Format", the AMD
    /// I/O virtualization specification's "Interrupt Remapping Tables" (2048 entries at most), GICv3's `GITS_TRANSLATER`.
    pub(super) fn of(pair: Pair, platform: Platform, iommu: Option<IommuKind>, remapping: bool) -> Self {
        let Pair { address, data } = pair;
        match platform {
            Platform::Arm64 => Self::ItsEvent { doorbell: address, event: data },
            Platform::X86 if X86_INTERRUPTS.contains(&address) => {
                let low = address & 0xf_ffff;
                if remapping && iommu == Some(IommuKind::Amd) {
                    return Self::AmdIndex { index: u16::try_from(data & 0x7ff).unwrap_or(0) };
                }
                if low & 1 << 4 == 0 {
                    let destination = u8::try_from(low >> 12).unwrap_or(0);
                    return Self::Compatibility { destination, vector: data.to_le_bytes()[0] };
                }
                let handle = u32::try_from(low >> 5 & 0x7fff | (low >> 2 & 1) << 15).unwrap_or(0);
                // With the "subhandle valid" bit the data counts from the handle on.
                let subhandle = if low & 1 << 3 == 0 { 0 } else { data & 0xffff };
                Self::Remappable { index: handle.wrapping_add(subhandle) }
            }
            _ => Self::Unknown,
        }
    }
}

impl fmt::Display for Meaning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remappable { index } => write!(f, "VT-d remappable, table entry {index:#x}"),
            Self::Compatibility { destination, vector } => {
                write!(f, "compatibility format, processor {destination}, vector {vector:#04x}")
            }
            Self::AmdIndex { index } => write!(f, "AMD-Vi, table entry {index:#x}"),
            Self::ItsEvent { doorbell, event } => write!(f, "ITS doorbell {doorbell:#x}, event {event}"),
            Self::Unknown => f.write_str("not known here"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(address: u64, data: u32, platform: Platform, iommu: IommuKind) -> String {
        Meaning::of(Pair { address, data }, platform, Some(iommu), true).to_string()
    }

    #[test]
    fn messages_are_decoded_by_the_rules_of_their_platform() {
        let (x86, arm) = (Platform::X86, Platform::Arm64);
        let vtd = IommuKind::Vtd;
        // Pairs of a real laptop: the host's, and the guest's that VT-d blocks.
        assert_eq!(decoded(0xfee0_0578, 0, x86, vtd), "VT-d remappable, table entry 0x2b");
        assert_eq!(decoded(0xfee0_0578, 3, x86, vtd), "VT-d remappable, table entry 0x2e");
        assert_eq!(decoded(0xfee0_0570, 3, x86, vtd), "VT-d remappable, table entry 0x2b");
        assert_eq!(decoded(0xfee0_057c, 0, x86, vtd), "VT-d remappable, table entry 0x802b");
        assert_eq!(decoded(0xfee0_3000, 0x4029, x86, vtd), "compatibility format, processor 3, vector 0x29");
        assert_eq!(decoded(0xfee0_0000, 0x21, x86, IommuKind::Amd), "AMD-Vi, table entry 0x21");
        assert_eq!(decoded(0x0804_0040, 8, arm, IommuKind::Smmu), "ITS doorbell 0x8040040, event 8");
        assert_eq!(decoded(0x1_fee0_0000, 8, x86, vtd), "not known here");
    }

    #[test]
    fn without_remapping_amd_reads_the_vector() {
        let pair = Pair { address: 0xfee0_1000, data: 0x4023 };
        let meaning = Meaning::of(pair, Platform::X86, Some(IommuKind::Amd), false);
        assert_eq!(meaning, Meaning::Compatibility { destination: 1, vector: 0x23 });
    }
}
