// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ending on request, wherever the program waits.

use crate::sys::Signals;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use tracing::{error, info};
use vhost_user_backend::ShutdownHandle;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// A request to end. Clones are the same request.
#[derive(Clone)]
pub struct Stop {
    inner: Arc<Inner>,
}

struct Inner {
    /// Readable from the request on.
    event: EventFd,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    requested: bool,
    /// Ends the connection that is being served.
    connection: Option<ShutdownHandle>,
}

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waited {
    Ready,
    Stopped,
}

/// Withdraws a connection from [`Stop::watch`].
pub(super) struct Watch<'a>(&'a Stop);

impl Stop {
    /// Nobody asked yet.
    ///
    /// # Errors
    /// The process is out of descriptors.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Self { inner: Arc::new(Inner { event, state: Mutex::default() }) })
    }

    /// Nobody asked yet; SIGTERM and SIGINT will. A second signal ends the process on the spot.
    ///
    /// Call it before any thread is started: those started earlier would still be killed by the signals.
    ///
    /// # Errors
    /// The process is out of descriptors or threads.
    pub fn on_signals() -> io::Result<Self> {
        let stop = Self::new()?;
        let mut signals = Signals::block()?;
        let on_signal = stop.clone();
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for count in 0.. {
                match signals.wait() {
                    Ok(number) if count == 0 => {
                        info!("leaving on signal {number}");
                        on_signal.request();
                    }
                    Ok(_) => std::process::exit(1),
                    Err(problem) => {
                        error!("cannot wait for signals: {problem}");
                        on_signal.request();
                        return;
                    }
                }
            }
        })?;
        Ok(stop)
    }

    /// Ends every wait, now and later.
    pub fn request(&self) {
        let mut state = self.state();
        state.requested = true;
        // It fails only if the counter is full, and then the event is readable anyway.
        let _ = self.inner.event.write(1);
        if let Some(connection) = &state.connection {
            connection.shutdown();
        }
    }

    /// Ends `connection` on request, for as long as the result lives.
    pub(super) fn watch(&self, connection: ShutdownHandle) -> Watch<'_> {
        let mut state = self.state();
        if state.requested {
            connection.shutdown();
        }
        state.connection = Some(connection);
        Watch(self)
    }

    /// Waits until `fd` is readable or the request comes.
    pub(super) fn wait_for(&self, fd: &impl AsFd) -> io::Result<Waited> {
        let mut fds = [PollFd::from_borrowed_fd(self.event(), PollFlags::IN), PollFd::new(fd, PollFlags::IN)];
        self.poll(&mut fds, None)
    }

    /// Waits for the request, `timeout` at most.
    pub(super) fn wait(&self, timeout: &Timespec) -> io::Result<Waited> {
        self.poll(&mut [PollFd::from_borrowed_fd(self.event(), PollFlags::IN)], Some(timeout))
    }

    fn poll(&self, fds: &mut [PollFd<'_>], timeout: Option<&Timespec>) -> io::Result<Waited> {
        rustix::io::retry_on_intr(|| poll(fds, timeout))?;
        Ok(if self.state().requested { Waited::Stopped } else { Waited::Ready })
    }

    fn event(&self) -> BorrowedFd<'_> {
        crate::sys::borrow(&self.inner.event)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.0.state().connection = None;
    }
}
