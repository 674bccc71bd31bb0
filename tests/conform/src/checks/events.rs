// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the device says unasked of sources and messages that there are.

use super::Check;
use crate::guest::{DATA, Desc, NEXT, POISON};
use crate::provoke::Action;
use crate::report::Seen;
use crate::session::{Bench, Outcome, broken, buffer, is_interrupt, pair, range, seen_records, unseen};
use virtio_irq_proto::wire::event_type;
use virtio_irq_proto::{EVENT_QUEUE, SourceRequest};

pub(super) const CHECKS: &[Check] = &[
    ("IRQ-DEV-33", events_wait_for_buffers),
    ("IRQ-DEV-34", buffers_are_filled_with_whole_records),
    ("IRQ-DEV-35", unusable_buffers_come_back_empty),
    ("IRQ-DEV-46", buffers_stay_until_there_is_an_event),
    ("IRQ-DEV-53", what_fired_is_delivered),
    ("IRQ-DEV-54", nothing_is_delivered_twice),
    ("IRQ-DEV-79", what_could_not_be_delivered_is_one),
    ("IRQ-DEV-55", first_fired_first_delivered),
    ("IRQ-DEV-37", moved_messages_are_announced),
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
    session.interrupts_next(source.id, "an event that was pending does not come when there is a buffer")
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
    session.interrupts_next(source.id, "the event that was pending did not come in the next buffer")
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
        let missing = match masked {
            true => "a source fired while masked delivers nothing after UNMASK",
            false => "a source fired and delivers nothing",
        };
        session.interrupts_next(source.id, missing)?;
    }
    Ok(())
}

fn nothing_is_delivered_twice(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let candidate = session.candidate(2)?;
    let (source, witness) = (session.hold(&candidate, 0)?, session.witness(&candidate, 1)?);
    session.listen();
    session.raise(&candidate, 0)?;
    let mut records = session.witnessed(&witness)?;
    records.extend(session.witnessed(&witness)?);
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
    session.stays_silent(source.id, &witness, "a source that did not fire delivered after UNMASK")
}

fn what_could_not_be_delivered_is_one(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let candidate = session.candidate(3)?;
    let (source, witness) = (session.hold(&candidate, 0)?, session.witness(&candidate, 1)?);
    session.hold(&candidate, 2)?;
    for masked in [false, true] {
        if masked {
            session.must(SourceRequest::Mask, source.id)?;
        }
        for _ in 0..3 {
            session.raise(&candidate, source.vector)?;
            // The device takes note of each.
            session.functions()?;
        }
        if masked {
            session.must(SourceRequest::Unmask, source.id)?;
        } else {
            session.listen();
        }
        let records = session.witnessed(&witness)?;
        let count = records.iter().filter(|record| is_interrupt(record, source.id)).count();
        if count > 1 {
            let when = if masked { "while it was masked" } else { "without a buffer" };
            return broken(
                format!("a source that fired several times {when} delivered {count} INTERRUPTs"),
                seen_records(&records),
            );
        }
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

/// What a device finds is its affair; what it says about it has to be right.
fn moved_messages_are_announced(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let (function, vectors) = session.native(3)?;
    session.listen();
    let before = session.messages(function.id, vectors)?;
    session.provoke(Action::Move { function: function.id.0 })?;
    let Some(first) = range(vectors.irq_type, 0, 1) else { return Ok(()) };
    let after = session.messages(function.id, first)?;
    if after.first().map(pair) == before.first().map(pair) {
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
