// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The messages of vfio-user, as QEMU's `docs/interop/vfio-user.rst` has them.
//!
//! Every length that a peer sends is compared with the one that its command demands before anything else is looked at.
//! A message that fails this is [`Malformed`]: what follows it in the stream cannot be trusted.

mod body;

pub use body::{Access, DeviceInfo, DmaAccess, DmaMap, DmaUnmap, IrqInfo, RegionInfo, SetIrqs, Version};

use body::{IRQ_DATA_BOOL, IRQ_DATA_EVENTFD, IRQ_DATA_MASK};
use thiserror::Error;
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Most bytes of data that one message carries, either way.
pub const MAX_DATA: u32 = 1 << 20;

/// Most bytes of a message: its header, the largest fixed part and the data.
pub const MAX_MESSAGE: u32 = MAX_DATA + 64;

/// Most descriptors that a message may bring.
pub const MAX_FDS: usize = 8;

/// The major version of the protocol.
pub const MAJOR: u16 = 0;

/// The minor version of the protocol.
pub const MINOR: u16 = 1;

/// Message types in [`Header::flags`].
pub const TYPE_MASK: u32 = 0xf;
/// A request.
pub const TYPE_REQUEST: u32 = 0;
/// A reply.
pub const TYPE_REPLY: u32 = 1;
/// The sender of a request wants no reply.
pub const NO_REPLY: u32 = 0x10;
/// A reply of failure; [`Header::error`] holds an errno.
pub const ERROR: u32 = 0x20;

/// Numbers of commands.
pub mod command {
    #![expect(missing_docs, reason = "the names are the protocol's")]
    pub const VERSION: u16 = 1;
    pub const DMA_MAP: u16 = 2;
    pub const DMA_UNMAP: u16 = 3;
    pub const GET_INFO: u16 = 4;
    pub const GET_REGION_INFO: u16 = 5;
    pub const GET_IRQ_INFO: u16 = 7;
    pub const SET_IRQS: u16 = 8;
    pub const REGION_READ: u16 = 9;
    pub const REGION_WRITE: u16 = 10;
    pub const DMA_READ: u16 = 11;
    pub const DMA_WRITE: u16 = 12;
    pub const RESET: u16 = 13;
}

/// What a peer sent is not vfio-user.
#[derive(Debug, Error, PartialEq, Eq, Clone, Copy)]
pub enum Malformed {
    /// A header announces a message of impossible length.
    #[error("a message of {0} bytes; 16 to {MAX_MESSAGE} are possible")]
    Size(u32),
    /// A header is neither that of a request nor that of a reply.
    #[error("message flags {0:#x}: neither request nor reply")]
    Type(u32),
    /// A message's length is not what its command demands.
    #[error("command {command}: {length} bytes after the header are not what it takes")]
    Length {
        /// The command.
        command: u16,
        /// Length of the message without its header.
        length: usize,
    },
    /// A message brought descriptors that its command does not take.
    #[error("command {command}: {count} descriptors are not what it takes")]
    Descriptors {
        /// The command.
        command: u16,
        /// How many there were.
        count: usize,
    },
    /// The version message's capabilities are no JSON object that ends in a zero byte.
    #[error("the capabilities are not a JSON object that ends in a zero byte")]
    Capabilities,
}

/// The beginning of every message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Chosen by the sender of the request, repeated in the reply. Both sides count for themselves.
    pub id: U16,
    /// See [`command`].
    pub command: U16,
    /// Length of the message, with this header.
    pub size: U32,
    /// Type, [`NO_REPLY`], [`ERROR`].
    pub flags: U32,
    /// The errno of a failure.
    pub error: U32,
}

/// Length of a [`Header`].
pub const HEADER: usize = size_of::<Header>();
const _: () = assert!(HEADER == 16);

