// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Native delivery: a guest that programs the pair of its own MSI capability into the device hears
//! nothing, one that asks virtio-irq hears every interrupt.
//!
//! QEMU's edu device writes any bytes to any address by its DMA engine, and an MSI is such a write. So edu is a device that
//! keeps its message in registers of its own, like the Wi-Fi cards that virtio-irq is for.

use super::daemon::Daemon;
use super::edu::{self, Edu, Shot};
use super::functions::{EDU, guest_with};
use super::kernels::{Driver, VIRTIO_IRQ, guest_is_well, host_is_well, load, power_off, start_guest};
use super::{Common, NOBODYS_PAIR, SOON, Sabotage, Scenario, Stand, text_of};
use crate::checks::{Unmet, expect};
use crate::error::Result;
use crate::host::{Host, RunningGuest};
use crate::iommu::Iommu;
use crate::machine::Guest;
use nix::libc::{EAGAIN, ENODEV, SIGKILL};
use std::time::Duration;

/// How many interrupts are sent where many are, and where a few are enough. edu takes a tenth of a second for each.
const MANY: u64 = 100;
const FEW: u64 = 3;

const REBOOTS: usize = 3;

/// The guest's modules: the virtio-irq driver and its client.
const MODULES: &[&str] = &[VIRTIO_IRQ, "virtio_irq_edu"];

/// How often guests on their channel start without reboots: one has no virtio-irq, and one does.
const STARTS: usize = 2;

/// Where nothing is mapped for the device: no guest has so much memory, or a device there.
const NOWHERE: &str = "d0000000/0000";

/// The bug and the cure, on one guest each.
const PAIR: Common = Common {
    checks: &[
        "no-device-no-answer",
        "guest-pair-is-fiction",
        "guest-pair-runs-no-handler",
        "guest-pair-ends-in-the-host",
        "told-pair-is-the-hosts",
        "refused-before-enable",
        "works-after-enabling-again",
    ],
    sabotages: &[
        Sabotage {
            name: "device-too-early",
            what: "the guest that shall have no virtio-irq device has one",
            fails: "no-device-no-answer",
        },
        Sabotage {
            name: "guests-view",
            what: "the guest's view of the capability is taken for the device's",
            fails: "guest-pair-is-fiction",
        },
        Sabotage {
            name: "true-pair-too-early",
            what: "the guest without virtio-irq programs the host's pair, as if it knew it",
            fails: "guest-pair-runs-no-handler",
        },
        Sabotage {
            name: "silent-vector",
            what: "the device does not write the pair whose vector the host does not use",
            fails: "guest-pair-ends-in-the-host",
        },
        Sabotage {
            name: "simulated-pair",
            what: "the daemon tells the pair of a simulated function",
            fails: "told-pair-is-the-hosts",
        },
        Sabotage {
            name: "keep-enabled",
            what: "the guest leaves MSI enabled when it should disable it",
            fails: "refused-before-enable",
        },
        Sabotage {
            name: "forget-to-ask",
            what: "after enabling MSI again the guest programs its own pair",
            fails: "works-after-enabling-again",
        },
        Sabotage {
            name: "stray-write",
            what: "the device writes to an address that the IOMMU lets it not",
            fails: "host-kernel-is-well",
        },
    ],
};

pub(super) const VTD: Scenario = Scenario {
    name: "vtd-native-edu",
    summary: "a guest gets its real MSI pair: VT-d, vfio-pci, KVM, the kernel module and QEMU's edu device",
    iommu: &Iommu::VTD,
    checks: &[
        "driver-unbinds-and-binds",
        "reboot-1-is-served",
        "reboot-2-is-served",
        "reboot-3-is-served",
        "next-frontend-is-served",
    ],
    sabotages: &[
        Sabotage {
            name: "keep-bound",
            what: "the guest's virtio-irq driver is not unbound",
            fails: "driver-unbinds-and-binds",
        },
        no_driver("reboot-1-is-served"),
        no_driver("reboot-2-is-served"),
        no_driver("reboot-3-is-served"),
        Sabotage {
            name: "ended-daemon",
            what: "the daemon is killed before the next frontend comes",
            fails: "next-frontend-is-served",
        },
    ],
    common: &[Common::KERNELS, Common::DAEMON, edu::EVERY_ONE, PAIR],
    unsettled: None,
    limit: Duration::from_secs(600),
    run: |stand| stand.on_host(VTD.name, &[EDU], |stand, host| play(stand, host, true)),
};

const NO_DRIVER: &str = "no-driver-after-reboot";

const fn no_driver(fails: &'static str) -> Sabotage {
    Sabotage {
        name: NO_DRIVER,
        what: "after this reboot the guest does not load the virtio-irq driver",
        fails,
    }
}

