// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The checker against a device that is broken on purpose, one way at a time: it names the requirements that this
//! breaks, and no other.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test program: what fails here fails the test")]

mod double;
mod mutation;

use double::Double;
use mutation::{ALL, Mutation};
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use virtio_irq_conform::{Report, Verdict, check};

/// Long enough for a loaded machine; whatever has to come comes at once.
const PATIENCE: Duration = Duration::from_secs(2);

fn report(mutation: Mutation) -> Report {
    let double = Double::start(mutation);
    check(double.socket(), PATIENCE, double.host())
}

#[test]
fn the_double_that_is_not_broken_holds_everything_that_can_be_seen() {
    let report = report(Mutation::None);
    let unseen: Vec<_> = report.findings.iter().filter(|found| found.verdict != Verdict::Held).collect();
    let ids: Vec<_> = unseen.iter().map(|found| found.requirement.id).collect();
    let never = [17, 25, 29, 52, 66, 36, 56, 38, 77, 78].map(|number| format!("IRQ-DEV-{number}"));
    assert!(report.passed() && ids == never, "{}\n{:?}", report.table(false), report.lost);
}

#[test]
fn each_mutation_breaks_the_requirements_that_it_is_about_and_no_other() {
    let next = AtomicUsize::new(0);
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some((mutation, expected)) = ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let report = report(*mutation);
                    let broken: BTreeSet<_> = report.broken().collect();
                    if broken != expected.iter().copied().collect() || report.passed() {
                        let text = format!("{mutation:?}: {broken:?}, not {expected:?}{}", report.details());
                        wrong.lock().unwrap().push(text);
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), ALL.len(), wrong.join("\n"));
}
