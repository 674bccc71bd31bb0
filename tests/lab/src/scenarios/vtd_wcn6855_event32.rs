// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A Wi-Fi card in a guest whose kernel has one MSI vector to give: virtio-irq delivers all 32 that the card can have, each to a
//! handler of its own, and the patched ath11k takes them.

use super::daemon::Daemon;
use super::functions::{WCN6855, guest_with};
use super::kernels::{guest_is_well, host_is_well, start_guest};
use super::vectors::names;
use super::wcn6855::{self as card, Rings};
use super::{Common, SOON, Sabotage, Scenario, Stand, text_of};
use crate::checks::{Verdict, expect};
use crate::error::Result;
use crate::host::{Host, RunningGuest};
use crate::iommu::Iommu;
use crate::msi::Pair;
use std::time::Duration;

/// Vectors of the card's MSI capability.
const VECTORS: usize = 32;

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
        "works-after-power-down-and-up",
        "ath11k-takes-32-vectors",
        "ath11k-powers-the-card-up",
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
        Sabotage {
            name: "power-stays-on",
            what: "the driver is not told to power the card down",
            fails: "works-after-power-down-and-up",
        },
        Sabotage {
            name: "unpatched-driver",
            what: "the guest has Debian's ath11k",
            fails: "ath11k-takes-32-vectors",
        },
        Sabotage {
            name: "no-firmware-file",
            what: "the guest's kernel looks for firmware in another place",
            fails: "ath11k-powers-the-card-up",
        },
    ],
    common: &[Common::KERNELS, Common::DAEMON],
    unsettled: None,
    limit: Duration::from_secs(400),
    run,
};

fn run(stand: &mut Stand<'_>) -> Result<()> {
    let drivers = crate::wifi::drivers(stand.layout, None)?;
    let files = card::guest_files(stand, Some(&drivers))?;
    stand.on_host_with(SCENARIO.name, &[WCN6855], &files, play)
}

fn play(stand: &mut Stand<'_>, host: &Host) -> Result<()> {
    let device = if stand.sabotaged("no-vfio") { WCN6855.spec() } else { WCN6855.spec_with_vfio() };
    let daemon = Daemon::start(host, "daemon", &[device])?;
    let mut guest = guest_with(&[WCN6855]);
    if stand.sabotaged("iommu-in-the-guest") {
        guest = guest.with(card::IOMMU.map(str::to_owned));
    }
    let guest = Daemon::serve(host, guest)?;
    let guest = start_guest(host, "qemu", &guest, &["virtio_irq", card::MODULE])?;
    sources_arrive(stand, host, &guest)?;
    card::unbind(guest.agent())?;
    ath11k_takes_them(stand, host, &guest)?;
    guest_is_well(stand, &guest, 1)?;
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

/// The card's vectors that the host has enabled.
fn held_by_host(host: &Host) -> Result<usize> {
    Ok(names(&host.vfio_requested(WCN6855.host)?, "vfio-msi").len())
}

/// There are more vectors than rings: the first rings get the first vectors, and then the last. Each sends its message once, which
/// must be that of its own vector, and the handler of that vector and no other must run, once.
fn all_arrive(host: &Host, rings: &Rings<'_>, skew: usize) -> Verdict {
    let base = host.msi(WCN6855.host)?.pair;
    let mut handlers = [0; VECTORS];
    let mut right = true;
    for first in [0, VECTORS - RINGS] {
        rings.program("host", (first + skew) % VECTORS)?;
        let (before, strays) = (rings.rings()?, rings.strays()?);
        rings.fire(1)?;
        let after = rings.rings()?;
        right &= after.len() == RINGS && rings.strays()? == strays;
        for (index, (before, after)) in before.iter().zip(&after).enumerate() {
            let vector = first + index;
            let message = Pair { data: base.data + u32::try_from(vector).unwrap_or(u32::MAX), ..base };
            right &= after.vector == vector && after.programmed == message;
            right &= after.sent == before.sent + 1 && after.handled == before.handled + 1;
            if let Some(handled) = handlers.get_mut(after.vector) {
                *handled += after.handled - before.handled;
            }
        }
    }
    let heard = handlers.iter().filter(|handled| **handled > 0).count();
    let strays = rings.strays()?;
    let seen = format!(
        "{RINGS} rings on vectors 0 to {} and {} to {}: {heard} of {VECTORS} handlers ran, {strays} of a wrong one",
        RINGS - 1,
        VECTORS - RINGS,
        VECTORS - 1
    );
    expect(right && heard == VECTORS, seen)
}

fn ath11k_takes_them(stand: &mut Stand<'_>, host: &Host, guest: &RunningGuest) -> Result<()> {
    let agent = guest.agent();
    let model = card::model(host)?;
    let mark = model.mark();
    let firmware = if stand.sabotaged("no-firmware-file") { "/nowhere" } else { card::FIRMWARE };
    card::load_ath11k(stand, guest, !stand.sabotaged("unpatched-driver"), firmware)?;
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