/// What the IOMMU has no part in is left out.
pub(super) const AMDVI: Scenario = Scenario {
    name: "amdvi-native-edu",
    summary: "a guest gets its real MSI pair: as vtd-native-edu, behind AMD-Vi",
    iommu: &Iommu::AMDVI,
    checks: &[],
    sabotages: &[],
    run: |stand| stand.on_host(AMDVI.name, &[EDU], |stand, host| play(stand, host, false)),
    ..VTD
};

/// `lasting` is whether it is also shown to last: over the driver's own going and coming, reboots and frontends.
fn play(stand: &mut Stand<'_>, host: &Host, lasting: bool) -> Result<()> {
    let guest = guest_with(&[EDU]);
    if stand.sabotaged("device-too-early") {
        let early = Daemon::start(host, "early-daemon", &[EDU.spec()])?;
        without_virtio_irq(stand, host, Daemon::serve(host, guest)?)?;
        early.stop()?;
    } else {
        without_virtio_irq(stand, host, guest)?;
    }

    let simulated = stand.sabotaged("simulated-pair");
    let device = if simulated { EDU.spec().replace(EDU.host, "sim:edu") } else { EDU.spec() };
    let daemon = Daemon::start(host, "daemon", &[device])?;
    with_virtio_irq(stand, host, lasting)?;
    if lasting {
        next_frontend(stand, host, &daemon)?;
    }
    daemon.leaks_nothing(stand, host, 1 + usize::from(lasting))?;
    daemon.leaves(stand)?;
    host_is_well(stand, host, None)
}

/// The bug: the guest has only its own pair.
fn without_virtio_irq(stand: &mut Stand<'_>, host: &Host, description: Guest) -> Result<()> {
    let guest = start_guest(host, "qemu-without", &description, MODULES)?;
    let log = guest.agent().kernel_log();
    let edu = Edu::new(guest.agent());
    stand.report.check("no-device-no-answer", &log, || match edu.host_pair() {
        Ok((pair, _)) => Err(Unmet::Seen(format!("told {pair}, in a guest without virtio-irq"))),
        Err(error) => expect(error.errno() == Some(ENODEV), format!("{error}")),
    })?;

    let (guest_pair, host_pair) = (edu.guest_pair()?, host.msi(EDU.host)?);
    let devices = if stand.sabotaged("guests-view") { guest_pair } else { host_pair.pair };
    stand.report.check("guest-pair-is-fiction", &log, || {
        let seen = format!("guest sees {guest_pair}, host has {devices}");
        expect(host_pair.enabled && devices != guest_pair, seen)
    })?;

    let programmed =
        if stand.sabotaged("true-pair-too-early") { host_pair.pair.to_string() } else { "guest".to_owned() };
    let mut shot = Shot::default();
    stand.report.check("guest-pair-runs-no-handler", &log, || {
        shot.take(host, guest.agent(), &programmed, 1, 0)?;
        expect(shot.handled == 0, shot.to_string())
    })?;

    let silent = stand.sabotaged("silent-vector");
    let sign = stand.iommu.unknown;
    let host_log = host.agent().kernel_log();
    stand.report.check("guest-pair-ends-in-the-host", &host_log, || {
        let mark = host.mark()?;
        let pair = edu.program(&NOBODYS_PAIR.to_string())?;
        let handled = if silent { 0 } else { edu.fire(1, 0)? };
        let line = host.sign_of(NOBODYS_PAIR, sign, mark, SOON)?;
        let seen = format!(
            "{pair} written once, handler ran {handled} times; host: {}",
            line.as_deref().map_or("not a word of it", text_of)
        );
        expect(handled == 0 && line.is_some(), seen)
    })?;
    stand.report.row(shot.row("without virtio-irq"));
    power_off(guest)
}

/// The cure, and that it lasts.
fn with_virtio_irq(stand: &mut Stand<'_>, host: &Host, lasting: bool) -> Result<()> {
    let guest = start_guest(host, "qemu-with", &served(host)?, MODULES)?;
    pair_is_told(stand, host, &guest)?;
    enabling_again(stand, host, &guest)?;
    let mut starts = STARTS;
    if lasting {
        driver_comes_and_goes(stand, host, &guest)?;
        reboots(stand, host, &guest)?;
        starts += REBOOTS;
    }
    guest_is_well(stand, &guest, starts)?;
    if stand.sabotaged("stray-write") {
        let edu = Edu::new(guest.agent());
        edu.program(NOWHERE)?;
        edu.fire(1, 0)?;
    }
    power_off(guest)
}

