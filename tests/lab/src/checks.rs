// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a scenario found.

use crate::error::{Error, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The outcome of one check: what was seen, either way.
pub type Verdict = std::result::Result<String, Unmet>;

/// Why a check failed.
#[derive(Debug)]
pub enum Unmet {
    /// What was seen is not what was to be seen.
    Seen(String),
    /// It could not be looked at.
    Broken(Error),
}

impl From<Error> for Unmet {
    fn from(error: Error) -> Self {
        Self::Broken(error)
    }
}

impl Unmet {
    /// The same, of which is said when it was seen.
    pub(crate) fn during(self, when: &str) -> Self {
        match self {
            Self::Seen(seen) => Self::Seen(format!("{when}: {seen}")),
            broken @ Self::Broken(_) => broken,
        }
    }
}

/// A verdict from a condition and what was seen.
///
/// # Errors
///
/// [`Unmet::Seen`] if the condition does not hold.
pub fn expect(condition: bool, seen: impl Into<String>) -> Verdict {
    if condition { Ok(seen.into()) } else { Err(Unmet::Seen(seen.into())) }
}

/// One check that was made, or could not be.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// Its name.
    pub name: &'static str,
    /// Whether the scenario came to it. One that was not reached has not passed.
    pub reached: bool,
    /// Whether it held.
    pub passed: bool,
    /// What was seen.
    pub seen: String,
    /// Where to look.
    pub log: PathBuf,
    /// Seconds since the scenario began.
    pub at: f32,
}

/// What happened with one interrupt source at one time; a line of the demonstration's table.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The situation.
    pub situation: String,
    /// The function, as the guest sees it.
    pub function: String,
    /// The vector.
    pub vector: String,
    /// The pair in the guest's capability.
    pub guest_pair: String,
    /// The pair in the function's own capability, as the host has it.
    pub host_pair: String,
    /// The pair that the device wrote.
    pub written: String,
    /// Interrupts that the device sent.
    pub sent: u64,
    /// Runs of the guest's handler.
    pub handled: u64,
    /// What it means.
    pub outcome: String,
}

impl Row {
    /// What it means that `sent` interrupts ran a handler `handled` times.
    pub(crate) fn outcome(sent: u64, handled: u64) -> String {
        let meaning = match (sent, handled) {
            (0, _) => "nothing was sent",
            (_, 0) => "never arrived",
            (sent, handled) if sent == handled => "every one arrived",
            _ => "not as many as were sent",
        };
        meaning.to_owned()
    }
}

impl Check {
    /// Whether it was made and did not hold, which is what a sabotage is for.
    #[must_use]
    pub fn has_caught(&self) -> bool {
        self.reached && !self.passed
    }
}

/// Collects what a scenario finds.
#[derive(Debug)]
pub struct Report {
    scenario: &'static str,
    planned: Vec<&'static str>,
    checks: Vec<Check>,
    rows: Vec<Row>,
    start: Instant,
    observer: fn(&Check),
    last: Option<&'static str>,
}

impl Report {
    /// A report in which every check of `planned` has to appear. `observer` is called with each as it is made.
    #[must_use]
    pub fn new(scenario: &'static str, planned: Vec<&'static str>, observer: fn(&Check)) -> Self {
        Self {
            scenario,
            planned,
            checks: Vec::new(),
            rows: Vec::new(),
            start: Instant::now(),
            observer,
            last: None,
        }
    }

    /// Ends the scenario after this check, which is all that is of interest.
    pub(crate) fn end_after(&mut self, name: &'static str) {
        self.last = Some(name);
    }

    /// Whether the last check of interest was made.
    pub(crate) fn is_over(&self) -> bool {
        self.last.is_some_and(|last| self.checks.iter().any(|check| check.name == last))
    }

