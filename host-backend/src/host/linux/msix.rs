// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The MSI-X table of a function.

use super::capability::MsixCapability;
use super::config::ConfigFile;
use super::sysfs::Function;
use super::vmm::Vmm;
use crate::device::Pair;
use crate::host::HostError;
use crate::sys;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use virtio_irq_proto::{PciAddress, PciIds, VectorRange};

/// Size of an entry: address low, address high, data, vector control.
const ENTRY_SIZE: u64 = 16;
const ENTRY_WORDS: usize = 4;

/// An MSI-X table, in the memory of its function.
///
/// It is mapped anew for every reading. A mapping does not live long: the kernel takes it away when a driver claims
/// the BAR (`revoke_iomem` in kernel/resource.c), and a BAR that the kernel assigned anew is elsewhere.
#[derive(Debug)]
pub(super) struct MsixTable {
    capability: MsixCapability,
    place: Place,
}

/// Through which file the table's BAR is mapped.
#[derive(Debug)]
enum Place {
    /// sysfs `resourceN`.
    Sysfs(PathBuf),
    /// The VFIO device that the VMM opened.
    Vfio { vmm: Vmm, address: PciAddress, ids: PciIds },
}

impl MsixTable {
    pub(super) fn new(
        capability: MsixCapability,
        function: &Function,
        ids: PciIds,
        vmm: Option<Vmm>,
    ) -> Self {
        let place = match vmm {
            Some(vmm) => Place::Vfio { vmm, address: function.address(), ids },
            None => Place::Sysfs(function.path().join(format!("resource{}", capability.bar()))),
        };
        Self { capability, place }
    }

    pub(super) fn read(&self, config: &ConfigFile, vectors: VectorRange) -> Result<Vec<Pair>, HostError> {
        if !config.msix_is_enabled(self.capability)? {
            return Err(HostError::NotEnabled);
        }
        let mut words = vec![0; vectors.len().saturating_mul(ENTRY_WORDS)];
        let offset = self.capability.table_offset() + u64::from(vectors.first) * ENTRY_SIZE;
        self.read_words(offset, &mut words)?;
        if words.iter().all(|word| *word == u32::MAX) {
            config.require_alive()?;
            return Err(HostError::NotEnabled);
        }
        words.chunks_exact(ENTRY_WORDS).map(pair).collect()
    }

    fn read_words(&self, offset: u64, words: &mut [u32]) -> Result<(), HostError> {
        match &self.place {
            Place::Sysfs(path) => read_sysfs(path, offset, words),
            Place::Vfio { vmm, address, ids } => {
                let device = vmm
                    .device(*address, ids)
                    .map_err(HostError::failed("get the VFIO device of the function from the VMM"))?;
                self.read_vfio(&device, offset, words).map_err(|error| match error.raw_os_error() {
                    Some(libc::EFAULT) => HostError::failed(
                        "read the MSI-X table while the guest has the function's memory off",
                    )(error),
                    _ => HostError::failed("map the MSI-X table through the VMM's VFIO device")(error),
                })
            }
        }
    }

    fn read_vfio(&self, device: &File, offset: u64, words: &mut [u32]) -> io::Result<()> {
        // The BARs are the first regions (`VFIO_PCI_BAR0_REGION_INDEX` is 0).
        let region = sys::region(device.as_fd(), u32::from(self.capability.bar()))?;
        let end = offset.checked_add(size_of_val(words) as u64);
        match (end, region.offset.checked_add(offset)) {
            (Some(end), Some(place)) if end <= region.size => sys::read_mapped(device, place, words),
            _ => Err(io::Error::other("the table is not in its BAR")),
        }
    }
}

fn read_sysfs(path: &Path, offset: u64, words: &mut [u32]) -> Result<(), HostError> {
    let file = File::open(path).map_err(HostError::failed("open the BAR of the MSI-X table"))?;
    sys::read_mapped(&file, offset, words).map_err(|error| match error.raw_os_error() {
        // `pci_mmap_resource` in drivers/pci/pci-sysfs.c.
        Some(libc::EINVAL) => HostError::failed(
            "map the MSI-X table, since this kernel (CONFIG_IO_STRICT_DEVMEM) lets nobody else map what vfio-pci \
             claimed for the VMM; add vfio=pid:N or vfio=pidfile:PATH of the VMM to the --device",
        )(error),
        Some(libc::EPERM) => HostError::failed(
            "map the MSI-X table, since this kernel is locked down; add vfio=pid:N or vfio=pidfile:PATH of the VMM \
             to the --device",
        )(error),
        _ => HostError::failed("map the MSI-X table")(error),
    })
}

fn pair(entry: &[u32]) -> Result<Pair, HostError> {
    let [low, high, data, _control] = entry else {
        return Err(HostError::failed("read a whole table entry")(io::ErrorKind::UnexpectedEof.into()));
    };
    match u64::from(*high) << 32 | u64::from(*low) {
        0 => Err(HostError::NotEnabled),
        address => Ok(Pair { address, data: *data }),
    }
}
