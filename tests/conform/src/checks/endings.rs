// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the device says of sources and functions that end, and after.

use super::Check;
use crate::provoke::Action;
use crate::session::{
    Answer, Bench, Candidate, Outcome, Session, broken, is_interrupt, seen_records, unseen,
};
use virtio_irq_proto::wire::{self, event_type};
use virtio_irq_proto::{Allocate, FunctionId, Source, SourceRequest, Status};

pub(super) const CHECKS: &[Check] = &[
    ("IRQ-DEV-61", lost_sources_are_announced_once),
    ("IRQ-DEV-73", lost_sources_are_silent_and_keep_their_ids),
];

/// These take a function from the device for good.
pub(super) const REMOVING: &[Check] = &[
    ("IRQ-DEV-23", gone_functions_are_not_listed),
    ("IRQ-DEV-74", other_events_come_first),
    ("IRQ-DEV-39", gone_is_said_once),
    ("IRQ-DEV-40", gone_is_the_last_word),
    ("IRQ-DEV-75", gone_takes_the_sources_along),
];

/// Sources of a function whose interrupts the VMM took, and one of another function, with the events that followed.
fn losing(session: &mut Session<'_>) -> Outcome<(Vec<Source>, Vec<wire::Event>)> {
    let [function, other] = session.two_candidates(2)?;
    let sources = session.allocate(function.any(2, 2))?;
    let witness = session.witness(&other, 0)?;
    if let Some(source) = sources.first() {
        session.raise(&function, source.vector)?;
    }
    session.functions()?;
    session.provoke(Action::Take { function: function.id.0 })?;
    // A device finds out at the latest when more of the function is wanted.
    let _ = session.allocate_answer(Allocate { first: 1, ..function.any(1, 1) })?;
    session.listen();
    let mut records = session.witnessed(&witness)?;
    records.extend(session.witnessed(&witness)?);
    Ok((sources, records))
}

fn lost_sources_are_announced_once(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let (sources, records) = losing(&mut session)?;
    let revoked = |id: u32| {
        let of = |record: &&wire::Event| {
            record.kind.get() == event_type::SOURCE_REVOKED && record.source.get() == id
        };
        records.iter().filter(of).count()
    };
    let counts: Vec<_> = sources.iter().map(|source| revoked(source.id.0)).collect();
    if counts.iter().all(|count| *count == 0) {
        return unseen("the device did not find that the sources ended");
    }
    if counts.iter().any(|count| *count != 1) {
        return broken(
            format!("SOURCE_REVOKED came {counts:?} times for the sources"),
            seen_records(&records),
        );
    }
    Ok(())
}

fn lost_sources_are_silent_and_keep_their_ids(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let (sources, records) = losing(&mut session)?;
    for source in &sources {
        let revoked = |record: &wire::Event| {
            record.kind.get() == event_type::SOURCE_REVOKED && record.source.get() == source.id.0
        };
        let Some(place) = records.iter().position(revoked) else {
            return unseen("the device did not find that the sources ended");
        };
        let after = records.get(place..).unwrap_or_default();
        if after.iter().any(|record| is_interrupt(record, source.id)) {
            return broken("an INTERRUPT came after SOURCE_REVOKED", seen_records(&records));
        }
    }
    for source in sources {
        let answer = session.with_source(SourceRequest::Free, source.id)?;
        if !answer.is(Status::Ok) {
            return answer.broken(format!("FREE of a revoked source gets {}", answer.outcome()));
        }
    }
    Ok(())
}

/// The last function leaves, so that the first is there for the checks that follow.
fn staying_and_leaving(session: &mut Session<'_>) -> Outcome<[Candidate; 2]> {
    match session.candidates(2)?.as_slice() {
        [staying, .., leaving] => Ok([*staying, *leaving]),
        _ => unseen("needs two functions with event delivery, of which one can leave"),
    }
}

/// A function leaves while it has a pending interrupt. What the device says then and after more questions about it.
struct Departure {
    function: FunctionId,
    sources: Vec<Source>,
    records: Vec<wire::Event>,
    listed: bool,
    /// What MASK of each of its sources gets.
    masks: Vec<Answer>,
}

