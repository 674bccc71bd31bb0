// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver's side of one check: a fresh connection, requests as bytes, events as they come.

use crate::guest::{DATA, Desc, Guest, POISON, REPLY};
use crate::link::{Link, LinkError};
use crate::provoke::{Action, Provoke, ProvokeError};
use crate::report::Seen;
use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::path::Path;
use std::time::Duration;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use virtio_irq_proto::{
    Allocate, Delivery, EVENT_QUEUE, F_EVENT, F_NATIVE, Function, FunctionFlags, FunctionId, GetMessages,
    IrqType, Layout, ListFunctions, Message, REQUEST_QUEUE, ReplyError, Source, SourceId, SourceRange,
    SourceRequest, Status, VectorRange, wire,
};
use zerocopy::{FromBytes, IntoBytes};

/// Why a check does not end well.
#[derive(Debug)]
pub(crate) enum Miss {
    /// The requirement is broken.
    Broken { why: String, seen: Vec<Seen> },
    /// What the check needs is not to be had, so it says nothing about its requirement.
    Unseen(String),
}

pub(crate) type Outcome<T = ()> = Result<T, Miss>;

pub(crate) fn unseen<T>(why: impl Into<String>) -> Outcome<T> {
    Err(Miss::Unseen(why.into()))
}

pub(crate) fn broken<T>(why: impl Into<String>, seen: Vec<Seen>) -> Outcome<T> {
    Err(Miss::Broken { why: why.into(), seen })
}

impl From<LinkError> for Miss {
    fn from(error: LinkError) -> Self {
        Self::Unseen(format!("the vhost-user connection failed: {error}"))
    }
}

impl From<ProvokeError> for Miss {
    fn from(error: ProvokeError) -> Self {
        Self::Unseen(error.to_string())
    }
}

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

/// What became of a chain of the requestq.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// The readable part.
    pub(crate) request: Vec<u8>,
    /// The used length.
    pub(crate) used: u32,
    /// All of the writable part, as it is after.
    pub(crate) writable: Vec<u8>,
    /// Whether the readable part is as it was.
    pub(crate) intact: bool,
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

impl Answer {
    /// The bytes of the reply.
    pub(crate) fn reply(&self) -> &[u8] {
        let end = usize::try_from(self.used).unwrap_or(usize::MAX).min(self.writable.len());
        self.writable.get(..end).unwrap_or_default()
    }

    /// The status, if there is one.
    pub(crate) fn status(&self) -> Option<u16> {
        Some(wire::ReplyHead::read_from_prefix(self.reply()).ok()?.0.status.get())
    }

    pub(crate) fn is(&self, status: Status) -> bool {
        self.status() == Some(status.to_wire())
    }

    /// Whether the device returned the chain as it got it.
    pub(crate) fn is_untouched(&self) -> bool {
        self.used == 0 && self.writable.iter().all(|byte| *byte == POISON)
    }

    /// What it came to, in words.
    pub(crate) fn outcome(&self) -> String {
        match self.status() {
            _ if self.used == 0 => "used length 0".to_owned(),
            Some(raw) => {
                Status::from_wire(raw).map_or(format!("status {raw}"), |status| format!("{status:?}"))
            }
            None => format!("used length {}", self.used),
        }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        vec![
            Seen { what: "request", bytes: self.request.clone() },
            Seen { what: "used length", bytes: self.used.to_le_bytes().to_vec() },
            Seen { what: "writable part", bytes: self.writable.clone() },
        ]
    }

    pub(crate) fn broken<T>(&self, why: impl Into<String>) -> Outcome<T> {
        broken(why, self.seen())
    }

