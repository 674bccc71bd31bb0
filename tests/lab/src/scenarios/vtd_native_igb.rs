// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Native delivery of MSI-X behind an Intel IOMMU: a guest that enables ten vectors is told the ten messages that the
//! function's own table has.
//!
//! That they are is shown twice. The table itself is read by the emulator's monitor, past the host's kernel. And edu, which is
//! the guest's as well, writes each told message: exactly that vector of the igb is raised. That one function can raise
//! another's vector is due to edu, whose DMA has no requester id for VT-d to check; of the igb, which has one, the vectors are
//! raised by the igb too.

use super::daemon::Daemon;
use super::edu::Edu;
use super::functions::{EDU, IGB, guest_with};
use super::igb::{Igb, VECTORS};
use super::kernels::{VIRTIO_IRQ, guest_is_well, host_is_well, power_off, start_guest};
use super::vectors::{self, Vectors, listed, names, raise_each};
use super::{Common, Sabotage, Scenario, Stand};
use crate::checks::{Row, Unmet, Verdict, expect};
use crate::error::Result;
use crate::host::{Host, RunningGuest};
use crate::iommu::Iommu;
use nix::libc::{EAGAIN, EIO};
use std::collections::HashSet;
use std::time::Duration;

/// The guest's modules. Nothing but the sample drivers touches its functions.
const MODULES: &[&str] = &[VIRTIO_IRQ, "virtio_irq_edu", vectors::MODULE];

/// Enable bit in the control word of an MSI-X capability.
const MSIX_ENABLE: u16 = 1 << 15;

/// The command register of configuration space, and its bit for memory.
const COMMAND: usize = 0x04;
const MEMORY: u16 = 1 << 1;

/// Vectors that the driver takes when it has given all of them back.
const FEWER: usize = 4;

/// Starts of guests until it is looked whether all were planned.
const STARTS: usize = 2;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "vtd-native-igb",
    summary: "a guest gets the real pairs of ten MSI-X vectors: VT-d, vfio-pci, KVM, the VMM's VFIO device, QEMU's igb",
    iommu: &Iommu::VTD,
    checks: &[
        "refused-without-the-vmms-device",
        "guest-pairs-are-fiction",
        "told-pairs-are-the-tables",
        "each-vector-runs-its-handler",
        "each-told-pair-is-its-vectors",
        "refused-while-disabled",
        "refused-while-memory-is-off",
        "works-after-enabling-again",
        "told-anew-to-a-driver-that-takes-fewer",
    ],
    sabotages: &[
        Sabotage {
            name: "vfio-after-all",
            what: "the daemon that shall not have the VMM's VFIO device has it",
            fails: "refused-without-the-vmms-device",
        },
        Sabotage {
            name: "simulated-pairs",
            what: "the daemon tells the pairs of a simulated function",
            fails: "told-pairs-are-the-tables",
        },
        Sabotage {
            name: "guests-table",
            what: "the guest's view of the table is taken for the device's",
            fails: "guest-pairs-are-fiction",
        },
        Sabotage {
            name: "wrong-bit",
            what: "igb is told to raise the next vector",
            fails: "each-vector-runs-its-handler",
        },
        Sabotage {
            name: "neighbors-pair",
            what: "edu writes the pair of the next vector",
            fails: "each-told-pair-is-its-vectors",
        },
        Sabotage {
            name: "keep-enabled",
            what: "the guest leaves MSI-X enabled when it should disable it",
            fails: "refused-while-disabled",
        },
        Sabotage {
            name: "keep-memory",
            what: "the guest leaves the function's memory on when it should switch it off",
            fails: "refused-while-memory-is-off",
        },
        Sabotage {
            name: "leave-disabled",
            what: "the guest does not enable MSI-X again",
            fails: "works-after-enabling-again",
        },
        Sabotage {
            name: "take-all",
            what: "the driver takes all vectors again",
            fails: "told-anew-to-a-driver-that-takes-fewer",
        },
    ],
    common: &[Common::KERNELS, Common::DAEMON],
    unsettled: None,
    limit: Duration::from_secs(400),
    run,
};

fn run(stand: &mut Stand<'_>) -> Result<()> {
    stand.on_host(SCENARIO.name, &[EDU, IGB], play)
}

