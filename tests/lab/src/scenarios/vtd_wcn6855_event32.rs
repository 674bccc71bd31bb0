// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A Wi-Fi card in a guest whose kernel has one MSI vector to give: virtio-irq delivers all 32 that the card can have, each to a
//! handler of its own, and the patched ath11k takes them.

use super::daemon::{self, Daemon};
use super::functions::WCN6855;
use super::kernels::{guest_is_well, host_is_well, load};
use super::vectors::{self, Vectors, becoming};
use super::wcn6855::{self as card, Rings, VECTORS, held_by_host};
use super::{Common, SOON, Sabotage, Scenario, Stand, text_of};
use crate::checks::{Unmet, Verdict, expect};
use crate::error::Result;
use crate::host::{Host, RunningGuest};
use crate::iommu::Iommu;
use crate::msi::Pair;
use std::time::Duration;

/// Rings of the card.
const RINGS: usize = 17;

/// What the patched ath11k logs when it has them.
const TAKEN: &str = "MSI vectors: 32, delivered by virtio-irq";

pub(super) const SCENARIO: Scenario = Scenario {
    name: "vtd-wcn6855-event32",
    summary: "a Wi-Fi card's model in a guest without an IOMMU: virtio-irq delivers 32 vectors, each to its handler",
    iommu: &Iommu::VTD,
    checks: &[
        "guest-has-one-vector-to-give",
        "virtio-irq-gives-32",
        "each-vector-runs-its-handler",
        "works-after-a-suspend",
        "sources-held-over-a-suspend-end",
        "ath11k-takes-32-vectors",
        "killed-daemon-leaves-nothing",
        "next-daemon-serves-ath11k",
    ],
    sabotages: &[
        Sabotage {
            name: "iommu-in-the-guest",
            what: "the guest has an IOMMU, so that its kernel gives out 32 vectors",
            fails: "guest-has-one-vector-to-give",
        },
        Sabotage {
            name: "no-vfio",
            what: "the daemon is not told where the VMM's VFIO device is",
            fails: "virtio-irq-gives-32",
        },
        Sabotage {
            name: "neighbors-message",
            what: "each ring gets the message of the next vector",
            fails: "each-vector-runs-its-handler",
        },
        Sabotage { name: "stay-awake", what: "the guest is not suspended", fails: "works-after-a-suspend" },
        Sabotage {
            name: "stay-awake-with-sources",
            what: "the guest is not suspended while a driver holds sources that knows nothing of it",
            fails: "sources-held-over-a-suspend-end",
        },
        Sabotage {
            name: "unpatched-driver",
            what: "the guest has Debian's ath11k",
            fails: "ath11k-takes-32-vectors",
        },
        Sabotage {
            name: "daemon-lives",
            what: "the daemon is not killed while ath11k has vectors",
            fails: "killed-daemon-leaves-nothing",
        },
        Sabotage {
            name: "next-is-unpatched",
            what: "the next guest has Debian's ath11k",
            fails: "next-daemon-serves-ath11k",
        },
    ],
    common: &[card::COMMON, Common::KERNELS, Common::DAEMON],
    unsettled: None,
    limit: Duration::from_secs(400),
    run,
};

fn run(stand: &mut Stand<'_>) -> Result<()> {
    let drivers = crate::wifi::drivers(stand.layout, None)?;
    card::on_host(stand, SCENARIO.name, Some(&drivers), play)
}

fn play(stand: &mut Stand<'_>, host: &Host) -> Result<()> {
    let device = if stand.sabotaged("no-vfio") { WCN6855.spec() } else { WCN6855.spec_with_vfio() };
    let arguments: &[&str] = if stand.sabotaged("iommu-in-the-guest") { &card::IOMMU } else { &[] };
    let (daemon, guest) = card::served_guest(host, device, arguments)?;
    sources_arrive(stand, host, &guest)?;
    sample_sleeps(stand, host, &daemon, &guest)?;
    card::unbind(guest.agent())?;
    sources_end(stand, host, &guest)?;
    ath11k_takes_them(stand, host, &guest)?;
    let (daemon, guest) = daemon_is_killed(stand, host, &daemon, guest)?;
    guest_is_well(stand, &guest, 2)?;
    daemon.outlasts(stand, host, guest, 1)?;
    host_is_well(stand, host, None)
}

