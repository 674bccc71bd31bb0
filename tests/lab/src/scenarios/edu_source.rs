// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! edu's one vector as a source, and what has to hold of it however the daemon came by the VFIO device.

use super::daemon::Daemon;
use super::edu::Edu;
use super::functions::EDU;
use super::kernels::power_off;
use super::{Common, Sabotage, Stand};
use crate::checks::{Row, Unmet, expect};
use crate::error::Result;
use crate::host::{Host, RunningGuest};

/// What vfio-pci calls the function's vector.
pub(super) const VECTOR: &str = "vfio-msi[0]";

/// How many interrupts are sent at a time.
const SERIES: u64 = 20;

/// What holds of the source.
pub(super) const COMMON: Common = Common {
    checks: &["source-is-one-vector-of-the-host", "vmm-that-left-leaves-no-vector"],
    sabotages: &[
        Sabotage {
            name: "native-instead",
            what: "the guest enables its own MSI instead of allocating a source",
            fails: "source-is-one-vector-of-the-host",
        },
        Sabotage {
            name: "vmm-stays",
            what: "the VMM is still there when it is looked what it left",
            fails: "vmm-that-left-leaves-no-vector",
        },
    ],
};

/// The check `source-is-one-vector-of-the-host`, and its sabotage: the host has one vector of the function, which is the daemon's, and the guest is told the message that is programmed.
pub(super) fn allocated(stand: &mut Stand<'_>, host: &Host, guest: &RunningGuest) -> Result<()> {
    let edu = Edu::new(guest.agent());
    let native = stand.sabotaged("native-instead");
    stand.report.check("source-is-one-vector-of-the-host", &guest.agent().kernel_log(), || {
        let before = host.vfio_requested(EDU.host)?;
        if native {
            edu.enable_msi(true)?;
        } else {
            edu.allocate_source(true)?;
        }
        let own = edu.own_msi_enabled()?;
        let told = edu.program("host")?;
        let there = host.msi(EDU.host)?;
        let requested = host.vfio_requested(EDU.host)?;
        let names: Vec<_> = requested.iter().map(|it| it.name.as_str()).collect();
        let seen = format!(
            "before {} MSI vectors; then {names:?}, told {told}, the host's configuration space has {}; the guest's own MSI is {}",
            before.iter().filter(|it| it.name == VECTOR).count(),
            there.pair,
            if own { "on" } else { "off" },
        );
        expect(!own && names == [VECTOR] && there.enabled && told == there.pair, seen)
    })
}

/// The check of [`EVERY_ONE`](super::edu::EVERY_ONE), and its sabotages, with `many` interrupts.
pub(super) fn every_one_arrives(
    stand: &mut Stand<'_>,
    host: &Host,
    guest: &RunningGuest,
    many: u64,
) -> Result<()> {
    let edu = Edu::new(guest.agent());
    let (less, more) = (stand.sabotaged("lost-interrupt"), stand.sabotaged("doubled-interrupt"));
    let many = SERIES * stand.times("each-interrupt-runs-the-handler-once", many / SERIES);
    let (mut sent, mut handled) = (0, 0);
    stand.report.check("each-interrupt-runs-the-handler-once", &guest.agent().kernel_log(), || {
        let before = host.vfio_interrupts(EDU.host)?;
        for series in 0..many / SERIES {
            let change = u64::from(series == 0);
            let count = SERIES + change * u64::from(more) - change * u64::from(less);
            let arrived = edu.fire(count, SERIES)?;
            sent += count;
            handled += arrived;
            if arrived != SERIES {
                return Err(Unmet::Seen(format!(
                    "handler ran {arrived} times in a series, {SERIES} expected"
                )));
            }
        }
        let there = host.vfio_interrupts(EDU.host)? - before;
        let seen = format!("written {sent} times; handler ran {handled}, host {there}; {many} expected");
        expect(handled == many && there == many, seen)
    })?;
    stand.report.row(Row {
        situation: "delivered by virtio-irq".into(),
        function: EDU.guest.into(),
        vector: "MSI 0".into(),
        guest_pair: "-".into(),
        host_pair: host.msi(EDU.host)?.pair.to_string(),
        written: edu.programmed()?.to_string(),
        sent,
        handled,
        outcome: Row::outcome(sent, handled),
    });
    Ok(())
}

/// The check `vmm-that-left-leaves-no-vector`, and its sabotage: the guest, the daemon's `frontends`th frontend, is switched off with
/// its source allocated.
pub(super) fn gone(
    stand: &mut Stand<'_>,
    host: &Host,
    daemon: &Daemon,
    guest: RunningGuest,
    frontends: usize,
) -> Result<()> {
    let stays = stand.sabotaged("vmm-stays");
    let guest = if stays {
        Some(guest)
    } else {
        power_off(guest)?;
        None
    };
    stand.report.check("vmm-that-left-leaves-no-vector", &daemon.log(), || {
        if !stays {
            daemon.has_seen_off(host, frontends)?;
        }
        let requested = host.vfio_requested(EDU.host)?;
        let seen = format!(
            "the host's /proc/interrupts has {:?}",
            requested.iter().map(|it| &it.name).collect::<Vec<_>>()
        );
        expect(requested.is_empty(), seen)
    })?;
    guest.map_or(Ok(()), power_off)
}
