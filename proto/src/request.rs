// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests: what a driver asks.

use crate::wire::{self, RequestHead, request_type};
use crate::{
    Delivery, FunctionId, FunctionList, IrqType, Layout, MessageList, ReplyError, SourceList, SourceRange,
    Status, VectorRange, read_done,
};
use core::num::NonZeroU16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A request that is well formed: every field has a value that the specification allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// LIST_FUNCTIONS: which functions are there?
    ListFunctions(ListFunctions),
    /// GET_MESSAGES: which messages raise these vectors?
    GetMessages(GetMessages),
    /// ALLOCATE: give me sources.
    Allocate(Allocate),
    /// FREE: I need these sources no more. All of them or none (IRQ-DEV-68).
    Free(SourceRange),
    /// MASK: hold these sources' interrupts back (IRQ-DEV-70). All of them or none.
    Mask(SourceRange),
    /// UNMASK: deliver these sources' interrupts, and what was held back (IRQ-DEV-53). A pin that the host does not arm
    /// stays masked (IRQ-DEV-71).
    Unmask(SourceRange),
    /// RESET_FUNCTION: I need no source of this function any more, also none that I do not know of (IRQ-DRV-44).
    ResetFunction(ResetFunction),
}

/// Asks for functions, in ascending order of their ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListFunctions {
    /// Least id of interest.
    pub start: FunctionId,
    /// Greatest number of functions to return. The reply has 32 bytes for each.
    pub count: NonZeroU16,
}

/// Asks for the messages of a range of vectors, no more than `max_vectors` (IRQ-DRV-24). All of them are told or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GetMessages {
    /// Whose vectors.
    pub function: FunctionId,
    /// Which vectors.
    pub vectors: VectorRange,
}

/// Asks for sources of a function: at least `least` are given or none (IRQ-DEV-58, IRQ-DEV-67).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocate {
    /// Whose vectors.
    pub function: FunctionId,
    /// Of which type.
    pub irq_type: IrqType,
    /// How their messages must relate.
    pub layout: Layout,
    /// Least number of sources that is of use.
    pub least: NonZeroU16,
    /// Greatest number of sources that is of use, at least `least` and at most `max_vectors` (IRQ-DRV-32).
    pub most: NonZeroU16,
    /// Least vector of interest; the lowest from here on that are to be had are given (IRQ-DEV-60).
    pub first: u16,
    /// How their interrupts are delivered.
    pub delivery: Delivery,
}

/// Does something with a range of sources: frees, masks or unmasks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceRequest {
    /// FREE
    Free,
    /// MASK
    Mask,
    /// UNMASK
    Unmask,
}

/// Frees all sources of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetFunction {
    /// Whose sources.
    pub function: FunctionId,
}

