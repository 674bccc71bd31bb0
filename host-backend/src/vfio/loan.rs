// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device that is lent over a Unix socket, for as long as the connection lasts.
//!
//! Which side lends is up to an [`Exchange`]: the VMM's side hands in what it opened, or borrows what is opened here.

use super::VfioDevice;
use super::claim::{Claim, ClaimError, LoanError, NotYet};
use crate::serve::Transport;
use crate::sys;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, SocketFlags, accept_with, send, shutdown};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use tracing::{debug, info, warn};
use virtio_irq_proto::PciAddress;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// What is done with a new connection.
pub(super) trait Exchange: fmt::Debug + Send + Sync + 'static {
    /// The device, of this connection from now on. `stop` becomes readable when it is not to be waited for any more. `lent`
    /// says whether there is an earlier connection, which ends with this one's success.
    fn device(&self, connection: BorrowedFd<'_>, stop: &Stop<'_>, lent: bool) -> Result<OwnedFd, Refusal>;

    /// The device can be claimed: tells the other side, which goes on as soon as it knows. Whoever does not listen ends the
    /// connection, which is noticed there.
    fn confirm(&self, connection: BorrowedFd<'_>, device: BorrowedFd<'_>);

    /// Whose device.
    fn function(&self) -> PciAddress;

    /// What happened when it was confirmed and when the connection ended, as it continues "the device was".
    fn news(&self) -> [&'static str; 2];

    /// What has to happen before it can be claimed.
    fn awaited(&self, path: &Path) -> NotYet;
}

/// Why a connection came to nothing.
pub(super) enum Refusal {
    /// The socket is being closed.
    Stopped,
    /// The other side is told this.
    Because(String),
}

/// A socket with its thread. Dropping it ends both, and the loan.
#[derive(Debug)]
pub(super) struct Counter {
    path: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    exchange: Box<dyn Exchange>,
    held: Mutex<Option<Loan>>,
    /// Readable when the thread is to end.
    stop: EventFd,
}

#[derive(Clone, Debug)]
struct Loan {
    device: Arc<OwnedFd>,
    connection: Arc<OwnedFd>,
}

/// How long the other side may take to say what it wants.
pub(super) const PATIENCE_SECONDS: i64 = 2;

const PATIENCE: Timespec = Timespec { tv_sec: PATIENCE_SECONDS, tv_nsec: 0 };

/// Says that there is no time left.
pub(super) struct Stop<'a>(BorrowedFd<'a>);

impl Stop<'_> {
    /// Waits until something came over the connection, for a while.
    pub(super) fn await_message(&self, connection: BorrowedFd<'_>) -> Result<(), Refusal> {
        let mut fds = [interest(self.0), interest(connection)];
        match poll(&mut fds, Some(&PATIENCE)) {
            Ok(0) => Err(Refusal::Because("the message did not come in time".to_owned())),
            Ok(_) if !fds[0].revents().is_empty() => Err(Refusal::Stopped),
            // An interrupted wait ends early; whether there is a message, receiving it will tell.
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(Refusal::Because(format!("cannot wait for the message: {errno}"))),
        }
    }
}

impl Counter {
    pub(super) fn open(path: &Path, exchange: Box<dyn Exchange>) -> Result<Self, LoanError> {
        let listening = Transport::bind(path)?;
        let start = |source| LoanError::Start { path: path.to_owned(), source };
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(start)?;
        let shared = Arc::new(Shared { exchange, held: Mutex::new(None), stop });
        let clerk = Clerk(Arc::clone(&shared));
        let thread = thread::Builder::new()
            .name("vfio-socket".to_owned())
            .spawn(move || {
                if let Transport::Listening(listening) = listening
                    && let Err(error) = clerk.serve(listening.as_fd())
                {
                    let function = clerk.0.exchange.function();
                    warn!("nobody can come any more for the VFIO device of PCI function {function}: {error}");
                }
            })
            .map_err(start)?;
        Ok(Self { path: path.to_owned(), shared, thread: Some(thread) })
    }

