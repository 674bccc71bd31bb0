// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The floor: one eventfd there, one back, between two processes that do nothing else.
//!
//! Twice: with both sides blocked in `read`, the least there is; and with both waiting in `epoll_wait` as the driver
//! does (edge-triggered) and the daemon (level-triggered, then `read`). The second tells what of a round trip is owed to
//! a device that has more than one thing to wait for and a driver that does not wait for ever.

use crate::ECHO;
use std::fs::File;
use std::io::{Read, Write, stdin, stdout};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

/// Argument of the other process: wait in epoll.
const EPOLL: &str = "epoll";

/// How both sides wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    Read,
    Epoll,
}

/// A process that answers, and the two eventfds.
pub(crate) struct Floor {
    there: File,
    back: File,
    epoll: Option<Epoll>,
    child: Child,
}

impl Floor {
    pub(crate) fn start(wait: Wait) -> Self {
        let eventfd = || File::from(duplicate(&EventFd::new(0).expect("an eventfd can be made")));
        let (there, back) = (eventfd(), eventfd());
        let copy = |file: &File| OwnedFd::from(file.try_clone().expect("a descriptor can be duplicated"));
        let program = std::env::current_exe().expect("a program knows its path");
        let child = Command::new(program)
            .arg(ECHO)
            .args((wait == Wait::Epoll).then_some(EPOLL))
            .stdin(copy(&there))
            .stdout(copy(&back))
            .spawn()
            .expect("this program can be started again");
        let epoll = (wait == Wait::Epoll).then(|| watch_for_edges(&[back.as_fd()]));
        Self { there, back, epoll, child }
    }

    pub(crate) fn trip(&mut self) {
        self.there.write_all(&1_u64.to_ne_bytes()).expect("an eventfd takes one more");
        match &self.epoll {
            Some(epoll) => sleep(epoll),
            None => self.back.read_exact(&mut [0; 8]).expect("the other process answers"),
        }
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
    let file = |fd: BorrowedFd<'_>| File::from(fd.try_clone_to_owned().expect("a standard stream"));
    let (mut there, mut back) = (file(stdin().as_fd()), file(stdout().as_fd()));
    let epoll = std::env::args().any(|argument| argument == EPOLL).then(|| watch(&there, EventSet::IN));
    let mut count = [0; 8];
    loop {
        epoll.iter().for_each(sleep);
        if there.read_exact(&mut count).is_err() || back.write_all(&1_u64.to_ne_bytes()).is_err() {
            return;
        }
    }
}

fn watch(file: &File, events: EventSet) -> Epoll {
    let epoll = Epoll::new().expect("an epoll instance can be made");
    add(&epoll, file.as_fd(), events);
    epoll
}

/// Has [`sleep`] wait for these, each signal of which ends one sleep.
pub(crate) fn watch_for_edges(fds: &[BorrowedFd<'_>]) -> Epoll {
    let epoll = Epoll::new().expect("an epoll instance can be made");
    fds.iter().for_each(|fd| add(&epoll, *fd, EventSet::IN | EventSet::EDGE_TRIGGERED));
    epoll
}

fn add(epoll: &Epoll, fd: BorrowedFd<'_>, events: EventSet) {
    let event = EpollEvent::new(events, 0);
    epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), event).expect("an eventfd can be watched");
}

pub(crate) fn sleep(epoll: &Epoll) {
    epoll.wait(-1, &mut [EpollEvent::default(); 3]).expect("epoll works");
}

fn duplicate(event: &EventFd) -> OwnedFd {
    // SAFETY: the eventfd is open until `event` is dropped, which is after this borrow.
    let fd = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    fd.try_clone_to_owned().expect("a descriptor can be duplicated")
}