fn departure(bench: &Bench<'_>) -> Outcome<Departure> {
    let mut session = bench.session()?;
    let [other, function] = staying_and_leaving(&mut session)?;
    let sources = session.allocate(function.any(2, 2))?;
    let witness = session.witness(&other, 0)?;
    session.raise(&function, sources.first().map_or(0, |source| source.vector))?;
    session.functions()?;
    session.provoke(Action::Remove { function: function.id.0 })?;
    let mut found = false;
    for _ in 0..3 {
        let vector = Allocate { first: 1, ..function.any(1, 1) };
        found |= session.allocate_answer(vector)?.is(Status::FunctionGone);
    }
    if !found {
        return unseen("the device did not find that the function left");
    }
    session.listen();
    let mut records = session.witnessed(&witness)?;
    let listed = session.functions()?.iter().any(|listed| listed.id == function.id);
    let mut masks = Vec::new();
    for source in &sources {
        masks.push(session.with_source(SourceRequest::Mask, source.id)?);
    }
    let _ = session.allocate_answer(function.any(1, 1))?;
    records.extend(session.witnessed(&witness)?);
    Ok(Departure { function: function.id, sources, records, listed, masks })
}

impl Departure {
    fn is_gone(&self, record: &wire::Event) -> bool {
        record.kind.get() == event_type::FUNCTION_GONE && record.function.get() == self.function.0
    }
}

fn gone_functions_are_not_listed(bench: &Bench<'_>) -> Outcome {
    let departure = departure(bench)?;
    if departure.listed {
        return broken(format!("function {} is gone and is listed", departure.function), Vec::new());
    }
    Ok(())
}

fn gone_is_said_once(bench: &Bench<'_>) -> Outcome {
    let departure = departure(bench)?;
    match departure.records.iter().filter(|record| departure.is_gone(record)).count() {
        1 => Ok(()),
        count => broken(
            format!("FUNCTION_GONE came {count} times for a function that the device found gone"),
            seen_records(&departure.records),
        ),
    }
}

fn gone_is_the_last_word(bench: &Bench<'_>) -> Outcome {
    let departure = departure(bench)?;
    let Some(place) = departure.records.iter().position(|record| departure.is_gone(record)) else {
        return unseen("needs FUNCTION_GONE, which did not come");
    };
    let after = departure.records.iter().skip(place + 1);
    // The device can give a source's id to another function, so the function decides.
    let of_it =
        |record: &&wire::Event| record.function.get() == departure.function.0 && !departure.is_gone(record);
    if after.filter(of_it).count() > 0 {
        return broken(
            "an event of a function came after its FUNCTION_GONE",
            seen_records(&departure.records),
        );
    }
    Ok(())
}

fn gone_takes_the_sources_along(bench: &Bench<'_>) -> Outcome {
    let departure = departure(bench)?;
    for answer in &departure.masks {
        if !answer.is(Status::NoSource) {
            return answer.broken(format!("a source of a function that is gone gets {}", answer.outcome()));
        }
    }
    let revoked = |record: &&wire::Event| {
        record.kind.get() == event_type::SOURCE_REVOKED
            && departure.sources.iter().any(|source| source.id.0 == record.source.get())
    };
    if departure.records.iter().filter(revoked).count() > 0 {
        return broken("SOURCE_REVOKED came for a function that is gone", seen_records(&departure.records));
    }
    Ok(())
}

fn other_events_come_first(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let [other, function] = staying_and_leaving(&mut session)?;
    let source = session.hold(&other, 0)?;
    session.raise(&other, 0)?;
    session.functions()?;
    session.provoke(Action::Remove { function: function.id.0 })?;
    if !session.allocate_answer(function.any(1, 1))?.is(Status::FunctionGone) {
        return unseen("the device did not find that the function left");
    }
    session.listen();
    let mut records = session.until(source.id)?;
    let gone = |record: &wire::Event| record.kind.get() == event_type::FUNCTION_GONE;
    if records.first().is_some_and(gone) {
        return Ok(());
    }
    if !records.iter().any(gone) {
        // It was pending if it comes after.
        records.extend(session.record()?);
    }
    if records.iter().any(gone) {
        return broken("an INTERRUPT came before a pending event of another type", seen_records(&records));
    }
    unseen("needs FUNCTION_GONE, which did not come")
}
