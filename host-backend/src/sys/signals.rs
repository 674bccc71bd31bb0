// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Signals as a descriptor.

use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};

/// SIGTERM and SIGINT, which now only arrive here.
#[derive(Debug)]
pub(crate) struct Signals(File);

impl Signals {
    /// Blocks both signals in the calling thread and those that it starts later, so call it before any is.
    pub(crate) fn block() -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initializes the set that it is given, sigaddset changes an initialized one, and both
        // signal numbers are valid; pthread_sigmask and signalfd read the set, which lives until the end of the block.
        // A descriptor that signalfd returned belongs to nobody else.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
            libc::sigaddset(set.as_mut_ptr(), libc::SIGINT);
            match libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) {
                0 => {}
                error => return Err(io::Error::from_raw_os_error(error)),
            }
            match libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC) {
                -1 => Err(io::Error::last_os_error()),
                fd => Ok(Self(File::from(OwnedFd::from_raw_fd(fd)))),
            }
        }
    }

    /// Waits for the next signal and returns its number.
    pub(crate) fn wait(&mut self) -> io::Result<u32> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        self.0.read_exact(&mut info)?;
        // ssi_signo is the first field.
        let [a, b, c, d, ..] = info;
        Ok(u32::from_ne_bytes([a, b, c, d]))
    }
}
