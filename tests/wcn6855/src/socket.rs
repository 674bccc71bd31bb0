// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The socket: one client after another, each with a card of its own.

use crate::session::{Session, Violation};
use crate::wire::{HEADER, Header, MAX_FDS, Malformed};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use std::io::{self, ErrorKind, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;
use thiserror::Error;
use tracing::{info, warn};

/// A client that does not take what it asked for within this time is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a conversation ended before the client wanted it to.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The client broke the protocol.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// The client closed the connection in the middle of a message.
    #[error("the connection ended in the middle of a message")]
    Broken,
    /// More descriptors came with a message than any may bring.
    #[error("more than {MAX_FDS} descriptors with one message")]
    Descriptors,
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
}

impl From<Malformed> for ServeError {
    fn from(malformed: Malformed) -> Self {
        Self::Violation(malformed.into())
    }
}

/// Serves clients until accepting one fails. Whatever a client does ends its own conversation at most.
///
/// # Errors
///
/// The error of `accept`.
pub fn serve(listener: &UnixListener) -> io::Result<()> {
    loop {
        let (stream, _) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        info!("a client connected");
        match serve_client(stream) {
            Ok(()) => info!("the client left"),
            Err(error) => warn!("the client is given up: {error}"),
        }
    }
}

/// Serves one client until it leaves.
///
/// # Errors
///
/// [`ServeError`] if it did not leave in good order.
pub fn serve_client(mut stream: UnixStream) -> Result<(), ServeError> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut session = Session::new();
    while let Some((header, descriptors)) = receive_header(&stream)? {
        // No longer than a message may be, which the header was checked for.
        let mut body = vec![0; header.body()];
        stream.read_exact(&mut body).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => ServeError::Broken,
            _ => ServeError::Io(error),
        })?;
        for message in session.take(&header, &body, descriptors)? {
            stream.write_all(&message)?;
        }
    }
    Ok(())
}

/// Waits for a header, and says how many descriptors came with it. They are closed at once: the card raises interrupts
/// and reaches memory by messages. Nothing if the client left instead.
fn receive_header(stream: &UnixStream) -> Result<Option<(Header, usize)>, ServeError> {
    let mut bytes = [0; HEADER];
    let mut have: usize = 0;
    let mut descriptors: usize = 0;
    while let Some(rest) = bytes.get_mut(have..).filter(|rest| !rest.is_empty()) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = match recvmsg(stream, &mut [IoSliceMut::new(rest)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(got) => got,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(io::Error::from(error).into()),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                descriptors = descriptors.saturating_add(received.count());
            }
        }
        if got.flags.contains(ReturnFlags::CTRUNC) || descriptors > MAX_FDS {
            return Err(ServeError::Descriptors);
        }
        match (got.bytes, have) {
            (0, 0) => return Ok(None),
            (0, _) => return Err(ServeError::Broken),
            (more, _) => have = have.saturating_add(more),
        }
    }
    Ok(Some((Header::parse(&bytes)?, descriptors)))
}
