// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sources: what replies and events do to them, and how their clients hear of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::OwnedFd;
use virtio_irq_driver::{Change, Effect, NotHeld, Slot, Sources, Verdict};
use virtio_irq_proto::{Event, FunctionId, ReplyError, Source, SourceId, SourceRange};

/// Greatest number of sources that this driver has room for, whatever the device's limit.
const ROOM: u32 = 1 << 20;

/// How the client of a source hears of its interrupts.
pub enum Signal {
    /// An eventfd, whose counter goes up by one for each.
    Eventfd(OwnedFd),
    /// A function that is called for each. It runs inside of the driver, which therefore it cannot use.
    Callback(Box<dyn FnMut() + Send>),
}

/// The sources of one driver, with their clients.
pub(crate) struct Clients {
    table: Sources<Vec<Slot>>,
    signals: BTreeMap<SourceId, Sink>,
    /// Functions that the device said are gone, which is final.
    gone: BTreeSet<FunctionId>,
    /// What nobody has heard of yet.
    pending: VecDeque<Event>,
}

enum Sink {
    Eventfd(File),
    Callback(Box<dyn FnMut() + Send>),
}

impl Clients {
    pub(crate) fn new(max_sources: u32) -> Self {
        let room = usize::try_from(max_sources.min(ROOM)).unwrap_or_default();
        Self {
            table: Sources::new(vec![Slot::default(); room]),
            signals: BTreeMap::new(),
            gone: BTreeSet::new(),
            pending: VecDeque::new(),
        }
    }

    /// Forgets everything, as the device does at a reset.
    pub(crate) fn reset(&mut self) {
        self.table.reset();
        self.signals.clear();
        self.gone.clear();
        self.pending.clear();
    }

    pub(crate) fn table(&self) -> &Sources<Vec<Slot>> {
        &self.table
    }

    /// Every event buffer that the device had returned was processed.
    pub(crate) fn drained(&mut self) {
        self.table.drained();
    }

    /// Whether the device said that the function is gone.
    pub(crate) fn is_gone(&self, function: FunctionId) -> bool {
        self.gone.contains(&function)
    }

    pub(crate) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    pub(crate) fn take_pending(&mut self) -> Vec<Event> {
        self.pending.drain(..).collect()
    }

    pub(crate) fn connect(&mut self, source: SourceId, signal: Signal) -> Result<(), NotHeld> {
        self.table.require(SourceRange::one(source))?;
        let sink = match signal {
            Signal::Eventfd(eventfd) => Sink::Eventfd(eventfd.into()),
            Signal::Callback(callback) => Sink::Callback(callback),
        };
        self.signals.insert(source, sink);
        Ok(())
    }

    /// A request is about to be sent.
    pub(crate) fn begin(&mut self, change: &Change) -> Result<(), NotHeld> {
        self.table.begin(change)
    }

    /// A request could not be sent.
    pub(crate) fn give_up(&mut self, change: &Change) {
        self.table.give_up(change);
    }

    /// The reply to a request came. Returns what it allocated.
    pub(crate) fn replied(&mut self, change: &Change, reply: &[u8]) -> Result<Vec<Source>, ReplyError> {
        let mut effects = Vec::new();
        let result = self.table.replied(change, reply, |effect| effects.push(effect));
        let mut given = Vec::new();
        for effect in effects {
            match effect {
                Effect::Given(source) => given.push(source),
                Effect::Gone(function) => self.function_gone(function),
                Effect::Fired(source) => self.fire(source),
            }
        }
        self.forget_unheld();
        result.map(|()| given)
    }

    /// Takes an event. False: all replies that the device has returned have to be processed first, and then
    /// [`Clients::event_after_replies`] is for it.
    pub(crate) fn event(&mut self, event: Event) -> bool {
        let verdict = self.table.event(event);
        self.act(event, verdict);
        verdict != Verdict::AfterReplies
    }

    pub(crate) fn event_after_replies(&mut self, event: Event) {
        let verdict = self.table.event_after_replies(event);
        self.act(event, verdict);
    }

    fn act(&mut self, event: Event, verdict: Verdict) {
        match verdict {
            Verdict::Fired(source) => self.fire(source),
            Verdict::Gone(function) => self.function_gone(function),
            Verdict::Revoked(_) | Verdict::Changed(..) => self.pending.push_back(event),
            Verdict::Nothing | Verdict::AfterReplies => {}
        }
    }

    fn fire(&mut self, source: SourceId) {
        match self.signals.get_mut(&source) {
            Some(Sink::Callback(callback)) => callback(),
            Some(Sink::Eventfd(eventfd)) => match eventfd.write_all(&1_u64.to_ne_bytes()) {
                // A counter that is full says what there is to say.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // Nothing else fails on an eventfd, and what is none is the client's mistake.
                Ok(()) | Err(_) => {}
            },
            None => {
                let function = self.table.function_of(source);
                self.pending.extend(function.map(|function| Event::Interrupt { function, source }));
            }
        }
    }

    fn function_gone(&mut self, function: FunctionId) {
        if self.gone.insert(function) {
            self.pending.push_back(Event::FunctionGone { function });
        }
        self.forget_unheld();
    }

    fn forget_unheld(&mut self) {
        let table = &self.table;
        self.signals.retain(|source, _| table.function_of(*source).is_some());
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Eventfd(_) => "Eventfd",
            Self::Callback(_) => "Callback",
        })
    }
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients")
            .field("sources", &self.table.iter().count())
            .field("gone", &self.gone)
            .field("pending", &self.pending)
            .finish_non_exhaustive()
    }
}
