// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device core: what the device answers, and what it says unasked.
//!
//! It is a state machine without I/O, clocks or threads. Bytes of a request go in; out comes the reply, or a call
//! that the host side has to make first. The caller makes that call, whenever and wherever it likes, and hands the
//! result back:
//!
//! ```
//! use vhost_device_irq::device::{Device, Quota, Step};
//! # let mut device = Device::new(Vec::new(), Quota { guest: 8, function: 8 })?;
//! # let call_the_host = |_: &_| unreachable!();
//! let mut step = device.request(&[0; 8], 64);
//! let reply = loop {
//!     step = match step {
//!         Step::Done(reply) => break reply,
//!         Step::ReadMessages(call) => {
//!             let result = call_the_host(&call);
//!             device.messages_read(call, result)
//!         }
//!         // and so on for every other kind of call
//! #       _ => unreachable!(),
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

mod allocate;
mod events;
mod function;
mod inspect;
#[cfg(test)]
mod inspect_tests;
mod limit;
mod membership;
mod reply;
mod snapshot;
#[cfg(test)]
mod source_tests;
mod sources;
mod step;
#[cfg(test)]
mod tests;

pub use allocate::{Attach, Enable, Release, UnmaskPin};
pub use function::Assigned;
pub use inspect::Inspection;
pub use limit::RateLimit;
pub use reply::Reply;
pub use snapshot::{FunctionState, Snapshot, SourceState};
pub use sources::{Detach, Lost, Quota, SourceCounts, Vectors, Watch};
pub use step::{Failure, Pair, ReadMessages, Step};

use events::EventQueue;
use function::Functions;
use sources::Sources;
use std::time::Instant;
use virtio_irq_proto::wire::{self, ReplyHead, RequestHead, request_type};
use virtio_irq_proto::{
    Config, F_EVENT, F_NATIVE, FunctionFlags, FunctionId, GetMessages, IrqType, ListFunctions, Request,
    SourceId, Status,
};
use zerocopy::FromBytes;

/// One virtio-irq device, as one guest sees it.
#[derive(Debug)]
pub struct Device {
    functions: Functions,
    sources: Sources,
    events: EventQueue,
    /// The device's own feature bits. A function that leaves takes none along (IRQ-DEV-06).
    features: u64,
    /// Feature bits that the driver accepted.
    negotiated: u64,
    run: Run,
}

/// Tells the results of host calls apart that were begun before something that the host side did not know of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Run {
    resets: u64,
    stops: u64,
}

/// Two functions have the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("two functions have the id {0}")]
pub struct DuplicateId(pub FunctionId);

impl Device {
    /// Greatest number of vectors that one request may name: the longest MSI-X table that PCI allows.
    pub const MAX_VECTORS: u16 = 2048;

    /// Number of leading bytes of a chain's device-readable part that [`Device::request`] looks at: one more than
    /// the longest request has, so that a longer one is recognized. The caller need not copy more.
    pub const READABLE_LIMIT: usize = Request::MAX_SIZE.saturating_add(1);

    /// A device with these functions. Where the quota allows no source it delivers no events (IRQ-DEV-11, IRQ-DEV-48),
    /// whatever the flags of the functions say.
    ///
    /// # Errors
    /// Two functions with one id.
    pub fn new(mut functions: Vec<Assigned>, quota: Quota) -> Result<Self, DuplicateId> {
        if quota.guest == 0 || quota.function == 0 {
            for Assigned { function, .. } in &mut functions {
                function.flags = function.flags.without(FunctionFlags::EVENT);
            }
        }
        let any_source = functions.iter().any(|a| a.function.flags.contains(FunctionFlags::EVENT));
        Ok(Self {
            functions: Functions::new(functions)?,
            sources: Sources::new(quota),
            events: EventQueue::default(),
            features: 1 << F_NATIVE | u64::from(any_source) << F_EVENT,
            negotiated: 0,
            run: Run::default(),
        })
    }

