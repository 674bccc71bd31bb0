// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver's side of one check: a fresh connection, requests as bytes, events as they come.

mod answer;
mod events;
mod sources;

pub(crate) use answer::{Answer, Miss, Outcome, broken, seen_records, unseen};
pub(crate) use events::{Witness, buffer, is_interrupt};
pub(crate) use sources::Candidate;

use crate::guest::{DATA, Desc, Guest, REPLY};
use crate::link::{Link, LinkError};
use crate::provoke::{Action, Provoke};
use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::path::Path;
use std::time::Duration;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use virtio_irq_proto::{
    EVENT_QUEUE, F_EVENT, F_NATIVE, Function, FunctionFlags, FunctionId, GetMessages, IrqType, ListFunctions,
    Message, REQUEST_QUEUE, ReplyError, Status, VectorRange, wire,
};
use zerocopy::{FromBytes, IntoBytes};

/// The bits of the device's own features, of which some are reserved.
pub(crate) const NATIVE: u64 = 1 << F_NATIVE;
pub(crate) const EVENT: u64 = 1 << F_EVENT;
pub(crate) const INDIRECT: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
pub(crate) const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;

/// Number of entries of both queues.
pub(crate) const QUEUE_SIZE: u16 = 16;

/// What is under test.
pub(crate) struct Bench<'a> {
    pub(crate) socket: &'a Path,
    pub(crate) patience: Duration,
    pub(crate) host: &'a dyn Provoke,
}

/// A connection with a guest that has both queues.
pub(crate) struct Session<'a> {
    pub(crate) guest: Guest,
    pub(crate) features: u64,
    pub(crate) max_sources: u32,
    pub(crate) max_vectors: u16,
    bench: &'a Bench<'a>,
    records: VecDeque<wire::Event>,
}

impl Bench<'_> {
    pub(crate) fn link(&self) -> Outcome<Link> {
        Ok(Link::connect_within(self.socket, self.patience).map_err(LinkError::from)?)
    }

    /// A session with every feature that the device offers and the checker knows.
    pub(crate) fn session(&self) -> Outcome<Session<'_>> {
        self.session_with(u64::MAX)
    }

    /// A session with those of the features that are in `mask`.
    pub(crate) fn session_with(&self, mask: u64) -> Outcome<Session<'_>> {
        let mut session = self.session_without_queues(mask)?;
        session.guest.set_up(REQUEST_QUEUE, QUEUE_SIZE)?;
        session.guest.set_up(EVENT_QUEUE, QUEUE_SIZE)?;
        Ok(session)
    }

    pub(crate) fn session_without_queues(&self, mask: u64) -> Outcome<Session<'_>> {
        let mut link = self.link()?;
        let features = link.features()? & mask & (VERSION_1 | INDIRECT | NATIVE | EVENT);
        link.negotiate(features)?;
        let config = link.config(0, 16)?;
        let Ok(config) = wire::Config::read_from_bytes(&config) else {
            return unseen("the configuration space is too short");
        };
        Ok(Session {
            guest: Guest::over(link)?,
            features,
            max_sources: config.max_sources.get(),
            max_vectors: config.max_vectors.get(),
            bench: self,
            records: VecDeque::new(),
        })
    }
}

