// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Allocating and releasing sources: requests whose work is done by the host, call by call.
//!
//! An allocation enables the function's interrupts on the host, picks vectors among those that the host could enable,
//! attaches them and reads their messages back. Whatever fails, what was done before is undone before the driver gets
//! its answer.

use super::sources::{Detach, Vectors};
use super::{Device, Failure, Pair, Reply, Run, Step};
use std::collections::VecDeque;
use virtio_irq_proto::{
    Allocate, FunctionFlags, FunctionId, IrqType, Layout, Message, Source, SourceRange, Status,
};

/// A call to the host side: enable interrupts of this type on the function, without delivering any.
///
/// It is made before each allocation. Where the type is already enabled for earlier sources it changes nothing and
/// says the same again.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Enable {
    request: Allocate,
    run: Run,
}

impl Enable {
    /// Whose interrupts.
    pub fn function(&self) -> FunctionId {
        self.request.function
    }

    /// Of which type.
    pub fn irq_type(&self) -> IrqType {
        self.request.irq_type
    }

    /// One past the last vector that the request can use.
    pub fn end(&self) -> u16 {
        self.request.first.saturating_add(self.request.most.get())
    }
}

/// A call to the host side: deliver these vectors to these sources from now on, all of them or none, and read their
/// messages.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Attach {
    request: Allocate,
    vectors: Vectors,
    run: Run,
}

impl Attach {
    /// Whose vectors.
    pub fn function(&self) -> FunctionId {
        self.request.function
    }

    /// Of which type.
    pub fn irq_type(&self) -> IrqType {
        self.request.irq_type
    }

    /// Which vectors, in ascending order, each with the source that it is.
    pub fn vectors(&self) -> &Vectors {
        &self.vectors
    }
}

/// A call to the host side: see [`Detach`]. It cannot fail: what the host cannot take back is reported there.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Release {
    now: Detach,
    rest: VecDeque<Detach>,
    reply: Reply,
}

impl Release {
    /// What to stop.
    pub fn detach(&self) -> &Detach {
        &self.now
    }

    /// The next release, or the reply when nothing is left to release.
    fn step(mut releases: VecDeque<Detach>, reply: Reply) -> Step {
        match releases.pop_front() {
            Some(now) => Step::Release(Self { now, rest: releases, reply }),
            None => Step::Done(reply),
        }
    }
}

/// A call to the host side: unmask the pin of a function.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct UnmaskPin {
    now: FunctionId,
    rest: VecDeque<FunctionId>,
    /// What became of those before.
    status: Status,
    run: Run,
}

impl UnmaskPin {
    /// Whose pin.
    pub fn function(&self) -> FunctionId {
        self.now
    }

    fn step(mut functions: VecDeque<FunctionId>, status: Status, run: Run) -> Step {
        match functions.pop_front() {
            Some(now) => Step::UnmaskPin(Self { now, rest: functions, status, run }),
            None => Step::Done(Reply::status(status)),
        }
    }
}

impl Device {
    pub(super) fn allocate(&mut self, request: Allocate) -> Result<Step, Status> {
        let least_end = u32::from(request.first).saturating_add(u32::from(request.least.get()));
        self.require(request.function, FunctionFlags::EVENT, request.irq_type, least_end)?;
        if self.sources.claimed(request.function).is_some_and(|irq_type| irq_type != request.irq_type) {
            return Err(Status::Busy);
        }
        if self.sources.room(request.function) < u32::from(request.least.get()) {
            return Err(Status::NoSpace);
        }
        Ok(Step::Enable(Enable { request, run: self.run }))
    }

    /// The host answered `call`: vectors 0 up to the returned number can be attached.
    pub fn enabled(&mut self, call: Enable, result: Result<u16, Failure>) -> Step {
        let Enable { request, run } = call;
        let end = match result {
            Ok(end) => end,
            Err(failure) => {
                return Step::Done(Reply::status(self.refused_allocation(request.function, failure)));
            }
        };
        // The guest was reset or stopped in between: nobody holds what was enabled.
        if run != self.run {
            return self.roll_back(&request, Vec::new(), Status::HostError);
        }
        let end = match self.functions.find(request.function) {
            Ok(entry) => entry.assigned.function.vector_count(request.irq_type).min(end),
            Err(status) => return self.roll_back(&request, Vec::new(), status),
        };
        let room = usize::try_from(self.sources.room(request.function)).unwrap_or(usize::MAX);
        let most = usize::from(request.most.get()).min(room);
        let free = self.sources.unclaimed(request.function, request.first, end);
        let picked = match request.layout {
            Layout::Any => free.take(most).collect(),
            Layout::Contiguous => longest_run(free, most),
        };
        if picked.len() < usize::from(request.least.get()) {
            return self.roll_back(&request, Vec::new(), Status::NoSpace);
        }
        let vectors = self.sources.claim(request.function, request.irq_type, &picked);
        Step::Attach(Attach { request, vectors, run })
    }

