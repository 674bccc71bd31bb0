// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is shown, one function each.

mod daemon;
mod doctor;
mod edu;
mod edu_source;
mod event_edu;
mod examined;
mod functions;
mod guest_hostile_device;
mod igb;
mod kernels;
mod native_edu;
mod sources;
mod systemd;
mod vectors;
mod vtd_control_socket;
mod vtd_dkms;
mod vtd_event_cdev;
mod vtd_event_hammer;
mod vtd_event_igb;
mod vtd_event_lifecycle;
mod vtd_event_xhci16;
mod vtd_native_igb;
mod vtd_package;
mod vtd_vfio_control;
mod vtd_wcn6855_event32;
mod vtd_wcn6855_hostile;
mod vtd_wcn6855_native;
mod vtd_wcn6855_stock;
mod wcn6855;

use crate::artifacts::Artifacts;
use crate::checks::{Check, Report};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::iommu::Iommu;
use crate::layout::Layout;
use crate::machine::Machine;
use crate::msi::Pair;
use functions::{Function, machine_with};
use kernels::{HOST_WARNS, host_is_fit};
use std::path::PathBuf;
use std::time::Duration;

/// All scenarios.
pub const ALL: &[&Scenario] = &[
    &native_edu::VTD,
    &vtd_native_igb::SCENARIO,
    &vtd_vfio_control::SCENARIO,
    &examined::VTD,
    &vtd_control_socket::SCENARIO,
    &vtd_package::SCENARIO,
    &vtd_dkms::SCENARIO,
    &event_edu::VTD,
    &vtd_event_xhci16::SCENARIO,
    &vtd_event_igb::SCENARIO,
    &vtd_event_lifecycle::SCENARIO,
    &vtd_event_hammer::SCENARIO,
    &vtd_event_cdev::SCENARIO,
    &guest_hostile_device::SCENARIO,
    &vtd_wcn6855_stock::SCENARIO,
    &vtd_wcn6855_native::SCENARIO,
    &vtd_wcn6855_event32::SCENARIO,
    &vtd_wcn6855_hostile::SCENARIO,
    &native_edu::AMDVI,
    &event_edu::AMDVI,
    &examined::AMDVI,
];

/// The scenario that needs the Debian package in `target/dist`.
pub const PACKAGED: &str = vtd_package::SCENARIO.name;

/// Enough for anything that the daemon or a kernel does by itself.
const SOON: Duration = Duration::from_secs(30);

/// The message of a vector that no interrupt of the host uses, and of an entry of AMD-Vi's tables that none has.
const NOBODYS_PAIR: Pair = Pair { address: 0xfee0_0000, data: 0x99 };

/// Something that is shown on emulated machines.
#[derive(Debug)]
pub struct Scenario {
    /// What `cargo xtask lab` calls it; also the name of its directory of logs.
    pub name: &'static str,
    /// What it shows, in a sentence.
    pub summary: &'static str,
    /// The IOMMU of its machines.
    iommu: &'static Iommu,
    /// The checks that only it makes.
    checks: &'static [&'static str],
    /// Ways to break it, by which one sees that these can fail.
    sabotages: &'static [Sabotage],
    /// What it has in common with others.
    common: &'static [Common],
    /// Why only its name starts it, and `cargo xtask test` does not; nothing for one that always runs.
    pub unsettled: Option<&'static str>,
    /// When it is broken off.
    limit: Duration,
    run: fn(&mut Stand<'_>) -> Result<()>,
}

/// A way to break a scenario. One that breaks several checks is listed once for each of them, by the same name.
#[derive(Debug)]
pub struct Sabotage {
    /// What `--sabotage` calls it.
    pub name: &'static str,
    /// What is broken.
    pub what: &'static str,
    /// The check that must fail of it.
    pub fails: &'static str,
}

/// Checks that several scenarios make, in steps that they share, and their sabotages.
#[derive(Debug, Clone, Copy)]
struct Common {
    checks: &'static [&'static str],
    sabotages: &'static [Sabotage],
}

impl Common {
    /// A host and its guest, whose kernels are fit at the beginning and well at the end.
    const KERNELS: Self = Self {
        checks: &["host-remaps-interrupts", "guest-kernel-is-well", "host-kernel-is-well"],
        sabotages: &[
            NO_REMAPPING,
            Sabotage {
                name: "guest-warns",
                what: "the guest's kernel panics at the end",
                fails: "guest-kernel-is-well",
            },
            HOST_WARNS,
        ],
    };
    /// The daemon on the host, and its end.
    const DAEMON: Self = Self {
        checks: &[daemon::CONFINED, "daemon-leaks-nothing", "daemon-leaves-cleanly"],
        sabotages: &[
            NO_LANDLOCK,
            Sabotage {
                name: "lingering-frontend",
                what: "a frontend stays connected where all should be gone",
                fails: "daemon-leaks-nothing",
            },
            Sabotage {
                name: "killed-daemon",
                what: "the daemon gets SIGKILL instead of SIGTERM",
                fails: "daemon-leaves-cleanly",
            },
        ],
    };
}

const NO_REMAPPING: Sabotage = Sabotage {
    name: "no-remapping",
    what: "the host's kernel is told to leave interrupt remapping off",
    fails: "host-remaps-interrupts",
};

const NO_LANDLOCK: Sabotage =
    Sabotage { name: "no-landlock", what: "the host's kernel is without Landlock", fails: daemon::CONFINED };

