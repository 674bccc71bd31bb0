// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the device says unasked.

use super::Check;
use crate::guest::{DATA, Desc, NEXT, POISON};
use crate::provoke::Action;
use crate::report::Seen;
use crate::session::{
    Bench, Candidate, EVENT, Outcome, Session, broken, buffer, is_interrupt, range, seen_records, unseen,
};
use virtio_irq_proto::wire::{self, event_type};
use virtio_irq_proto::{EVENT_QUEUE, FunctionId, SourceRequest, Status};

pub(super) const CHECKS: &[Check] = &[
    ("IRQ-DEV-33", events_wait_for_buffers),
    ("IRQ-DEV-34", buffers_are_filled_with_whole_records),
    ("IRQ-DEV-35", unusable_buffers_come_back_empty),
    ("IRQ-DEV-46", buffers_stay_until_there_is_an_event),
    ("IRQ-DEV-53", what_fired_is_delivered),
    ("IRQ-DEV-54", nothing_is_delivered_twice),
    ("IRQ-DEV-55", first_fired_first_delivered),
    ("IRQ-DEV-57", pins_mask_themselves),
    ("IRQ-DEV-37", moved_messages_are_announced),
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

fn seen_buffer(head: u16, used: u32, bytes: Vec<u8>) -> Vec<Seen> {
    vec![
        Seen {
            what: "head and used length",
            bytes: [u32::from(head).to_le_bytes(), used.to_le_bytes()].concat(),
        },
        Seen { what: "event buffer", bytes },
    ]
}

fn events_wait_for_buffers(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let candidate = session.candidate(1)?;
    let source = session.hold(&candidate, 0)?;
    session.raise(&candidate, 0)?;
    // A request, so that the device has taken note of the interrupt before there is a buffer.
    session.functions()?;
    session.listen();
    match session.record()? {
        Some(record) if is_interrupt(&record, source.id) => Ok(()),
        Some(record) => broken("another event than the pending one came", seen_records(&[record])),
        None => broken("an event that was pending does not come when there is a buffer", Vec::new()),
    }
}

fn buffers_are_filled_with_whole_records(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let candidate = session.candidate(5)?;
    let sources = session.allocate(candidate.any(5, 5))?;
    for source in &sources {
        session.raise(&candidate, source.vector)?;
    }
    session.functions()?;
    // Two whole records and a part of a third; then more room than there is to say.
    for (head, length, expected) in [(0, 47, 32), (1, 200, 48)] {
        session.offer(head, length);
        let Some((got, used, bytes)) = session.event_buffer() else {
            return unseen("needs pending events, and no buffer came back");
        };
        if (got, used) != (head, expected) {
            let why =
                format!("of {} pending events a buffer of {length} bytes has {used} bytes", sources.len());
            return broken(why, seen_buffer(got, used, bytes));
        }
        let behind = bytes.get(expected as usize..).unwrap_or_default();
        if behind.iter().any(|byte| *byte != POISON) {
            return broken("bytes behind the used length were written", seen_buffer(got, used, bytes));
        }
    }
    Ok(())
}

fn unusable_buffers_come_back_empty(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let candidate = session.candidate(1)?;
    let source = session.hold(&candidate, 0)?;
    session.raise(&candidate, 0)?;
    session.functions()?;
    let at = |length| Desc::writable(buffer(0), length);
    let cases: &[(&str, &[Desc])] = &[
        ("of 15 bytes", &[at(15)]),
        ("that is readable", &[Desc::readable(DATA, 64)]),
        ("with a readable part", &[Desc::readable(DATA, 1), at(64)]),
        (
            "that is no valid chain",
            &[Desc { next: 1, flags: NEXT, ..Desc::readable(DATA, 8) }, Desc { addr: 8, ..at(64) }],
        ),
    ];
    for (case, descs) in cases {
        session.guest.ram.write(buffer(0), &[POISON; 64]);
        session.guest.chain(EVENT_QUEUE, descs);
        let Some((head, used, bytes)) = session.event_buffer() else {
            return broken(format!("a buffer {case} is not returned though an event is pending"), Vec::new());
        };
        let written = bytes.iter().take(64).any(|byte| *byte != POISON);
        if (head, used) != (0, 0) || written {
            return broken(format!("a buffer {case} was not returned empty"), seen_buffer(head, used, bytes));
        }
    }
    session.listen();
    match session.record()? {
        Some(record) if is_interrupt(&record, source.id) => Ok(()),
        other => {
            let records: Vec<_> = other.into_iter().collect();
            broken("the event that was pending did not come in the next buffer", seen_records(&records))
        }
    }
}

fn buffers_stay_until_there_is_an_event(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    session.listen();
    for _ in 0..8 {
        session.functions()?;
        if let Ok(candidate) = session.candidate(1) {
            let _ = session.allocate_answer(candidate.any(1, 1))?;
        }
    }
    while let Some((head, used)) = session.guest.poll_used(EVENT_QUEUE) {
        if used == 0 {
            let entry = [head.to_le_bytes(), used.to_le_bytes()].concat();
            let seen = vec![Seen { what: "entry of the used ring", bytes: entry }];
            return broken("a good event buffer came back without a record", seen);
        }
    }
    Ok(())
}

fn what_fired_is_delivered(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let candidate = session.candidate(1)?;
    let source = session.hold(&candidate, 0)?;
    session.listen();
    for masked in [false, true, false] {
        if masked {
            session.must(SourceRequest::Mask, source.id)?;
        }
        session.raise(&candidate, 0)?;
        if masked {
            session.must(SourceRequest::Unmask, source.id)?;
        }
        match session.record()? {
            Some(record) if is_interrupt(&record, source.id) => {}
            Some(record) => return broken("another event than its INTERRUPT came", seen_records(&[record])),
            None if masked => {
                return broken("a source fired while masked delivers nothing after UNMASK", Vec::new());
            }
            None => return broken("a source fired and delivers nothing", Vec::new()),
        }
    }
    Ok(())
}

fn nothing_is_delivered_twice(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let candidate = session.candidate(2)?;
    let (source, witness) = (session.hold(&candidate, 0)?, session.hold(&candidate, 1)?);
    session.listen();
    session.raise(&candidate, 0)?;
    let mut records = session.witnessed(&candidate, &witness)?;
    records.extend(session.witnessed(&candidate, &witness)?);
    let count = records.iter().filter(|record| is_interrupt(record, source.id)).count();
    if count > 1 {
        return broken(
            format!("a source that fired once delivered {count} INTERRUPTs"),
            seen_records(&records),
        );
    }
    // Unmasking what did not fire delivers nothing.
    session.must(SourceRequest::Mask, source.id)?;
    session.must(SourceRequest::Unmask, source.id)?;
    let records = session.witnessed(&candidate, &witness)?;
    if records.iter().any(|record| is_interrupt(record, source.id)) {
        return broken("a source that did not fire delivered after UNMASK", seen_records(&records));
    }
    Ok(())
}

fn first_fired_first_delivered(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let candidate = session.candidate(4)?;
    let sources = session.allocate(candidate.any(4, 4))?;
    let order = [2, 0, 3, 1];
    for index in order {
        let Some(source) = sources.get(index) else { continue };
        session.raise(&candidate, source.vector)?;
        // The device takes note of one before the next fires.
        session.functions()?;
    }
    session.listen();
    let mut records = Vec::new();
    for index in order {
        let Some(record) = session.record()? else { return unseen("needs INTERRUPTs, and they do not come") };
        records.push(record);
        let expected = sources.get(index).map(|source| source.id);
        if !expected.is_some_and(|id| is_interrupt(&record, id)) {
            return broken(
                "INTERRUPTs are not in the order in which they became pending",
                seen_records(&records),
            );
        }
    }
    Ok(())
}

fn pins_mask_themselves(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let [function, other] = session.two_candidates(1)?;
    if !function.intx {
        return unseen("needs a function with a pin");
    }
    let pin = function.pin();
    let (source, witness) = (session.hold(&pin, 0)?, session.hold(&other, 0)?);
    session.listen();
    session.raise(&pin, 0)?;
    session.until(source.id)?;
    session.raise(&pin, 0)?;
    let records = session.witnessed(&other, &witness)?;
    if records.iter().any(|record| is_interrupt(record, source.id)) {
        return broken("an INTx source delivers again before UNMASK", seen_records(&records));
    }
    session.must(SourceRequest::Unmask, source.id)?;
    let records = session.witnessed(&other, &witness)?;
    if records.iter().any(|record| is_interrupt(record, source.id)) {
        return Ok(());
    }
    broken("an INTx source whose pin is asserted delivers nothing after UNMASK", seen_records(&records))
}

/// What a device finds is its affair; what it says about it has to be right.
fn moved_messages_are_announced(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let (function, vectors) = session.native(3)?;
    session.listen();
    let before = session.messages(function.id, vectors)?;
    session.provoke(Action::Move { function: function.id.0 })?;
    let Some(first) = range(vectors.irq_type, 0, 1) else { return Ok(()) };
    let after = session.messages(function.id, first)?;
    if after.first().map(|now| (now.address, now.data))
        == before.first().map(|then| (then.address, then.data))
    {
        return unseen("the messages did not move");
    }
    let Some(record) = session.record()? else {
        return unseen("the device did not find that other messages moved as well");
    };
    let vectors =
        u32::from(record.first.get())..u32::from(record.first.get()) + u32::from(record.count.get());
    let right = record.kind.get() == event_type::MESSAGE_CHANGED
        && record.function.get() == function.id.0
        && record.irq_type == virtio_irq_proto::IrqType::to_wire(first.irq_type)
        && (1..before.len())
            .all(|vector| u32::try_from(vector).is_ok_and(|vector| vectors.contains(&vector)));
    if right {
        Ok(())
    } else {
        broken("messages moved, and the event says something else", seen_records(&[record]))
    }
}

/// Sources of a function whose interrupts the VMM took, and one of another function, with the events that followed.
fn losing(
    session: &mut Session<'_>,
) -> Outcome<(Vec<virtio_irq_proto::Source>, Candidate, Vec<wire::Event>)> {
    let [function, other] = session.two_candidates(2)?;
    let sources = session.allocate(function.any(2, 2))?;
    let witness = session.hold(&other, 0)?;
    if let Some(source) = sources.first() {
        session.raise(&function, source.vector)?;
    }
    session.functions()?;
    session.provoke(Action::Take { function: function.id.0 })?;
    // A device finds out at the latest when more of the function is wanted.
    let _ = session.allocate_answer(virtio_irq_proto::Allocate { first: 1, ..function.any(1, 1) })?;
    session.listen();
    let mut records = session.witnessed(&other, &witness)?;
    records.extend(session.witnessed(&other, &witness)?);
    Ok((sources, function, records))
}

fn lost_sources_are_announced_once(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let (sources, _, records) = losing(&mut session)?;
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
    let (sources, _, records) = losing(&mut session)?;
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

/// A function leaves while it has a pending interrupt. What the device says then and after more questions about it.
struct Departure {
    function: FunctionId,
    sources: Vec<virtio_irq_proto::Source>,
    records: Vec<wire::Event>,
    listed: bool,
    /// What MASK of each of its sources gets.
    masks: Vec<crate::session::Answer>,
}

fn departure(bench: &Bench<'_>) -> Outcome<Departure> {
    let mut session = bench.session()?;
    session.require(EVENT, "VIRTIO_IRQ_F_EVENT")?;
    let candidates = session.candidates(2)?;
    let [other, .., function] = candidates.as_slice() else {
        return unseen("needs two functions with event delivery, of which one can leave");
    };
    let sources = session.allocate(function.any(2, 2))?;
    let witness = session.hold(other, 0)?;
    session.raise(function, sources.first().map_or(0, |source| source.vector))?;
    session.functions()?;
    session.provoke(Action::Remove { function: function.id.0 })?;
    let mut found = false;
    for _ in 0..3 {
        let vector = virtio_irq_proto::Allocate { first: 1, ..function.any(1, 1) };
        found |= session.allocate_answer(vector)?.is(Status::FunctionGone);
    }
    if !found {
        return unseen("the device did not find that the function left");
    }
    session.listen();
    let mut records = session.witnessed(other, &witness)?;
    let listed = session.functions()?.iter().any(|listed| listed.id == function.id);
    let mut masks = Vec::new();
    for source in &sources {
        masks.push(session.with_source(SourceRequest::Mask, source.id)?);
    }
    let _ = session.allocate_answer(function.any(1, 1))?;
    records.extend(session.witnessed(other, &witness)?);
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
    let candidates = session.candidates(2)?;
    let [other, .., function] = candidates.as_slice() else {
        return unseen("needs two functions with event delivery, of which one can leave");
    };
    let source = session.hold(other, 0)?;
    session.raise(other, 0)?;
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
