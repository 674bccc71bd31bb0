// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Event delivery: ALLOCATE, FREE, MASK and UNMASK. What is particular to a pin is in `pins`.

use super::Check;
use crate::provoke::Action;
use crate::session::{
    Answer, Bench, Candidate, Miss, NATIVE, Outcome, Session, broken, pair, range, seen_records, unseen,
};
use std::collections::BTreeSet;
use std::num::NonZeroU16;
use virtio_irq_proto::{Allocate, Layout, Message, Source, SourceRange, SourceRequest, Status, wire};

pub(super) const CHECKS: &[Check] = &[
    ("IRQ-DEV-50", ids_are_below_the_greatest_and_unique),
    ("IRQ-DEV-51", the_host_gets_back_what_is_freed),
    ("IRQ-DEV-58", sources_are_as_many_as_asked_for),
    ("IRQ-DEV-59", as_many_as_can_be),
    ("IRQ-DEV-60", the_lowest_vectors),
    ("IRQ-DEV-62", blocks_are_blocks),
    ("IRQ-DEV-63", the_first_run),
    ("IRQ-DEV-64", messages_of_sources),
    ("IRQ-DEV-65", new_sources_are_clean),
    ("IRQ-DEV-67", refusals_leave_nothing),
    ("IRQ-DEV-68", all_or_none),
    ("IRQ-DEV-69", freed_sources_are_silent),
    ("IRQ-DEV-70", masked_sources_are_silent),
    ("IRQ-DEV-72", the_host_cannot_keep_a_source),
];

/// Number of sources that a check allocates where it could have more.
const SOME: u16 = 8;

fn some(candidate: &Candidate) -> u16 {
    candidate.count.min(SOME)
}

/// Allocates, and gives the answer as well, for what it says to be shown.
fn allocated(session: &mut Session<'_>, request: Allocate) -> Outcome<(Answer, Vec<Source>)> {
    let answer = session.allocate_answer(request)?;
    if !answer.is(Status::Ok) {
        return unseen(format!("needs ALLOCATE, which got {}", answer.outcome()));
    }
    let rest = answer.reply().get(16..).unwrap_or_default();
    let sources: &[wire::Source] = zerocopy::FromBytes::ref_from_bytes(rest)
        .map_err(|_| Miss::Unseen("needs ALLOCATE, whose reply has no whole sources".to_owned()))?;
    let sources = sources.iter().map(|source| Source::from(*source)).collect();
    Ok((answer, sources))
}

fn ids_are_below_the_greatest_and_unique(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let mut seen = BTreeSet::new();
    for candidate in session.candidates(1)?.into_iter().take(4) {
        for first in 0..some(&candidate).min(3) {
            let (answer, sources) = allocated(&mut session, Allocate { first, ..candidate.any(1, 1) })?;
            for source in sources {
                if source.id.0 >= session.max_sources {
                    return answer.broken(format!(
                        "id {} is not less than max_sources {}",
                        source.id, session.max_sources
                    ));
                }
                if !seen.insert(source.id) {
                    return answer.broken(format!("id {} is another source's", source.id));
                }
            }
        }
    }
    if seen.is_empty() { unseen("needs a function with event delivery") } else { Ok(()) }
}

fn the_host_gets_back_what_is_freed(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let candidate = session.candidate(1)?;
    // What is left of one type on the host is in the way of another one.
    let other = if candidate.intx { candidate.pin() } else { candidate };
    for (first, then) in [(candidate, other), (other, candidate)] {
        let sources = session.allocate(first.any(1, some(&first)))?;
        for source in &sources {
            session.must(SourceRequest::Free, source.id)?;
        }
        let answer = session.allocate_answer(then.any(1, some(&then)))?;
        if answer.is(Status::Busy) || answer.is(Status::NoSpace) {
            return answer.broken(format!(
                "after {:?} was freed, {:?} gets {}",
                first.irq_type,
                then.irq_type,
                answer.outcome()
            ));
        }
        if !answer.is(Status::Ok) {
            return unseen(format!("needs ALLOCATE, which got {}", answer.outcome()));
        }
        let (_, held) = read(&answer);
        for source in held {
            session.must(SourceRequest::Free, source.id)?;
        }
    }
    Ok(())
}

fn read(answer: &Answer) -> (u16, Vec<Source>) {
    let rest = answer.reply().get(16..).unwrap_or_default();
    let sources: Vec<_> = <[wire::Source] as zerocopy::FromBytes>::ref_from_bytes(rest)
        .map(|sources| sources.iter().map(|source| Source::from(*source)).collect())
        .unwrap_or_default();
    (u16::try_from(sources.len()).unwrap_or(u16::MAX), sources)
}