fn sources_arrive(stand: &mut Stand<'_>, host: &Host, guest: &RunningGuest) -> Result<()> {
    let log = guest.agent().kernel_log();
    let rings = Rings::new(guest.agent());
    stand.report.check("guest-has-one-vector-to-give", &log, || {
        let vectors = rings.vectors()?;
        expect(vectors == 1, format!("{vectors} vectors of {VECTORS} by the guest's own capability"))
    })?;
    stand.report.check("virtio-irq-gives-32", &log, || {
        rings.power("event")?;
        let (vectors, there) = (rings.vectors()?, held_by_host(host)?);
        let base = host.msi(WCN6855.host)?.pair;
        let seen = format!("{vectors} vectors in the guest, {there} on the host, from {base} on");
        expect(vectors == VECTORS && there == VECTORS, seen)
    })?;
    let skew = usize::from(stand.sabotaged("neighbors-message"));
    stand.report.check("each-vector-runs-its-handler", &log, || all_arrive(host, &rings, skew))?;
    let stays = stand.sabotaged("power-stays-on");
    stand.report.check("works-after-power-down-and-up", &log, || {
        if !stays {
            rings.power("off")?;
        }
        let between = held_by_host(host)?;
        rings.power("event")?;
        let seen = all_arrive(host, &rings, 0)?;
        expect(between == 0, format!("{between} vectors on the host while it is off; on again: {seen}"))
    })
}

/// The driver frees its sources when it is suspended, and allocates others when it resumes.
fn sample_sleeps(stand: &mut Stand<'_>, host: &Host, daemon: &Daemon, guest: &RunningGuest) -> Result<()> {
    let awake = stand.sabotaged("stay-awake");
    let rings = Rings::new(guest.agent());
    let asked = || -> Result<Option<u64>> {
        let answer = daemon.ctl(host, &["status"])?;
        Ok(answer["status"]["counts"]["requests"]["allocate"].as_u64())
    };
    stand.report.check("works-after-a-suspend", &guest.agent().kernel_log(), || {
        let before = asked()?;
        if !awake {
            card::suspend(guest.agent())?;
        }
        let after = asked()?;
        let arrived = all_arrive(host, &rings, 0)?;
        let (Some(before), Some(after)) = (before, after) else {
            return Err(Unmet::Seen("the daemon does not say how often it was asked for vectors".to_owned()));
        };
        expect(after == before + 1, format!("allocated {before} times before and {after} after; {arrived}"))
    })
}

/// Sources of a driver that does nothing for a suspend end with it. It hears of that, and can have others.
fn sources_end(stand: &mut Stand<'_>, host: &Host, guest: &RunningGuest) -> Result<()> {
    let awake = stand.sabotaged("stay-awake-with-sources");
    let agent = guest.agent();
    load(guest, &[vectors::MODULE])?;
    stand.report.check("sources-held-over-a-suspend-end", &agent.kernel_log(), || {
        let vectors = Vectors::bind(agent, WCN6855)?;
        let states = |state: &str| -> Result<usize> {
            Ok(vectors.held()?.iter().filter(|vector| vector.state == state).count())
        };
        let allocate = || vectors.allocate(&format!("msi contiguous {VECTORS} {VECTORS} 0"));
        allocate()?;
        let before = (states("on")?, held_by_host(host)?);
        if !awake {
            card::suspend(agent)?;
        }
        let after = (states("revoked")?, held_by_host(host)?);
        vectors.free(0, VECTORS)?;
        allocate()?;
        let again = (states("on")?, held_by_host(host)?);
        card::unbind(agent)?;
        agent.write(&WCN6855.in_guest("driver_override"), "\n")?;
        let seen = format!(
            "{} on, {} on the host; after a suspend {} revoked, {} on the host; allocated again {}, {}",
            before.0, before.1, after.0, after.1, again.0, again.1
        );
        let all = (VECTORS, VECTORS);
        expect(before == all && after == (VECTORS, 0) && again == all, seen)
    })
}

