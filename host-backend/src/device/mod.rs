// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device core: what the device answers, and what it says unasked.
//!
//! It is a state machine without I/O, clocks or threads. Bytes of a request go in; out comes the reply, or a call
//! that the host side has to make first. The caller makes that call, whenever and wherever it likes, and hands the
//! result back:
//!
//! ```
//! use vhost_device_irq::device::{Device, Step};
//! # let mut device = Device::new(Vec::new())?;
//! # let call_the_host = |_: &_| unreachable!();
//! let mut step = device.request(&[0; 8], 64);
//! let reply = loop {
//!     step = match step {
//!         Step::Done(reply) => break reply,
//!         Step::ReadMessages(call) => {
//!             let result = call_the_host(&call);
//!             device.messages_read(call, result)
//!         }
//!     };
//! };
//! assert_eq!(reply.bytes()[0], 1); // VIRTIO_IRQ_S_UNSUPPORTED: there is no request type 0
//! # Ok::<(), vhost_device_irq::device::DuplicateId>(())
//! ```
//!
//! A further kind of host call is a further kind of [`Step`], with a method of its own that takes its result.
#![warn(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic,
    clippy::cast_possible_truncation
)]

mod events;
mod function;
mod reply;
#[cfg(test)]
mod tests;

pub use function::Assigned;
pub use reply::Reply;

use events::EventQueue;
use function::Functions;
use virtio_irq_proto::wire::{self, ReplyHead, RequestHead, request_type};
use virtio_irq_proto::{
    Config, F_NATIVE, FunctionFlags, FunctionId, GetMessages, ListFunctions, Request, Status, VectorRange,
};
use zerocopy::FromBytes;

/// One virtio-irq device, as one guest sees it.
#[derive(Debug)]
pub struct Device {
    functions: Functions,
    events: EventQueue,
    /// Feature bits that the driver accepted.
    negotiated: u64,
    /// Counts resets, so that the result of a host call from before one is recognised.
    run: u64,
}

/// What [`Device::request`] comes to.
#[derive(Debug)]
#[must_use]
pub enum Step {
    /// The request is answered.
    Done(Reply),
    /// The host has to read messages; hand the result to [`Device::messages_read`].
    ReadMessages(ReadMessages),
}

/// A call to the host side: read the messages of these vectors as they are programmed now.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct ReadMessages {
    function: FunctionId,
    vectors: VectorRange,
    run: u64,
}

impl ReadMessages {
    /// Whose messages.
    pub fn function(&self) -> FunctionId {
        self.function
    }

    /// Which vectors. The function has all of them.
    pub fn vectors(&self) -> VectorRange {
        self.vectors
    }
}

/// A pair that the host programmed for one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Where the function writes.
    pub address: u64,
    /// What it writes.
    pub data: u32,
}

/// Why the host side has no messages to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// At least one of the vectors is not enabled.
    NotEnabled,
    /// The function left the host.
    Gone,
    /// Anything else. The host side reports what it was; the guest only learns that it happened.
    Failed,
}

/// Two functions have the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("two functions have the id {0}")]
pub struct DuplicateId(pub FunctionId);

impl Device {
    /// Greatest number of vectors that one request may name: the longest MSI-X table that PCI allows.
    pub const MAX_VECTORS: u16 = 2048;

    /// Number of leading bytes of a chain's device-readable part that [`Device::request`] looks at: one more than
    /// the longest request has, so that a longer one is recognised. The caller need not copy more.
    pub const READABLE_LIMIT: usize = Request::MAX_SIZE.saturating_add(1);

    /// A device with these functions.
    ///
    /// # Errors
    /// Two functions with one id.
    pub fn new(functions: Vec<Assigned>) -> Result<Self, DuplicateId> {
        Ok(Self {
            functions: Functions::new(functions)?,
            events: EventQueue::default(),
            negotiated: 0,
            run: 0,
        })
    }

    /// The configuration space. It never changes.
    pub fn config(&self) -> wire::Config {
        Config { max_sources: 0, max_vectors: Self::MAX_VECTORS }.to_wire()
    }

    /// The device's own feature bits.
    pub fn features(&self) -> u64 {
        1 << F_NATIVE
    }

    /// The driver accepted these feature bits. Bits of other owners (transport, ring) are ignored.
    pub fn negotiated(&mut self, features: u64) {
        self.negotiated = features & self.features();
    }

    /// Forgets everything about the guest: the messages that it was told, and events that it did not get.
    /// What is known about the host stays. The accepted features stay too: the transport says when those change.
    pub fn reset(&mut self) {
        self.events.clear();
        self.functions.forget_told();
        self.run = self.run.wrapping_add(1);
    }

