// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The order of checks (IRQ-DEV-10), row by row.

use super::requests::{list, room};
use crate::guest::{DATA, Desc, INDIRECT as TABLE, NEXT, RAM, RAM_SIZE, REPLY};
use crate::session::{Answer, Bench, EVENT, INDIRECT, Miss, NATIVE, Outcome, QUEUE_SIZE, Session, range};
use serde_json::Value;
use std::num::NonZeroU16;
use virtio_irq_proto::{
    Allocate, EVENT_QUEUE, FunctionFlags, FunctionId, IrqType, Layout, REQUEST_QUEUE, ResetFunction,
    SourceId, SourceRange, SourceRequest, Status,
};
use zerocopy::IntoBytes;

/// Requests as bytes, each with what they must come to; here those that rows 2 to 8 decide.
const VECTORS: &str = include_str!("../../../../spec/vectors.json");

pub(super) fn first_row_decides(bench: &Bench<'_>) -> Outcome {
    for features in [NATIVE | EVENT, NATIVE, EVENT, 0] {
        let mut session = bench.session_with(!(NATIVE | EVENT) | features)?;
        if session.features & (NATIVE | EVENT) == features {
            by_vectors(&mut session)?;
        }
    }
    invalid_chains(&mut bench.session()?)?;
    invalid_tables(&mut bench.session()?)?;
    about_functions(&mut bench.session()?)?;
    about_sources(&mut bench.session()?)
}

fn expect(answer: &Answer, status: Status, case: &str) -> Outcome {
    if answer.is(status) {
        return Ok(());
    }
    answer.broken(format!("{case}: {} and not {status:?}", answer.outcome()))
}

fn expect_untouched(answer: &Answer, case: &str) -> Outcome {
    if answer.is_untouched() {
        return Ok(());
    }
    answer.broken(format!("{case}: {} and not untouched", answer.outcome()))
}

/// Every request of the wire vectors that is wrong by itself, for the features that this session has.
fn by_vectors(session: &mut Session<'_>) -> Outcome {
    let vectors: Value = serde_json::from_str(VECTORS)
        .map_err(|error| Miss::Unseen(format!("the checker's own vectors: {error}")))?;
    for vector in vectors["vectors"].as_array().into_iter().flatten() {
        let case = vector["name"].as_str().unwrap_or_default();
        let expected = vector["expect"].as_str().unwrap_or_default();
        let negotiated = |name: &str| {
            let features = vector["features"].as_array().into_iter().flatten();
            features.into_iter().any(|feature| feature == name)
        };
        let fits = [("NATIVE", NATIVE), ("EVENT", EVENT)]
            .into_iter()
            .all(|(name, bit)| negotiated(name) == (session.features & bit != 0));
        let scaled =
            vector["max_vectors"].as_u64().is_some_and(|most| most != u64::from(session.max_vectors));
        let writable = vector["writable"].as_u64().and_then(|length| u32::try_from(length).ok());
        let (true, false, Some(writable)) = (fits && expected != "valid", scaled, writable) else { continue };
        if vector["kind"] != "request" {
            continue;
        }
        let answer = session.ask(&bytes(vector["hex"].as_str().unwrap_or_default()), writable)?;
        if expected == "untouched" {
            expect_untouched(&answer, case)?;
        } else if let Some(status) = named(expected) {
            expect(&answer, status, case)?;
        }
    }
    Ok(())
}

/// As in `BUFFER_TOO_SMALL` and `BufferTooSmall`.
fn named(name: &str) -> Option<Status> {
    let plain = name.replace('_', "");
    Status::ALL.into_iter().find(|status| format!("{status:?}").eq_ignore_ascii_case(&plain))
}