fn play(stand: &mut Stand<'_>, host: &Host) -> Result<()> {
    without_device(stand, host)?;
    let igb = if stand.sabotaged("simulated-pairs") {
        IGB.spec().replace(IGB.host, "sim:igb")
    } else {
        IGB.spec_with_vfio()
    };
    let daemon = Daemon::start(host, "daemon", &[igb, EDU.spec()])?;
    let guest = Daemon::serve(host, guest_with(&[EDU, IGB]))?;
    let guest = start_guest(host, "qemu-with", &guest, MODULES)?;
    let vectors = Vectors::bind(guest.agent(), IGB)?;
    vectors.enable(&format!("msix {VECTORS}"))?;
    told_pairs(stand, host, &guest, &vectors)?;
    vectors_run_handlers(stand, host, &guest, &vectors)?;
    pairs_raise_vectors(stand, &guest, &vectors)?;
    what_is_off(stand, host, &guest, &vectors, &daemon)?;
    fewer(stand, host, &guest, &vectors)?;
    guest_is_well(stand, &guest, STARTS)?;
    power_off(guest)?;
    daemon.leaks_nothing(stand, host, 1)?;
    daemon.leaves(stand)?;
    host_is_well(stand, host, None)
}

/// Most kernels let nobody but the VMM see the table, so the daemon needs the VMM's device, and says so.
fn without_device(stand: &mut Stand<'_>, host: &Host) -> Result<()> {
    let device = if stand.sabotaged("vfio-after-all") { IGB.spec_with_vfio() } else { IGB.spec() };
    let daemon = Daemon::start(host, "daemon-without", &[device])?;
    let guest = Daemon::serve(host, guest_with(&[IGB]))?;
    let guest = start_guest(host, "qemu-without", &guest, MODULES)?;
    let vectors = Vectors::bind(guest.agent(), IGB)?;
    stand.report.check("refused-without-the-vmms-device", &daemon.log(), || {
        vectors.enable(&format!("msix {VECTORS}"))?;
        let (refused, seen) = refusals(&vectors, EIO)?;
        let remedy = daemon.says(host, "add vfio=pid")?;
        let seen = format!("{seen}; daemon: {}", remedy.as_deref().unwrap_or("no word of vfio="));
        expect(refused && remedy.is_some(), seen)
    })?;
    power_off(guest)?;
    daemon.stop()
}

fn told_pairs(stand: &mut Stand<'_>, host: &Host, guest: &RunningGuest, vectors: &Vectors<'_>) -> Result<()> {
    let log = guest.agent().kernel_log();
    let theirs = vectors.guest_pairs()?;
    let blind = stand.sabotaged("guests-table");
    stand.report.check("guest-pairs-are-fiction", &log, || {
        let real = if blind { vectors.guest_pairs()? } else { host.msix_pairs(IGB.host)? };
        let seen = format!("the guest's table: {}; the device's: {}", listed(&theirs), listed(&real));
        expect(theirs.len() == VECTORS && theirs.iter().all(|pair| !real.contains(pair)), seen)
    })?;
    stand.report.check("told-pairs-are-the-tables", &log, || {
        pairs_agree(host, vectors, VECTORS).map(|seen| format!("{seen}, and no two are the same"))
    })
}

/// What virtio-irq tells is in the device's own table, a message of its own for each of `count` vectors.
fn pairs_agree(host: &Host, vectors: &Vectors<'_>, count: usize) -> Verdict {
    let told = match vectors.told()? {
        Ok(told) => told,
        Err(errno) => return Err(Unmet::Seen(format!("refused with errno {errno}"))),
    };
    let table = host.msix_pairs(IGB.host)?;
    let seen = format!("told {}; the device's table has {}", listed(&told), listed(&table));
    let distinct: HashSet<_> = told.iter().map(ToString::to_string).collect();
    expect(told.len() == count && table.starts_with(&told) && distinct.len() == count, seen)
}

/// The ordinary path, with the igb's requester id: what is told changes nothing about it.
fn vectors_run_handlers(
    stand: &mut Stand<'_>,
    host: &Host,
    guest: &RunningGuest,
    vectors: &Vectors<'_>,
) -> Result<()> {
    let igb = Igb::prepare(guest.agent())?;
    let skew = usize::from(stand.sabotaged("wrong-bit"));
    stand.report.check("each-vector-runs-its-handler", &guest.agent().kernel_log(), || {
        let before = host.vfio_requested(IGB.host)?;
        raise_each(vectors, VECTORS, |vector| igb.raise((vector + skew) % VECTORS))?;
        let after = host.vfio_requested(IGB.host)?;
        let once = before.iter().zip(&after).all(|(before, after)| after.count == before.count + 1);
        let seen = format!(
            "each of {VECTORS} raised by EICS ran its handler and no other; the host has {} \
                            vectors, each of which came once",
            after.len()
        );
        expect(after.len() == VECTORS && before.len() == VECTORS && once, seen)
    })
}