fn sources_are_as_many_as_asked_for(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let candidate = session.candidate(3)?;
    for (least, most, first) in [(1, 1, 0), (1, 2, 1), (2, 3, 0), (1, 3, candidate.count - 1)] {
        let request = Allocate { first, ..candidate.any(least, most) };
        let (answer, sources) = allocated(&mut session, request)?;
        if !(usize::from(least)..=usize::from(most)).contains(&sources.len()) {
            return answer.broken(format!("asked for {least} to {most} sources, got {}", sources.len()));
        }
        if !sources.is_sorted_by(|a, b| a.vector < b.vector && a.id < b.id) {
            return answer.broken("vectors or ids do not ascend");
        }
        if sources.iter().any(|source| source.vector < first) {
            return answer.broken(format!("a vector is below {first}"));
        }
        for source in sources {
            session.must(SourceRequest::Free, source.id)?;
        }
    }
    Ok(())
}

fn as_many_as_can_be(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let candidate = session.candidate(2)?;
    let most = some(&candidate);
    let (answer, sources) = allocated(&mut session, candidate.any(1, most))?;
    if sources.len() == usize::from(most) {
        return Ok(());
    }
    // Fewer are in order where no more are to be had.
    let more = session.allocate_answer(candidate.any(1, 1))?;
    if more.is(Status::Ok) {
        return answer.broken(format!("{} of {most} sources, and there were more", sources.len()));
    }
    Ok(())
}

fn the_lowest_vectors(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let candidate = session.candidate(4)?;
    session.hold(&candidate, 1)?;
    for (first, expected) in [(0, vec![0, 2]), (0, vec![3])] {
        let count = u16::try_from(expected.len()).unwrap_or(1);
        let request = Allocate { first, ..candidate.any(count, count) };
        let (answer, sources) = allocated(&mut session, request)?;
        let vectors: Vec<_> = sources.iter().map(|source| source.vector).collect();
        if vectors != expected {
            return answer.broken(format!("got vectors {vectors:?}, and {expected:?} are the lowest"));
        }
    }
    Ok(())
}

/// A block of this many sources, if some function gives one.
fn block(session: &mut Session<'_>, least: u16) -> Outcome<(Answer, Vec<Source>, Candidate)> {
    let mut why = "needs a function with event delivery".to_owned();
    for candidate in session.candidates(least)? {
        let layout = Layout::Contiguous;
        let answer = session.allocate_answer(Allocate { layout, ..candidate.any(least, least) })?;
        if answer.is(Status::Ok) {
            let (_, sources) = read(&answer);
            return Ok((answer, sources, candidate));
        }
        why = format!("needs a block of {least} sources, which got {}", answer.outcome());
    }
    unseen(why)
}

fn blocks_are_blocks(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let (answer, sources, _) = block(&mut session, 4)?;
    let follows = |a: &Source, b: &Source| {
        a.vector.checked_add(1) == Some(b.vector)
            && a.message.address == b.message.address
            && a.message.data.checked_add(1) == Some(b.message.data)
    };
    if sources.is_sorted_by(follows) { Ok(()) } else { answer.broken("the sources are no block") }
}

fn the_first_run(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let (_, sources, candidate) = block(&mut session, 8)?;
    // What is left free from 0 on: 1, then 3 to 5, then 7 and what follows.
    for vector in [1, 3, 4, 5] {
        if let Some(source) = sources.iter().find(|source| source.vector == vector) {
            session.must(SourceRequest::Free, source.id)?;
        }
    }
    let layout = Layout::Contiguous;
    let (answer, got) = allocated(&mut session, Allocate { layout, ..candidate.any(2, 2) })?;
    let vectors: Vec<_> = got.iter().map(|source| source.vector).collect();
    if vectors == [3, 4] {
        return Ok(());
    }
    answer.broken(format!("got vectors {vectors:?} for a block of 2, and 3 and 4 are the first run"))
}

fn messages_of_sources(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let candidate = session.candidate(1)?;
    if candidate.intx {
        let (answer, sources) = allocated(&mut session, candidate.pin().any(1, 1))?;
        for source in sources {
            if source.message != Message::default() {
                return answer.broken("the message of an INTx source is not zeros");
            }
            session.must(SourceRequest::Free, source.id)?;
        }
    }
    let (answer, sources) = allocated(&mut session, candidate.any(1, some(&candidate)))?;
    if session.features & NATIVE == 0 {
        return unseen("what the host programmed is seen on the host only");
    }
    for source in sources {
        let Some(vector) = range(candidate.irq_type, source.vector, 1) else { continue };
        let told = session.messages_answer(candidate.id, vector)?;
        if !told.is(Status::Ok) {
            return unseen(format!("needs GET_MESSAGES of a source, which got {}", told.outcome()));
        }
        let message = session.messages(candidate.id, vector)?;
        if message.first().map(pair) != Some(pair(&source.message)) {
            return answer.broken(format!(
                "GET_MESSAGES tells another message of source {}, which is vector {}",
                source.id, source.vector
            ));
        }
    }
    Ok(())
}