    /// The configuration space. It never changes.
    pub fn config(&self) -> wire::Config {
        let max_sources = if self.features & 1 << F_EVENT == 0 { 0 } else { self.sources.quota().guest };
        Config { max_sources, max_vectors: Self::MAX_VECTORS }.to_wire()
    }

    /// The device's own feature bits.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The driver accepted these feature bits. Bits of other owners (transport, ring) are ignored.
    pub fn negotiated(&mut self, features: u64) {
        self.negotiated = features & self.features;
    }

    /// Forgets everything about the guest: the messages that it was told, and events that it did not get.
    /// What is known about the host stays. The accepted features stay too: the transport says when those change.
    ///
    /// Returns what the host has to release: every source that the guest held.
    pub fn reset(&mut self) -> Vec<Detach> {
        self.events.clear();
        self.functions.reset();
        self.run.resets = self.run.resets.wrapping_add(1);
        self.sources.clear()
    }

    /// The queues stopped, and the transport cannot tell whether the driver reset the device or the virtual machine is
    /// paused. What was told and what waits to be told stays, for [`Device::reset`] when it turns out to be a reset
    /// (IRQ-DEV-43).
    ///
    /// Sources do not stay, because they are held on the host: until the next driver comes, if one comes at all, the
    /// function would be kept from whoever has it next in the same machine (a VMM cannot enable INTx again at a reboot
    /// while MSI is enabled), and its interrupts would go on costing. So the host gets back all of it, and a driver
    /// that was only paused is told of each (IRQ-DEV-61).
    ///
    /// Returns what the host has to release, of which [`Device::lost_released`] is to hear.
    pub fn stopped(&mut self) -> Lost {
        self.run.stops = self.run.stops.wrapping_add(1);
        self.sources.revoke_all()
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
        let count = match &request {
            Request::GetMessages(get) => get.vectors.count.get(),
            Request::Allocate(allocate) => allocate.most.get(),
            _ => 0,
        };
        if count > Self::MAX_VECTORS {
            return Err(Status::Invalid);
        }
        if writable < request.reply_size() {
            return Err(Status::BufferTooSmall);
        }
        match request {
            Request::ListFunctions(list) => Ok(Step::Done(self.list_functions(list))),
            Request::GetMessages(get) => self.get_messages(get),
            Request::Allocate(allocate) => self.allocate(allocate),
            Request::Free(range) => self.free(range),
            Request::Mask(range) => self.mask(range),
            Request::Unmask(range) => self.unmask(range),
            Request::ResetFunction(reset) => self.reset_function(reset.function),
        }
    }

