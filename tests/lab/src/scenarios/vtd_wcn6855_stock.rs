// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A Wi-Fi card in a guest as it is without virtio-irq: its rings get the pair that the guest sees, and nobody hears them.

use super::daemon::Daemon;
use super::functions::{WCN6855, guest_with};
use super::kernels::{VIRTIO_IRQ, guest_is_well, host_is_well, power_off, start_guest};
use super::wcn6855::{self as card, Rings};
use super::{Common, Sabotage, Scenario, Stand};
use crate::checks::expect;
use crate::error::Result;
use crate::host::{Host, RunningGuest};
use crate::iommu::Iommu;
use std::time::Duration;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "vtd-wcn6855-stock",
    summary: "a Wi-Fi card's model in a guest without virtio-irq: no ring is heard",
    iommu: &Iommu::VTD,
    checks: &[
        "guest-gets-one-vector",
        "rings-get-the-guests-pair",
        "no-ring-is-heard",
        "stock-driver-powers-the-card-up",
    ],
    sabotages: &[
        Sabotage {
            name: "iommu-in-the-guest",
            what: "the guest has an IOMMU, so that its kernel gives out 32 vectors",
            fails: "guest-gets-one-vector",
        },
        Sabotage {
            name: "rings-are-told",
            what: "the guest has virtio-irq, and the rings get what it tells",
            fails: "rings-get-the-guests-pair",
        },
        Sabotage {
            name: "virtio-irq-there",
            what: "the guest has virtio-irq, and the rings get what it tells",
            fails: "no-ring-is-heard",
        },
        Sabotage {
            name: "no-firmware-file",
            what: "the guest's kernel looks for firmware in another place",
            fails: "stock-driver-powers-the-card-up",
        },
    ],
    common: &[Common::KERNELS],
    unsettled: None,
    limit: Duration::from_secs(600),
    run,
};

fn run(stand: &mut Stand<'_>) -> Result<()> {
    card::on_host(stand, SCENARIO.name, None, play)
}

fn play(stand: &mut Stand<'_>, host: &Host) -> Result<()> {
    let cured = stand.sabotaged("virtio-irq-there") || stand.sabotaged("rings-are-told");
    let mut guest = guest_with(&[WCN6855]);
    if stand.sabotaged("iommu-in-the-guest") {
        guest = guest.with(card::IOMMU.map(str::to_owned));
    }
    if cured {
        Daemon::start(host, "daemon", &[WCN6855.spec()])?;
        guest = Daemon::serve(host, guest)?;
    }
    let guest = start_guest(host, "qemu", &guest, &[VIRTIO_IRQ, card::MODULE])?;
    rings_are_not_heard(stand, host, &guest, if cured { "host" } else { "guest" })?;
    card::unbind(guest.agent())?;
    ath11k_knows_no_better(stand, host, &guest)?;
    guest_is_well(stand, &guest, 1)?;
    power_off(guest)?;
    host_is_well(stand, host, None)
}

fn rings_are_not_heard(stand: &mut Stand<'_>, host: &Host, guest: &RunningGuest, whose: &str) -> Result<()> {
    let log = guest.agent().kernel_log();
    let rings = Rings::new(guest.agent());
    stand.report.check("guest-gets-one-vector", &log, || {
        let vectors = rings.vectors()?;
        expect(vectors == 1, format!("{vectors} vectors of 32, for a guest without an IOMMU"))
    })?;
    let (guest_pair, host_pair) = (rings.guest_pair()?, host.msi(WCN6855.host)?.pair);
    rings.program(whose, 0)?;
    stand.report.check("rings-get-the-guests-pair", &log, || {
        let programmed = rings.rings()?;
        let theirs = programmed.iter().filter(|ring| ring.programmed == guest_pair).count();
        let all = programmed.len();
        let seen = format!("{theirs} of {all} rings have {guest_pair}; the host's pair is {host_pair}");
        expect(theirs == all && all > 0 && guest_pair != host_pair, seen)
    })?;
    rings.fire(1)?;
    let after = rings.rings()?;
    let (sent, handled) = card::sums(&after);
    stand.report.check("no-ring-is-heard", &log, || {
        let ((written, failed), strays) = (rings.messages()?, rings.strays()?);
        let seen =
            format!("{sent} messages sent, {written} written, {failed} refused; handler ran {handled} times");
        expect(sent == after.len() as u64 && written == sent && handled == 0 && strays == 0, seen)
    })?;
    stand.report.row(card::row("17 rings, without virtio-irq", guest_pair, host_pair, guest_pair, &after));
    Ok(())
}

fn ath11k_knows_no_better(stand: &mut Stand<'_>, host: &Host, guest: &RunningGuest) -> Result<()> {
    let model = card::model(host)?;
    let mark = model.mark();
    card::load_ath11k(stand, guest, false)?;
    stand.report.check("stock-driver-powers-the-card-up", model.log(), || {
        let line = card::powered_up(host, mark)?;
        let told = guest.agent().kernel_lines(&[card::TOLD]);
        expect(told.is_empty(), format!("{line}; ath11k has only the guest's pair for its rings"))
    })
}