/// What a scenario works with.
struct Stand<'a> {
    layout: &'a Layout,
    artifacts: &'a Artifacts,
    iommu: &'static Iommu,
    report: &'a mut Report,
    sabotage: Option<&'a Sabotage>,
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
        self.on_host_with(name, functions, &[], play)
    }

    /// As [`Stand::on_host`], with `guest_files` in the boot image of its guests.
    fn on_host_with(
        &mut self,
        name: &str,
        functions: &[Function],
        guest_files: &[PathBuf],
        play: impl FnOnce(&mut Self, &Host) -> Result<()>,
    ) -> Result<()> {
        let machine = machine_with(self.iommu, functions);
        let machine = guest_files.iter().cloned().fold(machine, Machine::guest_file);
        self.on_machine(name, machine, functions, play)
    }

    /// As [`Stand::on_host`], on this machine that has the functions.
    fn on_machine(
        &mut self,
        name: &str,
        mut machine: Machine,
        functions: &[Function],
        play: impl FnOnce(&mut Self, &Host) -> Result<()>,
    ) -> Result<()> {
        if self.sabotaged(NO_REMAPPING.name) || self.sabotaged("nothing-to-remap") {
            machine = machine.argument("intremap=off");
        }
        if self.sabotaged(NO_LANDLOCK.name) {
            // The last one counts.
            machine = machine.argument("lsm=");
        }
        self.on_any(name, &machine, |stand, host| {
            host_is_fit(stand, host, functions)?;
            play(stand, host)
        })
    }

    /// Boots a machine that need not be a host of guests, and plays on it.
    fn on_any(
        &mut self,
        name: &str,
        machine: &Machine,
        play: impl FnOnce(&mut Self, &Host) -> Result<()>,
    ) -> Result<()> {
        let host = Host::boot(self.layout, self.artifacts, name, machine, self.limit)?;
        let played = play(self, &host);
        if matches!(played, Err(Error::Late { .. })) {
            host.log_what_hangs();
        }
        played
    }

    /// Whether this is to be broken.
    fn sabotaged(&self, name: &str) -> bool {
        self.sabotage.is_some_and(|sabotage| sabotage.name == name)
    }

    /// How often what is checked by `check` is done: `times`, unless a sabotage is about another check.
    fn times<T: From<u8>>(&self, check: &str, times: T) -> T {
        match self.sabotage {
            Some(sabotage) if sabotage.fails != check => 1.into(),
            _ => times,
        }
    }
}

impl Scenario {
    /// Every check that it makes.
    pub fn checks(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.checks.iter().chain(self.common.iter().flat_map(|common| common.checks)).copied()
    }

    /// Every way to break it.
    pub fn sabotages(&self) -> impl Iterator<Item = &'static Sabotage> + use<> {
        self.sabotages.iter().chain(self.common.iter().flat_map(|common| common.sabotages))
    }

    /// The checks of which nobody knows whether they can fail. There must be none: it is not run otherwise.
    fn never_failing(&self) -> Vec<&'static str> {
        let fails = |check: &&str| self.sabotages().any(|sabotage| sabotage.fails == *check);
        self.checks().filter(|check| !fails(check)).collect()
    }

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
        let mut report = Report::new(self.name, self.checks().collect(), observer);
        let log = layout.logs(self.name).join("host-console.log");
        let never_failing = self.never_failing();
        if !never_failing.is_empty() {
            report.close(&format!("no sabotage makes these fail: {}", never_failing.join(", ")), &log);
            return report;
        }
        if let Some(sabotage) = sabotage {
            report.end_after(sabotage.fails);
        }
        let stand = &mut Stand {
            layout,
            artifacts,
            iommu: self.iommu,
            report: &mut report,
            sabotage,
            limit: self.limit,
        };
        let why = match (self.run)(stand) {
            Ok(()) => "the scenario does not make it".to_owned(),
            Err(error) => error.to_string(),
        };
        if !report.is_over() {
            report.close(&why, &log);
        }
        report
    }
}

/// A line of a kernel's log without its time.
fn text_of(line: &str) -> &str {
    line.split_once("] ").map_or(line, |(_, text)| text)
}

#[cfg(test)]
mod tests {
    use super::{ALL, Artifacts, Layout, Scenario};
    use std::path::{Path, PathBuf};

    #[test]
    fn each_check_has_a_sabotage_and_each_sabotage_a_check() {
        for scenario in ALL {
            assert_eq!(scenario.never_failing(), [""; 0], "{}", scenario.name);
            let checks: Vec<_> = scenario.checks().collect();
            let all: Vec<_> = scenario.sabotages().map(|sabotage| (sabotage.name, sabotage.fails)).collect();
            for (at, sabotage) in all.iter().enumerate() {
                assert!(checks.contains(&sabotage.1), "{}: {sabotage:?}", scenario.name);
                assert!(!all[..at].contains(sabotage), "{}: {sabotage:?} is there twice", scenario.name);
            }
        }
    }

    #[test]
    fn a_scenario_with_a_check_that_nobody_saw_fail_is_not_run() {
        const UNPROVEN: Scenario = Scenario {
            name: "unproven",
            checks: &["proven", "unproven"],
            sabotages: &[super::Sabotage { name: "broken", what: "it is broken", fails: "proven" }],
            common: &[],
            run: |_| panic!("it is run"),
            ..super::native_edu::VTD
        };
        let nowhere = PathBuf::new;
        let artifacts =
            Artifacts { daemon: nowhere(), agent: nowhere(), guest: Vec::new(), wcn6855: nowhere() };
        let report = UNPROVEN.run(&Layout::new(Path::new("")), &artifacts, None, |_| {});
        assert!(!report.passed());
        assert_eq!(report.checks()[0].seen, "not reached: no sabotage makes these fail: unproven");
    }
}
