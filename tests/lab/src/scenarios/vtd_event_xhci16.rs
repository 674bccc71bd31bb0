// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sixteen contiguous vectors in a guest without an IOMMU of its own, whose kernel gives a driver one at most: virtio-irq
//! allocates the block, and each of its messages, written by edu's DMA engine, runs its own handler.
//!
//! That edu can write the messages of another function is due to QEMU's edu, whose DMA has no requester id that VT-d could
//! check. It stands for message stores inside of the function itself, which the emulated xhci does not have. That the check is
//! made where there is a requester id is shown by the scenario of the igb.

use super::daemon::Daemon;
use super::edu::Edu;
use super::functions::{EDU, XHCI, guest_with};
use super::kernels::{VIRTIO_IRQ, guest_is_well, host_is_well, start_guest};
use super::sources::{self, Sources};
use super::vectors::{self, Vectors};
use super::{Common, Sabotage, Scenario, Stand};
use crate::checks::{Unmet, expect};
use crate::error::Result;
use crate::host::{Host, RunningGuest};
use crate::iommu::Iommu;
use crate::msi::Pair;
use nix::libc::ENOSPC;
use std::time::Duration;

/// The guest's modules. edu is there to write messages, not to raise its own.
const MODULES: &[&str] = &[VIRTIO_IRQ, "virtio_irq_edu msi=0", vectors::MODULE];

/// Vectors of the function.
const VECTORS: usize = 16;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "vtd-event-xhci16",
    summary: "virtio-irq delivers sixteen contiguous MSI vectors that the guest alone would not get: QEMU's xhci and edu",
    iommu: &Iommu::VTD,
    checks: &[
        "guest-alone-gets-no-block",
        "block-is-contiguous-and-the-hosts",
        "each-message-runs-its-handler",
    ],
    sabotages: &[
        Sabotage {
            name: "ask-for-one",
            what: "the guest's driver asks its kernel for one vector instead of sixteen",
            fails: "guest-alone-gets-no-block",
        },
        Sabotage {
            name: "half-a-block",
            what: "eight vectors are allocated",
            fails: "block-is-contiguous-and-the-hosts",
        },
        Sabotage {
            name: "neighbors-pair",
            what: "edu writes the message of the next vector",
            fails: "each-message-runs-its-handler",
        },
    ],
    common: &[Common::KERNELS, Common::DAEMON, sources::COMMON],
    unsettled: None,
    limit: Duration::from_secs(400),
    run,
};

fn run(stand: &mut Stand<'_>) -> Result<()> {
    stand.on_host(SCENARIO.name, &[EDU, XHCI], play)
}

fn play(stand: &mut Stand<'_>, host: &Host) -> Result<()> {
    let daemon = Daemon::start(host, "daemon", &[XHCI.spec_with_vfio(), EDU.spec()])?;
    let guest = Daemon::serve(host, guest_with(&[EDU, XHCI]))?;
    let guest = start_guest(host, "qemu", &guest, MODULES)?;
    let vectors = Vectors::bind(guest.agent(), XHCI)?;
    alone(stand, &guest, &vectors)?;
    delivered(stand, host, &guest, vectors)?;
    guest_is_well(stand, &guest, 1)?;
    daemon.outlasts(stand, host, guest, 1)?;
    host_is_well(stand, host, stand.iommu.freed.kernel())
}

/// Linux gives a driver several MSI vectors only where it can remap them.
fn alone(stand: &mut Stand<'_>, guest: &RunningGuest, vectors: &Vectors<'_>) -> Result<()> {
    let count = if stand.sabotaged("ask-for-one") { 1 } else { VECTORS };
    stand.report.check("guest-alone-gets-no-block", &guest.agent().kernel_log(), || {
        match vectors.enable(&format!("msi {count}")) {
            Ok(()) => {
                vectors.enable("off")?;
                Err(Unmet::Seen(format!("the guest's kernel gave its driver {count}")))
            }
            Err(error) => expect(error.errno() == Some(ENOSPC), format!("{error}")),
        }
    })
}

fn delivered(stand: &mut Stand<'_>, host: &Host, guest: &RunningGuest, vectors: Vectors<'_>) -> Result<()> {
    let sources = Sources {
        host,
        guest,
        vectors,
        function: XHCI,
        how: "msi contiguous",
        requested: "vfio-msi[",
        count: VECTORS,
        messages,
    };
    let most = if stand.sabotaged("half-a-block") { VECTORS / 2 } else { VECTORS };
    let told = sources.allocate(stand, "block-is-contiguous-and-the-hosts", most)?;
    let write = |vector: usize| {
        let pair = told.get(vector).map(ToString::to_string).unwrap_or_default();
        let edu = Edu::new(guest.agent());
        edu.program(&pair)?;
        edu.fire(1, 0).map(drop)
    };
    let skew = usize::from(stand.sabotaged("neighbors-pair"));
    sources.each_runs_its_handler(
        stand,
        "each-message-runs-its-handler",
        "messages written by edu",
        |vector| write((vector + skew) % VECTORS),
    )?;
    sources.rows(stand, "MSI", 1)?;
    sources.masked_fires_once(stand, write)?;
    sources.part_goes_and_comes(stand, write)?;
    sources.are_given_back(stand, || Ok(host.msi(XHCI.host)?.enabled))
}

/// The block that the capability has: one address, and data that counts up; nothing if it is not enabled.
fn messages(host: &Host) -> Result<Vec<Pair>> {
    let capability = host.msi(XHCI.host)?;
    let block = (0..).take(VECTORS).map(|n| Pair { data: capability.pair.data + n, ..capability.pair });
    Ok(block.filter(|_| capability.enabled).collect())
}
