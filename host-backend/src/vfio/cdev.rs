// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The function's character device, opened here.
//!
//! Such a device can be open once (`vfio_df_open` in drivers/vfio/vfio_main.c), and does nothing until it is bound to an
//! IOMMUFD. So it is opened before the VMM starts, and the VMM gets the same open file, as QEMU's
//! `-device vfio-pci,fd=N,iommufd=ID`, and binds it.

use super::source::{Claim, ClaimError, NotYet, SupplyError};
use super::{Host, VfioDevice};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use virtio_irq_proto::PciAddress;

#[derive(Debug)]
pub(super) struct CharacterDevice(File);

impl CharacterDevice {
    pub(super) fn open(host: &Host, function: PciAddress) -> Result<Self, SupplyError> {
        let name = fs::read_dir(host.function(function).join("vfio-dev"))
            .ok()
            .and_then(|directory| directory.flatten().map(|entry| entry.file_name()).next())
            .ok_or(SupplyError::NotVfio { function })?;
        let path: PathBuf = host.path("dev/vfio/devices").join(name);
        match File::options().read(true).write(true).open(&path) {
            Ok(file) => Ok(Self(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(SupplyError::NoCharacterDevices { path })
            }
            Err(source) => Err(SupplyError::CharacterDevice { path, source }),
        }
    }

    pub(super) fn claim(&self) -> Result<Claim, ClaimError> {
        let copy = self.0.try_clone().map_err(ClaimError::failed("duplicate the VFIO device"))?;
        match VfioDevice::new(copy.into()) {
            Ok(device) => Ok(Claim { device, owner: None }),
            // `vfio_device_fops_unl_ioctl`, as long as it is not bound.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                Err(ClaimError::NotYet(NotYet::NotBound))
            }
            Err(error) => Err(ClaimError::failed("use the VFIO device")(error)),
        }
    }
}

impl AsFd for CharacterDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FUNCTION: PciAddress = PciAddress { segment: 0, bus: 2, devfn: 0 };

    #[test]
    fn a_kernel_without_character_devices_is_named_as_the_cause() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::at(root.path());
        let error = CharacterDevice::open(&host, FUNCTION).unwrap_err();
        assert!(matches!(error, SupplyError::NotVfio { function: FUNCTION }), "{error}");
        fs::create_dir_all(root.path().join("sys/bus/pci/devices/0000:02:00.0/vfio-dev/vfio7")).unwrap();
        let error = CharacterDevice::open(&host, FUNCTION).unwrap_err();
        assert!(
            matches!(&error, SupplyError::NoCharacterDevices { path } if path.ends_with("dev/vfio/devices/vfio7"))
        );
        assert!(error.to_string().contains("CONFIG_VFIO_DEVICE_CDEV"), "{error}");
    }

    #[test]
    fn the_node_that_sysfs_names_is_opened() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::at(root.path());
        fs::create_dir_all(root.path().join("sys/bus/pci/devices/0000:02:00.0/vfio-dev/vfio7")).unwrap();
        fs::create_dir_all(root.path().join("dev/vfio/devices")).unwrap();
        fs::write(root.path().join("dev/vfio/devices/vfio7"), "").unwrap();
        let device = CharacterDevice::open(&host, FUNCTION).unwrap();
        // It is no device, and that is said instead of waited for.
        assert!(matches!(device.claim(), Err(ClaimError::Failed { .. })));
    }
}
