// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Carries one vhost-user connection over to another socket.
//!
//! Only the control messages pass here. Rings, kicks and calls are memory and eventfds, which are handed through.

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, bind, connect,
    listen, recvmsg, sendmsg, shutdown, socket_with,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use vhost::vhost_user::Listener;

/// Request, flags and size, each 32 bits in the host's order.
const HEADER_SIZE: usize = 12;
/// Messages have at most 4 KiB of payload; nobody reads longer ones.
const MOST_PAYLOAD: usize = 0x1_0000;
/// The kernel's limit for one message (SCM_MAX_FD).
const MOST_FDS: usize = 253;

/// A listening socket at which exactly one connection waits, and that connection's other end.
pub(super) fn private_connection() -> io::Result<(Listener, OwnedFd)> {
    let socket = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
    };
    let listener = socket()?;
    // The kernel chooses an abstract name.
    bind(&listener, &SocketAddrUnix::new_unnamed())?;
    // A backlog of 0 has room for one connection: if another process was faster with the name, ours fails.
    listen(&listener, 0)?;
    let near = socket()?;
    connect(&near, &rustix::net::getsockname(&listener)?)?;
    let listener = UnixListener::from(listener);
    listener.set_nonblocking(false)?;
    Ok((Listener::from(listener), near))
}

/// Hands messages through both ways, until one side closes; then both are.
pub(super) fn run(far: BorrowedFd<'_>, near: BorrowedFd<'_>) -> io::Result<()> {
    let result = pump(far, near);
    end(far, near);
    result
}

fn pump(far: BorrowedFd<'_>, near: BorrowedFd<'_>) -> io::Result<()> {
    let (mut inward, mut outward) = (Message::default(), Message::default());
    loop {
        let mut fds = [PollFd::new(&far, PollFlags::IN), PollFd::new(&near, PollFlags::IN)];
        rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
        let [from_far, from_near] = fds.map(|fd| !fd.revents().is_empty());
        if (from_far && !inward.forward(far, near)?) || (from_near && !outward.forward(near, far)?) {
            return Ok(());
        }
    }
}

/// Ends both connections.
pub(super) fn end(far: BorrowedFd<'_>, near: BorrowedFd<'_>) {
    for socket in [far, near] {
        // It fails if the other side did the same already.
        let _ = shutdown(socket, Shutdown::Both);
    }
}

/// A message on its way.
///
/// The kernel hands descriptors out with the read that takes the first byte they came with, and glues that byte to
/// others before it. So a read must never cross the boundary of a message, or the descriptors end up with the wrong
/// one; and the library wants each payload in one piece.
#[derive(Default)]
struct Message {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Message {
    /// Number of bytes that are missing.
    fn missing(&self) -> io::Result<usize> {
        let length = match self.bytes.get(8..HEADER_SIZE).and_then(|size| size.first_chunk()) {
            None => HEADER_SIZE,
            Some(size) => match u32::from_ne_bytes(*size) as usize {
                size @ 0..=MOST_PAYLOAD => HEADER_SIZE + size,
                _ => return Err(io::Error::other("a message is longer than any")),
            },
        };
        Ok(length - self.bytes.len())
    }

    /// Reads on, and hands the message over when it is whole; false at the end of the stream.
    fn forward(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<bool> {
        let open = self.receive(from)?;
        // At the end, half a message is handed over as well: it is for the reader to complain.
        if (!open && !self.bytes.is_empty()) || self.missing()? == 0 {
            send_all(to, &std::mem::take(&mut self.bytes), &std::mem::take(&mut self.fds))?;
        }
        Ok(open)
    }

    fn receive(&mut self, from: BorrowedFd<'_>) -> io::Result<bool> {
        let start = self.bytes.len();
        self.bytes.resize(start + self.missing()?, 0);
        let (_, rest) = self.bytes.split_at_mut(start);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            recvmsg(from, &mut [IoSliceMut::new(rest)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        });
        let (count, open) = match received {
            Ok(message) => (message.bytes, message.bytes > 0),
            Err(Errno::AGAIN) => (0, true),
            Err(Errno::CONNRESET) => (0, false),
            Err(error) => return Err(error.into()),
        };
        self.bytes.truncate(start + count);
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        // A sender that takes its message apart could bring as many with each byte.
        if self.fds.len() > MOST_FDS {
            return Err(io::Error::other("a message brings more descriptors than any"));
        }
        Ok(open)
    }
}

fn send_all(to: BorrowedFd<'_>, mut bytes: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    while !bytes.is_empty() {
        match sendmsg(to, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
            Ok(count) => {
                bytes = bytes.get(count..).unwrap_or_default();
                ancillary.clear();
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let mut fds = [PollFd::new(&to, PollFlags::OUT)];
                rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_in_pieces_brings_no_more_descriptors_than_a_whole_one() {
        let pair = || std::os::unix::net::UnixStream::pair().unwrap();
        let ((frontend, far), (near, _backend)) = (pair(), pair());
        let fds = || (0..200).map(|_| frontend.as_fd().try_clone_to_owned().unwrap()).collect::<Vec<_>>();
        let mut message = Message::default();
        send_all(frontend.as_fd(), &[0], &fds()).unwrap();
        assert!(message.forward(far.as_fd(), near.as_fd()).unwrap());
        send_all(frontend.as_fd(), &[0], &fds()).unwrap();
        let error = message.forward(far.as_fd(), near.as_fd()).unwrap_err();
        assert_eq!(error.to_string(), "a message brings more descriptors than any");
    }
}
