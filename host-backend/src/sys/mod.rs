// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Everything in this crate that needs `unsafe`.

mod mapping;
mod patience;
mod signals;
mod vfio;

pub(crate) use mapping::{GuestGuard, read_mapped};
pub(crate) use patience::{consume_event, prepare_stand_in, signal_event};
pub(crate) use signals::Signals;
pub(crate) use vfio::{DeviceFile, GroupFile, ioctls as vfio_ioctls};

use std::io;
use std::num::NonZeroI32;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Takes over a descriptor that the process inherited under this number.
///
/// # Errors
/// Nothing is open under the number.
pub(crate) fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD only looks the number up; it is defined for every integer.
    if number < 0 || unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the number is open, as was just seen. The operator named it on the command line, which hands it to the
    // only caller of this function; no other part of the program was given it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The descriptor of `owner`, whose crate only gives its number out.
pub(crate) fn borrow<T: AsRawFd>(owner: &T) -> BorrowedFd<'_> {
    // SAFETY: the owner keeps its descriptor open for as long as it lives, and the result lives no longer.
    unsafe { BorrowedFd::borrow_raw(owner.as_raw_fd()) }
}

/// The process that made the other end of a Unix socket; none if this process's namespace has no number for it, for which
/// rustix's type has no value.
pub(crate) fn peer_process(socket: BorrowedFd<'_>) -> io::Result<Option<NonZeroI32>> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of_val(&peer) as libc::socklen_t;
    let option = (libc::SOL_SOCKET, libc::SO_PEERCRED);
    // SAFETY: the kernel writes at most `length` bytes to `peer`, which is as long and may hold any integers, and the new
    // length to `length`; both live until the call returns.
    let result = unsafe {
        let (value, length) = ((&raw mut peer).cast(), &raw mut length);
        libc::getsockopt(socket.as_raw_fd(), option.0, option.1, value, length)
    };
    if result == 0 { Ok(NonZeroI32::new(peer.pid)) } else { Err(io::Error::last_os_error()) }
}

/// Closes a descriptor that a library let go of without closing it.
pub(crate) fn close_abandoned(number: RawFd) {
    // SAFETY: the caller's library gave up the ownership of the number with `into_raw_fd` and keeps it nowhere but in
    // an epoll instance, which owns nothing, so this is the only owner.
    drop(unsafe { OwnedFd::from_raw_fd(number) });
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketType, socket};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_peer_that_has_no_number_here_is_none() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let this = i32::try_from(std::process::id()).unwrap();
        assert_eq!(peer_process(ours.as_fd()).unwrap().map(NonZeroI32::get), Some(this));
        // The kernel says 0 here as well.
        let unconnected = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        assert_eq!(peer_process(unconnected.as_fd()).unwrap(), None);
    }
}