    #[cfg(test)]
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn claim(&self) -> Result<Claim, ClaimError> {
        let not_yet = || ClaimError::NotYet(self.shared.exchange.awaited(&self.path));
        let loan = self.shared.held().clone().ok_or_else(not_yet)?;
        // The thread may not have come to it yet.
        if is_readable(loan.connection.as_fd()).map_err(ClaimError::failed("look at the connection"))? {
            return Err(not_yet());
        }
        let copy = loan.device.try_clone().map_err(ClaimError::failed("duplicate the VFIO device"))?;
        let device = VfioDevice::new(copy).map_err(|error| match error.raw_os_error() {
            // `vfio_device_fops_unl_ioctl`, as long as it is not bound.
            Some(libc::EINVAL) => ClaimError::NotYet(NotYet::NotBound),
            _ => ClaimError::failed("use the VFIO device")(error),
        })?;
        let owner = loan.connection.try_clone().map_err(ClaimError::failed("duplicate a connection"))?;
        Ok(Claim { device, owner: Some(owner) })
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        // It fails only if the counter is full, and then the event is readable anyway.
        let _ = self.shared.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn held(&self) -> MutexGuard<'_, Option<Loan>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread.
struct Clerk(Arc<Shared>);

enum Woken {
    Stop,
    Connection,
    Listener,
}

impl Clerk {
    fn serve(&self, listener: BorrowedFd<'_>) -> io::Result<()> {
        loop {
            match self.wait(listener)? {
                Woken::Stop => break,
                Woken::Connection => {
                    self.hold(None);
                    self.tell(self.0.exchange.news()[1]);
                }
                Woken::Listener => match accept_with(listener, SocketFlags::CLOEXEC) {
                    Ok(connection) => self.meet(connection),
                    Err(Errno::INTR | Errno::AGAIN | Errno::CONNABORTED) => {}
                    // Out of descriptors or memory. The connection is still there to be accepted, so do not ask at once.
                    Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                        let mut fds = [interest(sys::borrow(&self.0.stop))];
                        // However it ends, accepting tells whether it is better now.
                        let _ = poll(&mut fds, Some(&PATIENCE));
                    }
                    Err(errno) => return Err(errno.into()),
                },
            }
        }
        self.hold(None);
        Ok(())
    }

    fn wait(&self, listener: BorrowedFd<'_>) -> io::Result<Woken> {
        let connection = self.0.held().as_ref().map(|loan| Arc::clone(&loan.connection));
        let stop = sys::borrow(&self.0.stop);
        let mut fds = vec![interest(stop), interest(listener)];
        fds.extend(connection.as_ref().map(|connection| interest(connection.as_fd())));
        rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
        let ready = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
        Ok(if ready(0) {
            Woken::Stop
        } else if ready(2) {
            Woken::Connection
        } else {
            Woken::Listener
        })
    }

    fn meet(&self, connection: OwnedFd) {
        let exchange = &self.0.exchange;
        let lent = self.0.held().is_some();
        match exchange.device(connection.as_fd(), &Stop(sys::borrow(&self.0.stop)), lent) {
            Ok(device) => {
                let loan = Loan { device: Arc::new(device), connection: Arc::new(connection) };
                self.hold(Some(loan.clone()));
                exchange.confirm(loan.connection.as_fd(), loan.device.as_fd());
                self.tell(exchange.news()[0]);
            }
            Err(Refusal::Stopped) => {}
            Err(Refusal::Because(why)) => {
                let [was, _] = exchange.news();
                warn!("no VFIO device of PCI function {} was {was}: {why}", exchange.function());
                answer(connection.as_fd(), &format!("error: {why}\n"));
            }
        }
    }

    fn hold(&self, loan: Option<Loan>) {
        let earlier = std::mem::replace(&mut *self.0.held(), loan);
        if let Some(earlier) = earlier {
            // Claims have copies of it, which closing ours would not wake.
            if let Err(errno) = shutdown(&*earlier.connection, Shutdown::Both) {
                debug!("cannot end a connection: {errno}");
            }
        }
    }

    fn tell(&self, what: &str) {
        info!("the VFIO device of PCI function {} was {what}", self.0.exchange.function());
    }
}

fn interest(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::from_borrowed_fd(fd, PollFlags::IN)
}

fn is_readable(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut fds = [interest(fd)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    Ok(rustix::io::retry_on_intr(|| poll(&mut fds, Some(&now)))? > 0)
}

/// A sender that does not listen to the answer does without.
pub(super) fn answer(connection: BorrowedFd<'_>, text: &str) {
    let _ = send(connection, text.as_bytes(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
}
