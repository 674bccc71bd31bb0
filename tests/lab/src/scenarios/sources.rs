// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Vectors of a function that virtio-irq delivers, and what has to hold of them whatever the function is.

use super::functions::Function;
use super::vectors::{Vectors, added, listed, names, raise_each};
use super::{Common, Sabotage, Stand};
use crate::checks::{Row, Unmet, expect};
use crate::error::Result;
use crate::host::{Host, RunningGuest};
use crate::msi::Pair;
use std::ops::Range;

/// The vector that is masked, and one whose interrupts show that all before them have come.
const MASKED: usize = 3;
pub(super) const MARKER: usize = 4;

/// The part of the vectors that is freed and allocated again, and one of it.
const PART: Range<usize> = 5..9;
const OF_PART: usize = 6;

/// What holds of the sources of any function.
pub(super) const COMMON: Common = Common {
    checks: &[
        "masked-fires-once-after-unmask",
        "freed-part-is-silent",
        "part-is-allocated-again",
        "freed-leaves-no-vector",
    ],
    sabotages: &[
        Sabotage {
            name: "keep-unmasked",
            what: "the vector is not masked",
            fails: "masked-fires-once-after-unmask",
        },
        Sabotage { name: "keep-part", what: "the part is not freed", fails: "freed-part-is-silent" },
        Sabotage {
            name: "lesser-part",
            what: "less than the part is allocated again",
            fails: "part-is-allocated-again",
        },
        Sabotage { name: "keep-one", what: "one vector is not freed", fails: "freed-leaves-no-vector" },
    ],
};

/// The sources of a function, all of its vectors from 0 on.
pub(super) struct Sources<'a> {
    pub(super) host: &'a Host,
    pub(super) guest: &'a RunningGuest,
    pub(super) vectors: Vectors<'a>,
    pub(super) function: Function,
    /// How they are allocated: type and layout.
    pub(super) how: &'static str,
    /// What vfio-pci calls the host's vectors.
    pub(super) requested: &'static str,
    pub(super) count: usize,
    /// The messages that the hardware has.
    pub(super) messages: fn(&Host) -> Result<Vec<Pair>>,
}

