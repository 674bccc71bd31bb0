// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The VMM's side of a loan: the device that a daemon lends as `vfio=cdev:PATH`.

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use virtio_irq_proto::PciAddress;

/// A device that a daemon lent.
#[derive(Debug)]
pub struct Borrowed {
    /// Whose it is.
    pub function: PciAddress,
    /// Not bound to an IOMMUFD yet.
    pub device: OwnedFd,
    /// The loan lasts until all copies of it are closed.
    pub connection: UnixStream,
}

/// Why no device was lent.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum BorrowError {
    #[error("cannot connect to {}: {source}. Is it the vfio=cdev: of a daemon that runs?", path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("no VFIO device is to be had at {}: {source}", path.display())]
    Receive { path: PathBuf, source: io::Error },
    #[error("no VFIO device is to be had at {}: {why}", path.display())]
    Refused { path: PathBuf, why: String },
}

/// The daemon answers at once.
const PATIENCE: Duration = Duration::from_secs(10);

impl Borrowed {
    /// Borrows the device that a daemon lends at `path`.
    ///
    /// # Errors
    /// Nobody listens there, or nothing is lent now; with the daemon's reason.
    pub fn at(path: &Path) -> Result<Self, BorrowError> {
        let receive = |source| BorrowError::Receive { path: path.to_owned(), source };
        let connection = UnixStream::connect(path)
            .map_err(|source| BorrowError::Connect { path: path.to_owned(), source })?;
        connection.set_read_timeout(Some(PATIENCE)).map_err(receive)?;
        let mut bytes = [0; 1024];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let message = rustix::io::retry_on_intr(|| {
            recvmsg(&connection, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)
        });
        let message = message.map_err(|errno| receive(errno.into()))?;
        let device = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let text = String::from_utf8_lossy(bytes.get(..message.bytes).unwrap_or_default());
        let text = text.trim_end();
        match (text.parse(), device) {
            (Ok(function), Some(device)) => Ok(Self { function, device, connection }),
            (_, _) => {
                let why =
                    text.strip_prefix("error: ").unwrap_or("whoever listens there does not lend devices");
                // From another process: no control characters to the terminal.
                let why = why.chars().filter(|c| !c.is_control()).collect();
                Err(BorrowError::Refused { path: path.to_owned(), why })
            }
        }
    }
}
