// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the doctor says of a live host and, from inside, of a guest, where the rest of the lab knows what is true.

use super::daemon::Daemon;
use super::doctor;
use super::edu::Edu;
use super::functions::{EDU, guest_with};
use super::kernels::{Driver, guest_is_well, host_is_well, power_off, start_guest};
use super::{Common, Sabotage, Scenario, Stand};
use crate::error::Result;
use crate::host::{Host, RunningGuest};
use std::time::Duration;

/// The guest's modules: the virtio-irq driver and its client, which enables MSI.
const MODULES: &[&str] = &["virtio_irq", "virtio_irq_edu"];

pub(super) const SCENARIO: Scenario = Scenario {
    name: "vtd-doctor",
    summary: "the doctor finds a live host and a guest in order, and sees the pair and who holds the function",
    checks: &["doctor-says-works", "doctor-sees-the-pair", "doctor-in-the-guest"],
    sabotages: &[
        Sabotage {
            name: "nothing-to-remap",
            what: "the host's kernel leaves interrupt remapping off, and the doctor has to say so",
            fails: "doctor-says-works",
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
    run,
};

fn run(stand: &mut Stand<'_>) -> Result<()> {
    stand.on_host(SCENARIO.name, &[EDU], play)
}

fn play(stand: &mut Stand<'_>, host: &Host) -> Result<()> {
    stand.report.check("doctor-says-works", &host.agent().kernel_log(), || {
        doctor::examine(host.agent(), &[EDU.host])?.works()
    })?;
    let daemon = Daemon::start(host, "daemon", &[EDU.spec()])?;
    let guest = start_guest(host, "qemu", &Daemon::serve(host, guest_with(&[EDU]))?, MODULES)?;
    on_the_host(stand, host, &guest)?;
    in_the_guest(stand, &guest)?;
    guest_is_well(stand, &guest, 1)?;
    power_off(guest)?;
    daemon.leaks_nothing(stand, host, 1)?;
    daemon.leaves(stand)?;
    host_is_well(stand, host, None)
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
