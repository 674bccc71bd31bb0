// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Replies: what the device answers.

use crate::wire::{self, FunctionListHead, MessageListHead, ReplyHead, SourceListHead};
use core::fmt;
use zerocopy::FromBytes;

/// How a request ended. Which of them a request gets is decided by the order of checks (IRQ-DEV-10).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Status {
    /// Done; the rest of the reply is there.
    Ok = 0,
    /// The type is unknown, belongs to a feature that was not negotiated, or does not work for this function.
    Unsupported = 1,
    /// Wrong length, a reserved byte that is not zero, or a field with a value that its definition does not have.
    Invalid = 2,
    /// The device-writable part does not hold the reply.
    BufferTooSmall = 3,
    /// There is no function with this id.
    NoFunction = 4,
    /// The function does not have all of these vectors.
    NoVector = 5,
    /// A vector is not enabled: enable it in the function's capability and ask again.
    NotEnabled = 6,
    /// The function is not isolated and the operator did not allow that.
    NotIsolated = 7,
    /// The host failed; its log says why. The same request may work later.
    HostError = 8,
    /// The function is gone from the host.
    FunctionGone = 9,
    /// Not all of these sources are the driver's.
    NoSource = 10,
    /// The function's interrupts are in use in a way that excludes this one: enabled in its own capability, or
    /// allocated as sources of another type.
    Busy = 11,
    /// Fewer sources are left than the least that was asked for.
    NoSpace = 12,
    /// The host gives no block of consecutive messages.
    NotContiguous = 13,
    /// The VMM did not hand the function to the device yet. The same request may work later.
    NotReady = 14,
}

impl Status {
    /// Every status, in the order of the numbers.
    pub const ALL: [Self; 15] = [
        Self::Ok,
        Self::Unsupported,
        Self::Invalid,
        Self::BufferTooSmall,
        Self::NoFunction,
        Self::NoVector,
        Self::NotEnabled,
        Self::NotIsolated,
        Self::HostError,
        Self::FunctionGone,
        Self::NoSource,
        Self::Busy,
        Self::NoSpace,
        Self::NotContiguous,
        Self::NotReady,
    ];

    /// The status with this number on the wire.
    pub fn from_wire(raw: u16) -> Option<Self> {
        Self::ALL.get(usize::from(raw)).copied()
    }

    /// The number on the wire.
    pub const fn to_wire(self) -> u16 {
        self as u16
    }

    /// The head of a reply with this status.
    pub fn to_head(self) -> ReplyHead {
        ReplyHead { status: self.to_wire().into(), ..Default::default() }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "done",
            Self::Unsupported => "the device does not know the request",
            Self::Invalid => "the request is malformed",
            Self::BufferTooSmall => "the reply does not fit the buffer",
            Self::NoFunction => "there is no such function",
            Self::NoVector => "the function does not have these vectors",
            Self::NotEnabled => "the vector is not enabled yet",
            Self::NotIsolated => "the function is not isolated and the host refuses that",
            Self::HostError => "the host failed",
            Self::FunctionGone => "the function is gone",
            Self::NoSource => "there is no such source",
            Self::Busy => "the function's interrupts are in use otherwise",
            Self::NoSpace => "fewer sources are left than asked for",
            Self::NotContiguous => "the host gives no consecutive messages",
            Self::NotReady => "the host cannot reach the function yet",
        })
    }
}

/// Why a reply carries no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyError {
    /// The device refused the request with this status, which is not [`Status::Ok`].
    Refused(Status),
    /// The device refused with a status that this version does not know (IRQ-DRV-06).
    UnknownStatus(u16),
    /// The used length is not that of a reply to this request, or the content contradicts itself or the request.
    Malformed,
}

impl fmt::Display for ReplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(status) => status.fmt(f),
            Self::UnknownStatus(raw) => write!(f, "the device answered with the unknown status {raw}"),
            Self::Malformed => f.write_str("the device's reply is malformed"),
        }
    }
}

impl core::error::Error for ReplyError {}

