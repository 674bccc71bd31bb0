// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests in general.

use super::{Check, chains};
use crate::guest::{DATA, Desc, POISON, REPLY};
use crate::report::Seen;
use crate::session::{Answer, Bench, Miss, Outcome, QUEUE_SIZE, Session, broken, length, unseen};
use std::collections::BTreeSet;
use std::num::NonZeroU16;
use virtio_irq_proto::{
    EVENT_QUEUE, Event, FunctionId, ListFunctions, REQUEST_QUEUE, SourceId, SourceRequest, Status, wire,
};
use zerocopy::{FromBytes, IntoBytes};

pub(super) const CHECKS: &[Check] = &[
    ("IRQ-DEV-07", returns_each_chain_once),
    ("IRQ-DEV-08", reports_the_bytes_of_the_reply),
    ("IRQ-DEV-09", reads_before_it_writes),
    ("IRQ-DEV-10", chains::first_row_decides),
    ("IRQ-DEV-12", reserved_bytes_are_zero),
    ("IRQ-DEV-13", stops_using_a_broken_ring),
    ("IRQ-DEV-14", divisions_mean_nothing),
    ("IRQ-DEV-15", answers_without_the_eventq),
    ("IRQ-DEV-16", refused_chains_change_nothing),
    ("IRQ-DEV-18", refusals_are_a_head_alone),
    ("IRQ-DEV-47", later_requests_see_earlier_ones),
];

/// The list from 0, as a request.
pub(super) fn list(count: u16) -> Vec<u8> {
    let count = NonZeroU16::new(count).unwrap_or(NonZeroU16::MIN);
    ListFunctions { start: FunctionId(0), count }.to_wire().as_bytes().to_vec()
}

/// Room for the reply to [`list`].
pub(super) fn room(count: u16) -> u32 {
    16 + 32 * u32::from(count)
}

fn returns_each_chain_once(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let request = list(1);
    session.guest.lay_out(&request, 0x1000);
    let chains = QUEUE_SIZE / 2;
    for chain in 0..chains {
        let (head, reply) = (2 * chain, REPLY + 64 * u64::from(chain));
        let readable = Desc::readable(DATA, length(&request));
        session.guest.descriptor(
            REQUEST_QUEUE,
            head,
            Desc { flags: crate::guest::NEXT, next: head + 1, ..readable },
        );
        session.guest.descriptor(REQUEST_QUEUE, head + 1, Desc::writable(reply, 48));
        session.guest.publish(REQUEST_QUEUE, head);
    }
    session.guest.kick(REQUEST_QUEUE);
    let mut missing: BTreeSet<u32> = (0..chains).map(|chain| u32::from(2 * chain)).collect();
    while !missing.is_empty() {
        let Some((head, used)) = session.guest.used_within(REQUEST_QUEUE, bench.patience) else {
            let why =
                format!("of {chains} chains made available at once, {} were not returned", missing.len());
            return broken(why, Vec::new());
        };
        if !missing.remove(&head) {
            let entry = [head.to_le_bytes(), used.to_le_bytes()].concat();
            let seen = vec![Seen { what: "entry of the used ring", bytes: entry }];
            return broken(format!("chain {head} was returned, which the device did not have"), seen);
        }
    }
    // Whatever is returned too often is so before a later chain.
    for _ in 0..2 {
        session.guest.lay_out(&request, 48);
        session
            .guest
            .chain(REQUEST_QUEUE, &[Desc::readable(DATA, length(&request)), Desc::writable(REPLY, 48)]);
        match session.guest.used_within(REQUEST_QUEUE, bench.patience) {
            Some((0, _)) => {}
            Some((head, _)) => return broken(format!("chain {head} was returned twice"), Vec::new()),
            None => return broken("a chain was not returned", Vec::new()),
        }
    }
    match session.guest.poll_used(REQUEST_QUEUE) {
        None => Ok(()),
        Some((head, _)) => broken(format!("chain {head} was returned twice"), Vec::new()),
    }
}

/// One of each kind of answer that the device gives here.
fn answers(session: &mut Session<'_>) -> Outcome<Vec<Answer>> {
    let mut answers = vec![
        session.ask(&list(3), room(3) + 40)?,
        session.ask(&[0xff; 16], 24)?,
        session.ask(&list(3), 20)?,
        session.ask(&list(3)[..15], 200)?,
    ];
    if let Ok((function, vectors)) = session.native(1) {
        let request = virtio_irq_proto::GetMessages { function: function.id, vectors };
        let size = length(request.to_wire().as_bytes()) + 16 * u32::from(vectors.count.get());
        answers.push(session.ask(request.to_wire().as_bytes(), size + 9)?);
    }
    if let Ok(candidate) = session.candidate(1) {
        let request = candidate.any(1, candidate.count.min(8));
        answers.push(session.ask(request.to_wire().as_bytes(), 16 + 24 * 8 + 5)?);
        let free = SourceRequest::Free.to_wire(virtio_irq_proto::SourceRange::one(SourceId(u32::MAX)));
        answers.push(session.ask(free.as_bytes(), 30)?);
    }
    Ok(answers)
}