impl Request {
    /// Size in bytes of the longest request. A driver's buffer of this size holds any of them.
    pub const MAX_SIZE: usize = size_of::<wire::Allocate>();

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
            request_type::ALLOCATE => Allocate::parse(bytes).map(Self::Allocate),
            request_type::FREE => source_range(bytes).map(Self::Free),
            request_type::MASK => source_range(bytes).map(Self::Mask),
            request_type::UNMASK => source_range(bytes).map(Self::Unmask),
            request_type::RESET_FUNCTION => {
                let raw: wire::ResetFunction = exact(bytes)?;
                zero(&raw.head.reserved)?;
                zero(&raw.reserved)?;
                Ok(Self::ResetFunction(ResetFunction { function: FunctionId(raw.function.get()) }))
            }
            _ => Err(Status::Unsupported),
        }
    }

    /// Number of device-writable bytes that the request needs: its longest reply.
    pub fn reply_size(&self) -> usize {
        match self {
            Self::ListFunctions(list) => list.reply_size(),
            Self::GetMessages(get) => get.reply_size(),
            Self::Allocate(allocate) => allocate.reply_size(),
            Self::Free(_) | Self::Mask(_) | Self::Unmask(_) | Self::ResetFunction(_) => {
                size_of::<wire::ReplyHead>()
            }
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

impl Allocate {
    fn parse(bytes: &[u8]) -> Result<Self, Status> {
        let raw: wire::Allocate = exact(bytes)?;
        zero(&raw.head.reserved)?;
        zero(&raw.reserved)?;
        let least = NonZeroU16::new(raw.least.get()).ok_or(Status::Invalid)?;
        let most = NonZeroU16::new(raw.most.get()).filter(|most| *most >= least).ok_or(Status::Invalid)?;
        Ok(Self {
            function: FunctionId(raw.function.get()),
            irq_type: IrqType::from_wire(raw.irq_type).ok_or(Status::Invalid)?,
            layout: Layout::from_wire(raw.layout).ok_or(Status::Invalid)?,
            least,
            most,
            first: raw.first.get(),
            delivery: Delivery::from_wire(raw.delivery).ok_or(Status::Invalid)?,
        })
    }

    /// Number of device-writable bytes that the request needs.
    pub fn reply_size(&self) -> usize {
        size_of::<wire::Source>()
            .saturating_mul(usize::from(self.most.get()))
            .saturating_add(size_of::<wire::SourceListHead>())
    }

    /// The request as it lies in memory.
    pub fn to_wire(self) -> wire::Allocate {
        wire::Allocate {
            head: head(request_type::ALLOCATE),
            function: self.function.0.into(),
            irq_type: self.irq_type.to_wire(),
            layout: self.layout.to_wire(),
            least: self.least.get().into(),
            most: self.most.get().into(),
            first: self.first.into(),
            delivery: self.delivery.to_wire(),
            ..Default::default()
        }
    }

    /// Reads the reply to this request; `used` are the bytes that the device says it wrote.
    ///
    /// # Errors
    /// Those of [`SourceList::parse`]; fewer sources than `least` or more than `most`; a vector below `first`; where a
    /// block was asked for, sources that are none (IRQ-DRV-33).
    pub fn parse_reply<'a>(&self, used: &'a [u8]) -> Result<SourceList<'a>, ReplyError> {
        let list = SourceList::parse(used)?;
        let wanted = usize::from(self.least.get())..=usize::from(self.most.get());
        let begins_in_range = list.sources.first().is_some_and(|source| source.vector.get() >= self.first);
        let as_laid_out = self.layout == Layout::Any || list.sources.is_sorted_by(follow);
        if wanted.contains(&list.sources.len()) && begins_in_range && as_laid_out {
            Ok(list)
        } else {
            Err(ReplyError::Malformed)
        }
    }
}

/// Whether `b` is the source after `a` in a block.
fn follow(a: &wire::Source, b: &wire::Source) -> bool {
    a.vector.get().checked_add(1) == Some(b.vector.get())
        && a.message.address == b.message.address
        && a.message.data.get().checked_add(1) == Some(b.message.data.get())
}

impl SourceRequest {
    /// The request for these sources as it lies in memory.
    pub fn to_wire(self, sources: SourceRange) -> wire::Sources {
        let kind = match self {
            Self::Free => request_type::FREE,
            Self::Mask => request_type::MASK,
            Self::Unmask => request_type::UNMASK,
        };
        wire::Sources {
            head: head(kind),
            first: sources.first.0.into(),
            count: sources.count.get().into(),
            ..Default::default()
        }
    }

    /// Reads the reply.
    ///
    /// # Errors
    /// Those of [`read_done`].
    pub fn parse_reply(self, used: &[u8]) -> Result<(), ReplyError> {
        read_done(used)
    }
}

impl ResetFunction {
    /// The request as it lies in memory.
    pub fn to_wire(self) -> wire::ResetFunction {
        wire::ResetFunction {
            head: head(request_type::RESET_FUNCTION),
            function: self.function.0.into(),
            ..Default::default()
        }
    }
}

fn source_range(bytes: &[u8]) -> Result<SourceRange, Status> {
    let raw: wire::Sources = exact(bytes)?;
    zero(&raw.head.reserved)?;
    zero(&raw.reserved)?;
    SourceRange::new(raw.first.get(), raw.count.get())
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