/// Reads the status of a reply; `used` are the bytes that the device says it wrote.
///
/// # Errors
/// Anything but [`Status::Ok`]; fewer bytes than a head has (IRQ-DRV-07).
pub fn read_head(used: &[u8]) -> Result<(), ReplyError> {
    let (head, _) = ReplyHead::read_from_prefix(used).map_err(|_| ReplyError::Malformed)?;
    match Status::from_wire(head.status.get()) {
        Some(Status::Ok) => Ok(()),
        Some(status) => Err(ReplyError::Refused(status)),
        None => Err(ReplyError::UnknownStatus(head.status.get())),
    }
}

/// Reply to `LIST_FUNCTIONS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FunctionList<'a> {
    /// The functions, in ascending order of their ids (IRQ-DEV-21).
    pub functions: &'a [wire::Function],
    /// Number of functions with ids greater than the last one here (IRQ-DEV-22).
    pub remaining: u16,
}

impl<'a> FunctionList<'a> {
    /// Reads the bytes that the device says it wrote.
    ///
    /// # Errors
    /// Any status but [`Status::Ok`]; a length that `count` does not explain; ids that do not ascend, or more
    /// `remaining` ids than there are above the last one (IRQ-DRV-23).
    pub fn parse(used: &'a [u8]) -> Result<Self, ReplyError> {
        read_head(used)?;
        let (head, rest) = FunctionListHead::read_from_prefix(used).map_err(|_| ReplyError::Malformed)?;
        let functions = elements::<wire::Function>(rest, head.count.get())?;
        if !functions.is_sorted_by(|a, b| a.id.get() < b.id.get()) {
            return Err(ReplyError::Malformed);
        }
        let remaining = head.remaining.get();
        let room = functions.last().map_or(0, |last| u16::MAX.saturating_sub(last.id.get()));
        if remaining > room {
            return Err(ReplyError::Malformed);
        }
        Ok(Self { functions, remaining })
    }
}

/// Reply to `GET_MESSAGES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageList<'a> {
    /// One message per vector, in the order of the vectors (IRQ-DEV-28).
    pub messages: &'a [wire::Message],
}

impl<'a> MessageList<'a> {
    /// Reads the bytes that the device says it wrote.
    ///
    /// # Errors
    /// Any status but [`Status::Ok`]; a length that `count` does not explain.
    pub fn parse(used: &'a [u8]) -> Result<Self, ReplyError> {
        read_head(used)?;
        let (head, rest) = MessageListHead::read_from_prefix(used).map_err(|_| ReplyError::Malformed)?;
        Ok(Self { messages: elements(rest, head.count.get())? })
    }
}

/// Reply to `ALLOCATE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceList<'a> {
    /// The sources, in ascending order of their vectors and of their ids (IRQ-DEV-58).
    pub sources: &'a [wire::Source],
}

impl<'a> SourceList<'a> {
    /// Reads the bytes that the device says it wrote.
    ///
    /// # Errors
    /// Any status but [`Status::Ok`]; a length that `count` does not explain; vectors or ids that do not ascend
    /// (IRQ-DRV-33).
    pub fn parse(used: &'a [u8]) -> Result<Self, ReplyError> {
        read_head(used)?;
        let (head, rest) = SourceListHead::read_from_prefix(used).map_err(|_| ReplyError::Malformed)?;
        let sources = elements::<wire::Source>(rest, head.count.get())?;
        if !sources.is_sorted_by(|a, b| a.vector.get() < b.vector.get() && a.id.get() < b.id.get()) {
            return Err(ReplyError::Malformed);
        }
        Ok(Self { sources })
    }
}

/// Reads a reply that is only a head: that of every request without a result.
///
/// # Errors
/// Any status but [`Status::Ok`]; another length than that of a head (IRQ-DRV-07).
pub fn read_done(used: &[u8]) -> Result<(), ReplyError> {
    read_head(used)?;
    if used.len() == size_of::<ReplyHead>() { Ok(()) } else { Err(ReplyError::Malformed) }
}

fn elements<T>(rest: &[u8], count: u16) -> Result<&[T], ReplyError>
where
    T: FromBytes + zerocopy::Immutable + zerocopy::KnownLayout + zerocopy::Unaligned,
{
    <[T]>::ref_from_bytes_with_elems(rest, usize::from(count)).map_err(|_| ReplyError::Malformed)
}
