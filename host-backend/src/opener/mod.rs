// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A process of its own that opens what the daemon may not once it is confined.
//!
//! Two things need privileges that nothing else here does. The configuration space of a function is only readable
//! beyond its first 64 bytes through a descriptor that a process with CAP_SYS_ADMIN opened (`pci_read_config` in
//! drivers/pci/pci-sysfs.c). And taking a VFIO device out of the VMM needs CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH where the
//! VMM is another user's (`proc_fd_permission` in fs/proc/fd.c), and no Landlock: a process under it may look into none that is
//! not (`hook_ptrace_access_check` in security/landlock/task.c).
//!
//! So the daemon starts this program once more before it gives everything up, talks to it over a socket, and gets
//! descriptors. Whoever took the daemon over could have the opener open the configuration space of a function, which is
//! read-only, and a VFIO device that a process has open already. It ends with the daemon.

mod server;
#[cfg(test)]
mod tests;
mod wire;

pub(crate) use server::serve;

use crate::vfio::{Claim, ClaimError, NotYet, VfioDevice};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair,
    sockopt::{Timeout, set_socket_timeout},
};
use serde::de::DeserializeOwned;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use virtio_irq_proto::PciAddress;
use wire::{Reply, Request};

/// What starts the opener; its socket is its standard input.
pub(crate) const SUBCOMMAND: &str = "opener";

/// It only makes system calls that do not wait. One that takes longer than this was stopped.
const PATIENCE: Duration = Duration::from_secs(5);

/// The way to the opener. Clones lead to the same one.
#[derive(Clone, Debug)]
pub struct Opener(Arc<OwnedFd>);

impl Opener {
    /// Starts it, as another process of this program, and waits until it is confined.
    ///
    /// # Errors
    /// The system has no room for a process, `/proc` is not mounted, or the process could not confine itself; then it
    /// said why on standard error.
    pub fn start() -> io::Result<Self> {
        let (ours, theirs) = pair()?;
        Command::new("/proc/self/exe")
            .arg0(OsStr::new(env!("CARGO_PKG_NAME")))
            .arg(SUBCOMMAND)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()?;
        match receive::<()>(&ours)? {
            ((), fds) if fds.is_empty() => Ok(Self(Arc::new(ours))),
            _ => Err(protocol()),
        }
    }

    /// The configuration space of a function, to be read whole.
    pub(crate) fn config(&self, function: PciAddress) -> io::Result<File> {
        let (reply, mut fds) = self.ask(&Request::Config { function: function.into() }, &[])?;
        match (reply, fds.pop()) {
            (Reply::Done, Some(fd)) => Ok(fd.into()),
            (Reply::Errno(errno), _) => Err(io::Error::from_raw_os_error(errno)),
            _ => Err(protocol()),
        }
    }

    /// The VFIO device that the process of `pidfd` has open, which had the number `pid`.
    pub(crate) fn claim_of(
        &self,
        function: PciAddress,
        pid: u32,
        pidfd: BorrowedFd<'_>,
    ) -> Result<Claim, ClaimError> {
        self.claim(&Request::Process { function: function.into(), pid }, &[pidfd])
    }

    /// The VFIO device that the process with the number in a file has open.
    pub(crate) fn claim_by_file(&self, function: PciAddress, path: &Path) -> Result<Claim, ClaimError> {
        self.claim(&Request::PidFile { function: function.into(), path: path.to_owned() }, &[])
    }

    fn claim(&self, request: &Request, with: &[BorrowedFd<'_>]) -> Result<Claim, ClaimError> {
        let (reply, mut fds) = self
            .ask(request, with)
            .map_err(ClaimError::failed("ask the opener; if its process ended, start the daemon anew"))?;
        match (reply, fds.pop(), fds.pop()) {
            (Reply::Done, Some(owner), Some(device)) => {
                let device = VfioDevice::new(device).map_err(ClaimError::failed("use the VFIO device"))?;
                Ok(Claim { device, owner: Some(owner) })
            }
            (Reply::NotYet(text), ..) => Err(ClaimError::NotYet(NotYet::Opener { text })),
            (Reply::Refused(text), ..) => Err(ClaimError::Opener { text }),
            _ => Err(ClaimError::failed("understand the opener")(protocol())),
        }
    }

    /// Each request brings a socket for its reply, so that no thread waits for another's.
    fn ask(&self, request: &Request, with: &[BorrowedFd<'_>]) -> io::Result<(Reply, Vec<OwnedFd>)> {
        let (ours, theirs) = pair()?;
        let fds: Vec<_> = std::iter::once(theirs.as_fd()).chain(with.iter().copied()).collect();
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        wire::send(self.0.as_fd(), request, &fds, flags).map_err(|error| match error.kind() {
            // It was stopped so long ago that the requests of others have filled the way to it.
            io::ErrorKind::WouldBlock => Errno::TIMEDOUT.into(),
            _ => error,
        })?;
        // Only the opener has it now, so that its end is noticed.
        drop(theirs);
        receive(&ours)
    }
}

fn receive<T: DeserializeOwned>(socket: &OwnedFd) -> io::Result<(T, Vec<OwnedFd>)> {
    set_socket_timeout(socket, Timeout::Recv, Some(PATIENCE))?;
    match wire::receive(socket.as_fd(), RecvFlags::CMSG_CLOEXEC) {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => Err(Errno::PIPE.into()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Errno::TIMEDOUT.into()),
        Err(error) => Err(error),
    }
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

fn protocol() -> io::Error {
    Errno::PROTO.into()
}
