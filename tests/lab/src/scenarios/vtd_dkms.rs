// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's module by the way of a user: DKMS builds the source that is given away, without a network, and the guest loads what
//! came of it.

use super::daemon::Daemon;
use super::edu::Edu;
use super::functions::{EDU, guest_with};
use super::kernels::{VIRTIO_IRQ, guest_is_well, host_is_well, start_guest};
use super::{Common, Sabotage, Scenario, Stand};
use crate::checks::{Unmet, Verdict, expect};
use crate::dkms::{self, Installed};
use crate::error::{Error, Result};
use crate::host::{Host, RunningGuest};
use crate::iommu::Iommu;
use crate::provision;
use std::path::Path;
use std::time::Duration;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "vtd-dkms",
    iommu: &Iommu::VTD,
    summary: "the module that DKMS makes in Debian, without a network, of the source that is given away",
    checks: &[
        "dkms-installs-without-a-network",
        "module-is-for-the-guests-kernel",
        "module-tells-the-hosts-pair",
    ],
    sabotages: &[
        Sabotage {
            name: "nothing-vendored",
            what: "the source lacks what cargo would fetch",
            fails: "dkms-installs-without-a-network",
        },
        Sabotage {
            name: "another-kernel",
            what: "DKMS builds for the release's own kernel, which the guest does not boot",
            fails: "module-is-for-the-guests-kernel",
        },
        Sabotage {
            name: "module-not-loaded",
            what: "the guest does without the module",
            fails: "module-tells-the-hosts-pair",
        },
    ],
    common: &[Common::KERNELS, Common::DAEMON],
    unsettled: None,
    limit: Duration::from_secs(300),
    run,
};

fn run(stand: &mut Stand<'_>) -> Result<()> {
    let installed = install(stand)?;
    let files = [installed.modules];
    stand.on_host_with(SCENARIO.name, &[EDU], &files, play)
}

/// Checks `dkms-installs-without-a-network` and `module-is-for-the-guests-kernel`.
fn install(stand: &mut Stand<'_>) -> Result<Installed> {
    let layout = stand.layout;
    let log = layout.logs(SCENARIO.name).join("systemd.log");
    let release = if stand.sabotaged("another-kernel") {
        let [_, other] = provision::for_drivers(layout)?;
        provision::release_of(&layout.tree(), &other)?
    } else {
        provision::release(&layout.tree())?
    };
    let bend = if stand.sabotaged("nothing-vendored") { dkms::without_crates } else { |_: &Path| Ok(()) };
    let mut installed = None;
    stand.report.check("dkms-installs-without-a-network", &log, || {
        let module = dkms::install(layout, SCENARIO.name, &release, bend)?;
        let status = module.status.clone();
        installed = Some(module);
        expect(status.ends_with(": installed"), status)
    })?;
    let installed = installed.ok_or_else(|| Error::Unexpected("DKMS made no module".into()))?;
    let own = stand.artifacts.guest.first().map(|module| dkms::vermagic(layout, module, &log));
    stand.report.check("module-is-for-the-guests-kernel", &log, || {
        let own = own.ok_or_else(|| Error::Unexpected("the lab has no module".into()))??;
        let seen = format!("{:?}; the lab's own has {own:?}", installed.vermagic);
        expect(installed.vermagic == own, seen)
    })?;
    Ok(installed)
}

fn play(stand: &mut Stand<'_>, host: &Host) -> Result<()> {
    let daemon = Daemon::start(host, "daemon", &[EDU.spec()])?;
    let guest = Daemon::serve(host, guest_with(&[EDU]))?;
    // The one that DKMS made, with the same parameter as everywhere.
    let installed = format!("modules/{VIRTIO_IRQ}");
    let module: &[&str] = if stand.sabotaged("module-not-loaded") { &[] } else { &[&installed] };
    let guest = start_guest(host, "qemu", &guest, &[module, &["virtio_irq_edu"]].concat())?;
    stand.report.check("module-tells-the-hosts-pair", &guest.agent().kernel_log(), || told(host, &guest))?;
    guest_is_well(stand, &guest, 1)?;
    daemon.outlasts(stand, host, guest, 1)?;
    host_is_well(stand, host, None)
}

fn told(host: &Host, guest: &RunningGuest) -> Verdict {
    let edu = Edu::new(guest.agent());
    let there = host.msi(EDU.host)?.pair;
    let (told, _) = edu.host_pair().map_err(|error| match error {
        Error::Operation { .. } => Unmet::Seen(error.to_string()),
        error => error.into(),
    })?;
    edu.program("host")?;
    let handled = edu.fire(1, 1)?;
    let seen =
        format!("told {told}, the host has {there}; one interrupt sent, the handler ran {handled} times");
    expect(told == there && handled == 1, seen)
}