/// The length that the reply's own content calls for.
fn called_for(answer: &Answer) -> Option<u32> {
    let bytes = &answer.writable;
    if answer.status()? != Status::Ok.to_wire() {
        // Its length is what IRQ-DEV-18 is about.
        return None;
    }
    let (head, _) = wire::MessageListHead::read_from_prefix(bytes).ok()?;
    let element = match wire::RequestHead::read_from_prefix(&answer.request).ok()?.0.kind.get() {
        wire::request_type::LIST_FUNCTIONS => 32,
        wire::request_type::GET_MESSAGES => 16,
        wire::request_type::ALLOCATE => 24,
        _ => return Some(8),
    };
    Some(16 + element * u32::from(head.count.get()))
}

fn reports_the_bytes_of_the_reply(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    for answer in answers(&mut session)? {
        let end = usize::try_from(answer.used).unwrap_or(usize::MAX);
        if end > answer.writable.len() {
            return answer.broken("the used length is more than the writable part has");
        }
        if answer.writable.get(end..).is_some_and(|rest| rest.iter().any(|byte| *byte != POISON)) {
            return answer.broken("bytes behind the used length were written");
        }
        if called_for(&answer).is_some_and(|length| length != answer.used) {
            return answer
                .broken(format!("the used length is {}, and the reply says otherwise", answer.used));
        }
        if !answer.intact {
            return answer.broken("the readable part was written");
        }
    }
    Ok(())
}

fn reads_before_it_writes(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let apart = session.ask(&list(2), room(2))?;
    let request = list(2);
    for shift in [0, 8, 12] {
        session.guest.lay_out(&[0; 16], room(2) + 16);
        session.guest.ram.write(REPLY + shift, &request);
        let descs = [Desc::readable(REPLY + shift, 16), Desc::writable(REPLY, room(2))];
        session.guest.chain(REQUEST_QUEUE, &descs);
        let overlapping = session.answer(&request, room(2))?;
        if overlapping.reply() != apart.reply() {
            let why =
                format!("where the request lies {shift} bytes behind the reply, the answer is another one");
            return broken(why, [apart.seen(), overlapping.seen()].concat());
        }
    }
    Ok(())
}

fn reserved_bytes_are_zero(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    for answer in answers(&mut session)? {
        let Ok((head, rest)) = wire::ReplyHead::read_from_prefix(answer.reply()) else { continue };
        let kind = wire::RequestHead::read_from_prefix(&answer.request).map(|(head, _)| head.kind.get());
        let mut clean = head.reserved == [0; 6];
        if head.status.get() == Status::Ok.to_wire() {
            let body = rest.get(8..).unwrap_or_default();
            let every = |size: usize, reserved: std::ops::Range<usize>| {
                let zero = |element: &[u8]| {
                    element.get(reserved.clone()).is_none_or(|bytes| bytes.iter().all(|byte| *byte == 0))
                };
                body.chunks(size).all(zero)
            };
            clean &= match kind {
                Ok(wire::request_type::LIST_FUNCTIONS) => {
                    rest.get(4..8).is_none_or(|bytes| bytes == [0; 4]) && every(32, 26..32)
                }
                Ok(wire::request_type::GET_MESSAGES) => rest.get(2..8).is_none_or(|bytes| bytes == [0; 6]),
                Ok(wire::request_type::ALLOCATE) => {
                    rest.get(2..8).is_none_or(|bytes| bytes == [0; 6]) && every(24, 6..8)
                }
                _ => true,
            };
        }
        if !clean {
            return answer.broken("a reserved byte of a reply is not 0");
        }
    }
    drop(session);
    let Ok(record) = any_event(bench) else { return Ok(()) };
    // What a record says, written again, is the record: unknown ones have no fields to check.
    if Event::parse(&record).is_some_and(|event| event.to_wire() != record) {
        let seen = vec![Seen { what: "event record", bytes: record.as_bytes().to_vec() }];
        return broken("a reserved byte or unused field of an event is not 0", seen);
    }
    Ok(())
}

fn any_event(bench: &Bench<'_>) -> Outcome<wire::Event> {
    let mut session = bench.session()?;
    session.listen();
    let candidate = session.candidate(1)?;
    let source = session.hold(&candidate, 0)?;
    session.raise(&candidate, source.vector)?;
    session.record()?.ok_or_else(|| Miss::Unseen("needs an event".to_owned()))
}

