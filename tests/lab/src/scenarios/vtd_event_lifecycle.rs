// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Drivers, guests and VMMs that come and go while sources are allocated: what they had goes back to the host each time, and
//! the next is served. One function is used natively all the while, another one by events.

use super::daemon::Daemon;
use super::edu::Edu;
use super::functions::{EDU, XHCI, guest_with};
use super::kernels::{Driver, VIRTIO_IRQ, guest_is_well, host_is_well, load, start_guest, unload};
use super::vectors::{self, Vectors, names, until};
use super::{Common, Sabotage, Scenario, Stand};
use crate::checks::{Unmet, Verdict, expect};
use crate::error::Result;
use crate::host::{Host, RunningGuest};
use crate::iommu::Iommu;
use crate::process::{Holdings, Process};
use std::fmt;
use std::time::Duration;

/// The guest's modules, in the order in which they are loaded.
const MODULES: &[&str] = &[VIRTIO_IRQ, "virtio_irq_edu", vectors::MODULE];

const RELOADS: usize = 20;
const REBOOTS: usize = 5;

/// Sources of one function, and the one that is raised each time.
const SOURCES: usize = 16;
const RAISED: usize = 5;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "vtd-event-lifecycle",
    summary: "what drivers, guests and VMMs held goes back to the host, however they end: QEMU's xhci by events, edu natively",
    iommu: &Iommu::VTD,
    checks: &[
        "native-and-event-use-at-once",
        "modules-that-leave-leave-nothing",
        "guests-that-reboot-leave-nothing",
        "killed-vmm-leaves-nothing",
        "next-vmm-is-served",
    ],
    sabotages: &[
        Sabotage {
            name: "forget-to-ask",
            what: "the function that is used natively is told the guest's own pair",
            fails: "native-and-event-use-at-once",
        },
        Sabotage {
            name: "stay-loaded",
            what: "the modules stay loaded once",
            fails: "modules-that-leave-leave-nothing",
        },
        Sabotage {
            name: "stay-up",
            what: "the guest does not reboot once",
            fails: "guests-that-reboot-leave-nothing",
        },
        Sabotage { name: "stay-alive", what: "the VMM is not killed", fails: "killed-vmm-leaves-nothing" },
        Sabotage {
            name: "no-device",
            what: "the next VMM has no virtio-irq device",
            fails: "next-vmm-is-served",
        },
    ],
    common: &[Common::KERNELS, Common::DAEMON],
    unsettled: None,
    limit: Duration::from_secs(600),
    run,
};

fn run(stand: &mut Stand<'_>) -> Result<()> {
    stand.on_host(SCENARIO.name, &[EDU, XHCI], play)
}

fn play(stand: &mut Stand<'_>, host: &Host) -> Result<()> {
    let daemon = Daemon::start(host, "daemon", &[EDU.spec(), XHCI.spec_with_vfio()])?;
    let empty = Census::take(host, daemon.process(), None)?;
    let description = Daemon::serve(host, guest_with(&[EDU, XHCI]))?;
    let guest = start_guest(host, "qemu", &description, MODULES)?;
    let pair = if stand.sabotaged("forget-to-ask") { "guest" } else { "host" };
    stand.report.check("native-and-event-use-at-once", &guest.agent().kernel_log(), || {
        both_work(host, &guest, pair)
    })?;
    modules_reload(stand, host, &daemon, &guest)?;
    let reboots = guest_reboots(stand, host, &daemon, &guest)?;
    guest_is_well(stand, &guest, 1 + reboots)?;
    vmm_is_killed(stand, host, &daemon, guest, empty)?;
    let description = if stand.sabotaged("no-device") { guest_with(&[EDU, XHCI]) } else { description };
    let guest = start_guest(host, "qemu-next", &description, MODULES)?;
    stand
        .report
        .check("next-vmm-is-served", &guest.agent().kernel_log(), || both_work(host, &guest, "host"))?;
    daemon.outlasts(stand, host, guest, 2)?;
    host_is_well(stand, host, None)
}

/// The driver of one function allocates sources, and one of them arrives; so does an interrupt of the other function's own MSI,
/// for which it is told `pair`. Both stay as they are.
fn both_work(host: &Host, guest: &RunningGuest, pair: &str) -> Verdict {
    let vectors = Vectors::bind(guest.agent(), XHCI)?;
    vectors.allocate(&format!("msi contiguous {SOURCES} {SOURCES} 0"))?;
    let told = vectors.told()?.map_err(|errno| Unmet::Seen(format!("refused with errno {errno}")))?;
    let edu = Edu::new(guest.agent());
    let before = vectors.counts()?;
    edu.program(pair)?;
    let native = edu.fire(1, 1)?;
    edu.program(&told[RAISED].to_string())?;
    edu.fire(1, 0)?;
    let after = vectors.counts_becoming(&vectors::added(&before, RAISED, 1))?;
    let delivered = after == vectors::added(&before, RAISED, 1);
    let there = names(&host.vfio_requested(XHCI.host)?, "vfio-msi[").len();
    let own = names(&host.vfio_requested(EDU.host)?, "vfio-msi[").len();
    let seen = format!(
        "{there} vectors of {}, one raised: {}; {own} of {}, raised once: its handler ran {native} times",
        XHCI.guest,
        if delivered { "its handler ran and no other" } else { "not its handler alone ran" },
        EDU.guest
    );
    expect(delivered && native == 1 && there == SOURCES && own == 1, seen)
}