    /// Makes a check; whoever looks into a failure begins with `log`.
    ///
    /// # Errors
    ///
    /// When there is no point in going on: a machine is gone or hangs, and the check has failed then; or what remains is not
    /// of interest.
    pub fn check(&mut self, name: &'static str, log: &Path, judge: impl FnOnce() -> Verdict) -> Result<()> {
        let (passed, seen, end) = match judge() {
            Ok(seen) => (true, seen, None),
            Err(Unmet::Seen(seen)) => (false, seen, None),
            Err(Unmet::Broken(error @ (Error::Gone { .. } | Error::Late { .. }))) => {
                (false, error.to_string(), Some(error))
            }
            Err(Unmet::Broken(error)) => (false, error.to_string(), None),
        };
        self.add(name, Some(passed), seen, log);
        if self.last == Some(name) {
            return Err(Error::Unexpected("the rest is not of interest".into()));
        }
        end.map_or(Ok(()), Err)
    }

    /// Adds a line to the table.
    pub fn row(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Ends the report: what was planned and not reached has failed, for the reason `why`.
    pub fn close(&mut self, why: &str, log: &Path) {
        let made: Vec<_> = self.checks.iter().map(|check| check.name).collect();
        let missing: Vec<_> = self.planned.iter().copied().filter(|name| !made.contains(name)).collect();
        for name in missing {
            self.add(name, None, format!("not reached: {why}"), log);
        }
    }

    /// Whether every planned check was made and held.
    #[must_use]
    pub fn passed(&self) -> bool {
        let held = |name: &&str| self.checks.iter().any(|check| check.name == *name && check.passed);
        self.planned.iter().all(held) && self.checks.iter().all(|check| check.passed)
    }

    /// The checks, in the order in which they were made.
    #[must_use]
    pub fn checks(&self) -> &[Check] {
        &self.checks
    }

    /// The table.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// How long it took so far.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// The report as JSON.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "scenario": self.scenario,
            "passed": self.passed(),
            "seconds": self.elapsed().as_secs_f32(),
            "checks": self.checks,
            "table": self.rows,
        })
    }

    /// Without an outcome it was not reached.
    fn add(&mut self, name: &'static str, outcome: Option<bool>, seen: String, log: &Path) {
        // One line a check, also when an error has many.
        let seen = seen.lines().map(str::trim).collect::<Vec<_>>().join("; ");
        let at = self.start.elapsed().as_secs_f32();
        let (reached, passed) = (outcome.is_some(), outcome == Some(true));
        let check = Check { name, reached, passed, seen, log: log.to_owned(), at };
        (self.observer)(&check);
        self.checks.push(check);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: &[&str] = &["first", "second"];

    fn report() -> Report {
        Report::new("name", PLAN.to_vec(), |_| {})
    }

    #[test]
    fn a_check_that_was_not_reached_has_failed() {
        let mut report = report();
        report.check("first", Path::new("log"), || Ok("good".into())).unwrap();
        assert!(!report.passed());
        report.close("the guest died", Path::new("log"));
        assert!(!report.passed());
        assert_eq!(report.checks()[1].seen, "not reached: the guest died");
        assert!(!report.checks()[1].has_caught(), "it may be unable to fail");
    }

    #[test]
    fn all_planned_checks_make_a_pass() {
        let mut report = report();
        for name in PLAN {
            report.check(name, Path::new("log"), || expect(true, "good")).unwrap();
        }
        report.close("unused", Path::new("log"));
        assert!(report.passed());
        assert_eq!(report.json()["passed"], true);
    }

    #[test]
    fn what_comes_after_the_last_check_of_interest_is_not_made() {
        let mut report = report();
        report.end_after("first");
        assert!(report.check("first", Path::new("log"), || expect(true, "good")).is_err());
        assert!(report.checks()[0].passed);
    }

    #[test]
    fn a_machine_that_is_gone_ends_the_scenario() {
        let gone = || Error::Gone { machine: "guest".into(), why: "it\nleft".into(), log: "log".into() };
        let mut report = report();
        assert!(report.check("first", Path::new("log"), || Err(gone().into())).is_err());
        assert!(!report.checks()[0].passed);
        assert!(!report.checks()[0].seen.contains('\n'));
    }

    #[test]
    fn what_was_not_to_be_seen_fails_and_lets_the_scenario_go_on() {
        let mut report = report();
        report.check("first", Path::new("log"), || expect(1 == 2, "saw 1")).unwrap();
        report.check("second", Path::new("log"), || expect(true, "saw 2")).unwrap();
        assert!(!report.passed());
        assert!(report.checks()[0].has_caught());
        assert!(!report.checks()[1].has_caught());
    }
}
