// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests: what a driver asks.

use crate::wire::{self, RequestHead, request_type};
use crate::{FunctionId, FunctionList, IrqType, MessageList, ReplyError, Status, VectorRange};
use core::num::NonZeroU16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A request that is well formed: every field has a value that the specification allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Which functions are there?
    ListFunctions(ListFunctions),
    /// Which messages raise these vectors?
    GetMessages(GetMessages),
}

/// Asks for functions, in ascending order of their ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListFunctions {
    /// Least id of interest.
    pub start: FunctionId,
    /// Greatest number of functions to return.
    pub count: NonZeroU16,
}

/// Asks for the messages of a range of vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GetMessages {
    /// Whose vectors.
    pub function: FunctionId,
    /// Which vectors.
    pub vectors: VectorRange,
}

impl Request {
    /// Size in bytes of the longest request. A driver's buffer of this size holds any of them.
    pub const MAX_SIZE: usize = 16;

    /// Reads the device-readable part of a chain.
    ///
    /// # Errors
    /// The status to answer with, in the order that IRQ-DEV-10 fixes: [`Status::Invalid`] without a whole head,
    /// [`Status::Unsupported`] for an unknown type, [`Status::Invalid`] for a wrong length, a reserved byte that
    /// is not zero, or a field with a value that its definition does not have.
    pub fn parse(bytes: &[u8]) -> Result<Self, Status> {
        let (head, _) = RequestHead::read_from_prefix(bytes).map_err(|_| Status::Invalid)?;
        match head.kind.get() {
            request_type::LIST_FUNCTIONS => {
                let raw: wire::ListFunctions = exact(bytes)?;
                zero(&raw.head.reserved)?;
                zero(&raw.reserved)?;
                let count = NonZeroU16::new(raw.count.get()).ok_or(Status::Invalid)?;
                Ok(Self::ListFunctions(ListFunctions { start: FunctionId(raw.start.get()), count }))
            }
            request_type::GET_MESSAGES => {
                let raw: wire::GetMessages = exact(bytes)?;
                zero(&raw.head.reserved)?;
                zero(&[raw.reserved])?;
                let irq_type = IrqType::from_wire(raw.irq_type).ok_or(Status::Invalid)?;
                let vectors = VectorRange::of_messages(irq_type, raw.first.get(), raw.count.get())?;
                Ok(Self::GetMessages(GetMessages { function: FunctionId(raw.function.get()), vectors }))
            }
            _ => Err(Status::Unsupported),
        }
    }

    /// Number of device-writable bytes that the request needs: its longest reply.
    pub fn reply_size(&self) -> usize {
        match self {
            Self::ListFunctions(list) => list.reply_size(),
            Self::GetMessages(get) => get.reply_size(),
        }
    }
}

impl ListFunctions {
    /// Number of device-writable bytes that the request needs.
    pub fn reply_size(&self) -> usize {
        size_of::<wire::Function>()
            .saturating_mul(usize::from(self.count.get()))
            .saturating_add(size_of::<wire::FunctionListHead>())
    }

    /// The request as it lies in memory.
    pub fn to_wire(self) -> wire::ListFunctions {
        wire::ListFunctions {
            head: head(request_type::LIST_FUNCTIONS),
            start: self.start.0.into(),
            count: self.count.get().into(),
            ..Default::default()
        }
    }

    /// Reads the reply to this request; `used` are the bytes that the device says it wrote.
    ///
    /// # Errors
    /// Those of [`FunctionList::parse`], and a list that is longer than asked for or begins below `start`
    /// (IRQ-DRV-23).
    pub fn parse_reply<'a>(&self, used: &'a [u8]) -> Result<FunctionList<'a>, ReplyError> {
        let list = FunctionList::parse(used)?;
        let fits = list.functions.len() <= usize::from(self.count.get());
        let begins_in_range = list.functions.first().is_none_or(|first| first.id.get() >= self.start.0);
        if fits && begins_in_range { Ok(list) } else { Err(ReplyError::Malformed) }
    }
}

impl GetMessages {
    /// Number of device-writable bytes that the request needs.
    pub fn reply_size(&self) -> usize {
        size_of::<wire::Message>()
            .saturating_mul(self.vectors.len())
            .saturating_add(size_of::<wire::MessageListHead>())
    }

    /// The request as it lies in memory.
    pub fn to_wire(self) -> wire::GetMessages {
        wire::GetMessages {
            head: head(request_type::GET_MESSAGES),
            function: self.function.0.into(),
            irq_type: self.vectors.irq_type.to_wire(),
            first: self.vectors.first.into(),
            count: self.vectors.count.get().into(),
            ..Default::default()
        }
    }

    /// Reads the reply to this request; `used` are the bytes that the device says it wrote.
    ///
    /// # Errors
    /// Those of [`MessageList::parse`], and another number of messages than asked for (IRQ-DRV-25).
    pub fn parse_reply<'a>(&self, used: &'a [u8]) -> Result<MessageList<'a>, ReplyError> {
        let list = MessageList::parse(used)?;
        if list.messages.len() == self.vectors.len() { Ok(list) } else { Err(ReplyError::Malformed) }
    }
}

fn head(kind: u16) -> RequestHead {
    RequestHead { kind: kind.into(), ..Default::default() }
}

fn exact<T: FromBytes + IntoBytes + KnownLayout + Immutable>(bytes: &[u8]) -> Result<T, Status> {
    T::read_from_bytes(bytes).map_err(|_| Status::Invalid)
}

fn zero(reserved: &[u8]) -> Result<(), Status> {
    if reserved.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(Status::Invalid) }
}