    /// For a request that the check builds upon.
    fn needed(&self, what: &str, error: ReplyError) -> Miss {
        let bytes: String = self.reply().iter().take(32).map(|byte| format!("{byte:02x}")).collect();
        Miss::Unseen(format!("needs {what}, which failed: {error} (reply {bytes})"))
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

    pub(crate) fn allocate_answer(&mut self, request: Allocate) -> Outcome<Answer> {
        self.ask(request.to_wire().as_bytes(), length_of(request.reply_size()))
    }

    /// Allocates what a check needs.
    pub(crate) fn allocate(&mut self, request: Allocate) -> Outcome<Vec<Source>> {
        let answer = self.allocate_answer(request)?;
        let (head, rest) = wire::SourceListHead::read_from_prefix(answer.reply())
            .map_err(|_| answer.needed("ALLOCATE", ReplyError::Malformed))?;
        // What they have to be is for the checks of ALLOCATE.
        let sources = <[wire::Source]>::ref_from_bytes(rest);
        match sources {
            Ok(sources) if answer.is(Status::Ok) && sources.len() == usize::from(head.count.get()) => {
                Ok(sources.iter().map(|source| Source::from(*source)).collect())
            }
            _ => Err(answer.needed("ALLOCATE", ReplyError::Malformed)),
        }
    }

    /// One source that is this vector.
    pub(crate) fn hold(&mut self, function: &Candidate, vector: u16) -> Outcome<Source> {
        let sources = self.allocate(Allocate { first: vector, ..function.any(1, 1) })?;
        match sources.first() {
            Some(source) if source.vector == vector => Ok(*source),
            _ => unseen(format!("needs vector {vector} of function {} as a source", function.id)),
        }
    }

    pub(crate) fn sources_answer(&mut self, what: SourceRequest, range: SourceRange) -> Outcome<Answer> {
        self.ask(what.to_wire(range).as_bytes(), 8)
    }

    pub(crate) fn with_source(&mut self, what: SourceRequest, source: SourceId) -> Outcome<Answer> {
        self.sources_answer(what, SourceRange::one(source))
    }

    /// Does that with a source, as something that a check builds upon.
    pub(crate) fn must(&mut self, what: SourceRequest, source: SourceId) -> Outcome {
        let answer = self.with_source(what, source)?;
        if answer.is(Status::Ok) {
            return Ok(());
        }
        unseen(format!("needs {what:?}, which got {}", answer.outcome()))
    }

    /// Functions that the device can deliver interrupts of, each with a type of which it has `least` vectors or more.
    pub(crate) fn candidates(&mut self, least: u16) -> Outcome<Vec<Candidate>> {
        self.require(EVENT, "VIRTIO_IRQ_F_EVENT")?;
        let mut found = Vec::new();
        for function in self.functions()? {
            let fits = |irq_type: &IrqType| function.vector_count(*irq_type) >= least;
            if let Some(irq_type) = [IrqType::Msix, IrqType::Msi].into_iter().find(fits)
                && function.flags.contains(FunctionFlags::EVENT)
            {
                let count = function.vector_count(irq_type);
                found.push(Candidate { id: function.id, irq_type, count, intx: function.intx_count > 0 });
            }
        }
        Ok(found)
    }

    pub(crate) fn candidate(&mut self, least: u16) -> Outcome<Candidate> {
        match self.candidates(least)?.into_iter().next() {
            Some(candidate) => Ok(candidate),
            None => unseen(format!("needs a function with event delivery and {least} vectors")),
        }
    }

    pub(crate) fn two_candidates(&mut self, least: u16) -> Outcome<[Candidate; 2]> {
        match self.candidates(least)?.first_chunk() {
            Some(candidates) => Ok(*candidates),
            None => unseen(format!("needs two functions with event delivery and {least} vectors each")),
        }
    }

    pub(crate) fn raise(&self, function: &Candidate, vector: u16) -> Outcome {
        self.provoke(Action::Raise { function: function.id.0, vector })
    }

    /// Makes event buffers of 64 bytes available: four records each.
    pub(crate) fn listen(&mut self) {
        for head in 0..QUEUE_SIZE / 2 {
            self.offer(head, EVENT_BUFFER);
        }
    }

    /// Makes event buffer `head` available, with this length.
    pub(crate) fn offer(&mut self, head: u16, length: u32) {
        let at = buffer(head);
        self.guest.ram.write(at, &[POISON; EVENT_STRIDE as usize]);
        self.guest.descriptor(EVENT_QUEUE, head, Desc::writable(at, length));
        self.guest.publish(EVENT_QUEUE, head);
        self.guest.kick(EVENT_QUEUE);
    }

    /// The next event buffer that comes back: its head, used length, and the bytes in its place.
    pub(crate) fn event_buffer(&mut self) -> Option<(u16, u32, Vec<u8>)> {
        let (head, used) = self.guest.used_within(EVENT_QUEUE, self.bench.patience)?;
        let head = u16::try_from(head).unwrap_or(u16::MAX);
        let known = head < QUEUE_SIZE;
        let bytes = if known { self.guest.ram.read(buffer(head), EVENT_STRIDE as usize) } else { Vec::new() };
        Some((head, used, bytes))
    }

    /// The next record, whatever it is; `None` if none comes. Needs [`Session::listen`] before.
    pub(crate) fn record(&mut self) -> Outcome<Option<wire::Event>> {
        while self.records.is_empty() {
            let Some((head, used, bytes)) = self.event_buffer() else { return Ok(None) };
            let written = usize::try_from(used).ok().filter(|used| *used <= EVENT_BUFFER as usize);
            let records = written.and_then(|used| <[wire::Event]>::ref_from_bytes(bytes.get(..used)?).ok());
            let Some(records) = records else {
                return unseen(format!("needs events, and buffer {head} came back with used length {used}"));
            };
            self.records.extend(records);
            self.offer(head, EVENT_BUFFER);
        }
        Ok(self.records.pop_front())
    }

    /// Records up to and with the INTERRUPT of this source, which the check knows to come.
    pub(crate) fn until(&mut self, source: SourceId) -> Outcome<Vec<wire::Event>> {
        let mut records = Vec::new();
        loop {
            let Some(record) = self.record()? else {
                return unseen(format!("needs an INTERRUPT of source {source}, and none came"));
            };
            records.push(record);
            if is_interrupt(&record, source) {
                return Ok(records);
            }
        }
    }

    /// What comes of what was done before: raises `witness`, and returns the records up to its INTERRUPT, without it.
    pub(crate) fn witnessed(&mut self, function: &Candidate, witness: &Source) -> Outcome<Vec<wire::Event>> {
        self.raise(function, witness.vector)?;
        let mut records = self.until(witness.id)?;
        records.pop();
        Ok(records)
    }
}

/// A function with event delivery, and the type of its vectors that a check uses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) id: FunctionId,
    pub(crate) irq_type: IrqType,
    pub(crate) count: u16,
    pub(crate) intx: bool,
}

