// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Event delivery of a function whose VFIO device the daemon opens itself, as a character device, and lends to the VMM, which
//! `vhost-device-irq exec` starts with it. The VMM binds it to an IOMMUFD; there is no VFIO group and no container.

use super::daemon::Daemon;
use super::edu::{self, Edu};
use super::edu_source;
use super::functions::{EDU, guest_borrowing, guest_with, machine_with};
use super::kernels::{VIRTIO_IRQ, guest_is_well, host_is_well, power_off, start_guest};
use super::{Common, SOON, Sabotage, Scenario, Stand};
use crate::checks::expect;
use crate::error::Result;
use crate::host::{Host, RunningGuest};
use crate::iommu::Iommu;
use crate::machine::Guest;
use crate::provision::character_devices;
use std::time::Duration;

/// The guest's modules. The client leaves MSI off.
const MODULES: &[&str] = &[VIRTIO_IRQ, "virtio_irq_edu msi=0"];

/// What the daemon's log is called.
const DAEMON: &str = "daemon";

/// Where the daemon lends the device.
const LOAN: &str = "/run/virtio-irq-edu.sock";

/// How many interrupts are sent to count them, and where a few are enough.
const MANY: u64 = 60;
const FEW: u64 = 3;

const LENT: &str = "device-is-lent-to-the-vmm";
const NEXT: &str = "next-vmm-borrows-it-again";

pub(super) const SCENARIO: Scenario = Scenario {
    name: "vtd-event-cdev",
    summary: "the daemon opens a VFIO character device, lends it to QEMU and delivers its vector: IOMMUFD, QEMU's edu",
    iommu: &Iommu::VTD,
    checks: &[LENT, NEXT],
    sabotages: &[
        Sabotage { name: "opened-by-the-vmm", what: "QEMU opens the device by itself", fails: LENT },
        Sabotage { name: "no-device", what: "the next VMM has no virtio-irq device", fails: NEXT },
    ],
    common: &[Common::KERNELS, Common::DAEMON, edu_source::COMMON, edu::EVERY_ONE],
    unsettled: None,
    limit: Duration::from_secs(400),
    run,
};

fn run(stand: &mut Stand<'_>) -> Result<()> {
    let machine = machine_with(stand.iommu, &[EDU]).vfio_modules(character_devices(stand.layout)?);
    stand.on_machine(SCENARIO.name, machine, &[EDU], play)
}

fn play(stand: &mut Stand<'_>, host: &Host) -> Result<()> {
    let daemon = Daemon::start(host, DAEMON, &[EDU.spec_lent(LOAN)])?;
    let borrowing = guest_borrowing(EDU, LOAN);
    let description = if stand.sabotaged("opened-by-the-vmm") {
        let own = EDU.option("iommufd=own");
        guest_with(&[own]).with(["-object".to_owned(), "iommufd,id=own".to_owned()])
    } else {
        borrowing.clone()
    };
    let description = Daemon::serve(host, description)?;
    let guest = start_guest(host, "qemu", &description, MODULES)?;
    lent(stand, host, &daemon, &guest)?;
    edu_source::allocated(stand, host, &guest)?;
    edu_source::every_one_arrives(stand, host, &guest, MANY)?;
    guest_is_well(stand, &guest, 1)?;
    edu_source::gone(stand, host, &daemon, guest, 1)?;
    next(stand, host, &daemon, borrowing)?;
    daemon.leaves(stand)?;
    host_is_well(stand, host, stand.iommu.freed.kernel())
}

/// The VMM has the character device, and an IOMMUFD, and nothing of VFIO besides; and it has it from the daemon.
fn lent(stand: &mut Stand<'_>, host: &Host, daemon: &Daemon, guest: &RunningGuest) -> Result<()> {
    stand.report.check(LENT, &daemon.log(), || {
        let links = format!("readlink /proc/{}/fd/*", guest.qemu().id());
        let links = host.agent().run(&["/bin/sh", "-c", &links])?;
        let devices = ["/dev/vfio", "/dev/iommu"];
        let mut open: Vec<_> =
            links.lines().filter(|link| devices.iter().any(|device| link.starts_with(device))).collect();
        open.sort_unstable();
        let says = daemon.says(host, &format!("{} was lent", EDU.host))?;
        let seen = format!("the VMM has {open:?}; the daemon says {says:?}");
        expect(says.is_some() && open == ["/dev/iommu", "/dev/vfio/devices/vfio0"], seen)
    })
}

/// A VMM that is killed gives the device back, and the next one gets it.
fn next(stand: &mut Stand<'_>, host: &Host, daemon: &Daemon, borrowing: Guest) -> Result<()> {
    let served = Daemon::serve(host, borrowing.clone())?;
    let last = start_guest(host, "qemu-killed", &served, MODULES)?;
    Edu::new(last.agent()).allocate_source(true)?;
    last.kill()?;
    daemon.has_seen_off(host, 2)?;
    let description = if stand.sabotaged("no-device") { borrowing } else { served };
    let guest = start_guest(host, "qemu-next", &description, MODULES)?;
    let edu = Edu::new(guest.agent());
    stand.report.check(NEXT, &guest.agent().kernel_log(), || {
        edu.allocate_source(true)?;
        let told = edu.program("host")?;
        let handled = edu.fire(FEW, FEW)?;
        let there = host.msi(EDU.host)?.pair;
        let seen = format!("told {told}, the host has {there}; written {FEW} times: handler ran {handled}");
        expect(told == there && handled == FEW, seen)
    })?;
    power_off(guest)?;
    // That the VMM ended, the daemon hears on two sockets, in any order.
    host.agent().output_line_after(DAEMON, 2, "was given back", SOON)?;
    daemon.leaks_nothing(stand, host, 3)
}
