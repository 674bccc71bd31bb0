// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The function's character device, opened here and lent to the VMM.
//!
//! Such a device does nothing until it is bound to an IOMMUFD, and of all that have it open one can bind it, once
//! (`vfio_df_ioctl_bind_iommufd` in drivers/vfio/device_cdev.c). The VMM does that, as QEMU's
//! `-device vfio-pci,fd=N,iommufd=ID`; so it is opened afresh for each VMM.

use super::Host;
use super::claim::{Claim, ClaimError, NotYet, SupplyError};
use super::loan::{Counter, Exchange, Refusal, Stop, answer};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::fs::{self, File};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use tracing::debug;
use virtio_irq_proto::PciAddress;

/// A Unix stream socket at which the VMM's side borrows the character device of one function, its user only (mode 0600).
///
/// Whoever connects gets one message: the function's address and a line break, together with the device as the one
/// descriptor (SCM_RIGHTS); or `error: ` and why not. As with a [`Mailbox`](super::Mailbox) the connection is the loan: it
/// ends when the other end is closed, or anything is written to it.
#[derive(Debug)]
pub(super) struct Lender(Counter);

#[derive(Debug)]
struct HandOut {
    host: Host,
    function: PciAddress,
}

impl Lender {
    pub(super) fn open(path: &Path, host: &Host, function: PciAddress) -> Result<Self, SupplyError> {
        let exchange = HandOut { host: host.clone(), function };
        // That there are none is for the operator to know now, not for the VMM later.
        drop(exchange.open()?);
        Ok(Self(Counter::open(path, Box::new(exchange))?))
    }

    pub(super) fn claim(&self) -> Result<Claim, ClaimError> {
        self.0.claim()
    }
}

impl HandOut {
    fn open(&self) -> Result<File, SupplyError> {
        let Self { host, function } = self;
        let name = fs::read_dir(host.function(*function).join("vfio-dev"))
            .ok()
            .and_then(|directory| directory.flatten().map(|entry| entry.file_name()).next())
            .ok_or(SupplyError::NotVfio { function: *function })?;
        let path: PathBuf = host.path("dev/vfio/devices").join(name);
        match File::options().read(true).write(true).open(&path) {
            Ok(file) => Ok(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(SupplyError::NoCharacterDevices { path })
            }
            Err(source) => Err(SupplyError::CharacterDevice { path, source }),
        }
    }
}

impl Exchange for HandOut {
    fn device(&self, _connection: BorrowedFd<'_>, _stop: &Stop<'_>, lent: bool) -> Result<OwnedFd, Refusal> {
        if lent {
            return Err(Refusal::Because("another VMM has it, and did not end yet".to_owned()));
        }
        self.open().map(OwnedFd::from).map_err(|error| Refusal::Because(error.to_string()))
    }

    fn confirm(&self, connection: BorrowedFd<'_>, device: BorrowedFd<'_>) {
        let text = format!("{}\n", self.function);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [device];
        if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return answer(connection, "error: a descriptor cannot be sent\n");
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        if let Err(errno) = sendmsg(connection, &[IoSlice::new(text.as_bytes())], &mut control, flags) {
            debug!("cannot send a VFIO device: {errno}");
            answer(connection, &format!("error: the device cannot be sent: {errno}\n"));
        }
    }

    fn function(&self) -> PciAddress {
        self.function
    }

    fn news(&self) -> [&'static str; 2] {
        ["lent", "given back"]
    }

    fn awaited(&self, path: &Path) -> NotYet {
        NotYet::NotBorrowed { path: path.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfio::Borrowed;
    use std::os::unix::fs::MetadataExt;
    use tempfile::TempDir;

    const FUNCTION: PciAddress = PciAddress { segment: 0, bus: 2, devfn: 0 };

    fn lender(root: &TempDir) -> Result<Lender, SupplyError> {
        Lender::open(&root.path().join("socket"), &Host::at(root.path()), FUNCTION)
    }

    /// A host on which the function has the device with this number.
    fn host_with(number: u32) -> TempDir {
        let root = tempfile::tempdir().unwrap();
        let sysfs = root.path().join("sys/bus/pci/devices/0000:02:00.0/vfio-dev");
        fs::create_dir_all(sysfs.join(format!("vfio{number}"))).unwrap();
        fs::create_dir_all(root.path().join("dev/vfio/devices")).unwrap();
        fs::write(root.path().join(format!("dev/vfio/devices/vfio{number}")), "").unwrap();
        root
    }

    #[test]
    fn a_kernel_without_character_devices_is_named_as_the_cause() {
        let root = tempfile::tempdir().unwrap();
        let error = lender(&root).unwrap_err();
        assert!(matches!(error, SupplyError::NotVfio { function: FUNCTION }), "{error}");
        let root = host_with(7);
        fs::remove_dir_all(root.path().join("dev")).unwrap();
        let error = lender(&root).unwrap_err();
        assert!(
            matches!(&error, SupplyError::NoCharacterDevices { path } if path.ends_with("dev/vfio/devices/vfio7"))
        );
        assert!(error.to_string().contains("CONFIG_VFIO_DEVICE_CDEV"), "{error}");
        assert!(!root.path().join("socket").exists());
    }

    #[test]
    fn a_device_is_lent_to_one_vmm_at_a_time_and_opened_for_each() {
        let root = host_with(7);
        let lender = lender(&root).unwrap();
        let path = root.path().join("socket");
        let node = |number: u32| {
            fs::metadata(root.path().join(format!("dev/vfio/devices/vfio{number}"))).unwrap().ino()
        };
        let inode = |device: OwnedFd| File::from(device).metadata().unwrap().ino();
        assert_eq!(
            lender.claim().unwrap_err().to_string(),
            format!("the VFIO device is not there yet: nobody borrowed it at {}", path.display())
        );
        let first = Borrowed::at(&path).unwrap();
        assert_eq!((first.function, inode(first.device)), (FUNCTION, node(7)));
        // It is no device, and that is said instead of waited for.
        assert!(matches!(lender.claim(), Err(ClaimError::Failed { .. })));
        let error = Borrowed::at(&path).unwrap_err().to_string();
        assert!(error.ends_with("another VMM has it, and did not end yet"), "{error}");
        drop(first.connection);
        // The function was taken out of the host and came back meanwhile.
        let sysfs = root.path().join("sys/bus/pci/devices/0000:02:00.0/vfio-dev");
        fs::rename(sysfs.join("vfio7"), sysfs.join("vfio9")).unwrap();
        fs::write(root.path().join("dev/vfio/devices/vfio9"), "").unwrap();
        let second = loop {
            match Borrowed::at(&path) {
                Ok(second) => break second,
                Err(error) => assert!(error.to_string().ends_with("did not end yet"), "{error}"),
            }
        };
        assert_eq!(inode(second.device), node(9));
        drop(second.connection);
        fs::remove_file(root.path().join("dev/vfio/devices/vfio9")).unwrap();
        let error = loop {
            let error = Borrowed::at(&path).unwrap_err().to_string();
            if !error.ends_with("did not end yet") {
                break error;
            }
        };
        assert!(error.contains("there is no ") && error.contains("vfio9"), "{error}");
    }
}