impl Session<'_> {
    pub(crate) fn provoke(&self, action: Action) -> Outcome {
        Ok(self.bench.host.provoke(action)?)
    }

    pub(crate) fn require(&self, feature: u64, name: &str) -> Outcome {
        if self.features & feature == 0 {
            unseen(format!("the device does not offer {name}"))
        } else {
            Ok(())
        }
    }

    /// Takes both queues down and sets them up again, which to a vhost-user device is a device reset.
    pub(crate) fn reset(&mut self) -> Outcome {
        self.records.clear();
        Ok(self.guest.reset()?)
    }

    /// Takes both queues down and lets them go on where they were: the pause of the machine.
    pub(crate) fn pause(&mut self) -> Outcome {
        let mut bases = [0; 2];
        for (queue, base) in [REQUEST_QUEUE, EVENT_QUEUE].into_iter().zip(&mut bases) {
            *base = self.guest.take_down(queue)?;
        }
        for (queue, base) in [REQUEST_QUEUE, EVENT_QUEUE].into_iter().zip(bases) {
            self.guest.go_on(queue, base)?;
        }
        self.guest.kick(REQUEST_QUEUE);
        self.guest.kick(EVENT_QUEUE);
        Ok(())
    }

    /// Sends a request in a chain of two descriptors, the writable one of `room` bytes.
    pub(crate) fn ask(&mut self, request: &[u8], room: u32) -> Outcome<Answer> {
        let mut descs = Vec::new();
        if !request.is_empty() {
            descs.push(Desc::readable(DATA, length(request)));
        }
        if room > 0 || request.is_empty() {
            descs.push(Desc::writable(REPLY, room));
        }
        self.ask_in(request, room, &descs)
    }

    /// Puts the request at [`DATA`] and poison at [`REPLY`], and makes this chain available.
    pub(crate) fn ask_in(&mut self, request: &[u8], room: u32, descs: &[Desc]) -> Outcome<Answer> {
        self.guest.lay_out(request, room);
        self.guest.chain(REQUEST_QUEUE, descs);
        self.answer(request, room)
    }

    /// Waits for the chain with head 0.
    pub(crate) fn answer(&mut self, request: &[u8], room: u32) -> Outcome<Answer> {
        let Some((head, used)) = self.guest.used_within(REQUEST_QUEUE, self.bench.patience) else {
            return unseen(format!("needs an answer, and none came in {:?}", self.bench.patience));
        };
        if head != 0 {
            return unseen(format!("the device returned chain {head}, which was not made available"));
        }
        let writable = self.guest.ram.read(REPLY, room as usize);
        let intact = self.guest.ram.read(DATA, request.len()) == request;
        Ok(Answer { request: request.to_vec(), used, writable, intact })
    }

    pub(crate) fn list_page(
        &mut self,
        start: u16,
        count: u16,
    ) -> Outcome<(Answer, Vec<wire::Function>, u16)> {
        let count = NonZeroU16::new(count).unwrap_or(NonZeroU16::MIN);
        let request = ListFunctions { start: FunctionId(start), count };
        let answer = self.ask(request.to_wire().as_bytes(), length_of(request.reply_size()))?;
        // What the list has to look like is for the checks of the list.
        let Ok((head, rest)) = wire::FunctionListHead::read_from_prefix(answer.reply()) else {
            return Err(answer.needed("LIST_FUNCTIONS", ReplyError::Malformed));
        };
        let functions = <[wire::Function]>::ref_from_bytes(rest).map(<[_]>::to_vec);
        match functions {
            Ok(functions) if answer.is(Status::Ok) && functions.len() == usize::from(head.count.get()) => {
                Ok((answer, functions, head.remaining.get()))
            }
            _ => Err(answer.needed("LIST_FUNCTIONS", ReplyError::Malformed)),
        }
    }

    /// All functions, or as many as one reply has.
    pub(crate) fn functions(&mut self) -> Outcome<Vec<Function>> {
        let (_, functions, _) = self.list_page(0, 256)?;
        Ok(functions.into_iter().map(Function::from).collect())
    }

    /// An id that no function has.
    pub(crate) fn unlisted(&mut self) -> Outcome<FunctionId> {
        let listed = self.functions()?;
        let free = (0..u16::MAX).rev().map(FunctionId);
        let mut free = free.filter(|id| listed.iter().all(|function| function.id != *id));
        free.next().ok_or_else(|| Miss::Unseen("needs an id that no function has".to_owned()))
    }

    pub(crate) fn messages_answer(&mut self, function: FunctionId, vectors: VectorRange) -> Outcome<Answer> {
        let request = GetMessages { function, vectors };
        self.ask(request.to_wire().as_bytes(), length_of(request.reply_size()))
    }

    pub(crate) fn messages(&mut self, function: FunctionId, vectors: VectorRange) -> Outcome<Vec<Message>> {
        let answer = self.messages_answer(function, vectors)?;
        let list = GetMessages { function, vectors }.parse_reply(answer.reply());
        let list = list.map_err(|error| answer.needed("GET_MESSAGES", error))?;
        Ok(list.messages.iter().map(|message| Message::from(*message)).collect())
    }

    /// A function of which the first `least` vectors of a type have messages now.
    pub(crate) fn native(&mut self, least: u16) -> Outcome<(Function, VectorRange)> {
        self.require(NATIVE, "VIRTIO_IRQ_F_NATIVE")?;
        for function in self.functions()? {
            if !function.flags.contains(FunctionFlags::NATIVE) {
                continue;
            }
            for irq_type in [IrqType::Msi, IrqType::Msix] {
                let count = function.vector_count(irq_type).min(self.max_vectors).min(64);
                if let Some(vectors) = range(irq_type, 0, count)
                    && count >= least
                    && self.messages_answer(function.id, vectors)?.is(Status::Ok)
                {
                    return Ok((function, vectors));
                }
            }
        }
        unseen(format!("needs a function with {least} natively enabled vectors"))
    }
}

/// What the hardware writes; the generation is the device's.
pub(crate) fn pair(message: &Message) -> (u64, u32) {
    (message.address, message.data)
}

pub(crate) fn range(irq_type: IrqType, first: u16, count: u16) -> Option<VectorRange> {
    VectorRange::of_messages(irq_type, first, count).ok()
}

pub(crate) fn length(bytes: &[u8]) -> u32 {
    length_of(bytes.len())
}

fn length_of(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}