impl Header {
    /// Reads a header and checks what can be checked without its message.
    ///
    /// # Errors
    ///
    /// [`Malformed::Size`], [`Malformed::Type`].
    pub fn parse(bytes: &[u8; HEADER]) -> Result<Self, Malformed> {
        let header: Self = zerocopy::transmute!(*bytes);
        let size = header.size.get();
        if size > MAX_MESSAGE || (size as usize) < HEADER {
            return Err(Malformed::Size(size));
        }
        match header.flags.get() & TYPE_MASK {
            TYPE_REQUEST | TYPE_REPLY => Ok(header),
            _ => Err(Malformed::Type(header.flags.get())),
        }
    }

    /// Length of what follows the header.
    #[must_use]
    pub fn body(&self) -> usize {
        (self.size.get() as usize).saturating_sub(HEADER)
    }

    /// Whether this is a reply.
    #[must_use]
    pub fn is_reply(&self) -> bool {
        self.flags.get() & TYPE_MASK == TYPE_REPLY
    }

    /// Whether a request wants a reply.
    #[must_use]
    pub fn wants_reply(&self) -> bool {
        self.flags.get() & NO_REPLY == 0
    }

    /// The errno of a reply of failure.
    #[must_use]
    pub fn failure(&self) -> Option<u32> {
        (self.flags.get() & ERROR != 0).then(|| self.error.get())
    }
}

/// Puts a message together. `body` must be no longer than [`MAX_MESSAGE`] allows, which the model's own messages are.
fn message(id: u16, command: u16, flags: u32, error: u32, body: &[&[u8]]) -> Vec<u8> {
    let length = body.iter().fold(HEADER, |sum, part| sum.saturating_add(part.len()));
    let header = Header {
        id: id.into(),
        command: command.into(),
        size: u32::try_from(length).unwrap_or(u32::MAX).into(),
        flags: flags.into(),
        error: error.into(),
    };
    let mut bytes = Vec::with_capacity(length);
    bytes.extend_from_slice(header.as_bytes());
    for part in body {
        bytes.extend_from_slice(part);
    }
    bytes
}

/// A request of this side.
#[must_use]
pub fn request(id: u16, command: u16, body: &[&[u8]]) -> Vec<u8> {
    message(id, command, TYPE_REQUEST, 0, body)
}

/// The reply to the request with `header`.
#[must_use]
pub fn reply(header: &Header, body: &[&[u8]]) -> Vec<u8> {
    message(header.id.get(), header.command.get(), TYPE_REPLY, 0, body)
}

/// The reply to the request with `header` that it failed.
#[must_use]
pub fn failure(header: &Header, errno: u32) -> Vec<u8> {
    message(header.id.get(), header.command.get(), TYPE_REPLY | ERROR, errno, &[])
}

/// A request of the client whose lengths are right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// The client introduces itself.
    Version(Version),
    /// Memory came.
    DmaMap(DmaMap),
    /// Memory went.
    DmaUnmap(DmaUnmap),
    /// What are you?
    GetInfo,
    /// What is this region?
    GetRegionInfo(RegionInfo),
    /// What are these interrupts?
    GetIrqInfo(IrqInfo),
    /// Interrupts are to be raised so.
    SetIrqs(SetIrqs),
    /// Read a region.
    RegionRead(Access),
    /// Write a region.
    RegionWrite(Access, &'a [u8]),
    /// Back to how you were born.
    Reset,
    /// A command that this model does not have.
    Unknown,
}