fn new_sources_are_clean(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let candidate = session.candidate(2)?;
    let witness = session.witness(&candidate, 1)?;
    let first = session.hold(&candidate, 0)?;
    session.raise(&candidate, 0)?;
    session.must(SourceRequest::Mask, first.id)?;
    session.must(SourceRequest::Free, first.id)?;
    let second = session.hold(&candidate, 0)?;
    session.listen();
    session.stays_silent(second.id, &witness, "a new source delivers what fired before it was allocated")?;
    session.raise(&candidate, 0)?;
    session.delivers(second.id, &witness, "a new source fired and delivered nothing")
}

fn refusals_leave_nothing(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let candidate = session.candidate(4)?;
    let (pin, all) = (candidate.pin(), candidate.count.min(session.max_vectors));
    let middle = session.hold(&candidate, 2)?;
    // More in a row than there are: refused after the host was asked.
    let layout = Layout::Contiguous;
    let refused = session.allocate_answer(Allocate { layout, ..candidate.any(all, all) })?;
    if refused.is(Status::Ok) {
        return unseen("needs an ALLOCATE that the device refuses");
    }
    // Every vector but the one is to be had still.
    let answer = session.allocate_answer(candidate.any(all - 1, all - 1))?;
    if answer.is(Status::NoSpace) && session.max_sources >= u32::from(all) {
        return answer.broken("after an ALLOCATE that was refused there are fewer sources to be had");
    }
    let (_, sources) = read(&answer);
    for source in sources {
        session.must(SourceRequest::Free, source.id)?;
    }
    session.must(SourceRequest::Free, middle.id)?;
    let _ = session.allocate_answer(Allocate { first: candidate.count - 1, ..candidate.any(2, 2) })?;
    if candidate.intx {
        let answer = session.allocate_answer(pin.any(1, 1))?;
        if answer.is(Status::Busy) {
            return answer.broken("after an ALLOCATE that was refused the function is busy");
        }
    }
    Ok(())
}

fn all_or_none(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let candidate = session.candidate(2)?;
    let sources = session.allocate(candidate.any(2, 2))?;
    let [a, b] = sources.as_slice() else { return unseen("needs two sources") };
    // One more than the driver holds.
    let beyond = SourceRange { first: a.id, count: NonZeroU16::MAX };
    for what in [SourceRequest::Free, SourceRequest::Mask, SourceRequest::Unmask] {
        let refused = session.sources_answer(what, beyond)?;
        if !refused.is(Status::NoSource) {
            return unseen(format!(
                "needs NO_SOURCE for a range that is not held, got {}",
                refused.outcome()
            ));
        }
    }
    for source in [a, b] {
        let answer = session.with_source(SourceRequest::Free, source.id)?;
        if answer.is(Status::NoSource) {
            return answer.broken(format!("a FREE that got NO_SOURCE freed source {}", source.id));
        }
    }
    let sources = session.allocate(candidate.any(2, 2))?;
    let first = sources.first().map(|source| source.id).unwrap_or(a.id);
    let two = NonZeroU16::new(2).unwrap_or(NonZeroU16::MIN);
    if sources.last().is_some_and(|last| last.id.0 == first.0 + 1) {
        let freed = session.sources_answer(SourceRequest::Free, SourceRange { first, count: two })?;
        for source in &sources {
            let answer = session.with_source(SourceRequest::Mask, source.id)?;
            if freed.is(Status::Ok) && answer.is(Status::Ok) {
                return answer.broken(format!("a FREE of two that got OK left source {}", source.id));
            }
        }
    }
    Ok(())
}

fn freed_sources_are_silent(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let candidate = session.candidate(2)?;
    let (freed, witness) = (session.hold(&candidate, 0)?, session.witness(&candidate, 1)?);
    session.raise(&candidate, 0)?;
    session.must(SourceRequest::Free, freed.id)?;
    session.listen();
    let records = session.witnessed(&witness)?;
    if records.iter().any(|record| record.source.get() == freed.id.0) {
        return broken("a source that was freed still has an event", seen_records(&records));
    }
    Ok(())
}

fn masked_sources_are_silent(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let candidate = session.candidate(2)?;
    let (masked, witness) = (session.hold(&candidate, 0)?, session.witness(&candidate, 1)?);
    // Pending when it is masked, and fired after.
    for before in [true, false] {
        if before {
            session.raise(&candidate, 0)?;
        }
        session.must(SourceRequest::Mask, masked.id)?;
        if !before {
            session.raise(&candidate, 0)?;
        }
        session.listen();
        session.stays_silent(masked.id, &witness, "a masked source delivered an INTERRUPT")?;
        session.reset()?;
        session.hold(&candidate, 0)?;
        session.hold(&candidate, 1)?;
    }
    Ok(())
}

fn the_host_cannot_keep_a_source(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let candidate = session.candidate(1)?;
    let source = session.hold(&candidate, 0)?;
    session.provoke(Action::Fail { function: candidate.id.0 })?;
    let freed = session.with_source(SourceRequest::Free, source.id)?;
    let again = session.with_source(SourceRequest::Free, source.id)?;
    if !freed.is(Status::Ok) || !again.is(Status::NoSource) {
        return freed.broken("the host failed, and the source was not freed");
    }
    Ok(())
}
