// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Carries one vhost-user connection over to another socket.
//!
//! Only the control messages pass here. Rings, kicks and calls are memory and eventfds, which are handed through.

use rustix::event::{PollFd, PollFlags, poll};
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

/// Longest message of vhost-user, and then some.
const BUFFER_SIZE: usize = 8192;
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

/// Hands messages through both ways, until one side closes.
pub(super) fn run(far: BorrowedFd<'_>, near: BorrowedFd<'_>) -> io::Result<()> {
    loop {
        let mut fds = [PollFd::new(&far, PollFlags::IN), PollFd::new(&near, PollFlags::IN)];
        rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
        let [from_far, from_near] = fds.map(|fd| !fd.revents().is_empty());
        if from_far && !forward(far, near)? || from_near && !forward(near, far)? {
            end(far, near);
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

/// Hands on what one message brought; false at the end of the stream.
///
/// The kernel ends a read at the first byte that has descriptors, and at the last one before them, so descriptors
/// stay with their bytes.
fn forward(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<bool> {
    let mut bytes = [0; BUFFER_SIZE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(from, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    });
    let count = match received {
        Ok(message) => message.bytes,
        Err(rustix::io::Errno::AGAIN) => return Ok(true),
        Err(rustix::io::Errno::CONNRESET) => 0,
        Err(error) => return Err(error.into()),
    };
    let fds: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    if count == 0 {
        return Ok(false);
    }
    send_all(to, bytes.get(..count).unwrap_or(&bytes), &fds)?;
    Ok(true)
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
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => {
                let mut fds = [PollFd::new(&to, PollFlags::OUT)];
                rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