    /// A type of a feature that was not negotiated is an unknown type.
    fn require_feature(&self, readable: &[u8]) -> Result<(), Status> {
        let Ok((head, _)) = RequestHead::read_from_prefix(readable) else {
            return Err(Status::Invalid);
        };
        let feature = match head.kind.get() {
            request_type::GET_MESSAGES => F_NATIVE,
            request_type::ALLOCATE..=request_type::RESET_FUNCTION => F_EVENT,
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
        self.require(get.function, FunctionFlags::NATIVE, get.vectors.irq_type, get.vectors.end())?;
        Ok(Step::ReadMessages(ReadMessages { function: get.function, vectors: get.vectors, run: self.run }))
    }

    /// What requests about vectors of a function have in common: it is there, it has the vectors below `end`, the
    /// device can do that with it, and it is allowed.
    fn require(
        &self,
        function: FunctionId,
        ability: FunctionFlags,
        irq_type: IrqType,
        end: u32,
    ) -> Result<(), Status> {
        let Assigned { function, refused } = &self.functions.find(function)?.assigned;
        if end > u32::from(function.vector_count(irq_type)) {
            return Err(Status::NoVector);
        }
        if !function.flags.contains(ability) {
            return Err(Status::Unsupported);
        }
        if *refused { Err(Status::NotIsolated) } else { Ok(()) }
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
        let pairs = result.map_err(|failure| match failure {
            Failure::NotEnabled => Status::NotEnabled,
            other => self.failed(call.function, other),
        })?;
        // The guest of the request is gone; what it asked for must not count as told to the next one.
        if call.run.resets != self.run.resets || pairs.len() != call.vectors.len() {
            return Err(Status::HostError);
        }
        let told = self.functions.tell(call.function, call.vectors, &pairs)?;
        if let Some(stale) = told.stale {
            self.events.message_changed(call.function, stale);
        }
        Ok(Reply::messages(&told.messages))
    }

    /// The status that says so to the driver, for a failure that its request has no status of its own for.
    fn failed(&mut self, function: FunctionId, failure: Failure) -> Status {
        if failure == Failure::Gone {
            self.function_gone(function);
            return Status::FunctionGone;
        }
        Status::HostError
    }

    /// The function left the host, and with it everything that the guest had of it.
    pub fn function_gone(&mut self, function: FunctionId) {
        if self.functions.mark_gone(function) {
            self.sources.drop_function(function);
            self.events.function_gone(function);
        }
    }

    /// Delays what a source fires more often than this (IRQ-DEV-56). Nothing is lost: it is pending meanwhile, as when the
    /// driver is slow.
    pub fn limit_rate(&mut self, limit: RateLimit) {
        self.sources.limit(limit);
    }

    /// Whether what [`Device::fired`] is told of the time means anything.
    pub fn is_rate_limited(&self) -> bool {
        self.sources.is_limited()
    }

    /// A source fired at `now`: an eventfd of it was signalled.
    pub fn fired(&mut self, source: SourceId, now: Instant) -> Watch {
        self.sources.fired(source, now)
    }

    /// When [`Device::resumed`] will next give a source, if there is one to give.
    pub fn resumes_at(&self) -> Option<Instant> {
        self.sources.resumes_at()
    }

    /// A source that paused and is to be watched again at `now`. To be called until there is none.
    pub fn resumed(&mut self, now: Instant) -> Option<SourceId> {
        self.sources.resume(now)
    }

    /// The VMM or the guest took the function's interrupts away underneath: its sources end.
    pub fn revoked(&mut self, function: FunctionId) {
        self.sources.revoke(function);
    }

    /// What the host side has to release of sources that ended since the last call without a request's doing: those of
    /// functions that left, and [revoked](Device::revoked) ones. To be called before the driver gets another answer,
    /// which can be that one of these ids is a new source.
    pub fn take_lost(&mut self) -> Lost {
        self.sources.take_lost()
    }

    /// The host side released what it can of these. Until then no SOURCE_REVOKED is told: a driver that was told finds the
    /// function's interrupts free.
    pub fn lost_released(&mut self, lost: Lost) {
        self.sources.lost_released(&lost);
    }

    /// Whether whoever tells events has to take the signals that there are before it tells the next one, which this call
    /// settles. What was pending until now for another reason than that nobody had looked, and what fired again meanwhile,
    /// is one INTERRUPT (IRQ-DEV-79): a source was unmasked, may fire again, or was given to the driver.
    pub fn look_first(&mut self) -> bool {
        self.sources.take_look_first()
    }

    /// Events that there are cannot be told now, and [wait](Device::look_first) for more than a look.
    pub fn events_wait(&mut self) {
        if self.has_events() {
            self.sources.look_first();
        }
    }

    /// The events that wait for a buffer, oldest first, at most `room` of them. They stay until
    /// [`Device::events_taken`] says that they were written.
    pub fn next_events(&self, room: usize) -> Vec<wire::Event> {
        let events = self.events.peek().chain(self.sources.peek(room));
        events.take(room).map(|event| event.to_wire()).collect()
    }

    /// Whether an event waits for a buffer.
    pub fn has_events(&self) -> bool {
        !self.events.is_empty() || self.sources.has_events()
    }

    /// The first `count` events of [`Device::next_events`] are in a buffer of the driver.
    pub fn events_taken(&mut self, count: usize) {
        let queued = count.min(self.events.len());
        self.events.take(queued);
        self.sources.take(count.saturating_sub(queued));
    }
}
