// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device over a Unix socket.

use super::identity::{self, Identity};
use super::source::{Claim, ClaimError, NotYet};
use super::{Host, VfioDevice};
use crate::serve::{SocketError, Transport};
use crate::sys::{self, DeviceFile};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, Shutdown, SocketFlags,
    accept_with, recvmsg, send, shutdown,
};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use tracing::{debug, info, warn};
use virtio_irq_proto::PciAddress;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// A Unix stream socket at which the VFIO device of one function is handed in, by its user only (mode 0600).
///
/// This process listens, because it starts before the VMM. Whoever opened the device connects and sends one message: the
/// function's address as `lspci -D` writes it, together with the device as the one descriptor (SCM_RIGHTS). The answer is a
/// line: `ok`, or `error: ` and why, and then the connection ends.
///
/// The connection is a loan: the device is let go of when it ends, or when the sender says anything more. A launcher that
/// leaves its end open for the VMM to inherit has it end with the VMM, whatever happens. If another device is handed in,
/// that one counts and the earlier connection is closed.
///
/// A sender that says nothing, or something else, is turned away after [`Mailbox::PATIENCE_SECONDS`] at most. On kernels that
/// do not tell which function a device is, the wrong one is only noticed by [`Interrupts::enable`](super::Interrupts).
///
/// A sender in Python, which has the device open as `device`:
///
/// ```python
/// import socket
/// loan = socket.socket(socket.AF_UNIX)
/// loan.connect("/run/vfio.sock")
/// socket.send_fds(loan, [b"0000:02:00.0"], [device])
/// if (answer := loan.recv(256)) != b"ok\n":
///     raise SystemExit(answer.decode())
/// loan.set_inheritable(True)  # the VMM, which is started from here, keeps it open
/// ```
#[derive(Debug)]
pub struct Mailbox {
    path: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    held: Mutex<Option<Held>>,
    /// Readable when the thread is to end.
    stop: EventFd,
}

