// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whose interrupt handlers a function has.
//!
//! VFIO tells nobody that the VMM put eventfds of its own in place of ours. But each time it sets one up, it registers
//! an interrupt handler anew (`vfio_msi_set_vector_signal` in drivers/vfio/pci/vfio_pci_intrs.c), under a name with
//! the type, the vector and the function, and the kernel shows a directory of that name for as long as the handler is
//! there (`register_handler_proc` in kernel/irq/proc.c). While a descriptor keeps the directory's inode, a later one has
//! another number. So a handler is the one that we saw after setting up the vector exactly if its directory has the
//! same inode number.

use super::Host;
use rustix::fs::{Mode, OFlags, Stat, fstat, open, stat};
use rustix::io::Errno;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use virtio_irq_proto::{IrqType, PciAddress};

/// The handlers of one function.
#[derive(Debug)]
pub(super) struct Handlers {
    /// `/proc/irq`.
    interrupts: PathBuf,
    /// The function in sysfs.
    function: PathBuf,
    address: PciAddress,
    /// Interrupt number less vector of the handler that was found last: the kernel numbers a block in a row if it can.
    distance: Cell<Option<i64>>,
}

/// A handler that was there.
#[derive(Debug)]
pub(super) struct Handler {
    path: PathBuf,
    directory: OwnedFd,
}

impl Handlers {
    pub(super) fn of(host: &Host, function: PciAddress) -> Self {
        Self {
            interrupts: host.path("proc/irq"),
            function: host.function(function),
            address: function,
            distance: Cell::new(None),
        }
    }

    /// The vector's handler, if it has one. A host that hides `/proc/irq` shows none.
    pub(super) fn find(&self, irq_type: IrqType, vector: u16) -> Option<Handler> {
        let name = match irq_type {
            IrqType::Intx => format!("vfio-intx({})", self.address),
            _ => format!("{}{vector}{}", prefix(irq_type), self.suffix()),
        };
        let at = |number: i64| Handler::open(self.interrupts.join(number.to_string()).join(&name));
        let likely = self.distance.get().and_then(|distance| at(distance + i64::from(vector)));
        if likely.is_some() {
            return likely;
        }
        self.numbers(irq_type).into_iter().find_map(|number| {
            let found = at(number)?;
            self.distance.set(Some(number - i64::from(vector)));
            Some(found)
        })
    }

    /// The vectors of MSI or MSI-X that have handlers.
    pub(super) fn present(&self, irq_type: IrqType) -> BTreeSet<u16> {
        let mut vectors = BTreeSet::new();
        for number in self.numbers(irq_type) {
            let Ok(directory) = fs::read_dir(self.interrupts.join(number.to_string())) else { continue };
            vectors.extend(directory.flatten().filter_map(|entry| {
                let name = entry.file_name();
                let rest = name.to_str()?.strip_prefix(prefix(irq_type))?;
                rest.strip_suffix(&self.suffix())?.parse::<u16>().ok()
            }));
        }
        vectors
    }

    /// Whether the host shows the handlers of the function's interrupts, be there any or none.
    pub(super) fn are_shown(&self, irq_type: IrqType) -> bool {
        let directory = |number: i64| self.interrupts.join(number.to_string());
        self.numbers(irq_type).into_iter().any(|number| directory(number).is_dir())
    }

    fn suffix(&self) -> String {
        format!("]({})", self.address)
    }

    /// Interrupt numbers of the function: of its pin, or of what is allocated for the other types.
    pub(super) fn numbers(&self, irq_type: IrqType) -> Vec<i64> {
        if irq_type == IrqType::Intx {
            let number = fs::read_to_string(self.function.join("irq")).ok();
            return number.and_then(|text| text.trim().parse().ok()).into_iter().collect();
        }
        let Ok(directory) = fs::read_dir(self.function.join("msi_irqs")) else { return Vec::new() };
        directory.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }
}

fn prefix(irq_type: IrqType) -> &'static str {
    match irq_type {
        IrqType::Intx => "vfio-intx[",
        IrqType::Msi => "vfio-msi[",
        IrqType::Msix => "vfio-msix[",
    }
}

impl Handler {
    fn open(path: PathBuf) -> Option<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        open(&path, flags, Mode::empty()).ok().map(|directory| Self { path, directory })
    }

    /// Whether it is still there.
    pub(super) fn is_there(&self) -> Result<bool, Errno> {
        let identity = |stat: Stat| (stat.st_dev, stat.st_ino);
        match stat(&self.path) {
            Ok(now) => Ok(identity(now) == identity(fstat(&self.directory)?)),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno),
        }
    }
}
