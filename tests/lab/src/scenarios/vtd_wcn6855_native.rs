// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A Wi-Fi card in a guest with virtio-irq, native delivery: every ring is heard on the one vector that the guest has for the
//! card, and the patched ath11k asks for that vector's message when it powers the card up.
//!
//! The model has no firmware that would go on from there, so what ath11k does with the message is done by a sample driver.

use super::functions::{WCN6855, machine_with};
use super::kernels::{guest_is_well, host_is_well};
use super::wcn6855::{self as card, Rings, TOLD};
use super::{Common, SOON, Sabotage, Scenario, Stand, text_of};
use crate::agent::Agent;
use crate::checks::{Unmet, Verdict, expect};
use crate::error::{Error, Result};
use crate::host::{Host, RunningGuest};
use crate::iommu::Iommu;
use crate::wifi::{self, Drivers};
use nix::libc::EAGAIN;
use std::time::Duration;

/// How often each ring sends its message.
const TIMES: u64 = 5;

/// A device of the host whose driver takes an interrupt, by which the card gets another one.
const NEIGHBOR: &str = "pcie-root-port,addr=04.0";
const NEIGHBOR_AT: &str = "0000:00:04.0";
const NEIGHBORS_DRIVER: &str = "/sys/bus/pci/drivers/pcieport";

pub(super) const SCENARIO: Scenario = Scenario {
    name: "vtd-wcn6855-native",
    summary: "a Wi-Fi card's model in a guest with virtio-irq: every ring is heard, and the patched ath11k asks",
    iommu: &Iommu::VTD,
    checks: &[
        "patches-apply-and-build",
        "told-pair-is-the-hosts",
        "every-ring-is-heard",
        "works-after-binding-again",
        "works-after-a-suspend",
        "ath11k-is-told-the-hosts-pair",
        "ath11k-asks-when-it-is-bound-again",
        "ath11k-asks-after-a-suspend",
    ],
    sabotages: &[
        Sabotage {
            name: "sloppy-patch",
            what: "a patch adds a line with white space at its end",
            fails: "patches-apply-and-build",
        },
        Sabotage {
            name: "simulated-pair",
            what: "the daemon tells the pair of a simulated function",
            fails: "told-pair-is-the-hosts",
        },
        Sabotage { name: "own-pair", what: "the rings get the guest's pair", fails: "every-ring-is-heard" },
        Sabotage {
            name: "forget-to-ask",
            what: "after binding again the rings get the guest's pair",
            fails: "works-after-binding-again",
        },
        Sabotage { name: "stay-awake", what: "the guest is not suspended", fails: "works-after-a-suspend" },
        Sabotage {
            name: "unpatched-driver",
            what: "the guest has Debian's ath11k",
            fails: "ath11k-is-told-the-hosts-pair",
        },
        Sabotage {
            name: "stay-bound",
            what: "the driver stays bound",
            fails: "ath11k-asks-when-it-is-bound-again",
        },
        Sabotage {
            name: "ath11k-stays-awake",
            what: "the guest is not suspended while ath11k has the card",
            fails: "ath11k-asks-after-a-suspend",
        },
    ],
    common: &[card::COMMON, Common::KERNELS, Common::DAEMON],
    unsettled: None,
    limit: Duration::from_secs(900),
    run,
};

fn run(stand: &mut Stand<'_>) -> Result<()> {
    let drivers = patches_build(stand)?;
    let machine = machine_with(&Iommu::VTD, &[WCN6855]).device(NEIGHBOR);
    card::on_machine(stand, SCENARIO.name, machine, Some(&drivers), play)
}

fn patches_build(stand: &mut Stand<'_>) -> Result<Drivers> {
    let bend: Option<fn(&str) -> String> =
        stand.sabotaged("sloppy-patch").then_some(|patch: &str| patch.replacen("\n+\t", "\n+ \t", 1));
    let log = stand.layout.logs("build").join("wifi.log");
    let mut built = None;
    stand.report.check("patches-apply-and-build", &log, || {
        let drivers = wifi::drivers(stand.layout, bend)?;
        let seen =
            format!("{}; {} steps", drivers.steps.first().map_or("", String::as_str), drivers.steps.len());
        built = Some(drivers);
        Ok(seen)
    })?;
    built.ok_or_else(|| Error::Unexpected("there is no patched driver".into()))
}