    /// The host attached the vectors of `call` and read their messages, one per vector; for INTx, which has none, the
    /// pairs are ignored. On failure it attached none.
    pub fn attached(&mut self, call: Attach, result: Result<Vec<Pair>, Failure>) -> Step {
        let Attach { request, vectors, run } = call;
        if run.resets != self.run.resets {
            // The reset took the sources away, perhaps before the host attached them.
            return self.abandon(&request, vectors, Status::HostError);
        }
        let pairs = match result {
            Ok(pairs) if pairs.len() == vectors.len() && self.sources.hold(&vectors) => pairs,
            Ok(_) => {
                // The function left, or its interrupts were taken away, while the host attached them.
                let status = self.functions.find(request.function).err().unwrap_or(Status::HostError);
                return self.roll_back(&request, vectors, status);
            }
            Err(failure) => {
                let status = self.refused_allocation(request.function, failure);
                return self.roll_back(&request, vectors, status);
            }
        };
        if request.layout == Layout::Contiguous && !count_up(&pairs) {
            return self.roll_back(&request, vectors, Status::NotContiguous);
        }
        let messages = if request.irq_type == IrqType::Intx {
            vec![Message::default(); vectors.len()]
        } else {
            let in_use = |vector| self.sources.vector_is_held(request.function, vector);
            match self.functions.tell_vectors(request.function, request.irq_type, &vectors, &pairs, in_use) {
                Ok(told) => {
                    if let Some(stale) = told.stale {
                        self.events.message_changed(request.function, stale);
                    }
                    told.messages
                }
                Err(status) => return self.roll_back(&request, vectors, status),
            }
        };
        self.sources.give(&vectors);
        let sources = vectors.iter().zip(messages);
        let sources = sources.map(|((vector, id), message)| Source { id: *id, vector: *vector, message });
        Step::Done(Reply::sources(sources))
    }

    /// The status that says to the driver why the host did not allocate.
    fn refused_allocation(&mut self, function: FunctionId, failure: Failure) -> Status {
        match failure {
            Failure::Busy => Status::Busy,
            Failure::NotReady => Status::NotReady,
            other => self.failed(function, other),
        }
    }

    /// Undoes an allocation: stops what was attached, and disables the type if nothing else uses it.
    fn roll_back(&mut self, request: &Allocate, vectors: Vectors, status: Status) -> Step {
        let releases: VecDeque<_> = self.sources.remove(vectors.iter().map(|(_, id)| *id)).into();
        if releases.is_empty() {
            return self.abandon(request, vectors, status);
        }
        Release::step(releases, Reply::status(status))
    }

    /// Has the host release what is nobody's source.
    fn abandon(&mut self, request: &Allocate, vectors: Vectors, status: Status) -> Step {
        let last = self.sources.claimed(request.function).is_none();
        let Allocate { function, irq_type, .. } = *request;
        let releases = (last || !vectors.is_empty()).then_some(Detach { function, irq_type, vectors, last });
        Release::step(releases.into_iter().collect(), Reply::status(status))
    }

    pub(super) fn free(&mut self, range: SourceRange) -> Result<Step, Status> {
        let ids = self.sources.owned(range)?;
        Ok(Release::step(self.sources.remove(ids).into(), Reply::status(Status::Ok)))
    }

    pub(super) fn reset_function(&mut self, function: FunctionId) -> Result<Step, Status> {
        self.functions.find(function)?;
        let ids = self.sources.of(function).into_iter();
        Ok(Release::step(self.sources.remove(ids).into(), Reply::status(Status::Ok)))
    }

    /// The host side made the call.
    pub fn released(&mut self, call: Release) -> Step {
        Release::step(call.rest, call.reply)
    }

    pub(super) fn mask(&mut self, range: SourceRange) -> Result<Step, Status> {
        let ids = self.sources.owned(range)?;
        self.sources.mask(ids);
        Ok(Step::Done(Reply::status(Status::Ok)))
    }

    pub(super) fn unmask(&mut self, range: SourceRange) -> Result<Step, Status> {
        let ids = self.sources.owned(range)?;
        Ok(UnmaskPin::step(self.sources.unmask(ids).into(), Status::Ok, self.run))
    }

    /// The host side made the call. A pin that it did not unmask stays masked for the driver as well, so that it can be
    /// unmasked later; the others of the request are unmasked all the same.
    pub fn pin_unmasked(&mut self, call: UnmaskPin, result: Result<(), Failure>) -> Step {
        let UnmaskPin { now, rest, mut status, run } = call;
        if let Err(failure) = result {
            if run == self.run {
                self.sources.keep_pin_masked(now);
            }
            let failed = self.failed(now, failure);
            if status == Status::Ok {
                status = failed;
            }
        }
        UnmaskPin::step(rest, status, run)
    }
}

/// The first run of `most` consecutive vectors, or else the longest one.
fn longest_run(free: impl Iterator<Item = u16>, most: usize) -> Vec<u16> {
    let mut best = Vec::new();
    let mut run: Vec<u16> = Vec::new();
    for vector in free {
        if run.last().is_some_and(|last| last.checked_add(1) != Some(vector)) {
            keep_longer(&mut best, &mut run);
        }
        // Asked before the first as well: there may be room for none.
        if run.len() == most {
            break;
        }
        run.push(vector);
    }
    keep_longer(&mut best, &mut run);
    best
}

/// Of two equally long runs the first stays. `run` is empty afterwards.
fn keep_longer(best: &mut Vec<u16>, run: &mut Vec<u16>) {
    if run.len() > best.len() {
        std::mem::swap(best, run);
    }
    run.clear();
}

fn count_up(pairs: &[Pair]) -> bool {
    pairs.is_sorted_by(|a, b| a.address == b.address && a.data.checked_add(1) == Some(b.data))
}