#[derive(Debug)]
struct Held {
    device: DeviceFile,
    connection: Arc<OwnedFd>,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum MailboxError {
    #[error("there is no socket for the VFIO device: {0}")]
    Socket(#[from] SocketError),
    #[error("cannot wait for the VFIO device at {}: {source}", path.display())]
    Start { path: PathBuf, source: io::Error },
}

/// Room for an address. One byte more than that tells that it is something else.
const MESSAGE_LIMIT: usize = 32;

/// More than the one descriptor that is right, so that too many are noticed.
const DESCRIPTOR_LIMIT: usize = 4;

const PATIENCE: Timespec = Timespec { tv_sec: Mailbox::PATIENCE_SECONDS, tv_nsec: 0 };

impl Mailbox {
    /// How long a sender may take for its message.
    pub const PATIENCE_SECONDS: i64 = 2;

    pub(super) fn open(path: &Path, host: &Host, function: PciAddress) -> Result<Self, MailboxError> {
        let listening = Transport::bind(path)?;
        let start = |source| MailboxError::Start { path: path.to_owned(), source };
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(start)?;
        let shared = Arc::new(Shared { held: Mutex::new(None), stop });
        let clerk = Clerk { shared: Arc::clone(&shared), host: host.clone(), function };
        let thread = thread::Builder::new()
            .name("vfio-socket".to_owned())
            .spawn(move || {
                if let Transport::Listening(listening) = listening
                    && let Err(error) = clerk.serve(listening.as_fd())
                {
                    warn!("no more VFIO devices can be handed in for PCI function {function}: {error}");
                }
            })
            .map_err(start)?;
        Ok(Self { path: path.to_owned(), shared, thread: Some(thread) })
    }

    pub(super) fn claim(&self) -> Result<Claim, ClaimError> {
        let held = self.shared.held();
        let not_sent = || ClaimError::NotYet(NotYet::NotSent { path: self.path.clone() });
        let held = held.as_ref().ok_or_else(not_sent)?;
        // The thread may not have come to it yet.
        if is_readable(held.connection.as_fd()).map_err(ClaimError::failed("look at the sender"))? {
            return Err(not_sent());
        }
        let file = held.device.try_clone().map_err(ClaimError::failed("duplicate the VFIO device"))?;
        let device = VfioDevice::from_file(file).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => ClaimError::NotYet(NotYet::NotBound),
            _ => ClaimError::failed("use the VFIO device")(error),
        })?;
        let owner = held.connection.try_clone().map_err(ClaimError::failed("duplicate a connection"))?;
        Ok(Claim { device, owner: Some(owner) })
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        // It fails only if the counter is full, and then the event is readable anyway.
        let _ = self.shared.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the thread knows.
struct Clerk {
    shared: Arc<Shared>,
    host: Host,
    function: PciAddress,
}

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
                    info!("the VFIO device of PCI function {} was taken back", self.function);
                    self.hold(None);
                }
                Woken::Listener => match accept_with(listener, SocketFlags::CLOEXEC) {
                    Ok(connection) => self.receive(connection),
                    Err(Errno::INTR | Errno::AGAIN | Errno::CONNABORTED) => {}
                    // Out of descriptors or memory. The connection is still there to be accepted, so do not ask at once.
                    Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                        let mut fds = [interest(sys::borrow(&self.shared.stop))];
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
        let connection = self.shared.held().as_ref().map(|held| Arc::clone(&held.connection));
        let stop = sys::borrow(&self.shared.stop);
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

    fn receive(&self, connection: OwnedFd) {
        match self.device_from(connection.as_fd()) {
            Ok(device) => {
                info!("the VFIO device of PCI function {} was handed in", self.function);
                self.hold(Some(Held { device, connection: Arc::new(connection) }));
            }
            Err(Refusal::Stopped) => {}
            Err(Refusal::Because(why)) => {
                warn!("no VFIO device of PCI function {} was handed in: {why}", self.function);
                answer(&connection, &format!("error: {why}\n"));
            }
        }
    }

    fn hold(&self, held: Option<Held>) {
        let earlier = std::mem::replace(&mut *self.shared.held(), held);
        // The sender may go on as soon as it is told, so it is told when the device can be claimed.
        if let Some(held) = &*self.shared.held() {
            answer(&held.connection, "ok\n");
        }
        if let Some(earlier) = earlier {
            // Claims have copies of it, which closing ours would not wake.
            if let Err(errno) = shutdown(&earlier.connection, Shutdown::Both) {
                debug!("cannot end a connection: {errno}");
            }
        }
    }

    fn device_from(&self, connection: BorrowedFd<'_>) -> Result<DeviceFile, Refusal> {
        let because = |why: &str| Refusal::Because(why.to_owned());
        self.await_message(connection)?;
        let mut bytes = [0; MESSAGE_LIMIT];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTOR_LIMIT))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let message = recvmsg(connection, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)
            .map_err(|errno| Refusal::Because(format!("it cannot be received: {errno}")))?;
        let mut fds: Vec<OwnedFd> = control
            .drain()
            .flat_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
                _ => Vec::new(),
            })
            .collect();
        let text = bytes.get(..message.bytes).unwrap_or_default();
        if text.trim_ascii() != self.function.to_string().as_bytes() {
            return Err(Refusal::Because(format!(
                "the message has to be the text {}, this socket is for that function",
                self.function
            )));
        }
        let fd = match (fds.pop(), fds.is_empty()) {
            (Some(fd), true) if !message.flags.contains(ReturnFlags::CTRUNC) => fd,
            (None, _) => return Err(because("no descriptor came with the message (SCM_RIGHTS)")),
            _ => return Err(because("more than one descriptor came with the message")),
        };
        let device = DeviceFile::new(fd)
            .map_err(|kind| Refusal::Because(format!("the descriptor is {kind}, not a VFIO device")))?;
        match identity::of(&device.file(), &self.host, self.function) {
            Identity::Same => {}
            Identity::Other => return Err(because("it is the VFIO device of another function")),
            Identity::Unknown => debug!("this kernel does not tell which function a VFIO device is"),
        }
        Ok(device)
    }

    fn await_message(&self, connection: BorrowedFd<'_>) -> Result<(), Refusal> {
        let mut fds = [interest(sys::borrow(&self.shared.stop)), interest(connection)];
        match poll(&mut fds, Some(&PATIENCE)) {
            Ok(0) => Err(Refusal::Because("the message did not come in time".to_owned())),
            Ok(_) if !fds[0].revents().is_empty() => Err(Refusal::Stopped),
            // An interrupted wait ends early; whether there is a message, receiving it will tell.
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(Refusal::Because(format!("cannot wait for the message: {errno}"))),
        }
    }
}