fn play(stand: &mut Stand<'_>, host: &Host) -> Result<()> {
    let simulated = stand.sabotaged("simulated-pair");
    let device = if simulated { WCN6855.spec().replace(WCN6855.host, "sim:wcn6855") } else { WCN6855.spec() };
    let (daemon, guest) = card::served_guest(host, device, &[])?;
    rings_are_heard(stand, host, &guest)?;
    sample_sleeps(stand, host, &guest)?;
    card::unbind(guest.agent())?;
    neighbor(host, "bind")?;
    ath11k_asks(stand, host, &guest)?;
    ath11k_asks_again(stand, host, guest.agent())?;
    ath11k_sleeps(stand, host, guest.agent())?;
    guest_is_well(stand, &guest, 1)?;
    daemon.outlasts(stand, host, guest, 1)?;
    host_is_well(stand, host, None)
}

fn rings_are_heard(stand: &mut Stand<'_>, host: &Host, guest: &RunningGuest) -> Result<()> {
    let agent = guest.agent();
    let log = agent.kernel_log();
    let rings = Rings::new(agent);
    stand.report.check("told-pair-is-the-hosts", &log, || {
        let (guest_pair, told, there) =
            (rings.guest_pair()?, rings.host_pair()?, host.msi(WCN6855.host)?.pair);
        let seen =
            format!("guest sees {guest_pair}, told {told}, the host's configuration space has {there}");
        expect(told == there && told != guest_pair, seen)
    })?;
    let whose = if stand.sabotaged("own-pair") { "guest" } else { "host" };
    stand.report.check("every-ring-is-heard", &log, || {
        rings.program(whose, 0)?;
        heard(host, &rings)
    })?;
    let there = host.msi(WCN6855.host)?.pair;
    let row = card::row("17 rings, with virtio-irq", rings.guest_pair()?, there, there, &rings.rings()?);
    stand.report.row(row);
    power_cycles(stand, host, guest, &rings)?;
    let whose = if stand.sabotaged("forget-to-ask") { "guest" } else { "host" };
    stand.report.check("works-after-binding-again", &log, || {
        card::unbind(agent)?;
        card::bind(agent, card::MODULE)?;
        rings.program(whose, 0)?;
        heard(host, &rings)
    })
}

/// The driver powers the card down and up, as it does for a suspend: no message is to be had in between, and the driver, not who
/// tries it, asks for the new one.
fn power_cycles(stand: &mut Stand<'_>, host: &Host, guest: &RunningGuest, rings: &Rings<'_>) -> Result<()> {
    let stays = stand.sabotaged("power-stays-on");
    stand.report.check("works-after-power-down-and-up", &guest.agent().kernel_log(), || {
        if !stays {
            rings.power("off")?;
        }
        let between = match rings.host_pair() {
            Ok(pair) => return Err(Unmet::Seen(format!("told {pair} for a card that is off"))),
            Err(error) if error.errno() == Some(EAGAIN) => "not enabled while it is off",
            Err(error) => return Err(error.into()),
        };
        rings.power("native")?;
        Ok(format!("{between}; on again: {}", heard(host, rings)?))
    })
}

/// Each ring sends its message a few times; each message must run the handler once.
fn heard(host: &Host, rings: &Rings<'_>) -> Verdict {
    let (before, count) = (card::sums(&rings.rings()?), host.vfio_interrupts(WCN6855.host)?);
    rings.fire(TIMES)?;
    let (all, strays) = (rings.rings()?, rings.strays()?);
    let there = host.msi(WCN6855.host)?.pair;
    let (sent, handled) = card::sums(&all);
    let (sent, handled) = (sent - before.0, handled - before.1);
    let counted = host.vfio_interrupts(WCN6855.host)? - count;
    let seen = format!(
        "{} rings, {sent} messages sent, handler ran {handled} times, host counted {counted}",
        all.len()
    );
    let whole = all.len() as u64 * TIMES;
    let each = all.iter().all(|ring| ring.programmed == there && ring.sent == ring.handled);
    expect(each && strays == 0 && whole > 0 && [sent, handled, counted] == [whole; 3], seen)
}

