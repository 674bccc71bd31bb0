// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Functions of a Linux host, by sysfs.
//!
//! The messages are not taken from VFIO: it shows a guest's view of the MSI and MSI-X registers, which hides the
//! real ones. sysfs shows the registers as they are: the configuration space in `config`, the memory that holds the
//! MSI-X table in `resourceN`.

mod capability;
mod config;
#[cfg(test)]
mod failing_kernel;
mod interrupts;
mod isolation;
mod its;
mod msix;
mod survey;
mod sysfs;
#[cfg(test)]
mod tests;

pub(crate) use isolation::Evidence;
pub(crate) use survey::{MsiState, MsixState, Registry, Survey};
pub use sysfs::{Platform, Sysfs};

use super::{Description, HostError, HostFunction, Interrupts};
use crate::device::Pair;
use crate::vfio::{DeviceSupply, Host};
use capability::{Capabilities, MsiCapability};
use config::ConfigFile;
use interrupts::VfioInterrupts;
use msix::MsixTable;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use virtio_irq_proto::{IrqType, PciAddress, VectorRange};

/// A function of this host that is bound to a VFIO driver.
#[derive(Debug)]
pub struct LinuxFunction {
    name: String,
    description: Description,
    registers: Arc<Registers>,
    /// There is none unless the operator said where the VFIO device is had.
    interrupts: Option<VfioInterrupts>,
}

/// The registers of a function that hold its messages.
#[derive(Debug)]
struct Registers {
    config: ConfigFile,
    msi: Option<MsiCapability>,
    msix: Option<MsixTable>,
    /// Lists the interrupts that the host kernel allocated.
    msi_irqs: PathBuf,
}

/// Why a function cannot be used. Every message names the function and what to do.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum OpenError {
    #[error("there is no PCI function {address} on this host: `lspci -D` lists those there are")]
    NotFound { address: PciAddress },
    #[error(
        "PCI function {address} is bound to {}, not to vfio-pci: bind it with `driverctl set-override {address} \
         vfio-pci`, or write vfio-pci to {path}/driver_override, {address} to {path}/driver/unbind and {address} \
         to /sys/bus/pci/drivers_probe", driver.as_deref().unwrap_or("no driver")
    )]
    NotVfio { address: PciAddress, driver: Option<String>, path: String },
    #[error(
        "the configuration space of PCI function {address} cannot be read whole, only its first {readable} bytes: \
         the daemon needs CAP_SYS_ADMIN when it starts, so run it as root"
    )]
    Unprivileged { address: PciAddress, readable: usize },
    #[error(
        "PCI function {address} is dead, its configuration space reads all ones: reset it, or remove it and rescan \
         the bus"
    )]
    Dead { address: PciAddress },
    #[error("cannot read {} of PCI function {address}: {source}", path.display())]
    Read { address: PciAddress, path: PathBuf, source: io::Error },
    #[error("{} of PCI function {address} is not what sysfs writes: {content:?}", path.display())]
    Malformed { address: PciAddress, path: PathBuf, content: String },
}

impl LinuxFunction {
    /// Opens a function and finds out what it is. `vfio` hands its VFIO device out, if the operator said where from: an
    /// MSI-X table is read through that device, which works where sysfs does not let it be mapped.
    ///
    /// The configuration space stays open: reading it beyond the first 64 bytes needs CAP_SYS_ADMIN of whoever
    /// opened it (`pci_read_config` in drivers/pci/pci-sysfs.c), so that the daemon may drop privileges later.
    ///
    /// # Errors
    /// The function is not there, not bound to a VFIO driver, or not readable.
    pub fn open(
        sysfs: &Sysfs,
        address: PciAddress,
        vfio: Option<Arc<DeviceSupply>>,
    ) -> Result<Self, OpenError> {
        let function = sysfs.function(address)?;
        function.require_vfio_driver()?;
        let config = ConfigFile::open(sysfs, &function)?;
        let snapshot = config.snapshot(&function)?;
        let capabilities = Capabilities::find(&snapshot);
        let description = Description {
            ids: function.ids()?,
            intx_count: capability::interrupt_pins(&snapshot),
            msi_count: capabilities.msi.map_or(0, |msi| msi.vectors()),
            msix_count: capabilities.msix.map_or(0, |msix| msix.entries()),
            isolation: isolation::of(sysfs, &function).isolation,
        };
        let registers = Arc::new(Registers::new(config, capabilities, &function, vfio.clone()));
        let interrupts =
            vfio.map(|supply| VfioInterrupts::new(supply, Host::here(), address, registers.clone()));
        Ok(Self { name: address.to_string(), description, registers, interrupts })
    }
}

impl Registers {
    fn new(
        config: ConfigFile,
        capabilities: Capabilities,
        function: &sysfs::Function,
        vfio: Option<Arc<DeviceSupply>>,
    ) -> Self {
        Self {
            config,
            msi: capabilities.msi,
            msix: capabilities.msix.map(|capability| MsixTable::new(capability, function, vfio)),
            msi_irqs: function.path().join("msi_irqs"),
        }
    }

    fn read_messages(&self, vectors: VectorRange) -> Result<Vec<Pair>, HostError> {
        match (vectors.irq_type, self.msi, &self.msix) {
            (IrqType::Msi, Some(msi), _) => self.read_msi(msi, vectors),
            (IrqType::Msix, _, Some(msix)) => msix.read(&self.config, vectors),
            _ => Err(HostError::NotEnabled),
        }
    }

    fn read_msi(&self, msi: MsiCapability, vectors: VectorRange) -> Result<Vec<Pair>, HostError> {
        let block = self.config.read_msi(msi)?;
        if vectors.end() > u32::from(block.enabled) || vectors.end() > self.allocated(vectors)? {
            return Err(HostError::NotEnabled);
        }
        Ok((u32::from(vectors.first)..vectors.end())
            .map(|vector| Pair { address: block.address, data: block.data | vector })
            .collect())
    }

    /// Number of vectors that the kernel allocated, which can be less than the power of two in the capability.
    /// One vector needs no look: it is there when MSI is enabled.
    fn allocated(&self, vectors: VectorRange) -> Result<u32, HostError> {
        if vectors.end() == 1 {
            return Ok(1);
        }
        match count_entries(&self.msi_irqs) {
            Ok(count) => Ok(count),
            // The directory comes and goes with the vectors.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(HostError::failed("list the interrupts in msi_irqs")(error)),
        }
    }
}

impl HostFunction for LinuxFunction {
    fn name(&self) -> &str {
        &self.name
    }

    fn describe(&self) -> Description {
        self.description
    }

    fn read_messages(&self, vectors: VectorRange) -> Result<Vec<Pair>, HostError> {
        self.registers.read_messages(vectors)
    }

    fn interrupts(&self) -> Option<&dyn Interrupts> {
        self.interrupts.as_ref().map(|interrupts| interrupts as &dyn Interrupts)
    }
}

fn count_entries(directory: &Path) -> io::Result<u32> {
    let mut count = 0u32;
    for entry in std::fs::read_dir(directory)? {
        entry?;
        count = count.saturating_add(1);
    }
    Ok(count)
}
