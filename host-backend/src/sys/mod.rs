// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Everything in this crate that needs `unsafe`.

mod mapping;
mod signals;
mod vfio;

pub(crate) use mapping::{GuestGuard, read_mapped};
pub(crate) use signals::Signals;
pub(crate) use vfio::{DeviceFile, GroupFile, ioctls as vfio_ioctls};

use std::io;
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

/// Closes a descriptor that a library let go of without closing it.
pub(crate) fn close_abandoned(number: RawFd) {
    // SAFETY: the caller's library gave up the ownership of the number with `into_raw_fd` and keeps it nowhere but in
    // an epoll instance, which owns nothing, so this is the only owner.
    drop(unsafe { OwnedFd::from_raw_fd(number) });
}