fn ath11k_asks(stand: &mut Stand<'_>, host: &Host, guest: &RunningGuest) -> Result<()> {
    let agent = guest.agent();
    let model = card::model(host)?;
    let mark = model.mark();
    card::load_ath11k(stand, guest, !stand.sabotaged("unpatched-driver"))?;
    stand.report.check("ath11k-is-told-the-hosts-pair", &agent.kernel_log(), || {
        let line = agent.kernel_line(0, TOLD, SOON)?;
        let there = host.msi(WCN6855.host)?.pair;
        let told = card::told(&line).ok_or_else(|| Unmet::Seen(format!("cannot read {line:?}")))?;
        expect(told == there, format!("{}; the host has {there}", text_of(&line)))
    })?;
    stand.report.check("ath11k-powers-the-card-up", model.log(), || Ok(card::powered_up(host, mark)?))
}

/// The real driver is bound again, for which it enables MSI anew, and has to ask anew.
fn ath11k_asks_again(stand: &mut Stand<'_>, host: &Host, guest: &Agent) -> Result<()> {
    let stays = stand.sabotaged("stay-bound");
    stand.report.check("ath11k-asks-when-it-is-bound-again", &guest.kernel_log(), || {
        let mark = guest.kernel_mark();
        if !stays {
            card::unbind(guest)?;
            card::bind(guest, card::ATH11K)?;
        }
        let line = guest.kernel_line(mark, TOLD, SOON)?;
        let there = host.msi(WCN6855.host)?.pair;
        expect(card::told(&line) == Some(there), format!("{}; the host has {there}", text_of(&line)))
    })
}

/// Gives the neighbor to its driver (`bind`), or takes it away (`unbind`): Linux gives out the lowest entry of the IOMMU's table that
/// is free, so the next who enables an interrupt gets the neighbor's, and the next after a `bind` gets another.
fn neighbor(host: &Host, what: &str) -> Result<()> {
    host.agent().write(&format!("{NEIGHBORS_DRIVER}/{what}"), NEIGHBOR_AT)
}

/// The driver gives its vector back when it is suspended, and asks for the message of the next when it resumes.
fn sample_sleeps(stand: &mut Stand<'_>, host: &Host, guest: &RunningGuest) -> Result<()> {
    let awake = stand.sabotaged("stay-awake");
    let rings = Rings::new(guest.agent());
    stand.report.check("works-after-a-suspend", &guest.agent().kernel_log(), || {
        let before = rings.host_pair()?;
        neighbor(host, "unbind")?;
        if !awake {
            card::suspend(guest.agent())?;
        }
        let (told, heard) = (rings.host_pair()?, heard(host, &rings)?);
        expect(told != before, format!("{before} before, {told} after it; {heard}"))
    })
}

/// The real driver keeps its vector, but Linux enables MSI anew, for which the host takes another one.
fn ath11k_sleeps(stand: &mut Stand<'_>, host: &Host, guest: &Agent) -> Result<()> {
    let awake = stand.sabotaged("ath11k-stays-awake");
    stand.report.check("ath11k-asks-after-a-suspend", &guest.kernel_log(), || {
        let before = host.msi(WCN6855.host)?.pair;
        let mark = guest.kernel_mark();
        neighbor(host, "unbind")?;
        if !awake {
            card::suspend(guest)?;
        }
        let line = guest.kernel_line(mark, TOLD, SOON)?;
        let there = host.msi(WCN6855.host)?.pair;
        let seen = format!("{before} before; {}; the host has {there}", text_of(&line));
        expect(card::told(&line) == Some(there) && there != before, seen)
    })
}
