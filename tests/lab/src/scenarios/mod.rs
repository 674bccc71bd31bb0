// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is shown, one function each.

mod daemon;
mod doctor;
mod edu;
mod functions;
mod igb;
mod kernels;
mod vectors;
mod vtd_native_edu;
mod vtd_native_igb;
mod vtd_vfio_control;

use crate::artifacts::Artifacts;
use crate::checks::{Check, Report};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::layout::Layout;
use crate::msi::Pair;
use functions::{Function, machine_with};
use kernels::host_is_fit;
use std::time::Duration;

/// All scenarios.
pub const ALL: &[&Scenario] =
    &[&vtd_native_edu::SCENARIO, &vtd_native_igb::SCENARIO, &vtd_vfio_control::SCENARIO];

/// Enough for anything that the daemon or a kernel does by itself.
const SOON: Duration = Duration::from_secs(30);

/// The message of a vector that no interrupt of the host uses. QEMU's VT-d lets a message in compatibility format through to the
/// processor, where real hardware would block it; there the kernel says that it has no handler.
const NOBODYS_PAIR: Pair = Pair { address: 0xfee0_0000, data: 0x99 };

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
    /// Why only its name starts it, and `cargo xtask test` does not; nothing for one that always runs.
    pub unsettled: Option<&'static str>,
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

/// Sabotages that the steps which all scenarios share know of.
mod sabotages {
    use super::Sabotage;

    pub(super) const NO_REMAPPING: Sabotage = Sabotage {
        name: "no-remapping",
        what: "the host's kernel is told to leave interrupt remapping off",
        fails: "host-remaps-interrupts",
    };
    pub(super) const GUEST_WARNS: Sabotage = Sabotage {
        name: "guest-warns",
        what: "the guest's kernel panics at the end",
        fails: "guest-kernel-is-well",
    };
    pub(super) const LINGERING_FRONTEND: Sabotage = Sabotage {
        name: "lingering-frontend",
        what: "a frontend stays connected where all should be gone",
        fails: "daemon-leaks-nothing",
    };
    pub(super) const KILLED_DAEMON: Sabotage = Sabotage {
        name: "killed-daemon",
        what: "the daemon gets SIGKILL instead of SIGTERM",
        fails: "daemon-leaves-cleanly",
    };
    pub(super) const HOST_WARNS: Sabotage = Sabotage {
        name: "host-warns",
        what: "a line that looks like a kernel warning is written to the host's log",
        fails: "host-kernel-is-well",
    };
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
    /// Boots an emulated host and plays on it. Who looks into a machine that hangs finds what it was about in its logs.
    fn on_host(
        &mut self,
        name: &str,
        functions: &[Function],
        play: impl FnOnce(&mut Self, &Host) -> Result<()>,
    ) -> Result<()> {
        let mut machine = machine_with(functions);
        if self.sabotaged(sabotages::NO_REMAPPING.name) || self.sabotaged("nothing-to-remap") {
            machine = machine.argument("intremap=off");
        }
        let host = Host::boot(self.layout, self.artifacts, name, &machine, self.limit)?;
        let played = host_is_fit(self, &host, functions).and_then(|()| play(self, &host));
        if matches!(played, Err(Error::Late { .. })) {
            host.log_what_hangs();
        }
        played
    }

    /// Whether this is to be broken.
    fn sabotaged(&self, name: &str) -> bool {
        self.sabotage == Some(name)
    }
}

impl Scenario {
    /// Runs it to its end, good or bad; with a sabotage to the check that has to fail of it. `observer` hears of each check as
    /// it is made.
    #[must_use]
    pub fn run(
        &self,
        layout: &Layout,
        artifacts: &Artifacts,
        sabotage: Option<&Sabotage>,
        observer: fn(&Check),
    ) -> Report {
        let mut report = Report::new(self.name, self.checks, observer);
        if let Some(sabotage) = sabotage {
            report.end_after(sabotage.fails);
        }
        let sabotage = sabotage.map(|sabotage| sabotage.name);
        let stand = &mut Stand { layout, artifacts, report: &mut report, sabotage, limit: self.limit };
        let why = match (self.run)(stand) {
            Ok(()) => "the scenario does not make it".to_owned(),
            Err(error) => error.to_string(),
        };
        if !report.is_over() {
            report.close(&why, &layout.logs(self.name).join("host-console.log"));
        }
        report
    }
}

/// A line of a kernel's log without its time.
fn text_of(line: &str) -> &str {
    line.split_once("] ").map_or(line, |(_, text)| text)
}