impl Sources<'_> {
    /// Allocates as many as `count` says; check `check`: the guest is told what the hardware has, which are all, and its own
    /// capability is off.
    pub(super) fn allocate(
        &self,
        stand: &mut Stand<'_>,
        check: &'static str,
        count: usize,
    ) -> Result<Vec<Pair>> {
        let mut told = Vec::new();
        stand.report.check(check, &self.guest.agent().kernel_log(), || {
            self.vectors.allocate(&format!("{} {count} {count} 0", self.how))?;
            told = self.told()?;
            let there = (self.messages)(self.host)?;
            let requested = self.requested()?;
            let seen = format!(
                "told {}; the hardware has {}; the host's /proc/interrupts {requested} vectors",
                listed(&told),
                listed(&there)
            );
            expect(told == there && told.len() == self.count && requested == self.count, seen)
        })?;
        Ok(told)
    }

    /// Check `check`: each vector that is raised runs its own handler and no other. `raise` says what was done.
    pub(super) fn each_runs_its_handler(
        &self,
        stand: &mut Stand<'_>,
        check: &'static str,
        what: &str,
        raise: impl Fn(usize) -> Result<()>,
    ) -> Result<()> {
        stand.report.check(check, &self.guest.agent().kernel_log(), || {
            raise_each(&self.vectors, self.count, raise)?;
            Ok(format!("{what}: each of {} ran its handler and no other", self.count))
        })
    }

    /// A line of the table for each vector, of which `sent` interrupts were sent so far.
    pub(super) fn rows(&self, stand: &mut Stand<'_>, kind: &str, sent: u64) -> Result<()> {
        for vector in self.vectors.held()? {
            let told = vector.told.map_or_else(|errno| format!("errno {errno}"), |pair| pair.to_string());
            stand.report.row(Row {
                situation: "delivered by virtio-irq".into(),
                function: self.function.guest.into(),
                vector: format!("{kind} {}", vector.number),
                guest_pair: "-".into(),
                host_pair: told.clone(),
                written: told,
                sent,
                handled: vector.count,
                outcome: Row::outcome(sent, vector.count),
            });
        }
        Ok(())
    }

    /// The check `masked-fires-once-after-unmask`, and its sabotage: a vector that is raised twice while it is masked runs its
    /// handler once when it is unmasked, and not before. What shows that nothing else is under way is another vector.
    pub(super) fn masked_fires_once(
        &self,
        stand: &mut Stand<'_>,
        raise: impl Fn(usize) -> Result<()>,
    ) -> Result<()> {
        let keep = stand.sabotaged("keep-unmasked");
        stand.report.check("masked-fires-once-after-unmask", &self.guest.agent().kernel_log(), || {
            let before = self.vectors.counts()?;
            if !keep {
                self.vectors.mask(MASKED)?;
            }
            for raised in [MASKED, MASKED, MARKER] {
                raise(raised)?;
            }
            let silent = added(&before, MARKER, 1);
            let masked = self.vectors.counts_becoming(&silent)?;
            if masked != silent {
                let ran = ran(&before, &masked, MASKED);
                return Err(Unmet::Seen(format!("raised twice while masked: handler ran {ran} times")));
            }
            self.vectors.unmask(MASKED)?;
            self.vectors.counts_becoming(&added(&silent, MASKED, 1))?;
            raise(MARKER)?;
            let expected = added(&added(&before, MASKED, 1), MARKER, 2);
            let after = self.vectors.counts_becoming(&expected)?;
            let seen = format!(
                "raised twice while masked: handler ran 0 times; unmasked: {}; another beside it: {} of 2",
                ran(&before, &after, MASKED),
                ran(&before, &after, MARKER),
            );
            expect(after == expected, seen)
        })
    }

    /// A part of the vectors is given back and allocated again, and the rest goes on: the checks `freed-part-is-silent` and
    /// `part-is-allocated-again`, and their sabotages.
    pub(super) fn part_goes_and_comes(
        &self,
        stand: &mut Stand<'_>,
        raise: impl Fn(usize) -> Result<()>,
    ) -> Result<()> {
        let log = self.guest.agent().kernel_log();
        let keep = stand.sabotaged("keep-part");
        stand.report.check("freed-part-is-silent", &log, || {
            let before = self.vectors.held()?;
            if !keep {
                self.vectors.free(PART.start, PART.len())?;
            }
            let rest = before.iter().filter(|vector| !PART.contains(&vector.number));
            let rest: Vec<_> = rest.map(|vector| vector.count).collect();
            // Below the part, so that it keeps its place; and what came of a vector of the part would come before it.
            let expected = added(&rest, MARKER, 1);
            raise(OF_PART)?;
            raise(MARKER)?;
            let after = self.vectors.counts_becoming(&expected)?;
            let there = self.requested()?;
            let seen = format!(
                "{PART:?} freed, the host has {there} vectors; {OF_PART} and {MARKER} raised: of {} handlers {}",
                after.len(),
                if after == expected { "that of the latter ran once" } else { "not that of the latter alone ran" },
            );
            expect(after == expected && there == self.count - PART.len(), seen)
        })?;
        let count = PART.len() - usize::from(stand.sabotaged("lesser-part"));
        stand.report.check("part-is-allocated-again", &log, || {
            self.vectors.allocate(&format!("{} {count} {count} {}", self.how, PART.start))?;
            let told = self.told()?;
            let same = told == (self.messages)(self.host)?;
            let there = self.requested()?;
            // What was raised in vain may have been kept by the hardware, and come with the handler.
            let first = self.vectors.counts()?;
            raise(MARKER)?;
            self.vectors.counts_becoming(&added(&first, MARKER, 1))?;
            let before = self.vectors.counts()?;
            raise(OF_PART)?;
            let expected = added(&before, OF_PART, 1);
            let after = self.vectors.counts_becoming(&expected)?;
            let seen = format!(
                "{} vectors, {} the hardware has; the host has {there}; {OF_PART} raised: {}",
                told.len(),
                if same { "told what" } else { "not told what" },
                if after == expected { "its handler ran and no other" } else { "not its handler alone ran" },
            );
            expect(same && told.len() == self.count && there == self.count && after == expected, seen)
        })
    }

    /// The check `freed-leaves-no-vector`, and its sabotage.
    pub(super) fn are_given_back(
        &self,
        stand: &mut Stand<'_>,
        enabled: impl Fn() -> Result<bool>,
    ) -> Result<()> {
        let count = self.count - usize::from(stand.sabotaged("keep-one"));
        stand.report.check("freed-leaves-no-vector", &self.guest.agent().kernel_log(), || {
            self.vectors.free(0, count)?;
            let left = self.requested()?;
            let enabled = enabled()?;
            let state = if enabled { "on" } else { "off" };
            let seen = format!("the host's /proc/interrupts has {left} vectors, the capability is {state}");
            expect(left == 0 && !enabled, seen)
        })
    }

    fn told(&self) -> Result<Vec<Pair>, Unmet> {
        self.vectors.told()?.map_err(|errno| Unmet::Seen(format!("refused with errno {errno}")))
    }

    /// How many of its vectors are in the host's `/proc/interrupts`.
    fn requested(&self) -> Result<usize> {
        Ok(names(&self.host.vfio_requested(self.function.host)?, self.requested).len())
    }
}

/// How often the handler of a vector ran between two looks.
fn ran(before: &[u64], after: &[u64], vector: usize) -> u64 {
    let count = |counts: &[u64]| counts.get(vector).copied().unwrap_or_default();
    count(after).wrapping_sub(count(before))
}