enum Refusal {
    /// The mailbox is being closed.
    Stopped,
    Because(String),
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
fn answer(connection: &OwnedFd, text: &str) {
    let _ = send(connection, text.as_bytes(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, sendmsg};
    use std::io::{IoSlice, Read, Write};
    use std::net::Shutdown as Side;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};

    const FUNCTION: PciAddress = PciAddress { segment: 0, bus: 2, devfn: 0x18 };

    fn mailbox() -> (tempfile::TempDir, Mailbox) {
        let directory = tempfile::tempdir().unwrap();
        let mailbox = Mailbox::open(&directory.path().join("vfio"), &Host::here(), FUNCTION).unwrap();
        (directory, mailbox)
    }

    fn answer_to(mailbox: &Mailbox, text: &[u8], fds: &[BorrowedFd<'_>]) -> String {
        let mut answer = String::new();
        send_to(mailbox, text, fds).read_to_string(&mut answer).unwrap();
        answer
    }

    fn send_to(mailbox: &Mailbox, text: &[u8], fds: &[BorrowedFd<'_>]) -> UnixStream {
        let stream = UnixStream::connect(&mailbox.path).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        sendmsg(&stream, &[IoSlice::new(text)], &mut control, SendFlags::empty()).unwrap();
        stream
    }

    #[test]
    fn only_its_user_can_reach_it_and_it_goes_with_the_mailbox() {
        let (directory, mailbox) = mailbox();
        let path = directory.path().join("vfio");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(mailbox.claim().unwrap_err().is_not_yet());
        drop(mailbox);
        assert!(!path.exists());
    }

    #[test]
    fn senders_of_anything_else_are_told_what_is_wrong() {
        let (_directory, mailbox) = mailbox();
        let file = tempfile::tempfile().unwrap();
        let fd = file.as_fd();
        for (text, fds, answer) in [
            (&b"0000:02:03.0\n"[..], &[][..], "no descriptor"),
            (b"0000:02:03.0", &[fd, fd], "more than one"),
            (b"0000:02:03.0", &[fd; 8], "more than one"),
            (b"0000:02:03.0", &[fd], "not a VFIO device"),
            (b"0000:02:03.1", &[fd], "the text 0000:02:03.0"),
            (b"\xff\0\xff", &[fd], "the text 0000:02:03.0"),
        ] {
            let got = answer_to(&mailbox, text, fds);
            assert!(got.starts_with("error: ") && got.contains(answer), "{got}");
        }
        assert!(mailbox.claim().unwrap_err().is_not_yet());
    }

    #[test]
    fn a_message_without_end_is_not_read_to_the_end() {
        let (_directory, mailbox) = mailbox();
        let mut stream = send_to(&mailbox, &[b'0'; 4096], &[]);
        // What was not read resets the connection, and the answer may get lost.
        assert!(stream.read(&mut [0; 8]).is_ok_and(|count| count == 8) || stream.write(&[0]).is_err());
        assert!(answer_to(&mailbox, b"0000:02:03.0", &[]).contains("no descriptor"));
    }

    #[test]
    fn descriptors_of_a_refused_message_are_closed() {
        let (_directory, mailbox) = mailbox();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        answer_to(&mailbox, b"0000:02:03.0", &[theirs.as_fd(); 8]);
        drop(theirs);
        // It ends once no copy of the other side is open.
        ours.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        assert_eq!(ours.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_silent_sender_is_turned_away_and_the_next_one_served() {
        let (_directory, mailbox) = mailbox();
        let mut silent = UnixStream::connect(&mailbox.path).unwrap();
        let began = Instant::now();
        assert!(answer_to(&mailbox, b"0000:02:03.0", &[]).contains("no descriptor"));
        assert!(began.elapsed() < Duration::from_secs(10));
        let mut answer = String::new();
        silent.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("did not come in time"), "{answer}");
    }

    #[test]
    fn closing_does_not_wait_for_a_silent_sender() {
        let (_directory, mailbox) = mailbox();
        let silent = UnixStream::connect(&mailbox.path).unwrap();
        let gone = UnixStream::connect(&mailbox.path).unwrap();
        gone.shutdown(Side::Both).unwrap();
        let began = Instant::now();
        drop(mailbox);
        assert!(began.elapsed() < Duration::from_secs(1));
        drop(silent);
    }
}