impl<'a> Request<'a> {
    /// Reads the body of a request that brought `descriptors` descriptors.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if the lengths do not fit the command.
    pub fn parse(command: u16, body: &'a [u8], descriptors: usize) -> Result<Self, Malformed> {
        let wrong = Malformed::Length { command, length: body.len() };
        let taken = |most: usize| {
            if descriptors <= most {
                Ok(())
            } else {
                Err(Malformed::Descriptors { command, count: descriptors })
            }
        };
        if !matches!(command, command::DMA_MAP | command::SET_IRQS) {
            taken(0)?;
        }
        match command {
            command::VERSION => {
                let (version, capabilities) = head::<Version>(body).ok_or(wrong)?;
                check_capabilities(capabilities)?;
                Ok(Self::Version(version))
            }
            command::DMA_MAP => {
                taken(1)?;
                whole(body).map(Self::DmaMap).ok_or(wrong)
            }
            command::DMA_UNMAP => whole(body).map(Self::DmaUnmap).ok_or(wrong),
            command::GET_INFO => whole::<DeviceInfo>(body).map(|_| Self::GetInfo).ok_or(wrong),
            command::GET_REGION_INFO => whole(body).map(Self::GetRegionInfo).ok_or(wrong),
            command::GET_IRQ_INFO => whole(body).map(Self::GetIrqInfo).ok_or(wrong),
            command::SET_IRQS => {
                let (set, data) = head::<SetIrqs>(body).ok_or(wrong)?;
                let (data_length, most) = match set.flags.get() & IRQ_DATA_MASK {
                    IRQ_DATA_BOOL => (set.count.get() as usize, 0),
                    IRQ_DATA_EVENTFD => (0, set.count.get() as usize),
                    // None, or nonsense that is refused later.
                    _ => (0, 0),
                };
                if data.len() != data_length {
                    return Err(wrong);
                }
                taken(most)?;
                Ok(Self::SetIrqs(set))
            }
            command::REGION_READ => {
                let access = whole::<Access>(body).ok_or(wrong)?;
                if access.count.get() > MAX_DATA { Err(wrong) } else { Ok(Self::RegionRead(access)) }
            }
            command::REGION_WRITE => {
                let (access, data) = head::<Access>(body).ok_or(wrong)?;
                if access.count.get() as usize != data.len() || access.count.get() > MAX_DATA {
                    return Err(wrong);
                }
                Ok(Self::RegionWrite(access, data))
            }
            command::RESET => {
                if body.is_empty() {
                    Ok(Self::Reset)
                } else {
                    Err(wrong)
                }
            }
            _ => Ok(Self::Unknown),
        }
    }
}

/// Reads the body of the reply to a DMA read of `count` bytes.
///
/// # Errors
///
/// [`Malformed::Length`] if it does not have them.
pub fn dma_read_reply(body: &[u8], count: usize) -> Result<&[u8], Malformed> {
    let wrong = Malformed::Length { command: command::DMA_READ, length: body.len() };
    let (access, data) = head::<DmaAccess>(body).ok_or(wrong)?;
    if data.len() != count || access.count.get() != count as u64 {
        return Err(wrong);
    }
    Ok(data)
}

/// Reads the body of the reply to a DMA write. The protocol has the address and the count there, QEMU leaves both out.
///
/// # Errors
///
/// [`Malformed::Length`] if it is neither.
pub fn dma_write_reply(body: &[u8]) -> Result<(), Malformed> {
    if body.is_empty() || body.len() == size_of::<DmaAccess>() {
        Ok(())
    } else {
        Err(Malformed::Length { command: command::DMA_WRITE, length: body.len() })
    }
}

/// The capabilities of this side, as they follow [`Version`].
#[must_use]
pub fn capabilities() -> Vec<u8> {
    let object = serde_json::json!({
        "capabilities": { "max_msg_fds": MAX_FDS, "max_data_xfer_size": MAX_DATA }
    });
    let mut text = object.to_string().into_bytes();
    text.push(0);
    text
}

/// The model needs none of them, but they must be what they are said to be.
fn check_capabilities(bytes: &[u8]) -> Result<(), Malformed> {
    if bytes.is_empty() {
        return Ok(());
    }
    let text = bytes.strip_suffix(&[0]).ok_or(Malformed::Capabilities)?;
    match serde_json::from_slice(text) {
        Ok(serde_json::Value::Object(_)) => Ok(()),
        _ => Err(Malformed::Capabilities),
    }
}

fn head<T: FromBytes + Unaligned + Immutable + KnownLayout>(body: &[u8]) -> Option<(T, &[u8])> {
    T::read_from_prefix(body).ok()
}

fn whole<T: FromBytes + Unaligned + Immutable + KnownLayout>(body: &[u8]) -> Option<T> {
    T::read_from_bytes(body).ok()
}
