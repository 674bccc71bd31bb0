// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Event delivery of MSI-X with the requester id enforced: virtio-irq allocates ten vectors of an igb, and the igb raises them.
//!
//! The guest gets the igb's own message store. `x-msix-relocation` moves the MSI-X table that QEMU shows the guest to another
//! BAR, so that the BAR with the real one is the guest's like any other registers: it stands for every device that keeps
//! messages where a hypervisor does not trap them. What the guest writes there is what the igb sends, with the igb's requester
//! id, and the IOMMU judges it: the igb's own messages arrive wherever they stand in the table, another function's does not.

use super::daemon::Daemon;
use super::edu::Edu;
use super::functions::{EDU, IGB, guest_with};
use super::igb::{Igb, VECTORS};
use super::kernels::{VIRTIO_IRQ, guest_is_well, host_is_well, start_guest};
use super::sources::{self, MARKER, Sources};
use super::vectors::{self, Vectors, added};
use super::{Common, SOON, Sabotage, Scenario, Stand, text_of};
use crate::checks::expect;
use crate::error::{Error, Result};
use crate::host::{Host, RunningGuest};
use crate::iommu::Iommu;
use crate::msi::{ENTRY, Pair};
use std::time::Duration;

/// The guest's modules. The client of edu has MSI of its own, natively.
const MODULES: &[&str] = &[VIRTIO_IRQ, "virtio_irq_edu", vectors::MODULE];

/// What the IOMMU says of a message that another function may send: the requester id is not the entry's.
const STRANGER_LOG: &str = "fault reason 0x26";

/// The vector whose entry of the table gets a message that is not the igb's.
const BORROWED: usize = 9;

const FEW: u64 = 3;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "vtd-event-igb",
    summary: "virtio-irq delivers ten MSI-X vectors, with the requester id enforced: QEMU's igb raises them itself",
    iommu: &Iommu::VTD,
    checks: &[
        "ten-sources-have-the-tables-messages",
        "each-vector-runs-its-handler",
        "each-message-runs-its-handler",
        "anothers-message-is-blocked",
        "native-function-works-beside-it",
    ],
    sabotages: &[
        Sabotage {
            name: "too-few",
            what: "nine vectors are allocated",
            fails: "ten-sources-have-the-tables-messages",
        },
        Sabotage {
            name: "wrong-bit",
            what: "igb is told to raise the next vector",
            fails: "each-vector-runs-its-handler",
        },
        Sabotage {
            name: "keep-table",
            what: "the guest leaves the igb's table as the host wrote it",
            fails: "each-message-runs-its-handler",
        },
        Sabotage {
            name: "own-message",
            what: "the igb gets a message of its own instead of edu's",
            fails: "anothers-message-is-blocked",
        },
        Sabotage {
            name: "forget-to-ask",
            what: "edu is told the guest's own pair",
            fails: "native-function-works-beside-it",
        },
    ],
    common: &[Common::KERNELS, Common::DAEMON, sources::COMMON],
    unsettled: None,
    limit: Duration::from_secs(400),
    run,
};

fn run(stand: &mut Stand<'_>) -> Result<()> {
    stand.on_host(SCENARIO.name, &[EDU, IGB], play)
}

fn play(stand: &mut Stand<'_>, host: &Host) -> Result<()> {
    let daemon = Daemon::start(host, "daemon", &[IGB.spec_with_vfio(), EDU.spec()])?;
    let guest = guest_with(&[EDU, IGB.option("x-msix-relocation=bar5")]);
    let guest = start_guest(host, "qemu", &Daemon::serve(host, guest)?, MODULES)?;
    delivered(stand, host, &guest)?;
    guest_is_well(stand, &guest, 1)?;
    daemon.outlasts(stand, host, guest, 1)?;
    host_is_well(stand, host, Some(STRANGER_LOG))
}

