// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The Debian package on a host with real VFIO: systemd starts the daemon with all that its unit takes from it, and the daemon
//! serves a guest with an assigned function, of which nobody told it but QEMU.

use super::daemon::{CONFINED, Daemon, confinement};
use super::edu::Shot;
use super::functions::{EDU, QMP, guest_with, machine_with};
use super::kernels::{VIRTIO_IRQ, guest_is_well, host_is_well, power_off, start_guest};
use super::systemd::Systemd;
use super::vectors::until;
use super::{Common, Sabotage, Scenario, Stand};
use crate::checks::{Verdict, expect};
use crate::error::{Error, Result};
use crate::host::{Host, RunningGuest};
use crate::iommu::Iommu;
use crate::package::{self, Package, SERVICE, SOCKET, System};
use serde_json::Value;
use std::time::Duration;

/// The guest's modules: the virtio-irq driver and its client.
const MODULES: &[&str] = &[VIRTIO_IRQ, "virtio_irq_edu"];

const FEW: u64 = 3;

/// What the unit allows, in the words of /proc/PID/limits.
const FILES: &str = "131328";

/// The directory of the control socket that the unit makes.
const CONTROL: &str = "/run/vhost-device-irq/lab/control.sock";

pub(super) const SCENARIO: Scenario = Scenario {
    name: "vtd-package",
    summary: "the Debian package on a host with VFIO: systemd starts the confined daemon, which serves a guest",
    iommu: &Iommu::VTD,
    checks: &[
        "package-installs",
        "unit-serves-the-guest",
        "unit-finds-all-by-qmp",
        CONFINED,
        "files-are-enough",
        "unit-stops-cleanly",
        "package-removes",
    ],
    sabotages: &[
        Sabotage { name: "no-package", what: "the package's file is empty", fails: "package-installs" },
        Sabotage {
            name: "nothing-to-serve",
            what: "the unit's settings have a simulated function instead of the guest's",
            fails: "unit-serves-the-guest",
        },
        Sabotage {
            name: "told-by-hand",
            what: "the unit's settings name the function, and no QMP",
            fails: "unit-finds-all-by-qmp",
        },
        Sabotage {
            name: "unconfined",
            what: "the unit's settings leave the daemon's own confinement off",
            fails: CONFINED,
        },
        Sabotage {
            name: "few-files",
            what: "another file of the unit's takes its limit of open files down to that of a shell",
            fails: "files-are-enough",
        },
        Sabotage { name: "killed-unit", what: "systemd kills the daemon", fails: "unit-stops-cleanly" },
        Sabotage { name: "kept-package", what: "the package is not removed", fails: "package-removes" },
    ],
    common: &[Common::KERNELS],
    unsettled: None,
    limit: Duration::from_secs(600),
    run,
};

fn run(stand: &mut Stand<'_>) -> Result<()> {
    let machine = Systemd::machine(machine_with(stand.iommu, &[EDU]));
    stand.on_machine(SCENARIO.name, machine, &[EDU], play)
}

fn play(stand: &mut Stand<'_>, host: &Host) -> Result<()> {
    let path = package::bring(stand.layout)?;
    let systemd = Systemd::boot(host)?;
    let (package, log) = (Package(&systemd), host.agent().process_log("systemd"));
    let path = if stand.sabotaged("no-package") { "/dev/null" } else { path };
    stand.report.check("package-installs", &log, || package.install(path))?;
    if stand.sabotaged("few-files") {
        let drop_in = "mkdir -p /run/systemd/system/$1.d && printf '[Service]\nLimitNOFILE=8192\n' > /run/systemd/system/$1.d/few.conf";
        (&systemd).run(&["sh", "-c", drop_in, "sh", SERVICE])?;
    }
    package.listen(&settings(stand))?;
    let guest = Daemon::serve_at(host, SOCKET, guest_with(&[EDU]))?;
    let guest = start_guest(host, "qemu", &systemd.guest(guest), MODULES)?;
    with_guest(stand, host, &systemd, &guest)?;
    guest_is_well(stand, &guest, 1)?;
    power_off(guest)?;
    if stand.sabotaged("killed-unit") {
        (&systemd).run(&["systemctl", "kill", "--signal=KILL", SERVICE])?;
    }
    stand.report.check("unit-stops-cleanly", &log, || package.stop())?;
    let keep = stand.sabotaged("kept-package");
    stand.report.check("package-removes", &log, || if keep { package.is_gone() } else { package.purge() })?;
    host_is_well(stand, host, None)
}

/// The daemon's arguments beside those of the unit.
fn settings(stand: &Stand<'_>) -> String {
    match () {
        () if stand.sabotaged("nothing-to-serve") => format!("--device sim:edu,guest={}", EDU.guest),
        () if stand.sabotaged("told-by-hand") => format!("--device {}", EDU.spec()),
        () if stand.sabotaged("unconfined") => format!("--qmp {QMP} --sandbox off"),
        () => format!("--qmp {QMP}"),
    }
}

fn with_guest(stand: &mut Stand<'_>, host: &Host, systemd: &Systemd<'_>, guest: &RunningGuest) -> Result<()> {
    let (package, log) = (Package(systemd), guest.qemu().log());
    let mut shot = Shot::default();
    stand.report.check("unit-serves-the-guest", &log, || {
        let arrived = shot.arrive(host, guest.agent(), "host", FEW, FEW)?;
        let state = package.state(SERVICE)?;
        expect(state == "active", format!("{SERVICE} is {state}; {arrived}"))
    })?;
    stand.report.row(shot.row("with the packaged daemon"));
    stand.report.check("unit-finds-all-by-qmp", &log, || {
        // QEMU is asked where the guest sees it when the guest's driver starts, and nobody waits for the answer.
        let told = |status: &Value| status["functions"]["0"]["guest"] == EDU.guest;
        let status = until(told, || status(systemd))?;
        let (vmm, function) = (&status["vmm"], &status["functions"]["0"]);
        let found = function["name"] == EDU.host && function["guest"] == EDU.guest;
        // That it has the function's device out of QEMU, within what the unit allows.
        let whole = vmm["process"].is_u64() && vmm["problems"] == Value::Array(Vec::new());
        expect(found && whole, format!("{vmm}; {function}"))
    })?;
    stand.report.check(CONFINED, &log, || {
        let unit = package.confinement()?;
        let own = confinement(&status(systemd)?);
        expect(own.is_whole, format!("{unit}; {}", own.seen))
    })?;
    stand.report.check("files-are-enough", &log, || files(systemd, &package.process()?))
}

/// What the daemon's control socket says, asked by the package's own program.
fn status(systemd: &Systemd<'_>) -> Result<Value> {
    let text = systemd.run(&["vhost-device-irq", "ctl", "--json", "--socket", CONTROL, "status"])?;
    let status: Value =
        serde_json::from_str(&text).map_err(|why| Error::Unexpected(format!("ctl status: {why}: {text}")))?;
    Ok(status["status"].clone())
}

fn files(systemd: &Systemd<'_>, process: &str) -> Verdict {
    let limits = systemd.run(&["cat", &format!("/proc/{process}/limits")])?;
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap_or_default();
    let words: Vec<_> = line.split_whitespace().collect();
    let (soft, hard) = (words.get(3).copied().unwrap_or_default(), words.get(4).copied().unwrap_or_default());
    expect(soft == FILES && hard == FILES, format!("open files: {soft}, at most {hard}"))
}
