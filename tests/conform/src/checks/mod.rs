// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The checks, one for each device requirement.

mod chains;
mod config;
mod endings;
mod events;
mod list;
mod messages;
mod pins;
mod requests;
mod reset;
mod sources;

use crate::Provoke;
use crate::report::{Finding, Report, Verdict};
use crate::requirements::device_requirements;
use crate::session::{Bench, Miss, Outcome};
use std::path::Path;
use std::time::Duration;

/// One check: the id of its requirement, and what to do.
type Check = (&'static str, fn(&Bench<'_>) -> Outcome);

/// In the order in which they run: those that take functions from the device come last.
const CHECKS: &[&[Check]] = &[
    config::CHECKS,
    requests::CHECKS,
    list::CHECKS,
    messages::CHECKS,
    sources::CHECKS,
    pins::CHECKS,
    events::CHECKS,
    endings::CHECKS,
    reset::CHECKS,
    endings::REMOVING,
];

/// What no check tries, and why.
const UNTRIED: &[(&str, &str)] = &[
    ("IRQ-DEV-17", "a permission"),
    ("IRQ-DEV-25", "whether the platform checks messages is seen on the host only"),
    ("IRQ-DEV-29", "what the host programmed is seen on the host only"),
    ("IRQ-DEV-36", "a permission"),
    ("IRQ-DEV-38", "without the features nothing makes the device tell a message that could change"),
    ("IRQ-DEV-52", "whose interrupts are enabled is seen on the host only"),
    ("IRQ-DEV-56", "a permission"),
    ("IRQ-DEV-66", "it takes an interrupt within the microseconds of an allocation"),
    ("IRQ-DEV-77", "a vhost-user device cannot tell a pause from a reset"),
    ("IRQ-DEV-78", "a permission"),
];

/// Tries every requirement on the device that is served at `socket`; each answer may take `patience`.
///
/// The device has to be free: nobody else is connected, and every check is a connection of its own.
pub fn check(socket: &Path, patience: Duration, host: &dyn Provoke) -> Report {
    let bench = Bench { socket, patience, host };
    let mut lost = works(&bench).err().map(|why| format!("the device cannot be used: {why}"));
    let mut verdicts = Vec::new();
    for (id, run) in CHECKS.iter().copied().flatten() {
        if lost.is_some() {
            break;
        }
        let outcome = run(&bench);
        // A check that could not go on can be one that the device did not survive.
        if matches!(outcome, Err(Miss::Unseen(_)))
            && let Err(why) = works(&bench)
        {
            lost = Some(format!("after the check of {id} the device cannot be used any more: {why}"));
        }
        verdicts.push((*id, verdict(outcome)));
    }
    let findings = device_requirements().map(|requirement| {
        let place = verdicts.iter().position(|(id, _)| *id == requirement.id);
        let verdict = match (place, untried(requirement.id)) {
            (Some(place), _) => verdicts.swap_remove(place).1,
            (None, Some(why)) => Verdict::NotObservable(why.to_owned()),
            (None, None) => Verdict::NotObservable("was not tried: the device cannot be used".to_owned()),
        };
        Finding { requirement, verdict }
    });
    Report { findings: findings.collect(), lost }
}

/// Whether a frontend can connect and set everything up. Says what fails.
fn works(bench: &Bench<'_>) -> Result<(), String> {
    match bench.session() {
        Ok(_) => Ok(()),
        Err(Miss::Unseen(why) | Miss::Broken { why, .. }) => Err(why),
    }
}

/// Ids of the requirements that a check tries.
pub fn checked_ids() -> impl Iterator<Item = &'static str> {
    CHECKS.iter().copied().flatten().map(|(id, _)| *id)
}

fn verdict(outcome: Outcome) -> Verdict {
    match outcome {
        Ok(()) => Verdict::Held,
        Err(Miss::Broken { why, seen }) => Verdict::Broken { why, seen },
        Err(Miss::Unseen(why)) => Verdict::NotObservable(why),
    }
}

fn untried(id: &str) -> Option<&'static str> {
    UNTRIED.iter().find(|(untried, _)| *untried == id).map(|(_, why)| *why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_requirement_is_tried_once_or_listed_with_a_reason() {
        let mut seen = BTreeSet::new();
        for id in checked_ids().chain(UNTRIED.iter().map(|(id, _)| *id)) {
            assert!(seen.insert(id), "{id} is there twice");
        }
        let all: BTreeSet<_> = device_requirements().map(|requirement| requirement.id).collect();
        assert_eq!(seen, all);
        assert!(all.len() > 70);
    }
}