/// There are more vectors than rings: the first rings get the first vectors, and then the last. Each sends its message once, which
/// must be that of its own vector, and the handler of that vector and no other must run, once.
fn all_arrive(host: &Host, rings: &Rings<'_>, skew: usize) -> Verdict {
    let base = host.msi(WCN6855.host)?.pair;
    let mut handlers = [0; VECTORS];
    let (mut all, mut own, mut once) = (true, 0, 0);
    for first in [0, VECTORS - RINGS] {
        rings.program("host", (first + skew) % VECTORS)?;
        let (before, strays) = (rings.rings()?, rings.strays()?);
        rings.fire(1)?;
        let after = rings.rings()?;
        all &= after.len() == RINGS && rings.strays()? == strays;
        for (index, (before, after)) in before.iter().zip(&after).enumerate() {
            let vector = first + index;
            let message = Pair { data: base.data + u32::try_from(vector).unwrap_or(u32::MAX), ..base };
            own += usize::from(after.vector == vector && after.programmed == message);
            once += usize::from(after.sent == before.sent + 1 && after.handled == before.handled + 1);
            if let Some(handled) = handlers.get_mut(after.vector) {
                *handled += after.handled - before.handled;
            }
        }
    }
    let heard = handlers.iter().filter(|handled| **handled > 0).count();
    let strays = rings.strays()?;
    let seen = format!(
        "{RINGS} rings on vectors 0 to {} and {} to {}: {own} of {} had their vector's message, {once} ran a handler once; \
        {heard} of {VECTORS} handlers ran, {strays} times a wrong one",
        RINGS - 1,
        VECTORS - RINGS,
        VECTORS - 1,
        2 * RINGS
    );
    expect(all && own == 2 * RINGS && once == 2 * RINGS && heard == VECTORS, seen)
}

fn ath11k_takes_them(stand: &mut Stand<'_>, host: &Host, guest: &RunningGuest) -> Result<()> {
    let agent = guest.agent();
    let model = card::model(host)?;
    let mark = model.mark();
    card::load_ath11k(stand, guest, !stand.sabotaged("unpatched-driver"))?;
    stand.report.check("ath11k-takes-32-vectors", &agent.kernel_log(), || {
        let taken = agent.kernel_line(0, TAKEN, SOON)?;
        let line = agent.kernel_line(0, card::TOLD, SOON)?;
        let there = host.msi(WCN6855.host)?.pair;
        let seen = format!("{}; {}; the host has {there}", text_of(&taken), text_of(&line));
        expect(card::told(&line) == Some(there) && held_by_host(host)? == VECTORS, seen)
    })?;
    stand.report.check("ath11k-powers-the-card-up", model.log(), || {
        Ok(format!("{}, with MHI's interrupts from virtio-irq", card::powered_up(host, mark)?))
    })
}

/// The daemon is killed while ath11k has the vectors. The guest goes on without interrupts from there, and the host has them for as
/// long as QEMU has the VFIO device. After that the next daemon and the next guest find all as it was.
fn daemon_is_killed(
    stand: &mut Stand<'_>,
    host: &Host,
    daemon: &Daemon,
    guest: RunningGuest,
) -> Result<(Daemon, RunningGuest)> {
    let lives = stand.sabotaged("daemon-lives");
    stand.report.check("killed-daemon-leaves-nothing", &daemon.log(), || {
        if !lives {
            daemon.kill()?;
        }
        let (goes_on, before) = (guest.agent().read("/proc/uptime").is_ok(), held_by_host(host)?);
        let end = if goes_on { guest.kill()? } else { guest.ends("the daemon's end")? };
        let (left, after) = (becoming(0, || daemon::running(host))?, held_by_host(host)?);
        let guest = if goes_on { "goes on" } else { "ends" };
        let seen = format!(
            "the guest {guest}, {before} vectors on the host; QEMU ended by {end}: {after}; {left} processes of the daemon"
        );
        expect(after == 0 && left == 0, seen)
    })?;
    let (daemon, guest) = card::served_next(host, WCN6855.spec_with_vfio())?;
    card::unbind(guest.agent())?;
    let mark = guest.agent().kernel_mark();
    card::load_ath11k(stand, &guest, !stand.sabotaged("next-is-unpatched"))?;
    stand.report.check("next-daemon-serves-ath11k", &guest.agent().kernel_log(), || {
        let taken = guest.agent().kernel_line(mark, TAKEN, SOON)?;
        let held = held_by_host(host)?;
        expect(held == VECTORS, format!("{}; {held} vectors on the host", text_of(&taken)))
    })?;
    Ok((daemon, guest))
}