fn pair_is_told(stand: &mut Stand<'_>, host: &Host, guest: &RunningGuest) -> Result<()> {
    let log = guest.agent().kernel_log();
    let edu = Edu::new(guest.agent());
    stand.report.check("told-pair-is-the-hosts", &log, || {
        let (told, generation) = edu.host_pair()?;
        let there = host.msi(EDU.host)?;
        let seen = format!(
            "told {told} (generation {generation}), the host's configuration space has {}",
            there.pair
        );
        expect(there.enabled && told == there.pair, seen)
    })?;

    let many = stand.times("each-interrupt-runs-the-handler-once", MANY);
    let sent = match () {
        () if stand.sabotaged("lost-interrupt") => many - 1,
        () if stand.sabotaged("doubled-interrupt") => many + 1,
        () => many,
    };
    let mut shot = Shot::default();
    stand.report.check("each-interrupt-runs-the-handler-once", &log, || {
        shot.arrive(host, guest.agent(), "host", sent, many)
    })?;
    stand.report.row(shot.row("with virtio-irq"));
    Ok(())
}

fn enabling_again(stand: &mut Stand<'_>, host: &Host, guest: &RunningGuest) -> Result<()> {
    let log = guest.agent().kernel_log();
    let edu = Edu::new(guest.agent());
    let keep = stand.sabotaged("keep-enabled");
    stand.report.check("refused-before-enable", &log, || {
        if !keep {
            edu.enable_msi(false)?;
        }
        match edu.host_pair() {
            Ok((pair, _)) => Err(Unmet::Seen(format!("told {pair} for a vector that is not enabled"))),
            Err(error) => expect(error.errno() == Some(EAGAIN), format!("{error}")),
        }
    })?;
    let program = if stand.sabotaged("forget-to-ask") { "guest" } else { "host" };
    let mut shot = Shot::default();
    stand.report.check("works-after-enabling-again", &log, || {
        edu.enable_msi(true)?;
        shot.arrive(host, guest.agent(), program, FEW, FEW)
    })?;
    stand.report.row(shot.row("MSI off and on again"));
    Ok(())
}

/// The virtio-irq driver leaves the device while the client stays, and comes back.
fn driver_comes_and_goes(stand: &mut Stand<'_>, host: &Host, guest: &RunningGuest) -> Result<()> {
    let agent = guest.agent();
    let edu = Edu::new(agent);
    let keep = stand.sabotaged("keep-bound");
    stand.report.check("driver-unbinds-and-binds", &agent.kernel_log(), || {
        let driver = Driver::find(agent)?;
        if !keep {
            driver.unbind()?;
        }
        let between = match edu.host_pair() {
            Ok((pair, _)) => return Err(Unmet::Seen(format!("told {pair} without a driver"))),
            Err(error) if error.errno() == Some(ENODEV) => "ENODEV without it",
            Err(error) => return Err(error.into()),
        };
        driver.bind()?;
        let after = Shot::default().arrive(host, agent, "host", FEW, FEW)?;
        Ok(format!("{}: {between}; bound again: {after}", driver.device))
    })
}

fn reboots(stand: &mut Stand<'_>, host: &Host, guest: &RunningGuest) -> Result<()> {
    let log = guest.agent().kernel_log();
    for (number, name) in
        (1..=REBOOTS).zip(["reboot-1-is-served", "reboot-2-is-served", "reboot-3-is-served"])
    {
        guest.reboot()?;
        let undriven = stand.sabotage.is_some_and(|it| it.name == NO_DRIVER && it.fails == name);
        load(guest, if undriven { &MODULES[1..] } else { MODULES })?;
        let mut shot = Shot::default();
        stand.report.check(name, &log, || shot.arrive(host, guest.agent(), "host", FEW, FEW))?;
        stand.report.row(shot.row(&format!("after reboot {number}")));
    }
    Ok(())
}

/// Another QEMU, another connection, the same daemon.
fn next_frontend(stand: &mut Stand<'_>, host: &Host, daemon: &Daemon) -> Result<()> {
    if stand.sabotaged("ended-daemon") {
        daemon.process().signal(SIGKILL)?;
    }
    let mut shot = Shot::default();
    stand.report.check("next-frontend-is-served", &daemon.log(), || {
        let guest = start_guest(host, "qemu-next", &served(host)?, MODULES)?;
        let verdict = shot.arrive(host, guest.agent(), "host", FEW, FEW);
        power_off(guest)?;
        verdict
    })?;
    stand.report.row(shot.row("another VM, same daemon"));
    Ok(())
}

/// A guest with the virtio-irq device.
fn served(host: &Host) -> Result<Guest> {
    Daemon::serve(host, guest_with(&[EDU]))
}
