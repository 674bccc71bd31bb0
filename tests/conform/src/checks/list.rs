// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! LIST_FUNCTIONS. What is said of functions that leave is in `endings`.

use super::Check;
use crate::report::Seen;
use crate::session::{Bench, EVENT, NATIVE, Outcome, Session, broken, pair, range, unseen};
use virtio_irq_proto::{Function, FunctionFlags, IrqType, Status, wire};
use zerocopy::IntoBytes;

pub(super) const CHECKS: &[Check] = &[
    ("IRQ-DEV-19", answers_for_no_other_function),
    ("IRQ-DEV-20", ids_stay),
    ("IRQ-DEV-21", first_ids_from_start),
    ("IRQ-DEV-22", remaining_counts),
    ("IRQ-DEV-24", address_needs_its_flag),
    ("IRQ-DEV-26", stable_messages_stay),
    ("IRQ-DEV-27", native_flag_means_it),
    ("IRQ-DEV-49", event_flag_means_it),
];

/// Number of ids without a function that are tried.
const STRANGERS: usize = 64;

fn answers_for_no_other_function(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    session.require(NATIVE, "VIRTIO_IRQ_F_NATIVE")?;
    let listed = session.functions()?;
    let strangers = (0..=u16::MAX).map(virtio_irq_proto::FunctionId);
    let strangers = strangers.filter(|id| listed.iter().all(|function| function.id != *id));
    let Some(vectors) = range(IrqType::Msi, 0, 1) else { return Ok(()) };
    for id in strangers.take(STRANGERS) {
        let answer = session.messages_answer(id, vectors)?;
        if answer.is(Status::Ok) {
            return answer.broken(format!("function {id} is not listed and has messages"));
        }
    }
    Ok(())
}

fn seen(functions: &[wire::Function]) -> Vec<Seen> {
    vec![Seen { what: "functions", bytes: functions.as_bytes().to_vec() }]
}

fn ids_stay(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let (_, first, _) = session.list_page(0, 256)?;
    let (_, second, _) = session.list_page(0, 256)?;
    for (index, function) in first.iter().enumerate() {
        if first.iter().skip(index + 1).any(|other| other.id == function.id) {
            return broken(format!("two functions have the id {}", function.id), seen(&first));
        }
        let same = second.iter().find(|other| other.id == function.id);
        if same.is_some_and(|other| identity(other) != identity(function)) {
            return broken(
                format!("id {} names another function now", function.id),
                [seen(&first), seen(&second)].concat(),
            );
        }
    }
    Ok(())
}

/// What a function keeps as long as it is there.
fn identity(function: &wire::Function) -> [u8; 24] {
    let mut function = *function;
    function.flags = 0.into();
    let mut identity = [0; 24];
    identity.copy_from_slice(function.as_bytes().get(2..26).unwrap_or(&[0; 24]));
    identity
}

fn first_ids_from_start(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let (answer, all, _) = session.list_page(0, 256)?;
    if !all.is_sorted_by(|a, b| a.id.get() < b.id.get()) {
        return answer.broken("ids do not ascend");
    }
    for (start, count) in pages(&all) {
        let (answer, page, _) = session.list_page(start, count)?;
        let ids = |functions: &[wire::Function]| -> Vec<u16> {
            functions.iter().map(|function| function.id.get()).collect()
        };
        let expected: Vec<_> =
            ids(&all).into_iter().filter(|id| *id >= start).take(usize::from(count)).collect();
        if ids(&page) != expected {
            return answer.broken(format!("{count} functions from id {start} are not {expected:?}"));
        }
    }
    Ok(())
}

/// Places to begin at and numbers to ask for that matter for this list.
fn pages(all: &[wire::Function]) -> Vec<(u16, u16)> {
    let ids = all.iter().map(|function| function.id.get());
    let starts = ids.flat_map(|id| [id.saturating_sub(1), id, id.saturating_add(1)]).take(48);
    starts.chain([0, u16::MAX]).flat_map(|start| [1, 2, 255].map(|count| (start, count))).collect()
}

fn remaining_counts(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let (answer, all, remaining) = session.list_page(0, 256)?;
    if remaining != 0 {
        if all.len() < 256 {
            return answer.broken(format!("{remaining} remain of a list that is whole"));
        }
        return unseen("the list is too long for this check");
    }
    for (start, count) in pages(&all) {
        let (answer, page, remaining) = session.list_page(start, count)?;
        let last = page.last().map(|function| function.id.get());
        let above = all.iter().filter(|function| last.is_some_and(|last| function.id.get() > last)).count();
        if usize::from(remaining) != above {
            return answer.broken(format!(
                "{count} functions from id {start}: {remaining} remain, and there are {above}"
            ));
        }
    }
    Ok(())
}

fn flagged(session: &mut Session<'_>, flag: FunctionFlags) -> Outcome<Vec<Function>> {
    let functions = session.functions()?;
    Ok(functions.into_iter().filter(|function| function.flags.contains(flag)).collect())
}

fn address_needs_its_flag(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let (_, functions, _) = session.list_page(0, 256)?;
    for function in &functions {
        let known = FunctionFlags::from_bits(function.flags.get()).contains(FunctionFlags::GUEST_ADDRESS);
        if !known && function.guest_address.get() != 0 {
            return broken(
                "guest_address is not 0, and VIRTIO_IRQ_FN_GUEST_ADDRESS is not set",
                seen(&[*function]),
            );
        }
    }
    Ok(())
}

fn stable_messages_stay(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let (function, vectors) = session.native(1)?;
    if !function.flags.contains(FunctionFlags::STABLE) {
        return unseen("needs an enabled function with VIRTIO_IRQ_FN_STABLE");
    }
    let before = session.messages(function.id, vectors)?;
    for _ in 0..16 {
        let answer = session.messages_answer(function.id, vectors)?;
        // One that was disabled meanwhile says nothing.
        if !answer.is(Status::Ok) {
            return unseen(format!("function {} was disabled meanwhile", function.id));
        }
        let now = session.messages(function.id, vectors)?;
        let moved = now.iter().zip(&before).any(|(a, b)| pair(a) != pair(b));
        if moved {
            return answer.broken("a message of a function with VIRTIO_IRQ_FN_STABLE moved");
        }
    }
    Ok(())
}

fn native_flag_means_it(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    for function in flagged(&mut session, FunctionFlags::NATIVE)? {
        let entry = [function.to_wire()];
        if session.features & NATIVE == 0 {
            return broken("the flag is set, and VIRTIO_IRQ_F_NATIVE is not offered", seen(&entry));
        }
        if function.msi_count == 0 && function.msix_count == 0 {
            return broken("the flag is set for a function that has no messages", seen(&entry));
        }
    }
    Ok(())
}

fn event_flag_means_it(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    for function in flagged(&mut session, FunctionFlags::EVENT)? {
        let entry = [function.to_wire()];
        if session.features & EVENT == 0 {
            return broken("the flag is set, and VIRTIO_IRQ_F_EVENT is not offered", seen(&entry));
        }
        if function.intx_count == 0 && function.msi_count == 0 && function.msix_count == 0 {
            return broken("the flag is set for a function that has no vectors", seen(&entry));
        }
    }
    Ok(())
}
