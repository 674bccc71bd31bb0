// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! GET_MESSAGES and the lifetime of messages.

use super::Check;
use crate::provoke::Action;
use crate::session::{Bench, Outcome, Session, pair, range, unseen};
use virtio_irq_proto::{Function, IrqType, Message, VectorRange, wire};
use zerocopy::FromBytes;

pub(super) const CHECKS: &[Check] = &[
    ("IRQ-DEV-28", one_message_for_each_vector),
    ("IRQ-DEV-30", msi_is_a_block),
    ("IRQ-DEV-31", another_message_has_another_generation),
    ("IRQ-DEV-32", the_same_message_keeps_its_generation),
];

fn one_message_for_each_vector(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let (function, vectors) = session.native(2)?;
    for (first, count) in [(0, vectors.count.get()), (1, vectors.count.get() - 1), (1, 1)] {
        let Some(some) = range(vectors.irq_type, first, count) else { continue };
        let answer = session.messages_answer(function.id, some)?;
        let counted = wire::MessageListHead::read_from_prefix(answer.reply())
            .is_ok_and(|(head, _)| head.count.get() == count);
        if !counted {
            return answer.broken(format!("asked for {count} messages"));
        }
        let together = session.messages(function.id, some)?;
        for (vector, message) in (first..).zip(together) {
            let Some(one) = range(vectors.irq_type, vector, 1) else { continue };
            if session.messages(function.id, one)?.first().map(pair) != Some(pair(&message)) {
                return answer.broken(format!("vector {vector} asked for alone has another message"));
            }
        }
    }
    Ok(())
}

fn msi_is_a_block(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let (function, vectors) = session.native(2)?;
    let Some(msi) = range(IrqType::Msi, 0, function.msi_count.min(session.max_vectors)) else {
        return unseen("needs a function with MSI");
    };
    if vectors.irq_type != IrqType::Msi {
        return unseen("needs a function with two MSI vectors enabled");
    }
    let answer = session.messages_answer(function.id, msi)?;
    let messages = session.messages(function.id, msi)?;
    let counts_up =
        messages.is_sorted_by(|a, b| a.address == b.address && a.data.checked_add(1) == Some(b.data));
    if counts_up { Ok(()) } else { answer.broken("messages of MSI vectors do not count up from one address") }
}

/// Moves the messages and returns those before and after, if they did move.
fn moved(
    session: &mut Session<'_>,
    function: &Function,
    vectors: VectorRange,
) -> Outcome<Vec<(Message, Message)>> {
    let before = session.messages(function.id, vectors)?;
    session.provoke(Action::Move { function: function.id.0 })?;
    let after = session.messages(function.id, vectors)?;
    let pairs: Vec<_> = before.into_iter().zip(after).filter(|(a, b)| pair(a) != pair(b)).collect();
    if pairs.is_empty() { unseen("the messages did not move") } else { Ok(pairs) }
}

fn another_message_has_another_generation(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let (function, vectors) = session.native(1)?;
    for (before, after) in moved(&mut session, &function, vectors)? {
        if before.generation == after.generation {
            let answer = session.messages_answer(function.id, vectors)?;
            return answer.broken(format!(
                "{:#x}/{:#x} became {:#x}/{:#x} and kept generation {}",
                before.address, before.data, after.address, after.data, after.generation
            ));
        }
    }
    Ok(())
}

fn the_same_message_keeps_its_generation(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let (function, vectors) = session.native(1)?;
    let before = session.messages(function.id, vectors)?;
    for _ in 0..3 {
        let answer = session.messages_answer(function.id, vectors)?;
        let now = session.messages(function.id, vectors)?;
        for (before, now) in before.iter().zip(&now) {
            if pair(before) == pair(now) && before.generation != now.generation {
                return answer.broken(format!(
                    "a message that did not move had generation {} and has {}",
                    before.generation, now.generation
                ));
            }
        }
    }
    Ok(())
}