impl Candidate {
    pub(crate) fn any(&self, least: u16, most: u16) -> Allocate {
        Allocate {
            function: self.id,
            irq_type: self.irq_type,
            layout: Layout::Any,
            least: NonZeroU16::new(least).unwrap_or(NonZeroU16::MIN),
            most: NonZeroU16::new(most).unwrap_or(NonZeroU16::MIN),
            first: 0,
            delivery: Delivery::Event,
        }
    }

    /// The same function by its pin.
    pub(crate) fn pin(&self) -> Self {
        Self { irq_type: IrqType::Intx, count: 1, ..*self }
    }
}

/// Length of an ordinary event buffer.
const EVENT_BUFFER: u32 = 64;
/// Distance of event buffers in memory.
const EVENT_STRIDE: u64 = 256;

/// Where event buffer `head` lies: above anything that a reply needs.
pub(crate) fn buffer(head: u16) -> u64 {
    REPLY + 0x8_0000 + EVENT_STRIDE * u64::from(head)
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

pub(crate) fn is_interrupt(record: &wire::Event, source: SourceId) -> bool {
    record.kind.get() == wire::event_type::INTERRUPT && record.source.get() == source.0
}

/// Records as bytes that show something.
pub(crate) fn seen_records(records: &[wire::Event]) -> Vec<Seen> {
    vec![Seen { what: "event records", bytes: records.as_bytes().to_vec() }]
}