/// Modules are unloaded and loaded again, every other time with the device taken from its driver while there are sources.
fn modules_reload(stand: &mut Stand<'_>, host: &Host, daemon: &Daemon, guest: &RunningGuest) -> Result<()> {
    let stay = stand.sabotaged("stay-loaded");
    again_and_again(stand, "modules-that-leave-leave-nothing", RELOADS, host, daemon, guest, |round| {
        if round % 2 == 0 {
            Driver::find(guest.agent())?.unbind()?;
        }
        if stay && round == 2 { Ok(()) } else { unload(guest, MODULES) }
    })
    .map(drop)
}

/// Reboots with sources allocated, whose driver never gets to free them. Returns how often.
fn guest_reboots(stand: &mut Stand<'_>, host: &Host, daemon: &Daemon, guest: &RunningGuest) -> Result<usize> {
    let stay = stand.sabotaged("stay-up");
    again_and_again(stand, "guests-that-reboot-leave-nothing", REBOOTS, host, daemon, guest, |round| {
        if stay && round == 2 { Ok(()) } else { guest.reboot() }
    })
}

/// After each time that the guest does what makes it `leave` its modules, nothing is left of what they had, and loaded they work.
/// Returns how often that was.
fn again_and_again(
    stand: &mut Stand<'_>,
    check: &'static str,
    times: usize,
    host: &Host,
    daemon: &Daemon,
    guest: &RunningGuest,
    leave: impl Fn(usize) -> Result<()>,
) -> Result<usize> {
    let times = stand.times(check, times);
    stand.report.check(check, &guest.agent().kernel_log(), || {
        let mut least: Option<Census> = None;
        for round in 1..=times {
            leave(round)?;
            let look = || Census::take(host, daemon.process(), Some(guest.qemu()));
            let before = match least.take() {
                Some(before) => before,
                None => until(|left| left.vectors == 0, look)?,
            };
            // The least there was, so that what the first look found closing allows for no leak.
            least = Some(before.comes_back(&format!("time {round}"), look)?);
            load(guest, MODULES)?;
            both_work(host, guest, "host").map_err(|unmet| unmet.during(&format!("after time {round}")))?;
        }
        let left = least.as_ref().map_or_else(String::new, Census::to_string);
        Ok(format!("{times} times, and worked after each; each time there were {left}"))
    })?;
    Ok(times)
}

/// With sources allocated, and nobody left to free them but the daemon.
fn vmm_is_killed(
    stand: &mut Stand<'_>,
    host: &Host,
    daemon: &Daemon,
    guest: RunningGuest,
    empty: Census,
) -> Result<()> {
    let survivor = if stand.sabotaged("stay-alive") {
        Some(guest)
    } else {
        guest.kill()?;
        None
    };
    stand.report.check("killed-vmm-leaves-nothing", &daemon.log(), || {
        if survivor.is_none() {
            daemon.has_seen_off(host, 1)?;
        }
        let left = empty.comes_back("killed", || Census::take(host, daemon.process(), None))?;
        Ok(format!("as before it was there: {left}"))
    })
}

/// What there is on the host that can leak.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Census {
    /// Vectors of both functions that vfio-pci has requested.
    vectors: usize,
    /// Interrupts that the host's kernel has descriptors for, requested or not.
    interrupts: usize,
    daemon: Holdings,
    vmm: Option<Holdings>,
}

impl Census {
    fn take(host: &Host, daemon: &Process, vmm: Option<&Process>) -> Result<Self> {
        let mut vectors = 0;
        for function in [EDU, XHCI] {
            vectors += names(&host.vfio_requested(function.host)?, "vfio-msi").len();
        }
        Ok(Self {
            vectors,
            interrupts: host.agent().list("/sys/kernel/irq")?.len(),
            daemon: daemon.holdings()?,
            vmm: vmm.map(Process::holdings).transpose()?,
        })
    }

    /// Looks until no vector is left, and nothing else is more than it was, which it returns: what goes on being there is a leak,
    /// what is still being closed is none.
    fn comes_back(&self, when: &str, look: impl Fn() -> Result<Self>) -> Result<Self, Unmet> {
        let now = until(|now| now.has_no_more_than(self), look)?;
        if now.has_no_more_than(self) {
            return Ok(now);
        }
        Err(Unmet::Seen(format!("at first {self}; {when}: {now}")))
    }

    fn has_no_more_than(&self, before: &Self) -> bool {
        let vmm = match (self.vmm, before.vmm) {
            (Some(now), Some(before)) => now.are_no_more_than(before),
            (now, before) => now == before,
        };
        self.vectors == 0
            && self.interrupts <= before.interrupts
            && self.daemon.are_no_more_than(before.daemon)
            && vmm
    }
}

impl fmt::Display for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vectors, interrupts, daemon, vmm } = self;
        write!(f, "{vectors} vectors of {interrupts} interrupts of the host; daemon {daemon}")?;
        vmm.map_or(Ok(()), |vmm| write!(f, "; VMM {vmm}"))
    }
}
