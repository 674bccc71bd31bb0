// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Device resets and pauses. To a vhost-user device both are queues that stop and start again: from index 0 after a
//! reset, from where they were after a pause.

use super::Check;
use crate::provoke::Action;
use crate::session::{Bench, Outcome, QUEUE_SIZE, broken, pair, seen_records, unseen};
use virtio_irq_proto::{EVENT_QUEUE, SourceRequest, Status};

pub(super) const CHECKS: &[Check] = &[
    ("IRQ-DEV-41", resets_forget_events),
    ("IRQ-DEV-42", resets_leave_functions_alone),
    ("IRQ-DEV-43", pauses_keep_generations),
    ("IRQ-DEV-44", the_eventq_alone_forgets_nothing),
    ("IRQ-DEV-45", generations_outlive_resets),
    ("IRQ-DEV-76", resets_free_sources),
];

fn resets_forget_events(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let candidate = session.candidate(2)?;
    let source = session.hold(&candidate, 0)?;
    session.raise(&candidate, 0)?;
    session.functions()?;
    session.reset()?;
    let witness = session.witness(&candidate, 1)?;
    session.listen();
    let records = session.witnessed(&witness)?;
    if records.is_empty() {
        return Ok(());
    }
    broken(
        format!("an event from before the reset came, source {} was pending", source.id),
        seen_records(&records),
    )
}

fn resets_leave_functions_alone(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let (function, vectors) = session.native(1)?;
    let before = session.messages(function.id, vectors)?;
    session.reset()?;
    let (same, _) = session.native(1)?;
    if same.id != function.id {
        return unseen("the functions have other ids after the reset");
    }
    let answer = session.messages_answer(function.id, vectors)?;
    let after = session.messages(function.id, vectors)?;
    if before.iter().map(pair).eq(after.iter().map(pair)) {
        Ok(())
    } else {
        answer.broken("a reset moved messages")
    }
}

fn pauses_keep_generations(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let (function, vectors) = session.native(1)?;
    let before = session.messages(function.id, vectors)?;
    session.pause()?;
    let answer = session.messages_answer(function.id, vectors)?;
    let after = session.messages(function.id, vectors)?;
    let kept = before
        .iter()
        .zip(&after)
        .all(|(before, after)| pair(before) != pair(after) || before.generation == after.generation);
    if kept {
        Ok(())
    } else {
        answer.broken("a message that did not move has another generation after a pause")
    }
}

fn the_eventq_alone_forgets_nothing(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let candidate = session.candidate(1)?;
    let source = session.hold(&candidate, 0)?;
    session.raise(&candidate, 0)?;
    session.functions()?;
    session.guest.take_down(EVENT_QUEUE)?;
    session.guest.set_up(EVENT_QUEUE, QUEUE_SIZE)?;
    session.listen();
    session.interrupts_next(source.id, "a pending event is lost when the eventq alone is set up again")
}

fn generations_outlive_resets(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let (function, vectors) = session.native(1)?;
    // The reset first: it is what a generation can restart at, and the pause then meets the restarted one.
    for pause in [false, true] {
        let before = session.messages(function.id, vectors)?;
        session.provoke(Action::Move { function: function.id.0 })?;
        if pause {
            session.pause()?
        } else {
            session.reset()?
        }
        let answer = session.messages_answer(function.id, vectors)?;
        let after = session.messages(function.id, vectors)?;
        let mixed_up = before
            .iter()
            .zip(&after)
            .any(|(before, after)| pair(before) != pair(after) && before.generation == after.generation);
        if mixed_up {
            let what = if pause { "pause" } else { "reset" };
            return answer
                .broken(format!("after a {what} another message has the generation of the last one"));
        }
    }
    Ok(())
}

fn resets_free_sources(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let candidate = session.candidate(1)?;
    let source = session.hold(&candidate, 0)?;
    session.reset()?;
    let answer = session.with_source(SourceRequest::Mask, source.id)?;
    if answer.is(Status::NoSource) {
        return Ok(());
    }
    answer.broken(format!("a source from before the reset gets {}", answer.outcome()))
}
