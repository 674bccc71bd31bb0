// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can go wrong with them.

use std::fmt;
use std::io;
use std::ops::Range;
use virtio_irq_proto::{IrqType, PciAddress};

/// Why an interrupt could not be had.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum InterruptError {
    #[error(
        "cannot {operation} {} of PCI function {function}: {source}", Vectors(*irq_type, vectors)
    )]
    Call {
        function: PciAddress,
        operation: Operation,
        irq_type: IrqType,
        vectors: Range<u32>,
        source: io::Error,
    },
    #[error(
        "PCI function {function} has no {}, it has {present} of them", Vectors(*irq_type, vectors)
    )]
    NoVector { function: PciAddress, irq_type: IrqType, vectors: Range<u32>, present: u32 },
    #[error(
        "the host has {available} {} vectors left for PCI function {function}, {wanted} are needed",
        name(*irq_type)
    )]
    TooFew { function: PciAddress, irq_type: IrqType, wanted: u16, available: u32 },
    #[error(
        "{} of PCI function {function} is in use: a function has one kind of interrupts at a time, and the guest \
         enabled this one itself or has sources of it", name(*irq_type)
    )]
    InUse { function: PciAddress, irq_type: IrqType },
    #[error(
        "the VFIO device is not that of PCI function {function}: its interrupts showed up elsewhere. Whoever handed it \
         in has to hand in the right one"
    )]
    OtherFunction { function: PciAddress },
    #[error("no such interrupts of PCI function {function} are enabled here")]
    NotEnabled { function: PciAddress },
}

/// What was being done, as it continues "cannot".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the display form says it")]
pub enum Operation {
    Information,
    Ask,
    Enable,
    Arm,
    Disarm,
    Disable,
    Raise,
    Unmask,
}

/// How interrupts stopped being ours.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// The type is not enabled any more.
    #[error("the VMM disabled the interrupts")]
    Disabled,
    /// These vectors do not signal our eventfds any more.
    #[error("the VMM took vectors {0:?} over")]
    Replaced(Vec<u16>),
    /// It cannot be said, because the device does not answer.
    #[error(transparent)]
    Unknown(#[from] InterruptError),
}

impl InterruptError {
    /// The error number, where the kernel gave one.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Call { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Information => "get information on",
            Self::Ask => "find out the state of",
            Self::Enable => "enable",
            Self::Arm => "set up",
            Self::Disarm => "clear",
            Self::Disable => "disable",
            Self::Raise => "raise",
            Self::Unmask => "unmask",
        })
    }
}

/// The type's name, as the PCI specification writes it.
fn name(irq_type: IrqType) -> &'static str {
    match irq_type {
        IrqType::Intx => "INTx",
        IrqType::Msi => "MSI",
        IrqType::Msix => "MSI-X",
    }
}

struct Vectors<'a>(IrqType, &'a Range<u32>);

impl fmt::Display for Vectors<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(irq_type, vectors) = self;
        f.write_str(name(*irq_type))?;
        match (irq_type, vectors.end.saturating_sub(vectors.start)) {
            (IrqType::Intx, _) | (_, 0) => Ok(()),
            (_, 1) => write!(f, " vector {}", vectors.start),
            (_, _) => write!(f, " vectors {} to {}", vectors.start, vectors.end - 1),
        }
    }
}