    /// A request arrived: `readable` are the leading bytes of the chain's device-readable part (at least
    /// [`Device::READABLE_LIMIT`] of them where it is longer), `writable` is the length in bytes of its
    /// device-writable part.
    ///
    /// The order of the checks is part of the protocol (IRQ-DEV-10): it makes every answer predictable.
    pub fn request(&mut self, readable: &[u8], writable: usize) -> Step {
        if writable < size_of::<ReplyHead>() {
            return Step::Done(Reply::nothing());
        }
        self.dispatch(readable, writable).unwrap_or_else(|status| Step::Done(Reply::status(status)))
    }

    fn dispatch(&mut self, readable: &[u8], writable: usize) -> Result<Step, Status> {
        self.require_feature(readable)?;
        let request = Request::parse(readable)?;
        if let Request::GetMessages(get) = &request
            && get.vectors.count.get() > Self::MAX_VECTORS
        {
            return Err(Status::Invalid);
        }
        if writable < request.reply_size() {
            return Err(Status::BufferTooSmall);
        }
        match request {
            Request::ListFunctions(list) => Ok(Step::Done(self.list_functions(list))),
            Request::GetMessages(get) => self.get_messages(get),
        }
    }

    /// A type of a feature that was not negotiated is an unknown type.
    fn require_feature(&self, readable: &[u8]) -> Result<(), Status> {
        let Ok((head, _)) = RequestHead::read_from_prefix(readable) else {
            return Err(Status::Invalid);
        };
        let feature = match head.kind.get() {
            request_type::GET_MESSAGES => F_NATIVE,
            _ => return Ok(()),
        };
        if self.negotiated & (1 << feature) != 0 { Ok(()) } else { Err(Status::Unsupported) }
    }

    fn list_functions(&self, list: ListFunctions) -> Reply {
        let mut matching = self.functions.present().filter(|function| function.id >= list.start);
        let listed: Vec<wire::Function> = matching
            .by_ref()
            .take(usize::from(list.count.get()))
            .map(|function| function.to_wire())
            .collect();
        Reply::functions(&listed, matching.count())
    }

    fn get_messages(&mut self, get: GetMessages) -> Result<Step, Status> {
        let entry = self.functions.find(get.function)?;
        if get.vectors.end() > u32::from(entry.assigned.function.vector_count(get.vectors.irq_type)) {
            return Err(Status::NoVector);
        }
        if !entry.assigned.function.flags.contains(FunctionFlags::NATIVE) {
            return Err(Status::Unsupported);
        }
        if entry.assigned.refused {
            return Err(Status::NotIsolated);
        }
        Ok(Step::ReadMessages(ReadMessages { function: get.function, vectors: get.vectors, run: self.run }))
    }

    /// The host read the messages of `call`: one per vector, in their order.
    pub fn messages_read(&mut self, call: ReadMessages, result: Result<Vec<Pair>, Failure>) -> Step {
        Step::Done(self.tell_messages(&call, result).unwrap_or_else(Reply::status))
    }

    fn tell_messages(
        &mut self,
        call: &ReadMessages,
        result: Result<Vec<Pair>, Failure>,
    ) -> Result<Reply, Status> {
        let pairs = match result {
            Ok(pairs) => pairs,
            Err(Failure::NotEnabled) => return Err(Status::NotEnabled),
            Err(Failure::Failed) => return Err(Status::HostError),
            Err(Failure::Gone) => {
                if self.functions.mark_gone(call.function) {
                    self.events.function_gone(call.function);
                }
                return Err(Status::FunctionGone);
            }
        };
        // The guest of the request is gone; what it asked for must not count as told to the next one.
        if call.run != self.run || pairs.len() != call.vectors.len() {
            return Err(Status::HostError);
        }
        let told = self.functions.tell(call.function, call.vectors, &pairs)?;
        if let Some(stale) = told.stale {
            self.events.message_changed(call.function, stale);
        }
        Ok(Reply::messages(&told.messages))
    }

    /// The events that wait for a buffer, oldest first, at most `room` of them. They stay until
    /// [`Device::events_taken`] says that they were written.
    pub fn next_events(&self, room: usize) -> Vec<wire::Event> {
        self.events.peek(room)
    }

    /// Whether an event waits for a buffer.
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// The first `count` events of [`Device::next_events`] are in a buffer of the driver.
    pub fn events_taken(&mut self, count: usize) {
        self.events.take(count);
    }
}
