// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the doctor says of a live host and, from inside, of a guest, where the rest of the lab knows what is true; and
//! what the daemon finds out by itself, which nobody told anything but where QEMU speaks QMP.

use super::daemon::Daemon;
use super::doctor;
use super::edu::Edu;
use super::functions::{EDU, QMP, guest_with};
use super::kernels::{Driver, VIRTIO_IRQ, guest_is_well, host_is_well, power_off, start_guest};
use super::vectors::until;
use super::{Common, Sabotage, Scenario, Stand};
use crate::checks::{Unmet, expect};
use crate::error::Result;
use crate::host::{Host, RunningGuest};
use crate::iommu::Iommu;
use serde_json::Value;
use std::time::Duration;

/// Where no QEMU speaks QMP.
const NOBODY: &str = "/run/nobody.sock";

/// The guest's modules: the virtio-irq driver and its client, which enables MSI.
const MODULES: &[&str] = &[VIRTIO_IRQ, "virtio_irq_edu"];

/// Prints what the doctor reads of a machine, in the form of the recorded machines that its tests have.
const RECORDER: &str = include_str!("../../../../host-backend/tests/doctor/machines/record.sh");

pub(super) const VTD: Scenario = Scenario {
    name: "vtd-doctor",
    summary: "the doctor finds a live host and a guest in order, and sees who holds what; the daemon asks QEMU by QMP",
    iommu: &Iommu::VTD,
    checks: &["doctor-says-works", "qmp-tells-all", "doctor-sees-the-pair", "doctor-in-the-guest"],
    sabotages: &[
        Sabotage {
            name: "nothing-to-remap",
            what: "the host's kernel leaves interrupt remapping off, and the doctor has to say so",
            fails: "doctor-says-works",
        },
        Sabotage {
            name: "qmp-of-nobody",
            what: "the daemon is told of a socket at which no QEMU speaks QMP",
            fails: "qmp-tells-all",
        },
        Sabotage {
            name: "doctor-too-early",
            what: "the doctor looks at the guest's pair after the guest gave its vector back",
            fails: "doctor-sees-the-pair",
        },
        Sabotage {
            name: "doctor-sees-no-driver",
            what: "the guest's module is unbound from the device while the doctor looks at it from inside",
            fails: "doctor-in-the-guest",
        },
    ],
    common: &[Common::KERNELS, Common::DAEMON],
    unsettled: None,
    limit: Duration::from_secs(300),
    run: |stand| stand.on_host(VTD.name, &[EDU], play),
};

pub(super) const AMDVI: Scenario = Scenario {
    name: "amdvi-doctor",
    summary: "the doctor of vtd-doctor, on a host with AMD-Vi",
    iommu: &Iommu::AMDVI,
    run: |stand| stand.on_host(AMDVI.name, &[EDU], play),
    ..VTD
};

fn play(stand: &mut Stand<'_>, host: &Host) -> Result<()> {
    stand.report.check("doctor-says-works", &host.agent().kernel_log(), || {
        doctor::examine(host.agent(), &[EDU.host])?.works()
    })?;
    let qmp = if stand.sabotaged("qmp-of-nobody") { NOBODY } else { QMP };
    let daemon = Daemon::start_by_qmp(host, "daemon", qmp)?;
    let guest = start_guest(host, "qemu", &Daemon::serve(host, guest_with(&[EDU]))?, MODULES)?;
    by_qmp(stand, host, &daemon, &guest)?;
    on_the_host(stand, host, &guest)?;
    in_the_guest(stand, &guest)?;
    if stand.sabotage.is_none() {
        // For the next who wants such a machine in the doctor's own tests.
        let recorded = host.agent().run(&["/bin/sh", "-c", RECORDER, "record.sh", EDU.host])?;
        host.agent().note("tree", &recorded);
    }
    guest_is_well(stand, &guest, 1)?;
    power_off(guest)?;
    daemon.leaks_nothing(stand, host, 1)?;
    daemon.leaves(stand)?;
    host_is_well(stand, host, None)
}

/// The daemon knows the VMM, the function and both places in the guest, and tells the function's pair.
fn by_qmp(stand: &mut Stand<'_>, host: &Host, daemon: &Daemon, guest: &RunningGuest) -> Result<()> {
    let agent = guest.agent();
    let device = Driver::find(agent)?.device;
    // That of the PCI device above it.
    let uevent = agent.read(&format!("/sys/bus/virtio/devices/{device}/../uevent"))?;
    let place = uevent.lines().find_map(|line| line.strip_prefix("PCI_SLOT_NAME=")).unwrap_or_default();
    stand.report.check("qmp-tells-all", &daemon.log(), || {
        // QEMU is asked for the places when the guest's driver starts, and nobody waits for the answer.
        let told = |status: &Value| {
            status["vmm"]["device"] == place && status["functions"]["0"]["guest"] == EDU.guest
        };
        let status = until(told, || Ok(daemon.ctl(host, &["status"])?["status"].clone()))?;
        let (vmm, function) = (&status["vmm"], &status["functions"]["0"]);
        let known = vmm["process"] == guest.qemu().id() && vmm["device"] == place;
        let named = function["name"] == EDU.host && function["guest"] == EDU.guest;
        let event =
            function["flags"].as_array().is_some_and(|flags| flags.iter().any(|flag| flag == "event"));
        let (there, told) = (host.msi(EDU.host)?.pair, Edu::new(agent).host_pair());
        let told = told.map_err(|error| Unmet::Seen(format!("{vmm}: the guest is told nothing: {error}")))?.0;
        let seen = format!("{vmm}, the device is at {place}; {function}; told {told}, the host has {there}");
        expect(known && named && event && told == there, seen)
    })?;
    Ok(())
}

/// It names the guest's QEMU and the pair.
fn on_the_host(stand: &mut Stand<'_>, host: &Host, guest: &RunningGuest) -> Result<()> {
    let edu = Edu::new(guest.agent());
    let early = stand.sabotaged("doctor-too-early");
    stand.report.check("doctor-sees-the-pair", &host.agent().kernel_log(), || {
        if early {
            edu.enable_msi(false)?;
        }
        let found = doctor::examine(host.agent(), &[EDU.host]);
        if early {
            edu.enable_msi(true)?;
        }
        let pair = host.msi(EDU.host)?.pair;
        found?.sees(pair, "qemu-system-x86")
    })
}

/// It finds the device and who asks it.
fn in_the_guest(stand: &mut Stand<'_>, guest: &RunningGuest) -> Result<()> {
    let agent = guest.agent();
    let unbound = stand.sabotaged("doctor-sees-no-driver");
    let driver = Driver::find(agent)?;
    stand.report.check("doctor-in-the-guest", &agent.kernel_log(), || {
        if unbound {
            driver.unbind()?;
        }
        let found = doctor::examine(agent, &["--guest", EDU.guest]);
        if unbound {
            driver.bind()?;
        }
        found?.works()
    })
}