fn bytes(hex: &str) -> Vec<u8> {
    let pairs = hex.as_bytes().chunks(2);
    pairs.filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

/// Row 1, in the descriptor table.
fn invalid_chains(session: &mut Session<'_>) -> Outcome {
    const OUTSIDE: u64 = RAM + RAM_SIZE;
    let request = Desc::readable(DATA, 16);
    let reply = Desc::writable(REPLY, 80);
    let to = |next: u16, desc: Desc| Desc { next, flags: desc.flags | NEXT, ..desc };
    let cases: &[(&str, &[Desc])] = &[
        ("a readable descriptor behind a writable one", &[to(1, reply), request]),
        ("a readable descriptor around the writable one", &[to(1, request), to(2, reply), request]),
        ("a request outside of memory", &[to(1, Desc::readable(OUTSIDE, 16)), reply]),
        ("a request that leaves memory", &[to(1, Desc::readable(OUTSIDE - 15, 16)), reply]),
        ("a request at the end of the address space", &[to(1, Desc::readable(u64::MAX - 15, 16)), reply]),
        ("a reply outside of memory", &[to(1, request), Desc::writable(OUTSIDE, 80)]),
        ("a reply that leaves memory", &[to(1, request), Desc::writable(OUTSIDE - 79, 80)]),
        ("a chain that is a loop", &[to(1, request), to(1, reply)]),
        ("a descriptor outside of the table", &[to(QUEUE_SIZE, request)]),
    ];
    for (case, descs) in cases {
        session.guest.lay_out(&list(2), 80);
        for (index, desc) in (0..).zip(*descs) {
            session.guest.descriptor(REQUEST_QUEUE, index, *desc);
        }
        session.guest.publish(REQUEST_QUEUE, 0);
        session.guest.kick(REQUEST_QUEUE);
        expect_untouched(&session.answer(&list(2), 80)?, case)?;
    }
    Ok(())
}

/// Row 1, in indirect tables.
fn invalid_tables(session: &mut Session<'_>) -> Outcome {
    const AT: u64 = DATA + 0x1000;
    if session.features & INDIRECT == 0 {
        return Ok(());
    }
    let request = Desc::readable(DATA, 16);
    let reply = Desc::writable(REPLY, room(1));
    let to = |next: u16, desc: Desc| Desc { next, flags: desc.flags | NEXT, ..desc };
    let nested = Desc { flags: TABLE, ..Desc::readable(AT, 32) };
    let cases: &[(&str, &[Desc], u32)] = &[
        ("an indirect table of 0 bytes", &[to(1, request), reply], 0),
        ("an indirect table of 24 bytes", &[to(1, request), reply], 24),
        ("an indirect table in an indirect table", &[to(1, request), nested], 32),
        ("a loop in an indirect table", &[to(1, request), to(0, reply)], 32),
        ("an index outside of the indirect table", &[to(2, request), reply], 32),
    ];
    for (case, descs, length) in cases {
        let table: Vec<_> = descs.iter().flat_map(|desc| desc.bytes()).collect();
        session.guest.ram.write(AT, &table);
        let answer =
            session.ask_in(&list(1), room(1), &[Desc { flags: TABLE, ..Desc::readable(AT, *length) }])?;
        expect_untouched(&answer, case)?;
    }
    Ok(())
}

/// Rows 9, 11 and 12.
fn about_functions(session: &mut Session<'_>) -> Outcome {
    let unlisted = session.unlisted()?;
    let functions = session.functions()?;
    let unknown = |answer: &Answer, case: &str| match answer.is(Status::FunctionGone) {
        true => Ok(()),
        false => expect(answer, Status::NoFunction, case),
    };
    if session.features & EVENT != 0 {
        let request = ResetFunction { function: unlisted };
        unknown(&session.ask(request.to_wire().as_bytes(), 8)?, "RESET_FUNCTION of no function")?;
    }
    if session.features & NATIVE != 0 {
        // Row 9 comes before row 11: the vector is out of range of any function.
        if let Some(beyond) = range(IrqType::Msix, u16::MAX, 1) {
            unknown(&session.messages_answer(unlisted, beyond)?, "GET_MESSAGES of no function")?;
        }
    }
    for function in functions {
        for irq_type in [IrqType::Msi, IrqType::Msix] {
            let count = function.vector_count(irq_type);
            let native = function.flags.contains(FunctionFlags::NATIVE);
            for (first, wanted) in [(count, 1), (u16::MAX, 1), (0, count.saturating_add(1))] {
                let Some(vectors) = range(irq_type, first, wanted) else { continue };
                if session.features & NATIVE != 0 && wanted <= session.max_vectors {
                    let answer = session.messages_answer(function.id, vectors)?;
                    expect(
                        &answer,
                        Status::NoVector,
                        "GET_MESSAGES of vectors that the function does not have",
                    )?;
                }
            }
            if session.features & NATIVE != 0
                && let Some(first) = range(irq_type, 0, 1)
                && count > 0
            {
                let answer = session.messages_answer(function.id, first)?;
                let refused = answer.is(Status::Unsupported);
                if refused == native {
                    return answer.broken(format!(
                        "GET_MESSAGES of a function {} VIRTIO_IRQ_FN_NATIVE: {}",
                        if native { "with" } else { "without" },
                        answer.outcome()
                    ));
                }
            }
            if session.features & EVENT != 0 {
                let beyond = allocate(function.id, irq_type, count, 1, 1);
                let answer = session.allocate_answer(beyond)?;
                expect(&answer, Status::NoVector, "ALLOCATE of vectors that the function does not have")?;
            }
        }
    }
    Ok(())
}

fn allocate(function: FunctionId, irq_type: IrqType, first: u16, least: u16, most: u16) -> Allocate {
    let number = |count| NonZeroU16::new(count).unwrap_or(NonZeroU16::MIN);
    Allocate {
        function,
        irq_type,
        layout: Layout::Any,
        least: number(least),
        most: number(most),
        first,
        delivery: virtio_irq_proto::Delivery::Event,
    }
}

/// Rows 10, 14, 15 and 19.
fn about_sources(session: &mut Session<'_>) -> Outcome {
    let Ok(candidate) = session.candidate(2) else { return Ok(()) };
    for what in [SourceRequest::Free, SourceRequest::Mask, SourceRequest::Unmask] {
        for id in [0, session.max_sources, u32::MAX] {
            let answer = session.with_source(what, SourceId(id))?;
            expect(&answer, Status::NoSource, &format!("{what:?} of a source that nobody holds"))?;
        }
    }
    let source = session.hold(&candidate, 1)?;
    let beyond = SourceRange { first: source.id, count: NonZeroU16::MAX };
    let answer = session.sources_answer(SourceRequest::Mask, beyond)?;
    expect(&answer, Status::NoSource, "MASK of a range of which one source is held")?;
    if candidate.intx {
        let answer = session.allocate_answer(candidate.pin().any(1, 1))?;
        expect(&answer, Status::Busy, "ALLOCATE of INTx beside sources of another type")?;
    }
    // All of them are more than are left, whether by the quota or because one is taken.
    if candidate.count <= session.max_vectors {
        let answer = session.allocate_answer(candidate.any(candidate.count, candidate.count))?;
        expect(&answer, Status::NoSpace, "ALLOCATE of more sources than are left")?;
    }
    session.must(SourceRequest::Free, source.id)?;
    // The eventq plays no part in any of this.
    match session.guest.poll_used(EVENT_QUEUE) {
        None => Ok(()),
        Some(_) => Err(Miss::Unseen("the device returned an event buffer that it does not have".to_owned())),
    }
}
