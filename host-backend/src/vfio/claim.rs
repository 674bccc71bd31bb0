// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a source of VFIO devices hands out, and why it does not.

use super::VfioDevice;
use crate::serve::SocketError;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use virtio_irq_proto::PciAddress;

/// A function's device, while a VMM has it.
#[derive(Debug)]
pub struct Claim<D = VfioDevice> {
    /// The device.
    pub device: D,
    /// Becomes readable when the VMM is gone, so that the device is to be let go of.
    pub owner: Option<OwnedFd>,
}

/// Why there will be no device from a source.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum SupplyError {
    #[error("there is no process {pid}: give the VMM's process id, or pidfile: if the VMM starts later")]
    NoProcess { pid: u32 },
    #[error("cannot watch process {pid}: {source}")]
    Process { pid: u32, source: io::Error },
    #[error(transparent)]
    Socket(#[from] LoanError),
    #[error(
        "PCI function {function} has no entry in sysfs's vfio-dev: bind it to vfio-pci, and use Linux 6.1 or later"
    )]
    NotVfio { function: PciAddress },
    #[error(
        "this kernel has no character devices for VFIO (CONFIG_VFIO_DEVICE_CDEV and CONFIG_IOMMUFD; Debian's have \
         neither): there is no {}. Use pidfile: or socket:", path.display()
    )]
    NoCharacterDevices { path: PathBuf },
    #[error("cannot open {}: {source}", path.display())]
    CharacterDevice { path: PathBuf, source: io::Error },
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum LoanError {
    #[error("there is no socket for the VFIO device: {0}")]
    Socket(#[from] SocketError),
    #[error("cannot wait for the VMM at {}: {source}", path.display())]
    Start { path: PathBuf, source: io::Error },
}

/// Why there is no device now.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum ClaimError {
    #[error("the VFIO device is not there yet: {0}")]
    NotYet(NotYet),
    #[error("{} is no process id: {content:?}", path.display())]
    PidFile { path: PathBuf, content: String },
    #[error(
        "may not {operation} process {pid} ({source}): run the daemon as root, or with CAP_SYS_PTRACE and \
         CAP_DAC_READ_SEARCH. Being the same user is enough only where the sysctl kernel.yama.ptrace_scope is 0 and no other security module forbids it"
    )]
    Denied { pid: u32, operation: &'static str, source: io::Error },
    #[error("cannot {operation}: {source}")]
    Failed { operation: &'static str, source: io::Error },
    /// Any of these, as the opener says it.
    #[error("{text}")]
    Opener { text: String },
}

/// What has to happen first. Asking again later is all there is to do.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum NotYet {
    #[error("{} is not there or is empty, the VMM did not start yet", path.display())]
    PidFile { path: PathBuf },
    #[error("process {pid} does not run")]
    NotRunning { pid: u32 },
    #[error("process {pid} does not have PCI function {function} open")]
    NotOpen { pid: u32, function: PciAddress },
    #[error("the VMM's process is not known yet")]
    NotTold,
    #[error("nobody sent it to {}", path.display())]
    NotSent { path: PathBuf },
    #[error("nobody borrowed it at {}", path.display())]
    NotBorrowed { path: PathBuf },
    #[error("the VMM did not bind it to an IOMMUFD")]
    NotBound,
    /// Any of these, as the opener says it.
    #[error("{text}")]
    Opener { text: String },
}

impl ClaimError {
    /// Whether it may be different later without anybody's doing.
    pub fn is_not_yet(&self) -> bool {
        matches!(self, Self::NotYet(_))
    }

    pub(crate) fn failed(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Failed { operation, source }
    }
}
