// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The floor: one eventfd there, one back, between two processes that do nothing else.

use crate::ECHO;
use std::fs::File;
use std::io::{Read, Write, stdin, stdout};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command};
use vmm_sys_util::eventfd::EventFd;

/// A process that answers, and the two eventfds.
pub(crate) struct Floor {
    there: File,
    back: File,
    child: Child,
}

impl Floor {
    pub(crate) fn start() -> Self {
        let eventfd = || File::from(duplicate(&EventFd::new(0).expect("an eventfd can be made")));
        let (there, back) = (eventfd(), eventfd());
        let copy = |file: &File| OwnedFd::from(file.try_clone().expect("a descriptor can be duplicated"));
        let program = std::env::current_exe().expect("a program knows its path");
        let child = Command::new(program)
            .arg(ECHO)
            .stdin(copy(&there))
            .stdout(copy(&back))
            .spawn()
            .expect("this program can be started again");
        Self { there, back, child }
    }

    pub(crate) fn trip(&mut self) {
        self.there.write_all(&1_u64.to_ne_bytes()).expect("an eventfd takes one more");
        self.back.read_exact(&mut [0; 8]).expect("the other process answers");
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        // It fails only if the process has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The other process: answers until it is killed.
pub(crate) fn echo() {
    let file = |fd: std::os::fd::BorrowedFd<'_>| File::from(fd.try_clone_to_owned().expect("a standard stream"));
    let (mut there, mut back) = (file(stdin().as_fd()), file(stdout().as_fd()));
    let mut count = [0; 8];
    while there.read_exact(&mut count).is_ok() && back.write_all(&count).is_ok() {}
}

fn duplicate(event: &EventFd) -> OwnedFd {
    use std::os::fd::{AsRawFd, BorrowedFd};
    // SAFETY: the eventfd is open until `event` is dropped, which is after this borrow.
    let fd = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    fd.try_clone_to_owned().expect("a descriptor can be duplicated")
}
