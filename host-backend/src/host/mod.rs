// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host side: what the platform knows about the functions that are assigned to the guest.

pub mod linux;
pub mod sim;

use crate::device::{Failure, Pair};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::{fmt, io};
use virtio_irq_proto::{Function, FunctionFlags, FunctionId, IrqType, PciIds, VectorRange};

/// One PCI function of the host.
pub trait HostFunction: fmt::Debug + Send + Sync {
    /// How the operator named it, for logs.
    fn name(&self) -> &str;

    /// What was found out about it when it was opened.
    fn describe(&self) -> Description;

    /// The pairs that the host programmed for these vectors, as they are now: one per vector, in their order.
    /// The function has all of the vectors.
    ///
    /// # Errors
    /// [`HostError::NotEnabled`] if any of the vectors is not enabled.
    fn read_messages(&self, vectors: VectorRange) -> Result<Vec<Pair>, HostError>;

    /// Control over its interrupts, where the host has it.
    fn interrupts(&self) -> Option<&dyn Interrupts>;
}

/// Control over the interrupts of one function: what event delivery needs.
///
/// One type of interrupts is enabled at a time. Nothing here touches interrupts that somebody else enabled.
pub trait Interrupts: fmt::Debug + Send + Sync {
    /// Enables a type, without delivering any interrupt yet, so that vectors below `end` can be attached if the host
    /// has that many. Returns the number of leading vectors that can be. Where the type is already enabled by an
    /// earlier call it stays as it is, unless the host can add vectors without moving those there are.
    ///
    /// # Errors
    /// [`HostError::Busy`] if the guest's own capability or the VMM has interrupts of the function enabled;
    /// [`HostError::NotReady`] if the VMM did not hand over the function yet.
    fn enable(&self, irq_type: IrqType, end: u16) -> Result<u16, HostError>;

    /// Signals each eventfd from now on when its vector fires, and reads the messages: one pair per vector, in their
    /// order; for INTx, which has none, zeros.
    ///
    /// # Errors
    /// None of the vectors is attached then.
    fn attach(&self, irq_type: IrqType, triggers: &[(u16, BorrowedFd<'_>)]) -> Result<Vec<Pair>, HostError>;

    /// Ends what [`Interrupts::attach`] began, and disables the type if `last`.
    ///
    /// # Errors
    /// What the host did not take back; the vectors are given up all the same.
    fn detach(&self, irq_type: IrqType, vectors: &[u16], last: bool) -> Result<(), HostError>;

    /// Unmasks the pin, which VFIO masked when it fired.
    ///
    /// # Errors
    /// The host failed.
    fn unmask_pin(&self) -> Result<(), HostError>;

    /// Whether what was enabled here is still enabled and signals the eventfds that were attached, as far as one look can
    /// tell: the VMM shares the function and can take its interrupts away without a word, or end.
    fn still_ours(&self) -> bool;

    /// Becomes readable when the VMM that the enabled interrupts are of ends, so that everything is to be detached at
    /// once: the function would be kept from the next VMM. There is none while nothing is enabled.
    ///
    /// # Errors
    /// The process is out of descriptors.
    fn owner(&self) -> io::Result<Option<OwnedFd>>;
}

/// Whether the VMM of an [`Interrupts::owner`] is gone.
fn has_ended(owner: &OwnedFd) -> bool {
    let now = Timespec::default();
    // What cannot be asked has not ended.
    poll(&mut [PollFd::new(owner, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
}

/// What a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    /// Its model.
    pub ids: PciIds,
    /// Number of INTx pins, 0 or 1.
    pub intx_count: u16,
    /// Number of vectors of its MSI capability, 0 to 32.
    pub msi_count: u16,
    /// Number of entries of its MSI-X table, 0 to 2048.
    pub msix_count: u16,
    /// Whether the platform lets the function raise no interrupts but its own, and keeps messages in place while
    /// their vectors are enabled.
    pub isolation: Isolation,
}

impl Description {
    /// The function as a guest is told of it, with this id and these flags, its guest address being unknown.
    pub fn function(&self, id: FunctionId, flags: FunctionFlags) -> Function {
        Function {
            id,
            flags,
            guest_address: None,
            ids: self.ids,
            intx_count: self.intx_count,
            msi_count: self.msi_count,
            msix_count: self.msix_count,
        }
    }
}

/// Whether the platform checks the interrupt messages of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// It does: interrupt remapping on x86, an ITS on arm64.
    Isolated,
    /// It does not, for this reason. A guest that learns one message of the function can have the function write
    /// any other.
    Missing(&'static str),
}

/// Why the host side did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// At least one of the vectors is not enabled.
    #[error("a vector is not enabled")]
    NotEnabled,
    /// The function left the host.
    #[error("the function is gone")]
    Gone,
    /// The function's interrupts are in use by the guest's own capability or the VMM.
    #[error("the function's interrupts are in use")]
    Busy,
    /// The VMM did not hand over the function yet.
    #[error("the VMM did not hand over the function yet")]
    NotReady,
    /// The platform failed.
    #[error("cannot {operation}: {source}")]
    Failed {
        /// What was being done, as it continues "cannot".
        operation: &'static str,
        /// What the platform said.
        source: io::Error,
    },
}

impl HostError {
    pub(crate) fn failed(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Failed { operation, source }
    }

    /// What was being done, as it continues "cannot", where the platform failed.
    pub(crate) fn operation(&self) -> Option<&'static str> {
        match self {
            Self::Failed { operation, .. } => Some(operation),
            _ => None,
        }
    }

    /// The platform's error number, where it had one.
    pub(crate) fn errno(&self) -> Option<i32> {
        match self {
            Self::Failed { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// What the operator can do about it.
    pub(crate) fn remedy(&self) -> &'static str {
        const LEFT: &str = "bind it to vfio-pci again, then detach and attach it with `vhost-device-irq ctl`";
        match (self, self.errno()) {
            (Self::Gone, _) | (_, Some(libc::ENODEV | libc::ENXIO)) => LEFT,
            (_, Some(libc::EPERM | libc::EACCES)) => {
                "start the daemon as root, or with CAP_SYS_ADMIN, CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"
            }
            (_, Some(libc::EMFILE | libc::ENFILE)) => {
                "raise the daemon's limit of open files (LimitNOFILE=), or lower --max-sources"
            }
            (_, Some(libc::ENOSPC | libc::ENOMEM)) => {
                "the host is short of interrupt vectors or memory: free some, or lower --max-sources"
            }
            _ => "`vhost-device-irq doctor` looks for what is wrong with it",
        }
    }

    /// What the device core is told of it.
    pub fn failure(&self) -> Failure {
        match self {
            Self::NotEnabled => Failure::NotEnabled,
            Self::Gone => Failure::Gone,
            Self::Busy => Failure::Busy,
            Self::NotReady => Failure::NotReady,
            Self::Failed { .. } => Failure::Failed,
        }
    }
}
