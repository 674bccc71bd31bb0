// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the daemon and its opener say to each other: one JSON text in each packet, with descriptors beside it.

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use virtio_irq_proto::PciAddress;

/// A path and what is around it.
const LIMIT: usize = 8192;
/// Both a request and a reply bring two at most.
const DESCRIPTORS: usize = 2;

/// With the socket for the reply as the first descriptor.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub(super) enum Request {
    /// Open `config` of sysfs.
    Config { function: Address },
    /// Take the VFIO device out of a process, whose pidfd is the second descriptor.
    Process { function: Address, pid: u32 },
    /// Take the VFIO device out of the process that a file names.
    PidFile { function: Address, path: PathBuf },
}

#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub(super) enum Reply {
    /// With the file; with the device and its owner's pidfd.
    Done,
    /// The file could not be opened.
    Errno(i32),
    /// The VMM does not have the device yet.
    NotYet(String),
    /// There will be none until somebody does something about it.
    Refused(String),
}

/// A function's address, as numbers.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Address {
    segment: u16,
    bus: u8,
    devfn: u8,
}

impl From<PciAddress> for Address {
    fn from(PciAddress { segment, bus, devfn }: PciAddress) -> Self {
        Self { segment, bus, devfn }
    }
}

impl From<Address> for PciAddress {
    fn from(Address { segment, bus, devfn }: Address) -> Self {
        Self { segment, bus, devfn }
    }
}

pub(super) fn send(
    socket: BorrowedFd<'_>,
    what: &impl Serialize,
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<()> {
    let text = serde_json::to_vec(what)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOBIG.into());
    }
    rustix::io::retry_on_intr(|| sendmsg(socket, &[IoSlice::new(&text)], &mut control, flags))?;
    Ok(())
}

/// The next packet; none when the other side is gone.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] for a packet that is something else; the next one may be none the worse.
pub(super) fn receive<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
    flags: RecvFlags,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut text = [0; LIMIT];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::io::retry_on_intr(|| {
        recvmsg(socket, &mut [IoSliceMut::new(&mut text)], &mut control, flags)
    })?;
    if message.bytes == 0 {
        return Ok(None);
    }
    let fds = control
        .drain()
        .flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
            _ => Vec::new(),
        })
        .collect();
    if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let text = text.get(..message.bytes).unwrap_or_default();
    let what =
        serde_json::from_slice(text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(Some((what, fds)))
}