/// edu writes each of the told messages.
fn pairs_raise_vectors(stand: &mut Stand<'_>, guest: &RunningGuest, vectors: &Vectors<'_>) -> Result<()> {
    let edu = Edu::new(guest.agent());
    let skew = usize::from(stand.sabotaged("neighbors-pair"));
    let (mut told, before) = (Vec::new(), vectors.counts()?);
    stand.report.check("each-told-pair-is-its-vectors", &guest.agent().kernel_log(), || {
        told = vectors.told()?.map_err(|errno| Unmet::Seen(format!("refused with errno {errno}")))?;
        raise_each(vectors, told.len(), |vector| {
            edu.program(&told[(vector + skew) % told.len()].to_string())?;
            edu.fire(1, 0).map(drop)
        })?;
        expect(
            told.len() == VECTORS,
            format!("edu wrote {} messages; each ran the handler of its vector and no other", told.len()),
        )
    })?;
    let handled = vectors.counts()?.into_iter().zip(before).map(|(after, before)| after - before);
    let theirs = vectors.guest_pairs()?;
    for (vector, ((told, theirs), handled)) in told.iter().zip(theirs).zip(handled).enumerate() {
        stand.report.row(Row {
            situation: "written by edu".into(),
            function: IGB.guest.into(),
            vector: format!("MSI-X {vector}"),
            guest_pair: theirs.to_string(),
            host_pair: told.to_string(),
            written: told.to_string(),
            sent: 1,
            handled,
            outcome: Row::outcome(1, handled),
        });
    }
    Ok(())
}

/// The guest switches MSI-X off, then memory, and each on again, behind the back of its kernel.
fn what_is_off(
    stand: &mut Stand<'_>,
    host: &Host,
    guest: &RunningGuest,
    vectors: &Vectors<'_>,
    daemon: &Daemon,
) -> Result<()> {
    let log = guest.agent().kernel_log();
    let control = vectors.msix()?.control;
    let keep = stand.sabotaged("keep-enabled");
    stand.report.check("refused-while-disabled", &log, || {
        if !keep {
            vectors.change_config(control, 0, MSIX_ENABLE)?;
        }
        let (refused, seen) = refusals(vectors, EAGAIN)?;
        expect(refused, seen)
    })?;
    let leave = stand.sabotaged("leave-disabled");
    stand.report.check("works-after-enabling-again", &log, || {
        if !leave {
            vectors.change_config(control, MSIX_ENABLE, 0)?;
        }
        let seen = pairs_agree(host, vectors, VECTORS)?;
        let igb = Igb::prepare(guest.agent())?;
        raise_each(vectors, VECTORS, |vector| igb.raise(vector))?;
        Ok(format!("{seen}; each ran its handler"))
    })?;
    let keep = stand.sabotaged("keep-memory");
    stand.report.check("refused-while-memory-is-off", &daemon.log(), || {
        if !keep {
            vectors.change_config(COMMAND, 0, MEMORY)?;
        }
        let refused = refusals(vectors, EIO);
        vectors.change_config(COMMAND, MEMORY, 0)?;
        let (refused, seen) = refused?;
        let reason = daemon.says(host, "memory off")?;
        let again = pairs_agree(host, vectors, VECTORS)?;
        let said = reason.as_deref().unwrap_or("no word of memory");
        expect(refused && reason.is_some(), format!("{seen}; daemon: {said}; on again: {again}"))
    })
}

/// The guest's driver gives its vectors back and takes fewer.
fn fewer(stand: &mut Stand<'_>, host: &Host, guest: &RunningGuest, vectors: &Vectors<'_>) -> Result<()> {
    let count = if stand.sabotaged("take-all") { VECTORS } else { FEWER };
    stand.report.check("told-anew-to-a-driver-that-takes-fewer", &guest.agent().kernel_log(), || {
        vectors.enable("off")?;
        let released = names(&host.vfio_requested(IGB.host)?, "vfio-msix");
        vectors.enable(&format!("msix {count}"))?;
        let seen = pairs_agree(host, vectors, FEWER)?;
        let igb = Igb::prepare(guest.agent())?;
        raise_each(vectors, FEWER, |vector| igb.raise(vector))?;
        let left = released.len();
        let seen = format!("given back, the host had {left} vectors; then {seen}; each ran its handler");
        expect(released.is_empty(), seen)
    })
}

/// Whether all vectors are held and each is refused with `errno`.
fn refusals(vectors: &Vectors<'_>, errno: i32) -> Result<(bool, String)> {
    let held = vectors.held()?;
    let refused = held.iter().filter(|vector| vector.told == Err(errno)).count();
    let other = held.iter().find(|vector| vector.told != Err(errno)).map(|vector| &vector.told);
    let seen = match other {
        None => format!("{refused} vectors refused: {}", std::io::Error::from_raw_os_error(errno)),
        Some(other) => {
            format!("{refused} of {} vectors refused with {errno}, another: {other:?}", held.len())
        }
    };
    Ok((refused == VECTORS && held.len() == VECTORS, seen))
}
