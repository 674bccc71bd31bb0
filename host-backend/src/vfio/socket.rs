// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device over a Unix socket, from whoever opened it.

use super::Host;
use super::claim::{Claim, ClaimError, LoanError, NotYet};
use super::identity::{self, Identity};
use super::loan::{Counter, Exchange, PATIENCE_SECONDS, Refusal, Stop, answer};
use crate::sys::DeviceFile;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use tracing::debug;
use virtio_irq_proto::PciAddress;

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
pub struct Mailbox(Counter);

/// Room for an address. One byte more than that tells that it is something else.
const MESSAGE_LIMIT: usize = 32;

/// More than the one descriptor that is right, so that too many are noticed.
const DESCRIPTOR_LIMIT: usize = 4;

impl Mailbox {
    /// How long a sender may take for its message.
    pub const PATIENCE_SECONDS: i64 = PATIENCE_SECONDS;

    pub(super) fn open(path: &Path, host: &Host, function: PciAddress) -> Result<Self, LoanError> {
        Counter::open(path, Box::new(HandIn { host: host.clone(), function })).map(Self)
    }

    pub(super) fn claim(&self) -> Result<Claim, ClaimError> {
        self.0.claim()
    }
}

#[derive(Debug)]
struct HandIn {
    host: Host,
    function: PciAddress,
}

impl Exchange for HandIn {
    fn device(&self, connection: BorrowedFd<'_>, stop: &Stop<'_>, _lent: bool) -> Result<OwnedFd, Refusal> {
        let because = |why: &str| Refusal::Because(why.to_owned());
        stop.await_message(connection)?;
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
        Ok(device.into_fd())
    }

    fn confirm(&self, connection: BorrowedFd<'_>, _device: BorrowedFd<'_>) {
        answer(connection, "ok\n");
    }

    fn function(&self) -> PciAddress {
        self.function
    }

    fn news(&self) -> [&'static str; 2] {
        ["handed in", "taken back"]
    }

    fn awaited(&self, path: &Path) -> NotYet {
        NotYet::NotSent { path: path.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use std::fs;
    use std::io::{IoSlice, Read, Write};
    use std::net::Shutdown as Side;
    use std::os::fd::AsFd;
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
        let stream = UnixStream::connect(mailbox.0.path()).unwrap();
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
        let mut silent = UnixStream::connect(mailbox.0.path()).unwrap();
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
        let mut silent = UnixStream::connect(mailbox.0.path()).unwrap();
        let gone = UnixStream::connect(mailbox.0.path()).unwrap();
        gone.shutdown(Side::Both).unwrap();
        // It waits for the first of them. Until then the kernel has no inode for it (net/unix/af_unix.c, unix_seq_show).
        let path = mailbox.0.path().display().to_string();
        let accepted = |line: &&str| line.ends_with(&path) && line.split_whitespace().nth(6) != Some("0");
        let deadline = Instant::now() + Duration::from_secs(10);
        while fs::read_to_string("/proc/net/unix").unwrap().lines().filter(accepted).count() < 2 {
            assert!(Instant::now() < deadline, "it accepts nobody");
            std::thread::yield_now();
        }
        drop(mailbox);
        // One that was waited for would have been told. A connection that nobody accepted ends by a reset.
        let mut answer = String::new();
        let _ = silent.read_to_string(&mut answer);
        assert_eq!(answer, "");
    }
}
