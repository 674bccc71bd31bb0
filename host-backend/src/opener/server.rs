// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The opener's own side.

use super::wire::{self, Reply, Request};
use crate::host::linux::Sysfs;
use crate::sandbox;
use crate::sys::Signals;
use crate::vfio::{ClaimError, Host, process};
use rustix::net::{RecvFlags, SendFlags};
use rustix::thread::set_name;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Serves the daemon at the other end of `socket` until it is gone.
///
/// # Errors
/// The process cannot be confined, or the socket cannot be read.
pub(crate) fn serve(socket: BorrowedFd<'_>) -> io::Result<()> {
    // For whoever lists the processes.
    set_name(c"irq-opener")?;
    // Of a terminal's Ctrl-C and of a service's end the daemon is told too, and it may need this one until it ends.
    let _signals = Signals::block()?;
    sandbox::confine_opener().map_err(io::Error::other)?;
    // It may be gone already.
    let _ = wire::send(socket, &(), &[], SendFlags::NOSIGNAL);
    loop {
        // What is no request harms nobody but who sent it.
        match wire::receive::<Request>(socket, RecvFlags::CMSG_CLOEXEC) {
            Ok(Some((request, fds))) => {
                let mut fds = fds.into_iter();
                let Some(back) = fds.next() else { continue };
                let (reply, opened) = fulfil(request, fds.next());
                let opened: Vec<_> = opened.iter().map(AsFd::as_fd).collect();
                // It may have given up waiting.
                let _ = wire::send(back.as_fd(), &reply, &opened, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
            }
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
            Err(error) => return Err(error),
        }
    }
}

fn fulfil(request: Request, pidfd: Option<OwnedFd>) -> (Reply, Vec<OwnedFd>) {
    let host = Host::here();
    let claim = match (request, pidfd) {
        (Request::Config { function }, _) => {
            return match Sysfs::here().open_config(function.into()) {
                Ok(file) => (Reply::Done, vec![file.into()]),
                Err(error) => (Reply::Errno(error.raw_os_error().unwrap_or(libc::EIO)), Vec::new()),
            };
        }
        (Request::Process { function, pid }, Some(pidfd)) => {
            process::out_of(&host, function.into(), pid, pidfd)
        }
        (Request::Process { .. }, None) => return (Reply::Errno(libc::EPROTO), Vec::new()),
        (Request::PidFile { function, path }, _) => process::by_pidfile(&host, function.into(), &path),
    };
    match claim {
        Ok(claim) => (Reply::Done, std::iter::once(claim.device.into()).chain(claim.owner).collect()),
        Err(ClaimError::NotYet(why)) => (Reply::NotYet(why.to_string()), Vec::new()),
        Err(error) => (Reply::Refused(error.to_string()), Vec::new()),
    }
}