fn delivered(stand: &mut Stand<'_>, host: &Host, guest: &RunningGuest) -> Result<()> {
    let sources = Sources {
        host,
        guest,
        vectors: Vectors::bind(guest.agent(), IGB)?,
        function: IGB,
        how: "msix any",
        requested: "vfio-msix[",
        count: VECTORS,
        messages: |host| host.msix_pairs(IGB.host),
    };
    let most = VECTORS - usize::from(stand.sabotaged("too-few"));
    let told = sources.allocate(stand, "ten-sources-have-the-tables-messages", most)?;
    let igb = Igb::prepare(guest.agent())?;
    let skew = usize::from(stand.sabotaged("wrong-bit"));
    sources.each_runs_its_handler(stand, "each-vector-runs-its-handler", "raised by EICS", |vector| {
        igb.raise((vector + skew) % VECTORS)
    })?;
    let store = Store { host, guest };
    if !stand.sabotaged("keep-table") {
        (0..).zip(&told).try_for_each(|(entry, pair)| store.program(next(entry), *pair))?;
    }
    sources.each_runs_its_handler(
        stand,
        "each-message-runs-its-handler",
        "message moved to the table's next entry, and raised there",
        |vector| igb.raise(next(vector)),
    )?;
    (0..).zip(&told).try_for_each(|(entry, pair)| store.program(entry, *pair))?;
    sources.rows(stand, "MSI-X", 2)?;
    another(stand, &sources, &igb, &store, &told)?;
    sources.masked_fires_once(stand, |vector| igb.raise(vector))?;
    beside(stand, &sources, &igb)?;
    sources.part_goes_and_comes(stand, |vector| igb.raise(vector))?;
    sources.are_given_back(stand, || Ok(host.msix(IGB.host)?.enabled))
}

/// The entry of the table that gets a vector's message instead of its own.
fn next(vector: usize) -> usize {
    (vector + 1) % VECTORS
}

/// The igb's own table, which the guest has as registers.
struct Store<'a> {
    host: &'a Host,
    guest: &'a RunningGuest,
}

impl Store<'_> {
    /// Writes a message into an entry.
    fn program(&self, entry: usize, pair: Pair) -> Result<()> {
        let table = self.host.msix(IGB.host)?;
        let path = IGB.in_guest(&format!("resource{}", table.bar));
        let at = usize::try_from(table.offset).unwrap_or(usize::MAX) + entry * ENTRY * 4;
        let [low, high] = [pair.address as u32, (pair.address >> 32) as u32];
        for (offset, word) in [(0, low), (4, high), (8, pair.data)] {
            self.guest.agent().store(&path, at + offset, word)?;
        }
        Ok(())
    }
}

/// The message of edu, with which edu's interrupts do arrive, is nothing in the igb's hands.
fn another(
    stand: &mut Stand<'_>,
    sources: &Sources<'_>,
    igb: &Igb<'_>,
    store: &Store<'_>,
    told: &[Pair],
) -> Result<()> {
    let agent = sources.host.agent();
    let vectors = &sources.vectors;
    let edu = Edu::new(sources.guest.agent());
    let own = stand.sabotaged("own-message");
    stand.report.check("anothers-message-is-blocked", &agent.kernel_log(), || {
        let (edus_pair, _) = edu.host_pair()?;
        let borrowed = if own { told[BORROWED] } else { edus_pair };
        let (mark, edus, before) = (agent.kernel_mark(), edu.handled()?, vectors.counts()?);
        store.program(BORROWED, borrowed)?;
        igb.raise(BORROWED)?;
        let fault = match agent.kernel_line(mark, STRANGER_LOG, SOON) {
            Ok(line) => Some(line),
            Err(Error::Late { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        igb.raise(MARKER)?;
        let expected = added(&before, MARKER, 1);
        let meanwhile = vectors.counts_becoming(&expected)?;
        let edus = edu.handled()? - edus;
        store.program(BORROWED, told[BORROWED])?;
        igb.raise(BORROWED)?;
        let again = added(&expected, BORROWED, 1);
        let after = vectors.counts_becoming(&again)?;
        let seen = format!(
            "igb sent edu's {borrowed}: edu's handler ran {edus} times, {}; host: {}; with its own {} it {}",
            if meanwhile == expected { "the igb's not" } else { "one of the igb's did" },
            fault.as_deref().map_or("no fault", text_of),
            told[BORROWED],
            if after == again { "arrives" } else { "does not arrive" }
        );
        expect(fault.is_some() && edus == 0 && meanwhile == expected && after == again, seen)
    })
}

/// edu's MSI is the guest's own and routed by the VMM, while the igb's vectors are virtio-irq's.
fn beside(stand: &mut Stand<'_>, sources: &Sources<'_>, igb: &Igb<'_>) -> Result<()> {
    let edu = Edu::new(sources.guest.agent());
    let whose = if stand.sabotaged("forget-to-ask") { "guest" } else { "host" };
    stand.report.check("native-function-works-beside-it", &sources.guest.agent().kernel_log(), || {
        let pair = edu.program(whose)?;
        let before = sources.vectors.counts()?;
        let native = edu.fire(FEW, FEW)?;
        igb.raise(MARKER)?;
        let expected = added(&before, MARKER, 1);
        let after = sources.vectors.counts_becoming(&expected)?;
        let seen = format!(
            "edu wrote {pair} {FEW} times, its handler ran {native}; the igb's ran {}",
            if after == expected { "once, when it raised one" } else { "otherwise than raised" }
        );
        expect(native == FEW && after == expected, seen)
    })
}
