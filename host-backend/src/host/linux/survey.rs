// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What sysfs tells about any function, whatever driver it has and however little the reader may see.

use super::capability::{self, Capabilities, MsiCapability, MsixCapability};
use super::config::ConfigFile;
use super::isolation::{self, Evidence, Finding};
use super::sysfs::Function;
use super::{OpenError, Registers, Sysfs};
use crate::device::Pair;
use crate::host::HostError;
use crate::vfio::DeviceSupply;
use std::sync::Arc;
use virtio_irq_proto::{IrqType, PciAddress, PciIds, VectorRange};

/// Messages of at most this many MSI-X vectors are read: for a person, who has seen enough by then.
const MOST_MESSAGES: u16 = 64;

/// A function as it is found.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) ids: PciIds,
    pub(crate) driver: Option<String>,
    pub(crate) isolation: Finding,
    /// What its configuration space says, or why that is not known.
    pub(crate) registry: Result<Registry, OpenError>,
}

/// What a configuration space says of interrupts.
#[derive(Debug)]
pub(crate) struct Registry {
    pub(crate) has_pin: bool,
    pub(crate) msi: Option<MsiState>,
    pub(crate) msix: Option<MsixState>,
}

/// An MSI capability and what is enabled of it.
#[derive(Debug)]
pub(crate) struct MsiState {
    pub(crate) vectors: u16,
    pub(crate) is_64_bit: bool,
    /// One message for each vector that is enabled, from vector 0 on.
    pub(crate) messages: Result<Vec<Pair>, HostError>,
}

/// An MSI-X capability and what is enabled of it.
#[derive(Debug)]
pub(crate) struct MsixState {
    pub(crate) entries: u16,
    pub(crate) bar: u8,
    pub(crate) enabled: bool,
    /// The messages that are there, by vector, up to [`MOST_MESSAGES`]. `Err` where this process cannot see the table.
    pub(crate) messages: Result<Vec<(u16, Pair)>, HostError>,
}

impl Survey {
    /// Looks at a function. `vfio` helps to read an MSI-X table that the kernel lets nobody map but the function's VMM.
    ///
    /// # Errors
    /// The function is not there, or left meanwhile.
    pub(crate) fn of(
        sysfs: &Sysfs,
        address: PciAddress,
        vfio: Option<Arc<DeviceSupply>>,
    ) -> Result<Self, OpenError> {
        let function = sysfs.function(address)?;
        let survey = Self {
            ids: function.ids()?,
            driver: function.link_name("driver")?,
            isolation: isolation::of(sysfs, &function),
            registry: Registry::read(sysfs, &function, vfio),
        };
        // Whatever was found is worth nothing if the function left during it.
        sysfs.function(address)?;
        Ok(survey)
    }

    /// What of the machine isolates interrupts, if anything does.
    pub(crate) fn isolating(sysfs: &Sysfs) -> Option<Evidence> {
        isolation::of_machine(sysfs)
    }
}

impl Registry {
    fn read(sysfs: &Sysfs, function: &Function, vfio: Option<Arc<DeviceSupply>>) -> Result<Self, OpenError> {
        let config = ConfigFile::open(sysfs, function)?;
        let snapshot = config.snapshot(function)?;
        let capabilities = Capabilities::find(&snapshot);
        let registers = Registers::new(config, capabilities, function, vfio);
        Ok(Self {
            has_pin: capability::interrupt_pins(&snapshot) > 0,
            msi: capabilities.msi.map(|msi| registers.msi_state(msi)),
            msix: capabilities.msix.map(|msix| registers.msix_state(msix)),
        })
    }
}

impl Registers {
    fn msi_state(&self, msi: MsiCapability) -> MsiState {
        let messages = || {
            let enabled = self.config.read_msi(msi)?.enabled;
            let probe = VectorRange::of_messages(IrqType::Msi, 0, enabled);
            let Ok(all) = probe else { return Ok(Vec::new()) };
            let count = u16::try_from(self.allocated(all)?).unwrap_or(enabled).min(enabled);
            match VectorRange::of_messages(IrqType::Msi, 0, count) {
                Ok(range) => self.read_messages(range),
                Err(_) => Ok(Vec::new()),
            }
        };
        let messages = match messages() {
            // Disabled between the two looks.
            Err(HostError::NotEnabled) => Ok(Vec::new()),
            messages => messages,
        };
        MsiState { vectors: msi.vectors(), is_64_bit: msi.is_64_bit(), messages }
    }

    fn msix_state(&self, msix: MsixCapability) -> MsixState {
        let entries = msix.entries();
        let enabled = self.config.msix_is_enabled(msix).unwrap_or(false);
        let last = if enabled { entries.min(MOST_MESSAGES) } else { 0 };
        let mut messages = Ok(Vec::new());
        for vector in 0..last {
            let Ok(range) = VectorRange::of_messages(IrqType::Msix, vector, 1) else { break };
            match (self.read_messages(range), &mut messages) {
                (Ok(pairs), Ok(found)) => found.extend(pairs.into_iter().map(|pair| (vector, pair))),
                (Err(HostError::NotEnabled), _) | (Ok(_), Err(_)) => {}
                (Err(error), _) => {
                    messages = Err(error);
                    break;
                }
            }
        }
        MsixState { entries, bar: msix.bar(), enabled, messages }
    }
}
