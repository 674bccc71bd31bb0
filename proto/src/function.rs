// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Functions: what the guest is told about a PCI function that is assigned to it.

use crate::{IrqType, wire};
use core::fmt;
use core::str::FromStr;

/// Id of a function, chosen by the host. It means nothing beyond this device, and nothing after a device reset (IRQ-DEV-20,
/// IRQ-DRV-17).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FunctionId(pub u16);

impl fmt::Display for FunctionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Address of a function on a PCI hierarchy, printed as `0000:00:06.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// Segment, which Linux calls domain.
    pub segment: u16,
    /// Bus.
    pub bus: u8,
    /// `device << 3 | function`: device 0 to 31, function 0 to 7.
    pub devfn: u8,
}

impl PciAddress {
    /// The 32 bits of the wire: `segment << 16 | bus << 8 | devfn`.
    pub fn to_wire(self) -> u32 {
        u32::from(self.segment) << 16 | u32::from(self.bus) << 8 | u32::from(self.devfn)
    }

    /// The address with these 32 bits on the wire.
    pub fn from_wire(raw: u32) -> Self {
        let [devfn, bus, low, high] = raw.to_le_bytes();
        Self { segment: u16::from_le_bytes([low, high]), bus, devfn }
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.segment, self.bus, self.devfn >> 3, self.devfn & 7)
    }
}

/// A text that is no PCI address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPciAddress;

impl FromStr for PciAddress {
    type Err = NoPciAddress;

    /// Reads `[SEGMENT:]BUS:DEVICE.FUNCTION` in hexadecimal, as `lspci` prints it; segment 0 without one.
    fn from_str(text: &str) -> Result<Self, NoPciAddress> {
        let parse = || {
            let (rest, function) = text.rsplit_once('.')?;
            let (rest, device) = rest.rsplit_once(':')?;
            let (segment, bus) = rest.split_once(':').unwrap_or(("0", rest));
            let (bus, device, function) = (hex(bus, 2, 0xff)?, hex(device, 2, 0x1f)?, hex(function, 1, 7)?);
            let [bus, devfn] = [bus, device << 3 | function].map(u8::try_from);
            Some(Self { segment: hex(segment, 4, u16::MAX)?, bus: bus.ok()?, devfn: devfn.ok()? })
        };
        parse().ok_or(NoPciAddress)
    }
}

/// A number of at most `digits` digits, without a sign.
fn hex(text: &str, digits: usize, most: u16) -> Option<u16> {
    let well_formed = text.len() <= digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    u16::from_str_radix(text, 16).ok().filter(|value| well_formed && *value <= most)
}

impl fmt::Display for NoPciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a PCI address, such as 02:00.0 or 0000:02:00.0")
    }
}

impl core::error::Error for NoPciAddress {}

/// What identifies the model of a PCI function, as in its configuration space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PciIds {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem_device: u16,
    /// Dword 0x08: class code << 8 | revision.
    pub class_revision: u32,
}

/// What holds for a function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FunctionFlags(u16);

impl FunctionFlags {
    /// `VIRTIO_IRQ_FN_GUEST_ADDRESS`: the guest-visible address is known.
    pub const GUEST_ADDRESS: Self = Self(1 << 0);
    /// `VIRTIO_IRQ_FN_ISOLATED`: the platform lets the function raise no messages but its own
    /// (IRQ-DEV-25).
    pub const ISOLATED: Self = Self(1 << 1);
    /// `VIRTIO_IRQ_FN_STABLE`: a message does not change for as long as its vector stays enabled
    /// (IRQ-DEV-26).
    pub const STABLE: Self = Self(1 << 2);
    /// `VIRTIO_IRQ_FN_NATIVE`: the device can tell the function's messages (IRQ-DEV-27).
    pub const NATIVE: Self = Self(1 << 3);
    /// `VIRTIO_IRQ_FN_EVENT`: the device can allocate sources of the function (IRQ-DEV-49).
    pub const EVENT: Self = Self(1 << 4);

    /// Flags from the wire; unknown bits are kept, and ignored by everything here.
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// The bits of the wire.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Whether all of `other` is set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These flags but not `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// These flags and `other`, if `condition` holds.
    #[must_use]
    pub const fn with(self, other: Self, condition: bool) -> Self {
        if condition { Self(self.0 | other.0) } else { self }
    }
}

/// One function of the list. The default one has neither vectors nor flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Function {
    /// Id in requests and events.
    pub id: FunctionId,
    /// What holds for it. [`FunctionFlags::GUEST_ADDRESS`] follows `guest_address` when the function is written.
    pub flags: FunctionFlags,
    /// Where the guest sees it, if the host was told. Decides alone which function this is (IRQ-DRV-04).
    pub guest_address: Option<PciAddress>,
    /// What it is.
    pub ids: PciIds,
    /// Number of INTx pins, 0 or 1.
    pub intx_count: u16,
    /// Number of vectors of its MSI capability: 0 without one, 32 at most.
    pub msi_count: u16,
    /// Number of entries of its MSI-X table: 0 without one, 2048 at most.
    pub msix_count: u16,
}

impl Function {
    /// Number of vectors of a type.
    pub const fn vector_count(&self, irq_type: IrqType) -> u16 {
        match irq_type {
            IrqType::Intx => self.intx_count,
            IrqType::Msi => self.msi_count,
            IrqType::Msix => self.msix_count,
        }
    }

    /// The function as it lies in a reply.
    pub fn to_wire(&self) -> wire::Function {
        let known = self.flags.without(FunctionFlags::GUEST_ADDRESS);
        wire::Function {
            id: self.id.0.into(),
            flags: known.with(FunctionFlags::GUEST_ADDRESS, self.guest_address.is_some()).0.into(),
            guest_address: self.guest_address.map_or(0, PciAddress::to_wire).into(),
            vendor: self.ids.vendor.into(),
            device: self.ids.device.into(),
            subsystem_vendor: self.ids.subsystem_vendor.into(),
            subsystem_device: self.ids.subsystem_device.into(),
            class_revision: self.ids.class_revision.into(),
            intx_count: self.intx_count.into(),
            msi_count: self.msi_count.into(),
            msix_count: self.msix_count.into(),
            reserved: [0; 6],
        }
    }
}

impl From<wire::Function> for Function {
    fn from(raw: wire::Function) -> Self {
        let flags = FunctionFlags(raw.flags.get());
        Self {
            id: FunctionId(raw.id.get()),
            flags,
            guest_address: flags
                .contains(FunctionFlags::GUEST_ADDRESS)
                .then(|| PciAddress::from_wire(raw.guest_address.get())),
            ids: PciIds {
                vendor: raw.vendor.get(),
                device: raw.device.get(),
                subsystem_vendor: raw.subsystem_vendor.get(),
                subsystem_device: raw.subsystem_device.get(),
                class_revision: raw.class_revision.get(),
            },
            intx_count: raw.intx_count.get(),
            msi_count: raw.msi_count.get(),
            msix_count: raw.msix_count.get(),
        }
    }
}
