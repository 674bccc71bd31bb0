// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sources, as a check gets and uses them.

use super::{Answer, EVENT, Outcome, Session, length_of, unseen};
use crate::provoke::Action;
use std::num::NonZeroU16;
use virtio_irq_proto::{
    Allocate, Delivery, FunctionFlags, FunctionId, IrqType, Layout, ReplyError, Source, SourceId,
    SourceRange, SourceRequest, Status, wire,
};
use zerocopy::{FromBytes, IntoBytes};

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

impl Session<'_> {
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
}
