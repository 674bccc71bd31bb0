// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Event delivery: the guest leaves MSI alone and lets virtio-irq allocate the function's vector; edu
//! writes the message that came with it, and each interrupt comes through the event queue.

use super::daemon::Daemon;
use super::edu::{self, Edu};
use super::edu_source::{self, VECTOR};
use super::functions::{EDU, guest_with};
use super::kernels::{VIRTIO_IRQ, guest_is_well, host_is_well, start_guest};
use super::{Common, NOBODYS_PAIR, SOON, Sabotage, Scenario, Stand, text_of};
use crate::checks::expect;
use crate::error::Result;
use crate::host::{Host, RunningGuest};
use crate::iommu::Iommu;
use std::time::Duration;

/// The guest's modules. The client leaves MSI off.
const MODULES: &[&str] = &[VIRTIO_IRQ, "virtio_irq_edu msi=0"];

/// How many interrupts are sent. edu takes a tenth of a second for each.
const MANY: u64 = 1000;

/// Interrupts that are sent where they are to become one or none, or a few are enough.
const FEW: u64 = 3;

pub(super) const VTD: Scenario = Scenario {
    name: "vtd-event-edu",
    summary: "virtio-irq delivers a vector of its own allocation: VT-d, SET_IRQS on the VMM's device, QEMU's edu",
    iommu: &Iommu::VTD,
    checks: &[
        "masked-fires-once-after-unmask",
        "freed-is-silent-and-leaves-no-vector",
        "allocated-anew-works",
    ],
    sabotages: &[
        Sabotage {
            name: "keep-unmasked",
            what: "the source is not masked",
            fails: "masked-fires-once-after-unmask",
        },
        Sabotage {
            name: "keep-source",
            what: "the source is not freed",
            fails: "freed-is-silent-and-leaves-no-vector",
        },
        Sabotage {
            name: "stale-pair",
            what: "the device is not told the new source's message but one that is nobody's",
            fails: "allocated-anew-works",
        },
    ],
    common: &[Common::KERNELS, Common::DAEMON, edu_source::COMMON, edu::EVERY_ONE],
    unsettled: None,
    limit: Duration::from_secs(600),
    run: |stand| stand.on_host(VTD.name, &[EDU], |stand, host| play(stand, host, MANY)),
};

pub(super) const AMDVI: Scenario = Scenario {
    name: "amdvi-event-edu",
    summary: "virtio-irq delivers a vector of its own allocation: as vtd-event-edu, behind AMD-Vi",
    iommu: &Iommu::AMDVI,
    run: |stand| stand.on_host(AMDVI.name, &[EDU], |stand, host| play(stand, host, MANY / 10)),
    ..VTD
};

/// Shows it with `many` interrupts.
fn play(stand: &mut Stand<'_>, host: &Host, many: u64) -> Result<()> {
    let daemon = Daemon::start(host, "daemon", &[EDU.spec_with_vfio()])?;
    let guest = Daemon::serve(host, guest_with(&[EDU]))?;
    let guest = start_guest(host, "qemu", &guest, MODULES)?;
    edu_source::allocated(stand, host, &guest)?;
    edu_source::every_one_arrives(stand, host, &guest, many)?;
    masked(stand, host, &guest)?;
    freed(stand, host, &guest)?;
    anew(stand, host, &guest)?;
    guest_is_well(stand, &guest, 1)?;
    edu_source::gone(stand, host, &daemon, guest, 1)?;
    daemon.leaks_nothing(stand, host, 1)?;
    daemon.leaves(stand)?;
    host_is_well(stand, host, stand.iommu.freed.kernel())
}

/// However often it fires, and the host sees it each time.
fn masked(stand: &mut Stand<'_>, host: &Host, guest: &RunningGuest) -> Result<()> {
    let edu = Edu::new(guest.agent());
    let keep = stand.sabotaged("keep-unmasked");
    stand.report.check("masked-fires-once-after-unmask", &guest.agent().kernel_log(), || {
        let (handled, there) = (edu.handled()?, host.vfio_interrupts(EDU.host)?);
        if !keep {
            edu.mask(true)?;
        }
        let meanwhile = edu.fire(FEW, 0)?;
        edu.mask(false)?;
        let after = edu.handled_reaching(handled + 1)? - handled;
        // One that came too much would come before this.
        let last = edu.fire(1, 1)?;
        let there = host.vfio_interrupts(EDU.host)? - there;
        let seen = format!(
            "written {FEW} times while masked: handler ran {meanwhile}; unmasked: {after}; written again: {last}; host {there}"
        );
        expect((meanwhile, after, last, there) == (0, 1, 1, FEW + 1), seen)
    })
}

fn freed(stand: &mut Stand<'_>, host: &Host, guest: &RunningGuest) -> Result<()> {
    let edu = Edu::new(guest.agent());
    let (keep, sign) = (stand.sabotaged("keep-source"), stand.iommu.freed);
    stand.report.check("freed-is-silent-and-leaves-no-vector", &guest.agent().kernel_log(), || {
        if !keep {
            edu.allocate_source(false)?;
        }
        let (mark, pair) = (host.mark()?, edu.programmed()?);
        let handled = edu.fire(FEW, 0)?;
        let requested = host.vfio_requested(EDU.host)?;
        let names: Vec<_> = requested.iter().map(|it| it.name.as_str()).collect();
        let enabled = host.msi(EDU.host)?.enabled;
        let blocked = host.sign_of(pair, sign, mark, SOON)?;
        let seen = format!(
            "its message written {FEW} times: handler ran {handled}; host: {}; its /proc/interrupts has {names:?}, MSI is {}",
            blocked.as_deref().map_or("no fault", text_of),
            if enabled { "on" } else { "off" }
        );
        expect(handled == 0 && blocked.is_some() && !names.contains(&VECTOR) && !enabled, seen)
    })
}

fn anew(stand: &mut Stand<'_>, host: &Host, guest: &RunningGuest) -> Result<()> {
    let edu = Edu::new(guest.agent());
    let program = if stand.sabotaged("stale-pair") { NOBODYS_PAIR.to_string() } else { "host".into() };
    stand.report.check("allocated-anew-works", &guest.agent().kernel_log(), || {
        edu.allocate_source(true)?;
        let pair = edu.program(&program)?;
        let handled = edu.fire(FEW, FEW)?;
        let there = host.msi(EDU.host)?.pair;
        let seen = format!("{pair} written {FEW} times, the host has {there}; handler ran {handled}");
        expect(handled == FEW && pair == there, seen)
    })
}