fn stops_using_a_broken_ring(bench: &Bench<'_>) -> Outcome {
    // The eventq: the available index is too far ahead.
    let mut session = bench.session()?;
    session.guest.set_available_index(EVENT_QUEUE, QUEUE_SIZE + 1);
    session.guest.kick(EVENT_QUEUE);
    for _ in 0..2 {
        if session.ask(&list(1), room(1)).is_err() {
            return broken("with a broken eventq, requests are not answered any more", Vec::new());
        }
    }
    if let Some((head, used)) = session.guest.poll_used(EVENT_QUEUE) {
        let entry = [head.to_le_bytes(), used.to_le_bytes()].concat();
        return broken(
            "a broken eventq is used",
            vec![Seen { what: "entry of the used ring", bytes: entry }],
        );
    }
    // The requestq, until it is set up again.
    drop(session);
    let mut session = bench.session()?;
    session.guest.set_available_index(REQUEST_QUEUE, QUEUE_SIZE + 1);
    session.guest.kick(REQUEST_QUEUE);
    session.guest.take_down(REQUEST_QUEUE)?;
    session.guest.take_down(EVENT_QUEUE)?;
    if let Some((head, _)) = session.guest.poll_used(REQUEST_QUEUE) {
        return broken(format!("chain {head} of a broken requestq was returned"), Vec::new());
    }
    session.guest.set_up(REQUEST_QUEUE, QUEUE_SIZE)?;
    session.guest.set_up(EVENT_QUEUE, QUEUE_SIZE)?;
    match session.ask(&list(1), room(1)) {
        Ok(_) => Ok(()),
        Err(_) => broken("a requestq that was broken does not work after it was set up again", Vec::new()),
    }
}

fn divisions_mean_nothing(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let (request, room) = (list(2), room(2));
    let whole = session.ask(&request, room)?;
    let read = |from: u32, length: u32| Desc::readable(DATA + u64::from(from), length);
    let write = |from: u32, length: u32| Desc::writable(REPLY + u64::from(from), length);
    let divisions: &[&[Desc]] = &[
        &[read(0, 1), read(1, 7), read(8, 8), write(0, room)],
        &[read(0, 16), write(0, 3), write(3, 10), write(13, 20), write(33, room - 33)],
        &[read(0, 0), read(0, 9), read(9, 0), read(9, 7), write(0, 0), write(0, 17), write(17, room - 17)],
        &[read(0, 5), read(5, 11), write(0, 1), write(1, 1), write(2, room - 2)],
    ];
    for descs in divisions {
        let divided = session.ask_in(&request, room, descs)?;
        if divided.used != whole.used || divided.writable != whole.writable {
            let lengths: Vec<_> = descs.iter().map(|desc| desc.len.to_string()).collect();
            let why = format!("in descriptors of {} bytes the answer is another one", lengths.join(", "));
            return broken(why, [whole.seen(), divided.seen()].concat());
        }
    }
    Ok(())
}

fn answers_without_the_eventq(bench: &Bench<'_>) -> Outcome {
    // With the eventq and no buffer in it, and with no eventq at all.
    for with_eventq in [true, false] {
        let mut session = bench.session_without_queues(u64::MAX)?;
        session.guest.set_up(REQUEST_QUEUE, QUEUE_SIZE)?;
        if with_eventq {
            session.guest.set_up(EVENT_QUEUE, QUEUE_SIZE)?;
        }
        if session.ask(&list(1), room(1)).is_err() {
            let how = if with_eventq { "holds no buffer" } else { "is not enabled" };
            return broken(format!("a request is not answered while the eventq {how}"), Vec::new());
        }
    }
    Ok(())
}

fn refused_chains_change_nothing(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let before = session.ask(&list(8), room(8))?;
    for _ in 0..QUEUE_SIZE {
        session.ask(&[0xff; 24], 8)?;
        session.ask(&list(8)[..9], 64)?;
        session.ask_in(&list(8), room(8), &[Desc::writable(REPLY, room(8)), Desc::readable(DATA, 16)])?;
        session.ask(&list(8), 7)?;
    }
    let after = session.ask(&list(8), room(8))?;
    if after.used == before.used && after.writable == before.writable {
        return Ok(());
    }
    broken(
        "after refused chains the same request has another outcome",
        [before.seen(), after.seen()].concat(),
    )
}

fn refusals_are_a_head_alone(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let mut seen = 0;
    for answer in answers(&mut session)? {
        if answer.status().is_some_and(|status| status != Status::Ok.to_wire()) {
            seen += 1;
            if answer.used != 8 {
                return answer.broken(format!("a refusal has {} bytes", answer.used));
            }
        }
    }
    if seen > 0 { Ok(()) } else { unseen("needs a request that the device refuses") }
}

fn later_requests_see_earlier_ones(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let candidate = session.candidate(1)?;
    for _ in 0..4 {
        let source = session.hold(&candidate, 0)?;
        let held = session.with_source(SourceRequest::Mask, source.id)?;
        if !held.is(Status::Ok) {
            return held.broken(format!("a source that ALLOCATE gave before gets {}", held.outcome()));
        }
        session.must(SourceRequest::Free, source.id)?;
        let freed = session.with_source(SourceRequest::Mask, source.id)?;
        if !freed.is(Status::NoSource) {
            return freed.broken(format!("a source that was freed before gets {}", freed.outcome()));
        }
    }
    Ok(())
}
