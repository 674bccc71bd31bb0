// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupts of a function through its VFIO device, which the VMM owns.
//!
//! The VMM opens the device, maps its memory and resets it. This module only ever touches its interrupts, and of
//! those only what it enabled itself. [`DeviceSource`] says how the VMM's descriptor is had, [`Interrupts`] is what is
//! done with it:
//!
//! ```no_run
//! use std::os::fd::AsFd;
//! use vhost_device_irq::vfio::{DeviceSource, Host, Interrupts};
//! use virtio_irq_proto::{IrqType, PciAddress};
//!
//! let function = PciAddress { segment: 0, bus: 2, devfn: 0 };
//! let source: DeviceSource = "pidfile:/run/vm.pid".parse()?;
//! let supply = source.open(&Host::here(), function)?;
//! let claim = supply.claim()?; // ClaimError::NotYet until the VMM runs and opened the function
//! let mut interrupts = Interrupts::new(claim.device, &Host::here(), function);
//! let count = interrupts.enable(IrqType::Msi, 1, 32)?;
//! let event = std::fs::File::open("/dev/null")?; // an eventfd, in earnest
//! interrupts.arm(0, &[event.as_fd()])?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A device that is held keeps its group busy: neither another VMM can open it, nor can its driver be unbound. So let
//! go of both the [`Claim`] and the [`Interrupts`] as soon as [`Claim::owner`] becomes readable.

mod borrow;
mod cdev;
mod claim;
mod device;
mod handlers;
mod identity;
mod interrupts;
mod loan;
pub(crate) mod process;
mod socket;
mod source;

pub use borrow::{BorrowError, Borrowed};
pub use claim::{Claim, ClaimError, LoanError, NotYet, SupplyError};
pub use device::{Data, Ioctl, IrqInfo, IrqSet, Region, SetAction, VfioDevice};
pub use interrupts::{InterruptError, Interrupts, Lost, Operation};
pub use process::{FoundProcess, ToldProcess};
pub use socket::Mailbox;
pub use source::{DeviceSource, DeviceSupply, SourceError};

#[cfg(test)]
pub(crate) use interrupts::kernel;

use crate::opener::Opener;
use std::path::{Path, PathBuf};
use virtio_irq_proto::PciAddress;

/// Where the kernel's file systems are, and who may look into other processes. Tests put others in their places.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
    opener: Option<Opener>,
}

impl Host {
    /// This host's `/sys`, `/proc` and `/dev`.
    pub fn here() -> Self {
        Self::at("/")
    }

    /// Those under `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), opener: None }
    }

    /// The same, with the VMM's descriptors taken by `opener` instead of this process.
    #[must_use]
    pub fn through(self, opener: Option<Opener>) -> Self {
        Self { opener, ..self }
    }

    fn opener(&self) -> Option<&Opener> {
        self.opener.as_ref()
    }

    pub(crate) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    fn function(&self, address: PciAddress) -> PathBuf {
        self.path("sys/bus/pci/devices").join(address.to_string())
    }
}
