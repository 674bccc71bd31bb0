// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is shown, one function each.

mod doctor;
mod edu;
mod vtd_native_edu;
mod vtd_vfio_control;

use crate::artifacts::Artifacts;
use crate::checks::{Check, Report};
use crate::error::Result;
use crate::layout::Layout;
use std::time::Duration;

/// All scenarios.
pub const ALL: &[&Scenario] = &[&vtd_native_edu::SCENARIO, &vtd_vfio_control::SCENARIO];

/// Something that is shown on emulated machines.
#[derive(Debug)]
pub struct Scenario {
    /// What `cargo xtask lab` calls it; also the name of its directory of logs.
    pub name: &'static str,
    /// What it shows, in a sentence.
    pub summary: &'static str,
    /// Every check that it makes.
    pub checks: &'static [&'static str],
    /// Ways to break it, by which one sees that its checks can fail.
    pub sabotages: &'static [Sabotage],
    /// When it is broken off.
    limit: Duration,
    run: fn(&mut Stand<'_>) -> Result<()>,
}

/// A way to break a scenario.
#[derive(Debug)]
pub struct Sabotage {
    /// What `--sabotage` calls it.
    pub name: &'static str,
    /// What is broken.
    pub what: &'static str,
    /// The check that must fail of it.
    pub fails: &'static str,
}

/// What a scenario works with.
struct Stand<'a> {
    layout: &'a Layout,
    artifacts: &'a Artifacts,
    report: &'a mut Report,
    sabotage: Option<&'a str>,
    limit: Duration,
}

impl Stand<'_> {
    /// Whether this is to be broken.
    fn sabotaged(&self, name: &str) -> bool {
        self.sabotage == Some(name)
    }
}

impl Scenario {
    /// Runs it to its end, good or bad. `observer` hears of each check as it is made.
    #[must_use]
    pub fn run(
        &self,
        layout: &Layout,
        artifacts: &Artifacts,
        sabotage: Option<&str>,
        observer: fn(&Check),
    ) -> Report {
        let mut report = Report::new(self.name, self.checks, observer);
        let stand = &mut Stand { layout, artifacts, report: &mut report, sabotage, limit: self.limit };
        let why = match (self.run)(stand) {
            Ok(()) => "the scenario does not make it".to_owned(),
            Err(error) => error.to_string(),
        };
        report.close(&why, &layout.logs(self.name).join("host-console.log"));
        report
    }
}
