// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The daemon's control socket, used by its own client on the host while a guest runs.

use super::daemon::Daemon;
use super::edu::{Edu, Shot};
use super::functions::{EDU, QMP, guest_with};
use super::kernels::{VIRTIO_IRQ, guest_is_well, host_is_well, start_guest};
use super::{Common, Sabotage, Scenario, Stand};
use crate::checks::{Unmet, expect};
use crate::error::Result;
use crate::host::{Host, RunningGuest};
use crate::iommu::Iommu;
use nix::libc::ENODEV;
use serde_json::Value;
use std::time::Duration;

/// The guest's modules: the virtio-irq driver and its client, which enables MSI.
const MODULES: &[&str] = &[VIRTIO_IRQ, "virtio_irq_edu"];

pub(super) const SCENARIO: Scenario = Scenario {
    name: "vtd-control-socket",
    summary: "the operator looks at what a running guest was told, takes its function away and gives it back",
    iommu: &Iommu::VTD,
    checks: &["status-shows-the-pair", "detached-function-is-gone", "attached-function-is-served"],
    sabotages: &[
        Sabotage {
            name: "detached-too-early",
            what: "the function is detached before the status is looked at",
            fails: "status-shows-the-pair",
        },
        Sabotage {
            name: "keep-attached",
            what: "the function is not detached",
            fails: "detached-function-is-gone",
        },
        Sabotage {
            name: "attached-elsewhere",
            what: "the function is attached as one that the guest sees at another address",
            fails: "attached-function-is-served",
        },
    ],
    common: &[Common::KERNELS, Common::DAEMON],
    unsettled: None,
    limit: Duration::from_secs(300),
    run: |stand| stand.on_host(SCENARIO.name, &[EDU], play),
};

fn play(stand: &mut Stand<'_>, host: &Host) -> Result<()> {
    let daemon = Daemon::start(host, "daemon", &[EDU.spec()])?;
    let guest = start_guest(host, "qemu", &Daemon::serve(host, guest_with(&[EDU]))?, MODULES)?;
    function_comes_and_goes(stand, host, &daemon, &guest)?;
    guest_is_well(stand, &guest, 1)?;
    daemon.outlasts(stand, host, guest, 1)?;
    host_is_well(stand, host, None)
}

fn function_comes_and_goes(
    stand: &mut Stand<'_>,
    host: &Host,
    daemon: &Daemon,
    guest: &RunningGuest,
) -> Result<()> {
    let edu = Edu::new(guest.agent());
    // So that there is something to look at.
    edu.host_pair()?;
    if stand.sabotaged("detached-too-early") {
        daemon.ctl(host, &["detach", EDU.host])?;
    }
    stand.report.check("status-shows-the-pair", &daemon.log(), || {
        let status = &daemon.ctl(host, &["status"])?["status"];
        let there = host.msi(EDU.host)?.pair;
        let function = &status["functions"]["0"];
        let told = &function["messages"][0];
        let same = told["address"] == format!("{:#010x}", there.address)
            && told["data"] == format!("{:#06x}", there.data);
        let seen = format!(
            "{}, frontend {}: told {told}, the host has {there}",
            function["name"], status["frontend"]["state"]
        );
        expect(same && function["name"] == EDU.host && status["frontend"]["state"] == "running", seen)
    })?;

    let keep = stand.sabotaged("keep-attached");
    stand.report.check("detached-function-is-gone", &daemon.log(), || {
        let answer = if keep { Value::Null } else { daemon.ctl(host, &["detach", EDU.host])? };
        match edu.host_pair() {
            Ok((pair, _)) => Err(Unmet::Seen(format!("{answer}; told {pair} all the same"))),
            Err(error) => expect(error.errno() == Some(ENODEV), format!("{answer}; the guest: {error}")),
        }
    })?;

    let elsewhere = format!("{},guest=00:1e.0", EDU.host);
    // What to attach, and as what, only QEMU knows.
    let attach = if stand.sabotaged("attached-elsewhere") {
        &["attach", &elsewhere][..]
    } else {
        &["attach", "--qmp", QMP]
    };
    let mut shot = Shot::default();
    stand.report.check("attached-function-is-served", &daemon.log(), || {
        let answer = daemon.ctl(host, attach)?;
        let arrived = shot.arrive(host, guest.agent(), "host", 1, 1)?;
        Ok(format!("{answer}; {arrived}"))
    })?;
    stand.report.row(shot.row("detached and attached again"));
    // The function is tied to this VMM's process now, by a descriptor. The daemon is to end as it began.
    daemon.ctl(host, &["detach", EDU.host])?;
    daemon.ctl(host, &["attach", &EDU.spec()])?;
    Ok(())
}
